//! The target as a host over a bare socket sees it: bring-up, identify, logs, I/O with and without digests.
#![allow(missing_docs)]

mod common;

use common::*;
use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectResponse, InvalidParameter};
use polypath_nvme::identify::{IdentifyController, IdentifyNamespace, NamespaceIds};
use polypath_nvme::log::{AnaLog, AsyncEvent, DiscoveryLog, EventKind, SmartLog};
use polypath_nvme::nqn::DISCOVERY_NQN;
use polypath_nvme::properties::Register;
use polypath_nvme::sqe::DsmRange;
use polypath_nvme::{SglDescriptor, Sqe, StatusField};
use polypath_target::{Command, Target};

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) + i / 251 + seed) as u8).collect()
}

#[test]
fn controller_describes_itself_as_hosts_demand() {
    let target = start(&["ram://8MiB", "null://1TiB?bs=4096"]);
    let mut host = Host::admin(target.addresses()[0], false, false, 5000);
    assert_eq!(host.property(Register::Vs), 0x2_0100);
    assert_eq!(host.property(Register::Cap) & 0xffff, 255);
    let id = IdentifyController::parse(&host.identify(1, 0).unwrap()).unwrap();
    // What Linux checks: drivers/nvme/host/fabrics.c and core.c.
    assert_eq!(id.cntlid, host.cntlid);
    assert!(id.kas > 0 && id.maxcmd > 0 && id.ioccsz >= 4 && id.iorcsz >= 1 && id.icdoff == 0);
    assert_eq!((id.cntrltype, id.sgls & 3, id.cmic & 0b1010, id.cqt_ms), (1, 1, 0b1010, 500));
    assert_eq!(&id.subnqn[..NQN.len()], NQN.as_bytes());
    let list = host.identify(2, 0).unwrap();
    assert_eq!(list[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let ns = IdentifyNamespace::parse(&host.identify(0, 2).unwrap()).unwrap();
    assert_eq!((ns.nsze, ns.lbaf[0].block_shift, ns.anagrpid, ns.nmic), (1 << 28, 12, 2, 1));
    let ids = NamespaceIds::parse(&host.identify(3, 1).unwrap()).unwrap();
    assert!(ids.nguid.is_some() && ids.uuid.is_some() && ids.csi == Some(0));
    let other = start(&["ram://8MiB"]);
    let mut elsewhere = Host::admin(other.addresses()[0], false, false, 0);
    assert_eq!(NamespaceIds::parse(&elsewhere.identify(3, 1).unwrap()), Ok(ids), "identity is stable");
    assert_eq!(host.identify(0, 77).unwrap(), [0; 4096], "inactive namespace");
    assert_eq!(host.identify(3, 77).unwrap_err().code(), StatusField::INVALID_NAMESPACE.code());
    assert_eq!(host.identify(0xee, 1).unwrap_err().code(), StatusField::INVALID_FIELD.code());
    for cns in [5, 6, 7, 8, 0x13, 0x1c] {
        assert!(host.identify(cns, if cns == 7 { 0 } else { 1 }).is_ok(), "CNS {cns:#x}");
    }
    for (lid, len) in [(1, 64), (2, 512), (3, 512), (4, 4096), (5, 4096)] {
        assert_eq!(host.log(lid, false, 0, len).unwrap().len(), len as usize, "log {lid}");
    }
    let smart = host.log(2, false, 0, 512).unwrap();
    assert_eq!((&smart[..5], smart[112]), (&[0, 0x36, 1, 100, 10][..], 1), "healthy, warm, powered on once");
    let smart = SmartLog::parse(&smart).unwrap();
    assert_eq!((smart.temperature_k, smart.power_cycles, smart.unsafe_shutdowns), (310, 1, 0));
    assert_eq!(host.log(0x99, false, 0, 64).unwrap_err().code(), StatusField::INVALID_LOG_PAGE.code());
}

fn round_trip(hdgst: bool, ddgst: bool, no_flow_control: bool, uri: &str) {
    let target = start(&[uri]);
    let address = target.addresses()[0];
    let admin = Host::admin(address, hdgst, ddgst, 0);
    let mut host = Host::io(address, &admin, 1, no_flow_control);
    assert_eq!((host.hdgst, host.ddgst), (hdgst, ddgst));
    for (lba, blocks, in_capsule) in [(0, 1, true), (8, 16, true), (100, 16, false), (200, 256, false), (999, 3, false)]
    {
        let data = pattern(blocks * 512, lba as usize);
        assert_eq!(host.write(1, lba, blocks as u16, &data, in_capsule), StatusField::SUCCESS);
        assert!(host.read(1, lba, blocks as u16, blocks * 512).unwrap() == data, "lba {lba} blocks {blocks}");
    }
    assert!(host.read(1, 4000, 8, 4096).unwrap().iter().all(|&b| b == 0));
}

#[test]
fn what_is_written_is_read_with_every_digest_and_flow_control() {
    for i in 0..8 {
        round_trip(i & 1 != 0, i & 2 != 0, i & 4 != 0, "ram://8MiB");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    round_trip(true, true, true, &format!("file://{}", file.path().display()));
}

#[test]
fn many_r2ts_and_small_h2cdata() {
    let mut config = config(&["ram://8MiB"]);
    config.max_h2c_data = 4096;
    config.r2t_bytes = 12_288;
    let target = Target::start(config).unwrap();
    let address = target.addresses()[0];
    let admin = Host::admin(address, true, true, 0);
    let mut host = Host::io(address, &admin, 1, false);
    assert_eq!(host.max_h2c, 4096);
    let data = pattern(131_072, 3);
    assert_eq!(host.write(1, 5, 256, &data, false), StatusField::SUCCESS);
    assert!(host.read(1, 5, 256, 131_072).unwrap() == data);
}

#[test]
fn host_alignment_is_kept() {
    let target = start(&["ram://8MiB", "null://1GiB"]);
    let address = target.addresses()[0];
    for hpda in [0, 1, 31] {
        let mut admin = Host::dial(address, true, true, hpda).unwrap();
        admin.cntlid = admin.connect(NQN, 0, 31, CNTLID_DYNAMIC, 0, 0).unwrap();
        admin.enable();
        let mut host = Host::io(address, &admin, 1, true);
        let data = pattern(4096, 1);
        assert_eq!(host.write(1, 0, 8, &data, true), StatusField::SUCCESS);
        assert!(host.read(1, 0, 8, 4096).unwrap() == data);
        assert!(host.read(2, 0, 256, 131_072).unwrap().iter().all(|&b| b == 0));
    }
}

#[test]
fn other_commands_do_what_they_say() {
    let target = start(&["ram://8MiB"]);
    let address = target.addresses()[0];
    let admin = Host::admin(address, false, false, 0);
    let mut host = Host::io(address, &admin, 1, false);
    let data = pattern(8192, 9);
    assert_eq!(host.write(1, 0, 16, &data, true), StatusField::SUCCESS);
    let mut compare = |data: &[u8]| {
        let sgl = SglDescriptor::InCapsule { offset: 0, length: data.len() as u32 };
        let sqe = Sqe::compare(host.cid(), 1, 0, 15, false).with_sgl(sgl);
        host.run(sqe, data).0.status.code()
    };
    assert_eq!(compare(&data), 0);
    let mut wrong = data.clone();
    wrong[8191] ^= 1;
    assert_eq!(compare(&wrong), StatusField::COMPARE_FAILURE.code());
    let plain = |sqe: Sqe| sqe.with_sgl(SglDescriptor::NO_DATA);
    let cid = host.cid();
    assert!(host.run(plain(Sqe::write_zeroes(cid, 1, 1, 0, false, true)), &[]).0.status.is_success());
    let range = DsmRange { attributes: 0, blocks: 2, slba: 4 }.to_bytes();
    let cid = host.cid();
    let dsm = Sqe::deallocate(cid, 1, 0).with_sgl(SglDescriptor::InCapsule { offset: 0, length: 16 });
    assert!(host.run(dsm, &range).0.status.is_success());
    let cid = host.cid();
    assert!(host.run(plain(Sqe::flush(cid, 1)), &[]).0.status.is_success());
    let mut want = data;
    want[512..1024].fill(0);
    want[2048..3072].fill(0);
    assert!(host.read(1, 0, 16, 8192).unwrap() == want);
    // What must be refused.
    assert_eq!(host.read(1, 16384, 1, 512).unwrap_err().code(), StatusField::LBA_OUT_OF_RANGE.code());
    assert_eq!(host.read(1, u64::MAX, 2, 1024).unwrap_err().code(), StatusField::LBA_OUT_OF_RANGE.code());
    assert_eq!(host.read(9, 0, 1, 512).unwrap_err().code(), StatusField::INVALID_NAMESPACE.code());
    assert_eq!(host.read(1, 0, 2, 512).unwrap_err().code(), StatusField::INVALID_SGL_DATA_LENGTH.code());
    assert_eq!(host.write(1, 0, 2, &[0; 512], true).code(), StatusField::INVALID_SGL_DATA_LENGTH.code());
    let range = DsmRange { attributes: 0, blocks: u32::MAX, slba: u64::MAX }.to_bytes();
    let cid = host.cid();
    let dsm = Sqe::deallocate(cid, 1, 0).with_sgl(SglDescriptor::InCapsule { offset: 0, length: 16 });
    assert_eq!(host.run(dsm, &range).0.status.code(), StatusField::LBA_OUT_OF_RANGE.code());
    let cid = host.cid();
    assert_eq!(host.run(plain(Sqe::new(0x99, cid, 1)), &[]).0.status.code(), StatusField::INVALID_OPCODE.code());
}

#[test]
fn submission_queue_head_counts_and_wraps() {
    let target = start(&["null://1GiB"]);
    let address = target.addresses()[0];
    let admin = Host::admin(address, false, false, 0);
    let mut host = Host::dial(address, false, false, 0).unwrap();
    host.connect(NQN, 1, 3, admin.cntlid, 0, 0).unwrap();
    let heads: Vec<u16> = (0..6)
        .map(|_| {
            let sqe = Sqe::flush(host.cid(), 1).with_sgl(SglDescriptor::NO_DATA);
            host.run(sqe, &[]).0.sqhd
        })
        .collect();
    assert_eq!(heads, [2, 3, 0, 1, 2, 3]);
}

#[test]
fn wrong_connects_are_told_what_is_wrong() {
    let target = start(&["null://1GiB"]);
    let address = target.addresses()[0];
    let mut host = Host::dial(address, false, false, 0).unwrap();
    let invalid = |p| Err(ConnectResponse::InvalidParameter(p));
    assert_eq!(host.connect("nqn.no.such", 0, 31, CNTLID_DYNAMIC, 0, 0), invalid(InvalidParameter::SUBNQN));
    assert_eq!(host.connect(NQN, 0, 31, 7, 0, 0), invalid(InvalidParameter::CNTLID));
    assert_eq!(host.connect(NQN, 0, 0, CNTLID_DYNAMIC, 0, 0), invalid(InvalidParameter::SQSIZE));
    assert_eq!(host.connect(NQN, 1, 31, 999, 0, 0), invalid(InvalidParameter::CNTLID));
    let id = host.connect(NQN, 0, 31, CNTLID_DYNAMIC, 0, 0).unwrap();
    assert!(matches!(host.connect(NQN, 0, 31, CNTLID_DYNAMIC, 0, 0), Err(ConnectResponse::Refused(_))), "twice");
    let mut io = Host::dial(address, false, false, 0).unwrap();
    assert!(matches!(io.connect(NQN, 1, 31, id, 0, 0), Err(ConnectResponse::Refused(_))), "not enabled");
    host.enable();
    assert_eq!(io.connect(NQN, 17, 31, id, 0, 0), invalid(InvalidParameter::QID));
    assert_eq!(io.connect(NQN, 1, 31, id, 0, 0), Ok(id));
    let mut second = Host::dial(address, false, false, 0).unwrap();
    let busy = second.connect(NQN, 1, 31, id, 0, 0);
    assert!(matches!(busy, Err(ConnectResponse::Refused(s)) if s.is(StatusField::CONNECT_CONTROLLER_BUSY)), "{busy:?}");
    drop(io);
    wait_for("the queue is free again", || second.connect(NQN, 1, 31, id, 0, 0) == Ok(id));
}

#[test]
fn discovery_lists_every_listener_and_tells_changes() {
    let mut config = config(&["null://1GiB"]);
    config.referrals.push("192.0.2.7:8009".into());
    let target = Target::start(config).unwrap();
    let mut host = Host::dial(target.addresses()[1], false, false, 0).unwrap();
    host.cntlid = host.connect(DISCOVERY_NQN, 0, 31, CNTLID_DYNAMIC, 0, 0).unwrap();
    host.enable();
    let id = IdentifyController::parse(&host.identify(1, 0).unwrap()).unwrap();
    assert_eq!(id.cntrltype, 2);
    let page = host.log(0x70, false, 0, 4096).unwrap();
    let log = DiscoveryLog::parse(&page).unwrap();
    let found: Vec<_> = log.entries.iter().map(|e| format!("{}:{} {}", e.traddr, e.trsvcid, e.subnqn)).collect();
    let want = [
        format!("{} {NQN}", target.addresses()[0]),
        format!("{} {NQN}", target.addresses()[1]),
        format!("192.0.2.7:8009 {DISCOVERY_NQN}"),
    ];
    assert_eq!(found, want);
    assert_eq!(host.log(0x70, false, 1024, 1024).unwrap(), page[1024..2048], "read from an offset");
    let cid = host.cid();
    let set = Sqe::set_features(cid, 0, 0x0b, 1 << 31).with_sgl(SglDescriptor::NO_DATA);
    assert!(host.run(set, &[]).0.status.is_success());
    let cid = host.cid();
    host.command(&Sqe::async_event_request(cid).with_sgl(SglDescriptor::NO_DATA), &[]).unwrap();
    target.close_listener(0).unwrap();
    let cqe = host.receive().unwrap().cqe();
    assert_eq!(cqe.cid, cid);
    assert_eq!(AsyncEvent::from_dw0(cqe.dw0()), AsyncEvent { kind: EventKind::DiscoveryChanged, log_page: 0x70 });
    let after = DiscoveryLog::parse(&host.log(0x70, false, 0, 4096).unwrap()).unwrap();
    assert_eq!(after.entries.len(), 2);
    assert_ne!(after.genctr, log.genctr);
    target.open_listener(0).unwrap();
    Host::admin(target.addresses()[0], false, false, 0);
}

#[test]
fn ana_is_per_listener_and_changes_are_told() {
    let target = start(&["ram://1MiB", "ram://1MiB"]);
    let (a, b) = (target.addresses()[0], target.addresses()[1]);
    let mut one = Host::admin(a, false, false, 0);
    let mut two = Host::admin(b, false, false, 0);
    for host in [&mut one, &mut two] {
        let cid = host.cid();
        assert!(
            host.run(Sqe::set_features(cid, 0, 0x0b, 0x900).with_sgl(SglDescriptor::NO_DATA), &[])
                .0
                .status
                .is_success()
        );
        let cid = host.cid();
        host.command(&Sqe::async_event_request(cid).with_sgl(SglDescriptor::NO_DATA), &[]).unwrap();
    }
    let mut io = Host::io(b, &two, 1, false);
    let command = Command { nsid: Some(2), state: Some("inaccessible".into()), ..Command::new("set_ana").listener(1) };
    target.control(&command).unwrap();
    let cqe = two.receive().unwrap().cqe();
    assert_eq!(AsyncEvent::from_dw0(cqe.dw0()), AsyncEvent { kind: EventKind::AnaChanged, log_page: 0x0c });
    assert!(one.is_silent(100), "the other listener did not change");
    assert_eq!(io.read(2, 0, 1, 512).unwrap_err().code(), StatusField::ANA_INACCESSIBLE.code());
    assert!(io.read(1, 0, 1, 512).is_ok());
    let log = AnaLog::parse(&two.log(0x0c, false, 0, 4096).unwrap()).unwrap();
    let state = |n| log.namespace_state(n).unwrap().to_string();
    assert_eq!((state(1), state(2)), ("optimized".into(), "inaccessible".into()));
    // Masked until the page was read, then told again.
    let cid = two.cid();
    two.command(&Sqe::async_event_request(cid).with_sgl(SglDescriptor::NO_DATA), &[]).unwrap();
    target.set_ana(1, "optimized").unwrap();
    assert_eq!(two.receive().unwrap().cqe().cid, cid);
    assert!(io.read(2, 0, 1, 512).is_ok());
}

#[test]
fn identity_and_size_change_under_a_running_host() {
    let target = start(&["ram://1MiB"]);
    let address = target.addresses()[0];
    let mut host = Host::admin(address, false, false, 0);
    let mut io = Host::io(address, &host, 1, false);
    assert_eq!(io.write(1, 0, 1, &[5; 512], true), StatusField::SUCCESS);
    let cid = host.cid();
    assert!(
        host.run(Sqe::set_features(cid, 0, 0x0b, 0x900).with_sgl(SglDescriptor::NO_DATA), &[]).0.status.is_success()
    );
    let before = host.identify(3, 1).unwrap();
    let cid = host.cid();
    host.command(&Sqe::async_event_request(cid).with_sgl(SglDescriptor::NO_DATA), &[]).unwrap();
    target.control(&Command { nsid: Some(1), new_contents: Some(true), ..Command::new("swap_identity") }).unwrap();
    let cqe = host.receive().unwrap().cqe();
    assert_eq!(AsyncEvent::from_dw0(cqe.dw0()).kind, EventKind::NamespacesChanged);
    assert_eq!(host.log(4, false, 0, 4096).unwrap()[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_ne!(host.identify(3, 1).unwrap(), before);
    assert_eq!(io.read(1, 0, 1, 512).unwrap(), [0; 512], "another disk");
    assert_eq!(io.write(1, 0, 1, &[6; 512], true), StatusField::SUCCESS);
    target.control(&Command { nsid: Some(1), bytes: Some(4 << 20), ..Command::new("resize") }).unwrap();
    assert_eq!(io.read(1, 8191, 1, 512).unwrap(), [0; 512], "grown");
    assert_eq!(io.read(1, 0, 1, 512).unwrap(), [6; 512]);
    target.control(&Command { nsid: Some(1), bytes: Some(1 << 19), ..Command::new("resize") }).unwrap();
    assert_eq!(io.read(1, 1024, 1, 512).unwrap_err().code(), StatusField::LBA_OUT_OF_RANGE.code());
}

#[test]
fn features_and_resets() {
    let target = start(&["null://1GiB"]);
    let address = target.addresses()[0];
    let mut host = Host::admin(address, false, false, 0);
    let mut feature = |sqe: Sqe| {
        let cqe = host.run(sqe.with_sgl(SglDescriptor::NO_DATA), &[]).0;
        if cqe.status.is_success() { Ok(cqe.dw0()) } else { Err(cqe.status.code()) }
    };
    assert_eq!(feature(Sqe::set_features(1, 0, 7, 0x0003_0003)), Ok(0x0003_0003));
    assert_eq!(feature(Sqe::get_features(2, 0, 7)), Ok(0x0003_0003));
    assert_eq!(feature(Sqe::set_features(3, 0, 7, 0x00ff_00ff)), Ok(0x000f_000f), "limited to 16");
    assert_eq!(feature(Sqe::set_features(4, 0, 0x0f, 30_000)), Ok(0));
    assert_eq!(feature(Sqe::get_features(5, 0, 0x0f)), Ok(30_000));
    assert_eq!(feature(Sqe::get_features(6, 0, 0xc0)), Err(StatusField::INVALID_FIELD.code()));
    let mut io = Host::io(address, &host, 1, false);
    let cid = host.cid();
    let off = Sqe::property_set(cid, Register::Cc, 0x0046_0000).with_sgl(SglDescriptor::NO_DATA);
    assert!(host.run(off, &[]).0.status.is_success());
    assert_eq!(host.property(Register::Csts), 0);
    assert!(io.is_closed(), "a reset ends the I/O queues");
    host.enable();
    let mut io = Host::io(address, &host, 1, false);
    let cid = host.cid();
    let off = Sqe::property_set(cid, Register::Cc, 0x0046_4001).with_sgl(SglDescriptor::NO_DATA);
    assert!(host.run(off, &[]).0.status.is_success());
    assert_eq!(host.property(Register::Csts) & 0xc, 8, "shut down");
    assert!(io.is_closed());
}

#[test]
fn several_threads_serve_one_medium() {
    let mut config = config(&["ram://8MiB"]);
    config.threads = 2;
    let target = Target::start(config).unwrap();
    let address = target.addresses()[0];
    let mut admin = Host::admin(address, false, true, 0);
    let mut queues: Vec<Host> = (1..=4).map(|q| Host::io(address, &admin, q, true)).collect();
    for (i, q) in queues.iter_mut().enumerate() {
        assert_eq!(q.write(1, i as u64 * 256, 256, &pattern(131_072, i), false), StatusField::SUCCESS);
    }
    for (i, q) in queues.iter_mut().rev().enumerate() {
        assert!(q.read(1, i as u64 * 256, 256, 131_072).unwrap() == pattern(131_072, i));
    }
    // Abort reaches over to another thread's connection.
    target.control(&Command { ms: Some(60_000), op: Some("read".into()), ..Command::new("delay") }).unwrap();
    let queue = &mut queues[0];
    let victim = queue.cid();
    let sqe = Sqe::read(victim, 1, 0, 0, false).with_sgl(SglDescriptor::Transport { length: 512 });
    queue.command(&sqe, &[]).unwrap();
    wait_for("the command is there to be aborted", || {
        let cid = admin.cid();
        let cqe = admin.run(Sqe::abort(cid, 1, victim).with_sgl(SglDescriptor::NO_DATA), &[]).0;
        assert!(cqe.status.is_success());
        cqe.dw0() & 1 == 0
    });
    assert_eq!(queue.receive().unwrap().cqe().status.code(), StatusField::ABORT_REQUESTED.code());
}
