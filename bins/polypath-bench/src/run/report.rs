//! What is reported of a run.

use super::config::RunConfig;
use super::counted::PathCounters;
use super::disk::Disk;
use super::job::JobResult;
use crate::latency::{LatencyUs, round3};
use crate::verify::Statistics;
use polypath::reactor::ReactorStatistics;
use polypath::{Arena, Stack};
use polypath_block::{Code, Status, Time};
use polypath_multipath::PathStatistics;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What was measured. The names of the fields are the keys of the JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Always `run`.
    pub mode: &'static str,
    /// The disk.
    pub disk: String,
    /// What requests.
    pub rw: &'static str,
    /// Bytes a request.
    pub bs: u32,
    /// Requests outstanding for each job.
    pub qd: u16,
    /// Jobs.
    pub jobs: u16,
    /// `adaptive`, `poll` or `sleep`.
    pub idle: &'static str,
    /// Cores of the reactors; empty: one that is not pinned.
    pub cpus: Vec<usize>,
    /// The rule that chose among paths; none with a single one.
    pub selector: Option<&'static str>,
    /// Are changes fenced?
    pub fencing: bool,
    /// Seed of the sequence of requests.
    pub seed: u64,
    /// Measured time in seconds.
    pub seconds: f64,
    /// The run was asked to end early: this is what was measured until then, or not everything known was read once more.
    pub interrupted: bool,
    /// Requests completed in that time.
    pub ios: u64,
    /// Of these, reads.
    pub reads: u64,
    /// Of these, writes.
    pub writes: u64,
    /// Requests a second.
    pub iops: f64,
    /// The rate of the best tenth of all milliseconds (of each job, added up): what it is when the cores are not wanted by others.
    pub iops_quiet: f64,
    /// MiB a second.
    pub mib_s: f64,
    /// Latency of a request, reads and writes together.
    pub lat_us: LatencyUs,
    /// Latency of a read; none without any.
    pub lat_read_us: Option<LatencyUs>,
    /// Latency of a write; none without any.
    pub lat_write_us: Option<LatencyUs>,
    /// Requests that failed, those during the ramp included.
    pub errors: u64,
    /// How many of them failed for what: a lost path is something else than a medium error.
    pub error_causes: BTreeMap<String, u64>,
    /// Requests that never came back: given up after the time an I/O may wait and a minute, or 15 s after an interrupt.
    pub unanswered: u64,
    /// The first of them.
    pub error_samples: Vec<String>,
    /// Blocks that were wrong; none unless verified.
    pub verify_errors: u64,
    /// The first of them.
    pub verify_error_samples: Vec<String>,
    /// What wrong blocks mean together with the changes that were sent again after a path was lost: whose fault it is; none
    /// unless verified.
    pub verdict: Option<String>,
    /// Longest time with I/O outstanding and none completed, over the whole disk, in milliseconds.
    pub longest_gap_ms: f64,
    /// CPU time of the reactors' threads, microseconds per request.
    pub cpu_us_per_io: f64,
    /// Part of the time that others kept the reactors from their cores, in percent (of the one that suffered most).
    pub core_taken_pct: f64,
    /// Requests whose way broke (they completed later).
    pub suspects: u64,
    /// What was verified, if anything.
    pub verify: Option<VerifyReport>,
    /// What the buffers lie in.
    pub buffers: Buffers,
    /// The same per path.
    pub paths: Vec<PathReport>,
    /// What the reactors did, since they were started.
    pub reactors: Vec<ReactorReport>,
}

impl RunReport {
    /// Did every request come back and succeed, and was every block right?
    pub fn is_good(&self) -> bool {
        self.errors == 0 && self.unanswered == 0 && self.verify_errors == 0
    }
}

/// What was verified.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Writes acknowledged.
    pub writes: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Writes of unknown outcome: in flight when the checker before this one was killed.
    pub unknown_writes: u64,
    /// Reads checked.
    pub reads: u64,
    /// Blocks checked.
    pub blocks: u64,
    /// Blocks of which nothing was known.
    pub blocks_unknown: u64,
    /// Blocks read once more at the end.
    pub swept: u64,
    /// Torn blocks that were tolerated.
    pub torn: u64,
    /// Blocks given up for want of room for their candidates.
    pub untracked: u64,
}

/// What buffers lie in.
#[derive(Clone, Debug, Serialize)]
pub struct Buffers {
    /// `huge` (reserved), `transparent` or `ordinary`.
    pub pages: &'static str,
    /// Why no reserved huge ones.
    pub reason: Option<String>,
    /// Bytes.
    pub bytes: u64,
}

