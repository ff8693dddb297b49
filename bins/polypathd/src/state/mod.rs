//! What must outlive the process, disk by disk, in a folder of its own: whether the last daemon that served it ended in order, how long
//! what it had in flight may still land, which disk it is, what became of its caches, and what the guest of each socket said.
//!
//! A mark is written before a disk is served and says "clean" again only when everything was quiet at the end. The socket cannot be that
//! mark: it is removed by a stop that could not drain, replaced by the next daemon, and lost with a runtime folder that is swept. A boot
//! between the two takes its time, too, so that the mark has the boot's identity.
//!
//! "Clean" speaks of who wrote it alone. What a daemon before that one may have in flight lands when it lands: that wait, and rings that
//! nobody has seen since, are handed on until they are over (`word.rs`).

pub(crate) mod file;
mod word;

use crate::resources::lock;
use file::MarkFile;
use polypath::vhost_user_blk::{Hold, Owed};
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
pub(crate) use word::{DiskWord, Shown};
use word::{Orphans, SocketWord, TakenOver, Word};

/// Bytes of a mark that is long enough to leave something out: as many as some thousand sockets take.
const MARK_LONG: usize = 1 << 17;

/// The folder.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    folder: Arc<OwnedFd>,
    boot: Boot,
}

/// Which boot of the machine this is.
#[derive(Clone, Debug)]
struct Boot {
    id: String,
    /// From which of the machine's own times since its boot it is counted, and what it was then: nothing but in tests.
    from: (Duration, Duration),
}

impl Boot {
    /// How long ago it was. Counts while the machine sleeps, as others do.
    fn uptime(&self) -> Duration {
        // The kernel's own clock is never negative.
        let own = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
        own.saturating_sub(self.from.0) + self.from.1
    }
}

impl StateDir {
    /// Uses `path`, which is made if it is not there.
    pub(crate) fn open(path: &Path) -> Result<StateDir, String> {
        let bad = |e: std::io::Error| {
            format!(
                "the state folder {} cannot be used: {e}; choose another with --state-dir or daemon.state_dir",
                path.display()
            )
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(bad)?;
        let folder = Arc::new(file::open_folder(path).map_err(bad)?);
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(bad)?;
        Ok(StateDir {
            path: path.to_owned(),
            folder,
            boot: Boot { id: id.trim().to_owned(), from: Default::default() },
        })
    }

    /// Which disk was served as `disk` the last time, if that is known.
    pub(crate) fn known(&self, disk: &str) -> Option<DiskWord> {
        let bytes = self.file(disk).read().unwrap_or_else(|error| {
            tracing::warn!(disk, %error, "which disk that was before cannot be read; it cannot be served like that");
            None
        });
        serde_json::from_slice::<Word>(&bytes?).ok()?.disk
    }

    /// Forgets that: the operator has deleted the disk. The next one of that name is another one.
    ///
    /// # Errors
    /// As [`StateDir::claim`], or it cannot be written.
    pub(crate) fn forget(&self, disk: &str) -> Result<(), String> {
        if self.known(disk).is_none() {
            return Ok(());
        }
        let mark = self.claim(disk, Duration::ZERO)?;
        mark.change(|known| known.word.forget_disk()).map_err(|e| self.bad(disk, "cannot be written", e))
    }

    /// Takes `disk` for this daemon, whose requests may land up to `bound` after its end. Nothing is written before a socket begins.
    ///
    /// # Errors
    /// Another daemon serves it, or the folder cannot be read: nothing may be served then.
    pub(crate) fn claim(&self, disk: &str, bound: Duration) -> Result<Mark, String> {
        let file = self.file(disk);
        let owner = file.open_lock().map_err(|e| self.bad(disk, "cannot be locked", e))?;
        flock(&owner, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            rustix::io::Errno::WOULDBLOCK => format!(
                "disk \"{disk}\" is served by another polypathd with the state folder {}; stop that one, or give each its own",
                self.path.display()
            ),
            e => self.bad(disk, "cannot be locked", e),
        })?;
        let bytes = file.read().map_err(|e| self.bad(disk, "cannot be read", e))?;
        let before = bytes.map(|bytes| {
            serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(disk, %error, "a mark cannot be read; its disk is taken for one that was not left in order");
                Word::unknown(&self.boot.id, bound)
            })
        });
        let now = self.boot.uptime();
        let TakenOver { word, killed_by, killed_on } = Word::take_over(before, &self.boot.id, now, bound);
        let hold = Hold::for_time(word.wait_left(now));
        let left = word.caches.iter().filter(|(_, cache)| cache.dirty).map(|(place, _)| place.clone()).collect();
        let known =
            Known { word, killed_by, killed_on, seen: BTreeSet::new(), left, live: BTreeMap::new(), told: false };
        Ok(Mark {
            disk: disk.to_owned(),
            file,
            boot: self.boot.clone(),
            hold,
            writing: Mutex::new(()),
            known: Mutex::new(known),
            owner: Mutex::new(Some(owner)),
        })
    }

    fn file(&self, disk: &str) -> MarkFile {
        MarkFile::new(self.folder.clone(), file_name(disk))
    }

    fn bad(&self, disk: &str, what: &str, error: impl std::fmt::Display) -> String {
        format!("disk \"{disk}\": its mark {what} in {}: {error}", self.path.display())
    }
}

