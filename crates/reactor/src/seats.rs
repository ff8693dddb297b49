//! The pollers of a reactor: those that get turns, and those that rest while the others go on.
//!
//! A poller without work for a while is asked by itself whether it may rest (`arm`, with [`Waits::parking`]). If so it gets no more turns
//! until a descriptor that it named has something to tell, its deadline has come, another poller of this thread has something for it
//! ([`Parked::wake`]), or the reactor is called from outside. So a thousand idle ones cost a busy one nothing but a look at one epoll
//! descriptor every 50 µs. See docs/decisions/0011-pollers-rest-one-by-one.md for why no wake-up is lost.

use crate::idle::IdlePolicy;
use crate::lot::Lot;
use polypath_block::{Armed, Cx, Interest, Parked, Poller, SegTable, Time, Turn, Waits};
use std::io;
use std::time::Duration;

/// Between two looks at what wakes those that rest, while others work: what one of them waits longer for its turn.
const LOOK: Duration = Duration::from_micros(50);
/// Without work for as long, a poller is asked whether it may rest. A guest whose ring rests pays for a kick.
const PATIENCE: Duration = Duration::from_millis(1);
/// The same of a reactor that promises its guests to poll.
const PATIENCE_POLL: Duration = Duration::from_millis(100);
/// What becomes of patience if each rest is over soon, as a multiple.
const MOST_PATIENT: u32 = 64;
/// A rest is over soon if it took less than so many times the patience before it.
const SOON: u32 = 8;
/// Most pollers asked in one turn: the others wait for the next.
const ASKED: usize = 16;
/// Looks for work between two turns of a poller that is alone: some hundred nanoseconds, in which the clock stands still for it.
const LOOKS: u32 = 256;
/// If there are many more, a part of all.
const ASKED_PART: usize = 4;
/// Most pollers woken in one turn only to look: who is busy has his turn before the others look. A thousand deadlines that come together
/// would take a turn of milliseconds otherwise.
const GLANCES: usize = 16;

/// See the module.
pub(crate) struct Seats {
    seats: Vec<Option<Seat>>,
    free: Vec<u32>,
    /// Who gets turns, in this order.
    awake: Vec<u32>,
    resting: usize,
    /// How many were woken to look only.
    glancing: usize,
    /// Seats that have yet to hear a call, from `next_to_hear` on.
    to_hear: usize,
    next_to_hear: usize,
    lot: Lot,
    waits: Waits,
    woken: Vec<Parked>,
    next_look: Time,
    next_question: Time,
    patience: Duration,
    /// Between two turns there is time to look for more.
    spins: bool,
}

struct Seat {
    poller: Box<dyn Poller>,
    /// Since when it has had no work; never for one that has.
    idle_since: Time,
    patience: Duration,
    state: State,
    /// When it went to rest, until it works again.
    rested_at: Time,
    named: Vec<Interest>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Awake,
    /// One turn, and without work it rests again at once.
    Glancing,
    Resting {
        until: Time,
    },
}

impl Seats {
    pub(crate) fn new(idle: IdlePolicy) -> io::Result<Seats> {
        Ok(Seats {
            seats: Vec::with_capacity(64),
            free: Vec::with_capacity(64),
            awake: Vec::with_capacity(64),
            resting: 0,
            glancing: 0,
            to_hear: 0,
            next_to_hear: 0,
            lot: Lot::new()?,
            waits: Waits::with_capacity(64),
            woken: Vec::with_capacity(64),
            next_look: Time::ZERO,
            next_question: Time::ZERO,
            patience: if idle == IdlePolicy::Poll { PATIENCE_POLL } else { PATIENCE },
            spins: idle != IdlePolicy::Sleep,
        })
    }

    /// A poller that gets turns from now on.
    pub(crate) fn add(&mut self, poller: Box<dyn Poller>) {
        let seat = Seat {
            poller,
            idle_since: Time::NEVER,
            patience: self.patience,
            state: State::Awake,
            rested_at: Time::NEVER,
            named: Vec::with_capacity(4),
        };
        let number = self.free.pop().unwrap_or(self.seats.len() as u32);
        if number as usize == self.seats.len() {
            self.seats.push(None);
        }
        self.seats[number as usize] = Some(seat);
        self.awake.push(number);
    }

    /// All pollers.
    pub(crate) fn len(&self) -> usize {
        self.awake.len() + self.resting
    }

    /// Those that rest.
    pub(crate) fn resting(&self) -> usize {
        self.resting
    }

    /// Tells when somebody who rests has something to do.
    pub(crate) fn lot(&self) -> &Lot {
        &self.lot
    }

    /// By when somebody who rests must have a turn.
    pub(crate) fn first_deadline(&self) -> Time {
        self.lot.first_deadline()
    }

    /// Drops all.
    pub(crate) fn clear(&mut self) {
        self.awake.clear();
        (self.resting, self.glancing, self.to_hear) = (0, 0, 0);
        self.seats.clear();
    }

