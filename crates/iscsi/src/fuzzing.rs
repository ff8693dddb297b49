//! Bodies of the fuzz targets, here so that `cargo test` replays the committed corpus. Not an interface.

mod connection;

pub use connection::iscsi_connection;

use crate::chap::{Algorithm, Challenge, ChapInitiator, ChapTarget, Credentials, Secret};
use crate::login::text::{Text, pairs, unique};
use crate::login::*;
use crate::pdu::*;
use crate::serial::{CmdSn, StatSn};

/// The framing that the first octet of an input stands for, and the basic header after it, if it is one.
fn framed(data: &[u8]) -> Option<(Framing, Header, &[u8; BHS_LEN], &[u8])> {
    let (&first, rest) = data.split_first()?;
    let max_data_len = if first & 4 != 0 { MAX_DATA_LEN } else { DEFAULT_MAX_RECV_DATA_LEN };
    let framing = Framing { header_digest: first & 1 != 0, data_digest: first & 2 != 0, max_data_len };
    let b = rest.first_chunk::<BHS_LEN>()?;
    let from = if b[0] & 0x20 == 0 { Role::Initiator } else { Role::Target };
    match Header::parse(b, from, &framing) {
        Ok(header) => Some((framing, header, b, rest)),
        Err(error) => {
            let _ = (error.reject_reason(), error.to_string());
            None
        }
    }
}

/// Headers of any kind, with whatever follows: lengths, digests, additional headers, data.
fn iscsi_header(data: &[u8]) {
    let Some((framing, header, _, rest)) = framed(data) else { return };
    assert!((BHS_LEN..=MAX_HEAD).contains(&header.head_len()));
    assert!(header.data_len() <= framing.max_data_len);
    let tail = header.data_len() as usize + header.pad_len();
    assert!(header.tail_len() - tail <= DIGEST_LEN && tail.is_multiple_of(4));
    let _ = header.verify_header_digest(rest);
    if let Ok(segments) = header.ahs(rest) {
        let mut again = Vec::new();
        let well_formed = segments.clone().all(|segment| segment.is_ok());
        segments.flatten().for_each(|segment| segment.write(&mut again));
        assert!(!well_formed || again.len() == header.ahs_len());
    }
    let data = rest.get(header.head_len()..).and_then(|tail| header.verified_data(tail).ok());
    if let Some(data) = data {
        assert_eq!(data.len(), header.data_len() as usize);
        let _ = (split_sense(data), Reject::rejected_itt(data));
    }
}

/// PDUs of any kind: what was read, encoded again, must be read again the same.
pub fn iscsi_pdu(data: &[u8]) {
    iscsi_header(data);
    let Some((framing, header, b, _)) = framed(data) else { return };
    let pdu = match Pdu::parse(&header, b) {
        Ok(pdu) => pdu,
        Err(error) => {
            let _ = (error.reject_reason(), error.to_string());
            return;
        }
    };
    let _ = format!("{pdu:?}");
    let mut out = [0; MAX_PLAIN_HEAD];
    let n = pdu.encode(&framing, &mut out).expect("what we read, we write");
    let first = out.first_chunk().expect("a head has 48 octets");
    let again = Header::parse(first, header.opcode.sender(), &framing).expect("what we write, we read");
    assert_eq!((n, again.data_len()), (again.head_len(), header.data_len()));
    assert_eq!(again.verify_header_digest(&out[..n]), Ok(()));
    assert_eq!(Pdu::parse(&again, first), Ok(pdu));
}

/// Texts, and their values read in every way.
pub fn iscsi_text(data: &[u8]) {
    let Ok(read) = pairs(data) else { return };
    let mut text = Text::new();
    for (key, value) in &read {
        text.add(key, value);
        let _ = (value::boolean(value), value::number(value), value::range(value));
        if let Some(octets) = value::binary(value, 1024) {
            assert_eq!(value::binary(&value::to_hexadecimal(&octets), 1024), Some(octets.clone()));
            assert_eq!(value::binary(&value::to_base64(&octets), 1024), Some(octets));
        }
        if let Ok(name) = Name::new(value) {
            assert_eq!(Name::new(name.as_str()), Ok(name));
        }
        if let Ok(address) = PortalAddress::parse(value) {
            assert_eq!(PortalAddress::parse(&address.to_string()), Ok(address));
        }
    }
    let octets = text.into_octets();
    assert_eq!(pairs(&octets).as_ref(), Ok(&read));
    let _ = unique(read);
}

