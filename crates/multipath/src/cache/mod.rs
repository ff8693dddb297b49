//! Which volatile write caches hold something that a Flush must reach, over all reactors, and which losses a Flush must report.
//!
//! One epoch for the group counts the flushes begun. A change that completes notes the epoch it sees as the `dirty` of its cache; a
//! flush that succeeds moves `clean` up to the epoch in which it began. A cache is dirty while `dirty > clean`. A write loads the
//! epoch after it completed, a flush advances it before it is sent: if the write saw the flush's own epoch, it had completed before
//! the flush was sent, and the flush covers it. Two flushes at a time do not hide each other's work, because only success cleans,
//! and only up to where the flush began.
//!
//! A dirty cache is *lost* when nothing leads to it any more, or when a path to it comes back to one that has lost its power since. Losses
//! are counted, for the group as a whole: a flush is of the disk, not of a cache. Each queue knows up to which loss its user has been
//! told, and a flush of that queue fails if there is one beyond what was known when it began ([`Caches::has_untold_loss`]). It is told of
//! them by that, if it was to cover all that was lost: one that began before the last lost change was acknowledged cannot stand for the
//! flush that was to cover that change. That is all there is to a report: where the parts of the flush went, and how they ended, has no
//! say in it.
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

use crate::selector::Slots as Bits;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Most caches of a group at a time; each has a bit in a mask.
pub(crate) const MAX_CACHES: usize = 64;

/// When a flush began, and what its user knew then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Began {
    /// The epoch in which it began.
    pub(crate) epoch: u64,
    /// Up to which loss its user had been told.
    pub(crate) told: u64,
}

/// A flush that is to reach one cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlushTarget {
    /// Number of the cache.
    pub(crate) cache: u8,
    pub(crate) began: Began,
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
    /// Those among them that were no more when that was last looked at.
    gone: u64,
    /// The epoch in which it was.
    looked: u64,
}

/// The caches of a group, and the losses that wait to be reported.
#[derive(Debug)]
pub(crate) struct Caches {
    epoch: AtomicU64,
    /// How many losses there were.
    losses: AtomicU64,
    /// A flush that began in this epoch or later was to cover everything that was lost.
    lost_through: AtomicU64,
    /// Up to which loss the user of any queue has been told: what that of a new queue begins with.
    told: AtomicU64,
    /// Grows with everything that a flush which waits may want to hear: a cache was cleaned, or something was lost.
    news: AtomicU64,
    list: Box<[Cache]>,
}

#[derive(Debug, Default)]
struct Cache {
    dirty: AtomicU64,
    clean: AtomicU64,
    /// Something may have been written before the group existed: a flush is owed that began in this epoch or later. Its loss breaks no
    /// promise of this group.
    assumed: AtomicU64,
    /// Paths that lead there and are not gone for good.
    members: AtomicU32,
    /// What was sent in an earlier epoch is not there: the number was given to this cache since, or it has lost its power. Known before
    /// the loss is counted.
    since: AtomicU64,
    /// The same for flushes: what one that began earlier was to reach is no more. Known after the loss was counted.
    over: AtomicU64,
    /// Reasons to doubt who answers there.
    doubts: AtomicU32,
    /// Flushes that began in this epoch or before may have been answered by another disk.
    doubted_through: AtomicU64,
    /// When the last flush began that was answered by this one: another one is owed until that is later.
    believed: AtomicU64,
}

impl Caches {
    pub(crate) fn new() -> Self {
        Caches {
            epoch: AtomicU64::new(1),
            losses: AtomicU64::new(0),
            lost_through: AtomicU64::new(0),
            told: AtomicU64::new(0),
            news: AtomicU64::new(0),
            list: (0..MAX_CACHES).map(|_| Cache::default()).collect(),
        }
    }

    /// Something is about to be sent to cache `index`.
    pub(crate) fn send_to(&self, index: u8) -> SentTo {
        SentTo { cache: index, epoch: self.epoch.load(SeqCst) }
    }

