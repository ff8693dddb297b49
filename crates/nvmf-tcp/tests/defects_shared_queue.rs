//! One queue pair for several namespaces: what concerns one of them does not concern the others, and a reactor that ends under a queue
//! leaves somebody behind who knows when its commands are quiet.

use crate::script::{Script, Shown, What};
use crate::turns::{BOUND, FENCE, World, config};
use polypath_block::{
    Code, ControllerQueue, Cx, Device, DeviceState, Done, FenceState, Health, Io, Proof, QueueConfig, QueueSource,
    SegSpan, Unit, UnitId,
};
use polypath_nvme::StatusField;
use polypath_nvme::log::EventKind;
use polypath_nvmf_tcp::ControllerConfig;

/// A queue pair with a unit for each of two namespaces. The world's own queues are not used for it.
struct Pair {
    world: World,
    queue: Box<dyn ControllerQueue>,
    units: [Unit; 2],
    done: Done,
}

impl Pair {
    fn up() -> Pair {
        let script = Script::new();
        script.state().namespaces.insert(2, Shown::new(2));
        let config = ControllerConfig { ns: None, ..config(&script) };
        let mut world = World::start(script, config);
        world.run_until("a controller that is up", 500, |w| w.controller.is_live());
        let mut queue = world.controller.open_controller_queue(QueueConfig { depth: 32 }).unwrap();
        let units = [1, 2].map(|nsid| queue.open_unit(UnitId(nsid)).unwrap());
        let mut pair = Pair { world, queue, units, done: Done::default() };
        for _ in 0..100 {
            pair.world.let_admin_look();
            pair.turn();
        }
        assert!(pair.units.iter().all(|&unit| pair.queue.health(unit) == Health::Ready));
        pair
    }

    fn turn(&mut self) {
        let mut cx = Cx { now: self.world.now, segs: &mut self.world.segs, reactor: 0 };
        self.queue.kick(&mut cx);
        self.queue.poll(&mut cx, &mut self.done);
    }

    fn submit(&mut self, nsid: usize, io: Io) {
        let mut cx = Cx { now: self.world.now, segs: &mut self.world.segs, reactor: 0 };
        self.queue.submit(&mut cx, self.units[nsid - 1], io).expect("a ready queue takes a request");
    }

    fn code(&self, tag: u64) -> Option<Code> {
        self.done.completions.iter().find(|c| c.tag == tag).map(|c| c.status.code)
    }

    /// Ten writes to each namespace by turns, tags 1 to 10 and 101 to 110; only the first, to namespace 1, leaves.
    fn fill(&mut self) -> SegSpan {
        let span = self.world.memory(512, 7);
        self.world.script.set_room(1, 72 + 512);
        for tag in 1..=10 {
            self.submit(1, Io::write(tag, tag, 1, span));
            self.submit(2, Io::write(100 + tag, tag, 1, span));
        }
        self.turn();
        span
    }

    /// The admin queue alone reads that the namespaces have changed.
    fn change(&mut self, change: impl FnOnce(&mut crate::script::State)) {
        change(&mut self.world.script.state());
        self.world.script.event(EventKind::NamespacesChanged);
        for _ in 0..60 {
            self.world.let_admin_look();
        }
    }

    fn finish_all(&mut self) {
        self.world.script.set_room(1, usize::MAX);
        for _ in 0..20 {
            self.turn();
            self.world.script.succeed_all(1);
        }
        self.turn();
    }
}

/// Namespace 1 becomes another disk while requests for both wait on one queue pair: those of namespace 1 do not leave, and all of
/// namespace 2 are done.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one_and_other_namespaces_go_on() {
    let mut pair = Pair::up();
    pair.fill();
    pair.change(|s| s.namespaces.get_mut(&1).unwrap().nguid = [9; 16]);
    pair.finish_all();
    let seen = pair.world.script.seen(1);
    assert_eq!(seen.iter().filter(|sqe| sqe.nsid() == 1).count(), 1, "writes went to another disk");
    for tag in 1..=10 {
        assert_eq!(pair.code(tag), Some(Code::PathIdentity), "{tag}");
        assert_eq!(pair.code(100 + tag), Some(Code::Ok), "{tag}");
    }
    assert_eq!(pair.queue.health(pair.units[0]), Health::Down);
    assert_eq!(pair.queue.health(pair.units[1]), Health::Ready);
    assert_eq!(pair.world.controller.statistics().losses, 0);
}

