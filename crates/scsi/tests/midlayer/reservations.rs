//! Persistent reservations through the mid-layer: every nexus is registered before it carries anything, and nothing is stolen back.

use crate::script::{BLOCK, Driven, Reply, Rig, Rule, ms, rig};
use polypath_block::{
    Code, Device, Health, Io, ReservationError, ReservationOp as Op, ReservationReply, ReservationReport,
    ReservationResult, ReservationType, Scope,
};
use polypath_scsi::ScsiStatus;
use polypath_scsi::opcode::{self, pr_out};
use std::sync::mpsc::{Receiver, channel};

const KEY: u64 = 0xa11ce;
const THEIRS: u64 = 0xb0b;
/// The nexus of another host.
const OTHER: u64 = 1000;
const KIND: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;

fn start(rig: &Rig, op: Op) -> Receiver<ReservationResult> {
    let (tell, told) = channel();
    // Whoever asked may have gone.
    let reply = ReservationReply::new(move |result| tell.send(result).unwrap_or(()));
    rig.disk.reservations().unwrap().start(op, ms(2000), reply);
    told
}

/// Asks, and gives turns to the control side and to a queue until there is an answer.
fn ask(rig: &mut Rig, queue: Option<&mut Driven>, op: Op) -> ReservationResult {
    let told = start(rig, op);
    let mut queue = queue;
    for _ in 0..400 {
        if let Ok(result) = told.try_recv() {
            return result;
        }
        rig.now = rig.now.after(ms(10));
        rig.scanner.poll(rig.now, 0);
        if let Some(queue) = &mut queue {
            queue.turn(rig, 1);
        }
    }
    panic!("{op:?} has no answer");
}

fn report(rig: &mut Rig) -> ReservationReport {
    ask(rig, None, Op::Report).unwrap().unwrap()
}

fn write(d: &mut Driven, rig: &mut Rig, tag: u64) -> Code {
    let (span, before) = (d.span(0, BLOCK), d.done.completions.len());
    d.submit(rig, Io::write(tag, 0, 1, span)).unwrap();
    assert!(d.until(rig, 400, |done| done.completions.len() > before), "{tag}");
    d.done.completions[before].status.code
}

fn code(result: ReservationResult) -> Code {
    result.err().map_or(Code::Ok, |error: ReservationError| error.code)
}

#[test]
fn every_nexus_is_registered_before_the_answer_and_before_it_carries_anything() {
    let mut rig = rig(100);
    let mut first = Driven::open(&mut rig);
    assert_eq!(ask(&mut rig, Some(&mut first), Op::Register { key: KEY }), Ok(None));
    rig.script(|s| assert_eq!(s.pr.registered.iter().map(|(_, key)| *key).collect::<Vec<_>>(), [KEY; 2]));
    assert_eq!(ask(&mut rig, Some(&mut first), Op::Reserve { key: KEY, kind: KIND }), Ok(None));
    assert_eq!(write(&mut first, &mut rig, 1), Code::Ok);
    // A queue that comes later.
    let mut second = Driven::open(&mut rig);
    assert_eq!(write(&mut second, &mut rig, 2), Code::Ok);
    let found = report(&mut rig);
    assert_eq!((found.registrants.len(), found.held, found.is_held_by(KEY)), (3, Some(KIND), true));
    // Another key, and none.
    assert_eq!(
        ask(&mut rig, Some(&mut second), Op::Register { key: 7 }).map_err(|e| e.code),
        Err(Code::OutcomeUnknown)
    );
    first.turn(&mut rig, 1);
    (0..50).for_each(|_| first.turn(&mut rig, 1));
    rig.script(|s| assert!(s.pr.registered.iter().all(|(_, key)| *key == 7), "{:?}", s.pr.registered));
    drop(first);
    assert_eq!(ask(&mut rig, Some(&mut second), Op::Unregister { key: 7 }), Ok(None));
    rig.script(|s| assert!(s.pr.registered.len() <= 1 && s.pr.held.is_none(), "{:?}", s.pr.registered));
    assert_eq!(write(&mut second, &mut rig, 3), Code::Ok);
}

