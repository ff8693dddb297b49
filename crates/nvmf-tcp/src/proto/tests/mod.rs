//! The connection against a scripted controller: what it sends octet by octet, what it accepts, what it
//! refuses and with which status.

mod properties;
mod taken_back;
mod whole;

use super::*;
use crate::pdu::*;
use polypath_net::plan::Chunk;
use polypath_nvme::{SglDescriptor, Sqe, StatusField};

const READ: DataPlan = DataPlan::ToHost { len: 4096, exact: true };

fn write(len: u32) -> DataPlan {
    DataPlan::ToController { len, exact: true }
}

/// Octet `at` of the data of a slot.
fn pattern(slot: u16, at: u32) -> u8 {
    (u32::from(slot) * 31 + at * 7 + (at >> 8)) as u8
}

fn data_of(slot: u16, offset: u32, len: u32) -> Vec<u8> {
    (offset..offset + len).map(|i| pattern(slot, i)).collect()
}

/// A shell: moves octets between a connection and byte vectors.
struct Shell {
    conn: HostConnection,
    events: Vec<Event>,
    moved: Vec<(u16, u32, u8)>,
    crc: u32,
}

impl Shell {
    fn idle(config: HostConfig) -> Self {
        Shell { conn: HostConnection::new(config).unwrap(), events: vec![], moved: vec![], crc: 0 }
    }

    /// A connection that is ready, with these parameters granted.
    fn ready(config: HostConfig, resp: IcResp) -> Self {
        let mut shell = Shell::idle(config);
        shell.conn.start();
        assert_eq!(shell.send_all().len(), 128);
        let mut b = [0; 128];
        resp.encode(&mut b).unwrap();
        shell.feed(&b).unwrap();
        assert!(matches!(shell.events.remove(0), Event::Ready(_)));
        shell
    }

    fn plain(depth: u16) -> Self {
        Shell::ready(HostConfig::new(depth), grant(false, false, 0, 8192))
    }

    fn digests(&mut self) {
        while let Some(due) = self.conn.next_digest() {
            let crc = digest(0, &data_of(due.slot, due.offset, due.len));
            self.conn.set_digest(due.token, crc.to_le_bytes());
        }
    }

    /// What is to be sent now.
    fn pending(&mut self) -> Vec<u8> {
        self.digests();
        let mut out = vec![];
        for chunk in self.conn.transmit() {
            match chunk {
                Chunk::Bytes(b) => {
                    assert!(!b.is_empty());
                    out.extend_from_slice(b);
                }
                Chunk::Data { slot, offset, len, .. } => {
                    assert_ne!(len, 0);
                    out.extend(data_of(slot, offset, len));
                }
            }
        }
        out
    }

    fn send_all(&mut self) -> Vec<u8> {
        let mut all = vec![];
        loop {
            let now = self.pending();
            if now.is_empty() {
                return all;
            }
            self.conn.sent(now.len());
            all.extend(now);
        }
    }

    /// Hands in octets as far as they are wanted.
    fn feed(&mut self, mut b: &[u8]) -> Result<(), ProtocolError> {
        let mut result = Ok(());
        while !b.is_empty() && result.is_ok() && self.conn.wants() != Want::Nothing {
            result = self.step(b).map(|used| b = &b[used..]);
        }
        self.poll_events();
        result
    }

    /// Hands in octets as far as the next are wanted; says how many were.
    fn step(&mut self, b: &[u8]) -> Result<usize, ProtocolError> {
        let used = match self.conn.wants() {
            Want::Header(n) => {
                assert!(n > 0);
                self.conn.handle_bytes(b)?
            }
            Want::Data { slot, offset, len } => {
                let n = b.len().min(len as usize);
                self.moved.extend((0..n).map(|i| (slot, offset + i as u32, b[i])));
                self.crc = digest(self.crc, &b[..n]);
                self.conn.data_moved(n as u32);
                n
            }
            Want::Digest(_) => self.conn.handle_digest(b, self.crc)?,
            Want::Nothing => 0,
        };
        if matches!(self.conn.wants(), Want::Header(_)) {
            self.crc = 0;
        }
        Ok(used)
    }

