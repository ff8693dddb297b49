//! The server against the independent `vhost` crate's front-end.

use crate::common::client;
use crate::common::client::{
    Client, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, FLUSH, IN, OUT, Queue, Served, readable, serve,
};
use crate::common::guest::{Driver, GuestRam};
use crate::common::ram::{RamDevice, Rng};
use polypath_block::Limits;
use polypath_vhost_user_blk::{Server, ServerConfig, ServerError, UnixSocketError};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL;

fn ram() -> Arc<RamDevice> {
    RamDevice::new(512, 1 << 14, Limits::UNLIMITED)
}

fn path(served: &Served) -> std::path::PathBuf {
    served.server.socket_path().to_owned()
}

/// Waits until `what` holds, for at most 10 s.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn several_queues_keep_verified_data_and_lose_no_notification() {
    for features in [ALL, F_VERSION_1 | F_PROTOCOL, F_VERSION_1 | F_EVENT_IDX, F_VERSION_1] {
        let device = ram();
        device.change(|s| s.delay = 3);
        let served = serve(device.clone(), |c| c.num_queues = 4);
        let queues = if features & F_PROTOCOL != 0 { 4 } else { 1 };
        let mut client = Client::connect(&path(&served), features, queues, 32);
        let mut rng = Rng(features);
        for round in 0..300u64 {
            for q in 0..queues {
                let n = rng.below(8) + 1;
                for place in 0..n {
                    let bytes = [round as u8 ^ (place as u8) << 3 ^ q as u8; 1024];
                    client.ram.write(Client::data(q, place), &bytes);
                    client.add(q, place, OUT, (q as u64 * 8 + place) * 2, 1024);
                }
                client.publish(q);
                (0..n).for_each(|_| _ = client.wait(q));
                for place in 0..n {
                    client.ram.write(Client::data(q, place), &[0; 1024]);
                    client.add(q, place, IN, (q as u64 * 8 + place) * 2, 1024);
                }
                client.publish(q);
                for _ in 0..n {
                    assert_eq!(client.wait(q).1, 1025);
                }
                for place in 0..n {
                    let want = [round as u8 ^ (place as u8) << 3 ^ q as u8; 1024];
                    assert!(client.status(q, place) == 0 && client.ram.read(Client::data(q, place), 1024) == want);
                }
            }
        }
        let statistics = served.server.statistics();
        assert_eq!(statistics.len(), 4);
        assert!(statistics[0].requests > 300 && statistics[0].bad_requests == 0, "{statistics:?}");
    }
}

#[test]
fn one_request_at_a_time_wakes_both_sides_every_time() {
    let served = serve(ram(), |_| ());
    let mut client = Client::connect(&path(&served), ALL, 1, 16);
    for _ in 0..5000 {
        assert_eq!(client.run(0, FLUSH, 0, &mut []), 0);
    }
    let s = served.server.statistics()[0];
    assert_eq!((s.requests, s.completions), (5000, 5000));
}

#[test]
fn the_configuration_space_is_served_and_writeback_can_be_turned_off() {
    let device = RamDevice::new(512, 4096, Limits { write_cache: true, fua: false, ..Limits::UNLIMITED });
    device.change(|s| s.record = true);
    let served = serve(device.clone(), |c| c.num_queues = 3);
    const FLUSH_AND_WCE: u64 = 1 << 9 | 1 << 11;
    let mut client = Client::connect(&path(&served), ALL | FLUSH_AND_WCE, 1, 16);
    let config = client.config();
    assert_eq!(config[..8], 4096u64.to_le_bytes());
    assert_eq!((config[12], config[32], config[34]), (126, 1, 3));
    assert_eq!(client.fe.get_queue_num().unwrap(), 3);
    assert_eq!(client.fe.get_max_mem_slots().unwrap(), 256);
    client.run(0, OUT, 0, &mut [1; 512]);
    assert_eq!(device.log().len(), 1, "the cache is the guest's to flush");
    client.fe.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    assert_eq!(client.config()[32], 0);
    client.run(0, OUT, 0, &mut [1; 512]);
    assert_eq!(device.log().len(), 3, "write and flush");
    assert!(
        client.fe.set_config(0, VhostUserConfigFlags::WRITABLE, &[9]).is_err(),
        "capacity is not the guest's to set"
    );
    assert_eq!(client.run(0, FLUSH, 0, &mut []), 0, "and the connection goes on");
}

