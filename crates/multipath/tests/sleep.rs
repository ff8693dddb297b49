//! Until when a reactor may sleep: no longer than until the next thing that its queue must do, and no shorter for nothing.

use crate::common::scripted::{BOUND, Bench, info};
use polypath_block::{Code, DeviceInfo, DeviceState, Fate, Health, Io, Limits, Proof, SegSpan};
use polypath_multipath::{EventKind, GroupConfig};
use std::time::Duration;

const READ: fn(u64) -> Io = |lba| Io::read(0, lba, 1, SegSpan::EMPTY);

/// For how many milliseconds the reactor may sleep, 1000 for until the next second begins; `None`: it may not.
fn sleeps(b: &mut Bench) -> Option<u64> {
    let until = b.arm()?.expect("a deadline");
    assert!(until > b.now, "a deadline that has passed: the reactor would spin");
    let ms = until.since(b.now).as_millis() as u64;
    Some(if until.as_nanos().is_multiple_of(1_000_000_000) && ms <= 1000 { 1000 } else { ms })
}

/// All queues that nothing waits for look at the same moments, one a second, whenever they were asked.
#[test]
fn idle_queues_look_together() {
    let mut b = Bench::with_caches(&["a"]);
    let mut moments = std::collections::BTreeSet::new();
    for ms in [0, 1, 250, 500, 240, 8, 0] {
        asleep(&mut b, ms);
        b.turns(2);
        let until = b.arm().flatten().expect("a deadline");
        assert!(until > b.now && until.since(b.now) <= Duration::from_secs(1));
        moments.insert(until);
    }
    assert!(moments.len() <= 2, "{moments:?} within a second");
}

/// Lets time pass in which the reactor sleeps.
fn asleep(b: &mut Bench, ms: u64) {
    b.now = b.now.after(Duration::from_millis(ms));
}

#[test]
fn a_queue_with_nothing_to_do_looks_once_a_second() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    // One path has not answered yet, one is another disk, one is down.
    b.add_in(DeviceState::Starting);
    let mut other = info("b");
    other.geometry.blocks = 1;
    b.devices[1].set_live(other);
    b.devices[2].set_down(Code::PathLost, "connection reset");
    b.turns(4);
    assert_eq!(sleeps(&mut b), Some(1000));
    asleep(&mut b, 10_000);
    assert_eq!(sleeps(&mut b), Some(1000));
    b.finish();
}

#[test]
fn a_queue_with_something_waiting_or_about_to_end_looks_often() {
    let mut b = Bench::with_caches(&["a"]);
    b.devices[0].set_health(Health::Down);
    b.turn();
    let tag = b.submit(READ(1));
    assert_eq!(sleeps(&mut b), Some(10), "no path takes it");
    b.devices[0].set_health(Health::Ready);
    b.devices[0].set_room(0);
    b.turn();
    assert_eq!(sleeps(&mut b), Some(10), "its path has no room for it");
    b.devices[0].set_room(1);
    b.turn();
    assert_eq!(sleeps(&mut b), Some(1000), "its path will say when it is over");
    b.close_queue();
    assert_eq!(sleeps(&mut b), Some(10), "what is to be drained may drain without a word");
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

#[test]
fn what_was_submitted_is_kicked_before_the_reactor_sleeps() {
    let mut b = Bench::with_caches(&["a", "a"]);
    let before = [b.devices[0].kicks(), b.devices[1].kicks()];
    for _ in 0..2 {
        b.submit_unkicked(READ(1)).expect("accepted");
        assert_eq!(sleeps(&mut b), None);
        b.kick();
        assert_eq!(sleeps(&mut b), Some(1000));
    }
    let kicked = [0, 1].map(|i| b.devices[i].kicks() - before[i]);
    assert_eq!(kicked, [1, 1], "each took one request, and nobody is kicked for nothing");
    b.finish();
}

#[test]
fn a_queue_that_has_not_followed_a_change_does_not_sleep() {
    let mut b = Bench::with_caches(&["a"]);
    b.devices[0].set_live(DeviceInfo { max_depth: 3, ..info("a") });
    assert_eq!(sleeps(&mut b), None);
    b.turn();
    assert_eq!(sleeps(&mut b), Some(1000));
    b.group.set_weight(b.ids[0], 7).expect("there");
    assert_eq!(sleeps(&mut b), None);
    b.finish();
}

#[test]
fn parts_that_have_found_room_are_not_slept_upon() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    (0..3).for_each(|i| b.dirty(i, i as u64));
    b.devices[2].set_room(0);
    // Each of them needs three parts; the table for extra parts is full after 32, and the third one of each finds no room.
    for _ in 0..34 {
        b.flush();
    }
    b.turn();
    assert_eq!(sleeps(&mut b), None, "not all that wait for room have been looked at");
    b.turns(3);
    assert_eq!(sleeps(&mut b), Some(10), "there is nothing to do but wait");
    b.devices[2].set_gone();
    b.turn();
    assert_eq!(sleeps(&mut b), None, "parts were given up, and there is room for those of other requests");
    b.turn();
    assert!(sleeps(&mut b).is_some());
    b.finish();
}

