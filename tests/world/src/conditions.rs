//! The conditions on the wire: what the faults in force make of it.

use crate::peer::address;
use crate::plan::{Action, Cut, Plan};
use polypath_sim::wire::{Net, Shape, Way};

/// Bytes of a packet on a slow wire.
const SMALL: usize = 536;

/// The wire's faults, by the actions that made them.
#[derive(Debug)]
pub(crate) struct Conditions {
    plan: Plan,
    active: Vec<bool>,
}

impl Conditions {
    /// No fault in force.
    pub(crate) fn new(plan: &Plan) -> Conditions {
        Conditions { active: vec![false; plan.actions.len()], plan: plan.clone() }
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
}
