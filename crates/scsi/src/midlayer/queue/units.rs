//! The logical units that a queue carries requests to, as they were found over the way that is up now.
//!
//! Each time the way has come up every unit is looked at over it before anything else is sent there: another disk may answer. The same when
//! a unit attention says that it may have changed; what was taken meanwhile waits for the outcome.

use super::command::{Memory, PROBE};
use crate::midlayer::DiskConfig;
use crate::midlayer::bus::{Address, Bus, Heard, NOT_USED, Shown, UnitUse, unit_of};
use crate::midlayer::probe::{DiskTraits, LogicalUnit, Probe, ProbeStep};
use crate::midlayer::reserve::{Claim, Exchange, ExchangeStep, Payload, is_alarm};
use crate::midlayer::task::{
    Outcome, Recovered, Recovery, RecoveryEnd, Task, TaskData, TaskEnd, TaskLimits, TaskQueue,
};
use crate::{Attention, Meaning, meaning};
use polypath_block::{Code, Cx, Health, OpenError, ReservationResult, Status, Time, Unit, UnitId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Units of one queue, which a [`Unit`] numbers.
const MOST: usize = u16::MAX as usize;
/// Set in the tags of tasks that belong to a probe.
pub(super) const PROBE_TAG: u64 = 1 << 63;
/// Pause after a unit was found in trouble.
const TROUBLE: Duration = Duration::from_secs(1);
/// How long an answer that a look has borne out is not asked about again: one disk that answers so all the time is not looked at all the time.
const BORNE_OUT: Duration = Duration::from_secs(1);

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
    /// What it takes is not known for sure: another host had reserved it.
    guessed: bool,
    /// Up to which loss of its power this session has heard.
    heard: Heard,
    /// How far the claim of a registration was followed over the way that is up; [`NOT_USED`]: nothing is sent before it was.
    followed: Arc<AtomicU64>,
    /// It is looked at because of an answer with this code.
    disputed: Option<Code>,
    /// A look has borne that out: such an answer is believed until then.
    borne_out: Option<(Code, Time)>,
}

/// What is done with a unit: it is registered as it is claimed, then looked at.
enum Look {
    /// With the claim that it follows, and whether a probe is to come.
    Claim(Exchange, Claim, bool),
    /// With the epoch of the claim that was followed before.
    Probe(Box<Probe>, u64),
}

/// The look that is under way.
struct Probing {
    unit: Unit,
    look: Look,
    until: Time,
}

/// The task of a look that is outstanding: one at a time, for they share their memory.
struct Sent {
    tag: u64,
    /// Octets it asked for.
    len: u32,
    at: Time,
    /// It takes too long, and is being ended since then.
    ending: Option<Time>,
    /// Nobody waits for its answer any more.
    stray: bool,
}

/// See the module.
pub(super) struct Units {
    units: Vec<Option<UnitState>>,
    probing: Option<Probing>,
    sent: Option<Sent>,
    /// Since when the driver does not take the next one.
    refused: Option<Time>,
    /// Target port of the way that is up.
    port: u64,
    tags: u64,
}

/// What following a unit has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Requests that wait for it may go, if nothing has happened meanwhile.
    Usable(Unit),
    /// Its requests are not for what is there now, or it cannot be reached.
    Revoked(Unit, Code),
}

