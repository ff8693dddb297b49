//! Defects around associations that end, and around reactors that come late, each by its name.

use crate::script::{Script, What};
use crate::turns::{BOUND, World, config};
use polypath_block::{Code, Device, DeviceState, Fate, Health, Io, Proof};
use polypath_nvmf_tcp::ControllerConfig;
use std::time::Duration;

/// How a reactor takes its turns, in milliseconds apart: always late, and late every other time.
const LATE: [&[u64]; 4] = [&[60], &[200], &[60, 10], &[10, 60, 60]];

/// A kick finds the connection of association 1 broken; the reactor stalls; meanwhile the admin queue loses that association and
/// comes back with the next, over which the queue then connects. The mark belongs to the connection it was made for: association 2
/// lives, and the writes of association 1 are quiet when their bound has passed.
#[test]
fn a_fence_that_never_ends() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    world.script.reset(1);
    world.submit(0, Io::write(2, 8, 1, span));
    let mut cx = polypath_block::Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    world.queues[0].queue.kick(&mut cx);
    // Only the admin queue has turns now.
    world.script.reset(0);
    for _ in 0..300 {
        world.let_admin_look();
    }
    assert_eq!(world.controller.statistics().connects, 2);
    assert!(world.is_live(), "association 2 is up");

    let closed = world.now;
    world.turn_queue(0);
    assert!(world.script.dialled() >= 3 && world.is_suspect(0, 1));
    assert_eq!(world.take_completion(0, 2).proof, Proof::NeverSent);
    world.run_until("a queue over association 2", 500, |w| w.queues[0].queue.health() == Health::Ready);
    world.expect_fenced(0, 1, closed);
    assert_eq!(world.controller.statistics().losses, 1, "association 2 has nothing to do with it");
    let (_, completion) = world.round_trip(Io::write(3, 0, 1, span));
    assert_eq!(completion.status.code, Code::Ok);
}

/// Several associations are lost one after the other, each with a write on it: each write waits for its own.
#[test]
fn a_fence_belongs_to_its_association() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    let mut lost = Vec::new();
    for tag in 1..=3 {
        world.send(Io::write(tag, 0, 1, span));
        world.script.reset(1);
        world.run_until("the loss", 10, |w| w.is_suspect(0, tag));
        lost.push(world.now);
        world.run_until("a way back", 1000, |w| w.is_live() && w.queues[0].queue.health() == Health::Ready);
    }
    world.run_ms(2 * BOUND.as_millis() as u64);
    for (tag, lost) in (1..).zip(lost) {
        let (_, when) = world.completion(0, tag).expect("its fence has ended");
        let waited = when.since(lost);
        assert!(waited >= BOUND && waited <= BOUND + Duration::from_millis(20), "write {tag} waited {waited:?}");
    }
    // One more when all of them are over.
    world.send(Io::write(4, 0, 1, span));
    world.script.reset(1);
    world.run_until("the loss", 10, |w| w.is_suspect(0, 4));
    let lost = world.now;
    world.expect_fenced(0, 4, lost);
}

/// A reactor whose turns always come late, or every other time. A connection that is cut and silent is left all the same.
#[test]
fn a_reactor_whose_turns_exceed_50_ms_checks_time_limits() {
    for steps in LATE {
        let mut world = World::up(8);
        let span = world.memory(512, 7);
        world.send(Io::write(1, 0, 1, span));
        world.script.silence(1, true);
        world.run_in_steps(2500, steps);
        assert!(world.is_suspect(0, 1), "{steps:?}: the connection is silent and cut, and nobody leaves it");
        assert_eq!(world.queues[0].suspects[0].0.cause, Code::PathTimeout);
    }
}

/// The same with a peer that acknowledges and does not answer: the command is aborted at its time limit, and then the way is left.
#[test]
fn a_reactor_whose_turns_exceed_50_ms_checks_time_limits_of_commands() {
    for steps in LATE {
        let mut world = World::up(8);
        let span = world.memory(512, 7);
        world.send(Io::write(1, 0, 1, span));
        world.run_in_steps(3500, steps);
        let aborts = world.script.held(What::Abort);
        assert_eq!(aborts.len(), 1, "{steps:?}: no Abort at the time limit");
        world.script.answer_abort(aborts[0].cid(), false);
        world.run_in_steps(3000, steps);
        assert!(world.is_suspect(0, 1), "{steps:?}: a command is neither answered nor aborted, and nobody leaves");
    }
}

/// The same on the admin side: a Keep Alive is not answered.
#[test]
fn a_reactor_whose_turns_exceed_50_ms_checks_time_limits_of_keep_alive() {
    for steps in LATE {
        let mut world = World::up(8);
        world.script.silence(0, true);
        world.script.set_reachable(false);
        world.run_in_steps(2500, steps);
        assert_eq!(world.controller.statistics().losses, 1, "{steps:?}: Keep Alive is not answered, and nobody leaves");
    }
}

