//! Who is asked and who is waited for, what is held against whom, and what is told of it.

use crate::common::scripted::{BOUND, Bench, info, limited, segments};
use polypath_block::{Access, Code, DeviceInfo, Fate, Health, Io, Proof, SegSpan, Status};
use polypath_multipath::{Fencing, GroupConfig};

const WRITE: fn(u64, u32) -> Io = |lba, blocks| Io::write(0, lba, blocks, SegSpan::EMPTY);
const READ: fn(u64, u32) -> Io = |lba, blocks| Io::read(0, lba, blocks, SegSpan::EMPTY);

/// What is known of a path ends with it, its slot or not.
#[test]
fn what_a_removed_path_said_is_not_held_against_the_path_that_has_its_slot() {
    for first in 0..2 {
        let mut b = Bench::with_caches(&["a", "a"]);
        b.devices[1 - first].set_live(DeviceInfo { access: Access::NonOptimized, ..info("a") });
        b.turns(3);
        let tag = b.submit(READ(1, 1));
        b.devices[first].complete(b.devices[first].only(), Code::OutOfRange, Proof::Answered);
        b.turn();
        let io = b.devices[1 - first].only();
        b.group.remove_path(b.ids[first]).expect("there");
        // The flush before the removal.
        for _ in 0..3 {
            b.devices[first].succeed_all();
            b.turn();
        }
        assert_eq!(b.group.paths().len(), 1);
        b.add(info("a"));
        b.turns(3);
        b.devices[1 - first].complete(io, Code::OutOfRange, Proof::Answered);
        b.turn();
        let io = b.devices[2].only();
        assert_eq!((io.lba, b.outcome(tag)), (1, None), "the new path has never been asked, and is asked at once");
        b.devices[2].complete(io, Code::PathLost, Proof::Answered);
        b.turn();
        assert_eq!(b.outcome(tag), None, "nor has it refused it");
        b.finish();
    }
}

/// One path refuses; the other one has news, or is away, in that moment.
#[test]
fn no_refusal_is_told_while_a_path_that_was_not_asked_has_news() {
    refused_while(false);
}

/// As before: the other one is down for a turn.
#[test]
fn no_refusal_is_told_while_a_path_that_was_not_asked_is_away() {
    refused_while(true);
}

fn refused_while(away: bool) {
    let mut b = Bench::with_caches(&["a", "a"]);
    let tag = b.submit(READ(1, 1));
    let first = usize::from(b.devices[0].in_flight().is_empty());
    let io = b.devices[first].only();
    b.devices[first].complete(io, Code::OutOfRange, Proof::Answered);
    if away {
        b.devices[1 - first].set_health(Health::Down);
        b.turn();
        b.devices[1 - first].set_health(Health::Ready);
    } else {
        // Nothing but its version moves, after this turn has looked at it.
        b.devices[1 - first].on_next_health(|d| d.touch());
        b.turn();
    }
    b.turns(2);
    assert_eq!(b.outcome(tag), None, "away: {away}: the other path has not been asked");
}

/// A full path cannot take the request at all, and one that can is idle.
#[test]
fn no_request_waits_for_room_on_a_path_that_cannot_take_it() {
    for full in 0..2 {
        let mut b = Bench::with_caches(&["a", "a"]);
        b.group.freeze();
        b.devices[full].set_live(segments(4));
        b.devices[1 - full].set_live(DeviceInfo { access: Access::NonOptimized, ..info("a") });
        b.turns(3);
        b.devices[full].set_room(1);
        // Both fit the full path, which is the better one; the second of them finds it full.
        b.submit(READ(7, 1));
        b.submit(READ(8, 1));
        b.cut_segments(8, 64);
        b.turns(2);
        let tag = b.submit(READ(9, 1));
        b.pass(100);
        assert!(
            b.devices[1 - full].in_flight().iter().any(|io| io.lba == 9),
            "{full} is full, the other one is idle and takes it: {:?}",
            b.outcome(tag)
        );
    }
}

