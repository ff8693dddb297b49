//! Bounds, tags, and what nobody asked for: task management, pings, rejects, and tasks that are over before all of them has left.

use super::*;
use crate::proto::slots::{SlotTable, Way};

/// The task management requests that have to leave.
fn requests(rig: &mut Rig) -> Vec<TaskRequest> {
    let pdus = rig.sent().into_iter().filter(|(h, ..)| h.opcode == Opcode::TaskRequest);
    pdus.map(|(h, head, _)| TaskRequest::parse(&h, head.first_chunk().unwrap()).unwrap()).collect()
}

fn managed(rig: &mut Rig, itt: Itt) -> Result<Vec<Event>, ProtocolError> {
    let pdu = TaskResponse { result: TaskResult::Complete, itt, sn: rig.sn() };
    rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
}

fn nop_in(rig: &mut Rig, itt: Option<u32>, ttt: Option<u32>) -> Result<Vec<Event>, ProtocolError> {
    let sn = if itt.is_some() { rig.sn() } else { rig.sn_without() };
    let pdu = NopIn { lun: LUN, itt: itt.and_then(Itt::new), ttt: ttt.and_then(Ttt::new), sn, data_len: 0 };
    rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
}

/// Rejects a PDU with this operation code, as it stood in its first octet, and tag.
fn reject(rig: &mut Rig, opcode: u8, itt: u32) -> Result<Vec<Event>, ProtocolError> {
    let mut head = [0; BHS_LEN];
    head[0] = opcode;
    head[16..20].copy_from_slice(&itt.to_be_bytes());
    let pdu = Reject { reason: RejectReason::ProtocolError, sn: rig.sn(), data_sn: 0, data_len: BHS_LEN as u32 };
    rig.hear(|f, out| pdu.encode(f, out).unwrap(), &head)
}

const PING: u32 = 0xffff_0000;

#[test]
fn tags_of_tasks_go_round_and_keep_clear_of_the_others() {
    let mut table = SlotTable::new(2);
    assert_eq!(table.take(Way::None, 0, LUN, CmdSn::new(0), 0), Some(0));
    for n in 0..70_000 {
        let index = table.take(Way::None, 0, LUN, CmdSn::new(n), 0).unwrap();
        let itt = table.itt(index);
        assert_eq!((index, itt.get()), (1, (n % 0x7fff) << 16 | 1));
        assert_eq!((table.find(itt), table.in_use(), table.free()), (Some(1), 2, 0));
        table.release(index);
        table.release(index);
        assert_eq!((table.find(itt), table.in_use(), table.free()), (None, 1, 1));
    }
    assert_eq!(table.find(Itt::new(7).unwrap()), None, "there is no such slot");
}

#[test]
fn task_management_has_tags_of_its_own_and_a_bound() {
    let mut rig = Rig::new(parameters());
    let mut tags = Vec::new();
    for token in 0..100 {
        assert!(rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, token));
        assert!(rig.connection.is_waiting());
        let request = requests(&mut rig).remove(0);
        tags.push(request.itt.get());
        let told = managed(&mut rig, request.itt);
        assert_eq!(told, Ok(vec![Event::Managed { token, result: TaskResult::Complete }]));
        assert!(!rig.connection.is_waiting());
    }
    tags.sort_unstable();
    tags.dedup();
    assert!(tags.len() == 100 && tags.iter().all(|tag| (0x8000_0001..0xfffe_0000).contains(tag)), "{tags:x?}");
    let asked: Vec<_> = (0..40)
        .filter(|token| {
            let taken = rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, *token);
            tags.extend(requests(&mut rig).iter().map(|request| request.itt.get()));
            taken
        })
        .collect();
    assert_eq!(asked, (0..32).collect::<Vec<_>>());
    let last = Itt::new(tags[tags.len() - 1]).unwrap();
    assert_eq!(
        managed(&mut rig, last),
        Ok(vec![Event::Managed { token: 31, result: TaskResult::Complete }]),
        "each answer is for its own request"
    );
    for slot in [0, 4, 9] {
        let asked = rig.connection.manage(TaskFunction::AbortTask, LUN, Some(slot), 9);
        assert!(!asked && !rig.connection.is_active(slot), "there is no task in {slot}");
        assert!(!rig.connection.end_aborted(slot) && !rig.connection.withdraw(slot));
        assert_eq!(rig.connection.lun_of(slot), Lun::ZERO);
    }
    assert_eq!(rig.connection.poll_outcome(), None, "it is open");
    let (slot, _) = rig.read();
    assert_eq!((rig.connection.lun_of(slot), rig.connection.is_active(slot)), (LUN, true));
    rig.connection.close();
    assert!(!rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, 9) && !rig.connection.ping());
}

