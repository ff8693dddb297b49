//! What is written down of a disk, and how that changes: no file, no clock.

use polypath::block::{DeviceInfo, Identifier, Identity, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is kept of a disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Word {
    /// Of the daemon that wrote this, and of nobody before it: everything was quiet when it let go of the disk.
    pub(super) clean: bool,
    /// Identity of the boot in which it ran.
    pub(super) boot: String,
    /// How long after its end what it had in flight may land.
    pub(super) bound_ms: u64,
    /// What those before it, which did not end in order, may have in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wait: Option<Wait>,
    /// The guest of a socket counts on each change being durable when it completes.
    pub(super) write_through: bool,
    /// Sockets that the disk was served on, by their paths.
    #[serde(default)]
    pub(super) sockets: BTreeMap<String, SocketWord>,
    /// What holds for sockets that are not listed; `None`: the disk was never served there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) others: Option<SocketWord>,
    /// A command that may change the disk is being passed through to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) passing: bool,
    /// Which disk it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) disk: Option<DiskWord>,
    /// Volatile caches of which losses of power can be told, by their places.
    #[serde(default)]
    pub(super) caches: BTreeMap<String, CacheWord>,
}

/// Until when changes wait.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Wait {
    /// In which boot.
    pub(super) boot: String,
    /// Since that boot.
    pub(super) until_ms: u64,
    /// How much of it was left when this was written: a later boot takes off what has passed since it began.
    pub(super) left_ms: u64,
}

/// What is kept of a socket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct SocketWord {
    /// It is served, or was when its daemon ended.
    pub(super) open: bool,
    /// Rings in which a daemon that did not end in order may have left requests, and that nobody has seen since.
    pub(super) orphans: Orphans,
    /// Its guest counts on each change being durable when it completes.
    pub(super) write_through: bool,
    /// Something is lost that its guest believes to be durable, and it has not been told.
    pub(super) owed: bool,
}

/// See [`SocketWord::orphans`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Orphans {
    #[default]
    None,
    All,
    Some(Vec<u16>),
}

/// Which disk it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DiskWord {
    identifiers: Vec<String>,
    block_size: u32,
}

/// A volatile cache.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct CacheWord {
    /// Its name, with the count of losses of power.
    pub(super) name: String,
    /// It may hold what guests believe to be durable after their next flush.
    pub(super) dirty: bool,
}

/// What a path shows that is to be written down before it carries changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shown {
    bound_ms: u64,
    disk: DiskWord,
    /// Place and name.
    cache: Option<(String, String)>,
    /// The operator has named it: it may be another disk than before.
    stated: bool,
}

impl Shown {
    /// Of a path whose changes may land up to `bound` after our end. `stated`: the operator's word that this is the disk.
    pub(crate) fn new(info: &DeviceInfo, bound: Duration, stated: bool) -> Shown {
        let domain = &info.identity.cache_domain;
        let counted = info.limits.write_cache && domain.place() != domain.0;
        Shown {
            bound_ms: millis(bound),
            disk: DiskWord::of(info),
            cache: counted.then(|| (domain.place().to_owned(), domain.0.clone())),
            stated,
        }
    }
}

impl Shown {
    /// How long its changes may land.
    pub(super) fn bound(&self) -> Duration {
        Duration::from_millis(self.bound_ms)
    }

    /// The place of its cache, if losses of power can be told of that.
    pub(super) fn place(&self) -> Option<&str> {
        self.cache.as_ref().map(|(place, _)| &**place)
    }
}

impl DiskWord {
    fn of(info: &DeviceInfo) -> DiskWord {
        let worldwide = info.identity.identifiers.iter().filter(|i| i.is_worldwide());
        DiskWord { identifiers: worldwide.map(ToString::to_string).collect(), block_size: info.geometry.block_size }
    }

