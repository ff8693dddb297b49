//! Identify Controller, CNS 01h.

use crate::nqn::Nqn;
use crate::wire::{ascii, padded, wire_struct};
use crate::{ParseError, keepalive};

/// Bits of CMIC.
pub mod cmic {
    /// The subsystem may have more than one port.
    pub const MULTI_PORT: u8 = 1 << 0;
    /// The subsystem may have more than one controller.
    pub const MULTI_CONTROLLER: u8 = 1 << 1;
    /// Asymmetric Namespace Access reporting.
    pub const ANA: u8 = 1 << 3;
}

/// Bits of OAES: asynchronous events the controller can send.
pub mod oaes {
    /// Namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTES: u32 = 1 << 8;
    /// ANA change notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Discovery log page change notices.
    pub const DISCOVERY_CHANGE: u32 = 1 << 31;
}

/// Bits of CTRATT.
pub mod ctratt {
    /// 128-bit host identifiers.
    pub const HOST_ID_128: u32 = 1 << 0;
    /// Traffic-based keep alive.
    pub const TRAFFIC_BASED_KEEP_ALIVE: u32 = 1 << 6;
}

/// Bits of ONCS.
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
}

/// Bits of ANACAP.
pub mod anacap {
    /// Reports ANA Optimized.
    pub const OPTIMIZED: u8 = 1 << 0;
    /// Reports ANA Non-Optimized.
    pub const NON_OPTIMIZED: u8 = 1 << 1;
    /// Reports ANA Inaccessible.
    pub const INACCESSIBLE: u8 = 1 << 2;
    /// Reports ANA Persistent Loss.
    pub const PERSISTENT_LOSS: u8 = 1 << 3;
    /// Reports ANA Change.
    pub const CHANGE: u8 = 1 << 4;
    /// ANAGRPID does not change while the namespace is attached.
    pub const GROUP_ID_FIXED: u8 = 1 << 6;
    /// Supports a non-zero ANAGRPID in namespace management.
    pub const GROUP_ID_SUPPORT: u8 = 1 << 7;
}

wire_struct! {
    /// Identify Controller: the fields a block stack needs. Everything else is skipped when parsed and
    /// zero when built.
    IdentifyController, 4096, "Identify Controller" {
        /// PCI vendor ID.
        vid: u16 = 0,
        /// PCI subsystem vendor ID.
        ssvid: u16 = 2,
        /// Serial number, ASCII, filled with spaces; see [`IdentifyController::serial`].
        sn: [u8; 20] = 4,
        /// Model number, ASCII, filled with spaces.
        mn: [u8; 40] = 24,
        /// Firmware revision, ASCII, filled with spaces.
        fr: [u8; 8] = 64,
        /// Recommended arbitration burst.
        rab: u8 = 72,
        /// IEEE OUI.
        ieee: [u8; 3] = 73,
        /// Multi-path and sharing; bits of [`cmic`].
        cmic: u8 = 76,
        /// Largest transfer as a power of two of the smallest page (CAP.MPSMIN); 0 for no limit.
        mdts: u8 = 77,
        /// Controller identifier, unique in the subsystem.
        cntlid: u16 = 78,
        /// Version, as in the VS register.
        ver: u32 = 80,
        /// RTD3 resume latency in microseconds.
        rtd3r: u32 = 84,
        /// RTD3 entry latency in microseconds: how long a shutdown may take.
        rtd3e: u32 = 88,
        /// Asynchronous events supported; bits of [`oaes`].
        oaes: u32 = 92,
        /// Controller attributes; bits of [`ctratt`].
        ctratt: u32 = 96,
        /// Controller type; see [`IdentifyController::controller_type`].
        cntrltype: u8 = 111,
        /// Command retry delay 1 in units of 100 ms.
        crdt1: u16 = 128,
        /// Command retry delay 2.
        crdt2: u16 = 130,
        /// Command retry delay 3.
        crdt3: u16 = 132,
        /// Optional admin commands.
        oacs: u16 = 256,
        /// Abort commands that may be outstanding, zero-based.
        acl_z: u8 = 258,
        /// Asynchronous event requests that may be outstanding, zero-based.
        aerl_z: u8 = 259,
        /// Firmware updates; at least one slot, bits 3:1.
        frmw: u8 = 260,
        /// Log page attributes.
        lpa: u8 = 261,
        /// Error log entries, zero-based.
        elpe_z: u8 = 262,
        /// Power states, zero-based.
        npss_z: u8 = 263,
        /// Warning temperature in kelvin.
        wctemp: u16 = 266,
        /// Critical temperature in kelvin.
        cctemp: u16 = 268,
        /// Keep alive granularity in units of 100 ms; 0 when keep alive is not supported.
        kas: u16 = 320,
        /// Longest ANA transition in seconds.
        anatt: u8 = 342,
        /// ANA capabilities; bits of [`anacap`].
        anacap: u8 = 343,
        /// Largest ANA group identifier.
        anagrpmax: u32 = 344,
        /// Number of ANA group identifiers.
        nanagrpid: u32 = 348,
        /// Command quiesce time in milliseconds (TP4129); 0 when not reported.
        cqt_ms: u16 = 386,
        /// Submission entry sizes, powers of two: required in bits 3:0, largest in bits 7:4.
        sqes: u8 = 512,
        /// Completion entry sizes, likewise.
        cqes: u8 = 513,
        /// Commands that may be outstanding on one I/O queue; 0 for as many as the queue has entries.
        maxcmd: u16 = 514,
        /// Largest namespace identifier.
        nn: u32 = 516,
        /// Optional NVM commands; bits of [`oncs`].
        oncs: u16 = 520,
        /// Fused operations; bit 0 is Compare and Write.
        fuses: u16 = 522,
        /// Format NVM attributes.
        fna: u8 = 524,
        /// Volatile write cache: bit 0 present, bits 2:1 whether Flush takes all namespaces.
        vwc: u8 = 525,
        /// Atomic write unit, zero-based logical blocks.
        awun_z: u16 = 526,
        /// Atomic write unit at power fail, zero-based.
        awupf_z: u16 = 528,
        /// Namespace write protection.
        nwpc: u8 = 531,
        /// Atomic compare and write unit, zero-based.
        acwu_z: u16 = 532,
        /// SGL support: bits 1:0 supported, bit 2 keyed, bit 20 offsets, bit 21 transport data block.
        sgls: u32 = 536,
        /// Most namespaces that may be attached; 0 means NN.
        mnan: u32 = 540,
        /// Subsystem NQN, NUL-terminated; see [`IdentifyController::subsystem_nqn`].
        subnqn: [u8; 256] = 768,
        /// I/O command capsule in units of 16 octets; see [`IdentifyController::in_capsule_bytes`].
        ioccsz: u32 = 1792,
        /// I/O response capsule in units of 16 octets.
        iorcsz: u32 = 1796,
        /// In-capsule data offset in units of 16 octets, from the end of the submission entry.
        icdoff: u16 = 1800,
        /// Fabrics controller attributes: bit 0 static controllers only.
        fcatt: u8 = 1802,
        /// SGL data block descriptors in one capsule; 0 for no limit.
        msdbd: u8 = 1803,
        /// Optional fabrics commands.
        ofcs: u16 = 1804,
        /// Discovery controller type.
        dctype: u8 = 1806,
    }
}

