//! Sockets that disks are served on.

use super::{Daemon, make_folder};
use crate::config::VhostConfig;
use crate::preflight;
use crate::resources::{Disk, Vhost, lock};
use crate::service::Service;
use crate::state::{SocketMark, StateDir};
use crate::values;
use polypath::block::{Device, Host};
use polypath::reactor::CpuList;
use polypath::vhost_user_blk::{BoundServer, Server, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the rings of a socket may take to drain. Tests in which they do not have more to do than wait.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

impl Daemon {
    /// Serves a disk on a socket; answers with the socket's path.
    pub(crate) fn create_vhost(&self, config: &VhostConfig) -> Result<PathBuf, String> {
        let alone = lock(&self.changing);
        self.end_quiet(&alone);
        let served = self.served(&config.disk)?;
        let socket = self.socket_dir.join(&config.socket);
        values::socket_path(&socket).map_err(|e| format!("vhost socket {}: its path {e}", socket.display()))?;
        self.refuse_vhost(config, &socket)?;
        let server = self.server_config(config, &socket, served.device)?;
        make_folder(&socket)?;
        // All that may fail because of others comes first: a mark tells of a disk that was served. Nobody is served before it is written.
        let bound = Server::bind(server).map_err(|e| e.to_string())?;
        let disk = served.disk;
        let vhost = self.serve(config, &disk, &socket, bound).inspect_err(|_| {
            if lock(&self.state).services_of(&disk.config.name).next().is_none() {
                disk.ledger.let_go();
            }
        })?;
        tracing::info!(disk = %config.disk, socket = %socket.display(), queues = config.queues, "vhost-user-blk socket");
        let inserted = self.insert(|state| state.vhosts.insert(socket.clone(), vhost.clone()).is_none());
        inserted.inspect_err(|_| {
            // It took so long that the daemon has begun to end meanwhile. A guest may be there already.
            if let Err(error) = vhost.stop() {
                tracing::error!(error, "a socket that nobody wants any more");
            }
            lock(&self.state).late.push(Service::Vhost(socket.clone(), vhost.clone()));
            self.end_quiet(&alone);
        })?;
        Ok(socket)
    }

    fn refuse_vhost(&self, config: &VhostConfig, socket: &Path) -> Result<(), String> {
        {
            let state = lock(&self.state);
            if state.vhosts.contains_key(socket) {
                return Err(format!("{} is served already; expected another socket", socket.display()));
            }
            let same = |service: &&Service| matches!(service, Service::Vhost(at, _) if at == socket);
            if let Some(late) = state.late.iter().find(same) {
                return Err(refused_for(late));
            }
        }
        self.refuse_service(&config.disk)
    }

    /// Why `name`, a disk or slice, cannot be served once more, whatever by.
    pub(super) fn refuse_service(&self, name: &str) -> Result<(), String> {
        let disk = &self.served(name)?.disk.config.name;
        let served = {
            let state = lock(&self.state);
            if let Some(late) = state.late.iter().find(|service| service.concerns(name, disk)) {
                return Err(refused_for(late));
            }
            if name == disk {
                state.refuse_whole(disk)?;
            }
            let served = state.disks.keys().filter(|disk| state.services_of(disk).next().is_some());
            served.cloned().collect::<Vec<_>>()
        };
        match self.twin(disk, |disk| served.iter().any(|served| served == disk)) {
            None => Ok(()),
            Some(twin) => Err(format!(
                "disk \"{disk}\" is the disk \"{twin}\", which is served already: two groups cannot fence each other's writes; add the paths to \"{twin}\" instead",
            )),
        }
    }

    fn server_config(
        &self,
        config: &VhostConfig,
        socket: &Path,
        device: Arc<dyn Device>,
    ) -> Result<ServerConfig, String> {
        let mut hosts = self.hosts_of(config)?;
        let turn = self.placed.fetch_add(usize::from(config.queues), Ordering::Relaxed) % hosts.len();
        hosts.rotate_left(turn);
        let mut server = ServerConfig {
            num_queues: config.queues,
            queue_size: config.queue_size,
            read_only: config.read_only,
            access: config.access,
            drain_timeout: DRAIN_TIMEOUT,
            ..ServerConfig::new(&config.disk, socket, device, hosts)
        };
        if let Some(serial) = &config.serial {
            server.serial.clone_from(serial);
        }
        Ok(server)
    }

    /// Writes down that the disk is served there, then serves it.
    fn serve(
        &self,
        config: &VhostConfig,
        disk: &Disk,
        socket: &Path,
        mut bound: BoundServer,
    ) -> Result<Arc<Vhost>, String> {
        // The next daemon may run elsewhere.
        let name = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
        let mark = self.mark(disk, &name.to_string_lossy(), bound.replaced())?;
        take_over(bound.config_mut(), &mark);
        let server = bound.serve().map_err(|error| {
            let undone = mark.undo();
            let also =
                undone.err().map_or(String::new(), |e| format!("; its mark stays, and the next daemon waits: {e}"));
            format!("{error}{also}")
        })?;
        Ok(Arc::new(Vhost::new(config.clone(), disk.config.name.clone(), server, mark)))
    }

    /// Writes down that `disk` is served by what is called `name`. `stale`: somebody has left its socket behind who was killed.
    pub(super) fn mark(&self, disk: &Disk, name: &str, stale: bool) -> Result<Arc<SocketMark>, String> {
        let state_dir = self.state_dir(&disk.config.name)?;
        let (mark, shown) = disk.ledger.serve(state_dir, &disk.group)?;
        let mark = mark.begin(name, stale, &shown);
        let mark =
            mark.map_err(|e| format!("disk \"{}\": that it is served cannot be written down: {e}", disk.config.name))?;
        Ok(Arc::new(mark))
    }

    /// Where it is written down what becomes of `disk`.
    pub(super) fn state_dir(&self, disk: &str) -> Result<&StateDir, String> {
        self.state_dir.as_deref().ok_or_else(|| {
            format!(
                "disk \"{disk}\": there is no folder to write down that it is served: neither STATE_DIRECTORY nor HOME is set; name one with --state-dir or daemon.state_dir"
            )
        })
    }

    /// The reactors that are to serve `vhost`.
    fn hosts_of(&self, vhost: &VhostConfig) -> Result<Vec<Arc<dyn Host>>, String> {
        preflight::within(vhost, self.cpus.as_ref())?;
        let mut hosts = self.stack.hosts();
        if let (Some(CpuList(wanted)), Some(CpuList(have))) = (&vhost.cpus, &self.cpus) {
            let mut cpus = have.iter();
            hosts.retain(|_| cpus.next().is_some_and(|cpu| wanted.contains(cpu)));
        }
        Ok(hosts)
    }

    /// Ends a vhost socket: its rings are drained first. It is known until it is quiet, which may be after this returns with an error.
    pub(crate) fn delete_vhost(&self, socket: &Path) -> Result<(), String> {
        let alone = lock(&self.changing);
        let socket = self.socket_dir.join(socket);
        // It may have been made by now all the same.
        if self.forget_vhost(&socket) && !lock(&self.state).vhosts.contains_key(&socket) {
            return Ok(());
        }
        let vhost = {
            let mut state = lock(&self.state);
            let vhost = state.vhosts.remove(&socket);
            let vhost = vhost
                .ok_or_else(|| format!("no vhost socket {}; vhost_list shows those there are", socket.display()))?;
            state.late.push(Service::Vhost(socket.clone(), vhost.clone()));
            vhost
        };
        vhost.stop()?;
        self.end_quiet(&alone);
        if let Some(problem) = vhost.unwritten() {
            return Err(format!(
                "{} is served no more, but {problem}, which is tried again and again",
                socket.display()
            ));
        }
        tracing::info!(socket = %socket.display(), "vhost socket deleted");
        Ok(())
    }
}

/// Why something cannot be served because of what has not ended.
fn refused_for(late: &Service) -> String {
    let why = late.unwritten().unwrap_or_else(|| {
        "it has requests in flight from there, which may land on top of new ones; try again when its paths have answered".into()
    });
    format!("disk \"{}\" was served on {}: {why}", late.disk(), late.at())
}

/// What the server must know of those who served the disk before.
fn take_over(server: &mut ServerConfig, mark: &Arc<SocketMark>) {
    server.unclean = mark.unclean();
    server.orphans = mark.orphans();
    server.hold_changes = mark.hold();
    server.owed = mark.owed();
    server.write_through = mark.write_through();
    let mark = mark.clone();
    server.keep_write_through = Some(Arc::new(move |write_through| mark.set_write_through(write_through)));
}
