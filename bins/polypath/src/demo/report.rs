//! What the demo measured, as an object, as a table, as words.

use comfy_table::{Table, presets};
use serde::Serialize;

/// Throughput of every path at a moment.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    /// Seconds since the load began.
    pub(super) at_s: f64,
    /// MiB/s per path since the sample before.
    pub(super) mib_s: Vec<f64>,
}

/// Something that was done, or noticed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Mark {
    /// Seconds since the load began.
    pub(super) at_s: f64,
    /// What.
    pub(super) text: String,
}

/// Numbers of one path.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PathReport {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) ios: u64,
    pub(super) mib: f64,
    pub(super) errors: u64,
    pub(super) redriven: u64,
    pub(super) failures: u64,
    pub(super) recoveries: u64,
    pub(super) mean_latency_us: f64,
}

/// What losing one path cost.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Incident {
    /// Which path, and how it was lost.
    pub(super) what: String,
    /// Longest time with I/O outstanding and none completed, over the whole device, from the fault to the recovery.
    pub(super) longest_gap_ms: f64,
    /// From the fault to the path being left.
    pub(super) detection_ms: Option<f64>,
    /// From the path being left to the last fenced change being sent again.
    pub(super) fence_ms: Option<f64>,
    /// Proof for the changes that were sent again.
    pub(super) proof: Option<String>,
    /// Requests sent again on other paths, and how many of them change the medium.
    pub(super) redriven: u64,
    /// Those among them that change the medium.
    pub(super) redriven_changes: u64,
    /// Greatest latency of a write from the fault to the recovery (a fenced write, if there was one).
    pub(super) write_latency_max_ms: f64,
    /// From the way being there again to the path carrying I/O.
    pub(super) recovery_ms: Option<f64>,
}

/// The whole result; `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) ios: u64,
    pub(super) io_errors: u64,
    pub(super) verify_errors: u64,
    pub(super) failovers: u64,
    pub(super) recoveries: u64,
    pub(super) longest_gap_ms: f64,
    pub(super) silent_drop: Incident,
    pub(super) reset: Incident,
    pub(super) paths: Vec<PathReport>,
    pub(super) iops: f64,
    pub(super) seconds: f64,
    pub(super) rw: String,
    pub(super) qd: u32,
    pub(super) selector: String,
    pub(super) seed: u64,
    pub(super) first_verify_error: Option<String>,
    pub(super) timeline: Vec<Sample>,
    pub(super) marks: Vec<Mark>,
    pub(super) svg: Option<String>,
}

impl Report {
    /// Did everything go as promised?
    pub(super) fn is_good(&self) -> bool {
        self.io_errors == 0 && self.verify_errors == 0 && self.ios > 0
    }

    /// The table for people.
    pub(super) fn table(&self) -> String {
        let mut paths = Table::new();
        paths.load_style(presets::UTF8_FULL_CONDENSED);
        paths.set_header(["path", "state", "I/Os", "MiB", "re-driven", "left", "came back", "mean latency"]);
        for p in &self.paths {
            paths.add_row([
                p.name.clone(),
                p.state.clone(),
                p.ios.to_string(),
                format!("{:.0}", p.mib),
                p.redriven.to_string(),
                p.failures.to_string(),
                p.recoveries.to_string(),
                format!("{:.0} µs", p.mean_latency_us),
            ]);
        }
        let mut faults = Table::new();
        faults.load_style(presets::UTF8_FULL_CONDENSED);
        faults.set_header([
            "fault",
            "longest gap",
            "detected after",
            "fence",
            "slowest write",
            "re-driven",
            "recovered after",
        ]);
        let ms = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.1} ms"));
        for i in [&self.silent_drop, &self.reset] {
            faults.add_row([
                i.what.clone(),
                ms(Some(i.longest_gap_ms)),
                ms(i.detection_ms),
                ms(i.fence_ms),
                ms(Some(i.write_latency_max_ms)),
                format!("{} ({} changes)", i.redriven, i.redriven_changes),
                ms(i.recovery_ms),
            ]);
        }
        format!(
            "{paths}\n{faults}\n{} I/Os in {:.1} s ({:.0}/s, {} at QD {}, {}), {} failed, {} verify errors, longest gap {:.1} ms\n",
            self.ios,
            self.seconds,
            self.iops,
            self.rw,
            self.qd,
            self.selector,
            self.io_errors,
            self.verify_errors,
            self.longest_gap_ms
        )
    }
}
