//! Identify Namespace, CNS 00h.

use crate::ParseError;
use crate::wire::{Field, fixed};

/// Bits of NMIC.
pub mod nmic {
    /// The namespace may be attached to more than one controller.
    pub const SHARED: u8 = 1 << 0;
}

/// One LBA format, 4 octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LbaFormat {
    /// Metadata octets per logical block.
    pub metadata_bytes: u16,
    /// Logical block size as a power of two; 0 when the format is not available.
    pub block_shift: u8,
    /// Relative performance, bits 1:0; 0 is best.
    pub performance: u8,
}

impl LbaFormat {
    /// Logical block size in octets; 0 when the format is not available or its size absurd.
    pub fn block_bytes(self) -> u64 {
        match self.block_shift {
            9..=31 => 1 << self.block_shift,
            _ => 0,
        }
    }
}

/// Identify Namespace: the fields a block stack needs.
///
/// All zero means that the namespace is not active; see [`IdentifyNamespace::is_active`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// Size in logical blocks.
    pub nsze: u64,
    /// Capacity in logical blocks.
    pub ncap: u64,
    /// Utilisation in logical blocks.
    pub nuse: u64,
    /// Features: bit 0 thin, bit 2 deallocated-block errors, bit 4 NPWG to NOWS are valid.
    pub nsfeat: u8,
    /// Number of LBA formats, zero-based.
    pub nlbaf_z: u8,
    /// Formatted LBA size: which format is in use, bit 4 for metadata at the end of the data.
    pub flbas: u8,
    /// Protection in use.
    pub dps: u8,
    /// Sharing; bits of [`nmic`].
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Deallocation: bits 2:0 what deallocated blocks read as (1 is zeroes), bit 3 Write Zeroes with DEAC.
    pub dlfeat: u8,
    /// Optimal I/O boundary in logical blocks.
    pub noiob: u16,
    /// Preferred write granularity, zero-based logical blocks.
    pub npwg_z: u16,
    /// Preferred write alignment, zero-based.
    pub npwa_z: u16,
    /// Preferred deallocate granularity, zero-based.
    pub npdg_z: u16,
    /// Preferred deallocate alignment, zero-based.
    pub npda_z: u16,
    /// Optimal write size, zero-based.
    pub nows_z: u16,
    /// ANA group; 0 when ANA is not supported.
    pub anagrpid: u32,
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// NVM set.
    pub nvmsetid: u16,
    /// Endurance group.
    pub endgid: u16,
    /// Namespace globally unique identifier; zero when there is none.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier; zero when there is none.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
}

impl Default for IdentifyNamespace {
    fn default() -> Self {
        Self::from_fixed(&[0; 4096])
    }
}

impl IdentifyNamespace {
    /// Octets on the wire.
    pub const LEN: usize = 4096;

