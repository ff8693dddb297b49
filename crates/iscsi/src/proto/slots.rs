//! The table of tasks in flight: slot index and generation make the initiator task tag, so that a stale, doubled or invented one is noticed.

use super::Ending;
use crate::pdu::{Itt, Lun};
use crate::serial::CmdSn;

/// Most tasks in flight on one connection.
pub const MAX_DEPTH: u16 = 4096;
/// Generations run from 0 to 7FFEh, so that no tag is FFFFFFFFh, which stands for none, nor has its highest bit set, which pings and task
/// management have.
const GENERATIONS: u16 = 0x7fff;

/// Which way a task's data go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    None,
    In,
    Out,
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
}

/// One task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    pub(super) way: Way,
    pub(super) generation: u16,
    /// Found when the connection closed: no octet was handed to the socket.
    pub(super) untouched: bool,
    /// R2T whose data are not all sent.
    pub(super) r2ts: u8,
    /// Data-Out PDUs in the ring.
    pub(super) tx_data: u16,
    /// Names the command to the ring.
    pub(super) command: u64,
    pub(super) lun: Lun,
    pub(super) cmd_sn: CmdSn,
    /// Once all of its data are in the ring: whoever has taken this command, its own or one behind them, has taken them.
    pub(super) whole_at: Option<CmdSn>,
    /// Octets of data.
    pub(super) len: u32,
    /// Octets received; octets sent unasked or asked for by R2T.
    pub(super) moved: u32,
    /// DataSN of the next Data-In, R2TSN of the next R2T. Both count what the target sends.
    pub(super) next_sn: u32,
    /// Valid while draining.
    pub(super) ending: Ending,
}

#[derive(Debug)]
pub(super) struct SlotTable {
    slots: Box<[Slot]>,
    free: Vec<u16>,
}

impl SlotTable {
    pub(super) fn new(depth: u16) -> Self {
        let empty = Slot {
            phase: Phase::Free,
            way: Way::None,
            generation: 0,
            untouched: false,
            r2ts: 0,
            tx_data: 0,
            command: 0,
            lun: Lun::ZERO,
            cmd_sn: CmdSn::new(0),
            whole_at: None,
            len: 0,
            moved: 0,
            next_sn: 0,
            ending: Ending::NONE,
        };
        SlotTable { slots: vec![empty; usize::from(depth)].into(), free: (0..depth).rev().collect() }
    }

    pub(super) fn depth(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    #[inline]
    pub(super) fn take(&mut self, way: Way, len: u32, lun: Lun, cmd_sn: CmdSn, command: u64) -> Option<u16> {
        let index = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        let (generation, ending) = (slot.generation, slot.ending);
        *slot = Slot {
            phase: Phase::Active,
            way,
            generation,
            untouched: false,
            r2ts: 0,
            tx_data: 0,
            command,
            lun,
            cmd_sn,
            whole_at: None,
            len,
            moved: 0,
            next_sn: 0,
            ending,
        };
        Some(index)
    }

    #[inline]
    pub(super) fn release(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        if slot.phase == Phase::Free {
            return;
        }
        slot.phase = Phase::Free;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push(index);
    }

    #[inline]
    pub(super) fn get(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    /// The tag of the task in `index`.
    #[inline]
    pub(super) fn itt(&self, index: u16) -> Itt {
        let tag = u32::from(self.slots[usize::from(index)].generation) << 16 | u32::from(index);
        // Never the reserved one: generations end below it.
        Itt::new(tag).unwrap_or_else(|| unreachable!("generations keep clear of the reserved tag"))
    }

    /// The slot of an active task with this tag.
    #[inline]
    pub(super) fn find(&self, itt: Itt) -> Option<u16> {
        let index = itt.get() as u16;
        let slot = self.slots.get(usize::from(index))?;
        let ours = u32::from(slot.generation) == itt.get() >> 16 && slot.phase == Phase::Active;
        ours.then_some(index)
    }
}

/// Sense data of tasks that were answered while octets of them were on their way out: other answers come before their events are fetched.
/// A target does that only when something is wrong, so that nothing is set aside for it.
#[derive(Debug, Default)]
pub(super) struct LateSense {
    kept: Vec<(u16, Box<[u8]>)>,
    fetched: Option<Box<[u8]>>,
}

impl LateSense {
    #[cold]
    pub(super) fn keep(&mut self, slot: u16, sense: &[u8]) {
        self.kept.push((slot, sense.into()));
    }

    /// The event of `slot` is fetched.
    #[inline]
    pub(super) fn fetch(&mut self, slot: u16) {
        if !self.kept.is_empty() || self.fetched.is_some() {
            let at = self.kept.iter().position(|kept| kept.0 == slot);
            self.fetched = at.map(|at| self.kept.swap_remove(at).1);
        }
    }

    pub(super) fn fetched(&self) -> Option<&[u8]> {
        self.fetched.as_deref()
    }
}
