//! Reservations belong to the group: one key for the disk, registered on each path before that carries I/O.
//!
//! The group *claims* a registration once somebody has asked for it. A path that joins later, or comes back, joins with the same key first;
//! one that cannot carries nothing, and says why. When a report shows that the key is gone (another host has preempted or cleared it) the
//! group stops claiming, and never registers again by itself: that would steal it back. What was lost in the middle is not sent again;
//! a report tells what has become of it.
//!
//! Paths are asked without the lock of the group, and answer on any thread.

mod round;

use crate::config::PathId;
use crate::event::EventKind;
use crate::shared::GroupShared;
use crate::state::PathState;
use core::time::Duration;
use polypath_block::{
    Code, Device, ReservationError, ReservationOp, ReservationReply, ReservationResult, ReservationType, Time,
};
use round::Round;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a path may take to join.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// Pause before a path that could not be registered is asked again, and between two looks at all of them.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the reservations of a group stand, for people.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReservationState {
    /// The key that this host is registered with.
    pub key: Option<u64>,
    /// How it was reserved through this group, as far as the group knows; a report tells what is so now.
    pub kind: Option<ReservationType>,
    /// Why the registration is over, if another host has ended it.
    pub ended: Option<String>,
}

/// What the group knows of reservations. Its lock is the innermost one and held for moments.
#[derive(Default)]
pub(crate) struct Desk {
    state: Mutex<State>,
    /// Something is claimed.
    active: AtomicBool,
    /// When the paths are to be looked at again, whether they have changed or not.
    due: AtomicU64,
    alarms: AtomicU64,
}

#[derive(Default)]
struct State {
    shown: ReservationState,
    /// Who reserved it: others may not be able to release it.
    holder: Option<Holder>,
    paths: BTreeMap<PathId, Membership>,
    /// Which hosts it is registered for, as [`polypath_block::Reservations::host`] of the paths that are, or were.
    hosts: BTreeSet<[u8; 16]>,
    /// An operation is under way.
    busy: bool,
    attempts: u64,
}

/// The way over which it was reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holder {
    path: PathId,
    /// As [`polypath_block::Reservations::host`] of its device.
    host: Option<[u8; 16]>,
}

impl Holder {
    /// Is what was reserved that of `path`, too?
    fn is(&self, path: &Candidate) -> bool {
        self.path == path.id || (self.host.is_some() && self.host == path.host())
    }
}

/// How far a path is with its registration.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Membership {
    /// To be asked.
    Wanted,
    /// Asked; with the number of the attempt.
    Asked(u64),
    /// Registered; with the alarms of its device that were looked into.
    Registered(u64),
    /// Not to be had.
    Failed(String, Time),
}

/// A path that can be asked.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) id: PathId,
    pub(crate) name: Arc<str>,
    pub(crate) device: Arc<dyn Device>,
    /// It is this disk, as far as is known; or is it quarantined?
    pub(crate) fits: bool,
}

impl Candidate {
    fn alarms(&self) -> u64 {
        self.device.reservations().map_or(0, |power| power.alarms())
    }

    /// As [`polypath_block::Reservations::host`].
    fn host(&self) -> Option<[u8; 16]> {
        self.device.reservations()?.host()
    }

