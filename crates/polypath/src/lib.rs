//! Disks over several paths, in user space: this crate is what programs use.
//!
//! **Knows:** how a URI becomes a device, how paths become one disk, and two ways to drive it: futures that any runtime can await
//! (`Disk`), and queues on your own reactor.
//!
//! **Refuses to know:** any protocol, any runtime.
//!
//! **Threading:** a [`Stack`] owns reactors, one thread per core, and is shared by clones. Whatever blocks (opening files, resolving
//! names, waiting for a target) happens on control threads, never on a reactor.
//!
//! **Unsafe:** none, forbidden.
#![forbid(unsafe_code)]

mod block_on;
mod buffer;
mod disk;
mod error;
mod group;
mod lane;
mod op;
mod open;
mod poller;
mod stack;
mod tally;

pub use block_on::block_on;
pub use buffer::Buffer;
pub use disk::{Closing, Disk};
pub use error::Error;
pub use group::{GroupSpec, PathSpec};
pub use op::{Command, Transfer};
pub use open::{Builder, IntoUris, Opening};
pub use stack::{Stack, StackConfig, wait_live};

/// The contract: I/O, queues, devices, URIs.
pub use polypath_block as block;
/// Disks of this machine.
pub use polypath_local as local;
/// Regions, arenas, windows.
pub use polypath_memory as memory;
/// Several paths, one disk.
pub use polypath_multipath as multipath;
/// Reactors.
pub use polypath_reactor as reactor;
/// Disks for virtual machines: the back-end of a vhost-user-blk socket.
pub use polypath_vhost_user_blk as vhost_user_blk;

pub use polypath_block::{Code, Device, DeviceInfo, DeviceState, DiskUri, Geometry, Host, Limits, Poller, Status};
pub use polypath_memory::{Arena, Chunk};
pub use polypath_multipath::{Fencing, Group, MatchPolicy, PathId, PathStatistics, SelectorKind};
pub use polypath_reactor::{CpuList, IdlePolicy};
