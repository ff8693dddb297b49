//! Cutting a failing plan down to what it needs to fail.

use crate::checker::Violation;
use crate::peer::Family;
use crate::plan::Plan;
use crate::world::run;

/// A failing plan, cut down.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left.
    pub plan: Plan,
    /// How it fails.
    pub violation: Violation,
    /// Runs that it took.
    pub runs: u32,
}

/// Cuts `plan` down, with at most `most` runs: whatever still breaks the same rule is kept.
pub fn shrink(plan: &Plan, violation: Violation, family: &dyn Family, most: u32) -> Shrunk {
    let mut shrinker = Shrinker { family, best: plan.clone(), violation, runs: 0, most };
    loop {
        let before = shrinker.best.clone();
        shrinker.drop_actions();
        shrinker.drop_others();
        shrinker.shorten();
        if shrinker.best == before || shrinker.runs >= most {
            return Shrunk { plan: shrinker.best, violation: shrinker.violation, runs: shrinker.runs };
        }
    }
}

struct Shrinker<'a> {
    family: &'a dyn Family,
    best: Plan,
    violation: Violation,
    runs: u32,
    most: u32,
}

impl Shrinker<'_> {
    /// Does the plan still fail after `change`? Then it is the better one.
    fn attempt(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        if self.runs >= self.most {
            return false;
        }
        let mut plan = self.best.clone();
        change(&mut plan);
        if plan == self.best {
            return false;
        }
        self.runs += 1;
        match run(&plan, self.family, 0).result {
            Err(violation) if violation.rule == self.violation.rule => {
                (self.best, self.violation) = (plan, violation);
                true
            }
            _ => false,
        }
    }

    /// Delta debugging: halves, quarters, …, single actions.
    fn drop_actions(&mut self) {
        let mut size = self.best.actions.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < self.best.actions.len() {
                let end = (at + size).min(self.best.actions.len());
                if !self.attempt(|plan| drop(plan.actions.drain(at..end))) {
                    at = end;
                }
            }
            if size == 1 {
                return;
            }
            size = size.div_ceil(2);
        }
    }

    fn drop_others(&mut self) {
        for i in (0..self.best.guests.len()).rev() {
            if self.best.guests.len() > 1 {
                self.attempt(|plan| {
                    plan.guests.remove(i);
                });
            }
        }
        for i in 0..self.best.guests.len() {
            self.attempt(|plan| plan.guests[i].depth = (plan.guests[i].depth / 4).max(1));
        }
        let used = self.best.guests.iter().map(|g| g.disk + 1).max().unwrap_or(1);
        self.attempt(|plan| plan.disks = plan.disks.min(used));
    }

    fn shorten(&mut self) {
        let last =
            self.best.actions.iter().map(|t| t.at_us / 1000 + t.action.lasts_ms().unwrap_or(0)).max().unwrap_or(0);
        self.attempt(|plan| plan.length_ms = plan.length_ms.min(last + 50));
        for i in 0..self.best.actions.len() {
            if let Some(ms) = self.best.actions[i].action.lasts_ms() {
                self.attempt(|plan| plan.actions[i].action.set_lasts_ms(ms / 2));
            }
        }
    }
}
