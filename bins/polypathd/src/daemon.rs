//! What the daemon holds: a stack, disks by name, vhost sockets by path, NBD exports by place and name. Control plane only, behind one lock.
//!
//! `sockets.rs` has the sockets that disks are served on, `exports.rs` the NBD exports, `slices.rs` parts of disks, `found.rs` the disks
//! that sources lead to, `reservations.rs` who may use them, `passthrough.rs` commands for them, `end.rs` how it all ends.

mod end;
mod exports;
mod found;
mod passthrough;
mod reservations;
mod slices;
mod sockets;

pub(crate) use reservations::Wanted;

use crate::config::{Config, DiskConfig, PathConfig};
use crate::ledger::{DiskLedger, Served, Writer};
use crate::nbd::{Listener, Nbd, Place, Threads};
use crate::preflight;
use crate::resources::{Disk, Slice, Vhost, lock};
use crate::service::Service;
use crate::show;
use crate::state::{DiskWord, StateDir};
use anyhow::{Context, Result};
use found::{Export, Waiting, refuse_found};
use polypath::block::{Device, Verdict};
use polypath::multipath::{Group, GroupConfig, PathState, SelectorKind};
use polypath::reactor::CpuList;
use polypath::sources::{Sources, SourcesConfig};
use polypath::{PathSpec, Stack, StackConfig};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often a path that was just added is looked at while somebody waits for it.
const PATH_LOOK: Duration = Duration::from_millis(20);

/// Shared by the RPC connections.
pub(crate) struct Daemon {
    stack: Stack,
    /// The cores of its reactors, in their order; `None`: one reactor that is bound to none.
    cpus: Option<CpuList>,
    socket_dir: PathBuf,
    /// `None` when nothing that takes changes was ever served.
    state_dir: Option<Arc<StateDir>>,
    /// Writes down what paths show.
    writer: Writer,
    /// Which disks are served: asked by their paths.
    served: Arc<Served>,
    /// Held while disks, paths or sockets are made or ended, which may take long; whoever only looks does not wait for it.
    changing: Arc<Mutex<()>>,
    /// Held for moments: never while a file is read or written, or somebody is waited for.
    state: Arc<Mutex<State>>,
    /// Rings that were given a reactor so far: sockets take turns, or the first reactor would have the first ring of each.
    placed: AtomicUsize,
    /// Threads that serve NBD.
    threads: Threads,
    /// Where disks come from that nobody has named; none before there is a source.
    sources: Mutex<Option<Arc<Sources>>>,
    source_config: SourcesConfig,
    /// What the exports of the configuration call their disks.
    named: BTreeSet<String>,
    shutdown: Notify,
}

#[derive(Default)]
struct State {
    disks: BTreeMap<String, Disk>,
    /// None has the name of a disk.
    slices: BTreeMap<String, Slice>,
    vhosts: BTreeMap<PathBuf, Arc<Vhost>>,
    /// By where they are and what they are called there.
    nbds: BTreeMap<(Place, String), Arc<Nbd>>,
    listeners: BTreeMap<Place, Arc<Listener>>,
    /// Being deleted, or deleted with requests still in flight: here until they are quiet, and that is written down.
    late: Vec<Service>,
    /// Exports whose disk no source has led to yet.
    waiting: Vec<Waiting>,
    /// Nothing is made any more.
    ending: bool,
}

impl State {
    /// Sockets and exports that serve.
    fn serving(&self) -> impl Iterator<Item = Service> {
        let vhosts = self.vhosts.iter().map(|(socket, vhost)| Service::Vhost(socket.clone(), vhost.clone()));
        vhosts.chain(self.nbds.values().cloned().map(Service::Nbd))
    }

    /// Sockets and exports of a disk, those included that were deleted and still have requests in flight.
    fn services_of<'a>(&'a self, disk: &'a str) -> impl Iterator<Item = Service> {
        self.serving().chain(self.late.iter().cloned()).filter(move |service| service.disk() == disk)
    }

    /// Those that were deleted, and whose last requests have completed.
    fn quiet(&self) -> Vec<Service> {
        self.late.iter().filter(|service| service.is_quiet()).cloned().collect()
    }
}

