//! A path that shows another disk: what the others say OK to may have been answered by that one, too.

use crate::common::scripted::{Bench, info};
use polypath_block::{Code, DeviceInfo, Identifier, Op};
use polypath_multipath::PathState;

fn stranger(domain: &str) -> DeviceInfo {
    let mut i = info(domain);
    i.identity.identifiers = vec![Identifier::Uuid([9; 16])];
    i
}

/// The ways in which a device shows another disk.
const WAYS: [fn(&Bench, usize); 2] = [
    |b, at| b.devices[at].set_down(Code::PathIdentity, "its namespace is another one"),
    |b, at| b.devices[at].set_live(stranger("c")),
];

/// Is a flush sent that is made now? It succeeds.
fn flush_is_sent(b: &mut Bench) -> bool {
    let flushes = |b: &Bench| b.devices.iter().flat_map(|d| d.taken()).filter(|io| io.op == Op::Flush).count();
    let before = flushes(b);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    flushes(b) > before
}

/// Two paths to one cache, which is clean.
fn clean() -> Bench {
    let mut b = Bench::with_caches(&["c", "c"]);
    assert!(flush_is_sent(&mut b) && !flush_is_sent(&mut b), "of unknown past; then clean");
    b
}

#[test]
fn every_flush_is_sent_while_a_path_shows_another_disk_and_one_afterwards() {
    for show in WAYS {
        for dirty in [false, true] {
            let mut b = clean();
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
fn a_flush_that_was_sent_in_doubt_and_answered_afterwards_proves_nothing() {
    let mut b = clean();
    b.devices[1].set_down(Code::PathIdentity, "its namespace is another one");
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
        let mut b = clean();
        show(&b, 1);
        assert!(flush_is_sent(&mut b));
        b.finish();
    }
}

#[test]
fn doubt_ends_with_the_path_that_raised_it() {
    for gone in [false, true] {
        let mut b = clean();
        b.devices[1].set_down(Code::PathIdentity, "its namespace is another one");
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
    let mut b = Bench::with_caches(&["c", "c", "d"]);
    assert!(flush_is_sent(&mut b) && !flush_is_sent(&mut b));
    b.devices[1].set_down(Code::PathIdentity, "its namespace is another one");
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
