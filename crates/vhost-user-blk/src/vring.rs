//! The split virtqueue, device side (virtio 1.2 section 2.7).
//!
//! The three areas are windows made when the ring starts: no address is translated to reach them. Descriptors and the
//! 16-byte request header are read once, into private memory; data is only translated, never touched here.
//!
//! What a guest gets wrong costs either one request ([`Fault`]: there is a status byte to say so) or its ring ([`RingError`]:
//! nothing that follows can be trusted).

use crate::guest::GuestMemory;
use polypath_block::{RegionId, Segment};
use polypath_memory::{OutOfWindow, Window};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;
const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;

/// Bytes of a virtio-blk request header (virtio 1.2 section 5.2.6).
const HEADER: usize = 16;
/// Most descriptors in an indirect table. A legal one has no more than the queue; Linux goes up to `seg_max` + 2.
const MAX_INDIRECT: u32 = 1026;

/// Largest ring this back-end runs.
pub const MAX_RING: u16 = 1024;

/// What a ring is made of.
#[derive(Clone, Debug)]
pub struct RingSpec {
    /// Number of descriptors: a power of two up to [`MAX_RING`].
    pub size: u16,
    /// The descriptor table, 16 bytes each.
    pub desc: Window,
    /// The available ring.
    pub avail: Window,
    /// The used ring.
    pub used: Window,
    /// Index of the first available entry to take.
    pub base: u16,
    /// Was `VIRTIO_RING_F_EVENT_IDX` negotiated?
    pub event_idx: bool,
    /// Was `VIRTIO_RING_F_INDIRECT_DESC` negotiated?
    pub indirect: bool,
}

impl RingSpec {
    /// Bytes of the descriptor table, the available ring and the used ring of a ring with `size` descriptors.
    pub const fn areas(size: u16, event_idx: bool) -> (u64, u64, u64) {
        let (size, event) = (size as u64, if event_idx { 2 } else { 0 });
        (16 * size, 4 + 2 * size + event, 4 + 8 * size + event)
    }
}

/// The guest broke its ring; nothing more is taken from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// Size or areas make no ring.
    #[error("a ring of {size} descriptors cannot be made: {problem}")]
    Shape {
        /// Number of descriptors asked for.
        size: u16,
        /// What is wrong.
        problem: &'static str,
    },
    /// The available index moved by more than the ring holds.
    #[error("available index went from {from} to {to}, more than the {size} entries of the ring")]
    IndexJump {
        /// Entries taken so far (modulo 65,536).
        from: u16,
        /// Index found.
        to: u16,
        /// Size of the ring.
        size: u16,
    },
    /// An available entry names a descriptor that is not there.
    #[error("descriptor {index} of a ring (or table) of {size}")]
    BadIndex {
        /// The index.
        index: u16,
        /// Number of descriptors.
        size: u32,
    },
    /// An available entry names a chain that is in flight.
    #[error("descriptor chain {head} was made available again while in flight")]
    Reused {
        /// Its head.
        head: u16,
    },
    /// A chain is longer than its table: it loops.
    #[error("descriptor chain {head} loops")]
    Loop {
        /// Its head.
        head: u16,
    },
    /// An indirect descriptor that was not negotiated, is nested, has a next, or whose table is cut or not there.
    #[error("bad indirect descriptor in chain {head}: {problem}")]
    Indirect {
        /// Head of the chain.
        head: u16,
        /// What is wrong.
        problem: &'static str,
    },
    /// The front-end cut the file behind the guest's memory: zero pages stand in for data, and must not reach the disk.
    #[error("the file behind the guest's memory was cut short")]
    MemoryLost,
    /// There is no byte of guest memory to put the status in.
    #[error("descriptor chain {head} has no writable status byte in guest memory")]
    NoStatus {
        /// Its head.
        head: u16,
    },
}

