//! Everything under the lock of a group: its paths, what it shows, and the conclusions drawn from what devices and queues say.

use crate::cache::{Caches, MAX_CACHES};
use crate::config::{Entry, GroupConfig, Ledger, MatchPolicy, PathConfig, PathId, SelectorKind};
use crate::event::{Event, EventKind, Subscribers};
use crate::membership::{self, Exported};
use crate::outage::{Outage, Tell};
use crate::path::{NO_VERSION, PathRecord, PathShared, QueueTrouble};
use crate::reservations::Desk;
use crate::state::{PathEvent, PathState};
use polypath_block::{
    Access, CacheDomain, Code, DeviceInfo, DeviceState, Geometry, Host, Identity, Limits, Time, Verdict,
};
use std::sync::Arc;

/// Everything under the lock.
pub(crate) struct Control {
    pub(crate) name: Arc<str>,
    pub(crate) paths: Vec<PathRecord>,
    next_id: u32,
    pub(crate) selector: SelectorKind,
    pub(crate) info: Option<Arc<DeviceInfo>>,
    pub(crate) subscribers: Subscribers,
    pub(crate) hosts: Vec<Arc<dyn Host>>,
    matching: MatchPolicy,
    stated_limits: Option<Limits>,
    ledger: Option<Arc<dyn Ledger>>,
    exported: Option<Exported>,
    /// Names of the caches, by their numbers.
    cache_names: Vec<CacheDomain>,
    /// How often each of them has lost its power, as paths have heard of which the name does not tell.
    power_losses: Vec<u64>,
    /// Caches in doubt, as bits of their numbers.
    doubted: u64,
    outage: Arc<Outage>,
    desk: Arc<Desk>,
    no_path_timeout_ms: u64,
}

impl Control {
    pub(crate) fn new(name: Arc<str>, config: &GroupConfig, outage: Arc<Outage>, desk: Arc<Desk>) -> Self {
        Control {
            name,
            paths: Vec::new(),
            next_id: 0,
            selector: config.selector,
            info: None,
            subscribers: Subscribers::default(),
            hosts: Vec::new(),
            matching: config.matching.clone(),
            stated_limits: config.limits,
            ledger: config.ledger.clone(),
            exported: None,
            cache_names: Vec::new(),
            power_losses: Vec::new(),
            doubted: 0,
            outage,
            desk,
            no_path_timeout_ms: config.no_path_timeout_ms,
        }
    }

    pub(crate) fn find(&self, id: PathId) -> Option<usize> {
        self.paths.iter().position(|p| p.shared.id == id)
    }

    /// The state of the group before its first path was verified.
    pub(crate) fn state_without_info(&self) -> DeviceState {
        let quarantined = self.paths.iter().find(|p| p.state == PathState::Quarantined);
        match quarantined {
            Some(p) if self.paths.iter().all(|p| p.state == PathState::Quarantined) => DeviceState::Down {
                cause: Code::PathIdentity,
                reason: format!("every path is quarantined; {}: {}", p.shared.name, p.why),
            },
            _ => DeviceState::Starting,
        }
    }

    pub(crate) fn freeze(&mut self) {
        if let Some(exported) = &mut self.exported {
            exported.frozen = true;
        }
    }

    pub(crate) fn publish(&mut self, at: Time, path: Option<usize>, kind: EventKind) {
        let path = path.map(|i| (self.paths[i].shared.id, self.paths[i].shared.name.clone()));
        self.subscribers.publish(&Event { at, path, kind });
    }

    /// A new path, in its place among the others.
    pub(crate) fn add(&mut self, path: PathConfig, now: Time, caches: &Caches) -> PathId {
        let id = PathId(self.next_id);
        self.next_id += 1;
        self.paths.push(PathRecord::new(Arc::new(PathShared::new(id, path)), now));
        let at = self.paths.len() - 1;
        self.publish(now, Some(at), EventKind::PathAdded);
        tracing::info!(group = %self.name, path = %self.paths[at].shared.name, "path added");
        self.review(at, now, caches);
        id
    }

    /// Looks at every path whose device has changed. True when there was one.
    pub(crate) fn review_changed(&mut self, now: Time, caches: &Caches) -> bool {
        let mut any = false;
        for at in 0..self.paths.len() {
            if self.paths[at].shared.device.version() != self.paths[at].reviewed {
                self.review(at, now, caches);
                any = true;
            }
        }
        if any {
            self.ask_for_access();
        }
        any
    }

