//! The numbers of a path, as whoever looks after it sees them.

use crate::common::scripted::{BOUND, Bench, info};
use polypath_block::{Code, Device, Fate, Io, Proof, QueueConfig, SegSpan};
use polypath_multipath::GroupConfig;
use std::time::Duration;

/// A write of `blocks` that takes `ms` from its submission to the turn in which it is over.
fn take(b: &mut Bench, blocks: u32, ms: u64) {
    b.submit(Io::write(0, 0, blocks, SegSpan::EMPTY));
    b.devices[0].succeed_all();
    b.now = b.now.after(Duration::from_micros(1000 * ms - 100));
    b.turn();
}

#[test]
fn numbers_are_those_of_all_queues_and_of_those_that_ended() {
    let mut b = Bench::with_caches(&["a"]);
    (0..3).for_each(|_| take(&mut b, 1, 1));
    let first = {
        let second = b.group.open_queue(QueueConfig { depth: 8 }).expect("a queue");
        std::mem::replace(&mut b.queue, second)
    };
    b.turns(2);
    take(&mut b, 5, 5);
    b.write(1);
    b.devices[0].complete(b.devices[0].only(), Code::Medium, Proof::Answered);
    b.turn();
    b.write(2);
    b.devices[0].complete(b.devices[0].only(), Code::PathBusy, Proof::Answered);
    b.turn();
    let sums = |b: &Bench| {
        let s = b.stats(0);
        (s.ios, s.bytes, s.errors, s.redriven, s.latency)
    };
    let all = (4, 8 * 512, 2, 1, Duration::from_millis(2));
    assert_eq!(sums(&b), all, "the latency is that of a request, whatever queue it went through");
    // The second queue ends with a request in flight and one behind its fence.
    b.pass(20);
    b.write(3);
    let list = b.devices[0].in_flight();
    assert_eq!(list.len(), 2);
    b.devices[0].suspect(list[0], Fate::Unknown);
    b.turn();
    assert_eq!((b.stats(0).in_flight, b.stats(0).suspects), (1, 1));
    drop(std::mem::replace(&mut b.queue, first));
    assert_eq!(sums(&b), all, "what it has done is done");
    assert_eq!((b.stats(0).in_flight, b.stats(0).suspects), (0, 0));
    take(&mut b, 1, 2);
    assert_eq!(b.stats(0).ios, 5);
}

#[test]
fn the_latency_begins_with_the_first_request_and_follows_the_recent_ones_slowly() {
    let mut b = Bench::with_caches(&["a"]);
    assert_eq!(b.stats(0).latency, Duration::ZERO);
    take(&mut b, 1, 1);
    assert_eq!(b.stats(0).latency, Duration::from_millis(1));
    take(&mut b, 1, 65);
    assert_eq!(b.stats(0).latency, Duration::from_millis(2), "one of 64 has its say");
    (0..64).for_each(|_| take(&mut b, 1, 4));
    let us = b.stats(0).latency.as_micros();
    assert!((3_200..3_350).contains(&us), "{us} us, on the way from two milliseconds to four");
    (0..600).for_each(|_| take(&mut b, 1, 4));
    let us = b.stats(0).latency.as_micros();
    assert!((3_990..=4_000).contains(&us), "{us} us");
    b.finish();
}

#[test]
fn a_request_that_was_sent_again_counts_where_it_failed_and_where_it_succeeded() {
    let mut b = Bench::new(GroupConfig::new("disk"), vec![info("a"), info("a")]);
    b.write(1);
    let at = usize::from(b.devices[0].in_flight().is_empty());
    let io = b.devices[at].only();
    b.devices[at].suspect(io, Fate::Unknown);
    b.turn();
    b.devices[at].complete(io, Code::PathLost, BOUND);
    b.turn();
    b.devices[1 - at].succeed_all();
    b.turn();
    let (failed, succeeded) = (b.stats(at), b.stats(1 - at));
    assert_eq!((failed.ios, failed.bytes, failed.errors, failed.redriven), (0, 0, 1, 1));
    assert_eq!((succeeded.ios, succeeded.bytes, succeeded.errors, succeeded.redriven), (1, 512, 0, 0));
    b.finish();
}
