//! Who has heard of what was lost.
//!
//! A disk says once, by a flush that fails, that something written and answered may be lost, and the next flush succeeds. Of several clients
//! only one would hear it. So losses are counted, and each connection fails one flush of its own for those that it has not heard of.
//! A client that comes back after its connection broke is not known again: the next connection hears what the broken one has not.

use polypath::vhost_user_blk::Owed;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Losses of one export.
#[derive(Debug)]
pub(crate) struct Losses {
    /// Flushes that have failed in a way that loses what they were to save, but for those that the device counts itself; and what clients
    /// were owed from before.
    failed: AtomicU64,
    /// What connections that broke had heard of, at least; `u64::MAX` if none is left to be told.
    broken: AtomicU64,
    /// For whoever serves the disk next, and from whoever did before.
    owed: Owed,
    /// It is one of ours that is owed there, which is counted already.
    counted: AtomicBool,
}

impl Losses {
    pub(crate) fn new(owed: Owed) -> Losses {
        let (failed, broken) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        Losses { failed, broken, owed, counted: AtomicBool::new(false) }
    }

    /// A flush has failed like that.
    pub(crate) fn add(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, device: u64) -> u64 {
        self.failed.load(Ordering::Relaxed).saturating_add(device)
    }
}

/// What one connection has heard of.
#[derive(Debug)]
pub(crate) struct Heard(AtomicU64);

impl Heard {
    /// A new connection, of an export whose device has lost something `device` times.
    pub(crate) fn new(losses: &Losses, device: u64) -> Heard {
        Heard(AtomicU64::new(losses.count(device).min(losses.broken.load(Ordering::Relaxed))))
    }

    /// Is there something that it must be told now? It is told then.
    pub(crate) fn tell(&self, losses: &Losses, device: u64) -> bool {
        if losses.owed.tell() && !losses.counted.swap(false, Ordering::Relaxed) {
            // All who are connected hear of it.
            losses.add();
        }
        let now = losses.count(device);
        let news = self.0.fetch_max(now, Ordering::Relaxed) < now;
        if news {
            losses.broken.store(u64::MAX, Ordering::Relaxed);
        }
        news
    }

    /// The connection broke: whoever comes next may be the same client.
    pub(crate) fn hand_on(&self, losses: &Losses, device: u64) {
        let heard = self.0.load(Ordering::Relaxed);
        losses.broken.fetch_min(heard, Ordering::Relaxed);
        if heard < losses.count(device) {
            losses.counted.store(true, Ordering::Relaxed);
            losses.owed.owe();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_hears_of_a_loss_once() {
        let losses = Losses::new(Owed::default());
        let (one, two) = (Heard::new(&losses, 3), Heard::new(&losses, 3));
        assert!(!one.tell(&losses, 3) && !two.tell(&losses, 3), "what was before is nobody's");
        losses.add();
        assert!(one.tell(&losses, 3) && !one.tell(&losses, 3));
        assert!(two.tell(&losses, 3) && !two.tell(&losses, 3));
        assert!(one.tell(&losses, 4), "the device counts, too");
        assert!(!Heard::new(&losses, 4).tell(&losses, 4));
    }

    #[test]
    fn who_comes_after_a_connection_that_broke_hears_what_it_has_not() {
        let losses = Losses::new(Owed::default());
        Heard::new(&losses, 0).hand_on(&losses, 0);
        assert!(!Heard::new(&losses, 0).tell(&losses, 0), "nothing was lost");
        losses.add();
        assert!(Heard::new(&losses, 0).tell(&losses, 0));
        assert!(!Heard::new(&losses, 0).tell(&losses, 0), "somebody has heard it");
    }

    #[test]
    fn what_was_lost_before_is_heard_and_what_nobody_heard_is_handed_on() {
        let owed = Owed::default();
        owed.owe();
        let losses = Losses::new(owed.clone());
        let (one, two) = (Heard::new(&losses, 0), Heard::new(&losses, 0));
        assert!(one.tell(&losses, 0) && two.tell(&losses, 0) && !owed.is_owed());
        one.hand_on(&losses, 0);
        assert!(!owed.is_owed(), "it has heard all");
        two.hand_on(&losses, 1);
        assert!(owed.is_owed());
        assert!(one.tell(&losses, 1) && !one.tell(&losses, 1), "once");
        let next = Heard::new(&losses, 1);
        assert!(!next.tell(&losses, 1), "somebody has heard it");
    }
}
