//! The part of a share owner that other threads reach. Control plane: nothing here is touched by a request.

use crate::link::Served;
use polypath_block::{Health, Host, QueueFence};
use polypath_net::Bell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// See the module.
pub(crate) struct OwnerMailbox {
    /// Unique in the process.
    pub(crate) id: u64,
    /// Name of the device, for logs.
    pub(crate) name: String,
    /// Number of the reactor that owns the queue.
    pub(crate) reactor: u16,
    /// Who can tell when what the queue had sent is quiet, should its reactor end under it.
    pub(crate) end_fence: Option<Arc<dyn QueueFence>>,
    shares: AtomicU32,
    health: AtomicU8,
    closed: AtomicBool,
    /// Rings when a crossing queue has sent something, or wants to be taken in.
    pub(crate) bell: Arc<Bell>,
    inbox: Mutex<Inbox>,
    /// There is something in it.
    has_links: AtomicBool,
    /// No proxy can be made: the host that has its number is another one.
    unreachable: AtomicBool,
}

#[derive(Default)]
struct Inbox {
    links: Vec<Served>,
    /// There is a proxy, or one has been asked for.
    proxied: bool,
}

impl OwnerMailbox {
    pub(crate) fn new(
        name: &str,
        reactor: u16,
        end_fence: Option<Arc<dyn QueueFence>>,
    ) -> io::Result<Arc<OwnerMailbox>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Ok(Arc::new(OwnerMailbox {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            reactor,
            end_fence,
            shares: AtomicU32::new(0),
            health: AtomicU8::new(health_to_u8(Health::Down)),
            closed: AtomicBool::new(false),
            bell: Arc::new(Bell::new()?),
            inbox: Mutex::default(),
            has_links: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
        }))
    }

    pub(crate) fn shares(&self) -> u32 {
        self.shares.load(Ordering::Relaxed)
    }

    pub(crate) fn set_shares(&self, shares: u32) {
        self.shares.store(shares, Ordering::Relaxed);
    }

    pub(crate) fn health(&self) -> Health {
        health_from_u8(self.health.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn set_health(&self, health: Health) {
        if self.health() != health {
            self.health.store(health_to_u8(health), Ordering::Relaxed);
        }
    }

    /// Takes nobody in any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Leaves a link for the proxy; makes one on `host` with `make` if there is none.
    pub(crate) fn apply(self: &Arc<Self>, link: Served, host: &dyn Host, make: fn(Arc<OwnerMailbox>, &dyn Host)) {
        let mut inbox = lock(&self.inbox);
        inbox.links.retain(|l| !l.is_gone());
        inbox.links.push(link);
        self.has_links.store(true, Ordering::Release);
        let first = !std::mem::replace(&mut inbox.proxied, true);
        drop(inbox);
        if first {
            make(self.clone(), host);
        }
        self.bell.ring();
    }

    /// Is anybody waiting to be taken in?
    #[inline]
    pub(crate) fn has_links(&self) -> bool {
        self.has_links.load(Ordering::Acquire)
    }

    /// Links that wait to be taken in.
    pub(crate) fn take_links(&self) -> Vec<Served> {
        self.has_links.store(false, Ordering::Release);
        std::mem::take(&mut lock(&self.inbox).links)
    }

    /// The proxy has nothing to do: may it end? Whoever comes afterwards asks for another one.
    pub(crate) fn dismiss_proxy(&self) -> bool {
        let mut inbox = lock(&self.inbox);
        let idle = inbox.links.is_empty();
        inbox.proxied &= !idle;
        idle
    }

    /// There is no proxy and cannot be one: who waits for it looks elsewhere.
    pub(crate) fn refuse_links(&self) {
        self.unreachable.store(true, Ordering::Release);
        let mut inbox = lock(&self.inbox);
        inbox.proxied = false;
        inbox.links.clear();
    }

    /// Can queues of other reactors share the owner's?
    pub(crate) fn is_reachable(&self) -> bool {
        !self.unreachable.load(Ordering::Acquire)
    }
}

pub(crate) const fn health_to_u8(health: Health) -> u8 {
    match health {
        Health::Ready => 0,
        Health::Stalled => 1,
        Health::Down => 2,
    }
}

pub(crate) const fn health_from_u8(health: u8) -> Health {
    match health {
        0 => Health::Ready,
        1 => Health::Stalled,
        _ => Health::Down,
    }
}
