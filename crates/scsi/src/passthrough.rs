//! Which commands may be passed through to a logical unit that others use, too: what each of them changes, by its operation code.
//!
//! What is not in the table is taken for something that changes: nobody knows. What keeps the mid-layer, the fence, flushes or reservations
//! from their work is refused, with what to use instead.

use crate::{Cdb, opcode};
use polypath_block::{Code, CommandClass, PassthroughError};

/// Operation codes that we send only for others.
mod other {
    pub(super) const FORMAT_UNIT: u8 = 0x04;
    pub(super) const REASSIGN_BLOCKS: u8 = 0x07;
    pub(super) const COPY: u8 = 0x18;
    pub(super) const RECEIVE_DIAGNOSTIC_RESULTS: u8 = 0x1c;
    pub(super) const COPY_AND_VERIFY: u8 = 0x3a;
    pub(super) const READ_BUFFER_10: u8 = 0x3c;
    pub(super) const SANITIZE: u8 = 0x48;
    pub(super) const LOG_SENSE: u8 = 0x4d;
    pub(super) const EXTENDED_COPY: u8 = 0x83;
    pub(super) const RECEIVE_COPY_RESULTS: u8 = 0x84;
    pub(super) const ACCESS_CONTROL_IN: u8 = 0x86;
    pub(super) const ACCESS_CONTROL_OUT: u8 = 0x87;
    pub(super) const READ_ATTRIBUTE: u8 = 0x8c;
    pub(super) const PRE_FETCH_10: u8 = 0x34;
    pub(super) const PRE_FETCH_16: u8 = 0x90;
    pub(super) const READ_BUFFER_16: u8 = 0x9b;
}

use CommandClass::{Changes, Reads, Refused};

const RESERVATIONS: CommandClass = Refused("reservations belong to the disk; use those of the disk");
const FLUSH: CommandClass = Refused("what it reports is owed to all who write; use a flush of the disk");
const GOES_ON: CommandClass = Refused("with IMMED it goes on when it has been answered; expected that bit to be zero");
const MODE_SELECT: CommandClass = Refused("flushes and recovery go by the mode pages that it changes");
const COPY: CommandClass = Refused("it goes on, and may write to other disks, when it has been answered");

