//! What a device, its queues and its keeper have in common: how it stands with the back-end, and the ways to tell each other.

use crate::blk::Abilities;
use crate::config::ClientConfig;
use crate::regions::{Known, Mapped, Regions};
use crate::ring::{Ring, ring_bell};
use polypath_block::{Code, DeviceInfo, DeviceState, RegionId, Waits};
use polypath_memory::{self as memory, Backing, Region, RegionWatcher};
use polypath_net::{Bell, Closer, Peer, Theirs};
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Threads that tell the back-end of requests where we cannot, for each queue: of its ring, and of the one that is being taken down.
const HELPERS_PER_QUEUE: usize = 2;

/// Why the connection is of no use any more. Does not end.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    /// What it means for I/O.
    pub(crate) code: Code,
    /// For people.
    pub(crate) reason: String,
    /// The back-end itself ended the connection. By the protocol, and by the kernel where its process was killed, it does not touch our
    /// memory after that.
    pub(crate) closed_by_peer: bool,
}

/// The place of one open queue: a vring, and how to wake whoever owns the queue.
pub(crate) struct Seat {
    /// Number of the vring.
    pub(crate) index: u16,
    /// Rung by the back-end for requests that ended. It has the descriptor as well, may change its mode and read it.
    pub(crate) call: Arc<Theirs<OwnedFd>>,
    /// Names `call` among all descriptors of the process.
    pub(crate) call_id: u64,
    /// Rung by us for news. The back-end does not have it: it cannot take a ring away.
    pub(crate) bell: Bell,
    /// The ring, once the back-end has taken it, until the queue fetches it.
    pub(crate) ring: Mutex<Option<Ring>>,
}

/// What the keeper is asked to do.
pub(crate) enum Order {
    /// Tell the back-end of a region.
    Map(RegionId, Backing),
    /// Tell the back-end to let go of a region.
    Unmap(Mapped),
    /// Set up the ring of a queue that was opened.
    Start(Arc<Seat>),
    /// Take down the ring of a queue that was dropped, after what it has in flight.
    Stop(Arc<Seat>, Option<Ring>),
}

/// Orders in the order they were given.
#[derive(Default)]
struct Inbox {
    orders: Vec<Order>,
    /// The keeper has ended; nobody carries out any.
    ended: bool,
}

pub(crate) struct Shared {
    /// URI, for people.
    pub(crate) name: String,
    pub(crate) config: ClientConfig,
    pub(crate) info: Arc<DeviceInfo>,
    pub(crate) abilities: Abilities,
    /// Memory of all rings, and where the back-end has it.
    pub(crate) rings: Region,
    pub(crate) rings_base: u64,
    /// Most regions that the back-end has room for, beside the one of the rings.
    pub(crate) slots: u64,
    /// The back-end, as far as eventfds go, and who closes those that it has as well.
    pub(crate) peer: Arc<Peer>,
    pub(crate) closer: Closer,
    pub(crate) closed: AtomicBool,
    death: OnceLock<Death>,
    version: AtomicU64,
    /// Grows with everything that a queue should look at: regions, rings, death.
    news: AtomicU64,
    regions: Mutex<Regions>,
    seats: Mutex<Vec<Arc<Seat>>>,
    /// Vrings that no queue has.
    free: Mutex<Vec<u16>>,
    inbox: Mutex<Inbox>,
    keeper_bell: OwnedFd,
}

/// What a connection has when it begins its life as a device.
pub(crate) struct Beginning {
    pub(crate) name: String,
    pub(crate) config: ClientConfig,
    pub(crate) info: DeviceInfo,
    pub(crate) abilities: Abilities,
    pub(crate) rings: Region,
    pub(crate) rings_base: u64,
    pub(crate) slots: u64,
    pub(crate) regions: Regions,
    pub(crate) keeper_bell: OwnedFd,
}

impl Shared {
    pub(crate) fn new(begin: Beginning) -> Arc<Shared> {
        let queues = begin.config.queues;
        let shared = Arc::new(Shared {
            name: begin.name,
            config: begin.config,
            info: Arc::new(begin.info),
            abilities: begin.abilities,
            rings: begin.rings,
            rings_base: begin.rings_base,
            slots: begin.slots,
            peer: Peer::new(HELPERS_PER_QUEUE * usize::from(queues)),
            closer: Closer::default(),
            closed: AtomicBool::new(false),
            death: OnceLock::new(),
            version: AtomicU64::new(1),
            news: AtomicU64::new(1),
            regions: Mutex::new(begin.regions),
            seats: Mutex::default(),
            free: Mutex::new((0..queues).rev().collect()),
            inbox: Mutex::default(),
            keeper_bell: begin.keeper_bell,
        });
        let watcher: Arc<dyn RegionWatcher> = shared.clone();
        memory::watch(Arc::downgrade(&watcher));
        shared
    }