/// A target that asks faster than it reads gets no more than there is room for, and nothing else is pushed into a ring that is full.
#[test]
fn a_full_ring_takes_nothing_more() {
    let mut rig = Rig::new(parameters());
    for _ in 0..100 {
        assert_eq!(nop_in(&mut rig, None, Some(5)), Ok(vec![]));
    }
    assert!(!rig.connection.ping() && !rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, 1));
    assert_eq!((rig.connection.room(), rig.connection.is_waiting()), (0, false));
    rig.connection.log_out();
    assert!(rig.connection.is_waiting(), "it is about to end");
    let sent = rig.sent();
    assert_eq!(sent.len(), 4 + 32, "places for tasks, and for control");
    assert!(sent.iter().all(|(h, ..)| h.opcode == Opcode::NopOut));
}

#[test]
fn what_is_rejected_costs_what_it_was() {
    let mut rig = Rig::new(parameters());
    let (slot, itt) = rig.read();
    for token in [1, 2] {
        assert!(rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, token));
    }
    let second = requests(&mut rig)[1].itt;
    // With the bit of immediate delivery.
    let told = reject(&mut rig, 0x42, second.get());
    assert_eq!(told, Ok(vec![Event::Managed { token: 2, result: TaskResult::Rejected }]));
    assert!(rig.connection.is_waiting() && rig.connection.is_active(slot));
    assert_eq!(reject(&mut rig, 0x40, PING), Ok(vec![]), "no ping is under way");
    assert!(rig.connection.ping());
    rig.sent();
    assert_eq!(reject(&mut rig, 0x40, u32::MAX), Ok(vec![]), "an answer of ours to a ping of the target's");
    assert!(!rig.connection.ping(), "it is under way still");
    assert_eq!(reject(&mut rig, 0x40, PING), Ok(vec![Event::Pong]));
    assert!(rig.connection.ping());
    // Of anything else it is not known what the target makes of the task.
    let error = reject(&mut rig, 0x42, itt.get()).unwrap_err();
    assert!(matches!(error, ProtocolError::Rejected { opcode: 2, .. }), "{error}");
    let mut rig = Rig::new(parameters());
    let pdu = Reject { reason: RejectReason::ProtocolError, sn: rig.sn(), data_sn: 0, data_len: 10 };
    let error = rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[0x42; 10]).unwrap_err();
    assert!(matches!(error, ProtocolError::Rejected { opcode: 0xff, .. }), "{error}");
}

#[test]
fn answers_that_nobody_asked_for_lose_the_connection() {
    type Case = (&'static str, fn(&mut Rig) -> Result<Vec<Event>, ProtocolError>);
    let cases: [Case; 6] = [
        ("a ping that was not sent", |rig| nop_in(rig, Some(PING), None)),
        ("another tag than the ping's", |rig| {
            assert!(rig.connection.ping());
            rig.sent();
            nop_in(rig, Some(0x8000_0001), None)
        }),
        ("task management before the request has left", |rig| {
            rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
            assert!(rig.connection.manage(TaskFunction::AbortTask, LUN, Some(0), 1));
            managed(rig, Itt::new(0x8000_0001).unwrap())
        }),
        ("task management twice", |rig| {
            assert!(rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, 1));
            let itt = requests(rig)[0].itt;
            managed(rig, itt).unwrap();
            managed(rig, itt)
        }),
        ("another tag than the logout's", |rig| {
            rig.connection.log_out();
            rig.sent();
            let (result, itt) = (crate::pdu::LogoutResult::Closed, Itt::new(0xfffe_0001).unwrap());
            let sn = rig.sn();
            let pdu = crate::pdu::LogoutResponse { result, itt, sn, time2wait_s: 0, time2retain_s: 0 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
        }),
        ("data for a task that asks for an acknowledgement", |rig| {
            let (_, itt) = rig.read();
            let pdu = DataIn {
                is_final: true,
                acknowledge: true,
                status: None,
                lun: LUN,
                itt,
                ttt: Ttt::new(1),
                sn: rig.sn_without(),
                data_sn: 0,
                buffer_offset: 0,
                data_len: 1,
            };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[1])
        }),
    ];
    for (what, wrong) in cases {
        let mut rig = Rig::new(parameters());
        let heard = wrong(&mut rig);
        assert!(heard.is_err() && rig.connection.wants() == Want::Nothing, "{what}: {heard:?}");
    }
}

