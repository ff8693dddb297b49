//! NVMe/TCP in the world: the real controllers behind [`Initiator`].

use crate::peer::{Initiator, address};
use crate::plan::Plan;
use crate::target::NQN;
use polypath_block::{Device, Host};
use polypath_nvme::nqn::{HostIdentity, Nqn};
use polypath_nvmf_tcp::{Controller, ControllerConfig};
use polypath_sharing::SharedController;
use polypath_sim::wire::{Net, SimDialer};
use std::sync::Arc;
use std::time::Duration;

/// Starts the controller of path `path`.
pub(crate) fn initiator(plan: &Plan, path: usize, net: &Net, hosts: &[Arc<dyn Host>]) -> Box<dyn Initiator> {
    let (s, p) = (&plan.settings, &plan.paths[path]);
    let ms = Duration::from_millis;
    let address = address(path);
    let nqn = Nqn::new(NQN).expect("a name that is right");
    let id = "2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";
    let host = "nqn.2014-08.org.nvmexpress:uuid:2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";
    let config = ControllerConfig {
        name: format!("path{path}"),
        identity: HostIdentity::derive(Some(host), Some(id), [0; 16]).expect("an identity that is right"),
        data_digest: p.digests,
        header_digest: p.digests,
        keep_alive: ms(s.keep_alive_ms.into()),
        // Connecting takes a slow reactor several turns, which count.
        connect_timeout: ms((s.silence_ms * 3).max(s.slow_turns_ms * 8)),
        silence_timeout: ms(s.silence_ms),
        io_timeout: ms(s.io_timeout_ms),
        reconnect_delay: ms(20),
        ctrl_loss_timeout: None,
        queue_depth: s.depth,
        queues: 16,
        fence: ms(400),
        quiesce: ms(50),
        dialer: Arc::new(SimDialer(net.clone())),
        ..ControllerConfig::new(&address.ip().to_string(), address.port(), nqn)
    };
    let controller = Controller::start(config, hosts[usize::from(p.admin)].clone());
    let shared = SharedController::new(controller.clone(), hosts.to_vec());
    Box::new(NvmeInitiator { controller, shared, unnamed: s.unnamed })
}

struct NvmeInitiator {
    controller: Arc<Controller>,
    shared: Arc<SharedController>,
    unnamed: bool,
}

impl Initiator for NvmeInitiator {
    fn device(&self, disk: u32) -> Arc<dyn Device> {
        let namespace = if self.unnamed { self.controller.device() } else { self.controller.namespace(disk + 1) };
        let unit = namespace.unit();
        self.shared.device(namespace, unit)
    }

    fn close(&self) {
        self.controller.close();
    }
}
