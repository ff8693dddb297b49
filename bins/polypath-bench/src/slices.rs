//! The rate of undisturbed moments.
//!
//! A core that others want too is away for milliseconds at a time, and an average over seconds then says more about the
//! neighbours than about the code. The rate of each millisecond for itself is noted, and the one that the best tenth of them reached
//! is what both sides do while they are left alone. No backlog can make it too good: at most QD answers are waiting at any time.

use hdrhistogram::Histogram;
use polypath_block::Time;

const SLICE_NS: u64 = 1_000_000;

/// Rates of slices of one millisecond.
#[derive(Clone, Debug)]
pub struct Slices {
    rates: Histogram<u64>,
    begin: Time,
    count: u64,
}

impl Slices {
    /// No slice yet; the first begins with [`Slices::restart`].
    pub fn new() -> Self {
        let rates = Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("constant bounds are valid");
        Slices { rates, begin: Time::ZERO, count: 0 }
    }

    /// Forgets all and begins a slice at `now`.
    pub fn restart(&mut self, now: Time) {
        self.rates.reset();
        (self.begin, self.count) = (now, 0);
    }

    /// `n` requests completed at `now`.
    #[inline]
    pub fn completed(&mut self, now: Time, n: u64) {
        self.count += n;
        let length = now.since(self.begin).as_nanos() as u64;
        if length >= SLICE_NS {
            // A slice that was interrupted is as long as it took, and as slow.
            self.rates.saturating_record((self.count.saturating_mul(1_000_000_000) / length).max(1));
            (self.begin, self.count) = (now, 0);
        }
    }

    /// Adds the slices of `other`.
    pub fn merge(&mut self, other: &Slices) {
        self.rates.add(&other.rates).expect("histograms of equal bounds can be added");
    }

    /// The rate that a tenth of the slices reached, requests a second; zero without a slice.
    pub fn quiet_rate(&self) -> f64 {
        if self.rates.is_empty() { 0.0 } else { self.rates.value_at_quantile(0.9) as f64 }
    }
}

impl Default for Slices {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interruptions_do_not_count() {
        let mut s = Slices::new();
        assert_eq!(s.quiet_rate(), 0.0);
        let mut now = 0;
        s.restart(Time::from_nanos(now));
        for slice in 0..100 {
            for _ in 0..100 {
                now += 10_000;
                s.completed(Time::from_nanos(now), 1);
            }
            if slice % 2 == 0 {
                now += 7_000_000;
            }
        }
        assert!((s.quiet_rate() - 100_000.0).abs() < 1000.0, "{}", s.quiet_rate());
    }
}
