//! One I/O queue in virtual time: what a kick sends, when the queue looks, sleeps, dials and gives up, and what it counts.

use crate::script::{Script, What};
use crate::turns::{BOUND, TestQueue, World, config};
use polypath_block::{
    Armed, Code, Cx, Device, Flags, Health, Io, Op, Proof, QueueConfig, RefusedWhy, RegionId, Rest, SegRow, SegTable,
    SegTableFull, Time, Waits,
};
use polypath_nvme::sqe::io;
use polypath_nvmf_tcp::ControllerConfig;
use std::time::Duration;

const KIB: u32 = 1024;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn kick(world: &mut World, at: usize) {
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    world.queues[at].queue.kick(&mut cx);
}

fn close(world: &mut World, at: usize) {
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    world.queues[at].queue.close(&mut cx);
}

/// May the reactor sleep, and until when?
fn arm(world: &mut World, at: usize) -> (Armed, Option<Time>) {
    let mut waits = Waits::default();
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    (world.queues[at].queue.arm(&mut cx, &mut waits), waits.deadline)
}

/// A queue that has had no turn yet.
fn open_unready(world: &mut World) -> usize {
    let queue = world.device.open_queue(QueueConfig { depth: 8 }).unwrap();
    world.queues.push(TestQueue { queue, completions: Vec::new(), suspects: Vec::new() });
    world.queues.len() - 1
}

/// A queue that is closed while a write of its lost connection, with tag 1, waits for its fence.
fn closed_before_its_fence() -> World {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    world.script.reset(1);
    world.turn_queue(0);
    close(&mut world, 0);
    world
}

/// Only the admin queue has turns.
fn keep_alive_for(world: &mut World, ms: u64) {
    (0..ms).for_each(|_| world.let_admin_look());
}

/// A request leaves with the kick and does not wait for a poll, whether it fits into one command or is cut into as many as find room.
#[test]
fn a_kick_sends_what_was_submitted() {
    for (blocks, commands) in [(1, 1), (4096, 4)] {
        let mut world = World::up(8);
        let span = world.memory(blocks * 512, 7);
        world.submit(0, Io::write(1, 0, blocks, span));
        assert!(world.script.seen(1).is_empty());
        kick(&mut world, 0);
        assert_eq!(world.script.open(1).len(), commands, "{blocks} blocks");
    }
}

/// Every request slot of a queue has room for the range of a discard, however deep the queue is.
#[test]
fn as_many_discards_as_requests_may_be_under_way() {
    let script = Script::new();
    let config = ControllerConfig { queue_depth: 200, ..config(&script) };
    let mut world = World::up_with(script, config, 200);
    (0..200).for_each(|tag| world.submit(0, Io::range(tag, Op::Discard, tag, 1)));
    world.turn_queue(0);
    let open = world.script.open(1);
    assert_eq!((open.len(), open.iter().map(|o| o.data).min()), (200, Some(16)));
    world.script.succeed_all(1);
    world.turn_queue(0);
    assert!((0..200).all(|tag| world.take_completion(0, tag).status.is_ok()));
}

/// A request that is wrong is taken and ends with the next poll; as many as the queue is deep may wait for that, and no more.
#[test]
fn wrong_requests_take_room_until_they_are_handed_out() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    for round in 0..3 {
        for tag in 0..8 {
            world.submit(0, Io::read(tag, crate::script::BLOCKS, 1, span));
        }
        let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
        let refused = world.queues[0].queue.submit(&mut cx, Io::read(8, crate::script::BLOCKS, 1, span)).unwrap_err();
        assert_eq!(refused.why, RefusedWhy::Full, "round {round}");
        assert_eq!(arm(&mut world, 0).0, Armed::Busy, "what waits to be handed out keeps the reactor awake");
        world.turn_queue(0);
        for tag in 0..8 {
            let completion = world.take_completion(0, tag);
            assert_eq!((completion.status.code, completion.proof), (Code::OutOfRange, Proof::NeverSent));
        }
    }
    assert!(world.script.seen(1).is_empty() && arm(&mut world, 0).0 == Armed::Sleep);
}

