//! The octets of iSCSI PDUs, both directions (RFC 7143 section 11).
//!
//! A receiver takes [`BHS_LEN`] octets, the basic header segment, hands them to [`Header::parse`], and knows from then on how many
//! octets the head has ([`Header::head_len`]: basic header, additional headers, header digest), how many data octets follow and
//! how many there are with padding and data digest ([`Header::tail_len`]). A length above what the receiver declared is refused
//! there. With the head complete it verifies the header digest ([`Header::verify_header_digest`]) and reads the PDU's own fields
//! (`DataIn::parse` and its like, or [`Pdu::parse`] for any). Nothing here panics on any input, and nothing here allocates.
//!
//! A sender fills in a value and calls `encode`, which writes the head: basic header and header digest. Data, padding and data
//! digest ([`data_digest`]) are for the caller to append.

mod any;
mod command;
mod data;
mod digest;
mod error;
mod header;
mod login;
mod nop;
mod opcode;
mod session;
mod tags;
mod task;
mod text;

pub use any::Pdu;
pub use command::{Ahs, AhsSegments, CommandResponse, Residual, ScsiCommand, ScsiResponse, TaskAttribute, split_sense};
pub use data::{DataIn, DataInStatus, DataOut, R2t, Snack, SnackKind};
pub use digest::{data_digest, header_digest};
pub use error::{EncodeError, PduError, RejectReason};
pub use header::{Framing, Header, PAD, pad_len};
pub use login::{Isid, LoginRequest, LoginResponse, LoginStatus, Stage};
pub use nop::{NopIn, NopOut};
pub use opcode::{Opcode, Role};
pub use session::{AsyncEvent, AsyncMessage, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, Reject};
pub use tags::{InitiatorSn, Itt, Lun, TargetSn, Ttt};
pub use task::{TaskFunction, TaskRequest, TaskResponse, TaskResult};
pub use text::{TextRequest, TextResponse};

/// Octets of the basic header segment, section 11.2.1.
pub const BHS_LEN: usize = 48;
/// Octets of a header or data digest, section 11.2.3.
pub const DIGEST_LEN: usize = 4;
/// Most octets of all additional header segments: TotalAHSLength is one octet that counts words, section 11.2.1.5.
pub const MAX_AHS_LEN: usize = 255 * 4;
/// Most octets before the data of any PDU that a target receives: a SCSI Command with additional headers and a header digest.
pub const MAX_HEAD: usize = BHS_LEN + MAX_AHS_LEN + DIGEST_LEN;
/// Most octets before the data of any PDU without additional headers, so of any that an initiator receives.
pub const MAX_PLAIN_HEAD: usize = BHS_LEN + DIGEST_LEN;
/// Most octets of a data segment: DataSegmentLength has 24 bits, section 11.2.1.6.
pub const MAX_DATA_LEN: u32 = (1 << 24) - 1;
/// What every side takes in one data segment until it declares otherwise, section 13.12.
pub const DEFAULT_MAX_RECV_DATA_LEN: u32 = 8192;
/// Initiator or target task tag that stands for none, sections 11.2.1.8 and 11.7.4.
pub const RESERVED_TAG: u32 = 0xffff_ffff;

