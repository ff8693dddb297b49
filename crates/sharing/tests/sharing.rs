//! Queues that share keep the promises of a queue, within a reactor and across.

use crate::common::{Reactors, Stingy, Worker, now, progress, stop, wait};
use polypath_block::{
    Armed, Code, CommandSet, CrossFence, Cx, Device, DeviceState, Done, Health, Io, IoQueue, OpenError, Passthrough,
    PassthroughReply, PassthroughRequest, Proof, ProofReply, QueueConfig, RefusedWhy, ReservationOp, ReservationReply,
    Reservations, SegTable, Time, Waits, contract,
};
use polypath_local::testing::RealRig;
use polypath_memory::Arena;
use polypath_sharing::SharedDevice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const DISK: &str = "ram://8MiB?bs=4096";

#[test]
fn a_share_on_the_same_reactor_keeps_the_contract() {
    for uri in [DISK, "ram://8MiB"] {
        let shared = SharedDevice::new(Stingy::new(uri, 1), Vec::new());
        let mut first = shared.open_queue(QueueConfig { depth: 4 }).unwrap();
        // Its first turn takes the only queue there is.
        let (mut segs, mut done) = (SegTable::new(64), Done::default());
        first.poll(&mut Cx { now: now(), segs: &mut segs, reactor: 0 }, &mut done);
        contract::check(&mut RealRig::new(shared.clone(), true));
        contract::check(&mut RealRig::new(shared.clone(), true).misaligned());
        drop(first);
    }
}

/// What only the wrapped device knows is its own answer.
#[test]
fn what_a_device_says_of_itself_is_said_by_its_shares() {
    struct Telling(bool, AtomicU64);
    impl Reservations for Telling {
        fn start(&self, _: ReservationOp, _: Duration, _: ReservationReply) {}
        fn forget(&self) {}
        fn alarms(&self) -> u64 {
            5
        }
    }
    impl Passthrough for Telling {
        fn speaks(&self, set: CommandSet) -> bool {
            set == CommandSet::Scsi
        }
        fn start(&self, _: PassthroughRequest, _: Duration, _: PassthroughReply) {}
    }
    impl CrossFence for Telling {
        fn open_loss(&self) -> Option<u64> {
            Some(6)
        }
        fn proven(&self, _: u64, _: Proof) {}
        fn can_prove(&self) -> bool {
            true
        }
        fn prove(&self, _: Duration, _: ProofReply) {}
    }
    impl Device for Telling {
        fn name(&self) -> &str {
            "telling"
        }
        fn state(&self) -> DeviceState {
            DeviceState::Starting
        }
        fn version(&self) -> u64 {
            7
        }
        fn open_queue(&self, _: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
            unreachable!("nobody opens one")
        }
        fn landing_bound(&self) -> Duration {
            Duration::from_secs(3)
        }
        fn is_preferred(&self) -> bool {
            self.0
        }
        fn ask_for_access(&self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
        fn power_losses(&self) -> u64 {
            4
        }
        fn reservations(&self) -> Option<&dyn Reservations> {
            self.0.then_some(self)
        }
        fn passthrough(&self) -> Option<&dyn Passthrough> {
            self.0.then_some(self)
        }
        fn cross_fence(&self) -> Option<&dyn CrossFence> {
            self.0.then_some(self)
        }
        fn close(&self) {}
    }
    for preferred in [false, true] {
        let device = Arc::new(Telling(preferred, AtomicU64::new(0)));
        let shared = SharedDevice::new(device.clone(), Vec::new());
        assert_eq!((shared.name(), shared.version()), ("telling", 7));
        assert_eq!((shared.is_preferred(), shared.landing_bound()), (preferred, Duration::from_secs(3)));
        shared.ask_for_access();
        assert_eq!(device.1.load(Ordering::SeqCst), 1);
        assert_eq!(shared.power_losses(), 4);
        assert_eq!(shared.reservations().map(Reservations::alarms), preferred.then_some(5));
        assert_eq!(shared.passthrough().map(|p| p.speaks(CommandSet::Scsi)), preferred.then_some(true));
        assert_eq!(shared.cross_fence().map(CrossFence::open_loss), preferred.then_some(Some(6)));
    }
}

#[test]
fn the_devices_own_queue_keeps_the_contract_too() {
    let shared = SharedDevice::new(Stingy::new(DISK, 2), Vec::new());
    contract::check(&mut RealRig::new(shared, true));
}

#[test]
fn a_share_across_reactors_keeps_the_contract() {
    let reactors = Reactors::start(1);
    let arena = Arena::new(1 << 20, false).unwrap();
    for uri in [DISK, "ram://8MiB"] {
        let shared = SharedDevice::new(Stingy::new(uri, 1), reactors.hosts());
        let owner = Worker::spawn(&reactors.handles[0], &shared, &arena, 0, 0, 1);
        wait("an owner", || owner.ready.load(Ordering::SeqCst));
        contract::check(&mut RealRig::new(shared.clone(), true));
        contract::check(&mut RealRig::new(shared.clone(), true).misaligned());
        stop(&reactors, &[owner]);
    }
    reactors.end();
}

#[test]
fn four_queues_over_two_reactors_share_one() {
    for depth in [1, 7, 32] {
        let reactors = Reactors::start(2);
        let arena = Arena::new(4 << 20, false).unwrap();
        let stingy = Stingy::new(DISK, 1);
        let shared = SharedDevice::new(stingy.clone(), reactors.hosts());
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let pieces = [1, 3, 8, 1][n];
                let told = Worker::spawn(&reactors.handles[n % 2], &shared, &arena, n as u64 * 64, depth, pieces);
                wait("a queue", || told.ready.load(Ordering::SeqCst));
                told
            })
            .collect();
        progress("all four", &workers, 300);
        assert_eq!(stingy.orders.taken.lock().unwrap().iter().filter(|t| **t).count(), 1);
        // The one that opened the queue goes; the others keep it.
        stop(&reactors, &workers[..1]);
        progress("the other three", &workers[1..], 300);
        stop(&reactors, &workers[1..]);
        reactors.end();
        wait("a queue given back", || stingy.orders.taken.lock().unwrap().iter().all(|t| !t));
    }
}