/// What kind of controller it is (CNTRLTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControllerType {
    /// Older than the field, or does not say.
    NotReported,
    /// Has I/O queues.
    Io,
    /// Discovery controller.
    Discovery,
    /// Administrative controller: no I/O queues.
    Administrative,
    /// Not a type we know.
    Reserved(u8),
}

impl IdentifyController {
    /// Serial number without its filling; unprintable octets become `?`.
    pub fn serial(&self) -> String {
        ascii(&self.sn)
    }

    /// Model number, likewise.
    pub fn model(&self) -> String {
        ascii(&self.mn)
    }

    /// Firmware revision, likewise.
    pub fn firmware(&self) -> String {
        ascii(&self.fr)
    }

    /// Sets serial number, model and firmware revision, cut to 20, 40 and 8 octets.
    pub fn set_names(&mut self, serial: &str, model: &str, firmware: &str) {
        self.sn = padded(serial, b' ');
        self.mn = padded(model, b' ');
        self.fr = padded(firmware, b' ');
    }

    /// The subsystem's name.
    ///
    /// # Errors
    /// [`ParseError::Text`] when the field holds none (controllers before 1.2.1 leave it empty).
    pub fn subsystem_nqn(&self) -> Result<Nqn, ParseError> {
        Nqn::from_field(&self.subnqn, "SUBNQN of Identify Controller")
    }

    /// Controller type.
    pub fn controller_type(&self) -> ControllerType {
        match self.cntrltype {
            0 => ControllerType::NotReported,
            1 => ControllerType::Io,
            2 => ControllerType::Discovery,
            3 => ControllerType::Administrative,
            other => ControllerType::Reserved(other),
        }
    }

    /// Largest transfer in octets for a smallest page of `2^page_shift_min` (12 + CAP.MPSMIN); `None` for
    /// no limit.
    pub fn max_transfer_bytes(&self, page_shift_min: u8) -> Option<u64> {
        if self.mdts == 0 {
            return None;
        }
        let shift = u32::from(self.mdts) + u32::from(page_shift_min);
        Some(1u64.checked_shl(shift).filter(|&b| b != 0).unwrap_or(u64::MAX))
    }