/// A stall of our own is not the peer's silence: what came meanwhile, or is still on its way, is taken before anybody is judged.
#[test]
fn a_stall_of_our_own_is_forgiven() {
    let script = Script::new();
    let config = ControllerConfig { io_timeout: Duration::from_secs(60), ..config(&script) };
    let mut world = World::up_with(script, config, 8);
    let span = world.memory(512, 7);
    let sqe = world.send(Io::read(1, 0, 1, span));
    // The admin queue waits for the answer to a Keep Alive, the I/O queue for a read.
    world.script.hold(What::KeepAlive);
    world.run_until("a Keep Alive", 1000, |w| !w.script.held(What::KeepAlive).is_empty());
    world.script.silence(1, true);
    world.pass_ms(20_000);
    world.turn();
    world.run_ms(10);
    assert_eq!(world.controller.statistics().losses, 0, "nobody looked for twenty seconds");
    assert!(world.queues[0].completions.is_empty());
    world.script.speak(1);
    world.script.answer_read(1, sqe.cid(), 1);
    world.script.release(What::KeepAlive);
    world.run_ms(100);
    assert_eq!(world.take_completion(0, 1).status.code, Code::Ok);
    world.run_ms(3000);
    assert_eq!(world.controller.statistics().losses, 0);
}

/// Two queues. One is lost with a write on it; the reactor of the other has stalled, with its socket open, and ends much later. Until
/// then something may still have left over that socket: the clock of the fence starts there, and not at the last turn before.
#[test]
fn a_drop_stamps_its_fence_with_the_time_of_the_drop() {
    let mut world = World::up(8);
    let other = world.open_queue(8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    world.run_ms(10);
    world.script.reset(1);
    for _ in 0..10_000 {
        world.pass_ms(1);
        world.turn_admin();
        world.turn_queue(0);
    }
    assert!(world.is_suspect(0, 1));
    assert_eq!(world.completion(0, 1), None, "queue 2 has its socket open");
    let closed = world.now;
    drop(world.queues.remove(other));
    world.turn_queue(0);
    world.expect_fenced(0, 1, closed);
}

/// The admin queue closes its socket last: the fence counts from then.
#[test]
fn a_fence_waits_for_the_admin_socket() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    world.script.reset(1);
    for _ in 0..8000 {
        world.pass_ms(1);
        world.turn_queue(0);
    }
    assert!(world.is_suspect(0, 1) && !world.script.is_closed(0));
    assert_eq!(world.completion(0, 1), None, "the admin socket is open");
    world.let_admin_look();
    assert!(world.script.is_closed(0));
    let closed = world.now;
    world.expect_fenced(0, 1, closed);
}

/// The reactor of the admin queue ends. Nobody keeps the association alive any more: its queues leave it, and their writes wait for
/// the fence.
#[test]
fn a_reactor_that_ends_under_the_admin_queue_loses_the_association() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    world.pollers.clear();
    let closed = world.now;
    world.turn_queue(0);
    let suspect = world.queues[0].suspects.first().expect("the write is not quiet").0;
    assert_eq!((suspect.tag, suspect.fate, suspect.cause), (1, Fate::Unknown, Code::PathLost));
    assert_eq!(world.queues[0].queue.health(), Health::Down);
    assert!(matches!(world.device.state(), DeviceState::Gone { .. }), "{:?}", world.device.state());
    world.expect_fenced(0, 1, closed);
}

/// Associations are lost faster than their fences end. A queue takes no more than it could still have wait for a fence: what is open
/// counts as well.
#[test]
fn requests_that_wait_for_fences_are_bounded() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    for cycle in 0..10 {
        for tag in 0..3 {
            world.send(Io::write(cycle * 3 + tag, tag, 1, span));
        }
        world.script.reset(1);
        world.run_until("the loss", 10, |w| w.is_suspect(0, cycle * 3));
        world.run_until("a way back", 300, |w| w.is_live() && w.queues[0].queue.health() == Health::Ready);
    }
    assert_eq!((world.queues[0].suspects.len(), world.queues[0].completions.len()), (30, 0));
    let mut cx = polypath_block::Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    let queue = &mut world.queues[0].queue;
    let taken = (100..120).take_while(|&tag| queue.submit(&mut cx, Io::write(tag, 0, 1, span)).is_ok()).count();
    assert_eq!(taken, 2, "four times the depth of 8, less the 30 that wait");
    world.run_ms(1);
    world.script.succeed_all(1);
    world.run_ms(2 * BOUND.as_millis() as u64);
    assert_eq!(world.queues[0].completions.len(), 32);
}
