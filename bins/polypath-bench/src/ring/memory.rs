//! Where the ring and its requests lie (virtio 1.2, sections 2.7 and 5.2.6), and how a request is written.

use super::{BLOCK, MAX_QD, Rings, Style};
use anyhow::Context as _;
use polypath_memory::{Region, Window};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

pub(super) const DESC_NEXT: u16 = 1;
pub(super) const DESC_WRITE: u16 = 2;
pub(super) const DESC_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub(super) const DESC: usize = 16;
/// In a status byte: no device has written it.
pub(super) const UNANSWERED: u8 = 0xff;
/// In the flags of the available ring: do not call.
const NO_INTERRUPT: u16 = 1;

/// Address, for the back-end, at which the memory begins. Not nought, which would hide mistakes.
pub(super) const BASE: u64 = 0x1000_0000;

/// Bytes between requests: header and status share a cache line, which no other request has.
const REQUEST: usize = 64;
/// Where the sector is in a request.
pub(super) const SECTOR_AT: usize = 8;
/// Where the status byte is in a request, right behind its header.
const STATUS_AT: usize = 16;
/// Bytes between tables of indirect descriptors.
const TABLE: usize = 64;

/// Where everything lies, in bytes from the start of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Entries of the ring: as few as hold all requests, so that the ring shares as few cache lines as can be.
    pub(super) size: u16,
    pub(super) avail: usize,
    pub(super) used: usize,
    tables: usize,
    requests: usize,
    data: usize,
    /// The first ring that has no requests; each of them lies in itself as the one in use does.
    idle: usize,
    pub(super) len: usize,
}

impl Layout {
    pub(super) fn new(qd: u16, indirect: bool, rings: Rings) -> Layout {
        let (qd, per_request) = (usize::from(qd), if indirect { 1 } else { 3 });
        let size = rings.size.map_or((qd * per_request).next_power_of_two(), usize::from);
        let avail = (DESC * size).next_multiple_of(64);
        // The entries of the used ring follow its index at a multiple of eight: each is one access.
        let used = (avail + 6 + 2 * size).next_multiple_of(128) + 4;
        let tables = (used + 6 + 8 * size).next_multiple_of(128);
        let requests = tables + TABLE * qd;
        let data = (requests + REQUEST * qd).next_multiple_of(BLOCK);
        let idle = data + BLOCK * qd;
        let len = (idle + tables * usize::from(rings.idle)).next_multiple_of(BLOCK);
        Layout { size: size as u16, avail, used, tables, requests, data, idle, len }
    }

    /// Where ring `index` begins: 0 is the one in use.
    pub(super) fn ring(&self, index: u16) -> usize {
        match usize::from(index) {
            0 => 0,
            n => self.idle + (n - 1) * self.tables,
        }
    }

    /// Of the entry with number `n` (modulo 2^16) of the available ring.
    #[inline]
    pub(super) fn avail_entry(&self, n: u16) -> usize {
        self.avail + 4 + 2 * usize::from(n & (self.size - 1))
    }

    /// Of the entry with number `n` (modulo 2^16) of the used ring.
    #[inline]
    pub(super) fn used_entry(&self, n: u16) -> usize {
        self.used + 4 + 8 * usize::from(n & (self.size - 1))
    }

    /// Of request `slot`: its header.
    #[inline]
    pub(super) fn request(&self, slot: u16) -> usize {
        self.requests + REQUEST * usize::from(slot)
    }

    /// Of the status byte of request `slot`.
    #[inline]
    pub(super) fn status(&self, slot: u16) -> usize {
        self.request(slot) + STATUS_AT
    }

    fn used_event(&self) -> usize {
        self.avail + 4 + 2 * usize::from(self.size)
    }

    /// The number of the available entry about which the back-end wants to be told.
    #[inline]
    pub(super) fn avail_event(&self) -> usize {
        self.used + 4 + 8 * usize::from(self.size)
    }
}

/// A ring, and requests for blocks of 4 KiB, in memory that can be handed to another process.
pub(super) struct RingMemory {
    pub(super) region: Region,
    pub(super) window: Window,
    pub(super) layout: Layout,
    pub(super) qd: u16,
    pub(super) style: Style,
}