/// A write to namespace 1 of which a part has left costs the connection. For namespace 2 the way is lost, and nothing is wrong with it.
#[test]
fn writes_go_to_a_disk_already_known_to_be_another_one_and_for_other_namespaces_the_way_is_lost() {
    let mut pair = Pair::up();
    let span = pair.world.memory(512, 7);
    pair.world.script.set_room(1, 72 + 512 + 100);
    for (tag, nsid) in [(1, 2), (2, 1), (3, 2)] {
        pair.submit(nsid, Io::write(tag, tag, 1, span));
    }
    pair.turn();
    pair.change(|s| s.namespaces.get_mut(&1).unwrap().nguid = [9; 16]);
    pair.turn();
    let suspects: Vec<_> = pair.done.suspects.iter().map(|s| (s.tag, s.cause)).collect();
    assert_eq!(suspects, [(1, Code::PathLost), (2, Code::PathIdentity)]);
    let quiet: Vec<_> = pair.done.completions.iter().map(|c| (c.tag, c.status.code, c.proof)).collect();
    assert_eq!(quiet, [(3, Code::PathLost, Proof::NeverSent)]);
    let device = pair.world.controller.namespace(2);
    assert!(matches!(device.state(), DeviceState::Down { cause: Code::PathLost, .. }), "{:?}", device.state());
}

/// The same with another block size, and with a namespace that is gone.
#[test]
fn a_namespace_that_changes_does_not_disturb_the_others() {
    for gone in [false, true] {
        let mut pair = Pair::up();
        let span = pair.fill();
        pair.change(|s| {
            if gone {
                s.namespaces.remove(&1);
            } else {
                s.namespaces.get_mut(&1).unwrap().block_shift = 12;
            }
        });
        pair.finish_all();
        for tag in 1..=10 {
            let want = if gone { Code::PathNoAccess } else { Code::PathIdentity };
            assert_eq!((pair.code(tag), pair.code(100 + tag)), (Some(want), Some(Code::Ok)), "{tag}");
        }
        pair.submit(2, Io::write(200, 0, 1, span));
        pair.finish_all();
        assert_eq!(pair.code(200), Some(Code::Ok));
    }
}

/// A namespace grows: nothing of what is open on it is disturbed.
#[test]
fn growth_disturbs_nothing() {
    let mut pair = Pair::up();
    pair.fill();
    pair.change(|s| s.namespaces.get_mut(&1).unwrap().blocks *= 2);
    pair.finish_all();
    assert!((1..=10).all(|tag| pair.code(tag) == Some(Code::Ok) && pair.code(100 + tag) == Some(Code::Ok)));
    let span = pair.world.memory(512, 7);
    pair.submit(1, Io::write(200, crate::script::BLOCKS + 1, 1, span));
    pair.finish_all();
    assert_eq!(pair.code(200), Some(Code::Ok), "and the new size is known");
}

/// A unit is closed and opened again after another disk took its number: whoever comes later knows no other.
#[test]
fn a_number_that_nobody_uses_may_become_another_disk() {
    let mut pair = Pair::up();
    pair.queue.close_unit(pair.units[0]);
    pair.change(|s| s.namespaces.get_mut(&1).unwrap().nguid = [9; 16]);
    pair.units[0] = pair.queue.open_unit(UnitId(1)).unwrap();
    pair.turn();
    let span = pair.world.memory(512, 7);
    pair.submit(1, Io::write(1, 0, 1, span));
    pair.finish_all();
    assert_eq!(pair.code(1), Some(Code::Ok));
}

/// A unit that is opened again is the same place, and usable until it was closed as often.
#[test]
fn a_unit_is_closed_as_often_as_it_was_opened() {
    let mut pair = Pair::up();
    assert_eq!([2, 1].map(|id| pair.queue.open_unit(UnitId(id)).unwrap()), [pair.units[1], pair.units[0]]);
    pair.turn();
    let span = pair.world.memory(512, 7);
    for tag in 1..=2 {
        pair.submit(1, Io::write(tag, 0, 1, span));
        pair.finish_all();
        assert_eq!(pair.code(tag), Some(Code::Ok), "open {} times", 3 - tag);
        pair.queue.close_unit(pair.units[0]);
    }
    assert_eq!([0, 1].map(|at| pair.queue.health(pair.units[at])), [Health::Down, Health::Ready]);
}

