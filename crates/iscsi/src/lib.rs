//! iSCSI: octets, login and authentication, for initiator and target alike.
//!
//! Three rooms: [`pdu`] knows the octets of every PDU and nothing else; [`login`] is the login phase of either side, with the
//! negotiation of text keys, and discovery; [`chap`] is how either side proves who it is. Numbers that wrap, such as CmdSN and StatSN,
//! are in [`serial`].
//!
//! **Knows** RFC 7143. **Refuses to know** what a SCSI command means, sockets, and the clock: what arrives and what the caller's
//! random source gave are arguments, what must leave is a result.
//!
//! **Threading:** none; every value belongs to whoever holds it. **Unsafe**: forbidden. Read
//! [`pdu::Header`] first, then [`login::InitiatorLogin`].
#![forbid(unsafe_code)]

pub mod chap;
#[doc(hidden)]
pub mod fuzzing;
pub mod login;
pub mod pdu;
pub mod serial;