#[test]
fn wide_requests_cross() {
    let reactors = Reactors::start(2);
    let arena = Arena::new(4 << 20, false).unwrap();
    let shared = SharedDevice::new(Stingy::new(DISK, 1), reactors.hosts());
    let owner = Worker::spawn(&reactors.handles[0], &shared, &arena, 0, 2, 1);
    wait("an owner", || owner.ready.load(Ordering::SeqCst));
    // More segments than an ordinary row has, and more requests than there are wide rows.
    let wide = Worker::spawn(&reactors.handles[1], &shared, &arena, 64, 9, 500);
    progress("wide requests", std::slice::from_ref(&wide), 200);
    stop(&reactors, &[owner, wide]);
    reactors.end();
}

#[test]
fn a_way_that_goes_down_is_told_and_comes_back() {
    let reactors = Reactors::start(2);
    let arena = Arena::new(4 << 20, false).unwrap();
    let stingy = Stingy::new(DISK, 1);
    let shared = SharedDevice::new(stingy.clone(), reactors.hosts());
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let told = Worker::spawn(&reactors.handles[n % 2], &shared, &arena, n as u64 * 64, 8, 1);
            wait("a queue", || told.ready.load(Ordering::SeqCst));
            told
        })
        .collect();
    for _ in 0..20 {
        progress("all four", &workers, 20);
        stingy.orders.down.store(true, Ordering::SeqCst);
        wait("silence", || {
            let sum = || workers.iter().map(|t| t.verified.load(Ordering::SeqCst)).sum::<usize>();
            let before = sum();
            std::thread::sleep(std::time::Duration::from_millis(2));
            before == sum()
        });
        stingy.orders.down.store(false, Ordering::SeqCst);
    }
    progress("all four", &workers, 20);
    stop(&reactors, &workers);
    reactors.end();
}