/// A disk that this daemon has taken.
#[derive(Debug)]
pub(crate) struct Mark {
    disk: String,
    file: MarkFile,
    boot: Boot,
    hold: Hold,
    /// Held while the file is written, which may take long; `known` is held for moments.
    writing: Mutex<()>,
    known: Mutex<Known>,
    /// The lock; `None` once the disk was let go.
    owner: Mutex<Option<OwnedFd>>,
}

/// What is known of it, as it is written down.
#[derive(Clone, Debug)]
struct Known {
    word: Word,
    killed_by: Option<Duration>,
    killed_on: BTreeSet<String>,
    /// Places of caches that this daemon has seen.
    seen: BTreeSet<String>,
    /// Places of caches in which those before us may have left something. Only we can tell guests that it is lost.
    left: BTreeSet<String>,
    /// What guests are owed, by socket; also between two servers of one, for whoever comes next is told what nobody else was.
    live: BTreeMap<String, Owed>,
    /// People were told that changes wait.
    told: bool,
}

impl Mark {
    /// A socket is about to serve the disk, over paths that show `shown`. `stale`: somebody has left that socket behind who was killed; his
    /// requests may land as long as our own.
    ///
    /// # Errors
    /// It could not be written down: nothing may be served then.
    pub(crate) fn begin(self: &Arc<Self>, socket: &str, stale: bool, shown: &[Shown]) -> std::io::Result<SocketMark> {
        let elsewhere = self.killed_elsewhere(socket)?;
        let (before, unclean, owed) = self.change(|known| {
            let before = known.word.socket(socket);
            // Of one that this mark was written by, it knows better.
            let unexplained = (stale || elsewhere.is_some()) && !known.killed_on.contains(socket);
            let mut own = SocketWord { open: true, ..before.clone() };
            if unexplained {
                own.orphans = Orphans::All;
                let now = self.boot.uptime();
                known.killed_by = Some(now);
                let own = now + Duration::from_millis(known.word.bound_ms);
                known.word.extend_wait(&self.boot.id, own.max(elsewhere.unwrap_or_default()));
            }
            let was_listed = known.word.sockets.insert(socket.to_owned(), own.clone()).is_some();
            let owed = known.live.entry(socket.to_owned()).or_default().clone();
            self.note(known, shown);
            if known.word.sockets.get(socket).is_some_and(|word| word.owed) {
                owed.owe();
            }
            (was_listed.then_some(before), own.orphans, owed)
        })?;
        self.tell(socket, unclean == Orphans::All);
        Ok(SocketMark { mark: self.clone(), socket: socket.to_owned(), before, orphans: unclean, owed })
    }

    /// Was somebody killed who served this socket under another name of the disk? Until when, since this boot, his requests may land. His mark
    /// is as after a daemon that has taken his disk over from then on.
    fn killed_elsewhere(&self, socket: &str) -> std::io::Result<Option<Duration>> {
        if lock(&self.known).word.sockets.contains_key(socket) {
            return Ok(None);
        }
        // What cannot be read is for whoever serves that disk to complain of.
        let word = |file: &MarkFile| {
            let word = serde_json::from_slice::<Word>(&file.read().ok()??).ok()?;
            word.sockets.get(socket).is_some_and(|socket| socket.open).then_some(word)
        };
        for file in self.file.others()? {
            if word(&file).is_none() {
                continue;
            }
            let owner = file.open_lock()?;
            if flock(&owner, FlockOperation::NonBlockingLockExclusive).is_err() {
                // Who has it has not been killed.
                continue;
            }
            if let Some(before) = word(&file) {
                let now = self.boot.uptime();
                let mut word = Word::take_over(Some(before), &self.boot.id, now, Duration::ZERO).word;
                word.settle(now);
                file.write(&serde_json::to_vec(&word)?)?;
                return Ok(Some(now + word.wait_left(now)));
            }
        }
        Ok(None)
    }

