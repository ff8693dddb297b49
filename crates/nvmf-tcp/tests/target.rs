//! The initiator against `polypath-target`: the contract, every way of moving data, what the controller tells.

use crate::common::*;
use polypath_block::{Access, Code, Device, DeviceState, Flags, Identifier, Io, Op, OpenError, QueueConfig};
use polypath_memory::copy_count;
use polypath_nvmf_tcp::{Controller, ControllerConfig, discover};
use polypath_target::{Command, ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig};

#[test]
fn keeps_the_contract() {
    let target = start(target_config(&["ram://64MiB"]));
    for options in ["", "hdgst=1&ddgst=1", "queue_depth=4"] {
        polypath_block::contract::check(&mut ContractRig::new(&World::uri(&target, options), true));
    }
}

#[test]
fn keeps_the_contract_with_small_steps_of_the_target() {
    let config = TargetConfig {
        in_capsule: 0,
        r2t_bytes: 4096,
        max_h2c_data: 4096,
        mdts_bytes: 16384,
        cpda: 3,
        queue_depth: 8,
        ..target_config(&["ram://64MiB?bs=4096"])
    };
    let target = start(config);
    for options in ["", "hdgst=1&ddgst=1"] {
        polypath_block::contract::check(&mut ContractRig::new(&World::uri(&target, options), true));
    }
}

#[test]
fn keeps_the_contract_one_octet_at_a_time() {
    let target = start(target_config(&["null://1GiB?bs=4096"]));
    let mut rig = Rig::new(&World::uri(&target, "silence_timeout_ms=20000&io_timeout_ms=30000"), 4);
    let trickle = Command { us: Some(1), bytes: Some(1), ..Command::new("trickle") };
    target.control(&trickle).unwrap();
    let (span, _) = rig.world.memory(4096, 1);
    for tag in 0..3 {
        assert_eq!(rig.run(Io::read(tag, 0, 1, span)).status.code, Code::Ok);
        assert_eq!(rig.run(Io::write(tag, 0, 1, span)).status.code, Code::Ok);
    }
}

#[test]
fn every_operation_in_any_size() {
    let target = start(target_config(&["ram://64MiB"]));
    for options in ["", "ddgst=1"] {
        let mut rig = Rig::new(&World::uri(&target, options), 8);
        let len = 3 << 20;
        let (from, out) = rig.world.memory(len, 0);
        let (to, back) = rig.world.memory(len, 0xff);
        let data: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        out.copy_in(0, &data).unwrap();
        let blocks = len / 512;
        assert_eq!(rig.run(Io::write(1, 100, blocks, from).with_flags(Flags::FUA)).status.code, Code::Ok);
        assert_eq!(rig.run(Io::flush(2)).status.code, Code::Ok);
        assert_eq!(rig.run(Io::read(3, 100, blocks, to)).status.code, Code::Ok);
        let mut got = vec![0; len as usize];
        back.copy_out(0, &mut got).unwrap();
        assert!(got == data, "what was written must be read ({options})");
        assert_eq!(rig.run(Io { op: Op::Compare, ..Io::read(4, 100, blocks, from) }).status.code, Code::Ok);
        out.copy_in(len as usize - 1, &[!data[len as usize - 1]]).unwrap();
        assert_eq!(rig.run(Io { op: Op::Compare, ..Io::read(5, 100, blocks, from) }).status.code, Code::Miscompare);
        assert_eq!(rig.run(Io::range(6, Op::WriteZeroes, 100, blocks)).status.code, Code::Ok);
        assert_eq!(rig.run(Io::read(7, 100, blocks, to)).status.code, Code::Ok);
        back.copy_out(0, &mut got).unwrap();
        assert!(got.iter().all(|&b| b == 0), "zeroes must be read as zeroes");
        assert_eq!(rig.run(Io::range(8, Op::Discard, 0, 131_072)).status.code, Code::Ok);
    }
}

#[test]
fn data_are_copied_never_on_the_way_out_and_once_on_the_way_in() {
    let target = start(target_config(&["ram://64MiB"]));
    let mut rig = Rig::new(&World::uri(&target, ""), 32);
    for len in [512, 4096, 8192, 65536, 1 << 20] {
        let (span, _) = rig.world.memory(len, 9);
        let before = copy_count();
        assert_eq!(rig.run(Io::write(1, 0, len / 512, span)).status.code, Code::Ok);
        assert_eq!(copy_count(), before, "a write of {len} bytes was copied");
        assert_eq!(rig.run(Io::read(2, 0, len / 512, span)).status.code, Code::Ok);
        let copied = copy_count().copied_in - before.copied_in;
        assert!(copied <= u64::from(len), "{copied} bytes were copied for a read of {len}");
        assert_eq!(copy_count().copied_out, before.copied_out);
    }
}

