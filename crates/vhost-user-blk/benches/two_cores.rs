//! What a request costs when the guest is on another core: its lines have to come over, and ours have to go back.
//!
//! A front-end that polls (4 KiB reads, split ring, direct chains, header and status written anew for each request) runs on one core, the
//! whole back-end behind a socket on the other, over `null://` and `ram://`. The rate of every millisecond is noted: the median, and what the
//! best tenth reached, since cores that others want too make an average say more about the neighbours.
//!
//! `cargo bench -p polypath-vhost-user-blk --bench two_cores -- [--cpus 0,1] [--qd 1,32,128] [--seconds 1] [--disk null,ram]`
//!
//! `--idle 0,15,63,255,999` puts as many disks of two connected rings (1,024 entries each) beside the busy one, on its reactor; `--policy
//! adaptive` lets the reactor sleep. Needs about 20 descriptors a disk (`ulimit -n`).
//!
//! `--beside N` gives a whole reactor its turns from the guest's own thread for N requests a depth, beside the idle disks, and says how much of
//! its core's time a request took: also on a machine whose cores others want.
//!
//! `--one-thread N` gives the poller its turns from the guest's own thread for N requests a depth, for counting instructions:
//! `valgrind --tool=callgrind --toggle-collect='*VringPoller*Poller*poll'`.

#[path = "../tests/common/mod.rs"]
mod common;

