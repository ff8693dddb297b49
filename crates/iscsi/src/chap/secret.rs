//! A secret that does not show itself.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A CHAP secret: any octets. It is overwritten when dropped, and its `Debug` tells nothing of it, not even the length.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// These octets.
    pub fn new(octets: impl Into<Vec<u8>>) -> Self {
        Secret(Zeroizing::new(octets.into()))
    }

    /// Bits that it has at the most, eight for each octet.
    pub fn bits(&self) -> usize {
        self.0.len() * 8
    }

    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}
