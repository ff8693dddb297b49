//! A multipath device: the control plane of one disk and its paths.
//!
//! No thread and no clock of its own: whoever asks ([`Group::state`], [`Group::refresh`]) and every open queue, once a turn,
//! look for what changed. The lock below is taken when something changed, never for an I/O.

use crate::config::{Fencing, GroupConfig, GroupError, MAX_DEPTH, MAX_PATHS, PathConfig, PathId, SelectorKind};
use crate::dirty::Domains;
use crate::event::{EventKind, Events};
use crate::queue::MultipathQueue;
use crate::record::{Control, PathRecord, Shared, Stand, View};
use crate::state::{PathEvent, PathState};
use crate::stats::{Counters, PathStatistics, Totals};
use core::time::Duration;
use polypath_block::{Code, Device, DeviceInfo, DeviceState, FenceTerms, Host, IoQueue, OpenError, QueueConfig, Time};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// One disk over many paths. A [`Device`] itself.
///
/// Once a path was admitted, [`Device::state`] stays [`DeviceState::Live`] until [`Device::close`], whatever becomes of the paths:
/// the access in its info tells whether one can be used now, and I/O waits as configured when none can.
pub struct Group {
    me: Weak<Group>,
    name: Arc<str>,
    pub(crate) fencing: Fencing,
    pub(crate) no_path_timeout: Duration,
    pub(crate) seed: u64,
    /// Grows with every change that a queue must know: membership, verdicts, access, limits, weights, selector.
    pub(crate) generation: AtomicU64,
    version: AtomicU64,
    now: AtomicU64,
    closed: AtomicBool,
    open_queues: AtomicU32,
    pub(crate) domains: Domains,
    control: Mutex<Control>,
}

/// What a queue takes along when it follows the group.
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) info: Option<Arc<DeviceInfo>>,
    pub(crate) selector: SelectorKind,
    pub(crate) views: Vec<View>,
}

impl Group {
    /// A group without paths.
    pub fn new(config: GroupConfig) -> Arc<Group> {
        if config.fencing == Fencing::Off {
            tracing::warn!(
                group = config.name,
                "FENCING IS OFF: a late copy of a write may land on newer data; use this for tests only"
            );
        }
        let name: Arc<str> = config.name.into();
        Arc::new_cyclic(|me| Group {
            me: me.clone(),
            fencing: config.fencing,
            no_path_timeout: Duration::from_millis(config.no_path_timeout_ms),
            seed: config.seed,
            generation: AtomicU64::new(1),
            version: AtomicU64::new(1),
            now: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            open_queues: AtomicU32::new(0),
            domains: Domains::new(),
            control: Mutex::new(Control::new(name.clone(), config.selector, config.matching, config.limits)),
            name,
        })
    }

    /// Adds a path. It carries I/O once its device answers and was verified; that needs no further call.
    ///
    /// # Errors
    /// [`GroupError`]: closed, no room, name or device taken, weight of zero.
    pub fn add_path(&self, path: PathConfig) -> Result<PathId, GroupError> {
        let group = || self.name.to_string();
        if path.weight == 0 {
            return Err(GroupError::ZeroWeight { group: group() });
        }
        let mut control = self.lock();
        if self.is_closed() {
            return Err(GroupError::Closed { group: group() });
        }
        if control.paths.len() >= MAX_PATHS {
            return Err(GroupError::TooManyPaths { group: group() });
        }
        if control.paths.iter().any(|p| *p.shared.name == *path.name) {
            return Err(GroupError::NameTaken { group: group(), path: path.name });
        }
        if let Some(p) = control.paths.iter().find(|p| Arc::ptr_eq(&p.shared.device, &path.device)) {
            return Err(GroupError::DeviceTaken { group: group(), path: p.shared.name.to_string() });
        }
        let id = PathId(control.next_id);
        control.next_id += 1;
        let shared = Arc::new(Shared::new(id, path));
        control.paths.push(PathRecord::new(shared, self.time()));
        let at = control.paths.len() - 1;
        control.tell(self.time(), Some(at), EventKind::PathAdded);
        tracing::info!(group = %self.name, path = %control.paths[at].shared.name, "path added");
        control.review(at, self.time(), &self.domains);
        self.changed(&mut control);
        Ok(id)
    }

    /// Removes a path while I/O runs: it takes nothing new, what is in flight on it drains, every reactor lets go of it,
    /// then its device is closed and [`EventKind::PathRemoved`] told. Idempotent until that has happened.
    ///
    /// # Errors
    /// [`GroupError::NoSuchPath`].
    pub fn remove_path(&self, id: PathId) -> Result<(), GroupError> {
        let mut control = self.lock();
        let at = self.find(&control, id)?;
        control.step(at, PathEvent::Remove, self.time(), None, "removed by request");
        control.paths[at].shared.admit(None);
        if control.paths[at].holders == 0 {
            control.finish_removal(at, self.time(), &self.domains);
        }
        self.changed(&mut control);
        Ok(())
    }

