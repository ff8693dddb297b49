//! The device that never runs out of queues.

use crate::hub::{Hub, Port};
use crate::link::{self, Client};
use crate::office::{Office, lock};
use crate::proxy;
use crate::queue::SharedQueue;
use polypath_block::{Cx, Device, DeviceState, Health, Host, IoQueue, OpenError, QueueConfig};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// A device whose queues are shared once it grants no more.
///
/// Everything but `open_queue` is the wrapped device's own. `open_queue` gives its own queue as long as there is one, and one that
/// shares another after that. It says [`OpenError::NoQueue`] only when there is nothing to share: no queue of *this* device is open.
pub struct SharedDevice(Arc<Sharing>);

/// What the device and its queues know in common.
pub(crate) struct Sharing {
    id: u64,
    pub(crate) inner: Arc<dyn Device>,
    hosts: Vec<Arc<dyn Host>>,
    offices: Mutex<Vec<Weak<Office>>>,
    /// Threads that are opening a queue and have not shown its office yet.
    opening: AtomicU32,
}

/// Looks for a queue before it is said that there is none to share: one may be given back between two looks.
const LOOKS: u32 = 3;

impl SharedDevice {
    /// Wraps `inner`, whose queues are opened on the reactors `hosts`. On other threads queues are shared within the thread only.
    pub fn new(inner: Arc<dyn Device>, hosts: Vec<Arc<dyn Host>>) -> Arc<SharedDevice> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(SharedDevice(Arc::new(Sharing {
            id,
            inner,
            hosts,
            offices: Mutex::default(),
            opening: AtomicU32::new(0),
        })))
    }

    /// The device that it wraps.
    pub fn inner(&self) -> &Arc<dyn Device> {
        &self.0.inner
    }
}

impl Device for SharedDevice {
    fn name(&self) -> &str {
        self.0.inner.name()
    }

    fn state(&self) -> DeviceState {
        self.0.inner.state()
    }

    fn version(&self) -> u64 {
        self.0.inner.version()
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let (sharing, depth) = (&self.0, config.depth);
        let mut looks = 0;
        loop {
            looks += 1;
            let none = match sharing.own(depth) {
                Ok(port) => return Ok(Box::new(SharedQueue::over(sharing.clone(), depth, port))),
                Err(none @ OpenError::NoQueue { .. }) => none,
                Err(error) => return Err(error),
            };
            if let Some(port) = sharing.here(depth) {
                return Ok(Box::new(SharedQueue::over(sharing.clone(), depth, port)));
            }
            if sharing.is_open_somewhere() {
                // On another reactor: which one this is, its first turn tells.
                return Ok(Box::new(SharedQueue::seeking(sharing.clone(), depth)));
            }
            if looks == LOOKS {
                return Err(none);
            }
        }
    }

    fn close(&self) {
        self.0.inner.close();
    }
}

impl std::fmt::Debug for SharedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedDevice").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Sharing {
    /// A queue of the device's own, on this thread.
    pub(crate) fn own(&self, depth: u16) -> Result<Port, OpenError> {
        self.opening.fetch_add(1, Ordering::SeqCst);
        let opened = self.open_hub(depth);
        self.opening.fetch_sub(1, Ordering::SeqCst);
        Ok(opened?.join(depth))
    }

    fn open_hub(&self, depth: u16) -> Result<Rc<Hub>, OpenError> {
        let inner = self.inner.open_queue(QueueConfig { depth })?;
        let system = |e: std::io::Error| OpenError::System {
            name: self.inner.name().to_owned(),
            reason: format!("no eventfd for a queue: {e}; raise the limit of open files"),
        };
        let office = Office::new(self.inner.name()).map_err(system)?;
        let mut offices = lock(&self.offices);
        offices.retain(|o| o.strong_count() > 0);
        offices.push(Arc::downgrade(&office));
        drop(offices);
        Ok(Hub::new(self.id, office, inner, depth))
    }

    /// A share of a queue of this thread.
    pub(crate) fn here(&self, depth: u16) -> Option<Port> {
        Some(Hub::find(self.id)?.join(depth))
    }

    /// A share of a queue of another reactor.
    pub(crate) fn elsewhere(&self, cx: &Cx<'_>, depth: u16) -> Option<(Client, u16)> {
        let offices = lock(&self.offices);
        let others = offices.iter().filter_map(Weak::upgrade).filter(|o| !o.is_closed() && o.is_reachable());
        let hosted = others.filter_map(|office| {
            let reactor = office.reactor().filter(|r| *r != cx.reactor)?;
            let host = self.hosts.iter().find(|h| h.reactor() == reactor)?;
            Some((office, host))
        });
        let (office, host) = hosted.min_by_key(|(o, _)| (o.health() == Health::Down, o.ports()))?;
        drop(offices);
        match link::pair(&office, depth) {
            Ok((client, served)) => {
                office.apply(served, &**host, proxy::spawn);
                Some((client, host.reactor()))
            }
            Err(error) => {
                tracing::error!(device = self.inner.name(), %error, "no eventfd for a shared queue; raise the limit of open files");
                None
            }
        }
    }

    /// Is a queue open, or about to be? In this order: whoever opens one shows its office before he is done with opening.
    fn is_open_somewhere(&self) -> bool {
        self.opening.load(Ordering::SeqCst) > 0 || lock(&self.offices).iter().any(|o| o.strong_count() > 0)
    }
}
