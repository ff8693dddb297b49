//! Changes that wait for the end of what somebody else may have in flight: what happens to them meanwhile, and when that end has come.

use super::parts::{STATUS, half_taken};
use super::ram::RamDevice;
use super::*;
use polypath_block::{Limits, Op};
use std::time::Instant;

/// From now on changes wait for 100 s.
fn hold(rig: &Rig) {
    rig.config.changes_from.extend(Instant::now() + Duration::from_secs(100));
}

/// The end comes after the last turn, and before the reactor is asked whether it may sleep: nothing else would ever wake it for them.
#[test]
fn a_wait_that_ends_between_a_turn_and_the_sleep_is_not_slept_upon() {
    for packed in [false, true] {
        let device = RamDevice::new(512, 64, Limits::UNLIMITED);
        device.change(|s| s.record = true);
        let mut rig = Rig::of(packed, device.clone(), 16, true);
        hold(&rig);
        rig.offer(1, true, 8);
        rig.driver.publish();
        rig.turns(3);
        assert!(device.log().is_empty(), "it waits");
        let mut waits = Waits::default();
        assert_eq!(rig.arm(&mut waits), Armed::Sleep);
        let until = waits.deadline.expect("a sleep until it may be made");
        for late in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1)] {
            rig.now = until.after(late);
            let mut waits = Waits::default();
            let armed = rig.arm(&mut waits);
            let in_time = waits.deadline.is_some_and(|at| at <= rig.now);
            assert!(
                armed == Armed::Busy || in_time,
                "packed {packed}, {late:?} late: it sleeps until {:?}",
                waits.deadline
            );
        }
        rig.turns(2);
        assert!(rig.driver.pop().is_some());
        rig.check(1, 8);
    }
}

/// Of a request of two parts one is with the device and the other one waits. The first one fails, and that is the end of both: the guest has its
/// descriptors back, and may have offered them anew, when the wait is over.
#[test]
fn a_request_that_failed_while_the_rest_of_it_waited_is_given_back_once() {
    let (mut rig, device, head) = half_taken();
    hold(&rig);
    device.change(|s| s.room = usize::MAX);
    rig.turns(3);
    device.change(|s| (s.hold, s.fail) = (false, 1));
    rig.turns(3);
    assert_eq!((rig.driver.pop(), rig.ram.read(STATUS, 1)[0]), (Some((head, 1)), 1));
    device.change(|s| s.fail = 0);
    rig.now = rig.now.after(Duration::from_secs(101));
    rig.turns(3);
    assert_eq!(rig.driver.pop(), None, "given back again");
    assert_eq!(device.log().iter().filter(|(op, ..)| *op == Op::Discard).count(), 1);
    rig.offer(1, true, 8);
    rig.driver.publish();
    rig.turns(3);
    assert_eq!((rig.driver.pop().map(|_| ()), rig.command(Command::Stop { flush: false })), (Some(()), Ok(2)));
}