    /// Reads the structure.
    ///
    /// # Errors
    /// [`ParseError::Short`] when there are fewer than 4096 octets.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        fixed::<4096>(bytes, "Identify Namespace").map(Self::from_fixed)
    }

    fn from_fixed(b: &[u8; 4096]) -> Self {
        let format = |i: usize| LbaFormat {
            metadata_bytes: u16::get(b, 128 + i * 4),
            block_shift: b[130 + i * 4],
            performance: b[131 + i * 4] & 3,
        };
        IdentifyNamespace {
            nsze: u64::get(b, 0),
            ncap: u64::get(b, 8),
            nuse: u64::get(b, 16),
            nsfeat: b[24],
            nlbaf_z: b[25],
            flbas: b[26],
            dps: b[29],
            nmic: b[30],
            rescap: b[31],
            dlfeat: b[33],
            noiob: u16::get(b, 46),
            npwg_z: u16::get(b, 64),
            npwa_z: u16::get(b, 66),
            npdg_z: u16::get(b, 68),
            npda_z: u16::get(b, 70),
            nows_z: u16::get(b, 72),
            anagrpid: u32::get(b, 92),
            nsattr: b[99],
            nvmsetid: u16::get(b, 100),
            endgid: u16::get(b, 102),
            nguid: <[u8; 16]>::get(b, 104),
            eui64: <[u8; 8]>::get(b, 120),
            lbaf: std::array::from_fn(format),
        }
    }

    /// The octets; fields not listed here are zero.
    pub fn to_bytes(&self) -> [u8; 4096] {
        let mut b = [0u8; 4096];
        self.nsze.put(&mut b, 0);
        self.ncap.put(&mut b, 8);
        self.nuse.put(&mut b, 16);
        b[24] = self.nsfeat;
        b[25] = self.nlbaf_z;
        b[26] = self.flbas;
        b[29] = self.dps;
        b[30] = self.nmic;
        b[31] = self.rescap;
        b[33] = self.dlfeat;
        self.noiob.put(&mut b, 46);
        self.npwg_z.put(&mut b, 64);
        self.npwa_z.put(&mut b, 66);
        self.npdg_z.put(&mut b, 68);
        self.npda_z.put(&mut b, 70);
        self.nows_z.put(&mut b, 72);
        self.anagrpid.put(&mut b, 92);
        b[99] = self.nsattr;
        self.nvmsetid.put(&mut b, 100);
        self.endgid.put(&mut b, 102);
        self.nguid.put(&mut b, 104);
        self.eui64.put(&mut b, 120);
        for (i, f) in self.lbaf.iter().enumerate() {
            f.metadata_bytes.put(&mut b, 128 + i * 4);
            b[130 + i * 4] = f.block_shift;
            b[131 + i * 4] = f.performance & 3;
        }
        b
    }

    /// Whether the namespace is active (an inactive one is answered with zeroes).
    pub fn is_active(&self) -> bool {
        self.nsze != 0
    }

    /// The LBA format in use.
    ///
    /// # Errors
    /// [`ParseError::Value`] when FLBAS names a format that is not there, or one with a block size below
    /// 512 octets or of 4 GiB and more.
    pub fn lba_format(&self) -> Result<LbaFormat, ParseError> {
        // FLBAS bits 6:5 extend the index, but only where there are more than 16 formats.
        let high = if self.nlbaf_z >= 16 { (self.flbas & 0x60) >> 1 } else { 0 };
        let index = usize::from(self.flbas & 0xf | high);
        if index > usize::from(self.nlbaf_z) || index >= self.lbaf.len() {
            return Err(ParseError::Value {
                what: "FLBAS of Identify Namespace",
                value: u64::from(self.flbas),
                expected: "the index of one of its LBA formats",
            });
        }
        let format = self.lbaf[index];
        if format.block_bytes() == 0 {
            return Err(ParseError::Value {
                what: "LBADS of Identify Namespace",
                value: u64::from(format.block_shift),
                expected: "9 to 31",
            });
        }
        Ok(format)
    }

    /// Size in octets.
    ///
    /// # Errors
    /// As [`IdentifyNamespace::lba_format`], or when the size does not fit 64 bits.
    pub fn size_bytes(&self) -> Result<u64, ParseError> {
        let block = self.lba_format()?.block_bytes();
        self.nsze.checked_mul(block).ok_or(ParseError::Value {
            what: "NSZE of Identify Namespace",
            value: self.nsze,
            expected: "a size below 2^64 bytes",
        })
    }

    /// Whether NPWG, NPWA, NPDG, NPDA and NOWS mean anything (NSFEAT bit 4).
    pub fn has_preferences(&self) -> bool {
        self.nsfeat & 1 << 4 != 0
    }

    /// Whether deallocated blocks read as zeroes.
    pub fn deallocated_reads_zero(&self) -> bool {
        self.dlfeat & 7 == 1
    }

    /// Whether the namespace may be attached to several controllers.
    pub fn is_shared(&self) -> bool {
        self.nmic & nmic::SHARED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> IdentifyNamespace {
        let mut ns = IdentifyNamespace {
            nsze: 1 << 20,
            ncap: 1 << 20,
            nuse: 5,
            nmic: nmic::SHARED,
            anagrpid: 3,
            dlfeat: 9,
            nguid: [7; 16],
            eui64: [9; 8],
            npwg_z: 7,
            nows_z: 63,
            nlbaf_z: 1,
            flbas: 1,
            ..IdentifyNamespace::default()
        };
        ns.lbaf[0] = LbaFormat { metadata_bytes: 0, block_shift: 9, performance: 2 };
        ns.lbaf[1] = LbaFormat { metadata_bytes: 8, block_shift: 12, performance: 1 };
        ns
    }

    #[test]
    fn round_trip_and_offsets() {
        let ns = sample();
        let b = ns.to_bytes();
        assert_eq!(IdentifyNamespace::parse(&b), Ok(ns));
        assert_eq!((b[30], b[33], b[92], b[104], b[120]), (1, 9, 3, 7, 9));
        assert_eq!(&b[128..136], &[0, 0, 9, 2, 8, 0, 12, 1]);
        assert!(IdentifyNamespace::parse(&b[..4095]).is_err());
    }

    #[test]
    fn formats_are_checked() {
        let mut ns = sample();
        assert_eq!(ns.lba_format().unwrap().block_bytes(), 4096);
        assert_eq!(ns.size_bytes(), Ok(4 << 30));
        assert!(ns.deallocated_reads_zero() && ns.is_shared() && ns.is_active());
        ns.nsze = u64::MAX;
        assert!(ns.size_bytes().is_err());
        ns.flbas = 2;
        assert!(ns.lba_format().is_err());
        for shift in [0, 8, 32, 255] {
            ns.flbas = 0;
            ns.lbaf[0].block_shift = shift;
            assert!(ns.lba_format().is_err(), "{shift}");
        }
        ns.nlbaf_z = 63;
        ns.flbas = 0x6f;
        ns.lbaf[63].block_shift = 9;
        assert!(ns.lba_format().is_ok());
        ns.nlbaf_z = 15;
        ns.flbas = 0x61;
        assert_eq!(ns.lba_format().unwrap().block_bytes(), 4096);
        assert!(!IdentifyNamespace::default().is_active());
        assert!(IdentifyNamespace::default().lba_format().is_err());
    }
}
