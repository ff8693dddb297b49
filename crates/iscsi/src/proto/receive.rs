//! Reception: from octets to events, every PDU held against the task it names and the numbers it must have.

use super::connection::{Grant, InitiatorConnection, State};
use super::slots::{Slot, Way};
use super::{Ending, Event, ProtocolError, Want};
use crate::pdu::{
    AsyncEvent, AsyncMessage, BHS_LEN, CommandResponse, DIGEST_LEN, DataIn, Header, Itt, LogoutResponse,
    MAX_PLAIN_HEAD, NopIn, Opcode, PduError, R2t, Reject, Residual, Role, ScsiResponse, TargetSn, TaskResponse,
    TaskResult, offset, split_sense,
};
use polypath_net::Crc32c;

/// Data of a PDU other than Data-In that are kept; of longer ones the rest is read and passed over. Sense data have 252 octets at most,
/// a rejected head 1024.
const KEPT: usize = 1536;

/// What is received next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The head of a PDU.
    Head,
    /// Data of a PDU that is for the connection, with what is behind them.
    Body,
    /// Data of a slot.
    Data,
    /// Padding and digest behind data of a slot.
    Tail,
    /// Nothing more.
    Closed,
}

/// The Data-In that is being received.
#[derive(Debug, Clone, Copy)]
struct Current {
    slot: u16,
    next: u32,
    left: u32,
    status: Option<(u8, Residual)>,
}

#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) stage: Stage,
    buffer: [u8; MAX_PLAIN_HEAD],
    have: usize,
    header: Option<Header>,
    current: Current,
    /// The first octets of the data of a PDU that is for the connection.
    body: Vec<u8>,
    /// Octets of its data, padding and digest that have come.
    taken: usize,
    crc: Crc32c,
    tail: [u8; 8],
    /// Where the sense data of the last answer lie in `body`.
    sense: (usize, usize),
}

impl Receiver {
    pub(super) fn new() -> Self {
        Receiver {
            stage: Stage::Head,
            buffer: [0; MAX_PLAIN_HEAD],
            have: 0,
            header: None,
            current: Current { slot: 0, next: 0, left: 0, status: None },
            body: Vec::with_capacity(KEPT),
            taken: 0,
            crc: Crc32c::new(),
            tail: [0; 8],
            sense: (0, 0),
        }
    }

    /// The sense data of the answer that was received last.
    pub(super) fn sense(&self) -> &[u8] {
        let (start, end) = self.sense;
        self.body.get(start..end).unwrap_or(&[])
    }

    fn head_need(&self) -> usize {
        self.header.map_or(BHS_LEN, |header| header.head_len())
    }

    fn tail_need(&self) -> usize {
        self.header.map_or(0, |header| header.tail_len() - header.data_len() as usize)
    }
}

impl InitiatorConnection {
    /// Where the next octets go.
    #[inline]
    pub fn wants(&self) -> Want {
        let r = &self.receiver;
        match r.stage {
            Stage::Head => Want::Bytes(r.head_need() - r.have),
            Stage::Body => Want::Bytes(r.header.map_or(0, |h| h.tail_len()) - r.taken),
            Stage::Data => Want::Data { slot: r.current.slot, offset: r.current.next, len: r.current.left },
            Stage::Tail => Want::Tail(r.tail_need() - r.have),
            Stage::Closed => Want::Nothing,
        }
    }

    /// Takes octets of heads and of data for the connection, as many as there are; returns how many. It ends when
    /// [`InitiatorConnection::wants`] wants something else, or after a PDU that left an event, so that what it refers to
    /// ([`InitiatorConnection::sense`]) can be looked at.
    ///
    /// # Errors
    /// [`ProtocolError`]; the connection is closed then.
    #[inline]
    pub fn handle_bytes(&mut self, input: &[u8]) -> Result<usize, ProtocolError> {
        let mut used = 0;
        while used < input.len() && self.events.is_empty() {
            let rest = &input[used..];
            used += match self.receiver.stage {
                Stage::Head => self.take_head(rest).map_err(|e| self.fail(e))?,
                Stage::Body => self.take_body(rest).map_err(|e| self.fail(e))?,
                Stage::Data | Stage::Tail => break,
                Stage::Closed => return Err(ProtocolError::NotWanted),
            };
        }
        Ok(used)
    }

