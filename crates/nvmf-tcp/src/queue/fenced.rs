//! Changes whose connection was lost and that are not quiet yet. Each belongs to the association it was sent over, whatever becomes
//! of the queue meanwhile.

use crate::association::Association;
use polypath_block::{Code, Done, Fate, FenceState, FenceTerms, Proof, QueueFence, Suspect, Time};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::association::lock;

/// How often it is looked whether other threads have closed their sockets, too.
const OTHERS: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct Fenced {
    tag: u64,
    code: Code,
    association: Arc<Association>,
}

/// See the module. Bounded: whoever adds has looked at [`FencedChanges::room`].
pub(super) struct FencedChanges {
    list: Vec<Fenced>,
    look: Time,
}

impl FencedChanges {
    pub(super) fn new(capacity: usize) -> Self {
        FencedChanges { list: Vec::with_capacity(capacity), look: Time::ZERO }
    }

    /// How many more it takes.
    pub(super) fn room(&self) -> usize {
        self.list.capacity() - self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Reports a change as suspect and keeps it until the fence of `association` proves it quiet.
    pub(super) fn add(&mut self, tag: u64, code: Code, association: &Arc<Association>, done: &mut Done) {
        done.suspects.push(Suspect { tag, fate: Fate::Unknown, cause: code, fence: association.fence.terms() });
        self.list.push(Fenced { tag, code, association: association.clone() });
        self.look = Time::ZERO;
    }

    /// Completes the changes that are quiet by now, in the order they were reported. Says which proof it was, and for how many.
    #[cold]
    pub(super) fn release(&mut self, now: Time, done: &mut Done) -> Option<(Proof, usize)> {
        if now < self.look {
            return None;
        }
        let (mut next, mut released, mut count) = (Time::NEVER, None, 0);
        self.list.retain(|fenced| match fenced.association.fence.quiet_at() {
            Some(quiet) if now >= quiet => {
                let proof = fenced.association.fence.terms().proof;
                done.complete_with(fenced.tag, fenced.code.into(), proof);
                released = Some(proof);
                count += 1;
                false
            }
            quiet => {
                next = next.min(quiet.unwrap_or(now.after(OTHERS)));
                true
            }
        });
        self.look = next;
        released.map(|proof| (proof, count))
    }

    /// When to look next, if there is anything to look at.
    pub(super) fn next_look(&self) -> Option<Time> {
        (!self.list.is_empty()).then_some(self.look)
    }

    /// Hands over to `end_fence` what is left of them: the reactor ends.
    pub(super) fn abandon(&mut self, end_fence: &EndFence) {
        self.list.drain(..).for_each(|fenced| end_fence.leave(fenced.association));
    }
}

/// What stays of a queue that was dropped undrained: the associations over which something may still be carried out.
#[derive(Debug)]
pub(super) struct EndFence {
    assumed: FenceTerms,
    left: Mutex<Option<Vec<Arc<Association>>>>,
}

impl EndFence {
    /// `assumed`: the terms while nothing is known.
    pub(super) fn new(assumed: FenceTerms) -> Self {
        EndFence { assumed, left: Mutex::new(None) }
    }

    /// The queue has ended.
    pub(super) fn end(&self) {
        lock(&self.left).get_or_insert_default();
    }

    /// The queue has ended and left something behind on `association`.
    pub(super) fn leave(&self, association: Arc<Association>) {
        let mut left = lock(&self.left);
        let left = left.get_or_insert_default();
        if !left.iter().any(|known| Arc::ptr_eq(known, &association)) {
            left.push(association);
        }
    }
}

impl QueueFence for EndFence {
    fn terms(&self) -> FenceTerms {
        let left = lock(&self.left);
        let longest = left.iter().flatten().map(|a| a.fence.terms()).max_by_key(|terms| terms.within);
        longest.unwrap_or(self.assumed)
    }

    fn state(&self, now: Time) -> FenceState {
        let left = lock(&self.left);
        let Some(associations) = &*left else { return FenceState::Idle };
        let (mut by, mut proof) = (now, Proof::SocketClosed);
        for association in associations {
            let quiet = association.fence.quiet_at().unwrap_or(now.after(OTHERS));
            if quiet >= by {
                (by, proof) = (quiet, association.fence.terms().proof);
            }
        }
        if by > now { FenceState::Pending { by } } else { FenceState::Quiet(proof) }
    }
}
