//! Namespace identification descriptors, CNS 03h (Base 2.1 section 5.1.13.2.3).

use crate::ParseError;
use crate::wire::fixed;

/// The identifiers of one namespace. An identifier of all zeroes is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NamespaceIds {
    /// IEEE extended unique identifier (type 1h).
    pub eui64: Option<[u8; 8]>,
    /// Namespace globally unique identifier (type 2h).
    pub nguid: Option<[u8; 16]>,
    /// UUID (type 3h), octets in the order of the text.
    pub uuid: Option<[u8; 16]>,
    /// Command set (type 4h); 0 is the NVM command set.
    pub csi: Option<u8>,
}

impl NamespaceIds {
    /// Reads the descriptors; types we do not know are skipped.
    ///
    /// # Errors
    /// [`ParseError`] when there are fewer than 4096 octets, a descriptor runs over the end, a known type
    /// has the wrong length, or one type appears twice with different values.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = fixed::<4096>(bytes, "namespace identification descriptors")?;
        let mut ids = NamespaceIds::default();
        let mut rest: &[u8] = b;
        while let Some((head, tail)) = rest.split_at_checked(4) {
            let (kind, length) = (head[0], usize::from(head[1]));
            if length == 0 {
                break;
            }
            let Some((value, next)) = tail.split_at_checked(length) else {
                return Err(ParseError::Short {
                    what: "namespace identification descriptor",
                    need: length,
                    have: tail.len(),
                });
            };
            match kind {
                1 => store(&mut ids.eui64, value)?,
                2 => store(&mut ids.nguid, value)?,
                3 => store(&mut ids.uuid, value)?,
                4 => {
                    let mut csi = ids.csi.map(|c| [c]);
                    store_any(&mut csi, value)?;
                    ids.csi = csi.map(|[c]| c);
                }
                _ => {}
            }
            rest = next;
        }
        Ok(ids)
    }

    /// The octets (the target's side).
    pub fn to_bytes(&self) -> [u8; 4096] {
        let mut b = [0u8; 4096];
        let mut at = 0;
        let mut put = |kind: u8, value: &[u8]| {
            b[at] = kind;
            b[at + 1] = value.len() as u8;
            b[at + 4..at + 4 + value.len()].copy_from_slice(value);
            at += 4 + value.len();
        };
        if let Some(v) = &self.eui64 {
            put(1, v);
        }
        if let Some(v) = &self.nguid {
            put(2, v);
        }
        if let Some(v) = &self.uuid {
            put(3, v);
        }
        if let Some(v) = self.csi {
            put(4, &[v]);
        }
        b
    }

    /// Whether there is nothing to tell the namespace apart by.
    pub fn is_anonymous(&self) -> bool {
        self.eui64.is_none() && self.nguid.is_none() && self.uuid.is_none()
    }
}

/// Stores an identifier unless it is all zeroes.
fn store<const N: usize>(slot: &mut Option<[u8; N]>, value: &[u8]) -> Result<(), ParseError> {
    if value.len() == N && value.iter().all(|&b| b == 0) {
        return Ok(());
    }
    store_any(slot, value)
}

fn store_any<const N: usize>(slot: &mut Option<[u8; N]>, value: &[u8]) -> Result<(), ParseError> {
    let value: [u8; N] = value.try_into().map_err(|_| ParseError::Value {
        what: "NIDL of a namespace identification descriptor",
        value: value.len() as u64,
        expected: "8 for EUI-64, 16 for NGUID and UUID, 1 for CSI",
    })?;
    match slot {
        Some(old) if *old != value => Err(ParseError::Text {
            what: "namespace identification descriptors",
            problem: "one type twice with different values",
        }),
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let ids = NamespaceIds { eui64: Some([1; 8]), nguid: Some([2; 16]), uuid: Some([3; 16]), csi: Some(0) };
        let b = ids.to_bytes();
        assert_eq!(&b[..4], &[1, 8, 0, 0]);
        assert_eq!(NamespaceIds::parse(&b), Ok(ids));
        assert!(!ids.is_anonymous());
        assert!(NamespaceIds::parse(&[0; 4096]).unwrap().is_anonymous());
        assert!(NamespaceIds::parse(&b[..4000]).is_err());
    }

    #[test]
    fn hostile_lists_are_refused() {
        let mut b = [0u8; 4096];
        b[0..2].copy_from_slice(&[1, 9]);
        b[4] = 1;
        assert!(NamespaceIds::parse(&b).is_err());
        let mut b = [0u8; 4096];
        b[..2].copy_from_slice(&[3, 16]);
        b[4] = 1;
        b[20..22].copy_from_slice(&[3, 16]);
        b[24] = 2;
        assert!(NamespaceIds::parse(&b).is_err());
        // An unknown type is stepped over up to the very end, where one runs out of the page.
        let mut b = [0u8; 4096];
        let mut at = 0;
        while at + 4 < 4096 {
            b[at] = 0x55;
            b[at + 1] = 251;
            at += 255;
        }
        assert!(NamespaceIds::parse(&b).is_err());
        // Zeroes are no identifier.
        let mut b = [0u8; 4096];
        b[..2].copy_from_slice(&[2, 16]);
        assert_eq!(NamespaceIds::parse(&b).unwrap().nguid, None);
    }
}
