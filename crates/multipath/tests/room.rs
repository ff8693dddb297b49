//! Who is asked next: room that comes free, paths that have failed a request already, tables that are full.

use crate::common::scripted::{BOUND, Bench, info, limited};
use polypath_block::{Access, Code, DeviceInfo, Fate, Flags, Health, Io, Limits, Op, Proof, RefusedWhy, SegSpan};
use polypath_multipath::{GroupConfig, SelectorKind};

const READ: fn(u64) -> Io = |lba| Io::read(0, lba, 1, SegSpan::EMPTY);

/// Two paths to one disk, of which only `at` carries anything, and no more than `room` requests.
fn only_room(at: usize, room: usize) -> Bench {
    let mut b = only_path(at);
    b.turn();
    b.devices[at].set_room(room);
    b
}

/// Two paths to one disk, of which only `at` carries anything.
fn only_path(at: usize) -> Bench {
    let b = Bench::with_caches(&["a", "a"]);
    b.devices[1 - at].set_health(Health::Down);
    b
}

#[test]
fn everything_that_waits_goes_on_as_soon_as_there_is_room() {
    for at in [0, 1] {
        let mut b = only_room(at, 1);
        let first = b.submit(READ(0));
        (1..=20).for_each(|lba| assert!(b.try_submit(READ(lba)).is_ok()));
        b.turns(3);
        assert_eq!(b.devices[at].only().lba, 0);
        b.devices[at].set_room(64);
        b.devices[at].succeed_all();
        b.turn();
        assert_eq!((b.outcome(first), b.devices[at].in_flight().len()), (Some(Code::Ok), 20));
        b.finish();
    }
}

#[test]
fn room_is_found_by_whatever_frees_it() {
    for at in [0, 1] {
        // One suspect among others.
        let mut b = only_room(at, 2);
        (0..3).for_each(|lba| assert!(b.try_submit(READ(lba)).is_ok()));
        b.devices[at].suspect(b.devices[at].in_flight()[0], Fate::Unknown);
        b.turn();
        assert_eq!(b.devices[at].in_flight().iter().map(|io| io.lba).collect::<Vec<_>>(), [1, 2]);
        b.finish();
        // Somebody else's requests.
        let mut b = only_room(at, 0);
        b.submit(READ(0));
        b.turn();
        b.devices[at].set_room(1);
        b.turns(2);
        assert_eq!(b.devices[at].in_flight().len(), 1);
        b.finish();
        // A new connection, although requests of the old one are still under way.
        let mut b = only_room(at, 1);
        (0..2).for_each(|lba| assert!(b.try_submit(READ(lba)).is_ok()));
        b.devices[at].set_health(Health::Down);
        b.turn();
        b.devices[at].set_room(2);
        b.devices[at].set_health(Health::Ready);
        b.turn();
        assert_eq!(b.devices[at].in_flight().len(), 2);
        b.finish();
    }
}

#[test]
fn a_path_that_returns_takes_what_waits_in_the_same_turn() {
    for at in [0, 1] {
        let mut b = only_path(at);
        b.devices[at].set_health(Health::Down);
        b.turn();
        b.submit(READ(1));
        b.turns(3);
        b.devices[at].set_health(Health::Ready);
        b.turn();
        assert_eq!((b.devices[at].in_flight().len(), b.queue.health()), (1, Health::Ready));
        b.finish();
    }
}

#[test]
fn a_request_goes_to_a_worse_path_rather_than_back_to_the_one_that_failed_it() {
    for at in [0, 1] {
        let worse = DeviceInfo { access: Access::NonOptimized, ..info("a") };
        let setup = || {
            let mut b = Bench::with_caches(&["a", "a"]);
            b.devices[1 - at].set_live(worse.clone());
            b.devices[1 - at].set_health(Health::Stalled);
            b.turns(2);
            let tag = b.submit(READ(1));
            (b, tag)
        };
        let (mut b, _) = setup();
        b.devices[at].suspect(b.devices[at].only(), Fate::NotSent);
        b.turn();
        assert_eq!((b.devices[at].in_flight().len(), b.devices[1 - at].in_flight().len()), (0, 1), "it was suspect");
        b.finish();
        for code in [Code::PathLost, Code::OutOfRange] {
            let (mut b, tag) = setup();
            b.devices[at].complete(b.devices[at].only(), code, Proof::Answered);
            b.turn();
            let io = b.devices[1 - at].only();
            b.devices[1 - at].complete(io, code, Proof::Answered);
            b.turns(2);
            // What both have refused is answered; what both have failed is tried again.
            let want = (code == Code::OutOfRange).then_some(code);
            assert_eq!(b.outcome(tag), want, "{code:?}");
            b.finish();
        }
    }
}

