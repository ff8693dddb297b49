//! One test for each defect that was found, named after it, and for sequences of the same kind.

use crate::common::scripted::{BOUND, Bench, info, stranger};
use polypath_block::{Code, Fate, Flags, Health, Io, Limits, Op, Proof};
use polypath_multipath::{EventKind, GroupConfig, PathState};

/// Tags of what a device has in flight are not those of the guest: the only request of this kind.
fn only(list: Vec<Io>, op: Op) -> Io {
    let found: Vec<_> = list.into_iter().filter(|io| io.op == op).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

#[test]
fn a_path_is_not_kept_full_by_requests_that_wait_for_a_fence() {
    let mut b = Bench::with_caches(&["a"]);
    b.devices[0].set_room(2);
    let held = [b.write(1), b.write(2)];
    let waiting = b.write(3);
    assert_eq!(b.devices[0].in_flight().len(), 2, "the third found no room");
    for io in b.devices[0].in_flight() {
        b.devices[0].suspect(io, Fate::Unknown);
    }
    // Its queue stays ready: another connection of the same controller carries what comes next.
    b.turns(2);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(waiting), Some(Code::Ok), "it has room again and must be asked");
    assert!(held.iter().all(|&tag| b.outcome(tag).is_none()), "these wait for their fence");
    b.finish();
}

#[test]
fn a_path_that_frees_room_by_one_suspect_among_others_is_asked_again() {
    let mut b = Bench::with_caches(&["a"]);
    b.devices[0].set_room(2);
    b.write(1);
    b.write(2);
    let waiting = b.write(3);
    let first = b.devices[0].in_flight()[0];
    b.devices[0].suspect(first, Fate::Unknown);
    b.turns(2);
    assert_eq!(b.devices[0].in_flight().len(), 2, "the other one is still in flight, the third took the free place");
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(waiting), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_discard_with_fua_makes_its_cache_dirty() {
    for (op, dirty) in [(Op::Discard, true), (Op::WriteZeroes, false)] {
        for flags in [Flags::empty(), Flags::FUA] {
            let mut b = Bench::with_caches(&["a", "b"]);
            assert_eq!(b.flush_now(), Some(Code::Ok), "what came before the group");
            let tag = b.submit(Io::range(0, op, 1, 1).with_flags(flags));
            let at = usize::from(b.devices[0].in_flight().is_empty());
            b.devices[at].succeed_all();
            b.turn();
            assert_eq!(b.outcome(tag), Some(Code::Ok));
            b.devices[at].set_gone();
            b.turns(2);
            let want = if dirty || flags.is_empty() { Code::CacheLost } else { Code::Ok };
            assert_eq!(b.flush_now(), Some(want), "{op:?} {flags:?}");
            b.finish();
        }
    }
}

#[test]
fn a_nameless_disk_of_another_subsystem_is_not_taken_for_the_old_one() {
    let nameless = |domain: &str| {
        let mut i = info(domain);
        i.identity.identifiers.clear();
        i
    };
    let mut b = Bench::new(GroupConfig::new("disk"), vec![nameless("nqn.a:SER1")]);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    b.devices[0].set_live(nameless("nqn.a:SER2"));
    b.turns(2);
    let s = b.stats(0);
    assert_eq!(s.state, PathState::Quarantined, "{}", s.why);
    assert!(s.why.contains("SER1") && s.why.contains("SER2"), "it says what was expected: {}", s.why);
    b.devices[0].set_live(nameless("nqn.a:SER1"));
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Usable, "the old one is welcome");
    b.finish();
}

#[test]
fn a_nameless_disk_whose_target_lost_power_is_the_same_disk_with_another_cache() {
    let nameless = |domain: &str| {
        let mut i = info(domain);
        i.identity.identifiers.clear();
        i
    };
    let mut b = Bench::new(GroupConfig::new("disk"), vec![nameless("nqn.a:SER1#power-cycle 7")]);
    b.dirty(0, 1);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    b.devices[0].set_live(nameless("nqn.a:SER1#power-cycle 8"));
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Usable, "{}", b.stats(0).why);
    assert_eq!(b.flush_now(), Some(Code::CacheLost));
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_cache_that_lost_power_is_lost_once_with_one_path() {
    let mut b = Bench::with_caches(&["c#1"]);
    b.dirty(0, 1);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    let waiting = b.flush();
    b.turn();
    assert_eq!(b.outcome(waiting), None, "the cache may come back");
    b.devices[0].set_live(info("c#2"));
    b.turns(3);
    assert_eq!(b.outcome(waiting), Some(Code::CacheLost));
    assert_eq!(b.caches_lost(), 1);
    assert_eq!(b.flush_now(), Some(Code::Ok), "reported once");
    b.finish();
}

