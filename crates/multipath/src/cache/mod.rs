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
//! everything that was lost. The loss is reported when whoever asked has the answer: a flush that begins before that fails, too, for its
//! OK could be there first.
//!
//! A cache is *in doubt* while a path that led there shows another disk: whatever answers on the other paths may be another one as
//! well that has not said so yet, and may have been since before anybody knew. What it says OK to cleans nothing, so that every flush
//! goes out, until one that began after the doubt was over has succeeded. A cache that is clean but for a doubt is flushed if a path
//! leads there, and nobody waits for one while there are others: what is known to be dirty is waited for. Without any path it waits, as
//! every request does.
//!
//! A number belongs to one cache from the first path that leads there to the last one that goes, and is given again afterwards. What a path
//! acknowledges is about the cache that it led to when the change was sent: has that lost its power or its number since, the change is lost
//! in the moment in which it is acknowledged, and makes no other cache dirty.
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

/// A cache in a certain time: that in which something was sent to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SentTo {
    cache: u8,
    epoch: u64,
}

/// Caches that hold parts of a change which is not acknowledged yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    /// As bits.
    caches: u64,
    /// Those among them that were no more when the part completed.
    gone: u64,
    /// The epoch in which the first part completed.
    epoch: u64,
}

impl Written {
    /// What two parts of one change have written together.
    pub(crate) fn and(one: Option<Written>, other: Option<Written>) -> Option<Written> {
        match (one, other) {
            (Some(a), Some(b)) => {
                Some(Written { caches: a.caches | b.caches, gone: a.gone | b.gone, epoch: a.epoch.min(b.epoch) })
            }
            (a, b) => a.or(b),
        }
    }
}

/// The caches of a group, and the losses that wait to be reported.
#[derive(Debug)]
pub(crate) struct Caches {
    epoch: AtomicU64,
    list: Box<[Cache]>,
}

/// Losses that a queue has answered flushes with: for each cache, up to which one.
#[derive(Debug)]
pub(crate) struct Reports {
    seen: Box<[u64]>,
    any: bool,
}

impl Reports {
    pub(crate) fn new() -> Self {
        Reports { seen: vec![0; MAX_CACHES].into(), any: false }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.any
    }

    fn add(&mut self, index: usize, loss: u64) {
        self.any = true;
        self.seen[index] = self.seen[index].max(loss);
    }
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
    /// How often it was lost.
    losses: AtomicU64,
    /// Which of these lost its power last: no flush that succeeds elsewhere makes up for that.
    power_loss: AtomicU64,
    /// Up to which of these somebody was told, or nothing was lost after all.
    told: AtomicU64,
    /// Something may have been written before the group existed: flush once, but its loss breaks no promise of this group.
    assumed: AtomicBool,
    /// Paths that lead there and are not gone for good.
    members: AtomicU32,
    /// What was sent in an earlier epoch is not there: the number was given to this cache since, or it has lost its power.
    since: AtomicU64,
    /// Reasons to doubt who answers there.
    doubts: AtomicU32,
    /// Flushes that began in this epoch or before may have been answered by another disk.
    doubted_through: AtomicU64,
    /// When the last flush began that was answered by this one: another one is owed until that is later.
    believed: AtomicU64,
}

impl Caches {
    pub(crate) fn new() -> Self {
        let list = (0..MAX_CACHES).map(|_| Cache::default()).collect();
        Caches { epoch: AtomicU64::new(1), list }
    }

    /// Something is about to be sent to cache `index`.
    pub(crate) fn send_to(&self, index: u8) -> SentTo {
        SentTo { cache: index, epoch: self.epoch.load(SeqCst) }
    }

    /// A change, or a part of one, completed there and may be in the cache. [`Caches::acknowledge`] follows with what is returned.
    pub(crate) fn mark_dirty(&self, sent: SentTo) -> Written {
        let (cache, epoch) = (self.get(sent.cache), self.epoch.load(SeqCst));
        let bit = 1 << sent.cache;
        let is_gone = || sent.epoch < cache.since.load(SeqCst);
        if is_gone() {
            return Written { caches: bit, gone: bit, epoch };
        }
        if cache.dirty.load(SeqCst) < epoch {
            cache.dirty.fetch_max(epoch, SeqCst);
        }
        // Once more: whoever takes its power or its number away says so first, and looks for what is dirty afterwards.
        Written { caches: bit, gone: if is_gone() { bit } else { 0 }, epoch }
    }

