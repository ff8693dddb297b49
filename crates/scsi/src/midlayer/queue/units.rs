//! The logical units that a queue carries requests to, as they were found over the way that is up now.
//!
//! Each time the way has come up every unit is looked at over it before anything else is sent there: another disk may answer. The same when
//! a unit attention says that it may have changed; what was taken meanwhile waits for the outcome.

use super::command::{Memory, PROBE};
use crate::Attention;
use crate::midlayer::bus::{Address, Bus, UnitUse, unit_of};
use crate::midlayer::probe::{DiskTraits, Probe, ProbeStep};
use crate::midlayer::task::{Outcome, Task, TaskData, TaskEnd, TaskQueue};
use polypath_block::{Code, Cx, Health, OpenError, Time, Unit, UnitId};
use std::sync::Arc;
use std::time::Duration;

/// Units of one queue, which a [`Unit`] numbers.
const MOST: usize = u16::MAX as usize;
/// Set in the tags of tasks that belong to a probe.
pub(super) const PROBE_TAG: u64 = 1 << 63;
/// Pause after a unit was found in trouble.
const TROUBLE: Duration = Duration::from_secs(1);

/// Where a unit stands over the way that is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// To be looked at.
    Unchecked,
    /// Being looked at.
    Checking,
    /// It is who it was.
    Usable,
    /// It is not, or does not answer; to be looked at again then.
    Trouble(Time),
}

/// One logical unit.
pub(super) struct UnitState {
    id: UnitId,
    users: u32,
    pub(super) who: UnitUse,
    pub(super) address: Address,
    stage: Stage,
    /// It was found to be who it was since the way came up: requests are taken also while it is looked at once more.
    known: bool,
    pub(super) traits: DiskTraits,
    /// Tasks that it takes at a time, as far as it has let us know by TASK SET FULL.
    pub(super) allowed: u16,
}

/// The probe that is under way.
struct Probing {
    unit: Unit,
    probe: Probe,
    /// The tag of its task, and the octets it asked for, while one is outstanding.
    task: Option<(u64, u32)>,
    until: Time,
}

/// See the module.
pub(super) struct Units {
    units: Vec<Option<UnitState>>,
    probing: Option<Probing>,
    tags: u64,
}

/// What following a unit has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Requests that wait for it may go.
    Usable,
    /// Its requests are not for what is there now, or it cannot be reached.
    Revoked(Unit, Code),
}

impl Units {
    pub(super) fn new() -> Self {
        Units { units: Vec::new(), probing: None, tags: 0 }
    }

    pub(super) fn open(&mut self, bus: &Arc<Bus>, id: UnitId) -> Result<Unit, OpenError> {
        if let Some((at, unit)) = (0u16..).zip(&mut self.units).find(|(_, u)| u.as_ref().is_some_and(|u| u.id == id))
            && let Some(unit) = unit
        {
            unit.users += 1;
            return Ok(Unit(at));
        }
        let system = |reason: String| OpenError::System { name: bus.name().to_owned(), reason };
        let who = unit_of(bus, id).ok_or_else(|| system(format!("nobody has asked for {id:?}")))?;
        let at = self.units.iter().position(Option::is_none).unwrap_or(self.units.len());
        if at >= MOST {
            return Err(system(format!("{MOST} logical units are open on one queue, which is the most it takes")));
        }
        if at == self.units.len() {
            self.units.push(None);
        }
        let address = who.address();
        let (users, stage, known, traits, allowed) = (1, Stage::Unchecked, false, DiskTraits::NONE, u16::MAX);
        self.units[at] = Some(UnitState { id, users, who, address, stage, known, traits, allowed });
        Ok(Unit(at as u16))
    }

    pub(super) fn close(&mut self, unit: Unit) {
        let Some(slot) = self.units.get_mut(usize::from(unit.0)) else { return };
        if let Some(state) = slot {
            state.users -= 1;
            if state.users == 0 {
                *slot = None;
            }
        }
    }