/// The kernel is asked each turn while something is expected. An idle connection is looked at once a millisecond, and soon after
/// a sleep, which may have ended because of it.
#[test]
fn the_kernel_is_asked_when_something_may_have_come() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    let looks = |world: &mut World, after: Duration| {
        let before = world.script.calls(1);
        world.pass(after);
        world.turn_queue(0);
        world.script.calls(1) - before
    };
    looks(&mut world, ms(1));
    assert_eq!([0, 500, 499].map(|us| looks(&mut world, Duration::from_micros(us))), [0, 0, 0], "idle");
    assert_eq!([1, 999, 1].map(|us| looks(&mut world, Duration::from_micros(us))), [1, 0, 1], "once a millisecond");
    assert_eq!(arm(&mut world, 0).0, Armed::Sleep);
    assert_eq!([99, 1].map(|us| looks(&mut world, Duration::from_micros(us))), [0, 1], "woken, perhaps by this one");
    assert_eq!([100, 800].map(|us| looks(&mut world, Duration::from_micros(us))), [0, 0], "it did not sleep again");
    world.send(Io::read(1, 0, 1, span));
    assert_eq!([0, 0].map(|us| looks(&mut world, Duration::from_micros(us))), [1, 1], "an answer is expected");
}

/// What a reactor may sleep through: never the limits of what is under way, and no look at a clock for a queue that is idle.
#[test]
fn a_queue_sleeps_until_its_next_limit() {
    let mut world = World::start_up();
    world.script.state().mute = true;
    let at = open_unready(&mut world);
    assert_eq!(arm(&mut world, at).0, Armed::Busy, "the first turn looks at everything");
    world.turn_queue(at);
    let limit = world.now.after(ms(1000));
    assert_eq!(arm(&mut world, at), (Armed::Sleep, Some(limit)), "the connection is being made");
    world.script.state().mute = false;
    keep_alive_for(&mut world, 1000);
    world.turn_queue(at);
    let again = world.now.after(ms(100));
    assert_eq!(arm(&mut world, at), (Armed::Sleep, Some(again)), "the next attempt");
    world.run_until("a queue that is ready", 500, |w| w.queues[at].queue.health() == Health::Ready);

    assert_eq!(arm(&mut world, at), (Armed::Sleep, None), "ready and idle");
    let span = world.memory(512, 7);
    world.run_ms(200);
    world.send(Io::write(1, 0, 1, span));
    let look = world.now.after(ms(100));
    assert_eq!(arm(&mut world, at), (Armed::Sleep, Some(look)), "a command is out, whose limits are looked at");
    world.script.succeed_all(1);
    world.turn_queue(at);
    assert_eq!(arm(&mut world, at), (Armed::Sleep, None), "and idle again");
    // A send finds the connection reset.
    world.submit(at, Io::write(2, 0, 1, span));
    world.script.reset(1);
    kick(&mut world, at);
    assert_eq!(arm(&mut world, at).0, Armed::Busy, "it is to be left");
}

/// The reactor sleeps until the fence ends, and one turn then completes what waited for it, at that very time.
#[test]
fn a_queue_sleeps_until_its_fence_and_wakes_to_a_completion() {
    let mut world = closed_before_its_fence();
    world.turn_queue(0);
    let others = world.now.after(ms(5));
    assert_eq!(
        arm(&mut world, 0),
        (Armed::Sleep, Some(others)),
        "the admin socket is open, which this one learns by looking"
    );
    world.let_admin_look();
    let quiet = world.now.after(BOUND);
    world.pass_ms(4);
    world.turn_queue(0);
    assert_eq!(arm(&mut world, 0), (Armed::Sleep, Some(quiet)), "a closed queue has nothing else to wait for");
    world.pass(quiet.since(world.now));
    world.turn_queue(0);
    world.take_completion(0, 1);
    assert!(world.queues[0].queue.is_drained());
}