impl Units {
    pub(super) fn new() -> Self {
        Units { units: Vec::new(), probing: None, sent: None, refused: None, port: 0, tags: 0 }
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
        let followed = Arc::new(AtomicU64::new(NOT_USED));
        who.show_followed(&followed);
        self.units[at] = Some(UnitState {
            id,
            users,
            who,
            address,
            stage,
            known,
            traits,
            allowed,
            guessed: false,
            heard: Heard::default(),
            followed,
            disputed: None,
            borne_out: None,
        });
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

    /// The way is another one, to target port `port`: nobody is known over it.
    pub(super) fn forget(&mut self, port: u64) {
        (self.probing, self.port) = (None, port);
        // What it sent over the one before has ended, or waits for a proof.
        (self.sent, self.refused) = (None, None);
        for unit in self.units.iter_mut().flatten() {
            (unit.stage, unit.known, unit.allowed) = (Stage::Unchecked, false, u16::MAX);
            (unit.disputed, unit.borne_out) = (None, None);
            unit.followed.store(NOT_USED, Ordering::Release);
        }
    }

    fn stop_probing(&mut self) {
        (self.probing, self.refused) = (None, None);
        if let Some(sent) = &mut self.sent {
            sent.stray = true;
        }
    }

    /// Units of which is known by now that another disk answers there: whatever was sent to them must not go on.
    #[cold]
    pub(super) fn take_others(&mut self) -> Vec<Unit> {
        let units = self.units.iter_mut().zip(0u16..);
        let others = units.filter_map(|(unit, at)| {
            let state = unit.as_mut().filter(|u| u.known)?;
            if !matches!(state.who.shown(), Some(Shown::Trouble { code: Code::PathIdentity, .. })) {
                return None;
            }
            (state.stage, state.known) = (Stage::Unchecked, false);
            Some(Unit(at))
        });
        others.collect()
    }

    /// Units in use at which somebody else has found no disk that can be used.
    #[cold]
    pub(super) fn missing(&self) -> Vec<Unit> {
        let is_missing = |unit: &UnitState| {
            unit.stage == Stage::Usable
                && matches!(unit.who.shown(), Some(Shown::Trouble { code: Code::PathNoAccess, .. }))
        };
        let units = self.units.iter().zip(0u16..);
        units.filter_map(|(unit, at)| unit.as_ref().is_some_and(is_missing).then_some(Unit(at))).collect()
    }

    /// Is the task of a look outstanding?
    #[inline]
    pub(super) fn awaits_answer(&self) -> bool {
        self.sent.is_some()
    }

    /// Since when the driver does not take the task of a look.
    pub(super) fn refused(&self) -> Option<Time> {
        self.refused.filter(|_| self.probing.is_some())
    }

    /// That was acted on: counted from now on.
    pub(super) fn forgive(&mut self) {
        self.refused = None;
    }

    /// Is there something whose time limit is to be looked at?
    #[inline]
    pub(super) fn has_limit(&self) -> bool {
        self.sent.is_some() || self.refused.is_some()
    }

    /// Looks at the time limit of the task that is outstanding: it is aborted, and if that does not help, the way is given up.
    pub(super) fn check_time<Q: TaskQueue>(&mut self, tasks: &mut Q, config: &DiskConfig, cx: &mut Cx<'_>) {
        let Some(sent) = &mut self.sent else { return };
        let step = match sent.ending {
            None if cx.now.since(sent.at) >= config.io_timeout => Recovery::AbortTask { tag: sent.tag },
            Some(since) if cx.now.since(since) >= config.grace => Recovery::ResetHost,
            _ => return,
        };
        sent.ending = Some(cx.now);
        let ms = config.io_timeout.as_millis();
        tracing::warn!(?step, "a question to a logical unit is not answered within {ms} ms");
        if !tasks.recover(cx, step, sent.tag) && step != Recovery::ResetHost {
            tasks.recover(cx, Recovery::ResetHost, sent.tag);
        }
    }

    /// A recovery was answered that [`Units::check_time`] has asked for.
    pub(super) fn recovered(&mut self, end: &RecoveryEnd) {
        if let Some(sent) = self.sent.as_mut().filter(|sent| sent.tag == end.token)
            && end.outcome == Recovered::Failed
        {
            sent.ending = Some(Time::ZERO);
        }
    }

    /// Some time has passed: a logical unit whose task set was full is given one task more, up to `depth`.
    pub(super) fn allow_more(&mut self, depth: u16) {
        for unit in self.units.iter_mut().flatten().filter(|u| u.allowed != u16::MAX) {
            unit.allowed = if unit.allowed >= depth { u16::MAX } else { unit.allowed + 1 };
        }
    }

    /// It has answered with `code`, which the one that is known would not: it is looked at again, and what is taken meanwhile waits.
    /// `false`: that has been done for such an answer a moment ago, and it was who it was.
    pub(super) fn dispute(&mut self, unit: Unit, code: Code, now: Time) -> bool {
        let Some(state) = self.get_mut(unit) else { return false };
        let is_borne_out = state.borne_out.is_some_and(|(of, until)| of == code && now < until);
        if state.stage == Stage::Usable && is_borne_out {
            return false;
        }
        if state.stage == Stage::Usable {
            tracing::warn!(
                path = %state.who.bus().name(), lun = %state.address.lun, answer = %Status::new(code),
                "not what is known of the logical unit: it is looked at again"
            );
        }
        state.disputed = Some(code);
        state.who.doubt();
        self.look_again(unit);
        true
    }

    /// It is looked at from the beginning: what was asked so far may be of the one before.
    fn look_again(&mut self, unit: Unit) {
        if let Some(state) = self.get_mut(unit) {
            state.stage = Stage::Unchecked;
        }
        if self.probing.as_ref().is_some_and(|p| p.unit == unit) {
            self.stop_probing();
        }
    }

    /// LUNs lead elsewhere. It need not be the one that says so: LIO tells it at every LUN but the one that has changed.
    #[cold]
    fn doubt_all(&mut self) {
        self.stop_probing();
        for state in self.units.iter_mut().flatten() {
            if matches!(state.stage, Stage::Usable | Stage::Checking) {
                state.stage = Stage::Unchecked;
            }
            state.who.doubt();
        }
    }

    /// It gives no access (any more): whoever watches devices finds out what there is.
    pub(super) fn gives_no_access(&self, unit: Unit) {
        if let Some(state) = self.get(unit) {
            state.who.doubt();
        }
    }

    /// A unit attention has come.
    pub(super) fn attention(&mut self, unit: Unit, attention: Attention) {
        let port = self.port;
        let Some(state) = self.get_mut(unit) else { return };
        tracing::debug!(path = %state.who.bus().name(), lun = %state.address.lun, ?attention, "unit attention");
        state.who.hears(&mut state.heard, port, Some(attention));
        if attention.may_be_another() {
            state.borne_out = None;
            self.look_again(unit);
        }
        if attention == Attention::LunsChanged {
            self.doubt_all();
        }
        if let Some(state) = self.get_mut(unit)
            && concerns_devices(attention)
        {
            state.who.doubt();
        }
        if is_alarm(attention) {
            self.alarm(unit);
        }
    }

    /// What it had acknowledged may be lost: whoever flushes is to hear of it.
    #[cold]
    pub(super) fn lost_changes(&self, unit: Unit) {
        if let Some(state) = self.get(unit) {
            state.who.lost_changes();
        }
    }

    /// Another host may have ended our registration or reservation.
    #[cold]
    pub(super) fn alarm(&mut self, unit: Unit) {
        if let Some(state) = self.get(unit) {
            state.who.bus().alarm(state.address);
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
                Stage::Usable => u.followed.load(Ordering::Relaxed) != u.who.bus().claim(u.address).epoch,
                Stage::Checking => false,
            };
            let at = self.units.iter().position(|u| u.as_ref().is_some_and(wanted))?;
            let state = self.units[at].as_mut()?;
            let probes = state.stage != Stage::Usable;
            if probes {
                state.stage = Stage::Checking;
            }
            let claim = state.who.bus().claim(state.address);
            // Registered first: a reservation of ours may keep others from what a probe asks.
            let look = match claim.exchange() {
                Some(exchange) => Look::Claim(exchange, claim, probes),
                None if probes => state.probe(tasks.limits(), claim.epoch),
                None => {
                    state.followed.store(claim.epoch, Ordering::Release);
                    return Some(Change::Usable(Unit(at as u16)));
                }
            };
            self.probing = Some(Probing { unit: Unit(at as u16), look, until: Time::ZERO });
        }
        self.step(tasks, memory, cx)
    }

