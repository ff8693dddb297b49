//! What requests do: every type, every framing, every limit.

use super::guest::{Piece, header};
use super::ram::{RamDevice, Rng};
use super::*;
use polypath_block::{Flags, Limits, Op};
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_blk::*;

const IN: u32 = VIRTIO_BLK_T_IN;
const OUT: u32 = VIRTIO_BLK_T_OUT;
const FLUSH: u32 = VIRTIO_BLK_T_FLUSH;

fn ram() -> Arc<RamDevice> {
    RamDevice::new(512, 2048, Limits::UNLIMITED)
}

#[test]
fn reads_what_was_written() {
    let mut rig = Rig::new(ram(), 16, true);
    let mut data: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
    let written = data.clone();
    assert_eq!(rig.run(OUT, 8, &mut data, false), (0, 1));
    data.fill(0);
    assert_eq!(rig.run(IN, 8, &mut data, true), (0, 4097));
    assert_eq!(data, written);
    assert_eq!(rig.run(FLUSH, 0, &mut [], false), (0, 1));
    let s = rig.counters.read();
    assert_eq!((s.requests, s.completions, s.bad_requests, s.errors), (3, 3, 0, 0));
    assert!(s.running);
}

#[test]
fn identifies_itself() {
    let mut rig = Rig::new(ram(), 16, false);
    let mut id = [0xff; 24];
    assert_eq!(rig.run(VIRTIO_BLK_T_GET_ID, 0, &mut id, true), (0, 21));
    assert_eq!(&id[..20], b"a serial of 20 bytes");
    assert_eq!(id[20..], [0xff; 4]);
    let mut short = [0; 4];
    assert_eq!(rig.run(VIRTIO_BLK_T_GET_ID, 0, &mut short, true), (0, 5));
    assert_eq!(&short, b"a se");
}

#[test]
fn refuses_what_it_does_not_do() {
    let limits = Limits { max_discard_blocks: 0, max_write_zeroes_blocks: 0, ..Limits::UNLIMITED };
    let mut rig = Rig::new(RamDevice::new(512, 2048, limits), 16, true);
    for kind in [2, 3, 14, 15, 0x8000_0000, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(rig.run(kind, 0, &mut [0; 16], false).0, 2, "type {kind}");
    }
    // Beyond the end, a length that is no block, nothing at all, a sector that wraps: errors of the request alone.
    assert_eq!(rig.run(IN, 2048, &mut [0; 512], true), (1, 513));
    assert_eq!(rig.run(IN, 2047, &mut [0; 1024], true).0, 1);
    assert_eq!(rig.run(IN, 0, &mut [0; 511], true).0, 1);
    assert_eq!(rig.run(IN, 0, &mut [], true).0, 1);
    assert_eq!(rig.run(OUT, u64::MAX, &mut [0; 512], false).0, 1);
    assert_eq!(rig.run(IN, 2047, &mut [0; 512], true), (0, 513), "the ring goes on");
}

#[test]
fn sectors_that_are_no_blocks_are_errors() {
    let device = RamDevice::new(4096, 64, Limits::UNLIMITED);
    device.change(|s| s.record = true);
    let mut rig = Rig::new(device.clone(), 16, true);
    assert_eq!(rig.run(OUT, 1, &mut [0; 4096], false).0, 1);
    assert_eq!(rig.run(OUT, 8, &mut [0; 512], false).0, 1);
    assert!(device.log().is_empty(), "never a read-modify-write");
    assert_eq!(rig.run(OUT, 8, &mut [1; 8192], false), (0, 1));
    assert_eq!(device.log(), [(Op::Write, Flags::empty(), 1, 2)]);
}

#[test]
fn read_only_disks_take_no_changes() {
    let device = ram();
    device.change(|s| s.record = true);
    let mut rig = Rig::stopped(device.clone(), 16, true, true);
    rig.start(0);
    assert_eq!(rig.run(OUT, 0, &mut [0; 512], false).0, 1);
    assert_eq!(rig.run(VIRTIO_BLK_T_DISCARD, 0, &mut range(0, 1, 0), false).0, 1);
    assert_eq!(rig.run(VIRTIO_BLK_T_WRITE_ZEROES, 0, &mut range(0, 1, 0), false).0, 1);
    assert!(device.log().is_empty());
    assert_eq!(rig.run(IN, 0, &mut [0; 512], true).0, 0);
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut r = sector.to_le_bytes().to_vec();
    r.extend(sectors.to_le_bytes());
    r.extend(flags.to_le_bytes());
    r
}