#[test]
fn parts_that_find_room_because_others_ran_out_of_time_are_not_slept_upon() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    (0..3).for_each(|i| b.dirty(i, i as u64));
    b.devices[2].set_health(Health::Down);
    let tags: Vec<_> = (0..34).map(|_| b.flush()).collect();
    b.turns(2);
    assert_eq!(sleeps(&mut b), Some(10), "there is nothing to do but wait");
    asleep(&mut b, 60_001);
    b.turn();
    // Nothing else has changed that would keep it awake.
    assert_eq!(sleeps(&mut b), None, "the parts of other requests have room");
    b.devices.iter().for_each(|device| device.succeed_all());
    b.turns(2);
    assert!(tags.iter().filter(|&&tag| b.outcome(tag).is_some()).count() >= 32);
    b.finish();
}

#[test]
fn what_waits_for_a_path_that_is_avoided_is_looked_at_when_that_is_over() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.devices[1].set_room(0);
    while b.devices[0].in_flight().is_empty() {
        b.submit(READ(1));
    }
    b.devices[0].complete(b.devices[0].only(), Code::PathNoAccess, Proof::Answered);
    b.turn();
    asleep(&mut b, 94);
    b.turn();
    assert_eq!(sleeps(&mut b), Some(5), "of the hundred for which a path without access is avoided");
    asleep(&mut b, 6);
    b.turn();
    b.devices[0].succeed_all();
    b.devices[1].set_room(8);
    b.turns(2);
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turns(2);
    // With nothing waiting, an avoided path is no matter.
    // At another time than one at which idle queues look.
    asleep(&mut b, 130);
    b.submit(READ(1));
    let at = usize::from(b.devices[0].in_flight().is_empty());
    b.devices[at].complete(b.devices[at].only(), Code::PathBusy, Proof::Answered);
    b.turn();
    assert_eq!(sleeps(&mut b), Some(100), "until the incident can be told, not the ten of the path");
    b.devices[1 - at].succeed_all();
    b.finish();
}

#[test]
fn a_queue_that_could_not_be_opened_is_tried_again_after_a_second() {
    let mut b = Bench::new(GroupConfig::new("disk"), vec![]);
    b.add(info("a"));
    b.devices[0].set_refuse_queues(true);
    // So that the second is over at another time than one at which idle queues look.
    asleep(&mut b, 50);
    b.turn();
    assert_eq!((b.devices[0].asked_for_queues(), sleeps(&mut b)), (1, Some(1000)));
    asleep(&mut b, 959);
    b.turn();
    assert_eq!((b.devices[0].asked_for_queues(), sleeps(&mut b)), (1, Some(40)));
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    assert_eq!(sleeps(&mut b), Some(1000), "it is not opened while its device is down");
    b.devices[0].set_live(info("a"));
    b.turn();
    asleep(&mut b, 41);
    b.turn();
    assert_eq!(b.devices[0].asked_for_queues(), 2);
    b.finish();
}

