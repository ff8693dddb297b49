//! The front-end against a back-end of a few lines that keeps the control protocol, or breaks it where a test says so, and does no I/O.

use polypath_block::contract::Rig;
use polypath_block::{
    Armed, Code, Completion, Cx, Device, DeviceState, Done, Health, Io, IoQueue, OpenError, Proof, QueueConfig,
    RefusedWhy, SegRow, SegTable, Segment, Waits,
};
use polypath_local::testing::RealRig;
use polypath_memory::Region;
use polypath_vhost_user_client::{ClientConfig, VhostUserDisk};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const ADD: u32 = 37;
const REMOVE: u32 = 38;
const NUM: u32 = 8;
const BASE: u32 = 11;
const QUEUE_NUM: u32 = 17;
/// No call of a queue takes that long, on a machine that stalls now and then, unless it waits for the back-end.
const HELD: Duration = Duration::from_secs(5);
/// What the back-end has begun has come, on such a machine. A test that fails waits for as long.
const SOON: Duration = Duration::from_secs(60);
/// What a test does not wait for takes longer than it looks on, so that nothing ends by it on such a machine: of the set-up, too.
const PATIENT: [(&str, u64); 2] = [("control_timeout_ms", 30_000), ("io_timeout_ms", 60_000)];
/// What a broken connection ends does not wait for any of these.
const AT_ONCE: Duration = Duration::from_secs(20);

/// What the back-end does instead of answering.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    Silence,
    Close,
    Refuse,
    /// Answers, then says something that nobody asked for.
    Babble,
}

/// A message: its request, and its payload in words of eight bytes.
type Seen = (u32, Vec<u64>);

/// Reads messages until the front-end goes. At the `n`th `request` (the first is 1) it does what `fault` says. Returns what it saw through `tell`.
fn serve(mut stream: UnixStream, fault: Option<(u32, u32, Fault)>, tell: &mpsc::Sender<Seen>) -> std::io::Result<()> {
    let mut count = 0;
    loop {
        let mut header = [0; 12];
        stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let (request, need_reply) = (word(0), word(4) & 8 != 0);
        let mut payload = vec![0; word(8) as usize];
        stream.read_exact(&mut payload)?;
        let words = payload.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap())).collect();
        // The test may have seen enough.
        let _ = tell.send((request, words));
        count += u32::from(fault.is_some_and(|(at, _, _)| at == request));
        let fault = fault.filter(|(at, n, _)| *at == request && *n == count).map(|(_, _, fault)| fault);
        let number = |n: u64| n.to_ne_bytes().to_vec();
        let answer = match request {
            // VERSION_1, PROTOCOL_FEATURES, SEG_MAX, MQ, FLUSH
            1 => number(1 << 32 | 1 << 30 | 1 << 12 | 1 << 9 | 1 << 2),
            15 => number(1 | 1 << 3 | 1 << 9 | 1 << 15),
            QUEUE_NUM => number(2),
            36 => number(8),
            BASE => number(0),
            24 => {
                payload[12..20].copy_from_slice(&4096u64.to_ne_bytes());
                payload[24..28].copy_from_slice(&4u32.to_ne_bytes());
                payload[12 + 34] = 2;
                payload
            }
            _ if !need_reply => continue,
            _ => number(u64::from(fault == Some(Fault::Refuse))),
        };
        match fault {
            Some(Fault::Close) => return Ok(()),
            Some(Fault::Silence) => {
                // Until the front-end goes.
                return stream.read_to_end(&mut Vec::new()).map(drop);
            }
            _ => {}
        }
        let reply = [[request, 5, answer.len() as u32].map(u32::to_ne_bytes).concat(), answer].concat();
        stream.write_all(&reply)?;
        if fault == Some(Fault::Babble) {
            stream.write_all(&reply)?;
        }
    }
}

struct World {
    disk: Arc<VhostUserDisk>,
    rig: RealRig,
    segs: SegTable,
    rows: SegRow,
    done: Done,
    seen: mpsc::Receiver<Seen>,
    back_end: Option<std::thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(options: &str, fault: Option<(u32, u32, Fault)>) -> World {
        World::of(options, move |stream, tell| serve(stream, fault, &tell))
    }