#[test]
fn what_is_finished_and_not_handed_out_yet_takes_a_place() {
    let mut b = Bench::with_caches(&["a"]);
    (0..64).for_each(|_| assert!(b.try_submit(READ(5_000)).is_ok()));
    assert_eq!(b.try_submit(READ(0)), Err(RefusedWhy::Full), "there is no room for its completion");
    b.turn();
    assert_eq!(b.done.len(), 64);
    b.finish();
}

/// Twelve writes over a path that takes less each time it is asked, down to `least` blocks, so that what was cut is cut again and again.
fn cut_again_and_again(least: u32) -> (Bench, Vec<u64>) {
    let mut b = Bench::with_caches(&["a", "b"]);
    b.group.freeze();
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    let tags: Vec<_> = (0..12).map(|n| b.submit(Io::write(0, 64 * n, 64, SegSpan::EMPTY))).collect();
    for blocks in (least..64).rev() {
        b.devices[0].set_live(limited(blocks));
        b.turns(2);
        for io in b.devices[0].in_flight() {
            b.devices[0].complete(io, Code::PathBusy, Proof::Answered);
        }
        b.pass(130);
    }
    (b, tags)
}

#[test]
fn what_is_cut_again_and_again_is_carried_out_and_waits_for_nobody() {
    for least in [1, 5, 16, 33] {
        let (mut b, tags) = cut_again_and_again(least);
        assert!(tags.iter().all(|&tag| b.outcome(tag).is_none()), "nothing was written yet");
        let mut written = vec![0; 12 * 64];
        for _ in 0..1000 {
            for io in b.devices[0].in_flight() {
                assert!(io.blocks <= least, "{io:?}");
                (io.lba..io.lba + u64::from(io.blocks)).for_each(|lba| written[lba as usize] += 1);
                b.devices[0].succeed(io);
            }
            b.turn();
            for (n, &tag) in tags.iter().enumerate().filter(|&(_, &tag)| b.outcome(tag).is_some()) {
                let whole = written[64 * n..][..64].iter().all(|&times| times > 0);
                assert!(whole && b.outcome(tag) == Some(Code::Ok), "write {n}: {:?}, whole: {whole}", b.outcome(tag));
            }
        }
        assert!(tags.iter().all(|&tag| b.outcome(tag) == Some(Code::Ok)), "{least}");
        assert!(written.iter().all(|&times| times == 1), "{least}: {written:?}");
        b.submit(Io::flush(0));
        b.finish();
    }
}

#[test]
fn what_is_cut_for_one_path_is_cut_again_for_another_one_and_a_failure_tells_what_was_sent() {
    // The second piece of a part fails for good, on the path that takes less.
    for (proof, told) in [(Proof::Answered, Proof::Answered), (BOUND, BOUND)] {
        let mut b = Bench::with_caches(&["a", "a"]);
        b.group.freeze();
        b.devices[1].set_health(Health::Down);
        b.devices[0].set_live(limited(32));
        b.turns(2);
        let tag = b.submit(Io::write(0, 0, 64, SegSpan::EMPTY));
        let [first, second] = b.devices[0].in_flight()[..] else { panic!("two parts") };
        b.devices[1].set_live(limited(8));
        b.devices[1].set_health(Health::Ready);
        b.turns(2);
        b.devices[0].succeed(first);
        b.devices[0].complete(second, Code::PathLost, Proof::NeverSent);
        b.devices[0].set_health(Health::Down);
        b.turn();
        for lba in [32, 40] {
            let io = b.devices[1].only();
            assert_eq!((io.lba, io.blocks), (lba, 8));
            match lba {
                32 => b.devices[1].succeed(io),
                _ => b.devices[1].complete(io, Code::Medium, proof),
            }
            b.turn();
        }
        let done = b.completion(tag).expect("an outcome");
        assert_eq!((done.status.code, done.proof), (Code::Medium, told));
        assert!(b.devices[1].in_flight().is_empty(), "what follows an error is not sent");
        b.finish();
    }
}

