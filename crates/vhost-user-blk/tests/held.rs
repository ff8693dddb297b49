//! Descriptors of which a front-end holds a lock in the kernel, or whose close takes long: whoever has them waits, and that must be no
//! reactor.
//!
//! A thread that copies to or from a page of its own that is not there waits for that page (userfaultfd here; a page of a file on FUSE or
//! NFS does as well), and holds meanwhile what the call holds: the lock of a pipe, or of an epoll instance. Whoever reads, writes, opens or
//! asks such a descriptor, in whatever mode, waits for the lock.
#![allow(unsafe_code, reason = "a page that is not there is to be had from the system only")]

use crate::common::client::{
    Client, DATA, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, IN, META, OUT, Queue, readable, serve_on,
};
use crate::common::fds::{lingering, send_with};
use crate::common::guest::{Driver, GuestRam, Piece, Ram, header};
use crate::common::ram::RamDevice;
use polypath_block::{Armed, Cx, Limits, Poller, Turn, Waits};
use polypath_memory::Region;
use polypath_reactor::{IdlePolicy, Pool, PoolConfig};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use rustix::net::SendFlags;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL;
const PAGE: usize = 4096;
/// Much longer than a request takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(5);

/// A page that is not there before this is dropped; the one before it is.
struct Missing {
    faults: OwnedFd,
    at: usize,
}

impl Missing {
    fn new() -> Missing {
        // SAFETY: a fresh mapping, and calls that write to what lives through them.
        unsafe {
            let (rw, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let at = libc::mmap(std::ptr::null_mut(), 2 * PAGE, rw, kind, -1, 0) as usize + PAGE;
            *((at - PAGE) as *mut u8) = 1;
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32;
            assert!(fd >= 0, "userfaultfd (root, or sysctl vm.unprivileged_userfaultfd=1)");
            let mut api = [0xaa_u64, 0, 0];
            assert_eq!(libc::ioctl(fd, 0xc018_aa3f, &raw mut api), 0, "UFFDIO_API");
            let mut range = [at as u64, PAGE as u64, 1, 0];
            assert_eq!(libc::ioctl(fd, 0xc020_aa00, &raw mut range), 0, "UFFDIO_REGISTER");
            Missing { faults: OwnedFd::from_raw_fd(fd), at }
        }
    }

    /// Waits until somebody waits for it.
    fn is_awaited(&self) {
        let mut message = [0; 32];
        assert_eq!(rustix::io::read(&self.faults, &mut message), Ok(32));
    }
}

fn bell(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is given away.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// A front-end with one ring and these descriptors; `None` if they are refused.
fn hostile(path: &Path, kick: OwnedFd, call: OwnedFd) -> Option<Client> {
    let mut client = Client::negotiate(path, ALL, GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]));
    let driver = Driver::new(&client.ram, META, 64, true);
    client.queues.push(Queue { driver, kick: bell(kick), call: bell(call) });
    catch_unwind(AssertUnwindSafe(|| client.start_queue(0, 0))).ok().map(|()| client)
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Does a request complete within [`LIMIT`]?
fn is_served(client: &mut Client) -> bool {
    client.add(0, 0, IN, 0, 512);
    client.publish(0);
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        let queue = &mut client.queues[0];
        if queue.driver.pop().is_some() {
            return true;
        }
        if !queue.driver.want_call() && readable(&queue.call, 1) {
            queue.call.read().unwrap();
        }
    }
    false
}

struct Neighbours {
    neighbour: crate::common::client::Served,
    hostile: crate::common::client::Served,
    pool: Pool,
}

fn on_one_reactor() -> Neighbours {
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::Sleep }).unwrap();
    let disk = || RamDevice::new(512, 4096, Limits::UNLIMITED);
    Neighbours { neighbour: serve_on(&pool, disk(), |_| ()), hostile: serve_on(&pool, disk(), |_| ()), pool }
}

