//! The short paths of common PDUs and commands against the long ones: nobody can tell them apart but by what they cost.

use super::*;
use polypath_nvme::sqe::BlockCommand;
use proptest::prelude::*;

/// Octets of data of every command.
const LEN: u32 = 512;
const COMMANDS: u16 = 6;

impl Shell {
    /// As [`Shell::feed`], by the short path wherever it takes something. Returns how often it did.
    fn feed_whole(&mut self, mut b: &[u8]) -> (usize, Result<(), ProtocolError>) {
        let mut taken = 0;
        while !b.is_empty() && self.conn.wants() != Want::Nothing {
            self.poll_events();
            if let Some(whole) = self.conn.take_whole(b) {
                let (slot, data) = (whole.slot, &b[whole.head..whole.len]);
                self.moved.extend((0u32..).zip(data).map(|(at, &octet)| (slot, at, octet)));
                self.events.push(Event::Completed { slot, cqe: whole.cqe, received: data.len() as u32 });
                (b, taken) = (&b[whole.len..], taken + 1);
                continue;
            }
            match self.step(b) {
                Ok(used) => b = &b[used..],
                Err(error) => {
                    self.poll_events();
                    return (taken, Err(error));
                }
            }
        }
        self.poll_events();
        (taken, Ok(()))
    }
}

/// A PDU for the command in a slot, with something about it that is wrong or rare, or nothing.
fn pdu(f: &Framing, slot: u16, cid: u16, kind: u8, other: u32) -> Vec<u8> {
    let good = C2hData { cccid: cid, offset: 0, length: LEN, last: true, success: true };
    let data = data_of(slot, 0, LEN);
    let mut octets = match kind {
        0..=4 if slot.is_multiple_of(2) => c2h(f, good, &data),
        0..=5 => response(f, cid, OK),
        6 => response(f, cid, StatusField::WRITE_FAULT),
        7 => c2h(f, C2hData { success: false, ..good }, &data),
        8 => {
            let half = C2hData { length: LEN / 2, last: false, success: false, ..good };
            let rest = C2hData { offset: LEN / 2, length: LEN / 2, ..good };
            [c2h(f, half, &data[..256]), c2h(f, rest, &data[256..])].concat()
        }
        9 => c2h(f, C2hData { offset: other % 8, ..good }, &data),
        10 => c2h(f, C2hData { length: LEN * 2, ..good }, &data_of(slot, 0, LEN * 2)),
        11 => c2h(f, C2hData { length: LEN / 2, ..good }, &data[..256]),
        12 => c2h(f, C2hData { cccid: other as u16, ..good }, &data),
        13 => r2t(f, cid, 7, 0, LEN),
        _ => c2h(f, good, &data),
    };
    if kind == 15 {
        octets[other as usize % 24] ^= 1 << (other >> 8 & 7);
    }
    octets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a controller says, however it is cut, and however much of the commands has left by then.
    #[test]
    fn the_short_path_says_what_the_long_one_says(
        said in proptest::collection::vec((0..COMMANDS, 0u8..16, any::<u32>()), 1..12),
        cuts in proptest::collection::vec(1usize..2000, 1..20),
        (hd, dd, flow_control, hpda) in (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1), 0u8..4),
        sent in prop::option::weighted(0.2, 0usize..3000),
    ) {
        let mut config = HostConfig::new(COMMANDS);
        let alignment = DataAlignment::from_wire(hpda).unwrap();
        config.request = IcReq { header_digest: hd, data_digest: dd, alignment, max_r2t_z: 0 };
        config.sq_flow_control = flow_control;
        let ready = || Shell::ready(config, grant(hd, dd, 0, 4096));
        let (mut long, mut short) = (ready(), ready());
        for slot in 0..COMMANDS {
            let read = slot % 2 == 0;
            let slba = u64::from(slot) << 40;
            let sqe = if read { Sqe::read(0, 1, slba, 0, false) } else { Sqe::write(0, 1, slba, 0, false) };
            let plan = if read { DataPlan::ToHost { len: LEN, exact: true } } else { write(LEN) };
            prop_assert_eq!(long.conn.submit(&sqe, plan), Ok(slot));
            let command = BlockCommand { write: !read, nsid: 1, slba, nlb_z: 0 };
            prop_assert_eq!(short.conn.submit_block(&command, LEN), Ok(slot));
        }
        let pending = long.pending();
        prop_assert_eq!(&pending, &short.pending());
        let sent = sent.unwrap_or(usize::MAX).min(pending.len());
        long.conn.sent(sent);
        short.conn.sent(sent);
        prop_assert_eq!(long.pending(), short.pending());
        let cids: Vec<u16> = (0..COMMANDS).map(|slot| long.conn.cid(slot).unwrap()).collect();
        let rx = long.conn.negotiated().unwrap().rx;
        let stream: Vec<u8> =
            said.iter().flat_map(|&(slot, kind, other)| pdu(&rx, slot, cids[usize::from(slot)], kind, other)).collect();
        let (mut rest, mut results) = (&stream[..], (Ok(()), Ok(())));
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() || results != (Ok(()), Ok(())) {
                break;
            }
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            results = (long.feed(piece), short.feed_whole(piece).1);
            rest = after;
        }
        prop_assert_eq!(results.0, results.1);
        prop_assert_eq!(&long.moved, &short.moved);
        let finished = |s: &Shell| -> Vec<(u16, Cqe)> {
            let of = |e: &Event| if let Event::Completed { slot, cqe, .. } = *e { Some((slot, cqe)) } else { None };
            s.events.iter().filter_map(of).collect()
        };
        prop_assert_eq!(finished(&long), finished(&short));
        prop_assert_eq!(long.conn.terminate_request(), short.conn.terminate_request());
        prop_assert_eq!(long.pending(), short.pending());
        long.conn.close();
        short.conn.close();
        prop_assert_eq!(long.outcomes(), short.outcomes());
    }
}

