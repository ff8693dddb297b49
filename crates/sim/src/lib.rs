//! A seeded world with virtual time: a disk, targets that misbehave on command, paths to them, a guest, and an oracle.
//!
//! **Knows:** what a medium with volatile caches does, how an NVMe/TCP-like initiator sees a target (answers, silence, resets,
//! reconnects, fences with a bound), which outcomes a guest may see ([`Oracle`]), and what a wire does between the two ends of a
//! byte stream ([`wire`]).
//!
//! **Refuses to know:** real time, threads, sockets, and what is being tested. The same seed gives the same run. The assembled
//! world, which drives the real drivers over [`wire`], is `tests/world`.
//!
//! **Threading:** a [`World`] can be shared, but one thread at a time moves it on.
//!
//! **Unsafe:** none, forbidden. Guest memory is an arena of the world, reached by (region, offset).
//!
//! Read `world.rs` first, then `queue.rs` (the initiator), `oracle.rs` (what is allowed) and `guest.rs` (who drives it all).
#![forbid(unsafe_code)]

mod disk;
mod guest;
mod oracle;
mod path;
mod queue;
mod rig;
pub mod wire;
mod world;

pub use disk::Disk;
pub use guest::{Guest, Mix, run};
pub use oracle::{Oracle, Violation, WriteId};
pub use path::{Late, PathOptions, SimPath};
pub use rig::{Rig, seeds};
pub use world::{LateLanding, REGION, World};