/// The kick descriptor is a pipe. A thread of the front-end writes to it from a page that is not there, and holds its lock. The neighbour
/// kicks, the reactor wakes and reads the pipe, which "does not block", and waits for the lock.
#[test]
fn a_pipe_that_its_writer_holds_as_kick_stops_no_neighbour() {
    let both = on_one_reactor();
    let mut client = Client::connect(both.neighbour.server.socket_path(), ALL, 1, 64);
    let (out, into) = rustix::pipe::pipe().unwrap();
    let Some(_hostile) = hostile(both.hostile.server.socket_path(), out, event()) else {
        return assert!(is_served(&mut client), "a pipe is refused");
    };
    // The reactor has slept since with the ring armed.
    assert!(is_served(&mut client) && is_served(&mut client));
    let page = Missing::new();
    let served = std::thread::scope(|scope| {
        let (at, into) = (page.at, into.as_fd());
        // SAFETY: the pages are mapped, and read from by the kernel.
        scope.spawn(move || unsafe { libc::write(into.as_raw_fd(), (at - PAGE) as *const libc::c_void, 2 * PAGE) });
        page.is_awaited();
        // The first ones may be served before the reactor is stopped.
        let served = (0..200).all(|_| is_served(&mut client));
        drop(page);
        served
    });
    assert!(served, "a request of the neighbour waits for a page of the hostile front-end");
}

/// The same with the call descriptor, from which the front-end reads to a page that is not there.
#[test]
fn a_pipe_that_its_reader_holds_as_call_stops_no_neighbour() {
    let both = on_one_reactor();
    let mut client = Client::connect(both.neighbour.server.socket_path(), ALL, 1, 64);
    let (out, into) = rustix::pipe::pipe().unwrap();
    let Some(mut other) = hostile(both.hostile.server.socket_path(), event(), into) else {
        return assert!(is_served(&mut client), "a pipe is refused");
    };
    assert!(is_served(&mut client) && readable(&out, 10), "it was called once");
    let page = Missing::new();
    let served = std::thread::scope(|scope| {
        let (at, out) = (page.at, out.as_fd());
        // SAFETY: the page is mapped, and written to by the kernel.
        scope.spawn(move || unsafe { libc::read(out.as_raw_fd(), at as *mut libc::c_void, 8) });
        page.is_awaited();
        other.queues[0].driver.want_call();
        other.add(0, 0, IN, 0, 512);
        other.publish(0);
        // The first ones may be served before the reactor is stopped.
        let served = (0..200).all(|_| is_served(&mut client));
        drop(page);
        served
    });
    assert!(served, "a request of the neighbour waits for a page of the hostile front-end");
}

/// The kick descriptor is no eventfd but an epoll instance, which is as anonymous. A thread of the front-end waits in it for what has
/// happened, is told so in a page that is not there, and holds its lock. The reactor adds the descriptor to its own, and waits for the lock.
#[test]
fn an_epoll_instance_as_kick_stops_no_neighbour() {
    let both = on_one_reactor();
    let mut client = Client::connect(both.neighbour.server.socket_path(), ALL, 1, 64);
    assert!(is_served(&mut client));
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
    epoll::add(&instance, &ready, epoll::EventData::new_u64(1), epoll::EventFlags::IN).unwrap();
    let page = Missing::new();
    let (served, _refused) = std::thread::scope(|scope| {
        let (at, own) = (page.at, instance.try_clone().unwrap());
        // SAFETY: the page is mapped, and written to by the kernel.
        scope.spawn(move || unsafe { libc::epoll_wait(own.as_raw_fd(), at as *mut libc::epoll_event, 1, -1) });
        page.is_awaited();
        let path = both.hostile.server.socket_path();
        let mut other = Client::negotiate(path, ALL, GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]));
        let driver = Driver::new(&other.ram, META, 64, true);
        other.queues.push(Queue { driver, kick: bell(instance), call: EventFd::new(EFD_NONBLOCK).unwrap() });
        // That it is refused would be as well.
        let started = catch_unwind(AssertUnwindSafe(|| other.start_queue(0, 0)));
        let served = (0..200).all(|_| is_served(&mut client));
        drop(page);
        (served, (started, other))
    });
    assert!(served, "a request of the neighbour waits for a page of the hostile front-end");
}

/// The err descriptor is an eventfd on which a million watches hang, of which the front-end keeps no copy. Another one takes its place: we
/// have the last copy, and whoever closes it takes down the watches.
#[test]
fn a_descriptor_whose_close_takes_long_is_closed_by_no_reactor() {
    let both = on_one_reactor();
    let mut client = Client::connect(both.neighbour.server.socket_path(), ALL, 1, 64);
    let other = Client::connect(both.hostile.server.socket_path(), ALL, 1, 64);
    let event = event();
    let [copies, _instances] = crowd(&event);
    let event = bell(event);
    other.fe.set_vring_err(0, &event).unwrap();
    drop((event, copies));
    let longest = watch_turns(&both.pool);
    let request = std::thread::scope(|scope| {
        scope.spawn(|| other.fe.set_vring_err(0, &EventFd::new(EFD_NONBLOCK).unwrap()).unwrap());
        longest_request(&mut client)
    });
    assert_short(&longest, request, SHORT);
}

