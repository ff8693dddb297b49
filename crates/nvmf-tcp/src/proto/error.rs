//! Why a connection ended.

use crate::pdu::{Fes, PduError, PduType, offset};

/// A fault of the peer. Each ends the connection; most are answered with a terminate request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A PDU is malformed or its header digest wrong.
    #[error("malformed PDU: {0}")]
    Pdu(#[from] PduError),
    /// A PDU that does not belong here at this time.
    #[error("{0} is out of sequence")]
    OutOfSequence(PduType),
    /// The controller did not grant a digest that the configuration requires.
    #[error("the controller does not grant the {0} digest that the configuration requires")]
    DigestRefused(&'static str),
    /// No command in flight has this identifier: impossible, stale or a duplicate.
    #[error("{kind} names command identifier {cid:#06x}, which is not in flight")]
    UnknownCommand {
        /// PDU.
        kind: PduType,
        /// Identifier.
        cid: u16,
    },
    /// An answer to a command that was not sent yet.
    #[error("{kind} answers command {cid:#06x} before it was sent")]
    Premature {
        /// PDU.
        kind: PduType,
        /// Identifier.
        cid: u16,
    },
    /// Data, or a request for data, that the command does not involve, or after its last.
    #[error("{kind} for command {cid:#06x}, which expects none")]
    Unexpected {
        /// PDU.
        kind: PduType,
        /// Identifier.
        cid: u16,
    },
    /// Data or R2T do not continue where the one before ended.
    #[error("{kind} for command {cid:#06x} starts at {offset}, expected {expected}")]
    NotContiguous {
        /// PDU.
        kind: PduType,
        /// Identifier.
        cid: u16,
        /// Where it starts.
        offset: u32,
        /// Where it should.
        expected: u32,
    },
    /// Data or R2T reach over the end of the command's data.
    #[error("{kind} for command {cid:#06x} covers {offset}+{length}, the command has {have} bytes")]
    OutOfRange {
        /// PDU.
        kind: PduType,
        /// Identifier.
        cid: u16,
        /// Start.
        offset: u32,
        /// Octets.
        length: u32,
        /// Octets of the command.
        have: u32,
    },
    /// More R2T outstanding for a command than were allowed.
    #[error("more than {limit} R2T outstanding for command {cid:#06x}")]
    R2tLimit {
        /// Identifier.
        cid: u16,
        /// MAXR2T, not zero-based.
        limit: u32,
    },
    /// SUCCESS flag although SQ flow control is in use.
    #[error("SUCCESS flag for command {0:#06x} although SQ flow control is in use")]
    SuccessNotAllowed(u16),
    /// Success without the data that belongs to it.
    #[error("command {cid:#06x} is reported successful after {moved} of {have} bytes")]
    ShortTransfer {
        /// Identifier.
        cid: u16,
        /// Octets moved.
        moved: u32,
        /// Octets of the command.
        have: u32,
    },
    /// A data digest is wrong, and the configuration makes that fatal.
    #[error("data digest of command {cid:#06x} is {received:#010x}, computed {computed:#010x}")]
    DataDigest {
        /// Identifier.
        cid: u16,
        /// What was received.
        received: u32,
        /// What the data give.
        computed: u32,
    },
    /// The controller terminates the connection.
    #[error("the controller terminates the connection: {fes}, further information {fei:#x}")]
    Terminated {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
    /// Octets were handed in although none were wanted: a fault of the shell.
    #[error("bytes were handed to a connection that wants none")]
    NotWanted,
}

impl ProtocolError {
    /// The Fatal Error Status to answer with; `None` when none must or can be sent.
    pub fn fes(&self) -> Option<Fes> {
        match self {
            ProtocolError::Pdu(e) => e.fes(),
            ProtocolError::UnknownCommand { .. } | ProtocolError::SuccessNotAllowed(_) => Some(Fes::InvalidHeaderField),
            ProtocolError::DigestRefused(_) => Some(Fes::UnsupportedParameter),
            ProtocolError::OutOfRange { .. } => Some(Fes::OutOfRange),
            ProtocolError::R2tLimit { .. } => Some(Fes::LimitExceeded),
            ProtocolError::OutOfSequence(_)
            | ProtocolError::Premature { .. }
            | ProtocolError::Unexpected { .. }
            | ProtocolError::NotContiguous { .. }
            | ProtocolError::ShortTransfer { .. } => Some(Fes::SequenceError),
            // A wrong data digest has no status of its own (section 3.5.1.1: it is not fatal).
            ProtocolError::DataDigest { .. } | ProtocolError::Terminated { .. } | ProtocolError::NotWanted => None,
        }
    }

    /// The Fatal Error Information to go with it.
    pub fn fei(&self) -> u32 {
        match self {
            ProtocolError::Pdu(e) => e.fei(),
            ProtocolError::DigestRefused(_) => offset::DGST as u32,
            // The identifier of a response lies in its completion entry, octets 13:12 of it.
            ProtocolError::UnknownCommand { kind: PduType::CapsuleResp, .. } => offset::CQE as u32 + 12,
            ProtocolError::UnknownCommand { .. } => offset::CCCID as u32,
            ProtocolError::SuccessNotAllowed(_) => offset::FLAGS as u32,
            _ => 0,
        }
    }
}
