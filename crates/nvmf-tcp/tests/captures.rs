//! Golden octets: what Linux's NVMe/TCP initiator and Linux's target said to each other, recorded between two guests
//! (`tests/captures/NAME/README.md` says with what, `docs/TESTING-captures.md` how). None of these octets was made by our code, but
//! for the controller's side of `polypath-target-*`, which is there as a regression of that pair.
//!
//! What the commands mean is the matter of `golden.rs` in `polypath-nvme`; here it is PDUs, digests and the host's state machine.
#![forbid(unsafe_code)]

use polypath_net::plan::Chunk;
use polypath_nvme::fabrics::cattr;
use polypath_nvme::sqe::{DataDirection, admin};
use polypath_nvme::{SglDescriptor, Sqe};
use polypath_nvmf_tcp::pdu::*;
use polypath_nvmf_tcp::proto::{DataPlan, Event, HostConfig, HostConnection, Outcome, Want};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// One PDU as it was recorded.
struct Recorded {
    ch: CommonHeader,
    framing: Framing,
    octets: Vec<u8>,
}

/// A PDU's own fields.
#[derive(Clone, Copy)]
enum Fields {
    IcReq(IcReq),
    IcResp(IcResp),
    Cmd(CapsuleCmd),
    Resp(CapsuleResp),
    H2c(H2cData),
    C2h(C2hData),
    R2t(R2t),
}

impl Fields {
    fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        match self {
            Fields::IcReq(p) => p.encode(out),
            Fields::IcResp(p) => p.encode(out),
            Fields::Cmd(p) => p.encode(framing, out),
            Fields::Resp(p) => p.encode(framing, out),
            Fields::H2c(p) => p.encode(framing, out),
            Fields::C2h(p) => p.encode(framing, out),
            Fields::R2t(p) => p.encode(framing, out),
        }
    }

    fn cid(&self) -> u16 {
        match self {
            Fields::IcReq(_) | Fields::IcResp(_) => panic!("not about a command"),
            Fields::Cmd(p) => p.sqe.cid(),
            Fields::Resp(p) => p.cqe.cid,
            Fields::H2c(p) => p.cccid,
            Fields::C2h(p) => p.cccid,
            Fields::R2t(p) => p.cccid,
        }
    }

    fn with_cid(mut self, cid: u16) -> Self {
        match &mut self {
            Fields::IcReq(_) | Fields::IcResp(_) => panic!("not about a command"),
            Fields::Cmd(p) => p.sqe.set_cid(cid),
            Fields::Resp(p) => p.cqe.cid = cid,
            Fields::H2c(p) => p.cccid = cid,
            Fields::C2h(p) => p.cccid = cid,
            Fields::R2t(p) => p.cccid = cid,
        }
        self
    }
}

impl Recorded {
    fn fields(&self) -> Fields {
        let (ch, head) = (&self.ch, self.head());
        let fields = match ch.kind {
            PduType::IcReq => IcReq::parse(ch, head).map(Fields::IcReq),
            PduType::IcResp => IcResp::parse(ch, head).map(Fields::IcResp),
            PduType::CapsuleCmd => CapsuleCmd::parse(ch, head).map(Fields::Cmd),
            PduType::CapsuleResp => CapsuleResp::parse(ch, head).map(Fields::Resp),
            PduType::H2cData => H2cData::parse(ch, head).map(Fields::H2c),
            PduType::C2hData => C2hData::parse(ch, head).map(Fields::C2h),
            PduType::R2t => R2t::parse(ch, head).map(Fields::R2t),
            PduType::H2cTermReq | PduType::C2hTermReq => panic!("{}: nobody had a reason for it", ch.kind),
        };
        fields.unwrap_or_else(|e| panic!("{}: {e}", ch.kind))
    }

    fn head(&self) -> &[u8] {
        &self.octets[..self.ch.head_len()]
    }

    fn data(&self) -> &[u8] {
        &self.octets[self.ch.head_len()..][..self.ch.data_len() as usize]
    }

