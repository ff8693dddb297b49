//! A listening UNIX socket in the file system: whose it is, who may reach it, and when an old one may be replaced.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, FlockOperation, Gid, Mode, OFlags, Uid, chmod, chown, flock, lstat, open, unlink};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// `__SO_ACCEPTCON`, as the system lists it.
const LISTENS: &[u8] = b"00010000";
/// How long another process may make a socket in the same folder, which takes a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(5);

/// Who may reach a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketAccess {
    /// Permission bits, up to 0o777.
    pub mode: u32,
    /// User that owns it; ours when `None`.
    pub owner: Option<u32>,
    /// Its group; ours when `None`.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    /// Ourselves alone: mode 0600.
    fn default() -> Self {
        SocketAccess { mode: 0o600, owner: None, group: None }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum UnixSocketError {
    /// The socket is in use, something else is in its place, or nobody can tell.
    #[error("socket {}: {problem}", path.display())]
    Occupied {
        /// The socket's path.
        path: PathBuf,
        /// What is there and what to do.
        problem: String,
    },
    /// The operating system said no.
    #[error("{call} for socket {} failed: {source}{hint}", path.display())]
    System {
        /// System call.
        call: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// Its error.
        source: std::io::Error,
        /// What to do, if known; empty or beginning with a space.
        hint: &'static str,
    },
}

/// A socket that listens, non-blocking. Its file stays until [`UnixSocket::remove`].
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: the file may be somebody else's by the time it is to be removed.
    file: (u64, u64),
    replaced: bool,
}

impl UnixSocket {
    /// Listens at `path`; nobody can connect before the file has its permissions. A socket there that nobody has is replaced: one
    /// whose connections the kernel *refuses*, and that is none that somebody has made and does not listen on yet. Any other answer, or none
    /// that we may hear, means that somebody may be there.
    ///
    /// The folder is locked meanwhile, so that of two that find the same socket left behind only one takes its place.
    ///
    /// # Errors
    /// [`UnixSocketError`].
    pub fn listen(path: &Path, access: SocketAccess) -> Result<UnixSocket, UnixSocketError> {
        let system = |call| system(path, call);
        let address = SocketAddrUnix::new(path).map_err(system("address"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let make = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(system("socket"));
        let socket = make()?;
        let _alone = lock_folder(path)?;
        let mut replaced = false;
        match bind(&socket, &address) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => {
                clear_stale(path, &make()?, &address)?;
                bind(&socket, &address).map_err(system("bind"))?;
                replaced = true;
            }
            Err(error) => return Err(system("bind")(error)),
        }
        let file =
            admit(path, access).and_then(|file| listen(&socket, BACKLOG).map(|()| file).map_err(system("listen")));
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                // Ours, a moment old, and of no use. That it stays is the lesser trouble.
                let _ = unlink(path);
                return Err(error);
            }
        };
        Ok(UnixSocket { listener: UnixListener::from(socket), path: path.to_owned(), file, replaced })
    }

    /// Its listener alone, for whoever removes the file otherwise.
    pub fn into_listener(self) -> UnixListener {
        self.listener
    }

    /// What accepts connections.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Had somebody left a socket there, who ended without removing it?
    pub fn replaced(&self) -> bool {
        self.replaced
    }

    /// Removes the file, if it is still ours. Idempotent.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn remove(&self) -> std::io::Result<()> {
        match lstat(&self.path) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == self.file => Ok(unlink(&self.path)?),
            _ => Ok(()),
        }
    }
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Gives a new socket file its owner and permissions; says which file it is.
fn admit(path: &Path, access: SocketAccess) -> Result<(u64, u64), UnixSocketError> {
    if access.owner.is_some() || access.group.is_some() {
        let (owner, group) = (access.owner.map(Uid::from_raw), access.group.map(Gid::from_raw));
        chown(path, owner, group).map_err(|e| {
            let hint = match e {
                Errno::PERM => " (only root may give a socket to another user, or to a group that it is no member of)",
                _ => "",
            };
            UnixSocketError::System { call: "chown", path: path.to_owned(), source: e.into(), hint }
        })?;
    }
    chmod(path, Mode::from_raw_mode(access.mode)).map_err(system(path, "chmod"))?;
    let stat = lstat(path).map_err(system(path, "lstat"))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Makes whoever else wants a socket in the folder of `path` by this function wait until the lock is dropped.
fn lock_folder(path: &Path) -> Result<OwnedFd, UnixSocketError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = open(folder, flags, Mode::empty()).map_err(system(path, "opening the folder"))?;
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_LOOK),
            Err(Errno::WOULDBLOCK) => {
                let problem = "another process has its folder locked; try again, or choose another folder".to_owned();
                return Err(UnixSocketError::Occupied { path: path.to_owned(), problem });
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(system(path, "locking the folder")(error)),
        }
    }
}

