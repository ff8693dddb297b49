//! Taking command descriptor blocks apart.

use super::{CdbError, Command, Header, Transfer};
use crate::cdb::{ByteCheck, MAX_LEN, PageControl, PowerCondition, Reporting, RwFlags, StartStop, WriteSame};
use crate::opcode::{self as op, maintenance_in, maintenance_out, service_in_16};
use crate::sense::FieldPointer;
use crate::wire::{bit, get8, get16, get24, get32, get64};

/// The 16 octets of a command.
type Octets = [u8; MAX_LEN];

/// NACA in CONTROL, the last octet of the command.
const NACA: u8 = 2;
const SERVICE_ACTION: u8 = 0x1f;
/// RDPROTECT, WRPROTECT, VRPROTECT: bits 7:5 of byte 1.
const PROTECT: u8 = 5;

impl Command {
    /// Takes a command apart. Shorter commands are padded to 16 octets; what is behind them does not count.
    ///
    /// # Errors
    /// [`CdbError`] says what is wrong, and with which sense data to answer.
    pub fn parse(octets: &Octets) -> Result<Self, CdbError> {
        let b = octets;
        let command = match b[0] {
            // what is asked for most comes first
            op::READ_16 => Command::Read(transfer(b, sixteen(b))?),
            op::WRITE_16 => Command::Write(transfer(b, sixteen(b))?),
            op::READ_10 => Command::Read(transfer(b, ten(b))?),
            op::WRITE_10 => Command::Write(transfer(b, ten(b))?),
            op::READ_12 => Command::Read(transfer(b, twelve(b))?),
            op::WRITE_12 => Command::Write(transfer(b, twelve(b))?),
            op::READ_6 => Command::Read(six(b)),
            op::WRITE_6 => Command::Write(six(b)),
            op::COMPARE_AND_WRITE => {
                Command::CompareAndWrite(transfer(b, Extent { blocks: get8(b, 13).into(), ..sixteen(b) })?)
            }
            op::VERIFY_10 => verify(b, ten(b))?,
            op::VERIFY_12 => verify(b, twelve(b))?,
            op::VERIFY_16 => verify(b, sixteen(b))?,
            op::SYNCHRONIZE_CACHE_10 => synchronize_cache(b, ten(b)),
            op::SYNCHRONIZE_CACHE_16 => synchronize_cache(b, sixteen(b)),
            op::UNMAP => Command::Unmap { anchor: bit(b, 1, 0), parameter_length: get16(b, 7) },
            op::WRITE_SAME_10 => write_same(b, ten(b), false)?,
            op::WRITE_SAME_16 => write_same(b, sixteen(b), bit(b, 1, 0))?,
            op::READ_CAPACITY_10 => Command::ReadCapacity10,
            op::SERVICE_ACTION_IN_16 => service_in(b)?,
            op::START_STOP_UNIT => start_stop(b),
            op::PREVENT_ALLOW_MEDIUM_REMOVAL => Command::PreventAllowMediumRemoval { prevent: bit(b, 4, 0) },
            op::READ_DEFECT_DATA_10 => read_defect_data(false, get8(b, 2), get16(b, 7).into()),
            op::READ_DEFECT_DATA_12 => read_defect_data(true, get8(b, 1), get32(b, 6)),
            _ => primary(b)?,
        };
        refuse_naca(b)?;
        Ok(command)
    }
}

fn primary(b: &Octets) -> Result<Command, CdbError> {
    Ok(match b[0] {
        op::TEST_UNIT_READY => Command::TestUnitReady,
        op::REQUEST_SENSE => Command::RequestSense { descriptor: bit(b, 1, 0), allocation_length: get8(b, 4) },
        op::INQUIRY => inquiry(b)?,
        op::REPORT_LUNS => report_luns(b)?,
        op::MODE_SENSE_6 => mode_sense(b, Header::Six, get8(b, 4).into()),
        op::MODE_SENSE_10 => mode_sense(b, Header::Ten, get16(b, 7)),
        op::MODE_SELECT_6 => mode_select(b, Header::Six, get8(b, 4).into()),
        op::MODE_SELECT_10 => mode_select(b, Header::Ten, get16(b, 7)),
        op::RESERVE_6 | op::RESERVE_10 => Command::Reserve,
        op::RELEASE_6 | op::RELEASE_10 => Command::Release,
        op::PERSISTENT_RESERVE_IN => {
            let action = action(b, |action| action <= op::pr_in::READ_FULL_STATUS)?;
            Command::PersistentReserveIn { action, allocation_length: get16(b, 7) }
        }
        op::PERSISTENT_RESERVE_OUT => {
            let action = action(b, |action| action <= op::pr_out::REPLACE_LOST_RESERVATION)?;
            Command::PersistentReserveOut { action, scope_type: get8(b, 2), parameter_length: get32(b, 5) }
        }
        op::MAINTENANCE_IN => maintenance_in(b)?,
        op::MAINTENANCE_OUT => {
            action(b, |action| action == maintenance_out::SET_TARGET_PORT_GROUPS)?;
            Command::SetTargetPortGroups { parameter_length: get32(b, 6) }
        }
        opcode => return Err(CdbError::Opcode { opcode }),
    })
}