    /// The digests are those of the octets, by our CRC and by another's.
    fn check_digests(&self) -> Result<(), String> {
        self.ch.verify_header_digest(self.head()).map_err(|e| e.to_string())?;
        if self.ch.has_data_digest() {
            let received = u32::from_le_bytes(*self.octets.last_chunk().unwrap());
            let ours = digest(0, self.data());
            if received != ours || received != crc32c::crc32c(self.data()) {
                return Err(format!("data digest {received:#010x}, computed {ours:#010x}"));
            }
        }
        Ok(())
    }

    /// The same PDU about another command.
    fn with_cid(&self, cid: u16) -> Vec<u8> {
        written(&self.fields().with_cid(cid), &self.framing, self.data())
    }
}

/// A whole PDU of our making.
fn written(fields: &Fields, framing: &Framing, data: &[u8]) -> Vec<u8> {
    let mut head = [0xaa; MAX_ENCODED_HEAD];
    let n = fields.encode(framing, &mut head).unwrap();
    let mut pdu = [&head[..n], data].concat();
    if framing.data_digest && !data.is_empty() {
        pdu.extend(digest(0, data).to_le_bytes());
    }
    pdu
}

/// Both directions of one connection.
struct Connection {
    name: String,
    host: Vec<Recorded>,
    controller: Vec<Recorded>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")
}

fn split(octets: &[u8], from: Direction, negotiated: &Framing, name: &str) -> Vec<Recorded> {
    let mut pdus = Vec::new();
    let mut rest = octets;
    while !rest.is_empty() {
        let framing = if pdus.is_empty() { Framing::NONE } else { *negotiated };
        let at = octets.len() - rest.len();
        let first = rest.first_chunk().unwrap_or_else(|| panic!("{name}: half a PDU at {at}"));
        let ch = CommonHeader::parse(first, from, &framing).unwrap_or_else(|e| panic!("{name} at {at}: {e}"));
        let (pdu, after) = rest.split_at_checked(ch.plen as usize).expect("a capture ends with a whole PDU");
        pdus.push(Recorded { ch, framing, octets: pdu.to_vec() });
        rest = after;
    }
    pdus
}

fn connections() -> Vec<Connection> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let capture = entry.unwrap().path();
        if !capture.is_dir() {
            continue;
        }
        let short = capture.file_name().unwrap().to_string_lossy().into_owned();
        for n in 0.. {
            let Ok(host) = std::fs::read(capture.join(format!("host-to-controller.{n}.bin"))) else {
                assert!(n > 0, "{short} holds no connection");
                break;
            };
            let controller = std::fs::read(capture.join(format!("controller-to-host.{n}.bin"))).unwrap();
            all.push(connection(format!("{short} connection {n}"), &host, &controller));
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(all.len() >= 11, "captures are missing: {}", all.len());
    all
}

fn connection(name: String, host: &[u8], controller: &[u8]) -> Connection {
    let first = |octets: &[u8], from| split(&octets[..IC_LEN], from, &Framing::NONE, &name).remove(0).fields();
    let (Fields::IcReq(asked), Fields::IcResp(granted)) =
        (first(host, Direction::HostToController), first(controller, Direction::ControllerToHost))
    else {
        panic!("{name} does not begin with ICReq and ICResp")
    };
    assert_eq!(granted.check_against(&asked), Ok(()), "{name}");
    let (header_digest, data_digest) = (granted.header_digest, granted.data_digest);
    let to_controller = Framing { header_digest, data_digest, alignment: granted.alignment };
    let to_host = Framing { alignment: asked.alignment, ..to_controller };
    Connection {
        host: split(host, Direction::HostToController, &to_controller, &name),
        controller: split(controller, Direction::ControllerToHost, &to_host, &name),
        name,
    }
}

