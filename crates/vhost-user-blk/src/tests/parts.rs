//! Requests of several parts (ranges to discard), of which the device has taken some when something happens.

use super::guest::{Piece, header};
use super::ram::RamDevice;
use super::*;
use polypath_block::{Code, Limits, Op};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_DISCARD;

pub(super) const STATUS: u64 = DATA_GPA + 0x1000;

/// A ring without a record whose guest discards two ranges; the device has room for the first one, and keeps it.
pub(super) fn half_taken() -> (Rig, Arc<RamDevice>, u16) {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    device.change(|s| (s.record, s.hold, s.room) = (true, true, 1));
    let mut rig = Rig::new(device.clone(), 16, true);
    let range = |sector: u64| [&sector.to_le_bytes()[..], &1u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
    let ranges = [range(1), range(2)].concat();
    rig.ram.write(DATA_GPA, &header(VIRTIO_BLK_T_DISCARD, 0));
    rig.ram.write(DATA_GPA + 0x100, &ranges);
    rig.ram.write(STATUS, &[0xee]);
    let pieces = [
        Piece { addr: DATA_GPA, len: 16, write: false },
        Piece { addr: DATA_GPA + 0x100, len: ranges.len() as u32, write: false },
        Piece { addr: STATUS, len: 1, write: true },
    ];
    let head = rig.driver.add(&pieces).unwrap();
    rig.driver.publish();
    rig.turns(3);
    assert_eq!(device.log().len(), 1, "one has room");
    (rig, device, head)
}

/// What was begun does not go back to the ring: whoever runs that next would do the first part again, on top of what has come since.
#[test]
fn a_request_of_which_a_part_was_taken_is_finished_before_a_stop() {
    let (mut rig, device, head) = half_taken();
    let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
    rig.turns(3);
    assert!(answer.try_recv().is_err(), "a part of it is with the device");
    device.change(|s| (s.hold, s.room) = (false, usize::MAX));
    rig.turns(3);
    assert_eq!(answer.try_recv().unwrap(), Ok(1), "it is over");
    assert_eq!((rig.driver.pop(), rig.ram.read(STATUS, 1)[0]), (Some((head, 1)), 0));
    assert_eq!(device.log().len(), 2);
}

/// One part fails: the guest has its answer, and the rest is not carried out behind its back.
#[test]
fn the_rest_of_a_request_that_failed_is_not_begun() {
    let (mut rig, device, head) = half_taken();
    device.change(|s| (s.hold, s.fail) = (false, 1));
    rig.turns(3);
    assert_eq!((rig.driver.pop(), rig.ram.read(STATUS, 1)[0]), (Some((head, 1)), 1));
    device.change(|s| (s.fail, s.room) = (0, usize::MAX));
    rig.turns(3);
    assert_eq!(device.log().iter().filter(|(op, ..)| *op == Op::Discard).count(), 1);
    assert_eq!((rig.driver.pop(), rig.command(Command::Stop { flush: false })), (None, Ok(1)), "given back once");
}

/// A last flush whose device says that it may have dropped something is not tried again, and its guest is owed.
#[test]
fn a_last_flush_of_a_full_medium_is_owed() {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, ..Limits::UNLIMITED });
    device.change(|s| (s.record, s.fail_flush) = (true, Some(Code::NoSpace)));
    let mut rig = Rig::new(device.clone(), 16, true);
    assert_eq!(rig.command(Command::Stop { flush: true }), Ok(0));
    assert!(rig.config.owed.is_owed() && device.log().len() == 1);
}

/// A device that is gone for good takes no flush, and nobody waits for one.
#[test]
fn nobody_waits_for_a_last_flush_of_a_device_that_is_gone() {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, ..Limits::UNLIMITED });
    let mut rig = Rig::new(device.clone(), 16, true);
    device.change(|s| (s.gone, s.down) = (true, true));
    let answer = rig.mailbox.send(Command::Stop { flush: true }).unwrap();
    rig.turns(5);
    assert_eq!(answer.try_recv(), Ok(Ok(0)));
}

/// A ring that runs, or is about to stop, is not put in the place of itself: its requests would be nobody's.
#[test]
fn a_ring_is_not_started_while_it_runs_or_stops() {
    let (mut rig, device, head) = half_taken();
    let start = |rig: &mut Rig| {
        let again = Start {
            ring: rig.ring(0),
            kick: None,
            call: None,
            err: None,
            write_through: rig.write_through.clone(),
            orphaned: false,
        };
        rig.command(Command::Start(Box::new(again)))
    };
    assert!(start(&mut rig).is_err(), "it runs");
    let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
    assert!(start(&mut rig).is_err(), "it is about to stop");
    device.change(|s| (s.hold, s.room) = (false, usize::MAX));
    rig.turns(3);
    assert_eq!((answer.try_recv(), rig.driver.pop()), (Ok(Ok(1)), Some((head, 1))));
}

/// A poller that is told to go stays until the device has nothing of its ring, and its queue is drained.
#[test]
fn a_poller_goes_when_its_queue_has_drained() {
    let (mut rig, device, head) = half_taken();
    let answer = rig.mailbox.send(Command::End).unwrap();
    (0..3).for_each(|_| assert_ne!(rig.turn(), Turn::Finished, "the device has a part of it"));
    device.change(|s| (s.hold, s.room, s.closes_slowly) = (false, usize::MAX, true));
    (0..3).for_each(|_| assert_ne!(rig.turn(), Turn::Finished, "its queue is being closed"));
    assert_eq!((answer.try_recv(), rig.driver.pop()), (Ok(Ok(1)), Some((head, 1))));
    device.change(|s| s.closes_slowly = false);
    assert_eq!(rig.turn(), Turn::Finished);
}
