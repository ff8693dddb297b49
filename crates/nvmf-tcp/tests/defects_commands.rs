//! Defects of single commands that were found by attack, each by its name: what is known of one command is not said of another.

use crate::script::{Script, What};
use crate::turns::{World, config};
use polypath_block::{Code, Cx, Fate, Io, Op, Proof, Scope};
use polypath_nvme::{Cqe, StatusField};
use std::time::Duration;

const KIB: u32 = 1024;

/// Writes one block each, all over the same memory, and has them answered; their identifiers.
fn write_and_answer(world: &mut World, count: u64, until: impl Fn(u16) -> bool) -> Vec<u16> {
    let span = world.memory(512, 1);
    let mut cids = Vec::new();
    for tag in 0..count {
        let (sqe, completion) = world.round_trip(Io::write(10_000 + tag, tag, 1, span));
        assert_eq!(completion.status.code, Code::Ok);
        cids.push(sqe.cid());
        if until(sqe.cid()) {
            break;
        }
    }
    cids
}

/// Lets a write time out: its identifier, and the held Abort's.
fn write_that_times_out(world: &mut World, tag: u64) -> (u16, u16) {
    let span = world.memory(512, 9);
    let sqe = world.send(Io::write(tag, 0, 1, span));
    world.run_until("an Abort", 4000, |w| !w.script.held(What::Abort).is_empty());
    let abort = world.script.held(What::Abort)[0];
    assert_eq!((abort.abort_sqid(), abort.abort_cid()), (1, sqe.cid()));
    (sqe.cid(), abort.cid())
}

/// A write times out; its Abort is answered "aborted" before its own completion comes over the other connection; its slot is free,
/// and 62 commands later its identifier is in flight again for a new write; the connection is reset.
/// A proof belongs to one command and dies with it: nothing is known of the new write, which waits for the fence.
#[test]
fn false_proof_of_abortion() {
    let mut world = World::up(8);
    let (cid, abort) = write_that_times_out(&mut world, 1);
    world.script.answer_abort(abort, true);
    world.let_admin_look();
    world.turn_queue(0);
    assert!(world.queues[0].completions.is_empty(), "the write itself was not answered yet");
    world.script.answer(1, cid, StatusField::ABORT_REQUESTED);
    world.turn_queue(0);
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.proof), (Code::PathTimeout, Proof::Answered));

    let mut others = 0;
    let span = world.memory(512, 2);
    loop {
        let sqe = world.send(Io::write(100 + others, 8, 1, span));
        if sqe.cid() == cid {
            break;
        }
        world.script.answer(1, sqe.cid(), StatusField::SUCCESS);
        world.turn_queue(0);
        world.take_completion(0, 100 + others);
        others += 1;
        assert!(others < 200, "the identifier does not come round");
    }
    assert!(others >= 62);
    world.script.reset(1);
    let lost = world.now;
    world.turn_queue(0);
    let suspects: Vec<_> = world.queues[0].suspects.iter().map(|(s, _)| (s.tag, s.fate)).collect();
    assert_eq!(suspects, [(100 + others, Fate::Unknown)], "{:?}", world.queues[0].completions);
    world.let_admin_look();
    world.expect_fenced(0, 100 + others, lost);
}

/// As above, but the Abort itself is not answered: while it is under way its identifier must not name another command, or the
/// controller aborts that one. Afterwards it may.
#[test]
fn false_proof_of_abortion_identifiers_are_not_reused_under_an_abort() {
    let mut world = World::up(8);
    let (cid, abort) = write_that_times_out(&mut world, 1);
    world.script.answer(1, cid, StatusField::SUCCESS);
    world.turn_queue(0);
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.proof), (Code::Ok, Proof::Answered), "late, and done all the same");
    let cids = write_and_answer(&mut world, 500, |_| false);
    assert!(!cids.contains(&cid), "{cid:#x} was given to another command while an Abort of it is under way");

    // All other slots are taken, so that it must come, and come round, once the Abort was answered.
    let span = world.memory(512, 3);
    let filled: Vec<u16> = (0..3).map(|tag| world.send(Io::write(20 + tag, 0, 1, span)).cid()).collect();
    world.script.answer_abort(abort, false);
    world.let_admin_look();
    world.turn_queue(0);
    let cids = write_and_answer(&mut world, 200, |c| c == cid);
    assert_eq!(cids.last(), Some(&cid), "an answered Abort must give its identifier back");
    filled.iter().for_each(|&cid| world.script.answer(1, cid, StatusField::SUCCESS));
    world.turn_queue(0);
}

