//! Who rests, and what wakes him: each way by which work comes, on a reactor that goes on, and on one that sleeps.

use super::*;
use crate::turn::{Reactor, ReactorConfig, now};
use polypath_block::{Host, Parked};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// What the test sees of a poller, and tells it.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) turns: AtomicU64,
    pub(super) worked: AtomicU64,
    pub(super) asked: AtomicU64,
    /// Work that somebody left in memory.
    pub(super) left: AtomicU64,
    /// The name it was asked to rest by.
    pub(super) parked: AtomicU64,
    pub(super) ends: AtomicBool,
}

impl Seen {
    fn get(&self, which: fn(&Seen) -> &AtomicU64) -> u64 {
        which(self).load(Ordering::SeqCst)
    }
}

/// Works off what was written to its descriptor or left in memory.
pub(super) struct Worker {
    pub(super) seen: Arc<Seen>,
    pub(super) event: Option<(Arc<OwnedFd>, u64)>,
    /// The first one is due then, and all others never.
    pub(super) until: Time,
    pub(super) says: Armed,
    /// Calls are enough for it.
    pub(super) hears: bool,
}

impl Worker {
    pub(super) fn new() -> Worker {
        Worker { seen: Arc::default(), event: None, until: Time::NEVER, says: Armed::Sleep, hears: true }
    }

    pub(super) fn on(fd: &Arc<OwnedFd>, id: u64) -> Worker {
        Worker { event: Some((fd.clone(), id)), ..Worker::new() }
    }
}

impl Poller for Worker {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.seen.turns.fetch_add(1, Ordering::SeqCst);
        let mut busy = self.seen.left.swap(0, Ordering::SeqCst) > 0;
        if cx.now >= self.until {
            (self.until, busy) = (Time::NEVER, true);
        }
        if let Some((fd, _)) = &self.event {
            busy |= rustix::io::read(fd, &mut [0; 8]).is_ok();
        }
        self.seen.worked.fetch_add(busy.into(), Ordering::SeqCst);
        match (self.seen.ends.load(Ordering::SeqCst), busy) {
            (true, _) => Turn::Finished,
            (_, true) => Turn::Busy,
            (_, false) => Turn::Idle,
        }
    }
    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if let Some(parked) = waits.parking() {
            self.seen.asked.fetch_add(1, Ordering::SeqCst);
            self.seen.parked.store(parked.number().into(), Ordering::SeqCst);
        }
        if self.seen.left.load(Ordering::SeqCst) > 0 {
            return Armed::Busy;
        }
        if let Some((fd, id)) = &self.event {
            waits.readable(fd.as_raw_fd(), *id);
        }
        if self.until != Time::NEVER {
            waits.until(self.until);
        }
        if self.hears {
            waits.on_call();
        }
        self.says
    }
    fn name(&self) -> &str {
        "worker"
    }
}

/// Always has work, while it is to.
struct Busy(Arc<AtomicBool>);

impl Poller for Busy {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        if self.0.load(Ordering::SeqCst) { Turn::Busy } else { Turn::Idle }
    }
    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        // It never rests by itself, so that those that do can be counted.
        if self.0.load(Ordering::SeqCst) || waits.parking().is_some() { Armed::Busy } else { Armed::Sleep }
    }
    fn name(&self) -> &str {
        "busy"
    }
}

const LONG: Duration = Duration::from_secs(10);

pub(super) fn event() -> Arc<OwnedFd> {
    Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
}

