//! What paths report, and what becomes of it.

use super::MultipathQueue;
use super::path::Phase;
use super::task::{Owner, Proofs, is_task, untag};
use crate::cache::{Began, Written};
use crate::config::Fencing;
use crate::disposition::{Disposition, Penalty, on_completion, on_suspect};
use crate::selector::Selector;
use crate::stats;
use polypath_block::{Code, Completion, Cx, Done, Flags, Io, Op, Proof, SlotKey, Status, Suspect, Time};

impl MultipathQueue {
    /// Polls the queue of every path and acts on what they say.
    pub(super) fn poll_paths(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        for slot in 0..self.paths.len() {
            let Some(path) = self.paths[slot].as_mut() else { continue };
            let Some(queue) = path.queue.as_mut() else { continue };
            let (completions, suspects) = (done.completions.len(), done.suspects.len());
            queue.poll(cx, done);
            if done.completions.len() > completions || done.suspects.len() > suspects {
                // Room may have come free, also by what waits for its fence now: ask again.
                self.full &= !(1 << slot);
                self.looked = 0;
                // Whoever became suspect is so before it completes.
                let usual = if done.suspects.len() > suspects {
                    completions
                } else {
                    self.finish_fast(slot, cx.now, done, completions)
                };
                if usual < done.completions.len() || done.suspects.len() > suspects {
                    self.finish_unusual(slot, cx.now, done, usual, suspects);
                }
            }
            self.check_health(slot, cx.now);
            // Nothing of ours is there that could make room by completing: ask again.
            if self.full != 0 && self.loads[slot].in_flight == 0 {
                self.full &= !(1 << slot);
            }
        }
    }

    /// Acts on what the path in `slot` says beside that: what is in `done` from `completions` and `suspects` on.
    #[cold]
    fn finish_unusual(&mut self, slot: usize, now: Time, done: &mut Done, completions: usize, suspects: usize) {
        let mut said = core::mem::take(&mut self.scratch);
        said.suspects.extend(done.suspects.drain(suspects..));
        said.completions.extend(done.completions.drain(completions..));
        for suspect in said.suspects.drain(..) {
            if let Some(tag) = self.task_tag(slot, suspect.tag, false) {
                self.suspected(slot, Suspect { tag, ..suspect }, now);
            }
        }
        for completion in said.completions.drain(..) {
            let at = done.completions.len();
            done.completions.push(completion);
            if self.finish_fast(slot, now, done, at) > at {
                continue;
            }
            done.completions.truncate(at);
            if let Some(tag) = self.task_tag(slot, completion.tag, true) {
                self.completed(slot, Completion { tag, ..completion }, now);
            }
        }
        self.scratch = said;
    }

    /// The tag of a task: of that which a request on the line becomes, if it is one of these.
    fn task_tag(&mut self, slot: usize, tag: u64, is_over: bool) -> Option<u64> {
        if is_task(tag) { Some(tag) } else { self.leave_line(slot, tag, is_over) }
    }

    fn suspected(&mut self, slot: usize, suspect: Suspect, now: Time) {
        let (key, attempt) = untag(suspect.tag);
        let bytes = self.bytes_of(key);
        let Some(path) = self.paths[slot].as_mut() else { return };
        let Some(task) = self.tasks.get_mut(key).filter(|t| t.attempt == attempt && !t.suspect) else { return };
        task.suspect = true;
        path.last_cause = suspect.cause;
        self.loads[slot].in_flight -= 1;
        self.loads[slot].bytes_in_flight = self.loads[slot].bytes_in_flight.saturating_sub(bytes);
        path.suspects += 1;
        stats::add(&path.counters.suspected, 1);
        path.count_load(&self.loads[slot]);
        let op = task.io.op;
        if path.incident.suspected(now) {
            self.group.report_suspects(path.shared.id, suspect.cause, suspect.fence);
            tracing::warn!(
                group = %self.group.name, path = %path.shared.name, cause = %Status::new(suspect.cause),
                proof = %suspect.fence.proof, within_ms = suspect.fence.within.as_millis() as u64,
                "requests of the path are not known to be quiet; changes among them wait for the fence"
            );
        }
        if matches!(task.owner, Owner::Removal(_)) {
            return;
        }
        if let Some(proof) = on_suspect(suspect.fate, op, self.group.fencing) {
            task.tried |= 1 << slot;
            self.note_redrive(slot, key, proof, now);
            self.redrive(key, proof, now);
        }
    }

