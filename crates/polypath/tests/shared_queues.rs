//! Controllers that grant fewer I/O queues than are opened.

#[path = "common/jobs.rs"]
mod jobs;

use jobs::{end, jobs, progress, stack, wait};
use polypath::block::Device;
use polypath::multipath::PathState;
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{GroupSpec, wait_group_live, wait_live};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const NQN: &str = "nqn.2026-01.org.example:few-queues";

fn target(listeners: usize, max_io_queues: u16) -> TargetHandle {
    Target::start(TargetConfig {
        listeners: (0..listeners).map(|_| ListenerConfig::new("127.0.0.1:0")).collect(),
        subsystems: vec![SubsystemConfig::new(NQN, vec![NamespaceConfig::new("ram://8MiB?bs=4096")])],
        max_io_queues,
        cqt_ms: 50,
        ..TargetConfig::default()
    })
    .expect("a target")
}

fn uri(target: &TargetHandle, listener: usize) -> polypath::DiskUri {
    let port = target.port(listener);
    format!("nvme-tcp://127.0.0.1:{port}/{NQN}?ns=1&keep_alive_ms=200&reconnect_delay_ms=50").parse().unwrap()
}

#[test]
fn four_queues_over_two_reactors_share_the_one_that_is_granted() {
    let (target, stack) = (target(1, 1), stack());
    let device = stack.open_device(&uri(&target, 0)).unwrap();
    assert_eq!(wait_live(&*device, Duration::from_secs(5)).unwrap().max_queues, 1);
    let told = jobs(&stack, &device, true);
    progress("four jobs over one queue", &told, 200);
    // The path is lost and comes back.
    for _ in 0..3 {
        target.reset(0).unwrap();
        progress("four jobs after a loss", &told, 50);
    }
    target.close_listener(0).unwrap();
    target.reset(0).unwrap();
    wait("a path that is down", || device.state().info().is_none());
    target.open_listener(0).unwrap();
    progress("four jobs after an outage", &told, 50);
    // Any one job may have had its answers just before each loss; that all had them four times is no loss at all.
    let lost: Vec<_> = told.iter().map(|t| t.lost.load(Ordering::SeqCst)).collect();
    println!("requests lost with the path, by job: {lost:?}");
    assert!(lost.iter().sum::<usize>() > 0, "nobody noticed the losses");
    end(&stack, &*device, &told);
    target.stop();
}

#[test]
fn queues_opened_before_it_was_known_how_few_are_granted_come_together() {
    let (target, stack) = (target(1, 1), stack());
    target.close_listener(0).unwrap();
    let device = stack.open_device(&uri(&target, 0)).unwrap();
    // Nobody has said how many there will be: each has its own.
    let told = jobs(&stack, &device, true);
    wait("pollers", || stack.statistics().iter().map(|s| s.pollers).sum::<u64>() >= 5);
    target.open_listener(0).unwrap();
    progress("four jobs over one queue", &told, 100);
    end(&stack, &*device, &told);
    target.stop();
}

#[test]
fn a_group_over_two_paths_with_one_queue_each_survives_the_loss_of_either() {
    let (target, stack) = (target(2, 1), stack());
    let group = stack.open_group(GroupSpec::new("disk", [uri(&target, 0), uri(&target, 1)])).unwrap();
    wait_group_live(&group, Duration::from_secs(5)).unwrap();
    let device: Arc<dyn Device> = group.clone();
    // Without a shared queue, two of the jobs could only wait for `no_path_timeout` and fail.
    let told = jobs(&stack, &device, false);
    progress("four jobs over two paths", &told, 200);
    for listener in [0, 1, 0] {
        target.close_listener(listener).unwrap();
        target.reset(listener).unwrap();
        progress("four jobs over the other path", &told, 100);
        target.open_listener(listener).unwrap();
        wait("both paths", || group.statistics().iter().all(|p| p.state == PathState::Usable));
        progress("four jobs over both", &told, 50);
    }
    end(&stack, &*device, &told);
    target.stop();
}

#[test]
fn a_guest_with_four_vrings_over_two_reactors_is_served_by_one_queue() {
    let (target, below, above) = (target(1, 1), stack(), stack());
    let group = below.open_group(GroupSpec::new("disk", [uri(&target, 0)])).unwrap();
    wait_group_live(&group, Duration::from_secs(5)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let mut config = ServerConfig::new("disk", &socket, group.clone(), below.hosts());
    config.num_queues = 4;
    let mut server = Server::start(config).unwrap();
    let guest = above.open_device(&format!("vhost-user-blk://{}?queues=4", socket.display()).parse().unwrap()).unwrap();
    let told = jobs(&above, &guest, false);
    progress("four vrings", &told, 200);
    target.reset(0).unwrap();
    progress("four vrings after a loss", &told, 100);
    end(&above, &*guest, &told);
    let served = server.statistics();
    assert!(served.iter().all(|q| q.requests >= 2 * 200 && q.errors == 0), "{served:?}");
    drop(guest);
    server.stop().unwrap();
    group.close();
    assert!(below.stop(Duration::from_secs(10)), "something was left behind: {:?}", below.statistics());
    target.stop();
}