/// A read of which the target says that less was moved than came in fact.
#[test]
fn what_was_moved_in_fact_counts_for_a_read() {
    let mut rig = Rig::new(parameters());
    let (slot, itt) = rig.read();
    rig.data_in(itt, 0, 0, &pattern(100), None).unwrap();
    let events = rig.response(itt, 0, Residual::Underflow(4046), &[]).unwrap();
    let ending = Ending { status: Some(0), moved: 100, whole: false, has_sense: false };
    assert_eq!(events, [Event::Ended { slot, ending }]);
}

/// The rest of the first burst counts as one that is not asked for.
#[test]
fn one_is_asked_for_while_the_first_burst_is_leaving() {
    let mut rig = Rig::new(parameters());
    rig.connection.submit(LUN, READ, DataPlan::Out(16_000)).unwrap();
    rig.connection.sent(BHS_LEN + 1024);
    let itt = Itt::new(0).unwrap();
    rig.r2t(itt, 0, 2048, 100).unwrap();
    let error = rig.r2t(itt, 1, 2148, 100).unwrap_err().to_string();
    assert!(error.contains("more R2T"), "{error}");
}

#[test]
fn data_of_an_aborted_task_are_not_sent_and_those_of_others_are() {
    let first = BHS_LEN + 1024;
    let mut rig = Rig::new(parameters());
    let [ours, other] = [0, 1].map(|_| rig.connection.submit(LUN, READ, DataPlan::Out(8192)).unwrap());
    // Our command has left, and nothing of the data behind it.
    rig.connection.sent(first);
    assert!(rig.connection.end_aborted(ours) && !rig.connection.end_aborted(ours));
    let pdus = rig.sent();
    assert_eq!(pdus.iter().map(|(h, ..)| h.opcode).collect::<Vec<_>>(), [Opcode::ScsiCommand, Opcode::DataOut]);
    assert_eq!((rig.connection.in_flight(), rig.connection.is_active(other)), (1, true));

    // Octets of its data are in the middle of leaving: it ends when they have.
    let mut rig = Rig::new(parameters());
    let slot = rig.connection.submit(LUN, READ, DataPlan::Out(8192)).unwrap();
    rig.connection.sent(first + 60);
    assert!(!rig.connection.end_aborted(slot) && !rig.connection.end_aborted(slot));
    assert!(!rig.connection.is_active(slot) && !rig.connection.manage(TaskFunction::AbortTask, LUN, Some(slot), 1));
    assert_eq!((rig.connection.in_flight(), rig.connection.poll_event()), (1, None));
    rig.connection.sent(first - 61);
    assert_eq!(rig.connection.poll_event(), None, "an octet is left");
    rig.connection.sent(1);
    assert_eq!(rig.connection.poll_event(), Some(Event::Ended { slot, ending: Ending::NONE }));
    assert_eq!((rig.connection.in_flight(), rig.connection.has_output()), (0, false));
}

/// More is asked for than the ring holds: what waits for room is dropped with its task, and only that.
#[test]
fn data_that_wait_for_room_are_dropped_with_their_task() {
    let framing = Framing { max_data_len: 64, ..parameters().tx };
    let (max_burst_len, immediate_data, initial_r2t) = (1 << 20, false, true);
    let p = Parameters { tx: framing, max_burst_len, immediate_data, initial_r2t, ..parameters() };
    let mut rig = Rig::new(p);
    let slots = [0, 1].map(|_| rig.connection.submit(LUN, READ, DataPlan::Out(16_000)).unwrap());
    let itts: Vec<_> = rig.commands().iter().map(|(command, _)| command.itt).collect();
    for itt in &itts {
        rig.r2t(*itt, 0, 0, 16_000).unwrap();
    }
    assert!(rig.connection.end_aborted(slots[0]));
    let mut outs = Vec::new();
    while rig.connection.has_output() {
        outs.extend(rig.data_outs());
    }
    assert!(outs.iter().all(|(out, _)| out.itt == itts[1]));
    let places: Vec<_> = outs.iter().map(|(out, data)| (out.buffer_offset, data.len(), out.data_sn)).collect();
    assert_eq!(places, (0..250).map(|n| (n * 64, 64, n)).collect::<Vec<_>>());
    let events = rig.response(itts[1], 0, Residual::None, &[]);
    assert_eq!(events, Ok(vec![Event::Ended { slot: slots[1], ending: good(16_000) }]));
}

