//! What is known of a stranger who shares eventfds with us: how long calls on them take.
//!
//! Whoever signals or reads an eventfd runs through all that wait for it, with its lock held: a million watches of epoll instances take
//! 100 ms. The stranger pays for hanging them there once, we with every call. So each call is timed. The clock on the wall says that some call
//! took long, or that we were not run meanwhile, which happens on a busy machine; from then on the processor's time is asked, which costs two
//! system calls (0.4 microseconds, those of the wall 0.05). It decides.

use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicUsize, Ordering};

/// Longest time that a call may take, in nanoseconds: ten thousand may wait for an eventfd, a thousand times as many as anybody has use for.
const PATIENCE: i64 = 500_000;
/// How much time calls that take longer may take together, in nanoseconds, and how much of the wall's time pays it back. A virtual processor
/// that is taken away for a moment is charged to whoever was running.
const BUDGET: i64 = 20_000_000;
const PAID_BACK: i64 = 1000;

/// No call has taken long.
const QUICK: u8 = 0;
/// One may have.
const DOUBTED: u8 = 1;
/// One has.
const SLOW: u8 = 2;

/// One stranger, whatever eventfds we share with him: what he does with one he can do with all. Knows how many threads signal and read them
/// instead of us.
#[derive(Debug)]
pub struct Peer {
    /// Grows only.
    pace: AtomicU8,
    /// When all that long calls took is paid back, in nanoseconds.
    paid_back_at: AtomicI64,
    helpers: AtomicUsize,
    most_helpers: usize,
}

impl Peer {
    /// One who may have `most_helpers` threads at a time.
    pub fn new(most_helpers: usize) -> Arc<Peer> {
        let (pace, paid_back_at) = (AtomicU8::new(QUICK), AtomicI64::new(0));
        Arc::new(Peer { pace, paid_back_at, helpers: AtomicUsize::new(0), most_helpers })
    }

    /// Has a call taken long?
    #[inline]
    pub(crate) fn is_slow(&self) -> bool {
        self.pace.load(Ordering::Relaxed) == SLOW
    }

    /// Makes a call on one of his eventfds.
    #[inline]
    pub(crate) fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        if self.pace.load(Ordering::Relaxed) != QUICK {
            return self.judged(call);
        }
        let begun = nanoseconds(ClockId::Monotonic);
        let outcome = call();
        if nanoseconds(ClockId::Monotonic) - begun > PATIENCE {
            let _ = self.pace.compare_exchange(QUICK, DOUBTED, Ordering::Relaxed, Ordering::Relaxed);
        }
        outcome
    }

    /// As [`Peer::timed`], by the processor's time.
    #[cold]
    pub(crate) fn judged<T>(&self, call: impl FnOnce() -> T) -> T {
        let begun = nanoseconds(ClockId::ThreadCPUTime);
        let outcome = call();
        let took = nanoseconds(ClockId::ThreadCPUTime) - begun;
        if took > PATIENCE {
            self.took_long(took);
        }
        outcome
    }

    /// As [`Peer::judged`], if there is anything left to find out.
    pub(crate) fn try_out(&self, call: impl FnOnce()) {
        if !self.is_slow() {
            self.judged(call);
        }
    }

    #[cold]
    fn took_long(&self, took: i64) {
        let now = nanoseconds(ClockId::Monotonic);
        let paid_back_at = now.max(self.paid_back_at.load(Ordering::Relaxed)) + took * PAID_BACK;
        self.paid_back_at.store(paid_back_at, Ordering::Relaxed);
        if paid_back_at - now > BUDGET * PAID_BACK && self.pace.swap(SLOW, Ordering::Relaxed) != SLOW {
            tracing::warn!("many wait for an eventfd of a peer; threads signal and read all that it has from now on");
        }
    }

    /// Room for one thread more, if there is any.
    pub(crate) fn place(self: &Arc<Peer>) -> Option<Place> {
        let more = |n: usize| (n < self.most_helpers).then_some(n + 1);
        self.helpers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Place(self.clone()))
    }
}

/// Counts one of a peer's threads, as long as it is there.
#[derive(Debug)]
pub(crate) struct Place(Arc<Peer>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.helpers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn work(milliseconds: u64) {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(milliseconds) {}
    }

    #[test]
    fn who_is_not_run_for_a_while_is_not_slow() {
        let peer = Peer::new(1);
        for _ in 0..3 {
            peer.timed(|| std::thread::sleep(Duration::from_millis(50)));
        }
        assert!(!peer.is_slow());
        peer.timed(|| work(500));
        assert!(peer.is_slow());
        peer.timed(|| ());
        assert!(peer.is_slow(), "for ever");
    }

    #[test]
    fn a_call_that_is_a_little_late_is_forgiven_and_many_are_not() {
        let peer = Peer::new(1);
        peer.judged(|| work(2));
        assert!(!peer.is_slow());
        (0..1000).for_each(|_| peer.judged(|| work(2)));
        assert!(peer.is_slow());
    }

    #[test]
    fn threads_are_counted() {
        let peer = Peer::new(2);
        let places = [peer.place(), peer.place()];
        assert!(places.iter().all(Option::is_some) && peer.place().is_none());
        assert!(Peer::new(1).place().is_some(), "those of others are theirs");
        drop(places);
        assert!(peer.place().is_some());
    }
}
