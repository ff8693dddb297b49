//! NVMe/TCP controllers, shared among the URIs that differ in nothing but the namespace: one association, and one I/O queue per
//! reactor, for all of them.

use crate::in_use::{InUse, Unit};
use crate::sources::Units;
use polypath_block::{Device, DeviceState, DiskUri, Host, UnitId, UriError};
use polypath_nvmf_tcp::{Controller, ControllerConfig};
use polypath_sharing::{SharedController, SharedDevice};
use std::sync::Arc;

/// The controllers in use.
#[derive(Default)]
pub(crate) struct Controllers(InUse<String, Shared>);

/// A controller for as long as one of its namespaces is in use.
struct Shared {
    controller: Arc<Controller>,
    queues: Arc<SharedController>,
}

impl Drop for Shared {
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
        config.ns = None;
        let shared = self.shared(uri, config, host, hosts)?;
        let (device, queues) = (shared.controller.namespace(nsid), shared.queues.clone());
        let unit = device.unit();
        Ok(queues.device(Unit::new(uri.to_string(), device, shared), unit))
    }

    /// All namespaces of the subsystem that `uri` names, behind the same controller as those that are opened.
    pub(crate) fn units(
        &self,
        uri: &DiskUri,
        host: Arc<dyn Host>,
        hosts: Vec<Arc<dyn Host>>,
    ) -> Result<Arc<dyn Units>, UriError> {
        let config = ControllerConfig { ns: None, ..ControllerConfig::from_uri(uri)? };
        Ok(self.shared(uri, config, host, hosts)?)
    }

    fn shared(
        &self,
        uri: &DiskUri,
        mut config: ControllerConfig,
        host: Arc<dyn Host>,
        hosts: Vec<Arc<dyn Host>>,
    ) -> Result<Arc<Shared>, UriError> {
        // The controller looks after all namespaces, and is named after none.
        config.name = config.name.split('?').next().unwrap_or_default().to_owned();
        self.0.find_or_make(key(uri), || {
            let controller = Controller::start(config, host);
            let queues = SharedController::new(controller.clone(), hosts);
            Ok(Shared { controller, queues })
        })
    }
}

impl Units for Shared {
    fn listed(&self) -> Option<Vec<u32>> {
        let live = self.controller.is_live();
        live.then(|| self.controller.namespaces().iter().filter_map(|namespace| namespace.nsid()).collect())
    }

    fn gone(&self) -> Option<String> {
        match self.controller.namespace(1).state() {
            DeviceState::Gone { reason } => Some(reason),
            _ => None,
        }
    }

    fn trouble(&self) -> Option<String> {
        match self.controller.namespace(1).state() {
            DeviceState::Down { reason, .. } if !self.controller.is_live() => Some(reason),
            _ => None,
        }
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
