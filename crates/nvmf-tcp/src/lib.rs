//! NVMe over TCP: octets, protocol, and the shell that drives them over a socket.
//!
//! Three rooms: [`pdu`] knows the octets of every PDU (for host and target alike) and nothing else;
//! [`proto`] is the host's side of one connection without socket and clock; the shell over `net` moves
//! bytes between the two: [`Controller`] with its admin queue, [`NvmeDevice`] and its I/O queues, [`discover`].
//!
//! **Knows** the NVMe/TCP Transport Specification 1.0 and 1.1, reconnecting, how to prove that the commands of a lost
//! connection are quiet, and how reservations of namespaces are carried out. **Refuses to know** which of several paths an I/O should take, and the clock: time is an argument
//! (but for the blocking [`discover`]).
//!
//! **Threading:** the admin queue is a poller on one named reactor; an I/O queue belongs to the reactor it was opened on. They
//! share a few atomics and rings of a bell; nothing on the data path locks or allocates.
//!
//! **Unsafe**: forbidden. Read [`proto`] first, then `link.rs`, `queue/mod.rs`, and `life.rs` for the admin side.
#![forbid(unsafe_code)]

// What the tests of `tests/` are built on serves tests in here, too.
#[cfg(test)]
extern crate self as polypath_nvmf_tcp;
#[cfg(test)]
#[path = "../tests/common/script.rs"]
mod script;

mod admin;
mod association;
mod attach;
mod command;
mod config;
mod controller;
mod device;
mod discovery;
mod fence;
#[doc(hidden)]
pub mod fuzzing;
mod life;
mod link;
mod live;
mod namespace;
mod passthrough;
pub mod pdu;
mod poller;
pub mod proto;
mod queue;
mod reserve;
mod shared;
pub mod status;

pub use config::{ControllerConfig, OPTIONS, host_identity};
pub use controller::{Controller, ControllerStatistics};
pub use device::{NvmeDevice, open};
pub use discovery::{DiscoverError, discover};
pub use fence::KeepAliveFence;
pub use polypath_nvme::log::{AddressFamily, DiscoveryEntry, SubsystemType, TransportType};
