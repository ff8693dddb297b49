//! Seats that are given their time by the test: what happens in which turn, and what is left of those who went.

use super::tests::{Seen, Worker, event, ring};
use super::*;
use rustix::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

struct Bench {
    seats: Seats,
    segs: SegTable,
    now: Time,
}

impl Bench {
    fn new() -> Bench {
        let seats = Seats::new(IdlePolicy::default()).unwrap();
        Bench { seats, segs: SegTable::new(16), now: Time::from_millis(1000) }
    }

    fn add(&mut self, worker: Worker) -> Arc<Seen> {
        let seen = worker.seen.clone();
        self.seats.add(Box::new(worker));
        seen
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    fn wake(&mut self, called: bool) {
        self.seats.wake(self.now, called);
    }

    /// As a reactor does, without a sleep.
    fn turn(&mut self, called: bool) {
        self.wake(called);
        let busy = self.seats.turn(self.now, &mut self.segs, 0);
        self.seats.let_rest(self.now, busy, &mut self.segs, 0);
    }

    /// All rest.
    fn rest_all(&mut self) {
        self.turn(false);
        self.pass(PATIENCE * MOST_PATIENT);
        self.seats.let_rest_before_sleep(self.now, &mut self.segs, 0);
        assert_eq!(self.seats.resting(), self.seats.len());
    }
}

fn seen_by(seen: &Seen, which: fn(&Seen) -> &std::sync::atomic::AtomicU64) -> u64 {
    which(seen).load(Ordering::SeqCst)
}

/// All whose time has come are woken in the very nanosecond, a few for each turn.
#[test]
fn deadlines_that_come_together_are_kept_together() {
    let mut b = Bench::new();
    let at = b.now.after(Duration::from_secs(1));
    let all: Vec<_> = (0..GLANCES + 4).map(|_| b.add(Worker { until: at, ..Worker::new() })).collect();
    let worked = || all.iter().filter(|seen| seen_by(seen, |s| &s.worked) == 1).count();
    let late = b.add(Worker { until: at.after(Duration::from_nanos(1)), ..Worker::new() });
    b.rest_all();
    assert_eq!(b.seats.first_deadline(), at);
    b.now = at;
    b.turn(false);
    assert_eq!(worked(), GLANCES);
    b.turn(false);
    assert_eq!(worked(), all.len());
    assert_eq!(seen_by(&late, |s| &s.worked), 0);
    b.pass(Duration::from_nanos(1));
    b.turn(false);
    assert_eq!(seen_by(&late, |s| &s.worked), 1);
}

/// More have something to tell than a look takes in: the next look is in the next turn, and so is one after a sleep.
#[test]
fn who_is_not_met_by_a_look_is_met_by_the_next_at_once() {
    let mut b = Bench::new();
    let all: Vec<_> = (0..200).map(|_| event()).collect();
    let seen: Vec<_> = all.iter().map(|fd| b.add(Worker::on(fd, Waits::unique()))).collect();
    b.rest_all();
    all.iter().for_each(|fd| ring(fd));
    for _ in 0..4 {
        b.pass(Duration::from_nanos(1));
        b.wake(false);
    }
    assert_eq!(b.seats.resting(), 0);
    b.turn(false);
    assert!(seen.iter().all(|seen| seen_by(seen, |s| &s.worked) == 1));
    b.rest_all();
    b.wake(false);
    ring(&all[7]);
    b.seats.look_soon();
    b.wake(false);
    assert_eq!(b.seats.resting(), 199);
}

/// Asking costs: one turn of the others does not wait for all that might rest.
#[test]
fn few_are_asked_in_one_turn_while_others_work() {
    let mut b = Bench::new();
    let all: Vec<_> = (0..100).map(|_| b.add(Worker::new())).collect();
    let asked = || all.iter().filter(|seen| seen_by(seen, |s| &s.asked) > 0).count();
    b.turn(false);
    b.pass(PATIENCE);
    let mut expected = 0;
    for turn in 1..=8 {
        expected = (expected + ASKED.max((100 - expected) / ASKED_PART)).min(100);
        b.pass(LOOK);
        b.seats.let_rest(b.now, true, &mut b.segs, 0);
        assert_eq!(asked(), expected, "turn {turn}");
    }
    assert_eq!(b.seats.resting(), 100);
}

/// Those who were woken to look are counted until they rest, work or go: while there is one, all are asked in each turn.
#[test]
fn nobody_counts_as_one_who_looks_for_longer_than_that() {
    let mut b = Bench::new();
    let [rests, works, ends] = [(); 3].map(|()| b.add(Worker::new()));
    b.rest_all();
    works.left.store(1, Ordering::SeqCst);
    ends.ends.store(true, Ordering::SeqCst);
    b.wake(true);
    assert_eq!((b.seats.glancing, b.seats.resting()), (3, 0));
    b.turn(false);
    assert_eq!((b.seats.glancing, b.seats.resting(), b.seats.len()), (0, 1, 2));
    assert_eq!(seen_by(&rests, |s| &s.turns), 2);
    // Nor is it asked again before its patience is over.
    let asked = seen_by(&works, |s| &s.asked);
    b.turn(false);
    b.turn(false);
    assert_eq!(seen_by(&works, |s| &s.asked), asked);
}

/// One goes whose descriptor another process has open, and another one gets its number: what is said there is for nobody.
#[test]
fn the_number_of_one_that_went_is_woken_by_nothing_of_his() {
    let mut b = Bench::new();
    let (first, second) = (event(), event());
    let kept: OwnedFd = first.try_clone().unwrap();
    let seen = b.add(Worker::on(&first, Waits::unique()));
    drop(first);
    b.rest_all();
    seen.ends.store(true, Ordering::SeqCst);
    b.turn(true);
    assert_eq!(b.seats.len(), 0);
    let next = b.add(Worker::on(&second, Waits::unique()));
    b.rest_all();
    let turns = seen_by(&next, |s| &s.turns);
    ring(&kept);
    b.pass(LOOK);
    b.turn(false);
    assert_eq!((b.seats.resting(), seen_by(&next, |s| &s.turns)), (1, turns));
    ring(&second);
    b.pass(LOOK);
    b.turn(false);
    assert_eq!(seen_by(&next, |s| &s.worked), 1);
}

/// What a poller does not name any more does not wake it.
#[test]
fn who_names_something_else_is_not_woken_by_what_he_named_before() {
    let mut lot = Lot::new().unwrap();
    let (first, second) = (event(), event());
    let interest = |fd: &OwnedFd| Interest { fd: fd.as_raw_fd(), id: Waits::unique(), read: true, write: false };
    let (old, new) = (interest(&first), interest(&second));
    let mut named = Vec::new();
    lot.watch(1, &mut vec![old], &mut named).unwrap();
    lot.watch(1, &mut vec![new], &mut named).unwrap();
    assert_eq!(named, [new]);
    ring(&first);
    let mut told: Vec<u32> = Vec::new();
    lot.look(|poller| told.push(poller)).unwrap();
    assert!(told.is_empty());
    ring(&second);
    lot.look(|poller| told.push(poller)).unwrap();
    assert_eq!(told, [1]);
}

/// Who was woken by a descriptor or by name may find nothing at first, and has the patience of one that worked.
#[test]
fn who_was_woken_by_somebody_stays_for_his_patience() {
    let mut b = Bench::new();
    let fd = event();
    let seen = b.add(Worker::on(&fd, Waits::unique()));
    for by_name in [false, true] {
        b.rest_all();
        match by_name {
            true => Parked::new(seen_by(&seen, |s| &s.parked) as u32).wake(),
            false => ring(&fd),
        }
        b.pass(LOOK);
        b.wake(false);
        // Somebody else reads it first.
        let _ = rustix::io::read(&fd, &mut [0; 8]);
        let asked = seen_by(&seen, |s| &s.asked);
        for _ in 0..3 {
            b.turn(false);
            b.seats.let_rest_before_sleep(b.now, &mut b.segs, 0);
            b.pass(PATIENCE / 4);
        }
        assert_eq!((b.seats.resting(), seen_by(&seen, |s| &s.asked)), (0, asked), "by name: {by_name}");
    }
}
