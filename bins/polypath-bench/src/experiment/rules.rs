//! (c) Every rule on paths of 1, 1, 100 and 100 MB/s.

use super::Part;
use super::load::{Bench, LINKS, MB, UNLIKE, mb_s};
use super::outcome::{Goal, Grid, Outcome, Picture};
use crate::run::{RunConfig, RunReport};
use polypath_multipath::SelectorKind;

/// What the two best rules are to reach, of the sum of what the paths may carry.
const GOAL: f64 = 0.9;
/// The rules that have this goal.
const HELD_TO_IT: [SelectorKind; 2] = [SelectorKind::QueueLength, SelectorKind::HistoricalServiceTime];

pub(super) fn measure(bench: &mut Bench, tell: &mut impl FnMut(&str)) -> anyhow::Result<Outcome> {
    bench.limit(UNLIKE)?;
    let sum = (UNLIKE.iter().sum::<u64>() / MB) as f64;
    let mut found = Vec::new();
    for (name, selector, config) in cases(bench) {
        let report = bench.run(&config, |_, _| {})?;
        tell(&format!("{name}: {:.1} MB/s of {sum}", mb_s(report.iops, 1.0)));
        found.push((name, selector, report));
    }
    let bars = found.iter().map(|(name, _, report)| (name.clone(), mb_s(report.iops, 1.0))).collect();
    let picture = Picture::Bars { unit: "MB/s", bars, limit: sum };
    let title = "Every rule on paths of 1, 1, 100 and 100 MB/s";
    let mut outcome = Outcome::new(Part::C, bench.protocol, title, picture);
    outcome.figures = Grid::new(&[
        "rule",
        "mb_s",
        "of_sum",
        "path1_mb_s",
        "path2_mb_s",
        "path3_mb_s",
        "path4_mb_s",
        "p50_us",
        "p99_us",
        "p99_9_us",
    ]);
    for (name, selector, report) in &found {
        outcome.figures.rows.push(row(name, report, sum));
        outcome.failed += report.errors + report.unanswered;
        if HELD_TO_IT.contains(selector) {
            let reached = mb_s(report.iops, 1.0) / sum;
            outcome.goals.push(Goal { what: format!("{name}, of the sum of the paths"), goal: GOAL, reached });
        }
    }
    outcome.table = outcome.figures.clone();
    outcome.remarks.push("\"weight\" gives all paths the same; \"weight 1:1:100:100\" what they can carry".into());
    Ok(outcome)
}

/// Every rule as it is, and those that know weights once more with the right ones.
fn cases(bench: &Bench) -> Vec<(String, SelectorKind, RunConfig)> {
    let mut cases = Vec::new();
    for selector in SelectorKind::ALL {
        cases.push((selector.as_str().to_owned(), selector, bench.reads(LINKS, selector)));
        if matches!(selector, SelectorKind::Weight | SelectorKind::ServiceTime) {
            let weights = UNLIKE.iter().map(|limit| (limit / MB) as u32).collect();
            let config = RunConfig { weights, ..bench.reads(LINKS, selector) };
            cases.push((format!("{} 1:1:100:100", selector.as_str()), selector, config));
        }
    }
    cases
}

fn row(name: &str, report: &RunReport, sum: f64) -> Vec<String> {
    let rate = mb_s(report.iops, 1.0);
    let mut row = vec![name.to_owned(), format!("{rate:.2}"), format!("{:.3}", rate / sum)];
    row.extend(report.paths.iter().map(|path| format!("{:.2}", mb_s(path.iops, 1.0))));
    let latency = &report.lat_us;
    row.extend([latency.p50, latency.p99, latency.p99_9].map(|us| format!("{us:.0}")));
    row
}
