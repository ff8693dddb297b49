//! Whether a configuration can be started on this machine, without starting any of it: `--check` and a start ask the same questions, so
//! that the one refuses what the other refuses. Who listens where, and who has locked what, is asked only by a start.

use crate::config::{Config, SOCKET_DIR, VhostConfig};
use crate::nbd::Place;
use crate::state::{self, file_name};
use crate::values::socket_path;
use polypath::block::{Endpoint, Scheme};
use polypath::reactor::CpuList;
use polypath::vhost_user_blk::SocketAccess;
use rustix::fs::{Access, access};
use rustix::process::{getegid, geteuid, getgroups};
use rustix::thread::{CapabilitySet, sched_getaffinity};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Mode of a folder in which files are removed by their owners only: `S_ISVTX`.
const STICKY: u32 = 0o1000;

/// What would keep the daemon from starting.
pub(crate) fn check(config: &Config) -> Result<(), String> {
    if let Some(cpus) = &config.cpus {
        may_run_on(cpus)?;
    }
    // The current folder is where a service happens to be started: that one is asked for as the folder of the sockets that go there.
    if config.socket_dir != Path::new(SOCKET_DIR) {
        can_have(&config.socket_dir).map_err(|e| {
            format!("directory of vhost sockets (-S, daemon.socket_dir) {}: {e}", config.socket_dir.display())
        })?;
    }
    let rpc = format!("RPC socket (-r, daemon.rpc_socket) {}", config.rpc_socket.display());
    socket_can_be(&config.rpc_socket).map_err(|e| format!("{rpc}: {e}"))?;
    let mut taken = vec![(place(&config.rpc_socket), rpc)];
    for vhost in &config.vhosts {
        let socket = config.socket_of(vhost);
        let of = format!("vhost socket {}", socket.display());
        within(vhost, config.cpus.as_ref()).map_err(|e| format!("{of}: {e}"))?;
        socket_can_be(&socket).map_err(|e| format!("{of}: {e}"))?;
        may_give(vhost.access).map_err(|e| format!("{of}: {e}"))?;
        let place = place(&socket);
        if let Some((_, other)) = taken.iter().find(|(path, _)| *path == place) {
            return Err(format!("{of}: it is the same file as {other}; expected a socket of its own"));
        }
        taken.push((place, of));
    }
    for nbd in &config.nbds {
        let Place::Socket(socket) = config.place_of(nbd) else { continue };
        let of = format!("NBD socket {}", socket.display());
        socket_can_be(&socket).map_err(|e| format!("{of}: {e}"))?;
        may_give(nbd.access).map_err(|e| format!("{of}: {e}"))?;
        // Several exports may be at one socket.
        let place = place(&socket);
        if let Some((_, other)) = taken.iter().find(|(path, other)| *path == place && *other != of) {
            return Err(format!("{of}: it is the same file as {other}; expected a socket of its own"));
        }
        taken.push((place, of));
    }
    files_are_apart(config)?;
    marks_can_be(config)
}

/// What is kept of disks that are served.
fn marks_can_be(config: &Config) -> Result<(), String> {
    let Some(dir) = &config.state_dir else {
        return match config.vhosts.is_empty() && config.nbds.is_empty() {
            true => Ok(()),
            false => Err("there is no folder to write down which disks are served: neither STATE_DIRECTORY nor HOME is set; name one \
                          with --state-dir or daemon.state_dir"
                .into()),
        };
    };
    let bad = |problem: String| format!("state folder (--state-dir, daemon.state_dir) {}: {problem}", dir.display());
    let served = config.vhosts.iter().map(|vhost| &vhost.disk).chain(config.nbds.iter().map(|nbd| &nbd.disk));
    let names: Vec<_> = served.map(|name| file_name(config.disk_of(name))).collect();
    can_have(dir).map_err(bad)?;
    state::file::can_keep(dir, &names).map_err(|e| bad(e.to_string()))
}

/// No file is written through two paths: it would be locked by the first one.
fn files_are_apart(config: &Config) -> Result<(), String> {
    let mut used: Vec<((bool, u64, u64), bool, String)> = Vec::new();
    for (disk, path) in config.disks.iter().flat_map(|disk| disk.paths.iter().map(move |path| (disk, path))) {
        let (Scheme::File, Endpoint::Path { path: file, .. }) = (path.uri.scheme, &path.uri.endpoint) else { continue };
        let option = |key, default| path.uri.option_bool(key, default).map_err(|e| e.to_string());
        if !option("lock", true)? {
            continue;
        }
        let meta = std::fs::metadata(file).map_err(|e| format!("{}: {e}", path.uri))?;
        // A block device may have many nodes.
        let is_device = meta.file_type().is_block_device();
        let file = if is_device { (true, meta.rdev(), 0) } else { (false, meta.dev(), meta.ino()) };
        let writes = !option("readonly", false)?;
        let of = format!("path {} of disk \"{}\"", path.label(), disk.name);
        if let Some((.., other)) = used.iter().find(|(used, written, _)| *used == file && (*written || writes)) {
            return Err(format!(
                "{of}: {other} is the same file, and whoever writes a file is alone with it; expected it once, readonly=on with both, or \
                 lock=off if you know that they do not harm each other"
            ));
        }
        used.push((file, writes, of));
    }
    Ok(())
}