/// The proof where it is due: the controller says that it aborted the command, no completion of it comes, the connection is lost.
#[test]
fn an_aborted_command_is_quiet_when_its_connection_is_lost() {
    let mut world = World::up(8);
    let (_, abort) = write_that_times_out(&mut world, 1);
    world.script.answer_abort(abort, true);
    world.let_admin_look();
    // Another one, of which nothing is known.
    let span = world.memory(512, 2);
    world.send(Io::write(2, 8, 1, span));
    world.script.reset(1);
    let lost = world.now;
    world.turn_queue(0);
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.scope(), completion.proof), (Scope::Path, Proof::Aborted));
    world.let_admin_look();
    world.expect_fenced(0, 2, lost);
}

/// A read changes nothing: it is quiet as soon as its socket is closed, whatever an Abort of it has brought.
#[test]
fn a_read_is_quiet_when_its_socket_is_closed() {
    for aborted in [false, true] {
        let mut world = World::up(8);
        let span = world.memory(512, 7);
        world.send(Io::read(1, 0, 1, span));
        world.run_until("an Abort", 4000, |w| !w.script.held(What::Abort).is_empty());
        world.script.answer_abort(world.script.held(What::Abort)[0].cid(), aborted);
        world.let_admin_look();
        world.script.reset(1);
        world.turn_queue(0);
        assert!(world.queues[0].suspects.is_empty());
        let completion = world.take_completion(0, 1);
        assert_eq!((completion.status.scope(), completion.proof), (Scope::Path, Proof::SocketClosed), "{aborted}");
    }
}

/// "Not aborted" proves nothing, and neither does an Abort that is refused.
#[test]
fn a_command_that_was_not_aborted_waits_for_its_fence() {
    for (status, dw0) in [(StatusField::SUCCESS, 1), (StatusField::ABORT_LIMIT_EXCEEDED, 0)] {
        let mut world = World::up(8);
        let (_, abort) = write_that_times_out(&mut world, 1);
        world.script.answer_with(0, Cqe::new(abort, status).with_result(dw0));
        world.let_admin_look();
        world.script.reset(1);
        let lost = world.now;
        world.turn_queue(0);
        world.let_admin_look();
        world.expect_fenced(0, 1, lost);
    }
}

/// An order to abort dies with its association: over the next one the same identifier names another command.
#[test]
fn an_abort_of_a_lost_association_is_not_sent_over_the_next() {
    let mut world = World::up(8);
    let span = world.memory(512, 9);
    world.send(Io::write(1, 0, 1, span));
    // The queue gives the order; the admin queue is lost before it sees it.
    world.run_ms(2990);
    world.pass_ms(45);
    world.turn_queue(0);
    world.pass_ms(45);
    world.turn_queue(0);
    world.script.reset(0);
    world.run_until("a new association", 1000, |w| w.controller.statistics().connects == 2 && w.is_live());
    world.run_ms(500);
    assert_eq!(world.script.asked(What::Abort), 0, "{:?}", world.script.seen(0));
    assert!(world.is_live());
}

/// A request above what the controller takes at a time; it is cut at its time limit before its last parts left; the parts that had
/// left succeed. What was never sent is not done.
#[test]
fn ok_for_what_was_never_sent() {
    cut_before_the_last_parts_left(Op::Write);
}

/// The same for a read, most of whose memory was never filled.
#[test]
fn ok_for_what_was_never_sent_reads_likewise() {
    cut_before_the_last_parts_left(Op::Read);
}

fn cut_before_the_last_parts_left(op: Op) {
    let script = Script::new();
    // Two commands at a time, each of 128 KiB.
    let config = polypath_nvmf_tcp::ControllerConfig { queue_depth: 2, ..config(&script) };
    let mut world = World::up_with(script, config, 8);
    let span = world.memory(2048 * KIB, 7);
    world.submit(0, Io { op, ..Io::write(1, 0, 4096, span) });
    world.turn_queue(0);
    assert_eq!(world.script.open(1).len(), 2, "two of sixteen parts are on the way");
    world.run_until("Aborts", 4000, |w| !w.script.held(What::Abort).is_empty());
    for cid in world.script.open_cids(1) {
        match op {
            Op::Read => world.script.answer_read(1, cid, 7),
            _ => {
                world.script.ask_data(1, cid);
                world.turn_queue(0);
                world.script.answer(1, cid, StatusField::SUCCESS);
            }
        }
    }
    world.turn_queue(0);
    assert_eq!(world.script.seen(1).len(), 2, "nothing more leaves after the cut");
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.status.scope()), (Code::PathTimeout, Scope::Path));
}