    /// Chooses paths by another rule from now on. Takes effect within a turn of each reactor; nothing in flight is touched.
    pub fn set_selector(&self, selector: SelectorKind) {
        let mut control = self.lock();
        control.selector = selector;
        tracing::info!(group = %self.name, %selector, "selector set");
        self.changed(&mut control);
    }

    /// The rule in use.
    pub fn selector(&self) -> SelectorKind {
        self.lock().selector
    }

    /// Gives a path another weight.
    ///
    /// # Errors
    /// [`GroupError::NoSuchPath`], [`GroupError::ZeroWeight`].
    pub fn set_weight(&self, id: PathId, weight: u32) -> Result<(), GroupError> {
        if weight == 0 {
            return Err(GroupError::ZeroWeight { group: self.name.to_string() });
        }
        let mut control = self.lock();
        let at = self.find(&control, id)?;
        control.paths[at].shared.weight.store(weight, Ordering::Relaxed);
        self.changed(&mut control);
        Ok(())
    }

    /// The paths in the order they were added, those being removed included.
    pub fn paths(&self) -> Vec<PathId> {
        self.lock().paths.iter().map(|p| p.shared.id).collect()
    }

    /// The path named `name`.
    pub fn find_path(&self, name: &str) -> Option<PathId> {
        self.lock().paths.iter().find(|p| *p.shared.name == *name).map(|p| p.shared.id)
    }

    /// Numbers of every path, in the order they were added.
    pub fn statistics(&self) -> Vec<PathStatistics> {
        self.refresh();
        self.lock().paths.iter().map(PathRecord::statistics).collect()
    }

    /// Everything that happens from now on. Bounded; several may listen.
    pub fn events(&self) -> Events {
        self.lock().subscribers.subscribe()
    }

    /// Freezes the abilities shown now: paths that lack one are quarantined from here on, smaller sizes are split for.
    /// Called by whoever exports the disk; the first I/O does it too. No effect before the first path was admitted.
    pub fn freeze(&self) {
        self.lock().freeze();
    }

    /// Wakes `host` from now on when paths are added, removed or change, so that a sleeping reactor follows at once.
    /// Without it a reactor that sleeps looks by itself, several times a second.
    pub fn attach_host(&self, host: Arc<dyn Host>) {
        let mut control = self.lock();
        if !control.hosts.iter().any(|h| h.reactor() == host.reactor()) {
            control.hosts.push(host);
        }
    }