    fn step<Q: TaskQueue>(&mut self, tasks: &mut Q, memory: &Memory, cx: &mut Cx<'_>) -> Option<Change> {
        let probing = self.probing.as_mut()?;
        if self.sent.is_some() || cx.now < probing.until {
            return None;
        }
        let unit = probing.unit;
        let Some(state) = self.units.get_mut(usize::from(unit.0)).and_then(Option::as_mut) else {
            // Closed under its probe.
            self.probing = None;
            return None;
        };
        let (cdb, data, changes) = match &mut probing.look {
            Look::Claim(exchange, claim, probes) => match exchange.step() {
                ExchangeStep::Wait(span) => {
                    probing.until = cx.now.after(span);
                    return None;
                }
                ExchangeStep::Done(result) => {
                    let (claim, probes) = (*claim, *probes);
                    probing.look = state.probe(tasks.limits(), claim.epoch);
                    return self.claimed(unit, &claim, probes, result, cx.now);
                }
                ExchangeStep::Send { cdb, payload: Payload::In(len) } => (cdb, memory.probe_data(cx.segs, len)?, false),
                ExchangeStep::Send { cdb, payload: Payload::Out(octets) } => {
                    (cdb, memory.probe_out(cx.segs, &octets)?, true)
                }
            },
            Look::Probe(probe, epoch) => match probe.step() {
                ProbeStep::Wait(span) => {
                    probing.until = cx.now.after(span);
                    return None;
                }
                ProbeStep::Send { cdb, data_in } => (cdb, memory.probe_data(cx.segs, data_in.min(PROBE))?, false),
                ProbeStep::Failed { code, reason } => {
                    tracing::warn!(path = %state.who.bus().name(), lun = %state.address.lun, %reason, "a logical unit cannot be used");
                    self.probing = None;
                    return Some(state.trouble(unit, code, cx.now));
                }
                ProbeStep::Done(found) => {
                    let epoch = *epoch;
                    self.probing = None;
                    return Some(state.found(unit, &found, (epoch, self.port), cx.now));
                }
            },
        };
        let address = state.address;
        self.tags += 1;
        let tag = PROBE_TAG | self.tags;
        let task = Task { tag, target: address.target, lun: address.lun, cdb, data, changes };
        if tasks.submit(cx, &task).is_ok() {
            self.sent = Some(Sent { tag, len: data.len(), at: cx.now, ending: None, stray: false });
            self.refused = None;
        } else {
            self.refused.get_or_insert(cx.now);
        }
        None
    }