/// GOOD for a write of which not all data had left cannot be true, whatever the target says.
#[test]
fn a_write_that_is_called_good_before_its_data_have_left_is_not_whole() {
    for leaves in [0, 1000, BHS_LEN + 1024, 2 * (BHS_LEN + 1024)] {
        let mut rig = Rig::new(parameters());
        let slot = rig.connection.submit(LUN, READ, DataPlan::Out(6144)).unwrap();
        let itt = rig.commands()[0].0.itt;
        rig.r2t(itt, 0, 2048, 4096).unwrap();
        rig.connection.sent(leaves);
        let mut events = rig.response(itt, 0, Residual::None, &[]).unwrap();
        let len = |chunk| match chunk {
            Chunk::Bytes(bytes) => bytes.len(),
            Chunk::Data { len, .. } => len as usize,
        };
        let left = rig.connection.transmit().map(len).sum();
        rig.connection.sent(left);
        events.extend(rig.connection.poll_event());
        let [Event::Ended { slot: of, ending }] = events[..] else { panic!("{events:?}") };
        assert!(of == slot && !ending.whole && ending.moved < 6144, "{leaves} octets had left: {ending:?}");
    }
}

/// The target says that it has taken the commands before this one.
fn takes(rig: &mut Rig, exp_cmd_sn: u32) {
    let sn = TargetSn { exp_cmd_sn: CmdSn::new(exp_cmd_sn), ..rig.sn_without() };
    let pdu = NopIn { lun: LUN, itt: None, ttt: None, sn, data_len: 0 };
    rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[]).unwrap();
}

/// ExpCmdSN is of commands. A target may keep one to itself until its data have come, as tgt does: a reset of the logical unit passes over it
/// then, and what lies in front of the target can still complete it.
#[test]
fn a_write_is_taken_when_its_data_are() {
    let mut rig = Rig::new(parameters());
    // The first has all of its data with it.
    let small = rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
    let slot = rig.connection.submit(LUN, READ, DataPlan::Out(6144)).unwrap();
    rig.sent();
    takes(&mut rig, 1);
    assert_eq!([small, slot].map(|slot| rig.connection.command_of(slot)), [(LUN, true), (LUN, false)]);
}

#[test]
fn a_write_whose_data_were_asked_for_is_taken_with_the_command_behind_them() {
    let mut rig = Rig::new(parameters());
    let slot = rig.connection.submit(LUN, READ, DataPlan::Out(6144)).unwrap();
    let itt = rig.commands()[0].0.itt;
    rig.connection.submit(LUN, READ, DataPlan::None).unwrap();
    rig.r2t(itt, 0, 2048, 2048).unwrap();
    rig.sent();
    rig.r2t(itt, 1, 4096, 2048).unwrap();
    rig.sent();
    takes(&mut rig, 1);
    assert_eq!(rig.connection.command_of(slot), (LUN, false), "the command behind it was before its data");
    rig.connection.submit(LUN, READ, DataPlan::None).unwrap();
    rig.sent();
    assert!(!rig.connection.command_of(slot).1);
    takes(&mut rig, 2);
    assert_eq!(rig.connection.command_of(slot), (LUN, true));
}

/// A connection that is closed has nothing to say any more, whatever waits.
#[test]
fn a_closed_connection_sends_nothing() {
    for data_digest in [false, true] {
        let tx = Framing { data_digest, ..parameters().tx };
        let mut rig = Rig::new(Parameters { tx, ..parameters() });
        rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap();
        assert_eq!((rig.connection.next_digest().is_some(), rig.connection.has_output()), (data_digest, true));
        rig.connection.close();
        assert_eq!((rig.connection.next_digest(), rig.connection.has_output()), (None, false));
        assert!(rig.connection.transmit().next().is_none());
    }
}

/// Of its data some have left, and commands behind them were taken: what is to be asked for still is not there.
#[test]
fn a_write_is_not_taken_before_the_last_of_its_data_is() {
    let mut rig = Rig::new(parameters());
    let slot = rig.connection.submit(LUN, READ, DataPlan::Out(6144)).unwrap();
    let itt = rig.commands()[0].0.itt;
    for (sn, offset, exp_cmd_sn) in [(0, 2048, 1), (1, 4096, 2)] {
        assert!(!rig.connection.command_of(slot).1, "octets from {offset} on are missing");
        rig.r2t(itt, sn, offset, 2048).unwrap();
        rig.connection.submit(LUN, READ, DataPlan::None).unwrap();
        rig.sent();
        takes(&mut rig, exp_cmd_sn);
    }
    assert!(rig.connection.command_of(slot).1);
}
