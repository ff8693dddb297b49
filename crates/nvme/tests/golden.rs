//! Golden octets: commands, completions, Identify data and log pages as Linux's initiator and Linux's target exchanged them. The
//! captures lie with the transport that carried them, in `crates/nvmf-tcp/tests/captures/NAME` (each README says with which kernels);
//! a few lines here take them apart by their length fields, so that this test rests on no code of the transport.
#![forbid(unsafe_code)]

use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectData, ConnectRequest, ConnectResponse, cattr, fctype};
use polypath_nvme::features::{AsyncEventConfig, NumberOfQueues, fid};
use polypath_nvme::identify::{
    ControllerType, IdentifyController, IdentifyNamespace, NamespaceIds, active_namespaces, cns,
};
use polypath_nvme::log::{
    AnaLog, AnaState, AsyncEvent, ChangedNamespaces, DiscoveryLog, ErrorLogEntry, EventKind, SmartLog, SubsystemType,
    TransportType, lid,
};
use polypath_nvme::properties::{Cap, Cc, Register, Version};
use polypath_nvme::sqe::{DsmRange, admin, io};
use polypath_nvme::{Cqe, SglDescriptor, Sqe, StatusField};
use std::path::{Path, PathBuf};

const NQN: &str = "nqn.2026-01.org.polypath.lab:nvmet";
const HOST_UUID: &str = "33333333-2222-3333-4444-555555555555";

/// One command with everything that belongs to it.
#[derive(Clone)]
struct Exchange {
    qid: u16,
    sqe: Sqe,
    /// What the host sent with it.
    sent: Vec<u8>,
    /// What came back.
    returned: Vec<u8>,
    /// Nothing where the SUCCESS flag stood for it, or where the capture ends.
    cqe: Option<Cqe>,
}

/// A PDU: type, header, data.
fn pdus(octets: &[u8]) -> Vec<(u8, &[u8], &[u8])> {
    let mut rest = octets;
    let mut out = Vec::new();
    // DGST of ICReq and ICResp lies at the same place; ICResp has the last word, but nothing was refused here
    let data_digest = if octets[11] & 2 != 0 { 4 } else { 0 };
    while !rest.is_empty() {
        let (kind, hlen, pdo) = (rest[0], usize::from(rest[2]), usize::from(rest[3]));
        let plen = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        let data = if pdo == 0 { &[] } else { &rest[pdo..plen - data_digest] };
        out.push((kind, &rest[..hlen], data));
        rest = &rest[plen..];
    }
    out
}

fn exchanges(host: &[u8], controller: &[u8]) -> Vec<Exchange> {
    let mut all: Vec<Exchange> = Vec::new();
    let mut qid = 0;
    let mut later = std::collections::VecDeque::new();
    for (kind, header, data) in pdus(host) {
        match kind {
            4 => {
                let sqe = Sqe::parse(&header[8..]).unwrap();
                if sqe.opcode() == admin::FABRICS && sqe.fctype() == fctype::CONNECT {
                    qid = sqe.connect_qid();
                }
                all.push(Exchange { qid, sqe, sent: data.to_vec(), returned: Vec::new(), cqe: None });
            }
            6 => later.push_back(data),
            _ => {}
        }
    }
    let mut answered = vec![false; all.len()];
    for (kind, header, data) in pdus(controller) {
        let success = kind == 7 && header[1] & 8 != 0;
        let cid_at = if kind == 5 { 20 } else { 8 };
        let cid = u16::from_le_bytes([header[cid_at], header[cid_at + 1]]);
        if kind < 5 {
            continue;
        }
        // the oldest command of that identifier that is still open
        let n = (0..all.len()).find(|&n| !answered[n] && all[n].sqe.cid() == cid).expect("an answer has a command");
        match kind {
            5 => all[n].cqe = Some(Cqe::parse(&header[8..]).unwrap()),
            7 => all[n].returned.extend_from_slice(data),
            9 => all[n].sent.extend_from_slice(later.pop_front().expect("an R2T is answered")),
            _ => panic!("PDU type {kind}"),
        }
        answered[n] = kind == 5 || success;
    }
    assert!(answered.iter().all(|&a| a), "a command was left without an answer");
    all
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nvmf-tcp/tests/captures")
}

