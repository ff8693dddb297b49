//! What a controller that is up is asked, when and how often, in virtual time: events, refusals, transitions.

use crate::script::{BLOCKS, Script, Shown, What};
use crate::turns::{World, config};
use polypath_block::{Access, Code, Device, Identifier};
use polypath_nvme::StatusField;
use polypath_nvme::features::fid;
use polypath_nvme::identify::{cns, oaes};
use polypath_nvme::log::{AnaState, EventKind, lid};
use polypath_nvme::sqe::admin;
use polypath_nvmf_tcp::ControllerConfig;
use std::time::Duration;

const LIST: What = What::Identify(cns::ACTIVE_NAMESPACES);
const NAMESPACE: What = What::Identify(cns::NAMESPACE);
const DESCRIPTORS: What = What::Identify(cns::NAMESPACE_DESCRIPTORS);
const ANA: What = What::Log(lid::ANA);
const CHANGED: What = What::Log(lid::CHANGED_NAMESPACES);

fn world_of(script: &Script) -> World {
    let config = config(script);
    let mut world = World::start(script.clone(), config);
    world.run_until("a device that is live", 500, |w| w.is_live());
    world
}

fn with_ana(state: AnaState) -> Script {
    let script = Script::new();
    script.state().ana = vec![(1, state, vec![1])];
    script
}

/// Long enough for whatever is asked at intervals to be asked again; with short turns at first.
fn settle(world: &mut World, seconds: u64) {
    world.run_ms(100);
    world.run_in_steps(seconds * 1000, &[20]);
}

#[test]
fn only_events_that_the_controller_has_are_asked_for() {
    let known = oaes::NAMESPACE_ATTRIBUTES | oaes::ANA_CHANGE | oaes::DISCOVERY_CHANGE;
    let cases = [
        (known, Some(known)),
        (known | 1 << 9, Some(known)),
        (oaes::ANA_CHANGE, Some(oaes::ANA_CHANGE)),
        (oaes::NAMESPACE_ATTRIBUTES | 1 << 9, Some(oaes::NAMESPACE_ATTRIBUTES)),
        (1 << 9, None),
        (0, None),
    ];
    for (has, asked) in cases {
        let script = Script::new();
        script.state().oaes = has;
        world_of(&script);
        let seen = script.seen(0);
        let of_events =
            |sqe: &&polypath_nvme::Sqe| sqe.opcode() == admin::SET_FEATURES && sqe.fid() == fid::ASYNC_EVENT_CONFIG;
        let value = seen.iter().find(of_events).map(|sqe| sqe.feature_value());
        assert_eq!(value, asked, "of {has:#x}");
    }
}

/// Every event is looked after once: nothing is asked that nobody asked for.
#[test]
fn an_event_is_answered_by_one_look() {
    let script = with_ana(AnaState::Optimized);
    let mut world = world_of(&script);
    let asked = || [LIST, NAMESPACE, DESCRIPTORS, ANA, CHANGED].map(|what| script.asked(what));
    settle(&mut world, 60);
    assert_eq!(asked(), [1, 1, 1, 1, 0], "coming up");
    script.event(EventKind::AnaChanged);
    settle(&mut world, 60);
    assert_eq!(asked(), [1, 1, 1, 2, 0]);
    script.event(EventKind::NamespacesChanged);
    settle(&mut world, 60);
    assert_eq!(asked(), [2, 2, 2, 3, 1]);
    // Of another kind: its log page is read, or it would not be told again.
    script.event(EventKind::Health(1));
    settle(&mut world, 60);
    assert_eq!(asked(), [2, 2, 2, 3, 2]);
    assert_eq!((script.held(What::Event).len(), world.controller.statistics().losses), (1, 0));
}

/// Several who want the same are served by one look, and none of them is forgotten.
#[test]
fn an_event_and_a_command_that_tell_the_same_are_heard() {
    let script = with_ana(AnaState::Optimized);
    let mut world = World::up_with(script.clone(), config(&script), 8);
    world.run_ms(100);
    script.state().ana = vec![(1, AnaState::Inaccessible, vec![1])];
    let span = world.memory(512, 7);
    let sqe = world.send(polypath_block::Io::write(1, 0, 1, span));
    script.answer(1, sqe.cid(), StatusField::ANA_INACCESSIBLE);
    world.turn_queue(0);
    script.event(EventKind::AnaChanged);
    world.run_ms(100);
    assert_eq!((world.info().access, script.asked(ANA)), (Access::Inaccessible, 2));
}

