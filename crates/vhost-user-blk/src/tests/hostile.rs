//! Guests that mean harm: whatever they put in memory costs them one request or their ring, and never a panic.

use super::guest::{INDIRECT, NEXT, Piece, WRITE, header};
use super::ram::{RamDevice, Rng};
use super::*;
use polypath_block::Limits;
use std::sync::atomic::Ordering;

fn rig() -> Rig {
    let mut rig = Rig::new(RamDevice::new(512, 2048, Limits::UNLIMITED), 16, true);
    rig.ram.write(DATA_GPA, &header(4, 0));
    rig.turn();
    rig
}

const STATUS: u64 = DATA_GPA + 0x800;

/// Makes head 0 available and says whether the ring was stopped for it.
fn breaks(rig: &mut Rig, what: &str) {
    rig.driver.offer(0);
    rig.driver.publish();
    rig.turns(3);
    let s = rig.counters.read();
    assert_eq!(s.ring_errors, 1, "{what}: the ring must be stopped");
    assert!(Rig::rang(&rig.err), "{what}: the front-end must be told");
    assert_eq!(rig.driver.used.load_u16(2, Ordering::Acquire), Ok(0), "{what}: nothing is given back");
    // It stays stopped, sleeps, and can be started anew.
    let mut waits = Waits::default();
    assert_eq!(rig.arm(&mut waits), Armed::Sleep, "{what}");
    rig.command(Command::Stop { flush: false }).unwrap();
}

#[test]
fn broken_chains_stop_the_ring() {
    type Break = fn(&mut Rig);
    let cases: [(&str, Break); 15] = [
        ("chain that points to itself", |r| r.driver.set_desc(0, DATA_GPA, 16, NEXT, 0)),
        ("chain of two that loops", |r| {
            r.driver.set_desc(0, DATA_GPA, 16, NEXT, 1);
            r.driver.set_desc(1, STATUS, 1, NEXT | WRITE, 0);
        }),
        ("next beyond the table", |r| r.driver.set_desc(0, DATA_GPA, 16, NEXT, 16)),
        ("next far beyond the table", |r| r.driver.set_desc(0, DATA_GPA, 16, NEXT, 0xffff)),
        ("no status", |r| r.driver.set_desc(0, DATA_GPA, 16, 0, 0)),
        ("empty status", |r| {
            r.driver.set_desc(0, DATA_GPA, 16, NEXT, 1);
            r.driver.set_desc(1, STATUS, 0, WRITE, 0);
        }),
        ("status outside memory", |r| {
            r.driver.set_desc(0, DATA_GPA, 16, NEXT, 1);
            r.driver.set_desc(1, 0x20_0000, 1, WRITE, 0);
        }),
        ("status that wraps", |r| {
            r.driver.set_desc(0, DATA_GPA, 16, NEXT, 1);
            r.driver.set_desc(1, u64::MAX, 2, WRITE, 0);
        }),
        ("table outside memory", |r| r.driver.set_desc(0, 0x20_0000, 32, INDIRECT, 0)),
        ("table cut by the end of memory", |r| {
            let end = 0x100_0000 + 0x8_0000;
            r.ram.write(end - 16, &[0; 16]);
            super::guest::put_desc(&r.ram.regions[2].window, 0x8_0000 - 16, DATA_GPA, 16, NEXT, 1);
            r.driver.set_desc(0, end - 16, 32, INDIRECT, 0);
        }),
        ("table of a crooked length", |r| r.driver.set_desc(0, DATA_GPA, 33, INDIRECT, 0)),
        ("table of no length", |r| r.driver.set_desc(0, DATA_GPA, 0, INDIRECT, 0)),
        ("huge table", |r| r.driver.set_desc(0, DATA_GPA, 0xffff_fff0, INDIRECT, 0)),
        ("table with a next", |r| r.driver.set_desc(0, DATA_GPA, 32, INDIRECT | NEXT, 1)),
        ("table in a table", |r| {
            super::guest::put_desc(&r.ram.regions[2].window, 0, DATA_GPA, 16, INDIRECT, 0);
            r.driver.set_desc(0, 0x100_0000, 16, INDIRECT, 0);
        }),
    ];
    for (what, break_it) in cases {
        let mut rig = rig();
        break_it(&mut rig);
        breaks(&mut rig, what);
        rig.driver = Driver::new(&rig.ram, RING_GPA, 16, true);
        rig.driver.avail_idx = 1;
        rig.driver.publish();
        rig.start(1);
        assert_eq!(rig.run(4, 0, &mut [], false), (0, 1), "{what}: a new start runs");
    }
}

