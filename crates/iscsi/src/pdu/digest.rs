//! CRC-32C of headers and of data (RFC 7143 sections 11.2.3 and 13.1).

use super::{DIGEST_LEN, PAD, pad_len};
use polypath_net::{Crc32c, crc32c};

/// The digest of a head: basic header and all additional headers, as it goes onto the wire.
#[inline]
pub fn header_digest(header: &[u8]) -> [u8; DIGEST_LEN] {
    crc32c(header).to_le_bytes()
}

/// The digest of a data segment, as it goes onto the wire. `data` come without their padding, which is counted as zeros.
#[inline]
pub fn data_digest(data: &[u8]) -> [u8; DIGEST_LEN] {
    let pad = pad_len(data.len() as u32);
    if pad == 0 {
        return crc32c(data).to_le_bytes();
    }
    let mut crc = Crc32c::new();
    crc.update(data);
    crc.update(&PAD[..pad]);
    crc.finish().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_rfc_7143() {
        // The CRC examples of RFC 7143 (RFC 3720 appendix B.4): octets as they stand on the wire.
        let rising: [u8; 32] = std::array::from_fn(|i| i as u8);
        let falling: [u8; 32] = std::array::from_fn(|i| 31 - i as u8);
        let mut read_10 = [0u8; 48];
        read_10[..2].copy_from_slice(&[0x01, 0xc0]);
        (read_10[16], read_10[22], read_10[27], read_10[31]) = (0x14, 0x04, 0x14, 0x18);
        (read_10[32], read_10[40]) = (0x28, 0x02);
        let table: [(&[u8], [u8; 4]); 5] = [
            (&[0; 32], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (&rising, [0x4e, 0x79, 0xdd, 0x46]),
            (&falling, [0x5c, 0xdb, 0x3f, 0x11]),
            (&read_10, [0x56, 0x3a, 0x96, 0xd9]),
        ];
        for (octets, digest) in table {
            assert_eq!((header_digest(octets), data_digest(octets)), (digest, digest), "{octets:02x?}");
        }
    }

    #[test]
    fn padding_is_part_of_the_data() {
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        for len in 0..=8 {
            let mut padded = data[..len].to_vec();
            padded.resize(len.next_multiple_of(4), 0);
            assert_eq!(data_digest(&data[..len]), crc32c::crc32c(&padded).to_le_bytes(), "{len}");
        }
    }
}
