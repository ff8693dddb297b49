//! Little-endian fields at fixed offsets. Every offset is proven to lie inside its structure at
//! compile time, so that one length check at the door is enough.

use crate::ParseError;

/// A value that sits at an offset of a structure.
pub(crate) trait Field: Sized {
    /// Octets it takes.
    const LEN: usize;
    /// Reads it. The caller has proven `at + LEN <= bytes.len()`.
    fn get(bytes: &[u8], at: usize) -> Self;
    /// Writes it. The caller has proven `at + LEN <= bytes.len()`.
    fn put(&self, bytes: &mut [u8], at: usize);
}

macro_rules! integer_field {
    ($($ty:ty),*) => {$(
        impl Field for $ty {
            const LEN: usize = size_of::<$ty>();
            #[inline]
            fn get(bytes: &[u8], at: usize) -> Self {
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(&bytes[at..at + Self::LEN]);
                <$ty>::from_le_bytes(raw)
            }
            #[inline]
            fn put(&self, bytes: &mut [u8], at: usize) {
                bytes[at..at + Self::LEN].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
integer_field!(u8, u16, u32, u64, u128);

impl<const N: usize> Field for [u8; N] {
    const LEN: usize = N;
    fn get(bytes: &[u8], at: usize) -> Self {
        let mut out = [0; N];
        out.copy_from_slice(&bytes[at..at + N]);
        out
    }
    #[inline]
    fn put(&self, bytes: &mut [u8], at: usize) {
        bytes[at..at + N].copy_from_slice(self);
    }
}

/// The first `N` octets, or the error that names the structure.
#[inline]
pub(crate) fn fixed<'a, const N: usize>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8; N], ParseError> {
    bytes.first_chunk::<N>().ok_or(ParseError::Short { what, need: N, have: bytes.len() })
}

/// Text of a fixed-width ASCII field: cut at the first NUL, trailing spaces removed, anything that is
/// not printable ASCII shown as `?` (it came from a peer and goes to a terminal).
pub(crate) fn ascii(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let mut text: String =
        field[..end].iter().map(|&b| if (0x20..0x7f).contains(&b) { char::from(b) } else { '?' }).collect();
    text.truncate(text.trim_end().len());
    text
}

/// A fixed-width field with `text` at its front, filled up with `fill`, cut when too long.
pub(crate) fn padded<const N: usize>(text: &str, fill: u8) -> [u8; N] {
    let mut field = [fill; N];
    let take = text.len().min(N);
    field[..take].copy_from_slice(&text.as_bytes()[..take]);
    field
}

/// Declares a structure with named fields at byte offsets, its `parse` and its `to_bytes`.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        $name:ident, $len:expr, $what:literal {
            $( $(#[$fmeta:meta])* $field:ident : $ty:ty = $at:expr ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$fmeta])* pub $field: $ty, )*
        }

        #[allow(clippy::int_plus_one)]
        const _: () = {
            $( assert!($at + <$ty as $crate::wire::Field>::LEN <= $len); )*
        };

        impl $name {
            /// Octets on the wire.
            pub const LEN: usize = $len;

            /// Reads the structure from its octets; more octets than [`Self::LEN`] are ignored.
            ///
            /// # Errors
            /// [`ParseError::Short`](crate::ParseError::Short) when there are fewer.
            pub fn parse(bytes: &[u8]) -> Result<Self, $crate::ParseError> {
                let b = $crate::wire::fixed::<{ $len }>(bytes, $what)?;
                Ok($name { $( $field: <$ty as $crate::wire::Field>::get(b, $at), )* })
            }

            /// The octets; reserved fields are zero.
            pub fn to_bytes(&self) -> [u8; $len] {
                let mut b = [0u8; $len];
                $( $crate::wire::Field::put(&self.$field, &mut b, $at); )*
                b
            }
        }

        impl Default for $name {
            /// All fields zero.
            fn default() -> Self {
                let b = [0u8; $len];
                $name { $( $field: <$ty as $crate::wire::Field>::get(&b, $at), )* }
            }
        }
    };
}
pub(crate) use wire_struct;
