//! One path carries everything: which one, when it changes, and that no request fails by it.

use crate::common::scripted::{Bench, info};
use polypath_block::{Access, Code, DeviceInfo, Health, Io, Op, Proof, SegSpan};
use polypath_multipath::{Failback, GroupConfig, SelectorKind};

const fn read(tag: u64) -> Io {
    Io::read(tag, tag, 1, SegSpan::EMPTY)
}

/// A group of `paths` equal paths.
fn bench(failback: Failback, paths: usize) -> Bench {
    let selector = SelectorKind::Preferred { failback };
    let config = GroupConfig { selector, ..GroupConfig::new("disk") };
    Bench::new(config, (0..paths).map(|_| info("a")).collect())
}

fn with_access(access: Access) -> DeviceInfo {
    DeviceInfo { access, ..info("a") }
}

/// Which path carries requests now: a batch of reads, and what is not for the straight line. All of them succeed.
fn used(b: &mut Bench) -> usize {
    b.turns(2);
    b.take_done();
    b.submit_all(&(0..16).map(read).collect::<Vec<_>>()).unwrap();
    b.submit_all(&(16..20).map(|tag| Io::range(tag, Op::Discard, tag, 1)).collect::<Vec<_>>()).unwrap();
    b.kick();
    let counts: Vec<_> = b.devices.iter().map(|d| d.in_flight().len()).collect();
    let at = counts.iter().position(|&count| count == 20);
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turn();
    let done = b.take_done();
    assert!(done.len() == 20 && done.iter().all(|&(_, code)| code == Code::Ok), "{done:?}");
    at.unwrap_or_else(|| panic!("several paths were used: {counts:?}"))
}

#[test]
fn the_first_one_or_the_one_that_is_marked() {
    let mut b = bench(Failback::Immediate, 3);
    assert_eq!(used(&mut b), 0, "the first one");
    b.devices[2].set_preferred(true);
    assert_eq!(used(&mut b), 2, "its target wants it");
    b.group.set_preferred(b.ids[1], true).unwrap();
    assert_eq!(used(&mut b), 1, "the operator wants it");
    assert_eq!((b.stats(1).preferred, b.stats(2).preferred), (true, false), "what the operator said");
    b.group.set_preferred(b.ids[1], false).unwrap();
    assert_eq!(used(&mut b), 2);
    b.devices[2].set_preferred(false);
    assert_eq!(used(&mut b), 0);
    b.finish();
}

#[test]
fn better_access_comes_before_any_preference() {
    for failback in [Failback::Immediate, Failback::Never] {
        let mut b = bench(failback, 3);
        b.group.set_preferred(b.ids[0], true).unwrap();
        assert_eq!(used(&mut b), 0);
        b.devices[0].set_live(with_access(Access::NonOptimized));
        assert_eq!(used(&mut b), 1, "{failback}");
        b.devices[1].set_live(with_access(Access::Inaccessible));
        assert_eq!(used(&mut b), 2, "{failback}");
        b.devices[2].set_live(with_access(Access::Change));
        assert_eq!(used(&mut b), 0, "{failback}: what is left");
        b.devices[2].set_live(with_access(Access::Optimized));
        assert_eq!(used(&mut b), 2, "{failback}: better access is used at once");
        b.finish();
    }
}

#[test]
fn it_fails_back_at_once_or_stays() {
    for (failback, back) in [(Failback::Immediate, 0), (Failback::Never, 1)] {
        let mut b = bench(failback, 3);
        b.group.set_preferred(b.ids[0], true).unwrap();
        assert_eq!(used(&mut b), 0);
        b.devices[0].set_health(Health::Down);
        assert_eq!(used(&mut b), 1, "{failback}");
        b.devices[0].set_health(Health::Ready);
        assert_eq!(used(&mut b), back, "{failback}");
        b.devices[1].set_health(Health::Down);
        assert_eq!(used(&mut b), 0, "{failback}");
        b.devices[1].set_health(Health::Ready);
        assert_eq!(used(&mut b), 0, "{failback}");
        // It is out, and another path that comes in its place is no heir of it.
        b.group.remove_path(b.ids[0]).unwrap();
        b.turns(4);
        b.add(info("a"));
        b.turns(2);
        assert_eq!(used(&mut b), 1, "{failback}");
        b.finish();
    }
}

#[test]
fn while_all_are_away_who_was_used_last_is_remembered() {
    for (failback, then) in [(Failback::Immediate, 0), (Failback::Never, 1)] {
        let mut b = bench(failback, 2);
        b.devices[0].set_health(Health::Down);
        assert_eq!(used(&mut b), 1);
        b.devices[1].set_health(Health::Down);
        b.turns(2);
        b.devices.iter().for_each(|d| d.set_health(Health::Ready));
        assert_eq!(used(&mut b), then, "{failback}");
        b.finish();
    }
}

#[test]
fn one_that_is_full_is_waited_for() {
    let mut b = bench(Failback::Immediate, 2);
    assert_eq!(used(&mut b), 0);
    b.devices[0].set_room(4);
    b.submit_all(&(0..16).map(read).collect::<Vec<_>>()).unwrap();
    for _ in 0..16 {
        b.turn();
        assert!(b.devices[0].in_flight().len() <= 4 && b.devices[1].in_flight().is_empty());
        b.devices[0].succeed_all();
    }
    b.turn();
    assert_eq!(b.take_done().len(), 16);
    b.finish();
}

#[test]
fn what_the_used_one_fails_goes_to_the_next_one_and_moves_everything() {
    for (failback, then) in [(Failback::Immediate, 0), (Failback::Never, 1)] {
        let mut b = bench(failback, 2);
        assert_eq!(used(&mut b), 0);
        b.take_done();
        let tag = b.write(5);
        let io = b.devices[0].only();
        b.devices[0].complete(io, Code::PathNoAccess, Proof::Answered);
        b.turns(2);
        b.devices[1].succeed_all();
        b.turn();
        assert_eq!(b.outcome(tag), Some(Code::Ok));
        // Longer than it is avoided.
        b.pass(2000);
        assert_eq!(used(&mut b), then, "{failback}");
        b.finish();
    }
}

#[test]
fn turns_of_several_requests_keep_batches_together() {
    let config = GroupConfig { selector: SelectorKind::RoundRobin { min_io: 8 }, ..GroupConfig::new("disk") };
    let mut b = Bench::new(config, vec![info("a"), info("b")]);
    // The first request freezes the group and is one of a turn.
    let mut first = Vec::new();
    for tag in 0..48 {
        b.submit_all(&[read(tag)]).unwrap();
        let at = b.devices.iter().position(|d| !d.in_flight().is_empty()).unwrap();
        first.push(at);
        b.devices[at].succeed_all();
        b.turn();
    }
    b.take_done();
    let turns: Vec<_> = first.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
    assert_eq!(turns, [8; 6], "{first:?}");
    b.finish();
}
