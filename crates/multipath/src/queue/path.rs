//! The paths of one queue: following the group, opening and closing their queues, ranking them.

use super::{MultipathQueue, RANKS};
use crate::config::MAX_PATHS;
use crate::disposition::Penalty;
use crate::event::EventKind;
use crate::path::{PathShared, PathUse, PathView, QueueTrouble};
use crate::selector::{AnySelector, PathLoad, Selector};
use crate::shared::GroupShared;
use crate::stats::{self, Counters};
use core::time::Duration;
use polypath_block::{Access, Code, Cx, Health, IoQueue, Limits, Proof, QueueConfig, RefusedWhy, Time, Waits};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long to look elsewhere after a failure, the first time and at most.
const AVOID_FIRST: Duration = Duration::from_millis(10);
const AVOID_MOST: Duration = Duration::from_secs(1);
/// How long to look elsewhere when a path gave no access: it says itself when that changes.
const AVOID_NO_ACCESS: Duration = Duration::from_millis(100);
/// How long after its last trouble an incident is over.
const INCIDENT_QUIET: Duration = Duration::from_millis(100);
/// How long to wait before opening a queue that could not be opened.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// Distinct proofs counted apart in one incident.
const PROOFS: usize = 4;

/// How far a path that leaves has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// In use.
    Open,
    /// Its cache is being flushed before it goes.
    Flushing,
    /// That is over.
    Flushed,
    /// Its queue is closed and drains.
    Closing,
}

/// A path, as this queue has it.
pub(super) struct QueuePath {
    pub(super) shared: Arc<PathShared>,
    pub(super) queue: Option<Box<dyn IoQueue>>,
    pub(super) counters: Arc<Counters>,
    pub(super) limits: Limits,
    pub(super) write_cache: bool,
    /// Number of the cache it leads to.
    pub(super) cache: Option<u8>,
    /// Version of the device that the rest of this is about.
    pub(super) seen: u64,
    pub(super) phase: Phase,
    pub(super) suspects: u32,
    pub(super) last_cause: Code,
    /// What was reported to the group last.
    pub(super) reported: QueueTrouble,
    pub(super) incident: Incident,
    /// The device of version `seen` is this disk, and its cache the one that it was.
    verified: bool,
    access: Access,
    usage: PathUse,
    health: Health,
    max_depth: u16,
    was_ready: bool,
    failures_in_row: u32,
    avoid_until: Time,
    open_after: Time,
    pub(super) latency: Latency,
}

/// The recent mean latency, of which each request is a part of 64. In 64ths of a nanosecond.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency(u64);

impl Latency {
    #[inline]
    pub(super) fn add(&mut self, took_ns: u64) {
        self.0 = if self.0 == 0 { took_ns << 6 } else { self.0 - (self.0 >> 6) + took_ns };
    }

    fn as_nanos(self) -> u64 {
        self.0 >> 6
    }
}

/// Trouble on one path, told once when it is over.
#[derive(Debug, Default)]
pub(super) struct Incident {
    open: bool,
    suspect_told: bool,
    last: Time,
    proofs: [Option<(Proof, u64, u64)>; PROOFS],
}

impl Incident {
    /// A request became suspect. True the first time in this incident.
    pub(super) fn suspected(&mut self, now: Time) -> bool {
        (self.open, self.last) = (true, now);
        !core::mem::replace(&mut self.suspect_told, true)
    }

    /// A request is sent again because of `proof`.
    pub(super) fn redriven(&mut self, proof: Proof, changes: bool, now: Time) {
        (self.open, self.last) = (true, now);
        let at = self.proofs.iter().position(|p| p.is_none_or(|(known, ..)| known == proof)).unwrap_or(PROOFS - 1);
        let entry = self.proofs[at].get_or_insert((proof, 0, 0));
        entry.1 += 1;
        entry.2 += u64::from(changes);
    }

    fn over_at(&self) -> Option<Time> {
        self.open.then(|| self.last.after(INCIDENT_QUIET))
    }

    fn report(&mut self, group: &GroupShared, path: &PathShared) {
        for (proof, count, changes) in self.proofs.iter().flatten().copied() {
            tracing::info!(
                group = %group.name, path = %path.name, %proof, count, changes,
                "requests of the path were sent again on others"
            );
            group.publish(self.last, path.id, EventKind::Redriven { count, changes, proof });
        }
        *self = Incident::default();
    }
}

