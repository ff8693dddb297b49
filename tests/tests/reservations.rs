//! One medium behind two protocols, and two hosts that share it: each has two NVMe/TCP paths and two iSCSI paths to it.

use anyhow::{Context, Result, ensure};
use polypath::block::{ReservationOp as Op, ReservationReport, ReservationType};
use polypath::{Code, Device, Disk, Group, GroupSpec, MatchPolicy, PathSpec, Stack, StackConfig, block_on};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use polypath_tests::products::Daemon;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.org.polypath:reserved";
const IQN: &str = "iqn.2026-01.org.polypath:reserved";
const KIND: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
const OURS: u64 = 0xa11ce;
const THEIRS: u64 = 0xb0b;

fn start_target() -> Result<TargetHandle> {
    let iscsi = |group| ListenerConfig { portal_group: Some(group), ..ListenerConfig::iscsi("127.0.0.1:0") };
    let nvme = || ListenerConfig::new("127.0.0.1:0");
    let namespaces = vec![NamespaceConfig::new("ram://8MiB")];
    Target::start(TargetConfig {
        listeners: vec![nvme(), iscsi(1), nvme(), iscsi(2)],
        subsystems: vec![SubsystemConfig { iqn: Some(IQN.into()), ..SubsystemConfig::new(NQN, namespaces) }],
        kas_ms: 100,
        cqt_ms: 100,
        ..TargetConfig::default()
    })
    .context("target")
}

/// The way of host `name` to a port of the target: even ones speak NVMe/TCP, odd ones iSCSI.
fn uri(target: &TargetHandle, name: char, port: usize) -> String {
    let address = target.addresses()[port];
    if port.is_multiple_of(2) {
        let id = format!("{:08x}-0000-4000-8000-000000000000", u32::from(name));
        let host = format!("nqn.2014-08.org.nvmexpress:uuid:{id}");
        return format!("nvme-tcp://{address}/{NQN}?ns=1&keep_alive_ms=400&hostid={id}&hostnqn={host}");
    }
    format!(
        "iscsi://{address}/{IQN}/0?initiator=iqn.2026-01.org.polypath.lab:{name}&fence_ms=2000&silence_timeout_ms=500"
    )
}

/// One host: a stack, and the disk over some ports of the target.
struct Computer {
    name: char,
    group: Arc<Group>,
    disk: Disk,
}

impl Computer {
    fn new(target: &TargetHandle, name: char, ports: &[usize]) -> Result<Computer> {
        let stack = Stack::start(StackConfig::default())?;
        let uris = ports.iter().map(|port| uri(target, name, *port).parse()).collect::<Result<Vec<_>, _>>()?;
        let spec = GroupSpec { matching: MatchPolicy::Worldwide, ..GroupSpec::new(name.to_string(), uris) };
        let group = stack.open_group(spec)?;
        polypath::wait_group_live(&group, Duration::from_secs(20))?;
        let disk = Disk::builder().device(group.clone()).stack(&stack).open_blocking()?;
        let computer = Computer { name, group, disk };
        computer.wait_for_paths(ports.len())?;
        Ok(computer)
    }

    fn wait_for_paths(&self, paths: usize) -> Result<()> {
        until(&format!("{paths} paths are usable"), || self.group.availability().usable_paths == paths as u32)
            .with_context(|| format!("{:?}", self.group.statistics().into_iter().map(|p| p.why).collect::<Vec<_>>()))
    }

    /// Adds a way of host `name` to it.
    fn add_path(&self, target: &TargetHandle, name: char, port: usize) -> Result<()> {
        let path = format!("{}&queue_depth=7", uri(target, name, port)).parse()?;
        let spec = PathSpec { name: Some(format!("late {name}{port}")), ..PathSpec::new(path) };
        self.disk.stack().add_path(&self.group, spec)?;
        Ok(())
    }

    fn ask(&self, op: Op) -> Result<Option<ReservationReport>, Code> {
        block_on(self.disk.reservation(op)).map_err(|error| {
            println!("{}: {op:?}: {error}", self.name);
            error.code().unwrap_or(Code::Ok)
        })
    }

