//! Which volatile write caches hold something that a Flush must reach, over all reactors.
//!
//! One epoch for the group counts the flushes begun. A change that completes notes the epoch it sees as the `dirty` of its cache; a
//! flush that succeeds moves `clean` up to the epoch in which it began. A cache is dirty while `dirty > clean`. A write loads the
//! epoch after it completed, a flush advances it before it is sent: if the write saw the flush's own epoch, it had completed before
//! the flush was sent, and the flush covers it. Two flushes at a time do not hide each other's work, because only success cleans,
//! and only up to where the flush began.
//!
//! A dirty cache is *lost* when nothing leads to it any more, or when a path to it comes back to one that has lost its power since:
//! flushes that began before the loss and were to reach it fail, and so does the first flush after it, unless one of those covered
//! everything that was lost.
//!
//! A cache is *in doubt* while a path that led there shows another disk: whatever answers on the other paths may be another one as
//! well that has not said so yet, and may have been since before anybody knew. What it says OK to proves nothing, so that every flush
//! goes out, until one that began after the doubt was over has succeeded.
//!
//! Joining, leaving, losing and doubting happen under the lock of the group; everything else is asked from any reactor at any time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Most caches of a group at a time; each has a bit in a mask.
pub(crate) const MAX_CACHES: usize = 64;

/// A flush that is to reach one cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlushTarget {
    /// Number of the cache.
    pub(crate) cache: u8,
    /// The epoch in which the flush began.
    pub(crate) epoch: u64,
}

/// Caches that hold parts of a change which is not acknowledged yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    /// As bits.
    caches: u64,
    /// The epoch in which the first part completed.
    epoch: u64,
}

impl Written {
    /// What two parts of one change have written together.
    pub(crate) fn and(one: Option<Written>, other: Option<Written>) -> Option<Written> {
        match (one, other) {
            (Some(a), Some(b)) => Some(Written { caches: a.caches | b.caches, epoch: a.epoch.min(b.epoch) }),
            (a, b) => a.or(b),
        }
    }
}

/// The caches of a group, and the losses that wait to be reported.
#[derive(Debug)]
pub(crate) struct Caches {
    epoch: AtomicU64,
    list: Box<[Cache]>,
    /// Caches that were lost and whose loss no flush has reported.
    lost: AtomicU64,
    /// Those among them that lost their power: no flush that succeeds elsewhere makes up for that.
    power_lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Cache {
    dirty: AtomicU64,
    clean: AtomicU64,
    /// Flushes that began in this epoch or before were to cover something that is lost.
    lost_through: AtomicU64,
    /// The same, as far as power was lost.
    power_lost_through: AtomicU64,
    /// A flush that began in this epoch or later was to cover everything that is lost.
    lost_dirty: AtomicU64,
    /// Something may have been written before the group existed: flush once, but its loss breaks no promise of this group.
    assumed: AtomicBool,
    /// Paths that lead there and are not gone for good.
    members: AtomicU32,
    /// Those among them that show another disk.
    doubts: AtomicU32,
    /// Flushes that began in this epoch or before may have been answered by another disk.
    doubted_through: AtomicU64,
}

impl Caches {
    pub(crate) fn new() -> Self {
        let list = (0..MAX_CACHES).map(|_| Cache::default()).collect();
        Caches { epoch: AtomicU64::new(1), list, lost: AtomicU64::new(0), power_lost: AtomicU64::new(0) }
    }

    /// A change, or a part of one, completed there and may be in the cache. [`Caches::acknowledge`] follows with what is returned.
    pub(crate) fn mark_dirty(&self, index: u8) -> Written {
        let (cache, epoch) = (self.get(index), self.epoch.load(SeqCst));
        if cache.dirty.load(SeqCst) < epoch {
            cache.dirty.fetch_max(epoch, SeqCst);
        }
        Written { caches: 1 << index, epoch }
    }

