//! What is looked at before its turn: the same as what is read in its turn, and no later word of the guest's.

use super::guest::{INDIRECT, NEXT, WRITE, header, put_desc};
use super::ram::{RamDevice, Rng};
use super::*;
use crate::ring::{Chain, RingError};
use polypath_block::{Limits, Segment};
use proptest::prelude::*;
use std::cell::Cell;
use std::sync::atomic::Ordering;

fn rig(size: u16) -> Rig {
    Rig::stopped(RamDevice::new(512, 2048, Limits::UNLIMITED), size, true, false)
}

/// A read in the usual shape in descriptors `first` to `first + 2`, its data at `data`.
fn usual(rig: &mut Rig, first: u16, data: u64) {
    let meta = DATA_GPA + 64 * u64::from(first);
    rig.ram.write(meta, &header(0, first.into()));
    rig.driver.set_desc(first, meta, 16, NEXT, first + 1);
    rig.driver.set_desc(first + 1, data, 512, NEXT | WRITE, first + 2);
    rig.driver.set_desc(first + 2, meta + 16, 1, WRITE, 0);
    rig.driver.offer(first);
}

/// Takes a chain as the poller does, its data in `row`, and says whether it was of the usual shape.
fn take(ring: &mut Vring, row: &mut [Segment]) -> Result<(u16, Chain, bool), RingError> {
    let mut first = None;
    let taken = ring.take_plain(|plain| {
        let takes = first.is_none() && !row.is_empty();
        first = first.or(takes.then_some(*plain));
        takes
    });
    assert_eq!(taken, first.iter().len() as u16);
    let Some(plain) = first else {
        let head = ring.take()?;
        return Ok((head, ring.read_chain(head, row)?, false));
    };
    row[0] = plain.data;
    let (into, len) = (u32::from(plain.into), u64::from(plain.data.len));
    let chain = Chain {
        kind: plain.kind,
        sector: plain.sector,
        out_count: 1 - into,
        in_count: into,
        out_len: if plain.into { 0 } else { len },
        in_len: if plain.into { len } else { 0 },
        status: plain.status,
        fault: None,
    };
    Ok((plain.head, chain, true))
}

