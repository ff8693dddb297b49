//! A device as the controller of its only unit.

use polypath_block::{
    Armed, ControllerQueue, Cx, Device, Done, Health, Io, IoQueue, OpenError, QueueConfig, QueueSource, Refused, Rest,
    Unit, UnitId, Waits,
};
use std::sync::Arc;

/// See the module.
pub(crate) struct SingleUnit(pub(crate) Arc<dyn Device>);

impl QueueSource for SingleUnit {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn open_controller_queue(&self, config: QueueConfig) -> Result<Box<dyn ControllerQueue>, OpenError> {
        Ok(Box::new(SingleQueue(self.0.open_queue(config)?)))
    }
}

struct SingleQueue(Box<dyn IoQueue>);

impl ControllerQueue for SingleQueue {
    fn open_unit(&mut self, _: UnitId) -> Result<Unit, OpenError> {
        Ok(Unit(0))
    }

    fn close_unit(&mut self, _: Unit) {}

    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, _: Unit, io: Io) -> Result<(), Refused> {
        self.0.submit(cx, io)
    }

    #[inline]
    fn submit_all(&mut self, cx: &mut Cx<'_>, _: Unit, ios: &[Io]) -> Result<(), Rest> {
        self.0.submit_all(cx, ios)
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.0.kick(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.0.poll(cx, done);
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        self.0.arm(cx, waits)
    }

    fn health(&self, _: Unit) -> Health {
        self.0.health()
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.0.close(cx);
    }

    fn is_drained(&self) -> bool {
        self.0.is_drained()
    }

    fn is_surplus(&self) -> bool {
        self.0.is_surplus()
    }
}
