//! Commands to a disk beneath, and what is said of them while it holds them.

use super::*;
use crate::media::Medium;
use crate::media::beneath::testing::Rig;
use crate::store::Disk;
use polypath_block::{Code, Flags, Limits, Op};

/// A target whose unit 0 is a disk beneath.
fn served(limits: Limits) -> (Iscsi, Rig) {
    let rig = Rig::new(limits);
    let iscsi = target(|_| ());
    let medium = Arc::new(Medium::Beneath(rig.disk.clone()));
    let over = |old: &Disk| Ok(Disk { medium, blocks: 4096, ..old.copy() });
    iscsi.shared.stores[0].replace(1, over).unwrap();
    (iscsi, rig)
}

/// Does what the shell does, until nothing moves any more.
fn settle(iscsi: &Iscsi, rig: &mut Rig, conns: &mut [&mut Conn]) {
    let env = Env { now_us: 0, iscsi, rules: &[] };
    loop {
        let mut moved = false;
        for c in conns.iter_mut() {
            let id = c.info.id;
            c.orders.drain(..).for_each(|order| {
                rig.order(id, order);
                moved = true;
            });
        }
        for msg in iscsi.shared.threads.get().unwrap()[0].take() {
            moved = true;
            match msg {
                Msg::Quiesce { what, reply } => {
                    for c in conns.iter_mut() {
                        let id = c.info.id;
                        c.quiesce(&env, &what);
                        c.orders.drain(..).for_each(|order| rig.order(id, order));
                    }
                    if !rig.engine.watch(|_| true, reply) {
                        iscsi.shared.send(reply, Msg::Quiet { to: reply });
                    }
                }
                Msg::Quiet { to } => {
                    conns.iter_mut().filter(|c| c.info.id == to.conn).for_each(|c| c.quiet(&env, to.tag));
                }
                _ => panic!("another message"),
            }
        }
        rig.pump();
        for reply in rig.quiet.drain(..) {
            iscsi.shared.send(reply, Msg::Quiet { to: reply });
            moved = true;
        }
        for ended in rig.ended.drain(..) {
            moved = true;
            let owner = conns.iter_mut().find(|c| c.info.id == ended.conn);
            owner.unwrap().finished(&env, ended.tag, ended.result, ended.data);
        }
        if !moved {
            return;
        }
    }
}

/// Status, additional sense code and data of a command once it is answered.
fn done(wire: &mut Wire<'_>, rig: &mut Rig, cdb: Cdb, data: &[u8], expected_in: u32) -> (u8, u16, Vec<u8>) {
    let write = !data.is_empty();
    let cmd = wire.command(0, cdb, write, if write { data.len() as u32 } else { expected_in }, true);
    let mut answers = wire.send(Pdu::ScsiCommand(cmd), data);
    let iscsi = wire.iscsi;
    settle(iscsi, rig, &mut [&mut wire.conn]);
    answers.extend(wire.answers());
    match answers.last() {
        Some((Pdu::ScsiResponse(response), data)) => {
            let CommandResponse::Completed { status } = response.response else { panic!("{response:?}") };
            let (sense, _) = polypath_iscsi::pdu::split_sense(data).unwrap();
            let code = if sense.is_empty() { 0 } else { polypath_scsi::Sense::parse(sense).unwrap().code() };
            (status, code, Vec::new())
        }
        Some((Pdu::DataIn(last), _)) => {
            let status = last.status.expect("a status").status;
            (status, 0, answers.into_iter().flat_map(|(_, data)| data).collect())
        }
        other => panic!("{other:?}"),
    }
}

fn held_write(wire: &mut Wire<'_>, rig: &mut Rig, lba: u32, byte: u8) -> Itt {
    rig.script.hold(&[Op::Write]);
    let cmd = wire.command(0, Cdb::write_10(lba, 1, RwFlags::empty()), true, 512, true);
    assert!(wire.send(Pdu::ScsiCommand(cmd), &[byte; 512]).is_empty());
    let iscsi = wire.iscsi;
    settle(iscsi, rig, &mut [&mut wire.conn]);
    assert!(wire.answers().is_empty());
    cmd.itt
}

