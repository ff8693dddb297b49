//! The front-end on our own back-end: the promises of a queue, and memory and queues that come and go.

use polypath_block::contract;
use polypath_block::{Device, DiskUri, QueueConfig};
use polypath_local::testing::RealRig;
use polypath_reactor::{IdlePolicy, Pool, PoolConfig};
use polypath_vhost_user_blk::{Server, ServerConfig};
use polypath_vhost_user_client::{ClientConfig, VhostUserDisk};
use std::sync::Arc;

struct Served {
    disk: Arc<VhostUserDisk>,
    server: Server,
    _pool: Pool,
    _dir: tempfile::TempDir,
}

fn serve(medium: &str, options: &str) -> Served {
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.sock");
    let medium = polypath_local::open(&medium.parse::<DiskUri>().unwrap()).unwrap();
    let mut config = ServerConfig::new("disk", &path, medium, pool.hosts());
    config.num_queues = 3;
    let server = Server::start(config).unwrap();
    let uri = format!("vhost-user-blk://{}?{options}", path.display());
    let disk = VhostUserDisk::connect(&ClientConfig::from_uri(&uri.parse().unwrap()).unwrap()).unwrap();
    Served { disk, server, _pool: pool, _dir: dir }
}

#[test]
fn it_keeps_the_promises_of_a_queue() {
    for (medium, options) in [
        ("ram://8MiB", "queue_size=128"),
        ("ram://8MiB?bs=4096", "queue_size=8"),
        ("ram://8MiB", "queue_size=64&queues=3"),
        ("ram://8MiB?readonly=on", "readonly=on"),
    ] {
        let mut served = serve(medium, options);
        contract::check(&mut RealRig::new(served.disk.clone(), true));
        contract::check(&mut RealRig::new(served.disk.clone(), true).misaligned());
        let statistics = served.server.statistics();
        assert!(statistics.iter().all(|q| q.bad_requests == 0 && q.ring_errors == 0), "{options}: {statistics:?}");
        drop(served.disk);
        served.server.stop().unwrap();
    }
}

/// More often than there are queues, from several threads at a time, with memory that goes with each of them.
#[test]
fn queues_come_and_go_on_all_threads() {
    let served = serve("ram://8MiB", "queues=3&queue_size=64");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..8 {
                    contract::check(&mut RealRig::new(served.disk.clone(), false));
                }
            });
        }
    });
    let all: Vec<_> = (0..3).map(|_| served.disk.open_queue(QueueConfig { depth: 1 }).unwrap()).collect();
    assert!(served.disk.open_queue(QueueConfig { depth: 1 }).is_err());
    drop(all);
    let statistics = served.server.statistics();
    assert!(statistics.iter().all(|q| q.bad_requests == 0 && q.ring_errors == 0), "{statistics:?}");
}
