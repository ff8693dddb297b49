//! What an entry says, for whoever receives it.

use super::{DEAC, DataDirection, FUA, Sqe, admin};
use crate::properties::Register;
use crate::wire::Field;
use crate::{ParseError, SglDescriptor};

/// What is in an entry. None of these can fail; whether the fields mean anything depends on the
/// opcode.
impl Sqe {
    /// Opcode.
    #[inline]
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Octet 1: FUSE in bits 1:0, PSDT in bits 7:6.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// PSDT: 0 for PRPs, 1 or 2 for SGLs. Fabrics demand 1.
    #[inline]
    pub fn psdt(&self) -> u8 {
        self.0[1] >> 6
    }

    /// FUSE: 0 for a command of its own, 1 and 2 for the halves of a fused one.
    #[inline]
    pub fn fuse(&self) -> u8 {
        self.0[1] & 3
    }

    /// Command identifier.
    #[inline]
    pub fn cid(&self) -> u16 {
        u16::get(&self.0, 2)
    }

    /// Namespace identifier. Not for fabrics commands, whose type lies there.
    #[inline]
    pub fn nsid(&self) -> u32 {
        u32::get(&self.0, 4)
    }

    /// Data pointer, read as an SGL descriptor.
    #[inline]
    pub fn sgl(&self) -> SglDescriptor {
        SglDescriptor::parse(&<[u8; 16]>::get(&self.0, 24))
    }

    /// Command dword `n`; zero for `n` above 15.
    #[inline]
    pub fn cdw(&self, n: usize) -> u32 {
        if n < 16 { u32::get(&self.0, n * 4) } else { 0 }
    }

    /// Which way the data goes.
    pub fn data_direction(&self) -> DataDirection {
        let code = if self.opcode() == admin::FABRICS { self.fctype() } else { self.opcode() };
        match code & 3 {
            0 => DataDirection::None,
            1 => DataDirection::HostToController,
            2 => DataDirection::ControllerToHost,
            _ => DataDirection::Both,
        }
    }

    /// First logical block of Read, Write, Compare and Write Zeroes.
    #[inline]
    pub fn slba(&self) -> u64 {
        u64::get(&self.0, 40)
    }

    /// Number of logical blocks, zero-based, of the same.
    #[inline]
    pub fn nlb_z(&self) -> u16 {
        u16::get(&self.0, 48)
    }

    /// Force Unit Access of the same.
    #[inline]
    pub fn fua(&self) -> bool {
        self.cdw(12) & FUA != 0
    }

    /// Deallocate of Write Zeroes.
    #[inline]
    pub fn deac(&self) -> bool {
        self.cdw(12) & DEAC != 0
    }

    /// Number of ranges of Dataset Management, zero-based.
    pub fn dsm_ranges_z(&self) -> u8 {
        self.0[40]
    }

    /// Deallocate attribute of Dataset Management.
    pub fn dsm_deallocate(&self) -> bool {
        self.cdw(11) & 4 != 0
    }

    /// CNS of Identify.
    pub fn cns(&self) -> u8 {
        self.0[40]
    }

    /// Controller identifier of Identify.
    pub fn cntid(&self) -> u16 {
        u16::get(&self.0, 42)
    }

    /// Log page identifier of Get Log Page.
    pub fn lid(&self) -> u8 {
        self.0[40]
    }

    /// Log specific parameter of Get Log Page.
    pub fn lsp(&self) -> u8 {
        self.0[41] & 0x7f
    }

    /// Retain Asynchronous Event of Get Log Page.
    pub fn rae(&self) -> bool {
        self.0[41] & 0x80 != 0
    }

    /// Octets that Get Log Page asks for, 4 to 16 GiB.
    pub fn log_length(&self) -> u64 {
        let numd_z = u32::from(u16::get(&self.0, 42)) | u32::from(u16::get(&self.0, 44)) << 16;
        (u64::from(numd_z) + 1) * 4
    }

    /// Offset of Get Log Page in octets.
    pub fn log_offset(&self) -> u64 {
        u64::get(&self.0, 48)
    }

    /// Feature identifier of Get and Set Features.
    pub fn fid(&self) -> u8 {
        self.0[40]
    }

    /// Select of Get Features: 0 for the current value, 1 default, 2 saved, 3 capabilities.
    pub fn feature_select(&self) -> u8 {
        self.0[41] & 7
    }

    /// Save of Set Features.
    pub fn feature_save(&self) -> bool {
        self.0[43] & 0x80 != 0
    }

    /// Value of Set Features, dword 11.
    pub fn feature_value(&self) -> u32 {
        self.cdw(11)
    }

    /// Submission queue of the command that Abort means.
    pub fn abort_sqid(&self) -> u16 {
        u16::get(&self.0, 40)
    }

    /// Identifier of the command that Abort means.
    pub fn abort_cid(&self) -> u16 {
        u16::get(&self.0, 42)
    }

    /// Fabrics command type.
    pub fn fctype(&self) -> u8 {
        self.0[4]
    }

    /// Record format of Connect; 0 is the only one.
    pub fn connect_recfmt(&self) -> u16 {
        u16::get(&self.0, 40)
    }

    /// Queue of Connect; 0 is the admin queue.
    pub fn connect_qid(&self) -> u16 {
        u16::get(&self.0, 42)
    }

    /// Queue size of Connect, zero-based.
    pub fn connect_sqsize_z(&self) -> u16 {
        u16::get(&self.0, 44)
    }

    /// Attributes of Connect.
    pub fn connect_cattr(&self) -> u8 {
        self.0[46]
    }

    /// Keep alive timeout of Connect in milliseconds; 0 is none.
    pub fn connect_kato_ms(&self) -> u32 {
        u32::get(&self.0, 48)
    }

    /// Register of Property Get and Set.
    ///
    /// # Errors
    /// [`ParseError::Value`] for a register we do not know, or one asked for in the wrong size.
    pub fn property(&self) -> Result<Register, ParseError> {
        let offset = u32::get(&self.0, 44);
        let size = match self.0[40] & 7 {
            0 => 4,
            1 => 8,
            other => {
                return Err(ParseError::Value {
                    what: "property size",
                    value: u64::from(other),
                    expected: "0 (4 bytes) or 1 (8 bytes)",
                });
            }
        };
        Register::ALL.into_iter().find(|r| r.offset() == offset && r.size() == size).ok_or(ParseError::Value {
            what: "property offset",
            value: u64::from(offset),
            expected: "a register of that offset and size",
        })
    }

    /// Value of Property Set.
    pub fn property_value(&self) -> u64 {
        u64::get(&self.0, 48)
    }
}