#[test]
fn every_pdu_is_read_and_written_back_octet_for_octet() {
    let mut kinds = BTreeMap::<u8, usize>::new();
    for c in connections() {
        for pdu in c.host.iter().chain(&c.controller) {
            pdu.check_digests().unwrap_or_else(|e| panic!("{}: {}: {e}", c.name, pdu.ch.kind));
            assert_eq!(written(&pdu.fields(), &pdu.framing, pdu.data()), pdu.octets, "{}: {}", c.name, pdu.ch.kind);
            *kinds.entry(pdu.ch.kind as u8).or_default() += 1;
        }
    }
    let seen: Vec<u8> = kinds.keys().copied().collect();
    // all but the terminate requests, for which well-behaved peers have no cause
    assert_eq!(seen, [0, 1, 4, 5, 6, 7, 9], "{kinds:?}");
}

#[test]
fn captures_have_every_framing_and_the_success_flag_where_it_belongs() {
    let mut framings = BTreeSet::new();
    for c in connections() {
        let framing = c.host.last().unwrap().framing;
        framings.insert((framing.header_digest, framing.data_digest));
        let success = c.controller.iter().filter(|p| p.ch.kind == PduType::C2hData && p.ch.is_success()).count();
        let data = c.controller.iter().filter(|p| p.ch.kind == PduType::C2hData).count();
        assert_eq!(success, if flow_control(&c) { 0 } else { data }, "{}", c.name);
    }
    assert_eq!(framings, BTreeSet::from([(false, false), (false, true), (true, false), (true, true)]));
}

#[test]
fn every_r2t_is_answered_with_its_tag_and_all_its_data() {
    let mut grants = 0;
    for c in connections() {
        let mut answers: VecDeque<H2cData> =
            c.host.iter().filter_map(|p| if let Fields::H2c(h) = p.fields() { Some(h) } else { None }).collect();
        for pdu in &c.controller {
            let Fields::R2t(r2t) = pdu.fields() else { continue };
            grants += 1;
            let mut covered = 0;
            while covered < r2t.length {
                let h2c = answers.pop_front().expect("an R2T is answered");
                assert_eq!(
                    (h2c.cccid, h2c.ttag, h2c.offset),
                    (r2t.cccid, r2t.ttag, r2t.offset + covered),
                    "{}",
                    c.name
                );
                covered += h2c.length;
                assert_eq!(h2c.last, covered == r2t.length, "{}", c.name);
            }
            assert_eq!(covered, r2t.length, "{}", c.name);
        }
        assert!(answers.is_empty(), "{}: data that nobody asked for", c.name);
    }
    assert!(grants >= 4, "{grants} R2T in all captures");
}

