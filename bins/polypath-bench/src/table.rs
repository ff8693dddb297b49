//! Reports for people.

mod ring;
mod scale;

pub(crate) use ring::{ring, ring_ratio};
pub(crate) use scale::scale;

use comfy_table::{CellAlignment, Table, presets};
use polypath_bench::latency::LatencyUs;
use polypath_bench::limit::LimitReport;
use polypath_bench::ratio::RatioReport;
use polypath_bench::run::{Progress, RunReport};
use std::io::{IsTerminal as _, Write as _};

/// What `limit` found.
pub(crate) fn limit(r: &LimitReport) -> String {
    let copy = if r.copy { "copied once by the client" } else { "left where they were received" };
    let mut table = new(&["", "IOPS", "MiB/s", "mean us", "p50", "p90", "p99", "p99.9", "p99.99", "max"]);
    let mut row = vec!["limit".into(), whole(r.iops), whole(r.mib_s)];
    row.extend(latency(&r.lat_us));
    table.add_row(row);
    let [client, server] = r.core_taken_pct;
    lines(&[
        format!(
            "loopback TCP, {} B out, {} B back ({}), QD {}, idle mode {}, cores {} and {}, blocks {copy}",
            r.protocol.read_request(),
            r.protocol.read_header() + 4096,
            r.protocol.as_str(),
            r.qd,
            r.idle,
            r.cpus[0],
            r.cpus[1]
        ),
        table.to_string(),
        format!(
            "CPU {:.3} us per I/O; system calls per I/O: client {}, server {}",
            r.cpu_us_per_io, r.syscalls_per_io, r.server_syscalls_per_io
        ),
        format!(
            "others took the cores {client} % (client) and {server} % (server) of the time{}",
            quiet(client.max(server))
        ),
    ])
}

/// What `run` found.
pub(crate) fn run(r: &RunReport) -> String {
    let why = r.buffers.reason.as_ref().map(|w| format!(": {w}")).unwrap_or_default();
    let mut text = vec![
        format!(
            "{} {} B, QD {} x {} job(s), idle mode {}, seed {}, {} s measured",
            r.rw, r.bs, r.qd, r.jobs, r.idle, r.seed, r.seconds
        ),
        format!("buffers in {} pages{why}", r.buffers.pages),
        run_table(r).to_string(),
        format!("CPU {:.3} us per I/O; {} reads, {} writes", r.cpu_us_per_io, r.reads, r.writes),
        format!("others took the cores {} % of the time{}", r.core_taken_pct, quiet(r.core_taken_pct)),
    ];
    if r.interrupted {
        text.insert(
            0,
            format!("INTERRUPTED after {} s of measuring: what follows is of the time until then", r.seconds),
        );
    }
    if let Some(v) = &r.verify {
        text.push(format!(
            "verified: {} errors in {} blocks read ({} of unknown content), {} writes, {} blocks swept at the end",
            r.verify_errors, v.blocks, v.blocks_unknown, v.writes, v.swept
        ));
        for (n, what) in [(v.torn, "torn blocks tolerated"), (v.untracked, "blocks given up for want of room")] {
            if n > 0 {
                text.push(format!("  {n} {what}"));
            }
        }
    }
    if r.unanswered > 0 {
        text.push(format!("{} requests never came back", r.unanswered));
    }
    if r.errors > 0 {
        let causes: Vec<_> = r.error_causes.iter().map(|(cause, n)| format!("{n} {cause}")).collect();
        text.push(format!("{} requests failed: {}", r.errors, causes.join(", ")));
    }
    text.extend(r.error_samples.iter().chain(&r.verify_error_samples).map(|sample| format!("  {sample}")));
    text.extend(r.verdict.iter().filter(|_| r.verify_errors > 0).map(|verdict| format!("  {verdict}")));
    lines(&text)
}

/// The paths if there are several, the disk, and its reads and writes apart if it did both.
fn run_table(r: &RunReport) -> Table {
    let mut table =
        new(&["path", "IOPS", "MiB/s", "mean us", "p50", "p90", "p99", "p99.9", "p99.99", "max", "errors", "gap ms"]);
    let mut add = |name: String, rates: [f64; 2], us: &LatencyUs, rest: [String; 2]| {
        let mut row = vec![name];
        row.extend(rates.map(whole));
        row.extend(latency(us));
        row.extend(rest);
        table.add_row(row);
    };
    let rest = |errors: u64, gap: f64| [errors.to_string(), format!("{gap:.1}")];
    if r.selector.is_some() {
        for p in &r.paths {
            add(p.name.clone(), [p.iops, p.mib_s], &p.lat_us, rest(p.errors, p.longest_gap_ms));
        }
    }
    let name = r.selector.map_or_else(|| r.disk.clone(), |s| format!("the disk ({s})"));
    add(name, [r.iops, r.mib_s], &r.lat_us, rest(r.errors, r.longest_gap_ms));
    if let (Some(reads), Some(writes)) = (&r.lat_read_us, &r.lat_write_us) {
        for (name, ios, us) in [("  reads", r.reads, reads), ("  writes", r.writes, writes)] {
            let part = ios as f64 / r.ios.max(1) as f64;
            add(name.into(), [r.iops * part, r.mib_s * part], us, Default::default());
        }
    }
    table
}

