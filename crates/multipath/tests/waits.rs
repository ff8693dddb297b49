//! What waits, for what, and for how long: late paths, unreachable caches, removals, fences in a row.

use crate::common::{BLOCKS, Setup, ms};
use polypath_block::{Code, Identifier, Io, Op, SegSpan};
use polypath_multipath::{EventKind, GroupConfig, MatchPolicy, PathState};
use polypath_sim::{Guest, Mix, PathOptions};

const LIGHT: Mix = Mix { depth: 8, ..Mix::ALL };

/// Has the path come into use? Asks the events only: a question to the group would make it look.
fn came_up(t: &Setup, name: &str) -> bool {
    let up = |e: &polypath_multipath::Event| {
        matches!(e.kind, EventKind::PathUp { .. }) && e.path.as_ref().is_some_and(|p| &*p.1 == name)
    };
    t.drain_events().iter().any(up)
}

fn two_caches(seed: u64) -> Setup {
    Setup::new(seed, 2, GroupConfig::new("disk"), |i, o| {
        o.write_cache = true;
        o.cache_domain = format!("controller {i}");
    })
}

/// Something written through both paths, and nothing in flight.
fn dirtied(t: &Setup) -> Guest {
    let mut guest = t.guest(Mix { read: 0, flush: 0, zero: 0, fua: 0, most_blocks: 4, depth: 32 }, 0);
    t.run(&mut guest, ms(3));
    guest.set_submitting(false);
    t.run(&mut guest, ms(10));
    assert_eq!(guest.in_flight(), 0);
    guest
}

#[test]
fn a_path_that_answers_late_is_taken_into_use_with_nobody_asking() {
    let mut t = Setup::plain(1, 1);
    let mut late = PathOptions::new("p1", BLOCKS);
    late.starts_down = true;
    t.add(late);
    let mut guest = t.guest(LIGHT, 0);
    t.run(&mut guest, ms(5));
    assert!(!came_up(&t, "p1"));
    t.paths[1].set_refusing(false);
    t.run(&mut guest, ms(450));
    assert!(came_up(&t, "p1"), "only the queue has looked, and it must");
    assert!(t.stats(1).ios > 0);
    t.finish_clean(&mut guest);
}

#[test]
fn a_quarantined_path_comes_back_with_nobody_asking() {
    let t = Setup::plain(2, 2);
    // Reads wait for no fence: the queue lets go of the path at once, and must not forget it.
    let mut guest = t.guest(Mix { read: 100, ..LIGHT }, 0);
    t.run(&mut guest, ms(5));
    t.paths[1].swap_identity(vec![Identifier::Nguid([0xBB; 16])], true);
    t.run(&mut guest, ms(300));
    t.kinds();
    t.paths[1].swap_identity(vec![Identifier::Nguid([0xD1; 16])], false);
    t.run(&mut guest, ms(500));
    assert!(came_up(&t, "p1"), "only the queue has looked, and it must");
    let before = t.stats(1).ios;
    t.run(&mut guest, ms(10));
    assert!(t.stats(1).ios > before);
    t.finish_clean(&mut guest);
}

#[test]
fn flushes_that_wait_for_their_cache_hold_nothing_else_up() {
    let t = two_caches(4);
    let mut guest = dirtied(&t);
    t.paths[1].set_refusing(true);
    t.paths[1].reset();
    t.run(&mut guest, ms(10));
    for _ in 0..20 {
        assert!(guest.submit(Io::flush(0)));
    }
    guest.set_mix(Mix { read: 100, depth: 21, ..Mix::ALL });
    guest.set_submitting(true);
    let before = guest.completed;
    t.run(&mut guest, ms(100));
    let done = guest.completed - before;
    assert!(done >= 95, "one read after the other, of at most a millisecond each, and only {done} in 100 ms");
    t.paths[1].set_refusing(false);
    t.finish_clean(&mut guest);
}

#[test]
fn a_flush_that_waits_while_its_path_is_removed_learns_that_the_cache_is_clean() {
    let t = two_caches(6);
    let mut guest = dirtied(&t);
    t.group.remove_path(t.ids[1]).expect("there");
    // The queue does not know yet; the path takes nothing any more, so the flush waits for its cache.
    assert!(guest.submit(Io::flush(0)));
    t.run(&mut guest, ms(50));
    assert_eq!(t.group.paths().len(), 1, "removed");
    assert_eq!(guest.in_flight(), 0);
    assert!(guest.failed.is_empty(), "the removal flushed it, nothing was lost: {:?}", guest.failed);
    t.finish_clean(&mut guest);
}

