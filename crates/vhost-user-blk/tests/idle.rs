//! What is not used costs nothing: a quiet disk no turns, a gone guest no memory.

mod common;

use common::client::{Client, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, FLUSH, readable, serve};
use common::ram::RamDevice;
use polypath_block::Limits;
use std::time::{Duration, Instant};

/// Mappings of guest memory in this process, which is guest and server in one.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|l| l.contains("memfd:polypath")).count()
}

#[test]
fn quiet_disks_take_no_turns_and_gone_guests_no_memory() {
    let served = serve(RamDevice::new(512, 64, Limits::UNLIMITED), |c| c.num_queues = 4);
    let path = served.server.socket_path().to_owned();
    let before = mappings();
    let mut client = Client::connect(&path, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL, 4, 64);
    for q in 0..4 {
        assert_eq!(client.run(q, FLUSH, 0, &mut []), 0);
    }
    // Let it come to rest, then watch: nothing rings, so that this is simply the passing of a second. A call may come after the
    // used ring has told of the last completion: that one is taken first.
    let handle = served.pool.as_ref().unwrap().handles()[0].clone();
    while readable(&client.queues[0].call, 1) {
        client.queues[0].call.read().unwrap();
    }
    let turns = handle.statistics().turns;
    assert!(!readable(&client.queues[0].call, 1));
    let turned = handle.statistics().turns - turns;
    assert!(turned < 20, "{turned} turns in a second without work");
    assert!(mappings() > before);
    // REM_MEM_REG is acknowledged when the memory is unmapped, sleeping reactors or not.
    let (with, region) = (mappings(), client.region(1));
    vhost::vhost_user::VhostUserFrontend::remove_mem_region(&mut client.fe, &region).unwrap();
    assert_eq!(mappings(), with - 1);
    // The guest's own mappings are known to the reactor as well, since it is in the same process, and must go before the server has the
    // reactor look for the last time: a guest of another process has none here.
    client.ram.regions.clear();
    drop(client);
    let until = Instant::now() + Duration::from_secs(30);
    while mappings() != before {
        assert!(Instant::now() < until, "a gone guest's memory stays mapped: {} of {before}", mappings());
        std::thread::sleep(Duration::from_millis(5));
    }
}