    fn poll_events(&mut self) {
        while let Some(e) = self.conn.poll_event() {
            self.events.push(e);
        }
    }

    fn completed(&mut self) -> (u16, StatusField, u32) {
        match self.events.remove(0) {
            Event::Completed { slot, cqe, received } => (slot, cqe.status, received),
            other => panic!("{other:?}"),
        }
    }

    fn outcomes(&mut self) -> Vec<(u16, Outcome)> {
        let all: Vec<_> = std::iter::from_fn(|| self.conn.poll_outcome()).collect();
        assert_eq!(self.conn.in_flight(), 0);
        all
    }
}

fn grant(header_digest: bool, data_digest: bool, cpda: u8, max_h2c_data: u32) -> IcResp {
    let alignment = DataAlignment::from_wire(cpda).unwrap();
    IcResp { alignment, header_digest, data_digest, max_h2c_data }
}

fn response(f: &Framing, cid: u16, status: StatusField) -> Vec<u8> {
    let mut b = [0; 128];
    let n = CapsuleResp { cqe: Cqe::new(cid, status) }.encode(f, &mut b).unwrap();
    b[..n].to_vec()
}

fn c2h(f: &Framing, pdu: C2hData, data: &[u8]) -> Vec<u8> {
    let mut b = [0; 128];
    let n = pdu.encode(f, &mut b).unwrap();
    let mut out = b[..n].to_vec();
    out.extend_from_slice(data);
    if f.data_digest {
        out.extend_from_slice(&digest(0, data).to_le_bytes());
    }
    out
}

fn r2t(f: &Framing, cccid: u16, ttag: u16, offset: u32, length: u32) -> Vec<u8> {
    let mut b = [0; 128];
    let n = R2t { cccid, ttag, offset, length }.encode(f, &mut b).unwrap();
    b[..n].to_vec()
}

const PLAIN: Framing = Framing::NONE;
const OK: StatusField = StatusField::SUCCESS;

/// Reads back the PDUs of a byte stream that the host sent.
fn parse_sent(mut b: &[u8], f: &Framing) -> Vec<(CommonHeader, Vec<u8>, Vec<u8>)> {
    let mut pdus = vec![];
    while !b.is_empty() {
        let ch = CommonHeader::parse(b.first_chunk().unwrap(), Direction::HostToController, f).unwrap();
        ch.verify_header_digest(b).unwrap();
        let (head, rest) = b.split_at(ch.head_len());
        let (data, mut rest) = rest.split_at(ch.data_len() as usize);
        if ch.has_data_digest() {
            assert_eq!(rest[..4], digest(0, data).to_le_bytes());
            rest = &rest[4..];
        }
        pdus.push((ch, head.to_vec(), data.to_vec()));
        b = rest;
    }
    pdus
}

#[test]
fn initialization_negotiates() {
    let mut config = HostConfig::new(4);
    config.request = IcReq { header_digest: true, data_digest: true, max_r2t_z: 3, ..IcReq::default() };
    let mut shell = Shell::idle(config);
    assert_eq!(shell.conn.submit(&Sqe::flush(0, 1), DataPlan::None), Err(SubmitError::NotReady));
    assert_eq!(shell.conn.wants(), Want::Nothing);
    assert_eq!(shell.conn.handle_bytes(&[0]), Err(ProtocolError::NotWanted));
    shell.conn.start();
    let sent = shell.send_all();
    assert_eq!(&sent[..16], &[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0]);
    assert_eq!(shell.conn.wants(), Want::Header(8));
    let mut b = [0; 128];
    grant(true, false, 1, 4096).encode(&mut b).unwrap();
    shell.feed(&b).unwrap();
    let negotiated = *shell.conn.negotiated().unwrap();
    assert_eq!(shell.events, [Event::Ready(negotiated)]);
    assert!(negotiated.tx.header_digest && negotiated.rx.header_digest && !negotiated.tx.data_digest);
    assert_eq!((negotiated.tx.alignment.bytes(), negotiated.max_h2c_data), (8, 4096));
}

