//! Requests that a path cannot take, in parts or whole: they wait for one that can, and are told when none will.

use crate::common::scripted::{Bench, info, segments};
use polypath_block::{Code, DeviceInfo, Health, Io, Limits, Op, Proof, SegSpan};

const WRITE: fn(u64, u32) -> Io = |lba, blocks| Io::write(0, lba, blocks, SegSpan::EMPTY);

/// Two paths under a group that shows no limit of segments. Requests have too many small ones for the second path to be cut for it.
fn first_takes() -> Bench {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.group.freeze();
    b.cut_segments(8, 64);
    b.devices[1].set_live(segments(4));
    b.turns(3);
    b
}

/// A path lost an ability before anybody relied on it; the queue has not heard of it when the first request comes.
#[test]
fn an_ability_that_is_lost_just_before_the_first_request_does_no_harm() {
    for op in [Op::WriteZeroes, Op::Discard] {
        let mut b = Bench::with_caches(&["a"]);
        let none = Limits { max_write_zeroes_blocks: 0, max_discard_blocks: 0, ..info("a").limits };
        b.devices[0].set_live(DeviceInfo { limits: none, ..info("a") });
        // Somebody asks for numbers.
        drop(b.group.statistics());
        let tag = b.submit(Io::range(0, op, 0, 8));
        b.turns(4);
        assert!(b.outcome(tag).is_none_or(|code| code == Code::Unsupported), "{:?}", b.outcome(tag));
        b.finish();
    }
}

/// The only path that takes the request has news (its version moves) in the moment of the submit.
#[test]
fn a_request_does_not_fail_because_the_path_that_takes_it_has_news() {
    let mut b = first_takes();
    b.devices[0].set_live(info("a"));
    let tag = b.submit(Io::read(0, 0, 1, SegSpan::EMPTY));
    b.turns(2);
    assert_eq!(b.outcome(tag), None, "the group shows no limit of segments, and a path without one is there");
    b.succeed_within(10, &[tag]);
    b.finish();
}

/// It reconnects.
#[test]
fn a_request_waits_for_the_path_that_takes_it() {
    let mut b = first_takes();
    b.devices[0].set_health(Health::Down);
    let tag = b.submit(Io::read(0, 0, 1, SegSpan::EMPTY));
    b.turns(2);
    b.devices[0].set_health(Health::Ready);
    b.turns(2);
    assert_eq!(b.outcome(tag), None, "the group shows no limit of segments");
    b.succeed_within(10, &[tag]);
    b.finish();
}

/// A write that its path has refused for a moment is not for the other path to fail.
#[test]
fn a_request_on_its_way_back_does_not_fail_either() {
    let mut b = first_takes();
    let tag = b.submit(WRITE(0, 1));
    let io = b.devices[0].only();
    // Its connection is lost; it returns ten milliseconds later.
    b.devices[0].complete(io, Code::PathLost, Proof::NeverSent);
    b.devices[0].set_health(Health::Down);
    b.turn();
    b.devices[0].set_health(Health::Ready);
    b.pass(20);
    assert_eq!(b.outcome(tag), None, "told {:?}", b.completion(tag));
    b.succeed_within(200, &[tag]);
    b.finish();
}

/// One path refuses, the other one cannot take it: every path has answered.
#[test]
fn a_refusal_is_told_when_no_other_path_can_be_asked() {
    let mut b = first_takes();
    let tag = b.submit(Io::read(0, 0, 1, SegSpan::EMPTY));
    b.devices[0].complete(b.devices[0].only(), Code::OutOfRange, Proof::Answered);
    for _ in 0..100 {
        b.pass(10);
        for io in b.devices[0].in_flight() {
            b.devices[0].complete(io, Code::OutOfRange, Proof::Answered);
        }
    }
    assert_eq!(b.outcome(tag), Some(Code::OutOfRange), "asked {} times", b.devices[0].taken().len());
    b.finish();
}

/// What no path takes, and none that is away may take, is told at once; a path on its way out is none to wait for.
#[test]
fn what_no_path_takes_is_told_at_once() {
    for leaving in [false, true] {
        let mut b = Bench::with_caches(&["a", "a"]);
        b.group.freeze();
        let held = b.submit(Io::read(0, 500, 1, SegSpan::EMPTY));
        let at = usize::from(b.devices[0].in_flight().is_empty());
        b.cut_segments(8, 64);
        b.devices[1 - at].set_live(segments(4));
        match leaving {
            true => b.group.remove_path(b.ids[at]).expect("there"),
            false => b.devices[at].set_live(segments(4)),
        }
        b.turns(3);
        let tag = b.submit(Io::read(0, 0, 1, SegSpan::EMPTY));
        b.turn();
        assert_eq!(b.outcome(tag), Some(Code::Invalid), "leaving: {leaving}");
        b.devices[at].succeed_all();
        b.turns(3);
        assert_eq!(b.outcome(held), Some(Code::Ok));
        b.finish();
    }
}