    /// Looks whether a path changed, and acts on it. Queues do it every turn; a control plane without queues may.
    pub fn refresh(&self) {
        let mut control = self.lock();
        self.review_changed(&mut control);
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A queue tells the time. Coarse: a millisecond is enough for events.
    pub(crate) fn tell_time(&self, now: Time) {
        let now = now.as_nanos();
        if now.saturating_sub(self.now.load(Ordering::Relaxed)) > 1_000_000 {
            self.now.store(now, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut control = self.lock();
        self.review_changed(&mut control);
        Snapshot {
            generation: self.generation.load(Ordering::Acquire),
            info: control.info.clone(),
            selector: control.selector,
            views: control.paths.iter().map(PathRecord::view).collect(),
        }
    }

    /// A queue wants to use a path: it holds it until [`Group::let_go`]. `None` when it is on its way out.
    pub(crate) fn hold(&self, id: PathId) -> Option<Arc<Counters>> {
        let mut control = self.lock();
        let at = control.find(id)?;
        let record = &mut control.paths[at];
        if matches!(record.stand(), Stand::Leave { .. }) {
            return None;
        }
        record.holders += 1;
        let counters = Arc::new(Counters::default());
        record.counters.push(counters.clone());
        Some(counters)
    }

    /// A queue has drained a path and dropped its queue.
    pub(crate) fn let_go(&self, id: PathId, counters: &Arc<Counters>, was: Lapses) {
        let mut control = self.lock();
        let Some(at) = control.find(id) else { return };
        let record = &mut control.paths[at];
        record.holders = record.holders.saturating_sub(1);
        record.counters.retain(|c| !Arc::ptr_eq(c, counters));
        record.retired.retire(counters);
        if was.lost {
            record.queues_lost = record.queues_lost.saturating_sub(1);
        }
        if was.stalled {
            record.queues_stalled = record.queues_stalled.saturating_sub(1);
        }
        if record.state == PathState::Removing && record.holders == 0 {
            control.finish_removal(at, self.time(), &self.domains);
            self.changed(&mut control);
        } else {
            control.settle(at, self.time());
        }
    }

    /// A queue of a path went down or came back, or began or ended to stall.
    pub(crate) fn lapse(&self, id: PathId, old: Lapses, new: Lapses, cause: Code) {
        let mut control = self.lock();
        let Some(at) = control.find(id) else { return };
        let record = &mut control.paths[at];
        record.queues_lost = record.queues_lost + u32::from(new.lost) - u32::from(old.lost).min(record.queues_lost);
        record.queues_stalled =
            record.queues_stalled + u32::from(new.stalled) - u32::from(old.stalled).min(record.queues_stalled);
        if new.lost && !old.lost {
            record.cause = Some(cause);
            control.step(at, PathEvent::Lost, self.time(), Some(cause), "its queue was lost on a reactor");
        }
        control.settle(at, self.time());
    }

    pub(crate) fn suspect(&self, id: PathId, cause: Code, fence: FenceTerms) {
        let mut control = self.lock();
        if let Some(at) = control.find(id) {
            control.tell(self.time(), Some(at), EventKind::PathSuspect { cause, fence });
        }
    }

    /// Tells of something that happened at `when`.
    pub(crate) fn tell(&self, when: Time, id: PathId, kind: EventKind) {
        let mut control = self.lock();
        if let Some(at) = control.find(id) {
            control.tell(when, Some(at), kind);
        }
    }

    pub(crate) fn queue_closed(&self) {
        self.open_queues.fetch_sub(1, Ordering::AcqRel);
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // Nothing below the lock runs foreign code that may panic half-way through a change; a poisoned lock is still sound.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self) -> Time {
        Time::from_nanos(self.now.load(Ordering::Relaxed))
    }

    fn find(&self, control: &Control, id: PathId) -> Result<usize, GroupError> {
        control.find(id).ok_or_else(|| GroupError::NoSuchPath { group: self.name.to_string(), id })
    }

    fn review_changed(&self, control: &mut Control) {
        let mut any = false;
        for at in 0..control.paths.len() {
            let record = &control.paths[at];
            if record.shared.device.version() != record.reviewed {
                control.review(at, self.time(), &self.domains);
                any = true;
            }
        }
        if any {
            self.changed(control);
        }
    }

    /// Something that queues must know has changed.
    fn changed(&self, control: &mut Control) {
        if control.compute_info(self.time()) {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        for host in &control.hosts {
            host.wake();
        }
    }
}

/// What a queue has reported of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lapses {
    pub(crate) lost: bool,
    pub(crate) stalled: bool,
}

impl Device for Group {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        let mut control = self.lock();
        self.review_changed(&mut control);
        if self.is_closed() {
            return DeviceState::Gone { reason: format!("{} was closed", self.name) };
        }
        match &control.info {
            Some(info) => DeviceState::Live(info.clone()),
            None => control.before_founding(),
        }
    }

    fn version(&self) -> u64 {
        // Nobody else looks at the paths while no queue is open.
        if self.open_queues.load(Ordering::Acquire) == 0 {
            self.refresh();
        }
        self.version.load(Ordering::Acquire)
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let gone = || OpenError::Gone { name: self.name.to_string(), reason: "the group was closed".into() };
        let group = self.me.upgrade().ok_or_else(gone)?;
        if self.is_closed() {
            return Err(gone());
        }
        if config.depth == 0 || config.depth > MAX_DEPTH {
            let reason = format!("queue depth {} is not from 1 to {MAX_DEPTH}", config.depth);
            return Err(OpenError::Unsupported { name: self.name.to_string(), reason });
        }
        self.open_queues.fetch_add(1, Ordering::AcqRel);
        Ok(Box::new(MultipathQueue::new(group, config.depth)))
    }

    fn close(&self) {
        let mut control = self.lock();
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        for record in &mut control.paths {
            record.closing = true;
            record.shared.device.close();
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        self.changed(&mut control);
    }
}

impl core::fmt::Debug for Group {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Group").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Control {
    fn before_founding(&self) -> DeviceState {
        let quarantined = self.paths.iter().find(|p| p.state == PathState::Quarantined);
        match quarantined {
            Some(p) if self.paths.iter().all(|p| p.state == PathState::Quarantined) => DeviceState::Down {
                cause: Code::PathIdentity,
                reason: format!("every path is quarantined; {}: {}", p.shared.name, p.why),
            },
            _ => DeviceState::Starting,
        }
    }
}

impl Totals {
    pub(crate) fn of(record: &PathRecord) -> Totals {
        let mut totals = record.retired;
        record.counters.iter().for_each(|c| totals.take_in(c));
        totals
    }
}