/// A reactor ends under its queue, with a write on the way. Who outlives it learns when that is quiet: not before all sockets of the
/// association, that of the admin queue and of other queues included, are closed, and the bound has passed.
#[test]
fn a_reactor_that_ends_under_its_queues() {
    let script = Script::new();
    let config = config(&script);
    let mut world = World::up_with(script, config, 8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    let mut queue = world.controller.open_controller_queue(QueueConfig { depth: 8 }).unwrap();
    let unit = queue.open_unit(UnitId(1)).unwrap();
    let mut done = Done::default();
    for _ in 0..50 {
        world.pass_ms(1);
        queue.poll(&mut Cx { now: world.now, segs: &mut world.segs, reactor: 1 }, &mut done);
    }
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 1 };
    queue.submit(&mut cx, unit, Io::write(2, 8, 1, span)).unwrap();
    queue.kick(&mut cx);
    assert_eq!(world.script.open(2).len(), 1);

    let end_fence = queue.end_fence().expect("somebody knows");
    assert_eq!(end_fence.state(world.now), FenceState::Idle, "it lives");
    drop(queue);
    assert!(world.script.is_closed(2));
    let pending = |world: &World| matches!(end_fence.state(world.now), FenceState::Pending { .. });
    assert_eq!((end_fence.terms().proof, end_fence.terms().within), (FENCE, BOUND));
    world.pass_ms(10_000);
    assert!(pending(&world), "the admin socket and that of queue 1 are open");
    world.turn_queue(0);
    assert!(world.is_suspect(0, 1) && world.script.is_closed(1), "the association is lost for every queue");
    world.pass_ms(10_000);
    assert!(pending(&world), "the admin socket is open");
    world.let_admin_look();
    assert!(world.script.is_closed(0));
    let closed = world.now;
    assert_eq!(end_fence.state(closed), FenceState::Pending { by: closed.after(BOUND) });
    assert_eq!(end_fence.state(closed.after(BOUND)), FenceState::Quiet(FENCE));
    world.expect_fenced(0, 1, closed);
    world.run_until("a way back", 1000, |w| w.is_live());
    assert_eq!(end_fence.state(world.now), FenceState::Quiet(FENCE), "whatever the next association does");
}

/// A reactor ends under a queue with a write on the way, or with an Abort under way of one that is over, or both: the Abort could still
/// hit a command of the next connection, which is the same queue to the controller.
#[test]
fn a_reactor_that_ends_under_an_abort() {
    for (open, aborting) in [(true, false), (false, true), (true, true)] {
        let mut pair = Pair::up();
        let span = pair.world.memory(512, 7);
        if aborting {
            pair.submit(1, Io::write(1, 0, 1, span));
            for _ in 0..3200 {
                pair.world.let_admin_look();
                pair.turn();
            }
            assert_eq!(pair.world.script.held(What::Abort).len(), 1);
            pair.world.script.answer(1, pair.world.script.open_cids(1)[0], StatusField::SUCCESS);
            pair.turn();
            assert_eq!(pair.code(1), Some(Code::Ok), "late, and done all the same");
        }
        if open {
            pair.submit(1, Io::write(2, 8, 1, span));
            pair.turn();
        }
        let end_fence = pair.queue.end_fence().unwrap();
        drop(pair.queue);
        assert!(
            !pair.world.controller.is_live() && pair.world.script.is_aborted(1),
            "open {open}, aborting {aborting}"
        );
        pair.world.let_admin_look();
        let by = pair.world.now.after(BOUND);
        assert_eq!(end_fence.state(pair.world.now), FenceState::Pending { by }, "open {open}, aborting {aborting}");
    }
}

/// A reactor ends under a queue whose write already waits for the fence of an association that was lost before.
#[test]
fn a_reactor_that_ends_under_a_fence() {
    let mut pair = Pair::up();
    let span = pair.world.memory(512, 7);
    pair.submit(1, Io::write(1, 0, 1, span));
    pair.turn();
    pair.world.script.reset(1);
    pair.turn();
    assert_eq!(pair.done.suspects.len(), 1);
    pair.world.let_admin_look();
    let closed = pair.world.now;
    let end_fence = pair.queue.end_fence().unwrap();
    pair.world.pass_ms(500);
    drop(pair.queue);
    assert_eq!(end_fence.state(pair.world.now), FenceState::Pending { by: closed.after(BOUND) });
    assert_eq!(end_fence.state(closed.after(BOUND)), FenceState::Quiet(FENCE));
}

/// A queue that ends with nothing open leaves the association alone.
#[test]
fn a_queue_that_ends_with_nothing_open_costs_nothing() {
    let mut pair = Pair::up();
    let span = pair.world.memory(512, 7);
    pair.submit(1, Io::write(1, 0, 1, span));
    pair.turn();
    pair.world.script.answer(1, pair.world.script.open_cids(1)[0], StatusField::SUCCESS);
    pair.turn();
    assert_eq!(pair.code(1), Some(Code::Ok));
    let end_fence = pair.queue.end_fence().unwrap();
    drop(pair.queue);
    assert!(matches!(end_fence.state(pair.world.now), FenceState::Quiet(_)));
    pair.world.run_ms(100);
    assert!(pair.world.controller.is_live());
    assert_eq!(pair.world.controller.statistics().losses, 0);
}
