//! Requests of the usual shape beside all others: nothing of the one is left behind for the other.

use super::guest::{Piece, header};
use super::ram::{RamDevice, Rng};
use super::*;
use crate::log::DirtyLog;
use polypath_block::{Limits, Op};
use polypath_memory::Region;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

fn ram(fua: bool) -> Arc<RamDevice> {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, fua, ..Limits::UNLIMITED });
    device.change(|s| s.record = true);
    device
}

/// The queue has no room for a write while the guest flushes by itself; it has when the guest does so no more.
#[test]
fn a_write_that_was_refused_is_as_durable_as_the_guest_wants_when_it_is_begun() {
    for fua in [false, true] {
        let device = ram(fua);
        let mut rig = Rig::new(device.clone(), 64, true);
        // The first of its block of heads is not of the usual kind for the ring.
        rig.run(VIRTIO_BLK_T_OUT, 9, &mut [0; 512], false);
        device.change(|s| {
            s.log.clear();
            s.room = 1;
        });
        (0..3).for_each(|place| _ = rig.offer(place, true, 5));
        rig.driver.publish();
        rig.turns(2);
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 1);
        rig.write_through.store(true, Ordering::Relaxed);
        for _ in 0..9 {
            device.change(|s| s.room = 1);
            rig.turn();
            let given_back = std::iter::from_fn(|| rig.driver.pop()).count();
            let log = device.log();
            let durable = log.iter().filter(|(op, flags, ..)| *op == Op::Flush || !flags.is_empty()).count();
            assert!(given_back == 0 || durable > 0, "fua {fua}: {log:?}");
        }
        let log = device.log();
        let durable = log.iter().filter(|(op, flags, ..)| *op == Op::Flush || !flags.is_empty()).count();
        assert_eq!((log.iter().filter(|e| e.0 == Op::Write).count(), durable), (3, 2), "fua {fua}: {log:?}");
        (0..3).for_each(|place| rig.check(place, 5));
    }
}

/// What a queue says of a request that is over, and of heads that never came, is said of nobody.
#[test]
fn a_request_that_completes_twice_is_given_back_once() {
    let device = ram(false);
    let mut rig = Rig::new(device.clone(), 64, true);
    device.change(|s| s.twice = true);
    for round in 0..4u8 {
        for place in 0..4 {
            rig.offer(place, true, round);
        }
        rig.driver.publish();
        rig.turns(2);
        assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 4, "round {round}");
        (0..4).for_each(|place| rig.check(place, round));
    }
    let counted = rig.counters.read();
    assert_eq!((counted.requests, counted.completions, counted.errors), (16, 16, 0));
    assert_eq!(rig.command(Command::Stop { flush: false }), Ok(16));
}

const PLACES: u64 = 14;

/// What was asked for in a place of its own.
#[derive(Clone, Copy, Debug)]
struct Asked {
    head: u16,
    kind: u64,
    /// What the sector has if that succeeds.
    byte: u8,
    status_at: u64,
}