/// The connection is lost while requests wait for room. Those of which nothing was sent are not done; nor is one whose first parts were
/// all answered and whose others wait.
#[test]
fn ok_for_what_was_never_sent_when_the_connection_is_lost() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    (1..=8).for_each(|tag| world.submit(0, Io::write(tag, tag, 1, span)));
    world.turn_queue(0);
    assert_eq!(world.script.open(1).len(), 4, "four find room, four wait");
    world.script.reset(1);
    world.turn_queue(0);
    assert!((1..=4).all(|tag| world.is_suspect(0, tag)));
    for tag in 5..=8 {
        let completion = world.take_completion(0, tag);
        assert_eq!((completion.status.code, completion.proof), (Code::PathLost, Proof::NeverSent), "{tag}");
    }

    let mut world = World::up(8);
    let span = world.memory(2048 * KIB, 7);
    world.submit(0, Io::read(1, 0, 4096, span));
    world.turn_queue(0);
    assert_eq!(world.script.open(1).len(), 4, "four of sixteen parts");
    world.script.succeed_all(1);
    world.script.babble(1);
    world.turn_queue(0);
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.scope(), completion.proof), (Scope::Path, Proof::Answered));
}

/// The same with a send side that is stuck: some parts wait in the transmit ring, and one of them has left in part.
#[test]
fn ok_for_what_was_never_sent_through_a_stuck_socket() {
    let mut world = World::up(8);
    // Sixteen parts, four of which find room; the first capsule and half of the second leave.
    let span = world.memory(2048 * KIB, 7);
    world.script.set_room(1, 72 + 36);
    world.submit(0, Io::write(1, 0, 4096, span));
    world.turn_queue(0);
    assert_eq!(world.script.open(1).len(), 1);
    world.run_until("an Abort", 4000, |w| !w.script.held(What::Abort).is_empty());
    world.script.set_room(1, usize::MAX);
    world.turn_queue(0);
    assert_eq!(world.script.seen(1).len(), 2, "what had begun to leave leaves, and nothing else");
    for cid in world.script.open_cids(1) {
        world.script.ask_data(1, cid);
        world.turn_queue(0);
        world.script.answer(1, cid, StatusField::SUCCESS);
    }
    world.turn_queue(0);
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.proof), (Code::PathTimeout, Proof::Answered));
}

/// Commands that never left are quiet at once when their time is up.
#[test]
fn what_never_left_is_quiet_at_its_time_limit() {
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    world.script.set_room(1, 0);
    world.submit(0, Io::write(1, 0, 1, span));
    world.run_until("the time limit", 4000, |w| w.completion(0, 1).is_some());
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.proof), (Code::PathTimeout, Proof::NeverSent));
    world.script.set_room(1, usize::MAX);
    world.run_ms(10);
    assert!(world.script.seen(1).is_empty(), "it must not leave later");
}

/// A command is answered "abort requested" that nobody asked to abort: an Abort of an earlier command with its identifier came late.
/// That is trouble of the way and not of the request. Of a command that we asked to abort it says that it took too long.
#[test]
fn a_late_abort_hits_a_younger_command() {
    let mut world = World::up(8);
    let span = world.memory(512, 9);
    for (tag, io) in [(1, Io::write(1, 0, 1, span)), (2, Io::read(2, 0, 1, span)), (3, Io::flush(3))] {
        let sqe = world.send(io);
        world.script.answer(1, sqe.cid(), StatusField::ABORT_REQUESTED);
        world.turn_queue(0);
        let status = world.take_completion(0, tag).status;
        assert_eq!((status.code, status.scope()), (Code::PathLost, Scope::Path), "{:?}", io.op);
    }
    let (cid, abort) = write_that_times_out(&mut world, 5);
    world.script.answer(1, cid, StatusField::ABORT_REQUESTED);
    world.turn_queue(0);
    let status = world.take_completion(0, 5).status;
    assert_eq!((status.code, status.scope()), (Code::PathTimeout, Scope::Path));
    world.script.answer_abort(abort, true);
    world.run_ms(5);
    assert_eq!(world.controller.statistics().losses, 0);
}