    /// As [`World::new`], with any back-end.
    fn of(
        options: &str,
        serve: impl FnOnce(UnixStream, mpsc::Sender<Seen>) -> std::io::Result<()> + Send + 'static,
    ) -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (tell, seen) = mpsc::channel();
        let back_end = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            // It ends with the front-end.
            let _ = serve(stream, tell);
        });
        let mut uri = format!("vhost-user-blk://{}?queues=2&queue_size=16&{options}", path.display());
        for (name, ms) in PATIENT.iter().filter(|(name, _)| !options.contains(name)) {
            uri += &format!("&{name}={ms}");
        }
        let disk = VhostUserDisk::connect(&ClientConfig::from_uri(&uri.parse().unwrap()).unwrap()).unwrap();
        let mut segs = SegTable::new(64);
        let rows = segs.reserve(16, 1).unwrap();
        let rig = RealRig::new(disk.clone(), true);
        World { disk, rig, segs, rows, done: Done::default(), seen, back_end: Some(back_end), _dir: dir }
    }

    fn open(&self) -> Box<dyn IoQueue> {
        self.disk.open_queue(QueueConfig { depth: 4 }).unwrap()
    }

    /// One block, read or written.
    fn io(&mut self, tag: u64, write: bool, region: &Region) -> Io {
        let span = self.rows.span(tag as u32, 1);
        self.segs.get_mut(span)[0] = Segment { offset: 0, region: region.id(), len: 512 };
        if write { Io::write(tag, tag, 1, span) } else { Io::read(tag, tag, 1, span) }
    }

    fn submit(&mut self, queue: &mut dyn IoQueue, io: Io) -> Result<(), RefusedWhy> {
        let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
        let took = Instant::now();
        queue.submit(&mut cx, io).map_err(|r| r.why)?;
        queue.kick(&mut cx);
        assert!(took.elapsed() < HELD, "a reactor was held");
        Ok(())
    }

    /// The next `count` completions, in the order of their tags, and how long they took.
    fn wait(&mut self, queue: &mut dyn IoQueue, count: usize) -> (Vec<(u64, Code, Proof)>, Duration) {
        let start = Instant::now();
        let got = self.wait_for(queue, count, SOON);
        assert_eq!(got.len(), count, "{got:?}");
        (got, start.elapsed())
    }

    /// At most `count` completions within `limit`. Sleeps only where the queue lets it.
    fn wait_for(&mut self, queue: &mut dyn IoQueue, count: usize, limit: Duration) -> Vec<(u64, Code, Proof)> {
        let (start, mut waits) = (Instant::now(), Waits::default());
        let mut got: Vec<Completion> = Vec::new();
        while got.len() < count && start.elapsed() < limit {
            let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
            let took = Instant::now();
            queue.poll(&mut cx, &mut self.done);
            got.append(&mut self.done.completions);
            waits.clear();
            let armed = queue.arm(&mut cx, &mut waits);
            assert!(took.elapsed() < HELD, "a reactor was held");
            if armed == Armed::Sleep && got.len() < count {
                self.rig.pass(&mut cx, Some(&waits));
            }
        }
        got.sort_by_key(|c| c.tag);
        got.iter().map(|c| (c.tag, c.status.code, c.proof)).collect()
    }

    /// Turns until something is in the ring: only then has the queue a limit to keep.
    fn until_sent(&mut self, queue: &mut dyn IoQueue) {
        let (start, mut waits) = (Instant::now(), Waits::default());
        while waits.deadline.is_none() {
            assert!(start.elapsed() < SOON, "nothing was sent");
            let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
            queue.poll(&mut cx, &mut self.done);
            assert!(self.done.is_empty(), "{:?}", self.done);
            waits.clear();
            if queue.arm(&mut cx, &mut waits) == Armed::Sleep {
                self.rig.pass(&mut cx, Some(&waits));
            }
        }
    }

    /// Turns until the back-end has seen a message that is `request`.
    fn turn_until(&mut self, queue: &mut dyn IoQueue, request: u32) -> Vec<u64> {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < SOON, "no message {request}");
            let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
            queue.poll(&mut cx, &mut self.done);
            if let Some((_, words)) = self.seen.try_iter().find(|(got, _)| *got == request) {
                return words;
            }
            std::thread::yield_now();
        }
    }

    /// The connection is over: the back-end saw the end of it.
    fn joined(&mut self) {
        self.back_end.take().expect("joined once").join().expect("no panic");
    }

    fn reason(&self) -> String {
        match self.disk.state() {
            DeviceState::Gone { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// The next message that is `request`.
    fn next(&self, request: u32) -> Vec<u64> {
        loop {
            let (got, words) = self.seen.recv_timeout(SOON).expect("a message");
            if got == request {
                return words;
            }
        }
    }
}

fn region() -> Region {
    Region::allocate(4096, false).unwrap()
}

#[test]
fn freed_memory_is_taken_back_and_its_address_never_given_again() {
    let mut world = World::new("", None);
    let mut queue = world.open();
    assert_eq!(world.next(ADD)[2], 8192, "the rings'");
    let mut bases = Vec::new();
    for n in 0..4 {
        let region = region();
        let io = world.io(n, false, &region);
        world.submit(&mut *queue, io).unwrap();
        let add = world.turn_until(&mut *queue, ADD);
        bases.push(add[1]);
        assert_eq!((add[1], add[2], add[4]), (add[3], 4096, 0), "base twice, length, offset in the file");
        drop(region);
        assert_eq!(world.next(REMOVE)[..4], add[..4]);
    }
    bases.dedup();
    assert_eq!(bases.len(), 4, "{bases:x?}");
    // A region that nobody can reach any more.
    let gone = region();
    let io = world.io(9, false, &gone);
    drop(gone);
    world.submit(&mut *queue, io).unwrap();
    // Those before it that were not in the ring yet when their memory went have the same end.
    let got = world.wait_for(&mut *queue, 1, SOON);
    assert!(got.iter().any(|c| c.0 == 9) && got.iter().all(|c| c.1 == Code::BadMemory), "{got:?}");
}

#[test]
fn a_region_that_is_refused_fails_its_io_and_nothing_else() {
    let mut world = World::new("", Some((ADD, 2, Fault::Refuse)));
    let mut queue = world.open();
    let (first, second) = (region(), region());
    let io = world.io(1, true, &first);
    world.submit(&mut *queue, io).unwrap();
    assert_eq!(world.wait(&mut *queue, 1).0, [(1, Code::PathLost, Proof::Answered)]);
    let io = world.io(2, true, &second);
    world.submit(&mut *queue, io).unwrap();
    assert_eq!(world.next(ADD)[2], 8192, "the rings'");
    for _ in 0..2 {
        assert_eq!(world.next(ADD)[2], 4096);
    }
    assert!(world.disk.state().info().is_some() && queue.health() == Health::Ready);
}

/// Everything that was in flight, and everything that was not yet.
#[test]
fn a_silent_ring_is_given_up() {
    let mut world = World::new("io_timeout_ms=300", None);
    let mut queue = world.open();
    let region = region();
    // 16 descriptors are room for five requests; the sixth is refused because the slots are five as well.
    for tag in 0..5 {
        let io = world.io(tag, tag % 2 == 0, &region);
        world.submit(&mut *queue, io).unwrap();
    }
    let io = world.io(5, true, &region);
    assert_eq!(world.submit(&mut *queue, io), Err(RefusedWhy::Full));
    let before = world.disk.version();
    let (got, took) = world.wait(&mut *queue, 5);
    assert!(got.iter().all(|c| (c.1, c.2) == (Code::PathTimeout, Proof::None)), "{got:?}");
    // Less than where nobody says how long.
    assert!((300..8000).contains(&took.as_millis()), "{took:?}");
    assert!(world.reason().contains("did not answer an I/O within 0.3 s"), "{}", world.reason());
    assert!(queue.health() == Health::Down && world.disk.version() > before);
    let io = world.io(6, true, &region);
    assert_eq!(world.submit(&mut *queue, io), Err(RefusedWhy::Gone));
    assert!(matches!(world.disk.open_queue(QueueConfig { depth: 1 }), Err(OpenError::Gone { .. })));
    // The socket is closed on our side, too.
    world.joined();
}

#[test]
fn what_never_left_is_known_not_to_have() {
    // Who waits for one that is silent waits longer than a call of a queue may take. The others wait for nobody.
    let rows = [
        (ADD, 2, Fault::Close, "", Code::PathLost),
        (ADD, 2, Fault::Silence, "control_timeout_ms=6000", Code::PathTimeout),
        (NUM, 1, Fault::Close, "", Code::PathLost),
        (NUM, 1, Fault::Refuse, "", Code::PathLost),
        (13, 1, Fault::Silence, "control_timeout_ms=6000", Code::PathTimeout),
    ];
    let row = |(request, n, fault, options, code)| {
        let mut world = World::new(options, Some((request, n, fault)));
        let mut queue = world.open();
        let region = region();
        for tag in 0..2 {
            let io = world.io(tag, tag == 1, &region);
            world.submit(&mut *queue, io).unwrap();
        }
        let (got, took) = world.wait(&mut *queue, 2);
        assert_eq!(got, [(0, code, Proof::NeverSent), (1, code, Proof::NeverSent)], "{fault:?} at {request}");
        assert!(took < AT_ONCE, "{took:?} for {fault:?} at {request}");
        assert!(world.reason().contains("disk.sock"), "{}", world.reason());
    };
    // The silent ones at the same time.
    std::thread::scope(|scope| rows.into_iter().for_each(|of| drop(scope.spawn(move || row(of)))));
}

/// A read touches nothing any more once the peer has closed; of a write nobody knows.
#[test]
fn a_closed_socket_is_seen_at_once() {
    let mut world = World::new("", Some((BASE, 1, Fault::Close)));
    let (mut queue, other) = (world.open(), world.open());
    let region = region();
    for tag in 0..2 {
        let io = world.io(tag, tag == 1, &region);
        world.submit(&mut *queue, io).unwrap();
    }
    world.until_sent(&mut *queue);
    drop(other);
    let (got, took) = world.wait(&mut *queue, 2);
    assert_eq!(got, [(0, Code::PathLost, Proof::SocketClosed), (1, Code::PathLost, Proof::None)]);
    assert!(took < AT_ONCE, "{took:?}");
    assert!(world.reason().contains("closed the connection"), "{}", world.reason());
    let late = world.wait_for(&mut *queue, 1, Duration::from_millis(200));
    assert!(late.is_empty(), "completed twice: {late:?}");
}

#[test]
fn a_back_end_that_talks_unasked_breaks_the_protocol() {
    let mut world = World::new("", Some((18, 1, Fault::Babble)));
    let mut queue = world.open();
    let region = region();
    let io = world.io(1, false, &region);
    world.submit(&mut *queue, io).unwrap();
    let (got, _) = world.wait(&mut *queue, 1);
    assert_eq!(got[0].1, Code::PathProtocol, "{got:?}");
}

#[test]
fn queues_are_numbered_again_and_stopped_before_they_start() {
    let world = World::new("", None);
    let (one, two) = (world.open(), world.open());
    assert!(matches!(world.disk.open_queue(QueueConfig { depth: 1 }), Err(OpenError::NoQueue { granted: 2, .. })));
    drop(one);
    let three = world.open();
    let vring = |words: Vec<u64>| words[0] as u32;
    assert_eq!((vring(world.next(NUM)), vring(world.next(NUM))), (0, 1));
    assert_eq!((vring(world.next(BASE)), vring(world.next(NUM))), (0, 0));
    drop((two, three));
    assert_eq!((vring(world.next(BASE)), vring(world.next(BASE))), (1, 0));
}

/// The ring of a queue that was dropped under its requests is not given to anybody before they have ended.
#[test]
fn a_dropped_queue_is_drained_or_the_back_end_is_given_up() {
    let mut world = World::new("io_timeout_ms=300", None);
    let mut queue = world.open();
    let region = region();
    let io = world.io(1, true, &region);
    world.submit(&mut *queue, io).unwrap();
    world.until_sent(&mut *queue);
    drop(queue);
    world.joined();
    assert!(world.seen.try_iter().all(|(request, _)| request != BASE), "it was stopped with a write in it");
    assert!(world.reason().contains("draining a dropped queue"), "{}", world.reason());
}

/// As long as nobody says that the back-end is faster.
#[test]
fn changes_may_land_for_a_while_after_our_end() {
    let bound = |options| World::new(options, None).disk.landing_bound();
    assert_eq!((bound(""), bound("fence_ms=1500")), (Duration::from_secs(30), Duration::from_millis(1500)));
    assert_eq!(bound("readonly=on"), Duration::ZERO);
}

#[test]
fn a_closed_device_lets_go_when_its_last_queue_does() {
    let mut world = World::new("", None);
    let queue = world.open();
    world.disk.close();
    assert_eq!(world.reason(), "closed");
    assert!(matches!(world.disk.open_queue(QueueConfig { depth: 1 }), Err(OpenError::Gone { .. })));
    world.next(18);
    drop(queue);
    assert_eq!(world.next(BASE)[0], 0, "it is stopped like any other");
    world.joined();
}

/// Passes messages on between front-end and `behind`, and keeps the bells on the way: it makes each of them a blocking one, as whoever was
/// given a descriptor may at any time, and fills those that the front-end rings.
fn meddle_with_bells(front: UnixStream, tell: mpsc::Sender<Seen>) -> std::io::Result<()> {
    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (mut ours, theirs) = UnixStream::pair()?;
    let answers = ours.try_clone()?;
    let mut to_front = front.try_clone()?;
    let back = std::thread::spawn(move || {
        let mut answers = answers;
        let _ = std::io::copy(&mut answers, &mut to_front);
    });
    let behind = std::thread::spawn(move || serve(theirs, None, &tell));
    let mut bells = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(&front, &mut [std::io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty())?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds {
                    fcntl_setfl(&fd, OFlags::RDWR)?;
                    // SET_VRING_KICK
                    if bytes[0] == 12 {
                        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes())?;
                    }
                    bells.push(fd);
                }
            }
        }
        if got.bytes == 0 {
            break;
        }
        ours.write_all(&bytes[..got.bytes])?;
    }
    ours.shutdown(std::net::Shutdown::Both)?;
    let _ = (back.join(), behind.join());
    Ok(())
}

