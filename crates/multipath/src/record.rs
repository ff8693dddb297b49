//! What the control plane keeps for each path, and the changes it makes to it. Always under the lock of the group.

use crate::config::{MatchPolicy, PathConfig, PathId, SelectorKind};
use crate::dirty::{Domains, MAX_DOMAINS};
use crate::event::{Event, EventKind, Subscribers};
use crate::membership::{self, Promise};
use crate::state::{PathEvent, PathState};
use crate::stats::{Counters, PathStatistics, Totals};
use polypath_block::{
    Access, CacheDomain, Code, Device, DeviceInfo, DeviceState, Geometry, Host, Identity, Limits, Time, Verdict,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// No version of the device is admitted.
const NONE: u64 = u64::MAX;

/// The part of a path that every reactor sees.
pub(crate) struct Shared {
    pub(crate) id: PathId,
    pub(crate) name: Arc<str>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) weight: AtomicU32,
    /// The version of the device that was verified and may carry I/O. A queue compares it before each submission, so that
    /// nothing goes to a device that changed and was not looked at again.
    admitted: AtomicU64,
}

impl Shared {
    pub(crate) fn new(id: PathId, path: PathConfig) -> Self {
        Shared {
            id,
            name: path.name.into(),
            device: path.device,
            weight: AtomicU32::new(path.weight),
            admitted: AtomicU64::new(NONE),
        }
    }

    pub(crate) fn admit(&self, version: Option<u64>) {
        self.admitted.store(version.unwrap_or(NONE), Ordering::Release);
    }

    /// Is the device as it was verified, and as whoever asks has it (`seen`)?
    pub(crate) fn is_admitted(&self, seen: u64) -> bool {
        let version = self.device.version();
        version == seen && version == self.admitted.load(Ordering::Acquire)
    }
}

/// What queues are to do with a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stand {
    /// Use it, if its access allows; open a queue if there is none.
    Carry,
    /// Keep the queue there is, open none.
    Pause,
    /// Close the queue, drain, let go.
    Leave {
        /// Removed by request: flush its cache first if nobody else leads there.
        removal: bool,
    },
}

/// A path as a queue takes it along.
pub(crate) struct View {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stand: Stand,
    pub(crate) info: Option<Arc<DeviceInfo>>,
    pub(crate) domain: Option<u8>,
    /// Version of the device that the verdict is about.
    pub(crate) reviewed: u64,
}

pub(crate) struct PathRecord {
    pub(crate) shared: Arc<Shared>,
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
    info: Option<Arc<DeviceInfo>>,
    identity: Option<Identity>,
    verified: bool,
    gone: bool,
    /// Its group was closed: its end is no incident.
    pub(crate) closing: bool,
    ever_up: bool,
    domain: Option<u8>,
    failures: u64,
    recoveries: u64,
}

impl PathRecord {
    pub(crate) fn new(shared: Arc<Shared>, now: Time) -> Self {
        PathRecord {
            shared,
            state: PathState::Connecting,
            since: now,
            cause: None,
            why: "has not answered yet".into(),
            reviewed: NONE,
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
            ever_up: false,
            domain: None,
            failures: 0,
            recoveries: 0,
        }
    }

    pub(crate) fn stand(&self) -> Stand {
        match self.state {
            PathState::Removing | PathState::Removed => Stand::Leave { removal: true },
            PathState::Quarantined => Stand::Leave { removal: false },
            _ if self.gone => Stand::Leave { removal: false },
            _ if self.verified => Stand::Carry,
            _ => Stand::Pause,
        }
    }

    pub(crate) fn view(&self) -> View {
        View {
            shared: self.shared.clone(),
            stand: self.stand(),
            info: self.info.clone(),
            domain: self.domain,
            reviewed: self.reviewed,
        }
    }

    /// A path has changed its state: counts it, logs it, and says what to tell.
    fn announce(&mut self, group: &str, old: PathState, why: &str) -> Option<EventKind> {
        let path = &*self.shared.name;
        Some(match self.state {
            PathState::Usable if old == PathState::Stalled => {
                tracing::info!(group, path, "path speaks again");
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
                tracing::info!(group, path, "path removed: every reactor has let go of it");
                EventKind::PathRemoved
            }
            PathState::Removing | PathState::Connecting => {
                tracing::info!(group, path, "path is being removed: draining");
                return None;
            }
        })
    }

