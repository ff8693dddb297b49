//! The login machines against the recorded logins of libiscsi and tgt: our initiator takes tgt's answers and sends what libiscsi sent,
//! our target takes libiscsi's requests and comes to what tgt agreed to.

use crate::recorded::{Connection, Recorded, TGT_TAKES, capture, captures};
use polypath_iscsi::chap::{Algorithm, Challenge, ChapInitiator, ChapTarget, Credentials, Secret};
use polypath_iscsi::login::value::{binary, number};
use polypath_iscsi::login::*;
use polypath_iscsi::pdu::*;
use polypath_iscsi::serial::StatSn;
use std::collections::BTreeMap;

// as lab/capture-iscsi-login.py has them
const USER: (&str, &str) = ("lab-user", "secret of the user");
const OWN: (&str, &str) = ("lab-target", "secret of the target");

fn credentials((name, secret): (&str, &str)) -> Credentials {
    Credentials { name: name.into(), secret: Secret::new(secret) }
}

fn login_request(recorded: &Recorded) -> LoginRequest {
    let Pdu::LoginRequest(request) = recorded.pdu() else { panic!("{}", recorded.header.opcode) };
    request
}

fn login_response(recorded: &Recorded) -> LoginResponse {
    let Pdu::LoginResponse(response) = recorded.pdu() else { panic!("{}", recorded.header.opcode) };
    response
}

/// Identifier and challenge of a recorded text.
fn challenge(recorded: &Recorded) -> Option<Challenge> {
    let pairs: BTreeMap<_, _> = recorded.pairs().into_iter().collect();
    let identifier = number(pairs.get("CHAP_I")?).unwrap().try_into().unwrap();
    Some(Challenge { identifier, octets: binary(pairs.get("CHAP_C")?, 1024).unwrap() })
}

/// What libiscsi offers.
fn offer() -> Offer {
    Offer {
        header_digest: DigestOffer::IfNeeded,
        data_digest: DigestOffer::Never,
        max_recv_data_len: 262_144,
        initial_r2t: false,
        immediate_data: true,
        max_burst_len: 262_144,
        first_burst_len: 262_144,
        max_outstanding_r2t: 1,
        time2wait_s: 2,
        time2retain_s: 0,
    }
}

fn value<'a>(recorded: &'a Recorded, key: &str) -> Option<&'a str> {
    recorded.pairs().into_iter().find(|(k, _)| *k == key).map(|(_, v)| v)
}

/// Our initiator, set up as the recorded one was.
fn initiator(c: &Connection) -> InitiatorLogin {
    let (requests, _) = c.login();
    let first = login_request(requests[0]);
    let chap = value(requests[0], "AuthMethod").map(|_| {
        let ours = requests.iter().find_map(|r| challenge(r));
        let secret = if c.name.contains("refused") { ("lab-user", "not the secret") } else { USER };
        let chap = match ours {
            Some(ours) => ChapInitiator::mutual(credentials(secret), credentials(OWN), ours),
            None => ChapInitiator::one_way(credentials(secret)),
        };
        chap.and_then(|chap| chap.with_algorithms(&[Algorithm::Md5])).unwrap()
    });
    // the tools differ in what they ask for
    let digest = match requests.iter().find_map(|r| value(r, "HeaderDigest")) {
        Some("None,CRC32C") => DigestOffer::IfNeeded,
        _ => DigestOffer::Never,
    };
    InitiatorLogin::new(InitiatorConfig {
        initiator_name: Name::new(value(requests[0], "InitiatorName").unwrap()).unwrap(),
        initiator_alias: None,
        target_name: value(requests[0], "TargetName").map(|name| Name::new(name).unwrap()),
        isid: first.isid,
        cid: first.cid,
        itt: first.itt,
        cmd_sn: first.sn.cmd_sn,
        offer: Offer { header_digest: digest, ..offer() },
        chap,
    })
}

/// Our request says nothing that libiscsi's did not say, in the same stage, and asks to go on where libiscsi did.
fn same_request(ours: &Message<LoginRequest>, theirs: &Recorded, name: &str) {
    let recorded = login_request(theirs);
    let (pdu, text) = (ours.pdu, text::pairs(&ours.text).unwrap());
    let mutual = name.contains("mutual") && value(theirs, "AuthMethod").is_some();
    let expected = LoginRequest {
        // with mutual CHAP we do not let the target do without, and so do not ask to go on at once
        transit: if mutual { None } else { recorded.transit },
        // libiscsi keeps to the handle of the target's first answer, which has the tag of this login anyway
        tsih: pdu.tsih,
        data_len: pdu.data_len,
        // there is nothing to acknowledge in the first
        sn: if value(theirs, "InitiatorName").is_some() { pdu.sn } else { recorded.sn },
        ..recorded
    };
    assert_eq!(pdu, expected, "{name}");
    for (key, said) in &text {
        let want = value(theirs, key);
        let said = if mutual && *key == "AuthMethod" { "CHAP,None" } else { said };
        let octets = |value: &str| binary(value, 1024).map_or(value.as_bytes().to_vec(), |octets| octets);
        assert_eq!(want.map(octets), Some(octets(said)), "{name}: {key}");
    }
}

