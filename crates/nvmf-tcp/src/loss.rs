//! What becomes of requests when the way to their controller is lost.
//!
//! The socket is closed abortively first. Then: what never left, what only reads, and what was answered is quiet at once. A change
//! that may still be carried out becomes suspect, waits for its fence, and completes with the proof of it.

use crate::link::{Broken, Ended, Finished, Link};
use crate::proto::Outcome;
use crate::queue::{NvmeQueue, Way};
use crate::request::{Request, finish_part};
use crate::shared::{AbortAnswer, Association};
use polypath_block::{Code, Cx, Done, Fate, Proof, SlotKey, Status, Suspect, Time};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether other threads have closed their sockets, too.
const OTHERS: Duration = Duration::from_millis(5);

/// A change whose way was lost and that is not quiet yet.
#[derive(Debug)]
pub(crate) struct Fenced {
    tag: u64,
    code: Code,
    association: Arc<Association>,
}

impl NvmeQueue {
    /// The connection of this queue is of no use: so is the association, since nothing else proves its commands quiet.
    #[cold]
    pub(crate) fn break_down(&mut self, cx: &mut Cx<'_>, done: &mut Done, broken: &Broken) {
        match (&self.way, self.association.clone()) {
            (Way::Ready, Some(association)) => {
                let reason = format!("I/O queue {}: {}", self.qid, broken.reason);
                self.shared.lose(&association, broken.code, reason);
                self.lose(done, broken.code);
            }
            _ => self.opening_failed(cx.now, done, &broken.clone().into()),
        }
    }

    /// The association is lost: closes the socket and accounts for every request.
    #[cold]
    pub(crate) fn lose(&mut self, done: &mut Done, code: Code) {
        self.drop_link(done, code);
        self.association = None;
    }

    /// Closes the socket and accounts for every request. The association lives on if nothing but Connect was sent.
    #[cold]
    pub(crate) fn drop_link(&mut self, done: &mut Done, code: Code) {
        let Some(mut link) = self.link.take() else {
            self.forget_link();
            return;
        };
        link.abort();
        let proven = self.watch.take_proven(&link);
        while let Some(Ended { user, slot, outcome, bad_memory }) = link.next_outcome() {
            if let Outcome::Finished(cqe) = outcome {
                let finished = Finished { user, cqe, bad_memory };
                let now = self.watch.last_turn();
                finish_part(&mut self.requests, &self.shared, &finished, now, done, |_| ());
            } else if let Some(request) = self.requests.get_mut(SlotKey::from_u32(user as u32)) {
                request.parts -= 1;
                if outcome == Outcome::Unknown {
                    request.sent = true;
                    request.unproven |= !proven.contains(&slot);
                }
            }
        }
        self.link = Some(link);
        self.forget_link();
        self.unacknowledged = self.association.clone();
        // A request whose memory is gone has done no harm to the others: for them the way is lost.
        let code = if Status::new(code).scope() == polypath_block::Scope::Path { code } else { Code::PathLost };
        let keys: Vec<SlotKey> = self.requests.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(request) = self.requests.remove(key) {
                self.settle(done, code, &request);
            }
        }
        self.look_at_fences_at(Time::ZERO);
    }

    fn settle(&mut self, done: &mut Done, code: Code, request: &Request) {
        let tag = request.io.tag;
        let changes = request.io.op.changes_medium();
        if changes
            && request.unproven
            && let Some(association) = self.association.clone()
        {
            let fence = association.fence.terms();
            done.suspects.push(Suspect { tag, fate: Fate::Unknown, cause: code, fence });
            self.fenced.push(Fenced { tag, code, association });
            return;
        }
        let proof = match (request.sent, request.answered) {
            (true, _) if changes => Proof::Aborted,
            (true, _) => Proof::SocketClosed,
            (false, true) => Proof::Answered,
            (false, false) => Proof::NeverSent,
        };
        let status = if request.status.is_ok() { code.into() } else { request.status };
        done.complete_with(tag, status, proof);
    }

    /// Completes the changes that are quiet by now.
    #[cold]
    pub(crate) fn release_fenced(&mut self, now: Time, done: &mut Done) {
        if now < self.fence_look() {
            return;
        }
        let (mut at, mut next, mut released) = (0, Time::NEVER, None);
        let mut count = 0;
        while let Some(fenced) = self.fenced.get(at) {
            match fenced.association.fence.quiet_at() {
                Some(quiet) if now >= quiet => {
                    let proof = fenced.association.fence.terms().proof;
                    done.complete_with(fenced.tag, fenced.code.into(), proof);
                    released = Some(proof);
                    count += 1;
                    // In order: what was reported first completes first.
                    self.fenced.remove(at);
                }
                quiet => {
                    next = next.min(quiet.unwrap_or(now.after(OTHERS)));
                    at += 1;
                }
            }
        }
        self.look_at_fences_at(next);
        if let Some(proof) = released {
            tracing::info!(path = %self.shared.config.name, qid = self.qid, commands = count, %proof, "lost changes are quiet");
        }
    }

    /// When fences are to be looked at next, if there are any.
    pub(crate) fn next_fence(&self) -> Option<Time> {
        (!self.fenced.is_empty()).then(|| self.fence_look())
    }

    pub(crate) fn take_abort_answer(&mut self, answer: AbortAnswer) {
        let current = self.association.as_ref().is_some_and(|a| a.generation == answer.generation);
        let same = self.link.as_ref().and_then(|link: &Link| link.cid(answer.slot)) == Some(answer.cid);
        if answer.aborted && current && same {
            self.watch.proven(answer.slot, answer.cid);
        }
    }
}
