//! Slices of disks: what is served by a name is a disk, or a slice of one.

use super::{Daemon, no_disk};
use crate::config::SliceConfig;
use crate::resources::{Disk, Slice, lock};
use crate::service::Service;
use crate::show;
use polypath::block::Device;
use serde_json::Value;
use std::sync::Arc;

/// What is served by a name.
pub(super) struct Served {
    /// The disk, or that which it is a slice of: paths, marks and flushes are its.
    pub(super) disk: Disk,
    /// What requests go to.
    pub(super) device: Arc<dyn Device>,
}

impl Daemon {
    /// Makes a slice of a disk.
    pub(crate) fn create_slice(&self, config: &SliceConfig) -> Result<(), String> {
        let alone = lock(&self.changing);
        self.end_quiet(&alone);
        {
            let state = lock(&self.state);
            state.refuse_name(&config.name)?;
            if let Some(service) = state.services_of(&config.disk).find(|service| service.serves() == config.disk) {
                return Err(format!(
                    "disk \"{}\" is served whole on {}; delete that before it is shared by slices",
                    config.disk,
                    service.at()
                ));
            }
        }
        let disk = self.disk(&config.disk)?;
        let slice = self.stack.open_slice(&config.name, disk.group, config.range).map_err(|e| e.to_string())?;
        tracing::info!(slice = %config.name, disk = %config.disk, range = %config.range, "slice created");
        let slice = Slice { slice, config: config.clone() };
        self.insert(|state| state.slices.insert(config.name.clone(), slice).is_none())
    }

    /// Ends a slice that nobody serves, and of which nothing is in flight.
    pub(crate) fn delete_slice(&self, name: &str) -> Result<(), String> {
        let alone = lock(&self.changing);
        self.end_quiet(&alone);
        let mut state = lock(&self.state);
        if let Some(service) = state.serving().find(|service| service.serves() == name) {
            return Err(format!("slice \"{name}\" is served on {}; delete that first", service.at()));
        }
        if let Some(late) = state.late.iter().find(|service| service.serves() == name) {
            let why = late.unwritten().unwrap_or_else(|| "it has requests in flight from there".into());
            return Err(format!("slice \"{name}\" was served on {}: {why}", late.at()));
        }
        let slice = state
            .slices
            .remove(name)
            .ok_or_else(|| format!("no slice is called \"{name}\"; slice_list shows those there are"))?;
        drop(state);
        slice.slice.close();
        tracing::info!(slice = %name, disk = %slice.config.disk, "slice deleted");
        Ok(())
    }

    /// Slices as RPC shows them.
    pub(crate) fn slices(&self) -> Value {
        let (slices, services): (_, Vec<Service>) = {
            let state = lock(&self.state);
            (state.slices.clone(), state.serving().collect())
        };
        let places = |name: &str| services.iter().filter(|s| s.serves() == name).map(Service::at).collect();
        slices.iter().map(|(name, slice)| show::slice(slice, places(name))).collect()
    }

    /// What is called `name`.
    pub(super) fn served(&self, name: &str) -> Result<Served, String> {
        let state = lock(&self.state);
        let slice = state.slices.get(name);
        let disk = slice.map_or(name, |slice| &slice.config.disk);
        let disk = state.disks.get(disk).cloned().ok_or_else(|| no_disk(name))?;
        let device: Arc<dyn Device> = match slice {
            Some(slice) => slice.slice.clone(),
            None => disk.group.clone(),
        };
        Ok(Served { disk, device })
    }
}

impl super::State {
    /// Disks and slices have different names: both are served by them.
    pub(super) fn refuse_name(&self, name: &str) -> Result<(), String> {
        let what = match (self.disks.contains_key(name), self.slices.contains_key(name)) {
            (true, _) => "disk",
            (_, true) => "slice",
            _ => return Ok(()),
        };
        Err(format!("there is a {what} \"{name}\" already; expected a new name"))
    }

    /// Is `disk`, or a slice of it, served or to be served? A slice is of the disk that it was made of, and of no other one of its name.
    pub(super) fn is_in_use(&self, disk: &str) -> bool {
        self.services_of(disk).next().is_some()
            || self.slices.values().any(|slice| slice.config.disk == disk)
            || self.disks.get(disk).is_some_and(|disk| disk.ledger.is_passing())
    }

    /// Why `disk` cannot be served whole.
    pub(super) fn refuse_whole(&self, disk: &str) -> Result<(), String> {
        let slices = self.slices.values().filter(|s| s.config.disk == disk).map(|s| s.config.name.as_str());
        match &slices.collect::<Vec<_>>()[..] {
            [] => Ok(()),
            all => Err(format!("disk \"{disk}\" has slices, which share it: {}; expected one of them", all.join(", "))),
        }
    }
}
