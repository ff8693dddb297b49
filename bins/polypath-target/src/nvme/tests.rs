//! The connection's state machine without a socket: tables of what comes and what must leave.

use super::*;
use crate::config::{ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};
use crate::faults::{Kind, Ops, Scope};
use crate::out::drain;
use crate::shared::Shared;
use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectData, ConnectResponse, InvalidParameter, cattr};
use polypath_nvme::nqn::{HostId, Nqn};
use polypath_nvme::properties::Register;
use std::sync::atomic::AtomicU32;

const NQN: &str = "nqn.2024-01.org.example:t";

pub(super) fn shared(change: impl FnOnce(&mut TargetConfig)) -> Nvme {
    let mut config = TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:1")],
        subsystems: vec![SubsystemConfig::new(NQN, vec![NamespaceConfig::new("ram://1MiB")])],
        ..TargetConfig::default()
    };
    change(&mut config);
    Nvme::new(Arc::new(Shared::new(config, &["127.0.0.1:1".parse().unwrap()], None).unwrap()))
}

pub(super) fn env(shared: &Nvme, now_us: u64) -> Env<'_> {
    Env { now_us, nvme: shared, rules: &[] }
}

pub(super) fn conn(id: u64) -> Conn {
    Conn::new(Arc::new(ConnInfo { id, queue: AtomicU32::new(u32::MAX), ..ConnInfo::default() }), 0)
}

pub(super) fn icreq(digests: u8) -> Vec<u8> {
    let mut b = vec![0; 128];
    (b[2], b[4], b[11]) = (128, 128, digests);
    b
}

pub(super) fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let mut b = vec![4, 0, 72, if data.is_empty() { 0 } else { 72 }];
    b.extend_from_slice(&(72 + data.len() as u32).to_le_bytes());
    b.extend_from_slice(sqe.as_bytes());
    b.extend_from_slice(data);
    b
}

pub(super) fn connect(qid: u16, cntlid: u16, attributes: u8) -> Vec<u8> {
    connect_as("nqn.host", qid, cntlid, attributes)
}

/// Connect of a host with any HOSTNQN, one that no [`Nqn`] can be included.
fn connect_as(hostnqn: &str, qid: u16, cntlid: u16, attributes: u8) -> Vec<u8> {
    let nqn = |n| Nqn::new(n).unwrap();
    let data = ConnectData { host_id: HostId::from_bytes([3; 16]), cntlid, subnqn: nqn(NQN), hostnqn: nqn("nqn.host") };
    let mut data = data.to_bytes();
    data[512..768].fill(0);
    data[512..][..hostnqn.len()].copy_from_slice(hostnqn.as_bytes());
    let sqe = Sqe::connect(1, qid, 7, attributes, 0).with_sgl(SglDescriptor::InCapsule { offset: 0, length: 1024 });
    capsule(sqe, &data)
}

pub(super) fn bare(sqe: Sqe) -> Vec<u8> {
    capsule(sqe.with_sgl(SglDescriptor::NO_DATA), &[])
}

/// An admin and an I/O connection of one controller, everything they said so far thrown away.
pub(super) fn pair(shared: &Nvme, attributes: u8) -> (Conn, Conn) {
    let e = env(shared, 0);
    let (mut admin, mut io) = (conn(1), conn(2));
    let enable = bare(Sqe::property_set(2, Register::Cc, 0x0046_0001));
    let all = [icreq(0), connect(0, CNTLID_DYNAMIC, 0), enable].concat();
    assert_eq!(admin.receive(&e, &all), all.len());
    let id = admin.controller.as_ref().unwrap().id;
    let all = [icreq(0), connect(1, id, attributes)].concat();
    assert_eq!(io.receive(&e, &all), all.len());
    assert_eq!((io.qid, io.ending), (1, None));
    drain(&mut admin.out);
    drain(&mut io.out);
    (admin, io)
}

pub(super) fn finish(shared: &Nvme, conns: impl IntoIterator<Item = Conn>) {
    for mut c in conns {
        c.close(shared);
    }
}

