//! The longest time with I/O outstanding and none completed.

use polypath_block::Time;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Gaps of one requester. Feed it once a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gap {
    outstanding: u64,
    since: Time,
    longest: Duration,
}

impl Gap {
    /// `n` requests were handed down at `now`.
    #[inline]
    pub fn submitted(&mut self, now: Time, n: u64) {
        if self.outstanding == 0 {
            self.since = now;
        }
        self.outstanding += n;
    }

    /// `n` of them completed at `now`.
    #[inline]
    pub fn completed(&mut self, now: Time, n: u64) {
        if n > 0 {
            self.longest = self.longest.max(now.since(self.since));
            self.since = now;
            self.outstanding = self.outstanding.saturating_sub(n);
        }
    }

    /// When something last completed, or the first request after a pause was handed down.
    pub fn since(&self) -> Time {
        self.since
    }

    /// Requests outstanding.
    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Starts the measurement at `now`: gaps from before do not count, one that is under way counts from now on.
    pub fn restart(&mut self, now: Time) {
        self.longest = Duration::ZERO;
        self.since = now;
    }

    /// The longest gap until `now`, one that is under way included.
    pub fn longest(&self, now: Time) -> Duration {
        if self.outstanding > 0 { self.longest.max(now.since(self.since)) } else { self.longest }
    }
}

/// Gaps of a device that several requesters on several threads use: a completion to any of them ends a gap of all.
#[derive(Debug, Default)]
pub struct SharedGap {
    last: AtomicU64,
    longest: AtomicU64,
}

impl SharedGap {
    /// Something completed at `now` to a requester that has had I/O outstanding since `since`.
    #[inline]
    pub fn completed(&self, since: Time, now: Time) {
        let last = self.last.fetch_max(now.as_nanos(), Ordering::Relaxed).max(since.as_nanos());
        let gap = now.as_nanos().saturating_sub(last);
        if gap > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(gap, Ordering::Relaxed);
        }
    }

    /// The longest gap so far.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Time {
        Time::from_millis(n)
    }

    #[test]
    fn only_time_with_io_outstanding_counts() {
        let mut gap = Gap::default();
        gap.submitted(ms(10), 2);
        gap.completed(ms(13), 1);
        gap.completed(ms(20), 1);
        assert_eq!(gap.longest(ms(1000)), Duration::from_millis(7), "nothing was outstanding since 20");
        gap.submitted(ms(1000), 1);
        assert_eq!(gap.longest(ms(1009)), Duration::from_millis(9));
        gap.restart(ms(1009));
        assert_eq!(gap.longest(ms(1010)), Duration::from_millis(1));
    }

    #[test]
    fn a_completion_to_anybody_ends_the_gap_of_all() {
        let gap = SharedGap::default();
        gap.completed(ms(0), ms(5));
        gap.completed(ms(0), ms(9));
        gap.completed(ms(8), ms(10));
        assert_eq!(gap.longest(), Duration::from_millis(5));
    }
}