    /// The change is acknowledged now. Should a cache have been lost since a part of it was written there, that loss may have been
    /// reported when nobody relied on this change yet: the next flush reports it once more.
    pub(crate) fn acknowledge(&self, written: Written) {
        let mut left = written.caches;
        while left != 0 {
            let bit = left & left.wrapping_neg();
            left ^= bit;
            let cache = self.get(bit.trailing_zeros() as u8);
            if cache.lost_through.load(SeqCst) >= written.epoch {
                self.power_lost.fetch_or(bit, SeqCst);
                self.lost.fetch_or(bit, SeqCst);
            }
        }
    }

    /// A flush begins, and covers everything that was marked dirty before. Ask [`Caches::dirty_mask`] and [`Caches::take_lost`]
    /// afterwards, in this order: then a cache that is lost meanwhile is in one of them, or the target is [unreachable].
    ///
    /// [unreachable]: Caches::is_unreachable
    pub(crate) fn begin_flush(&self) -> u64 {
        self.epoch.fetch_add(1, SeqCst)
    }

    /// Caches that a flush must reach, as bits.
    pub(crate) fn dirty_mask(&self) -> u64 {
        let bits = self.list.iter().enumerate().filter(|(_, c)| c.wants_flush());
        bits.fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// Must a flush reach this one?
    pub(crate) fn is_dirty(&self, index: u8) -> bool {
        self.dirty_mask() & 1 << index != 0
    }

    /// The flush succeeded there. False when part of what it was to cover had been lost with the power of the cache before: that
    /// must be reported.
    pub(crate) fn mark_clean(&self, flush: FlushTarget) -> bool {
        let (cache, bit) = (self.get(flush.cache), 1 << flush.cache);
        if flush.epoch <= cache.power_lost_through.load(SeqCst) {
            return !self.abandon(flush);
        }
        if self.power_lost.load(SeqCst) & bit == 0 && flush.epoch >= cache.lost_dirty.load(SeqCst) {
            // Its last path went, and this answer was on the way: nothing is lost.
            self.lost.fetch_and(!bit, SeqCst);
        }
        cache.clean.fetch_max(flush.epoch, SeqCst);
        if cache.is_believed(flush) {
            cache.assumed.store(false, SeqCst);
            if !cache.is_believed(flush) {
                // A doubt came up, or was over, in between.
                cache.assumed.store(true, SeqCst);
            }
        }
        true
    }

    /// Takes the losses that nobody has reported, if there are any: whoever is told must report them.
    pub(crate) fn take_lost(&self) -> bool {
        if self.lost.load(SeqCst) == 0 {
            return false;
        }
        self.power_lost.store(0, SeqCst);
        self.lost.swap(0, SeqCst) != 0
    }

    /// Has the flush no cache to go to, because no path leads there any more or what it was to cover is lost?
    pub(crate) fn is_unreachable(&self, flush: FlushTarget) -> bool {
        let cache = self.get(flush.cache);
        cache.members.load(SeqCst) == 0 || flush.epoch <= cache.lost_through.load(SeqCst)
    }

    /// An unreachable flush is given up: true when something is lost that it was to cover. It must be reported then.
    pub(crate) fn abandon(&self, flush: FlushTarget) -> bool {
        let cache = self.get(flush.cache);
        let hit = flush.epoch <= cache.lost_through.load(SeqCst);
        if hit && flush.epoch >= cache.lost_dirty.load(SeqCst) {
            // It was to cover all that is lost: this is the report.
            self.power_lost.fetch_and(!(1 << flush.cache), SeqCst);
            self.lost.fetch_and(!(1 << flush.cache), SeqCst);
        }
        // A change may have completed there after the last path went: nobody will ever flush it.
        let late = cache.members.load(SeqCst) == 0 && cache.holds_writes();
        if late {
            cache.clean.fetch_max(flush.epoch, SeqCst);
        }
        hit || late
    }

    /// Number of paths that lead there.
    pub(crate) fn members(&self, index: u8) -> u32 {
        self.get(index).members.load(SeqCst)
    }

    /// A path leads to cache `index`. A volatile one is taken for dirty until its first flush.
    pub(crate) fn join(&self, index: u8, write_cache: bool) {
        let cache = self.get(index);
        if cache.members.load(SeqCst) == 0 {
            // What completed after the last path of the former owner of this number had gone.
            self.lose(index, false);
            cache.assumed.store(write_cache, SeqCst);
        }
        cache.members.fetch_add(1, SeqCst);
    }

    /// A path to cache `index` is gone for good. True when it was the last one and the cache held writes: they are lost.
    pub(crate) fn leave(&self, index: u8) -> bool {
        let cache = self.get(index);
        let mut lost = false;
        if cache.members.load(SeqCst) == 1 {
            lost = self.lose(index, false);
            cache.assumed.store(false, SeqCst);
        }
        cache.members.fetch_sub(1, SeqCst);
        lost
    }

    /// A path to cache `index` shows another disk: nobody knows who answers on the others. Until [`Caches::end_doubt`].
    pub(crate) fn begin_doubt(&self, index: u8) {
        self.get(index).doubts.fetch_add(1, SeqCst);
    }

    /// That path shows this disk again, or is gone for good.
    pub(crate) fn end_doubt(&self, index: u8) {
        let cache = self.get(index);
        // In this order, see `mark_clean`: whoever has forgotten what was assumed finds out that it was not to.
        cache.doubted_through.fetch_max(self.begin_flush(), SeqCst);
        cache.assumed.store(true, SeqCst);
        cache.doubts.fetch_sub(1, SeqCst);
    }

    /// Cache `index` has lost its power, whether other paths still lead there or not. True when it held writes: they are lost.
    pub(crate) fn lose_power(&self, index: u8) -> bool {
        self.get(index).assumed.store(false, SeqCst);
        self.lose(index, true)
    }

    fn lose(&self, index: u8, power: bool) -> bool {
        let (cache, bit) = (self.get(index), 1 << index);
        let dirty = cache.dirty.load(SeqCst);
        if dirty <= cache.clean.load(SeqCst) {
            return false;
        }
        // In this order, see `begin_flush`: a flush that begins after the new epoch finds the bit, one that began before it is hit.
        cache.lost_dirty.fetch_max(dirty, SeqCst);
        if power {
            self.power_lost.fetch_or(bit, SeqCst);
        }
        self.lost.fetch_or(bit, SeqCst);
        let through = self.begin_flush();
        if power {
            cache.power_lost_through.fetch_max(through, SeqCst);
        }
        cache.lost_through.fetch_max(through, SeqCst);
        cache.clean.fetch_max(dirty, SeqCst);
        true
    }

    fn get(&self, index: u8) -> &Cache {
        &self.list[usize::from(index) % MAX_CACHES]
    }
}

impl Cache {
    fn wants_flush(&self) -> bool {
        self.holds_writes() || self.assumed.load(SeqCst) || self.doubts.load(SeqCst) > 0
    }