/// An event of each kind while something else is being read: all of them are looked after.
#[test]
fn events_that_come_during_a_look_are_not_lost() {
    let script = with_ana(AnaState::Optimized);
    let mut world = world_of(&script);
    script.hold(ANA);
    script.event(EventKind::AnaChanged);
    world.run_until("the look", 100, |_| !script.held(ANA).is_empty());
    world.run_ms(30);
    for kind in [EventKind::NamespacesChanged, EventKind::AnaChanged] {
        script.event(kind);
        world.run_ms(30);
    }
    script.state().namespaces.get_mut(&1).unwrap().blocks = 2 * BLOCKS;
    script.release(ANA);
    world.run_ms(100);
    assert_eq!((world.info().geometry.blocks, script.asked(LIST)), (2 * BLOCKS, 2));
}

/// While a namespace is changing its state the log is read again each second; no event tells of the end, and it is found all the same.
#[test]
fn a_transition_is_watched_until_it_ends() {
    let script = with_ana(AnaState::Change);
    let mut world = world_of(&script);
    assert_eq!(world.info().access, Access::Change);
    settle(&mut world, 10);
    assert!((9..=11).contains(&(script.asked(ANA) - 1)), "{} times in ten seconds", script.asked(ANA) - 1);
    assert_eq!(script.asked(LIST), 1, "only the log");
    script.state().ana = vec![(1, AnaState::NonOptimized, vec![1])];
    world.run_until("the end of the transition", 1100, |w| w.info().access == Access::NonOptimized);
    let asked = script.asked(ANA);
    settle(&mut world, 60);
    assert_eq!(script.asked(ANA), asked, "nothing is changing any more");
}

/// The log is refused while a namespace is changing its state. Both ask for it again after a second.
#[test]
fn a_transition_is_watched_although_the_log_was_refused() {
    let script = with_ana(AnaState::Change);
    let mut world = world_of(&script);
    script.refuse(ANA, StatusField::INTERNAL_ERROR, 1);
    script.event(EventKind::AnaChanged);
    world.run_ms(100);
    script.state().ana = vec![(1, AnaState::Optimized, vec![1])];
    world.run_until("the end of the transition", 1100, |w| w.info().access == Access::Optimized);
}

/// What was refused is asked again, whatever else is asked and answered meanwhile.
#[test]
fn a_refusal_is_not_forgotten_over_other_news() {
    let script = with_ana(AnaState::Optimized);
    let mut world = world_of(&script);
    script.refuse(NAMESPACE, StatusField::INTERNAL_ERROR, 1);
    script.state().namespaces.get_mut(&1).unwrap().blocks = 2 * BLOCKS;
    script.event(EventKind::NamespacesChanged);
    world.run_ms(100);
    script.state().ana = vec![(1, AnaState::NonOptimized, vec![1])];
    script.event(EventKind::AnaChanged);
    world.run_ms(100);
    assert_eq!((world.info().access, world.info().geometry.blocks), (Access::NonOptimized, BLOCKS));
    world.run_until("the new size", 1000, |w| w.info().geometry.blocks == 2 * BLOCKS);
    let asked = script.asked(LIST);
    settle(&mut world, 60);
    assert_eq!(script.asked(LIST), asked, "all was answered");
}

/// An event that asks for what was refused, in the very turn in which that is due again: it is read then, and once.
#[test]
fn an_event_that_comes_when_a_refusal_is_due_is_heard() {
    let script = Script::new();
    let mut world = world_of(&script);
    script.refuse(NAMESPACE, StatusField::INTERNAL_ERROR, 1);
    script.state().namespaces.get_mut(&1).unwrap().blocks = 2 * BLOCKS;
    script.event(EventKind::NamespacesChanged);
    world.run_ms(100);
    assert_eq!((world.info().geometry.blocks, script.asked(LIST)), (BLOCKS, 2));
    script.event(EventKind::NamespacesChanged);
    world.pass_ms(2000);
    world.run_ms(100);
    assert_eq!((world.info().geometry.blocks, script.asked(LIST)), (2 * BLOCKS, 3));
}

