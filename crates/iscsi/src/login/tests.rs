//! Our initiator against our target, and each of them against a peer that breaks the rules.

use super::*;
use crate::chap::{Algorithm, Challenge, ChapInitiator, ChapTarget, Credentials, Secret};
use crate::pdu::{Framing, Header, Isid, Itt, LoginRequest, LoginResponse, LoginStatus, Pdu, Role, TargetSn};
use crate::serial::{CmdSn, StatSn};
use proptest::prelude::*;
use text::Text;

fn name(n: &str) -> Name {
    Name::new(n).unwrap()
}

fn initiator(offer: Offer, chap: Option<ChapInitiator>) -> InitiatorConfig {
    InitiatorConfig {
        initiator_name: name("iqn.2026-01.lab:initiator"),
        initiator_alias: Some("lab".into()),
        target_name: Some(name("iqn.2026-01.lab:target")),
        isid: Isid::random(0x0012_3456, 1),
        cid: 3,
        itt: Itt::new(0x77).unwrap(),
        cmd_sn: CmdSn::new(0xffff_fffe),
        offer,
        chap,
    }
}

fn admission(offer: Offer, chap: Option<ChapTarget>) -> Admission {
    Admission { tsih: 0x0123, portal_group_tag: 7, target_alias: Some("disks".into()), chap, offer }
}

fn target() -> TargetLogin {
    TargetLogin::new(TargetConfig { stat_sn: StatSn::new(0xffff_ffff), command_window: 128 })
}

fn secrets(user: &str, own: &str) -> (ChapInitiator, ChapInitiator, ChapTarget) {
    let credentials = |name: &str, secret: &str| Credentials { name: name.into(), secret: Secret::new(secret) };
    let challenge = |octet| Challenge { identifier: octet, octets: vec![octet; 32] };
    let one_way = ChapInitiator::one_way(credentials("user", user)).unwrap();
    let mutual = ChapInitiator::mutual(credentials("user", user), credentials("own", own), challenge(1)).unwrap();
    let users = vec![credentials("user", "secret of user")];
    let own = credentials("own", "secret of own!");
    (one_way, mutual, ChapTarget::new(users, Some(own), challenge(2)).unwrap())
}

/// A request as it arrives: written to octets and read again.
fn carried<T>(pdu: Pdu, text: &[u8], from: Role, take: impl Fn(Pdu) -> Option<T>) -> (T, Vec<u8>) {
    let mut octets = Vec::new();
    pdu.append(text, &Framing::LOGIN, &mut octets).expect("it fits what everybody takes");
    let b = octets.first_chunk().unwrap();
    let header = Header::parse(b, from, &Framing::LOGIN).unwrap();
    let data = header.verified_data(&octets[48..]).unwrap();
    assert_eq!(header.data_len() as usize, text.len());
    (take(Pdu::parse(&header, b).unwrap()).unwrap(), data.to_vec())
}

fn to_target(message: &Message<LoginRequest>) -> (LoginRequest, Vec<u8>) {
    let take = |pdu| if let Pdu::LoginRequest(request) = pdu { Some(request) } else { None };
    carried(Pdu::LoginRequest(message.pdu), &message.text, Role::Initiator, take)
}

fn to_initiator(message: &Message<LoginResponse>) -> (LoginResponse, Vec<u8>) {
    let take = |pdu| if let Pdu::LoginResponse(response) = pdu { Some(response) } else { None };
    carried(Pdu::LoginResponse(message.pdu), &message.text, Role::Target, take)
}

/// What each side makes of a login.
type Outcome = (Result<Negotiated, LoginError>, Result<Negotiated, LoginError>);