    pub(crate) fn statistics(&self) -> PathStatistics {
        let totals = Totals::of(self);
        PathStatistics {
            id: self.shared.id,
            name: self.shared.name.to_string(),
            state: self.state,
            access: self.info.as_ref().map(|i| i.access),
            weight: self.shared.weight.load(Ordering::Relaxed),
            ios: totals.ios,
            bytes: totals.bytes,
            errors: totals.errors,
            redriven: totals.redriven,
            in_flight: totals.in_flight,
            suspects: totals.suspects,
            failures: self.failures,
            recoveries: self.recoveries,
            latency: totals.latency(),
            cause: self.cause,
            why: self.why.clone(),
            since: self.since,
        }
    }
}

/// Everything under the lock.
pub(crate) struct Control {
    pub(crate) name: Arc<str>,
    pub(crate) paths: Vec<PathRecord>,
    pub(crate) next_id: u32,
    pub(crate) selector: SelectorKind,
    pub(crate) info: Option<Arc<DeviceInfo>>,
    pub(crate) subscribers: Subscribers,
    pub(crate) hosts: Vec<Arc<dyn Host>>,
    matching: MatchPolicy,
    stated_limits: Option<Limits>,
    promise: Option<Promise>,
    domain_names: Vec<CacheDomain>,
}

impl Control {
    pub(crate) fn new(
        name: Arc<str>,
        selector: SelectorKind,
        matching: MatchPolicy,
        stated_limits: Option<Limits>,
    ) -> Self {
        Control {
            name,
            paths: Vec::new(),
            next_id: 0,
            selector,
            info: None,
            subscribers: Subscribers::default(),
            hosts: Vec::new(),
            matching,
            stated_limits,
            promise: None,
            domain_names: Vec::new(),
        }
    }

    pub(crate) fn find(&self, id: PathId) -> Option<usize> {
        self.paths.iter().position(|p| p.shared.id == id)
    }

    pub(crate) fn freeze(&mut self) {
        if let Some(promise) = &mut self.promise {
            promise.frozen = true;
        }
    }

    pub(crate) fn tell(&mut self, at: Time, path: Option<usize>, kind: EventKind) {
        let path = path.map(|i| (self.paths[i].shared.id, self.paths[i].shared.name.clone()));
        self.subscribers.tell(&Event { at, path, kind });
    }

    /// Asks the device of a path where it stands, and draws the conclusions.
    pub(crate) fn review(&mut self, at: usize, now: Time, domains: &Domains) {
        let device = self.paths[at].shared.device.clone();
        // The version first: if the state is newer than it, the next look finds out.
        self.paths[at].reviewed = device.version();
        if self.paths[at].state == PathState::Removing {
            return;
        }
        match device.state() {
            DeviceState::Starting => {
                self.disown(at);
                if self.paths[at].state != PathState::Connecting {
                    self.step(at, PathEvent::Lost, now, Some(Code::PathLost), "its device starts again");
                }
            }
            DeviceState::Live(info) => self.verify(at, info, now, domains),
            DeviceState::Down { cause, reason } => {
                self.disown(at);
                self.step(at, PathEvent::Lost, now, Some(cause), &reason);
            }
            DeviceState::Gone { reason } => {
                self.disown(at);
                self.step(at, PathEvent::Lost, now, Some(Code::Gone), &reason);
                if !self.paths[at].gone {
                    self.paths[at].gone = true;
                    self.leave_domain(at, now, domains);
                }
            }
        }
    }

