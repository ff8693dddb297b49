//! Paths: who joins, who is left, who comes back, and what the group shows meanwhile.

use crate::common::{BLOCKS, Setup, ms};
use polypath_block::{
    Access, Code, Device, DeviceState, Health, Identifier, Io, Limits, Op, QueueConfig, SegSpan, contract,
};
use polypath_multipath::{EventKind, Group, GroupConfig, MatchPolicy, PathConfig, PathState, SelectorKind, aggregate};
use polypath_sim::{Mix, PathOptions, Rig, World, run};
use std::sync::Arc;

const OTHER: Identifier = Identifier::Nguid([0xBB; 16]);

fn group_of(world: &World, n: usize, edit: impl Fn(usize, &mut PathOptions)) -> Arc<Group> {
    let group = Group::new(GroupConfig::new("disk"));
    for i in 0..n {
        let mut options = PathOptions::new(format!("p{i}"), 2048);
        edit(i, &mut options);
        group.add_path(PathConfig::new(world.path(options))).expect("a new path");
    }
    group
}

#[test]
fn a_group_keeps_the_contract() {
    for n in [1, 4] {
        let world = World::new(3, 2048);
        contract::check(&mut Rig { device: group_of(&world, n, |_, _| {}), world });
    }
}

#[test]
fn a_group_that_must_split_keeps_the_contract() {
    let world = World::new(3, 2048);
    let small = Limits { max_transfer_bytes: 2048, max_segments: 2, ..Limits::UNLIMITED };
    let group = group_of(&world, 3, |i, o| {
        if i > 0 {
            o.limits = small;
        }
        o.depth = 8;
        o.write_cache = true;
        o.cache_domain = format!("d{i}");
    });
    group.refresh();
    contract::check(&mut Rig { device: group, world });
}

#[test]
fn a_group_of_groups_keeps_the_contract() {
    let world = World::new(3, 2048);
    let outer = Group::new(GroupConfig::new("outer"));
    outer.add_path(PathConfig::new(group_of(&world, 2, |_, _| {}))).expect("a group is a path");
    contract::check(&mut Rig { device: outer, world });
}

#[test]
fn smaller_paths_are_split_for_once_frozen() {
    let mut t = Setup::plain(5, 1);
    t.group.freeze();
    let tiny =
        Limits { max_transfer_bytes: 512, max_write_zeroes_blocks: 1, max_discard_blocks: 2, ..Limits::UNLIMITED };
    for name in ["p1", "p2"] {
        let mut o = PathOptions::new(name, BLOCKS);
        o.limits = tiny;
        t.add(o);
    }
    let DeviceState::Live(info) = t.group.state() else { panic!("live") };
    assert_eq!(info.limits.max_transfer_bytes, 0, "what was promised stays");
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(20));
    t.paths[0].set_refusing(true);
    t.paths[0].reset();
    t.run(&mut guest, ms(20));
    assert!(t.stats(1).ios > 500);
    t.paths[0].set_refusing(false);
    t.finish_clean(&mut guest);
}

#[test]
fn strangers_are_quarantined_with_a_reason() {
    let mut t = Setup::plain(1, 1);
    let mut add = |name: &str, edit: &dyn Fn(&mut PathOptions)| {
        let mut o = PathOptions::new(name, BLOCKS);
        edit(&mut o);
        t.add(o);
        let s = t.stats_of(name).expect("there");
        (s.state, s.why)
    };
    let (state, why) = add("other", &|o| o.identifiers = vec![OTHER]);
    assert!(state == PathState::Quarantined && why.contains("another disk"), "{why}");
    let (state, why) = add("nameless", &|o| o.identifiers = vec![]);
    assert!(state == PathState::Quarantined && why.contains("state the match"), "{why}");
    let (state, why) = add("small", &|o| o.blocks = BLOCKS - 1);
    assert!(state == PathState::Quarantined && why.contains("promised"), "{why}");
    let (state, _) = add("large", &|o| o.blocks = BLOCKS + 100);
    assert_eq!(state, PathState::Usable);
    let DeviceState::Live(info) = t.group.state() else { panic!("live") };
    assert_eq!(info.geometry.blocks, BLOCKS, "the group shows the least of its paths");
    let quarantines = t.kinds().iter().filter(|k| matches!(k, EventKind::Quarantined { .. })).count();
    assert_eq!(quarantines, 3);
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(5));
    assert_eq!(t.stats_of("other").expect("there").ios, 0);
    t.finish_clean(&mut guest);
}