#[test]
fn what_is_common_takes_the_short_path() {
    let mut s = Shell::plain(4);
    for slot in 0..4 {
        let command = BlockCommand { write: slot % 2 == 1, nsid: 1, slba: slot, nlb_z: 0 };
        s.conn.submit_block(&command, LEN).unwrap();
    }
    s.send_all();
    let cids: Vec<u16> = (0..4).map(|slot| s.conn.cid(slot).unwrap()).collect();
    let stream: Vec<u8> = (0u16..).zip(&cids).flat_map(|(slot, &cid)| pdu(&PLAIN, slot, cid, 0, 0)).collect();
    // All but its last octet: the last response comes in pieces.
    let (most, last) = stream.split_at(stream.len() - 1);
    assert_eq!(s.feed_whole(most), (3, Ok(())));
    assert_eq!(s.feed_whole(last), (0, Ok(())));
    assert_eq!((s.events.len(), s.conn.in_flight()), (4, 0));
    assert_eq!(s.conn.take_whole(&stream), None, "none of them is in flight any more");
}

/// Reads that have left, and what is said of each of them: all but common, each by one thing.
#[test]
fn what_is_almost_common_is_left_to_the_long_path() {
    let good = |cccid| C2hData { cccid, offset: 0, length: LEN, last: true, success: true };
    let half = |cccid| C2hData { length: LEN / 2, last: false, success: false, ..good(cccid) };
    type Said = (&'static str, fn(&mut Vec<u8>), bool, fn(u16) -> ProtocolError);
    let cases: [Said; 3] = [
        (
            "four octets more than DATAL says",
            |octets| (octets[4] += 4, octets.extend([0; 4])).1,
            false,
            |_| PduError::DataLength { kind: PduType::C2hData, datal: LEN, carried: LEN + 4 }.into(),
        ),
        (
            "four octets less than DATAL says",
            |octets| octets[4..8].copy_from_slice(&532u32.to_le_bytes()),
            false,
            |_| PduError::DataLength { kind: PduType::C2hData, datal: LEN, carried: LEN - 4 }.into(),
        ),
        (
            "half of them came before",
            |_| {},
            true,
            |cid| ProtocolError::NotContiguous { kind: PduType::C2hData, cid, offset: 0, expected: LEN / 2 },
        ),
    ];
    for (what, change, after_half, error) in cases {
        let mut s = Shell::plain(2);
        let slot = s.conn.submit_block(&BlockCommand { write: false, nsid: 1, slba: 0, nlb_z: 0 }, LEN).unwrap();
        s.send_all();
        let (cid, data) = (s.conn.cid(slot).unwrap(), data_of(slot, 0, LEN));
        if after_half {
            s.feed(&c2h(&PLAIN, half(cid), &data[..256])).unwrap();
        }
        let mut octets = c2h(&PLAIN, good(cid), &data);
        change(&mut octets);
        assert_eq!(s.conn.take_whole(&octets), None, "{what}");
        assert_eq!(s.feed(&octets), Err(error(cid)), "{what}");
        assert!(s.events.is_empty(), "{what}");
    }
}

/// All data of a write were asked for and some have not left: it cannot have succeeded, and its memory is still being read.
#[test]
fn a_write_whose_data_have_not_left_does_not_take_the_short_path() {
    let len = 16384;
    for (left, over) in [(0, Err(())), (8216 + 8215, Ok(false)), (8216 * 2, Ok(true))] {
        let mut s = Shell::plain(2);
        let slot = s.conn.submit_block(&BlockCommand { write: true, nsid: 1, slba: 0, nlb_z: 0 }, len).unwrap();
        s.send_all();
        let cid = s.conn.cid(slot).unwrap();
        s.feed(&r2t(&PLAIN, cid, 7, 0, len)).unwrap();
        assert_eq!(s.pending().len(), 8216 * 2, "in two H2CData");
        s.conn.sent(left);
        let octets = response(&PLAIN, cid, OK);
        assert_eq!(s.conn.take_whole(&octets).is_some(), over == Ok(true), "{left} octets have left");
        if over == Ok(true) {
            continue;
        }
        let said = s.feed(&octets);
        assert_eq!(said.is_ok(), over.is_ok(), "{left} octets have left: {said:?}");
        assert!(s.events.is_empty(), "{left} octets have left");
        if over.is_ok() {
            s.send_all();
            s.poll_events();
            assert_eq!(s.completed(), (slot, OK, len));
        }
    }
}

/// A head came as far as this; what comes next is the rest of it, whatever it looks like.
#[test]
fn what_looks_common_in_the_middle_of_a_head_is_not_taken_for_it() {
    for have in 1..24 {
        let mut s = Shell::plain(2);
        let slots = [0, 1]
            .map(|slba| s.conn.submit_block(&BlockCommand { write: false, nsid: 1, slba, nlb_z: 0 }, LEN).unwrap());
        s.send_all();
        let cids = slots.map(|slot| s.conn.cid(slot).unwrap());
        let first = response(&PLAIN, cids[0], StatusField::WRITE_FAULT);
        s.feed(&first[..have]).unwrap();
        let forged =
            c2h(&PLAIN, C2hData { cccid: cids[1], offset: 0, length: LEN, last: true, success: true }, &[7; 512]);
        assert_eq!(s.conn.take_whole(&forged), None, "{have} octets of another head are there");
        s.feed(&first[have..]).unwrap();
        assert_eq!(s.completed(), (slots[0], StatusField::WRITE_FAULT, 0));
        assert!(s.conn.take_whole(&forged).is_some(), "now it is one");
    }
}

/// Whatever was in the memory of heads before: what a short command leaves between its head and its data is zeroes.
#[test]
fn a_short_command_is_padded_with_zeroes() {
    for cpda in [0, 3, 31] {
        let ready = || Shell::ready(HostConfig::new(4), grant(false, false, cpda, 4096));
        let (mut long, mut short) = (ready(), ready());
        for s in [&mut long, &mut short] {
            for slba in [u64::MAX >> 1; 4] {
                s.conn.submit_block(&BlockCommand { write: false, nsid: u32::MAX, slba, nlb_z: 0xffff }, LEN).unwrap();
            }
            s.send_all();
            assert!(s.conn.poll_event().is_none());
        }
        let cids: Vec<u16> = (0..4).map(|slot| long.conn.cid(slot).unwrap()).collect();
        for s in [&mut long, &mut short] {
            cids.iter().for_each(|&cid| s.feed(&response(&PLAIN, cid, StatusField::WRITE_FAULT)).unwrap());
        }
        let slot = long.conn.submit(&Sqe::write(0, 1, 5, 0, false), write(LEN)).unwrap();
        let command = BlockCommand { write: true, nsid: 1, slba: 5, nlb_z: 0 };
        assert_eq!(short.conn.submit_block(&command, LEN), Ok(slot));
        assert_eq!(long.send_all(), short.send_all(), "CPDA {cpda}");
    }
}
