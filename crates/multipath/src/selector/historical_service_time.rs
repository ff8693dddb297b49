//! Least expected service time: the history of the request's size class, times what would be in flight.
//!
//! A rule that always takes the best history herds; the factor in flight prevents it. A path that is never the best would keep
//! its history for ever, so one not asked for a while gets the next request (a request in its own right, never a copy).

use super::{Batch, Choice, PathLoad, Selector, Slots, slots_after};
use crate::config::MAX_PATHS;
use polypath_block::Time;

/// Size classes: up to 4 KiB, 16 KiB, 64 KiB, 256 KiB, and above.
const CLASSES: usize = 5;
/// How much of the history one request is.
const BLEND: f64 = 1.0 / 32.0;
/// A path not asked for this long is asked again.
const STALE_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// Nanoseconds by size class; zero: not known.
    took: [f64; CLASSES],
    asked: Option<Time>,
}

#[derive(Debug)]
pub(crate) struct Historical {
    paths: [History; MAX_PATHS],
    last: usize,
}

impl Default for Historical {
    fn default() -> Self {
        Historical { paths: [History::default(); MAX_PATHS], last: 0 }
    }
}

impl Historical {
    /// See [`super::AnySelector::share`]. False, and nothing has changed, if there is more to it than what is known to take least.
    pub(super) fn share(
        &mut self,
        batch: &Batch,
        bytes: u64,
        loads: &[PathLoad],
        shares: &mut [u32; MAX_PATHS],
    ) -> bool {
        let class = class(bytes);
        let mut scores = [0.0; MAX_PATHS];
        for slot in Slots(batch.mask) {
            let (path, in_flight) = (&self.paths[slot], loads[slot].in_flight);
            scores[slot] = path.takes(class, in_flight);
            if scores[slot] <= 0.0 || in_flight == 0 && path.is_stale(batch.now) {
                return false;
            }
        }
        for _ in 0..batch.count {
            let (mut slot, mut least) = (0, f64::INFINITY);
            for candidate in slots_after(batch.mask, self.last) {
                if scores[candidate] < least {
                    (slot, least) = (candidate, scores[candidate]);
                }
            }
            shares[slot] += 1;
            scores[slot] = self.paths[slot].takes(class, loads[slot].in_flight + shares[slot]);
            self.paths[slot].asked = Some(batch.now);
            self.last = slot;
        }
        true
    }
}

impl Selector for Historical {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        let class = class(choice.bytes);
        // One pass, unless somebody has no history.
        let (mut slot, mut least, mut unknown, mut stale) = (0, f64::INFINITY, false, None);
        for candidate in choice.slots_after(self.last) {
            let (path, in_flight) = (&self.paths[candidate], choice.loads[candidate].in_flight);
            if in_flight == 0 && path.is_stale(choice.now) {
                stale = Some(candidate);
                break;
            }
            let score = path.takes(class, in_flight);
            unknown |= score <= 0.0;
            if score < least {
                (slot, least) = (candidate, score);
            }
        }
        if let Some(stale) = stale {
            slot = stale;
        } else if unknown {
            let paths = &self.paths;
            // A path without history counts as the best one until it has some: were it better, a new path that answers
            // nothing would draw everything.
            let known = choice.slots().filter_map(|slot| paths[slot].expected(class));
            let best = known.min_by(f64::total_cmp).unwrap_or(1.0);
            slot = choice.least(&mut self.last, |slot, load| {
                paths[slot].expected(class).unwrap_or(best) * f64::from(load.in_flight + 1)
            });
        }
        self.last = slot;
        self.paths[slot].asked = Some(choice.now);
        slot
    }

    fn finished(&mut self, slot: usize, bytes: u64, took_ns: u64) {
        // A flush tells nothing about small requests.
        if bytes == 0 {
            return;
        }
        let took = took_ns.max(1) as f64;
        let entry = &mut self.paths[slot].took[class(bytes)];
        *entry = if *entry > 0.0 { *entry + (took - *entry) * BLEND } else { took };
    }

    fn forget(&mut self, slot: usize) {
        self.paths[slot] = History::default();
    }
}

impl History {
    /// Nobody has asked it for long.
    fn is_stale(&self, now: Time) -> bool {
        self.asked.is_none_or(|at| now.nanos_since(at) >= STALE_NS)
    }

    /// What a request beside `in_flight` others is expected to take; zero: not known.
    #[inline(always)]
    fn takes(&self, class: usize, in_flight: u32) -> f64 {
        self.took[class] * f64::from(in_flight + 1)
    }

    /// Expected time for a class: its own history, else that of the nearest known one.
    fn expected(&self, class: usize) -> Option<f64> {
        let nearest = (0..CLASSES).filter(|&c| self.took[c] > 0.0).min_by_key(|&c| c.abs_diff(class));
        nearest.map(|c| self.took[c])
    }
}