#[test]
fn a_surplus_queue_is_left_for_another_ones() {
    let reactors = Reactors::start(4);
    let arena = Arena::new(4 << 20, false).unwrap();
    let stingy = Stingy::new(DISK, 4);
    let shared = SharedDevice::new(stingy.clone(), reactors.hosts());
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let told = Worker::spawn(&reactors.handles[n], &shared, &arena, n as u64 * 64, 8, 1);
            wait("a queue", || told.ready.load(Ordering::SeqCst));
            told
        })
        .collect();
    let taken = || stingy.orders.taken.lock().unwrap().iter().filter(|t| **t).count();
    assert_eq!(taken(), 4);
    progress("all on their own", &workers, 50);
    for granted in [3, 2, 1] {
        stingy.orders.granted.store(granted, Ordering::SeqCst);
        progress("all with fewer queues", &workers, 100);
        wait("queues given back", || taken() == usize::from(granted));
    }
    stop(&reactors, &workers);
    reactors.end();
    assert_eq!(taken(), 0);
}

#[test]
fn suspects_cross_with_their_proofs() {
    let reactors = Reactors::start(2);
    let arena = Arena::new(4 << 20, false).unwrap();
    let stingy = Stingy::new(DISK, 1);
    let shared = SharedDevice::new(stingy.clone(), reactors.hosts());
    let workers: Vec<_> = (0..3)
        .map(|n| {
            let told = Worker::spawn(&reactors.handles[n % 2], &shared, &arena, n as u64 * 64, 8, 1);
            wait("a queue", || told.ready.load(Ordering::SeqCst));
            told
        })
        .collect();
    progress("all", &workers, 20);
    let o = &stingy.orders;
    o.hold.store(true, Ordering::SeqCst);
    wait("held requests", || o.held.load(Ordering::SeqCst) >= 24);
    o.lose.store(true, Ordering::SeqCst);
    let suspects = || workers.iter().map(|t| t.suspects.load(Ordering::SeqCst)).sum::<usize>();
    wait("suspects at home", || suspects() == 24);
    assert!(workers.iter().all(|t| t.suspects.load(Ordering::SeqCst) == 8 && t.retried.load(Ordering::SeqCst) == 0));
    o.hold.store(false, Ordering::SeqCst);
    o.lose.store(false, Ordering::SeqCst);
    o.quiet.store(true, Ordering::SeqCst);
    wait("completions", || workers.iter().all(|t| t.retried.load(Ordering::SeqCst) == 8));
    progress("all again", &workers, 20);
    stop(&reactors, &workers);
    reactors.end();
}

