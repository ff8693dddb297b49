//! One queue for many units: each request goes where it should, each user gets its share, trouble stays where it is.

use crate::world::World;
use polypath_block::{Armed, Code, Cx, Health, Io, Proof, RefusedWhy, Turn, UnitId, Waits};
use std::time::Duration;

#[test]
fn one_queue_a_reactor_whatever_the_number_of_units() {
    let mut w = World::new(2, 16, 64);
    for unit in 1..=24 {
        w.open(0, unit, 8);
        w.open(1, unit, 8);
    }
    w.turns(3);
    assert_eq!(w.target.open_queues(), 2);
    assert!((0..48).all(|user| w.health(user) == Health::Ready));
    assert_eq!(w.target.lock().queues[0].units.len(), 24);
}

#[test]
fn a_unit_is_opened_once_and_closed_with_its_last_user() {
    let mut w = World::new(1, 1, 64);
    let users: Vec<_> = [7, 7, 9, 7].into_iter().map(|unit| w.open_ready(0, unit, 4)).collect();
    assert_eq!(w.target.lock().queues[0].opened, [UnitId(7), UnitId(9)]);
    w.leave(users[0]);
    w.leave(users[3]);
    assert!(w.target.lock().queues[0].closed_units.is_empty());
    // The last user of 7 goes with a request open: its unit stays until that has completed.
    w.write(users[1], 1);
    w.drop_user(users[1]);
    w.turns(3);
    assert!(w.target.lock().queues[0].closed_units.is_empty(), "a unit was closed under a request");
    w.target.answer(0, 1);
    w.turns(3);
    assert_eq!(w.target.lock().queues[0].closed_units, [UnitId(7)]);
    w.leave(users[2]);
    assert_eq!(w.target.lock().queues[0].closed_units, [UnitId(7), UnitId(9)]);
    assert_eq!(w.target.open_queues(), 0);
}

#[test]
fn a_unit_of_a_user_that_crosses_is_closed_with_it() {
    let mut w = World::new(2, 1, 64);
    let local = w.open_ready(0, 1, 4);
    let (a, b) = (w.open_ready(1, 2, 4), w.open_ready(1, 2, 4));
    assert_eq!(w.target.lock().queues[0].opened, [UnitId(1), UnitId(2)]);
    w.leave(a);
    w.turns(5);
    assert!(w.target.lock().queues[0].closed_units.is_empty());
    w.leave(b);
    w.turns(5);
    assert_eq!(w.target.lock().queues[0].closed_units, [UnitId(2)]);
    assert!(w.reactors[0].pollers.is_empty(), "the poller for users elsewhere goes with the last of them");
    w.leave(local);
}

#[test]
fn requests_go_to_the_unit_they_are_for() {
    let mut w = World::new(2, 1, 64);
    let users: Vec<_> = (0..8).map(|n| w.open_ready((n % 2) as usize, 10 + n, 4)).collect();
    for &user in &users {
        w.write(user, 100 + user as u64);
    }
    w.turns(3);
    let mut running = w.target.running(0);
    running.sort_unstable();
    let expected: Vec<_> = users.iter().map(|&u| (10 + u as u64, 100 + u as u64)).collect();
    assert_eq!(running, expected);
    // The segments came along, also over the ring.
    assert!(
        w.target.lock().queues[0]
            .running
            .iter()
            .all(|h| { h.segs.len() == 1 && u64::from(h.segs[0].region.0) == h.id.0 + 1 && h.segs[0].len == 512 })
    );
    // Answered in another order, each outcome comes to its user under its own tag.
    w.target.lock().queues[0].running.reverse();
    w.target.answer(0, 8);
    w.turns(3);
    for &user in &users {
        let done = w.completions(user);
        assert_eq!(done.iter().map(|c| (c.tag, c.status.code)).collect::<Vec<_>>(), [(100 + user as u64, Code::Ok)]);
        assert_eq!(done[0].proof, Proof::Answered);
    }
}

