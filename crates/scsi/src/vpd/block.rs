//! Pages of block devices (SBC-3 6.6): Block Limits, Block Device Characteristics, Logical Block Provisioning.

use super::{Page, code};
use crate::ParseError;
use crate::wire::{bit, flag, get8, get16, get32, get64, put16, put32, put64};

/// Length of the body of pages B0h and B1h.
const LONG_BODY: usize = 0x3c;

/// Block Limits (B0h). All counts are of logical blocks; zero says that there is no limit, or none told, where nothing else stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct BlockLimits {
    /// WSNZ: WRITE SAME of zero blocks is refused.
    pub write_same_non_zero: bool,
    /// MAXIMUM COMPARE AND WRITE LENGTH; zero: there is no COMPARE AND WRITE.
    pub max_compare_and_write_blocks: u8,
    /// OPTIMAL TRANSFER LENGTH GRANULARITY.
    pub optimal_granularity_blocks: u16,
    /// MAXIMUM TRANSFER LENGTH.
    pub max_transfer_blocks: u32,
    /// OPTIMAL TRANSFER LENGTH.
    pub optimal_transfer_blocks: u32,
    /// MAXIMUM PREFETCH LENGTH.
    pub max_prefetch_blocks: u32,
    /// MAXIMUM UNMAP LBA COUNT of one command; zero: there is no UNMAP. FFFFFFFFh: no limit.
    pub max_unmap_blocks: u32,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT of one command; zero: there is no UNMAP. FFFFFFFFh: no limit.
    pub max_unmap_descriptors: u32,
    /// OPTIMAL UNMAP GRANULARITY.
    pub unmap_granularity_blocks: u32,
    /// UNMAP GRANULARITY ALIGNMENT, where UGAVALID says that it means something (31 bits).
    pub unmap_alignment: Option<u32>,
    /// MAXIMUM WRITE SAME LENGTH; zero: none told.
    pub max_write_same_blocks: u64,
}

impl BlockLimits {
    /// Reads the page. What an older page does not have is zero.
    ///
    /// # Errors
    /// As [`Page::expect`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = Page::expect(bytes, code::BLOCK_LIMITS)?.body;
        Ok(BlockLimits {
            write_same_non_zero: bit(b, 0, 0),
            max_compare_and_write_blocks: get8(b, 1),
            optimal_granularity_blocks: get16(b, 2),
            max_transfer_blocks: get32(b, 4),
            optimal_transfer_blocks: get32(b, 8),
            max_prefetch_blocks: get32(b, 12),
            max_unmap_blocks: get32(b, 16),
            max_unmap_descriptors: get32(b, 20),
            unmap_granularity_blocks: get32(b, 24),
            unmap_alignment: bit(b, 28, 7).then(|| get32(b, 28) & 0x7fff_ffff),
            max_write_same_blocks: get64(b, 32),
        })
    }

    /// The octets of the page.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = [0; LONG_BODY];
        b[0] = flag(self.write_same_non_zero, 0);
        b[1] = self.max_compare_and_write_blocks;
        put16(&mut b, 2, self.optimal_granularity_blocks);
        put32(&mut b, 4, self.max_transfer_blocks);
        put32(&mut b, 8, self.optimal_transfer_blocks);
        put32(&mut b, 12, self.max_prefetch_blocks);
        put32(&mut b, 16, self.max_unmap_blocks);
        put32(&mut b, 20, self.max_unmap_descriptors);
        put32(&mut b, 24, self.unmap_granularity_blocks);
        if let Some(alignment) = self.unmap_alignment {
            put32(&mut b, 28, 1 << 31 | alignment);
        }
        put64(&mut b, 32, self.max_write_same_blocks);
        Page::build(code::BLOCK_LIMITS, &b)
    }
}

/// Block Device Characteristics (B1h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct BlockCharacteristics {
    /// MEDIUM ROTATION RATE: 0 not told, 1 does not rotate, else revolutions a minute.
    pub rotation_rate: u16,
    /// NOMINAL FORM FACTOR, four bits: 0 not told, 2 3.5 inch, 3 2.5 inch, 4 1.8 inch, 5 less.
    pub form_factor: u8,
    /// FUAB: SYNCHRONIZE CACHE and FUA mean non-volatile, not the medium itself.
    pub flush_to_non_volatile: bool,
}

impl BlockCharacteristics {
    /// Reads the page.
    ///
    /// # Errors
    /// As [`Page::expect`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = Page::expect(bytes, code::BLOCK_DEVICE_CHARACTERISTICS)?.body;
        Ok(BlockCharacteristics {
            rotation_rate: get16(b, 0),
            form_factor: get8(b, 3) & 0x0f,
            flush_to_non_volatile: bit(b, 4, 1),
        })
    }

    /// The octets of the page.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = [0; LONG_BODY];
        put16(&mut b, 0, self.rotation_rate);
        b[3] = self.form_factor & 0x0f;
        b[4] = flag(self.flush_to_non_volatile, 1);
        Page::build(code::BLOCK_DEVICE_CHARACTERISTICS, &b)
    }
}

/// PROVISIONING TYPE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(u8)]
pub enum ProvisioningType {
    /// Fully provisioned, or not told.
    #[default]
    Full = 0,
    /// Resource provisioned: space is there for all of it.
    Resource = 1,
    /// Thin provisioned: space may run out.
    Thin = 2,
    /// Reserved.
    Other = 7,
}

