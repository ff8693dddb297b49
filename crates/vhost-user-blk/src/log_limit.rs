//! Log lines that a guest or a front-end can provoke: one in so many seconds.

use polypath_block::Time;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between two lines of a kind.
const PAUSE: Duration = Duration::from_secs(10);

/// One line in so many seconds, and how many there would have been besides. Belongs to the thread that logs; shared only to outlive it.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    /// Nanoseconds of a [`Time`]. Zero: there was no line yet.
    next: AtomicU64,
    others: AtomicU64,
}

impl LogLimit {
    /// How many lines were left out since the last, if there may be one now.
    pub(crate) fn may_log(&self, now: Time) -> Option<u64> {
        if now.as_nanos() < self.next.load(Ordering::Relaxed) {
            self.others.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.next.store(now.after(PAUSE).as_nanos(), Ordering::Relaxed);
        Some(self.others.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_ten_seconds_tells_of_the_others() {
        let limit = LogLimit::default();
        let at = |millis| Time::from_millis(millis);
        assert_eq!(limit.may_log(at(0)), Some(0));
        assert_eq!((limit.may_log(at(1)), limit.may_log(at(9_999))), (None, None));
        assert_eq!(limit.may_log(at(10_000)), Some(2));
        assert_eq!(limit.may_log(at(10_001)), None);
    }
}
