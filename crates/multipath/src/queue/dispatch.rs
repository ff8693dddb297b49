//! Finding a path for a task.

use super::MultipathQueue;
use super::parent::Parent;
use super::path::QueuePath;
use super::task::{Owner, Task, next_attempt, tag};
use crate::cache::{Began, FlushTarget};
use crate::config::Fencing;
use crate::selector::{Choice, Selector, Slots};
use crate::stats;
use core::time::Duration;
use polypath_block::{Code, Cx, Io, Proof, RefusedWhy, SegTable, SlotKey, Splitter, Status, Time};

/// Longest delay between two rounds of a task over all paths, when all of them fail it.
const ROUND_DELAY_MOST: Duration = Duration::from_millis(100);

/// Tries that a request gets however long each takes: a fence alone may take longer than the time limit.
const TRIES_LEAST: u16 = 8;

/// What came of an attempt to send a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dispatched {
    /// A path has it, or it was split and its parts go on.
    Yes,
    /// The paths that could take it are full.
    NoRoom,
    /// No path can take it now.
    NoPath,
    /// Every path that could take it has failed it, or is full while one is there that has failed it. The others, as bits of slots, cannot
    /// take it.
    AllTried(u64),
    /// The paths that are there take it in parts only, and an attempt is open that knows nothing of parts.
    Fenced,
    /// No path that there is takes it, whole or in parts.
    Unfit(Code),
}

/// How a path takes a request.
enum Fit {
    Whole,
    Parts(Splitter),
    /// In parts, once it may be cut.
    Later,
    Never,
}

impl MultipathQueue {
    /// Finds a path for `key`, or a place to wait. `false`: it waits for room, at the end of the backlog.
    pub(super) fn place(&mut self, cx: &mut Cx<'_>, key: SlotKey) -> bool {
        let Some((flush, owner)) = self.tasks.get(key).map(|t| (t.flush, t.owner)) else { return true };
        if flush.is_some_and(|flush| self.is_moot(flush)) {
            self.settle(key, Status::OK, Proof::Answered);
            return true;
        }
        if self.is_lost_labour(owner) {
            self.give_up(key, Code::NoPath);
            return true;
        }
        match self.dispatch(cx, key) {
            Dispatched::Yes => {}
            Dispatched::NoRoom => {
                self.has_path(key);
                self.backlog.push_back(key);
                return false;
            }
            Dispatched::NoPath => self.wait_for_path(cx, key),
            Dispatched::AllTried(unfit) => self.wait_for_round(cx, key, unfit),
            Dispatched::Fenced => self.wait_for_fence(key),
            Dispatched::Unfit(code) => self.give_up(key, code),
        }
        true
    }

