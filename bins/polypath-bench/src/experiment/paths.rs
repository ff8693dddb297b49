//! (a) Four paths of 10 MB/s against fewer.

use super::Part;
use super::load::{ALIKE, Bench, LINKS, MB, mb_s};
use super::outcome::{Goal, Grid, Outcome, Picture};
use polypath_multipath::SelectorKind;

/// What four limited paths are to carry, times one.
const GOAL: f64 = 3.9;

pub(super) fn measure(bench: &mut Bench, tell: &mut impl FnMut(&str)) -> anyhow::Result<Outcome> {
    bench.limit(ALIKE)?;
    let mut found = Vec::new();
    let mut failed = 0;
    for paths in 1..=LINKS {
        let report = bench.run(&bench.reads(paths, SelectorKind::default()), |_, _| {})?;
        let rate = mb_s(report.iops, 1.0);
        tell(&format!("{paths} paths of 10 MB/s: {rate:.2} MB/s"));
        failed += report.errors + report.unanswered;
        found.push((paths, rate, report.lat_us.p50, report.lat_us.p99));
    }
    let one = found[0].1;
    let bars = found.iter().map(|&(paths, rate, ..)| (format!("{paths}"), rate)).collect();
    let limit = (ALIKE.iter().sum::<u64>() / MB) as f64;
    let picture = Picture::Bars { unit: "MB/s by number of paths", bars, limit };
    let mut outcome = Outcome::new(Part::A, bench.protocol, "Paths of 10 MB/s, one to four of them", picture);
    outcome.figures = Grid::new(&["paths", "mb_s", "times_one", "p50_us", "p99_us"]);
    for (paths, rate, p50, p99) in found {
        let times = rate / one;
        outcome.figures.rows.push(vec![
            paths.to_string(),
            format!("{rate:.3}"),
            format!("{times:.3}"),
            format!("{p50:.0}"),
            format!("{p99:.0}"),
        ]);
        if paths == LINKS {
            outcome.goals.push(Goal { what: "four paths, times one".into(), goal: GOAL, reached: times });
        }
    }
    outcome.table = outcome.figures.clone();
    outcome.failed = failed;
    Ok(outcome)
}
