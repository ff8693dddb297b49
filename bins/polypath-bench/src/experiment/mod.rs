//! The experiments of the SUMP multipath project, with the same questions and fair answers.
//!
//! Everything runs on one machine in two network namespaces of its own: this process in one, a target in the other, and between them a
//! pair of virtual Ethernet devices for each path. What a path may carry is limited on the target's egress by `tc` (htb), to so many
//! bytes of data: what headers take is added to the limit. A path is cut by the target, which resets its connections and closes the
//! port, or by its network, which from then on carries everything into nothing. No name of a namespace or of a device is left behind:
//! all belongs to the processes and goes with them.
//!
//! * (a) four paths of 10 MB/s against fewer;
//! * (b) throughput over time while one path is cut and comes back, a single path beside four;
//! * (c) every rule on paths of 1, 1, 100 and 100 MB/s;
//! * (d) the kernel's own initiator against ours, both in the same guest, which reaches a target here over four tap devices;
//! * (e) how many requests round-robin should give a path before the next has its turn, on both sets of paths.
//!
//! Read `network.rs` first, then a part.

mod args;
mod chart;
mod cut;
mod guest;
mod load;
mod min_io;
mod network;
mod outcome;
mod paths;
mod rules;
mod serve;
#[cfg(test)]
mod tests;
mod write;

pub use args::{ExperimentArgs, Which};
pub use outcome::{Goal, Grid, Outcome, SumpReport};
pub use serve::serve;

use crate::latency::round3;
use crate::protocol::Protocol;
use clap::ValueEnum;
use guest::{Found, Kind};
use load::Bench;
use std::path::PathBuf;
use std::time::Duration;

/// Which experiment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Part {
    /// Four paths of 10 MB/s against fewer
    A,
    /// Throughput over time while a path is cut and comes back
    B,
    /// Every rule on paths of 1, 1, 100 and 100 MB/s
    C,
    /// The kernel's own initiator against ours in the same guest
    D,
    /// How often round-robin should change paths
    E,
}

impl Part {
    /// Its letter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Part::A => "a",
            Part::B => "b",
            Part::C => "c",
            Part::D => "d",
            Part::E => "e",
        }
    }
}

/// What to measure, and where to put it.
#[derive(Clone, Debug)]
pub struct SumpConfig {
    /// Which experiments.
    pub parts: Vec<Part>,
    /// On what.
    pub protocols: Vec<Protocol>,
    /// How long each figure is measured; (b) takes four times as long for each line.
    pub time: Duration,
    /// Requests outstanding.
    pub qd: u16,
    /// The folder for tables and charts.
    pub out: PathBuf,
}

/// Measures, inside the initiator's namespace (see [`enter`]); `tell` is called with a line for people now and then. CSV files, charts and
/// `sump.md` are in the folder afterwards, those of each part as soon as it is over.
///
/// # Errors
/// When the network or the target cannot be had, or a file cannot be written. Requests that fail are in the report.
pub fn run(config: &SumpConfig, mut tell: impl FnMut(&str)) -> anyhow::Result<SumpReport> {
    write::folder(&config.out)?;
    let mut report = SumpReport {
        mode: "experiment sump",
        seconds: round3(config.time.as_secs_f64()),
        qd: config.qd,
        bs: load::BS,
        outcomes: Vec::new(),
        skipped: Vec::new(),
    };
    let over_links: Vec<Part> = config.parts.iter().copied().filter(|&part| part != Part::D).collect();
    for &protocol in config.protocols.iter().filter(|_| !over_links.is_empty()) {
        let mut bench = Bench::start(config, protocol)?;
        for &part in &over_links {
            tell(&format!("({}) over {}", part.as_str(), protocol.as_str()));
            let outcome = match part {
                Part::A => paths::measure(&mut bench, &mut tell)?,
                Part::B => cut::measure(&mut bench, &mut tell)?,
                Part::C => rules::measure(&mut bench, &mut tell)?,
                // It has an arrangement of its own.
                Part::D => continue,
                Part::E => min_io::measure(&mut bench, &mut tell)?,
            };
            write::outcome(&config.out, &outcome)?;
            report.outcomes.push(outcome);
        }
    }
    for kind in Kind::ALL.into_iter().filter(|_| config.parts.contains(&Part::D)) {
        // What was found so far is kept, whatever becomes of the guest.
        write::report(&config.out, &report)?;
        tell(&format!("(d) in {}", kind.words()));
        match guest::measure(kind, config, &mut tell)? {
            Found::Measured(outcome) => {
                write::outcome(&config.out, &outcome)?;
                report.outcomes.push(*outcome);
            }
            Found::Skipped(why) => report.skipped.push(why),
        }
    }
    write::report(&config.out, &report)?;
    Ok(report)
}

/// Starts this program anew with `arguments` in a network namespace of its own, as root of a user namespace where this is not root.
/// Does not come back.
///
/// # Errors
/// When that cannot be had.
pub fn enter(arguments: &[String]) -> anyhow::Error {
    network::enter(arguments)
}
