//! The connection's state machine without a socket: what an initiator sends, and what must leave.

mod beneath;
mod ends;
mod hostile;

use super::*;
use crate::config::{ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};
use crate::conn::Ending;
use crate::faults::{Answer, Kind, Operation, Ops, Rule, Scope};
use crate::mail::{Announcement, Msg, ThreadHandle};
use crate::out::drain;
use crate::shared::{ConnInfo, HostLog};
use polypath_iscsi::login::{DigestOffer, InitiatorConfig, InitiatorLogin, InitiatorStep, Message, Negotiated, Offer};
use polypath_iscsi::pdu::{
    AsyncEvent, BHS_LEN, CommandResponse, DataOut, Framing, Header, InitiatorSn, Itt, LogoutReason, LogoutRequest,
    LogoutResult, Lun, NopOut, Pdu, RejectReason, Residual, Role, ScsiCommand, TaskAttribute, TaskFunction,
    TaskRequest, TaskResult, Ttt,
};
use polypath_iscsi::serial::{CmdSn, StatSn};
use polypath_scsi::cdb::{Cdb, RwFlags};
use polypath_scsi::opcode::pr_out;
use polypath_scsi::reservation::{PrOutData, ReservationType, scope_type};
use std::collections::VecDeque;

const IQN: &str = "iqn.2026-01.org.example:t";

fn target(change: impl FnOnce(&mut TargetConfig)) -> Iscsi {
    let mut config = TargetConfig {
        listeners: vec![ListenerConfig::iscsi("127.0.0.1:1"), ListenerConfig::iscsi("127.0.0.1:2")],
        subsystems: vec![SubsystemConfig {
            iqn: Some(IQN.into()),
            ..SubsystemConfig::new(
                "nqn.x",
                vec![NamespaceConfig::new("ram://1MiB"), NamespaceConfig::new("ram://1MiB")],
            )
        }],
        ..TargetConfig::default()
    };
    change(&mut config);
    let addresses = ["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
    let shared = Shared::new(config, &addresses, None).unwrap();
    assert!(shared.threads.set(vec![ThreadHandle::new().unwrap()]).is_ok());
    Iscsi::new(Arc::new(shared)).unwrap()
}

/// An initiator's end of one connection, and the target's.
struct Wire<'a> {
    iscsi: &'a Iscsi,
    conn: Conn,
    n: Box<Negotiated>,
    cmd_sn: u32,
    rules: Vec<Arc<Rule>>,
    now_us: u64,
    next: u32,
}

fn conn(iscsi: &Iscsi, id: u64, listener: usize) -> Conn {
    Conn::new(Arc::new(ConnInfo { id, listener, ..ConnInfo::default() }), iscsi, 0)
}

/// The octets of a PDU.
fn octets(pdu: Pdu, data: &[u8], framing: &Framing) -> Vec<u8> {
    let mut bytes = Vec::new();
    pdu.append(data, framing, &mut bytes).unwrap();
    bytes
}

/// PDUs of the target and their data.
fn read(bytes: &[u8], framing: &Framing) -> Vec<(Pdu, Vec<u8>)> {
    let mut list = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let bhs = rest.first_chunk::<BHS_LEN>().unwrap();
        let header = Header::parse(bhs, Role::Target, framing).unwrap();
        header.verify_header_digest(rest).unwrap();
        let (head, tail) = (header.head_len(), header.tail_len());
        let data = header.verified_data(&rest[head..]).unwrap().to_vec();
        list.push((Pdu::parse(&header, bhs).unwrap(), data));
        rest = &rest[head + tail..];
    }
    list
}