fn has(capability: CapabilitySet) -> Result<bool, String> {
    let all = rustix::thread::capabilities(None);
    let all = all.map_err(|e| format!("what this process may do cannot be asked for: {e}"))?;
    Ok(all.effective.contains(capability))
}

/// May this process give a socket to who is to own it?
fn may_give(access: SocketAccess) -> Result<(), String> {
    if has(CapabilitySet::CHOWN)? {
        return Ok(());
    }
    if let Some(owner) = access.owner.filter(|owner| *owner != geteuid().as_raw()) {
        return Err(format!(
            "owner: only root may give a socket to another user ({owner}); expected none, or the daemon's own"
        ));
    }
    let groups = getgroups().map_err(|e| format!("the groups of this process cannot be asked for: {e}"))?;
    let is_member = |group: u32| group == getegid().as_raw() || groups.iter().any(|g| g.as_raw() == group);
    match access.group.filter(|group| !is_member(*group)) {
        None => Ok(()),
        Some(group) => Err(format!(
            "group: only root may give a socket to a group that it is no member of ({group}); expected none, or one of the daemon's own"
        )),
    }
}

/// One name for each file, however it was named, as far as its folder is there.
fn place(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (whole.parent().map(std::fs::canonicalize), whole.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => whole,
    }
}

/// The cores of `vhost` are among those of the daemon.
pub(crate) fn within(vhost: &VhostConfig, daemon: Option<&CpuList>) -> Result<(), String> {
    let Some(wanted) = &vhost.cpus else { return Ok(()) };
    let Some(have) = daemon else {
        return Err(
            "cpus: the daemon's reactor is bound to no core; give the daemon cores with -m or daemon.cpus".into()
        );
    };
    match wanted.0.iter().find(|cpu| !have.0.contains(cpu)) {
        None => Ok(()),
        Some(cpu) => Err(format!("cpus: the daemon has no reactor on core {cpu}; expected some of {have}")),
    }
}

fn may_run_on(cpus: &CpuList) -> Result<(), String> {
    let may =
        sched_getaffinity(None).map_err(|e| format!("the cores that this process may use cannot be asked for: {e}"))?;
    let all = CpuList((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| may.is_set(cpu)).collect());
    match cpus.0.iter().find(|cpu| !all.0.contains(cpu)) {
        None => Ok(()),
        Some(cpu) => Err(format!(
            "core {cpu} (-m, daemon.cpus) is not there, or this process may not use it; expected some of {all}"
        )),
    }
}

fn socket_can_be(path: &Path) -> Result<(), String> {
    socket_path(path).map_err(|e| format!("its path {e}"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            Err("something that is no socket is there; remove it or choose another path".into())
        }
        Ok(socket) => {
            may_make_in(folder)?;
            can_be_replaced(path, &socket, folder)
        }
        Err(_) if folder.is_dir() => may_make_in(folder),
        Err(_) => can_have(folder),
    }
    .map_err(|e| format!("{e} (-S, daemon.socket_dir, -r and daemon.rpc_socket choose another folder)"))
}

/// May this process make sockets in `folder`? It is locked meanwhile, for which it is opened.
fn may_make_in(folder: &Path) -> Result<(), String> {
    access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|e| format!("no socket can be made in {}: {e}", folder.display()))
}