    /// Does the answer to a flush say anything about what is there now?
    fn is_believed(&self, flush: FlushTarget) -> bool {
        let past = self.lost_through.load(SeqCst).max(self.doubted_through.load(SeqCst));
        flush.epoch > past && self.doubts.load(SeqCst) == 0
    }

    fn holds_writes(&self) -> bool {
        self.dirty.load(SeqCst) > self.clean.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush(caches: &Caches, cache: u8) -> FlushTarget {
        FlushTarget { cache, epoch: caches.begin_flush() }
    }

    #[test]
    fn only_a_flush_begun_after_the_write_cleans() {
        let c = Caches::new();
        c.join(3, false);
        assert_eq!(c.dirty_mask(), 0);
        let early = flush(&c, 3);
        c.mark_dirty(3);
        assert!(c.mark_clean(early));
        assert_eq!(c.dirty_mask(), 1 << 3, "a write after the flush began is still dirty");
        assert!(c.is_dirty(3) && !c.is_dirty(2) && !c.is_dirty(4));
        let (one, two) = (flush(&c, 3), flush(&c, 3));
        assert_eq!(c.dirty_mask(), 1 << 3, "a flush under way cleans nothing");
        assert!(c.mark_clean(two) && c.mark_clean(one));
        assert_eq!(c.dirty_mask(), 0);
    }

    #[test]
    fn the_last_path_of_a_dirty_cache_is_reported_once() {
        let c = Caches::new();
        c.join(0, true);
        c.join(0, true);
        assert_eq!(c.dirty_mask(), 1, "a cache of unknown past is flushed once");
        assert!(c.mark_clean(flush(&c, 0)));
        c.mark_dirty(0);
        assert!(!c.leave(0) && !c.take_lost());
        assert!(c.leave(0));
        assert!(c.take_lost() && !c.take_lost());
        assert_eq!(c.dirty_mask(), 0);
        c.join(1, true);
        assert!(!c.leave(1), "what was only assumed breaks no promise");
        assert_eq!(c.dirty_mask(), 0, "nothing is left to be flushed");
    }

    #[test]
    fn a_second_path_assumes_nothing_about_a_cache_that_is_in_use() {
        let c = Caches::new();
        c.join(0, true);
        assert!(c.mark_clean(flush(&c, 0)));
        c.join(0, true);
        assert_eq!((c.dirty_mask(), c.members(0)), (0, 2));
    }

    #[test]
    fn a_flush_that_outlives_its_cache_knows_whether_it_lost_anything() {
        let c = Caches::new();
        c.join(2, true);
        let waiting = flush(&c, 2);
        assert!(!c.is_unreachable(waiting));
        assert!(!c.leave(2) && c.is_unreachable(waiting) && !c.abandon(waiting), "nothing but an assumption is gone");
        c.join(2, false);
        c.mark_dirty(2);
        let (one, two) = (flush(&c, 2), flush(&c, 2));
        assert!(c.leave(2));
        let later = flush(&c, 2);
        assert!(c.abandon(one) && c.abandon(two) && !c.abandon(later));
        assert!(!c.take_lost(), "they have reported it");
        c.mark_dirty(2);
        let after = flush(&c, 2);
        assert!(c.abandon(after), "a change that completed as the last path went");
        assert_eq!(c.dirty_mask(), 0, "reported, and not for ever");
    }

    #[test]
    fn a_flush_reports_only_what_it_was_to_cover() {
        let c = Caches::new();
        c.join(0, false);
        c.mark_dirty(0);
        let early = flush(&c, 0);
        c.mark_dirty(0);
        assert!(c.leave(0));
        assert!(c.abandon(early) && c.take_lost(), "the second write is for the next flush to report");
        // Neither does the report of one cache stand for another.
        (0..2).for_each(|i| c.join(i, false));
        c.mark_dirty(0);
        let zero = flush(&c, 0);
        c.mark_dirty(1);
        assert!(c.leave(1) && c.leave(0));
        assert!(c.abandon(zero) && c.take_lost() && !c.take_lost());
    }

    #[test]
    fn an_answer_that_was_on_the_way_as_the_last_path_went_makes_up_for_the_loss() {
        for i in [0, 5, 63] {
            let c = Caches::new();
            c.join(i, false);
            c.mark_dirty(i);
            let early = flush(&c, i);
            assert!(c.leave(i) && c.mark_clean(early) && !c.take_lost(), "it covered everything");
            c.join(i, false);
            c.mark_dirty(i);
            let early = flush(&c, i);
            c.mark_dirty(i);
            assert!(c.leave(i) && c.mark_clean(early) && c.take_lost(), "it did not cover the second write");
            // Nor does it say anything about what has the number now.
            c.join(i, true);
            assert!(c.mark_clean(early));
            assert_eq!(c.dirty_mask(), 1 << i);
        }
    }

    #[test]
    fn a_loss_is_reported_again_for_a_change_that_was_acknowledged_after_the_report() {
        let c = Caches::new();
        (0..2).for_each(|i| c.join(i, false));
        let unharmed = c.mark_dirty(1);
        let early = Written::and(None, Some(c.mark_dirty(0)));
        assert!(c.lose_power(0) && c.take_lost(), "reported before the change was acknowledged");
        let late = c.mark_dirty(0);
        c.acknowledge(unharmed);
        c.acknowledge(late);
        assert!(!c.take_lost(), "what was written after the loss is there");
        c.acknowledge(Written::and(early, Some(late)).unwrap());
        assert!(c.take_lost() && !c.take_lost(), "the first part is gone");
    }

    #[test]
    fn a_change_acknowledged_late_reports_the_loss_of_each_of_its_own_caches_and_of_no_other() {
        for (mine, other) in [(0, 1), (1, 0), (4, 5), (63, 62)] {
            let c = Caches::new();
            [mine, other].iter().for_each(|&i| c.join(i, false));
            let change = c.mark_dirty(mine);
            c.mark_dirty(other);
            assert!(c.lose_power(other) && c.take_lost());
            c.acknowledge(change);
            assert!(!c.take_lost(), "{mine}: it was never in {other}");
            let parts = Written::and(Some(c.mark_dirty(mine)), Some(c.mark_dirty(other)));
            assert!(c.lose_power(mine) && c.take_lost());
            c.acknowledge(parts.unwrap());
            assert!(c.take_lost() && !c.take_lost(), "{mine}: one of its parts was there");
        }
    }

    #[test]
    fn nothing_makes_up_for_a_loss_of_power() {
        let c = Caches::new();
        (0..2).for_each(|_| c.join(0, false));
        c.join(1, true);
        assert!(!c.lose_power(0) && !c.lose_power(1) && c.dirty_mask() == 0, "nothing that this group has promised");
        c.mark_dirty(0);
        let (one, two) = (flush(&c, 0), flush(&c, 0));
        assert!(c.lose_power(0) && !c.leave(0) && !c.lose_power(0), "once");
        assert!(c.is_unreachable(one));
        assert!(!c.mark_clean(one) && !c.take_lost(), "the answer of the other path is no comfort; this is the report");
        assert!(!c.mark_clean(two), "this one was to cover it too");
        let later = flush(&c, 0);
        assert!(!c.is_unreachable(later) && c.mark_clean(later));
        c.mark_dirty(0);
        let early = flush(&c, 0);
        c.mark_dirty(0);
        assert!(c.lose_power(0) && !c.mark_clean(early) && c.take_lost() && !c.take_lost());
        // A loss that was taken leaves nothing behind.
        c.mark_dirty(0);
        let answered = flush(&c, 0);
        assert!(c.leave(0) && c.mark_clean(answered) && !c.take_lost());
    }

    #[test]
    fn the_report_of_a_loss_of_power_settles_that_loss_and_no_other() {
        for (told, untold) in [(0, 1), (5, 4)] {
            let both = || {
                let c = Caches::new();
                for i in [told, untold] {
                    c.join(i, false);
                    c.mark_dirty(i);
                }
                c
            };
            let c = both();
            let covered = flush(&c, told);
            assert!(c.lose_power(told) && c.abandon(covered));
            // The next loss of the same cache is one that an answer on the way makes up for.
            c.mark_dirty(told);
            let answered = flush(&c, told);
            assert!(c.leave(told) && c.mark_clean(answered) && !c.take_lost(), "{told}");
            let c = both();
            let covered = flush(&c, told);
            assert!(c.lose_power(told) && c.lose_power(untold) && c.abandon(covered));
            // Nobody has been told of the other one, and a flush of what came after it is no comfort.
            c.mark_dirty(untold);
            assert!(c.mark_clean(flush(&c, untold)) && c.take_lost(), "{untold}");
        }
    }

    #[test]
    fn a_number_that_is_given_again_brings_its_losses_to_light() {
        let c = Caches::new();
        c.join(5, false);
        c.mark_dirty(5);
        let waiting = flush(&c, 5);
        assert!(c.leave(5) && c.take_lost());
        // A late acknowledgement, and then another cache under the same number.
        c.mark_dirty(5);
        c.join(5, true);
        assert!(c.take_lost());
        assert!(c.is_unreachable(waiting) && c.abandon(waiting), "what is there now is not what it was to reach");
        assert_eq!(c.dirty_mask(), 1 << 5, "unknown past");
        assert!(!c.is_unreachable(flush(&c, 5)));
    }

    #[test]
    fn nothing_cleans_a_cache_in_doubt() {
        let c = Caches::new();
        [0, 0, 1].iter().for_each(|&i| c.join(i, false));
        assert_eq!(c.dirty_mask(), 0);
        let early = flush(&c, 0);
        c.begin_doubt(0);
        assert_eq!(c.dirty_mask(), 1, "who answered the flushes before, too?");
        c.begin_doubt(0);
        c.mark_dirty(0);
        assert!(c.mark_clean(early) && c.mark_clean(flush(&c, 0)));
        assert_eq!(c.dirty_mask(), 1);
        c.end_doubt(0);
        assert!(c.mark_clean(flush(&c, 0)));
        assert_eq!(c.dirty_mask(), 1, "another path shows another disk still");
        let during = flush(&c, 0);
        c.end_doubt(0);
        assert_eq!(c.dirty_mask(), 1);
        assert!(c.mark_clean(during));
        assert_eq!(c.dirty_mask(), 1, "answered by nobody knows whom");
        assert!(c.mark_clean(flush(&c, 0)));
        assert_eq!(c.dirty_mask(), 0);
        // What was only doubted breaks no promise.
        c.begin_doubt(0);
        assert!(!c.lose_power(0) && c.dirty_mask() == 1, "a new cache, and the same doubt");
        c.end_doubt(0);
        assert!(!c.leave(0) && !c.leave(0) && c.dirty_mask() == 0);
    }

    #[test]
    fn whatever_reactors_do_at_a_time_no_flush_that_began_in_doubt_cleans() {
        for _ in 0..2000 {
            let c = Caches::new();
            c.join(0, true);
            let early = flush(&c, 0);
            std::thread::scope(|s| {
                s.spawn(|| {
                    c.begin_doubt(0);
                    c.end_doubt(0);
                });
                s.spawn(|| assert!(c.mark_clean(early)));
            });
            assert_eq!(c.dirty_mask(), 1);
        }
    }

    #[test]
    fn whatever_reactors_do_at_a_time_no_write_that_is_lost_is_covered_by_a_flush_that_says_ok() {
        use std::sync::atomic::AtomicU32 as Count;
        // One thread loses the cache; another flushes: one of them, or the flush after, must report it.
        for _ in 0..2000 {
            let c = Caches::new();
            c.join(0, false);
            c.join(1, false);
            c.mark_dirty(0);
            let told = Count::new(0);
            std::thread::scope(|s| {
                s.spawn(|| assert!(c.leave(0)));
                s.spawn(|| {
                    let epoch = c.begin_flush();
                    let mask = c.dirty_mask();
                    let target = FlushTarget { cache: 0, epoch };
                    if c.take_lost() {
                        told.fetch_add(1, SeqCst);
                    } else if mask & 1 != 0 {
                        while !c.is_unreachable(target) {
                            std::hint::spin_loop();
                        }
                        assert!(c.abandon(target), "it was to cover the write, and nothing flushed it");
                        told.fetch_add(1, SeqCst);
                    } else {
                        panic!("neither dirty nor lost");
                    }
                });
            });
            assert_eq!(told.load(SeqCst), 1);
        }
    }
}
