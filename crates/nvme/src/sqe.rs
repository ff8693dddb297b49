//! The 64-byte submission queue entry: constructors for the commands we send, accessors for the
//! target that receives them (Base 2.1 section 4.1; NVM Command Set 1.1 section 3).
//!
//! A fresh entry has no data pointer. A message transport adds one with [`Sqe::with_sgl`], which also
//! sets PSDT to 01b as fabrics demand of every command, data or not.

mod block_command;
mod fields;

pub use block_command::BlockCommand;

use crate::properties::Register;
use crate::wire::Field;
use crate::{ParseError, SglDescriptor};

/// Opcodes of the admin queue (Base 2.1 figure 89).
pub mod admin {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Fabrics commands, on either queue; the type is in [`fctype`](super::Sqe::fctype).
    pub const FABRICS: u8 = 0x7f;
}

/// Opcodes of I/O queues (NVM Command Set 1.1 figure 20).
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
}

/// Which way a command's data goes: bits 1:0 of the opcode (of the fabrics command type for
/// opcode 7Fh).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataDirection {
    /// No data.
    None,
    /// From the host to the controller.
    HostToController,
    /// From the controller to the host.
    ControllerToHost,
    /// Both ways; no command that we know uses it.
    Both,
}

/// The namespace identifier that stands for all namespaces.
pub const NSID_ALL: u32 = 0xffff_ffff;

const FUA: u32 = 1 << 30;
const DEAC: u32 = 1 << 25;
const PSDT_SGL: u8 = 0b01 << 6;

/// One submission queue entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sqe([u8; 64]);

impl Sqe {
    /// Octets on the wire.
    pub const LEN: usize = 64;

    /// The entry that these octets are; any 64 octets are one.
    #[inline]
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Sqe(bytes)
    }

    /// The entry at the front of `bytes`.
    ///
    /// # Errors
    /// [`ParseError::Short`] when there are fewer than 64.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        crate::wire::fixed::<64>(bytes, "submission queue entry").map(|b| Sqe(*b))
    }

    /// The octets.
    #[inline]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    /// A command with this opcode and nothing else set.
    #[inline]
    pub fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        let mut sqe = Sqe([0; 64]);
        sqe.0[0] = opcode;
        cid.put(&mut sqe.0, 2);
        nsid.put(&mut sqe.0, 4);
        sqe
    }

    /// The same command with this data pointer and PSDT = 01b.
    #[inline]
    #[must_use]
    pub fn with_sgl(mut self, sgl: SglDescriptor) -> Self {
        self.set_sgl(sgl);
        self
    }

    /// Sets the data pointer and PSDT = 01b.
    #[inline]
    pub fn set_sgl(&mut self, sgl: SglDescriptor) {
        self.0[1] = (self.0[1] & 0x3f) | PSDT_SGL;
        sgl.to_bytes().put(&mut self.0, 24);
    }

    /// The same command with this command identifier and this data pointer (PSDT = 01b).
    #[must_use]
    pub fn addressed(&self, cid: u16, sgl: SglDescriptor) -> Self {
        let mut sqe = *self;
        sqe.set_cid(cid);
        sqe.with_sgl(sgl)
    }

    /// Sets the command identifier.
    #[inline]
    pub fn set_cid(&mut self, cid: u16) {
        cid.put(&mut self.0, 2);
    }

    /// Sets command dword `n`, 10 to 15.
    #[inline]
    fn set_cdw(&mut self, n: usize, value: u32) {
        debug_assert!((10..16).contains(&n));
        value.put(&mut self.0, n * 4);
    }

    /// The same command with this command dword, 10 to 15.
    #[must_use]
    pub(crate) fn with_cdw(mut self, n: usize, value: u32) -> Self {
        self.set_cdw(n, value);
        self
    }

    /// The same command with these command dwords 10 to 15.
    #[must_use]
    pub fn with_cdw10_15(mut self, dwords: [u32; 6]) -> Self {
        for (n, dword) in (10..).zip(dwords) {
            self.set_cdw(n, dword);
        }
        self
    }

    #[inline]
    fn with_lba(mut self, slba: u64, cdw12: u32) -> Self {
        slba.put(&mut self.0, 40);
        self.set_cdw(12, cdw12);
        self
    }
}

