//! Disks over several paths, in user space: this crate is what programs use.
//!
//! **Knows:** how a URI becomes a device, how paths become one disk, and two ways to drive it: futures that any runtime can await
//! ([`Disk`]), and queues on a reactor of your own.
//!
//! **Refuses to know:** any protocol, any runtime.
//!
//! **Threading:** a [`Stack`] owns reactors, one thread per core, and is shared by clones. Whatever blocks (opening files, resolving
//! names, waiting for a target) happens on control threads, never on a reactor.
//!
//! **Unsafe:** none, forbidden.
//!
//! # Futures, for programs with a runtime or without one
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use polypath::{Disk, block_on};
//!
//! block_on(async {
//!     // Several URIs would be several paths to one disk.
//!     let disk = Disk::open("ram://1MiB").await?;
//!     let mut buffer = disk.buffer(4096)?;
//!     buffer.write_at(0, b"hello")?;
//!     // Buffers go in and come back with the result.
//!     let (result, buffer) = disk.write(0, buffer).await;
//!     result?;
//!     disk.flush().await?;
//!     let (result, buffer) = disk.read(0, buffer).await;
//!     result?;
//!     assert_eq!(&buffer.to_vec()[..5], b"hello");
//!     disk.close().await;
//!     Ok(())
//! })
//! # }
//! ```
//! A [`Disk`] is `Clone + Send + Sync`. A future that is dropped half-way leaves its buffer with the device until the device is done
//! with it. What costs on this side is one small allocation per operation and the way between two threads; on the reactor's side nothing
//! is allocated. `examples/tokio_disk.rs` is a whole program.
//!
//! # Queues, for thread-per-core programs
//! [`Stack::open_device`] (or [`Stack::open_group`] for several paths) gives a [`Device`]; [`block::Device::open_queue`], called on the
//! thread of a reactor, gives a [`block::IoQueue`] that belongs to that thread. Wrap it in a [`Poller`] and add it to your own
//! [`reactor::Reactor`], or send a closure that makes it to one of [`Stack::hosts`] with [`block::Host::spawn`]. Requests name rows of the
//! reactor's segment table, filled once from [`Arena`] chunks; nothing on the way locks or allocates. `examples/polled_disk.rs`
//! is a whole program.
#![forbid(unsafe_code)]

mod asked;
mod block_on;
mod buffer;
mod disk;
mod error;
mod group;
mod in_use;
mod nvme;
mod op;
mod open;
mod passthrough;
mod poller;
mod poller_count;
mod reservation;
mod slice;
pub mod sources;
mod stack;
mod submission_queue;
mod targets;

pub use block_on::block_on;
pub use buffer::Buffer;
pub use disk::{Closing, Disk};
pub use error::Error;
pub use group::{GroupSpec, PathSpec, wait_group_live};
pub use op::{Command, Transfer};
pub use open::{Builder, IntoUris, Opening};
pub use passthrough::{Passing, passthrough};
pub use reservation::{Reserving, reservation};
pub use sources::Sources;
pub use stack::{Stack, StackConfig, wait_live};

/// The contract: I/O, queues, devices, URIs.
pub use polypath_block as block;
/// iSCSI: targets, sessions.
pub use polypath_iscsi as iscsi;
/// Disks of this machine.
pub use polypath_local as local;
/// Regions, arenas, windows.
pub use polypath_memory as memory;
/// Several paths, one disk.
pub use polypath_multipath as multipath;
/// NVMe over TCP: controllers, discovery.
pub use polypath_nvmf_tcp as nvmf_tcp;
/// Reactors.
pub use polypath_reactor as reactor;
/// Disks for virtual machines: the back-end of a vhost-user-blk socket.
pub use polypath_vhost_user_blk as vhost_user_blk;
/// The other end of such a socket: a disk that somebody else serves.
pub use polypath_vhost_user_client as vhost_user_client;

pub use polypath_block::{Code, Device, DeviceInfo, DeviceState, DiskUri, Geometry, Host, Limits, Poller, Status};
pub use polypath_memory::{Arena, Chunk};
pub use polypath_multipath::{
    Failback, Fencing, Group, MatchPolicy, PathId, PathStatistics, SelectorKind, Slice, SliceError, SliceRange,
};
pub use polypath_reactor::{CpuList, IdlePolicy};
