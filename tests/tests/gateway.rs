//! `polypath-target` as a gateway: a file, and a group of NVMe/TCP and iSCSI paths to another target, served by both protocols at once.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polypath_bench::run::{Mix, Progress, RunConfig, RunReport, run};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use polypath_tests::products::program;
use std::io::{BufRead as _, BufReader};

const NQN: &str = "nqn.2026-01.org.polypath:beneath";
const IQN: &str = "iqn.2026-01.org.polypath:beneath";
const GATE_NQN: &str = "nqn.2026-01.org.polypath:gate";
const GATE_IQN: &str = "iqn.2026-01.org.polypath:gate";
/// What the target beneath takes at a time; the gateway takes more.
const MOST: u32 = 16_384;

/// A running `polypath-target`, with an NVMe/TCP and an iSCSI listener.
struct Gateway {
    child: Child,
    ports: Vec<u16>,
}

impl Gateway {
    fn start(namespace: &[String]) -> Result<Gateway> {
        let mut command = Command::new(program("polypath-target")?);
        command.args(["--listen", "127.0.0.1:0", "--listen", "iscsi://127.0.0.1:0"]);
        command.args(["--subsystem", GATE_NQN, "--iqn", GATE_IQN, "--no-path-timeout-ms", "20000"]);
        let mut option = "--namespace";
        for uri in namespace {
            command.args([option, uri]);
            option = "--path";
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("polypath-target")?;
        let out = child.stdout.take().context("its output")?;
        let mut gateway = Gateway { child, ports: Vec::new() };
        for line in BufReader::new(out).lines() {
            let line = line?;
            gateway
                .ports
                .extend(line.strip_prefix("listening on 127.0.0.1:").and_then(|port| port.parse::<u16>().ok()));
            if line == "ready" {
                break;
            }
        }
        ensure!(gateway.ports.len() == 2, "it listens on {:?}", gateway.ports);
        Ok(gateway)
    }

    fn nvme(&self) -> String {
        format!("nvme-tcp://127.0.0.1:{}/{GATE_NQN}?ns=1", self.ports[0])
    }

    fn iscsi(&self) -> String {
        format!("iscsi://127.0.0.1:{}/{GATE_IQN}/0", self.ports[1])
    }

    /// Asks it to end, and sees that it does so in order.
    fn end(mut self) -> Result<()> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Either of them fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn verify(uris: &[String], bs: u32, time: Duration, progress: impl FnMut(&Progress)) -> Result<RunReport> {
    let paths: Result<Vec<_>, _> = uris.iter().map(|uri| uri.parse()).collect();
    let config =
        RunConfig { mix: Mix::Verify, bs, qd: 16, time, ramp: Duration::ZERO, seed: 8, ..RunConfig::new(paths?) };
    let report = run(&config, progress)?;
    ensure!(report.is_good(), "{:?}, {:?}", report.error_samples, report.verify_error_samples);
    ensure!(report.ios > 0 && report.paths.iter().all(|path| path.ios > 0), "{:?}", report.paths);
    Ok(report)
}

/// The target beneath: two NVMe/TCP listeners and an iSCSI one, and not much at a time.
fn beneath() -> Result<TargetHandle> {
    let mut config = TargetConfig {
        listeners: vec![
            ListenerConfig::new("127.0.0.1:0"),
            ListenerConfig::new("127.0.0.1:0"),
            ListenerConfig::iscsi("127.0.0.1:0"),
        ],
        subsystems: vec![SubsystemConfig {
            iqn: Some(IQN.into()),
            ..SubsystemConfig::new(NQN, vec![NamespaceConfig::new("ram://32MiB")])
        }],
        mdts_bytes: MOST,
        cqt_ms: 200,
        ..TargetConfig::default()
    };
    config.iscsi.max_transfer = MOST;
    Target::start(config).context("the target beneath")
}

/// Its three paths.
fn paths(target: &TargetHandle) -> Vec<String> {
    let nvme = |n| {
        let port = target.port(n);
        format!("nvme-tcp://127.0.0.1:{port}/{NQN}?ns=1&keep_alive_ms=500&silence_timeout_ms=500")
    };
    let iscsi = format!("iscsi://127.0.0.1:{}/{IQN}/0?fence_ms=3000&silence_timeout_ms=500", target.port(2));
    vec![nvme(0), nvme(1), iscsi]
}

#[test]
fn a_file_is_served_by_both_protocols() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path: PathBuf = folder.path().join("disk.img");
    std::fs::File::create(&path)?.set_len(32 << 20)?;
    let gateway = Gateway::start(&[format!("file://{}", path.display())])?;
    verify(&[gateway.nvme(), gateway.iscsi()], 4096, Duration::from_secs(2), |_| ())?;
    for uri in [gateway.nvme(), gateway.iscsi()] {
        verify(&[uri], 1 << 20, Duration::from_secs(1), |_| ())?;
    }
    gateway.end()?;
    ensure!(std::fs::read(&path)?.iter().any(|b| *b != 0), "nothing of it is in the file");
    Ok(())
}

#[test]
fn a_group_is_served_by_both_protocols_whatever_path_goes() -> Result<()> {
    let target = beneath()?;
    let gateway = Gateway::start(&paths(&target))?;
    let mut next = 0;
    let mut trouble = Ok(());
    verify(&[gateway.nvme(), gateway.iscsi()], 65_536, Duration::from_secs(14), |now| {
        while trouble.is_ok() && next < 6 && now.elapsed >= Duration::from_secs(1 + 2 * next) {
            trouble = step(&target, next);
            next += 1;
        }
    })?;
    trouble?;
    ensure!(next == 6, "only {next} of 6 steps were made");
    gateway.end()
}

/// Each path is lost in its way, and comes back.
fn step(target: &TargetHandle, step: u64) -> Result<()> {
    let done = match step {
        0 => target.reset(0),
        1 => target.drop_silently(1),
        2 => target.restore(1).and_then(|()| target.reset(2)),
        3 => target.close_listener(0),
        4 => target.open_listener(0).and_then(|()| target.drop_silently(2)),
        _ => target.restore(2),
    };
    done.map_err(anyhow::Error::msg).with_context(|| format!("step {step}"))
}

#[test]
fn more_is_taken_at_a_time_than_the_disk_beneath_takes() -> Result<()> {
    let target = beneath()?;
    let gateway = Gateway::start(&paths(&target)[..1])?;
    for uri in [gateway.nvme(), gateway.iscsi()] {
        verify(&[uri], 1 << 20, Duration::from_secs(1), |_| ())?;
    }
    gateway.end()
}

#[test]
fn who_is_beneath_is_recognised_from_above() -> Result<()> {
    let target = beneath()?;
    let direct = paths(&target);
    let gateway = Gateway::start(&direct)?;
    // Paths of one group: through the gateway by either protocol, and past it by either.
    let all = [gateway.nvme(), gateway.iscsi(), direct[0].clone(), direct[2].clone()];
    verify(&all, 4096, Duration::from_secs(2), |_| ())?;
    gateway.end()
}
