//! A path that shows another disk: what the others say OK to may have been answered by that one, too.

use crate::common::scripted::{Bench, info, read_only, stranger};
use polypath_block::{Code, Io, Op, SegSpan};
use polypath_multipath::PathState;

fn show_down(b: &Bench, at: usize) {
    b.devices[at].set_down(Code::PathIdentity, "its namespace is another one");
}

/// The ways in which a device shows another disk.
const WAYS: [fn(&Bench, usize); 2] = [show_down, |b, at| b.devices[at].set_live(stranger("c"))];

fn flushes(b: &Bench) -> usize {
    b.devices.iter().flat_map(|d| d.taken()).filter(|io| io.op == Op::Flush).count()
}

/// Is a flush sent that is made now? It succeeds.
fn flush_is_sent(b: &mut Bench) -> bool {
    let before = flushes(b);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    flushes(b) > before
}

/// Paths to these caches. The first was written to; all are clean.
fn clean(domains: &[&str]) -> Bench {
    let mut b = Bench::with_caches(domains);
    b.dirty(0, 1);
    assert!(flush_is_sent(&mut b) && !flush_is_sent(&mut b));
    b
}

#[test]
fn every_flush_is_sent_while_a_path_shows_another_disk_and_one_afterwards() {
    for show in WAYS {
        for dirty in [false, true] {
            let mut b = clean(&["c", "c"]);
            if dirty {
                b.dirty(0, 1);
            }
            show(&b, 1);
            b.turns(2);
            for _ in 0..3 {
                assert!(flush_is_sent(&mut b), "whoever answered the one before");
            }
            b.devices[1].set_live(info("c"));
            b.turns(2);
            assert_eq!(b.stats(1).state, PathState::Usable);
            assert!(flush_is_sent(&mut b), "the right disk may not have heard of the last one");
            assert!(!flush_is_sent(&mut b), "it has now");
            assert_eq!(b.caches_lost(), 0);
            b.finish();
        }
    }
}

#[test]
fn doubt_begins_and_ends_with_whatever_number_the_cache_has() {
    let mut b = clean(&["d", "e", "c", "c"]);
    b.dirty(2, 1);
    show_down(&b, 3);
    b.turns(2);
    assert!(flush_is_sent(&mut b) && flush_is_sent(&mut b));
    b.devices[3].set_live(info("c"));
    b.turns(2);
    assert!(flush_is_sent(&mut b) && !flush_is_sent(&mut b));
    b.finish();
}

#[test]
fn a_flush_that_was_sent_in_doubt_and_answered_afterwards_proves_nothing() {
    let mut b = clean(&["c", "c"]);
    show_down(&b, 1);
    b.turns(2);
    let flush = b.flush();
    b.devices[1].set_live(info("c"));
    b.turns(2);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(flush), Some(Code::Ok));
    assert!(flush_is_sent(&mut b) && !flush_is_sent(&mut b));
    b.finish();
}

#[test]
fn a_flush_hears_of_another_disk_that_no_turn_has_looked_at_yet() {
    for show in WAYS {
        let mut b = clean(&["c", "c"]);
        show(&b, 1);
        assert!(flush_is_sent(&mut b));
        b.finish();
    }
}

#[test]
fn doubt_ends_with_the_path_that_raised_it() {
    for gone in [false, true] {
        let mut b = clean(&["c", "c"]);
        show_down(&b, 1);
        b.turns(2);
        if gone {
            b.devices[1].set_gone();
        } else {
            b.group.remove_path(b.ids[1]).expect("it is there");
        }
        b.turns(4);
        assert!(flush_is_sent(&mut b) && !flush_is_sent(&mut b), "gone: {gone}");
        assert_eq!(b.caches_lost(), 0);
        b.finish();
    }
}

#[test]
fn doubt_outlasts_a_connection_and_is_about_one_cache() {
    let mut b = clean(&["c", "c", "d"]);
    show_down(&b, 1);
    b.turns(2);
    b.devices[1].set_down(Code::PathLost, "connection reset");
    b.turns(2);
    let flush = b.flush();
    b.turn();
    assert!(b.devices[2].in_flight().is_empty(), "nobody doubts the other cache");
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(flush), Some(Code::Ok));
    assert!(flush_is_sent(&mut b), "it has not said that it is the right one again");
    b.finish();
}

