//! Many devices, fewer disks: hides duplicates.

use polypath_block::{Device, Identity, Verdict};
use std::sync::Arc;

/// One disk and the ways to it.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Who it is, as its first way tells.
    pub identity: Identity,
    /// The ways to it, in the order given.
    pub devices: Vec<Arc<dyn Device>>,
}

/// What a list of devices amounts to.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The disks, in the order of their first devices.
    pub disks: Vec<Disk>,
    /// Devices that do not answer now: nothing is known about them.
    pub pending: Vec<Arc<dyn Device>>,
    /// For people: devices that agree with one way to a disk and differ from another; each was made a disk of its own.
    pub conflicts: Vec<String>,
}

/// Sorts `devices` by the disk they lead to, so that each disk is shown once.
///
/// Only worldwide identifiers aggregate; a device with nothing comparable is a disk of its own.
pub fn aggregate(devices: impl IntoIterator<Item = Arc<dyn Device>>) -> Inventory {
    let mut found = Inventory::default();
    let mut members: Vec<Vec<Identity>> = Vec::new();
    for device in devices {
        let Some(info) = device.state().info().cloned() else {
            found.pending.push(device);
            continue;
        };
        let same = |ids: &Vec<Identity>| ids.iter().any(|i| i.compare(&info.identity) == Verdict::Same);
        let differs = |ids: &Vec<Identity>| ids.iter().any(|i| i.compare(&info.identity) == Verdict::Different);
        let home = members.iter().position(|ids| same(ids) && !differs(ids));
        if let Some(at) = home {
            members[at].push(info.identity.clone());
            found.disks[at].devices.push(device);
            continue;
        }
        if let Some(at) = members.iter().position(same) {
            found.conflicts.push(format!(
                "{} shows {:?}: it agrees with one way to the disk of {} and differs from another; it is kept apart",
                device.name(),
                info.identity.identifiers,
                found.disks[at].devices[0].name(),
            ));
        }
        members.push(vec![info.identity.clone()]);
        found.disks.push(Disk { identity: info.identity.clone(), devices: vec![device] });
    }
    found
}
