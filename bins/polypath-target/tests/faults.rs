//! Faults on command, keep alive, and hosts that misbehave.
#![allow(missing_docs)]

mod common;

use common::*;
use polypath_nvme::{SglDescriptor, Sqe, StatusField};
use polypath_target::{Command, Target, call};
use std::io::Write;
use std::time::{Duration, Instant};

fn pair(target: &polypath_target::TargetHandle, listener: usize, kato_ms: u32) -> (Host, Host) {
    let address = target.addresses()[listener];
    let admin = Host::admin(address, false, false, kato_ms);
    let io = Host::io(address, &admin, 1, false);
    (admin, io)
}

fn keep_alive(host: &mut Host) {
    let sqe = Sqe::keep_alive(host.cid()).with_sgl(SglDescriptor::NO_DATA);
    assert!(host.run(sqe, &[]).0.status.is_success());
}

#[test]
fn keep_alive_expiry_tears_the_association_down() {
    let target = start(&["ram://1MiB"]);
    let (mut admin, mut io) = pair(&target, 0, 950);
    // 950 ms are rounded up to 1,000 by the granularity of 100.
    let begin = Instant::now();
    let mut last = begin;
    while begin.elapsed() < Duration::from_millis(1500) {
        last = Instant::now();
        keep_alive(&mut admin);
        io.read(1, 0, 1, 512).unwrap();
    }
    assert!(io.is_closed() && admin.is_closed());
    let after = last.elapsed().as_millis();
    assert!((1000..4000).contains(&after), "{after} ms after the last Keep Alive was sent");
    let status = target.status();
    assert_eq!(status["counters"]["keep_alive_expired"], 1);
    assert_eq!(status["subsystems"][1]["controllers"].as_array().unwrap().len(), 0);
}

#[test]
fn traffic_keeps_alive_only_where_it_is_said_to() {
    for tbkas in [false, true] {
        let mut config = config(&["ram://1MiB"]);
        config.tbkas = tbkas;
        let target = Target::start(config).unwrap();
        let (mut admin, mut io) = pair(&target, 0, 1000);
        let begin = Instant::now();
        let mut alive = true;
        while alive && begin.elapsed() < Duration::from_millis(2500) {
            let sqe = Sqe::read(io.cid(), 1, 0, 0, false).with_sgl(SglDescriptor::Transport { length: 512 });
            alive = io.command(&sqe, &[]).is_ok() && io.receive().is_ok() && io.receive().is_ok();
        }
        assert_eq!(alive, tbkas);
        assert!(admin.is_closed(), "without any traffic it ends either way");
    }
}

#[test]
fn an_admin_connection_that_ends_takes_the_queues_with_it() {
    let target = start(&["ram://1MiB"]);
    let (admin, mut io) = pair(&target, 0, 0);
    drop(admin);
    assert!(io.is_closed());
}

#[test]
fn dropped_listener_says_nothing_and_comes_back() {
    let target = start(&["ram://1MiB"]);
    let (mut admin, mut io) = pair(&target, 0, 300);
    let (_admin2, mut other) = pair(&target, 1, 0);
    target.drop_silently(0).unwrap();
    let sqe = io.write_sqe(1, 0, 1, 512, true);
    io.command(&sqe, &[9; 512]).unwrap();
    // A connection is accepted by the kernel and never answered.
    let mut fresh = std::net::TcpStream::connect(target.addresses()[0]).unwrap();
    fresh.write_all(&[0; 128]).unwrap();
    wait_for("keep alive expires meanwhile", || target.status()["counters"]["keep_alive_expired"] == 1);
    assert!(io.is_silent(150) && admin.is_silent(50), "not even a FIN");
    assert_eq!(other.read(1, 0, 1, 512).unwrap(), [0; 512], "what the network ate was not executed");
    target.restore(0).unwrap();
    assert!(io.is_closed() && admin.is_closed());
    let (_admin, mut io) = pair(&target, 0, 0);
    assert_eq!(io.read(1, 0, 1, 512).unwrap(), [0; 512]);
}