    /// The sense data of the answer that was fetched last.
    pub fn sense(&self) -> &[u8] {
        self.late_sense.fetched().unwrap_or_else(|| self.receiver.sense())
    }

    #[inline]
    fn take_head(&mut self, input: &[u8]) -> Result<usize, ProtocolError> {
        // The common case: the whole head is there, and is read where it lies.
        if self.receiver.have == 0
            && let Some(basic) = input.first_chunk::<BHS_LEN>()
        {
            let header = Header::parse(basic, Role::Target, &self.parameters.rx)?;
            if let Some(head) = input.get(..header.head_len()) {
                header.verify_header_digest(head)?;
                self.dispatch(&header, basic)?;
                return Ok(head.len());
            }
        }
        self.collect_head(input)
    }

    /// Collects a head that comes in pieces.
    fn collect_head(&mut self, input: &[u8]) -> Result<usize, ProtocolError> {
        let r = &mut self.receiver;
        let take = input.len().min(r.head_need() - r.have);
        r.buffer[r.have..r.have + take].copy_from_slice(&input[..take]);
        r.have += take;
        if r.have < r.head_need() {
            return Ok(take);
        }
        let buffer = r.buffer;
        let Some(basic) = buffer.first_chunk::<BHS_LEN>() else { return Ok(take) };
        if r.header.is_none() {
            let header = Header::parse(basic, Role::Target, &self.parameters.rx)?;
            self.receiver.header = Some(header);
            if header.head_len() > BHS_LEN {
                return Ok(take);
            }
        }
        if let Some(header) = self.receiver.header {
            self.receiver.have = 0;
            header.verify_header_digest(&buffer[..header.head_len()])?;
            self.dispatch(&header, basic)?;
        }
        Ok(take)
    }

    /// The head of a PDU is there.
    #[inline]
    fn dispatch(&mut self, header: &Header, basic: &[u8; BHS_LEN]) -> Result<(), ProtocolError> {
        let r = &mut self.receiver;
        (r.header, r.have, r.stage) = (None, 0, Stage::Head);
        if header.opcode == Opcode::DataIn {
            return self.take_data_in(header, basic);
        }
        if header.data_len() > 0 {
            r.buffer[..BHS_LEN].copy_from_slice(basic);
            (r.header, r.taken, r.crc, r.stage) = (Some(*header), 0, Crc32c::new(), Stage::Body);
            r.body.clear();
            return Ok(());
        }
        r.body.clear();
        self.take_pdu(header, basic)
    }

    fn take_body(&mut self, input: &[u8]) -> Result<usize, ProtocolError> {
        let r = &mut self.receiver;
        let Some(header) = r.header else { return Err(ProtocolError::NotWanted) };
        let data = header.data_len() as usize;
        let covered = data + header.pad_len();
        let take = input.len().min(header.tail_len() - r.taken);
        for (at, octet) in (r.taken..).zip(&input[..take]) {
            if at < data.min(KEPT) {
                r.body.push(*octet);
            } else if at >= covered {
                r.tail[at - covered] = *octet;
            }
        }
        if header.has_data_digest() && r.taken < covered {
            r.crc.update(&input[..take.min(covered - r.taken)]);
        }
        r.taken += take;
        if r.taken < header.tail_len() {
            return Ok(take);
        }
        if header.has_data_digest() {
            check_digest(&r.tail[..DIGEST_LEN], r.crc)?;
        }
        let buffer = r.buffer;
        (r.header, r.stage) = (None, Stage::Head);
        if let Some(basic) = buffer.first_chunk::<BHS_LEN>() {
            self.take_pdu(&header, basic)?;
        }
        Ok(take)
    }

    /// A PDU that is not Data-In is there, with its data.
    fn take_pdu(&mut self, header: &Header, basic: &[u8; BHS_LEN]) -> Result<(), ProtocolError> {
        match header.opcode {
            Opcode::ScsiResponse => self.take_response(ScsiResponse::parse(header, basic)?),
            Opcode::R2t => self.take_r2t(R2t::parse(header, basic)?),
            Opcode::NopIn => self.take_nop(&NopIn::parse(header, basic)),
            Opcode::TaskResponse => self.take_managed(&TaskResponse::parse(header, basic)?),
            Opcode::AsyncMessage => self.take_async(&AsyncMessage::parse(header, basic)),
            Opcode::LogoutResponse => {
                let response = LogoutResponse::parse(header, basic)?;
                self.count(header.opcode, response.sn)?;
                if self.state != State::Leaving || !Self::is_logout(response.itt) {
                    return Err(ProtocolError::OutOfSequence(header.opcode));
                }
                self.events.push_back(Event::LoggedOut);
                Ok(())
            }
            Opcode::Reject => self.take_reject(&Reject::parse(header, basic)),
            other => Err(ProtocolError::OutOfSequence(other)),
        }
    }