    fn report(&self) -> Result<ReservationReport> {
        let report = self.ask(Op::Report).map_err(|code| anyhow::anyhow!("no report: {code:?}"))?;
        report.context("a report")
    }

    /// What writes end with: as many as there are paths, and more, so that each of them is chosen.
    fn writes(&self) -> Vec<Code> {
        let write = || {
            let buffer = self.disk.buffer(4096).expect("memory");
            let result = block_on(self.disk.write(0, buffer)).0;
            result.map_or_else(|error| error.code().unwrap_or(Code::Gone), |()| Code::Ok)
        };
        let mut all: Vec<_> = (0..12).map(|_| write()).collect();
        all.dedup();
        all
    }

    fn reads(&self) -> bool {
        block_on(self.disk.read(0, self.disk.buffer(4096).expect("memory"))).0.is_ok()
    }
}

fn until(what: &str, so: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !so() {
        ensure!(start.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

const OK: [Code; 1] = [Code::Ok];
const CONFLICT: [Code; 1] = [Code::ReservationConflict];

#[test]
fn two_hosts_share_a_medium_of_two_protocols() -> Result<()> {
    let target = start_target()?;
    let (a, b) = (Computer::new(&target, 'a', &[0, 1, 2, 3])?, Computer::new(&target, 'b', &[3, 0])?);
    ensure!(a.ask(Op::Reserve { key: OURS, kind: KIND }) == Err(Code::ReservationConflict), "not registered");
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None));
    a.wait_for_paths(4)?;
    let registered = a.report()?;
    ensure!(registered.registrants.iter().all(|r| r.key == OURS), "{registered:?}");
    let alone = Op::Reserve { key: OURS, kind: ReservationType::WriteExclusive };
    ensure!(a.ask(alone) == Err(Code::Unsupported), "no type for one alone over several sessions");
    ensure!(a.ask(Op::Reserve { key: OURS, kind: KIND }) == Ok(None) && a.report()?.is_held_by(OURS));
    ensure!(a.writes() == OK, "over each path");
    ensure!(b.writes() == CONFLICT && b.reads(), "whatever they speak");
    ensure!(b.group.availability().usable_paths == 2, "a conflict is no fault of a path");
    // Paths that come later, one of each.
    a.add_path(&target, 'a', 1)?;
    a.add_path(&target, 'a', 2)?;
    a.wait_for_paths(6)?;
    ensure!(a.writes() == OK);
    // The other host takes it.
    let preempt = |key, victim, abort| Op::Preempt { key, victim, kind: KIND, abort };
    ensure!(b.ask(preempt(THEIRS, OURS, false)) == Err(Code::ReservationConflict), "not registered");
    ensure!(b.ask(Op::Register { key: THEIRS }) == Ok(None));
    b.wait_for_paths(2)?;
    ensure!(b.ask(preempt(THEIRS, OURS, false)) == Ok(None));
    ensure!(b.writes() == OK && a.writes() == CONFLICT && a.reads(), "it is theirs now");
    until("it is known", || a.group.reservation_state().ended.is_some())?;
    // Paths that are made again do not register by themselves.
    target.reset(0).map_err(anyhow::Error::msg)?;
    target.reset(1).map_err(anyhow::Error::msg)?;
    a.wait_for_paths(6)?;
    b.wait_for_paths(2)?;
    let found = b.report()?;
    ensure!(found.registrants.iter().all(|r| r.key == THEIRS) && found.is_held_by(THEIRS), "stolen back: {found:?}");
    ensure!(a.writes() == CONFLICT && b.writes() == OK);
    // And back, by somebody's will.
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None));
    a.wait_for_paths(6)?;
    ensure!(a.writes() == OK, "registered, which is enough for this type");
    ensure!(a.ask(preempt(OURS, THEIRS, true)) == Ok(None));
    ensure!((a.writes(), b.writes()) == (OK.into(), CONFLICT.into()));
    ensure!(a.ask(Op::Release { key: OURS, kind: KIND }) == Ok(None) && a.report()?.held.is_none());
    ensure!(b.writes() == OK);
    ensure!(a.ask(Op::Clear { key: OURS }) == Ok(None) && a.report()?.registrants.is_empty());
    ensure!((a.writes(), b.writes()) == (OK.into(), OK.into()));
    [&a, &b].iter().for_each(|computer| computer.group.close());
    Ok(())
}

