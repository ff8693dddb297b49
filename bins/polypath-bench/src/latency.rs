//! Latencies: collected in nanoseconds, reported in microseconds.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart: one hour. Longer ones count as that long.
const MOST_NS: u64 = 3_600_000_000_000;

/// A histogram of latencies, exact to three digits from 1 ns to one hour, that never allocates after it was made.
///
/// What begins and ends in the same turns has the same latency: such a run is noted at once, so that noting costs little.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    /// The latency noted last, and how often in a row it was: not in the histogram yet.
    last_ns: u64,
    times: u64,
}

impl Latencies {
    /// An empty one.
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, MOST_NS, 3).expect("constant bounds are valid");
        Latencies { histogram, last_ns: 0, times: 0 }
    }

    /// Notes one latency, in nanoseconds.
    #[inline]
    pub fn record(&mut self, latency_ns: u64) {
        if latency_ns != self.last_ns {
            self.settle();
            self.last_ns = latency_ns;
        }
        self.times += 1;
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Latencies) {
        self.settle();
        // Both have the same bounds, so that every value fits.
        self.histogram.add(&other.histogram).expect("histograms of equal bounds can be added");
        (self.last_ns, self.times) = (other.last_ns, other.times);
    }

    /// How many were noted.
    pub fn count(&self) -> u64 {
        self.histogram.len() + self.times
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.times = 0;
    }

    /// What is reported.
    pub fn summary(&self) -> LatencyUs {
        let mut all = self.clone();
        all.settle();
        let all = all.histogram;
        let us = |ns: u64| round3(ns as f64 / 1000.0);
        let at = |q: f64| if all.is_empty() { 0.0 } else { us(all.value_at_quantile(q)) };
        LatencyUs {
            mean: if all.is_empty() { 0.0 } else { round3(all.mean() / 1000.0) },
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: us(all.max()),
        }
    }

    /// Puts the last run into the histogram.
    fn settle(&mut self) {
        if self.times > 0 {
            self.histogram.saturating_record_n(self.last_ns, self.times);
            self.times = 0;
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
    /// Notes one latency in nanoseconds, of a read or else of a write.
    #[inline]
    pub fn record(&mut self, read: bool, latency_ns: u64) {
        self.0[usize::from(read)].record(latency_ns);
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
            l.record(1000 * us);
        }
        let s = l.summary();
        assert!((s.p50 - 50.0).abs() < 0.1 && (s.p99 - 99.0).abs() < 0.1 && (s.max - 100.0).abs() < 0.1, "{s:?}");
        assert!((s.mean - 50.5).abs() < 0.1);
        l.record(7_200_000_000_000);
        assert!(l.summary().max >= 3.59e9, "longer than an hour counts as an hour");
    }

    #[test]
    fn runs_of_equal_latencies_count_as_often_as_they_were() {
        let (mut a, mut b) = (Latencies::new(), Latencies::new());
        for ns in [5, 5, 5, 9, 5] {
            a.record(ns);
        }
        (0..5).for_each(|_| b.record(9));
        assert_eq!((a.count(), a.summary().p50, a.summary().max), (5, 0.005, 0.009));
        a.merge(&b);
        assert_eq!((a.count(), a.summary().p50, a.summary().mean), (10, 0.009, 0.007));
        a.record(9);
        assert_eq!(a.count(), 11);
        a.clear();
        assert_eq!((a.count(), a.summary()), (0, LatencyUs::default()));
    }

    #[test]
    fn reads_and_writes_are_kept_apart_and_put_together() {
        let (mut a, mut b) = (DirectedLatencies::default(), DirectedLatencies::default());
        assert_eq!((a.reads(), a.writes(), a.summary()), (None, None, LatencyUs::default()));
        a.record(true, 10_000);
        b.record(false, 1_000_000);
        a.merge(&b);
        let (reads, writes, both) = (a.reads().unwrap(), a.writes().unwrap(), a.summary());
        assert!((reads.max - 10.0).abs() < 0.1 && (writes.p50 - 1000.0).abs() < 1.0, "{reads:?} {writes:?}");
        assert!((both.mean - 505.0).abs() < 1.0 && both.p50 == reads.p50 && both.max == writes.max, "{both:?}");
        a.clear();
        assert_eq!(a.reads(), None);
    }
}
