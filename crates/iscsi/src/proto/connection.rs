//! The connection: parameters, submission, transmission, closing. Reception is in `receive`.

use super::receive::{Receiver, Stage};
use super::slots::{LateSense, MAX_DEPTH, Phase, SlotTable, Way};
use super::{DataPlan, Ending, Event, Outcome, ProtocolError};
use crate::pdu::{
    DataOut, Framing, InitiatorSn, Itt, LogoutReason, LogoutRequest, Lun, MAX_PLAIN_HEAD, NopOut, ScsiCommand,
    TaskAttribute, TaskFunction, TaskRequest, Ttt, pad_len,
};
use crate::serial::{CmdSn, StatSn};
use polypath_block::Fate;
use polypath_net::plan::{DigestDue, Pdu, PduKind, SendRing, Transmit};
use std::collections::VecDeque;

/// Tags with this bit are of pings, task management and logout, which have no slots.
const CONTROL: u32 = 0x8000_0000;
/// The tag of a ping.
const PING: u32 = CONTROL | 0x7fff_0000;
/// The tag of a logout request.
const LOGOUT: u32 = CONTROL | 0x7ffe_0000;
/// Task management requests and answers to pings that wait to leave or to be answered, at most.
const CONTROLS: usize = 32;

/// What both sides agreed on, and where they stand after login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Tasks in flight, 1 to [`MAX_DEPTH`].
    pub depth: u16,
    /// What we send: digests, and the MaxRecvDataSegmentLength that the target declared.
    pub tx: Framing,
    /// What we receive: digests, and the MaxRecvDataSegmentLength that we declared.
    pub rx: Framing,
    /// Most octets that one R2T asks for.
    pub max_burst_len: u32,
    /// Most octets that are sent unasked.
    pub first_burst_len: u32,
    /// Data-Out only when asked.
    pub initial_r2t: bool,
    /// Data may follow in the command itself.
    pub immediate_data: bool,
    /// R2T that a task may have outstanding.
    pub max_outstanding_r2t: u16,
    /// The CmdSN that the next command has.
    pub cmd_sn: CmdSn,
    /// The last CmdSN that the target takes now.
    pub max_cmd_sn: CmdSn,
    /// The StatSN that the target's next answer has.
    pub exp_stat_sn: StatSn,
}

/// Why a task was not taken. It was not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The connection is closed, or about to be.
    #[error("the connection is not ready")]
    NotReady,
    /// All slots or places are taken, or the target takes no more commands now.
    #[error("the queue is full")]
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// Logout was asked for: nothing more is submitted.
    Leaving,
    Closed,
}

/// What a PDU in the ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// The command of its slot.
    Command,
    /// Data-Out of its slot.
    Data {
        /// The last of its grant: of what one R2T asked for, or of the first burst.
        last: bool,
    },
    /// A NOP-Out, a task management or a logout request.
    Control,
}

impl PduKind for Sending {
    fn is_asked(self) -> bool {
        matches!(self, Sending::Data { .. })
    }
}

/// Data that are to be sent: what an R2T asked for, or the rest of the first burst.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) slot: u16,
    pub(super) ttt: Option<Ttt>,
    pub(super) next: u32,
    pub(super) end: u32,
    pub(super) data_sn: u32,
}

/// A task management request that was not answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Managing {
    pub(super) itt: Itt,
    pub(super) token: u64,
    /// Names the request to the ring: before it has left, nobody can have answered it.
    pub(super) request: u64,
}

/// One connection, the initiator's side, from the end of login on. See the module for how it is driven.
#[derive(Debug)]
pub struct InitiatorConnection {
    pub(super) parameters: Parameters,
    pub(super) state: State,
    pub(super) slots: SlotTable,
    pub(super) ring: SendRing<Sending, MAX_PLAIN_HEAD>,
    pub(super) grants: VecDeque<Grant>,
    /// Tasks that were answered while octets of them are still on their way out.
    draining: usize,
    /// What the target said of these.
    pub(super) late_sense: LateSense,
    pub(super) events: VecDeque<Event>,
    pub(super) receiver: Receiver,
    pub(super) managing: Vec<Managing>,
    next_control: u32,
    pub(super) pinging: bool,
    cmd_sn: CmdSn,
    pub(super) max_cmd_sn: CmdSn,
    /// Commands before this one the target has said to have taken.
    pub(super) taken: CmdSn,
    pub(super) exp_stat_sn: StatSn,
    /// Where [`InitiatorConnection::poll_outcome`] goes on.
    cursor: u16,
}