    #[inline]
    pub(super) fn get(&self, unit: Unit) -> Option<&UnitState> {
        self.units.get(usize::from(unit.0))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, unit: Unit) -> Option<&mut UnitState> {
        self.units.get_mut(usize::from(unit.0))?.as_mut()
    }

    /// Are requests for it taken? Those that are taken while it is looked at wait.
    #[inline]
    pub(super) fn takes(&self, unit: Unit) -> bool {
        self.get(unit).is_some_and(|u| u.known)
    }

    /// May tasks of requests be sent to it now?
    #[inline]
    pub(super) fn is_usable(&self, unit: Unit) -> bool {
        self.get(unit).is_some_and(|u| u.stage == Stage::Usable)
    }

    /// The way is another one: nobody is known over it.
    pub(super) fn forget(&mut self) {
        self.probing = None;
        for unit in self.units.iter_mut().flatten() {
            (unit.stage, unit.known, unit.allowed) = (Stage::Unchecked, false, u16::MAX);
        }
    }

    /// Some time has passed: a logical unit whose task set was full is given one task more, up to `depth`.
    pub(super) fn allow_more(&mut self, depth: u16) {
        for unit in self.units.iter_mut().flatten().filter(|u| u.allowed != u16::MAX) {
            unit.allowed = if unit.allowed >= depth { u16::MAX } else { unit.allowed + 1 };
        }
    }

    /// It may not be there any more: it is looked at again, and what is taken meanwhile waits.
    pub(super) fn doubt(&mut self, unit: Unit) {
        if let Some(state) = self.get_mut(unit) {
            state.stage = Stage::Unchecked;
        }
    }

    /// A unit attention has come.
    pub(super) fn attention(&mut self, unit: Unit, attention: Attention) {
        let Some(state) = self.get_mut(unit) else { return };
        tracing::debug!(path = %state.who.bus().name(), lun = %state.address.lun, ?attention, "unit attention");
        if may_be_another(attention) {
            state.stage = Stage::Unchecked;
            if self.probing.as_ref().is_some_and(|p| p.unit == unit) {
                // What it has asked so far may be of the one before.
                self.probing = None;
            }
        }
        if let Some(state) = self.get_mut(unit)
            && concerns_devices(attention)
        {
            state.who.doubt();
        }
    }

    /// Goes on looking at units that are to be looked at, one after the other.
    pub(super) fn drive<Q: TaskQueue>(&mut self, tasks: &mut Q, memory: &Memory, cx: &mut Cx<'_>) -> Option<Change> {
        if tasks.health() == Health::Down || !memory.is_ready() {
            return None;
        }
        if self.probing.is_none() {
            let now = cx.now;
            let wanted = |u: &UnitState| match u.stage {
                Stage::Unchecked => true,
                Stage::Trouble(at) => now >= at,
                Stage::Checking | Stage::Usable => false,
            };
            let at = self.units.iter().position(|u| u.as_ref().is_some_and(wanted))?;
            let state = self.units[at].as_mut()?;
            state.stage = Stage::Checking;
            let place = format!("{}/{}", state.who.bus().name(), state.address.lun);
            let probe = Probe::new(tasks.limits(), 1, place);
            self.probing = Some(Probing { unit: Unit(at as u16), probe, task: None, until: Time::ZERO });
        }
        self.step(tasks, memory, cx)
    }

