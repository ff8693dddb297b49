//! A guest that moves while its requests run: what the device writes reaches its destination.

use super::guest::{Piece, header};
use super::ram::{RamDevice, Rng};
use super::*;
use crate::log::DirtyLog;
use crate::ring::killed;
use polypath_block::{Code, Limits, Op};
use polypath_memory::{Region, Window};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

const PAGE: u64 = 0x1000;
const SIZE: u16 = 32;
const PLACES: u64 = 6;

/// The front-end that copies a guest, page by page, while it runs. What the guest itself writes it knows from its hypervisor.
struct Mover {
    log: Window,
    by_guest: BTreeSet<u64>,
    copies: BTreeMap<u64, Vec<u8>>,
}

impl Mover {
    fn new(rig: &mut Rig) -> (Mover, Region) {
        let bytes = (DATA_GPA + 64 * PAGE) / PAGE / 8 + 1;
        let region = Region::allocate(bytes, false).unwrap();
        let log = region.window(0, bytes).unwrap();
        let dirty = Arc::new(DirtyLog::new(log.clone()));
        assert!(rig.command(Command::SetLog(Some(dirty))).is_ok());
        // All of it is copied once after logging began.
        let mut mover = Mover { log, by_guest: BTreeSet::new(), copies: BTreeMap::new() };
        (0..64).for_each(|n| _ = mover.by_guest.insert(DATA_GPA / PAGE + n));
        mover.ring_changed();
        mover.sync(rig);
        (mover, region)
    }

    /// The guest has written to its ring.
    fn ring_changed(&mut self) {
        (RING_GPA / PAGE..=(RING_GPA + Driver::bytes(SIZE)) / PAGE).for_each(|page| _ = self.by_guest.insert(page));
    }

    fn sync(&mut self, rig: &Rig) {
        let mut pages = std::mem::take(&mut self.by_guest);
        for byte in 0..self.log.len() {
            let mut bits = [0];
            self.log.copy_out(byte, &mut bits).unwrap();
            self.log.store_u8(byte, 0).unwrap();
            pages.extend((0..8).filter(|n| bits[0] & 1 << n != 0).map(|n| byte as u64 * 8 + n));
        }
        for page in pages {
            self.copies.insert(page, rig.ram.read(page * PAGE, PAGE as usize));
        }
    }

    fn check(&self, rig: &Rig, seed: u64) {
        for (page, copy) in &self.copies {
            assert!(
                *copy == rig.ram.read(page * PAGE, PAGE as usize),
                "seed {seed}: page {page:#x} is not what it was"
            );
        }
    }
}

/// Reads of up to three pages, writes, serial numbers: each place has four pages, the last of which has the status.
fn offer(rig: &mut Rig, mover: &mut Mover, place: u64, rng: &mut Rng) -> Option<u16> {
    let at = DATA_GPA + place * 4 * PAGE;
    let kind = [0, 0, 1, 8][rng.below(4) as usize];
    let len = if kind == 8 { 20 } else { 512 * (1 + rng.below(8)) };
    let data = at + 0x10 + rng.below(0x900);
    rig.ram.write(at, &header(kind, rng.below(8)));
    rig.ram.write(data, &vec![rng.next() as u8; len as usize]);
    rig.ram.write(at + 3 * PAGE, &[0xee]);
    (0..4).for_each(|n| _ = mover.by_guest.insert(at / PAGE + n));
    mover.ring_changed();
    let pieces = [
        Piece { addr: at, len: 16, write: false },
        Piece { addr: data, len: len as u32, write: kind != 1 },
        Piece { addr: at + 3 * PAGE, len: 1, write: true },
    ];
    rig.driver.add(&pieces)
}