impl InitiatorConnection {
    /// A connection that has just left the login phase. All memory is allocated here.
    pub fn new(parameters: Parameters) -> Self {
        let depth = parameters.depth.clamp(1, MAX_DEPTH);
        let r2ts = usize::from(depth) * (usize::from(parameters.max_outstanding_r2t.max(1)) + 1);
        InitiatorConnection {
            parameters,
            state: State::Open,
            slots: SlotTable::new(depth),
            ring: SendRing::new(usize::from(depth) + CONTROLS, Sending::Control),
            grants: VecDeque::with_capacity(r2ts),
            draining: 0,
            late_sense: LateSense::default(),
            events: VecDeque::with_capacity(usize::from(depth) + 1),
            receiver: Receiver::new(),
            managing: Vec::with_capacity(CONTROLS),
            next_control: 0,
            pinging: false,
            cmd_sn: parameters.cmd_sn,
            max_cmd_sn: parameters.max_cmd_sn,
            taken: parameters.cmd_sn,
            exp_stat_sn: parameters.exp_stat_sn,
            cursor: 0,
        }
    }

    /// Tasks that find room now: slots, places in the ring, and what the target takes.
    #[inline]
    pub fn room(&self) -> usize {
        if self.state != State::Open {
            return 0;
        }
        // MaxCMdSN - CmdSN + 1 (RFC 7143 section 4.2.2.1); nothing when the window is closed.
        let window = if self.max_cmd_sn.is_before(self.cmd_sn) { 0 } else { self.cmd_sn.steps_to(self.max_cmd_sn) + 1 };
        self.slots.free().min(window as usize).min(self.ring.room().saturating_sub(CONTROLS))
    }

    /// Takes a task; returns its slot.
    ///
    /// # Errors
    /// [`SubmitError`].
    #[inline]
    pub fn submit(&mut self, lun: Lun, cdb: [u8; 16], data: DataPlan) -> Result<u16, SubmitError> {
        if self.room() == 0 {
            return Err(if self.state == State::Open { SubmitError::Full } else { SubmitError::NotReady });
        }
        let (way, len) = match data {
            DataPlan::None | DataPlan::In(0) | DataPlan::Out(0) => (Way::None, 0),
            DataPlan::In(len) => (Way::In, len),
            DataPlan::Out(len) => (Way::Out, len),
        };
        let p = &self.parameters;
        let (mut immediate, mut burst) = (0, 0);
        if way == Way::Out {
            burst = len.min(p.first_burst_len);
            immediate = if p.immediate_data { burst.min(p.tx.max_data_len) } else { 0 };
            if p.initial_r2t {
                burst = immediate;
            }
        }
        let token = self.ring.next_token();
        let slot = self.slots.take(way, len, lun, self.cmd_sn, token).ok_or(SubmitError::Full)?;
        self.slots.get_mut(slot).whole_at = (way != Way::Out || immediate == len).then_some(self.cmd_sn);
        let command = ScsiCommand {
            immediate: false,
            is_final: burst == immediate,
            read: way == Way::In,
            write: way == Way::Out,
            attribute: TaskAttribute::Simple,
            lun,
            itt: self.slots.itt(slot),
            expected_len: len,
            sn: InitiatorSn { cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn },
            cdb,
            data_len: immediate,
        };
        let framing = &self.parameters.tx;
        let pdu =
            Pdu::new(Sending::Command, slot).with_data(0, immediate, pad_len(immediate) as u8, framing.data_digest);
        self.ring.push(pdu, |head| encoded(command.encode(framing, head)));
        self.cmd_sn = self.cmd_sn.next();
        if way == Way::Out {
            self.slots.get_mut(slot).moved = burst;
            if burst > immediate {
                self.slots.get_mut(slot).r2ts += 1;
                self.grants.push_back(Grant { slot, ttt: None, next: immediate, end: burst, data_sn: 0 });
                self.pump();
            }
        }
        Ok(slot)
    }

    /// Asks for a sign of life: NOP-Out with a tag, for immediate delivery. `false`: one is under way, or there is no room.
    pub fn ping(&mut self) -> bool {
        if self.pinging || self.state == State::Closed || self.ring.room() == 0 {
            return false;
        }
        self.pinging = true;
        self.push_nop(NopOut {
            immediate: true,
            lun: Lun::ZERO,
            itt: Itt::new(PING),
            ttt: None,
            sn: self.sn(),
            data_len: 0,
        });
        true
    }

