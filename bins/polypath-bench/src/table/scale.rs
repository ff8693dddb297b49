//! What was found of growth.

use super::{known, lines, new, whole};
use polypath_bench::scale::{Busy, GrowthCase, ScaleReport};

/// What `scale` found.
pub(crate) fn scale(r: &ScaleReport) -> String {
    let mut text = vec![format!(
        "4 KiB random reads, reactors on cores {} and {} (guests and target on the first, the busy disk on the second), medians of turns of {} s",
        r.cpus[0], r.cpus[1], r.seconds
    )];
    if !r.reactors.is_empty() {
        text.push(reactors(r));
    }
    for (cases, title) in [(&r.disks, "disks of two paths, one busy"), (&r.paths, "paths of one disk")] {
        if !cases.is_empty() {
            text.push(format!("\n{title}:"));
            text.push(growth(cases));
        }
    }
    text.extend(slopes(r));
    for (goal, reached, what) in [
        (r.goals.reactors, r.goals.reactors_reached, "two reactors on null, times one"),
        (r.goals.busy, r.goals.busy_reached, "a busy disk beside others, of its speed alone"),
    ] {
        if let Some(reached) = reached {
            text.push(format!("goal {goal}, {what}: {}", if reached { "reached" } else { "missed" }));
        }
    }
    if r.errors() > 0 {
        text.push(format!("{} requests failed or never came back", r.errors()));
    }
    lines(&text)
}

fn reactors(r: &ScaleReport) -> String {
    let mut table = new(&["medium", "QD each", "one IOPS", "two IOPS", "paired", "undisturbed", "errors"]);
    for c in &r.reactors {
        table.add_row(vec![
            c.medium.as_str().to_owned(),
            c.qd.to_string(),
            whole(c.one_iops),
            whole(c.two_iops),
            format!("{:.3}", c.iops_ratio_paired),
            format!("{:.0} / {:.0} = {:.3}", c.two_iops_quiet, c.one_iops_quiet, c.iops_quiet_ratio),
            c.errors.to_string(),
        ]);
    }
    table.to_string()
}

fn growth(cases: &[GrowthCase]) -> String {
    let mut table = new(&[
        "medium",
        "disks",
        "paths",
        "QD",
        "base IOPS",
        "IOPS",
        "paired",
        "undisturbed",
        "p50 us",
        "own MiB",
        "after",
        "tables",
        "fds",
        "idle %",
        "live ms",
        "guests ms",
        "end ms",
    ]);
    for case in cases {
        let first =
            [case.medium.as_str().to_owned(), case.arrangement.disks.to_string(), case.arrangement.paths.to_string()];
        for (n, busy) in case.busy.iter().enumerate() {
            let mut row = first.to_vec();
            row.extend(speed(busy));
            row.extend(if n == 0 { cost(case) } else { Default::default() });
            table.add_row(row);
        }
    }
    table.to_string()
}

fn speed(b: &Busy) -> [String; 6] {
    [
        b.qd.to_string(),
        whole(b.base_iops),
        whole(b.iops),
        format!("{:.3}", b.iops_ratio_paired),
        format!("{:.0} / {:.0} = {:.3}", b.iops_quiet, b.base_iops_quiet, b.iops_quiet_ratio),
        format!("{:.1} ({:.1})", b.p50_us, b.base_p50_us),
    ]
}

fn cost(c: &GrowthCase) -> [String; 8] {
    let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
    [
        mib(c.memory.anon_kib),
        mib(c.memory_after.anon_kib),
        mib(c.memory.page_tables_kib),
        c.memory.descriptors.to_string(),
        format!("{:.2}", c.idle_cpu_pct),
        whole(c.live_ms),
        whole(c.connected_ms),
        whole(c.end_ms),
    ]
}

fn slopes(r: &ScaleReport) -> Vec<String> {
    let m = &r.memory;
    let mut text = Vec::new();
    if m.disk_kib.is_some() {
        text.push(format!(
            "\nKiB of {} disks each, over tcp: a disk {}, of which a path through a controller that is there {}, a ring of 1,024 {}",
            m.disks,
            known(m.disk_kib),
            known(m.path_kib),
            known(m.ring_kib)
        ));
    }
    if let Some(kib) = m.disk_among_most_kib {
        text.push(format!("a disk among the most: {kib} KiB"));
    }
    if let Some(kib) = m.controller_kib {
        text.push(format!("a path with a controller and connections of its own: {kib} KiB"));
    }
    text
}