#[test]
fn a_stated_match_admits_the_nameless_and_pins() {
    let mut config = GroupConfig::new("disk");
    config.matching = MatchPolicy::Stated;
    let t = Setup::new(1, 3, config, |i, o| o.identifiers = if i == 2 { vec![OTHER] } else { vec![] });
    let states: Vec<_> = t.group.statistics().iter().map(|s| s.state).collect();
    assert_eq!(states, [PathState::Usable; 3], "nothing differs from a first path without a name");
    let mut config = GroupConfig::new("disk");
    config.matching = MatchPolicy::Pinned(vec![OTHER]);
    let t = Setup::new(1, 2, config, |i, o| {
        if i == 1 {
            o.identifiers = vec![OTHER];
        }
    });
    let states: Vec<_> = t.group.statistics().iter().map(|s| s.state).collect();
    assert_eq!(states, [PathState::Quarantined, PathState::Usable], "the first path is held to the pin too");
}

#[test]
fn another_identity_at_a_reconnect_is_quarantined_and_the_old_one_comes_back() {
    let t = Setup::plain(2, 3);
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(5));
    t.paths[1].swap_identity(vec![OTHER], true);
    guest.set_mix(Mix { depth: 8, ..Mix::ALL });
    t.run(&mut guest, ms(300));
    assert_eq!(t.stats(1).state, PathState::Quarantined, "{:?}", t.stats(1));
    t.paths[1].swap_identity(vec![Identifier::Nguid([0xD1; 16])], false);
    // Its old queue is released once its fence is over; then a new one opens.
    guest.set_submitting(false);
    t.run(&mut guest, ms(2300));
    guest.set_submitting(true);
    let s = t.stats(1);
    assert_eq!((s.state, s.recoveries), (PathState::Usable, 1), "{s:?}");
    let before = s.ios;
    t.run(&mut guest, ms(5));
    assert!(t.stats(1).ios > before, "it carries I/O again");
    t.finish_clean(&mut guest);
}

#[test]
fn growth_shows_when_the_last_path_has_it() {
    let t = Setup::plain(2, 3);
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(3));
    t.world.grow_medium(2 * BLOCKS);
    let version = t.group.version();
    t.paths[0].set_blocks(2 * BLOCKS);
    t.paths[1].set_blocks(2 * BLOCKS);
    t.run(&mut guest, ms(3));
    let blocks = || t.group.state().info().map(|i| i.geometry.blocks);
    assert_eq!(blocks(), Some(BLOCKS));
    t.paths[2].set_blocks(2 * BLOCKS);
    t.run(&mut guest, ms(3));
    assert_eq!(blocks(), Some(2 * BLOCKS));
    assert!(t.group.version() > version);
    assert!(t.kinds().contains(&EventKind::Grown { blocks: 2 * BLOCKS }));
    t.oracle.borrow_mut().grow(2 * BLOCKS);
    t.run(&mut guest, ms(10));
    t.paths[0].set_blocks(BLOCKS);
    t.run(&mut guest, ms(3));
    assert_eq!(t.stats(0).state, PathState::Quarantined, "less than promised now");
    t.finish_clean(&mut guest);
}

