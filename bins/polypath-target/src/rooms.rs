//! The whole target: what is shared, and the protocols that use it.

use crate::config::{ConfigError, TargetConfig};
use crate::iscsi::Iscsi;
use crate::nvme::Nvme;
use crate::shared::Shared;
use crate::store::{Change, Disk};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The target. What is shared can be reached through it.
pub(crate) struct Rooms {
    pub(crate) shared: Arc<Shared>,
    pub(crate) nvme: Nvme,
    pub(crate) iscsi: Iscsi,
}

impl Deref for Rooms {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Rooms {
    /// Opens every medium. `addresses` are those the listeners really have.
    pub(crate) fn new(config: TargetConfig, addresses: &[SocketAddr]) -> Result<Rooms, ConfigError> {
        Rooms::over(Shared::new(config, addresses)?)
    }

    /// As [`Rooms::new`], with a clock that is driven.
    pub(crate) fn driven(config: TargetConfig, addresses: &[SocketAddr]) -> Result<Rooms, ConfigError> {
        Rooms::over(Shared::driven(config, addresses)?)
    }

    fn over(shared: Shared) -> Result<Rooms, ConfigError> {
        let shared = Arc::new(shared);
        Ok(Rooms { nvme: Nvme::new(shared.clone()), iscsi: Iscsi::new(shared.clone())?, shared })
    }

    /// Tells all users of store `index` what has changed.
    pub(crate) fn changed(&self, index: usize, change: Change) {
        self.nvme.changed(index, change);
        self.iscsi.changed(index, change);
        self.wake_all();
    }

    /// A port was opened or closed.
    pub(crate) fn ports_changed(&self) {
        self.nvme.ports_changed();
        self.wake_all();
    }

    /// Ends every association and takes away what only caches and controllers had. The connections are still there.
    pub(crate) fn lose_power(&self) {
        self.nvme.lose_power();
        self.iscsi.lose_power();
        self.held.forget();
        for store in &self.stores {
            for disk in store.all_disks() {
                disk.medium.lose_power();
                disk.reservations.forget();
            }
        }
        self.power_cycles.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts `original` in the place of the disk that has its number now, with the event.
    pub(crate) fn put_back(&self, nqn: &str, original: &Disk) {
        let Some(index) = self.stores.iter().position(|s| s.is_named(nqn)) else { return };
        // One that is detached meanwhile has no place to be put.
        let back = self.stores[index].replace(original.nsid, |now| Ok(Disk { group: now.group, ..original.copy() }));
        if back.is_ok() {
            self.changed(index, Change::Identity(original.nsid));
        }
    }
}