/// What one step of a login brings: flags, a length of two octets, and the text.
struct Steps<'a>(&'a [u8]);

impl<'a> Iterator for Steps<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[flags, high, low], rest) = self.0.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (text, rest) = rest.split_at(len);
        self.0 = rest;
        Some((flags, text))
    }
}

const TRANSIT: u8 = 1;
const CONTINUES: u8 = 2;
const OPERATIONAL: u8 = 4;
const FULL_FEATURE: u8 = 8;
/// The step also brings the right response to the other side's challenge.
const PROOF: u8 = 16;

fn stages(flags: u8) -> (Stage, Option<Stage>, bool) {
    let current = if flags & OPERATIONAL != 0 { Stage::Operational } else { Stage::Security };
    let full = flags & FULL_FEATURE != 0 || current == Stage::Operational;
    let transit = (flags & TRANSIT != 0).then_some(if full { Stage::FullFeature } else { Stage::Operational });
    (current, transit, flags & CONTINUES != 0 && transit.is_none())
}

fn credentials(name: &str) -> Credentials {
    Credentials { name: name.into(), secret: Secret::new(format!("secret of {name}")) }
}

fn challenge(octet: u8) -> Challenge {
    Challenge { identifier: octet, octets: vec![octet; 16] }
}

fn with_proof(flags: u8, text: &[u8], name: &str, octet: u8) -> Vec<u8> {
    let mut text = text.to_vec();
    if flags & PROOF != 0 {
        let response = Algorithm::Md5.response(octet, &credentials(name).secret, &[octet; 16]);
        let mut more = Text::new();
        more.add("CHAP_N", name);
        more.add("CHAP_R", &value::to_hexadecimal(&response));
        text.extend(more.into_octets());
    }
    text
}

fn offer(choice: u8) -> Offer {
    let digest = DigestOffer::ALL[usize::from(choice >> 4 & 3)];
    Offer {
        header_digest: digest,
        initial_r2t: choice & 0x40 != 0,
        immediate_data: choice & 0x80 != 0,
        ..Offer::default()
    }
}

fn check(n: &Negotiated) {
    assert!(
        (n.tsih != 0 || n.session == SessionType::Discovery) && n.max_connections == 1 && n.error_recovery_level == 0
    );
    assert!(n.data_pdu_in_order && n.data_sequence_in_order);
    assert!(n.first_burst_len <= n.max_burst_len && n.max_burst_len <= MAX_DATA_LEN && n.first_burst_len >= 512);
    assert!((512..=MAX_DATA_LEN).contains(&n.max_send_data_len) && n.max_recv_data_len <= 262_144);
}

/// An initiator's login, driven by a target that says what the input says.
pub fn iscsi_login_initiator(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let chap = match choice & 3 {
        0 => None,
        1 => ChapInitiator::one_way(credentials("user")).ok(),
        _ => ChapInitiator::mutual(credentials("user"), credentials("own"), challenge(1)).ok(),
    };
    let mutual = choice & 3 > 1;
    let config = InitiatorConfig {
        initiator_name: Name::new("iqn.2026-01.lab:i").expect("a name"),
        initiator_alias: None,
        target_name: (choice & 4 == 0).then(|| Name::new("iqn.2026-01.lab:t").expect("a name")),
        isid: Isid::random(1, 2),
        cid: 0,
        itt: Itt::new(1).expect("a tag"),
        cmd_sn: CmdSn::new(u32::MAX),
        offer: offer(choice),
        chap,
    };
    let permitted = config.offer.clone();
    let mut login = InitiatorLogin::new(config);
    let mut last = login.start();
    for (flags, text) in Steps(rest) {
        assert!(last.text.len() <= 8192 && last.pdu.data_len as usize == last.text.len());
        assert!(!(last.pdu.continues && last.pdu.transit.is_some()));
        let text = with_proof(flags, text, "own", 1);
        let (current, transit, continues) = stages(flags);
        let response = LoginResponse {
            current,
            transit,
            continues,
            version_max: 0,
            version_active: 0,
            isid: Isid::random(1, 2),
            tsih: 7,
            itt: last.pdu.itt,
            sn: TargetSn { stat_sn: StatSn::new(0), exp_cmd_sn: CmdSn::new(0), max_cmd_sn: CmdSn::new(9) },
            status: LoginStatus::from_codes(flags >> 5 & 1, flags >> 6),
            data_len: text.len() as u32,
        };
        match login.handle(&response, &text) {
            Ok(InitiatorStep::Send(next)) => last = next,
            Ok(InitiatorStep::Done(n)) => {
                check(&n);
                assert!(!mutual || n.authenticated == Authenticated::Both, "a target that proved nothing");
                if n.session == SessionType::Normal {
                    assert!(n.max_burst_len <= permitted.max_burst_len && (n.initial_r2t || !permitted.initial_r2t));
                    assert!(!n.immediate_data || permitted.immediate_data);
                }
                return;
            }
            Err(error) => {
                let _ = (error.to_string(), error.status(), error.may_pass());
                return;
            }
        }
    }
}