/// A write of two parts, of which its path takes `room` at a time.
fn write_of_two_parts(room: usize) -> (Bench, u64) {
    let mut b = Bench::with_caches(&["a"]);
    b.group.freeze();
    b.devices[0].set_live(limited(32));
    b.turns(2);
    b.devices[0].set_room(room);
    let tag = b.submit(Io::write(0, 0, 64, SegSpan::EMPTY));
    (b, tag)
}

/// Its path goes and does not come back in time.
fn proof_without_a_path(mut b: Bench, tag: u64) -> Proof {
    b.devices[0].set_health(Health::Down);
    b.pass(61_000);
    let done = b.completion(tag).expect("an outcome");
    assert_eq!(done.status.code, Code::NoPath);
    b.finish();
    done.proof
}

#[test]
fn a_write_of_which_something_was_written_is_not_told_as_never_sent() {
    for again in [false, true] {
        let (mut b, tag) = write_of_two_parts(1);
        if again {
            // The first part is cut once more, and only its first piece is written.
            let io = b.devices[0].only();
            b.devices[0].set_live(limited(16));
            b.devices[0].complete(io, Code::PathBusy, Proof::Answered);
            b.pass(130);
        }
        b.devices[0].succeed(b.devices[0].only());
        assert_eq!(proof_without_a_path(b, tag), Proof::Answered);
    }
    // Where nothing has left, that is told.
    let (b, tag) = write_of_two_parts(0);
    assert_eq!(proof_without_a_path(b, tag), Proof::NeverSent);
}

#[test]
fn what_cannot_be_cut_for_one_path_goes_to_the_one_that_takes_it_whole() {
    let few = DeviceInfo { limits: Limits { max_segments: 4, ..info("a").limits }, ..info("a") };
    let mut b = Bench::with_caches(&["a", "a"]);
    b.group.freeze();
    b.cut_segments(8, 64);
    b.devices[1].set_live(few.clone());
    b.turns(3);
    let tags: Vec<_> = (0..4).map(|n| b.submit(Io::read(0, n, 1, SegSpan::EMPTY))).collect();
    assert_eq!((b.devices[0].in_flight().len(), b.devices[1].in_flight().len()), (4, 0));
    b.succeed_within(10, &tags);
    // None takes it: that is the requester's, and nothing was sent.
    b.devices[0].set_live(few);
    b.turns(3);
    let tag = b.submit(Io::read(0, 0, 1, SegSpan::EMPTY));
    b.turns(2);
    assert_eq!(b.completion(tag).map(|c| (c.status.code, c.proof)), Some((Code::Invalid, Proof::NeverSent)));
    b.finish();
}

#[test]
fn parts_of_what_waited_are_sent_in_the_same_turn() {
    let mut b = Bench::with_caches(&["a", "a"]);
    b.group.freeze();
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    (0..64).for_each(|n| _ = b.submit(Io::read(0, n, 64, SegSpan::EMPTY)));
    assert_eq!(b.devices[0].in_flight().len(), 64);
    b.devices[1].set_live(limited(32));
    b.devices[1].set_health(Health::Ready);
    b.turns(2);
    // The first path goes, and has sent nothing of it.
    b.devices[0].in_flight().into_iter().for_each(|io| b.devices[0].complete(io, Code::PathLost, Proof::NeverSent));
    b.devices[0].set_health(Health::Down);
    b.turn();
    assert!(b.devices[1].in_flight().len() >= 64, "{} were sent", b.devices[1].in_flight().len());
    b.finish();
}

#[test]
fn a_path_that_refuses_between_two_turns_is_asked_again_in_the_next() {
    let mut b = Bench::with_caches(&["a"]);
    b.turns(2);
    b.devices[0].set_health(Health::Down);
    let tag = b.submit(READ(1));
    b.devices[0].set_health(Health::Ready);
    b.turns(2);
    assert_eq!(b.devices[0].in_flight().len(), 1, "both turns have seen the path ready");
    b.succeed_within(10, &[tag]);
    b.finish();
}

