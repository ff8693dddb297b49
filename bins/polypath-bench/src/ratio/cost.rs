//! System calls and instructions per I/O, counted by tools that know: `perf` and `callgrind`.
//!
//! System calls are counted at full speed (`perf stat -e raw_syscalls:sys_enter`), those of connecting included. Instructions are
//! counted by `callgrind` in user space, between entry and return of the turn that moves I/O (a job's `poll`, the client's
//! `pass` of the limit): machines without counters have no better, and it repeats exactly. Under callgrind a side is slower than its
//! peer, so that turns find more to do at a time than at full speed: the figure is that of well filled batches.

use super::NullTarget;
use crate::latency::round3;
use crate::protocol::Protocol;
use anyhow::Context as _;
use polypath_block::DiskUri;
use polypath_reactor::IdlePolicy;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// What one I/O costs the initiator, and beside it what it costs the client of the limit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cost {
    /// Requests outstanding.
    pub qd: u16,
    /// System calls of the initiator's process per I/O.
    pub run_syscalls_per_io: Option<f64>,
    /// Instructions of the initiator in user space per I/O.
    pub run_instructions_per_io: Option<f64>,
    /// System calls of the limit's client per I/O.
    pub limit_syscalls_per_io: Option<f64>,
    /// Instructions of the limit's client in user space per I/O.
    pub limit_instructions_per_io: Option<f64>,
    /// What could not be measured here, and why.
    pub missing: Vec<String>,
}

/// Counts at depth `qd`, on `cpus`, against `path` or a null target that speaks `protocol`.
///
/// # Errors
/// When the target cannot be started. A tool that is not there is told in [`Cost::missing`].
pub fn measure(
    qd: u16,
    idle: IdlePolicy,
    cpus: [usize; 2],
    protocol: Protocol,
    path: Option<&DiskUri>,
) -> anyhow::Result<Cost> {
    let target = match path {
        Some(_) => None,
        None => Some(NullTarget::start(cpus[1], idle, protocol)?),
    };
    let uri = path.map_or_else(|| target.as_ref().map_or_else(String::new, |t| t.uri.clone()), ToString::to_string);
    let (qd_text, near) = (qd.to_string(), cpus[0].to_string());
    let both = format!("{},{}", cpus[0], cpus[1]);
    let run = ["run", "--path", &uri, "--rw", "randread", "--qd", &qd_text, "--ramp", "0", "--cpus", &near];
    let limit = ["limit", "--protocol", protocol.as_str(), "--qd", &qd_text, "--ramp", "0", "--cpus", &both];
    let mut cost = Cost { qd, ..Cost::default() };
    let mut note = |what: &str, result: anyhow::Result<f64>| match result {
        Ok(value) => Some(round3(value)),
        Err(error) => {
            cost.missing.push(format!("{what}: {error:#}"));
            None
        }
    };
    let run_syscalls = note("system calls of the run", syscalls(&run, idle));
    let run_instructions = note("instructions of the run", instructions(&run, "*Job*Poller*poll*"));
    let limit_syscalls = note("system calls of the limit", limit_syscalls(&limit, idle));
    let limit_instructions = note("instructions of the limit", instructions(&limit, "*sides::Client*pass*"));
    cost.run_syscalls_per_io = run_syscalls;
    cost.run_instructions_per_io = run_instructions;
    cost.limit_syscalls_per_io = limit_syscalls;
    cost.limit_instructions_per_io = limit_instructions;
    Ok(cost)
}

fn syscalls(args: &[&str], idle: IdlePolicy) -> anyhow::Result<f64> {
    let (command, scratch) = perf()?;
    let ios = ios(command, args, &["--idle", idle.as_str(), "--time", "2"])?;
    Ok(counted_by_perf(&scratch)? / ios)
}

/// What counts system calls of the program that is to be appended, and where it writes how many.
pub(crate) fn perf() -> anyhow::Result<(Command, Scratch)> {
    let scratch = Scratch::new("perf")?;
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-o"]).arg(&scratch.0).arg("--");
    Ok((command, scratch))
}

/// How many [`perf`] counted, once it has ended.
pub(crate) fn counted_by_perf(scratch: &Scratch) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(&scratch.0).context("reading what perf counted")?;
    let line = text.lines().find(|l| l.contains("sys_enter")).context("perf counted nothing")?;
    line.split(',').next().unwrap_or("").parse().with_context(|| format!("perf says: {line}"))
}

/// The limit counts its own, each side for itself.
fn limit_syscalls(args: &[&str], idle: IdlePolicy) -> anyhow::Result<f64> {
    let program = std::env::current_exe()?;
    let report = report(Command::new(program), args, &["--idle", idle.as_str(), "--time", "1"])?;
    report["syscalls_per_io"].as_f64().context("limit reported no system calls")
}

fn instructions(args: &[&str], function: &str) -> anyhow::Result<f64> {
    let (command, counting) = Counting::start(function)?;
    // Sleeping keeps turns that find nothing out of the count.
    let ios = ios(command, args, &["--idle", "sleep", "--time", "3"])?;
    Ok(counting.total()? / ios)
}

/// Instructions of one function and all that it calls, being counted by callgrind.
pub(crate) struct Counting {
    function: String,
    scratch: Scratch,
}

impl Counting {
    /// What counts, with the program to be appended; `function` is a pattern of its name.
    pub(crate) fn start(function: &str) -> anyhow::Result<(Command, Counting)> {
        let scratch = Scratch::new("callgrind")?;
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--collect-atstart=no", "--quiet"])
            .arg(format!("--toggle-collect={function}"))
            .arg(format!("--callgrind-out-file={}", scratch.0.display()));
        Ok((command, Counting { function: function.to_owned(), scratch }))
    }

    /// How many, once it has ended.
    pub(crate) fn total(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(&self.scratch.0).context("reading what callgrind counted")?;
        let word = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
        let total =
            text.lines().filter(|l| l.starts_with("totals:")).find_map(word).context("callgrind counted nothing")?;
        anyhow::ensure!(total > 0.0, "callgrind found no function like {}", self.function);
        Ok(total)
    }
}

/// I/Os that this program, started by `command`, reports.
fn ios(mut command: Command, args: &[&str], more: &[&str]) -> anyhow::Result<f64> {
    command.arg(std::env::current_exe()?);
    let report = report(command, args, more)?;
    let ios = report["ios"].as_f64().filter(|&n| n > 0.0).context("no I/O was done")?;
    anyhow::ensure!(report["errors"] == 0, "there were errors: {}", report["error_samples"]);
    Ok(ios)
}

fn report(mut command: Command, args: &[&str], more: &[&str]) -> anyhow::Result<Value> {
    command.args(args).args(more).args(["--json", "-"]).stdin(Stdio::null());
    let name = Path::new(command.get_program()).display().to_string();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    let tail = || String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned();
    anyhow::ensure!(output.status.success(), "{name} ended with {}: {}", output.status, tail());
    serde_json::from_slice(&output.stdout).with_context(|| format!("reading the report; {name} says: {}", tail()))
}

/// A file of a tool, gone with this value.
pub(crate) struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(tool: &str) -> anyhow::Result<Scratch> {
        let name = format!("polypath-bench-{tool}-{}-{:x}", std::process::id(), rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::File::create_new(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, file = %self.0.display(), "cannot be removed");
        }
    }
}
