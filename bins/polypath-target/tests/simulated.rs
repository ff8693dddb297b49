//! The target without sockets and clock, over iSCSI: logins, commands and faults by its interface for simulated worlds.
#![allow(missing_docs)]

use polypath_iscsi::login::{InitiatorConfig, InitiatorLogin, InitiatorStep, Name, Negotiated, Offer};
use polypath_iscsi::pdu::{
    BHS_LEN, Framing, Header, InitiatorSn, Isid, Itt, Lun, Pdu, Role, ScsiCommand, TaskAttribute,
};
use polypath_iscsi::serial::{CmdSn, StatSn};
use polypath_scsi::cdb::{Cdb, RwFlags};
use polypath_target::sim_shell::{SimTarget, Wish};
use polypath_target::{Command, ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};

const IQN: &str = "iqn.2026-01.org.example:t";

fn target() -> SimTarget {
    let disks = vec![NamespaceConfig::new("ram://1MiB?cache=volatile")];
    let config = TargetConfig {
        listeners: vec![ListenerConfig::iscsi("10.0.0.1:3260"), ListenerConfig::new("10.0.0.2:4420")],
        subsystems: vec![SubsystemConfig { iqn: Some(IQN.into()), ..SubsystemConfig::new("nqn.x", disks) }],
        ..TargetConfig::default()
    };
    SimTarget::new(config).unwrap()
}

/// Everything that is to leave, until nothing more comes of itself.
fn output(target: &mut SimTarget, now_us: u64, connection: u64) -> Vec<u8> {
    target.poll(now_us);
    let mut bytes = Vec::new();
    while target.output(connection, 100, &mut bytes) > 0 {}
    bytes
}

fn pdus(bytes: &[u8], framing: &Framing) -> Vec<(Pdu, Vec<u8>)> {
    let (mut list, mut rest) = (Vec::new(), bytes);
    while let Some(bhs) = rest.first_chunk::<BHS_LEN>() {
        let header = Header::parse(bhs, Role::Target, framing).unwrap();
        let data = header.verified_data(&rest[header.head_len()..]).unwrap().to_vec();
        list.push((Pdu::parse(&header, bhs).unwrap(), data));
        rest = &rest[header.head_len() + header.tail_len()..];
    }
    list
}

fn log_in(target: &mut SimTarget, now_us: u64) -> (u64, Box<Negotiated>) {
    let connection = target.accept(now_us, 0);
    let mut login = InitiatorLogin::new(InitiatorConfig {
        initiator_name: Name::new("iqn.2026-01.org.example:i").unwrap(),
        initiator_alias: None,
        target_name: Some(Name::new(IQN).unwrap()),
        isid: Isid::random(1, 2),
        cid: 0,
        itt: Itt::new(1).unwrap(),
        cmd_sn: CmdSn::new(1),
        offer: Offer::default(),
        chap: None,
    });
    let mut message = login.start();
    loop {
        let mut bytes = Vec::new();
        Pdu::LoginRequest(message.pdu).append(&message.text, &Framing::LOGIN, &mut bytes).unwrap();
        target.input(now_us, connection, &bytes);
        let answers = pdus(&output(target, now_us, connection), &Framing::LOGIN);
        let [(Pdu::LoginResponse(response), text)] = &answers[..] else { panic!("{answers:?}") };
        match login.handle(response, text).unwrap() {
            InitiatorStep::Send(next) => message = next,
            InitiatorStep::Done(n) => return (connection, n),
        }
    }
}

fn command(itt: u32, cmd_sn: u32, cdb: Cdb, data: &[u8], n: &Negotiated) -> Vec<u8> {
    let cmd = ScsiCommand {
        immediate: false,
        is_final: true,
        read: false,
        write: !data.is_empty(),
        attribute: TaskAttribute::Simple,
        lun: Lun::ZERO,
        itt: Itt::new(itt).unwrap(),
        expected_len: data.len() as u32,
        sn: InitiatorSn { cmd_sn: CmdSn::new(cmd_sn), exp_stat_sn: StatSn::new(0) },
        cdb: *cdb.octets(),
        data_len: 0,
    };
    let mut bytes = Vec::new();
    Pdu::ScsiCommand(cmd).append(data, &n.transmit(), &mut bytes).unwrap();
    bytes
}

fn byte(target: &SimTarget, lba: u64, durable: bool) -> u8 {
    let mut byte = [0];
    assert!(target.look(IQN, 1, lba * 512, durable, &mut byte));
    byte[0]
}

#[test]
fn a_driven_target_speaks_iscsi() {
    let mut target = target();
    let (old, n) = log_in(&mut target, 1000);
    let first = n.cmd_sn.get();
    let write = |itt, nth, lba, value: u8| {
        command(itt, first + nth, Cdb::write_10(lba, 1, RwFlags::empty()), &[value; 512], &n)
    };
    target.input(2000, old, &command(10, first, Cdb::test_unit_ready(), &[], &n));
    target.input(2000, old, &write(11, 1, 0, 7));
    let answers = pdus(&output(&mut target, 2000, old), &n.receive());
    assert!(matches!(answers[..], [(Pdu::ScsiResponse(_), _), (Pdu::ScsiResponse(_), _)]), "{answers:?}");
    assert_eq!((byte(&target, 0, false), byte(&target, 0, true), target.changes(IQN, 1)), (7, 0, 1));
    // A write that is late, one that is later than anything that is promised, and a session that takes the place of theirs.
    for (nth, beyond) in [(2, false), (3, true)] {
        let hold = Command { beyond: Some(beyond), apply_after_ms: Some(50), ..Command::new("hold_write").listener(0) };
        target.control(3000, &hold).unwrap();
        target.input(3000, old, &write(20 + nth, nth, nth, 8));
        assert!(output(&mut target, 3000, old).is_empty());
    }
    let (new, n) = log_in(&mut target, 4000);
    assert_eq!((target.wish(old), target.wish(new)), (Wish::Reset, Wish::Stay));
    target.closed(4000, old);
    assert_eq!((byte(&target, 2, false), byte(&target, 3, false)), (8, 0));
    assert!(target.next_us() <= 53_000, "the other is due");
    target.poll(53_000);
    assert_eq!(byte(&target, 3, false), 8);
    // The same faults as for NVMe, by the same commands.
    target.control(60_000, &Command { op: Some("keep_alive".into()), us: Some(500), ..Command::new("delay") }).unwrap();
    target.input(60_000, new, &command(9, n.cmd_sn.get(), Cdb::test_unit_ready(), &[], &n));
    target.input(60_000, new, &command(10, n.cmd_sn.get() + 1, Cdb::test_unit_ready(), &[], &n));
    assert_eq!(pdus(&output(&mut target, 60_000, new), &n.receive()).len(), 1, "the first hears that the nexus is new");
    assert_eq!(target.next_us(), 60_500);
    assert_eq!(pdus(&output(&mut target, 60_500, new), &n.receive()).len(), 1);
    let told = target.control(61_000, &Command::new("drop_connection")).unwrap();
    assert_eq!(told["connections"], 1);
    assert!(matches!(pdus(&output(&mut target, 61_000, new), &n.receive())[..], [(Pdu::AsyncMessage(_), _)]));
    assert_eq!(target.wish(new), Wish::End);
    target.control(62_000, &Command::new("power_loss")).unwrap();
    assert_eq!((byte(&target, 0, false), byte(&target, 2, false)), (0, 0), "nothing was flushed");
}
