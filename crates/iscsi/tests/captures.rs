//! Golden octets: what libiscsi and tgt said to each other, recorded by `lab/capture-iscsi-login.py` (`captures/README.md`). None of
//! these octets was made by our code.

use crate::recorded::{Connection, Recorded, TGT_TAKES, capture, captures};
use polypath_iscsi::login::{PortalAddress, SendTargets, SendTargetsStep, Which};
use polypath_iscsi::pdu::*;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn every_pdu_is_read_and_written_back_octet_for_octet() {
    let mut seen = BTreeMap::<String, usize>::new();
    for c in captures() {
        for recorded in c.all() {
            let pdu = recorded.pdu();
            *seen.entry(pdu.opcode().to_string()).or_default() += 1;
            let mut octets = Vec::new();
            pdu.append(recorded.data(), &recorded.framing, &mut octets).unwrap();
            assert_eq!(octets, as_we_write(recorded), "{}: {pdu:?}", c.name);
        }
    }
    let want = [
        Opcode::NopOut,
        Opcode::ScsiCommand,
        Opcode::TaskRequest,
        Opcode::LoginRequest,
        Opcode::TextRequest,
        Opcode::DataOut,
        Opcode::LogoutRequest,
        Opcode::NopIn,
        Opcode::ScsiResponse,
        Opcode::TaskResponse,
        Opcode::LoginResponse,
        Opcode::TextResponse,
        Opcode::DataIn,
        Opcode::LogoutResponse,
        Opcode::R2t,
    ];
    // all but SNACK, Asynchronous Message and Reject, for which neither had a cause
    assert_eq!(seen.keys().cloned().collect::<BTreeSet<_>>(), want.map(|o| o.to_string()).into(), "{seen:?}");
}

/// The recorded octets, with what means nothing set as we set it: what libiscsi or tgt fills in although the field is reserved there,
/// and what our reader rightly does not look at.
fn as_we_write(recorded: &Recorded) -> Vec<u8> {
    let mut octets = recorded.octets.clone();
    if let Pdu::LoginRequest(LoginRequest { transit: None, .. }) = recorded.pdu() {
        // libiscsi fills in NSG without T, where it is reserved
        octets[1] &= !0x03;
    }
    octets
}

#[test]
fn header_digests_are_right_and_wrong_bits_are_noticed() {
    let (mut tried, mut plain) = (0, 0);
    for c in captures() {
        for (n, recorded) in c.all().enumerate() {
            assert_eq!(recorded.header.verify_header_digest(recorded.head()), Ok(()), "{}", c.name);
            assert_eq!(recorded.header.verified_data(recorded.tail()), Ok(recorded.data()));
            if !recorded.header.has_header_digest() {
                plain += 1;
                continue;
            }
            let mut head = recorded.head().to_vec();
            head[8 + n * 7 % 44] ^= 1 << (n % 8);
            let noticed = recorded.header.verify_header_digest(&head);
            assert!(matches!(noticed, Err(PduError::HeaderDigest { .. })), "{}: {n}", c.name);
            tried += 1;
        }
    }
    assert!(tried > 40 && plain > 100, "{tried} {plain}");
}

/// The PDUs of a recording that move data, by kind.
#[derive(Default)]
struct Parts {
    commands: Vec<ScsiCommand>,
    r2ts: Vec<R2t>,
    outs: Vec<DataOut>,
    ins: Vec<DataIn>,
}

fn parts(c: &Connection) -> Parts {
    let mut all = Parts::default();
    for recorded in c.all() {
        match recorded.pdu() {
            Pdu::ScsiCommand(p) => all.commands.push(p),
            Pdu::R2t(p) => all.r2ts.push(p),
            Pdu::DataOut(p) => all.outs.push(p),
            Pdu::DataIn(p) => all.ins.push(p),
            _ => {}
        }
    }
    all
}

#[test]
fn every_data_out_answers_an_r2t_in_order_and_within_what_the_target_takes() {
    let (mut answered, mut several) = (0, 0);
    for c in captures() {
        let Parts { commands, r2ts, mut outs, .. } = parts(&c);
        for r2t in r2ts {
            let command = commands.iter().find(|command| command.itt == r2t.itt);
            // what was cut off at the end of a recording is missing
            let Some(command) = command else { continue };
            assert!(command.write && r2t.buffer_offset + r2t.desired_len <= command.expected_len, "{}", c.name);
            assert!(r2t.buffer_offset >= command.data_len, "{}: immediate data are not asked for again", c.name);
            let (mut covered, mut data_sn) = (0, 0);
            outs.retain(|out| {
                if out.ttt != Some(r2t.ttt) || out.itt != r2t.itt || covered == r2t.desired_len {
                    return true;
                }
                assert_eq!((out.buffer_offset, out.data_sn), (r2t.buffer_offset + covered, data_sn), "{}", c.name);
                assert!(out.data_len <= TGT_TAKES);
                covered += out.data_len;
                data_sn += 1;
                assert_eq!(out.is_final, covered == r2t.desired_len, "{}", c.name);
                false
            });
            answered += 1;
            several += usize::from(data_sn > 1);
        }
        assert_eq!(outs, [], "{}: data that nobody asked for", c.name);
    }
    assert!(answered >= 4 && several >= 1, "{answered} R2T, {several} with several Data-Out");
}