/// What is wrong with one request whose status byte can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Some of it lies outside guest memory.
    OutOfMemory,
    /// The header is shorter than 16 bytes.
    ShortHeader,
    /// Readable descriptors follow writable ones (virtio 1.2 section 2.7.4.2).
    Order,
    /// More pieces than were announced.
    TooManySegments,
}

/// One byte of guest memory: the status of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatusByte {
    region: RegionId,
    hint: u32,
    offset: u64,
}

impl StatusByte {
    /// No byte at all.
    pub(crate) const NONE: StatusByte = StatusByte { region: RegionId::NONE, hint: 0, offset: 0 };
}

/// A request as it was found in the ring, in private memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Request type (`VIRTIO_BLK_T_*`).
    pub kind: u32,
    /// First sector of 512 bytes.
    pub sector: u64,
    /// Segments that the device reads; they come first in the row.
    pub out_count: u32,
    /// Segments that the device writes; they follow.
    pub in_count: u32,
    /// Bytes that the device reads, without the header.
    pub out_len: u64,
    /// Bytes that the device writes, without the status.
    pub in_len: u64,
    /// Where the status goes.
    pub status: StatusByte,
    /// What is wrong with it, if anything: the segments mean nothing then.
    pub fault: Option<Fault>,
}

/// A running split virtqueue. Belongs to one thread.
#[derive(Debug)]
pub struct Vring {
    desc: Window,
    avail: Window,
    used: Window,
    memory: Arc<GuestMemory>,
    size: u16,
    mask: u16,
    /// Next available entry to take.
    next: u16,
    /// Available index as last read.
    seen: u16,
    used_next: u16,
    /// Used index when the guest was last considered for a call; `None` until the first time.
    called: Option<u16>,
    published: u16,
    event_idx: bool,
    indirect: bool,
    /// Last hits of the translation: headers, status bytes and tables; data.
    meta: usize,
    data: usize,
}

/// Ring windows have the size and alignment that [`Vring::new`] checked, and offsets are masked.
fn sure<T>(access: Result<T, OutOfWindow>) -> T {
    access.expect("ring areas were checked when the ring was made")
}

