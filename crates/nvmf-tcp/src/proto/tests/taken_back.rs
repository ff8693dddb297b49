//! What is taken back before it leaves, among what stays: nothing of it leaves, and the others are what they were.

use super::*;
use polypath_nvme::sqe::BlockCommand;

fn flush(s: &mut Shell) -> u16 {
    s.conn.submit(&Sqe::flush(0, 1), DataPlan::None).unwrap()
}

/// Identifiers of the capsules among these octets.
fn cids(octets: &[u8], framing: &Framing) -> Vec<u16> {
    let pdus = parse_sent(octets, framing);
    pdus.iter().map(|(ch, head, _)| CapsuleCmd::parse(ch, head).unwrap().sqe.cid()).collect()
}

/// Heads leave in one piece, but not with those between them that were taken back.
#[test]
fn heads_that_were_taken_back_do_not_leave_with_their_neighbours() {
    for (hd, short) in [(false, false), (false, true), (true, false)] {
        for taken in [[true, false, false], [false, true, false], [false, false, true], [true, true, false]] {
            let mut config = HostConfig::new(3);
            config.request = IcReq { header_digest: hd, ..IcReq::default() };
            let mut s = Shell::ready(config, grant(hd, false, 0, 4096));
            let read = BlockCommand { write: false, nsid: 1, slba: 0, nlb_z: 0 };
            let slots = [0; 3].map(|_| if short { s.conn.submit_block(&read, 512).unwrap() } else { flush(&mut s) });
            let stay: Vec<u16> = slots.iter().zip(taken).filter(|(_, t)| !t).map(|(&slot, _)| slot).collect();
            let want: Vec<u16> = stay.iter().map(|&slot| s.conn.cid(slot).unwrap()).collect();
            for (&slot, _) in slots.iter().zip(taken).filter(|(_, taken)| *taken) {
                assert!(s.conn.withdraw(slot));
            }
            let framing = s.conn.negotiated().unwrap().tx;
            let sent = s.send_all();
            assert_eq!(cids(&sent, &framing), want, "{taken:?}, short {short}, header digest {hd}");
            assert!(stay.iter().all(|&slot| s.conn.has_left(slot)) && s.conn.in_flight() == want.len());
        }
    }
}

/// As many octets of heads are taken back as there are data: what is left is not heads and nothing else for that.
#[test]
fn what_is_left_is_not_taken_for_heads_alone() {
    let mut s = Shell::plain(70);
    let first = flush(&mut s);
    let between: Vec<u16> = (0..64).map(|_| flush(&mut s)).collect();
    let last = s.conn.submit(&Sqe::write(0, 1, 0, 8, false), write(64 * 72)).unwrap();
    assert!(between.into_iter().all(|slot| s.conn.withdraw(slot)));
    let want = [first, last].map(|slot| s.conn.cid(slot).unwrap());
    let sent = s.send_all();
    assert_eq!(sent.len(), 2 * 72 + 64 * 72);
    assert_eq!(cids(&sent, &PLAIN), want);
}

/// One that waits does not become another because many after it come and are taken back.
#[test]
fn what_waits_stays_as_it_is_whatever_is_taken_back_behind_it() {
    let mut s = Shell::plain(2);
    let read = BlockCommand { write: false, nsid: 7, slba: 0x1234, nlb_z: 0 };
    s.conn.submit_block(&read, 512).unwrap();
    let octets = s.pending();
    for slba in 0..100 {
        let slot = s.conn.submit_block(&BlockCommand { slba, ..read }, 512).unwrap();
        assert_eq!(s.pending().len(), 2 * octets.len());
        assert!(s.conn.withdraw(slot));
        assert_eq!(s.pending(), octets, "after {slba}");
    }
}

/// Nothing of a PDU leaves before its digest is known, not even with the heads before it.
#[test]
fn a_head_does_not_leave_before_the_digest_of_its_data() {
    let mut config = HostConfig::new(3);
    config.request = IcReq { data_digest: true, ..IcReq::default() };
    let mut s = Shell::ready(config, grant(false, true, 0, 4096));
    flush(&mut s);
    flush(&mut s);
    s.conn.submit(&Sqe::write(0, 1, 0, 0, false), write(512)).unwrap();
    let listed: usize = s
        .conn
        .transmit()
        .map(|chunk| match chunk {
            Chunk::Bytes(octets) => octets.len(),
            Chunk::Data { len, .. } => len as usize,
        })
        .sum();
    assert_eq!(listed, 2 * 72);
    assert_eq!(s.pending().len(), 3 * 72 + 512 + 4);
}

/// What was wrong with the data of one command says nothing of the next in its place.
#[test]
fn a_wrong_digest_is_that_of_its_command() {
    let mut config = HostConfig { data_digest_fatal: false, ..HostConfig::new(1) };
    config.request = IcReq { data_digest: true, ..IcReq::default() };
    let mut s = Shell::ready(config, grant(false, true, 0, 4096));
    let rx = s.conn.negotiated().unwrap().rx;
    for (wrong, status) in [(true, StatusField::TRANSIENT_TRANSPORT_ERROR), (false, OK)] {
        let slot = s.conn.submit(&Sqe::read(0, 1, 0, 7, false), READ).unwrap();
        s.send_all();
        let pdu = C2hData { cccid: s.conn.cid(slot).unwrap(), offset: 0, length: 4096, last: true, success: true };
        let mut octets = c2h(&rx, pdu, &[5; 4096]);
        octets[1000] ^= u8::from(wrong);
        s.feed(&octets).unwrap();
        assert_eq!(s.completed(), (slot, status, 4096));
    }
}

#[test]
fn a_short_command_of_no_length_is_one_without_data() {
    for write in [false, true] {
        let (mut long, mut short) = (Shell::plain(1), Shell::plain(1));
        let sqe = if write { Sqe::write(0, 1, 5, 0, false) } else { Sqe::read(0, 1, 5, 0, false) };
        long.conn.submit(&sqe, DataPlan::None).unwrap();
        short.conn.submit_block(&BlockCommand { write, nsid: 1, slba: 5, nlb_z: 0 }, 0).unwrap();
        assert_eq!(long.send_all(), short.send_all());
        for s in [&mut long, &mut short] {
            s.feed(&response(&PLAIN, 0, OK)).unwrap();
            assert_eq!(s.completed(), (0, OK, 0));
        }
    }
}

/// The first octet of the data of a write that has failed meanwhile has left: the write is over when the last of them has.
#[test]
fn what_has_begun_to_leave_is_waited_for_to_the_end() {
    let mut s = Shell::ready(HostConfig::new(1), grant(false, false, 0, 16384));
    let slot = s.conn.submit(&Sqe::write(0, 1, 0, 31, false), write(16384)).unwrap();
    s.send_all();
    let cid = s.conn.cid(slot).unwrap();
    s.feed(&r2t(&PLAIN, cid, 7, 0, 16384)).unwrap();
    let octets = s.pending().len();
    s.conn.sent(1);
    s.feed(&response(&PLAIN, cid, StatusField::WRITE_FAULT)).unwrap();
    for part in [octets / 2, octets / 2 - 2] {
        s.conn.sent(part);
        s.poll_events();
        assert_eq!(s.events, [], "its memory is still being read");
    }
    s.conn.sent(1);
    s.poll_events();
    assert_eq!(s.completed(), (slot, StatusField::WRITE_FAULT, 16384));
}
