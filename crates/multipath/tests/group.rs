//! What a group shows of itself, and what it tells of its paths: no less than there is, and nothing twice.

use crate::common::scripted::{Bench, info};
use polypath_block::{Access, Code, Device, DeviceInfo, Health, Io, Limits, Op, QueueConfig, SegSpan};
use polypath_multipath::{EventKind, GroupConfig, MAX_DEPTH, PathState, SelectorKind};

const READ: fn(u64) -> Io = |lba| Io::read(0, lba, 1, SegSpan::EMPTY);

fn shown(b: &Bench) -> DeviceInfo {
    (**b.group.state().info().expect("live")).clone()
}

#[test]
fn a_path_is_silent_until_it_speaks_on_every_reactor() {
    let mut b = Bench::with_caches(&["a"]);
    let mut second = b.second_queue();
    b.told();
    b.devices[0].set_health(Health::Stalled);
    b.turn();
    assert_eq!((b.stats(0).state, b.told()), (PathState::Stalled, vec![EventKind::PathStalled]));
    b.turn_of(&mut *second);
    assert_eq!((b.stats(0).state, b.told()), (PathState::Stalled, vec![]), "told once for all reactors");
    b.devices[0].set_health(Health::Ready);
    b.turn();
    assert_eq!((b.stats(0).state, b.told()), (PathState::Stalled, vec![]), "the other one has not heard of it");
    b.turn_of(&mut *second);
    assert_eq!((b.stats(0).state, b.told()), (PathState::Usable, vec![EventKind::PathResumed]));
    drop(second);
    b.finish();
}

#[test]
fn a_quarantine_is_told_again_for_another_reason_only() {
    let mut b = Bench::with_caches(&["a"]);
    let small = |blocks| {
        let mut i = info("a");
        i.geometry.blocks = blocks;
        i
    };
    let quarantined = |told: Vec<EventKind>, what: &str| match &told[..] {
        [EventKind::Quarantined { why }] => assert!(why.contains(what), "{why}"),
        other => panic!("{other:?}"),
    };
    b.told();
    b.devices[0].set_live(small(999));
    b.turn();
    quarantined(b.told(), "999");
    b.devices[0].set_live(small(999));
    b.turn();
    assert_eq!(b.told(), [], "for the same reason");
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    let s = b.stats(0);
    assert_eq!((s.state, s.cause, b.told()), (PathState::Quarantined, Some(Code::PathIdentity), vec![]));
    assert!(s.why.contains("999"), "the reason stands until it was verified again: {}", s.why);
    b.devices[0].set_live(small(998));
    b.turn();
    quarantined(b.told(), "998");
    b.finish();
}

#[test]
fn a_device_that_changes_and_is_as_good_as_before_is_no_news() {
    let mut b = Bench::with_caches(&["a"]);
    b.told();
    b.devices[0].set_live(DeviceInfo { max_depth: 32, ..info("a") });
    b.turn();
    assert_eq!((b.told(), b.stats(0).recoveries), (vec![], 0));
    b.devices[0].set_live(DeviceInfo { access: Access::NonOptimized, ..info("a") });
    b.turn();
    assert_eq!(b.told(), [EventKind::AccessChanged { access: Access::NonOptimized }]);
    b.finish();
}

#[test]
fn later_paths_narrow_what_is_shown_until_somebody_relies_on_it() {
    for by_io in [false, true] {
        let mut b = Bench::with_caches(&["a"]);
        let lacking = |edit: fn(&mut Limits)| {
            let mut i = info("a");
            edit(&mut i.limits);
            i
        };
        assert!(shown(&b).limits.fua && shown(&b).limits.compare);
        b.add(lacking(|l| l.fua = false));
        assert!(!shown(&b).limits.fua, "no path may be asked for what it does not do");
        b.turns(2);
        match by_io {
            true => drop(b.submit(READ(1))),
            false => b.group.freeze(),
        }
        b.add(lacking(|l| l.max_discard_blocks = 0));
        assert!(shown(&b).limits.max_discard_blocks > 0, "promised");
        assert_eq!((b.stats(1).state, b.stats(2).state), (PathState::Usable, PathState::Quarantined), "{by_io}");
        b.add(lacking(|l| (l.fua, l.compare) = (true, false)));
        assert_eq!((b.stats(3).state, shown(&b).limits.compare), (PathState::Usable, false), "no guest was told of it");
        b.finish();
    }
}

#[test]
fn a_group_over_several_caches_names_one_of_its_own() {
    let domain = |b: &Bench| shown(b).identity.cache_domain.0;
    let b = Bench::with_caches(&["a", "a"]);
    assert_eq!(domain(&b), "a");
    b.devices.iter().for_each(|d| d.set_down(Code::PathLost, "connection reset"));
    assert_eq!(domain(&b), "a", "it may come back");
    let b = Bench::with_caches(&["a", "b"]);
    assert_eq!(domain(&b), "multipath:disk");
}