#[test]
fn optimized_before_non_optimized_before_none() {
    let mut config = GroupConfig::new("disk");
    config.selector = SelectorKind::RoundRobin { min_io: 0 };
    let t = Setup::new(2, 3, config, |i, o| {
        o.access = [Access::Optimized, Access::NonOptimized, Access::Inaccessible][i];
    });
    let ios = || [t.stats(0).ios, t.stats(1).ios, t.stats(2).ios];
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(5));
    assert!(ios()[0] > 0 && ios()[1..] == [0, 0], "{:?}", ios());
    t.paths[0].set_access(Access::Inaccessible);
    t.run(&mut guest, ms(5));
    assert!(ios()[1] > 0 && ios()[2] == 0, "{:?}", ios());
    t.paths[1].set_access(Access::Change);
    t.run(&mut guest, ms(50));
    assert!(guest.in_flight() > 0 && ios()[2] == 0, "they wait: {:?}", ios());
    assert_eq!(guest.health(), Health::Stalled);
    let access = t.group.state().info().map(|i| i.access);
    assert!(access.is_some_and(|a| !a.usable()), "live, and says that it cannot be used now: {access:?}");
    t.paths[2].set_access(Access::Optimized);
    t.run(&mut guest, ms(20));
    assert!(ios()[2] > 0);
    assert!(t.kinds().contains(&EventKind::AccessChanged { access: Access::Change }));
    t.finish_clean(&mut guest);
}

#[test]
fn a_path_that_fails_at_once_does_not_attract_everything() {
    // The rule that uses one path has nothing to spread.
    for selector in SelectorKind::ALL.into_iter().filter(|s| !matches!(s, SelectorKind::Preferred { .. })) {
        let mut config = GroupConfig::new("disk");
        config.selector = selector;
        let t = Setup::new(4, 4, config, |_, _| {});
        let mut guest = t.guest(Mix { depth: 32, ..Mix::ALL }, 0);
        t.run(&mut guest, ms(2));
        t.paths[2].set_fail_at_once(Some(Code::PathProtocol));
        let (before, completed) = (t.stats(2), guest.completed);
        t.run(&mut guest, ms(100));
        let s = t.stats(2);
        let (errors, done) = (s.errors - before.errors, guest.completed - completed);
        assert!(done > 2000, "{selector}: only {done} completed");
        assert!(errors < done / 20, "{selector}: {errors} failed there while {done} completed");
        t.paths[2].set_fail_at_once(None);
        guest.set_submitting(false);
        t.run(&mut guest, ms(1050));
        guest.set_submitting(true);
        t.run(&mut guest, ms(20));
        assert!(t.stats(2).ios > s.ios, "{selector}: it comes back by itself");
        t.finish_clean(&mut guest);
    }
}

#[test]
fn without_a_path_requests_wait_and_then_fail_clearly() {
    let mut config = GroupConfig::new("disk");
    config.no_path_timeout_ms = 2000;
    let t = Setup::new(4, 2, config, |_, _| {});
    let mut guest = t.guest(Mix { depth: 16, ..Mix::ALL }, 0);
    t.run(&mut guest, ms(3));
    t.paths.iter().for_each(|p| p.set_refusing(true));
    t.paths.iter().for_each(|p| p.reset());
    guest.set_submitting(false);
    t.run(&mut guest, ms(10));
    for lba in 0..4 {
        guest.submit(Io::read(0, lba, 1, SegSpan::EMPTY));
    }
    t.run(&mut guest, ms(1900));
    assert!(guest.failed.is_empty(), "{:?}", guest.failed);
    t.run(&mut guest, ms(130));
    let reads =
        |g: &polypath_sim::Guest| g.failed.iter().filter(|f| f.0 == Op::Read && f.1.code == Code::NoPath).count();
    assert!(reads(&guest) >= 4, "{:?}", guest.failed);
    t.run(&mut guest, ms(4200));
    assert_eq!(guest.in_flight(), 0, "changes too, once they were quiet");
    assert!(guest.failed.iter().all(|f| f.1.code == Code::NoPath), "{:?}", guest.failed);
    t.paths.iter().for_each(|p| p.set_refusing(false));
    t.run(&mut guest, ms(400));
    guest.failed.clear();
    guest.set_submitting(true);
    t.run(&mut guest, ms(5));
    t.finish_clean(&mut guest);
}

