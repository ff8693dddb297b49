//! What a queue waits for, as whoever rests or sleeps for it has named it.

use polypath_block::{Interest, Time, Waits};

/// What the queue named when it was asked whether the reactor may sleep, or one user rest.
#[derive(Clone, Copy)]
pub(super) struct Named {
    /// Where in the list, and how many.
    at: usize,
    count: usize,
    first: Interest,
    last: Interest,
    deadline: Option<Time>,
}

impl Named {
    /// What was named in `waits` from `at` on.
    pub(super) fn since(at: usize, waits: &Waits) -> Option<Named> {
        let named = waits.interests.get(at..)?;
        let (&first, &last) = (named.first()?, named.last()?);
        Some(Named { at, count: named.len(), first, last, deadline: waits.deadline })
    }

    /// Is `other` the same, and due no earlier?
    pub(super) fn covers(&self, other: &Named) -> bool {
        let in_time = other.deadline.is_none_or(|at| self.deadline.is_some_and(|deadline| deadline <= at));
        (self.count, self.first, self.last) == (other.count, other.first, other.last) && in_time
    }

    /// Does `waits` hold all of it? Nobody else names these descriptors.
    pub(super) fn is_in(&self, waits: &Waits) -> bool {
        let has = |at: usize, interest| waits.interests.get(at) == Some(interest);
        let in_time = |at: Time| waits.deadline.is_some_and(|deadline| deadline <= at);
        has(self.at, &self.first) && has(self.at + self.count - 1, &self.last) && self.deadline.is_none_or(in_time)
    }
}
