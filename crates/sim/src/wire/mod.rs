//! In-memory byte streams with virtual time, behind [`polypath_net`]'s traits.
//!
//! What TCP promises holds here, too: bytes come in order and once, or the stream breaks. A direction that is cut delivers
//! nothing and tells nobody; what was sent meanwhile comes after it is healed, as a retransmission would. A reset that meets a
//! cut is lost; whoever later sends to an end that is gone is reset.
//!
//! Connections of one address share its two [`Shape`]s and differ by a skew of their own, so that what was sent first on one
//! may come last.

mod state;
mod stream;
#[cfg(test)]
mod tests;

pub use stream::{SimDialer, SimStream};

use polypath_block::{Interest, Time};
use state::State;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Descriptor that interests of simulated streams carry; their number alone says which stream it is.
pub const NO_FD: i32 = -1;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Way {
    /// From whoever dialled to whoever listens.
    ToTarget = 0,
    /// Back.
    ToHost = 1,
}

impl Way {
    /// Both.
    pub const ALL: [Way; 2] = [Way::ToTarget, Way::ToHost];

    pub(crate) const fn other(self) -> Way {
        match self {
            Way::ToTarget => Way::ToHost,
            Way::ToHost => Way::ToTarget,
        }
    }
}

/// How one direction of an address treats what is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Least and most delay of a packet, in microseconds.
    pub delay_us: (u64, u64),
    /// Most that a connection lags behind the others all its life, in microseconds.
    pub skew_us: u64,
    /// Bytes a second of one connection; zero for no limit.
    pub bytes_per_s: u64,
    /// Most bytes of a packet; at least one.
    pub packet: usize,
    /// Nothing arrives and nobody is told.
    pub cut: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { delay_us: (20, 60), skew_us: 0, bytes_per_s: 0, packet: 16 << 10, cut: false }
    }
}

/// A network. Clones are the same network.
#[derive(Clone)]
pub struct Net(Arc<Mutex<State>>);

impl Net {
    /// A network without listeners, at `now`. A connection holds at most `buffer` bytes in each direction that were not read.
    pub fn new(seed: u64, now: Time, buffer: usize) -> Net {
        Net(Arc::new(Mutex::new(State::new(seed, now, buffer.max(1)))))
    }

    /// Somebody listens at `address`, or does no more. What is connected stays so.
    pub fn listen(&self, address: SocketAddr, open: bool) {
        self.lock().listener(address).open = open;
    }

    /// Makes `way` of `address` treat what is sent from now on by `shape`. Healing a cut sends what is stuck once more.
    pub fn shape(&self, address: SocketAddr, way: Way, shape: Shape) {
        self.lock().reshape(address, way, shape);
    }

    /// The shape of `way` of `address`.
    pub fn shape_of(&self, address: SocketAddr, way: Way) -> Shape {
        self.lock().shape_of(address, way)
    }

    /// Lets one connection lag by `us` more from now on.
    pub fn lag(&self, connection: u64, way: Way, us: u64) {
        self.lock().lag(connection, way, us);
    }

    /// The numbers of the connections of `address` that somebody still holds, oldest first.
    pub fn connections(&self, address: SocketAddr) -> Vec<u64> {
        self.lock().connections(address)
    }

    /// Bytes that were sent one way of `connection` and not read yet.
    pub fn unread(&self, connection: u64, way: Way) -> usize {
        self.lock().unread(connection, way)
    }

    /// How many connections to `address` whoever dialled still holds.
    pub fn dialled(&self, address: SocketAddr) -> usize {
        self.lock().dialled(address)
    }

    /// The next stream that was dialled to `address` and arrived: the listener's end of it.
    pub fn accept(&self, address: SocketAddr) -> Option<SimStream> {
        let connection = self.lock().accept(address)?;
        Some(SimStream::new(self.clone(), connection, Way::ToHost))
    }

    /// When something happens next by itself.
    pub fn next_event(&self) -> Option<Time> {
        self.lock().next_event()
    }

    /// Lets time pass until `to`, with all that arrives meanwhile.
    pub fn advance_to(&self, to: Time) {
        self.lock().advance_to(to);
    }

    /// The time.
    pub fn now(&self) -> Time {
        self.lock().now
    }

    /// Would a sleeper that waits for `interest` be woken? Only for interests with [`NO_FD`].
    pub fn is_ready(&self, interest: &Interest) -> bool {
        self.lock().is_ready(interest)
    }

    /// Has anything happened to `connection` since this was asked last? For whoever polls the listening end.
    pub fn take_changed(&self, connection: u64) -> bool {
        self.lock().take_changed(connection)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Net")
    }
}

pub(crate) fn broken(kind: io::ErrorKind, why: &str) -> io::Error {
    io::Error::new(kind, why.to_owned())
}