    /// Takes the numbers of a PDU that carries a status: its StatSN must be the next.
    #[inline]
    fn count(&mut self, kind: Opcode, sn: TargetSn) -> Result<(), ProtocolError> {
        if sn.stat_sn != self.exp_stat_sn {
            let (value, expected) = (sn.stat_sn.get(), self.exp_stat_sn.get());
            return Err(ProtocolError::Number { kind, what: "StatSN", value, expected });
        }
        self.exp_stat_sn = self.exp_stat_sn.next();
        self.take_window(sn);
        Ok(())
    }

    /// Takes ExpCmdSN and MaxCmdSN (RFC 7143 section 4.2.2.1): values that contradict each other are ignored, as are older ones.
    #[inline]
    fn take_window(&mut self, sn: TargetSn) {
        if sn.max_cmd_sn.is_before(sn.exp_cmd_sn.previous()) {
            return;
        }
        if self.max_cmd_sn.is_before(sn.max_cmd_sn) {
            self.max_cmd_sn = sn.max_cmd_sn;
        }
        // It cannot have taken what was not sent.
        if self.taken.is_before(sn.exp_cmd_sn) && !self.next_cmd_sn().is_before(sn.exp_cmd_sn) {
            self.taken = sn.exp_cmd_sn;
        }
    }

    /// The task that a PDU names. It must be in flight, and its command must have left, or be leaving.
    #[inline]
    fn task(&self, kind: Opcode, itt: Itt) -> Result<(u16, &Slot), ProtocolError> {
        let index = self.slots.find(itt).ok_or(ProtocolError::UnknownTask { kind, itt: itt.get() })?;
        let slot = self.slots.get(index);
        if !self.ring.has_left(slot.command) && self.ring.is_untouched(super::Sending::Command, index) {
            return Err(ProtocolError::UnknownTask { kind, itt: itt.get() });
        }
        Ok((index, slot))
    }

    #[inline]
    fn take_data_in(&mut self, header: &Header, basic: &[u8; BHS_LEN]) -> Result<(), ProtocolError> {
        let pdu = DataIn::parse(header, basic)?;
        let (kind, itt) = (Opcode::DataIn, pdu.itt.get());
        let (index, slot) = self.task(kind, pdu.itt)?;
        if slot.way != Way::In {
            return Err(ProtocolError::Task { kind, itt, problem: "it does not read" });
        }
        if pdu.acknowledge {
            let problem = "an acknowledgement is asked for, which error recovery level 0 has not";
            return Err(ProtocolError::Task { kind, itt, problem });
        }
        check_range(kind, itt, slot, pdu.buffer_offset, pdu.data_len)?;
        if pdu.data_sn != slot.next_sn {
            let (value, expected) = (pdu.data_sn, slot.next_sn);
            return Err(ProtocolError::Number { kind, what: "DataSN", value, expected });
        }
        match pdu.status {
            Some(_) => self.count(kind, pdu.sn)?,
            None => self.take_window(pdu.sn),
        }
        self.slots.get_mut(index).next_sn += 1;
        let status = pdu.status.map(|s| (s.status, s.residual));
        let r = &mut self.receiver;
        r.current = Current { slot: index, next: pdu.buffer_offset, left: pdu.data_len, status };
        if pdu.data_len > 0 {
            (r.header, r.stage) = (Some(*header), Stage::Data);
        } else {
            self.end_of_data();
        }
        Ok(())
    }

    /// `n` octets of data were put where [`InitiatorConnection::wants`] said.
    #[inline]
    pub fn data_moved(&mut self, n: u32) {
        let r = &mut self.receiver;
        if r.stage != Stage::Data {
            return;
        }
        debug_assert!(n <= r.current.left, "the shell moved more data than wanted");
        let n = n.min(r.current.left);
        r.current.next += n;
        r.current.left -= n;
        self.slots.get_mut(r.current.slot).moved += n;
        if r.current.left > 0 {
            return;
        }
        if r.tail_need() > 0 {
            (r.have, r.stage) = (0, Stage::Tail);
        } else {
            self.end_of_data();
        }
    }

