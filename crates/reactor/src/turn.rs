//! The loop: clock, messages, pollers, sleep.

use crate::idle::{Idle, IdlePolicy};
use crate::mailbox::{Mailbox, Message};
use crate::seats::Seats;
use crate::waiter::Waiter;
use polypath_block::{Cx, Host, MakePoller, Poller, SegTable, Time, Waits};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

/// The process's monotonic clock.
pub fn now() -> Time {
    static START: OnceLock<u64> = OnceLock::new();
    // Before the clock is read: a thread that stands still in between, however long, does not find a start after what it has read.
    let start = START.get_or_init(monotonic);
    // One second ahead, so that "a while ago" never underflows to the epoch.
    Time::from_nanos(monotonic() + 1_000_000_000 - start)
}

/// As `Instant` reads it, without the detours: reactors ask in each turn.
#[inline]
fn monotonic() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    tv_sec as u64 * 1_000_000_000 + tv_nsec as u64
}

/// How a reactor is to run.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Its number; unique among the reactors that share devices.
    pub id: u16,
    /// Core to pin it to.
    pub cpu: Option<usize>,
    /// What it does without work.
    pub idle: IdlePolicy,
    /// Most segments of its table.
    pub segments_limit: u32,
}

impl Default for ReactorConfig {
    fn default() -> Self {
        ReactorConfig { id: 0, cpu: None, idle: IdlePolicy::default(), segments_limit: SegTable::DEFAULT_LIMIT }
    }
}

/// A reactor could not be started.
#[derive(Debug, thiserror::Error)]
#[error("reactor {id}: {what} failed: {source}")]
pub struct ReactorError {
    /// Number of the reactor.
    pub id: u16,
    /// What failed.
    pub what: &'static str,
    /// Why.
    pub source: io::Error,
}

/// What a reactor did since it started. Read without stopping it: the numbers are each right, not all of one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReactorStatistics {
    /// Turns taken.
    pub turns: u64,
    /// Turns in which some poller got something done.
    pub busy_turns: u64,
    /// Nanoseconds in turns with work.
    pub busy_ns: u64,
    /// Nanoseconds in turns without work (spinning).
    pub spin_ns: u64,
    /// Nanoseconds asleep.
    pub sleep_ns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Pollers it has.
    pub pollers: u64,
    /// Those of them that rest: without work for long, they get no turns until there is some.
    pub resting: u64,
}

#[derive(Default)]
struct Counters {
    turns: AtomicU64,
    busy_turns: AtomicU64,
    busy_ns: AtomicU64,
    spin_ns: AtomicU64,
    sleep_ns: AtomicU64,
    sleeps: AtomicU64,
    pollers: AtomicU64,
    resting: AtomicU64,
}

struct Shared {
    id: u16,
    mailbox: Mailbox,
    counters: Counters,
}

/// A reactor as other threads see it. Cheap to clone.
#[derive(Clone)]
pub struct ReactorHandle(Arc<Shared>);

impl ReactorHandle {
    /// Runs `work` on the reactor's thread, between two turns. It must not block.
    /// Returns `false` when the reactor has ended; `work` is dropped then.
    pub fn run(&self, work: impl FnOnce(&mut Cx<'_>) + Send + 'static) -> bool {
        self.0.mailbox.post(Message::Run(Box::new(work))).is_ok()
    }

    /// Ends the reactor after its current turn. Its pollers are dropped: drain them first.
    pub fn stop(&self) {
        // A reactor that has ended already needs no letter.
        let _ = self.0.mailbox.post(Message::Stop);
    }

    /// What it did so far.
    pub fn statistics(&self) -> ReactorStatistics {
        let c = &self.0.counters;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        ReactorStatistics {
            turns: get(&c.turns),
            busy_turns: get(&c.busy_turns),
            busy_ns: get(&c.busy_ns),
            spin_ns: get(&c.spin_ns),
            sleep_ns: get(&c.sleep_ns),
            sleeps: get(&c.sleeps),
            pollers: get(&c.pollers),
            resting: get(&c.resting),
        }
    }
}

impl Host for ReactorHandle {
    fn spawn(&self, make: MakePoller) {
        if self.0.mailbox.post(Message::Spawn(make)).is_err() {
            tracing::debug!(reactor = self.0.id, "a poller came after the reactor had ended");
        }
    }

    fn wake(&self) {
        self.0.mailbox.wake();
    }

    fn reactor(&self) -> u16 {
        self.0.id
    }

    fn now(&self) -> Time {
        now()
    }
}

impl std::fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reactor({})", self.0.id)
    }
}

/// A reactor on the thread that made it.
pub struct Reactor {
    shared: Arc<Shared>,
    seats: Seats,
    /// Something was done on this thread between turns, and nobody knows for whom.
    called: bool,
    segs: SegTable,
    waits: Waits,
    waiter: Waiter,
    messages: Vec<Message>,
    idle: Idle,
    last: Time,
    stopping: bool,
}

