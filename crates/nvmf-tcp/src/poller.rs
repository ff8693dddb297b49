//! The poller of a controller's admin queue: it sets the time, moves bytes, and drives [`life`].

use crate::admin::{Admin, Fault, Handle, Task, poll_once};
use crate::life::life;
use crate::shared::{Shared, Stage};
use polypath_block::{Armed, Code, Cx, Poller, SLACK, Time, Turn, TurnClock, Waits};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Pause between two looks at a socket from which nothing is urgent, when the reactor spins.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The same while commands of the bring-up are outstanding, and after a sleep.
const LOOK_SOON: Duration = Duration::from_micros(50);

/// See the module.
pub(crate) struct AdminPoller {
    shared: Arc<Shared>,
    admin: Option<Handle>,
    life: Option<Task<String>>,
    looked: Time,
    clock: TurnClock,
    slept: bool,
}

impl AdminPoller {
    pub(crate) fn new(shared: Arc<Shared>, now: Time) -> Self {
        // Never looked: the first turn must, or a reactor that sleeps at once sleeps for ever.
        let mut poller = AdminPoller {
            shared: shared.clone(),
            admin: None,
            life: None,
            looked: Time::ZERO,
            clock: TurnClock::new(),
            slept: false,
        };
        match Admin::new(now) {
            Ok(admin) => {
                let admin = Rc::new(RefCell::new(admin));
                poller.life = Some(Box::pin(life(admin.clone(), shared)));
                poller.admin = Some(admin);
            }
            Err(error) => shared.set_stage(Stage::Gone { reason: format!("no memory for admin commands: {error}") }),
        }
        poller
    }
}

impl Poller for AdminPoller {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        let (Some(admin), Some(life)) = (&self.admin, &mut self.life) else { return Turn::Finished };
        if self.clock.turn(cx.now, SLACK).is_some() {
            // We were not looking: what was due meanwhile may be waiting to be read, or still be on its way.
            let mut a = admin.borrow_mut();
            a.forgive_until(cx.now.after(SLACK));
            if let Some(control) = a.control() {
                control.borrow_mut().forgive_until(cx.now.after(SLACK));
            }
        }
        let called = self.shared.answer_call();
        let (due, urgent) = {
            let a = admin.borrow();
            let control =
                a.control().is_some_and(|c| c.borrow().link().is_some_and(|l| !l.is_ready() || l.in_flight() > 0));
            (cx.now >= a.deadline, control || a.link().is_some_and(|link| !a.settled || link.in_flight() > 2))
        };
        let pause = if urgent || self.slept { LOOK_SOON } else { LOOK_EVERY };
        if !called && !due && cx.now < self.looked.after(pause) {
            return Turn::Idle;
        }
        self.looked = cx.now;
        self.slept = false;
        let begin = |a: &mut Admin| {
            a.now = cx.now;
            a.deadline = Time::NEVER;
            a.receive()
        };
        let moved = {
            let mut a = admin.borrow_mut();
            let control = a.control().is_some_and(|control| begin(&mut control.borrow_mut()));
            begin(&mut a) || control
        };
        let end = poll_once(life);
        let mut a = admin.borrow_mut();
        a.flush();
        if let Some(control) = a.control().cloned() {
            let mut control = control.borrow_mut();
            control.flush();
            a.deadline = a.deadline.min(control.deadline);
        }
        drop(a);
        match end {
            Poll::Ready(reason) => {
                tracing::info!(path = %self.shared.config.name, %reason, "controller closed");
                self.life = None;
                self.admin = None;
                self.shared.set_stage(Stage::Gone { reason });
                self.shared.relays.abandon();
                Turn::Finished
            }
            Poll::Pending if moved || called || due => Turn::Busy,
            Poll::Pending => Turn::Idle,
        }
    }

    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let Some(admin) = &self.admin else { return Armed::Busy };
        if self.shared.is_called() {
            return Armed::Busy;
        }
        let a = admin.borrow();
        if let Some(link) = a.link() {
            if link.has_news() {
                return Armed::Busy;
            }
            link.arm(waits);
        }
        let control = a.control().map(|control| control.borrow());
        if let Some(link) = control.as_ref().and_then(|control| control.link()) {
            if link.has_news() {
                return Armed::Busy;
            }
            link.arm(waits);
        }
        if a.deadline != Time::NEVER {
            waits.until(a.deadline);
        }
        waits.on_call();
        self.clock.sleeps_until(a.deadline);
        self.slept = true;
        Armed::Sleep
    }

    fn name(&self) -> &str {
        &self.shared.config.name
    }
}

impl Drop for AdminPoller {
    fn drop(&mut self) {
        if self.life.is_none() {
            return;
        }
        // The reactor ends under it. Nobody keeps the association alive any more, and its queues must know.
        let reason = "the reactor of its admin queue has ended".to_owned();
        if let Some(association) = self.shared.live() {
            self.shared.lose(&association, Code::PathLost, reason.clone());
        }
        self.shared.refuse_reservations(&Fault::new(Code::PathLost, reason.clone()));
        self.shared.set_stage(Stage::Gone { reason });
        self.shared.relays.abandon();
    }
}
