//! Counters of one vring, read from any thread.

use crate::limits::log_limit;
use polypath_block::LogLimit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a vring has done since the server started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VringStatistics {
    /// Requests taken from the ring.
    pub requests: u64,
    /// Requests given back.
    pub completions: u64,
    /// Times the guest woke us.
    pub kicks: u64,
    /// Times we called the guest.
    pub calls: u64,
    /// Requests that were malformed and answered with an error.
    pub bad_requests: u64,
    /// Requests that the device failed.
    pub errors: u64,
    /// Times the ring was stopped because the guest broke it.
    pub ring_errors: u64,
    /// Is the ring running?
    pub running: bool,
}

/// Written by one reactor with relaxed stores, so that counting costs no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    completions: AtomicU64,
    kicks: AtomicU64,
    calls: AtomicU64,
    bad_requests: AtomicU64,
    errors: AtomicU64,
    ring_errors: AtomicU64,
    running: AtomicBool,
    pub(crate) limits: LogLimits,
}

/// What keeps the log of one vring short, over all front-ends.
#[derive(Debug)]
pub(crate) struct LogLimits {
    /// The guest broke its ring.
    pub(crate) broken: LogLimit,
    /// Somebody could not be notified, or cannot notify.
    pub(crate) notify: LogLimit,
    /// Requests fail for want of a way to the device.
    pub(crate) way: LogLimit,
    /// A request has to wait for segments.
    pub(crate) segments: LogLimit,
    /// The last flush failed.
    pub(crate) flush: LogLimit,
}

impl Default for LogLimits {
    /// One of each at a time.
    fn default() -> LogLimits {
        let [broken, notify, way, segments, flush] = [(); 5].map(|()| log_limit(1));
        LogLimits { broken, notify, way, segments, flush }
    }
}

/// Which counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Count {
    Requests,
    Completions,
    Kicks,
    Calls,
    BadRequests,
    Errors,
    RingErrors,
}

impl Counters {
    /// Adds `n`. Only the thread that runs the vring does.
    pub(crate) fn add(&self, which: Count, n: u64) {
        let counter = match which {
            Count::Requests => &self.requests,
            Count::Completions => &self.completions,
            Count::Kicks => &self.kicks,
            Count::Calls => &self.calls,
            Count::BadRequests => &self.bad_requests,
            Count::Errors => &self.errors,
            Count::RingErrors => &self.ring_errors,
        };
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    pub(crate) fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> VringStatistics {
        VringStatistics {
            requests: self.requests.load(Ordering::Relaxed),
            completions: self.completions.load(Ordering::Relaxed),
            kicks: self.kicks.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
            bad_requests: self.bad_requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            ring_errors: self.ring_errors.load(Ordering::Relaxed),
            running: self.running.load(Ordering::Relaxed),
        }
    }
}
