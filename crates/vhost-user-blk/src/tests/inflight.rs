//! Back-ends that end with requests in flight: the next one carries them out again, and the guest sees each of them once.

use super::guest::{Piece, header};
use super::ram::{RamDevice, Rng};
use super::*;
use crate::past::Hold;
use crate::ring::{killed, record_len};
use polypath_block::{Limits, Op};
use polypath_memory::Region;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

const SIZE: u16 = 16;
/// Requests under way at a time: three descriptors each.
const PLACES: u64 = 5;

/// What is under way in a place, and whether it writes; and the octet that is there.
type Occupied = (Option<u16>, bool, u8);

/// Takes what was given back, each once, and looks at it.
fn take_back(rig: &mut Rig, places: &mut [Occupied], seed: u64) {
    while let Some((head, used)) = rig.driver.pop() {
        let at = places.iter().position(|place| place.0 == Some(head)).expect("a request that is under way");
        let (_, write, byte) = places[at];
        assert_eq!(used, if write { 1 } else { 513 }, "seed {seed}");
        rig.check(at as u64, byte);
        places[at].0 = None;
    }
}

/// Each place holds what was written there last, and the ring is sound.
fn check_medium(rig: &Rig, places: &[Occupied], seed: u64) {
    for (n, place) in places.iter().enumerate() {
        let block = rig.device.state.lock().unwrap().bytes[n * 512..][..512].to_vec();
        assert_eq!(block, [place.2; 512], "seed {seed}, place {n}");
    }
    assert_eq!(rig.counters.read().ring_errors, 0, "seed {seed}");
}

/// A ring of either kind with a record, over a disk that completes late and out of order.
fn rig(packed: bool, seed: u64) -> (Rig, Region) {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    device.change(|s| (s.delay, s.refuse, s.rng) = (seed % 4, [0, 3][seed as usize % 2], Rng(seed)));
    let mut rig = Rig::stopped(device, SIZE, !seed.is_multiple_of(3), false);
    if packed {
        rig.driver = Driver::packed(&rig.ram, RING_GPA, SIZE, !seed.is_multiple_of(3));
    }
    let len = record_len(SIZE, packed);
    let region = Region::allocate(len, false).unwrap();
    rig.record = region.window(0, len);
    rig.start(rig.driver.base());
    (rig, region)
}

impl Rig {
    /// The poller's process is gone, and another one takes its place. A front-end tells it what it knows: of a split ring the used
    /// index, of a packed one what was so when it was set up.
    pub(super) fn revive(&mut self) {
        let (sender, receiver) = mailbox(Arc::new(NoHost));
        let config = self.config.clone();
        self.poller = VringPoller::new(config, self.device.clone(), receiver, self.counters.clone());
        self.mailbox = sender;
        self.segs = SegTable::new(1 << 20);
        let used = self.driver.used.load_u16(2, std::sync::atomic::Ordering::Relaxed).unwrap();
        let base = if self.driver.is_packed() { 0x8000_8000 } else { used.into() };
        self.start_anywhere(base);
    }

    /// Submits a write or read of one block at `place`; a read must find what the last write there left.
    pub(super) fn offer(&mut self, place: u64, write: bool, byte: u8) -> u16 {
        let at = DATA_GPA + place * 0x1000;
        self.ram.write(at, &header(u32::from(write), place));
        self.ram.write(at + 0x100, &[if write { byte } else { !byte }; 512]);
        self.ram.write(at + 0x800, &[0xee]);
        let pieces = [
            Piece { addr: at, len: 16, write: false },
            Piece { addr: at + 0x100, len: 512, write: !write },
            Piece { addr: at + 0x800, len: 1, write: true },
        ];
        self.driver.add(&pieces).expect("room")
    }