/// The connections of a capture, in the order in which they were opened.
fn capture(name: &str) -> Vec<Vec<Exchange>> {
    let mut connections = Vec::new();
    while let Ok(host) =
        std::fs::read(folder().join(name).join(format!("host-to-controller.{}.bin", connections.len())))
    {
        let file = folder().join(name).join(format!("controller-to-host.{}.bin", connections.len()));
        connections.push(exchanges(&host, &std::fs::read(file).unwrap()));
    }
    assert!(connections.len() >= 2, "{name} is not there");
    connections
}

fn all() -> Vec<(String, Exchange)> {
    let names = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap());
    let mut names: Vec<String> =
        names.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.len() >= 5, "captures are missing: {names:?}");
    let of = |name: String| capture(&name).into_iter().flatten().map(move |e| (name.clone(), e));
    names.into_iter().flat_map(of).collect()
}

/// The command that our constructors make of what the entry says; `None` for one that we never send.
fn rebuilt(qid: u16, sqe: &Sqe) -> Option<Sqe> {
    let (cid, nsid, fua) = (sqe.cid(), sqe.nsid(), sqe.fua());
    let (slba, nlb_z) = (sqe.slba(), sqe.nlb_z());
    let length = u32::try_from(sqe.log_length()).unwrap_or(u32::MAX);
    Some(match (qid, sqe.opcode()) {
        (_, admin::FABRICS) => match sqe.fctype() {
            fctype::CONNECT => {
                let (sqsize_z, kato_ms) = (sqe.connect_sqsize_z(), sqe.connect_kato_ms());
                Sqe::connect(cid, sqe.connect_qid(), sqsize_z, sqe.connect_cattr(), kato_ms)
            }
            fctype::PROPERTY_GET => Sqe::property_get(cid, sqe.property().unwrap()),
            fctype::PROPERTY_SET => Sqe::property_set(cid, sqe.property().unwrap(), sqe.property_value()),
            _ => return None,
        },
        (0, admin::IDENTIFY) => Sqe::identify(cid, sqe.cns(), nsid, sqe.cntid()),
        (0, admin::GET_LOG_PAGE) => {
            let (lid, lsp, rae, offset) = (sqe.lid(), sqe.lsp(), sqe.rae(), sqe.log_offset());
            Sqe::get_log_page(cid, nsid, lid, lsp, rae, offset, length)
        }
        (0, admin::GET_FEATURES) => Sqe::get_features(cid, nsid, sqe.fid()),
        (0, admin::SET_FEATURES) => Sqe::set_features(cid, nsid, sqe.fid(), sqe.feature_value()),
        (0, admin::ASYNC_EVENT_REQUEST) => Sqe::async_event_request(cid),
        (0, admin::KEEP_ALIVE) => Sqe::keep_alive(cid),
        (0, _) => return None,
        (_, io::READ) => Sqe::read(cid, nsid, slba, nlb_z, fua),
        (_, io::WRITE) => Sqe::write(cid, nsid, slba, nlb_z, fua),
        (_, io::FLUSH) => Sqe::flush(cid, nsid),
        (_, io::WRITE_ZEROES) => Sqe::write_zeroes(cid, nsid, slba, nlb_z, sqe.deac(), fua),
        (_, io::DATASET_MANAGEMENT) => Sqe::deallocate(cid, nsid, sqe.dsm_ranges_z()),
        _ => return None,
    })
}

#[test]
fn our_constructors_make_linuxs_commands_octet_for_octet() {
    let mut unknown = Vec::new();
    let mut made = std::collections::BTreeSet::new();
    for (name, e) in all() {
        let Some(ours) = rebuilt(e.qid, &e.sqe) else {
            unknown.push(e.sqe.opcode());
            continue;
        };
        made.insert((e.qid, e.sqe.opcode()));
        assert_eq!(ours.with_sgl(e.sqe.sgl()), e.sqe, "{name}");
    }
    // opcode 55h is none: nvme-cli was told to send it
    assert_eq!(unknown, [0x55]);
    assert_eq!(made.len(), 7 + 1 + 5, "admin queue, Connect of the I/O queue and I/O: {made:?}");
}