#[test]
fn reset_fin_and_stall() {
    let target = start(&["ram://1MiB"]);
    let (_admin, mut io) = pair(&target, 0, 0);
    let (_admin2, mut other) = pair(&target, 1, 0);
    target.control(&Command { qid: Some(1), ..Command::new("reset").listener(0) }).unwrap();
    let error = io.receive().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let (_admin, mut io) = pair(&target, 0, 0);
    target.control(&Command { qid: Some(1), ..Command::new("fin").listener(0) }).unwrap();
    assert_eq!(io.receive().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    let (_admin, mut io) = pair(&target, 0, 0);
    target.control(&Command::new("stall").listener(0)).unwrap();
    let sqe = Sqe::read(io.cid(), 1, 0, 0, false).with_sgl(SglDescriptor::Transport { length: 512 });
    io.command(&sqe, &[]).unwrap();
    assert!(io.is_silent(100));
    assert!(other.read(1, 0, 1, 512).is_ok());
    target.control(&Command::new("clear")).unwrap();
    assert!(io.is_closed(), "its stream has a hole");
    let (_admin, mut io) = pair(&target, 0, 0);
    assert!(io.read(1, 0, 1, 512).is_ok());
}

#[test]
fn commands_are_delayed_lost_or_slowed() {
    let target = start(&["ram://1MiB"]);
    let (mut admin, mut io) = pair(&target, 0, 0);
    let timed = |io: &mut Host| {
        let begin = Instant::now();
        io.read(1, 0, 1, 512).unwrap();
        begin.elapsed().as_millis()
    };
    target
        .control(&Command { ms: Some(900), op: Some("read".into()), count: Some(1), ..Command::new("delay") })
        .unwrap();
    assert!(timed(&mut io) >= 899);
    assert!(timed(&mut io) < 800, "only once");
    target.latency(0, 600_000).unwrap();
    assert!(timed(&mut io) >= 599);
    target.latency(0, 0).unwrap();
    assert!(timed(&mut io) < 500);
    target.control(&Command { op: Some("write".into()), count: Some(1), ..Command::new("lose") }).unwrap();
    let sqe = io.write_sqe(1, 0, 1, 512, true);
    io.command(&sqe, &[1; 512]).unwrap();
    assert_eq!(io.read(1, 0, 1, 512).unwrap(), [0; 512], "lost before it was executed, never answered");
    let lose = Command { op: Some("write".into()), count: Some(1), execute: Some(true), ..Command::new("lose") };
    target.control(&lose).unwrap();
    let lost = io.write_sqe(1, 0, 1, 512, true);
    io.command(&lost, &[2; 512]).unwrap();
    assert_eq!(io.read(1, 0, 1, 512).unwrap(), [2; 512], "executed, never answered");
    let cid = admin.cid();
    let cqe = admin.run(Sqe::abort(cid, 1, lost.cid()).with_sgl(SglDescriptor::NO_DATA), &[]).0;
    assert_eq!(cqe.dw0() & 1, 1, "what was executed is not aborted");
    // Its identifier is still taken.
    let sqe = Sqe::from_bytes(*lost.as_bytes());
    assert_eq!(io.run(sqe, &[3; 512]).0.status.code(), StatusField::CID_CONFLICT.code());
    target.control(&Command { bytes: Some(7), us: Some(200), ..Command::new("trickle") }).unwrap();
    assert_eq!(io.read(1, 0, 1, 512).unwrap(), [2; 512]);
    target.control(&Command::new("clear")).unwrap();
    target.bandwidth(0, 4 << 20).unwrap();
    let begin = Instant::now();
    for _ in 0..16 {
        io.read(1, 0, 256, 131_072).unwrap();
    }
    let ms = begin.elapsed().as_millis();
    assert!((350..3000).contains(&ms), "2 MiB at 4 MiB/s took {ms} ms");
}

#[test]
fn digests_are_corrupted_on_demand() {
    let target = start(&["ram://1MiB", "null://1GiB"]);
    let address = target.addresses()[0];
    let admin = Host::admin(address, true, true, 0);
    for nsid in [1, 2] {
        for digest in ["header", "data"] {
            let mut io = Host::io(address, &admin, 1, true);
            let command =
                Command { qid: Some(1), count: Some(1), digest: Some(digest.into()), ..Command::new("corrupt") };
            target.control(&command).unwrap();
            let sqe = Sqe::read(io.cid(), nsid, 0, 0, false).with_sgl(SglDescriptor::Transport { length: 512 });
            io.command(&sqe, &[]).unwrap();
            assert_eq!(io.receive().unwrap_err().to_string(), format!("{digest} digest"));
            assert!(io.read(nsid, 0, 1, 512).is_ok(), "only once");
            drop(io);
            wait_for("the queue is free", || {
                target.status()["subsystems"][1]["controllers"][0]["queues"].as_array().unwrap().is_empty()
            });
        }
    }
}

#[test]
fn held_writes_land_late_even_without_their_connection() {
    let target = start(&["ram://1MiB"]);
    let (admin, mut io) = pair(&target, 0, 1000);
    let (_admin2, mut other) = pair(&target, 1, 0);
    target.control(&Command { apply_after_ms: Some(500), ..Command::new("hold_write").listener(0) }).unwrap();
    let sqe = io.write_sqe(1, 0, 1, 512, true);
    io.command(&sqe, &[0xaa; 512]).unwrap();
    wait_for("it is held", || target.held_writes().len() == 1);
    drop((io, admin));
    assert_eq!(other.write(1, 0, 1, &[0xbb; 512], true), StatusField::SUCCESS);
    assert_eq!(other.read(1, 0, 1, 512).unwrap(), [0xbb; 512]);
    wait_for("it is applied", || target.held_writes()[0].applied_unix_us.is_some());
    assert_eq!(other.read(1, 0, 1, 512).unwrap(), [0xaa; 512], "the ghost");
    let record = &target.held_writes()[0];
    // 2 x 1,000 ms + 500 ms advertised.
    assert_eq!((record.bound_ms, record.beyond, record.after_teardown), (Some(2500), false, Some(true)));
    let late_ms = (record.applied_unix_us.unwrap() - record.held_unix_us) / 1000;
    assert!((500..2500).contains(&late_ms), "{late_ms} ms");
}

#[test]
fn held_writes_stay_inside_the_bound_unless_told_otherwise() {
    let target = start(&["ram://1MiB"]);
    let (_admin, mut io) = pair(&target, 0, 200);
    for (beyond, want) in [(false, 880), (true, 60_000)] {
        let command = Command { apply_after_ms: Some(60_000), beyond: Some(beyond), ..Command::new("hold_write") };
        target.control(&command).unwrap();
        let sqe = io.write_sqe(1, 0, 16, 8192, false);
        io.command(&sqe, &[]).unwrap();
        let r2t = io.receive().unwrap();
        io.answer_r2t(&r2t, &[1; 8192]);
        wait_for("held", || target.held_writes().last().is_some_and(|r| r.cid == u32::from(sqe.cid())));
        assert_eq!(target.held_writes().last().unwrap().apply_after_ms, want);
    }
    let command = Command { apply_after_ms: Some(50), answer: Some("after".into()), ..Command::new("hold_write") };
    target.control(&command).unwrap();
    let begin = Instant::now();
    assert_eq!(io.write(1, 9, 1, &[4; 512], true), StatusField::SUCCESS);
    assert!(begin.elapsed() >= Duration::from_millis(50));
    assert_eq!(io.read(1, 9, 1, 512).unwrap(), [4; 512]);
}

/// Sends raw octets after ICReq (and Connect, if asked) and expects C2HTermReq with this FES and information.
fn terminates(
    target: &polypath_target::TargetHandle,
    what: &str,
    digests: bool,
    octets: &[u8],
    fes: u16,
    info: Option<u32>,
) {
    let address = target.addresses()[0];
    let admin = Host::admin(address, digests, digests, 0);
    let mut io = Host::io(address, &admin, 1, false);
    io.stream.write_all(octets).unwrap();
    let term = io.receive().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((term.kind, term.u16(8)), (3, fes), "{what}: {term:?}");
    if let Some(info) = info {
        assert_eq!(term.u32(10), info, "{what}");
    }
    assert!(!term.data.is_empty(), "{what}: carries the header that was wrong");
    assert!(io.is_closed(), "{what}");
}

#[test]
fn hostile_hosts_cost_their_own_connection() {
    let target = start(&["ram://1MiB"]);
    let (_admin, mut bystander) = pair(&target, 1, 0);
    let ch = |kind: u8, flags: u8, hlen: u8, pdo: u8, len: u32| {
        let mut b = vec![kind, flags, hlen, pdo];
        b.extend_from_slice(&len.to_le_bytes());
        b.resize(72, 0);
        b
    };
    terminates(&target, "unknown type", false, &ch(0x55, 0, 24, 0, 24), 1, Some(0));
    terminates(&target, "second ICReq", false, &ch(0, 0, 128, 0, 128), 2, None);
    terminates(&target, "PLEN of 4 GiB", false, &ch(4, 0, 72, 72, u32::MAX), 1, Some(4));
    terminates(&target, "PLEN of zero", false, &ch(4, 0, 72, 0, 0), 1, Some(4));
    terminates(&target, "HLEN", false, &ch(4, 0, 64, 0, 72), 1, Some(2));
    terminates(&target, "PDO", false, &ch(4, 0, 72, 4, 600), 1, Some(3));
    terminates(&target, "digest not agreed", false, &ch(4, 1, 72, 0, 76), 1, Some(1));
    terminates(&target, "data for no transfer", false, &[ch(6, 4, 24, 24, 56), vec![0; 8]].concat()[..56], 1, Some(10));
    let mut wrong = ch(4, 1, 72, 0, 76);
    wrong.extend_from_slice(&0xdead_beef_u32.to_le_bytes());
    terminates(&target, "header digest", true, &wrong, 3, Some(0xdead_beef));
    let mut first = std::net::TcpStream::connect(target.addresses()[0]).unwrap();
    first.write_all(&ch(4, 0, 72, 0, 72)).unwrap();
    let mut answer = [0; 24];
    std::io::Read::read_exact(&mut first, &mut answer).unwrap();
    assert_eq!((answer[0], answer[8]), (3, 2), "a command before ICReq is a sequence error");
    assert!(bystander.read(1, 0, 1, 512).is_ok());
}

#[test]
fn data_outside_the_r2t_is_refused() {
    let target = start(&["ram://1MiB"]);
    for (what, offset, len, flags, want) in [
        ("wrong offset", 512u32, 7680usize, 4u8, 4u16),
        ("too much", 0, 8704, 4, 4),
        ("no LAST", 0, 8192, 0, 1),
        ("LAST too early", 0, 512, 4, 1),
    ] {
        let (_admin, mut io) = pair(&target, 0, 0);
        let sqe = io.write_sqe(1, 0, 16, 8192, false);
        io.command(&sqe, &[]).unwrap();
        let r2t = io.receive().unwrap();
        assert_eq!((r2t.kind, r2t.u32(16)), (9, 8192));
        let mut pdu = vec![0; 24];
        (pdu[0], pdu[1], pdu[2]) = (6, flags, 24);
        pdu[8..12].copy_from_slice(&r2t.header[8..12]);
        pdu[12..16].copy_from_slice(&offset.to_le_bytes());
        pdu[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        io.pdu(pdu, &vec![1; len]).unwrap();
        let term = io.receive().unwrap();
        assert_eq!((term.kind, term.u16(8)), (3, want), "{what}");
    }
    let (_admin, mut io) = pair(&target, 0, 0);
    assert!(io.read(1, 0, 16, 8192).unwrap().iter().all(|&b| b == 0), "nothing of it was written");
}

#[test]
fn wrong_data_digest_fails_the_command_only() {
    let target = start(&["ram://1MiB"]);
    let address = target.addresses()[0];
    let admin = Host::admin(address, false, true, 0);
    let mut io = Host::io(address, &admin, 1, false);
    let sqe = io.write_sqe(1, 0, 1, 512, true);
    let mut pdu = vec![4, 2, 72, 72, 0, 0, 0, 0];
    pdu[4..8].copy_from_slice(&(72 + 512 + 4u32).to_le_bytes());
    pdu.extend_from_slice(sqe.as_bytes());
    pdu.extend_from_slice(&[9; 512]);
    pdu.extend_from_slice(&[0; 4]);
    io.stream.write_all(&pdu).unwrap();
    assert_eq!(io.receive().unwrap().cqe().status.code(), StatusField::TRANSIENT_TRANSPORT_ERROR.code());
    assert_eq!(io.read(1, 0, 1, 512).unwrap(), [0; 512]);
}

#[test]
fn a_host_that_does_not_read_is_not_served_without_end() {
    let target = start(&["null://1GiB"]);
    let (_admin, mut io) = pair(&target, 0, 0);
    io.stream.set_nonblocking(true).unwrap();
    let sqe = Sqe::read(1, 1, 0, 255, false).with_sgl(SglDescriptor::Transport { length: 131_072 });
    let mut capsule = vec![4, 0, 72, 0, 72, 0, 0, 0];
    capsule.extend_from_slice(sqe.as_bytes());
    let begin = Instant::now();
    let mut sent = 0usize;
    // Requests for far more than all buffers hold; the target must stop taking them.
    while begin.elapsed() < Duration::from_millis(500) && sent < 1 << 20 {
        sent += usize::from(io.stream.write(&capsule).is_ok());
    }
    let reads =
        target.status()["connections"].as_array().unwrap().iter().map(|c| c["reads"].as_u64().unwrap()).max().unwrap();
    assert!(reads < 500, "{reads} reads of 128 KiB were taken without one having been fetched");
    let (_admin, mut other) = pair(&target, 1, 0);
    assert!(other.read(1, 0, 1, 512).is_ok(), "others go on");
}

#[test]
fn control_socket_answers_lines_of_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let mut config = config(&["ram://1MiB"]);
    config.control = Some(path.clone());
    let target = Target::start(config).unwrap();
    let (_admin, _io) = pair(&target, 0, 5000);
    let status = call(&path, &Command::new("status")).unwrap();
    assert_eq!(status["connections"].as_array().unwrap().len(), 2);
    assert_eq!(status["subsystems"][1]["controllers"][0]["quiet_bound_ms"], 10_500);
    assert!(call(&path, &Command::new("nonsense")).unwrap_err().contains("nonsense"));
    let mut raw = std::os::unix::net::UnixStream::connect(&path).unwrap();
    raw.write_all(b"{\"cmd\":\"reset\",\"colour\":1}\n{\"cmd\":\"ping\"}\n").unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(raw));
    let bad = lines.next().unwrap().unwrap();
    assert!(bad.contains("colour") && bad.contains("\"ok\":false"), "{bad}");
    assert!(lines.next().unwrap().unwrap().contains("\"ok\":true"));
    target.stop();
    assert!(!path.exists());
}
