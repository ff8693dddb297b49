//! The NVMe command set as octets and values: what every NVMe transport shares.
//!
//! **Knows** the NVM Express Base Specification 2.1 and the NVM Command Set Specification 1.1 as far
//! as a block device needs them: submission and completion entries ([`sqe`], [`cqe`], [`status`]),
//! fabrics commands ([`fabrics`]), Identify data ([`identify`]), log pages ([`log`]), features
//! ([`features`]), reservations ([`reservation`]), controller registers ([`properties`]), the one bring-up machine that serves PCIe
//! and fabrics alike ([`bringup`]), names ([`nqn`]) and keep-alive arithmetic ([`keepalive`]).
//!
//! **Refuses to know** sockets, DMA, queues, retries, multipath and the clock: time is an argument,
//! in nanoseconds since any fixed epoch.
//!
//! Every structure can be parsed (the host's side) and built (the target's side). Parsers are the
//! door at which hostile octets are checked: they return a typed [`ParseError`] and never panic.
//! All multi-byte fields are little-endian. Zero-based wire fields end in `_z`.
//!
//! **Threading**: plain values, `Send + Sync`. **Unsafe**: forbidden.
//!
//! Read [`sqe`] first, then [`bringup`].
#![forbid(unsafe_code)]

mod wire;

pub mod bringup;
pub mod cqe;
pub mod fabrics;
pub mod features;
#[doc(hidden)]
pub mod fuzzing;
pub mod identify;
pub mod keepalive;
pub mod log;
pub mod nqn;
pub mod properties;
pub mod reservation;
pub mod sgl;
pub mod sqe;
pub mod status;

pub use cqe::Cqe;
pub use sgl::SglDescriptor;
pub use sqe::Sqe;
pub use status::StatusField;

/// Why octets from a peer were not accepted.
///
/// The error names the structure and, where one field is to blame, its value and what was expected,
/// so that a log line is enough to tell whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer octets than the structure has.
    #[error("{what}: {have} bytes received, {need} needed")]
    Short {
        /// The structure.
        what: &'static str,
        /// Octets it needs.
        need: usize,
        /// Octets there were.
        have: usize,
    },
    /// A field holds a value that the specification does not allow.
    #[error("{what} is {value:#x}, expected {expected}")]
    Value {
        /// The structure and the field.
        what: &'static str,
        /// What was received.
        value: u64,
        /// What is legal.
        expected: &'static str,
    },
    /// A text field is not what it should be.
    #[error("{what}: {problem}")]
    Text {
        /// The structure and the field.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}
