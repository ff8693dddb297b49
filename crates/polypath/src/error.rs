//! Errors for people: what was wrong, where, what was expected, what to do.

use polypath_block::{Code, OpenError, PassthroughError, ReservationError, Status, UriError};
use polypath_local::LocalError;
use polypath_memory::MemoryError;
use polypath_multipath::{GroupError, SliceError};
use polypath_reactor::ReactorError;
use polypath_vhost_user_client::ClientError;
use std::io;

/// What can go wrong with a stack, a disk, or one operation on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A URI has a part that does not do.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A disk of this machine could not be opened.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The scheme is known, but this build has no driver for it.
    #[error(
        "{uri}: there is no driver for {scheme}:// in this build; there are nvme-tcp, file, ram, null and vhost-user-blk"
    )]
    Unsupported {
        /// The URI.
        uri: String,
        /// Its scheme.
        scheme: &'static str,
    },
    /// A reactor could not be started.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// A vhost-user-blk back-end does not do.
    #[error(transparent)]
    VhostUser(#[from] ClientError),
    /// A group does not take a path.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// There can be no such slice.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// A device opens no queue.
    #[error(transparent)]
    Queue(#[from] OpenError),
    /// A specification that makes no sense.
    #[error("{what}: {problem}")]
    Spec {
        /// What was specified.
        what: String,
        /// What is wrong with it and what was expected.
        problem: String,
    },
    /// A device did not answer in time.
    #[error("{name} did not answer within {waited_ms} ms: {reason}")]
    NotLive {
        /// Name of the device.
        name: String,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
        /// What is known of it.
        reason: String,
    },
    /// A device is gone.
    #[error("{name} is gone: {reason}")]
    Gone {
        /// Name of the device.
        name: String,
        /// Why.
        reason: String,
    },
    /// The disk was closed.
    #[error("{name} was closed; open it again")]
    Closed {
        /// Name of the disk.
        name: String,
    },
    /// Offset or length is no multiple of the block size.
    #[error(
        "{name}: {len} bytes at offset {offset}: both must be multiples of the block size, {block_size} bytes, and not empty"
    )]
    Misaligned {
        /// Name of the disk.
        name: String,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// The range ends beyond the disk.
    #[error("{name}: {len} bytes at offset {offset} end beyond the disk, which has {size} bytes")]
    OutOfRange {
        /// Name of the disk.
        name: String,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// There is no buffer memory left.
    #[error(
        "no buffer of {wanted} bytes: the arena of {arena} bytes has no run that long; drop some buffers, or raise StackConfig::buffer_bytes"
    )]
    NoBuffer {
        /// Bytes wanted.
        wanted: u64,
        /// Size of the arena in bytes.
        arena: u64,
    },
    /// There is no memory for the arena.
    #[error("buffer arena: {0}")]
    Memory(#[from] MemoryError),
    /// The disk answered with an error.
    #[error("{name}: {what} of {len} bytes at offset {offset}: {status}")]
    Io {
        /// Name of the disk.
        name: String,
        /// What was asked for.
        what: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// What it said.
        status: Status,
    },
    /// Something of reservations was not done, or is not known to have been.
    #[error("{name}: {source}")]
    Reservation {
        /// Name of the disk.
        name: String,
        /// Why.
        source: ReservationError,
    },
    /// A command was not passed through, or it is not known whether it was carried out.
    #[error("{name}: {source}")]
    Passthrough {
        /// Name of the disk.
        name: String,
        /// Why.
        source: PassthroughError,
    },
    /// The operating system said no.
    #[error("{what} failed: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl Error {
    /// The meaning, if the disk answered with an error.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Io { status, .. } => Some(status.code),
            Error::Reservation { source, .. } => Some(source.code),
            Error::Passthrough { source, .. } => Some(source.code),
            _ => None,
        }
    }
}
