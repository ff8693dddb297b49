//! Secrets in files: small regular ones, whose reader never waits.

use crate::chap::Secret;
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use zeroize::Zeroizing;

/// Longest file with a secret in bytes.
const MOST: usize = 64 << 10;
/// As many files are warned of once; others again and again.
const KNOWN_MOST: usize = 64;

/// Files that were warned of.
static KNOWN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The secret in the file at `path`: its octets, without line ends behind them. It may be empty, which is for the caller to refuse. Warns in
/// the log when group or others may do something with the file.
///
/// # Errors
/// It cannot be opened or read, is no regular file (a FIFO or a device is not waited for), or has more than 64 KiB. The text does not name the
/// file.
pub fn read_secret(path: &Path) -> std::io::Result<Secret> {
    // A FIFO that nobody writes to is open at once.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Error::other("it is no regular file"));
    }
    // Room for all of it: pieces that were moved would stay behind.
    let mut octets = Zeroizing::new(Vec::with_capacity(MOST + 1));
    file.take(MOST as u64 + 1).read_to_end(&mut octets)?;
    if octets.len() > MOST {
        return Err(Error::other("it has more than 64 KiB; expected a file with nothing but a secret"));
    }
    if is_open_to_others(metadata.mode()) && is_news(path) {
        let (path, mode) = (path.display(), format!("{:03o}", metadata.mode() & 0o777));
        tracing::warn!(%path, mode, "a file with a secret that is not for its owner alone; expected mode 600 or 400");
    }
    let end = octets.iter().rposition(|octet| !b"\r\n".contains(octet)).map_or(0, |at| at + 1);
    Ok(Secret::new(&octets[..end]))
}

fn is_open_to_others(mode: u32) -> bool {
    mode & 0o077 != 0
}

fn is_news(path: &Path) -> bool {
    let mut known = KNOWN.lock().unwrap_or_else(|p| p.into_inner());
    known.len() >= KNOWN_MOST || known.insert(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_secret_is_a_small_regular_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, octets: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, octets).unwrap();
            path
        };
        let most = vec![b'a'; MOST];
        for (octets, secret) in
            [(&b"s\0\xff x\r\n\n"[..], &b"s\0\xff x"[..]), (b"\n", b""), (b"", b""), (b"a\nb", b"a\nb"), (&most, &most)]
        {
            assert!(read_secret(&file("good", octets)).unwrap() == Secret::new(secret), "{} octets", octets.len());
        }
        let fifo = folder.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for (path, says) in [
            (fifo, "no regular file"),
            ("/dev/zero".into(), "no regular file"),
            (folder.path().to_owned(), "no regular file"),
            (file("large", &[&most[..], b"\n"].concat()), "more than 64 KiB"),
            (folder.path().join("none"), "No such file"),
        ] {
            let (tell, told) = mpsc::channel();
            let it = path.clone();
            std::thread::spawn(move || tell.send(read_secret(&it).map_err(|e| e.to_string())));
            let read = told.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("{path:?} is waited for"));
            assert!(read.is_err_and(|e| e.contains(says)), "{path:?}");
        }
    }

    #[test]
    fn who_else_may_read_it_is_told_once() {
        for (mode, told) in [(0o100600, false), (0o100400, false), (0o100640, true), (0o100604, true), (0o100620, true)]
        {
            assert_eq!(is_open_to_others(mode), told, "{mode:o}");
        }
        assert!(
            is_news(Path::new("/nowhere/a")) && !is_news(Path::new("/nowhere/a")) && is_news(Path::new("/nowhere/b"))
        );
    }
}
