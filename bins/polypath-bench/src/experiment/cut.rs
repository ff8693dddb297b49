//! (b) Throughput over time while a path is cut and comes back: one path beside four, cut by closing and cut in silence.

use super::Part;
use super::load::{ALIKE, Bench, Cut, LINKS, mb_s};
use super::outcome::{Grid, Line, Outcome, Picture};
use crate::run::{Mix, Progress, RunConfig, RunReport};
use polypath_multipath::SelectorKind;
use std::time::Duration;

/// Of the usual time, so often: before the cut, without the path, and after it has come back.
const TIMES: u32 = 4;
/// The path is cut after this part of the time, and comes back after that one.
const CUT: (f64, f64) = (0.25, 0.5);

/// A case, and what was found.
struct Case {
    name: String,
    how: Cut,
    line: Line,
    report: RunReport,
}

pub(super) fn measure(bench: &mut Bench, tell: &mut impl FnMut(&str)) -> anyhow::Result<Outcome> {
    bench.limit(ALIKE)?;
    let time = bench.time * TIMES;
    let mut cases = Vec::new();
    for (how, manner) in [(Cut::Closed, "closed"), (Cut::Silent, "silent")] {
        for (paths, name) in [(1, "one path"), (LINKS, "four paths")] {
            let name = format!("{name}, {manner}");
            let (report, points) = one(bench, paths, how, time)?;
            tell(&format!(
                "{name}: longest time without an answer {:.0} ms, {} failed, {} blocks wrong",
                report.longest_gap_ms,
                report.errors + report.unanswered,
                report.verify_errors
            ));
            cases.push(Case { line: Line { name: name.clone(), points }, name, how, report });
        }
    }
    Ok(conclude(bench, time, cases))
}

/// One run with its cut.
fn one(bench: &mut Bench, paths: usize, how: Cut, time: Duration) -> anyhow::Result<(RunReport, Vec<(f64, f64)>)> {
    let config =
        RunConfig { mix: Mix::Verify, time, ramp: Duration::ZERO, ..bench.reads(paths, SelectorKind::default()) };
    let (mut points, mut before) = (Vec::new(), (0.0, 0));
    let mut done: [Option<anyhow::Result<()>>; 2] = [None, None];
    let outcome = bench.run(&config, |bench, now: &Progress| {
        let at = now.elapsed.as_secs_f64();
        let part = at / time.as_secs_f64();
        if part < 1.0 {
            points.push((at, mb_s(now.ios.saturating_sub(before.1) as f64, at - before.0)));
            before = (at, now.ios);
        }
        if part >= CUT.0 && done[0].is_none() {
            done[0] = Some(bench.cut(0, how));
        }
        if part >= CUT.1 && done[1].is_none() {
            done[1] = Some(bench.restore(0, how));
        }
    });
    if done[1].is_none() && done[0].is_some() {
        // The run ended early: the next one is to find its path.
        bench.restore(0, how)?;
    }
    for done in done {
        done.unwrap_or(Ok(()))?;
    }
    Ok((outcome?, points))
}

fn conclude(bench: &Bench, time: Duration, cases: Vec<Case>) -> Outcome {
    let seconds = time.as_secs_f64();
    let marks = vec![(seconds * CUT.0, "a path is cut".to_owned()), (seconds * CUT.1, "it may come back".to_owned())];
    let lines = cases.iter().map(|case| case.line.clone()).collect();
    let picture = Picture::Lines { axes: ["seconds", "MB/s"], logarithmic: false, lines, marks };
    let title = "Verified reads and writes over paths of 10 MB/s while one is cut";
    let mut outcome = Outcome::new(Part::B, bench.protocol, title, picture);
    outcome.figures = Grid::new(&["case", "at_s", "mb_s"]);
    outcome.table =
        Grid::new(&["case", "MB/s before", "without the path", "after", "longest gap ms", "failed", "wrong blocks"]);
    for case in &cases {
        for (at, rate) in &case.line.points {
            outcome.figures.rows.push(vec![case.name.clone(), format!("{at:.3}"), format!("{rate:.3}")]);
        }
        let report = &case.report;
        let failed = report.errors + report.unanswered;
        let of = |from: f64, to: f64| mean(&case.line.points, from * seconds, to * seconds);
        outcome.table.rows.push(vec![
            case.name.clone(),
            format!("{:.2}", of(0.05, CUT.0)),
            format!("{:.2}", of(CUT.0, CUT.1)),
            format!("{:.2}", of(CUT.1, 1.0)),
            format!("{:.0}", report.longest_gap_ms),
            failed.to_string(),
            report.verify_errors.to_string(),
        ]);
        outcome.failed += failed + report.verify_errors;
    }
    let silent = cases.iter().any(|case| case.how == Cut::Silent);
    outcome.remarks.push(
        "reads are 70 % of the requests and the links are limited for them alone, so that rates are above the limits"
            .into(),
    );
    if silent {
        outcome
            .remarks
            .push("a path that is silent is left when its answers are missing for `silence_timeout_ms`".into());
    }
    outcome
}

/// The mean of what was measured between two moments.
fn mean(points: &[(f64, f64)], from: f64, to: f64) -> f64 {
    let within: Vec<f64> = points.iter().filter(|p| p.0 > from && p.0 <= to).map(|p| p.1).collect();
    within.iter().sum::<f64>() / within.len().max(1) as f64
}