/// A command is answered after all while an Abort of it is under way, and its queue is closed. Identifiers begin anew with the next
/// connection of that queue, where the Abort would hit a command of the same name: the queue is not drained before it was answered.
#[test]
fn a_late_abort_hits_a_younger_command_of_the_next_connection() {
    let mut world = World::up(8);
    let (cid, abort) = write_that_times_out(&mut world, 1);
    world.script.answer(1, cid, StatusField::SUCCESS);
    world.turn_queue(0);
    assert_eq!(world.take_completion(0, 1).status.code, Code::Ok);
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    world.queues[0].queue.close(&mut cx);
    world.run_ms(100);
    assert!(!world.queues[0].queue.is_drained(), "the Abort still names a command of this queue");
    world.script.answer_abort(abort, false);
    world.run_ms(5);
    assert!(world.queues[0].queue.is_drained() && world.script.is_closed(1));
    world.queues.clear();
    let next = world.open_queue(8);
    let span = world.memory(512, 9);
    assert_eq!(world.round_trip(Io::write(2, 0, 1, span)).1.status.code, Code::Ok);
    assert_eq!((next, world.controller.statistics().losses), (0, 0));
}

/// Several parts fail: what is told is what went wrong first.
#[test]
fn the_first_error_of_a_request_stands() {
    let mut world = World::up(8);
    let span = world.memory(256 * KIB, 7);
    world.submit(0, Io::read(1, 0, 512, span));
    world.turn_queue(0);
    let cids = world.script.open_cids(1);
    assert_eq!(cids.len(), 2);
    world.script.answer(1, cids[1], StatusField::UNRECOVERED_READ_ERROR.with_dnr());
    world.turn_queue(0);
    world.script.answer(1, cids[0], StatusField::CAPACITY_EXCEEDED);
    world.turn_queue(0);
    assert_eq!(world.take_completion(0, 1).status.code, Code::Medium);
}

/// One part of a write is answered with an error while data of it are still on their way out, another part is not answered; the
/// connection is lost. The answer is that of its own part: the other may still be carried out.
#[test]
fn an_answer_to_one_part_proves_nothing_of_the_others() {
    // The answered part after the open one, and before it.
    for answered in [1, 0] {
        let mut world = World::up(8);
        let span = world.memory(256 * KIB, 7);
        world.submit(0, Io::write(1, 0, 512, span));
        world.turn_queue(0);
        let cids = world.script.open_cids(1);
        assert_eq!(cids.len(), 2);
        world.script.set_room(1, 1000);
        world.script.ask_data(1, cids[answered]);
        world.turn_queue(0);
        world.script.answer(1, cids[answered], StatusField::WRITE_FAULT.with_dnr());
        world.turn_queue(0);
        assert!(world.queues[0].completions.is_empty());
        world.script.reset(1);
        world.turn_queue(0);
        world.let_admin_look();
        let closed = world.now;
        world.expect_fenced(0, 1, closed);
    }
}

/// What is known of one part of a write says nothing of the others: one was aborted and the other not, or never left.
#[test]
fn a_proof_of_one_part_proves_nothing_of_the_others() {
    for aborted in [0, 1] {
        let mut world = World::up(8);
        let span = world.memory(256 * KIB, 7);
        world.submit(0, Io::write(1, 0, 512, span));
        world.run_until("the first Abort", 4000, |w| !w.script.held(What::Abort).is_empty());
        for part in 0..2 {
            let abort = world.script.held(What::Abort)[0].cid();
            world.script.answer_abort(abort, part == aborted);
            world.let_admin_look();
            world.let_admin_look();
        }
        world.script.reset(1);
        world.turn_queue(0);
        world.let_admin_look();
        let closed = world.now;
        world.expect_fenced(0, 1, closed);
    }
    let mut world = World::up(8);
    let span = world.memory(256 * KIB, 7);
    world.script.set_room(1, 72);
    world.submit(0, Io::write(1, 0, 512, span));
    world.turn_queue(0);
    assert_eq!(world.script.open(1).len(), 1, "one part has left");
    world.script.reset(1);
    world.turn_queue(0);
    world.let_admin_look();
    let closed = world.now;
    world.expect_fenced(0, 1, closed);
}

