//! One end of a connection.

use super::{NO_FD, Net, Way};
use core::time::Duration;
use polypath_block::{Interest, Waits};
use polypath_net::{Counters, Dialer, Gather, Received, Scatter, Transport};
use std::io;
use std::net::SocketAddr;

/// One end of a simulated connection. Dropping it ends it in order; [`Transport::abort`] resets it.
#[derive(Debug)]
pub struct SimStream {
    net: Net,
    connection: u64,
    /// The way that this end sends.
    side: Way,
    /// Its owner has been told that it is connected.
    connected: bool,
    counters: Counters,
}

/// Dials over a [`Net`].
#[derive(Clone, Debug)]
pub struct SimDialer(pub Net);

impl Dialer for SimDialer {
    fn dial(&self, address: SocketAddr) -> io::Result<Box<dyn Transport>> {
        let connection = self.0.lock().dial(address);
        Ok(Box::new(SimStream::new(self.0.clone(), connection, Way::ToTarget)))
    }
}

impl SimStream {
    pub(crate) fn new(net: Net, connection: u64, side: Way) -> SimStream {
        SimStream { net, connection, side, connected: side == Way::ToHost, counters: Counters::default() }
    }

    /// The number of its connection.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Appends all that is there to `out`.
    ///
    /// # Errors
    /// As [`Transport::receive`].
    pub fn read(&mut self, out: &mut Vec<u8>) -> io::Result<Received> {
        self.take(|bytes| {
            out.extend_from_slice(bytes);
            bytes.len()
        })
    }

    /// Sends from the start of `bytes`, as much as there is room for.
    ///
    /// # Errors
    /// As [`Transport::send`].
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.net.lock();
        let n = state.room(self.connection, self.side)?.min(bytes.len());
        if n > 0 {
            state.send(self.connection, self.side, bytes[..n].to_vec());
        }
        Ok(n)
    }

    /// Room for more bytes; nothing when it is broken.
    pub fn room(&self) -> usize {
        self.net.lock().room(self.connection, self.side).unwrap_or(0)
    }

    fn take(&mut self, take: impl FnOnce(&[u8]) -> usize) -> io::Result<Received> {
        self.counters.syscalls += 1;
        let received = self.net.lock().receive(self.connection, self.side, take)?;
        match received {
            Received::Bytes(n) => self.counters.bytes_in += n as u64,
            Received::Nothing => self.counters.empty_receives += 1,
            Received::End => {}
        }
        Ok(received)
    }
}

impl Transport for SimStream {
    fn poll_connected(&mut self) -> io::Result<bool> {
        self.connected = self.net.lock().poll_connected(self.connection, self.side)?;
        Ok(self.connected)
    }

    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        self.take(|bytes| into.place(bytes))
    }

    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize> {
        let mut state = self.net.lock();
        let room = state.room(self.connection, self.side)?;
        let mut bytes = Vec::new();
        let n = from.copy_to(&mut bytes, room);
        if n > 0 {
            state.send(self.connection, self.side, bytes);
        }
        self.counters.syscalls += 1;
        self.counters.sends += 1;
        self.counters.short_sends += u64::from(n < from.len());
        self.counters.bytes_out += n as u64;
        Ok(n)
    }

    fn arm(&self, waits: &mut Waits, sending: bool) {
        let id = self.connection << 1 | self.side as u64;
        waits.interests.push(Interest { fd: NO_FD, id, read: true, write: sending || !self.connected });
    }

    fn unacknowledged(&self) -> Option<Duration> {
        self.net.lock().unacknowledged(self.connection, self.side)
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn abort(&mut self) {
        self.net.lock().close(self.connection, self.side, true);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.net.lock().close(self.connection, self.side, false);
    }
}