#[test]
fn commands_are_carried_out_beneath() {
    let (iscsi, mut rig) = served(Limits { max_transfer_bytes: 2048, write_cache: true, ..Limits::UNLIMITED });
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let plain = Flags::empty();
    let fua = Cdb::write_10(8, 1, RwFlags::FUA);
    let block = [6; 512];
    for (cdb, data, want, seen) in [
        (
            Cdb::write_10(8, 5, RwFlags::empty()),
            &[7; 2560][..],
            0,
            vec![(Op::Write, 8, 4, plain), (Op::Write, 12, 1, plain)],
        ),
        (fua, &block, 0, vec![(Op::Write, 8, 1, Flags::FUA)]),
        (Cdb::synchronize_cache_10(0, 0, false), &[], 0, vec![(Op::Flush, 0, 0, plain)]),
        (Cdb::write_10(4095, 2, RwFlags::empty()), &[7; 1024], 0x2100, vec![]),
        (Cdb::compare_and_write(8, 1, RwFlags::empty()), &[0; 1024], 0x2000, vec![]),
    ] {
        let (_, code, _) = done(&mut wire, &mut rig, cdb, data, 0);
        assert_eq!((code, rig.script.seen()), (want, seen), "{cdb}");
    }
    let (status, _, data) = done(&mut wire, &mut rig, Cdb::read_10(8, 5, RwFlags::empty()), &[], 2560);
    assert_eq!((status, data.len(), data[0], data[512], data[2559]), (0, 2560, 6, 7, 7));
    for (code, status, sense) in [
        (Code::Medium, 2, 0x1100),
        (Code::ReservationConflict, 0x18, 0),
        (Code::NoPath, 2, 0x4400),
        (Code::OutOfRange, 2, 0x2100),
        (Code::Aborted, 2, 0),
    ] {
        rig.script.fail(&[code]);
        let got = done(&mut wire, &mut rig, Cdb::read_10(8, 1, RwFlags::empty()), &[], 512);
        assert_eq!((got.0, got.1), (status, sense), "{code:?}");
    }
    wire.close();
    rig.finish();
}

#[test]
fn functions_wait_for_what_they_have_ended() {
    let (iscsi, mut rig) = served(Limits::UNLIMITED);
    let mut one = Wire::new(&iscsi, 7, Offer::default());
    let mut two = Wire::fresh(&iscsi, 8, 0, Offer::default());
    let _ = two.status(0, Cdb::test_unit_ready(), &[], 0);
    for (function, byte) in
        [(TaskFunction::AbortTask, 1), (TaskFunction::AbortTaskSet, 2), (TaskFunction::LogicalUnitReset, 3)]
    {
        let itt = held_write(&mut one, &mut rig, 8, byte);
        let theirs = held_write(&mut two, &mut rig, 9, byte);
        let referenced = (function == TaskFunction::AbortTask).then_some(itt);
        assert!(one.task(function, 0, referenced).is_empty(), "{function}");
        settle(&iscsi, &mut rig, &mut [&mut one.conn, &mut two.conn]);
        assert!(one.answers().is_empty(), "{function}: it is under way");
        if let Some(referenced) = referenced {
            // Asked again, there is no such task; but it is no more quiet for that.
            assert!(one.task(function, 0, Some(referenced)).is_empty());
            settle(&iscsi, &mut rig, &mut [&mut one.conn, &mut two.conn]);
            assert!(one.answers().is_empty());
        }
        rig.script.hold(&[]);
        settle(&iscsi, &mut rig, &mut [&mut one.conn, &mut two.conn]);
        let mut want = vec![TaskResult::Complete];
        want.extend(referenced.map(|_| TaskResult::NoTask));
        assert_eq!(results(&one.answers()), want, "{function}");
        assert_eq!([rig.script.byte(8), rig.script.byte(9)], [byte; 2], "{function}: they have landed before");
        let ended = function == TaskFunction::LogicalUnitReset;
        assert_eq!((two.answers().is_empty(), two.conn.task_of(theirs)), (ended, None), "{function}");
    }
    one.close();
    two.close();
    rig.finish();
}