/// Both sides to the end. `change` may alter the text of each answer.
fn run_changed(
    config: InitiatorConfig,
    gate: &mut dyn FnMut(&Identity<'_>) -> Result<Admission, LoginError>,
    change: &dyn Fn(&str) -> String,
) -> Outcome {
    let (mut ini, mut tgt) = (InitiatorLogin::new(config), target());
    let mut message = ini.start();
    for _ in 0..MAX_EXCHANGES {
        let (request, data) = to_target(&message);
        let step = tgt.handle(&request, &data, gate);
        let (mut answer, at_target) = match step {
            TargetStep::Send(answer) => (answer, None),
            TargetStep::Done(answer, negotiated) => (answer, Some(Ok(*negotiated))),
            TargetStep::Refuse(answer, error) => (answer, Some(Err(error))),
        };
        answer.text = change(std::str::from_utf8(&answer.text).unwrap()).into_bytes();
        let (response, data) = to_initiator(&answer);
        match (ini.handle(&response, &data), at_target) {
            (Ok(InitiatorStep::Send(next)), None) => message = next,
            (Ok(InitiatorStep::Send(_)), Some(end)) => panic!("the target has ended: {end:?}"),
            (Ok(InitiatorStep::Done(n)), Some(end)) => return (Ok(*n), end),
            (Ok(InitiatorStep::Done(n)), None) => panic!("the target has not ended: {n:?}"),
            (Err(error), end) => {
                return (Err(error), end.unwrap_or(Err(LoginError::Protocol("the initiator hung up"))));
            }
        }
    }
    panic!("the login does not end")
}

fn run(config: InitiatorConfig, admission: Admission) -> Outcome {
    run_changed(config, &mut |_| Ok(admission.clone()), &str::to_owned)
}

#[test]
fn both_sides_agree_and_know_where_to_begin() {
    let offer = Offer { header_digest: DigestOffer::Preferred, max_recv_data_len: 65_536, ..Offer::default() };
    let theirs = Offer {
        header_digest: DigestOffer::IfNeeded,
        max_recv_data_len: 131_072,
        max_burst_len: 8192,
        ..offer.clone()
    };
    let (ini, tgt) = run(initiator(offer, None), admission(theirs, None));
    let (ini, tgt) = (ini.unwrap(), tgt.unwrap());
    let want = Negotiated {
        session: SessionType::Normal,
        initiator_name: name("iqn.2026-01.lab:initiator"),
        initiator_alias: Some("lab".into()),
        target_name: Some(name("iqn.2026-01.lab:target")),
        target_alias: Some("disks".into()),
        portal_group_tag: Some(7),
        isid: Isid::random(0x0012_3456, 1),
        tsih: 0x0123,
        cid: 3,
        authenticated: Authenticated::None,
        header_digest: true,
        data_digest: false,
        max_recv_data_len: 65_536,
        max_send_data_len: 131_072,
        max_connections: 1,
        initial_r2t: false,
        immediate_data: true,
        max_burst_len: 8192,
        first_burst_len: 8192,
        max_outstanding_r2t: 1,
        time2wait_s: 2,
        time2retain_s: 0,
        data_pdu_in_order: true,
        data_sequence_in_order: true,
        error_recovery_level: 0,
        cmd_sn: CmdSn::new(0xffff_fffe),
        max_cmd_sn: CmdSn::new(0x7d),
        stat_sn: StatSn::new(0),
    };
    assert_eq!(ini, want);
    assert_eq!(tgt, Negotiated { max_recv_data_len: 131_072, max_send_data_len: 65_536, ..want });
    assert_eq!(ini.transmit(), tgt.receive());
    assert_eq!(ini.receive(), Framing { header_digest: true, data_digest: false, max_data_len: 65_536 });
}

#[test]
fn a_discovery_session_needs_less() {
    let config = InitiatorConfig { target_name: None, ..initiator(Offer::default(), None) };
    let mut seen = 0;
    let mut gate = |who: &Identity<'_>| {
        assert_eq!((who.session, who.target, who.tsih), (SessionType::Discovery, None, 0));
        seen += 1;
        Ok(admission(Offer::default(), None))
    };
    let (ini, tgt) = run_changed(config, &mut gate, &str::to_owned);
    let (ini, tgt) = (ini.unwrap(), tgt.unwrap());
    assert_eq!((ini.session, ini.portal_group_tag, ini.target_name), (SessionType::Discovery, None, None));
    assert_eq!((tgt.session, tgt.portal_group_tag, tgt.max_send_data_len), (SessionType::Discovery, None, 262_144));
    assert_eq!(seen, 1, "it is asked once");
}

