//! The requests of one queue and the tasks that they became.
//!
//! Most requests are one task: then the part is all there is of them. A request that is larger than the logical unit takes is *cut*: it has
//! a row of its own, completes once when no part of it is outstanding, and succeeds only when all of it was sent and all parts succeeded.
//!
//! An answer counts only if it is of the logical unit that the task was sent to: each part has a [`Standing`].

use super::MOST_TRIES;
use polypath_block::{
    Code, Completion, Done, FenceTerms, Io, Proof, Scope, SegTable, SlotKey, Slots, Splitter, Status, Suspect, Time,
    Unit,
};
use std::collections::VecDeque;
use std::time::Duration;

/// A task that a request became, or one of several.
#[derive(Debug)]
pub(super) struct Part {
    /// What it does; the tag is the request's.
    pub(super) io: Io,
    pub(super) unit: Unit,
    /// The cut request that it belongs to.
    cut: Option<SlotKey>,
    /// When it was first to be sent: how long it may be told to come again is counted from there.
    pub(super) first: Time,
    /// When it was sent last.
    pub(super) since: Time,
    /// How often it was sent.
    pub(super) tries: u8,
    pub(super) stage: Stage,
    /// The logical unit was reset after it had been sent: it will hardly be answered any more.
    pub(super) doubted: bool,
    /// It was answered what its logical unit would not answer, and that was looked at: the next time the answer stands.
    pub(super) disputed: bool,
    standing: Standing,
}

/// Whose answer it is that a part gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Of the logical unit that it was sent to.
    Proven,
    /// Of that or of another one: it is being looked at.
    InDoubt,
    /// Of another one, or of one that cannot be used for this reason.
    Revoked(Code),
}

/// Where a part is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// To be sent, not before this time.
    Waiting(Time),
    /// With the driver.
    Sent,
    /// With the driver, which was told to end it: by this rung of the ladder, at this time.
    Ending(u8, Time),
    /// With the driver, which will say when it is quiet.
    Suspect,
    /// Answered with this while it was in doubt by whom, and not to be sent twice.
    Held(Status),
}

/// A request of several tasks.
#[derive(Debug)]
struct Cut {
    tag: u64,
    unit: Unit,
    /// What was not made into tasks yet.
    rest: Option<Splitter>,
    /// Tasks that have not ended.
    parts: u32,
    /// The first error, or success.
    status: Status,
    /// What is known of all that have ended.
    proof: Option<Proof>,
    /// A part was lost: the request is to be sent again as a whole.
    lost: Option<Code>,
    /// It was reported as suspect.
    suspect: bool,
}

impl Cut {
    fn fail(&mut self, status: Status) {
        if self.status.is_ok() {
            self.status = status;
        }
        self.rest = None;
    }
}

/// See the module.
pub(super) struct Requests {
    parts: Slots<Part>,
    cuts: Slots<Cut>,
    /// Cut requests with something that was not made into tasks yet, in the order they came.
    uncut: VecDeque<SlotKey>,
    /// Parts that wait to be sent, or sent again.
    waiting: VecDeque<SlotKey>,
    /// Finished before they left, to be handed out by the next poll.
    early: Vec<Completion>,
}

impl Requests {
    pub(super) fn new(capacity: u16) -> Self {
        let depth = usize::from(capacity);
        Requests {
            parts: Slots::new(capacity),
            cuts: Slots::new(capacity),
            uncut: VecDeque::with_capacity(depth),
            waiting: VecDeque::with_capacity(depth),
            early: Vec::with_capacity(depth),
        }
    }