fn class(bytes: u64) -> usize {
    match bytes {
        0..=4096 => 0,
        4097..=16_384 => 1,
        16_385..=65_536 => 2,
        65_537..=262_144 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SelectorKind;
    use crate::selector::PathLoad;
    use crate::selector::model::{EQUAL, Server, run, share};

    #[test]
    fn slow_paths_get_less_and_are_not_forgotten() {
        let slow = Server { latency_us: 400, service_us: 2, ..EQUAL };
        let r = run(SelectorKind::HistoricalServiceTime, &[EQUAL, slow], 32, 4096, 40_000, |_| 0b11);
        assert!((0.01..0.25).contains(&share(&r, 1)), "{:?}", r.counts);
    }

    #[test]
    fn a_stale_path_is_probed_once_a_while() {
        let mut h = Historical::default();
        let mut loads = [PathLoad { weight: 100, ..PathLoad::default() }; 2];
        h.finished(0, 4096, 1000 * 100);
        h.finished(1, 4096, 10_000_000_000);
        let mut picks = [0; 2];
        for ms in 0..10_000u64 {
            let now = Time::from_millis(1 + ms);
            let slot = h.pick(&Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now });
            picks[slot] += 1;
            loads[0].in_flight = (ms % 5) as u32;
        }
        assert!((9..=12).contains(&picks[1]), "about once a second: {picks:?}");
    }

    #[test]
    fn a_new_path_that_answers_nothing_does_not_draw_everything() {
        let mut h = Historical::default();
        let mut loads = [PathLoad { weight: 100, ..PathLoad::default() }; 2];
        h.finished(0, 4096, 1000 * 100);
        // Path 0 answers at once, path 1 never.
        for us in 0..1000u64 {
            let now = Time::from_nanos(1000 * us);
            let slot = h.pick(&Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now });
            loads[1].in_flight += u32::from(slot == 1);
        }
        assert!(loads[1].in_flight <= 2, "{} of 1000 requests wait on the silent path", loads[1].in_flight);
    }

    #[test]
    fn classes_are_apart() {
        let mut h = Historical::default();
        let loads = [PathLoad { weight: 100, in_flight: 1, ..PathLoad::default() }; 2];
        let us = |n: u64| 1000 * n;
        // Path 0 is quick with small requests, path 1 with large ones.
        for (slot, bytes, took) in
            [(0, 4096, us(50)), (0, 1 << 20, us(9000)), (1, 4096, us(200)), (1, 1 << 20, us(1000))]
        {
            h.finished(slot, bytes, took);
        }
        let mut pick =
            |bytes| h.pick(&Choice { mask: 0b11, loads: &loads, bytes, offset: 0, now: Time::from_millis(1) });
        assert_eq!((pick(4096), pick(1 << 20)), (0, 1));
    }

    #[test]
    fn sizes_have_their_classes() {
        let kib = |n: u64| n << 10;
        for (most, class_of) in [(4, 0), (16, 1), (64, 2), (256, 3)] {
            assert_eq!((class(kib(most)), class(kib(most) + 1)), (class_of, class_of + 1), "{most} KiB");
        }
        assert_eq!((class(0), class(u64::MAX)), (0, 4));
    }

    #[test]
    fn a_size_without_history_is_expected_to_take_as_long_as_the_nearest_one() {
        let mut h = History::default();
        assert_eq!(h.expected(2), None);
        (h.took[0], h.took[3]) = (10.0, 70.0);
        assert_eq!([0, 1, 2, 3, 4].map(|c| h.expected(c)), [10.0, 10.0, 70.0, 70.0, 70.0].map(Some));
    }

    #[test]
    fn one_odd_request_moves_the_history_by_its_share_and_the_first_one_makes_it() {
        let mut h = Historical::default();
        h.finished(0, 4096, 1000 * 100);
        h.finished(0, 0, 1_000_000_000);
        assert_eq!(h.paths[0].expected(0), Some(100_000.0), "a flush tells nothing");
        h.finished(0, 4096, 1000 * 420);
        assert_eq!(h.paths[0].expected(0), Some(110_000.0));
        (0..500).for_each(|_| h.finished(0, 4096, 1000 * 420));
        let got = h.paths[0].expected(0).unwrap();
        assert!((419_000.0..=420_000.0).contains(&got), "{got}");
    }

    #[test]
    fn what_is_in_flight_counts_as_many_times() {
        let mut h = Historical::default();
        (0..2).for_each(|slot| h.finished(slot, 4096, 1000 * [100, 350][slot]));
        let mut pick = |in_flight: u32| {
            let load = |in_flight| PathLoad { weight: 100, in_flight, ..PathLoad::default() };
            let loads = [load(in_flight), load(1)];
            h.pick(&Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::ZERO })
        };
        // Two on the second path would take 700.
        assert_eq!([1, 5, 7].map(&mut pick), [0, 0, 1]);
    }

    #[test]
    fn a_path_with_something_in_flight_is_not_probed() {
        let mut h = Historical::default();
        (0..2).for_each(|slot| h.finished(slot, 4096, 1000 * [100, 350][slot]));
        let load = |in_flight| PathLoad { weight: 100, in_flight, ..PathLoad::default() };
        let loads = [load(0), load(1)];
        for s in 1..10 {
            let choice = Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::from_millis(2000 * s) };
            assert_eq!(h.pick(&choice), 0, "its answer will tell");
        }
    }

    #[test]
    fn a_path_that_was_not_asked_is_probed_when_its_time_is_over_and_not_before() {
        for (nanos, probed) in [(STALE_NS - 1, 0), (STALE_NS, 1)] {
            let mut rule = Historical::default();
            let loads = [PathLoad::default(); 2];
            (0..2).for_each(|slot| rule.finished(slot, 4096, [1000, 900_000][slot]));
            let at = |nanos| Choice { mask: 0b11, loads: &loads, bytes: 4096, offset: 0, now: Time::from_nanos(nanos) };
            // Both have been asked at that time, and path 0 a moment ago.
            assert_eq!([rule.pick(&at(7)), rule.pick(&at(7))], [1, 0]);
            assert_eq!(rule.pick(&at(nanos)), 0);
            assert_eq!(rule.pick(&at(7 + nanos)), probed);
        }
    }
}