/// PDUs in `bytes`, each with its type and flags, and octets 8 to 24 of its header.
pub(super) fn pdus(bytes: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut list = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = wire::u32_at(rest, 4) as usize;
        list.push((rest[0], rest[1], rest[8..24].to_vec()));
        rest = &rest[len..];
    }
    list
}

pub(super) fn write(cid: u16, lba: u64, blocks: u16, in_capsule: bool) -> Sqe {
    let length = u32::from(blocks) * 512;
    let sgl =
        if in_capsule { SglDescriptor::InCapsule { offset: 0, length } } else { SglDescriptor::Transport { length } };
    Sqe::write(cid, 1, lba, blocks - 1, false).with_sgl(sgl)
}

pub(super) fn h2c(cid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
    let mut b = vec![0; 24];
    (b[0], b[1], b[2], b[3]) = (6, if last { 4 } else { 0 }, 24, 24);
    b[4..8].copy_from_slice(&(24 + data.len() as u32).to_le_bytes());
    b[8..10].copy_from_slice(&cid.to_le_bytes());
    b[10..12].copy_from_slice(&ttag.to_le_bytes());
    b[12..16].copy_from_slice(&offset.to_le_bytes());
    b[16..20].copy_from_slice(&(data.len() as u32).to_le_bytes());
    b.extend_from_slice(data);
    b
}

/// Whoever connects and says nothing, or not who he is, keeps his place for a while and not for ever: there are only so many.
#[test]
fn who_does_not_become_a_host_has_to_go() {
    let shared = shared(|_| ());
    for said in [vec![], icreq(0)[..20].to_vec(), icreq(0)] {
        let mut c = conn(1);
        c.receive(&env(&shared, 0), &said);
        let due = c.deadline_us();
        assert!(due <= 60_000_000, "after {} octets: {due} us", said.len());
        c.tick(&env(&shared, due));
        assert_eq!(c.ending, Some(Ending::Now), "after {} octets", said.len());
        finish(&shared, [c]);
    }
    let (admin, io) = pair(&shared, 0);
    assert_eq!([admin.deadline_us(), io.deadline_us()], [u64::MAX; 2]);
    finish(&shared, [io, admin]);
}

#[test]
fn any_split_of_the_stream_gives_the_same_answers() {
    let stream = |id: u16| {
        let read = Sqe::read(6, 1, 0, 3, false).with_sgl(SglDescriptor::Transport { length: 2048 });
        [
            icreq(0),
            connect(1, id, cattr::DISABLE_SQ_FLOW_CONTROL),
            capsule(write(5, 0, 2, true), &[7; 1024]),
            capsule(read, &[]),
            bare(Sqe::flush(7, 1)),
        ]
        .concat()
    };
    let mut want = Vec::new();
    for step in [usize::MAX, 1, 2, 7, 8, 71, 72, 73, 127, 129, 1000] {
        let shared = shared(|_| {});
        let (admin, spare) = pair(&shared, 0);
        finish(&shared, [spare]);
        let all = stream(admin.controller.as_ref().unwrap().id);
        let mut c = conn(9);
        let mut held = Vec::new();
        for piece in all.chunks(step.min(all.len())) {
            held.extend_from_slice(piece);
            let taken = c.receive(&env(&shared, 0), &held);
            held.drain(..taken);
        }
        assert!(held.is_empty() && c.ending.is_none());
        let got = drain(&mut c.out);
        if want.is_empty() {
            let kinds: Vec<_> = pdus(&got).iter().map(|p| (p.0, p.1)).collect();
            // ICResp, Connect, Write, Read's data with SUCCESS and no capsule, Flush.
            assert_eq!(kinds, [(1, 0), (5, 0), (5, 0), (7, wire::LAST | wire::SUCCESS), (5, 0)]);
            want = got;
        } else {
            assert!(got == want, "step {step}");
        }
        finish(&shared, [admin, c]);
    }
}