#[test]
fn suspects_of_a_surplus_queue_wait_for_their_fence_while_others_go_on() {
    let reactors = Reactors::start(2);
    let arena = Arena::new(4 << 20, false).unwrap();
    let stingy = Stingy::new(DISK, 2);
    let shared = SharedDevice::new(stingy.clone(), reactors.hosts());
    let mut workers = Vec::new();
    // One with a queue of its own on the first reactor, two with one on the second.
    for (n, reactor) in [0, 1, 1].into_iter().enumerate() {
        let told = Worker::spawn(&reactors.handles[reactor], &shared, &arena, n as u64 * 64, 8, 1);
        wait("a queue", || told.ready.load(Ordering::SeqCst));
        workers.push(told);
    }
    progress("all", &workers, 20);
    let taken = || stingy.orders.taken.lock().unwrap().iter().filter(|t| **t).count();
    let o = &stingy.orders;
    o.hold.store(true, Ordering::SeqCst);
    wait("held requests", || o.held.load(Ordering::SeqCst) >= 24);
    o.lose.store(true, Ordering::SeqCst);
    wait("suspects", || workers.iter().all(|t| t.suspects.load(Ordering::SeqCst) == 8));
    o.granted.store(1, Ordering::SeqCst);
    o.hold.store(false, Ordering::SeqCst);
    o.lose.store(false, Ordering::SeqCst);
    // A newcomer on the second reactor finds the queue of the first.
    let newcomer = Worker::spawn(&reactors.handles[1], &shared, &arena, 3 * 64, 8, 1);
    progress("a newcomer", std::slice::from_ref(&newcomer), 50);
    assert_eq!(taken(), 2, "a queue with suspects was given back");
    assert!(workers.iter().all(|t| t.retried.load(Ordering::SeqCst) == 0), "a suspect completed before it was quiet");
    o.quiet.store(true, Ordering::SeqCst);
    workers.push(newcomer);
    progress("all again", &workers, 20);
    assert!(workers[..3].iter().all(|t| t.retried.load(Ordering::SeqCst) == 8));
    wait("the surplus queue given back", || taken() == 1);
    stop(&reactors, &workers);
    reactors.end();
}

#[test]
fn an_owner_that_ends_without_a_word_leaves_no_request_open() {
    let reactors = Reactors::start(1);
    let arena = Arena::new(1 << 20, false).unwrap();
    let stingy = Stingy::new("null://1GiB?bs=4096", 1);
    let shared = SharedDevice::new(stingy.clone(), reactors.hosts());
    let owner = Worker::spawn(&reactors.handles[0], &shared, &arena, 0, 0, 1);
    wait("an owner", || owner.ready.load(Ordering::SeqCst));
    let mut queue = shared.open_queue(QueueConfig { depth: 4 }).unwrap();
    let (mut segs, mut done) = (SegTable::new(64), Done::default());
    wait("a link", || {
        queue.poll(&mut Cx { now: now(), segs: &mut segs, reactor: 0 }, &mut done);
        queue.health() == Health::Ready
    });
    stingy.orders.hold.store(true, Ordering::SeqCst);
    let mut cx = Cx { now: now(), segs: &mut segs, reactor: 0 };
    queue.submit(&mut cx, Io::flush(5)).unwrap();
    queue.kick(&mut cx);
    wait("a request at the owner", || stingy.orders.held.load(Ordering::SeqCst) == 1);
    reactors.handles[0].stop();
    wait("an outcome", || {
        queue.poll(&mut Cx { now: now(), segs: &mut segs, reactor: 0 }, &mut done);
        !done.completions.is_empty()
    });
    assert_eq!((done.completions[0].tag, done.completions[0].status.code), (5, Code::OutcomeUnknown));
    assert_eq!(done.completions[0].proof, Proof::None);
    assert!(stingy.orders.taken.lock().unwrap().iter().all(|t| !t), "told before the queue was gone");
    drop(owner);
    let mut cx = Cx { now: now(), segs: &mut segs, reactor: 0 };
    assert_eq!(queue.submit(&mut cx, Io::flush(6)).unwrap_err().why, RefusedWhy::Gone);
    queue.close(&mut cx);
    assert!(queue.is_drained());
}

#[test]
fn without_any_queue_to_share_it_is_down_and_looks_again() {
    let stingy = Stingy::new(DISK, 0);
    let shared = SharedDevice::new(stingy.clone(), Vec::new());
    let mut queue = shared.open_queue(QueueConfig { depth: 4 }).unwrap();
    let (mut segs, mut done, mut waits) = (SegTable::new(64), Done::default(), Waits::default());
    for s in 1..5 {
        let mut cx = Cx { now: Time::from_millis(s * 1000), segs: &mut segs, reactor: 0 };
        queue.poll(&mut cx, &mut done);
        assert_eq!(queue.health(), Health::Down);
        assert_eq!(queue.submit(&mut cx, Io::flush(1)).unwrap_err().why, RefusedWhy::Gone);
        waits.clear();
        assert_eq!(queue.arm(&mut cx, &mut waits), Armed::Sleep);
        assert!(waits.deadline.is_some_and(|at| at.since(cx.now).as_millis() <= 1000), "it looks again: {waits:?}");
    }
    stingy.orders.granted.store(1, Ordering::SeqCst);
    let mut cx = Cx { now: Time::from_millis(9000), segs: &mut segs, reactor: 0 };
    queue.poll(&mut cx, &mut done);
    queue.poll(&mut cx, &mut done);
    assert_eq!(queue.health(), Health::Ready);
    queue.close(&mut cx);
    queue.poll(&mut cx, &mut done);
    assert!(queue.is_drained());
}