    /// Is there no room for another request?
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.parts.is_full() || self.cuts.is_full() || self.early.len() == self.early.capacity()
    }

    /// Is nothing open, and nothing to be handed out?
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.cuts.is_empty() && self.early.is_empty()
    }

    /// Does anything wait to be sent?
    #[inline]
    pub(super) fn has_backlog(&self) -> bool {
        !self.waiting.is_empty() || !self.uncut.is_empty()
    }

    /// A request that ends before anything of it left.
    pub(super) fn refuse(&mut self, tag: u64, status: Status) {
        self.early.push(Completion { tag, status, proof: Proof::NeverSent });
    }

    #[inline]
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    pub(super) fn drain_early(&mut self, done: &mut Done) {
        done.completions.append(&mut self.early);
    }

    /// A request that is one task, which the caller sends. `None`: no room.
    #[inline]
    pub(super) fn insert(&mut self, unit: Unit, io: &Io, now: Time) -> Option<SlotKey> {
        self.parts.insert(Part::new(unit, io, None, now)).ok()
    }

    /// A request that must be cut.
    pub(super) fn insert_cut(&mut self, unit: Unit, tag: u64, splitter: Splitter) -> bool {
        let cut = Cut {
            tag,
            unit,
            rest: Some(splitter),
            parts: 0,
            status: Status::OK,
            proof: None,
            lost: None,
            suspect: false,
        };
        let Ok(key) = self.cuts.insert(cut) else { return false };
        self.uncut.push_back(key);
        true
    }

    #[inline]
    pub(super) fn get(&self, key: SlotKey) -> Option<&Part> {
        self.parts.get(key)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: SlotKey) -> Option<&mut Part> {
        self.parts.get_mut(key)
    }

    /// The part waits, and is sent not before `at`.
    pub(super) fn wait(&mut self, key: SlotKey, at: Time) {
        if let Some(part) = self.parts.get_mut(key) {
            part.stage = Stage::Waiting(at);
            self.waiting.push_back(key);
        }
    }

    /// A part that is to be sent now: one that waits, or the next of a cut request. `ready` says whether its unit takes any; those that it
    /// does not take keep their place among the others. It is sent, or [`Requests::wait`] follows.
    pub(super) fn next(&mut self, segs: &SegTable, now: Time, ready: impl Fn(Unit) -> bool) -> Option<SlotKey> {
        for _ in 0..self.waiting.len() {
            let key = self.waiting.pop_front()?;
            let Some(part) = self.parts.get(key) else { continue };
            match part.stage {
                Stage::Waiting(at) if now >= at && ready(part.unit) => return Some(key),
                Stage::Waiting(_) | Stage::Held(_) => self.waiting.push_back(key),
                _ => {}
            }
        }
        for _ in 0..self.uncut.len() {
            let key = self.uncut.pop_front()?;
            let Some(cut) = self.cuts.get_mut(key) else { continue };
            let Some(splitter) = cut.rest.as_mut() else {
                self.end_cut_if_over(key);
                continue;
            };
            if !ready(cut.unit) || self.parts.is_full() {
                self.uncut.push_back(key);
                continue;
            }
            match splitter.next_part(segs) {
                None => cut.rest = None,
                Some(Err(status)) => cut.fail(status),
                Some(Ok(io)) => {
                    if splitter.rest().is_none() {
                        cut.rest = None;
                    } else {
                        self.uncut.push_front(key);
                    }
                    cut.parts += 1;
                    return self.parts.insert(Part::new(cut.unit, &io, Some(key), now)).ok();
                }
            }
            self.end_cut_if_over(key);
        }
        None
    }

    /// A task has ended good: the request completes if it was all of it.
    #[inline]
    pub(super) fn good(&mut self, key: SlotKey, done: &mut Done) -> bool {
        let whole = |part: &Part| part.cut.is_none() && part.standing == Standing::Proven;
        if let Some(part) = self.parts.remove_if(key, whole) {
            done.complete(part.io.tag, Status::OK);
            return true;
        }
        self.answered(key, Status::OK, done)
    }

    /// The device server has answered a part with `status`, which stands if it is of the logical unit that the part was sent to. If
    /// that is in doubt, the part is sent again once it is not; if it is another one, the request is not for that. What concerns the way stands
    /// in any case. `false`: there is no such part.
    pub(super) fn answered(&mut self, key: SlotKey, status: Status, done: &mut Done) -> bool {
        let Some(part) = self.parts.get_mut(key) else { return false };
        let once = part.io.op.is_once() && !was_refused(status.code);
        match part.standing {
            _ if status.scope() == Scope::Path => self.end(key, status, Proof::Answered, done),
            Standing::Proven => self.end(key, status, Proof::Answered, done),
            Standing::InDoubt if once => {
                part.stage = Stage::Held(status);
                self.waiting.push_back(key);
                true
            }
            Standing::InDoubt if part.tries >= MOST_TRIES => self.lost(key, Code::PathBusy, Proof::Answered, done),
            Standing::InDoubt => {
                self.wait(key, Time::ZERO);
                true
            }
            Standing::Revoked(_) if once => self.end(key, Code::OutcomeUnknown.into(), Proof::Answered, done),
            Standing::Revoked(code) => self.lost(key, code, Proof::Answered, done),
        }
    }

    /// A part has ended. `false`: there is no such part.
    pub(super) fn end(&mut self, key: SlotKey, status: Status, proof: Proof, done: &mut Done) -> bool {
        let Some(part) = self.parts.remove(key) else { return false };
        let Some(cut_key) = part.cut else {
            done.complete_with(part.io.tag, status, proof);
            return true;
        };
        let Some(cut) = self.cuts.get_mut(cut_key) else { return true };
        cut.parts -= 1;
        cut.proof = Some(cut.proof.map_or(proof, |before| before.and(proof)));
        if !status.is_ok() {
            cut.fail(status);
        }
        self.end_cut(cut_key, done);
        true
    }

    /// A part was lost with its way. As [`Requests::end`], and the whole request is to be sent again, whatever became of other parts.
    pub(super) fn lost(&mut self, key: SlotKey, code: Code, proof: Proof, done: &mut Done) -> bool {
        let cut = self.parts.get(key).and_then(|part| part.cut);
        if let Some(cut) = cut.and_then(|cut| self.cuts.get_mut(cut)) {
            cut.lost.get_or_insert(code);
        }
        self.end(key, code.into(), proof, done)
    }

    /// A part's way broke, and it is not quiet: its request is suspect.
    pub(super) fn suspect(&mut self, key: SlotKey, cause: Code, fence: FenceTerms, done: &mut Done) {
        let Some(part) = self.parts.get_mut(key) else { return };
        part.stage = Stage::Suspect;
        let report = match part.cut.and_then(|cut| self.cuts.get_mut(cut)) {
            None => true,
            Some(cut) => {
                cut.fail(cause.into());
                cut.lost.get_or_insert(cause);
                !std::mem::replace(&mut cut.suspect, true)
            }
        };
        if report {
            let fate = polypath_block::Fate::Unknown;
            done.suspects.push(Suspect { tag: part.io.tag, fate, cause, fence });
        }
    }

    /// Another logical unit may answer: what is with the driver is not believed until that is known ([`Requests::trust`],
    /// [`Requests::revoke`]).
    pub(super) fn doubt(&mut self, unit: Unit) {
        for (_, part) in self.parts.iter_mut().filter(|(_, part)| part.unit == unit) {
            if part.standing == Standing::Proven && !matches!(part.stage, Stage::Waiting(_)) {
                part.standing = Standing::InDoubt;
            }
        }
    }

    /// The logical unit is who it was: what was answered meanwhile stands. What can be sent again is not believed even so: who is there
    /// now need not be who has answered.
    pub(super) fn trust(&mut self, unit: Unit, done: &mut Done) {
        for (_, part) in self.parts.iter_mut().filter(|(_, part)| part.unit == unit) {
            if part.standing == Standing::InDoubt && part.io.op.is_once() {
                part.standing = Standing::Proven;
            }
        }
        for _ in 0..self.waiting.len() {
            let Some(key) = self.waiting.pop_front() else { break };
            match self.parts.get(key).map(|part| (part.stage, part.unit)) {
                Some((Stage::Held(status), of)) if of == unit => {
                    self.end(key, status, Proof::Answered, done);
                }
                Some(_) => self.waiting.push_back(key),
                None => {}
            }
        }
    }

    /// The logical unit cannot be used, for this reason: what waits ends now, what is with the driver does not succeed any more.
    pub(super) fn revoke(&mut self, unit: Unit, code: Code, done: &mut Done) {
        for (_, part) in self.parts.iter_mut().filter(|(_, part)| part.unit == unit) {
            if !matches!(part.standing, Standing::Revoked(_)) {
                part.standing = Standing::Revoked(code);
            }
        }
        self.end_waiting(code, done, |of| of == unit);
    }

    /// The way is down: what waits ends now.
    pub(super) fn end_all_waiting(&mut self, code: Code, done: &mut Done) {
        self.end_waiting(code, done, |_| true);
    }

    fn end_waiting(&mut self, code: Code, done: &mut Done, which: impl Fn(Unit) -> bool) {
        for _ in 0..self.waiting.len() {
            let Some(key) = self.waiting.pop_front() else { break };
            match self.parts.get(key) {
                Some(part) if matches!(part.stage, Stage::Waiting(_)) && which(part.unit) => {
                    let proof = if part.tries > 0 { Proof::Answered } else { Proof::NeverSent };
                    self.lost(key, code, proof, done);
                }
                Some(part) if matches!(part.stage, Stage::Held(_)) && which(part.unit) => {
                    self.end(key, Code::OutcomeUnknown.into(), Proof::Answered, done);
                }
                Some(part) if matches!(part.stage, Stage::Waiting(_) | Stage::Held(_)) => self.waiting.push_back(key),
                _ => {}
            }
        }
        for _ in 0..self.uncut.len() {
            let Some(key) = self.uncut.pop_front() else { break };
            match self.cuts.get_mut(key) {
                Some(cut) if which(cut.unit) => {
                    cut.fail(code.into());
                    cut.lost.get_or_insert(code);
                    self.end_cut(key, done);
                }
                Some(_) => self.uncut.push_back(key),
                None => {}
            }
        }
    }

    /// The logical unit was reset, as the answer to part `key` says: what was sent before that is to be asked for, since many targets say
    /// nothing more of it (SAM-5 section 5.6, TAS of zero). True when there is something.
    pub(super) fn doubt_older(&mut self, key: SlotKey, unit: Unit) -> bool {
        let Some(since) = self.parts.get(key).map(|part| part.since) else { return false };
        let mut any = false;
        for (at, part) in self.parts.iter_mut() {
            if at != key && part.unit == unit && part.stage == Stage::Sent && part.since <= since {
                (part.doubted, any) = (true, true);
            }
        }
        any
    }

    /// Parts with the driver for `limit` or longer, or in doubt, and how far each has come on the ladder.
    pub(super) fn late(&self, now: Time, limit: Duration, grace: Duration) -> Vec<(SlotKey, Option<u8>)> {
        let late = self.parts.iter().filter_map(|(key, part)| match part.stage {
            Stage::Sent if part.doubted || now.since(part.since) >= limit => Some((key, None)),
            Stage::Ending(rung, at) if now.since(at) >= grace => Some((key, Some(rung))),
            _ => None,
        });
        late.collect()
    }

    /// Parts with the driver of one unit.
    pub(super) fn in_flight(&self, unit: Unit) -> usize {
        self.parts.iter().filter(|(_, p)| p.unit == unit && !matches!(p.stage, Stage::Waiting(_))).count()
    }

    /// Has the driver nothing?
    pub(super) fn has_nothing_sent(&self) -> bool {
        self.parts.iter().all(|(_, p)| matches!(p.stage, Stage::Waiting(_)))
    }

    /// When the first part that waits is due.
    pub(super) fn next_due(&self) -> Option<Time> {
        let due = self.waiting.iter().filter_map(|&key| match self.parts.get(key)?.stage {
            Stage::Waiting(at) => Some(at),
            _ => None,
        });
        due.min()
    }

    /// Forgets everything: the reactor ends under its queue.
    pub(super) fn abandon(&mut self) {
        self.parts.clear();
        self.cuts.clear();
    }

    fn end_cut_if_over(&mut self, key: SlotKey) {
        let Some(cut) = self.cuts.remove_if(key, |cut| cut.parts == 0 && cut.rest.is_none()) else { return };
        let (status, proof) = cut.ending();
        self.early.push(Completion { tag: cut.tag, status, proof });
    }

    fn end_cut(&mut self, key: SlotKey, done: &mut Done) {
        let Some(cut) = self.cuts.remove_if(key, |cut| cut.parts == 0 && cut.rest.is_none()) else { return };
        let (status, proof) = cut.ending();
        done.complete_with(cut.tag, status, proof);
    }
}

