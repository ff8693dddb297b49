//! Devices that never run out of queues.

use crate::link::{self, Client};
use crate::mailbox::{OwnerMailbox, lock};
use crate::owner::{Share, ShareOwner};
use crate::proxy;
use crate::queue::SharedQueue;
use crate::single::SingleUnit;
use polypath_block::{
    CrossFence, Cx, Device, DeviceState, Health, Host, IoQueue, OpenError, Passthrough, QueueConfig, QueueSource,
    Reservations, UnitId,
};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// A controller of which every reactor has one queue at most, whatever the number of units and users.
pub struct SharedController(Arc<Sharing>);

impl SharedController {
    /// Shares the queues of `source`, which are opened on the reactors `hosts`. On other threads queues are shared within the thread
    /// only.
    pub fn new(source: Arc<dyn QueueSource>, hosts: Vec<Arc<dyn Host>>) -> Arc<SharedController> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(SharedController(Arc::new(Sharing { id, source, hosts, owners: Mutex::default() })))
    }

    /// `device`, which is `unit` of this controller, over the controller's shared queues.
    pub fn device(&self, device: Arc<dyn Device>, unit: UnitId) -> Arc<SharedDevice> {
        Arc::new(SharedDevice { device, unit, sharing: self.0.clone() })
    }
}

impl std::fmt::Debug for SharedController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedController").field("name", &self.0.source.name()).finish_non_exhaustive()
    }
}

/// A device whose queues are shares of its controller's.
///
/// Everything but `open_queue` is the wrapped device's own. `open_queue` gives a queue that finds its place in its first turn: at the
/// controller's queue of its reactor, which is opened if there is none yet; at that of another reactor where the controller grants no
/// more. While there is none at all it is [`Health::Down`], and looks again now and then.
pub struct SharedDevice {
    device: Arc<dyn Device>,
    unit: UnitId,
    sharing: Arc<Sharing>,
}

impl SharedDevice {
    /// Wraps a device that has its queues for itself.
    pub fn new(device: Arc<dyn Device>, hosts: Vec<Arc<dyn Host>>) -> Arc<SharedDevice> {
        SharedController::new(Arc::new(SingleUnit(device.clone())), hosts).device(device, UnitId::ONLY)
    }

    /// The device that it wraps.
    pub fn inner(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

impl Device for SharedDevice {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn state(&self) -> DeviceState {
        self.device.state()
    }

    fn version(&self) -> u64 {
        self.device.version()
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        if let DeviceState::Gone { reason } = self.device.state() {
            return Err(OpenError::Gone { name: self.device.name().to_owned(), reason });
        }
        let QueueConfig { depth } = config;
        Ok(Box::new(SharedQueue::new(self.sharing.clone(), self.device.clone(), self.unit, depth)))
    }

    fn landing_bound(&self) -> Duration {
        self.device.landing_bound()
    }

    fn is_preferred(&self) -> bool {
        self.device.is_preferred()
    }

    fn power_losses(&self) -> u64 {
        self.device.power_losses()
    }

    fn ask_for_access(&self) {
        self.device.ask_for_access();
    }

    fn reservations(&self) -> Option<&dyn Reservations> {
        self.device.reservations()
    }

    fn passthrough(&self) -> Option<&dyn Passthrough> {
        self.device.passthrough()
    }

    fn cross_fence(&self) -> Option<&dyn CrossFence> {
        self.device.cross_fence()
    }

    fn close(&self) {
        self.device.close();
    }
}

impl std::fmt::Debug for SharedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedDevice").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// What the controller's shared queues know in common.
pub(crate) struct Sharing {
    id: u64,
    source: Arc<dyn QueueSource>,
    hosts: Vec<Arc<dyn Host>>,
    owners: Mutex<Vec<Weak<OwnerMailbox>>>,
}

impl Sharing {
    /// A share of the queue of this reactor.
    pub(crate) fn here(&self, reactor: u16, unit: UnitId, depth: u16) -> Option<Result<Share, OpenError>> {
        Some(ShareOwner::find(self.id, reactor)?.join(unit, depth))
    }

    /// A share of a queue that is opened for it.
    pub(crate) fn own(&self, reactor: u16, unit: UnitId, depth: u16) -> Result<Share, OpenError> {
        self.open(reactor, depth)?.join(unit, depth)
    }

    fn open(&self, reactor: u16, depth: u16) -> Result<Rc<ShareOwner>, OpenError> {
        let inner = self.source.open_controller_queue(QueueConfig { depth })?;
        let system = |e: std::io::Error| OpenError::System {
            name: self.source.name().to_owned(),
            reason: format!("no eventfd for a queue: {e}; raise the limit of open files"),
        };
        let mailbox = OwnerMailbox::new(self.source.name(), reactor, inner.end_fence()).map_err(system)?;
        let mut owners = lock(&self.owners);
        owners.retain(|o| o.strong_count() > 0);
        owners.push(Arc::downgrade(&mailbox));
        drop(owners);
        Ok(ShareOwner::new(self.id, mailbox, inner, depth))
    }

    /// A share of a queue of another reactor, and which.
    pub(crate) fn elsewhere(&self, cx: &Cx<'_>, unit: UnitId, depth: u16) -> Option<(Client, u16)> {
        let owners = lock(&self.owners);
        let others = owners.iter().filter_map(Weak::upgrade).filter(|o| !o.is_closed() && o.is_reachable());
        let hosted = others.filter(|o| o.reactor != cx.reactor).filter_map(|owner| {
            let host = self.hosts.iter().find(|h| h.reactor() == owner.reactor)?;
            Some((owner, host))
        });
        let (owner, host) = hosted.min_by_key(|(o, _)| (o.health() == Health::Down, o.shares()))?;
        drop(owners);
        match link::pair(&owner, unit, depth) {
            Ok((client, served)) => {
                owner.apply(served, &**host, proxy::spawn);
                Some((client, host.reactor()))
            }
            Err(error) => {
                let controller = self.source.name();
                tracing::error!(controller, %error, "no eventfd for a shared queue; raise the limit of open files");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Done, SegTable};

    #[test]
    fn owners_that_have_gone_are_forgotten() {
        let device = polypath_local::open(&"ram://1MiB".parse().expect("a URI")).expect("a disk");
        let shared = SharedDevice::new(device, Vec::new());
        let (mut segs, mut done) = (SegTable::new(1), Done::default());
        for n in 0..3 {
            let mut queue = shared.open_queue(QueueConfig { depth: 1 }).expect("a queue");
            queue.poll(&mut Cx { now: polypath_block::Time::from_millis(1), segs: &mut segs, reactor: 0 }, &mut done);
            assert_eq!((queue.health(), lock(&shared.sharing.owners).len()), (Health::Ready, 1), "round {n}");
        }
    }
}
