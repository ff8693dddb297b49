//! Golden octets and truncation of every PDU.
//!
//! The octets were written down by hand from the layouts of other implementations: Linux
//! `include/linux/nvme-tcp.h` (LNX) and SPDK `include/spdk/nvmf_spec.h` (SPDK), with the values those
//! implementations put there. The digests were computed with the `crc32c` crate, not with our function.

use super::*;
use polypath_nvme::{Cqe, SglDescriptor, Sqe, StatusField};
use proptest::prelude::*;

const PLAIN: Framing = Framing::NONE;

fn framing(header_digest: bool, data_digest: bool, pda: u8) -> Framing {
    Framing { header_digest, data_digest, alignment: DataAlignment::from_wire(pda).unwrap() }
}

fn common(b: &[u8], f: &Framing) -> Result<CommonHeader, PduError> {
    let from = if b[0] & 1 == 0 { Direction::HostToController } else { Direction::ControllerToHost };
    CommonHeader::parse(b.first_chunk().unwrap(), from, f)
}

#[test]
fn icreq() {
    // LNX struct nvme_tcp_icreq_pdu as drivers/nvme/host/tcp.c nvme_tcp_init_connection fills it with both
    // digests: hlen 128, plen 128, pfv 0, hpda 0, digest 3, maxr2t 0.
    let req = IcReq { header_digest: true, data_digest: true, ..IcReq::default() };
    let mut b = [0xaa; 128];
    assert_eq!(req.encode(&mut b), Ok(128));
    let mut want = [0u8; 128];
    want[..12].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(b, want);
    let ch = common(&b, &PLAIN).unwrap();
    assert_eq!((ch.kind, ch.head_len(), ch.data_len()), (PduType::IcReq, 128, 0));
    assert_eq!(IcReq::parse(&ch, &b), Ok(req));
    for n in 0..128 {
        assert!(IcReq::parse(&ch, &b[..n]).is_err(), "{n}");
        assert_eq!(req.encode(&mut [0; 128][..n]), Err(EncodeError::NoRoom { need: 128, have: n }));
    }
    b[8] = 1;
    assert_eq!(IcReq::parse(&ch, &b), Err(PduError::Version(1)));
    b[8] = 0;
    b[10] = 32;
    assert_eq!(IcReq::parse(&ch, &b), Err(PduError::Alignment(32)));
}

#[test]
fn icresp() {
    // LNX struct nvme_tcp_icresp_pdu as drivers/nvme/target/tcp.c nvmet_tcp_handle_icreq fills it: cpda 0,
    // digest echoed, maxdata 0x400000.
    let resp =
        IcResp { alignment: DataAlignment::DWORD, header_digest: true, data_digest: false, max_h2c_data: 0x40_0000 };
    let mut b = [0xaa; 128];
    assert_eq!(resp.encode(&mut b), Ok(128));
    let mut want = [0u8; 128];
    want[..16].copy_from_slice(&[1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x40, 0]);
    assert_eq!(b, want);
    let ch = common(&b, &PLAIN).unwrap();
    assert_eq!(IcResp::parse(&ch, &b), Ok(resp));
    for n in 0..128 {
        assert!(IcResp::parse(&ch, &b[..n]).is_err(), "{n}");
    }
    let asked = IcReq { header_digest: true, ..IcReq::default() };
    assert_eq!(resp.check_against(&asked), Ok(()));
    assert_eq!(resp.check_against(&IcReq::default()), Err(PduError::UnwantedDigest(1)));
    for bad in [0u32, 4095, 4098] {
        b[12..16].copy_from_slice(&bad.to_le_bytes());
        assert_eq!(IcResp::parse(&ch, &b), Err(PduError::MaxH2cData(bad)));
    }
}

