//! A reactor whose clock is made up: the same turns, mail and sleeps as the real one, and stalls on command.
//!
//! It sleeps as the real one does: only when every poller says that it may, and then until the earliest deadline or until one of
//! the interests that were named is ready. A wake-up that somebody forgot to name is a wake-up that does not come.

use polypath_block::{Armed, Cx, Host, Interest, MakePoller, Poller, SegTable, Time, Turn, Waits};
use polypath_net::any_ready;
use polypath_sim::wire::{NO_FD, Net};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The virtual time, for whoever asks outside a turn.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// The time.
    pub(crate) fn now(&self) -> Time {
        Time::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Moves it on.
    pub(crate) fn set(&self, now: Time) {
        self.0.store(now.as_nanos(), Ordering::Relaxed);
    }
}

/// A simulated reactor as floors below see it.
pub(crate) struct SimHost {
    reactor: u16,
    clock: Arc<Clock>,
    mail: Mutex<Vec<MakePoller>>,
    called: AtomicBool,
}

impl Host for SimHost {
    fn spawn(&self, make: MakePoller) {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).push(make);
        self.wake();
    }

    fn wake(&self) {
        self.called.store(true, Ordering::Relaxed);
    }

    fn reactor(&self) -> u16 {
        self.reactor
    }

    fn now(&self) -> Time {
        self.clock.now()
    }
}

/// See the module.
pub(crate) struct SimReactor {
    host: Arc<SimHost>,
    segs: SegTable,
    pollers: Vec<Box<dyn Poller>>,
    waits: Waits,
    asleep: bool,
    /// No turn before this time.
    stalled_until: Time,
    /// Each turn takes this long, until then.
    long_turns: (Duration, Time),
    /// Each turn takes this long at least.
    least_turn: Duration,
    /// Turns taken.
    pub(crate) turns: u64,
}

impl SimReactor {
    /// Reactor number `reactor`.
    pub(crate) fn new(reactor: u16, clock: Arc<Clock>) -> SimReactor {
        let host = SimHost { reactor, clock, mail: Mutex::default(), called: AtomicBool::new(false) };
        SimReactor {
            host: Arc::new(host),
            segs: SegTable::new(1 << 20),
            pollers: Vec::new(),
            waits: Waits::default(),
            asleep: false,
            stalled_until: Time::ZERO,
            long_turns: (Duration::ZERO, Time::ZERO),
            least_turn: Duration::ZERO,
            turns: 0,
        }
    }

    /// It, for floors below.
    pub(crate) fn host(&self) -> Arc<SimHost> {
        self.host.clone()
    }

    /// Adds a poller that cannot be sent.
    pub(crate) fn add(&mut self, now: Time, make: impl FnOnce(&mut Cx<'_>) -> Box<dyn Poller>) {
        let poller = make(&mut Cx { now, segs: &mut self.segs, reactor: self.host.reactor });
        self.pollers.push(poller);
        self.host.wake();
    }

    /// It gets no turn before `until`.
    pub(crate) fn stall(&mut self, until: Time) {
        self.stalled_until = self.stalled_until.max(until);
    }

    /// Each turn takes `turn`, until `until`.
    pub(crate) fn lengthen_turns(&mut self, turn: Duration, until: Time) {
        self.long_turns = (turn, until);
    }

    /// Each turn takes `turn` at least, from now on.
    pub(crate) fn set_least_turn(&mut self, turn: Duration) {
        self.least_turn = turn;
    }

    /// Has it nothing to run?
    pub(crate) fn is_empty(&self) -> bool {
        self.pollers.is_empty() && self.host.mail.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// When it wants its next turn; [`Time::NEVER`] when only something that happens can wake it.
    pub(crate) fn wants_turn(&self, now: Time, net: &Net) -> Time {
        let at = if !self.asleep || self.is_woken(net) { now } else { self.waits.deadline.unwrap_or(Time::NEVER) };
        at.max(self.stalled_until)
    }

    /// One turn, and to sleep if nobody objects. Call it when it wants one.
    pub(crate) fn turn(&mut self, now: Time) {
        self.turns += 1;
        self.asleep = false;
        let mut busy = self.read_mail(now);
        let mut at = 0;
        while let Some(poller) = self.pollers.get_mut(at) {
            match poller.poll(&mut Cx { now, segs: &mut self.segs, reactor: self.host.reactor }) {
                Turn::Idle => at += 1,
                Turn::Busy => {
                    busy = true;
                    at += 1;
                }
                Turn::Finished => {
                    busy = true;
                    drop(self.pollers.remove(at));
                }
            }
        }
        let (turn, until) = self.long_turns;
        let turn = if now < until { turn.max(self.least_turn) } else { self.least_turn };
        if !turn.is_zero() {
            self.stall(now.after(turn));
        }
        if !busy {
            self.fall_asleep(now);
        }
    }

    fn read_mail(&mut self, now: Time) -> bool {
        self.host.called.store(false, Ordering::Relaxed);
        let mail = std::mem::take(&mut *self.host.mail.lock().unwrap_or_else(PoisonError::into_inner));
        let any = !mail.is_empty();
        for make in mail {
            let poller = make(&mut Cx { now, segs: &mut self.segs, reactor: self.host.reactor });
            self.pollers.push(poller);
        }
        any
    }

    fn fall_asleep(&mut self, now: Time) {
        self.waits.clear();
        for poller in &mut self.pollers {
            let mut cx = Cx { now, segs: &mut self.segs, reactor: self.host.reactor };
            if poller.arm(&mut cx, &mut self.waits) == Armed::Busy {
                return;
            }
        }
        // Descriptors first, so that they can be looked at in one call.
        self.waits.interests.sort_by_key(|i| i.fd == NO_FD);
        self.asleep = true;
    }

    fn is_woken(&self, net: &Net) -> bool {
        if self.host.called.load(Ordering::Relaxed) {
            return true;
        }
        let real = self.waits.interests.partition_point(|i: &Interest| i.fd != NO_FD);
        let (fds, streams) = self.waits.interests.split_at(real);
        streams.iter().any(|i| net.is_ready(i)) || any_ready(fds)
    }
}
