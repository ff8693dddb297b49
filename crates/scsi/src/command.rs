//! The target's side: what a command descriptor block asks for.
//!
//! [`Command::parse`] takes the 16 octets that a transport carries (shorter commands are padded) and gives either a [`Command`] with its
//! fields, or a [`CdbError`] that knows the sense data to answer with. Reserved bits are ignored, as SPC-4 4.2 allows; what changes the
//! meaning of a command and is not done here is refused: NACA, protection information, the obsolete PBDATA and LBDATA.

mod parse;

use crate::cdb::{ByteCheck, PageControl, Reporting, RwFlags, StartStop, WriteSame};
use crate::mode::Header;
use crate::opcode;
use crate::sense::{FieldPointer, Sense, key};
use std::fmt;

/// A range of blocks that is read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Transfer {
    /// First block.
    pub lba: u64,
    /// Blocks; none is no error (but READ(6) and WRITE(6) say zero for 256).
    pub blocks: u32,
    /// Modifiers.
    pub flags: RwFlags,
}

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// TEST UNIT READY.
    TestUnitReady,
    /// REQUEST SENSE.
    RequestSense {
        /// DESC: in descriptor format.
        descriptor: bool,
        /// Most octets to return.
        allocation_length: u8,
    },
    /// INQUIRY.
    Inquiry {
        /// The vital product data page; `None` for standard data.
        page: Option<u8>,
        /// Most octets to return.
        allocation_length: u16,
    },
    /// READ CAPACITY(10).
    ReadCapacity10,
    /// READ CAPACITY(16).
    ReadCapacity16 {
        /// Most octets to return.
        allocation_length: u32,
    },
    /// GET LBA STATUS.
    GetLbaStatus {
        /// Block to begin with.
        lba: u64,
        /// Most octets to return.
        allocation_length: u32,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// SELECT REPORT: 0 all but well known, 1 well known, 2 all.
        select: u8,
        /// Most octets to return; at least 16.
        allocation_length: u32,
    },
    /// READ(6), (10), (12) or (16).
    Read(Transfer),
    /// WRITE(6), (10), (12) or (16).
    Write(Transfer),
    /// VERIFY(10), (12) or (16).
    Verify {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// What to compare.
        check: ByteCheck,
        /// DPO.
        dpo: bool,
    },
    /// COMPARE AND WRITE: as many blocks to compare as to write come as data.
    CompareAndWrite(Transfer),
    /// SYNCHRONIZE CACHE(10) or (16).
    SynchronizeCache {
        /// First block.
        lba: u64,
        /// Blocks; none: all that follow.
        blocks: u32,
        /// IMMED: answer at once.
        immed: bool,
    },
    /// UNMAP.
    Unmap {
        /// ANCHOR.
        anchor: bool,
        /// Octets of parameter list that come; none is no error.
        parameter_length: u16,
    },
    /// WRITE SAME(10) or (16).
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks; none: all that follow, or refused (WSNZ).
        blocks: u32,
        /// UNMAP, ANCHOR and NDOB.
        how: WriteSame,
    },
    /// MODE SENSE(6) or (10).
    ModeSense {
        /// Which header is wanted.
        header: Header,
        /// DBD: no block descriptors are wanted.
        no_descriptors: bool,
        /// PC.
        control: PageControl,
        /// PAGE CODE, six bits.
        page: u8,
        /// SUBPAGE CODE.
        subpage: u8,
        /// Most octets to return.
        allocation_length: u16,
    },
    /// MODE SELECT(6) or (10).
    ModeSelect {
        /// Which header comes.
        header: Header,
        /// SP: to be saved.
        save: bool,
        /// Octets of parameter list that come.
        parameter_length: u16,
    },
    /// START STOP UNIT.
    StartStopUnit(StartStop),
    /// PREVENT ALLOW MEDIUM REMOVAL.
    PreventAllowMediumRemoval {
        /// PREVENT.
        prevent: bool,
    },
    /// RESERVE(6) or (10), obsolete.
    Reserve,
    /// RELEASE(6) or (10), obsolete.
    Release,
    /// READ DEFECT DATA(10) or (12).
    ReadDefectData {
        /// (12), with the longer header.
        twelve: bool,
        /// REQ_PLIST: the list of the factory.
        primary: bool,
        /// REQ_GLIST: the list that grew.
        grown: bool,
        /// DEFECT LIST FORMAT, three bits.
        format: u8,
        /// Most octets to return.
        allocation_length: u32,
    },
    /// PERSISTENT RESERVE IN.
    PersistentReserveIn {
        /// One of [`opcode::pr_in`].
        action: u8,
        /// Most octets to return.
        allocation_length: u16,
    },
    /// PERSISTENT RESERVE OUT.
    PersistentReserveOut {
        /// One of [`opcode::pr_out`].
        action: u8,
        /// SCOPE and TYPE, which not every service action looks at: [`crate::reservation::parse_scope_type`].
        scope_type: u8,
        /// Octets of parameter list that come.
        parameter_length: u32,
    },
    /// REPORT TARGET PORT GROUPS.
    ReportTargetPortGroups {
        /// The extended header is wanted.
        extended: bool,
        /// Most octets to return.
        allocation_length: u32,
    },
    /// SET TARGET PORT GROUPS.
    SetTargetPortGroups {
        /// Octets of parameter list that come.
        parameter_length: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    ReportSupportedOperationCodes {
        /// Which.
        which: Reporting,
        /// RCTD: timeouts descriptors are wanted, too.
        timeouts: bool,
        /// Most octets to return.
        allocation_length: u32,
    },
}