/// The call descriptor is an eventfd, as it should be, on which a million watches of the front-end's own epoll instances hang. Whoever
/// signals it runs through all of them. What counts is the time of the reactor's own thread: meanwhile the kernel takes no interrupts on the core of
/// whoever does (the front-end could do it as well), and no thread wakes there.
#[test]
fn a_call_that_a_million_wait_for_stops_no_neighbour() {
    let call = event();
    let _crowd = crowd(&call);
    // It is called at once.
    crowded(cost(&call), |other| {
        (other.queues[0].call = bell(call), other.fe.set_vring_call(0, &other.queues[0].call)).1.unwrap()
    });
}

/// The same with the kick descriptor: whoever reads it runs through all of them as well.
#[test]
fn a_kick_that_a_million_wait_for_stops_no_neighbour() {
    let kick = event();
    let _crowd = crowd(&kick);
    crowded(cost(&kick), |other| {
        (other.queues[0].kick = bell(kick), other.fe.set_vring_kick(0, &other.queues[0].kick)).1.unwrap()
    });
}

/// Watches of `event`, a million.
fn crowd(event: &OwnedFd) -> [Vec<OwnedFd>; 2] {
    const INSTANCES: usize = 80;
    raise_descriptors();
    let copies: Vec<_> = (0..12_500).map(|_| event.try_clone().unwrap()).collect();
    let instances: Vec<_> = (0..INSTANCES).map(|_| epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()).collect();
    for instance in &instances {
        for copy in &copies {
            epoll::add(instance, copy, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        }
    }
    [copies, instances]
}

/// What a signal of `event` costs whoever gives it, without the time in which it waits for the core.
fn cost(event: &OwnedFd) -> Duration {
    let before = thread_time();
    rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
    rustix::io::read(event, &mut [0; 8]).unwrap();
    // Signal and look each go through all of them.
    Duration::from_nanos((thread_time() - before) as u64) / 2
}

/// `one`: what the reactor would have to pay once.
fn crowded(one: Duration, exchange: impl FnOnce(&mut Client) + Send) {
    let both = on_one_reactor();
    let mut client = Client::connect(both.neighbour.server.socket_path(), ALL, 1, 64);
    let mut other = Client::connect(both.hostile.server.socket_path(), ALL, 1, 64);
    let longest = watch_turns(&both.pool);
    let request = std::thread::scope(|scope| {
        scope.spawn(|| exchange(&mut other));
        longest_request(&mut client)
    });
    // And it is served all the same, asleep and awake.
    for _ in 0..3 {
        other.add(0, 0, IN, 0, 512);
        other.publish(0);
        other.wait(0);
        assert!(is_served(&mut client));
    }
    println!("a signal costs {one:?}");
    assert_short(&longest, request, SHORT.max(one / 2));
}

/// How much of its core's time this thread has had, in nanoseconds.
fn thread_time() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// How much of its core's time the reactor's thread took for a turn at most, in nanoseconds, from now on.
fn watch_turns(pool: &Pool) -> Arc<AtomicU64> {
    struct Turns(i64, Arc<AtomicU64>);
    impl Poller for Turns {
        fn poll(&mut self, _cx: &mut Cx<'_>) -> Turn {
            let now = thread_time();
            self.1.fetch_max((now - self.0) as u64, Ordering::Relaxed);
            self.0 = now;
            Turn::Idle
        }

        fn arm(&mut self, _cx: &mut Cx<'_>, _waits: &mut Waits) -> Armed {
            Armed::Sleep
        }

        fn name(&self) -> &str {
            "turns"
        }
    }
    let longest = Arc::new(AtomicU64::new(0));
    let shared = longest.clone();
    pool.hosts()[0].spawn(Box::new(move |_cx| Box::new(Turns(thread_time(), shared))));
    longest
}

/// Longer than a turn takes, whatever else the machine does; by far shorter than what would stop a neighbour.
const SHORT: Duration = Duration::from_millis(40);

fn assert_short(longest: &AtomicU64, request: Duration, limit: Duration) {
    let longest = Duration::from_nanos(longest.load(Ordering::Relaxed));
    println!("longest turn {longest:?}, longest request {request:?}");
    assert!(longest < limit, "a turn of the reactor takes {longest:?}, more than {limit:?}");
}

fn longest_request(client: &mut Client) -> Duration {
    let (begin, mut longest) = (Instant::now(), Duration::ZERO);
    while begin.elapsed() < Duration::from_millis(800) {
        let request = Instant::now();
        assert!(is_served(client));
        longest = longest.max(request.elapsed());
    }
    longest
}

fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// The descriptor of a TCP connection that lingers comes with an octet out of band, which nobody reads: the call that receives what comes next
/// drops it, and closes the descriptor itself.
#[test]
fn a_descriptor_out_of_band_does_not_keep_the_server_from_ending() {
    let mut served = crate::common::client::serve(RamDevice::new(512, 4096, Limits::UNLIMITED), |c| {
        c.drain_timeout = Duration::from_secs(1);
    });
    let (lingers, _listener, _reads_nothing) = lingering();
    let mut front_end = UnixStream::connect(served.server.socket_path()).unwrap();
    send_with(&front_end, b"!", &[lingers.as_fd()], SendFlags::OOB).unwrap();
    drop(lingers);
    // GET_FEATURES, twice. Where octets out of band are taken for others, the connection ends.
    let question = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
    let asked = front_end.write_all(&question);
    let answered = asked.is_ok() && readable(&front_end, 3);
    let (tell, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let outcome = served.server.stop().map_err(|e| e.to_string());
        let _ = tell.send(outcome);
        std::mem::forget(served);
    });
    let ended = stopped.recv_timeout(Duration::from_secs(15));
    assert!(matches!(ended, Ok(Ok(()))), "a stop of at most a second is held up: {ended:?} (answered: {answered})");
}

