//! What one client may take, and how many clients there may be.

use std::time::Duration;

/// Largest read or write in bytes ("Block size constraints": what every client may take for granted).
pub const LARGEST_REQUEST: u32 = 32 << 20;

/// Slowest pace, in bytes a second, at which a client must send what it has begun to send, and take what it has asked for.
const SLOWEST: u64 = 64 << 10;

/// Bounds of a server. The defaults do for a machine with some dozens of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Clients at a time; one more takes the place of one that has asked for nothing yet or, over TCP, for nothing any more, or is hung up
    /// on. 64.
    pub clients: usize,
    /// Requests of one client that are taken and not answered yet; then nothing more is read from it. 128.
    pub requests: u16,
    /// Buffer memory of one client in bytes, at least [`LARGEST_REQUEST`]; then nothing more is read from it. It is used as it is
    /// needed, first. 32 MiB.
    pub buffer_bytes: u32,
    /// How long a handshake may take. 10 s. Who has been connected for that long and has not asked for anything yet loses its place when
    /// somebody else needs one.
    pub handshake: Duration,
    /// How long a client over TCP must have been without a request in flight before it loses its place when somebody else needs one; the one
    /// that has been for the longest does. Over a UNIX socket nobody does who has asked for anything. 10 s.
    pub idle: Duration,
    /// How long a message that has begun may take to come or to be taken, if it is short; longer ones have as much more as they need at
    /// 64 KiB a second. 30 s.
    pub stall: Duration,
    /// How long a client hears ESHUTDOWN after its last request was answered, before the connection is closed. 300 ms.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            clients: 64,
            requests: 128,
            buffer_bytes: LARGEST_REQUEST,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            linger: Duration::from_millis(300),
        }
    }
}

impl Limits {
    /// With what cannot be set right: a client that could have no request in flight would never be answered.
    pub(crate) fn sane(self) -> Limits {
        let buffer_bytes = self.buffer_bytes.max(LARGEST_REQUEST);
        Limits { clients: self.clients.max(1), requests: self.requests.max(1), buffer_bytes, ..self }
    }

    /// How long a message of `len` octets may take.
    pub(crate) fn allowance(&self, len: u64) -> Duration {
        self.stall.saturating_add(Duration::from_millis(len.saturating_mul(1000) / SLOWEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_have_longer() {
        let limits = Limits::default();
        assert_eq!(limits.allowance(16), Duration::from_secs(30));
        assert_eq!(limits.allowance(32 << 20), Duration::from_secs(30 + 512));
        assert!(limits.allowance(u64::MAX) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn nobody_is_starved_by_limits_that_make_no_sense() {
        let none = Limits { clients: 0, requests: 0, buffer_bytes: 0, ..Limits::default() }.sane();
        assert_eq!((none.clients, none.requests, none.buffer_bytes), (1, 1, LARGEST_REQUEST));
    }
}