    /// The change is acknowledged now. Should a cache have been lost since a part of it was written there, that loss may have been
    /// reported when nobody relied on this change yet: the next flush reports it once more.
    pub(crate) fn acknowledge(&self, written: Written) {
        let mut left = written.caches;
        while left != 0 {
            let bit = left & left.wrapping_neg();
            left ^= bit;
            let cache = self.get(bit.trailing_zeros() as u8);
            if written.gone & bit != 0 || cache.lost_through.load(SeqCst) >= written.epoch {
                cache.note_loss(true);
            }
        }
    }

    /// A flush begins, and covers everything that was marked dirty before. Ask [`Caches::dirty_mask`] and [`Caches::report_losses`]
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

    /// Must the flush reach its cache even if it has to wait for a path? Not if there is nothing but a doubt, nor if what it was to cover
    /// has been cleaned meanwhile.
    pub(crate) fn is_awaited(&self, flush: FlushTarget) -> bool {
        let cache = self.get(flush.cache);
        let clean = cache.clean.load(SeqCst);
        cache.dirty.load(SeqCst) > clean && clean < flush.epoch || cache.assumed.load(SeqCst)
    }

    /// Would the flush reach its cache because of a doubt, whatever else it is for?
    pub(crate) fn is_owed(&self, flush: FlushTarget) -> bool {
        self.get(flush.cache).owes_flush()
    }

    /// The flush of somebody succeeded there. False when part of what it was to cover had been lost with the power of the cache before: that
    /// must be reported to him.
    pub(crate) fn mark_clean(&self, flush: FlushTarget, reports: &mut Reports) -> bool {
        self.try_mark_clean(flush) || !self.abandon(flush, reports)
    }

    /// A flush succeeded there. False, and nothing is done, when part of what it was to cover had been lost with the power of the cache
    /// before. That is for others to report: nobody waits for the outcome of this one.
    pub(crate) fn try_mark_clean(&self, flush: FlushTarget) -> bool {
        let cache = self.get(flush.cache);
        // First: the loss that is lifted below is no later one.
        let losses = cache.losses.load(SeqCst);
        if flush.epoch <= cache.power_lost_through.load(SeqCst) {
            return false;
        }
        if !cache.is_believed(flush) {
            return true;
        }
        let began_before = flush.epoch <= cache.lost_through.load(SeqCst);
        let covers = flush.epoch >= cache.lost_dirty.load(SeqCst);
        if began_before && covers && cache.power_loss.load(SeqCst) <= cache.told.load(SeqCst) {
            // Its last path went, and this answer was on the way: nothing is lost.
            cache.told.fetch_max(losses, SeqCst);
        }
        cache.clean.fetch_max(flush.epoch, SeqCst);
        if flush.epoch > cache.lost_through.load(SeqCst) {
            cache.assumed.store(false, SeqCst);
        }
        // If a doubt comes up meanwhile, it is about a later epoch, and a flush is owed all the same.
        cache.believed.fetch_max(flush.epoch, SeqCst);
        true
    }

    /// Are there losses that nobody was told of? Whoever asks answers with them, and says so with [`Caches::set_told`] afterwards.
    pub(crate) fn report_losses(&self, reports: &mut Reports) -> bool {
        let mut any = false;
        for (index, cache) in self.list.iter().enumerate() {
            let losses = cache.losses.load(SeqCst);
            if losses > cache.told.load(SeqCst) {
                reports.add(index, losses);
                any = true;
            }
        }
        any
    }

    /// Whoever asked has been told of `reports`, which are no more after that.
    pub(crate) fn set_told(&self, reports: &mut Reports) {
        if !core::mem::take(&mut reports.any) {
            return;
        }
        for (cache, loss) in self.list.iter().zip(&mut reports.seen) {
            cache.told.fetch_max(core::mem::take(loss), SeqCst);
        }
    }

    /// Has the flush no cache to go to, because no path leads there any more or what it was to cover is lost?
    pub(crate) fn is_unreachable(&self, flush: FlushTarget) -> bool {
        let cache = self.get(flush.cache);
        cache.members.load(SeqCst) == 0 || flush.epoch <= cache.lost_through.load(SeqCst)
    }

