//! What paths report, and what becomes of it.

use super::dispatch::untag;
use super::local::Phase;
use super::{MultipathQueue, Owner};
use crate::config::Fencing;
use crate::disposition::{Disposition, Grudge, on_completion, on_suspect};
use crate::selector::Selector;
use crate::stats;
use polypath_block::{Code, Completion, Cx, Flags, Proof, SlotKey, Status, Suspect, Time};

impl MultipathQueue {
    /// Polls the queue of every path and acts on what they say.
    pub(super) fn poll_paths(&mut self, cx: &mut Cx<'_>) {
        for slot in 0..self.paths.len() {
            let Some(path) = self.paths[slot].as_mut() else { continue };
            let Some(queue) = path.queue.as_mut() else { continue };
            queue.poll(cx, &mut self.scratch);
            if !self.scratch.is_empty() {
                for i in 0..self.scratch.suspects.len() {
                    let suspect = self.scratch.suspects[i];
                    self.suspected(slot, suspect, cx.now);
                }
                if !self.scratch.completions.is_empty() {
                    self.full &= !(1 << slot);
                }
                for i in 0..self.scratch.completions.len() {
                    let completion = self.scratch.completions[i];
                    self.completed(slot, completion, cx.now);
                }
                self.scratch.clear();
            }
            self.look_at_health(slot, cx.now);
            // Nothing of ours is there that could make room by completing: ask again.
            let idle = self.loads[slot].in_flight == 0 && self.paths[slot].as_ref().is_some_and(|p| p.suspects == 0);
            if idle {
                self.full &= !(1 << slot);
            }
        }
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
        path.count_load(&self.loads[slot]);
        let op = task.io.op;
        if path.incident.suspected(now) {
            self.group.suspect(path.shared.id, suspect.cause, suspect.fence);
            tracing::warn!(
                group = %self.group.name(), path = %path.shared.name, cause = %Status::new(suspect.cause),
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
            self.redrive(key, now);
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
            return self.ghost_done(key);
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
            let took = now.since(task.started);
            path.succeeded(bytes, took);
            self.selector.finished(slot, bytes, took);
            return self.succeeded(slot, key, c.proof);
        }
        stats::add(&path.counters.errors, 1);
        match on_completion(c.status, task.io.op, c.proof, self.group.fencing) {
            Disposition::Report => self.settle(key, c.status, c.proof),
            Disposition::Unprovable => self.settle(key, Code::OutcomeUnknown.into(), c.proof),
            Disposition::Doubt => {
                task.tried |= 1 << slot;
                task.doubt = Some(c.status);
                self.redrive(key, now);
            }
            Disposition::Retry(grudge) => {
                task.tried |= 1 << slot;
                path.last_cause = c.status.code;
                path.bear(grudge, now);
                self.rank(now);
                if grudge == Grudge::Failure {
                    tracing::debug!(
                        group = %self.group.name(), path = %self.path_name(slot), status = %c.status, "request failed on the path"
                    );
                }
                self.note_redrive(slot, key, c.proof, now);
                self.redrive(key, now);
            }
        }
    }

    /// An attempt that was given up has become quiet.
    fn ghost_done(&mut self, key: SlotKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.outstanding = task.outstanding.saturating_sub(1);
        if let Some((status, proof)) = task.settled.filter(|_| task.outstanding == 0) {
            self.settle(key, status, proof);
        }
    }

    fn succeeded(&mut self, slot: usize, key: SlotKey, proof: Proof) {
        let (Some(task), Some(path)) = (self.tasks.get(key), self.paths[slot].as_ref()) else { return };
        let domains = &self.group.domains;
        if let Some((domain, epoch)) = task.domain {
            domains.get(domain).cleaned(epoch);
        } else if task.io.op.changes_medium() && path.write_cache && !task.io.flags.contains(Flags::FUA) {
            match path.domain {
                Some(domain) if domains.get(domain).members() > 0 => domains.get(domain).soil(),
                // Its cache went while it was on the way.
                _ => domains.latch(),
            }
        }
        self.settle(key, Status::OK, proof);
    }

    /// The outcome of a task is known; it finishes when no older attempt is open either.
    pub(super) fn settle(&mut self, key: SlotKey, status: Status, proof: Proof) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.outstanding > 0 && self.group.fencing == Fencing::On {
            task.settled = Some((status, proof));
            return;
        }
        if let Some(task) = self.tasks.remove(key) {
            self.finish(task.owner, status, proof);
        }
    }

    /// Hands an outcome to whoever waits for it.
    pub(super) fn finish(&mut self, owner: Owner, status: Status, proof: Proof) {
        match owner {
            Owner::User(tag) => {
                self.open -= 1;
                self.ready.push(Completion { tag, status, proof });
            }
            Owner::Part(parent) => self.part_done(parent, status, proof),
            Owner::Removal(_) => {}
        }
    }

    fn removal_flushed(&mut self, slot: usize, key: SlotKey, status: Status) {
        let Some(task) = self.tasks.remove(key) else { return };
        if let Some((domain, epoch)) = task.domain.filter(|_| status.is_ok()) {
            self.group.domains.get(domain).cleaned(epoch);
        }
        if let Some(path) = self.paths[slot].as_mut() {
            path.phase = Phase::Flushed;
            if !status.is_ok() {
                tracing::warn!(
                    group = %self.group.name(), path = %path.shared.name, %status,
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
                group = %self.group.name(), path = %path.shared.name, %proof, op = ?task.io.op, lba = task.io.lba,
                blocks = task.io.blocks, "change is sent again on another path"
            );
        }
    }

    fn bytes_of(&self, key: SlotKey) -> u64 {
        let block_size = self.shape.map_or(0, |s| s.block_size);
        self.tasks.get(key).map_or(0, |t| t.io.data_len(block_size))
    }

    fn path_name(&self, slot: usize) -> &str {
        self.paths[slot].as_ref().map_or("", |p| &p.shared.name)
    }
}