#[test]
fn ranges_are_spread_over_the_paths_and_stay_there() {
    let mut config = GroupConfig::new("disk");
    config.selector = SelectorKind::Hash { range_bytes: 512 };
    let mut b = Bench::new(config, vec![info("a"), info("a")]);
    let mut homes = Vec::new();
    for round in 0..3 {
        for lba in 0..40 {
            b.submit(READ(lba));
            let at = usize::from(b.devices[0].in_flight().is_empty());
            b.devices[at].succeed_all();
            b.turn();
            match round {
                0 => homes.push(at),
                _ => assert_eq!(homes[lba as usize], at, "block {lba}"),
            }
        }
    }
    let second = homes.iter().sum::<usize>();
    assert!((10..30).contains(&second), "{second} of 40 on the second path");
    b.finish();
}

#[test]
fn the_flush_before_a_removal_covers_what_was_in_flight_and_nobody_flushes_a_clean_cache() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    let flushes = |b: &Bench, i: usize| b.devices[i].taken().iter().filter(|io| io.op == Op::Flush).count();
    let before = [0, 1, 2].map(|i| flushes(&b, i));
    b.dirty(0, 2);
    while b.devices[0].in_flight().is_empty() {
        b.write(1);
    }
    for other in &b.devices[1..] {
        other.in_flight().into_iter().for_each(|io| other.complete(io, Code::Medium, Proof::Answered));
    }
    b.turn();
    b.group.remove_path(b.ids[0]).expect("there");
    b.group.remove_path(b.ids[1]).expect("there");
    b.turns(4);
    assert_eq!((flushes(&b, 0), flushes(&b, 1)), (before[0], before[1]));
    assert_eq!(b.group.paths().len(), 2, "the clean one is gone, the other one has a write under way");
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(flushes(&b, 0), before[0] + 1);
    b.devices[0].succeed_all();
    b.turns(2);
    assert_eq!(b.group.paths(), [b.ids[2]]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}

#[test]
fn a_path_is_released_when_its_queue_says_that_it_is_drained() {
    let mut b = Bench::with_caches(&["a", "b"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.devices[0].set_undrained(true);
    b.group.remove_path(b.ids[0]).expect("there");
    b.turns(5);
    assert_eq!(b.group.paths().len(), 2, "with nothing of ours on it, it may have something of its own to end");
    b.devices[0].set_undrained(false);
    b.turns(2);
    assert_eq!(b.group.paths(), [b.ids[1]]);
    b.finish();
}

#[test]
fn failures_at_the_same_time_are_one_failure() {
    let mut config = GroupConfig::new("disk");
    config.selector = SelectorKind::RoundRobin { min_io: 0 };
    let mut b = Bench::new(config, vec![info("a"), info("a")]);
    (0..8).for_each(|lba| assert!(b.try_submit(READ(lba)).is_ok()));
    b.devices[0].in_flight().into_iter().for_each(|io| b.devices[0].complete(io, Code::PathLost, Proof::Answered));
    b.devices[1].succeed_all();
    b.turn();
    b.devices[1].succeed_all();
    b.pass(20);
    b.submit(READ(1));
    b.submit(READ(2));
    assert_eq!(b.devices[0].in_flight().len(), 1, "ten milliseconds for the first failure, whatever it took along");
    b.finish();
}

#[test]
fn a_durable_write_under_way_while_its_cache_goes_has_lost_nothing() {
    let mut b = Bench::with_caches(&["a", "b"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.submit(Io::write(0, 1, 1, SegSpan::EMPTY).with_flags(Flags::FUA));
    let at = usize::from(b.devices[0].in_flight().is_empty());
    let io = b.devices[at].only();
    b.devices[at].suspect(io, Fate::Unknown);
    b.devices[at].set_gone();
    b.turns(2);
    b.devices[at].complete(io, Code::PathLost, BOUND);
    b.turns(2);
    b.devices[1 - at].succeed_all();
    b.turns(2);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.finish();
}
