//! Commands for all device types (SPC-4 clause 6).

use super::Cdb;
use crate::opcode::{self, maintenance_in, maintenance_out};

/// Which values of a mode page are asked for (SPC-4 6.13.1, PC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageControl {
    /// Those in force.
    Current = 0,
    /// A mask of those that MODE SELECT may change.
    Changeable = 1,
    /// Those in force after a reset when none were saved.
    Default = 2,
    /// Those that were saved.
    Saved = 3,
}

/// Which commands REPORT SUPPORTED OPERATION CODES is to tell about (SPC-4 6.35.1, REPORTING OPTIONS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reporting {
    /// All.
    All,
    /// The one of this operation code, which has no service actions.
    One(u8),
    /// The one of this operation code and service action.
    OneAction(u8, u16),
    /// The one of this operation code and, if it has any, service action.
    OneOrAction(u8, u16),
}

impl Cdb {
    /// TEST UNIT READY. No data.
    pub const fn test_unit_ready() -> Self {
        Cdb::new::<6>(opcode::TEST_UNIT_READY)
    }

    /// REQUEST SENSE: at most `allocation_length` octets of sense data come back, in descriptor format if `descriptor`.
    pub const fn request_sense(descriptor: bool, allocation_length: u8) -> Self {
        Cdb::new::<6>(opcode::REQUEST_SENSE).with(1, descriptor as u8).with(4, allocation_length)
    }

    /// INQUIRY for the standard data ([`crate::inquiry`]).
    pub fn inquiry(allocation_length: u16) -> Self {
        Cdb::new::<6>(opcode::INQUIRY).with16(3, allocation_length)
    }

    /// INQUIRY with EVPD, for a vital product data page ([`crate::vpd`]).
    pub fn inquiry_vpd(page: u8, allocation_length: u16) -> Self {
        Cdb::inquiry(allocation_length).with(1, 1).with(2, page)
    }

    /// MODE SENSE(6) without block descriptors (DBD). `page` of 6 bits, 3Fh for all; `subpage` zero, or FFh for all.
    pub const fn mode_sense_6(control: PageControl, page: u8, subpage: u8, allocation_length: u8) -> Self {
        let page = (control as u8) << 6 | page & 0x3f;
        Cdb::new::<6>(opcode::MODE_SENSE_6).with(1, 1 << 3).with(2, page).with(3, subpage).with(4, allocation_length)
    }

    /// MODE SENSE(10), the same with a longer header.
    pub fn mode_sense_10(control: PageControl, page: u8, subpage: u8, allocation_length: u16) -> Self {
        let page = (control as u8) << 6 | page & 0x3f;
        let cdb = Cdb::new::<10>(opcode::MODE_SENSE_10).with(1, 1 << 3).with(2, page).with(3, subpage);
        cdb.with16(7, allocation_length)
    }

    /// REPORT LUNS. `select` 0: those that are not well known, 1: well-known ones, 2: all (SPC-4 6.33). The allocation
    /// length is at least 16.
    pub fn report_luns(select: u8, allocation_length: u32) -> Self {
        Cdb::new::<12>(opcode::REPORT_LUNS).with(2, select).with32(6, allocation_length)
    }

    /// PERSISTENT RESERVE IN with a service action of [`opcode::pr_in`].
    pub fn persistent_reserve_in(service_action: u8, allocation_length: u16) -> Self {
        let cdb = Cdb::new::<10>(opcode::PERSISTENT_RESERVE_IN).with(1, service_action & 0x1f);
        cdb.with16(7, allocation_length)
    }

    /// PERSISTENT RESERVE OUT with a service action of [`opcode::pr_out`]; scope and type as
    /// [`crate::reservation::scope_type`] makes them, `parameter_length` octets of [`crate::reservation::PrOutData`] go with it.
    pub fn persistent_reserve_out(service_action: u8, scope_type: u8, parameter_length: u32) -> Self {
        let cdb = Cdb::new::<10>(opcode::PERSISTENT_RESERVE_OUT).with(1, service_action & 0x1f);
        cdb.with(2, scope_type).with32(5, parameter_length)
    }

    /// REPORT TARGET PORT GROUPS. `extended` asks for the header that tells the implicit transition time; targets of before SPC-4
    /// refuse it with INVALID FIELD IN CDB.
    pub fn report_target_port_groups(extended: bool, allocation_length: u32) -> Self {
        let action = maintenance_in::REPORT_TARGET_PORT_GROUPS | (extended as u8) << 5;
        Cdb::new::<12>(opcode::MAINTENANCE_IN).with(1, action).with32(6, allocation_length)
    }

    /// SET TARGET PORT GROUPS; `parameter_length` octets of [`crate::alua::set_target_port_groups`] go with it.
    pub fn set_target_port_groups(parameter_length: u32) -> Self {
        let cdb = Cdb::new::<12>(opcode::MAINTENANCE_OUT).with(1, maintenance_out::SET_TARGET_PORT_GROUPS);
        cdb.with32(6, parameter_length)
    }

    /// REPORT SUPPORTED OPERATION CODES; `timeouts` asks for the timeouts descriptors, too (RCTD).
    pub fn report_supported_operation_codes(which: Reporting, timeouts: bool, allocation_length: u32) -> Self {
        let (options, code, action) = match which {
            Reporting::All => (0, 0, 0),
            Reporting::One(code) => (1, code, 0),
            Reporting::OneAction(code, action) => (2, code, action),
            Reporting::OneOrAction(code, action) => (3, code, action),
        };
        Cdb::new::<12>(opcode::MAINTENANCE_IN)
            .with(1, maintenance_in::REPORT_SUPPORTED_OPERATION_CODES)
            .with(2, (timeouts as u8) << 7 | options)
            .with(3, code)
            .with16(4, action)
            .with32(6, allocation_length)
    }
}
