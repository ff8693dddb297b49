//! The numbers that both sides count: CmdSN with its window, ExpCmdSN, StatSN (RFC 7143 section 4.2.2).

use super::*;
use crate::pdu::{AsyncEvent, LogoutRequest, LogoutResponse, LogoutResult};

fn numbers(stat_sn: StatSn, exp_cmd_sn: u32, max_cmd_sn: u32) -> TargetSn {
    TargetSn { stat_sn, exp_cmd_sn: CmdSn::new(exp_cmd_sn), max_cmd_sn: CmdSn::new(max_cmd_sn) }
}

/// NOP-In without a tag: numbers, and nothing else.
fn says(rig: &mut Rig, exp_cmd_sn: u32, max_cmd_sn: u32) {
    let sn = numbers(rig.stat_sn, exp_cmd_sn, max_cmd_sn);
    let pdu = NopIn { lun: LUN, itt: None, ttt: None, sn, data_len: 0 };
    assert_eq!(rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[]), Ok(vec![]));
}

#[test]
fn a_target_has_taken_what_was_sent_and_takes_nothing_back() {
    let mut rig = Rig::new(parameters());
    // CmdSN -1 and 0.
    let slots = [0, 1].map(|_| rig.connection.submit(LUN, READ, DataPlan::Out(512)).unwrap());
    rig.sent();
    let taken = |rig: &Rig| slots.map(|slot| rig.connection.command_of(slot).1);
    assert_eq!(taken(&rig), [false, false], "it has said nothing yet");
    says(&mut rig, 2, 2);
    assert_eq!(taken(&rig), [false, false], "not before it was sent");
    says(&mut rig, 1, u32::MAX);
    assert_eq!(taken(&rig), [false, false], "numbers that contradict each other");
    says(&mut rig, 0, u32::MAX);
    assert_eq!(taken(&rig), [true, false], "the first, and the window is closed");
    says(&mut rig, 1, 2);
    assert_eq!(taken(&rig), [true, true]);
    says(&mut rig, 0, 2);
    assert_eq!(taken(&rig), [true, true], "an older word");
}

#[test]
fn the_window_is_what_is_left_of_it() {
    // CmdSN of the next command, MaxCmdSN, how many find room. There are four slots.
    for (cmd_sn, max_cmd_sn, room) in [
        (0, 0, 1),
        (0, 1, 2),
        (0, 900, 4),
        (0, u32::MAX, 0),
        (0, u32::MAX - 1, 0),
        (u32::MAX, 0, 2),
        (u32::MAX, u32::MAX, 1),
        (u32::MAX, u32::MAX - 1, 0),
        (7, 6, 0),
        (7, 9, 3),
    ] {
        let (cmd_sn, max_cmd_sn) = (CmdSn::new(cmd_sn), CmdSn::new(max_cmd_sn));
        let mut rig = Rig::new(Parameters { cmd_sn, max_cmd_sn, ..parameters() });
        assert_eq!(rig.connection.room(), room, "{cmd_sn} {max_cmd_sn}");
        let taken = (0..9).take_while(|_| rig.connection.submit(LUN, READ, DataPlan::None).is_ok()).count();
        assert_eq!((taken, rig.connection.room()), (room, 0), "{cmd_sn} {max_cmd_sn}");
        assert_eq!(rig.connection.next_cmd_sn(), cmd_sn.plus(room as u32));
        let sent: Vec<_> = rig.commands().iter().map(|(command, _)| command.sn.cmd_sn).collect();
        assert_eq!(sent, (0..room as u32).map(|n| cmd_sn.plus(n)).collect::<Vec<_>>());
    }
}

/// What carries no status says how far its window goes as well.
#[test]
fn every_word_of_the_target_moves_the_window() {
    type Word = fn(&mut Rig, Itt);
    let words: [(&str, Word); 4] = [
        ("NOP-In", |rig, _| says(rig, 0, 3)),
        ("NOP-In that asks", |rig, _| {
            let sn = numbers(rig.stat_sn, 0, 3);
            let pdu = NopIn { lun: LUN, itt: None, ttt: Ttt::new(5), sn, data_len: 0 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[]).unwrap();
        }),
        ("R2T", |rig, itt| {
            rig.max_cmd_sn = CmdSn::new(3);
            rig.r2t(itt, 0, 2048, 8).unwrap();
        }),
        ("Data-In", |rig, _| {
            rig.max_cmd_sn = CmdSn::new(3);
            rig.data_in(Itt::new(1).unwrap(), 0, 0, &[1], None).unwrap();
        }),
    ];
    for (what, word) in words {
        let mut rig = Rig::new(Parameters { depth: 8, ..parameters() });
        rig.connection.submit(LUN, READ, DataPlan::Out(4096)).unwrap();
        rig.connection.submit(LUN, READ, DataPlan::In(4096)).unwrap();
        let itt = rig.commands()[0].0.itt;
        assert_eq!(rig.connection.room(), 2, "CmdSN 1 and 2");
        word(&mut rig, itt);
        assert_eq!(rig.connection.room(), 3, "{what}");
    }
}