impl Daemon {
    /// Starts the reactors, opens the disks, binds the sockets. If that fails, what was begun is ended in order.
    #[cfg(test)]
    pub(crate) fn start(config: &Config) -> Result<Daemon> {
        Daemon::start_unless(config, &AtomicBool::new(false))
    }

    /// The same, unless somebody wants it to end before it has begun.
    pub(crate) fn start_unless(config: &Config, unwanted: &AtomicBool) -> Result<Daemon> {
        preflight::check(config).map_err(anyhow::Error::msg)?;
        let stack =
            Stack::start(StackConfig { cpus: config.cpus.clone(), idle: config.idle, ..StackConfig::default() })
                .context("reactors (-m, daemon.cpus)")?;
        match &config.cpus {
            Some(cpus) => tracing::info!(%cpus, "reactors, each on a core of its own"),
            None => tracing::info!("one reactor, on whatever core the system gives it"),
        }
        let state_dir = config.state_dir.as_deref().map(StateDir::open).transpose().map_err(anyhow::Error::msg)?;
        let exported = config.vhosts.iter().map(|vhost| &vhost.disk).chain(config.nbds.iter().map(|nbd| &nbd.disk));
        let daemon = Daemon {
            stack,
            cpus: config.cpus.clone(),
            socket_dir: config.socket_dir.clone(),
            state_dir: state_dir.map(Arc::new),
            writer: Writer::start().context("thread that writes marks")?,
            served: Arc::default(),
            changing: Arc::default(),
            state: Arc::default(),
            placed: AtomicUsize::new(0),
            threads: Threads::default(),
            sources: Mutex::default(),
            source_config: config.source_config,
            named: exported.cloned().collect(),
            shutdown: Notify::new(),
        };
        if let Err(error) = daemon.create_all(config, unwanted) {
            let faults = daemon.stop();
            if !faults.is_empty() {
                tracing::error!(faults = faults.join("; "), "what was begun could not be ended in order");
            }
            return Err(error);
        }
        Ok(daemon)
    }

    fn create_all(&self, config: &Config, unwanted: &AtomicBool) -> Result<()> {
        let wanted = || match unwanted.load(Ordering::Relaxed) {
            true => Err(anyhow::anyhow!("ended before it had started")),
            false => Ok(()),
        };
        for disk in &config.disks {
            wanted()?;
            self.create_disk(disk).map_err(anyhow::Error::msg)?;
        }
        for slice in &config.slices {
            wanted()?;
            self.create_slice(slice).map_err(anyhow::Error::msg)?;
        }
        for source in &config.sources {
            wanted()?;
            self.create_source(source).map_err(anyhow::Error::msg)?;
        }
        let is_there = |name: &str| {
            config.disks.iter().any(|disk| disk.name == *name) || config.slices.iter().any(|slice| slice.name == *name)
        };
        for vhost in &config.vhosts {
            wanted()?;
            if !is_there(&vhost.disk) {
                self.wait_for_disk(Export::Vhost(vhost.clone()));
                continue;
            }
            self.create_vhost(vhost).map_err(anyhow::Error::msg)?;
        }
        for nbd in &config.nbds {
            wanted()?;
            if !is_there(&nbd.disk) {
                self.wait_for_disk(Export::Nbd(nbd.clone()));
                continue;
            }
            self.create_nbd(nbd).map_err(anyhow::Error::msg)?;
        }
        wanted()
    }

    /// Opens a disk. Its paths come up on their own; a path that is down now is not an error.
    pub(crate) fn create_disk(&self, config: &DiskConfig) -> Result<(), String> {
        let _alone = lock(&self.changing);
        lock(&self.state).refuse_name(&config.name)?;
        for (n, path) in config.paths.iter().enumerate() {
            refuse_clash(&config.name, &config.paths[..n], path)?;
        }
        let known = self.state_dir.as_ref().and_then(|state| state.known(&config.name));
        let (writer, served) = (self.writer.clone(), self.served.clone());
        let disk = empty_disk(config, known, writer, served, &self.stack);
        let group = disk.group.clone();
        for path in &config.paths {
            if let Err(error) = self.stack.add_path(&group, path_spec(path)) {
                group.close();
                return Err(format!("disk \"{}\": {error}", config.name));
            }
        }
        tracing::info!(disk = %config.name, paths = config.paths.len(), "disk created");
        self.insert(|state| state.disks.insert(config.name.clone(), disk).is_none()).inspect_err(|_| group.close())
    }