    /// A change, or a part of one, completed there and may be in the cache. [`Caches::acknowledge`] follows with what is returned.
    pub(crate) fn mark_dirty(&self, sent: SentTo) -> Written {
        let (cache, looked) = (self.get(sent.cache), self.epoch.load(SeqCst));
        let bit = 1 << sent.cache;
        if !cache.is_gone(sent.epoch) {
            cache.mark_dirty(looked);
        }
        // Once more: whoever takes its power or its number away says so first, and looks for what is dirty afterwards.
        Written { caches: bit, gone: if cache.is_gone(sent.epoch) { bit } else { 0 }, looked }
    }

    /// What two parts of one change have written together.
    pub(crate) fn together(&self, one: Option<Written>, other: Option<Written>) -> Option<Written> {
        let (Some(a), Some(b)) = (one, other) else { return one.or(other) };
        let looked = self.epoch.load(SeqCst);
        Some(Written { caches: a.caches | b.caches, gone: self.gone_of(a) | self.gone_of(b), looked })
    }

    /// The change is acknowledged now: what it has written is to be covered by flushes that begin from here on.
    pub(crate) fn acknowledge(&self, written: Written) {
        let epoch = self.epoch.load(SeqCst);
        for cache in Bits(written.caches) {
            // If it is clean, what this change has written there was flushed already.
            if self.list[cache].holds_writes() {
                self.list[cache].mark_dirty(epoch);
            }
        }
        // Afterwards, for the same reason as above.
        if self.gone_of(written) != 0 {
            self.count_loss(epoch);
        }
    }

    /// Of those that were written to: the ones that are no more.
    fn gone_of(&self, written: Written) -> u64 {
        let gone = Bits(written.caches).filter(|&cache| self.list[cache].is_gone(written.looked));
        gone.fold(written.gone, |mask, cache| mask | 1 << cache)
    }