/// tgt's answer without the answers to what only libiscsi offers: markers, and in discovery what means nothing there.
fn understood(answer: &Recorded, offered: &[String]) -> Vec<u8> {
    let mut kept = text::Text::new();
    for (key, value) in answer.pairs() {
        let negotiated = Key::from_name(key).is_some() || key.ends_with("Marker");
        if !negotiated || offered.iter().any(|offered| offered == key) {
            kept.add(key, value);
        }
    }
    kept.into_octets()
}

#[test]
fn our_initiator_sends_what_libiscsi_sent_and_understands_what_it_understood() {
    let (mut done, mut refused) = (0, 0);
    for c in captures() {
        let (requests, answers) = c.login();
        let mut ours = initiator(&c);
        let mut message = ours.start();
        let mut end = None;
        for (request, answer) in requests.iter().zip(&answers) {
            assert!(end.is_none(), "{}: {end:?}", c.name);
            same_request(&message, request, &c.name);
            let offered: Vec<_> =
                text::pairs(&message.text).unwrap().iter().map(|(key, _)| (*key).to_owned()).collect();
            match ours.handle(&login_response(answer), &understood(answer, &offered)) {
                Ok(InitiatorStep::Send(next)) => message = next,
                Ok(InitiatorStep::Done(negotiated)) => end = Some(Ok(negotiated)),
                Err(error) => end = Some(Err(error)),
            }
        }
        match end.unwrap_or_else(|| panic!("{}: the login did not end", c.name)) {
            Ok(negotiated) => {
                done += 1;
                check(&c, &negotiated);
            }
            Err(error) => {
                refused += 1;
                let last = login_response(answers.last().unwrap()).status;
                assert!(c.name.contains("refused"), "{}: {error}", c.name);
                assert_eq!(error, LoginError::Refused(last));
            }
        }
    }
    assert!(done > 15 && refused == 2, "{done} {refused}");
}

/// What was agreed on is what tgt answered, and what the rest of the recording keeps to.
fn check(c: &Connection, n: &Negotiated) {
    let (requests, answers) = c.login();
    let answer = |key: Key| value(answers.last().unwrap(), key.name()).map(str::to_owned);
    let yes = |is: bool| Some(if is { "Yes" } else { "No" }.to_owned());
    let digest = |is: bool| Some(if is { "CRC32C" } else { "None" }.to_owned());
    assert_eq!(answer(Key::HeaderDigest), digest(n.header_digest), "{}", c.name);
    assert_eq!(answer(Key::DataDigest), digest(n.data_digest), "{}", c.name);
    assert_eq!(n.header_digest, c.name.contains("digest"), "{}", c.name);
    assert_eq!((n.max_recv_data_len, n.max_send_data_len), (262_144, TGT_TAKES));
    if n.session == SessionType::Normal {
        assert_eq!(answer(Key::InitialR2T), yes(n.initial_r2t), "{}", c.name);
        assert_eq!(answer(Key::ImmediateData), yes(n.immediate_data), "{}", c.name);
        assert_eq!(answer(Key::MaxBurstLength), Some(n.max_burst_len.to_string()), "{}", c.name);
        assert_eq!(answer(Key::FirstBurstLength), Some(n.first_burst_len.to_string()), "{}", c.name);
        assert_eq!(n.portal_group_tag, Some(1));
    }
    let proved = match () {
        () if c.name.contains("mutual") => Authenticated::Both,
        () if c.name.contains("chap") => Authenticated::Initiator,
        () => Authenticated::None,
    };
    assert_eq!(n.authenticated, proved, "{}", c.name);
    assert_eq!(n.tsih, login_response(answers.last().unwrap()).tsih);
    // the first PDUs of the full feature phase have these numbers
    match c.initiator[requests.len()].pdu() {
        Pdu::ScsiCommand(command) => assert_eq!(command.sn.cmd_sn, n.cmd_sn, "{}", c.name),
        Pdu::TextRequest(request) => assert_eq!(request.sn.cmd_sn, n.cmd_sn, "{}", c.name),
        other => panic!("{}: {other:?}", c.name),
    }
    match c.target[answers.len()].pdu() {
        Pdu::ScsiResponse(response) => assert_eq!(response.sn.stat_sn, n.stat_sn, "{}", c.name),
        Pdu::TextResponse(response) => assert_eq!(response.sn.stat_sn, n.stat_sn, "{}", c.name),
        other => panic!("{}: {other:?}", c.name),
    }
    for recorded in &c.initiator {
        assert!(recorded.header.data_len() <= n.max_send_data_len, "{}", c.name);
    }
}