#[test]
fn initialization_is_refused() {
    let ask = |header_digest, data_digest| IcReq { header_digest, data_digest, ..IcReq::default() };
    let mut wanting = HostConfig::new(1);
    wanting.request = ask(true, true);
    wanting.require_header_digest = true;
    wanting.require_data_digest = true;
    for (config, resp, fes, fei) in [
        (HostConfig::new(1), grant(true, false, 0, 4096), Fes::InvalidHeaderField, 11),
        (HostConfig::new(1), grant(false, true, 0, 4096), Fes::InvalidHeaderField, 11),
        (wanting, grant(false, true, 0, 4096), Fes::UnsupportedParameter, 11),
        (wanting, grant(true, false, 0, 4096), Fes::UnsupportedParameter, 11),
        (HostConfig::new(1), grant(false, false, 0, 4092), Fes::InvalidHeaderField, 12),
    ] {
        let mut shell = Shell::idle(config);
        shell.conn.start();
        shell.send_all();
        let mut b = [0; 128];
        resp.encode(&mut b).unwrap();
        let e = shell.feed(&b).unwrap_err();
        assert_eq!((e.fes(), e.fei()), (Some(fes), fei), "{e}");
        let term = shell.conn.terminate_request().unwrap();
        assert_eq!(term.len(), 152);
        assert_eq!((term[0], term[8], term[10]), (2, fes.code() as u8, fei as u8));
        assert_eq!(&term[24..152], &b[..]);
    }
    // ICResp before ICReq has left, a second one, and a capsule before it.
    let mut b = [0; 128];
    grant(false, false, 0, 4096).encode(&mut b).unwrap();
    let mut shell = Shell::idle(HostConfig::new(1));
    shell.conn.start();
    assert_eq!(shell.feed(&b), Err(ProtocolError::OutOfSequence(PduType::IcResp)));
    assert_eq!(Shell::plain(1).feed(&b), Err(ProtocolError::OutOfSequence(PduType::IcResp)));
    let mut shell = Shell::idle(HostConfig::new(1));
    shell.conn.start();
    shell.send_all();
    let e = shell.feed(&response(&PLAIN, 0, OK));
    assert_eq!(e, Err(ProtocolError::OutOfSequence(PduType::CapsuleResp)));
    assert_eq!(HostConnection::new(HostConfig::new(0)).err(), Some(ConfigError::Depth(0)));
    assert_eq!(HostConnection::new(HostConfig::new(1025)).err(), Some(ConfigError::Depth(1025)));
}

#[test]
fn read_with_response_and_with_success_flag() {
    let mut s = Shell::plain(2);
    let slot = s.conn.submit(&Sqe::read(0, 1, 0, 7, false), READ).unwrap();
    let cid = s.conn.cid(slot).unwrap();
    let sent = s.send_all();
    let pdus = parse_sent(&sent, &PLAIN);
    let cmd = CapsuleCmd::parse(&pdus[0].0, &pdus[0].1).unwrap();
    assert_eq!(cmd.sqe.sgl(), SglDescriptor::Transport { length: 4096 });
    assert_eq!((cmd.sqe.cid(), cmd.sqe.psdt()), (cid, 1));
    let data = data_of(slot, 0, 4096);
    let pdu = |offset, length, last, success| C2hData { cccid: cid, offset, length, last, success };
    s.feed(&c2h(&PLAIN, pdu(0, 1000, false, false), &data[..1000])).unwrap();
    s.feed(&c2h(&PLAIN, pdu(1000, 3096, true, false), &data[1000..])).unwrap();
    assert!(s.events.is_empty());
    s.feed(&response(&PLAIN, cid, OK)).unwrap();
    assert_eq!(s.completed(), (slot, OK, 4096));
    assert!(s.moved.iter().all(|&(sl, at, b)| sl == slot && b == pattern(slot, at)));
    assert_eq!(s.moved.len(), 4096);

    let slot = s.conn.submit(&Sqe::read(0, 1, 0, 7, false), READ).unwrap();
    let cid = s.conn.cid(slot).unwrap();
    s.send_all();
    let pdu = C2hData { cccid: cid, offset: 0, length: 4096, last: true, success: true };
    s.feed(&c2h(&PLAIN, pdu, &data)).unwrap();
    assert_eq!(s.completed(), (slot, OK, 4096));
    assert_eq!(s.conn.in_flight(), 0);
    // The answer that must not follow names a command that is over.
    let e = s.feed(&response(&PLAIN, cid, OK)).unwrap_err();
    assert_eq!((e.fes(), e.fei()), (Some(Fes::InvalidHeaderField), 20));
}