/// Runs `turns` of a queue, whose reactor must come back.
fn is_not_held(turns: impl FnOnce(&mut World, &mut dyn IoQueue) + Send + 'static) {
    let (done, came_back) = mpsc::channel();
    std::thread::spawn(move || {
        let mut world = World::of("", meddle_with_bells);
        let mut queue = world.open();
        // SET_VRING_ENABLE: the ring is the queue's from here on.
        world.turn_until(&mut *queue, 18);
        turns(&mut world, &mut *queue);
        let _ = done.send(());
    });
    came_back.recv_timeout(SOON).expect("a reactor is held by the back-end's bell");
}

/// The back-end has the eventfd by which it is told of requests: its counter is full, and its flags say that a write waits.
#[test]
fn a_full_kick_that_was_made_blocking_holds_no_reactor() {
    is_not_held(|world, queue| {
        let region = region();
        let io = world.io(1, false, &region);
        world.submit(queue, io).unwrap();
        world.until_sent(queue);
    });
}

/// The back-end has the eventfd by which it calls, and its flags say that a read of nothing waits.
#[test]
fn an_empty_call_that_was_made_blocking_holds_no_reactor() {
    is_not_held(|world, queue| {
        let mut waits = Waits::default();
        for _ in 0..100 {
            let mut cx = Cx { now: world.rig.now(), segs: &mut world.segs, reactor: 0 };
            queue.poll(&mut cx, &mut world.done);
            waits.clear();
            queue.arm(&mut cx, &mut waits);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}