#[test]
fn terminate() {
    // SPDK struct spdk_nvme_tcp_term_req_hdr: fes 8, fei 10, error data from 24.
    let quoted = [7u8, 0xc, 24, 24, 24, 0x10, 0, 0];
    let term = TermReq::new(Direction::HostToController, Fes::InvalidHeaderField, 8, &quoted);
    let mut b = [0xaa; TERM_MAX_LEN];
    assert_eq!(term.encode(&mut b), Ok(32));
    let mut want = [0u8; 32];
    want[..16].copy_from_slice(&[2, 0, 24, 0, 32, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0]);
    want[24..].copy_from_slice(&quoted);
    assert_eq!(b[..32], want);
    let ch = common(&b, &framing(true, true, 31)).unwrap();
    assert_eq!(ch.head_len(), 32);
    assert_eq!(TermReq::parse(&ch, &b[..32]), Ok(term));
    for n in 0..32 {
        assert!(TermReq::parse(&ch, &b[..n]).is_err(), "{n}");
        assert!(term.encode(&mut [0; 32][..n]).is_err());
    }
    let long = TermReq::new(Direction::ControllerToHost, Fes::HeaderDigest, 0xdead_beef, &[1; 200]);
    assert_eq!(long.encode(&mut b), Ok(152));
    assert_eq!(long.quoted().len(), 128);
    assert_eq!(TermReq::parse(&common(&b, &PLAIN).unwrap(), &b), Ok(long));
    for plen in [23u32, 153, u32::MAX] {
        b[4..8].copy_from_slice(&plen.to_le_bytes());
        let e = common(&b, &PLAIN).unwrap_err();
        assert_eq!((e, e.fes()), (PduError::TermLength(plen), None));
    }
    for code in 0..=9 {
        assert_eq!(Fes::from_code(code).code(), code);
    }
    assert_eq!(term.to_string(), "invalid PDU header field at offset 8 of the header");
}

#[test]
fn command_capsule_of_a_read() {
    // LNX struct nvme_tcp_cmd_pdu; drivers/nvme/host/tcp.c nvme_tcp_setup_cmd_pdu with a header digest:
    // flags 1, hlen 72, plen 76.
    let sqe = Sqe::read(0x0103, 1, 8, 7, false).with_sgl(SglDescriptor::Transport { length: 4096 });
    let cmd = CapsuleCmd { sqe, data_len: 0 };
    let f = framing(true, true, 0);
    let mut b = [0xaa; 128];
    assert_eq!(cmd.encode(&f, &mut b), Ok(76));
    assert_eq!(&b[..12], &[4, 1, 72, 0, 76, 0, 0, 0, 2, 0x40, 0x03, 0x01]);
    assert_eq!(&b[32..48], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x5a]);
    assert_eq!(b[72..76], crc32c::crc32c(&b[..72]).to_le_bytes());
    let ch = common(&b, &f).unwrap();
    assert_eq!((ch.head_len(), ch.data_len(), ch.has_data_digest()), (76, 0, false));
    assert_eq!(ch.verify_header_digest(&b), Ok(()));
    assert_eq!(CapsuleCmd::parse(&ch, &b), Ok(cmd));
    for n in 0..76 {
        assert!(ch.verify_header_digest(&b[..n]).is_err(), "{n}");
    }
    for n in 0..72 {
        assert!(CapsuleCmd::parse(&ch, &b[..n]).is_err(), "{n}");
    }
    for bit in 0..76 * 8 {
        let mut bad = b;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(ch.verify_header_digest(&bad), Err(PduError::HeaderDigest { .. })), "bit {bit}");
    }
}

#[test]
fn command_capsule_with_data() {
    // drivers/nvme/host/tcp.c: in-capsule write of 4096 octets with both digests: flags 3, pdo 76,
    // plen 76 + 4096 + 4.
    let sqe = Sqe::write(5, 1, 0, 7, true).with_sgl(SglDescriptor::InCapsule { offset: 0, length: 4096 });
    let cmd = CapsuleCmd { sqe, data_len: 4096 };
    let f = framing(true, true, 0);
    let mut b = [0xaa; 128];
    assert_eq!(cmd.encode(&f, &mut b), Ok(76));
    assert_eq!(&b[..8], &[4, 3, 72, 76, 0x50, 0x10, 0, 0]);
    let ch = common(&b, &f).unwrap();
    assert_eq!((ch.head_len(), ch.data_len(), ch.has_data_digest()), (76, 4096, true));
    // Padding: CPDA 1Fh puts the data at 128.
    let f = framing(true, false, 31);
    assert_eq!(cmd.encode(&f, &mut b), Ok(128));
    assert_eq!(&b[..8], &[4, 1, 72, 128, 0x80, 0x10, 0, 0]);
    assert!(b[76..].iter().all(|&x| x == 0));
    assert_eq!(common(&b, &f).unwrap().data_len(), 4096);
    assert!(CapsuleCmd { sqe, data_len: u32::MAX }.encode(&f, &mut b).is_err());
}