#[test]
fn without_flush_every_write_is_durable() {
    let device = RamDevice::new(512, 64, Limits { write_cache: true, ..Limits::UNLIMITED });
    device.change(|s| s.record = true);
    let served = serve(device.clone(), |_| ());
    let mut client = Client::connect(&path(&served), ALL, 1, 16);
    client.run(0, OUT, 0, &mut [1; 512]);
    assert_eq!(device.log(), [(polypath_block::Op::Write, polypath_block::Flags::FUA, 0, 1)]);
}

#[test]
fn front_ends_come_and_go() {
    let device = ram();
    let served = serve(device.clone(), |_| ());
    for round in 0..30u8 {
        let mut client = Client::connect(&path(&served), ALL, 1, 64);
        let mut got = [0; 512];
        assert_eq!(client.run(0, IN, 5, &mut got), 0);
        assert_eq!(got, [round; 512], "what the last front-end left");
        assert_eq!(client.run(0, OUT, 5, &mut [round + 1; 512]), 0);
        if round % 2 == 0 {
            assert_eq!(client.stop_queue(0), 2);
        }
    }
    eventually("queues close with their front-end", || device.state.lock().unwrap().open_queues == 0);
    eventually("nobody is connected", || !served.server.connected());
    assert_eq!(served.server.statistics()[0].requests, 60);
}

#[test]
fn the_next_front_end_waits_until_the_last_one_is_quiet() {
    let device = ram();
    let served = serve(device.clone(), |_| ());
    let mut client = Client::connect(&path(&served), ALL, 1, 16);
    device.change(|s| s.hold = true);
    client.add(0, 0, OUT, 0, 512);
    client.publish(0);
    eventually("the write is taken", || served.server.statistics()[0].requests == 1);
    drop(client);
    let mut stream = UnixStream::connect(path(&served)).unwrap();
    stream.write_all(&message(1, 1, &[])).unwrap();
    assert!(!readable(&stream, 1), "no answer while an old write may land");
    device.change(|s| s.hold = false);
    served.pool.as_ref().unwrap().hosts()[0].wake();
    assert!(readable(&stream, 10), "then it is served");
}

#[test]
fn rings_stop_and_go_on_where_they_were() {
    let served = serve(ram(), |_| ());
    let mut client = Client::connect(&path(&served), ALL, 1, 16);
    for round in 0..50 {
        assert_eq!(client.run(0, FLUSH, 0, &mut []), 0);
        let base = client.stop_queue(0);
        assert_eq!(base, round + 1);
        client.start_queue(0, base);
    }
    client.fe.set_vring_enable(0, false).unwrap();
    client.add(0, 0, FLUSH, 0, 0);
    client.publish(0);
    assert_eq!(served.server.statistics()[0].requests, 50, "disabled rings are left alone");
    client.fe.set_vring_enable(0, true).unwrap();
    client.wait(0);
    client.fe.reset_device().unwrap();
    assert!(!served.server.statistics()[0].running);
}