    /// An unreachable flush is given up: true when something is lost that it was to cover. It must be reported then.
    pub(crate) fn abandon(&self, flush: FlushTarget, reports: &mut Reports) -> bool {
        let cache = self.get(flush.cache);
        let losses = cache.losses.load(SeqCst);
        let hit = flush.epoch <= cache.lost_through.load(SeqCst);
        if hit && flush.epoch >= cache.lost_dirty.load(SeqCst) {
            // It was to cover all that is lost: this is the report.
            reports.add(usize::from(flush.cache), losses);
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
            // In this order, see `mark_dirty`. What is lost completed after the last path of the former owner of this number had gone.
            cache.since.store(self.begin_flush() + 1, SeqCst);
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
            // There is nowhere to flush to, whatever is owed.
            cache.believed.fetch_max(self.begin_flush(), SeqCst);
        }
        cache.members.fetch_sub(1, SeqCst);
        lost
    }

    /// A path to cache `index` shows another disk: nobody knows who answers on the others. Until [`Caches::end_doubt`].
    pub(crate) fn begin_doubt(&self, index: u8) {
        let cache = self.get(index);
        cache.doubts.fetch_add(1, SeqCst);
        cache.doubted_through.fetch_max(self.begin_flush(), SeqCst);
    }

    /// That path shows this disk again, or is gone for good.
    pub(crate) fn end_doubt(&self, index: u8) {
        let cache = self.get(index);
        // In this order, see `is_believed`.
        cache.doubted_through.fetch_max(self.begin_flush(), SeqCst);
        cache.doubts.fetch_sub(1, SeqCst);
    }

    /// Cache `index` has lost its power, whether other paths still lead there or not. True when it held writes: they are lost.
    pub(crate) fn lose_power(&self, index: u8) -> bool {
        // In this order, see `mark_dirty`.
        self.get(index).since.store(self.begin_flush() + 1, SeqCst);
        self.get(index).assumed.store(false, SeqCst);
        self.lose(index, true)
    }

    fn lose(&self, index: u8, power: bool) -> bool {
        let cache = self.get(index);
        let dirty = cache.dirty.load(SeqCst);
        if dirty <= cache.clean.load(SeqCst) {
            return false;
        }
        // In this order, see `begin_flush`: a flush that begins after the new epoch finds the loss, one that began before it is hit.
        cache.lost_dirty.fetch_max(dirty, SeqCst);
        cache.note_loss(power);
        let through = self.begin_flush();
        if power {
            cache.power_lost_through.fetch_max(through, SeqCst);
        }
        cache.lost_through.fetch_max(through, SeqCst);
        // Last: a flush that finds nothing to wait for any more asks afterwards whether that is because it was lost.
        cache.clean.fetch_max(dirty, SeqCst);
        true
    }

    fn get(&self, index: u8) -> &Cache {
        &self.list[usize::from(index) % MAX_CACHES]
    }
}

impl Cache {
    /// It is lost once more. That it was power is known before that it was lost.
    fn note_loss(&self, power: bool) {
        if power {
            self.power_loss.fetch_max(self.losses.load(SeqCst) + 1, SeqCst);
        }
        self.losses.fetch_add(1, SeqCst);
    }

    fn wants_flush(&self) -> bool {
        self.holds_writes() || self.assumed.load(SeqCst) || self.owes_flush()
    }

    /// What was flushed may have gone to another disk. (If nothing was ever written, there is nothing to doubt.)
    fn owes_flush(&self) -> bool {
        self.believed.load(SeqCst) <= self.doubted_through.load(SeqCst) && self.dirty.load(SeqCst) > 0
    }

    /// Was it this disk that answered, as far as anybody knows? A doubt that ends counts in `doubts` until its epoch is noted: in this
    /// order, none is missed.
    fn is_believed(&self, flush: FlushTarget) -> bool {
        self.doubts.load(SeqCst) == 0 && flush.epoch > self.doubted_through.load(SeqCst)
    }

    fn holds_writes(&self) -> bool {
        self.dirty.load(SeqCst) > self.clean.load(SeqCst)
    }
}

#[cfg(test)]
mod tests;