    /// Before a turn: wakes those that rest and must have it. `called`: by somebody who does not say whom.
    #[inline]
    pub(crate) fn wake(&mut self, now: Time, called: bool) {
        if called {
            // Who looked since an earlier call has to look again.
            self.to_hear = self.seats.len();
        }
        if self.resting == 0 {
            // All that are awake look in the turn that follows.
            self.to_hear = 0;
        } else {
            if self.to_hear > 0 {
                self.let_hear();
            }
            if Parked::any_woken() {
                self.wake_named();
            }
            if now >= self.lot.first_deadline() {
                self.wake_due(now);
            }
            if now >= self.next_look {
                self.look(now);
            }
        }
    }

    /// Wakes the next of those that rest and have not heard a call.
    #[cold]
    fn let_hear(&mut self) {
        let mut left = GLANCES;
        while self.to_hear > 0 && left > 0 {
            let number = self.next_to_hear % self.seats.len().max(1);
            self.next_to_hear = number + 1;
            self.to_hear -= 1;
            left -= usize::from(self.end_rest(number as u32, State::Glancing));
        }
    }

    #[cold]
    fn wake_all(&mut self) {
        for number in 0..self.seats.len() as u32 {
            self.end_rest(number, State::Glancing);
        }
    }

    #[cold]
    fn wake_named(&mut self) {
        let mut woken = std::mem::take(&mut self.woken);
        Parked::take_woken(&mut woken);
        for parked in woken.drain(..) {
            self.end_rest(parked.number(), State::Awake);
        }
        self.woken = woken;
    }

    #[cold]
    fn wake_due(&mut self, now: Time) {
        let mut left = GLANCES;
        while left > 0
            && let Some((at, number)) = self.lot.pop_due(now)
        {
            if rests_until(&self.seats, number, at) {
                left -= usize::from(self.end_rest(number, State::Glancing));
            }
        }
    }

    fn look(&mut self, now: Time) {
        self.next_look = now.after(LOOK);
        let Seats { lot, woken, .. } = self;
        match lot.look(|number| woken.push(Parked::new(number))) {
            Ok(more) => {
                if more {
                    self.next_look = now;
                }
            }
            Err(error) => {
                // Nobody may be left waiting for what cannot be heard.
                tracing::error!(%error, "cannot look for what wakes those that rest; all get turns");
                self.wake_all();
            }
        }
        let mut woken = std::mem::take(&mut self.woken);
        for parked in woken.drain(..) {
            self.end_rest(parked.number(), State::Awake);
        }
        self.woken = woken;
    }

    /// After a sleep of the reactor: what ended it may be for somebody who rests.
    pub(crate) fn look_soon(&mut self) {
        self.next_look = Time::ZERO;
    }

    /// Gives it turns again; says whether it rested.
    fn end_rest(&mut self, number: u32, into: State) -> bool {
        let Some(Some(seat)) = self.seats.get_mut(number as usize) else { return false };
        if !matches!(seat.state, State::Resting { .. }) {
            return false;
        }
        seat.state = into;
        seat.idle_since = Time::NEVER;
        self.glancing += usize::from(into == State::Glancing);
        self.resting -= 1;
        self.awake.push(number);
        true
    }

    /// A turn of each that is awake; says whether anything got done.
    #[inline]
    pub(crate) fn turn(&mut self, now: Time, segs: &mut SegTable, reactor: u16) -> bool {
        self.turn_of_each(now, segs, reactor) || (self.finds_work() && self.turn_of_each(now, segs, reactor))
    }

    /// If there is only one to look after: has it got something to do by now? What else a turn of the reactor is made of takes as long as a
    /// small request.
    #[inline]
    fn finds_work(&mut self) -> bool {
        let &[number] = self.awake.as_slice() else { return false };
        self.spins && self.seats[number as usize].as_mut().is_some_and(|seat| seat.poller.look(LOOKS))
    }

    fn turn_of_each(&mut self, now: Time, segs: &mut SegTable, reactor: u16) -> bool {
        let mut busy = false;
        let mut at = 0;
        while let Some(&number) = self.awake.get(at) {
            let Some(seat) = self.seats[number as usize].as_mut() else {
                self.awake.remove(at);
                continue;
            };
            match seat.poller.poll(&mut Cx { now, segs, reactor }) {
                Turn::Idle => {
                    if seat.idle_since == Time::NEVER {
                        seat.idle_since = now;
                    }
                    at += 1;
                }
                Turn::Busy => {
                    busy = true;
                    seat.idle_since = Time::NEVER;
                    if seat.rested_at != Time::NEVER {
                        self.glancing -= usize::from(seat.state == State::Glancing);
                        seat.work_again(now, self.patience);
                    }
                    at += 1;
                }
                Turn::Finished => {
                    busy = true;
                    self.awake.remove(at);
                    self.end(number);
                }
            }
        }
        busy
    }

