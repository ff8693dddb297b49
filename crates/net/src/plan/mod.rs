//! What a protocol of PDUs has to send: an ordered ring of PDUs, each with its head in memory of its own and a reference to data that
//! stay where their owner has them.
//!
//! The connection of a protocol pushes PDUs ([`SendRing::push`]) and its shell lists them for one vectored send ([`SendRing::transmit`]). What the
//! PDUs are the protocol says ([`PduKind`]); what is common to all is here: the order, what has left and what has not, data digests that
//! only the shell can compute, taking back what has not left.

mod data;
mod fifo;
mod heads;
mod ring;

pub use data::{Copies, Holding, Lookup, Unreachable};
pub use fifo::Fifo;
pub use heads::Heads;
pub use ring::{Chunk, DigestDue, Pdu, PduKind, SendRing, Transmit};
