//! Reservations of namespaces: two hosts and one target, over connections of their own.

use crate::common::{NQN, Rig, start, target_config};
use polypath_block::{
    Code, Device, Io, Op, ReservationOp, ReservationReply, ReservationReport, ReservationResult, ReservationType,
};
use polypath_target::TargetHandle;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const OURS: u64 = 0xa11ce;
const THEIRS: u64 = 0xb0b;
const KIND: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;

/// A host by its number, over a way of its own.
fn host(target: &TargetHandle, number: u8, options: &str) -> Rig {
    let id = format!("{number:08x}-0000-4000-8000-000000000000");
    let address = target.addresses()[0];
    Rig::new(&format!("nvme-tcp://{address}/{NQN}?ns=1&hostid={id}&keep_alive_ms=400{options}"), 16)
}

type Answer = Result<Option<ReservationReport>, (Code, String)>;

fn begin(rig: &Rig, op: ReservationOp) -> Receiver<Answer> {
    let (tell, told) = channel();
    let reply = ReservationReply::new(move |result: ReservationResult| {
        tell.send(result.map_err(|error| (error.code, error.reason))).unwrap_or(());
    });
    rig.device.reservations().expect("a namespace has the power").start(op, Duration::from_secs(5), reply);
    told
}

fn ask(rig: &mut Rig, op: ReservationOp) -> Answer {
    let told = begin(rig, op);
    rig.wait("an answer", |_| told.try_recv().ok())
}

/// The code of what was refused.
fn code(answer: Answer) -> Option<Code> {
    answer.err().map(|(code, _)| code)
}

fn report(rig: &mut Rig) -> ReservationReport {
    ask(rig, ReservationOp::Report).unwrap().expect("a report")
}

fn io(rig: &mut Rig, op: Op) -> Code {
    let (span, _) = rig.world.memory(4096, 7);
    let io = match op {
        Op::Read => Io::read(1, 0, 8, span),
        Op::Write => Io::write(1, 0, 8, span),
        _ => Io::flush(1),
    };
    rig.run(io).status.code
}

#[test]
fn two_hosts_share_a_namespace() {
    let target = start(target_config(&["ram://1MiB"]));
    let (mut a, mut b) = (host(&target, 1, ""), host(&target, 2, ""));
    let reserve = |key, kind| ReservationOp::Reserve { key, kind };
    let preempt = |key, victim, abort| ReservationOp::Preempt { key, victim, kind: KIND, abort };
    assert_eq!(code(ask(&mut a, reserve(OURS, KIND))), Some(Code::ReservationConflict), "not registered");
    assert_eq!(ask(&mut a, ReservationOp::Register { key: OURS }), Ok(None));
    assert_eq!(ask(&mut a, ReservationOp::Register { key: OURS + 1 }), Ok(None), "whatever it was registered with");
    assert_eq!(ask(&mut a, ReservationOp::Register { key: OURS }), Ok(None));
    assert_eq!(ask(&mut a, reserve(OURS, KIND)), Ok(None));
    let found = report(&mut a);
    assert!(found.is_held_by(OURS) && found.held == Some(KIND), "{found:?}");
    assert_eq!(found.registrants[0].host.map(|id| id[3]), Some(1));
    let others = [Op::Read, Op::Write, Op::Flush].map(|op| io(&mut b, op));
    assert_eq!(others, [Code::Ok, Code::ReservationConflict, Code::ReservationConflict]);
    assert_eq!([Op::Write, Op::Flush].map(|op| io(&mut a, op)), [Code::Ok; 2]);
    assert_eq!(code(ask(&mut b, ReservationOp::Join { key: THEIRS, host: None })), Some(Code::ReservationConflict));
    assert_eq!(ask(&mut b, ReservationOp::Register { key: THEIRS }), Ok(None));
    assert_eq!(code(ask(&mut b, reserve(THEIRS, KIND))), Some(Code::ReservationConflict));
    let before = a.device.reservations().unwrap().alarms();
    assert_eq!(ask(&mut b, preempt(THEIRS, OURS, true)), Ok(None));
    a.wait("the news", |a| (a.device.reservations().unwrap().alarms() > before).then_some(()));
    assert_eq!(io(&mut a, Op::Write), Code::ReservationConflict);
    assert_eq!(
        code(ask(&mut a, ReservationOp::Join { key: OURS, host: None })),
        Some(Code::ReservationConflict),
        "it was ended"
    );
    let exclusive = ReservationType::ExclusiveAccess;
    let release = |kind| ReservationOp::Release { key: THEIRS, kind };
    assert_eq!(ask(&mut b, release(KIND)), Ok(None));
    assert_eq!(ask(&mut b, reserve(THEIRS, exclusive)), Ok(None), "NVMe grants it to a host with all its queues");
    assert_eq!((io(&mut a, Op::Read), io(&mut b, Op::Write)), (Code::ReservationConflict, Code::Ok));
    assert_eq!(code(ask(&mut b, release(KIND))), Some(Code::Invalid), "that is not how it is held");
    assert_eq!(ask(&mut b, ReservationOp::Clear { key: THEIRS }), Ok(None));
    assert!(report(&mut a).registrants.is_empty() && io(&mut a, Op::Write) == Code::Ok);
    assert_eq!(code(ask(&mut a, ReservationOp::Register { key: 0 })), Some(Code::Invalid));
}

