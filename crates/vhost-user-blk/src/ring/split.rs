//! The split virtqueue, device side (virtio 1.2 section 2.7): three areas, of which we write one.

use super::ahead::{Ahead, LINE, MOST, Place, Plain};
use super::chain::{Chain, DESC, Desc, Hints, INDIRECT, NEXT, Walk};
use super::inflight::Found;
use super::inflight::split::SplitRecord;
use super::{RingError, RingSpec, step, sure};
use crate::guest::GuestMemory;
use polypath_block::Segment;
use polypath_memory::Window;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;
const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;

/// A running split ring. What it has in common with a packed one is in [`super::Vring`].
#[derive(Debug)]
pub(super) struct Split {
    desc: Window,
    avail: Window,
    used: Window,
    size: u16,
    mask: u16,
    /// Next available entry to take.
    next: u16,
    /// Available index as last read.
    seen: u16,
    used_next: u16,
    /// Used index as the guest sees it.
    published: u16,
    /// No device has used any of it before us.
    new: bool,
    /// Its record says what was in flight.
    known: bool,
    event_idx: bool,
    indirect: bool,
    record: Option<SplitRecord>,
    /// Taken by a back-end before us, and not given back.
    open: VecDeque<u16>,
    /// The chain taken last is one of those.
    again: bool,
    ahead: Box<Ahead>,
}

impl Split {
    pub(super) fn new(spec: RingSpec) -> Result<Split, RingError> {
        let RingSpec { size, desc, avail, used, base, event_idx, indirect, record, .. } = spec;
        let bad = |problem| RingError::Shape { size, problem };
        if desc.load_pair(0).is_err() || avail.load_u16(0, Ordering::Relaxed).is_err() {
            return Err(bad("descriptors must be aligned to 16 bytes, the available ring to 2"));
        }
        if used.load_u32(0, Ordering::Relaxed).is_err() {
            return Err(bad("the used ring must be aligned to 4 bytes"));
        }
        let next = u16::try_from(base).map_err(|_| bad("its base is above 65535"))?;
        let used_next = sure(used.load_u16(2, Ordering::Relaxed));
        // Both indices are nought, too, when they have gone round.
        let unused = (0..size).all(|n| {
            let at = 4 + 8 * usize::from(n);
            [at, at + 4].iter().all(|&at| sure(used.load_u32(at, Ordering::Relaxed)) == 0)
        });
        let mut ring = Split {
            desc,
            avail,
            used,
            size,
            mask: size - 1,
            next,
            seen: next,
            used_next,
            published: used_next,
            new: next == 0 && used_next == 0 && unused,
            known: false,
            event_idx,
            indirect,
            record: None,
            open: VecDeque::new(),
            again: false,
            ahead: Ahead::new(),
        };
        if let Some(window) = record {
            ring.known = ring.open_record(window)?;
        }
        if !ring.known {
            ring.follow_used_index();
        }
        ring.seen = ring.next;
        Ok(ring)
    }

    /// True if the record knows what is in flight.
    fn open_record(&mut self, window: Window) -> Result<bool, RingError> {
        let (record, found) = SplitRecord::open(window, self.size, self.used_next)?;
        self.record = Some(record);
        let Found::Requests(open) = found else { return Ok(false) };
        // All that was taken has been given back, or is open.
        self.next = self.used_next.wrapping_add(open.len() as u16);
        self.open.extend(open);
        Ok(true)
    }

    /// Nobody wrote down what is in flight. What our predecessor gave back after its front-end had asked for the last time is done,
    /// whatever the front-end remembers: to run it again might write memory that the guest has given to something else.
    fn follow_used_index(&mut self) {
        if self.used_next.wrapping_sub(self.next) <= self.size {
            self.next = self.used_next;
        }
    }

    /// See [`super::Vring::may_be_orphaned`]. The front-end goes on at the used index, and requests complete in any order: what is
    /// available from there on need not be what was in flight.
    pub(super) fn may_be_orphaned(&mut self) -> bool {
        !self.known && !self.new && self.has_chain() != Ok(false)
    }