    pub(super) fn check(&self, place: u64, byte: u8) {
        let at = DATA_GPA + place * 0x1000;
        assert_eq!(self.ram.read(at + 0x800, 1), [0], "status of place {place}");
        assert_eq!(self.ram.read(at + 0x100, 512), [byte; 512], "data of place {place}");
    }
}

/// A guest that writes and reads back while its back-end is killed between any two stores.
#[test]
fn a_back_end_killed_anywhere_costs_no_request() {
    let (mut kills, mut again) = (0, 0);
    for seed in 0..200u64 {
        let mut rng = Rng(seed);
        let (mut rig, _region) = rig(seed / 2 % 2 == 0, seed);
        // Of each place: its head if it is under way, whether that writes, and what is there.
        let mut places = [(None::<u16>, false, 0u8); PLACES as usize];
        let (mut left, mut steps) = (150, 0);
        while left > 0 || places.iter().any(|place| place.0.is_some()) {
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: lost: {places:?}, {:?}", rig.counters.read());
            let n = rng.below(PLACES);
            let place = &mut places[n as usize];
            if place.0.is_none() && left > 0 {
                left -= 1;
                place.1 = rng.one_in(2);
                place.2 = place.2.wrapping_add(u8::from(place.1));
                place.0 = Some(rig.offer(n, place.1, place.2));
                if !rng.one_in(3) {
                    rig.driver.publish();
                }
            }
            if rng.one_in(4) {
                killed::after(Some(rng.below(40) as u32));
            }
            if left == 0 || places.iter().all(|place| place.0.is_some()) {
                rig.driver.publish();
            }
            if catch_unwind(AssertUnwindSafe(|| rig.turn())).is_err() {
                kills += 1;
                let before = rig.counters.read().requests;
                // Its successor is killed at once, now and then.
                loop {
                    killed::after(rng.one_in(3).then(|| rng.below(30) as u32));
                    if catch_unwind(AssertUnwindSafe(|| rig.revive())).is_ok() {
                        break;
                    }
                }
                killed::after(None);
                rig.turn();
                again += rig.counters.read().requests - before;
            }
            killed::after(None);
            take_back(&mut rig, &mut places, seed);
        }
        check_medium(&rig, &places, seed);
    }
    assert!(kills > 500 && again > 500, "{kills} kills, {again} requests taken right after one");
}

/// We end while some requests are with the disk and others are not: the former complete, the latter are the successor's.
#[test]
fn who_leaves_completes_what_the_disk_has_and_leaves_the_rest() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed, 0);
        rig.device.change(|s| s.hold = true);
        for place in 0..2 {
            rig.offer(place, true, 7);
            rig.driver.publish();
            rig.turn();
        }
        rig.device.change(|s| s.down = true);
        for place in 2..5 {
            rig.offer(place, true, 7);
        }
        rig.driver.publish();
        rig.turns(3);
        let answer = rig.mailbox.send(Command::Leave).unwrap();
        // The time limit of a way that is down is none of theirs any more.
        rig.now = rig.now.after(Duration::from_secs(60));
        rig.turns(3);
        assert!(answer.try_recv().is_err() && rig.driver.pop().is_none(), "two are with the disk");
        assert_eq!(rig.arm(&mut Waits::default()), Armed::Sleep, "draining is no reason to spin");
        rig.device.change(|s| s.hold = false);
        rig.turns(3);
        assert!(answer.try_recv().unwrap().is_ok());
        let back: Vec<_> = std::iter::from_fn(|| rig.driver.pop()).collect();
        assert_eq!(back.len(), 2, "packed {packed}: nothing failed, and nothing else was given back");
        rig.device.change(|s| s.down = false);
        rig.revive();
        rig.turns(3);
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 3);
        (0..5).for_each(|place| rig.check(place, 7));
    }
}

