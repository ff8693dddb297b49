//! Properties over random streams; proptest prints the seed of a failure.

use super::*;
use proptest::prelude::*;

/// A busy but correct controller: answers every command of a byte stream; the order is chosen by `seed`.
fn script(s: &mut Shell, seed: u64) -> Vec<u8> {
    let rx = s.conn.negotiated().unwrap().rx;
    let mut stream = vec![];
    let mut pick = seed;
    for slot in 0..8u16 {
        let cid = s.conn.cid(slot).unwrap();
        pick = pick.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if slot % 2 == 1 {
            stream.extend(response(&rx, cid, StatusField::WRITE_FAULT));
            continue;
        }
        let cut = (pick >> 33) as u32 % 4095 + 1;
        let success = pick & 1 << 40 != 0;
        let data = data_of(slot, 0, 4096);
        let pdu = |offset, length, last| C2hData { cccid: cid, offset, length, last, success: success && last };
        stream.extend(c2h(&rx, pdu(0, cut, false), &data[..cut as usize]));
        stream.extend(c2h(&rx, pdu(cut, 4096 - cut, true), &data[cut as usize..]));
        if !success {
            stream.extend(response(&rx, cid, OK));
        }
    }
    stream
}

fn busy(hd: bool, dd: bool, hpda: u8) -> Shell {
    let mut config = HostConfig::new(8);
    let alignment = DataAlignment::from_wire(hpda).unwrap();
    config.request = IcReq { header_digest: hd, data_digest: dd, alignment, max_r2t_z: 0 };
    let mut s = Shell::ready(config, grant(hd, dd, 0, 4096));
    for slot in 0..8 {
        let got = if slot % 2 == 0 {
            s.conn.submit(&Sqe::read(0, 1, slot, 7, false), READ)
        } else {
            s.conn.submit(&Sqe::write(0, 1, slot, 7, false), write(4096))
        };
        assert_eq!(got, Ok(slot as u16));
    }
    s
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the stream is cut, the same comes out.
    #[test]
    fn splitting_changes_nothing(
        seed: u64, hd: bool, dd: bool, hpda in 0u8..32,
        cuts in proptest::collection::vec(1usize..700, 1..200),
    ) {
        let (mut whole, mut pieces) = (busy(hd, dd, hpda), busy(hd, dd, hpda));
        whole.send_all();
        pieces.send_all();
        let stream = script(&mut whole, seed);
        whole.feed(&stream).unwrap();
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            pieces.feed(now).unwrap();
            rest = later;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(whole.events.len(), 8);
        prop_assert_eq!(&whole.events, &pieces.events);
        prop_assert_eq!(&whole.moved, &pieces.moved);
        prop_assert!(whole.moved.iter().all(|&(slot, at, b)| b == pattern(slot, at)));
    }

    /// However little the socket takes, the same octets leave.
    #[test]
    fn partial_sends_change_nothing(
        hd: bool, dd: bool, takes in proptest::collection::vec(1usize..300, 1..300),
    ) {
        let (mut whole, mut pieces) = (busy(hd, dd, 0), busy(hd, dd, 0));
        let want = whole.send_all();
        let mut got = vec![];
        for take in takes.iter().cycle() {
            let now = pieces.pending();
            if now.is_empty() { break }
            let n = (*take).min(now.len());
            got.extend_from_slice(&now[..n]);
            pieces.conn.sent(n);
        }
        prop_assert_eq!(want, got);
    }

    /// A correct stream with octets changed, lost or doubled never panics and completes nothing twice.
    #[test]
    fn damaged_streams_are_survived(
        seed: u64, hd: bool, dd: bool, fatal: bool,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
        piece in 1usize..5000,
    ) {
        let mut s = busy(hd, dd, 0);
        s.conn.config.data_digest_fatal = fatal;
        s.send_all();
        let mut stream = script(&mut s, seed);
        for (at, value, how) in damage {
            let at = at.index(stream.len());
            match how {
                0 => stream[at] = value,
                1 => { stream.remove(at); }
                _ => stream.insert(at, value),
            }
        }
        for chunk in stream.chunks(piece) {
            if s.feed(chunk).is_err() { break }
        }
        s.conn.close();
        let mut seen: Vec<u16> = s.events.iter().map(|e| match e {
            Event::Completed { slot, .. } => *slot,
            Event::Ready(_) => unreachable!("it was ready before"),
        }).collect();
        seen.extend(s.outcomes().iter().map(|o| o.0));
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..8).collect::<Vec<u16>>());
    }
}