#[test]
fn fewer_data_are_fine_where_the_command_allows() {
    let mut s = Shell::plain(1);
    let plan = DataPlan::ToHost { len: 4096, exact: false };
    let slot = s.conn.submit(&Sqe::get_features(0, 0, 0x81), plan).unwrap();
    let cid = s.conn.cid(slot).unwrap();
    s.send_all();
    let pdu = C2hData { cccid: cid, offset: 0, length: 16, last: true, success: false };
    s.feed(&c2h(&PLAIN, pdu, &[9; 16])).unwrap();
    s.feed(&response(&PLAIN, cid, OK)).unwrap();
    assert_eq!(s.completed(), (slot, OK, 16));
    // A read that failed needs no data.
    let slot = s.conn.submit(&Sqe::read(0, 1, 0, 7, false), READ).unwrap();
    s.send_all();
    let status = StatusField::UNRECOVERED_READ_ERROR.with_dnr();
    s.feed(&response(&PLAIN, s.conn.cid(slot).unwrap(), status)).unwrap();
    assert_eq!(s.completed(), (slot, status, 0));
}

#[test]
fn write_in_the_capsule_and_by_r2t() {
    for (hd, dd, cpda) in [(false, false, 0), (true, false, 0), (false, true, 3), (true, true, 31)] {
        let mut config = HostConfig::new(2);
        config.request = IcReq { header_digest: hd, data_digest: dd, max_r2t_z: 1, ..IcReq::default() };
        let mut s = Shell::ready(config, grant(hd, dd, cpda, 4096));
        let (tx, rx) = (s.conn.negotiated().unwrap().tx, s.conn.negotiated().unwrap().rx);
        let slot = s.conn.submit(&Sqe::write(0, 1, 0, 7, false), write(4096)).unwrap();
        let pdus = parse_sent(&s.send_all(), &tx);
        assert_eq!(pdus.len(), 1);
        assert_eq!(pdus[0].2, data_of(slot, 0, 4096));
        let cmd = CapsuleCmd::parse(&pdus[0].0, &pdus[0].1).unwrap();
        assert_eq!(cmd.sqe.sgl(), SglDescriptor::InCapsule { offset: 0, length: 4096 });
        s.feed(&response(&rx, cmd.sqe.cid(), OK)).unwrap();
        assert_eq!(s.completed(), (slot, OK, 0));

        let slot = s.conn.submit(&Sqe::write(0, 1, 0, 31, false), write(16384)).unwrap();
        let pdus = parse_sent(&s.send_all(), &tx);
        let cid = CapsuleCmd::parse(&pdus[0].0, &pdus[0].1).unwrap().sqe.cid();
        assert_eq!(pdus[0].2.len(), 0);
        s.feed(&r2t(&rx, cid, 7, 0, 10000)).unwrap();
        s.feed(&r2t(&rx, cid, 8, 10000, 6384)).unwrap();
        let pdus = parse_sent(&s.send_all(), &tx);
        let want = [
            (7, 0, 4096, false),
            (7, 4096, 4096, false),
            (7, 8192, 1808, true),
            (8, 10000, 4096, false),
            (8, 14096, 2288, true),
        ];
        assert_eq!(pdus.len(), want.len());
        for ((ch, head, data), (ttag, offset, length, last)) in pdus.iter().zip(want) {
            let pdu = H2cData::parse(ch, head).unwrap();
            assert_eq!(pdu, H2cData { cccid: cid, ttag, offset, length, last });
            assert_eq!(*data, data_of(slot, offset, length));
        }
        s.feed(&response(&rx, cid, OK)).unwrap();
        assert_eq!(s.completed().1, OK);
    }
}

