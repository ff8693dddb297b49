//! One queue pair of the controller with several users on its reactor.
//!
//! Each user has a [`Share`]: a unit of the controller, a bound of its own, a line of requests that wait for room, a box of outcomes.
//! A user is never told "full" because of what others do: within its depth a request waits in the share's line, and lines are served
//! in turn, one request each, whatever unit they are for.

mod named;
mod share;

pub(crate) use share::Share;

use crate::link::Served;
use crate::mailbox::OwnerMailbox;
use crate::plain::{Plain, is_plain, key_of, tag_of};
use named::Named;
use polypath_block::{
    Armed, Code, Completion, ControllerQueue, Cx, Done, Health, Io, OpenError, Parked, Proof, Refused, RefusedWhy,
    Slots, Suspect, Time, Unit, UnitId, Waits,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// Requests known at a time as a multiple of the depth: those that wait for a fence have left the queue's own table.
const KNOWN_DEPTHS: usize = 8;
/// The least depth that is multiplied: queues hold more than they are asked to.
const LEAST_DEPTH: usize = 128;

/// An owner on this thread: of which controller, on which reactor.
type Entry = (u64, u16, Weak<ShareOwner>);

thread_local! {
    static OWNERS: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(crate) struct ShareOwner {
    core: RefCell<Core>,
    /// After the queue: as long as the controller's queue is taken, somebody is seen to have it.
    pub(crate) mailbox: Arc<OwnerMailbox>,
}

struct Core {
    inner: Box<dyn ControllerQueue>,
    known: Slots<Known>,
    plain: Plain,
    shares: Vec<Option<ShareState>>,
    next_uid: u32,
    open: u32,
    /// Requests in the lines of all shares.
    waiting: usize,
    /// Whose line is served next.
    turn: usize,
    /// Grows each time the queue is polled: once a turn of the reactor, by whoever comes first, however many shares there are.
    round: u64,
    /// The turn in which that was.
    polled: Time,
    /// What the queue waits for was named for the sleep that begins.
    named: Option<Named>,
    /// Nobody uses it, or it is surplus: it is closed as soon as nothing waits.
    closing: bool,
    closed: bool,
    /// It has drained after that, and those who rest were told.
    over: bool,
    surplus: bool,
    /// What the queue says while several use it: it may be more than any of them has room for.
    said: Done,
    /// The share that was last found to look after the queue: a thousand that rest need not be gone through for each other one.
    guard: usize,
    /// Ends of links whose proxy was dropped by a reactor that ended. Last, so that they go after the queue: who learns from their
    /// end that nobody answers may count on the queue being gone.
    orphans: Vec<Served>,
}

/// Whose a request is.
#[derive(Clone, Copy)]
struct Known {
    tag: u64,
    share: u32,
    suspect: bool,
}

/// What the owner keeps of a share.
struct ShareState {
    uid: u32,
    unit: Unit,
    depth: usize,
    /// Accepted, neither finished nor suspect.
    in_flight: usize,
    suspects: usize,
    line: VecDeque<Io>,
    outcomes: Done,
    closed: bool,
    /// Its user has gone with requests open: it goes when they have completed.
    abandoned: bool,
    round: u64,
    /// How the unit felt when the user polled last.
    seen: Health,
    /// Its user rests while others go on, and has to be woken by this name when somebody else's turn brings him something.
    parked: Option<Parked>,
    /// What the queue waited for when its user began to rest, if he has named it and is woken by it.
    guards: Option<Named>,
}

impl ShareOwner {
    /// Owns `inner`, a queue of `controller`, on this thread.
    pub(crate) fn new(
        controller: u64,
        mailbox: Arc<OwnerMailbox>,
        inner: Box<dyn ControllerQueue>,
        depth: u16,
    ) -> Rc<ShareOwner> {
        let known = (usize::from(depth).max(LEAST_DEPTH) * KNOWN_DEPTHS).min(usize::from(u16::MAX));
        let core = Core {
            inner,
            known: Slots::new(known as u16),
            plain: Plain::default(),
            shares: Vec::new(),
            next_uid: 0,
            open: 0,
            waiting: 0,
            turn: 0,
            round: 0,
            polled: Time::NEVER,
            named: None,
            closing: false,
            closed: false,
            over: false,
            surplus: false,
            said: Done::with_capacity(known),
            guard: 0,
            orphans: Vec::new(),
        };
        let entry = (controller, mailbox.reactor);
        let owner = Rc::new(ShareOwner { mailbox, core: RefCell::new(core) });
        OWNERS.with_borrow_mut(|owners| {
            owners.retain(|(.., weak)| weak.strong_count() > 0);
            owners.push((entry.0, entry.1, Rc::downgrade(&owner)));
        });
        owner
    }

    /// The owner of a queue of `controller` on `reactor` that takes users. There is one at most: another is made only when this finds
    /// none.
    pub(crate) fn find(controller: u64, reactor: u16) -> Option<Rc<ShareOwner>> {
        OWNERS.with_borrow(|owners| {
            let ours = owners.iter().filter(|(c, r, _)| (*c, *r) == (controller, reactor));
            ours.filter_map(|(.., weak)| weak.upgrade()).find(|owner| !owner.mailbox.is_closed())
        })
    }

    /// The owner on this thread that `mailbox` belongs to.
    pub(crate) fn of_mailbox(mailbox: u64) -> Option<Rc<ShareOwner>> {
        OWNERS.with_borrow(|owners| {
            owners.iter().filter_map(|(.., weak)| weak.upgrade()).find(|owner| owner.mailbox.id == mailbox)
        })
    }

    /// A new user of `unit` that may have `depth` requests in flight.
    pub(crate) fn join(self: &Rc<Self>, unit: UnitId, depth: u16) -> Result<Share, OpenError> {
        let mut core = self.core.borrow_mut();
        core.named = None;
        let unit = core.inner.open_unit(unit)?;
        let depth = usize::from(depth.max(1));
        core.next_uid += 1;
        let state = ShareState {
            uid: core.next_uid,
            unit,
            depth,
            in_flight: 0,
            suspects: 0,
            line: VecDeque::with_capacity(depth),
            outcomes: Done::with_capacity(depth * 2),
            closed: false,
            abandoned: false,
            // Its first turn polls the queue.
            round: core.round,
            seen: Health::Down,
            parked: None,
            guards: None,
        };
        let (uid, free) = (state.uid, core.shares.iter().position(Option::is_none));
        let index = free.unwrap_or(core.shares.len());
        if index == core.shares.len() {
            core.shares.push(None);
        }
        core.shares[index] = Some(state);
        core.open += 1;
        self.mailbox.set_shares(core.open);
        drop(core);
        Ok(Share { owner: self.clone(), index, uid })
    }

    pub(crate) fn kick(&self, cx: &mut Cx<'_>) {
        let core = &mut *self.core.borrow_mut();
        core.named = None;
        core.inner.kick(cx);
    }

    /// Keeps the end of a link for as long as the queue lives.
    pub(crate) fn keep(&self, link: Served) {
        self.core.borrow_mut().orphans.push(link);
    }

    fn share_closed(&self, core: &mut Core) {
        // It may have been the one that looked after the queue.
        core.wake_parked();
        core.open -= 1;
        self.mailbox.set_shares(core.open);
        if core.open == 0 {
            core.closing = true;
            self.mailbox.close();
        }
    }

    /// One turn of the queue. What is of share `index`, whose user polls, goes to `done`; the rest to the boxes of the others.
    fn turn(&self, core: &mut Core, cx: &mut Cx<'_>, index: usize, done: &mut Done) {
        if core.open > 1 {
            core.poll_for_several(cx, index, done);
        } else {
            core.poll_for_one(cx, index, done);
        }
        if core.waiting > 0 {
            core.serve_lines(cx);
        }
        if !core.surplus && core.inner.is_surplus() {
            tracing::warn!(
                controller = %self.mailbox.name, reactor = cx.reactor, users = core.open,
                "the controller grants fewer queues than before: this one is given up and its users share another"
            );
            core.surplus = true;
            core.closing = true;
            self.mailbox.close();
            core.wake_parked();
        }
        core.close_when_idle(cx);
    }
}

impl ShareState {
    /// Gives its user what is in his box.
    #[inline]
    fn hand_out(&mut self, done: &mut Done) {
        if !self.outcomes.is_empty() {
            done.suspects.append(&mut self.outcomes.suspects);
            done.completions.append(&mut self.outcomes.completions);
        }
    }
}

impl Core {
    #[inline]
    fn share(&mut self, index: usize, uid: u32) -> Option<&mut ShareState> {
        self.shares.get_mut(index)?.as_mut().filter(|s| s.uid == uid)
    }

    fn health(&self, unit: Unit) -> Health {
        if self.closing { Health::Down } else { self.inner.health(unit) }
    }

    /// How the queue feels to whoever looks for one to share: as its best unit does, one of which was just seen as `seen`.
    fn best_health(&self, seen: Health) -> Health {
        if self.closing {
            return Health::Down;
        }
        if seen == Health::Ready {
            return Health::Ready;
        }
        let mut best = Health::Down;
        for share in self.shares.iter().flatten() {
            match self.health(share.unit) {
                Health::Ready => return Health::Ready,
                Health::Stalled => best = Health::Stalled,
                Health::Down => {}
            }
        }
        best
    }

    #[inline]
    fn hand_over(&mut self, cx: &mut Cx<'_>, share: usize, unit: Unit, io: Io) -> Result<(), RefusedWhy> {
        let known = Known { tag: io.tag, share: share as u32, suspect: false };
        let Ok(key) = self.known.insert(known) else { return Err(RefusedWhy::Full) };
        match self.inner.submit(cx, unit, Io { tag: tag_of(key), ..io }) {
            Ok(()) => Ok(()),
            Err(refused) => {
                self.known.remove(key);
                Err(refused.why)
            }
        }
    }

    /// The queue has not taken a request that counts as in flight: for `why` it said.
    #[cold]
    fn wait_in_line(&mut self, (index, uid): (usize, u32), unit: Unit, io: Io, why: RefusedWhy) -> Result<(), Refused> {
        // What waits in a line waits for room, not for a unit.
        let gone = why == RefusedWhy::Gone || self.inner.health(unit) == Health::Down;
        if let Some(state) = self.share(index, uid) {
            if gone {
                state.in_flight -= 1;
            } else {
                state.line.push_back(io);
                self.waiting += 1;
            }
        }
        if gone { Err(Refused { io, why: RefusedWhy::Gone }) } else { Ok(()) }
    }

    /// Polls the queue for the only one that uses it: what it says stays where it is.
    #[inline]
    fn poll_for_one(&mut self, cx: &mut Cx<'_>, index: usize, done: &mut Done) {
        let (suspects, completions) = (done.suspects.len(), done.completions.len());
        self.inner.poll(cx, done);
        if done.suspects.len() > suspects {
            self.sort_out(suspects, index, done);
        }
        let common = completions + self.completed_of(index, &mut done.completions[completions..]);
        let mut own = common;
        for at in common..done.completions.len() {
            if let Some(completion) = self.completed(done.completions[at], index) {
                done.completions[own] = completion;
                own += 1;
            }
        }
        done.completions.truncate(own);
    }

    /// Polls the queue and tells each what is his: the one that asks at once, the others in their boxes.
    fn poll_for_several(&mut self, cx: &mut Cx<'_>, index: usize, done: &mut Done) {
        let mut said = std::mem::take(&mut self.said);
        self.inner.poll(cx, &mut said);
        for suspect in said.suspects.drain(..) {
            self.suspected(suspect);
        }
        for completion in said.completions.drain(..) {
            done.completions.extend(self.completed(completion, index));
        }
        self.said = said;
    }

    /// What was reported suspect from place `from` of `done` on: that of share `index` stays there, the rest goes to its boxes.
    #[cold]
    fn sort_out(&mut self, from: usize, index: usize, done: &mut Done) {
        for suspect in done.suspects.drain(from..) {
            self.suspected(suspect);
        }
        if let Some(state) = self.shares.get_mut(index).and_then(Option::as_mut) {
            done.suspects.append(&mut state.outcomes.suspects);
        }
    }

    #[cold]
    fn suspected(&mut self, suspect: Suspect) {
        let (share, tag) = if is_plain(suspect.tag) {
            if !self.plain.suspect(suspect.tag) {
                return;
            }
            (self.plain.share, suspect.tag)
        } else {
            let Some(known) = self.known.get_mut(key_of(suspect.tag)) else { return };
            if std::mem::replace(&mut known.suspect, true) {
                return;
            }
            (known.share as usize, known.tag)
        };
        if let Some(state) = self.shares.get_mut(share).and_then(Option::as_mut) {
            state.in_flight -= 1;
            state.suspects += 1;
            if !state.abandoned {
                state.outcomes.suspects.push(Suspect { tag, ..suspect });
                state.wake();
            }
        }
    }

    /// As many completions from the front as are of share `index` and were never suspect: they get their own tags back. Returns how many.
    #[inline]
    fn completed_of(&mut self, index: usize, completions: &mut [Completion]) -> usize {
        let Some(state) = self.shares.get_mut(index).and_then(Option::as_mut) else { return 0 };
        let plain = self.plain.completed_of(index, completions);
        if plain > 0 {
            state.in_flight -= plain;
            return plain;
        }
        let mut own = 0;
        for completion in completions {
            if is_plain(completion.tag) {
                break;
            }
            let key = key_of(completion.tag);
            let Some(known) = self.known.remove_if(key, |k| k.share as usize == index && !k.suspect) else { break };
            completion.tag = known.tag;
            own += 1;
        }
        state.in_flight -= own;
        own
    }

    /// A request has completed. It is given back if it is of the share `asking`; anybody else's goes to his box.
    fn completed(&mut self, completion: Completion, asking: usize) -> Option<Completion> {
        let (share, tag, suspect) = if is_plain(completion.tag) {
            (self.plain.share, completion.tag, self.plain.completed(completion.tag)?)
        } else {
            let Known { share, tag, suspect } = self.known.remove(key_of(completion.tag))?;
            (share as usize, tag, suspect)
        };
        let state = self.shares.get_mut(share)?.as_mut()?;
        if suspect {
            state.suspects -= 1;
        } else {
            state.in_flight -= 1;
        }
        let completion = Completion { tag, ..completion };
        if share == asking {
            return Some(completion);
        }
        if !state.abandoned {
            state.outcomes.completions.push(completion);
            state.wake();
        } else {
            self.forget_when_over(share);
        }
        None
    }

    /// An abandoned share goes with its last request: until then its unit is open.
    fn forget_when_over(&mut self, index: usize) {
        let over = |s: &ShareState| s.abandoned && s.in_flight == 0 && s.suspects == 0;
        if let Some(unit) = self.shares[index].as_ref().filter(|s| over(s)).map(|s| s.unit) {
            self.shares[index] = None;
            self.inner.close_unit(unit);
        }
    }

    /// Submits what waits, one request of each line in turn, until the queue is full.
    fn serve_lines(&mut self, cx: &mut Cx<'_>) {
        let mut any = false;
        while self.waiting > 0 {
            let index = self.turn % self.shares.len();
            self.turn = index + 1;
            let Some(state) = self.shares.get_mut(index).and_then(Option::as_mut) else { continue };
            let (uid, unit) = (state.uid, state.unit);
            let Some(&io) = state.line.front() else { continue };
            match self.hand_over(cx, index, unit, io) {
                Ok(()) => {
                    any = true;
                    self.waiting -= 1;
                    if let Some(state) = self.share(index, uid) {
                        state.line.pop_front();
                    }
                }
                // The same line begins next time.
                Err(RefusedWhy::Full) => {
                    self.turn = index;
                    break;
                }
                Err(RefusedWhy::Gone) => self.fail_line(index),
            }
        }
        if any {
            self.inner.kick(cx);
        }
    }

    /// The way to one unit is down: what waits for it was never sent.
    fn fail_line(&mut self, index: usize) {
        let Some(state) = self.shares.get_mut(index).and_then(Option::as_mut) else { return };
        self.waiting -= state.line.len();
        for io in state.line.drain(..) {
            state.in_flight -= 1;
            state.outcomes.complete_with(io.tag, Code::PathLost.into(), Proof::NeverSent);
        }
        state.wake();
    }

    /// What the user of a share is about to see of its unit. What waits for one that is down (all are, on a surplus queue) is given back
    /// here rather than when its turn comes: the queue may be full of what others do, for as long as they like.
    #[inline]
    fn look_at_unit(&mut self, index: usize) -> Health {
        let Some(state) = self.shares.get_mut(index).and_then(Option::as_mut) else { return Health::Down };
        let seen = self.inner.health(state.unit);
        state.seen = seen;
        if seen == Health::Down && !state.line.is_empty() {
            self.fail_line(index);
        }
        seen
    }

    /// Something has changed for all: those that rest look at it.
    #[cold]
    fn wake_parked(&mut self) {
        self.shares.iter_mut().flatten().for_each(ShareState::wake);
    }

    /// As [`Core::arm`], for one user while others go on. One that has nothing open need not look after the queue as long as another does: who
    /// is awake polls it, and is asked before he rests. Who has something open names all, and who waits for room does not rest.
    fn arm_one(&mut self, cx: &mut Cx<'_>, waits: &mut Waits, index: usize, parked: Parked) -> Armed {
        let Some(state) = self.shares.get_mut(index).and_then(Option::as_mut) else { return Armed::Sleep };
        if !state.line.is_empty() {
            return Armed::Busy;
        }
        (state.parked, state.guards) = (Some(parked), None);
        let idle = state.in_flight == 0 && state.suspects == 0;
        if idle && self.is_at(self.guard, index, ShareState::polls) {
            return Armed::Sleep;
        }
        let (at, deadline) = (waits.interests.len(), waits.deadline);
        if self.arm(cx, waits) == Armed::Busy {
            return Armed::Busy;
        }
        // Also when another has named it all before he rested: a queue that was polled since then listens to nobody until it is asked again,
        // and may wait for something else.
        let Some(named) = self.named else { return Armed::Sleep };
        if idle && self.is_guarded_beside(index, &named) {
            waits.interests.truncate(at);
            waits.deadline = deadline;
        } else if let Some(state) = self.shares[index].as_mut() {
            state.guards = Some(named);
            self.guard = index;
        }
        Armed::Sleep
    }

    /// Does another than share `index` poll the queue, or rest until any of what is `named` happens, and be woken in time?
    fn is_guarded_beside(&mut self, index: usize, named: &Named) -> bool {
        let looks = |share: &ShareState| share.polls() || share.guards(named);
        let mut places = std::iter::once(self.guard).chain(0..self.shares.len());
        let found = places.find(|&at| self.is_at(at, index, looks));
        self.guard = found.unwrap_or(self.guard);
        found.is_some()
    }

    /// Is the share in place `at` another one than `index`, and such?
    fn is_at(&self, at: usize, index: usize, such: impl Fn(&ShareState) -> bool) -> bool {
        at != index && self.shares.get(at).and_then(Option::as_ref).is_some_and(such)
    }

    /// As [`ControllerQueue::arm`], once for all shares of a sleep.
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.named.as_ref().is_some_and(|named| named.is_in(waits)) {
            return Armed::Sleep;
        }
        let (at, others) = (waits.interests.len(), waits.deadline.take());
        let armed = self.inner.arm(cx, waits);
        self.named = Named::since(at, waits).filter(|_| armed == Armed::Sleep);
        others.into_iter().for_each(|deadline| waits.until(deadline));
        armed
    }

    /// Its last line may have gone with a user that was dropped: then the next turn closes it.
    fn is_to_be_closed(&self) -> bool {
        self.closing && !self.closed && self.waiting == 0
    }

    fn close_when_idle(&mut self, cx: &mut Cx<'_>) {
        if self.closing {
            self.end(cx);
        }
    }

    #[cold]
    fn end(&mut self, cx: &mut Cx<'_>) {
        if self.is_to_be_closed() {
            self.closed = true;
            self.inner.close(cx);
        }
        if self.closed && !self.over && self.inner.is_drained() {
            // Who waits for nothing else hears nothing from the queue any more.
            self.over = true;
            self.wake_parked();
        }
    }
}

impl ShareState {
    /// Its user gets a turn, if he rests.
    #[inline]
    fn wake(&mut self) {
        if let Some(parked) = self.parked.take() {
            parked.wake();
        }
    }

    /// Does its user poll the queue in each turn?
    fn polls(&self) -> bool {
        !self.abandoned && !self.closed && self.parked.is_none()
    }

    /// Does its user rest until any of what is `named` happens?
    fn guards(&self, named: &Named) -> bool {
        let rests = !self.abandoned && !self.closed && self.parked.is_some();
        rests && self.guards.as_ref().is_some_and(|guarded| guarded.covers(named))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Empty, unless a reactor ends under its queues: the queue below knows how to end then, and our table must not object first.
        self.known.clear();
    }
}
