//! Reception: from octets to events, every PDU held against the command it names.

use super::connection::{Grant, HostConnection, Negotiated, Sending, State};
use super::slots::{Slot, Way};
use super::{ProtocolError, Want};
use crate::pdu::{
    C2hData, CH_LEN, CapsuleResp, CommonHeader, DIGEST_LEN, Direction, Framing, IcResp, MAX_HEAD, PduType, R2t,
    TRANSFER_LEN, TermReq,
};
use polypath_nvme::{Cqe, StatusField};

/// What is received next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing yet.
    Idle,
    /// The head of a PDU.
    Head,
    /// Data of a slot.
    Data,
    /// Its digest.
    Digest,
    /// Nothing more.
    Closed,
}

/// The C2HData that is being received.
#[derive(Debug, Clone, Copy)]
struct Current {
    slot: u16,
    cid: u16,
    next: u32,
    left: u32,
    digest: bool,
    last: bool,
    success: bool,
}

#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) stage: Stage,
    /// No digests, and data may follow their header at once: [`HostConnection::take_whole`] may take PDUs.
    pub(super) bare: bool,
    buffer: [u8; MAX_HEAD],
    pub(super) have: usize,
    header: Option<CommonHeader>,
    current: Current,
}

impl Receiver {
    pub(super) fn new() -> Self {
        let current = Current { slot: 0, cid: 0, next: 0, left: 0, digest: false, last: false, success: false };
        Receiver { stage: Stage::Idle, bare: false, buffer: [0; MAX_HEAD], have: 0, header: None, current }
    }

    pub(super) fn set_framing(&mut self, rx: &Framing) {
        self.bare = !rx.header_digest && !rx.data_digest && TRANSFER_LEN.is_multiple_of(rx.alignment.bytes());
    }
}

impl HostConnection {
    /// Where the next octets go.
    #[inline]
    pub fn wants(&self) -> Want {
        let r = &self.receiver;
        match r.stage {
            Stage::Head => Want::Header(r.header.map_or(CH_LEN, |ch| ch.head_len()) - r.have),
            Stage::Data => Want::Data { slot: r.current.slot, offset: r.current.next, len: r.current.left },
            Stage::Digest => Want::Digest(DIGEST_LEN - r.have),
            Stage::Idle | Stage::Closed => Want::Nothing,
        }
    }

    /// Takes header octets, as many as there are and as PDUs follow each other without data; returns how many.
    /// Fewer than given means that [`HostConnection::wants`] now wants something else.
    ///
    /// # Errors
    /// [`ProtocolError`]; the connection is closed then.
    #[inline]
    pub fn handle_bytes(&mut self, input: &[u8]) -> Result<usize, ProtocolError> {
        if self.receiver.stage != Stage::Head {
            return if self.receiver.stage == Stage::Idle { Err(ProtocolError::NotWanted) } else { Ok(0) };
        }
        let mut used = 0;
        while self.receiver.stage == Stage::Head && used < input.len() {
            let rest = &input[used..];
            // The common case: the whole head is there, and is read where it lies.
            if self.receiver.have == 0
                && let Some(first) = rest.first_chunk::<CH_LEN>()
            {
                let ch = self.parse_common(first)?;
                if let Some(head) = rest.get(..ch.head_len()) {
                    used += head.len();
                    self.dispatch(&ch, head)?;
                    continue;
                }
            }
            used += self.collect(rest)?;
        }
        Ok(used)
    }

    /// Collects a head that comes in pieces.
    fn collect(&mut self, rest: &[u8]) -> Result<usize, ProtocolError> {
        let r = &mut self.receiver;
        let need = r.header.map_or(CH_LEN, |ch| ch.head_len());
        let take = rest.len().min(need - r.have);
        r.buffer[r.have..r.have + take].copy_from_slice(&rest[..take]);
        r.have += take;
        if r.have == need {
            let buffer = r.buffer;
            match r.header.take() {
                Some(ch) => {
                    r.have = 0;
                    self.dispatch(&ch, &buffer[..need])?;
                }
                None => {
                    let mut first = [0; CH_LEN];
                    first.copy_from_slice(&buffer[..CH_LEN]);
                    let ch = self.parse_common(&first)?;
                    self.receiver.header = Some(ch);
                }
            }
        }
        Ok(take)
    }

    #[inline]
    fn parse_common(&mut self, first: &[u8; CH_LEN]) -> Result<CommonHeader, ProtocolError> {
        CommonHeader::parse(first, Direction::ControllerToHost, &self.negotiated.rx)
            .map_err(|e| self.fail(e.into(), first))
    }

