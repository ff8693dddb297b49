//! Batches: what is taken of them, whose completions are whose, and tags that users give as they like.

use crate::world::{FakeEndFence, World};
use polypath_block::{Code, Io, RefusedWhy, Rest, SegSpan};

fn reads(tags: &[u64]) -> Vec<Io> {
    tags.iter().map(|&tag| Io::read(tag, tag % 64, 1, SegSpan::EMPTY)).collect()
}

fn submit(w: &mut World, user: usize, tags: &[u64]) -> Result<(), Rest> {
    w.with(user, |u, cx| {
        let taken = u.queue.submit_all(cx, &reads(tags));
        u.queue.kick(cx);
        taken
    })
}

fn tags(w: &mut World, user: usize) -> Vec<u64> {
    let mut tags: Vec<u64> = w.completions(user).iter().map(|c| c.tag).collect();
    tags.sort_unstable();
    tags
}

/// Everything that runs is answered; a user that has room again and a turn gets it.
fn answer_all(w: &mut World) {
    for _ in 0..4 {
        w.target.answer(0, usize::MAX);
        w.turns(2);
    }
}

#[test]
fn a_batch_is_taken_as_far_as_the_depth_goes() {
    let mut w = World::new(1, 1, 8);
    let user = w.open_ready(0, 1, 4);
    assert_eq!(submit(&mut w, user, &[]), Ok(()));
    assert_eq!(submit(&mut w, user, &[1, 2, 3, 4, 5, 6]), Err(Rest { taken: 4, why: RefusedWhy::Full }));
    assert_eq!(submit(&mut w, user, &[5]), Err(Rest { taken: 0, why: RefusedWhy::Full }));
    answer_all(&mut w);
    assert_eq!(tags(&mut w, user), [1, 2, 3, 4]);
    w.close(user);
    assert_eq!(submit(&mut w, user, &[1]), Err(Rest { taken: 0, why: RefusedWhy::Gone }));
}

/// What the queue has no room for waits in the user's line, of a batch as well, whatever the batch was before.
#[test]
fn a_batch_waits_for_room_like_everybody() {
    let mut w = World::new(1, 1, 3);
    let (a, b) = (w.open_ready(0, 1, 6), w.open_ready(0, 2, 6));
    assert_eq!(submit(&mut w, a, &[1, 2, 3, 4, 5]), Ok(()));
    assert_eq!(submit(&mut w, b, &[1, 2]), Ok(()));
    assert_eq!(w.target.running(0).len(), 3);
    answer_all(&mut w);
    assert_eq!((tags(&mut w, a), tags(&mut w, b)), (vec![1, 2, 3, 4, 5], vec![1, 2]));
}

/// Users know nothing of each other's tags, nor of ours.
#[test]
fn the_same_tags_of_several_users_are_told_apart() {
    let mut w = World::new(1, 1, 64);
    let users = [1, 2, 3].map(|unit| w.open_ready(0, unit, 16));
    let odd = [0, 1, 1 << 62, 1 << 62 | 1, 1 << 63, u64::MAX];
    for round in 0..6 {
        let own = &odd[..=round];
        for &user in &users {
            assert_eq!(submit(&mut w, user, &own[..round / 2]), Ok(()));
            assert_eq!(submit(&mut w, user, &own[round / 2..]), Ok(()));
        }
        // One of them is answered alone: it is the first user's.
        w.target.answer(0, 1);
        w.turn();
        let mut first = tags(&mut w, users[0]);
        assert_eq!((first.len(), tags(&mut w, users[1]).len(), tags(&mut w, users[2]).len()), (1, 0, 0));
        answer_all(&mut w);
        first.extend(tags(&mut w, users[0]));
        first.sort_unstable();
        assert_eq!(first, own, "round {round}");
        assert_eq!((tags(&mut w, users[1]), tags(&mut w, users[2])), (own.to_vec(), own.to_vec()));
    }
    users.into_iter().for_each(|user| w.leave(user));
}

/// Whoever's requests went down as they were, their ends come once, and are his alone, also after he has gone.
#[test]
fn what_was_lost_in_a_batch_is_told_once_and_to_its_user() {
    let mut w = World::new(1, 1, 64);
    let (a, b) = (w.open_ready(0, 1, 4), w.open_ready(0, 2, 4));
    assert_eq!((submit(&mut w, a, &[1, 2]), submit(&mut w, b, &[1, 2])), (Ok(()), Ok(())));
    w.target.lose(0, FakeEndFence::TERMS);
    w.turns(2);
    for user in [a, b] {
        let mut suspects: Vec<u64> = w.suspects(user).iter().map(|s| s.tag).collect();
        suspects.sort_unstable();
        assert_eq!(suspects, [1, 2]);
    }
    // Tags that are given again while they are suspect; the depth is for what is in flight.
    assert_eq!(submit(&mut w, a, &[1, 2, 3, 4]), Ok(()));
    w.target.answer(0, usize::MAX);
    w.turns(2);
    assert!(w.completions(a).iter().all(|c| c.status.code == Code::Ok));
    w.drop_user(a);
    w.target.quiet(0, FakeEndFence::PROOF);
    w.turns(2);
    assert_eq!(tags(&mut w, b), [1, 2]);
    assert_eq!(submit(&mut w, b, &[7, 8, 9, 10]), Ok(()), "nothing counts as open that is not");
    answer_all(&mut w);
    assert_eq!(tags(&mut w, b), [7, 8, 9, 10]);
    w.leave(b);
}

/// Whoever waits for room goes first, whoever comes when there is some: also with a batch that might go down as it is.
#[test]
fn a_batch_does_not_overtake_what_waits_for_room() {
    let mut w = World::new(1, 1, 64);
    let (a, b) = (w.open_ready(0, 1, 8), w.open_ready(0, 2, 8));
    w.target.lock().queues[0].says_full = true;
    assert_eq!(submit(&mut w, a, &[1, 2, 3]), Ok(()));
    w.target.lock().queues[0].says_full = false;
    for batch in [&[11, 12][..], &[13]] {
        assert_eq!(submit(&mut w, b, batch), Ok(()));
    }
    assert_eq!(w.target.submitted(0), [], "there is a line, and its end is where they go");
    assert_eq!(submit(&mut w, a, &[4]), Ok(()));
    w.turn();
    assert_eq!(w.target.submitted(0), [(1, 1), (2, 11), (1, 2), (2, 12), (1, 3), (2, 13), (1, 4)]);
    answer_all(&mut w);
    assert_eq!((tags(&mut w, a), tags(&mut w, b)), (vec![1, 2, 3, 4], vec![11, 12, 13]));
}
