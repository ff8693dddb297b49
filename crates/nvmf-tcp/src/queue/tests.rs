//! What only another thread can bring about between two lines of this one, put in its place by hand.

#[path = "../../tests/common/turns.rs"]
mod turns;

use super::QueuePair;
use crate::script;
use crate::shared::AbortAnswer;
use polypath_block::{Armed, Code, ControllerQueue, Cx, Done, Fate, Health, Io, QueueConfig, Unit, UnitId, Waits};
use polypath_nvme::{Cqe, StatusField};
use turns::World;

fn ready_pair(world: &mut World) -> (QueuePair, Unit) {
    let mut pair = QueuePair::open(world.controller.shared.clone(), QueueConfig { depth: 8 }).unwrap();
    let unit = pair.open_unit(UnitId(1)).unwrap();
    wait_ready(world, &mut pair, unit);
    (pair, unit)
}

fn wait_ready(world: &mut World, pair: &mut QueuePair, unit: Unit) {
    let mut done = Done::default();
    for _ in 0..500 {
        world.let_admin_look();
        turn(world, pair, &mut done);
    }
    assert!(pair.health(unit) == Health::Ready && done.is_empty());
}

fn turn(world: &mut World, pair: &mut QueuePair, done: &mut Done) {
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    pair.kick(&mut cx);
    pair.poll(&mut cx, done);
}

fn submit(world: &mut World, pair: &mut QueuePair, unit: Unit, io: Io) {
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    pair.submit(&mut cx, unit, io).unwrap();
}

/// The answer to an Abort over the first connection lies in the mailbox only when the second one is up, where slot and identifier are
/// the same again: it proves nothing of the command that has them now.
#[test]
fn the_answer_to_an_abort_belongs_to_its_connection() {
    let mut world = World::start_up();
    let (mut pair, unit) = ready_pair(&mut world);
    let first = pair.connection.as_ref().unwrap().id();
    world.script.reset(0);
    wait_ready(&mut world, &mut pair, unit);
    let second = pair.connection.as_ref().unwrap().id();
    assert_ne!(first, second);
    let span = world.memory(512, 1);
    let mut done = Done::default();
    submit(&mut world, &mut pair, unit, Io::write(1, 0, 1, span));
    turn(&mut world, &mut pair, &mut done);
    let cid = world.script.open_cids(1)[0];
    pair.mailbox.answer(AbortAnswer { connection: first, slot: cid & 0x3ff, cid, aborted: true });
    turn(&mut world, &mut pair, &mut done);
    world.script.reset(1);
    turn(&mut world, &mut pair, &mut done);
    let suspects: Vec<_> = done.suspects.iter().map(|s| (s.tag, s.fate)).collect();
    assert_eq!((suspects, done.completions.len()), (vec![(1, Fate::Unknown)], 0));
}

/// The association is lost when the queue has looked and not yet dialled: no socket of it is opened any more, and its fence ends.
#[test]
fn no_socket_is_opened_over_a_lost_association() {
    let mut world = World::start_up();
    let association = world.controller.shared.live().unwrap();
    let mut pair = QueuePair::open(world.controller.shared.clone(), QueueConfig { depth: 8 }).unwrap();
    pair.open_unit(UnitId(1)).unwrap();
    let mut done = Done::default();
    world.script.set_reachable(false);
    turn(&mut world, &mut pair, &mut done);
    world.script.set_reachable(true);
    assert!(pair.redial.is_some() && pair.connection.is_none(), "it could not dial, and will again");
    assert!(association.lose(Code::PathLost, "elsewhere"));
    assert!(!association.lose(Code::PathTimeout, "and again"), "it was lost before");
    assert_eq!(association.loss(), (Code::PathLost, "elsewhere".to_owned()));
    let dialled = world.script.dialled();
    world.pass_ms(200);
    turn(&mut world, &mut pair, &mut done);
    assert_eq!((world.script.dialled(), pair.connection.is_none()), (dialled, true));
    world.turn_admin();
    assert!(association.fence.quiet_at().is_some(), "every socket that was counted is closed");
}

/// A target that answers a command whose last octets are still to leave. When they leave, the command is over: the queue neither sleeps
/// over that nor waits for something else to come, whoever has sent them.
#[test]
fn nobody_sleeps_over_what_was_answered_before_it_had_left() {
    for by_kick in [false, true] {
        let mut world = World::start_up();
        let (mut pair, unit) = ready_pair(&mut world);
        let span = world.memory(512, 1);
        let mut done = Done::default();
        submit(&mut world, &mut pair, unit, Io::write(1, 0, 1, span));
        turn(&mut world, &mut pair, &mut done);
        let cid = world.script.open_cids(1)[0];
        world.script.answer(1, cid, StatusField::SUCCESS);
        turn(&mut world, &mut pair, &mut done);
        assert_eq!(done.completions.len(), 1);
        // The next command has the same slot in its next generation.
        world.script.set_room(1, 100);
        submit(&mut world, &mut pair, unit, Io::write(2, 0, 1, span));
        turn(&mut world, &mut pair, &mut done);
        world.script.answer_early(1, Cqe::new(cid + (1 << 10), StatusField::SUCCESS));
        turn(&mut world, &mut pair, &mut done);
        assert_eq!(done.completions.len(), 1, "it has not left");
        world.script.set_room(1, usize::MAX);
        let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
        if by_kick {
            pair.kick(&mut cx);
        } else {
            pair.poll(&mut cx, &mut done);
        }
        assert!(done.completions.len() == 2 || pair.arm(&mut cx, &mut Waits::default()) == Armed::Busy);
        pair.poll(&mut cx, &mut done);
        assert_eq!(done.completions.iter().map(|c| c.tag).collect::<Vec<_>>(), [1, 2], "by the kick: {by_kick}");
        assert_eq!(pair.arm(&mut cx, &mut Waits::default()), Armed::Sleep);
    }
}
