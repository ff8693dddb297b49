//! Numbers per path: counted by each queue for itself, added up by whoever asks.

use crate::config::PathId;
use crate::state::PathState;
use core::time::Duration;
use polypath_block::{Access, Code, Time};
use std::sync::atomic::{AtomicU64, Ordering};

/// How a path is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathStatistics {
    /// The path.
    pub id: PathId,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: PathState,
    /// The access it gives; `None` before it answered for the first time.
    pub access: Option<Access>,
    /// Its weight.
    pub weight: u32,
    /// Is it marked as preferred?
    pub preferred: bool,
    /// Requests that succeeded on it.
    pub ios: u64,
    /// Bytes of data moved by these.
    pub bytes: u64,
    /// Requests that ended on it with an error, whoever was concerned.
    pub errors: u64,
    /// Requests sent again elsewhere after they failed on it.
    pub redriven: u64,
    /// Requests in flight on it now, suspects not counted.
    pub in_flight: u64,
    /// Requests on it whose way broke and that wait for their fence.
    pub suspects: u64,
    /// Requests whose way broke while it had them, since it was added.
    pub suspected: u64,
    /// How often it was left.
    pub failures: u64,
    /// How often it came back.
    pub recoveries: u64,
    /// Estimate of its recent mean latency, over all queues; zero before the first request.
    pub latency: Duration,
    /// What broke last.
    pub cause: Option<Code>,
    /// For people: why it is in its state.
    pub why: String,
    /// Since when it is in its state, on the reactors' clock.
    pub since: Time,
}

/// Numbers of one queue for one path. Written by one thread, read by any.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) ios: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) redriven: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) suspects: AtomicU64,
    pub(crate) suspected: AtomicU64,
    pub(crate) latency_ns: AtomicU64,
}

/// Adds to a counter that only this thread writes: a load and a store, no locked instruction.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Numbers added up over queues.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) ios: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) redriven: u64,
    pub(crate) in_flight: u64,
    pub(crate) suspects: u64,
    pub(crate) suspected: u64,
    latency_weighted: u128,
    latency_weight: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, c: &Counters) {
        let ios = c.ios.load(Ordering::Relaxed);
        self.ios += ios;
        self.bytes += c.bytes.load(Ordering::Relaxed);
        self.errors += c.errors.load(Ordering::Relaxed);
        self.redriven += c.redriven.load(Ordering::Relaxed);
        self.in_flight += c.in_flight.load(Ordering::Relaxed);
        self.suspects += c.suspects.load(Ordering::Relaxed);
        self.suspected += c.suspected.load(Ordering::Relaxed);
        self.latency_weighted += u128::from(c.latency_ns.load(Ordering::Relaxed)) * u128::from(ios);
        self.latency_weight += ios;
    }

    /// As [`Totals::add`], for a queue that is dropped: it has nothing in flight any more.
    pub(crate) fn retire(&mut self, c: &Counters) {
        self.add(c);
        (self.in_flight, self.suspects) = (0, 0);
    }

    pub(crate) fn latency(&self) -> Duration {
        let mean = self.latency_weighted.checked_div(u128::from(self.latency_weight)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }
}