#[test]
fn ranges_become_one_request_each_and_complete_together() {
    let device = ram();
    device.change(|s| {
        s.bytes.fill(7);
        s.record = true;
        s.refuse = 2;
        s.delay = 3;
    });
    let mut rig = Rig::new(device.clone(), 16, true);
    let mut ranges = [range(0, 8, 0), range(100, 4, 1), range(9, 0, 0), range(2040, 8, 0)].concat();
    assert_eq!(rig.run(VIRTIO_BLK_T_WRITE_ZEROES, 0, &mut ranges, false), (0, 1));
    let zeroes = |flags, lba, blocks| (Op::WriteZeroes, flags, lba, blocks);
    let want = [zeroes(Flags::empty(), 0, 8), zeroes(Flags::UNMAP, 100, 4), zeroes(Flags::empty(), 2040, 8)];
    assert_eq!(device.log(), want);
    assert_eq!(rig.run(VIRTIO_BLK_T_DISCARD, 0, &mut range(50, 2, 0), false), (0, 1));
    let state = device.state.lock().unwrap();
    assert!(state.bytes[..8 * 512].iter().all(|&b| b == 0) && state.bytes[8 * 512] == 7);
    assert!(state.bytes[50 * 512..52 * 512].iter().all(|&b| b == 0xdc));
}

#[test]
fn bad_ranges_are_refused() {
    let mut rig = Rig::new(ram(), 16, true);
    let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    assert_eq!(rig.run(discard, 0, &mut range(0, 1, 1), false).0, 2, "unmap means nothing for discard");
    assert_eq!(rig.run(zeroes, 0, &mut range(0, 1, 2), false).0, 2, "unknown flag");
    assert_eq!(rig.run(zeroes, 0, &mut [0; 15], false).0, 1, "cut range");
    assert_eq!(rig.run(zeroes, 0, &mut [], false).0, 1, "no range");
    assert_eq!(rig.run(zeroes, 0, &mut range(0, 1, 0).repeat(17), false).0, 1, "too many ranges");
    assert_eq!(rig.run(zeroes, 0, &mut range(2048, 1, 0), false).0, 1, "beyond the end");
    let mut mixed = [range(0, 1, 0), range(u64::MAX, 1, 0), range(1, 1, 0)].concat();
    assert_eq!(rig.run(zeroes, 0, &mut mixed, false).0, 1, "one bad among good");
    assert_eq!(rig.run(zeroes, 0, &mut range(0, 1, 0), false).0, 0);
}

#[test]
fn write_through_is_durable_before_it_completes() {
    for (write_cache, fua, want) in [
        (false, false, vec![(Op::Write, Flags::empty(), 0, 1)]),
        (true, true, vec![(Op::Write, Flags::FUA, 0, 1)]),
        (true, false, vec![(Op::Write, Flags::empty(), 0, 1), (Op::Flush, Flags::empty(), 0, 0)]),
    ] {
        let device = RamDevice::new(512, 64, Limits { write_cache, fua, ..Limits::UNLIMITED });
        device.change(|s| (s.record, s.refuse, s.delay) = (true, 2, 2));
        let mut rig = Rig::new(device.clone(), 16, true);
        rig.write_through.store(true, Ordering::Relaxed);
        assert_eq!(rig.run(OUT, 0, &mut [0; 512], false), (0, 1));
        assert_eq!(device.log(), want, "cache {write_cache}, fua {fua}");
        let mut zeroes = [range(0, 1, 0), range(2, 1, 0)].concat();
        assert_eq!(rig.run(VIRTIO_BLK_T_WRITE_ZEROES, 0, &mut zeroes, false).0, 0);
        let flushed = device.log().last().unwrap().0 == Op::Flush;
        assert_eq!(flushed, write_cache, "ranges have no FUA: a flush follows them");
    }
}

#[test]
fn failures_of_the_device_are_told() {
    let device = ram();
    device.change(|s| s.fail = 1);
    let mut rig = Rig::new(device.clone(), 16, true);
    assert_eq!(rig.run(IN, 0, &mut [0; 512], true).0, 1);
    let mut three = [range(0, 1, 0), range(2, 1, 0), range(4, 1, 0)].concat();
    assert_eq!(rig.run(VIRTIO_BLK_T_WRITE_ZEROES, 0, &mut three, false).0, 1);
    assert!(rig.counters.read().errors >= 2);
    device.change(|s| s.fail = 0);
    assert_eq!(rig.run(IN, 0, &mut [0; 512], true).0, 0);
}