#[test]
fn every_page_that_the_device_writes_is_logged_when_it_has_been_written() {
    for seed in 0..100u64 {
        let mut rng = Rng(seed);
        let device = RamDevice::new(512, 64, Limits::UNLIMITED);
        device.change(|s| (s.delay, s.refuse, s.rng) = (seed % 4, [0, 3][seed as usize % 2], Rng(seed)));
        let mut rig = Rig::stopped(device, SIZE, !seed.is_multiple_of(3), false);
        if seed % 2 == 0 {
            rig.driver = Driver::packed(&rig.ram, RING_GPA, SIZE, !seed.is_multiple_of(3));
        }
        rig.start(rig.driver.base());
        let (mut mover, _region) = Mover::new(&mut rig);
        let mut places = [None::<u16>; PLACES as usize];
        for _ in 0..200 {
            let n = rng.below(PLACES);
            if places[n as usize].is_none() {
                places[n as usize] = offer(&mut rig, &mut mover, n, &mut rng);
                rig.driver.publish();
            }
            if rng.one_in(2) {
                rig.turn();
            }
            if rng.one_in(5) {
                rig.arm(&mut Waits::default());
            }
            if rng.one_in(3) {
                mover.sync(&rig);
            }
            while let Some((head, _)) = rig.driver.pop() {
                places.iter_mut().filter(|place| **place == Some(head)).for_each(|place| *place = None);
                // It looks for more by writing its event index.
                mover.ring_changed();
            }
        }
        // The guest stands still; its rings do once all that was taken is done.
        mover.sync(&rig);
        assert!(rig.command(Command::Stop { flush: false }).is_ok());
        mover.sync(&rig);
        mover.check(&rig, seed);
    }
}

#[test]
fn nothing_is_logged_before_and_after() {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    let mut rig = Rig::new(device, SIZE, true);
    let (mut mover, _region) = Mover::new(&mut rig);
    assert!(rig.command(Command::SetLog(None)).is_ok());
    mover.sync(&rig);
    offer(&mut rig, &mut mover, 0, &mut Rng(1)).unwrap();
    rig.driver.publish();
    rig.turns(3);
    assert!(rig.driver.pop().is_some());
    let mut log = vec![0; mover.log.len()];
    mover.log.copy_out(0, &mut log).unwrap();
    assert!(log.iter().all(|bits| *bits == 0));
}

/// A disk with a cache, a ring with one write in flight, and word that the guest goes on elsewhere.
fn leaving() -> (Arc<RamDevice>, Rig, Receiver<Answer>) {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, ..Limits::UNLIMITED });
    device.change(|s| (s.record, s.hold) = (true, true));
    let mut rig = Rig::new(device.clone(), SIZE, true);
    rig.ram.write(DATA_GPA, &header(1, 3));
    let pieces = [
        Piece { addr: DATA_GPA, len: 16, write: false },
        Piece { addr: DATA_GPA + PAGE, len: 512, write: false },
        Piece { addr: DATA_GPA + 16, len: 1, write: true },
    ];
    rig.driver.add(&pieces).unwrap();
    rig.driver.publish();
    rig.turn();
    let answer = rig.mailbox.send(Command::Stop { flush: true }).unwrap();
    rig.turns(3);
    assert_eq!(device.log().len(), 1, "what is in flight first");
    (device, rig, answer)
}

fn ops(device: &RamDevice) -> Vec<Op> {
    device.log().into_iter().map(|(op, ..)| op).collect()
}

#[test]
fn what_the_guest_wrote_is_durable_before_it_goes_on_elsewhere() {
    let (device, mut rig, answer) = leaving();
    device.change(|s| (s.hold, s.down) = (false, true));
    rig.turns(3);
    assert!(rig.driver.pop().is_some() && answer.try_recv().is_err(), "the way is down");
    let mut waits = Waits::default();
    assert_eq!(rig.arm(&mut waits), Armed::Sleep);
    assert!(waits.deadline.is_some(), "it is tried again");
    device.change(|s| (s.hold, s.down) = (true, false));
    rig.turns(3);
    assert_eq!(ops(&device), [Op::Write, Op::Flush]);
    assert!(answer.try_recv().is_err(), "the flush is under way");
    device.change(|s| s.hold = false);
    rig.turns(2);
    assert!(answer.try_recv().unwrap().is_ok());
    // Who stays has nothing to hurry for.
    rig.start(rig.driver.base());
    rig.command(Command::Stop { flush: false }).unwrap();
    assert_eq!(ops(&device).len(), 2);
}

