//! `vhost-user-blk:///path/to.sock`: a vhost-user-blk back-end as a disk, seen as a guest sees it.
//!
//! The front-end inside is the independent `blkio` crate (libblkio), on purpose: a demo or a test that drives our back-end
//! through this crate drives it with somebody else's idea of the protocol and of the ring.
//!
//! **Knows:** how to turn [`polypath_block::Io`] into blkio requests and completions back. **Refuses to know:** the protocol.
//!
//! **Threading:** the device is shared; one connection has as many queues as it was opened with, each handed out once.
//!
//! **Unsafe:** one block, which reads the completions that blkio has written (its interface is that of C).
#![deny(unsafe_code)]

mod device;
mod queue;

pub use device::{ClientConfig, ClientError, VhostUserDisk};
