//! What front-ends and guests may have done only so often: lines in the log, and writes of what is kept for the next server.

use crate::settings::KeepWriteThrough;
use polypath_block::Time;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of a kind, once there were as many as may come at once.
pub(crate) const LOG_PAUSE: Duration = Duration::from_secs(10);

/// As many lines at once as somebody may want to read, then one each ten seconds; and how many there would have been besides. Belongs to the
/// thread that logs; shared only to outlive it.
#[derive(Debug)]
pub(crate) struct LogLimit {
    most: u32,
    /// When all that were logged have been earned, in nanoseconds of a [`Time`].
    earned: AtomicU64,
    others: AtomicU64,
}

impl LogLimit {
    /// `most` at once.
    pub(crate) fn new(most: u32) -> LogLimit {
        LogLimit { most, earned: AtomicU64::new(0), others: AtomicU64::new(0) }
    }

    /// How many lines were left out since the last, if there may be one now.
    pub(crate) fn may_log(&self, now: Time) -> Option<u64> {
        let earned = Time::from_nanos(self.earned.load(Ordering::Relaxed)).max(now);
        if earned > now.after(LOG_PAUSE * (self.most - 1)) {
            self.others.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.earned.store(earned.after(LOG_PAUSE).as_nanos(), Ordering::Relaxed);
        Some(self.others.swap(0, Ordering::Relaxed))
    }
}

impl Default for LogLimit {
    /// One at a time.
    fn default() -> Self {
        LogLimit::new(1)
    }
}

/// Keeps a word of the guest for the server after this one.
///
/// That it counts on each change being durable is kept before it hears that this is so. That it does not any more may wait: until then the
/// next server does more than it must. So a guest that changes its mind again and again has little written for it.
pub(crate) struct Keeper {
    keep: Option<KeepWriteThrough>,
    pause: Duration,
    state: Mutex<Kept>,
}

struct Kept {
    write_through: bool,
    wanted: bool,
    /// When something was written last, or should have been.
    at: Option<Instant>,
}

impl Keeper {
    /// `write_through` is kept already.
    pub(crate) fn new(keep: Option<KeepWriteThrough>, write_through: bool, pause: Duration) -> Keeper {
        let state = Mutex::new(Kept { write_through, wanted: write_through, at: None });
        Keeper { keep, pause, state }
    }

    /// What the guest wants from now on; [`Keeper::catch_up`] keeps what may wait.
    ///
    /// # Errors
    /// It could not be kept and cannot wait: the guest must not hear that its word is taken.
    pub(crate) fn want(&self, write_through: bool) -> std::io::Result<()> {
        let mut state = self.lock();
        if write_through && !state.write_through {
            self.write(&mut state, true)?;
        }
        state.wanted = write_through;
        Ok(())
    }

    /// When [`Keeper::catch_up`] has something to do; `None` for never.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        self.left(&self.lock())
    }

    /// Writes what may be written by now; with `at_once`, all there is.
    ///
    /// # Errors
    /// It could not be kept, and is tried again later. Nothing is lost by that but time.
    pub(crate) fn catch_up(&self, at_once: bool) -> std::io::Result<()> {
        let mut state = self.lock();
        match self.left(&state) {
            Some(left) if at_once || left.is_zero() => self.write(&mut state, false),
            _ => Ok(()),
        }
    }

    fn left(&self, state: &Kept) -> Option<Duration> {
        let owes = state.write_through && !state.wanted;
        owes.then(|| state.at.map_or(Duration::ZERO, |at| self.pause.saturating_sub(at.elapsed())))
    }

    fn write(&self, state: &mut Kept, write_through: bool) -> std::io::Result<()> {
        state.at = Some(Instant::now());
        if let Some(keep) = &self.keep {
            keep(write_through)?;
        }
        state.write_through = write_through;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn some_lines_at_once_and_one_now_and_then() {
        let limit = LogLimit::new(3);
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
    fn one_line_in_ten_seconds_tells_of_the_others() {
        let limit = LogLimit::default();
        let at = |millis| Time::from_millis(millis);
        assert_eq!(limit.may_log(at(0)), Some(0));
        assert_eq!((limit.may_log(at(1)), limit.may_log(at(9_999))), (None, None));
        assert_eq!(limit.may_log(at(10_000)), Some(2));
        assert_eq!(limit.may_log(at(10_001)), None);
    }

    fn keeper(pause: Duration) -> (Keeper, Arc<Mutex<Vec<bool>>>) {
        let list = Arc::new(Mutex::new(Vec::new()));
        let kept = list.clone();
        let keep = move |through| {
            kept.lock().unwrap().push(through);
            Ok(())
        };
        (Keeper::new(Some(Arc::new(keep)), false, pause), list)
    }

    #[test]
    fn who_changes_his_mind_has_little_written() {
        let (keeper, kept) = keeper(Duration::from_secs(3600));
        for _ in 0..100 {
            keeper.want(true).unwrap();
            keeper.want(false).unwrap();
        }
        assert_eq!(*kept.lock().unwrap(), [true]);
        assert!(keeper.due_in().is_some_and(|left| left > Duration::from_secs(3000)));
        keeper.catch_up(false).unwrap();
        assert_eq!(*kept.lock().unwrap(), [true], "not yet");
        keeper.catch_up(true).unwrap();
        keeper.catch_up(true).unwrap();
        assert_eq!((&kept.lock().unwrap()[..], keeper.due_in()), (&[true, false][..], None));
        keeper.want(true).unwrap();
        assert_eq!(*kept.lock().unwrap(), [true, false, true], "that does not wait");
    }

    #[test]
    fn without_haste_each_change_is_written() {
        let (keeper, kept) = keeper(Duration::ZERO);
        for through in [true, true, false, false, true] {
            keeper.want(through).unwrap();
            keeper.catch_up(false).unwrap();
        }
        assert_eq!(*kept.lock().unwrap(), [true, false, true]);
    }

    #[test]
    fn what_cannot_be_kept_is_tried_again_and_what_must_be_is_refused() {
        let works = Arc::new(Mutex::new(false));
        let looked = works.clone();
        let keep = move |_| if *looked.lock().unwrap() { Ok(()) } else { Err(std::io::ErrorKind::StorageFull.into()) };
        let keeper = Keeper::new(Some(Arc::new(keep)), false, Duration::ZERO);
        assert!(keeper.want(true).is_err() && keeper.want(true).is_err());
        assert_eq!(keeper.due_in(), None, "nothing has changed");
        *works.lock().unwrap() = true;
        keeper.want(true).unwrap();
        *works.lock().unwrap() = false;
        keeper.want(false).unwrap();
        assert!(keeper.catch_up(false).is_err() && keeper.due_in().is_some());
        *works.lock().unwrap() = true;
        keeper.catch_up(false).unwrap();
        assert_eq!(keeper.due_in(), None);
    }
}
