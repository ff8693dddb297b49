//! One after the other. Dragged down by its slowest path, hence not the default.

use super::{Choice, Selector};

#[derive(Debug, Default)]
pub(crate) struct RoundRobin {
    last: usize,
}

impl Selector for RoundRobin {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        self.last = choice.slots_after(self.last).next().unwrap_or(0);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use crate::config::SelectorKind;
    use crate::selector::model::{EQUAL, Server, run};

    #[test]
    fn strictly_in_turn_whatever_the_speed() {
        let slow = Server { latency_us: 1000, ..EQUAL };
        let r = run(SelectorKind::RoundRobin, &[EQUAL, slow, EQUAL], 9, 4096, 9000, |_| 0b111);
        assert_eq!(r.longest_run, 1);
        assert!(r.counts.iter().all(|&c| (2990..=3010).contains(&c)), "{:?}", r.counts);
    }
}
