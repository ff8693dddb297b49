//! Links between reactors: what crosses, what waits, and who takes them in.

use crate::world::{FakeEndFence, World};
use polypath_block::{Armed, Code, Cx, Device, Done, Health, Proof, QueueConfig, RefusedWhy, SegTable, Time, UnitId};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

/// An owner on reactor 0 and an asker on reactor 1 of a queue with `slots`, whose end fence is `end_fence`.
fn crossing(slots: usize, end_fence: Option<std::sync::Arc<FakeEndFence>>) -> (World, usize, usize) {
    let mut w = World::new(2, 1, slots);
    w.target.lock().end_fence = end_fence;
    let (owner, asker) = (w.open_ready(0, 1, 4), w.open_ready(1, 2, 4));
    (w, owner, asker)
}

/// Wide requests of a link at a time.
const ROWS: u64 = 8;

/// As [`crossing`], with an asker as deep as there are wide rows.
fn deep_crossing(end_fence: Option<std::sync::Arc<FakeEndFence>>) -> (World, usize, usize) {
    let mut w = World::new(2, 1, 64);
    w.target.lock().end_fence = end_fence;
    let (owner, asker) = (w.open_ready(0, 1, 4), w.open_ready(1, 2, ROWS as u16));
    (w, owner, asker)
}

#[test]
fn proofs_and_terms_cross_as_they_are() {
    let (mut w, _, asker) = crossing(64, None);
    let proofs = [
        Proof::Answered,
        Proof::NeverSent,
        Proof::SocketClosed,
        Proof::Aborted,
        FakeEndFence::PROOF,
        Proof::ConfiguredBound { bound_ms: 77 },
        Proof::QueueDeleted,
        Proof::None,
    ];
    for (n, proof) in (0u64..).zip(proofs) {
        let terms = polypath_block::FenceTerms { proof, within: Duration::from_millis(300 + n) };
        w.write(asker, n);
        w.turns(2);
        w.target.lose(0, terms);
        w.turns(2);
        let suspects = w.suspects(asker);
        assert_eq!(suspects.iter().map(|s| (s.tag, s.fence)).collect::<Vec<_>>(), [(n, terms)]);
        w.target.quiet(0, proof);
        w.turns(2);
        assert_eq!(w.completions(asker).iter().map(|c| (c.tag, c.proof)).collect::<Vec<_>>(), [(n, proof)]);
    }
}

#[test]
fn a_wide_row_belongs_to_its_request_until_that_is_quiet() {
    let (mut w, _, asker) = deep_crossing(None);
    let narrow = World::open_ready(&mut w, 1, 2, 64);
    (0..ROWS).for_each(|tag| w.send(asker, tag, true, 100));
    w.turns(2);
    let spans: Vec<_> = w.target.lock().queues[0].running.iter().map(|h| h.io.segs).collect();
    assert_eq!(spans.len(), ROWS as usize);
    w.target.lose(0, FakeEndFence::TERMS);
    w.turns(2);
    assert_eq!(w.suspects(asker).len(), ROWS as usize);
    // All rows are taken by what may still be read by the driver: one more waits, and keeps nothing else from going.
    w.send(asker, ROWS, true, 100);
    w.turns(3);
    assert!(w.target.running(0).is_empty(), "a row was given again under its fence");
    (20..27).for_each(|tag| w.read(asker, tag));
    assert_eq!(w.try_send(asker, 27, false, 1).unwrap_err().why, RefusedWhy::Full, "what waits counts");
    w.read(narrow, 9);
    w.turns(2);
    w.target.answer(0, 8);
    w.turns(2);
    assert_eq!(w.completions(asker).len(), 7);
    assert_eq!(w.completions(narrow).len(), 1);
    assert!(!w.would_wake(1), "a request that waits for a row keeps its reactor awake");
    // Quiet: the row is free, and nobody has to ask for it.
    w.target.quiet(0, FakeEndFence::PROOF);
    w.turns(3);
    assert_eq!(w.completions(asker).len(), ROWS as usize);
    let again: Vec<_> = w.target.lock().queues[0].running.iter().map(|h| (h.io.segs, h.segs.len())).collect();
    assert!(again.len() == 1 && spans.contains(&again[0].0) && again[0].1 == 100, "{again:?}");
    w.target.answer(0, 1);
    w.turns(2);
    assert_eq!(w.completions(asker).iter().map(|c| (c.tag, c.status.code)).collect::<Vec<_>>(), [(ROWS, Code::Ok)]);
}

