//! What happened, for whoever must understand a failing seed; and a fingerprint of all of it.

use polypath_block::Time;
use std::collections::VecDeque;
use std::fmt;

/// What is noted: requests come by the thousand, everything else is rare and worth more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A request began or ended.
    Request,
    /// Anything else.
    Event,
}

/// The last events and the last requests of a run, and a hash of all of them.
#[derive(Debug)]
pub(crate) struct Trace {
    /// By kind; numbered, to be told in one line.
    kept: [VecDeque<(u64, String)>; 2],
    room: usize,
    hash: u64,
    total: u64,
}

impl Trace {
    /// A trace that keeps the last `room` lines of each kind. With none it notes nothing at all: a batch runs worlds by the thousand.
    pub(crate) fn new(room: usize) -> Trace {
        Trace { kept: Default::default(), room, hash: 0xcbf2_9ce4_8422_2325, total: 0 }
    }

    /// Something happened.
    pub(crate) fn note(&mut self, now: Time, kind: Kind, what: fmt::Arguments<'_>) {
        if self.room == 0 {
            return;
        }
        let line = format!("{:>13.6} {what}", now.as_nanos() as f64 / 1e6);
        for &byte in line.as_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.total += 1;
        let kept = &mut self.kept[usize::from(kind == Kind::Request)];
        if kept.len() == self.room {
            kept.pop_front();
        }
        kept.push_back((self.total, line));
    }

    /// A fingerprint of everything that was ever noted.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines, in order.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.kept.iter().flatten().collect();
        lines.sort_by_key(|(number, _)| *number);
        lines.into_iter().map(|(_, line)| line.clone()).collect()
    }
}
