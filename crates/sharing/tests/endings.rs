//! Ends of every kind: of users, of reactors, of queues, of fences. Nothing lost, nothing twice, nothing carried out for somebody who
//! has gone, nobody left asleep.

use crate::world::controller::at_the_end_of_a_queue;
use crate::world::{FakeEndFence, World};
use polypath_block::{Armed, Code, Cx, Fate, FenceState, Health, Io, Op, Proof, SegTable, UnitId, Waits};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// An owner on reactor 0 and an asker on reactor 1 of a queue with `slots`, whose end fence is `end_fence`.
fn crossing(slots: usize, end_fence: Option<std::sync::Arc<FakeEndFence>>) -> (World, usize, usize) {
    let mut w = World::new(2, 1, slots);
    w.target.lock().end_fence = end_fence;
    let (owner, asker) = (w.open_ready(0, 1, 4), w.open_ready(1, 2, 4));
    (w, owner, asker)
}

#[test]
fn a_fence_of_an_end_tells_when_changes_of_an_ended_owner_are_quiet() {
    let end_fence = FakeEndFence::new();
    let (mut w, _, asker) = crossing(8, Some(end_fence.clone()));
    w.write(asker, 1);
    w.read(asker, 2);
    w.with(asker, |u, cx| u.queue.submit(cx, Io::range(3, Op::WriteZeroes, 5, 1))).unwrap();
    w.turns(2);
    assert_eq!(w.target.running(0).len(), 3);
    // One more that is still on its way there.
    w.write(asker, 4);
    w.settle(1);
    w.end_reactor(0);
    assert!(w.would_wake(1), "nobody tells the asker that its owner has ended");
    w.turn_of(1);
    // Reads at once; changes are suspect on the end fence's terms.
    let done = w.completions(asker);
    assert_eq!(
        done.iter().map(|c| (c.tag, c.status.code, c.proof)).collect::<Vec<_>>(),
        [(2, Code::PathLost, Proof::SocketClosed)]
    );
    let suspects = w.suspects(asker);
    let mut tags: Vec<_> = suspects.iter().map(|s| s.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [1, 3, 4]);
    assert!(
        suspects.iter().all(|s| (s.fate, s.fence, s.cause) == (Fate::Unknown, FakeEndFence::TERMS, Code::PathLost))
    );
    assert_eq!(w.health(asker), Health::Down);
    // The end fence has not noticed yet; then it waits; then it knows.
    for _ in 0..5 {
        w.pass(Duration::from_millis(1));
        w.turn_of(1);
    }
    let by = w.now.after(Duration::from_secs(9));
    end_fence.say(FenceState::Pending { by });
    w.pass(Duration::from_millis(1));
    w.turn_of(1);
    w.turn_of(1);
    let (_, waits) = w.arm(1);
    assert!(waits.deadline.is_some_and(|d| d <= by), "it looks again when the fence ends: {waits:?}");
    w.pass(Duration::from_secs(5));
    w.turn_of(1);
    assert!(w.completions(asker).is_empty(), "completed before the end_fence knew it quiet");
    end_fence.say(FenceState::Quiet(FakeEndFence::PROOF));
    w.pass(Duration::from_secs(5));
    w.turn_of(1);
    let mut done = w.completions(asker);
    done.sort_unstable_by_key(|c| c.tag);
    assert_eq!(done.iter().map(|c| c.tag).collect::<Vec<_>>(), [1, 3, 4]);
    assert!(done.iter().all(|c| (c.status.code, c.proof) == (Code::PathLost, FakeEndFence::PROOF)));
    assert!(w.suspects(asker).is_empty(), "suspect twice");
    w.turns(3);
    assert!(w.completions(asker).is_empty(), "completed twice");
    w.close(asker);
    assert!(w.is_drained(asker));
}

