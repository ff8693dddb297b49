//! One disk over many paths: survives the loss of any of them, never shows old data, never completes an I/O twice.
//!
//! **Knows:** when two paths are the same disk ([`MatchPolicy`], [`aggregate`]), the states of a path ([`PathState`]), whom to
//! ask next ([`SelectorKind`]), what may be sent again and when (decided by the proofs of `polypath-block`), which write caches
//! a Flush must reach.
//!
//! **Refuses to know:** any transport. A path is a [`polypath_block::Device`], and so is a [`Group`]: groups may be paths.
//!
//! **Threading:** a [`Group`] is shared; each of its queues belongs to one reactor and opens a queue of its own on every path.
//! Queues follow the group through a generation number, one load a turn; the lock of the control plane is taken only when
//! something changed. No thread, no clock, no socket.
//!
//! **Unsafe:** none, forbidden.
//!
//! # Never wrong
//! A change (Write, Write Zeroes, Discard) whose path broke is sent on another path only when the old copy is proven quiet, and
//! it completes no earlier, not even with an error. Reads are sent again as soon as their path says that nobody touches their
//! buffers. Completions of an old attempt never finish a new one: each attempt has a number in its tag.
//!
//! Read `group.rs` and `control.rs` for the control plane, `queue/mod.rs` for the data path, `disposition.rs` for the decisions,
//! `cache.rs` for the flush rule; `slice/mod.rs` for parts of a disk that are disks of their own.
#![forbid(unsafe_code)]

mod cache;
mod config;
mod control;
mod cross_fence;
mod disposition;
mod event;
mod group;
mod inventory;
mod membership;
mod outage;
mod passthrough;
mod path;
mod queue;
mod reservations;
mod selector;
mod shared;
mod slice;
mod state;
mod stats;

pub use config::{
    Entry, Failback, Fencing, GroupConfig, GroupError, Ledger, MAX_DEPTH, MAX_PATHS, MatchPolicy, PathConfig, PathId,
    SelectorError, SelectorKind, UnknownSelector,
};
pub use event::{Event, EventKind, Events};
pub use group::Group;
pub use inventory::{Disk, Inventory, aggregate};
pub use outage::Availability;
pub use reservations::ReservationState;
pub use slice::{Slice, SliceError, SliceRange, Slices};
pub use state::{Illegal, PathEvent, PathState};
pub use stats::PathStatistics;