#[test]
fn chap_with_every_algorithm_one_way_and_mutual() {
    for algorithm in Algorithm::PREFERENCE {
        let (one_way, mutual, chap) = secrets("secret of user", "secret of own!");
        for (config, want) in [(one_way, Authenticated::Initiator), (mutual, Authenticated::Both)] {
            let config = initiator(Offer::default(), Some(config.with_algorithms(&[algorithm]).unwrap()));
            let (ini, tgt) = run(config.clone(), admission(Offer::default(), Some(chap.clone())));
            assert_eq!((ini.unwrap().authenticated, tgt.unwrap().authenticated), (want, want), "{algorithm}");
            // a target that asks for nothing: good enough unless it is to prove itself
            let (ini, tgt) = run(config, admission(Offer::default(), None));
            if want == Authenticated::Initiator {
                assert_eq!(
                    (ini.unwrap().authenticated, tgt.unwrap().authenticated),
                    (Authenticated::None, Authenticated::None)
                );
            } else {
                let refused = LoginError::Refused(LoginStatus::AuthenticationFailure);
                assert_eq!((ini.unwrap_err(), tgt.unwrap_err()), (refused.clone(), refused));
            }
        }
    }
}

#[test]
fn who_cannot_prove_himself_is_told_so() {
    let failure = || Err(LoginError::Refused(LoginStatus::AuthenticationFailure));
    let (wrong, _, chap) = secrets("secret of nobody", "-");
    let target = admission(Offer::default(), Some(chap));
    for (config, words) in [(Some(wrong), "wrong response"), (None, "authentication failed")] {
        let (ini, tgt) = run(initiator(Offer::default(), config), target.clone());
        assert_eq!(ini, failure());
        assert!(tgt.unwrap_err().to_string().contains(words));
    }
    let (_, mutual, _) = secrets("secret of user", "secret of an impostor");
    let (ini, _) = run(initiator(Offer::default(), Some(mutual)), target);
    assert!(ini.unwrap_err().to_string().contains("does not know its secret"));
}

#[test]
fn the_gate_says_no_in_words_that_arrive() {
    let to = vec![PortalAddress::parse("10.0.0.1:3261,2").unwrap(), PortalAddress::parse("[::1]:3260,2").unwrap()];
    let moved = |permanent| LoginError::Moved { to: to.clone(), permanent };
    let mut all = vec![moved(false), moved(true)];
    let plain = LoginStatus::ALL.into_iter().filter(|s| !matches!(s.codes(), (0 | 1, _))).map(LoginError::Refused);
    all.extend(plain);
    assert_eq!(all.len(), 17);
    for error in all {
        let mut gate = |_: &Identity<'_>| Err(error.clone());
        let (ini, tgt) = run_changed(initiator(Offer::default(), None), &mut gate, &str::to_owned);
        assert_eq!((ini, tgt), (Err(error.clone()), Err(error.clone())));
        let class = error.status().codes().0;
        assert_eq!(error.may_pass(), class != 2, "{error}");
    }
    assert_eq!(moved(false).to_string(), "the target moved to 10.0.0.1:3261,2, [::1]:3260,2 for now");
}

#[test]
fn digests_that_cannot_be_agreed_on_are_named() {
    let offer = |digest| Offer { data_digest: digest, ..Offer::default() };
    for ours in DigestOffer::ALL {
        for theirs in DigestOffer::ALL {
            let (ini, tgt) = run(initiator(offer(ours), None), admission(offer(theirs), None));
            use DigestOffer::{Always, IfNeeded, Never, Preferred};
            let want = match (ours, theirs) {
                (Never, Always) | (Always, Never) => None,
                (Never, _) | (_, Never) => Some(false),
                (Always, _) | (_, Always) | (Preferred, _) => Some(true),
                (IfNeeded, _) => Some(false),
            };
            match want {
                Some(want) => assert_eq!((ini.unwrap().data_digest, tgt.unwrap().data_digest), (want, want)),
                None => {
                    // whoever cannot live with None finds out; a target that can has answered Reject
                    let ini = ini.unwrap_err();
                    if theirs == Always {
                        assert_eq!(ini, LoginError::Refused(LoginStatus::InitiatorError));
                        assert!(tgt.unwrap_err().to_string().contains("DataDigest"));
                    } else {
                        assert!(
                            ini.to_string().contains("DataDigest=CRC32C was offered and answered with Reject"),
                            "{ini}"
                        );
                        assert!(!tgt.unwrap().data_digest);
                    }
                }
            }
        }
    }
}

/// What the initiator makes of an answer in which `from` was replaced.
fn answered(config: InitiatorConfig, chap: Option<ChapTarget>, from: &str, to: &str) -> LoginError {
    let change = |text: &str| text.replace(from, to);
    let mut gate = |_: &Identity<'_>| Ok(admission(Offer::default(), chap.clone()));
    let (ini, _) = run_changed(config, &mut gate, &change);
    ini.expect_err("a changed answer was accepted")
}