#[test]
fn memory_that_is_gone_costs_its_request() {
    let target = start(target_config(&["ram://64MiB"]));
    let mut rig = Rig::new(&World::uri(&target, ""), 32);
    let region = polypath_memory::Region::allocate(4096, false).unwrap();
    let (good, _) = rig.world.memory(4096, 0);
    let (bad, _) = rig.world.memory(4096, 0);
    rig.world.segs.get_mut(bad)[0].region = region.id();
    rig.world.segs.get_mut(bad)[0].offset = 0;
    assert_eq!(rig.run(Io::write(1, 0, 8, bad)).status.code, Code::Ok);
    drop(region);
    assert_eq!(rig.run(Io::write(2, 0, 8, bad)).status.code, Code::BadMemory);
    assert_eq!(rig.run(Io::read(3, 0, 8, bad)).status.code, Code::BadMemory);
    assert_eq!(rig.run(Io::read(4, 0, 8, good)).status.code, Code::Ok);
    assert_eq!(rig.device.controller().statistics().losses, 0);
}

#[test]
fn tells_what_the_controller_tells() {
    let media = "ram://16MiB?bs=4096&uuid=2cd2c43b-a90a-45c1-a8cd-86b33ab273b5&nguid=000102030405060708090a0b0c0d0e0f";
    let target = start(TargetConfig { max_io_queues: 2, volatile_write_cache: Some(true), ..target_config(&[media]) });
    let mut rig = Rig::new(&World::uri(&target, "queue_depth=16"), 8);
    let info = rig.info();
    assert_eq!((info.geometry.block_size, info.geometry.blocks), (4096, 4096));
    assert_eq!((info.max_queues, info.max_depth, info.access), (2, 16, Access::Optimized));
    assert_eq!(info.limits.max_transfer_bytes, 131_072);
    assert!(info.limits.write_cache && info.limits.compare && info.limits.max_discard_blocks > 0);
    let nguid = std::array::from_fn(|i| i as u8);
    assert!(info.identity.identifiers.contains(&Identifier::Nguid(nguid)), "{:?}", info.identity);
    assert!(info.identity.identifiers.iter().any(|i| matches!(i, Identifier::Uuid(u) if u[0] == 0x2c)));
    assert!(info.identity.cache_domain.0.contains(NQN));
    let second = rig.device.open_queue(QueueConfig { depth: 8 }).unwrap();
    let third = rig.device.open_queue(QueueConfig { depth: 8 }).map(|_| ());
    assert!(matches!(third, Err(OpenError::NoQueue { granted: 2, .. })), "{third:?}");
    drop(second);
    rig.turn();
    assert!(rig.device.open_queue(QueueConfig { depth: 8 }).is_ok(), "a queue that is gone makes room");
}

#[test]
fn ana_size_and_identity_follow_events() {
    let target = start(target_config(&["ram://16MiB"]));
    let mut rig = Rig::new(&World::uri(&target, "reconnect_delay_ms=20"), 8);
    for (state, access) in [
        ("inaccessible", Access::Inaccessible),
        ("non-optimized", Access::NonOptimized),
        ("optimized", Access::Optimized),
    ] {
        target.set_ana(0, state).unwrap();
        rig.wait(state, |rig| rig.device.state().info().is_some_and(|i| i.access == access).then_some(()));
        let (span, _) = rig.world.memory(512, 0);
        let code = rig.run(Io::read(1, 0, 1, span)).status.code;
        assert_eq!(code, if access.usable() { Code::Ok } else { Code::PathNoAccess });
    }
    let resize = Command { nsid: Some(1), bytes: Some(32 << 20), ..Command::new("resize") };
    target.control(&resize).unwrap();
    rig.wait("growth", |rig| rig.device.state().info().is_some_and(|i| i.geometry.blocks == 65536).then_some(()));
    let swap = Command { nsid: Some(1), ..Command::new("swap_identity") };
    target.control(&swap).unwrap();
    let (cause, reason) = rig.wait_down();
    assert_eq!(cause, Code::PathIdentity);
    assert!(reason.contains("another one"), "{reason}");
    rig.turn();
    assert_eq!(rig.queue.health(), polypath_block::Health::Down);
}

