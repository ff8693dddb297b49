//! Defects around namespaces that change while I/O runs, each by its name: who a disk is, how large it is, and how it can be reached.

use crate::script::{BLOCKS, Script, Shown, What};
use crate::turns::{World, config};
use polypath_block::{Access, Code, Cx, Device, Fate, Health, Identifier, Io, Proof, RefusedWhy, Rest, Scope};
use polypath_nvme::StatusField;
use polypath_nvme::identify::cns;
use polypath_nvme::log::{AnaState, EventKind, lid};
use polypath_nvmf_tcp::ControllerConfig;

const KIB: u32 = 1024;
/// Octets of a capsule with one block in it.
const CAPSULE: usize = 72 + 512;

/// Changes what the controller shows, raises the event, and lets the admin queue alone read the news.
fn change(world: &mut World, change: impl FnOnce(&mut crate::script::State)) {
    change(&mut world.script.state());
    world.script.event(EventKind::NamespacesChanged);
    for _ in 0..60 {
        world.let_admin_look();
    }
}

fn lose_association(world: &mut World) {
    world.script.reset(0);
    world.run_until("the loss", 100, |w| !w.is_live());
}

/// Everything that waits in the backlog and in the transmit ring, and one write that has left: four find room in the ring.
fn fill(world: &mut World, octets: usize) {
    let span = world.memory(512, 7);
    world.script.set_room(1, octets);
    for tag in 1..=20 {
        world.submit(0, Io::write(tag, tag, 1, span));
    }
    world.turn_queue(0);
    assert_eq!(world.script.octets(1), octets + connecting_octets());
}

/// ICReq, and the capsule of Connect with its data.
fn connecting_octets() -> usize {
    128 + 72 + 1024
}

/// A rescan sees another identity under the number. What waits in the backlog and in the transmit ring must not leave any more, and
/// what had left is not acknowledged, whatever is answered.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one() {
    let mut world = World::up(32);
    fill(&mut world, CAPSULE);
    change(&mut world, |s| s.namespaces.get_mut(&1).unwrap().nguid = [2; 16]);
    assert_eq!(world.cause(), Code::PathIdentity);

    world.script.set_room(1, usize::MAX);
    world.turn_queue(0);
    assert_eq!(world.script.seen(1).len(), 1, "writes went to another disk");
    for tag in 2..=20 {
        let completion = world.take_completion(0, tag);
        assert_eq!((completion.status.code, completion.proof), (Code::PathIdentity, Proof::NeverSent), "{tag}");
    }
    assert!(world.queues[0].completions.is_empty() && world.queues[0].suspects.is_empty());
    world.script.succeed_all(1);
    world.turn_queue(0);
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.status.scope()), (Code::PathIdentity, Scope::Path));
    assert_eq!(world.queues[0].queue.health(), Health::Down);
    assert_eq!(world.controller.statistics().losses, 0, "nothing had left in part: the connection need not suffer");
}

/// And a batch finds the door shut, once that is known.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one_in_a_batch() {
    let mut world = World::up(32);
    let span = world.memory(512, 7);
    change(&mut world, |s| s.namespaces.get_mut(&1).unwrap().nguid = [2; 16]);
    world.turn_queue(0);
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    let batch = [Io::write(1, 0, 1, span), Io::write(2, 8, 1, span)];
    let refused = world.queues[0].queue.submit_all(&mut cx, &batch);
    assert_eq!(refused, Err(Rest { taken: 0, why: RefusedWhy::Gone }));
    world.turn_queue(0);
    assert!(world.script.seen(1).is_empty(), "writes went to another disk");
}

/// The same with the news in the mailbox and no poll yet: a submit and a kick must not overtake them.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one_not_even_before_the_next_poll() {
    let mut world = World::up(32);
    let span = world.memory(512, 7);
    world.submit(0, Io::write(1, 0, 1, span));
    change(&mut world, |s| s.namespaces.get_mut(&1).unwrap().nguid = [2; 16]);
    world.submit(0, Io::write(2, 8, 1, span));
    world.turn_queue(0);
    assert!(world.script.seen(1).is_empty(), "writes went to another disk");
    for tag in [1, 2] {
        let completion = world.take_completion(0, tag);
        assert_eq!((completion.status.code, completion.proof), (Code::PathIdentity, Proof::NeverSent));
    }
}