#[test]
fn what_the_target_answers_is_within_what_was_expected() {
    let (mut ended_by_data, mut sense, mut residuals) = (0, 0, 0);
    for c in captures() {
        let Parts { commands, ins, .. } = parts(&c);
        for data in ins {
            let command = commands.iter().find(|command| command.itt == data.itt).unwrap();
            assert!(command.read && data.buffer_offset + data.data_len <= command.expected_len, "{}", c.name);
            if let Some(end) = data.status {
                ended_by_data += 1;
                if let Residual::Underflow(left) = end.residual {
                    residuals += 1;
                    assert_eq!(data.buffer_offset + data.data_len + left, command.expected_len, "{}", c.name);
                }
            }
        }
        for recorded in &c.target {
            let Pdu::ScsiResponse(response) = recorded.pdu() else { continue };
            let (sense_data, rest) = split_sense(recorded.data()).unwrap();
            let CommandResponse::Completed { status } = response.response else { panic!("{}: {response:?}", c.name) };
            assert_eq!(status == 2, !sense_data.is_empty(), "{}: CHECK CONDITION has sense data", c.name);
            assert!(rest.is_empty());
            sense += usize::from(status == 2 && sense_data[0] & 0x7e == 0x70);
            residuals += usize::from(response.residual != Residual::None);
        }
    }
    assert!(ended_by_data > 10 && sense > 10 && residuals > 10, "{ended_by_data} {sense} {residuals}");
}

#[test]
fn serial_numbers_follow_each_other() {
    for c in captures() {
        let mut next: Option<polypath_iscsi::serial::StatSn> = None;
        for recorded in &c.target {
            let (sn, counts) = match recorded.pdu() {
                Pdu::LoginResponse(p) if p.status == LoginStatus::Success => (p.sn, true),
                Pdu::ScsiResponse(p) => (p.sn, true),
                Pdu::DataIn(p) if p.status.is_some() => (p.sn, true),
                Pdu::TaskResponse(p) => (p.sn, true),
                Pdu::TextResponse(p) => (p.sn, true),
                Pdu::LogoutResponse(p) => (p.sn, true),
                Pdu::R2t(p) => (p.sn, false),
                _ => continue,
            };
            if let Some(next) = next {
                assert_eq!(sn.stat_sn, next, "{}: {:?}", c.name, recorded.pdu());
            }
            if counts {
                next = Some(sn.stat_sn.next());
            }
            // a command that was answered is not expected any more, and the window is open
            assert!(!sn.max_cmd_sn.is_before(sn.exp_cmd_sn.previous()), "{}", c.name);
        }
        let (mut cmd_sn, mut seen) = (None, None);
        for recorded in &c.initiator {
            let sn = match recorded.pdu() {
                Pdu::LoginRequest(p) => {
                    cmd_sn.get_or_insert(p.sn.cmd_sn);
                    p.sn
                }
                // the tests of CmdSN break the rule on purpose
                Pdu::ScsiCommand(p) if !p.immediate && !c.name.contains("tests") => {
                    let at = cmd_sn.as_mut().unwrap();
                    assert_eq!(p.sn.cmd_sn, *at, "{}", c.name);
                    *at = at.next();
                    p.sn
                }
                _ => continue,
            };
            // what was acknowledged stays acknowledged
            assert!(seen.is_none_or(|seen| !sn.exp_stat_sn.is_before(seen)), "{}", c.name);
            seen = Some(sn.exp_stat_sn);
        }
    }
}

#[test]
fn pings_of_the_target_are_answered_without_being_asked_back() {
    let [c] = &capture("tgt-nop")[..] else { panic!("one connection") };
    let asked: Vec<_> =
        c.target.iter().filter_map(|r| if let Pdu::NopIn(p) = r.pdu() { p.ttt } else { None }).collect();
    let answers: Vec<_> =
        c.initiator.iter().filter_map(|r| if let Pdu::NopOut(p) = r.pdu() { Some(p) } else { None }).collect();
    assert!(asked.len() >= 2);
    for answer in &answers {
        assert!(answer.immediate && answer.itt.is_none() && asked.contains(&answer.ttt.unwrap()));
    }
    assert!(!answers.is_empty());
}

#[test]
fn the_list_of_targets_is_understood() {
    let [c] = &capture("tgt-discovery")[..] else { panic!("one connection") };
    let find = |opcode, all: &[Recorded]| all.iter().position(|p| p.header.opcode == opcode).unwrap();
    let (asked, answered) =
        (&c.initiator[find(Opcode::TextRequest, &c.initiator)], &c.target[find(Opcode::TextResponse, &c.target)]);
    let (Pdu::TextRequest(request), Pdu::TextResponse(response)) = (asked.pdu(), answered.pdu()) else {
        unreachable!()
    };
    let mut ours = SendTargets::new(request.itt, 1 << 20);
    let message = ours.start(&Which::All, request.sn);
    assert_eq!(message.text, asked.data());
    // libiscsi sends it for immediate delivery, which is not what we do
    assert_eq!(TextRequest { immediate: request.immediate, ..message.pdu }, request);
    let SendTargetsStep::Done(targets) = ours.handle(&response, answered.data(), request.sn).unwrap() else {
        panic!("the whole list came in one answer")
    };
    let names: Vec<_> = targets.iter().map(|t| t.name.as_str().rsplit(':').next().unwrap()).collect();
    assert_eq!(
        names.iter().copied().collect::<BTreeSet<_>>(),
        ["blocks", "chap", "digest", "mutual", "nop", "plain"].into()
    );
    for target in &targets {
        let [PortalAddress { host, group: Some(1), .. }] = &target.portals[..] else { panic!("{target:?}") };
        assert_eq!(host, "127.0.0.1");
    }
}