#[test]
fn namespaces_are_chosen_or_listed() {
    let target = start(target_config(&["ram://1MiB?nsid=3", "ram://2MiB?nsid=7"]));
    let mut world = World::new();
    let ambiguous = world.open(&World::uri(&target, ""));
    let missing = world.open(&World::uri(&target, "ns=5"));
    let config = ControllerConfig::from_uri(&World::uri(&target, "").parse().unwrap()).unwrap();
    let controller = Controller::start(config, world.host.clone());
    let reason = world.wait("an error", |_| match ambiguous.state() {
        DeviceState::Gone { reason } => Some(reason),
        _ => None,
    });
    assert!(reason.contains("3, 7") && reason.contains("ns=N"), "{reason}");
    let reason = world.wait("an error", |_| match missing.state() {
        DeviceState::Down { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(reason.contains("namespace 5 is not active; active namespaces: 3, 7"), "{reason}");
    let devices = world.wait("namespaces", |_| Some(controller.namespaces()).filter(|all| !all.is_empty()));
    let sizes: Vec<u64> = devices.iter().map(|d| d.state().info().unwrap().geometry.bytes()).collect();
    assert_eq!((devices[0].nsid(), devices[1].nsid(), sizes), (Some(3), Some(7), vec![1 << 20, 2 << 20]));
    drop(devices);
    controller.close();
    let gone = controller.namespace(3);
    world.wait("the end", |_| matches!(gone.state(), DeviceState::Gone { .. }).then_some(()));
    assert!(gone.open_queue(QueueConfig { depth: 1 }).is_err());
}

#[test]
fn discovery_follows_referrals() {
    let second = start(TargetConfig {
        subsystems: vec![SubsystemConfig::new(
            "nqn.2024-01.org.example:other",
            vec![NamespaceConfig::new("null://1GiB")],
        )],
        ..target_config(&[])
    });
    let first = start(TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0"), ListenerConfig::new("127.0.0.1:0")],
        referrals: vec![second.addresses()[0].to_string()],
        ..target_config(&["null://1GiB"])
    });
    let uri = format!("nvme-tcp://127.0.0.1:{}", first.port(0)).parse().unwrap();
    let config = ControllerConfig::from_uri(&uri).unwrap();
    let found = discover(&config).unwrap();
    let mut subsystems: Vec<_> =
        found.iter().filter(|e| !e.subnqn.is_discovery()).map(|e| (e.subnqn.to_string(), e.trsvcid.clone())).collect();
    subsystems.sort();
    let mut want = vec![
        (NQN.to_owned(), first.port(0).to_string()),
        (NQN.to_owned(), first.port(1).to_string()),
        ("nqn.2024-01.org.example:other".to_owned(), second.port(0).to_string()),
    ];
    want.sort();
    assert_eq!(subsystems, want);
    let mut world = World::new();
    let controller = Controller::start(config, world.host.clone());
    let entries =
        world.wait("a persistent discovery controller", |_| Some(controller.discovered()).filter(|e| !e.is_empty()));
    assert!(entries.iter().any(|e| e.subnqn.as_str() == NQN));
    let nobody = ControllerConfig { port: 1, ..controller.config().clone() };
    assert!(discover(&nobody).unwrap_err().to_string().contains("127.0.0.1:1"));
}

/// One listed entry takes 1 KiB, and a transfer holds four of them.
#[test]
fn discovery_lists_more_than_one_transfer_holds() {
    let name = |n: u32| format!("nqn.2024-01.org.example:number-{n:02}");
    let subsystem = |n| SubsystemConfig::new(name(n), vec![NamespaceConfig::new("null://1GiB")]);
    let target = start(TargetConfig { subsystems: (0..11).map(subsystem).collect(), ..target_config(&[]) });
    let uri = format!("nvme-tcp://127.0.0.1:{}", target.port(0)).parse().unwrap();
    let found = discover(&ControllerConfig::from_uri(&uri).unwrap()).unwrap();
    let mut names: Vec<String> = found.iter().map(|e| e.subnqn.to_string()).filter(|n| n.contains("number")).collect();
    names.sort();
    assert_eq!(names, (0..11).map(name).collect::<Vec<_>>());
}

#[test]
fn a_target_is_found_by_its_name() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = Rig::new(&format!("nvme-tcp://localhost:{}/{NQN}", target.port(0)), 8);
    assert_eq!(rig.run(Io::flush(1)).status.code, Code::Ok);
}
