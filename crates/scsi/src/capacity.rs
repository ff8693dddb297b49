//! READ CAPACITY data: how large a disk is (SBC-3 5.15.2 and 5.16.2).

use crate::ParseError;
use crate::wire::{bit, fixed, flag, front, get16, get32, get64, put16, put32, put64};
use polypath_block::Geometry;

/// Data of READ CAPACITY(10).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Capacity10 {
    /// RETURNED LOGICAL BLOCK ADDRESS: the last block. FFFFFFFFh says that there are more: ask with READ CAPACITY(16).
    pub last_lba: u32,
    /// LOGICAL BLOCK LENGTH IN BYTES.
    pub block_bytes: u32,
}

impl Capacity10 {
    /// Octets on the wire.
    pub const LEN: usize = 8;

    /// Reads the data.
    ///
    /// # Errors
    /// [`ParseError::Short`] with fewer than 8 octets, [`ParseError::Value`] for a block of no length.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = fixed::<{ Self::LEN }>(bytes, "READ CAPACITY(10) data")?;
        Ok(Capacity10 { last_lba: get32(b, 0), block_bytes: block_bytes(get32(b, 4))? })
    }

    /// The data for a disk of this size.
    pub const fn of(geometry: Geometry) -> Self {
        let last = geometry.blocks.saturating_sub(1);
        let last_lba = if last > u32::MAX as u64 { u32::MAX } else { last as u32 };
        Capacity10 { last_lba, block_bytes: geometry.block_size }
    }

    /// The octets.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put32(&mut b, 0, self.last_lba);
        put32(&mut b, 4, self.block_bytes);
        b
    }

    /// The size; `None` if only READ CAPACITY(16) tells it.
    pub const fn geometry(self) -> Option<Geometry> {
        match self.last_lba {
            u32::MAX => None,
            last => Some(Geometry { block_size: self.block_bytes, blocks: last as u64 + 1 }),
        }
    }
}

/// Data of READ CAPACITY(16).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Capacity16 {
    /// RETURNED LOGICAL BLOCK ADDRESS: the last block.
    pub last_lba: u64,
    /// LOGICAL BLOCK LENGTH IN BYTES.
    pub block_bytes: u32,
    /// PROT_EN and P_TYPE: formatted with protection information of this type, 1 to 3 (P_TYPE plus one); zero for none.
    pub protection_type: u8,
    /// P_I_EXPONENT: 2 to its power intervals of protection information in each block.
    pub protection_intervals_exponent: u8,
    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT: a physical block is 2 to its power logical ones (four bits); zero: one or unknown.
    pub blocks_per_physical_exponent: u8,
    /// LBPME: unmap is done (thin or resource provisioned).
    pub provisioning: bool,
    /// LBPRZ: unmapped blocks read as zeroes.
    pub unmapped_read_zeroes: bool,
    /// LOWEST ALIGNED LOGICAL BLOCK ADDRESS: the first block at the beginning of a physical one (14 bits).
    pub lowest_aligned_lba: u16,
}

impl Capacity16 {
    /// Octets that [`Capacity16::to_bytes`] makes; an allocation length that does.
    pub const LEN: usize = 32;
    /// Octets that are always there; SBC-2 had no more.
    pub const MIN_LEN: usize = 12;

