//! Slices: parts of a disk that never reach each other, whatever their device does.

use crate::common::scripted::{Bench, Opener, Scripted, info};
use polypath_block::{
    Code, Cx, Device, DeviceInfo, DeviceState, Done, Geometry, Health, Io, IoQueue, Op, QueueConfig, RefusedWhy,
    SegSpan, SegTable, Time, Verdict, contract,
};
use polypath_multipath::{Group, GroupConfig, PathConfig, Slice, SliceError, SliceRange, Slices};
use polypath_sim::{PathOptions, Rig, World};
use std::sync::Arc;

fn range(offset: u64, length: u64) -> SliceRange {
    SliceRange { offset_bytes: offset, length_bytes: length }
}

/// A slice of a scripted device of 1000 blocks of 512 bytes, and a queue of it.
struct Part {
    device: Arc<Scripted>,
    slice: Arc<Slice>,
    queue: Box<dyn IoQueue>,
    segs: SegTable,
}

impl Part {
    fn new(offset: u64, length: u64) -> Part {
        let device = Scripted::new("disk", info("a"));
        let slice = Slices::new().carve("part", Arc::new(Opener(device.clone())), range(offset, length)).unwrap();
        let queue = slice.open_queue(QueueConfig { depth: 4 }).unwrap();
        Part { device, slice, queue, segs: SegTable::new(8) }
    }

    fn submit(&mut self, io: Io) -> Result<(), RefusedWhy> {
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 };
        self.queue.submit(&mut cx, io).map_err(|refused| {
            assert_eq!(refused.io, io, "given back as it was");
            refused.why
        })
    }

    fn submit_all(&mut self, ios: &[Io]) -> Result<(), (usize, RefusedWhy)> {
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 };
        self.queue.submit_all(&mut cx, ios).map_err(|rest| (rest.taken, rest.why))
    }

    fn done(&mut self) -> Vec<(u64, Code)> {
        let mut done = Done::default();
        self.queue.poll(&mut Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 }, &mut done);
        done.completions.iter().map(|c| (c.tag, c.status.code)).collect()
    }

    /// Addresses that have reached the device.
    fn sent(&self) -> Vec<u64> {
        self.device.in_flight().iter().map(|io| io.lba).collect()
    }

    fn resize(&self, blocks: u64) {
        let was = info("a");
        self.device.set_live(DeviceInfo { geometry: Geometry { blocks, ..was.geometry }, ..was });
    }
}

fn write(tag: u64, lba: u64, blocks: u32) -> Io {
    Io::write(tag, lba, blocks, SegSpan::EMPTY)
}

#[test]
fn a_slice_keeps_the_contract() {
    for (offset, length) in [(0, 1 << 20), (4096, 64 << 10), (512 << 10, 512 << 10)] {
        let world = World::new(5, 2048);
        let group = Group::new(GroupConfig::new("disk"));
        group.add_path(PathConfig::new(world.path(PathOptions::new("p", 2048)))).unwrap();
        let slice = Slices::new().carve("part", group, range(offset, length)).unwrap();
        contract::check(&mut Rig { device: slice, world });
    }
}

#[test]
fn requests_are_moved_and_none_leaves_the_slice() {
    let mut p = Part::new(100 * 512, 10 * 512);
    for (tag, op, lba, blocks, at) in [
        (1, Op::Write, 0, 1, Some(100)),
        (2, Op::Read, 9, 1, Some(109)),
        (3, Op::WriteZeroes, 0, 10, Some(100)),
        (4, Op::Discard, 5, 5, Some(105)),
        (5, Op::Compare, 3, 2, Some(103)),
        (6, Op::Write, 10, 1, None),
        (7, Op::Read, 9, 2, None),
        (8, Op::Discard, 0, 11, None),
        (9, Op::WriteZeroes, u64::MAX, 1, None),
        (10, Op::Write, u64::MAX - 100, 200, None),
        (11, Op::Read, u64::MAX - 99, 1, None),
    ] {
        let before = p.sent().len();
        p.submit(Io { tag, op, ..write(0, lba, blocks) }).unwrap();
        match at {
            Some(at) => {
                let sent = *p.device.in_flight().last().unwrap();
                assert_eq!((sent.lba, sent.blocks, sent.op, sent.tag), (at, blocks, op, tag));
            }
            None => {
                assert_eq!(p.sent().len(), before, "{op:?} at {lba} reached the disk");
                assert_eq!(p.done(), [(tag, Code::OutOfRange)]);
            }
        }
    }
    p.submit(Io::flush(12)).unwrap();
    assert_eq!(p.device.in_flight().last().unwrap().op, Op::Flush);
}