/// May this process ask whether somebody listens on `socket`, and remove it if not?
fn can_be_replaced(path: &Path, socket: &Metadata, folder: &Path) -> Result<(), String> {
    let (owner, own) = (socket.uid(), geteuid().as_raw());
    let left = |e: String| format!("a socket of user {owner} is there, and {e}; remove it or choose another path");
    access(path, Access::WRITE_OK).map_err(|e| left(format!("whether somebody has it cannot be asked ({e})")))?;
    let of_folder = std::fs::metadata(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let of_owners = of_folder.mode() & STICKY != 0 && ![owner, of_folder.uid()].contains(&own);
    match of_owners && !has(CapabilitySet::FOWNER)? {
        false => Ok(()),
        true => Err(left(format!("only its owner or root may remove it from {}", folder.display()))),
    }
}

/// Is `folder` one that we may write to, or could we make it?
fn can_have(folder: &Path) -> Result<(), String> {
    // What is not there is made, from the last one that is.
    let there = folder.ancestors().find(|f| f.as_os_str().is_empty() || f.symlink_metadata().is_ok());
    let there = there.filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !there.is_dir() {
        return Err(format!("{} is no directory", there.display()));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|e| format!("nothing can be made in {}: {e}", there.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, NbdConfig, PathConfig};

    fn config(edit: impl FnOnce(&mut Config)) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config {
            socket_dir: folder.path().into(),
            rpc_socket: folder.path().join("rpc/new/rpc.sock"),
            state_dir: Some(folder.path().join("state")),
            ..Config::default()
        };
        config.vhosts.push(VhostConfig {
            disk: "vm1".into(),
            socket: folder.path().join("vm1.sock"),
            queues: 1,
            queue_size: 256,
            read_only: false,
            serial: None,
            access: Default::default(),
            cpus: None,
        });
        edit(&mut config);
        let outcome = check(&config);
        let made = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(made, usize::from(folder.path().join("file").exists()), "nothing is made by asking");
        outcome
    }

    fn disk(file: &Path, options: &str) -> DiskConfig {
        let uri = format!("file://{}{options}", file.display()).parse().unwrap();
        DiskConfig {
            name: "vm1".into(),
            selector: Default::default(),
            no_path_timeout_ms: 0,
            fencing: Default::default(),
            matching: Default::default(),
            paths: vec![PathConfig { uri, name: None, weight: 100, preferred: false }],
        }
    }

    #[test]
    fn what_is_not_there_yet_and_what_is_shared_rightly_is_taken() {
        assert_eq!(config(|c| c.socket_dir = c.socket_dir.join("made/by/a/start")), Ok(()));
        let both = |c: &mut Config, options: [&str; 2]| {
            let file = c.socket_dir.join("file");
            std::fs::write(&file, "").unwrap();
            c.disks = options.map(|options| disk(&file, options)).into();
        };
        assert_eq!(config(|c| both(c, ["?readonly=on", "?readonly=on&bs=4096"])), Ok(()));
        assert_eq!(config(|c| both(c, ["", "?lock=off"])), Ok(()));
        assert!(config(|c| both(c, ["", "?readonly=on"])).is_err());
    }

    #[test]
    fn what_a_start_would_refuse_is_refused() {
        assert_eq!(config(|_| ()), Ok(()));
        type Case<'a> = (&'a dyn Fn(&mut Config), &'a [&'a str]);
        let nbd = |c: &mut Config, socket: &Path| {
            c.nbds.push(NbdConfig {
                disk: "vm2".into(),
                name: String::new(),
                place: Place::Socket(socket.into()),
                read_only: false,
                access: Default::default(),
            });
        };
        assert_eq!(config(|c| [1, 2].iter().for_each(|_| nbd(c, Path::new("nbd.sock")))), Ok(()), "one place for both");
        let wrong: [Case<'_>; 17] = [
            (&|c| nbd(c, Path::new("./vm1.sock")), &["NBD socket", "vm1.sock", "same file", "vhost socket"]),
            (&|c| nbd(c, Path::new("/dev/null/nbd.sock")), &["NBD socket", "no directory"]),
            (
                &|c| {
                    c.vhosts.clear();
                    c.state_dir = None;
                    nbd(c, Path::new("nbd.sock"));
                },
                &["--state-dir"],
            ),
            (&|c| c.rpc_socket = "".into(), &["-r", "empty"]),
            (&|c| c.rpc_socket = c.socket_dir.join("./vm1.sock"), &["vm1.sock", "same file", "RPC socket"]),
            (&|c| c.vhosts.push(c.vhosts[0].clone()), &["vm1.sock", "same file"]),
            (
                &|c| {
                    // Removed by its folder.
                    std::fs::create_dir_all(c.socket_dir.join("file/vm1.json")).unwrap();
                    c.state_dir = Some(c.socket_dir.join("file"));
                },
                &["state folder", "vm1.json", "no regular file"],
            ),
            (
                &|c| {
                    std::fs::write(c.socket_dir.join("file"), "").unwrap();
                    let file = c.socket_dir.join("file");
                    c.disks = ["", "?bs=4096"].map(|options| disk(&file, options)).into();
                },
                &["bs=4096", "same file", "readonly=on"],
            ),
            (&|c| c.cpus = Some(CpuList(vec![0, 4096])), &["4096", "expected some of 0"]),
            (&|c| c.socket_dir = "/dev/null/folder".into(), &["-S", "/dev/null/folder"]),
            (&|c| c.vhosts[0].cpus = Some(CpuList(vec![0])), &["vm1.sock", "-m"]),
            (
                &|c| {
                    c.cpus = Some(CpuList(vec![0]));
                    c.vhosts[0].cpus = Some(CpuList(vec![1]));
                },
                &["vm1.sock", "core 1", "some of 0"],
            ),
            (&|c| c.vhosts[0].socket = format!("/tmp/{}", "x".repeat(103)).into(), &["108 bytes", "107"]),
            (&|c| c.rpc_socket = "/dev/null/polypath/rpc.sock".into(), &["RPC socket", "no directory"]),
            (&|c| c.state_dir = None, &["--state-dir"]),
            (&|c| c.state_dir = Some("/proc/self/status/x".into()), &["state folder", "no directory"]),
            (
                &|c| {
                    std::fs::write(c.socket_dir.join("file"), "").unwrap();
                    c.vhosts[0].socket = c.socket_dir.join("file");
                },
                &["no socket"],
            ),
        ];
        for (n, (edit, words)) in wrong.into_iter().enumerate() {
            let error = config(edit).expect_err(&format!("case {n}"));
            assert!(words.iter().all(|word| error.contains(word)), "case {n}: {error}");
        }
        assert_eq!(config(|c| (c.state_dir, c.vhosts) = (None, Vec::new())), Ok(()), "nothing is served");
    }
}
