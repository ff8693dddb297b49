//! Files of the state folder. Nothing there is trusted to be what its name says: somebody may have left a pipe, a link or a folder.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, fsync, open, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Longest mark that is read: what is longer is none.
const MARK_MOST: u64 = 1 << 20;

/// Opens the folder. Only we may write there, and root.
pub(super) fn open_folder(path: &Path) -> Result<OwnedFd> {
    let folder = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&folder)?;
    let (owner, own) = (stat.st_uid, rustix::process::geteuid().as_raw());
    if owner != own && owner != 0 {
        return Err(Error::other(format!(
            "it belongs to user {owner}; expected {own}, as whom this daemon runs, or root"
        )));
    }
    let mode = stat.st_mode & 0o777;
    if mode & 0o022 != 0 {
        return Err(Error::other(format!(
            "others may write to it (its mode is {mode:o}), and could have disks served without a wait; chmod go-w"
        )));
    }
    Ok(folder)
}

/// Whether marks of `names` can be kept in the folder `path`, as far as that can be told without making any of it.
pub(crate) fn can_keep(path: &Path, names: &[String]) -> Result<()> {
    let folder = match open_folder(path) {
        Ok(folder) => Arc::new(folder),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    names.iter().try_for_each(|name| MarkFile::new(folder.clone(), name.clone()).look())
}

/// A lock file and a mark beside it, by their names in the folder.
#[derive(Clone, Debug)]
pub(super) struct MarkFile {
    folder: Arc<OwnedFd>,
    name: String,
}

impl MarkFile {
    pub(super) fn new(folder: Arc<OwnedFd>, name: String) -> MarkFile {
        MarkFile { folder, name }
    }

    /// The lock file, which is made if it is not there.
    pub(super) fn open_lock(&self) -> Result<OwnedFd> {
        Ok(OwnedFd::from(self.open("lock", OFlags::RDWR | OFlags::CREATE)?))
    }

    /// What the mark says; `None` if there is none.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>> {
        let file = match self.open("json", OFlags::RDONLY) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MARK_MOST).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// The marks of other disks.
    pub(super) fn others(&self) -> Result<Vec<MarkFile>> {
        let mut others = Vec::new();
        for entry in Dir::read_from(&*self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_str().ok().and_then(|name| name.strip_suffix(".json"));
            if let Some(name) = name.filter(|name| *name != self.name) {
                others.push(MarkFile::new(self.folder.clone(), name.to_owned()));
            }
        }
        Ok(others)
    }

    /// All of it or nothing, whatever happens; on the medium when this returns.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 >= MARK_MOST {
            return Err(Error::other(format!(
                "it would be {} bytes long, and nobody reads one of {MARK_MOST}; serve the disk on fewer sockets, or delete the disk",
                bytes.len()
            )));
        }
        let (new, mark) = (self.name("new"), self.name("json"));
        // One that a daemon has left which was killed.
        match unlinkat(&*self.folder, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(named(&new, error.into())),
        }
        let mut file = self.open("new", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        file.write_all(bytes).map_err(|e| named(&new, e))?;
        sync(&file).map_err(|e| named(&new, e))?;
        renameat(&*self.folder, &new, &*self.folder, &mark).map_err(|e| named(&mark, e.into()))?;
        sync(&*self.folder)
    }

    /// What would fail of the above because of what is there.
    fn look(&self) -> Result<()> {
        match self.open("lock", OFlags::RDWR) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.read()?;
        let new = self.name("new");
        match statat(&*self.folder, &new, AtFlags::SYMLINK_NOFOLLOW) {
            // Anything else is removed.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Err(odd(&new)),
            _ => Ok(()),
        }
    }

    fn name(&self, extension: &str) -> String {
        format!("{}.{extension}", self.name)
    }

    /// A regular file, and nothing that it leads to. Never waits for somebody at the other end.
    fn open(&self, extension: &str, flags: OFlags) -> Result<File> {
        let name = self.name(extension);
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&*self.folder, &name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) => {
                return Err(Error::other(format!("{name} is a symbolic link; expected a regular file")));
            }
            Err(Errno::NXIO | Errno::ISDIR) => return Err(odd(&name)),
            Err(error) => return Err(named(&name, error.into())),
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile { Ok(file) } else { Err(odd(&name)) }
    }
}