/// A write of which a part has left, or whose data the controller may still ask for, cannot be called back: it costs the connection,
/// and waits for the fence.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one_data_on_their_way_cost_the_connection() {
    // Half a capsule; and a write that waits for its R2T; and one whose data are under way.
    for case in 0..3 {
        let mut world = World::up(32);
        let span = world.memory(64 * KIB, 7);
        match case {
            0 => {
                world.script.set_room(1, CAPSULE / 2);
                world.submit(0, Io::write(1, 0, 1, span));
                world.turn_queue(0);
            }
            _ => {
                let sqe = world.send(Io::write(1, 0, 128, span));
                if case == 2 {
                    world.script.set_room(1, 1000);
                    world.script.ask_data(1, sqe.cid());
                    world.turn_queue(0);
                }
            }
        }
        let before = world.script.octets(1);
        change(&mut world, |s| s.namespaces.get_mut(&1).unwrap().nguid = [2; 16]);
        world.script.set_room(1, usize::MAX);
        world.turn_queue(0);
        assert_eq!(world.script.octets(1), before, "case {case}: data went to another disk");
        assert!(world.script.is_closed(1), "case {case}");
        let suspect = world.queues[0].suspects[0].0;
        assert_eq!((suspect.tag, suspect.fate, suspect.cause), (1, Fate::Unknown, Code::PathIdentity));
        world.let_admin_look();
        let closed = world.now;
        world.expect_fenced(0, 1, closed);
    }
}

/// Another block size makes every open request one for other blocks. Those that come later use the new one.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one_or_of_another_block_size() {
    let mut world = World::up(32);
    fill(&mut world, CAPSULE);
    change(&mut world, |s| {
        let shown = s.namespaces.get_mut(&1).unwrap();
        (shown.block_shift, shown.blocks) = (12, 1000);
    });
    world.script.set_room(1, usize::MAX);
    world.turn_queue(0);
    assert_eq!(world.script.seen(1).len(), 1, "requests in blocks of another size have left");
    world.script.succeed_all(1);
    world.turn_queue(0);
    for tag in 1..=20 {
        assert_eq!(world.take_completion(0, tag).status.code, Code::PathIdentity);
    }
    assert_eq!((world.info().geometry.block_size, world.queues[0].queue.health()), (4096, Health::Ready));
    let span = world.memory(4096, 7);
    let (sqe, completion) = world.round_trip(Io::write(30, 5, 1, span));
    assert_eq!((sqe.slba(), completion.status.code), (5, Code::Ok));
    assert_eq!(world.script.octets(1), connecting_octets() + CAPSULE + 72 + 4096);
}

/// The disk is found under another number, and another disk under the number it had: what waits on the way still has the old number.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one_or_under_another_number() {
    let script = Script::new();
    let config = ControllerConfig { ns: None, ..config(&script) };
    let mut world = World::up_with(script, config, 32);
    fill(&mut world, CAPSULE);
    change(&mut world, |s| s.namespaces = [(1, Shown::new(2)), (2, Shown::new(1))].into());
    world.script.set_room(1, usize::MAX);
    world.turn_queue(0);
    assert_eq!(world.script.seen(1).len(), 1, "writes went to another disk");
    world.script.succeed_all(1);
    world.turn_queue(0);
    assert!((1..=20).all(|tag| world.take_completion(0, tag).status.code == Code::PathIdentity));
    let span = world.memory(512, 7);
    assert_eq!(world.round_trip(Io::write(30, 5, 1, span)).0.nsid(), 2);
}

