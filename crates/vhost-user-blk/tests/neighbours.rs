//! Two disks on one reactor: what the front-end of one does to itself costs the other one nothing.
//!
//! The neighbour's longest request is measured with a hostile front-end beside it and without, in turns. Machines stall by themselves, so that
//! the best of a few turns counts: a front-end that can stop the reactor stops it in each of them.

use crate::common::client::{
    Client, DATA, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, IN, META, Queue, serve_on,
};
use crate::common::guest::{Driver, GuestRam, NEXT, Piece, Ram, header};
use crate::common::ram::RamDevice;
use polypath_block::Limits;
use polypath_memory::Region;
use polypath_reactor::{IdlePolicy, Pool, PoolConfig};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL;
const TURN: Duration = Duration::from_millis(400);
/// As much longer a request may take beside a hostile front-end than without one.
const ALLOWANCE: Duration = Duration::from_millis(50);
const TURNS: usize = 5;

type Attack = fn(&Path, &AtomicBool);

#[test]
fn a_hostile_front_end_costs_its_neighbour_nothing() {
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::Sleep }).unwrap();
    let disk = || RamDevice::new(512, 4096, Limits::UNLIMITED);
    let (neighbour, hostile) = (serve_on(&pool, disk(), |_| ()), serve_on(&pool, disk(), |c| c.num_queues = 2));
    let path = hostile.server.socket_path().to_owned();
    let mut client = Client::connect(neighbour.server.socket_path(), ALL, 1, 64);
    let attacks: [(&str, Attack); 5] = [
        ("a call that would block", a_call_that_would_block),
        ("memory that is cut away", memory_that_is_cut_away),
        ("descriptors that loop", descriptors_that_loop),
        ("a flood of messages", a_flood_of_messages),
        ("a record of requests in flight that is overwritten", a_record_that_is_overwritten),
    ];
    for (what, attack) in attacks {
        let (mut without, mut with) = (Duration::ZERO, Duration::MAX);
        for _ in 0..TURNS {
            without = without.max(longest_request(&mut client));
            let stop = AtomicBool::new(false);
            let longest = std::thread::scope(|scope| {
                let attacker = scope.spawn(|| attack(&path, &stop));
                let longest = longest_request(&mut client);
                stop.store(true, Ordering::Relaxed);
                attacker.join().expect("the attack itself does not fail");
                longest
            });
            with = with.min(longest);
            if with <= without + ALLOWANCE {
                break;
            }
        }
        println!("{what}: longest request {with:?} with it, {without:?} without");
        assert!(with <= without + ALLOWANCE, "{what}: {with:?} with it, {without:?} without");
    }
    // And whoever comes after it is served.
    let mut next = Client::connect(&path, ALL, 1, 64);
    assert_eq!(next.run(0, IN, 0, &mut [0; 512]), 0);
}

/// As above, of one attack that needs a log.
#[test]
fn a_front_end_that_logs_much_costs_its_neighbour_nothing() {
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::Sleep }).unwrap();
    let disk = || RamDevice::new(512, 4096, Limits::UNLIMITED);
    let (neighbour, hostile) = (serve_on(&pool, disk(), |_| ()), serve_on(&pool, disk(), |c| c.num_queues = 2));
    let path = hostile.server.socket_path().to_owned();
    let mut client = Client::connect(neighbour.server.socket_path(), ALL, 1, 64);
    let (mut without, mut with) = (Duration::ZERO, Duration::MAX);
    for _ in 0..TURNS {
        without = without.max(longest_request(&mut client));
        let stop = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            let attacker = scope.spawn(|| reads_of_much_more_than_there_is(&path, &stop));
            let longest = longest_request(&mut client);
            stop.store(true, Ordering::Relaxed);
            attacker.join().expect("the attack itself does not fail");
            longest
        });
        with = with.min(longest);
        // It has been let go of: nothing of it is measured in the turn without.
        while hostile.server.connected() {
            std::thread::yield_now();
        }
    }
    println!("longest request {with:?} with it, {without:?} without");
    assert!(with <= without + ALLOWANCE, "{with:?} with it, {without:?} without");
}

