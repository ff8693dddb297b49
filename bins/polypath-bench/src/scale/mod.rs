//! Growth: what reactors, disks, paths and rings cost, and what a busy disk has left beside them.
//!
//! The whole arrangement is measured, each side in a process of its own: a `target` with as many namespaces as there are disks behind as
//! many portals as there are paths; a `site` that serves each disk as `polypathd` does, a group of its paths behind a vhost-user
//! socket, on two reactors; and this process, which is all guests. The guests of idle disks have their rings connected and want nothing;
//! one disk is busy. What it gets is held against what it gets in a site that has nothing else, in turns.
//!
//! Read `arrangement.rs` first, then `growth.rs`.

mod arrangement;
mod chart;
mod growth;
mod limits;
mod memory;
mod reactors;
mod report;
mod serve;
mod site;
mod target;
#[cfg(test)]
mod tests;

pub use arrangement::{Arrangement, ScaleMedium};
pub use chart::draw;
pub use memory::Memory;
pub use report::{Busy, BusyTurn, Goals, GrowthCase, ReactorCase, ReactorTurn, ScaleReport, Slopes};
pub use serve::{SiteConfig, serve};
pub use target::{NamespacesConfig, serve_namespaces};

use crate::cpu;
use crate::latency::round3;
use clap::ValueEnum;
use growth::Bench;
use polypath_reactor::CpuList;
use std::time::Duration;
use target::TargetProcess;

/// Entries of each ring.
pub const RING: u16 = 1024;
/// Rings of each disk, unless they are what grows.
const RINGS: u16 = 2;
/// Paths of each disk, unless they are what grows.
const PATHS: u16 = 2;
/// Longest part of a turn: the others are stopped meanwhile, and their targets must not miss them.
const LONGEST_PART: Duration = Duration::from_secs(2);

/// What is to be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Part {
    /// One reactor against two
    Reactors,
    /// A busy disk beside others
    Disks,
    /// Paths in a group
    Paths,
    /// Memory of a disk, a path, a ring
    Memory,
}

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct ScaleConfig {
    /// What to measure.
    pub parts: Vec<Part>,
    /// On what.
    pub media: Vec<ScaleMedium>,
    /// Numbers of disks.
    pub disks: Vec<u32>,
    /// Numbers of paths in a group.
    pub paths: Vec<u16>,
    /// Disks by whose paths and rings memory is measured.
    pub memory_disks: u32,
    /// Queue depths of the busy disk.
    pub depths: Vec<u16>,
    /// Turns for each figure.
    pub turns: usize,
    /// How long each part of a turn is measured.
    pub time: Duration,
    /// How long it runs before that.
    pub ramp: Duration,
    /// The cores of the reactors. The guests and the target have the first.
    pub cpus: Option<CpuList>,
}

/// Measures; `tell` is called with a line for people now and then.
///
/// # Errors
/// When an arrangement cannot be had: the error says what it lacks. Requests that fail are in the report.
pub fn run(config: &ScaleConfig, mut tell: impl FnMut(&str)) -> anyhow::Result<ScaleReport> {
    check(config)?;
    limits::raise_descriptors()?;
    let (near, far) = cpu::two(config.cpus.as_ref());
    let mut report = ScaleReport::new([near, far], config);
    if config.parts.contains(&Part::Reactors) {
        for &medium in &config.media {
            report.reactors.push(reactors::measure(config, medium, [near, far], &mut tell)?);
        }
    }
    for &medium in &config.media {
        grow(config, medium, [near, far], &mut report, &mut tell)?;
    }
    report.conclude();
    Ok(report)
}

/// Everything that grows on `medium`.
fn grow(
    config: &ScaleConfig,
    medium: ScaleMedium,
    cpus: [usize; 2],
    report: &mut ScaleReport,
    tell: &mut impl FnMut(&str),
) -> anyhow::Result<()> {
    // A target for each part: a controller keeps something of each namespace that its subsystem has.
    let target = |disks: u32, paths: u16| match medium {
        ScaleMedium::Tcp => TargetProcess::start(disks, paths, &cpus[..1]).map(Some),
        ScaleMedium::Null | ScaleMedium::Ram => Ok(None),
    };
    if config.parts.contains(&Part::Disks) {
        let target = target(most(&config.disks), PATHS)?;
        let bench = Bench { config, medium, target: target.as_ref(), cpus };
        for &disks in &config.disks {
            report.disks.push(bench.disks(disks, tell)?);
        }
    }
    if config.parts.contains(&Part::Paths) {
        let target = target(1, most(&config.paths))?;
        let bench = Bench { config, medium, target: target.as_ref(), cpus };
        for &paths in &config.paths {
            report.paths.push(bench.paths(paths, tell)?);
        }
    }
    if config.parts.contains(&Part::Memory) && medium == ScaleMedium::Tcp {
        let target = target(config.memory_disks, 2 * PATHS)?;
        report.memory = Bench { config, medium, target: target.as_ref(), cpus }.memory(tell)?;
    }
    Ok(())
}

fn check(config: &ScaleConfig) -> anyhow::Result<()> {
    let some = |what: bool, option: &str| {
        anyhow::ensure!(what, "nothing to measure: {option} is empty or nought");
        Ok(())
    };
    some(!config.parts.is_empty(), "--part")?;
    some(!config.media.is_empty(), "--media")?;
    some(!config.depths.is_empty(), "--qd")?;
    some(config.turns > 0, "--turns")?;
    some(!config.time.is_zero(), "--time")?;
    some(config.disks.iter().all(|&disks| disks > 0), "--disks")?;
    some(config.paths.iter().all(|&paths| paths > 0), "--paths")?;
    anyhow::ensure!(
        config.time.saturating_add(config.ramp) <= LONGEST_PART,
        "--time and --ramp together are more than {LONGEST_PART:?}, for which others can be stopped; take more --turns instead"
    );
    Ok(())
}

fn most<T: Copy + Ord + From<u8>>(numbers: &[T]) -> T {
    numbers.iter().copied().max().unwrap_or(T::from(1))
}

/// Milliseconds, for reports.
fn ms(time: Duration) -> f64 {
    round3(time.as_secs_f64() * 1000.0)
}
