//! One operation on the paths of a group, one path after the other.

use super::{Candidate, Holder, Membership};
use crate::shared::GroupShared;
use core::time::Duration;
use polypath_block::{Code, ReservationError, ReservationOp, ReservationReply, ReservationReport, ReservationResult};
use std::collections::VecDeque;
use std::sync::Weak;

/// How the paths are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// All of them.
    Each,
    /// The first that can.
    Any,
    /// It was lost in the middle: a report tells, whoever brings it. With the number of paths that were asked for one.
    Resolve,
    /// It was released where it may not be held: a report tells.
    Verify,
}

/// See the module.
pub(super) struct Round {
    group: Weak<GroupShared>,
    op: ReservationOp,
    limit: Duration,
    way: Way,
    rest: VecDeque<Candidate>,
    all: Vec<Candidate>,
    done: Vec<Candidate>,
    first_failure: Option<ReservationError>,
    /// What was said of it when it was lost in the middle.
    lost: Option<ReservationError>,
    reply: ReservationReply,
}

impl Round {
    /// Begins it. The group is busy until it ends.
    pub(super) fn start(
        group: Weak<GroupShared>,
        op: ReservationOp,
        limit: Duration,
        candidates: Vec<Candidate>,
        reply: ReservationReply,
    ) {
        use ReservationOp as Op;
        let way = match op {
            Op::Register { .. } | Op::Join { .. } | Op::Unregister { .. } => Way::Each,
            Op::Reserve { .. } | Op::Release { .. } | Op::Preempt { .. } | Op::Clear { .. } | Op::Report => Way::Any,
        };
        let rest = candidates.iter().cloned().collect();
        let (done, first_failure, lost) = (Vec::new(), None, None);
        Round { group, op, limit, way, rest, all: candidates, done, first_failure, lost, reply }.go();
    }

    fn go(mut self) {
        let Some(next) = self.rest.pop_front() else { return self.asked_all() };
        let op = match (self.way, self.op) {
            (Way::Resolve | Way::Verify, _) => ReservationOp::Report,
            // The first one has registered it: it is there, or somebody has ended it since.
            (Way::Each, ReservationOp::Register { key }) if !self.done.is_empty() => {
                let host = next.host().filter(|host| self.done.iter().any(|done| done.host() == Some(*host)));
                ReservationOp::Join { key, host }
            }
            (_, op) => op,
        };
        let (path, limit) = (next.clone(), self.limit);
        next.ask(op, limit, move |result| self.took(path, result));
    }

    fn took(mut self, path: Candidate, result: ReservationResult) {
        match (self.way, result) {
            (Way::Each, Ok(_)) => {
                self.done.push(path);
                self.go();
            }
            (Way::Each, Err(error)) => {
                let ends = matches!(self.op, ReservationOp::Unregister { .. });
                if error.code == Code::ReservationConflict && !ends {
                    return self.finish(Err(error));
                }
                self.note(&path, error);
                self.go();
            }
            (Way::Any, Ok(report)) => self.carried_out(&path, report),
            (Way::Any, Err(error)) if error.code == Code::OutcomeUnknown && !self.op.is_read() => {
                self.lost = Some(self.note(&path, error));
                self.ask_all(Way::Resolve, &path);
            }
            (Way::Any, Err(error)) if error.is_of_path() || self.op.is_read() => {
                self.note(&path, error);
                self.go();
            }
            (Way::Any, Err(error)) => self.finish(Err(error)),
            (Way::Resolve, Ok(Some(report))) if self.is_so(&report) => self.carried_out(&path, None),
            (Way::Resolve, Ok(Some(_))) => self.not_carried_out(),
            (Way::Verify, Ok(Some(report))) if !self.is_so(&report) => {
                let reason = "it is reserved still, over a path that does not answer now; expected that one, or preempt or clear";
                self.finish(Err(ReservationError::new(Code::PathNoAccess, reason)));
            }
            (Way::Verify, Ok(_)) => self.finish(Ok(None)),
            (Way::Resolve | Way::Verify, result) => {
                self.note(
                    &path,
                    result.err().unwrap_or_else(|| ReservationError::new(Code::PathProtocol, "no report")),
                );
                self.go();
            }
        }
    }

    /// All paths are asked for a report, `last` after the others.
    fn ask_all(mut self, way: Way, last: &Candidate) {
        self.way = way;
        self.rest = self.all.iter().cloned().collect();
        self.rest.make_contiguous().sort_by_key(|c| c.id == last.id);
        self.go();
    }

