//! In proportion to the throughput that recent requests met on each path.
//!
//! The rate of a path is what one request sees: its bytes over its time. More load makes requests slower and so lowers the rate,
//! which pushes load away: the rule cannot herd. A path never falls below a sixteenth of the best, so its rate stays fresh.

use super::{Choice, Selector, Smooth};
use crate::config::MAX_PATHS;
use core::time::Duration;

/// How much of the average one request is: the last 64 or so count.
const BLEND: f64 = 1.0 / 64.0;

#[derive(Debug)]
pub(crate) struct AverageRate {
    turn: Smooth,
    /// Bytes per microsecond; zero: not known yet.
    rate: [f64; MAX_PATHS],
}

impl Default for AverageRate {
    fn default() -> Self {
        AverageRate { turn: Smooth::default(), rate: [0.0; MAX_PATHS] }
    }
}

impl Selector for AverageRate {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        let best = choice.slots().map(|s| self.rate[s]).fold(0.0, f64::max);
        let rate = &self.rate;
        self.turn.pick(choice.slots(), |slot| {
            // A path without history counts as the best one until it has some.
            let known = if rate[slot] > 0.0 { rate[slot] } else { best };
            if best > 0.0 { (known / best * 1024.0).clamp(64.0, 1024.0) as u32 } else { 1 }
        })
    }

    fn finished(&mut self, slot: usize, bytes: u64, took: Duration) {
        if bytes == 0 {
            return;
        }
        let rate = bytes as f64 / (took.as_nanos().max(1000) as f64 / 1000.0);
        let old = self.rate[slot];
        self.rate[slot] = if old > 0.0 { old + (rate - old) * BLEND } else { rate };
    }

    fn forget(&mut self, slot: usize) {
        self.turn.forget(slot);
        self.rate[slot] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use crate::config::SelectorKind;
    use crate::selector::model::{EQUAL, Server, run, share};

    #[test]
    fn shares_follow_the_rates() {
        let slow = Server { latency_us: 300, service_us: 0, ..EQUAL };
        let fast = Server { latency_us: 100, service_us: 0, ..EQUAL };
        let r = run(SelectorKind::AverageRate, &[fast, slow], 16, 4096, 40_000, |_| 0b11);
        assert!((0.70..0.80).contains(&share(&r, 0)), "3:1 expected: {:?}", r.counts);
    }

    #[test]
    fn a_very_slow_path_stays_known() {
        let dead = Server { latency_us: 50_000, ..EQUAL };
        let r = run(SelectorKind::AverageRate, &[EQUAL, dead], 128, 4096, 40_000, |_| 0b11);
        assert!((0.01..0.10).contains(&share(&r, 1)), "{:?}", r.counts);
    }
}