#[test]
fn a_way_that_is_down_is_waited_for_but_not_for_ever() {
    let device = ram();
    let mut rig = Rig::new(device.clone(), 16, true);
    device.change(|s| s.down = true);
    let pieces = |rig: &Rig| {
        rig.ram.write(DATA_GPA, &header(FLUSH, 0));
        [Piece { addr: DATA_GPA, len: 16, write: false }, Piece { addr: DATA_GPA + 16, len: 1, write: true }]
    };
    let p = pieces(&rig);
    rig.driver.add(&p).unwrap();
    rig.driver.publish();
    rig.turns(100);
    assert!(rig.driver.pop().is_none(), "it waits");
    let mut waits = Waits::default();
    assert_eq!(rig.arm(&mut waits), Armed::Sleep);
    assert!(waits.deadline.is_some(), "and tries again by itself");
    device.change(|s| s.down = false);
    rig.turns(2);
    assert!(rig.driver.pop().is_some());
    assert_eq!(rig.ram.read(DATA_GPA + 16, 1), [0]);
    device.change(|s| s.down = true);
    let p = pieces(&rig);
    rig.driver.add(&p).unwrap();
    rig.driver.publish();
    rig.turns(2);
    rig.now = rig.now.after(Duration::from_secs(2));
    rig.turns(2);
    assert!(rig.driver.pop().is_some());
    assert_eq!(rig.ram.read(DATA_GPA + 16, 1), [1]);
}

/// A way that came back is trusted anew: how long it was away before does not count when it goes again. (A ring that always has work is never
/// asked whether it may sleep in between.)
#[test]
fn each_time_in_which_a_way_is_down_counts_by_itself() {
    let ms = Duration::from_millis;
    for (away, fails, kind) in
        [(900, false, FLUSH), (900, false, VIRTIO_BLK_T_IN), (2000, true, FLUSH), (2000, true, VIRTIO_BLK_T_IN)]
    {
        let device = ram();
        let mut rig = Rig::new(device.clone(), 16, true);
        let (head, status) = (DATA_GPA, DATA_GPA + 16);
        let add = |rig: &mut Rig| {
            rig.ram.write(head, &header(kind, 0));
            rig.ram.write(status, &[0xee]);
            let mut pieces = vec![Piece { addr: head, len: 16, write: false }];
            if kind == VIRTIO_BLK_T_IN {
                pieces.push(Piece { addr: DATA_GPA + 0x200, len: 512, write: true });
            }
            pieces.push(Piece { addr: status, len: 1, write: true });
            rig.driver.add(&pieces).unwrap();
            rig.driver.publish();
        };
        device.change(|s| s.down = true);
        add(&mut rig);
        rig.turns(2);
        rig.now = rig.now.after(ms(away));
        rig.turns(2);
        assert_eq!(rig.driver.pop().is_some(), fails, "away for {away} ms");
        device.change(|s| s.down = false);
        for _ in 0..3 {
            if fails {
                add(&mut rig);
            }
            rig.turns(2);
            assert_eq!((rig.driver.pop().is_some(), rig.ram.read(status, 1)[0]), (true, 0));
            if !fails {
                break;
            }
        }
        device.change(|s| s.down = true);
        add(&mut rig);
        rig.turns(2);
        rig.now = rig.now.after(ms(500));
        rig.turns(2);
        assert!(rig.driver.pop().is_none(), "kind {kind}, away for {away} ms before: not waited for");
        device.change(|s| s.down = false);
        rig.turns(2);
        assert_eq!((rig.driver.pop().is_some(), rig.ram.read(status, 1)[0]), (true, 0));
    }
}

/// One random request: where its parts lie and what must come of it.
struct Case {
    head: u16,
    sector: u64,
    read: bool,
    pieces: Vec<Piece>,
    len: usize,
}

