//! Where the segments of requests lie, and who waits when there is no room for them.

use super::guest::{Piece, header};
use super::ram::RamDevice;
use super::*;
use polypath_block::{Limits, SegSpan};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const PIECES: u64 = 8;

/// A write of eight pieces at sector `8 * n`, each piece of 512 times the same byte.
fn add_wide(rig: &mut Rig, n: u64, kind: u32) -> u16 {
    let at = DATA_GPA + 0x3000 * n;
    rig.ram.write(at, &header(kind, PIECES * n));
    rig.ram.write(at + 0x20, &[0xee]);
    let mut pieces = vec![Piece { addr: at, len: 16, write: false }];
    for piece in 0..PIECES {
        // Apart from each other, and backwards.
        let addr = at + 0x2800 - 0x400 * piece;
        if kind == VIRTIO_BLK_T_OUT {
            rig.ram.write(addr, &[(16 * n + piece) as u8; 512]);
        }
        pieces.push(Piece { addr, len: 512, write: kind == VIRTIO_BLK_T_IN });
    }
    pieces.push(Piece { addr: at + 0x20, len: 1, write: true });
    let head = rig.driver.add(&pieces).unwrap();
    rig.driver.publish();
    head
}

fn ram() -> Arc<RamDevice> {
    RamDevice::new(512, 64, Limits::UNLIMITED)
}

fn take_all(rig: &mut Rig) -> Vec<SegSpan> {
    rig.segs.allow_spans();
    [256, 1].into_iter().flat_map(|n| std::iter::from_fn(|| rig.segs.take(n)).collect::<Vec<_>>()).collect()
}

/// What was written in many pieces is read in many pieces, whether there is room for several requests or for none.
#[test]
fn without_room_requests_of_many_pieces_take_turns() {
    for (packed, starved) in [(false, false), (true, false), (false, true), (true, true)] {
        let device = ram();
        let mut rig = Rig::of(packed, device.clone(), 64, true);
        let others = if starved { take_all(&mut rig) } else { Vec::new() };
        for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_IN] {
            device.change(|s| s.hold = true);
            let heads: Vec<u16> = (0..3).map(|n| add_wide(&mut rig, n, kind)).collect();
            if kind == VIRTIO_BLK_T_IN {
                (0..3).for_each(|n| rig.ram.write(DATA_GPA + 0x3000 * n + 0xc00, &[0; 0x2000 - 0x200]));
            }
            rig.turns(5);
            assert_eq!(rig.counters.read().requests % 3, if starved { 1 } else { 0 }, "the others wait in the ring");
            assert_eq!(rig.arm(&mut Waits::default()), Armed::Sleep, "for a completion");
            device.change(|s| s.hold = false);
            rig.turns(10);
            let done: Vec<u16> = std::iter::from_fn(|| rig.driver.pop()).map(|(head, _)| head).collect();
            assert_eq!(done, heads);
        }
        for (n, piece) in (0..3).flat_map(|n| (0..PIECES).map(move |piece| (n, piece))) {
            let at = DATA_GPA + 0x3000 * n + 0x2800 - 0x400 * piece;
            assert_eq!(rig.ram.read(at, 512), [(16 * n + piece) as u8; 512], "piece {piece} of {n}");
        }
        assert_eq!(rig.counters.read().errors, 0);
        let left = rig.segs.spans_left();
        others.into_iter().for_each(|span| rig.segs.give_back(span));
        assert!(rig.command(Command::Stop { flush: false }).is_ok());
        assert!(rig.segs.spans_left() >= left && rig.segs.spans_left() == (1 << 20) / 4 * 3, "all is given back");
    }
}

/// A request of one piece finds its place too when there is none, and a ring that is stopped meanwhile gives it back.
#[test]
fn without_room_requests_of_one_piece_take_turns_as_well() {
    let device = ram();
    let mut rig = Rig::new(device.clone(), 64, true);
    let others = take_all(&mut rig);
    let mut data = [7; 512];
    for sector in 0..4 {
        assert_eq!(rig.run(VIRTIO_BLK_T_OUT, sector, &mut data, false), (0, 1));
    }
    device.change(|s| s.hold = true);
    (0..2).for_each(|n| _ = add_wide(&mut rig, n, VIRTIO_BLK_T_OUT));
    let answer = rig.mailbox.send(Command::Stop { flush: false }).unwrap();
    rig.turns(3);
    device.change(|s| s.hold = false);
    rig.turns(3);
    assert_eq!(answer.try_recv(), Ok(Ok(4)), "none was taken after the word");
    rig.start(4);
    rig.turns(3);
    assert_eq!(std::iter::from_fn(|| rig.driver.pop()).count(), 2);
    others.into_iter().for_each(|span| rig.segs.give_back(span));
}
