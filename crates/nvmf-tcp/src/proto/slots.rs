//! The table of commands in flight: slot index and generation make the command identifier, so that a stale,
//! duplicated or invented one is noticed.

use polypath_nvme::Cqe;

const INDEX_BITS: u32 = 10;
/// Most commands in flight on one connection.
pub const MAX_DEPTH: u16 = 1 << INDEX_BITS;
/// Generations run from 0 to 62, so that no identifier is FFFFh, which error logs use for "none".
const GENERATIONS: u8 = 63;

/// Which way a command's data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    None,
    ToHost,
    /// In the capsule: no R2T is due.
    InCapsule,
    /// By R2T.
    ToController,
}

/// Life of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    Active,
    /// Answered while octets of it are still on their way out; its buffers are not quiet yet.
    Draining,
    /// Its event waits to be fetched.
    Done,
    /// Over, but its identifier may not be given again yet.
    Retained,
}

/// One command. What most commands begin with as zeroes lies together, and is one store.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Slot {
    /// Names the capsule to the transmit ring.
    pub(super) capsule: u64,
    /// Octets of data.
    pub(super) len: u32,
    /// Octets received, or asked for by R2T.
    pub(super) moved: u32,
    /// H2CData PDUs in the transmit ring.
    pub(super) tx_data: u16,
    /// R2T whose data are not all sent.
    pub(super) r2ts: u8,
    /// The last C2HData has arrived.
    pub(super) last: bool,
    pub(super) digest_failed: bool,
    /// Found when the connection closed: no octet was handed to the socket.
    pub(super) untouched: bool,
    /// The identifier is still spoken of elsewhere (an Abort is under way): it outlives the command.
    pub(super) retained: bool,
    pub(super) phase: Phase,
    pub(super) way: Way,
    pub(super) exact: bool,
    pub(super) generation: u8,
    /// Valid while draining.
    pub(super) result: Cqe,
}

#[derive(Debug)]
pub(super) struct SlotTable {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// Slots whose command is over and whose identifier is retained.
    retained: usize,
}

impl SlotTable {
    pub(super) fn new(depth: u16) -> Self {
        let empty = Slot {
            phase: Phase::Free,
            generation: 0,
            way: Way::None,
            exact: false,
            retained: false,
            last: false,
            digest_failed: false,
            untouched: false,
            r2ts: 0,
            tx_data: 0,
            capsule: 0,
            len: 0,
            moved: 0,
            result: Cqe::new(0, polypath_nvme::StatusField::SUCCESS),
        };
        SlotTable { slots: vec![empty; usize::from(depth)].into(), free: (0..depth).rev().collect(), retained: 0 }
    }

    pub(super) fn depth(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len() - self.retained
    }

    /// Slots whose command is over and whose identifier is retained.
    pub(super) fn retained(&self) -> usize {
        self.retained
    }

    /// Free slots.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    #[inline]
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a free slot for a command whose capsule is `capsule` to the transmit ring.
    #[inline(always)]
    pub(super) fn take(&mut self, way: Way, len: u32, exact: bool, capsule: u64) -> Option<u16> {
        let index = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        (slot.capsule, slot.len, slot.moved) = (capsule, len, 0);
        (slot.tx_data, slot.r2ts, slot.last, slot.digest_failed) = (0, 0, false, false);
        (slot.untouched, slot.retained, slot.phase) = (false, false, Phase::Active);
        (slot.way, slot.exact) = (way, exact);
        Some(index)
    }

    /// Gives a slot back under a new generation; later, if its identifier is retained.
    #[inline(always)]
    pub(super) fn release(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        debug_assert!(!matches!(slot.phase, Phase::Free | Phase::Retained));
        if slot.retained {
            slot.phase = Phase::Retained;
            self.retained += 1;
            return;
        }
        slot.phase = Phase::Free;
        slot.generation = if slot.generation + 1 < GENERATIONS { slot.generation + 1 } else { 0 };
        self.free.push(index);
    }

    /// Keeps the identifier of the command in a slot from being given again before [`SlotTable::let_go`], even when the command
    /// is over.
    pub(super) fn retain(&mut self, index: u16) {
        self.slots[usize::from(index)].retained = true;
    }

    /// Ends [`SlotTable::retain`].
    pub(super) fn let_go(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.retained = false;
        if slot.phase == Phase::Retained {
            slot.phase = Phase::Done;
            self.retained -= 1;
            self.release(index);
        }
    }

    /// The identifier of the command in a slot.
    #[inline]
    pub(super) fn cid(&self, index: u16) -> u16 {
        index | u16::from(self.slots[usize::from(index)].generation) << INDEX_BITS
    }

    /// The slot of the active command with this identifier.
    #[inline]
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        self.active(cid).map(|(index, _)| index)
    }

    /// The same, and what is in it.
    #[inline(always)]
    pub(super) fn active(&self, cid: u16) -> Option<(u16, &Slot)> {
        let index = cid & (MAX_DEPTH - 1);
        let slot = self.slots.get(usize::from(index))?;
        let generation = (cid >> INDEX_BITS) as u8;
        (slot.phase == Phase::Active && slot.generation == generation).then_some((index, slot))
    }

    #[inline]
    pub(super) fn get(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_tell_old_from_new() {
        let mut t = SlotTable::new(2);
        let a = t.take(Way::None, 0, false, 0).unwrap();
        let old = t.cid(a);
        assert_eq!(t.find(old), Some(a));
        t.release(a);
        assert_eq!(t.find(old), None);
        assert_eq!(t.take(Way::None, 0, false, 0), Some(a));
        assert_eq!(t.find(old), None);
        assert_ne!(t.cid(a), old);
        assert_eq!(t.find(0x3ff), None);
        t.take(Way::None, 0, false, 0).unwrap();
        assert_eq!((t.take(Way::None, 0, false, 0), t.in_use(), t.has_free()), (None, 2, false));
    }

    #[test]
    fn a_retained_identifier_is_not_given_again() {
        let mut t = SlotTable::new(1);
        let a = t.take(Way::None, 0, false, 0).unwrap();
        let old = t.cid(a);
        t.retain(a);
        t.release(a);
        assert_eq!((t.in_use(), t.has_free(), t.find(old)), (0, false, None), "over, and its slot is not free");
        assert_eq!(t.take(Way::None, 0, false, 0), None);
        t.let_go(a);
        assert_eq!(t.take(Way::None, 0, false, 0), Some(a));
        assert_ne!(t.cid(a), old);
        t.retain(a);
        t.let_go(a);
        t.release(a);
        assert!(t.has_free(), "let go before it was over");
    }

    #[test]
    fn no_identifier_is_ffff() {
        let mut t = SlotTable::new(MAX_DEPTH);
        t.free = vec![MAX_DEPTH - 1];
        for _ in 0..200 {
            let i = t.take(Way::None, 0, false, 0).unwrap();
            assert_ne!(t.cid(i), 0xffff);
            assert_eq!(t.find(t.cid(i)), Some(i));
            t.release(i);
        }
    }
}