/// A closed queue finishes what is open, and what waits to be handed out, before it is drained.
#[test]
fn a_closed_queue_finishes_what_is_open() {
    for (lba, code) in [(0, Code::Ok), (crate::script::BLOCKS, Code::OutOfRange)] {
        let mut world = World::up(8);
        let span = world.memory(512, 7);
        world.submit(0, Io::write(1, lba, 1, span));
        kick(&mut world, 0);
        close(&mut world, 0);
        assert!(!world.queues[0].queue.is_drained() && !world.script.is_closed(1), "{code:?}");
        world.script.succeed_all(1);
        world.turn_queue(0);
        assert_eq!(world.take_completion(0, 1).status.code, code);
        assert!(world.queues[0].queue.is_drained() && world.script.is_closed(1), "{code:?}");
    }
}

/// A closed queue whose writes wait for their fence does not connect any more, although the controller is back before.
#[test]
fn a_closed_queue_does_not_dial() {
    let mut world = closed_before_its_fence();
    world.run_until("a way back", 1000, |w| w.is_live());
    world.turn_queue(0);
    let (armed, until) = arm(&mut world, 0);
    assert!(armed == Armed::Sleep && until.is_some_and(|at| at > world.now), "{until:?}: the fence, and no attempt");
    let dialled = world.script.dialled();
    world.run_until("the fence", 3000, |w| w.queues[0].queue.is_drained());
    assert_eq!((world.script.dialled(), world.is_live()), (dialled, true));
}

/// The target refuses the connection of an I/O queue: it is dialled again after a pause that grows to ten times the first one. The
/// association need not suffer, and the queue is not one too many.
#[test]
fn a_queue_that_is_not_let_in_tries_again_less_and_less_often() {
    let script = Script::new();
    script.state().granted = 1;
    let config = config(&script);
    let mut world = World::start(script, config);
    world.run_until("a device that is live", 500, |w| w.is_live());
    let at = open_unready(&mut world);
    let dialled = world.script.dialled();
    world.script.set_reachable(false);
    world.turn_queue(at);
    for failures in 1..=12 {
        let pause = 100 * failures.min(10);
        keep_alive_for(&mut world, pause - 1);
        world.script.set_reachable(true);
        world.turn_queue(at);
        assert_eq!(world.script.dialled(), dialled, "attempt {failures} is followed by a pause of {pause} ms");
        assert!(!world.queues[at].queue.is_surplus());
        world.script.set_reachable(false);
        keep_alive_for(&mut world, 1);
        world.turn_queue(at);
    }
    world.script.set_reachable(true);
    keep_alive_for(&mut world, 1000);
    world.run_until("a queue that is ready", 5, |w| w.queues[at].queue.health() == Health::Ready);
    assert_eq!((world.script.dialled(), world.controller.statistics().losses), (dialled + 1, 0));
}

/// The target takes the connection of an I/O queue and says nothing: it is given up at its limit and tried again.
#[test]
fn a_queue_that_is_let_in_and_not_answered_gives_up_in_time() {
    let mut world = World::start_up();
    let at = open_unready(&mut world);
    let dialled = world.script.dialled();
    world.script.state().mute = true;
    world.turn_queue(at);
    for ms in 0..1000 {
        assert_eq!((world.script.dialled(), arm(&mut world, at).0), (dialled + 1, Armed::Sleep), "{ms} ms");
        world.run_ms(1);
    }
    world.script.state().mute = false;
    let took = world.run_until("a queue that is ready", 200, |w| w.queues[at].queue.health() == Health::Ready);
    assert!(took >= ms(99), "after a pause, and not {took:?}");
    assert_eq!((world.script.dialled(), world.controller.statistics().losses), (dialled + 2, 0));
}