#[test]
fn a_unit_in_trouble_fails_only_its_own_users() {
    let mut w = World::new(2, 1, 2);
    let users: Vec<_> = [(0, 1), (0, 2), (1, 1), (1, 2)].map(|(reactor, unit)| w.open_ready(reactor, unit, 4)).into();
    // Two run, the others wait in lines.
    for &user in &users {
        (0..4).for_each(|n| w.write(user, 10 * user as u64 + n));
    }
    w.turns(3);
    assert_eq!(w.target.running(0).len(), 2);
    w.target.lock().down.insert(UnitId(2));
    w.turns(5);
    // Nothing of the queue moves, and still what waits for unit 2 is given back, as never sent.
    for (at, &user) in users.iter().enumerate() {
        let done = w.completions(user);
        let unit = [1, 2, 1, 2][at];
        let ran = w.target.running(0).iter().filter(|r| r.0 == unit && r.1 / 10 == user as u64).count();
        let expected = if unit == 2 { 4 - ran } else { 0 };
        assert_eq!(done.len(), expected, "user {at} of unit {unit}");
        assert!(done.iter().all(|c| c.status.code == Code::PathLost && c.proof == Proof::NeverSent));
        assert_eq!(w.health(user), if unit == 2 { Health::Down } else { Health::Ready }, "user {at} of unit {unit}");
    }
    assert_eq!(w.submit(users[1], Io::flush(5)).unwrap_err().why, RefusedWhy::Gone);
    assert_eq!(w.submit(users[3], Io::flush(5)).unwrap_err().why, RefusedWhy::Gone);
    // The others go on, and unit 2 comes back.
    for _ in 0..20 {
        w.target.answer(0, 8);
        w.turn();
    }
    assert_eq!(w.completions(users[0]).len(), 4);
    assert_eq!(w.completions(users[2]).len(), 4);
    w.target.lock().down.clear();
    w.turns(3);
    for &user in &users {
        assert_eq!(w.health(user), Health::Ready);
        w.completions(user);
        w.read(user, 7);
    }
    for _ in 0..5 {
        w.target.answer(0, 8);
        w.turn();
    }
    assert!(users.iter().all(|&user| w.completions(user).len() == 1));
}

#[test]
fn lines_get_equal_shares() {
    let mut w = World::new(4, 1, 8);
    // Sixteen users on four reactors, three of which cross; from twice to 32 times what a line needs.
    let users: Vec<_> = (0..16).map(|n| w.open_ready(n % 4, 1 + (n as u64 % 5), [4, 8, 16, 64][n / 4])).collect();
    let mut served = vec![0usize; 16];
    for round in 0..2000 {
        for (at, &user) in users.iter().enumerate() {
            served[at] += w.completions(user).len();
            w.fill(user, 0);
        }
        w.turn();
        w.target.answer(0, 8);
        if round == 100 {
            served.fill(0);
        }
    }
    let mean = served.iter().sum::<usize>() / 16;
    assert!(mean > 500, "{served:?}");
    assert!(served.iter().all(|&n| n * 100 >= mean * 95 && n * 100 <= mean * 105), "mean {mean}: {served:?}");
}

#[test]
fn nobody_is_told_full_for_what_others_do() {
    let mut w = World::new(2, 1, 4);
    let (greedy, local, remote) = (w.open_ready(0, 1, 64), w.open_ready(0, 2, 2), w.open_ready(1, 3, 2));
    assert_eq!(w.fill(greedy, 0), 64);
    assert_eq!(w.fill(local, 0), 2);
    assert_eq!(w.fill(remote, 0), 2);
    for _ in 0..10 {
        w.turn();
        w.target.answer(0, 1);
    }
    // Each got its turn long before the 64 were through.
    assert_eq!(w.completions(local).len(), 2);
    assert!(!w.completions(remote).is_empty());
    assert!(w.completions(greedy).len() < 10);
}

#[test]
fn what_one_user_lost_takes_no_place_of_anothers() {
    let mut w = World::new(1, 1, 8);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    // 20 times everything is lost, and no fence ends.
    for round in 0..20 {
        assert_eq!(w.fill(a, 0), 4, "round {round}");
        w.target.lose(0, crate::world::FakeEndFence::TERMS);
        w.turn();
        assert_eq!(w.suspects(a).len(), 4);
    }
    w.read(b, 1);
    w.target.answer(0, 1);
    w.turn();
    assert_eq!(w.completions(b).len(), 1);
    assert_eq!(w.target.quiet(0, crate::world::FakeEndFence::PROOF), 80);
    w.turn();
    let done = w.completions(a);
    assert_eq!(done.len(), 80);
    assert!(done.iter().all(|c| c.proof == crate::world::FakeEndFence::PROOF && c.status.code == Code::PathLost));
}