/// A write is answered with an error while data of it are still on their way out, and the connection is lost: the answer stands.
#[test]
fn an_answer_stands_although_the_connection_is_lost() {
    let mut world = World::up(8);
    let span = world.memory(64 * KIB, 7);
    let sqe = world.send(Io::write(1, 0, 128, span));
    world.script.set_room(1, 1000);
    world.script.ask_data(1, sqe.cid());
    world.turn_queue(0);
    world.script.answer(1, sqe.cid(), StatusField::WRITE_FAULT.with_dnr());
    world.turn_queue(0);
    assert!(world.queues[0].completions.is_empty());
    world.script.reset(1);
    world.turn_queue(0);
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.proof), (Code::Medium, Proof::Answered));

    // What came before the end of the stream counts as well.
    let mut world = World::up(8);
    let span = world.memory(512, 7);
    let sqe = world.send(Io::write(1, 0, 1, span));
    world.script.answer(1, sqe.cid(), StatusField::SUCCESS);
    world.script.babble(1);
    world.turn_queue(0);
    assert!(world.script.is_closed(1));
    let completion = world.take_completion(0, 1);
    assert_eq!((completion.status.code, completion.proof), (Code::Ok, Proof::Answered));
}

/// A command is not answered, and neither is it aborted: the way is left, and a write on it waits for the fence.
#[test]
fn a_command_that_is_neither_answered_nor_aborted_costs_the_way() {
    let mut world = World::up(8);
    let (_, abort) = write_that_times_out(&mut world, 1);
    world.script.answer_abort(abort, false);
    let took = world.run_until("the loss", 4000, |w| w.is_suspect(0, 1));
    assert!(took >= Duration::from_millis(1900), "it is given time to be aborted: {took:?}");
    let lost = world.now;
    world.expect_fenced(0, 1, lost);
    world.run_until("a way back", 3000, |w| w.is_live());
}

/// The time limit of a command begins when it is sent, not when its request began to wait for room.
#[test]
fn a_request_that_waited_for_room_has_the_time_of_a_command() {
    let mut world = World::up(32);
    let span = world.memory(512, 7);
    for tag in 1..=12 {
        world.submit(0, Io::read(tag, tag, 1, span));
    }
    world.turn_queue(0);
    assert_eq!(world.script.open_cids(1).len(), 4, "four commands find room, eight wait");
    // A medium of 2 s a command; each may take 3 s.
    world.run_ms(2000);
    world.script.succeed_all(1);
    world.run_ms(1900);
    assert!(world.script.held(What::Abort).is_empty(), "commands that were sent 1.9 s ago are aborted");
    assert_eq!((world.script.open_cids(1).len(), world.queues[0].completions.len()), (4, 4), "four wait for 3.9 s");
    for _ in 0..2 {
        world.script.succeed_all(1);
        world.run_ms(10);
    }
    for tag in 1..=12 {
        assert!(world.take_completion(0, tag).status.is_ok(), "{tag}");
    }
}

/// Four writes are late at once. Aborts go out one at a time and the controller takes 600 ms for each, well within the limit of an
/// admin command: whether a command is aborted can be judged once its own Abort has been sent, not while that waits for others.
#[test]
fn a_command_whose_abort_waits_for_others_does_not_cost_the_way() {
    let mut world = World::up(8);
    let span = world.memory(512, 1);
    for tag in 0..4 {
        world.send(Io::write(tag, tag, 1, span));
    }
    for n in 0..4 {
        world.run_until("an Abort", 4000, |w| !w.script.held(What::Abort).is_empty());
        let abort = world.script.held(What::Abort)[0];
        world.run_ms(600);
        assert_eq!(world.controller.statistics().losses, 0, "Abort {n} was about to be answered");
        world.script.answer_abort(abort.cid(), true);
        world.script.answer(1, abort.abort_cid(), StatusField::ABORT_REQUESTED);
        world.run_ms(2);
    }
    assert_eq!((world.queues[0].completions.len(), world.queues[0].suspects.len()), (4, 0));
}