/// I/O commands. `slba` counts logical blocks; `nlb_z` is the number of them, zero-based.
impl Sqe {
    /// Read.
    #[inline]
    pub fn read(cid: u16, nsid: u32, slba: u64, nlb_z: u16, fua: bool) -> Self {
        Sqe::new(io::READ, cid, nsid).with_lba(slba, rw_dword(nlb_z, fua))
    }

    /// Write.
    #[inline]
    pub fn write(cid: u16, nsid: u32, slba: u64, nlb_z: u16, fua: bool) -> Self {
        Sqe::new(io::WRITE, cid, nsid).with_lba(slba, rw_dword(nlb_z, fua))
    }

    /// Compare.
    #[inline]
    pub fn compare(cid: u16, nsid: u32, slba: u64, nlb_z: u16, fua: bool) -> Self {
        Sqe::new(io::COMPARE, cid, nsid).with_lba(slba, rw_dword(nlb_z, fua))
    }

    /// Write Zeroes; `deac` asks the controller to deallocate the blocks.
    #[inline]
    pub fn write_zeroes(cid: u16, nsid: u32, slba: u64, nlb_z: u16, deac: bool, fua: bool) -> Self {
        let deac = if deac { DEAC } else { 0 };
        Sqe::new(io::WRITE_ZEROES, cid, nsid).with_lba(slba, rw_dword(nlb_z, fua) | deac)
    }

    /// Flush; `nsid` may be [`NSID_ALL`] where the controller allows it (VWC bits 2:1).
    #[inline]
    pub fn flush(cid: u16, nsid: u32) -> Self {
        Sqe::new(io::FLUSH, cid, nsid)
    }

    /// Dataset Management with the Deallocate attribute. The data are `ranges_z + 1`
    /// [`DsmRange`]s.
    #[inline]
    pub fn deallocate(cid: u16, nsid: u32, ranges_z: u8) -> Self {
        let mut sqe = Sqe::new(io::DATASET_MANAGEMENT, cid, nsid);
        sqe.set_cdw(10, u32::from(ranges_z));
        sqe.set_cdw(11, 1 << 2);
        sqe
    }
}

/// Admin commands.
impl Sqe {
    /// Identify; 4096 octets come back.
    pub fn identify(cid: u16, cns: u8, nsid: u32, cntid: u16) -> Self {
        let mut sqe = Sqe::new(admin::IDENTIFY, cid, nsid);
        sqe.set_cdw(10, u32::from(cns) | u32::from(cntid) << 16);
        sqe
    }

    /// Get Log Page: `length` octets from `offset`. Both must be multiples of 4 and `length` not zero,
    /// else they are rounded down, `length` to no less than 4. `rae` leaves the pending asynchronous
    /// event in place.
    pub fn get_log_page(cid: u16, nsid: u32, lid: u8, lsp: u8, rae: bool, offset: u64, length: u32) -> Self {
        let numd_z = (length / 4).max(1) - 1;
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE, cid, nsid);
        let rae = u32::from(rae) << 15;
        let lsp = u32::from(lsp & 0x7f) << 8;
        sqe.set_cdw(10, u32::from(lid) | lsp | rae | (numd_z & 0xffff) << 16);
        sqe.set_cdw(11, numd_z >> 16);
        (offset & !3).put(&mut sqe.0, 48);
        sqe
    }

    /// Get Features, the current value.
    pub fn get_features(cid: u16, nsid: u32, fid: u8) -> Self {
        let mut sqe = Sqe::new(admin::GET_FEATURES, cid, nsid);
        sqe.set_cdw(10, u32::from(fid));
        sqe
    }

    /// Set Features, not saved over a reset.
    pub fn set_features(cid: u16, nsid: u32, fid: u8, value: u32) -> Self {
        let mut sqe = Sqe::new(admin::SET_FEATURES, cid, nsid);
        sqe.set_cdw(10, u32::from(fid));
        sqe.set_cdw(11, value);
        sqe
    }

    /// Abort the command `victim_cid` of queue `sqid`.
    pub fn abort(cid: u16, sqid: u16, victim_cid: u16) -> Self {
        let mut sqe = Sqe::new(admin::ABORT, cid, 0);
        sqe.set_cdw(10, u32::from(sqid) | u32::from(victim_cid) << 16);
        sqe
    }

    /// Asynchronous Event Request: completes when there is something to tell.
    pub fn async_event_request(cid: u16) -> Self {
        Sqe::new(admin::ASYNC_EVENT_REQUEST, cid, 0)
    }

    /// Keep Alive.
    pub fn keep_alive(cid: u16) -> Self {
        Sqe::new(admin::KEEP_ALIVE, cid, 0)
    }
}