/// What tgt would agree to.
fn tgts_offer(c: &Connection) -> Offer {
    let digest = if c.name.contains("digest") { DigestOffer::Always } else { DigestOffer::Never };
    Offer { header_digest: digest, max_recv_data_len: TGT_TAKES, initial_r2t: true, first_burst_len: 65_536, ..offer() }
}

/// Our target, given the recorded requests with the recorded challenge, and what it says to each.
fn served(c: &Connection) -> Vec<TargetStep> {
    let (requests, answers) = c.login();
    let chap = answers.iter().find_map(|r| challenge(r)).map(|challenge| {
        let own = c.name.contains("mutual").then(|| credentials(OWN));
        ChapTarget::new(vec![credentials(USER)], own, challenge).unwrap()
    });
    let last = login_response(answers.last().unwrap());
    let mut gate = |who: &Identity<'_>| {
        if who.target.is_some_and(|name| name.as_str().ends_with("nowhere")) {
            return Err(LoginError::Refused(LoginStatus::NotFound));
        }
        let (tsih, offer) = (last.tsih, tgts_offer(c));
        Ok(Admission { tsih, portal_group_tag: 1, target_alias: None, chap: chap.clone(), offer })
    };
    let mut ours = TargetLogin::new(TargetConfig { stat_sn: StatSn::new(0), command_window: 128 });
    requests.iter().map(|r| ours.handle(&login_request(r), r.data(), &mut gate)).collect()
}

#[test]
fn our_target_agrees_to_what_tgt_agreed_to() {
    let mut done = 0;
    for c in captures().iter().filter(|c| !c.name.contains("refused")) {
        let (requests, answers) = c.login();
        let steps = served(c);
        for (n, (step, recorded)) in steps.iter().zip(&answers).enumerate() {
            let (TargetStep::Send(message) | TargetStep::Done(message, _)) = step else {
                panic!("{}: {step:?}", c.name)
            };
            let theirs = login_response(recorded);
            let (ours, expected) = (message.pdu, login_response(recorded));
            assert_eq!((ours.current, ours.transit), (expected.current, expected.transit), "{}: {n}", c.name);
            assert_eq!((ours.isid, ours.itt, ours.status), (theirs.isid, theirs.itt, theirs.status), "{}", c.name);
            // each of our answers is tgt's; tgt says everything of a discovery session, too
            for (key, said) in text::pairs(&message.text).unwrap() {
                if said == "Irrelevant" || key == "MaxRecvDataSegmentLength" {
                    continue;
                }
                let octets = |value: &str| binary(value, 1024).map_or(value.as_bytes().to_vec(), |octets| octets);
                let recorded = value(recorded, key).unwrap_or_else(|| panic!("{}: tgt does not say {key}", c.name));
                assert_eq!(octets(said), octets(recorded), "{}: {key}", c.name);
            }
        }
        let Some(TargetStep::Done(_, negotiated)) = steps.last() else { panic!("{}: {:?}", c.name, steps.last()) };
        assert_eq!(steps.len(), requests.len());
        let mut initiator = initiator(c);
        initiator.start();
        assert_eq!((negotiated.max_recv_data_len, negotiated.max_send_data_len), (TGT_TAKES, 262_144));
        let swapped = Negotiated {
            max_recv_data_len: negotiated.max_send_data_len,
            max_send_data_len: negotiated.max_recv_data_len,
            stat_sn: login_response(answers.last().unwrap()).sn.stat_sn.next(),
            ..(**negotiated).clone()
        };
        check(c, &swapped);
        done += 1;
    }
    assert!(done > 15, "{done}");
}

#[test]
fn our_target_refuses_whom_tgt_refused() {
    let [wrong_secret, nowhere] = &capture("tgt-refused")[..] else { panic!("two connections") };
    for (c, status, words) in [
        (wrong_secret, LoginStatus::AuthenticationFailure, "wrong response"),
        (nowhere, LoginStatus::NotFound, "no target of this name"),
    ] {
        let steps = served(c);
        let Some(TargetStep::Refuse(message, error)) = steps.last() else { panic!("{:?}", steps.last()) };
        assert_eq!((message.pdu.status, steps.len()), (status, c.login().0.len()));
        assert!(error.to_string().contains(words), "{error}");
    }
}