#[test]
fn data_that_are_dropped_make_room_for_those_that_wait() {
    let mut s = Shell::ready(HostConfig { in_capsule_bytes: 0, ..HostConfig::new(2) }, grant(false, false, 0, 4096));
    let len = 40 * 4096;
    let cids = [0, 1].map(|_| {
        let slot = s.conn.submit(&Sqe::write(0, 1, 0, 319, false), write(len)).unwrap();
        s.conn.cid(slot).unwrap()
    });
    s.send_all();
    for (cid, tag) in cids.into_iter().zip(1..) {
        s.feed(&r2t(&PLAIN, cid, tag, 0, len)).unwrap();
    }
    assert!(parse_sent(&s.pending(), &PLAIN).iter().all(|(_, head, _)| head[8..10] == cids[0].to_le_bytes()));
    s.feed(&response(&PLAIN, cids[0], StatusField::WRITE_FAULT)).unwrap();
    assert_eq!(s.completed().1, StatusField::WRITE_FAULT);
    let sent = parse_sent(&s.send_all(), &PLAIN);
    assert_eq!(sent.len(), 40, "nothing but the other command's data is left, and nobody else would start them");
    assert!(sent.iter().all(|(_, head, _)| head[8..10] == cids[1].to_le_bytes()));
    s.feed(&response(&PLAIN, cids[1], OK)).unwrap();
    assert_eq!(s.completed().1, OK);
}

#[test]
fn r2t_of_many_small_pdus_passes_the_quota() {
    let mut s = Shell::ready(HostConfig::new(1), grant(false, false, 0, 4096));
    let len = 1 << 20;
    let slot = s.conn.submit(&Sqe::write(0, 1, 0, 0, false), write(len)).unwrap();
    s.send_all();
    let cid = s.conn.cid(slot).unwrap();
    s.feed(&r2t(&PLAIN, cid, 1, 0, len)).unwrap();
    assert!(parse_sent(&s.pending(), &PLAIN).len() <= 32);
    let pdus = parse_sent(&s.send_all(), &PLAIN);
    assert_eq!(pdus.len(), 256);
    assert!(pdus.iter().enumerate().all(|(i, p)| p.0.is_last() == (i == 255)));
    s.feed(&response(&PLAIN, cid, OK)).unwrap();
    assert_eq!(s.completed(), (slot, OK, len));
}