#[test]
fn a_loss_of_power_that_each_path_hears_of_for_itself_is_one_loss() {
    let mut b = Bench::with_caches(&["a", "a"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    for round in 1..4 {
        b.dirty(0, 1);
        b.devices[0].hear_of_power_loss();
        b.turns(2);
        assert_eq!(b.flush_now(), Some(Code::CacheLost), "{round}");
        b.dirty(0, 2);
        b.devices[1].hear_of_power_loss();
        b.turns(2);
        assert_eq!(b.flush_now(), Some(Code::Ok), "{round}: that is the same loss");
    }
    b.dirty(0, 3);
    b.devices[0].hear_of_power_loss();
    b.turns(2);
    assert_eq!(b.flush_now(), Some(Code::CacheLost));
    b.devices[1].hear_of_power_loss();
    b.turns(2);
    b.dirty(0, 4);
    b.devices[1].hear_of_power_loss();
    b.turns(2);
    assert_eq!(b.flush_now(), Some(Code::CacheLost), "a new one, whoever hears of it first");
    b.finish();
}

#[test]
fn a_number_goes_to_another_cache_only_when_no_path_leads_to_the_old_one() {
    // More caches come and go than a group has numbers for.
    let mut b = Bench::with_caches(&["keep", "c#0"]);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    for n in 1..130 {
        b.devices[1].set_live(info(&format!("c#{n}")));
        b.group.refresh();
    }
    b.turns(2);
    assert_eq!(b.flush_now(), Some(Code::Ok));
    b.dirty(0, 1);
    b.dirty(1, 2);
    b.flush();
    assert_eq!((b.devices[0].only().op, b.devices[1].only().op), (Op::Flush, Op::Flush), "each has a cache of its own");
    b.finish();
}

#[test]
fn a_group_says_what_it_was_told() {
    let b = Bench::with_caches(&["a", "b"]);
    assert_eq!(b.group.selector(), SelectorKind::QueueLength);
    b.group.set_selector(SelectorKind::Weight);
    assert_eq!(b.group.selector(), SelectorKind::Weight);
    assert_eq!(["p0", "p1", "p2"].map(|name| b.group.find_path(name)), [Some(b.ids[0]), Some(b.ids[1]), None]);
    assert!(format!("{:?}", b.group).contains("disk"));
}

#[test]
fn a_queue_holds_from_one_request_to_the_most() {
    let b = Bench::with_caches(&["a"]);
    for (depth, fits) in [(0, false), (1, true), (MAX_DEPTH, true), (MAX_DEPTH + 1, false)] {
        assert_eq!(b.group.open_queue(QueueConfig { depth }).is_ok(), fits, "{depth}");
    }
}

#[test]
fn the_version_grows_with_what_is_shown_and_with_nothing_else() {
    let mut b = Bench::with_caches(&["a", "a"]);
    let before = b.group.version();
    b.group.set_weight(b.ids[0], 7).expect("there");
    b.group.set_selector(SelectorKind::Random);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turns(2);
    assert_eq!(b.group.version(), before, "the other path shows the same");
    b.devices[1].set_live(DeviceInfo { access: Access::NonOptimized, ..info("a") });
    b.turn();
    let worse = b.group.version();
    assert!(worse > before);
    // With no queue open any more, nobody else looks.
    let Bench { queue, group, devices, .. } = b;
    drop(queue);
    devices[1].set_live(info("a"));
    assert!(group.version() > worse);
}

#[test]
fn the_end_of_a_group_is_no_incident() {
    let mut b = Bench::with_caches(&["a"]);
    b.dirty(0, 1);
    b.told();
    b.group.close();
    b.turns(2);
    assert_eq!((b.told(), b.stats(0).failures), (vec![], 0));
}

#[test]
fn events_and_states_bear_the_time_of_the_reactors() {
    let mut b = Bench::with_caches(&["a"]);
    b.pass(5_000);
    b.drain_events();
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    let (at, since) = (b.drain_events()[0].at, b.stats(0).since);
    assert_eq!(at, since);
    assert!(b.now.since(at).as_millis() <= 1, "{:?} late", b.now.since(at));
    b.finish();
}

#[test]
fn a_path_that_is_down_is_kept_and_one_that_is_gone_for_good_or_another_disk_is_let_go() {
    let mut b = Bench::with_caches(&["a", "b", "c"]);
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.devices[1].set_gone();
    let mut other = info("c");
    other.geometry.blocks = 1;
    b.devices[2].set_live(other);
    b.turns(3);
    assert_eq!([0, 1, 2].map(|i| b.devices[i].open_queues()), [1, 0, 0]);
    b.finish();
}

#[test]
fn a_device_that_was_not_verified_is_asked_for_no_queue() {
    let mut b = Bench::new(GroupConfig::new("disk"), vec![]);
    b.add_in(polypath_block::DeviceState::Starting);
    let mut other = info("a");
    other.geometry.block_size = 500;
    b.add(other);
    b.turns(3);
    assert!(b.devices.iter().all(|d| d.asked_for_queues() == 0));
    assert_eq!(b.queue.health(), Health::Down, "there is nothing to be shown");
    b.devices[0].set_live(info("a"));
    b.turns(3);
    assert_eq!((b.devices[0].asked_for_queues(), b.queue.health()), (1, Health::Ready));
    b.devices[0].set_down(Code::PathLost, "connection reset");
    b.turn();
    assert_eq!(b.queue.health(), Health::Stalled, "its queue is ready and its device is not");
    b.devices[0].set_live(info("a"));
    b.turn();
    assert_eq!(b.queue.health(), Health::Ready);
    b.close_queue();
    assert_eq!(b.queue.health(), Health::Down);
    let b = Bench::with_caches(&["a"]);
    b.group.close();
    assert_eq!(b.queue.health(), Health::Down);
}

#[test]
fn a_path_that_never_answered_is_held_by_nobody() {
    let mut b = Bench::with_caches(&["a"]);
    b.add_in(polypath_block::DeviceState::Starting);
    b.turns(2);
    b.group.remove_path(b.ids[1]).expect("there");
    assert_eq!(b.group.paths(), [b.ids[0]], "no reactor has to let go of it first");
    b.finish();
}
