//! What the daemon serves: disks and vhost sockets, each with the configuration that it was made from.

use crate::config::{DiskConfig, VhostConfig};
use polypath::multipath::Group;
use polypath::vhost_user_blk::Server;
use std::sync::{Arc, Mutex, MutexGuard};

/// A disk as it was asked for.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) group: Arc<Group>,
    pub(crate) config: DiskConfig,
}

/// A vhost-user-blk socket as it was asked for, and who serves it.
pub(crate) struct Vhost {
    pub(crate) config: VhostConfig,
    /// `None` once it is being stopped.
    server: Mutex<Option<Server>>,
}

impl Vhost {
    pub(crate) fn new(config: VhostConfig, server: Server) -> Vhost {
        Vhost { config, server: Mutex::new(Some(server)) }
    }

    /// What `ask` wants to know of the server, if it is still there.
    pub(crate) fn server<R>(&self, ask: impl FnOnce(&Server) -> R) -> Option<R> {
        lock(&self.server).as_ref().map(ask)
    }

    /// Ends the server: its rings are drained first. Nothing when it was ended already.
    pub(crate) fn stop(&self) -> Result<(), String> {
        let server = lock(&self.server).take();
        server.map_or(Ok(()), |mut server| server.stop().map_err(|e| e.to_string()))
    }
}

/// No critical section leaves a half-made state behind, so that a poisoned lock is still sound.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}
