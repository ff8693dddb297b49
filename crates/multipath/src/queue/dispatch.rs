//! Finding a path for a task.

use super::parent::Parent;
use super::{MultipathQueue, Owner};
use crate::selector::{Choice, Selector};
use crate::stats;
use core::time::Duration;
use polypath_block::{Code, Cx, Proof, RefusedWhy, SlotKey, Status};

/// Longest delay between two rounds of a task over all paths, when all of them fail it.
const ROUND_DELAY_MOST: Duration = Duration::from_millis(100);

/// Tries that a request gets however long each takes: a fence alone may take longer than the time limit.
const TRIES_LEAST: u16 = 8;

/// What came of an attempt to place a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Placed {
    /// A path has it, or it was split and its parts go on.
    Yes,
    /// The paths that could take it are full.
    NoRoom,
    /// No path can take it now.
    NoPath,
    /// Every path that could take it has failed it.
    AllTried,
}

impl MultipathQueue {
    /// Finds a path for `key`, or a place to wait.
    pub(super) fn place(&mut self, cx: &mut Cx<'_>, key: SlotKey) {
        match self.dispatch(cx, key) {
            Placed::Yes => {}
            Placed::NoRoom => self.backlog.push_back(key),
            Placed::NoPath => self.wait_for_path(cx, key),
            Placed::AllTried => self.wait_for_round(cx, key),
        }
    }

    fn dispatch(&mut self, cx: &mut Cx<'_>, key: SlotKey) -> Placed {
        let (Some(task), Some(shape)) = (self.tasks.get(key), self.shape) else { return Placed::Yes };
        let (io, tried) = (task.io, task.tried);
        let allowed = task.domain.map_or(u64::MAX, |(domain, _)| self.slots_of(domain));
        let bytes = io.data_len(shape.block_size);
        let offset = io.lba.wrapping_mul(u64::from(shape.block_size));
        loop {
            let mut ranks = self.ranks.iter().map(|rank| rank & allowed);
            let Some(rank) = ranks.find(|rank| rank & !tried != 0) else {
                return if self.usable() & allowed == 0 { Placed::NoPath } else { Placed::AllTried };
            };
            let mask = rank & !tried & !self.full;
            if mask == 0 {
                return Placed::NoRoom;
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
            if !path.limits.fits(&io, shape.block_size, cx.segs) {
                let limits = path.limits;
                if !self.has_room_for_parent() {
                    return Placed::NoRoom;
                }
                let Some(task) = self.tasks.remove(key) else { return Placed::Yes };
                self.start_parent(cx, Parent::split(task.owner, task.io, &limits, shape.block_size));
                return Placed::Yes;
            }
            match self.send(cx, key, slot, bytes) {
                Ok(()) => return Placed::Yes,
                Err(RefusedWhy::Full) => self.full |= 1 << slot,
                Err(RefusedWhy::Gone) => self.unrank(slot),
            }
        }
    }

    /// Hands a task to the queue of `slot`.
    pub(super) fn send(&mut self, cx: &mut Cx<'_>, key: SlotKey, slot: usize, bytes: u64) -> Result<(), RefusedWhy> {
        let Some(task) = self.tasks.get_mut(key) else { return Ok(()) };
        let Some(path) = self.paths[slot].as_mut() else { return Err(RefusedWhy::Gone) };
        let Some(queue) = path.queue.as_mut() else { return Err(RefusedWhy::Gone) };
        let attempt = task.attempt.wrapping_add(1);
        let mut io = task.io;
        io.tag = tag(key, attempt);
        queue.submit(cx, io).map_err(|refused| refused.why)?;
        task.attempt = attempt;
        task.outstanding += 1;
        task.suspect = false;
        task.pathless = None;
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
        let Some(task) = self.tasks.get_mut(key) else { return };
        if let Some(status) = task.doubt {
            return self.settle(key, status, Proof::Answered);
        }
        let cache = task.domain.map(|(domain, epoch)| (self.group.domains.get(domain), epoch));
        if let Some((cache, epoch)) = cache.filter(|(cache, _)| cache.members() == 0) {
            if !cache.forsake(epoch) {
                return self.settle(key, Status::OK, Proof::Answered);
            }
            // This flush is the report.
            self.group.domains.take_lost();
            return self.give_up(key, Code::CacheLost);
        }
        let expiry = task.pathless.get_or_insert(cx.now).after(timeout);
        if closed {
            self.give_up(key, Code::Gone);
        } else if expiry <= cx.now {
            self.give_up(key, Code::NoPath);
        } else {
            self.next_expiry = self.next_expiry.min(expiry);
            self.stranded.push_back(key);
        }
    }

    /// Every path has failed it: another round after a moment, for a limited time since the first failure.
    fn wait_for_round(&mut self, cx: &Cx<'_>, key: SlotKey) {
        let timeout = self.group.no_path_timeout;
        let Some(task) = self.tasks.get_mut(key) else { return };
        if let Some(status) = task.doubt {
            return self.settle(key, status, Proof::Answered);
        }
        let expiry = task.trouble.get_or_insert(cx.now).after(timeout);
        if expiry <= cx.now && task.retries >= TRIES_LEAST {
            return self.give_up(key, Code::NoPath);
        }
        task.tried = 0;
        let delay = Duration::from_millis(1 << task.retries.min(7)).min(ROUND_DELAY_MOST);
        self.delayed.push((cx.now.after(delay), key));
    }

    /// A task that no path has: fails it.
    fn give_up(&mut self, key: SlotKey, code: Code) {
        self.settle(key, code.into(), Proof::NeverSent);
    }

    fn slots_of(&self, domain: u8) -> u64 {
        let leads_there = |path: &Option<super::LocalPath>| path.as_ref().is_some_and(|p| p.domain == Some(domain));
        self.paths.iter().enumerate().fold(0, |mask, (slot, path)| mask | u64::from(leads_there(path)) << slot)
    }

    fn unrank(&mut self, slot: usize) {
        self.ranks.iter_mut().for_each(|rank| *rank &= !(1 << slot));
    }

    /// A task that is quiet goes to another path.
    pub(super) fn redrive(&mut self, key: SlotKey, now: polypath_block::Time) {
        if let Some(task) = self.tasks.get_mut(key) {
            task.trouble.get_or_insert(now);
            task.retries = task.retries.saturating_add(1);
            // The number moves on now, so that the old attempt's completion is told apart whenever it comes.
            task.attempt = task.attempt.wrapping_add(1);
            task.suspect = false;
            self.backlog.push_back(key);
        }
    }

    /// Flushes the cache behind `slot` before the path is let go. Fails when its queue does not take it now.
    pub(super) fn send_removal_flush(&mut self, cx: &mut Cx<'_>, slot: usize, domain: u8) -> Result<(), RefusedWhy> {
        let task = self.new_task(polypath_block::Io::flush(0), Owner::Removal(slot), cx.now, Some(domain));
        let Ok(key) = self.tasks.insert(task) else { return Err(RefusedWhy::Full) };
        let sent = self.send(cx, key, slot, 0);
        if sent.is_err() {
            self.tasks.remove(key);
        }
        sent
    }
}

/// The tag of an attempt: a late completion of an older one is told apart.
pub(super) const fn tag(key: SlotKey, attempt: u32) -> u64 {
    (attempt as u64) << 32 | key.as_u32() as u64
}

pub(super) const fn untag(tag: u64) -> (SlotKey, u32) {
    (SlotKey::from_u32(tag as u32), (tag >> 32) as u32)
}
