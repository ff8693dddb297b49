//! What no initiator should send.

use super::*;

#[test]
fn what_is_wrong_is_rejected_or_ends_the_connection() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let reasons = |answers: &[(Pdu, Vec<u8>)]| -> Vec<RejectReason> {
        let reason = |pdu: &Pdu| if let Pdu::Reject(reject) = pdu { Some(reject.reason) } else { None };
        answers.iter().filter_map(|(pdu, _)| reason(pdu)).collect()
    };
    let env = Env { now_us: 0, iscsi: &iscsi, rules: &[] };
    let mut unknown = [0; BHS_LEN];
    unknown[0] = 0x1d;
    assert_eq!(wire.conn.receive(&env, &unknown), BHS_LEN);
    assert_eq!(reasons(&wire.answers()), [RejectReason::CommandNotSupported]);
    // The tag of a command that is not answered yet.
    let cmd = wire.command(0, Cdb::write_10(9, 200, RwFlags::empty()), true, 200 * 512, true);
    wire.send(Pdu::ScsiCommand(cmd), &[]);
    let again = ScsiCommand { sn: wire.sn(), ..cmd };
    let answers = wire.send(Pdu::ScsiCommand(again), &[]);
    assert_eq!(reasons(&answers), [RejectReason::TaskInProgress]);
    // Data that nobody asked for are ignored, those that do not fit end the command.
    let out = |itt: Itt, ttt: Option<Ttt>, offset| DataOut {
        is_final: true,
        lun: Lun::ZERO,
        itt,
        ttt,
        exp_stat_sn: StatSn::new(0),
        data_sn: 0,
        buffer_offset: offset,
        data_len: 0,
    };
    assert!(wire.send(Pdu::DataOut(out(Itt::new(4711).unwrap(), None, 0)), &[1; 512]).is_empty());
    let answers = wire.send(Pdu::DataOut(out(cmd.itt, None, 0)), &[1; 512]);
    assert!(matches!(answers[..], [(Pdu::ScsiResponse(_), _)]), "{answers:?}");
    assert!(wire.conn.tasks.is_empty() && wire.conn.staged == 0);
    // More than was declared: nobody knows where the next PDU begins.
    let mut long = [0; BHS_LEN];
    (long[0], long[1], long[5]) = (0x01, 0x80 | 0x20, 0xff);
    wire.conn.receive(&env, &long);
    assert_eq!(wire.conn.ending, Some(Ending::AfterFlush));
    wire.close();
    for bytes in [[0xff; 48], [0; 48], [0x43; 48]] {
        let mut stranger = conn(&iscsi, 20, 0);
        stranger.receive(&env, &bytes);
        assert!(stranger.ending.is_some());
        stranger.close(&iscsi);
    }
    let mut slow = conn(&iscsi, 21, 0);
    slow.tick(&Env { now_us: slow.deadline_us(), iscsi: &iscsi, rules: &[] });
    assert_eq!(slow.ending, Some(Ending::Now), "a login takes its time, but not for ever");
    slow.close(&iscsi);
}

/// A command that wants more than any may move is refused before anybody is asked for it.
#[test]
fn no_room_is_made_for_more_than_a_command_may_move() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    for cdb in [
        Cdb::write_16(0, u32::MAX, RwFlags::empty()),
        Cdb::write_16(0, 1 << 20, RwFlags::empty()),
        Cdb::persistent_reserve_out(pr_out::REGISTER, 0, u32::MAX),
    ] {
        let cmd = wire.command(0, cdb, true, u32::MAX, true);
        let answers = wire.send(Pdu::ScsiCommand(cmd), &[]);
        assert!(matches!(answers[..], [(Pdu::ScsiResponse(_), _)]), "{cdb}: {answers:?}");
    }
    assert_eq!((wire.conn.staged, wire.conn.tasks.len()), (0, 0));
    wire.close();
}

/// One command holds up everybody else on its thread for as long as it takes: how long that is, is not for a host to say.
#[test]
fn blocks_that_are_compared_with_one_are_bounded() {
    let iscsi = target(|config| config.iscsi.max_transfer = 8192);
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    for (blocks, want) in [(16, (0, None)), (17, (2, Some(0x2400))), (2048, (2, Some(0x2400)))] {
        let cdb = Cdb::verify_16(0, blocks, polypath_scsi::cdb::ByteCheck::OneBlock, false);
        let (status, sense) = wire.status(0, cdb, &[0; 512], 0);
        assert_eq!((status, sense.map(|s| s.code())), want, "{blocks}");
    }
    wire.close();
}