fn odd(name: &str) -> Error {
    Error::other(format!("{name} is no regular file; remove it"))
}

fn named(name: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("{name}: {error}"))
}

fn sync(file: impl std::os::fd::AsFd) -> Result<()> {
    #[cfg(test)]
    tests::SYNCED.with(|n| n.set(n.get() + 1));
    Ok(fsync(file)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::Cell;
    use std::os::unix::fs::{PermissionsExt, symlink};

    thread_local! {
        /// How often this thread has waited for the medium.
        pub(crate) static SYNCED: Cell<u32> = const { Cell::new(0) };
    }

    fn folder(at: &Path) -> MarkFile {
        MarkFile::new(Arc::new(open_folder(at).unwrap()), "d".into())
    }

    #[test]
    fn a_mark_is_on_the_medium_when_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = folder(dir.path());
        std::fs::write(dir.path().join("d.new"), "left by one that was killed").unwrap();
        for text in [&b"first"[..], b"second"] {
            let before = SYNCED.get();
            file.write(text).unwrap();
            assert_eq!(SYNCED.get(), before + 2, "the file and the folder");
            assert_eq!(file.read().unwrap().as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_name_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, precious) = (folder(dir.path()), dir.path().join("precious"));
        std::fs::write(&precious, "precious").unwrap();
        for name in ["d.lock", "d.json"] {
            let at = dir.path().join(name);
            let open = || if name == "d.lock" { file.open_lock().map(drop) } else { file.read().map(drop) };
            symlink(&precious, &at).unwrap();
            let error = open().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("link"), "{error}");
            std::fs::remove_file(&at).unwrap();
            std::fs::create_dir(&at).unwrap();
            let error = open().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("regular"), "{error}");
            std::fs::remove_dir(&at).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, &at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            let error = open().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("regular"), "{error}");
            std::fs::remove_file(&at).unwrap();
        }
        symlink(&precious, dir.path().join("d.new")).unwrap();
        file.write(b"mark").unwrap();
        assert_eq!(std::fs::read_to_string(precious).unwrap(), "precious");
        std::fs::create_dir(dir.path().join("d.new")).unwrap();
        assert!(file.write(b"mark").unwrap_err().to_string().contains("d.new"));
    }

    #[test]
    fn looking_finds_what_would_be_in_the_way_and_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let look = || can_keep(dir.path(), &["d".into()]).map_err(|e| e.to_string());
        assert!(can_keep(&dir.path().join("none"), &["d".into()]).is_ok());
        assert_eq!(look(), Ok(()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for name in ["d.lock", "d.json", "d.new"] {
            let at = dir.path().join(name);
            std::fs::create_dir(&at).unwrap();
            assert!(look().unwrap_err().contains(name), "{name}");
            std::fs::remove_dir(&at).unwrap();
            std::fs::write(&at, "").unwrap();
        }
        assert_eq!(look(), Ok(()));
    }

    #[test]
    fn a_folder_is_one_and_neither_it_nor_a_lock_is_handed_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(open_folder(&dir.path().join("file")).unwrap_err().kind(), ErrorKind::NotADirectory);
        let own = |fd: &OwnedFd| rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC);
        assert!(own(&open_folder(dir.path()).unwrap()) && own(&folder(dir.path()).open_lock().unwrap()));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, fine) in [(0o700, true), (0o755, true), (0o775, false), (0o777, false), (0o1777, false)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(open_folder(dir.path()).is_ok(), fine, "{mode:o}");
        }
    }
}