    /// Closes a disk that neither vhost sockets nor NBD exports serve, and of which nothing is in flight. The next one of its name is another one.
    pub(crate) fn delete_disk(&self, name: &str) -> Result<(), String> {
        let alone = lock(&self.changing);
        self.end_quiet(&alone);
        let mut state = lock(&self.state);
        refuse_found(name, state.disks.get(name).is_some_and(|disk| disk.found))?;
        if let Some(service) = state.serving().find(|service| service.disk() == name) {
            return Err(format!("disk \"{name}\" is served on {}; delete that first", service.at()));
        }
        if let Some(late) = state.late.iter().find(|service| service.disk() == name) {
            let why = late.unwritten().unwrap_or_else(|| {
                "it has requests in flight from there, which would fail; try again when its paths have answered".into()
            });
            return Err(format!("disk \"{name}\" was served on {}: {why}", late.at()));
        }
        state.refuse_whole(name).map_err(|e| e.replace("expected one of them", "delete those first"))?;
        if state.disks.get(name).is_some_and(|disk| disk.ledger.is_passing()) {
            return Err(format!("a command is being passed through to disk \"{name}\"; try again when it has ended"));
        }
        let disk = state.disks.remove(name).ok_or_else(|| no_disk(name))?;
        drop(state);
        disk.group.close();
        let forgotten = self.state_dir.as_ref().map_or(Ok(()), |state| state.forget(name));
        if let Err(error) = forgotten {
            tracing::warn!(disk = %name, error, "which disk that was is still written down: another one of its name will be refused");
        }
        tracing::info!(disk = %name, "disk deleted");
        Ok(())
    }

    /// Changes what there is, unless the daemon ends. `change` says whether it could.
    fn insert(&self, change: impl FnOnce(&mut State) -> bool) -> Result<(), String> {
        let mut state = lock(&self.state);
        match !state.ending && change(&mut state) {
            true => Ok(()),
            false => Err("the daemon is ending; nothing is made any more".into()),
        }
    }

    /// Adds a path; it joins when it proves to lead to the same disk. Answers with its name and with what has become of it within `limit`.
    pub(crate) fn add_path(&self, disk: &str, path: &PathConfig, limit: Duration) -> Result<Value, String> {
        let (group, events, id) = {
            let _alone = lock(&self.changing);
            let Disk { group, config, ledger, found } = self.disk(disk)?;
            refuse_found(disk, found)?;
            refuse_clash(disk, &config.paths, path)?;
            let events = group.events();
            let id = self.stack.add_path(&group, path_spec(path)).map_err(|e| e.to_string())?;
            // What can be told of it before it has answered. It carries nothing before the rest is written down, too.
            let written = ledger.mark().map_or(Ok(()), |mark| mark.raise_bound(group.landing_bound()));
            if let Err(error) = written {
                group.remove_path(id).map_err(|e| e.to_string())?;
                return Err(format!(
                    "how long requests of path {} may land cannot be written down: {error}",
                    path.label()
                ));
            }
            if let Some(disk) = lock(&self.state).disks.get_mut(disk) {
                disk.config.paths.push(path.clone());
            }
            (group, events, id)
        };
        let until = Instant::now() + limit;
        let now = loop {
            // It also makes the group look at its paths, which nobody else may do.
            let now = group.statistics().into_iter().find(|p| p.id == id);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || now.as_ref().is_none_or(|p| p.state != PathState::Connecting) {
                break now;
            }
            events.next_within(left.min(PATH_LOOK));
        };
        let now = now.ok_or_else(|| format!("path {} was removed again meanwhile", path.label()))?;
        Ok(json!({ "path": now.name, "state": now.state.to_string(), "why": now.why }))
    }