impl Cut {
    fn ending(&self) -> (Status, Proof) {
        let status = self.lost.map_or(self.status, Status::new);
        (status, self.proof.unwrap_or(Proof::NeverSent))
    }
}

impl Part {
    fn new(unit: Unit, io: &Io, cut: Option<SlotKey>, now: Time) -> Self {
        let (first, since) = (now, now);
        let (stage, standing) = (Stage::Waiting(now), Standing::Proven);
        Part { io: *io, unit, cut, first, since, tries: 0, stage, doubted: false, disputed: false, standing }
    }

    #[inline]
    pub(super) fn sent(&mut self, now: Time) {
        self.since = now;
        self.tries = self.tries.saturating_add(1);
        // It is sent only to a logical unit of which is known who it is.
        (self.stage, self.doubted, self.standing) = (Stage::Sent, false, Standing::Proven);
    }

    /// Does its answer come from somebody whom it was not sent to, as is known by now?
    pub(super) fn is_revoked(&self) -> bool {
        matches!(self.standing, Standing::Revoked(_))
    }
}

/// Does an answer with this code say that nothing of the command was carried out?
fn was_refused(code: Code) -> bool {
    use Code::{Invalid, Miscompare, OutOfRange, ReservationConflict, Unsupported, WriteProtected};
    matches!(code, Invalid | Miscompare | OutOfRange | ReservationConflict | Unsupported | WriteProtected)
}

