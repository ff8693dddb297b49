//! What the faults in force make of the wire.

use crate::peer::address;
use crate::plan::{Action, Cut, Plan};
use polypath_sim::wire::{Net, Shape, Way};
use std::time::Duration;

/// Bytes of a packet on a slow wire.
const SMALL: usize = 536;

/// The wire's faults, by the actions that made them.
#[derive(Debug)]
pub(crate) struct Weather {
    plan: Plan,
    active: Vec<bool>,
}

impl Weather {
    /// Fair weather.
    pub(crate) fn new(plan: &Plan) -> Weather {
        Weather { active: vec![false; plan.actions.len()], plan: plan.clone() }
    }

    /// Action `index` begins or ends.
    pub(crate) fn set(&mut self, index: usize, begins: bool) {
        self.active[index] = begins;
    }

    /// Gives the wire of `path` what all faults in force make of it.
    pub(crate) fn apply(&mut self, path: usize, net: &Net) {
        let plan = &self.plan.paths[path];
        let mut shapes = [Shape { delay_us: plan.delay_us, skew_us: plan.skew_us, ..Shape::default() }; 2];
        let mut open = true;
        let active = self.plan.actions.iter().zip(&self.active).filter(|(_, active)| **active);
        for (timed, _) in active {
            match timed.action {
                Action::Cut { path: p, way, .. } if p == path => {
                    shapes[Way::ToTarget as usize].cut |= way != Cut::Back;
                    shapes[Way::ToHost as usize].cut |= way != Cut::There;
                }
                Action::Slow { path: p, us, .. } if p == path => shapes.iter_mut().for_each(|s| {
                    s.delay_us = (s.delay_us.0 + us, s.delay_us.1 + us);
                }),
                Action::Trickle { path: p, bytes_per_s, .. } if p == path => shapes.iter_mut().for_each(|s| {
                    s.bytes_per_s = bytes_per_s;
                    s.packet = SMALL;
                }),
                Action::Close { path: p, .. } if p == path => open = false,
                _ => {}
            }
        }
        net.listen(address(path), open);
        Way::ALL.into_iter().zip(shapes).for_each(|(way, shape)| net.shape(address(path), way, shape));
    }

    /// Longest that something may be on its way, whatever meets it there: the worst of everything that is planned.
    pub(crate) fn longest_way(&self) -> Duration {
        let paths = self.plan.paths.iter().map(|p| p.delay_us.1 + p.skew_us).max().unwrap_or(0);
        let faults: u64 = self
            .plan
            .actions
            .iter()
            .map(|timed| match timed.action {
                Action::Slow { us, .. } | Action::Lag { us, .. } | Action::Delay { us, .. } => us,
                Action::Hold { after_ms, .. } => after_ms * 1000,
                Action::Stall { ms, .. } | Action::LongTurns { turn_ms: ms, .. } => ms * 1000,
                Action::Trickle { bytes_per_s, .. } => {
                    2_000_000 * self.plan.settings.buffer as u64 / bytes_per_s.max(1)
                }
                Action::Cut { ms, .. } => ms * 1000,
                _ => 0,
            })
            .sum();
        Duration::from_micros(20_000 + 2 * paths + faults)
    }
}
