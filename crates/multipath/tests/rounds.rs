//! Rounds over all paths, and what waits beside a path that could take it.

use crate::common::scripted::{Bench, info, segments};
use polypath_block::{Access, Code, DeviceInfo, Health, Io, Proof, SegSpan};
use polypath_multipath::GroupConfig;

const READ: fn(u64) -> Io = |lba| Io::read(0, lba, 1, SegSpan::EMPTY);

/// Whatever happens meanwhile, the first path is given the request again within a second: it is ready and idle.
fn is_asked_again(b: &mut Bench, tag: u64, meanwhile: impl Fn(&mut Bench)) {
    let began = b.now;
    while b.devices[0].in_flight().is_empty() && b.now.since(began).as_secs() < 130 {
        meanwhile(b);
    }
    let took = b.now.since(began);
    assert!(took.as_millis() < 1000, "was not asked again for {took:?}; {:?}", b.outcome(tag));
}

/// A flush that its path failed waits for another round; another path, which does not lead to its cache, comes and goes.
#[test]
fn a_path_that_comes_and_goes_does_not_keep_a_request_from_its_next_round() {
    let mut b = Bench::with_caches(&["c", "d"]);
    b.dirty(0, 1);
    let flush = b.flush();
    b.turn();
    b.fail_rounds(0, 6);
    b.turn();
    is_asked_again(&mut b, flush, |b| {
        for health in [Health::Down, Health::Ready] {
            b.devices[1].set_health(health);
            b.pass(20);
        }
    });
}

/// One path says "busy" once; the other one is silent and full.
#[test]
fn a_request_that_its_path_failed_once_does_not_wait_for_room_on_a_silent_one_for_ever() {
    let mut b = Bench::with_caches(&["c", "c"]);
    b.devices[1].set_room(1);
    while b.devices[1].in_flight().is_empty() {
        b.submit(READ(5));
        b.turn();
    }
    b.devices[0].succeed_all();
    b.devices[1].set_health(Health::Stalled);
    b.turns(2);
    let tag = b.submit(READ(1));
    let io = b.devices[0].only();
    b.devices[0].complete(io, Code::PathBusy, Proof::Answered);
    b.turn();
    is_asked_again(&mut b, tag, |b| b.pass(10));
}

/// A flush waits for a path that this reactor has no queue on; another reactor flushes the cache meanwhile.
#[test]
fn a_flush_that_waits_for_a_path_hears_that_another_reactor_has_cleaned_its_cache() {
    let mut b = Bench::with_caches(&["c", "d"]);
    b.devices[0].set_refuse_queues(true);
    let mut second = b.second_queue();
    b.dirty(0, 1);
    let waits = b.submit_to(&mut *second, Io::flush(0));
    assert!(b.turn_of(&mut *second).is_empty());
    assert_eq!(b.flush_now(), Some(Code::Ok));
    let began = b.now;
    let mut done = Vec::new();
    while done.is_empty() && b.now.since(began).as_secs() < 130 {
        b.pass(10);
        done = b.turn_of(&mut *second);
    }
    assert_eq!(done.iter().map(|c| (c.tag, c.status.code)).collect::<Vec<_>>(), [(waits, Code::Ok)]);
    assert!(b.now.since(began).as_millis() < 1000, "it had nothing to wait for, and waited {:?}", b.now.since(began));
}

/// Flushes wait for room on the better path, and behind them a write; the other path becomes as good.
#[test]
fn a_path_that_becomes_better_is_not_slept_beside() {
    let mut b =
        Bench::new(GroupConfig::new("disk"), vec![info("a"), DeviceInfo { access: Access::NonOptimized, ..info("b") }]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.devices[0].set_room(0);
    for _ in 0..30 {
        b.flush();
    }
    b.write(3);
    // All of it has been looked at: the reactor sleeps. The write is the last one again after a while.
    for _ in 0..50 {
        b.turn();
        if b.arm().is_some() {
            break;
        }
    }
    assert!(b.arm().is_some() && b.devices[1].in_flight().is_empty());
    b.devices[1].set_live(info("b"));
    let slept = b.sleeps_before(1);
    assert_eq!(slept, 0, "the reactor slept {slept} times beside an idle path that takes the write");
}

/// A request that one path failed waits for another round; a path comes and goes that cannot take it at all.
#[test]
fn a_path_that_cannot_take_it_does_not_keep_a_read_from_its_next_round() {
    let mut b = Bench::with_caches(&["c", "c"]);
    b.group.freeze();
    b.devices[1].set_live(segments(4));
    b.turns(2);
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    b.cut_segments(8, 64);
    let tag = b.submit(READ(1));
    b.fail_rounds(0, 6);
    b.turn();
    is_asked_again(&mut b, tag, |b| {
        for health in [Health::Ready, Health::Down] {
            b.devices[1].set_health(health);
            b.pass(20);
        }
    });
}
