//! A split virtio ring between two cores: what can pass through it at all, and what a whole back-end makes of it.
//!
//! One front-end drives both (`front_end.rs`): it costs next to nothing, so that what is measured is the other side.
//!
//! - [`limit`]: the other side is a bare back-end, a thread of this process that touches what any virtio-blk device must touch and does
//!   nothing else.
//! - [`drive`]: the other side is whoever listens on a vhost-user socket.
//! - [`ratio`]: both in turns, against a back-end of ours in a process of its own.
//!
//! Read `memory.rs` first: it is where the ring and its requests lie.

mod back_end;
mod control;
mod cost;
mod drive;
mod front_end;
mod idle;
mod limit;
mod measure;
mod memory;
mod ratio;
mod serve;
#[cfg(test)]
mod tests;

pub use cost::{RingCost, measure as measure_cost};
pub use drive::{DriveConfig, drive};
pub use idle::{IdleGuest, IdleMemory};
pub use limit::{RingLimitConfig, limit};
pub use measure::RingReport;
pub use ratio::{RingCase, RingPair, RingRatioConfig, RingRatioReport, let_go_on, ratio};
pub use serve::{ServeConfig, serve};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Most requests outstanding: with three descriptors each they fill the largest ring that back-ends take.
pub const MAX_QD: u16 = 341;

/// Part of the limit that the whole back-end is to reach.
pub const GOAL: f64 = 0.8;

/// Bytes of a request's data.
const BLOCK: usize = 4096;

/// Bytes of the disk of [`Medium::Ram`].
const RAM_BYTES: u64 = 64 << 20;

/// What is behind the back-end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// Nothing: no data is moved
    Null,
    /// Memory, 64 MiB of it: each block is copied once
    Ram,
}

impl Medium {
    /// The word for it on command lines and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Medium::Null => "null",
            Medium::Ram => "ram",
        }
    }
}

/// When the back-end is told that there is something for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kick {
    /// When nothing has come for a while: it polls.
    #[default]
    Seldom,
    /// After every pass.
    Always,
    /// When the ring says that it wants to be told, as a guest's driver does.
    Asked,
}

/// How many rings there are, and how large.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rings {
    /// Entries of each; as few as hold all requests if not given.
    pub size: Option<u16>,
    /// Rings that are set up beside the one in use, and never have a request.
    pub idle: u16,
}

/// How requests are put into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Style {
    /// One descriptor that points to a table of three, instead of three in the ring.
    pub indirect: bool,
    /// Descriptors and header are written, and the status reset, for every request, as a guest's driver does. Otherwise a request is
    /// written once, and made available again with another sector: as cheap as a driver of reads can be.
    pub renew: bool,
}
