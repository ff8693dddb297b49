//! `ratio --ring`: a whole back-end against the limit of the ring, in turns under the same front-end.
//!
//! Each turn measures the limit and a back-end of ours one right after the other on the same cores; every other turn the other way
//! round. The back-end is a process of its own that polls on the second core, and is there only for its half: two that poll would share
//! the core. A back-end of somebody else's, if asked for, has a third of each turn, and is stopped (SIGSTOP) during the others.

use super::control;
use super::cost::RingCost;
use super::drive::{DriveConfig, drive};
use super::limit::{RingLimitConfig, limit};
use super::measure::RingReport;
use super::serve::Whole;
use super::{GOAL, MAX_QD, Medium, Style};
use crate::cpu;
use crate::latency::round3;
use crate::ratio::{median, ratio as quotient};
use anyhow::Context as _;
use polypath_reactor::{CpuList, IdlePolicy};
use rustix::fd::OwnedFd;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What to compare.
#[derive(Clone, Debug)]
pub struct RingRatioConfig {
    /// Queue depths.
    pub depths: Vec<u16>,
    /// Turns for each depth.
    pub pairs: usize,
    /// How long each part of a turn is measured.
    pub time: Duration,
    /// How long it runs before that.
    pub ramp: Duration,
    /// Core of the front-end, core of the back-ends.
    pub cpus: Option<CpuList>,
    /// What is behind the back-ends.
    pub medium: Medium,
    /// Serve a group of one path, as `polypathd` does, or the disk as it is.
    pub group: bool,
    /// How requests are put into the ring.
    pub style: Style,
    /// Socket of a back-end of somebody else's to compare with. It must keep to the second core, and belong to this user.
    pub peer: Option<PathBuf>,
}

/// What was compared. The names of the fields are the keys of the JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct RingRatioReport {
    /// Always `ring-ratio`.
    pub mode: &'static str,
    /// `null` or `ram`.
    pub medium: Medium,
    /// A group of one path, or the disk as it is?
    pub group: bool,
    /// One descriptor in the ring and a table for each request?
    pub indirect: bool,
    /// Was each request written anew, or only its sector?
    pub renew: bool,
    /// Core of the front-end, core of the back-ends.
    pub cpus: [usize; 2],
    /// Measured seconds of each part of a turn.
    pub seconds: f64,
    /// Part of the limit that is to be reached.
    pub goal: f64,
    /// Somebody else's back-end.
    pub peer: Option<String>,
    /// One for each depth.
    pub cases: Vec<RingCase>,
    /// What a request costs, if asked for.
    pub cost: Vec<RingCost>,
}

/// One depth. Rates and latencies are medians of the turns.
#[derive(Clone, Debug, Serialize)]
pub struct RingCase {
    /// Requests outstanding.
    pub qd: u16,
    /// The limit's rate.
    pub limit_iops: f64,
    /// The whole back-end's.
    pub run_iops: f64,
    /// The second over the first.
    pub iops_ratio: f64,
    /// Median of the ratios of single turns: what a machine whose speed drifts is better judged by.
    pub iops_ratio_paired: f64,
    /// The limit's rate while the cores were left alone (`iops_quiet`).
    pub limit_iops_quiet: f64,
    /// The whole back-end's.
    pub run_iops_quiet: f64,
    /// The second over the first: the ratio to look at on a machine that others use.
    pub iops_quiet_ratio: f64,
    /// The limit's median latency.
    pub limit_p50_us: f64,
    /// The whole back-end's.
    pub run_p50_us: f64,
    /// Somebody else's rate.
    pub peer_iops: Option<f64>,
    /// The same while the cores were left alone.
    pub peer_iops_quiet: Option<f64>,
    /// The whole back-end's rate over it: median of the ratios of single turns.
    pub over_peer_paired: Option<f64>,
    /// The same of undisturbed milliseconds.
    pub over_peer_quiet: Option<f64>,
    /// Failed and unanswered requests of all together.
    pub errors: u64,
    /// Each turn.
    pub pairs: Vec<RingPair>,
}