#[test]
fn looping_tables_stop_the_ring() {
    for (next, what) in [(0u16, "itself"), (9, "beyond it")] {
        let mut rig = rig();
        super::guest::put_desc(&rig.ram.regions[2].window, 0, DATA_GPA, 16, NEXT, next);
        rig.driver.set_desc(0, 0x100_0000, 32, INDIRECT, 0);
        breaks(&mut rig, what);
    }
}

#[test]
fn absurd_indices_stop_the_ring() {
    let mut rig = rig();
    rig.driver.avail.store_u16(2, 17, Ordering::Release).unwrap();
    rig.turns(2);
    assert_eq!(rig.counters.read().ring_errors, 1, "an index that jumps");
    let mut rig = self::rig();
    rig.driver.offer(16);
    rig.driver.publish();
    rig.turns(2);
    assert_eq!(rig.counters.read().ring_errors, 1, "a head beyond the table");
    let mut rig = self::rig();
    rig.device.change(|s| s.hold = true);
    rig.driver.set_desc(0, DATA_GPA, 16, NEXT, 1);
    rig.driver.set_desc(1, STATUS, 1, WRITE, 0);
    rig.driver.offer(0);
    rig.driver.offer(0);
    rig.driver.publish();
    rig.turns(2);
    assert_eq!(rig.counters.read().ring_errors, 1, "a head that is in flight");
    rig.device.change(|s| s.hold = false);
    rig.turns(2);
    assert_eq!(rig.driver.used.load_u16(2, Ordering::Acquire), Ok(1), "what was accepted still completes");
}

#[test]
fn bad_requests_are_answered_and_the_ring_goes_on() {
    let hole = 0x20_0000;
    let p = |addr, len, write| Piece { addr, len, write };
    let (h, s) = (p(DATA_GPA, 16, false), p(STATUS, 1, true));
    let many: Vec<Piece> = (0..14).map(|i| p(DATA_GPA + 0x1000 + i * 0x400, 0x200, true)).collect();
    let cases: [(&str, Vec<Piece>); 9] = [
        ("data outside memory", vec![h, p(hole, 512, true), s]),
        ("data that runs out of memory", vec![h, p(hole - 256, 512, true), s]),
        ("data that wraps", vec![h, p(u64::MAX - 10, 512, false), s]),
        ("huge data", vec![h, p(DATA_GPA, u32::MAX, true), p(DATA_GPA, u32::MAX, true), s]),
        ("header outside memory", vec![p(hole, 16, false), s]),
        ("header that wraps", vec![p(u64::MAX - 3, 16, false), s]),
        ("short header", vec![p(DATA_GPA, 15, false), s]),
        ("no header", vec![s]),
        ("readable after writable", vec![h, p(DATA_GPA + 0x1000, 512, true), p(DATA_GPA, 512, false), s]),
    ];
    for (what, pieces) in cases {
        let mut rig = rig();
        rig.ram.write(DATA_GPA, &header(0, 0));
        rig.ram.write(STATUS, &[0xee]);
        assert!(rig.run_pieces(&pieces).is_some(), "{what}: must come back");
        assert_eq!(rig.ram.read(STATUS, 1), [1], "{what}: with an error");
        assert_eq!(rig.counters.read().bad_requests, 1, "{what}");
        assert_eq!(rig.run(4, 0, &mut [], false), (0, 1), "{what}: the ring goes on");
    }
    let mut rig = rig();
    let pieces: Vec<Piece> = [h].into_iter().chain(many.iter().copied()).collect();
    let longest: Vec<Piece> = [h].into_iter().chain(many.iter().cycle().take(40).copied()).chain([s]).collect();
    rig.ram.write(DATA_GPA, &header(0, 0));
    assert!(rig.run_pieces(&pieces).is_some());
    let head = rig.driver.add_indirect(&rig.ram, &longest, 0, DATA_GPA + 0x8000).unwrap();
    rig.driver.publish();
    rig.ram.write(STATUS, &[0xee]);
    assert!(rig.wait_for(head).is_some(), "too many segments must come back");
    assert_eq!(rig.ram.read(STATUS, 1), [1]);
}

