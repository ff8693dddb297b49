//! Why a PDU was not accepted, and what a target answers.

use super::{MAX_DATA_LEN, Opcode, Role, offset};

/// Why a PDU was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// Fewer octets than the head has; a fault of the caller, who must collect them first.
    #[error("{have} bytes of a PDU head that has {need}")]
    Short {
        /// Octets needed.
        need: usize,
        /// Octets there were.
        have: usize,
    },
    /// No PDU that we know has this opcode.
    #[error("unknown opcode {0:#04x}")]
    UnknownOpcode(u8),
    /// A PDU that only we may send.
    #[error("{0} came from the wrong side, the {role}", role = .0.sender().peer())]
    WrongSide(Opcode),
    /// Additional headers on a PDU that has none (section 11.2.1.5).
    #[error("{opcode} with {words} words of additional headers, expected none")]
    UnexpectedAhs {
        /// Kind of PDU.
        opcode: Opcode,
        /// TotalAHSLength.
        words: u8,
    },
    /// An additional header segment that does not fit TotalAHSLength or its type.
    #[error(
        "additional header segment at octet {at} does not fit its {left} octets (AHSLength {length}, type {kind:#04x})"
    )]
    BadAhs {
        /// Where in the additional headers it begins.
        at: u16,
        /// Octets from there to their end.
        left: u16,
        /// AHSLength.
        length: u16,
        /// AHSType.
        kind: u8,
    },
    /// Data on a PDU that has none.
    #[error("{opcode} with {data_len} bytes of data, expected none")]
    UnexpectedData {
        /// Kind of PDU.
        opcode: Opcode,
        /// DataSegmentLength.
        data_len: u32,
    },
    /// More data than the receiver declared it would take.
    #[error("{opcode} with {data_len} bytes of data, more than the {max} of MaxRecvDataSegmentLength")]
    TooLong {
        /// Kind of PDU.
        opcode: Opcode,
        /// DataSegmentLength.
        data_len: u32,
        /// What the receiver declared.
        max: u32,
    },
    /// The header digest is wrong.
    #[error("header digest is {received:#010x}, computed {computed:#010x}")]
    HeaderDigest {
        /// What was received.
        received: u32,
        /// What the head gives.
        computed: u32,
    },
    /// The data digest is wrong.
    #[error("data digest is {received:#010x}, computed {computed:#010x}")]
    DataDigest {
        /// What was received.
        received: u32,
        /// What the data give.
        computed: u32,
    },
    /// Flags that exclude or need each other.
    #[error("flags {flags:#04x} of {opcode} contradict each other: {why}")]
    Flags {
        /// Kind of PDU.
        opcode: Opcode,
        /// Octet 1.
        flags: u8,
        /// Which rule they break.
        why: &'static str,
    },
    /// A field with a value that it cannot have.
    #[error("{field} of {opcode} is {value:#x}, expected {expected}")]
    Field {
        /// Kind of PDU.
        opcode: Opcode,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u32,
        /// What would have been legal.
        expected: &'static str,
    },
    /// The sense data do not fit the data segment of a SCSI Response (section 11.4.7).
    #[error("SenseLength is {sense_len} in a data segment of {data_len} bytes")]
    Sense {
        /// SenseLength, 0 where there was not even that.
        sense_len: u16,
        /// DataSegmentLength.
        data_len: u32,
    },
}

impl PduError {
    /// The reason with which a target rejects what an initiator sent; `None` where the connection must be closed instead, because the
    /// boundaries of PDUs are lost (section 7.8) or no PDU was complete.
    pub fn reject_reason(&self) -> Option<RejectReason> {
        Some(match self {
            PduError::Short { .. } | PduError::HeaderDigest { .. } | PduError::TooLong { .. } => return None,
            PduError::DataDigest { .. } => RejectReason::DataDigestError,
            PduError::UnknownOpcode(_) => RejectReason::CommandNotSupported,
            PduError::WrongSide(_) | PduError::UnexpectedData { .. } => RejectReason::ProtocolError,
            PduError::UnexpectedAhs { .. }
            | PduError::BadAhs { .. }
            | PduError::Flags { .. }
            | PduError::Field { .. }
            | PduError::Sense { .. } => RejectReason::InvalidPduField,
        })
    }
}

/// A flags error about octet 1 of `b`.
pub(super) fn bad_flags(opcode: Opcode, b: &super::Bhs, why: &'static str) -> PduError {
    PduError::Flags { opcode, flags: b[offset::FLAGS], why }
}

