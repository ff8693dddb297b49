//! NBD exports of disks.

use super::slices::Served;
use super::{Daemon, State, make_folder};
use crate::config::NbdConfig;
use crate::nbd::{Listener, Nbd, Place};
use crate::resources::lock;
use crate::service::Service;
use crate::values;
use polypath_nbd::ExportConfig;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Daemon {
    /// Exports a disk; answers with where it is reached.
    pub(crate) fn create_nbd(&self, config: &NbdConfig) -> Result<Place, String> {
        let alone = lock(&self.changing);
        self.end_quiet(&alone);
        let disk = self.served(&config.disk)?.disk;
        let place = self.place_of(&config.place);
        if let Place::Socket(path) = &place {
            values::socket_path(path).map_err(|e| format!("NBD socket {}: its path {e}", path.display()))?;
        }
        self.refuse_nbd(config, &place)?;
        // All that may fail because of others comes first: a mark tells of a disk that was served.
        let listener = self.listener(config, &place)?;
        let place = listener.place();
        let served = self.export(config, &place, &listener);
        if served.is_err() {
            if lock(&self.state).services_of(&disk.config.name).next().is_none() {
                disk.ledger.let_go();
            }
            self.close_unused();
        }
        let nbd = served?;
        tracing::info!(disk = %config.disk, %place, name = %config.name, "NBD export");
        let key = (place.clone(), config.name.clone());
        let inserted = self.insert(|state| state.nbds.insert(key, nbd.clone()).is_none());
        inserted.inspect_err(|_| {
            // It took so long that the daemon has begun to end meanwhile. A client may be there already.
            if let Err(error) = nbd.stop() {
                tracing::error!(error, "an export that nobody wants any more");
            }
            lock(&self.state).late.push(Service::Nbd(nbd.clone()));
            self.end_quiet(&alone);
            self.close_unused();
        })?;
        Ok(place)
    }

    /// Where `place` is: a socket without a path of its own is in the directory of sockets.
    pub(super) fn place_of(&self, place: &Place) -> Place {
        match place {
            Place::Socket(path) => Place::Socket(self.socket_dir.join(path)),
            address => address.clone(),
        }
    }

    fn refuse_nbd(&self, config: &NbdConfig, place: &Place) -> Result<(), String> {
        {
            let state = lock(&self.state);
            if state.nbds.contains_key(&(place.clone(), config.name.clone())) {
                let name = &config.name;
                return Err(format!(
                    "there is an NBD export \"{name}\" at {place} already; expected another name or place"
                ));
            }
            if let Some(listener) = state.listeners.get(place)
                && listener.access != config.access
            {
                return Err(format!("{place} is there already with another mode, owner or group; expected the same"));
            }
        }
        self.refuse_service(&config.disk)
    }

    /// The listener at `place`, which is made if it is not there.
    fn listener(&self, config: &NbdConfig, place: &Place) -> Result<Arc<Listener>, String> {
        if let Some(listener) = lock(&self.state).listeners.get(place) {
            return Ok(listener.clone());
        }
        match place {
            Place::Socket(path) => make_folder(path)?,
            Place::Address(address) if !address.ip().is_loopback() => {
                tracing::warn!(%address, disk = %config.disk, "NBD has no passwords and no encryption: whoever reaches this address reaches the disk");
            }
            Place::Address(_) => {}
        }
        let threads = self.threads.handle().map_err(|e| format!("threads to serve NBD on: {e}"))?;
        let listener = Listener::open(place, config.access, threads).map_err(|e| e.to_string())?;
        let listener = Arc::new(listener);
        self.insert(|state| state.listeners.insert(listener.place(), listener.clone()).is_none())
            .inspect_err(|_| listener.close())?;
        Ok(listener)
    }

    /// Writes down that the disk is served there, then serves it.
    fn export(&self, config: &NbdConfig, place: &Place, listener: &Arc<Listener>) -> Result<Arc<Nbd>, String> {
        let Served { disk, device } = self.served(&config.disk)?;
        let replaced = listener.server.replaced();
        let mark = match place {
            Place::Socket(path) => {
                // The next daemon may run elsewhere.
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                self.mark(&disk, &format!("nbd:{}#{}", path.to_string_lossy(), config.name), replaced)
            }
            Place::Address(address) => self.mark(&disk, &format!("nbd:{address}#{}", config.name), replaced),
        }?;
        let mut export = ExportConfig::of_device(&config.name, device, &self.stack);
        export.read_only = config.read_only;
        export.hold_changes = mark.hold();
        export.owed = mark.owed();
        listener.server.add(export).map_err(|error| {
            let undone = mark.undo();
            let also =
                undone.err().map_or(String::new(), |e| format!("; its mark stays, and the next daemon waits: {e}"));
            format!("{error}{also}")
        })?;
        Ok(Arc::new(Nbd::new(config.clone(), disk.config.name, listener.clone(), mark)))
    }

    /// Ends an export. Its clients hear the answers to what they had asked for. It is known until it is quiet, which may be after this
    /// returns with an error. `name`: of the export; the only one there, if none is given.
    pub(crate) fn delete_nbd(&self, place: &Place, name: Option<&str>) -> Result<(), String> {
        let alone = lock(&self.changing);
        let place = self.place_of(place);
        // It may have been made by now all the same.
        let is_made = |(at, called): &(Place, String)| *at == place && name.is_none_or(|name| name == called);
        if self.forget_nbd(&place, name) && !lock(&self.state).nbds.keys().any(is_made) {
            return Ok(());
        }
        let nbd = {
            let mut state = lock(&self.state);
            let there = state.nbds.keys().filter(|(at, _)| *at == place).map(|(_, name)| name.clone());
            let there = there.collect::<Vec<_>>();
            let name = match (name, &there[..]) {
                (Some(name), _) => name.to_owned(),
                (None, [only]) => only.clone(),
                (None, []) => return Err(format!("no NBD export at {place}; nbd_list shows those there are")),
                (None, many) => {
                    return Err(format!(
                        "{} NBD exports are at {place}; expected a name, one of: {}",
                        many.len(),
                        many.join(", ")
                    ));
                }
            };
            let nbd = state.nbds.remove(&(place.clone(), name.clone()));
            let nbd =
                nbd.ok_or_else(|| format!("no NBD export \"{name}\" at {place}; nbd_list shows those there are"))?;
            state.late.push(Service::Nbd(nbd.clone()));
            nbd
        };
        let stopped = nbd.stop();
        self.close_unused();
        stopped?;
        self.end_quiet(&alone);
        if let Some(problem) = nbd.unwritten() {
            return Err(format!("{} is served no more, but {problem}, which is tried again and again", nbd.at()));
        }
        tracing::info!(%place, name = %nbd.config.name, "NBD export deleted");
        Ok(())
    }

    /// Closes listeners that have no exports.
    fn close_unused(&self) {
        let unused: BTreeMap<Place, Arc<Listener>> = {
            let mut state = lock(&self.state);
            let State { nbds, listeners, .. } = &mut *state;
            let (used, unused) = std::mem::take(listeners)
                .into_iter()
                .partition(|(place, _)| nbds.keys().any(|(used, _)| used == place));
            *listeners = used;
            unused
        };
        unused.values().for_each(|listener| listener.close());
    }
}