#[test]
fn data_pointers_and_completions_are_written_back_octet_for_octet() {
    for (name, e) in all() {
        assert_eq!(&e.sqe.sgl().to_bytes()[..], &e.sqe.as_bytes()[24..40], "{name}: {:?}", e.sqe);
        match e.sqe.sgl() {
            SglDescriptor::InCapsule { offset: 0, length } => assert_eq!(length as usize, e.sent.len(), "{name}"),
            SglDescriptor::Transport { length } => {
                let refused = e.cqe.is_some_and(|c| !c.status.is_success());
                let moved = e.sent.len() + e.returned.len();
                assert!(refused && moved == 0 || length as usize == moved, "{name}: {moved} bytes for {:?}", e.sqe);
            }
            other => panic!("{name}: {other:?}"),
        }
        if let Some(cqe) = e.cqe {
            assert_eq!(Cqe::parse(&cqe.to_bytes()), Ok(cqe), "{name}");
            assert!(!cqe.phase && cqe.cid == e.sqe.cid(), "{name}: {cqe:?}");
        }
    }
}

#[test]
fn connect_says_who_asks_for_what() {
    for (name, e) in all() {
        if (e.sqe.opcode(), e.sqe.fctype()) != (admin::FABRICS, fctype::CONNECT) {
            continue;
        }
        let ConnectRequest { host_id, cntlid, subnqn, hostnqn } = ConnectRequest::parse(&e.sent).unwrap();
        let data = ConnectData { host_id, cntlid, subnqn, hostnqn: hostnqn.unwrap() };
        assert_eq!(data.to_bytes()[..], e.sent, "{name}");
        assert_eq!(data.host_id.to_string(), HOST_UUID, "{name}");
        assert_eq!(data.hostnqn.as_str(), format!("nqn.2014-08.org.nvmexpress:uuid:{HOST_UUID}"), "{name}");
        assert_eq!(data.cntlid, if e.qid == 0 { CNTLID_DYNAMIC } else { 1 }, "{name}");
        let asks_discovery = data.subnqn.is_discovery();
        assert_eq!(e.sqe.connect_kato_ms(), if e.qid == 0 && !asks_discovery { 5000 } else { 0 }, "{name}");
        assert_eq!((e.sqe.connect_recfmt(), e.sqe.connect_sqsize_z()), (0, 31), "{name}");
        let quiet = e.sqe.connect_cattr() & cattr::DISABLE_SQ_FLOW_CONTROL != 0;
        assert_eq!(quiet, name.ends_with("no-sq-flow"), "{name}");
        let cqe = e.cqe.unwrap();
        assert_eq!(
            ConnectResponse::from_cqe(&cqe),
            ConnectResponse::Connected { cntlid: 1, authentication: 0 },
            "{name}"
        );
        // SQHD of FFFFh says that the controller granted it
        assert_eq!(cqe.sqhd == 0xffff, quiet, "{name}");
        let nqn = if name.starts_with("linux-") { NQN } else { "nqn.2026-01.org.polypath.lab:target" };
        assert!(asks_discovery || data.subnqn.as_str() == nqn, "{name}: {}", data.subnqn);
    }
}

/// The admin queue of `linux-6.1-plain`, on which everything was asked.
fn plain_admin() -> Vec<Exchange> {
    capture("linux-6.1-plain").remove(1)
}

fn identify(exchanges: &[Exchange], cns: u8) -> Vec<&Exchange> {
    exchanges.iter().filter(|e| e.qid == 0 && e.sqe.opcode() == admin::IDENTIFY && e.sqe.cns() == cns).collect()
}

fn logs(exchanges: &[Exchange], lid: u8) -> Vec<&Exchange> {
    exchanges.iter().filter(|e| e.sqe.opcode() == admin::GET_LOG_PAGE && e.sqe.lid() == lid).collect()
}

