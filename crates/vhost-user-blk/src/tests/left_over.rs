//! What one back-end leaves and the next one finds: records of other rings, requests in their order, rings of which nobody kept a record.

use super::guest::{Piece, header};
use super::ram::{RamDevice, Rng};
use super::*;
use crate::past::Hold;
use crate::ring::{RingError, killed, record_len};
use polypath_block::{Limits, Op};
use polypath_memory::Region;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

const SIZE: u16 = 16;

/// A ring with a record that has room for more than it, over a disk that completes at once.
fn rig(packed: bool) -> (Rig, Region) {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, fua: false, ..Limits::UNLIMITED });
    let mut rig = Rig::stopped(device, SIZE, false, false);
    if packed {
        rig.driver = Driver::packed(&rig.ram, RING_GPA, SIZE, false);
    }
    let len = record_len(2 * SIZE, packed);
    let region = Region::allocate(len, false).unwrap();
    rig.record = region.window(0, len);
    rig.start(rig.driver.base());
    (rig, region)
}

impl Rig {
    /// The guest makes its ring anew, with `size` descriptors.
    fn make_anew(&mut self, size: u16) {
        let (packed, event_idx) = (self.driver.is_packed(), self.driver.event_idx);
        self.ram.write(RING_GPA, &vec![0; Driver::bytes(2 * SIZE) as usize]);
        self.driver = match packed {
            true => Driver::packed(&self.ram, RING_GPA, size, event_idx),
            false => Driver::new(&self.ram, RING_GPA, size, event_idx),
        };
    }

    fn blocks(&self) -> Vec<u64> {
        self.device.log().iter().map(|(_, _, lba, _)| *lba).collect()
    }

    fn ops(&self) -> Vec<Op> {
        self.device.log().iter().map(|(op, ..)| *op).collect()
    }

    /// One request alone; `None` if nobody gives it back.
    fn one(&mut self, place: u64) -> Option<u8> {
        self.offer(place, true, 1);
        self.driver.publish();
        self.turns(3);
        self.driver.pop()?;
        Some(self.ram.read(DATA_GPA + place * 0x1000 + 0x800, 1)[0])
    }
}

/// Requests are carried out again in the order in which they were taken, which is not that of their names; and those that come later come
/// later, over any number of back-ends.
#[test]
fn what_is_carried_out_again_keeps_its_order() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed);
        rig.offer(0, true, 1);
        rig.driver.publish();
        rig.turn();
        rig.device.change(|s| (s.hold, s.record) = (true, true));
        // Nor is it that of their addresses.
        for place in [2, 1] {
            rig.offer(place, true, 1);
            rig.driver.publish();
            rig.turn();
        }
        // The first one's name is free again, and is the smallest.
        assert_eq!(rig.driver.pop().map(|(head, _)| head), Some(0));
        assert_eq!(rig.offer(3, true, 1), 0);
        rig.driver.publish();
        rig.turn();
        rig.revive();
        rig.turn();
        assert_eq!(rig.blocks(), [2, 1, 3, 2, 1, 3], "packed {packed}");
        rig.offer(0, true, 1);
        rig.driver.publish();
        rig.turn();
        rig.device.change(|s| s.log.clear());
        rig.revive();
        rig.turn();
        assert_eq!(rig.blocks(), [2, 1, 3, 0], "packed {packed}: what was taken last is last");
    }
}

/// A queue takes a part of what is carried out again together with what is new: nothing goes back to the ring that was not taken from there.
#[test]
fn what_is_carried_out_again_and_refused_is_offered_again_and_once() {
    for (packed, room) in [false, true].into_iter().flat_map(|packed| (0..5).map(move |room| (packed, room))) {
        let (mut rig, _region) = rig(packed);
        rig.device.change(|s| (s.hold, s.record) = (true, true));
        (1..4).for_each(|place| _ = rig.offer(place, true, 1));
        rig.driver.publish();
        rig.turn();
        (4..6).for_each(|place| _ = rig.offer(place, true, 1));
        rig.driver.publish();
        rig.device.change(|s| (s.hold, s.room) = (false, room));
        rig.device.change(|s| s.log.clear());
        rig.revive();
        rig.turns(3);
        rig.device.change(|s| s.room = usize::MAX);
        rig.turns(5);
        assert_eq!(rig.blocks(), [1, 2, 3, 4, 5], "packed {packed}, room {room}");
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 5);
        rig.offer(6, true, 1);
        rig.driver.publish();
        rig.turns(3);
        assert_eq!((rig.blocks().len(), rig.driver.pop().is_some()), (6, true), "the ring goes on where it was");
    }
}