impl RingCase {
    /// Of the turns at depth `qd`, in all of which together `errors` requests failed or never came back.
    pub fn new(qd: u16, pairs: Vec<RingPair>, errors: u64) -> RingCase {
        let of = |value: fn(&RingPair) -> f64| median(pairs.iter().map(value).collect());
        let known = |value: fn(&RingPair) -> Option<f64>| {
            let values: Vec<f64> = pairs.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| median(values))
        };
        let (limit_iops, run_iops) = (of(|p| p.limit_iops), of(|p| p.run_iops));
        let (limit_iops_quiet, run_iops_quiet) = (of(|p| p.limit_iops_quiet), of(|p| p.run_iops_quiet));
        let peer_iops_quiet = known(|p| p.peer_iops_quiet);
        RingCase {
            qd,
            limit_iops,
            run_iops,
            iops_ratio: quotient(run_iops, limit_iops),
            iops_ratio_paired: round3(of(|p| p.run_iops / p.limit_iops.max(1e-9))),
            limit_iops_quiet,
            run_iops_quiet,
            iops_quiet_ratio: quotient(run_iops_quiet, limit_iops_quiet),
            limit_p50_us: of(|p| p.limit_p50_us),
            run_p50_us: of(|p| p.run_p50_us),
            peer_iops: known(|p| p.peer_iops),
            peer_iops_quiet,
            over_peer_paired: known(|p| p.peer_iops.map(|peer| p.run_iops / peer.max(1e-9))).map(round3),
            over_peer_quiet: peer_iops_quiet.map(|peer| quotient(run_iops_quiet, peer)),
            errors,
            pairs,
        }
    }
}

/// One turn.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RingPair {
    /// The limit's rate.
    pub limit_iops: f64,
    /// The whole back-end's.
    pub run_iops: f64,
    /// The limit's rate while the cores were left alone.
    pub limit_iops_quiet: f64,
    /// The whole back-end's.
    pub run_iops_quiet: f64,
    /// The limit's median latency.
    pub limit_p50_us: f64,
    /// The whole back-end's.
    pub run_p50_us: f64,
    /// Somebody else's rate.
    pub peer_iops: Option<f64>,
    /// The same while the cores were left alone.
    pub peer_iops_quiet: Option<f64>,
    /// Part of the time that others had the front-end's core, in percent: during the limit, during the run.
    pub core_taken_pct: [f64; 2],
}

/// Compares; `tell` is called with a line for people after each turn.
///
/// # Errors
/// When any of them cannot be measured.
pub fn ratio(config: &RingRatioConfig, mut tell: impl FnMut(&str)) -> anyhow::Result<RingRatioReport> {
    anyhow::ensure!(
        config.pairs > 0 && !config.depths.is_empty(),
        "nothing to compare: expected --pairs and --qd of 1 or more"
    );
    for qd in &config.depths {
        anyhow::ensure!((1..=MAX_QD).contains(qd), "--qd {qd}: expected 1 to {MAX_QD} with --ring");
    }
    let (near, far) = cpu::two(config.cpus.as_ref());
    let peer = config.peer.as_deref().map(Peer::find).transpose()?;
    let mut cases = Vec::new();
    for &qd in &config.depths {
        let (mut pairs, mut errors) = (Vec::new(), 0);
        for number in 0..config.pairs {
            let parts = turn(config, qd, [near, far], peer.as_ref(), number % 2 == 1)?;
            errors += parts.errors();
            let pair = parts.pair();
            let others = pair.peer_iops.map(|iops| format!(", {} {iops:.0}", peer_name(config))).unwrap_or_default();
            tell(&format!(
                "QD {qd} turn {}: limit {:.0} IOPS, run {:.0}{others}",
                number + 1,
                pair.limit_iops,
                pair.run_iops
            ));
            pairs.push(pair);
        }
        cases.push(RingCase::new(qd, pairs, errors));
    }
    Ok(RingRatioReport {
        mode: "ring-ratio",
        medium: config.medium,
        group: config.group,
        indirect: config.style.indirect,
        renew: config.style.renew,
        cpus: [near, far],
        seconds: round3(config.time.as_secs_f64()),
        goal: GOAL,
        peer: config.peer.as_ref().map(|path| path.display().to_string()),
        cases,
        cost: Vec::new(),
    })
}

fn peer_name(config: &RingRatioConfig) -> String {
    config.peer.as_ref().map_or_else(String::new, |path| path.display().to_string())
}

/// What one turn measured.
struct Parts {
    limit: RingReport,
    run: RingReport,
    peer: Option<RingReport>,
}

impl Parts {
    fn errors(&self) -> u64 {
        let all = [Some(&self.limit), Some(&self.run), self.peer.as_ref()];
        all.into_iter().flatten().map(|report| report.errors + report.unanswered).sum()
    }

