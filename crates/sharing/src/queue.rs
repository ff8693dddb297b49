//! A queue that is the device's own, or a share of one, and changes from one to the other when it must.

use crate::device::Sharing;
use crate::hub::Port;
use crate::link::Client;
use polypath_block::{Armed, Cx, Done, Health, Io, IoQueue, OpenError, Refused, RefusedWhy, Time, Waits};
use std::sync::Arc;
use std::time::Duration;

/// Pause between two looks for a queue to share, the first and the longest: each look asks the device for one of its own, too.
const SEEK_FIRST: Duration = Duration::from_millis(20);
const SEEK_MOST: Duration = Duration::from_secs(1);
/// Ways that were left and still have something open; with more, no new one is taken.
const MOST_LEAVING: usize = 4;

/// Where requests go.
enum Way {
    /// Nowhere yet.
    Seeking { at: Time },
    /// To a queue of this reactor.
    Port(Port),
    /// To a queue of another one.
    Link(Box<Client>),
}

/// See the module.
pub(crate) struct SharedQueue {
    sharing: Arc<Sharing>,
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
    pub(crate) fn over(sharing: Arc<Sharing>, depth: u16, port: Port) -> Self {
        SharedQueue::new(sharing, depth, Way::Port(port))
    }

    /// Finds a queue in its first turn.
    pub(crate) fn seeking(sharing: Arc<Sharing>, depth: u16) -> Self {
        SharedQueue::new(sharing, depth, Way::Seeking { at: Time::ZERO })
    }

    fn new(sharing: Arc<Sharing>, depth: u16, way: Way) -> Self {
        let leaving = Vec::with_capacity(MOST_LEAVING);
        SharedQueue { sharing, depth, way, leaving, closed: false, pause: SEEK_FIRST, told: false }
    }

    #[cold]
    fn seek(&mut self, cx: &Cx<'_>) {
        let device = self.sharing.inner.name();
        let found = match self.sharing.own(self.depth) {
            Ok(port) => Some(Way::Port(port)),
            Err(OpenError::NoQueue { .. }) => self.share(cx),
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(device, reactor = cx.reactor, %error, "no I/O queue; looking again now and then");
                }
                None
            }
        };
        self.pause = if found.is_some() { SEEK_FIRST } else { (self.pause * 2).min(SEEK_MOST) };
        // The first looks may just be early: an owner that has had no turn yet cannot be found.
        if self.pause == SEEK_MOST && !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                device,
                reactor = cx.reactor,
                "the device grants no more I/O queues and none of them can be shared; looking again"
            );
        }
        self.way = found.unwrap_or(Way::Seeking { at: cx.now.after(self.pause) });
    }

    fn share(&self, cx: &Cx<'_>) -> Option<Way> {
        let (device, reactor) = (self.sharing.inner.name(), cx.reactor);
        if let Some(port) = self.sharing.here(self.depth) {
            tracing::info!(device, reactor, "shares an I/O queue of its own reactor: the device grants no more");
            return Some(Way::Port(port));
        }
        let (client, owner) = self.sharing.elsewhere(cx, self.depth)?;
        tracing::info!(device, reactor, owner, "shares an I/O queue of another reactor: the device grants no more");
        Some(Way::Link(Box::new(client)))
    }

    /// Gives the way up when it has no place at the device.
    #[cold]
    fn change_way(&mut self, cx: &mut Cx<'_>) {
        // A link that ends tells so at once; what it led to needs a moment to be gone.
        let at = if matches!(self.way, Way::Port(_)) { cx.now } else { cx.now.after(SEEK_FIRST) };
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
            Way::Port(port) => port.poll(cx, done),
            Way::Link(client) => client.poll(cx, done),
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        match self {
            Way::Seeking { at } => {
                waits.until(*at);
                Armed::Sleep
            }
            Way::Port(port) => port.arm(cx, waits),
            Way::Link(client) => client.arm(cx, waits),
        }
    }

    #[inline]
    fn is_over(&self) -> bool {
        match self {
            Way::Seeking { .. } => false,
            Way::Port(port) => port.is_surplus(),
            Way::Link(client) => client.is_ended(),
        }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        match self {
            Way::Seeking { .. } => {}
            Way::Port(port) => port.close(cx),
            Way::Link(client) => client.close(),
        }
    }

    fn is_drained(&self) -> bool {
        match self {
            Way::Seeking { .. } => true,
            Way::Port(port) => port.is_drained(),
            Way::Link(client) => client.is_drained(),
        }
    }
}

impl IoQueue for SharedQueue {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        match &mut self.way {
            _ if self.closed => Err(Refused { io, why: RefusedWhy::Gone }),
            Way::Seeking { .. } => Err(Refused { io, why: RefusedWhy::Gone }),
            Way::Port(port) => port.submit(cx, io),
            Way::Link(client) => client.submit(cx, io),
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        match &mut self.way {
            Way::Seeking { .. } => {}
            Way::Port(port) => port.kick(cx),
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
            Way::Port(port) => port.health(),
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
