//! Golden octets, truncation, and what is refused.
//!
//! The octets were written down by hand from the figures of RFC 7143 section 11 and from the layouts of Linux's
//! `include/scsi/iscsi_proto.h`; what other implementations really sent is in `tests/captures`.

use super::*;
use crate::serial::{CmdSn, StatSn};
use proptest::prelude::*;

const PLAIN: Framing = Framing { header_digest: false, data_digest: false, max_data_len: MAX_DATA_LEN };
const DIGESTS: Framing = Framing { header_digest: true, data_digest: true, max_data_len: MAX_DATA_LEN };
const LUN_1: Lun = Lun([0, 1, 0, 0, 0, 0, 0, 0]);

fn itt(value: u32) -> Itt {
    Itt::new(value).unwrap()
}

fn ttt(value: u32) -> Option<Ttt> {
    Ttt::new(value)
}

fn ini(cmd_sn: u32, exp_stat_sn: u32) -> InitiatorSn {
    InitiatorSn { cmd_sn: CmdSn::new(cmd_sn), exp_stat_sn: StatSn::new(exp_stat_sn) }
}

fn tgt() -> TargetSn {
    TargetSn { stat_sn: StatSn::new(0x10), exp_cmd_sn: CmdSn::new(0x20), max_cmd_sn: CmdSn::new(0x9f) }
}

/// 48 octets out of words, as the figures show them.
fn words(w: [u32; 12]) -> Bhs {
    let mut b = [0; BHS_LEN];
    for (at, word) in w.into_iter().enumerate() {
        put(&mut b, at * 4, word.to_be_bytes());
    }
    b
}