    fn completed(&mut self, slot: usize, c: Completion, now: Time) {
        let (key, attempt) = untag(c.tag);
        let bytes = self.bytes_of(key);
        let Some(path) = self.paths[slot].as_mut() else { return };
        let current = self.tasks.get_mut(key).filter(|t| t.attempt == attempt);
        let Some(task) = current else {
            path.suspects = path.suspects.saturating_sub(1);
            path.count_load(&self.loads[slot]);
            return self.superseded_done(key);
        };
        task.outstanding -= 1;
        if task.suspect {
            path.suspects = path.suspects.saturating_sub(1);
        } else {
            self.loads[slot].in_flight -= 1;
            self.loads[slot].bytes_in_flight = self.loads[slot].bytes_in_flight.saturating_sub(bytes);
        }
        path.count_load(&self.loads[slot]);
        if matches!(task.owner, Owner::Removal(_)) {
            return self.removal_flushed(slot, key, c.status);
        }
        if c.status.is_ok() {
            let took_ns = now.nanos_since(task.started);
            path.latency.add(took_ns);
            path.succeeded(1, bytes);
            self.selector.finished(slot, bytes, took_ns);
            return self.succeeded(slot, key, c.proof);
        }
        stats::add(&path.counters.errors, 1);
        match on_completion(c.status, task.io.op, c.proof, self.group.fencing) {
            Disposition::Report => self.settle(key, c.status, c.proof),
            Disposition::OutcomeUnknown => self.settle(key, Code::OutcomeUnknown.into(), c.proof),
            Disposition::AskAnother => {
                task.tried |= 1 << slot;
                task.refused |= 1 << slot;
                task.refusal = Some(c.status);
                self.redrive(key, c.proof, now);
            }
            Disposition::Retry(penalty) => {
                task.tried |= 1 << slot;
                path.last_cause = c.status.code;
                path.penalize(penalty, now);
                self.rank(now);
                if penalty == Penalty::Failure {
                    tracing::debug!(
                        group = %self.group.name, path = %self.path_name(slot), status = %c.status, "request failed on the path"
                    );
                }
                self.note_redrive(slot, key, c.proof, now);
                self.redrive(key, c.proof, now);
            }
        }
    }

    /// A superseded attempt has become quiet.
    fn superseded_done(&mut self, key: SlotKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.outstanding = task.outstanding.saturating_sub(1);
        if task.outstanding > 0 {
            return;
        }
        let settled = task.settled;
        // It may have waited for that to be cut, with a path that failed it or without one.
        self.retry_stranded_now = true;
        if let Some(at) = self.delayed.iter().position(|&(_, waits)| waits == key) {
            self.delayed.swap_remove(at);
            self.enqueue(key);
        }
        if let Some((status, proof)) = settled {
            self.settle(key, status, proof);
        }
    }

    fn succeeded(&mut self, slot: usize, key: SlotKey, proof: Proof) {
        let (Some(task), Some(path)) = (self.tasks.get_mut(key), self.paths[slot].as_ref()) else { return };
        if let Some(flush) = task.flush {
            self.group.caches.mark_clean(flush);
        } else if !is_durable(&task.io) {
            // The cache that it was sent to, even if the path leads to another one by now; or the one that was enabled meanwhile.
            let caches = &self.group.caches;
            let enabled = || path.volatile_cache().map(|cache| caches.send_to(cache));
            let written = task.cache.or_else(enabled).map(|sent| caches.mark_dirty(sent));
            task.written = caches.together(task.written, written);
        }
        self.settle(key, Status::OK, proof);
    }