    fn dispatch(&mut self, cx: &mut Cx<'_>, key: SlotKey) -> Dispatched {
        let (Some(task), Some(shown)) = (self.tasks.get(key), self.shown) else { return Dispatched::Yes };
        let (io, tried) = (task.io, task.tried);
        // Parts know nothing of superseded attempts: these must be quiet before there are parts.
        let may_split = task.outstanding == 0 || self.group.fencing == Fencing::Off;
        let allowed = task.flush.map_or(u64::MAX, |f| self.slots_of(f.cache));
        let bytes = io.data_len(shown.block_size);
        let offset = io.lba.wrapping_mul(u64::from(shown.block_size));
        // Paths that cannot take it; paths that can once it may be cut.
        let (mut unfit, mut later) = (0, 0);
        loop {
            let mut ranks = self.ranks.iter().map(|rank| rank & allowed & !unfit & !later);
            let Some(rank) = ranks.find(|rank| rank & !tried != 0) else {
                return match self.usable() & allowed {
                    0 => Dispatched::NoPath,
                    // Even if others take it once it may be cut: a fence may last longer than a round.
                    usable if usable & !unfit & !later != 0 => Dispatched::AllTried(unfit),
                    _ if later != 0 => Dispatched::Fenced,
                    _ => self.unfit(cx, &io),
                };
            };
            let wanted = self.selector.narrow(rank & !tried, &self.loads);
            let mask = wanted & !self.full;
            if mask == 0 {
                // One that could not take it even if it had room is not waited for.
                let (cannot, uncut) = self.cannot_take(cx, &io, wanted, may_split);
                if cannot | uncut == 0 {
                    // A full path may be silent for ever: one that is tried again in the next round is not.
                    let again = self.usable() & allowed & tried & !unfit & !later;
                    return if again == 0 { Dispatched::NoRoom } else { Dispatched::AllTried(unfit) };
                }
                unfit |= cannot;
                later |= uncut;
                continue;
            }
            let slot = self.selector.pick(&Choice { mask, loads: &self.loads, bytes, offset, now: cx.now });
            let Some(path) = self.paths.get_mut(slot).and_then(Option::as_mut) else {
                self.unrank(slot);
                continue;
            };
            // Two loads: a device that changed gets nothing until it was verified again, and until its limits, cache and
            // access are those that this queue goes by.
            if !path.shared.is_admitted(path.seen) {
                self.unrank(slot);
                continue;
            }
            match fit(path, &io, shown.block_size, cx.segs, may_split) {
                Fit::Whole => {}
                Fit::Parts(parts) => return self.divide(cx, key, parts),
                Fit::Later => {
                    later |= 1 << slot;
                    continue;
                }
                Fit::Never => {
                    unfit |= 1 << slot;
                    continue;
                }
            }
            match self.send(cx, key, slot, bytes) {
                Ok(()) => return Dispatched::Yes,
                Err(RefusedWhy::Full) => self.full |= 1 << slot,
                Err(RefusedWhy::Gone) => self.unrank(slot),
            }
        }
    }

    /// Of the paths in `slots`: those that cannot take it, and those that can once it may be cut.
    fn cannot_take(&self, cx: &Cx<'_>, io: &Io, slots: u64, may_split: bool) -> (u64, u64) {
        let block_size = self.shown.map_or(0, |s| s.block_size);
        let (mut cannot, mut uncut) = (0, 0);
        for slot in Slots(slots) {
            let Some(path) = self.paths[slot].as_ref() else { continue };
            match fit(path, io, block_size, cx.segs, may_split) {
                Fit::Whole | Fit::Parts(_) => {}
                Fit::Later => uncut |= 1 << slot,
                Fit::Never => cannot |= 1 << slot,
            }
        }
        (cannot, uncut)
    }

    /// The paths that are there cannot take it. One that is away may, and is waited for.
    fn unfit(&self, cx: &Cx<'_>, io: &Io) -> Dispatched {
        let block_size = self.shown.map_or(0, |s| s.block_size);
        let does = |path: &QueuePath| path.limits.max_blocks(io.op, block_size) > 0;
        let paths = || self.paths.iter().flatten();
        if self.may_take(cx, io) != 0 {
            Dispatched::NoPath
        } else {
            Dispatched::Unfit(if paths().any(does) { Code::Invalid } else { Code::Unsupported })
        }
    }

    /// A request becomes a parent. A part does not: it is sent piece by piece.
    fn divide(&mut self, cx: &mut Cx<'_>, key: SlotKey, mut parts: Splitter) -> Dispatched {
        let Some(task) = self.tasks.get_mut(key) else { return Dispatched::Yes };
        match task.owner {
            Owner::User(_) => {
                let (owner, proof) = (task.owner, task.proof);
                self.tasks.remove(key);
                self.start_parent(cx, Parent::split(owner, parts, proof));
                Dispatched::Yes
            }
            Owner::Part(_) | Owner::Flush(..) | Owner::Removal(_) => match (parts.next_part(cx.segs), parts.rest()) {
                (Some(Ok(first)), Some(rest)) => {
                    task.cut(first, rest);
                    self.dispatch(cx, key)
                }
                // It was looked at before.
                _ => Dispatched::Unfit(Code::Invalid),
            },
        }
    }

