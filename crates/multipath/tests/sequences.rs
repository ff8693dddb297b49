//! Sequences of answers, suspects and changes of a device, step by step: what is sent where, what completes when, what is counted.

use crate::common::scripted::{BOUND, Bench, info};
use polypath_block::{Access, Code, DeviceInfo, Fate, Flags, Health, Io, Limits, Op, Proof, RefusedWhy, SegSpan};
use polypath_multipath::{EventKind, Fencing, GroupConfig, PathState, SelectorKind};

/// Sends `io` and returns its tag, the device that has it, and what it was sent.
fn send(b: &mut Bench, io: Io) -> (u64, usize, Io) {
    let before: Vec<_> = b.devices.iter().map(|d| d.taken().len()).collect();
    let tag = b.submit(io);
    let at = (0..before.len()).find(|&i| b.devices[i].taken().len() > before[i]).expect("sent");
    (tag, at, *b.devices[at].taken().last().expect("taken"))
}

fn load(b: &Bench, i: usize) -> (u64, u64) {
    let s = b.stats(i);
    (s.in_flight, s.suspects)
}

const READ: fn(u64) -> Io = |lba| Io::read(0, lba, 1, SegSpan::EMPTY);
const WRITE: fn(u64) -> Io = |lba| Io::write(0, lba, 1, SegSpan::EMPTY);

#[test]
fn a_superseded_attempt_neither_finishes_nor_repeats_its_request() {
    for end in [(Code::PathLost, Proof::NeverSent), (Code::Ok, Proof::Answered), (Code::Medium, Proof::Answered)] {
        for fate in [Fate::NotSent, Fate::Finished] {
            let mut b = Bench::with_caches(&["a", "b"]);
            let (tag, first, old) = send(&mut b, WRITE(1));
            let second = 1 - first;
            b.devices[first].suspect(old, fate);
            b.turn();
            let new = b.devices[second].only();
            assert_eq!((load(&b, first), load(&b, second)), ((0, 1), (1, 0)));
            // The same news again changes nothing.
            b.devices[first].suspect_again(old, fate);
            b.turn();
            assert_eq!((load(&b, first), load(&b, second)), ((0, 1), (1, 0)));
            b.devices[first].complete(old, end.0, end.1);
            b.turns(2);
            assert_eq!(b.outcome(tag), None, "the other attempt is under way");
            assert_eq!((load(&b, first), load(&b, second)), ((0, 0), (1, 0)));
            assert_eq!(
                b.devices[first].in_flight().len() + b.devices[second].in_flight().len(),
                1,
                "and is the only one"
            );
            b.devices[second].succeed(new);
            b.turn();
            assert_eq!(b.outcome(tag), Some(Code::Ok));
            assert_eq!((load(&b, first), load(&b, second)), ((0, 0), (0, 0)));
            b.finish();
        }
    }
}

#[test]
fn a_request_waits_for_its_superseded_attempts() {
    let mut b = Bench::with_caches(&["a", "b"]);
    let (tag, first, old) = send(&mut b, WRITE(1));
    b.devices[first].suspect(old, Fate::NotSent);
    b.turn();
    b.devices[1 - first].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), None, "completion means quiet, also of what was sent first");
    assert_eq!(load(&b, first), (0, 1));
    b.devices[first].complete(old, Code::PathLost, Proof::NeverSent);
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    assert_eq!(load(&b, first), (0, 0));
    b.finish();
}

#[test]
fn a_path_is_not_released_while_a_superseded_attempt_is_on_it() {
    let mut b = Bench::with_caches(&["a", "b"]);
    let (tag, first, old) = send(&mut b, READ(1));
    b.devices[first].suspect(old, Fate::NotSent);
    b.turn();
    b.devices[1 - first].succeed_all();
    b.turn();
    b.group.remove_path(b.ids[first]).expect("there");
    b.turns(5);
    assert_eq!(b.group.paths().len(), 2, "it waits");
    b.devices[first].complete(old, Code::PathLost, Proof::NeverSent);
    b.turns(3);
    // What was assumed of its cache is flushed first.
    b.devices[first].succeed_all();
    b.turns(3);
    assert_eq!((b.group.paths().len(), b.outcome(tag)), (1, Some(Code::Ok)));
    b.finish();
}

