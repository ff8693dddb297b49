//! What a protocol's shell needs of a byte stream, and nothing else.

use crate::list::{Gather, Scatter};
use polypath_block::Waits;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// What a receive brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// So many bytes; at least one.
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    /// The peer has closed its side in order: nothing comes any more.
    End,
}

/// What a stream has cost and moved so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// System calls, those in vain included.
    pub syscalls: u64,
    /// Receives that found nothing.
    pub empty_receives: u64,
    /// Sends.
    pub sends: u64,
    /// Sends that the socket took only in part, or not at all.
    pub short_sends: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
}

/// A connected, or connecting, byte stream. Nothing here blocks.
pub trait Transport {
    /// Is it connected by now?
    ///
    /// # Errors
    /// Why the connection could not be made, or was lost.
    fn poll_connected(&mut self) -> io::Result<bool>;

    /// Receives what is there into `into`, in its order.
    ///
    /// # Errors
    /// The stream is broken (reset, timed out); drop it.
    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received>;

    /// Sends from the start of `from`; returns how many bytes left, which may be none.
    ///
    /// # Errors
    /// The stream is broken; drop it.
    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize>;

    /// Names what must wake a sleeping owner: bytes that came, an end, and room to send if `sending` (or while connecting).
    fn arm(&self, waits: &mut Waits, sending: bool);

    /// For how long the peer's host has acknowledged nothing, although data were sent and sent again: the way to it is cut. `None`
    /// while there is no sign of that. A peer that is only slow, or reads nothing, does not count: its host acknowledges all the
    /// same. May cost a system call; for rare moments.
    fn unacknowledged(&self) -> Option<Duration> {
        None
    }

    /// What it has cost so far.
    fn counters(&self) -> Counters;

    /// Closes it at once and for good: nothing that was not sent will be, nothing more is received, and the peer is told by a
    /// reset rather than by an end. Idempotent; dropping a stream without it closes it in order instead.
    fn abort(&mut self);
}

/// Makes streams. The way in for another backend or a simulated network.
pub trait Dialer: Send + Sync {
    /// Begins to connect to `address`; [`Transport::poll_connected`] tells when it is done. Does not block.
    ///
    /// # Errors
    /// When there is no socket to be had, or no route.
    fn dial(&self, address: SocketAddr) -> io::Result<Box<dyn Transport>>;
}
