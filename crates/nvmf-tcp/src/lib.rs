//! NVMe over TCP: octets, protocol, and the shell that drives them over a socket.
//!
//! Three rooms: [`pdu`] knows the octets of every PDU (for host and target alike) and nothing else;
//! [`proto`] is the host's side of one connection without socket and clock; the shell over `net` moves
//! bytes between the two.
//!
//! **Knows** the NVMe/TCP Transport Specification 1.0 and 1.1. **Refuses to know** which of several paths
//! an I/O should take. **Unsafe**: forbidden. Read [`proto`] first.
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod fuzzing;
pub mod pdu;
pub mod proto;
