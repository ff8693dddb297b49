//! A multipath device: the control plane of one disk and its paths.
//!
//! No thread and no clock of its own: whoever asks ([`Group::state`], [`Group::refresh`]) and every open queue, once a turn,
//! look for what changed. The lock of the group is taken when something changed, never for an I/O.

use crate::config::{Fencing, GroupConfig, GroupError, MAX_DEPTH, MAX_PATHS, PathConfig, PathId, SelectorKind};
use crate::control::Control;
use crate::event::Events;
use crate::outage::Availability;
use crate::path::PathRecord;
use crate::queue::MultipathQueue;
use crate::reservations::ReservationState;
use crate::shared::GroupShared;
use crate::stats::PathStatistics;
use core::time::Duration;
use polypath_block::{
    CommandSet, Device, DeviceInfo, DeviceState, Host, IoQueue, OpenError, Passthrough, PassthroughReply,
    PassthroughRequest, QueueConfig, ReservationOp, ReservationReply, Reservations, Time,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One disk over many paths. A [`Device`] itself.
///
/// Once a path was admitted, [`Device::state`] stays [`DeviceState::Live`] until [`Device::close`], whatever becomes of the paths:
/// the access in its info tells whether one can be used now, and I/O waits as configured when none can.
pub struct Group {
    shared: Arc<GroupShared>,
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
        Arc::new(Group { shared: GroupShared::new(config) })
    }

    /// Adds a path. It carries I/O once its device answers and was verified; that needs no further call.
    ///
    /// # Errors
    /// [`GroupError`]: closed, no room, name or device taken, weight of zero.
    pub fn add_path(&self, path: PathConfig) -> Result<PathId, GroupError> {
        let group = || self.shared.name.to_string();
        if path.weight == 0 {
            return Err(GroupError::ZeroWeight { group: group() });
        }
        let mut control = self.shared.lock();
        if self.shared.is_closed() {
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
        let id = control.add(path, self.shared.time(), &self.shared.caches);
        self.shared.changed(&mut control);
        Ok(id)
    }

    /// Removes a path while I/O runs: it takes nothing new, what is in flight on it drains, every reactor releases it,
    /// then its device is closed and [`crate::EventKind::PathRemoved`] told. Idempotent until that has happened.
    ///
    /// # Errors
    /// [`GroupError::NoSuchPath`].
    pub fn remove_path(&self, id: PathId) -> Result<(), GroupError> {
        let mut control = self.shared.lock();
        let at = self.find(&control, id)?;
        control.begin_removal(at, self.shared.time(), &self.shared.caches);
        self.shared.changed(&mut control);
        Ok(())
    }

    /// Chooses paths by another rule from now on. Takes effect within a turn of each reactor; nothing in flight is touched.
    pub fn set_selector(&self, selector: SelectorKind) {
        let mut control = self.shared.lock();
        control.selector = selector;
        tracing::info!(group = %self.shared.name, %selector, "selector set");
        self.shared.changed(&mut control);
    }

    /// The rule in use.
    pub fn selector(&self) -> SelectorKind {
        self.shared.lock().selector
    }

    /// Gives a path another weight.
    ///
    /// # Errors
    /// [`GroupError::NoSuchPath`], [`GroupError::ZeroWeight`].
    pub fn set_weight(&self, id: PathId, weight: u32) -> Result<(), GroupError> {
        if weight == 0 {
            return Err(GroupError::ZeroWeight { group: self.shared.name.to_string() });
        }
        let mut control = self.shared.lock();
        let at = self.find(&control, id)?;
        control.paths[at].shared.weight.store(weight, Ordering::Relaxed);
        self.shared.changed(&mut control);
        Ok(())
    }

    /// Marks a path as preferred, or not any more.
    ///
    /// # Errors
    /// [`GroupError::NoSuchPath`].
    pub fn set_preferred(&self, id: PathId, preferred: bool) -> Result<(), GroupError> {
        let mut control = self.shared.lock();
        let at = self.find(&control, id)?;
        control.paths[at].shared.preferred.store(preferred, Ordering::Relaxed);
        self.shared.changed(&mut control);
        Ok(())
    }

    /// The paths in the order they were added, those being removed included.
    pub fn paths(&self) -> Vec<PathId> {
        self.shared.lock().paths.iter().map(|p| p.shared.id).collect()
    }

    /// The path named `name`.
    pub fn find_path(&self, name: &str) -> Option<PathId> {
        self.shared.lock().paths.iter().find(|p| *p.shared.name == *name).map(|p| p.shared.id)
    }

    /// Numbers of every path, in the order they were added.
    pub fn statistics(&self) -> Vec<PathStatistics> {
        self.refresh();
        self.shared.lock().paths.iter().map(PathRecord::statistics).collect()
    }

    /// What it can do for requests now: how many paths take I/O, how many requests wait for one or failed for want of one.
    pub fn availability(&self) -> Availability {
        self.refresh();
        self.shared.outage.availability()
    }

    /// Would the group be without a usable path if this one were removed, and is not without one now?
    ///
    /// # Errors
    /// [`GroupError::NoSuchPath`].
    pub fn is_last_usable(&self, id: PathId) -> Result<bool, GroupError> {
        let mut control = self.shared.lock();
        self.shared.review_changed(&mut control);
        let at = self.find(&control, id)?;
        let others = control.paths.iter().filter(|p| p.shared.id != id).any(PathRecord::is_usable);
        Ok(control.paths[at].is_usable() && !others)
    }

    /// Everything that happens from now on. Bounded; several may listen.
    pub fn events(&self) -> Events {
        self.shared.lock().subscribers.subscribe()
    }

    /// Where its reservations stand. They are asked for by [`Device::reservations`].
    pub fn reservation_state(&self) -> ReservationState {
        self.shared.reservation_state()
    }

    /// Freezes the abilities shown now: paths that lack one are quarantined from here on, smaller sizes are split for.
    /// Called by whoever exports the disk; the first I/O does it too. No effect before the first path was admitted.
    pub fn freeze(&self) {
        self.shared.freeze();
    }

    /// Wakes `host` from now on when paths are added, removed or change, so that a sleeping reactor follows at once.
    /// Without it a reactor that sleeps looks by itself, once a second.
    pub fn attach_host(&self, host: Arc<dyn Host>) {
        let mut control = self.shared.lock();
        if !control.hosts.iter().any(|h| h.reactor() == host.reactor()) {
            control.hosts.push(host);
        }
    }

    /// Looks whether a path changed, and acts on it. Queues do it every turn; a control plane without queues may.
    pub fn refresh(&self) {
        self.shared.review();
    }

    /// The same, and tells the group the time, which it has from its queues: for one that nobody uses now.
    pub fn refresh_at(&self, now: Time) {
        self.shared.set_time(now);
        self.refresh();
    }

    /// Looks again at the paths that [`crate::Ledger::admit`] has not let in.
    pub fn look_again(&self) {
        let mut control = self.shared.lock();
        control.look_again();
        self.shared.review_changed(&mut control);
    }

    /// Is nothing in a volatile cache that a flush is still owed for? Not while somebody else may have answered the last one.
    pub fn is_flushed(&self) -> bool {
        self.shared.caches.dirty_mask() == 0
    }

    /// What the paths show that carry I/O now, and how long changes of each may land ([`Device::landing_bound`]).
    pub fn admitted(&self) -> Vec<(Arc<DeviceInfo>, Duration)> {
        let control = self.shared.lock();
        let admitted = control.paths.iter().filter(|p| p.verified);
        admitted.filter_map(|p| Some((p.info.clone()?, p.shared.device.landing_bound()))).collect()
    }

    fn find(&self, control: &Control, id: PathId) -> Result<usize, GroupError> {
        control.find(id).ok_or_else(|| GroupError::NoSuchPath { group: self.shared.name.to_string(), id })
    }
}

impl Device for Group {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn state(&self) -> DeviceState {
        self.shared.review();
        let control = self.shared.lock();
        if self.shared.is_closed() {
            return DeviceState::Gone { reason: format!("{} was closed", self.shared.name) };
        }
        match &control.info {
            Some(info) => DeviceState::Live(info.clone()),
            None => control.state_without_info(),
        }
    }

    fn version(&self) -> u64 {
        // Nobody else looks at the paths while no queue is open.
        if self.shared.open_queues.load(Ordering::Acquire) == 0 {
            self.refresh();
        }
        self.shared.version.load(Ordering::Acquire)
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let gone = || OpenError::Gone { name: self.shared.name.to_string(), reason: "the group was closed".into() };
        if self.shared.is_closed() {
            return Err(gone());
        }
        if config.depth == 0 || config.depth > MAX_DEPTH {
            let reason = format!("queue depth {} is not from 1 to {MAX_DEPTH}", config.depth);
            return Err(OpenError::Unsupported { name: self.shared.name.to_string(), reason });
        }
        self.shared.open_queues.fetch_add(1, Ordering::AcqRel);
        Ok(Box::new(MultipathQueue::new(self.shared.clone(), config.depth)))
    }

    /// That of the path for which it is longest.
    fn landing_bound(&self) -> Duration {
        let control = self.shared.lock();
        control.paths.iter().map(|p| p.shared.device.landing_bound()).max().unwrap_or_default()
    }

    fn losses(&self) -> u64 {
        self.shared.caches.losses()
    }

    fn reservations(&self) -> Option<&dyn Reservations> {
        Some(self)
    }

    fn passthrough(&self) -> Option<&dyn Passthrough> {
        Some(self)
    }

    fn close(&self) {
        let mut control = self.shared.lock();
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        for record in &mut control.paths {
            record.closing = true;
            record.shared.device.close();
        }
        self.shared.version.fetch_add(1, Ordering::AcqRel);
        self.shared.changed(&mut control);
    }
}

/// One registration for the disk: each path has it before it carries I/O, and whatever else is asked is asked of one path that answers.
/// [`ReservationOp::Register`] succeeds when at least one path is registered; those that are not carry nothing.
impl Reservations for Group {
    fn start(&self, op: ReservationOp, limit: Duration, reply: ReservationReply) {
        self.refresh();
        self.shared.start_reservation(op, limit, reply);
    }

    fn forget(&self) {
        self.shared.forget_reservations();
    }

    fn alarms(&self) -> u64 {
        self.shared.reservation_alarms()
    }
}

/// Over one path that is usable and speaks it, the best first; each that is tried is given the limit. What changes nothing is tried on another one when
/// the first was lost before it answered; what may change something is not, and is refused while a path has lost changes that are not
/// proven quiet.
impl Passthrough for Group {
    fn speaks(&self, set: CommandSet) -> bool {
        self.shared.speaks(set)
    }

    fn start(&self, request: PassthroughRequest, limit: Duration, reply: PassthroughReply) {
        self.refresh();
        self.shared.start_passthrough(request, limit, reply);
    }
}

impl core::fmt::Debug for Group {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Group").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