pub(super) fn ring(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// A reactor, with a poller that is busy or, so that all of it sleeps, not.
fn reactor(idle: IdlePolicy, busy: bool) -> (Reactor, Arc<AtomicBool>) {
    let mut reactor = Reactor::new(&ReactorConfig { idle, ..ReactorConfig::default() }).unwrap();
    let flag = Arc::new(AtomicBool::new(busy));
    reactor.add(Box::new(Busy(flag.clone())));
    (reactor, flag)
}

fn add(reactor: &mut Reactor, worker: Worker) -> Arc<Seen> {
    let seen = worker.seen.clone();
    reactor.add(Box::new(worker));
    seen
}

fn until_resting(reactor: &mut Reactor, count: u64) {
    let handle = reactor.handle();
    assert!(reactor.run_until(LONG, || handle.statistics().resting >= count), "{:?}", handle.statistics());
}

#[test]
fn who_has_no_work_gets_no_turns_while_others_go_on() {
    let (mut reactor, _busy) = reactor(IdlePolicy::default(), true);
    let all: Vec<_> =
        (0..100).map(|_| event()).map(|fd| (add(&mut reactor, Worker::on(&fd, Waits::unique())), fd)).collect();
    until_resting(&mut reactor, 100);
    let turns: Vec<u64> = all.iter().map(|(seen, _)| seen.get(|s| &s.turns)).collect();
    reactor.run_until(Duration::from_millis(20), || false);
    let later: Vec<u64> = all.iter().map(|(seen, _)| seen.get(|s| &s.turns)).collect();
    assert_eq!(turns, later);
    for (seen, fd) in &all {
        ring(fd);
        assert!(reactor.run_until(LONG, || seen.get(|s| &s.worked) == 1));
    }
    until_resting(&mut reactor, 100);
    assert_eq!(reactor.handle().statistics().pollers, 101);
}

/// One after the other, each time as soon as the worker rests again: awake, asleep, with and without spinning.
#[test]
fn no_descriptor_is_missed_whoever_is_busy() {
    for (idle, busy) in [(IdlePolicy::default(), true), (IdlePolicy::default(), false), (IdlePolicy::Sleep, false)] {
        let (mut reactor, flag) = reactor(idle, busy);
        let fd = event();
        let seen = add(&mut reactor, Worker::on(&fd, Waits::unique()));
        for n in 1..=20 {
            if n % 4 != 0 {
                flag.store(true, Ordering::SeqCst);
                until_resting(&mut reactor, 1);
            }
            flag.store(busy, Ordering::SeqCst);
            if n % 2 == 0 {
                reactor.run_until(Duration::from_millis(1), || false);
            }
            // By then a reactor without work is asleep.
            let pause = Duration::from_millis(if busy { 0 } else { n % 3 * 5 });
            let bell = fd.clone();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(pause);
                ring(&bell);
            });
            assert!(reactor.run_until(LONG, || seen.get(|s| &s.worked) == n), "{n} of {idle:?}, busy: {busy}");
            ringer.join().unwrap();
        }
    }
}

#[test]
fn a_deadline_of_one_that_rests_is_kept() {
    for busy in [true, false] {
        let (mut reactor, flag) = reactor(IdlePolicy::default(), true);
        for n in 1..4 {
            add(&mut reactor, Worker { until: now().after(LONG * n), ..Worker::new() });
        }
        let until = now().after(Duration::from_millis(300));
        let seen = add(&mut reactor, Worker { until, ..Worker::new() });
        until_resting(&mut reactor, 4);
        assert_eq!(seen.get(|s| &s.worked), 0, "it rests before its time has come");
        flag.store(busy, Ordering::SeqCst);
        assert!(reactor.run_until(LONG, || seen.get(|s| &s.worked) == 1));
        assert!(now() >= until && now().since(until) < Duration::from_secs(1));
    }
}

/// A word from outside says not whom it is for: all look. Also one from the reactor's own thread, in a turn or between two.
#[test]
fn a_call_is_heard_by_all_that_rest() {
    let (mut reactor, busy) = reactor(IdlePolicy::default(), true);
    let handle = reactor.handle();
    let workers: Vec<_> = (0..50).map(|_| add(&mut reactor, Worker::new())).collect();
    let mut heard = 0;
    let mut check = |reactor: &mut Reactor, call: &mut dyn FnMut(&mut Reactor)| {
        until_resting(reactor, 50);
        workers.iter().for_each(|w| w.left.store(1, Ordering::SeqCst));
        call(reactor);
        heard += 1;
        assert!(reactor.run_until(LONG, || workers.iter().all(|w| w.get(|s| &s.worked) == heard)), "{heard}");
    };
    check(&mut reactor, &mut |_| handle.wake());
    check(&mut reactor, &mut |_| assert!(handle.run(|_| ())));
    check(&mut reactor, &mut |reactor| reactor.with_cx(|_| ()));
    let (inside, waker) = (reactor.handle(), reactor.handle());
    check(&mut reactor, &mut |_| {
        let waker = waker.clone();
        assert!(inside.run(move |_| waker.wake()));
    });
    check(&mut reactor, &mut |_| {
        busy.store(false, Ordering::SeqCst);
        let handle = handle.clone();
        std::thread::spawn(move || handle.wake()).join().unwrap();
    });
}

