//! The requests of one queue, and what the end of their commands means for them.
//!
//! A request is cut into commands (parts) where it is larger than the controller takes. It completes once, when no part of it is
//! outstanding; it succeeds only when all of it was sent and all parts succeeded.

use super::fenced::FencedChanges;
use crate::association::Association;
use crate::link::{Ended, Finished};
use crate::proto::Outcome;
use crate::status;
use polypath_block::{
    Code, Completion, Done, Io, Op, Proof, Scope, SegTable, SlotKey, Slots, Splitter, Status, Time, Unit,
};
use polypath_nvme::StatusField;
use std::collections::VecDeque;
use std::sync::Arc;

/// One accepted request.
#[derive(Debug)]
struct Request {
    tag: u64,
    op: Op,
    unit: Unit,
    /// Octets of data.
    bytes: u64,
    /// Something was not made into commands yet; what, is in [`Requests::rests`]. Unset only when that is empty, or with an error: see
    /// [`Request::fail`].
    rest: bool,
    /// Commands outstanding.
    parts: u32,
    /// The first error, or success.
    status: Status,
    /// Some command of it was answered.
    answered: bool,
    /// When the oldest command outstanding may have been sent, or a command of it last finished: the time limit is that of commands,
    /// and a large request has many.
    since: Time,
    /// Since when it is being aborted, or when an Abort of it was last answered.
    aborting: Option<Time>,
    /// Aborts of its commands that were ordered and not answered.
    aborts: u32,
    lost: Lost,
}

/// What is known of the commands of a request that were on the way when their connection was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Lost {
    /// There was none.
    None,
    /// Nothing of them had left.
    NotSent,
    /// The controller had aborted all of them.
    Aborted,
    /// Some may still be carried out.
    Unproven,
}

impl Request {
    /// It does not succeed any more, and nothing more of it is sent. The first error stands.
    fn fail(&mut self, status: Status) {
        debug_assert!(!status.is_ok());
        if self.status.is_ok() {
            self.status = status;
        }
        self.rest = false;
    }

    /// Takes the answer to one of its commands; returns what that command's status means.
    #[inline]
    fn take_answer(&mut self, finished: &Finished) -> Code {
        self.parts -= 1;
        self.answered = true;
        let mut status = status::map(finished.cqe.status);
        if finished.bad_memory && status.is_ok() {
            status = Code::BadMemory.into();
        }
        let code = status.code;
        if !status.is_ok() {
            if self.aborting.is_some() && finished.cqe.status.is(StatusField::ABORT_REQUESTED) {
                // We asked for it because the answer did not come: that is about the way, as is an abort that nobody asked for.
                status.code = Code::PathTimeout;
            }
            self.fail(status);
        }
        code
    }

    /// Is one command of it outstanding, with whose success it succeeds?
    #[inline]
    fn is_only_good_part(&self) -> bool {
        self.parts == 1 && !self.rest && self.status.is_ok()
    }

    fn is_over(&self) -> bool {
        self.parts == 0 && !self.rest
    }

    /// Why it is quiet when no part of it is outstanding.
    fn proof(&self) -> Proof {
        if self.answered { Proof::Answered } else { Proof::NeverSent }
    }
}

/// See the module.
pub(super) struct Requests {
    slots: Slots<Request>,
    /// By index: what was not made into commands yet of a request that says so.
    rests: Box<[Option<Splitter>]>,
    /// Those with something that was not sent yet, in the order they came.
    backlog: VecDeque<SlotKey>,
    /// Finished before they left, to be handed out by the next poll.
    early: Vec<Completion>,
}

/// What the end of a command has brought about.
pub(super) struct Ending {
    /// What the command's status means.
    pub(super) code: Code,
    /// Octets of data of the request if it has completed; otherwise none.
    pub(super) bytes: u64,
}

impl Requests {
    pub(super) fn new(capacity: u16) -> Self {
        Requests {
            slots: Slots::new(capacity),
            rests: vec![None; capacity.into()].into(),
            backlog: VecDeque::with_capacity(usize::from(capacity) * 2),
            early: Vec::with_capacity(usize::from(capacity)),
        }
    }