#[test]
fn a_change_of_unknown_fate_is_sent_nowhere_before_its_fence() {
    for (fencing, waits) in [(Fencing::On, true), (Fencing::Off, false)] {
        for (op, change) in [(Op::Write, true), (Op::WriteZeroes, true), (Op::Discard, true), (Op::Read, false)] {
            let mut config = GroupConfig::new("disk");
            config.fencing = fencing;
            let mut b = Bench::new(config, vec![info("a"), info("a")]);
            let io = if op == Op::Read { READ(1) } else { Io { op, ..WRITE(1) } };
            let (tag, first, old) = send(&mut b, io);
            b.devices[first].suspect(old, Fate::Unknown);
            b.turns(3);
            let sent = !b.devices[1 - first].in_flight().is_empty();
            assert_eq!(sent, change && !waits, "{op:?} {fencing:?}");
            assert_eq!(b.outcome(tag), None);
            b.devices[first].complete(old, Code::PathLost, BOUND);
            b.turns(2);
            b.devices[1 - first].succeed_all();
            b.turns(2);
            assert_eq!(b.outcome(tag), Some(Code::Ok), "{op:?} {fencing:?}");
            b.finish();
        }
    }
}

#[test]
fn a_change_that_is_not_proven_quiet_is_never_sent_again() {
    for (op, want) in
        [(Op::Write, Some(Code::OutcomeUnknown)), (Op::Discard, Some(Code::OutcomeUnknown)), (Op::Read, None)]
    {
        let mut b = Bench::with_caches(&["a", "b"]);
        let io = if op == Op::Read { READ(1) } else { Io { op, ..WRITE(1) } };
        let (tag, first, old) = send(&mut b, io);
        b.devices[first].complete(old, Code::PathLost, Proof::None);
        b.turns(2);
        assert_eq!(b.outcome(tag), want, "{op:?}");
        assert_eq!(b.devices[1 - first].in_flight().len(), usize::from(want.is_none()), "{op:?}");
        if want.is_some() {
            assert_eq!(b.completion(tag).map(|c| c.proof), Some(Proof::None), "and nobody is told otherwise");
        }
        b.finish();
    }
}

#[test]
fn a_request_with_one_unproven_part_is_unproven() {
    let mut b = Bench::with_caches(&["a"]);
    let tag = b.write(9);
    b.devices[0].succeed_all();
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.devices[0].set_live(DeviceInfo { limits: Limits { max_transfer_bytes: 512, ..info("a").limits }, ..info("a") });
    b.turns(2);
    for unproven in 0..2 {
        let tag = b.submit(Io { blocks: 2, ..WRITE(0) });
        for (i, io) in b.devices[0].in_flight().into_iter().enumerate() {
            match i == unproven {
                true => b.devices[0].complete(io, Code::PathLost, Proof::None),
                false => b.devices[0].succeed(io),
            }
        }
        b.turns(2);
        let c = b.completion(tag).expect("completed");
        assert_eq!((c.status.code, c.proof), (Code::OutcomeUnknown, Proof::None));
    }
    b.finish();
}

#[test]
fn a_request_whose_parts_fail_in_two_ways_names_the_first() {
    let mut b = Bench::with_caches(&["a"]);
    b.write(9);
    b.devices[0].succeed_all();
    b.turn();
    b.devices[0].set_live(DeviceInfo { limits: Limits { max_transfer_bytes: 512, ..info("a").limits }, ..info("a") });
    b.turns(2);
    let tag = b.submit(Io { blocks: 2, ..WRITE(0) });
    let parts = b.devices[0].in_flight();
    b.devices[0].complete(parts[1], Code::NoSpace, Proof::Answered);
    b.devices[0].complete(parts[0], Code::Medium, Proof::Answered);
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::NoSpace));
    // However many there were before, the parts of a request go together.
    for _ in 0..100 {
        b.submit(Io { blocks: 3, ..WRITE(0) });
        assert_eq!(b.devices[0].in_flight().len(), 3);
        b.devices[0].succeed_all();
        b.turn();
    }
    b.finish();
}

#[test]
fn a_range_that_one_path_refuses_is_asked_of_the_others() {
    let mut b = Bench::with_caches(&["a", "b"]);
    let (tag, first, io) = send(&mut b, READ(1));
    b.devices[first].complete(io, Code::OutOfRange, Proof::Answered);
    b.turn();
    let io = b.devices[1 - first].only();
    b.devices[1 - first].complete(io, Code::OutOfRange, Proof::Answered);
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::OutOfRange), "all of them refuse it");
    let (tag, first, io) = send(&mut b, READ(1));
    b.devices[first].complete(io, Code::OutOfRange, Proof::Answered);
    b.turn();
    b.devices[1 - first].succeed_all();
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

