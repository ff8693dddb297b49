//! What front-ends and guests may have done only so often: lines in the log, and writes of what is kept for the next server.

use crate::settings::KeepWriteThrough;
use polypath_block::LogLimit;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of a kind, once there were as many as may come at once.
pub(crate) const LOG_PAUSE: Duration = Duration::from_secs(10);

/// `most` lines of a kind at once, then one in each [`LOG_PAUSE`].
pub(crate) const fn log_limit(most: u32) -> LogLimit {
    LogLimit::new(most, LOG_PAUSE)
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
