//! What is reported. The names of the fields are the keys of the JSON object.

use super::memory::Memory;
use super::{Arrangement, ScaleConfig, ScaleMedium};
use crate::latency::round3;
use crate::ratio::{median, ratio};
use serde::Serialize;

/// Part of its speed alone that a busy disk is to keep.
const GOAL_BUSY: f64 = 0.9;
/// What two reactors are to carry of one, on null.
const GOAL_REACTORS: f64 = 1.9;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleReport {
    /// Always `scale`.
    pub mode: &'static str,
    /// Cores of the reactors; the guests and the target have the first, the busy disk the second.
    pub cpus: [usize; 2],
    /// Measured seconds of each part of a turn.
    pub seconds: f64,
    /// One reactor against two.
    pub reactors: Vec<ReactorCase>,
    /// One busy disk among many.
    pub disks: Vec<GrowthCase>,
    /// One disk of many paths.
    pub paths: Vec<GrowthCase>,
    /// What one more of anything takes.
    pub memory: Slopes,
    /// What was to be reached.
    pub goals: Goals,
}

impl ScaleReport {
    pub(super) fn new(cpus: [usize; 2], config: &ScaleConfig) -> ScaleReport {
        ScaleReport {
            mode: "scale",
            cpus,
            seconds: round3(config.time.as_secs_f64()),
            reactors: Vec::new(),
            disks: Vec::new(),
            paths: Vec::new(),
            memory: Slopes::default(),
            goals: Goals::default(),
        }
    }

    /// What follows from all cases together.
    pub(super) fn conclude(&mut self) {
        self.memory.conclude(&self.disks, &self.paths);
        let null = self.reactors.iter().find(|case| case.medium == ScaleMedium::Null);
        let busy = self.disks.iter().flat_map(|case| &case.busy).map(|busy| busy.iops_quiet_ratio);
        self.goals = Goals {
            reactors: GOAL_REACTORS,
            reactors_reached: null.map(|case| case.iops_quiet_ratio >= GOAL_REACTORS),
            busy: GOAL_BUSY,
            busy_reached: busy.reduce(f64::min).map(|least| least >= GOAL_BUSY),
        };
    }

    /// Requests that failed or never came back.
    pub fn errors(&self) -> u64 {
        let busy = self.disks.iter().chain(&self.paths).flat_map(|case| &case.busy).map(|busy| busy.errors);
        busy.chain(self.reactors.iter().map(|case| case.errors)).sum()
    }
}

/// What was to be reached, and whether it was: none where it was not measured.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Goals {
    /// Two reactors on null, times one.
    pub reactors: f64,
    /// Reached?
    pub reactors_reached: Option<bool>,
    /// Part of its speed alone that each busy disk keeps.
    pub busy: f64,
    /// Reached by the least of them?
    pub busy_reached: Option<bool>,
}

/// One reactor against two. Rates are medians of the turns.
#[derive(Clone, Debug, Serialize)]
pub struct ReactorCase {
    /// What was read.
    pub medium: ScaleMedium,
    /// Requests outstanding of each reactor.
    pub qd: u16,
    /// Rate of one.
    pub one_iops: f64,
    /// Rate of two together.
    pub two_iops: f64,
    /// Median of the ratios of single turns.
    pub iops_ratio_paired: f64,
    /// Rate of one while its core was left alone.
    pub one_iops_quiet: f64,
    /// Of two together.
    pub two_iops_quiet: f64,
    /// The second over the first: the ratio to look at on a machine that others use.
    pub iops_quiet_ratio: f64,
    /// Failed and unanswered requests.
    pub errors: u64,
    /// Each turn.
    pub turns: Vec<ReactorTurn>,
}

impl ReactorCase {
    /// Of these turns.
    pub fn new(medium: ScaleMedium, qd: u16, turns: Vec<ReactorTurn>, errors: u64) -> ReactorCase {
        let of = |value: fn(&ReactorTurn) -> f64| median(turns.iter().map(value).collect());
        let (one_iops_quiet, two_iops_quiet) = (of(|t| t.one_iops_quiet), of(|t| t.two_iops_quiet));
        ReactorCase {
            medium,
            qd,
            one_iops: of(|t| t.one_iops),
            two_iops: of(|t| t.two_iops),
            iops_ratio_paired: round3(of(|t| t.two_iops / t.one_iops.max(1e-9))),
            one_iops_quiet,
            two_iops_quiet,
            iops_quiet_ratio: ratio(two_iops_quiet, one_iops_quiet),
            errors,
            turns,
        }
    }
}

/// One turn of [`ReactorCase`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ReactorTurn {
    /// Rate of one.
    pub one_iops: f64,
    /// Rate of two together.
    pub two_iops: f64,
    /// Rate of one while its core was left alone.
    pub one_iops_quiet: f64,
    /// Of two together.
    pub two_iops_quiet: f64,
    /// Part of the time that others had a core, in percent: of one, of two.
    pub core_taken_pct: [f64; 2],
}

