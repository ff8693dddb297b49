//! Users of one queue that rest one by one: whoever's turn brings something for another wakes him by name.

use crate::world::{FakeEndFence, World};
use polypath_block::{Armed, Parked, RefusedWhy, UnitId, Waits};

/// Asks one user alone whether he may rest, as number `user`.
fn rest(w: &mut World, user: usize) -> (Armed, Waits) {
    let mut waits = Waits::default();
    waits.park(Parked::new(user as u32));
    (w.with(user, |u, cx| u.queue.arm(cx, &mut waits)), waits)
}

fn woken() -> Vec<u32> {
    let mut woken = Vec::new();
    Parked::take_woken(&mut woken);
    woken.into_iter().map(Parked::number).collect()
}

/// A world of one reactor whose users are ready and have nothing to do.
fn idle(users: u64) -> (World, Vec<usize>) {
    let mut w = World::new(1, 1, 64);
    let users = (0..users).map(|unit| w.open_ready(0, unit, 4)).collect();
    w.settle(0);
    assert!(woken().is_empty());
    (w, users)
}

/// Turns of one user only, the others rest.
fn turns_of(w: &mut World, user: usize) {
    for _ in 0..3 {
        w.now = w.now.after(std::time::Duration::from_micros(1));
        w.poll(user);
    }
}

#[test]
fn the_last_one_awake_names_what_the_queue_waits_for() {
    let (mut w, users) = idle(4);
    for &user in &users[..3] {
        let (armed, waits) = rest(&mut w, user);
        assert_eq!((armed, waits.interests.len()), (Armed::Sleep, 0), "somebody else polls the queue");
    }
    let (armed, waits) = rest(&mut w, users[3]);
    assert_eq!(armed, Armed::Sleep);
    assert!(!waits.interests.is_empty(), "nobody else does");
    // One looks and rests again: the last one is still woken by the queue.
    turns_of(&mut w, users[0]);
    assert_eq!(rest(&mut w, users[0]).1.interests.len(), 0);
    // That one wakes and goes on: it polls. Then it goes to rest as the last.
    turns_of(&mut w, users[3]);
    turns_of(&mut w, users[0]);
    assert_eq!(rest(&mut w, users[3]).1.interests.len(), 0, "the first one is awake");
    assert_eq!(rest(&mut w, users[0]).1.interests, waits.interests);
    assert!(woken().is_empty());
}

#[test]
fn what_comes_in_anothers_turn_wakes_its_user() {
    let (mut w, users) = idle(3);
    w.read(users[0], 7);
    let (armed, waits) = rest(&mut w, users[0]);
    assert!(armed == Armed::Sleep && !waits.interests.is_empty(), "who waits for an answer names the queue himself");
    assert_eq!(rest(&mut w, users[1]).0, Armed::Sleep);
    w.target.answer(0, 1);
    turns_of(&mut w, users[2]);
    assert_eq!(woken(), [users[0] as u32]);
    w.poll(users[0]);
    assert_eq!(w.completions(users[0]).len(), 1);
    assert_eq!(rest(&mut w, users[0]).0, Armed::Sleep);
    // What became suspect as well, and what is answered before he rests keeps him from it.
    w.write(users[1], 1);
    assert_eq!(rest(&mut w, users[1]).0, Armed::Sleep);
    w.target.answer(0, 1);
    turns_of(&mut w, users[2]);
    assert_eq!(woken(), [users[1] as u32]);
    w.poll(users[0]);
    w.read(users[0], 8);
    w.target.answer(0, 1);
    turns_of(&mut w, users[2]);
    assert_eq!((rest(&mut w, users[0]).0, woken()), (Armed::Busy, vec![]));
}

/// Its descriptor may say nothing any more when the reactor looks, for it was read in that turn.
#[test]
fn what_becomes_suspect_in_anothers_turn_wakes_its_user() {
    let (mut w, users) = idle(3);
    // One goes down with the tag that it has, the other one with a tag of the owner's.
    w.read(users[0], 7);
    w.read(users[1], 7);
    for &user in &users[..2] {
        assert_eq!(rest(&mut w, user).0, Armed::Sleep);
    }
    w.target.lose(0, FakeEndFence::TERMS);
    turns_of(&mut w, users[2]);
    assert_eq!(woken(), [users[0] as u32, users[1] as u32]);
    for &user in &users[..2] {
        turns_of(&mut w, user);
        assert_eq!(w.suspects(user).len(), 1);
        let (armed, waits) = rest(&mut w, user);
        assert!(armed == Armed::Sleep && !waits.interests.is_empty(), "and who waits for a fence, too");
    }
    w.target.quiet(0, FakeEndFence::PROOF);
    turns_of(&mut w, users[2]);
    assert_eq!(woken(), [users[0] as u32, users[1] as u32]);
}

#[test]
fn who_waits_for_room_does_not_rest() {
    let mut w = World::new(1, 1, 2);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    w.settle(0);
    assert_eq!(w.fill(a, 0), 4);
    assert_eq!(w.try_send(b, 9, false, 1).map_err(|r| r.why), Ok::<(), RefusedWhy>(()));
    assert_eq!(rest(&mut w, b).0, Armed::Busy);
    woken();
}