#[test]
fn a_batch_is_taken_in_order_up_to_what_there_is_room_for() {
    let mut p = Part::new(512, 100 * 512);
    let ios: Vec<Io> = (0..100).map(|n| write(n, if n % 30 == 7 { 100 } else { n }, 1)).collect();
    p.device.set_room(50);
    assert_eq!(p.submit_all(&ios), Err((52, RefusedWhy::Full)), "50 and two that were wrong");
    assert_eq!(p.sent().len(), 50);
    assert_eq!(p.done(), [(7, Code::OutOfRange), (37, Code::OutOfRange)]);
    assert!(p.sent().iter().enumerate().all(|(n, &lba)| lba > n as u64 && lba < 101));
    // Completions of wrong ones have room, too.
    let wrong: Vec<Io> = (0..9).map(|n| write(n, 100, 1)).collect();
    assert_eq!(p.submit_all(&wrong), Err((4, RefusedWhy::Full)));
    assert_eq!(p.submit(wrong[4]), Err(RefusedWhy::Full));
    assert_eq!(p.done().len(), 4);
    assert_eq!(p.submit(wrong[4]), Ok(()));
}

#[test]
fn it_follows_its_device() {
    let mut p = Part::new(100 * 512, 100 * 512);
    let blocks = |p: &Part| p.slice.state().info().map(|info| info.geometry.blocks);
    assert_eq!(blocks(&p), Some(100));
    p.resize(2000);
    assert_eq!(blocks(&p), Some(100), "its length is its own");
    p.resize(199);
    let state = p.slice.state();
    assert!(matches!(&state, DeviceState::Down { cause: Code::OutOfRange, reason } if reason.contains("beyond")));
    p.submit(write(1, 0, 1)).unwrap();
    assert_eq!((p.done(), p.sent()), (vec![(1, Code::OutOfRange)], vec![]), "never wrapped, never cut");
    p.resize(200);
    p.submit(write(2, 99, 1)).unwrap();
    assert_eq!((blocks(&p), p.sent()), (Some(100), vec![199]));
    // Blocks of another size, on which it does not lie.
    let was = info("a");
    p.device.set_live(DeviceInfo { geometry: Geometry { block_size: 4096, blocks: 1000 }, ..was });
    assert!(matches!(p.slice.state(), DeviceState::Down { cause: Code::Invalid, .. }));
    p.submit(write(3, 0, 1)).unwrap();
    assert_eq!((p.done(), p.sent().len()), (vec![(3, Code::Invalid)], 1));
    // While the device is down it says what that says, and the queue hands on what it was known to be.
    p.device.set_down(Code::PathLost, "pulled out");
    assert!(matches!(p.slice.state(), DeviceState::Down { cause: Code::PathLost, .. }));
    p.device.set_gone();
    assert!(matches!(p.slice.state(), DeviceState::Gone { .. }));
}

#[test]
fn it_waits_for_a_device_that_has_not_answered() {
    let device = Scripted::new("disk", info("a"));
    device.set_state(DeviceState::Starting);
    let slices = Slices::new();
    let opener: Arc<dyn Device> = Arc::new(Opener(device.clone()));
    let slice = slices.carve("part", opener.clone(), range(512, 512)).unwrap();
    let beyond = slices.carve("beyond", opener, range(1 << 20, 512)).unwrap();
    let queue = slice.open_queue(QueueConfig { depth: 4 }).unwrap();
    let mut p = Part { device, slice, queue, segs: SegTable::new(8) };
    assert_eq!((p.slice.state(), p.queue.health()), (DeviceState::Starting, Health::Down));
    assert_eq!(p.submit(write(1, 9, 1)), Err(RefusedWhy::Gone), "it cannot be said that this is wrong");
    p.device.set_live(info("a"));
    assert_eq!(p.done(), []);
    assert_eq!(p.queue.health(), Health::Ready);
    p.submit(write(1, 0, 1)).unwrap();
    assert_eq!(p.sent(), [1]);
    assert!(matches!(beyond.state(), DeviceState::Down { cause: Code::OutOfRange, .. }));
}

