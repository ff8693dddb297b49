//! The common PDUs, each on one short path: data that are all of a command's and end it, and the response of a command that has no
//! more to move. Whatever is not exactly that is left to `receive`, which finds the same and says what is wrong with the rest.

use super::connection::HostConnection;
use super::receive::Stage;
use super::slots::Way;
use crate::pdu::{CAPSULE_RESP_LEN, PduType, TRANSFER_LEN, common, flags, offset};
use polypath_nvme::{Cqe, StatusField};

/// A command that succeeded with one PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// Slot; it is free now.
    pub slot: u16,
    /// Completion; made up by us where the controller used the SUCCESS flag.
    pub cqe: Cqe,
    /// Octets of the PDU, from the front of the input.
    pub len: usize,
    /// Octets of it before the data. The rest are all the data of the command.
    pub head: usize,
}

const DATA: u32 = common(PduType::C2hData, flags::LAST | flags::SUCCESS, TRANSFER_LEN as u8, 0) as u32;
const RESPONSE: u64 = common(PduType::CapsuleResp, 0, 0, CAPSULE_RESP_LEN as u32);

impl HostConnection {
    /// Takes the PDU at the front of `input`, if all of it is there and a command succeeds with it: data with the SUCCESS flag that are
    /// all of an I/O read's, or the response of a command that has nothing more to send or to receive. No event follows. `None`, and
    /// nothing has changed, when it is anything else: then [`HostConnection::wants`] goes on as ever.
    ///
    /// Before anything else is asked of the connection, the shell puts `input[head..len]` where the data of the slot belong.
    #[inline]
    pub fn take_whole(&mut self, input: &[u8]) -> Option<Whole> {
        if self.takes_whole() { self.next_whole(input) } else { None }
    }

    /// Can [`HostConnection::take_whole`] take anything now? What it takes changes nothing about that.
    #[inline(always)]
    pub fn takes_whole(&self) -> bool {
        let r = &self.receiver;
        // What was finished before is told before.
        r.bare && r.stage == Stage::Head && r.have == 0 && self.events.is_empty()
    }

    /// As [`HostConnection::take_whole`], after [`HostConnection::takes_whole`] has said yes and since when nothing else was asked of the
    /// connection.
    #[inline(always)]
    pub fn next_whole(&mut self, input: &[u8]) -> Option<Whole> {
        debug_assert!(self.takes_whole());
        let head = input.first_chunk::<TRANSFER_LEN>()?;
        let ch = u64::from_le_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
        if ch as u32 == DATA {
            self.take_whole_data(head, (ch >> 32) as u32 as usize, input.len())
        } else if ch == RESPONSE {
            self.take_whole_response(head)
        } else {
            None
        }
    }

    #[inline(always)]
    fn take_whole_data(&mut self, head: &[u8; TRANSFER_LEN], plen: usize, have: usize) -> Option<Whole> {
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (from, len) = (number(offset::DATAO), number(offset::DATAL));
        let cid = u16::from_le_bytes([head[offset::CCCID], head[offset::CCCID + 1]]);
        let (index, slot) = self.slots.active(cid)?;
        let all = from == 0 && len == slot.len && len > 0 && plen == len as usize + TRANSFER_LEN;
        let asked = slot.way == Way::ToHost && slot.moved == 0 && !slot.last && self.ring.has_left(slot.capsule);
        if !all || !asked || plen > have || self.config.sq_flow_control {
            return None;
        }
        self.slots.release(index);
        Some(Whole { slot: index, cqe: Cqe::new(cid, StatusField::SUCCESS), len: plen, head: TRANSFER_LEN })
    }

    #[inline(always)]
    fn take_whole_response(&mut self, head: &[u8; CAPSULE_RESP_LEN]) -> Option<Whole> {
        let cqe = Cqe::from_bytes(head[offset::CQE..].first_chunk()?);
        let (index, slot) = self.slots.active(cqe.cid)?;
        let moved = matches!(slot.way, Way::None | Way::InCapsule) || slot.moved == slot.len;
        // No R2T that is not answered, and so nothing that is still to leave.
        let quiet = self.ring.has_left(slot.capsule) && slot.r2ts == 0;
        if !moved || !quiet || slot.digest_failed || cqe.status != StatusField::SUCCESS {
            return None;
        }
        self.slots.release(index);
        Some(Whole { slot: index, cqe, len: CAPSULE_RESP_LEN, head: CAPSULE_RESP_LEN })
    }
}