#[test]
fn a_flush_that_fails_is_tried_again_and_a_loss_is_told_with_the_guests_next() {
    let (device, mut rig, answer) = leaving();
    device.change(|s| (s.hold, s.fail_flush) = (false, Some(Code::NoPath)));
    rig.turns_of(Duration::from_millis(5), 10);
    assert!(answer.try_recv().is_err());
    assert!(ops(&device).len() > 3, "again and again");
    device.change(|s| s.fail_flush = Some(Code::CacheLost));
    rig.turns_of(Duration::from_millis(5), 3);
    assert!(answer.try_recv().unwrap().is_ok());
    device.change(|s| s.fail_flush = None);
    assert!(rig.driver.pop().is_some());
    rig.start(rig.driver.base());
    assert_eq!((guest_flush(&mut rig), guest_flush(&mut rig)), (1, 0), "told once");
}

/// A way that does not come back is waited for as long as a request of the guest would be.
#[test]
fn a_flush_without_a_way_is_lost_after_a_while() {
    for refused in [false, true] {
        let (device, mut rig, answer) = leaving();
        device.change(|s| (s.hold, s.fail_flush) = (false, Some(Code::PathLost)));
        rig.turn();
        device.change(|s| s.down = refused);
        rig.turns_of(Duration::from_millis(10), 90);
        assert!(answer.try_recv().is_err(), "0.9 s");
        rig.turns_of(Duration::from_millis(10), 20);
        assert!(answer.try_recv().unwrap().is_ok(), "a limit of 1 s has passed");
        device.change(|s| (s.down, s.fail_flush) = (false, None));
        assert!(rig.driver.pop().is_some());
        rig.start(rig.driver.base());
        assert_eq!((guest_flush(&mut rig), guest_flush(&mut rig)), (1, 0), "told once");
    }
}

/// A front-end that asks where a ring stands hears it after a flush, also when the ring stood still before.
#[test]
fn a_ring_that_stands_still_is_flushed_as_well() {
    let (device, mut rig, answer) = leaving();
    device.change(|s| s.hold = false);
    rig.turns(3);
    let base = answer.try_recv().unwrap().unwrap();
    assert_eq!(ops(&device), [Op::Write, Op::Flush]);
    device.change(|s| s.hold = true);
    let answer = rig.mailbox.send(Command::Stop { flush: true }).unwrap();
    rig.turns(3);
    assert_eq!(ops(&device), [Op::Write, Op::Flush, Op::Flush]);
    assert!(answer.try_recv().is_err(), "it is under way");
    device.change(|s| s.hold = false);
    rig.turns(2);
    assert_eq!(answer.try_recv(), Ok(Ok(base)), "and it still stands there");
}

/// Whoever ends has no time for it: the back-end after us takes all caches for dirty.
#[test]
fn who_leaves_does_not_flush() {
    let (device, mut rig, asked) = leaving();
    let leave = rig.mailbox.send(Command::Leave).unwrap();
    rig.turn();
    device.change(|s| s.hold = false);
    rig.turns(3);
    assert!(asked.try_recv().unwrap().is_ok() && leave.try_recv().unwrap().is_ok());
    assert_eq!(ops(&device), [Op::Write]);
    // One that is under way is waited for: nothing of ours is with the device afterwards.
    let (device, mut rig, asked) = leaving();
    device.change(|s| s.hold = false);
    rig.turn();
    device.change(|s| s.hold = true);
    rig.turns(2);
    assert_eq!(ops(&device), [Op::Write, Op::Flush]);
    let leave = rig.mailbox.send(Command::Leave).unwrap();
    rig.turns(3);
    assert!(asked.try_recv().is_err() && leave.try_recv().is_err());
    device.change(|s| s.hold = false);
    rig.turns(2);
    assert!(asked.try_recv().unwrap().is_ok() && leave.try_recv().unwrap().is_ok());
}