#[test]
fn properties_are_read_and_set_as_a_controller_is_enabled_and_shut_down() {
    let admin_queue = plain_admin();
    let gets = |register| {
        let of = move |e: &&Exchange| e.sqe.fctype() == fctype::PROPERTY_GET && e.sqe.property() == Ok(register);
        let fabrics = admin_queue.iter().filter(|e| e.sqe.opcode() == admin::FABRICS);
        fabrics.filter(of).map(|e| e.cqe.unwrap().result).collect::<Vec<u64>>()
    };
    let cap = Cap(gets(Register::Cap)[0]);
    assert_eq!((cap.mqes_z(), cap.cqr(), cap.timeout_ms()), (1023, false, 7500));
    assert!(cap.css_nvm() && cap.css_io());
    assert_eq!(Version(gets(Register::Vs)[0] as u32), Version::new(1, 3, 0));
    assert_eq!(gets(Register::Csts), [1, 8], "ready after the start, shutdown complete at the end");
    let sets: Vec<Cc> = admin_queue
        .iter()
        .filter(|e| e.sqe.opcode() == admin::FABRICS && e.sqe.fctype() == fctype::PROPERTY_SET)
        .map(|e| Cc(e.sqe.property_value() as u32))
        .collect();
    let ours = Cc::enable(Cc::CSS_IO, 12, 6, 4);
    // all I/O command sets, since CAP offers them. Linux writes everything but EN first, then EN; at the end it asks for a normal shutdown
    assert_eq!(sets, [ours.disabled(), ours, ours.with_shutdown(false)]);
}

#[test]
fn identify_controller_is_linuxs() {
    let mut seen = 0;
    for (name, e) in all() {
        if e.qid != 0 || e.sqe.opcode() != admin::IDENTIFY || e.sqe.cns() != cns::CONTROLLER {
            continue;
        }
        if !name.starts_with("linux-") {
            continue;
        }
        seen += 1;
        let id = IdentifyController::parse(&e.returned).unwrap();
        // what we know is written back as it was; the rest is what nvmet says beyond that
        let back = id.to_bytes();
        let dropped: Vec<usize> = (0..4096).filter(|&i| back[i] != e.returned[i]).collect();
        assert!(dropped.iter().all(|&i| back[i] == 0 && UNUSED.contains(&i)), "{name}: octets {dropped:?}");
        assert!(name.contains(&id.firmware()[..3]), "{name}: firmware {}", id.firmware());
        let nqn = id.subsystem_nqn().unwrap();
        if nqn.is_discovery() {
            assert_eq!(id.controller_type(), ControllerType::Discovery);
            continue;
        }
        assert_eq!((id.serial(), id.model()), ("LAB0001".to_owned(), "LABTARGET".to_owned()), "{name}");
        assert_eq!((nqn.as_str(), id.cntlid), (NQN, 1), "{name}");
        assert_eq!(id.controller_type(), ControllerType::Io, "{name}");
        assert!(id.has_ana() && id.has_volatile_write_cache(), "{name}");
        assert_eq!((id.in_capsule_bytes(), id.max_transfer_bytes(12)), (Ok(4096), None), "{name}");
        assert_eq!((id.anagrpmax, id.nanagrpid, id.nn), (128, 128, 1024), "{name}");
        let keep_alive = id.keep_alive(5000);
        assert_eq!((keep_alive.kas, keep_alive.traffic_based, keep_alive.cqt_ms), (10, true, 0), "{name}");
    }
    assert!(seen >= 6, "{seen}");
}

/// Octets of Identify Controller that nvmet fills in and that no block stack needs: power, entry and exit latency of power state 0.
const UNUSED: [usize; 4] = [2048, 2049, 2052, 2056];

#[test]
fn namespaces_come_with_their_size_and_names() {
    let admin_queue = plain_admin();
    let lists = identify(&admin_queue, cns::ACTIVE_NAMESPACES);
    let lists: Vec<Vec<u32>> = lists.iter().map(|e| active_namespaces(&e.returned, 0).unwrap()).collect();
    assert_eq!(lists, [vec![1, 2], vec![1]], "before and after namespace 2 was disabled");
    let mut uuids = Vec::new();
    for e in identify(&admin_queue, cns::NAMESPACE_DESCRIPTORS) {
        let ids = NamespaceIds::parse(&e.returned).unwrap();
        assert_eq!(ids.csi, Some(0));
        assert_eq!(NamespaceIds::parse(&ids.to_bytes()), Ok(ids));
        uuids.push((e.sqe.nsid(), ids.uuid.expect("nvmet gives every namespace a UUID")));
    }
    assert_eq!((uuids.len(), uuids[0].0, uuids[1].0), (3, 1, 2));
    assert!(uuids[0].1 != uuids[1].1 && uuids[0] == uuids[2], "names stay and differ");
    for e in identify(&admin_queue, cns::NAMESPACE) {
        let ns = IdentifyNamespace::parse(&e.returned).unwrap();
        assert_eq!(ns.size_bytes(), Ok(128 << 20));
        assert_eq!(ns.lba_format().unwrap().block_bytes(), 512);
        assert_eq!(ns.anagrpid, e.sqe.nsid(), "the lab's groups have the numbers of their namespaces");
        assert!(ns.is_shared() && ns.is_active());
    }
}