#[test]
fn a_session_waits_for_what_the_one_before_has_left() {
    for closed in [false, true] {
        let (iscsi, mut rig) = served(Limits::UNLIMITED);
        let mut old = Wire::new(&iscsi, 7, Offer::default());
        held_write(&mut old, &mut rig, 8, 5);
        if closed {
            // Its connection has ended long before the next login: nobody knows the session any more.
            rig.engine.abandon(7);
            old.conn.close(&iscsi);
        }
        let mut new = conn(&iscsi, 8, 0);
        let (mut login, waiting) = log_in(&iscsi, &mut new, Isid::random(7, 0), Offer::default());
        assert!(waiting.is_none());
        settle(&iscsi, &mut rig, &mut [&mut old.conn, &mut new]);
        assert!(drain(&mut new.out).is_empty(), "closed {closed}: a write is under way");
        rig.script.hold(&[]);
        settle(&iscsi, &mut rig, &mut [&mut old.conn, &mut new]);
        let answers = read(&drain(&mut new.out), &Framing::LOGIN);
        let Some((Pdu::LoginResponse(response), text)) = answers.first() else { panic!("{answers:?}") };
        assert!(matches!(login.handle(response, text), Ok(InitiatorStep::Done(_))));
        assert_eq!(rig.script.byte(8), 5);
        old.conn.close(&iscsi);
        new.close(&iscsi);
        rig.finish();
    }
}

/// However many come by meanwhile, who has left something is not forgotten: their next login is the proof that it is quiet.
#[test]
fn a_crowd_does_not_hide_what_a_session_has_left() {
    let (iscsi, mut rig) = served(Limits::UNLIMITED);
    let mut old = Wire::new(&iscsi, 7, Offer::default());
    held_write(&mut old, &mut rig, 8, 5);
    rig.engine.abandon(7);
    old.conn.close(&iscsi);
    for n in 0..KNOWN as u32 {
        let mut stranger = conn(&iscsi, 100 + u64::from(n), 0);
        log_in(&iscsi, &mut stranger, Isid::random(100 + n, 0), Offer::default());
        stranger.close(&iscsi);
    }
    iscsi.shared.threads.get().unwrap()[0].take();
    let mut new = conn(&iscsi, 8, 0);
    let (_, done) = log_in(&iscsi, &mut new, Isid::random(7, 0), Offer::default());
    assert!(done.is_none(), "a write of the session before is under way");
    rig.script.hold(&[]);
    settle(&iscsi, &mut rig, &mut [&mut new]);
    assert_eq!((rig.script.byte(8), drain(&mut new.out).is_empty()), (5, false));
    // It is not told of a reset, by which caches might have been lost.
    assert_eq!(new.session.as_ref().and_then(|session| session.take_attention(0)), Some(attention::NEXUS_LOSS));
    new.close(&iscsi);
    rig.finish();
}

#[test]
fn a_logout_is_answered_when_all_is_quiet() {
    let (iscsi, mut rig) = served(Limits::UNLIMITED);
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    held_write(&mut wire, &mut rig, 8, 5);
    let request = LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseSession,
        itt: Itt::new(900).unwrap(),
        cid: 3,
        sn: InitiatorSn { cmd_sn: CmdSn::new(wire.cmd_sn), exp_stat_sn: StatSn::new(0) },
    };
    assert!(wire.send(Pdu::LogoutRequest(request), &[]).is_empty());
    settle(&iscsi, &mut rig, &mut [&mut wire.conn]);
    assert!(wire.answers().is_empty() && wire.conn.ending.is_none());
    rig.script.hold(&[]);
    settle(&iscsi, &mut rig, &mut [&mut wire.conn]);
    let answers = wire.answers();
    assert!(matches!(answers[..], [(Pdu::LogoutResponse(_), _)]), "{answers:?}");
    assert_eq!((rig.script.byte(8), wire.conn.ending), (5, Some(Ending::AfterFlush)));
    wire.close();
    rig.finish();
}
