//! What a run must not do, and the checker that everybody reports to.

use crate::trace::{Kind, Trace};
use polypath_block::Time;
use polypath_sim::Oracle;
use std::cell::RefCell;
use std::fmt;

/// A rule that was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// A read returns what was written last; nothing that was acknowledged is lost or lands late.
    Data,
    /// A request completes once, and only one that was made.
    Once,
    /// Every request completes.
    Completes,
    /// No error reaches a guest as long as a path works or comes back in time.
    NoError,
    /// What a FLUSH said is durable is.
    Durable,
    /// Nothing leaves for a disk after its device has said that another one answers there.
    OtherDisk,
    /// A path that is healed comes back.
    ComesBack,
    /// Closed queues drain and ended controllers let go of their sockets.
    Ends,
    /// Reactors do not spin for ever.
    Sleeps,
    /// Nothing panics.
    Panic,
}

/// A rule that was broken, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// What everybody in a world shares: the trace, the first violation, and an oracle for each disk.
#[derive(Debug)]
pub(crate) struct Checker {
    trace: RefCell<Trace>,
    violation: RefCell<Option<Violation>>,
    disks: Vec<RefCell<DiskModel>>,
}

/// What is known of one disk.
#[derive(Debug)]
pub(crate) struct DiskModel {
    /// What its blocks may hold.
    pub(crate) oracle: Oracle,
    /// Another disk answers in its place: until it does no more, nobody can say what a write did.
    pub(crate) swapped: bool,
    /// How often that began or ended.
    pub(crate) swaps: u64,
    /// Paths of the group that show another disk, as far as it has said.
    pub(crate) doubts: u64,
    /// A FLUSH was answered by another disk before a path said so: nobody could know, and until something is written those that follow
    /// need not go out.
    pub(crate) misled: bool,
    /// Its cache may be lost: FLUSH may say so.
    pub(crate) cache_lost: bool,
    /// The medium has no volatile cache.
    pub(crate) through: bool,
}

impl DiskModel {
    /// A path of the group showed another disk, or this one again.
    pub(crate) fn path_says(&mut self, path: usize, other: bool) {
        if other {
            self.doubts |= 1 << path;
            self.misled = false;
        } else {
            self.doubts &= !(1 << path);
        }
    }
}

impl Checker {
    /// A checker over `disks` zeroed disks of `blocks` blocks of 512 bytes, that keeps `room` lines of trace.
    pub(crate) fn new(disks: u32, blocks: u64, through: bool, room: usize) -> Checker {
        let disk = || DiskModel {
            oracle: Oracle::new(blocks, 512),
            swapped: false,
            swaps: 0,
            doubts: 0,
            misled: false,
            cache_lost: false,
            through,
        };
        Checker {
            trace: RefCell::new(Trace::new(room)),
            violation: RefCell::new(None),
            disks: (0..disks).map(|_| RefCell::new(disk())).collect(),
        }
    }

    /// Something happened.
    pub(crate) fn note(&self, now: Time, what: fmt::Arguments<'_>) {
        self.trace.borrow_mut().note(now, Kind::Event, what);
    }

    /// A request began or ended.
    pub(crate) fn note_request(&self, now: Time, what: fmt::Arguments<'_>) {
        self.trace.borrow_mut().note(now, Kind::Request, what);
    }

    /// A rule was broken. The first time counts.
    pub(crate) fn violate(&self, now: Time, rule: Rule, what: String) {
        self.note(now, format_args!("VIOLATION {rule:?}: {what}"));
        self.violation.borrow_mut().get_or_insert(Violation { rule, what });
    }

    /// The first violation.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.violation.borrow().clone()
    }

    /// Was a rule broken?
    pub(crate) fn is_broken(&self) -> bool {
        self.violation.borrow().is_some()
    }

    /// What is known of disk `index`.
    pub(crate) fn disk(&self, index: u32) -> &RefCell<DiskModel> {
        &self.disks[index as usize]
    }

    /// The trace so far.
    pub(crate) fn trace(&self) -> std::cell::Ref<'_, Trace> {
        self.trace.borrow()
    }
}