impl Reactor {
    /// A reactor on this thread, which is pinned to the configured core. Drive it with [`Reactor::turn`] or [`Reactor::run`].
    ///
    /// # Errors
    /// When the operating system refuses an eventfd, an epoll descriptor or the core.
    pub fn new(config: &ReactorConfig) -> Result<Reactor, ReactorError> {
        let fail = |what: &'static str| move |source: io::Error| ReactorError { id: config.id, what, source };
        if let Some(cpu) = config.cpu {
            let mut set = rustix::thread::CpuSet::new();
            if cpu < rustix::thread::CpuSet::MAX_CPU {
                set.set(cpu);
            }
            rustix::thread::sched_setaffinity(None, &set).map_err(|e| fail("pinning to its core")(e.into()))?;
        }
        let mailbox = Mailbox::new().map_err(fail("eventfd"))?;
        let seats = Seats::new(config.idle).map_err(fail("epoll"))?;
        let waiter = Waiter::new(mailbox.fd(), seats.lot().fd()).map_err(fail("epoll"))?;
        Ok(Reactor {
            shared: Arc::new(Shared { id: config.id, mailbox, counters: Counters::default() }),
            seats,
            called: false,
            segs: SegTable::new(config.segments_limit),
            waits: Waits::with_capacity(64),
            waiter,
            messages: Vec::new(),
            idle: Idle::new(config.idle),
            last: now(),
            stopping: false,
        })
    }

    /// Starts a reactor on a thread of its own.
    ///
    /// # Errors
    /// As [`Reactor::new`], or when no thread can be had.
    pub fn start(config: ReactorConfig) -> Result<(ReactorHandle, thread::JoinHandle<()>), ReactorError> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let id = config.id;
        let thread = thread::Builder::new()
            .name(format!("reactor-{id}"))
            .spawn(move || match Reactor::new(&config) {
                Ok(mut reactor) => {
                    // The starter waits for exactly one answer; if it has gone, the handle it lost ends with us.
                    let _ = tell.send(Ok(reactor.handle()));
                    reactor.run();
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            })
            .map_err(|source| ReactorError { id, what: "starting its thread", source })?;
        let handle = told.recv().map_err(|_| ReactorError {
            id,
            what: "starting its thread",
            source: io::Error::other("the thread ended without a word"),
        })??;
        Ok((handle, thread))
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle(self.shared.clone())
    }

    /// Adds a poller from this thread.
    pub fn add(&mut self, poller: Box<dyn Poller>) {
        self.seats.add(poller);
        self.count_pollers();
    }

    fn count_pollers(&self) {
        let c = &self.shared.counters;
        c.pollers.store(self.seats.len() as u64, Ordering::Relaxed);
        c.resting.store(self.seats.resting() as u64, Ordering::Relaxed);
    }