/// Logical Block Provisioning (B2h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Provisioning {
    /// THRESHOLD EXPONENT: thresholds count in units of 2 to its power blocks; zero: there are none.
    pub threshold_exponent: u8,
    /// LBPU: UNMAP is done.
    pub unmap: bool,
    /// LBPWS: WRITE SAME(16) with UNMAP is done.
    pub write_same_16: bool,
    /// LBPWS10: WRITE SAME(10) with UNMAP is done.
    pub write_same_10: bool,
    /// LBPRZ: unmapped blocks read as zeroes. SBC-4 has three bits: 001b zeroes, 010b a pattern of the vendor's.
    pub reads_zeroes: bool,
    /// ANC_SUP: anchored blocks are known.
    pub anchor: bool,
    /// How it is provisioned.
    pub kind: ProvisioningType,
}

impl Provisioning {
    /// Reads the page. A provisioning group descriptor (DP) is ignored.
    ///
    /// # Errors
    /// As [`Page::expect`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = Page::expect(bytes, code::LOGICAL_BLOCK_PROVISIONING)?.body;
        Ok(Provisioning {
            threshold_exponent: get8(b, 0),
            unmap: bit(b, 1, 7),
            write_same_16: bit(b, 1, 6),
            write_same_10: bit(b, 1, 5),
            // xx1b says zeroes (SBC-4), and SBC-3 had this bit alone.
            reads_zeroes: bit(b, 1, 2),
            anchor: bit(b, 1, 1),
            kind: match get8(b, 2) & 7 {
                0 => ProvisioningType::Full,
                1 => ProvisioningType::Resource,
                2 => ProvisioningType::Thin,
                _ => ProvisioningType::Other,
            },
        })
    }

    /// The octets of the page.
    pub fn to_bytes(&self) -> Vec<u8> {
        let how = flag(self.unmap, 7) | flag(self.write_same_16, 6) | flag(self.write_same_10, 5);
        let flags = how | flag(self.reads_zeroes, 2) | flag(self.anchor, 1);
        Page::build(code::LOGICAL_BLOCK_PROVISIONING, &[self.threshold_exponent, flags, self.kind as u8, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> BlockLimits {
        BlockLimits {
            write_same_non_zero: true,
            max_compare_and_write_blocks: 1,
            optimal_granularity_blocks: 0x203,
            max_transfer_blocks: 0x0405_0607,
            optimal_transfer_blocks: 0x0809_0a0b,
            max_prefetch_blocks: 0x0c0d_0e0f,
            max_unmap_blocks: 0x1011_1213,
            max_unmap_descriptors: 0x1415_1617,
            unmap_granularity_blocks: 0x1819_1a1b,
            unmap_alignment: Some(0x1c1d_1e1f),
            max_write_same_blocks: 0x2021_2223_2425_2627,
        }
    }

    #[test]
    fn block_limits() {
        let b = limits().to_bytes();
        let mut want: Vec<u8> = (0..64).collect();
        want[..6].copy_from_slice(&[0, 0xb0, 0, 0x3c, 1, 1]);
        want[6..36].copy_from_slice(&(2..0x20).collect::<Vec<u8>>());
        want[32] |= 0x80;
        want[36..44].copy_from_slice(&(0x20..0x28).collect::<Vec<u8>>());
        want[44..].fill(0);
        assert_eq!(b, want);
        assert_eq!(BlockLimits::parse(&b), Ok(limits()));
        for len in 0..b.len() {
            assert!(matches!(BlockLimits::parse(&b[..len]), Err(ParseError::Short { .. })), "{len}");
        }
        // SBC-2's page ended after OPTIMAL TRANSFER LENGTH.
        let mut old = b[..16].to_vec();
        old[3] = 12;
        let got = BlockLimits::parse(&old).unwrap();
        assert_eq!((got.optimal_transfer_blocks, got.max_unmap_blocks, got.unmap_alignment), (0x0809_0a0b, 0, None));
        assert_eq!(BlockLimits::parse(&BlockLimits::default().to_bytes()), Ok(BlockLimits::default()));
    }

    #[test]
    fn characteristics() {
        let page = BlockCharacteristics { rotation_rate: 7200, form_factor: 2, flush_to_non_volatile: true };
        let b = page.to_bytes();
        assert_eq!(b[..9], [0, 0xb1, 0, 0x3c, 0x1c, 0x20, 0, 2, 2]);
        assert_eq!(BlockCharacteristics::parse(&b), Ok(page));
        for len in 0..b.len() {
            assert!(matches!(BlockCharacteristics::parse(&b[..len]), Err(ParseError::Short { .. })), "{len}");
        }
    }

    #[test]
    fn provisioning() {
        let cases = [
            (Provisioning::default(), [0, 0, 0, 0]),
            (Provisioning { unmap: true, kind: ProvisioningType::Thin, ..Provisioning::default() }, [0, 0x80, 2, 0]),
            (
                Provisioning {
                    threshold_exponent: 9,
                    unmap: false,
                    write_same_16: true,
                    write_same_10: true,
                    reads_zeroes: true,
                    anchor: true,
                    kind: ProvisioningType::Resource,
                },
                [9, 0x66, 1, 0],
            ),
        ];
        for (page, body) in cases {
            let b = page.to_bytes();
            assert_eq!((&b[..4], &b[4..]), (&[0, 0xb2, 0, 4][..], &body[..]));
            assert_eq!(Provisioning::parse(&b), Ok(page));
            for len in 0..b.len() {
                assert!(matches!(Provisioning::parse(&b[..len]), Err(ParseError::Short { .. })), "{len}");
            }
        }
        let other = Provisioning::parse(&[0, 0xb2, 0, 4, 0, 0x08, 5, 0]).unwrap();
        assert_eq!((other.reads_zeroes, other.kind), (false, ProvisioningType::Other));
    }
}