    pub(crate) fn state(&self) -> DeviceState {
        match self.death.get() {
            Some(death) => DeviceState::Gone { reason: death.reason.clone() },
            None if self.closed.load(Ordering::Acquire) => DeviceState::Gone { reason: "closed".into() },
            None => DeviceState::Live(self.info.clone()),
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    pub(crate) fn news(&self) -> u64 {
        self.news.load(Ordering::Acquire)
    }

    pub(crate) fn death(&self) -> Option<&Death> {
        self.death.get()
    }

    /// Ends the connection for everybody. The first one to say why is heard.
    pub(crate) fn die(&self, death: Death) {
        if self.death.set(death).is_err() {
            return;
        }
        if let Some(death) = self.death.get() {
            tracing::warn!(device = %self.name, reason = %death.reason, "the back-end is given up");
        }
        self.version.fetch_add(1, Ordering::Release);
        self.tell_queues();
        ring_bell(&self.keeper_bell);
    }

    /// No new queues; the keeper ends with the last one.
    pub(crate) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.version.fetch_add(1, Ordering::Release);
            ring_bell(&self.keeper_bell);
        }
    }

    /// Wakes all queues.
    pub(crate) fn tell_queues(&self) {
        self.news.fetch_add(1, Ordering::AcqRel);
        lock(&self.seats).iter().for_each(|seat| seat.bell.ring());
    }

    /// Gives the keeper something to do. False if it has ended and nothing will be done; a ring is erased then.
    pub(crate) fn order(&self, order: Order) -> bool {
        let mut inbox = lock(&self.inbox);
        if inbox.ended {
            drop(inbox);
            if let Order::Stop(_, Some(ring)) = order {
                ring.erase();
            }
            return false;
        }
        inbox.orders.push(order);
        drop(inbox);
        ring_bell(&self.keeper_bell);
        true
    }

    /// All orders so far. With `end`, there are none after these.
    pub(crate) fn take_orders(&self, end: bool) -> Vec<Order> {
        let mut inbox = lock(&self.inbox);
        inbox.ended |= end;
        std::mem::take(&mut inbox.orders)
    }

    pub(crate) fn keeper_bell(&self) -> &OwnedFd {
        &self.keeper_bell
    }

    pub(crate) fn regions(&self) -> MutexGuard<'_, Regions> {
        lock(&self.regions)
    }

    /// Has the back-end told of `region`, if nobody has before. Does not wait: there are news when it is settled.
    ///
    /// # Errors
    /// [`Code::BadMemory`] when there is no such region.
    pub(crate) fn ask_for(&self, region: RegionId) -> Result<(), Code> {
        let backing = memory::with(|t| t.backing(region)).ok_or(Code::BadMemory)?;
        if !self.regions().ask(region) {
            return Ok(());
        }
        // It may have been dropped between the two: then nobody has forgotten it, or will.
        if memory::with(|t| t.region_len(region)).is_none() {
            self.regions().forget(region);
            return Err(Code::BadMemory);
        }
        self.order(Order::Map(region, backing));
        Ok(())
    }

    /// A place for a queue; `None` if all are taken.
    pub(crate) fn take_seat(&self) -> std::io::Result<Option<Arc<Seat>>> {
        let (call, bell) = (Theirs::new(crate::ring::bell()?, self.closer.clone()), Bell::new()?);
        let Some(index) = lock(&self.free).pop() else { return Ok(None) };
        let seat =
            Arc::new(Seat { index, call: Arc::new(call), call_id: Waits::unique(), bell, ring: Mutex::default() });
        lock(&self.seats).push(seat.clone());
        Ok(Some(seat))
    }

    /// Gives a place back, whose ring is stopped before the next queue's is started.
    pub(crate) fn leave_seat(&self, seat: Arc<Seat>, ring: Option<Ring>) {
        self.order(Order::Stop(seat.clone(), ring));
        // After the order, so that the next queue's comes after it, and the keeper does not end before it was given.
        lock(&self.free).push(seat.index);
        lock(&self.seats).retain(|s| !Arc::ptr_eq(s, &seat));
        ring_bell(&self.keeper_bell);
    }

    /// Is no queue open, and nothing left to do for those that were?
    pub(crate) fn is_empty(&self) -> bool {
        // In this order: the last order of a queue is given before it leaves its seat.
        lock(&self.seats).is_empty() && lock(&self.inbox).orders.is_empty()
    }
}

impl RegionWatcher for Shared {
    /// What the back-end has of it is told to let go; no look-up finds it from here on.
    fn dropped(&self, region: RegionId) {
        let was = self.regions().forget(region);
        if was.is_none() {
            return;
        }
        // Without waking anybody: whoever looks a region up looks whether there are news first.
        self.news.fetch_add(1, Ordering::AcqRel);
        if let Some(Known::Mapped(mapped)) = was {
            self.order(Order::Unmap(mapped));
        }
    }
}

/// No panic leaves anything half done under these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
