//! Bodies of the fuzz targets, here so that `cargo test` replays the committed corpus. Not an interface.

use crate::pdu::*;
use crate::proto::{DataPlan, Event, HostConfig, HostConnection, Want};
use polypath_net::plan::Chunk;
use polypath_nvme::{Cqe, Sqe, StatusField};

/// The framing that the first octet of an input stands for, and the rest of the input.
fn framed(data: &[u8]) -> Option<(Framing, &[u8])> {
    let (&first, rest) = data.split_first()?;
    let alignment = DataAlignment::from_wire(first >> 3)?;
    Some((Framing { header_digest: first & 1 != 0, data_digest: first & 2 != 0, alignment }, rest))
}

/// The common header of a PDU of this type, when the input is one and its head complete.
fn head_of(data: &[u8], kind: PduType) -> Option<(Framing, CommonHeader, &[u8])> {
    let (framing, rest) = framed(data)?;
    let ch = CommonHeader::parse(rest.first_chunk()?, kind.direction(), &framing).ok()?;
    (ch.kind == kind).then_some((framing, ch, rest.get(..ch.head_len()).unwrap_or(rest)))
}

/// What was read, encoded again, must be read again the same.
macro_rules! decoder {
    ($(#[$meta:meta])* $name:ident, $pdu:ident, $kind:expr, $encode:expr) => {
        $(#[$meta])*
        pub fn $name(data: &[u8]) {
            let Some((framing, ch, head)) = head_of(data, $kind) else { return };
            let _ = ch.verify_header_digest(head);
            let Ok(pdu) = $pdu::parse(&ch, head) else { return };
            let _ = format!("{pdu:?}");
            let mut out = [0; TERM_MAX_LEN];
            let encode: fn(&$pdu, &Framing, &mut [u8]) -> Result<usize, EncodeError> = $encode;
            let Ok(n) = encode(&pdu, &framing, &mut out) else { return };
            let first = out.first_chunk().expect("a head has eight octets");
            let again = CommonHeader::parse(first, $kind.direction(), &framing).expect("what we build, we read");
            assert_eq!(n, again.head_len());
            assert_eq!(again.verify_header_digest(&out[..n]), Ok(()));
            assert_eq!($pdu::parse(&again, &out[..n]), Ok(pdu));
        }
    };
}

decoder!(/// ICReq.
    icreq, IcReq, PduType::IcReq, |p, _, out| p.encode(out));
decoder!(/// ICResp.
    icresp, IcResp, PduType::IcResp, |p, _, out| p.encode(out));
decoder!(/// H2CTermReq.
    h2c_term, TermReq, PduType::H2cTermReq, |p, _, out| p.encode(out));
decoder!(/// C2HTermReq.
    c2h_term, TermReq, PduType::C2hTermReq, |p, _, out| p.encode(out));
decoder!(/// CapsuleCmd.
    capsule_cmd, CapsuleCmd, PduType::CapsuleCmd, |p, f, out| p.encode(f, out));
decoder!(/// CapsuleResp.
    capsule_resp, CapsuleResp, PduType::CapsuleResp, |p, f, out| p.encode(f, out));
decoder!(/// H2CData.
    h2c_data, H2cData, PduType::H2cData, |p, f, out| p.encode(f, out));
decoder!(/// C2HData.
    c2h_data, C2hData, PduType::C2hData, |p, f, out| p.encode(f, out));
decoder!(/// R2T.
    r2t, R2t, PduType::R2t, |p, f, out| p.encode(f, out));

/// Common headers of any type and direction.
pub fn common_header(data: &[u8]) {
    let Some((framing, rest)) = framed(data) else { return };
    let Some(first) = rest.first_chunk() else { return };
    for from in [Direction::HostToController, Direction::ControllerToHost] {
        match CommonHeader::parse(first, from, &framing) {
            Ok(ch) => {
                let digest = if ch.has_data_digest() { DIGEST_LEN as u64 } else { 0 };
                let sum = ch.head_len() as u64 + u64::from(ch.data_len()) + digest;
                assert_eq!(sum, u64::from(ch.plen));
                assert!(ch.head_len() >= ch.kind.header_len() && ch.head_len() <= MAX_HEAD);
                let _ = ch.verify_header_digest(rest);
            }
            Err(e) => {
                let _ = (e.fes(), e.fei(), e.to_string());
            }
        }
    }
}

const DEPTH: u16 = 8;

/// A host connection driven by the input: commands submitted, octets sent, and received both raw and as PDUs
/// whose fields the input chooses.
pub fn host_connection(data: &[u8]) {
    let Some(mut driver) = Driver::new(data) else { return };
    while driver.step().is_some() {}
    driver.finish();
}

struct Driver<'a> {
    input: &'a [u8],
    conn: HostConnection,
    rx: Framing,
    live: [bool; DEPTH as usize],
}

impl<'a> Driver<'a> {
    fn new(data: &'a [u8]) -> Option<Self> {
        let (&first, input) = data.split_first()?;
        let (header_digest, data_digest) = (first & 1 != 0, first & 2 != 0);
        let mut config = HostConfig::new(DEPTH);
        config.request = IcReq { header_digest, data_digest, max_r2t_z: u32::from(first >> 6), ..IcReq::default() };
        config.sq_flow_control = first & 4 != 0;
        config.data_digest_fatal = first & 8 != 0;
        let mut conn = HostConnection::new(config).expect("the configuration is legal");
        conn.start();
        conn.sent(IC_LEN);
        let mut b = [0; IC_LEN];
        let alignment = DataAlignment::DWORD;
        IcResp { alignment, header_digest, data_digest, max_h2c_data: 4096 }.encode(&mut b).ok()?;
        assert_eq!(conn.handle_bytes(&b), Ok(IC_LEN));
        assert!(matches!(conn.poll_event(), Some(Event::Ready(_))));
        let rx = conn.negotiated().expect("ready").rx;
        Some(Driver { input, conn, rx, live: [false; DEPTH as usize] })
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.input.split_first()?;
        self.input = rest;
        Some(first)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    fn step(&mut self) -> Option<()> {
        match self.byte()? % 8 {
            0 => self.submit(DataPlan::ToHost { len: 4096, exact: true }, Sqe::read(0, 1, 0, 7, false)),
            1 => self.submit(DataPlan::ToController { len: 4096, exact: true }, Sqe::write(0, 1, 0, 7, false)),
            2 => self.submit(DataPlan::ToController { len: 65536, exact: true }, Sqe::write(0, 1, 0, 127, false)),
            3 => self.send()?,
            4 => {
                let n = usize::from(self.byte()?).min(self.input.len());
                let (raw, rest) = self.input.split_at(n);
                self.input = rest;
                self.receive(raw);
            }
            5 => {
                let cid = self.cid()?;
                let status = StatusField::from_raw(u16::from(self.byte()?));
                let mut out = [0; MAX_ENCODED_HEAD];
                let n = CapsuleResp { cqe: Cqe::new(cid, status) }.encode(&self.rx, &mut out).ok()?;
                self.receive(&out[..n]);
            }
            6 => {
                let cccid = self.cid()?;
                let (ttag, offset, length) = (self.u16()?, self.quantity()?, self.quantity()?);
                let mut out = [0; MAX_ENCODED_HEAD];
                let n = R2t { cccid, ttag, offset, length }.encode(&self.rx, &mut out).ok()?;
                self.receive(&out[..n]);
            }
            _ => self.receive_data()?,
        }
        self.events();
        Some(())
    }

    /// Mostly the identifier of a command in flight.
    fn cid(&mut self) -> Option<u16> {
        let b = self.byte()?;
        if b & 0x80 != 0 { self.u16() } else { Some(self.conn.cid(u16::from(b) % DEPTH).unwrap_or(0)) }
    }

    fn quantity(&mut self) -> Option<u32> {
        Some(u32::from(self.u16()?) * 4)
    }

    fn submit(&mut self, plan: DataPlan, sqe: Sqe) {
        if let Ok(slot) = self.conn.submit(&sqe, plan) {
            let live = &mut self.live[usize::from(slot)];
            assert!(!*live, "a slot in use was given out");
            *live = true;
        }
    }

    fn send(&mut self) -> Option<()> {
        while let Some(due) = self.conn.next_digest() {
            self.conn.set_digest(due.token, [0x12, 0x34, 0x56, 0x78]);
        }
        let total: usize = self
            .conn
            .transmit()
            .map(|chunk| match chunk {
                Chunk::Bytes(b) => b.len(),
                Chunk::Data { offset, len, .. } => {
                    assert!(len > 0 && u64::from(offset) + u64::from(len) <= 65536);
                    len as usize
                }
            })
            .sum();
        let share = usize::from(self.byte()?);
        self.conn.sent(if share > 127 { total } else { total * share / 127 });
        Some(())
    }

    fn receive_data(&mut self) -> Option<()> {
        let cccid = self.cid()?;
        let how = self.byte()?;
        let (offset, length) = (self.quantity()?, self.quantity()?.clamp(4, 8192));
        let pdu = C2hData { cccid, offset, length, last: how & 1 != 0, success: how & 2 != 0 };
        let mut out = [0; MAX_ENCODED_HEAD];
        let n = pdu.encode(&self.rx, &mut out).ok()?;
        self.receive(&out[..n]);
        let data = vec![how; length as usize];
        self.receive(&data);
        if self.rx.data_digest {
            let crc = if how & 4 != 0 { 0 } else { digest(0, &data) };
            self.receive(&crc.to_le_bytes());
        }
        Some(())
    }

    fn receive(&mut self, mut b: &[u8]) {
        while !b.is_empty() {
            self.events();
            if let Some(whole) = self.conn.take_whole(b) {
                assert!(whole.head <= whole.len && whole.len - whole.head <= 4096);
                assert!(std::mem::take(&mut self.live[usize::from(whole.slot)]), "completed twice");
                b = &b[whole.len..];
                continue;
            }
            let used = match self.conn.wants() {
                Want::Header(_) => self.conn.handle_bytes(b),
                Want::Data { slot, offset, len } => {
                    assert!(self.live[usize::from(slot)] && offset + len <= 4096);
                    let n = b.len().min(len as usize);
                    self.conn.data_moved(n as u32);
                    Ok(n)
                }
                // The right digest only for data of one value, which is what `receive_data` sends.
                Want::Digest(_) => self.conn.handle_digest(b, u32::from_le_bytes([b[0]; 4])),
                Want::Nothing => return,
            };
            match used {
                Ok(used) => b = &b[used..],
                Err(e) => {
                    let _ = (e.fes(), e.fei(), e.to_string(), self.conn.terminate_request());
                    assert!(self.conn.is_closed());
                    return;
                }
            }
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.conn.poll_event() {
            if let Event::Completed { slot, .. } = event {
                assert!(std::mem::take(&mut self.live[usize::from(slot)]), "completed twice");
            }
        }
    }

    fn finish(mut self) {
        self.conn.close();
        while let Some((slot, _)) = self.conn.poll_outcome() {
            assert!(std::mem::take(&mut self.live[usize::from(slot)]), "completed twice");
        }
        assert_eq!(self.live, [false; DEPTH as usize], "a command was lost");
        assert_eq!(self.conn.in_flight(), 0);
    }
}