    /// Moves a path by the table, with what belongs to it: log, event, numbers.
    pub(crate) fn step(&mut self, at: usize, event: PathEvent, now: Time, cause: Option<Code>, why: &str) {
        let group = self.name.clone();
        let record = &mut self.paths[at];
        let old = record.state;
        let new = match old.on(event) {
            Ok(new) => new,
            Err(illegal) => {
                debug_assert!(false, "{illegal}");
                tracing::error!(%group, path = %record.shared.name, %illegal, "event ignored");
                return;
            }
        };
        if cause.is_some() {
            record.cause = cause;
        }
        let same_quarantine = new == PathState::Quarantined && record.why == why;
        if new == old && (new != PathState::Quarantined || same_quarantine || event == PathEvent::Lost) {
            return;
        }
        (record.state, record.since, record.why) = (new, now, why.to_owned());
        if let Some(kind) = record.announce(&group, old, why) {
            self.tell(now, Some(at), kind);
        }
    }

    /// Brings the state in line with what queues reported.
    pub(crate) fn settle(&mut self, at: usize, now: Time) {
        let record = &self.paths[at];
        let (lost, stalled, verified) = (record.queues_lost > 0, record.queues_stalled > 0, record.verified);
        if record.state == PathState::Down && verified && !lost {
            self.step(at, PathEvent::Admitted, now, None, "its queues are ready again");
        }
        match self.paths[at].state {
            PathState::Usable if stalled => self.step(at, PathEvent::Stalled, now, None, "silent"),
            PathState::Stalled if !stalled => self.step(at, PathEvent::Resumed, now, None, "it speaks again"),
            _ => {}
        }
    }

    /// Every queue has let go of a path that was to be removed.
    pub(crate) fn finish_removal(&mut self, at: usize, now: Time, domains: &Domains) {
        self.step(at, PathEvent::Drained, now, None, "drained");
        if !self.paths[at].gone {
            self.leave_domain(at, now, domains);
        }
        let record = self.paths.remove(at);
        record.shared.device.close();
        // It may have been what spoke against others.
        self.paths.iter_mut().filter(|p| p.state == PathState::Quarantined).for_each(|p| p.reviewed = NONE);
    }

    /// Computes what the group shows. True when it differs from before.
    pub(crate) fn compute_info(&mut self, now: Time) -> bool {
        self.grow(now);
        let Some(promise) = &self.promise else { return false };
        let live = || self.paths.iter().filter(|p| p.verified).filter_map(|p| p.info.as_ref());
        let mut domains: Vec<_> = live().map(|i| &i.identity.cache_domain).collect();
        domains.sort_unstable();
        domains.dedup();
        let mut identity = promise.identity.clone();
        if let [one] = domains[..] {
            identity.cache_domain = one.clone();
        } else if domains.len() > 1 {
            identity.cache_domain = CacheDomain(format!("multipath:{}", self.name));
        }
        let info = DeviceInfo {
            geometry: promise.geometry,
            limits: promise.limits,
            identity,
            access: live().map(|i| i.access).min().unwrap_or(Access::Inaccessible),
            max_queues: live().map(|i| i.max_queues).min().unwrap_or(u16::MAX),
            max_depth: crate::config::MAX_DEPTH,
        };
        if self.info.as_deref() == Some(&info) {
            return false;
        }
        self.info = Some(Arc::new(info));
        true
    }

    fn disown(&mut self, at: usize) {
        self.paths[at].verified = false;
        self.paths[at].shared.admit(None);
    }

    fn verify(&mut self, at: usize, info: Arc<DeviceInfo>, now: Time, domains: &Domains) {
        let record = &self.paths[at];
        let verdict = membership::admit(&self.matching, self.promise.as_ref(), record.identity.as_ref(), &info)
            .and_then(|()| self.nobody_differs(at, &info.identity));
        if let Err(why) = verdict {
            self.disown(at);
            self.step(at, PathEvent::Refused, now, None, &why);
            return;
        }
        self.promise_what_it_keeps(&info);
        let record = &mut self.paths[at];
        let access_before = record.info.as_ref().map(|i| i.access);
        record.identity = Some(membership::remember(record.identity.as_ref(), &info.identity));
        record.info = Some(info.clone());
        record.verified = true;
        self.join_domain(at, &info, now, domains);
        let record = &self.paths[at];
        // Last, because from here on queues use it.
        record.shared.admit(Some(record.reviewed));
        let lost = record.queues_lost > 0;
        if !lost || record.state != PathState::Down {
            let why = format!("verified as {:?}", info.identity.identifiers);
            self.step(at, PathEvent::Admitted, now, None, &why);
        }
        if access_before.is_some_and(|a| a != info.access) {
            let path = self.paths[at].shared.name.clone();
            tracing::info!(group = %self.name, %path, access = ?info.access, "access changed");
            self.tell(now, Some(at), EventKind::AccessChanged { access: info.access });
        }
    }

