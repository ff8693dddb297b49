//! Measuring and checking: what a disk gives, whether what it gives is right, and what the machine could give at most.
//!
//! **Knows:** how to keep a queue of any [`polypath_block::Device`] full ([`run`]), what every block of a disk may read as
//! ([`verify`]), and what loopback TCP can do without any protocol on it ([`limit`]); how to
//! hold one against the other ([`ratio`]); the same of a virtio ring and the vhost-user-blk back-end ([`ring`]).
//!
//! **Refuses to know:** any protocol but as much of virtio-blk and vhost-user as a front-end needs that costs nothing. Disks come from
//! the facade, by URI.
//!
//! **Threading:** a job is a [`polypath_block::Poller`] and lives on one reactor with its own verifier; results travel over a
//! channel when it is over. `limit` runs one thread for each side, of TCP and of a ring.
//!
//! **Unsafe:** none, forbidden.
//!
//! Read `verify/mod.rs` first: it is what the demo and the tests share. Then `run/job.rs`.
#![forbid(unsafe_code)]

pub mod chart;
pub mod cli;
pub mod conformance;
pub mod cpu;
pub mod experiment;
pub mod gap;
pub mod latency;
pub mod limit;
pub mod output;
mod process;
pub mod protocol;
pub mod ratio;
pub mod ring;
pub mod run;
pub mod scale;
pub mod slices;
pub mod verify;
pub mod workload;
