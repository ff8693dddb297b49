//! Machines and programs that are not ours, for tests and experiments: QEMU guests, User-Mode Linux, an iSCSI target.
//!
//! **Knows:** how to start and end processes, how to boot a guest with a first file system of its own making and to talk to it by line,
//! how to run `tgtd`, and what of all this the machine has.
//!
//! **Refuses to know:** any Polypath crate, so that nothing here can agree with our code by sharing it; what is tested or measured.
//!
//! **Threading:** each [`Process`] with a console has one reader thread. Every wait has a deadline.
//!
//! **Unsafe:** none, forbidden.
//!
//! Read [`lab`] first, then [`guest`].
#![forbid(unsafe_code)]

pub mod guest;
pub mod initramfs;
pub mod lab;
pub mod process;
pub mod tgt;

pub use guest::{Guest, GuestSpec};
pub use lab::{Lab, Need};
pub use process::{Console, Process};