/// A guest with much memory has all of it touched by writes. Then its front-end cuts off the last page, and the guest has that written: what is put
/// in the place of the memory is put there by the reactor, in the handler of a signal, and what was there is taken down by it, page by page.
#[test]
fn much_memory_that_is_cut_by_a_page_stops_no_neighbour() {
    const LEN: u64 = 3 << 29;
    /// What one access has the kernel map, of a file that is in memory.
    const AT_ONCE: u64 = 16 * PAGE as u64;
    let both = on_one_reactor();
    let mut client = Client::connect(both.neighbour.server.socket_path(), ALL, 1, 64);
    let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut filled = std::fs::File::from(file.try_clone().unwrap());
    (0..LEN >> 20).for_each(|_| filled.write_all(&[1; 1 << 20]).unwrap());
    let region = Arc::new(Region::from_fd(file.try_clone().unwrap(), 0, LEN).unwrap());
    let window = region.window(0, LEN).unwrap();
    let mut ram = GuestRam::new(&[(META, 0x10_0000)]);
    ram.regions.push(Ram { gpa: DATA, uaddr: 0x7f00_0000_0000 + DATA, region, window });
    let mut other = Client::negotiate(both.hostile.server.socket_path(), ALL, ram);
    let driver = Driver::new(&other.ram, META, 64, true);
    other.queues.push(Queue { driver, kick: EventFd::new(0).unwrap(), call: EventFd::new(EFD_NONBLOCK).unwrap() });
    other.start_queue(0, 0);
    let write_from = |other: &mut Client, places: &[u64]| {
        let at = META + 0x8_0000;
        other.ram.write(at, &header(OUT, 0));
        let mut pieces = vec![Piece { addr: at, len: 16, write: false }];
        pieces.extend(places.iter().map(|place| Piece { addr: DATA + place, len: 512, write: false }));
        pieces.push(Piece { addr: at + 16, len: 1, write: true });
        other.queues[0].driver.add(&pieces).unwrap();
        other.publish(0);
    };
    let places: Vec<_> = (0..LEN).step_by(AT_ONCE as usize).collect();
    for some in places.chunks(60) {
        write_from(&mut other, some);
        other.wait(0);
    }
    let mapped = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mapped = mapped.split("/memfd:cut").filter_map(|of| of.split_once("Rss:")?.1.trim().split(' ').next());
    let most = mapped.filter_map(|n| n.parse::<u64>().ok()).max().unwrap_or(0);
    assert!(most >= LEN / 1024 / 2, "only {most} KiB are mapped: there is little to take down");
    let longest = watch_turns(&both.pool);
    rustix::fs::ftruncate(&file, LEN - PAGE as u64).unwrap();
    let request = std::thread::scope(|scope| {
        scope.spawn(|| write_from(&mut other, &[LEN - PAGE as u64]));
        longest_request(&mut client)
    });
    assert_short(&longest, request, SHORT);
}
