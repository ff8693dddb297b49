//! What happens, and when: a path is silently dropped, another is reset, both come back.

use super::Args;
use super::report::{Incident, Mark, PathReport, Report, Sample};
use super::world::{PathAction, World};
use anyhow::{Result, anyhow};
use polypath::block::Proof;
use polypath::multipath::{Event, EventKind};
use polypath_bench::output;
use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Length of an ordinary stretch of load.
const STRETCH: Duration = Duration::from_millis(2000);
/// Time between two samples of throughput.
const TICK: Duration = Duration::from_millis(100);
/// Longest wait for a path to be left.
const DETECTION_LIMIT: Duration = Duration::from_secs(15);
/// Longest wait for a path to come back, its fence included.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// Plays it once.
pub(super) fn play(args: &Args, read_percent: u32, seed: u64) -> Result<Report> {
    let mut world = World::build(args)?;
    world.start_guest(args, read_percent, seed)?;
    let mut show = Show::new(&world, args.json);
    show.mark("load begins")?;
    show.run_for(STRETCH);
    let before = world.seen.take().0;
    let (dropped, reset) = (1usize, 2usize);
    let silent_drop = show.incident(&Fault {
        index: dropped,
        what: "silently dropped",
        begin: PathAction::Drop,
        end: PathAction::Restore,
    })?;
    show.run_for(STRETCH);
    let between = world.seen.take().0;
    let reset =
        show.incident(&Fault { index: reset, what: "reset", begin: PathAction::Reset, end: PathAction::Reopen })?;
    show.run_for(STRETCH);
    show.mark("load ends")?;
    let seconds = show.start.elapsed().as_secs_f64();
    let (timeline, marks) = (std::mem::take(&mut show.samples), std::mem::take(&mut show.marks));
    show.end_line();
    let after = world.seen.take().0;
    world.stop_guest(RECOVERY_LIMIT)?;
    let paths: Vec<_> = world.group.statistics().iter().map(path_report).collect();
    let seen = world.seen.clone();
    world.end()?;
    let ios = seen.ios.load(Ordering::Relaxed);
    let gaps = [before, silent_drop.longest_gap_ms, between, reset.longest_gap_ms, after];
    Ok(Report {
        ios,
        io_errors: seen.io_errors.load(Ordering::Relaxed),
        verify_errors: seen.verify_errors.load(Ordering::Relaxed),
        failovers: paths.iter().map(|p| p.failures).sum(),
        recoveries: paths.iter().map(|p| p.recoveries).sum(),
        longest_gap_ms: gaps.into_iter().fold(0.0, f64::max),
        silent_drop,
        reset,
        paths,
        iops: ios as f64 / seconds,
        seconds,
        rw: args.rw.clone(),
        qd: args.qd,
        selector: args.selector.to_string(),
        seed,
        first_verify_error: seen.first_error.lock().unwrap_or_else(|p| p.into_inner()).clone(),
        timeline,
        marks,
        svg: None,
    })
}

struct Fault {
    index: usize,
    what: &'static str,
    begin: PathAction,
    end: PathAction,
}

/// Samples, marks, events: what is shown while it happens.
struct Show<'a> {
    world: &'a World,
    start: Instant,
    last: Instant,
    bytes: Vec<u64>,
    samples: Vec<Sample>,
    marks: Vec<Mark>,
    quiet: bool,
    tty: bool,
}

impl<'a> Show<'a> {
    fn new(world: &'a World, quiet: bool) -> Self {
        let now = Instant::now();
        let bytes = world.group.statistics().iter().map(|p| p.bytes).collect();
        let tty = std::io::stdout().is_terminal();
        Show { world, start: now, last: now, bytes, samples: Vec::new(), marks: Vec::new(), quiet, tty }
    }

    /// Notes what happens, and tells it.
    fn mark(&mut self, text: impl Into<String>) -> Result<()> {
        let mark = Mark { at_s: self.start.elapsed().as_secs_f64(), text: text.into() };
        if !self.quiet {
            self.end_line();
            output::line(format_args!("{:7.3} s  {}", mark.at_s, mark.text))?;
        }
        self.marks.push(mark);
        Ok(())
    }

    fn end_line(&self) {
        if !self.quiet && self.tty {
            // A terminal that has gone away is no reason to stop.
            let _ = write!(std::io::stdout(), "\r\x1b[K");
        }
    }

    /// Samples until the next tick is due; waits for it.
    fn tick(&mut self) {
        std::thread::sleep(TICK.saturating_sub(self.last.elapsed()));
        let now = Instant::now();
        let span = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        let all = self.world.group.statistics();
        let mut mib_s = Vec::new();
        for (path, before) in all.iter().zip(self.bytes.iter_mut()) {
            mib_s.push((path.bytes - *before) as f64 / span / f64::from(1 << 20));
            *before = path.bytes;
        }
        if !self.quiet && self.tty {
            let line: Vec<_> = all
                .iter()
                .zip(&mib_s)
                .map(|(p, m)| format!("{} {:<8} {m:6.0} MiB/s", p.name, p.state.to_string()))
                .collect();
            let (mut out, seconds) = (std::io::stdout(), self.start.elapsed().as_secs_f64());
            let _ = write!(out, "\r\x1b[K{seconds:7.1} s  {}", line.join("  ")).and_then(|()| out.flush());
        }
        self.samples.push(Sample { at_s: self.start.elapsed().as_secs_f64(), mib_s });
    }

