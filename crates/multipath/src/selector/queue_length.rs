//! Fewest requests in flight; equals take turns. The default: it needs no history, feels a slow path at once and never herds.

use super::{Choice, PathLoad, Selector, Slots, slots_after};
use crate::config::MAX_PATHS;

#[derive(Debug, Default)]
pub(crate) struct QueueLength {
    last: usize,
}

impl QueueLength {
    /// As many choices one after the other would share `count` requests out: to the candidates with the fewest in flight, until they have as
    /// many as the next ones. Returns behind which slot the turns begin.
    pub(crate) fn share(
        &mut self,
        mask: u64,
        loads: &[PathLoad],
        count: usize,
        shares: &mut [u32; MAX_PATHS],
    ) -> usize {
        let (mut left, last) = (count as u32, self.last);
        let level = |slot: usize, shares: &[u32; MAX_PATHS]| loads[slot].in_flight + shares[slot];
        while left > 0 {
            // Those with the fewest, and how many the next ones have.
            let (mut least, mut next, mut lowest) = (u32::MAX, u32::MAX, 0u64);
            for slot in Slots(mask) {
                let at = level(slot, shares);
                if at < least {
                    (next, least, lowest) = (least, at, 1 << slot);
                } else if at == least {
                    lowest |= 1 << slot;
                } else {
                    next = next.min(at);
                }
            }
            let rounds = (left / lowest.count_ones().max(1)).min(next - least);
            if rounds == 0 {
                // Fewer than there are candidates for them: those whose turn it is.
                for slot in slots_after(lowest, self.last).take(left as usize) {
                    shares[slot] += 1;
                    self.last = slot;
                }
                break;
            }
            for slot in slots_after(lowest, self.last) {
                shares[slot] += rounds;
                left -= rounds;
                self.last = slot;
            }
        }
        last
    }
}

impl Selector for QueueLength {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        choice.least(&mut self.last, |_, load| load.in_flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SelectorKind;
    use crate::selector::model::{EQUAL, Server, run, share};

    #[test]
    fn a_batch_is_shared_out_as_by_one_choice_after_the_other() {
        use polypath_block::Time;
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in 0..2000 {
            let mut loads: Vec<_> =
                (0..MAX_PATHS).map(|_| PathLoad { in_flight: random(4) as u32, ..PathLoad::default() }).collect();
            let mask = [random(1 << 4), random(1 << 30), 1 << 63 | random(2), 1 << random(64)][round % 4].max(1);
            let count = random(40) as usize;
            let mut bulk = QueueLength { last: random(64) as usize };
            let mut single = QueueLength { last: bulk.last };
            let first = slots_after(mask, bulk.last).collect::<Vec<_>>();
            let mut shares = [0; MAX_PATHS];
            let order: Vec<_> = slots_after(mask, bulk.share(mask, &loads, count, &mut shares)).collect();
            assert_eq!(order, first, "round {round}");
            let mut chosen = [0; MAX_PATHS];
            for _ in 0..count {
                let slot = single.pick(&Choice { mask, loads: &loads, bytes: 0, offset: 0, now: Time::ZERO });
                loads[slot].in_flight += 1;
                chosen[slot] += 1;
            }
            assert_eq!((shares, bulk.last), (chosen, single.last), "round {round}: {mask:#x}, {count}");
        }
    }

    #[test]
    fn equals_take_turns_even_at_depth_one() {
        let r = run(SelectorKind::QueueLength, &[EQUAL; 3], 1, 4096, 3000, |_| 0b111);
        assert_eq!(r.counts, [1000; 3]);
    }

    #[test]
    fn a_slow_path_gets_less() {
        let slow = Server { latency_us: 400, ..EQUAL };
        let r = run(SelectorKind::QueueLength, &[EQUAL, slow], 32, 4096, 20_000, |_| 0b11);
        assert!((0.15..0.27).contains(&share(&r, 1)), "four times slower: {:?}", r.counts);
    }
}