/// Hands work to another poller of its thread, in its own turn.
struct Giver {
    event: Arc<OwnedFd>,
    id: u64,
    to: Arc<Seen>,
}

impl Poller for Giver {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        if rustix::io::read(&self.event, &mut [0; 8]).is_err() {
            return Turn::Idle;
        }
        self.to.left.store(1, Ordering::SeqCst);
        Parked::new(self.to.get(|s| &s.parked) as u32).wake();
        // It has done nothing for itself: the reactor may fall asleep on this.
        Turn::Idle
    }
    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        waits.readable(self.event.as_raw_fd(), self.id);
        Armed::Sleep
    }
    fn name(&self) -> &str {
        "giver"
    }
}

#[test]
fn who_is_woken_by_name_in_anothers_turn_has_one() {
    for (idle, busy) in [(IdlePolicy::default(), true), (IdlePolicy::default(), false), (IdlePolicy::Sleep, false)] {
        let (mut reactor, flag) = reactor(idle, busy);
        let (fd, to) = (event(), add(&mut reactor, Worker::new()));
        reactor.add(Box::new(Giver { event: fd.clone(), id: Waits::unique(), to: to.clone() }));
        for n in 1..=10 {
            flag.store(true, Ordering::SeqCst);
            until_resting(&mut reactor, 2);
            flag.store(busy, Ordering::SeqCst);
            reactor.run_until(Duration::from_millis(1), || false);
            ring(&fd);
            assert!(reactor.run_until(LONG, || to.get(|s| &s.worked) == n), "{n} of {idle:?}, busy: {busy}");
        }
    }
}

/// A descriptor that two name wakes both.
#[test]
fn a_shared_descriptor_wakes_all_who_named_it() {
    let (mut reactor, _busy) = reactor(IdlePolicy::default(), true);
    let (fd, id) = (event(), Waits::unique());
    let all: Vec<_> = (0..3).map(|_| add(&mut reactor, Worker::on(&fd, id))).collect();
    for _ in 0..3 {
        until_resting(&mut reactor, 3);
        let turns: Vec<u64> = all.iter().map(|seen| seen.get(|s| &s.turns)).collect();
        ring(&fd);
        assert!(reactor.run_until(LONG, || all.iter().zip(&turns).all(|(seen, then)| seen.get(|s| &s.turns) > *then)));
    }
    // One goes; the others are woken as before.
    all[1].ends.store(true, Ordering::SeqCst);
    ring(&fd);
    until_resting(&mut reactor, 2);
    let worked = |seen: &Seen| seen.get(|s| &s.worked);
    let before = worked(&all[0]) + worked(&all[2]);
    ring(&fd);
    assert!(reactor.run_until(LONG, || worked(&all[0]) + worked(&all[2]) > before));
}

/// Descriptors are closed and their numbers used again, by the same poller or another, while their files live on elsewhere or not.
#[test]
fn a_descriptor_number_that_changes_hands_wakes_its_new_owner() {
    let (mut reactor, _busy) = reactor(IdlePolicy::default(), true);
    let mut kept = Vec::new();
    for round in 0..10u64 {
        let fd = event();
        if round % 2 == 0 {
            kept.push(fd.try_clone().unwrap());
        }
        let seen = add(&mut reactor, Worker::on(&fd, Waits::unique()));
        until_resting(&mut reactor, 1);
        ring(&fd);
        assert!(reactor.run_until(LONG, || seen.get(|s| &s.worked) == 1), "round {round}");
        until_resting(&mut reactor, 1);
        seen.ends.store(true, Ordering::SeqCst);
        reactor.handle().wake();
        let handle = reactor.handle();
        assert!(reactor.run_until(LONG, || handle.statistics().pollers == 1));
        kept.iter().for_each(ring);
    }
}

