//! What a server must know of those who served its disk before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Until when changes wait, because those of somebody else may still land. `Clone` shares it: all servers of a disk wait for the same, and
/// whoever learns that it takes longer says so once.
#[derive(Clone, Debug)]
pub struct Hold(Arc<HoldState>);

#[derive(Debug)]
struct HoldState {
    until: Mutex<Instant>,
    /// How often that has become later.
    version: AtomicU64,
}

impl Hold {
    /// From now on as long as `wait`.
    pub fn for_time(wait: Duration) -> Hold {
        Hold::from(Instant::now() + wait)
    }

    /// It takes until `until`, if that is later. Changes wait again then, if the time had passed; those that were let go are not called back.
    pub fn extend(&self, until: Instant) {
        let mut known = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until > *known {
            *known = until;
            self.0.version.fetch_add(1, Ordering::Release);
        }
    }

    /// How long from now on.
    pub fn left(&self) -> Duration {
        let until = *self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.saturating_duration_since(Instant::now())
    }

    /// Changes whenever [`Hold::left`] has become more than it would have been.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }
}

impl Default for Hold {
    /// Nobody waits.
    fn default() -> Self {
        Hold::from(Instant::now())
    }
}

impl From<Instant> for Hold {
    fn from(until: Instant) -> Self {
        Hold(Arc::new(HoldState { until: Mutex::new(until), version: AtomicU64::new(0) }))
    }
}

/// What the guest of a socket is owed: something is lost that it believes to be durable, so that its next flush fails, and has told it.
/// `Clone` shares it.
///
/// A device tells each of its queues of a loss, and what a queue was told its guest hears. This here is for losses that happen while the guest
/// has no queue, of whatever server, and for those that no queue knows of.
#[derive(Clone, Debug, Default)]
pub struct Owed(Arc<OwedState>);

#[derive(Debug, Default)]
struct OwedState {
    owed: AtomicBool,
    /// Up to which loss of the device ([`Device::losses`](polypath_block::Device::losses)) the guest was told, is told by its queues, or is
    /// owed; one more, and zero before the first look.
    seen: AtomicU64,
}

impl Owed {
    /// Something is lost.
    pub fn owe(&self) {
        self.0.owed.store(true, Ordering::Relaxed);
    }

    /// Has the guest not been told yet?
    pub fn is_owed(&self) -> bool {
        self.0.owed.load(Ordering::Relaxed)
    }

    /// The guest is told now, if it has not been: whether it was to be. For servers of other kinds, which fail a flush then.
    pub fn tell(&self) -> bool {
        self.is_owed() && self.0.owed.swap(false, Ordering::Relaxed)
    }

    /// The device has lost something `losses` times: the guest is owed for those that nobody has seen since the first look.
    pub(crate) fn look(&self, losses: u64) {
        let before = self.follow(losses);
        if before != 0 && before <= losses {
            self.owe();
        }
    }

    /// As [`Owed::look`], where a queue tells the guest.
    pub(crate) fn follow(&self, losses: u64) -> u64 {
        self.0.seen.fetch_max(losses + 1, Ordering::Relaxed)
    }
}