/// Each read names a sparse gigabyte sixty times, is refused, and has all that marked page by page as if it had been written.
fn reads_of_much_more_than_there_is(path: &Path, stop: &AtomicBool) {
    const LEN: u64 = 1 << 30;
    let file = rustix::fs::memfd_create("sparse", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, LEN).unwrap();
    let region = Arc::new(Region::from_fd(file, 0, LEN).unwrap());
    let window = region.window(0, LEN).unwrap();
    let mut ram = GuestRam::new(&[(META, 0x10_0000)]);
    ram.regions.push(Ram { gpa: DATA, uaddr: 0x7f00_0000_0000 + DATA, region, window });
    let mut client = Client::negotiate(path, ALL, ram);
    client.set_more_features(VhostUserProtocolFeatures::LOG_SHMFD);
    let log = Region::allocate((DATA + LEN) / 0x1000 / 8, false).unwrap();
    let region = vhost::VhostUserDirtyLogRegion {
        mmap_size: log.len(),
        mmap_offset: 0,
        mmap_handle: log.fd().unwrap().as_raw_fd(),
    };
    client.fe.set_log_base(0, Some(region)).unwrap();
    client.fe.set_features(ALL | 1 << 26).unwrap();
    add_queues(&mut client);
    client.ram.write(META + 0x8_0000, &header(0, 0));
    while !stop.load(Ordering::Relaxed) {
        let driver = &mut client.queues[0].driver;
        while driver.pop().is_some() {}
        let mut pieces = vec![Piece { addr: META + 0x8_0000, len: 16, write: false }];
        pieces.extend((0..60).map(|_| Piece { addr: DATA, len: LEN as u32, write: true }));
        pieces.push(Piece { addr: META + 0x8_0010, len: 1, write: true });
        if driver.add(&pieces).is_some() {
            client.publish(0);
        }
        std::thread::yield_now();
    }
}

fn longest_request(client: &mut Client) -> Duration {
    let (begin, mut longest) = (Instant::now(), Duration::ZERO);
    while begin.elapsed() < TURN {
        let request = Instant::now();
        assert_eq!(client.run(0, IN, 0, &mut [0; 512]), 0);
        longest = longest.max(request.elapsed());
    }
    longest
}

/// Front-ends are let in one at a time, the next one once the last one is quiet.
fn connect(path: &Path) -> Client {
    Client::connect(path, ALL, 2, 64)
}

/// Fills ring `q` with reads, and takes back what is done, without ever waiting.
fn keep_busy(client: &mut Client, q: usize) {
    while client.queues[q].driver.pop().is_some() {}
    for place in 0..16 {
        if client.queues[q].driver.free_descriptors() < 3 {
            break;
        }
        client.add(q, place, IN, place, 512);
    }
    client.publish(q);
    client.queues[q].driver.want_call();
}

/// The eventfd for calls is full, and its flags say that a write waits; they are set again and again.
fn a_call_that_would_block(path: &Path, stop: &AtomicBool) {
    let mut client = connect(path);
    let call = EventFd::new(0).unwrap();
    call.write(u64::MAX - 1).unwrap();
    client.fe.set_vring_call(0, &call).unwrap();
    client.queues[0].call = call;
    while !stop.load(Ordering::Relaxed) {
        keep_busy(&mut client, 0);
        std::thread::yield_now();
    }
}

/// The file behind the data, which nothing keeps from that, becomes shorter while requests are under way, and longer again.
fn memory_that_is_cut_away(path: &Path, stop: &AtomicBool) {
    const LEN: u64 = 0x40_0000;
    while !stop.load(Ordering::Relaxed) {
        let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, LEN).unwrap();
        let region = Arc::new(Region::from_fd(file.try_clone().unwrap(), 0, LEN).unwrap());
        let window = region.window(0, LEN).unwrap();
        let mut ram = GuestRam::new(&[(META, 0x10_0000)]);
        ram.regions.push(Ram { gpa: DATA, uaddr: 0x7f00_0000_0000 + DATA, region, window });
        let mut client = Client::negotiate(path, ALL, ram);
        add_queues(&mut client);
        for turn in 0..50 {
            keep_busy(&mut client, 0);
            rustix::fs::ftruncate(&file, if turn % 2 == 0 { 0 } else { LEN }).unwrap();
        }
    }
}

/// Two rings that begin.
fn add_queues(client: &mut Client) {
    for q in 0..2 {
        client.queues.push(Queue {
            driver: Driver::new(&client.ram, META + q as u64 * 0x1_0000, 64, true),
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
        });
        client.start_queue(q, 0);
    }
}

fn descriptors_that_loop(path: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut client = connect(path);
        for q in 0..2 {
            let driver = &mut client.queues[q].driver;
            for index in 0..driver.size {
                driver.set_desc(index, META, 16, NEXT, (index + 1) % driver.size);
            }
            (0..driver.size).for_each(|head| driver.offer(head));
            client.publish(q);
        }
        std::thread::yield_now();
    }
}

