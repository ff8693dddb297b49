//! What the control plane keeps for each path, and what it hands to the queues of it.

use crate::config::{PathConfig, PathId};
use crate::event::EventKind;
use crate::selector::preference;
use crate::state::PathState;
use crate::stats::{Counters, PathStatistics, Totals};
use polypath_block::{Code, Device, DeviceInfo, Identity, Time};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// No version of the device is admitted.
pub(crate) const NO_VERSION: u64 = u64::MAX;

/// The part of a path that every reactor sees.
pub(crate) struct PathShared {
    pub(crate) id: PathId,
    pub(crate) name: Arc<str>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) weight: AtomicU32,
    /// Marked as preferred by the operator.
    pub(crate) preferred: AtomicBool,
    /// The version of the device that was verified and may carry I/O. A queue compares it before each submission, so that
    /// nothing goes to a device that changed and was not looked at again.
    admitted: AtomicU64,
}

impl PathShared {
    pub(crate) fn new(id: PathId, path: PathConfig) -> Self {
        PathShared {
            id,
            name: path.name.into(),
            device: path.device,
            weight: AtomicU32::new(path.weight),
            preferred: AtomicBool::new(path.preferred),
            admitted: AtomicU64::new(NO_VERSION),
        }
    }

    /// How much it is preferred to others, by whomever.
    pub(crate) fn preference(&self) -> u8 {
        preference(self.preferred.load(Ordering::Relaxed), self.device.is_preferred())
    }

    pub(crate) fn admit(&self, version: Option<u64>) {
        self.admitted.store(version.unwrap_or(NO_VERSION), Ordering::Release);
    }

    /// Is the device as it was verified, and as whoever asks has it (`seen`)?
    pub(crate) fn is_admitted(&self, seen: u64) -> bool {
        let version = self.device.version();
        version == seen && version == self.admitted.load(Ordering::Acquire)
    }
}

/// What queues are to do with a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PathUse {
    /// Send I/O on it, if its access allows; open a queue if there is none.
    Use,
    /// Keep the queue there is and open none; send nothing.
    Keep,
    /// Close the queue, drain, drop it.
    Release {
        /// Removed by request: flush its cache first if that is dirty.
        removal: bool,
    },
}

/// What a queue has reported of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct QueueTrouble {
    pub(crate) lost: bool,
    pub(crate) stalled: bool,
}

/// A path as a queue takes it along.
pub(crate) struct PathView {
    pub(crate) shared: Arc<PathShared>,
    pub(crate) usage: PathUse,
    pub(crate) info: Option<Arc<DeviceInfo>>,
    /// Number of the cache it leads to.
    pub(crate) cache: Option<u8>,
    /// Version of the device that the verdict is about.
    pub(crate) reviewed: u64,
    /// The verdict: it is this disk, and its cache is the one that it was.
    pub(crate) verified: bool,
}

pub(crate) struct PathRecord {
    pub(crate) shared: Arc<PathShared>,
    pub(crate) state: PathState,
    pub(crate) since: Time,
    pub(crate) cause: Option<Code>,
    pub(crate) why: String,
    pub(crate) reviewed: u64,
    pub(crate) holders: u32,
    pub(crate) queues_lost: u32,
    pub(crate) queues_stalled: u32,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) retired: Totals,
    pub(crate) info: Option<Arc<DeviceInfo>>,
    pub(crate) identity: Option<Identity>,
    pub(crate) verified: bool,
    pub(crate) gone: bool,
    /// Its group was closed: its end is no incident.
    pub(crate) closing: bool,
    /// Number of the cache it leads to.
    pub(crate) cache: Option<u8>,
    /// How often its device has heard that this cache lost its power, and up to which loss of the cache that comes.
    pub(crate) losses_heard: u64,
    pub(crate) losses_followed: u64,
    /// The place of the cache that it led to last.
    pub(crate) place: Option<Box<str>>,
    /// It shows another disk: whoever answers at that place is in doubt.
    pub(crate) doubts: bool,
    /// The ledger has not let it in: it is asked again when it has news.
    pub(crate) unwritten: bool,
    /// It is down because a queue was lost, and its device has not said why.
    unexplained: bool,
    ever_up: bool,
    failures: u64,
    recoveries: u64,
}

impl PathRecord {
    pub(crate) fn new(shared: Arc<PathShared>, now: Time) -> Self {
        PathRecord {
            shared,
            state: PathState::Connecting,
            since: now,
            cause: None,
            why: "has not answered yet".into(),
            reviewed: NO_VERSION,
            holders: 0,
            queues_lost: 0,
            queues_stalled: 0,
            counters: Vec::new(),
            retired: Totals::default(),
            info: None,
            identity: None,
            verified: false,
            gone: false,
            closing: false,
            cache: None,
            losses_heard: 0,
            losses_followed: 0,
            place: None,
            doubts: false,
            unwritten: false,
            unexplained: false,
            ever_up: false,
            failures: 0,
            recoveries: 0,
        }
    }

    pub(crate) fn usage(&self) -> PathUse {
        match self.state {
            PathState::Removing | PathState::Removed => PathUse::Release { removal: true },
            PathState::Quarantined => PathUse::Release { removal: false },
            _ if self.gone => PathUse::Release { removal: false },
            _ if self.verified => PathUse::Use,
            _ => PathUse::Keep,
        }
    }

