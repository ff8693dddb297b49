//! `vhost-user-blk:///path/to.sock`: a vhost-user-blk back-end as a disk, seen as a guest sees it.
//!
//! **Knows:** the front-end's side of vhost-user (QEMU `docs/interop/vhost-user.rst`) as far as a disk needs it, the driver's side of a split
//! virtqueue and of virtio-blk (virtio 1.2, sections 2.7 and 5.2), which of our memory the back-end has, and when the back-end is gone.
//! `docs/decisions/0005-front-end-by-libblkio.md` says why this is not somebody else's front-end any more.
//!
//! **Refuses to know:** reconnecting. A back-end that is gone is gone; whoever wants the disk opens it again.
//!
//! **Threading:** the device is shared. Its control connection belongs to one thread of its own, the keeper, which waits for answers, so
//! that no reactor does; queues ask it and are woken through a bell of their own. A queue belongs to its reactor.
//!
//! **Descriptors that the back-end has as well** (kick and call) may become blocking, full or empty at any time: no call on them may wait.
//!
//! **Limits:** each control message and each I/O has one ([`ClientConfig`]). A back-end that does not keep it is given up, and one
//! that closes its socket (as the kernel does for a process that was killed) at once: what is in flight completes with a status of the path's scope, writes
//! with no proof of quiet, [`polypath_block::Device::state`] is `Gone`.
//!
//! **Unsafe:** none, forbidden.
//!
//! Read `shared.rs` first, then `keeper.rs` and `queue.rs`.
#![forbid(unsafe_code)]

mod blk;
mod config;
mod connection;
mod device;
mod keeper;
mod queue;
mod regions;
mod ring;
mod shared;
mod wire;

pub use config::{ClientConfig, ClientError};
pub use device::VhostUserDisk;