/// Rings are stopped and started under requests, faster than anybody would.
fn a_flood_of_messages(path: &Path, stop: &AtomicBool) {
    let mut client = connect(path);
    while !stop.load(Ordering::Relaxed) {
        for q in 0..2 {
            keep_busy(&mut client, q);
            for enabled in [false, true, false, true] {
                client.fe.set_vring_enable(q, enabled).unwrap();
            }
            let base = client.stop_queue(q);
            client.start_queue(q, base);
            client.config();
            client.fe.set_features(ALL).unwrap();
        }
    }
}

/// Every octet of the record is changed under the back-end that keeps it, and the next front-end brings it back as it is then.
fn a_record_that_is_overwritten(path: &Path, stop: &AtomicBool) {
    let mut octet = 0u8;
    while !stop.load(Ordering::Relaxed) {
        let ram = GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]);
        let mut client = Client::negotiate(path, ALL, ram);
        client.set_more_features(VhostUserProtocolFeatures::INFLIGHT_SHMFD);
        let asked = VhostUserInflight::new(0, 0, 2, 64);
        let (record, file) = client.fe.get_inflight_fd(&asked).unwrap();
        let scribble = |octet: u8| {
            let noise: Vec<u8> =
                (0..record.mmap_size).map(|n| octet.wrapping_mul(31) ^ (n as u8).wrapping_mul(octet)).collect();
            file.write_all_at(&noise, record.mmap_offset).unwrap();
        };
        if octet % 2 == 1 {
            scribble(octet);
        }
        if client.fe.set_inflight_fd(&record, file.as_raw_fd()).is_err() {
            octet = octet.wrapping_add(1);
            continue;
        }
        add_queues(&mut client);
        for _ in 0..20 {
            (0..2).for_each(|q| {
                let driver = &mut client.queues[q].driver;
                // What comes back may be anything: nothing is taken for done.
                driver.offer(0);
                let _ = driver.publish();
                let _ = client.queues[q].kick.write(1);
            });
            octet = octet.wrapping_add(1);
            scribble(octet);
        }
    }
}

/// A guest that is being migrated, and asks for reads that cannot be: into most of its memory, many times over. What is not written is
/// not marked, and what is marked costs no more than what was written.
#[test]
fn a_log_of_much_memory_costs_the_neighbour_nothing() {
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::Sleep }).unwrap();
    let disk = || RamDevice::new(512, 4096, Limits::UNLIMITED);
    let (neighbour, hostile) = (serve_on(&pool, disk(), |_| ()), serve_on(&pool, disk(), |c| c.num_queues = 2));
    let path = hostile.server.socket_path().to_owned();
    let mut client = Client::connect(neighbour.server.socket_path(), ALL, 1, 64);
    let without = longest_request(&mut client);
    let stop = AtomicBool::new(false);
    let with = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| reads_of_everything(&path, &stop));
        // Also if a request of the neighbour takes so long that it is given up.
        let ends = Ends(&stop);
        let longest = (0..TURNS).map(|_| longest_request(&mut client)).max().unwrap();
        drop(ends);
        attacker.join().expect("the attack itself does not fail");
        longest
    });
    assert!(with <= without + Duration::from_millis(500), "{with:?} with it, {without:?} without");
}

/// Ends the attack when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn reads_of_everything(path: &Path, stop: &AtomicBool) {
    use crate::common::guest::{Piece, header};
    use vhost::VhostUserDirtyLogRegion;
    const MEMORY: u64 = 8 << 30;
    let mut client = Client::negotiate(path, ALL, GuestRam::new(&[(META, 0x10_0000), (DATA, MEMORY)]));
    client.set_more_features(VhostUserProtocolFeatures::LOG_SHMFD);
    let log = Region::allocate((DATA + MEMORY) / 0x1000 / 8, false).unwrap();
    let place =
        VhostUserDirtyLogRegion { mmap_size: log.len(), mmap_offset: 0, mmap_handle: log.fd().unwrap().as_raw_fd() };
    client.fe.set_log_base(0, Some(place)).unwrap();
    client.fe.set_features(ALL | 1 << 26).unwrap();
    add_queues(&mut client);
    let at = META + 0x8_0000;
    client.ram.write(at, &header(IN, 0));
    let mut pieces = vec![Piece { addr: at, len: 16, write: false }];
    pieces.extend([Piece { addr: DATA, len: 0xffff_f000, write: true }; 16]);
    pieces.push(Piece { addr: at + 16, len: 1, write: true });
    while !stop.load(Ordering::Relaxed) {
        let Client { queues, ram, .. } = &mut client;
        if queues[0].driver.free_descriptors() > 60 {
            queues[0].driver.add_indirect(ram, &pieces, 0, META + 0x9_0000).unwrap();
            client.publish(0);
        }
        while client.queues[0].driver.pop().is_some() {}
        client.queues[0].driver.want_call();
        std::thread::yield_now();
    }
}
