//! One path takes everything: the one that is preferred, by the operator first, then by its target, then in the order in which they were
//! added. It narrows the candidates to that one when something has changed, so that a request costs as much as with a single path.

use super::{Choice, PathLoad, Selector, Slots};
use crate::config::Failback;

#[derive(Debug)]
pub(crate) struct Preferred {
    failback: Failback,
    /// The one that was chosen last, as long as it is a candidate.
    home: Option<usize>,
}

impl Preferred {
    pub(crate) fn new(failback: Failback) -> Self {
        Preferred { failback, home: None }
    }

    /// The candidates are those of `mask` from now on.
    #[cold]
    pub(crate) fn settle(&mut self, mask: u64, loads: &[PathLoad]) {
        let stays = self.failback == Failback::Never && self.home.is_some_and(|slot| mask >> slot & 1 != 0);
        // While there is none, the one that was used last is remembered: it may be the first to return.
        if !stays && mask != 0 {
            self.home = best(mask, loads);
        }
    }

    /// The one of `mask` to use.
    #[cold]
    pub(crate) fn narrow(&self, mask: u64, loads: &[PathLoad]) -> u64 {
        let home = self.home.filter(|slot| self.failback == Failback::Never && mask >> slot & 1 != 0);
        home.or_else(|| best(mask, loads)).map_or(0, |slot| 1 << slot)
    }
}

impl Selector for Preferred {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        self.narrow(choice.mask, choice.loads).trailing_zeros() as usize
    }

    fn forget(&mut self, slot: usize) {
        self.home = self.home.filter(|home| *home != slot);
    }
}

/// The most preferred one; of equals the one with the lowest number, which was added first.
fn best(mask: u64, loads: &[PathLoad]) -> Option<usize> {
    let rank = |slot: &usize| loads.get(*slot).map(|load| (u8::MAX - load.preference, load.uid));
    Slots(mask).min_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SelectorKind;
    use crate::selector::{AnySelector, preference};
    use polypath_block::Time;

    fn rule(failback: Failback) -> AnySelector {
        AnySelector::new(SelectorKind::Preferred { failback }, 7)
    }

    /// Paths that were added in the order of `uids`, with what is said of each.
    fn loads(paths: &[(u32, u8)]) -> Vec<PathLoad> {
        paths.iter().map(|&(uid, preference)| PathLoad { uid, preference, ..PathLoad::default() }).collect()
    }

    #[test]
    fn the_operator_comes_before_the_target_and_the_target_before_the_order() {
        let (none, target, operator, both) =
            (preference(false, false), preference(false, true), preference(true, false), preference(true, true));
        let cases = [
            ([(3, none), (1, none), (2, none)], 1),
            ([(3, none), (1, none), (2, target)], 2),
            ([(3, operator), (1, none), (2, target)], 0),
            ([(3, operator), (1, both), (2, target)], 1),
            ([(3, operator), (4, operator), (2, target)], 0),
        ];
        for (paths, want) in cases {
            let (loads, mut rule) = (loads(&paths), rule(Failback::Immediate));
            rule.settle(0b111, &loads);
            assert_eq!(rule.narrow(0b111, &loads), 1 << want, "{paths:?}");
            let choice = Choice { mask: 0b111, loads: &loads, bytes: 4096, offset: 0, now: Time::ZERO };
            assert_eq!(rule.pick(&choice), want, "{paths:?}");
            assert_eq!(rule.narrow(1 << 2, &loads), 1 << 2, "the only one is used");
            assert_eq!(rule.narrow(0, &loads), 0);
        }
    }

    #[test]
    fn it_fails_back_at_once_or_stays() {
        // Path 0 is preferred; candidates one after the other, and which is used by the one and the other rule.
        let story = [
            (0b111u64, 0, 0),
            (0b110, 1, 1),
            (0b111, 0, 1),
            (0b101, 0, 0),
            (0b100, 2, 2),
            (0b000, 9, 9),
            (0b110, 1, 2),
            (0b111, 0, 2),
        ];
        let loads = loads(&[(0, 2), (1, 0), (2, 0)]);
        let (mut returns, mut stays) = (rule(Failback::Immediate), rule(Failback::Never));
        for (step, (mask, back, stay)) in story.into_iter().enumerate() {
            for (rule, want) in [(&mut returns, back), (&mut stays, stay)] {
                rule.settle(mask, &loads);
                let want = if mask == 0 { 0 } else { 1 << want };
                assert_eq!(rule.narrow(mask, &loads), want, "step {step}");
            }
        }
        // Another path in the place of the one in use has no claim.
        stays.forget(2);
        stays.settle(0b111, &loads);
        assert_eq!(stays.narrow(0b111, &loads), 1);
        // A request that its path has failed goes to the next one, and moves nobody.
        assert_eq!((stays.narrow(0b110, &loads), stays.narrow(0b111, &loads)), (0b010, 1));
    }

    /// Whatever happens to the paths: exactly one is used, it is a candidate, nobody better is there if it fails back, and it is the one
    /// before if it does not and that is still there.
    #[test]
    fn whatever_happens_to_the_paths_the_promised_one_is_used() {
        for seed in 1..=50u64 {
            let mut state = seed;
            let mut below = |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % n
            };
            let mut loads = loads(&[(0, 0); 6]);
            let mut next_uid = 0;
            for load in &mut loads {
                (load.uid, load.preference) = (next_uid, below(4) as u8);
                next_uid += 1;
            }
            for failback in [Failback::Immediate, Failback::Never] {
                let (mut rule, mut before) = (rule(failback), None::<usize>);
                for step in 0..300 {
                    let mask = below(1 << 6);
                    if below(20) == 0 {
                        let slot = below(6) as usize;
                        rule.forget(slot);
                        before = before.filter(|home| *home != slot);
                        (loads[slot].uid, loads[slot].preference) = (next_uid, below(4) as u8);
                        next_uid += 1;
                    }
                    rule.settle(mask, &loads);
                    let used = rule.narrow(mask, &loads);
                    let what = format!("seed {seed}, step {step}: {used:#b} of {mask:#b}");
                    if mask == 0 {
                        assert_eq!(used, 0, "{what}");
                        continue;
                    }
                    assert!(used.is_power_of_two() && used & mask != 0, "{what}");
                    let slot = used.trailing_zeros() as usize;
                    let key = |slot: usize| (u8::MAX - loads[slot].preference, loads[slot].uid);
                    let is_best = Slots(mask).all(|other| key(slot) <= key(other));
                    let had = before.filter(|home| mask >> home & 1 != 0);
                    match (failback, had) {
                        (Failback::Never, Some(home)) => assert_eq!(slot, home, "{what}"),
                        _ => assert!(is_best, "{what}"),
                    }
                    before = Some(slot);
                }
            }
        }
    }
}