#[test]
fn arbitrary_octets_never_panic_and_are_answered_once() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let shared = shared(|_| {});
    for round in 0..3000u64 {
        let (admin, mut io) = pair(&shared, (round & 4) as u8);
        let mut bytes =
            capsule(write(random() as u16, random() % 2100, 1 + (random() % 16) as u16, round % 2 == 0), &[1; 512]);
        for _ in 0..1 + random() % 6 {
            // Mostly in the headers, where decisions are made.
            let at = (random() % if random() % 4 == 0 { bytes.len() as u64 } else { 80 }) as usize;
            bytes[at] = random() as u8;
        }
        let copy = bytes.clone();
        bytes.extend_from_slice(&copy);
        io.receive(&env(&shared, 0), &bytes);
        let answers = pdus(&drain(&mut io.out));
        let terms = answers.iter().filter(|a| a.0 == kind::C2H_TERM).count();
        assert!(terms <= 1, "round {round}");
        assert_eq!(terms == 1, io.ending == Some(Ending::AfterFlush), "round {round}");
        finish(&shared, [io, admin]);
    }
}

#[test]
fn transfers_go_through_r2t_with_fresh_tags() {
    let shared = shared(|c| c.r2t_bytes = 4096);
    let (admin, mut io) = pair(&shared, 0);
    let e = env(&shared, 0);
    let mut tags = Vec::new();
    for round in 0..3u16 {
        io.receive(&e, &capsule(write(40 + round, 0, 12, false), &[]));
        for (offset, len) in [(0u32, 4096usize), (4096, 2048)] {
            let answers = pdus(&drain(&mut io.out));
            let [(kind::R2T, _, fields)] = &answers[..] else { panic!("{answers:?}") };
            let ttag = wire::u16_at(fields, 2);
            assert_eq!((wire::u32_at(fields, 4), wire::u32_at(fields, 8) as usize), (offset, len));
            tags.push(ttag);
            io.receive(&e, &h2c(40 + round, ttag, offset, &vec![round as u8 + 1; len], true));
        }
        let answers = pdus(&drain(&mut io.out));
        assert_eq!((answers.len(), answers[0].0, wire::u16_at(&answers[0].2, 14)), (1, kind::RESPONSE, 0));
    }
    assert_ne!(tags[0], tags[2], "a tag of a finished transfer is not valid for the next");
    io.receive(&e, &h2c(40, tags[0], 0, &[9; 512], true));
    assert_eq!(io.ending, Some(Ending::AfterFlush));
    let mut back = [0; 6144];
    shared.subsystems[1].store.disks()[0].medium.read(0, &mut back).unwrap();
    assert!(back.iter().all(|&b| b == 3));
    finish(&shared, [admin, io]);
}

#[test]
fn a_host_cannot_have_more_outstanding_than_its_queue_holds() {
    let shared = shared(|_| {});
    let (admin, mut io) = pair(&shared, 0);
    let e = env(&shared, 0);
    for cid in 0..8 {
        io.receive(&e, &capsule(write(cid, 0, 8, false), &[]));
    }
    assert_eq!((pdus(&drain(&mut io.out)).len(), io.ending), (8, None), "the queue has 8 entries");
    io.receive(&e, &capsule(write(3, 0, 8, false), &[]));
    let answers = pdus(&drain(&mut io.out));
    assert_eq!(wire::u16_at(&answers[0].2, 14) >> 1 & 0x7ff, StatusField::CID_CONFLICT.code());
    io.receive(&e, &capsule(write(99, 0, 8, false), &[]));
    assert_eq!(pdus(&drain(&mut io.out))[0].0, kind::C2H_TERM);
    assert_eq!(io.ending, Some(Ending::AfterFlush));
    finish(&shared, [admin, io]);
}