    /// A report shows nothing of what was lost in the middle. It says so for good only if that was quiet before it was asked for.
    fn not_carried_out(mut self) {
        let lost = self.lost.take().unwrap_or_else(|| ReservationError::new(Code::OutcomeUnknown, "it was lost"));
        let ReservationError { reason, quiet, .. } = lost;
        let error = match quiet {
            Some(proof) => {
                let reason = format!("it was not carried out: {reason}; a report shows nothing of it ({proof})");
                ReservationError::new(Code::Aborted, reason)
            }
            None => {
                let reason = format!("{reason}; a report shows nothing of it yet, and it may be carried out still");
                ReservationError::new(Code::OutcomeUnknown, reason)
            }
        };
        self.finish(Err(error));
    }

    /// Answers with the error, and the path in it.
    fn note(&mut self, path: &Candidate, error: ReservationError) -> ReservationError {
        if let Some(group) = self.group.upgrade() {
            tracing::warn!(group = %group.name, path = %path.name, op = ?self.op, reason = %error, "a reservation command failed on a path");
        }
        let error = ReservationError { reason: format!("path {}: {}", path.name, error.reason), ..error };
        self.first_failure.get_or_insert_with(|| error.clone());
        error
    }

    /// It was carried out over `path`.
    fn carried_out(self, path: &Candidate, report: Option<ReservationReport>) {
        use ReservationOp as Op;
        let Some(group) = self.group.upgrade() else { return };
        let held_elsewhere = {
            let mut state = group.desk.lock();
            let held_elsewhere = state.holder.is_some_and(|holder| !holder.is(path));
            match self.op {
                Op::Reserve { kind, .. } | Op::Preempt { kind, .. } => {
                    let holder = Holder { path: path.id, host: path.host() };
                    (state.shown.kind, state.holder) = (Some(kind), Some(holder));
                }
                Op::Release { .. } if !held_elsewhere => (state.shown.kind, state.holder) = (None, None),
                _ => {}
            }
            held_elsewhere
        };
        match self.op {
            Op::Clear { .. } => {
                group.forget_reservations();
                self.finish(Ok(None));
            }
            Op::Release { .. } if held_elsewhere => self.ask_all(Way::Verify, path),
            _ => self.finish(Ok(report)),
        }
    }

    /// Does the report show what was wanted?
    fn is_so(&self, report: &ReservationReport) -> bool {
        use ReservationOp as Op;
        match self.op {
            Op::Reserve { key, kind } => report.held == Some(kind) && report.is_held_by(key),
            Op::Release { key, .. } => !report.is_held_by(key),
            Op::Preempt { victim, .. } => !report.has(victim),
            Op::Clear { key } => !report.has(key),
            Op::Register { .. } | Op::Join { .. } | Op::Unregister { .. } | Op::Report => false,
        }
    }

    fn asked_all(mut self) {
        use ReservationOp as Op;
        let failure = self.first_failure.take();
        let unknown = || {
            let reason = failure.as_ref().map_or_else(String::new, |error| format!(": {}", error.reason));
            ReservationError::new(Code::OutcomeUnknown, format!("whether it was carried out is not known{reason}"))
        };
        let result = match (self.way, self.op) {
            (Way::Resolve | Way::Verify, _) => {
                Err(ReservationError { quiet: self.lost.as_ref().and_then(|lost| lost.quiet), ..unknown() })
            }
            (_, Op::Register { key } | Op::Join { key, .. }) if !self.done.is_empty() => {
                if let Some(group) = self.group.upgrade() {
                    group.claim(key, &self.done);
                }
                Ok(None)
            }
            (_, Op::Unregister { .. }) => {
                // What is not registered there, or does not answer, is not claimed any more either.
                if let Some(group) = self.group.upgrade() {
                    group.unclaim(&self.done);
                }
                failure.filter(|_| self.done.is_empty()).map_or(Ok(None), Err)
            }
            _ => Err(failure.unwrap_or_else(|| ReservationError::new(Code::NoPath, "no path answers now"))),
        };
        self.finish(result);
    }

    fn finish(self, result: ReservationResult) {
        if let Some(group) = self.group.upgrade() {
            group.desk.lock().busy = false;
        }
        self.reply.answer(result);
    }
}

impl GroupShared {
    /// Nothing is claimed any more. The devices of `ended` know; the others are to forget.
    fn unclaim(&self, ended: &[Candidate]) {
        {
            let mut state = self.desk.lock();
            state.shown = super::ReservationState::default();
            (state.holder, state.paths) = (None, std::collections::BTreeMap::<_, Membership>::new());
            state.hosts.clear();
        }
        self.desk.active.store(false, std::sync::atomic::Ordering::Release);
        let others: Vec<_> = {
            let control = self.lock();
            let others = control.paths.iter().filter(|p| ended.iter().all(|e| e.id != p.shared.id));
            others.map(|p| p.shared.device.clone()).collect()
        };
        others.iter().filter_map(|device| device.reservations()).for_each(|power| power.forget());
        let mut control = self.lock();
        control.look_again();
        self.review_changed(&mut control);
    }
}