/// Address and length.
struct Extent {
    lba: u64,
    blocks: u32,
}

fn ten(b: &Octets) -> Extent {
    Extent { lba: get32(b, 2).into(), blocks: get16(b, 7).into() }
}

fn twelve(b: &Octets) -> Extent {
    Extent { lba: get32(b, 2).into(), blocks: get32(b, 6) }
}

fn sixteen(b: &Octets) -> Extent {
    Extent { lba: get64(b, 2), blocks: get32(b, 10) }
}

/// READ(6) and WRITE(6): 21 bits of address, and zero stands for 256 blocks (SBC-2 5.5).
fn six(b: &Octets) -> Transfer {
    let blocks = match get8(b, 4) {
        0 => 256,
        blocks => blocks.into(),
    };
    Transfer { lba: (get24(b, 1) & 0x1f_ffff).into(), blocks, flags: RwFlags::empty() }
}

fn transfer(b: &Octets, Extent { lba, blocks }: Extent) -> Result<Transfer, CdbError> {
    refuse_protection(b)?;
    Ok(Transfer { lba, blocks, flags: RwFlags::from_bits_truncate(get8(b, 1)) })
}

fn verify(b: &Octets, Extent { lba, blocks }: Extent) -> Result<Command, CdbError> {
    refuse_protection(b)?;
    let check = match get8(b, 1) >> 1 & 3 {
        0 => ByteCheck::None,
        1 => ByteCheck::Data,
        3 => ByteCheck::OneBlock,
        value => return Err(field(b, "BYTCHK", value, "00b, 01b or 11b", 1, Some(2))),
    };
    Ok(Command::Verify { lba, blocks, check, dpo: bit(b, 1, 4) })
}

fn synchronize_cache(b: &Octets, Extent { lba, blocks }: Extent) -> Command {
    Command::SynchronizeCache { lba, blocks, immed: bit(b, 1, 1) }
}

fn write_same(b: &Octets, Extent { lba, blocks }: Extent, no_data: bool) -> Result<Command, CdbError> {
    refuse_protection(b)?;
    // PBDATA and LBDATA of old had an address written into each block.
    let of_old = get8(b, 1) >> 1 & 3;
    if of_old != 0 {
        return Err(field(b, "PBDATA and LBDATA", of_old, "0", 1, Some(2)));
    }
    let how = WriteSame { unmap: bit(b, 1, 3), anchor: bit(b, 1, 4), no_data };
    if how.anchor && !how.unmap {
        return Err(field(b, "ANCHOR", 1u8, "0 without UNMAP", 1, Some(4)));
    }
    Ok(Command::WriteSame { lba, blocks, how })
}

fn service_in(b: &Octets) -> Result<Command, CdbError> {
    let known = |action| matches!(action, service_in_16::READ_CAPACITY_16 | service_in_16::GET_LBA_STATUS);
    let allocation_length = get32(b, 10);
    Ok(match action(b, known)? {
        service_in_16::READ_CAPACITY_16 => Command::ReadCapacity16 { allocation_length },
        _ => Command::GetLbaStatus { lba: get64(b, 2), allocation_length },
    })
}

fn start_stop(b: &Octets) -> Command {
    Command::StartStopUnit(StartStop {
        immed: bit(b, 1, 0),
        start: bit(b, 4, 0),
        load_eject: bit(b, 4, 1),
        no_flush: bit(b, 4, 2),
        condition: PowerCondition(get8(b, 4) >> 4),
    })
}

fn read_defect_data(twelve: bool, which: u8, allocation_length: u32) -> Command {
    let (primary, grown) = (which & 1 << 4 != 0, which & 1 << 3 != 0);
    Command::ReadDefectData { twelve, primary, grown, format: which & 7, allocation_length }
}