/// A target's login, driven by an initiator that says what the input says.
pub fn iscsi_login_target(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let chap = (choice & 1 != 0).then(|| {
        let own = (choice & 2 != 0).then(|| credentials("own"));
        let chap = ChapTarget::new(vec![credentials("user")], own, challenge(2));
        chap.and_then(|chap| chap.with_algorithms(&[Algorithm::Md5])).expect("good secrets")
    });
    let required = chap.is_some();
    let offer = offer(choice);
    let admission = Admission { tsih: 7, portal_group_tag: 1, target_alias: Some("lab".into()), chap, offer };
    let mut gate = |who: &Identity<'_>| match who.tsih {
        0 => Ok(admission.clone()),
        _ => Err(LoginError::Refused(LoginStatus::SessionDoesNotExist)),
    };
    let mut login = TargetLogin::new(TargetConfig { stat_sn: StatSn::new(u32::MAX), command_window: 8 });
    for (flags, text) in Steps(rest) {
        let text = with_proof(flags, text, "user", 2);
        let (current, transit, continues) = stages(flags);
        let request = LoginRequest {
            current,
            transit,
            continues,
            version_max: 0,
            version_min: flags >> 7,
            isid: Isid::random(1, 2),
            tsih: (flags >> 6 & 1).into(),
            itt: Itt::new(1).expect("a tag"),
            cid: 0,
            sn: InitiatorSn { cmd_sn: CmdSn::new(0), exp_stat_sn: StatSn::new(0) },
            data_len: text.len() as u32,
        };
        let step = login.handle(&request, &text, &mut gate);
        let (TargetStep::Send(m) | TargetStep::Done(m, _) | TargetStep::Refuse(m, _)) = &step;
        assert!(m.text.len() <= 8192 && m.pdu.data_len as usize == m.text.len());
        assert!(m.pdu.transit.is_none() || m.pdu.transit == transit, "nobody asked to go there");
        match step {
            TargetStep::Send(_) => {}
            TargetStep::Done(_, n) => {
                check(&n);
                assert!(!required || n.authenticated != Authenticated::None, "an initiator that proved nothing");
                return;
            }
            TargetStep::Refuse(message, error) => {
                assert_ne!(message.pdu.status, LoginStatus::Success, "{error}");
                return;
            }
        }
    }
}

/// Discovery, on either side.
pub fn iscsi_discovery(data: &[u8]) {
    match data.split_first() {
        Some((0..128, rest)) => iscsi_send_targets(rest),
        Some((_, rest)) => iscsi_text_server(rest),
        None => {}
    }
}

/// The list of targets, as an initiator reads it in pieces.
fn iscsi_send_targets(data: &[u8]) {
    let sn = InitiatorSn { cmd_sn: CmdSn::new(0), exp_stat_sn: StatSn::new(0) };
    let itt = Itt::new(1).expect("a tag");
    let mut exchange = SendTargets::new(itt, 4096);
    let _ = exchange.start(&Which::All, sn);
    for (flags, text) in Steps(data) {
        let is_final = flags & TRANSIT != 0;
        let response = TextResponse {
            is_final,
            continues: flags & CONTINUES != 0 && !is_final,
            lun: Lun::ZERO,
            itt,
            ttt: if is_final { None } else { Ttt::new(2) },
            sn: TargetSn { stat_sn: StatSn::new(0), exp_cmd_sn: CmdSn::new(0), max_cmd_sn: CmdSn::new(9) },
            data_len: text.len() as u32,
        };
        match exchange.handle(&response, text, sn) {
            Ok(SendTargetsStep::Send(_)) => {}
            Ok(SendTargetsStep::Done(_)) | Err(_) => return,
        }
    }
}