    #[inline]
    fn dispatch(&mut self, ch: &CommonHeader, head: &[u8]) -> Result<(), ProtocolError> {
        let taken = self.take_pdu(ch, head);
        taken.map_err(|e| self.fail(e, &head[..ch.kind.header_len().min(head.len())]))
    }

    fn take_pdu(&mut self, ch: &CommonHeader, head: &[u8]) -> Result<(), ProtocolError> {
        ch.verify_header_digest(head)?;
        match (self.state, ch.kind) {
            (State::Ready, PduType::C2hData) => self.take_data(ch, C2hData::parse(ch, head)?),
            (State::Ready, PduType::CapsuleResp) => self.take_response(CapsuleResp::parse(ch, head)?.cqe),
            (State::Ready, PduType::R2t) => self.take_r2t(R2t::parse(ch, head)?),
            (State::Initializing, PduType::IcResp) => self.take_icresp(IcResp::parse(ch, head)?),
            (_, PduType::C2hTermReq) => {
                let term = TermReq::parse(ch, head)?;
                Err(ProtocolError::Terminated { fes: term.fes, fei: term.fei })
            }
            (_, kind) => Err(ProtocolError::OutOfSequence(kind)),
        }
    }

    fn take_icresp(&mut self, resp: IcResp) -> Result<(), ProtocolError> {
        let asked = self.config.request;
        resp.check_against(&asked)?;
        let mut premature = false;
        self.ring.untouched(|_, _| {
            premature = true;
            false
        });
        if premature {
            return Err(ProtocolError::OutOfSequence(PduType::IcResp));
        }
        if self.config.require_header_digest && asked.header_digest && !resp.header_digest {
            return Err(ProtocolError::DigestRefused("header"));
        }
        if self.config.require_data_digest && asked.data_digest && !resp.data_digest {
            return Err(ProtocolError::DigestRefused("data"));
        }
        let framing =
            |alignment| Framing { header_digest: resp.header_digest, data_digest: resp.data_digest, alignment };
        let (tx, rx) = (framing(resp.alignment), framing(asked.alignment));
        self.set_ready(Negotiated { tx, rx, max_h2c_data: resp.max_h2c_data });
        Ok(())
    }

    /// The command that a PDU names. It must be in flight, and its capsule must have left (or be leaving).
    #[inline]
    fn command(&self, kind: PduType, cid: u16) -> Result<(u16, &Slot), ProtocolError> {
        let index = self.slots.find(cid).ok_or(ProtocolError::UnknownCommand { kind, cid })?;
        let slot = self.slots.get(index);
        if !self.ring.has_left(slot.capsule) && self.ring.is_untouched(Sending::Capsule, index) {
            return Err(ProtocolError::Premature { kind, cid });
        }
        Ok((index, slot))
    }

    fn take_data(&mut self, ch: &CommonHeader, pdu: C2hData) -> Result<(), ProtocolError> {
        let (kind, cid) = (PduType::C2hData, pdu.cccid);
        let (index, slot) = self.command(kind, cid)?;
        if slot.way != Way::ToHost || slot.last {
            return Err(ProtocolError::Unexpected { kind, cid });
        }
        check_range(kind, cid, slot, pdu.offset, pdu.length)?;
        if pdu.success && self.config.sq_flow_control {
            return Err(ProtocolError::SuccessNotAllowed(cid));
        }
        let moved = slot.moved + pdu.length;
        if pdu.success && slot.exact && moved < slot.len {
            return Err(ProtocolError::ShortTransfer { cid, moved, have: slot.len });
        }
        self.receiver.current = Current {
            slot: index,
            cid,
            next: pdu.offset,
            left: pdu.length,
            digest: ch.has_data_digest(),
            last: pdu.last,
            success: pdu.success,
        };
        self.receiver.stage = Stage::Data;
        Ok(())
    }

    /// `n` octets of data were put where [`HostConnection::wants`] said.
    #[inline]
    pub fn data_moved(&mut self, n: u32) {
        if self.receiver.stage != Stage::Data {
            return;
        }
        let current = &mut self.receiver.current;
        debug_assert!(n <= current.left, "the shell moved more data than wanted");
        let n = n.min(current.left);
        current.next += n;
        current.left -= n;
        self.slots.get_mut(current.slot).moved += n;
        if current.left > 0 {
            return;
        }
        if current.digest {
            self.receiver.have = 0;
            self.receiver.stage = Stage::Digest;
        } else {
            self.end_of_data();
        }
    }