    fn pair(&self) -> RingPair {
        let (l, r) = (&self.limit, &self.run);
        let taken = |report: &RingReport| report.core_taken_pct.first().copied().unwrap_or(0.0);
        RingPair {
            limit_iops: l.iops,
            run_iops: r.iops,
            limit_iops_quiet: l.iops_quiet,
            run_iops_quiet: r.iops_quiet,
            limit_p50_us: l.lat_us.p50,
            run_p50_us: r.lat_us.p50,
            peer_iops: self.peer.as_ref().map(|p| p.iops),
            peer_iops_quiet: self.peer.as_ref().map(|p| p.iops_quiet),
            core_taken_pct: [taken(l), taken(r)],
        }
    }
}

fn turn(
    config: &RingRatioConfig,
    qd: u16,
    [near, far]: [usize; 2],
    peer: Option<&Peer>,
    run_first: bool,
) -> anyhow::Result<Parts> {
    let (time, ramp, style) = (config.time, config.ramp, config.style);
    let against = |socket: &Path| {
        let config = DriveConfig { qd, time, ramp, cpu: Some(near), style, ..DriveConfig::new(socket.to_owned()) };
        drive(&config)
    };
    let limit = || {
        let cpus = Some(CpuList(vec![near, far]));
        limit(&RingLimitConfig { qd, time, ramp, cpus, medium: config.medium, style })
    };
    let run = || {
        let whole = Whole::start(None, config.medium, config.group, far, IdlePolicy::Poll)?;
        against(&whole.socket)
    };
    let theirs = || peer.map(|peer| peer.awake(|| against(&peer.socket))).transpose();
    if run_first {
        let (peer, run) = (theirs()?, run()?);
        Ok(Parts { limit: limit()?, run, peer })
    } else {
        let (limit, run) = (limit()?, run()?);
        Ok(Parts { limit, run, peer: theirs()? })
    }
}

/// Somebody else's back-end. It runs while it is asked, and again when this value is gone.
struct Peer {
    socket: PathBuf,
    number: Pid,
    process: OwnedFd,
    guard: Child,
}

impl Peer {
    /// Finds the process that listens at `socket`, and stops it.
    fn find(socket: &Path) -> anyhow::Result<Peer> {
        let what = || format!("--peer {}", socket.display());
        let stream = control::dial(socket).context("is a back-end listening there?").with_context(what)?;
        let number = socket_peercred(&stream).context("asking who listens").with_context(what)?.pid;
        let process = pidfd_open(number, PidfdFlags::empty()).context("asking for its process").with_context(what)?;
        // It may serve guests: should this process be killed, somebody else must let it go on.
        let guard = guard(number).context("starting who lets it go on in any case").with_context(what)?;
        let peer = Peer { socket: socket.to_owned(), number, process, guard };
        peer.signal(Signal::STOP)?;
        Ok(peer)
    }

    /// Does `work` while the process runs.
    fn awake<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.signal(Signal::CONT)?;
        let done = work();
        let stopped = self.signal(Signal::STOP);
        // Why it could not be measured says more than that it cannot be stopped any more.
        let done = done?;
        stopped.map(|()| done)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        pidfd_send_signal(&self.process, signal).with_context(|| {
            let (socket, number) = (self.socket.display(), self.number.as_raw_nonzero());
            format!("--peer {socket}: process {number} cannot be stopped and continued")
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = self.signal(Signal::CONT) {
            tracing::warn!("{error:#}");
        }
        drop(self.guard.stdin.take());
        if let Err(error) = self.guard.wait() {
            tracing::warn!(%error, "waiting for who lets the peer go on in any case");
        }
    }
}

/// A process that lets `process` go on when this one has ended, however that was. In a group of its own: what is said to ours by a terminal
/// does not concern it.
fn guard(process: Pid) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("asking for the name of this program")?;
    let mut command = Command::new(program);
    command.arg("continue").arg(process.as_raw_nonzero().to_string()).process_group(0);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Waits for the end of standard input, and continues process `number`, which somebody may have stopped.
///
/// # Errors
/// There is no such process, or it belongs to somebody else.
pub fn let_go_on(number: i32) -> anyhow::Result<()> {
    let what = || format!("process {number}");
    let process = Pid::from_raw(number).context("expected a number above 0").with_context(what)?;
    let process = pidfd_open(process, PidfdFlags::empty()).with_context(what)?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).context("waiting for the end of standard input")?;
    pidfd_send_signal(process, Signal::CONT).with_context(what)
}
