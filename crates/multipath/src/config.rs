//! How a group and its paths are set up.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use polypath_block::{Device, DeviceInfo, Identifier, Limits};
use std::sync::Arc;

/// Most paths one group holds, those on their way out included.
pub const MAX_PATHS: usize = 64;

/// Most requests one queue of a group holds.
pub const MAX_DEPTH: u16 = 8192;

/// Which rule chooses among paths of equal rank. Rank comes first: optimized before non-optimized, what answers before what stalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum SelectorKind {
    /// One after the other.
    RoundRobin {
        /// Requests to one path before it is the next one's turn; zero means the default of 1.
        min_io: u32,
    },
    /// Any, by a seeded generator.
    Random,
    /// By range of blocks, so that a stream stays on its path; the loss of a path moves only that path's ranges.
    Hash {
        /// Bytes of a range; zero means the default of 1 MiB.
        range_bytes: u64,
    },
    /// In proportion to the configured weights.
    Weight,
    /// Least bytes in flight relative to the configured weight.
    ServiceTime,
    /// In proportion to the throughput that recent requests met.
    AverageRate,
    /// Fewest requests in flight; equals take turns. The default.
    #[default]
    QueueLength,
    /// Least expected service time, from the history of each size class times what is in flight; stale paths are probed.
    HistoricalServiceTime,
    /// One path takes everything, the others wait: of the paths of the best access one that is marked as preferred
    /// ([`PathConfig::preferred`]), then one that its target prefers ([`Device::is_preferred`]), then the one that was added first. One that
    /// is full is waited for.
    Preferred {
        /// When a better path returns.
        failback: Failback,
    },
}

/// What [`SelectorKind::Preferred`] does when a path returns that is as good by its access as the one in use, and preferred to it. A path of
/// better access is used at once in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Failback {
    /// Use it at once.
    #[default]
    Immediate,
    /// Stay with the one in use until that is lost, or fails a request. Each reactor stays by itself.
    Never,
}

impl Failback {
    /// Its name in configuration files and on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Failback::Immediate => "immediate",
            Failback::Never => "never",
        }
    }
}

impl fmt::Display for Failback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Failback {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let found = [Failback::Immediate, Failback::Never].into_iter().find(|way| way.as_str() == text);
        found.ok_or_else(|| SelectorError::Failback { given: text.to_owned() })
    }
}

/// An option of a selector that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectorError {
    /// Not of this selector.
    #[error("{option} is an option of selector {of}, and not of {selector}; leave it out, or choose that selector")]
    NotOf {
        /// The option.
        option: &'static str,
        /// The selector that knows it.
        of: &'static str,
        /// The selector that it was given for.
        selector: &'static str,
    },
    /// No turn is that short.
    #[error("min_io is 0; expected 1 or more requests to a path in its turn")]
    NoTurn,
    /// No way to fail back.
    #[error("failback \"{given}\" is unknown; expected immediate or never")]
    Failback {
        /// What was given.
        given: String,
    },
}

impl SelectorKind {
    /// Every rule, with its options at their defaults.
    pub const ALL: [SelectorKind; 9] = [
        SelectorKind::RoundRobin { min_io: 0 },
        SelectorKind::Random,
        SelectorKind::Hash { range_bytes: 0 },
        SelectorKind::Weight,
        SelectorKind::ServiceTime,
        SelectorKind::AverageRate,
        SelectorKind::QueueLength,
        SelectorKind::HistoricalServiceTime,
        SelectorKind::Preferred { failback: Failback::Immediate },
    ];

    /// Its name in configuration files and on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            SelectorKind::RoundRobin { .. } => "round-robin",
            SelectorKind::Random => "random",
            SelectorKind::Hash { .. } => "hash",
            SelectorKind::Weight => "weight",
            SelectorKind::ServiceTime => "service-time",
            SelectorKind::AverageRate => "average-rate",
            SelectorKind::QueueLength => "queue-length",
            SelectorKind::HistoricalServiceTime => "historical-service-time",
            SelectorKind::Preferred { .. } => "preferred",
        }
    }

    /// The same rule with these options, as configuration files and command lines give them; `None` leaves one as it is.
    ///
    /// # Errors
    /// [`SelectorError`]: an option of another rule, or a turn of no request.
    pub fn with_options(mut self, min_io: Option<u32>, failback: Option<Failback>) -> Result<Self, SelectorError> {
        let selector = self.as_str();
        match (&mut self, min_io) {
            (_, None) => {}
            (SelectorKind::RoundRobin { .. }, Some(0)) => return Err(SelectorError::NoTurn),
            (SelectorKind::RoundRobin { min_io }, Some(given)) => *min_io = given,
            _ => return Err(SelectorError::NotOf { option: "min_io", of: "round-robin", selector }),
        }
        match (&mut self, failback) {
            (_, None) => {}
            (SelectorKind::Preferred { failback }, Some(given)) => *failback = given,
            _ => return Err(SelectorError::NotOf { option: "failback", of: "preferred", selector }),
        }
        Ok(self)
    }

    /// Requests to a path in its turn, of the rule that takes turns.
    pub const fn min_io(self) -> Option<u32> {
        match self {
            SelectorKind::RoundRobin { min_io: 0 } => Some(1),
            SelectorKind::RoundRobin { min_io } => Some(min_io),
            _ => None,
        }
    }

    /// How it fails back, of the rule that does.
    pub const fn failback(self) -> Option<Failback> {
        match self {
            SelectorKind::Preferred { failback } => Some(failback),
            _ => None,
        }
    }
}

