//! What each path gets of requests that come together or one by one, the usual ones among others.

use crate::common::scripted::{Bench, Scripted, info};
use polypath_block::{Health, Io, Op, SegSpan};
use polypath_multipath::{GroupConfig, SelectorKind};
use std::sync::Arc;
use std::time::Duration;

const fn read(tag: u64, lba: u64) -> Io {
    Io::read(tag, lba, 1, SegSpan::EMPTY)
}

const fn discard(tag: u64) -> Io {
    Io::range(tag, Op::Discard, tag, 1)
}

/// A group of `paths` equal paths with that rule, of which nothing is unusual any more.
fn calm(selector: SelectorKind, paths: usize) -> Bench {
    let config = GroupConfig { selector, ..GroupConfig::new("disk") };
    let mut b = Bench::new(config, (0..paths).map(|_| info("a")).collect());
    b.submit_all(&[read(0, 0)]).unwrap();
    succeed(&mut b);
    b.take_done();
    b
}

/// Everything in flight succeeds.
fn succeed(b: &mut Bench) {
    b.kick();
    b.devices.iter().for_each(|d| d.succeed_all());
    b.turn();
}

/// How many each path has in flight.
fn counts(b: &Bench) -> Vec<usize> {
    b.devices.iter().map(|d| d.in_flight().len()).collect()
}

#[test]
fn requests_that_are_not_for_the_line_take_turns_as_well() {
    for selector in [SelectorKind::RoundRobin { min_io: 0 }, SelectorKind::Weight] {
        let mut b = calm(selector, 2);
        (0..32).for_each(|tag| b.submit_all(&[discard(tag)]).unwrap());
        assert_eq!(counts(&b), [16, 16], "{selector}");
        succeed(&mut b);
        b.finish();
    }
}

#[test]
fn a_batch_that_is_not_for_the_line_goes_to_each_path_in_turn() {
    for selector in [SelectorKind::RoundRobin { min_io: 0 }, SelectorKind::Weight] {
        for count in [6, 12, 24, 48, 60] {
            let mut b = calm(selector, 3);
            b.submit_all(&(0..count).map(discard).collect::<Vec<_>>()).unwrap();
            assert_eq!(counts(&b), [count as usize / 3; 3], "{selector}, {count}");
            succeed(&mut b);
            b.finish();
        }
    }
}

/// One read after each of `other`, in one batch, over two paths: how many of the reads each path has.
fn reads_among(selector: SelectorKind, other: impl Fn(u64) -> Io) -> Vec<usize> {
    let mut b = calm(selector, 2);
    // Nothing is left to flush.
    b.submit_all(&[Io::flush(0)]).unwrap();
    succeed(&mut b);
    b.take_done();
    let batch: Vec<_> = (0..48).map(|tag| if tag % 2 == 0 { read(tag, tag) } else { other(tag) }).collect();
    b.submit_all(&batch).unwrap();
    let reads = |d: &Arc<Scripted>| d.in_flight().iter().filter(|io| io.op == Op::Read).count();
    let reads = b.devices.iter().map(reads).collect();
    succeed(&mut b);
    b.take_done();
    b.finish();
    reads
}

#[test]
fn what_no_path_gets_takes_nobodys_turn() {
    let rules = [
        SelectorKind::RoundRobin { min_io: 0 },
        SelectorKind::Weight,
        SelectorKind::QueueLength,
        SelectorKind::ServiceTime,
    ];
    for selector in rules {
        // Behind the end of the disk, and a flush of what is clean.
        assert_eq!(reads_among(selector, |tag| read(tag, 1000)), [12, 12], "{selector}, among those that are refused");
        assert_eq!(reads_among(selector, Io::flush), [12, 12], "{selector}, among flushes");
    }
}

#[test]
fn a_path_that_nobody_asked_for_long_is_asked_once_a_second_whatever_else_comes() {
    let mut b = calm(SelectorKind::HistoricalServiceTime, 2);
    // Path 1 answers after 40 ms, path 0 at once: with one request at a time, path 1 is asked only because nobody asked it for long.
    let mut asked = 0;
    for n in 0..500u64 {
        b.submit_all(&[Io::flush(1000 + n), read(n % 64, 1)]).unwrap();
        b.kick();
        if let [io] = b.devices[1].in_flight()[..] {
            asked += usize::from(n >= 50);
            b.pass(40);
            b.devices[1].succeed(io);
        }
        b.devices[0].succeed_all();
        b.turn();
        b.take_done();
        b.pass(10);
    }
    assert!((4..=6).contains(&asked), "{asked} times in 4.5 s and more");
    b.finish();
}

const fn sized(tag: u64, blocks: u32) -> Io {
    Io::read(tag, 0, blocks, SegSpan::EMPTY)
}

/// Where the only request is.
fn path_of_the_only_one(b: &Bench) -> usize {
    let counts = counts(b);
    assert_eq!(counts.iter().sum::<usize>(), 1, "{counts:?}");
    counts.iter().position(|&n| n == 1).unwrap()
}

#[test]
fn a_batch_is_shared_out_by_its_bytes() {
    let mut b = calm(SelectorKind::ServiceTime, 2);
    b.submit_all(&[sized(0, 64)]).unwrap();
    let large = path_of_the_only_one(&b);
    // 32 KiB are there: the other path gets as much, and then they take turns.
    b.submit_all(&(1..13).map(|tag| sized(tag, 8)).collect::<Vec<_>>()).unwrap();
    assert_eq!((counts(&b)[large], counts(&b)[1 - large]), (1 + 2, 10));
    succeed(&mut b);
    b.finish();
}

