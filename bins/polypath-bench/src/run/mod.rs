//! Measures a disk, and verifies it if asked to.
//!
//! Jobs are pollers on the reactors of a [`polypath::Stack`] and drive queues directly, as a vring does. One path is measured as
//! it is; several become a multipath disk, each of them watched.

mod config;
mod counted;
mod disk;
mod job;
mod report;
mod stop;
#[cfg(test)]
mod tests;

pub use config::{Mix, RunConfig};
pub use report::{Buffers, PathReport, ReactorReport, RunReport, VerifyReport};
pub use stop::Stop;

use crate::verify::{Verifier, VerifierConfig};
use crate::workload::Workload;
use anyhow::Context as _;
use disk::Disk;
use job::{Control, Job, JobResult, JobSpec};
use polypath::reactor::now;
use polypath::{Arena, Stack, StackConfig};
use polypath_block::{Armed, Cx, DeviceInfo, Host, OpenError, Poller, Turn, Waits};
use report::Times;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use stop::{Running, Watched};

/// How long no request may come back after the last one was made, beyond the time an I/O may wait for a path.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// The same once the run was asked to end: somebody waits. Longer than a usual fence; no test of this package has one.
const STOP_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

/// How long jobs may take to tell what they did: their reactors have nothing to wait for.
const TELL_LIMIT: Duration = Duration::from_secs(5);

/// How often somebody is told how far a run has come.
const PROGRESS: Duration = Duration::from_millis(100);

/// How far a run has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Since requests began.
    pub elapsed: Duration,
    /// Until the last one is made.
    pub total: Duration,
    /// Requests completed so far.
    pub ios: u64,
    /// Of these, per path; empty with one path.
    pub paths: Vec<(String, u64)>,
}

/// Measures; `progress` is called some times a second.
///
/// # Errors
/// When there is no time to measure, when the disk cannot be opened or does not answer, when the request size does not suit it, or
/// when the record of an earlier verification is of another disk. Errors of single requests are in the report.
pub fn run(config: &RunConfig, progress: impl FnMut(&Progress)) -> anyhow::Result<RunReport> {
    run_until(config, &Stop::default(), progress)
}

/// [`run`] that `stop` can end early; the report says so, and is of the time until then.
///
/// # Errors
/// Those of [`run`].
pub fn run_until(config: &RunConfig, stop: &Stop, mut progress: impl FnMut(&Progress)) -> anyhow::Result<RunReport> {
    anyhow::ensure!(
        !config.time.is_zero(),
        "--time 0 leaves nothing to measure; expected some time, such as 5 or 500ms"
    );
    let bytes = u64::from(config.jobs) * u64::from(config.qd) * u64::from(config.bs).next_multiple_of(4096);
    let stack = Stack::start(StackConfig {
        cpus: config.cpus.clone(),
        idle: config.idle,
        buffer_bytes: bytes,
        huge_pages: true,
    })?;
    let disk = disk::open(&stack, config)?;
    let arena = stack.arena()?;
    let started = start_jobs(&stack, &disk, config, &arena);
    let outcome = started.and_then(|jobs| collect(&jobs, &disk, config, stop, &mut progress));
    // As they are at the end of the run; later all are closed.
    let paths = disk.group.as_ref().map(|group| group.statistics()).unwrap_or_default();
    disk.close();
    let ended = Instant::now();
    // Connections say goodbye; a target that does not answer is not waited for.
    while !disk.is_gone() && ended.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Somebody who asks for an end before the report is made gets the report, too.
    let (results, times, gap, _watched) = outcome?;
    let report = report::build(config, &stack, &disk, &arena, results, &times, (gap, &paths));
    if report.unanswered > 0 {
        // They may still land. Their buffers, and the reactors that know of them, stay for as long as the process.
        std::mem::forget(stack);
    }
    Ok(report)
}

type JobEnd = Result<JobResult, OpenError>;

struct Jobs {
    control: Arc<Control>,
    told: Receiver<JobEnd>,
    progress: Vec<Arc<AtomicU64>>,
    hosts: Vec<Arc<dyn Host>>,
}