use common::client::{Client, DATA, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, META, Served, serve_on};
use common::guest::{NEXT, WRITE, header, put_desc};
use polypath_block::{Cx, Device, DiskUri, Host, MakePoller, Poller, SegTable, Time, Turn};
use polypath_memory::Window;
use polypath_reactor::{CpuList, IdlePolicy, Pool, PoolConfig, Reactor, ReactorConfig};
use polypath_vhost_user_blk::{Server, ServerConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

const RING: u16 = 512;
const FEATURES: u64 = F_VERSION_1 | F_PROTOCOL | F_EVENT_IDX | F_INDIRECT;
const BLOCK: u64 = 4096;
/// Headers and status bytes, a cache line a request.
const HEADERS: u64 = META + 0x8_0000;
const LINE: usize = 64;
const STATUS: usize = 16;

/// The guest's side of one ring, request `n` with the descriptors from `3 * n` on.
struct Guest {
    client: Client,
    headers: Window,
    avail_idx: u16,
    used_idx: u16,
    kicked: u16,
    sector: u64,
}

impl Guest {
    fn new(client: Client) -> Guest {
        let headers = client.ram.window(HEADERS, (LINE * 256) as u64);
        Guest { client, headers, avail_idx: 0, used_idx: 0, kicked: 0, sector: 0 }
    }

    /// A read that begins all over: header, status, descriptors, available entry.
    fn offer(&mut self, n: u16) {
        let driver = &self.client.queues[0].driver;
        let at = LINE * usize::from(n);
        self.sector = (self.sector + 8) & 0xffff;
        self.headers.copy_in(at, &header(0, self.sector)).unwrap();
        self.headers.store_u8(at + STATUS, 0xee).unwrap();
        let (first, place) = (3 * n, HEADERS + at as u64);
        let data = DATA + BLOCK * u64::from(n);
        let desc = |n: u16| 16 * usize::from(n);
        put_desc(&driver.desc, desc(first), place, 16, NEXT, first + 1);
        put_desc(&driver.desc, desc(first + 1), data, BLOCK as u32, NEXT | WRITE, first + 2);
        put_desc(&driver.desc, desc(first + 2), place + STATUS as u64, 1, WRITE, 0);
        driver.avail.store_u16(4 + 2 * usize::from(self.avail_idx % RING), first, Ordering::Relaxed).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    fn publish(&mut self) {
        let queue = &self.client.queues[0];
        queue.driver.avail.store_u16(2, self.avail_idx, Ordering::Release).unwrap();
        std::sync::atomic::fence(Ordering::SeqCst);
        let event = queue.driver.used.load_u16(4 + 8 * usize::from(RING), Ordering::Relaxed).unwrap();
        let old = std::mem::replace(&mut self.kicked, self.avail_idx);
        if self.avail_idx.wrapping_sub(event).wrapping_sub(1) < self.avail_idx.wrapping_sub(old) {
            queue.kick.write(1).unwrap();
        }
    }

    /// Offers again what has come back; how many that were.
    fn turn(&mut self) -> u64 {
        let shown = self.client.queues[0].driver.used.load_u16(2, Ordering::Acquire).unwrap();
        let count = shown.wrapping_sub(self.used_idx);
        if count == 0 {
            return 0;
        }
        for _ in 0..count {
            let driver = &self.client.queues[0].driver;
            let at = 4 + 8 * usize::from(self.used_idx % RING);
            let n = driver.used.load_u32(at, Ordering::Relaxed).unwrap() as u16 / 3;
            assert_eq!(driver.used.load_u32(at + 4, Ordering::Relaxed), Ok(BLOCK as u32 + 1));
            let mut status = [0xff];
            self.headers.copy_out(LINE * usize::from(n) + STATUS, &mut status).unwrap();
            assert_eq!(status, [0]);
            self.used_idx = self.used_idx.wrapping_add(1);
            self.offer(n);
        }
        self.publish();
        count.into()
    }

    /// Keeps `depth` requests in flight; the rate of each millisecond.
    fn run(&mut self, depth: u16, time: Duration) -> Vec<f64> {
        (0..depth).for_each(|n| self.offer(n));
        self.publish();
        let mut rates = Vec::with_capacity(1 << 16);
        let start = Instant::now();
        let (mut since, mut done, mut asked) = (start, 0u64, 0u32);
        loop {
            done += self.turn();
            asked += 1;
            if asked.is_multiple_of(64) {
                let now = Instant::now();
                let spent = now - since;
                if spent >= Duration::from_millis(1) {
                    rates.push(done as f64 / spent.as_secs_f64());
                    (since, done) = (now, 0);
                }
                if now - start >= time {
                    break;
                }
            }
        }
        // What is in flight comes back and is not offered again.
        while self.client.queues[0].driver.used.load_u16(2, Ordering::Acquire) != Ok(self.avail_idx) {
            std::hint::spin_loop();
        }
        self.used_idx = self.avail_idx;
        rates
    }
}

fn disk(name: &str) -> Arc<dyn Device> {
    let uri = if name == "ram" { "ram://64MiB" } else { "null://1TiB" };
    polypath_local::open(&uri.parse::<DiskUri>().unwrap()).unwrap()
}

/// A disk whose guest has set up its rings and wants nothing.
fn idle_disk(pool: &Pool) -> (Served, Client) {
    let served = serve_on(pool, disk("null"), |config| (config.queue_size, config.num_queues) = (1024, 2));
    let client = Client::connect(&served.dir.path().join("disk0.sock"), FEATURES, 2, 1024);
    (served, client)
}

/// Resident memory of this process, which is guests and back-end in one, in KiB.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn two_cores(args: &Args, name: &str, idle: usize) {
    let back = CpuList(vec![args.cpus.0[0]]);
    let pool = Pool::start(&PoolConfig { cpus: Some(back), idle: args.policy }).unwrap();
    let before = resident_kib();
    let neighbours: Vec<(Served, Client)> = (0..idle).map(|_| idle_disk(&pool)).collect();
    if let Some(each) = resident_kib().saturating_sub(before).checked_div(idle) {
        println!("{idle} idle disks: {each} KiB each, guest and back-end together");
        std::thread::sleep(Duration::from_millis(500));
    }
    let served = serve_on(&pool, disk(name), |config| config.queue_size = RING);
    let client = Client::connect(&served.dir.path().join("disk0.sock"), FEATURES, 1, RING);
    let mut guest = Guest::new(client);
    let mut set = rustix::thread::CpuSet::new();
    set.set(*args.cpus.0.last().unwrap());
    rustix::thread::sched_setaffinity(None, &set).unwrap();
    for &depth in &args.depths {
        guest.run(depth, Duration::from_millis(100));
        let mut rates = guest.run(depth, args.time);
        rates.sort_by(f64::total_cmp);
        let at = |part: f64| rates[((rates.len() - 1) as f64 * part) as usize];
        println!(
            "{name} QD {depth} beside {idle}: median {:.3} M IOPS, best tenth {:.3} M",
            at(0.5) / 1e6,
            at(0.9) / 1e6
        );
    }
    if idle > 0 {
        println!("{:?}", pool.handles()[0].statistics());
    }
    drop(guest);
    drop(neighbours);
}

/// A reactor that is this thread.
struct Here(SyncSender<MakePoller>);

impl Host for Here {
    fn spawn(&self, make: MakePoller) {
        self.0.send(make).unwrap();
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> Time {
        Time::ZERO
    }
}

fn one_thread(args: &Args, name: &str, requests: u64) {
    let (sender, made) = sync_channel(4);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk0.sock");
    let hosts: Vec<Arc<dyn Host>> = vec![Arc::new(Here(sender))];
    let mut config = ServerConfig::new("disk0", &path, disk(name), hosts);
    config.queue_size = RING;
    let server = Server::start(config).unwrap();
    let connected = Arc::new(AtomicBool::new(false));
    let tell = connected.clone();
    let client = std::thread::spawn(move || {
        let client = Client::connect(&path, FEATURES, 1, RING);
        tell.store(true, Ordering::Release);
        client
    });
    let mut segs = SegTable::new(SegTable::DEFAULT_LIMIT);
    let mut pollers: Vec<Box<dyn Poller>> = Vec::new();
    let mut turn = || {
        polypath_memory::refresh();
        let mut cx = Cx { now: polypath_reactor::now(), segs: &mut segs, reactor: 0 };
        pollers.extend(made.try_iter().map(|make: MakePoller| make(&mut cx)));
        pollers.retain_mut(|poller| poller.poll(&mut cx) != Turn::Finished);
    };
    while !connected.load(Ordering::Acquire) && !client.is_finished() {
        turn();
    }
    let mut guest = Guest::new(client.join().unwrap());
    for &depth in &args.depths {
        (0..depth).for_each(|n| guest.offer(n));
        guest.publish();
        let start = Instant::now();
        let mut done = 0;
        while done < requests {
            turn();
            done += guest.turn();
        }
        turn();
        guest.used_idx = guest.avail_idx;
        let ns = start.elapsed().as_nanos() as f64 / done as f64;
        println!("{name} QD {depth}: {} requests, {ns:.1} ns each with the guest's part", done + u64::from(depth));
    }
    // The control thread waits for a turn that none gives any more.
    std::mem::forget((guest, server));
}

/// A request's share of one core, guest and reactor taking turns on it, beside `idle` disks.
fn beside(args: &Args, name: &str, idle: usize, requests: u64) {
    let config = ReactorConfig { idle: args.policy, ..ReactorConfig::default() };
    let mut reactor = Reactor::new(&config).unwrap();
    let host: Arc<dyn Host> = Arc::new(reactor.handle());
    let dir = tempfile::tempdir().unwrap();
    let server = |n: usize, size: u16| {
        let path = dir.path().join(format!("disk{n}.sock"));
        let mut config = ServerConfig::new(format!("disk{n}"), &path, disk(name), vec![host.clone()]);
        (config.queue_size, config.num_queues) = (size, 2);
        (Server::start(config).unwrap(), path)
    };
    let mut connect = |path: std::path::PathBuf, rings: usize, size: u16| {
        let client = std::thread::spawn(move || Client::connect(&path, FEATURES, rings, size));
        while !client.is_finished() {
            reactor.turn();
        }
        client.join().unwrap()
    };
    let (busy, path) = server(0, RING);
    let mut guest = Guest::new(connect(path, 1, RING));
    let before = resident_kib();
    let mut neighbours = Vec::new();
    for n in 1..=idle {
        let (server, path) = server(n, 1024);
        neighbours.push((server, connect(path, 2, 1024)));
    }
    let each = resident_kib().saturating_sub(before).checked_div(idle).unwrap_or(0);
    for &depth in &args.depths {
        (0..depth).for_each(|n| guest.offer(n));
        guest.publish();
        // Long enough for the idle ones to rest.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(if idle > 0 { 500 } else { 50 }) {
            reactor.turn();
            guest.turn();
        }
        let cpu = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
        };
        let (start, mut done) = (cpu(), 0);
        while done < requests {
            reactor.turn();
            done += guest.turn();
        }
        let ns = (cpu() - start) / done as f64;
        reactor.turn();
        guest.used_idx = guest.avail_idx;
        let statistics = reactor.handle().statistics();
        let (pollers, resting) = (statistics.pollers, statistics.resting);
        println!(
            "{name} QD {depth} beside {idle}: {ns:.1} ns of a core each; {resting} of {pollers} rest, {each} KiB a disk"
        );
    }
    // The control threads wait for turns that nobody gives any more.
    std::mem::forget((guest, busy, neighbours));
}