#[test]
fn a_turn_polls_the_queue_once_however_many_share_it() {
    let mut w = World::new(1, 1, 64);
    let users: Vec<_> = (0..10).map(|n| w.open_ready(0, n, 4)).collect();
    w.turn();
    let polls = |w: &World| w.target.lock().queues[0].polls;
    let before = polls(&w);
    w.turns(50);
    assert_eq!(polls(&w) - before, 50);
    // One that is polled twice a turn, and one that never is, hold nobody up.
    let idle = w.users[users[3]].take();
    for n in 0..50 {
        let before = polls(&w);
        w.read(users[9], n);
        w.target.answer(0, 1);
        w.poll(users[9]);
        w.turn();
        let spent = polls(&w) - before;
        assert!((1..=3).contains(&spent), "{spent} polls");
        assert_eq!(w.completions(users[9]).len(), 1);
    }
    w.users[users[3]] = idle;
    let before = polls(&w);
    w.turns(50);
    assert!((50..=51).contains(&(polls(&w) - before)));
}

#[test]
fn a_user_that_had_no_turns_for_a_while_moves_the_queue_in_its_first() {
    let mut w = World::new(1, 1, 64);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    w.read(b, 1);
    for n in 0..3 {
        w.read(a, n);
        w.pass(Duration::from_micros(1));
        w.poll(a);
    }
    w.target.answer(0, 4);
    w.pass(Duration::from_micros(1));
    w.poll(b);
    assert_eq!(w.completions(b).len(), 1);
}

#[test]
fn a_turn_that_only_brings_outcomes_elsewhere_is_a_busy_one() {
    let mut w = World::new(2, 1, 64);
    let (_, asker) = (w.open_ready(0, 1, 4), w.open_ready(1, 2, 4));
    w.read(asker, 1);
    w.settle(0);
    w.target.answer(0, 1);
    let mut poll = || {
        w.now = w.now.after(Duration::from_micros(1));
        let at = &mut w.reactors[0];
        at.pollers[0].poll(&mut Cx { now: w.now, segs: &mut at.segs, reactor: 0 })
    };
    assert_eq!([poll(), poll()], [Turn::Busy, Turn::Idle]);
    // So is one that finds requests before anybody rang.
    w.try_send(asker, 2, false, 1).unwrap();
    let at = &mut w.reactors[0];
    let turn = at.pollers[0].poll(&mut Cx { now: w.now, segs: &mut at.segs, reactor: 0 });
    assert_eq!((turn, w.target.running(0).len()), (Turn::Busy, 1));
}

#[test]
fn a_closed_user_takes_nothing_however_many_others_there_are() {
    let mut w = World::new(2, 1, 64);
    let users = [(0, 1), (1, 2), (1, 3), (0, 4)].map(|(reactor, unit)| w.open_ready(reactor, unit, 4));
    for user in users {
        w.close(user);
        assert_eq!(w.submit(user, Io::flush(1)).unwrap_err().why, RefusedWhy::Gone, "user {user}");
        assert_eq!(w.health(user), Health::Down);
    }
}

#[test]
fn outcomes_come_in_their_own_turn_whoever_joined_last() {
    let mut w = World::new(1, 1, 64);
    let users: Vec<_> = (0..8).map(|n| w.open_ready(0, n, 4)).collect();
    for _ in 0..3 {
        w.turns(2);
        users.iter().for_each(|&user| w.read(user, 1));
        w.target.answer(0, 8);
        w.turn();
        let late: Vec<_> = users.iter().filter(|&&user| w.completions(user).len() != 1).collect();
        assert!(late.is_empty(), "users {late:?} wait for another turn");
    }
}

#[test]
fn a_sleep_names_each_descriptor_once_however_many_share_the_queue() {
    let mut w = World::new(2, 1, 64);
    for n in 0..64 {
        w.open_ready(0, n, 4);
    }
    w.open_ready(1, 99, 4);
    w.settle(0);
    let arms = w.target.lock().queues[0].arms;
    let (armed, waits) = w.arm(0);
    assert_eq!(armed, polypath_block::Armed::Sleep);
    assert_eq!(w.target.lock().queues[0].arms, arms + 1, "64 users asked the queue once");
    // Its two, and the bell of the user elsewhere.
    assert_eq!(waits.interests.len(), 3, "{waits:?}");
    // Another sleep, or another collection of what is waited for, has them all again.
    let (_, again) = w.arm(0);
    assert_eq!(again.interests, waits.interests);
    // What comes between two looks keeps the reactor awake.
    w.read(0, 1);
    w.target.answer(0, 1);
    assert!(w.would_wake(0));
    w.turn();
    assert_eq!(w.completions(0).len(), 1);
}