#[test]
fn what_was_suspect_before_the_owner_ended_waits_for_the_heir_and_is_not_suspect_again() {
    let end_fence = FakeEndFence::new();
    let (mut w, _, asker) = crossing(8, Some(end_fence.clone()));
    w.write(asker, 1);
    w.turns(2);
    w.target.lose(0, FakeEndFence::TERMS);
    w.turns(2);
    assert_eq!(w.suspects(asker).len(), 1);
    w.end_reactor(0);
    w.turn_of(1);
    assert!(w.suspects(asker).is_empty() && w.completions(asker).is_empty());
    end_fence.say(FenceState::Quiet(FakeEndFence::PROOF));
    w.pass(Duration::from_millis(2));
    w.turn_of(1);
    assert_eq!(w.completions(asker)[0].proof, FakeEndFence::PROOF);
}

#[test]
fn a_fence_of_an_end_that_cannot_tell_leaves_nothing_open() {
    // It says that it failed; or it never says anything.
    for (says, patience) in [(FenceState::Failed, 0), (FenceState::Idle, 12_000)] {
        let end_fence = FakeEndFence::new();
        let (mut w, _, asker) = crossing(8, Some(end_fence.clone()));
        w.write(asker, 1);
        w.read(asker, 2);
        w.turns(2);
        w.end_reactor(0);
        end_fence.say(says);
        w.turn_of(1);
        w.pass(Duration::from_millis(patience));
        w.turn_of(1);
        let mut done = w.completions(asker);
        done.sort_unstable_by_key(|c| c.tag);
        assert_eq!(
            done.iter().map(|c| (c.tag, c.status.code, c.proof)).collect::<Vec<_>>(),
            [(1, Code::OutcomeUnknown, Proof::None), (2, Code::PathLost, Proof::SocketClosed)],
            "{says:?}"
        );
        w.close(asker);
        assert!(w.is_drained(asker));
    }
}

#[test]
fn without_a_fence_of_an_end_the_outcome_is_unknown() {
    let (mut w, _, asker) = crossing(8, None);
    w.write(asker, 1);
    w.read(asker, 2);
    w.turns(2);
    w.end_reactor(0);
    w.turn_of(1);
    let done = w.completions(asker);
    assert_eq!(done.len(), 2);
    assert!(done.iter().all(|c| (c.status.code, c.proof) == (Code::OutcomeUnknown, Proof::None)));
    assert!(w.suspects(asker).is_empty());
    assert_eq!(w.target.open_queues(), 0, "told before the queue was gone");
}

#[test]
fn an_asker_finds_another_queue_when_its_owner_has_ended() {
    let end_fence = FakeEndFence::new();
    let (mut w, _, asker) = crossing(8, Some(end_fence.clone()));
    w.write(asker, 1);
    w.turns(2);
    w.end_reactor(0);
    w.turn_of(1);
    w.pass(Duration::from_millis(25));
    w.until("another queue", |w| w.health(asker) == Health::Ready);
    w.write(asker, 2);
    w.target.answer(1, 1);
    w.turn_of(1);
    assert_eq!(w.completions(asker).iter().map(|c| c.tag).collect::<Vec<_>>(), [2]);
    // The old one still waits for its fence, and closing waits for it, too.
    w.close(asker);
    w.turns(3);
    assert!(!w.is_drained(asker));
    end_fence.say(FenceState::Quiet(FakeEndFence::PROOF));
    w.pass(Duration::from_millis(5));
    w.turn_of(1);
    assert_eq!(w.completions(asker).iter().map(|c| c.tag).collect::<Vec<_>>(), [1]);
    w.turn_of(1);
    assert!(w.is_drained(asker));
}

#[test]
fn nothing_is_sent_for_an_asker_that_has_gone() {
    let (mut w, owner, asker) = crossing(2, None);
    // Two in flight, one in the owner's line, one still in the ring: only what runs may run on.
    (1..=3).for_each(|tag| w.write(asker, tag));
    w.turns(2);
    w.write(asker, 4);
    w.end_reactor(1);
    let sent = w.target.submitted(0);
    assert_eq!(sent, [(2, 1), (2, 2)]);
    for _ in 0..10 {
        w.turn_of(0);
    }
    w.target.answer(0, 1);
    w.turn_of(0);
    assert_eq!(w.target.submitted(0), sent, "a request of an asker that has gone was sent");
    assert_eq!(w.target.lock().queues[0].units.len(), 2, "its unit was closed under a request");
    // The owner drains what runs, then nothing is left of it.
    w.target.answer(0, 1);
    for _ in 0..5 {
        w.turn_of(0);
    }
    assert_eq!(w.target.lock().queues[0].closed_units, [UnitId(2)]);
    assert!(w.reactors[0].pollers.is_empty());
    assert_eq!(w.target.submitted(0), sent);
    w.leave(owner);
    assert_eq!(w.target.open_queues(), 0);
}