/// What came last was carried out again; what comes next is the guest's, and goes back to the ring when the queue has no room for it.
#[test]
fn what_comes_after_what_was_carried_out_again_can_go_back_to_the_ring() {
    for (packed, room) in [false, true].into_iter().flat_map(|packed| (0..4).map(move |room| (packed, room))) {
        let (mut rig, _region) = rig(packed);
        rig.device.change(|s| (s.hold, s.record) = (true, true));
        rig.offer(1, true, 1);
        rig.driver.publish();
        rig.turn();
        rig.device.change(|s| s.hold = false);
        rig.revive();
        rig.turns(3);
        assert_eq!((rig.blocks(), rig.driver.pop().is_some()), (vec![1, 1], true), "packed {packed}");
        rig.device.change(|s| s.room = room);
        (2..5).for_each(|place| _ = rig.offer(place, true, 1));
        rig.driver.publish();
        rig.turns(3);
        let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
        rig.turns(3);
        let base = answer.try_recv().expect("nobody waits for room before a stop").unwrap();
        rig.device.change(|s| s.room = usize::MAX);
        rig.start(base);
        rig.turns(3);
        assert_eq!(rig.blocks(), [1, 1, 2, 3, 4], "packed {packed}, room {room}");
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 3);
    }
}

/// What a queue refuses in a batch that ends with a chain which breaks the ring is left for the next back-end: in its record, or in the ring.
#[test]
fn what_a_broken_ring_leaves_is_found_by_the_next_back_end() {
    for (packed, room) in [false, true].into_iter().flat_map(|packed| (0..4).map(move |room| (packed, room))) {
        let (mut rig, _region) = rig(packed);
        rig.device.change(|s| (s.hold, s.record, s.room) = (true, true, room));
        (1..4).for_each(|place| _ = rig.offer(place, true, 1));
        rig.driver.add(&[Piece { addr: DATA_GPA, len: 16, write: false }]).expect("room");
        rig.driver.publish();
        rig.turns(3);
        rig.device.change(|s| (s.hold, s.room) = (false, usize::MAX));
        rig.device.change(|s| s.log.clear());
        rig.revive();
        rig.turns(5);
        assert_eq!(rig.blocks(), [1, 2, 3], "packed {packed}, room {room}");
    }
}

/// A record says that requests are in flight, and the ring that more was given back than it holds: it is of another ring.
#[test]
fn a_record_of_requests_that_the_ring_cannot_have_is_refused() {
    for beyond in [SIZE, SIZE + 1, 1000] {
        let (mut rig, _region) = rig(false);
        rig.device.change(|s| s.hold = true);
        rig.offer(0, true, 1);
        rig.driver.publish();
        rig.turn();
        rig.driver.used.store_u16(2, beyond, Ordering::Relaxed).unwrap();
        let error = Vring::new(rig.spec(0), rig.memory.clone()).err();
        let refused = matches!(error, Some(RingError::Record { .. }));
        assert_eq!(refused, beyond > SIZE, "{beyond}: {error:?}");
    }
}

/// The guest (its firmware, then its system) makes its ring anew, and its front-end keeps the record: it is that of a ring that is no more. One
/// with requests in flight is of no use.
#[test]
fn a_ring_made_anew_begins_whatever_the_record_says() {
    for packed in [false, true] {
        for size in [SIZE / 2, SIZE, 2 * SIZE] {
            for in_flight in [false, true] {
                let (mut rig, _region) = rig(packed);
                for _ in 0..3 {
                    assert_eq!(rig.one(0), Some(0));
                }
                if in_flight {
                    rig.device.change(|s| s.hold = true);
                    rig.offer(0, true, 1);
                    rig.driver.publish();
                }
                rig.turn();
                rig.make_anew(size);
                // What it offers before anybody looks does not make it an old one.
                rig.offer(1, true, 1);
                rig.driver.publish();
                let base = if packed { 0x8000_8000 } else { 0 };
                let error = Vring::new(rig.spec(base), rig.memory.clone()).err();
                let refused = matches!(error, Some(RingError::Record { .. }));
                assert_eq!(refused, in_flight, "packed {packed}, {size}: {error:?}");
                if !refused {
                    rig.revive();
                    rig.turns(2);
                    assert!(rig.driver.pop().is_some(), "packed {packed}, {size}: it runs");
                    assert_eq!(rig.one(2), Some(0));
                }
            }
        }
    }
}