#[test]
fn staged_data_is_bounded() {
    let shared = shared(|c| c.mdts_bytes = 1 << 20);
    let (admin, io) = pair(&shared, 0);
    finish(&shared, [io]);
    let e = env(&shared, 0);
    let id = admin.controller.as_ref().unwrap().id;
    let mut io = conn(5);
    let data = ConnectData {
        host_id: HostId::from_bytes([3; 16]),
        cntlid: id,
        subnqn: Nqn::new(NQN).unwrap(),
        hostnqn: Nqn::new("nqn.host").unwrap(),
    };
    let sqe = Sqe::connect(1, 1, 127, 0, 0).with_sgl(SglDescriptor::InCapsule { offset: 0, length: 1024 });
    io.receive(&e, &[icreq(0), capsule(sqe, &data.to_bytes())].concat());
    drain(&mut io.out);
    for cid in 0..100 {
        io.receive(&e, &capsule(write(cid, 0, 2048, false), &[]));
    }
    let asked = pdus(&drain(&mut io.out));
    assert_eq!(asked.len(), STAGE_LIMIT >> 20, "no more R2Ts than may be staged");
    let ttag = wire::u16_at(&asked[0].2, 2);
    for i in 0..8 {
        io.receive(&e, &h2c(0, ttag, i << 17, &vec![1; 1 << 17], i == 7));
    }
    let kinds: Vec<u8> = pdus(&drain(&mut io.out)).iter().map(|p| p.0).collect();
    assert_eq!(kinds, [kind::RESPONSE, kind::R2T], "one finished, the next is asked for");
    finish(&shared, [admin, io]);
}

#[test]
fn nothing_is_executed_after_the_association_is_dead() {
    let shared = shared(|_| {});
    let (admin, mut io) = pair(&shared, 0);
    let controller = io.controller.clone().unwrap();
    // A delayed write is in flight when the association ends.
    let rule = Arc::new(Rule::new(1, Kind::Delay { us: 50 }, Scope::default(), Ops::All, Some(1), u64::MAX));
    let rules = [rule];
    let with_rule = Env { now_us: 0, nvme: &shared, rules: &rules };
    io.receive(&with_rule, &capsule(write(1, 0, 1, true), &[1; 512]));
    assert_eq!(io.deadline_us(), 50);
    shared.kill(&controller, "test");
    io.look_around(&env(&shared, 40));
    assert_eq!(io.ending, Some(Ending::Now));
    io.tick(&env(&shared, 60));
    io.receive(&env(&shared, 60), &capsule(write(2, 1, 1, true), &[2; 512]));
    let mut back = [0; 1024];
    shared.subsystems[1].store.disks()[0].medium.read(0, &mut back).unwrap();
    assert_eq!(back, [0; 1024]);
    finish(&shared, [admin, io]);
}

#[test]
fn connect_errors_and_order() {
    let shared = shared(|_| {});
    let e = env(&shared, 0);
    for (what, bytes, fes) in [
        ("a command first", bare(Sqe::keep_alive(1)), 2u16),
        (
            "a wrong version",
            {
                let mut b = icreq(0);
                b[8] = 1;
                b
            },
            6,
        ),
        (
            "a wrong length",
            {
                let mut b = icreq(0);
                b[4] = 64;
                b
            },
            1,
        ),
        (
            "a wrong HPDA",
            {
                let mut b = icreq(0);
                b[10] = 32;
                b
            },
            1,
        ),
    ] {
        let mut c = conn(7);
        c.receive(&e, &bytes);
        let answers = pdus(&drain(&mut c.out));
        assert_eq!((answers[0].0, wire::u16_at(&answers[0].2, 0)), (kind::C2H_TERM, fes), "{what}");
    }
    let mut c = conn(8);
    c.receive(&e, &[icreq(3), bare(Sqe::keep_alive(1))[..8].to_vec()].concat());
    assert_eq!(c.ending, Some(Ending::AfterFlush), "digests were agreed, none is there");
}