#[test]
fn what_an_asker_left_in_the_ring_is_not_sent_though_there_is_room() {
    let (mut w, owner, asker) = crossing(8, None);
    (1..=3).for_each(|tag| w.write(asker, tag));
    w.end_reactor(1);
    for _ in 0..5 {
        w.turn_of(0);
    }
    assert!(w.target.submitted(0).is_empty(), "sent for an asker that has gone: {:?}", w.target.submitted(0));
    assert_eq!(w.target.lock().queues[0].closed_units, [UnitId(2)]);
    w.leave(owner);
}

#[test]
fn an_asker_that_goes_leaves_no_rows_taken() {
    let (mut w, _owner, asker) = crossing(8, None);
    w.drop_user(asker);
    w.turns(5);
    // As much again, many times over: the table would be full.
    for _ in 0..1100 {
        let asker = w.open_ready(1, 2, 4);
        w.leave(asker);
        w.turns(3);
    }
}

#[test]
fn an_asker_that_goes_wakes_its_owner() {
    let (mut w, owner, asker) = crossing(8, None);
    w.settle(0);
    w.settle(1);
    w.drop_user(asker);
    assert!(w.would_wake(0), "the owner keeps the place of an asker that has gone");
    w.leave(owner);
}

#[test]
fn an_asker_asks_its_heir_now_and_then_for_it_may_be_quiet_sooner() {
    let end_fence = FakeEndFence::new();
    let (mut w, _, asker) = crossing(8, Some(end_fence.clone()));
    w.write(asker, 1);
    w.turns(2);
    w.close(asker);
    end_fence.say(FenceState::Pending { by: w.now.after(Duration::from_secs(60)) });
    w.end_reactor(0);
    w.turn_of(1);
    end_fence.say(FenceState::Quiet(FakeEndFence::PROOF));
    let (armed, waits) = w.arm(1);
    assert!(armed == Armed::Sleep && waits.deadline.is_some_and(|at| at <= w.now.after(Duration::from_millis(20))));
    w.pass(Duration::from_millis(20));
    w.turn_of(1);
    assert_eq!(w.completions(asker).len(), 1);
    assert!(w.is_drained(asker));
}

#[test]
fn the_fence_of_an_end_is_asked_at_its_times_and_only_while_something_is_open() {
    let ms = Duration::from_millis;
    let end_fence = FakeEndFence::new();
    let (mut w, _, asker) = crossing(8, Some(end_fence.clone()));
    w.write(asker, 1);
    w.turns(2);
    w.close(asker);
    w.end_reactor(0);
    // One that has not noticed yet is asked each millisecond, one that knows its end then or after 20.
    let says = [
        (FenceState::Idle, ms(1)),
        (FenceState::Pending { by: w.now.after(ms(1 + 7)) }, ms(6)),
        (FenceState::Pending { by: w.now.after(Duration::from_secs(60)) }, ms(20)),
    ];
    let asked = || end_fence.asked.load(std::sync::atomic::Ordering::Relaxed);
    for (n, (state, pause)) in (1..).zip(says) {
        end_fence.say(state);
        w.turn_of(1);
        let at = w.now;
        assert_eq!(asked(), n, "{state:?}");
        let (_, Waits { deadline, .. }) = w.arm(1);
        let pause_now = deadline.expect("a time to ask").since(at);
        assert!(pause_now <= pause + ms(1) && pause_now + ms(1) > pause, "{state:?}: {pause_now:?}");
        // A turn that comes earlier asks nothing.
        w.turn_of(1);
        assert_eq!(asked(), n, "{state:?}");
        w.now = deadline.unwrap();
    }
    end_fence.say(FenceState::Quiet(FakeEndFence::PROOF));
    w.turn_of(1);
    assert_eq!((asked(), w.completions(asker).len(), w.is_drained(asker)), (4, 1, true));
    // It is over: nobody asks, and nobody wants to be woken.
    assert_eq!(w.arm(1).1.deadline, None);
    for _ in 0..3 {
        w.pass(Duration::from_secs(1));
        w.turn_of(1);
    }
    assert_eq!(asked(), 4);
}