#[test]
fn violations_cost_the_connection() {
    use ProtocolError as E;
    // Slot 0 is a read of 4096, slot 1 a write of 16384 by R2T, slot 2 a write in the capsule; slot 3 is not
    // in use. All generations are 0, so identifiers are slots.
    let data = |cccid, offset, length, last, success| C2hData { cccid, offset, length, last, success };
    let zeroes = vec![0; 8192];
    let two = |a: Vec<u8>, b: Vec<u8>| [a, b].concat();
    let (kd, kr, kc) = (PduType::C2hData, PduType::R2t, PduType::CapsuleResp);
    let table: Vec<(&str, Vec<u8>, E, Option<Fes>)> = vec![
        (
            "impossible CID",
            response(&PLAIN, 0x3ff, OK),
            E::UnknownCommand { kind: kc, cid: 0x3ff },
            Some(Fes::InvalidHeaderField),
        ),
        ("free slot", response(&PLAIN, 3, OK), E::UnknownCommand { kind: kc, cid: 3 }, Some(Fes::InvalidHeaderField)),
        (
            "stale CID",
            response(&PLAIN, 1 << 10, OK),
            E::UnknownCommand { kind: kc, cid: 1 << 10 },
            Some(Fes::InvalidHeaderField),
        ),
        (
            "data of nobody",
            c2h(&PLAIN, data(9, 0, 4, true, false), &zeroes[..4]),
            E::UnknownCommand { kind: kd, cid: 9 },
            Some(Fes::InvalidHeaderField),
        ),
        (
            "data for a write",
            c2h(&PLAIN, data(1, 0, 4, true, false), &zeroes[..4]),
            E::Unexpected { kind: kd, cid: 1 },
            Some(Fes::SequenceError),
        ),
        (
            "too much data",
            c2h(&PLAIN, data(0, 0, 4100, true, false), &zeroes[..4100]),
            E::OutOfRange { kind: kd, cid: 0, offset: 0, length: 4100, have: 4096 },
            Some(Fes::OutOfRange),
        ),
        (
            "offset wraps",
            c2h(&PLAIN, data(0, u32::MAX - 3, 8, true, false), &zeroes[..8]),
            E::OutOfRange { kind: kd, cid: 0, offset: u32::MAX - 3, length: 8, have: 4096 },
            Some(Fes::OutOfRange),
        ),
        (
            "gap in data",
            c2h(&PLAIN, data(0, 4, 4, true, false), &zeroes[..4]),
            E::NotContiguous { kind: kd, cid: 0, offset: 4, expected: 0 },
            Some(Fes::SequenceError),
        ),
        (
            "data after the last",
            two(
                c2h(&PLAIN, data(0, 0, 4, true, false), &zeroes[..4]),
                c2h(&PLAIN, data(0, 4, 4, true, false), &zeroes[..4]),
            ),
            E::Unexpected { kind: kd, cid: 0 },
            Some(Fes::SequenceError),
        ),
        (
            "success, data missing",
            response(&PLAIN, 0, OK),
            E::ShortTransfer { cid: 0, moved: 0, have: 4096 },
            Some(Fes::SequenceError),
        ),
        (
            "success flag, data missing",
            c2h(&PLAIN, data(0, 0, 4, true, true), &zeroes[..4]),
            E::ShortTransfer { cid: 0, moved: 4, have: 4096 },
            Some(Fes::SequenceError),
        ),
        (
            "write without its data",
            response(&PLAIN, 1, OK),
            E::ShortTransfer { cid: 1, moved: 0, have: 16384 },
            Some(Fes::SequenceError),
        ),
        ("R2T for a read", r2t(&PLAIN, 0, 1, 0, 4096), E::Unexpected { kind: kr, cid: 0 }, Some(Fes::SequenceError)),
        (
            "R2T for in-capsule data",
            r2t(&PLAIN, 2, 1, 0, 4096),
            E::Unexpected { kind: kr, cid: 2 },
            Some(Fes::SequenceError),
        ),
        (
            "R2T out of range",
            r2t(&PLAIN, 1, 1, 0, 16388),
            E::OutOfRange { kind: kr, cid: 1, offset: 0, length: 16388, have: 16384 },
            Some(Fes::OutOfRange),
        ),
        (
            "R2T with a gap",
            r2t(&PLAIN, 1, 1, 4, 4),
            E::NotContiguous { kind: kr, cid: 1, offset: 4, expected: 0 },
            Some(Fes::SequenceError),
        ),
        (
            "too many R2T",
            two(r2t(&PLAIN, 1, 1, 0, 4), r2t(&PLAIN, 1, 2, 4, 4)),
            E::R2tLimit { cid: 1, limit: 1 },
            Some(Fes::LimitExceeded),
        ),
        (
            "success before the data have left",
            two(r2t(&PLAIN, 1, 1, 0, 16384), response(&PLAIN, 1, OK)),
            E::Unexpected { kind: kc, cid: 1 },
            Some(Fes::SequenceError),
        ),
        (
            "second answer",
            two(response(&PLAIN, 2, OK), response(&PLAIN, 2, OK)),
            E::UnknownCommand { kind: kc, cid: 2 },
            Some(Fes::InvalidHeaderField),
        ),
        (
            "a PDU of our own",
            vec![4, 0, 72, 0, 72, 0, 0, 0],
            E::Pdu(PduError::WrongDirection(PduType::CapsuleCmd)),
            Some(Fes::InvalidHeaderField),
        ),
        (
            "terminate",
            {
                let mut b = [0; 152];
                let n = TermReq::new(Direction::ControllerToHost, Fes::OutOfRange, 0, &[]).encode(&mut b).unwrap();
                b[..n].to_vec()
            },
            E::Terminated { fes: Fes::OutOfRange, fei: 0 },
            None,
        ),
        ("terminate too long", vec![3, 0, 24, 0, 153, 0, 0, 0], E::Pdu(PduError::TermLength(153)), None),
    ];
    for (name, bytes, error, fes) in table {
        let mut s = Shell::plain(4);
        assert_eq!(s.conn.submit(&Sqe::read(0, 1, 0, 7, false), READ), Ok(0));
        assert_eq!(s.conn.submit(&Sqe::write(0, 1, 0, 31, false), write(16384)), Ok(1));
        assert_eq!(s.conn.submit(&Sqe::write(0, 1, 0, 7, false), write(4096)), Ok(2));
        s.send_all();
        assert_eq!(s.feed(&bytes), Err(error), "{name}");
        assert_eq!(error.fes(), fes, "{name}");
        assert!(s.conn.is_closed() && s.pending().is_empty(), "{name}");
        assert_eq!(s.conn.wants(), Want::Nothing);
        assert_eq!(s.conn.terminate_request().is_some(), fes.is_some(), "{name}");
        if let (Some(term), Some(fes)) = (s.conn.terminate_request(), fes) {
            let ch = CommonHeader::parse(term.first_chunk().unwrap(), Direction::HostToController, &PLAIN).unwrap();
            let term = TermReq::parse(&ch, term).unwrap();
            assert_eq!((term.fes, term.fei), (fes, error.fei()), "{name}");
        }
        let done = s.events.len();
        let outcomes = s.outcomes();
        assert_eq!(outcomes.len() + done, 3, "{name}");
        assert!(outcomes.iter().all(|o| o.1 == Outcome::Unknown), "{name}: {outcomes:?}");
        assert!(s.conn.poll_outcome().is_none());
    }
}