    /// Asks the device of a path for its state, and draws the conclusions.
    pub(crate) fn review(&mut self, at: usize, now: Time, caches: &Caches) {
        let device = self.paths[at].shared.device.clone();
        // The version first: if the state is newer than it, the next look finds out.
        self.paths[at].reviewed = device.version();
        self.paths[at].unwritten = false;
        let state = device.state();
        if state.info().is_none() {
            self.desk.leave(self.paths[at].shared.id);
        }
        self.hear(at, &state, now, caches);
        if self.paths[at].state == PathState::Removing {
            self.paths[at].verified = state.info().is_some_and(|info| self.is_unchanged(at, info));
            return;
        }
        match state {
            DeviceState::Starting => {
                self.revoke(at);
                if self.paths[at].state != PathState::Connecting {
                    self.device_lost(at, Code::PathLost, "its device starts again", now);
                }
            }
            DeviceState::Live(info) => self.verify(at, info, now, caches),
            DeviceState::Down { cause, reason } => {
                self.revoke(at);
                self.device_lost(at, cause, &reason, now);
            }
            DeviceState::Gone { reason } => {
                self.revoke(at);
                self.device_lost(at, Code::Gone, &reason, now);
                if !self.paths[at].gone {
                    self.paths[at].gone = true;
                    self.leave_cache(at, now, caches);
                }
            }
        }
    }

    /// A path is to be removed: it carries nothing new from here on.
    pub(crate) fn begin_removal(&mut self, at: usize, now: Time, caches: &Caches) {
        self.step(at, PathEvent::Remove, now, None, "removed by request");
        self.paths[at].shared.admit(None);
        if self.paths[at].holders == 0 {
            self.finish_removal(at, now, caches);
        }
    }

    /// Every queue has released a path that was to be removed.
    pub(crate) fn finish_removal(&mut self, at: usize, now: Time, caches: &Caches) {
        self.step(at, PathEvent::Drained, now, None, "drained");
        if !self.paths[at].gone {
            self.leave_cache(at, now, caches);
        }
        let record = self.paths.remove(at);
        self.desk.leave(record.shared.id);
        record.shared.device.close();
        self.count_usable(now);
        // It may have been what spoke against others.
        self.paths.iter_mut().filter(|p| p.state == PathState::Quarantined).for_each(|p| p.reviewed = NO_VERSION);
    }

    /// A queue of a path went down or came back, or began or ended to stall. The devices were reviewed just before: they know
    /// better than a queue why a path is lost.
    pub(crate) fn queue_trouble(&mut self, at: usize, old: QueueTrouble, new: QueueTrouble, cause: Code, now: Time) {
        self.paths[at].count_trouble(old, new);
        let down = self.paths[at].state == PathState::Down;
        if new.lost && !old.lost && !down {
            self.step(at, PathEvent::Lost, now, Some(cause), "its queue was lost on a reactor");
            self.paths[at].set_unexplained();
        }
        self.follow_queues(at, now);
    }

    /// Brings the state in line with what queues reported.
    pub(crate) fn follow_queues(&mut self, at: usize, now: Time) {
        let record = &self.paths[at];
        let (lost, stalled, verified) = (record.queues_lost > 0, record.queues_stalled > 0, record.verified);
        if record.state == PathState::Down && verified && !lost {
            self.step(at, PathEvent::Admitted, now, None, "its queues are ready again");
        }
        match self.paths[at].state {
            PathState::Usable if stalled => self.step(at, PathEvent::Stalled, now, None, "silent"),
            PathState::Stalled if !stalled => self.step(at, PathEvent::Resumed, now, None, "it answers again"),
            _ => {}
        }
    }