/// A front-end that asks for a stop hears of it when all that was taken has completed, also what a back-end before us had left; the
/// record is closed, so that its own base counts next time.
#[test]
fn a_stop_completes_what_others_left_and_closes_the_record() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed, 0);
        rig.device.change(|s| s.hold = true);
        (0..4).for_each(|place| _ = rig.offer(place, true, 9));
        rig.driver.publish();
        rig.turn();
        rig.device.change(|s| (s.hold, s.down) = (false, true));
        rig.revive();
        let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
        rig.turns(5);
        assert!(answer.try_recv().is_err(), "four are open");
        rig.device.change(|s| s.down = false);
        rig.turns(5);
        let base = answer.try_recv().unwrap().unwrap();
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 4);
        assert_eq!(base, rig.driver.base());
        // The guest makes its ring anew, and the record has no say.
        let (packed, event_idx) = (rig.driver.is_packed(), rig.driver.event_idx);
        rig.ram.write(RING_GPA, &vec![0; Driver::bytes(SIZE) as usize]);
        rig.driver = match packed {
            true => Driver::packed(&rig.ram, RING_GPA, SIZE, event_idx),
            false => Driver::new(&rig.ram, RING_GPA, SIZE, event_idx),
        };
        rig.start(rig.driver.base());
        rig.offer(0, false, 9);
        rig.driver.publish();
        rig.turns(3);
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 1);
        rig.check(0, 9);
    }
}

/// What a front-end writes into the record while the ring runs is not read.
#[test]
fn a_record_that_is_written_over_harms_nobody_who_runs() {
    for seed in 0..60u64 {
        let mut rng = Rng(seed);
        let (mut rig, region) = rig(seed % 2 == 0, seed);
        let all = region.window(0, region.len()).unwrap();
        for round in 0..40u8 {
            (0..PLACES).for_each(|place| _ = rig.offer(place, true, round));
            rig.driver.publish();
            for _ in 0..200 {
                let at = rng.below(region.len()) as usize;
                all.store_u8(at, rng.next() as u8).unwrap();
                rig.turn();
                if rig.driver.free_descriptors() == usize::from(SIZE) {
                    break;
                }
                while rig.driver.pop().is_some() {}
            }
            (0..PLACES).for_each(|place| rig.check(place, round));
        }
        assert_eq!(rig.counters.read().ring_errors, 0);
    }
}

/// What stands in it when a ring starts is checked: it is refused, or the ring runs and errs at most.
#[test]
fn any_record_is_refused_or_survived() {
    let (mut refused, mut ran) = (0, 0);
    for seed in 0..2000u64 {
        let mut rng = Rng(seed);
        let (mut rig, region) = rig(seed % 2 == 0, seed);
        rig.device.change(|s| s.hold = true);
        (0..PLACES).for_each(|place| _ = rig.offer(place, true, 1));
        rig.driver.publish();
        rig.turn();
        let all = region.window(0, region.len()).unwrap();
        for _ in 0..1 + rng.below(20) {
            let at = rng.below(record_len(SIZE, seed % 2 == 0)) as usize;
            let value = if rng.one_in(2) { rng.below(20) as u8 } else { rng.next() as u8 };
            all.store_u8(at, value).unwrap();
        }
        rig.device.change(|s| s.hold = false);
        // As `revive` does: whether the guest has made its ring anew is part of the check.
        let spec = rig.spec(if seed % 2 == 0 { 0x8000_8000 } else { 0 });
        match Vring::new(spec, rig.memory.clone()) {
            Err(_) => refused += 1,
            Ok(_) => {
                ran += 1;
                rig.revive();
                rig.turns(20);
            }
        }
    }
    assert!(refused > 200 && ran > 200, "{refused} refused, {ran} ran");
}