/// One PDU of each kind, with every field that has a meaning filled in, beside its octets.
fn golden() -> Vec<(Pdu, Bhs)> {
    let none = RESERVED_TAG;
    let cdb = [0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let read = ScsiCommand {
        immediate: false,
        is_final: true,
        read: true,
        write: false,
        attribute: TaskAttribute::Simple,
        lun: LUN_1,
        itt: itt(5),
        expected_len: 4096,
        sn: ini(7, 9),
        cdb,
        data_len: 0,
    };
    let write = ScsiCommand {
        immediate: true,
        is_final: false,
        read: false,
        write: true,
        attribute: TaskAttribute::HeadOfQueue,
        data_len: 513,
        ..read
    };
    let response = ScsiResponse {
        itt: itt(5),
        response: CommandResponse::Completed { status: 2 },
        residual: Residual::Underflow(512),
        read_residual: Residual::Overflow(3),
        snack_tag: 0,
        exp_data_sn: 4,
        sn: tgt(),
        data_len: 20,
    };
    let data_in = DataIn {
        is_final: true,
        acknowledge: false,
        status: Some(DataInStatus { status: 0, residual: Residual::Overflow(8) }),
        lun: Lun::ZERO,
        itt: itt(5),
        ttt: None,
        sn: tgt(),
        data_sn: 3,
        buffer_offset: 0x3000,
        data_len: 0x1000,
    };
    let login = LoginRequest {
        current: Stage::Operational,
        transit: Some(Stage::FullFeature),
        continues: false,
        version_max: 0,
        version_min: 0,
        isid: Isid::random(0x0012_3456, 0x789a),
        tsih: 0,
        itt: itt(1),
        cid: 2,
        sn: ini(7, 0),
        data_len: 99,
    };
    let dropped = AsyncMessage {
        event: AsyncEvent::ConnectionDropped { cid: 1, time2wait_s: 2, time2retain_s: 20 },
        vendor_code: 0,
        lun: Lun::ZERO,
        sn: tgt(),
        data_len: 0,
    };
    vec![
        (
            Pdu::NopOut(NopOut { immediate: true, lun: LUN_1, itt: None, ttt: ttt(6), sn: ini(7, 9), data_len: 4 }),
            words([0x4080_0000, 4, 0x0001_0000, 0, none, 6, 7, 9, 0, 0, 0, 0]),
        ),
        (
            Pdu::NopIn(NopIn { lun: LUN_1, itt: None, ttt: ttt(6), sn: tgt(), data_len: 0 }),
            words([0x2080_0000, 0, 0x0001_0000, 0, none, 6, 0x10, 0x20, 0x9f, 0, 0, 0]),
        ),
        (
            Pdu::ScsiCommand(read),
            words([0x01c1_0000, 0, 0x0001_0000, 0, 5, 4096, 7, 9, 0x2800_0000, 0x0008_0000, 0x0800_0000, 0]),
        ),
        (
            Pdu::ScsiCommand(write),
            words([0x4123_0000, 513, 0x0001_0000, 0, 5, 4096, 7, 9, 0x2800_0000, 0x0008_0000, 0x0800_0000, 0]),
        ),
        (Pdu::ScsiResponse(response), words([0x2192_0002, 20, 0, 0, 5, 0, 0x10, 0x20, 0x9f, 4, 3, 512])),
        (
            Pdu::ScsiResponse(ScsiResponse {
                response: CommandResponse::TargetFailure,
                residual: Residual::Overflow(1),
                read_residual: Residual::Underflow(2),
                data_len: 0,
                ..response
            }),
            words([0x218c_0100, 0, 0, 0, 5, 0, 0x10, 0x20, 0x9f, 4, 2, 1]),
        ),
        (
            Pdu::TaskRequest(TaskRequest {
                immediate: true,
                function: TaskFunction::AbortTask,
                lun: LUN_1,
                itt: itt(8),
                referenced: Some(itt(5)),
                sn: ini(8, 9),
                ref_cmd_sn: CmdSn::new(7),
                exp_data_sn: 0,
            }),
            words([0x4281_0000, 0, 0x0001_0000, 0, 8, 5, 8, 9, 7, 0, 0, 0]),
        ),
        (
            Pdu::TaskResponse(TaskResponse { result: TaskResult::NoTask, itt: itt(8), sn: tgt() }),
            words([0x2280_0100, 0, 0, 0, 8, 0, 0x10, 0x20, 0x9f, 0, 0, 0]),
        ),
        (
            Pdu::LoginRequest(login),
            words([0x4387_0000, 99, 0x8012_3456, 0x789a_0000, 1, 0x0002_0000, 7, 0, 0, 0, 0, 0]),
        ),
        (
            Pdu::LoginRequest(LoginRequest { transit: None, continues: true, current: Stage::Security, ..login }),
            words([0x4340_0000, 99, 0x8012_3456, 0x789a_0000, 1, 0x0002_0000, 7, 0, 0, 0, 0, 0]),
        ),
        (
            Pdu::LoginResponse(LoginResponse {
                current: Stage::Security,
                transit: Some(Stage::Operational),
                continues: false,
                version_max: 0,
                version_active: 0,
                isid: Isid::enterprise(0x0000_1234, 1),
                tsih: 3,
                itt: itt(1),
                sn: tgt(),
                status: LoginStatus::TooManyConnections,
                data_len: 0,
            }),
            words([0x2381_0000, 0, 0x4000_1234, 0x0001_0003, 1, 0, 0x10, 0x20, 0x9f, 0x0206_0000, 0, 0]),
        ),
        (
            Pdu::TextRequest(TextRequest {
                immediate: false,
                is_final: true,
                continues: false,
                lun: Lun::ZERO,
                itt: itt(2),
                ttt: None,
                sn: ini(1, 2),
                data_len: 16,
            }),
            words([0x0480_0000, 16, 0, 0, 2, none, 1, 2, 0, 0, 0, 0]),
        ),
        (
            Pdu::TextResponse(TextResponse {
                is_final: false,
                continues: true,
                lun: Lun::ZERO,
                itt: itt(2),
                ttt: ttt(0x77),
                sn: tgt(),
                data_len: 8192,
            }),
            words([0x2440_0000, 8192, 0, 0, 2, 0x77, 0x10, 0x20, 0x9f, 0, 0, 0]),
        ),
        (
            Pdu::DataOut(DataOut {
                is_final: true,
                lun: LUN_1,
                itt: itt(5),
                ttt: ttt(0xa1b2),
                exp_stat_sn: StatSn::new(9),
                data_sn: 2,
                buffer_offset: 0x2000,
                data_len: 0x1000,
            }),
            words([0x0580_0000, 0x1000, 0x0001_0000, 0, 5, 0xa1b2, 0, 9, 0, 2, 0x2000, 0]),
        ),
        (Pdu::DataIn(data_in), words([0x2585_0000, 0x1000, 0, 0, 5, none, 0x10, 0x20, 0x9f, 3, 0x3000, 8])),
        (
            Pdu::DataIn(DataIn {
                is_final: false,
                acknowledge: true,
                status: None,
                lun: LUN_1,
                ttt: ttt(4),
                ..data_in
            }),
            words([0x2540_0000, 0x1000, 0x0001_0000, 0, 5, 4, 0x10, 0x20, 0x9f, 3, 0x3000, 0]),
        ),
        (
            Pdu::LogoutRequest(LogoutRequest {
                immediate: true,
                reason: LogoutReason::CloseConnection,
                itt: itt(3),
                cid: 1,
                sn: ini(7, 9),
            }),
            words([0x4681_0000, 0, 0, 0, 3, 0x0001_0000, 7, 9, 0, 0, 0, 0]),
        ),
        (
            Pdu::LogoutResponse(LogoutResponse {
                result: LogoutResult::RecoveryNotSupported,
                itt: itt(3),
                sn: tgt(),
                time2wait_s: 2,
                time2retain_s: 20,
            }),
            words([0x2680_0200, 0, 0, 0, 3, 0, 0x10, 0x20, 0x9f, 0, 0x0002_0014, 0]),
        ),
        (
            Pdu::R2t(R2t {
                lun: LUN_1,
                itt: itt(5),
                ttt: ttt(0xa1b2).unwrap(),
                sn: tgt(),
                r2t_sn: 1,
                buffer_offset: 0x2000,
                desired_len: 0x4000,
            }),
            words([0x3180_0000, 0, 0x0001_0000, 0, 5, 0xa1b2, 0x10, 0x20, 0x9f, 1, 0x2000, 0x4000]),
        ),
        (
            Pdu::Snack(Snack {
                kind: SnackKind::Status,
                lun: Lun::ZERO,
                itt: None,
                tag: none,
                exp_stat_sn: StatSn::new(9),
                beg_run: 9,
                run_length: 2,
            }),
            words([0x1081_0000, 0, 0, 0, none, none, 0, 9, 0, 0, 9, 2]),
        ),
        (
            Pdu::AsyncMessage(dropped),
            words([0x3280_0000, 0, 0, 0, none, 0, 0x10, 0x20, 0x9f, 0x0200_0001, 0x0002_0014, 0]),
        ),
        (
            Pdu::AsyncMessage(AsyncMessage {
                event: AsyncEvent::LogoutRequested { within_s: 3 },
                vendor_code: 9,
                lun: LUN_1,
                ..dropped
            }),
            words([0x3280_0000, 0, 0x0001_0000, 0, none, 0, 0x10, 0x20, 0x9f, 0x0109_0000, 0x0000_0003, 0]),
        ),
        (
            Pdu::Reject(Reject { reason: RejectReason::InvalidPduField, sn: tgt(), data_sn: 6, data_len: 48 }),
            words([0x3f80_0900, 48, 0, 0, none, 0, 0x10, 0x20, 0x9f, 6, 0, 0]),
        ),
    ]
}

fn header(b: &Bhs, framing: &Framing) -> Result<Header, PduError> {
    let from = if b[0] & 0x20 == 0 { Role::Initiator } else { Role::Target };
    Header::parse(b, from, framing)
}

fn parse(b: &Bhs) -> Result<Pdu, PduError> {
    Pdu::parse(&header(b, &PLAIN)?, b)
}

#[test]
fn every_pdu_has_the_octets_of_the_figures() {
    let all = golden();
    for opcode in Opcode::ALL {
        assert!(all.iter().any(|(pdu, _)| pdu.opcode() == opcode), "{opcode} is missing");
    }
    for (pdu, want) in all {
        let mut out = [0xaa; MAX_PLAIN_HEAD];
        assert_eq!(pdu.encode(&PLAIN, &mut out), Ok(48));
        assert_eq!(out[..48], want, "{pdu:?}");
        assert_eq!(out[48..], [0xaa; 4]);
        assert_eq!(parse(&want), Ok(pdu));
        let digest = pdu.opcode().takes_digests();
        let need = if digest { 52 } else { 48 };
        assert_eq!(pdu.encode(&DIGESTS, &mut out), Ok(need));
        assert_eq!(out[..48], want);
        if digest {
            assert_eq!(out[48..], crc32c::crc32c(&want).to_le_bytes());
        }
        for n in 0..need {
            assert_eq!(pdu.encode(&DIGESTS, &mut out[..n]), Err(EncodeError::NoRoom { need, have: n }), "{pdu:?}");
        }
    }
}

#[test]
fn headers_say_what_follows() {
    for (pdu, b) in golden() {
        for (framing, digest) in [(PLAIN, false), (DIGESTS, pdu.opcode().takes_digests())] {
            let h = header(&b, &framing).unwrap();
            assert_eq!((h.opcode, h.ahs_len(), h.has_header_digest()), (pdu.opcode(), 0, digest));
            assert_eq!(h.head_len(), if digest { 52 } else { 48 });
            assert_eq!(h.has_data_digest(), digest && h.data_len() > 0);
            let tail = h.data_len().next_multiple_of(4) as usize + if h.has_data_digest() { 4 } else { 0 };
            assert_eq!(h.tail_len(), tail);
            assert_eq!(h.immediate, b[0] & 0x40 != 0);
            // what the peer said it would send is held against what we take
            let most = Framing { max_data_len: h.data_len().saturating_sub(1), ..framing };
            if h.data_len() > 0 {
                assert!(matches!(header(&b, &most), Err(PduError::TooLong { .. })), "{pdu:?}");
                assert!(matches!(pdu.encode(&most, &mut [0; 52]), Err(EncodeError::TooLong { .. })));
            }
        }
        // nobody else may send it
        let from = pdu.opcode().sender().peer();
        assert_eq!(Header::parse(&b, from, &PLAIN), Err(PduError::WrongSide(pdu.opcode())));
    }
    for code in 0..=0x3f {
        let mut b = [0; BHS_LEN];
        b[0] = code;
        let known = Opcode::ALL.into_iter().find(|o| *o as u8 == code);
        assert_eq!(Opcode::from_code(code), known);
        let found = header(&b, &PLAIN).map(|h| h.opcode);
        assert_eq!(found, known.ok_or(PduError::UnknownOpcode(code)));
    }
}

#[test]
fn lengths_that_a_pdu_cannot_have_are_refused_at_the_door() {
    for (pdu, mut b) in golden() {
        let opcode = pdu.opcode();
        if !opcode.carries_data() {
            b[7] = 1;
            assert_eq!(header(&b, &PLAIN), Err(PduError::UnexpectedData { opcode, data_len: 1 }));
            b[7] = 0;
        }
        b[4] = 255;
        match header(&b, &PLAIN) {
            Ok(h) => assert_eq!((opcode, h.ahs_len(), h.head_len()), (Opcode::ScsiCommand, 1020, 1068)),
            Err(e) => assert_eq!(e, PduError::UnexpectedAhs { opcode, words: 255 }),
        }
        b[4] = 0;
        b[5..8].fill(0xff);
        assert!(header(&b, &Framing::LOGIN).is_err(), "{opcode}: 16 MiB");
    }
}

#[test]
fn a_wrong_bit_of_the_head_is_noticed() {
    for (pdu, _) in golden() {
        let mut head = [0; 52];
        if pdu.encode(&DIGESTS, &mut head) != Ok(52) {
            continue;
        }
        let h = header(head.first_chunk().unwrap(), &DIGESTS).unwrap();
        assert_eq!(h.verify_header_digest(&head), Ok(()));
        for n in 0..52 {
            assert_eq!(h.verify_header_digest(&head[..n]), Err(PduError::Short { need: 52, have: n }));
        }
        for bit in 0..52 * 8 {
            let mut bad = head;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(h.verify_header_digest(&bad), Err(PduError::HeaderDigest { .. })), "{pdu:?} bit {bit}");
        }
    }
}

