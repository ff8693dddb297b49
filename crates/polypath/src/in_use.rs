//! What several URIs share: a controller or a target, for as long as one of its units is in use.

use polypath_block::{CrossFence, Device, DeviceState, IoQueue, OpenError, Passthrough, QueueConfig, Reservations};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Those in use, by what their URIs have in common. It keeps nobody in use.
pub(crate) struct InUse<K, U>(Mutex<Vec<(K, Weak<U>)>>);

impl<K, U> Default for InUse<K, U> {
    fn default() -> Self {
        InUse(Mutex::default())
    }
}

impl<K: PartialEq, U> InUse<K, U> {
    /// The one with this key, which is made if there is none.
    ///
    /// # Errors
    /// Of `make`.
    pub(crate) fn find_or_make<E>(&self, key: K, make: impl FnOnce() -> Result<U, E>) -> Result<Arc<U>, E> {
        let mut all = self.0.lock().unwrap_or_else(|p| p.into_inner());
        all.retain(|(_, one)| one.strong_count() > 0);
        if let Some(found) = all.iter().find(|(k, _)| *k == key).and_then(|(_, one)| one.upgrade()) {
            return Ok(found);
        }
        let made = Arc::new(make()?);
        all.push((key, Arc::downgrade(&made)));
        Ok(made)
    }
}

/// A unit (namespace, logical unit) that lets go of what it shares when it is closed.
pub(crate) struct Unit<D, U> {
    name: String,
    device: Arc<D>,
    shared: Mutex<Option<Arc<U>>>,
    closed: AtomicBool,
}

impl<D, U> Unit<D, U> {
    /// `device` by the name of `name`, which keeps `shared` in use.
    pub(crate) fn new(name: String, device: Arc<D>, shared: Arc<U>) -> Arc<Self> {
        Arc::new(Unit { name, device, shared: Mutex::new(Some(shared)), closed: AtomicBool::new(false) })
    }
}

impl<D: Device, U: Send + Sync> Device for Unit<D, U> {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        self.device.state()
    }

    fn version(&self) -> u64 {
        // What is shared does not count the closing of one unit.
        self.device.version() + u64::from(self.closed.load(Ordering::Relaxed))
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        self.device.open_queue(config)
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
        self.closed.store(true, Ordering::Relaxed);
        let shared = self.shared.lock().unwrap_or_else(|p| p.into_inner()).take();
        // Outside the lock: the last one closes what is shared.
        drop(shared);
    }
}