#[test]
fn success_flag_needs_flow_control_off_and_r2t_limits_hold() {
    let mut config = HostConfig::new(1);
    config.sq_flow_control = true;
    let mut s = Shell::ready(config, grant(false, false, 0, 4096));
    s.conn.submit(&Sqe::read(0, 1, 0, 7, false), READ).unwrap();
    s.send_all();
    let pdu = C2hData { cccid: 0, offset: 0, length: 4096, last: true, success: true };
    let e = s.feed(&c2h(&PLAIN, pdu, &[0; 4096])).unwrap_err();
    assert_eq!((e, e.fei()), (ProtocolError::SuccessNotAllowed(0), 1));
}

#[test]
fn answers_before_the_question_are_refused() {
    let mut s = Shell::plain(2);
    let slot = s.conn.submit(&Sqe::flush(0, 1), DataPlan::None).unwrap();
    let e = s.feed(&response(&PLAIN, slot, OK)).unwrap_err();
    assert_eq!(e, ProtocolError::Premature { kind: PduType::CapsuleResp, cid: slot });
    assert_eq!(s.outcomes(), [(slot, Outcome::NotSent)]);
}

#[test]
fn digest_errors() {
    let mut config = HostConfig::new(1);
    config.request = IcReq { header_digest: true, data_digest: true, ..IcReq::default() };
    for (at, fatal) in [(30, true), (30, false), (26, true), (26, false)] {
        config.data_digest_fatal = fatal;
        let mut s = Shell::ready(config, grant(true, true, 0, 4096));
        let rx = s.conn.negotiated().unwrap().rx;
        let slot = s.conn.submit(&Sqe::read(0, 1, 0, 7, false), READ).unwrap();
        s.send_all();
        let pdu = C2hData { cccid: 0, offset: 0, length: 4096, last: true, success: true };
        let mut b = c2h(&rx, pdu, &[5; 4096]);
        b[at] ^= 1;
        let result = s.feed(&b);
        match (at, fatal) {
            (26, _) => {
                let e = result.unwrap_err();
                assert!(matches!(e, ProtocolError::Pdu(PduError::HeaderDigest { .. })));
                assert_eq!(e.fes(), Some(Fes::HeaderDigest));
                let quoted = &s.conn.terminate_request().unwrap()[24..];
                assert_eq!(quoted, &b[..24]);
            }
            (_, true) => {
                assert!(matches!(result, Err(ProtocolError::DataDigest { cid: 0, .. })));
                assert_eq!(s.conn.terminate_request(), None);
                assert_eq!(s.outcomes(), [(slot, Outcome::Unknown)]);
            }
            (_, false) => {
                result.unwrap();
                assert_eq!(s.completed(), (slot, StatusField::TRANSIENT_TRANSPORT_ERROR, 4096));
                assert!(s.conn.is_ready());
            }
        }
    }
}

