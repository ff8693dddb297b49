//! Fewest requests in flight; equals take turns. The default: it needs no history, feels a slow path at once and never herds.

use super::{Choice, Selector};

#[derive(Debug, Default)]
pub(crate) struct QueueLength {
    last: usize,
}

impl Selector for QueueLength {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        choice.least(&mut self.last, |_, load| load.in_flight)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::SelectorKind;
    use crate::selector::model::{EQUAL, Server, run, share};

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
