//! What one path says of a request is not what all of them say.

use crate::common::scripted::Bench;
use polypath_block::{Code, Health, Io, Proof, SegSpan};

const READ: fn(u64) -> Io = |lba| Io::read(0, lba, 1, SegSpan::EMPTY);

/// Submits a read; its tag, and the device that it went to.
fn read(b: &mut Bench) -> (u64, usize) {
    let tag = b.submit(READ(1));
    (tag, usize::from(b.devices[0].in_flight().is_empty()))
}

#[test]
fn a_range_that_one_path_refuses_is_asked_again_of_one_that_failed_for_another_reason() {
    for code in [Code::PathLost, Code::PathBusy, Code::PathNoAccess] {
        let mut b = Bench::with_caches(&["a", "b"]);
        let (tag, first) = read(&mut b);
        let io = b.devices[first].only();
        // It has shrunk, and its device has not said so yet.
        b.devices[first].complete(io, Code::OutOfRange, Proof::Answered);
        b.turn();
        let io = b.devices[1 - first].only();
        b.devices[1 - first].complete(io, code, Proof::Answered);
        for _ in 0..100 {
            b.pass(10);
            b.devices[1 - first].succeed_all();
            for io in b.devices[first].in_flight() {
                b.devices[first].complete(io, Code::OutOfRange, Proof::Answered);
            }
        }
        assert_eq!(
            b.outcome(tag),
            Some(Code::Ok),
            "{code:?}: the other path has never said that it has no such blocks"
        );
        b.finish();
    }
}

#[test]
fn a_range_that_one_path_refuses_waits_for_another_one_that_may_return() {
    let mut b = Bench::with_caches(&["a", "b"]);
    b.devices[1].set_health(Health::Down);
    b.turns(2);
    let tag = b.submit(READ(1));
    let io = b.devices[0].only();
    b.devices[0].complete(io, Code::OutOfRange, Proof::Answered);
    // Then its device says what it is.
    b.devices[0].set_down(Code::PathIdentity, "another disk answers");
    b.pass(50);
    assert_eq!(b.outcome(tag), None, "one path may return, and has not been asked");
    b.devices[1].set_health(Health::Ready);
    b.pass(50);
    b.devices[1].succeed_all();
    b.turns(2);
    assert_eq!(b.outcome(tag), Some(Code::Ok));
    b.finish();
}