/// Every path in turn is lost and made again: it is registered before it carries anything, whatever it speaks.
#[test]
fn paths_that_come_back_are_registered_first() -> Result<()> {
    let target = start_target()?;
    let a = Computer::new(&target, 'a', &[0, 1, 2, 3])?;
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None) && a.ask(Op::Reserve { key: OURS, kind: KIND }) == Ok(None));
    a.wait_for_paths(4)?;
    for port in 0..4 {
        target.reset(port).map_err(anyhow::Error::msg)?;
        ensure!(a.writes() == OK, "after port {port} was reset");
        a.wait_for_paths(4)?;
        ensure!(a.writes() == OK, "over all of them");
    }
    let state = a.group.reservation_state();
    ensure!(state.key == Some(OURS) && state.ended.is_none(), "{state:?}");
    ensure!(a.report()?.is_held_by(OURS));
    a.group.close();
    Ok(())
}

/// Two NVMe/TCP paths of one host are one registrant: what is for one alone is for both, and a path that says it is another host stays out.
#[test]
fn what_is_for_one_host_is_for_all_its_nvme_paths() -> Result<()> {
    let target = start_target()?;
    let (a, b) = (Computer::new(&target, 'a', &[0, 2])?, Computer::new(&target, 'b', &[1, 2])?);
    let kind = ReservationType::ExclusiveAccess;
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None));
    a.wait_for_paths(2)?;
    ensure!(a.ask(Op::Reserve { key: OURS, kind }) == Ok(None));
    ensure!(a.writes() == OK && a.reads(), "over both");
    ensure!(b.writes() == CONFLICT && !b.reads());
    a.add_path(&target, 'c', 2)?;
    let whys = || a.group.statistics().into_iter().map(|path| path.why).collect::<Vec<_>>();
    let refused = || whys().iter().any(|why| why.contains("one host alone"));
    until("the other host's path stays out", refused).with_context(|| format!("{:?}", whys()))?;
    ensure!(a.writes() == OK && a.group.availability().usable_paths == 2);
    ensure!(a.ask(Op::Release { key: OURS, kind }) == Ok(None));
    a.wait_for_paths(3)?;
    ensure!(a.ask(Op::Reserve { key: OURS, kind }) == Err(Code::Unsupported), "they are two hosts now");
    ensure!((a.writes(), b.writes()) == (OK.into(), OK.into()));
    [&a, &b].iter().for_each(|computer| computer.group.close());
    Ok(())
}