#[test]
fn a_disk_without_a_volatile_cache_leaves_nothing_to_doubt() {
    let mut through = info("c");
    through.limits.write_cache = false;
    let mut b = Bench::new(polypath_multipath::GroupConfig::new("disk"), vec![through.clone(), through]);
    b.devices.iter().for_each(|d| d.set_down(Code::PathIdentity, "its namespace is another one"));
    b.turns(2);
    assert!(!flush_is_sent(&mut b), "and it waits for nothing");
    b.finish();
}

/// Flush, answered wherever it is sent, with a minute and more to end.
fn patient_flush(b: &mut Bench) -> (Option<Code>, u64) {
    let began = b.now;
    let tag = b.flush();
    for _ in 0..70 * 100 {
        b.devices.iter().for_each(|d| d.succeed_all());
        b.pass(10);
        if let Some(code) = b.outcome(tag) {
            return (Some(code), b.now.since(began).as_millis() as u64);
        }
    }
    (None, 70_000)
}

/// A cache of its own behind one path; that path is quarantined; the other path, with another cache, carries everything.
#[test]
fn a_clean_cache_behind_nothing_but_a_path_in_quarantine_fails_no_fsync() {
    let mut b = clean(&["c", "d"]);
    b.devices[0].set_live(stranger("c"));
    b.turns(4);
    assert_eq!(b.stats(0).state, PathState::Quarantined);
    let lba = b.write(3);
    b.devices[1].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(lba), Some(Code::Ok));
    assert_eq!(patient_flush(&mut b), (Some(Code::Ok), 10), "nothing was ever dirty in \"c\"");
}

/// The same for a refusal that has nothing to do with identity.
#[test]
fn a_path_that_became_read_only_fails_no_fsync() {
    let mut b = clean(&["c", "d"]);
    b.devices[0].set_live(read_only("c"));
    b.turns(4);
    assert_eq!(b.stats(0).state, PathState::Quarantined);
    assert_eq!(patient_flush(&mut b), (Some(Code::Ok), 10), "nobody doubts that it is the same disk");
}

/// The good path to a cache is removed (cleanly), the one that is left is in quarantine for days; another cache is there.
#[test]
fn removal_of_the_last_good_path_to_a_clean_cache_fails_no_fsync() {
    let mut b = clean(&["c", "c", "d"]);
    b.devices[1].set_live(stranger("c"));
    b.turns(4);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.group.remove_path(b.ids[0]).expect("there");
    for _ in 0..6 {
        b.turn();
        b.devices[0].succeed_all();
    }
    assert_eq!(b.group.paths().len(), 2);
    assert_eq!(patient_flush(&mut b), (Some(Code::Ok), 10), "the removal flushed it");
}

/// Two paths to "c": one was in doubt and is gone or removed; the other one is down. "d" carries everything.
#[test]
fn a_doubt_that_is_over_waits_for_no_path_that_is_down() {
    let mut b = clean(&["c", "c", "d"]);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    show_down(&b, 1);
    b.turns(4);
    b.group.remove_path(b.ids[1]).expect("there");
    b.turns(4);
    assert_eq!(b.group.paths().len(), 2);
    assert_eq!(patient_flush(&mut b), (Some(Code::Ok), 10), "nothing is dirty");
}

/// The controller lost its power (`#1` -> `#2`); its other path is still away. The old cache must bother nobody.
fn power_cycle_of_two_paths(doubt: bool) -> (Option<Code>, u64) {
    let mut b = clean(&["c#1", "c#1"]);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.devices[1].set_down(Code::PathLost, "connection reset");
    b.turns(2);
    if doubt {
        // The target boots, and does not map its namespaces in the right order at once.
        show_down(&b, 1);
        b.turns(2);
    }
    b.devices[1].set_live(info("c#2"));
    b.turns(4);
    assert_eq!(b.stats(1).state, PathState::Usable);
    patient_flush(&mut b)
}

#[test]
fn the_end_of_a_doubt_revives_no_cache_that_lost_its_power() {
    assert_eq!(power_cycle_of_two_paths(false), (Some(Code::Ok), 10), "without doubt");
    assert_eq!(power_cycle_of_two_paths(true), (Some(Code::Ok), 10), "the other path may still be away");
}