/// The pauses between questions that are refused: 1 s, twice that each time, no more than 30 s.
#[test]
fn what_is_refused_is_asked_less_and_less_often() {
    let script = with_ana(AnaState::Optimized);
    let mut world = world_of(&script);
    script.refuse(ANA, StatusField::INTERNAL_ERROR, u32::MAX);
    script.event(EventKind::AnaChanged);
    let (mut asked, mut at) = (script.asked(ANA), Vec::new());
    let start = world.now;
    for _ in 0..26_000 {
        world.pass_ms(5);
        world.turn_admin();
        if script.asked(ANA) > asked {
            asked = script.asked(ANA);
            at.push(world.now.since(start).as_millis() as u64);
        }
    }
    let pauses: Vec<u64> = at.windows(2).map(|pair| (pair[1] - pair[0] + 500) / 1000).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30], "{at:?}");
}

/// The list of changed namespaces must be read, or the controller tells of no further change: it is, until it was given. One that
/// sends no such events need not have it.
#[test]
fn the_list_of_changed_namespaces_is_read_until_it_was_given() {
    let script = Script::new();
    let mut world = world_of(&script);
    script.refuse(CHANGED, StatusField::INTERNAL_ERROR, 2);
    script.event(EventKind::NamespacesChanged);
    settle(&mut world, 60);
    assert_eq!((script.asked(CHANGED), script.asked(LIST)), (3, 4));

    let script = Script::new();
    script.state().oaes = 0;
    script.refuse(CHANGED, StatusField::INVALID_FIELD, u32::MAX);
    script.refuse(NAMESPACE, StatusField::NAMESPACE_NOT_READY, 1);
    let mut world = World::start(script.clone(), config(&script));
    world.run_until("the namespace", 1500, |w| w.is_live());
    settle(&mut world, 60);
    assert_eq!((script.asked(CHANGED), script.asked(LIST)), (1, 2));
}

/// A question that is not answered at all is no refusal: the way is left.
#[test]
fn silence_in_the_place_of_an_answer_costs_the_association() {
    for what in [LIST, NAMESPACE, DESCRIPTORS, ANA, CHANGED] {
        let script = with_ana(AnaState::Optimized);
        let mut world = world_of(&script);
        script.hold(what);
        script.event(EventKind::NamespacesChanged);
        let took = world.run_until("the loss", 1200, |w| !w.is_live());
        assert!(took >= Duration::from_millis(1000), "{what:?}: {took:?}");
        assert_eq!((world.cause(), world.controller.statistics().losses), (Code::PathTimeout, 1), "{what:?}");
    }
}

/// A list that is refused once is not an empty one, and neither is it that of an old controller.
#[test]
fn a_list_of_namespaces_that_is_refused_later_leaves_what_was_known() {
    let script = Script::new();
    script.state().show(500, Shown::new(5));
    let mut world = World::start(script.clone(), ControllerConfig { ns: Some(500), ..config(&script) });
    world.run_until("a device that is live", 500, |w| w.is_live());
    script.refuse(LIST, StatusField::INVALID_FIELD, 1);
    script.event(EventKind::NamespacesChanged);
    let asked = script.asked(NAMESPACE);
    for _ in 0..100 {
        world.run_ms(1);
        assert_eq!(world.info().identity.identifiers, [Identifier::Nguid([5; 16])]);
    }
    assert_eq!(script.asked(NAMESPACE), asked, "nothing was guessed");
    settle(&mut world, 3);
    assert!(script.asked(NAMESPACE) > asked && world.is_live());
}