    /// Takes padding and digest behind data; `computed` is the digest of those data so far. Returns how many octets were taken.
    ///
    /// # Errors
    /// A wrong digest, which ends the connection: error recovery level 0 has no way to ask again.
    pub fn handle_tail(&mut self, input: &[u8], computed: &Crc32c) -> Result<usize, ProtocolError> {
        let r = &mut self.receiver;
        if r.stage != Stage::Tail {
            return Ok(0);
        }
        let need = r.tail_need();
        let take = input.len().min(need - r.have);
        r.tail[r.have..r.have + take].copy_from_slice(&input[..take]);
        r.have += take;
        if r.have < need {
            return Ok(take);
        }
        if r.header.is_some_and(|header| header.has_data_digest()) {
            let (pad, digest) = r.tail[..need].split_at(need - DIGEST_LEN);
            let mut crc = *computed;
            crc.update(pad);
            let checked = check_digest(digest, crc);
            checked.map_err(|e| self.fail(e))?;
        }
        self.receiver.have = 0;
        self.end_of_data();
        Ok(take)
    }

    #[inline]
    fn end_of_data(&mut self) {
        let current = self.receiver.current;
        (self.receiver.stage, self.receiver.header) = (Stage::Head, None);
        if let Some((status, _)) = current.status {
            let slot = self.slots.get(current.slot);
            let (moved, whole) = (slot.moved, slot.moved == slot.len);
            self.finish(current.slot, Ending { status: Some(status), moved, whole, has_sense: false });
        }
    }

    fn take_response(&mut self, pdu: ScsiResponse) -> Result<(), ProtocolError> {
        let kind = Opcode::ScsiResponse;
        let (index, slot) = self.task(kind, pdu.itt)?;
        let (way, len, moved) = (slot.way, slot.len, slot.moved);
        self.count(kind, pdu.sn)?;
        // What is less than all is what the target says, and never more than what was moved in fact.
        let moved = match pdu.residual {
            Residual::Underflow(rest) if way == Way::Out => moved.min(len.saturating_sub(rest)),
            _ => moved,
        };
        let status = match pdu.response {
            CommandResponse::Completed { status } => Some(status),
            CommandResponse::TargetFailure | CommandResponse::Other(_) => None,
        };
        let body = &self.receiver.body;
        let sense_len = split_sense(body)?.0.len();
        self.receiver.sense = (2, 2 + sense_len);
        // What has not left cannot have been taken, whatever the target says.
        let moved = if self.has_unsent_data(index) { 0 } else { moved };
        self.drop_unsent_data(index);
        let whole = moved == len;
        self.finish(index, Ending { status, moved, whole, has_sense: sense_len > 0 });
        Ok(())
    }

    fn take_r2t(&mut self, pdu: R2t) -> Result<(), ProtocolError> {
        let (kind, itt) = (Opcode::R2t, pdu.itt.get());
        self.take_window(pdu.sn);
        let (index, slot) = self.task(kind, pdu.itt)?;
        let problem = |problem| Err(ProtocolError::Task { kind, itt, problem });
        if slot.way != Way::Out {
            return problem("it does not write");
        }
        check_range(kind, itt, slot, pdu.buffer_offset, pdu.desired_len)?;
        if pdu.r2t_sn != slot.next_sn {
            let (value, expected) = (pdu.r2t_sn, slot.next_sn);
            return Err(ProtocolError::Number { kind, what: "R2TSN", value, expected });
        }
        if pdu.desired_len > self.parameters.max_burst_len {
            return problem("more than MaxBurstLength is asked for");
        }
        // The rest of the first burst counts as one that is not asked for.
        if u16::from(slot.r2ts) > self.parameters.max_outstanding_r2t {
            return problem("more R2T are outstanding than MaxOutstandingR2T allows");
        }
        let slot = self.slots.get_mut(index);
        slot.r2ts += 1;
        slot.next_sn += 1;
        slot.moved += pdu.desired_len;
        let end = pdu.buffer_offset + pdu.desired_len;
        self.grants.push_back(Grant { slot: index, ttt: Some(pdu.ttt), next: pdu.buffer_offset, end, data_sn: 0 });
        self.pump();
        Ok(())
    }

