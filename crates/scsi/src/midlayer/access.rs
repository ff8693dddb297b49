//! What the control side of a bus knows of access: which logical units are changing it, and for how long; where it was asked for.

use super::bus::{Address, Bus};
use super::probe::LogicalUnit;
use polypath_block::{Access, DeviceInfo, Time};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Pause before a logical unit that is changing its access is looked at again.
const CHANGING: Duration = Duration::from_millis(250);
/// How long a change of access may take where the target does not say (Linux takes the same, ALUA_FAILOVER_TIMEOUT).
const TRANSITION: Duration = Duration::from_secs(60);
/// Pause before a target is asked for access again that has been asked already.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A logical unit that is changing its access.
struct Changing {
    address: Address,
    since: Time,
    /// It has had its time: there is no access.
    overdue: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct AccessWatch {
    to_activate: VecDeque<(Address, u16)>,
    /// When the target was last asked for access, by logical unit.
    asked: Vec<(Address, Time)>,
    changing: Vec<Changing>,
}

impl AccessWatch {
    /// The way has gone.
    pub(super) fn leave(&mut self) {
        self.to_activate.clear();
    }

    /// These are in use; what is known of others is forgotten.
    pub(super) fn keep(&mut self, in_use: &VecDeque<Address>) {
        self.changing.retain(|changing| in_use.contains(&changing.address));
    }

    /// Until what is in trouble, which has `trouble`, or changing is looked at again.
    pub(super) fn pause(&self, trouble: Duration) -> Duration {
        if self.changing.iter().any(|changing| !changing.overdue) { CHANGING } else { trouble }
    }

    /// Somebody wants access where there is none: for which logical unit it is to be asked, and the group of its port. Each target is
    /// asked now and then only.
    pub(super) fn wanted(&mut self, bus: &Bus, now: Time) -> Option<(Address, u16)> {
        self.asked.retain(|(_, at)| now < at.after(ASK_AGAIN));
        for address in bus.take_asked() {
            let group = bus.known(address).and_then(|unit| unit.alua.port_group);
            let was_asked = self.asked.iter().any(|(of, _)| *of == address);
            if let Some(group) = group.filter(|_| !was_asked) {
                self.asked.push((address, now));
                self.to_activate.push_back((address, group));
            }
        }
        self.to_activate.pop_front()
    }

    /// One that is changing its access for longer than it may gives none.
    pub(super) fn bound_change(&mut self, path: &str, address: Address, unit: &mut LogicalUnit, now: Time) {
        let at = self.changing.iter().position(|changing| changing.address == address);
        if unit.info.access != Access::Change {
            if let Some(at) = at {
                self.changing.swap_remove(at);
            }
            return;
        }
        let at = at.unwrap_or_else(|| {
            self.changing.push(Changing { address, since: now, overdue: false });
            self.changing.len() - 1
        });
        let limit = if unit.alua.transition.is_zero() { TRANSITION } else { unit.alua.transition };
        if let Some(changing) = self.changing.get_mut(at)
            && now.since(changing.since) >= limit
        {
            if !std::mem::replace(&mut changing.overdue, true) {
                let ms = limit.as_millis();
                tracing::warn!(path, lun = %address.lun, "its access is changing for {ms} ms: taken for none");
            }
            unit.info = Arc::new(DeviceInfo { access: Access::Inaccessible, ..(*unit.info).clone() });
        }
    }
}