    /// The outcome of a task is known; it finishes when no superseded attempt is open either.
    pub(super) fn settle(&mut self, key: SlotKey, status: Status, proof: Proof) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.outstanding > 0 && self.group.fencing == Fencing::On {
            task.settled = Some((status, proof));
            return;
        }
        // An attempt that is open without fencing has left its proof, or that there is none, when it was superseded.
        let proofs = Proofs { answer: proof, all: task.proof.and(proof) };
        let owner = task.owner;
        let goes_on = status.is_ok() && !self.is_lost_labour(owner);
        if goes_on && self.tasks.get_mut(key).is_some_and(|task| task.go_on(proofs)) {
            self.enqueue(key);
        } else if let Some(task) = self.tasks.remove(key) {
            self.finish(owner, status, task.proofs_of_all(proofs), task.written);
        }
    }

    /// Hands an outcome to whoever waits for it. `written`: where it was written to, if that was a volatile cache.
    pub(super) fn finish(&mut self, owner: Owner, status: Status, proofs: Proofs, written: Option<Written>) {
        match owner {
            Owner::User(tag) => {
                if let Some(written) = written.filter(|_| status.is_ok()) {
                    self.group.caches.acknowledge(written);
                }
                self.answer(tag, status, proofs);
            }
            Owner::Flush(tag, began) => {
                let status = self.judge_flush(began, status);
                self.answer(tag, status, proofs);
            }
            Owner::Part(parent) => self.part_done(parent, status, proofs, written),
            Owner::Removal(_) => {}
        }
    }

    /// Whatever became of its parts: no flush succeeds that a loss speaks against of which its user did not know. One that fails may itself
    /// have lost what it was to cover, also of others.
    fn judge_flush(&mut self, began: Began, status: Status) -> Status {
        if status.may_have_dropped() {
            self.group.caches.drop_in_flush(began);
        }
        if !self.group.caches.has_untold_loss(began) {
            return status;
        }
        self.telling = self.telling.max(self.group.caches.tells(began));
        if status.may_have_dropped() { status } else { Code::CacheLost.into() }
    }

    fn answer(&mut self, tag: u64, status: Status, proofs: Proofs) {
        self.open -= 1;
        self.ready.push(Completion { tag, status, proof: proofs.told(status) });
    }

    fn removal_flushed(&mut self, slot: usize, key: SlotKey, status: Status) {
        let Some(task) = self.tasks.remove(key) else { return };
        if let Some(flush) = task.flush {
            if status.is_ok() {
                self.group.caches.mark_clean(flush);
            } else if status.may_have_dropped() {
                self.group.caches.drop_in_flush(flush.began);
            }
        }
        if let Some(path) = self.paths[slot].as_mut() {
            path.phase = Phase::Flushed;
            if !status.is_ok() {
                tracing::warn!(
                    group = %self.group.name, path = %path.shared.name, %status,
                    "flush before the removal of the path failed"
                );
            }
        }
    }

    fn note_redrive(&mut self, slot: usize, key: SlotKey, proof: Proof, now: Time) {
        let (Some(task), Some(path)) = (self.tasks.get(key), self.paths[slot].as_mut()) else { return };
        let changes = task.io.op.changes_medium();
        path.incident.redriven(proof, changes, now);
        stats::add(&path.counters.redriven, 1);
        if changes {
            tracing::debug!(
                group = %self.group.name, path = %path.shared.name, %proof, op = ?task.io.op, lba = task.io.lba,
                blocks = task.io.blocks, "change is sent again on another path"
            );
        }
    }

    fn bytes_of(&self, key: SlotKey) -> u64 {
        let block_size = self.shown.map_or(0, |s| s.block_size);
        self.tasks.get(key).map_or(0, |t| t.io.data_len(block_size))
    }

    fn path_name(&self, slot: usize) -> &str {
        self.paths[slot].as_ref().map_or("", |p| &p.shared.name)
    }
}

/// Does it leave nothing in a volatile cache when it completes? NVMe's Dataset Management has no FUA: only of Write and Write Zeroes
/// does the flag promise anything.
fn is_durable(io: &Io) -> bool {
    !io.op.changes_medium() || (io.flags.contains(Flags::FUA) && matches!(io.op, Op::Write | Op::WriteZeroes))
}
