//! What ends sessions and tasks, and when that is answered.

use super::*;
use crate::store::Disk;
use polypath_scsi::opcode::pr_in;

#[test]
fn a_session_ends_before_the_one_that_takes_its_place_begins() {
    let iscsi = target(|_| ());
    let mut old = Wire::new(&iscsi, 7, Offer::default());
    let hold = |after_us, beyond| Kind::Hold { after_us: Some(after_us), beyond, answer: Answer::Never };
    for (lba, beyond) in [(0, false), (1, true)] {
        old.rules = vec![rule(hold(1_000_000, beyond), Operation::Write)];
        let cmd = old.command(0, Cdb::write_10(lba, 1, RwFlags::empty()), true, 512, true);
        assert!(old.send(Pdu::ScsiCommand(cmd), &[5; 512]).is_empty());
    }
    let mut new = conn(&iscsi, 8, 0);
    let (mut login, waiting) = log_in(&iscsi, &mut new, Isid::random(7, 0), Offer::default());
    assert!(waiting.is_none() && medium(&iscsi, 0, 0) == 0, "the old session is not known to be quiet yet");
    // Its own thread has not looked yet: nothing of it is carried out all the same.
    let late = old.command(0, Cdb::write_10(2, 1, RwFlags::empty()), true, 512, true);
    assert!(old.send(Pdu::ScsiCommand(late), &[6; 512]).is_empty());
    deliver(&iscsi, &mut [&mut old.conn, &mut new]);
    assert_eq!(old.conn.ending, Some(Ending::Now));
    assert_eq!((medium(&iscsi, 0, 0), medium(&iscsi, 0, 512), medium(&iscsi, 0, 1024)), (5, 0, 0));
    let answers = read(&drain(&mut new.out), &Framing::LOGIN);
    let Some((Pdu::LoginResponse(response), text)) = answers.first() else { panic!("{answers:?}") };
    assert!(matches!(login.handle(response, text), Ok(InitiatorStep::Done(_))));
    // The other portal group is another target port: its sessions are left alone.
    let mut other = conn(&iscsi, 9, 1);
    assert!(log_in(&iscsi, &mut other, Isid::random(7, 0), Offer::default()).1.is_some());
    assert!(new.ending.is_none());
    iscsi.shared.apply_held(2_000_000);
    assert_eq!(medium(&iscsi, 0, 512), 5, "what is to be late beyond all promises is");
    let records = iscsi.shared.held.records();
    assert!(records.iter().all(|r| r.after_teardown == Some(true)), "{records:?}");
    old.close();
    new.close(&iscsi);
    other.close(&iscsi);
}

#[test]
fn functions_are_answered_when_their_tasks_are_quiet() {
    let iscsi = target(|_| ());
    let mut one = Wire::new(&iscsi, 7, Offer::default());
    let mut two = Wire::fresh(&iscsi, 8, 0, Offer::default());
    let _ = two.status(0, Cdb::test_unit_ready(), &[], 0);
    // A transfer that waits for its data.
    let write = |wire: &mut Wire<'_>| {
        let cmd = wire.command(0, Cdb::write_10(9, 200, RwFlags::empty()), true, 200 * 512, true);
        let answers = wire.send(Pdu::ScsiCommand(cmd), &[]);
        assert!(matches!(answers[..], [(Pdu::R2t(_), _)]), "{answers:?}");
        cmd.itt
    };
    let victim = write(&mut one);
    assert_eq!(results(&one.task(TaskFunction::AbortTask, 0, Some(victim))), [TaskResult::Complete]);
    assert_eq!(results(&one.task(TaskFunction::AbortTask, 0, Some(victim))), [TaskResult::NoTask]);
    assert_eq!(results(&one.task(TaskFunction::AbortTaskSet, 5, None)), [TaskResult::NoLun]);
    assert_eq!(results(&one.task(TaskFunction::TargetColdReset, 0, None)), [TaskResult::NotSupported]);
    // A write that is being carried out, late.
    let kind = Kind::Hold { after_us: Some(1_000_000), beyond: false, answer: Answer::After };
    one.rules = vec![rule(kind, Operation::Write)];
    let held = one.command(0, Cdb::write_10(0, 1, RwFlags::empty()), true, 512, true);
    assert!(one.send(Pdu::ScsiCommand(held), &[4; 512]).is_empty());
    assert_eq!(results(&one.task(TaskFunction::AbortTask, 0, Some(held.itt))), [TaskResult::Rejected]);
    let theirs = write(&mut two);
    assert!(results(&one.task(TaskFunction::LogicalUnitReset, 0, None)).is_empty(), "others are not quiet yet");
    assert_eq!(medium(&iscsi, 0, 0), 0);
    deliver(&iscsi, &mut [&mut one.conn, &mut two.conn]);
    assert_eq!(results(&one.answers()), [TaskResult::Complete]);
    assert_eq!(medium(&iscsi, 0, 0), 4, "it landed before the answer");
    assert!(one.conn.tasks.is_empty() && two.conn.task_of(theirs).is_none());
    for wire in [&mut one, &mut two] {
        let (_, sense) = wire.status(0, Cdb::test_unit_ready(), &[], 0);
        assert_eq!(sense.map(|s| s.code()), Some(attention::DEVICE_RESET));
    }
    let theirs = write(&mut two);
    assert!(one.task(TaskFunction::ClearTaskSet, 0, None).is_empty());
    deliver(&iscsi, &mut [&mut one.conn, &mut two.conn]);
    assert_eq!(results(&one.answers()), [TaskResult::Complete]);
    assert!(two.conn.task_of(theirs).is_none());
    let (_, sense) = two.status(0, Cdb::test_unit_ready(), &[], 0);
    assert_eq!(sense.map(|s| s.code()), Some(attention::COMMANDS_CLEARED));
    assert_eq!(one.status(0, Cdb::test_unit_ready(), &[], 0), (0, None));
    one.close();
    two.close();
}