/// The same, and the one that takes it is away for good.
#[test]
fn a_request_that_no_usable_path_takes_keeps_its_time_limit_while_one_is_full() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.group.freeze();
    b.devices[0].set_live(segments(4));
    b.turns(3);
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    b.devices[0].set_room(1);
    b.submit(READ(7, 1));
    b.cut_segments(8, 64);
    let tag = b.submit(READ(9, 1));
    b.turns(2);
    assert_eq!(b.outcome(tag), None);
    b.cut_segments(1, 512);
    // The first path is busy: it does a request each 350 ms, and always another one waits for room.
    b.submit(READ(5, 1));
    for n in 0..3000_u64 {
        if n % 7 == 0 {
            b.devices[0].succeed_all();
            b.submit(READ(10 + n % 100, 1));
        }
        b.pass(50);
        if b.outcome(tag).is_some() {
            break;
        }
    }
    assert_eq!(b.outcome(tag), Some(Code::NoPath), "at {:?}", b.now);
    assert!(b.now.as_nanos() < 70_000_000_000, "at {:?}", b.now);
}

/// Many flushes wait for room on one path, and behind them a write for an idle one.
#[test]
fn flushes_that_wait_for_room_do_not_make_the_reactor_sleep_beside_an_idle_path() {
    let mut b = Bench::with_caches(&["a", "b"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.devices[0].set_room(0);
    for _ in 0..30 {
        b.flush();
    }
    b.turn();
    let began = b.now;
    let tag = b.write(3);
    let slept = b.sleeps_before(1);
    assert_eq!(
        slept,
        0,
        "the reactor slept {slept} times, {:?}, beside an idle path: {:?}",
        b.now.since(began),
        b.outcome(tag)
    );
}

/// A part that was fenced, or not even that, and then succeeds elsewhere; another part fails: what is told of the write?
#[test]
fn the_weak_proof_of_an_attempt_is_told_when_its_part_succeeds_and_another_one_fails() {
    proof_of_parts(Fencing::On);
}

/// As before, without fencing: the attempt is open and nothing proves it quiet.
#[test]
fn what_is_not_proven_at_all_is_not_told_as_answered() {
    proof_of_parts(Fencing::Off);
}

fn proof_of_parts(fencing: Fencing) {
    let mut b = Bench::new(GroupConfig { fencing, ..GroupConfig::new("disk") }, vec![info("a"), info("a")]);
    b.group.freeze();
    b.devices.iter().for_each(|d| d.set_live(limited(32)));
    b.devices[1].set_health(Health::Down);
    b.turns(3);
    let tag = b.submit(WRITE(0, 64));
    let [one, two] = b.devices[0].in_flight()[..] else { panic!("two parts") };
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].suspect(one, Fate::Unknown);
    b.turn();
    if fencing == Fencing::On {
        b.devices[0].complete(one, Code::PathLost, BOUND);
        b.turns(2);
    }
    // It goes to the other path and succeeds.
    b.devices[1].succeed(b.devices[1].only());
    b.turns(2);
    b.devices[0].complete(two, Code::Medium, Proof::Answered);
    b.turns(2);
    let done = b.completion(tag).expect("done");
    let want = if fencing == Fencing::On { BOUND } else { Proof::None };
    assert_eq!((done.status, done.proof), (Status::new(Code::Medium), want), "{fencing:?}");
}

/// Without fencing a request is over while an attempt of it is open: late as its answer may be, it is nobody else's.
#[test]
fn no_tag_is_given_again_while_its_first_attempt_is_open() {
    let config = GroupConfig { fencing: Fencing::Off, ..GroupConfig::new("disk") };
    let mut b = Bench::new(config, vec![info("a"), info("a")]);
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    let old = b.submit(WRITE(1, 1));
    let io = b.devices[0].only();
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    b.devices[0].suspect(io, Fate::Unknown);
    b.devices[0].set_health(Health::Down);
    b.turn();
    b.devices[1].succeed_all();
    b.turn();
    assert_eq!(b.outcome(old), Some(Code::Ok));
    b.done.clear();
    // Slots of tasks have 16 bits that tell their users apart.
    for _ in 0..70_000 {
        b.submit(WRITE(2, 1));
        let new = b.devices[1].only();
        assert_ne!(new.tag, io.tag);
        b.devices[1].succeed(new);
        b.turn();
        b.done.clear();
    }
    let tag = b.submit(WRITE(2, 1));
    // The first attempt is answered late.
    b.devices[0].complete(io, Status::OK, Proof::Answered);
    b.turn();
    assert_eq!(b.outcome(tag), None, "its own attempt is in flight on the other path: {:?}", b.devices[1].in_flight());
}

/// A request has failed on its only path and is to wait for 100 ms; another one comes meanwhile.
#[test]
fn no_round_is_waited_for_beside_a_path_that_has_come() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    let tag = b.submit(READ(1, 1));
    b.fail_rounds(0, 8);
    b.turns(2);
    b.devices[1].set_health(Health::Ready);
    b.turn();
    assert_eq!(b.devices[1].in_flight().len(), 1, "{:?} sleeps until {:?} at {:?}", b.outcome(tag), b.arm(), b.now);
}