impl RingMemory {
    /// Room for `qd` requests, all of them written, none of them available.
    ///
    /// # Errors
    /// A depth that no ring holds, or no memory.
    pub(super) fn new(qd: u16, style: Style, rings: Rings) -> anyhow::Result<RingMemory> {
        anyhow::ensure!((1..=MAX_QD).contains(&qd), "--qd {qd}: expected 1 to {MAX_QD} with --ring");
        let least = Layout::new(qd, style.indirect, Rings::default()).size;
        anyhow::ensure!(
            rings.size.is_none_or(|size| size.is_power_of_two() && (least..=1024).contains(&size)),
            "a ring of {:?} entries: expected a power of two from {least} to 1024 for {qd} requests",
            rings.size
        );
        let layout = Layout::new(qd, style.indirect, rings);
        let region = Region::allocate(layout.len as u64, true).context("memory for a ring")?;
        let window = region.window(0, layout.len as u64).context("the region is shorter than it was asked for")?;
        let memory = RingMemory { region, window, layout, qd, style };
        let numbers = memory.numbers();
        // Nobody is ever called: this side looks by itself.
        numbers.put_half(layout.avail, NO_INTERRUPT);
        numbers.put_half(layout.used_event(), u16::MAX);
        for slot in 0..qd {
            memory.write_request(&numbers, slot);
            // So that its page is there.
            numbers.put(layout.data + BLOCK * usize::from(slot), 0);
        }
        Ok(memory)
    }

    /// The descriptor that heads request `slot`.
    #[inline]
    pub(super) fn head(&self, slot: u16) -> u16 {
        if self.style.indirect { slot } else { 3 * slot }
    }

    /// Writes descriptors, header and status of request `slot`, a read of sector 0.
    #[inline]
    pub(super) fn write_request(&self, numbers: &Numbers<'_>, slot: u16) {
        let Layout { tables, data, .. } = self.layout;
        let (head, request) = (self.head(slot), self.layout.request(slot));
        let (table, first) = match self.style.indirect {
            true => (tables + TABLE * usize::from(slot), 0),
            false => (DESC * usize::from(head), head),
        };
        let pieces = [
            (request, 16, DESC_NEXT, first + 1),
            (data + BLOCK * usize::from(slot), BLOCK as u32, DESC_NEXT | DESC_WRITE, first + 2),
            (request + STATUS_AT, 1, DESC_WRITE, 0),
        ];
        for (n, (offset, len, flags, next)) in pieces.into_iter().enumerate() {
            numbers.put_desc(table + DESC * n, offset, len, flags, next);
        }
        if self.style.indirect {
            numbers.put_desc(DESC * usize::from(head), table, 3 * DESC as u32, DESC_INDIRECT, 0);
        }
        // A read (VIRTIO_BLK_T_IN is 0).
        numbers.put(request, 0);
        numbers.put(request + SECTOR_AT, 0);
        numbers.bytes[request + STATUS_AT].store(UNANSWERED, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn numbers(&self) -> Numbers<'_> {
        Numbers::of(&self.window)
    }
}

/// The memory of a ring as numbers: bounds are those of slices, and alignment is that of [`Layout`].
pub(super) struct Numbers<'a> {
    pub(super) bytes: &'a [AtomicU8],
    halves: &'a [AtomicU16],
    words: &'a [AtomicU64],
}

impl<'a> Numbers<'a> {
    #[inline]
    pub(super) fn of(window: &'a Window) -> Numbers<'a> {
        let len = window.len();
        Numbers {
            bytes: window.atomics(0, len).expect(INSIDE),
            halves: window.atomics(0, len / 2).expect(INSIDE),
            words: window.atomics(0, len / 8).expect(INSIDE),
        }
    }

    #[inline]
    pub(super) fn half(&self, at: usize) -> u16 {
        u16::from_le(self.halves[at / 2].load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn put_half(&self, at: usize, value: u16) {
        self.halves[at / 2].store(value.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn word(&self, at: usize) -> u64 {
        u64::from_le(self.words[at / 8].load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn put(&self, at: usize, value: u64) {
        self.words[at / 8].store(value.to_le(), Ordering::Relaxed);
    }

    /// Two words: a descriptor, or a header.
    #[inline]
    pub(super) fn pair(&self, at: usize) -> (u64, u64) {
        (self.word(at), self.word(at + 8))
    }

    #[inline]
    fn put_desc(&self, at: usize, offset: usize, len: u32, flags: u16, next: u16) {
        self.put(at, BASE + offset as u64);
        self.put(at + 8, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48);
    }

    /// The index of the available or used ring at `ring`: what its writer wrote before is seen.
    #[inline]
    pub(super) fn index(&self, ring: usize) -> u16 {
        u16::from_le(self.halves[ring / 2 + 1].load(Ordering::Acquire))
    }

    /// Shows that index, and all that was written before.
    #[inline]
    pub(super) fn show(&self, ring: usize, index: u16) {
        self.halves[ring / 2 + 1].store(index.to_le(), Ordering::Release);
    }
}

/// Where in the memory the address of a descriptor is; far outside if it is below.
#[inline]
pub(super) fn offset(address: u64) -> usize {
    address.wrapping_sub(BASE) as usize
}

/// Why accesses at offsets of [`Layout`] succeed.
pub(super) const INSIDE: &str = "the layout lies inside the memory that was taken for it";
