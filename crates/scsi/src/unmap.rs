//! The parameter list of UNMAP (SBC-3 5.28.2) and the data of GET LBA STATUS (SBC-3 5.4.2).

use crate::ParseError;
use crate::wire::{front, get8, get16, get32, get64, len16, len32, put16, put32, put64};

/// A range of logical blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Range {
    /// First block.
    pub lba: u64,
    /// Blocks; of none, nothing is done.
    pub blocks: u32,
}

const HEADER: usize = 8;
const DESCRIPTOR: usize = 16;

/// Octets of the parameter list for one range, which is what a disk's user sends mostly.
pub const ONE_RANGE_LEN: usize = HEADER + DESCRIPTOR;

/// Most ranges that a parameter list of 65 535 octets holds.
pub const MAX_RANGES: usize = (u16::MAX as usize - HEADER) / DESCRIPTOR;

/// The parameter list for one range. Allocates nothing.
pub fn one_range(range: Range) -> [u8; ONE_RANGE_LEN] {
    let mut b = [0; ONE_RANGE_LEN];
    put_header(&mut b, 1);
    put_range(&mut b, 0, range);
    b
}

/// Octets of the parameter list for `ranges` ranges, at most [`MAX_RANGES`].
pub const fn list_len(ranges: usize) -> usize {
    HEADER + DESCRIPTOR * ranges
}

/// The parameter list for `ranges`; those beyond [`MAX_RANGES`] are left out.
pub fn build(ranges: &[Range]) -> Vec<u8> {
    let ranges = ranges.get(..MAX_RANGES).unwrap_or(ranges);
    let mut b = vec![0; list_len(ranges.len())];
    put_header(&mut b, ranges.len());
    for (i, &range) in ranges.iter().enumerate() {
        put_range(&mut b, i, range);
    }
    b
}

fn put_header(b: &mut [u8], ranges: usize) {
    put16(b, 0, len16(list_len(ranges) - 2));
    put16(b, 2, len16(DESCRIPTOR * ranges));
}

fn put_range(b: &mut [u8], index: usize, range: Range) {
    put64(b, list_len(index), range.lba);
    put32(b, list_len(index) + 8, range.blocks);
}

/// Reads a parameter list. As the standard has it, a stub of a descriptor at the end is ignored, and a list of none is no error.
///
/// # Errors
/// [`ParseError::Short`] if it is shorter than its header, or than its header says.
pub fn parse(bytes: &[u8]) -> Result<impl ExactSizeIterator<Item = Range> + Clone + '_, ParseError> {
    const WHAT: &str = "UNMAP parameter list";
    let length = usize::from(get16(front(bytes, HEADER, WHAT)?, 2));
    let list = front(bytes, HEADER + length, WHAT)?.get(HEADER..).unwrap_or(&[]);
    Ok(list.chunks_exact(DESCRIPTOR).map(|d| Range { lba: get64(d, 0), blocks: get32(d, 8) }))
}

/// PROVISIONING STATUS of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ProvisioningStatus {
    /// 0h: mapped, or not told.
    Mapped,
    /// 1h: deallocated.
    Deallocated,
    /// 2h: anchored.
    Anchored,
    /// Reserved.
    Other(u8),
}

/// Data of GET LBA STATUS: adjoining ranges from the one that was asked for on.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct LbaStatus {
    /// The ranges that are there as a whole.
    pub ranges: Vec<(Range, ProvisioningStatus)>,
}

impl LbaStatus {
    /// Reads the data; what the allocation length cut off is not there.
    ///
    /// # Errors
    /// [`ParseError::Short`] with fewer than 8 octets.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let length = get32(front(bytes, HEADER, "GET LBA STATUS data")?, 0) as usize;
        let list = bytes.get(..length.saturating_add(4)).unwrap_or(bytes).get(HEADER..).unwrap_or(&[]);
        let ranges = list.chunks_exact(DESCRIPTOR).map(|d| {
            let status = match get8(d, 12) & 0x0f {
                0 => ProvisioningStatus::Mapped,
                1 => ProvisioningStatus::Deallocated,
                2 => ProvisioningStatus::Anchored,
                other => ProvisioningStatus::Other(other),
            };
            (Range { lba: get64(d, 0), blocks: get32(d, 8) }, status)
        });
        Ok(LbaStatus { ranges: ranges.collect() })
    }

    /// The octets; cut them to the allocation length.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = vec![0; list_len(self.ranges.len())];
        let length = len32(b.len() - 4);
        put32(&mut b, 0, length);
        for (i, &(range, status)) in self.ranges.iter().enumerate() {
            put_range(&mut b, i, range);
            b[list_len(i) + 12] = match status {
                ProvisioningStatus::Mapped => 0,
                ProvisioningStatus::Deallocated => 1,
                ProvisioningStatus::Anchored => 2,
                ProvisioningStatus::Other(bits) => bits & 0x0f,
            };
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Range = Range { lba: 0x0102_0304_0506_0708, blocks: 0x090a_0b0c };
    const TWO: Range = Range { lba: 5, blocks: 0 };

    fn read(bytes: &[u8]) -> Result<Vec<Range>, ParseError> {
        parse(bytes).map(Iterator::collect)
    }

    #[test]
    fn lists() {
        let b = build(&[ONE, TWO]);
        let want = [
            0, 0x26, 0, 0x20, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0,
            0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(b, want);
        assert_eq!(read(&b), Ok(vec![ONE, TWO]));
        for len in 0..b.len() {
            let need = if len < 8 { 8 } else { b.len() };
            assert_eq!(read(&b[..len]), Err(ParseError::Short { what: "UNMAP parameter list", need, have: len }));
        }
        assert_eq!(one_range(ONE)[..], build(&[ONE])[..]);
        let mut stub = b.clone();
        stub[3] = 0x1f;
        assert_eq!(read(&stub), Ok(vec![ONE]));
        assert_eq!(read(&[0; 8]), Ok(vec![]));
        let most = vec![TWO; MAX_RANGES + 1];
        assert_eq!((build(&most).len(), read(&build(&most)).unwrap().len()), (65_528, MAX_RANGES));
    }

    #[test]
    fn status_of_ranges() {
        use ProvisioningStatus as P;
        let all = [P::Mapped, P::Deallocated, P::Anchored, P::Other(9)];
        let data = LbaStatus { ranges: all.into_iter().map(|status| (ONE, status)).collect() };
        let b = data.to_bytes();
        assert_eq!((b.len(), &b[..4], b[36]), (72, &[0, 0, 0, 68][..], 1));
        for len in 0..=b.len() {
            match LbaStatus::parse(&b[..len]) {
                Ok(got) => assert_eq!(got.ranges, data.ranges[..(len - 8) / 16], "{len}"),
                Err(error) => assert!(len < 8, "{len}: {error}"),
            }
        }
    }
}