#[test]
fn memory_comes_and_goes_under_a_running_ring() {
    let served = serve(ram(), |_| ());
    let meta = GuestRam::new(&[(client::META, 0x10_0000)]);
    let mut client = Client::negotiate(&path(&served), ALL, meta);
    client.queues.push(Queue {
        driver: Driver::new(&client.ram, client::META, 16, true),
        kick: EventFd::new(0).unwrap(),
        call: EventFd::new(EFD_NONBLOCK).unwrap(),
    });
    client.start_queue(0, 0);
    client.ram.regions.extend(GuestRam::new(&[(client::DATA, 0x40_0000)]).regions);
    for round in 0..20 {
        client.add(0, 0, IN, 0, 512);
        client.publish(0);
        client.wait(0);
        assert_eq!(client.status(0, 0), 1, "round {round}: data is nowhere yet");
        let region = client.region(1);
        client.fe.add_mem_region(&region).unwrap();
        assert_eq!(client.run(0, IN, 0, &mut [0; 512]), 0, "round {round}");
        assert!(client.fe.add_mem_region(&region).is_err(), "overlaps itself");
        client.fe.remove_mem_region(&region).unwrap();
        assert!(client.fe.remove_mem_region(&region).is_err(), "is not there any more");
    }
    // The ring's own memory goes: the ring stops; it comes back with the whole table: the ring goes on.
    let (first, second) = (client.region(0), client.region(1));
    client.fe.remove_mem_region(&first).unwrap();
    assert!(!served.server.statistics()[0].running);
    client.fe.set_mem_table(&[first, second]).unwrap();
    assert_eq!(client.run(0, IN, 0, &mut [0; 512]), 0);
}

#[test]
fn growth_is_announced() {
    let device = ram();
    let served = serve(device.clone(), |_| ());
    let mut client = Client::connect(&path(&served), ALL, 1, 16);
    let (ours, theirs) = UnixStream::pair().unwrap();
    client.fe.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    assert_eq!(client.run(0, IN, 1 << 14, &mut [0; 512]), 1);
    device.change(|s| {
        s.info.geometry.blocks = 1 << 15;
        s.bytes.resize(512 << 15, 0);
    });
    assert!(readable(&ours, 10), "a message on the back-end's channel");
    let mut got = [0; 12];
    (&ours).read_exact(&mut got).unwrap();
    assert_eq!(got, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "CONFIG_CHANGE_MSG, version 1, no payload");
    assert_eq!(client.config()[..8], (1u64 << 15).to_le_bytes());
    assert_eq!(client.run(0, IN, 1 << 14, &mut [0; 512]), 0);
}

#[test]
fn refusals_are_acknowledged_and_the_connection_goes_on() {
    let served = serve(ram(), |c| c.queue_size = 64);
    let mut client = Client::connect(&path(&served), ALL, 1, 16);
    assert!(client.fe.set_vring_num(1, 16).is_err(), "no such queue");
    assert!(client.fe.set_features(1 << 45).is_err(), "feature that was not offered");
    client.fe.set_features(ALL).unwrap();
    client.stop_queue(0);
    for num in [0, 3, 128] {
        assert!(client.fe.set_vring_num(0, num).is_err(), "size {num}");
    }
    client.start_queue(0, 0);
    assert!(client.fe.set_vring_enable(0, true).is_ok());
    let mut region = client.region(1);
    region.guest_phys_addr = u64::MAX - 0x1000;
    assert!(client.fe.add_mem_region(&region).is_err(), "wraps");
    region.guest_phys_addr = 0x9_0000_0000;
    region.memory_size = 1 << 45;
    assert!(client.fe.add_mem_region(&region).is_err(), "beyond its file");
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let words = [request, flags, payload.len() as u32];
    words.iter().flat_map(|w| w.to_ne_bytes()).chain(payload.iter().copied()).collect()
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let served = serve(ram(), |_| ());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("random octets", (0..64).map(|i| (i * 37 + 11) as u8).collect()),
        ("wrong version", message(1, 2, &[])),
        ("a reply", message(1, 1 | 4, &[])),
        ("huge payload", [1u32, 1, 1 << 30].iter().flat_map(|w| w.to_ne_bytes()).collect()),
        ("unknown request", message(99, 1, &[])),
        ("request that was not offered", message(31, 1, &[0; 24])),
        ("payload that is too long", message(3, 1, &[0; 8])),
        ("payload that is too short", message(2, 1, &[0; 4])),
        ("memory table without descriptors", message(5, 1, &[1; 40])),
        ("kick without descriptor", message(12, 1, &0u64.to_ne_bytes())),
        ("vring that is not there", message(8, 1, &[200, 0, 0, 0, 16, 0, 0, 0])),
        ("features that were not offered", message(2, 1, &u64::MAX.to_ne_bytes())),
        (
            "vring without memory",
            [
                message(8, 1, &[0, 0, 0, 0, 16, 0, 0, 0]),
                message(9, 1, &[0; 40]),
                message(12, 1, &0x100u64.to_ne_bytes()),
            ]
            .concat(),
        ),
        ("configuration beyond its end", message(24, 1, &[255; 16])),
    ];
    for (what, bytes) in cases {
        let mut stream = UnixStream::connect(path(&served)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{what}");
    }
    let mut stream = UnixStream::connect(path(&served)).unwrap();
    stream.write_all(&message(1, 1, &[])[..7]).unwrap();
    drop(stream);
    let mut client = Client::connect(&path(&served), ALL, 1, 16);
    assert_eq!(client.run(0, FLUSH, 0, &mut []), 0, "the socket serves the next one");
}

