//! Which commands there are: REPORT SUPPORTED OPERATION CODES (SPC-4 6.35), and what is refused.

use super::{Verdict, sense};
use polypath_scsi::cdb::Reporting;
use polypath_scsi::command::Command;
use polypath_scsi::opcode::{self as op, maintenance_in, maintenance_out, pr_in, pr_out, service_in_16};
use polypath_scsi::sense::{FieldPointer, Sense};

/// WRITE AND VERIFY (SBC-3 5.36 to 5.38).
pub(super) const WRITE_AND_VERIFY_10: u8 = 0x2e;
/// See [`WRITE_AND_VERIFY_10`].
pub(super) const WRITE_AND_VERIFY_12: u8 = 0xae;
/// See [`WRITE_AND_VERIFY_10`].
pub(super) const WRITE_AND_VERIFY_16: u8 = 0x8e;

const LBA_10: [u8; 10] = [0, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 4];
const LBA_12: [u8; 12] = [0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 4];
const LBA_16: [u8; 16] = [0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 4];
const ALLOCATION_10: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 4];
const ALLOCATION_12: [u8; 12] = [0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 4];

/// One command: operation code, service action, bits of the CDB that count (without those two).
struct Supported(u8, Option<u16>, &'static [u8]);

const ALL: [Supported; 43] = [
    Supported(op::TEST_UNIT_READY, None, &[0, 0, 0, 0, 0, 4]),
    Supported(op::REQUEST_SENSE, None, &[0, 1, 0, 0, 0xff, 4]),
    Supported(op::READ_6, None, &[0, 0x1f, 0xff, 0xff, 0xff, 4]),
    Supported(op::WRITE_6, None, &[0, 0x1f, 0xff, 0xff, 0xff, 4]),
    Supported(op::INQUIRY, None, &[0, 1, 0xff, 0xff, 0xff, 4]),
    Supported(op::MODE_SENSE_6, None, &[0, 8, 0xff, 0xff, 0xff, 4]),
    Supported(op::START_STOP_UNIT, None, &[0, 1, 0, 0, 0xf7, 4]),
    Supported(op::READ_CAPACITY_10, None, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
    Supported(op::READ_10, None, &LBA_10),
    Supported(op::WRITE_10, None, &LBA_10),
    Supported(WRITE_AND_VERIFY_10, None, &[0, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 4]),
    Supported(op::VERIFY_10, None, &[0, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 4]),
    Supported(op::SYNCHRONIZE_CACHE_10, None, &[0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 4]),
    Supported(op::WRITE_SAME_10, None, &[0, 8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 4]),
    Supported(op::UNMAP, None, &ALLOCATION_10),
    Supported(op::MODE_SENSE_10, None, &[0, 8, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 4]),
    Supported(op::PERSISTENT_RESERVE_IN, Some(pr_in::READ_KEYS as u16), &ALLOCATION_10),
    Supported(op::PERSISTENT_RESERVE_IN, Some(pr_in::READ_RESERVATION as u16), &ALLOCATION_10),
    Supported(op::PERSISTENT_RESERVE_IN, Some(pr_in::REPORT_CAPABILITIES as u16), &ALLOCATION_10),
    Supported(op::PERSISTENT_RESERVE_IN, Some(pr_in::READ_FULL_STATUS as u16), &ALLOCATION_10),
    Supported(op::PERSISTENT_RESERVE_OUT, Some(pr_out::REGISTER as u16), &RESERVE_OUT),
    Supported(op::PERSISTENT_RESERVE_OUT, Some(pr_out::RESERVE as u16), &RESERVE_OUT),
    Supported(op::PERSISTENT_RESERVE_OUT, Some(pr_out::RELEASE as u16), &RESERVE_OUT),
    Supported(op::PERSISTENT_RESERVE_OUT, Some(pr_out::CLEAR as u16), &RESERVE_OUT),
    Supported(op::PERSISTENT_RESERVE_OUT, Some(pr_out::PREEMPT as u16), &RESERVE_OUT),
    Supported(op::PERSISTENT_RESERVE_OUT, Some(pr_out::PREEMPT_AND_ABORT as u16), &RESERVE_OUT),
    Supported(op::PERSISTENT_RESERVE_OUT, Some(pr_out::REGISTER_AND_IGNORE_EXISTING_KEY as u16), &RESERVE_OUT),
    Supported(op::READ_16, None, &LBA_16),
    Supported(op::COMPARE_AND_WRITE, None, &COMPARE),
    Supported(op::WRITE_16, None, &LBA_16),
    Supported(WRITE_AND_VERIFY_16, None, &VERIFY_16),
    Supported(op::VERIFY_16, None, &VERIFY_16),
    Supported(op::SYNCHRONIZE_CACHE_16, None, &SYNCHRONIZE_16),
    Supported(op::WRITE_SAME_16, None, &WRITE_SAME_16),
    Supported(op::SERVICE_ACTION_IN_16, Some(service_in_16::READ_CAPACITY_16 as u16), &CAPACITY_16),
    Supported(op::REPORT_LUNS, None, &[0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 4]),
    Supported(op::MAINTENANCE_IN, Some(maintenance_in::REPORT_TARGET_PORT_GROUPS as u16), &PORT_GROUPS),
    Supported(op::MAINTENANCE_IN, Some(maintenance_in::REPORT_SUPPORTED_OPERATION_CODES as u16), &OPERATION_CODES),
    Supported(op::MAINTENANCE_OUT, Some(maintenance_out::SET_TARGET_PORT_GROUPS as u16), &ALLOCATION_12),
    Supported(op::READ_12, None, &LBA_12),
    Supported(op::WRITE_12, None, &LBA_12),
    Supported(WRITE_AND_VERIFY_12, None, &VERIFY_12),
    Supported(op::VERIFY_12, None, &VERIFY_12),
];

const RESERVE_OUT: [u8; 10] = [0, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4];
const COMPARE: [u8; 16] = [0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 4];
const VERIFY_16: [u8; 16] = [0, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 4];
const SYNCHRONIZE_16: [u8; 16] = [0, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 4];
const WRITE_SAME_16: [u8; 16] = [0, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 4];
const CAPACITY_16: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 4];
const VERIFY_12: [u8; 12] = [0, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 4];
const PORT_GROUPS: [u8; 12] = [0, 0xe0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 4];
const OPERATION_CODES: [u8; 12] = [0, 0, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 4];

/// Commands that can be taken apart and are not done here.
pub(super) fn is_refused(command: &Command) -> bool {
    matches!(
        command,
        Command::GetLbaStatus { .. }
            | Command::ModeSelect { .. }
            | Command::PreventAllowMediumRemoval { .. }
            | Command::Reserve
            | Command::Release
            | Command::ReadDefectData { .. }
    )
}

/// WRITE AND VERIFY is a write whose data are on the medium when it is answered. BYTCHK 10b and 11b there are not.
pub(super) fn write_and_verify(cdb: &[u8; 16], write: u8) -> Result<Command, Sense> {
    let invalid = |bit| {
        let pointer = FieldPointer { in_cdb: true, byte: 1, bit: Some(bit) };
        sense::INVALID_FIELD_IN_CDB.with_field(pointer)
    };
    if cdb[1] & 0x04 != 0 {
        return Err(invalid(2));
    }
    let mut plain = *cdb;
    plain[0] = write;
    // Where WRITE has FUA there is nothing.
    plain[1] |= 0x08;
    Command::parse(&plain).map_err(|e| e.sense())
}

/// The data of REPORT SUPPORTED OPERATION CODES of a unit that has all commands but those of `absent`.
pub(super) fn report(which: Reporting, timeouts: bool, absent: &[u8]) -> Result<Vec<u8>, Verdict> {
    let known = || ALL.iter().filter(|s| !absent.contains(&s.0));
    let invalid = Verdict::check(sense::INVALID_FIELD_IN_CDB);
    let (opcode, action) = match which {
        Reporting::All => return Ok(list(known(), timeouts)),
        Reporting::One(opcode) => {
            if known().any(|s| s.0 == opcode && s.1.is_some()) {
                return Err(invalid);
            }
            (opcode, None)
        }
        Reporting::OneAction(opcode, action) => {
            if known().any(|s| s.0 == opcode && s.1.is_none()) {
                return Err(invalid);
            }
            (opcode, Some(action))
        }
        Reporting::OneOrAction(opcode, action) => {
            let has_actions = known().any(|s| s.0 == opcode && s.1.is_some());
            (opcode, has_actions.then_some(action))
        }
    };
    let found = known().find(|s| s.0 == opcode && s.1 == action);
    Ok(one(found, timeouts))
}

/// Octets of a timeouts descriptor: none is told.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn list<'a>(commands: impl Iterator<Item = &'a Supported>, timeouts: bool) -> Vec<u8> {
    let mut b = vec![0; 4];
    for Supported(opcode, action, usage) in commands {
        let [high, low] = action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(timeouts) << 1 | u8::from(action.is_some());
        b.extend_from_slice(&[*opcode, 0, high, low, 0, flags, 0, usage.len() as u8]);
        if timeouts {
            b.extend_from_slice(&TIMEOUTS);
        }
    }
    let length = (b.len() as u32 - 4).to_be_bytes();
    b.splice(..4, length);
    b
}

fn one(found: Option<&Supported>, timeouts: bool) -> Vec<u8> {
    // SUPPORT 001b: not supported.
    let Some(Supported(opcode, action, usage)) = found else { return vec![0, 1, 0, 0] };
    let mut b = vec![0, u8::from(timeouts) << 7 | 3, 0, usage.len() as u8];
    let start = b.len();
    b.extend_from_slice(usage);
    if let Some(first) = b.get_mut(start) {
        *first = *opcode;
    }
    if let (Some(action), Some(second)) = (action, b.get_mut(start + 1)) {
        *second |= *action as u8 & 0x1f;
    }
    if timeouts {
        b.extend_from_slice(&TIMEOUTS);
    }
    b
}