/// A ring of which nobody keeps a record goes on where the guest was last told something: its predecessor gave back more than the
/// front-end had heard of.
#[test]
fn without_a_record_what_was_given_back_is_not_taken_again() {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    let mut rig = Rig::new(device.clone(), SIZE, true);
    (0..4).for_each(|place| _ = rig.offer(place, true, 3));
    rig.driver.publish();
    rig.turn();
    rig.record = None;
    device.change(|s| s.record = true);
    let (sender, receiver) = mailbox(Arc::new(NoHost));
    rig.poller = VringPoller::new(rig.config.clone(), device.clone(), receiver, rig.counters.clone());
    rig.mailbox = sender;
    // The front-end had read the used index before the last two completions.
    rig.start_anywhere(2);
    rig.turns(3);
    assert_eq!(device.log().len(), 0, "completed chains were carried out again");
    assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 4);
    rig.offer(0, false, 3);
    rig.driver.publish();
    rig.turns(3);
    assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 1);
}

/// After a predecessor of which nobody knows when its writes land, changes wait, and nothing else does.
#[test]
fn changes_wait_for_what_a_killed_back_end_may_have_in_flight() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed, 0);
        rig.device.change(|s| s.record = true);
        rig.offer(0, true, 7);
        rig.driver.publish();
        rig.turn();
        assert!(rig.driver.pop().is_some());
        rig.device.change(|s| s.log.clear());
        let began = rig.now;
        rig.config.changes_from = Hold::for_time(Duration::from_secs(10));
        rig.revive();
        // More than there are places for, one after the other: nothing that waits stands in the way.
        let writes: Vec<_> = [1, 2].iter().map(|&place| rig.offer(place, true, 8)).collect();
        rig.driver.publish();
        rig.turns(3);
        rig.ram.write(DATA_GPA, &header(0, 0));
        rig.offer(0, false, 7);
        rig.driver.publish();
        rig.turns(3);
        assert!(rig.driver.pop().is_some(), "reads go on");
        rig.check(0, 7);
        let mut waits = Waits::default();
        assert_eq!(rig.arm(&mut waits), Armed::Sleep);
        let until = waits.deadline.expect("it wakes by itself");
        assert!(until > began.after(Duration::from_secs(9)) && until <= rig.now.after(Duration::from_secs(10)));
        rig.now = until.after(Duration::ZERO);
        rig.device.change(|s| s.refuse = 2);
        rig.turns(20);
        let back: Vec<_> = std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head).collect();
        assert_eq!(back.len(), writes.len());
        [1, 2].iter().for_each(|&place| rig.check(place, 8));
        let changes = rig.device.log().iter().filter(|(op, ..)| op.changes_medium()).count();
        assert_eq!(changes, 2, "packed {packed}: each once");
    }
}

/// Somebody learns that it takes longer while changes wait: they go on waiting.
#[test]
fn changes_wait_longer_when_that_is_learned_while_they_wait() {
    let (mut rig, _region) = rig(false, 0);
    let hold = Hold::for_time(Duration::from_secs(10));
    rig.config.changes_from = hold.clone();
    rig.revive();
    rig.offer(1, true, 8);
    rig.driver.publish();
    rig.turns(2);
    hold.extend(Instant::now() + hold.left() + Duration::from_secs(5));
    hold.extend(Instant::now());
    rig.turns(1);
    for (after, back) in [(11, false), (3, false), (2, true)] {
        rig.now = rig.now.after(Duration::from_secs(after));
        rig.turns(20);
        assert_eq!(rig.driver.pop().is_some(), back, "{after}");
    }
}

/// A back-end that ends while changes wait leaves them to the next; one whose front-end asks for the ring waits for them.
#[test]
fn changes_that_wait_are_left_to_the_next_or_waited_for() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed, 0);
        rig.config.changes_from = Hold::for_time(Duration::from_secs(10));
        rig.revive();
        rig.offer(1, true, 8);
        rig.driver.publish();
        rig.turns(2);
        assert!(rig.command(Command::Leave).is_ok(), "at once");
        assert!(rig.driver.pop().is_none());
        rig.revive();
        rig.turns(2);
        let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
        rig.turns(2);
        assert!(answer.try_recv().is_err());
        rig.now = rig.now.after(Duration::from_secs(11));
        rig.turns(2);
        assert!(answer.try_recv().unwrap().is_ok());
        assert!(rig.driver.pop().is_some());
        rig.check(1, 8);
    }
}

