//! Which write caches hold something that a Flush must reach, over all reactors.
//!
//! Each domain has three numbers. `epoch` counts the flushes begun; a write that completes notes the epoch it sees in
//! `dirty`; a flush that succeeds moves `clean` up to the epoch in which it began. The domain is dirty while `dirty > clean`.
//! A write loads the epoch after it completed, a flush advances it before it is sent: if the write saw the flush's own epoch,
//! it had completed before the flush was sent, and the flush covers it. Two flushes at a time do not hide each other's dirt,
//! because only success cleans.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Most cache domains of a group at a time.
pub(crate) const MAX_DOMAINS: usize = 64;

#[derive(Debug)]
pub(crate) struct Domain {
    epoch: AtomicU64,
    dirty: AtomicU64,
    clean: AtomicU64,
    /// Flushes that began in this epoch or before were to cover something that is lost.
    lost: AtomicU64,
    /// Something may have been written before the group existed: flush once, but its loss is nobody's promise broken.
    assumed: AtomicBool,
    /// Paths that lead there and are not gone for good.
    members: AtomicU32,
}

impl Default for Domain {
    fn default() -> Self {
        Domain {
            epoch: AtomicU64::new(1),
            dirty: AtomicU64::new(0),
            clean: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            assumed: AtomicBool::new(false),
            members: AtomicU32::new(0),
        }
    }
}

impl Domain {
    /// A change completed there and may be in its cache.
    pub(crate) fn soil(&self) {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if self.dirty.load(Ordering::SeqCst) < epoch {
            self.dirty.fetch_max(epoch, Ordering::SeqCst);
        }
    }

    fn holds_writes(&self) -> bool {
        self.dirty.load(Ordering::SeqCst) > self.clean.load(Ordering::SeqCst)
    }

    fn needs_flush(&self) -> bool {
        self.holds_writes() || self.assumed.load(Ordering::SeqCst)
    }

    /// A flush begins; returns what to give to [`Domain::cleaned`].
    pub(crate) fn begin(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::SeqCst)
    }

    /// The flush that began at `epoch` succeeded.
    pub(crate) fn cleaned(&self, epoch: u64) {
        self.clean.fetch_max(epoch, Ordering::SeqCst);
        self.assumed.store(false, Ordering::SeqCst);
    }

    /// No path leads there any more: has the flush that began at `epoch` lost something it was to cover?
    pub(crate) fn forsake(&self, epoch: u64) -> bool {
        // A change may have completed there while the last path went: nobody will ever flush it.
        let lost = self.holds_writes() || epoch <= self.lost.load(Ordering::SeqCst);
        self.cleaned(epoch);
        lost
    }

    pub(crate) fn members(&self) -> u32 {
        self.members.load(Ordering::SeqCst)
    }
}

/// All domains of a group, and the error that waits to be reported.
#[derive(Debug)]
pub(crate) struct Domains {
    list: Box<[Domain]>,
    lost: AtomicBool,
}

impl Domains {
    pub(crate) fn new() -> Self {
        Domains { list: (0..MAX_DOMAINS).map(|_| Domain::default()).collect(), lost: AtomicBool::new(false) }
    }

    pub(crate) fn get(&self, index: u8) -> &Domain {
        &self.list[usize::from(index) % MAX_DOMAINS]
    }

    /// Domains that a flush must reach, as a bit mask.
    pub(crate) fn dirty_mask(&self) -> u64 {
        let bits = self.list.iter().enumerate().filter(|(_, d)| d.needs_flush());
        bits.fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// Takes the latched error, if there is one: it is reported once.
    pub(crate) fn take_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst) && self.lost.swap(false, Ordering::SeqCst)
    }

    /// A path leads to domain `index`. A domain with a write cache is taken for dirty until its first flush.
    pub(crate) fn join(&self, index: u8, write_cache: bool) {
        let domain = self.get(index);
        if domain.members.fetch_add(1, Ordering::SeqCst) == 0 && write_cache {
            domain.assumed.store(true, Ordering::SeqCst);
        }
    }

    /// A path to domain `index` is gone for good. True when it was the last and the cache held writes: the error is latched.
    pub(crate) fn leave(&self, index: u8) -> bool {
        let domain = self.get(index);
        if domain.members.fetch_sub(1, Ordering::SeqCst) != 1 {
            return false;
        }
        let lost = domain.holds_writes();
        domain.assumed.store(false, Ordering::SeqCst);
        domain.clean.fetch_max(domain.dirty.load(Ordering::SeqCst), Ordering::SeqCst);
        if lost {
            let epoch = domain.begin();
            domain.lost.fetch_max(epoch, Ordering::SeqCst);
            self.lost.store(true, Ordering::SeqCst);
        }
        lost
    }

    /// Latches the error: a change completed through a domain that nothing leads to any more.
    pub(crate) fn latch(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flush_begun_after_the_write_cleans() {
        let d = Domains::new();
        d.join(3, false);
        assert_eq!(d.dirty_mask(), 0);
        let early = d.get(3).begin();
        d.get(3).soil();
        d.get(3).cleaned(early);
        assert_eq!(d.dirty_mask(), 1 << 3, "a write after the flush began is still dirty");
        let (one, two) = (d.get(3).begin(), d.get(3).begin());
        assert_eq!(d.dirty_mask(), 1 << 3, "a flush under way cleans nothing");
        d.get(3).cleaned(two);
        d.get(3).cleaned(one);
        assert_eq!(d.dirty_mask(), 0);
    }

    #[test]
    fn the_last_path_of_a_dirty_cache_latches_once() {
        let d = Domains::new();
        d.join(0, true);
        d.join(0, true);
        assert_eq!(d.dirty_mask(), 1, "a cache of unknown past is flushed once");
        let e = d.get(0).begin();
        d.get(0).cleaned(e);
        d.get(0).soil();
        assert!(!d.leave(0) && !d.take_lost());
        assert!(d.leave(0));
        assert!(d.take_lost() && !d.take_lost());
        assert_eq!(d.dirty_mask(), 0);
        d.join(1, true);
        assert!(!d.leave(1), "what was only assumed breaks no promise");
    }

    #[test]
    fn a_flush_that_outlives_its_cache_knows_whether_it_lost_anything() {
        let d = Domains::new();
        d.join(2, true);
        let waiting = d.get(2).begin();
        assert!(!d.leave(2) && !d.get(2).forsake(waiting), "nothing but an assumption is gone");
        d.join(2, false);
        d.get(2).soil();
        let (one, two) = (d.get(2).begin(), d.get(2).begin());
        assert!(d.leave(2));
        let later = d.get(2).begin();
        assert!(d.get(2).forsake(one) && d.get(2).forsake(two) && !d.get(2).forsake(later));
        d.get(2).soil();
        let after = d.get(2).begin();
        assert!(d.get(2).forsake(after), "a change that completed as the last path went");
        assert_eq!(d.dirty_mask(), 0, "reported, and not for ever");
    }
}