/// Why a PDU could not be encoded. Both are faults of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The output is too small; [`super::MAX_PLAIN_HEAD`] octets suffice for all but a command with additional headers, which
    /// fits [`super::MAX_HEAD`].
    #[error("output of {have} bytes, {need} needed")]
    NoRoom {
        /// Octets needed.
        need: usize,
        /// Octets there were.
        have: usize,
    },
    /// More data than the peer takes or than DataSegmentLength can say.
    #[error("{data_len} bytes of data do not fit one PDU, which takes {max}")]
    TooLong {
        /// What was to be sent.
        data_len: u32,
        /// The most there may be, never above 2^24-1.
        max: u32,
    },
    /// Additional headers that are no list of well-formed segments of at most 1020 octets in all.
    #[error("{0} octets of additional headers are not well-formed segments of at most 1020 octets")]
    BadAhs(usize),
}

impl EncodeError {
    /// Checks a length of data against what the receiver takes.
    #[inline]
    pub(super) fn check_length(data_len: u32, max: u32) -> Result<(), EncodeError> {
        let max = max.min(MAX_DATA_LEN);
        if data_len <= max { Ok(()) } else { Err(EncodeError::TooLong { data_len, max }) }
    }
}

/// Reason of a Reject (section 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// 02h: the data digest of a PDU was wrong. The PDU may be sent again.
    DataDigestError,
    /// 03h: a SNACK cannot be served.
    SnackReject,
    /// 04h: for example a SNACK for what was already acknowledged.
    ProtocolError,
    /// 05h.
    CommandNotSupported,
    /// 06h: too many immediate commands.
    ImmediateCommandReject,
    /// 07h: the initiator task tag is in use.
    TaskInProgress,
    /// 08h: an acknowledgement of data that were not sent.
    InvalidDataAck,
    /// 09h.
    InvalidPduField,
    /// 0Ah: no target transfer tag could be made.
    LongOperationReject,
    /// 0Bh: deprecated, negotiation reset.
    NegotiationReset,
    /// 0Ch: the target waits for a logout.
    WaitingForLogout,
    /// Any other.
    Other(u8),
}

impl RejectReason {
    /// From the wire.
    pub fn from_code(code: u8) -> Self {
        match code {
            0x02 => RejectReason::DataDigestError,
            0x03 => RejectReason::SnackReject,
            0x04 => RejectReason::ProtocolError,
            0x05 => RejectReason::CommandNotSupported,
            0x06 => RejectReason::ImmediateCommandReject,
            0x07 => RejectReason::TaskInProgress,
            0x08 => RejectReason::InvalidDataAck,
            0x09 => RejectReason::InvalidPduField,
            0x0a => RejectReason::LongOperationReject,
            0x0b => RejectReason::NegotiationReset,
            0x0c => RejectReason::WaitingForLogout,
            other => RejectReason::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u8 {
        match self {
            RejectReason::DataDigestError => 0x02,
            RejectReason::SnackReject => 0x03,
            RejectReason::ProtocolError => 0x04,
            RejectReason::CommandNotSupported => 0x05,
            RejectReason::ImmediateCommandReject => 0x06,
            RejectReason::TaskInProgress => 0x07,
            RejectReason::InvalidDataAck => 0x08,
            RejectReason::InvalidPduField => 0x09,
            RejectReason::LongOperationReject => 0x0a,
            RejectReason::NegotiationReset => 0x0b,
            RejectReason::WaitingForLogout => 0x0c,
            RejectReason::Other(code) => code,
        }
    }
}

impl std::fmt::Display for RejectReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RejectReason::DataDigestError => "data digest error",
            RejectReason::SnackReject => "SNACK reject",
            RejectReason::ProtocolError => "protocol error",
            RejectReason::CommandNotSupported => "command not supported",
            RejectReason::ImmediateCommandReject => "too many immediate commands",
            RejectReason::TaskInProgress => "task in progress",
            RejectReason::InvalidDataAck => "invalid data acknowledgement",
            RejectReason::InvalidPduField => "invalid PDU field",
            RejectReason::LongOperationReject => "no target transfer tag left",
            RejectReason::NegotiationReset => "negotiation reset",
            RejectReason::WaitingForLogout => "waiting for logout",
            RejectReason::Other(code) => return write!(f, "reserved reason {code:#04x}"),
        })
    }
}

/// The error of a side that sent what only its peer may send.
#[inline]
pub(super) fn check_side(opcode: Opcode, from: Role) -> Result<(), PduError> {
    if opcode.sender() == from { Ok(()) } else { Err(PduError::WrongSide(opcode)) }
}
