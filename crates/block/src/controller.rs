//! Queues of a controller with several units: one queue pair carries the requests of all of them.

use crate::device::{OpenError, QueueConfig};
use crate::fence::{FenceState, FenceTerms};
use crate::io::Io;
use crate::queue::{Armed, Cx, Done, Health, Refused, Rest, Waits, one_by_one};
use crate::time::Time;
use std::sync::Arc;

/// Names a unit of a controller to its driver: an NVMe namespace, a SCSI logical unit.
///
/// The number is the driver's (NSID, LUN); [`UnitId::ONLY`] is the one unit of a controller that has one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct UnitId(pub u64);

impl UnitId {
    /// The only unit there is.
    pub const ONLY: UnitId = UnitId(0);
}

/// A unit that is open on a [`ControllerQueue`]: its place in the queue's table. Means nothing to another queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Unit(pub u16);

/// One queue pair of a controller, owned by one reactor for life, that carries requests to any of the controller's units.
///
/// It keeps the promises of [`crate::IoQueue`]; tags are unique over all units, and a request becomes suspect once at most. Health is that
/// of a unit over this queue: a namespace in trouble is [`Health::Down`] while the others go on.
///
/// Whoever shares it among several users (`polypath-sharing`) polls it once a turn and arms it once a sleep, for all of them.
pub trait ControllerQueue {
    /// Opens a unit, whether it answers yet or not. Opening one again gives the same place, which is then closed as often as
    /// it was opened. May allocate.
    ///
    /// # Errors
    /// [`OpenError::System`] when the queue's table of units is full.
    fn open_unit(&mut self, id: UnitId) -> Result<Unit, OpenError>;

    /// Closes a unit once. With the last of its users nothing of it is open any more: no request, and no fence.
    fn close_unit(&mut self, unit: Unit);

    /// As [`crate::IoQueue::submit`], to `unit`.
    ///
    /// # Errors
    /// As [`crate::IoQueue::submit`]: `Full` is said of the queue and all units, `Gone` of this unit alone.
    fn submit(&mut self, cx: &mut Cx<'_>, unit: Unit, io: Io) -> Result<(), Refused>;

    /// As [`crate::IoQueue::submit_all`], to `unit`.
    ///
    /// # Errors
    /// As [`crate::IoQueue::submit_all`], with the meaning of [`ControllerQueue::submit`].
    fn submit_all(&mut self, cx: &mut Cx<'_>, unit: Unit, ios: &[Io]) -> Result<(), Rest> {
        one_by_one(ios, |io| self.submit(cx, unit, io))
    }

    /// As [`crate::IoQueue::kick`].
    fn kick(&mut self, cx: &mut Cx<'_>);

    /// As [`crate::IoQueue::poll`], for all units.
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done);

    /// As [`crate::IoQueue::arm`].
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed;

    /// Can `unit` take requests over this queue, and does it seem to get anywhere?
    fn health(&self, unit: Unit) -> Health;

    /// As [`crate::IoQueue::close`].
    fn close(&mut self, cx: &mut Cx<'_>);

    /// As [`crate::IoQueue::is_drained`].
    fn is_drained(&self) -> bool;

    /// As [`crate::IoQueue::is_surplus`]: then all units are [`Health::Down`].
    fn is_surplus(&self) -> bool {
        false
    }

    /// Who can tell when what the queue had sent is quiet, should it be dropped undrained because its reactor ends. `None` when
    /// nobody can: then the outcome of what was open stays unknown. Asked for once, when the queue opens.
    fn end_fence(&self) -> Option<Arc<dyn QueueFence>> {
        None
    }
}

/// The fence of a queue that was dropped under its requests, for users on other reactors that outlive it.
///
/// It covers everything that the queue had sent and nobody answered, whatever unit it was for. It is asked by several threads, some fifty
/// times a second each, and only while something waits for it: it may lock.
pub trait QueueFence: Send + Sync {
    /// Which proof it gives, and how long after the end of the queue at the latest. Told to users as the terms of what became suspect.
    fn terms(&self) -> FenceTerms;

    /// Where it stands at `now`: [`FenceState::Idle`] while the queue lives, never after it was dropped. [`FenceState::Failed`], or to be
    /// idle for much longer than the terms say, leaves the outcome of changes unknown.
    fn state(&self, now: Time) -> FenceState;
}

/// A controller as the source of its queues. Shared between threads; nothing of it is on the data path.
pub trait QueueSource: Send + Sync {
    /// Name of the controller, for people.
    fn name(&self) -> &str;

    /// Opens a queue pair on the reactor whose thread calls. Never waits: units of a controller that is not up yet are
    /// [`Health::Down`] until it is.
    ///
    /// # Errors
    /// [`OpenError::NoQueue`] when the controller has granted as many as are open; others as
    /// [`crate::Device::open_queue`].
    fn open_controller_queue(&self, config: QueueConfig) -> Result<Box<dyn ControllerQueue>, OpenError>;
}
