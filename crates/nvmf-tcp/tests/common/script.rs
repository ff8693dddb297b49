//! A scripted controller in memory, behind the traits of `polypath-net`: octets without sockets, and no clock at all.
//!
//! It answers the whole bring-up and what keeps an association alive by itself. Commands of I/O queues, Aborts, event requests and
//! whatever the test [holds](Script::hold) stay open until the test answers them, in its own order and with its own words; the test
//! also resets, silences and narrows connections and changes what the controller shows.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of it")]

use polypath_block::Waits;
use polypath_net::{Counters, Dialer, Gather, Received, Scatter, Transport};
use polypath_nvme::fabrics::{ConnectResponse, fctype, property_get_response};
use polypath_nvme::features::{NumberOfQueues, fid};
use polypath_nvme::identify::{
    IdentifyController, IdentifyNamespace, NamespaceIds, build_namespace_list, cmic, cns, oaes, oncs,
};
use polypath_nvme::log::{AnaGroup, AnaLog, AnaState, AsyncEvent, EventKind, SmartLog, lid};
use polypath_nvme::properties::{Cap, Cc, Csts, Register, Version};
use polypath_nvme::sqe::{DataDirection, admin};
use polypath_nvme::{Cqe, SglDescriptor, Sqe, StatusField};
use polypath_nvmf_tcp::pdu::{
    C2hData, CH_LEN, CapsuleCmd, CapsuleResp, CommonHeader, DataAlignment, Direction, Framing, H2cData, IcResp,
    MAX_ENCODED_HEAD, PduType, R2t,
};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const NQN: &str = "nqn.2024-01.org.example:script";
/// Blocks of a namespace, unless a test says otherwise.
pub const BLOCKS: u64 = 1 << 20;
const CNTLID: u16 = 7;

/// A kind of admin command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Identify with this CNS.
    Identify(u8),
    /// Get Log Page with this identifier.
    Log(u8),
    KeepAlive,
    Abort,
    Event,
    Other,
}

/// One namespace that the controller shows.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Told in the identification descriptors only; all zeroes: no identifier at all.
    pub nguid: [u8; 16],
    /// Block size as a power of two.
    pub block_shift: u8,
    pub blocks: u64,
    /// What Identify Namespace says; the ANA log is a thing of its own.
    pub ana_group: u32,
}

impl Shown {
    pub fn new(id: u8) -> Shown {
        Shown { nguid: [id; 16], block_shift: 9, blocks: BLOCKS, ana_group: 1 }
    }
}

/// A command that waits for the test.
#[derive(Clone, Debug)]
pub struct Open {
    pub sqe: Sqe,
    /// Octets of write data that came, in the capsule or by R2T.
    pub data: usize,
}

/// One connection, from the dial on.
#[derive(Default)]
struct Connection {
    /// Known once Connect has come.
    qid: Option<u16>,
    from_host: Vec<u8>,
    to_host: Vec<u8>,
    /// Octets that `send` still takes.
    room: usize,
    /// Nothing that the controller says arrives.
    silent: bool,
    /// What the host's kernel says of acknowledgements.
    unacknowledged: Option<Duration>,
    reset: bool,
    /// The host has closed it.
    closed: bool,
    /// It did so abortively: nothing that waited in its kernel leaves any more.
    aborted: bool,
    /// Times the host has asked its kernel to receive or send.
    calls: u64,
    /// Octets the host has sent.
    octets: usize,
    /// How often the host has looked for octets.
    looks: usize,
    cc: u32,
    open: Vec<Open>,
    /// Every command that came.
    seen: Vec<Sqe>,
}

