//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use polypath_reactor::{CpuList, IdlePolicy};
use std::path::PathBuf;
use std::time::Duration;

/// Measures and verifies disks.
#[derive(Parser, Debug)]
#[command(name = "polypath-bench", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// What loopback TCP of this machine can do at all with the bytes of NVMe/TCP 4 KiB reads
    Limit(LimitArgs),
}

/// What to do when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum IdleMode {
    /// Spin for up to 50 microseconds, then sleep.
    Adaptive,
    /// Never sleep.
    Poll,
    /// Never spin.
    Sleep,
}

impl IdleMode {
    /// The reactor's word for it.
    pub fn policy(self) -> IdlePolicy {
        match self {
            IdleMode::Adaptive => IdlePolicy::default(),
            IdleMode::Poll => IdlePolicy::Poll,
            IdleMode::Sleep => IdlePolicy::Sleep,
        }
    }
}

/// The word for a policy in reports.
pub fn idle_name(policy: IdlePolicy) -> &'static str {
    match policy {
        IdlePolicy::Adaptive { .. } => "adaptive",
        IdlePolicy::Poll => "poll",
        IdlePolicy::Sleep => "sleep",
    }
}

/// `polypath-bench limit`.
#[derive(Args, Debug)]
pub struct LimitArgs {
    /// Requests outstanding
    #[arg(long, default_value_t = 32)]
    pub qd: usize,
    /// Seconds to measure (or with a unit: 500ms, 2m)
    #[arg(long, default_value = "2", value_parser = parse_time)]
    pub time: Duration,
    /// Seconds to run before measuring
    #[arg(long, default_value = "0.3", value_parser = parse_time)]
    pub ramp: Duration,
    /// What both sides do when there is nothing to do
    #[arg(long, value_enum, default_value = "adaptive")]
    pub idle: IdleMode,
    /// Core of the client, then core of the server (0,1 or a mask)
    #[arg(long)]
    pub cpus: Option<CpuList>,
    /// Leave each block where recv put it, instead of copying it to its requester's buffer
    #[arg(long)]
    pub no_copy: bool,
    /// Write one JSON object to FILE, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `5`, `0.5`, `500ms`, `2s`, `3m`.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unit \"{unit}\" is not known; expected us, ms, s, m or h")),
    };
    let value: f64 = number.trim().parse().map_err(|_| format!("\"{number}\" is not a number"))?;
    Duration::try_from_secs_f64(value * factor).map_err(|_| format!("\"{text}\" is not a length of time"))
}

/// `512`, `4k`, `1m`, `1MiB`.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn parse_bytes(text: &str) -> Result<u32, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        _ => return Err(format!("unit \"{unit}\" is not known; expected nothing, k or m")),
    };
    let value: u32 = number.trim().parse().map_err(|_| format!("\"{number}\" is not a number of bytes"))?;
    match value.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(format!("\"{text}\" is out of range: expected 512 bytes to 1 GiB")),
    }
}