impl fmt::Display for SelectorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no selector.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "selector \"{given}\" is unknown; expected round-robin, random, hash, weight, service-time, average-rate, queue-length, historical-service-time or preferred"
)]
pub struct UnknownSelector {
    /// What was given.
    pub given: String,
}

impl FromStr for SelectorKind {
    type Err = UnknownSelector;

    fn from_str(text: &str) -> Result<Self, UnknownSelector> {
        let found = SelectorKind::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| UnknownSelector { given: text.to_owned() })
    }
}

/// Are changes held back until their old path is proven quiet?
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fencing {
    /// Yes. The only setting that keeps data.
    #[default]
    On,
    /// No: a change is sent again as soon as its path breaks, and a late copy of it may land on newer data. For tests
    /// that show why fencing exists; logged loudly.
    Off,
}

/// Which paths lead to the disk of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MatchPolicy {
    /// Those that share a worldwide identifier with the first one and differ in none of the same kind.
    #[default]
    Worldwide,
    /// The operator states that these identifiers are of one disk: those that show one of them, and of each kind that is listed and that
    /// they show, a listed one; and do not differ in other kinds. Asked at each connect, and of the first path, too. Joins paths whose
    /// identifiers cannot be compared, such as the NGUID of an NVMe namespace and the NAA designator of a SCSI logical unit. Identifiers that never aggregate by themselves (T10 vendor ones) may be pinned: that is the operator's statement.
    Pinned(Vec<Identifier>),
    /// The operator states that all paths lead to one disk: those with nothing comparable join, those that differ do not.
    Stated,
}

/// Keeps what must be known for longer than this process lives: who the disk is, how long changes may land, which cache holds them.
pub trait Ledger: fmt::Debug + Send + Sync {
    /// May a path carry I/O whose device shows `info`, and whose changes may land up to `bound` after the end of this process? Asked each
    /// time a path comes or changes, under the lock of the group: it must not wait. Whatever was not
    /// admitted is asked for again by [`crate::Group::look_again`].
    fn admit(&self, info: &DeviceInfo, bound: Duration) -> Entry;
}

/// What a [`Ledger`] says of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// It is written down: the path may carry I/O.
    Written,
    /// Not yet, and why: the path carries nothing until it is.
    NotYet(String),
    /// The path is not what was written down before, or another disk that is used, and why: it is quarantined.
    Refused(String),
}

/// How a group is set up.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Name of the disk, for people, logs and statistics.
    pub name: String,
    /// Rule for choosing a path.
    pub selector: SelectorKind,
    /// How long a request may wait at a stretch without a usable path before it fails with [`polypath_block::Code::NoPath`],
    /// in milliseconds. Time that it spends on a path, its fence included, does not count: a change waits for its fence however
    /// long that takes. A request that usable paths keep failing gives up too, once that long has passed since its first failure
    /// and it was tried several times. Of what is sent in parts, each has its own time. [`GroupConfig::FOR_EVER_MS`]: it does not fail.
    pub no_path_timeout_ms: u64,
    /// Are changes fenced?
    pub fencing: Fencing,
    /// Which paths belong.
    pub matching: MatchPolicy,
    /// Limits to show at most (met with those of the paths); `None` shows what the paths can do.
    pub limits: Option<Limits>,
    /// Asked before a path carries I/O; `None`: nothing must outlive the process.
    pub ledger: Option<Arc<dyn Ledger>>,
    /// Seed of the random selector.
    pub seed: u64,
}

impl GroupConfig {
    /// As `no_path_timeout_ms`: requests wait for a path for as long as it takes.
    pub const FOR_EVER_MS: u64 = u64::MAX;