#[test]
fn a_cache_that_lost_power_is_lost_once_when_its_paths_come_back_one_by_one() {
    for waits in [false, true] {
        let mut b = Bench::with_caches(&["c#1", "c#1"]);
        b.dirty(0, 1);
        b.dirty(1, 2);
        for d in &b.devices {
            d.set_down(Code::PathLost, "connection reset");
        }
        b.turn();
        let waiting = waits.then(|| b.flush());
        b.turns(2);
        assert!(waiting.is_none_or(|tag| b.outcome(tag).is_none()), "nobody knows yet");
        b.devices[0].set_live(info("c#2"));
        b.turns(3);
        // The other path need not come back for that.
        assert_eq!(b.caches_lost(), 1);
        match waiting {
            Some(tag) => assert_eq!(b.outcome(tag), Some(Code::CacheLost)),
            None => assert_eq!(b.flush_now(), Some(Code::CacheLost)),
        }
        assert_eq!(b.flush_now(), Some(Code::Ok), "reported once");
        b.devices[1].set_live(info("c#2"));
        b.turns(3);
        assert_eq!(b.flush_now(), Some(Code::Ok), "the second path brings no news");
        assert_eq!(b.caches_lost(), 0);
        b.finish();
    }
}

#[test]
fn a_flush_that_another_controller_answers_does_not_hide_the_power_loss_of_one() {
    // Two controllers of one subsystem, each with a cache of its own after all, whose counts happened to agree.
    let mut b = Bench::with_caches(&["c#1", "c#1"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    let flush = b.flush();
    let io = b.devices[1].only();
    b.devices[0].set_live(info("c#2"));
    b.turns(2);
    b.devices[1].succeed(io);
    b.turns(2);
    assert_eq!(b.outcome(flush), Some(Code::CacheLost), "it was to cover what the other one has lost");
    assert_eq!(b.flush_now(), Some(Code::Ok), "reported once");
    b.dirty(1, 2);
    assert_eq!(b.flush_now(), Some(Code::Ok), "and the cache that is left goes on");
    b.finish();
}

#[test]
fn a_flush_that_was_answered_as_its_last_path_went_fails_rather_than_that_it_says_too_much() {
    let mut b = Bench::with_caches(&["c"]);
    b.dirty(0, 1);
    let flush = b.flush();
    b.devices[0].succeed_all();
    b.devices[0].set_gone();
    b.turns(2);
    assert_eq!(b.caches_lost(), 1);
    assert_eq!(
        b.outcome(flush),
        Some(Code::CacheLost),
        "what was announced as lost is reported, though it may have been saved"
    );
    assert_eq!(b.flush_now(), Some(Code::Ok), "it was the report");
    b.finish();
}

#[test]
fn an_acknowledgement_from_before_the_power_loss_does_not_make_the_new_cache_dirty() {
    let mut b = Bench::with_caches(&["c#1"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    let tag = b.write(1);
    let io = b.devices[0].only();
    // The answer was received; before this reactor looks, the target lost power and is back.
    b.devices[0].succeed(io);
    b.devices[0].set_live(info("c#2"));
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "it was in the cache that is gone");
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_flush_whose_parts_wait_for_room_hears_of_a_cache_lost_meanwhile() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    (0..3).for_each(|i| b.dirty(i, i as u64));
    // Each of them needs three parts; the table for extra parts is full after 32.
    let flushes: Vec<_> = (0..34).map(|_| b.flush()).collect();
    b.turn();
    let last = *flushes.last().expect("some");
    b.devices[2].set_gone();
    for io in b.devices[2].in_flight() {
        b.devices[2].complete(io, Code::PathLost, BOUND);
    }
    b.turns(2);
    for _ in 0..10 {
        b.devices[0].succeed_all();
        b.devices[1].succeed_all();
        b.turn();
    }
    assert!(flushes.iter().all(|&tag| b.outcome(tag) == Some(Code::CacheLost)), "last: {:?}", b.outcome(last));
    b.finish();
}

#[test]
fn the_report_of_a_lost_cache_is_not_spent_on_a_flush_that_began_before_the_write() {
    let mut b = Bench::with_caches(&["a", "b"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    // A write on its way to the first cache, and then a flush, which is not to cover it.
    let late = loop {
        let tag = b.write(2);
        if !b.devices[0].in_flight().is_empty() {
            break tag;
        }
        b.devices[1].succeed_all();
        b.turn();
    };
    let write = b.devices[0].only();
    b.devices[1].succeed_all();
    b.turn();
    let early = b.flush();
    b.turn();
    let flush = only(b.devices[0].in_flight(), Op::Flush);
    b.devices[0].succeed(write);
    b.turn();
    assert_eq!(b.outcome(late), Some(Code::Ok));
    b.devices[0].set_gone();
    b.devices[0].complete(flush, Code::PathLost, BOUND);
    b.devices[1].succeed_all();
    b.turns(3);
    b.devices[1].succeed_all();
    b.turns(3);
    assert_eq!(b.outcome(early), Some(Code::CacheLost), "some of what it was to cover may be lost");
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "and this is the first flush that was to cover the late write");
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

#[test]
fn the_report_of_one_lost_cache_does_not_stand_for_another() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    let waiting = b.flush();
    b.turn();
    b.dirty(1, 5);
    b.devices[1].set_gone();
    b.turns(2);
    b.devices[0].set_gone();
    b.turns(3);
    assert_eq!(b.outcome(waiting), Some(Code::CacheLost), "its own cache");
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "the other one was dirty only after it began");
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_flush_that_fails_for_two_reasons_names_the_lost_cache() {
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 1000;
    let mut b = Bench::new(config, vec![info("a"), info("b")]);
    b.dirty(0, 1);
    b.dirty(1, 2);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    let tag = b.flush();
    b.turn();
    let io = b.devices[1].only();
    b.pass(1100);
    assert_eq!(b.outcome(tag), None, "one part has run into the time limit, the other one is under way");
    b.devices[1].set_gone();
    b.devices[1].complete(io, Code::PathLost, BOUND);
    b.turns(3);
    assert_eq!(b.outcome(tag), Some(Code::CacheLost));
    b.finish();
}

#[test]
fn the_flush_before_a_removal_goes_to_no_device_that_changed() {
    // A request holds the removal up; meanwhile the target is back with another cache, or another disk is.
    for (back, changed) in [(info("c#2"), true), (stranger("c#1"), true), (info("c#1"), false)] {
        for removed_first in [true, false] {
            let mut b = Bench::with_caches(&["c#1", "other"]);
            b.dirty(0, 1);
            while b.devices[0].in_flight().is_empty() {
                b.submit(Io::read(0, 2, 1, polypath_block::SegSpan::EMPTY));
            }
            b.devices[1].succeed_all();
            let read = b.devices[0].only();
            if removed_first {
                b.group.remove_path(b.ids[0]).expect("there");
                b.turn();
            }
            b.devices[0].set_live(back.clone());
            if !removed_first {
                b.group.refresh();
                b.group.remove_path(b.ids[0]).expect("there");
            }
            b.turn();
            b.devices[0].succeed(read);
            b.turns(3);
            let flushes = b.devices[0].taken().iter().filter(|io| io.op == Op::Flush).count();
            // The new cache of the same disk may be flushed once it was verified; that says nothing about the old one.
            let new_cache = !removed_first && back.identity.cache_domain.0 == "c#2";
            assert_eq!(flushes, usize::from(!changed || new_cache), "{:?}", back.identity);
            b.devices[0].succeed_all();
            b.turns(3);
            assert_eq!(b.group.paths().len(), 1, "removed");
            let want = if changed { Code::CacheLost } else { Code::Ok };
            assert_eq!(b.flush_now(), Some(want), "{:?}", back.identity);
            assert_eq!(b.flush_now(), Some(Code::Ok));
            b.finish();
        }
    }
}

#[test]
fn a_removal_flush_that_fails_leaves_the_cache_dirty() {
    let mut b = Bench::with_caches(&["a", "b"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.group.remove_path(b.ids[0]).expect("there");
    b.turns(2);
    let io = only(b.devices[0].in_flight(), Op::Flush);
    b.devices[0].complete(io, Code::Medium, Proof::Answered);
    b.turns(3);
    assert_eq!(b.group.paths().len(), 1, "removed all the same");
    assert_eq!(b.flush_now(), Some(Code::CacheLost));
    b.finish();
}

#[test]
fn a_flush_covers_nothing_that_completed_after_it_began() {
    let mut b = Bench::with_caches(&["a"]);
    b.dirty(0, 1);
    let write = b.write(2);
    let late = b.devices[0].only();
    let flush = b.flush();
    let io = only(b.devices[0].in_flight(), Op::Flush);
    b.devices[0].succeed(late);
    b.turn();
    b.devices[0].succeed(io);
    b.turn();
    assert_eq!((b.outcome(write), b.outcome(flush)), (Some(Code::Ok), Some(Code::Ok)));
    b.flush();
    assert_eq!(b.devices[0].in_flight().len(), 1, "the cache is dirty with the late write");
    b.finish();
}

#[test]
fn an_acknowledgement_after_the_last_path_left_is_reported_by_the_next_flush() {
    for op in [Op::Write, Op::WriteZeroes, Op::Discard] {
        let mut b = Bench::with_caches(&["a", "b"]);
        assert_eq!(b.flush_now(), Some(Code::Ok));
        let tag = match op {
            Op::Write => b.write(1),
            _ => b.submit(Io::range(0, op, 1, 1)),
        };
        let at = usize::from(b.devices[0].in_flight().is_empty());
        let io = b.devices[at].only();
        b.devices[at].set_gone();
        b.turns(2);
        b.devices[at].succeed(io);
        b.turns(2);
        assert_eq!(b.outcome(tag), Some(Code::Ok));
        assert_eq!(b.flush_now(), Some(Code::CacheLost), "{op:?}");
        assert_eq!(b.flush_now(), Some(Code::Ok), "once");
        b.finish();
    }
}

#[test]
fn the_reason_of_the_device_is_told_and_not_that_a_queue_was_lost() {
    // The device knows already.
    let mut b = Bench::with_caches(&["a"]);
    b.drain_events();
    let log = crate::common::log::capture(|| {
        b.devices[0].set_health(Health::Down);
        // Set between the look at versions and the look at queues: as another thread does.
        b.devices[0].on_next_health(|d| d.set_down(Code::PathTimeout, "reset by peer"));
        b.turn();
    });
    let s = b.stats(0);
    assert_eq!((s.state, s.cause, &*s.why), (PathState::Down, Some(Code::PathTimeout), "reset by peer"));
    let told: Vec<_> = b.drain_events().into_iter().map(|e| e.kind).collect();
    assert!(
        matches!(&told[..], [EventKind::PathDown { cause: Code::PathTimeout, why }] if why == "reset by peer"),
        "{told:?}"
    );
    assert_eq!(log.iter().filter(|l| l.contains("path left: reset by peer")).count(), 1, "{log:?}");
    assert_eq!(log.iter().filter(|l| l.contains("path left")).count(), 1, "{log:?}");
    b.finish();
}

#[test]
fn a_reason_that_comes_after_the_queue_was_lost_is_logged_and_kept() {
    let mut b = Bench::with_caches(&["a"]);
    let log = crate::common::log::capture(|| {
        b.devices[0].set_health(Health::Down);
        b.turn();
        assert_eq!(b.stats(0).state, PathState::Down);
        b.devices[0].set_down(Code::PathTimeout, "reset by peer");
        b.turn();
        // A second report changes nothing any more.
        b.devices[0].set_down(Code::PathLost, "connection refused");
        b.turn();
    });
    let s = b.stats(0);
    assert_eq!((s.state, s.cause, &*s.why), (PathState::Down, Some(Code::PathTimeout), "reset by peer"));
    assert_eq!(s.failures, 1, "one failure, told better");
    assert_eq!(log.iter().filter(|l| l.contains("path left: reset by peer")).count(), 1, "{log:?}");
    assert!(!log.iter().any(|l| l.contains("refused")), "{log:?}");
    b.devices[0].set_health(Health::Ready);
    b.devices[0].set_live(info("a"));
    b.turns(2);
    assert_eq!(b.stats(0).state, PathState::Usable);
    b.finish();
}

#[test]
fn a_queue_that_closes_still_opens_paths_for_what_waits() {
    let mut b = Bench::with_caches(&[]);
    b.add(info("a"));
    b.devices[0].set_refuse_queues(true);
    b.turns(2);
    let tag = b.write(1);
    b.close_queue();
    b.devices[0].set_refuse_queues(false);
    b.pass(1200);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok), "nobody's request fails because the queue ends");
    b.finish();
}

#[test]
fn a_change_that_gives_up_after_its_fence_names_the_fence() {
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 100;
    let mut b = Bench::new(config, vec![info("a")]);
    let tag = b.write(1);
    let io = b.devices[0].only();
    b.devices[0].suspect(io, Fate::Unknown);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.devices[0].set_health(Health::Down);
    b.pass(1000);
    assert_eq!(b.outcome(tag), None, "not before its fence, whatever the time limit");
    b.devices[0].complete(io, Code::PathLost, BOUND);
    b.pass(200);
    let c = b.completion(tag).expect("completed");
    assert_eq!((c.status.code, c.proof), (Code::NoPath, BOUND), "it was sent, and this is why it is quiet");
    b.finish();
}

#[test]
fn time_in_the_backlog_of_a_usable_path_is_no_time_without_a_path() {
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 1000;
    let mut b = Bench::new(config, vec![info("a")]);
    b.devices[0].set_health(Health::Down);
    b.turn();
    let tag = b.write(1);
    b.pass(600);
    b.devices[0].set_health(Health::Ready);
    b.devices[0].set_room(0);
    b.pass(600);
    assert_eq!(b.stats(0).state, PathState::Usable);
    b.devices[0].set_health(Health::Down);
    b.pass(600);
    assert_eq!(b.outcome(tag), None, "never a second at a stretch without a path");
    b.devices[0].set_room(8);
    b.devices[0].set_health(Health::Ready);
    b.turns(3);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

#[test]
fn time_on_a_path_and_behind_its_fence_is_no_time_without_a_path() {
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 1000;
    let mut b = Bench::new(config, vec![info("a")]);
    b.devices[0].set_health(Health::Down);
    b.turn();
    let tag = b.write(1);
    b.pass(600);
    b.devices[0].set_health(Health::Ready);
    b.turn();
    let io = b.devices[0].only();
    b.devices[0].suspect(io, Fate::Unknown);
    b.devices[0].set_health(Health::Down);
    b.pass(2000);
    b.devices[0].complete(io, Code::PathLost, BOUND);
    b.pass(900);
    assert_eq!(b.outcome(tag), None, "the time begins anew");
    b.pass(200);
    assert_eq!(b.outcome(tag), Some(Code::NoPath));
    b.finish();
}

#[test]
fn a_waiting_flush_is_not_answered_by_a_cache_that_took_the_place_of_its_own() {
    // More caches come and go than a group has numbers for.
    let mut b = Bench::with_caches(&["keep", "c#0"]);
    b.dirty(1, 1);
    b.devices[1].set_down(Code::PathLost, "connection reset");
    b.turn();
    let waiting = b.flush();
    b.turn();
    b.devices[0].succeed_all();
    for n in 1..130 {
        // Only the control plane runs: the reactor is stalled.
        b.devices[1].set_live(info(&format!("c#{n}")));
        b.group.refresh();
    }
    for _ in 0..4 {
        b.turn();
        b.devices.iter().for_each(|d| d.succeed_all());
    }
    b.turn();
    assert_eq!(b.outcome(waiting), Some(Code::CacheLost));
    b.finish();
}

#[test]
fn a_split_write_with_a_failed_part_waits_for_its_suspect_parts() {
    let mut b = Bench::with_caches(&["a"]);
    let tag = b.write(0);
    b.devices[0].succeed_all();
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    let mut small = info("a");
    small.limits = Limits { max_transfer_bytes: 512, ..small.limits };
    b.devices[0].set_live(small);
    b.turns(2);
    let tag = b.submit(Io::write(0, 0, 3, polypath_block::SegSpan::EMPTY));
    let parts = b.devices[0].in_flight();
    assert_eq!(parts.len(), 3);
    b.devices[0].suspect(parts[0], Fate::Unknown);
    b.devices[0].complete(parts[1], Code::Medium, Proof::Answered);
    b.devices[0].succeed(parts[2]);
    b.turns(3);
    assert_eq!(b.outcome(tag), None, "a part of it may still land");
    b.devices[0].complete(parts[0], Code::PathLost, BOUND);
    b.turns(3);
    b.pass(20);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Medium));
    b.finish();
}

#[test]
fn a_group_closed_under_a_fence_completes_its_changes_after_it() {
    let mut b = Bench::with_caches(&["a"]);
    let tag = b.write(1);
    let io = b.devices[0].only();
    b.devices[0].suspect(io, Fate::Unknown);
    b.turn();
    polypath_block::Device::close(&*b.group);
    b.pass(500);
    assert_eq!(b.outcome(tag), None);
    b.devices[0].complete(io, Code::PathLost, BOUND);
    b.turns(3);
    assert_eq!(b.outcome(tag), Some(Code::Gone));
    b.finish();
}
