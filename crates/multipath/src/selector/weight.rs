//! In proportion to the configured weights, evenly spread in time.

use super::{Choice, Selector, Smooth};

#[derive(Debug, Default)]
pub(crate) struct Weight {
    turn: Smooth,
}

impl Selector for Weight {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        self.turn.pick(choice.slots(), |slot| choice.loads[slot].weight)
    }

    fn forget(&mut self, slot: usize) {
        self.turn.forget(slot);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::SelectorKind;
    use crate::selector::model::{EQUAL, Server, run, share};

    #[test]
    fn shares_follow_the_weights_smoothly() {
        let w = |weight| Server { weight, ..EQUAL };
        let r = run(SelectorKind::Weight, &[w(5), w(1), w(1)], 14, 4096, 14_000, |_| 0b111);
        assert!((share(&r, 0) - 5.0 / 7.0).abs() < 0.005, "{:?}", r.counts);
        assert!((share(&r, 1) - 1.0 / 7.0).abs() < 0.005, "{:?}", r.counts);
        assert!(r.longest_run <= 4, "5:1:1 must be interleaved, not {} in a row", r.longest_run);
    }
}
