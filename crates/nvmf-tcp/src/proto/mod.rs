//! The host's side of one NVMe/TCP connection (one queue), without socket, clock or data.
//!
//! The connection decides; its owner, the *shell*, moves bytes. Sending:
//!
//! 1. [`HostConnection::submit`] takes a command and says in which slot it sits;
//! 2. with data digests, the shell answers [`HostConnection::next_digest`] with
//!    [`HostConnection::set_digest`], since only it sees data;
//! 3. [`HostConnection::transmit`] lists, in order, what has to leave: octets of the connection's own
//!    memory, and ranges of a slot's data. The shell makes one vectored send of it and tells with
//!    [`HostConnection::sent`] how far it came.
//!
//! Receiving: [`HostConnection::wants`] says where the next octets go: header octets to
//! [`HostConnection::handle_bytes`], data octets straight into the slot's segments
//! ([`HostConnection::data_moved`] tells how many), digest octets to [`HostConnection::handle_digest`].
//! What came of it is fetched with [`HostConnection::poll_event`]. Before that, and as often as it gives something,
//! [`HostConnection::take_whole`] may be asked for what is common and wholly there: it does the same for less.
//!
//! An error ends the connection. What has finished is still in the event queue; what has not comes out of
//! [`HostConnection::poll_outcome`], once per command, with its [`Outcome`]: a command of which no octet was
//! handed to the socket is [`Outcome::NotSent`], any other is [`Outcome::Unknown`]. A slot's buffers belong to
//! the connection until its event or outcome was fetched.
//!
//! Everything is allocated in [`HostConnection::new`]. Nothing panics on any octets from the peer. A peer that
//! sends an impossible command identifier, wrong lengths, data nobody asked for or a wrong digest gets an error
//! and loses this connection, nothing else.

mod connection;
mod error;
mod receive;
mod slots;
#[cfg(test)]
mod tests;
mod whole;

pub use connection::{ConfigError, HostConfig, HostConnection, Negotiated, Sending, SubmitError};
pub use error::ProtocolError;
pub use slots::MAX_DEPTH;
pub use whole::Whole;

use polypath_nvme::Cqe;

/// The data of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPlan {
    /// None.
    None,
    /// From the controller.
    ToHost {
        /// Octets of the buffer.
        len: u32,
        /// Success without all of them is an error of the controller (I/O reads). Otherwise fewer may come,
        /// and [`Event::Completed`] says how many.
        exact: bool,
    },
    /// To the controller: in the capsule when it fits, else when the controller asks.
    ToController {
        /// Octets.
        len: u32,
        /// Success without having taken all of them is an error of the controller.
        exact: bool,
    },
}

/// Where the next received octets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// At least this many octets to [`HostConnection::handle_bytes`]; it takes more when there are.
    Header(usize),
    /// Up to `len` octets into the data of this slot; then [`HostConnection::data_moved`].
    Data {
        /// Slot.
        slot: u16,
        /// Octets from the start of its data.
        offset: u32,
        /// Octets.
        len: u32,
    },
    /// This many octets to [`HostConnection::handle_digest`], with the digest of the data of this PDU.
    Digest(usize),
    /// None: the connection is closed or was not started.
    Nothing,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// ICResp has arrived; commands may be submitted.
    Ready(Negotiated),
    /// A command has finished. Its slot is free once this was fetched.
    Completed {
        /// Slot.
        slot: u16,
        /// Completion; made up by us where the controller used the SUCCESS flag.
        cqe: Cqe,
        /// Data octets received.
        received: u32,
    },
}

/// What became of a command when the connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No octet of it was handed to the socket: the controller has never seen it.
    NotSent,
    /// The controller may have executed it, or may yet.
    Unknown,
    /// It had finished before.
    Finished(Cqe),
}
