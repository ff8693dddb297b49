//! What somebody else causes is not to fill the log.

use crate::Time;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

/// As many lines at once as somebody may want to read, then one in each pause; and how many there would have been besides.
///
/// Any thread may ask. Counters only, no lock: for whoever must not wait.
#[derive(Debug)]
pub struct LogLimit {
    most: u32,
    pause: Duration,
    /// When all that were logged have been earned, in nanoseconds of a [`Time`].
    earned: AtomicU64,
    others: AtomicU64,
}

impl LogLimit {
    /// `most` lines at once (at least 1), and one more in each `pause`.
    pub const fn new(most: u32, pause: Duration) -> LogLimit {
        LogLimit { most, pause, earned: AtomicU64::new(0), others: AtomicU64::new(0) }
    }

    /// How many lines were left out since the last, if there may be one now. `now` is of one clock for all who ask.
    pub fn may_log(&self, now: Time) -> Option<u64> {
        let before = self.earned.load(Ordering::Relaxed);
        let earned = Time::from_nanos(before).max(now);
        let saved_up = now.after(self.pause.saturating_mul(self.most.saturating_sub(1)));
        let after = earned.after(self.pause).as_nanos();
        // Whoever comes second at one moment has come too soon.
        let mine = earned <= saved_up
            && self.earned.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !mine {
            self.others.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.others.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_lines_at_once_and_one_now_and_then() {
        let limit = LogLimit::new(3, Duration::from_secs(10));
        let at = |seconds: u64| limit.may_log(Time::from_millis(1000 * seconds));
        assert_eq!([at(0), at(0), at(1), at(1), at(9)], [Some(0), Some(0), Some(0), None, None]);
        assert_eq!([at(10), at(11), at(19), at(20)], [Some(2), None, None, Some(2)]);
        assert_eq!(
            [at(1000), at(1000), at(1000), at(1000)],
            [Some(0), Some(0), Some(0), None],
            "no more than at first"
        );
    }

    #[test]
    fn one_line_in_a_pause_tells_of_the_others() {
        for most in [0, 1] {
            let limit = LogLimit::new(most, Duration::from_secs(10));
            let at = |millis| limit.may_log(Time::from_millis(millis));
            assert_eq!([at(0), at(1), at(9_999), at(10_000), at(10_001)], [Some(0), None, None, Some(2), None]);
        }
    }
}
