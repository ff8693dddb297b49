//! Values that several PDUs share: tags, the logical unit number, and the three serial numbers that either side repeats.

use super::{Bhs, Opcode, PduError, RESERVED_TAG, be32, offset, put};
use crate::serial::{CmdSn, StatSn};

/// Initiator task tag: names a task from its command to its end (section 11.2.1.8). Never the reserved tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Itt(u32);

/// Target transfer tag: names what a target asked for, until it is answered (section 11.7.4). Never the reserved tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ttt(u32);

impl Itt {
    /// The tag with this value; `None` for the reserved one.
    #[inline]
    pub const fn new(value: u32) -> Option<Self> {
        if value == RESERVED_TAG { None } else { Some(Itt(value)) }
    }

    /// Its value.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Ttt {
    /// The tag with this value; `None` for the reserved one.
    #[inline]
    pub const fn new(value: u32) -> Option<Self> {
        if value == RESERVED_TAG { None } else { Some(Ttt(value)) }
    }

    /// Its value.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl std::fmt::Debug for Itt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl std::fmt::Debug for Ttt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// The initiator task tag, which may be the reserved one.
#[inline]
pub(super) fn optional_itt(b: &Bhs) -> Option<Itt> {
    Itt::new(be32(b, offset::ITT))
}

/// The initiator task tag of a PDU that needs one.
#[inline]
pub(super) fn itt(b: &Bhs, opcode: Opcode) -> Result<Itt, PduError> {
    optional_itt(b).ok_or(PduError::Field {
        opcode,
        field: "initiator task tag",
        value: RESERVED_TAG,
        expected: "a tag that is not the reserved one",
    })
}

#[inline]
pub(super) fn put_itt(b: &mut Bhs, itt: Option<Itt>) {
    put(b, offset::ITT, itt.map_or(RESERVED_TAG, Itt::get).to_be_bytes());
}

/// The target transfer tag, which may be the reserved one.
#[inline]
pub(super) fn optional_ttt(b: &Bhs) -> Option<Ttt> {
    Ttt::new(be32(b, offset::TTT))
}

#[inline]
pub(super) fn put_ttt(b: &mut Bhs, ttt: Option<Ttt>) {
    put(b, offset::TTT, ttt.map_or(RESERVED_TAG, Ttt::get).to_be_bytes());
}

/// Logical unit number as it stands in a PDU, 8 octets in the layout of SAM-5 section 4.7 (section 11.2.1.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Lun(pub [u8; 8]);

impl Lun {
    /// LUN 0, and what stands in the field where it means nothing.
    pub const ZERO: Lun = Lun([0; 8]);

    #[inline]
    pub(super) fn read(b: &Bhs) -> Self {
        let mut octets = [0; 8];
        octets.copy_from_slice(&b[offset::LUN..offset::LUN + 8]);
        Lun(octets)
    }

    #[inline]
    pub(super) fn write(self, b: &mut Bhs) {
        put(b, offset::LUN, self.0);
    }
}

impl std::fmt::Debug for Lun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#018x}", u64::from_be_bytes(self.0))
    }
}

/// The serial numbers in what an initiator sends (section 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitiatorSn {
    /// CmdSN of this PDU. Immediate ones repeat the current number and do not use it up.
    pub cmd_sn: CmdSn,
    /// ExpStatSN: everything before it has been received.
    pub exp_stat_sn: StatSn,
}

impl InitiatorSn {
    #[inline]
    pub(super) fn read(b: &Bhs) -> Self {
        InitiatorSn {
            cmd_sn: CmdSn::new(be32(b, offset::CMD_SN)),
            exp_stat_sn: StatSn::new(be32(b, offset::EXP_STAT_SN)),
        }
    }

    #[inline]
    pub(super) fn write(self, b: &mut Bhs) {
        put(b, offset::CMD_SN, self.cmd_sn.get().to_be_bytes());
        put(b, offset::EXP_STAT_SN, self.exp_stat_sn.get().to_be_bytes());
    }
}

/// The serial numbers in what a target sends (section 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetSn {
    /// StatSN of this PDU; of the next status in R2T and in a NOP-In that nobody asked for; nothing in a Data-In without status.
    pub stat_sn: StatSn,
    /// ExpCmdSN: every command before it has been received.
    pub exp_cmd_sn: CmdSn,
    /// MaxCmdSN: the last command that the target takes now.
    pub max_cmd_sn: CmdSn,
}

impl TargetSn {
    #[inline]
    pub(super) fn read(b: &Bhs) -> Self {
        TargetSn {
            stat_sn: StatSn::new(be32(b, offset::STAT_SN)),
            exp_cmd_sn: CmdSn::new(be32(b, offset::EXP_CMD_SN)),
            max_cmd_sn: CmdSn::new(be32(b, offset::MAX_CMD_SN)),
        }
    }

    #[inline]
    pub(super) fn write(self, b: &mut Bhs) {
        put(b, offset::STAT_SN, self.stat_sn.get().to_be_bytes());
        put(b, offset::EXP_CMD_SN, self.exp_cmd_sn.get().to_be_bytes());
        put(b, offset::MAX_CMD_SN, self.max_cmd_sn.get().to_be_bytes());
    }
}