    fn run_for(&mut self, span: Duration) {
        let start = Instant::now();
        while start.elapsed() < span {
            self.tick();
        }
    }

    /// Loses a path, waits until it was noticed and fenced, brings it back, waits until it carries I/O.
    fn incident(&mut self, fault: &Fault) -> Result<Incident> {
        let name = self.world.group.statistics()[fault.index].name.clone();
        while self.world.events.try_next().is_some() {}
        self.world.seen.take();
        let begin = polypath::reactor::now();
        self.world.fault(fault.begin, fault.index)?;
        self.mark(format!("{name} is {}", fault.what))?;
        let mut incident = Incident { what: format!("{name} {}", fault.what), ..Incident::default() };
        let mut seen = Events { name: &name, down: None, last_fenced: None, up: None };
        self.until(DETECTION_LIMIT, &mut seen, &mut incident, |s| s.down.is_some())
            .map_err(|_| anyhow!("{name} was {} and not left within {DETECTION_LIMIT:?}", fault.what))?;
        let down = seen.down.unwrap_or(begin);
        incident.detection_ms = Some(down.since(begin).as_secs_f64() * 1e3);
        self.mark(format!("{name} left after {:.0} ms", down.since(begin).as_secs_f64() * 1e3))?;
        self.run_for(STRETCH);
        self.world.fault(fault.end, fault.index)?;
        let back = polypath::reactor::now();
        self.mark(format!("{name} is there again"))?;
        self.until(RECOVERY_LIMIT, &mut seen, &mut incident, |s| s.up.is_some())
            .map_err(|_| anyhow!("{name} did not carry I/O again within {RECOVERY_LIMIT:?}"))?;
        let up = seen.up.unwrap_or(back);
        incident.recovery_ms = Some(up.since(back).as_secs_f64() * 1e3);
        self.mark(format!("{name} carries I/O again"))?;
        // Changes of the lost path may still wait for their fence when the path itself is back.
        let wait = Instant::now();
        while self.world.group.statistics()[fault.index].suspects > 0 && wait.elapsed() < RECOVERY_LIMIT {
            self.tick();
            seen.read(self.world, &mut incident);
        }
        self.tick();
        seen.read(self.world, &mut incident);
        incident.fence_ms = seen.last_fenced.map(|at| at.since(down).as_secs_f64() * 1e3);
        (incident.longest_gap_ms, incident.write_latency_max_ms) = self.world.seen.take();
        if let (Some(ms), Some(proof)) = (incident.fence_ms, &incident.proof) {
            let text = format!("{} changes of {name} sent again after {ms:.0} ms: {proof}", incident.redriven_changes);
            self.mark(text)?;
        }
        Ok(incident)
    }

    fn until(
        &mut self,
        limit: Duration,
        seen: &mut Events<'_>,
        incident: &mut Incident,
        over: impl Fn(&Events<'_>) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            seen.read(self.world, incident);
            if over(seen) {
                return Ok(());
            }
            if start.elapsed() > limit {
                return Err(anyhow!("time is up"));
            }
            self.tick();
        }
    }
}

/// Events of the path that was lost.
struct Events<'a> {
    name: &'a str,
    down: Option<polypath::block::Time>,
    last_fenced: Option<polypath::block::Time>,
    up: Option<polypath::block::Time>,
}

impl Events<'_> {
    fn read(&mut self, world: &World, incident: &mut Incident) {
        while let Some(Event { at, path, kind }) = world.events.try_next() {
            if path.as_ref().is_none_or(|(_, name)| **name != *self.name) {
                continue;
            }
            match kind {
                EventKind::PathDown { .. } => {
                    self.down.get_or_insert(at);
                }
                EventKind::PathUp { .. } if self.down.is_some() => self.up = Some(at),
                EventKind::Redriven { count, changes, proof } => {
                    incident.redriven += count;
                    incident.redriven_changes += changes;
                    // Changes that never left, or that were answered, need no fence.
                    if changes > 0 && matches!(proof, Proof::KeepAliveBound { .. } | Proof::ConfiguredBound { .. }) {
                        self.last_fenced = Some(at);
                        incident.proof = Some(proof.to_string());
                    }
                }
                _ => {}
            }
        }
    }
}

fn path_report(p: &polypath::multipath::PathStatistics) -> PathReport {
    PathReport {
        name: p.name.clone(),
        state: p.state.to_string(),
        ios: p.ios,
        mib: p.bytes as f64 / f64::from(1 << 20),
        errors: p.errors,
        redriven: p.redriven,
        failures: p.failures,
        recoveries: p.recoveries,
        mean_latency_us: p.latency.as_secs_f64() * 1e6,
    }
}