#[test]
fn front_ends_wait_for_a_device_that_is_not_there_yet() {
    let device = ram();
    device.change(|s| s.live = false);
    let served = serve(device.clone(), |_| ());
    let mut stream = UnixStream::connect(path(&served)).unwrap();
    stream.write_all(&message(1, 1, &[])).unwrap();
    assert!(!readable(&stream, 1));
    device.change(|s| s.live = true);
    assert!(readable(&stream, 10));
}

#[test]
fn what_a_killed_back_end_may_have_had_in_flight_is_not_run_again() {
    let device = ram();
    let mut served = serve(device.clone(), |_| ());
    let path = path(&served);
    let config = || ServerConfig::new("end_fence", &path, device.clone(), served.pool.as_ref().unwrap().hosts());
    served.server.stop().unwrap();
    for (stale, orphans) in [(true, vec![]), (false, vec![0]), (false, vec![])] {
        let killed = stale || !orphans.is_empty();
        if stale {
            // What a process that was killed leaves behind. One that could not be served leaves it behind, too.
            drop(UnixListener::bind(&path).unwrap());
            assert!(Server::bind(config()).unwrap().replaced());
        }
        let mut server = Server::start(ServerConfig { orphans, ..config() }).unwrap();
        assert_eq!(server.orphans().len(), usize::from(killed));
        // The survivor's ring: one is done, one waits, and the front-end goes on at the used index.
        let ram = GuestRam::new(&[(client::META, 0x10_0000), (client::DATA, 0x40_0000)]);
        let mut client = Client::negotiate(&path, ALL, ram);
        client.queues.push(Queue {
            driver: Driver::new(&client.ram, client::META, 16, true),
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
        });
        client.add(0, 0, OUT, 7, 512);
        client.add(0, 1, OUT, 8, 512);
        client.publish(0);
        client.queues[0].driver.used.store_u16(2, 1, Ordering::Release).unwrap();
        client.start_queue(0, 1);
        let counters = || server.statistics()[0];
        if killed {
            eventually("the ring is refused", || counters().ring_errors == 1);
            // Stopping and starting it is no way around.
            let base = client.stop_queue(0);
            assert_eq!(base, 1);
            client.start_queue(0, base);
            eventually("it is refused again", || counters().ring_errors == 2);
            assert_eq!((counters().requests, server.orphans()), (0, vec![0]), "to be told to the next one");
        } else {
            eventually("after an orderly end it goes on", || counters().requests == 1);
        }
        drop(client);
        eventually("the survivor is gone", || !server.connected());
        // A guest that was reset begins at nought.
        let mut client = Client::connect(&path, ALL, 1, 16);
        assert_eq!(client.run(0, OUT, 9, &mut [3; 512]), 0);
        assert!(server.orphans().is_empty());
        drop(client);
        server.stop().unwrap();
    }
    drop(Server::bind(config()).unwrap());
    assert!(!path.exists(), "nobody was served there");
}

