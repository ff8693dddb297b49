//! A vhost-user-blk back-end: any [`polypath_block::Device`] as a disk of a virtual machine.
//!
//! **Knows:** the vhost-user protocol (back-end side), split virtqueues with indirect descriptors and event index,
//! virtio-blk requests and configuration space, and how all that becomes requests to an [`polypath_block::IoQueue`] whose
//! segments point straight into guest memory: no byte of data is touched here.
//!
//! **Refuses to know:** where the data goes; threads of reactors (it is given [`polypath_block::Host`]s); packed rings,
//! in-flight tracking, dirty logging, post-copy (none is offered).
//!
//! **Threading:** one control thread per [`Server`], asleep unless a front-end speaks. Each vring is a poller on one reactor for
//! as long as the front-end stays, with a device queue of its own; the control thread reaches it through a mailbox of which the
//! data path sees one relaxed load a turn.
//!
//! **Hostile guests and front-ends:** every length, index and address is checked once, where it enters. A bad request gets an
//! error status; a broken ring stops that ring; a broken message ends that connection. Nothing of it reaches another disk.
//!
//! **Unsafe:** none, forbidden.
//!
//! # One request
//! `vring.rs` takes a head and reads its chain into private memory, `request.rs` makes an `Io` of it, `poller.rs` submits it, and
//! on completion writes the status, the used element, one used index and at most one eventfd per turn. Read them in that order;
//! then `session.rs` for what the front-end may ask, and `wire.rs` for its octets.
#![forbid(unsafe_code)]

mod config;
mod guest;
mod mailbox;
mod notify;
mod poller;
mod request;
mod server;
mod session;
mod socket;
mod stats;
mod vring;
mod wire;

#[cfg(test)]
mod tests;

pub use guest::{GuestMemory, MapError};
pub use server::{Server, ServerConfig, ServerError};
pub use stats::VringStatistics;
pub use vring::{Chain, Fault, MAX_RING, RingError, RingSpec, StatusByte, Vring};