#[test]
fn the_longest_gap_with_four_paths() {
    for (what, most) in [("silent", 20), ("reset", 5)] {
        let t = Setup::new(6, 4, GroupConfig::new("disk"), |_, o| o.latency_us = (1000, 3000));
        let mut guest = t.guest(Mix { read: 70, flush: 0, zero: 0, fua: 0, ..Mix::ALL }, 0);
        t.run(&mut guest, ms(5));
        match what {
            "silent" => t.paths[0].set_silent(true),
            _ => t.paths[0].reset(),
        }
        t.run(&mut guest, ms(700));
        assert!(guest.longest_gap < ms(most), "{what}: {:?}", guest.longest_gap);
        assert_eq!(t.stats(0).failures, 1);
        t.paths[0].set_silent(false);
        guest.set_mix(Mix { depth: 8, ..Mix::ALL });
        t.run(&mut guest, ms(500));
        assert_eq!(t.stats(0).recoveries, 1);
        t.finish_clean(&mut guest);
    }
    // One write at a time has nothing else to do: its gap is detection plus fence, no more.
    let t = Setup::plain(6, 4);
    let mut guest = t.guest(Mix::WRITES_QD1, 0);
    t.run(&mut guest, ms(5));
    t.paths[1].set_silent(true);
    t.run(&mut guest, ms(6000));
    assert!((ms(2050)..ms(2050 + 500 + 250)).contains(&guest.longest_gap), "{:?}", guest.longest_gap);
    t.finish_clean(&mut guest);
}

#[test]
fn events_tell_the_story_of_a_path() {
    let t = Setup::plain(8, 2);
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(3));
    t.kinds();
    t.paths[0].reset();
    t.run(&mut guest, ms(300));
    guest.set_submitting(false);
    t.run(&mut guest, ms(2500));
    let events: Vec<_> =
        t.drain_events().into_iter().filter(|e| e.path.as_ref().is_some_and(|p| &*p.1 == "p0")).collect();
    let at = |what: &str, test: &dyn Fn(&EventKind) -> bool| {
        events.iter().position(|e| test(&e.kind)).unwrap_or_else(|| panic!("no {what} in {events:?}"))
    };
    let down = at("down", &|k| matches!(k, EventKind::PathDown { cause: Code::PathLost, .. }));
    let suspect = at("suspect", &|k| matches!(k, EventKind::PathSuspect { .. }));
    let up = at("up", &|k| matches!(k, EventKind::PathUp { recovered: true }));
    let redriven = at("redriven", &|k| matches!(k, EventKind::Redriven { changes: 1.., .. }));
    assert!(down < up && suspect < up && up < redriven, "{events:?}");
    assert_eq!(
        events.iter().filter(|e| matches!(e.kind, EventKind::PathSuspect { .. })).count(),
        1,
        "once an incident"
    );
    t.finish_clean(&mut guest);
}

#[test]
fn removal_waits_for_every_reactor_and_for_the_fence() {
    let t = Setup::plain(8, 3);
    let (mut a, mut b) = (t.guest(Mix { depth: 32, ..Mix::ALL }, 0), t.guest(Mix { depth: 32, ..Mix::ALL }, 1));
    run(&t.world, &mut [&mut a, &mut b], ms(3));
    t.paths[0].set_silent(true);
    run(&t.world, &mut [&mut a, &mut b], ms(600));
    t.group.remove_path(t.ids[0]).expect("there");
    run(&t.world, &mut [&mut a, &mut b], ms(20));
    assert_eq!(t.stats(0).state, PathState::Removing, "its fence is not over");
    a.set_submitting(false);
    b.set_submitting(false);
    run(&t.world, &mut [&mut a], ms(3000));
    assert!(t.stats_of("p0").is_some(), "one reactor has not released it");
    run(&t.world, &mut [&mut a, &mut b], ms(300));
    assert!(t.stats_of("p0").is_none() && t.kinds().contains(&EventKind::PathRemoved));
    b.finish(ms(1000));
    assert!(b.failed.is_empty() && b.violations.is_empty());
    t.finish_clean(&mut a);
}

