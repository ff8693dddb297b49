//! The connection: configuration, submission, transmission, closing. Reception is in `receive`.

use super::receive::{Receiver, Stage};
use super::slots::{MAX_DEPTH, Phase, SlotTable, Way};
use super::{DataPlan, Event, Outcome, ProtocolError};
use crate::pdu::{
    ADMIN_IN_CAPSULE, CAPSULE_CMD_LEN, CH_LEN, CapsuleCmd, DIGEST_LEN, Direction, Framing, H2cData, IcReq,
    MAX_ENCODED_HEAD, PduType, TERM_MAX_LEN, TermReq, common,
};
use polypath_net::plan::{DigestDue, Pdu, PduKind, SendRing, Transmit};
use polypath_nvme::sqe::{BlockCommand, admin};
use polypath_nvme::{Cqe, SglDescriptor, Sqe, StatusField};
use std::collections::VecDeque;

/// What the host wants of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostConfig {
    /// Commands in flight, 1 to [`MAX_DEPTH`]. Must not exceed the queue size given in Connect less one.
    pub depth: u16,
    /// What ICReq asks for. MAXR2T may be at most 15 (16 outstanding).
    pub request: IcReq,
    /// Refuse the connection when header digests were asked for and not granted.
    pub require_header_digest: bool,
    /// Likewise for data digests.
    pub require_data_digest: bool,
    /// In-capsule data of this queue in octets: [`ADMIN_IN_CAPSULE`] for the admin queue, else from IOCCSZ.
    pub in_capsule_bytes: u32,
    /// SQ flow control was left on in Connect; then the SUCCESS flag is an error.
    pub sq_flow_control: bool,
    /// A wrong data digest closes the connection. Otherwise, as section 3.5.1.1 has it, it fails its command
    /// with Transient Transport Error.
    pub data_digest_fatal: bool,
}

impl HostConfig {
    /// No digests, one R2T at a time, 8 KiB in the capsule, no SQ flow control, wrong data digests fatal.
    pub fn new(depth: u16) -> Self {
        HostConfig {
            depth,
            request: IcReq::default(),
            require_header_digest: false,
            require_data_digest: false,
            in_capsule_bytes: ADMIN_IN_CAPSULE,
            sq_flow_control: false,
            data_digest_fatal: true,
        }
    }
}

/// A configuration that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Depth out of range.
    #[error("depth is {0}, expected 1 to 1024")]
    Depth(u16),
    /// MAXR2T out of range.
    #[error("MAXR2T is {0} (zero-based), at most 15 is supported")]
    MaxR2t(u32),
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Framing of what we send (CPDA).
    pub tx: Framing,
    /// Framing of what we receive (HPDA).
    pub rx: Framing,
    /// Most data octets in one H2CData.
    pub max_h2c_data: u32,
}

/// Why a command was not taken. The command was not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// ICResp has not arrived, or the connection is closed.
    #[error("the connection is not ready")]
    NotReady,
    /// All slots, or all places in the transmit ring, are taken.
    #[error("the queue is full")]
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    Initializing,
    Ready,
    Closed,
}

/// What a PDU in the ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// ICReq.
    Initialize,
    /// The command capsule of its slot.
    Capsule,
    /// H2CData of its slot.
    Data {
        /// The last of its R2T.
        last: bool,
    },
}

impl PduKind for Sending {
    #[inline]
    fn is_asked(self) -> bool {
        matches!(self, Sending::Data { .. })
    }
}

/// An R2T that is not answered completely.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) slot: u16,
    pub(super) ttag: u16,
    pub(super) next: u32,
    pub(super) end: u32,
}

/// One connection, the host's side. See the module for how it is driven.
#[derive(Debug)]
pub struct HostConnection {
    pub(super) config: HostConfig,
    pub(super) state: State,
    pub(super) negotiated: Negotiated,
    /// No digests: where the data of a capsule begin. Zero otherwise.
    pub(super) bare_capsule: u8,
    pub(super) slots: SlotTable,
    pub(super) ring: SendRing<Sending, MAX_ENCODED_HEAD>,
    pub(super) grants: VecDeque<Grant>,
    /// Commands that were answered while octets of them are still on their way out.
    draining: usize,
    pub(super) events: VecDeque<Event>,
    pub(super) receiver: Receiver,
    term: [u8; TERM_MAX_LEN],
    term_len: usize,
    /// Where [`HostConnection::poll_outcome`] goes on.
    cursor: u16,
}