    /// The defaults: queue-length, 60 s without a path, fencing on, worldwide identifiers.
    pub fn new(name: impl Into<String>) -> Self {
        GroupConfig {
            name: name.into(),
            selector: SelectorKind::default(),
            no_path_timeout_ms: 60_000,
            fencing: Fencing::On,
            matching: MatchPolicy::Worldwide,
            limits: None,
            ledger: None,
            seed: 0x9E37_79B9_7F4A_7C15,
        }
    }
}

/// A path to be added to a group.
#[derive(Clone)]
pub struct PathConfig {
    /// Name of the path, unique in its group (its URI, usually).
    pub name: String,
    /// The way to the disk. The group closes it once the path is removed.
    pub device: Arc<dyn Device>,
    /// Share of the work for the rules that know weights; at least 1, 100 is ordinary.
    pub weight: u32,
    /// [`SelectorKind::Preferred`] uses it before others of the same access.
    pub preferred: bool,
}

impl PathConfig {
    /// A path of ordinary weight, named after its device.
    pub fn new(device: Arc<dyn Device>) -> Self {
        PathConfig { name: device.name().to_owned(), device, weight: PathConfig::WEIGHT, preferred: false }
    }

    /// The ordinary weight.
    pub const WEIGHT: u32 = 100;
}

impl fmt::Debug for PathConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathConfig")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .field("preferred", &self.preferred)
            .finish_non_exhaustive()
    }
}

/// Names a path of a group for as long as the group lives; never given twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PathId(pub u32);

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Why a group did not do what it was told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GroupError {
    /// It has as many paths as it can hold.
    #[error("{group} has {MAX_PATHS} paths, the most there can be; remove one first")]
    TooManyPaths {
        /// Name of the group.
        group: String,
    },
    /// The name is taken.
    #[error("{group} already has a path named \"{path}\"; give the new one another name")]
    NameTaken {
        /// Name of the group.
        group: String,
        /// The name.
        path: String,
    },
    /// The same device is a path already.
    #[error("{group}: device of path \"{path}\" is already one of its paths")]
    DeviceTaken {
        /// Name of the group.
        group: String,
        /// Name of the path that has it.
        path: String,
    },
    /// It has no such path.
    #[error("{group} has no path {id}")]
    NoSuchPath {
        /// Name of the group.
        group: String,
        /// The path asked for.
        id: PathId,
    },
    /// A weight of zero would never be chosen.
    #[error("weight 0 of a path of {group}: expected 1 or more; remove the path to stop using it")]
    ZeroWeight {
        /// Name of the group.
        group: String,
    },
    /// The group was closed.
    #[error("{group} is closed")]
    Closed {
        /// Name of the group.
        group: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selector_names_round_trip() {
        for kind in SelectorKind::ALL {
            assert_eq!(kind.as_str().parse::<SelectorKind>(), Ok(kind));
        }
        let err = "fastest".parse::<SelectorKind>().unwrap_err().to_string();
        assert!(err.contains("fastest") && SelectorKind::ALL.iter().all(|k| err.contains(k.as_str())), "{err}");
    }

    #[test]
    fn options_are_of_the_rules_that_know_them() {
        let turns = SelectorKind::RoundRobin { min_io: 0 };
        let one = SelectorKind::Preferred { failback: Failback::Immediate };
        assert_eq!(turns.with_options(Some(128), None), Ok(SelectorKind::RoundRobin { min_io: 128 }));
        assert_eq!(turns.with_options(Some(0), None), Err(SelectorError::NoTurn));
        let stays = SelectorKind::Preferred { failback: Failback::Never };
        assert_eq!(one.with_options(None, Some(Failback::Never)), Ok(stays));
        assert_eq!(
            (turns.min_io(), stays.failback(), one.min_io(), turns.failback()),
            (Some(1), Some(Failback::Never), None, None)
        );
        for kind in SelectorKind::ALL {
            assert_eq!(kind.with_options(None, None), Ok(kind));
            assert_eq!(kind.with_options(Some(8), None).is_ok(), kind == turns, "{kind}");
            assert_eq!(kind.with_options(None, Some(Failback::Immediate)).is_ok(), kind == one, "{kind}");
        }
        let error = one.with_options(Some(8), None).unwrap_err().to_string();
        assert!(error.contains("min_io") && error.contains("round-robin") && error.contains("preferred"), "{error}");
        for way in [Failback::Immediate, Failback::Never] {
            assert_eq!(way.to_string().parse(), Ok(way));
        }
        let error = "later".parse::<Failback>().unwrap_err().to_string();
        assert!(error.contains("later") && error.contains("immediate") && error.contains("never"), "{error}");
    }
}