    /// Reads the data.
    ///
    /// # Errors
    /// [`ParseError::Short`] with fewer than 12 octets, [`ParseError::Value`] for a block of no length.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = front(bytes, Self::MIN_LEN, "READ CAPACITY(16) data").map(|_| bytes)?;
        let [protection, exponents] = get16(b, 12).to_be_bytes();
        Ok(Capacity16 {
            last_lba: get64(b, 0),
            block_bytes: block_bytes(get32(b, 8))?,
            protection_type: if protection & 1 == 0 { 0 } else { (protection >> 1 & 7) + 1 },
            protection_intervals_exponent: exponents >> 4,
            blocks_per_physical_exponent: exponents & 0x0f,
            provisioning: bit(b, 14, 7),
            unmapped_read_zeroes: bit(b, 14, 6),
            lowest_aligned_lba: get16(b, 14) & 0x3fff,
        })
    }

    /// The data for a disk of this size, with nothing else set.
    pub fn of(geometry: Geometry) -> Self {
        let last_lba = geometry.blocks.saturating_sub(1);
        Capacity16 { last_lba, block_bytes: geometry.block_size, ..Capacity16::default() }
    }

    /// The octets, 32 of them.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put64(&mut b, 0, self.last_lba);
        put32(&mut b, 8, self.block_bytes);
        if let Some(p_type) = self.protection_type.checked_sub(1) {
            b[12] = (p_type & 7) << 1 | 1;
        }
        b[13] = self.protection_intervals_exponent << 4 | self.blocks_per_physical_exponent & 0x0f;
        put16(&mut b, 14, self.lowest_aligned_lba & 0x3fff);
        b[14] |= flag(self.provisioning, 7) | flag(self.unmapped_read_zeroes, 6);
        b
    }

    /// The size. Its own [`Geometry::check`] says whether it makes sense to us; a disk of 2^64 blocks, which there is not, has none.
    pub const fn geometry(&self) -> Geometry {
        Geometry { block_size: self.block_bytes, blocks: self.last_lba.wrapping_add(1) }
    }

    /// Bytes of a physical block, at least as many as of a logical one; `None` beyond 4 GiB.
    pub const fn physical_block_bytes(&self) -> Option<u32> {
        self.block_bytes.checked_mul(1 << (self.blocks_per_physical_exponent & 0x0f))
    }
}

fn block_bytes(value: u32) -> Result<u32, ParseError> {
    match value {
        0 => Err(ParseError::Value { what: "logical block length of READ CAPACITY data", value: 0, expected: "not 0" }),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten() {
        let disk = Geometry { block_size: 512, blocks: 0x0102_0304 };
        let capacity = Capacity10::of(disk);
        assert_eq!(capacity.to_bytes(), [1, 2, 3, 3, 0, 0, 2, 0]);
        assert_eq!(Capacity10::parse(&capacity.to_bytes()).unwrap().geometry(), Some(disk));
        for blocks in [1 << 32, (1 << 32) + 1, u64::MAX] {
            let large = Capacity10::of(Geometry { block_size: 4096, blocks });
            assert_eq!((large.last_lba, large.geometry()), (u32::MAX, None), "{blocks}");
        }
        let largest = Geometry { block_size: 512, blocks: (1 << 32) - 1 };
        assert_eq!(Capacity10::of(largest).geometry(), Some(largest));
        for len in 0..8 {
            assert!(Capacity10::parse(&capacity.to_bytes()[..len]).is_err(), "{len}");
        }
        assert!(Capacity10::parse(&[0; 8]).is_err());
    }

    #[test]
    fn sixteen() {
        let whole = Capacity16 {
            last_lba: 0x0102_0304_0506_0708,
            block_bytes: 4096,
            protection_type: 3,
            protection_intervals_exponent: 2,
            blocks_per_physical_exponent: 3,
            provisioning: true,
            unmapped_read_zeroes: true,
            lowest_aligned_lba: 0x1fff,
        };
        let b = whole.to_bytes();
        assert_eq!(b[..16], [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x10, 0, 0x05, 0x23, 0xdf, 0xff]);
        assert_eq!(b[16..], [0; 16]);
        assert_eq!(whole.physical_block_bytes(), Some(32768));
        for len in 0..=b.len() {
            let got = Capacity16::parse(&b[..len]);
            match len {
                0..12 => assert!(matches!(got, Err(ParseError::Short { need: 12, .. })), "{len}"),
                12..16 => assert_eq!(got.unwrap().geometry(), whole.geometry(), "{len}"),
                _ => assert_eq!(got, Ok(whole), "{len}"),
            }
        }
        assert!(Capacity16::parse(&[0; 32]).is_err());
        let disk = Geometry { block_size: 512, blocks: 1 << 33 };
        assert_eq!(Capacity16::of(disk).geometry(), disk);
        let absurd = Capacity16 { last_lba: u64::MAX, block_bytes: u32::MAX, ..whole };
        assert_eq!((absurd.geometry().blocks, absurd.physical_block_bytes()), (0, None));
    }
}