/// Logs in as far as it goes: until full feature phase, or until the target waits for something.
fn log_in(iscsi: &Iscsi, conn: &mut Conn, isid: Isid, offer: Offer) -> (InitiatorLogin, Option<Box<Negotiated>>) {
    let config = InitiatorConfig {
        initiator_name: Name::new("iqn.2026-01.org.example:i").unwrap(),
        initiator_alias: None,
        target_name: Some(Name::new(IQN).unwrap()),
        isid,
        cid: 3,
        itt: Itt::new(1).unwrap(),
        cmd_sn: CmdSn::new(100),
        chap: None,
        offer,
    };
    let mut login = InitiatorLogin::new(config);
    let mut message = login.start();
    let env = Env { now_us: 0, iscsi, rules: &[] };
    loop {
        let Message { pdu, text } = message;
        conn.receive(&env, &octets(Pdu::LoginRequest(pdu), &text, &Framing::LOGIN));
        let answers = read(&drain(&mut conn.out), &Framing::LOGIN);
        let Some((Pdu::LoginResponse(response), text)) = answers.into_iter().next() else { return (login, None) };
        match login.handle(&response, &text).unwrap() {
            InitiatorStep::Send(next) => message = next,
            InitiatorStep::Done(n) => return (login, Some(n)),
        }
    }
}

/// Does what the shell does with a thread's mail. Returns what is left: messages for connections that are not here.
fn deliver(iscsi: &Iscsi, conns: &mut [&mut Conn]) {
    loop {
        let mail = iscsi.shared.threads.get().unwrap()[0].take();
        if mail.is_empty() {
            return;
        }
        let env = Env { now_us: 0, iscsi, rules: &[] };
        for msg in mail {
            match msg {
                Msg::Quiesce { what, reply } => {
                    conns.iter_mut().for_each(|c| c.quiesce(&env, &what));
                    iscsi.shared.send(reply, Msg::Quiet { to: reply });
                }
                Msg::Quiet { to } => {
                    conns.iter_mut().filter(|c| c.info.id == to.conn).for_each(|c| c.quiet(&env, to.tag))
                }
                Msg::Landed { to, result } => {
                    conns.iter_mut().filter(|c| c.info.id == to.conn).for_each(|c| c.landed(&env, to.tag, result));
                }
                _ => panic!("another message"),
            }
        }
    }
}