/// Whoever has no secret lets nobody in by the empty one.
#[test]
fn an_empty_secret_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let [empty, line] = ["empty", "line"].map(|name| folder.path().join(name));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&line, "\r\n").unwrap();
    let chap = |secret: Option<&str>, file: Option<&PathBuf>| ChapConfig {
        user: "joe".into(),
        secret: secret.map(SecretText::new),
        secret_file: file.cloned(),
        ..ChapConfig::default()
    };
    for wrong in [chap(Some(""), None), chap(None, Some(&empty)), chap(None, Some(&line))] {
        let error = credentials(&wrong).expect_err("nobody's secret").to_string();
        assert!(error.contains("joe") && error.contains("empty"), "{error}");
    }
    std::fs::write(&line, "a secret of joe\n\n").unwrap();
    let (joe, _) = credentials(&chap(None, Some(&line))).unwrap();
    assert!(joe.secret == Secret::new("a secret of joe"), "as initiators read such a file");
}

/// Memory of transfers that are over is kept for the next ones, and no more of it than there may be for those under way.
#[test]
fn memory_of_past_transfers_is_bounded() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    let data = vec![7; 1 << 20];
    let mut open = VecDeque::new();
    for _ in 0..48 {
        let cmd = wire.command(0, Cdb::write_10(0, 2048, RwFlags::empty()), true, 1 << 20, true);
        open.extend(wire.send(Pdu::ScsiCommand(cmd), &[]));
    }
    let mut done = 0;
    while let Some((pdu, _)) = open.pop_front() {
        let Pdu::R2t(r2t) = pdu else {
            done += 1;
            continue;
        };
        let (from, to) = (r2t.buffer_offset as usize, (r2t.buffer_offset + r2t.desired_len) as usize);
        let out = DataOut {
            is_final: true,
            lun: r2t.lun,
            itt: r2t.itt,
            ttt: Some(r2t.ttt),
            exp_stat_sn: StatSn::new(0),
            data_sn: 0,
            buffer_offset: r2t.buffer_offset,
            data_len: 0,
        };
        open.extend(wire.send(Pdu::DataOut(out), &data[from..to]));
    }
    assert_eq!((done, wire.conn.staged, wire.conn.tasks.len()), (48, 0, 0));
    let kept = wire.conn.pool.bytes();
    assert!(kept <= crate::iscsi::order::STAGE_LIMIT, "{kept} octets are kept");
    wire.close();
}

/// A generator of octets that is the same every time.
struct Octets(u64);

impl Octets {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn arbitrary_octets_never_panic_and_leave_nothing_behind() {
    let iscsi = target(|config| config.iscsi.max_recv_data = 4096);
    let cdbs = [
        Cdb::read_10(0, 9, RwFlags::empty()),
        Cdb::write_10(2040, 9, RwFlags::empty()),
        Cdb::unmap(24, false),
        Cdb::compare_and_write(1, 2, RwFlags::empty()),
        Cdb::persistent_reserve_out(pr_out::REGISTER, 0, 24),
        Cdb::set_target_port_groups(8),
        Cdb::inquiry_vpd(0x83, 300),
        Cdb::mode_sense_10(polypath_scsi::cdb::PageControl::Current, 0x3f, 0, 64),
        Cdb::report_luns(0, 64),
    ];
    let mut octets = Octets(0x9e37_79b9_7f4a_7c15);
    for round in 0..3000u32 {
        let mut wire = Wire::fresh(&iscsi, 7, 0, Offer::default());
        let env = Env { now_us: 0, iscsi: &iscsi, rules: &[] };
        for _ in 0..6 {
            let cdb = cdbs[octets.next() as usize % cdbs.len()];
            let expected = octets.next() as u32 % 6000;
            let write = octets.next() & 1 == 0;
            let cmd = wire.command(octets.next() as u32 % 3, cdb, write, expected.max(1), octets.next() & 3 != 0);
            let data: Vec<u8> = (0..if write { expected.min(600) } else { 0 }).map(|_| octets.next() as u8).collect();
            let mut bytes = self::octets(Pdu::ScsiCommand(cmd), &data, &wire.n.transmit());
            // Octets that say something else, in the head or anywhere.
            for _ in 0..octets.next() % 4 {
                let within = if octets.next() & 1 == 0 { BHS_LEN } else { bytes.len() };
                let at = octets.next() as usize % within;
                bytes[at] = octets.next() as u8;
            }
            wire.conn.receive(&env, &bytes);
            let _ = drain(&mut wire.conn.out);
            deliver(&iscsi, &mut [&mut wire.conn]);
            let _ = drain(&mut wire.conn.out);
        }
        let counted = wire.conn.tasks.iter().filter(|(_, task)| !task.cmd.immediate).count();
        assert_eq!(wire.conn.counted as usize, counted, "round {round}");
        wire.close();
    }
    assert!(iscsi.sessions_of(0).is_empty());
}

#[test]
fn the_log_is_not_filled() {
    let iscsi = target(|_| ());
    let mut wire = Wire::new(&iscsi, 7, Offer::default());
    for _ in 0..3 {
        assert_eq!(results(&wire.task(TaskFunction::TargetColdReset, 0, None)), [TaskResult::NotSupported]);
    }
    assert_eq!(HostLog::may(&iscsi.shared.log.tasks, 1_000_000), Some(2), "the first was said");
    wire.close();
}
