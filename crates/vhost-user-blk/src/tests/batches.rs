//! What a look at the ring has found is submitted in one batch: what becomes of the rest when the queue takes a part of it.

use super::guest::{Piece, header};
use super::ram::RamDevice;
use super::*;
use polypath_block::{Limits, Op};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

/// A guest of a device that takes `room` requests and keeps them.
fn guest_of(room: usize) -> (Rig, Arc<RamDevice>) {
    let device = RamDevice::new(512, 2048, Limits { write_cache: true, ..Limits::UNLIMITED });
    device.change(|s| (s.record, s.hold, s.room) = (true, true, room));
    (Rig::new(device.clone(), 256, true), device)
}

/// Request `n` of the guest, of one sector, or a flush.
fn add(rig: &mut Rig, n: u64, kind: u32) -> u16 {
    let meta = DATA_GPA + 64 * n;
    rig.ram.write(meta, &header(kind, n));
    rig.ram.write(meta + 16, &[0xee]);
    let mut pieces = vec![Piece { addr: meta, len: 16, write: false }];
    if kind != VIRTIO_BLK_T_FLUSH {
        pieces.push(Piece { addr: 0x100_0000 + 512 * n, len: 512, write: kind == VIRTIO_BLK_T_IN });
    }
    pieces.push(Piece { addr: meta + 16, len: 1, write: true });
    rig.driver.add(&pieces).expect("room")
}

/// What the device was given: the sectors, in order.
fn given(device: &RamDevice) -> Vec<u64> {
    device.log().iter().map(|&(_, _, lba, _)| lba).collect()
}

/// Without a record the ring alone tells the next back-end what was begun: nothing else has left it when the stop is answered.
#[test]
fn what_the_queue_does_not_take_goes_back_to_the_ring_before_a_stop() {
    for (room, kind) in [(0, VIRTIO_BLK_T_IN), (1, VIRTIO_BLK_T_OUT), (7, VIRTIO_BLK_T_IN), (19, VIRTIO_BLK_T_OUT)] {
        let (mut rig, device) = guest_of(room);
        let heads: Vec<u16> = (0..20).map(|n| add(&mut rig, n, kind)).collect();
        rig.driver.publish();
        rig.turns(3);
        assert_eq!(given(&device), (0..room as u64).collect::<Vec<_>>());
        let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
        rig.turns(3);
        assert_eq!(answer.try_recv().is_ok(), room == 0, "what was begun is waited for");
        device.change(|s| s.hold = false);
        if room > 0 {
            rig.turns(3);
            assert_eq!(answer.try_recv(), Ok(Ok(room as u32)), "where the next one begins");
        }
        let done: Vec<u16> = std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head).collect();
        assert_eq!(done, heads[..room]);
        let counted = rig.counters.read();
        assert_eq!((counted.completions, counted.errors), (room as u64, 0));
    }
}

/// A flush among them is begun in its turn. Those that the queue refuses stay in their order, whatever came behind them.
#[test]
fn requests_of_other_kinds_in_a_batch_change_nothing() {
    for room in [1, 2, 3, 5, 8, 64] {
        let (mut rig, device) = guest_of(room);
        let kinds = [
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_FLUSH,
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_FLUSH,
        ];
        let mut heads: Vec<u16> = (0..60).map(|n| add(&mut rig, n, kinds[n as usize % 6])).collect();
        rig.driver.publish();
        let mut done = Vec::new();
        for turn in 0..200 {
            device.change(|s| (s.hold, s.room) = (turn % 3 != 0, room));
            rig.turn();
            done.extend(std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head));
        }
        done.sort_unstable();
        heads.sort_unstable();
        assert_eq!(done, heads, "each once, with room for {room}");
        assert!((0..60).all(|n| rig.ram.read(DATA_GPA + 64 * n + 16, 1) == [0]));
        let sectors: Vec<u64> = device.log().iter().filter(|e| e.0 != Op::Flush).map(|&(_, _, lba, _)| lba).collect();
        assert_eq!(sectors, (0..60).filter(|n| n % 6 != 2 && n % 6 != 5).collect::<Vec<_>>());
        assert_eq!(device.log().len(), 60);
        let counted = rig.counters.read();
        assert_eq!((counted.requests, counted.completions, counted.errors), (60, 60, 0));
    }
}

/// With discards, which are begun one part at a time, between those that the queue takes together.
#[test]
fn what_came_before_a_request_of_parts_is_not_done_after_a_stop_and_again() {
    use virtio_bindings::virtio_blk::VIRTIO_BLK_T_DISCARD;
    for room in 0..5 {
        let (mut rig, device) = guest_of(room);
        let range = |sector: u64| [&sector.to_le_bytes()[..], &1u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
        for n in 0..6 {
            if n % 3 != 2 {
                add(&mut rig, n, VIRTIO_BLK_T_OUT);
                continue;
            }
            let meta = DATA_GPA + 64 * n;
            rig.ram.write(meta, &header(VIRTIO_BLK_T_DISCARD, 0));
            rig.ram.write(meta + 32, &range(n));
            rig.driver
                .add(&[
                    Piece { addr: meta, len: 16, write: false },
                    Piece { addr: meta + 32, len: 16, write: false },
                    Piece { addr: meta + 16, len: 1, write: true },
                ])
                .expect("room");
        }
        rig.driver.publish();
        rig.turns(3);
        let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
        rig.turns(3);
        device.change(|s| (s.hold, s.room) = (false, 64));
        rig.turns(5);
        let stopped = answer.try_recv().expect("answered").expect("without an error");
        // What the answer says was begun is done, each once; the rest was never begun.
        let mut sectors = given(&device);
        sectors.sort_unstable();
        assert_eq!(sectors, (0..u64::from(stopped)).collect::<Vec<_>>(), "room {room}");
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), stopped as usize);
    }
}