    /// Removes a path; what is in flight there completes first, which may be after this returns. The last one that takes I/O needs `force`.
    pub(crate) fn remove_path(&self, disk: &str, path: &str, force: bool) -> Result<(), String> {
        let _alone = lock(&self.changing);
        let Disk { group, found, .. } = self.disk(disk)?;
        refuse_found(disk, found)?;
        let id = path_id(&group, path)?;
        if !force && group.is_last_usable(id).map_err(|e| e.to_string())? {
            return Err(format!(
                "path {path} is the last usable one of disk \"{disk}\": without it requests wait, and fail when their time is up; add \
                 another one first, or say force=true"
            ));
        }
        group.remove_path(id).map_err(|e| e.to_string())?;
        if let Some(disk) = lock(&self.state).disks.get_mut(disk) {
            disk.config.paths.retain(|p| p.label() != path);
        }
        Ok(())
    }

    /// Sets the weight of a path.
    pub(crate) fn set_weight(&self, disk: &str, path: &str, weight: u32) -> Result<(), String> {
        let group = self.disk(disk)?.group;
        let id = path_id(&group, path)?;
        group.set_weight(id, weight).map_err(|e| e.to_string())?;
        tracing::info!(disk, path, weight, "weight set");
        Ok(())
    }

    /// Marks a path as preferred, or not any more.
    pub(crate) fn set_preferred(&self, disk: &str, path: &str, preferred: bool) -> Result<(), String> {
        let group = self.disk(disk)?.group;
        let id = path_id(&group, path)?;
        group.set_preferred(id, preferred).map_err(|e| e.to_string())?;
        tracing::info!(disk, path, preferred, "preference set");
        Ok(())
    }

    /// Chooses how paths are chosen.
    pub(crate) fn set_selector(&self, disk: &str, selector: SelectorKind) -> Result<(), String> {
        self.disk(disk)?.group.set_selector(selector);
        Ok(())
    }

    /// Now and then: gives disks that no guest uses the time and a look at their paths, ends the marks of sockets that have become quiet,
    /// and tries again what could not be written down.
    pub(crate) fn look_after(&self) {
        // Whoever changes something now may take long, and ends them himself.
        let alone = self.changing.try_lock().map(|alone| self.end_quiet(&alone)).is_ok();
        if alone {
            self.serve_waiting();
        }
        let disks = lock(&self.state).disks.clone();
        for disk in disks.values() {
            disk.group.refresh_at(polypath::reactor::now());
            disk.ledger.look_after(&disk.group);
        }
    }

    /// Disks as RPC shows them.
    pub(crate) fn disks(&self) -> Value {
        let disks = lock(&self.state).disks.clone();
        disks.iter().map(|(name, disk)| show::disk(name, disk, self.twin(name, |_| true))).collect()
    }

    /// Another disk among those that are `wanted` that proves to be the same as `name`, if both have answered.
    fn twin(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let disks = lock(&self.state).disks.clone();
        let identity = |d: &Disk| d.group.state().info().map(|i| i.identity.clone());
        let own = disks.get(name).and_then(identity)?;
        let same = |other: &Disk| identity(other).is_some_and(|i| own.compare(&i) == Verdict::Same);
        disks.iter().find(|(n, d)| *n != name && wanted(n) && same(d)).map(|(n, _)| n.clone())
    }

    /// vhost sockets as RPC shows them.
    pub(crate) fn vhosts(&self) -> Value {
        let (vhosts, late) = {
            let state = lock(&self.state);
            (state.vhosts.clone(), state.late.clone())
        };
        let serving = vhosts.iter().map(|(socket, vhost)| show::vhost(socket, vhost, "serving"));
        let ending = late.iter().filter_map(|service| match service {
            Service::Vhost(socket, vhost) => Some(show::vhost(socket, vhost, "ending")),
            Service::Nbd(_) => None,
        });
        serving.chain(ending).chain(self.show_waiting(false)).collect()
    }