#[test]
fn what_waits_for_a_wide_row_ends_with_its_way() {
    // The owner ends, the unit goes down, the queue is surplus, the user closes.
    for end in 0..4 {
        let (mut w, _, asker) = deep_crossing(Some(FakeEndFence::new()));
        (0..ROWS).for_each(|tag| w.send(asker, tag, true, 100));
        w.turns(2);
        w.target.lose(0, FakeEndFence::TERMS);
        w.turns(2);
        w.send(asker, ROWS, true, 100);
        match end {
            0 => w.end_reactor(0),
            1 => drop(w.target.lock().down.insert(UnitId(2))),
            2 => w.target.lock().queues[0].surplus = true,
            _ => w.close(asker),
        }
        w.turns(3);
        let done = w.completions(asker);
        if end < 3 {
            let done: Vec<_> = done.iter().map(|c| (c.tag, c.status.code, c.proof)).collect();
            assert_eq!(done, [(ROWS, Code::PathLost, Proof::NeverSent)], "end {end}");
            if end == 1 {
                w.target.lock().down.clear();
                w.turns(3);
                assert_eq!(w.fill(asker, 20), ROWS, "what was given back still counts");
            }
            continue;
        }
        // A close lets what was accepted complete.
        assert!(done.is_empty() && !w.is_drained(asker));
        w.target.quiet(0, FakeEndFence::PROOF);
        w.turns(3);
        w.target.answer(0, 1);
        w.turns(2);
        assert_eq!(w.completions(asker).len(), ROWS as usize + 1);
        assert!(w.is_drained(asker));
    }
}

#[test]
fn a_link_that_is_full_of_fences_is_down_and_not_full() {
    let (mut w, _, asker) = crossing(64, None);
    for round in 0..2 {
        assert_eq!(w.fill(asker, round * 4), 4, "suspects do not count against the depth");
        w.turns(2);
        w.target.lose(0, FakeEndFence::TERMS);
        w.turns(2);
        assert_eq!(w.suspects(asker).len(), 4);
    }
    // "Full" would promise that a request of one's own makes room: the requester would wait for the fence, with nothing in flight.
    assert_eq!(w.try_send(asker, 9, true, 1).unwrap_err().why, RefusedWhy::Gone);
    assert_eq!(w.health(asker), Health::Down);
    w.target.quiet(0, FakeEndFence::PROOF);
    w.turns(2);
    assert_eq!(w.health(asker), Health::Ready);
    assert_eq!(w.completions(asker).len(), 8);
    assert_eq!(w.fill(asker, 0), 4);
}

#[test]
fn a_link_that_is_not_taken_in_is_given_up_and_nothing_comes_of_it_later() {
    let mut w = World::new(2, 1, 8);
    let owner = w.open_ready(0, 1, 4);
    w.reactors[0].stalled = true;
    let asker = w.open(1, 2, 4);
    w.turns(3);
    assert_eq!(w.health(asker), Health::Down);
    assert_eq!(w.try_send(asker, 1, true, 1).unwrap_err().why, RefusedWhy::Gone);
    let (armed, waits) = w.arm(1);
    assert_eq!(armed, Armed::Sleep);
    assert!(waits.deadline.is_some_and(|d| d <= w.now.after(Duration::from_secs(1))), "it waits without a limit");
    // Twice it gives up and asks again.
    for _ in 0..2 {
        w.pass(Duration::from_millis(1001));
        w.turns(2);
        w.pass(Duration::from_millis(200));
        w.turns(2);
    }
    // The owner wakes up: the links that were given up are nobody's, the last one is taken in.
    w.reactors[0].stalled = false;
    w.until("a link", |w| w.health(asker) == Health::Ready);
    assert_eq!(w.target.lock().queues[0].units.values().map(|u| u.1).collect::<Vec<_>>(), [1, 1]);
    w.write(asker, 1);
    w.turns(2);
    w.target.answer(0, 1);
    w.turns(2);
    assert_eq!(w.completions(asker).len(), 1);
    w.leave(asker);
    w.turns(5);
    assert!(w.reactors[0].pollers.is_empty());
    w.leave(owner);
    assert_eq!(w.target.open_queues(), 0);
}

