//! Instructions and system calls per request in a back-end, counted by tools that know: `callgrind` and `perf`.
//!
//! System calls are counted at full speed over the whole process, those of its start included. Instructions are counted in user space
//! by `callgrind`: of the whole back-end between entry and return of its ring's turn, of the bare one between entry and return of what
//! answers a batch. Under callgrind a back-end is slower than its front-end, so that it finds full batches.

use super::drive::{DriveConfig, drive};
use super::measure::RingReport;
use super::serve::Whole;
use super::{Kick, Medium, Style};
use crate::latency::round3;
use crate::ratio::{Counting, counted_by_perf, perf};
use anyhow::Context as _;
use polypath_reactor::IdlePolicy;
use serde::Serialize;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The turn of a ring in the whole back-end.
const TURN: &str = "*VringPoller*Poller*poll*";
/// What answers a batch in the bare one.
const ANSWER: &str = "*BareBackEnd*answer*";

/// What one request costs the whole back-end, and beside it what it costs the bare one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RingCost {
    /// Requests outstanding.
    pub qd: u16,
    /// System calls of the whole back-end's process per request.
    pub run_syscalls_per_io: Option<f64>,
    /// Instructions of the whole back-end in user space per request.
    pub run_instructions_per_io: Option<f64>,
    /// Instructions of the bare back-end in user space per request.
    pub limit_instructions_per_io: Option<f64>,
    /// What could not be measured here, and why.
    pub missing: Vec<String>,
}

/// Counts at depth `qd` on `cpus`. A tool that is not there is told in [`RingCost::missing`].
pub fn measure(qd: u16, cpus: [usize; 2], medium: Medium, group: bool, style: Style) -> RingCost {
    let mut missing = Vec::new();
    let mut note = |what: &str, result: anyhow::Result<f64>| match result {
        Ok(value) => Some(round3(value)),
        Err(error) => {
            missing.push(format!("{what}: {error:#}"));
            None
        }
    };
    let counter = Counter { qd, cpus, medium, group, style };
    let run_syscalls_per_io = note("system calls of the run", counter.syscalls());
    let run_instructions_per_io = note("instructions of the run", counter.instructions());
    let limit_instructions_per_io = note("instructions of the limit", counter.limit_instructions());
    RingCost { qd, run_syscalls_per_io, run_instructions_per_io, limit_instructions_per_io, missing }
}

#[derive(Clone, Copy)]
struct Counter {
    qd: u16,
    cpus: [usize; 2],
    medium: Medium,
    group: bool,
    style: Style,
}

impl Counter {
    fn syscalls(&self) -> anyhow::Result<f64> {
        let (command, scratch) = perf()?;
        let ios = self.driven(command, IdlePolicy::Poll, Duration::from_secs(2), Kick::Seldom)?;
        Ok(counted_by_perf(&scratch)? / ios)
    }

    /// Sleeping keeps turns that find nothing out of the count; the front-end kicks then.
    fn instructions(&self) -> anyhow::Result<f64> {
        let (command, counting) = Counting::start(TURN)?;
        let ios = self.driven(command, IdlePolicy::Sleep, Duration::from_secs(3), Kick::Always)?;
        Ok(counting.total()? / ios)
    }

    /// Requests from first to last that the whole back-end, started by `tool`, answered.
    fn driven(&self, tool: Command, idle: IdlePolicy, time: Duration, kick: Kick) -> anyhow::Result<f64> {
        let whole = Whole::start(Some(tool), self.medium, self.group, self.cpus[1], idle)?;
        let report = drive(&DriveConfig {
            qd: self.qd,
            time,
            ramp: Duration::ZERO,
            cpu: Some(self.cpus[0]),
            style: self.style,
            kick,
            ..DriveConfig::new(whole.socket.clone())
        })?;
        ios(&report)
    }

    fn limit_instructions(&self) -> anyhow::Result<f64> {
        let (mut command, counting) = Counting::start(ANSWER)?;
        // Its two threads poll, and take turns: each is to have its own as soon as the other waits.
        command.arg("--fair-sched=yes");
        let cpus = format!("{},{}", self.cpus[0], self.cpus[1]);
        command.arg(std::env::current_exe()?).args(["limit", "--ring", "--qd", &self.qd.to_string()]);
        command.args(["--medium", self.medium.as_str(), "--cpus", &cpus, "--ramp", "0", "--time", "2", "--json", "-"]);
        command.args(self.style.indirect.then_some("--indirect")).args(self.style.renew.then_some("--renew"));
        let output = command.stdin(Stdio::null()).output().context("starting valgrind")?;
        let tail = || String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned();
        anyhow::ensure!(output.status.success(), "valgrind ended with {}: {}", output.status, tail());
        let report: RingReport = serde_json::from_slice(&output.stdout).context("reading the report")?;
        Ok(counting.total()? / ios(&report)?)
    }
}

fn ios(report: &RingReport) -> anyhow::Result<f64> {
    anyhow::ensure!(report.is_good(), "{} requests failed, {} never came back", report.errors, report.unanswered);
    anyhow::ensure!(report.total_ios > 0, "no request was done");
    Ok(report.total_ios as f64)
}