/// A guest that sleeps until it is called, with one request under way, and its back-end killed at each store in turn. What the guest was
/// shown and was not called for is its successor's to call for: nobody else ever will.
#[test]
fn a_guest_that_sleeps_is_called_whenever_its_back_end_was_killed() {
    let mut lost = Vec::new();
    for (packed, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        for stores in 0.. {
            let device = RamDevice::new(512, 64, Limits::UNLIMITED);
            let mut rig = Rig::stopped(device, SIZE, event_idx, false);
            if packed {
                rig.driver = Driver::packed(&rig.ram, RING_GPA, SIZE, event_idx);
            }
            let len = record_len(SIZE, packed);
            let region = Region::allocate(len, false).unwrap();
            rig.record = region.window(0, len);
            rig.start(rig.driver.base());
            assert!(Rig::rang(&rig.call), "a ring that starts calls once");
            rig.offer(0, true, 7);
            rig.driver.publish();
            assert!(!rig.driver.want_call(), "nothing is done yet: it sleeps");
            killed::after(Some(stores));
            let died = catch_unwind(AssertUnwindSafe(|| rig.turns(2))).is_err();
            killed::after(None);
            if !died {
                break;
            }
            rig.revive();
            rig.turns(5);
            if !Rig::rang(&rig.call) {
                lost.push((packed, event_idx, stores));
            }
            assert!(rig.driver.pop().is_some(), "the request itself is not lost");
        }
    }
    assert!(lost.is_empty(), "(packed, event index, killed before store): the guest sleeps for ever: {lost:?}");
}

/// The call descriptor of a running ring is exchanged (QEMU does, after each start: until then it gives one that nobody listens on, and
/// never looks at what was said there). What was shown before that must be said to the new one, too.
#[test]
fn whoever_listens_next_is_told_of_what_was_shown_before() {
    for (packed, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = Rig::of(packed, RamDevice::new(512, 64, Limits::UNLIMITED), SIZE, event_idx);
        rig.offer(0, true, 7);
        rig.driver.publish();
        assert!(!rig.driver.want_call(), "it sleeps");
        rig.turns(2);
        let ears = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let notifier = Notifier::new(Theirs::new(ears.try_clone().unwrap(), Closer::default()), Peer::new(1));
        rig.command(Command::SetCall(Some(Arc::new(notifier)))).unwrap();
        // Others that complete do not help: with an event index the guest is behind us for ever.
        rig.offer(1, true, 7);
        rig.driver.publish();
        rig.turns(3);
        assert!(Rig::rang(&ears), "packed {packed}, event index {event_idx}: the guest sleeps for ever");
    }
}

/// A ring is stopped for a moment (its memory changes, it is disabled), and the back-end is killed in that moment: nobody has told the
/// front-end where the ring stands.
#[test]
fn a_ring_that_stood_still_when_its_back_end_was_killed_is_found_where_it_was() {
    for packed in [false, true] {
        let (mut rig, _region) = rig(packed, 0);
        for round in 0..3 {
            rig.offer(0, true, round);
            rig.driver.publish();
            rig.turns(3);
            assert!(rig.driver.pop().is_some());
        }
        rig.command(Command::Stop { flush: false }).unwrap();
        rig.revive();
        rig.offer(0, true, 9);
        rig.driver.publish();
        rig.turns(10);
        assert_eq!(rig.counters.read().ring_errors, 0);
        assert!(rig.driver.pop().is_some(), "packed {packed}: a request that nobody ever looks at");
        rig.check(0, 9);
    }
}