#[test]
fn a_link_that_is_refused_is_asked_for_ever_more_rarely() {
    let mut w = World::new(2, 1, 8);
    w.target.lock().most_units = 1;
    let _owner = w.open_ready(0, 1, 4);
    let asker = w.open(1, 2, 4);
    // Five seconds of turns a millisecond apart: each look asks reactor 0 for a poller.
    let mut looks = [0; 5];
    for ms in 0..5000 {
        let before = w.reactors[0].host.spawned.load(Ordering::Relaxed);
        w.pass(Duration::from_millis(1));
        w.turn();
        looks[ms / 1000] += w.reactors[0].host.spawned.load(Ordering::Relaxed) - before;
    }
    assert!((4..=8).contains(&looks[0]) && looks[1..].iter().all(|n| (1..=2).contains(n)), "{looks:?}");
    assert_eq!(w.health(asker), Health::Down);
    // There is room again: the next look finds it.
    w.target.lock().most_units = 2;
    w.pass(Duration::from_millis(1000));
    w.until("a place", |w| {
        w.pass(Duration::from_millis(10));
        w.health(asker) == Health::Ready
    });
}

#[test]
fn an_owner_on_a_thread_that_no_host_reaches_is_left_alone() {
    // Reactor 5 has no host: its queue is its own, and reactor 1 goes without.
    let mut w = World::new(2, 1, 8);
    let own = w.open(0, 1, 4);
    let user = w.users[own].as_mut().unwrap();
    let mut cx = polypath_block::Cx { now: w.now, segs: &mut w.reactors[0].segs, reactor: 5 };
    user.queue.poll(&mut cx, &mut user.done);
    assert_eq!(w.health(own), Health::Ready);
    let asker = w.open(1, 1, 4);
    let at = w.now;
    for _ in 0..20 {
        w.turn_of(1);
        w.pass(Duration::from_millis(100));
    }
    assert!(w.now > at && w.now != Time::NEVER);
    assert_eq!(w.health(asker), Health::Down);
}

#[test]
fn an_asker_does_not_wait_for_ever_for_a_reactor_that_stalls() {
    let mut w = World::new(2, 1, 8);
    let _owner = w.open_ready(0, 1, 4);
    w.reactors[0].stalled = true;
    let asker = w.open(1, 2, 4);
    w.turns(3);
    w.target.lock().granted = 2;
    w.pass(Duration::from_millis(1001));
    w.turns(2);
    w.pass(Duration::from_millis(200));
    w.turns(2);
    assert_eq!(w.health(asker), Health::Ready, "it could have a queue of its own by now");
    // The other reactor wakes up, and finds a link that is nobody's.
    w.reactors[0].stalled = false;
    w.turns(3);
    assert_eq!(w.target.lock().queues[0].opened, [UnitId(1)]);
    assert!(w.reactors[0].pollers.is_empty());
}

#[test]
fn what_was_not_kicked_is_not_slept_over() {
    let (mut w, _owner, asker) = crossing(8, None);
    w.settle(0);
    w.settle(1);
    w.try_send(asker, 1, true, 1).unwrap();
    assert!(w.would_wake(1));
    w.turn_of(1);
    assert!(w.would_wake(0), "a turn kicks what was forgotten");
    w.turn_of(0);
    assert_eq!((w.target.running(0).len(), w.target.lock().queues[0].unkicked), (1, 0), "taken, and not kicked");
}

#[test]
fn a_link_that_comes_as_the_owner_closes_is_given_back() {
    let mut w = World::new(2, 1, 8);
    let owner = w.open_ready(0, 1, 4);
    w.write(owner, 1);
    w.turn();
    // Left in the mailbox in the very turn in which the last user closes.
    let asker = w.open(1, 2, 4);
    w.turn_of(1);
    w.close(owner);
    w.turns(5);
    assert_eq!(w.target.lock().queues[0].opened, [UnitId(1)], "taken in by an owner that closes");
    w.target.answer(0, 1);
    w.turns(2);
    assert!(w.is_drained(owner));
    w.drop_user(owner);
    w.pass(Duration::from_millis(1001));
    w.until("a queue of its own", |w| w.health(asker) == Health::Ready);
    assert_eq!(w.target.open_queues(), 1);
}