struct Args {
    cpus: CpuList,
    depths: Vec<u16>,
    disks: Vec<String>,
    time: Duration,
    one_thread: Option<u64>,
    beside: Option<u64>,
    idle: Vec<usize>,
    policy: IdlePolicy,
}

fn args() -> Args {
    let mut args = Args {
        cpus: "0,1".parse().unwrap(),
        depths: vec![1, 32, 128],
        disks: vec!["null".into(), "ram".into()],
        time: Duration::from_secs(1),
        one_thread: None,
        beside: None,
        idle: vec![0],
        policy: IdlePolicy::Poll,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--cpus" => args.cpus = value().parse().unwrap(),
            "--qd" => args.depths = value().split(',').map(|d| d.parse().unwrap()).collect(),
            "--disk" => args.disks = value().split(',').map(String::from).collect(),
            "--seconds" => args.time = Duration::from_secs_f64(value().parse().unwrap()),
            "--beside" => args.beside = Some(value().parse().unwrap()),
            "--idle" => args.idle = value().split(',').map(|n| n.parse().unwrap()).collect(),
            "--policy" => {
                args.policy = if value() == "adaptive" { IdlePolicy::default() } else { IdlePolicy::Poll };
            }
            "--one-thread" => args.one_thread = Some(value().parse().unwrap()),
            "--bench" => {}
            other => panic!("unknown: {other}"),
        }
    }
    args
}

fn main() {
    let args = args();
    for name in &args.disks {
        match (args.one_thread, args.beside) {
            (Some(requests), _) => one_thread(&args, name, requests),
            (_, Some(requests)) => args.idle.iter().for_each(|&idle| beside(&args, name, idle, requests)),
            _ => args.idle.iter().for_each(|&idle| two_cores(&args, name, idle)),
        }
    }
}