/// A record from before the guest made its ring anew, with nothing in flight: it serves. Then it must serve those who come after a kill, too.
#[test]
fn a_record_older_than_its_ring_is_brought_up_to_date() {
    for stores in 0..40 {
        let (mut rig, _region) = rig(false, 0);
        for round in 0..3 * SIZE {
            rig.offer(0, true, round as u8);
            rig.driver.publish();
            rig.turns(3);
            assert!(rig.driver.pop().is_some());
        }
        rig.command(Command::Leave).unwrap();
        let event_idx = rig.driver.event_idx;
        rig.ram.write(RING_GPA, &vec![0; Driver::bytes(SIZE) as usize]);
        rig.driver = Driver::new(&rig.ram, RING_GPA, SIZE, event_idx);
        rig.revive();
        rig.offer(0, true, 9);
        rig.driver.publish();
        killed::after(Some(stores));
        let died = catch_unwind(AssertUnwindSafe(|| rig.turns(2))).is_err();
        killed::after(None);
        if died {
            let spec = rig.spec(0);
            let refused = Vring::new(spec, rig.memory.clone()).err();
            assert_eq!(refused, None, "killed before store {stores}: the guest is never served again");
        }
    }
}

/// A back-end without a record that ends while changes wait has begun none of them: they are still the guest's, in its ring.
#[test]
fn changes_that_wait_do_not_keep_a_ring_without_a_record() {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    let mut rig = Rig::stopped(device, SIZE, true, false);
    rig.config.changes_from = Hold::for_time(Duration::from_secs(100));
    rig.revive();
    rig.offer(1, true, 8);
    rig.driver.publish();
    rig.turns(2);
    let answer = rig.mailbox.send(Command::Leave).unwrap();
    rig.turns(5);
    assert_eq!(answer.try_recv(), Ok(Ok(0)), "nothing is in flight, and nothing of it was begun");
}

/// Changes that wait while the memory with their data is cut away have zeroes in place of it: they must not reach the disk when the wait is
/// over, as those must not that are taken from then on.
#[test]
fn changes_that_wait_never_carry_lost_memory_to_the_disk() {
    const AT: u64 = 0x200_0000;
    const LEN: u64 = 0x4000;
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    device.change(|s| s.bytes.fill(0xaa));
    let mut rig = Rig::stopped(device.clone(), SIZE, true, false);
    // With a record: without one, nothing overtakes a change that waits.
    let records = Region::allocate(record_len(SIZE, false), false).unwrap();
    rig.record = records.window(0, record_len(SIZE, false));
    let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, LEN).unwrap();
    let region = Arc::new(Region::from_fd(file.try_clone().unwrap(), 0, LEN).unwrap());
    let window = region.window(0, LEN).unwrap();
    rig.memory = Arc::new(rig.memory.with(AT, 0x7f00_0000_0000 + AT, region.clone()).unwrap());
    window.copy_in(0, &[7; 512]).unwrap();
    rig.config.changes_from = Hold::for_time(Duration::from_secs(10));
    rig.revive();
    let pieces = |kind: u32, at: u64, data: u64| {
        rig.ram.write(at, &header(kind, 0));
        [
            Piece { addr: at, len: 16, write: false },
            Piece { addr: data, len: 512, write: kind == 0 },
            Piece { addr: at + 0x800, len: 1, write: true },
        ]
    };
    let (write, read) = (pieces(1, DATA_GPA, AT), pieces(0, DATA_GPA + 0x1000, AT + 0x2000));
    rig.driver.add(&write).unwrap();
    rig.driver.publish();
    rig.turns(2);
    rustix::fs::ftruncate(&file, 0).unwrap();
    rig.driver.add(&read).unwrap();
    rig.driver.publish();
    rig.turns(3);
    assert!(window.is_lost(), "the read has found out");
    assert_eq!(rig.counters.read().ring_errors, 1, "nothing is taken any more");
    rig.now = rig.now.after(Duration::from_secs(11));
    rig.turns(5);
    let first = device.state.lock().unwrap().bytes[0];
    assert_eq!(first, 0xaa, "zeroes that the guest never wrote");
}

