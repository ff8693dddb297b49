//! One request to one path at a time.

use crate::cache::{Began, FlushTarget, SentTo, Written};
use polypath_block::{Io, Proof, SlotKey, Status, Time};

/// To whom the outcome of a task or parent goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// The submitter, under this tag.
    User(u64),
    /// The submitter of a flush.
    Flush(u64, Began),
    /// A parent.
    Part(SlotKey),
    /// The removal of the path in this slot, which flushes its cache first.
    Removal(usize),
}

/// What is proven of a request or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Proofs {
    /// Of the attempts that succeeded, if all of it does.
    pub(super) answer: Proof,
    /// Of every attempt: each may have done something.
    pub(super) all: Proof,
}

impl Proofs {
    /// Of what was not sent at all.
    pub(super) const NEVER_SENT: Proofs = Proofs { answer: Proof::NeverSent, all: Proof::NeverSent };

    pub(super) fn both(proof: Proof) -> Proofs {
        Proofs { answer: proof, all: proof }
    }

    pub(super) fn and(self, other: Proofs) -> Proofs {
        Proofs { answer: self.answer.and(other.answer), all: self.all.and(other.all) }
    }

    /// What is told: one that succeeds has its answer.
    pub(super) fn told(self, status: Status) -> Proof {
        if status.is_ok() { self.answer } else { self.all }
    }
}

/// A request from `submit` to its completion, whatever paths it sees.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) io: Io,
    /// What of a part is sent afterwards: its path takes less at a time than the one that it was cut for.
    rest: Option<Io>,
    /// What is proven of what was sent before, alone or together with the rest.
    proofs_before: Proofs,
    pub(super) owner: Owner,
    /// Number of the current attempt, zero before the first: completions of superseded ones must not finish it.
    pub(super) attempt: u32,
    /// Attempts whose completion has not come.
    pub(super) outstanding: u32,
    /// The current attempt is suspect.
    pub(super) suspect: bool,
    /// The volatile cache that the current attempt went to, if there was one then.
    pub(super) cache: Option<SentTo>,
    /// The volatile cache that it was written to.
    pub(super) written: Option<Written>,
    /// Its outcome, when only superseded attempts keep it open.
    pub(super) settled: Option<(Status, Proof)>,
    /// Why all attempts that are over are known to be quiet.
    pub(super) proof: Proof,
    /// Slots it failed on since all were tried.
    pub(super) tried: u64,
    pub(super) retries: u16,
    /// What to report when every path refuses it in the same way.
    pub(super) refusal: Option<Status>,
    /// Slots that refused it since all were tried.
    pub(super) refused: u64,
    /// When the next round begins, since all were tried.
    pub(super) next_round: Option<Time>,
    pub(super) first_failure: Option<Time>,
    /// Since when no path can take it.
    pub(super) no_path_since: Option<Time>,
    pub(super) started: Time,
    /// Of a flush: the cache it must reach.
    pub(super) flush: Option<FlushTarget>,
}

impl Task {
    pub(super) fn new(io: Io, owner: Owner, now: Time, flush: Option<FlushTarget>) -> Self {
        Task {
            io,
            rest: None,
            proofs_before: Proofs::NEVER_SENT,
            owner,
            attempt: 0,
            outstanding: 0,
            suspect: false,
            cache: None,
            written: None,
            settled: None,
            proof: Proof::NeverSent,
            tried: 0,
            retries: 0,
            refusal: None,
            refused: 0,
            next_round: None,
            first_failure: None,
            no_path_since: None,
            started: now,
            flush,
        }
    }
}

impl Task {
    /// A part of a request, of which `proof` is proven: it may have been sent as a whole before.
    pub(super) fn part(io: Io, proof: Proof, parent: SlotKey, now: Time, flush: Option<FlushTarget>) -> Self {
        Task { proof, ..Task::new(io, Owner::Part(parent), now, flush) }
    }

    /// A request that a path has had since `started`, in attempt `attempt`; `cache`: where it was written to, if that is a volatile one.
    pub(super) fn sent(io: Io, started: Time, attempt: u32, cache: Option<SentTo>) -> Self {
        Task { attempt, outstanding: 1, cache, ..Task::new(io, Owner::User(io.tag), started, None) }
    }

    /// Keeps `first` to be sent now, and `rest` of what was to be sent until now for afterwards. Both may have been sent together.
    pub(super) fn cut(&mut self, first: Io, rest: Io) {
        let later = self.rest.map_or(0, |later| later.blocks);
        self.io = first;
        self.rest = Some(Io { blocks: rest.blocks + later, ..rest });
    }

    /// Every path may be tried again.
    pub(super) fn begin_round(&mut self) {
        (self.tried, self.refused, self.next_round) = (0, 0, None);
    }

    /// What was sent is done: begins with the rest, if there is one, as with a request of its own.
    pub(super) fn go_on(&mut self, proofs: Proofs) -> bool {
        let Some(rest) = self.rest.take() else { return false };
        *self = Task {
            proofs_before: self.proofs_before.and(proofs),
            outstanding: self.outstanding,
            written: self.written,
            ..Task::new(rest, self.owner, self.started, None)
        };
        true
    }

    /// What is proven of all of it, if `proofs` is what is proven of what was sent last.
    pub(super) fn proofs_of_all(&self, proofs: Proofs) -> Proofs {
        self.proofs_before.and(proofs)
    }

    /// Another path is in `slot` now: what this was told there was said by the one before.
    pub(super) fn forget_slot(&mut self, slot: usize) {
        self.tried &= !(1 << slot);
        self.refused &= !(1 << slot);
    }
}

/// In the tags of tasks. Requests that have it in their own tag are tasks from the beginning.
pub(super) const TASK: u64 = 1 << 63;

/// Is it the tag of a task?
#[inline]
pub(super) const fn is_task(tag: u64) -> bool {
    tag & TASK != 0
}

/// The number after `attempt`: of 31 bits, and never zero.
pub(super) const fn next_attempt(attempt: u32) -> u32 {
    let next = attempt.wrapping_add(1) & (u32::MAX >> 1);
    if next == 0 { 1 } else { next }
}

/// The tag of an attempt: a late completion of a superseded one is told apart.
pub(super) const fn tag(key: SlotKey, attempt: u32) -> u64 {
    TASK | (attempt as u64) << 32 | key.as_u32() as u64
}

pub(super) const fn untag(tag: u64) -> (SlotKey, u32) {
    (SlotKey::from_u32(tag as u32), (tag >> 32) as u32 & (u32::MAX >> 1))
}