    /// A unit was registered as it was claimed, or could not be.
    fn claimed(
        &mut self,
        unit: Unit,
        claim: &Claim,
        probes: bool,
        result: ReservationResult,
        now: Time,
    ) -> Option<Change> {
        let state = self.units.get_mut(usize::from(unit.0)).and_then(Option::as_mut)?;
        let (path, lun) = (state.who.bus().name(), state.address.lun);
        match result {
            Ok(_) => {}
            // It was not registered, which is what was wanted.
            Err(error) if claim.key.is_none() => {
                tracing::debug!(path, %lun, reason = %error, "a registration was not there to be ended");
            }
            Err(error) if error.code == Code::ReservationConflict => {
                tracing::warn!(path, %lun, reason = %error, "our registration was ended by another host");
                state.who.bus().claim_was_ended(state.address);
            }
            Err(error) => {
                tracing::warn!(path, %lun, reason = %error, "a logical unit cannot be used: its reservation key could not be registered");
                self.probing = None;
                return Some(state.trouble(unit, Code::PathNoAccess, now));
            }
        }
        if probes {
            // The probe is next.
            return None;
        }
        self.probing = None;
        if state.guessed {
            state.stage = Stage::Unchecked;
            return Some(Change::Usable(unit));
        }
        state.followed.store(claim.epoch, Ordering::Release);
        state.who.bus().call();
        Some(Change::Usable(unit))
    }

    /// A task of a probe has ended.
    pub(super) fn probe_ended(&mut self, end: &TaskEnd, memory: &Memory) {
        let Some(sent) = self.sent.take_if(|sent| sent.tag == end.tag) else { return };
        let Some(probing) = self.probing.as_mut().filter(|_| !sent.stray) else { return };
        let unit = probing.unit;
        if let Some(attention) = attention_of(&end.outcome)
            && let Some(state) = self.units.get_mut(usize::from(unit.0)).and_then(Option::as_mut)
        {
            state.who.hears(&mut state.heard, self.port, Some(attention));
        }
        if tells_loss(&end.outcome)
            && let Some(state) = self.units.get(usize::from(unit.0)).and_then(Option::as_ref)
        {
            state.who.lost_changes();
        }
        let moved = if let Outcome::Answered(answer) = &end.outcome { answer.moved } else { 0 };
        match (&mut probing.look, &end.outcome) {
            (Look::Claim(exchange, ..), outcome) => {
                let unit = probing.unit;
                if exchange.ended(outcome, end.proof, &memory.probe_octets(moved)).is_some_and(is_alarm) {
                    self.alarm(unit);
                }
            }
            (Look::Probe(probe, _), Outcome::Answered(answer)) => probe.answered(answer, &memory.probe_octets(moved)),
            (Look::Probe(probe, _), Outcome::Lost(code)) => probe.unanswered(*code),
            (Look::Probe(probe, _), Outcome::BadMemory) => probe.unanswered(Code::BadMemory),
        }
    }

