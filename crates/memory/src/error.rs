//! What can go wrong with a mapping.

use std::io;

/// A region could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Length zero, or not representable.
    #[error("region of {len} bytes at offset {offset}: {problem}")]
    Shape {
        /// Length asked for in bytes.
        len: u64,
        /// Offset in the file in bytes.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file behind the descriptor is too short.
    #[error("region needs bytes up to {needed} of its file, which is only {size} bytes long")]
    TooShort {
        /// End of the region in the file.
        needed: u64,
        /// Size of the file.
        size: u64,
    },
    /// More address space than strangers may have of this process.
    #[error("{len} bytes more would be more than the {limit} bytes of foreign memory this process maps at a time")]
    TooMuch {
        /// Length in bytes.
        len: u64,
        /// Most bytes mapped at a time.
        limit: u64,
    },
    /// A file of a kind whose pages may take as long as somebody else likes.
    #[error(
        "memory on a FUSE file system is not taken: its server could stop every disk of this process; use a memfd or hugetlbfs"
    )]
    Fuse,
    /// More regions than the registry holds.
    #[error("all {limit} memory regions are in use; detach a disk or a guest first")]
    TooMany {
        /// Most regions at a time.
        limit: usize,
    },
    /// The operating system said no.
    #[error("{call} for {len} bytes failed: {source}{hint}")]
    System {
        /// System call.
        call: &'static str,
        /// Length in bytes.
        len: u64,
        /// Its error.
        source: io::Error,
        /// What to do, if known.
        hint: &'static str,
    },
}