/// A namespace that is gone takes its open requests with it, and comes back.
#[test]
fn a_namespace_that_is_gone_takes_nothing_more_and_may_come_back() {
    let mut world = World::up(32);
    fill(&mut world, CAPSULE);
    change(&mut world, |s| s.namespaces.clear());
    world.script.set_room(1, usize::MAX);
    world.turn_queue(0);
    assert_eq!((world.cause(), world.script.seen(1).len()), (Code::PathNoAccess, 1));
    world.script.answer(1, world.script.open_cids(1)[0], StatusField::INVALID_NAMESPACE.with_dnr());
    world.turn_queue(0);
    for tag in 1..=20 {
        assert_eq!(world.take_completion(0, tag).status.code, Code::PathNoAccess);
    }
    change(&mut world, |s| s.show(1, Shown::new(1)));
    world.turn_queue(0);
    let span = world.memory(512, 7);
    assert_eq!(world.round_trip(Io::write(30, 5, 1, span)).1.status.code, Code::Ok);
}

/// A URI without `ns=` and one namespace: the disk is live. Another namespace is added, then the numbers change, then the association
/// is lost. Which disk is meant was settled when it was first seen, and it is found by its identity.
#[test]
fn a_second_namespace_kills_a_live_disk() {
    let script = Script::new();
    let config = ControllerConfig { ns: None, ..config(&script) };
    let mut world = World::up_with(script, config, 8);
    let span = world.memory(512, 7);
    let mut tag = 0;
    let mut writes_to = |world: &mut World| {
        tag += 1;
        assert_eq!(world.info().identity.identifiers, [Identifier::Nguid([1; 16])]);
        let (sqe, completion) = world.round_trip(Io::write(tag, 0, 1, span));
        assert_eq!(completion.status.code, Code::Ok);
        sqe.nsid()
    };
    assert_eq!(writes_to(&mut world), 1);
    change(&mut world, |s| s.show(2, Shown::new(2)));
    world.turn_queue(0);
    assert_eq!(writes_to(&mut world), 1, "another namespace is none of its business");

    change(&mut world, |s| s.namespaces = [(1, Shown::new(2)), (2, Shown::new(1))].into());
    world.turn_queue(0);
    assert_eq!(writes_to(&mut world), 2, "the same disk under another number");
    assert_eq!(world.device.nsid(), Some(2));

    lose_association(&mut world);
    world.run_until("a way back", 1000, |w| w.is_live() && w.queues[0].queue.health() == Health::Ready);
    assert_eq!(writes_to(&mut world), 2, "still known after a reconnect");

    change(&mut world, |s| s.namespaces = [(1, Shown::new(2)), (3, Shown::new(3))].into());
    world.turn_queue(0);
    assert_eq!((world.cause(), world.queues[0].queue.health()), (Code::PathNoAccess, Health::Down));
    change(&mut world, |s| s.show(4, Shown::new(1)));
    world.turn_queue(0);
    assert_eq!(writes_to(&mut world), 4, "it was gone, not given up");
}

/// After a resize one of the commands that ask for news is refused. What was known stays known, I/O goes on, and the new size is there
/// after the back-off.
#[test]
fn one_refused_identify_costs_the_path() {
    let commands = [
        What::Identify(cns::NAMESPACE),
        What::Identify(cns::NAMESPACE_DESCRIPTORS),
        What::Identify(cns::ACTIVE_NAMESPACES),
        What::Log(lid::ANA),
    ];
    for what in commands {
        let mut world = with_ana(&[(1, AnaState::Optimized, vec![1])]);
        world.script.refuse(what, StatusField::INTERNAL_ERROR, 1);
        change(&mut world, |s| s.namespaces.get_mut(&1).unwrap().blocks = 2 * BLOCKS);
        let span = world.memory(512, 7);
        assert_eq!(world.info().identity.identifiers, [Identifier::Nguid([1; 16])], "{what:?}");
        for tag in 0..10 {
            world.turn_queue(0);
            let (_, completion) = world.round_trip(Io::write(tag, 0, 1, span));
            assert_eq!(completion.status.code, Code::Ok, "{what:?}");
            world.run_ms(10);
        }
        world.run_until("the new size", 1500, |w| w.info().geometry.blocks == 2 * BLOCKS);
        assert_eq!(world.controller.statistics().losses, 0, "{what:?}");
        let (_, completion) = world.round_trip(Io::write(99, 2 * BLOCKS - 1, 1, span));
        assert_eq!(completion.status.code, Code::Ok, "{what:?}");
    }
}

