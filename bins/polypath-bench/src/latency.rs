//! Latencies: collected in nanoseconds, reported in microseconds.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest latency that is told apart: one hour. Longer ones count as that long.
const MOST_NS: u64 = 3_600_000_000_000;

/// A histogram of latencies, exact to three digits from 1 ns to one hour, that never allocates after it was made.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty one.
    pub fn new() -> Self {
        Latencies(Histogram::new_with_bounds(1, MOST_NS, 3).expect("constant bounds are valid"))
    }

    /// Notes one latency.
    #[inline]
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(MOST_NS));
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Latencies) {
        // Both have the same bounds, so that every value fits.
        self.0.add(&other.0).expect("histograms of equal bounds can be added");
    }

    /// How many were noted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// What is reported.
    pub fn summary(&self) -> LatencyUs {
        let us = |ns: u64| round3(ns as f64 / 1000.0);
        let at = |q: f64| if self.0.is_empty() { 0.0 } else { us(self.0.value_at_quantile(q)) };
        LatencyUs {
            mean: if self.0.is_empty() { 0.0 } else { round3(self.0.mean() / 1000.0) },
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: us(self.0.max()),
        }
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

/// Latencies of reads and of writes, apart.
#[derive(Clone, Debug, Default)]
pub struct DirectedLatencies([Latencies; 2]);

impl DirectedLatencies {
    /// Notes one latency, of a read or else of a write.
    #[inline]
    pub fn record(&mut self, read: bool, latency: Duration) {
        self.0[usize::from(read)].record(latency);
    }

    /// Adds all of `other`, reads to reads and writes to writes.
    pub fn merge(&mut self, other: &DirectedLatencies) {
        for (mine, others) in self.0.iter_mut().zip(&other.0) {
            mine.merge(others);
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(Latencies::clear);
    }

    /// What is reported of both together.
    pub fn summary(&self) -> LatencyUs {
        let [writes, reads] = &self.0;
        let mut both = writes.clone();
        both.merge(reads);
        both.summary()
    }

    /// What is reported of reads; none without any.
    pub fn reads(&self) -> Option<LatencyUs> {
        self.one(true)
    }

    /// What is reported of writes; none without any.
    pub fn writes(&self) -> Option<LatencyUs> {
        self.one(false)
    }

    fn one(&self, read: bool) -> Option<LatencyUs> {
        let latencies = &self.0[usize::from(read)];
        (latencies.count() > 0).then(|| latencies.summary())
    }
}

/// Latency in microseconds. All zero when nothing was measured.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LatencyUs {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % were at most this.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p99_9: f64,
    /// 99.99 %.
    pub p99_99: f64,
    /// The greatest.
    pub max: f64,
}

/// To three digits after the point, so that JSON stays readable.
pub(crate) fn round3(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_is_in_microseconds() {
        let mut l = Latencies::new();
        assert_eq!(l.summary(), LatencyUs::default());
        for us in 1..=100 {
            l.record(Duration::from_micros(us));
        }
        let s = l.summary();
        assert!((s.p50 - 50.0).abs() < 0.1 && (s.p99 - 99.0).abs() < 0.1 && (s.max - 100.0).abs() < 0.1, "{s:?}");
        assert!((s.mean - 50.5).abs() < 0.1);
        l.record(Duration::from_secs(7200));
        assert!(l.summary().max >= 3.59e9, "longer than an hour counts as an hour");
    }
    #[test]
    fn reads_and_writes_are_kept_apart_and_put_together() {
        let (mut a, mut b) = (DirectedLatencies::default(), DirectedLatencies::default());
        assert_eq!((a.reads(), a.writes(), a.summary()), (None, None, LatencyUs::default()));
        a.record(true, Duration::from_micros(10));
        b.record(false, Duration::from_micros(1000));
        a.merge(&b);
        let (reads, writes, both) = (a.reads().unwrap(), a.writes().unwrap(), a.summary());
        assert!((reads.max - 10.0).abs() < 0.1 && (writes.p50 - 1000.0).abs() < 1.0, "{reads:?} {writes:?}");
        assert!((both.mean - 505.0).abs() < 1.0 && both.p50 == reads.p50 && both.max == writes.max, "{both:?}");
        a.clear();
        assert_eq!(a.reads(), None);
    }
}