/// An owner on a thread that is no reactor of the stack and says that it is number 0; it goes with what is returned.
fn impostor(w: &World) -> (mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (device, (tell, told), (end, ended)) = (w.device(1), mpsc::channel(), mpsc::channel::<()>());
    let thread = std::thread::spawn(move || {
        let mut queue = device.open_queue(QueueConfig { depth: 4 }).unwrap();
        let (mut segs, mut done) = (SegTable::new(16), Done::default());
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut segs, reactor: 0 };
        // The second turn shows others that it works.
        (0..2).for_each(|_| queue.poll(&mut cx, &mut done));
        tell.send(queue.health()).unwrap();
        ended.recv().unwrap_err();
        queue.close(&mut cx);
        assert!(queue.is_drained());
    });
    assert_eq!(told.recv().unwrap(), Health::Ready);
    (end, thread)
}

#[test]
fn an_owner_that_only_has_the_number_of_a_host_is_asked_once() {
    let mut w = World::new(2, 1, 8);
    let (end, thread) = impostor(&w);
    for (reactor, expected) in [(0, 0), (1, 1)] {
        let asker = w.open(reactor, 1, 4);
        for _ in 0..50 {
            w.turn();
            w.pass(Duration::from_millis(100));
        }
        assert_eq!(w.health(asker), Health::Down);
        assert_eq!(w.reactors[0].host.spawned.load(Ordering::Relaxed), expected, "asked from reactor {reactor}");
    }
    drop(end);
    thread.join().unwrap();
    w.pass(Duration::from_millis(1001));
    w.turns(2);
    assert_eq!((w.health(0), w.target.open_queues()), (Health::Ready, 1), "free again, and nobody took it");
}

#[test]
fn whoever_was_refused_by_an_impostor_finds_the_owner_that_can_be_reached() {
    let mut w = World::new(3, 2, 8);
    let (end, thread) = impostor(&w);
    // It has fewer users than the other one, and so it is asked first.
    let users = [w.open_ready(1, 2, 4), w.open_ready(1, 3, 4)];
    let asker = w.open(2, 4, 4);
    for _ in 0..20 {
        w.turn();
        w.pass(Duration::from_millis(10));
    }
    assert_eq!(w.health(asker), Health::Ready, "it still waits for the one that cannot take it in");
    assert_eq!(w.target.lock().queues[1].opened, [UnitId(2), UnitId(3), UnitId(4)]);
    users.into_iter().chain([asker]).for_each(|user| w.leave(user));
    drop(end);
    thread.join().unwrap();
}

#[test]
fn an_asker_shares_a_queue_that_works_and_of_those_the_one_with_the_fewest_users() {
    let mut w = World::new(3, 2, 64);
    for (reactor, unit) in [(0, 1), (1, 2), (1, 3)] {
        w.open_ready(reactor, unit, 4);
    }
    let opened = |w: &World| [0, 1].map(|queue| w.target.lock().queues[queue].opened.len());
    w.open_ready(2, 4, 4);
    assert_eq!(opened(&w), [2, 2]);
    let leaver = w.open_ready(0, 5, 4);
    w.open_ready(2, 6, 4);
    assert_eq!(opened(&w), [3, 3]);
    // The first one has the fewest again, but nothing of it works.
    w.leave(leaver);
    w.target.lock().down.extend([UnitId(1), UnitId(4)]);
    w.turns(3);
    w.open_ready(2, 7, 4);
    assert_eq!(opened(&w), [3, 4]);
    // It works again in part: that will do.
    w.target.lock().down.remove(&UnitId(4));
    w.turns(3);
    w.open_ready(2, 8, 4);
    assert_eq!(opened(&w), [4, 4]);
}

#[test]
fn all_links_that_came_while_the_owner_was_busy_are_taken_in() {
    let mut w = World::new(3, 1, 8);
    let _owner = w.open_ready(0, 1, 4);
    w.reactors[0].stalled = true;
    let askers = [(1, 2), (1, 3), (2, 4)].map(|(reactor, unit)| w.open(reactor, unit, 4));
    w.turns(3);
    w.reactors[0].stalled = false;
    w.turn_of(0);
    assert_eq!(w.target.lock().queues[0].opened, [1, 2, 3, 4].map(UnitId));
    w.turns(2);
    assert!(askers.iter().all(|&asker| w.health(asker) == Health::Ready));
}