/// What is known of operation codes, in their order. (Section of the standard; those without are obsolete.)
const TABLE: &[(u8, CommandClass)] = &[
    (opcode::TEST_UNIT_READY, Reads), // SPC-4 6.47
    (opcode::REQUEST_SENSE, Refused("it takes away what the mid-layer is to hear")), // SPC-4 6.39
    (other::FORMAT_UNIT, Changes),    // SBC-3 5.3, but see `goes_on`
    (other::REASSIGN_BLOCKS, Changes), // SBC-3 5.21
    (opcode::READ_6, Reads),          // SBC-3 5.10
    (opcode::INQUIRY, Reads),         // SPC-4 6.6
    (opcode::MODE_SELECT_6, MODE_SELECT), // SPC-4 6.11
    (opcode::RESERVE_6, RESERVATIONS), // SPC-2 7.21
    (opcode::RELEASE_6, RESERVATIONS), // SPC-2 7.16
    (other::COPY, COPY),              // SPC-2 7.2
    (opcode::MODE_SENSE_6, Reads),    // SPC-4 6.13
    (opcode::START_STOP_UNIT, Refused("it takes the disk away from every path")), // SBC-3 5.25
    (other::RECEIVE_DIAGNOSTIC_RESULTS, Reads), // SPC-4 6.29
    (opcode::READ_CAPACITY_10, Reads), // SBC-3 5.15
    (opcode::READ_10, Reads),         // SBC-3 5.11
    (opcode::VERIFY_10, Reads),       // SBC-3 5.29
    (other::PRE_FETCH_10, Reads),     // SBC-3 5.8
    (opcode::SYNCHRONIZE_CACHE_10, FLUSH), // SBC-3 5.26
    (opcode::READ_DEFECT_DATA_10, Reads), // SBC-3 5.17
    (other::COPY_AND_VERIFY, COPY),   // SPC-2
    (other::READ_BUFFER_10, Reads),   // SPC-4 6.18
    (other::SANITIZE, Changes),       // SBC-3 5.24, but see `goes_on`
    (other::LOG_SENSE, Reads),        // SPC-4 6.8
    (opcode::MODE_SELECT_10, MODE_SELECT), // SPC-4 6.12
    (opcode::RESERVE_10, RESERVATIONS), // SPC-2 7.22
    (opcode::RELEASE_10, RESERVATIONS), // SPC-2 7.17
    (opcode::MODE_SENSE_10, Reads),   // SPC-4 6.14
    (opcode::PERSISTENT_RESERVE_IN, Reads), // SPC-4 6.15
    (opcode::PERSISTENT_RESERVE_OUT, RESERVATIONS), // SPC-4 6.16
    (other::EXTENDED_COPY, COPY),     // SPC-4 6.4
    (other::RECEIVE_COPY_RESULTS, Reads), // SPC-4 6.20 to 6.27
    (other::ACCESS_CONTROL_IN, Reads), // SPC-3 8.3.2
    (other::ACCESS_CONTROL_OUT, Refused("it takes the disk away from hosts")), // SPC-3 8.3.3
    (opcode::READ_16, Reads),         // SBC-3 5.13
    (other::READ_ATTRIBUTE, Reads),   // SPC-4 6.17
    (opcode::VERIFY_16, Reads),       // SBC-3 5.31
    (other::PRE_FETCH_16, Reads),     // SBC-3 5.9
    (opcode::SYNCHRONIZE_CACHE_16, FLUSH), // SBC-3 5.27
    (other::READ_BUFFER_16, Reads),   // SPC-5 6.20
    (opcode::REPORT_LUNS, Reads),     // SPC-4 6.33
    (opcode::MAINTENANCE_IN, Reads),  // SPC-4 6.34 to 6.38
    (opcode::MAINTENANCE_OUT, Refused("it changes what paths and hosts go by")), // SPC-4 6.2, 6.40 to 6.46
    (opcode::READ_12, Reads),         // SBC-3 5.12
    (opcode::VERIFY_12, Reads),       // SBC-3 5.30
    (opcode::READ_DEFECT_DATA_12, Reads), // SBC-3 5.18
];

/// Service actions of SERVICE ACTION IN(16) that read: READ CAPACITY(16), GET LBA STATUS, REPORT REFERRALS (SBC-3 5.16, 5.4, 5.23).
const READING_ACTIONS: core::ops::RangeInclusive<u8> = 0x10..=0x13;

/// What is known of the command with these data.
pub fn class(cdb: &Cdb, data_out: &[u8]) -> CommandClass {
    if goes_on(cdb, data_out) {
        return GOES_ON;
    }
    let action = cdb.octets()[1] & 0x1f;
    if cdb.opcode() == opcode::SERVICE_ACTION_IN_16 {
        return if READING_ACTIONS.contains(&action) { Reads } else { Changes };
    }
    TABLE.iter().find(|(code, _)| *code == cdb.opcode()).map_or(Changes, |(_, class)| *class)
}

/// Is its answer not its end? FORMAT UNIT says so (IMMED) in its parameter list (SBC-3 5.3.2.2), SANITIZE in the command (SBC-3 5.24.1).
fn goes_on(cdb: &Cdb, data_out: &[u8]) -> bool {
    match cdb.opcode() {
        other::SANITIZE => cdb.octets()[1] & 0x80 != 0,
        other::FORMAT_UNIT => data_out.get(1).is_some_and(|flags| flags & 0x02 != 0),
        _ => false,
    }
}