/// A request of any kind in `place`, whose sector has `byte`; now and then its status is in another region.
fn ask(rig: &mut Rig, rng: &mut Rng, place: u64, byte: u8) -> Asked {
    let at = DATA_GPA + place * 0x1000;
    let kind = rng.below(14).saturating_sub(5);
    let status_at = if rng.one_in(4) { LAYOUT[2].0 + place } else { at + 0x800 };
    let piece = |at, len, write| Piece { addr: at, len, write };
    let new = rng.next() as u8;
    rig.ram.write(at + 0x100, &[new; 512]);
    rig.ram.write(status_at, &[0xee]);
    let (code, sector, after, data) = match kind {
        0 if rng.one_in(2) => (VIRTIO_BLK_T_OUT, place, new, vec![piece(at + 0x100, 512, false)]),
        0 | 1 => (VIRTIO_BLK_T_IN, place, byte, vec![piece(at + 0x100, 512, true)]),
        2 => (VIRTIO_BLK_T_OUT, place, new, vec![piece(at + 0x100, 256, false), piece(at + 0x200, 256, false)]),
        3 => (VIRTIO_BLK_T_IN, place, byte, vec![piece(at + 0x100, 256, true), piece(at + 0x200, 256, true)]),
        4 => (VIRTIO_BLK_T_FLUSH, 0, byte, vec![]),
        5 => (VIRTIO_BLK_T_GET_ID, 0, byte, vec![piece(at + 0x100, 20, true)]),
        6 => {
            let range = [&place.to_le_bytes()[..], &1u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
            rig.ram.write(at + 0x100, &range);
            (VIRTIO_BLK_T_DISCARD, 0, 0xdc, vec![piece(at + 0x100, 16, false)])
        }
        // Beyond the end; of a kind that there is not; into what is read.
        7 => (VIRTIO_BLK_T_IN, 64, byte, vec![piece(at + 0x100, 512, true)]),
        8 => (77, place, byte, vec![piece(at + 0x100, 512, true)]),
        _ => (VIRTIO_BLK_T_OUT, place, byte, vec![piece(at + 0x100, 512, true)]),
    };
    rig.ram.write(at, &header(code, sector));
    let pieces = [&[piece(at, 16, false)][..], &data, &[piece(status_at, 1, true)]].concat();
    let kind = if code == VIRTIO_BLK_T_IN && kind <= 3 { 1 } else { kind };
    Asked { head: rig.driver.add(&pieces).expect("room"), kind, byte: after, status_at }
}

/// One is given back: what its sector has now.
fn judge(rig: &Rig, asked: Asked, place: u64, used: u32, fails: bool, before: u8) -> u8 {
    let status = rig.ram.read(asked.status_at, 1)[0];
    match asked.kind {
        7..=9 => assert!(status == 1 || status == 2, "{asked:?}: {status}"),
        _ => assert!(status == 0 || fails && status == 1, "{asked:?}: {status}"),
    }
    if status != 0 {
        // The flush after a change may be what failed.
        let now = rig.device.state.lock().unwrap().bytes[512 * place as usize];
        assert!([before, asked.byte].contains(&now), "{asked:?}");
        return now;
    }
    if asked.kind == 1 {
        let data = rig.ram.read(DATA_GPA + place * 0x1000 + 0x100, 512);
        assert!(data == [asked.byte; 512], "{asked:?}: {:x?}", &data[..1]);
    }
    assert_eq!(used, [1, 513, 1, 513, 1, 21, 1][asked.kind as usize], "{asked:?}");
    asked.byte
}

/// All kinds on the same heads, over a disk that refuses, fails and keeps, with and without a log and write-through.
#[test]
fn any_mix_of_requests_leaves_no_trace_of_one_in_another() {
    for seed in 0..200u64 {
        let mut rng = Rng(seed);
        let device = ram(seed % 3 == 0);
        let fails = seed % 4 == 1;
        let mut rig = Rig::of(seed % 5 == 4, device.clone(), 64, rng.one_in(2));
        device.change(|s| (s.delay, s.refuse, s.rng) = (seed % 3, [0, 3, 9][seed as usize % 3], Rng(seed)));
        device.change(|s| s.fail = if fails { 5 } else { 0 });
        let log = Region::allocate(0x1_0000, false).unwrap();
        let mut places = [(None::<Asked>, 0u8); PLACES as usize];
        let (mut left, mut steps) = (400, 0);
        while left > 0 || places.iter().any(|place| place.0.is_some()) {
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: {places:?} {:?}", rig.counters.read());
            for _ in 0..rng.below(6) {
                let n = rng.below(PLACES);
                let place = &mut places[n as usize];
                if place.0.is_none() && left > 0 {
                    left -= 1;
                    place.0 = Some(ask(&mut rig, &mut rng, n, place.1));
                }
            }
            rig.driver.publish();
            if rng.one_in(10) {
                let (hold, room) = (rng.one_in(2), rng.below(6) as usize);
                device.change(|s| (s.hold, s.room) = (hold, room));
            }
            if left == 0 || rng.one_in(5) {
                device.change(|s| (s.hold, s.room) = (false, usize::MAX));
            }
            if rng.one_in(10) {
                rig.write_through.store(rng.one_in(2), Ordering::Relaxed);
            }
            if rng.one_in(20) {
                let dirty = rng.one_in(2).then(|| Arc::new(DirtyLog::new(log.window(0, 0x1_0000).unwrap())));
                assert!(rig.command(Command::SetLog(dirty)).is_ok());
            }
            if rng.one_in(30) {
                device.change(|s| (s.hold, s.room) = (false, usize::MAX));
                let base = rig.command(Command::Stop { flush: rng.one_in(2) }).unwrap();
                rig.start(base);
            }
            rig.turn();
            while let Some((head, used)) = rig.driver.pop() {
                let at = places.iter().position(|place| place.0.is_some_and(|asked| asked.head == head));
                let at = at.expect("a request that is under way");
                let asked = places[at].0.take().unwrap();
                places[at].1 = judge(&rig, asked, at as u64, used, fails, places[at].1);
            }
        }
        let counted = rig.counters.read();
        assert_eq!((counted.completions, counted.ring_errors), (400, 0), "seed {seed}");
        assert!(rig.command(Command::Stop { flush: false }).is_ok());
        assert_eq!(rig.segs.spans_left(), (1 << 20) / 4 * 3, "seed {seed}: all is given back");
        for (n, (_, byte)) in places.iter().enumerate() {
            assert_eq!(device.state.lock().unwrap().bytes[512 * n..][..512], [*byte; 512], "seed {seed}, place {n}");
        }
    }
}

/// A ring whose first requests have been: those that come next may be taken as nearly all are.
fn warm(device: Arc<RamDevice>, read_only: bool) -> Rig {
    let mut rig = Rig::stopped(device.clone(), 64, true, read_only);
    rig.start(0);
    assert_eq!(rig.run(VIRTIO_BLK_T_IN, 0, &mut [0; 4096], true), (0, 4097));
    device.change(|s| s.log.clear());
    rig
}

/// They have the shape of a read or a write, and are none that can be carried out: never does the device hear of them.
#[test]
fn what_has_the_shape_alone_is_refused_as_it_is_in_any_other() {
    for (block_size, read_only, kind, sector, len, into) in [
        // To a disk that takes no changes.
        (512, true, VIRTIO_BLK_T_OUT, 0, 512, false),
        // Into what is only to be read, and from what is only to be written.
        (512, false, VIRTIO_BLK_T_IN, 0, 512, false),
        (512, false, VIRTIO_BLK_T_OUT, 0, 512, true),
        // Not of whole blocks.
        (512, false, VIRTIO_BLK_T_IN, 0, 513, true),
        (4096, false, VIRTIO_BLK_T_IN, 1, 4096, true),
        (4096, false, VIRTIO_BLK_T_OUT, 7, 4096, false),
        (4096, false, VIRTIO_BLK_T_OUT, 8, 512, false),
        (4096, false, VIRTIO_BLK_T_OUT, 1, 512, false),
    ] {
        let device = RamDevice::new(block_size, 64, Limits::UNLIMITED);
        device.change(|s| s.record = true);
        let mut rig = warm(device.clone(), read_only);
        let mut data = vec![0x5a; len];
        let (status, _) = rig.run(kind, sector, &mut data, into);
        let what = format!("blocks of {block_size}, kind {kind} at {sector}, {len} bytes");
        assert_eq!((status, device.log().len()), (1, 0), "{what}");
        assert_eq!(data, vec![0x5a; len], "{what}");
        let counted = rig.counters.read();
        assert_eq!((counted.completions, counted.ring_errors), (2, 0), "{what}");
    }
}

/// Nothing is asked of a device that is gone, and nobody waits for it.
#[test]
fn of_a_device_that_is_gone_nothing_is_asked() {
    let device = ram(false);
    let mut rig = warm(device.clone(), false);
    device.change(|s| s.gone = true);
    rig.turns(2);
    let heads: Vec<u16> = (0..4).map(|place| rig.offer(place, place % 2 == 0, 1)).collect();
    rig.driver.publish();
    rig.turn();
    assert_eq!(std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head).collect::<Vec<_>>(), heads);
    assert!((0..4).all(|place| rig.ram.read(DATA_GPA + place * 0x1000 + 0x800, 1) == [1]));
    assert!(device.log().is_empty(), "{:?}", device.log());
}

