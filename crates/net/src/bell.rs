//! How another thread tells a poller "look again", awake or asleep.

use polypath_block::{Armed, Interest, Waits};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsRawFd, OwnedFd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// A flag that a poller looks at each turn (one relaxed load), and that ends its sleep.
///
/// Any number of threads ring; one answers. Rings may merge. What was stored before [`Bell::ring`] is seen after
/// [`Bell::answer`] returned `true`.
#[derive(Debug)]
pub struct Bell {
    rung: AtomicBool,
    asleep: AtomicBool,
    /// The owner has armed it since it last rose.
    armed: AtomicBool,
    /// A ringer has woken us (or is about to) by a write that was not read yet.
    owed: AtomicBool,
    event: OwnedFd,
    id: u64,
}

impl Bell {
    /// A silent bell.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new() -> io::Result<Bell> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let no = || AtomicBool::new(false);
        Ok(Bell { rung: no(), asleep: no(), armed: no(), owed: no(), event, id: Waits::unique() })
    }

    /// Rings. Costs a system call only when the owner sleeps.
    pub fn ring(&self) {
        // A swap, so that whoever answers sees what was stored before each of several rings, and not only before the last.
        self.rung.swap(true, Ordering::SeqCst);
        // Pairs with `arm`: either the sleeper's last look sees the flag, or the sleeper is seen here.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow by ones, and a full one wakes as well.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Has it rung since the last answer? The owner calls it each turn.
    #[inline]
    pub fn answer(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::SeqCst)
    }

    /// Has it rung since the last answer? As [`Bell::answer`], and it stays rung.
    #[inline]
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Names the descriptor that ends a sleep; [`Armed::Busy`] when it has rung already. The owner must call
    /// [`Bell::rise`] when it is awake again.
    pub fn arm(&self, waits: &mut Waits) -> Armed {
        self.armed.store(true, Ordering::Relaxed);
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.rung.load(Ordering::SeqCst) {
            self.rise();
            return Armed::Busy;
        }
        waits.interests.push(Interest { fd: self.event.as_raw_fd(), id: self.id, read: true, write: false });
        Armed::Sleep
    }

    /// The owner is awake. Cheap when it did not sleep, and no system call when it was not rung awake.
    #[inline]
    pub fn rise(&self) {
        if self.armed.load(Ordering::Relaxed) {
            self.wake_up();
        }
    }

    #[cold]
    fn wake_up(&self) {
        self.armed.store(false, Ordering::Relaxed);
        // Whoever took the flag away writes the descriptor, perhaps only after this read.
        if !self.asleep.swap(false, Ordering::SeqCst) {
            self.owed.store(true, Ordering::Relaxed);
        }
        if self.owed.load(Ordering::Relaxed) {
            let mut count = [0; 8];
            if rustix::io::read(&self.event, &mut count).is_ok() {
                self.owed.store(false, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn no_ring_is_lost_between_arm_and_sleep() {
        const RINGS: u64 = 20_000;
        let bell = Arc::new(Bell::new().unwrap());
        let told = Arc::new(AtomicU64::new(0));
        let ringer = std::thread::spawn({
            let (bell, told) = (bell.clone(), told.clone());
            move || {
                for n in 1..=RINGS {
                    told.store(n, Ordering::Relaxed);
                    bell.ring();
                }
            }
        });
        let mut waits = Waits::default();
        loop {
            bell.rise();
            if bell.answer() && told.load(Ordering::Relaxed) == RINGS {
                break;
            }
            waits.clear();
            if bell.arm(&mut waits) == Armed::Sleep {
                let mut fds = [PollFd::new(&bell.event, PollFlags::IN)];
                let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
                assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "slept through a ring");
            }
        }
        ringer.join().unwrap();
        assert!(!bell.answer(), "an answered bell is silent");
    }
}
