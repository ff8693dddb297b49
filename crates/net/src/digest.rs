//! CRC-32C (Castagnoli), as NVMe/TCP and iSCSI digests want it.

use crc_fast::{CrcAlgorithm, Digest};
use polypath_block::Segment;
use polypath_memory::{BadSegment, Table};

/// Bytes of a segment that pass through the stack at a time.
const BOUNCE: u32 = 4096;

/// A CRC-32C over bytes that come in pieces.
///
/// NVMe/TCP and iSCSI put [`Crc32c::finish`] on the wire little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(Digest);

impl Default for Crc32c {
    fn default() -> Self {
        Crc32c::new()
    }
}

impl Crc32c {
    /// Of no bytes yet.
    #[inline]
    pub fn new() -> Self {
        Crc32c(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds `bytes`.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds the bytes of `segment` as they are now.
    ///
    /// Whoever shares the memory may change it afterwards: a sender that must stay right sends a private copy of the same bytes
    /// (see [`Crc32c::copy_segment`]). The bytes pass through the stack and count as copied out.
    ///
    /// # Errors
    /// [`BadSegment`] when they cannot be reached.
    pub fn update_segment(&mut self, table: &Table, segment: Segment) -> Result<(), BadSegment> {
        let mut bounce = [0; BOUNCE as usize];
        let mut at = 0;
        while at < segment.len {
            let len = (segment.len - at).min(BOUNCE);
            let view = table.view(Segment { offset: segment.offset.wrapping_add(at.into()), len, ..segment })?;
            let n = view.copy_out(&mut bounce);
            self.update(&bounce[..n]);
            at += len;
        }
        Ok(())
    }

    /// Appends the bytes of `segment` to `out` and adds exactly these bytes: what is sent from `out` keeps its digest, whatever
    /// becomes of the memory.
    ///
    /// # Errors
    /// [`BadSegment`] when they cannot be reached; `out` then has an undefined number of further bytes.
    pub fn copy_segment(&mut self, table: &Table, segment: Segment, out: &mut Vec<u8>) -> Result<(), BadSegment> {
        let view = table.view(segment)?;
        let start = out.len();
        out.resize(start + view.len(), 0);
        view.copy_out(&mut out[start..]);
        self.update(&out[start..]);
        Ok(())
    }

    /// The CRC of all bytes so far.
    #[inline]
    pub fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

/// The CRC-32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_memory::{Region, with};

    #[test]
    fn agrees_with_the_check_value_and_another_implementation() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let data: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
        for len in [0, 1, 7, 8, 63, 64, 4095, 4096, 4097, 70_000] {
            assert_eq!(crc32c(&data[..len]), ::crc32c::crc32c(&data[..len]), "{len} bytes");
            let mut pieces = Crc32c::new();
            data[..len].chunks(1000).for_each(|c| pieces.update(c));
            assert_eq!(pieces.finish(), crc32c(&data[..len]), "{len} bytes in pieces");
        }
    }

    #[test]
    fn segments_digest_as_their_bytes() {
        let region = Region::allocate(16384, false).unwrap();
        let data: Vec<u8> = (0..9000u32).map(|i| (i * 7) as u8).collect();
        let segment = Segment { offset: 100, region: region.id(), len: 9000 };
        with(|table| {
            table.view(segment).unwrap().copy_in(&data);
            let (mut by_segment, mut by_copy, mut copy) = (Crc32c::new(), Crc32c::new(), vec![1, 2]);
            by_segment.update_segment(table, segment).unwrap();
            by_copy.copy_segment(table, segment, &mut copy).unwrap();
            assert_eq!((by_segment.finish(), by_copy.finish()), (crc32c(&data), crc32c(&data)));
            assert_eq!(&copy[2..], data);
            let outside = Segment { offset: 16384 - 5, len: 6, ..segment };
            assert!(Crc32c::new().update_segment(table, outside).is_err());
        });
    }
}