#[test]
fn no_queue_on_a_path_is_tried_again() {
    let t = Setup::plain(8, 2);
    t.paths[0].set_no_queues(Some("out of descriptors"));
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(5));
    assert_eq!(t.stats(0).ios, 0);
    t.paths[0].set_no_queues(None);
    guest.set_mix(Mix { depth: 4, ..Mix::ALL });
    t.run(&mut guest, ms(1010));
    assert!(t.stats(0).ios > 0);
    t.finish_clean(&mut guest);
}

#[test]
fn weights_and_selectors_change_while_io_runs() {
    let t = Setup::plain(8, 2);
    let mut guest = t.guest(Mix { depth: 32, ..Mix::ALL }, 0);
    t.group.set_selector(SelectorKind::Weight);
    t.group.set_weight(t.ids[0], 300).expect("there");
    assert!(t.group.set_weight(t.ids[0], 0).is_err());
    t.run(&mut guest, ms(1));
    let before = [t.stats(0).ios, t.stats(1).ios];
    t.run(&mut guest, ms(50));
    let got = [t.stats(0).ios - before[0], t.stats(1).ios - before[1]];
    assert!((2.7..3.3).contains(&(got[0] as f64 / got[1] as f64)), "{got:?}");
    t.finish_clean(&mut guest);
}

#[test]
fn a_closed_group_ends() {
    let t = Setup::plain(8, 2);
    let mut guest = t.guest(Mix::ALL, 0);
    t.run(&mut guest, ms(3));
    guest.set_submitting(false);
    t.run(&mut guest, ms(10));
    guest.finish(ms(1000));
    t.group.close();
    assert!(matches!(t.group.state(), DeviceState::Gone { .. }));
    assert!(t.group.open_queue(QueueConfig { depth: 8 }).is_err());
    assert!(t.paths.iter().all(|p| matches!(p.state(), DeviceState::Gone { .. })));
}

#[test]
fn duplicates_are_shown_once() {
    let world = World::new(1, 64);
    let device = |name: &str, ids: Vec<Identifier>, down: bool| -> Arc<dyn Device> {
        let mut o = PathOptions::new(name, 64);
        (o.identifiers, o.starts_down) = (ids, down);
        world.path(o)
    };
    let (a, b) = (Identifier::Uuid([1; 16]), Identifier::Eui64([2; 8]));
    let devices = [
        device("a1", vec![a.clone()], false),
        device("x", vec![OTHER], false),
        device("a2", vec![a.clone(), b.clone()], false),
        device("b", vec![b], false),
        device("t10", vec![Identifier::T10Vendor(vec![1])], false),
        device("t10 too", vec![Identifier::T10Vendor(vec![1])], false),
        device("liar", vec![a, OTHER, Identifier::Eui64([9; 8])], false),
        device("down", vec![], true),
    ];
    let found = aggregate(devices);
    let names: Vec<Vec<_>> =
        found.disks.iter().map(|d| d.devices.iter().map(|d| d.name().to_owned()).collect()).collect();
    assert_eq!(names[0], ["a1", "a2", "b"]);
    assert_eq!(names[1][0], "x");
    assert!(names.iter().any(|n| n == &["t10"]) && names.iter().any(|n| n == &["t10 too"]));
    assert_eq!(found.pending.len(), 1);
    assert_eq!(names.iter().flatten().count(), 7);
}