/// What is behind a request that was begun on its own goes back to the ring as well, but for the first: nobody waits for room before a stop.
#[test]
fn what_came_after_a_request_of_parts_goes_back_to_the_ring_before_a_stop() {
    use virtio_bindings::virtio_blk::VIRTIO_BLK_T_DISCARD;
    for room in 3..7 {
        let (mut rig, device) = guest_of(room);
        (0..2).for_each(|n| _ = add(&mut rig, n, VIRTIO_BLK_T_OUT));
        let meta = DATA_GPA + 64 * 2;
        let range = [&2u64.to_le_bytes()[..], &1u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
        rig.ram.write(meta, &header(VIRTIO_BLK_T_DISCARD, 0));
        rig.ram.write(meta + 32, &range);
        rig.driver
            .add(&[
                Piece { addr: meta, len: 16, write: false },
                Piece { addr: meta + 32, len: 16, write: false },
                Piece { addr: meta + 16, len: 1, write: true },
            ])
            .expect("room");
        (3..8).for_each(|n| _ = add(&mut rig, n, VIRTIO_BLK_T_OUT));
        rig.driver.publish();
        rig.turns(3);
        let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
        // What the device has completes; it takes nothing more.
        device.change(|s| (s.hold, s.room) = (false, 0));
        rig.turns(5);
        assert_eq!(answer.try_recv(), Ok(Ok(room as u32)), "with room for {room}");
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), room);
    }
}

/// A chain of the guest's that breaks its ring: there is nowhere to say so.
fn add_broken(rig: &mut Rig) {
    rig.driver.add(&[Piece { addr: DATA_GPA, len: 16, write: false }]).expect("room");
}

/// A running ring over a device that takes `room` requests and keeps them, with `good` writes and a chain behind them that breaks it.
fn broken_behind(packed: bool, room: usize, good: u64) -> (Rig, Arc<RamDevice>, Vec<u16>) {
    let device = RamDevice::new(512, 2048, Limits { write_cache: true, ..Limits::UNLIMITED });
    device.change(|s| (s.record, s.hold, s.room) = (true, true, room));
    let mut rig = Rig::of(packed, device.clone(), 64, false);
    let heads = (0..good).map(|n| add(&mut rig, n, VIRTIO_BLK_T_OUT)).collect();
    add_broken(&mut rig);
    rig.driver.publish();
    rig.turns(3);
    (rig, device, heads)
}

/// Nothing is taken from a ring that is broken: what goes back to it is never carried out, and its guest waits for ever.
#[test]
fn what_came_before_a_chain_that_breaks_the_ring_is_carried_out_once_there_is_room() {
    for (packed, room) in [false, true].into_iter().flat_map(|packed| (0..4).map(move |room| (packed, room))) {
        let (mut rig, device, heads) = broken_behind(packed, room, 3);
        device.change(|s| (s.hold, s.room) = (false, 64));
        rig.turns(20);
        let done: Vec<u16> = std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head).collect();
        assert_eq!(done, heads, "packed {packed}, room {room}");
    }
}

/// Where the next back-end begins: what was not begun is there, and not before it.
#[test]
fn a_ring_that_was_broken_stops_where_it_was_begun() {
    for room in 0..4 {
        let (mut rig, device, _) = broken_behind(false, room, 3);
        let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
        rig.turns(3);
        device.change(|s| s.hold = false);
        rig.turns(3);
        let base = answer.try_recv().expect("answered").expect("without an error") as usize;
        let begun = given(&device);
        // The chain that broke the ring may or may not be counted as taken.
        let untouched: Vec<u64> = (0..3).filter(|n| !begun.contains(n)).collect();
        assert!(untouched.iter().all(|&n| n >= base as u64), "room {room}: {untouched:?} never begun, base {base}");
    }
}

/// A chain that is in flight comes again behind others, in one look: that breaks the ring, and those before it are carried out.
#[test]
fn what_came_before_a_chain_that_is_in_flight_already_is_carried_out() {
    for room in 0..4 {
        let (mut rig, device) = guest_of(room);
        let heads: Vec<u16> = (0..3).map(|n| add(&mut rig, n, VIRTIO_BLK_T_OUT)).collect();
        rig.driver.offer(heads[0]);
        rig.driver.publish();
        rig.turns(3);
        assert_eq!(rig.counters.read().ring_errors, 1, "room {room}");
        device.change(|s| (s.hold, s.room) = (false, 64));
        rig.turns(5);
        let done: Vec<u16> = std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head).collect();
        assert_eq!((done, given(&device)), (heads, vec![0, 1, 2]), "room {room}");
    }
}