    /// A command that may change the disk is about to be passed through, over one of the paths that show `shown`. What it may leave behind
    /// lands as late as a write. Answers with how long changes wait for what those before us may have in flight.
    ///
    /// # Errors
    /// It could not be written down: it must not be sent.
    pub(crate) fn begin_passing(&self, shown: &[Shown]) -> std::io::Result<Duration> {
        self.change(|known| {
            known.word.passing = true;
            self.note(known, shown);
        })?;
        Ok(self.hold.left())
    }

    /// Such commands have ended, and are quiet.
    ///
    /// # Errors
    /// It could not be written down.
    pub(crate) fn end_passing(&self) -> std::io::Result<()> {
        self.change(|known| known.word.passing = false)
    }

    /// Paths are about to carry changes.
    ///
    /// # Errors
    /// It could not be written down: they must not.
    pub(crate) fn record(&self, shown: &[Shown]) -> std::io::Result<()> {
        self.change(|known| self.note(known, shown))
    }

    /// Requests may land up to `bound` after our end.
    ///
    /// # Errors
    /// It could not be written down.
    pub(crate) fn raise_bound(&self, bound: Duration) -> std::io::Result<()> {
        self.change(|known| self.raise(known, bound))
    }

    /// Is all of that written down?
    pub(crate) fn covers(&self, shown: &Shown) -> bool {
        let known = lock(&self.known);
        // A cache that only those before us have seen may have lost its power since.
        known.word.covers(shown) && shown.place().is_none_or(|place| known.seen.contains(place))
    }

    /// Which disk it is, if that is known.
    pub(crate) fn disk(&self) -> Option<DiskWord> {
        lock(&self.known).word.disk.clone()
    }

    /// Everything that the caches held is durable now, or is known to be lost.
    ///
    /// # Errors
    /// It could not be written down.
    pub(crate) fn flushed(&self) -> std::io::Result<()> {
        self.change(|known| {
            let Known { word, seen, left, .. } = known;
            for (_, cache) in word.caches.iter_mut().filter(|(place, _)| seen.contains(*place)) {
                cache.dirty = false;
            }
            left.retain(|place| !seen.contains(place));
        })
    }

    /// Something is lost that guests of the disk, of whatever socket, believe to be durable. Those that are served hear of it from the disk:
    /// this is for the case that the daemon is killed before they have.
    ///
    /// # Errors
    /// It could not be written down.
    pub(crate) fn lost(&self) -> std::io::Result<()> {
        self.change(|known| known.word.owe_all())
    }

    /// Writes down what has become known of what guests are owed. That somebody was told is written down at his end alone: told twice is better
    /// than never.
    ///
    /// # Errors
    /// It could not be written down.
    pub(crate) fn write_owed(&self) -> std::io::Result<()> {
        self.change(|known| {
            let Known { word, live, .. } = known;
            for (socket, _) in live.iter().filter(|(_, owed)| owed.is_owed()) {
                if let Some(word) = word.sockets.get_mut(socket) {
                    word.owed = true;
                }
            }
        })
    }

    /// What guests are owed, by socket.
    pub(crate) fn live(&self) -> BTreeMap<String, Owed> {
        lock(&self.known).live.clone()
    }

    /// What was that when this daemon let go of the disk.
    pub(crate) fn set_live(&self, live: BTreeMap<String, Owed>) {
        lock(&self.known).live = live;
    }

    /// Another daemon may take the disk.
    pub(crate) fn let_go(&self) {
        *lock(&self.owner) = None;
    }

    /// Notes what paths show. Of the loss of what those before us left in a cache the disk itself does not know: guests are owed for it.
    fn note(&self, known: &mut Known, shown: &[Shown]) {
        for shown in shown {
            let Some(lost) = known.word.note(shown) else { continue };
            if let Some(place) = shown.place() {
                known.seen.insert(place.to_owned());
                if lost {
                    known.word.owe_all();
                }
                if lost && known.left.remove(place) {
                    tracing::error!(disk = %self.disk, "a write cache has lost its power with what a daemon before this one had written: the next flush fails");
                    known.live.values().for_each(Owed::owe);
                }
            }
            self.raise(known, shown.bound());
        }
    }

    /// What we learn of our own paths holds for those of the one before us as well, whatever that one knew of them.
    fn raise(&self, known: &mut Known, bound: Duration) {
        known.word.bound_ms = known.word.bound_ms.max(word::millis(bound));
        let Some(killed_by) = known.killed_by else { return };
        known.word.extend_wait(&self.boot.id, killed_by + bound);
    }