/// Offsets of fields from the start of their PDU.
pub mod offset {
    /// Opcode with the I bit, section 11.2.1.1.
    pub const OPCODE: usize = 0;
    /// Flags that belong to the opcode, with the F (or T) bit on top, section 11.2.1.3.
    pub const FLAGS: usize = 1;
    /// Response of SCSI Response, Task Management Function Response and Logout Response; reason of Reject (sections 11.4.3, 11.6.1, 11.15.1, 11.17.1).
    pub const RESPONSE: usize = 2;
    /// Version-max of login PDUs, section 11.12.4.
    pub const VERSION_MAX: usize = 2;
    /// Version-min of Login Request, Version-active of Login Response (sections 11.12.4, 11.13.2).
    pub const VERSION_MIN: usize = 3;
    /// Status of SCSI Response and Data-In, sections 11.4.2 and 11.7.
    pub const STATUS: usize = 3;
    /// TotalAHSLength in words, section 11.2.1.5.
    pub const AHS_LEN: usize = 4;
    /// DataSegmentLength, 3 octets, section 11.2.1.6.
    pub const DATA_LEN: usize = 5;
    /// LUN, 8 octets, section 11.2.1.7.
    pub const LUN: usize = 8;
    /// ISID of login PDUs, 6 octets, section 11.12.5.
    pub const ISID: usize = 8;
    /// TSIH of login PDUs, 2 octets, section 11.12.6.
    pub const TSIH: usize = 14;
    /// Initiator task tag, 4 octets, section 11.2.1.8.
    pub const ITT: usize = 16;
    /// Expected data transfer length of SCSI Command, 4 octets, section 11.3.4.
    pub const EXPECTED_LEN: usize = 20;
    /// SNACK tag of SCSI Response, 4 octets, sections 11.4.4 and 11.16.5.
    pub const SNACK_TAG: usize = 20;
    /// Referenced task tag of Task Management Function Request, 4 octets, section 11.5.4.
    pub const REFERENCED_TAG: usize = 20;
    /// Target transfer tag, 4 octets, section 11.7.4.
    pub const TTT: usize = 20;
    /// CID of Login and Logout Request, 2 octets, sections 11.12.7 and 11.14.3.
    pub const CID: usize = 20;
    /// CmdSN of what initiators send, 4 octets, section 11.3.2.
    pub const CMD_SN: usize = 24;
    /// StatSN of what targets send, 4 octets, section 11.4.9.
    pub const STAT_SN: usize = 24;
    /// ExpStatSN of what initiators send, 4 octets, section 11.3.3.
    pub const EXP_STAT_SN: usize = 28;
    /// ExpCmdSN of what targets send, 4 octets, section 11.4.10.
    pub const EXP_CMD_SN: usize = 28;
    /// MaxCmdSN of what targets send, 4 octets, section 11.4.11.
    pub const MAX_CMD_SN: usize = 32;
    /// CDB of SCSI Command, 16 octets, section 11.3.5.
    pub const CDB: usize = 32;
    /// RefCmdSN of Task Management Function Request, 4 octets, section 11.5.5.
    pub const REF_CMD_SN: usize = 32;
    /// ExpDataSN of SCSI Response and Task Management Function Request, 4 octets, sections 11.4.8 and 11.5.6.
    pub const EXP_DATA_SN: usize = 36;
    /// DataSN of Data-Out, Data-In and Reject, 4 octets, sections 11.7.5 and 11.17.2.
    pub const DATA_SN: usize = 36;
    /// R2TSN, 4 octets, section 11.8.2.
    pub const R2T_SN: usize = 36;
    /// Status-Class of Login Response, section 11.13.5.
    pub const STATUS_CLASS: usize = 36;
    /// Status-Detail of Login Response, section 11.13.5.
    pub const STATUS_DETAIL: usize = 37;
    /// AsyncEvent, section 11.9.1.
    pub const ASYNC_EVENT: usize = 36;
    /// AsyncVCode, section 11.9.2.
    pub const ASYNC_VCODE: usize = 37;
    /// Parameter1 of Asynchronous Message, 2 octets, section 11.9.
    pub const PARAMETER1: usize = 38;
    /// Parameter2 of Asynchronous Message, 2 octets.
    pub const PARAMETER2: usize = 40;
    /// Parameter3 of Asynchronous Message, 2 octets.
    pub const PARAMETER3: usize = 42;
    /// Buffer offset of Data-Out, Data-In and R2T, 4 octets, sections 11.7.6 and 11.8.4.
    pub const BUFFER_OFFSET: usize = 40;
    /// Bidirectional read residual count of SCSI Response, 4 octets, section 11.4.6.
    pub const READ_RESIDUAL: usize = 40;
    /// BegRun of SNACK, 4 octets, section 11.16.6.
    pub const BEG_RUN: usize = 40;
    /// Time2Wait of Logout Response, 2 octets, section 11.15.3.
    pub const TIME2WAIT: usize = 40;
    /// Time2Retain of Logout Response, 2 octets, section 11.15.4.
    pub const TIME2RETAIN: usize = 42;
    /// Residual count of SCSI Response and Data-In, 4 octets, section 11.4.5.
    pub const RESIDUAL: usize = 44;
    /// Desired data transfer length of R2T, 4 octets, section 11.8.4.
    pub const DESIRED_LEN: usize = 44;
    /// RunLength of SNACK, 4 octets, section 11.16.7.
    pub const RUN_LENGTH: usize = 44;
}

/// Bits of the first two octets.
pub mod flags {
    /// I: for immediate delivery, in octet 0 (section 11.2.1.1).
    pub const IMMEDIATE: u8 = 0x40;
    /// Bits of octet 0 that are the opcode.
    pub const OPCODE: u8 = 0x3f;
    /// F: the last of a sequence; always set where a PDU has no sequences.
    pub const FINAL: u8 = 0x80;
    /// T of login PDUs: to the next stage (section 11.12.1).
    pub const TRANSIT: u8 = 0x80;
    /// C of text and login PDUs: the text goes on in the next PDU (sections 11.10.2 and 11.12.2).
    pub const CONTINUE: u8 = 0x40;
    /// R of SCSI Command: data are expected from the target (section 11.3.1).
    pub const READ: u8 = 0x40;
    /// W of SCSI Command: data are expected to go to the target.
    pub const WRITE: u8 = 0x20;
    /// ATTR of SCSI Command, 3 bits.
    pub const ATTR: u8 = 0x07;
    /// o of SCSI Response: overflow of the read part of a bidirectional command (section 11.4.1).
    pub const READ_OVERFLOW: u8 = 0x10;
    /// u of SCSI Response: underflow of the same.
    pub const READ_UNDERFLOW: u8 = 0x08;
    /// O of SCSI Response and Data-In: residual overflow.
    pub const OVERFLOW: u8 = 0x04;
    /// U of SCSI Response and Data-In: residual underflow.
    pub const UNDERFLOW: u8 = 0x02;
    /// S of Data-In: this PDU carries the status (section 11.7.3).
    pub const STATUS: u8 = 0x01;
    /// A of Data-In: the initiator is to acknowledge (section 11.7.2).
    pub const ACKNOWLEDGE: u8 = 0x40;
}

/// The basic header segment.
type Bhs = [u8; BHS_LEN];

#[inline]
fn be16(b: &Bhs, at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

#[inline]
fn be32(b: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

#[inline]
fn put<const N: usize>(b: &mut Bhs, at: usize, value: [u8; N]) {
    b[at..at + N].copy_from_slice(&value);
}

#[inline]
fn flag(b: &Bhs, mask: u8) -> bool {
    b[offset::FLAGS] & mask != 0
}

/// `mask` if `set`, for building an octet of flags.
#[inline]
fn bit(set: bool, mask: u8) -> u8 {
    if set { mask } else { 0 }
}

#[cfg(test)]
mod tests;