#[test]
fn every_flush_that_waits_for_a_cache_hears_of_its_loss() {
    let t = two_caches(7);
    let mut guest = dirtied(&t);
    t.paths[1].set_refusing(true);
    t.paths[1].reset();
    t.run(&mut guest, ms(10));
    assert!(guest.submit(Io::flush(0)) && guest.submit(Io::flush(0)));
    t.run(&mut guest, ms(50));
    assert_eq!(guest.in_flight(), 2, "the cache may come back");
    t.paths[1].give_up("controller burnt down");
    t.run(&mut guest, ms(50));
    let codes: Vec<_> = guest.failed.iter().map(|f| (f.0, f.1.code)).collect();
    assert_eq!(codes, [(Op::Flush, Code::CacheLost); 2], "both were asked to cover what is gone");
    let done = guest.completed;
    assert!(guest.submit(Io::flush(0)));
    t.run(&mut guest, ms(10));
    assert_eq!((guest.completed, guest.failed.len()), (done + 1, 2), "later ones have nothing to do with it");
}

#[test]
fn time_behind_fences_is_no_time_without_a_path() {
    // Twice in a row the only path takes a write and falls silent; each time it is back long before the fence is over.
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 1000;
    let t = Setup::new(1, 1, config, |_, _| {});
    let mut guest = t.guest(Mix::WRITES_QD1, 0);
    guest.set_submitting(false);
    t.paths[0].set_silent(true);
    assert!(guest.submit(Io::write(0, 7, 1, SegSpan::EMPTY)));
    t.run(&mut guest, ms(700));
    t.paths[0].set_silent(false);
    t.run(&mut guest, ms(1700));
    assert_eq!(t.stats(0).state, PathState::Usable);
    t.paths[0].set_silent(true);
    t.run(&mut guest, ms(800));
    t.paths[0].set_silent(false);
    t.run(&mut guest, ms(3000));
    assert!(guest.failed.is_empty(), "it was never a second without a path: {:?}", guest.failed);
    assert_eq!(guest.completed, 1);
    t.finish_clean(&mut guest);
}

#[test]
fn a_compare_is_sent_again_without_a_fence_and_says_the_truth() {
    let t = Setup::plain(1, 2);
    let mut guest = t.guest(Mix::WRITES_QD1, 0);
    guest.set_submitting(false);
    t.run(&mut guest, ms(5));
    // The only buffer holds what was written to block 7 last.
    assert!(guest.submit(Io::write(0, 7, 1, SegSpan::EMPTY)));
    t.run(&mut guest, ms(5));
    for (lba, miscompares) in [(7, 0), (9, 1)] {
        t.paths.iter().for_each(|p| p.set_silent(true));
        let done = guest.completed;
        assert!(guest.submit(Io { op: Op::Compare, ..Io::write(0, lba, 1, SegSpan::EMPTY) }));
        t.run(&mut guest, ms(100));
        assert_eq!(guest.completed, done);
        t.paths.iter().for_each(|p| p.set_silent(false));
        t.paths.iter().for_each(|p| p.reset());
        t.run(&mut guest, ms(600));
        assert_eq!((guest.completed, guest.miscompares), (done + 1, miscompares));
    }
    assert!(t.stats(0).redriven + t.stats(1).redriven >= 2, "they were sent again");
    t.finish_clean(&mut guest);
}

#[test]
fn paths_that_differ_from_each_other_do_not_share_a_disk() {
    // Nothing differs from a first path without a name, but the two others cannot both be its disk.
    let mut config = GroupConfig::new("disk");
    config.matching = MatchPolicy::Stated;
    let t = Setup::new(1, 3, config, |i, o| {
        o.identifiers = [vec![], vec![Identifier::Nguid([1; 16])], vec![Identifier::Nguid([2; 16])]][i].clone();
    });
    let states: Vec<_> = t.group.statistics().iter().map(|s| s.state).collect();
    assert_eq!(states, [PathState::Usable, PathState::Usable, PathState::Quarantined]);
    assert!(t.stats(2).why.contains("p1"), "it says whom it differs from: {}", t.stats(2).why);
    // The same where a worldwide identifier agrees with the first path and another differs from the second.
    let uuid = Identifier::Uuid([7; 16]);
    let t = Setup::new(1, 3, GroupConfig::new("disk"), |i, o| {
        let nguid = |n| Identifier::Nguid([n; 16]);
        o.identifiers = [vec![uuid.clone()], vec![uuid.clone(), nguid(1)], vec![uuid.clone(), nguid(2)]][i].clone();
    });
    assert_eq!(t.stats(2).state, PathState::Quarantined);
    // Once the other one is gone, nothing speaks against it.
    t.group.remove_path(t.ids[1]).expect("there");
    assert_eq!(t.stats(2).state, PathState::Usable);
}