    fn take_nop(&mut self, pdu: &NopIn) -> Result<(), ProtocolError> {
        match (pdu.itt, pdu.ttt) {
            (Some(itt), _) if Self::is_ping(itt) && self.pinging => {
                self.count(Opcode::NopIn, pdu.sn)?;
                self.pinging = false;
                self.events.push_back(Event::Pong);
            }
            (Some(itt), _) => return Err(ProtocolError::UnknownTask { kind: Opcode::NopIn, itt: itt.get() }),
            (None, Some(ttt)) => {
                self.take_window(pdu.sn);
                self.pong(pdu.lun, ttt);
            }
            (None, None) => self.take_window(pdu.sn),
        }
        Ok(())
    }

    fn take_managed(&mut self, pdu: &TaskResponse) -> Result<(), ProtocolError> {
        let kind = Opcode::TaskResponse;
        // What it ends is given back at once: the request, and with it all commands before it, must have left.
        let at = self.managing.iter().position(|m| m.itt == pdu.itt && self.ring.has_left(m.request));
        let at = at.ok_or(ProtocolError::UnknownTask { kind, itt: pdu.itt.get() })?;
        self.count(kind, pdu.sn)?;
        let token = self.managing.swap_remove(at).token;
        self.events.push_back(Event::Managed { token, result: pdu.result });
        Ok(())
    }

    fn take_async(&mut self, pdu: &AsyncMessage) -> Result<(), ProtocolError> {
        self.count(Opcode::AsyncMessage, pdu.sn)?;
        self.events.push_back(match pdu.event {
            AsyncEvent::Scsi | AsyncEvent::TasksTerminated => Event::AsyncSense(pdu.lun.0),
            event => Event::Async(event),
        });
        Ok(())
    }

    /// The target rejects a PDU of ours. Of task management it costs that request, of a ping nothing; of anything else we do not know what
    /// the target thinks of the task any more.
    fn take_reject(&mut self, pdu: &Reject) -> Result<(), ProtocolError> {
        self.count(Opcode::Reject, pdu.sn)?;
        let Some(head) = self.receiver.body.first_chunk::<BHS_LEN>() else {
            return Err(ProtocolError::Rejected { opcode: 0xff, reason: pdu.reason.to_string() });
        };
        let opcode = head[offset::OPCODE] & crate::pdu::flags::OPCODE;
        let [a, b, c, d] = [0, 1, 2, 3].map(|n| head[offset::ITT + n]);
        let itt = u32::from_be_bytes([a, b, c, d]);
        if opcode == Opcode::TaskRequest as u8
            && let Some(at) = self.managing.iter().position(|m| m.itt.get() == itt)
        {
            let token = self.managing.swap_remove(at).token;
            self.events.push_back(Event::Managed { token, result: TaskResult::Rejected });
            return Ok(());
        }
        if opcode == Opcode::NopOut as u8 {
            if Itt::new(itt).is_some_and(Self::is_ping) && self.pinging {
                self.pinging = false;
                // It lives.
                self.events.push_back(Event::Pong);
            }
            return Ok(());
        }
        Err(ProtocolError::Rejected { opcode, reason: pdu.reason.to_string() })
    }
}

fn check_digest(received: &[u8], computed: Crc32c) -> Result<(), ProtocolError> {
    let computed = computed.finish();
    let mut octets = [0; DIGEST_LEN];
    octets.copy_from_slice(received);
    let received = u32::from_le_bytes(octets);
    if received == computed { Ok(()) } else { Err(PduError::DataDigest { received, computed }.into()) }
}

/// Holds a range against what the task has and where it stands.
#[inline]
fn check_range(kind: Opcode, itt: u32, slot: &Slot, offset: u32, length: u32) -> Result<(), ProtocolError> {
    let have = slot.len;
    if u64::from(offset) + u64::from(length) > u64::from(have) {
        return Err(ProtocolError::OutOfRange { kind, itt, offset, length, have });
    }
    if offset != slot.moved {
        return Err(ProtocolError::NotContiguous { kind, itt, offset, expected: slot.moved });
    }
    Ok(())
}