/// One path.
#[derive(Clone, Debug, Serialize)]
pub struct PathReport {
    /// Its URI.
    pub name: String,
    /// Where it stood at the end.
    pub state: Option<String>,
    /// Requests that succeeded on it.
    pub ios: u64,
    /// Requests a second.
    pub iops: f64,
    /// MiB a second.
    pub mib_s: f64,
    /// Latency of a request on this path, the wait for a path not included.
    pub lat_us: LatencyUs,
    /// The same of a read; none without any.
    pub lat_read_us: Option<LatencyUs>,
    /// The same of a write; none without any.
    pub lat_write_us: Option<LatencyUs>,
    /// Requests that ended on it with an error. They were sent again elsewhere where that was right.
    pub errors: u64,
    /// Wrong blocks: only known of a disk with one path.
    pub verify_errors: Option<u64>,
    /// Longest time with I/O outstanding on it and none completed, in milliseconds.
    pub longest_gap_ms: f64,
    /// CPU time: only known of a disk with one path.
    pub cpu_us_per_io: Option<f64>,
    /// Requests whose way broke.
    pub suspects: u64,
    /// Requests sent again elsewhere.
    pub redriven: u64,
    /// How often it was left.
    pub failures: u64,
    /// How often it came back.
    pub recoveries: u64,
}

/// One reactor.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ReactorReport {
    /// Turns taken.
    pub turns: u64,
    /// Milliseconds in turns with work.
    pub busy_ms: f64,
    /// Milliseconds in turns without.
    pub spin_ms: f64,
    /// Milliseconds asleep.
    pub sleep_ms: f64,
    /// Times it slept.
    pub sleeps: u64,
}

/// When requests began, and the border of what is measured.
pub(super) struct Times {
    pub(super) start: Time,
    pub(super) begin: Time,
    pub(super) end: Time,
}

pub(super) fn build(
    config: &RunConfig,
    stack: &Stack,
    disk: &Disk,
    arena: &Arena,
    results: Vec<JobResult>,
    times: &Times,
    (shared_gap, known): (Duration, &[PathStatistics]),
) -> RunReport {
    // Nothing at all if it was interrupted during the ramp; there is something to divide by all the same.
    let seconds = times.end.since(times.begin).as_secs_f64().max(1e-9);
    let mut interrupted = times.end < times.begin.after(config.time);
    let mut all = JobResult::default();
    let (mut verify, mut cpu) = (VerifyReport::default(), Duration::ZERO);
    let (mut verify_errors, mut taken, mut quiet) = (0, Duration::ZERO, 0.0);
    for result in results {
        all.reads += result.reads;
        all.writes += result.writes;
        all.errors += result.errors;
        all.error_codes.iter_mut().zip(result.error_codes).for_each(|(all, one)| *all += one);
        all.unanswered += result.unanswered;
        interrupted |= result.sweep_cut;
        all.error_samples.extend(result.error_samples);
        all.verify_samples.extend(result.verify_samples);
        all.latencies.merge(&result.latencies);
        all.longest_gap = all.longest_gap.max(result.longest_gap);
        all.suspects += result.suspects;
        quiet += result.slices.quiet_rate();
        cpu += result.cpu.unwrap_or_default();
        taken = taken.max(result.taken.unwrap_or_default());
        verify.swept += result.swept;
        if let Some(s) = result.verified {
            verify_errors += s.errors;
            verify.add(&s);
        }
    }
    // Several jobs: a gap of the disk is one of all jobs at once.
    let gap = if config.jobs > 1 { shared_gap } else { all.longest_gap };
    let ios = all.reads + all.writes;
    let mut report = RunReport {
        mode: "run",
        disk: disk.device.name().to_owned(),
        rw: config.mix.as_str(),
        bs: config.bs,
        qd: config.qd,
        jobs: config.jobs,
        idle: config.idle.as_str(),
        cpus: config.cpus.as_ref().map(|c| c.0.clone()).unwrap_or_default(),
        selector: disk.group.as_ref().map(|g| g.selector().as_str()),
        fencing: config.fencing,
        seed: config.seed,
        seconds: round3(seconds),
        ios,
        reads: all.reads,
        writes: all.writes,
        interrupted,
        iops: round3(ios as f64 / seconds),
        iops_quiet: quiet,
        mib_s: mib_s(ios * u64::from(config.bs), seconds),
        lat_us: all.latencies.summary(),
        lat_read_us: all.latencies.reads(),
        lat_write_us: all.latencies.writes(),
        errors: all.errors,
        error_causes: causes(&all.error_codes),
        unanswered: all.unanswered,
        error_samples: all.error_samples,
        verify_errors,
        verify_error_samples: all.verify_samples.iter().map(ToString::to_string).collect(),
        verdict: (config.mix == super::Mix::Verify).then(|| disk.verdict(&all.verify_samples).to_string()),
        longest_gap_ms: ms(gap),
        cpu_us_per_io: round3(cpu.as_secs_f64() * 1e6 / ios.max(1) as f64),
        core_taken_pct: round3(taken.as_secs_f64() / seconds * 100.0),
        suspects: all.suspects,
        verify: (config.mix == super::Mix::Verify).then_some(verify),
        buffers: Buffers {
            pages: arena.pages().as_str(),
            reason: arena.fallback().map(str::to_owned),
            bytes: arena.region().len(),
        },
        paths: Vec::new(),
        reactors: stack.statistics().into_iter().map(reactor).collect(),
    };
    report.paths = paths(&report, disk, seconds, known);
    if disk.group.is_some() {
        // The multipath disk keeps them from its users.
        report.suspects = report.paths.iter().map(|path| path.suspects).sum();
    }
    report
}

