//! Big-endian fields at fixed offsets, and text.

use crate::ParseError;

/// The first `N` octets, or the error that names the structure.
pub(crate) fn fixed<'a, const N: usize>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8; N], ParseError> {
    bytes.first_chunk::<N>().ok_or(ParseError::Short { what, need: N, have: bytes.len() })
}

/// The first `need` octets, or the error that names the structure.
pub(crate) fn front<'a>(bytes: &'a [u8], need: usize, what: &'static str) -> Result<&'a [u8], ParseError> {
    bytes.get(..need).ok_or(ParseError::Short { what, need, have: bytes.len() })
}

/// A number of `N` octets. Octets beyond the end read as zero: structures grow at their ends, and what is cut off was not reported.
#[inline]
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()) {
        Some(octets) => octets.iter().fold(0, |value, &octet| value << 8 | u64::from(octet)),
        None => (at..at + N).fold(0, |value, i| value << 8 | u64::from(get8(bytes, i))),
    }
}

/// One octet, zero beyond the end.
#[inline]
pub(crate) fn get8(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// 16 bits, see [`number`].
#[inline]
pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    number::<2>(bytes, at) as u16
}

/// 24 bits, see [`number`].
#[inline]
pub(crate) fn get24(bytes: &[u8], at: usize) -> u32 {
    number::<3>(bytes, at) as u32
}

/// 32 bits, see [`number`].
#[inline]
pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    number::<4>(bytes, at) as u32
}

/// 64 bits, see [`number`].
#[inline]
pub(crate) fn get64(bytes: &[u8], at: usize) -> u64 {
    number::<8>(bytes, at)
}

/// A bit of an octet, zero beyond the end.
#[inline]
pub(crate) fn bit(bytes: &[u8], at: usize, bit: u8) -> bool {
    get8(bytes, at) >> bit & 1 != 0
}

/// A bit as an octet, for building.
#[inline]
pub(crate) const fn flag(set: bool, bit: u8) -> u8 {
    (set as u8) << bit
}

/// Writes octets at an offset of a structure that we build: the caller has made room.
#[inline]
pub(crate) fn put(bytes: &mut [u8], at: usize, octets: &[u8]) {
    bytes[at..at + octets.len()].copy_from_slice(octets);
}

/// 16 bits, see [`put`].
#[inline]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, &value.to_be_bytes());
}

/// 32 bits, see [`put`].
#[inline]
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_be_bytes());
}

/// 64 bits, see [`put`].
#[inline]
pub(crate) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_be_bytes());
}

/// A length field of 32 bits for what we build; a list that long does not exist.
pub(crate) fn len32(octets: usize) -> u32 {
    u32::try_from(octets).unwrap_or(u32::MAX)
}

/// A length field of 16 bits for what we build.
pub(crate) fn len16(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}

/// Text of a fixed-width ASCII field: cut at the first NUL, leading and trailing spaces removed, anything that is not printable ASCII
/// shown as `?` (it came from a peer and goes to a terminal).
pub(crate) fn ascii(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let text: String =
        field.iter().take(end).map(|&b| if (0x20..0x7f).contains(&b) { char::from(b) } else { '?' }).collect();
    text.trim().to_owned()
}

/// A fixed-width field with `text` at its front, filled up with spaces, cut when too long; what is not printable ASCII becomes `?`.
pub(crate) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (slot, c) in field.iter_mut().zip(text.chars()) {
        *slot = if matches!(c, ' '..='~') { c as u8 } else { b'?' };
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_big_endian_and_zero_beyond_the_end() {
        let b = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!((get16(&b, 1), get24(&b, 0), get32(&b, 2)), (0x0203, 0x01_0203, 0x0304_0506));
        assert_eq!(get64(&b, 1), 0x0203_0405_0607_0809);
        assert_eq!((get32(&b, 7), get16(&b, 99), get8(&b, 9)), (0x0809_0000, 0, 0));
        assert!(bit(&b, 8, 3) && !bit(&b, 8, 1) && !bit(&b, 9, 0));
    }

    #[test]
    fn text_is_trimmed_and_made_printable() {
        assert_eq!(ascii(b"  IET \x01 \0x"), "IET ?");
        assert_eq!(&padded::<6>("ab\u{e9}"), b"ab?   ");
        assert_eq!(&padded::<2>("abc"), b"ab");
    }
}
