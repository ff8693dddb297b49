//! iSCSI: octets, login and authentication, for initiator and target alike.
//!
//! [`pdu`] knows the octets of every PDU and nothing else. Numbers that wrap, such as CmdSN and StatSN, are in [`serial`].
//!
//! **Knows** RFC 7143. **Refuses to know** what a SCSI command means, sockets, and the clock: what arrives and what the caller's
//! random source gave are arguments, what must leave is a result.
//!
//! **Threading:** none; every value belongs to whoever holds it. **Unsafe**: forbidden. Read [`pdu::Header`] first.
#![forbid(unsafe_code)]

pub mod pdu;
pub mod serial;