/// The answer to Connect takes its time: nothing else is sent meanwhile, and Connect not again.
#[test]
fn connect_is_sent_once() {
    let mut world = World::start_up();
    let at = open_unready(&mut world);
    // The dial, ICReq, Connect.
    (0..3).for_each(|_| world.turn_queue(at));
    world.script.silence(1, false);
    (0..10).for_each(|_| world.turn_queue(at));
    assert_eq!((world.script.octets(1), world.queues[at].queue.health()), (128 + 72 + 1024, Health::Down));
    world.script.speak(1);
    world.turn_queue(at);
    assert_eq!(world.queues[at].queue.health(), Health::Ready);
}

/// After a reconnect the controller grants fewer queues than are open. Those with numbers it did not grant are not dialled and say
/// that they are too many, as long as that association is up; the last one that was granted is not.
#[test]
fn a_queue_that_is_not_granted_any_more_is_surplus() {
    let mut world = World::up(8);
    world.open_queue(8);
    let surplus = |world: &World| [0, 1].map(|at| world.queues[at].queue.is_surplus());
    assert_eq!(surplus(&world), [false, false]);
    world.script.state().granted = 1;
    world.script.reset(0);
    world.run_until("a way back", 1000, |w| w.controller.statistics().connects == 2 && w.is_live());
    world.run_ms(300);
    assert_eq!(world.queues[0].queue.health(), Health::Ready);
    assert_eq!((world.queues[1].queue.health(), surplus(&world)), (Health::Down, [false, true]));
    assert!(world.script.is_closed(2), "it must not be dialled");
    assert_eq!(arm(&mut world, 1), (Armed::Sleep, None), "nor looked at before something changes");

    world.script.state().granted = 2;
    world.script.reset(0);
    world.run_until("the loss", 50, |w| w.controller.statistics().losses == 2);
    assert_eq!(surplus(&world), [false, false], "what the next association grants is not known");
    world.run_until("both queues", 1000, |w| w.queues.iter().all(|q| q.queue.health() == Health::Ready));
    assert_eq!(surplus(&world), [false, false]);
}

/// A queue takes its part of the segment table once, however many turns it has, and gives it back when it is closed.
#[test]
fn a_queue_takes_its_segments_once_and_gives_them_back() {
    const LIMIT: u32 = 64;
    let reserve = |world: &mut World, rows| -> Result<SegRow, SegTableFull> { world.segs.reserve(rows, 1) };
    let mut world = World::start_up();
    world.segs = SegTable::new(LIMIT);
    world.open_queue(8);
    world.run_ms(10);
    let others = reserve(&mut world, LIMIT - 8).expect("a queue of depth 8 has eight of them");
    reserve(&mut world, 1).unwrap_err();
    world.run_ms(10);
    close(&mut world, 0);
    world.run_ms(10);
    reserve(&mut world, 8).expect("a closed queue has none");
    world.segs.release(others);
}

/// What statistics say: commands that were finished, octets of requests that completed, calls of the kernel over every connection.
#[test]
fn a_queue_counts_what_it_did() {
    let mut world = World::up(8);
    let span = world.memory(256 * KIB, 7);
    world.round_trip(Io::write(1, 0, 1, span));
    world.round_trip(Io::write(2, 8, 3, span));
    world.submit(0, Io::read(3, 0, 512, span));
    world.turn_queue(0);
    world.script.succeed_all(1);
    world.turn_queue(0);
    assert!(world.take_completion(0, 3).status.is_ok());
    // Counts are published with the next look at limits.
    world.run_ms(200);
    let first = world.script.calls(1);
    let counted = world.controller.statistics();
    assert_eq!((counted.ios, counted.bytes), (4, 4 * 512 + 256 * 1024));
    assert!(counted.syscalls > 0 && counted.syscalls <= first);

    world.send(Io::flush(4));
    let first = world.script.calls(1);
    world.script.reset(1);
    world.turn_queue(0);
    assert_eq!(world.controller.statistics().syscalls, first, "at a loss nothing is left out");
    world.run_until("a way back", 1000, |w| w.is_live() && w.queues[0].queue.health() == Health::Ready);
    world.round_trip(Io::flush(5));
    close(&mut world, 0);
    let counted = world.controller.statistics();
    assert_eq!((counted.ios, counted.syscalls), (5, first + world.script.calls(1)), "nor at the end");
}