/// Random octets in the rings and tables: no panic, no runaway, and other rings work on.
#[test]
fn random_rings_never_panic() {
    for seed in 0..400u64 {
        let mut rng = Rng(seed);
        let mut rig = rig();
        rig.device.change(|s| (s.delay, s.refuse) = (3, 3));
        for _ in 0..40 {
            for index in 0..16 {
                let addr = match rng.below(4) {
                    0 => rng.next(),
                    1 => RING_GPA + rng.below(0x400),
                    2 => 0x1f_ff00 + rng.below(0x200),
                    _ => DATA_GPA + rng.below(0x2000),
                };
                let len = if rng.one_in(3) { rng.next() as u32 } else { rng.below(600) as u32 };
                let (flags, next) = (rng.below(8) as u16, rng.below(20) as u16);
                rig.driver.set_desc(index, addr, len, flags, next);
            }
            rig.ram.write(DATA_GPA, &header(rng.below(16) as u32, rng.below(4096)));
            let bytes: Vec<u8> = (0..256).map(|_| rng.next() as u8).collect();
            rig.ram.write(DATA_GPA + rng.below(0x1000), &bytes);
            for _ in 0..rng.below(4) {
                rig.driver.offer(rng.below(17) as u16);
            }
            rig.driver.publish();
            rig.turns(4);
            if rig.counters.read().ring_errors > 0 {
                break;
            }
        }
        rig.device.change(|s| (s.delay, s.refuse) = (0, 0));
        rig.command(Command::Stop { flush: false }).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let s = rig.counters.read();
        assert!(s.completions <= s.requests && s.requests - s.completions <= 1, "seed {seed}: {s:?}");
    }
}

/// The front-end truncates the file of one region, but not the one that holds the ring: requests whose data was there must not
/// go on to write zeroes.
#[test]
fn memory_that_is_cut_away_stops_the_ring() {
    let mut rig = rig();
    let gpa = 0x400_0000;
    let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 0x10000).unwrap();
    let region = Arc::new(polypath_memory::Region::from_fd(file.try_clone().unwrap(), 0, 0x10000).unwrap());
    let memory = rig.memory.with(gpa, 0x7f00_0000_0000, region).unwrap();
    rig.command(Command::SetMemory(Arc::new(memory))).unwrap();
    let pieces = [
        Piece { addr: DATA_GPA, len: 16, write: false },
        Piece { addr: gpa, len: 512, write: false },
        Piece { addr: STATUS, len: 1, write: true },
    ];
    rig.ram.write(DATA_GPA, &header(1, 0));
    assert!(rig.run_pieces(&pieces).is_some());
    assert_eq!(rig.ram.read(STATUS, 1), [0], "a write from memory that is there");
    rustix::fs::ftruncate(&file, 0).unwrap();
    // One that was taken before anybody noticed may still complete; no more after that.
    rig.run_pieces(&pieces);
    rig.turns(2);
    assert_eq!(rig.counters.read().ring_errors, 1);
    let before = rig.device.log().len();
    assert!(rig.run_pieces(&pieces).is_none(), "nothing more is taken");
    assert_eq!(rig.device.log().len(), before);
}

/// A packed ring has as many requests in flight as its descriptors make, also where nobody records them: a guest that offers the same
/// descriptors again while they are in flight gets no further, and above all does not end the process.
#[test]
fn descriptors_of_a_packed_ring_that_are_in_flight_are_not_taken_again() {
    const SIZE: u16 = 1024;
    const LAPS: u16 = 66;
    let device = RamDevice::new(512, 2048, Limits::UNLIMITED);
    let mut rig = Rig::of(true, device.clone(), SIZE, true);
    device.change(|s| s.hold = true);
    rig.ram.write(DATA_GPA, &header(4, 0));
    let put = |rig: &Rig, index: u16, (addr, len, id, flags): (u64, u32, u16, u16)| {
        let at = 16 * usize::from(index);
        rig.driver.desc.store_u64(at, addr, Ordering::Relaxed).unwrap();
        rig.driver.desc.store_u32(at + 8, len, Ordering::Relaxed).unwrap();
        rig.driver.desc.store_u16(at + 12, id, Ordering::Relaxed).unwrap();
        rig.driver.desc.store_u16(at + 14, flags, Ordering::Release).unwrap();
    };
    for index in 1..SIZE - 1 {
        put(&rig, index, (DATA_GPA, 0, 0, NEXT));
    }
    for lap in 0..LAPS {
        // One chain of all descriptors, each time under another name.
        put(&rig, SIZE - 1, (STATUS, 1, lap, WRITE));
        put(&rig, 0, (DATA_GPA, 16, 0, NEXT | if lap % 2 == 0 { 1 << 7 } else { 1 << 15 }));
        rig.turns(2);
    }
    let taken = rig.counters.read();
    device.change(|s| s.hold = false);
    rig.turns(3);
    assert_eq!((taken.requests, taken.ring_errors), (1, 1), "more in flight than the ring holds");
}