    /// A flush begins, and covers everything that was marked dirty before. Ask [`Caches::dirty_mask`] afterwards: a cache that is lost
    /// meanwhile is in it, or its loss is counted.
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
        self.get(index).wants_flush()
    }

    /// Must the flush reach its cache even if it has to wait for a path? Not if there is nothing but a doubt, nor if what it was to cover
    /// has been cleaned meanwhile.
    pub(crate) fn is_awaited(&self, flush: FlushTarget) -> bool {
        let cache = self.get(flush.cache);
        cache.clean.load(SeqCst) < flush.began.epoch && (cache.holds_writes() || cache.is_assumed())
    }

    /// Would the flush reach its cache because of a doubt, whatever else it is for?
    pub(crate) fn is_owed(&self, flush: FlushTarget) -> bool {
        self.get(flush.cache).owes_flush()
    }

    /// Has the flush no cache to go to, because no path leads there any more or what it was to cover is lost? A loss is counted by then.
    pub(crate) fn is_unreachable(&self, flush: FlushTarget) -> bool {
        let cache = self.get(flush.cache);
        cache.members.load(SeqCst) == 0 || flush.began.epoch < cache.over.load(SeqCst)
    }

    /// A flush succeeded there.
    pub(crate) fn mark_clean(&self, flush: FlushTarget) {
        let (cache, epoch) = (self.get(flush.cache), flush.began.epoch);
        // What answered was another cache, or this one before it lost its power; or nobody knows who it was.
        if cache.is_gone(epoch) || !cache.is_believed(epoch) {
            return;
        }
        cache.clean.fetch_max(epoch, SeqCst);
        // If a doubt comes up meanwhile, it is about a later epoch, and a flush is owed all the same.
        cache.believed.fetch_max(epoch, SeqCst);
        self.news.fetch_add(1, SeqCst);
    }

    /// How many losses there were.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(SeqCst)
    }

    /// Up to which loss the user of a new queue needs not to be told.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(SeqCst)
    }

    /// The user of a queue has been told of losses up to `loss`.
    pub(crate) fn set_told(&self, loss: u64) {
        self.told.fetch_max(loss, SeqCst);
    }

    /// Is there a loss that the user did not know of when the flush began? It must not succeed then, wherever it went.
    pub(crate) fn has_untold_loss(&self, began: Began) -> bool {
        self.losses.load(SeqCst) > began.told
    }

    /// The flush fails because of that. Up to which loss its user has been told when he has the answer.
    pub(crate) fn tells(&self, began: Began) -> u64 {
        // In this order, see `count_loss`.
        let losses = self.losses.load(SeqCst);
        if began.epoch >= self.lost_through.load(SeqCst) { losses } else { began.told }
    }

    /// Grows with everything that a flush which waits may want to hear.
    pub(crate) fn news(&self) -> u64 {
        self.news.load(SeqCst)
    }

    /// Number of paths that lead there.
    pub(crate) fn members(&self, index: u8) -> u32 {
        self.get(index).members.load(SeqCst)
    }

    /// A path leads to cache `index`. A volatile one is taken for dirty until its first flush.
    pub(crate) fn join(&self, index: u8, write_cache: bool) {
        let cache = self.get(index);
        if cache.members.load(SeqCst) == 0 {
            let since = self.begin_flush() + 1;
            cache.since.store(since, SeqCst);
            cache.over.store(since, SeqCst);
            cache.assumed.store(if write_cache { since } else { 0 }, SeqCst);
        }
        cache.members.fetch_add(1, SeqCst);
    }

    /// A path to cache `index` is gone for good. True when it was the last one and the cache held writes: they are lost.
    pub(crate) fn leave(&self, index: u8) -> bool {
        let cache = self.get(index);
        let last = cache.members.load(SeqCst) == 1;
        let lost = last && self.lose(index);
        if last {
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

    /// Whatever cache `index` holds is lost: it has lost its power, whether other paths still lead there or not, or the last one goes. True
    /// when it held writes.
    pub(crate) fn lose(&self, index: u8) -> bool {
        let cache = self.get(index);
        // First: who marks something dirty after that counts the loss himself, and who marked it before is seen below.
        let since = self.begin_flush() + 1;
        cache.since.store(since, SeqCst);
        cache.assumed.store(0, SeqCst);
        let dirty = cache.dirty.load(SeqCst);
        let lost = dirty > cache.clean.load(SeqCst);
        if lost {
            self.count_loss(dirty);
            // A flush that finds nothing to wait for any more finds the loss.
            cache.clean.fetch_max(dirty, SeqCst);
        }
        cache.over.store(since, SeqCst);
        lost
    }

    /// A flush has failed, and the device may have dropped what it was to make durable: the next one would say nothing of that.
    pub(crate) fn drop_in_flush(&self, began: Began) {
        self.count_loss(began.epoch);
    }

    /// Something is lost that was acknowledged in `epoch` or before.
    fn count_loss(&self, epoch: u64) {
        // In this order: who sees the loss sees also which flushes were to cover it.
        self.lost_through.fetch_max(epoch, SeqCst);
        self.losses.fetch_add(1, SeqCst);
        self.news.fetch_add(1, SeqCst);
    }

    fn get(&self, index: u8) -> &Cache {
        &self.list[usize::from(index) % MAX_CACHES]
    }
}

impl Cache {
    fn mark_dirty(&self, epoch: u64) {
        if self.dirty.load(SeqCst) < epoch {
            self.dirty.fetch_max(epoch, SeqCst);
        }
    }

    /// Has it lost its power or its number since `epoch`?
    fn is_gone(&self, epoch: u64) -> bool {
        epoch < self.since.load(SeqCst) || self.members.load(SeqCst) == 0
    }

    fn wants_flush(&self) -> bool {
        self.holds_writes() || self.is_assumed() || self.owes_flush()
    }

    fn holds_writes(&self) -> bool {
        self.dirty.load(SeqCst) > self.clean.load(SeqCst)
    }

    fn is_assumed(&self) -> bool {
        self.assumed.load(SeqCst) > self.clean.load(SeqCst)
    }

    /// What was flushed may have gone to another disk. (If nothing was ever written, there is nothing to doubt.)
    fn owes_flush(&self) -> bool {
        self.believed.load(SeqCst) <= self.doubted_through.load(SeqCst) && self.dirty.load(SeqCst) > 0
    }

    /// Was it this disk that answered a flush of `epoch`, as far as anybody knows? A doubt that ends counts in `doubts` until its epoch is
    /// noted: in this order, none is missed.
    fn is_believed(&self, epoch: u64) -> bool {
        self.doubts.load(SeqCst) == 0 && epoch > self.doubted_through.load(SeqCst)
    }
}

#[cfg(test)]
mod tests;