#[test]
fn what_was_not_handed_to_the_socket_is_not_sent() {
    let mut s = Shell::plain(4);
    for _ in 0..4 {
        s.conn.submit(&Sqe::flush(0, 1), DataPlan::None).unwrap();
    }
    assert_eq!(s.conn.submit(&Sqe::flush(0, 1), DataPlan::None), Err(SubmitError::Full));
    assert!(s.conn.withdraw(1));
    assert!(!s.conn.withdraw(1) && !s.conn.withdraw(77));
    assert_eq!(s.conn.in_flight(), 3);
    s.conn.sent(72 + 1); // slot 0, and one octet of slot 2
    assert!(!s.conn.withdraw(2) && !s.conn.withdraw(0));
    assert_eq!(parse_sent(&s.pending()[71..], &PLAIN).len(), 1);
    s.feed(&response(&PLAIN, 0, OK)).unwrap();
    s.conn.close();
    assert_eq!(s.completed().0, 0);
    assert_eq!(s.conn.terminate_request(), None);
    assert_eq!(s.outcomes(), [(2, Outcome::Unknown), (3, Outcome::NotSent)]);
    // What has left in part counts, and is over when the rest has left.
    let mut s = Shell::plain(3);
    for _ in 0..3 {
        s.conn.submit(&Sqe::flush(0, 1), DataPlan::None).unwrap();
    }
    s.conn.sent(1);
    s.feed(&response(&PLAIN, 0, StatusField::ABORT_REQUESTED)).unwrap();
    assert!(s.events.is_empty(), "its octets are still on their way");
    s.conn.sent(71 + 1);
    s.conn.close();
    s.poll_events();
    assert_eq!(s.completed().0, 0);
    assert_eq!(s.outcomes(), [(1, Outcome::Unknown), (2, Outcome::NotSent)]);
}

#[test]
fn events_not_fetched_come_out_as_finished() {
    let mut s = Shell::plain(1);
    s.conn.submit(&Sqe::flush(0, 1), DataPlan::None).unwrap();
    s.send_all();
    s.conn.handle_bytes(&response(&PLAIN, 0, StatusField::INTERNAL_ERROR)).unwrap();
    assert_eq!(s.conn.in_flight(), 1);
    s.conn.close();
    let cqe = Cqe::new(0, StatusField::INTERNAL_ERROR);
    assert_eq!(s.outcomes(), [(0, Outcome::Finished(cqe))]);
}

#[test]
fn an_early_error_stops_the_data_that_have_not_left() {
    let mut s = Shell::ready(HostConfig::new(2), grant(false, false, 0, 4096));
    let slot = s.conn.submit(&Sqe::write(0, 1, 0, 31, false), write(16384)).unwrap();
    s.send_all();
    s.feed(&r2t(&PLAIN, 0, 1, 0, 16384)).unwrap();
    s.conn.sent(100); // into the first H2CData
    let status = StatusField::WRITE_FAULT;
    s.feed(&response(&PLAIN, 0, status)).unwrap();
    assert!(s.events.is_empty(), "the first H2CData is half sent");
    let rest = s.pending();
    assert_eq!(rest.len(), 24 + 4096 - 100);
    s.conn.sent(rest.len());
    s.feed(&[]).unwrap();
    assert_eq!(s.completed(), (slot, status, 16384));
    assert!(!s.conn.has_output());
    // And with nothing sent, at once.
    let slot = s.conn.submit(&Sqe::write(0, 1, 0, 31, false), write(16384)).unwrap();
    s.send_all();
    let cid = s.conn.cid(slot).unwrap();
    s.feed(&r2t(&PLAIN, cid, 1, 0, 16384)).unwrap();
    s.feed(&response(&PLAIN, cid, status)).unwrap();
    assert_eq!(s.completed(), (slot, status, 16384));
    assert!(s.pending().is_empty() && !s.conn.has_output());
}