    /// The context that pollers get, for work done on this thread between turns.
    pub fn with_cx<R>(&mut self, work: impl FnOnce(&mut Cx<'_>) -> R) -> R {
        self.called = true;
        work(&mut Cx { now: now(), segs: &mut self.segs, reactor: self.shared.id })
    }

    /// Turns until [`ReactorHandle::stop`].
    pub fn run(&mut self) {
        while !self.stopping {
            if !self.turn() && self.idle.may_sleep(self.last) {
                self.sleep(None);
            }
        }
        self.finish();
    }

    /// Turns (and sleeps) until `until` says so or `limit` has passed; says whether `until` did.
    pub fn run_until(&mut self, limit: Duration, mut until: impl FnMut() -> bool) -> bool {
        let deadline = now().after(limit);
        loop {
            if until() {
                return true;
            }
            if now() >= deadline || self.stopping {
                return false;
            }
            if !self.turn() && self.idle.may_sleep(self.last) {
                self.sleep(Some(deadline));
            }
        }
    }

    /// One turn; says whether anything got done.
    pub fn turn(&mut self) -> bool {
        let mut busy = self.shared.mailbox.has_messages();
        if busy {
            self.handle_messages();
        }
        polypath_memory::refresh();
        let called = self.shared.mailbox.answer_call() || self.called;
        self.called = false;
        let start = now();
        self.seats.wake(start, called);
        busy |= self.seats.turn(start, &mut self.segs, self.shared.id);
        self.seats.let_rest(start, busy, &mut self.segs, self.shared.id);
        self.count_pollers();
        self.account(start, busy);
        busy
    }

    fn account(&mut self, start: Time, busy: bool) {
        let spent = start.since(self.last).as_nanos() as u64;
        let c = &self.shared.counters;
        let add = |a: &AtomicU64, n: u64| a.store(a.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        add(&c.turns, 1);
        if busy {
            add(&c.busy_turns, 1);
            add(&c.busy_ns, spent);
            self.idle.busy();
        } else {
            add(&c.spin_ns, spent);
        }
        self.last = start;
    }

    fn sleep(&mut self, limit: Option<Time>) {
        self.waits.clear();
        self.shared.mailbox.set_asleep();
        let start = now();
        let mailbox = &self.shared.mailbox;
        let armed = !mailbox.has_messages() && !mailbox.is_called() && {
            self.seats.let_rest_before_sleep(start, &mut self.segs, self.shared.id);
            self.seats.arm(start, &mut self.segs, self.shared.id, &mut self.waits)
        };
        if armed {
            if let Some(limit) = limit {
                self.waits.until(limit);
            }
            let rested = self.seats.first_deadline();
            if rested != Time::NEVER {
                self.waits.until(rested);
            }
            let limit = self.waits.deadline.map(|d| d.since(start));
            self.waiter.follow(&mut self.waits.interests);
            let result = self.waiter.wait(limit);
            if matches!(result, Ok(true)) {
                self.shared.mailbox.drain();
            }
            if let Err(error) = result {
                // Out of descriptors or memory, perhaps: spinning is safe, sleeping for long would not be.
                tracing::error!(reactor = self.shared.id, %error, "cannot sleep");
                thread::sleep(Duration::from_millis(1));
            }
            let woke = now();
            let c = &self.shared.counters;
            let slept = woke.since(start);
            c.sleep_ns.store(c.sleep_ns.load(Ordering::Relaxed) + slept.as_nanos() as u64, Ordering::Relaxed);
            c.sleeps.store(c.sleeps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            self.last = woke;
            self.idle.woke(slept);
            self.seats.look_soon();
        }
        self.count_pollers();
        self.shared.mailbox.set_awake();
    }

    fn handle_messages(&mut self) {
        let mut messages = std::mem::take(&mut self.messages);
        self.shared.mailbox.take(&mut messages);
        for message in messages.drain(..) {
            let mut cx = Cx { now: now(), segs: &mut self.segs, reactor: self.shared.id };
            match message {
                Message::Spawn(make) => {
                    let poller = make(&mut cx);
                    self.add(poller);
                }
                Message::Run(work) => work(&mut cx),
                Message::Stop => self.stopping = true,
            }
        }
        self.messages = messages;
    }

    fn finish(&mut self) {
        self.shared.mailbox.close();
        let mut rest = Vec::new();
        self.shared.mailbox.take(&mut rest);
        drop(rest);
        self.seats.clear();
        self.count_pollers();
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.finish();
    }
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fd = self.shared.mailbox.raw_fd();
        f.debug_struct("Reactor")
            .field("id", &self.shared.id)
            .field("pollers", &self.seats.len())
            .field("resting", &self.seats.resting())
            .field("fd", &fd)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Armed, Turn};
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fd::{AsRawFd, OwnedFd};
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::time::Instant;

    /// Counts what it reads from an eventfd; sleeps on it otherwise.
    struct Counter {
        fd: Arc<OwnedFd>,
        id: u64,
        seen: Arc<AtomicUsize>,
        until: usize,
    }

    impl Poller for Counter {
        fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
            let mut count = [0; 8];
            if rustix::io::read(&*self.fd, &mut count).is_err() {
                return Turn::Idle;
            }
            let n = self.seen.fetch_add(u64::from_ne_bytes(count) as usize, Ordering::SeqCst);
            if n + u64::from_ne_bytes(count) as usize >= self.until { Turn::Finished } else { Turn::Busy }
        }
        fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
            waits.readable(self.fd.as_raw_fd(), self.id);
            Armed::Sleep
        }
        fn name(&self) -> &str {
            "counter"
        }
    }

    #[test]
    fn sleeps_and_loses_no_wake_up() {
        for idle in [IdlePolicy::Sleep, IdlePolicy::Adaptive { max_spin_us: 5 }] {
            let (handle, thread) = Reactor::start(ReactorConfig { idle, ..ReactorConfig::default() }).unwrap();
            let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
            let seen = Arc::new(AtomicUsize::new(0));
            let poller = Counter { fd: fd.clone(), id: Waits::unique(), seen: seen.clone(), until: 1000 };
            handle.spawn(Box::new(move |_| Box::new(poller)));
            for n in 1..=1000usize {
                rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
                let deadline = Instant::now() + Duration::from_secs(10);
                while seen.load(Ordering::SeqCst) < n {
                    assert!(Instant::now() < deadline, "wake-up {n} was lost");
                    std::hint::spin_loop();
                    thread::yield_now();
                }
            }
            let (tx, rx) = mpsc::channel();
            assert!(handle.run(move |_| tx.send(()).unwrap()));
            rx.recv_timeout(Duration::from_secs(10)).unwrap();
            handle.stop();
            thread.join().unwrap();
            let s = handle.statistics();
            assert!(s.sleeps > 0 && s.busy_turns > 0 && s.pollers == 0, "{s:?}");
            assert!(!handle.run(|_| ()), "an ended reactor takes no messages");
        }
    }

