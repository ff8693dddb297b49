//! Operation codes and service actions.

/// TEST UNIT READY (SPC-4 6.47).
pub const TEST_UNIT_READY: u8 = 0x00;
/// REQUEST SENSE (SPC-4 6.39).
pub const REQUEST_SENSE: u8 = 0x03;
/// READ(6) (SBC-2 5.5; obsolete in SBC-3).
pub const READ_6: u8 = 0x08;
/// WRITE(6) (SBC-2 5.24; obsolete in SBC-3).
pub const WRITE_6: u8 = 0x0a;
/// INQUIRY (SPC-4 6.6).
pub const INQUIRY: u8 = 0x12;
/// MODE SELECT(6) (SPC-4 6.11).
pub const MODE_SELECT_6: u8 = 0x15;
/// RESERVE(6) (SPC-2 7.21; obsolete since SPC-3).
pub const RESERVE_6: u8 = 0x16;
/// RELEASE(6) (SPC-2 7.16; obsolete since SPC-3).
pub const RELEASE_6: u8 = 0x17;
/// MODE SENSE(6) (SPC-4 6.13).
pub const MODE_SENSE_6: u8 = 0x1a;
/// START STOP UNIT (SBC-3 5.25).
pub const START_STOP_UNIT: u8 = 0x1b;
/// PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.10).
pub const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1e;
/// READ CAPACITY(10) (SBC-3 5.15).
pub const READ_CAPACITY_10: u8 = 0x25;
/// READ(10) (SBC-3 5.11).
pub const READ_10: u8 = 0x28;
/// WRITE(10) (SBC-3 5.33).
pub const WRITE_10: u8 = 0x2a;
/// VERIFY(10) (SBC-3 5.29).
pub const VERIFY_10: u8 = 0x2f;
/// SYNCHRONIZE CACHE(10) (SBC-3 5.26).
pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
/// READ DEFECT DATA(10) (SBC-3 5.17).
pub const READ_DEFECT_DATA_10: u8 = 0x37;
/// WRITE SAME(10) (SBC-3 5.43).
pub const WRITE_SAME_10: u8 = 0x41;
/// UNMAP (SBC-3 5.28).
pub const UNMAP: u8 = 0x42;
/// MODE SELECT(10) (SPC-4 6.12).
pub const MODE_SELECT_10: u8 = 0x55;
/// RESERVE(10) (SPC-2 7.22; obsolete since SPC-3).
pub const RESERVE_10: u8 = 0x56;
/// RELEASE(10) (SPC-2 7.17; obsolete since SPC-3).
pub const RELEASE_10: u8 = 0x57;
/// MODE SENSE(10) (SPC-4 6.14).
pub const MODE_SENSE_10: u8 = 0x5a;
/// PERSISTENT RESERVE IN (SPC-4 6.15); service actions in [`pr_in`].
pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
/// PERSISTENT RESERVE OUT (SPC-4 6.16); service actions in [`pr_out`].
pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
/// READ(16) (SBC-3 5.13).
pub const READ_16: u8 = 0x88;
/// COMPARE AND WRITE (SBC-3 5.2).
pub const COMPARE_AND_WRITE: u8 = 0x89;
/// WRITE(16) (SBC-3 5.35).
pub const WRITE_16: u8 = 0x8a;
/// VERIFY(16) (SBC-3 5.31).
pub const VERIFY_16: u8 = 0x8f;
/// SYNCHRONIZE CACHE(16) (SBC-3 5.27).
pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
/// WRITE SAME(16) (SBC-3 5.44).
pub const WRITE_SAME_16: u8 = 0x93;
/// SERVICE ACTION IN(16); service actions in [`service_in_16`].
pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
/// REPORT LUNS (SPC-4 6.33).
pub const REPORT_LUNS: u8 = 0xa0;
/// MAINTENANCE IN; service actions in [`maintenance_in`].
pub const MAINTENANCE_IN: u8 = 0xa3;
/// MAINTENANCE OUT; service actions in [`maintenance_out`].
pub const MAINTENANCE_OUT: u8 = 0xa4;
/// READ(12) (SBC-3 5.12).
pub const READ_12: u8 = 0xa8;
/// WRITE(12) (SBC-3 5.34).
pub const WRITE_12: u8 = 0xaa;
/// VERIFY(12) (SBC-3 5.30).
pub const VERIFY_12: u8 = 0xaf;
/// READ DEFECT DATA(12) (SBC-3 5.18).
pub const READ_DEFECT_DATA_12: u8 = 0xb7;

/// Service actions of [`SERVICE_ACTION_IN_16`].
pub mod service_in_16 {
    /// READ CAPACITY(16) (SBC-3 5.16).
    pub const READ_CAPACITY_16: u8 = 0x10;
    /// GET LBA STATUS (SBC-3 5.4).
    pub const GET_LBA_STATUS: u8 = 0x12;
}

/// Service actions of [`MAINTENANCE_IN`].
pub mod maintenance_in {
    /// REPORT TARGET PORT GROUPS (SPC-4 6.37).
    pub const REPORT_TARGET_PORT_GROUPS: u8 = 0x0a;
    /// REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
    pub const REPORT_SUPPORTED_OPERATION_CODES: u8 = 0x0c;
}