/// The other path shows another disk for long: the cache that lost its power is not there any more, whatever comes back.
#[test]
fn nobody_waits_for_a_cache_that_lost_its_power_because_a_path_to_it_was_in_doubt() {
    let mut b = clean(&["c#1", "c#1"]);
    b.devices[0].set_live(stranger("c#1"));
    b.turns(4);
    b.devices[1].set_live(info("c#2"));
    b.turns(4);
    assert_eq!(patient_flush(&mut b), (Some(Code::Ok), 10));
}

/// A loss is lifted by an OK that was said in doubt.
#[test]
fn an_ok_said_in_doubt_lifts_no_loss() {
    for ways in 0..2 {
        let mut b = clean(&["c"]);
        b.dirty(0, 1);
        let flush = b.flush();
        b.turn();
        b.devices[0].only();
        if ways == 0 {
            show_down(&b, 0);
        } else {
            b.devices[0].set_live(stranger("c"));
        }
        b.turns(2);
        b.devices[0].set_gone();
        b.turns(1);
        assert_eq!(b.caches_lost(), 1, "the event is out");
        b.devices[0].succeed_all();
        b.turns(2);
        b.add(info("d"));
        b.turns(4);
        let (first, second) = (b.outcome(flush), b.flush_now());
        assert!(
            first == Some(Code::CacheLost) || second == Some(Code::CacheLost),
            "way {ways}: the loss of an acknowledged write is reported by no flush: {first:?} {second:?}"
        );
    }
}

/// A path on its way out shows another disk.
#[test]
fn a_path_that_is_being_removed_raises_doubt_as_well() {
    let mut b = clean(&["c", "c"]);
    // Something keeps path 1 from being released.
    let mut held = b.write(1);
    while b.devices[1].in_flight().is_empty() {
        b.devices[0].succeed_all();
        b.turn();
        held = b.write(1);
    }
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(flushes(&b), 1);
    let _ = held;
    b.group.remove_path(b.ids[1]).expect("there");
    b.turns(2);
    assert_eq!(b.stats(1).state, PathState::Removing);
    b.devices[1].set_live(stranger("c"));
    b.turns(2);
    assert!(flush_is_sent(&mut b), "dirty");
    assert!(flush_is_sent(&mut b), "a path that led there shows another disk: each flush goes out");
}

/// A path's own word about the write cache decides, not that of the paths that lead to the same cache.
#[test]
fn a_cache_that_one_path_calls_volatile_is_doubted_by_each_path_to_it() {
    let mut b = clean(&["c", "c"]);
    // The write cache is switched off; path 0 has not heard of that, or it is switched on again and path 1 has not heard.
    let mut through = info("c");
    through.limits.write_cache = false;
    b.devices[1].set_live(through);
    b.turns(2);
    assert_eq!(b.stats(1).state, PathState::Usable);
    b.dirty(0, 1);
    show_down(&b, 1);
    b.turns(2);
    assert!(flush_is_sent(&mut b), "dirty");
    assert!(flush_is_sent(&mut b), "a path that led there shows another disk: each flush goes out");
}

/// What was flushed in doubt only, and is lost then, was acknowledged and is reported by nobody.
#[test]
fn what_was_flushed_in_doubt_only_is_reported_when_it_is_lost() {
    let mut b = clean(&["c#1", "c#1"]);
    show_down(&b, 1);
    b.turns(2);
    b.dirty(0, 1);
    assert!(flush_is_sent(&mut b), "and proves nothing");
    b.devices[0].set_live(info("c#2"));
    b.turns(2);
    let next = b.flush();
    for _ in 0..4 {
        b.turn();
        b.devices.iter().for_each(|d| d.succeed_all());
    }
    assert_eq!(b.outcome(next), Some(Code::CacheLost));
}

/// The same, by the removal of both paths at a time: the flush before the removal was in doubt, and the doubt was over before the
/// path was released.
#[test]
fn a_removal_flush_in_doubt_does_not_make_the_loss_unheard_of() {
    let mut b = clean(&["c", "c", "d"]);
    b.dirty(0, 1);
    show_down(&b, 1);
    b.turns(2);
    b.group.remove_path(b.ids[0]).expect("there");
    b.turns(2);
    b.group.remove_path(b.ids[1]).expect("there");
    for _ in 0..8 {
        b.turn();
        b.devices[0].succeed_all();
    }
    assert_eq!(b.group.paths().len(), 1);
    assert_eq!(b.caches_lost(), 1, "nobody believes the flush before the removal");
}

