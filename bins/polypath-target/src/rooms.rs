//! The whole target: what is shared, and the protocols that use it.

use crate::config::{ConfigError, TargetConfig};
use crate::iscsi::Iscsi;
use crate::media::Medium;
use crate::nvme::Nvme;
use crate::shared::Shared;
use crate::store::{Change, Disk};
use polypath::Stack;
use polypath_block::Geometry;
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
    /// Opens every medium, disks beneath with the help of `stack`. `addresses` are those the listeners really have.
    pub(crate) fn new(
        config: TargetConfig,
        addresses: &[SocketAddr],
        stack: Option<&Stack>,
    ) -> Result<Rooms, ConfigError> {
        Rooms::over(Shared::new(config, addresses, stack)?)
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

    /// Sees what the disks beneath tell of themselves. One load for each of them where that is nothing new.
    #[inline]
    pub(crate) fn follow_beneath(&self) {
        for beneath in &self.beneath {
            if beneath.follow() {
                self.beneath_changed(beneath.index, beneath.info().geometry);
            }
        }
    }

    /// Tells all users of a disk beneath how large it is now.
    #[cold]
    fn beneath_changed(&self, index: usize, geometry: Geometry) {
        for (at, store) in self.stores.iter().enumerate() {
            for disk in store.all_disks() {
                let there = matches!(&*disk.medium, Medium::Beneath(b) if b.index == index);
                if !there || disk.blocks == geometry.blocks || geometry.block_size != 1 << disk.shift {
                    continue;
                }
                // One that is detached is looked at again when it is attached: its device tells of the next change only.
                let grown = store.replace(disk.nsid, |old| Ok(Disk { blocks: geometry.blocks, ..old.copy() }));
                if grown.is_ok() {
                    tracing::info!(nsid = disk.nsid, blocks = geometry.blocks, "a disk beneath has another size");
                    self.changed(at, Change::Size(disk.nsid));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ListenerConfig, NamespaceConfig, SubsystemConfig};
    use crate::media::beneath::testing::Rig;
    use polypath_block::Limits;

    #[test]
    fn a_disk_beneath_that_grows_or_shrinks_is_told_to_all() {
        let rig = Rig::new(Limits::UNLIMITED);
        let config = TargetConfig {
            listeners: vec![ListenerConfig::new("127.0.0.1:1")],
            subsystems: vec![SubsystemConfig::new(
                "nqn.x",
                vec![NamespaceConfig::new("ram://1MiB"), NamespaceConfig::new("ram://1MiB")],
            )],
            ..TargetConfig::default()
        };
        let mut shared = Shared::new(config, &["127.0.0.1:1".parse().unwrap()], None).unwrap();
        shared.beneath = vec![rig.disk.clone()];
        let rooms = Rooms::over(shared).unwrap();
        let store = rooms.stores[0].clone();
        let medium = Arc::new(Medium::Beneath(rig.disk.clone()));
        store.replace(2, |old| Ok(Disk { medium, blocks: 4096, ..old.copy() })).unwrap();
        let sizes = || store.disks().iter().map(|disk| disk.blocks).collect::<Vec<_>>();
        rooms.follow_beneath();
        let told = || rooms.events.load(Ordering::Relaxed);
        let before = told();
        for (n, blocks) in [9000, 100].into_iter().enumerate() {
            rig.script.change(|info| info.geometry.blocks = blocks);
            rooms.follow_beneath();
            rooms.follow_beneath();
            assert_eq!((sizes(), told() - before), (vec![2048, blocks], n as u64 + 1));
        }
        assert!(store.has_beneath(None) && store.has_beneath(Some(1)) && !store.has_beneath(Some(0)));
        assert!(store.is_on(0, None) && !store.is_on(0, Some(0)) && !store.is_on(1, None));
        rig.finish();
    }
}
