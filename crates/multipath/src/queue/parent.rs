//! Requests made of parts: larger than their path takes at a time, or flushes of several caches.
//!
//! A part is never a parent: where its path takes less than the one that it was cut for, it is sent piece by piece ([`Task::cut`]).
//! So there are no more parents than requests, and none waits for the place of another.

use super::MultipathQueue;
use super::task::{Owner, Proofs, Task};
use crate::cache::{Began, FlushTarget, Written};
use polypath_block::{Cx, Io, Proof, SlotKey, Splitter, Status};

/// What is left to be given out.
#[derive(Debug)]
enum Rest {
    /// Parts, and what is proven of the whole, which may have been sent before.
    Split(Splitter, Proof),
    /// Caches to be flushed, as bits, and when the flush began: the same for all of them, however long some of its parts wait for room.
    Caches(u64, Began),
    Nothing,
}

/// A request of several parts. It finishes once, when all of them are quiet.
#[derive(Debug)]
pub(super) struct Parent {
    owner: Owner,
    rest: Rest,
    /// Parts given out and not finished.
    live: usize,
    /// The first error, if any.
    status: Status,
    proofs: Proofs,
    /// The volatile caches that its parts were written to.
    written: Option<Written>,
}

impl Parent {
    pub(super) fn split(owner: Owner, parts: Splitter, proof: Proof) -> Self {
        Parent::new(owner, Rest::Split(parts, proof))
    }

    pub(super) fn flush(owner: Owner, caches: u64, began: Began) -> Self {
        Parent::new(owner, Rest::Caches(caches, began))
    }

    fn new(owner: Owner, rest: Rest) -> Self {
        Parent { owner, rest, live: 0, status: Status::OK, proofs: Proofs::NEVER_SENT, written: None }
    }

    /// It has failed: what is not under way is not begun any more.
    pub(super) fn has_failed(&self) -> bool {
        !self.status.is_ok()
    }

    fn fail(&mut self, status: Status) {
        if self.status.is_ok() {
            self.status = status;
        }
        if let Rest::Split(_, proof) = core::mem::replace(&mut self.rest, Rest::Nothing) {
            self.proofs = self.proofs.and(Proofs::both(proof));
        }
    }

    /// The next part, what is proven of it, and where it goes if it is a flush.
    fn next(&mut self, cx: &Cx<'_>) -> Option<(Io, Proof, Option<FlushTarget>)> {
        match &mut self.rest {
            Rest::Nothing => None,
            Rest::Caches(mask, began) => {
                let target = FlushTarget { cache: mask.trailing_zeros() as u8, began: *began };
                *mask &= mask.wrapping_sub(1);
                if *mask == 0 {
                    self.rest = Rest::Nothing;
                }
                Some((Io::flush(0), Proof::NeverSent, Some(target)))
            }
            Rest::Split(splitter, proof) => match splitter.next_part(cx.segs) {
                Some(Ok(io)) => Some((io, *proof, None)),
                Some(Err(status)) => {
                    self.fail(status);
                    None
                }
                None => {
                    self.rest = Rest::Nothing;
                    None
                }
            },
        }
    }
}

impl MultipathQueue {
    /// Takes a request of parts, gives out what there is room for, remembers the rest.
    pub(super) fn start_parent(&mut self, cx: &mut Cx<'_>, parent: Parent) {
        match self.parents.insert(parent) {
            Ok(key) => self.issue_parts(cx, key),
            Err(full) => unreachable!("{full}: more parents than requests"),
        }
    }

    /// Gives out parts of `key` while there is room for them.
    pub(super) fn issue_parts(&mut self, cx: &mut Cx<'_>, key: SlotKey) {
        loop {
            let Some(parent) = self.parents.get_mut(key) else { return };
            let first = parent.live == 0;
            if !first && self.extras >= self.extras_most {
                self.to_issue.push_back(key);
                return;
            }
            let Some((io, proof, flush)) = parent.next(cx) else { break };
            parent.live += 1;
            self.extras += usize::from(!first);
            self.start(cx, Task::part(io, proof, key, cx.now, flush));
        }
        self.end_parent(key);
    }

    /// A part of `key` has finished.
    pub(super) fn part_done(&mut self, key: SlotKey, status: Status, proofs: Proofs, written: Option<Written>) {
        let Some(parent) = self.parents.get_mut(key) else { return };
        parent.live -= 1;
        self.extras -= usize::from(parent.live > 0);
        parent.written = self.group.caches.together(parent.written, written);
        parent.proofs = parent.proofs.and(proofs);
        if !status.is_ok() {
            parent.fail(status);
            // Those of its parts that wait have nothing to wait for any more.
            self.retry_stranded_now = true;
        }
        self.end_parent(key);
    }

    /// Has the request failed that `owner` is part of?
    pub(super) fn is_lost_labour(&self, owner: Owner) -> bool {
        match owner {
            Owner::Part(parent) => self.parents.get(parent).is_some_and(Parent::has_failed),
            Owner::User(_) | Owner::Flush(..) | Owner::Removal(_) => false,
        }
    }

    fn end_parent(&mut self, key: SlotKey) {
        let over = self.parents.get(key).is_some_and(|p| p.live == 0 && matches!(p.rest, Rest::Nothing));
        if let Some(parent) = over.then(|| self.parents.remove(key)).flatten() {
            self.finish(parent.owner, parent.status, parent.proofs, parent.written);
        }
    }
}