/// What the kernel will not wait for keeps its turns, and so does who says that he is busy, or names nothing: asked seldom.
#[test]
fn who_cannot_rest_keeps_his_turns_and_is_asked_seldom() {
    let (mut reactor, _busy) = reactor(IdlePolicy::default(), true);
    let file = rustix::fs::memfd_create("no eventfd", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    // Read at its end, it never gives anything but an empty answer: not as an eventfd does.
    let blind = Worker { event: None, ..Worker::new() };
    let blind_seen = blind.seen.clone();
    reactor.add(Box::new(Blind { inner: blind, file, id: Waits::unique() }));
    let stubborn = add(&mut reactor, Worker { says: Armed::Busy, ..Worker::new() });
    let deaf = add(&mut reactor, Worker { hears: false, ..Worker::new() });
    let start = Instant::now();
    let all = [&blind_seen, &stubborn, &deaf];
    assert!(reactor.run_until(LONG, || all.iter().all(|seen| seen.get(|s| &s.asked) > 0)));
    let turns = all.map(|seen| seen.get(|s| &s.turns));
    reactor.run_until(Duration::from_millis(100), || false);
    let spent = start.elapsed().as_millis() as u64;
    for (seen, before) in all.into_iter().zip(turns) {
        let asked = seen.get(|s| &s.asked);
        assert!((1..=8 + spent / 64).contains(&asked), "asked {asked} times in {spent} ms");
        assert!(
            seen.get(|s| &s.turns) > before + 100,
            "{before} turns until it was asked, then {}",
            seen.get(|s| &s.turns)
        );
    }
    assert_eq!(reactor.handle().statistics().resting, 0);
}

struct Blind {
    inner: Worker,
    file: OwnedFd,
    id: u64,
}

impl Poller for Blind {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.inner.poll(cx)
    }
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        waits.readable(self.file.as_raw_fd(), self.id);
        self.inner.arm(cx, waits)
    }
    fn name(&self) -> &str {
        "blind"
    }
}

/// A reactor that polls lets rest only who has been without work for long, and only beside one that has.
#[test]
fn a_reactor_that_polls_is_patient() {
    let (mut reactor, busy) = reactor(IdlePolicy::Poll, false);
    let fd = event();
    let seen = add(&mut reactor, Worker::on(&fd, Waits::unique()));
    reactor.run_until(Duration::from_millis(150), || false);
    assert_eq!(seen.get(|s| &s.asked), 0, "nobody gains by it");
    ring(&fd);
    assert!(reactor.run_until(LONG, || seen.get(|s| &s.worked) == 1));
    busy.store(true, Ordering::SeqCst);
    let start = Instant::now();
    until_resting(&mut reactor, 1);
    assert!(start.elapsed() >= PATIENCE_POLL, "{:?}", start.elapsed());
    ring(&fd);
    assert!(reactor.run_until(LONG, || seen.get(|s| &s.worked) == 2));
}

/// Work that comes again and again, a little later than a rest begins, ends the rests.
#[test]
fn who_never_rests_for_long_is_left_in_the_turns() {
    let mut seat = Seat {
        poller: Box::new(Worker::new()),
        idle_since: Time::NEVER,
        patience: PATIENCE,
        state: State::Awake,
        rested_at: Time::NEVER,
        named: Vec::new(),
    };
    let mut at = Time::from_millis(1000);
    for times in [2, 4, 8, 16, 32, 64, 64] {
        seat.rested_at = at;
        at = at.after(Duration::from_millis(5));
        seat.work_again(at, PATIENCE);
        assert_eq!((seat.patience, seat.rested_at), (PATIENCE * times, Time::NEVER));
    }
    seat.rested_at = at;
    seat.work_again(at.after(PATIENCE * 64 * SOON), PATIENCE);
    assert_eq!(seat.patience, PATIENCE, "a long rest was worth it");
}

