//! SMART / health log, 02h, and error log entries, 01h: as much as a target must answer and a host may
//! want to show.

use crate::wire::wire_struct;

wire_struct! {
    /// SMART / health information (Base 2.1 section 5.1.12.1.3).
    SmartLog, 512, "SMART log" {
        /// Critical warning bits; 0 when all is well.
        critical_warning: u8 = 0,
        /// Composite temperature in kelvin.
        temperature_k: u16 = 1,
        /// Available spare in percent.
        available_spare: u8 = 3,
        /// Threshold for it in percent.
        spare_threshold: u8 = 4,
        /// Life used in percent; may exceed 100.
        percentage_used: u8 = 5,
        /// Data read in units of 512000 octets, rounded up.
        data_units_read: u128 = 32,
        /// Data written in the same units.
        data_units_written: u128 = 48,
        /// Read commands completed.
        host_reads: u128 = 64,
        /// Write commands completed.
        host_writes: u128 = 80,
        /// Times that the controller was powered on.
        power_cycles: u128 = 112,
        /// Hours that it was powered.
        power_on_hours: u128 = 128,
        /// Times that it lost power without having been told to shut down.
        unsafe_shutdowns: u128 = 144,
        /// Media and integrity errors.
        media_errors: u128 = 160,
        /// Error log entries over the life of the controller.
        error_log_entries: u128 = 176,
    }
}

wire_struct! {
    /// One error log entry (Base 2.1 section 5.1.12.1.2).
    ErrorLogEntry, 64, "error log entry" {
        /// Number of the error, from 1; 0 for an entry that is not there.
        error_count: u64 = 0,
        /// Queue of the command.
        sqid: u16 = 8,
        /// Identifier of the command.
        cid: u16 = 10,
        /// Status field as it stands in the completion's last word, bit 0 being the phase.
        status_word: u16 = 12,
        /// Which octet and bit of the command are to blame; FFFFh when not known.
        parameter_location: u16 = 14,
        /// First logical block.
        lba: u64 = 16,
        /// Namespace.
        nsid: u32 = 24,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_power_stand_where_the_specification_puts_them() {
        let smart = SmartLog {
            host_writes: 0x50,
            power_cycles: 1 << 64 | 0x70,
            power_on_hours: 1 << 64 | 0x80,
            unsafe_shutdowns: 1 << 64 | 0x90,
            media_errors: 0xa0,
            ..Default::default()
        };
        let b = smart.to_bytes();
        for (at, high) in [(0x50, 0), (0x70, 1), (0x80, 1), (0x90, 1), (0xa0, 0)] {
            let mut want = [0; 16];
            (want[0], want[8]) = (at as u8, high);
            assert_eq!(b[at..][..16], want, "octets {at} on");
        }
        assert!(b[96..112].iter().all(|&b| b == 0), "controller busy time, which nobody sets");
        assert_eq!(SmartLog::parse(&b), Ok(smart));
    }

    #[test]
    fn round_trip_and_truncation() {
        let smart = SmartLog { temperature_k: 300, available_spare: 100, host_writes: 1 << 70, ..Default::default() };
        let b = smart.to_bytes();
        assert_eq!(&b[1..4], &[0x2c, 1, 100]);
        assert_eq!(SmartLog::parse(&b), Ok(smart));
        let entry = ErrorLogEntry { error_count: 1, status_word: 4, lba: 77, nsid: 2, ..Default::default() };
        let e = entry.to_bytes();
        assert_eq!(ErrorLogEntry::parse(&e), Ok(entry));
        for n in 0..64 {
            assert!(ErrorLogEntry::parse(&e[..n]).is_err() && SmartLog::parse(&b[..n * 8]).is_err());
        }
    }
}
