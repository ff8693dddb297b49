//! The lab: what the real-peer tests stand on.
//!
//! It knows how to run, in the guests and beside the processes of `polypath-lab` (re-exported here), the
//! outside programs that judge Polypath (Linux's NVMe/TCP target and initiator, QEMU, the `blkio` crate) and run our own programs as a
//! user would: by their command line. It refuses to link any Polypath crate, so that nothing here can agree with our code by sharing it.
//!
//! A test is an ordinary `#[test]` function that begins with `let Some(lab) = Lab::enter("peer", "test", &[needs]) else { return };`.
//! When something is missing, `enter` says so and records a skip; `cargo xtask test` counts these and shows them in its last lines.
//! Every wait has a deadline; nothing sleeps to synchronise. Guests need no root: networking is QEMU's user network.
//!
//! `unsafe` is denied but for [`blk`], whose peer crate hands out raw memory. Read [`lab`] first, then [`guest`].
#![deny(unsafe_code)]

pub mod blk;
pub mod bring_up;
pub mod capture;
pub mod peers;
pub mod products;
pub mod qmp;

pub use polypath_lab::{Console, Guest, GuestSpec, Lab, Need, Process, guest, initramfs, lab, process, tgt};