/// Controllers of 1.0 have no list of active namespaces: each number that there may be is asked for.
#[test]
fn without_a_list_each_number_is_asked_for() {
    let script = Script::new();
    script.state().namespaces = [3, 5, 16, 17].map(|nsid| (nsid, Shown::new(nsid as u8))).into();
    // One that is not active is answered with zeroes.
    script.state().namespaces.get_mut(&5).unwrap().blocks = 0;
    script.refuse(LIST, StatusField::INVALID_FIELD, u32::MAX);
    let mut world = World::start(script.clone(), ControllerConfig { ns: None, ..config(&script) });
    world.run_until("a controller that is up", 500, |w| w.controller.is_live());
    let found: Vec<_> = world.controller.namespaces().iter().map(|d| d.nsid().unwrap()).collect();
    assert_eq!((found, script.asked(NAMESPACE)), (vec![3, 16], 16));
}

/// Without its descriptors a namespace that is known would look like another one; one that is not is taken as it is.
#[test]
fn descriptors_that_are_refused_make_no_other_disk() {
    for status in [StatusField::INVALID_FIELD, StatusField::INTERNAL_ERROR] {
        let script = Script::new();
        let mut world = world_of(&script);
        script.refuse(DESCRIPTORS, status, 1);
        script.state().namespaces.get_mut(&1).unwrap().blocks = 2 * BLOCKS;
        script.event(EventKind::NamespacesChanged);
        world.run_ms(100);
        assert_eq!(world.info().identity.identifiers, [Identifier::Nguid([1; 16])], "{status}");
        assert_eq!(world.info().geometry.blocks, BLOCKS, "{status}");
        world.run_until("the new size", 1500, |w| w.info().geometry.blocks == 2 * BLOCKS);

        let script = Script::new();
        script.refuse(DESCRIPTORS, status, 1);
        let world = world_of(&script);
        assert!(matches!(world.info().identity.identifiers[..], [Identifier::Place(_)]), "{status}");
    }
}

/// Whoever asks for a namespace has it looked for only where there are too many to look at all of them.
#[test]
fn asking_for_a_namespace_asks_the_controller_only_if_it_was_passed_over() {
    let script = Script::new();
    let mut world = World::start(script.clone(), ControllerConfig { ns: Some(5), ..config(&script) });
    world.run_until("a controller that is up", 500, |w| w.controller.is_live());
    let devices = [1, 5, 77].map(|nsid| world.controller.namespace(nsid));
    world.run_ms(100);
    assert_eq!((script.asked(LIST), script.asked(NAMESPACE)), (1, 0), "none of them is active and wanted");
    assert_eq!((world.cause(), devices[1].state().info().is_some()), (Code::PathNoAccess, false));
    script.state().show(5, Shown::new(5));
    script.event(EventKind::NamespacesChanged);
    world.run_until("the namespace", 100, |w| w.is_live());
}

/// Another disk answers under the number, and the event that says that ours is back is lost. It is looked for, less and less often, and
/// that it is another one is said once.
#[test]
fn a_namespace_that_is_another_one_is_looked_for_until_it_is_back() {
    let script = Script::new();
    let mut world = world_of(&script);
    world.open_queue(8);
    world.run_ms(100);
    script.state().show(1, Shown::new(9));
    script.event(EventKind::NamespacesChanged);
    world.run_until("the other disk to be noticed", 500, |w| !w.is_live());
    assert_eq!(world.cause(), Code::PathIdentity);
    let looks = script.asked(LIST);
    world.run_in_steps(120_000, &[20]);
    let more = script.asked(LIST) - looks;
    assert!((6..12).contains(&more), "{more} looks in two minutes");
    script.state().show(1, Shown::new(1));
    world.run_until("our disk without any event", 31_000, |w| w.is_live());
    let asked = script.asked(LIST);
    world.run_in_steps(120_000, &[20]);
    assert_eq!(script.asked(LIST), asked, "nobody looks any more");
}

/// The same of one that is missing when the controller comes up again.
#[test]
fn a_namespace_that_is_missing_at_a_reconnect_is_looked_for() {
    let script = Script::new();
    let mut world = world_of(&script);
    world.open_queue(8);
    world.run_ms(100);
    let ours = script.state().namespaces.clone();
    script.state().namespaces.clear();
    script.reset(0);
    world.run_until("the loss", 5_000, |w| !w.is_live());
    world.run_in_steps(10_000, &[20]);
    script.state().namespaces = ours;
    world.run_until("our disk without any event", 31_000, |w| w.is_live());
}