/// Finds something at its third look, and works it off with its next turn.
#[derive(Default)]
struct Looker {
    looks: Arc<AtomicU64>,
    turns: Arc<AtomicU64>,
    found: bool,
}

impl Poller for Looker {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        self.turns.fetch_add(1, Ordering::SeqCst);
        if std::mem::take(&mut self.found) { Turn::Busy } else { Turn::Idle }
    }
    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }
    fn look(&mut self, times: u32) -> bool {
        assert!(times > 1, "once is what a turn does");
        self.found = self.looks.fetch_add(1, Ordering::SeqCst) == 2;
        self.found
    }
    fn name(&self) -> &str {
        "looker"
    }
}

/// Between its turns somebody who is alone looks for work, and has a turn at once when there is some. Beside others he takes nobody's time.
#[test]
fn only_who_is_alone_looks_for_work_between_turns() {
    let config = |idle| ReactorConfig { idle, ..ReactorConfig::default() };
    for (idle, alone) in [(IdlePolicy::Poll, true), (IdlePolicy::Sleep, true), (IdlePolicy::Poll, false)] {
        let mut reactor = Reactor::new(&config(idle)).unwrap();
        let looker = Looker::default();
        let (looks, turns) = (looker.looks.clone(), looker.turns.clone());
        reactor.add(Box::new(looker));
        if !alone {
            reactor.add(Box::new(Worker::new()));
        }
        let busy: Vec<bool> = (0..4).map(|_| reactor.turn()).collect();
        let (looks, turns) = (looks.load(Ordering::SeqCst), turns.load(Ordering::SeqCst));
        if alone && idle == IdlePolicy::Poll {
            assert_eq!(busy, [false, false, true, false], "the third look finds something");
            assert_eq!((looks, turns), (4, 5), "and nobody looks after a turn with work");
        } else {
            assert_eq!((looks, turns), (0, 4), "{idle:?}, alone: {alone}");
        }
    }
}

/// A thousand deadlines that are passed over again and again leave nothing behind.
#[test]
fn deadlines_that_hold_no_more_are_forgotten() {
    let mut lot = Lot::new().unwrap();
    for n in 0..100_000u64 {
        lot.until(n as u32 % 10, Time::from_nanos(1 << 40 | n), 10, |_, at| at.as_nanos() % 1000 == 0);
    }
    let mut left = 0;
    while lot.pop_due(Time::from_nanos(u64::MAX / 2)).is_some() {
        left += 1;
    }
    assert!((100..400).contains(&left), "{left}");
}

/// One poller lets go of a descriptor whose number is another's by now.
#[test]
fn who_lets_go_of_a_number_takes_it_from_nobody() {
    let mut lot = Lot::new().unwrap();
    let interest = |fd: &OwnedFd| Interest { fd: fd.as_raw_fd(), id: Waits::unique(), read: true, write: false };
    let first = event();
    let (old, mut named) = (interest(&first), Vec::new());
    lot.watch(1, &mut vec![old], &mut named).unwrap();
    // In one step, so that no other test has the number in between.
    let second = event();
    let mut moved = Arc::try_unwrap(first).unwrap();
    rustix::io::dup2(&second, &mut moved).unwrap();
    let new = interest(&moved);
    assert_eq!(new.fd, old.fd);
    lot.watch(2, &mut vec![new], &mut Vec::new()).unwrap();
    lot.forget(1, &named);
    ring(&second);
    let mut told = Vec::new();
    lot.look(|poller| told.push(poller)).unwrap();
    assert_eq!(told, [2]);
}

/// Wakes somebody by his name in each turn.
struct Caller(u32);

impl Poller for Caller {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        Parked::new(self.0).wake();
        Turn::Busy
    }
    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }
    fn name(&self) -> &str {
        "caller"
    }
}