/// Text requests to a target in the full feature phase.
fn iscsi_text_server(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let session = if choice & 1 != 0 { SessionType::Discovery } else { SessionType::Normal };
    let own = Name::new("iqn.2026-01.lab:t").expect("a name");
    let ttt = Ttt::new(3).expect("a tag");
    let mut server = TextServer::new(session, Some(own.clone()), 512, ttt);
    for (flags, text) in Steps(rest) {
        let is_final = flags & TRANSIT != 0;
        let request = TextRequest {
            immediate: false,
            is_final,
            continues: flags & CONTINUES != 0 && !is_final,
            lun: Lun::ZERO,
            itt: Itt::new((flags >> 5).into()).expect("a tag"),
            ttt: (flags & OPERATIONAL != 0).then_some(ttt),
            sn: InitiatorSn { cmd_sn: CmdSn::new(0), exp_stat_sn: StatSn::new(0) },
            data_len: text.len() as u32,
        };
        let sn = TargetSn { stat_sn: StatSn::new(0), exp_cmd_sn: CmdSn::new(0), max_cmd_sn: CmdSn::new(9) };
        let portals = || vec![PortalAddress { host: "host".into(), port: 1, group: Some(1) }; 40];
        let mut list = |_: &Which| vec![DiscoveredTarget { name: own.clone(), portals: portals() }];
        if let Ok(answer) = server.handle(&request, text, sn, &mut list) {
            assert!(answer.text.len() <= 512 && answer.pdu.ttt.is_none() == answer.pdu.is_final);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every body over random octets: what fuzzing does at length.
    #[test]
    fn no_body_panics() {
        const BODIES: [fn(&[u8]); 6] =
            [iscsi_pdu, iscsi_text, iscsi_login_initiator, iscsi_login_target, iscsi_discovery, iscsi_connection];
        proptest!(|(data in proptest::collection::vec(any::<u8>(), 0..200), opcode in prop::sample::select(Opcode::ALL.to_vec()))| {
            let mut framed = data.clone();
            if let Some(octet) = framed.get_mut(1) {
                *octet = *octet & 0xc0 | opcode as u8;
            }
            BODIES.iter().for_each(|body| [&data, &framed].into_iter().for_each(|input| body(input)));
        });
    }

    fn step(flags: u8, text: &str) -> Vec<u8> {
        [&[flags][..], &(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
    }

    /// The bodies get as far as the full feature phase when the input is good.
    #[test]
    fn bodies_reach_the_end() {
        let first = "InitiatorName=iqn.2026-01.lab:i\0TargetName=iqn.2026-01.lab:t\0AuthMethod=CHAP\0";
        let login = [
            vec![3 | 0x80],
            step(TRANSIT, first),
            step(0, "CHAP_A=5\0"),
            step(TRANSIT | PROOF, "CHAP_I=9\0CHAP_C=0x0102030405060708090a0b0c0d0e0f10\0"),
            step(TRANSIT | OPERATIONAL, "InitialR2T=No\0"),
        ];
        iscsi_login_target(&login.concat());
        let login = [
            vec![2 | 0x80],
            step(0, "AuthMethod=CHAP\0"),
            step(0, "CHAP_A=5\0CHAP_I=9\0CHAP_C=0x0102030405060708090a0b0c0d0e0f10\0"),
            step(TRANSIT | PROOF, ""),
            step(
                TRANSIT | OPERATIONAL,
                "InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=512\0FirstBurstLength=512\0DefaultTime2Wait=2\0",
            ),
        ];
        iscsi_login_initiator(&login.concat());
        iscsi_send_targets(&[step(CONTINUES, "TargetName=iqn."), step(TRANSIT, "2026-01.lab:t\0")].concat());
        iscsi_text_server(&[vec![1], step(TRANSIT, "SendTargets=All\0"), step(TRANSIT | OPERATIONAL, "")].concat());
    }
}
