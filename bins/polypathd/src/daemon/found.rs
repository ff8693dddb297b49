//! Disks that sources lead to, and exports that wait for theirs.

use super::{Daemon, State, empty_disk};
use crate::config::{DiskConfig, NbdConfig, VhostConfig};
use crate::ledger::{Served, Writer};
use crate::nbd::Place;
use crate::resources::lock;
use crate::state::StateDir;
use crate::values;
use polypath::Stack;
use polypath::block::Device;
use polypath::multipath::{Group, MatchPolicy};
use polypath::sources::{DevicePolicy, Keeper, NewDevice, SourceId, SourceUri, Sources, SourcesConfig};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// What makes disks of the daemon out of what is found.
pub(super) struct Finder {
    pub(super) stack: Stack,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) changing: Arc<Mutex<()>>,
    pub(super) state_dir: Option<Arc<StateDir>>,
    pub(super) writer: Writer,
    pub(super) served: Arc<Served>,
    pub(super) policy: DevicePolicy,
    /// What exports call their disks: what is written down of a disk is under that name.
    pub(super) named: BTreeSet<String>,
}

impl Keeper for Finder {
    fn make(&self, new: &NewDevice) -> Result<(String, Arc<Group>), String> {
        let name = new.proven.iter().find(|name| self.named.contains(*name)).unwrap_or(&new.name).clone();
        values::disk_name(&name).map_err(|e| format!("name \"{name}\" {e}"))?;
        let DevicePolicy { selector, no_path_timeout_ms, fencing } = self.policy;
        let matching = MatchPolicy::Worldwide;
        let config =
            DiskConfig { name: name.clone(), selector, no_path_timeout_ms, fencing, matching, paths: Vec::new() };
        let known = self.state_dir.as_ref().and_then(|state| state.known(&name));
        let mut disk = empty_disk(&config, known, self.writer.clone(), self.served.clone(), &self.stack);
        disk.found = true;
        let group = disk.group.clone();
        let mut state = lock(&self.state);
        if state.ending || state.disks.contains_key(&name) {
            drop(state);
            group.close();
            return Err(format!("there is a disk \"{name}\" already, or the daemon is ending"));
        }
        state.disks.insert(name.clone(), disk);
        Ok((name, group))
    }

    fn is_in_use(&self, name: &str, _: &Arc<Group>) -> bool {
        lock(&self.state).is_in_use(name)
    }

    fn retire(&self, name: &str, group: &Arc<Group>) -> bool {
        // An export of it may be in the making. It is asked for again.
        let Ok(_alone) = self.changing.try_lock() else { return false };
        let mut state = lock(&self.state);
        if state.is_in_use(name) {
            return false;
        }
        state.disks.remove(name);
        drop(state);
        group.close();
        true
    }

    fn end(&self, _: &str, _: &Arc<Group>) {
        // They end with the daemon's other disks, after what serves them.
    }
}

/// An export whose disk is not there yet.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) export: Export,
    /// Why it could not be made, the last time that its disk was there.
    why: Option<String>,
}

/// What waits.
#[derive(Clone)]
pub(super) enum Export {
    Vhost(VhostConfig),
    Nbd(NbdConfig),
}

impl Export {
    /// Is it at the same place as `other`, under the same name?
    fn is(&self, other: &Export) -> bool {
        match (self, other) {
            (Export::Vhost(one), Export::Vhost(two)) => one.socket == two.socket,
            (Export::Nbd(one), Export::Nbd(two)) => one.place == two.place && one.name == two.name,
            _ => false,
        }
    }

    fn disk(&self) -> &str {
        match self {
            Export::Vhost(vhost) => &vhost.disk,
            Export::Nbd(nbd) => &nbd.disk,
        }
    }
}

impl Daemon {
    /// The sources, which are looked after from the first call on.
    fn sources(&self) -> Result<Arc<Sources>, String> {
        let mut sources = lock(&self.sources);
        if let Some(sources) = &*sources {
            return Ok(sources.clone());
        }
        if lock(&self.state).ending {
            return Err("the daemon is ending; nothing is made any more".into());
        }
        let config: SourcesConfig = self.source_config;
        let finder = Finder {
            stack: self.stack.clone(),
            state: self.state.clone(),
            changing: self.changing.clone(),
            state_dir: self.state_dir.clone(),
            writer: self.writer.clone(),
            served: self.served.clone(),
            policy: config.policy,
            named: self.named.clone(),
        };
        let started = Sources::start_with(&self.stack, config, Arc::new(finder)).map_err(|e| e.to_string())?;
        Ok(sources.insert(Arc::new(started)).clone())
    }

    /// Adds a source: what it leads to becomes disks from now on.
    pub(crate) fn create_source(&self, uri: &SourceUri) -> Result<SourceId, String> {
        self.sources()?.add(uri.clone()).map_err(|e| e.to_string())
    }

    /// Removes a source, named by its number or its URI as it is shown. Unless `force`, not while a disk that is served would be left
    /// without a path.
    pub(crate) fn delete_source(&self, source: &str, force: bool) -> Result<(), String> {
        let sources = lock(&self.sources).clone();
        let sources = sources.ok_or("there are no sources")?;
        let report = sources.report();
        let shown = polypath::block::hide_secret(source);
        let found = report.sources.iter().find(|s| s.id.to_string() == source || s.uri == source || s.uri == shown);
        let id = found.map(|s| s.id).ok_or_else(|| format!("no source {shown}; source_list shows those there are"))?;
        sources.remove(id, force).map_err(|e| e.to_string())
    }

