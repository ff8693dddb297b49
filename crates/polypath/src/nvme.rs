//! NVMe/TCP controllers, shared among the URIs that differ in nothing but the namespace: one association, and one I/O queue per
//! reactor, for all of them.

use polypath_block::{Device, DeviceState, DiskUri, Host, IoQueue, OpenError, QueueConfig, UnitId, UriError};
use polypath_nvmf_tcp::{Controller, ControllerConfig, NvmeDevice};
use polypath_sharing::{SharedController, SharedDevice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// The controllers in use.
#[derive(Default)]
pub(crate) struct Controllers {
    shared: Mutex<Vec<(String, Weak<InUse>)>>,
}

/// A controller for as long as one of its namespaces is in use.
struct InUse {
    controller: Arc<Controller>,
    queues: Arc<SharedController>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.controller.close();
    }
}

impl Controllers {
    /// The namespace that `uri` names, over a controller that is there already or a new one whose admin queue is on `host`. Its queues
    /// are opened on `hosts`.
    pub(crate) fn open(
        &self,
        uri: &DiskUri,
        host: Arc<dyn Host>,
        hosts: Vec<Arc<dyn Host>>,
    ) -> Result<Arc<SharedDevice>, UriError> {
        let mut config = ControllerConfig::from_uri(uri)?;
        if config.is_discovery() {
            let problem = "it is a discovery controller, which has no disks; expected the NQN of an NVM subsystem";
            return Err(uri.error("NQN", problem));
        }
        let Some(nsid) = config.ns else {
            // Which namespace that is turns out later: nobody can share it.
            let controller = Controller::start(config, host);
            return Ok(SharedController::new(controller.clone(), hosts).device(controller.device(), UnitId::ONLY));
        };
        // The controller looks after all namespaces, and is named after none.
        config.ns = None;
        config.name = config.name.split('?').next().unwrap_or_default().to_owned();
        let key = key(uri);
        let mut shared = self.lock();
        shared.retain(|(_, c)| c.strong_count() > 0);
        let found = shared.iter().find(|(k, _)| *k == key).and_then(|(_, c)| c.upgrade());
        let in_use = found.unwrap_or_else(|| {
            let controller = Controller::start(config, host);
            let queues = SharedController::new(controller.clone(), hosts);
            let in_use = Arc::new(InUse { controller, queues });
            shared.push((key, Arc::downgrade(&in_use)));
            in_use
        });
        drop(shared);
        let (device, queues) = (in_use.controller.namespace(nsid), in_use.queues.clone());
        let unit = device.unit();
        let namespace = Namespace {
            name: uri.to_string(),
            device,
            in_use: Mutex::new(Some(in_use)),
            closed: AtomicBool::new(false),
        };
        Ok(queues.device(Arc::new(namespace), unit))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Weak<InUse>)>> {
        self.shared.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// All of the URI but the namespace.
fn key(uri: &DiskUri) -> String {
    let text = uri.to_string();
    let base = text.split('?').next().unwrap_or(&text);
    let mut options: Vec<_> = uri.options.iter().filter(|(k, _)| k != "ns").collect();
    options.sort_unstable();
    format!("{base} {options:?}")
}

/// A namespace that lets go of its controller when it is closed.
struct Namespace {
    name: String,
    device: Arc<NvmeDevice>,
    in_use: Mutex<Option<Arc<InUse>>>,
    closed: AtomicBool,
}

impl Device for Namespace {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        self.device.state()
    }

    fn version(&self) -> u64 {
        // The controller does not count the closing of one namespace.
        self.device.version() + u64::from(self.closed.load(Ordering::Relaxed))
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        self.device.open_queue(config)
    }

    fn landing_bound(&self) -> Duration {
        self.device.landing_bound()
    }

    fn close(&self) {
        self.device.close();
        self.closed.store(true, Ordering::Relaxed);
        let in_use = self.in_use.lock().unwrap_or_else(|p| p.into_inner()).take();
        // Outside the lock: the last one closes the controller.
        drop(in_use);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_that_differ_in_the_namespace_share_a_key() {
        let k = |text: &str| key(&text.parse().unwrap());
        let base = "nvme-tcp://10.0.0.1/nqn.x";
        assert_eq!(k(&format!("{base}?ns=1")), k(&format!("{base}?ns=2")));
        assert_eq!(k(&format!("{base}?ns=1&hdgst=on&ddgst=on")), k(&format!("{base}?ddgst=on&hdgst=on&ns=7")));
        assert_ne!(k(&format!("{base}?ns=1")), k(&format!("{base}?ns=1&hdgst=on")));
        assert_ne!(k(&format!("{base}?ns=1")), k("nvme-tcp://10.0.0.2/nqn.x?ns=1"));
        assert_ne!(k(&format!("{base}?ns=1&hostnqn=nqn.a")), k(&format!("{base}?ns=1&hostnqn=nqn.b")));
    }
}