#[test]
fn a_session_that_was_made_again_is_registered_before_anything_else() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    ask(&mut rig, Some(&mut d), Op::Register { key: KEY }).unwrap();
    ask(&mut rig, Some(&mut d), Op::Reserve { key: KEY, kind: KIND }).unwrap();
    // The target knows the key through the control session alone; the other one is a new nexus to it.
    rig.script(|s| {
        s.up = false;
        s.pr.registered.truncate(1);
    });
    d.turn(&mut rig, 1);
    rig.script(|s| {
        (s.up, s.nexus) = (true, 2);
        s.pr.log.clear();
        s.commands.clear();
    });
    assert!((0..200).any(|_| {
        d.turn(&mut rig, 1);
        d.queue.health() == Health::Ready
    }));
    rig.script(|s| assert_eq!(s.pr.log.len(), 1, "registered once"));
    let first = rig.script(|s| s.commands.iter().copied().take(2).collect::<Vec<_>>());
    assert_eq!(first, [opcode::PERSISTENT_RESERVE_IN, opcode::PERSISTENT_RESERVE_OUT]);
    assert_eq!(write(&mut d, &mut rig, 1), Code::Ok);
}

#[test]
fn what_another_host_has_is_a_conflict_of_the_request() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    rig.script(|s| {
        s.pr.registered.push((OTHER, THEIRS));
        s.pr.held = Some((OTHER, KIND));
    });
    assert_eq!(write(&mut d, &mut rig, 1), Code::ReservationConflict);
    assert_eq!(d.done.completions[0].status.scope(), Scope::Io);
    for op in [Op::Reserve { key: KEY, kind: KIND }, Op::Clear { key: KEY }, Op::Unregister { key: KEY }] {
        assert_eq!(code(ask(&mut rig, Some(&mut d), op)), Code::ReservationConflict, "{op:?} by nobody");
    }
    assert_eq!(
        code(ask(&mut rig, Some(&mut d), Op::Join { key: KEY, host: None })),
        Code::ReservationConflict,
        "nobody has joined"
    );
    ask(&mut rig, Some(&mut d), Op::Register { key: KEY }).unwrap();
    assert_eq!(write(&mut d, &mut rig, 2), Code::Ok);
    assert_eq!(code(ask(&mut rig, Some(&mut d), Op::Reserve { key: KEY, kind: KIND })), Code::ReservationConflict);
    let preempts = Op::Preempt { key: KEY, victim: THEIRS, kind: KIND, abort: true };
    ask(&mut rig, Some(&mut d), preempts).unwrap();
    rig.script(|s| assert!(s.pr.log.iter().any(|(_, action)| *action == pr_out::PREEMPT_AND_ABORT)));
    let found = report(&mut rig);
    assert!(found.is_held_by(KEY) && !found.has(THEIRS), "{found:?}");
    ask(&mut rig, Some(&mut d), Op::Release { key: KEY, kind: KIND }).unwrap();
    assert_eq!(report(&mut rig).held, None);
    ask(&mut rig, Some(&mut d), Op::Clear { key: KEY }).unwrap();
    assert_eq!(report(&mut rig).registrants, []);
}