/// Has somebody bound the socket `file` (device and inode), and does not listen on it? A connection to it is refused as one to a socket that
/// was left behind. The system lists them by the path that they were bound to; those of other network namespaces it does not list.
fn is_being_made(file: (u64, u64)) -> std::io::Result<bool> {
    let sockets = std::fs::read("/proc/net/unix")?;
    let mut paths = sockets.split(|&byte| byte == b'\n').filter_map(bound_path);
    Ok(paths.any(|path| lstat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == file)))
}

/// The path in a line "Num RefCount Protocol Flags Type St Inode Path" of one that is neither connected nor being connected (state 1), and
/// does not listen: one that does and is refused has listened elsewhere, before its file was removed.
fn bound_path(line: &[u8]) -> Option<&Path> {
    let (mut rest, mut state, mut flags) = (line, &b""[..], &b""[..]);
    for field in 0..7 {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|&byte| byte == b' ')?;
        match field {
            3 => flags = &rest[..end],
            5 => state = &rest[..end],
            _ => {}
        }
        rest = &rest[end..];
    }
    let path = rest.strip_prefix(b" ")?;
    (state == b"01" && flags != LISTENS && path.starts_with(b"/")).then(|| Path::new(OsStr::from_bytes(path)))
}

/// Removes a socket that nobody listens on.
fn clear_stale(path: &Path, probe: &OwnedFd, address: &SocketAddrUnix) -> Result<(), UnixSocketError> {
    let occupied = |problem: String| Err(UnixSocketError::Occupied { path: path.to_owned(), problem });
    let stat = lstat(path).map_err(system(path, "lstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return occupied("something that is no socket is there; remove it or choose another path".into());
    }
    match connect(probe, address) {
        // Where nothing is listed, what is refused is all that can be known.
        Err(Errno::CONNREFUSED) if is_being_made((stat.st_dev, stat.st_ino)).unwrap_or(false) => {
            occupied("another process has made it and does not listen yet; try again, or choose another path".into())
        }
        Err(Errno::CONNREFUSED) => unlink(path).map_err(system(path, "unlink")),
        // EAGAIN: it listens, and its line is full.
        Ok(()) | Err(Errno::AGAIN) => {
            occupied("another process serves it; stop that one or choose another path".into())
        }
        Err(error) => occupied(format!(
            "whether another process serves it cannot be told ({error}); remove it if not, or choose another path"
        )),
    }
}

fn system(path: &Path, call: &'static str) -> impl Fn(Errno) -> UnixSocketError {
    move |e| UnixSocketError::System { call, path: path.to_owned(), source: e.into(), hint: "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn at(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("polypath-unix-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join("socket")
    }

    fn listen_at(path: &Path) -> Result<UnixSocket, UnixSocketError> {
        UnixSocket::listen(path, SocketAccess::default())
    }

    #[test]
    fn only_a_socket_that_refuses_connections_is_replaced() {
        let path = at("stale");
        let first = listen_at(&path).unwrap();
        assert!(!first.replaced());
        assert!(matches!(listen_at(&path), Err(UnixSocketError::Occupied { .. })), "somebody listens");
        // Its line full (the look before stands in it, too), a connection is neither taken nor refused.
        let waiting: Vec<_> = (0..BACKLOG).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let error = listen_at(&path).unwrap_err();
        assert!(matches!(error, UnixSocketError::Occupied { .. }), "{error}");
        drop((waiting, first));
        assert!(path.exists(), "its file was left behind");
        let second = listen_at(&path).unwrap();
        assert!(second.replaced());
        second.remove().unwrap();
        // A socket of another kind lives, and its answer is not ECONNREFUSED.
        let other = UnixDatagram::bind(&path).unwrap();
        let error = listen_at(&path).unwrap_err().to_string();
        assert!(error.contains("cannot be told"), "{error}");
        drop(other);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(listen_at(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_file_that_is_not_ours_any_more_stays() {
        let path = at("file");
        let mine = listen_at(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        mine.remove().unwrap();
        assert!(path.exists());
    }

    #[test]
    fn mode_owner_and_group_are_as_asked_for() {
        let path = at("mode");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let access = SocketAccess { mode: 0o660, owner: Some(uid), group: Some(gid) };
        let socket = UnixSocket::listen(&path, access).unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, meta.uid(), meta.gid()), (0o660, uid, gid));
        socket.remove().unwrap();
        if uid == 0 {
            let given = SocketAccess { mode: 0o600, owner: Some(12_345), group: Some(54_321) };
            let _socket = UnixSocket::listen(&path, given).unwrap();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (12_345, 54_321));
        } else {
            let given = SocketAccess { owner: Some(uid + 1), ..SocketAccess::default() };
            let error = UnixSocket::listen(&path, given).unwrap_err().to_string();
            assert!(error.contains("only root"), "{error}");
            assert!(!path.exists(), "no socket stays with permissions nobody asked for");
        }
    }

    #[test]
    fn lines_of_the_list_of_sockets() {
        let path = |line: &str| bound_path(line.as_bytes()).map(|path| path.display().to_string());
        let line = "0000000024e41c45: 00000002 00000000 00000000 0001 01    61 /run/a b.sock";
        assert_eq!(path(line).as_deref(), Some("/run/a b.sock"));
        assert_eq!(path(&line.replace(" 00000000 00000000 ", " 00000000 00010000 ")), None, "one that listens");
        assert_eq!(path(&line.replace(" 01 ", " 03 ")), None, "a connection that the listener has accepted");
        assert_eq!(path(&line.replace("/run", "@run")), None);
        assert_eq!(path("Num       RefCount Protocol Flags    Type St Inode Path"), None);
        assert_eq!(path("0000000024e41c45: 00000002 00000000 00010000 0001 01    61"), None);
    }

    /// Who listened there before has removed its file, and keeps the socket a little longer: a thread closes it, or its process ends late. It is
    /// listed by the same path, and is not in the making. The socket that was left behind there since is replaced.
    #[test]
    fn one_that_listened_there_before_does_not_keep_the_place() {
        let path = at("before");
        let before = listen_at(&path).unwrap();
        before.remove().unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let now = listen_at(&path).unwrap();
        assert!(now.replaced());
        now.remove().unwrap();
    }

    /// Two that find the same socket left behind.
    #[test]
    fn only_one_takes_the_place_of_a_socket_that_was_left_behind() {
        for turn in 0..20 {
            let path = at(&format!("race-{turn}"));
            let _ = std::fs::remove_file(&path);
            drop(listen_at(&path).unwrap());
            let all: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(|| listen_at(&path))).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(all.iter().filter(|one| one.is_ok()).count(), 1, "{all:?}");
            assert!(UnixStream::connect(&path).is_ok());
        }
    }

    /// Two that begin at once: one has its file and does not listen yet. The other one must not take the place: the first would serve a
    /// socket that nobody can reach.
    #[test]
    fn a_socket_that_is_just_being_made_is_not_replaced() {
        let path = at("being-made");
        let _ = std::fs::remove_file(&path);
        let first = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&first, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let second = listen_at(&path);
        listen(&first, BACKLOG).unwrap();
        let reached = UnixStream::connect(&path).is_ok() && second.is_err();
        assert!(reached, "the first listens, and its file is gone: {second:?}");
    }
}