#[test]
fn a_host_without_a_name_is_served_and_is_not_another_one() {
    let shared = shared(|_| {});
    let e = env(&shared, 0);
    let (mut admin, mut io) = (conn(1), conn(2));
    // What the last PDU that left says of a Connect.
    let answer = |c: &mut Conn| {
        let (_, _, fields) = pdus(&drain(&mut c.out)).pop().expect("Connect is answered");
        ConnectResponse::from_cqe(&Cqe::from_bytes(&fields.try_into().expect("a response carries an entry")))
    };
    admin.receive(&e, &[icreq(0), connect_as("", 0, CNTLID_DYNAMIC, 0)].concat());
    let ConnectResponse::Connected { cntlid, .. } = answer(&mut admin) else { panic!("refused") };
    admin.receive(&e, &bare(Sqe::property_set(2, Register::Cc, 0x0046_0001)));
    io.receive(&e, &[icreq(0), connect_as("", 1, cntlid, 0)].concat());
    assert_eq!(answer(&mut io), ConnectResponse::Connected { cntlid, authentication: 0 });
    io.receive(&e, &capsule(write(5, 0, 1, true), &[7; 512]));
    assert_eq!(wire::u16_at(&pdus(&drain(&mut io.out))[0].2, 14), 0, "the write succeeded");
    // Who did not give a name has not given everybody's: the queues of one controller agree on it.
    let wrong = ConnectResponse::InvalidParameter(InvalidParameter::HOSTNQN);
    let mut other = conn(3);
    other.receive(&e, &[icreq(0), connect_as("nqn.host", 2, cntlid, 0)].concat());
    assert_eq!(answer(&mut other), wrong);
    // Empty is one thing, nonsense another.
    let mut nonsense = conn(4);
    nonsense.receive(&e, &[icreq(0), connect_as("nqn.a b", 0, CNTLID_DYNAMIC, 0)].concat());
    assert_eq!(answer(&mut nonsense), wrong);
    finish(&shared, [admin, io, other, nonsense]);
}

#[test]
fn what_others_have_reserved_is_theirs() {
    use crate::media::{Hold, Party};
    let conflict = StatusField::RESERVATION_CONFLICT.with_dnr();
    let shared = shared(|_| {});
    let (admin, mut io) = pair(&shared, 0);
    let e = env(&shared, 0);
    let disk = shared.subsystems[1].store.disks()[0].clone();
    let party = Party { initiator: "iqn.2026-01.org.example:i,i,0x400001370000".into(), port: 1 };
    disk.reservations.register(&party, Some(0), 5).unwrap();
    let read = Sqe::read(6, 1, 0, 0, false).with_sgl(SglDescriptor::Transport { length: 512 });
    let mut status = |bytes: Vec<u8>| {
        io.receive(&e, &bytes);
        let all = drain(&mut io.out);
        Cqe::parse(&pdus(&all).last().unwrap().2).unwrap().status
    };
    for (access, want) in [(false, StatusField::SUCCESS), (true, conflict)] {
        disk.reservations.reserve(&party, 5, Hold::One { access }).unwrap();
        assert_eq!(status(capsule(write(5, 0, 1, true), &[7; 512])), conflict);
        assert_eq!(status(capsule(read, &[])), want);
        disk.reservations.release(&party, 5, Hold::One { access }).unwrap();
    }
    assert_eq!(status(capsule(write(5, 0, 1, true), &[7; 512])), StatusField::SUCCESS);
    finish(&shared, [io, admin]);
}