/// The command that these octets are, if it may be sent.
///
/// # Errors
/// [`Code::Invalid`] for octets that are no command, and for one that changes something without `changes`; [`Code::Unsupported`] for what is
/// never passed through.
pub fn admit(octets: &[u8], data_out: &[u8], changes: bool) -> Result<Cdb, PassthroughError> {
    let cdb = Cdb::from_bytes(octets).filter(|cdb| cdb.bytes() == octets).ok_or_else(|| {
        let (len, code) = (octets.len(), octets.first().copied().unwrap_or_default());
        let expected = match opcode::cdb_len(code) {
            Some(expected) => format!("expected {expected}"),
            None => "expected an operation code of a group whose commands have 6, 10, 12 or 16".to_owned(),
        };
        PassthroughError::new(Code::Invalid, format!("command {code:02X}h has {len} bytes; {expected}"))
    })?;
    let name = match opcode::name(cdb.opcode()) {
        Some(name) => name.to_owned(),
        None => format!("operation code {:02X}h", cdb.opcode()),
    };
    class(&cdb, data_out).admit(name, changes)?;
    Ok(cdb)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u8) -> Vec<u8> {
        let mut octets = vec![0; opcode::cdb_len(code).unwrap()];
        octets[0] = code;
        octets
    }

    fn code(octets: &[u8], changes: bool) -> Option<Code> {
        admit(octets, &[], changes).err().map(|error| error.code)
    }

    #[test]
    fn what_reads_goes_what_changes_must_say_so_and_what_goes_behind_somebodys_back_does_not() {
        for reads in [0x00, 0x08, 0x12, 0x1a, 0x25, 0x28, 0x4d, 0x5e, 0x88, 0xa0, 0xa3, 0xa8] {
            assert_eq!((code(&of(reads), false), code(&of(reads), true)), (None, None), "{reads:#x}");
        }
        for changes in [0x04, 0x0a, 0x2a, 0x3b, 0x41, 0x42, 0x4c, 0x85, 0x89, 0x8a, 0x93, 0xaa, 0x1d, 0xa2, 0xb5, 0x0c]
        {
            assert_eq!(
                (code(&of(changes), false), code(&of(changes), true)),
                (Some(Code::Invalid), None),
                "{changes:#x}"
            );
        }
        for refused in [0x03, 0x15, 0x16, 0x17, 0x1b, 0x35, 0x55, 0x56, 0x57, 0x5f, 0x83, 0x87, 0x91, 0xa4] {
            let got = (code(&of(refused), false), code(&of(refused), true));
            assert_eq!(got, (Some(Code::Unsupported), Some(Code::Unsupported)), "{refused:#x}");
        }
    }

    #[test]
    fn service_actions_are_told_apart() {
        for (action, class) in
            [(0x10, Reads), (0x12, Reads), (0x13, Reads), (0x14, Changes), (0x0f, Changes), (0x11, Reads)]
        {
            let mut octets = of(0x9e);
            octets[1] = action;
            assert_eq!(super::class(&Cdb::from_bytes(&octets).unwrap(), &[]), class, "{action:#x}");
        }
    }

    #[test]
    fn what_goes_on_after_its_answer_is_refused() {
        let mut sanitize = of(0x48);
        sanitize[1] = 0x03;
        assert_eq!(code(&sanitize, true), None);
        sanitize[1] |= 0x80;
        assert_eq!(code(&sanitize, true), Some(Code::Unsupported));
        let format = |list: &[u8]| admit(&of(0x04), list, true).err().map(|error| error.code);
        assert_eq!((format(&[]), format(&[0, 0, 0, 0])), (None, None));
        assert_eq!(format(&[0, 0x02, 0, 0]), Some(Code::Unsupported));
    }

    #[test]
    fn a_command_is_as_long_as_its_group() {
        for octets in [&[][..], &[0x12; 5], &[0x12; 7], &[0x7f; 32], &[0xc1; 10], &[0x28; 6]] {
            assert_eq!(code(octets, true), Some(Code::Invalid), "{octets:x?}");
        }
        let why = admit(&[0x12; 5], &[], false).unwrap_err().to_string();
        assert_eq!(why, "command 12h has 5 bytes; expected 6");
    }

    #[test]
    fn the_table_has_each_code_once() {
        let mut codes: Vec<u8> = TABLE.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
    }
}