#[test]
fn whole_pdus_with_data() {
    let (ping, _) = golden()[0];
    for len in 0..9usize {
        let data: Vec<u8> = (1..=len as u8).collect();
        let mut out = vec![0x55];
        ping.append(&data, &DIGESTS, &mut out).unwrap();
        let head: Bhs = *out[1..].first_chunk().unwrap();
        let h = header(&head, &DIGESTS).unwrap();
        assert_eq!((h.data_len() as usize, out.len()), (len, 1 + h.head_len() + h.tail_len()));
        let tail = &out[1 + h.head_len()..];
        assert_eq!(h.verified_data(tail), Ok(&data[..]));
        for n in 0..tail.len() {
            assert_eq!(h.verified_data(&tail[..n]), Err(PduError::Short { need: tail.len(), have: n }));
            let mut bad = tail.to_vec();
            bad[n] ^= 0x10;
            assert!(matches!(h.verified_data(&bad), Err(PduError::DataDigest { .. })), "octet {n} of {len}");
        }
    }
    // nothing is appended when it does not fit
    let mut out = vec![];
    let small = Framing { max_data_len: 4, ..DIGESTS };
    assert_eq!(ping.append(&[0; 5], &small, &mut out), Err(EncodeError::TooLong { data_len: 5, max: 4 }));
    let logout = golden().into_iter().find(|(p, _)| p.opcode() == Opcode::LogoutRequest).unwrap().0;
    assert_eq!(logout.append(&[0; 5], &DIGESTS, &mut out), Err(EncodeError::TooLong { data_len: 5, max: 0 }));
    let too_long = vec![0; MAX_DATA_LEN as usize + 1];
    let any = Framing { max_data_len: u32::MAX, ..DIGESTS };
    assert!(ping.append(&too_long, &any, &mut out).is_err());
    assert!(out.is_empty());
}