    #[test]
    fn mail_wakes_a_sleeper() {
        let config = ReactorConfig { idle: IdlePolicy::Sleep, ..ReactorConfig::default() };
        let (handle, thread) = Reactor::start(config).unwrap();
        for n in 0..1000 {
            let (tx, rx) = mpsc::channel();
            assert!(handle.run(move |_| tx.send(n).unwrap()));
            assert_eq!(rx.recv_timeout(Duration::from_secs(10)), Ok(n));
        }
        handle.stop();
        thread.join().unwrap();
    }

    #[test]
    fn follows_a_descriptor_number_that_changes_hands() {
        let config = ReactorConfig { idle: IdlePolicy::Sleep, ..ReactorConfig::default() };
        let mut reactor = Reactor::new(&config).unwrap();
        for _ in 0..3 {
            let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
            let seen = Arc::new(AtomicUsize::new(0));
            reactor.add(Box::new(Counter { fd: fd.clone(), id: Waits::unique(), seen: seen.clone(), until: 1 }));
            assert!(!reactor.run_until(Duration::from_millis(5), || seen.load(Ordering::SeqCst) > 0));
            rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
            assert!(reactor.run_until(Duration::from_secs(10), || seen.load(Ordering::SeqCst) > 0));
        }
    }

    /// As [`Counter`], but its descriptor cannot be waited for.
    struct Blind {
        file: OwnedFd,
        id: u64,
    }

    impl Poller for Blind {
        fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
            Turn::Idle
        }
        fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
            waits.readable(self.file.as_raw_fd(), self.id);
            Armed::Sleep
        }
        fn name(&self) -> &str {
            "blind"
        }
    }

    #[test]
    fn a_descriptor_that_cannot_be_waited_for_costs_the_others_nothing() {
        let config = ReactorConfig { idle: IdlePolicy::Sleep, ..ReactorConfig::default() };
        let mut reactor = Reactor::new(&config).unwrap();
        let file = rustix::fs::memfd_create("no eventfd", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        reactor.add(Box::new(Blind { file, id: Waits::unique() }));
        let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let seen = Arc::new(AtomicUsize::new(0));
        reactor.add(Box::new(Counter { fd: fd.clone(), id: Waits::unique(), seen: seen.clone(), until: 2 }));
        for n in 1..=2 {
            assert!(!reactor.run_until(Duration::from_millis(30), || seen.load(Ordering::SeqCst) >= n));
            let sleeps = reactor.handle().statistics().sleeps;
            rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
            assert!(reactor.run_until(Duration::from_secs(10), || seen.load(Ordering::SeqCst) >= n));
            assert!(reactor.handle().statistics().sleeps - sleeps <= 2, "the bell itself must end the sleep");
        }
        // It sleeps all the same: about every 10 ms somebody looks.
        let before = reactor.handle().statistics().sleeps;
        reactor.run_until(Duration::from_millis(100), || false);
        let sleeps = reactor.handle().statistics().sleeps - before;
        assert!((1..=30).contains(&sleeps), "{sleeps} sleeps in 100 ms");
    }

    #[test]
    fn a_closed_descriptor_whose_file_lives_on_elsewhere_ends_no_sleeps() {
        let config = ReactorConfig { idle: IdlePolicy::Sleep, ..ReactorConfig::default() };
        let mut reactor = Reactor::new(&config).unwrap();
        // What a front-end keeps; ours is a duplicate, as one that came over a socket.
        let theirs = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let ours = Arc::new(theirs.try_clone().unwrap());
        let seen = Arc::new(AtomicUsize::new(0));
        reactor.add(Box::new(Counter { fd: ours, id: Waits::unique(), seen: seen.clone(), until: 1 }));
        assert!(!reactor.run_until(Duration::from_millis(5), || false), "sleeps on it");
        rustix::io::write(&theirs, &1u64.to_ne_bytes()).unwrap();
        // The poller ends and closes its descriptor in the very turn that the bell begins.
        assert!(reactor.run_until(Duration::from_secs(10), || seen.load(Ordering::SeqCst) > 0));
        rustix::io::write(&theirs, &1u64.to_ne_bytes()).unwrap();
        let before = reactor.handle().statistics().sleeps;
        assert!(!reactor.run_until(Duration::from_millis(50), || false));
        let sleeps = reactor.handle().statistics().sleeps - before;
        assert!(sleeps <= 5, "{sleeps} sleeps in 50 ms: it spins on a bell that nobody here listens to");
    }
}