    pub(super) fn base(&self) -> u32 {
        self.next.into()
    }

    pub(super) fn has_record(&self) -> bool {
        self.record.is_some()
    }

    pub(super) fn left_open(&self) -> usize {
        self.open.len()
    }

    #[inline]
    pub(super) fn has_chain(&mut self) -> Result<bool, RingError> {
        if self.seen == self.next && self.open.is_empty() {
            let to = sure(self.avail.load_u16(2, Ordering::Acquire));
            if to.wrapping_sub(self.next) > self.size {
                return Err(RingError::IndexJump { from: self.next, to, size: self.size });
            }
            self.seen = to;
        }
        Ok(self.seen != self.next || !self.open.is_empty())
    }

    /// As [`super::Vring::look`].
    #[inline]
    pub(super) fn look(&self, times: u32, memory: &GuestMemory) -> bool {
        let next = self.next;
        if self.seen != next || !self.open.is_empty() {
            return true;
        }
        let is_there = (0..times).any(|_| sure(self.avail.load_u16(2, Ordering::Relaxed)) != next);
        if is_there {
            // Until it is taken, its lines may be on their way.
            self.ahead.ask_as_last(table(&self.desc, self.size), memory);
        }
        is_there
    }

    /// As [`super::Vring::look_ahead`].
    #[inline]
    pub(super) fn look_ahead(&mut self, most: u16, memory: &GuestMemory, hints: &mut Hints) -> Result<u16, RingError> {
        self.ahead.clear();
        if !self.has_chain()? {
            return Ok(0);
        }
        if !self.open.is_empty() {
            return Ok(most.min(self.open.len() as u16));
        }
        let count = self.seen.wrapping_sub(self.next).min(most).min(MOST);
        let &mut Split { ref desc, ref avail, ref used, mask, next, size, indirect, used_next, ref mut ahead, .. } =
            self;
        // Where as many are given back. Not the line with the index, at which the guest looks all the time.
        let mut at = 0;
        while at < count {
            let offset = 4 + 8 * usize::from(used_next.wrapping_add(at) & mask);
            if offset >= LINE {
                used.prefetch_write(offset);
            }
            at += (LINE / 8) as u16;
        }
        let entries = sure(avail.atomics::<AtomicU16>(4, usize::from(size)));
        let heads = (0..count).map(|n| {
            let entry = &entries[usize::from(next.wrapping_add(n) & mask)];
            u16::from_le(entry.load(Ordering::Relaxed))
        });
        let desc = table(desc, size);
        ahead.look(heads, Place { desc, indirect, memory, losses: polypath_memory::losses() }, hints);
        Ok(count)
    }

    /// The memory has changed: what was found in it may be elsewhere.
    pub(super) fn forget_ahead(&mut self) {
        self.ahead.clear();
    }

    #[inline]
    pub(super) fn take(&mut self) -> Result<u16, RingError> {
        if let Some(head) = self.open.pop_front() {
            self.again = true;
            return Ok(head);
        }
        self.again = false;
        debug_assert_ne!(self.seen, self.next, "take without waiting");
        let head = match self.ahead.take() {
            Some(head) => head,
            None => {
                self.ahead.clear();
                sure(self.avail.load_u16(4 + 2 * usize::from(self.next & self.mask), Ordering::Relaxed))
            }
        };
        if head >= self.size {
            return Err(RingError::BadIndex { index: head, size: self.size.into() });
        }
        self.next = self.next.wrapping_add(1);
        if let Some(record) = &mut self.record {
            record.taken(head);
        }
        Ok(head)
    }

    pub(super) fn put_back(&mut self, head: u16) -> bool {
        if self.again {
            return false;
        }
        self.next = self.next.wrapping_sub(1);
        self.seen = self.next;
        self.ahead.clear();
        if let Some(record) = &mut self.record {
            record.put_back(head);
        }
        true
    }