/// The same when the used index that the survivor goes on at happens to be 0: it has gone round. Of three requests the second was given back,
/// and its head may be anything by now; the first is in flight.
#[test]
fn a_used_index_that_has_gone_round_to_nought_is_not_that_of_a_new_ring() {
    let device = ram();
    device.change(|s| s.record = true);
    let mut served = serve(device.clone(), |_| ());
    let path = path(&served);
    served.server.stop().unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let config = ServerConfig::new("killed", &path, device.clone(), served.pool.as_ref().unwrap().hosts());
    let server = Server::start(config).unwrap();
    let ram = GuestRam::new(&[(client::META, 0x10_0000), (client::DATA, 0x40_0000)]);
    let mut client = Client::negotiate(&path, ALL, ram);
    let mut driver = Driver::new(&client.ram, client::META, 16, true);
    (driver.avail_idx, driver.used_idx) = (0xffff, 0xffff);
    client.queues.push(Queue { driver, kick: EventFd::new(0).unwrap(), call: EventFd::new(EFD_NONBLOCK).unwrap() });
    let heads = [7, 8, 9].map(|sector| client.add(0, sector - 7, OUT, sector, 512));
    client.publish(0);
    let used = client.queues[0].driver.used.clone();
    used.store_u32(4 + 8 * 15, heads[1].into(), Ordering::Relaxed).unwrap();
    used.store_u32(8 + 8 * 15, 1, Ordering::Relaxed).unwrap();
    used.store_u16(2, 0, Ordering::Release).unwrap();
    client.start_queue(0, 0);
    let known = || (server.statistics()[0].ring_errors, server.statistics()[0].completions);
    eventually("it is refused, or goes on", || known().0 + known().1 > 0);
    let sectors: Vec<u64> = device.log().iter().map(|(_, _, lba, _)| *lba).collect();
    assert_eq!((known().0, sectors), (1, vec![]), "the second is carried out again, the first never");
}

/// The same of a packed ring. Its front-end knows nothing of where it stands: it says what was so when the ring was set up, which is what it
/// says of a new one.
#[test]
fn what_a_killed_back_end_may_have_had_in_flight_on_a_packed_ring_is_not_run_again() {
    const F_PACKED: u64 = 1 << 34;
    let device = ram();
    let mut served = serve(device.clone(), |_| ());
    let path = path(&served);
    served.server.stop().unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let config = ServerConfig::new("killed", &path, device.clone(), served.pool.as_ref().unwrap().hosts());
    let server = Server::start(config).unwrap();
    let raw = UnixStream::connect(&path).unwrap();
    let mut fe = vhost::vhost_user::Frontend::from_stream(raw.try_clone().unwrap(), 16);
    fe.set_owner().unwrap();
    assert_eq!((ALL | F_PACKED) & !fe.get_features().unwrap(), 0);
    fe.set_features(ALL | F_PACKED).unwrap();
    let protocol = vhost::vhost_user::message::VhostUserProtocolFeatures::MQ
        | vhost::vhost_user::message::VhostUserProtocolFeatures::REPLY_ACK;
    fe.get_protocol_features().unwrap();
    fe.set_protocol_features(protocol).unwrap();
    fe.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    let ram = GuestRam::new(&[(client::META, 0x10_0000), (client::DATA, 0x40_0000)]);
    let mut client = Client { fe, ram, queues: Vec::new(), features: ALL | F_PACKED };
    client.fe.set_mem_table(&[client.region(0), client.region(1)]).unwrap();
    client.queues.push(Queue {
        driver: Driver::packed(&client.ram, client::META, 16, true),
        kick: EventFd::new(0).unwrap(),
        call: EventFd::new(EFD_NONBLOCK).unwrap(),
    });
    // The first was given back, the second was in flight.
    let first = client.add(0, 0, OUT, 7, 512);
    client.publish(0);
    let desc = client.queues[0].driver.desc.clone();
    desc.store_u16(12, first, Ordering::Relaxed).unwrap();
    desc.store_u16(14, 1 << 7 | 1 << 15, Ordering::Release).unwrap();
    assert!(client.queues[0].driver.pop().is_some());
    client.add(0, 1, OUT, 8, 512);
    client.publish(0);
    let Queue { driver, kick, call } = &client.queues[0];
    client.fe.set_vring_num(0, driver.size).unwrap();
    // The crate's own function has no room for it.
    (&raw).write_all(&message(10, 1, &[0u32, 0x8000_8000].map(u32::to_ne_bytes).concat())).unwrap();
    let config = vhost::VringConfigData {
        queue_max_size: 1024,
        queue_size: driver.size,
        flags: 0,
        desc_table_addr: client.ram.user_addr(driver.desc_gpa),
        used_ring_addr: client.ram.user_addr(driver.used_gpa),
        avail_ring_addr: client.ram.user_addr(driver.avail_gpa),
        log_addr: None,
    };
    client.fe.set_vring_addr(0, &config).unwrap();
    client.fe.set_vring_call(0, call).unwrap();
    client.fe.set_vring_kick(0, kick).unwrap();
    client.fe.set_vring_enable(0, true).unwrap();
    eventually("the ring is refused, and somebody is told", || server.statistics()[0].ring_errors == 1);
}

