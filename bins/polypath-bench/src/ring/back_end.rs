//! The bare back-end: touches what any virtio-blk device must touch for a read, and does nothing else.
//!
//! That is the available index and its entries, the descriptors, the header, the status byte, the used entries and the used index. What
//! the front-end wrote is asked for a batch at a time before the first of it is looked at.

use super::memory::{DESC, DESC_INDIRECT, INSIDE, Layout, Numbers, offset};
use super::{BLOCK, Medium, RAM_BYTES};
use anyhow::Context as _;
use polypath_memory::{Region, Window};
use std::sync::atomic::{AtomicBool, Ordering};

/// Most requests of a batch.
const BATCH: usize = 32;
/// Vain looks between looks at whether it is over.
const LOOKS: u32 = 1024;

/// The device's side of one ring.
pub(super) struct BareBackEnd {
    window: Window,
    layout: Layout,
    /// The disk, if it has any memory.
    medium: Option<Window>,
    /// Requests taken, modulo 2^16; as many are used.
    next: u16,
    heads: [u16; BATCH],
    batch: u16,
    /// The status byte written last, beside a header: it is the next one at depth 1.
    last: usize,
    /// Requests answered.
    pub(super) ios: u64,
}

impl BareBackEnd {
    /// Over the ring in `window`, for `qd` requests, with a disk of `medium`.
    ///
    /// # Errors
    /// When there is no memory for the disk.
    pub(super) fn new(window: Window, layout: Layout, qd: u16, medium: Medium) -> anyhow::Result<BareBackEnd> {
        let medium = match medium {
            Medium::Null => None,
            Medium::Ram => Some(ram().context("memory for the disk of the limit")?),
        };
        let batch = (qd / 2).clamp(1, BATCH as u16);
        Ok(BareBackEnd { window, layout, medium, next: 0, heads: [0; BATCH], batch, last: 0, ios: 0 })
    }

    /// Answers until `stop` is set and nothing is left to answer.
    pub(super) fn run(&mut self, stop: &AtomicBool) {
        let window = self.window.clone();
        let numbers = Numbers::of(&window);
        let mut vain = 0u32;
        loop {
            let waiting = numbers.index(self.layout.avail).wrapping_sub(self.next);
            // Before it is known whether they are new: the ways between the cores are one after the other otherwise.
            window.prefetch_range(self.layout.avail_entry(self.next), 2);
            window.prefetch_range(self.last, 1);
            if waiting > 0 {
                self.answer(&numbers, waiting.min(self.batch));
                continue;
            }
            vain = vain.wrapping_add(1);
            if vain.is_multiple_of(LOOKS) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // Should both sides have to share a core.
                rustix::thread::sched_yield();
            }
            std::hint::spin_loop();
        }
    }

    /// Answers the next `count` requests, at most a batch. Never inlined: `ratio --cost` counts its instructions by name.
    #[inline(never)]
    fn answer(&mut self, numbers: &Numbers<'_>, count: u16) {
        let Self { window, layout, next, heads, medium, .. } = self;
        let heads = &mut heads[..usize::from(count)];
        for (n, head) in (0..count).zip(heads.iter_mut()) {
            *head = numbers.half(layout.avail_entry(next.wrapping_add(n)));
            window.prefetch_range(DESC * usize::from(*head), DESC);
        }
        for &mut head in heads {
            let (mut header, mut rest) = numbers.pair(DESC * usize::from(head));
            let mut table = 0;
            if (rest >> 32) as u16 & DESC_INDIRECT != 0 {
                table = offset(header);
                (header, rest) = numbers.pair(table);
            }
            let (data, data_rest) = numbers.pair(table + DESC * (rest >> 48) as usize);
            let (status, _) = numbers.pair(table + DESC * (data_rest >> 48) as usize);
            let (kind, sector) = numbers.pair(offset(header));
            match medium {
                Some(medium) => {
                    let at = sector as usize * 512 % RAM_BYTES as usize;
                    medium.copy_to(at, window, offset(data), BLOCK).expect(INSIDE);
                }
                None => _ = std::hint::black_box((kind, sector, data)),
            }
            numbers.bytes[offset(status)].store(0, Ordering::Relaxed);
            self.last = offset(status);
            let written = u64::from(data_rest as u32) + 1;
            numbers.put(layout.used_entry(*next), u64::from(head) | written << 32);
            *next = next.wrapping_add(1);
        }
        numbers.show(layout.used, *next);
        self.ios += u64::from(count);
    }
}

/// A disk in memory, written once so that it has pages of its own.
fn ram() -> anyhow::Result<Window> {
    let region = Region::allocate(RAM_BYTES, true)?;
    let window = region.window(0, RAM_BYTES).context("the region is shorter than it was asked for")?;
    for at in (0..RAM_BYTES as usize).step_by(BLOCK) {
        window.store_u64(at, at as u64, Ordering::Relaxed)?;
    }
    Ok(window)
}
