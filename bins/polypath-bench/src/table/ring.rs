//! What was found of rings.

use super::{core_taken, cost, latency, lines, new, quiet, whole};
use polypath_bench::ring::{RingRatioReport, RingReport};

/// What `limit --ring` or `drive` found.
pub(crate) fn ring(r: &RingReport) -> String {
    let mut table =
        new(&["", "IOPS", "undisturbed", "a time", "mean us", "p50", "p90", "p99", "p99.9", "p99.99", "max"]);
    let mut row = vec![r.mode.clone(), whole(r.iops), whole(r.iops_quiet), format!("{:.1}", r.batch)];
    row.extend(latency(&r.lat_us));
    table.add_row(row);
    let cores: Vec<_> = r.cpus.iter().map(ToString::to_string).collect();
    let taken: Vec<_> = r.core_taken_pct.iter().map(|pct| format!("{pct} %")).collect();
    let medium = r.medium.map(|medium| format!(" on {}", medium.as_str())).unwrap_or_default();
    let mut text = vec![
        format!(
            "split ring of {} against {}{medium}, 4 KiB random reads, QD {}, {}{}, polling on core {}",
            r.ring_size,
            r.back_end,
            r.qd,
            chains(r.indirect),
            renewed(r.renew),
            cores.join(" and ")
        ),
        table.to_string(),
        format!(
            "others took the cores {} of the time{}",
            taken.join(" (front-end) and ") + if taken.len() > 1 { " (back-end)" } else { " (front-end)" },
            quiet(r.core_taken_pct.iter().copied().fold(0.0, f64::max))
        ),
    ];
    if !r.is_good() {
        text.push(format!("{} requests failed, {} never came back", r.errors, r.unanswered));
    }
    lines(&text)
}

/// What `ratio --ring` found.
pub(crate) fn ring_ratio(r: &RingRatioReport) -> String {
    let disk = if r.group { "a group of one path" } else { "the disk as it is" };
    let mut text = vec![format!(
        "vhost-user-blk on {} ({disk}) against the limit of a split ring, 4 KiB random reads, {}{}, polling on cores {} and {}, medians of turns of {} s",
        r.medium.as_str(),
        chains(r.indirect),
        renewed(r.renew),
        r.cpus[0],
        r.cpus[1],
        r.seconds
    )];
    let mut header = vec!["QD", "turns", "limit IOPS", "run IOPS", "ratio", "paired", "undisturbed", "goal"];
    header.extend(["limit p50 us", "run p50 us", "errors"]);
    if r.peer.is_some() {
        header.extend(["peer IOPS", "run / peer", "undisturbed"]);
    }
    let mut table = new(&header);
    for c in &r.cases {
        let mut row = vec![
            c.qd.to_string(),
            c.pairs.len().to_string(),
            whole(c.limit_iops),
            whole(c.run_iops),
            format!("{:.3}", c.iops_ratio),
            format!("{:.3}", c.iops_ratio_paired),
            format!("{:.0} / {:.0} = {:.3}", c.run_iops_quiet, c.limit_iops_quiet, c.iops_quiet_ratio),
            format!("{} {}", r.goal, if c.iops_quiet_ratio >= r.goal { "reached" } else { "missed" }),
            format!("{:.2}", c.limit_p50_us),
            format!("{:.2}", c.run_p50_us),
            c.errors.to_string(),
        ];
        if let (Some(peer), Some(paired), Some(quiet)) = (c.peer_iops, c.over_peer_paired, c.over_peer_quiet) {
            row.extend([whole(peer), format!("{paired:.3}"), format!("{quiet:.3}")]);
        }
        table.add_row(row);
    }
    text.push(table.to_string());
    let taken = r.cases.iter().flat_map(|c| &c.pairs).map(|p| p.core_taken_pct);
    text.push(core_taken("front-end's", taken, "turn"));
    text.extend(r.peer.iter().map(|peer| format!("peer: {peer}")));
    let counts = r.cost.iter().map(|c| {
        let counts = [c.run_syscalls_per_io, c.run_instructions_per_io, c.limit_instructions_per_io];
        (c.qd, counts, &c.missing[..])
    });
    text.extend(cost(&["per request, QD", "run system calls", "run instructions", "limit's"], counts));
    lines(&text)
}

fn chains(indirect: bool) -> &'static str {
    if indirect { "indirect tables" } else { "chains of three" }
}

fn renewed(renew: bool) -> &'static str {
    if renew { " written anew each time" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_bench::ring::{self, Medium, RingCost, RingLimitConfig, RingRatioReport, Style};
    use std::time::Duration;

    fn report() -> RingReport {
        let (time, style) = (Duration::from_millis(20), Style { indirect: true, renew: true });
        let config = RingLimitConfig { qd: 4, time, ramp: Duration::ZERO, cpus: None, medium: Medium::Ram, style };
        ring::limit(&config).unwrap()
    }

    #[test]
    fn a_limit_says_of_what_and_what_went_wrong() {
        let mut report = report();
        let text = ring(&report);
        for word in ["split ring of 4", "bare back-end on ram", "QD 4, indirect tables written anew", "(front-end)"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains("failed"), "{text}");
        (report.errors, report.unanswered) = (3, 4);
        report.core_taken_pct = vec![0.5, 12.5];
        let text = ring(&report);
        assert!(text.contains("3 requests failed, 4 never came back\n"), "{text}");
        assert!(text.contains("0.5 % (front-end) and 12.5 % (back-end) of the time: a quiet machine"), "{text}");
    }

    #[test]
    fn a_ratio_says_whether_the_goal_is_reached() {
        let pair = |run: f64| ring::RingPair {
            limit_iops: 100.0,
            run_iops: run,
            limit_iops_quiet: 200.0,
            run_iops_quiet: 2.0 * run,
            limit_p50_us: 1.0,
            run_p50_us: 2.0,
            peer_iops: Some(50.0),
            peer_iops_quiet: Some(100.0),
            core_taken_pct: [0.0, 0.0],
        };
        let cases = vec![
            ring::RingCase::new(1, vec![pair(80.0), pair(79.0), pair(90.0)], 0),
            ring::RingCase::new(32, vec![pair(79.0); 3], 7),
        ];
        assert_eq!((cases[0].iops_ratio, cases[0].iops_quiet_ratio, cases[0].over_peer_quiet), (0.8, 0.8, Some(1.6)));
        let mut report = RingRatioReport {
            mode: "ring-ratio",
            medium: Medium::Null,
            group: true,
            indirect: false,
            renew: false,
            cpus: [0, 1],
            seconds: 1.0,
            goal: ring::GOAL,
            peer: Some("their.sock".into()),
            cases,
            cost: vec![RingCost { qd: 1, missing: vec!["perf: gone".into()], ..RingCost::default() }],
        };
        let text = ring_ratio(&report);
        let rows: Vec<_> = text.lines().filter(|line| line.contains("0.8 ")).collect();
        assert!(rows[0].contains("0.8 reached") && rows[1].contains("0.8 missed"), "{text}");
        for word in ["peer: their.sock", "not counted: perf: gone", "a group of one path", "1.600", " 7 "] {
            assert!(text.contains(word), "{word}: {text}");
        }
        report.peer = None;
        report.cases.iter_mut().for_each(|case| case.peer_iops = None);
        assert!(!ring_ratio(&report).contains("peer"));
    }
}