#[test]
fn removal_waits_for_a_fence_and_for_what_is_in_flight() {
    let mut b = Bench::with_caches(&["a", "b"]);
    b.dirty(0, 1);
    let (_, first, held) = send(&mut b, WRITE(1));
    let (_, second, other) = send(&mut b, WRITE(2));
    assert_ne!(first, second);
    b.devices[first].suspect(held, Fate::Unknown);
    b.turn();
    b.group.remove_path(b.ids[first]).expect("there");
    b.turns(5);
    assert!(b.devices[first].in_flight().is_empty(), "no flush before the fence: it could not cover the write");
    b.devices[first].succeed(held);
    b.turns(2);
    assert_eq!(b.devices[first].only().op, Op::Flush);
    assert_eq!(b.stats(first).state, PathState::Removing);
    assert!(!b.drain_events().iter().any(|e| e.kind == EventKind::PathRemoved));
    b.devices[first].succeed_all();
    b.turns(3);
    assert_eq!(b.group.paths(), [b.ids[second]]);
    assert!(b.drain_events().iter().any(|e| e.kind == EventKind::PathRemoved));
    b.devices[second].succeed(other);
    b.turn();
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_flush_goes_to_its_own_cache_only_and_comes_back_to_it() {
    let mut b = Bench::with_caches(&["a", "a", "b"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    for round in 0..3 {
        let tag = b.flush();
        let (at, io) = (0..3).find_map(|i| b.devices[i].in_flight().first().map(|io| (i, *io))).expect("sent");
        assert!(at < 2, "round {round}: it went to another cache");
        b.devices[at].complete(io, Code::PathLost, BOUND);
        b.turns(2);
        let io = b.devices[1 - at].only();
        assert_eq!(io.op, Op::Flush, "the other way to the same cache");
        b.devices[1 - at].complete(io, Code::Medium, Proof::Answered);
        b.turns(2);
        assert_eq!(b.outcome(tag), Some(Code::Medium), "an answer of the cache itself is reported");
        b.pass(50);
    }
    assert_eq!(b.flush_now(), Some(Code::Ok), "failed flushes clean nothing, this one had to be sent");
    let sent: usize = b.devices.iter().map(|d| d.taken().iter().filter(|io| io.op == Op::Flush).count()).sum();
    assert_eq!(sent, 2 + 6 + 1);
    b.finish();
}

#[test]
fn reads_compares_and_durable_writes_leave_caches_clean() {
    let mut b = Bench::with_caches(&["a"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    let requests = [
        (READ(1), false),
        (Io { op: Op::Compare, ..WRITE(1) }, false),
        (WRITE(1).with_flags(Flags::FUA), false),
        (Io::range(0, Op::WriteZeroes, 1, 1).with_flags(Flags::FUA), false),
        (WRITE(1), true),
        (Io::range(0, Op::WriteZeroes, 1, 1), true),
        (Io::range(0, Op::Discard, 1, 1), true),
        (Io::range(0, Op::Discard, 1, 1).with_flags(Flags::FUA), true),
    ];
    for (io, dirty) in requests {
        let (tag, _, _) = send(&mut b, io);
        b.devices[0].succeed_all();
        b.turn();
        assert_eq!(b.outcome(tag), Some(Code::Ok));
        let before = b.devices[0].taken().len();
        assert_eq!(b.flush_now(), Some(Code::Ok));
        assert_eq!(b.devices[0].taken().len() - before, usize::from(dirty), "{io:?}");
    }
    // What failed is no promise.
    let (_, _, io) = send(&mut b, WRITE(1));
    b.devices[0].complete(io, Code::Medium, Proof::Answered);
    b.turn();
    let before = b.devices[0].taken().len();
    assert_eq!(b.flush_now(), Some(Code::Ok));
    assert_eq!(b.devices[0].taken().len(), before);
    b.finish();
}

#[test]
fn a_cache_that_is_switched_on_or_off_while_a_write_is_under_way_counts() {
    let off = |domain: &str| DeviceInfo { limits: Limits::UNLIMITED, ..info(domain) };
    for (before, after) in [(off("a"), info("a")), (info("a"), off("a"))] {
        // The first path has a cache, so that the group may show one.
        let mut b = Bench::new(GroupConfig::new("disk"), vec![info("b"), before]);
        assert_eq!(b.flush_now(), Some(Code::Ok));
        let (tag, io) = loop {
            let (tag, at, io) = send(&mut b, WRITE(1));
            if at == 1 {
                break (tag, io);
            }
            b.devices[0].complete(io, Code::Medium, Proof::Answered);
            b.turn();
        };
        b.devices[1].set_live(after);
        b.turns(2);
        b.devices[1].succeed(io);
        b.turn();
        assert_eq!(b.outcome(tag), Some(Code::Ok));
        b.flush();
        assert_eq!(b.devices[1].only().op, Op::Flush, "it may be in the cache");
        b.finish();
    }
}

#[test]
fn a_queue_takes_as_many_requests_as_it_was_opened_for() {
    let mut b = Bench::with_caches(&["a"]);
    let tags: Vec<_> = (0..64).map(|n| b.write(n)).collect();
    assert_eq!(b.try_submit(READ(0)), Err(RefusedWhy::Full));
    let io = b.devices[0].in_flight()[0];
    b.devices[0].succeed(io);
    b.turn();
    assert_eq!(b.try_submit(READ(0)).map(|_| ()), Ok(()));
    assert_eq!(b.try_submit(READ(0)), Err(RefusedWhy::Full));
    b.close_queue();
    assert_eq!(b.try_submit(READ(0)), Err(RefusedWhy::Gone));
    assert!(!b.queue.is_drained());
    b.devices[0].succeed_all();
    b.turns(4);
    assert!(tags.iter().all(|&t| b.outcome(t) == Some(Code::Ok)) && b.queue.is_drained());
}

#[test]
fn a_failing_path_is_avoided_longer_each_time_and_forgiven_after_a_success() {
    let mut config = GroupConfig::new("disk");
    config.selector = SelectorKind::RoundRobin { min_io: 0 };
    let mut b = Bench::new(config, vec![info("a"), info("a")]);
    // How many milliseconds until it is chosen again.
    let avoided = |b: &mut Bench, code: Code| {
        let io = loop {
            let (_, at, io) = send(b, READ(1));
            if at == 0 {
                break io;
            }
            b.devices[1].succeed(io);
            b.turn();
        };
        b.devices[0].complete(io, code, Proof::Answered);
        b.turn();
        let start = b.now;
        loop {
            b.devices[1].succeed_all();
            b.turn();
            let sent: Vec<_> = (0..2).map(|_| send(b, READ(1))).collect();
            if sent.iter().any(|s| s.1 == 0) {
                break;
            }
            b.devices[1].succeed_all();
            b.now = b.now.after(std::time::Duration::from_millis(1));
        }
        b.devices[1].succeed_all();
        // It is left in flight: neither success nor failure.
        let took = b.now.since(start).as_millis() as u64;
        b.devices[0].complete(b.devices[0].only(), Code::Medium, Proof::Answered);
        b.turn();
        took
    };
    let near = |got: u64, want: u64| assert!((want - 2..want + 6).contains(&got), "{got} ms, expected about {want}");
    near(avoided(&mut b, Code::PathBusy), 10);
    near(avoided(&mut b, Code::PathBusy), 10);
    near(avoided(&mut b, Code::PathNoAccess), 100);
    for want in [10, 20, 40, 80] {
        near(avoided(&mut b, Code::PathProtocol), want);
    }
    loop {
        let (_, at, io) = send(&mut b, READ(1));
        b.devices[at].succeed(io);
        b.turn();
        if at == 0 {
            break;
        }
    }
    near(avoided(&mut b, Code::PathProtocol), 10);
    b.finish();
}

#[test]
fn a_path_without_access_carries_nothing_and_the_others_do() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.devices[0].set_live(DeviceInfo { access: Access::Inaccessible, ..info("a") });
    b.turns(2);
    for n in 0..4 {
        assert_eq!(send(&mut b, WRITE(n)).1, 1);
    }
    b.devices[1].set_health(Health::Stalled);
    b.turns(2);
    assert_eq!(b.queue.health(), Health::Stalled);
    assert_eq!(send(&mut b, WRITE(9)).1, 1, "a silent path is better than none");
    b.devices[0].set_live(DeviceInfo { access: Access::NonOptimized, ..info("a") });
    b.turns(2);
    assert_eq!((send(&mut b, WRITE(9)).1, b.queue.health()), (0, Health::Ready), "and worse than a slow one");
    b.finish();
}

#[test]
fn a_request_that_is_split_for_another_path_waits_for_its_superseded_attempt() {
    let mut b = Bench::with_caches(&["a", "a"]);
    let tag = b.write(9);
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    let (tag, first, old) = send(&mut b, Io { blocks: 3, ..WRITE(0) });
    let small = Limits { max_transfer_bytes: 512, ..info("a").limits };
    b.devices[1 - first].set_live(DeviceInfo { limits: small, ..info("a") });
    b.turn();
    b.devices[first].suspect(old, Fate::NotSent);
    b.turns(2);
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turns(2);
    assert_eq!(b.outcome(tag), None, "completion means quiet, also of what was sent first");
    b.devices[first].complete(old, Code::PathLost, Proof::NeverSent);
    b.turns(2);
    assert_eq!(b.devices.iter().map(|d| d.in_flight().len()).sum::<usize>(), 3);
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

#[test]
fn what_a_split_request_has_not_given_out_when_a_part_fails_is_not_given_out() {
    let mut b = Bench::with_caches(&["a"]);
    b.write(0);
    b.devices[0].succeed_all();
    b.turn();
    b.devices[0].set_live(DeviceInfo { limits: Limits { max_transfer_bytes: 512, ..info("a").limits }, ..info("a") });
    b.turns(2);
    // Two requests of 64 parts: there is room for 64 extra parts, so that the second one gives out two at first.
    let first = b.submit(Io { blocks: 64, ..WRITE(0) });
    let second = b.submit(Io { blocks: 64, ..WRITE(100) });
    b.turn();
    let of_second = |b: &Bench| b.devices[0].in_flight().into_iter().filter(|io| io.lba >= 100).collect::<Vec<_>>();
    assert_eq!((b.devices[0].in_flight().len(), of_second(&b).len()), (64, 0), "the queue below takes 64");
    b.devices[0].in_flight().into_iter().take(10).for_each(|io| b.devices[0].succeed(io));
    b.turns(2);
    let some = of_second(&b);
    assert!((1..64).contains(&some.len()), "{}", some.len());
    b.devices[0].complete(some[0], Code::Medium, Proof::Answered);
    b.devices[0].succeed_all();
    b.turns(3);
    // What was given out before the answer may still be on its way.
    b.devices[0].succeed_all();
    b.turns(3);
    assert_eq!((b.outcome(first), b.outcome(second)), (Some(Code::Ok), Some(Code::Medium)));
    let sent = b.devices[0].taken().iter().filter(|io| io.lba >= 100).count();
    assert!(sent < 64, "{sent} parts were sent");
    b.finish();
}

#[test]
fn a_full_path_with_nothing_of_ours_is_asked_again() {
    let mut b = Bench::with_caches(&["a"]);
    // Other users of the same queue have taken all its room: nothing of ours will complete and say that there is some.
    b.devices[0].set_room(0);
    let tag = b.write(1);
    b.turns(3);
    b.devices[0].set_room(1);
    assert!(matches!(b.arm(), Some(Some(_))), "it looks again by itself");
    b.turns(2);
    b.devices[0].succeed_all();
    b.turn();
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_request_that_every_path_fails_gives_up_after_the_time_limit_and_several_tries() {
    for (limit_ms, every_ms) in [(1000, 0), (1, 0), (300, 100)] {
        let mut config = GroupConfig::new("disk");
        config.no_path_timeout_ms = limit_ms;
        let mut b = Bench::new(config, vec![info("a"), info("a")]);
        let (start, tag) = (b.now, b.write(1));
        while b.outcome(tag).is_none() {
            b.pass(every_ms);
            for d in &b.devices {
                d.in_flight().into_iter().for_each(|io| d.complete(io, Code::PathBusy, Proof::Answered));
            }
            b.turn();
            assert!(b.now.since(start).as_millis() < 5_000, "it never gives up");
        }
        assert_eq!(b.outcome(tag), Some(Code::NoPath));
        let tries: usize = b.devices.iter().map(|d| d.taken().len()).sum();
        assert!(
            b.now.since(start).as_millis() >= u128::from(limit_ms),
            "limit {limit_ms} ms: {:?}",
            b.now.since(start)
        );
        // Rounds over all paths, with growing delays between them.
        assert!((8..50).contains(&tries), "limit {limit_ms} ms: {tries} tries");
        b.finish();
    }
}

#[test]
fn a_path_that_is_to_be_removed_takes_nothing_even_before_its_queues_know() {
    let mut b = Bench::with_caches(&["a", "b"]);
    b.group.remove_path(b.ids[0]).expect("there");
    // No turn of the queue has seen it yet, and its device is what it was.
    for lba in 0..4 {
        b.submit(WRITE(lba));
    }
    assert_eq!((b.devices[0].in_flight().len(), b.devices[1].in_flight().len()), (0, 4));
    b.finish();
}