/// The front-end is told where a ring stands and loses the word, or never heard it: the record knows, also over a stop in order.
#[test]
fn a_stop_in_order_keeps_the_position() {
    for (packed, flush) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut rig, _region) = rig(packed);
        for round in 0..30 {
            assert_eq!(rig.one(0), Some(0), "packed {packed}, flush {flush}, round {round}");
            rig.command(Command::Stop { flush }).unwrap();
            rig.revive();
        }
        assert_eq!(rig.counters.read().ring_errors, 0);
    }
}

/// After a kill, and without a record: only a ring that no device has used had nothing in flight. A packed one is told by what lies in it, at
/// any place of any lap, and while the guest is writing to it.
#[test]
fn only_a_new_ring_had_nothing_in_flight_for_sure() {
    for packed in [false, true] {
        for seed in 0..30 {
            let mut rng = Rng(seed);
            let mut rig = Rig::of(packed, RamDevice::new(512, 64, Limits::UNLIMITED), SIZE, seed % 2 == 0);
            let base = if packed { 0x8000_8000 } else { 0 };
            let orphaned = |rig: &Rig| rig.ring(base).may_be_orphaned();
            assert!(!orphaned(&rig), "it is new");
            let mut given_back = 0;
            for _ in 0..100 {
                let at = DATA_GPA + rng.below(8) * 32;
                rig.ram.write(at, &header(4, 0));
                let mut pieces = vec![Piece { addr: at, len: 16, write: false }];
                pieces.extend((0..rng.below(3)).map(|_| Piece { addr: at, len: 0, write: false }));
                pieces.push(Piece { addr: at + 16, len: 1, write: true });
                let was_given_back = given_back > 0;
                if rig.driver.free_descriptors() > pieces.len() {
                    rig.driver.add(&pieces).unwrap();
                    // Split: what the guest offers is seen once it is published.
                    if packed {
                        assert_eq!(orphaned(&rig), was_given_back, "seed {seed}: it is being written");
                    }
                    rig.driver.publish();
                    assert_eq!(orphaned(&rig), was_given_back, "seed {seed}: it is offered");
                }
                if rng.one_in(2) {
                    rig.turn();
                    given_back += std::iter::from_fn(|| rig.driver.pop()).count();
                }
            }
            assert!(given_back > 40);
        }
    }
}

/// A guest that is called goes on; one that ends in order calls it, too, for the last time.
#[test]
fn who_leaves_still_calls_the_guest() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed);
        rig.device.change(|s| s.hold = true);
        rig.offer(0, true, 1);
        rig.driver.publish();
        assert!(!rig.driver.want_call());
        rig.turns(2);
        Rig::rang(&rig.call);
        let answer = rig.mailbox.send(Command::Leave).unwrap();
        rig.turn();
        rig.device.change(|s| s.hold = false);
        rig.turns(2);
        assert!(answer.try_recv().is_ok() && Rig::rang(&rig.call));
        assert!(rig.driver.pop().is_some());
    }
}

/// A guest that counts on write-through hears of a write when it is durable. Whoever leaves between the write and its flush gives neither
/// back.
#[test]
fn who_leaves_gives_no_write_back_that_is_owed_a_flush() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed);
        rig.write_through.store(true, Ordering::Relaxed);
        rig.device.change(|s| (s.hold, s.record) = (true, true));
        rig.offer(0, true, 1);
        rig.driver.publish();
        rig.turn();
        let answer = rig.mailbox.send(Command::Leave).unwrap();
        rig.turn();
        rig.device.change(|s| s.hold = false);
        rig.turns(3);
        assert!(answer.try_recv().is_ok());
        assert_eq!((rig.ops(), rig.driver.pop()), (vec![Op::Write], None), "packed {packed}");
        rig.revive();
        rig.turns(3);
        assert_eq!(rig.ops(), [Op::Write, Op::Write, Op::Flush]);
        assert!(rig.driver.pop().is_some());
    }
}

/// A successor does not want to be notified of what it looks at anyway, whatever its predecessor wanted when it was killed.
#[test]
fn a_new_back_end_is_quiet() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed);
        rig.turn();
        assert_eq!(rig.arm(&mut Waits::default()), Armed::Sleep);
        rig.revive();
        rig.offer(0, true, 1);
        assert!(!rig.driver.publish(), "packed {packed}: a kick that nobody needs");
    }
}