fn start_jobs(stack: &Stack, disk: &Disk, config: &RunConfig, arena: &Arena) -> anyhow::Result<Jobs> {
    let geometry = disk.info.geometry;
    let (bs, block) = (config.bs, geometry.block_size);
    anyhow::ensure!(
        bs >= block && bs.is_multiple_of(block),
        "--bs {bs}: {} has blocks of {block} bytes; expected a multiple of that",
        disk.device.name()
    );
    anyhow::ensure!(config.qd > 0 && config.jobs > 0, "--qd and --jobs must be at least 1");
    let io_blocks = bs / block;
    let usable = config.size.map_or(geometry.blocks, |s| geometry.blocks.min(s / u64::from(block)));
    let share = usable / u64::from(config.jobs) / u64::from(io_blocks) * u64::from(io_blocks);
    anyhow::ensure!(share > 0, "{usable} blocks are too few for {} jobs with requests of {bs} bytes", config.jobs);
    let hosts = stack.hosts();
    let control = Arc::new(Control::default());
    let (tell, told) = mpsc::channel();
    let mut progress = Vec::new();
    for number in 0..config.jobs {
        let first = u64::from(number) * share;
        let workload = Workload::new(
            first,
            share,
            io_blocks,
            config.mix.is_random(),
            config.mix.read_pct(config.rwmix),
            config.seed.wrapping_add(u64::from(number)),
        );
        let verifier = match config.mix {
            Mix::Verify => Some(open_verifier(config, disk, number, first, share)?),
            _ => None,
        };
        let buffers: Option<Vec<_>> = (0..config.qd).map(|_| arena.chunk(bs)).collect();
        let counter = Arc::new(AtomicU64::new(0));
        progress.push(counter.clone());
        let spec = JobSpec {
            name: format!("bench job {number}"),
            device: disk.device.clone(),
            qd: config.qd,
            block_size: block,
            io_blocks,
            workload,
            verifier,
            sweep: config.sweep,
            buffers: buffers.context("the buffers do not fit the memory that was set aside for them")?,
            counts_cpu: usize::from(number) < hosts.len(),
            progress: counter,
            control: control.clone(),
            shares_gap: config.jobs > 1,
        };
        spawn(&*hosts[usize::from(number) % hosts.len()], spec, tell.clone());
    }
    Ok(Jobs { control, told, progress, hosts })
}

fn open_verifier(
    config: &RunConfig,
    disk: &Disk,
    number: u16,
    first_lba: u64,
    blocks: u64,
) -> anyhow::Result<Verifier> {
    let record = config.verify_record.as_ref().map(|path| match config.jobs {
        1 => path.clone(),
        _ => PathBuf::from(format!("{}.{number}", path.display())),
    });
    let verifier = Verifier::open(VerifierConfig {
        first_lba,
        disk: disk_number(&disk.info),
        max_in_flight: config.qd.into(),
        tolerate_torn: config.tolerate_torn,
        record,
        ..VerifierConfig::new(blocks, disk.info.geometry.block_size)
    })?;
    if verifier.reopened() {
        tracing::info!(unknown = verifier.statistics().unknown, "verification continues where its record ends");
    }
    Ok(verifier)
}

/// A number for the disk that does not depend on the path it is seen through.
fn disk_number(info: &DeviceInfo) -> u64 {
    let mut names: Vec<String> = info.identity.identifiers.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    // FNV-1a: the same in every build, unlike the standard library's hash.
    names.concat().bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn spawn(host: &dyn Host, spec: JobSpec, tell: Sender<JobEnd>) {
    host.spawn(Box::new(move |cx| {
        let (forward, result) = (tell.clone(), tell);
        match Job::new(cx, spec, forward) {
            Ok(job) => Box::new(job),
            Err(error) => {
                // If whoever started us has gone, nobody wants to know.
                let _ = result.send(Err(error));
                Box::new(Ended)
            }
        }
    }));
}

/// A poller in place of one that could not be made.
struct Ended;

impl Poller for Ended {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        Turn::Finished
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }

    fn name(&self) -> &str {
        "bench job (no queue)"
    }
}