#[test]
fn whoever_opens_at_the_same_time_gets_a_share() {
    let reactors = Reactors::start(2);
    let arena = Arena::new(8 << 20, false).unwrap();
    for _ in 0..200 {
        let shared = SharedDevice::new(Stingy::new(DISK, 1), reactors.hosts());
        let spawn = |n: usize| Worker::spawn(&reactors.handles[n % 2], &shared, &arena, n as u64 * 64, 2, 1);
        let workers: Vec<_> = (0..4).map(spawn).collect();
        progress("all four", &workers, 2);
        stop(&reactors, &workers);
    }
    reactors.end();
}

#[test]
fn the_queue_of_a_device_with_one_unit_is_kicked_and_drained_as_its_own() {
    let stingy = Stingy::new(DISK, 1);
    let shared = SharedDevice::new(stingy.clone(), Vec::new());
    let mut queue = shared.open_queue(QueueConfig { depth: 4 }).unwrap();
    let (mut segs, mut done) = (SegTable::new(64), Done::default());
    let mut cx = Cx { now: now(), segs: &mut segs, reactor: 0 };
    queue.poll(&mut cx, &mut done);
    queue.submit(&mut cx, Io::flush(1)).unwrap();
    let kicked = || stingy.orders.kicked.load(Ordering::SeqCst);
    let before = kicked();
    queue.kick(&mut cx);
    assert_eq!(kicked(), before + 1);
    queue.poll(&mut cx, &mut done);
    assert_eq!(done.completions.len(), 1);
    stingy.orders.lingers.store(true, Ordering::SeqCst);
    queue.close(&mut cx);
    assert!(!queue.is_drained(), "its own end is not over");
    stingy.orders.lingers.store(false, Ordering::SeqCst);
    assert!(queue.is_drained());
}

/// A disk whose description changes, until it is closed.
struct Changing(AtomicU64);

impl Device for Changing {
    fn name(&self) -> &str {
        "changing"
    }
    fn state(&self) -> DeviceState {
        match self.version() {
            0 => DeviceState::Gone { reason: "closed".into() },
            _ => DeviceState::Starting,
        }
    }
    fn version(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn open_queue(&self, _: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        Err(OpenError::NoQueue { name: "changing".into(), granted: 0 })
    }
    fn close(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[test]
fn a_shared_device_is_the_device_that_it_wraps() {
    let device = Arc::new(Changing(AtomicU64::new(7)));
    let shared = SharedDevice::new(device.clone(), Vec::new());
    assert_eq!((shared.name(), shared.version(), shared.inner().version()), ("changing", 7, 7));
    device.0.store(8, Ordering::Relaxed);
    assert_eq!(shared.version(), 8);
    assert!(matches!(shared.state(), DeviceState::Starting));
    assert!(shared.open_queue(QueueConfig { depth: 1 }).is_ok(), "a queue finds its place later");
    shared.close();
    assert!(matches!(device.state(), DeviceState::Gone { .. }));
    let refused = shared.open_queue(QueueConfig { depth: 1 }).err();
    assert!(matches!(&refused, Some(OpenError::Gone { reason, .. }) if reason.contains("closed")), "{refused:?}");
}
