//! What is wrong with a block that was read.

use super::stamp::Found;
use std::fmt;

/// Why a block is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// A write was acknowledged and no read has ever returned it: what was there before it still is.
    LostWrite,
    /// Old data came back after newer data had been read: a late write landed, or a cache was lost.
    Stale,
    /// Sectors of different writes.
    Torn,
    /// Bytes that no write ever wrote.
    Corrupted,
    /// A block that was written elsewhere.
    Misdirected,
    /// A block of another checker or of a record that was thrown away.
    Foreign,
    /// A write of this checker that it cannot have issued yet.
    Impossible,
}

impl ErrorKind {
    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorKind::LostWrite => "lost write",
            ErrorKind::Stale => "old data",
            ErrorKind::Torn => "torn block",
            ErrorKind::Corrupted => "corrupted block",
            ErrorKind::Misdirected => "misdirected block",
            ErrorKind::Foreign => "foreign block",
            ErrorKind::Impossible => "impossible block",
        }
    }
}

/// A block that read as something it cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub struct VerifyError {
    /// The block.
    pub lba: u64,
    /// What is wrong with it.
    pub kind: ErrorKind,
    /// What was read.
    pub found: Found,
    /// The newest acknowledged write (sequence number; zero: the initial content).
    pub expected: u64,
    /// How many contents would have been right, this one included.
    pub choices: u32,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: {}: expected ", self.lba, self.kind.as_str())?;
        match self.expected {
            0 => f.write_str("the initial content")?,
            n => write!(f, "write {n}")?,
        }
        if self.choices > 1 {
            write!(f, " (or one of {} others that overlapped it)", self.choices - 1)?;
        }
        f.write_str(", found ")?;
        match self.found {
            Found::Write { sequence } => write!(f, "write {sequence}"),
            Found::Zeroes => f.write_str("zeroes"),
            Found::Elsewhere { lba, disk, sequence } => write!(f, "write {sequence} to block {lba} of disk {disk:#x}"),
            Found::Torn { first, other, sector } => {
                write!(f, "write {first} up to sector {sector}, then write {other} (0: zeroes)")
            }
            Found::Foreign { history } => write!(f, "a block of verification record {history:#x}"),
            Found::Corrupted { sector } => write!(f, "damage in sector {sector}"),
            Found::Unknown => f.write_str("bytes without a stamp"),
        }
    }
}
