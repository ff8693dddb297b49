//! A queue of one logical unit: a disk queue of its own with one unit on it.

use super::DiskQueue;
use crate::midlayer::task::TaskQueue;
use polypath_block::{
    Armed, ControllerQueue, Cx, Done, Health, Io, IoQueue, OpenError, Refused, Rest, Unit, UnitId, Waits,
};

/// See the module.
pub struct LogicalUnitQueue<Q: TaskQueue> {
    queue: DiskQueue<Q>,
    unit: Unit,
}

impl<Q: TaskQueue> LogicalUnitQueue<Q> {
    /// The unit `id` of `queue`.
    ///
    /// # Errors
    /// As [`ControllerQueue::open_unit`].
    pub fn new(mut queue: DiskQueue<Q>, id: UnitId) -> Result<Self, OpenError> {
        let unit = queue.open_unit(id)?;
        Ok(LogicalUnitQueue { queue, unit })
    }
}

impl<Q: TaskQueue> IoQueue for LogicalUnitQueue<Q> {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.queue.submit(cx, self.unit, io)
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        self.queue.submit_all(cx, self.unit, ios)
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.queue.kick(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.queue.poll(cx, done);
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        self.queue.arm(cx, waits)
    }

    fn health(&self) -> Health {
        self.queue.health(self.unit)
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.queue.close(cx);
    }

    fn is_drained(&self) -> bool {
        self.queue.is_drained()
    }

    fn is_surplus(&self) -> bool {
        self.queue.is_surplus()
    }
}