#[test]
fn what_was_preempted_is_told_and_never_stolen_back() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    ask(&mut rig, Some(&mut d), Op::Register { key: KEY }).unwrap();
    ask(&mut rig, Some(&mut d), Op::Reserve { key: KEY, kind: KIND }).unwrap();
    let (alarms, version) = (rig.disk.reservations().unwrap().alarms(), rig.disk.version());
    rig.script(|s| {
        s.pr.registered.push((OTHER, THEIRS));
        s.pr.preempt(OTHER, KEY, KIND);
        s.pr.log.clear();
    });
    // The unit attention is heard, and the request is sent again, to hear of the conflict.
    assert_eq!(write(&mut d, &mut rig, 1), Code::ReservationConflict);
    assert!(rig.disk.reservations().unwrap().alarms() > alarms && rig.disk.version() > version);
    assert!(!report(&mut rig).has(KEY));
    // The session is lost and made again: the key is gone, and nobody takes it back.
    rig.script(|s| s.up = false);
    d.turn(&mut rig, 1);
    rig.script(|s| (s.up, s.nexus) = (true, 2));
    for _ in 0..300 {
        d.turn(&mut rig, 10);
        rig.scanner.poll(rig.now, 0);
    }
    assert_eq!(d.queue.health(), Health::Ready, "it can be read");
    rig.script(|s| assert_eq!((s.pr.log.clone(), s.pr.registered.clone()), (vec![], vec![(OTHER, THEIRS)])));
    assert_eq!(write(&mut d, &mut rig, 2), Code::ReservationConflict);
}

#[test]
fn a_session_that_cannot_be_registered_carries_nothing() {
    let mut rig = rig(100);
    ask(&mut rig, None, Op::Register { key: KEY }).unwrap();
    rig.script(|s| {
        let reply = Reply::Status(ScsiStatus(0x7e));
        s.rules = vec![Rule { opcodes: &[opcode::PERSISTENT_RESERVE_OUT], times: 1, reply }];
    });
    let mut d = Driven::open(&mut rig);
    assert_eq!(d.queue.health(), Health::Down);
    assert!(
        (0..2000).any(|_| {
            d.turn(&mut rig, 1);
            d.queue.health() == Health::Ready
        }),
        "it is tried again"
    );
    rig.script(|s| assert_eq!(s.pr.registered.len(), 2));
}

#[test]
fn what_is_lost_in_the_middle_is_not_sent_again() {
    for (lost_by, fenced) in [("the way", true), ("time", false)] {
        let mut rig = rig(100);
        ask(&mut rig, None, Op::Register { key: KEY }).unwrap();
        rig.script(|s| {
            s.rules = vec![Rule { opcodes: &[opcode::PERSISTENT_RESERVE_OUT], times: 1, reply: Reply::Never }];
            s.pr.log.clear();
        });
        let told = start(&rig, Op::Reserve { key: KEY, kind: KIND });
        let turns = |rig: &mut Rig, n: usize| {
            (0..n).for_each(|_| {
                rig.now = rig.now.after(ms(10));
                rig.scanner.poll(rig.now, 0);
            })
        };
        turns(&mut rig, 20);
        assert!(told.try_recv().is_err());
        if fenced {
            rig.script(|s| s.up = false);
            turns(&mut rig, 2);
            rig.script(|s| (s.up, s.nexus) = (true, 2));
            turns(&mut rig, 2);
            assert!(told.try_recv().is_err(), "it may still be carried out");
            rig.script(|s| s.proof = Some(polypath_block::Proof::Reinstated));
        }
        turns(&mut rig, 400);
        let error = told.try_recv().unwrap().unwrap_err();
        assert_eq!(error.code, Code::OutcomeUnknown, "{lost_by}: {error}");
        // Told in time, and before anybody knows that it cannot come any more.
        assert_eq!(error.quiet, fenced.then_some(polypath_block::Proof::Reinstated), "{lost_by}: {error}");
        rig.script(|s| {
            s.proof = Some(polypath_block::Proof::Reinstated);
            assert!(!s.pr.log.iter().any(|(_, action)| *action == pr_out::RESERVE), "{lost_by}");
        });
        turns(&mut rig, 20);
        assert_eq!(report(&mut rig).held, None, "{lost_by}: and that is known then");
        ask(&mut rig, None, Op::Reserve { key: KEY, kind: KIND }).unwrap();
    }
}