    /// Answers the target's ping.
    pub(super) fn pong(&mut self, lun: Lun, ttt: Ttt) {
        // A target that asks faster than it reads gets fewer answers.
        if self.ring.room() > 0 {
            self.push_nop(NopOut { immediate: true, lun, itt: None, ttt: Some(ttt), sn: self.sn(), data_len: 0 });
        }
    }

    fn push_nop(&mut self, nop: NopOut) {
        let framing = &self.parameters.tx;
        self.ring.push(Pdu::new(Sending::Control, 0), |head| encoded(nop.encode(framing, head)));
    }

    /// Whether `itt` is that of a ping of ours.
    pub(super) fn is_ping(itt: Itt) -> bool {
        itt.get() == PING
    }

    /// Asks for task management: `task` is the slot that an ABORT TASK names. `false`: no room, or no such task.
    pub fn manage(&mut self, function: TaskFunction, lun: Lun, task: Option<u16>, token: u64) -> bool {
        let known = |slot: u16| usize::from(slot) < self.slots.depth() && self.slots.get(slot).phase == Phase::Active;
        let full = self.managing.len() == self.managing.capacity() || self.ring.room() == 0;
        if full || self.state == State::Closed || task.is_some_and(|slot| !known(slot)) {
            return false;
        }
        self.next_control = (self.next_control + 1) % 0x7ffe_0000;
        let Some(itt) = Itt::new(CONTROL | self.next_control) else { return false };
        let named = task.map(|slot| (self.slots.itt(slot), self.slots.get(slot).cmd_sn));
        let request = TaskRequest {
            immediate: true,
            function,
            lun,
            itt,
            referenced: named.map(|(itt, _)| itt),
            sn: self.sn(),
            ref_cmd_sn: named.map_or(self.cmd_sn, |(_, cmd_sn)| cmd_sn),
            exp_data_sn: 0,
        };
        let framing = &self.parameters.tx;
        let place = self.ring.next_token();
        self.ring.push(Pdu::new(Sending::Control, 0), |head| encoded(request.encode(framing, head)));
        self.managing.push(Managing { itt, token, request: place });
        true
    }

    /// Asks to be logged out, for this connection and so for the session. Nothing more is submitted.
    pub fn log_out(&mut self) {
        if self.state != State::Open {
            return;
        }
        self.state = State::Leaving;
        let Some(itt) = Itt::new(LOGOUT).filter(|_| self.ring.room() > 0) else { return };
        let request = LogoutRequest { immediate: true, reason: LogoutReason::CloseSession, itt, cid: 0, sn: self.sn() };
        let framing = &self.parameters.tx;
        self.ring.push(Pdu::new(Sending::Control, 0), |head| encoded(request.encode(framing, head)));
    }

    pub(super) fn is_logout(itt: Itt) -> bool {
        itt.get() == LOGOUT
    }

