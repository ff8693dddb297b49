//! Namespace lists: 1024 identifiers, increasing, ended by a zero.

use crate::ParseError;
use crate::wire::{Field, fixed};

/// Reads an active namespace list (CNS 02h) that was asked for with `above`; every identifier must be
/// greater than that. Fewer than 1024 identifiers mean that there are no more.
///
/// # Errors
/// [`ParseError`] when there are fewer than 4096 octets, or the identifiers do not increase: a host that
/// walks such a list would walk for ever.
pub fn active_namespaces(bytes: &[u8], above: u32) -> Result<Vec<u32>, ParseError> {
    let b = fixed::<4096>(bytes, "active namespace list")?;
    let mut list = Vec::new();
    let mut last = above;
    for i in 0..1024 {
        let nsid = u32::get(b, i * 4);
        if nsid == 0 {
            break;
        }
        if nsid <= last || nsid >= 0xffff_fffe {
            return Err(ParseError::Value {
                what: "identifier in the active namespace list",
                value: u64::from(nsid),
                expected: "above the one before it, below FFFFFFFEh",
            });
        }
        last = nsid;
        list.push(nsid);
    }
    Ok(list)
}

/// The list of those of `nsids` that are greater than `above` (the target's side). `nsids` must be
/// increasing; at most 1024 are taken.
pub fn build_namespace_list(nsids: impl IntoIterator<Item = u32>, above: u32) -> [u8; 4096] {
    let mut b = [0u8; 4096];
    for (i, nsid) in nsids.into_iter().filter(|&n| n > above).take(1024).enumerate() {
        nsid.put(&mut b, i * 4);
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let b = build_namespace_list([1, 3, 9], 1);
        assert_eq!(active_namespaces(&b, 1), Ok(vec![3, 9]));
        assert!(active_namespaces(&b, 3).is_err());
        assert!(active_namespaces(&b[..4095], 0).is_err());
        let full = build_namespace_list(1..=2000, 0);
        assert_eq!(active_namespaces(&full, 0).unwrap().len(), 1024);
        let again = build_namespace_list([5, 5], 0);
        assert!(active_namespaces(&again, 0).is_err());
        assert!(active_namespaces(&build_namespace_list([0xffff_ffff], 0), 0).is_err());
        assert_eq!(active_namespaces(&[0; 4096], 0), Ok(vec![]));
    }
}
