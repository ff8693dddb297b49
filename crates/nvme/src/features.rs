//! Features: identifiers and the values in dword 11 and in the result (Base 2.1 section 5.1.25).

/// Feature identifiers.
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile write cache; bit 0 of the value enables it.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of queues; see [`NumberOfQueues`](super::NumberOfQueues).
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Write atomicity.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous event configuration; see [`AsyncEventConfig`](super::AsyncEventConfig).
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
    /// Keep alive timer; the value is in milliseconds.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host behaviour support.
    pub const HOST_BEHAVIOR: u8 = 0x16;
    /// Host identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation notification mask, for each namespace; see [`mask`](crate::reservation::mask).
    pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
    /// Reservation persistence, for each namespace; bit 0: reservations persist through a loss of power.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
}

/// Value and result of feature 07h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// I/O submission queues, zero-based.
    pub submission_z: u16,
    /// I/O completion queues, zero-based.
    pub completion_z: u16,
}

impl NumberOfQueues {
    /// As many pairs, at least one and at most 65535.
    pub fn pairs(pairs: u32) -> Self {
        let z = pairs.clamp(1, 65_535) as u16 - 1;
        NumberOfQueues { submission_z: z, completion_z: z }
    }

    /// Queue pairs, the lesser of both numbers.
    pub fn usable_pairs(self) -> u32 {
        u32::from(self.submission_z.min(self.completion_z)) + 1
    }

    /// From dword 11 of the command or dword 0 of its completion.
    pub fn from_dword(value: u32) -> Self {
        NumberOfQueues { submission_z: value as u16, completion_z: (value >> 16) as u16 }
    }

    /// To the same.
    pub fn to_dword(self) -> u32 {
        u32::from(self.submission_z) | u32::from(self.completion_z) << 16
    }
}

bitflags::bitflags! {
    /// Value of feature 0Bh: which events the controller shall send. The notices have the bits of OAES.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct AsyncEventConfig: u32 {
        /// Health: spare below threshold.
        const HEALTH_SPARE = 1 << 0;
        /// Health: temperature.
        const HEALTH_TEMPERATURE = 1 << 1;
        /// Health: reliability degraded.
        const HEALTH_RELIABILITY = 1 << 2;
        /// Health: read only.
        const HEALTH_READ_ONLY = 1 << 3;
        /// Attached namespaces have changed.
        const NAMESPACE_ATTRIBUTES = 1 << 8;
        /// Firmware activation.
        const FIRMWARE_ACTIVATION = 1 << 9;
        /// ANA states have changed.
        const ANA_CHANGE = 1 << 11;
        /// The discovery log page has changed.
        const DISCOVERY_CHANGE = 1 << 31;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues() {
        assert_eq!(NumberOfQueues::pairs(4).to_dword(), 0x0003_0003);
        assert_eq!(NumberOfQueues::from_dword(0x0001_0003).usable_pairs(), 2);
        assert_eq!(NumberOfQueues::pairs(0).usable_pairs(), 1);
        assert_eq!(NumberOfQueues::pairs(u32::MAX).usable_pairs(), 65_535);
        assert_eq!(AsyncEventConfig::DISCOVERY_CHANGE.bits(), crate::identify::oaes::DISCOVERY_CHANGE);
        assert_eq!(AsyncEventConfig::ANA_CHANGE.bits(), crate::identify::oaes::ANA_CHANGE);
    }
}