/// What a command moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    /// Nothing.
    None,
    /// At most so many octets to the initiator.
    In(u64),
    /// So many octets from the initiator.
    Out(u64),
}

impl Command {
    /// What it moves on a disk of `block_bytes` bytes a block, by the command alone: what the transport expects is another thing, and
    /// must be compared with this.
    pub fn data(&self, block_bytes: u32) -> Data {
        let blocks = |blocks: u32| u64::from(blocks) * u64::from(block_bytes);
        match *self {
            Command::TestUnitReady
            | Command::SynchronizeCache { .. }
            | Command::StartStopUnit(_)
            | Command::PreventAllowMediumRemoval { .. }
            | Command::Reserve
            | Command::Release => Data::None,
            Command::RequestSense { allocation_length, .. } => Data::In(allocation_length.into()),
            Command::Inquiry { allocation_length, .. }
            | Command::ModeSense { allocation_length, .. }
            | Command::PersistentReserveIn { allocation_length, .. } => Data::In(allocation_length.into()),
            Command::ReadCapacity10 => Data::In(crate::capacity::Capacity10::LEN as u64),
            Command::ReadCapacity16 { allocation_length }
            | Command::GetLbaStatus { allocation_length, .. }
            | Command::ReportLuns { allocation_length, .. }
            | Command::ReadDefectData { allocation_length, .. }
            | Command::ReportTargetPortGroups { allocation_length, .. }
            | Command::ReportSupportedOperationCodes { allocation_length, .. } => Data::In(allocation_length.into()),
            Command::Read(transfer) => Data::In(blocks(transfer.blocks)),
            Command::Write(transfer) => Data::Out(blocks(transfer.blocks)),
            Command::CompareAndWrite(transfer) => Data::Out(2 * blocks(transfer.blocks)),
            Command::Verify { check: ByteCheck::None, .. } => Data::None,
            Command::Verify { check: ByteCheck::Data, blocks: count, .. } => Data::Out(blocks(count)),
            Command::Verify { check: ByteCheck::OneBlock, .. } => Data::Out(blocks(1)),
            Command::WriteSame { how, .. } if how.no_data => Data::None,
            Command::WriteSame { .. } => Data::Out(blocks(1)),
            Command::Unmap { parameter_length, .. } | Command::ModeSelect { parameter_length, .. } => {
                Data::Out(parameter_length.into())
            }
            Command::PersistentReserveOut { parameter_length, .. }
            | Command::SetTargetPortGroups { parameter_length } => Data::Out(parameter_length.into()),
        }
    }
}

/// Why a command descriptor block was not accepted. [`CdbError::sense`] is the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CdbError {
    /// No command that we know.
    Opcode {
        /// OPERATION CODE.
        opcode: u8,
    },
    /// No service action that we know.
    ServiceAction {
        /// OPERATION CODE.
        opcode: u8,
        /// SERVICE ACTION.
        action: u8,
    },
    /// A field that is not what it may be.
    Field {
        /// OPERATION CODE.
        opcode: u8,
        /// The field.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        expected: &'static str,
        /// Where it is.
        pointer: FieldPointer,
    },
}

impl CdbError {
    /// The sense data to answer with: ILLEGAL REQUEST, and which field it is about.
    pub const fn sense(&self) -> Sense {
        match self {
            CdbError::Opcode { .. } => {
                let pointer = FieldPointer { in_cdb: true, byte: 0, bit: None };
                Sense::new(key::ILLEGAL_REQUEST, 0x20, 0).with_field(pointer)
            }
            CdbError::ServiceAction { .. } => {
                let pointer = FieldPointer { in_cdb: true, byte: 1, bit: Some(4) };
                Sense::new(key::ILLEGAL_REQUEST, 0x24, 0).with_field(pointer)
            }
            CdbError::Field { pointer, .. } => Sense::new(key::ILLEGAL_REQUEST, 0x24, 0).with_field(*pointer),
        }
    }
}

impl fmt::Display for CdbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |opcode| opcode::name(opcode).unwrap_or("unknown operation");
        match *self {
            CdbError::Opcode { opcode } => write!(f, "operation code {opcode:02X}h is not supported"),
            CdbError::ServiceAction { opcode, action } => {
                write!(f, "service action {action:02X}h of {} is not supported", name(opcode))
            }
            CdbError::Field { opcode, field, value, expected, pointer } => {
                write!(f, "{field} of {} is {value:#x} ({pointer}), expected {expected}", name(opcode))
            }
        }
    }
}

impl std::error::Error for CdbError {}

#[cfg(test)]
mod tests;