    /// NBD exports as RPC shows them.
    pub(crate) fn nbds(&self) -> Value {
        let (nbds, late) = {
            let state = lock(&self.state);
            (state.nbds.clone(), state.late.clone())
        };
        let ending = late.iter().filter_map(|service| match service {
            Service::Nbd(nbd) => Some(show::nbd(nbd, "ending")),
            Service::Vhost(..) => None,
        });
        nbds.values().map(|nbd| show::nbd(nbd, "serving")).chain(ending).chain(self.show_waiting(true)).collect()
    }

    /// Statistics per path of one disk or of all.
    pub(crate) fn statistics(&self, disk: Option<&str>) -> Result<Value, String> {
        let disks = match disk {
            Some(name) => BTreeMap::from([(name.to_owned(), self.disk(name)?)]),
            None => lock(&self.state).disks.clone(),
        };
        Ok(disks.iter().map(|(name, disk)| (name.clone(), show::paths(disk))).collect::<serde_json::Map<_, _>>().into())
    }

    /// How busy the reactors are.
    pub(crate) fn reactors(&self) -> Value {
        let one = |(i, s): (usize, polypath::reactor::ReactorStatistics)| {
            json!({
                "reactor": i, "turns": s.turns, "busy_turns": s.busy_turns, "busy_ns": s.busy_ns, "spin_ns": s.spin_ns,
                "sleep_ns": s.sleep_ns, "sleeps": s.sleeps, "pollers": s.pollers,
            })
        };
        self.stack.statistics().into_iter().enumerate().map(one).collect()
    }

    /// Asks the daemon to drain and end.
    pub(crate) fn request_shutdown(&self) {
        self.shutdown.notify_one();
    }

    /// Waits until somebody asked.
    pub(crate) async fn shutdown_requested(&self) {
        self.shutdown.notified().await;
    }

    fn disk(&self, name: &str) -> Result<Disk, String> {
        lock(&self.state).disks.get(name).cloned().ok_or_else(|| no_disk(name))
    }
}

/// A disk as `config` has it, without its paths. `known`: which one it was the last time.
fn empty_disk(
    config: &DiskConfig,
    known: Option<DiskWord>,
    writer: Writer,
    served: Arc<Served>,
    stack: &Stack,
) -> Disk {
    let ledger = DiskLedger::new(&config.name, &config.matching, known, writer, served);
    let group = Group::new(GroupConfig {
        selector: config.selector,
        no_path_timeout_ms: config.no_path_timeout_ms,
        fencing: config.fencing,
        matching: config.matching.clone(),
        ledger: Some(ledger.clone()),
        ..GroupConfig::new(&config.name)
    });
    ledger.set_group(&group);
    stack.hosts().into_iter().for_each(|host| group.attach_host(host));
    Disk { group, config: config.clone(), ledger, found: false }
}

fn refuse_clash(disk: &str, paths: &[PathConfig], new: &PathConfig) -> Result<(), String> {
    match paths.iter().find(|p| p.clashes(new)) {
        Some(other) => Err(format!(
            "disk \"{disk}\" has path {} ({}) already; expected another URI, under a name of its own",
            other.label(),
            other.uri
        )),
        None => Ok(()),
    }
}

fn no_disk(name: &str) -> String {
    format!("no disk is called \"{name}\"; disk_list shows those there are")
}

fn path_spec(path: &PathConfig) -> PathSpec {
    PathSpec { uri: path.uri.clone(), name: path.name.clone(), weight: path.weight, preferred: path.preferred }
}

fn path_id(group: &Group, name: &str) -> Result<polypath::multipath::PathId, String> {
    let all = group.statistics();
    all.iter().find(|p| p.name == name).map(|p| p.id).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
        format!("no path is called \"{name}\"; there are: {}", names.join(", "))
    })
}

/// Makes the folder that a socket goes to, as /run is empty after every boot.
pub(crate) fn make_folder(socket: &Path) -> Result<(), String> {
    let Some(folder) = socket.parent().filter(|f| !f.as_os_str().is_empty()) else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|e| {
        format!("the folder {} of the socket cannot be made: {e}; choose another with -S or -r", folder.display())
    })
}

#[cfg(test)]
mod tests;