    /// Data octets that fit into an I/O command capsule: IOCCSZ without the 64-octet entry and ICDOFF.
    ///
    /// # Errors
    /// [`ParseError::Value`] when IOCCSZ does not even hold the entry.
    pub fn in_capsule_bytes(&self) -> Result<u32, ParseError> {
        let capsule = u64::from(self.ioccsz) * 16;
        if capsule < 64 {
            return Err(ParseError::Value {
                what: "IOCCSZ of Identify Controller",
                value: u64::from(self.ioccsz),
                expected: "4 or more (64 bytes, one submission queue entry)",
            });
        }
        let data = (capsule - 64).saturating_sub(u64::from(self.icdoff) * 16);
        Ok(u32::try_from(data).unwrap_or(u32::MAX))
    }

    /// Whether a volatile write cache is present.
    pub fn has_volatile_write_cache(&self) -> bool {
        self.vwc & 1 != 0
    }

    /// Whether Flush takes NSID FFFFFFFFh (VWC bits 2:1 = 11b).
    pub fn flush_takes_all_namespaces(&self) -> bool {
        self.vwc >> 1 & 3 == 3
    }

    /// Whether ANA is reported.
    pub fn has_ana(&self) -> bool {
        self.cmic & cmic::ANA != 0
    }

    /// Octets that the ANA log page takes at most: its header, every group, every namespace once.
    pub fn ana_log_bytes(&self) -> u64 {
        let namespaces = if self.mnan != 0 { self.mnan } else { self.nn };
        16 + u64::from(self.nanagrpid) * 32 + u64::from(namespaces) * 4
    }

    /// What it told about its keep alive, for the timeout that was set in Connect.
    pub fn keep_alive(&self, kato_ms: u32) -> keepalive::Reported {
        keepalive::Reported {
            kato_ms,
            kas: self.kas,
            traffic_based: self.ctratt & ctratt::TRAFFIC_BASED_KEEP_ALIVE != 0,
            cqt_ms: self.cqt_ms,
        }
    }

    /// Command retry delay in milliseconds for CRD of a status.
    pub fn retry_delay_ms(&self, crd: u8) -> u64 {
        let units = match crd {
            1 => self.crdt1,
            2 => self.crdt2,
            3 => self.crdt3,
            _ => 0,
        };
        u64::from(units) * 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> IdentifyController {
        let mut id = IdentifyController {
            cntlid: 5,
            ver: 0x2_0100,
            mdts: 5,
            kas: 1,
            cqt_ms: 300,
            ctratt: ctratt::TRAFFIC_BASED_KEEP_ALIVE,
            ioccsz: 516,
            iorcsz: 1,
            nn: 4,
            nanagrpid: 2,
            anagrpmax: 2,
            cmic: cmic::ANA,
            vwc: 7,
            subnqn: Nqn::new("nqn.2024-01.org.example:s").unwrap().to_field(),
            ..IdentifyController::default()
        };
        id.set_names("SN1", "Polypath", "0.1");
        id
    }

    #[test]
    fn round_trip_and_offsets() {
        let id = sample();
        let b = id.to_bytes();
        assert_eq!(IdentifyController::parse(&b), Ok(id));
        assert_eq!(&b[4..8], b"SN1 ");
        assert_eq!(b[77], 5);
        assert_eq!(&b[78..80], &[5, 0]);
        assert_eq!(&b[320..322], &[1, 0]);
        assert_eq!(&b[386..388], &[44, 1]);
        assert_eq!(&b[516..520], &[4, 0, 0, 0]);
        assert_eq!(&b[768..772], b"nqn.");
        assert_eq!(&b[1792..1796], &[4, 2, 0, 0]);
        for n in [0, 1, 4095] {
            assert!(IdentifyController::parse(&b[..n]).is_err());
        }
    }

    #[test]
    fn derived_values() {
        let mut id = sample();
        assert_eq!((id.serial(), id.model(), id.firmware()), ("SN1".into(), "Polypath".into(), "0.1".into()));
        assert_eq!(id.max_transfer_bytes(12), Some(128 * 1024));
        id.mdts = 255;
        assert_eq!(id.max_transfer_bytes(255), Some(u64::MAX));
        id.mdts = 52;
        assert_eq!(id.max_transfer_bytes(12), Some(u64::MAX));
        assert_eq!(id.in_capsule_bytes(), Ok(8192));
        id.ioccsz = 3;
        assert!(id.in_capsule_bytes().is_err());
        id.ioccsz = u32::MAX;
        assert_eq!(id.in_capsule_bytes(), Ok(u32::MAX));
        assert_eq!(id.ana_log_bytes(), 16 + 64 + 16);
        assert!(id.has_volatile_write_cache() && id.flush_takes_all_namespaces());
        let k = id.keep_alive(1000);
        assert!(k.traffic_based && k.cqt_ms == 300);
        id.sn = [0xff; 20];
        assert_eq!(id.serial(), "?".repeat(20));
    }
}