/// A request that is refused at the door has written its status and nothing else. To mark all the memory that it names costs the reactor a
/// second for each: 130 descriptors of four gigabytes are 136 million pages, and a guest may offer 64 of them at a time.
#[test]
fn a_request_that_is_refused_marks_what_it_wrote_and_no_more() {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    let mut rig = Rig::new(device, SIZE, true);
    let (mut mover, _region) = Mover::new(&mut rig);
    mover.sync(&rig);
    rig.ram.write(DATA_GPA, &header(0, 1 << 40));
    let mut pieces = vec![Piece { addr: DATA_GPA, len: 16, write: false }];
    // An odd length: no whole blocks.
    pieces.push(Piece { addr: DATA_GPA + 2 * PAGE, len: 8 * PAGE as u32 - 1, write: true });
    pieces.push(Piece { addr: DATA_GPA + PAGE, len: 1, write: true });
    rig.run_pieces(&pieces).unwrap();
    assert_eq!(rig.ram.read(DATA_GPA + PAGE, 1), [1], "refused");
    let mut log = vec![0; mover.log.len()];
    mover.log.copy_out(0, &mut log).unwrap();
    let marked: Vec<u64> =
        (0..log.len() as u64 * 8).filter(|page| log[*page as usize / 8] & 1 << (page % 8) != 0).collect();
    assert_eq!(marked, [RING_GPA / PAGE, DATA_GPA / PAGE + 1]);
}

/// One flush of a guest at its ring; its status.
fn guest_flush(rig: &mut Rig) -> u8 {
    rig.ram.write(DATA_GPA, &header(4, 0));
    let pieces = [Piece { addr: DATA_GPA, len: 16, write: false }, Piece { addr: DATA_GPA + 16, len: 1, write: true }];
    rig.run_pieces(&pieces).unwrap();
    rig.ram.read(DATA_GPA + 16, 1)[0]
}

/// A medium that could not take what was in its cache says so once: what it lost is lost, and a flush that succeeds afterwards says nothing of
/// it (Linux drops the pages that it could not write, and the next fsync(2) of the file is fine).
#[test]
fn a_flush_that_the_medium_failed_is_not_made_good_by_another() {
    for code in [Code::Medium, Code::NoSpace] {
        let (device, mut rig, answer) = leaving();
        device.change(|s| s.fail_flush = Some(code));
        device.change(|s| s.hold = false);
        for _ in 0..20 {
            if device.log().len() > 1 {
                break;
            }
            rig.turn();
        }
        rig.turn();
        device.change(|s| s.fail_flush = None);
        rig.turns(5);
        assert!(answer.try_recv().unwrap().is_ok());
        assert!(rig.driver.pop().is_some());
        rig.start(rig.driver.base());
        assert_eq!(guest_flush(&mut rig), 1, "{code:?}: nobody has told the guest that its write is lost");
    }
}

/// A device that flushes no more must not keep the front-end, which waits for this answer with the whole guest, for ever.
#[test]
fn a_flush_that_never_succeeds_does_not_keep_the_guest_for_ever() {
    let (device, mut rig, answer) = leaving();
    device.change(|s| (s.hold, s.fail_flush) = (false, Some(Code::WriteProtected)));
    for _ in 0..1000 {
        rig.turn();
        rig.now = rig.now.after(Duration::from_millis(500));
    }
    let flushes = ops(&device).len() - 1;
    assert!(answer.try_recv().is_ok(), "no answer after 500 s and {flushes} flushes, each with a line in the log");
}

/// Somebody waits for the answer, and nobody knows for how long: the log is not filled meanwhile.
#[test]
fn a_flush_that_fails_is_not_tried_again_in_every_turn() {
    let (device, mut rig, answer) = leaving();
    device.change(|s| (s.hold, s.fail_flush) = (false, Some(Code::PathBusy)));
    // A tenth of a second.
    rig.turns(1000);
    assert!(answer.try_recv().is_err());
    let flushes = ops(&device).iter().filter(|op| **op == Op::Flush).count();
    assert!(flushes <= 25, "{flushes} flushes, and as many lines in the log, within 100 ms; a pause of 5 ms is meant");
}

