//! What each path gets of requests that come together or one by one, the usual ones among others.

use crate::common::scripted::{Bench, Scripted, info};
use polypath_block::{Io, Op, SegSpan};
use polypath_multipath::{GroupConfig, SelectorKind};
use std::sync::Arc;

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
    for selector in [SelectorKind::RoundRobin, SelectorKind::Weight] {
        let mut b = calm(selector, 2);
        (0..32).for_each(|tag| b.submit_all(&[discard(tag)]).unwrap());
        assert_eq!(counts(&b), [16, 16], "{selector}");
        succeed(&mut b);
        b.finish();
    }
}

#[test]
fn a_batch_that_is_not_for_the_line_goes_to_each_path_in_turn() {
    for selector in [SelectorKind::RoundRobin, SelectorKind::Weight] {
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
    let rules = [SelectorKind::RoundRobin, SelectorKind::Weight, SelectorKind::QueueLength, SelectorKind::ServiceTime];
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