/// The other path does not come back: what the first one said is what is told, and not that there was no path.
#[test]
fn a_refusal_is_told_when_the_time_for_a_path_that_was_away_is_up() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    let (tag, began) = (b.submit(READ(1, 1)), b.now);
    for _ in 0..7_000 {
        b.devices[0]
            .in_flight()
            .into_iter()
            .for_each(|io| b.devices[0].complete(io, Code::OutOfRange, Proof::Answered));
        b.pass(10);
        if b.outcome(tag).is_some() {
            break;
        }
    }
    assert_eq!(b.outcome(tag), Some(Code::OutOfRange));
    assert!((60_000..61_000).contains(&b.now.since(began).as_millis()), "{:?}", b.now.since(began));
    b.finish();
}

/// A write that was fenced and succeeds elsewhere has its answer; what was weaker is of the past.
#[test]
fn one_that_succeeds_has_its_answer() {
    let mut b = Bench::with_caches(&["a", "a"]);
    let tag = b.write(1);
    let at = usize::from(b.devices[0].in_flight().is_empty());
    let io = b.devices[at].only();
    b.devices[at].suspect(io, Fate::Unknown);
    b.turn();
    b.devices[at].complete(io, Code::PathLost, BOUND);
    b.turns(2);
    b.devices[1 - at].succeed(b.devices[1 - at].only());
    b.turn();
    let done = b.completion(tag).expect("done");
    assert_eq!((done.status, done.proof), (Status::OK, Proof::Answered));
    b.finish();
}

/// Of two flushes, the later one cleans the cache, and then the last path goes.
#[test]
fn a_flush_waits_for_no_path_when_another_one_has_cleaned_its_cache() {
    let mut b = Bench::with_caches(&["a", "a"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    let first = b.flush();
    let at = usize::from(b.devices[0].in_flight().is_empty());
    let io = b.devices[at].only();
    let second = b.flush();
    let later = b.devices.iter().flat_map(|d| d.in_flight()).find(|i| *i != io).expect("sent");
    let by = usize::from(!b.devices[0].in_flight().contains(&later));
    b.devices[by].succeed(later);
    b.turn();
    assert_eq!((b.outcome(first), b.outcome(second)), (None, Some(Code::Ok)));
    b.devices[at].complete(io, Code::PathLost, Proof::Answered);
    b.devices.iter().for_each(|d| d.set_health(Health::Down));
    b.turns(2);
    assert_eq!(b.outcome(first), Some(Code::Ok));
    b.devices.iter().for_each(|d| d.set_health(Health::Ready));
    b.finish();
}

/// A full path takes the request in parts, which must wait until the first attempt is quiet; another one takes it whole.
#[test]
fn no_second_attempt_waits_for_room_on_a_path_that_takes_it_in_parts_only() {
    let worse = |info: DeviceInfo| DeviceInfo { access: Access::NonOptimized, ..info };
    let mut b = Bench::with_caches(&["a", "a", "a"]);
    b.group.freeze();
    let in_parts = DeviceInfo { limits: limited(1).limits, ..info("a") };
    b.devices[1].set_live(worse(in_parts.clone()));
    b.devices[2].set_live(worse(info("a")));
    b.turns(3);
    let tag = b.submit(READ(9, 2));
    let io = b.devices[0].only();
    b.devices[0].set_live(worse(info("a")));
    b.devices[1].set_live(in_parts);
    b.devices[1].set_room(1);
    b.turns(3);
    b.submit(READ(7, 1));
    b.submit(READ(8, 1));
    b.devices[0].suspect(io, Fate::NotSent);
    b.turn();
    assert_eq!(b.devices[1].in_flight().len(), 1, "full");
    assert_eq!(b.devices[2].only().lba, 9, "idle, and takes it: {:?}", b.outcome(tag));
    b.finish();
}