/// A connection with something on it is closed abortively, so that nothing more of that leaves from the kernel's buffers, whoever
/// closes it; an idle one in order.
#[test]
fn only_an_idle_connection_is_closed_in_order() {
    let mut world = World::up(8);
    close(&mut world, 0);
    assert_eq!((world.script.is_closed(1), world.script.is_aborted(1)), (true, false), "drained");
    for drop_it in [false, true] {
        let mut world = World::up(8);
        let span = world.memory(512, 7);
        world.send(Io::write(1, 0, 1, span));
        if drop_it {
            world.queues.clear();
        } else {
            world.script.reset(0);
            world.let_admin_look();
            world.turn_queue(0);
        }
        assert!(world.script.is_closed(1) && world.script.is_aborted(1), "with a write on it; dropped: {drop_it}");
    }
}

/// Nothing is expected of an idle connection, however long it is silent.
#[test]
fn an_idle_queue_is_never_stalled() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    world.round_trip(Io::write(1, 0, 1, span));
    let asked = world.script.asked(What::KeepAlive);
    for _ in 0..5000 {
        world.run_ms(1);
        assert_eq!(world.queues[0].queue.health(), Health::Ready);
    }
    let asked = world.script.asked(What::KeepAlive) - asked;
    assert!(asked <= 11, "{asked} times in five seconds: one each half timeout, and nobody asks for more");
}

/// Silence is measured from what was last heard, or from the first command after a pause, and not from the last one sent: a host
/// that goes on sending must not hide it.
#[test]
fn a_connection_that_hears_nothing_is_stalled_however_much_it_sends() {
    let mut world = World::up(32);
    world.run_ms(3000);
    for tag in 0..4 {
        world.send(Io::flush(tag));
        world.run_ms(120);
        assert_eq!(world.queues[0].queue.health(), Health::Ready, "the silence began with the first command");
    }
    world.run_ms(120);
    assert_eq!(world.queues[0].queue.health(), Health::Stalled);
    world.script.answer(1, world.script.open_cids(1)[0], polypath_nvme::StatusField::SUCCESS);
    world.turn_queue(0);
    assert_eq!(world.queues[0].queue.health(), Health::Ready, "a sign of life");
}

/// After a stall of our own nobody is judged at once: answers that were on their way meanwhile have a grace to come in, and only then is
/// a command too late.
#[test]
fn a_command_is_not_aborted_for_a_stall_of_our_own() {
    for answered in [true, false] {
        let mut world = World::up(8);
        let span = world.memory(512, 7);
        let sqe = world.send(Io::write(1, 0, 1, span));
        world.pass_ms(20_000);
        world.turn_queue(0);
        world.run_ms(50);
        assert_eq!(world.script.asked(What::Abort), 0, "twenty seconds of which nobody looked");
        if answered {
            world.script.answer(1, sqe.cid(), polypath_nvme::StatusField::SUCCESS);
        }
        world.run_ms(100);
        assert_eq!(world.script.asked(What::Abort), usize::from(!answered));
        assert_eq!(world.completion(0, 1).is_some(), answered);
    }
}

/// A sleep that was agreed is no stall: a reactor that sleeps from limit to limit sees silence in its time.
#[test]
fn a_reactor_that_sleeps_as_agreed_sees_silence_in_its_time() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    world.script.silence(1, true);
    let sent = world.now;
    while !world.is_suspect(0, 1) {
        let (_, until) = arm(&mut world, 0);
        let sleep_ms = until.map_or(0, |until| until.since(world.now).as_millis() as u64);
        keep_alive_for(&mut world, sleep_ms.clamp(1, 1000));
        world.turn_queue(0);
        assert!(world.now.since(sent) <= ms(1100), "cut for more than a second, and nobody leaves");
    }
}

