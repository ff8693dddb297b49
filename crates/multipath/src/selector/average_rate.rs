//! In proportion to the throughput that recent requests met on each path.
//!
//! The rate of a path is what one request sees: its bytes over its time. More load makes requests slower and so lowers the rate,
//! which pushes load away: the rule cannot herd. A path never falls below a sixteenth of the best, so its rate stays fresh.

use super::{Choice, Selector, Smooth};
use crate::config::MAX_PATHS;

/// How much of the average one request is: the last 64 or so count.
const BLEND: f64 = 1.0 / 64.0;

#[derive(Debug)]
pub(crate) struct AverageRate {
    turn: Smooth,
    /// Bytes per microsecond; zero: not known yet.
    rate: [f64; MAX_PATHS],
    /// What each gets of 1024 that the best one gets, and for which candidates that was worked out; none once a rate has changed.
    share: [u32; MAX_PATHS],
    shared_among: u64,
    /// The request that finished last, and its rate: those of a batch are often alike.
    last: (u64, u64, f64),
}

impl Default for AverageRate {
    fn default() -> Self {
        AverageRate {
            turn: Smooth::default(),
            rate: [0.0; MAX_PATHS],
            share: [1; MAX_PATHS],
            shared_among: 0,
            last: (0, 0, 0.0),
        }
    }
}

impl AverageRate {
    fn share_among(&mut self, choice: &Choice<'_>) {
        self.shared_among = choice.mask;
        let best = choice.slots().map(|s| self.rate[s]).fold(0.0, f64::max);
        for slot in choice.slots() {
            // A path without history counts as the best one until it has some.
            let known = if self.rate[slot] > 0.0 { self.rate[slot] } else { best };
            self.share[slot] = if best > 0.0 { (known / best * 1024.0).clamp(64.0, 1024.0) as u32 } else { 1 };
        }
    }
}

impl Selector for AverageRate {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        if self.shared_among != choice.mask {
            self.share_among(choice);
        }
        let share = &self.share;
        self.turn.pick(choice.slots(), |slot| share[slot])
    }

    fn finished(&mut self, slot: usize, bytes: u64, took_ns: u64) {
        if bytes == 0 {
            return;
        }
        if (self.last.0, self.last.1) != (bytes, took_ns) {
            self.last = (bytes, took_ns, bytes as f64 / (took_ns.max(1000) as f64 / 1000.0));
        }
        let (rate, old) = (self.last.2, self.rate[slot]);
        self.rate[slot] = if old > 0.0 { old + (rate - old) * BLEND } else { rate };
        self.shared_among = 0;
    }

    fn forget(&mut self, slot: usize) {
        self.turn.forget(slot);
        self.rate[slot] = 0.0;
        self.shared_among = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SelectorKind;
    use crate::selector::PathLoad;
    use crate::selector::model::{EQUAL, Server, run, share};
    use polypath_block::Time;

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

    fn loads() -> [PathLoad; 2] {
        [PathLoad { weight: 100, ..PathLoad::default() }; 2]
    }

    /// How many of `n` choices fall on path 1.
    fn second(rule: &mut AverageRate, n: u32) -> u32 {
        let loads = loads();
        let choice = Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::ZERO };
        (0..n).map(|_| rule.pick(&choice) as u32).sum()
    }

    #[test]
    fn one_odd_request_moves_little_and_many_move_all() {
        let us = |n: u64| 1000 * n;
        let mut rule = AverageRate::default();
        (0..2).for_each(|slot| rule.finished(slot, 4096, us(100)));
        assert_eq!(second(&mut rule, 100), 50);
        rule.finished(1, 4096, us(100_000));
        assert!((48..=50).contains(&second(&mut rule, 100)), "one of 64 has its say");
        (0..64).for_each(|_| rule.finished(1, 4096, us(100_000)));
        let share = second(&mut rule, 1000);
        assert!((240..300).contains(&share), "on the way from one half to nothing: {share} of 1000");
        (0..600).for_each(|_| rule.finished(1, 4096, us(100_000)));
        let share = second(&mut rule, 1700);
        assert!((95..=105).contains(&share), "a sixteenth of the best is left: {share} of 1700");
    }

    #[test]
    fn a_path_without_history_counts_as_the_best_and_its_first_request_counts_in_full() {
        let us = |n: u64| 1000 * n;
        let mut rule = AverageRate::default();
        assert_eq!(second(&mut rule, 100), 50, "nobody knows anything");
        rule.finished(0, 4096, us(100));
        assert_eq!(second(&mut rule, 100), 50, "a new path is tried as much as the best");
        rule.finished(1, 0, us(1));
        assert_eq!(second(&mut rule, 100), 50, "a flush tells nothing");
        rule.finished(1, 4096, us(300));
        assert!((24..=26).contains(&second(&mut rule, 100)));
        // However long the history of the other one is.
        rule.forget(1);
        (0..600).for_each(|_| rule.finished(0, 4096, us(100)));
        rule.finished(1, 4096, us(100));
        assert!((49..=51).contains(&second(&mut rule, 100)));
    }
}