#[cfg(test)]
mod doubts;

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Limits, SegSpan};

    fn io(tag: u64) -> Io {
        Io::read(tag, 0, 1, SegSpan::EMPTY)
    }

    fn cut(requests: &mut Requests, unit: u16, tag: u64) -> bool {
        // Without data, so that it needs no memory: four parts.
        let limits = Limits { max_discard_blocks: 10, ..Limits::UNLIMITED };
        let io = Io::range(tag, polypath_block::Op::Discard, 0, 40);
        requests.insert_cut(Unit(unit), tag, Splitter::new(io, &limits, 512))
    }

    fn ended(done: &mut Done) -> Vec<(u64, Code, Proof)> {
        let ends = done.completions.drain(..).map(|end| (end.tag, end.status.code, end.proof));
        ends.collect()
    }

    #[test]
    fn each_of_its_places_is_bounded() {
        let mut done = Done::with_capacity(8);
        let fills: [fn(&mut Requests); 3] = [
            |requests| assert!(requests.insert(Unit(0), &io(1), Time::ZERO).is_some()),
            |requests| assert!(cut(requests, 0, 1)),
            |requests| requests.refuse(1, Code::Invalid.into()),
        ];
        for fill in fills {
            let mut requests = Requests::new(2);
            assert!(!requests.is_full() && requests.is_empty() && !requests.has_early());
            fill(&mut requests);
            assert!(!requests.is_full() && !requests.is_empty());
            fill(&mut requests);
            assert!(requests.is_full() && !requests.is_empty());
            requests.abandon();
        }
        let mut requests = Requests::new(2);
        requests.refuse(3, Code::Invalid.into());
        assert!(requests.has_early());
        requests.drain_early(&mut done);
        assert!(requests.is_empty() && !requests.has_early());
        assert_eq!(ended(&mut done), [(3, Code::Invalid, Proof::NeverSent)]);
        assert!(cut(&mut requests, 0, 1) && cut(&mut requests, 0, 2) && !cut(&mut requests, 0, 3));
        requests.abandon();
    }

    #[test]
    fn what_waits_is_sent_in_its_turn_when_it_is_time_and_its_unit_takes_it() {
        let (mut requests, segs, at) = (Requests::new(8), SegTable::new(8), Time::from_millis);
        let keys = [(0, 50), (1, 10), (0, 10)].map(|(unit, due)| {
            let key = requests.insert(Unit(unit), &io(1), at(0)).unwrap();
            requests.wait(key, at(due));
            key
        });
        assert!(requests.has_backlog() && requests.next_due() == Some(at(10)));
        assert_eq!(requests.next(&segs, at(9), |_| true), None);
        assert_eq!(requests.next(&segs, at(10), |unit| unit == Unit(0)), Some(keys[2]), "the first takes its time");
        assert_eq!(requests.next(&segs, at(10), |unit| unit == Unit(0)), None);
        assert_eq!(requests.next(&segs, at(49), |_| true), Some(keys[1]));
        assert_eq!((requests.next_due(), requests.in_flight(Unit(0))), (Some(at(50)), 0));
        assert_eq!(requests.next(&segs, at(50), |_| true), Some(keys[0]));
        assert_eq!((requests.has_backlog(), requests.next_due()), (false, None));
        for key in [keys[0], keys[1]] {
            requests.get_mut(key).unwrap().sent(at(60));
        }
        let part = requests.get(keys[0]).unwrap();
        assert_eq!((part.first, part.since, part.tries), (at(0), at(60), 1));
        assert_eq!([0, 1, 2].map(|unit| requests.in_flight(Unit(unit))), [1, 1, 0]);
        // Of a request that is cut, as many parts as there is room for.
        assert!(cut(&mut requests, 1, 9) && requests.has_backlog());
        assert_eq!(requests.next(&segs, at(60), |unit| unit == Unit(0)), None);
        let parts: Vec<_> = std::iter::from_fn(|| requests.next(&segs, at(60), |_| true)).collect();
        assert_eq!((parts.len(), requests.has_backlog()), (4, false));
        let mut done = Done::with_capacity(8);
        for (n, part) in parts.into_iter().enumerate() {
            assert_eq!(ended(&mut done), [], "{n} of four");
            requests.good(part, &mut done);
        }
        assert_eq!(ended(&mut done), [(9, Code::Ok, Proof::Answered)]);
        requests.abandon();
    }

    #[test]
    fn what_is_revoked_is_over_or_no_success_and_others_are_not_concerned() {
        for all in [false, true] {
            let (mut requests, at) = (Requests::new(16), Time::from_millis);
            let mut done = Done::with_capacity(16);
            let mut keys = Vec::new();
            for unit in [0, 1] {
                for n in 0..3 {
                    let key = requests.insert(Unit(unit), &io(u64::from(unit) * 10 + n), at(0)).unwrap();
                    keys.push(key);
                    // One is sent, one was and waits to be sent again, one waits for the first time.
                    if n < 2 {
                        requests.get_mut(key).unwrap().sent(at(1));
                    }
                    if n > 0 {
                        requests.wait(key, at(9));
                    }
                }
                assert!(cut(&mut requests, unit, u64::from(unit) * 10 + 3));
            }
            let failed = requests.insert(Unit(1), &io(14), at(0)).unwrap();
            requests.get_mut(failed).unwrap().sent(at(1));
            let code = Code::PathIdentity;
            match all {
                true => requests.end_all_waiting(code, &mut done),
                false => requests.revoke(Unit(1), code, &mut done),
            }
            let gone = [(11, code, Proof::Answered), (12, code, Proof::NeverSent), (13, code, Proof::NeverSent)];
            let others = gone.map(|(tag, code, proof)| (tag - 10, code, proof));
            let mut ends = ended(&mut done);
            ends.sort_unstable_by_key(|(tag, ..)| *tag);
            assert_eq!(ends, if all { [others, gone].concat() } else { gone.to_vec() });
            assert_eq!(requests.has_backlog(), !all);
            requests.good(keys[0], &mut done);
            requests.good(keys[3], &mut done);
            let last = if all { Code::Ok } else { code };
            assert_eq!(ended(&mut done), [(0, Code::Ok, Proof::Answered), (10, last, Proof::Answered)]);
            requests.end(failed, Code::Medium.into(), Proof::Answered, &mut done);
            assert_eq!(ended(&mut done), [(14, Code::Medium, Proof::Answered)], "an error stays what it is");
            assert_eq!(requests.is_empty(), all);
            requests.abandon();
        }
    }

    /// What comes of a request that may not be sent twice must not look like one of which nothing was done.
    #[test]
    fn what_is_sent_once_and_answered_well_is_not_said_to_have_been_refused_when_its_unit_is_revoked() {
        use polypath_block::Op;
        for code in [Code::PathNoAccess, Code::PathBusy, Code::PathIdentity] {
            for (op, told) in [(Op::CompareAndWrite, Code::OutcomeUnknown), (Op::Write, code)] {
                let (mut requests, mut done) = (Requests::new(2), Done::with_capacity(2));
                let key = requests.insert(Unit(0), &Io { op, ..io(1) }, Time::ZERO).unwrap();
                requests.get_mut(key).unwrap().sent(Time::ZERO);
                requests.revoke(Unit(0), code, &mut done);
                requests.good(key, &mut done);
                assert_eq!(ended(&mut done), [(1, told, Proof::Answered)], "{op:?}");
            }
        }
    }
}