impl Vring {
    /// A ring over `spec`, whose descriptors point into `memory`.
    ///
    /// # Errors
    /// [`RingError::Shape`] for a size that is no power of two up to [`MAX_RING`], or areas too small or misaligned.
    pub fn new(spec: RingSpec, memory: Arc<GuestMemory>) -> Result<Vring, RingError> {
        let RingSpec { size, desc, avail, used, base, event_idx, indirect } = spec;
        let bad = |problem| RingError::Shape { size, problem };
        if !size.is_power_of_two() || size > MAX_RING {
            return Err(bad("the size must be a power of two up to 1024"));
        }
        let (d, a, u) = RingSpec::areas(size, event_idx);
        if (desc.len() as u64) < d || (avail.len() as u64) < a || (used.len() as u64) < u {
            return Err(bad("an area is cut short"));
        }
        if desc.load_pair(0).is_err() || avail.load_u16(0, Ordering::Relaxed).is_err() {
            return Err(bad("descriptors must be aligned to 16 bytes, the available ring to 2"));
        }
        if used.load_u32(0, Ordering::Relaxed).is_err() {
            return Err(bad("the used ring must be aligned to 4 bytes"));
        }
        let used_next = sure(used.load_u16(2, Ordering::Relaxed));
        let mut ring = Vring {
            desc,
            avail,
            used,
            memory,
            size,
            mask: size - 1,
            next: base,
            seen: base,
            used_next,
            called: None,
            published: used_next,
            event_idx,
            indirect,
            meta: 0,
            data: 0,
        };
        ring.quiet();
        Ok(ring)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Index of the next available entry: what `GET_VRING_BASE` answers once nothing is in flight.
    pub fn base(&self) -> u16 {
        self.next
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Replaces the guest's memory by one that has at least the same regions.
    pub fn set_memory(&mut self, memory: Arc<GuestMemory>) {
        self.memory = memory;
    }

    /// How many chains wait to be taken.
    ///
    /// # Errors
    /// [`RingError::IndexJump`].
    #[inline]
    pub fn waiting(&mut self) -> Result<u16, RingError> {
        if self.seen == self.next {
            let to = sure(self.avail.load_u16(2, Ordering::Acquire));
            if to.wrapping_sub(self.next) > self.size {
                return Err(RingError::IndexJump { from: self.next, to, size: self.size });
            }
            self.seen = to;
        }
        Ok(self.seen.wrapping_sub(self.next))
    }

    /// Takes the next chain's head. Call it only while [`Vring::waiting`] says there is one.
    ///
    /// # Errors
    /// [`RingError::BadIndex`].
    #[inline]
    pub fn take(&mut self) -> Result<u16, RingError> {
        debug_assert_ne!(self.seen, self.next, "take without waiting");
        let at = 4 + 2 * usize::from(self.next & self.mask);
        let head = sure(self.avail.load_u16(at, Ordering::Relaxed));
        if head >= self.size {
            return Err(RingError::BadIndex { index: head, size: self.size.into() });
        }
        self.next = self.next.wrapping_add(1);
        Ok(head)
    }

    /// Puts the chain taken last back: it was not begun and is to be taken again by whoever runs the ring next.
    pub fn put_back(&mut self) {
        self.next = self.next.wrapping_sub(1);
        self.seen = self.next;
    }

    /// Reads the chain at `head` once, its data segments into `row`.
    ///
    /// # Errors
    /// [`RingError`] when there is no status byte to report a fault in.
    #[inline]
    pub fn read_chain(&mut self, head: u16, row: &mut [Segment]) -> Result<Chain, RingError> {
        let memory = &*self.memory;
        let mut walk = Walk::new(memory, row, self.meta, self.data);
        let (mut index, mut left) = (head, self.size);
        loop {
            if left == 0 {
                return Err(RingError::Loop { head });
            }
            left -= 1;
            let desc = Desc::from_pair(sure(self.desc.load_pair(16 * usize::from(index))));
            if desc.flags & INDIRECT != 0 {
                if !self.indirect {
                    return Err(RingError::Indirect { head, problem: "not negotiated" });
                }
                walk.table(head, desc)?;
                break;
            }
            walk.add(desc);
            if desc.flags & NEXT == 0 {
                break;
            }
            if desc.next >= self.size {
                return Err(RingError::BadIndex { index: desc.next, size: self.size.into() });
            }
            index = desc.next;
        }
        let (meta, data, chain) = walk.finish(head)?;
        (self.meta, self.data) = (meta, data);
        Ok(chain)
    }

    /// Gives the chain at `head` back with its status; `written` bytes of it were written. The guest sees it after
    /// [`Vring::publish`].
    #[inline]
    pub fn complete(&mut self, head: u16, status_byte: StatusByte, status: u8, written: u32) {
        if let Some(window) = self.memory.window(status_byte.region, status_byte.hint as usize) {
            // A region may have been removed meanwhile only if its front-end said so: nobody looks at the byte then.
            let _ = window.store_u8(status_byte.offset as usize, status);
        }
        let at = 4 + 8 * usize::from(self.used_next & self.mask);
        sure(self.used.store_u32(at, head.into(), Ordering::Relaxed));
        sure(self.used.store_u32(at + 4, written, Ordering::Relaxed));
        self.used_next = self.used_next.wrapping_add(1);
    }

    /// Shows the guest everything completed since the last call, with one store. True if it wants to be called.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.used_next);
        if old == new {
            return false;
        }
        sure(self.used.store_u16(2, new, Ordering::Release));
        self.published = new;
        // The guest writes used_event (or its flags) and then looks at the used index; we the other way round. Without the
        // fence both might miss each other.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return sure(self.avail.load_u16(0, Ordering::Relaxed)) & NO_INTERRUPT == 0;
        }
        let event = sure(self.avail.load_u16(4 + 2 * usize::from(self.size), Ordering::Relaxed));
        match self.called.replace(new) {
            None => true,
            Some(called) => new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(called),
        }
    }

