//! The packed virtqueue, device side (virtio 1.2 section 2.8): one ring that both sides write, a lap counter for each.

use super::chain::{Chain, DESC, Desc, HEADER, Hints, INDIRECT, NEXT, WRITE, Walk};
use super::inflight::Found;
use super::inflight::packed::{Open, PackedRecord};
use super::{RingError, RingSpec, step, sure};
use crate::guest::GuestMemory;
use polypath_block::Segment;
use polypath_memory::Window;
use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_F_WRAP_CTR, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
/// Offset of a descriptor's flags.
const FLAGS: usize = 14;
/// Bit of the lap counter in an index.
const WRAP: u16 = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;
/// Flags of the event areas, which follow their 16-bit index.
const ENABLE: u16 = VRING_PACKED_EVENT_FLAG_ENABLE as u16;
const DISABLE: u16 = VRING_PACKED_EVENT_FLAG_DISABLE as u16;
const AT_INDEX: u16 = VRING_PACKED_EVENT_FLAG_DESC as u16;

/// A place in the ring and the lap it is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    pub(super) at: u16,
    pub(super) wrap: bool,
}

impl Cursor {
    /// As it is written in 16 bits.
    pub(super) fn from_bits(bits: u16) -> Cursor {
        Cursor { at: bits & !WRAP, wrap: bits & WRAP != 0 }
    }

    pub(super) fn bits(self) -> u16 {
        self.at | if self.wrap { WRAP } else { 0 }
    }

    /// `count` descriptors further on; no more than the ring has.
    #[inline]
    fn after(self, count: u16, size: u16) -> Cursor {
        let at = self.at + count;
        if at < size { Cursor { at, ..self } } else { Cursor { at: at - size, wrap: !self.wrap } }
    }

    fn before(self, count: u16, size: u16) -> Cursor {
        if self.at >= count {
            Cursor { at: self.at - count, ..self }
        } else {
            Cursor { at: self.at + size - count, wrap: !self.wrap }
        }
    }

    /// How many descriptors lie between `earlier` and this one, if `earlier` is in this lap or the one before.
    #[inline]
    fn since(self, earlier: Cursor, size: u16) -> i32 {
        let laps = if self.wrap == earlier.wrap { 0 } else { i32::from(size) };
        i32::from(self.at) - i32::from(earlier.at) + laps
    }
}

/// A running packed ring. What it has in common with a split one is in [`super::Vring`].
#[derive(Debug)]
pub(super) struct Packed {
    desc: Window,
    /// What the driver wants to be called for.
    driver_event: Window,
    /// What we want to be notified of.
    device_event: Window,
    size: u16,
    next: Cursor,
    used: Cursor,
    /// Descriptors taken and not shown to the guest as given back, and those of them that are given back.
    in_flight: u16,
    moved: u16,
    /// The first descriptor given back since the last [`Packed::publish`], and its flags: what makes all of them visible.
    first: Option<(Cursor, u16)>,
    event_idx: bool,
    indirect: bool,
    /// Descriptors of each buffer id that is in flight.
    counts: Box<[u16]>,
    /// The chain that was taken last.
    chain: Vec<Desc>,
    record: Option<PackedRecord>,
    /// Taken by a back-end before us, and not given back.
    open: VecDeque<Open>,
    /// The chain taken last is one of those.
    again: bool,
    /// Where the ring begins is where a new one does, and whether it is one: no device has used any of it before us.
    begins: bool,
    new: bool,
    /// Its record says what was in flight.
    known: bool,
}

/// Where a new ring begins.
const BEGIN: Cursor = Cursor { at: 0, wrap: true };

impl Packed {
    pub(super) fn new(spec: RingSpec) -> Result<Packed, RingError> {
        let RingSpec { size, desc, avail, used, base, event_idx, indirect, record, .. } = spec;
        let bad = |problem| RingError::Shape { size, problem };
        if desc.load_pair(0).is_err() || desc.load_u16(FLAGS, Ordering::Relaxed).is_err() {
            return Err(bad("descriptors must be aligned to 16 bytes"));
        }
        if avail.load_u32(0, Ordering::Relaxed).is_err() || used.load_u32(0, Ordering::Relaxed).is_err() {
            return Err(bad("the event areas must be aligned to 4 bytes"));
        }
        let (next, used_base) = (Cursor::from_bits(base as u16), Cursor::from_bits((base >> 16) as u16));
        if next.at >= size || used_base.at >= size {
            return Err(bad("its base is not in the ring"));
        }
        let begins = next == BEGIN && used_base == BEGIN;
        let new = begins && is_unused(&desc, size);
        let mut ring = Packed {
            desc,
            driver_event: avail,
            device_event: used,
            size,
            next,
            used: used_base,
            in_flight: 0,
            moved: 0,
            first: None,
            event_idx,
            indirect,
            counts: vec![0; size.into()].into_boxed_slice(),
            chain: Vec::with_capacity(size.into()),
            record: None,
            open: VecDeque::new(),
            again: false,
            begins,
            new,
            known: false,
        };
        record.map(|window| ring.open_record(window)).transpose()?;
        Ok(ring)
    }

