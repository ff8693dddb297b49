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

/// The same with turns of several requests, so that what follows each other on the disk mostly meets on a path.
#[derive(Debug)]
pub(crate) struct Turns {
    turn: RoundRobin,
    min_io: u32,
    /// Requests that the last one still gets in its turn.
    left: u32,
}

impl Turns {
    pub(crate) fn new(min_io: u32) -> Self {
        Turns { turn: RoundRobin::default(), min_io: min_io.max(1), left: 0 }
    }
}

impl Selector for Turns {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        let goes_on = self.left > 0 && choice.mask >> self.turn.last & 1 != 0;
        if !goes_on {
            self.left = self.min_io;
            self.turn.pick(choice);
        }
        self.left -= 1;
        self.turn.last
    }

    fn forget(&mut self, slot: usize) {
        if self.turn.last == slot {
            self.left = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SelectorKind;
    use crate::selector::model::{EQUAL, Server, run};
    use crate::selector::{AnySelector, PathLoad};
    use polypath_block::Time;

    const ONE_EACH: SelectorKind = SelectorKind::RoundRobin { min_io: 0 };

    #[test]
    fn strictly_in_turn_whatever_the_speed() {
        let slow = Server { latency_us: 1000, ..EQUAL };
        for kind in [ONE_EACH, SelectorKind::RoundRobin { min_io: 1 }] {
            let r = run(kind, &[EQUAL, slow, EQUAL], 9, 4096, 9000, |_| 0b111);
            assert_eq!(r.longest_run, 1);
            assert!(r.counts.iter().all(|&c| (2990..=3010).contains(&c)), "{:?}", r.counts);
        }
    }

    /// Which of `mask` are chosen, one after the other.
    fn picks(rule: &mut AnySelector, mask: u64, count: usize) -> Vec<usize> {
        let loads = [PathLoad::default(); 4];
        let choice = Choice { mask, loads: &loads, bytes: 4096, offset: 0, now: Time::ZERO };
        (0..count).map(|_| rule.pick(&choice)).collect()
    }

    #[test]
    fn a_turn_has_as_many_requests_as_it_was_told_to_have() {
        for min_io in [2, 3, 64, 1024, 5000] {
            let mut rule = AnySelector::new(SelectorKind::RoundRobin { min_io }, 7);
            let all = picks(&mut rule, 0b1011, 9 * min_io as usize);
            let turns: Vec<_> = all.chunk_by(|a, b| a == b).map(|turn| (turn[0], turn.len() as u32)).collect();
            let slots: Vec<_> = turns.iter().map(|turn| turn.0).collect();
            assert!(turns.iter().all(|turn| turn.1 == min_io), "{min_io}: {turns:?}");
            assert!(slots.windows(3).all(|s| s[0] != s[1] && s[1] != s[2] && s[0] != s[2]), "{slots:?}");
        }
    }

    #[test]
    fn a_turn_ends_with_its_path_and_is_not_inherited() {
        let mut rule = AnySelector::new(SelectorKind::RoundRobin { min_io: 4 }, 7);
        assert_eq!(picks(&mut rule, 0b111, 6), [1, 1, 1, 1, 2, 2]);
        assert_eq!(picks(&mut rule, 0b011, 5), [0, 0, 0, 0, 1], "the next one has a whole turn");
        rule.forget(1);
        assert_eq!(picks(&mut rule, 0b111, 4), [2, 2, 2, 2]);
    }
}