    /// Asks it. `take` is called once.
    fn ask(&self, op: ReservationOp, limit: Duration, take: impl FnOnce(ReservationResult) + Send + 'static) {
        match self.device.reservations() {
            Some(power) => power.start(op, limit, ReservationReply::new(take)),
            None => {
                let reason = format!("{} has no reservations", self.name);
                take(Err(ReservationError::new(Code::Unsupported, reason)));
            }
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May the path carry I/O, as far as reservations go? Asked under the lock of the group.
    pub(crate) fn admit(&self, id: PathId, now: Time) -> Result<(), String> {
        if !self.active.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.lock();
        let Some(key) = state.shown.key else { return Ok(()) };
        match state.paths.entry(id).or_insert(Membership::Wanted) {
            Membership::Registered(_) => return Ok(()),
            Membership::Failed(why, again) if now < *again => {
                return Err(format!("its reservation key could not be registered: {why}"));
            }
            failed @ Membership::Failed(..) => *failed = Membership::Wanted,
            Membership::Wanted | Membership::Asked(_) => {}
        }
        Err(format!("its reservation key {key:#x} is being registered"))
    }

    /// The device of a path was lost, or the path is no more: whoever comes back joins anew.
    pub(crate) fn leave(&self, id: PathId) {
        if self.active.load(Ordering::Acquire) {
            self.lock().paths.remove(&id);
        }
    }

    /// Is it time to look at the paths, whether they have changed or not? One load, unless something is claimed.
    pub(crate) fn is_due(&self, now: Time) -> bool {
        let active = self.active.load(Ordering::Relaxed);
        active && now.as_nanos() >= self.due.load(Ordering::Relaxed) && {
            self.due.store(now.after(AGAIN).as_nanos(), Ordering::Relaxed);
            true
        }
    }
}

impl GroupShared {
    /// Where reservations stand.
    pub(crate) fn reservation_state(&self) -> ReservationState {
        self.desk.lock().shown.clone()
    }

    /// As [`polypath_block::Reservations::alarms`].
    pub(crate) fn reservation_alarms(&self) -> u64 {
        self.desk.alarms.load(Ordering::Acquire)
    }

    /// Somebody wants `op`.
    pub(crate) fn start_reservation(&self, op: ReservationOp, limit: Duration, reply: ReservationReply) {
        let refused = |reply: ReservationReply, code, reason: String| {
            reply.answer(Err(ReservationError::new(code, reason)));
        };
        if self.is_closed() {
            return refused(reply, Code::Gone, format!("{} was closed", self.name));
        }
        let mut candidates = self.candidates();
        candidates.retain(|c| c.fits);
        if let Some(kind) = op.kind().filter(|kind| !kind.is_for_registrants())
            && (candidates.iter().any(|c| c.host().is_none() || c.host() != candidates[0].host()))
        {
            let reason = format!(
                "{kind}: that is granted to one host, or to one session alone, and the paths are several; expected {} or another type for registrants",
                ReservationType::WriteExclusiveRegistrantsOnly
            );
            return refused(reply, Code::Unsupported, reason);
        }
        {
            let mut state = self.desk.lock();
            if state.busy {
                let reason = format!("{}: another reservation command is under way; try again", self.name);
                drop(state);
                return refused(reply, Code::PathBusy, reason);
            }
            // What was reserved over a path is released there, and what is registered is asked before what is not.
            candidates.sort_by_key(|c| {
                let registered = matches!(state.paths.get(&c.id), Some(Membership::Registered(_)));
                let holds = state.holder.is_some_and(|holder| holder.is(c));
                (state.holder.is_none_or(|holder| holder.path != c.id), !holds, !registered)
            });
            state.busy = !candidates.is_empty();
        }
        match candidates.is_empty() {
            true => refused(reply, Code::NoPath, format!("{}: no path answers now", self.name)),
            false => Round::start(self.me.clone(), op, limit, candidates, reply),
        }
    }

    /// Asks paths that are to join, and looks into alarms. Never under a lock.
    pub(crate) fn drive_reservations(&self) {
        if !self.desk.active.load(Ordering::Acquire) {
            return;
        }
        let (candidates, now) = (self.candidates(), self.time());
        let (mut joins, mut reports, mut kept_out) = (Vec::new(), Vec::new(), false);
        {
            let mut state = self.desk.lock();
            let Some(key) = state.shown.key.filter(|_| !state.busy) else { return };
            // What is reserved for one alone is no use to the others.
            let alone = state.holder.filter(|_| state.shown.kind.is_some_and(|kind| !kind.is_for_registrants()));
            for candidate in candidates {
                if let Some(holder) = alone.filter(|holder| !holder.is(&candidate)) {
                    let why = format!("the disk is reserved for one host alone, over path {}", holder.path);
                    let before = state.paths.insert(candidate.id, Membership::Failed(why.clone(), now.after(AGAIN)));
                    kept_out |= !matches!(before, Some(Membership::Failed(w, _)) if w == why);
                    continue;
                }
                let alarms = candidate.alarms();
                let attempt = state.attempts + 1;
                let host = candidate.host().filter(|host| state.hosts.contains(host));
                match state.paths.entry(candidate.id).or_insert(Membership::Wanted) {
                    Membership::Registered(seen) if *seen != alarms => {
                        *seen = alarms;
                        reports.push((candidate, key));
                    }
                    Membership::Failed(_, again) if now < *again => {}
                    member @ (Membership::Wanted | Membership::Failed(..)) => {
                        *member = Membership::Asked(attempt);
                        state.attempts = attempt;
                        joins.push((candidate, key, host, attempt));
                    }
                    Membership::Registered(_) | Membership::Asked(_) => {}
                }
            }
        }
        if kept_out {
            self.look_again();
        }
        for (candidate, key, host, attempt) in joins {
            let (me, asked) = (self.me.clone(), candidate.clone());
            candidate.ask(ReservationOp::Join { key, host }, JOIN_LIMIT, move |result| {
                if let Some(group) = me.upgrade() {
                    group.joined(&asked, key, attempt, result);
                }
            });
        }
        for (candidate, key) in reports {
            let (me, name) = (self.me.clone(), candidate.name.clone());
            candidate.ask(ReservationOp::Report, JOIN_LIMIT, move |result| {
                if let (Some(group), Ok(Some(report))) = (me.upgrade(), result)
                    && !report.has(key)
                {
                    group.registration_ended(key, &format!("path {name}: nobody is registered with it any more"));
                }
            });
        }
    }

    fn joined(&self, path: &Candidate, key: u64, attempt: u64, result: ReservationResult) {
        {
            let mut guard = self.desk.lock();
            let state = &mut *guard;
            let claimed = state.shown.key == Some(key);
            let Some(member) = state.paths.get_mut(&path.id).filter(|m| claimed && **m == Membership::Asked(attempt))
            else {
                return;
            };
            match &result {
                Ok(_) => {
                    *member = Membership::Registered(path.alarms());
                    state.hosts.extend(path.host());
                }
                Err(error) => *member = Membership::Failed(error.reason.clone(), self.time().after(AGAIN)),
            }
        }
        match result {
            Ok(_) => tracing::info!(group = %self.name, path = %path.name, "path joined the registration of its group"),
            // Another disk has other keys. Where it is this one it is quarantined for what it lacks, which it may have once it has joined.
            Err(error) if error.code == Code::ReservationConflict && path.fits => {
                return self.registration_ended(key, &format!("path {}: {error}", path.name));
            }
            Err(error) => {
                tracing::warn!(group = %self.name, path = %path.name, reason = %error, "path carries nothing: its reservation key could not be registered");
            }
        }
        self.look_again();
    }

    /// Another host has ended our registration: nothing is claimed any more.
    fn registration_ended(&self, key: u64, why: &str) {
        {
            let mut state = self.desk.lock();
            if state.shown.key != Some(key) {
                return;
            }
            let why = format!("registration with key {key:#x} was ended by another host: {why}");
            state.shown = ReservationState { ended: Some(why), ..ReservationState::default() };
            (state.holder, state.paths) = (None, BTreeMap::new());
            state.hosts.clear();
        }
        tracing::error!(group = %self.name, key, why, "another host has ended the registration of this disk: writes may meet its reservation, and nothing is registered again until somebody asks for it");
        self.desk.active.store(false, Ordering::Release);
        self.desk.alarms.fetch_add(1, Ordering::AcqRel);
        self.version.fetch_add(1, Ordering::AcqRel);
        self.forget_everywhere();
        let at = self.time();
        self.lock().publish(at, None, EventKind::RegistrationEnded { why: why.to_owned() });
        self.look_again();
    }

    /// Nothing is claimed any more, because we say so.
    pub(crate) fn forget_reservations(&self) {
        {
            let mut state = self.desk.lock();
            state.shown = ReservationState::default();
            (state.holder, state.paths) = (None, BTreeMap::new());
            state.hosts.clear();
        }
        self.desk.active.store(false, Ordering::Release);
        self.forget_everywhere();
        self.look_again();
    }

    /// `key` is registered on these paths: the others are to join before they carry anything more.
    fn claim(&self, key: u64, registered: &[Candidate]) {
        {
            let mut state = self.desk.lock();
            state.shown = ReservationState { key: Some(key), ..ReservationState::default() };
            state.holder = None;
            state.hosts = registered.iter().filter_map(Candidate::host).collect();
            state.paths = registered.iter().map(|c| (c.id, Membership::Registered(c.alarms()))).collect();
        }
        self.desk.active.store(true, Ordering::Release);
        let mut control = self.lock();
        control.look_at_all();
        self.review_changed(&mut control);
    }

    fn forget_everywhere(&self) {
        let all: Vec<_> = self.lock().paths.iter().map(|p| p.shared.device.clone()).collect();
        all.iter().filter_map(|device| device.reservations()).for_each(|power| power.forget());
    }

    fn look_again(&self) {
        let mut control = self.lock();
        control.look_again();
        self.review_changed(&mut control);
    }

    /// Paths whose device answers.
    fn candidates(&self) -> Vec<Candidate> {
        let control = self.lock();
        let answering = control.paths.iter().filter(|p| p.can_be_asked());
        let candidate = |p: &crate::path::PathRecord| Candidate {
            id: p.shared.id,
            name: p.shared.name.clone(),
            device: p.shared.device.clone(),
            fits: p.state != PathState::Quarantined,
        };
        answering.map(candidate).collect()
    }
}