/// Golden octets of this kind, with these octets changed, are refused with words like these.
#[track_caller]
fn refused(opcode: Opcode, changes: &[(usize, u8)], words: &str) {
    let mut b = golden().into_iter().find(|(p, _)| p.opcode() == opcode).unwrap().1;
    for &(at, value) in changes {
        b[at] = value;
    }
    let error = parse(&b).expect_err("it is not legal");
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.reject_reason().is_some());
}

#[test]
fn what_contradicts_itself_is_refused() {
    let no_tag: Vec<(usize, u8)> = (offset::ITT..offset::ITT + 4).map(|at| (at, 0xff)).collect();
    for opcode in Opcode::ALL {
        let optional = matches!(opcode, Opcode::Snack | Opcode::NopIn | Opcode::AsyncMessage | Opcode::Reject);
        if !optional && opcode != Opcode::NopOut {
            refused(opcode, &no_tag, "initiator task tag");
        }
    }
    refused(Opcode::NopOut, &[(0, 0x00)], "needs I");
    refused(Opcode::ScsiCommand, &[(1, 0x41)], "W or F");
    refused(Opcode::ScsiCommand, &[(1, 0x81)], "R or W");
    refused(Opcode::ScsiCommand, &[(1, 0xc5)], "ATTR");
    refused(Opcode::ScsiCommand, &[(7, 1)], "W is set");
    refused(Opcode::ScsiCommand, &[(1, 0xa1), (6, 0x10), (7, 1)], "expected data transfer length");
    refused(Opcode::ScsiResponse, &[(1, 0x86)], "exclude each other");
    refused(Opcode::ScsiResponse, &[(1, 0x98)], "exclude each other");
    let no_reference: Vec<(usize, u8)> = (20..24).map(|at| (at, 0xff)).collect();
    refused(Opcode::TaskRequest, &no_reference, "referenced task tag");
    refused(Opcode::LoginRequest, &[(0, 0x03)], "I is set");
    refused(Opcode::LoginRequest, &[(1, 0xc7)], "T and C");
    refused(Opcode::LoginRequest, &[(1, 0x8b)], "CSG");
    refused(Opcode::LoginRequest, &[(1, 0x0c)], "CSG");
    for flags in [0x80, 0x82, 0x84, 0x85, 0x86] {
        refused(Opcode::LoginRequest, &[(1, flags)], "NSG");
    }
    refused(Opcode::LoginResponse, &[(1, 0x84), (36, 0), (37, 0)], "NSG");
    refused(Opcode::TextRequest, &[(1, 0xc0)], "F and C");
    refused(Opcode::TextResponse, &[(1, 0xc0)], "F and C");
    refused(Opcode::TextResponse, &[(1, 0x80)], "target transfer tag");
    refused(Opcode::TextResponse, &[(20, 0xff), (21, 0xff), (22, 0xff), (23, 0xff)], "target transfer tag");
    let far: Vec<(usize, u8)> = (40..44).map(|at| (at, 0xff)).collect();
    for opcode in [Opcode::DataOut, Opcode::DataIn, Opcode::R2t] {
        refused(opcode, &far, "2^32");
    }
    refused(Opcode::DataIn, &[(1, 0x01)], "S needs F");
    refused(Opcode::DataIn, &[(1, 0x87)], "exclude each other");
    refused(Opcode::R2t, &[(46, 0)], "more than nothing");
    refused(Opcode::R2t, &[(20, 0xff), (21, 0xff), (22, 0xff), (23, 0xff)], "target transfer tag");
}

