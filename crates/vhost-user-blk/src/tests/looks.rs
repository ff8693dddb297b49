//! What a look between two turns finds, and that it does nothing.

use super::guest::{Piece, header};
use super::ram::RamDevice;
use super::*;
use polypath_block::Limits;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

/// A read of sector `n`.
fn add(rig: &mut Rig, n: u64) -> u16 {
    let meta = DATA_GPA + 64 * n;
    rig.ram.write(meta, &header(VIRTIO_BLK_T_IN, n));
    let pieces = [
        Piece { addr: meta, len: 16, write: false },
        Piece { addr: 0x100_0000 + 512 * n, len: 512, write: true },
        Piece { addr: meta + 16, len: 1, write: true },
    ];
    let head = rig.driver.add(&pieces).expect("room");
    rig.driver.publish();
    head
}

fn device() -> Arc<RamDevice> {
    RamDevice::new(512, 64, Limits::UNLIMITED)
}

/// A chain is found as often as one looks, and carried out once, in a turn.
#[test]
fn a_look_finds_what_the_guest_has_offered_and_takes_nothing() {
    for packed in [false, true] {
        let mut rig = Rig::of(packed, device(), 16, true);
        for n in 0..40 {
            assert!(!rig.poller.look(3), "packed {packed}, {n}: nothing is there");
            let head = add(&mut rig, n % 16);
            assert!(rig.poller.look(1) && rig.poller.look(3), "packed {packed}, {n}");
            assert_eq!(rig.driver.pop(), None, "packed {packed}, {n}: a look does nothing");
            rig.turn();
            assert_eq!(rig.driver.pop(), Some((head, 513)), "packed {packed}, {n}");
        }
        assert!(!rig.poller.look(0), "who does not look finds nothing");
    }
}

/// What is in flight may end at any moment, which only a turn notices: nobody stays and looks at the ring.
#[test]
fn nobody_looks_while_something_is_in_flight() {
    let device = device();
    let mut rig = Rig::of(false, device.clone(), 16, true);
    device.change(|s| s.hold = true);
    add(&mut rig, 0);
    rig.turn();
    add(&mut rig, 1);
    assert!(!rig.poller.look(3));
    device.change(|s| s.hold = false);
    rig.turns(3);
    assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 2);
    add(&mut rig, 2);
    assert!(rig.poller.look(1));
}

/// The guest that was left to kick finds its kick taken in a turn, not passed over by a look.
#[test]
fn a_ring_that_does_not_run_is_not_looked_at() {
    let mut rig = Rig::stopped(device(), 16, true, false);
    assert!(!rig.poller.look(3), "it has not started");
    rig.start(0);
    rig.turn();
    let mut waits = Waits::with_capacity(8);
    assert_eq!(rig.arm(&mut waits), Armed::Sleep);
    add(&mut rig, 0);
    assert!(!rig.poller.look(3), "its guest kicks");
    rig.turn();
    assert!(rig.driver.pop().is_some());
    let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
    rig.turn();
    assert_eq!(answer.try_recv(), Ok(Ok(1)));
    add(&mut rig, 1);
    assert!(!rig.poller.look(3), "it has stopped");
}

/// A ring that a guest has broken has nothing to offer any more.
#[test]
fn a_broken_ring_is_found_once() {
    let mut rig = Rig::of(false, device(), 16, true);
    rig.driver.avail.store_u16(2, 999, std::sync::atomic::Ordering::Release).unwrap();
    assert!(rig.poller.look(1), "something is wrong, which a turn finds out");
    rig.turn();
    assert_eq!(rig.counters.read().ring_errors, 1);
    assert!(!rig.poller.look(3));
}
