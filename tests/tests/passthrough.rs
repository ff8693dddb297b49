//! Commands that are passed through a disk, on a real target: over NVMe/TCP, over iSCSI, and over a group of both.

use anyhow::{Context, Result, ensure};
use polypath::block::{
    NvmeCommand, NvmeScope, PassthroughAnswer, PassthroughCommand, PassthroughData, PassthroughRequest,
    PassthroughStatus,
};
use polypath::{Code, Device, Disk, Error, Group, GroupSpec, MatchPolicy, Stack, StackConfig, block_on};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use polypath_tests::products::Daemon;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.org.polypath:passed";
const IQN: &str = "iqn.2026-01.org.polypath:passed";
const LIMIT: Duration = Duration::from_secs(5);

/// NVMe/TCP at 0 and 2, iSCSI at 1 and 3.
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

fn uri(target: &TargetHandle, port: usize) -> String {
    let address = target.addresses()[port];
    match port.is_multiple_of(2) {
        true => format!("nvme-tcp://{address}/{NQN}?ns=1&keep_alive_ms=400"),
        false => format!("iscsi://{address}/{IQN}/0?fence_ms=1000&silence_timeout_ms=500"),
    }
}

struct Rig {
    group: Arc<Group>,
    disk: Disk,
}

impl Rig {
    fn new(target: &TargetHandle, ports: &[usize]) -> Result<Rig> {
        let stack = Stack::start(StackConfig::default())?;
        let uris = ports.iter().map(|port| uri(target, *port).parse()).collect::<Result<Vec<_>, _>>()?;
        let group = stack.open_group(GroupSpec { matching: MatchPolicy::Worldwide, ..GroupSpec::new("d", uris) })?;
        polypath::wait_group_live(&group, Duration::from_secs(20))?;
        let disk = Disk::builder().device(group.clone()).stack(&stack).open_blocking()?;
        let rig = Rig { group, disk };
        rig.wait_for_paths(ports.len())?;
        Ok(rig)
    }