    fn end(&mut self, number: u32) {
        if let Some(seat) = self.seats[number as usize].take() {
            self.glancing -= usize::from(seat.state == State::Glancing);
            // It has let go of its descriptors before we do.
            drop(seat.poller);
            self.lot.forget(number, &seat.named);
            self.free.push(number);
        }
    }

    /// After a turn: lets those rest that have been without work for long, while others go on (`busy`).
    #[inline]
    pub(crate) fn let_rest(&mut self, now: Time, busy: bool, segs: &mut SegTable, reactor: u16) {
        if self.glancing > 0 || (busy && now >= self.next_question) {
            self.next_question = now.after(LOOK);
            // A part of many: as long as they are awake each turn costs as much as all of them.
            let most = ASKED.max(self.awake.len() / ASKED_PART);
            self.ask(now, most, segs, reactor);
        }
    }

    /// Before the reactor sleeps, as [`Seats::let_rest`].
    pub(crate) fn let_rest_before_sleep(&mut self, now: Time, segs: &mut SegTable, reactor: u16) {
        self.ask(now, usize::MAX, segs, reactor);
    }

    /// Asks those that only looked, and as many as `most` of those whose patience is over.
    #[cold]
    fn ask(&mut self, now: Time, most: usize, segs: &mut SegTable, reactor: u16) {
        if self.resting == 0 {
            // Whoever was woken by name is awake; nobody looks at the names while that is so.
            self.wake_named();
        }
        let mut asked = 0;
        let mut at = 0;
        while let Some(&number) = self.awake.get(at) {
            if asked == most && self.glancing == 0 {
                return;
            }
            let Some(seat) = self.seats[number as usize].as_mut() else { return };
            // Who only looked is asked at once, however many others are: each turn more would be in vain.
            let glanced = seat.state == State::Glancing;
            let is_due = seat.idle_since != Time::NEVER
                && (glanced || (asked < most && now.since(seat.idle_since) >= seat.patience));
            if !is_due {
                at += 1;
                continue;
            }
            asked += usize::from(!glanced);
            self.glancing -= usize::from(seat.state == State::Glancing);
            seat.state = State::Awake;
            self.waits.park(Parked::new(number));
            let armed = seat.poller.arm(&mut Cx { now, segs, reactor }, &mut self.waits);
            if armed == Armed::Busy || !self.waits.has_any() {
                seat.refuse(now, self.patience);
                at += 1;
            } else if self.rest(number, now) {
                self.awake.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// The poller has said that it may rest, and what it waits for: rests it?
    fn rest(&mut self, number: u32, now: Time) -> bool {
        let Some(seat) = self.seats[number as usize].as_mut() else { return false };
        if let Err(error) = self.lot.watch(number, &mut self.waits.interests, &mut seat.named) {
            tracing::debug!(poller = seat.poller.name(), %error, "cannot be left to rest");
            seat.refuse(now, self.patience);
            return false;
        }
        let until = self.waits.deadline.unwrap_or(Time::NEVER);
        seat.state = State::Resting { until };
        if seat.rested_at == Time::NEVER {
            seat.rested_at = now;
        }
        self.resting += 1;
        if until != Time::NEVER {
            let (seats, pollers) = (&self.seats, self.seats.len());
            self.lot.until(number, until, pollers, |number, at| rests_until(seats, number, at));
        }
        true
    }

    /// Asks all that are awake whether the reactor may sleep; what they wait for is added to `waits`.
    pub(crate) fn arm(&mut self, now: Time, segs: &mut SegTable, reactor: u16, waits: &mut Waits) -> bool {
        for &number in &self.awake {
            if let Some(seat) = self.seats[number as usize].as_mut()
                && seat.poller.arm(&mut Cx { now, segs, reactor }, waits) == Armed::Busy
            {
                return false;
            }
        }
        // One of them may have found something for one that rests; and some may not have heard a call yet.
        !self.has_woken() && self.to_hear == 0
    }

    fn has_woken(&mut self) -> bool {
        if self.resting == 0 && Parked::any_woken() {
            self.wake_named();
        }
        Parked::any_woken()
    }
}

fn rests_until(seats: &[Option<Seat>], number: u32, at: Time) -> bool {
    seats.get(number as usize).and_then(Option::as_ref).is_some_and(|seat| seat.state == State::Resting { until: at })
}

impl Seat {
    /// It works again after a rest. One that was over soon was not worth it: the next comes later.
    #[cold]
    fn work_again(&mut self, now: Time, least: Duration) {
        let soon = now.since(self.rested_at) < self.patience * SOON;
        self.patience = if soon { (self.patience * 2).min(least * MOST_PATIENT) } else { least };
        self.rested_at = Time::NEVER;
        self.state = State::Awake;
    }

    /// It may not rest now.
    #[cold]
    fn refuse(&mut self, now: Time, least: Duration) {
        self.idle_since = now;
        self.patience = (self.patience * 2).min(least * MOST_PATIENT);
    }
}

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod tests;
