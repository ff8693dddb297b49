//! The initiator's side of one iSCSI connection in its full-feature phase, without socket, clock or data.
//!
//! The connection decides; its owner, the *shell*, moves octets. Sending:
//!
//! 1. [`InitiatorConnection::submit`] takes a task and says in which slot it sits;
//! 2. with data digests the shell answers [`InitiatorConnection::next_digest`] with [`InitiatorConnection::set_digest`], since only it sees
//!    data;
//! 3. [`InitiatorConnection::transmit`] lists, in order, what has to leave: octets of the connection's own memory, and ranges of a
//!    slot's data. The shell makes one vectored send of it and tells with [`InitiatorConnection::sent`] how far it came.
//!
//! Receiving: [`InitiatorConnection::wants`] says where the next octets go: octets of heads, and of data that are for the connection itself, to
//! [`InitiatorConnection::handle_bytes`], read data straight into the slot's segments ([`InitiatorConnection::data_moved`] tells how many),
//! padding and digests to [`InitiatorConnection::handle_tail`]. What came of it is fetched with [`InitiatorConnection::poll_event`].
//!
//! An error ends the connection, and at error recovery level 0 the session with it. What has finished is still in the event queue; what
//! has not comes out of [`InitiatorConnection::poll_outcome`], once per task: one of which no octet was handed to the socket is
//! [`Fate::NotSent`], any other is [`Fate::Unknown`]. A slot's buffers belong to the connection until its event or outcome was fetched.
//!
//! Everything is allocated in [`InitiatorConnection::new`]. Nothing panics on any octets from the peer. A peer that sends a tag nobody
//! gave, numbers out of order, wrong lengths, data nobody asked for or a wrong digest loses this connection, nothing else.
//!
//! Rules kept, RFC 7143: CmdSN and its window (4.2.2.1), StatSN (4.2.2.2), DataSN and R2TSN (4.2.2.3), unsolicited data and the first burst
//! (4.2.5.2), R2T in order (11.8), data in order (13.18, 13.19), ABORT TASK with RefCmdSN (11.5.6), NOP-In answered by NOP-Out (11.18).

mod connection;
mod error;
mod receive;
mod slots;
#[cfg(test)]
mod tests;

pub use connection::{InitiatorConnection, Parameters, Sending, SubmitError};
pub use error::ProtocolError;
pub use slots::MAX_DEPTH;

use crate::pdu::{AsyncEvent, TaskResult};
use polypath_block::Fate;

/// The data of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPlan {
    /// None.
    None,
    /// From the target, up to so many octets.
    In(u32),
    /// To the target, so many octets: at once as far as was negotiated, the rest when the target asks.
    Out(u32),
}

/// Where the next received octets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// At least this many octets to [`InitiatorConnection::handle_bytes`]; it takes more when there are.
    Bytes(usize),
    /// Up to `len` octets into the data of this slot; then [`InitiatorConnection::data_moved`].
    Data {
        /// Slot.
        slot: u16,
        /// Octets from the start of its data.
        offset: u32,
        /// Octets.
        len: u32,
    },
    /// This many octets of padding and digest behind data to [`InitiatorConnection::handle_tail`], with the digest of those data.
    Tail(usize),
    /// None: the connection is closed.
    Nothing,
}

/// How a task was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// SCSI status. `None`: the target has failed to carry it out, and says no more (response code 01h and vendors' own).
    pub status: Option<u8>,
    /// Data octets moved, as far as both sides agree.
    pub moved: u32,
    /// All octets that the task has were moved.
    pub whole: bool,
    /// Sense data are in [`InitiatorConnection::sense`] until the next event is fetched or the next octets are handed in.
    pub has_sense: bool,
}

impl Ending {
    /// Not answered.
    const NONE: Ending = Ending { status: None, moved: 0, whole: false, has_sense: false };
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A task has ended. Its slot is free once this was fetched.
    Ended {
        /// Slot.
        slot: u16,
        /// How.
        ending: Ending,
    },
    /// A task management request was answered. The task that an ABORT TASK named is still in its slot: whoever asked ends it with
    /// [`InitiatorConnection::end_aborted`] where the answer says so.
    Managed {
        /// The number it was asked with.
        token: u64,
        /// What the target says.
        result: TaskResult,
    },
    /// A ping of ours was answered.
    Pong,
    /// The target has something to say of the session: it is to be left, or is about to end.
    Async(AsyncEvent),
    /// The target reports sense data of its own accord, for a logical unit: what was known of it may not hold any more.
    AsyncSense([u8; 8]),
    /// Logout was answered: the connection may be closed.
    LoggedOut,
}

/// What became of a task when the connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It had been answered before.
    Ended(Ending),
    /// It had not: [`Fate::NotSent`] or [`Fate::Unknown`].
    Lost(Fate),
}