#[test]
fn an_asker_that_goes_while_its_requests_are_suspect_is_drained_by_the_owner() {
    let (mut w, owner, asker) = crossing(8, None);
    (1..=4).for_each(|tag| w.write(asker, tag));
    w.turns(2);
    w.target.lose(0, FakeEndFence::TERMS);
    w.end_reactor(1);
    for _ in 0..5 {
        w.turn_of(0);
    }
    assert!(w.target.lock().queues[0].closed_units.is_empty(), "its unit was closed under its fence");
    assert_eq!(w.reactors[0].pollers.len(), 1, "its segments were given up under its fence");
    w.close(owner);
    for _ in 0..3 {
        w.turn_of(0);
    }
    assert!(!w.is_drained(owner), "the queue would be dropped under a fence");
    w.target.quiet(0, FakeEndFence::PROOF);
    w.until("the end of everything", |w| w.reactors[0].pollers.is_empty() && w.is_drained(owner));
    w.drop_user(owner);
    assert_eq!(w.target.open_queues(), 0);
}

#[test]
fn a_user_on_the_same_reactor_that_is_dropped_is_drained_by_the_others() {
    let mut w = World::new(1, 1, 2);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    (1..=4).for_each(|tag| w.write(a, tag));
    w.turn();
    w.drop_user(a);
    w.target.lose(0, FakeEndFence::TERMS);
    w.turns(5);
    assert_eq!(w.target.submitted(0).len(), 2, "what waited in its line was sent");
    w.close(b);
    w.turns(5);
    assert!(!w.is_drained(b), "the queue would be dropped under a fence");
    w.target.quiet(0, FakeEndFence::PROOF);
    w.turns(2);
    assert!(w.is_drained(b));
    assert!(w.completions(b).is_empty() && w.suspects(b).is_empty(), "outcomes of another user");
}

#[test]
fn a_dropped_user_does_not_keep_the_queue_from_closing() {
    let mut w = World::new(1, 1, 2);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    w.read(b, 1);
    w.turn();
    w.close(b);
    (1..=4).for_each(|tag| w.write(a, tag));
    w.close(a);
    w.turn();
    w.target.answer(0, 8);
    w.turn();
    assert!(!w.is_drained(b), "lines wait");
    w.drop_user(a);
    assert!(w.would_wake(0), "nobody closes the queue");
    w.target.answer(0, 8);
    w.turns(3);
    assert!(w.is_drained(b));
}

#[test]
fn a_surplus_queue_gives_back_what_waits_in_its_lines() {
    let mut w = World::new(2, 1, 2);
    let (local, remote) = (w.open_ready(0, 1, 4), w.open_ready(1, 2, 4));
    (1..=4).for_each(|tag| w.write(local, tag));
    (1..=4).for_each(|tag| w.write(remote, tag));
    w.turns(2);
    assert_eq!(w.target.running(0).len(), 2);
    {
        let q = &mut w.target.lock().queues[0];
        // Its requests are lost with the connection, and it says nothing but that it is full.
        (q.surplus, q.says_full) = (true, true);
    }
    w.target.lose(0, FakeEndFence::TERMS);
    w.turns(3);
    let (a, b) = (w.completions(local), w.completions(remote));
    assert_eq!(a.len() + b.len(), 6, "{a:?} {b:?}");
    assert!(a.iter().chain(&b).all(|c| (c.status.code, c.proof) == (Code::PathLost, Proof::NeverSent)));
    assert_eq!(w.suspects(local).len() + w.suspects(remote).len(), 2);
    // They find another queue while the fence goes on.
    w.target.lock().granted = 2;
    w.pass(Duration::from_millis(1100));
    w.until("another queue", |w| w.health(local) == Health::Ready && w.health(remote) == Health::Ready);
    assert_eq!(w.target.open_queues(), 2);
    w.target.quiet(0, FakeEndFence::PROOF);
    w.until("the surplus queue given back", |w| w.target.open_queues() == 1);
    let done: Vec<_> = [w.completions(local), w.completions(remote)].concat();
    assert!(done.len() == 2 && done.iter().all(|c| c.proof == FakeEndFence::PROOF));
}

