//! Holds the initiator against the limit: interleaved pairs, medians, and what an I/O costs.
//!
//! Each pair measures `limit` and `run` one right after the other on the same cores in the same idle mode; every other pair the
//! other way round, so that a drift of the machine falls on both. The target is `polypath-target` on a null medium, in a process of
//! its own, pinned to the core on which the limit has its server.

mod cost;

pub use cost::{Cost, measure as measure_cost};
pub(crate) use cost::{Counting, counted_by_perf, perf};

use crate::cpu;
use crate::latency::round3;
use crate::limit::{self, LimitConfig};
use crate::output;
use crate::process::{Process, answer_all};
use crate::protocol::Protocol;
use crate::run::{self, RunConfig};
use anyhow::Context as _;
use polypath_block::DiskUri;
use polypath_reactor::{CpuList, IdlePolicy};
use polypath_target::{NamespaceConfig, SubsystemConfig, Target, TargetConfig};
use serde::Serialize;
use std::time::Duration;

const NQN: &str = "nqn.2024-01.org.polypath:null";
const IQN: &str = "iqn.2024-01.org.polypath:null";

/// What to compare.
#[derive(Clone, Debug)]
pub struct RatioConfig {
    /// Queue depths.
    pub depths: Vec<u16>,
    /// Pairs for each depth.
    pub pairs: usize,
    /// How long each half of a pair is measured.
    pub time: Duration,
    /// How long it runs before that.
    pub ramp: Duration,
    /// What both sides do when there is nothing to do.
    pub idle: IdlePolicy,
    /// Core of the initiator, core of the target.
    pub cpus: Option<CpuList>,
    /// A disk to measure instead of the null target; whoever serves it must keep to the second core.
    pub path: Option<DiskUri>,
    /// What the null target speaks, and whose bytes the limit has.
    pub protocol: Protocol,
}

/// What was compared. The names of the fields are the keys of the JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct RatioReport {
    /// Always `ratio`.
    pub mode: &'static str,
    /// Whose bytes the limit had.
    pub protocol: Protocol,
    /// `adaptive`, `poll` or `sleep`.
    pub idle: &'static str,
    /// Core of the initiator, core of the target.
    pub cpus: [usize; 2],
    /// The disk.
    pub disk: String,
    /// Measured seconds of each half of a pair.
    pub seconds: f64,
    /// One for each depth.
    pub cases: Vec<Case>,
    /// What an I/O costs, if asked for.
    pub cost: Vec<Cost>,
}

/// One depth.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Requests outstanding.
    pub qd: u16,
    /// Median of the limit's rate.
    pub limit_iops: f64,
    /// Median of the initiator's rate.
    pub run_iops: f64,
    /// The second over the first.
    pub iops_ratio: f64,
    /// Median of the ratios of single pairs: what a machine whose speed drifts is better judged by.
    pub iops_ratio_paired: f64,
    /// Median of the limit's rate while the cores were left alone (`iops_quiet`).
    pub limit_iops_quiet: f64,
    /// Median of the initiator's.
    pub run_iops_quiet: f64,
    /// The second over the first: the ratio to look at on a machine that others use.
    pub iops_quiet_ratio: f64,
    /// Median of the limit's median latency.
    pub limit_p50_us: f64,
    /// Median of the initiator's median latency.
    pub run_p50_us: f64,
    /// The second over the first.
    pub p50_ratio: f64,
    /// Median of the limit's mean latency.
    pub limit_mean_us: f64,
    /// Median of the initiator's mean latency.
    pub run_mean_us: f64,
    /// The second over the first.
    pub mean_ratio: f64,
    /// Failed requests of all runs together.
    pub errors: u64,
    /// Each pair.
    pub pairs: Vec<Pair>,
}