#[test]
fn a_tag_that_waits_for_its_answer_is_not_taken_again() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    assert!(wire.task(TaskFunction::LogicalUnitReset, 0, None).is_empty(), "threads are asked");
    wire.next -= 1;
    assert_eq!(results(&wire.task(TaskFunction::ClearTaskSet, 1, None)), [TaskResult::Rejected]);
    deliver(&iscsi, &mut [&mut wire.conn]);
    assert_eq!(results(&wire.answers()), [TaskResult::Complete]);
    wire.next -= 1;
    assert!(wire.task(TaskFunction::ClearTaskSet, 1, None).is_empty(), "the tag is free again");
    deliver(&iscsi, &mut [&mut wire.conn]);
    assert_eq!(results(&wire.answers()), [TaskResult::Complete]);
    wire.close();
}

/// Linux registers with APTPL always.
#[test]
fn what_is_to_outlive_the_power_does_or_is_refused() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let kind = scope_type(ReservationType::WriteExclusive);
    let out = |wire: &mut Wire<'_>, action: u8, key: u64, action_key: u64, persist: bool| {
        let data = PrOutData { key, action_key, persist, ..PrOutData::default() }.to_bytes();
        wire.status(0, Cdb::persistent_reserve_out(action, kind, 24), &data, 0)
    };
    let disk = |iscsi: &Iscsi| iscsi.shared.stores[0].disks()[0].clone();
    // PTPL_C and PTPL_A.
    let told = |wire: &mut Wire<'_>| {
        let data = wire.good(0, Cdb::persistent_reserve_in(pr_in::REPORT_CAPABILITIES, 8), 8);
        (data[2] & 1, data[3] & 1)
    };
    assert_eq!(told(&mut wire), (1, 0));
    assert_eq!(out(&mut wire, pr_out::REGISTER, 0, 5, true), (0, None));
    assert_eq!(out(&mut wire, pr_out::RESERVE, 5, 0, true), (0, None), "the bit means nothing there");
    assert_eq!(told(&mut wire), (1, 1));
    disk(&iscsi).reservations.forget();
    let picture = disk(&iscsi).reservations.picture();
    assert_eq!((picture.registered.len(), picture.held.is_some()), (1, true), "the power failed");
    assert_eq!(out(&mut wire, pr_out::REGISTER_AND_IGNORE_EXISTING_KEY, 0, 5, false), (0, None));
    disk(&iscsi).reservations.forget();
    assert!(disk(&iscsi).reservations.picture().registered.is_empty(), "the last one has said so");
    // A disk that outlives the target, whose reservations do not.
    let copy = |old: &Disk| Ok(Disk { reservations: Arc::default(), ..old.copy() });
    iscsi.shared.stores[0].replace(1, copy).unwrap();
    let (status, sense) = out(&mut wire, pr_out::REGISTER, 0, 5, true);
    assert_eq!((status, sense.map(|sense| sense.code())), (2, Some(0x2600)));
    assert_eq!((told(&mut wire), out(&mut wire, pr_out::REGISTER, 0, 5, false)), ((0, 0), (0, None)));
    wire.close();
}