#[test]
fn an_answer_beyond_the_offer_is_refused_by_name() {
    let table = [
        ("HeaderDigest=None", "HeaderDigest=CRC32C", "HeaderDigest=CRC32C was answered, but None was offered"),
        ("MaxBurstLength=262144", "MaxBurstLength=16777215", "MaxBurstLength=16777215"),
        ("FirstBurstLength=65536", "FirstBurstLength=65537", "FirstBurstLength=65537"),
        ("FirstBurstLength=65536", "FirstBurstLength=No", "FirstBurstLength=No is not legal"),
        ("MaxOutstandingR2T=1", "MaxOutstandingR2T=2", "MaxOutstandingR2T=2"),
        ("DataPDUInOrder=Yes", "DataPDUInOrder=No", "DataPDUInOrder=No"),
        ("ErrorRecoveryLevel=0", "ErrorRecoveryLevel=2", "ErrorRecoveryLevel=2"),
        ("MaxConnections=1", "MaxConnections=8", "MaxConnections=8"),
        ("ImmediateData=Yes\0", "", "ImmediateData is missing"),
        ("ImmediateData=Yes", "ImmediateData=Reject", "answered with Reject"),
        ("MaxConnections=1", "MaxBurstLength=512", "MaxBurstLength is there twice"),
        ("MaxConnections=1", "X-new=1", "have yet to answer"),
        ("TargetPortalGroupTag=7", "TargetPortalGroupTag=65536", "TargetPortalGroupTag=65536"),
        ("MaxRecvDataSegmentLength=262144", "MaxRecvDataSegmentLength=1", "MaxRecvDataSegmentLength=1"),
        ("MaxConnections=1\0", "MaxConnections=1", "is not legal"),
        ("MaxConnections=1", "MaxConnections", "no key=value"),
    ];
    for (from, to, words) in table {
        let error = answered(initiator(Offer::default(), None), None, from, to).to_string();
        assert!(error.contains(words), "{from} for {to}: {error}");
    }
    let (_, mutual, chap) = secrets("secret of user", "secret of own!");
    let config = || initiator(Offer::default(), Some(mutual.clone()));
    let table = [
        ("AuthMethod=CHAP", "AuthMethod=None", "AuthMethod=None was answered, but CHAP was offered"),
        ("AuthMethod=CHAP", "AuthMethod=KRB5", "AuthMethod=KRB5 was answered"),
        ("AuthMethod=CHAP", "AuthMethod=Reject", "answered with Reject"),
        ("AuthMethod=CHAP\0", "", "AuthMethod is missing"),
        (
            "AuthMethod=CHAP",
            "AuthMethod=CHAP\0MaxBurstLength=512",
            "MaxBurstLength has no place in SecurityNegotiation",
        ),
        ("CHAP_A=8", "CHAP_A=4", "algorithm 4, which was not offered"),
        ("CHAP_C=0x02", "CHAP_C=0x", ""),
        ("CHAP_N=own", "CHAP_N=other", "calls itself"),
        ("CHAP_R=0x", "CHAP_R=0x00", "wrong response"),
    ];
    for (from, to, words) in table {
        let error = answered(config(), Some(chap.clone()), from, to).to_string();
        assert!(error.contains(words), "{from} for {to}: {error}");
    }
}

fn response(stage: Stage, transit: Option<Stage>) -> LoginResponse {
    LoginResponse {
        current: stage,
        transit,
        continues: false,
        version_max: 0,
        version_active: 0,
        isid: Isid::random(0x0012_3456, 1),
        tsih: 1,
        itt: Itt::new(0x77).unwrap(),
        sn: TargetSn { stat_sn: StatSn::new(5), exp_cmd_sn: CmdSn::new(0xffff_fffe), max_cmd_sn: CmdSn::new(9) },
        status: LoginStatus::Success,
        data_len: 0,
    }
}