/// An arrangement, and its busy disk against that of a smaller one.
#[derive(Clone, Debug, Serialize)]
pub struct GrowthCase {
    /// What is at the end of the paths.
    pub medium: ScaleMedium,
    /// How many of what.
    pub arrangement: Arrangement,
    /// What it is held against.
    pub base: Arrangement,
    /// Until all disks were there, with all of their paths.
    pub live_ms: f64,
    /// Until all were served.
    pub served_ms: f64,
    /// Until all guests had their rings, from then on.
    pub connected_ms: f64,
    /// Until all had ended.
    pub end_ms: f64,
    /// Memory before the first disk.
    pub empty: Memory,
    /// Memory once all guests were connected, and idle.
    pub memory: Memory,
    /// Memory after the busy disk was measured.
    pub memory_after: Memory,
    /// Part of a core that it takes while no guest wants anything, in percent.
    pub idle_cpu_pct: f64,
    /// Pollers of its reactors.
    pub pollers: u64,
    /// Those of them that rested.
    pub resting: u64,
    /// One for each depth.
    pub busy: Vec<Busy>,
}

/// The busy disk at one depth. Rates and latencies are medians of the turns.
#[derive(Clone, Debug, Serialize)]
pub struct Busy {
    /// Requests outstanding.
    pub qd: u16,
    /// Rate in the smaller arrangement.
    pub base_iops: f64,
    /// Rate.
    pub iops: f64,
    /// Median of the ratios of single turns.
    pub iops_ratio_paired: f64,
    /// Rate in the smaller arrangement while the cores were left alone.
    pub base_iops_quiet: f64,
    /// Rate while the cores were left alone.
    pub iops_quiet: f64,
    /// The second over the first: the ratio to look at on a machine that others use.
    pub iops_quiet_ratio: f64,
    /// Median latency in the smaller arrangement.
    pub base_p50_us: f64,
    /// Median latency.
    pub p50_us: f64,
    /// Failed and unanswered requests.
    pub errors: u64,
    /// Each turn.
    pub turns: Vec<BusyTurn>,
}

impl Busy {
    /// Of these turns.
    pub fn new(qd: u16, turns: Vec<BusyTurn>, errors: u64) -> Busy {
        let of = |value: fn(&BusyTurn) -> f64| median(turns.iter().map(value).collect());
        let (base_iops_quiet, iops_quiet) = (of(|t| t.base_iops_quiet), of(|t| t.iops_quiet));
        Busy {
            qd,
            base_iops: of(|t| t.base_iops),
            iops: of(|t| t.iops),
            iops_ratio_paired: round3(of(|t| t.iops / t.base_iops.max(1e-9))),
            base_iops_quiet,
            iops_quiet,
            iops_quiet_ratio: ratio(iops_quiet, base_iops_quiet),
            base_p50_us: of(|t| t.base_p50_us),
            p50_us: of(|t| t.p50_us),
            errors,
            turns,
        }
    }
}

/// One turn of [`Busy`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BusyTurn {
    /// Rate in the smaller arrangement.
    pub base_iops: f64,
    /// Rate.
    pub iops: f64,
    /// Rate in the smaller arrangement while the cores were left alone.
    pub base_iops_quiet: f64,
    /// Rate while the cores were left alone.
    pub iops_quiet: f64,
    /// Median latency in the smaller arrangement.
    pub base_p50_us: f64,
    /// Median latency.
    pub p50_us: f64,
}

/// What one more of anything takes of a serving process's own memory, page tables included, in KiB.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Slopes {
    /// By so many disks the three that follow were measured, over TCP.
    pub disks: u32,
    /// A disk of two rings and two paths.
    pub disk_kib: Option<f64>,
    /// A path of it through a controller that is there already.
    pub path_kib: Option<f64>,
    /// A ring of it.
    pub ring_kib: Option<f64>,
    /// A disk, by the largest number of disks over TCP against the smallest.
    pub disk_among_most_kib: Option<f64>,
    /// A path with a controller and its connections, by the largest number of paths against the smallest.
    pub controller_kib: Option<f64>,
}

impl Slopes {
    fn conclude(&mut self, disks: &[GrowthCase], paths: &[GrowthCase]) {
        self.disk_among_most_kib = slope(disks, |arrangement| arrangement.disks.into());
        self.controller_kib = slope(paths, |arrangement| arrangement.paths.into());
    }
}

/// Between the largest and the smallest case over TCP.
fn slope(cases: &[GrowthCase], number: fn(&Arrangement) -> u64) -> Option<f64> {
    let over_tcp = || cases.iter().filter(|case| case.medium == ScaleMedium::Tcp);
    let of = |case: &&GrowthCase| number(&case.arrangement);
    let (least, most) = (over_tcp().min_by_key(of)?, over_tcp().max_by_key(of)?);
    let difference = of(&most) - of(&least);
    (difference > 0).then(|| most.memory.each_kib(&least.memory, difference))
}