    /// A task of a probe has ended good.
    pub(super) fn probe_good(&mut self, tag: u64, memory: &Memory) {
        let Some(sent) = self.sent.take_if(|sent| sent.tag == tag) else { return };
        let Some(probing) = self.probing.as_mut().filter(|_| !sent.stray) else { return };
        let data = memory.probe_octets(sent.len);
        match &mut probing.look {
            Look::Claim(exchange, ..) => exchange.good(&data),
            Look::Probe(probe, _) => probe.good(&data),
        }
    }

    /// When a probe, or a unit in trouble, is to be looked at.
    pub(super) fn next_due(&self) -> Option<Time> {
        if self.sent.is_some() {
            return None;
        }
        match &self.probing {
            Some(probing) => Some(probing.until),
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
    fn probe(&self, limits: TaskLimits, epoch: u64) -> Look {
        let place = format!("{}/{}", self.who.bus().name(), self.address.lun);
        Look::Probe(Box::new(Probe::new(limits, 1, place).knowing(self.who.known())), epoch)
    }

    /// A probe has found a disk at a target port, after the claim of `epoch` was followed.
    fn found(&mut self, unit: Unit, found: &LogicalUnit, (epoch, port): (u64, u64), now: Time) -> Change {
        match self.who.check(&found.info.identity) {
            Err((code, reason)) => {
                tracing::error!(path = %self.who.bus().name(), %reason, "a logical unit is not used");
                self.who.doubt();
                self.trouble(unit, code, now)
            }
            // Requests are in blocks: of another size they mean something else. Whoever sends them may not have heard yet, also over a new way.
            Ok(()) if self.traits.blocks > 0 && self.traits.block_size != found.traits.block_size => {
                self.trouble(unit, Code::PathIdentity, now)
            }
            // Meanwhile something else is claimed.
            Ok(()) if self.who.bus().claim(self.address).epoch != epoch => {
                self.stage = Stage::Unchecked;
                Change::Usable(unit)
            }
            Ok(()) => {
                self.who.hears(&mut self.heard, port, None);
                (self.stage, self.known, self.traits) = (Stage::Usable, true, found.traits);
                self.guessed = found.guessed;
                self.followed.store(epoch, Ordering::Release);
                self.who.bus().call();
                if let Some(code) = self.disputed.take() {
                    self.borne_out = Some((code, now.after(BORNE_OUT)));
                }
                Change::Usable(unit)
            }
        }
    }

    fn trouble(&mut self, unit: Unit, code: Code, now: Time) -> Change {
        (self.stage, self.known) = (Stage::Trouble(now.after(TROUBLE)), false);
        (self.disputed, self.borne_out) = (None, None);
        self.followed.store(NOT_USED, Ordering::Release);
        Change::Revoked(unit, code)
    }

    /// The task of a request to it.
    #[inline]
    pub(super) fn task(&self, tag: u64, cdb: crate::Cdb, data: TaskData, changes: bool) -> Task {
        let Address { target, lun } = self.address;
        Task { tag, target, lun, cdb, data, changes }
    }
}

/// Does the answer tell that a change was lost which had been acknowledged?
fn tells_loss(outcome: &Outcome) -> bool {
    let Outcome::Answered(answer) = outcome else { return false };
    matches!(meaning(answer.status, answer.sense.as_ref()), Meaning::Deferred(_))
}

/// The unit attention that a task was answered with.
fn attention_of(outcome: &Outcome) -> Option<Attention> {
    let Outcome::Answered(answer) = outcome else { return None };
    match meaning(answer.status, answer.sense.as_ref()) {
        Meaning::UnitAttention(attention) => Some(attention),
        _ => None,
    }
}

/// Is it of interest to whoever watches devices?
fn concerns_devices(attention: Attention) -> bool {
    use Attention as A;
    let of_a_new_nexus = matches!(attention, A::PowerOnOrReset | A::PowerOn | A::Reset | A::NexusLoss);
    (attention.may_be_another() && !of_a_new_nexus) || attention == A::AccessStateChanged
}