    /// Does its device answer, so that it can be asked to join? It may be another disk than it should.
    pub(crate) fn can_be_asked(&self) -> bool {
        let out = matches!(self.state, PathState::Removing | PathState::Removed);
        !out && !self.closing && self.shared.device.state().info().is_some()
    }

    /// Does it take I/O now?
    pub(crate) fn is_usable(&self) -> bool {
        let answers = matches!(self.state, PathState::Usable | PathState::Stalled);
        answers && self.verified && self.info.as_ref().is_some_and(|info| info.access.usable())
    }

    pub(crate) fn view(&self) -> PathView {
        PathView {
            shared: self.shared.clone(),
            usage: self.usage(),
            info: self.info.clone(),
            cache: self.cache,
            reviewed: self.reviewed,
            verified: self.verified,
        }
    }

    /// Moves to `state`: counts it, logs it, and says what to publish.
    pub(crate) fn enter(&mut self, group: &str, state: PathState, now: Time, why: &str) -> Option<EventKind> {
        let old = core::mem::replace(&mut self.state, state);
        (self.since, self.why, self.unexplained) = (now, why.to_owned(), false);
        self.announce(group, old, why)
    }

    /// It went down because a queue was lost: its device may say more in a moment.
    pub(crate) fn set_unexplained(&mut self) {
        self.unexplained = self.state == PathState::Down;
    }

    /// Its device says why it is down. True when that is news.
    pub(crate) fn explain(&mut self, group: &str, cause: Code, why: &str) -> bool {
        let news = self.state == PathState::Down && self.unexplained;
        if news {
            (self.cause, self.why, self.unexplained) = (Some(cause), why.to_owned(), false);
            if !self.closing {
                tracing::warn!(group, path = &*self.shared.name, ?cause, "path left: {why}");
            }
        }
        news
    }

    /// Adds a queue's report up with those of the others.
    pub(crate) fn count_trouble(&mut self, old: QueueTrouble, new: QueueTrouble) {
        let moved = |n: u32, old: bool, new: bool| (n + u32::from(new)).saturating_sub(u32::from(old));
        self.queues_lost = moved(self.queues_lost, old.lost, new.lost);
        self.queues_stalled = moved(self.queues_stalled, old.stalled, new.stalled);
    }

    fn announce(&mut self, group: &str, old: PathState, why: &str) -> Option<EventKind> {
        let path = &*self.shared.name;
        Some(match self.state {
            PathState::Usable if old == PathState::Stalled => {
                tracing::info!(group, path, "path answers again");
                EventKind::PathResumed
            }
            PathState::Usable => {
                let recovered = core::mem::replace(&mut self.ever_up, true);
                self.recoveries += u64::from(recovered);
                tracing::info!(group, path, recovered, "path taken into use: {why}");
                EventKind::PathUp { recovered }
            }
            PathState::Stalled => {
                tracing::warn!(
                    group,
                    path,
                    "path is silent with requests outstanding: used only when nothing better is left"
                );
                EventKind::PathStalled
            }
            PathState::Down if self.closing => {
                tracing::debug!(group, path, "path closed with its group");
                return None;
            }
            PathState::Down => {
                self.failures += u64::from(self.ever_up);
                let cause = self.cause.unwrap_or(Code::PathLost);
                tracing::warn!(group, path, ?cause, "path left: {why}");
                EventKind::PathDown { cause, why: why.to_owned() }
            }
            PathState::Quarantined => {
                self.failures += u64::from(matches!(old, PathState::Usable | PathState::Stalled));
                self.cause = Some(Code::PathIdentity);
                tracing::error!(group, path, "path quarantined: {why}");
                EventKind::Quarantined { why: why.to_owned() }
            }
            PathState::Removed => {
                tracing::info!(group, path, "path removed: every reactor has released it");
                EventKind::PathRemoved
            }
            PathState::Removing | PathState::Connecting => {
                tracing::info!(group, path, "path is being removed: draining");
                return None;
            }
        })
    }

    pub(crate) fn statistics(&self) -> PathStatistics {
        let totals = self.totals();
        PathStatistics {
            id: self.shared.id,
            name: self.shared.name.to_string(),
            state: self.state,
            access: self.info.as_ref().map(|i| i.access),
            weight: self.shared.weight.load(Ordering::Relaxed),
            preferred: self.shared.preferred.load(Ordering::Relaxed),
            ios: totals.ios,
            bytes: totals.bytes,
            errors: totals.errors,
            redriven: totals.redriven,
            in_flight: totals.in_flight,
            suspects: totals.suspects,
            suspected: totals.suspected,
            failures: self.failures,
            recoveries: self.recoveries,
            latency: totals.latency(),
            cause: self.cause,
            why: self.why.clone(),
            since: self.since,
        }
    }

    /// Requests on it whose way broke and that wait for their fence.
    pub(crate) fn suspects(&self) -> u64 {
        self.totals().suspects
    }

    fn totals(&self) -> Totals {
        let mut totals = self.retired;
        self.counters.iter().for_each(|c| totals.add(c));
        totals
    }
}