/// One pair.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    /// The limit's rate.
    pub limit_iops: f64,
    /// The initiator's.
    pub run_iops: f64,
    /// The limit's rate while the cores were left alone.
    pub limit_iops_quiet: f64,
    /// The initiator's.
    pub run_iops_quiet: f64,
    /// The limit's median latency.
    pub limit_p50_us: f64,
    /// The initiator's.
    pub run_p50_us: f64,
    /// The limit's mean latency.
    pub limit_mean_us: f64,
    /// The initiator's.
    pub run_mean_us: f64,
    /// Part of the time that others had the client's core, in percent: during the limit, during the run.
    pub core_taken_pct: [f64; 2],
}

/// Compares; `tell` is called with a line for people after each pair.
///
/// # Errors
/// When the target does not start, or either half cannot be measured.
pub fn run(config: &RatioConfig, mut tell: impl FnMut(&str)) -> anyhow::Result<RatioReport> {
    anyhow::ensure!(
        config.pairs > 0 && !config.depths.is_empty(),
        "nothing to compare: expected --pairs and --qd of 1 or more"
    );
    let (near, far) = cpu::two(config.cpus.as_ref());
    let target = match &config.path {
        Some(_) => None,
        None => Some(NullTarget::start(far, config.idle, config.protocol)?),
    };
    let uri = match (&config.path, &target) {
        (Some(uri), _) => uri.clone(),
        (None, Some(target)) => target.uri.parse()?,
        (None, None) => unreachable!("one of both was just made"),
    };
    let mut cases = Vec::new();
    for &qd in &config.depths {
        let mut pairs = Vec::new();
        let mut errors = 0;
        for number in 0..config.pairs {
            let (pair, failed) = pair(config, qd, &uri, near, far, number % 2 == 1)?;
            errors += failed;
            tell(&format!(
                "QD {qd} pair {}: limit {:.0} IOPS {:.1} us, run {:.0} IOPS {:.1} us",
                number + 1,
                pair.limit_iops,
                pair.limit_p50_us,
                pair.run_iops,
                pair.run_p50_us
            ));
            pairs.push(pair);
        }
        cases.push(case(qd, pairs, errors));
    }
    Ok(RatioReport {
        mode: "ratio",
        protocol: config.protocol,
        idle: config.idle.as_str(),
        cpus: [near, far],
        disk: uri.to_string(),
        seconds: round3(config.time.as_secs_f64()),
        cases,
        cost: Vec::new(),
    })
}

fn pair(
    config: &RatioConfig,
    qd: u16,
    uri: &DiskUri,
    near: usize,
    far: usize,
    run_first: bool,
) -> anyhow::Result<(Pair, u64)> {
    let limit_config = LimitConfig {
        qd: qd.into(),
        time: config.time,
        ramp: config.ramp,
        idle: config.idle,
        cpus: Some(CpuList(vec![near, far])),
        copy: true,
        protocol: config.protocol,
    };
    let run_config = RunConfig {
        qd,
        time: config.time,
        ramp: config.ramp,
        idle: config.idle,
        cpus: Some(CpuList(vec![near])),
        ..RunConfig::new(vec![uri.clone()])
    };
    let (l, r) = if run_first {
        let r = run::run(&run_config, |_| ())?;
        (limit::run(&limit_config)?, r)
    } else {
        (limit::run(&limit_config)?, run::run(&run_config, |_| ())?)
    };
    let pair = Pair {
        limit_iops: l.iops,
        run_iops: r.iops,
        limit_iops_quiet: l.iops_quiet,
        run_iops_quiet: r.iops_quiet,
        limit_p50_us: l.lat_us.p50,
        run_p50_us: r.lat_us.p50,
        limit_mean_us: l.lat_us.mean,
        run_mean_us: r.lat_us.mean,
        core_taken_pct: [l.core_taken_pct[0], r.core_taken_pct],
    };
    Ok((pair, r.errors))
}

