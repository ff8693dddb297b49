//! Least bytes in flight relative to the configured weight, which stands for the relative throughput of a path.

use super::{Batch, Choice, PathLoad, Selector, Slots, slots_after};
use crate::config::MAX_PATHS;

#[derive(Debug)]
pub(crate) struct ServiceTime {
    last: usize,
    /// Weights, and one over each: a product costs less than a quotient.
    weight: [u32; MAX_PATHS],
    inverse: [f64; MAX_PATHS],
}

impl Default for ServiceTime {
    fn default() -> Self {
        ServiceTime { last: 0, weight: [1; MAX_PATHS], inverse: [1.0; MAX_PATHS] }
    }
}

impl ServiceTime {
    /// See [`super::AnySelector::share`].
    pub(super) fn share(&mut self, batch: &Batch, bytes: u64, loads: &[PathLoad], shares: &mut [u32; MAX_PATHS]) {
        let mut times = [0.0; MAX_PATHS];
        for slot in Slots(batch.mask) {
            times[slot] = self.time(slot, &loads[slot], 0, bytes);
        }
        for _ in 0..batch.count {
            let mut best = (0, f64::INFINITY, u32::MAX);
            for slot in slots_after(batch.mask, self.last) {
                let in_flight = loads[slot].in_flight + shares[slot];
                if times[slot] < best.1 || (times[slot] == best.1 && in_flight < best.2) {
                    best = (slot, times[slot], in_flight);
                }
            }
            let slot = best.0;
            shares[slot] += 1;
            times[slot] = self.time(slot, &loads[slot], u64::from(shares[slot]) * bytes, bytes);
            self.last = slot;
        }
    }

    /// What a request of `bytes` waits for on the path in `slot`, `more` bytes beside what is in flight there.
    #[inline(always)]
    fn time(&mut self, slot: usize, load: &PathLoad, more: u64, bytes: u64) -> f64 {
        if self.weight[slot] != load.weight {
            (self.weight[slot], self.inverse[slot]) = (load.weight, 1.0 / f64::from(load.weight.max(1)));
        }
        // A flush has no bytes; without this it would always see equals.
        (load.bytes_in_flight + more + bytes.max(512)) as i64 as f64 * self.inverse[slot]
    }
}

impl Selector for ServiceTime {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        let mut best = (0, f64::INFINITY, u32::MAX);
        for slot in choice.slots_after(self.last) {
            let load = &choice.loads[slot];
            let time = self.time(slot, load, 0, choice.bytes);
            if time < best.1 || (time == best.1 && load.in_flight < best.2) {
                best = (slot, time, load.in_flight);
            }
        }
        self.last = best.0;
        best.0
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
    fn bytes_in_flight_follow_the_weights() {
        let fast = Server { weight: 300, ..EQUAL };
        let r = run(SelectorKind::ServiceTime, &[fast, EQUAL], 64, 4096, 20_000, |_| 0b11);
        assert!((0.70..0.80).contains(&share(&r, 0)), "{:?}", r.counts);
    }

    #[test]
    fn bytes_count_not_requests() {
        let load =
            |in_flight, bytes_in_flight| PathLoad { uid: 0, in_flight, bytes_in_flight, weight: 100, preference: 0 };
        let loads = [load(1, 1 << 20), load(8, 8 * 4096)];
        let c = Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::ZERO };
        assert_eq!(ServiceTime::default().pick(&c), 1);
    }

    #[test]
    fn of_equal_bytes_the_fewer_requests_win() {
        let load = |in_flight| PathLoad { in_flight, bytes_in_flight: 8192, ..PathLoad::default() };
        for (loads, best) in [([load(2), load(1)], 1), ([load(1), load(2)], 0)] {
            for last in 0..2 {
                let mut selector = ServiceTime { last, ..ServiceTime::default() };
                let c = Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::ZERO };
                assert_eq!(selector.pick(&c), best, "chosen after path {last}");
            }
        }
    }

    #[test]
    fn what_is_to_be_sent_counts_with_what_is_in_flight() {
        let load = |bytes_in_flight, weight| PathLoad { bytes_in_flight, weight, ..PathLoad::default() };
        let pick = |loads: [PathLoad; 2], bytes| {
            let c = Choice { mask: 0b11, loads: &loads, bytes, offset: 0, now: Time::ZERO };
            ServiceTime::default().pick(&c)
        };
        // With nothing in flight the heavier one is faster; a small request does not move as much as a large one.
        assert_eq!(pick([load(0, 300), load(0, 100)], 4096), 0);
        assert_eq!((pick([load(4096, 300), load(0, 100)], 4096), pick([load(8192, 300), load(0, 100)], 512)), (0, 1));
    }
}
