//! The assembled world: real queues, controllers, fences and groups under a seed, with virtual time.
//!
//! **Knows:** how to put together what the floors below have: simulated reactors on one thread, guests and groups, initiators of
//! a transport, the wire of `polypath-sim`, a target that speaks the transport; what goes wrong ([`Plan`]), what must never
//! happen ([`Rule`]), and how to cut a failing plan down ([`shrink`]).
//!
//! **Refuses to know:** real time and real sockets, and any transport by name outside `transport.rs`, `target.rs`, `nvme_tcp.rs`
//! and `iscsi.rs`: the next one plugs in behind [`Peer`] and [`Family`].
//!
//! **Threading:** a world lives on one thread, from its first turn to its last; worlds on different threads share nothing that is
//! visible in a run. The same plan gives the same run, byte for byte.
//!
//! **Unsafe:** forbidden.
//!
//! Read `plan.rs` first, then `world.rs`, `peer.rs` and `guest.rs`. How to use it is in `docs/TESTING-sim.md`.
#![forbid(unsafe_code)]

mod batch;
mod checker;
mod conditions;
mod guest;
mod iscsi;
pub mod log;
mod nvme_tcp;
mod panics;
mod peer;
mod plan;
mod reactor;
mod shrink;
mod sockets;
mod target;
mod trace;
mod transport;
mod world;

pub use batch::{Failure, batch};
pub use checker::{Rule, Violation};
pub use peer::{Family, Initiator, Peer, Wish, address};
pub use plan::{Action, Cut, GuestPlan, Op, PathPlan, Plan, Settings, Timed};
pub use shrink::{Shrunk, shrink};
pub use target::Transports;
pub use transport::{IscsiPath, IscsiSettings, Mix, Transport};
pub use world::{Outcome, Report, run};
