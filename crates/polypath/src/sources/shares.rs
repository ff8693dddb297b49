//! How much there may be, and how much of it is each source's: what one source lists leaves out nothing of another one's share. There is no
//! more than [`MOST_PATHS`] as long as no source has less than its share; one that has may have that much all the same.
//!
//! Something that several sources list is in the share of each of them, and has room if one of them has.

use super::{Engine, Service, SourceId};
use crate::sources::world::MOST_SERVICES;
use std::collections::BTreeMap;

/// Most services, but for the shares of sources that have less.
pub(super) const MOST_SERVICES_IN_ALL: usize = 4 * MOST_SERVICES;
/// Most paths of one service.
pub(super) const MOST_UNITS: usize = 1024;
/// Most paths, but for the shares of sources that have less.
pub(super) const MOST_PATHS: usize = 4096;
/// Most devices, but for the shares of sources that have less; what would be one more is held aside.
/// Tests have less to go through.
pub(super) const MOST_DEVICES: usize = if cfg!(test) { 64 } else { 2048 };

/// What a source lists, and is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct LeftOut {
    pub(super) services: usize,
    pub(super) paths: usize,
}

impl Engine {
    /// How many more services `source` may have.
    pub(super) fn room_for_services(&self, source: SourceId) -> usize {
        let own = || self.services.values().filter(|service| service.sources.contains_key(&source)).count();
        self.room(MOST_SERVICES_IN_ALL, self.services.len(), own)
    }

    /// How many more paths the service `key` may have.
    pub(super) fn room_for_paths(&self, key: &str) -> usize {
        let all = self.services.values().map(|service| service.paths.len()).sum();
        let of = |source: &SourceId| {
            let own = self.services.values().filter(|service| service.sources.contains_key(source));
            own.map(|service| service.paths.len()).sum()
        };
        let sources = self.services.get(key).map(|service| &service.sources);
        self.room(MOST_PATHS, all, || sources.into_iter().flat_map(BTreeMap::keys).map(of).min().unwrap_or(all))
    }

    /// How many more devices there may be for the sources that list a service.
    pub(super) fn room_for_devices(&self, sources: &[SourceId]) -> usize {
        let of = |source| self.homes.values().filter(|home| home.made_for.contains(source)).count();
        let all = self.homes.len();
        self.room(MOST_DEVICES, all, || sources.iter().map(of).min().unwrap_or(all))
    }

    /// How many more there may be, where there are `all` of `most`, for one who has `own`.
    fn room(&self, most: usize, all: usize, own: impl FnOnce() -> usize) -> usize {
        match most.saturating_sub(all) {
            0 => (most / self.sources.len().max(1)).saturating_sub(own()),
            room => room,
        }
    }

    /// What each source lists and is left out, of those of which there is something.
    pub(super) fn left_out(&self) -> BTreeMap<SourceId, LeftOut> {
        let mut all: BTreeMap<SourceId, LeftOut> = BTreeMap::new();
        for (id, source) in self.sources.iter().filter(|(_, source)| source.left_out > 0) {
            all.entry(*id).or_default().services = source.left_out;
        }
        for Service { sources, left_out, .. } in self.services.values().filter(|service| service.left_out > 0) {
            sources.keys().for_each(|id| all.entry(*id).or_default().paths += left_out);
        }
        all
    }

    /// Says so, once for each source until nothing of it is left out any more.
    pub(super) fn tell_left_out(&mut self) {
        let all = self.left_out();
        for (id, source) in &mut self.sources {
            let out = all.get(id);
            if let (Some(LeftOut { services, paths }), false) = (out, source.told) {
                tracing::error!(source = %source.uri, services, paths, "lists more than there is room for, and than its share is: that many are left out");
            }
            source.told = out.is_some();
        }
    }
}