impl<'a> Wire<'a> {
    fn new(iscsi: &'a Iscsi, id: u64, offer: Offer) -> Wire<'a> {
        let mut wire = Wire::fresh(iscsi, id, 0, offer);
        // Units say first that they are new.
        for unit in [0, 1] {
            wire.good(unit, Cdb::inquiry(36), 36);
            let (status, sense) = wire.status(unit, Cdb::test_unit_ready(), &[], 0);
            assert_eq!((status, sense.map(|s| s.code())), (2, Some(attention::POWER_ON_OR_RESET)), "unit {unit}");
        }
        wire
    }

    fn fresh(iscsi: &'a Iscsi, id: u64, listener: usize, offer: Offer) -> Wire<'a> {
        let mut conn = conn(iscsi, id, listener);
        let (_, n) = log_in(iscsi, &mut conn, Isid::random(id as u32, 0), offer);
        let n = n.expect("logged in");
        Wire { iscsi, conn, cmd_sn: n.cmd_sn.get(), n, rules: Vec::new(), now_us: 0, next: 100 }
    }

    fn send(&mut self, pdu: Pdu, data: &[u8]) -> Vec<(Pdu, Vec<u8>)> {
        let bytes = octets(pdu, data, &self.n.transmit());
        let env = Env { now_us: self.now_us, iscsi: self.iscsi, rules: &self.rules };
        assert_eq!(self.conn.receive(&env, &bytes), bytes.len());
        self.answers()
    }

    fn answers(&mut self) -> Vec<(Pdu, Vec<u8>)> {
        read(&drain(&mut self.conn.out), &self.n.receive())
    }

    fn sn(&mut self) -> InitiatorSn {
        self.cmd_sn += 1;
        InitiatorSn { cmd_sn: CmdSn::new(self.cmd_sn - 1), exp_stat_sn: StatSn::new(0) }
    }

    fn command(&mut self, unit: u32, cdb: Cdb, write: bool, expected_len: u32, is_final: bool) -> ScsiCommand {
        self.next += 1;
        ScsiCommand {
            immediate: false,
            is_final,
            read: !write && expected_len > 0,
            write,
            attribute: TaskAttribute::Simple,
            lun: Lun(polypath_scsi::Lun::new(unit).unwrap().0),
            itt: Itt::new(self.next).unwrap(),
            expected_len,
            sn: self.sn(),
            cdb: *cdb.octets(),
            data_len: 0,
        }
    }

    /// Status and sense of a command whose data, if any, go with it.
    fn status(&mut self, unit: u32, cdb: Cdb, data: &[u8], expected_in: u32) -> (u8, Option<polypath_scsi::Sense>) {
        let write = !data.is_empty();
        let cmd = self.command(unit, cdb, write, if write { data.len() as u32 } else { expected_in }, true);
        let answers = self.send(Pdu::ScsiCommand(cmd), data);
        match answers.last() {
            Some((Pdu::ScsiResponse(response), data)) => {
                let CommandResponse::Completed { status } = response.response else { panic!("{response:?}") };
                let (sense, _) = polypath_iscsi::pdu::split_sense(data).unwrap();
                (status, (!sense.is_empty()).then(|| polypath_scsi::Sense::parse(sense).unwrap()))
            }
            Some((Pdu::DataIn(last), _)) => (last.status.expect("a status").status, None),
            other => panic!("{other:?}"),
        }
    }

    fn good(&mut self, unit: u32, cdb: Cdb, expected_len: u32) -> Vec<u8> {
        let cmd = self.command(unit, cdb, false, expected_len, true);
        let answers = self.send(Pdu::ScsiCommand(cmd), &[]);
        let Some((Pdu::DataIn(last), _)) = answers.last() else { panic!("{cdb}: {answers:?}") };
        assert_eq!(last.status.map(|s| s.status), Some(0), "{cdb}");
        answers.into_iter().flat_map(|(_, data)| data).collect()
    }

    fn task(&mut self, function: TaskFunction, unit: u32, referenced: Option<Itt>) -> Vec<(Pdu, Vec<u8>)> {
        self.next += 1;
        let request = TaskRequest {
            immediate: true,
            function,
            lun: Lun(polypath_scsi::Lun::new(unit).unwrap().0),
            itt: Itt::new(self.next).unwrap(),
            referenced,
            sn: InitiatorSn { cmd_sn: CmdSn::new(self.cmd_sn), exp_stat_sn: StatSn::new(0) },
            ref_cmd_sn: CmdSn::new(self.cmd_sn - 1),
            exp_data_sn: 0,
        };
        self.send(Pdu::TaskRequest(request), &[])
    }

    fn close(mut self) {
        self.conn.close(self.iscsi);
    }
}

fn results(answers: &[(Pdu, Vec<u8>)]) -> Vec<TaskResult> {
    answers
        .iter()
        .filter_map(|(pdu, _)| match pdu {
            Pdu::TaskResponse(response) => Some(response.result),
            _ => None,
        })
        .collect()
}

fn medium(iscsi: &Iscsi, unit: usize, offset: u64) -> u8 {
    let mut byte = [0];
    iscsi.shared.stores[0].disks()[unit].medium.read(offset, &mut byte).unwrap();
    byte[0]
}

fn rule(kind: Kind, operation: Operation) -> Arc<Rule> {
    Arc::new(Rule::new(1, kind, Scope::default(), Ops::Of(operation), Some(1), u64::MAX))
}

#[test]
fn data_travel_as_was_agreed() {
    // Unsolicited data, R2T and Data-In under every agreement that matters, in pieces that never fit.
    for (initial_r2t, immediate_data, digests) in
        [(false, true, false), (true, true, false), (false, false, true), (true, false, true)]
    {
        let iscsi = target(|config| config.iscsi.max_recv_data = 1500);
        let digest = if digests { DigestOffer::Always } else { DigestOffer::Never };
        let offer = Offer {
            initial_r2t,
            immediate_data,
            header_digest: digest,
            data_digest: digest,
            max_recv_data_len: 1000,
            max_burst_len: 3000,
            first_burst_len: 2000,
            max_outstanding_r2t: 2,
            ..Offer::default()
        };
        let mut wire = Wire::new(&iscsi, 7, offer);
        let data: Vec<u8> = (0..16 * 512u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let immediate = if immediate_data { 1500 } else { 0 };
        let cmd = wire.command(0, Cdb::write_10(3, 16, RwFlags::empty()), true, data.len() as u32, initial_r2t);
        let mut answers = wire.send(Pdu::ScsiCommand(cmd), &data[..immediate]);
        let mut at = immediate;
        if !initial_r2t {
            assert!(answers.is_empty(), "unsolicited data are to come");
            let out = |data_sn, at: usize, is_final, ttt| DataOut {
                is_final,
                lun: cmd.lun,
                itt: cmd.itt,
                ttt,
                exp_stat_sn: StatSn::new(0),
                data_sn,
                buffer_offset: at as u32,
                data_len: 0,
            };
            for (data_sn, end) in [(0, at + (2000 - at) / 2), (1, 2000)] {
                answers = wire.send(Pdu::DataOut(out(data_sn, at, end == 2000, None)), &data[at..end]);
                at = end;
            }
        }
        let mut requests = 0;
        let mut open: VecDeque<_> = answers.into();
        while at < data.len() {
            assert!((1..=2).contains(&open.len()), "{} R2T are open", open.len());
            let Some((Pdu::R2t(r2t), _)) = open.pop_front() else { panic!("an R2T") };
            assert_eq!((r2t.buffer_offset as usize, r2t.r2t_sn), (at, requests));
            assert!(r2t.desired_len <= 3000);
            requests += 1;
            let end = at + r2t.desired_len as usize;
            let mut data_sn = 0;
            while at < end {
                let to = (at + 1500).min(end);
                let out = DataOut {
                    is_final: to == end,
                    lun: r2t.lun,
                    itt: r2t.itt,
                    ttt: Some(r2t.ttt),
                    exp_stat_sn: StatSn::new(0),
                    data_sn,
                    buffer_offset: at as u32,
                    data_len: 0,
                };
                open.extend(wire.send(Pdu::DataOut(out), &data[at..to]));
                (at, data_sn) = (to, data_sn + 1);
            }
        }
        let Some((Pdu::ScsiResponse(response), _)) = open.pop_front() else { panic!("the response") };
        assert_eq!((response.response, response.exp_data_sn), (CommandResponse::Completed { status: 0 }, requests));
        let back = wire.command(0, Cdb::read_10(3, 16, RwFlags::empty()), false, 16 * 512 + 100, true);
        let answers = wire.send(Pdu::ScsiCommand(back), &[]);
        let mut got = Vec::new();
        for (i, (pdu, piece)) in answers.iter().enumerate() {
            let Pdu::DataIn(data_in) = pdu else { panic!("{pdu:?}") };
            assert_eq!((data_in.data_sn, data_in.buffer_offset as usize), (i as u32, got.len()));
            got.extend_from_slice(piece);
            let last = i + 1 == answers.len();
            assert_eq!(data_in.is_final, last || got.len() % 3000 == 0);
            assert_eq!(data_in.status.map(|s| (s.status, s.residual)), last.then_some((0, Residual::Underflow(100))));
        }
        assert!(got == data);
        assert!(wire.conn.tasks.is_empty() && wire.conn.staged == 0);
        wire.close();
    }
}

#[test]
fn any_split_of_the_stream_gives_the_same_answers() {
    let mut want = Vec::new();
    for step in [usize::MAX, 1, 7, 47, 48, 49, 1000] {
        let iscsi = target(|_| ());
        let mut wire = Wire::new(&iscsi, 7, Offer::default());
        let mut stream = Vec::new();
        for (cdb, data) in [
            (Cdb::write_10(0, 2, RwFlags::empty()), &[7; 1024][..]),
            (Cdb::read_10(0, 2, RwFlags::empty()), &[]),
            (Cdb::read_10(4096, 1, RwFlags::empty()), &[]),
            (Cdb::test_unit_ready(), &[]),
        ] {
            let write = !data.is_empty();
            let len = if cdb == Cdb::test_unit_ready() { 0 } else { 1024 };
            let cmd = wire.command(0, cdb, write, len, true);
            stream.extend(octets(Pdu::ScsiCommand(cmd), data, &wire.n.transmit()));
        }
        let mut held = Vec::new();
        for piece in stream.chunks(step.min(stream.len())) {
            held.extend_from_slice(piece);
            let taken = wire.conn.receive(&Env { now_us: 0, iscsi: &iscsi, rules: &[] }, &held);
            held.drain(..taken);
        }
        assert!(held.is_empty() && wire.conn.ending.is_none());
        let got = drain(&mut wire.conn.out);
        if want.is_empty() {
            want = got;
        } else {
            assert!(got == want, "step {step}");
        }
        wire.close();
    }
}

#[test]
fn commands_are_carried_out_in_their_order_within_the_window() {
    let iscsi = target(|config| config.iscsi.command_window = 4);
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let second = wire.command(0, Cdb::write_10(0, 1, RwFlags::empty()), true, 512, true);
    let third = wire.command(0, Cdb::write_10(0, 1, RwFlags::empty()), true, 512, true);
    let (mut first, mut second) = (second, Pdu::ScsiCommand(ScsiCommand { sn: third.sn, ..second }));
    first.itt = Itt::new(900).unwrap();
    assert!(wire.send(second, &[2; 512]).is_empty(), "it is early");
    assert!(wire.send(second, &[3; 512]).is_empty(), "it is there already");
    let answers = wire.send(Pdu::ScsiCommand(first), &[1; 512]);
    assert_eq!((answers.len(), medium(&iscsi, 0, 0)), (2, 2));
    for beyond in [-3i32, 4, 1000] {
        let mut cmd = wire.command(0, Cdb::write_10(0, 1, RwFlags::empty()), true, 512, true);
        wire.cmd_sn -= 1;
        cmd.sn.cmd_sn = CmdSn::new(wire.cmd_sn.wrapping_add_signed(beyond));
        second = Pdu::ScsiCommand(cmd);
        assert!(wire.send(second, &[9; 512]).is_empty());
    }
    assert_eq!(medium(&iscsi, 0, 0), 2, "what is outside of the window is ignored");
    wire.rules =
        vec![Arc::new(Rule::new(1, Kind::Lose { execute: false }, Scope::default(), Ops::All, Some(3), u64::MAX))];
    for _ in 0..3 {
        let cmd = wire.command(0, Cdb::test_unit_ready(), false, 0, true);
        assert!(wire.send(Pdu::ScsiCommand(cmd), &[]).is_empty());
    }
    let cmd = wire.command(0, Cdb::test_unit_ready(), false, 0, true);
    let answers = wire.send(Pdu::ScsiCommand(cmd), &[]);
    let Some((Pdu::ScsiResponse(response), _)) = answers.first() else { panic!("{answers:?}") };
    assert_eq!(response.sn.max_cmd_sn, response.sn.exp_cmd_sn, "three of four places are taken");
    wire.close();
}

#[test]
fn what_happens_is_heard_of_once() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let store = &iscsi.shared.stores[0];
    for (change, unit, code) in [
        (Change::Size(2), 1, attention::CAPACITY),
        (Change::Identity(1), 0, attention::INQUIRY),
        (Change::List(2), 0, attention::LUNS),
    ] {
        iscsi.changed(0, change);
        iscsi.changed(0, change);
        wire.good(unit, Cdb::inquiry(36), 36);
        assert_eq!(wire.status(unit, Cdb::test_unit_ready(), &[], 0).1.map(|s| s.code()), Some(code), "{change:?}");
        let (_, rest) = wire.status(unit, Cdb::test_unit_ready(), &[], 0);
        assert_eq!(rest, None, "{change:?}");
        let _ = wire.status(1 - unit, Cdb::test_unit_ready(), &[], 0);
    }
    for (state, code) in [(5, 0x040b), (3, 0x040c), (0xf, 0x040a)] {
        store.set_access(Some(0), Some(1), state);
        wire.good(0, Cdb::inquiry(36), 36);
        wire.good(0, Cdb::report_target_port_groups(true, 100), 100);
        assert_eq!(wire.status(0, Cdb::read_10(0, 1, RwFlags::empty()), &[], 512).1.map(|s| s.code()), Some(code));
    }
    store.set_access(Some(0), Some(1), 1);
    // SET TARGET PORT GROUPS, and what another session hears of it.
    let mut other = Wire::fresh(&iscsi, 8, 1, Offer::default());
    assert!(other.status(0, Cdb::test_unit_ready(), &[], 0).1.is_some());
    let list = polypath_scsi::alua::set_target_port_groups(&[(2, polypath_scsi::alua::AluaState::Standby)]);
    assert_eq!(wire.status(0, Cdb::set_target_port_groups(list.len() as u32), &list, 0), (0, None));
    assert_eq!(other.status(0, Cdb::test_unit_ready(), &[], 0).1.map(|s| s.code()), Some(attention::ACCESS_STATE));
    assert_eq!(other.status(0, Cdb::test_unit_ready(), &[], 0).1.map(|s| s.code()), Some(0x040b));
    assert_eq!(wire.status(0, Cdb::test_unit_ready(), &[], 0), (0, None));
    // A unit that is not there.
    for (cdb, code) in [(Cdb::test_unit_ready(), Some(0x2500)), (Cdb::inquiry(36), None)] {
        assert_eq!(wire.status(9, cdb, &[], 36 * u32::from(code.is_none())).1.map(|s| s.code()), code);
    }
    wire.close();
    other.close();
}

/// Clients there are (libiscsi's `iscsi-ls`) that know no other word of a unit that is new to them than 29h/00h.
#[test]
fn a_nexus_hears_first_why_it_is_new() {
    let iscsi = target(|_| ());
    for (power_is_lost, code) in [(false, 0x2900), (false, 0x2907), (true, 0x2901), (false, 0x2907)] {
        if power_is_lost {
            iscsi.lose_power();
        }
        let mut wire = Wire::fresh(&iscsi, 7, 0, Offer::default());
        let (status, sense) = wire.status(0, Cdb::test_unit_ready(), &[], 0);
        assert_eq!((status, sense.map(|s| s.code())), (2, Some(code)));
        let session = lock(&iscsi.sessions).values().next().cloned().unwrap();
        iscsi.forget(&session, "the connection is lost");
    }
}

#[test]
fn faults_on_commands() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let write = Cdb::write_10(0, 1, RwFlags::empty());
    wire.rules = vec![rule(Kind::Refuse, Operation::Write)];
    assert_eq!(wire.status(0, write, &[1; 512], 0).1.map(|s| s.code()), Some(0x4400));
    wire.rules = vec![rule(Kind::Delay { us: 50 }, Operation::Write)];
    let cmd = wire.command(0, write, true, 512, true);
    assert!(wire.send(Pdu::ScsiCommand(cmd), &[1; 512]).is_empty());
    assert_eq!((wire.conn.deadline_us(), medium(&iscsi, 0, 0)), (50, 0));
    wire.conn.tick(&Env { now_us: 50, iscsi: &iscsi, rules: &[] });
    assert_eq!((wire.answers().len(), medium(&iscsi, 0, 0), wire.conn.deadline_us()), (1, 1, u64::MAX));
    let mut stat_sn = None;
    for (execute, byte) in [(true, 2), (false, 2)] {
        wire.rules = vec![rule(Kind::Lose { execute }, Operation::Write)];
        let cmd = wire.command(0, write, true, 512, true);
        assert!(wire.send(Pdu::ScsiCommand(cmd), &[2; 512]).is_empty());
        assert_eq!(medium(&iscsi, 0, 0), byte);
        let cmd = wire.command(0, Cdb::test_unit_ready(), false, 0, true);
        let answers = wire.send(Pdu::ScsiCommand(cmd), &[]);
        let Some((Pdu::ScsiResponse(response), _)) = answers.first() else { panic!("{answers:?}") };
        assert!(stat_sn.is_none_or(|sn| response.sn.stat_sn == StatSn::next(sn)), "no status was used up");
        stat_sn = Some(response.sn.stat_sn);
    }
    let kind = Kind::Hold { after_us: Some(100), beyond: false, answer: Answer::After };
    wire.rules = vec![rule(kind, Operation::Write)];
    let cmd = wire.command(0, write, true, 512, true);
    assert!(wire.send(Pdu::ScsiCommand(cmd), &[3; 512]).is_empty());
    iscsi.shared.apply_held(100);
    deliver(&iscsi, &mut [&mut wire.conn]);
    assert_eq!((wire.answers().len(), medium(&iscsi, 0, 0)), (1, 3));
    wire.close();
}
