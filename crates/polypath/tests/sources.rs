//! Sources in place of paths, against software targets: what is listed becomes devices, arrivals join, what has gone goes.

use polypath::sources::{Report, SourceUri, Sources, SourcesConfig};
use polypath::{Disk, Stack, StackConfig, block_on};
use polypath_target::{Command, ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
const SHARED: &str = "11111111-2222-4333-8444-555555555555";
const NGUID: &str = "0123456789abcdef0123456789abcdef";

/// A target with so many listeners; its first namespace is on `medium` and says that it is the shared disk.
fn target(nqn: &str, listeners: usize, medium: &str, more: usize) -> TargetHandle {
    let shared =
        NamespaceConfig { uuid: Some(SHARED.into()), nguid: Some(NGUID.into()), ..NamespaceConfig::new(medium) };
    let others = (0..more).map(|_| NamespaceConfig::new("ram://4MiB"));
    Target::start(TargetConfig {
        listeners: (0..listeners).map(|_| ListenerConfig::new("127.0.0.1:0")).collect(),
        subsystems: vec![SubsystemConfig::new(nqn, std::iter::once(shared).chain(others).collect())],
        ..TargetConfig::default()
    })
    .expect("a target")
}

fn stack() -> Stack {
    Stack::start(StackConfig { buffer_bytes: 8 << 20, ..StackConfig::default() }).unwrap()
}

fn quick() -> SourcesConfig {
    SourcesConfig { refresh: Duration::from_millis(200), rounds: 2, ..SourcesConfig::default() }
}

fn discovery(target: &TargetHandle, listener: usize) -> SourceUri {
    format!("nvme-tcp://127.0.0.1:{}?reconnect_delay_ms=50", target.port(listener)).parse().unwrap()
}

fn shared() -> String {
    format!("uuid.{}", SHARED.replace('-', ""))
}

/// How many paths each device has, the shared one first.
fn paths(report: &Report) -> Vec<usize> {
    let shared = shared();
    let mut others: Vec<usize> = report.devices.iter().filter(|d| d.name != shared).map(|d| d.paths.len()).collect();
    others.sort_unstable();
    let own = report.device(&shared).map_or(0, |device| device.paths.len());
    std::iter::once(own).chain(others).collect()
}

fn until(sources: &Sources, want: &[usize]) {
    let report = sources.wait(LIMIT, |report| paths(report) == want);
    assert_eq!(paths(&report), want, "{report:#?}");
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
fn two_services_of_one_medium_give_one_device_and_strangers_stay_their_own() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    // Two targets of one process on one file: they see each other's pages.
    let medium = format!("file://{}?lock=off", file.path().display());
    let (one, two) =
        (target("nqn.2026-01.org.example:one", 2, &medium, 1), target("nqn.2026-01.org.example:two", 2, &medium, 1));
    let stack = stack();
    let sources = Sources::start(&stack, quick()).unwrap();
    sources.add(discovery(&one, 0)).unwrap();
    assert!(sources.add(discovery(&one, 0)).unwrap_err().to_string().contains("already"));
    let second = sources.add(discovery(&two, 0)).unwrap();
    // Each target lists both of its listeners: four paths to the medium, two to the namespace that is only there.
    until(&sources, &[4, 2, 2]);
    let report = sources.report();
    let device = report.device(&format!("nguid.{NGUID}")).expect("it is found by all that it proves");
    assert_eq!((device.name.clone(), device.geometry.bytes(), device.conflict.clone()), (shared(), 8 << 20, None));
    let group = sources.device(&shared()).expect("it is there");
    let disk = Disk::builder().device(group.clone()).stack(&stack).open_blocking().unwrap();
    (0..20).for_each(|n| write_and_read(&disk, n * 8192, n as u8));
    // The paths of a source that goes leave while requests run.
    sources.remove(second, false).unwrap();
    until(&sources, &[2, 2]);
    (0..20).for_each(|n| write_and_read(&disk, n * 8192, n as u8 ^ 0x55));
    // The disk uses its device: without its last source it would be without a path.
    let first = sources.report().sources[0].id;
    let refused = sources.remove(first, false).unwrap_err().to_string();
    assert!(refused.contains(&shared()) && refused.contains("force"), "{refused}");
    block_on(disk.close());
    drop((disk, group));
    sources.remove(first, true).unwrap();
    until(&sources, &[0]);
    sources.close();
    assert!(stack.stop(LIMIT), "something was left behind: {:?}", stack.statistics());
    one.stop();
    two.stop();
}

#[test]
fn arrivals_join_and_what_has_gone_goes() {
    let target = target("nqn.2026-01.org.example:moving", 2, "ram://8MiB", 2);
    let stack = stack();
    let sources = Sources::start(&stack, quick()).unwrap();
    sources.add(discovery(&target, 0)).unwrap();
    until(&sources, &[2, 2, 2]);
    let command = |cmd: &str, edit: &dyn Fn(&mut Command)| {
        let mut command = Command::new(cmd);
        edit(&mut command);
        target.control(&command).unwrap();
    };
    // A listener that goes is in no list any more; its paths are down.
    target.close_listener(1).unwrap();
    until(&sources, &[1, 1, 1]);
    target.open_listener(1).unwrap();
    until(&sources, &[2, 2, 2]);
    // A namespace that goes, comes, and comes as another one.
    command("detach", &|c| c.nsid = Some(2));
    until(&sources, &[2, 2]);
    command("attach", &|c| c.nsid = Some(2));
    until(&sources, &[2, 2, 2]);
    command("swap_identity", &|c| {
        (c.nsid, c.uuid) = (Some(3), Some("99999999-2222-4333-8444-555555555555".into()));
        c.nguid = Some("99999999999999999999999999999999".into());
    });
    let named = "uuid.99999999222243338444555555555555";
    let report = sources
        .wait(LIMIT, |report| report.device(named).is_some_and(|d| d.paths.len() == 2) && paths(report).len() == 3);
    assert_eq!(paths(&report), [2, 2, 2], "{report:#?}");
    assert!(report.device(named).is_some(), "{report:#?}");
    // The whole target goes. Nobody says that its disks are gone: they stay, and wait.
    target.close_listener(0).unwrap();
    target.close_listener(1).unwrap();
    let silent = |report: &Report| report.sources[0].problem.is_some();
    assert!(silent(&sources.wait(LIMIT, silent)));
    let rounds = Instant::now() + Duration::from_millis(200) * 10;
    let report = sources.wait(LIMIT, |_| Instant::now() > rounds);
    assert_eq!(paths(&report), [2, 2, 2], "{report:#?}");
    target.open_listener(0).unwrap();
    target.open_listener(1).unwrap();
    assert!(!silent(&sources.wait(LIMIT, |report| !silent(report))));
    until(&sources, &[2, 2, 2]);
    sources.close();
    assert!(stack.stop(LIMIT), "something was left behind: {:?}", stack.statistics());
    target.stop();
}

#[test]
fn a_source_may_be_less_than_a_service() {
    let target = target("nqn.2026-01.org.example:less", 2, "ram://8MiB", 1);
    let stack = stack();
    let sources = Sources::start(&stack, quick()).unwrap();
    let base = |listener: usize| format!("nvme-tcp://127.0.0.1:{}/nqn.2026-01.org.example:less", target.port(listener));
    sources.add(base(0).parse().unwrap()).unwrap();
    sources.add(format!("{}?ns=1", base(1)).parse().unwrap()).unwrap();
    sources.add("ram://2MiB".parse().unwrap()).unwrap();
    until(&sources, &[2, 1, 1]);
    let report = sources.wait(LIMIT, Report::is_settled);
    assert!(report.is_settled() && report.device("ram://2MiB").is_some(), "{report:#?}");
    // Nobody is there.
    target.stop();
    let nobody = sources.add(discovery_of_nobody()).unwrap();
    let report = sources.wait(LIMIT, |r| r.sources.iter().any(|s| s.id == nobody && s.problem.is_some()));
    assert!(report.sources.iter().any(|s| s.id == nobody && s.answered.is_none() && s.problem.is_some()));
    sources.close();
    assert!(stack.stop(LIMIT), "something was left behind: {:?}", stack.statistics());
}

fn discovery_of_nobody() -> SourceUri {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("nvme-tcp://127.0.0.1:{free}").parse().unwrap()
}

/// The medium has an EUI-64 and a UUID under either protocol.
#[test]
fn a_discovery_service_and_a_portal_of_one_medium_give_one_device_with_four_paths() {
    const IQN: &str = "iqn.2026-01.org.example:both";
    let serve = |eui64: &str, uuid: &str, iqn: &str| {
        let medium = NamespaceConfig {
            eui64: Some(eui64.into()),
            uuid: Some(uuid.into()),
            ..NamespaceConfig::new("ram://8MiB")
        };
        let subsystem = SubsystemConfig {
            iqn: Some(iqn.into()),
            ..SubsystemConfig::new("nqn.2026-01.org.example:both", vec![medium])
        };
        let (nvme, iscsi) = (ListenerConfig::new("127.0.0.1:0"), ListenerConfig::iscsi("127.0.0.1:0"));
        Target::start(TargetConfig {
            listeners: vec![nvme.clone(), nvme, iscsi.clone(), iscsi],
            subsystems: vec![subsystem],
            ..TargetConfig::default()
        })
        .expect("a target")
    };
    let target = serve("0123456789abcdef", SHARED, IQN);
    let stranger = serve("fedcba9876543210", "99999999-2222-4333-8444-555555555555", "iqn.2026-01.org.example:other");
    let stack = stack();
    let sources = Sources::start(&stack, quick()).unwrap();
    let portal = |target: &TargetHandle| format!("iscsi://127.0.0.1:{}", target.port(2)).parse::<SourceUri>().unwrap();
    sources.add(discovery(&target, 0)).unwrap();
    sources.add(portal(&target)).unwrap();
    sources.add(portal(&stranger)).unwrap();
    until(&sources, &[4, 2]);
    let report = sources.report();
    assert!(report.device("eui.0123456789abcdef").is_some_and(|device| device.name == shared()), "{report:#?}");
    let disk =
        Disk::builder().device(sources.device(&shared()).expect("it is there")).stack(&stack).open_blocking().unwrap();
    for gone in [vec![], vec![0, 1], vec![2], vec![3]] {
        gone.iter().for_each(|&listener| target.close_listener(listener).unwrap());
        if gone == [2] {
            [0, 1].iter().for_each(|&listener| target.open_listener(listener).unwrap());
        }
        (0..20).for_each(|n| write_and_read(&disk, n * 8192, n as u8 ^ gone.len() as u8));
    }
    block_on(disk.close());
    drop(disk);
    sources.close();
    assert!(stack.stop(LIMIT), "something was left behind: {:?}", stack.statistics());
    target.stop();
    stranger.stop();
}