/// Each page that is gone costs the thread a signal and a mapping: a turn that meets one takes no more.
#[test]
fn a_turn_meets_no_more_than_the_pages_of_one_chain_that_are_cut_away() {
    [false, true].into_iter().for_each(cut_away);
}

/// The headers of writes, or of reads.
fn cut_away(reads: bool) {
    const PAGES: u64 = 20;
    let device = ram(false);
    let mut rig = Rig::stopped(device.clone(), 64, true, false);
    let (gpa, len) = (0x400_0000, PAGES << 12);
    let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, len).unwrap();
    let region = Arc::new(Region::from_fd(file.try_clone().unwrap(), 0, len).unwrap());
    rig.memory = Arc::new(rig.memory.with(gpa, 0x7f10_0000_0000, region).unwrap());
    let record = Region::allocate(crate::ring::record_len(64, false), false).unwrap();
    rig.record = record.window(0, record.len());
    rig.start(0);
    rig.run(VIRTIO_BLK_T_OUT, 9, &mut [0; 512], false);
    for n in 0..PAGES {
        let at = gpa + (n << 12);
        let pieces = [(at, 16, false), (DATA_GPA, 512, reads), (at + 16, 1, true)];
        rig.driver.add(&pieces.map(|(addr, len, write)| Piece { addr, len, write })).expect("room");
    }
    rustix::fs::ftruncate(&file, 0).unwrap();
    rig.driver.publish();
    device.change(|s| s.log.clear());
    let before = polypath_memory::losses();
    rig.turns(3);
    let lost = polypath_memory::losses() - before;
    // Other tests may lose a few meanwhile.
    assert!((1..PAGES / 2).contains(&lost), "{lost} pages");
    assert_eq!((rig.counters.read().ring_errors, device.log().len()), (1, 0));
    // `inflight` of each descriptor, after 16 bytes of other things.
    let mut states = vec![0; 16 * 65];
    rig.record.as_ref().expect("a record").copy_out(0, &mut states).unwrap();
    assert!(states.chunks(16).skip(1).all(|state| state[0] == 0), "nothing was taken");
}