impl QueuePath {
    fn new(view: &PathView, counters: Arc<Counters>) -> Self {
        QueuePath {
            shared: view.shared.clone(),
            queue: None,
            counters,
            limits: Limits::UNLIMITED,
            write_cache: false,
            cache: None,
            seen: view.reviewed,
            phase: Phase::Open,
            suspects: 0,
            last_cause: Code::PathLost,
            reported: QueueTrouble::default(),
            incident: Incident::default(),
            verified: false,
            access: Access::Inaccessible,
            usage: PathUse::Keep,
            health: Health::Down,
            max_depth: 1,
            was_ready: false,
            failures_in_row: 0,
            avoid_until: Time::ZERO,
            open_after: Time::ZERO,
            latency: Latency::default(),
        }
    }

    fn update(&mut self, view: &PathView) {
        self.usage = view.usage;
        self.seen = view.reviewed;
        self.cache = view.cache.or(self.cache);
        self.verified = view.verified;
        if let Some(info) = &view.info {
            self.limits = info.limits;
            self.write_cache = info.limits.write_cache;
            self.access = info.access;
            self.max_depth = info.max_depth;
        }
    }

    /// Requests succeeded, `ios` of them with `bytes` bytes in all; their latencies were added before.
    pub(super) fn succeeded(&mut self, ios: u64, bytes: u64) {
        self.failures_in_row = 0;
        stats::add(&self.counters.ios, ios);
        stats::add(&self.counters.bytes, bytes);
        self.counters.latency_ns.store(self.latency.as_nanos(), Ordering::Relaxed);
    }

    /// Number of the volatile cache that it leads to.
    #[inline]
    pub(super) fn volatile_cache(&self) -> Option<u8> {
        if self.write_cache { self.cache } else { None }
    }

    pub(super) fn count_load(&self, load: &PathLoad) {
        self.counters.in_flight.store(load.in_flight.into(), Ordering::Relaxed);
        self.counters.suspects.store(self.suspects.into(), Ordering::Relaxed);
    }

    /// Remembers a failure: a path that fails at once and stays ready must not draw all I/O because nothing is in flight on it.
    pub(super) fn penalize(&mut self, penalty: Penalty, now: Time) {
        let span = match penalty {
            Penalty::Busy => AVOID_FIRST,
            Penalty::NoAccess => AVOID_NO_ACCESS,
            Penalty::Failure if now < self.avoid_until => return,
            Penalty::Failure => {
                self.failures_in_row = (self.failures_in_row + 1).min(16);
                (AVOID_FIRST * (1 << (self.failures_in_row - 1).min(8))).min(AVOID_MOST)
            }
        };
        self.avoid_until = self.avoid_until.max(now.after(span));
    }

    /// Names the times at which this path wants to be looked at.
    pub(super) fn deadlines(&self, now: Time, waiting: bool, waits: &mut Waits) {
        if let Some(at) = self.incident.over_at().filter(|_| self.suspects == 0 && self.phase == Phase::Open) {
            waits.until(at);
        }
        if waiting && self.avoid_until > now {
            waits.until(self.avoid_until);
        }
        if self.queue.is_none() && self.usage == PathUse::Use && self.open_after > now {
            waits.until(self.open_after);
        }
    }

    /// It is not on its way out: if it is away, it may return.
    pub(super) fn stays(&self) -> bool {
        !matches!(self.usage, PathUse::Release { .. })
    }

    fn rank(&self, now: Time) -> Option<usize> {
        let carries = self.usage == PathUse::Use && self.phase == Phase::Open && self.queue.is_some();
        if !carries || self.health == Health::Down || !self.access.usable() {
            return None;
        }
        let second = usize::from(self.access != Access::Optimized);
        let poor = self.health == Health::Stalled || now < self.avoid_until;
        Some(if poor { second + RANKS / 2 } else { second })
    }
}

impl MultipathQueue {
    /// Follows the group: one load for it and one for each path, unless something changed.
    pub(super) fn follow_group(&mut self, cx: &mut Cx<'_>) {
        if self.is_behind() {
            self.sync();
        }
        if !self.lacks_queue || (self.closing && self.open == 0) {
            return;
        }
        self.lacks_queue = false;
        for slot in 0..self.paths.len() {
            let Some(path) = self.paths[slot].as_mut() else { continue };
            if path.queue.is_some() || path.usage != PathUse::Use {
                continue;
            }
            if cx.now < path.open_after {
                self.lacks_queue = true;
                continue;
            }
            let depth = (self.depth as u16).min(path.max_depth).max(1);
            match path.shared.device.open_queue(QueueConfig { depth }) {
                Ok(queue) => {
                    path.queue = Some(queue);
                    self.rank_due = true;
                }
                Err(error) => {
                    self.lacks_queue = true;
                    path.open_after = cx.now.after(OPEN_AGAIN);
                    tracing::warn!(
                        group = %self.group.name, path = %path.shared.name, reactor = cx.reactor, %error,
                        "cannot open a queue on the path"
                    );
                }
            }
        }
    }