#[test]
fn what_cannot_be_asked_is_said_at_once() {
    let mut rig = rig(100);
    let exclusive = ReservationType::ExclusiveAccess;
    for (op, code_) in [
        (Op::Register { key: 0 }, Code::Invalid),
        (Op::Reserve { key: KEY, kind: exclusive }, Code::Unsupported),
        (Op::Preempt { key: KEY, victim: 1, kind: exclusive, abort: false }, Code::Unsupported),
    ] {
        assert_eq!(code(start(&rig, op).try_recv().unwrap()), code_, "{op:?}");
    }
    rig.script(|s| s.up = false);
    rig.scan();
    assert_eq!(code(ask(&mut rig, None, Op::Report)), Code::PathLost);
    let told = start(&rig, Op::Report);
    rig.host.bus.set_state(polypath_scsi::midlayer::BusState::Gone { reason: "over".into() });
    assert_eq!(code(told.try_recv().unwrap()), Code::OutcomeUnknown);
    assert_eq!(code(start(&rig, Op::Report).try_recv().unwrap()), Code::Gone);
}

/// Another host has reserved the disk, so that its mode pages cannot be read: what they would tell is known once we are registered.
#[test]
fn what_could_not_be_read_is_read_once_we_are_registered() {
    let mut rig = rig(100);
    rig.script(|s| {
        s.pr.registered.push((OTHER, THEIRS));
        s.pr.held = Some((OTHER, KIND));
        (s.up, s.nexus) = (false, 2);
    });
    rig.scan();
    rig.script(|s| s.up = true);
    rig.scan();
    let fua = |rig: &Rig| rig.disk.state().info().map(|info| (info.limits.fua, info.limits.write_cache));
    assert_eq!(fua(&rig), Some((false, true)), "nothing that is not known is promised");
    let mut d = Driven::open(&mut rig);
    let durable = |d: &mut Driven, rig: &mut Rig, tag| {
        let (span, before) = (d.span(0, BLOCK), d.done.completions.len());
        d.submit(rig, Io::write(tag, 0, 1, span).with_flags(polypath_block::Flags::FUA)).unwrap();
        assert!(d.until(rig, 400, |done| done.completions.len() > before));
        d.done.completions[before].status.code
    };
    assert_eq!(durable(&mut d, &mut rig, 1), Code::Unsupported);
    ask(&mut rig, Some(&mut d), Op::Register { key: KEY }).unwrap();
    rig.scan();
    assert_eq!(fua(&rig), Some((true, true)));
    assert_eq!(durable(&mut d, &mut rig, 2), Code::Ok);
}

/// Another host preempts us between the look at the keys and the registration of a session that was made again.
#[test]
fn what_is_preempted_while_a_session_joins_is_not_stolen_back_either() {
    let mut rig = rig(100);
    let mut d = Driven::open(&mut rig);
    ask(&mut rig, Some(&mut d), Op::Register { key: KEY }).unwrap();
    ask(&mut rig, Some(&mut d), Op::Reserve { key: KEY, kind: KIND }).unwrap();
    rig.script(|s| s.up = false);
    d.turn(&mut rig, 1);
    rig.script(|s| {
        (s.up, s.nexus) = (true, 2);
        s.commands.clear();
    });
    assert!((0..100).any(|_| {
        d.turn(&mut rig, 1);
        rig.script(|s| s.commands.contains(&opcode::PERSISTENT_RESERVE_IN))
    }));
    rig.script(|s| {
        s.pr.registered.push((OTHER, THEIRS));
        s.pr.preempt(OTHER, KEY, KIND);
    });
    for _ in 0..300 {
        d.turn(&mut rig, 1);
    }
    assert_eq!(d.queue.health(), Health::Ready, "it can be read");
    rig.script(|s| assert_eq!(s.pr.registered, [(OTHER, THEIRS)]));
    assert_eq!(write(&mut d, &mut rig, 1), Code::ReservationConflict);
}
