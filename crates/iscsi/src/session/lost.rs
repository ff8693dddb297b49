//! Changes that were on the way when their connection was lost, until it is proven that nothing of them can happen any more.

use polypath_block::{Code, Proof, Time};
use polypath_scsi::midlayer::{Outcome, TaskDone, TaskEnd};
use std::time::Duration;

#[derive(Debug)]
struct Lost {
    tag: u64,
    code: Code,
    /// The portal group of the session that it was sent over.
    portal_group: Option<u16>,
    /// By when it is taken for quiet if the target does not answer. Unset while the socket is being closed.
    by: Option<Time>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct LostTasks {
    list: Vec<Lost>,
    portal_group: Option<u16>,
    bound_ms: u32,
}

impl LostTasks {
    pub(super) fn new(depth: u16) -> Self {
        LostTasks { list: Vec::with_capacity(depth.into()), portal_group: None, bound_ms: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Sessions belong to this portal group from now on.
    pub(super) fn set_portal_group(&mut self, tag: Option<u16>) {
        self.portal_group = tag;
    }

    /// The portal group that sessions belong to.
    pub(super) fn portal_group(&self) -> Option<u16> {
        self.portal_group
    }

    pub(super) fn add(&mut self, tag: u64, code: Code) {
        self.list.push(Lost { tag, code, portal_group: self.portal_group, by: None });
    }

    /// The socket of those that were added last was closed at `at`.
    pub(super) fn closed(&mut self, at: Time, bound: Duration) {
        self.bound_ms = u32::try_from(bound.as_millis()).unwrap_or(u32::MAX);
        for lost in self.list.iter_mut().filter(|lost| lost.by.is_none()) {
            lost.by = Some(at.after(bound));
        }
    }

    /// The target has taken a login of the same initiator port at the portal group `tag`, which has ended the session before it: all
    /// that was sent over that one is quiet. Says how many.
    pub(super) fn reinstated(&mut self, tag: Option<u16>, done: &mut TaskDone) -> Option<usize> {
        // A target that does not say which portal group it is may be another one.
        let same = |lost: &Lost| tag.is_some() && lost.portal_group == tag;
        self.release(Proof::Reinstated, same, done)
    }

    /// Those whose bound has passed are taken for quiet. Says how many.
    pub(super) fn expired(&mut self, now: Time, done: &mut TaskDone) -> Option<usize> {
        if self.list.is_empty() {
            return None;
        }
        let proof = Proof::ConfiguredBound { bound_ms: self.bound_ms };
        self.release(proof, |lost| lost.by.is_some_and(|by| now >= by), done)
    }

    /// When the first bound passes.
    pub(super) fn due(&self) -> Option<Time> {
        self.list.iter().filter_map(|lost| lost.by).min()
    }

    fn release(&mut self, proof: Proof, which: impl Fn(&Lost) -> bool, done: &mut TaskDone) -> Option<usize> {
        let before = self.list.len();
        self.list.retain(|lost| {
            let quiet = which(lost);
            if quiet {
                done.ends.push(TaskEnd { tag: lost.tag, outcome: Outcome::Lost(lost.code), proof });
            }
            !quiet
        });
        let released = before - self.list.len();
        (released > 0).then_some(released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_has_its_own_bound_and_its_own_portal_group() {
        let (at, bound) = (Time::from_millis, Duration::from_millis(100));
        let mut lost = LostTasks::new(4);
        for (tag, group, closed) in [(1, Some(1), 1000), (2, Some(2), 1060), (3, None, 1070)] {
            lost.set_portal_group(group);
            lost.add(tag, Code::PathLost);
            lost.closed(at(closed), bound);
        }
        let mut done = TaskDone::default();
        let ended = |done: &mut TaskDone| done.ends.drain(..).map(|end| end.tag).collect::<Vec<_>>();
        assert_eq!((lost.expired(at(1099), &mut done), lost.due()), (None, Some(at(1100))));
        lost.expired(at(1159), &mut done);
        assert_eq!(ended(&mut done), [1]);
        for (group, quiet) in [(Some(3), &[][..]), (None, &[]), (Some(2), &[2])] {
            lost.reinstated(group, &mut done);
            assert_eq!(ended(&mut done), quiet, "{group:?}");
        }
        lost.expired(at(1170), &mut done);
        assert_eq!((ended(&mut done), lost.is_empty()), (vec![3], true));
    }
}