    fn sync(&mut self) {
        for path in self.paths.iter_mut().flatten() {
            path.seen = path.shared.device.version();
        }
        let snapshot = self.group.snapshot();
        self.generation = snapshot.generation;
        self.retry_stranded_now = true;
        (self.review_due, self.rank_due, self.lacks_queue, self.leaving) = (true, true, true, true);
        // Limits may have changed, and with them who has room.
        self.looked = 0;
        self.shown = snapshot.info.map(|info| super::ShownInfo {
            blocks: info.geometry.blocks,
            block_size: info.geometry.block_size,
            limits: info.limits,
        });
        if snapshot.selector != self.selector_kind {
            self.selector_kind = snapshot.selector;
            self.selector = AnySelector::new(snapshot.selector, self.group.seed);
        }
        // Every path held here is among them: the group keeps it until its last holder has released it.
        self.watched.clear();
        for view in &snapshot.paths {
            let known = self.paths.iter().position(|p| p.as_ref().is_some_and(|p| p.shared.id == view.shared.id));
            let slot = match known {
                Some(slot) => slot,
                None if view.usage == PathUse::Use && !(self.closing && self.open == 0) => match self.attach(view) {
                    Some(slot) => slot,
                    None => {
                        self.watch(view);
                        continue;
                    }
                },
                None => {
                    self.watch(view);
                    continue;
                }
            };
            if let Some(path) = self.paths[slot].as_mut() {
                path.update(view);
            }
            self.loads[slot].weight = view.shared.weight.load(Ordering::Relaxed).max(1);
            self.loads[slot].preference = view.shared.preference();
        }
    }

    /// Nothing of the path is held here; when its device changes, somebody must look at it all the same.
    fn watch(&mut self, view: &PathView) {
        self.watched.push((view.shared.clone(), view.reviewed));
    }

    fn attach(&mut self, view: &PathView) -> Option<usize> {
        let free = self.paths.iter().position(Option::is_none);
        if free.is_none() && self.paths.len() >= MAX_PATHS {
            return None;
        }
        let counters = self.group.acquire(view.shared.id)?;
        let slot = free.unwrap_or_else(|| {
            self.paths.push(None);
            self.loads.push(PathLoad::default());
            self.paths.len() - 1
        });
        self.paths[slot] = Some(QueuePath::new(view, counters));
        self.fast.use_slot(slot, self.depth);
        self.loads[slot] = PathLoad { uid: view.shared.id.0, ..PathLoad::default() };
        self.selector.forget(slot);
        self.tasks.iter_mut().for_each(|(_, task)| task.forget_slot(slot));
        Some(slot)
    }

    /// Notices when a path's queue went down, came back, or stalls, and reports it.
    pub(super) fn check_health(&mut self, slot: usize, now: Time) {
        let Some(path) = self.paths[slot].as_mut().filter(|p| p.phase == Phase::Open) else { return };
        let health = path.queue.as_ref().map_or(Health::Down, |q| q.health());
        // What was reported follows from its health.
        if health == path.health && !path.incident.open {
            return;
        }
        if health != path.health {
            if path.health == Health::Down {
                // A new connection starts with a clean record.
                (path.avoid_until, path.failures_in_row, path.was_ready) = (now, 0, true);
                path.last_cause = Code::PathLost;
                self.full &= !(1 << slot);
            }
            path.health = health;
            self.rank_due = true;
        }
        let trouble =
            QueueTrouble { lost: health == Health::Down && path.was_ready, stalled: health == Health::Stalled };
        if trouble != path.reported {
            self.group.report_queue_trouble(path.shared.id, path.reported, trouble, path.last_cause);
            path.reported = trouble;
        }
        if path.suspects == 0 && path.incident.over_at().is_some_and(|at| at <= now) {
            path.incident.report(&self.group, &path.shared);
        }
    }

    /// Sorts the candidates by rank, if something has changed that they depend on.
    #[inline]
    pub(super) fn follow_ranks(&mut self, now: Time) {
        // Some may have turned out not to take anything: now they are asked again.
        if self.rank_due || now >= self.rank_at || self.ranks != self.ranked {
            self.rank(now);
        }
    }