thread_local! {
    static SEEN: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// Descriptors as they should be, now and then with something else in them.
fn descriptors(rng: &mut Rng, spoil: u64, first: u16, size: u16) -> Vec<(u64, u32, u16, u16)> {
    let addrs =
        [DATA_GPA, DATA_GPA + 0x108, 0x17_fff8, 0x17_fe00, 0x18_0000, 0x100_0000, 0x107_ff00, 0x20_0000, u64::MAX - 20];
    let at = |rng: &mut Rng, fallback: u64| {
        let wild = rng.one_in(spoil);
        if wild { addrs[rng.below(addrs.len() as u64) as usize] + rng.below(9) } else { fallback }
    };
    let write = if rng.one_in(2) { WRITE } else { 0 };
    let near = |n: u64| DATA_GPA + 0x400 * u64::from(first) + n;
    let mut descs = vec![
        (at(rng, near(0)), 16, NEXT, first + 1),
        (at(rng, near(0x100)), 512, NEXT | write, first + 2),
        (at(rng, near(0x40)), 1, WRITE, 0),
    ];
    for (_, len, flags, next) in &mut descs {
        if rng.one_in(spoil) {
            *len = [0, 1, 2, 15, 16, 17, 48, 512, 0x8_0000, u32::MAX][rng.below(10) as usize];
        }
        if rng.one_in(spoil) {
            *flags ^= 1 << rng.below(4);
        }
        if rng.one_in(spoil) {
            *next = rng.below(u64::from(size) + 2) as u16;
        }
    }
    descs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the guest puts in its ring.
    #[test]
    fn what_is_read_ahead_is_what_a_walk_reads(
        seed: u64,
        size in prop::sample::select(vec![1u16, 2, 4, 16]),
        indirect: bool,
        room in 0usize..4,
    ) {
        let mut rng = Rng(seed);
        let mut rig = rig(size);
        rig.ram.write(DATA_GPA, &rng.next().to_le_bytes().repeat(64));
        let spoil = [6, 30, 1000][rng.below(3) as usize];
        let count = rng.below(u64::from(size)) as u16 + 1;
        for n in 0..count {
            let in_table = rng.one_in(3);
            let first = if in_table { 0 } else { 3 * n };
            let descs = descriptors(&mut rng, spoil, first, if in_table { 3 } else { size });
            for (n, &(addr, len, flags, next)) in (first..).zip(&descs) {
                match in_table {
                    true => put_desc(&rig.ram.regions[2].window, 16 * usize::from(n), addr, len, flags, next),
                    false if n < size => rig.driver.set_desc(n, addr, len, flags, next),
                    false => {}
                }
            }
            let mut head = first;
            if in_table {
                head = n % size;
                let len = if rng.one_in(spoil) { [16, 32, 64, 47][rng.below(4) as usize] } else { 48 };
                let flags = if rng.one_in(spoil) { INDIRECT | NEXT } else { INDIRECT };
                rig.driver.set_desc(head, 0x100_0000, len, flags, 0);
            }
            rig.driver.offer(if rng.one_in(spoil) { rng.below(20) as u16 } else { head });
        }
        rig.driver.publish();
        let spec = || RingSpec { indirect, ..rig.spec(0) };
        let mut ahead = Vring::new(spec(), rig.memory.clone()).unwrap();
        let mut walk = Vring::new(spec(), rig.memory.clone()).unwrap();
        prop_assert_eq!(ahead.look_ahead(64), Ok(count));
        prop_assert_eq!(walk.has_chain(), Ok(true));
        let (mut all, mut plain) = SEEN.get();
        for _ in 0..count {
            let (mut here, mut there) = (vec![Segment::default(); room], vec![Segment::default(); room]);
            let got = take(&mut ahead, &mut here);
            let expected = walk.take().and_then(|head| Ok((head, walk.read_chain(head, &mut there)?)));
            prop_assert_eq!(got.map(|(head, chain, _)| (head, chain)), expected);
            let Ok((_, chain, is_plain)) = got else { break };
            (all, plain) = (all + 1, plain + u32::from(is_plain));
            if chain.fault.is_none() {
                let n = (chain.out_count + chain.in_count) as usize;
                prop_assert_eq!(&here[..n], &there[..n]);
            }
        }
        SEEN.set((all, plain));
        // Both kinds must have been met, lest this says nothing.
        prop_assert!(all < 1000 || plain > all / 10 && plain < all * 9 / 10, "{} of {} were of the usual shape", plain, all);
    }
}

/// A ring with two chains of the usual shape, and a row for their segments.
fn with_two() -> (Rig, Vring, [Segment; 4]) {
    let mut rig = rig(16);
    usual(&mut rig, 0, DATA_GPA + 0x1000);
    usual(&mut rig, 3, DATA_GPA + 0x2000);
    rig.driver.publish();
    let ring = rig.ring(0);
    (rig, ring, [Segment::default(); 4])
}

#[test]
fn what_the_guest_says_after_the_look_changes_nothing() {
    let (rig, mut ring, mut row) = with_two();
    assert_eq!(ring.look_ahead(64), Ok(2));
    // Another head, other data, a status that is nowhere.
    rig.driver.avail.store_u16(4, 9, Ordering::Relaxed).unwrap();
    rig.driver.set_desc(1, 0x20_0000, 512, NEXT | WRITE, 2);
    rig.driver.set_desc(2, 0x20_0000, 1, WRITE, 0);
    let (head, chain, is_plain) = take(&mut ring, &mut row).unwrap();
    assert_eq!((head, is_plain, chain.fault, chain.in_len), (0, true, None, 512));
    assert_eq!(row[0], Segment { offset: 0x1_1000, region: rig.ram.regions[0].region.id(), len: 512 });
}

#[test]
fn the_index_is_looked_at_once_and_what_came_since_is_for_the_next_look() {
    for packed in [false, true] {
        let mut rig = rig(16);
        if packed {
            rig.driver = Driver::packed(&rig.ram, RING_GPA, 16, true);
        }
        let pieces = [
            Piece { addr: DATA_GPA, len: 16, write: false },
            Piece { addr: DATA_GPA + 0x1000, len: 512, write: true },
            Piece { addr: DATA_GPA + 16, len: 1, write: true },
        ];
        let (mut ring, mut row) = (rig.ring(rig.driver.base()), [Segment::default(); 4]);
        assert_eq!(ring.look_ahead(64), Ok(0), "packed: {packed}");
        let heads = [rig.driver.add(&pieces).unwrap(), rig.driver.add(&pieces).unwrap()];
        rig.driver.publish();
        assert_eq!(ring.look_ahead(1), Ok(1), "packed: {packed}: no more than asked for");
        assert_eq!(ring.look_ahead(64), Ok(2), "packed: {packed}: nothing is taken by a look");
        let late = rig.driver.add(&pieces).unwrap();
        rig.driver.publish();
        let mut next = || take(&mut ring, &mut row).unwrap().0;
        assert_eq!([next(), next()], heads, "packed: {packed}");
        assert_eq!(ring.look_ahead(64), Ok(1), "packed: {packed}");
        assert_eq!(take(&mut ring, &mut row).unwrap().0, late, "packed: {packed}");
        assert_eq!(ring.look_ahead(64), Ok(0), "packed: {packed}");
    }
}

#[test]
fn what_is_put_back_or_behind_other_memory_is_looked_at_again() {
    let (rig, mut ring, mut row) = with_two();
    assert_eq!(ring.look_ahead(64), Ok(2));
    assert_eq!(take(&mut ring, &mut row).unwrap().0, 0);
    assert!(ring.put_back(0));
    assert_eq!(ring.has_chain(), Ok(true));
    assert_eq!(take(&mut ring, &mut row).unwrap().0, 0, "the one that was put back, and not the one after it");
    assert!(ring.put_back(0));
    assert_eq!(ring.look_ahead(64), Ok(2));
    // A region before all others: every index of a region is another one.
    let low = GuestRam::new(&[(0x1000, 0x2_0000)]);
    let memory = rig.memory.with(0x1000, 0x1000, low.regions[0].region.clone()).unwrap();
    ring.set_memory(Arc::new(memory));
    let (head, chain, is_plain) = take(&mut ring, &mut row).unwrap();
    assert_eq!((head, is_plain, chain.sector), (0, false, 0));
    assert_eq!(row[0].region, rig.ram.regions[0].region.id());
    assert_eq!(take(&mut ring, &mut row).unwrap().0, 3, "nor is the one after it taken from what was known");
}

/// A look begins in the region where the one before it ended.
#[test]
fn a_look_that_begins_in_another_region_than_the_last_finds_its_headers() {
    let metas = [DATA_GPA, 0x100_0000, DATA_GPA + 0x40, 0x18_0000, 0x100_0040, 0x18_0040, DATA_GPA + 0x80];
    for together in 1..=metas.len() {
        let mut rig = rig(32);
        for (n, meta) in (0..).zip(metas) {
            rig.ram.write(meta, &header(0, 100 + n));
            let (first, data) = (3 * n as u16, metas[(n as usize + together) % metas.len()] + 0x1000);
            rig.driver.set_desc(first, meta, 16, NEXT, first + 1);
            rig.driver.set_desc(first + 1, data, 512, NEXT | WRITE, first + 2);
            rig.driver.set_desc(first + 2, meta + 16, 1, WRITE, 0);
            rig.driver.offer(first);
        }
        rig.driver.publish();
        let (mut ring, mut walk, mut row) = (rig.ring(0), rig.ring(0), [Segment::default(); 4]);
        for n in 0..metas.len() {
            if n % together == 0 {
                assert_eq!(ring.look_ahead(together as u16), Ok(together.min(metas.len() - n) as u16));
            }
            let (_, chain, is_plain) = take(&mut ring, &mut row).unwrap();
            assert_eq!((chain.sector, is_plain), (100 + n as u64, true), "{n}, {together} at a time");
            let mut there = row;
            assert_eq!(walk.has_chain(), Ok(true));
            let expected = walk.take().and_then(|head| walk.read_chain(head, &mut there));
            assert_eq!((Ok(chain), row), (expected, there), "{n}, {together} at a time");
        }
    }
}

#[test]
fn what_was_not_looked_at_is_read_in_its_turn() {
    let (_rig, mut ring, mut row) = with_two();
    assert_eq!(ring.look_ahead(1), Ok(1));
    assert_eq!(
        take(&mut ring, &mut row).map(|(head, chain, is_plain)| (head, chain.sector, is_plain)),
        Ok((0, 0, true))
    );
    assert_eq!(
        take(&mut ring, &mut row).map(|(head, chain, is_plain)| (head, chain.sector, is_plain)),
        Ok((3, 3, false))
    );
    assert_eq!(row[0].offset, 0x1_2000);
}

/// Each page that is gone costs the thread a signal and a mapping.
#[test]
fn a_look_at_tables_that_are_cut_away_costs_no_page_for_each() {
    const TABLES: u64 = 64;
    let mut rig = rig(256);
    let (gpa, len) = (0x400_0000, TABLES << 12);
    let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, len).unwrap();
    let region = Arc::new(polypath_memory::Region::from_fd(file.try_clone().unwrap(), 0, len).unwrap());
    rig.memory = Arc::new(rig.memory.with(gpa, 0x7f00_0000_0000, region).unwrap());
    for n in 0..TABLES {
        rig.driver.set_desc(n as u16, gpa + (n << 12), 48, INDIRECT, 0);
        rig.driver.offer(n as u16);
    }
    rig.driver.publish();
    let mut ring = rig.ring(0);
    rustix::fs::ftruncate(&file, 0).unwrap();
    let before = polypath_memory::losses();
    assert_eq!(ring.look_ahead(64), Ok(64));
    let lost = polypath_memory::losses() - before;
    // One is needed to find out; other tests may lose a few meanwhile.
    assert!((1..TABLES / 2).contains(&lost), "{lost} pages");
}