fn paths(report: &RunReport, disk: &Disk, seconds: f64, statistics: &[PathStatistics]) -> Vec<PathReport> {
    if disk.path_counters.is_empty() {
        let known = statistics.first();
        return vec![PathReport {
            name: known.map_or_else(|| report.disk.clone(), |s| s.name.clone()),
            state: known.map(|s| format!("{:?}", s.state).to_lowercase()),
            ios: report.ios,
            iops: report.iops,
            mib_s: report.mib_s,
            lat_us: report.lat_us,
            lat_read_us: report.lat_read_us,
            lat_write_us: report.lat_write_us,
            errors: known.map_or(report.errors, |s| s.errors),
            verify_errors: Some(report.verify_errors),
            longest_gap_ms: report.longest_gap_ms,
            cpu_us_per_io: Some(report.cpu_us_per_io),
            suspects: known.map_or(report.suspects, |s| s.suspected),
            redriven: known.map_or(0, |s| s.redriven),
            failures: known.map_or(0, |s| s.failures),
            recoveries: known.map_or(0, |s| s.recoveries),
        }];
    }
    let one = |counters: &std::sync::Arc<PathCounters>| {
        let seen = counters.seen();
        let known = statistics.iter().find(|s| s.name == counters.name());
        PathReport {
            name: counters.name().to_owned(),
            state: known.map(|s| format!("{:?}", s.state).to_lowercase()),
            ios: seen.ios,
            iops: round3(seen.ios as f64 / seconds),
            mib_s: mib_s(seen.bytes, seconds),
            lat_us: seen.latencies.summary(),
            lat_read_us: seen.latencies.reads(),
            lat_write_us: seen.latencies.writes(),
            errors: seen.errors,
            verify_errors: None,
            longest_gap_ms: ms(seen.longest_gap),
            cpu_us_per_io: None,
            suspects: seen.suspects,
            redriven: known.map_or(0, |s| s.redriven),
            failures: known.map_or(0, |s| s.failures),
            recoveries: known.map_or(0, |s| s.recoveries),
        }
    };
    disk.path_counters.iter().map(one).collect()
}

impl VerifyReport {
    fn add(&mut self, s: &Statistics) {
        self.writes += s.acknowledged;
        self.failed_writes += s.failed;
        self.unknown_writes += s.unknown;
        self.reads += s.reads;
        self.blocks += s.blocks;
        self.blocks_unknown += s.blocks_unknown;
        self.torn += s.torn;
        self.untracked += s.untracked;
    }
}

/// Errors by their meaning in words; only those there were.
fn causes(codes: &[u64]) -> BTreeMap<String, u64> {
    let named = Code::ALL.iter().zip(codes).filter(|(_, n)| **n > 0);
    named.map(|(&code, &n)| (Status::new(code).to_string(), n)).collect()
}

fn reactor(s: ReactorStatistics) -> ReactorReport {
    let ms = |ns: u64| round3(ns as f64 / 1e6);
    ReactorReport {
        turns: s.turns,
        busy_ms: ms(s.busy_ns),
        spin_ms: ms(s.spin_ns),
        sleep_ms: ms(s.sleep_ns),
        sleeps: s.sleeps,
    }
}

fn ms(d: Duration) -> f64 {
    round3(d.as_secs_f64() * 1e3)
}

fn mib_s(bytes: u64, seconds: f64) -> f64 {
    round3(bytes as f64 / seconds / f64::from(1 << 20))
}
