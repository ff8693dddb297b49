//! What the daemon holds: a stack, disks by name, vhost sockets by path. Control plane only, behind one lock.

use crate::config::{Config, DiskConfig, PathConfig, VhostConfig};
use crate::resources::{Disk, Vhost, lock};
use crate::show;
use anyhow::{Context, Result, ensure};
use polypath::block::{Device, Verdict};
use polypath::multipath::{Group, SelectorKind};
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{GroupSpec, PathSpec, Stack, StackConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long reactors may take to let go of what is in flight when the daemon ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Shared by the RPC connections.
pub(crate) struct Daemon {
    stack: Stack,
    socket_dir: PathBuf,
    /// Held while disks, paths or sockets are made or ended, which may take long; whoever only looks does not wait for it.
    changing: Mutex<()>,
    /// Held for a moment.
    state: Mutex<State>,
    /// Rings that were given a reactor so far: sockets take turns, or the first reactor would have the first ring of each.
    placed: AtomicUsize,
    shutdown: Notify,
}

#[derive(Default)]
struct State {
    disks: BTreeMap<String, Disk>,
    vhosts: BTreeMap<PathBuf, Arc<Vhost>>,
}

impl Daemon {
    /// Starts the reactors, opens the disks, binds the sockets.
    pub(crate) fn start(config: &Config) -> Result<Daemon> {
        let dir = &config.socket_dir;
        ensure!(
            dir.is_dir(),
            "directory of vhost sockets (-S, daemon.socket_dir) {}: is no directory; expected one that exists",
            dir.display()
        );
        let stack =
            Stack::start(StackConfig { cpus: config.cpus.clone(), idle: config.idle, ..StackConfig::default() })
                .context("reactors (-m, daemon.cpus)")?;
        let daemon = Daemon {
            stack,
            socket_dir: dir.clone(),
            changing: Mutex::new(()),
            state: Mutex::new(State::default()),
            placed: AtomicUsize::new(0),
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
        let _alone = lock(&self.changing);
        if lock(&self.state).disks.contains_key(&config.name) {
            return Err(format!("there is a disk \"{}\" already; expected a new name", config.name));
        }
        for (n, path) in config.paths.iter().enumerate() {
            refuse_clash(&config.name, &config.paths[..n], path)?;
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
        lock(&self.state).disks.insert(config.name.clone(), Disk { group, config: config.clone() });
        Ok(())
    }

    /// Closes a disk that no vhost socket serves.
    pub(crate) fn delete_disk(&self, name: &str) -> Result<(), String> {
        let _alone = lock(&self.changing);
        let mut state = lock(&self.state);
        if let Some((socket, _)) = state.vhosts.iter().find(|(_, v)| v.config.disk == name) {
            return Err(format!("disk \"{name}\" is served on {}; delete that first", socket.display()));
        }
        let disk = state.disks.remove(name).ok_or_else(|| no_disk(name))?;
        drop(state);
        disk.group.close();
        tracing::info!(disk = %name, "disk deleted");
        Ok(())
    }

    /// Adds a path; it joins when it proves to lead to the same disk. Answers with its name.
    pub(crate) fn add_path(&self, disk: &str, path: &PathConfig) -> Result<String, String> {
        let _alone = lock(&self.changing);
        let Disk { group, config } = self.disk(disk)?;
        refuse_clash(disk, &config.paths, path)?;
        self.stack.add_path(&group, path_spec(path)).map_err(|e| e.to_string())?;
        if let Some(disk) = lock(&self.state).disks.get_mut(disk) {
            disk.config.paths.push(path.clone());
        }
        Ok(path.label())
    }

    /// Removes a path; what is in flight there completes first, which may be after this returns.
    pub(crate) fn remove_path(&self, disk: &str, path: &str) -> Result<(), String> {
        let _alone = lock(&self.changing);
        let group = self.disk(disk)?.group;
        let id = path_id(&group, path)?;
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

    /// Chooses how paths are chosen.
    pub(crate) fn set_selector(&self, disk: &str, selector: SelectorKind) -> Result<(), String> {
        self.disk(disk)?.group.set_selector(selector);
        Ok(())
    }

    /// Serves a disk on a socket; answers with the socket's path.
    pub(crate) fn create_vhost(&self, config: &VhostConfig) -> Result<PathBuf, String> {
        let _alone = lock(&self.changing);
        let group = self.disk(&config.disk)?.group;
        let socket = self.socket_dir.join(&config.socket);
        if lock(&self.state).vhosts.contains_key(&socket) {
            return Err(format!("{} is served already; expected another socket", socket.display()));
        }
        if let Some(twin) =
            self.twin(&config.disk, |disk| lock(&self.state).vhosts.values().any(|v| v.config.disk == disk))
        {
            return Err(format!(
                "disk \"{}\" is the disk \"{twin}\", which is served already: two groups cannot fence each other's writes; add the paths to \"{twin}\" instead",
                config.disk
            ));
        }
        let mut hosts = self.stack.hosts();
        let turn = self.placed.fetch_add(usize::from(config.queues), Ordering::Relaxed) % hosts.len();
        hosts.rotate_left(turn);
        let mut server = ServerConfig {
            num_queues: config.queues,
            queue_size: config.queue_size,
            read_only: config.read_only,
            ..ServerConfig::new(&config.disk, &socket, group, hosts)
        };
        if let Some(serial) = &config.serial {
            server.serial.clone_from(serial);
        }
        make_folder(&socket)?;
        let server = Server::start(server).map_err(|e| e.to_string())?;
        tracing::info!(disk = %config.disk, socket = %socket.display(), queues = config.queues, "vhost-user-blk socket");
        let vhost = Vhost::new(config.clone(), server);
        lock(&self.state).vhosts.insert(socket.clone(), Arc::new(vhost));
        Ok(socket)
    }

    /// Ends a vhost socket: its rings are drained first.
    pub(crate) fn delete_vhost(&self, socket: &Path) -> Result<(), String> {
        let _alone = lock(&self.changing);
        let socket = self.socket_dir.join(socket);
        let vhost = lock(&self.state).vhosts.remove(&socket);
        let vhost =
            vhost.ok_or_else(|| format!("no vhost socket {}; vhost_list shows those there are", socket.display()))?;
        vhost.stop()?;
        tracing::info!(socket = %socket.display(), "vhost socket deleted");
        Ok(())
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
        let vhosts = lock(&self.state).vhosts.clone();
        vhosts.iter().map(|(socket, vhost)| show::vhost(socket, vhost)).collect()
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

    /// Drains everything, all sockets at once; says what did not end in time.
    pub(crate) fn stop(&self) -> Vec<String> {
        // What is being made is finished first, and then ended with the rest; nobody makes more.
        let alone = self.alone_within(DRAIN_LIMIT);
        let state = std::mem::take(&mut *lock(&self.state));
        let mut faults: Vec<String> = thread::scope(|scope| {
            let stops: Vec<_> = state.vhosts.values().map(|vhost| scope.spawn(|| vhost.stop())).collect();
            let ended =
                stops.into_iter().map(|s| s.join().unwrap_or_else(|_| Err("a vhost socket's end panicked".into())));
            ended.filter_map(Result::err).collect()
        });
        for disk in state.disks.values() {
            disk.group.close();
        }
        if alone.is_none() {
            faults.push("a change by RPC does not end".into());
        }
        if !self.stack.stop(DRAIN_LIMIT) {
            faults.push(format!("reactors still have work in flight after {} ms", DRAIN_LIMIT.as_millis()));
        }
        faults
    }

    /// Waits for a change under way, which may be stuck in the operating system or with somebody else's back-end.
    fn alone_within(&self, limit: Duration) -> Option<MutexGuard<'_, ()>> {
        let until = Instant::now() + limit;
        loop {
            match self.changing.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn disk(&self, name: &str) -> Result<Disk, String> {
        lock(&self.state).disks.get(name).cloned().ok_or_else(|| no_disk(name))
    }
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
    PathSpec { uri: path.uri.clone(), name: path.name.clone(), weight: path.weight }
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