/// Regions of memory that touch: the one byte where the next begins is not the one behind the last of the one before.
#[test]
fn a_status_where_the_next_region_begins_is_told() {
    let device = ram(false);
    let mut rig = warm(device, false);
    for (end, kind) in [0x18_0000, 0x18_0000 - 1, 0x20_0000 - 1].into_iter().zip([0, 1, 0]) {
        rig.ram.write(DATA_GPA, &header(kind, 3));
        rig.ram.write(end, &[0xee]);
        let pieces = [(DATA_GPA, 16, false), (DATA_GPA + 0x100, 512, kind == 0), (end, 1, true)];
        let used = rig.run_pieces(&pieces.map(|(addr, len, write)| Piece { addr, len, write }));
        assert_eq!((used, rig.ram.read(end, 1)), (Some(if kind == 0 { 513 } else { 1 }), vec![0]), "{end:#x}");
    }
}

/// Indices that go round, in rings of any size, with the chains in tables or in the ring, over a queue that refuses.
#[test]
fn rings_of_any_size_go_round() {
    const BASE: u16 = 65_490;
    for (size, refuse, recorded) in [(1, 0), (2, 3), (4, 3), (64, 0), (64, 3), (1024, 3)]
        .into_iter()
        .flat_map(|(size, refuse)| [false, true].map(|recorded| (size, refuse, recorded)))
    {
        let what = format!("{size} descriptors, refuses one in {refuse}, recorded: {recorded}");
        let device = ram(false);
        device.change(|s| (s.refuse, s.delay) = (refuse, 2));
        let mut rig = Rig::stopped(device.clone(), size, true, false);
        let record = Region::allocate(crate::ring::record_len(size, false), false).unwrap();
        rig.record = recorded.then(|| record.window(0, record.len()).unwrap());
        (rig.driver.avail_idx, rig.driver.used_idx) = (BASE, BASE);
        rig.driver.publish();
        rig.driver.used.store_u16(2, BASE, Ordering::Relaxed).unwrap();
        rig.start(BASE.into());
        let mut rng = Rng(size.into());
        let (mut places, mut done, mut writes) = ([(None::<u16>, 0u8); PLACES as usize], 0u64, 0);
        for _ in 0..5000 {
            let n = rng.below(PLACES);
            let place = &mut places[n as usize];
            let is_write = rng.one_in(2);
            let at = DATA_GPA + n * 0x1000;
            let piece = |at, len, write| Piece { addr: at, len, write };
            let pieces = [piece(at, 16, false), piece(at + 0x100, 512, !is_write), piece(at + 0x800, 1, true)];
            if place.0.is_none() && done < 200 {
                let byte = if is_write { place.1.wrapping_add(1) } else { place.1 };
                rig.ram.write(at, &header(u32::from(is_write), n));
                rig.ram.write(at + 0x100, &[if is_write { byte } else { !byte }; 512]);
                rig.ram.write(at + 0x800, &[0xee]);
                let head = match size > 2 && rng.one_in(2) {
                    true => rig.driver.add(&pieces),
                    false => rig.driver.add_indirect(&rig.ram, &pieces, 0, at + 0x900),
                };
                if head.is_some() {
                    (*place, writes) = ((head, byte), writes + usize::from(is_write));
                }
            }
            if rng.one_in(3) {
                rig.driver.publish();
                rig.turn();
            }
            while let Some((head, used)) = rig.driver.pop() {
                let n = places.iter().position(|place| place.0 == Some(head)).expect("one that is under way");
                assert!(used == 1 || used == 513, "{what}");
                rig.check(n as u64, places[n].1);
                (places[n].0, done) = (None, done + 1);
            }
        }
        assert!(done >= 200 && places.iter().all(|place| place.0.is_none()), "{what}: {done} {places:?}");
        assert_eq!(device.log().iter().filter(|e| e.0 == Op::Write).count(), writes, "{what}");
        assert_eq!(rig.command(Command::Stop { flush: false }), Ok(BASE.wrapping_add(done as u16).into()), "{what}");
        assert_eq!((rig.counters.read().completions, rig.counters.read().errors), (done, 0), "{what}");
    }
}

/// Data that end where a region ends, or a byte before or behind that.
#[test]
fn data_where_regions_touch_are_all_carried() {
    let mut rig = warm(ram(false), false);
    for before in [1, 510, 511, 512, 513] {
        let at = 0x18_0000 - before;
        for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_IN] {
            let is_read = kind == VIRTIO_BLK_T_IN;
            rig.ram.write(DATA_GPA, &header(kind, 3));
            rig.ram.write(DATA_GPA + 16, &[0xee]);
            let data: Vec<u8> = (0..512).map(|n| if is_read { 0 } else { (n + before) as u8 }).collect();
            rig.ram.write(at, &data);
            let pieces = [(DATA_GPA, 16, false), (at, 512, is_read), (DATA_GPA + 16, 1, true)];
            rig.run_pieces(&pieces.map(|(addr, len, write)| Piece { addr, len, write })).expect("given back");
            assert_eq!(rig.ram.read(DATA_GPA + 16, 1), [0], "{before} bytes before the end, kind {kind}");
        }
        let expected: Vec<u8> = (0..512).map(|n| (n + before) as u8).collect();
        assert_eq!(rig.ram.read(at, 512), expected, "{before} bytes before the end");
    }
}
