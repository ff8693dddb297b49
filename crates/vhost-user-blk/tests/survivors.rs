//! Front-ends that outlive their back-end, over the socket: what the server after it makes of their rings and records.

use crate::common::client::{
    Client, DATA, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, META, OUT, Queue, Served, serve,
};
use crate::common::guest::{Driver, GuestRam};
use crate::common::ram::RamDevice;
use polypath_block::{Armed, Cx, Limits, Poller, Turn, Waits};
use polypath_vhost_user_blk::{Owed, Server, ServerConfig};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL;

fn ram() -> Arc<RamDevice> {
    RamDevice::new(512, 1 << 10, Limits::UNLIMITED)
}

/// Waits until `what` holds, for at most 10 s.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        std::thread::yield_now();
    }
}

fn add_queue(client: &mut Client, q: usize) {
    client.queues.push(Queue {
        driver: Driver::new(&client.ram, META + q as u64 * 0x1_0000, 16, true),
        kick: EventFd::new(0).unwrap(),
        call: EventFd::new(EFD_NONBLOCK).unwrap(),
    });
}

/// A front-end without a record whose ring has one request that was given back and one that waits, and that goes on at the used index.
fn survivor(path: &Path) -> Client {
    let ram = GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]);
    let mut client = Client::negotiate(path, ALL, ram);
    add_queue(&mut client, 0);
    client.add(0, 0, OUT, 7, 512);
    client.add(0, 1, OUT, 8, 512);
    client.publish(0);
    client.queues[0].driver.used.store_u16(2, 1, Ordering::Release).unwrap();
    client.start_queue(0, 1);
    client
}

/// Whoever starts the server knows better than the socket that its predecessor was killed. And that word holds until the guest has made its
/// ring anew: what is in flight from then on is ours.
#[test]
fn the_word_that_a_predecessor_was_killed_counts_until_the_ring_is_new() {
    let mut first: Served = serve(ram(), |_| ());
    let path = first.server.socket_path().to_owned();
    first.server.stop().unwrap();
    let hosts = first.pool.as_ref().unwrap().hosts();
    let server =
        Server::start(ServerConfig { unclean: true, ..ServerConfig::new("next", &path, ram(), hosts) }).unwrap();
    let counters = || server.statistics()[0];
    let refused = survivor(&path);
    eventually("the ring is refused", || counters().ring_errors == 1);
    drop(refused);
    eventually("the survivor is gone", || !server.connected());
    let mut client = Client::connect(&path, ALL, 1, 16);
    assert_eq!(client.run(0, OUT, 9, &mut [3; 512]), 0);
    drop(client);
    eventually("its guest is gone", || !server.connected());
    let before = counters().requests;
    let _goes_on = survivor(&path);
    eventually("it goes on", || counters().requests == before + 1);
    assert_eq!(counters().ring_errors, 1);
}

/// A front-end may keep records for fewer rings than it has.
#[test]
fn a_ring_beyond_the_records_runs_without() {
    let served = serve(ram(), |c| c.num_queues = 2);
    let ram = GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]);
    let mut client = Client::negotiate(served.server.socket_path(), ALL, ram);
    client.keep_record();
    for q in 0..2 {
        add_queue(&mut client, q);
        client.start_queue(q, 0);
        assert_eq!(client.run(q, OUT, 0, &mut [1; 512]), 0);
    }
}

/// A front-end that has had no record before asks for one after the kill (its new back-end offers what the old one did not), and its ring has
/// run: the record is empty because nobody wrote one, not because nothing was in flight. Such a ring is as one without a record.
#[test]
fn a_record_made_after_the_kill_says_nothing_of_what_was_in_flight() {
    let mut first: Served = serve(ram(), |_| ());
    let path = first.server.socket_path().to_owned();
    first.server.stop().unwrap();
    let hosts = first.pool.as_ref().unwrap().hosts();
    let server =
        Server::start(ServerConfig { unclean: true, ..ServerConfig::new("next", &path, ram(), hosts) }).unwrap();
    let counters = || server.statistics()[0];
    let ram = GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]);
    let mut client = Client::negotiate(&path, ALL, ram);
    client.keep_record();
    add_queue(&mut client, 0);
    // Two were taken by the one that was killed. The second was given back first: the used index has moved past the first.
    client.add(0, 0, OUT, 7, 512);
    client.add(0, 1, OUT, 8, 512);
    client.publish(0);
    let used = &client.queues[0].driver.used;
    used.store_u32(4, 3, Ordering::Release).unwrap();
    used.store_u16(2, 1, Ordering::Release).unwrap();
    client.start_queue(0, 1);
    eventually("the ring is refused, or its second request carried out twice", || {
        counters().ring_errors == 1 || counters().requests > 0
    });
    assert_eq!((counters().ring_errors, counters().requests), (1, 0), "which of them were done is not known");
}