#[test]
fn ana_log_and_events_tell_the_change() {
    let admin_queue = plain_admin();
    let pages: Vec<AnaLog> = logs(&admin_queue, lid::ANA).iter().map(|e| AnaLog::parse(&e.returned).unwrap()).collect();
    let (first, last) = (pages.first().unwrap(), pages.last().unwrap());
    assert_eq!(first.namespace_state(1), Some(AnaState::Optimized));
    assert_eq!(first.namespace_state(2), Some(AnaState::NonOptimized));
    assert_eq!(last.namespace_state(1), Some(AnaState::NonOptimized));
    assert_eq!(last.namespace_state(2), None, "namespace 2 is no longer there");
    assert!(last.change_count > first.change_count);
    for (page, e) in pages.iter().zip(logs(&admin_queue, lid::ANA)) {
        let back = page.to_bytes(false);
        assert_eq!(back[..], e.returned[..back.len()]);
        assert!(e.returned[back.len()..].iter().all(|&b| b == 0));
    }
    let events: Vec<(EventKind, u8)> = admin_queue
        .iter()
        .filter(|e| e.sqe.opcode() == admin::ASYNC_EVENT_REQUEST)
        .filter_map(|e| e.cqe.filter(|c| c.status.is_success()))
        .map(|cqe| {
            let event = AsyncEvent::from_dw0(cqe.dw0());
            assert_eq!(event.to_dw0(), cqe.dw0());
            (event.kind, event.log_page)
        })
        .collect();
    assert!(events.contains(&(EventKind::AnaChanged, lid::ANA)), "{events:?}");
    assert_eq!(events.last(), Some(&(EventKind::NamespacesChanged, lid::CHANGED_NAMESPACES)));
    let changed = logs(&admin_queue, lid::CHANGED_NAMESPACES);
    assert_eq!(ChangedNamespaces::parse(&changed[0].returned), Ok(ChangedNamespaces::Some(vec![2])));
}

#[test]
fn other_logs_features_and_refusals_are_understood() {
    let admin_queue = plain_admin();
    for e in logs(&admin_queue, lid::SMART) {
        assert_eq!(SmartLog::parse(&e.returned).unwrap().critical_warning, 0);
    }
    for e in logs(&admin_queue, lid::ERROR) {
        assert_eq!(ErrorLogEntry::parse(&e.returned).unwrap().error_count, 0);
    }
    let feature = |opcode, id| {
        let found = admin_queue.iter().find(|e| e.sqe.opcode() == opcode && e.sqe.fid() == id);
        found.unwrap_or_else(|| panic!("feature {id:#04x} was not asked for"))
    };
    let queues = feature(admin::SET_FEATURES, fid::NUMBER_OF_QUEUES);
    assert_eq!(NumberOfQueues::from_dword(queues.sqe.feature_value()).usable_pairs(), 1);
    let granted = NumberOfQueues::from_dword(queues.cqe.unwrap().dw0());
    assert_eq!(granted, NumberOfQueues::pairs(128));
    assert_eq!(feature(admin::GET_FEATURES, fid::NUMBER_OF_QUEUES).cqe.unwrap().dw0(), granted.to_dword());
    let wanted =
        AsyncEventConfig::from_bits_retain(feature(admin::SET_FEATURES, fid::ASYNC_EVENT_CONFIG).sqe.feature_value());
    assert_eq!(wanted, AsyncEventConfig::NAMESPACE_ATTRIBUTES | AsyncEventConfig::ANA_CHANGE);
    assert!(admin_queue.iter().any(|e| e.sqe.opcode() == admin::KEEP_ALIVE && e.cqe.unwrap().status.is_success()));

    let refused: Vec<(u8, StatusField)> = all()
        .iter()
        .filter_map(|(_, e)| e.cqe.filter(|c| !c.status.is_success()).map(|c| (e.sqe.opcode(), c.status)))
        .collect();
    // nvmet ends a waiting Asynchronous Event Request with Internal Error when its controller is shut down
    let internal = (admin::ASYNC_EVENT_REQUEST, StatusField::INTERNAL_ERROR.with_dnr());
    assert_eq!(refused, [internal, internal, (0x55, StatusField::INVALID_OPCODE.with_more().with_dnr())]);
}

