//! One request to one path at a time.

use crate::cache::{FlushTarget, Written};
use polypath_block::{Io, Proof, SlotKey, Status, Time};

/// To whom the outcome of a task or parent goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// The submitter, under this tag.
    User(u64),
    /// A parent.
    Part(SlotKey),
    /// The removal of the path in this slot, which flushes its cache first.
    Removal(usize),
}

/// A request from `submit` to its completion, whatever paths it sees.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) io: Io,
    /// What of a part is sent afterwards: its path takes less at a time than the one that it was cut for.
    pub(super) rest: Option<Io>,
    /// What is proven of what was sent before.
    pub(super) proof_before: Proof,
    pub(super) owner: Owner,
    /// Number of the current attempt: completions of superseded ones must not finish it.
    pub(super) attempt: u32,
    /// Attempts whose completion has not come.
    pub(super) outstanding: u32,
    /// The current attempt is suspect.
    pub(super) suspect: bool,
    /// Number of the volatile cache that the current attempt went to, if there was one then.
    pub(super) cache: Option<u8>,
    /// The volatile cache that it was written to.
    pub(super) written: Option<Written>,
    /// Its outcome, when only superseded attempts keep it open.
    pub(super) settled: Option<(Status, Proof)>,
    /// Why its last attempt is known to be quiet.
    pub(super) proof: Proof,
    /// Slots it failed on since all were tried.
    pub(super) tried: u64,
    pub(super) retries: u16,
    /// What to report when every path refuses it in the same way.
    pub(super) refusal: Option<Status>,
    /// Slots that refused it since all were tried.
    pub(super) refused: u64,
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
            proof_before: Proof::NeverSent,
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
            first_failure: None,
            no_path_since: None,
            started: now,
            flush,
        }
    }
}

impl Task {
    /// Keeps `first` to be sent now, and `rest` of what was to be sent until now for afterwards.
    pub(super) fn cut(&mut self, first: Io, rest: Option<Io>) {
        let blocks = self.rest.map_or(0, |later| later.blocks);
        self.io = first;
        self.rest = rest.map(|rest| Io { blocks: rest.blocks + blocks, ..rest }).or(self.rest);
    }

    /// What was sent is done: begins with the rest, if there is one.
    pub(super) fn go_on(&mut self, proof: Proof) -> bool {
        let Some(rest) = self.rest.take() else { return false };
        self.io = rest;
        self.proof_before = self.proof_before.and(proof);
        (self.tried, self.refused, self.refusal, self.retries) = (0, 0, None, 0);
        (self.first_failure, self.no_path_since, self.settled) = (None, None, None);
        self.proof = Proof::NeverSent;
        // As for an attempt that is superseded: nothing that is still said of what is done is said of the rest.
        self.attempt = self.attempt.wrapping_add(1);
        self.suspect = false;
        true
    }
}

/// The tag of an attempt: a late completion of a superseded one is told apart.
pub(super) const fn tag(key: SlotKey, attempt: u32) -> u64 {
    (attempt as u64) << 32 | key.as_u32() as u64
}

pub(super) const fn untag(tag: u64) -> (SlotKey, u32) {
    (SlotKey::from_u32(tag as u32), (tag >> 32) as u32)
}