/// Fabrics commands; their further octets are in [`fabrics`](crate::fabrics).
impl Sqe {
    fn fabrics(cid: u16, fctype: u8) -> Self {
        let mut sqe = Sqe::new(admin::FABRICS, cid, 0);
        sqe.0[4] = fctype;
        sqe
    }

    /// Connect. The data are one [`ConnectData`](crate::fabrics::ConnectData). `sqsize_z` is the number
    /// of queue entries, zero-based; `cattr` of [`crate::fabrics::cattr`]; `kato_ms` is for the admin
    /// queue only, 0 switches keep alive off.
    pub fn connect(cid: u16, qid: u16, sqsize_z: u16, cattr: u8, kato_ms: u32) -> Self {
        let mut sqe = Sqe::fabrics(cid, crate::fabrics::fctype::CONNECT);
        qid.put(&mut sqe.0, 42);
        sqsize_z.put(&mut sqe.0, 44);
        sqe.0[46] = cattr;
        kato_ms.put(&mut sqe.0, 48);
        sqe
    }

    /// Property Get of a controller register.
    pub fn property_get(cid: u16, register: Register) -> Self {
        let mut sqe = Sqe::fabrics(cid, crate::fabrics::fctype::PROPERTY_GET);
        sqe.0[40] = u8::from(register.size() == 8);
        register.offset().put(&mut sqe.0, 44);
        sqe
    }

    /// Property Set of a controller register.
    pub fn property_set(cid: u16, register: Register, value: u64) -> Self {
        let mut sqe = Sqe::fabrics(cid, crate::fabrics::fctype::PROPERTY_SET);
        sqe.0[40] = u8::from(register.size() == 8);
        register.offset().put(&mut sqe.0, 44);
        value.put(&mut sqe.0, 48);
        sqe
    }
}

impl std::fmt::Debug for Sqe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sqe")
            .field("opcode", &format_args!("{:#04x}", self.opcode()))
            .field("cid", &format_args!("{:#06x}", self.cid()))
            .field("nsid", &self.nsid())
            .field("sgl", &self.sgl())
            .field("cdw10_15", &std::array::from_fn::<u32, 6, _>(|i| self.cdw(10 + i)))
            .finish()
    }
}

#[inline]
fn rw_dword(nlb_z: u16, fua: bool) -> u32 {
    u32::from(nlb_z) | if fua { FUA } else { 0 }
}

/// One range of Dataset Management, 16 octets (NVM Command Set 1.1 section 3.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DsmRange {
    /// Context attributes; hints that may be ignored.
    pub attributes: u32,
    /// Logical blocks, not zero-based.
    pub blocks: u32,
    /// First logical block.
    pub slba: u64,
}

impl DsmRange {
    /// Octets on the wire.
    pub const LEN: usize = 16;

    /// Reads a range; any 16 octets are one.
    pub fn parse(b: &[u8; 16]) -> Self {
        DsmRange { attributes: u32::get(b, 0), blocks: u32::get(b, 4), slba: u64::get(b, 8) }
    }

    /// The octets.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut b = [0; 16];
        self.attributes.put(&mut b, 0);
        self.blocks.put(&mut b, 4);
        self.slba.put(&mut b, 8);
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SglDescriptor;

