//! What a target can do wrong.

use crate::pdu::{Opcode, PduError};

/// Why a connection was ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The octets are no PDU, or a digest is wrong.
    #[error("{0}")]
    Pdu(#[from] PduError),
    /// A PDU that has no place here.
    #[error("the target sent {0:?}, which nobody asked for")]
    OutOfSequence(Opcode),
    /// A tag that no task has.
    #[error("{kind:?} names task {itt:#010x}, which is not there")]
    UnknownTask {
        /// The PDU.
        kind: Opcode,
        /// Its tag.
        itt: u32,
    },
    /// A PDU for a task that cannot have one like this.
    #[error("{kind:?} for task {itt:#010x}: {problem}")]
    Task {
        /// The PDU.
        kind: Opcode,
        /// The task's tag.
        itt: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// Data or R2T beyond what the task has.
    #[error("{kind:?} for task {itt:#010x}: octets {offset} + {length}, the task has {have}")]
    OutOfRange {
        /// The PDU.
        kind: Opcode,
        /// The task's tag.
        itt: u32,
        /// First octet.
        offset: u32,
        /// Octets.
        length: u32,
        /// Octets of the task.
        have: u32,
    },
    /// Data or R2T that do not follow those before them.
    #[error("{kind:?} for task {itt:#010x}: begins at octet {offset}, expected {expected} (data are in order)")]
    NotContiguous {
        /// The PDU.
        kind: Opcode,
        /// The task's tag.
        itt: u32,
        /// First octet.
        offset: u32,
        /// Where it should begin.
        expected: u32,
    },
    /// A number out of order.
    #[error("{kind:?}: {what} is {value}, expected {expected}")]
    Number {
        /// The PDU.
        kind: Opcode,
        /// Which number.
        what: &'static str,
        /// What it is.
        value: u32,
        /// What it should be.
        expected: u32,
    },
    /// The target rejects a PDU of ours.
    #[error("the target rejects a PDU of ours (opcode {opcode:#04x}): {reason}")]
    Rejected {
        /// Opcode of the PDU.
        opcode: u8,
        /// Why.
        reason: String,
    },
    /// Octets where none are wanted.
    #[error("octets have come on a connection that is closed")]
    NotWanted,
}