#[test]
fn response_capsule() {
    // LNX struct nvme_tcp_rsp_pdu; drivers/nvme/target/tcp.c nvmet_setup_response_pdu: hlen 24, plen 24.
    let cqe = Cqe::new(0x0403, StatusField::INVALID_FIELD.with_dnr()).with_sqhd(9).with_result(0x77);
    let resp = CapsuleResp { cqe };
    let mut b = [0xaa; 28];
    assert_eq!(resp.encode(&PLAIN, &mut b), Ok(24));
    assert_eq!(b[..24], [5, 0, 24, 0, 24, 0, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0x03, 0x04, 0x04, 0x80]);
    let ch = common(&b, &PLAIN).unwrap();
    assert_eq!(CapsuleResp::parse(&ch, &b), Ok(resp));
    for n in 0..24 {
        assert!(CapsuleResp::parse(&ch, &b[..n]).is_err(), "{n}");
    }
    let f = framing(true, true, 3);
    assert_eq!(resp.encode(&f, &mut b), Ok(28));
    assert_eq!(&b[..8], &[5, 1, 24, 0, 28, 0, 0, 0]);
    assert_eq!(b[24..], crc32c::crc32c(&b[..24]).to_le_bytes());
}

#[test]
fn transfer_pdus() {
    // LNX struct nvme_tcp_data_pdu and nvme_tcp_r2t_pdu: command_id 8, ttag 10, offset 12, length 16.
    let h2c = H2cData { cccid: 0x0102, ttag: 0x0304, offset: 0x1000, length: 0x2000, last: true };
    let mut b = [0xaa; 128];
    assert_eq!(h2c.encode(&PLAIN, &mut b), Ok(24));
    assert_eq!(b[..24], [6, 4, 24, 24, 0x18, 0x20, 0, 0, 2, 1, 4, 3, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
    let ch = common(&b, &PLAIN).unwrap();
    assert_eq!(H2cData::parse(&ch, &b), Ok(h2c));

    // drivers/nvme/target/tcp.c nvmet_setup_c2h_data_pdu: LAST and, without SQ flow control, SUCCESS.
    let c2h = C2hData { cccid: 0x0102, offset: 0, length: 4096, last: true, success: true };
    let f = framing(true, true, 3);
    let mut c = [0xaa; 32];
    assert_eq!(c2h.encode(&f, &mut c), Ok(32));
    assert_eq!(&c[..24], &[7, 15, 24, 32, 0x24, 0x10, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
    assert_eq!(c[24..28], crc32c::crc32c(&c[..24]).to_le_bytes());
    let cch = common(&c, &f).unwrap();
    assert_eq!((cch.head_len(), cch.data_len(), cch.has_data_digest()), (32, 4096, true));
    assert_eq!(C2hData::parse(&cch, &c), Ok(c2h));

    let r2t = R2t { cccid: 0x0102, ttag: 7, offset: 0, length: 0x2000 };
    let mut r = [0xaa; 24];
    assert_eq!(r2t.encode(&PLAIN, &mut r), Ok(24));
    assert_eq!(r, [9, 0, 24, 0, 24, 0, 0, 0, 2, 1, 7, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
    let rch = common(&r, &PLAIN).unwrap();
    assert_eq!(R2t::parse(&rch, &r), Ok(r2t));
    for n in 0..24 {
        assert!(H2cData::parse(&ch, &b[..n]).is_err());
        assert!(C2hData::parse(&cch, &c[..n]).is_err());
        assert!(R2t::parse(&rch, &r[..n]).is_err());
        assert!(h2c.encode(&PLAIN, &mut [0; 24][..n]).is_err());
    }
    b[16] = 1;
    assert_eq!(
        H2cData::parse(&ch, &b),
        Err(PduError::DataLength { kind: PduType::H2cData, datal: 0x2001, carried: 0x2000 })
    );
    r[17] = 0;
    assert_eq!(R2t::parse(&rch, &r), Err(PduError::EmptyR2t));
    c[1] = 11; // SUCCESS without LAST_PDU
    let cch = common(&c, &f).unwrap();
    let e = C2hData::parse(&cch, &c).unwrap_err();
    assert_eq!((e.fes(), e.fei()), (Some(Fes::InvalidHeaderField), 1));
}

#[test]
fn common_header_table() {
    use Direction::{ControllerToHost, HostToController};
    let hd = framing(true, false, 0);
    let dd = framing(false, true, 0);
    let aligned = framing(false, false, 3);
    // (octets, from, framing, FEI of the error or u32::MAX for none)
    let ok = u32::MAX;
    #[rustfmt::skip]
    let table: &[([u8; 8], Direction, &Framing, u32)] = &[
        ([8, 0, 24, 0, 24, 0, 0, 0], HostToController, &PLAIN, 0),     // reserved type
        ([5, 0, 24, 0, 24, 0, 0, 0], HostToController, &PLAIN, 0),     // wrong direction
        ([4, 0, 72, 0, 72, 0, 0, 0], ControllerToHost, &PLAIN, 0),
        ([5, 0, 23, 0, 24, 0, 0, 0], ControllerToHost, &PLAIN, 2),     // HLEN
        ([5, 0, 255, 0, 24, 0, 0, 0], ControllerToHost, &PLAIN, 2),
        ([5, 0, 24, 0, 25, 0, 0, 0], ControllerToHost, &PLAIN, 4),     // PLEN
        ([5, 0, 24, 0, 28, 0, 0, 0], ControllerToHost, &PLAIN, 4),
        ([5, 1, 24, 0, 28, 0, 0, 0], ControllerToHost, &PLAIN, 1),     // digest not negotiated
        ([5, 0, 24, 0, 24, 0, 0, 0], ControllerToHost, &hd, 1),        // digest missing
        ([5, 1, 24, 0, 24, 0, 0, 0], ControllerToHost, &hd, 4),
        ([5, 1, 24, 0, 28, 0, 0, 0], ControllerToHost, &hd, ok),
        ([7, 0, 24, 24, 24, 0, 0, 0], ControllerToHost, &PLAIN, 4),    // no data
        ([7, 0, 24, 24, 25, 0, 0, 0], ControllerToHost, &PLAIN, ok),
        ([7, 0, 24, 20, 88, 0, 0, 0], ControllerToHost, &PLAIN, 3),    // data in the header
        ([7, 0, 24, 26, 88, 0, 0, 0], ControllerToHost, &PLAIN, 3),    // not aligned
        ([7, 0, 24, 24, 88, 0, 0, 0], ControllerToHost, &aligned, 3),
        ([7, 0, 24, 32, 88, 0, 0, 0], ControllerToHost, &aligned, ok),
        ([7, 1, 24, 24, 88, 0, 0, 0], ControllerToHost, &hd, 3),       // data in the digest
        ([7, 2, 24, 24, 28, 0, 0, 0], ControllerToHost, &dd, 4),       // only a digest
        ([7, 0, 24, 24, 88, 0, 0, 0], ControllerToHost, &dd, 1),       // digest missing
        ([7, 0, 24, 252, 16, 0, 0, 0], ControllerToHost, &PLAIN, 4),   // PLEN before the data
        ([4, 2, 72, 0, 72, 0, 0, 0], HostToController, &dd, ok),       // flag without data is harmless
        ([4, 0, 72, 72, 73, 0, 0, 0], HostToController, &PLAIN, ok),
        ([4, 0, 72, 0, 71, 0, 0, 0], HostToController, &PLAIN, 3),
        ([0, 0, 128, 0, 127, 0, 0, 0], HostToController, &hd, 4),
        ([0, 0, 128, 0, 128, 0, 0, 0], HostToController, &hd, ok),
        ([9, 0, 24, 0, 0xff, 0xff, 0xff, 0xff], ControllerToHost, &PLAIN, 4),
        ([7, 0, 24, 24, 0xff, 0xff, 0xff, 0xff], ControllerToHost, &PLAIN, ok),
    ];
    for (i, (b, from, f, fei)) in table.iter().enumerate() {
        match CommonHeader::parse(b, *from, f) {
            Ok(ch) => assert_eq!(*fei, ok, "line {i}: {ch:?}"),
            Err(e) => {
                assert_eq!(e.fei(), *fei, "line {i}: {e}");
                assert_eq!(e.fes(), Some(Fes::InvalidHeaderField), "line {i}: {e}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_eight_octets(b: [u8; 8], hd: bool, dd: bool, pda in 0u8..32, rest in proptest::collection::vec(any::<u8>(), 0..260)) {
        let f = framing(hd, dd, pda);
        for from in [Direction::HostToController, Direction::ControllerToHost] {
            if let Ok(ch) = CommonHeader::parse(&b, from, &f) {
                prop_assert!((8..=MAX_HEAD).contains(&ch.head_len()));
                let digest = if ch.has_data_digest() { 4 } else { 0 };
                prop_assert_eq!(ch.head_len() as u64 + u64::from(ch.data_len()) + digest, u64::from(ch.plen));
                let _ = (ch.verify_header_digest(&rest), C2hData::parse(&ch, &rest), TermReq::parse(&ch, &rest));
            }
        }
    }
}
