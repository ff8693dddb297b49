//! A queue of one namespace: a queue pair of its own with one unit on it.

use super::QueuePair;
use crate::shared::Shared;
use polypath_block::{
    Armed, ControllerQueue, Cx, Done, Health, Io, IoQueue, OpenError, QueueConfig, Refused, Rest, Unit, UnitId, Waits,
};
use std::sync::Arc;

/// See the module.
pub(crate) struct NamespaceQueue {
    pair: QueuePair,
    unit: Unit,
}

impl NamespaceQueue {
    pub(crate) fn open(shared: Arc<Shared>, id: UnitId, config: QueueConfig) -> Result<Self, OpenError> {
        let mut pair = QueuePair::open(shared, config)?;
        let unit = pair.open_unit(id)?;
        Ok(NamespaceQueue { pair, unit })
    }
}

impl IoQueue for NamespaceQueue {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.pair.submit(cx, self.unit, io)
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        self.pair.submit_all(cx, self.unit, ios)
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.pair.kick(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.pair.poll(cx, done);
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        self.pair.arm(cx, waits)
    }

    fn health(&self) -> Health {
        self.pair.health(self.unit)
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.pair.close(cx);
    }

    fn is_drained(&self) -> bool {
        self.pair.is_drained()
    }

    fn is_surplus(&self) -> bool {
        self.pair.is_surplus()
    }
}