    /// Sources as RPC shows them, and what they lead to that is no path of a disk.
    pub(crate) fn list_sources(&self) -> Value {
        let sources = lock(&self.sources).clone();
        let Some(report) = sources.map(|sources| sources.report()) else {
            return json!({ "sources": [], "unused": [] });
        };
        let sources = report.sources.iter().map(|source| {
            let answered = source.answered.map(|at| at.elapsed().as_millis() as u64);
            json!({
                "source": source.id.0, "uri": source.uri, "type": source.kind.as_str(), "answered_ms_ago": answered,
                "problem": source.problem, "services": source.services, "paths": source.paths,
                "left_out": source.left_out,
            })
        });
        let unused = report.loose.iter().map(|p| json!({ "name": p.name, "pending": p.pending, "why": p.why }));
        json!({ "sources": sources.collect::<Vec<_>>(), "unused": unused.collect::<Vec<_>>() })
    }

    /// No sources any more; their disks stay as they are.
    pub(super) fn end_sources(&self) {
        let sources = lock(&self.sources).take();
        if let Some(sources) = sources {
            sources.close();
        }
    }

    /// The name of the disk that is called `name`, or that proves to be that; `name` itself, if there is none.
    pub(crate) fn disk_name(&self, name: &str) -> String {
        if lock(&self.state).disks.contains_key(name) {
            return name.to_owned();
        }
        let report = lock(&self.sources).as_ref().map(|sources| sources.report());
        report.and_then(|report| Some(report.device(name)?.name.clone())).unwrap_or_else(|| name.to_owned())
    }

    /// The export is made once its disk is there.
    pub(super) fn wait_for_disk(&self, export: Export) {
        tracing::info!(disk = export.disk(), "an export waits for its disk, which no source has led to yet");
        lock(&self.state).waiting.push(Waiting { export, why: None });
    }

    /// Makes the exports whose disks are there by now.
    pub(super) fn serve_waiting(&self) {
        let waiting = lock(&self.state).waiting.clone();
        for one in &waiting {
            let disk = self.disk_name(one.export.disk());
            let there = lock(&self.state).disks.get(&disk).cloned();
            if there.is_none_or(|disk| disk.group.state().info().is_none()) {
                continue;
            }
            let made = match &one.export {
                Export::Vhost(vhost) => self.create_vhost(&VhostConfig { disk, ..vhost.clone() }).map(drop),
                Export::Nbd(nbd) => self.create_nbd(&NbdConfig { disk, ..nbd.clone() }).map(drop),
            };
            let mut state = lock(&self.state);
            match made {
                // Others may have gone meanwhile.
                Ok(()) => state.waiting.retain(|waiting| !waiting.export.is(&one.export)),
                Err(why) => {
                    if let Some(one) = state.waiting.iter_mut().find(|waiting| waiting.export.is(&one.export))
                        && one.why.as_ref() != Some(&why)
                    {
                        tracing::error!(
                            disk = one.export.disk(),
                            why,
                            "an export whose disk has come cannot be made; it is tried again"
                        );
                        one.why = Some(why);
                    }
                }
            }
        }
    }

    /// The vhost socket at `socket` waits no more, if it did.
    pub(super) fn forget_vhost(&self, socket: &Path) -> bool {
        self.forget(|export| matches!(export, Export::Vhost(v) if self.socket_dir.join(&v.socket) == socket))
    }

    /// The NBD export at `place` waits no more, if it did.
    pub(super) fn forget_nbd(&self, place: &Place, name: Option<&str>) -> bool {
        let is = |nbd: &NbdConfig| self.place_of(&nbd.place) == *place && name.is_none_or(|name| nbd.name == name);
        self.forget(|export| matches!(export, Export::Nbd(nbd) if is(nbd)))
    }

    fn forget(&self, which: impl Fn(&Export) -> bool) -> bool {
        let mut state = lock(&self.state);
        let at = state.waiting.iter().position(|one| which(&one.export));
        at.map(|at| state.waiting.remove(at)).is_some()
    }

    /// Exports that wait, as RPC shows them: sockets, or NBD exports.
    pub(super) fn show_waiting(&self, nbds: bool) -> Vec<Value> {
        let waiting = lock(&self.state).waiting.clone();
        let shown = waiting.into_iter().filter_map(|Waiting { export, why }| match export {
            Export::Vhost(v) if !nbds => {
                let socket = self.socket_dir.join(&v.socket);
                Some(json!({ "socket": socket, "disk": v.disk, "state": "waiting", "why": why }))
            }
            Export::Nbd(n) if nbds => {
                let place = self.place_of(&n.place).to_string();
                Some(json!({ "disk": n.disk, "name": n.name, "place": place, "state": "waiting", "why": why }))
            }
            _ => None,
        });
        shown.collect()
    }
}

/// Why something is not done to a disk that is `found`.
pub(super) fn refuse_found(name: &str, found: bool) -> Result<(), String> {
    match found {
        false => Ok(()),
        true => {
            Err(format!("disk \"{name}\" and its paths come from sources; expected source_create or source_delete"))
        }
    }
}
