//! A queue of one device: a share of its controller's queue on this reactor or on another one, and another share when it must.

use crate::device::Sharing;
use crate::link::Client;
use crate::owner::Share;
use polypath_block::{
    Armed, Cx, Device, Done, Health, Io, IoQueue, OpenError, Refused, RefusedWhy, Rest, Time, UnitId, Waits,
};
use std::sync::Arc;
use std::time::Duration;

/// Pause between two looks for a queue to share, the first and the longest: each look asks the controller for one, too.
const SEEK_FIRST: Duration = Duration::from_millis(20);
const SEEK_MOST: Duration = Duration::from_secs(1);
/// Ways that were left and still have something open; with more, no new one is taken.
const MOST_LEAVING: usize = 4;

/// Where requests go.
enum Way {
    /// Nowhere yet.
    Seeking { at: Time },
    /// To a queue of this reactor.
    Share(Share),
    /// To a queue of another one.
    Link(Box<Client>),
}

/// See the module.
pub(crate) struct SharedQueue {
    sharing: Arc<Sharing>,
    /// For its name, and because whoever has a queue keeps the device.
    device: Arc<dyn Device>,
    unit: UnitId,
    depth: u16,
    way: Way,
    /// Ways that were given up, until nothing of them is open: their fences go on.
    leaving: Vec<Way>,
    closed: bool,
    /// Pause after a look in vain.
    pause: Duration,
    told: bool,
}

impl SharedQueue {
    /// Finds a queue in its first turn.
    pub(crate) fn new(sharing: Arc<Sharing>, device: Arc<dyn Device>, unit: UnitId, depth: u16) -> Self {
        SharedQueue {
            sharing,
            device,
            unit,
            depth,
            way: Way::Seeking { at: Time::ZERO },
            leaving: Vec::with_capacity(MOST_LEAVING),
            closed: false,
            pause: SEEK_FIRST,
            told: false,
        }
    }

    #[cold]
    fn seek(&mut self, cx: &Cx<'_>) {
        let (sharing, unit, depth, device) = (&self.sharing, self.unit, self.depth, self.device.name());
        let here = sharing.here(cx.reactor, unit, depth).unwrap_or_else(|| sharing.own(cx.reactor, unit, depth));
        let found = match here {
            Ok(share) => Some(Way::Share(share)),
            Err(OpenError::NoQueue { .. }) => self.cross(cx),
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(device, reactor = cx.reactor, %error, "no I/O queue; looking again now and then");
                }
                None
            }
        };
        // A link may still be refused, again and again.
        let settled = matches!(found, Some(Way::Share(_)));
        self.pause = if settled { SEEK_FIRST } else { (self.pause * 2).min(SEEK_MOST) };
        // The first looks may just be early: somebody else may be opening the queue that is to be shared.
        if self.pause == SEEK_MOST && !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                device,
                reactor = cx.reactor,
                "the controller grants no more I/O queues and none of them can be shared; looking again"
            );
        }
        self.way = found.unwrap_or(Way::Seeking { at: cx.now.after(self.pause) });
    }

    fn cross(&self, cx: &Cx<'_>) -> Option<Way> {
        let (device, reactor) = (self.device.name(), cx.reactor);
        let (client, owner) = self.sharing.elsewhere(cx, self.unit, self.depth)?;
        tracing::info!(device, reactor, owner, "shares an I/O queue of another reactor: the controller grants no more");
        Some(Way::Link(Box::new(client)))
    }

    /// Gives the way up when it has no place at the device.
    #[cold]
    fn change_way(&mut self, cx: &mut Cx<'_>) {
        let at = match &self.way {
            Way::Share(_) | Way::Seeking { .. } => cx.now,
            Way::Link(client) => {
                if client.was_joined() {
                    self.pause = SEEK_FIRST;
                }
                // A link that ends tells so at once; what it led to needs a moment to be gone.
                cx.now.after(self.pause)
            }
        };
        let mut left = std::mem::replace(&mut self.way, Way::Seeking { at });
        left.close(cx);
        self.leaving.push(left);
    }

    #[cold]
    fn poll_leaving(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.leaving.iter_mut().for_each(|way| way.poll(cx, done));
        self.leaving.retain(|way| !way.is_drained());
    }
}

impl Way {
    #[inline]
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        match self {
            Way::Seeking { .. } => {}
            Way::Share(share) => share.poll(cx, done),
            Way::Link(client) => client.poll(cx, done),
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        match self {
            Way::Seeking { at } => {
                waits.until(*at);
                Armed::Sleep
            }
            Way::Share(share) => share.arm(cx, waits),
            Way::Link(client) => client.arm(cx, waits),
        }
    }

    #[inline]
    fn is_over(&self) -> bool {
        match self {
            Way::Seeking { .. } => false,
            Way::Share(share) => share.is_surplus(),
            Way::Link(client) => client.is_ended(),
        }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        match self {
            Way::Seeking { .. } => {}
            Way::Share(share) => share.close(cx),
            Way::Link(client) => client.close(),
        }
    }

    fn is_drained(&self) -> bool {
        match self {
            Way::Seeking { .. } => true,
            Way::Share(share) => share.is_drained(),
            Way::Link(client) => client.is_drained(),
        }
    }
}

impl IoQueue for SharedQueue {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        match &mut self.way {
            Way::Seeking { .. } => Err(Refused { io, why: RefusedWhy::Gone }),
            Way::Share(share) => share.submit(cx, io),
            Way::Link(client) => client.submit(cx, io),
        }
    }

    #[inline]
    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        match &mut self.way {
            _ if ios.is_empty() => Ok(()),
            Way::Seeking { .. } => Err(Rest { taken: 0, why: RefusedWhy::Gone }),
            Way::Share(share) => share.submit_all(cx, ios),
            Way::Link(client) => {
                for (taken, io) in ios.iter().enumerate() {
                    client.submit(cx, *io).map_err(|refused| Rest { taken, why: refused.why })?;
                }
                Ok(())
            }
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        match &mut self.way {
            Way::Seeking { .. } => {}
            Way::Share(share) => share.kick(cx),
            Way::Link(client) => client.kick(),
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.way.poll(cx, done);
        if !self.leaving.is_empty() {
            self.poll_leaving(cx, done);
        }
        if self.closed {
            return;
        }
        match self.way {
            Way::Seeking { at } if cx.now >= at => self.seek(cx),
            _ if self.way.is_over() && self.leaving.len() < MOST_LEAVING => self.change_way(cx),
            _ => {}
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let leaving = self.leaving.iter_mut().fold(Armed::Sleep, |armed, way| match way.arm(cx, waits) {
            Armed::Sleep => armed,
            Armed::Busy => Armed::Busy,
        });
        if leaving == Armed::Busy || (!self.closed && self.way.is_over() && self.leaving.len() < MOST_LEAVING) {
            return Armed::Busy;
        }
        match self.way {
            Way::Seeking { .. } if self.closed => Armed::Sleep,
            _ => self.way.arm(cx, waits),
        }
    }

    fn health(&self) -> Health {
        match &self.way {
            _ if self.closed => Health::Down,
            Way::Seeking { .. } => Health::Down,
            Way::Share(share) => share.health(),
            Way::Link(client) => client.health(),
        }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.closed = true;
        self.way.close(cx);
    }

    fn is_drained(&self) -> bool {
        self.closed && self.way.is_drained() && self.leaving.iter().all(Way::is_drained)
    }
}