#[test]
fn what_means_nothing_is_not_looked_at() {
    // a failed login whose stages are nonsense, as some targets send it
    let (_, mut b) = golden().into_iter().find(|(p, _)| p.opcode() == Opcode::LoginResponse).unwrap();
    b[1] = 0xff;
    assert!(matches!(parse(&b), Ok(Pdu::LoginResponse(LoginResponse { transit: None, continues: false, .. }))));
    // NSG without T, residual counts without their bits, status without S
    let login = parse(&words([0x4307_0000, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
    assert!(matches!(login, Ok(Pdu::LoginRequest(LoginRequest { transit: None, current: Stage::Operational, .. }))));
    let response = parse(&words([0x2180_0000, 0, 0, 0, 1, 0, 0, 0, 0, 0, 5, 5]));
    let Ok(Pdu::ScsiResponse(response)) = response else { panic!("{response:?}") };
    assert_eq!((response.residual, response.read_residual), (Residual::None, Residual::None));
    let data = parse(&words([0x2586_0002, 4, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
    assert!(matches!(data, Ok(Pdu::DataIn(DataIn { status: None, is_final: true, .. }))), "{data:?}");
    // bit 7 of the opcode, and I from a target
    let nop = parse(&words([0xe080_0000, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
    assert!(matches!(nop, Ok(Pdu::NopIn(_))), "{nop:?}");
}

#[test]
fn sense_data_are_split_off() {
    assert_eq!(split_sense(&[]), Ok((&[][..], &[][..])));
    let data = [0, 3, 0x70, 0, 5, 0xaa, 0xbb];
    assert_eq!(split_sense(&data), Ok((&[0x70, 0, 5][..], &[0xaa, 0xbb][..])));
    for n in 1..5 {
        assert!(matches!(split_sense(&data[..n]), Err(PduError::Sense { .. })), "{n}");
    }
    assert_eq!(split_sense(&data[..5]), Ok((&[0x70, 0, 5][..], &[][..])));
    assert_eq!(split_sense(&[0xff, 0xff, 1]), Err(PduError::Sense { sense_len: 0xffff, data_len: 3 }));
}

#[test]
fn additional_headers() {
    // A bidirectional command with a CDB of 32 octets: sections 11.2.2.3 and 11.2.2.4.
    let rest: [u8; 16] = std::array::from_fn(|i| i as u8 + 16);
    let mut ahs = Vec::new();
    Ahs::ExtendedCdb(&rest).write(&mut ahs);
    Ahs::BidirectionalReadLength(0x0102_0304).write(&mut ahs);
    let want: [u8; 28] =
        [0, 17, 1, 0, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 0, 5, 2, 0, 1, 2, 3, 4];
    assert_eq!(ahs, want);
    let Pdu::ScsiCommand(mut cmd) = golden()[3].0 else { unreachable!() };
    cmd.read = true;
    for framing in [PLAIN, DIGESTS] {
        let mut out = [0xaa; MAX_HEAD];
        let n = cmd.encode_with_ahs(&ahs, &framing, &mut out).unwrap();
        let b: &Bhs = out.first_chunk().unwrap();
        let h = header(b, &framing).unwrap();
        assert_eq!((n, h.head_len(), h.ahs_len(), b[4]), (h.head_len(), h.head_len(), 28, 7));
        assert_eq!(h.verify_header_digest(&out[..n]), Ok(()));
        assert_eq!(ScsiCommand::parse(&h, b), Ok(cmd));
        let read: Vec<_> = h.ahs(&out[..n]).unwrap().collect();
        assert_eq!(read, [Ok(Ahs::ExtendedCdb(&rest)), Ok(Ahs::BidirectionalReadLength(0x0102_0304))]);
        for short in 0..n {
            let need = EncodeError::NoRoom { need: n, have: short };
            assert_eq!(cmd.encode_with_ahs(&ahs, &framing, &mut [0; MAX_HEAD][..short]), Err(need));
            assert_eq!(h.ahs(&out[..short]).is_err(), short < 76);
            assert_eq!(h.verify_header_digest(&out[..short]).is_err(), framing.header_digest);
        }
    }
    for n in 1..ahs.len() {
        let found: Vec<_> = AhsSegments::new(&ahs[..n]).collect();
        assert_eq!(found.last().unwrap().is_err(), n != 20, "{n}: {found:?}");
        assert_eq!(cmd.encode_with_ahs(&ahs[..n], &PLAIN, &mut [0; MAX_HEAD]).is_ok(), n == 20);
    }
    assert!(cmd.encode_with_ahs(&[0; 1024], &PLAIN, &mut [0; 2048]).is_err());
    // nothing in it, too short or too long for its type
    for bad in [[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 2, 0], [0xff, 0xff, 9, 0]] {
        let found: Vec<_> = AhsSegments::new(&bad).collect();
        assert!(matches!(found[..], [Err(PduError::BadAhs { at: 0, left: 4, .. })]), "{bad:?}: {found:?}");
    }
    let other: Vec<_> = AhsSegments::new(&[0, 1, 9, 7]).collect();
    assert_eq!(other, [Ok(Ahs::Other(9, &[7]))]);
    let mut again = Vec::new();
    Ahs::Other(9, &[7]).write(&mut again);
    assert_eq!(again, [0, 1, 9, 7]);
}

#[test]
fn codes_go_round() {
    for code in 0..=255u8 {
        assert_eq!(RejectReason::from_code(code).code(), code);
        assert_eq!(TaskResult::from_code(code).code(), code);
        assert_eq!(TaskFunction::from_code(code).code(), code & 0x7f);
        for class in 0..=4 {
            assert_eq!(LoginStatus::from_codes(class, code).codes(), (class, code));
        }
    }
    assert_eq!(LoginStatus::from_codes(2, 3).to_string(), "no target of this name at this portal");
    assert_eq!(Isid::oui([0xff, 1, 2], 0x0003_0405).0, [0x3f, 1, 2, 3, 4, 5]);
    let mut rejected = golden()[2].1.to_vec();
    assert_eq!(Reject::rejected_itt(&rejected), Some(itt(5)));
    rejected.pop();
    assert_eq!(Reject::rejected_itt(&rejected), None);
}

fn any_head() -> impl Strategy<Value = Bhs> {
    let opcode = prop::sample::select(Opcode::ALL.to_vec());
    (opcode, any::<[u8; 32]>(), any::<[u8; 16]>(), any::<bool>(), any::<bool>()).prop_map(
        |(o, a, z, immediate, free)| {
            let mut b = [0; BHS_LEN];
            b[..32].copy_from_slice(&a);
            b[32..].copy_from_slice(&z);
            b[0] = o as u8 | bit(immediate, flags::IMMEDIATE);
            if free {
                b[4] = 0;
                b[5..8].fill(0);
            }
            b
        },
    )
}

proptest! {
    /// Whatever is read is written again so that it is read the same.
    #[test]
    fn any_48_octets(b in any_head(), digests: bool, rest in proptest::collection::vec(any::<u8>(), 0..1100)) {
        let framing = if digests { DIGESTS } else { PLAIN };
        let Ok(h) = header(&b, &framing) else { return Ok(()) };
        prop_assert!((BHS_LEN..=MAX_HEAD).contains(&h.head_len()));
        let _ = (h.verify_header_digest(&rest), h.ahs(&rest).map(|a| a.count()), h.verified_data(&rest), split_sense(&rest));
        let Ok(pdu) = Pdu::parse(&h, &b) else { return Ok(()) };
        let mut out = [0xaa; MAX_PLAIN_HEAD];
        let n = pdu.encode(&framing, &mut out).unwrap();
        let again = header(out.first_chunk().unwrap(), &framing).unwrap();
        prop_assert_eq!(n, again.head_len());
        prop_assert_eq!(again.verify_header_digest(&out[..n]), Ok(()));
        prop_assert_eq!((again.data_len(), again.tail_len()), (h.data_len(), h.tail_len()));
        prop_assert_eq!(Pdu::parse(&again, out.first_chunk().unwrap()), Ok(pdu));
    }
}
