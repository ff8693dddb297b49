//! iSCSI: octets, login, protocol, and the shell that drives them over a socket.
//!
//! Rooms: [`pdu`] knows the octets of every PDU (for initiator and target alike), [`login`] and [`chap`] the login phase of either side,
//! [`proto`] the initiator's side of a connection in its full-feature phase; none of them has a socket or a clock. The shell over
//! `polypath-net` moves octets between them: [`Session`], a queue of SCSI tasks, and [`Target`], the host-bus driver whose disks the mid-layer
//! of `polypath-scsi` makes. [`discover`] asks a portal which targets there are.
//!
//! **Knows** RFC 7143 at error recovery level 0 with one connection per session, several sessions per target (one per reactor), how to come
//! back, and how to prove that the tasks of a lost session are quiet. **Refuses to know** what the commands mean, disks (the mid-layer
//! does), which of several paths an I/O should take, and the clock: time is an argument.
//!
//! **Threading:** the control session is a poller on one named reactor; a session belongs to the reactor that it was opened on. Nothing
//! on the data path locks or allocates.
//!
//! **Unsafe**: forbidden. Read [`proto`] first, then `link.rs`, `session.rs`, and `target.rs` for the control side.
#![forbid(unsafe_code)]

pub mod chap;
mod config;
pub mod discover;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod link;
pub mod login;
pub mod pdu;
pub mod proto;
mod secret_file;
pub mod serial;
mod session;
mod target;

pub use config::{OPTIONS, Portal, TargetConfig};
pub use identity::initiator_name;
pub use polypath_scsi::midlayer::ScsiDisk;
pub use secret_file::read_secret;
pub use session::Session;
pub use target::{Target, open};
