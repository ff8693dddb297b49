//! Values: numbers, booleans and binary strings (RFC 7143 section 6.1).

/// `Yes` or `No`.
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// How a boolean is written.
pub fn yes_or_no(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// A number, decimal without leading zeros or hexadecimal after `0x`.
pub fn number(value: &str) -> Option<u32> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if value.len() > 1 && value.starts_with('0') => return None,
        None => (value, 10),
    };
    // `from_str_radix` would take a sign
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// A range of numbers, `low~high`.
pub fn range(value: &str) -> Option<(u32, u32)> {
    let (low, high) = value.split_once('~')?;
    let (low, high) = (number(low)?, number(high)?);
    (low <= high).then_some((low, high))
}

/// A binary string, hexadecimal after `0x` or base64 after `0b`, of at most `max` octets.
pub fn binary(value: &str, max: usize) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    let octets = match prefix {
        "0x" | "0X" => hexadecimal(digits.as_bytes()),
        "0b" | "0B" => base64(digits.as_bytes()),
        _ => None,
    }?;
    (octets.len() <= max).then_some(octets)
}

/// A binary string as hexadecimal digits after `0x`.
pub fn to_hexadecimal(octets: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * octets.len());
    text.push_str("0x");
    for octet in octets {
        text.push(DIGITS[usize::from(octet >> 4)].into());
        text.push(DIGITS[usize::from(octet & 15)].into());
    }
    text
}

/// A binary string as base64 after `0b`.
pub fn to_base64(octets: &[u8]) -> String {
    let mut text = String::from("0b");
    for three in octets.chunks(3) {
        let at = |n: usize| u32::from(three.get(n).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for n in 0..4 {
            let digit = BASE64[(bits >> (18 - 6 * n)) as usize & 63];
            text.push(if n <= three.len() { digit.into() } else { '=' });
        }
    }
    text
}

fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    digits.chunks_exact(2).map(|two| Some(digit(two[0])? << 4 | digit(two[1])?)).collect()
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 section 4, with padding, and nothing in the bits that padding leaves over.
fn base64(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    let padding = digits.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let (mut octets, mut bits, mut count) = (Vec::with_capacity(digits.len() / 4 * 3), 0u32, 0);
    for digit in &digits[..digits.len() - padding] {
        bits = bits << 6 | BASE64.iter().position(|b| b == digit)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            octets.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0).then_some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers() {
        let table = [
            ("0", Some(0)),
            ("8192", Some(8192)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("0x0", Some(0)),
            ("0x2aF", Some(0x2af)),
            ("0X10", Some(16)),
            ("0x00000000ffffffff", Some(u32::MAX)),
            ("0x100000000", None),
            ("", None),
            ("0x", None),
            ("01", None),
            ("+1", None),
            ("-1", None),
            ("0x+1", None),
            (" 1", None),
            ("1 ", None),
            ("1a", None),
            ("No", None),
        ];
        for (text, want) in table {
            assert_eq!(number(text), want, "{text:?}");
        }
        assert_eq!((boolean("Yes"), boolean("No"), boolean("yes"), boolean("")), (Some(true), Some(false), None, None));
        let ranges = [("1~2", Some((1, 2))), ("0x10~16", Some((16, 16))), ("2~1", None), ("1", None), ("~", None)];
        for (text, want) in ranges {
            assert_eq!(range(text), want, "{text:?}");
        }
    }

    #[test]
    fn binary_strings() {
        // RFC 4648 section 10
        let table = [
            ("0b", ""),
            ("0bZg==", "f"),
            ("0bZm8=", "fo"),
            ("0bZm9v", "foo"),
            ("0bZm9vYg==", "foob"),
            ("0bZm9vYmE=", "fooba"),
            ("0bZm9vYmFy", "foobar"),
            ("0x666F6f", "foo"),
            ("0X00", "\0"),
            ("0x", ""),
        ];
        for (text, want) in table {
            assert_eq!(binary(text, 6).as_deref(), Some(want.as_bytes()), "{text}");
        }
        let bad = [
            "",
            "0",
            "foo",
            "0x1",
            "0xg0",
            "0bZg",
            "0bZg=",
            "0bZg===",
            "0b====",
            "0bZh==",
            "0bZm9=",
            "0bZ===",
            "0b Zg=",
            "0b-_-_",
            "0bZg==Zg==",
            "\u{e9}x00",
            "0\u{e9}",
        ];
        for text in bad {
            assert_eq!(binary(text, 100), None, "{text:?}");
        }
        assert_eq!(binary("0x0102", 1), None);
    }

    proptest! {
        #[test]
        fn octets_go_round(octets in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(binary(&to_hexadecimal(&octets), 100), Some(octets.clone()));
            prop_assert_eq!(binary(&to_base64(&octets), 100), Some(octets));
        }

        #[test]
        fn one_string_for_one_value(text in "0b[A-Za-z0-9+/=]{0,12}") {
            if let Some(octets) = binary(&text, 100) {
                prop_assert_eq!(to_base64(&octets), text);
            }
        }
    }
}