    /// Takes octets of a data digest; `computed` is the digest of the data of this PDU. Returns how many were
    /// taken.
    ///
    /// # Errors
    /// [`ProtocolError::DataDigest`] when it is wrong and the configuration makes that fatal.
    pub fn handle_digest(&mut self, input: &[u8], computed: u32) -> Result<usize, ProtocolError> {
        let r = &mut self.receiver;
        if r.stage != Stage::Digest {
            return Ok(0);
        }
        let take = input.len().min(DIGEST_LEN - r.have);
        r.buffer[r.have..r.have + take].copy_from_slice(&input[..take]);
        r.have += take;
        if r.have < DIGEST_LEN {
            return Ok(take);
        }
        let received = u32::from_le_bytes([r.buffer[0], r.buffer[1], r.buffer[2], r.buffer[3]]);
        let current = r.current;
        r.have = 0;
        if received != computed {
            if self.config.data_digest_fatal {
                let error = ProtocolError::DataDigest { cid: current.cid, received, computed };
                return Err(self.fail(error, &[]));
            }
            self.slots.get_mut(current.slot).digest_failed = true;
        }
        self.end_of_data();
        Ok(take)
    }

    fn end_of_data(&mut self) {
        let current = self.receiver.current;
        self.receiver.stage = Stage::Head;
        self.slots.get_mut(current.slot).last = current.last;
        if current.success {
            self.finish(current.slot, Cqe::new(current.cid, StatusField::SUCCESS));
        }
    }

    fn take_response(&mut self, cqe: Cqe) -> Result<(), ProtocolError> {
        let cid = cqe.cid;
        let (index, slot) = self.command(PduType::CapsuleResp, cid)?;
        if cqe.status.is_success() {
            let needs_data = slot.exact && matches!(slot.way, Way::ToHost | Way::ToController);
            if needs_data && slot.moved < slot.len {
                return Err(ProtocolError::ShortTransfer { cid, moved: slot.moved, have: slot.len });
            }
            if self.drop_unsent_data(index, false) {
                return Err(ProtocolError::Unexpected { kind: PduType::CapsuleResp, cid });
            }
        } else {
            self.drop_unsent_data(index, true);
        }
        self.finish(index, cqe);
        Ok(())
    }

    /// A command is answered before all data that were asked for have left. Data of which nothing has left yet
    /// must not be sent any more: the controller no longer knows the command. Returns whether there were any.
    fn drop_unsent_data(&mut self, index: u16, really: bool) -> bool {
        if self.slots.get(index).r2ts == 0 {
            return false;
        }
        let waiting = self.grants.iter().any(|g| g.slot == index);
        let mut dropped = 0;
        self.ring.untouched(|kind, slot| {
            let ours = slot == index && matches!(kind, Sending::Data { .. });
            dropped += u16::from(ours);
            ours && really
        });
        if really {
            self.grants.retain(|g| g.slot != index);
            self.slots.get_mut(index).tx_data -= dropped;
            // Nothing may be left to be sent whose end would start them.
            self.pump();
        }
        waiting || dropped > 0
    }

    fn take_r2t(&mut self, pdu: R2t) -> Result<(), ProtocolError> {
        let (kind, cid) = (PduType::R2t, pdu.cccid);
        let (index, slot) = self.command(kind, cid)?;
        if slot.way != Way::ToController {
            return Err(ProtocolError::Unexpected { kind, cid });
        }
        check_range(kind, cid, slot, pdu.offset, pdu.length)?;
        let limit = self.config.request.max_r2t_z + 1;
        if u32::from(slot.r2ts) >= limit {
            return Err(ProtocolError::R2tLimit { cid, limit });
        }
        let slot = self.slots.get_mut(index);
        slot.r2ts += 1;
        slot.moved += pdu.length;
        self.grants.push_back(Grant { slot: index, ttag: pdu.ttag, next: pdu.offset, end: pdu.offset + pdu.length });
        self.pump();
        Ok(())
    }
}

/// Holds a range against what the command has and where it stands.
#[inline]
fn check_range(kind: PduType, cid: u16, slot: &Slot, offset: u32, length: u32) -> Result<(), ProtocolError> {
    let have = slot.len;
    if u64::from(offset) + u64::from(length) > u64::from(have) {
        return Err(ProtocolError::OutOfRange { kind, cid, offset, length, have });
    }
    if offset != slot.moved {
        return Err(ProtocolError::NotContiguous { kind, cid, offset, expected: slot.moved });
    }
    Ok(())
}