fn inquiry(b: &Octets) -> Result<Command, CdbError> {
    let page = get8(b, 2);
    // CMDDT, obsolete since SPC-3: it asks for something else altogether.
    if bit(b, 1, 1) {
        return Err(field(b, "CMDDT", 1u8, "0", 1, Some(1)));
    }
    let evpd = bit(b, 1, 0);
    if !evpd && page != 0 {
        return Err(field(b, "PAGE CODE", page, "0 without EVPD", 2, None));
    }
    Ok(Command::Inquiry { page: evpd.then_some(page), allocation_length: get16(b, 3) })
}

fn report_luns(b: &Octets) -> Result<Command, CdbError> {
    let (select, allocation_length) = (get8(b, 2), get32(b, 6));
    if select > 2 {
        return Err(field(b, "SELECT REPORT", select, "0 to 2", 2, None));
    }
    if allocation_length < 16 {
        return Err(field(b, "ALLOCATION LENGTH", allocation_length, "at least 16", 6, None));
    }
    Ok(Command::ReportLuns { select, allocation_length })
}

fn mode_sense(b: &Octets, header: Header, allocation_length: u16) -> Command {
    Command::ModeSense {
        header,
        no_descriptors: bit(b, 1, 3),
        control: match get8(b, 2) >> 6 {
            0 => PageControl::Current,
            1 => PageControl::Changeable,
            2 => PageControl::Default,
            _ => PageControl::Saved,
        },
        page: get8(b, 2) & 0x3f,
        subpage: get8(b, 3),
        allocation_length,
    }
}

/// PF is not looked at: since SPC-2 there is no other page format.
fn mode_select(b: &Octets, header: Header, parameter_length: u16) -> Command {
    Command::ModeSelect { header, save: bit(b, 1, 0), parameter_length }
}

fn maintenance_in(b: &Octets) -> Result<Command, CdbError> {
    let known = |action| {
        matches!(action, maintenance_in::REPORT_TARGET_PORT_GROUPS | maintenance_in::REPORT_SUPPORTED_OPERATION_CODES)
    };
    let allocation_length = get32(b, 6);
    if action(b, known)? == maintenance_in::REPORT_SUPPORTED_OPERATION_CODES {
        let (code, service_action) = (get8(b, 3), get16(b, 4));
        let which = match get8(b, 2) & 7 {
            0 => Reporting::All,
            1 => Reporting::One(code),
            2 => Reporting::OneAction(code, service_action),
            3 => Reporting::OneOrAction(code, service_action),
            value => return Err(field(b, "REPORTING OPTIONS", value, "0 to 3", 2, Some(2))),
        };
        return Ok(Command::ReportSupportedOperationCodes { which, timeouts: bit(b, 2, 7), allocation_length });
    }
    match get8(b, 1) >> 5 {
        0 => Ok(Command::ReportTargetPortGroups { extended: false, allocation_length }),
        1 => Ok(Command::ReportTargetPortGroups { extended: true, allocation_length }),
        value => Err(field(b, "PARAMETER DATA FORMAT", value, "000b or 001b", 1, Some(7))),
    }
}

fn action(b: &Octets, known: impl Fn(u8) -> bool) -> Result<u8, CdbError> {
    let action = get8(b, 1) & SERVICE_ACTION;
    if known(action) { Ok(action) } else { Err(CdbError::ServiceAction { opcode: b[0], action }) }
}

fn refuse_protection(b: &Octets) -> Result<(), CdbError> {
    match get8(b, 1) >> PROTECT {
        0 => Ok(()),
        value => Err(field(b, "protection information", value, "0", 1, Some(7))),
    }
}

fn refuse_naca(b: &Octets) -> Result<(), CdbError> {
    let control = op::cdb_len(b[0]).map_or(MAX_LEN, |len| len) - 1;
    if bit(b, control, NACA) {
        return Err(field(b, "NACA", 1u8, "0", control as u16, Some(NACA)));
    }
    Ok(())
}

fn field(
    b: &Octets,
    field: &'static str,
    value: impl Into<u64>,
    expected: &'static str,
    byte: u16,
    bit: Option<u8>,
) -> CdbError {
    let pointer = FieldPointer { in_cdb: true, byte, bit };
    CdbError::Field { opcode: b[0], field, value: value.into(), expected, pointer }
}