/// Service actions of [`MAINTENANCE_OUT`].
pub mod maintenance_out {
    /// SET TARGET PORT GROUPS (SPC-4 6.45).
    pub const SET_TARGET_PORT_GROUPS: u8 = 0x0a;
}

/// Service actions of [`PERSISTENT_RESERVE_IN`] (SPC-4 6.15.1).
pub mod pr_in {
    /// READ KEYS.
    pub const READ_KEYS: u8 = 0x00;
    /// READ RESERVATION.
    pub const READ_RESERVATION: u8 = 0x01;
    /// REPORT CAPABILITIES.
    pub const REPORT_CAPABILITIES: u8 = 0x02;
    /// READ FULL STATUS.
    pub const READ_FULL_STATUS: u8 = 0x03;
}

/// Service actions of [`PERSISTENT_RESERVE_OUT`] (SPC-4 6.16.2).
pub mod pr_out {
    /// REGISTER.
    pub const REGISTER: u8 = 0x00;
    /// RESERVE.
    pub const RESERVE: u8 = 0x01;
    /// RELEASE.
    pub const RELEASE: u8 = 0x02;
    /// CLEAR.
    pub const CLEAR: u8 = 0x03;
    /// PREEMPT.
    pub const PREEMPT: u8 = 0x04;
    /// PREEMPT AND ABORT.
    pub const PREEMPT_AND_ABORT: u8 = 0x05;
    /// REGISTER AND IGNORE EXISTING KEY.
    pub const REGISTER_AND_IGNORE_EXISTING_KEY: u8 = 0x06;
    /// REGISTER AND MOVE.
    pub const REGISTER_AND_MOVE: u8 = 0x07;
    /// REPLACE LOST RESERVATION.
    pub const REPLACE_LOST_RESERVATION: u8 = 0x08;
}

/// Octets of a command descriptor block with this operation code: its group, bits 7:5, tells (SPC-4 4.2.5.1). `None` for the
/// variable-length group and the vendor-specific ones.
pub const fn cdb_len(opcode: u8) -> Option<usize> {
    match opcode >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}

/// Name of an operation code as the standards write it, for logs; `None` for one that is not listed above.
pub const fn name(opcode: u8) -> Option<&'static str> {
    Some(match opcode {
        TEST_UNIT_READY => "TEST UNIT READY",
        REQUEST_SENSE => "REQUEST SENSE",
        READ_6 => "READ(6)",
        WRITE_6 => "WRITE(6)",
        INQUIRY => "INQUIRY",
        MODE_SELECT_6 => "MODE SELECT(6)",
        RESERVE_6 => "RESERVE(6)",
        RELEASE_6 => "RELEASE(6)",
        MODE_SENSE_6 => "MODE SENSE(6)",
        START_STOP_UNIT => "START STOP UNIT",
        PREVENT_ALLOW_MEDIUM_REMOVAL => "PREVENT ALLOW MEDIUM REMOVAL",
        READ_CAPACITY_10 => "READ CAPACITY(10)",
        READ_10 => "READ(10)",
        WRITE_10 => "WRITE(10)",
        VERIFY_10 => "VERIFY(10)",
        SYNCHRONIZE_CACHE_10 => "SYNCHRONIZE CACHE(10)",
        READ_DEFECT_DATA_10 => "READ DEFECT DATA(10)",
        WRITE_SAME_10 => "WRITE SAME(10)",
        UNMAP => "UNMAP",
        MODE_SELECT_10 => "MODE SELECT(10)",
        RESERVE_10 => "RESERVE(10)",
        RELEASE_10 => "RELEASE(10)",
        MODE_SENSE_10 => "MODE SENSE(10)",
        PERSISTENT_RESERVE_IN => "PERSISTENT RESERVE IN",
        PERSISTENT_RESERVE_OUT => "PERSISTENT RESERVE OUT",
        READ_16 => "READ(16)",
        COMPARE_AND_WRITE => "COMPARE AND WRITE",
        WRITE_16 => "WRITE(16)",
        VERIFY_16 => "VERIFY(16)",
        SYNCHRONIZE_CACHE_16 => "SYNCHRONIZE CACHE(16)",
        WRITE_SAME_16 => "WRITE SAME(16)",
        SERVICE_ACTION_IN_16 => "SERVICE ACTION IN(16)",
        REPORT_LUNS => "REPORT LUNS",
        MAINTENANCE_IN => "MAINTENANCE IN",
        MAINTENANCE_OUT => "MAINTENANCE OUT",
        READ_12 => "READ(12)",
        WRITE_12 => "WRITE(12)",
        VERIFY_12 => "VERIFY(12)",
        READ_DEFECT_DATA_12 => "READ DEFECT DATA(12)",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_we_name_has_a_length() {
        let named: Vec<u8> = (0..=255).filter(|&op| name(op).is_some()).collect();
        assert_eq!(named.len(), 39);
        for op in named {
            let tail = name(op).unwrap().split_once('(').map(|(_, n)| n.trim_end_matches(')').parse().unwrap());
            assert!(cdb_len(op).is_some() && (tail.is_none() || tail == cdb_len(op)), "{op:#x}");
        }
        assert_eq!((cdb_len(0x7f), cdb_len(0xc0), cdb_len(0xe0)), (None, None, None));
    }
}