    /// Asks the guest not to notify: we are looking anyway.
    pub fn quiet(&mut self) {
        if !self.event_idx {
            sure(self.used.store_u16(0, NO_NOTIFY, Ordering::Relaxed));
        }
        // With event index the last avail_event lies behind us, so that the guest does not cross it.
    }

    /// Asks the guest to notify, and looks once more. True if something waits already: do not sleep then.
    ///
    /// # Errors
    /// [`RingError::IndexJump`].
    pub fn listen(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            sure(self.used.store_u16(4 + 8 * usize::from(self.size), self.next, Ordering::Relaxed));
        } else {
            sure(self.used.store_u16(0, 0, Ordering::Relaxed));
        }
        // Pairs with the guest's fence between its available index and its look at avail_event or the flags.
        fence(Ordering::SeqCst);
        self.seen = self.next;
        Ok(self.waiting()? > 0)
    }
}

/// One descriptor in private memory.
#[derive(Clone, Copy, Debug)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    #[inline]
    fn from_pair((addr, rest): (u64, u64)) -> Desc {
        Desc { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// Collects a chain descriptor by descriptor.
struct Walk<'a> {
    memory: &'a GuestMemory,
    row: &'a mut [Segment],
    used: usize,
    out_count: usize,
    out_len: u64,
    in_len: u64,
    header: [u64; 2],
    have: usize,
    /// The writable descriptor seen last: the last byte of the last one is the status.
    held: Option<(u64, u32)>,
    fault: Option<Fault>,
    meta: usize,
    data: usize,
}

impl<'a> Walk<'a> {
    #[inline]
    fn new(memory: &'a GuestMemory, row: &'a mut [Segment], meta: usize, data: usize) -> Walk<'a> {
        Walk {
            memory,
            row,
            used: 0,
            out_count: 0,
            out_len: 0,
            in_len: 0,
            header: [0; 2],
            have: 0,
            held: None,
            fault: None,
            meta,
            data,
        }
    }

    #[inline]
    fn add(&mut self, desc: Desc) {
        let Desc { mut addr, mut len, flags, .. } = desc;
        if len == 0 {
            return;
        }
        if flags & WRITE != 0 {
            if let Some((addr, len)) = self.held.replace((addr, len)) {
                self.in_len += u64::from(len);
                self.push(addr, len);
            }
            return;
        }
        if self.held.is_some() {
            self.fault.get_or_insert(Fault::Order);
            return;
        }
        if self.have < HEADER {
            let n = self.header(addr, len);
            len -= n;
            if len == 0 {
                return;
            }
            match addr.checked_add(n.into()) {
                Some(rest) => addr = rest,
                None => {
                    self.fault.get_or_insert(Fault::OutOfMemory);
                    return;
                }
            }
        }
        self.out_len += u64::from(len);
        self.push(addr, len);
        self.out_count = self.used;
    }

    /// Reads what a readable descriptor has of the header; returns how many bytes that were.
    #[inline]
    fn header(&mut self, addr: u64, len: u32) -> u32 {
        if self.have == 0
            && len as usize >= HEADER
            && let Some(e) = self.memory.find(addr, &mut self.meta)
            && let Ok((first, second)) = e.window.load_pair((addr - e.guest_addr) as usize)
        {
            self.header = [first, second];
            self.have = HEADER;
            return HEADER as u32;
        }
        self.header_slowly(addr, len)
    }

    #[cold]
    fn header_slowly(&mut self, addr: u64, len: u32) -> u32 {
        let n = (HEADER - self.have).min(len as usize);
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.header[0].to_le_bytes());
        bytes[8..].copy_from_slice(&self.header[1].to_le_bytes());
        if !self.memory.read(addr, &mut bytes[self.have..self.have + n], &mut self.meta) {
            self.fault.get_or_insert(Fault::OutOfMemory);
        }
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
        self.header = [word(0), word(8)];
        self.have += n;
        n as u32
    }

    /// Translates `len` bytes at `addr` into segments: one, or one per region they touch.
    #[inline]
    fn push(&mut self, mut addr: u64, len: u32) {
        let mut left = u64::from(len);
        while left > 0 {
            let Some(e) = self.memory.find(addr, &mut self.data) else {
                self.fault.get_or_insert(Fault::OutOfMemory);
                return;
            };
            let offset = addr - e.guest_addr;
            let n = left.min(e.len - offset);
            let segment = Segment { offset, region: e.id, len: n as u32 };
            match self.row.get_mut(self.used) {
                Some(place) => *place = segment,
                None => {
                    self.fault.get_or_insert(Fault::TooManySegments);
                    return;
                }
            }
            self.used += 1;
            left -= n;
            // Cannot wrap while something is left: regions end below 2^64, and then find() has none for it.
            addr = addr.wrapping_add(n);
        }
    }

    fn table(&mut self, head: u16, desc: Desc) -> Result<(), RingError> {
        let bad = |problem| RingError::Indirect { head, problem };
        if desc.flags & NEXT != 0 {
            return Err(bad("it has a next descriptor"));
        }
        let count = desc.len / 16;
        if count == 0 || !desc.len.is_multiple_of(16) || count > MAX_INDIRECT {
            return Err(bad("the length of its table is not a sensible multiple of 16"));
        }
        let memory = self.memory;
        let entry = memory.find(desc.addr, &mut self.meta).ok_or(bad("its table is not in guest memory"))?;
        let base = desc.addr - entry.guest_addr;
        // The common case: all of it in one region. Otherwise each entry is looked for by itself.
        let whole = entry.len - base >= u64::from(desc.len);
        let (mut index, mut left) = (0u32, count);
        loop {
            if left == 0 {
                return Err(RingError::Loop { head });
            }
            left -= 1;
            let inner = match entry.window.load_pair(base as usize + 16 * index as usize) {
                Ok(pair) if whole => Desc::from_pair(pair),
                _ => self.table_entry(desc.addr, index).ok_or(bad("its table is not all in guest memory"))?,
            };
            if inner.flags & INDIRECT != 0 {
                return Err(bad("its table points to another table"));
            }
            self.add(inner);
            if inner.flags & NEXT == 0 {
                return Ok(());
            }
            index = inner.next.into();
            if index >= count {
                return Err(RingError::BadIndex { index: inner.next, size: count });
            }
        }
    }

    #[cold]
    fn table_entry(&mut self, table: u64, index: u32) -> Option<Desc> {
        let mut bytes = [0; 16];
        let at = table.checked_add(16 * u64::from(index))?;
        let ok = self.memory.read(at, &mut bytes, &mut self.meta);
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
        ok.then(|| Desc::from_pair((word(0), word(8))))
    }

    #[inline]
    fn finish(mut self, head: u16) -> Result<(usize, usize, Chain), RingError> {
        let none = RingError::NoStatus { head };
        let Some((addr, len)) = self.held else { return Err(none) };
        if len > 1 {
            self.in_len += u64::from(len - 1);
            self.push(addr, len - 1);
        }
        let at = addr.checked_add(u64::from(len - 1)).ok_or(none)?;
        let entry = self.memory.find(at, &mut self.meta).ok_or(none)?;
        let status = StatusByte { region: entry.id, hint: self.meta as u32, offset: at - entry.guest_addr };
        if self.have < HEADER {
            self.fault.get_or_insert(Fault::ShortHeader);
        }
        let chain = Chain {
            kind: self.header[0] as u32,
            sector: self.header[1],
            out_count: self.out_count as u32,
            in_count: (self.used - self.out_count) as u32,
            out_len: self.out_len,
            in_len: self.in_len,
            status,
            fault: self.fault,
        };
        Ok((self.meta, self.data, chain))
    }
}