    /// Why a device that shows `info` cannot be this disk.
    pub(crate) fn speaks_against(&self, info: &DeviceInfo) -> Option<String> {
        self.differs(&DiskWord::of(info)).then(|| {
            format!(
                "it is another disk than the one that was served under this name before: it shows {:?} with blocks of {} bytes, that \
                 was {:?} with {}",
                info.identity.identifiers, info.geometry.block_size, self.identifiers, self.block_size
            )
        })
    }

    fn differs(&self, shown: &DiskWord) -> bool {
        let different = self.identity().compare(&shown.identity()) == Verdict::Different;
        different || self.block_size != shown.block_size
    }

    fn identity(&self) -> Identity {
        let identifiers = self.identifiers.iter().filter_map(|text| text.parse::<Identifier>().ok()).collect();
        Identity { identifiers, ..Identity::default() }
    }
}

/// What a new daemon finds.
#[derive(Debug)]
pub(super) struct TakenOver {
    pub(super) word: Word,
    /// When, since this boot, the last one that did not end in order had ended at the latest; `None`: that one did.
    pub(super) killed_by: Option<Duration>,
    /// The sockets on which that one served it.
    pub(super) killed_on: BTreeSet<String>,
}

impl Word {
    /// What the word is for a daemon that takes the disk over in boot `boot` at `now`, and whose own requests may land up to `bound` after
    /// its end.
    pub(super) fn take_over(before: Option<Word>, boot: &str, now: Duration, bound: Duration) -> TakenOver {
        let Some(mut word) = before else {
            return TakenOver { word: Word::new(boot, bound), killed_by: None, killed_on: BTreeSet::new() };
        };
        let here = word.boot == boot;
        // Who ran in another boot had ended when this one began.
        let killed_by = (!word.clean).then_some(if here { now } else { Duration::ZERO });
        if let Some(wait) = &mut word.wait
            && wait.boot != boot
        {
            *wait = Wait { boot: boot.to_owned(), until_ms: wait.left_ms, left_ms: wait.left_ms };
        }
        if let Some(killed_by) = killed_by {
            word.extend_wait(boot, killed_by + bound.max(Duration::from_millis(word.bound_ms)));
        }
        let mut killed_on = BTreeSet::new();
        for (path, socket) in word.sockets.iter_mut().filter(|(_, socket)| socket.open) {
            (socket.open, socket.orphans) = (false, Orphans::All);
            killed_on.insert(path.clone());
        }
        // A mark that was written for a command alone has seen no socket.
        if !word.clean && word.sockets.is_empty() && !word.passing {
            word.others
                .get_or_insert_with(|| SocketWord { write_through: word.write_through, ..SocketWord::unknown() });
        }
        (word.clean, word.passing) = (true, false);
        (word.bound_ms, word.boot) = (millis(bound), boot.to_owned());
        TakenOver { word, killed_by, killed_on }
    }

    fn new(boot: &str, bound: Duration) -> Word {
        Word {
            clean: true,
            boot: boot.to_owned(),
            bound_ms: millis(bound),
            wait: None,
            write_through: false,
            sockets: BTreeMap::new(),
            others: None,
            passing: false,
            disk: None,
            caches: BTreeMap::new(),
        }
    }

    /// Of a mark that cannot be understood: the worst, by a daemon with `bound`.
    pub(super) fn unknown(boot: &str, bound: Duration) -> Word {
        let others = Some(SocketWord::unknown());
        Word { clean: false, write_through: true, others, ..Word::new(boot, bound) }
    }

    /// Changes wait until `until` since this boot, if that is later.
    pub(super) fn extend_wait(&mut self, boot: &str, until: Duration) {
        let until_ms = millis(until).max(self.wait.as_ref().map_or(0, |wait| wait.until_ms));
        self.wait = Some(Wait { boot: boot.to_owned(), until_ms, left_ms: 0 });
    }

