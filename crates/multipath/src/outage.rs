//! A disk without any usable path: since when, who waits, and what people have been told of it.
//!
//! Control plane and queues meet here without the lock: whoever brings the second half of the news (there is no path; somebody waits for
//! one) finds the first, and exactly one of them says it.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use polypath_block::Time;

/// What a group can do for requests now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Availability {
    /// Paths that take I/O now: verified, answering or only slow, and with an access that allows it.
    pub usable_paths: u32,
    /// Since when there is none, on the reactors' clock. `None` while there is one, and before the first path was verified.
    pub no_path_since: Option<Time>,
    /// Requests that wait for a path, over all queues, as of their last turns.
    pub waiting: u64,
    /// Requests that failed so far because none came in time.
    pub failed: u64,
}

/// The same, shared.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    usable: AtomicU32,
    /// Nanoseconds plus one; zero: there is a path, or there has been none yet.
    since: AtomicU64,
    waiting: AtomicU64,
    failed: AtomicU64,
    told: AtomicU8,
}

/// What is to be told now, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tell {
    /// Requests have begun to wait.
    Waiting { requests: u64 },
    /// Requests have begun to fail.
    Failing,
    /// Nobody waits any more, and there is a path.
    Over { failed: u64 },
}

const NOTHING: u8 = 0;
const WAITING: u8 = 1;
const FAILING: u8 = 2;

impl Outage {
    pub(crate) fn availability(&self) -> Availability {
        Availability {
            usable_paths: self.usable.load(SeqCst),
            no_path_since: self.since.load(SeqCst).checked_sub(1).map(Time::from_nanos),
            waiting: self.waiting.load(SeqCst),
            failed: self.failed.load(SeqCst),
        }
    }

    /// The control plane has counted the paths of a disk that had one before.
    pub(crate) fn set_usable(&self, usable: u32, now: Time) -> Option<Tell> {
        self.usable.store(usable, SeqCst);
        if usable > 0 {
            self.since.store(0, SeqCst);
        } else if self.since.load(SeqCst) == 0 {
            self.since.store(now.as_nanos().saturating_add(1), SeqCst);
        }
        self.news()
    }

    /// As many requests of a queue wait as `now`; it were `before`.
    pub(crate) fn set_waiting(&self, before: usize, now: usize) -> Option<Tell> {
        if now > before {
            self.waiting.fetch_add((now - before) as u64, SeqCst);
        } else {
            self.waiting.fetch_sub((before - now) as u64, SeqCst);
        }
        self.news()
    }

    /// A request has waited as long as it may.
    pub(crate) fn request_failed(&self) -> Option<Tell> {
        self.failed.fetch_add(1, SeqCst);
        (self.told.swap(FAILING, SeqCst) != FAILING).then_some(Tell::Failing)
    }

    fn news(&self) -> Option<Tell> {
        let (none, waiting) = (self.since.load(SeqCst) != 0, self.waiting.load(SeqCst));
        let step = |from, to| self.told.compare_exchange(from, to, SeqCst, SeqCst).is_ok();
        if none && waiting > 0 {
            return step(NOTHING, WAITING).then_some(Tell::Waiting { requests: waiting });
        }
        let over = !none && waiting == 0 && self.told.swap(NOTHING, SeqCst) != NOTHING;
        over.then(|| Tell::Over { failed: self.failed.load(SeqCst) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Time = Time::from_millis(5);

    #[test]
    fn whoever_brings_the_second_half_tells_once() {
        let outage = Outage::default();
        assert_eq!((outage.set_usable(2, AT), outage.availability().no_path_since), (None, None));
        assert_eq!(outage.set_waiting(0, 3), None, "there is a path: in a turn or two they have it");
        assert_eq!(outage.set_usable(0, AT), Some(Tell::Waiting { requests: 3 }));
        assert_eq!((outage.set_waiting(0, 2), outage.set_usable(0, Time::from_millis(9))), (None, None));
        let known = Availability { usable_paths: 0, no_path_since: Some(AT), waiting: 5, failed: 0 };
        assert_eq!(outage.availability(), known);
        assert_eq!((outage.request_failed(), outage.request_failed()), (Some(Tell::Failing), None));
        assert_eq!(outage.set_waiting(5, 1), None);
        assert_eq!(outage.set_usable(1, AT), None, "one still waits");
        assert_eq!(outage.set_waiting(1, 0), Some(Tell::Over { failed: 2 }));
        assert_eq!(outage.set_usable(0, AT), None);
        assert_eq!(outage.set_waiting(0, 1), Some(Tell::Waiting { requests: 1 }), "the next outage is told again");
        assert_eq!((outage.set_waiting(1, 0), outage.set_usable(1, AT)), (None, Some(Tell::Over { failed: 2 })));
        assert_eq!((outage.set_usable(0, AT), outage.set_usable(1, AT)), (None, None), "nobody noticed");
    }
}
