//! Commands of block devices (SBC-3 clause 5). Addresses and lengths count logical blocks.

use super::Cdb;
use crate::opcode::{self, service_in_16};

bitflags::bitflags! {
    /// Modifiers of a read or write; the bits are those of byte 1.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct RwFlags: u8 {
        /// Force unit access: from the medium, to the medium.
        const FUA = 1 << 3;
        /// Disable page out: the blocks are not worth keeping in the cache.
        const DPO = 1 << 4;
    }
}

/// Which form of READ and WRITE is preferred.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Form {
    /// READ(10) and WRITE(10) wherever 32 bits of address and 16 of length do; old targets know no other.
    Ten,
    /// READ(16) and WRITE(16) always.
    #[default]
    Sixteen,
}

/// What VERIFY compares (SBC-3 5.29, BYTCHK).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ByteCheck {
    /// Nothing: the medium is read and checked by itself. No data.
    None = 0,
    /// Each block with the data that are sent.
    Data = 1,
    /// Each block with the one block that is sent.
    OneBlock = 3,
}

/// How WRITE SAME(16) is to be carried out (SBC-3 5.44).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct WriteSame {
    /// The blocks may be deallocated if they read as the data afterwards.
    pub unmap: bool,
    /// The blocks may be anchored. Only with `unmap`.
    pub anchor: bool,
    /// NDOB: no data are sent, they are zeroes.
    pub no_data: bool,
}

/// The POWER CONDITION field of START STOP UNIT, 4 bits (SBC-3 5.25); zero makes START and LOEJ count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct PowerCondition(pub u8);

/// What START STOP UNIT is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct StartStop {
    /// Answer before it is done.
    pub immed: bool,
    /// Start the unit; else stop it.
    pub start: bool,
    /// LOEJ: load the medium (with `start`) or eject it.
    pub load_eject: bool,
    /// NO_FLUSH: the cache need not be written before.
    pub no_flush: bool,
    /// The power condition to go to.
    pub condition: PowerCondition,
}

/// The fast pair.
impl Cdb {
    /// READ of `blocks` at `lba`: the form that the caller prefers, but READ(16) where READ(10) does not reach.
    #[inline]
    pub fn read(form: Form, lba: u64, blocks: u32, fua: bool) -> Self {
        Cdb::read_or_write(opcode::READ_10, opcode::READ_16, form, lba, blocks, fua)
    }

    /// WRITE of `blocks` at `lba`, see [`Cdb::read`].
    #[inline]
    pub fn write(form: Form, lba: u64, blocks: u32, fua: bool) -> Self {
        Cdb::read_or_write(opcode::WRITE_10, opcode::WRITE_16, form, lba, blocks, fua)
    }

    #[inline]
    fn read_or_write(ten: u8, sixteen: u8, form: Form, lba: u64, blocks: u32, fua: bool) -> Self {
        let flags = (fua as u8) << 3;
        let last = lba.saturating_add(u64::from(blocks).saturating_sub(1));
        if form == Form::Ten && last <= u64::from(u32::MAX) && blocks <= u32::from(u16::MAX) {
            return Cdb::new::<10>(ten).with(1, flags).with32(2, lba as u32).with16(7, blocks as u16);
        }
        Cdb::new::<16>(sixteen).with(1, flags).with64(2, lba).with32(10, blocks)
    }
}

/// Reading and writing.
impl Cdb {
    /// READ(10).
    #[inline]
    pub fn read_10(lba: u32, blocks: u16, flags: RwFlags) -> Self {
        Cdb::new::<10>(opcode::READ_10).with(1, flags.bits()).with32(2, lba).with16(7, blocks)
    }

    /// WRITE(10).
    #[inline]
    pub fn write_10(lba: u32, blocks: u16, flags: RwFlags) -> Self {
        Cdb::new::<10>(opcode::WRITE_10).with(1, flags.bits()).with32(2, lba).with16(7, blocks)
    }

    /// READ(12).
    #[inline]
    pub fn read_12(lba: u32, blocks: u32, flags: RwFlags) -> Self {
        Cdb::new::<12>(opcode::READ_12).with(1, flags.bits()).with32(2, lba).with32(6, blocks)
    }

    /// WRITE(12).
    #[inline]
    pub fn write_12(lba: u32, blocks: u32, flags: RwFlags) -> Self {
        Cdb::new::<12>(opcode::WRITE_12).with(1, flags.bits()).with32(2, lba).with32(6, blocks)
    }

    /// READ(16).
    #[inline]
    pub fn read_16(lba: u64, blocks: u32, flags: RwFlags) -> Self {
        Cdb::new::<16>(opcode::READ_16).with(1, flags.bits()).with64(2, lba).with32(10, blocks)
    }

    /// WRITE(16).
    #[inline]
    pub fn write_16(lba: u64, blocks: u32, flags: RwFlags) -> Self {
        Cdb::new::<16>(opcode::WRITE_16).with(1, flags.bits()).with64(2, lba).with32(10, blocks)
    }

    /// COMPARE AND WRITE: the data are `blocks` blocks to compare with and as many to write, in that order. At most
    /// [`crate::vpd::BlockLimits::max_compare_and_write_blocks`].
    pub fn compare_and_write(lba: u64, blocks: u8, flags: RwFlags) -> Self {
        Cdb::new::<16>(opcode::COMPARE_AND_WRITE).with(1, flags.bits()).with64(2, lba).with(13, blocks)
    }
}

