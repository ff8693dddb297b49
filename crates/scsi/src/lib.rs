//! The SCSI command set as octets and values: what every SCSI transport shares, for initiator and target alike.
//!
//! **Knows** SPC-4, SBC-3 and SAM-5 as far as a disk needs them (and what SPC-5 and SBC-4 added to the same structures): command
//! descriptor blocks that we send ([`cdb`]) and that a target reads ([`command`]), statuses ([`status`]) and sense data ([`sense`]),
//! what an answer means to whoever asked ([`mod@meaning`]), and the data of INQUIRY ([`inquiry`], [`vpd`]), READ CAPACITY
//! ([`capacity`]), REPORT LUNS ([`lun`]), MODE SENSE ([`mode`]), target port groups ([`alua`]), persistent reservations
//! ([`reservation`]) and UNMAP ([`unmap`]); and which commands may be passed through for others ([`passthrough`]).
//!
//! **Refuses to know** transports (iSCSI, SAS), sessions, protection information (a command that asks for it is refused), media other
//! than disks, and the clock.
//!
//! Every structure can be parsed and built. Parsers are the door at which hostile octets are checked: they return a typed
//! [`ParseError`] and never panic. All multi-byte fields are big-endian. Devices cut what they return to the allocation length and
//! leave off what their standard did not have yet, so that fields which are not there read as zero; what cannot be done without is
//! demanded, and then [`ParseError::Short`] says how many octets it takes: ask again with as many.
//!
//! **Threading**: plain values, `Send + Sync`. **Unsafe**: forbidden.
//!
//! Read [`cdb`] first, then [`mod@meaning`].
#![forbid(unsafe_code)]

mod wire;

pub mod alua;
pub mod capacity;
pub mod cdb;
pub mod command;
#[doc(hidden)]
pub mod fuzzing;
pub mod inquiry;
pub mod lun;
pub mod meaning;
pub mod midlayer;
pub mod mode;
pub mod opcode;
pub mod passthrough;
pub mod reservation;
pub mod sense;
pub mod status;
pub mod unmap;
pub mod vpd;

pub use cdb::Cdb;
pub use command::{CdbError, Command};
pub use lun::Lun;
pub use meaning::{Again, Attention, Meaning, meaning};
pub use sense::Sense;
pub use status::ScsiStatus;

/// Why octets from a peer were not accepted.
///
/// The error names the structure and, where one field is to blame, its value and what was expected, so that a log line is enough to
/// tell whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer octets than the structure has.
    #[error("{what}: {have} bytes received, {need} needed")]
    Short {
        /// The structure.
        what: &'static str,
        /// Octets it needs, from its beginning: an allocation length that would do. Where the structure tells its own length, the peer
        /// chose this number: whoever allocates by it sets a bound.
        need: usize,
        /// Octets there were.
        have: usize,
    },
    /// A parameter list has a length that it cannot have.
    #[error("{what} has {have} bytes, expected {expected}")]
    Length {
        /// The list.
        what: &'static str,
        /// Octets there were.
        have: usize,
        /// What is legal.
        expected: &'static str,
    },
    /// A field holds a value that the standard does not allow.
    #[error("{what} is {value:#x}, expected {expected}")]
    Value {
        /// The structure and the field.
        what: &'static str,
        /// What was received.
        value: u64,
        /// What is legal.
        expected: &'static str,
    },
}
