//! One queue pair of the controller with several users on its reactor.
//!
//! Each user has a [`Share`]: a unit of the controller, a bound of its own, a line of requests that wait for room, a box of outcomes.
//! A user is never told "full" because of what others do: within its depth a request waits in the share's line, and lines are served
//! in turn, one request each, whatever unit they are for.

use crate::link::Served;
use crate::mailbox::OwnerMailbox;
use polypath_block::{
    Armed, Code, Completion, ControllerQueue, Cx, Done, Health, Interest, Io, OpenError, Proof, Refused, RefusedWhy,
    SlotKey, Slots, Suspect, Time, Unit, UnitId, Waits,
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
    done: Done,
    /// What the queue waits for was named for the sleep that begins.
    named: Option<Named>,
    /// Nobody uses it, or it is surplus: it is closed as soon as nothing waits.
    closing: bool,
    closed: bool,
    surplus: bool,
    /// Ends of links whose proxy was dropped by a reactor that ended. Last, so that they go after the queue: who learns from their
    /// end that nobody answers may count on the queue being gone.
    orphans: Vec<Served>,
}

/// Whose a request is.
#[derive(Clone, Copy)]
struct Known {
    share: usize,
    uid: u32,
    tag: u64,
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
}

/// What the queue named when it was asked last whether the reactor may sleep.
struct Named {
    /// Where in the list, and how many.
    at: usize,
    count: usize,
    first: Interest,
    last: Interest,
    deadline: Option<Time>,
}

/// One user of an owner's queue.
pub(crate) struct Share {
    owner: Rc<ShareOwner>,
    index: usize,
    uid: u32,
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
            shares: Vec::new(),
            next_uid: 0,
            open: 0,
            waiting: 0,
            turn: 0,
            round: 0,
            polled: Time::NEVER,
            done: Done::with_capacity(known),
            named: None,
            closing: false,
            closed: false,
            surplus: false,
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
        core.open -= 1;
        self.mailbox.set_shares(core.open);
        if core.open == 0 {
            core.closing = true;
            self.mailbox.close();
        }
    }

    /// One turn of the queue.
    fn turn(&self, core: &mut Core, cx: &mut Cx<'_>) {
        let mut done = std::mem::take(&mut core.done);
        core.inner.poll(cx, &mut done);
        for suspect in done.suspects.drain(..) {
            core.suspected(suspect);
        }
        for completion in done.completions.drain(..) {
            core.completed(completion);
        }
        core.done = done;
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
        }
        core.close_when_idle(cx);
        self.mailbox.set_health(core.best_health());
    }
}

impl Core {
    fn share(&mut self, index: usize, uid: u32) -> Option<&mut ShareState> {
        self.shares.get_mut(index)?.as_mut().filter(|s| s.uid == uid)
    }

    fn health(&self, unit: Unit) -> Health {
        if self.closing { Health::Down } else { self.inner.health(unit) }
    }