/// Pages that are marked.
fn marked(mover: &Mover) -> Vec<u64> {
    let mut log = vec![0; mover.log.len()];
    mover.log.copy_out(0, &mut log).unwrap();
    (0..log.len() as u64 * 8).filter(|page| log[*page as usize / 8] & 1 << (page % 8) != 0).collect()
}

/// What the device read into before it failed is there; what it only wrote from is not changed.
#[test]
fn a_read_that_fails_may_have_written() {
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    let mut rig = Rig::new(device.clone(), SIZE, true);
    let (mut mover, _region) = Mover::new(&mut rig);
    device.change(|s| s.fail = 1);
    for (kind, data) in [(0, vec![DATA_GPA / PAGE + 2, DATA_GPA / PAGE + 3]), (1, vec![])] {
        mover.sync(&rig);
        rig.ram.write(DATA_GPA, &header(kind, 0));
        let pieces = [
            Piece { addr: DATA_GPA, len: 16, write: false },
            Piece { addr: DATA_GPA + 2 * PAGE + 0xf00, len: 512, write: kind == 0 },
            Piece { addr: DATA_GPA + PAGE, len: 1, write: true },
        ];
        rig.run_pieces(&pieces).unwrap();
        assert_eq!(rig.ram.read(DATA_GPA + PAGE, 1), [1], "it failed");
        let want: Vec<u64> = [RING_GPA / PAGE, DATA_GPA / PAGE + 1].into_iter().chain(data).collect();
        assert_eq!(marked(&mover), want);
    }
}

/// A serial number has twenty bytes, whatever room there is for it.
#[test]
fn a_serial_number_marks_what_it_wrote() {
    let mut rig = Rig::new(RamDevice::new(512, 64, Limits::UNLIMITED), SIZE, true);
    let (mut mover, _region) = Mover::new(&mut rig);
    mover.sync(&rig);
    rig.ram.write(DATA_GPA, &header(8, 0));
    let pieces = [
        Piece { addr: DATA_GPA, len: 16, write: false },
        Piece { addr: DATA_GPA + 2 * PAGE - 10, len: 10, write: true },
        Piece { addr: DATA_GPA + 3 * PAGE, len: 4 * PAGE as u32, write: true },
        Piece { addr: DATA_GPA + 8 * PAGE, len: 1, write: true },
    ];
    rig.run_pieces(&pieces).unwrap();
    assert_eq!(
        marked(&mover),
        [RING_GPA / PAGE].into_iter().chain([1, 3, 8].map(|n| DATA_GPA / PAGE + n)).collect::<Vec<_>>()
    );
}

/// The ring's own pages: when logging begins, for what is there came before it; and after the guest can see what was given back, not before:
/// whoever clears the mark meanwhile would copy the page as it was.
#[test]
fn the_ring_is_marked_when_logging_begins_and_after_each_store() {
    for packed in [false, true] {
        let mut rig = Rig::of(packed, RamDevice::new(512, 64, Limits::UNLIMITED), SIZE, false);
        let bytes = DATA_GPA / PAGE / 8 + 8;
        let region = Region::allocate(bytes, false).unwrap();
        let log = region.window(0, bytes).unwrap();
        let mover = Mover { log, by_guest: BTreeSet::new(), copies: BTreeMap::new() };
        let dirty = Arc::new(DirtyLog::new(mover.log.clone()));
        assert!(rig.command(Command::SetLog(Some(dirty))).is_ok());
        assert_eq!(marked(&mover), [RING_GPA / PAGE], "logging begins");
        mover.log.copy_in(0, &vec![0; bytes as usize]).unwrap();
        rig.ram.write(DATA_GPA, &header(4, 0));
        let pieces =
            [Piece { addr: DATA_GPA, len: 16, write: false }, Piece { addr: DATA_GPA + 16, len: 1, write: true }];
        rig.driver.add(&pieces).unwrap();
        rig.driver.publish();
        // Killed before the store that the guest waits for; of a packed ring it is the second.
        killed::after(Some(u32::from(packed)));
        let died = catch_unwind(AssertUnwindSafe(|| rig.turns(2))).is_err();
        killed::after(None);
        assert!(died && rig.driver.pop().is_none());
        assert_eq!(
            marked(&mover),
            [DATA_GPA / PAGE],
            "packed {packed}: the status is there, nothing of the ring is shown"
        );
    }
}