#[test]
fn preempting_aborts_before_it_is_answered() {
    let iscsi = target(|_| ());
    let mut one = Wire::new(&iscsi, 7, Offer::default());
    let mut two = Wire::fresh(&iscsi, 8, 1, Offer::default());
    let _ = two.status(0, Cdb::test_unit_ready(), &[], 0);
    let kind = scope_type(ReservationType::WriteExclusive);
    let out = |wire: &mut Wire<'_>, action: u8, key: u64, action_key: u64| {
        let data = PrOutData { key, action_key, ..PrOutData::default() }.to_bytes();
        let cdb = Cdb::persistent_reserve_out(action, kind, data.len() as u32);
        let cmd = wire.command(0, cdb, true, data.len() as u32, true);
        wire.send(Pdu::ScsiCommand(cmd), &data)
    };
    for (wire, key) in [(&mut one, 1), (&mut two, 2)] {
        out(wire, pr_out::REGISTER, 0, key);
    }
    out(&mut two, pr_out::RESERVE, 2, 0);
    assert_eq!(one.status(0, Cdb::write_10(0, 1, RwFlags::empty()), &[1; 512], 0).0, 0x18, "a conflict");
    let cmd = two.command(0, Cdb::write_10(0, 2, RwFlags::empty()), true, 1024, true);
    assert_eq!(two.send(Pdu::ScsiCommand(cmd), &[]).len(), 1);
    assert!(out(&mut one, pr_out::PREEMPT_AND_ABORT, 1, 2).is_empty(), "others are not quiet yet");
    deliver(&iscsi, &mut [&mut one.conn, &mut two.conn]);
    assert!(matches!(one.answers()[..], [(Pdu::ScsiResponse(_), _)]));
    assert!(two.conn.tasks.is_empty());
    for code in [attention::REGISTRATIONS_PREEMPTED, attention::COMMANDS_CLEARED] {
        assert_eq!(two.status(0, Cdb::test_unit_ready(), &[], 0).1.map(|s| s.code()), Some(code));
    }
    assert_eq!(two.status(0, Cdb::write_10(0, 1, RwFlags::empty()), &[1; 512], 0).0, 0x18);
    assert_eq!(one.status(0, Cdb::write_10(0, 1, RwFlags::empty()), &[1; 512], 0).0, 0);
    one.close();
    two.close();
}

#[test]
fn pings_events_and_the_end() {
    let iscsi = target(|config| config.iscsi.nop_interval_ms = 10);
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let sn = wire.sn();
    let nop = NopOut { immediate: false, lun: Lun::ZERO, itt: Itt::new(5), ttt: None, sn, data_len: 0 };
    let answers = wire.send(Pdu::NopOut(nop), b"hello");
    assert!(matches!(&answers[..], [(Pdu::NopIn(nop), data)] if nop.itt == Itt::new(5) && data == b"hello"));
    let tick = |wire: &mut Wire<'_>, now_us| wire.conn.tick(&Env { now_us, iscsi: &iscsi, rules: &[] });
    tick(&mut wire, 10_000);
    let answers = wire.answers();
    let Some((Pdu::NopIn(ping), _)) = answers.first() else { panic!("{answers:?}") };
    let pong = NopOut { immediate: true, itt: None, ttt: ping.ttt, ..nop };
    wire.now_us = 11_000;
    assert!(ping.ttt.is_some() && wire.send(Pdu::NopOut(pong), &[]).is_empty());
    tick(&mut wire, 21_000);
    assert!(wire.answers().len() == 1 && wire.conn.ending.is_none());
    let env = Env { now_us: 0, iscsi: &iscsi, rules: &[] };
    assert!(wire.conn.announce(&env, Announcement::Logout { within_s: 3 }));
    let answers = wire.answers();
    assert!(
        matches!(&answers[..], [(Pdu::AsyncMessage(m), _)] if m.event == AsyncEvent::LogoutRequested { within_s: 3 })
    );
    for (reason, cid, result) in [
        (LogoutReason::RemoveForRecovery, 3, LogoutResult::RecoveryNotSupported),
        (LogoutReason::CloseConnection, 9, LogoutResult::NoConnection),
        (LogoutReason::CloseSession, 0, LogoutResult::Closed),
    ] {
        let sn = wire.sn();
        let request = LogoutRequest { immediate: false, reason, itt: Itt::new(77).unwrap(), cid, sn };
        let answers = wire.send(Pdu::LogoutRequest(request), &[]);
        assert!(matches!(&answers[..], [(Pdu::LogoutResponse(r), _)] if r.result == result), "{answers:?}");
    }
    assert_eq!(wire.conn.ending, Some(Ending::AfterFlush));
    wire.close();
    let mut silent = Wire::new(&iscsi, 8, Offer::default());
    tick(&mut silent, 10_000);
    tick(&mut silent, 20_000);
    assert_eq!(silent.conn.ending, Some(Ending::Now), "it does not answer");
    silent.close();
}