/// A change that `submit` has followed is still work for the next turn.
#[test]
fn a_change_that_a_flush_has_followed_is_not_slept_upon() {
    let mut b = clean(&["c", "c"]);
    b.dirty(0, 1);
    b.group.remove_path(b.ids[1]).expect("there");
    assert!(b.arm().is_none(), "before: it must be released");
    b.flush();
    let armed = b.arm();
    assert!(armed.is_none(), "path 1 is still held, and the queue sleeps until {armed:?}, now {:?}", b.now);
}

/// A path comes back, tasks wait for it, and a flush has followed the change.
#[test]
fn what_is_stranded_is_not_slept_upon_when_a_flush_has_followed_the_return_of_its_path() {
    let mut b = clean(&["c", "c"]);
    b.dirty(0, 1);
    b.devices.iter().for_each(|d| d.set_down(Code::PathLost, "reset"));
    b.turns(2);
    let stranded = b.write(9);
    b.turns(2);
    b.devices[0].set_live(info("c"));
    assert!(b.arm().is_none());
    b.flush();
    let sent = b.devices[0].in_flight().iter().any(|io| io.op == Op::Write);
    assert!(
        sent || b.arm().is_none(),
        "a write waits, its path is back, and the queue sleeps: {:?}",
        b.outcome(stranded)
    );
}

#[test]
fn a_path_that_says_so_again_and_again_doubts_once_and_is_believed_once() {
    let mut b = clean(&["c", "c"]);
    for round in 0..3 {
        show_down(&b, 1);
        b.turns(2);
        b.devices[1].set_down(Code::PathIdentity, "still");
        b.turns(2);
        b.devices[1].set_live(stranger("c"));
        b.turns(2);
        b.devices[1].set_state(polypath_block::DeviceState::Starting);
        b.turns(2);
        assert!(
            flush_is_sent(&mut b) && flush_is_sent(&mut b),
            "round {round}: it has not said that it is the right one"
        );
        for _ in 0..2 {
            b.devices[1].set_live(info("c"));
            b.turns(2);
        }
        assert!(flush_is_sent(&mut b), "round {round}");
        assert!(!flush_is_sent(&mut b), "round {round}: over");
    }
    b.finish();
}

/// A path shows this disk again, and is refused for another reason (it is read-only).
#[test]
fn a_doubt_is_over_when_the_path_shows_this_disk_again_though_it_is_refused_for_another_reason() {
    let mut b = clean(&["c", "c"]);
    b.dirty(0, 1);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.devices[1].set_live(stranger("c"));
    b.turns(2);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.devices[1].set_live(read_only("c"));
    b.turns(2);
    assert_eq!(b.stats(1).state, PathState::Quarantined);
    b.dirty(0, 2);
    assert_eq!(b.flush_now(), Some(Code::Ok), "the first that can be believed");
    let before = flushes(&b);
    let again = (b.flush_now(), flushes(&b) - before);
    // Everything was flushed after the disk was shown again: nothing is lost with the cache.
    b.group.remove_path(b.ids[1]).expect("there");
    b.turns(2);
    b.devices[0].set_gone();
    b.turns(2);
    assert_eq!((again, b.caches_lost()), ((Some(Code::Ok), 0), 0));
}

/// A path is being removed, and only another reactor holds it still, when it shows another disk.
#[test]
fn a_flush_hears_of_another_disk_on_a_path_that_only_another_reactor_holds() {
    let mut b = clean(&["c", "c"]);
    let mut second = b.second_queue();
    b.dirty(0, 1);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    while b.devices[1].in_flight().is_empty() {
        b.submit_to(&mut *second, Io::write(0, 5, 1, SegSpan::EMPTY));
    }
    b.group.remove_path(b.ids[1]).expect("there");
    b.turns(4);
    assert_eq!(b.stats(1).state, PathState::Removing);
    let before = flushes(&b);
    assert_eq!((b.flush_now(), flushes(&b) - before), (Some(Code::Ok), 0), "clean");
    b.devices[1].set_live(stranger("c"));
    let before = flushes(&b);
    assert_eq!((b.flush_now(), flushes(&b) - before), (Some(Code::Ok), 1), "a path that led there shows another disk");
}