/// The limit of silence and that of a command are reached at once, over a connection that is cut: it is left, and nobody is asked to
/// abort what is on it.
#[test]
fn nothing_is_aborted_over_a_connection_that_is_cut() {
    let script = Script::new();
    let config = ControllerConfig { io_timeout: ms(1000), ..config(&script) };
    let mut world = World::up_with(script, config, 8);
    let span = world.memory(512, 7);
    world.send(Io::write(1, 0, 1, span));
    world.script.silence(1, true);
    world.run_until("the loss", 1200, |w| w.is_suspect(0, 1));
    world.run_ms(10);
    assert_eq!((world.script.asked(What::Abort), world.controller.statistics().losses), (0, 1));
}

/// What is not common in a batch is taken in its place; the first that finds no room ends it, and says why.
#[test]
fn a_batch_is_taken_in_order_as_far_as_there_is_room() {
    let mut world = World::up(8);
    let span = world.memory(4096, 7);
    let (submit, gone) = (
        |world: &mut World, ios: &[Io]| {
            let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
            world.queues[0].queue.submit_all(&mut cx, ios)
        },
        Rest { taken: 0, why: RefusedWhy::Gone },
    );
    assert_eq!(submit(&mut world, &[]), Ok(()));
    let past_the_end = Io::read(3, u64::MAX, 1, span);
    let batch = [
        Io::write(1, 0, 1, span),
        past_the_end,
        Io::flush(4),
        Io::write(5, 2, 1, span).with_flags(Flags::FUA),
        Io::write(6, 3, 1, span),
    ];
    assert_eq!(submit(&mut world, &batch), Ok(()));
    world.turn_queue(0);
    let completion = world.take_completion(0, 3);
    assert_eq!((completion.status.code, completion.proof), (Code::OutOfRange, Proof::NeverSent));
    let opcodes: Vec<u8> = world.script.open(1).iter().map(|o| o.sqe.opcode()).collect();
    assert_eq!(opcodes, [io::WRITE, io::FLUSH, io::WRITE, io::WRITE], "in the order they came");
    world.script.succeed_all(1);
    world.turn_queue(0);
    assert_eq!([1, 4, 5, 6].map(|tag| world.take_completion(0, tag).status.code), [Code::Ok; 4]);

    let many: Vec<Io> = (0..400).map(|tag| Io::read(tag, tag, 1, span)).collect();
    let rest = submit(&mut world, &many).unwrap_err();
    assert!(rest.why == RefusedWhy::Full && (8..400).contains(&rest.taken), "{rest:?}");
    world.turn_queue(0);
    for _ in 0..rest.taken {
        world.script.succeed_all(1);
        world.turn_queue(0);
    }
    assert_eq!(world.queues[0].completions.len(), rest.taken, "each once");
    close(&mut world, 0);
    assert_eq!(submit(&mut world, &many), Err(gone));
}

/// A read whose memory cannot be reached goes to the wire, and fails by itself when its data come: once, and the connection goes on.
#[test]
fn a_read_into_memory_that_is_gone_costs_itself() {
    let mut world = World::up(8);
    let (good, bad) = (world.memory(512, 7), world.memory(512, 7));
    world.segs.get_mut(bad)[0].region = RegionId(0xffff_fff0);
    for tag in [1, 2] {
        let sqe = world.send(Io::read(tag, 0, 1, bad));
        world.script.answer_read(1, sqe.cid(), 3);
        world.turn_queue(0);
        world.turn_queue(0);
        assert_eq!(world.take_completion(0, tag).status.code, Code::BadMemory);
    }
    let (_, completion) = world.round_trip(Io::write(3, 0, 1, good));
    assert_eq!((completion.status.code, world.script.dialled()), (Code::Ok, 2), "over the same connection");
    assert!(world.queues[0].completions.is_empty(), "each once");
}