/// Lets the jobs go once all are ready, and waits for them.
fn collect<'a>(
    jobs: &Jobs,
    disk: &Disk,
    config: &RunConfig,
    stop: &'a Stop,
    progress: &mut impl FnMut(&Progress),
) -> anyhow::Result<(Vec<JobResult>, Times, Duration, Watched<'a>)> {
    wait_ready(jobs, disk, config)?;
    let start = now().after(Duration::from_millis(1));
    let mut times =
        Times { start, begin: start.after(config.ramp), end: start.after(config.ramp.saturating_add(config.time)) };
    for counters in &disk.path_counters {
        counters.window(times.begin, times.end);
    }
    jobs.control.begin.store(times.begin.as_nanos(), Ordering::Relaxed);
    jobs.control.end.store(times.end.as_nanos(), Ordering::Relaxed);
    let watched = stop.watch(Running {
        control: jobs.control.clone(),
        paths: disk.path_counters.clone(),
        hosts: jobs.hosts.clone(),
    });
    jobs.control.go.store(true, Ordering::Release);
    jobs.hosts.iter().for_each(|host| host.wake());
    let results = wait_told(jobs, disk, config, &times, progress)?;
    times.end = jobs.control.end();
    let gap = jobs.control.gap.longest();
    Ok((results, times, gap, watched))
}

/// Waits until the queues of all jobs take requests.
fn wait_ready(jobs: &Jobs, disk: &Disk, config: &RunConfig) -> anyhow::Result<()> {
    let waiting = Instant::now();
    while jobs.control.ready.load(Ordering::Relaxed) < u32::from(config.jobs) {
        match jobs.told.recv_timeout(Duration::from_millis(2)) {
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(_)) | Err(RecvTimeoutError::Disconnected) => anyhow::bail!("a job ended before it began"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        anyhow::ensure!(
            waiting.elapsed() < config.connect_timeout,
            "{}: its queues did not become ready within {:?}: {:?}",
            disk.device.name(),
            config.connect_timeout,
            disk.device.state()
        );
    }
    Ok(())
}

/// Waits for what the jobs tell at their end, and shows how far they have come until then.
fn wait_told(
    jobs: &Jobs,
    disk: &Disk,
    config: &RunConfig,
    times: &Times,
    progress: &mut impl FnMut(&Progress),
) -> anyhow::Result<Vec<JobResult>> {
    let mut results = Vec::new();
    let (mut ios, mut moved, mut given_up) = (0, times.start, None);
    while results.len() < usize::from(config.jobs) {
        match jobs.told.recv_timeout(PROGRESS) {
            Ok(told) => results.push(told?),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("a reactor ended before its job did"),
            Err(RecvTimeoutError::Timeout) => {
                let time = now();
                let done = jobs.progress.iter().map(|p| p.load(Ordering::Relaxed)).sum();
                if done != ios {
                    (ios, moved) = (done, time);
                }
                let stopped = jobs.control.stopped.load(Ordering::Relaxed);
                let patience = if stopped { STOP_LIMIT } else { config.no_path_timeout.saturating_add(DRAIN_LIMIT) };
                match given_up {
                    Some(since) => anyhow::ensure!(
                        time.since(since) < TELL_LIMIT,
                        "a reactor does not answer: its job did not tell what it measured within {TELL_LIMIT:?}"
                    ),
                    None if time < jobs.control.end().max(moved).after(patience) => {}
                    None => {
                        tracing::warn!(disk = disk.device.name(), ?patience, "requests did not come back");
                        jobs.control.give_up();
                        jobs.hosts.iter().for_each(|host| host.wake());
                        given_up = Some(time);
                    }
                }
                progress(&Progress {
                    elapsed: time.since(times.start),
                    total: jobs.control.end().since(times.start),
                    ios,
                    paths: disk.path_counters.iter().map(|w| (w.name().to_owned(), w.live())).collect(),
                });
            }
        }
    }
    Ok(results)
}