    /// How long changes wait at `now`.
    pub(super) fn wait_left(&self, now: Duration) -> Duration {
        let until = self.wait.as_ref().map_or(0, |wait| wait.until_ms);
        Duration::from_millis(until).saturating_sub(now)
    }

    /// Brings what follows from the rest in line with it, at `now`.
    pub(super) fn settle(&mut self, now: Duration) {
        let left_ms = millis(self.wait_left(now));
        self.wait = self.wait.take().filter(|_| left_ms > 0).map(|wait| Wait { left_ms, ..wait });
        let mut all = self.sockets.values().chain(&self.others);
        self.write_through = all.any(|socket| socket.write_through);
        self.clean = !self.passing && !self.sockets.values().any(|socket| socket.open);
    }

    /// Leaves out sockets of which there is nothing to say: they come and go, year after year, and a mark that is too long is none.
    pub(super) fn leave_out_quiet_sockets(&mut self) {
        self.sockets.retain(|_, socket| *socket != SocketWord::default());
    }

    /// Is it the same but for the time that has passed?
    pub(super) fn says_the_same(&self, other: &Word) -> bool {
        let timeless = |word: &Word| {
            let wait = word.wait.clone().map(|wait| Wait { left_ms: 0, ..wait });
            Word { wait, ..word.clone() }
        };
        timeless(self) == timeless(other)
    }

    /// What is known of `socket`.
    pub(super) fn socket(&self, socket: &str) -> SocketWord {
        self.sockets.get(socket).cloned().unwrap_or_else(|| self.unlisted())
    }

    /// What is known of a socket that is not listed. It may be an old one by another name.
    pub(super) fn unlisted(&self) -> SocketWord {
        let owed = self.sockets.values().any(|socket| socket.owed);
        match &self.others {
            Some(others) => SocketWord { owed: owed || others.owed, ..others.clone() },
            None => SocketWord { write_through: self.write_through, owed, ..SocketWord::default() },
        }
    }

    /// Every guest of the disk is owed a flush that fails.
    pub(super) fn owe_all(&mut self) {
        self.sockets.values_mut().chain(&mut self.others).for_each(|socket| socket.owed = true);
    }

    /// The next disk of that name is another one, with other data. Its sockets are the same, and what is in flight.
    pub(super) fn forget_disk(&mut self) {
        self.disk = None;
        self.caches.clear();
        self.sockets.values_mut().chain(&mut self.others).for_each(|socket| socket.owed = false);
    }

    /// Is all of it written down already that a path `shown` so must have?
    pub(super) fn covers(&self, shown: &Shown) -> bool {
        let cached = |(place, name): &(String, String)| {
            self.caches.get(place).is_some_and(|cache| cache.dirty && cache.name == *name)
        };
        self.bound_ms >= shown.bound_ms
            && self.disk.as_ref().is_some_and(|disk| !disk.differs(&shown.disk))
            && shown.cache.as_ref().is_none_or(cached)
    }

    /// A path is about to carry changes. True when its cache has lost its power since somebody wrote there: what was written may be lost.
    /// `None`: it will be refused, for it is another disk.
    pub(super) fn note(&mut self, shown: &Shown) -> Option<bool> {
        let differs = |disk: &DiskWord| disk.differs(&shown.disk);
        if self.disk.as_ref().is_some_and(differs) && !shown.stated {
            return None;
        }
        if self.disk.as_ref().is_none_or(differs) {
            self.disk = Some(shown.disk.clone());
        }
        self.bound_ms = self.bound_ms.max(shown.bound_ms);
        let Some((place, name)) = &shown.cache else { return Some(false) };
        let before = self.caches.insert(place.clone(), CacheWord { name: name.clone(), dirty: true });
        Some(before.is_some_and(|cache| cache.dirty && cache.name != *name))
    }
}

impl SocketWord {
    fn unknown() -> SocketWord {
        SocketWord { open: false, orphans: Orphans::All, write_through: true, owed: false }
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    // Rounded up: a bound that is too short is none.
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
