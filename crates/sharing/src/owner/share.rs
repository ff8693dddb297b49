//! One user of an owner's queue: its submissions, its turns, its end.

use super::{Core, ShareOwner};
use polypath_block::{Armed, Cx, Done, Health, Io, Refused, RefusedWhy, Rest, Waits};
use std::rc::Rc;

/// One user of an owner's queue.
pub(crate) struct Share {
    pub(super) owner: Rc<ShareOwner>,
    pub(super) index: usize,
    pub(super) uid: u32,
}

impl Share {
    pub(crate) fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        let core = &mut *self.owner.core.borrow_mut();
        core.named = None;
        let (index, uid) = (self.index, self.uid);
        let mut taken = core.submit_plain(cx, (index, uid), ios)?;
        while let Some(io) = ios.get(taken) {
            core.submit(cx, (index, uid), *io).map_err(|why| Rest { taken, why })?;
            taken += 1;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.submit_all(cx, std::slice::from_ref(&io)).map_err(|rest| rest.refuses(io))
    }

    pub(crate) fn kick(&mut self, cx: &mut Cx<'_>) {
        self.owner.kick(cx);
    }

    pub(crate) fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let core = &mut *self.owner.core.borrow_mut();
        core.named = None;
        let (round, new) = (core.round, core.polled != cx.now);
        let Some(state) = core.share(self.index, self.uid) else { return };
        state.parked = None;
        // What others' turns brought comes first.
        state.hand_out(done);
        // A new turn of the reactor; or a second poll within one, as also a clock that stands still makes it.
        let turns = new || state.round == round;
        if turns {
            state.round = round + 1;
            (core.round, core.polled) = (round + 1, cx.now);
            self.owner.turn(core, cx, self.index, done);
        } else {
            state.round = round;
        }
        let seen = core.look_at_unit(self.index);
        if turns {
            let health = core.best_health(seen);
            if self.owner.mailbox.health() != health {
                self.owner.mailbox.set_health(health);
                core.wake_parked();
            }
        }
        if let Some(state) = core.share(self.index, self.uid) {
            state.hand_out(done);
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
        match waits.parking() {
            _ if news || core.is_to_be_closed() => Armed::Busy,
            Some(parked) => core.arm_one(cx, waits, self.index, parked),
            None => core.arm(cx, waits),
        }
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

impl Core {
    /// As many from the front of `ios` as go down with the tags that they have, while nobody else has such tags below; says how many
    /// were taken. Those that are left go one by one.
    #[inline]
    fn submit_plain(&mut self, cx: &mut Cx<'_>, (index, uid): (usize, u32), ios: &[Io]) -> Result<usize, Rest> {
        let Core { plain, shares, inner, closing, waiting, .. } = self;
        let Some(state) = shares.get_mut(index).and_then(Option::as_mut).filter(|s| s.uid == uid && !s.closed) else {
            return Ok(0);
        };
        let room = state.depth.saturating_sub(state.in_flight).min(ios.len());
        if *closing || *waiting > 0 || room == 0 || !plain.takes(index, &ios[..room]) {
            return Ok(0);
        }
        let handed = inner.submit_all(cx, state.unit, &ios[..room]);
        let taken = handed.map_or_else(|rest| rest.taken, |()| room);
        state.in_flight += taken;
        plain.open += taken;
        let (Err(Rest { why, .. }), Some(io)) = (handed, ios.get(taken)) else { return Ok(taken) };
        state.in_flight += 1;
        let unit = state.unit;
        self.wait_in_line((index, uid), unit, *io, why).map_err(|refused| Rest { taken, why: refused.why })?;
        Ok(taken + 1)
    }

    /// One request, known below by a tag of ours.
    fn submit(&mut self, cx: &mut Cx<'_>, (index, uid): (usize, u32), io: Io) -> Result<(), RefusedWhy> {
        let (closing, idle) = (self.closing, self.waiting == 0);
        let Some(state) = self.share(index, uid) else { return Err(RefusedWhy::Gone) };
        if closing || state.closed {
            return Err(RefusedWhy::Gone);
        }
        if state.in_flight >= state.depth {
            return Err(RefusedWhy::Full);
        }
        let unit = state.unit;
        state.in_flight += 1;
        let handed = if idle { self.hand_over(cx, index, unit, io) } else { Err(RefusedWhy::Full) };
        match handed {
            Ok(()) => Ok(()),
            Err(why) => self.wait_in_line((index, uid), unit, io, why).map_err(|refused| refused.why),
        }
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
        if closed {
            // What is still open of it, or behind it, is for those that rest to look after.
            core.wake_parked();
        } else {
            self.owner.share_closed(core);
        }
    }
}