    fn wait_for_paths(&self, paths: usize) -> Result<()> {
        let start = Instant::now();
        while self.group.availability().usable_paths != paths as u32 {
            ensure!(start.elapsed() < Duration::from_secs(20), "{paths} paths: {:?}", self.group.statistics());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn send(&self, request: PassthroughRequest) -> Result<PassthroughAnswer, Error> {
        block_on(self.disk.passthrough(request, LIMIT))
    }

    /// The same, again and again while nothing is sent because the path is not up.
    fn sent(&self, request: PassthroughRequest) -> Result<PassthroughAnswer, Error> {
        let start = Instant::now();
        loop {
            match self.send(request.clone()) {
                Err(error)
                    if start.elapsed() < Duration::from_secs(20) && error.code() != Some(Code::OutcomeUnknown) =>
                {
                    println!("not sent: {error}");
                }
                result => return result,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The code of the error that it ends with.
    fn fails(&self, request: PassthroughRequest) -> Option<Code> {
        let error = self.send(request).err()?;
        println!("{error}");
        error.code()
    }

    /// The first octet of block `lba`.
    fn octet(&self, lba: u64) -> Result<u8> {
        let block = self.disk.geometry().block_size;
        let (result, buffer) = block_on(self.disk.read(lba * u64::from(block), self.disk.buffer(block)?));
        result?;
        let mut octet = [0];
        buffer.read_at(0, &mut octet)?;
        Ok(octet[0])
    }
}

fn scsi(cdb: &[u8]) -> PassthroughCommand {
    PassthroughCommand::Scsi(cdb.to_vec())
}

fn nvme(admin: bool, opcode: u8, scope: NvmeScope, cdw10_15: [u32; 6]) -> PassthroughCommand {
    PassthroughCommand::Nvme(NvmeCommand { admin, opcode, scope, cdw10_15 })
}

fn inquiry() -> PassthroughRequest {
    PassthroughRequest::reads(scsi(&[0x12, 0, 0, 0, 96, 0]), PassthroughData::In(96))
}

fn identify_controller() -> PassthroughRequest {
    PassthroughRequest::reads(nvme(true, 0x06, NvmeScope::Controller, [1, 0, 0, 0, 0, 0]), PassthroughData::In(4096))
}

const GOOD: PassthroughStatus = PassthroughStatus::Scsi { status: 0, sense: Vec::new() };
const DONE: PassthroughStatus = PassthroughStatus::Nvme { status: 0, dw0: 0 };

#[test]
fn scsi_commands_reach_a_logical_unit() -> Result<()> {
    let target = start_target()?;
    let rig = Rig::new(&target, &[1, 3])?;
    let block = rig.disk.geometry().block_size;
    let answer = rig.send(inquiry())?;
    ensure!(answer.status == GOOD && answer.data.len() >= 36 && answer.data[0] == 0, "{answer:x?}");
    let capacity =
        rig.send(PassthroughRequest::reads(scsi(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]), PassthroughData::In(8)))?;
    ensure!(capacity.data[4..] == block.to_be_bytes(), "{capacity:x?}");
    // What the logical unit does not know: its own words.
    let unknown = rig.send(PassthroughRequest::changes(scsi(&[0x3b; 10]), PassthroughData::None))?;
    let PassthroughStatus::Scsi { status: 2, sense } = &unknown.status else { anyhow::bail!("{unknown:x?}") };
    ensure!(sense[..4] == [0x72, 0x05, 0x20, 0], "ILLEGAL REQUEST, invalid command operation code: {sense:x?}");
    // WRITE(10) of one block, which a flush has to reach, and READ(10) of it.
    let write = scsi(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0]);
    let data = PassthroughData::Out(vec![0x5a; block as usize]);
    ensure!(rig.fails(PassthroughRequest::reads(write.clone(), data.clone())) == Some(Code::Invalid));
    ensure!(rig.octet(5)? == 0, "it was not sent");
    ensure!(rig.send(PassthroughRequest::changes(write, data))?.status == GOOD);
    ensure!(rig.octet(5)? == 0x5a);
    let read = PassthroughRequest::reads(scsi(&[0x28, 0, 0, 0, 0, 5, 0, 0, 1, 0]), PassthroughData::In(block));
    ensure!(rig.send(read)?.data == vec![0x5a; block as usize]);
    block_on(rig.disk.flush())?;
    for refused in [&[0x5f; 10][..], &[0x35; 10], &[0x15; 6], &[0xa4; 12]] {
        let mut cdb = refused.to_vec();
        cdb[1..].fill(0);
        let refused = PassthroughRequest::changes(scsi(&cdb), PassthroughData::None);
        ensure!(rig.fails(refused) == Some(Code::Unsupported), "{cdb:x?}");
    }
    ensure!(rig.fails(identify_controller()) == Some(Code::Unsupported), "nobody there speaks NVMe");
    rig.group.close();
    Ok(())
}

#[test]
fn nvme_commands_reach_a_namespace() -> Result<()> {
    let target = start_target()?;
    let rig = Rig::new(&target, &[0, 2])?;
    let block = rig.disk.geometry().block_size;
    let answer = rig.send(identify_controller())?;
    ensure!(answer.status == DONE && answer.data.len() == 4096, "{:?}", answer.status);
    let namespace = nvme(true, 0x06, NvmeScope::Namespace, [0; 6]);
    let answer = rig.send(PassthroughRequest::reads(namespace, PassthroughData::In(4096)))?;
    let blocks = u64::from_le_bytes(answer.data[..8].try_into()?);
    ensure!(blocks == rig.disk.geometry().blocks, "NSZE: {blocks}");
    // SMART, 512 octets.
    let log = nvme(true, 0x02, NvmeScope::All, [127 << 16 | 2, 0, 0, 0, 0, 0]);
    let answer = rig.send(PassthroughRequest::reads(log, PassthroughData::In(512)))?;
    ensure!(answer.status.is_good() && answer.data.len() == 512, "{:?}", answer.status);
    // What the controller does not know: its own words.
    let unknown = PassthroughRequest::changes(nvme(true, 0xc0, NvmeScope::Namespace, [0; 6]), PassthroughData::None);
    let unknown = rig.send(unknown)?;
    ensure!(matches!(unknown.status, PassthroughStatus::Nvme { status, .. } if status & 0x7ff == 1), "{unknown:?}");
    let write = nvme(false, 0x01, NvmeScope::Namespace, [5, 0, 0, 0, 0, 0]);
    let data = PassthroughData::Out(vec![0x5a; block as usize]);
    ensure!(rig.fails(PassthroughRequest::reads(write.clone(), data.clone())) == Some(Code::Invalid));
    ensure!(rig.octet(5)? == 0, "it was not sent");
    ensure!(rig.send(PassthroughRequest::changes(write, data))?.status == DONE);
    ensure!(rig.octet(5)? == 0x5a);
    let read = nvme(false, 0x02, NvmeScope::Namespace, [5, 0, 0, 0, 0, 0]);
    let read = PassthroughRequest::reads(read, PassthroughData::In(block));
    ensure!(rig.send(read)?.data == vec![0x5a; block as usize]);
    for (admin, opcode, cdw10) in
        [(true, 0x0c, 0), (true, 0x08, 0), (true, 0x09, 7), (false, 0x00, 0), (false, 0x0d, 0)]
    {
        let command = nvme(admin, opcode, NvmeScope::Namespace, [cdw10, 0, 0, 0, 0, 0]);
        let refused = PassthroughRequest::changes(command, PassthroughData::None);
        ensure!(rig.fails(refused) == Some(Code::Unsupported), "{admin} {opcode:#x}");
    }
    ensure!(rig.fails(inquiry()) == Some(Code::Unsupported), "nobody there speaks SCSI");
    rig.group.close();
    Ok(())
}

/// A disk over both: whoever asks says in which words.
#[test]
fn a_mixed_disk_takes_both_and_outlives_a_path() -> Result<()> {
    let target = start_target()?;
    let rig = Rig::new(&target, &[0, 1, 2])?;
    ensure!(rig.send(inquiry())?.status == GOOD && rig.send(identify_controller())?.status == DONE);
    target.drop_silently(0).map_err(anyhow::Error::msg)?;
    let lost = block_on(rig.disk.passthrough(identify_controller(), Duration::from_secs(2)))?;
    ensure!(lost.status == DONE, "over the other one");
    target.restore(0).map_err(anyhow::Error::msg)?;
    rig.wait_for_paths(3)?;
    rig.group.close();
    Ok(())
}

/// What was sent and lost is not sent again, and its end is told when nothing of it can land any more.
#[test]
fn a_change_that_is_lost_is_unknown_when_it_is_quiet() -> Result<()> {
    // Its own limit ends it, or whoever finds that nothing answers any more.
    let limits = [200, 10_000].map(Duration::from_millis);
    for (port, limit) in [(0, limits[0]), (0, limits[1]), (1, limits[0]), (1, limits[1])] {
        let target = start_target()?;
        let rig = Rig::new(&target, &[port])?;
        let block = rig.disk.geometry().block_size as usize;
        let (command, bound) = match port {
            0 => (nvme(false, 0x01, NvmeScope::Namespace, [5, 0, 0, 0, 0, 0]), Duration::from_millis(800)),
            _ => (scsi(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0]), Duration::from_millis(1000)),
        };
        let write = |octet| PassthroughRequest::changes(command.clone(), PassthroughData::Out(vec![octet; block]));
        // Where the path was about to ask something of its own when it was cut, nothing was sent: once more.
        let took = loop {
            ensure!(rig.sent(write(1))?.status.is_good() && rig.octet(5)? == 1, "its queue is there");
            target.drop_silently(port).map_err(anyhow::Error::msg)?;
            let began = Instant::now();
            let lost = block_on(rig.disk.passthrough(write(2), limit));
            let took = began.elapsed();
            target.restore(port).map_err(anyhow::Error::msg)?;
            match lost.as_ref().err().and_then(Error::code) {
                Some(Code::OutcomeUnknown) => break took,
                Some(Code::PathBusy | Code::PathLost) => {}
                _ => anyhow::bail!("port {port}: {lost:?}"),
            }
        };
        ensure!(took >= bound, "port {port}: told after {took:?}, before it is quiet");
        ensure!(rig.octet(5)? == 1, "port {port}: it never came");
        ensure!(rig.sent(write(3))?.status.is_good() && rig.octet(5)? == 3, "port {port}: the next one is sent");
        rig.group.close();
    }
    Ok(())
}

#[test]
fn a_daemon_passes_commands_through_by_rpc() -> Result<()> {
    let target = start_target()?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let arguments = ["-S", &folder.path().display().to_string(), "-m", "0x1", "-r", &path("rpc").display().to_string()];
    let daemon = Daemon::start_with(&arguments.map(str::to_owned), path("log"), path("rpc"), path("vm.sock"))?;
    daemon.rpc("disk_create", &json!({ "name": "d", "paths": [uri(&target, 0), uri(&target, 1)] }))?;
    let start = Instant::now();
    let both = loop {
        let inquiry = daemon.rpc("passthrough_scsi", &json!({ "disk": "d", "cdb": "0x120000006000", "length": 96 }));
        let identify = json!({ "disk": "d", "queue": "admin", "opcode": "0x06", "scope": "controller", "cdw10": 1, "length": 4096 });
        match (inquiry, daemon.rpc("passthrough_nvme", &identify)) {
            (Ok(inquiry), Ok(identify)) => break (inquiry, identify),
            (a, b) => ensure!(start.elapsed() < Duration::from_secs(20), "{a:?} {b:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let digits = |value: &serde_json::Value| value["data"].as_str().map_or(0, str::len);
    ensure!(
        both.0["good"] == true && both.0["status"] == 0 && both.0["sense"] == "" && digits(&both.0) >= 72,
        "{}",
        both.0
    );
    ensure!(both.1["good"] == true && both.1["dw0"] == 0 && digits(&both.1) == 8192, "{}", both.1);
    let write = |changes| {
        let data = "5a".repeat(512);
        json!({ "disk": "d", "cdb": "2a000000000500000100", "data": data, "changes": changes })
    };
    let refused = daemon.rpc("passthrough_scsi", &write(false)).unwrap_err().to_string();
    ensure!(refused.contains("changes"), "{refused}");
    ensure!(daemon.rpc("passthrough_scsi", &write(true))?["good"] == true);
    let reserve = json!({ "disk": "d", "cdb": "5f000000000000001800", "changes": true });
    let refused = daemon.rpc("passthrough_scsi", &reserve).unwrap_err().to_string();
    ensure!(refused.contains("reservations belong to the disk"), "{refused}");
    daemon.stop()
}