#[test]
fn what_is_done_between_two_looks_counts_also_for_the_same_sleep() {
    let mut w = World::new(1, 1, 64);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    w.settle(0);
    let mut waits = Waits::default();
    let mut arm = |w: &mut World, user: usize| w.with(user, |u, cx| u.queue.arm(cx, &mut waits));
    let arms = |w: &World| w.target.lock().queues[0].arms;
    assert_eq!((arm(&mut w, a), arm(&mut w, b)), (Armed::Sleep, Armed::Sleep));
    // A poll disarms what it polls.
    w.poll(a);
    let before = arms(&w);
    assert_eq!((arm(&mut w, b), arms(&w)), (Armed::Sleep, before + 1));
    // What was submitted must leave, what was kicked must be waited for, and whoever joins or leaves may change what there is to wait for.
    w.with(a, |u, cx| u.queue.submit(cx, Io::flush(1))).unwrap();
    assert_eq!(arm(&mut w, b), Armed::Busy);
    w.kick(a);
    assert_eq!(arm(&mut w, b), Armed::Sleep);
    w.kick(a);
    let before = arms(&w);
    assert_eq!((arm(&mut w, b), arms(&w)), (Armed::Sleep, before + 1));
    w.close(b);
    assert_eq!((arm(&mut w, a), arms(&w)), (Armed::Sleep, before + 2));
    // News of a user's own, whatever was named.
    w.target.answer(0, 1);
    w.poll(b);
    assert_eq!(arm(&mut w, a), Armed::Busy);
}

#[test]
fn deadlines_of_the_queue_and_of_others_are_both_kept() {
    let mut w = World::new(1, 1, 64);
    let users = [w.open_ready(0, 1, 4), w.open_ready(0, 2, 4)];
    w.settle(0);
    let (soon, late) = (w.now.after(Duration::from_secs(1)), w.now.after(Duration::from_secs(2)));
    for (queue, others) in [(soon, late), (late, soon)] {
        w.target.lock().queues[0].deadline = Some(queue);
        let mut waits = Waits::default();
        waits.until(others);
        let arms = w.target.lock().queues[0].arms;
        for user in users {
            assert_eq!(w.with(user, |u, cx| u.queue.arm(cx, &mut waits)), Armed::Sleep);
            assert_eq!(waits.deadline, Some(soon));
        }
        assert_eq!(w.target.lock().queues[0].arms, arms + 1, "what is there is not named again");
        // The descriptors are in the list, but another deadline is.
        for other in [None, Some(late.after(Duration::from_secs(1)))] {
            waits.deadline = other;
            w.with(users[0], |u, cx| u.queue.arm(cx, &mut waits));
            assert_eq!(waits.deadline, Some(queue));
        }
    }
}

#[test]
fn a_line_whose_turn_comes_while_its_unit_is_down_fails_alone() {
    let mut w = World::new(1, 1, 1);
    let users = [(1, 4), (2, 4), (1, 4)].map(|(unit, depth)| w.open_ready(0, unit, depth));
    users.iter().for_each(|&user| assert_eq!(w.fill(user, 0), 4));
    w.turn();
    w.target.lock().down.insert(UnitId(2));
    let mut ok = [0; 3];
    for _ in 0..8 {
        w.target.answer(0, 1);
        w.turn();
        assert_eq!(w.target.lock().queues[0].unkicked, 0, "what left a line was not kicked");
        for (at, &user) in users.iter().enumerate() {
            for c in w.completions(user) {
                assert_eq!(c.status.is_ok(), at != 1, "user {at}: {c:?}");
                ok[at] += usize::from(c.status.is_ok());
            }
        }
    }
    assert_eq!(ok, [4, 0, 4]);
}

#[test]
fn a_suspect_that_is_told_twice_counts_once() {
    let mut w = World::new(2, 1, 8);
    for user in [w.open_ready(0, 1, 4), w.open_ready(1, 2, 4)] {
        w.write(user, 5);
        w.turns(2);
        w.target.lose(0, crate::world::FakeEndFence::TERMS);
        let again = w.target.lock().queues[0].outbox.suspects.clone();
        w.target.lock().queues[0].outbox.suspects.extend(again);
        w.turns(2);
        assert_eq!(w.suspects(user).len(), 1);
        assert_eq!(w.fill(user, 10), 4, "its depth is as it was");
        w.target.quiet(0, crate::world::FakeEndFence::PROOF);
        w.turns(2);
        w.target.answer(0, 8);
        w.turns(2);
        assert_eq!(w.completions(user).len(), 5);
        w.close(user);
        w.turns(2);
        assert!(w.is_drained(user));
    }
}
