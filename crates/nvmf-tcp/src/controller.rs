//! A controller behind one address, as its users see it.

use crate::config::ControllerConfig;
use crate::poller::AdminPoller;
use crate::shared::Shared;
use polypath_block::Host;
use polypath_nvme::log::DiscoveryEntry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A controller: one address of one subsystem. It connects, keeps alive and reconnects by itself.
///
/// When the last handle to it (its devices included) is dropped, it is closed.
pub struct Controller {
    pub(crate) shared: Arc<Shared>,
}

/// What a controller did so far. Each number is right, not all of one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControllerStatistics {
    /// Associations that came up.
    pub connects: u64,
    /// Associations that were lost.
    pub losses: u64,
    /// I/O commands finished, over all queues, closed ones included.
    pub ios: u64,
    /// Data bytes of them.
    pub bytes: u64,
    /// System calls on sockets of I/O queues.
    pub syscalls: u64,
    /// Keep Alive commands sent.
    pub keep_alives: u64,
    /// Aborts sent.
    pub aborts: u64,
}

impl Controller {
    /// Starts one: its admin poller runs on the reactor `host` from now on. Never fails here: what goes wrong is in the state of
    /// its devices, and is tried again.
    pub fn start(config: ControllerConfig, host: Arc<dyn Host>) -> Arc<Controller> {
        let shared = Arc::new(Shared::new(config, host.clone()));
        let for_poller = shared.clone();
        host.spawn(Box::new(move |cx| Box::new(AdminPoller::new(for_poller, cx.now))));
        Arc::new(Controller { shared })
    }

    /// Its configuration.
    pub fn config(&self) -> &ControllerConfig {
        &self.shared.config
    }

    /// Grows whenever anything about the controller or its namespaces changes.
    pub fn version(&self) -> u64 {
        self.shared.version()
    }

    /// Is it up?
    pub fn is_live(&self) -> bool {
        self.shared.live().is_some()
    }

    /// The address in use and the controller's identifier, while it is up.
    pub fn connected_to(&self) -> Option<(SocketAddr, u16)> {
        self.shared.live().map(|association| (association.address, association.cntlid))
    }

    /// What a discovery controller lists, kept up to date by its events. Empty for others.
    pub fn discovered(&self) -> Vec<DiscoveryEntry> {
        self.shared.discovered()
    }

    /// What it did so far.
    pub fn statistics(&self) -> ControllerStatistics {
        let c = &self.shared.counts;
        ControllerStatistics {
            connects: c.connects.load(Ordering::Relaxed),
            losses: c.losses.load(Ordering::Relaxed),
            ios: c.ios.load(Ordering::Relaxed),
            bytes: c.bytes.load(Ordering::Relaxed),
            syscalls: c.syscalls.load(Ordering::Relaxed),
            keep_alives: c.keep_alives.load(Ordering::Relaxed),
            aborts: c.aborts.load(Ordering::Relaxed),
        }
    }

    /// Ends it once its queues are closed. Does not wait. Idempotent.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("name", &self.shared.config.name).finish_non_exhaustive()
    }
}
