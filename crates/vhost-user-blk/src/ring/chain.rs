//! One descriptor chain, from ring memory into private memory: header, segments, the place of the status (virtio 1.2 sections 2.7.5
//! and 5.2.6). Both kinds of ring bring their descriptors here.

use super::RingError;
use crate::guest::GuestMemory;
use polypath_block::{RegionId, Segment};
use polypath_memory::Window;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Bytes of a virtio-blk request header (virtio 1.2 section 5.2.6).
pub(super) const HEADER: usize = 16;
/// Most descriptors in an indirect table. A legal one has no more than the queue; Linux goes up to `seg_max` + 2.
const MAX_INDIRECT: u32 = 1026;
/// Bytes of a descriptor, whichever ring it is in.
pub(super) const DESC: usize = 16;

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
    pub(super) region: RegionId,
    pub(super) hint: u32,
    pub(super) offset: u64,
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

/// One descriptor in private memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// The next descriptor of a split ring; the buffer id in a packed one.
    pub(super) next: u16,
}

impl Desc {
    /// As it lies in a split ring (virtio 1.2 section 2.7.5).
    #[inline]
    pub(super) fn split((addr, rest): (u64, u64)) -> Desc {
        Desc { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// As it lies in a packed ring (virtio 1.2 section 2.8.13).
    #[inline]
    pub(super) fn packed((addr, rest): (u64, u64)) -> Desc {
        Desc { addr, len: rest as u32, flags: (rest >> 48) as u16, next: (rest >> 32) as u16 }
    }
}

/// Where the translation found something last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints {
    /// Headers, status bytes and tables.
    pub(super) meta: usize,
    pub(super) data: usize,
}

/// Collects a chain descriptor by descriptor.
pub(super) struct Walk<'a> {
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
    pub(super) fn new(memory: &'a GuestMemory, row: &'a mut [Segment], hints: Hints) -> Walk<'a> {
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
            meta: hints.meta,
            data: hints.data,
        }
    }

    // By the compiler's own judgement it is a call for each descriptor, and the walk lies in memory for it: twice the time in all.
    #[inline(always)]
    pub(super) fn add(&mut self, desc: Desc) {
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

    /// The table that `desc` of a split ring points to: a chain within the table.
    pub(super) fn split_table(&mut self, head: u16, desc: Desc) -> Result<(), RingError> {
        let table = self.find_table(head, desc)?;
        let (mut index, mut left) = (0u32, table.count);
        loop {
            if left == 0 {
                return Err(RingError::Loop { head });
            }
            left -= 1;
            let inner = Desc::split(self.table_entry(&table, index)?);
            self.add_inner(head, inner)?;
            if inner.flags & NEXT == 0 {
                return Ok(());
            }
            index = inner.next.into();
            if index >= table.count {
                return Err(RingError::BadIndex { index: inner.next, size: table.count });
            }
        }
    }

    /// The table that `desc` of a packed ring points to: all of its entries, one after the other (virtio 1.2 section 2.8.8).
    pub(super) fn packed_table(&mut self, head: u16, desc: Desc) -> Result<(), RingError> {
        let table = self.find_table(head, desc)?;
        (0..table.count).try_for_each(|index| {
            let inner = Desc::packed(self.table_entry(&table, index)?);
            self.add_inner(head, inner)
        })
    }

    #[inline]
    fn add_inner(&mut self, head: u16, inner: Desc) -> Result<(), RingError> {
        if inner.flags & INDIRECT != 0 {
            return Err(RingError::Indirect { head, problem: "its table points to another table" });
        }
        self.add(inner);
        Ok(())
    }

    #[inline]
    fn find_table(&mut self, head: u16, desc: Desc) -> Result<IndirectTable<'a>, RingError> {
        let bad = |problem| RingError::Indirect { head, problem };
        if desc.flags & NEXT != 0 {
            return Err(bad("it has a next descriptor"));
        }
        let count = desc.len / DESC as u32;
        if count == 0 || !desc.len.is_multiple_of(DESC as u32) || count > MAX_INDIRECT {
            return Err(bad("the length of its table is not a sensible multiple of 16"));
        }
        let memory = self.memory;
        let entry = memory.find(desc.addr, &mut self.meta).ok_or(bad("its table is not in guest memory"))?;
        let base = desc.addr - entry.guest_addr;
        // The common case: all of it in one region. Otherwise each entry is looked for by itself.
        let whole = entry.len - base >= u64::from(desc.len);
        Ok(IndirectTable { head, addr: desc.addr, count, window: whole.then_some((&entry.window, base as usize)) })
    }

    #[inline]
    fn table_entry(&mut self, table: &IndirectTable<'_>, index: u32) -> Result<(u64, u64), RingError> {
        if let Some((window, base)) = table.window
            && let Ok(pair) = window.load_pair(base + DESC * index as usize)
        {
            return Ok(pair);
        }
        let problem = "its table is not all in guest memory, or not aligned";
        self.scattered_entry(table.addr, index).ok_or(RingError::Indirect { head: table.head, problem })
    }

    #[cold]
    fn scattered_entry(&mut self, table: u64, index: u32) -> Option<(u64, u64)> {
        let mut bytes = [0; DESC];
        let at = table.checked_add(DESC as u64 * u64::from(index))?;
        let ok = self.memory.read(at, &mut bytes, &mut self.meta);
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
        ok.then(|| (word(0), word(8)))
    }

    /// The chain, and in `hints` where the translation found it.
    #[inline(always)]
    pub(super) fn finish(&mut self, head: u16, hints: &mut Hints) -> Result<Chain, RingError> {
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
        *hints = Hints { meta: self.meta, data: self.data };
        Ok(Chain {
            kind: self.header[0] as u32,
            sector: self.header[1],
            out_count: self.out_count as u32,
            in_count: (self.used - self.out_count) as u32,
            out_len: self.out_len,
            in_len: self.in_len,
            status,
            fault: self.fault,
        })
    }
}

/// An indirect table of `count` descriptors.
struct IndirectTable<'a> {
    head: u16,
    addr: u64,
    count: u32,
    /// Where it lies if one region has all of it.
    window: Option<(&'a Window, usize)>,
}