#[test]
fn a_change_of_health_wakes_whoever_saw_the_old_one() {
    // The users elsewhere are polled before the local one that moves the queue, and it polls twice a turn.
    let mut w = World::new(2, 1, 8);
    let local = w.open_ready(0, 1, 4);
    let asker = w.open_ready(1, 2, 4);
    let other = w.open_ready(0, 2, 4);
    w.reactors[0].pollers_first = true;
    for down in [true, false, true, false] {
        w.turns(5);
        w.settle(1);
        if down {
            w.target.lock().down.insert(UnitId(2));
        } else {
            w.target.lock().down.clear();
        }
        w.now = w.now.after(Duration::from_micros(1));
        // One turn of reactor 0, in which only the last poll is after the change.
        w.poll(other);
        w.poll(local);
        w.poll(local);
        assert!(w.would_wake(0), "users that were polled before do not learn that the unit is down={down}");
        w.settle(0);
        assert!(w.would_wake(1), "the user elsewhere sleeps on");
        w.settle(1);
        let expected = if down { Health::Down } else { Health::Ready };
        assert_eq!((w.health(other), w.health(asker)), (expected, expected));
    }
}

#[test]
fn the_last_user_may_close_while_another_opens() {
    let mut w = World::new(1, 1, 8);
    let a = w.open_ready(0, 1, 4);
    w.write(a, 1);
    w.turn();
    w.close(a);
    let b = w.open(0, 1, 4);
    w.turns(3);
    assert_eq!(w.target.open_queues(), 1);
    assert_eq!(w.health(b), Health::Down);
    w.target.answer(0, 1);
    w.turn();
    assert_eq!(w.completions(a).len(), 1);
    assert!(w.is_drained(a));
    w.drop_user(a);
    w.pass(Duration::from_millis(1100));
    w.turns(2);
    assert_eq!(w.health(b), Health::Ready);
    assert_eq!(w.target.lock().queues.len(), 2);
}

#[test]
fn a_queue_whose_only_unit_cannot_be_opened_is_given_back() {
    let mut w = World::new(1, 1, 8);
    w.target.lock().most_units = 0;
    let user = w.open(0, 1, 4);
    w.turns(3);
    assert_eq!((w.health(user), w.target.open_queues()), (Health::Down, 0));
    w.target.lock().most_units = 1;
    w.pass(Duration::from_millis(50));
    w.turns(2);
    assert_eq!((w.health(user), w.target.open_queues()), (Health::Ready, 1));
}

#[test]
fn a_surplus_queue_takes_nobody_in_though_some_have_not_left_it_yet() {
    let mut w = World::new(1, 1, 8);
    let (slow, quick) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    w.write(slow, 1);
    w.turn();
    w.target.lose(0, FakeEndFence::TERMS);
    w.target.lock().queues[0].surplus = true;
    w.target.lock().granted = 2;
    // One gets no turns for a while.
    let slow_user = w.users[slow].take();
    w.turns(5);
    let newcomer = w.open(0, 3, 4);
    w.turns(3);
    assert_eq!((w.health(quick), w.health(newcomer)), (Health::Ready, Health::Ready));
    assert_eq!(w.target.lock().queues[0].opened, [UnitId(1), UnitId(2)], "somebody was taken in");
    w.users[slow] = slow_user;
    w.turns(5);
    assert_eq!((w.health(slow), w.suspects(slow).len()), (Health::Ready, 1));
    w.target.quiet(0, FakeEndFence::PROOF);
    w.turns(3);
    assert_eq!((w.completions(slow).len(), w.target.open_queues()), (1, 1));
}

