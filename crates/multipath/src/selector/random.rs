//! Any of them, by a seeded generator.

use super::{Choice, Selector};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

#[derive(Debug)]
pub(crate) struct Random {
    rng: Xoshiro256PlusPlus,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random { rng: Xoshiro256PlusPlus::seed_from_u64(seed) }
    }
}

impl Selector for Random {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        let nth = self.rng.random_range(0..choice.mask.count_ones().max(1));
        // Neighbours as a rule. Going through them would be guessed wrong by the processor most of the time.
        let first = choice.mask.trailing_zeros();
        let rest = choice.mask.checked_shr(first).unwrap_or(0);
        if rest & rest.wrapping_add(1) == 0 {
            return (first + nth) as usize;
        }
        choice.slots().nth(nth as usize).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::SelectorKind;
    use crate::selector::model::{EQUAL, run, share};

    #[test]
    fn uniform_and_not_in_turn() {
        let r = run(SelectorKind::Random, &[EQUAL; 4], 32, 4096, 40_000, |_| 0b1111);
        for i in 0..4 {
            assert!((0.24..0.26).contains(&share(&r, i)), "{:?}", r.counts);
        }
        assert!(r.longest_run > 3, "that is not random: {}", r.longest_run);
    }
}