/// A daemon with four rings was killed. The next one is configured with one ring by mistake, the guest does not get in, and the operator takes
/// it back: the one after that must know of all four.
#[test]
fn a_server_with_fewer_rings_forgets_no_orphan() {
    let mut served = serve(ram(), |c| c.orphans = vec![0, 3]);
    assert_eq!(served.server.orphans(), [0, 3], "nobody has shown either of them");
    served.server.stop().unwrap();
    assert_eq!(served.server.orphans(), [0, 3], "nobody has shown either of them");
}

/// The guest's front-end has gone for a moment, its queue with it. The device loses something of the guest's, tells another user, and then the
/// server ends in order: who serves the guest next asks for what it is owed, and there is nobody else who knows.
#[test]
fn a_loss_while_no_front_end_is_there_is_owed_when_the_server_ends() {
    let device = RamDevice::new(512, 1 << 10, Limits { write_cache: true, ..Limits::UNLIMITED });
    let owed = Owed::default();
    let mut served = serve(device.clone(), |c| c.owed = owed.clone());
    let mut client = Client::connect(served.server.socket_path(), ALL, 1, 16);
    assert_eq!(client.run(0, OUT, 9, &mut [3; 512]), 0);
    drop(client);
    eventually("the guest is gone", || !served.server.connected());
    eventually("its queue is closed", || device.state.lock().unwrap().open_queues == 0);
    device.change(|s| s.losses += 1);
    served.server.stop().unwrap();
    assert!(owed.is_owed(), "the write is lost, and its guest was not told");
}

/// Another poller on the reactor of the ring, which takes its time in each turn.
struct Slow(Arc<AtomicBool>);

impl Poller for Slow {
    fn poll(&mut self, _cx: &mut Cx<'_>) -> Turn {
        if self.0.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
        }
        Turn::Idle
    }
    fn arm(&mut self, _cx: &mut Cx<'_>, _waits: &mut Waits) -> Armed {
        if self.0.load(Ordering::Relaxed) { Armed::Busy } else { Armed::Sleep }
    }
    fn name(&self) -> &str {
        "slow"
    }
}

/// A guest is connected, and was not told of a loss when its server is stopped. What its queue owes is known once the server has stopped: the
/// daemon writes it down then. (The reactor says that it has let go of memory before the rings behind that have closed their queues.)
#[test]
fn what_a_queue_owes_is_known_when_the_server_has_stopped() {
    let device = RamDevice::new(512, 1 << 10, Limits { write_cache: true, ..Limits::UNLIMITED });
    let (owed, slow) = (Owed::default(), Arc::new(AtomicBool::new(false)));
    let mut served = serve(device.clone(), |c| c.owed = owed.clone());
    let host = served.pool.as_ref().unwrap().hosts()[0].clone();
    let add = || {
        let slow = slow.clone();
        host.spawn(Box::new(move |_| Box::new(Slow(slow))));
    };
    add();
    let mut client = Client::connect(served.server.socket_path(), ALL, 1, 16);
    assert_eq!(client.run(0, OUT, 9, &mut [3; 512]), 0);
    add();
    device.change(|s| s.losses += 1);
    slow.store(true, Ordering::Relaxed);
    served.server.stop().unwrap();
    let known = owed.is_owed();
    slow.store(false, Ordering::Relaxed);
    assert!(known, "the mark of the socket is written now");
}

/// A record that is refused, and told to be, changes nothing: the front-end may go on, and so do its rings.
#[test]
fn a_record_that_is_refused_leaves_the_rings_running() {
    let served = serve(ram(), |_| ());
    let ram = GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]);
    let mut client = Client::negotiate(served.server.socket_path(), ALL, ram);
    client.set_more_features(VhostUserProtocolFeatures::INFLIGHT_SHMFD);
    add_queue(&mut client, 0);
    client.start_queue(0, 0);
    assert_eq!(client.run(0, OUT, 0, &mut [1; 512]), 0);
    let no_memory = EventFd::new(0).unwrap();
    let record = VhostUserInflight::new(0x1000, 0, 1, 16);
    assert!(client.fe.set_inflight_fd(&record, no_memory.as_raw_fd()).is_err(), "no memory");
    assert!(client.fe.get_features().is_ok(), "the connection goes on");
    client.add(0, 0, OUT, 1, 512);
    client.publish(0);
    eventually("its next request is carried out", || served.server.statistics()[0].requests == 2);
}
