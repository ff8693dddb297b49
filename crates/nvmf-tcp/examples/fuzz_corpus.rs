//! Writes the first inputs of every fuzz target, built from the golden octets, to `fuzz/corpus`:
//! `cargo run -p polypath-nvmf-tcp --example fuzz_corpus`. Inputs that are there already stay.
#![forbid(unsafe_code)]

use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectData};
use polypath_nvme::identify::{IdentifyController, IdentifyNamespace, LbaFormat, NamespaceIds, build_namespace_list};
use polypath_nvme::log::{
    AddressFamily, AnaGroup, AnaLog, AnaState, DiscoveryEntry, DiscoveryLog, SubsystemType, TransportType,
};
use polypath_nvme::nqn::{HostId, Nqn};
use polypath_nvme::properties::Register;
use polypath_nvme::{Cqe, SglDescriptor, Sqe, StatusField};
use polypath_nvmf_tcp::pdu::*;
use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    for (target, name, bytes) in pdus().into_iter().chain(connections()).chain(nvme()) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

type Input = (&'static str, String, Vec<u8>);

/// Every PDU under four framings; the first octet of an input is the framing.
fn pdus() -> Vec<Input> {
    let mut all = Vec::new();
    for (digests, pda) in [(0u8, 0u8), (1, 0), (3, 0), (3, 31)] {
        let framing = Framing {
            header_digest: digests & 1 != 0,
            data_digest: digests & 2 != 0,
            alignment: DataAlignment::from_wire(pda).unwrap_or_default(),
        };
        let first = digests | pda << 3;
        for (target, head) in heads(&framing) {
            let input = [&[first][..], &head].concat();
            all.push((target, format!("golden-{first:02x}-{}", head[0]), input.clone()));
            all.push(("common_header", format!("golden-{first:02x}-{}-{target}", head[0]), input));
        }
    }
    all
}

fn heads(f: &Framing) -> Vec<(&'static str, Vec<u8>)> {
    let cut = |encode: &dyn Fn(&mut [u8]) -> Result<usize, EncodeError>| {
        let mut b = [0; TERM_MAX_LEN];
        let n = encode(&mut b).unwrap_or(0);
        b[..n].to_vec()
    };
    let (header_digest, data_digest) = (f.header_digest, f.data_digest);
    let req = IcReq { alignment: f.alignment, header_digest, data_digest, max_r2t_z: 3 };
    let resp = IcResp { alignment: f.alignment, header_digest, data_digest, max_h2c_data: 0x40_0000 };
    let quote = [7u8, 12, 24, 24, 24, 16, 0, 0];
    let h2c_term = TermReq::new(Direction::HostToController, Fes::InvalidHeaderField, 8, &quote);
    let c2h_term = TermReq::new(Direction::ControllerToHost, Fes::HeaderDigest, 0xdead_beef, &[1; 128]);
    let read = Sqe::read(3, 1, 8, 7, false).with_sgl(SglDescriptor::Transport { length: 4096 });
    let write = Sqe::write(5, 1, 0, 7, true).with_sgl(SglDescriptor::InCapsule { offset: 0, length: 4096 });
    let cqe = Cqe::new(0x0403, StatusField::INVALID_FIELD.with_dnr()).with_sqhd(9);
    let h2c = H2cData { cccid: 0x0102, ttag: 7, offset: 4096, length: 8192, last: true };
    let c2h = C2hData { cccid: 0x0102, offset: 0, length: 4096, last: true, success: true };
    let r2t = R2t { cccid: 0x0102, ttag: 7, offset: 0, length: 8192 };
    vec![
        ("icreq", cut(&|b| req.encode(b))),
        ("icresp", cut(&|b| resp.encode(b))),
        ("h2c_term", cut(&|b| h2c_term.encode(b))),
        ("c2h_term", cut(&|b| c2h_term.encode(b))),
        ("capsule_cmd", cut(&|b| CapsuleCmd { sqe: read, data_len: 0 }.encode(f, b))),
        ("capsule_cmd", cut(&|b| CapsuleCmd { sqe: write, data_len: 4096 }.encode(f, b))),
        ("capsule_resp", cut(&|b| CapsuleResp { cqe }.encode(f, b))),
        ("h2c_data", cut(&|b| h2c.encode(f, b))),
        ("c2h_data", cut(&|b| c2h.encode(f, b))),
        ("r2t", cut(&|b| r2t.encode(f, b))),
    ]
}

/// Conversations with the host connection; the steps are those of `fuzzing::host_connection`.
fn connections() -> Vec<Input> {
    let conversations: [(&str, &[u8]); 9] = [
        ("read-success", &[0x08, 0, 3, 255, 7, 0, 3, 0, 0, 0, 4]),
        ("read-response", &[0x0b, 0, 3, 255, 7, 0, 1, 0, 0, 0, 4, 5, 0, 0]),
        ("read-in-parts", &[0x00, 0, 3, 255, 7, 0, 0, 0, 0, 0, 2, 7, 0, 1, 0, 2, 0, 2, 5, 0, 0]),
        ("write-in-capsule", &[0x03, 1, 3, 60, 3, 255, 5, 0, 0]),
        ("write-r2t", &[0xc0, 2, 3, 255, 6, 0, 1, 0, 0, 0, 0, 32, 6, 0, 2, 0, 0, 32, 0, 32, 3, 255, 5, 0, 0]),
        ("early-error", &[0x00, 2, 3, 255, 6, 0, 1, 0, 0, 0, 0, 64, 3, 20, 5, 0, 2, 3, 255]),
        ("bad-digest", &[0x03, 0, 3, 255, 7, 0, 5, 0, 0, 0, 4, 5, 0, 0]),
        ("unknown-cid", &[0x00, 0, 3, 255, 5, 0x80, 0xff, 0x03, 0]),
        ("raw", &[0x00, 0, 3, 255, 4, 24, 5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    conversations.map(|(name, bytes)| ("host_connection", name.to_owned(), bytes.to_vec())).into()
}

fn nvme() -> Vec<Input> {
    let nqn = Nqn::discovery();
    let mut id = IdentifyController { ioccsz: 516, nn: 4, kas: 1, cqt_ms: 100, mdts: 5, ..Default::default() };
    id.set_names("SN", "Model", "1.0");
    id.subnqn = nqn.to_field();
    let mut ns = IdentifyNamespace { nsze: 1 << 20, ncap: 1 << 20, nguid: [7; 16], ..Default::default() };
    ns.lbaf[0] = LbaFormat { metadata_bytes: 0, block_shift: 9, performance: 0 };
    let ids = NamespaceIds { eui64: Some([1; 8]), nguid: Some([2; 16]), uuid: Some([3; 16]), csi: Some(0) };
    let group = |id, state, nsids: &[u32]| AnaGroup { id, change_count: 1, state, nsids: nsids.to_vec() };
    let groups = vec![group(1, AnaState::Optimized, &[1, 2]), group(2, AnaState::Change, &[])];
    let entry = DiscoveryEntry {
        transport: TransportType::Tcp,
        family: AddressFamily::Ipv4,
        subsystem_type: SubsystemType::Nvm,
        treq: 0,
        portid: 1,
        cntlid: CNTLID_DYNAMIC,
        asqsz: 32,
        eflags: 0,
        traddr: "192.0.2.1".into(),
        trsvcid: "4420".into(),
        subnqn: nqn.clone(),
        tcp_security: 0,
    };
    let log = DiscoveryLog { genctr: 1, entries: vec![entry], skipped: vec![] };
    let connect = ConnectData { host_id: HostId::from_bytes([1; 16]), cntlid: 1, subnqn: nqn.clone(), hostnqn: nqn };
    let input = |target, name: &str, bytes: &[u8]| (target, name.to_owned(), bytes.to_vec());
    vec![
        input("identify_controller", "golden", &id.to_bytes()),
        input("identify_namespace", "golden", &ns.to_bytes()),
        input("identify_lists", "descriptors", &ids.to_bytes()),
        input("identify_lists", "active", &build_namespace_list([1, 2, 9], 0)),
        input("log_ana", "golden", &AnaLog { change_count: 3, groups }.to_bytes(false)),
        input("log_discovery", "golden", &log.to_bytes()),
        input("entries", "read", Sqe::read(1, 1, 0, 7, true).as_bytes()),
        input("entries", "property", Sqe::property_get(1, Register::Cap).as_bytes()),
        input("entries", "completion", &Cqe::new(1, StatusField::CONNECT_INVALID_PARAMETERS).to_bytes()),
        input("entries", "connect", &connect.to_bytes()),
    ]
}
