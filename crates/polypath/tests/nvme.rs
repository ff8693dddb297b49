//! NVMe/TCP disks through the facade, against the software target.

use polypath::{Disk, Error, GroupSpec, Stack, StackConfig, block_on, wait_live};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.org.example:facade";

fn target() -> TargetHandle {
    Target::start(TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0"), ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig::new(
            NQN,
            vec![NamespaceConfig::new("ram://8MiB"), NamespaceConfig::new("ram://4MiB?bs=4096")],
        )],
        ..TargetConfig::default()
    })
    .expect("a target")
}

fn stack() -> Stack {
    Stack::start(StackConfig { buffer_bytes: 8 << 20, ..StackConfig::default() }).unwrap()
}

fn uri(target: &TargetHandle, listener: usize, options: &str) -> String {
    format!("nvme-tcp://127.0.0.1:{}/{NQN}?{options}", target.port(listener))
}

fn write_and_read(disk: &Disk, at: u64, byte: u8) {
    let mut buffer = disk.buffer(8192).unwrap();
    buffer.fill(byte);
    let (result, mut buffer) = block_on(disk.write(at, buffer));
    result.unwrap();
    buffer.fill(!byte);
    let (result, buffer) = block_on(disk.read(at, buffer));
    result.unwrap();
    assert!(buffer.to_vec().iter().all(|&b| b == byte));
}

#[test]
fn one_path_is_a_disk() {
    let (target, stack) = (target(), stack());
    let disk = block_on(Disk::builder().uris(uri(&target, 0, "ns=2&hdgst=on")).stack(&stack).open()).unwrap();
    assert_eq!((disk.size(), disk.geometry().block_size), (4 << 20, 4096));
    (0..20).for_each(|n| write_and_read(&disk, n * 8192, n as u8));
    block_on(disk.flush()).unwrap();
    block_on(disk.write_zeroes(0, 1 << 20)).unwrap();
    block_on(disk.close());
    drop(disk);
    assert!(stack.stop(Duration::from_secs(5)), "the controller was left behind: {:?}", stack.statistics());
    target.stop();
}

#[test]
fn two_paths_survive_the_loss_of_one() {
    let (target, stack) = (target(), stack());
    let uris = [uri(&target, 0, "ns=1"), uri(&target, 1, "ns=1")];
    let disk = block_on(Disk::builder().uris(uris).stack(&stack).open()).unwrap();
    (0..20).for_each(|n| write_and_read(&disk, n * 8192, n as u8));
    target.reset(0).unwrap();
    target.close_listener(0).unwrap();
    (0..20).for_each(|n| write_and_read(&disk, n * 8192, n as u8 ^ 0x55));
    block_on(disk.flush()).unwrap();
    block_on(disk.close());
    drop(disk);
    assert!(stack.stop(Duration::from_secs(10)), "a controller was left behind: {:?}", stack.statistics());
    target.stop();
}

#[test]
fn namespaces_of_one_controller_share_it() {
    let (target, stack) = (target(), stack());
    let open = |options: &str| stack.open_device(&uri(&target, 0, options).parse().unwrap()).unwrap();
    let (one, two) = (open("ns=1"), open("ns=2"));
    let (a, b) = (wait_live(&*one, Duration::from_secs(5)).unwrap(), wait_live(&*two, Duration::from_secs(5)).unwrap());
    assert_eq!((a.geometry.bytes(), b.geometry.bytes()), (8 << 20, 4 << 20));
    let pollers = || stack.statistics()[0].pollers;
    assert_eq!(pollers(), 1, "one admin queue for both");
    one.close();
    assert!(wait_live(&*two, Duration::from_secs(5)).is_ok(), "the other one goes on");
    two.close();
    let start = Instant::now();
    while pollers() > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "the controller outlived its namespaces");
        std::thread::yield_now();
    }
    let again = open("ns=1");
    assert!(wait_live(&*again, Duration::from_secs(5)).is_ok(), "a closed controller is not handed out again");
    again.close();
    target.stop();
}

#[test]
fn what_cannot_be_opened_says_why_in_time() {
    let (target, stack) = (target(), stack());
    let open = |uri: String| {
        let limit = Duration::from_millis(700);
        block_on(Disk::builder().uris(uri).stack(&stack).timeout(limit).open()).unwrap_err()
    };
    let start = Instant::now();
    let error = open(uri(&target, 0, "ns=9"));
    assert!(matches!(error, Error::NotLive { .. }) && error.to_string().contains("active namespaces: 1, 2"), "{error}");
    let error = open(format!("nvme-tcp://127.0.0.1:1/{NQN}?ns=1"));
    assert!(matches!(error, Error::NotLive { .. }), "{error}");
    assert!(open(uri(&target, 0, "ns=x")).to_string().contains("option ns"));
    assert!(start.elapsed() < Duration::from_secs(5));
    let spec = GroupSpec::new("g", [uri(&target, 0, "ns=1").parse().unwrap(), "iscsi://h/iqn/0".parse().unwrap()]);
    assert!(stack.open_group(spec).unwrap_err().to_string().contains("iscsi"));
    assert!(stack.stop(Duration::from_secs(5)), "something was left behind: {:?}", stack.statistics());
    target.stop();
}