#[test]
fn a_response_that_is_out_of_place_ends_the_login() {
    use Stage::{FullFeature, Operational, Security};
    let good = response(Operational, Some(FullFeature));
    let table = [
        (LoginResponse { itt: Itt::new(1).unwrap(), ..good }, "tag of another login"),
        (LoginResponse { isid: Isid::random(1, 1), ..good }, "another ISID"),
        (LoginResponse { version_active: 1, ..good }, "version 1"),
        (LoginResponse { current: Security, ..good }, "another stage"),
        (LoginResponse { status: LoginStatus::Other(2, 0x77), ..good }, "0277h"),
        (LoginResponse { status: LoginStatus::MovedTemporarily, ..good }, "TargetAddress is missing"),
    ];
    for (bad, words) in table {
        let mut login = InitiatorLogin::new(initiator(Offer::default(), None));
        assert!(login.handle(&bad, &[]).is_err(), "not begun");
        login.start();
        let error = login.handle(&bad, &[]).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
        assert!(login.handle(&good, &[]).unwrap_err().to_string().contains("has ended"));
    }
    // the handle of the session is missing
    let text = "HeaderDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=262144\0FirstBurstLength=65536\0DefaultTime2Wait=2\0";
    let mut login = InitiatorLogin::new(initiator(Offer::default(), None));
    login.start();
    let error = login.handle(&LoginResponse { tsih: 0, ..good }, text.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("TSIH"));
    // a target that cannot make up its mind
    let mut login = InitiatorLogin::new(initiator(Offer::default(), None));
    login.start();
    for n in 0.. {
        match login.handle(&response(Operational, None), &[]) {
            Ok(step) => assert!(matches!(step, InitiatorStep::Send(_))),
            Err(error) => {
                assert_eq!((n, error), (MAX_EXCHANGES, LoginError::Endless(MAX_EXCHANGES)));
                break;
            }
        }
    }
    // one that leaves security negotiation before it is over
    let (one_way, _, _) = secrets("secret of user", "-");
    let mut login = InitiatorLogin::new(initiator(Offer::default(), Some(one_way)));
    login.start();
    let error = login.handle(&response(Security, Some(Operational)), b"AuthMethod=CHAP\0").unwrap_err();
    assert!(error.to_string().contains("before it authenticated us"), "{error}");
}

#[test]
fn texts_of_several_pdus_are_put_together() {
    let mut login = InitiatorLogin::new(initiator(Offer::default(), None));
    login.start();
    let part = LoginResponse { continues: true, ..response(Stage::Operational, None) };
    let halves = [
        "HeaderDigest=No",
        "ne\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=262144\0FirstBurstLength=65536\0DefaultTime2Wait=2\0",
    ];
    let InitiatorStep::Send(empty) = login.handle(&part, halves[0].as_bytes()).unwrap() else { panic!() };
    assert_eq!((empty.text.len(), empty.pdu.transit, empty.pdu.continues), (0, None, false));
    let InitiatorStep::Send(last) = login.handle(&response(Stage::Operational, None), halves[1].as_bytes()).unwrap()
    else {
        panic!()
    };
    assert_eq!((last.text.len(), last.pdu.transit), (0, Some(Stage::FullFeature)));
    let done = login.handle(&response(Stage::Operational, Some(Stage::FullFeature)), &[]).unwrap();
    let InitiatorStep::Done(negotiated) = done else { panic!() };
    assert_eq!((negotiated.stat_sn, negotiated.first_burst_len), (StatSn::new(6), 65_536));
    // without end
    let mut login = InitiatorLogin::new(initiator(Offer::default(), None));
    login.start();
    let error = (0..100).find_map(|_| login.handle(&part, &[b'x'; 8192]).err()).unwrap();
    assert!(error.to_string().contains("longer than"), "{error}");
}

fn request(stage: Stage, transit: Option<Stage>) -> LoginRequest {
    let mut login = InitiatorLogin::new(initiator(Offer::default(), None));
    LoginRequest { current: stage, transit, ..login.start().pdu }
}

const FIRST: &str = "InitiatorName=iqn.2026-01.lab:i\0TargetName=iqn.2026-01.lab:t\0";

/// What our target makes of these requests.
fn asked(chap: Option<ChapTarget>, requests: &[(LoginRequest, String)]) -> TargetStep {
    let mut login = target();
    let mut last = None;
    for (request, text) in requests {
        let step = login.handle(request, text.as_bytes(), &mut |_| Ok(admission(Offer::default(), chap.clone())));
        if let TargetStep::Refuse(message, error) = &step {
            assert_eq!(message.pdu.status, error.status());
            assert_ne!(message.pdu.status, LoginStatus::Success);
            let after = login.handle(request, b"", &mut |_| Err(LoginError::Missing("nothing")));
            assert!(matches!(after, TargetStep::Refuse(..)), "it has ended");
            return step;
        }
        last = Some(step);
    }
    last.unwrap()
}