    fn sn(&self) -> InitiatorSn {
        InitiatorSn { cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    /// Data that wait for their digest; the same again until [`InitiatorConnection::set_digest`] was called. The digest covers the padding
    /// behind them as well.
    #[inline]
    pub fn next_digest(&mut self) -> Option<DigestDue> {
        if self.state != State::Closed && self.parameters.tx.data_digest { self.ring.next_digest() } else { None }
    }

    /// The digest of the data that [`InitiatorConnection::next_digest`] named.
    pub fn set_digest(&mut self, token: u64, digest: [u8; 4]) {
        self.ring.set_digest(token, digest);
    }

    /// The token of each PDU that waits to leave with a digest that was set, in order.
    pub fn digested(&self) -> impl Iterator<Item = u64> {
        self.ring.digested()
    }

    /// What has to leave, in order. Nothing once the connection is closed.
    #[inline]
    pub fn transmit(&self) -> Transmit<'_, Sending, MAX_PLAIN_HEAD> {
        if self.state == State::Closed { Transmit::nothing() } else { self.ring.transmit() }
    }

    /// Whether there is anything to send.
    #[inline]
    pub fn has_output(&self) -> bool {
        self.state != State::Closed && !self.ring.is_empty()
    }

    /// The socket has taken the next `n` octets.
    #[inline]
    pub fn sent(&mut self, n: usize) {
        if self.state == State::Closed {
            return;
        }
        if self.draining > 0 || !self.ring.sent_all(n as u64) {
            self.sent_some(n as u64);
        }
        if !self.grants.is_empty() {
            self.pump();
        }
    }

    fn sent_some(&mut self, n: u64) {
        let InitiatorConnection { ring, slots, events, draining, .. } = self;
        ring.sent(n, |kind, index| {
            let slot = match kind {
                Sending::Control => return,
                Sending::Command | Sending::Data { .. } => slots.get_mut(index),
            };
            if let Sending::Data { last } = kind {
                slot.tx_data -= 1;
                slot.r2ts -= u8::from(last);
            }
            if slot.phase == Phase::Draining && slot.tx_data == 0 {
                slot.phase = Phase::Done;
                *draining -= 1;
                events.push_back(Event::Ended { slot: index, ending: slot.ending });
            }
        });
    }

    /// Turns grants into Data-Out PDUs as far as there is room.
    pub(super) fn pump(&mut self) {
        while self.ring.has_room_for_asked() {
            let Some(grant) = self.grants.front_mut() else { return };
            let length = (grant.end - grant.next).min(self.parameters.tx.max_data_len);
            let (slot, last) = (grant.slot, grant.next + length == grant.end);
            let pdu = DataOut {
                is_final: last,
                lun: self.slots.get(slot).lun,
                itt: self.slots.itt(slot),
                ttt: grant.ttt,
                exp_stat_sn: self.exp_stat_sn,
                data_sn: grant.data_sn,
                buffer_offset: grant.next,
                data_len: length,
            };
            (grant.next, grant.data_sn) = (grant.next + length, grant.data_sn + 1);
            if last {
                self.grants.pop_front();
            }
            let framing = &self.parameters.tx;
            let out = Pdu::new(Sending::Data { last }, slot);
            let out = out.with_data(pdu.buffer_offset, length, pad_len(length) as u8, framing.data_digest);
            self.ring.push(out, |head| encoded(pdu.encode(framing, head)));
            let (next, task) = (self.cmd_sn, self.slots.get_mut(slot));
            task.tx_data += 1;
            if pdu.buffer_offset + length == task.len {
                task.whole_at = Some(next);
            }
        }
    }

    /// The next event, if any.
    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Ended { slot, .. } = event {
            self.late_sense.fetch(slot);
            self.slots.release(slot);
        }
        Some(event)
    }

    /// Is there an event to be fetched?
    #[inline]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// A task was answered: its event is due now, or when the last octet of it has left.
    pub(super) fn finish(&mut self, index: u16, ending: Ending) {
        let slot = self.slots.get_mut(index);
        slot.ending = ending;
        if slot.tx_data > 0 || !self.ring.has_left(slot.command) {
            slot.phase = Phase::Draining;
            self.draining += 1;
            if ending.has_sense {
                self.late_sense.keep(index, self.receiver.sense());
            }
            return;
        }
        slot.phase = Phase::Done;
        self.events.push_back(Event::Ended { slot: index, ending });
    }

    /// The target says that it has aborted the task in `index`: nothing more comes of it. Data of which nothing has left are not sent
    /// any more. The slot is free at once, and `true`, unless octets of it are in the middle of leaving: then the task ends by an
    /// event, without a status.
    pub fn end_aborted(&mut self, index: u16) -> bool {
        if usize::from(index) >= self.slots.depth() || self.slots.get(index).phase != Phase::Active {
            return false;
        }
        self.drop_unsent_data(index);
        let slot = self.slots.get(index);
        if slot.tx_data > 0 {
            self.finish(index, Ending::NONE);
            return false;
        }
        self.slots.release(index);
        true
    }

    /// Are octets of the task in `index` still to leave?
    #[inline]
    pub(super) fn has_unsent_data(&self, index: u16) -> bool {
        let slot = self.slots.get(index);
        slot.tx_data > 0 || !self.ring.has_left(slot.command) || self.grants.iter().any(|g| g.slot == index)
    }

    /// Data of the task in `index` of which nothing has left yet are not sent any more.
    pub(super) fn drop_unsent_data(&mut self, index: u16) {
        let mut dropped = 0;
        self.ring.untouched(|kind, slot| {
            let ours = slot == index && matches!(kind, Sending::Data { .. });
            dropped += u16::from(ours);
            ours
        });
        self.grants.retain(|g| g.slot != index);
        self.slots.get_mut(index).tx_data -= dropped;
        // Nothing may be left to be sent whose end would start them.
        self.pump();
    }

