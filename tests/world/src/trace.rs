//! What happened, for whoever must understand a failing seed; and a fingerprint of all of it.

use polypath_block::Time;
use std::collections::VecDeque;
use std::fmt;

/// The last events of a run, and a hash of all of them.
#[derive(Debug)]
pub(crate) struct Trace {
    lines: VecDeque<String>,
    room: usize,
    hash: u64,
}

impl Trace {
    /// A trace that keeps the last `room` lines.
    pub(crate) fn new(room: usize) -> Trace {
        Trace { lines: VecDeque::with_capacity(room.min(1 << 16)), room, hash: 0xcbf2_9ce4_8422_2325 }
    }

    /// Something happened.
    pub(crate) fn note(&mut self, now: Time, what: fmt::Arguments<'_>) {
        let line = format!("{:>13.6} {what}", now.as_nanos() as f64 / 1e6);
        for &byte in line.as_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.room == 0 {
            return;
        }
        if self.lines.len() == self.room {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// A fingerprint of everything that was ever noted.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