impl HostConnection {
    /// A connection that has not said anything yet. All memory is allocated here.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: HostConfig) -> Result<Self, ConfigError> {
        if !(1..=MAX_DEPTH).contains(&config.depth) {
            return Err(ConfigError::Depth(config.depth));
        }
        if config.request.max_r2t_z > 15 {
            return Err(ConfigError::MaxR2t(config.request.max_r2t_z));
        }
        let r2ts = usize::from(config.depth) * (config.request.max_r2t_z as usize + 1);
        Ok(HostConnection {
            config,
            state: State::Idle,
            negotiated: Negotiated { tx: Framing::NONE, rx: Framing::NONE, max_h2c_data: 0 },
            bare_capsule: 0,
            slots: SlotTable::new(config.depth),
            // Beside the capsules ICReq; what was taken back has the place of the capsule or the data that it was.
            ring: SendRing::new(usize::from(config.depth) + 1, Sending::Initialize),
            grants: VecDeque::with_capacity(r2ts),
            draining: 0,
            events: VecDeque::with_capacity(usize::from(config.depth) + 1),
            receiver: Receiver::new(),
            term: [0; TERM_MAX_LEN],
            term_len: 0,
            cursor: 0,
        })
    }

    /// Begins: ICReq goes into the ring. The caller bounds how long it waits for [`Event::Ready`].
    pub fn start(&mut self) {
        if self.state != State::Idle {
            return;
        }
        let request = self.config.request;
        self.ring.push(Pdu::new(Sending::Initialize, 0), |head| {
            let encoded = request.encode(head);
            debug_assert_eq!(encoded, Ok(head.len()));
            encoded.unwrap_or(0)
        });
        self.state = State::Initializing;
        self.receiver.stage = Stage::Head;
    }

    /// Takes a command; returns its slot. Command identifier and SGL descriptor of `sqe` are overwritten.
    ///
    /// # Errors
    /// [`SubmitError`].
    #[inline]
    pub fn submit(&mut self, sqe: &Sqe, data: DataPlan) -> Result<u16, SubmitError> {
        if self.state != State::Ready {
            return Err(SubmitError::NotReady);
        }
        if !self.slots.has_free() || self.ring.room() == 0 {
            return Err(SubmitError::Full);
        }
        let (way, len, exact) = self.route(sqe, data);
        let slot = self.slots.take(way, len, exact, self.ring.next_token()).ok_or(SubmitError::Full)?;
        let cid = self.slots.cid(slot);
        let (in_capsule, sgl) = match way {
            Way::InCapsule => (len, SglDescriptor::InCapsule { offset: 0, length: len }),
            _ => (0, SglDescriptor::Transport { length: len }),
        };
        let framing = &self.negotiated.tx;
        let pdu = Pdu::new(Sending::Capsule, slot).with_data(0, in_capsule, 0, framing.data_digest);
        self.ring.push(pdu, |head| {
            let encoded = CapsuleCmd { sqe: sqe.addressed(cid, sgl), data_len: in_capsule }.encode(framing, head);
            debug_assert!(encoded.is_ok(), "in-capsule data are bounded, the head always fits");
            encoded.unwrap_or(0)
        });
        Ok(slot)
    }

    /// As [`HostConnection::submit`], of a read or a write of `len` octets, all of which are to be moved.
    ///
    /// # Errors
    /// [`SubmitError`].
    #[inline(always)]
    pub fn submit_block(&mut self, command: &BlockCommand, len: u32) -> Result<u16, SubmitError> {
        if self.state != State::Ready {
            return Err(SubmitError::NotReady);
        }
        let fits = len <= self.config.in_capsule_bytes;
        let way = match command.write {
            _ if self.bare_capsule == 0 || len == 0 => return self.submit_block_framed(command, len),
            false => Way::ToHost,
            true if fits => Way::InCapsule,
            true => Way::ToController,
        };
        if !self.slots.has_free() || self.ring.room() == 0 {
            return Err(SubmitError::Full);
        }
        let slot = self.slots.take(way, len, true, self.ring.next_token()).ok_or(SubmitError::Full)?;
        let cid = self.slots.cid(slot);
        let (data_len, pdo, head_len, sgl) = match way {
            Way::InCapsule => {
                let sgl = SglDescriptor::InCapsule { offset: 0, length: len };
                (len, self.bare_capsule, self.bare_capsule, sgl)
            }
            _ => (0, 0, CAPSULE_CMD_LEN as u8, SglDescriptor::Transport { length: len }),
        };
        let ch = common(PduType::CapsuleCmd, 0, pdo, data_len + u32::from(head_len));
        let Some(header) = self.ring.push_bare(Sending::Capsule, slot, head_len, data_len) else {
            self.slots.release(slot);
            return Err(SubmitError::Full);
        };
        if usize::from(head_len) > CAPSULE_CMD_LEN {
            header[CAPSULE_CMD_LEN..head_len.into()].fill(0);
        }
        if let Some((first, entry)) = header.split_first_chunk_mut::<CH_LEN>()
            && let Some(entry) = entry.first_chunk_mut()
        {
            *first = ch.to_le_bytes();
            command.put(cid, sgl, entry);
        }
        Ok(slot)
    }

    /// The same by the way of all commands.
    #[cold]
    fn submit_block_framed(&mut self, command: &BlockCommand, len: u32) -> Result<u16, SubmitError> {
        let mut entry = [0; 64];
        command.put(0, SglDescriptor::NO_DATA, &mut entry);
        let plan = match command.write {
            true => DataPlan::ToController { len, exact: true },
            false => DataPlan::ToHost { len, exact: true },
        };
        self.submit(&Sqe::from_bytes(entry), plan)
    }

    /// Both sides agreed on `negotiated`.
    pub(super) fn set_ready(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
        let tx = negotiated.tx;
        let bare = !tx.header_digest && !tx.data_digest;
        self.bare_capsule = if bare { tx.data_offset(PduType::CapsuleCmd) as u8 } else { 0 };
        self.receiver.set_framing(&negotiated.rx);
        self.state = State::Ready;
        self.events.push_back(Event::Ready(negotiated));
    }

    #[inline]
    fn route(&self, sqe: &Sqe, data: DataPlan) -> (Way, u32, bool) {
        match data {
            DataPlan::None | DataPlan::ToHost { len: 0, .. } | DataPlan::ToController { len: 0, .. } => {
                (Way::None, 0, false)
            }
            DataPlan::ToHost { len, exact } => (Way::ToHost, len, exact),
            DataPlan::ToController { len, exact } => {
                let is_fabrics = sqe.opcode() == admin::FABRICS;
                let limit = if is_fabrics { ADMIN_IN_CAPSULE } else { self.config.in_capsule_bytes };
                (if len <= limit { Way::InCapsule } else { Way::ToController }, len, exact)
            }
        }
    }

    /// Data that wait for their digest; the same again until [`HostConnection::set_digest`] was called.
    /// Always `None` without data digests.
    #[inline]
    pub fn next_digest(&mut self) -> Option<DigestDue> {
        if self.state == State::Ready && self.negotiated.tx.data_digest { self.ring.next_digest() } else { None }
    }

    /// The digest of the data that [`HostConnection::next_digest`] named, in the order of its octets on the wire.
    pub fn set_digest(&mut self, token: u64, digest: [u8; DIGEST_LEN]) {
        self.ring.set_digest(token, digest);
    }

    /// The token of each PDU that waits to leave with a digest that was set, in order.
    pub fn digested(&self) -> impl Iterator<Item = u64> {
        self.ring.digested()
    }

    /// What has to leave, in order. Nothing once the connection is closed.
    #[inline]
    pub fn transmit(&self) -> Transmit<'_, Sending, MAX_ENCODED_HEAD> {
        if self.state == State::Closed { Transmit::nothing() } else { self.ring.transmit() }
    }

    /// Head, slot and octets of data of all that has to leave, in order, if all are common capsules, some of them with data, and nothing of
    /// them has left: the same as [`HostConnection::transmit`] for less. `None` says nothing.
    #[inline]
    pub fn bare_capsules(&self) -> Option<impl Iterator<Item = (&[u8], u16, u32)>> {
        if self.state == State::Closed { None } else { self.ring.bare() }
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
        // Most often capsules leave all together, and none of them is answered yet.
        if self.draining > 0 || !self.ring.sent_all(n as u64) {
            self.sent_some(n as u64);
        }
        if !self.grants.is_empty() {
            self.pump();
        }
    }

    fn sent_some(&mut self, n: u64) {
        let HostConnection { ring, slots, events, draining, .. } = self;
        ring.sent(n, |kind, index| {
            if kind == Sending::Initialize {
                return;
            }
            let slot = slots.get_mut(index);
            if let Sending::Data { last } = kind {
                slot.tx_data -= 1;
                slot.r2ts -= u8::from(last);
            }
            if slot.phase == Phase::Draining && slot.tx_data == 0 {
                slot.phase = Phase::Done;
                *draining -= 1;
                events.push_back(Event::Completed { slot: index, cqe: slot.result, received: slot.moved });
            }
        });
    }

    /// Turns R2T into H2CData PDUs as far as there is room.
    pub(super) fn pump(&mut self) {
        while self.ring.has_room_for_asked() {
            let Some(grant) = self.grants.front_mut() else { return };
            let length = (grant.end - grant.next).min(self.negotiated.max_h2c_data);
            let last = grant.next + length == grant.end;
            let slot = grant.slot;
            let pdu = H2cData { cccid: self.slots.cid(slot), ttag: grant.ttag, offset: grant.next, length, last };
            grant.next += length;
            if last {
                self.grants.pop_front();
            }
            let framing = &self.negotiated.tx;
            let out = Pdu::new(Sending::Data { last }, slot).with_data(pdu.offset, length, 0, framing.data_digest);
            self.ring.push(out, |head| {
                let encoded = pdu.encode(framing, head);
                debug_assert!(encoded.is_ok(), "MAXH2CDATA and the command bound the length");
                encoded.unwrap_or(0)
            });
            self.slots.get_mut(slot).tx_data += 1;
        }
    }

    /// Takes a command back of which no octet has left, for instance because its time ran out while the
    /// socket was stuck. Its slot is free at once and no event follows. `false` when it is too late.
    pub fn withdraw(&mut self, slot: u16) -> bool {
        let known = usize::from(slot) < self.slots.depth() && self.slots.get(slot).phase == Phase::Active;
        if self.state != State::Ready || !known || !self.ring.is_untouched(Sending::Capsule, slot) {
            return false;
        }
        self.ring.untouched(|kind, s| kind == Sending::Capsule && s == slot);
        self.slots.release(slot);
        true
    }

    /// The next event, if any.
    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Completed { slot, .. } = event {
            self.slots.release(slot);
        }
        Some(event)
    }

    /// A command was answered: its event is due now, or when the last octet of it has left.
    pub(super) fn finish(&mut self, index: u16, cqe: Cqe) {
        let slot = self.slots.get_mut(index);
        slot.result = cqe;
        if slot.digest_failed && cqe.status.is_success() {
            slot.result.status = StatusField::TRANSIENT_TRANSPORT_ERROR;
        }
        if slot.tx_data > 0 || !self.ring.has_left(slot.capsule) {
            slot.phase = Phase::Draining;
            self.draining += 1;
            return;
        }
        slot.phase = Phase::Done;
        self.events.push_back(Event::Completed { slot: index, cqe: slot.result, received: slot.moved });
    }

    /// Ends the connection. Afterwards [`HostConnection::poll_outcome`] accounts for every command.
    pub fn close(&mut self) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.receiver.stage = Stage::Closed;
        let HostConnection { ring, slots, .. } = self;
        ring.untouched(|kind, slot| {
            if kind == Sending::Capsule {
                slots.get_mut(slot).untouched = true;
            }
            false
        });
    }

    /// Ends the connection because of `error`, which is answered with a terminate request quoting `header`.
    pub(super) fn fail(&mut self, error: ProtocolError, header: &[u8]) -> ProtocolError {
        if let Some(fes) = error.fes() {
            let term = TermReq::new(Direction::HostToController, fes, error.fei(), header);
            self.term_len = term.encode(&mut self.term).unwrap_or(0);
        }
        self.close();
        error
    }

    /// The terminate request to send, once, before the socket is closed; `None` when there is none, or when the
    /// stream stands in the middle of a PDU, where it could not be told from data.
    pub fn terminate_request(&self) -> Option<&[u8]> {
        (self.term_len > 0 && self.ring.at_boundary()).then_some(&self.term[..self.term_len])
    }

    /// What became of the next command, after the connection has closed. Covers commands whose events were not
    /// fetched. Every command appears once; `None` when all have.
    pub fn poll_outcome(&mut self) -> Option<(u16, Outcome)> {
        if self.state != State::Closed {
            return None;
        }
        while let Some(event) = self.events.pop_front() {
            if let Event::Completed { slot, cqe, .. } = event {
                self.slots.release(slot);
                return Some((slot, Outcome::Finished(cqe)));
            }
        }
        while usize::from(self.cursor) < self.slots.depth() {
            let index = self.cursor;
            self.cursor += 1;
            let slot = *self.slots.get(index);
            let outcome = match slot.phase {
                Phase::Free | Phase::Done | Phase::Retained => continue,
                Phase::Draining => Outcome::Finished(slot.result),
                Phase::Active if slot.untouched => Outcome::NotSent,
                Phase::Active => Outcome::Unknown,
            };
            self.slots.release(index);
            return Some((index, outcome));
        }
        None
    }

    /// Whether commands may be submitted.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// What was agreed on, once ready.
    #[inline]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        (self.state == State::Ready).then_some(&self.negotiated)
    }

    /// Commands whose event or outcome was not fetched yet.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slots.in_use()
    }

    /// Commands that can be submitted now.
    #[inline]
    pub fn room(&self) -> usize {
        self.slots.free().min(self.ring.room())
    }

    /// Whether there is an event to be fetched. Sending may bring one about, too: that of a command which was answered before the last of
    /// its octets had left.
    #[inline]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Commands that can be in flight.
    pub fn depth(&self) -> usize {
        self.slots.depth()
    }

    /// The identifier of the command in a slot, for Abort; `None` when there is none.
    pub fn cid(&self, slot: u16) -> Option<u16> {
        let known = usize::from(slot) < self.slots.depth();
        let taken = known && !matches!(self.slots.get(slot).phase, Phase::Free | Phase::Retained);
        taken.then(|| self.slots.cid(slot))
    }

    /// Keeps the identifier of the command in `slot` from being given to another one before [`HostConnection::let_go`], even
    /// when the command is over: an Abort that names it is under way. The slot is out of use meanwhile.
    pub fn retain(&mut self, slot: u16) {
        if self.cid(slot).is_some() {
            self.slots.retain(slot);
        }
    }

    /// Ends [`HostConnection::retain`]: nobody speaks of the identifier any more.
    pub fn let_go(&mut self, slot: u16) {
        if usize::from(slot) < self.slots.depth() {
            self.slots.let_go(slot);
        }
    }

    /// Commands that are over and whose identifiers are kept by [`HostConnection::retain`].
    pub fn retained(&self) -> usize {
        self.slots.retained()
    }

    /// Has every octet of the command in `slot` left, as far as the controller has asked for them, and can it ask for no more?
    /// `true` as well when there is no command.
    pub fn has_left(&self, slot: u16) -> bool {
        if self.cid(slot).is_none() {
            return true;
        }
        let slot = self.slots.get(slot);
        let asked = slot.way != Way::ToController || (slot.moved == slot.len && slot.r2ts == 0);
        self.ring.has_left(slot.capsule) && slot.tx_data == 0 && asked
    }
}