/// The same by RPC: the daemon is one host, and another one takes the disk from it.
#[test]
fn a_daemon_shares_its_disk_by_rpc() -> Result<()> {
    let target = start_target()?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let arguments = ["-S", &folder.path().display().to_string(), "-m", "0x1", "-r", &path("rpc").display().to_string()];
    let daemon = Daemon::start_with(&arguments.map(str::to_owned), path("log"), path("rpc"), path("vm.sock"))?;
    let paths: Vec<String> = (0..4).map(|port| uri(&target, 'd', port)).collect();
    daemon.rpc("disk_create", &json!({ "name": "shared", "paths": paths }))?;
    let b = Computer::new(&target, 'b', &[1, 2])?;
    let disk = json!({ "disk": "shared" });
    let usable = || {
        let disks = daemon.rpc("disk_list", &json!({})).unwrap_or_default();
        let states = disks[0]["paths"].as_array().map_or(&[][..], Vec::as_slice);
        states.iter().filter(|path| path["state"] == "usable").count() == 4
    };
    until("all paths of the daemon are usable", usable)?;
    let refused = daemon.rpc("reservation_reserve", &disk).unwrap_err().to_string();
    ensure!(refused.contains("reservation_register"), "{refused}");
    daemon.rpc("reservation_register", &json!({ "disk": "shared", "key": "0xa11ce" }))?;
    daemon.rpc("reservation_reserve", &disk)?;
    let report = daemon.rpc("reservation_report", &disk)?;
    ensure!(report["type"] == "write-exclusive-registrants-only", "{report}");
    let registrants = report["registrants"].as_array().cloned().unwrap_or_default();
    ensure!(registrants.iter().all(|r| r["key"] == "0xa11ce") && !registrants.is_empty(), "{report}");
    ensure!(b.writes() == CONFLICT);
    ensure!(b.ask(Op::Register { key: THEIRS }) == Ok(None));
    b.wait_for_paths(2)?;
    ensure!(b.ask(Op::Preempt { key: THEIRS, victim: OURS, kind: KIND, abort: false }) == Ok(None));
    ensure!(b.writes() == OK);
    let ended = || {
        let disks = daemon.rpc("disk_list", &json!({})).unwrap_or_default();
        disks[0]["reservation"]["ended"] != Value::Null
    };
    until("the daemon knows that its registration was ended", ended)?;
    daemon.rpc("reservation_register", &json!({ "disk": "shared", "key": "0xa11ce" }))?;
    daemon.rpc("reservation_preempt", &json!({ "disk": "shared", "victim": "0xb0b", "abort": true }))?;
    daemon.rpc("reservation_release", &disk)?;
    ensure!(b.writes() == OK);
    daemon.rpc("reservation_clear", &disk)?;
    let report = daemon.rpc("reservation_report", &disk)?;
    ensure!(report["registrants"].as_array().is_some_and(Vec::is_empty), "{report}");
    b.group.close();
    daemon.stop()
}

/// Writes `new` where the disk has `old`, a block each.
fn compare_and_write(disk: &Disk, old: u8, new: u8) -> Code {
    let block = disk.geometry().block_size as usize;
    let mut buffer = disk.buffer(2 * block as u32).expect("memory");
    buffer.write_at(0, &[vec![old; block], vec![new; block]].concat()).expect("both fit");
    let result = block_on(disk.compare_and_write(0, buffer)).0;
    result.map_or_else(|error| error.code().unwrap_or(Code::Gone), |()| Code::Ok)
}

/// Through a group of which every path does it; what was lost in the middle is neither sent again nor called done.
#[test]
fn compare_and_write_is_sent_once() -> Result<()> {
    let target = start_target()?;
    let a = Computer::new(&target, 'a', &[1, 3])?;
    ensure!(a.disk.limits().max_compare_and_write_blocks > 0, "{:?}", a.disk.limits());
    for (old, new, want) in [(0, 7, Code::Ok), (7, 8, Code::Ok), (7, 9, Code::Miscompare), (8, 9, Code::Ok)] {
        let got = compare_and_write(&a.disk, old, new);
        ensure!(got == want, "{old} to {new}: {got:?}");
    }
    let mixed = Computer::new(&target, 'm', &[0, 1])?;
    ensure!(compare_and_write(&mixed.disk, 9, 1) == Code::Unsupported, "not over NVMe/TCP");
    let b = Computer::new(&target, 'b', &[1])?;
    ensure!(a.ask(Op::Register { key: OURS }) == Ok(None));
    a.wait_for_paths(2)?;
    ensure!(a.ask(Op::Reserve { key: OURS, kind: KIND }) == Ok(None));
    ensure!(compare_and_write(&b.disk, 9, 1) == Code::ReservationConflict);
    ensure!(compare_and_write(&a.disk, 9, 10) == Code::Ok);
    ensure!(a.ask(Op::Clear { key: OURS }) == Ok(None));
    [1, 3].iter().try_for_each(|port| target.drop_silently(*port)).map_err(anyhow::Error::msg)?;
    let lost = compare_and_write(&b.disk, 10, 11);
    ensure!(lost == Code::OutcomeUnknown, "{lost:?}");
    [1, 3].iter().try_for_each(|port| target.restore(*port)).map_err(anyhow::Error::msg)?;
    b.wait_for_paths(1)?;
    ensure!(compare_and_write(&b.disk, 10, 11) == Code::Ok, "it never came");
    [&a, &b, &mixed].iter().for_each(|computer| computer.group.close());
    Ok(())
}
