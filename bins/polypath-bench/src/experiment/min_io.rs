//! (e) How many requests round-robin should give a path before the next has its turn.

use super::Part;
use super::load::{ALIKE, Bench, LINKS, MB, UNLIKE, mb_s};
use super::outcome::{Grid, Line, Outcome, Picture};
use polypath_multipath::SelectorKind;

/// The greatest number of requests that is tried; powers of two up to it are.
const MOST: u32 = 1024;

pub(super) fn measure(bench: &mut Bench, tell: &mut impl FnMut(&str)) -> anyhow::Result<Outcome> {
    let mut lines = Vec::new();
    let mut rows = Vec::new();
    let mut failed = 0;
    for (name, limits) in [("10 10 10 10", ALIKE), ("1 1 100 100", UNLIKE)] {
        bench.limit(limits)?;
        let sum = (limits.iter().sum::<u64>() / MB) as f64;
        let mut points = Vec::new();
        for min_io in (0..).map(|n| 1 << n).take_while(|&n| n <= MOST) {
            let config = bench.reads(LINKS, SelectorKind::RoundRobin { min_io });
            let report = bench.run(&config, |_, _| {})?;
            let rate = mb_s(report.iops, 1.0);
            failed += report.errors + report.unanswered;
            points.push((f64::from(min_io), rate));
            rows.push(vec![
                name.to_owned(),
                min_io.to_string(),
                format!("{rate:.2}"),
                format!("{:.3}", rate / sum),
                format!("{:.0}", report.lat_us.p50),
                format!("{:.0}", report.lat_us.p99),
            ]);
        }
        let best = points.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap_or_default();
        tell(&format!("paths of {name} MB/s: best with min_io {}, {:.1} MB/s of {sum}", best.0, best.1));
        lines.push(Line { name: format!("{name} MB/s"), points });
    }
    let picture = Picture::Lines { axes: ["min_io", "MB/s"], logarithmic: true, lines, marks: Vec::new() };
    let title = "Round-robin: requests on a path before the next has its turn";
    let mut outcome = Outcome::new(Part::E, bench.protocol, title, picture);
    outcome.figures = Grid { rows, ..Grid::new(&["paths_mb_s", "min_io", "mb_s", "of_sum", "p50_us", "p99_us"]) };
    outcome.table = outcome.figures.clone();
    outcome.failed = failed;
    Ok(outcome)
}