#[test]
fn a_path_is_known_by_what_it_took_for_each_size() {
    let mut b = calm(SelectorKind::HistoricalServiceTime, 2);
    b.submit_all(&[read(0, 0), read(1, 0)]).unwrap();
    assert_eq!(counts(&b), [1, 1], "nobody was asked for long");
    succeed(&mut b);
    for (path, blocks, took) in [(0, 24, 10), (1, 24, 1), (0, 64, 1), (1, 64, 10)] {
        b.devices[1 - path].set_health(Health::Down);
        b.turns(2);
        b.submit_all(&[sized(2, blocks)]).unwrap();
        assert_eq!(path_of_the_only_one(&b), path);
        b.now = b.now.after(Duration::from_millis(took));
        succeed(&mut b);
        b.take_done();
        b.devices[1 - path].set_health(Health::Ready);
        b.turns(2);
    }
    for (blocks, best) in [(24, 1), (64, 0), (24, 1), (64, 0)] {
        b.submit_all(&[sized(3, blocks)]).unwrap();
        assert_eq!(path_of_the_only_one(&b), best, "{blocks} blocks");
        succeed(&mut b);
        b.take_done();
        // Several: each of them takes as long as there are others.
        b.submit_all(&(0..8).map(|tag| sized(tag, blocks)).collect::<Vec<_>>()).unwrap();
        assert!(counts(&b)[best] >= 5, "{blocks} blocks: {:?}", counts(&b));
        b.now = b.now.after(Duration::from_millis(1));
        succeed(&mut b);
        b.take_done();
    }
    b.finish();
}

#[test]
fn paths_that_answer_in_one_turn_are_known_by_their_own_answers() {
    let mut b = calm(SelectorKind::HistoricalServiceTime, 2);
    b.submit_all(&[sized(0, 64)]).unwrap();
    let late = path_of_the_only_one(&b);
    b.now = b.now.after(Duration::from_millis(10));
    b.submit_all(&[sized(1, 64)]).unwrap();
    assert_eq!(counts(&b), [1, 1]);
    succeed(&mut b);
    b.take_done();
    for tag in 0..10 {
        b.submit_all(&[sized(tag, 64)]).unwrap();
        assert_ne!(path_of_the_only_one(&b), late);
        succeed(&mut b);
    }
    b.finish();
}

#[test]
fn a_new_path_that_answers_nothing_draws_no_more_than_its_part_of_one_batch() {
    let mut b = calm(SelectorKind::HistoricalServiceTime, 1);
    b.add(info("a"));
    b.turns(3);
    b.submit_all(&(0..60).map(|tag| read(tag, tag)).collect::<Vec<_>>()).unwrap();
    assert_eq!(counts(&b), [30, 30]);
    succeed(&mut b);
    b.finish();
}

#[test]
fn requests_of_several_sizes_in_one_batch_are_chosen_for_one_by_one() {
    let mut b = calm(SelectorKind::ServiceTime, 2);
    let sizes = [64, 8, 8, 8, 8, 8, 8, 8, 8];
    b.submit_all(&sizes.iter().zip(0..).map(|(&blocks, tag)| sized(tag, blocks)).collect::<Vec<_>>()).unwrap();
    let mut counts = counts(&b);
    counts.sort_unstable();
    assert_eq!(counts, [1, 8], "as many bytes here as there");
    succeed(&mut b);
    b.finish();
}

#[test]
fn the_first_of_a_batch_goes_where_the_next_one_alone_would_go() {
    let mut b = calm(SelectorKind::QueueLength, 2);
    for round in 0..6 {
        b.submit_all(&[read(9, 9)]).unwrap();
        let last = path_of_the_only_one(&b);
        succeed(&mut b);
        b.take_done();
        b.submit_all(&[read(0, 0), read(1, 1)]).unwrap();
        assert_eq!(b.devices[1 - last].only().tag, 0, "round {round}");
        succeed(&mut b);
        // The other one's turn to be the first.
        if round % 2 == 0 {
            b.submit_all(&[read(8, 8)]).unwrap();
            succeed(&mut b);
        }
        b.take_done();
    }
    b.finish();
}

#[test]
fn a_full_path_is_asked_again_when_something_of_its_own_is_over_and_not_before() {
    let mut b = calm(SelectorKind::QueueLength, 1);
    b.devices[0].set_room(2);
    b.submit_all(&(0..4).map(|tag| read(tag, tag)).collect::<Vec<_>>()).unwrap();
    b.turns(2);
    assert_eq!(counts(&b), [2]);
    b.devices[0].set_room(4);
    b.turns(3);
    assert_eq!(counts(&b), [2], "it has not said anything");
    b.devices[0].succeed(b.devices[0].in_flight()[0]);
    b.turn();
    assert_eq!(counts(&b), [3]);
    succeed(&mut b);
    b.finish();
}

#[test]
fn requests_that_find_no_place_on_the_line_take_turns_as_well() {
    // The place of another one, and a task's.
    for (shift, bits) in [(32, 0), (0, 1 << 63)] {
        let mut b = calm(SelectorKind::RoundRobin { min_io: 0 }, 2);
        b.submit_all(&[read(0, 0)]).unwrap();
        (1..32).for_each(|n| b.submit_all(&[read(n << shift | bits, 0)]).unwrap());
        assert_eq!(counts(&b), [16, 16], "{bits:#x}");
        succeed(&mut b);
        b.finish();
    }
}