    fn open_record(&mut self, window: Window) -> Result<(), RingError> {
        let was_shown = |at: Cursor| !is_available(flags_at(&self.desc, at.at), at.wrap);
        let (record, found) = PackedRecord::open(window, self.size, self.used, self.new, was_shown)?;
        if let Found::Requests(state) = found {
            (self.used, self.next) = (state.used, state.used);
            for open in state.open {
                let count = open.descs.len() as u16;
                self.counts[usize::from(open.id)] = count;
                self.in_flight += count;
                self.next = self.next.after(count, self.size);
                self.open.push_back(open);
            }
            self.offer_again();
            self.known = true;
        }
        self.record = Some(record);
        Ok(())
    }

    /// A back-end that was killed may have written all of a batch but the flags that show it. What is in flight looks available again:
    /// else the rest of that batch would be shown with the first that we give back.
    fn offer_again(&self) {
        let mut at = self.used;
        while at != self.next {
            step();
            let flags = if at.wrap { AVAIL } else { USED };
            sure(self.desc.store_u16(DESC * usize::from(at.at) + FLAGS, flags, Ordering::Relaxed));
            at = at.after(1, self.size);
        }
    }

    /// See [`super::Vring::may_be_orphaned`]. A front-end that says of a ring that ran that it begins knows nothing of where it stands.
    pub(super) fn may_be_orphaned(&self) -> bool {
        !self.known && !self.new && (self.begins || self.has_chain())
    }

    /// Where the ring stands, as SET_VRING_BASE has it.
    pub(super) fn base(&self) -> u32 {
        u32::from(self.next.bits()) | u32::from(self.used.bits()) << 16
    }

    pub(super) fn has_record(&self) -> bool {
        self.record.is_some()
    }

    pub(super) fn left_open(&self) -> usize {
        self.open.len()
    }

    #[inline]
    pub(super) fn has_chain(&self) -> bool {
        !self.open.is_empty() || is_available(flags_at(&self.desc, self.next.at), self.next.wrap)
    }

    /// As [`super::Vring::look_ahead`]. Of a packed ring, chains are found as they are asked for.
    #[inline]
    pub(super) fn look_ahead(&self, most: u16, memory: &GuestMemory, hints: Hints) -> u16 {
        if !self.open.is_empty() {
            return most.min(self.open.len() as u16);
        }
        let (mut at, mut left, mut count, mut hint) = (self.next, self.size, 0, hints.meta);
        while count < most && left > 0 && is_available(flags_at(&self.desc, at.at), at.wrap) {
            count += 1;
            while left > 0 {
                left -= 1;
                let desc = Desc::packed(sure(self.desc.load_pair(DESC * usize::from(at.at))));
                at = at.after(1, self.size);
                ask_for(desc, memory, &mut hint);
                if desc.flags & (NEXT | INDIRECT) != NEXT {
                    break;
                }
            }
        }
        count
    }

    /// Takes the next chain: its descriptors come into private memory, for they are overwritten as others are given back.
    #[inline]
    pub(super) fn take(&mut self) -> Result<u16, RingError> {
        self.chain.clear();
        self.again = !self.open.is_empty();
        if let Some(Open { id, descs }) = self.open.pop_front() {
            self.chain.extend(descs);
            return Ok(id);
        }
        let mut at = self.next;
        loop {
            if self.chain.len() == usize::from(self.size) {
                return Err(RingError::Loop { head: self.next.at });
            }
            let desc = Desc::packed(sure(self.desc.load_pair(DESC * usize::from(at.at))));
            self.chain.push(desc);
            at = at.after(1, self.size);
            if desc.flags & (NEXT | INDIRECT) != NEXT {
                break;
            }
        }
        let id = self.chain.last().map_or(u16::MAX, |last| last.next);
        let Some(count) = self.counts.get_mut(usize::from(id)) else {
            return Err(RingError::BadIndex { index: id, size: self.size.into() });
        };
        let taken = self.chain.len() as u16;
        // Those of a chain that was not shown as given back are not the guest's to offer again.
        if *count != 0 || taken > self.size - self.in_flight {
            return Err(RingError::Reused { head: id });
        }
        if let Some(record) = &mut self.record
            && !record.taken(id, &self.chain)
        {
            return Err(RingError::Reused { head: id });
        }
        *count = taken;
        self.in_flight += taken;
        self.next = at;
        Ok(id)
    }

