//! A vhost-user-blk back-end: any [`polypath_block::Device`] as a disk of a virtual machine.
//!
//! **Knows:** the vhost-user protocol (back-end side), virtqueues split and packed with indirect descriptors and event index, the records
//! of requests in flight that outlive a back-end, the log of written pages that a migration needs, virtio-blk requests and
//! configuration space, and how all that becomes requests to an [`polypath_block::IoQueue`] whose segments point straight into guest
//! memory: no byte of data is touched here.
//!
//! **Refuses to know:** where the data goes; threads of reactors (it is given [`polypath_block::Host`]s); who served the disk before and
//! how that ended (it is told); post-copy (not offered).
//!
//! **Threading:** one control thread per [`Server`], asleep unless a front-end speaks. Each vring is a poller on one reactor for
//! as long as the front-end stays, with a device queue of its own; the control thread reaches it through a mailbox of which the
//! data path sees one relaxed load a turn.
//!
//! **Hostile guests and front-ends:** every length, index and address is checked once, where it enters. A bad request gets an
//! error status; a broken ring stops that ring; a broken message ends that connection. No system call on a descriptor of theirs can
//! wait, and none of theirs that is not taken is closed by a thread that somebody waits for. Nothing of it reaches another disk.
//!
//! **Unsafe:** none, forbidden.
//!
//! # One request
//! `ring/` looks ahead over all that waits, takes a chain and reads it into private memory, `request.rs` makes an `Io` of it, `active/` submits
//! it, and on completion writes the status, the used element, one used index and at most one eventfd per turn. Read them in that order, then `poller.rs` for how
//! a ring starts and comes to a stand still, `session/` for what the front-end may ask, and `wire.rs` for its octets.
//!
//! # How it ends
//! A back-end that is told to end takes nothing more, waits for what the device has, and closes the connection last: the front-end hears
//! of all that completed. What was not begun stays in the ring, or in its record. Whoever comes next begins where the guest was last told
//! something; after one that was killed, changes wait until what it may have had in flight has landed ([`ServerConfig::hold_changes`]).
#![forbid(unsafe_code)]

mod active;
mod config;
mod control;
mod guest;
mod last_flush;
mod limits;
mod log;
mod mailbox;
mod notify;
mod past;
mod poller;
mod request;
mod ring;
mod server;
mod session;
mod settings;
mod socket;
mod stats;
mod stranger;
mod wire;

#[cfg(test)]
mod tests;

pub use guest::{GuestMemory, MapError};
pub use past::{Hold, Owed};
pub use polypath_net::{SocketAccess, UnixSocket, UnixSocketError};
pub use ring::{Chain, Fault, MAX_RING, Plain, RingError, RingSpec, StatusByte, Vring};
pub use server::{BoundServer, Server};
pub use settings::{KeepWriteThrough, ServerConfig, ServerError};
pub use stats::VringStatistics;