/// A guest names gigabytes with a few words. What marking them costs is spread over turns, and nobody hears of a request before its pages are
/// marked.
#[test]
fn marking_much_memory_is_spread_over_turns() {
    const LEN: u64 = 1 << 30;
    const AT: u64 = 1 << 32;
    const COUNT: u64 = 12;
    let device = RamDevice::new(512, 64, Limits::UNLIMITED);
    device.change(|s| s.hold = true);
    let mut rig = Rig::stopped(device.clone(), 128, true, false);
    let big = Arc::new(Region::allocate(LEN, false).unwrap());
    rig.memory = Arc::new(rig.memory.with(AT, 0x7f00_0000_0000 + AT, big).unwrap());
    rig.start(0);
    let bytes = (AT + LEN) / PAGE / 8;
    let region = Region::allocate(bytes, false).unwrap();
    let log = region.window(0, bytes).unwrap();
    assert!(rig.command(Command::SetLog(Some(Arc::new(DirtyLog::new(log.clone()))))).is_ok());
    // Beyond the end of the disk: the device fails each at once.
    for n in 0..COUNT {
        let at = DATA_GPA + n * 64;
        rig.ram.write(at, &header(0, 1 << 20));
        let mut pieces = vec![Piece { addr: at, len: 16, write: false }];
        pieces.extend([Piece { addr: AT, len: LEN as u32 - 512, write: true }; 3]);
        pieces.push(Piece { addr: at + 16, len: 1, write: true });
        rig.driver.add(&pieces).unwrap();
    }
    rig.driver.publish();
    rig.turns(2);
    device.change(|s| s.hold = false);
    let mut turns = Vec::new();
    while turns.iter().sum::<u64>() < COUNT {
        rig.turn();
        let back = std::iter::from_fn(|| rig.driver.pop()).count() as u64;
        if turns.is_empty() {
            let mut byte = [0];
            log.copy_out((AT / PAGE / 8) as usize, &mut byte).unwrap();
            assert_eq!(byte, [0xff], "marked before it is shown");
            assert_eq!(rig.arm(&mut Waits::default()), Armed::Busy, "there is more to do");
        }
        turns.push(back);
        assert!(turns.len() < 100, "{turns:?}");
    }
    assert_eq!(turns[0], 2, "12,288 words each, of 16,384 and what one more costs: {turns:?}");
    assert!(turns.len() >= 6, "{turns:?}");
}

/// The guest's flush on one ring is with the device while the last flush of its other ring finds that something is lost (`owe`). The flush was
/// to cover that as well, and the device says OK to it: the error was given to the other one, once.
#[test]
fn a_flush_under_way_when_a_loss_becomes_known_does_not_succeed() {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, ..Limits::UNLIMITED });
    device.change(|s| s.hold = true);
    let mut rig = Rig::new(device.clone(), SIZE, true);
    rig.ram.write(DATA_GPA, &header(4, 0));
    let pieces = [Piece { addr: DATA_GPA, len: 16, write: false }, Piece { addr: DATA_GPA + 16, len: 1, write: true }];
    rig.driver.add(&pieces).unwrap();
    rig.driver.publish();
    rig.turns(2);
    rig.config.owed.owe();
    device.change(|s| s.hold = false);
    rig.turns(3);
    assert!(rig.driver.pop().is_some());
    assert_eq!(rig.ram.read(DATA_GPA + 16, 1), [1], "the guest believes that what is lost is durable");
}