/// Pollers wake each other again and again while nobody rests: that is in vain, and costs no memory.
#[test]
fn who_is_woken_while_nobody_rests_is_forgotten() {
    let (mut reactor, _busy) = reactor(IdlePolicy::default(), true);
    (1..=2).for_each(|number| reactor.add(Box::new(Caller(number))));
    (0..20_000).for_each(|_| _ = reactor.turn());
    let mut woken = Vec::new();
    Parked::take_woken(&mut woken);
    assert!(woken.len() < 10_000, "{} names are kept", woken.len());
}

/// Leaves work for another one in memory in its first turn that is told to, and calls the reactor.
struct Leaver {
    to: Arc<Seen>,
    host: crate::turn::ReactorHandle,
    goes: Arc<AtomicBool>,
}

impl Poller for Leaver {
    fn poll(&mut self, _: &mut Cx<'_>) -> Turn {
        if self.goes.swap(false, Ordering::SeqCst) {
            self.to.left.store(1, Ordering::SeqCst);
            self.host.wake();
        }
        Turn::Idle
    }
    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if waits.parking().is_some() { Armed::Busy } else { Armed::Sleep }
    }
    fn name(&self) -> &str {
        "leaver"
    }
}

/// A call that comes in the last turn before a sleep is not slept upon: it is for one that rests.
#[test]
fn a_call_between_a_turn_and_the_sleep_is_heard() {
    let (mut reactor, busy) = reactor(IdlePolicy::Sleep, true);
    let (to, goes) = (add(&mut reactor, Worker::new()), Arc::new(AtomicBool::new(false)));
    let host = reactor.handle();
    reactor.add(Box::new(Leaver { to: to.clone(), host, goes: goes.clone() }));
    until_resting(&mut reactor, 1);
    busy.store(false, Ordering::SeqCst);
    goes.store(true, Ordering::SeqCst);
    assert!(reactor.run_until(LONG, || to.get(|s| &s.worked) == 1), "slept upon");
}

/// What comes for many at once is theirs a few at a time, a turn each, and who is busy has his turn in between.
#[test]
fn those_who_only_look_are_few_at_a_time_and_look_once() {
    const MANY: u64 = 20 * GLANCES as u64;
    for by_deadline in [true, false] {
        let (mut reactor, busy) = reactor(IdlePolicy::default(), true);
        let until = now().after(Duration::from_secs(1));
        let until = if by_deadline { until } else { Time::NEVER };
        let workers: Vec<_> = (0..MANY).map(|_| add(&mut reactor, Worker { until, ..Worker::new() })).collect();
        // At its deadline each has work, and more turns after it.
        let which: fn(&Seen) -> &AtomicU64 = if by_deadline { |s| &s.worked } else { |s| &s.turns };
        let turns = || workers.iter().map(|w| w.get(which)).sum::<u64>();
        until_resting(&mut reactor, MANY);
        let before = turns();
        if by_deadline {
            while now() < until {
                std::hint::spin_loop();
            }
        } else {
            reactor.handle().wake();
        }
        let mut last = before;
        for _ in 0..MANY / GLANCES as u64 {
            reactor.turn();
            let looked = turns() - last;
            assert!((1..=GLANCES as u64).contains(&looked), "{looked} had a turn beside the busy one");
            last = turns();
        }
        assert_eq!(last - before, MANY, "each has looked once");
        if !by_deadline {
            reactor.turn();
            assert_eq!(turns(), last, "and rests again");
            // A second call while the first is still being heard is heard by all, also by those who had looked.
            reactor.handle().wake();
            reactor.turn();
            workers.iter().for_each(|w| w.left.store(1, Ordering::SeqCst));
            reactor.handle().wake();
            // Nothing keeps it awake but those who have not heard.
            busy.store(false, Ordering::SeqCst);
            assert!(reactor.run_until(LONG, || workers.iter().all(|w| w.get(|s| &s.worked) == 1)));
        }
    }
}
