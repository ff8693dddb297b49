//! Users of one queue that rest one by one: whoever's turn brings something for another wakes him by name.

use crate::world::World;
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
