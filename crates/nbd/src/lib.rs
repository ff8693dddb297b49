//! Disks for whoever speaks NBD: a server of the Network Block Device protocol on UNIX and TCP sockets.
//!
//! Three rooms: [`wire`] knows the octets and nothing else; [`handshake`] is the negotiation without socket and clock; the session
//! carries requests out on a [`polypath::Disk`]. [`Server`] puts them behind a listener.
//!
//! **Knows** `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>: fixed newstyle, EXPORT_NAME, LIST, INFO and GO with block
//! sizes, structured replies, READ, WRITE, FLUSH, FUA, TRIM, WRITE_ZEROES, BLOCK_STATUS of `base:allocation`, several connections to one
//! export. **Refuses to know** TLS, extended headers, CACHE, RESIZE (each is answered as unknown), and what paths are: a disk is
//! [`polypath::Disk`].
//!
//! **Several connections.** `NBD_FLAG_CAN_MULTI_CONN` is set, and true: all clients of an export share one [`polypath::Disk`].
//! A reply is sent when the disk has completed the request. [`polypath::Disk::flush`] makes durable what had completed before it began,
//! by whichever of the disk's queues, on whichever reactor: there is one device below them, and a group of paths keeps over all reactors
//! which caches are dirty, and flushes each. So a flush on one connection covers what was answered on every other one. A
//! write with FUA is durable when it is answered; where the disk has no FUA, a flush follows it. A read sees what was answered
//! before, for it begins later, on the same disk.
//!
//! **Losses.** Where a flush says that something may be lost, each connection hears it once: the flush that it asks for next fails
//! with EIO, also when the connection that wrote it broke and this one was made in its place.
//!
//! **Data are copied once** each way on this side: between the socket's private buffer and the memory that devices reach, to which
//! there are no references.
//!
//! **Hostile clients.** What a client says is checked at one place before anything is done. A client has its own buffer memory, its own
//! bounded number of requests, and time limits for its handshake, for what it has begun to send and for taking its replies
//! ([`Limits`]): what it can hold up is itself. Nobody is let go for being silent while there are places; when there are none, who has asked
//! for nothing in the time of a handshake goes for somebody else, and over TCP who has been idle for the longest. The protocol knows no passwords; who may connect is decided by the permissions of a
//! UNIX socket, or by the network.
//!
//! **Growth.** A client is told the size of the disk when it asks; a connection keeps what it was told.
//!
//! **Threading:** tokio. A task accepts, each client has one that reads, one that writes, and one for each request that is with the
//! disk, of which there are as many as [`Limits::requests`]. No channel is unbounded, and no lock is held over an await. The disk's own
//! work is on its reactors.
//!
//! **Unsafe**: forbidden. Read [`handshake`] first, then `session/mod.rs`.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use polypath::Disk;
//! use polypath_nbd::{ExportConfig, Limits, Server, SocketAccess};
//! use std::time::Duration;
//!
//! # let folder = tempfile::tempdir()?;
//! # let socket = folder.path().join("nbd.sock");
//! let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
//! runtime.block_on(async {
//!     let disk = Disk::open("ram://1MiB").await?;
//!     let server = Server::unix(&socket, SocketAccess::default(), Limits::default())?;
//!     server.add(ExportConfig::new("scratch", disk))?;
//!     // Now `nbdinfo nbd+unix:///scratch?socket=...` tells of it.
//!     assert!(server.stop().wait(Duration::from_secs(1)).await);
//!     Ok(())
//! })
//! # }
//! ```
#![forbid(unsafe_code)]

mod export;
#[doc(hidden)]
pub mod fuzzing;
pub mod handshake;
mod limits;
mod losses;
mod server;
mod session;
#[cfg(test)]
mod testing;
pub mod wire;

pub use export::{DiskSource, ExportConfig, ExportStatistics};
pub use limits::{LARGEST_REQUEST, Limits};
pub use polypath_net::{SocketAccess, UnixSocketError};
pub use server::{Address, Ending, Server, ServerError};
