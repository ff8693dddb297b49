//! What a group and its queues share: a few atomic numbers that every turn looks at, and the control plane behind its lock.

use crate::cache::Caches;
use crate::config::{Fencing, GroupConfig, PathId, SelectorKind};
use crate::control::Control;
use crate::cross_fence::ProofDesk;
use crate::event::EventKind;
use crate::outage::{Outage, Tell};
use crate::path::{PathRecord, PathUse, PathView, QueueTrouble};
use crate::reservations::Desk;
use crate::state::PathState;
use crate::stats::Counters;
use core::time::Duration;
use polypath_block::{Code, DeviceInfo, FenceTerms, Time};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The shared part of a group.
pub(crate) struct GroupShared {
    pub(crate) name: Arc<str>,
    pub(crate) fencing: Fencing,
    pub(crate) no_path_timeout: Duration,
    pub(crate) seed: u64,
    /// Grows with every change that a queue must know: membership, verdicts, access, limits, weights, selector.
    pub(crate) generation: AtomicU64,
    pub(crate) version: AtomicU64,
    pub(crate) closed: AtomicBool,
    pub(crate) open_queues: AtomicU32,
    pub(crate) caches: Caches,
    pub(crate) outage: Arc<Outage>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) proofs: ProofDesk,
    /// A command that may change something is being passed through.
    pub(crate) passing: Arc<AtomicBool>,
    pub(crate) me: Weak<GroupShared>,
    now: AtomicU64,
    control: Mutex<Control>,
}

/// What a queue takes along when it follows the group.
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) info: Option<Arc<DeviceInfo>>,
    pub(crate) selector: SelectorKind,
    pub(crate) paths: Vec<PathView>,
}

impl GroupShared {
    pub(crate) fn new(config: GroupConfig) -> Arc<GroupShared> {
        let name: Arc<str> = config.name.as_str().into();
        let outage = Arc::<Outage>::default();
        let desk = Arc::<Desk>::default();
        let control = Control::new(name.clone(), &config, outage.clone(), desk.clone());
        Arc::new_cyclic(|me| GroupShared {
            desk,
            proofs: ProofDesk::new(),
            passing: Arc::default(),
            me: me.clone(),
            fencing: config.fencing,
            no_path_timeout: Duration::from_millis(config.no_path_timeout_ms),
            seed: config.seed,
            generation: AtomicU64::new(1),
            version: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            open_queues: AtomicU32::new(0),
            caches: Caches::new(),
            now: AtomicU64::new(0),
            outage,
            control: Mutex::new(control),
            name,
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A queue tells the time. Coarse: a millisecond is enough for events.
    pub(crate) fn set_time(&self, now: Time) {
        let now = now.as_nanos();
        if now.saturating_sub(self.now.load(Ordering::Relaxed)) > 1_000_000 {
            self.now.store(now, Ordering::Relaxed);
            if self.desk.is_due(Time::from_nanos(now)) {
                self.drive_reservations();
            }
            if self.proofs.is_due(Time::from_nanos(now)) {
                self.drive_proofs();
            }
        }
    }

    pub(crate) fn time(&self) -> Time {
        Time::from_nanos(self.now.load(Ordering::Relaxed))
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.review();
        let control = self.lock();
        Snapshot {
            generation: self.generation.load(Ordering::Acquire),
            info: control.info.clone(),
            selector: control.selector,
            paths: control.paths.iter().map(PathRecord::view).collect(),
        }
    }

    /// A queue wants to use a path: it holds it until [`GroupShared::release`]. `None` when it is on its way out.
    pub(crate) fn acquire(&self, id: PathId) -> Option<Arc<Counters>> {
        let mut control = self.lock();
        let at = control.find(id)?;
        let record = &mut control.paths[at];
        if matches!(record.usage(), PathUse::Release { .. }) {
            return None;
        }
        record.holders += 1;
        let counters = Arc::new(Counters::default());
        record.counters.push(counters.clone());
        Some(counters)
    }

    /// A queue has drained a path and dropped its queue there; `reported` is its last report of trouble.
    pub(crate) fn release(&self, id: PathId, counters: &Arc<Counters>, reported: QueueTrouble) {
        let mut control = self.lock();
        let Some(at) = control.find(id) else { return };
        let record = &mut control.paths[at];
        record.holders = record.holders.saturating_sub(1);
        record.counters.retain(|c| !Arc::ptr_eq(c, counters));
        record.retired.retire(counters);
        record.count_trouble(reported, QueueTrouble::default());
        if record.state == PathState::Removing && record.holders == 0 {
            control.finish_removal(at, self.time(), &self.caches);
            self.changed(&mut control);
        } else {
            control.follow_queues(at, self.time());
        }
    }

    /// A queue of a path went down or came back, or began or ended to stall.
    pub(crate) fn report_queue_trouble(&self, id: PathId, old: QueueTrouble, new: QueueTrouble, cause: Code) {
        let mut control = self.lock();
        // The device may have said why already: its word first.
        self.review_changed(&mut control);
        if let Some(at) = control.find(id) {
            control.queue_trouble(at, old, new, cause, self.time());
        }
    }

    pub(crate) fn report_suspects(&self, id: PathId, cause: Code, fence: FenceTerms) {
        self.publish(self.time(), id, EventKind::PathSuspect { cause, fence });
    }

    /// Publishes something that happened to a path at `when`.
    pub(crate) fn publish(&self, when: Time, id: PathId, kind: EventKind) {
        let mut control = self.lock();
        if let Some(at) = control.find(id) {
            control.publish(when, Some(at), kind);
        }
    }

    /// As many requests of a queue wait for a path as `now`; it were `before`.
    pub(crate) fn set_waiting(&self, before: usize, now: usize) {
        self.tell(self.outage.set_waiting(before, now));
    }

    /// A request has waited for a path as long as it may.
    pub(crate) fn request_failed(&self) {
        self.tell(self.outage.request_failed());
    }

    fn tell(&self, news: Option<Tell>) {
        if let Some(news) = news {
            self.lock().tell(news);
        }
    }

    /// Whoever submits relies on the abilities shown.
    pub(crate) fn freeze(&self) {
        self.lock().freeze();
    }

    pub(crate) fn queue_closed(&self) {
        self.open_queues.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Control> {
        // Nothing below the lock runs foreign code that may panic half-way through a change; a poisoned lock is still sound.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether a path changed, and acts on it.
    pub(crate) fn review(&self) {
        self.review_changed(&mut self.lock());
        self.drive_reservations();
        self.drive_proofs();
    }

    pub(crate) fn review_changed(&self, control: &mut Control) {
        if control.review_changed(self.time(), &self.caches) {
            self.changed(control);
        }
    }

    /// Something that queues must know has changed.
    pub(crate) fn changed(&self, control: &mut Control) {
        if control.compute_info(self.time()) {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        for host in &control.hosts {
            host.wake();
        }
    }
}
