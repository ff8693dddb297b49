//! The octets of the protocol: what a client says, parsed from a slice that nobody trusts, and what the server says, as it goes out.
//!
//! Sections named here are those of `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>, which rules. All numbers are
//! big-endian. Nothing here reads a socket, keeps state or allocates more than what it was given takes.

pub mod option;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;

pub use option::{
    ClientFlags, ContextRequest, ExportRequest, GREETING, InfoType, OPTION_HEADER_LEN, OptionHeader, OptionReply,
    OptionType,
};
pub use reply::{Errno, Head};
pub use request::{Command, CommandFlags, REQUEST_LEN, Request, TransmissionFlags};

/// Longest string in octets ("Values": strings have at most 4096).
pub const STRING_MAX: usize = 4096;

/// Octets that are not what the protocol has there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer octets than there must be.
    #[error("{what}: {have} octets found, {need} expected")]
    Short {
        /// Of what.
        what: &'static str,
        /// Octets that must be there.
        need: usize,
        /// Octets that are.
        have: usize,
    },
    /// More octets than belong there.
    #[error("{what}: {extra} octets too many")]
    Trailing {
        /// After what.
        what: &'static str,
        /// How many.
        extra: usize,
    },
    /// A magic number is another one: the two sides do not mean the same octets.
    #[error("{what}: magic number {found:#x} found, {expected:#x} expected")]
    Magic {
        /// Of what.
        what: &'static str,
        /// What is there.
        found: u64,
        /// What must be.
        expected: u64,
    },
    /// A string is too long.
    #[error("{what} of {found} octets; at most {max} are expected")]
    TooLong {
        /// Which string.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The longest that there may be.
        max: usize,
    },
    /// A string is not UTF-8, or has a NUL in it.
    #[error("{what} is no text: UTF-8 without NUL is expected")]
    NotText {
        /// Which string.
        what: &'static str,
    },
    /// A client that sets flags which nobody has offered.
    #[error("client flags {found:#x}; of these only 0x1 (fixed newstyle) and 0x2 (no zeroes) are known")]
    ClientFlags {
        /// What it has sent.
        found: u32,
    },
}

/// Takes fields off the front of octets from a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(rest: &'a [u8], what: &'static str) -> Self {
        Fields { rest, what }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let short = WireError::Short { what: self.what, need: len, have: self.rest.len() };
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let short = WireError::Short { what: self.what, need: N, have: self.rest.len() };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A string that is preceded by its length in 32 bits.
    pub(crate) fn counted_text(&mut self, what: &'static str) -> Result<&'a str, WireError> {
        let len = self.u32()? as usize;
        if len > STRING_MAX {
            return Err(WireError::TooLong { what, found: len, max: STRING_MAX });
        }
        text(self.take(len)?, what)
    }

    pub(crate) fn end(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(WireError::Trailing { what: self.what, extra }),
        }
    }
}

/// A string: UTF-8 without NUL, at most [`STRING_MAX`] octets.
pub(crate) fn text<'a>(octets: &'a [u8], what: &'static str) -> Result<&'a str, WireError> {
    if octets.len() > STRING_MAX {
        return Err(WireError::TooLong { what, found: octets.len(), max: STRING_MAX });
    }
    match std::str::from_utf8(octets) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(WireError::NotText { what }),
    }
}

/// As much of `text` as fits in `max` octets, cut between characters.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