    /// How the queue feels to whoever looks for one to share: as its best unit does.
    fn best_health(&self) -> Health {
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

    fn hand_over(&mut self, cx: &mut Cx<'_>, share: usize, uid: u32, unit: Unit, io: Io) -> Result<(), RefusedWhy> {
        let known = Known { share, uid, tag: io.tag, suspect: false };
        let Ok(key) = self.known.insert(known) else { return Err(RefusedWhy::Full) };
        self.inner.submit(cx, unit, Io { tag: key.as_u32().into(), ..io }).map_err(|refused| {
            self.known.remove(key);
            refused.why
        })
    }

    fn suspected(&mut self, suspect: Suspect) {
        let Some(known) = self.known.get_mut(SlotKey::from_u32(suspect.tag as u32)) else { return };
        if std::mem::replace(&mut known.suspect, true) {
            return;
        }
        let Known { share, uid, tag, .. } = *known;
        if let Some(state) = self.share(share, uid) {
            state.in_flight -= 1;
            state.suspects += 1;
            if !state.abandoned {
                state.outcomes.suspects.push(Suspect { tag, ..suspect });
            }
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Some(known) = self.known.remove(SlotKey::from_u32(completion.tag as u32)) else { return };
        let Known { share, uid, tag, suspect } = known;
        let Some(state) = self.share(share, uid) else { return };
        if suspect {
            state.suspects -= 1;
        } else {
            state.in_flight -= 1;
        }
        if !state.abandoned {
            state.outcomes.completions.push(Completion { tag, ..completion });
        } else {
            self.forget_when_over(share);
        }
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
            match self.hand_over(cx, index, uid, unit, io) {
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
    }

    /// What the user of a share is about to see of its unit. What waits for one that is down (all are, on a surplus queue) is given back
    /// here rather than when its turn comes: the queue may be full of what others do, for as long as they like.
    fn look_at_unit(&mut self, index: usize) {
        let Some(state) = self.shares.get_mut(index).and_then(Option::as_mut) else { return };
        state.seen = self.inner.health(state.unit);
        if state.seen == Health::Down && !state.line.is_empty() {
            self.fail_line(index);
        }
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
        if self.is_to_be_closed() {
            self.closed = true;
            self.inner.close(cx);
        }
    }
}

impl Named {
    /// What was named in `waits` from `at` on.
    fn since(at: usize, waits: &Waits) -> Option<Named> {
        let named = waits.interests.get(at..)?;
        let (&first, &last) = (named.first()?, named.last()?);
        Some(Named { at, count: named.len(), first, last, deadline: waits.deadline })
    }

    /// Does `waits` hold all of it? Nobody else names these descriptors.
    fn is_in(&self, waits: &Waits) -> bool {
        let has = |at: usize, interest| waits.interests.get(at) == Some(interest);
        let in_time = |at: Time| waits.deadline.is_some_and(|deadline| deadline <= at);
        has(self.at, &self.first) && has(self.at + self.count - 1, &self.last) && self.deadline.is_none_or(in_time)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Empty, unless a reactor ends under its queues: the queue below knows how to end then, and our table must not object first.
        self.known.clear();
    }
}

impl Share {
    pub(crate) fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let core = &mut *self.owner.core.borrow_mut();
        let refuse = |why| Err(Refused { io, why });
        core.named = None;
        let (closing, idle) = (core.closing, core.waiting == 0);
        let Some(state) = core.share(self.index, self.uid) else { return refuse(RefusedWhy::Gone) };
        if closing || state.closed {
            return refuse(RefusedWhy::Gone);
        }
        if state.in_flight >= state.depth {
            return refuse(RefusedWhy::Full);
        }
        let unit = state.unit;
        let handed = if idle { core.hand_over(cx, self.index, self.uid, unit, io) } else { Err(RefusedWhy::Full) };
        // What waits in a line waits for room, not for a unit.
        if handed == Err(RefusedWhy::Gone) || (handed.is_err() && core.inner.health(unit) == Health::Down) {
            return refuse(RefusedWhy::Gone);
        }
        if let Some(state) = core.share(self.index, self.uid) {
            state.in_flight += 1;
            if handed.is_err() {
                state.line.push_back(io);
                core.waiting += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn kick(&mut self, cx: &mut Cx<'_>) {
        self.owner.kick(cx);
    }

    pub(crate) fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let core = &mut *self.owner.core.borrow_mut();
        core.named = None;
        let (round, new) = (core.round, core.polled != cx.now);
        let Some(state) = core.share(self.index, self.uid) else { return };
        // A new turn of the reactor; or a second poll within one, as also a clock that stands still makes it.
        if new || state.round == round {
            state.round = round + 1;
            (core.round, core.polled) = (round + 1, cx.now);
            self.owner.turn(core, cx);
        } else {
            state.round = round;
        }
        core.look_at_unit(self.index);
        if let Some(state) = core.share(self.index, self.uid) {
            done.suspects.append(&mut state.outcomes.suspects);
            done.completions.append(&mut state.outcomes.completions);
        }
    }

    pub(crate) fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let core = &mut *self.owner.core.borrow_mut();
        // Others may have polled the queue after this user did: whatever came of that is news.
        let news = core
            .shares
            .get(self.index)
            .and_then(Option::as_ref)
            .is_some_and(|state| !state.outcomes.is_empty() || core.inner.health(state.unit) != state.seen);
        if news || core.is_to_be_closed() { Armed::Busy } else { core.arm(cx, waits) }
    }

    pub(crate) fn health(&self) -> Health {
        let core = self.owner.core.borrow();
        let state = core.shares.get(self.index).and_then(Option::as_ref).filter(|s| s.uid == self.uid);
        state.map_or(Health::Down, |s| core.health(s.unit))
    }

    /// The queue has no place at the controller any more.
    pub(crate) fn is_surplus(&self) -> bool {
        self.owner.core.borrow().surplus
    }

    pub(crate) fn close(&mut self, cx: &mut Cx<'_>) {
        let core = &mut *self.owner.core.borrow_mut();
        let Some(state) = core.share(self.index, self.uid).filter(|s| !s.closed) else { return };
        state.closed = true;
        core.named = None;
        self.owner.share_closed(core);
        core.close_when_idle(cx);
    }

    /// Gives up what waits in its line, without a word: its user has gone, and with it perhaps the memory of its requests.
    pub(crate) fn forget_line(&mut self) {
        let core = &mut *self.owner.core.borrow_mut();
        let Some(state) = core.share(self.index, self.uid) else { return };
        let line = state.line.len();
        state.line.clear();
        state.in_flight -= line;
        core.waiting -= line;
    }

    /// Nothing of this share is open; where nobody else uses the queue, it has drained as well.
    pub(crate) fn is_drained(&self) -> bool {
        let core = &*self.owner.core.borrow();
        let Some(Some(state)) = core.shares.get(self.index) else { return true };
        let own = state.in_flight == 0 && state.suspects == 0 && state.outcomes.is_empty();
        own && state.closed && (!core.closing || (core.closed && core.inner.is_drained()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.forget_line();
        let core = &mut *self.owner.core.borrow_mut();
        let Some(state) = core.share(self.index, self.uid) else { return };
        let closed = state.closed;
        state.outcomes.clear();
        state.abandoned = true;
        core.forget_when_over(self.index);
        if !closed {
            self.owner.share_closed(core);
        }
    }
}