#[test]
fn discovery_log_names_the_subsystem() {
    let discovery = capture("linux-6.1-plain").remove(0);
    let reads = logs(&discovery, lid::DISCOVERY);
    let whole = &reads.last().unwrap().returned;
    let log = DiscoveryLog::parse(whole).unwrap();
    assert!(log.skipped.is_empty(), "{:?}", log.skipped);
    let subsystem = log.entries.iter().find(|e| e.subnqn.as_str() == NQN).expect("the subsystem is listed");
    assert_eq!((subsystem.transport, subsystem.subsystem_type), (TransportType::Tcp, SubsystemType::Nvm));
    // configured as 0.0.0.0: nvmet puts the address there by which the host came
    assert_eq!((subsystem.traddr.as_str(), subsystem.trsvcid.as_str()), ("10.0.2.15", "4420"));
    assert_eq!((subsystem.portid, subsystem.cntlid), (1, CNTLID_DYNAMIC));
    assert!(log.entries.iter().any(|e| e.subnqn.is_discovery()), "and the discovery service itself");
    // the record count comes first, by a read of the header alone that leaves the event in place
    assert!(reads[0].sqe.rae() && reads[0].sqe.log_length() == 1024);
}

/// Numbers counted up from `first`, one per line, as `lab/capture-initiator.sh` writes them.
fn pattern(first: u32, bytes: usize) -> Vec<u8> {
    let text: String = (first..).take(bytes).map(|n| format!("{n}\n")).collect();
    text.into_bytes()[..bytes].to_vec()
}

#[test]
fn data_are_what_the_script_wrote_and_read() {
    for name in ["linux-6.1-plain", "linux-6.1-digests", "linux-6.1-no-sq-flow", "linux-6.12-data-digest"] {
        let io_queue = capture(name).pop().unwrap();
        let of = |opcode| io_queue.iter().filter(move |e| e.qid == 1 && e.sqe.opcode() == opcode);
        let writes: Vec<_> =
            of(io::WRITE).map(|e| (e.sqe.slba(), e.sqe.nlb_z(), e.sqe.fua(), e.sent.clone())).collect();
        let (small, large, fua) = (pattern(1, 2048), pattern(20_000, 4608), pattern(500, 512));
        assert_eq!(
            writes,
            [(0, 3, false, small.clone()), (16, 8, false, large.clone()), (128, 0, true, fua)],
            "{name}"
        );
        for data in [(0, small), (16, large)] {
            let read = |e: &&Exchange| (e.sqe.slba(), &e.returned) == (data.0, &data.1);
            assert_eq!(of(io::READ).filter(read).count(), 1, "{name}: block {}", data.0);
        }
        assert!(of(io::FLUSH).count() >= 1, "{name}");
        let zeroes: Vec<_> = of(io::WRITE_ZEROES).map(|e| (e.sqe.slba(), e.sqe.nlb_z(), e.sqe.deac())).collect();
        assert_eq!(zeroes, [(144, 15, false)], "{name}");
        let dsm = of(io::DATASET_MANAGEMENT).next().unwrap();
        assert!(dsm.sqe.dsm_deallocate() && dsm.sqe.dsm_ranges_z() == 0, "{name}");
        // Linux sends room for 256 ranges whatever their number
        assert_eq!(dsm.sent.len(), 4096, "{name}");
        let range = DsmRange::parse(dsm.sent.first_chunk().unwrap());
        assert_eq!((range.slba, range.blocks), (256, 24), "{name}");
    }
}