/// The registration is that of the host: another way of the same host has it, and so has one that was made again.
#[test]
fn a_registration_covers_every_way_of_the_host() {
    let target = start(target_config(&["ram://1MiB"]));
    let (mut a, mut b) = (host(&target, 1, ""), host(&target, 2, ""));
    assert_eq!(ask(&mut a, ReservationOp::Register { key: OURS }), Ok(None));
    assert_eq!(ask(&mut a, ReservationOp::Reserve { key: OURS, kind: ReservationType::WriteExclusive }), Ok(None));
    let mut again = host(&target, 1, "&queue_depth=7");
    assert_eq!((io(&mut again, Op::Write), io(&mut b, Op::Write)), (Code::Ok, Code::ReservationConflict));
    assert_eq!(ask(&mut again, ReservationOp::Join { key: OURS, host: None }), Ok(None));
    let found = report(&mut again);
    assert!(found.registrants.len() == 2 && found.registrants.iter().all(|r| r.key == OURS && r.holder), "{found:?}");
    target.reset(0).unwrap();
    a.wait_down();
    a.wait_ready();
    assert_eq!(ask(&mut a, ReservationOp::Join { key: OURS, host: None }), Ok(None));
    assert_eq!(io(&mut a, Op::Write), Code::Ok);
    assert_eq!(ask(&mut a, ReservationOp::Unregister { key: OURS }), Ok(None));
    b.wait_ready();
    assert!(report(&mut b).registrants.is_empty() && io(&mut b, Op::Write) == Code::Ok);
}

/// Two hosts may be configured with one key: what one of them is registered with says nothing of the other.
#[test]
fn the_registration_of_another_host_with_the_same_key_is_not_ours() {
    let target = start(target_config(&["ram://1MiB"]));
    let (mut a, mut b, mut c) = (host(&target, 1, ""), host(&target, 2, ""), host(&target, 3, ""));
    for rig in [&mut a, &mut b] {
        assert_eq!(ask(rig, ReservationOp::Register { key: OURS }), Ok(None));
    }
    let joins = |rig: &Rig, own: bool| {
        let host = rig.device.reservations().unwrap().host().filter(|_| own);
        ReservationOp::Join { key: OURS, host }
    };
    let (mine, anybody) = (joins(&a, true), joins(&a, false));
    assert_eq!(ask(&mut a, mine), Ok(None), "it is there");
    assert_eq!(ask(&mut a, ReservationOp::Unregister { key: OURS }), Ok(None));
    assert_eq!(code(ask(&mut a, mine)), Some(Code::ReservationConflict), "somebody has ended it");
    let hosts = |rig: &mut Rig| {
        let mut hosts: Vec<_> = report(rig).registrants.iter().filter_map(|r| r.host.map(|id| id[3])).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    };
    assert_eq!(hosts(&mut a), [2], "and it is not taken back");
    // A way that has another identifier joins what is registered for the first.
    assert_eq!(ask(&mut c, anybody), Ok(None));
    assert_eq!(hosts(&mut c), [2, 3]);
}

/// As many queues as the target grants carry I/O: then there is none for reservations, unless one more is granted.
#[test]
fn the_queue_of_reservations_is_one_more() {
    for (granted, want) in [(1, Some(Code::PathBusy)), (2, None)] {
        let mut config = target_config(&["ram://1MiB"]);
        config.max_io_queues = granted;
        let target = start(config);
        let mut rig = host(&target, 1, "&queues=1");
        let answer = ask(&mut rig, ReservationOp::Register { key: OURS });
        assert_eq!(answer.as_ref().err().map(|(code, _)| *code), want, "{granted}: {answer:?}");
        assert_eq!(io(&mut rig, Op::Write), Code::Ok, "and I/O goes on");
    }
}

/// What was sent when the way was lost may have been carried out; what was not sent was not.
#[test]
fn what_is_lost_in_the_middle_is_unknown_and_not_sent_again() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = host(&target, 1, "&silence_timeout_ms=200");
    assert_eq!(ask(&mut rig, ReservationOp::Register { key: OURS }), Ok(None));
    target.drop_silently(0).unwrap();
    let told = begin(&rig, ReservationOp::Reserve { key: OURS, kind: KIND });
    let answer = rig.wait("an answer", |_| told.try_recv().ok());
    assert_eq!(code(answer), Some(Code::OutcomeUnknown));
    rig.wait_down();
    assert_eq!(code(ask(&mut rig, ReservationOp::Report)), Some(Code::PathLost));
    target.restore(0).unwrap();
    rig.wait_ready();
    assert_eq!(report(&mut rig).held, None, "it never came");
}