#[test]
fn one_wrong_bit_is_noticed_wherever_a_digest_covers_it() {
    let mut tried = 0;
    for c in connections() {
        for (n, pdu) in c.host.iter().chain(&c.controller).enumerate() {
            let len = pdu.octets.len();
            // one bit of the header behind the common one, one of the data; other places in every PDU
            let header = pdu.framing.header_digest.then(|| CH_LEN + n * 7 % (pdu.ch.kind.header_len() - CH_LEN));
            let data = pdu.ch.has_data_digest().then(|| pdu.ch.head_len() + n * 131 % (len - pdu.ch.head_len()));
            for at in header.into_iter().chain(data) {
                let mut octets = pdu.octets.clone();
                octets[at] ^= 1 << (n % 8);
                let wrong = Recorded { ch: pdu.ch, framing: pdu.framing, octets };
                assert!(wrong.check_digests().is_err(), "{}: {} with octet {at} wrong", c.name, pdu.ch.kind);
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

/// Whether Connect left SQ flow control on.
fn flow_control(c: &Connection) -> bool {
    let Fields::Cmd(connect) = c.host[1].fields() else { panic!("{}: no Connect", c.name) };
    connect.sqe.connect_cattr() & cattr::DISABLE_SQ_FLOW_CONTROL == 0
}

/// The host's state machine, given Linux's commands, sends what Linux sent; given the target's octets, it completes them as Linux's
/// commands were completed. Only command identifiers differ, so they are replaced (and the header digests with them).
///
/// The captures keep no time between the two directions: a command is submitted when the first answer to it is due, so commands that
/// overlapped may overlap less here.
#[test]
fn host_connection_says_what_linux_said_and_understands_what_linux_understood() {
    for c in connections() {
        Replay::run(&c);
    }
}

struct Replay<'a> {
    name: &'a str,
    /// Not an admin queue.
    io: bool,
    conn: HostConnection,
    to_send: VecDeque<&'a Recorded>,
    /// Slots of the commands in flight by their recorded identifier.
    live: BTreeMap<u16, u16>,
    out: BTreeMap<u16, &'a [u8]>,
    back: BTreeMap<u16, Vec<u8>>,
    finished: usize,
}

impl<'a> Replay<'a> {
    fn run(c: &'a Connection) {
        let Fields::IcReq(request) = c.host[0].fields() else { unreachable!() };
        let mut config = HostConfig::new(31);
        config.request = request;
        config.sq_flow_control = flow_control(c);
        config.in_capsule_bytes = in_capsule_bytes(c);
        let io = connect_qid(c) != 0;
        let conn = HostConnection::new(config).unwrap();
        let (to_send, live, out, back) =
            (c.host[1..].iter().collect(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut replay = Replay { name: &c.name, io, conn, to_send, live, out, back, finished: 0 };
        replay.conn.start();
        assert_eq!(replay.sent(), c.host[0].octets, "{}: ICReq", c.name);
        replay.receive(&c.controller[0].octets);
        assert!(matches!(replay.conn.poll_event(), Some(Event::Ready(_))), "{}", c.name);
        for pdu in &c.controller[1..] {
            replay.answer(pdu);
        }
        replay.end(c);
    }

    fn answer(&mut self, pdu: &Recorded) {
        let fields = pdu.fields();
        while !self.live.contains_key(&fields.cid()) {
            self.submit_next();
        }
        let slot = self.live[&fields.cid()];
        let cid = self.conn.cid(slot).unwrap();
        self.receive(&pdu.with_cid(cid));
        let done = match fields {
            Fields::R2t(_) => {
                let h2c = self.to_send.iter().position(|p| p.ch.kind == PduType::H2cData).expect("data for an R2T");
                let want = self.to_send.remove(h2c).unwrap().with_cid(cid);
                assert_eq!(self.sent(), want, "{}: H2CData", self.name);
                None
            }
            Fields::C2h(data) => {
                let range = data.offset as usize..(data.offset + data.length) as usize;
                assert_eq!(self.back[&slot][range], *pdu.data(), "{}", self.name);
                data.success.then_some((polypath_nvme::StatusField::SUCCESS, None))
            }
            Fields::Resp(resp) => Some((resp.cqe.status, Some(resp.cqe.result))),
            _ => unreachable!("a controller does not send it"),
        };
        let Some((status, result)) = done else { return assert_eq!(self.conn.poll_event(), None, "{}", self.name) };
        let Some(Event::Completed { slot: completed, cqe, received }) = self.conn.poll_event() else {
            panic!("{}: a completion was expected", self.name)
        };
        assert_eq!((completed, cqe.status, cqe.cid), (slot, status, cid), "{}", self.name);
        assert!(result.is_none_or(|r| r == cqe.result), "{}", self.name);
        // for a command with data to the controller the count says nothing about this buffer
        let wanted = self.back[&slot].len();
        assert!(
            wanted == 0 || !status.is_success() || received as usize == wanted,
            "{}: {received} of {wanted}",
            self.name
        );
        self.live.remove(&fields.cid());
        self.finished += 1;
    }

    /// Submits the next recorded command and compares what leaves.
    fn submit_next(&mut self) {
        let next = self.to_send.pop_front().unwrap_or_else(|| panic!("{}: an answer without a command", self.name));
        let Fields::Cmd(cmd) = next.fields() else { panic!("{}: a command was expected", self.name) };
        let len = cmd.sqe.sgl().length();
        let io = self.io && cmd.sqe.opcode() != admin::FABRICS;
        let plan = match (len, cmd.sqe.data_direction()) {
            (0, _) => DataPlan::None,
            (len, DataDirection::HostToController) => DataPlan::ToController { len, exact: true },
            (len, _) => DataPlan::ToHost { len, exact: io },
        };
        let slot = self.conn.submit(&bare(&cmd.sqe), plan).unwrap();
        self.live.insert(cmd.sqe.cid(), slot);
        let h2c = || self.to_send.iter().find(|p| p.ch.kind == PduType::H2cData && p.fields().cid() == cmd.sqe.cid());
        let data = match plan {
            DataPlan::ToController { .. } if cmd.data_len == 0 => h2c().expect("the data come later").data(),
            _ => next.data(),
        };
        self.out.insert(slot, data);
        let back = if let DataPlan::ToHost { len, .. } = plan { len as usize } else { 0 };
        self.back.insert(slot, vec![0; back]);
        let cid = self.conn.cid(slot).unwrap();
        assert_eq!(self.sent(), next.with_cid(cid), "{}: {:?}", self.name, cmd.sqe);
    }

    /// Everything that wants to leave.
    fn sent(&mut self) -> Vec<u8> {
        let data_of = |slot, offset: u32, len: u32| &self.out[&slot][offset as usize..(offset + len) as usize];
        while let Some(due) = self.conn.next_digest() {
            let crc = digest(0, data_of(due.slot, due.offset, due.len));
            self.conn.set_digest(due.token, crc.to_le_bytes());
        }
        let mut octets = Vec::new();
        for chunk in self.conn.transmit() {
            octets.extend_from_slice(match chunk {
                Chunk::Bytes(b) => b,
                Chunk::Data { slot, offset, len, .. } => data_of(slot, offset, len),
            });
        }
        self.conn.sent(octets.len());
        octets
    }

    /// Hands octets over in small and uneven portions.
    fn receive(&mut self, octets: &[u8]) {
        let (mut rest, mut crc, mut turn) = (octets, 0, 0);
        while !rest.is_empty() {
            turn += 1;
            let portion = &rest[..rest.len().min(1 + turn * 5 % 97)];
            let used = match self.conn.wants() {
                Want::Header(_) => self.conn.handle_bytes(portion),
                Want::Data { slot, offset, len } => {
                    let n = portion.len().min(len as usize);
                    let buffer = self.back.get_mut(&slot).expect("data for a command in flight");
                    buffer[offset as usize..][..n].copy_from_slice(&portion[..n]);
                    crc = digest(crc, &portion[..n]);
                    self.conn.data_moved(n as u32);
                    Ok(n)
                }
                Want::Digest(_) => self.conn.handle_digest(portion, crc),
                Want::Nothing => panic!("{}: the connection is closed", self.name),
            };
            rest = &rest[used.unwrap_or_else(|e| panic!("{}: {e}", self.name))..];
        }
    }

    fn end(mut self, c: &Connection) {
        let commands = c.host.iter().filter(|p| p.ch.kind == PduType::CapsuleCmd).count();
        assert_eq!((self.finished, self.to_send.len()), (commands, 0), "{}", self.name);
        self.conn.close();
        assert_eq!(self.conn.poll_outcome().filter(|o| !matches!(o.1, Outcome::Finished(_))), None, "{}", self.name);
    }
}

fn connect_qid(c: &Connection) -> u16 {
    let Fields::Cmd(connect) = c.host[1].fields() else { panic!("{}: no Connect", c.name) };
    connect.sqe.connect_qid()
}

/// What the controller takes in a capsule: 8192 on an admin queue, else as the captures were made (see their README).
fn in_capsule_bytes(c: &Connection) -> u32 {
    match connect_qid(c) {
        0 => ADMIN_IN_CAPSULE,
        _ if c.name.starts_with("linux-") => 4096,
        _ => 8192,
    }
}

/// The command without its data pointer, as a driver hands it to the connection.
fn bare(sqe: &Sqe) -> Sqe {
    let mut octets = *sqe.as_bytes();
    octets[1] &= 0x3f;
    octets[24..40].fill(0);
    assert!(!matches!(sqe.sgl(), SglDescriptor::Address { .. }), "fabrics have no addresses");
    Sqe::from_bytes(octets)
}