/// A host registers, takes what another has over SCSI, and hears of what that one does.
#[test]
fn a_host_reserves_in_one_state_with_everybody() {
    use crate::media::{Hold, News, Party};
    use polypath_nvme::log::{AsyncEvent, EventKind, lid};
    use polypath_nvme::reservation::*;
    let shared = shared(|_| {});
    let (mut admin, mut io) = pair(&shared, 0);
    let e = env(&shared, 0);
    let disk = shared.subsystems[1].store.disks()[0].clone();
    let theirs = Party { initiator: "iqn.2026-01.org.example:i,i,0x400001370000".into(), port: 1 };
    disk.reservations.register(&theirs, Some(0), 5).unwrap();
    disk.reservations.reserve(&theirs, 5, Hold::Registrants { access: true }).unwrap();
    let ignore_key = false;
    let mut send = |command: ReservationCommand, data: &[u8]| {
        let length = data.len() as u32;
        let sgl = match command {
            ReservationCommand::Report { len, .. } => SglDescriptor::Transport { length: len as u32 },
            _ => SglDescriptor::InCapsule { offset: 0, length },
        };
        io.receive(&e, &capsule(command.to_sqe(9, 1).with_sgl(sgl), data));
        let all = drain(&mut io.out);
        let status = Cqe::parse(&pdus(&all).last().unwrap().2).unwrap().status;
        (status.is_success(), status, all)
    };
    let register = |action, persist| ReservationCommand::Register { action, ignore_key, persist };
    let keys = |current_key, new_key| RegisterData { current_key, new_key }.to_bytes();
    let first = register(RegisterAction::Register, ChangePersist::Keep);
    assert_eq!(send(first, &keys(0, 7)[..15]).1, StatusField::INVALID_SGL_DATA_LENGTH.with_dnr());
    assert!(send(first, &keys(0, 7)).0 && send(first, &keys(0, 7)).0, "once more with the same key is nothing");
    assert_eq!(send(first, &keys(0, 8)).1, StatusField::RESERVATION_CONFLICT.with_dnr());
    assert!(send(register(RegisterAction::Replace, ChangePersist::Clear), &keys(7, 8)).0);
    let rtype = rtype::WRITE_EXCLUSIVE;
    let acquire = |action, ignore_key| ReservationCommand::Acquire { action, ignore_key, rtype };
    let victim = AcquireData { current_key: 8, victim_key: 5 }.to_bytes();
    assert_eq!(send(acquire(AcquireAction::Acquire, false), &victim).1, StatusField::RESERVATION_CONFLICT.with_dnr());
    assert_eq!(send(acquire(AcquireAction::Preempt, true), &victim).1, StatusField::INVALID_FIELD.with_dnr());
    assert!(send(acquire(AcquireAction::PreemptAndAbort, false), &victim).0);
    let left = disk.reservations.take_news(|party| *party == theirs);
    let expected = [News::RegistrationsPreempted];
    assert_eq!(left.iter().map(|(_, news)| *news).collect::<Vec<_>>(), expected, "the other room is to tell");
    // What is told: one of SCSI is here again, and holds nothing.
    disk.reservations.register(&theirs, Some(0), 6).unwrap();
    let short = send(ReservationCommand::Report { len: 64, extended: false }, &[]);
    assert_eq!(short.1, StatusField::HOST_ID_INCONSISTENT.with_dnr());
    let (_, _, all) = send(ReservationCommand::Report { len: 256, extended: true }, &[]);
    let status = ReservationStatus::parse(&all[24..24 + 256]).unwrap();
    assert!(status.is_whole() && !status.persists && status.rtype == rtype, "{status:?}");
    let shown: Vec<_> = status.registered.iter().map(|r| (r.cntlid, r.key, r.is_holder())).collect();
    assert_eq!(shown, [(admin.controller.as_ref().unwrap().id, 8, true), (u16::MAX, 6, false)]);
    assert_eq!(status.registered[0].host_id, [3; 16]);
    // And what is heard.
    admin.receive(&e, &bare(Sqe::async_event_request(4)));
    drain(&mut admin.out);
    let host = io_party(&shared);
    disk.reservations.leave_news(vec![(host, News::ReservationsPreempted)]);
    admin.look_around(&e);
    let all = drain(&mut admin.out);
    let event = AsyncEvent::from_dw0(Cqe::parse(&pdus(&all).last().unwrap().2).unwrap().dw0());
    assert_eq!(event, AsyncEvent { kind: EventKind::ReservationLog, log_page: lid::RESERVATION });
    for (kind, count) in [(ReservationNotification::RESERVATION_PREEMPTED, 1), (ReservationNotification::EMPTY, 0)] {
        let read = Sqe::get_log_page(5, u32::MAX, lid::RESERVATION, 0, false, 0, 64);
        admin.receive(&e, &capsule(read.with_sgl(SglDescriptor::Transport { length: 64 }), &[]));
        let all = drain(&mut admin.out);
        let page = ReservationNotification::parse(&all[24..88]).unwrap();
        assert_eq!((page.kind, page.count, page.left), (kind, count, 0));
    }
    let clear = ReservationCommand::Release { action: ReleaseAction::Clear, ignore_key, rtype: 0 };
    assert!(send(clear, &ReleaseData { current_key: 8 }.to_bytes()).0);
    assert!(disk.reservations.picture().registered.is_empty());
    finish(&shared, [io, admin]);
}