    pub(super) fn rank(&mut self, now: Time) {
        let mut ranks = [0; RANKS];
        (self.rank_due, self.rank_at) = (false, Time::NEVER);
        for (slot, path) in self.paths.iter().enumerate() {
            let Some(path) = path else { continue };
            if let Some(rank) = path.rank(now) {
                ranks[rank] |= 1 << slot;
            }
            if now < path.avoid_until {
                self.rank_at = self.rank_at.min(path.avoid_until);
            }
        }
        if self.ranked != ranks {
            // What waits for room on the better path may find some on one that is as good now.
            self.looked = 0;
        }
        self.review_due |= self.ranked != ranks || self.ranks != ranks;
        (self.ranks, self.ranked) = (ranks, ranks);
        self.selector.settle(self.best_rank(), &self.loads);
    }

    /// Releases paths: flush if need be, close, drain, drop.
    pub(super) fn release_paths(&mut self, cx: &mut Cx<'_>) {
        if !self.leaving && !self.closing {
            return;
        }
        self.leaving = false;
        let ending = self.closing && self.open == 0 && self.tasks.is_empty();
        for slot in 0..self.paths.len() {
            let Some(path) = self.paths[slot].as_ref() else { continue };
            let removal = match path.usage {
                PathUse::Release { removal } => removal,
                _ if ending => false,
                _ if path.phase != Phase::Open => false,
                _ => continue,
            };
            (self.leaving, self.rank_due) = (true, true);
            match path.phase {
                Phase::Open if removal && self.wants_flush(slot) => self.flush_before_removal(cx, slot),
                Phase::Open | Phase::Flushed => self.close_path(cx, slot),
                Phase::Flushing => {}
                Phase::Closing => self.drop_when_drained(slot),
            }
        }
    }

    fn wants_flush(&self, slot: usize) -> bool {
        let Some(path) = self.paths[slot].as_ref() else { return false };
        let dirty = path.cache.is_some_and(|c| self.group.caches.is_dirty(c));
        // Another disk, or the same one after a loss of power, would say OK to a flush of what it never had.
        dirty && path.verified && path.write_cache && path.health != Health::Down
    }

    fn flush_before_removal(&mut self, cx: &mut Cx<'_>, slot: usize) {
        let Some(path) = self.paths[slot].as_ref() else { return };
        let Some(cache) = path.cache else { return self.close_path(cx, slot) };
        let changed = path.shared.device.version() != path.seen;
        if self.loads[slot].in_flight > 0 || path.suspects > 0 || changed {
            return;
        }
        match self.send_removal_flush(cx, slot, cache) {
            Ok(()) => {
                if let Some(path) = self.paths[slot].as_mut() {
                    path.phase = Phase::Flushing;
                }
            }
            Err(RefusedWhy::Full) => {}
            Err(RefusedWhy::Gone) => self.close_path(cx, slot),
        }
    }

    fn close_path(&mut self, cx: &mut Cx<'_>, slot: usize) {
        let Some(path) = self.paths[slot].as_mut() else { return };
        path.phase = Phase::Closing;
        if let Some(queue) = path.queue.as_mut() {
            queue.close(cx);
        }
        self.drop_when_drained(slot);
    }

    fn drop_when_drained(&mut self, slot: usize) {
        let idle = self.loads[slot].in_flight == 0;
        let Some(path) = self.paths[slot].as_mut() else { return };
        let drained = path.queue.as_ref().is_none_or(|q| q.is_drained());
        if !drained || !idle || path.suspects > 0 {
            return;
        }
        path.incident.report(&self.group, &path.shared);
        if let Some(path) = self.paths[slot].take() {
            self.group.release(path.shared.id, &path.counters, path.reported);
            self.selector.forget(slot);
        }
        self.loads[slot] = PathLoad::default();
        // The path may have been readmitted meanwhile: look again.
        self.generation = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_counts_each_proof_apart_and_forgets_no_request_when_there_are_too_many() {
        let bound = |bound_ms| Proof::ConfiguredBound { bound_ms };
        let mut incident = Incident::default();
        for (proof, changes) in [(bound(1), true), (bound(2), false), (bound(1), false)] {
            incident.redriven(proof, changes, Time::ZERO);
        }
        assert_eq!(incident.proofs, [Some((bound(1), 2, 1)), Some((bound(2), 1, 0)), None, None]);
        (3..10).for_each(|ms| incident.redriven(bound(ms), true, Time::ZERO));
        let all = incident.proofs.iter().flatten().fold((0, 0), |sum, p| (sum.0 + p.1, sum.1 + p.2));
        assert_eq!(all, (10, 8), "of requests, of changes");
    }
}