/// The same refused for two minutes: it is asked less and less often, and I/O goes on all the time.
#[test]
fn one_refused_identify_costs_the_path_nor_do_many() {
    for what in [What::Identify(cns::NAMESPACE), What::Identify(cns::ACTIVE_NAMESPACES), What::Log(lid::ANA)] {
        let mut world = with_ana(&[(1, AnaState::Optimized, vec![1])]);
        world.script.refuse(what, StatusField::NAMESPACE_NOT_READY, u32::MAX);
        let before = world.script.asked(what);
        change(&mut world, |s| s.namespaces.get_mut(&1).unwrap().blocks = 2 * BLOCKS);
        let span = world.memory(512, 7);
        let mut asked = Vec::new();
        for tag in 0..120 {
            world.run_in_steps(1000, &[20]);
            assert_eq!(world.round_trip(Io::write(tag, 0, 1, span)).1.status.code, Code::Ok, "{what:?}");
            asked.push(world.script.asked(what) - before);
        }
        assert_eq!((world.info().geometry.blocks, world.controller.statistics().losses), (BLOCKS, 0));
        assert!((3..=6).contains(&asked[9]), "{what:?}: {} times in ten seconds", asked[9]);
        let late = asked[119] - asked[59];
        assert_eq!(late, 2, "{what:?}: times in the last minute; never given up");
    }
}

/// Identify is refused, and meanwhile the access has changed: what is known of it comes from the log. When all was answered at last,
/// the next refusal is met with patience anew.
#[test]
fn one_refused_identify_costs_the_path_and_neither_hides_nor_prolongs_anything() {
    let mut world = with_ana(&[(1, AnaState::Optimized, vec![1])]);
    let identify = What::Identify(cns::NAMESPACE);
    world.script.refuse(identify, StatusField::INTERNAL_ERROR, 4);
    change(&mut world, |s| {
        s.ana = vec![(1, AnaState::NonOptimized, vec![1])];
        s.namespaces.get_mut(&1).unwrap().blocks = 2 * BLOCKS;
    });
    assert_eq!((world.info().access, world.info().geometry.blocks), (Access::NonOptimized, BLOCKS));
    world.run_until("the new size", 16_000, |w| w.info().geometry.blocks == 2 * BLOCKS);
    world.script.refuse(identify, StatusField::INTERNAL_ERROR, 1);
    change(&mut world, |s| s.namespaces.get_mut(&1).unwrap().blocks = 3 * BLOCKS);
    world.run_until("the newer size", 1500, |w| w.info().geometry.blocks == 3 * BLOCKS);
}

/// The first Identify of a namespace is refused while the controller comes up: it is asked again.
#[test]
fn one_refused_identify_costs_the_path_not_even_at_bring_up() {
    let script = Script::new();
    script.refuse(What::Identify(cns::NAMESPACE), StatusField::NAMESPACE_NOT_READY, 2);
    let config = config(&script);
    let mut world = World::start(script, config);
    world.run_until("a controller that is up", 500, |w| w.controller.is_live());
    assert_eq!(world.cause(), Code::PathNoAccess);
    world.run_until("the namespace", 3500, |w| w.is_live());
    assert_eq!(world.controller.statistics().connects, 1);
}

/// A world with ANA and one namespace that says it is in group 1.
fn with_ana(groups: &[(u32, AnaState, Vec<u32>)]) -> World {
    let script = Script::new();
    script.state().ana = groups.to_vec();
    let config = config(&script);
    World::up_with(script, config, 8)
}

fn change_ana(world: &mut World, groups: &[(u32, AnaState, Vec<u32>)]) {
    world.script.state().ana = groups.to_vec();
    world.script.event(EventKind::AnaChanged);
    world.run_ms(60);
}

