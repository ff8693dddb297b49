//! Octets that come or leave in pieces: what is wanted next, and what has not left yet.

use super::*;

/// A Data-In with all that belongs to it, as octets.
fn data_in(rig: &mut Rig, itt: Itt, data: &[u8], data_sn: u32, buffer_offset: u32) -> Vec<u8> {
    let pdu = rig.data_in_pdu(itt, data_sn, buffer_offset, data.len() as u32, None);
    rig.octets(|framing, out| pdu.encode(framing, out).unwrap(), data)
}

fn with_data_digests() -> Rig {
    let mut parameters = parameters();
    parameters.rx.data_digest = true;
    Rig::new(parameters)
}

#[test]
fn what_is_wanted_is_what_is_missing() {
    let mut rig = with_data_digests();
    let (slot, itt) = rig.read();
    let octets = data_in(&mut rig, itt, &[1, 2, 3], 0, 0);
    let mut wanted = Vec::new();
    let mut events = Vec::new();
    for octet in &octets {
        wanted.push(rig.connection.wants());
        rig.take(std::slice::from_ref(octet), &mut events).unwrap();
    }
    let head = (0..BHS_LEN).map(|have| Want::Bytes(BHS_LEN - have));
    let data = (0..3).map(|offset| Want::Data { slot, offset, len: 3 - offset });
    let tail = (0..1 + DIGEST_LEN).map(|have| Want::Tail(1 + DIGEST_LEN - have));
    assert_eq!(wanted, head.chain(data).chain(tail).collect::<Vec<_>>());
    assert_eq!(rig.connection.wants(), Want::Bytes(BHS_LEN));

    // Data that are for the connection itself.
    let pdu = NopIn { lun: LUN, itt: None, ttt: Ttt::new(5), sn: rig.sn_without(), data_len: 5 };
    let mut head = vec![0; BHS_LEN];
    pdu.encode(&rig.connection.parameters().rx, &mut head).unwrap();
    rig.take(&head, &mut events).unwrap();
    let data = [&b"hello"[..], &[0; 3], &data_digest(b"hello")].concat();
    for (have, octet) in data.iter().enumerate() {
        assert_eq!(rig.connection.wants(), Want::Bytes(data.len() - have));
        rig.take(std::slice::from_ref(octet), &mut events).unwrap();
    }
    assert_eq!((rig.connection.wants(), rig.sent().len()), (Want::Bytes(BHS_LEN), 1), "and it is answered");
}

/// Wherever two PDUs are torn apart, each takes what is its own.
#[test]
fn a_tail_in_two_pieces_takes_nothing_of_what_follows() {
    let len = BHS_LEN + 4 + DIGEST_LEN;
    for cut in 1..2 * len {
        let mut rig = with_data_digests();
        let (slot, itt) = rig.read();
        let mut octets = data_in(&mut rig, itt, &[1, 2, 3], 0, 0);
        octets.extend(data_in(&mut rig, itt, &[4, 5, 6], 1, 3));
        assert_eq!(octets.len(), 2 * len);
        let mut events = Vec::new();
        for piece in [&octets[..cut], &octets[cut..]] {
            rig.take(piece, &mut events).unwrap_or_else(|error| panic!("torn at {cut}: {error}"));
        }
        assert_eq!(rig.data[usize::from(slot)][..6], [1, 2, 3, 4, 5, 6], "torn at {cut}");
        assert_eq!((rig.connection.wants(), events.len()), (Want::Bytes(BHS_LEN), 0), "torn at {cut}");
    }
}

/// GOOD for a write whose command, with all of its data, was in the middle of leaving.
#[test]
fn a_write_that_is_called_good_before_its_command_has_left_is_not_whole() {
    let mut rig = Rig::new(parameters());
    let slot = rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
    rig.connection.sent(BHS_LEN + 12);
    assert_eq!(rig.response(Itt::new(0).unwrap(), 0, Residual::None, &[]), Ok(vec![]));
    assert!(!rig.connection.has_events() && rig.connection.is_waiting());
    rig.connection.sent(500);
    assert!(rig.connection.has_events(), "it can be fetched");
    let ending = Ending { status: Some(0), moved: 0, whole: false, has_sense: false };
    assert_eq!(rig.connection.poll_event(), Some(Event::Ended { slot, ending }));
    assert!(!rig.connection.has_events() && !rig.connection.is_waiting());
}

/// Data of another task that wait for room say nothing of one whose data have all left.
#[test]
fn a_write_whose_data_have_left_is_whole_whatever_else_waits() {
    let framing = Framing { max_data_len: 64, ..parameters().tx };
    let mut rig = Rig::new(Parameters { tx: framing, immediate_data: false, initial_r2t: true, ..parameters() });
    let [ours, other] = [64, 4096].map(|len| rig.connection.submit(LUN, READ, DataPlan::Out(len)).unwrap());
    let itts: Vec<_> = rig.commands().iter().map(|(command, _)| command.itt).collect();
    rig.r2t(itts[0], 0, 0, 64).unwrap();
    assert_eq!(rig.data_outs().len(), 1);
    rig.r2t(itts[1], 0, 0, 4096).unwrap();
    let events = rig.response(itts[0], 0, Residual::None, &[]);
    assert_eq!(events, Ok(vec![Event::Ended { slot: ours, ending: good(64) }]));
    let mut left = 0;
    while rig.connection.has_output() {
        left += rig.data_outs().len();
    }
    assert_eq!((left, rig.connection.is_active(other)), (64, true));
}