    /// Paths may agree with the first one, or have nothing comparable, and still differ from each other.
    fn nobody_differs(&self, at: usize, shown: &Identity) -> Result<(), String> {
        let differs = |p: &PathRecord| p.identity.as_ref().is_some_and(|i| i.compare(shown) == Verdict::Different);
        match self.paths.iter().enumerate().find(|(i, p)| *i != at && differs(p)) {
            None => Ok(()),
            Some((_, other)) => Err(format!(
                "it is another disk than the one behind path {}: it shows {:?}, that one {:?}; remove the wrong one",
                other.shared.name,
                shown.identifiers,
                other.identity.as_ref().map_or(&[][..], |i| &i.identifiers),
            )),
        }
    }

    /// The first path founds the group; before anyone relies on the limits, later ones narrow them.
    fn promise_what_it_keeps(&mut self, info: &DeviceInfo) {
        match &mut self.promise {
            Some(promise) if !promise.frozen => promise.limits = promise.limits.meet(info.limits),
            Some(_) => {}
            None => {
                let limits = self.stated_limits.map_or(info.limits, |l| l.meet(info.limits));
                tracing::info!(
                    group = %self.name, identity = ?info.identity.identifiers, blocks = info.geometry.blocks,
                    block_size = info.geometry.block_size, "disk founded"
                );
                self.promise =
                    Some(Promise { identity: info.identity.clone(), geometry: info.geometry, limits, frozen: false });
            }
        }
    }

    fn grow(&mut self, now: Time) {
        let least = self.paths.iter().filter(|p| p.verified).filter_map(|p| p.info.as_ref()).map(|i| i.geometry.blocks);
        let (Some(least), Some(promise)) = (least.min(), &mut self.promise) else { return };
        if least > promise.geometry.blocks {
            promise.geometry = Geometry { blocks: least, ..promise.geometry };
            tracing::info!(group = %self.name, blocks = least, "disk grew");
            self.tell(now, None, EventKind::Grown { blocks: least });
        }
    }

    fn join_domain(&mut self, at: usize, info: &DeviceInfo, now: Time, domains: &Domains) {
        let shown = &info.identity.cache_domain;
        // A path that names no domain is one of its own: nothing else may be assumed.
        let name = if shown.0.is_empty() {
            CacheDomain(format!("path:{}", self.paths[at].shared.id.0))
        } else {
            shown.clone()
        };
        let known = self.domain_names.iter().position(|d| *d == name);
        if known.is_some_and(|d| self.paths[at].domain == Some(d as u8)) {
            return;
        }
        self.leave_domain(at, now, domains);
        let index = known.unwrap_or_else(|| {
            let unused = (0..self.domain_names.len()).find(|&d| domains.get(d as u8).members() == 0);
            match unused {
                Some(d) if self.domain_names.len() >= MAX_DOMAINS => {
                    self.domain_names[d] = name;
                    d
                }
                _ => {
                    self.domain_names.push(name);
                    self.domain_names.len() - 1
                }
            }
        });
        domains.join(index as u8, info.limits.write_cache);
        self.paths[at].domain = Some(index as u8);
    }

    fn leave_domain(&mut self, at: usize, now: Time, domains: &Domains) {
        let Some(index) = self.paths[at].domain.take() else { return };
        if domains.leave(index) && !self.paths[at].closing {
            let domain = self.domain_names[usize::from(index)].0.clone();
            tracing::error!(
                group = %self.name, domain,
                "the last path of a dirty write cache is gone: the next flush fails once"
            );
            self.tell(now, None, EventKind::CacheLost { domain });
        }
    }
}