/// What the controller is, knows, and was told by the test.
pub struct State {
    pub namespaces: BTreeMap<u32, Shown>,
    /// Groups of the ANA log; none: no ANA.
    pub ana: Vec<(u32, AnaState, Vec<u32>)>,
    pub granted: u32,
    pub serial: String,
    /// Largest transfer as a power of two pages of 4 KiB.
    pub mdts: u8,
    /// CAP, and OAES of Identify Controller.
    pub cap: u64,
    pub oaes: u32,
    /// Most ANA groups there may be (NANAGRPID), and most namespaces (NN and MNAN).
    pub most_groups: u32,
    pub most_namespaces: u32,
    /// It has a volatile write cache, and lost its power so often.
    pub write_cache: bool,
    pub power_cycles: u128,
    /// So many answers to Get Log Page of the ANA log make no sense.
    pub babbled_ana: u32,
    hold: Vec<What>,
    refuse: Vec<(What, StatusField, u32)>,
    connections: Vec<Connection>,
    /// Connections are refused.
    unreachable: bool,
    /// Nothing arrives over connections that are dialled from now on.
    pub mute: bool,
}

/// The controller, as tests and dialer share it.
#[derive(Clone)]
pub struct Script(Arc<Mutex<State>>);

impl Script {
    /// One namespace (1), no ANA, 4 queues, transfers of 128 KiB, keep alive by 100 ms, a quiesce time of 50 ms.
    pub fn new() -> Script {
        Script(Arc::new(Mutex::new(State {
            namespaces: [(1, Shown::new(1))].into(),
            ana: Vec::new(),
            granted: 4,
            serial: "SERIAL".into(),
            mdts: 5,
            cap: Cap::CSS_NVM | 2 << 24 | 1023,
            oaes: oaes::NAMESPACE_ATTRIBUTES | oaes::ANA_CHANGE,
            most_groups: 8,
            most_namespaces: 16,
            write_cache: true,
            power_cycles: 3,
            babbled_ana: 0,
            hold: vec![What::Abort, What::Event],
            refuse: Vec::new(),
            connections: Vec::new(),
            unreachable: false,
            mute: false,
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// From now on admin commands of this kind wait for the test.
    pub fn hold(&self, what: What) {
        self.state().hold.push(what);
    }

    /// Answers the held admin commands of this kind with what is true now, and holds them no more.
    pub fn release(&self, what: What) {
        let mut state = self.state();
        state.hold.retain(|&h| h != what);
        let Some(at) = state.last(0) else { return };
        let (go, stay) =
            std::mem::take(&mut state.connections[at].open).into_iter().partition(|o| kind(&o.sqe) == what);
        state.connections[at].open = stay;
        let go: Vec<Open> = go;
        go.iter().for_each(|open| state.answer_admin(at, &open.sqe));
    }

    /// The next `times` admin commands of this kind are refused.
    pub fn refuse(&self, what: What, status: StatusField, times: u32) {
        self.state().refuse.push((what, status, times));
    }

    /// The controller can be dialled, or not.
    pub fn set_reachable(&self, reachable: bool) {
        self.state().unreachable = !reachable;
    }

    /// Open commands of the last connection of queue `qid`.
    pub fn open(&self, qid: u16) -> Vec<Open> {
        self.with(qid, |c| c.open.clone())
    }

    /// Identifiers of them.
    pub fn open_cids(&self, qid: u16) -> Vec<u16> {
        self.open(qid).iter().map(|open| open.sqe.cid()).collect()
    }

    /// Held admin commands of this kind.
    pub fn held(&self, what: What) -> Vec<Sqe> {
        self.open(0).iter().map(|open| open.sqe).filter(|sqe| kind(sqe) == what).collect()
    }

    /// Every command that came over the last connection of `qid`.
    pub fn seen(&self, qid: u16) -> Vec<Sqe> {
        self.with(qid, |c| c.seen.clone())
    }

    /// Admin commands of this kind over all connections so far.
    pub fn asked(&self, what: What) -> usize {
        let state = self.state();
        let admin = state.connections.iter().filter(|c| c.qid == Some(0));
        admin.map(|c| c.seen.iter().filter(|sqe| kind(sqe) == what).count()).sum()
    }

    /// Octets that came over the last connection of `qid`.
    pub fn octets(&self, qid: u16) -> usize {
        self.with(qid, |c| c.octets)
    }

    /// How often the host has looked for octets over the last connection of `qid`.
    pub fn looks(&self, qid: u16) -> usize {
        self.with(qid, |c| c.looks)
    }

    /// Connections that were dialled.
    pub fn dialled(&self) -> usize {
        self.state().connections.len()
    }

    /// Has the host closed the last connection of `qid`?
    pub fn is_closed(&self, qid: u16) -> bool {
        self.with(qid, |c| c.closed)
    }

    /// Was that abortive?
    pub fn is_aborted(&self, qid: u16) -> bool {
        self.with(qid, |c| c.aborted)
    }

    /// Times the host has asked its kernel for something over the last connection of `qid`.
    pub fn calls(&self, qid: u16) -> u64 {
        self.with(qid, |c| c.calls)
    }

    /// Answers an open command.
    pub fn answer(&self, qid: u16, cid: u16, status: StatusField) {
        self.answer_with(qid, Cqe::new(cid, status));
    }

    /// Answers an open command with this entry.
    pub fn answer_with(&self, qid: u16, cqe: Cqe) {
        self.with(qid, |c| {
            let at = c.open.iter().position(|open| open.sqe.cid() == cqe.cid).expect("the command is open");
            c.open.remove(at);
            c.say_answer(cqe);
        });
    }

    /// Answers a command that has not come whole yet.
    pub fn answer_early(&self, qid: u16, cqe: Cqe) {
        self.with(qid, |c| c.say_answer(cqe));
    }

    /// Answers every open command of `qid` with success, reads with zeroes.
    pub fn succeed_all(&self, qid: u16) {
        for open in self.open(qid) {
            match open.sqe.data_direction() {
                DataDirection::ControllerToHost => self.answer_read(qid, open.sqe.cid(), 0),
                _ => self.answer(qid, open.sqe.cid(), StatusField::SUCCESS),
            }
        }
    }

    /// Answers an open read with data.
    pub fn answer_read(&self, qid: u16, cid: u16, fill: u8) {
        self.with(qid, |c| {
            let open = c.open.iter().find(|open| open.sqe.cid() == cid).expect("the read is open");
            let SglDescriptor::Transport { length } = open.sqe.sgl() else { panic!("a read without a length") };
            c.say_data(cid, &vec![fill; length as usize]);
        });
        self.answer(qid, cid, StatusField::SUCCESS);
    }

    /// Asks for all data of an open write.
    pub fn ask_data(&self, qid: u16, cid: u16) {
        self.with(qid, |c| {
            let open = c.open.iter().find(|open| open.sqe.cid() == cid).expect("the write is open");
            let SglDescriptor::Transport { length } = open.sqe.sgl() else { panic!("its data are in the capsule") };
            let mut head = [0; MAX_ENCODED_HEAD];
            let r2t = R2t { cccid: cid, ttag: cid, offset: 0, length };
            let n = r2t.encode(&Framing::NONE, &mut head).unwrap();
            c.to_host.extend_from_slice(&head[..n]);
        });
    }

    /// Answers a held Abort: `aborted` is what it says of the command.
    pub fn answer_abort(&self, cid: u16, aborted: bool) {
        self.answer_with(0, Cqe::new(cid, StatusField::SUCCESS).with_result(u64::from(!aborted)));
    }

    /// Raises an event; a request for it must be open.
    pub fn event(&self, kind: EventKind) {
        let page = if kind == EventKind::AnaChanged { lid::ANA } else { lid::CHANGED_NAMESPACES };
        let cid = self.held(What::Event).first().expect("an event request is open").cid();
        let dw0 = AsyncEvent { kind, log_page: page }.to_dw0();
        self.answer_with(0, Cqe::new(cid, StatusField::SUCCESS).with_result(dw0.into()));
    }

    /// Resets the last connection of `qid`.
    pub fn reset(&self, qid: u16) {
        self.with(qid, |c| c.reset = true);
    }

    /// Sends what is no PDU.
    pub fn babble(&self, qid: u16) {
        self.with(qid, |c| c.to_host.extend_from_slice(&[0xff; 64]));
    }

    /// From now on nothing arrives at the host over the last connection of `qid`; `cut`: its kernel notices that.
    pub fn silence(&self, qid: u16, cut: bool) {
        self.with(qid, |c| (c.silent, c.unacknowledged) = (true, cut.then_some(Duration::from_secs(3600))));
    }

    /// Ends [`Script::silence`].
    pub fn speak(&self, qid: u16) {
        self.with(qid, |c| (c.silent, c.unacknowledged) = (false, None));
    }

    /// The last connection of `qid` takes so many more octets from the host.
    pub fn set_room(&self, qid: u16, room: usize) {
        self.with(qid, |c| c.room = room);
    }

    fn with<T>(&self, qid: u16, of: impl FnOnce(&mut Connection) -> T) -> T {
        let mut state = self.state();
        let at = state.last(qid).unwrap_or_else(|| panic!("queue {qid} was never connected"));
        of(&mut state.connections[at])
    }
}

/// Which kind of admin command is it?
pub fn kind(sqe: &Sqe) -> What {
    match sqe.opcode() {
        admin::IDENTIFY => What::Identify(sqe.cns()),
        admin::GET_LOG_PAGE => What::Log(sqe.lid()),
        admin::KEEP_ALIVE => What::KeepAlive,
        admin::ABORT => What::Abort,
        admin::ASYNC_EVENT_REQUEST => What::Event,
        _ => What::Other,
    }
}

impl State {
    /// Shows a namespace, perhaps instead of another one.
    pub fn show(&mut self, nsid: u32, shown: Shown) {
        self.namespaces.insert(nsid, shown);
    }

    fn last(&self, qid: u16) -> Option<usize> {
        self.connections.iter().rposition(|c| c.qid == Some(qid))
    }

    /// Takes what the host has sent over connection `at`, PDU by PDU.
    fn take(&mut self, at: usize) {
        loop {
            let c = &mut self.connections[at];
            let Some(first) = c.from_host.first_chunk::<CH_LEN>() else { return };
            let ch = CommonHeader::parse(first, Direction::HostToController, &Framing::NONE).expect("a legal PDU");
            if c.from_host.len() < ch.plen as usize {
                return;
            }
            let pdu: Vec<u8> = c.from_host.drain(..ch.plen as usize).collect();
            let head = &pdu[..ch.head_len()];
            match ch.kind {
                PduType::IcReq => c.say_icresp(),
                PduType::CapsuleCmd => {
                    let capsule = CapsuleCmd::parse(&ch, head).unwrap();
                    self.command(at, capsule.sqe, capsule.data_len as usize);
                }
                PduType::H2cData => {
                    let data = H2cData::parse(&ch, head).unwrap();
                    let open = c.open.iter_mut().find(|open| open.sqe.cid() == data.cccid);
                    open.expect("data belong to an open command").data += data.length as usize;
                }
                // The host ends the connection; what it says does not matter.
                _ => {}
            }
        }
    }

    fn command(&mut self, at: usize, sqe: Sqe, data: usize) {
        let c = &mut self.connections[at];
        if sqe.opcode() == admin::FABRICS && sqe.fctype() == fctype::CONNECT {
            c.qid = Some(sqe.connect_qid());
            let answer = ConnectResponse::Connected { cntlid: CNTLID, authentication: 0 };
            return c.say_answer(answer.to_cqe(sqe.cid()));
        }
        c.seen.push(sqe);
        if c.qid != Some(0) || self.hold.contains(&kind(&sqe)) {
            return c.open.push(Open { sqe, data });
        }
        self.answer_admin(at, &sqe);
    }

    fn answer_admin(&mut self, at: usize, sqe: &Sqe) {
        if let Some((_, status, times)) = self.refuse.iter_mut().find(|(w, _, n)| *w == kind(sqe) && *n > 0) {
            *times -= 1;
            let cqe = Cqe::new(sqe.cid(), *status);
            return self.connections[at].say_answer(cqe);
        }
        let success = Cqe::new(sqe.cid(), StatusField::SUCCESS);
        let (cqe, data) = match sqe.opcode() {
            admin::FABRICS => (self.property(at, sqe), Vec::new()),
            admin::SET_FEATURES if sqe.fid() == fid::NUMBER_OF_QUEUES => {
                let granted = NumberOfQueues::pairs(self.granted).to_dword();
                (success.with_result(granted.into()), Vec::new())
            }
            admin::IDENTIFY => match self.identify(sqe) {
                Some(data) => (success, data),
                None => (Cqe::new(sqe.cid(), StatusField::INVALID_NAMESPACE.with_dnr()), Vec::new()),
            },
            admin::GET_LOG_PAGE => (success, self.log(sqe)),
            _ => (success, Vec::new()),
        };
        let c = &mut self.connections[at];
        if !data.is_empty() {
            c.say_data(sqe.cid(), &data);
        }
        c.say_answer(cqe);
    }

    fn property(&mut self, at: usize, sqe: &Sqe) -> Cqe {
        let (c, register) = (&mut self.connections[at], sqe.property().unwrap());
        if sqe.fctype() == fctype::PROPERTY_SET {
            if register == Register::Cc {
                c.cc = sqe.property_value() as u32;
            }
            return Cqe::new(sqe.cid(), StatusField::SUCCESS);
        }
        let value = match register {
            Register::Cap => self.cap,
            Register::Vs => Version::new(2, 0, 0).0.into(),
            Register::Cc => c.cc.into(),
            Register::Csts if Cc(c.cc).is_enabled() => Csts::RDY.bits().into(),
            _ => 0,
        };
        property_get_response(sqe.cid(), value)
    }

    fn identify(&self, sqe: &Sqe) -> Option<Vec<u8>> {
        let shown = self.namespaces.get(&sqe.nsid());
        Some(match sqe.cns() {
            cns::CONTROLLER => self.identify_controller().to_bytes().to_vec(),
            cns::ACTIVE_NAMESPACES => build_namespace_list(self.namespaces.keys().copied(), sqe.nsid()).to_vec(),
            cns::NAMESPACE => shown.map(identify_namespace)?.to_bytes().to_vec(),
            cns::NAMESPACE_DESCRIPTORS => {
                let nguid = Some(shown?.nguid).filter(|id| id.iter().any(|&b| b != 0));
                NamespaceIds { nguid, ..NamespaceIds::default() }.to_bytes().to_vec()
            }
            _ => return None,
        })
    }

    fn identify_controller(&self) -> IdentifyController {
        let mut identify = IdentifyController {
            cntlid: CNTLID,
            mdts: self.mdts,
            kas: 1,
            cqt_ms: 50,
            oaes: self.oaes,
            cmic: if self.ana.is_empty() { 0 } else { cmic::ANA },
            nanagrpid: self.most_groups,
            nn: self.most_namespaces,
            mnan: self.most_namespaces,
            lpa: 4,
            oncs: oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES,
            sqes: 0x66,
            cqes: 0x44,
            vwc: self.write_cache.into(),
            // 8 KiB in the capsule.
            ioccsz: (64 + 8192) / 16,
            iorcsz: 1,
            ..IdentifyController::default()
        };
        identify.set_names(&self.serial, "scripted", "1");
        identify.subnqn[..NQN.len()].copy_from_slice(NQN.as_bytes());
        identify
    }

    fn log(&mut self, sqe: &Sqe) -> Vec<u8> {
        let mut page = match sqe.lid() {
            lid::ANA if self.babbled_ana > 0 => {
                self.babbled_ana -= 1;
                return vec![0xff; sqe.log_length() as usize];
            }
            lid::ANA => {
                let groups = self.ana.iter();
                let groups =
                    groups.map(|(id, state, n)| AnaGroup { id: *id, change_count: 1, state: *state, nsids: n.clone() });
                AnaLog { change_count: 1, groups: groups.collect() }.to_bytes(false)
            }
            lid::SMART => SmartLog { power_cycles: self.power_cycles, ..SmartLog::default() }.to_bytes().to_vec(),
            _ => Vec::new(),
        };
        page.drain(..page.len().min(sqe.log_offset() as usize));
        page.resize(sqe.log_length() as usize, 0);
        page
    }
}

fn identify_namespace(shown: &Shown) -> IdentifyNamespace {
    let mut ns = IdentifyNamespace {
        nsze: shown.blocks,
        ncap: shown.blocks,
        anagrpid: shown.ana_group,
        ..IdentifyNamespace::default()
    };
    ns.lbaf[0].block_shift = shown.block_shift;
    ns
}

impl Connection {
    fn say_icresp(&mut self) {
        let resp = IcResp {
            alignment: DataAlignment::DWORD,
            header_digest: false,
            data_digest: false,
            max_h2c_data: 64 << 10,
        };
        let mut octets = [0; 128];
        resp.encode(&mut octets).unwrap();
        self.to_host.extend_from_slice(&octets);
    }

    fn say_answer(&mut self, cqe: Cqe) {
        let mut head = [0; MAX_ENCODED_HEAD];
        let n = CapsuleResp { cqe }.encode(&Framing::NONE, &mut head).unwrap();
        self.to_host.extend_from_slice(&head[..n]);
    }

    fn say_data(&mut self, cid: u16, data: &[u8]) {
        let mut head = [0; MAX_ENCODED_HEAD];
        let pdu = C2hData { cccid: cid, offset: 0, length: data.len() as u32, last: true, success: false };
        let n = pdu.encode(&Framing::NONE, &mut head).unwrap();
        self.to_host.extend_from_slice(&head[..n]);
        self.to_host.extend_from_slice(data);
    }
}

/// The host's end of one connection.
struct Wire {
    script: Script,
    at: usize,
}

impl Dialer for Script {
    fn dial(&self, _: SocketAddr) -> io::Result<Box<dyn Transport>> {
        let mut state = self.state();
        if state.unreachable {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let silent = state.mute;
        state.connections.push(Connection { room: usize::MAX, silent, ..Connection::default() });
        Ok(Box::new(Wire { script: self.clone(), at: state.connections.len() - 1 }))
    }
}

impl Wire {
    fn with<T>(&self, of: impl FnOnce(&mut Connection) -> T) -> T {
        of(&mut self.script.state().connections[self.at])
    }

    fn usable(&self) -> io::Result<()> {
        let broken = self.with(|c| c.reset || c.closed);
        if broken { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl Transport for Wire {
    fn poll_connected(&mut self) -> io::Result<bool> {
        self.usable().map(|()| true)
    }

    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        self.usable()?;
        Ok(self.with(|c| {
            c.calls += 1;
            c.looks += 1;
            if c.silent {
                return Received::Nothing;
            }
            let n = into.place(&c.to_host);
            c.to_host.drain(..n);
            if n > 0 { Received::Bytes(n) } else { Received::Nothing }
        }))
    }

    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize> {
        self.usable()?;
        let mut state = self.script.state();
        let c = &mut state.connections[self.at];
        c.calls += 1;
        let n = from.copy_to(&mut c.from_host, c.room);
        c.octets += n;
        c.room = c.room.saturating_sub(n);
        state.take(self.at);
        Ok(n)
    }

    fn arm(&self, _: &mut Waits, _: bool) {}

    fn unacknowledged(&self) -> Option<Duration> {
        self.with(|c| c.unacknowledged)
    }

    fn counters(&self) -> Counters {
        Counters { syscalls: self.with(|c| c.calls), ..Counters::default() }
    }

    fn abort(&mut self) {
        self.with(|c| (c.closed, c.aborted) = (true, true));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.with(|c| c.closed = true);
    }
}
