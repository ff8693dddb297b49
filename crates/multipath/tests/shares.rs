//! What each path gets of requests that come together or one by one, the usual ones among others.

use crate::common::scripted::{Bench, info};
use polypath_block::{Code, Io, Op, SegSpan};
use polypath_multipath::{GroupConfig, SelectorKind};

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
