//! Reports for people.

use comfy_table::{CellAlignment, Table, presets};
use polypath_bench::latency::LatencyUs;
use polypath_bench::limit::LimitReport;
use polypath_bench::ratio::RatioReport;
use polypath_bench::run::{Progress, RunReport};
use std::io::{IsTerminal as _, Write as _};

/// Prints what `limit` found.
pub(crate) fn limit(r: &LimitReport) {
    let copy = if r.copy { "copied once by the client" } else { "left where they were received" };
    println!(
        "loopback TCP, 72 B out, 4120 B back, QD {}, idle mode {}, cores {} and {}, blocks {copy}",
        r.qd, r.idle, r.cpus[0], r.cpus[1]
    );
    let mut table = new(&["", "IOPS", "MiB/s", "mean us", "p50", "p90", "p99", "p99.9", "p99.99", "max"]);
    let mut row = vec!["limit".into(), whole(r.iops), whole(r.mib_s)];
    row.extend(latency(&r.lat_us));
    table.add_row(row);
    println!("{table}");
    println!(
        "CPU {:.3} us per I/O; system calls per I/O: client {}, server {}",
        r.cpu_us_per_io, r.syscalls_per_io, r.server_syscalls_per_io
    );
    if r.core_taken_pct.iter().any(|&p| p > 2.0) {
        println!(
            "others took the cores {} % (client) and {} % (server) of the time: a quiet machine does more",
            r.core_taken_pct[0], r.core_taken_pct[1]
        );
    }
}

/// Prints what `run` found.
pub(crate) fn run(r: &RunReport) {
    println!(
        "{} {} B, QD {} x {} job(s), idle mode {}, seed {}, {} s measured",
        r.rw, r.bs, r.qd, r.jobs, r.idle, r.seed, r.seconds
    );
    let why = r.buffers.reason.as_ref().map(|w| format!(": {w}")).unwrap_or_default();
    println!("buffers in {} pages{why}", r.buffers.pages);
    let mut table =
        new(&["path", "IOPS", "MiB/s", "mean us", "p50", "p90", "p99", "p99.9", "p99.99", "max", "errors", "gap ms"]);
    if r.selector.is_some() {
        for p in &r.paths {
            let mut row = vec![p.name.clone(), whole(p.iops), whole(p.mib_s)];
            row.extend(latency(&p.lat_us));
            row.extend([p.errors.to_string(), format!("{:.1}", p.longest_gap_ms)]);
            table.add_row(row);
        }
    }
    let name = r.selector.map_or_else(|| r.disk.clone(), |s| format!("the disk ({s})"));
    let mut row = vec![name, whole(r.iops), whole(r.mib_s)];
    row.extend(latency(&r.lat_us));
    row.extend([r.errors.to_string(), format!("{:.1}", r.longest_gap_ms)]);
    table.add_row(row);
    println!("{table}");
    println!("CPU {:.3} us per I/O; {} reads, {} writes", r.cpu_us_per_io, r.reads, r.writes);
    if let Some(v) = &r.verify {
        println!(
            "verified: {} errors in {} blocks read ({} of unknown content), {} writes, {} blocks swept at the end",
            r.verify_errors, v.blocks, v.blocks_unknown, v.writes, v.swept
        );
        for (n, what) in [(v.torn, "torn blocks tolerated"), (v.untracked, "blocks given up for want of room")] {
            if n > 0 {
                println!("  {n} {what}");
            }
        }
    }
    for sample in r.error_samples.iter().chain(&r.verify_error_samples) {
        println!("  {sample}");
    }
    if let Some(verdict) = r.verdict.as_ref().filter(|_| r.verify_errors > 0) {
        println!("  {verdict}");
    }
}

/// Prints what `ratio` found.
pub(crate) fn ratio(r: &RatioReport) {
    println!(
        "{} against the limit, 4 KiB random reads, idle mode {}, cores {} and {}, medians of pairs of {} s",
        r.disk, r.idle, r.cpus[0], r.cpus[1], r.seconds
    );
    let mut table = new(&[
        "QD",
        "pairs",
        "limit IOPS",
        "run IOPS",
        "ratio",
        "paired",
        "undisturbed",
        "limit p50 us",
        "run p50 us",
        "ratio",
        "limit mean us",
        "run mean us",
        "ratio",
        "errors",
    ]);
    for c in &r.cases {
        table.add_row(vec![
            c.qd.to_string(),
            c.pairs.len().to_string(),
            whole(c.limit_iops),
            whole(c.run_iops),
            format!("{:.3}", c.iops_ratio),
            format!("{:.3}", c.iops_ratio_paired),
            format!("{:.0} / {:.0} = {:.3}", c.run_iops_quiet, c.limit_iops_quiet, c.iops_quiet_ratio),
            format!("{:.2}", c.limit_p50_us),
            format!("{:.2}", c.run_p50_us),
            format!("{:.3}", c.p50_ratio),
            format!("{:.2}", c.limit_mean_us),
            format!("{:.2}", c.run_mean_us),
            format!("{:.3}", c.mean_ratio),
            c.errors.to_string(),
        ]);
    }
    println!("{table}");
    if r.cost.is_empty() {
        return;
    }
    let known = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), |v| format!("{v}"));
    let mut table = new(&["per I/O, QD", "run system calls", "limit's", "run instructions", "limit's"]);
    for c in &r.cost {
        table.add_row(vec![
            c.qd.to_string(),
            known(c.run_syscalls_per_io),
            known(c.limit_syscalls_per_io),
            known(c.run_instructions_per_io),
            known(c.limit_instructions_per_io),
        ]);
    }
    println!("{table}");
    r.cost.iter().flat_map(|c| &c.missing).for_each(|m| println!("not counted: {m}"));
}

/// The line that changes while a run goes on.
#[derive(Debug)]
pub(crate) struct Line {
    shown: bool,
    terminal: bool,
    last: Option<Progress>,
}

impl Line {
    /// Shown on a terminal, or wherever standard error goes if `always`.
    pub(crate) fn new(always: bool) -> Line {
        let terminal = std::io::stderr().is_terminal();
        Line { shown: terminal || always, terminal, last: None }
    }

    /// Shows how far it has come.
    pub(crate) fn show(&mut self, now: &Progress) {
        if !self.shown {
            return;
        }
        let (ios, elapsed, paths) = match &self.last {
            Some(l) => (l.ios, l.elapsed, l.paths.clone()),
            None => (0, std::time::Duration::ZERO, Vec::new()),
        };
        let seconds = now.elapsed.saturating_sub(elapsed).as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| whole(now.saturating_sub(then) as f64 / seconds);
        let mut text = format!(
            "{:6.1} s of {:.1}: {} IOPS",
            now.elapsed.as_secs_f64(),
            now.total.as_secs_f64(),
            rate(now.ios, ios)
        );
        for (at, (_, n)) in now.paths.iter().enumerate() {
            text += &format!("  #{at} {}", rate(*n, paths.get(at).map_or(0, |p| p.1)));
        }
        let (before, after) = if self.terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // A terminal that has gone away is no reason to stop measuring.
        let _ = write!(std::io::stderr(), "{before}{text}{after}");
        self.last = Some(now.clone());
    }

    /// Takes it off the terminal.
    pub(crate) fn clear(&self) {
        if self.terminal && self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn latency(l: &LatencyUs) -> Vec<String> {
    [l.mean, l.p50, l.p90, l.p99, l.p99_9, l.p99_99, l.max].iter().map(|x| format!("{x:.1}")).collect()
}

fn whole(x: f64) -> String {
    format!("{x:.0}")
}