/// Linux registers with CPTPL 11b always. What that means is kept where it can be, and refused where it cannot.
#[test]
fn what_is_to_outlive_the_power_does_or_is_refused() {
    use polypath_nvme::features::fid::RESERVATION_PERSISTENCE;
    use polypath_nvme::identify::IdentifyNamespace;
    use polypath_nvme::reservation::*;
    use polypath_nvme::sqe::NSID_ALL;
    let shared = shared(|_| {});
    let (mut admin, mut io) = pair(&shared, 0);
    let e = env(&shared, 0);
    let register = |persist, key| {
        let (action, ignore_key) = (RegisterAction::Register, false);
        let sgl = SglDescriptor::InCapsule { offset: 0, length: 16 };
        let sqe = ReservationCommand::Register { action, ignore_key, persist }.to_sqe(9, 1).with_sgl(sgl);
        capsule(sqe, &RegisterData { current_key: 0, new_key: key }.to_bytes())
    };
    let ask = |c: &mut Conn, bytes: &[u8]| {
        c.receive(&e, bytes);
        let all = drain(&mut c.out);
        (Cqe::parse(&pdus(&all).last().unwrap().2).unwrap(), all)
    };
    let feature = |admin: &mut Conn, nsid, on: Option<u32>| {
        let fid = RESERVATION_PERSISTENCE;
        let sqe = on.map_or(Sqe::get_features(5, nsid, fid), |on| Sqe::set_features(5, nsid, fid, on));
        let cqe = ask(admin, &bare(sqe)).0;
        (cqe.status.is_success(), cqe.dw0())
    };
    let rescap = |admin: &mut Conn| {
        let sqe = Sqe::identify(6, 0, 1, 0).with_sgl(SglDescriptor::Transport { length: 4096 });
        let (_, all) = ask(admin, &capsule(sqe, &[]));
        IdentifyNamespace::parse(&all[24..24 + 4096]).unwrap().rescap & rescap::PERSIST
    };
    let disk = shared.subsystems[1].store.disks()[0].clone();
    let registered = || disk.reservations.picture().registered.len();
    assert_eq!((rescap(&mut admin), feature(&mut admin, 1, None)), (rescap::PERSIST, (true, 0)));
    for (persist, want) in [(ChangePersist::Keep, 0), (ChangePersist::Set, 1), (ChangePersist::Keep, 1)] {
        assert!(ask(&mut io, &register(persist, 7)).0.status.is_success());
        assert_eq!(feature(&mut admin, 1, None), (true, want), "{persist:?}");
    }
    let sgl = SglDescriptor::Transport { length: 256 };
    let report = ReservationCommand::Report { len: 256, extended: true }.to_sqe(9, 1).with_sgl(sgl);
    let (_, all) = ask(&mut io, &capsule(report, &[]));
    assert!(ReservationStatus::parse(&all[24..24 + 256]).unwrap().persists);
    disk.reservations.forget();
    assert_eq!(registered(), 1, "the power failed");
    assert!(feature(&mut admin, NSID_ALL, Some(0)).0);
    disk.reservations.forget();
    assert_eq!(registered(), 0);
    // A disk that outlives the target, whose reservations do not.
    let store = &shared.subsystems[1].store;
    let disk = store.replace(1, |old| Ok(Disk { reservations: Arc::default(), ..old.copy() })).unwrap();
    let refused = ask(&mut io, &register(ChangePersist::Set, 7)).0.status;
    assert_eq!(refused, StatusField::INVALID_FIELD.with_dnr());
    assert!(!feature(&mut admin, 1, Some(1)).0 && feature(&mut admin, NSID_ALL, Some(1)).0, "all are those that can");
    assert_eq!((rescap(&mut admin), feature(&mut admin, 1, None)), (0, (true, 0)));
    assert!(disk.reservations.picture().registered.is_empty());
    assert!(ask(&mut io, &register(ChangePersist::Clear, 7)).0.status.is_success());
    finish(&shared, [io, admin]);
}

fn io_party(shared: &Nvme) -> crate::media::Party {
    let controllers = crate::shared::lock(&shared.subsystems[1].controllers);
    controllers.values().next().map(|c| (*c.party).clone()).expect("a controller")
}