#[test]
fn a_packed_chain_without_an_end_ends_the_look() {
    let mut rig = rig(4);
    rig.driver = Driver::packed(&rig.ram, RING_GPA, 4, true);
    let available = 1 << 7;
    (0..4).for_each(|n| rig.driver.set_desc(n, DATA_GPA, 16, 0, NEXT | available));
    for n in 0..4 {
        let at = 16 * n + 12;
        rig.driver.desc.store_u16(at, 0, Ordering::Relaxed).unwrap();
        rig.driver.desc.store_u16(at + 2, NEXT | available, Ordering::Release).unwrap();
    }
    let mut ring = rig.ring(rig.driver.base());
    assert_eq!(ring.look_ahead(64), Ok(1));
    assert!(matches!(ring.take(), Err(RingError::Loop { .. })));
}

/// The queue refuses in the middle of what was looked at: all of it is submitted in the order of the ring, and once.
#[test]
fn a_queue_with_little_room_gets_a_batch_in_order() {
    let device = RamDevice::new(512, 2048, Limits::UNLIMITED);
    device.change(|s| (s.record, s.refuse) = (true, 3));
    let mut rig = Rig::new(device.clone(), 256, true);
    let mut done = Vec::new();
    for round in 0..4u64 {
        let heads: Vec<u16> = (0..80)
            .map(|n| {
                let (kind, meta) = ((round + n) % 2, DATA_GPA + 64 * n);
                rig.ram.write(meta, &header(kind as u32, 80 * round + n));
                rig.ram.write(meta + 16, &[0xee]);
                let data = Piece { addr: 0x100_0000 + 512 * n, len: 512, write: kind == 0 };
                let status = Piece { addr: meta + 16, len: 1, write: true };
                rig.driver.add(&[Piece { addr: meta, len: 16, write: false }, data, status]).expect("room")
            })
            .collect();
        rig.driver.publish();
        done.clear();
        for _ in 0..1000 {
            rig.turn();
            done.extend(std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head));
        }
        done.sort_unstable();
        let mut expected = heads.clone();
        expected.sort_unstable();
        assert_eq!(done, expected, "each once");
        assert!((0..80).all(|n| rig.ram.read(DATA_GPA + 64 * n + 16, 1) == [0]));
    }
    let submitted: Vec<u64> = device.state.lock().unwrap().log.iter().map(|&(_, _, lba, _)| lba).collect();
    assert_eq!(submitted, (0..320).collect::<Vec<_>>());
    let counted = rig.counters.read();
    assert_eq!((counted.requests, counted.completions, counted.errors), (320, 320, 0));
}