/// The same, while nothing else happens.
#[test]
fn a_queue_that_could_not_be_opened_is_tried_again_though_nothing_changes() {
    let mut b = Bench::new(GroupConfig::new("disk"), vec![]);
    b.add(info("a"));
    b.devices[0].set_refuse_queues(true);
    b.turn();
    for asked in 1..4 {
        assert_eq!(b.devices[0].asked_for_queues(), asked);
        b.pass(1010);
    }
    b.devices[0].set_refuse_queues(false);
    b.pass(1010);
    let tag = b.submit(READ(1));
    b.succeed_within(100, &[tag]);
    b.finish();
}

#[test]
fn an_incident_is_told_when_its_fences_are_over_and_it_has_been_quiet_for_a_moment() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.submit(READ(1));
    let at = usize::from(b.devices[0].in_flight().is_empty());
    let io = b.devices[at].only();
    b.told();
    b.devices[at].suspect(io, Fate::NotSent);
    b.turn();
    assert_eq!(b.told().len(), 1, "that requests are suspect is told at once");
    b.devices[1 - at].succeed_all();
    b.turn();
    asleep(&mut b, 150);
    b.turn();
    assert_eq!((b.told(), sleeps(&mut b)), (vec![], Some(1000)), "its fence is not over, and will say so itself");
    b.devices[at].complete(io, Code::PathLost, BOUND);
    b.turn();
    let redriven = EventKind::Redriven { count: 1, changes: 0, proof: Proof::NeverSent };
    assert_eq!(b.told(), [redriven]);
    // The same again, with a fence that is over at once.
    b.submit(READ(1));
    let at = usize::from(b.devices[0].in_flight().is_empty());
    b.devices[at].complete(b.devices[at].only(), Code::PathLost, BOUND);
    b.turn();
    b.devices[1 - at].succeed_all();
    asleep(&mut b, 50);
    b.turn();
    assert_eq!((b.told(), sleeps(&mut b)), (vec![], Some(49)), "more of the same may come");
    asleep(&mut b, 50);
    b.turn();
    assert_eq!(b.told(), [EventKind::Redriven { count: 1, changes: 0, proof: BOUND }]);
    assert_eq!(sleeps(&mut b), Some(1000));
    b.finish();
}

#[test]
fn small_parts_wait_their_turn_behind_what_came_before_them() {
    let mut b = Bench::with_caches(&["a"]);
    b.group.freeze();
    b.devices[0].set_live(DeviceInfo { limits: Limits { max_transfer_bytes: 512, ..info("a").limits }, ..info("a") });
    b.turns(2);
    // The path takes 64; of the second request two parts are given out, the rest waits for places in the table.
    b.submit(Io::write(0, 0, 64, SegSpan::EMPTY));
    b.submit(Io::write(0, 100, 64, SegSpan::EMPTY));
    b.submit(Io::write(0, 900, 1, SegSpan::EMPTY));
    b.turn();
    b.devices[0].in_flight().into_iter().take(3).for_each(|io| b.devices[0].succeed(io));
    b.turn();
    let next: Vec<u64> = b.devices[0].in_flight().iter().map(|io| io.lba).filter(|&lba| lba >= 100).collect();
    assert_eq!(next, [100, 101, 900]);
    b.finish();
}

/// A flush of two caches: no path to the first one is there, and what the second one held is lost.
#[test]
fn a_part_that_waits_in_vain_is_not_slept_upon() {
    let mut b = Bench::with_caches(&["a", "b"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    let write = b.write(2);
    let io = b.devices[1].only();
    b.devices[1].set_gone();
    b.turns(2);
    // Acknowledged after the last path to its cache has gone.
    b.devices[1].succeed(io);
    b.devices[0].set_health(Health::Down);
    b.turns(2);
    assert_eq!((b.outcome(write), sleeps(&mut b)), (Some(Code::Ok), Some(1000)));
    let flush = b.flush();
    assert_eq!(sleeps(&mut b), None, "the first part has nothing to wait for");
    b.turn();
    assert_eq!(b.outcome(flush), Some(Code::CacheLost));
    b.finish();
}