/// Comparing.
impl Cdb {
    /// VERIFY(10).
    pub fn verify_10(lba: u32, blocks: u16, check: ByteCheck, dpo: bool) -> Self {
        Cdb::new::<10>(opcode::VERIFY_10).with(1, verify_flags(check, dpo)).with32(2, lba).with16(7, blocks)
    }

    /// VERIFY(12).
    pub fn verify_12(lba: u32, blocks: u32, check: ByteCheck, dpo: bool) -> Self {
        Cdb::new::<12>(opcode::VERIFY_12).with(1, verify_flags(check, dpo)).with32(2, lba).with32(6, blocks)
    }

    /// VERIFY(16).
    #[inline]
    pub fn verify_16(lba: u64, blocks: u32, check: ByteCheck, dpo: bool) -> Self {
        Cdb::new::<16>(opcode::VERIFY_16).with(1, verify_flags(check, dpo)).with64(2, lba).with32(10, blocks)
    }
}

#[inline]
fn verify_flags(check: ByteCheck, dpo: bool) -> u8 {
    (check as u8) << 1 | (dpo as u8) << 4
}

/// Durability and provisioning.
impl Cdb {
    /// SYNCHRONIZE CACHE(10): `blocks` from `lba`, zero for all that follow. With `immed` it is answered before it is done and promises
    /// nothing.
    pub fn synchronize_cache_10(lba: u32, blocks: u16, immed: bool) -> Self {
        let cdb = Cdb::new::<10>(opcode::SYNCHRONIZE_CACHE_10).with(1, (immed as u8) << 1);
        cdb.with32(2, lba).with16(7, blocks)
    }

    /// SYNCHRONIZE CACHE(16), see [`Cdb::synchronize_cache_10`].
    pub fn synchronize_cache_16(lba: u64, blocks: u32, immed: bool) -> Self {
        let cdb = Cdb::new::<16>(opcode::SYNCHRONIZE_CACHE_16).with(1, (immed as u8) << 1);
        cdb.with64(2, lba).with32(10, blocks)
    }

    /// UNMAP; `parameter_length` octets of [`crate::unmap`] go with it.
    pub fn unmap(parameter_length: u16, anchor: bool) -> Self {
        Cdb::new::<10>(opcode::UNMAP).with(1, anchor as u8).with16(7, parameter_length)
    }

    /// WRITE SAME(10); one block of data goes with it. `blocks` zero means all that follow, if the target allows it (WSNZ).
    pub fn write_same_10(lba: u32, blocks: u16, anchor: bool, unmap: bool) -> Self {
        let flags = (anchor as u8) << 4 | (unmap as u8) << 3;
        Cdb::new::<10>(opcode::WRITE_SAME_10).with(1, flags).with32(2, lba).with16(7, blocks)
    }

    /// WRITE SAME(16); one block of data goes with it, unless [`WriteSame::no_data`].
    pub fn write_same_16(lba: u64, blocks: u32, how: WriteSame) -> Self {
        let flags = (how.anchor as u8) << 4 | (how.unmap as u8) << 3 | how.no_data as u8;
        Cdb::new::<16>(opcode::WRITE_SAME_16).with(1, flags).with64(2, lba).with32(10, blocks)
    }

    /// GET LBA STATUS from `lba` on; [`crate::unmap::LbaStatus`] comes back.
    pub fn get_lba_status(lba: u64, allocation_length: u32) -> Self {
        let cdb = Cdb::new::<16>(opcode::SERVICE_ACTION_IN_16).with(1, service_in_16::GET_LBA_STATUS);
        cdb.with64(2, lba).with32(10, allocation_length)
    }
}

/// Size and power.
impl Cdb {
    /// READ CAPACITY(10); 8 octets come back.
    pub const fn read_capacity_10() -> Self {
        Cdb::new::<10>(opcode::READ_CAPACITY_10)
    }

    /// READ CAPACITY(16); 32 octets come back.
    pub fn read_capacity_16(allocation_length: u32) -> Self {
        let cdb = Cdb::new::<16>(opcode::SERVICE_ACTION_IN_16).with(1, service_in_16::READ_CAPACITY_16);
        cdb.with32(10, allocation_length)
    }

    /// START STOP UNIT.
    pub const fn start_stop_unit(what: StartStop) -> Self {
        let low = (what.no_flush as u8) << 2 | (what.load_eject as u8) << 1 | what.start as u8;
        let cdb = Cdb::new::<6>(opcode::START_STOP_UNIT).with(1, what.immed as u8);
        cdb.with(4, (what.condition.0 & 0x0f) << 4 | low)
    }
}

/// What an old or a removable disk may be asked.
impl Cdb {
    /// READ(6) of up to 256 blocks in the first 2 Mi blocks, for tests of targets; nobody needs it else. Zero means 256.
    pub fn read_6(lba: u32, blocks: u8) -> Self {
        Cdb::new::<6>(opcode::READ_6).with24(1, lba & 0x1f_ffff).with(4, blocks)
    }

    /// WRITE(6), see [`Cdb::read_6`].
    pub fn write_6(lba: u32, blocks: u8) -> Self {
        Cdb::new::<6>(opcode::WRITE_6).with24(1, lba & 0x1f_ffff).with(4, blocks)
    }

    /// PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.10).
    pub const fn prevent_allow_medium_removal(prevent: bool) -> Self {
        Cdb::new::<6>(opcode::PREVENT_ALLOW_MEDIUM_REMOVAL).with(4, prevent as u8)
    }
}
