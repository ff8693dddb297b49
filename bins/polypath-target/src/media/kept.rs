//! What of reservations outlives a loss of power, and where: with memory as long as that itself, with a disk beneath in a file.

use super::reservations::{Hold, MOST, Party, Picture};
use polypath_block::ReservationType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Octets of a file, at most: all registrations that there may be have room in it.
const LONGEST: u64 = 1 << 20;
/// How such a file is written.
const VERSION: u32 = 1;

/// Where reservations outlive a loss of power.
#[derive(Debug, Default)]
pub(crate) enum Keep {
    /// Nowhere: a host that demands it is refused.
    #[default]
    Nowhere,
    /// Where the data of the disk are: memory, which lives no longer than the target.
    WithData,
    File(KeepFile),
}

/// The file of one disk. It holds what would be in force after a loss of power, and is replaced as a whole.
#[derive(Debug)]
pub(crate) struct KeepFile {
    path: PathBuf,
    /// Whose reservations they are.
    disk: String,
    /// It was not written, or nobody knows.
    failed: AtomicBool,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    disk: String,
    persists: bool,
    registered: Vec<Registration>,
    held: Option<Held>,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Registration {
    initiator: String,
    port: u16,
    key: u64,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Held {
    kind: String,
    initiator: String,
    port: u16,
}

impl KeepFile {
    /// The file at `path` for the disk that is called `disk` there, and what is in force by it. It is made where there is none.
    ///
    /// # Errors
    /// For people: it cannot be read or written, is of another disk, or says something that cannot be.
    pub(crate) fn open(path: &Path, disk: String) -> Result<(KeepFile, Picture), String> {
        let keep = KeepFile { path: path.into(), disk, failed: AtomicBool::new(false) };
        let fail = |e: &dyn std::fmt::Display| format!("reservations in {}: {e}", path.display());
        let picture = match keep.read() {
            Ok(kept) => kept.picture(&keep.disk).map_err(|e| fail(&e))?,
            Err(e) if e.kind() == ErrorKind::NotFound => Picture::default(),
            Err(e) => return Err(fail(&e)),
        };
        // A place where nothing can be written is found now, and not by the first host.
        keep.write(&keep.of(&picture)).map_err(|e| fail(&e))?;
        Ok((keep, picture))
    }

    /// `before` is what is kept; `after` is when this returns.
    ///
    /// # Errors
    /// It is not, or nobody knows.
    pub(super) fn follow(&self, before: &Picture, after: &Picture) -> std::io::Result<()> {
        let kept = self.of(after);
        if kept == self.of(before) && !self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let result = self.write(&kept);
        let failed = self.failed.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            // Said once, and not as often as hosts try.
            Err(error) if !failed => tracing::error!(path = %self.path.display(), %error, "reservations are not kept"),
            Ok(()) if failed => tracing::info!(path = %self.path.display(), "reservations are kept again"),
            _ => {}
        }
        result
    }

    fn of(&self, picture: &Picture) -> Kept {
        let (version, disk) = (VERSION, self.disk.clone());
        if !picture.persists {
            return Kept { version, disk, persists: false, registered: Vec::new(), held: None };
        }
        let one = |(party, key): &(Party, u64)| Registration {
            initiator: party.initiator.clone(),
            port: party.port,
            key: *key,
        };
        let held = picture.held.as_ref().map(|(hold, holder)| Held {
            kind: ReservationType::from(*hold).to_string(),
            initiator: holder.initiator.clone(),
            port: holder.port,
        });
        Kept { version, disk, persists: true, registered: picture.registered.iter().map(one).collect(), held }
    }

    fn read(&self) -> std::io::Result<Kept> {
        // Whatever it is, opening it does not wait.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(nonblock).open(&self.path)?;
        let wrong = |what: &str| Error::new(ErrorKind::InvalidData, what.to_owned());
        if !file.metadata()?.is_file() {
            return Err(wrong("it is no regular file"));
        }
        let mut text = Vec::new();
        if file.take(LONGEST + 1).read_to_end(&mut text)? as u64 > LONGEST {
            return Err(wrong("it is longer than 1 MiB"));
        }
        serde_json::from_slice(&text).map_err(|e| wrong(&e.to_string()))
    }

    /// Writes another file in its place; both it and its name have to last.
    fn write(&self, kept: &Kept) -> std::io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let text = serde_json::to_vec_pretty(kept)?;
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Kept {
    fn picture(self, disk: &str) -> Result<Picture, String> {
        if self.version != VERSION {
            return Err(format!("they are written in version {}, and not {VERSION}", self.version));
        }
        if self.disk != disk {
            return Err(format!("they are of disk {}, and not of {disk}", self.disk));
        }
        if self.registered.len() > MOST {
            return Err(format!("there are {} registrations, and not {MOST} at most", self.registered.len()));
        }
        let mut seen = BTreeSet::new();
        let mut registered = Vec::new();
        for Registration { initiator, port, key } in self.registered {
            if key == 0 || !seen.insert((initiator.clone(), port)) {
                return Err(format!("{initiator} is registered twice, or with no key"));
            }
            registered.push((Party { initiator, port }, key));
        }
        let held = match self.held {
            None => None,
            Some(Held { kind, initiator, port }) => {
                let kind: ReservationType = kind.parse().map_err(|e| format!("{e}"))?;
                let (hold, holder) = (Hold::from(kind), Party { initiator, port });
                let all = matches!(hold, Hold::All { .. }) && !registered.is_empty();
                if !all && !registered.iter().any(|(party, _)| *party == holder) {
                    return Err(format!("{} holds what it is not registered for", holder.initiator));
                }
                Some((hold, holder))
            }
        };
        Ok(Picture { generation: 0, registered, held, persists: self.persists })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Refusal, Reservations};

    fn open(path: &Path, disk: &str) -> Result<Reservations, String> {
        KeepFile::open(path, disk.into()).map(|(file, picture)| Reservations::new(Keep::File(file), picture))
    }

    #[test]
    fn what_is_to_persist_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let party = |name: &str, port| Party { initiator: name.into(), port };
        let (a, b) = (party("iqn.a,i,0x\"\n", 1), party("uuid.b", Party::EVERY_PORT));
        let all = open(&path, "d").unwrap();
        all.register(&a, Some(0), u64::MAX).unwrap();
        assert!(open(&path, "d").unwrap().picture().registered.is_empty(), "nobody wants it to persist");
        all.register_and(&b, Some(0), 2, Some(true)).unwrap();
        all.reserve(&b, 2, Hold::Registrants { access: true }).unwrap();
        let shown = |r: &Reservations| (r.picture().registered, r.picture().held, r.picture().persists);
        let want =
            (vec![(a.clone(), u64::MAX), (b.clone(), 2)], Some((Hold::Registrants { access: true }, b.clone())), true);
        let again = open(&path, "d").unwrap();
        assert_eq!(shown(&again), want);
        assert!(!again.allows(&party("c", 1), false) && again.allows(&a, true), "it is in force");
        all.forget();
        assert_eq!((shown(&all), all.picture().generation), (want, 0), "the power failed");
        // Whoever says so last has it his way.
        all.register_and(&a, None, 5, Some(false)).unwrap();
        assert!(!all.picture().persists && open(&path, "d").unwrap().picture().registered.is_empty());
        all.forget();
        assert!(all.picture().registered.is_empty() && all.picture().held.is_none());
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("there");
        std::fs::create_dir(&place).unwrap();
        let path = place.join("r");
        let (a, b) = (Party { initiator: "a".into(), port: 1 }, Party { initiator: "b".into(), port: 1 });
        let all = open(&path, "d").unwrap();
        all.register_and(&a, Some(0), 1, Some(true)).unwrap();
        std::fs::rename(&place, folder.path().join("away")).unwrap();
        assert_eq!(all.register(&b, Some(0), 2), Err(Refusal::NotKept));
        assert_eq!(all.picture().registered, [(a.clone(), 1)], "as if it had not been asked for");
        std::fs::rename(folder.path().join("away"), &place).unwrap();
        all.register(&b, Some(0), 2).unwrap();
        assert_eq!(open(&path, "d").unwrap().picture().registered, [(a.clone(), 1), (b, 2)]);
        let nowhere = Reservations::default();
        assert_eq!(nowhere.register_and(&a, Some(0), 1, Some(true)), Err(Refusal::CannotPersist));
        assert_eq!(nowhere.persist(true), Err(Refusal::CannotPersist));
        assert!(!nowhere.can_persist() && nowhere.picture().registered.is_empty());
    }

    #[test]
    fn what_somebody_else_has_written_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let kept = |rest: &str| format!("{{\"version\":1,\"disk\":\"d\",\"persists\":true,{rest}}}");
        let one = r#"{"initiator":"a","port":1,"key":1}"#;
        for (text, why) in [
            (kept("\"registered\":[],\"held\":null").replace("\"d\"", "\"e\""), "they are of disk e"),
            (kept("\"registered\":[],\"held\":null").replace(":1,", ":2,"), "version 2"),
            (kept(&format!("\"registered\":[{one},{one}],\"held\":null")), "twice"),
            (kept(&format!("\"registered\":[{}],\"held\":null", one.replace(":1}", ":0}"))), "no key"),
            (
                kept(&format!("\"registered\":[{one}],\"held\":{{\"kind\":\"none\",\"initiator\":\"a\",\"port\":1}}")),
                "type",
            ),
            (
                kept(&format!(
                    "\"registered\":[{one}],\"held\":{{\"kind\":\"write-exclusive\",\"initiator\":\"b\",\"port\":1}}"
                )),
                "holds",
            ),
            ("{".into(), "EOF"),
            (" ".repeat(LONGEST as usize + 1), "longer"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = open(&path, "d").expect_err(why);
            assert!(error.contains(why) && error.contains("reservations in"), "{error}: {why}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is left as it is");
        }
        assert!(open(folder.path(), "d").expect_err("a folder").contains("no regular file"));
        assert!(open(&folder.path().join("no/r"), "d").is_err());
    }
}
