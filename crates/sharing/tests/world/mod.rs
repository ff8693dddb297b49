//! A controller with several units and several reactors, all driven by hand on one thread.
//!
//! Owners are found by thread and reactor number, so that one thread may play any number of reactors: nothing here depends on
//! scheduling, and what must wake a sleeper shows as [`World::would_wake`].
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses its part of it")]

pub mod controller;

pub use controller::{FakeEndFence, Target};

use polypath_block::{
    Armed, Completion, Cx, Device, DeviceState, Done, Health, Host, Io, IoQueue, MakePoller, OpenError, Poller,
    QueueConfig, Refused, SegRow, SegTable, Segment, Suspect, Time, Turn, UnitId, Waits,
};
use polypath_sharing::{SharedController, SharedDevice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Keeps what it is asked to spawn until its reactor's next turn.
pub struct HandHost {
    id: u16,
    letters: Mutex<Option<Vec<MakePoller>>>,
    pub spawned: AtomicUsize,
}

impl Host for HandHost {
    fn spawn(&self, make: MakePoller) {
        self.spawned.fetch_add(1, Ordering::Relaxed);
        // Without letters the reactor has ended, and the poller is dropped unmade.
        if let Some(letters) = self.letters.lock().unwrap().as_mut() {
            letters.push(make);
        }
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        self.id
    }
    fn now(&self) -> Time {
        Time::ZERO
    }
}

/// One simulated reactor.
pub struct HandReactor {
    pub host: Arc<HandHost>,
    pub segs: SegTable,
    pub pollers: Vec<Box<dyn Poller>>,
    /// Pollers that others asked for get their turns before the users of this reactor.
    pub pollers_first: bool,
    /// Gets no turns for now.
    pub stalled: bool,
}

/// One user: a queue, and what it said.
pub struct User {
    pub queue: Box<dyn IoQueue>,
    pub reactor: usize,
    pub done: Done,
    row: SegRow,
}

pub struct World {
    pub now: Time,
    pub target: Target,
    pub shared: Arc<SharedController>,
    pub reactors: Vec<HandReactor>,
    pub users: Vec<Option<User>>,
}

/// Most segments that a user's request has here.
pub const WIDEST: u32 = 200;

impl World {
    /// `reactors` reactors before a controller that grants `granted` queues of `slots` requests.
    pub fn new(reactors: u16, granted: usize, slots: usize) -> World {
        let target = Target::new(granted, slots);
        let reactors: Vec<_> = (0..reactors)
            .map(|id| HandReactor {
                host: Arc::new(HandHost { id, letters: Mutex::new(Some(Vec::new())), spawned: AtomicUsize::new(0) }),
                segs: SegTable::new(1 << 20),
                pollers: Vec::new(),
                pollers_first: false,
                stalled: false,
            })
            .collect();
        let hosts = reactors.iter().map(|r| r.host.clone() as Arc<dyn Host>).collect();
        let shared = SharedController::new(Arc::new(target.clone()), hosts);
        World { now: Time::from_millis(1), target, shared, reactors, users: Vec::new() }
    }

    pub fn device(&self, unit: u64) -> Arc<SharedDevice> {
        self.shared.device(Arc::new(Named(format!("unit {unit}"))), UnitId(unit))
    }

    /// Opens a queue to `unit` on `reactor`.
    pub fn open(&mut self, reactor: usize, unit: u64, depth: u16) -> usize {
        let queue = self.device(unit).open_queue(QueueConfig { depth }).unwrap();
        let row = self.reactors[reactor].segs.reserve(1, WIDEST).unwrap();
        let region = polypath_block::RegionId(unit as u32 + 1);
        for (n, seg) in (0..).zip(self.reactors[reactor].segs.get_mut(row.span(0, WIDEST))) {
            *seg = Segment { offset: n * 512, region, len: 512 };
        }
        self.users.push(Some(User { queue, reactor, done: Done::default(), row }));
        self.users.len() - 1
    }

    /// As [`World::open`], with turns until it is ready.
    pub fn open_ready(&mut self, reactor: usize, unit: u64, depth: u16) -> usize {
        let user = self.open(reactor, unit, depth);
        self.until("a user that is ready", |w| w.health(user) == Health::Ready);
        user
    }

    /// A turn of every reactor.
    pub fn turn(&mut self) {
        for reactor in 0..self.reactors.len() {
            self.turn_of(reactor);
        }
    }

    pub fn turns(&mut self, n: usize) {
        (0..n).for_each(|_| self.turn());
    }

    /// A turn of one reactor; the clock goes on by a microsecond.
    pub fn turn_of(&mut self, reactor: usize) {
        self.now = self.now.after(Duration::from_micros(1));
        if self.reactors[reactor].stalled {
            return;
        }
        if self.reactors[reactor].pollers_first {
            self.turn_of_pollers(reactor);
            self.turn_of_users(reactor);
        } else {
            self.turn_of_users(reactor);
            self.turn_of_pollers(reactor);
        }
    }

    fn turn_of_users(&mut self, reactor: usize) {
        for user in 0..self.users.len() {
            if self.users[user].as_ref().is_some_and(|u| u.reactor == reactor) {
                self.poll(user);
            }
        }
    }

    fn turn_of_pollers(&mut self, at: usize) {
        let reactor = &mut self.reactors[at];
        let letters = reactor.host.letters.lock().unwrap().as_mut().map(std::mem::take).unwrap_or_default();
        let mut cx = Cx { now: self.now, segs: &mut reactor.segs, reactor: at as u16 };
        reactor.pollers.extend(letters.into_iter().map(|make| make(&mut cx)));
        reactor.pollers.retain_mut(|poller| poller.poll(&mut cx) != Turn::Finished);
    }

    pub fn until(&mut self, what: &str, mut over: impl FnMut(&mut World) -> bool) {
        for _ in 0..1000 {
            if over(self) {
                return;
            }
            self.turn();
        }
        panic!("waited 1000 turns for {what}");
    }

    /// Time passes.
    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    pub fn with<R>(&mut self, user: usize, act: impl FnOnce(&mut User, &mut Cx<'_>) -> R) -> R {
        let user = self.users[user].as_mut().expect("a user that is there");
        let segs = &mut self.reactors[user.reactor].segs;
        let mut cx = Cx { now: self.now, segs, reactor: user.reactor as u16 };
        act(user, &mut cx)
    }

    pub fn poll(&mut self, user: usize) {
        self.with(user, |u, cx| u.queue.poll(cx, &mut u.done));
    }

    pub fn submit(&mut self, user: usize, io: Io) -> Result<(), Refused> {
        self.with(user, |u, cx| u.queue.submit(cx, io))
    }

    pub fn kick(&mut self, user: usize) {
        self.with(user, |u, cx| u.queue.kick(cx));
    }

    /// Submits a write of one block at `tag` and kicks.
    pub fn write(&mut self, user: usize, tag: u64) {
        self.send(user, tag, true, 1);
    }

    pub fn read(&mut self, user: usize, tag: u64) {
        self.send(user, tag, false, 1);
    }

    /// Submits a request of `segments` segments and kicks.
    pub fn send(&mut self, user: usize, tag: u64, write: bool, segments: u32) {
        self.try_send(user, tag, write, segments).unwrap_or_else(|r| panic!("refused: {:?}", r.why));
        self.kick(user);
    }

    pub fn try_send(&mut self, user: usize, tag: u64, write: bool, segments: u32) -> Result<(), Refused> {
        self.with(user, |u, cx| {
            let span = u.row.span(0, segments);
            let io = if write { Io::write(tag, tag, segments, span) } else { Io::read(tag, tag, segments, span) };
            u.queue.submit(cx, io)
        })
    }

    /// Submits requests of one segment until it is refused; their tags begin at `tag`.
    pub fn fill(&mut self, user: usize, tag: u64) -> u64 {
        let mut n = 0;
        while self.try_send(user, tag + n, true, 1).is_ok() {
            n += 1;
        }
        self.kick(user);
        n
    }

    pub fn health(&self, user: usize) -> Health {
        self.users[user].as_ref().unwrap().queue.health()
    }

    pub fn completions(&mut self, user: usize) -> Vec<Completion> {
        self.with(user, |u, _| std::mem::take(&mut u.done.completions))
    }

    pub fn suspects(&mut self, user: usize) -> Vec<Suspect> {
        self.with(user, |u, _| std::mem::take(&mut u.done.suspects))
    }

    pub fn close(&mut self, user: usize) {
        self.with(user, |u, cx| u.queue.close(cx));
    }

    pub fn is_drained(&self, user: usize) -> bool {
        self.users[user].as_ref().unwrap().queue.is_drained()
    }

    /// Closes it, waits until it has drained, and drops it.
    pub fn leave(&mut self, user: usize) {
        self.close(user);
        self.until("a user that drains", |w| w.is_drained(user));
        self.drop_user(user);
    }

    /// Drops it as it stands.
    pub fn drop_user(&mut self, user: usize) {
        let User { queue, reactor, row, .. } = self.users[user].take().expect("a user that is there");
        drop(queue);
        self.reactors[reactor].segs.release(row);
    }

    /// The reactor ends under everything that it has.
    pub fn end_reactor(&mut self, reactor: usize) {
        *self.reactors[reactor].host.letters.lock().unwrap() = None;
        for user in 0..self.users.len() {
            if self.users[user].as_ref().is_some_and(|u| u.reactor == reactor) {
                self.drop_user(user);
            }
        }
        self.reactors[reactor].pollers.clear();
    }

    /// Does the reactor stay awake, or wake at once, rather than sleep until a deadline or a descriptor of the controller?
    pub fn would_wake(&mut self, reactor: usize) -> bool {
        self.arm(reactor).0 == Armed::Busy
    }

    /// Asks everybody on a reactor whether it may sleep.
    pub fn arm(&mut self, reactor: usize) -> (Armed, Waits) {
        let mut waits = Waits::default();
        let at = &mut self.reactors[reactor];
        if at.host.letters.lock().unwrap().as_ref().is_some_and(|l| !l.is_empty()) {
            return (Armed::Busy, waits);
        }
        let mut cx = Cx { now: self.now, segs: &mut at.segs, reactor: reactor as u16 };
        for user in self.users.iter_mut().flatten().filter(|u| u.reactor == reactor) {
            if user.queue.arm(&mut cx, &mut waits) == Armed::Busy {
                return (Armed::Busy, waits);
            }
        }
        for poller in &mut at.pollers {
            if poller.arm(&mut cx, &mut waits) == Armed::Busy {
                return (Armed::Busy, waits);
            }
        }
        (Armed::Sleep, waits)
    }

    /// Turns of a reactor until it would sleep.
    pub fn settle(&mut self, reactor: usize) {
        for _ in 0..100 {
            self.turn_of(reactor);
            if !self.would_wake(reactor) {
                return;
            }
        }
        panic!("reactor {reactor} never sleeps");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Askers first: an owner that ends under them is a case of its own.
        self.users.clear();
    }
}

/// A device that is only a name: its queues are the controller's.
struct Named(String);

impl Device for Named {
    fn name(&self) -> &str {
        &self.0
    }
    fn state(&self) -> DeviceState {
        DeviceState::Starting
    }
    fn version(&self) -> u64 {
        0
    }
    fn open_queue(&self, _: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        panic!("a shared device opens no queue of its own");
    }
    fn close(&self) {}
}
