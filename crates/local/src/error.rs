//! Why a near disk could not be opened.

use polypath_block::{LimitsError, UriError};
use polypath_memory::MemoryError;
use std::io;

/// A near disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Its URI has a part that does not do.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Its block size or length does not do.
    #[error("{name}: {source}")]
    Shape {
        /// Name of the device.
        name: String,
        /// Which number, and what would do.
        source: LimitsError,
    },
    /// No memory for it.
    #[error("{name}: {source}")]
    Memory {
        /// Name of the device.
        name: String,
        /// What failed.
        source: MemoryError,
    },
    /// The operating system said no.
    #[error("{name}: {what} failed: {source}{hint}")]
    System {
        /// Name of the device.
        name: String,
        /// What failed.
        what: &'static str,
        /// Its error.
        source: io::Error,
        /// What to do, if known; empty or beginning with a space.
        hint: &'static str,
    },
    /// It is not what is asked for.
    #[error("{name}: {problem}")]
    Unfit {
        /// Name of the device.
        name: String,
        /// What it is or lacks, and what to do.
        problem: String,
    },
}