    #[test]
    fn read_has_the_octets_of_struct_nvme_rw_command() {
        // Layout: Linux include/linux/nvme.h, struct nvme_rw_command: opcode 0, flags 1,
        // command_id 2, nsid 4, dptr 24, slba 40, length 48, control 50 (FUA = 1 << 14).
        let sqe =
            Sqe::read(0x1234, 7, 0x0102_0304_0506_0708, 31, true).with_sgl(SglDescriptor::Transport { length: 0x4000 });
        let mut want = [0u8; 64];
        want[0] = 2;
        want[1] = 0x40;
        want[2..4].copy_from_slice(&[0x34, 0x12]);
        want[4] = 7;
        want[33] = 0x40;
        want[39] = 0x5a;
        want[40..48].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        want[48] = 31;
        want[51] = 0x40;
        assert_eq!(sqe.as_bytes(), &want);
        assert_eq!((sqe.slba(), sqe.nlb_z(), sqe.fua()), (0x0102_0304_0506_0708, 31, true));
        assert_eq!(sqe.data_direction(), DataDirection::ControllerToHost);
    }

    #[test]
    fn io_commands_read_back() {
        let wz = Sqe::write_zeroes(1, 2, 3, 4, true, false);
        assert!(wz.deac() && !wz.fua());
        assert_eq!((wz.opcode(), wz.slba(), wz.nlb_z()), (8, 3, 4));
        assert_eq!(wz.data_direction(), DataDirection::None);
        let dsm = Sqe::deallocate(1, 2, 9);
        assert!(dsm.dsm_deallocate());
        assert_eq!(dsm.dsm_ranges_z(), 9);
        assert_eq!(dsm.data_direction(), DataDirection::HostToController);
        assert_eq!(Sqe::write(0, 1, 0, 0, true).cdw(12), 0x4000_0000);
        assert_eq!(Sqe::compare(0, 1, 0, 0, false).opcode(), 5);
        let range = DsmRange { attributes: 1, blocks: 2, slba: 3 };
        assert_eq!(DsmRange::parse(&range.to_bytes()), range);
    }

    #[test]
    fn log_page_length_is_zero_based_dwords() {
        for (asked, got) in [(4, 4), (4096, 4096), (7, 4), (0, 4), (1 << 20, 1 << 20)] {
            let sqe = Sqe::get_log_page(1, 0, 0x70, 1, true, 1024, asked);
            assert_eq!(sqe.log_length(), got, "asked {asked}");
            assert_eq!((sqe.lid(), sqe.lsp(), sqe.rae()), (0x70, 1, true));
            assert_eq!(sqe.log_offset(), 1024);
        }
    }

    #[test]
    fn fabrics_commands_have_the_octets_of_the_spdk_header() {
        // Layout: SPDK include/spdk/nvmf_spec.h, spdk_nvmf_fabric_connect_cmd (qid 42, sqsize 44,
        // cattr 46, kato 48) and spdk_nvmf_fabric_prop_set_cmd (attrib 40, ofst 44, value 48).
        let c = Sqe::connect(3, 5, 127, 4, 15_000);
        assert_eq!(&c.as_bytes()[40..52], &[0, 0, 5, 0, 127, 0, 4, 0, 0x98, 0x3a, 0, 0]);
        assert_eq!(c.fctype(), 1);
        assert_eq!(c.data_direction(), DataDirection::HostToController);
        let g = Sqe::property_get(3, Register::Cap);
        assert_eq!(g.property(), Ok(Register::Cap));
        assert_eq!(g.as_bytes()[40], 1);
        let s = Sqe::property_set(3, Register::Cc, 0x0046_0001);
        assert_eq!(&s.as_bytes()[40..56], &[0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0]);
        assert_eq!((s.property(), s.property_value()), (Ok(Register::Cc), 0x0046_0001));
    }

    #[test]
    fn wrong_property_is_refused() {
        let mut b = *Sqe::property_get(0, Register::Cc).as_bytes();
        b[44] = 0x15;
        assert!(Sqe::from_bytes(b).property().is_err());
        b[44] = 0x14;
        b[40] = 1;
        assert!(Sqe::from_bytes(b).property().is_err());
        b[40] = 2;
        assert!(Sqe::from_bytes(b).property().is_err());
    }

    #[test]
    fn short_entry_is_refused_at_every_length() {
        let full = [0u8; 64];
        for n in 0..64 {
            assert!(Sqe::parse(&full[..n]).is_err(), "{n}");
        }
        assert!(Sqe::parse(&full).is_ok());
    }
}