    fn step<Q: TaskQueue>(&mut self, tasks: &mut Q, memory: &Memory, cx: &mut Cx<'_>) -> Option<Change> {
        let probing = self.probing.as_mut()?;
        if probing.task.is_some() || cx.now < probing.until {
            return None;
        }
        let unit = probing.unit;
        let Some(state) = self.units.get_mut(usize::from(unit.0)).and_then(Option::as_mut) else {
            // Closed under its probe.
            self.probing = None;
            return None;
        };
        match probing.probe.step() {
            ProbeStep::Wait(span) => {
                probing.until = cx.now.after(span);
                None
            }
            ProbeStep::Send { cdb, data_in } => {
                let data = memory.probe_data(cx.segs, data_in.min(PROBE))?;
                let address = state.address;
                self.tags += 1;
                let tag = PROBE_TAG | self.tags;
                let task = Task { tag, target: address.target, lun: address.lun, cdb, data, changes: false };
                if tasks.submit(cx, &task).is_ok() {
                    probing.task = Some((tag, data.len()));
                }
                None
            }
            ProbeStep::Failed { code, reason } => {
                tracing::warn!(path = %state.who.bus().name(), lun = %state.address.lun, %reason, "a logical unit cannot be used");
                self.probing = None;
                Some(state.trouble(unit, code, cx.now))
            }
            ProbeStep::Done(found) => {
                self.probing = None;
                match state.who.check(&found.info.identity) {
                    Err((code, reason)) => {
                        tracing::error!(path = %state.who.bus().name(), %reason, "a logical unit is not used");
                        state.who.doubt();
                        Some(state.trouble(unit, code, cx.now))
                    }
                    // Requests are in blocks: of another size they mean something else.
                    Ok(()) if state.known && state.traits.block_size != found.traits.block_size => {
                        Some(state.trouble(unit, Code::PathIdentity, cx.now))
                    }
                    Ok(()) => {
                        (state.stage, state.known, state.traits) = (Stage::Usable, true, found.traits);
                        Some(Change::Usable)
                    }
                }
            }
        }
    }

    /// A task of a probe has ended.
    pub(super) fn probe_ended(&mut self, end: &TaskEnd, memory: &Memory) {
        let Some(probing) = &mut self.probing else { return };
        if probing.task.is_none_or(|(tag, _)| tag != end.tag) {
            return;
        }
        probing.task = None;
        match &end.outcome {
            Outcome::Answered(answer) => {
                let data = memory.probe_octets(answer.moved);
                probing.probe.answered(answer, &data);
            }
            Outcome::Lost(code) => probing.probe.unanswered(*code),
            Outcome::BadMemory => probing.probe.unanswered(Code::BadMemory),
        }
    }

    /// A task of a probe has ended good.
    pub(super) fn probe_good(&mut self, tag: u64, memory: &Memory) {
        let Some(probing) = &mut self.probing else { return };
        if let Some((_, len)) = probing.task.take_if(|(of, _)| *of == tag) {
            probing.probe.good(&memory.probe_octets(len));
        }
    }

    /// When a probe, or a unit in trouble, is to be looked at.
    pub(super) fn next_due(&self) -> Option<Time> {
        match &self.probing {
            Some(probing) => (probing.task.is_none()).then_some(probing.until),
            None => {
                let due = self.units.iter().flatten().filter_map(|u| match u.stage {
                    Stage::Unchecked => Some(Time::ZERO),
                    Stage::Trouble(at) => Some(at),
                    Stage::Checking | Stage::Usable => None,
                });
                due.min()
            }
        }
    }
}

impl UnitState {
    fn trouble(&mut self, unit: Unit, code: Code, now: Time) -> Change {
        (self.stage, self.known) = (Stage::Trouble(now.after(TROUBLE)), false);
        Change::Revoked(unit, code)
    }

    /// The task of a request to it.
    #[inline]
    pub(super) fn task(&self, tag: u64, cdb: crate::Cdb, data: TaskData, changes: bool) -> Task {
        let Address { target, lun } = self.address;
        Task { tag, target, lun, cdb, data, changes }
    }
}

/// May another disk be there now, or the same of another size? Requests wait until that is known.
fn may_be_another(attention: Attention) -> bool {
    use Attention as A;
    matches!(
        attention,
        A::PowerOnOrReset
            | A::PowerOn
            | A::Reset
            | A::NexusLoss
            | A::MediumChanged
            | A::ParametersChanged
            | A::ModeParametersChanged
            | A::CapacityChanged
            | A::LunsChanged
            | A::InquiryChanged
            | A::ConditionsChanged
    )
}

/// Is it of interest to whoever watches devices?
fn concerns_devices(attention: Attention) -> bool {
    use Attention as A;
    let of_a_new_nexus = matches!(attention, A::PowerOnOrReset | A::PowerOn | A::Reset | A::NexusLoss);
    (may_be_another(attention) && !of_a_new_nexus) || attention == A::AccessStateChanged
}