    /// Takes back a task of which no octet has left. Its slot is free at once and no event follows. `false` when it is too late.
    ///
    /// Its CmdSN is not used then: only the last one that was given can be taken back, or there would be a gap that the target waits for.
    pub fn withdraw(&mut self, index: u16) -> bool {
        let known = usize::from(index) < self.slots.depth() && self.slots.get(index).phase == Phase::Active;
        let last = |this: &Self| this.slots.get(index).cmd_sn.next() == this.cmd_sn;
        if !known || !last(self) || !self.ring.is_untouched(Sending::Command, index) {
            return false;
        }
        self.drop_unsent_data(index);
        self.ring.untouched(|kind, slot| kind == Sending::Command && slot == index);
        self.cmd_sn = self.slots.get(index).cmd_sn;
        self.slots.release(index);
        true
    }

    /// Ends the connection. Afterwards [`InitiatorConnection::poll_outcome`] accounts for every task.
    pub fn close(&mut self) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.receiver.stage = Stage::Closed;
        let InitiatorConnection { ring, slots, .. } = self;
        ring.untouched(|kind, slot| {
            if kind == Sending::Command {
                slots.get_mut(slot).untouched = true;
            }
            false
        });
    }

    /// Ends the connection because of `error`.
    pub(super) fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        self.close();
        error
    }

    /// What became of the next task, after the connection has closed. Covers tasks whose events were not fetched. Every task appears
    /// once; `None` when all have.
    pub fn poll_outcome(&mut self) -> Option<(u16, Outcome)> {
        if self.state != State::Closed {
            return None;
        }
        while let Some(event) = self.events.pop_front() {
            if let Event::Ended { slot, ending } = event {
                self.slots.release(slot);
                return Some((slot, Outcome::Ended(ending)));
            }
        }
        while usize::from(self.cursor) < self.slots.depth() {
            let index = self.cursor;
            self.cursor += 1;
            let slot = *self.slots.get(index);
            let outcome = match slot.phase {
                Phase::Free | Phase::Done => continue,
                Phase::Draining => Outcome::Ended(slot.ending),
                Phase::Active if slot.untouched => Outcome::Lost(Fate::NotSent),
                Phase::Active => Outcome::Lost(Fate::Unknown),
            };
            self.slots.release(index);
            return Some((index, outcome));
        }
        None
    }

    /// Is there a task in this slot that was not answered?
    pub fn is_active(&self, slot: u16) -> bool {
        usize::from(slot) < self.slots.depth() && self.slots.get(slot).phase == Phase::Active
    }

    /// The CmdSN of the next command: commands before it are those that a task management request sent now concerns.
    pub fn next_cmd_sn(&self) -> CmdSn {
        self.cmd_sn
    }

    /// Active tasks whose CmdSN is before this one, of one logical unit or of all.
    pub fn tasks_before(&self, before: CmdSn, lun: Option<Lun>) -> Vec<u16> {
        let all = 0..self.slots.depth() as u16;
        let ours = all.filter(|&slot| {
            let task = self.slots.get(slot);
            self.is_active(slot) && task.cmd_sn.is_before(before) && lun.is_none_or(|lun| task.lun == lun)
        });
        ours.collect()
    }

    /// The logical unit of the task in this slot.
    pub fn lun_of(&self, slot: u16) -> Lun {
        if self.is_active(slot) { self.slots.get(slot).lun } else { Lun::ZERO }
    }

    /// The logical unit of the task that is, or was last, in this slot; and whether the target has said (ExpCmdSN) that it has taken the command
    /// and, by a command behind them, all of its data. What it has not taken may still lie in front of it when its connection is long gone; and
    /// one that waits for data need not be known to its logical unit yet (tgt hands it on when they have come), so that a reset passes over it.
    pub fn command_of(&self, slot: u16) -> (Lun, bool) {
        let task = self.slots.get(slot);
        (task.lun, task.whole_at.is_some_and(|at| at.is_before(self.taken)))
    }

    /// Tasks that have not ended.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slots.in_use()
    }

    /// Is something to be heard: an answer to a task, a ping, or a request?
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.slots.in_use() > 0 || self.pinging || !self.managing.is_empty() || self.state == State::Leaving
    }

    /// What was agreed on.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

/// A head whose lengths are bounded by what was negotiated always has room.
#[inline]
fn encoded(result: Result<usize, crate::pdu::EncodeError>) -> usize {
    debug_assert!(result.is_ok(), "{result:?}");
    result.unwrap_or(0)
}