    /// Computes what the group shows. True when it differs from before.
    pub(crate) fn compute_info(&mut self, now: Time) -> bool {
        self.grow(now);
        let Some(exported) = &self.exported else { return false };
        let live = || self.paths.iter().filter(|p| p.verified).filter_map(|p| p.info.as_ref());
        let mut domains: Vec<_> = live().map(|i| &i.identity.cache_domain).collect();
        domains.sort_unstable();
        domains.dedup();
        let mut identity = exported.identity.clone();
        match domains[..] {
            [] => {}
            [one] => identity.cache_domain = one.clone(),
            _ => identity.cache_domain = CacheDomain(format!("multipath:{}", self.name)),
        }
        let info = DeviceInfo {
            geometry: exported.geometry,
            limits: exported.limits,
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

    fn device_lost(&mut self, at: usize, cause: Code, reason: &str, now: Time) {
        let group = self.name.clone();
        if !self.paths[at].explain(&group, cause, reason) {
            self.step(at, PathEvent::Lost, now, Some(cause), reason);
        }
    }

    /// Moves a path by the table, with what belongs to it: log, event, numbers.
    fn step(&mut self, at: usize, event: PathEvent, now: Time, cause: Option<Code>, why: &str) {
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
        let same_quarantine = new == PathState::Quarantined && record.why == why;
        if new == old && (new != PathState::Quarantined || same_quarantine || event == PathEvent::Lost) {
            return;
        }
        if cause.is_some() {
            record.cause = cause;
        }
        if let Some(kind) = record.enter(&group, new, now, why) {
            self.publish(now, Some(at), kind);
        }
        self.count_usable(now);
    }

    /// Is there a path that takes I/O? Whoever waits is told when there is none any more, and the other way round.
    fn count_usable(&self, now: Time) {
        if self.exported.is_none() || self.paths.iter().any(|p| p.closing) {
            return;
        }
        let usable = self.paths.iter().filter(|p| p.is_usable()).count();
        if usable == 0 {
            self.ask_for_access();
        }
        if let Some(news) = self.outage.set_usable(usable as u32, now) {
            self.tell(news);
        }
    }

    /// No path gives access: the one that is preferred among those that answer asks for it, unless another one has still to say what it
    /// gives, or is changing that already.
    fn ask_for_access(&self) {
        let access = |p: &PathRecord| p.info.as_ref().filter(|_| p.verified).map(|info| info.access);
        let pending = |p: &PathRecord| p.state == PathState::Connecting || access(p) == Some(Access::Change);
        if self.exported.is_none() || self.paths.iter().any(|p| p.is_usable() || p.closing || pending(p)) {
            return;
        }
        let answers = |p: &&PathRecord| matches!(p.state, PathState::Usable | PathState::Stalled);
        let without = self.paths.iter().filter(answers).filter(|p| access(p) == Some(Access::Inaccessible));
        if let Some(path) = without.min_by_key(|p| (u8::MAX - p.shared.preference(), p.shared.id)) {
            tracing::debug!(group = %self.name, path = %path.shared.name, "no path gives access: asking for it");
            path.shared.device.ask_for_access();
        }
    }

    /// Tells people what an outage of all paths does to requests.
    pub(crate) fn tell(&self, news: Tell) {
        let group = &*self.name;
        let paths = || {
            let each = self.paths.iter().map(|p| format!("{} is {}: {}", p.shared.name, p.state, p.why));
            each.collect::<Vec<_>>().join("; ")
        };
        match news {
            Tell::Waiting { requests } => {
                let limit = match self.no_path_timeout_ms {
                    GroupConfig::FOR_EVER_MS => "for ever".to_owned(),
                    limit_ms => format!("up to {limit_ms} ms each"),
                };
                tracing::warn!(group, requests, "no path is usable: requests wait, {limit}; {}", paths());
            }
            Tell::Failing => {
                let limit_ms = self.no_path_timeout_ms;
                tracing::error!(group, limit_ms, "requests fail: none of its paths took them in time; {}", paths());
            }
            Tell::Over { failed } => tracing::info!(group, failed, "requests go on: a path is usable again"),
        }
    }

    /// Nothing goes to the device of a path until it was verified again.
    fn revoke(&mut self, at: usize) {
        self.paths[at].verified = false;
        self.paths[at].shared.admit(None);
    }

    fn verify(&mut self, at: usize, info: Arc<DeviceInfo>, now: Time, caches: &Caches) {
        if let Err(why) = self.admit(at, &info) {
            self.revoke(at);
            self.step(at, PathEvent::Refused, now, None, &why);
            return;
        }
        match self
            .ledger
            .as_ref()
            .map_or(Entry::Written, |l| l.admit(&info, self.paths[at].shared.device.landing_bound()))
        {
            Entry::Written => {}
            Entry::NotYet(why) => return self.wait_for_entry(at, &why, now),
            Entry::Refused(why) => {
                self.revoke(at);
                self.paths[at].unwritten = true;
                return self.step(at, PathEvent::Refused, now, None, &why);
            }
        }
        if let Err(why) = self.desk.admit(self.paths[at].shared.id, now) {
            return self.wait_for_entry(at, &why, now);
        }
        self.export(&info);
        let record = &mut self.paths[at];
        let access_before = record.info.as_ref().map(|i| i.access);
        record.identity = Some(membership::remember(record.identity.as_ref(), &info.identity));
        record.info = Some(info.clone());
        record.verified = true;
        self.join_cache(at, &info, now, caches);
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
            self.publish(now, Some(at), EventKind::AccessChanged { access: info.access });
            self.count_usable(now);
        }
    }

    /// Nothing goes there before it is written down what must outlive the process, or before it is registered.
    fn wait_for_entry(&mut self, at: usize, why: &str, now: Time) {
        self.revoke(at);
        self.paths[at].unwritten = true;
        match self.paths[at].state {
            PathState::Usable | PathState::Stalled => self.step(at, PathEvent::Lost, now, Some(Code::PathLost), why),
            _ => self.paths[at].why = why.to_owned(),
        }
    }

    /// The paths that wait for that are to be looked at again.
    pub(crate) fn look_again(&mut self) {
        self.paths.iter_mut().filter(|p| p.unwritten).for_each(|p| p.reviewed = NO_VERSION);
    }

    /// All paths are to be looked at again.
    pub(crate) fn look_at_all(&mut self) {
        self.paths.iter_mut().for_each(|p| p.reviewed = NO_VERSION);
    }

    fn admit(&self, at: usize, info: &DeviceInfo) -> Result<(), String> {
        membership::admit(&self.matching, self.exported.as_ref(), self.paths[at].identity.as_ref(), info)?;
        self.nobody_differs(at, &info.identity)
    }

    /// Whatever else speaks against it.
    fn is_this_disk(&self, at: usize, info: &DeviceInfo) -> Result<(), String> {
        membership::identity(&self.matching, self.exported.as_ref(), self.paths[at].identity.as_ref(), info)?;
        self.nobody_differs(at, &info.identity)
    }

    /// Is the device of a path that is being removed still the disk that it was, with the cache that it had?
    fn is_unchanged(&self, at: usize, info: &DeviceInfo) -> bool {
        let record = &self.paths[at];
        let cache = record.cache.map(|c| &self.cache_names[usize::from(c)]);
        record.identity.is_some() && cache == Some(&self.cache_name(at, info)) && self.admit(at, info).is_ok()
    }

    /// Paths may agree with the first one, or have nothing comparable, and still differ from each other.
    fn nobody_differs(&self, at: usize, shown: &Identity) -> Result<(), String> {
        let differs = |p: &PathRecord| {
            let verdict = |i: &Identity| membership::compare(&self.matching, i, shown);
            p.identity.as_ref().is_some_and(|i| verdict(i) == Verdict::Different)
        };
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

    /// The first path decides what the group shows; before anyone relies on the limits, later ones narrow them.
    fn export(&mut self, info: &DeviceInfo) {
        match &mut self.exported {
            Some(exported) if !exported.frozen => exported.limits = exported.limits.meet(info.limits),
            Some(exported) => {
                if exported.take_back(&info.limits) {
                    tracing::warn!(group = %self.name, "a path does not do Compare: the group does it no more");
                }
            }
            None => {
                let limits = self.stated_limits.map_or(info.limits, |l| l.meet(info.limits));
                tracing::info!(
                    group = %self.name, identity = ?info.identity.identifiers, blocks = info.geometry.blocks,
                    block_size = info.geometry.block_size, "identity and size of the disk taken from its first path"
                );
                self.exported =
                    Some(Exported { identity: info.identity.clone(), geometry: info.geometry, limits, frozen: false });
            }
        }
    }

    fn grow(&mut self, now: Time) {
        let least = self.paths.iter().filter(|p| p.verified).filter_map(|p| p.info.as_ref()).map(|i| i.geometry.blocks);
        let (Some(least), Some(exported)) = (least.min(), &mut self.exported) else { return };
        if least > exported.geometry.blocks {
            exported.geometry = Geometry { blocks: least, ..exported.geometry };
            tracing::info!(group = %self.name, blocks = least, "disk grew");
            self.publish(now, None, EventKind::Grown { blocks: least });
        }
    }

    /// A path that names no cache domain has one of its own: nothing else may be assumed.
    fn cache_name(&self, at: usize, info: &DeviceInfo) -> CacheDomain {
        let shown = &info.identity.cache_domain;
        if shown.0.is_empty() { CacheDomain(format!("path:{}", self.paths[at].shared.id.0)) } else { shown.clone() }
    }

    fn join_cache(&mut self, at: usize, info: &DeviceInfo, now: Time, caches: &Caches) {
        let name = self.cache_name(at, info);
        let known = self.cache_names.iter().position(|d| *d == name);
        if known.is_some_and(|d| self.paths[at].cache == Some(d as u8)) {
            return;
        }
        // Another cache than before: the old one is lost with its last path.
        self.leave_cache(at, now, caches);
        let place = name.place().into();
        let index = known.unwrap_or_else(|| {
            let unused = (0..self.cache_names.len()).find(|&d| caches.members(d as u8) == 0);
            match unused {
                Some(d) if self.cache_names.len() >= MAX_CACHES => {
                    self.cache_names[d] = name;
                    d
                }
                _ => {
                    self.cache_names.push(name);
                    self.power_losses.push(0);
                    self.cache_names.len() - 1
                }
            }
        });
        caches.join(index as u8, info.limits.write_cache);
        self.paths[at].losses_followed = self.power_losses[index];
        (self.paths[at].cache, self.paths[at].place) = (Some(index as u8), Some(place));
        self.follow_doubts(caches);
    }

    fn leave_cache(&mut self, at: usize, now: Time, caches: &Caches) {
        self.set_doubt(at, false, caches);
        let Some(index) = self.paths[at].cache.take() else { return };
        if caches.leave(index) && !self.paths[at].closing {
            self.cache_lost(index, "the last path of a dirty write cache is gone: the next flush fails", now);
        }
        self.follow_doubts(caches);
    }

    /// What a device says of its disk and of its cache, whatever else speaks against its path, and whether that is on its way out or not.
    fn hear(&mut self, at: usize, state: &DeviceState, now: Time, caches: &Caches) {
        match state {
            DeviceState::Down { cause: Code::PathIdentity, .. } => self.set_doubt(at, true, caches),
            DeviceState::Live(info) => {
                let is_another = self.is_this_disk(at, info).is_err();
                self.set_doubt(at, is_another, caches);
                if !is_another {
                    self.hear_losses(at, now, caches);
                    self.hear_power(at, info, now, caches);
                }
            }
            DeviceState::Starting | DeviceState::Gone { .. } | DeviceState::Down { .. } => {}
        }
    }

    /// A path has heard that the cache has lost its power, where the name of that does not tell. Each path hears of one loss on its own
    /// account, and the first one tells of it: the others are behind.
    fn hear_losses(&mut self, at: usize, now: Time, caches: &Caches) {
        let record = &mut self.paths[at];
        let heard = record.shared.device.power_losses();
        let before = core::mem::replace(&mut record.losses_heard, heard);
        let (true, Some(cache)) = (heard > before, record.cache) else { return };
        let losses = &mut self.power_losses[usize::from(cache)];
        if record.losses_followed == *losses {
            *losses += 1;
            if caches.lose(cache) {
                self.cache_lost(cache, "a write cache lost its power while it was dirty: the next flush fails", now);
            }
        }
        self.paths[at].losses_followed = self.power_losses[usize::from(cache)];
    }

    /// Another cache in the same place is the same one, which has lost its power.
    fn hear_power(&mut self, at: usize, info: &DeviceInfo, now: Time, caches: &Caches) {
        let name = self.cache_name(at, info);
        let Some(old) = self.paths[at].cache else { return };
        let old_name = &self.cache_names[usize::from(old)];
        if *old_name == name || old_name.place() != name.place() {
            return;
        }
        if caches.lose(old) {
            self.cache_lost(old, "a write cache lost its power while it was dirty: the next flush fails", now);
        }
        // Not to be heard again. If the path is fit for use, it joins the new one.
        self.leave_cache(at, now, caches);
    }

    /// Where a path shows another disk, what has the cache that it led to may be another one, too, on paths that have not heard of it yet.
    fn set_doubt(&mut self, at: usize, doubts: bool, caches: &Caches) {
        if core::mem::replace(&mut self.paths[at].doubts, doubts) != doubts {
            self.follow_doubts(caches);
        }
    }

    /// Who answers at a place is in doubt while a path that led there shows another disk: every cache that is there now.
    fn follow_doubts(&mut self, caches: &Caches) {
        for (index, name) in self.cache_names.iter().enumerate() {
            let led_there = |p: &PathRecord| p.doubts && p.place.as_deref() == Some(name.place());
            let doubted = caches.members(index as u8) > 0 && self.paths.iter().any(led_there);
            if doubted != (self.doubted & 1 << index != 0) {
                self.doubted ^= 1 << index;
                let change = if doubted { Caches::begin_doubt } else { Caches::end_doubt };
                change(caches, index as u8);
            }
        }
    }

    fn cache_lost(&mut self, index: u8, what: &str, now: Time) {
        let domain = self.cache_names[usize::from(index)].0.clone();
        tracing::error!(group = %self.name, domain, "{what}");
        self.publish(now, None, EventKind::CacheLost { domain });
    }
}