/// A guest without a record that migrates while changes wait: where it goes on they would not, and land under what a killed back-end of this
/// disk has in flight. Its front-end hears where the ring stands when the wait is over.
#[test]
fn a_guest_does_not_go_on_elsewhere_before_its_changes_may_be_made() {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    let mut rig = Rig::stopped(device, SIZE, true, false);
    rig.config.changes_from = Hold::for_time(Duration::from_secs(100));
    rig.revive();
    rig.offer(1, true, 8);
    rig.driver.publish();
    rig.turns(2);
    let answer = rig.mailbox.send(Command::Stop { flush: true }).unwrap();
    rig.turns(5);
    assert!(answer.try_recv().is_err(), "the change waits here for 100 s, and there it is made at once");
    rig.now = rig.now.after(Duration::from_secs(101));
    rig.turns(5);
    assert!(answer.try_recv().is_ok());
}

/// Ends of all kinds, one after the other and within each other's waits: kills, stops, leaves; with and without a record, while changes wait,
/// ways are down, and writes are owed a flush. Each request is given back once, and no change begins before it may.
#[test]
fn any_series_of_ends_costs_no_request() {
    for seed in 0..400u64 {
        let mut rng = Rng(seed);
        let (packed, recorded, through) = (rng.one_in(2), !rng.one_in(3), rng.one_in(2));
        let device = RamDevice::new(512, 64, Limits { write_cache: through, fua: false, ..Limits::UNLIMITED });
        device
            .change(|s| (s.delay, s.refuse, s.rng, s.record) = (seed % 4, [0, 3][seed as usize % 2], Rng(seed), true));
        let mut rig = Rig::stopped(device, SIZE, rng.one_in(2), false);
        if packed {
            rig.driver = Driver::packed(&rig.ram, RING_GPA, SIZE, rig.driver.event_idx);
        }
        let len = record_len(SIZE, packed);
        let region = Region::allocate(len, false).unwrap();
        rig.record = recorded.then(|| region.window(0, len).unwrap());
        rig.write_through = Arc::new(AtomicBool::new(through));
        rig.start(rig.driver.base());
        let mut places = [(None::<u16>, false, 0u8); PLACES as usize];
        let (mut left, mut steps, mut free_at) = (150, 0, Time::ZERO);
        let mut stopping: Option<(Receiver<Answer>, bool)> = None;
        while left > 0 || places.iter().any(|place| place.0.is_some()) || stopping.is_some() {
            steps += 1;
            assert!(
                steps < 20_000,
                "seed {seed} packed {packed} recorded {recorded}: lost: {places:?}, {stopping:?} {:?}",
                rig.counters.read()
            );
            let n = rng.below(PLACES);
            let place = &mut places[n as usize];
            if place.0.is_none() && left > 0 {
                left -= 1;
                place.1 = rng.one_in(2);
                place.2 = place.2.wrapping_add(u8::from(place.1));
                place.0 = Some(rig.offer(n, place.1, place.2));
            }
            if !rng.one_in(3) || left == 0 || places.iter().all(|place| place.0.is_some()) {
                rig.driver.publish();
            }
            if rng.one_in(20) {
                let down = rng.one_in(2);
                rig.device.change(|s| s.down = down);
            }
            if rng.one_in(20) {
                let hold = rng.one_in(2);
                rig.device.change(|s| s.hold = hold);
            }
            if left == 0 && rng.one_in(4) {
                rig.device.change(|s| (s.down, s.hold) = (false, false));
            }
            if left > 0 && rng.one_in(15) {
                let command = match rng.below(3) {
                    0 => Command::Leave,
                    n => Command::Stop { flush: n == 1 },
                };
                let leaves = matches!(command, Command::Leave);
                if let Ok(answer) = rig.mailbox.send(command) {
                    let leaves = leaves || stopping.as_ref().is_some_and(|s| s.1);
                    stopping = Some((answer, leaves));
                }
            }
            if recorded && left > 0 && rng.one_in(6) {
                killed::after(Some(rng.below(40) as u32));
            }
            let hold = |rig: &mut Rig, rng: &mut Rng| {
                rig.config.changes_from = Hold::default();
                if rng.one_in(2) {
                    let wait = Duration::from_millis(rng.below(4) + 1);
                    rig.config.changes_from = Hold::for_time(wait);
                }
            };
            let before = rig.device.log().len();
            let now = rig.now;
            if catch_unwind(AssertUnwindSafe(|| rig.turn())).is_err() {
                stopping = None;
                hold(&mut rig, &mut rng);
                loop {
                    killed::after(rng.one_in(3).then(|| rng.below(30) as u32));
                    if catch_unwind(AssertUnwindSafe(|| rig.revive())).is_ok() {
                        break;
                    }
                }
                // Milliseconds that have passed meanwhile are the test's own.
                free_at = rig.now.after(rig.config.changes_from.left());
                if rig.config.changes_from.left().is_zero() {
                    free_at = Time::ZERO;
                }
            } else if now.after(Duration::from_millis(1)) < free_at {
                let log = rig.device.log();
                assert!(
                    log[before..].iter().all(|(op, ..)| *op != Op::Write),
                    "seed {seed}: a change that had to wait"
                );
            }
            killed::after(None);
            let answered = stopping.as_ref().and_then(|(answer, leaves)| Some((answer.try_recv().ok()?, *leaves)));
            if let Some((answer, leaves)) = answered {
                let base = answer.unwrap();
                stopping = None;
                free_at = Time::ZERO;
                rig.config.changes_from = Hold::default();
                if leaves && recorded {
                    hold(&mut rig, &mut rng);
                    rig.revive();
                } else {
                    rig.start(base);
                }
            }
            take_back(&mut rig, &mut places, seed);
        }
        check_medium(&rig, &places, seed);
    }
}