    /// Tells people: of each socket how it was left, of the disk once that changes wait.
    fn tell(&self, socket: &str, unclean: bool) {
        let hold_ms = word::millis(self.hold.left());
        let disk = &self.disk;
        let told = std::mem::replace(&mut lock(&self.known).told, true);
        if unclean {
            tracing::warn!(
                disk,
                socket,
                hold_ms,
                "the last daemon that served it did not end in order; changes wait until what it may have in flight has landed"
            );
        } else if hold_ms > 0 && !told {
            tracing::info!(
                disk,
                hold_ms,
                "changes wait until what a daemon before the last may have in flight has landed"
            );
        }
    }

    /// Changes what is known, once it is written down.
    fn change<R>(&self, change: impl FnOnce(&mut Known) -> R) -> std::io::Result<R> {
        let _one = lock(&self.writing);
        let before = lock(&self.known).clone();
        let mut known = before.clone();
        let result = change(&mut known);
        let now = self.boot.uptime();
        let waits = known.word.wait != before.word.wait;
        if waits {
            self.hold.extend(Instant::now() + known.word.wait_left(now));
        }
        known.word.settle(now);
        if !known.word.says_the_same(&before.word) {
            if lock(&self.owner).is_none() {
                return Err(std::io::Error::other("the disk was let go"));
            }
            let mut bytes = serde_json::to_vec(&known.word)?;
            if bytes.len() > MARK_LONG {
                known.word.leave_out_quiet_sockets();
                bytes = serde_json::to_vec(&known.word)?;
            }
            self.file.write(&bytes)?;
        }
        let told = lock(&self.known).told;
        *lock(&self.known) = Known { told, ..known };
        Ok(result)
    }
}

/// A socket that serves a disk. Its mark stays unless [`SocketMark::end`] takes it away.
#[derive(Debug)]
pub(crate) struct SocketMark {
    mark: Arc<Mark>,
    socket: String,
    /// What was known of it before; `None`: nothing.
    before: Option<SocketWord>,
    orphans: Orphans,
    owed: Owed,
}

impl SocketMark {
    /// Who served it last did not end in order.
    pub(crate) fn unclean(&self) -> bool {
        self.orphans == Orphans::All
    }

    /// Rings that nobody has seen since somebody before that one did not end in order.
    pub(crate) fn orphans(&self) -> Vec<u16> {
        match &self.orphans {
            Orphans::Some(rings) => rings.clone(),
            Orphans::None | Orphans::All => Vec::new(),
        }
    }

    /// How long changes of the disk wait.
    pub(crate) fn hold(&self) -> Hold {
        self.mark.hold.clone()
    }

    /// What its guest is owed.
    pub(crate) fn owed(&self) -> Owed {
        self.owed.clone()
    }

    /// Does its guest count on each change being durable when it completes?
    pub(crate) fn write_through(&self) -> bool {
        lock(&self.mark.known).word.socket(&self.socket).write_through
    }

    /// Remembers that.
    pub(crate) fn set_write_through(&self, write_through: bool) -> std::io::Result<()> {
        self.change(|word| word.write_through = write_through)
    }

    /// It is quiet. `orphans`: its rings that no front-end has shown since somebody was killed.
    pub(crate) fn end(&self, orphans: Vec<u16>) -> std::io::Result<()> {
        self.mark.change(|known| {
            let owed = self.owed.is_owed();
            let Some(word) = known.word.sockets.get_mut(&self.socket) else { return };
            let orphans = if orphans.is_empty() { Orphans::None } else { Orphans::Some(orphans) };
            *word = SocketWord { open: false, orphans, owed, write_through: word.write_through };
        })
    }

    /// It could not be served, and never was: what was known of it before holds.
    pub(crate) fn undo(&self) -> std::io::Result<()> {
        self.mark.change(|known| {
            let owed = self.owed.is_owed();
            let before = match &self.before {
                Some(before) => Some(SocketWord { owed: before.owed || owed, ..before.clone() }),
                // Nothing but what was found out meanwhile.
                None => owed.then(|| SocketWord { owed, ..known.word.unlisted() }),
            };
            match before {
                Some(before) => known.word.sockets.insert(self.socket.clone(), before),
                None => known.word.sockets.remove(&self.socket),
            };
        })
    }

    fn change(&self, change: impl FnOnce(&mut SocketWord)) -> std::io::Result<()> {
        self.mark.change(|known| known.word.sockets.get_mut(&self.socket).map(change)).map(drop)
    }
}

/// A file name for any name of a disk, and for no other.
pub(crate) fn file_name(disk: &str) -> String {
    disk.bytes().fold(String::new(), |mut name, byte| {
        if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) {
            name.push(byte.into());
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
        name
    })
}

#[cfg(test)]
mod tests;