/// Everything that changes the medium waits after a kill, and nothing else does.
#[test]
fn discards_wait_and_flushes_do_not() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed);
        rig.device.change(|s| s.record = true);
        rig.config.changes_from = Hold::for_time(Duration::from_secs(10));
        rig.revive();
        let mut request = |place: u64, kind: u32, data: &[u8]| {
            let at = DATA_GPA + place * 0x1000;
            rig.ram.write(at, &header(kind, 0));
            rig.ram.write(at + 0x100, data);
            let mut pieces = vec![Piece { addr: at, len: 16, write: false }];
            if !data.is_empty() {
                pieces.push(Piece { addr: at + 0x100, len: data.len() as u32, write: false });
            }
            pieces.push(Piece { addr: at + 0x800, len: 1, write: true });
            rig.driver.add(&pieces).unwrap();
            rig.driver.publish();
        };
        let range = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        request(0, 11, &range);
        request(1, 13, &range);
        request(2, 1, &[7; 512]);
        request(3, 4, &[]);
        rig.turns(3);
        assert_eq!(rig.ops(), [Op::Flush], "packed {packed}");
        rig.now = rig.now.after(Duration::from_secs(11));
        rig.turns(3);
        assert_eq!(rig.ops(), [Op::Flush, Op::Discard, Op::WriteZeroes, Op::Write]);
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 4);
    }
}

/// Without a record nothing overtakes a change that waits: only what was taken last can go back to the ring.
#[test]
fn without_a_record_requests_wait_behind_a_change_and_go_back_in_order() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed);
        rig.record = None;
        rig.make_anew(SIZE);
        rig.device.change(|s| s.record = true);
        rig.config.changes_from = Hold::for_time(Duration::from_secs(10));
        rig.revive();
        let base = rig.driver.base();
        rig.offer(0, true, 1);
        rig.offer(1, false, 1);
        rig.driver.publish();
        rig.turns(3);
        assert!(rig.ops().is_empty(), "packed {packed}");
        let mut waits = Waits::default();
        assert_eq!(rig.arm(&mut waits), Armed::Sleep, "that is no reason to spin");
        assert!(waits.deadline.is_some());
        assert_eq!(rig.command(Command::Leave), Ok(base), "none of it was begun");
        rig.revive();
        rig.turns(3);
        rig.now = rig.now.after(Duration::from_secs(11));
        rig.turns(3);
        assert_eq!(rig.ops(), [Op::Write, Op::Read]);
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 2);
    }
}

/// As changes that wait for a predecessor's, those that wait for a way.
#[test]
fn what_waits_for_a_way_never_carries_lost_memory_to_the_disk() {
    const AT: u64 = 0x200_0000;
    const LEN: u64 = 0x4000;
    let (mut rig, _region) = rig(false);
    let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, LEN).unwrap();
    let region = Arc::new(Region::from_fd(file.try_clone().unwrap(), 0, LEN).unwrap());
    let window = region.window(0, LEN).unwrap();
    let memory = rig.memory.with(AT, 0x7f00_0000_0000 + AT, region).unwrap();
    rig.command(Command::SetMemory(Arc::new(memory))).unwrap();
    rig.device.change(|s| (s.down, s.record) = (true, true));
    rig.ram.write(DATA_GPA, &header(1, 0));
    let pieces = [
        Piece { addr: DATA_GPA, len: 16, write: false },
        Piece { addr: AT, len: 512, write: false },
        Piece { addr: DATA_GPA + 0x800, len: 1, write: true },
    ];
    rig.driver.add(&pieces).unwrap();
    rig.driver.publish();
    rig.turns(2);
    rustix::fs::ftruncate(&file, 0).unwrap();
    window.copy_out(0, &mut [0]).unwrap();
    assert!(window.is_lost());
    rig.device.change(|s| s.down = false);
    rig.turns(3);
    assert_eq!((rig.ops(), rig.counters.read().ring_errors), (vec![], 1));
    assert!(rig.driver.pop().is_some(), "the guest hears of it");
    assert_eq!(rig.ram.read(DATA_GPA + 0x800, 1), [1]);
}

/// A back-end that is killed while it makes a record, or brings one up to date, leaves one that serves.
#[test]
fn a_record_half_made_serves() {
    for packed in [false, true] {
        for stores in 0.. {
            let (mut rig, _region) = rig(packed);
            for _ in 0..3 {
                rig.one(0).unwrap();
            }
            rig.make_anew(2 * SIZE);
            killed::after(Some(stores));
            let died = catch_unwind(AssertUnwindSafe(|| rig.revive())).is_err();
            killed::after(None);
            if died {
                rig.revive();
            }
            assert_eq!(rig.one(1), Some(0), "packed {packed}, killed before store {stores}");
            if !died {
                break;
            }
        }
    }
}