#[test]
fn the_socket_file_is_ours_from_first_to_last() {
    let mut served = serve(ram(), |c| c.access.mode = 0o640);
    let path = path(&served);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let config = || ServerConfig::new("two", &path, ram(), served.pool.as_ref().unwrap().hosts());
    let occupied = Server::start(config()).unwrap_err();
    assert!(matches!(occupied, ServerError::Socket(UnixSocketError::Occupied { .. })), "{occupied}");
    let again = config();
    let client = Client::connect(&path, ALL, 1, 16);
    served.server.stop().unwrap();
    assert!(!path.exists(), "removed at stop, front-end or not");
    drop(client);
    // A socket that nobody answers on is replaced, a file is not.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut server = Server::start(again.clone()).unwrap();
    server.stop().unwrap();
    std::fs::write(&path, "precious").unwrap();
    let occupied = Server::start(again).unwrap_err();
    assert!(matches!(occupied, ServerError::Socket(UnixSocketError::Occupied { .. })), "{occupied}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_stop_that_cannot_drain_says_so_and_the_rest_follows() {
    let device = ram();
    let mut served = serve(device.clone(), |c| (c.drain_timeout, c.num_queues) = (Duration::from_millis(200), 2));
    // The other ring is quiet, and not to be counted.
    let mut client = Client::connect(&path(&served), ALL, 2, 16);
    device.change(|s| s.hold = true);
    client.add(0, 0, OUT, 0, 512);
    client.publish(0);
    eventually("the write is taken", || served.server.statistics()[0].requests == 1);
    let stopped = served.server.stop();
    assert!(matches!(stopped, Err(ServerError::NotDrained { vrings: 1, .. })), "{stopped:?}");
    device.change(|s| s.hold = false);
    served.pool.as_ref().unwrap().hosts()[0].wake();
    eventually("the queue closes once it is quiet", || device.state.lock().unwrap().open_queues == 0);
}

#[test]
fn settings_are_checked() {
    let served = serve(ram(), |_| ());
    let base = ServerConfig::new("x", served.dir.path().join("x.sock"), ram(), served.pool.as_ref().unwrap().hosts());
    type Change = fn(&mut ServerConfig);
    let bad: [(&str, Change); 5] = [
        ("hosts", |c| c.hosts.clear()),
        ("num_queues", |c| c.num_queues = 0),
        ("queue_size", |c| c.queue_size = 100),
        ("seg_max", |c| c.seg_max = 0),
        ("serial", |c| c.serial = "x".repeat(21)),
    ];
    for (what, change) in bad {
        let mut config = base.clone();
        change(&mut config);
        let error = Server::start(config).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}