/// What `ratio` found.
pub(crate) fn ratio(r: &RatioReport) -> String {
    let mut text = vec![format!(
        "{} against the limit, 4 KiB random reads, idle mode {}, cores {} and {}, medians of pairs of {} s",
        r.disk, r.idle, r.cpus[0], r.cpus[1], r.seconds
    )];
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
    text.push(table.to_string());
    let taken = r.cases.iter().flat_map(|c| &c.pairs).map(|p| p.core_taken_pct);
    text.push(core_taken("initiator's", taken, "pair"));
    let counts = r.cost.iter().map(|c| {
        let (calls, instructions) = (c.run_syscalls_per_io, c.run_instructions_per_io);
        (c.qd, [calls, c.limit_syscalls_per_io, instructions, c.limit_instructions_per_io], &c.missing[..])
    });
    text.extend(cost(&["per I/O, QD", "run system calls", "limit's", "run instructions", "limit's"], counts));
    lines(&text)
}

/// What was counted at each depth, if anything was, under a `header` for the depth and each count; and what could not be.
fn cost<'a, const COUNTS: usize>(
    header: &[&str],
    depths: impl Iterator<Item = (u16, [Option<f64>; COUNTS], &'a [String])>,
) -> Vec<String> {
    let (mut rows, mut lacking) = (Vec::new(), Vec::new());
    for (qd, counts, missing) in depths {
        rows.push(std::iter::once(qd.to_string()).chain(counts.map(known)).collect::<Vec<_>>());
        lacking.extend(missing.iter().map(|what| format!("not counted: {what}")));
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let mut table = new(header);
    table.add_rows(rows);
    std::iter::once(table.to_string()).chain(lacking).collect()
}

/// How much of the core of `whose` thread others took while the limit was measured, and while the run was: at most, of any `of`.
fn core_taken(whose: &str, taken: impl Iterator<Item = [f64; 2]>, of: &str) -> String {
    let [limit, run] = taken.fold([0.0, 0.0], |[a, b], [c, d]| [f64::max(a, c), f64::max(b, d)]);
    let note = quiet(limit.max(run));
    format!("others took the {whose} core at most {limit} % (limit) and {run} % (run) of the time of any {of}{note}")
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

fn lines(text: &[String]) -> String {
    text.join("\n") + "\n"
}

/// What to think of a measurement during which others had the cores for `taken_pct` of the time.
fn quiet(taken_pct: f64) -> &'static str {
    if taken_pct > 2.0 { ": a quiet machine does more" } else { "" }
}

fn latency(l: &LatencyUs) -> Vec<String> {
    [l.mean, l.p50, l.p90, l.p99, l.p99_9, l.p99_99, l.max].iter().map(|x| format!("{x:.1}")).collect()
}

fn known(value: Option<f64>) -> String {
    value.map_or_else(|| "?".to_owned(), |v| format!("{v}"))
}

fn whole(x: f64) -> String {
    format!("{x:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_bench::run::{Mix, RunConfig};
    use std::time::Duration;

    fn report(mix: Mix) -> RunReport {
        let config = RunConfig {
            mix,
            time: Duration::from_millis(50),
            ramp: Duration::ZERO,
            ..RunConfig::new(vec!["null://1GiB".parse().unwrap()])
        };
        polypath_bench::run::run(&config, |_| ()).unwrap()
    }

    #[test]
    fn the_text_says_how_much_of_the_cores_others_took() {
        let mut report = report(Mix::RandRead);
        report.core_taken_pct = 0.125;
        assert!(run(&report).contains("others took the cores 0.125 % of the time\n"), "{}", run(&report));
        report.core_taken_pct = 12.5;
        assert!(run(&report).contains("12.5 % of the time: a quiet machine does more"), "{}", run(&report));
    }

    #[test]
    fn reads_and_writes_have_rows_of_their_own_if_there_are_both() {
        let (both, reads) = (run(&report(Mix::RandRw)), run(&report(Mix::RandRead)));
        let rows = |text: &str, name: &str| text.lines().filter(|l| l.starts_with(&format!("|   {name} "))).count();
        assert_eq!((rows(&both, "reads"), rows(&both, "writes")), (1, 1), "{both}");
        assert_eq!((rows(&reads, "reads"), rows(&reads, "writes")), (0, 0), "{reads}");
    }

    #[test]
    fn what_failed_for_what_and_an_early_end_are_told() {
        let mut report = report(Mix::RandRead);
        assert!(!run(&report).contains("INTERRUPTED") && !run(&report).contains("requests failed"));
        (report.interrupted, report.errors, report.unanswered) = (true, 3, 4);
        report.error_causes = [("path lost".to_owned(), 2), ("medium error".to_owned(), 1)].into();
        let text = run(&report);
        assert!(text.starts_with("INTERRUPTED after 0.05 s"), "{text}");
        assert!(text.contains("3 requests failed: 1 medium error, 2 path lost\n"), "{text}");
        assert!(text.contains("4 requests never came back\n"), "{text}");
    }
}
