//! One medium behind two protocols: two NVMe/TCP paths and two iSCSI paths make one disk, and each of them is reset and dropped in silence
//! in turn under verified reads and writes.

use anyhow::{Context, Result, ensure};
use polypath_bench::run::{Mix, Progress, RunConfig, run};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::time::Duration;

const NQN: &str = "nqn.2026-01.org.polypath:mixed";
const IQN: &str = "iqn.2026-01.org.polypath:mixed";
/// Of a silent path: half of it, then the question and the rest of it.
const SILENCE_MS: u64 = 500;
/// The keep-alive timeout, twice of which and the quiesce time prove a lost association over.
const KEEP_ALIVE_MS: u64 = 500;
const CQT_MS: u16 = 200;
/// What a lost session has where its target does not answer. The portals are of one group, so that it does.
const FENCE_MS: u64 = 4000;
/// What a request may take at most: silence, its proof, and a machine that has other things to do.
const LIMIT_MS: u64 = 2 * SILENCE_MS + 2 * (KEEP_ALIVE_MS + 100) + CQT_MS as u64 + 1500;

#[test]
fn every_path_of_a_mixed_group_may_go() -> Result<()> {
    let target = start_target()?;
    let ports: Vec<u16> = target.addresses().iter().map(std::net::SocketAddr::port).collect();
    let nvme = |port: u16| {
        format!("nvme-tcp://127.0.0.1:{port}/{NQN}?ns=1&keep_alive_ms={KEEP_ALIVE_MS}&silence_timeout_ms={SILENCE_MS}")
    };
    let iscsi = |port: u16, other: u16| {
        format!(
            "iscsi://127.0.0.1:{port}/{IQN}/0?fence_ms={FENCE_MS}&silence_timeout_ms={SILENCE_MS}&portals=127.0.0.1:{other}&portals_prove=on"
        )
    };
    let uris = [nvme(ports[0]), iscsi(ports[1], ports[3]), nvme(ports[2]), iscsi(ports[3], ports[1])];
    let paths: Result<Vec<_>, _> = uris.iter().map(|uri| uri.parse()).collect();
    let config = RunConfig {
        mix: Mix::Verify,
        qd: 32,
        time: Duration::from_secs(STEP_S * STEPS as u64 + 2),
        ramp: Duration::ZERO,
        seed: 8,
        ..RunConfig::new(paths?)
    };
    let mut next = 0;
    let mut trouble = Ok(());
    let report = run(&config, |now: &Progress| {
        while trouble.is_ok() && next < 2 * STEPS && now.elapsed >= due(next) {
            trouble = step(&target, next);
            next += 1;
        }
    })?;
    trouble?;
    ensure!(next == 2 * STEPS, "only {next} of {} steps were made", 2 * STEPS);
    ensure!(
        report.is_good(),
        "{} failed, {:?}, {:?}",
        report.errors,
        report.error_samples,
        report.verify_error_samples
    );
    ensure!(report.paths.iter().all(|path| path.ios > 0), "{:?}", report.paths);
    ensure!(report.paths.iter().all(|path| path.failures >= 2 && path.recoveries >= 1), "{:?}", report.paths);
    let slowest_ms = report.lat_us.max / 1000.0;
    println!("{} requests, the slowest took {slowest_ms:.0} ms", report.ios);
    ensure!(slowest_ms < LIMIT_MS as f64, "a request took {slowest_ms:.0} ms; expected at most {LIMIT_MS}");
    Ok(())
}

/// Each path is reset, and then dropped in silence.
const STEPS: usize = 8;
/// Seconds from one to the next.
const STEP_S: u64 = 4;

/// Even steps take a path, odd ones give it back.
fn due(step: usize) -> Duration {
    let begins = Duration::from_secs(1 + STEP_S * (step as u64 / 2));
    if step.is_multiple_of(2) { begins } else { begins + Duration::from_millis(2500) }
}

fn step(target: &TargetHandle, step: usize) -> Result<()> {
    let (path, silent) = (step / 2 % 4, step / 2 >= 4);
    let done = match (step.is_multiple_of(2), silent) {
        (true, false) => target.reset(path),
        (true, true) => target.drop_silently(path),
        (false, false) => Ok(()),
        (false, true) => target.restore(path),
    };
    done.map_err(anyhow::Error::msg).with_context(|| format!("step {step}"))
}

fn start_target() -> Result<TargetHandle> {
    let iscsi = || ListenerConfig { portal_group: Some(1), ..ListenerConfig::iscsi("127.0.0.1:0") };
    let nvme = || ListenerConfig::new("127.0.0.1:0");
    let namespaces = vec![NamespaceConfig::new("ram://32MiB")];
    Target::start(TargetConfig {
        listeners: vec![nvme(), iscsi(), nvme(), iscsi()],
        subsystems: vec![SubsystemConfig { iqn: Some(IQN.into()), ..SubsystemConfig::new(NQN, namespaces) }],
        kas_ms: 100,
        cqt_ms: CQT_MS,
        ..TargetConfig::default()
    })
    .context("target")
}