/// One socket of a disk is served, and its guest writes. Then another one is served, and a stale socket in its place says that somebody was
/// killed there: from then on changes of all guests of the disk wait. (What was begun before is not called back.)
#[test]
fn changes_wait_from_the_moment_in_which_a_kill_becomes_known() {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    device.change(|s| s.record = true);
    let mut rig = Rig::new(device.clone(), SIZE, true);
    rig.offer(0, true, 1);
    rig.driver.publish();
    rig.turns(3);
    assert!(rig.driver.pop().is_some());
    rig.config.changes_from.extend(Instant::now() + Duration::from_secs(100));
    rig.offer(1, true, 2);
    rig.driver.publish();
    rig.turns(3);
    assert_eq!(device.log().len(), 1, "what the one that was killed has in flight may land on top of it");
}

/// A change waits. Meanwhile the guest says that it counts on each change being durable when it completes, and hears that its word is taken.
/// The change completes after that, and is durable.
#[test]
fn a_change_that_waits_is_as_durable_as_the_guest_wants_when_it_is_made() {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, fua: true, ..Limits::UNLIMITED });
    device.change(|s| s.record = true);
    let mut rig = Rig::stopped(device.clone(), SIZE, true, false);
    rig.config.changes_from = Hold::for_time(Duration::from_secs(10));
    rig.revive();
    rig.offer(1, true, 8);
    rig.driver.publish();
    rig.turns(2);
    assert!(device.log().is_empty(), "it waits");
    rig.write_through.store(true, std::sync::atomic::Ordering::Relaxed);
    rig.now = rig.now.after(Duration::from_secs(11));
    rig.turns(5);
    assert!(rig.driver.pop().is_some(), "it was made");
    let log = device.log();
    let durable = log.iter().any(|(op, flags, ..)| *op == Op::Flush || flags.contains(polypath_block::Flags::FUA));
    assert!(durable, "{log:?}");
}