/// The user that polls the queue goes, or the queue loses its way: all that rely on him look.
#[test]
fn who_relied_on_one_that_goes_is_woken() {
    let (mut w, users) = idle(3);
    for &user in &users[..2] {
        assert_eq!(rest(&mut w, user).0, Armed::Sleep);
    }
    w.close(users[2]);
    assert_eq!(woken(), [users[0] as u32, users[1] as u32]);
    turns_of(&mut w, users[0]);
    turns_of(&mut w, users[1]);
    assert_eq!(rest(&mut w, users[0]).1.interests.len(), 0);
    w.drop_user(users[1]);
    assert_eq!(woken(), [users[0] as u32], "also of one that is dropped as it stands");
    turns_of(&mut w, users[0]);
    assert!(!rest(&mut w, users[0]).1.interests.is_empty());
}

#[test]
fn a_way_that_is_lost_wakes_all_that_rest() {
    let (mut w, users) = idle(3);
    for &user in &users[..2] {
        assert_eq!(rest(&mut w, user).0, Armed::Sleep);
    }
    w.target.lock().down.extend((0..3).map(UnitId));
    turns_of(&mut w, users[2]);
    assert_eq!(woken(), [users[0] as u32, users[1] as u32]);
}

/// What other threads have to say to a queue ends a sleep only while the queue listens, and a turn of anybody's ends that. Its deadlines move
/// as well.
#[test]
fn what_the_last_one_named_is_named_anew_when_somebody_has_polled_the_queue_since() {
    let (mut w, users) = idle(3);
    for &user in &users {
        assert_eq!(rest(&mut w, user).0, Armed::Sleep);
    }
    assert!(w.target.lock().queues[0].listens);
    turns_of(&mut w, users[0]);
    let (armed, waits) = rest(&mut w, users[0]);
    assert!(w.target.lock().queues[0].listens, "all rest, and nobody hears");
    assert_eq!((armed, waits.interests.len()), (Armed::Sleep, 0), "the last one is woken by it still");
    let at = w.now.after(std::time::Duration::from_millis(3));
    turns_of(&mut w, users[1]);
    w.target.lock().queues[0].deadline = Some(at);
    assert_eq!(rest(&mut w, users[1]).1.deadline, Some(at), "nobody who rests knows of it");
    // Now somebody does.
    turns_of(&mut w, users[0]);
    assert_eq!(rest(&mut w, users[0]).1.deadline, None);
    turns_of(&mut w, users[0]);
    w.target.lock().queues[0].unkicked = 1;
    assert_eq!(rest(&mut w, users[0]).0, Armed::Busy);
    assert!(woken().is_empty());
}

/// One has only to wait until the queue has drained, which happens in another one's turn.
#[test]
fn who_waits_for_the_end_of_a_queue_is_woken_by_it() {
    let (mut w, users) = idle(2);
    w.read(users[0], 7);
    users.iter().for_each(|&user| w.close(user));
    turns_of(&mut w, users[1]);
    woken();
    assert!(rest(&mut w, users[1]).0 == Armed::Sleep && !w.is_drained(users[1]));
    w.target.answer(0, 1);
    turns_of(&mut w, users[0]);
    assert!(w.is_drained(users[0]) && w.is_drained(users[1]));
    assert_eq!(woken(), [users[1] as u32], "it may go, and is not told");
    // Once: two that stay for a while do not keep each other awake.
    turns_of(&mut w, users[1]);
    rest(&mut w, users[1]);
    turns_of(&mut w, users[0]);
    assert!(woken().is_empty());
}

/// One that was closed is dropped with requests that nobody looks after any more; others of its had waited for room, so that the queue may be
/// closed now.
#[test]
fn who_rests_is_woken_when_one_that_was_closed_is_dropped() {
    let mut w = World::new(1, 1, 2);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    w.settle(0);
    assert_eq!(w.fill(a, 0), 4);
    w.close(a);
    w.close(b);
    turns_of(&mut w, a);
    turns_of(&mut w, b);
    woken();
    assert_eq!(rest(&mut w, b).0, Armed::Sleep);
    w.drop_user(a);
    assert_eq!(woken(), [b as u32]);
    turns_of(&mut w, b);
    assert!(w.target.lock().queues[0].closed, "nothing waits any more");
    w.target.answer(0, 2);
    turns_of(&mut w, b);
    assert!(w.is_drained(b));
}

/// The way is down already when the queue loses its place at the controller: there is no other news than that.
#[test]
fn a_queue_that_becomes_surplus_while_its_way_is_down_wakes_all_that_rest() {
    let (mut w, users) = idle(3);
    // It is not over yet.
    w.read(users[2], 7);
    w.target.lock().down.extend((0..3).map(UnitId));
    (0..3).for_each(|_| w.turn());
    woken();
    for &user in &users[..2] {
        assert_eq!(rest(&mut w, user).0, Armed::Sleep);
    }
    w.target.lock().queues[0].surplus = true;
    turns_of(&mut w, users[2]);
    assert_eq!(woken(), [users[0] as u32, users[1] as u32], "they are to look for another one");
}