fn case(qd: u16, pairs: Vec<Pair>, errors: u64) -> Case {
    let of = |value: fn(&Pair) -> f64| median(pairs.iter().map(value).collect());
    let (limit_iops, run_iops) = (of(|p| p.limit_iops), of(|p| p.run_iops));
    let (limit_iops_quiet, run_iops_quiet) = (of(|p| p.limit_iops_quiet), of(|p| p.run_iops_quiet));
    let (limit_p50_us, run_p50_us) = (of(|p| p.limit_p50_us), of(|p| p.run_p50_us));
    let (limit_mean_us, run_mean_us) = (of(|p| p.limit_mean_us), of(|p| p.run_mean_us));
    Case {
        qd,
        limit_iops,
        run_iops,
        iops_ratio: ratio(run_iops, limit_iops),
        iops_ratio_paired: round3(of(|p| p.run_iops / p.limit_iops.max(1e-9))),
        limit_iops_quiet,
        run_iops_quiet,
        iops_quiet_ratio: ratio(run_iops_quiet, limit_iops_quiet),
        limit_p50_us,
        run_p50_us,
        p50_ratio: ratio(run_p50_us, limit_p50_us),
        limit_mean_us,
        run_mean_us,
        mean_ratio: ratio(run_mean_us, limit_mean_us),
        errors,
        pairs,
    }
}

pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    round3(a / b.max(1e-9))
}

/// The middle one; of an even number the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        _ => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// A null target in a process of its own. It ends when its standard input is closed: with this value, or with this process.
pub(crate) struct NullTarget {
    pub(crate) uri: String,
    _process: Process,
}

impl NullTarget {
    pub(crate) fn start(cpu: usize, idle: IdlePolicy, protocol: Protocol) -> anyhow::Result<NullTarget> {
        let args = ["serve-null", "--cpu", &cpu.to_string(), "--idle", idle.as_str(), "--protocol", protocol.as_str()];
        let mut process = Process::start("the null target", &args.map(str::to_owned))?;
        let uri = process.answer().context("starting the null target")?;
        Ok(NullTarget { uri, _process: process })
    }
}

/// `polypath-bench serve-null`: says the URI of a null disk, as JSON, and serves it until standard input ends.
///
/// # Errors
/// When the target cannot be started.
pub fn serve_null(cpu: usize, idle: IdlePolicy, protocol: Protocol) -> anyhow::Result<()> {
    let target = Target::start(TargetConfig {
        listeners: vec![protocol.listener("127.0.0.1:0".into())],
        subsystems: vec![SubsystemConfig {
            iqn: Some(IQN.into()),
            ..SubsystemConfig::new(NQN, vec![NamespaceConfig::new("null://64GiB?bs=4096")])
        }],
        cpus: vec![cpu],
        spin_us: match idle {
            IdlePolicy::Poll => u64::MAX,
            IdlePolicy::Sleep => 0,
            IdlePolicy::Adaptive { max_spin_us } => max_spin_us.into(),
        },
        ..TargetConfig::default()
    })?;
    output::line(serde_json::to_string(&protocol.uri(target.addresses()[0], NQN, IQN))?)?;
    answer_all(|question| anyhow::bail!("{question:?} is no question to a target"))?;
    target.stop();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn pairs_are_measured_both_ways_round() {
        let config = RatioConfig {
            depths: vec![1, 4],
            pairs: 2,
            time: Duration::from_millis(20),
            ramp: Duration::from_millis(5),
            idle: IdlePolicy::default(),
            cpus: None,
            path: Some("null://1GiB".parse().unwrap()),
            protocol: Protocol::NvmeTcp,
        };
        let mut lines = 0;
        let report = run(&config, |_| lines += 1).unwrap();
        assert_eq!((lines, report.cases.len(), report.cases[1].pairs.len()), (4, 2, 2));
        for case in &report.cases {
            assert!(
                case.limit_iops > 0.0 && case.run_iops > 0.0 && case.iops_ratio > 0.0 && case.errors == 0,
                "{case:?}"
            );
            assert!(case.limit_p50_us > 0.0 && case.run_p50_us > 0.0 && case.iops_quiet_ratio > 0.0, "{case:?}");
        }
    }
}