    /// The chain taken last was not begun.
    pub(super) fn put_back(&mut self, id: u16) -> bool {
        if self.again {
            return false;
        }
        let count = std::mem::take(&mut self.counts[usize::from(id)]);
        self.in_flight -= count;
        self.next = self.next.before(count, self.size);
        if let Some(record) = &mut self.record {
            record.put_back(id, count);
        }
        true
    }

    #[inline]
    pub(super) fn read_chain(
        &mut self,
        id: u16,
        memory: &GuestMemory,
        row: &mut [Segment],
        hints: &mut Hints,
    ) -> Result<Chain, RingError> {
        let mut walk = Walk::new(memory, row, *hints);
        for &desc in &self.chain {
            if desc.flags & INDIRECT == 0 {
                walk.add(desc);
                continue;
            }
            if !self.indirect {
                return Err(RingError::Indirect { head: id, problem: "not negotiated" });
            }
            walk.packed_table(id, desc)?;
        }
        walk.finish(id, hints)
    }

    #[inline]
    pub(super) fn complete(&mut self, id: u16, written: u32) {
        let at = DESC * usize::from(self.used.at);
        step();
        sure(self.desc.store_u32(at + 8, written, Ordering::Relaxed));
        sure(self.desc.store_u16(at + 12, id, Ordering::Relaxed));
        let lap = if self.used.wrap { AVAIL | USED } else { 0 };
        let flags = lap | if written > 0 { WRITE } else { 0 };
        match self.first {
            None => self.first = Some((self.used, flags)),
            Some(_) => {
                step();
                sure(self.desc.store_u16(at + FLAGS, flags, Ordering::Release));
            }
        }
        let count = self.counts[usize::from(id)];
        match &mut self.record {
            // Its entries are counted when it is shown.
            Some(record) => record.completed(id),
            None => self.counts[usize::from(id)] = 0,
        }
        self.used = self.used.after(count, self.size);
        self.moved += count;
    }

    /// As [`super::Vring::publish`]: the flags of the first descriptor given back are what the guest waits for.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let Some((old, flags)) = self.first.take() else { return false };
        if let Some(record) = &mut self.record {
            record.showing(old, self.used, |id| self.counts[usize::from(id)]);
        }
        step();
        sure(self.desc.store_u16(DESC * usize::from(old.at) + FLAGS, flags, Ordering::Release));
        if let Some(record) = &mut self.record {
            record.shown(self.used, |id| self.counts[usize::from(id)] = 0);
        }
        // As in the split ring: the guest writes its event area and then looks for descriptors.
        fence(Ordering::SeqCst);
        let event = sure(self.driver_event.load_u32(0, Ordering::Relaxed));
        let moved = std::mem::take(&mut self.moved);
        self.in_flight -= moved;
        match (event >> 16) as u16 & 0b11 {
            ENABLE => true,
            AT_INDEX if self.event_idx => {
                let behind = self.used.since(Cursor::from_bits(event as u16), self.size);
                (1..=i32::from(moved)).contains(&behind)
            }
            _ => false,
        }
    }

    pub(super) fn quiet(&mut self) {
        sure(self.device_event.store_u32(0, u32::from(DISABLE) << 16, Ordering::Relaxed));
    }

    /// As [`super::Vring::listen`].
    pub(super) fn listen(&mut self) -> bool {
        let flags = if self.event_idx { AT_INDEX } else { ENABLE };
        let event = u32::from(self.next.bits()) | u32::from(flags) << 16;
        sure(self.device_event.store_u32(0, event, Ordering::Relaxed));
        fence(Ordering::SeqCst);
        self.has_chain()
    }
}

/// Asks for what `desc` names if it looks like a header, a table or a status byte.
#[inline]
fn ask_for(desc: Desc, memory: &GuestMemory, hint: &mut usize) {
    let is_status = desc.flags & WRITE != 0 && desc.len == 1;
    let is_read = desc.flags & INDIRECT != 0 || desc.flags & WRITE == 0 && desc.len as usize == HEADER;
    if (is_status || is_read)
        && let Some(entry) = memory.find(desc.addr, hint)
    {
        let at = (desc.addr - entry.guest_addr) as usize;
        if is_status { entry.window.prefetch_write(at) } else { entry.window.prefetch(at) }
    }
}

#[inline]
fn flags_at(desc: &Window, at: u16) -> u16 {
    sure(desc.load_u16(DESC * usize::from(at) + FLAGS, Ordering::Acquire))
}

#[inline]
fn is_available(flags: u16, wrap: bool) -> bool {
    (flags & AVAIL != 0) == wrap && (flags & USED != 0) != wrap
}

/// Has no device used any of a ring? What a driver offered in its first lap is available, and nothing else was ever written. (A ring that is
/// full is no proof: it looks the same in every other lap.)
fn is_unused(desc: &Window, size: u16) -> bool {
    let flags = || (0..size).map(|at| flags_at(desc, at));
    flags().all(|flags| flags == 0 || is_available(flags, true)) && flags().any(|flags| flags == 0)
}
