//! What the daemon holds: a stack, disks by name, vhost sockets by path. Control plane only, behind one lock.

use crate::config::{Config, DiskConfig, PathConfig, VhostConfig};
use anyhow::{Context, Result};
use polypath::block::{Device, DeviceState};
use polypath::multipath::{Group, SelectorKind};
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{GroupSpec, PathSpec, Stack, StackConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// Shared by the RPC connections.
pub(crate) struct Daemon {
    stack: Stack,
    socket_dir: PathBuf,
    state: Mutex<State>,
    shutdown: Notify,
}

#[derive(Default)]
struct State {
    disks: BTreeMap<String, Arc<Group>>,
    vhosts: BTreeMap<PathBuf, Vhost>,
}

struct Vhost {
    disk: String,
    queues: u16,
    server: Server,
}

impl Daemon {
    /// Starts the reactors, opens the disks, binds the sockets.
    pub(crate) fn start(config: &Config) -> Result<Daemon> {
        let stack =
            Stack::start(StackConfig { cpus: config.cpus.clone(), idle: config.idle, ..StackConfig::default() })
                .context("reactors")?;
        let daemon = Daemon {
            stack,
            socket_dir: config.socket_dir.clone(),
            state: Mutex::new(State::default()),
            shutdown: Notify::new(),
        };
        for disk in &config.disks {
            daemon.create_disk(disk).map_err(anyhow::Error::msg)?;
        }
        for vhost in &config.vhosts {
            daemon.create_vhost(vhost).map_err(anyhow::Error::msg)?;
        }
        Ok(daemon)
    }

    /// Opens a disk. Its paths come up on their own; a path that is down now is not an error.
    pub(crate) fn create_disk(&self, config: &DiskConfig) -> Result<(), String> {
        let mut state = self.lock();
        if state.disks.contains_key(&config.name) {
            return Err(format!("there is a disk \"{}\" already", config.name));
        }
        let spec = GroupSpec {
            name: config.name.clone(),
            paths: config.paths.iter().map(path_spec).collect(),
            selector: config.selector,
            no_path_timeout_ms: config.no_path_timeout_ms,
            fencing: config.fencing,
            ..GroupSpec::default()
        };
        let group = self.stack.open_group(spec).map_err(|e| format!("disk \"{}\": {e}", config.name))?;
        tracing::info!(disk = %config.name, paths = config.paths.len(), "disk created");
        state.disks.insert(config.name.clone(), group);
        Ok(())
    }

    /// Closes a disk that no vhost socket serves.
    pub(crate) fn delete_disk(&self, name: &str) -> Result<(), String> {
        let mut state = self.lock();
        if let Some((socket, _)) = state.vhosts.iter().find(|(_, v)| v.disk == name) {
            return Err(format!("disk \"{name}\" is served on {}; delete that first", socket.display()));
        }
        let group = state.disks.remove(name).ok_or_else(|| no_disk(name))?;
        drop(state);
        group.close();
        tracing::info!(disk = %name, "disk deleted");
        Ok(())
    }

    /// Adds a path; it joins when it proves to lead to the same disk.
    pub(crate) fn add_path(&self, disk: &str, path: &PathConfig) -> Result<String, String> {
        let group = self.disk(disk)?;
        let id = self.stack.add_path(&group, path_spec(path)).map_err(|e| e.to_string())?;
        let name = group.statistics().into_iter().find(|p| p.id == id).map(|p| p.name);
        Ok(name.unwrap_or_else(|| path.uri.to_string()))
    }

    /// Removes a path; what is in flight there completes first.
    pub(crate) fn remove_path(&self, disk: &str, path: &str) -> Result<(), String> {
        let group = self.disk(disk)?;
        let id = path_id(&group, path)?;
        group.remove_path(id).map_err(|e| e.to_string())
    }

    /// Sets the weight of a path.
    pub(crate) fn set_weight(&self, disk: &str, path: &str, weight: u32) -> Result<(), String> {
        let group = self.disk(disk)?;
        let id = path_id(&group, path)?;
        group.set_weight(id, weight).map_err(|e| e.to_string())
    }

    /// Chooses how paths are chosen.
    pub(crate) fn set_selector(&self, disk: &str, selector: SelectorKind) -> Result<(), String> {
        self.disk(disk)?.set_selector(selector);
        Ok(())
    }

    /// Serves a disk on a socket; answers with the socket's path.
    pub(crate) fn create_vhost(&self, config: &VhostConfig) -> Result<PathBuf, String> {
        let mut state = self.lock();
        let group = state.disks.get(&config.disk).cloned().ok_or_else(|| no_disk(&config.disk))?;
        let socket = self.socket_dir.join(&config.socket);
        if state.vhosts.contains_key(&socket) {
            return Err(format!("{} is served already", socket.display()));
        }
        let server = Server::start(ServerConfig {
            num_queues: config.queues,
            queue_size: config.queue_size,
            read_only: config.read_only,
            serial: config.serial.clone().unwrap_or_else(|| config.disk.chars().take(20).collect()),
            ..ServerConfig::new(&config.disk, &socket, group, self.stack.hosts())
        })
        .map_err(|e| e.to_string())?;
        tracing::info!(disk = %config.disk, socket = %socket.display(), queues = config.queues, "vhost-user-blk socket");
        state.vhosts.insert(socket.clone(), Vhost { disk: config.disk.clone(), queues: config.queues, server });
        Ok(socket)
    }

    /// Ends a vhost socket: its rings are drained first.
    pub(crate) fn delete_vhost(&self, socket: &Path) -> Result<(), String> {
        let socket = self.socket_dir.join(socket);
        let vhost = self.lock().vhosts.remove(&socket);
        let mut vhost = vhost.ok_or_else(|| format!("no vhost socket {}", socket.display()))?;
        vhost.server.stop().map_err(|e| e.to_string())?;
        tracing::info!(socket = %socket.display(), "vhost socket deleted");
        Ok(())
    }

    /// Disks as RPC shows them.
    pub(crate) fn disks(&self) -> Value {
        self.lock().disks.iter().map(|(name, group)| disk_value(name, group)).collect()
    }

    /// vhost sockets as RPC shows them.
    pub(crate) fn vhosts(&self) -> Value {
        let state = self.lock();
        let one = |(socket, v): (&PathBuf, &Vhost)| json!({ "socket": socket, "disk": v.disk, "queues": v.queues, "connected": v.server.connected() });
        state.vhosts.iter().map(one).collect()
    }

    /// Statistics per path of one disk or of all.
    pub(crate) fn statistics(&self, disk: Option<&str>) -> Result<Value, String> {
        let state = self.lock();
        if let Some(name) = disk.filter(|n| !state.disks.contains_key(*n)) {
            return Err(no_disk(name));
        }
        let wanted = state.disks.iter().filter(|(name, _)| disk.is_none_or(|d| d == name.as_str()));
        Ok(wanted.map(|(name, group)| (name.clone(), paths_value(group))).collect::<serde_json::Map<_, _>>().into())
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

    /// Drains everything; says whether all of it ended in time.
    pub(crate) fn stop(&self) -> bool {
        let state = std::mem::take(&mut *self.lock());
        for (socket, mut vhost) in state.vhosts {
            match vhost.server.stop() {
                Ok(()) => tracing::debug!(socket = %socket.display(), "drained"),
                Err(error) => tracing::error!(socket = %socket.display(), %error, "not drained"),
            }
        }
        for group in state.disks.values() {
            group.close();
        }
        self.stack.stop(std::time::Duration::from_secs(5))
    }

    fn disk(&self, name: &str) -> Result<Arc<Group>, String> {
        self.lock().disks.get(name).cloned().ok_or_else(|| no_disk(name))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

fn no_disk(name: &str) -> String {
    format!("no disk is called \"{name}\"; disk_list shows those there are")
}

fn path_spec(path: &PathConfig) -> PathSpec {
    PathSpec { uri: path.uri.clone(), name: path.name.clone(), weight: path.weight }
}

fn path_id(group: &Group, name: &str) -> Result<polypath::multipath::PathId, String> {
    let all = group.statistics();
    all.iter().find(|p| p.name == name).map(|p| p.id).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
        format!("no path is called \"{name}\"; there are: {}", names.join(", "))
    })
}

fn disk_value(name: &str, group: &Arc<Group>) -> Value {
    let (state, geometry) = match group.state() {
        DeviceState::Live(info) => ("live".to_owned(), Some(info.geometry)),
        DeviceState::Starting => ("starting".to_owned(), None),
        DeviceState::Down { reason, .. } => (format!("down: {reason}"), None),
        DeviceState::Gone { reason } => (format!("gone: {reason}"), None),
    };
    json!({
        "name": name, "state": state, "selector": group.selector().to_string(),
        "block_size": geometry.map(|g| g.block_size), "blocks": geometry.map(|g| g.blocks), "paths": paths_value(group),
    })
}

fn paths_value(group: &Group) -> Value {
    let one = |p: polypath::multipath::PathStatistics| {
        json!({
            "name": p.name, "state": p.state.to_string(), "access": p.access.map(|a| format!("{a:?}").to_lowercase()),
            "weight": p.weight, "ios": p.ios, "bytes": p.bytes, "errors": p.errors, "in_flight": p.in_flight, "redriven": p.redriven, "suspects": p.suspects,
            "failures": p.failures, "recoveries": p.recoveries, "mean_latency_us": p.latency.as_secs_f64() * 1e6,
            "why": p.why,
        })
    };
    group.statistics().into_iter().map(one).collect()
}