    /// Hands a task to the queue of `slot`.
    pub(super) fn send(&mut self, cx: &mut Cx<'_>, key: SlotKey, slot: usize, bytes: u64) -> Result<(), RefusedWhy> {
        let Some(task) = self.tasks.get_mut(key) else { return Ok(()) };
        let Some(path) = self.paths[slot].as_mut() else { return Err(RefusedWhy::Gone) };
        let cache = path.volatile_cache().map(|cache| self.group.caches.send_to(cache));
        let Some(queue) = path.queue.as_mut() else { return Err(RefusedWhy::Gone) };
        let attempt = next_attempt(self.attempts);
        let mut io = task.io;
        io.tag = tag(key, attempt);
        queue.submit(cx, io).map_err(|refused| refused.why)?;
        (self.attempts, task.attempt) = (attempt, attempt);
        task.outstanding += 1;
        task.suspect = false;
        task.cache = cache;
        task.no_path_since = None;
        task.started = cx.now;
        self.loads[slot].in_flight += 1;
        self.loads[slot].bytes_in_flight += bytes;
        stats::add(&path.counters.in_flight, 1);
        self.unkicked |= 1 << slot;
        Ok(())
    }

    /// No path can take it: it is stranded, for a limited time since that began.
    fn wait_for_path(&mut self, cx: &Cx<'_>, key: SlotKey) {
        let timeout = self.group.no_path_timeout;
        let closed = self.group.is_closed();
        let owed = |task: &Task| task.flush.is_some_and(|flush| self.group.caches.is_owed(flush));
        // Whether what was flushed is there is not known. Without any path, there is time to find out.
        let waits = self.usable() == 0 && self.tasks.get(key).is_some_and(owed);
        if !waits && self.ends_unawaited(key) {
            return;
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        // That those paths refused it which are gone says nothing of the one that may return.
        let expiry = task.no_path_since.get_or_insert(cx.now).after(timeout);
        if closed {
            self.give_up(key, Code::Gone);
        } else if expiry <= cx.now {
            self.group.request_failed();
            self.give_up(key, Code::NoPath);
        } else {
            self.next_expiry = self.next_expiry.min(expiry);
            // A path that refused it since the last look is one that there was not, when it is there in the next.
            self.stranded_under &= self.usable();
            self.stranded.push_back(key);
        }
    }

    /// Ends a flush that nobody must wait for: there was nothing but a doubt, another flush has cleaned its cache meanwhile, or that is lost.
    fn ends_unawaited(&mut self, key: SlotKey) -> bool {
        let flush = self.tasks.get(key).and_then(|task| task.flush);
        let unawaited = flush.is_some_and(|flush| !self.group.caches.is_awaited(flush));
        if unawaited {
            self.settle(key, Status::OK, Proof::Answered);
        }
        unawaited
    }

    /// It need not go anywhere: no path leads to its cache any more, what it was to cover is lost, or the whole of which it is a part is going
    /// to fail because of a loss. Whether that may succeed is judged in the end ([`MultipathQueue::finish`]).
    fn is_moot(&self, flush: FlushTarget) -> bool {
        self.group.caches.is_unreachable(flush) || self.group.caches.has_untold_loss(flush.began)
    }

    /// It must not be cut while an attempt is open that has all of it: it is stranded, and looked at again when that attempt is quiet, or a
    /// path comes that takes it whole.
    fn wait_for_fence(&mut self, key: SlotKey) {
        self.has_path(key);
        if self.group.is_closed() {
            return self.give_up(key, Code::Gone);
        }
        self.stranded.push_back(key);
    }

    /// Time for which a path could take it does not count as time without one.
    fn has_path(&mut self, key: SlotKey) {
        if let Some(task) = self.tasks.get_mut(key) {
            task.no_path_since = None;
        }
    }

    /// Every path but those that cannot take it has failed it: another round after a moment, for a limited time since the first failure.
    fn wait_for_round(&mut self, cx: &Cx<'_>, key: SlotKey, unfit: u64) {
        if self.ends_unawaited(key) {
            return;
        }
        self.has_path(key);
        let timeout = self.group.no_path_timeout;
        let Some(io) = self.tasks.get(key).map(|task| task.io) else { return };
        // Those with news, and those that are away and may return.
        let others = self.may_take(cx, &io) & !unfit;
        let Some(task) = self.tasks.get_mut(key) else { return };
        if let Some(status) = task.refusal.filter(|_| others & !task.refused == 0) {
            let proof = task.proof;
            return self.settle(key, status, proof);
        }
        let expiry = task.first_failure.get_or_insert(cx.now).after(timeout);
        if expiry <= cx.now && task.retries >= TRIES_LEAST {
            return self.give_up(key, Code::NoPath);
        }
        let delay = Duration::from_millis(1 << task.retries.min(7)).min(ROUND_DELAY_MOST);
        // Paths that come in between are tried at once, and do not put it off.
        let next_round = *task.next_round.get_or_insert(cx.now.after(delay));
        self.delayed.push((next_round, key));
    }

    /// A task that no path has: fails it, with what a path has said of it if one has.
    fn give_up(&mut self, key: SlotKey, code: Code) {
        let known = self.tasks.get(key).map(|t| (t.refusal, t.proof));
        let (refusal, proof) = known.unwrap_or((None, Proof::NeverSent));
        self.settle(key, refusal.unwrap_or(code.into()), proof);
    }

    /// Paths that lead to a cache, as bits of slots.
    fn slots_of(&self, cache: u8) -> u64 {
        let leads_there = |path: &Option<QueuePath>| path.as_ref().is_some_and(|p| p.cache == Some(cache));
        self.paths.iter().enumerate().fold(0, |mask, (slot, path)| mask | u64::from(leads_there(path)) << slot)
    }

    /// Paths that stay and take it, whole or in parts, as bits of slots.
    fn may_take(&self, cx: &Cx<'_>, io: &Io) -> u64 {
        let block_size = self.shown.map_or(0, |s| s.block_size);
        let takes = |path: &QueuePath| path.stays() && Splitter::new(*io, &path.limits, block_size).can_cut(cx.segs);
        let takes = |path: &Option<QueuePath>| path.as_ref().is_some_and(takes);
        self.paths.iter().enumerate().fold(0, |mask, (slot, path)| mask | u64::from(takes(path)) << slot)
    }

    pub(super) fn unrank(&mut self, slot: usize) {
        self.fast.shun(slot);
        self.ranks.iter_mut().for_each(|rank| *rank &= !(1 << slot));
    }

    /// A task that is quiet because of `proof` goes to another path.
    pub(super) fn redrive(&mut self, key: SlotKey, proof: Proof, now: Time) {
        if let Some(task) = self.tasks.get_mut(key) {
            task.first_failure.get_or_insert(now);
            task.retries = task.retries.saturating_add(1);
            // The number moves on now, so that the superseded attempt's completion is told apart whenever it comes.
            task.attempt = next_attempt(task.attempt);
            task.suspect = false;
            task.proof = task.proof.and(proof);
            self.enqueue(key);
        }
    }

    /// Flushes the cache behind `slot` before the path is released. Fails when its queue does not take it now.
    pub(super) fn send_removal_flush(&mut self, cx: &mut Cx<'_>, slot: usize, cache: u8) -> Result<(), RefusedWhy> {
        // A loss is for a flush of the user to report.
        let began = Began { epoch: self.group.caches.begin_flush(), told: u64::MAX };
        let target = FlushTarget { cache, began };
        let task = Task::new(Io::flush(0), Owner::Removal(slot), cx.now, Some(target));
        let Ok(key) = self.tasks.insert(task) else { return Err(RefusedWhy::Full) };
        let sent = self.send(cx, key, slot, 0);
        if sent.is_err() {
            self.tasks.remove(key);
        }
        sent
    }
}

fn fit(path: &QueuePath, io: &Io, block_size: u32, segs: &SegTable, may_split: bool) -> Fit {
    if path.limits.fits(io, block_size, segs) {
        return Fit::Whole;
    }
    let parts = Splitter::new(*io, &path.limits, block_size);
    match parts.can_cut(segs) {
        true if may_split => Fit::Parts(parts),
        true => Fit::Later,
        false => Fit::Never,
    }
}