    /// Accepted and not finished.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len().into()
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.slots.is_full() || self.early.len() == self.early.capacity()
    }

    /// How many more it takes.
    #[inline]
    pub(super) fn room(&self) -> usize {
        if self.is_full() { 0 } else { usize::from(self.slots.capacity() - self.slots.len()) }
    }

    /// Is nothing open, and nothing to be handed out?
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.early.is_empty()
    }

    #[inline]
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    #[inline]
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    pub(super) fn drain_early(&mut self, done: &mut Done) {
        done.completions.append(&mut self.early);
    }

    /// A request that ends before anything of it left.
    pub(super) fn refuse(&mut self, tag: u64, status: Status) {
        self.early.push(Completion { tag, status, proof: Proof::NeverSent });
    }

    /// Takes a request of `bytes` octets of data that the caller sends whole, as its only part. `None` when there is no room.
    #[inline]
    pub(super) fn insert(&mut self, unit: Unit, io: &Io, bytes: u64, now: Time) -> Option<SlotKey> {
        let request = Request {
            tag: io.tag,
            op: io.op,
            unit,
            bytes,
            rest: false,
            parts: 1,
            status: Status::OK,
            answered: false,
            since: now,
            aborting: None,
            aborts: 0,
            lost: Lost::None,
        };
        self.slots.insert(request).ok()
    }

    /// The request `key` was not sent as a whole: it waits, to be cut by `splitter`.
    pub(super) fn queue(&mut self, key: SlotKey, splitter: Splitter) {
        if let Some(request) = self.slots.get_mut(key) {
            request.parts = 0;
            request.rest = true;
            self.rests[usize::from(key.index())] = Some(splitter);
            self.backlog.push_back(key);
        }
    }

    /// The next command to be made of what waits. [`Requests::part_sent`] follows if it was; otherwise the same comes again.
    pub(super) fn next_part(&mut self, segs: &SegTable) -> Option<(SlotKey, Unit, Io)> {
        while let Some(&key) = self.backlog.front() {
            let Some(request) = self.slots.get_mut(key).filter(|r| r.rest) else {
                self.backlog.pop_front();
                continue;
            };
            let part = self.rests[usize::from(key.index())].and_then(|mut rest| rest.next_part(segs));
            match part {
                Some(Ok(part)) => return Some((key, request.unit, part)),
                Some(Err(status)) => request.fail(status),
                None => request.rest = false,
            }
            self.backlog.pop_front();
            self.end_early(key);
        }
        None
    }

    /// The part that [`Requests::next_part`] gave last is on its way.
    pub(super) fn part_sent(&mut self, key: SlotKey, now: Time, segs: &SegTable) {
        let Some(request) = self.slots.get_mut(key) else { return };
        if request.parts == 0 {
            // It has waited for room so far, which is not the controller's doing.
            request.since = now;
        }
        request.parts += 1;
        if request.rest
            && let Some(rest) = &mut self.rests[usize::from(key.index())]
        {
            rest.next_part(segs);
            request.rest = { *rest }.next_part(segs).is_some();
        }
    }

    /// A command has finished: the request completes when it was the last.
    #[inline]
    pub(super) fn finish(&mut self, finished: &Finished, now: Time, done: &mut Done) -> Option<Ending> {
        let key = SlotKey::from_u32(finished.user as u32);
        let good = finished.cqe.status.is_success() && !finished.bad_memory;
        if good && let Some(Request { tag, bytes, .. }) = self.slots.remove_if(key, Request::is_only_good_part) {
            done.complete(tag, Status::OK);
            return Some(Ending { code: Code::Ok, bytes });
        }
        self.finish_part(key, finished, now, done)
    }

    /// The same of a command that failed, or that is not all of its request.
    #[inline(never)]
    fn finish_part(&mut self, key: SlotKey, finished: &Finished, now: Time, done: &mut Done) -> Option<Ending> {
        let request = self.slots.get_mut(key)?;
        let code = request.take_answer(finished);
        if !request.is_over() {
            if request.aborting.is_none() {
                request.since = now;
            }
            return Some(Ending { code, bytes: 0 });
        }
        let request = self.slots.remove(key)?;
        done.complete(request.tag, request.status);
        Some(Ending { code, bytes: request.bytes })
    }

    /// Requests with a command outstanding for `limit` or longer, and since when each is being aborted. Those whose Aborts are not
    /// answered are left out: these have a time limit of their own, which costs the association, and wait for each other.
    pub(super) fn late(&self, now: Time, limit: std::time::Duration) -> Vec<(SlotKey, Option<Time>)> {
        let late = self.slots.iter().filter(|(_, r)| r.parts > 0 && r.aborts == 0 && now.since(r.since) >= limit);
        late.map(|(key, r)| (key, r.aborting)).collect()
    }

    /// The request takes too long: what has not left will not, and it does not succeed any more.
    pub(super) fn abort(&mut self, key: SlotKey, now: Time) {
        if let Some(request) = self.slots.get_mut(key) {
            request.aborting = Some(now);
            if request.rest {
                request.fail(Code::PathTimeout.into());
            }
        }
    }

    /// An Abort of a command of the request was ordered.
    pub(super) fn abort_ordered(&mut self, key: SlotKey) {
        if let Some(request) = self.slots.get_mut(key) {
            request.aborts += 1;
        }
    }

    /// An Abort of a command of the request was answered: from now on it should end.
    pub(super) fn abort_answered(&mut self, key: SlotKey, now: Time) {
        if let Some(request) = self.slots.get_mut(key) {
            request.aborts = request.aborts.saturating_sub(1);
            request.aborting = Some(now);
        }
    }

    /// The requests of a unit that cannot be used any more.
    pub(super) fn of_unit(&self, unit: Unit) -> Vec<SlotKey> {
        self.slots.iter().filter(|(_, r)| r.unit == unit).map(|(key, _)| key).collect()
    }

    /// The request does not succeed any more, whatever is answered.
    pub(super) fn fail(&mut self, key: SlotKey, code: Code) {
        if let Some(request) = self.slots.get_mut(key) {
            request.fail(code.into());
        }
    }

    /// A command of the request was taken back before any octet of it left.
    pub(super) fn part_withdrawn(&mut self, key: SlotKey, code: Code) {
        if let Some(request) = self.slots.get_mut(key) {
            request.parts -= 1;
            request.fail(code.into());
        }
    }

    /// Completes the request if nothing of it is outstanding any more.
    pub(super) fn end_if_over(&mut self, key: SlotKey, done: &mut Done) {
        if self.slots.get(key).is_some_and(Request::is_over)
            && let Some(request) = self.slots.remove(key)
        {
            done.complete_with(request.tag, request.status, request.proof());
        }
    }

    /// A command was on its connection when that ended. Even if it was answered and the last of its request, that one waits for
    /// [`Requests::lose_all`]: what an answer says of one command says nothing of the others.
    pub(super) fn part_lost(&mut self, ended: &Ended) {
        let Some(request) = self.slots.get_mut(SlotKey::from_u32(ended.user as u32)) else { return };
        let lost = match ended.outcome {
            Outcome::Finished(cqe) => {
                request.take_answer(&Finished { user: ended.user, cqe, bad_memory: ended.bad_memory });
                return;
            }
            Outcome::NotSent => Lost::NotSent,
            Outcome::Unknown if ended.aborted => Lost::Aborted,
            Outcome::Unknown => Lost::Unproven,
        };
        request.parts -= 1;
        request.lost = request.lost.max(lost);
    }

    /// The connection is closed and all its commands are accounted for: what is quiet completes, changes that may still be carried
    /// out become suspect and wait for the fence of `association`.
    pub(super) fn lose_all(
        &mut self,
        association: &Arc<Association>,
        code: Code,
        fenced: &mut FencedChanges,
        done: &mut Done,
    ) {
        self.backlog.clear();
        // A request whose memory is gone has done no harm to the others: for them the way is lost.
        let code = if Status::new(code).scope() == Scope::Path { code } else { Code::PathLost };
        let keys: Vec<SlotKey> = self.slots.iter().map(|(key, _)| key).collect();
        for request in keys.into_iter().filter_map(|key| self.slots.remove(key)) {
            let (tag, changes) = (request.tag, request.op.changes_medium());
            let status = if request.status.is_ok() { code.into() } else { request.status };
            let proof = match request.lost {
                Lost::None if request.is_over() => {
                    done.complete(tag, request.status);
                    continue;
                }
                Lost::Unproven if changes => {
                    // Whatever went wrong with a part of it, it is to be sent again as a whole.
                    let cause = if status.scope() == Scope::Path { status.code } else { code };
                    fenced.add(tag, cause, association, done);
                    continue;
                }
                Lost::Aborted if changes => Proof::Aborted,
                Lost::None | Lost::NotSent => request.proof(),
                Lost::Aborted | Lost::Unproven => Proof::SocketClosed,
            };
            done.complete_with(tag, status, proof);
        }
    }

    /// Forgets everything: the reactor ends under its queue. True when something was open.
    pub(super) fn abandon(&mut self) -> bool {
        let any = !self.slots.is_empty();
        self.slots.clear();
        any
    }

    fn end_early(&mut self, key: SlotKey) {
        if self.slots.get(key).is_some_and(Request::is_over)
            && let Some(request) = self.slots.remove(key)
        {
            let (tag, status, proof) = (request.tag, request.status, request.proof());
            self.early.push(Completion { tag, status, proof });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Limits, Segment};
    use polypath_nvme::Cqe;

    /// A controller that takes one segment in a command, and requests of blocks of 512 octets whose segments are as long as this.
    fn queued(requests: &mut Requests, segs: &mut SegTable, lens: &[u32]) -> SlotKey {
        let limits = Limits { max_segments: 1, ..Limits::UNLIMITED };
        let span = segs.reserve(1, lens.len() as u32).unwrap().span(0, lens.len() as u32);
        segs.get_mut(span).iter_mut().zip(lens).for_each(|(seg, &len)| *seg = Segment { len, ..Segment::default() });
        let io = Io::write(7, 0, lens.iter().sum::<u32>() / 512, span);
        let key = requests.insert(Unit(0), &io, io.data_len(512), Time::ZERO).unwrap();
        requests.queue(key, Splitter::new(io, &limits, 512));
        key
    }

    /// Segments that no command can carry are an error of their request: at once when nothing of it has left, and otherwise with the
    /// last of what has.
    #[test]
    fn what_cannot_be_cut_ends_with_an_error() {
        let (mut requests, mut segs, mut done) = (Requests::new(4), SegTable::new(64), Done::default());
        let (invalid, now) = (Status::from(Code::Invalid), Time::ZERO);
        queued(&mut requests, &mut segs, &[256, 256]);
        assert!(requests.next_part(&segs).is_none() && requests.has_early());
        requests.drain_early(&mut done);
        assert_eq!(done.completions, [Completion { tag: 7, status: invalid, proof: Proof::NeverSent }]);

        done.clear();
        let key = queued(&mut requests, &mut segs, &[512, 256, 256]);
        assert_eq!(requests.next_part(&segs).map(|(of, _, part)| (of, part.blocks)), Some((key, 1)));
        requests.part_sent(key, now, &segs);
        assert!(requests.next_part(&segs).is_none() && !requests.has_early(), "a part of it is out");
        let finished =
            Finished { user: key.as_u32().into(), cqe: Cqe::new(0, StatusField::SUCCESS), bad_memory: false };
        requests.finish(&finished, now, &mut done);
        assert_eq!(done.completions, [Completion { tag: 7, status: invalid, proof: Proof::Answered }]);
        assert!(requests.is_empty() && !requests.has_backlog());
    }
}