    /// As [`super::Vring::take_plain`].
    #[inline(always)]
    pub(super) fn take_plain(&mut self, memory: &GuestMemory, mut take: impl FnMut(&Plain) -> bool) -> u16 {
        let record = &mut self.record;
        let taken = self.ahead.take_plain(memory, |plain| {
            let is_taken = take(plain);
            if is_taken && let Some(record) = record {
                record.taken(plain.head);
            }
            is_taken
        });
        self.next = self.next.wrapping_add(taken);
        self.again &= taken == 0;
        taken
    }

    pub(super) fn read_chain(
        &mut self,
        head: u16,
        memory: &GuestMemory,
        row: &mut [Segment],
        hints: &mut Hints,
    ) -> Result<Chain, RingError> {
        let mut walk = Walk::new(memory, row, *hints);
        let (mut index, mut left) = (head, self.size);
        loop {
            if left == 0 {
                return Err(RingError::Loop { head });
            }
            left -= 1;
            let desc = Desc::split(sure(self.desc.load_pair(DESC * usize::from(index))));
            if desc.flags & INDIRECT != 0 {
                if !self.indirect {
                    return Err(RingError::Indirect { head, problem: "not negotiated" });
                }
                walk.split_table(head, desc)?;
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
        walk.finish(head, hints)
    }

    #[inline]
    pub(super) fn complete(&mut self, head: u16, written: u32) {
        let mut one = Some((head, written));
        self.complete_all(|| one.take());
    }

    /// As [`super::Vring::complete_plain`], of what has its status.
    #[inline(always)]
    pub(super) fn complete_all(&mut self, mut next: impl FnMut() -> Option<(u16, u32)>) -> u16 {
        let used = sure(self.used.atomics::<AtomicU32>(4, 2 * usize::from(self.size))).as_chunks::<2>().0;
        let first = self.used_next;
        while let Some((head, written)) = next() {
            let [id, len] = &used[usize::from(self.used_next & self.mask)];
            id.store(u32::from(head).to_le(), Ordering::Relaxed);
            len.store(written.to_le(), Ordering::Relaxed);
            self.used_next = self.used_next.wrapping_add(1);
            if let Some(record) = &mut self.record {
                record.completed(head);
            }
        }
        self.used_next.wrapping_sub(first)
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.used_next);
        if old == new {
            return false;
        }
        step();
        // The guest writes used_event (or its flags) and then looks at the used index; we the other way round. Were they not in one order
        // with each other and with the guest's fence, both might miss each other. (An exchange costs less than a store and a fence.)
        sure(self.used.store_u16(2, new, Ordering::SeqCst));
        self.published = new;
        if let Some(record) = &mut self.record {
            record.shown(new);
        }
        if !self.event_idx {
            return sure(self.avail.load_u16(0, Ordering::SeqCst)) & NO_INTERRUPT == 0;
        }
        let event = sure(self.avail.load_u16(4 + 2 * usize::from(self.size), Ordering::SeqCst));
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    pub(super) fn quiet(&mut self) {
        if !self.event_idx {
            sure(self.used.store_u16(0, NO_NOTIFY, Ordering::Relaxed));
        }
        // With event index the last avail_event lies behind us, so that the guest does not cross it.
    }

    pub(super) fn listen(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            sure(self.used.store_u16(4 + 8 * usize::from(self.size), self.next, Ordering::Relaxed));
        } else {
            sure(self.used.store_u16(0, 0, Ordering::Relaxed));
        }
        // Pairs with the guest's fence between its available index and its look at avail_event or the flags.
        fence(Ordering::SeqCst);
        self.seen = self.next;
        self.has_chain()
    }
}

/// The table of `size` descriptors.
#[inline(always)]
fn table(desc: &Window, size: u16) -> &[[AtomicU64; 2]] {
    sure(desc.atomics::<AtomicU64>(0, 2 * usize::from(size))).as_chunks().0
}