/// A namespace is moved to another ANA group. Only the log is read again, whose list of namespaces tells it; what Identify Namespace
/// had said of the group is of yesterday.
#[test]
fn a_namespace_that_moved_to_another_ana_group() {
    use AnaState::{Inaccessible, NonOptimized, Optimized};
    let mut world = with_ana(&[(1, Optimized, vec![1]), (2, Inaccessible, vec![])]);
    assert_eq!(world.info().access, Access::Optimized);
    change_ana(&mut world, &[(1, Optimized, vec![]), (2, Inaccessible, vec![1])]);
    assert_eq!(world.info().access, Access::Inaccessible, "into a group that is inaccessible");
    change_ana(&mut world, &[(1, Optimized, vec![1]), (2, Inaccessible, vec![])]);
    assert_eq!(world.info().access, Access::Optimized, "and back");
    change_ana(&mut world, &[(1, Inaccessible, vec![]), (3, NonOptimized, vec![1])]);
    assert_eq!(world.info().access, Access::NonOptimized, "out of a group that became inaccessible");
    change_ana(&mut world, &[(1, Optimized, vec![]), (3, NonOptimized, vec![])]);
    assert_eq!(world.info().access, Access::Optimized, "listed nowhere: by the group it named itself");
}

/// A rescan has read the ANA log and waits for Identify Namespace; meanwhile the state changes and a command comes back with it; the
/// rescan ends. The older read must not be written last.
#[test]
fn a_rescan_and_an_ana_refresh_race() {
    let mut world = with_ana(&[(1, AnaState::Optimized, vec![1])]);
    world.script.hold(What::Identify(cns::NAMESPACE));
    world.script.event(EventKind::NamespacesChanged);
    world.run_until("the rescan", 200, |w| !w.script.held(What::Identify(cns::NAMESPACE)).is_empty());
    world.script.state().ana = vec![(1, AnaState::Inaccessible, vec![1])];
    let span = world.memory(512, 7);
    let sqe = world.send(Io::write(1, 0, 1, span));
    world.script.answer(1, sqe.cid(), StatusField::ANA_INACCESSIBLE);
    world.run_ms(100);
    assert_eq!(world.take_completion(0, 1).status.code, Code::PathNoAccess);
    world.script.release(What::Identify(cns::NAMESPACE));
    world.run_ms(100);
    assert_eq!(world.info().access, Access::Inaccessible, "an older read was written last");
}

/// Two namespaces without any identifier: at a reconnect another serial number answers.
#[test]
fn namespaces_without_identifiers_are_compared_by_their_place() {
    let script = Script::new();
    script.state().namespaces.get_mut(&1).unwrap().nguid = [0; 16];
    let config = config(&script);
    let mut world = World::up_with(script, config, 8);
    lose_association(&mut world);
    world.run_until("a way back", 1000, |w| w.is_live());
    world.script.state().serial = "ANOTHER".into();
    lose_association(&mut world);
    world.run_ms(1000);
    assert_eq!((world.cause(), world.queues[0].queue.health()), (Code::PathIdentity, Health::Down));
    world.script.state().serial = "SERIAL".into();
    world.script.reset(0);
    world.run_until("the first one again", 1000, |w| w.is_live());
}

/// A controller that all of its namespaces share is configured for none of them: whoever uses one names it by taking its device.
#[test]
fn a_namespace_that_is_used_is_found_behind_a_thousand_others() {
    let script = Script::new();
    (2..=1024).for_each(|nsid| script.state().show(nsid, Shown::new(nsid as u8)));
    script.state().show(5000, Shown::new(77));
    let mut world = World::start(script.clone(), ControllerConfig { ns: None, ..config(&script) });
    let used = [1024, 5000, 5000].map(|nsid| world.controller.namespace(nsid));
    world.run_until("a controller that is up", 10_000, |w| w.controller.is_live());
    assert!(used.iter().all(|device| device.state().info().is_some()), "{:?}", used[1].state());
    assert_eq!(script.asked(What::Identify(cns::NAMESPACE)), 1025, "each once");
    script.state().show(6000, Shown::new(78));
    let later = world.controller.namespace(6000);
    world.run_until("one that is asked for later", 10_000, |_| later.state().info().is_some());
    // Nobody uses that one any more, and one of two has let go of the other.
    let [_, one, other] = used;
    drop((later, one));
    let mut look_again = || {
        let before = script.asked(What::Identify(cns::NAMESPACE));
        change(&mut world, |_| ());
        world.run_ms(6000);
        script.asked(What::Identify(cns::NAMESPACE)) - before
    };
    assert_eq!((look_again(), other.state().info().is_some()), (1025, true));
    drop(other);
    assert_eq!(look_again(), 1024);
}