/// Puts `bytes` somewhere in guest memory, cut at random, empty descriptors among them.
fn scatter(rng: &mut Rng, bump: &mut u64, len: usize, write: bool, most: u64, out: &mut Vec<Piece>) {
    let mut left = len as u32;
    let cuts = rng.below(most) + 1;
    for cut in 0..cuts {
        let n = if cut + 1 == cuts { left } else { rng.below(u64::from(left) + 1) as u32 };
        *bump += rng.below(40);
        // Jump over the hole between the second and the third region.
        let end = *bump + u64::from(n);
        if *bump < 0x20_0000 && end > 0x20_0000 {
            *bump = 0x100_0000;
        }
        out.push(Piece { addr: *bump, len: n, write });
        *bump += u64::from(n);
        left -= n;
    }
}

fn fill(rig: &Rig, pieces: &[Piece], bytes: &[u8]) {
    let mut at = 0;
    for p in pieces {
        rig.ram.write(p.addr, &bytes[at..at + p.len as usize]);
        at += p.len as usize;
    }
}

fn collect(rig: &Rig, pieces: &[Piece]) -> Vec<u8> {
    pieces.iter().flat_map(|p| rig.ram.read(p.addr, p.len as usize)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Any framing of any mix of requests does what a plain array of bytes would do.
    #[test]
    fn any_framing_gives_the_same_data(seed: u64, packed: bool, event_idx: bool, big: bool) {
        let mut rng = Rng(seed);
        let (bs, blocks) = if big { (4096u64, 128u64) } else { (512, 1024) };
        let device = RamDevice::new(bs as u32, blocks, Limits::UNLIMITED);
        device.change(|s| (s.delay, s.refuse, s.rng) = (rng.below(5), [0, 2, 3, 9][rng.below(4) as usize], Rng(seed ^ 1)));
        let mut model = device.state.lock().unwrap().bytes.clone();
        let mut rig = Rig::of(packed, device.clone(), 64, event_idx);
        for _round in 0..12 {
            let mut bump = DATA_GPA;
            let (mut lba, mut cases) = (0, Vec::<Case>::new());
            loop {
                lba += rng.below(4);
                let n = rng.below(6) + 1;
                if lba + n > blocks || bump > 0x107_0000 - 0x9000 {
                    break;
                }
                let (read, len) = (rng.one_in(2), (n * bs) as usize);
                let sector = lba * bs / 512;
                let mut pieces = Vec::new();
                scatter(&mut rng, &mut bump, 16 + if read { 0 } else { len }, false, 5, &mut pieces);
                let readable = pieces.len();
                scatter(&mut rng, &mut bump, 1 + if read { len } else { 0 }, true, 5, &mut pieces);
                let mut bytes = header(u32::from(!read), sector).to_vec();
                if !read {
                    let data: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
                    bytes.extend(&data);
                }
                fill(&rig, &pieces[..readable], &bytes);
                let direct = rng.below(pieces.len() as u64) as usize;
                let head = if rng.one_in(2) {
                    bump = bump.next_multiple_of(16) + if rng.one_in(3) { 4 } else { 0 };
                    let table = bump;
                    if table < 0x20_0000 && table + 1024 > 0x20_0000 {
                        bump = 0x100_0000;
                        continue;
                    }
                    bump += 1024;
                    rig.driver.add_indirect(&rig.ram, &pieces, direct, table)
                } else {
                    rig.driver.add(&pieces)
                };
                let Some(head) = head else { break };
                if !read {
                    model[(lba * bs) as usize..][..len].copy_from_slice(&bytes[16..]);
                }
                cases.push(Case { head, sector, read, pieces: pieces[readable..].to_vec(), len });
                lba += n;
                if rng.one_in(3) {
                    rig.driver.publish();
                    rig.turn();
                }
            }
            rig.driver.publish();
            let mut back = 0;
            for _ in 0..5000 {
                rig.turn();
                while let Some((head, used)) = rig.driver.pop() {
                    back += 1;
                    let case = cases.iter().find(|c| c.head == head).expect("a head of this round");
                    prop_assert_eq!(used as usize, 1 + if case.read { case.len } else { 0 });
                }
                if back == cases.len() {
                    break;
                }
            }
            prop_assert_eq!(back, cases.len(), "every request comes back");
            for case in &cases {
                let got = collect(&rig, &case.pieces);
                prop_assert_eq!(got.last(), Some(&0), "status");
                if case.read {
                    let want = &model[case.sector as usize * 512..][..case.len];
                    prop_assert!(&got[..case.len] == want, "data of a read at sector {}", case.sector);
                }
            }
            prop_assert!(device.state.lock().unwrap().bytes == model, "bytes of the disk");
        }
        prop_assert_eq!(rig.counters.read().bad_requests, 0);
    }
}
