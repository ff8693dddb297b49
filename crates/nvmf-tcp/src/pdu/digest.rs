//! CRC-32C, the digest of headers and data (section 3.3.1.1).

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C of `bytes`, continuing from `previous`; start with 0.
///
/// `digest(digest(0, a), b)` is the digest of `a` followed by `b`. The result goes onto the wire in
/// little-endian order.
#[inline]
pub fn digest(previous: u32, bytes: &[u8]) -> u32 {
    if previous == 0 {
        return crc_fast::crc32_iscsi(bytes);
    }
    // The running state is the result before the final inversion.
    let mut crc = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!previous));
    crc.update(bytes);
    crc.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::digest;
    use proptest::prelude::*;

    #[test]
    fn vectors_of_rfc_3720() {
        // RFC 3720 appendix B.4, and the check value of the CRC catalogue.
        assert_eq!(digest(0, b"123456789"), 0xe306_9283);
        assert_eq!(digest(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(digest(0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(digest(0, &std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46dd_794e);
        assert_eq!(digest(0, &[]), 0);
        assert_eq!(digest(7, &[]), 7);
    }

    proptest! {
        #[test]
        fn incremental_and_equal_to_another_implementation(
            data in proptest::collection::vec(any::<u8>(), 0..9000),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(data.len() + 1);
            let (a, b) = data.split_at(cut);
            let whole = digest(0, &data);
            prop_assert_eq!(digest(digest(0, a), b), whole);
            prop_assert_eq!(crc32c::crc32c(&data), whole);
        }
    }
}
