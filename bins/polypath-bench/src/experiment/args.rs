//! The command line of `experiment`.

use super::{Part, SumpConfig};
use crate::cli::parse_measured;
use crate::protocol::Protocol;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Which experiments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Which {
    /// Those of the SUMP multipath project
    Sump,
}

/// `polypath-bench experiment`.
#[derive(Args, Debug)]
pub struct ExperimentArgs {
    /// Which experiments
    #[arg(value_enum)]
    pub which: Which,
    /// Which parts of it
    #[arg(long = "part", value_delimiter = ',', value_enum, default_value = "a,b,c,d,e")]
    pub parts: Vec<Part>,
    /// What is spoken on the paths (of all parts but d, which is of iSCSI)
    #[arg(long = "protocol", value_delimiter = ',', value_enum, default_value = "nvme-tcp,iscsi")]
    pub protocols: Vec<Protocol>,
    /// Folder for the tables and charts
    #[arg(long, value_name = "FOLDER", default_value = "experiments")]
    pub out: PathBuf,
    /// Seconds to measure each figure (or with a unit: 500ms, 2m)
    #[arg(long, default_value = "5", value_parser = parse_measured)]
    pub time: Duration,
    /// Requests outstanding
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub qd: u16,
    /// Write one JSON object to FILE, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// This is in a network namespace of its own already
    #[arg(long, hide = true)]
    pub inside: bool,
}

impl ExperimentArgs {
    /// What to measure.
    pub fn config(&self) -> SumpConfig {
        SumpConfig {
            parts: self.parts.clone(),
            protocols: self.protocols.clone(),
            time: self.time,
            qd: self.qd,
            out: self.out.clone(),
        }
    }
}