#[test]
fn what_cannot_be_a_slice_is_refused() {
    let device: Arc<dyn Device> = Arc::new(Opener(Scripted::new("disk", info("a"))));
    let other: Arc<dyn Device> = Arc::new(Opener(Scripted::new("other", info("b"))));
    let slices = Slices::new();
    let size = 1000 * 512;
    let carve = |device: &Arc<dyn Device>, offset, length| slices.carve("new", device.clone(), range(offset, length));
    let first = slices.carve("first", device.clone(), range(512, 1024)).unwrap();
    for (offset, length, word) in [
        (0, 0, "length is 0"),
        (1, 512, "blocks"),
        (0, 513, "blocks"),
        (512, size, "beyond"),
        (size, 512, "beyond"),
        (u64::MAX - 511, 512, "beyond"),
        (512, u64::MAX - 511, "beyond"),
        (0, 1024, "overlaps first"),
        (1024, 512, "overlaps first"),
        (512, 1024, "overlaps first"),
        (0, size, "overlaps first"),
    ] {
        let error = carve(&device, offset, length).unwrap_err().to_string();
        assert!(error.contains(word), "{offset}+{length}: {error}");
    }
    // Beside it, and on another disk.
    let kept = [carve(&device, 0, 512), carve(&device, 1536, size - 1536), carve(&other, 512, 1024)];
    assert!(kept.iter().all(Result::is_ok));
    assert_eq!(slices.of(&device).len(), 3);
    // What it has in flight holds its place.
    let queue = first.open_queue(QueueConfig { depth: 1 }).unwrap();
    first.close();
    assert!(first.open_queue(QueueConfig { depth: 1 }).is_err(), "closed");
    assert!(first.state().info().is_some(), "not before its queues are gone");
    drop(first);
    assert!(matches!(carve(&device, 512, 512), Err(SliceError::Overlaps { .. })));
    drop(queue);
    assert!(carve(&device, 512, 512).is_ok());
}

#[test]
fn a_slice_is_neither_the_whole_disk_nor_another_slice() {
    let device: Arc<dyn Device> = Arc::new(Opener(Scripted::new("disk", info("a"))));
    let slices = Slices::new();
    let carve = |offset, length| slices.carve("part", device.clone(), range(offset, length)).unwrap();
    let identity = |device: &dyn Device| device.state().info().unwrap().identity.clone();
    let (a, b) = (carve(0, 512), carve(512, 512));
    let (whole, one, two) = (identity(&*device), identity(&*a), identity(&*b));
    assert_eq!((whole.compare(&one), one.compare(&whole), one.compare(&two)), [Verdict::Different; 3].into());
    assert_eq!(one.compare(&one), Verdict::Unknown);
    assert_eq!(one.cache_domain, whole.cache_domain, "one cache for all");
    // Not even where it is stated.
    let matching = polypath_multipath::MatchPolicy::Stated;
    let group = Group::new(GroupConfig { matching, ..GroupConfig::new("mixed") });
    group.add_path(PathConfig { name: "a".into(), ..PathConfig::new(a) }).unwrap();
    group.add_path(PathConfig { name: "b".into(), ..PathConfig::new(b) }).unwrap();
    let states: Vec<_> = group.statistics().into_iter().map(|p| p.state).collect();
    assert_eq!(states[1], polypath_multipath::PathState::Quarantined, "{states:?}");
}

#[test]
fn a_flush_and_losses_are_those_of_the_group() {
    let mut b = Bench::with_caches(&["a"]);
    let slice = Slices::new().carve("part", b.group.clone(), range(512, 1024)).unwrap();
    let mut queue = slice.open_queue(QueueConfig { depth: 4 }).unwrap();
    (0..2).for_each(|_| drop(b.turn_of(&mut *queue)));
    b.submit_to(&mut *queue, Io::flush(0));
    b.turn_of(&mut *queue);
    assert_eq!((slice.losses(), slice.landing_bound()), (b.group.losses(), b.group.landing_bound()));
    drop(queue);
    b.finish();
}