/// What the target wants, what it is asked, what it answers, and words of why.
type Row = (Option<ChapTarget>, Vec<(LoginRequest, String)>, LoginStatus, &'static str);

#[test]
fn a_target_takes_no_nonsense() {
    use LoginStatus as S;
    use Stage::{FullFeature, Operational, Security};
    let (_, _, chap) = secrets("secret of user", "-");
    let op = request(Operational, Some(FullFeature));
    let sec = request(Security, Some(Operational));
    let first = |more: &str| format!("{FIRST}{more}");
    let begun = (LoginRequest { transit: None, ..op }, first(""));
    let table: Vec<Row> = vec![
        (None, vec![(op, String::new())], S::MissingParameter, "InitiatorName is missing"),
        (None, vec![(op, "InitiatorName=iqn.2026-01.lab:i\0".into())], S::MissingParameter, "TargetName is missing"),
        (None, vec![(op, "InitiatorName=me\0".into())], S::InitiatorError, "no iSCSI name"),
        (None, vec![(op, first("SessionType=Fast\0"))], S::SessionTypeNotSupported, "type of session"),
        (None, vec![(LoginRequest { version_min: 1, ..op }, first(""))], S::UnsupportedVersion, "version 1"),
        (
            None,
            vec![begun.clone(), (LoginRequest { cid: 9, ..op }, String::new())],
            S::InitiatorError,
            "another tag, ISID",
        ),
        (
            None,
            vec![begun.clone(), (LoginRequest { isid: Isid::default(), ..op }, String::new())],
            S::InitiatorError,
            "ISID",
        ),
        (None, vec![begun.clone(), (sec, String::new())], S::InitiatorError, "another stage"),
        (None, vec![begun.clone(), (op, first(""))], S::InitiatorError, "InitiatorName was settled before"),
        (None, vec![begun.clone(), (op, "SessionType=Normal\0".into())], S::InitiatorError, "SessionType was settled"),
        (None, vec![(op, first("MaxBurstLength=1\0"))], S::InitiatorError, "MaxBurstLength=1 is not legal"),
        (None, vec![(op, first("A=1\0A=1\0"))], S::InitiatorError, "A is there twice"),
        (None, vec![(op, "\u{1}".into())], S::InitiatorError, "end with a zero"),
        (None, vec![(sec, first("MaxBurstLength=512\0"))], S::InitiatorError, "has no place in SecurityNegotiation"),
        (None, vec![(sec, first("AuthMethod=CHAP\0"))], S::AuthenticationFailure, "authentication failed"),
        (Some(chap.clone()), vec![(op, first(""))], S::AuthenticationFailure, "authentication failed"),
        (Some(chap.clone()), vec![(sec, first(""))], S::AuthenticationFailure, "authentication failed"),
        (
            Some(chap.clone()),
            vec![(sec, first("AuthMethod=None\0"))],
            S::AuthenticationFailure,
            "authentication failed",
        ),
        (
            Some(chap.clone()),
            vec![(sec, first("AuthMethod=None,CHAP\0")), (sec, String::new())],
            S::MissingParameter,
            "CHAP_A is missing",
        ),
        (
            Some(chap.clone()),
            vec![(sec, first("AuthMethod=CHAP\0")), (sec, "CHAP_A=5\0".into()), (sec, "CHAP_N=user\0".into())],
            S::MissingParameter,
            "CHAP_R is missing",
        ),
        (
            Some(chap),
            vec![(sec, first("AuthMethod=CHAP\0")), (sec, "CHAP_A=4,9\0".into())],
            S::AuthenticationFailure,
            "none of the algorithms 4,9",
        ),
    ];
    for (chap, requests, status, words) in table {
        let TargetStep::Refuse(message, error) = asked(chap, &requests) else { panic!("{words}: accepted") };
        assert_eq!(message.pdu.status, status, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn what_initiators_do_is_understood() {
    use Stage::{FullFeature, Operational, Security};
    let text = |step: &TargetStep| match step {
        TargetStep::Send(m) | TargetStep::Done(m, _) => String::from_utf8(m.text.clone()).unwrap(),
        TargetStep::Refuse(_, e) => panic!("{e}"),
    };
    // security negotiation without a method, and straight to the full feature phase
    let step = asked(None, &[(request(Security, Some(FullFeature)), FIRST.into())]);
    let TargetStep::Done(_, negotiated) = &step else { panic!("{step:?}") };
    assert_eq!(
        (negotiated.first_burst_len, negotiated.max_recv_data_len, negotiated.initial_r2t),
        (65_536, 8192, true)
    );
    assert_eq!(text(&step), "TargetAlias=disks\0TargetPortalGroupTag=7\0");
    // two texts in the operational stage
    let step = asked(
        None,
        &[
            (request(Operational, None), format!("{FIRST}MaxBurstLength=1024\0")),
            (request(Operational, Some(FullFeature)), "FirstBurstLength=65536\0".into()),
        ],
    );
    let TargetStep::Done(message, negotiated) = &step else { panic!("{step:?}") };
    assert_eq!((negotiated.max_burst_len, negotiated.first_burst_len), (1024, 1024));
    assert_eq!((message.pdu.tsih, message.pdu.transit), (0x0123, Some(FullFeature)));
    assert_eq!(text(&step), "FirstBurstLength=1024\0");
    // a text in two PDUs
    let part = LoginRequest { continues: true, ..request(Operational, None) };
    let step =
        asked(None, &[(part, FIRST[..30].into()), (request(Operational, Some(FullFeature)), FIRST[30..].into())]);
    assert!(matches!(step, TargetStep::Done(..)), "{step:?}");
    // more unknown keys than one answer can hold: it comes in pieces, and only then the login goes on
    let many: String = (0..600).map(|n| format!("X-lab.{n}=1\0")).collect();
    let transit = request(Operational, Some(FullFeature));
    let parts = [(part, format!("{FIRST}{}", &many[..5000])), (transit, many[5000..].into())];
    let mut login = target();
    let mut gate = |_: &Identity<'_>| Ok(admission(Offer::default(), None));
    let mut answers = Vec::new();
    for (request, text) in &parts {
        answers.push(login.handle(request, text.as_bytes(), &mut gate));
    }
    for _ in 0..2 {
        answers.push(login.handle(&transit_less(transit), b"", &mut gate));
    }
    answers.push(login.handle(&transit, b"", &mut gate));
    let seen: Vec<_> = answers
        .iter()
        .map(|step| match step {
            TargetStep::Send(m) => (m.pdu.continues, m.pdu.transit, m.text.len()),
            TargetStep::Done(m, _) => (m.pdu.continues, m.pdu.transit, m.text.len()),
            TargetStep::Refuse(_, e) => panic!("{e}"),
        })
        .collect();
    let total: usize = seen.iter().map(|(_, _, len)| len).sum();
    assert!(seen[1].0 && seen[1].2 == 8192 && !seen[3].0 && seen[3].1.is_none(), "{seen:?}");
    assert_eq!(seen[4], (false, Some(FullFeature), 0), "{total}");
}

fn transit_less(request: LoginRequest) -> LoginRequest {
    LoginRequest { transit: None, ..request }
}

fn any_offer() -> impl Strategy<Value = Offer> {
    let digest = || prop::sample::select(DigestOffer::ALL.to_vec());
    let length = || prop_oneof![Just(512u32), Just((1 << 24) - 1), 512u32..1 << 24, Just(0)];
    (digest(), digest(), length(), any::<(bool, bool)>(), length(), length(), any::<u16>(), 0u16..4000, 0u16..4000)
        .prop_map(
            |(
                header_digest,
                data_digest,
                max_recv_data_len,
                (initial_r2t, immediate_data),
                max_burst_len,
                first_burst_len,
                r2t,
                wait,
                retain,
            )| Offer {
                header_digest,
                data_digest,
                max_recv_data_len,
                initial_r2t,
                immediate_data,
                max_burst_len,
                first_burst_len,
                max_outstanding_r2t: r2t,
                time2wait_s: wait,
                time2retain_s: retain,
            },
        )
}

proptest! {
    /// Whatever both sides would agree to: they agree on the same, by the rules, or both know that they do not.
    #[test]
    fn any_two_offers(ours in any_offer(), theirs in any_offer(), discovery: bool, authenticate in 0u8..4) {
        let (one_way, mutual, chap) = secrets("secret of user", "secret of own!");
        let (config, required) = match authenticate {
            0 => (None, None),
            1 => (Some(one_way), None),
            2 => (Some(one_way), Some(chap)),
            _ => (Some(mutual), Some(chap)),
        };
        let mut config = initiator(ours.clone(), config);
        if discovery {
            config.target_name = None;
        }
        let (ini, tgt) = run(config, admission(theirs.clone(), required));
        let clash = |a, b| matches!((a, b), (DigestOffer::Never, DigestOffer::Always) | (DigestOffer::Always, DigestOffer::Never));
        if clash(ours.header_digest, theirs.header_digest) || clash(ours.data_digest, theirs.data_digest) {
            prop_assert!(ini.is_err(), "{tgt:?}");
            return Ok(());
        }
        let (ini, tgt) = (ini.unwrap(), tgt.unwrap());
        let (ours, theirs) = (ours.clamped(), theirs.clamped());
        prop_assert_eq!((ini.max_recv_data_len, tgt.max_recv_data_len), (ours.max_recv_data_len, theirs.max_recv_data_len));
        prop_assert_eq!(ini.transmit(), tgt.receive());
        prop_assert_eq!(ini.receive(), tgt.transmit());
        let swapped = Negotiated {
            max_recv_data_len: tgt.max_send_data_len,
            max_send_data_len: tgt.max_recv_data_len,
            ..tgt
        };
        prop_assert_eq!(&ini, &swapped);
        prop_assert_eq!(ini.time2wait_s, ours.time2wait_s.max(theirs.time2wait_s));
        prop_assert_eq!(ini.time2retain_s, ours.time2retain_s.min(theirs.time2retain_s));
        if !discovery {
            prop_assert_eq!(ini.initial_r2t, ours.initial_r2t || theirs.initial_r2t);
            prop_assert_eq!(ini.immediate_data, ours.immediate_data && theirs.immediate_data);
            prop_assert_eq!(ini.max_burst_len, ours.max_burst_len.min(theirs.max_burst_len));
            prop_assert_eq!(ini.first_burst_len, ours.first_burst_len.min(theirs.first_burst_len).min(ini.max_burst_len));
            prop_assert_eq!(ini.max_outstanding_r2t, ours.max_outstanding_r2t.min(theirs.max_outstanding_r2t));
        }
        let proved = [Authenticated::None, Authenticated::None, Authenticated::Initiator, Authenticated::Both];
        prop_assert_eq!(ini.authenticated, proved[usize::from(authenticate)]);
    }

    /// Texts of any kind, of either side, at any point of a login: no panic, and an end.
    #[test]
    fn any_texts(
        texts in proptest::collection::vec(any_text(), 1..6),
        transit in any::<[bool; 6]>(),
        continues in any::<[bool; 6]>(),
        authenticate: bool,
    ) {
        let (one_way, _, chap) = secrets("secret of user", "-");
        let mut ini = InitiatorLogin::new(initiator(Offer::default(), authenticate.then_some(one_way)));
        ini.start();
        let mut tgt = target();
        let (first, next) = if authenticate { (Stage::Security, Stage::Operational) } else { (Stage::Operational, Stage::FullFeature) };
        for (n, text) in texts.iter().enumerate() {
            let go = transit[n].then_some(next);
            let continues = continues[n] && go.is_none();
            let _ = ini.handle(&LoginResponse { continues, ..response(first, go) }, text);
            let admission = admission(Offer::default(), authenticate.then(|| chap.clone()));
            let _ = tgt.handle(&LoginRequest { continues, ..request(first, go) }, text, &mut |_| Ok(admission.clone()));
        }
    }
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let keys: Vec<&str> = Key::ALL
        .iter()
        .map(|key| key.name())
        .chain([
            "AuthMethod",
            "CHAP_A",
            "CHAP_I",
            "CHAP_C",
            "CHAP_N",
            "CHAP_R",
            "InitiatorName",
            "TargetName",
            "SessionType",
            "X-a",
            "TargetAddress",
        ])
        .collect();
    let values = [
        "None",
        "CRC32C",
        "Yes",
        "No",
        "512",
        "5",
        "0x00",
        "CHAP",
        "CHAP,None",
        "user",
        "iqn.2026-01.lab:x",
        "Reject",
        "Irrelevant",
    ];
    let pair = (prop::sample::select(keys), prop::sample::select(values.to_vec()));
    let pairs = proptest::collection::vec(pair, 0..6).prop_map(|pairs| {
        let mut text = Text::new();
        pairs.iter().for_each(|(key, value)| text.add(key, value));
        text.into_octets()
    });
    prop_oneof![4 => pairs, 1 => proptest::collection::vec(any::<u8>(), 0..40)]
}