#[test]
fn whoever_saw_its_unit_down_learns_from_others_that_the_queue_is_surplus() {
    let mut w = World::new(1, 2, 8);
    let (quick, slow) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    w.target.lock().down.insert(UnitId(2));
    w.turns(3);
    w.settle(0);
    // The queue is found surplus after its turn.
    w.pass(Duration::from_micros(1));
    w.poll(slow);
    w.target.lock().queues[0].surplus = true;
    w.poll(quick);
    w.poll(quick);
    assert!(w.would_wake(0), "it sleeps on a queue that has no place any more");
    w.settle(0);
    assert_eq!((w.health(quick), w.health(slow), w.target.open_queues()), (Health::Ready, Health::Down, 1));
}

#[test]
fn a_user_that_closes_while_it_looks_for_a_queue_wants_no_turn() {
    let mut w = World::new(1, 0, 8);
    let user = w.open(0, 1, 4);
    w.turns(2);
    assert!(w.arm(0).1.deadline.is_some());
    w.close(user);
    assert!(w.is_drained(user));
    let (armed, waits) = w.arm(0);
    assert_eq!((armed, waits.deadline), (Armed::Sleep, None));
}

#[test]
fn no_more_than_four_queues_are_left_under_their_fences() {
    let mut w = World::new(1, 20, 8);
    let user = w.open_ready(0, 1, 4);
    for queue in 0..5 {
        assert_eq!(w.health(user), Health::Ready, "after {queue} queues");
        w.write(user, queue as u64);
        w.turns(2);
        w.target.lose(queue, FakeEndFence::TERMS);
        w.target.lock().queues[queue].surplus = true;
        w.turns(3);
    }
    // The fifth is kept, though it is of no use, and nobody stays awake for it.
    assert_eq!((w.health(user), w.target.open_queues(), w.would_wake(0)), (Health::Down, 5, false));
    w.target.quiet(2, FakeEndFence::PROOF);
    w.turns(3);
    assert_eq!((w.health(user), w.target.open_queues()), (Health::Ready, 5));
    assert_eq!((w.suspects(user).len(), w.completions(user).len()), (5, 1));
}

#[test]
fn nothing_is_told_of_a_queue_before_it_is_gone() {
    let end_fence = FakeEndFence::new();
    end_fence.say(FenceState::Quiet(FakeEndFence::PROOF));
    let (mut w, _, asker) = crossing(8, Some(end_fence));
    w.write(asker, 1);
    w.read(asker, 2);
    w.turns(2);
    // The asker is polled in the very moment in which the queue goes.
    let mut user = w.users[asker].take().unwrap();
    let (now, told) = (w.now, Rc::new(RefCell::new(None)));
    let tell = told.clone();
    let mut segs = SegTable::new(1024);
    at_the_end_of_a_queue(move || {
        user.queue.poll(&mut Cx { now, segs: &mut segs, reactor: 1 }, &mut user.done);
        let early = !user.done.is_empty();
        *tell.borrow_mut() = Some((early, user));
    });
    w.end_reactor(0);
    let (early, user) = told.borrow_mut().take().expect("a queue that has ended");
    assert!(!early, "requests were given back while the queue was there");
    w.users[asker] = Some(user);
    w.turn_of(1);
    assert_eq!(w.suspects(asker).len(), 1);
    let mut done: Vec<_> = w.completions(asker).iter().map(|c| (c.tag, c.status.code, c.proof)).collect();
    done.sort_unstable_by_key(|&(tag, ..)| tag);
    // The fence speaks of changes. Whatever it says, a read has ended with its socket.
    assert_eq!(done, [(1, Code::PathLost, FakeEndFence::PROOF), (2, Code::PathLost, Proof::SocketClosed)]);
}