/// Each status has the number that follows; another one than that was lost, or is somebody else's.
#[test]
fn a_status_with_a_wrong_number_loses_the_connection() {
    type Word = fn(&mut Rig, Itt) -> Result<Vec<Event>, ProtocolError>;
    let words: [(&str, Word); 7] = [
        ("SCSI Response", |rig, itt| rig.response(itt, 0, Residual::None, &[])),
        ("Data-In", |rig, itt| {
            let status = Some(DataInStatus { status: 0, residual: Residual::None });
            rig.data_in(itt, 0, 0, &pattern(100), status)
        }),
        ("NOP-In", |rig, _| {
            let pdu = NopIn { lun: LUN, itt: Itt::new(0xffff_0000), ttt: None, sn: rig.sn(), data_len: 0 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
        }),
        ("Task Management", |rig, _| {
            let (result, itt, sn) = (TaskResult::Complete, Itt::new(0x8000_0001).unwrap(), rig.sn());
            rig.hear(|f, out| TaskResponse { result, itt, sn }.encode(f, out).unwrap(), &[])
        }),
        ("Asynchronous Message", |rig, _| {
            let pdu = AsyncMessage { event: AsyncEvent::Scsi, vendor_code: 0, lun: LUN, sn: rig.sn(), data_len: 0 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
        }),
        ("Reject", |rig, _| {
            let mut head = [0; BHS_LEN];
            (head[0], head[16]) = (0x40, 0xff);
            (head[17], head[18]) = (0xff, 0xff);
            let pdu =
                Reject { reason: RejectReason::ProtocolError, sn: rig.sn(), data_sn: 0, data_len: BHS_LEN as u32 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &head)
        }),
        ("Logout Response", |rig, _| {
            let (result, itt, sn) = (LogoutResult::Closed, Itt::new(0xfffe_0000).unwrap(), rig.sn());
            let pdu = LogoutResponse { result, itt, sn, time2wait_s: 0, time2retain_s: 0 };
            rig.hear(|f, out| pdu.encode(f, out).unwrap(), &[])
        }),
    ];
    for (what, word) in words {
        for (steps, right) in [(0, true), (1, false), (u32::MAX, false), (0x8000_0000, false)] {
            let mut rig = Rig::new(parameters());
            let (_, itt) = rig.read();
            assert!(rig.connection.ping() && rig.connection.manage(TaskFunction::LogicalUnitReset, LUN, None, 1));
            rig.connection.log_out();
            rig.sent();
            let expected = rig.stat_sn;
            rig.stat_sn = expected.plus(steps);
            let heard = word(&mut rig, itt);
            let value = expected.plus(steps).get();
            match heard {
                Ok(_) => assert!(right, "{what}: {value}"),
                Err(ProtocolError::Number { what: "StatSN", value: said, expected: not, .. }) => {
                    assert!(!right && (said, not) == (value, expected.get()), "{what}: {said} {not}");
                }
                Err(error) => panic!("{what}: {error}"),
            }
            assert_eq!(rig.connection.wants() == Want::Nothing, !right, "{what}: {value}");
        }
    }
}

/// What is for immediate delivery has the number of the next command, and uses none (RFC 7143 section 4.2.2.1). All that is sent says up to
/// where the target's answers have come.
#[test]
fn what_is_sent_carries_the_numbers_as_they_are() {
    let mut rig = Rig::new(Parameters { depth: 8, ..parameters() });
    let write = rig.connection.submit(LUN, READ, DataPlan::Out(4096)).unwrap();
    let itt = rig.commands()[0].0.itt;
    let (_, answered) = rig.read();
    rig.response(answered, 0, Residual::None, &[]).unwrap();
    rig.read();
    let now = InitiatorSn { cmd_sn: CmdSn::new(2), exp_stat_sn: parameters().exp_stat_sn.next() };
    assert_eq!(rig.stat_sn, now.exp_stat_sn);
    rig.r2t(itt, 0, 2048, 8).unwrap();
    assert_eq!(rig.data_outs()[0].0.exp_stat_sn, now.exp_stat_sn);
    assert!(rig.connection.ping());
    for (function, task) in [
        (TaskFunction::AbortTask, Some(write)),
        (TaskFunction::LogicalUnitReset, None),
        (TaskFunction::TargetWarmReset, None),
    ] {
        assert!(rig.connection.manage(function, LUN, task, 1));
    }
    rig.connection.log_out();
    assert_eq!(rig.connection.next_cmd_sn(), now.cmd_sn, "none of them has used a number");
    let pdus = rig.sent();
    let sns = pdus.iter().map(|(header, head, _)| {
        let basic = head.first_chunk().unwrap();
        match header.opcode {
            Opcode::NopOut => NopOut::parse(header, basic).unwrap().sn,
            Opcode::TaskRequest => TaskRequest::parse(header, basic).unwrap().sn,
            _ => LogoutRequest::parse(header, basic).unwrap().sn,
        }
    });
    assert_eq!(sns.collect::<Vec<_>>(), [now; 5]);
    let abort = TaskRequest::parse(&pdus[1].0, pdus[1].1.first_chunk().unwrap()).unwrap();
    assert_eq!((abort.referenced, abort.ref_cmd_sn), (Some(itt), CmdSn::new(u32::MAX)));
}

#[test]
fn a_task_that_is_taken_back_gives_its_number_back() {
    let mut rig = Rig::new(parameters());
    let [_, second] = [0, 1].map(|_| rig.connection.submit(LUN, READ, DataPlan::None).unwrap());
    assert_eq!((rig.connection.next_cmd_sn(), rig.connection.room()), (CmdSn::new(1), 2));
    assert!(rig.connection.withdraw(second));
    assert_eq!((rig.connection.next_cmd_sn(), rig.connection.room()), (CmdSn::new(0), 3));
    rig.connection.submit(LUN, READ, DataPlan::None).unwrap();
    let sent: Vec<_> = rig.commands().iter().map(|(command, _)| command.sn.cmd_sn.get()).collect();
    assert_eq!(sent, [u32::MAX, 0], "no gap, and none twice");
}
