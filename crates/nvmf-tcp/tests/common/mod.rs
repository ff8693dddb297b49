//! A target in this process, and a reactor of the least kind on the test's own thread.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of it")]

use polypath_block::{
    Armed, Code, Completion, Cx, Device, DeviceInfo, DeviceState, Done, Health, Host, Io, IoQueue, MakePoller, Poller,
    QueueConfig, SegRow, SegSpan, SegTable, Suspect, Time, Turn, Waits,
};
use polypath_memory::{Arena, Chunk};
use polypath_nvmf_tcp::NvmeDevice;
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const NQN: &str = "nqn.2024-01.org.example:tests";

/// Hands pollers to whoever turns.
#[derive(Default)]
pub struct Inline(Mutex<Vec<MakePoller>>);

impl Host for Inline {
    fn spawn(&self, make: MakePoller) {
        self.0.lock().unwrap().push(make);
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> Time {
        now()
    }
}

pub fn now() -> Time {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    Time::from_nanos(START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1_000_000_000)
}

/// One listener, one subsystem over `media`.
pub fn target_config(media: &[&str]) -> TargetConfig {
    TargetConfig {
        listeners: vec![ListenerConfig::new("127.0.0.1:0")],
        subsystems: vec![SubsystemConfig::new(NQN, media.iter().map(|m| NamespaceConfig::new(*m)).collect())],
        kas_ms: 100,
        cqt_ms: 50,
        ..TargetConfig::default()
    }
}

pub fn start(config: TargetConfig) -> TargetHandle {
    Target::start(config).expect("the target must start")
}

/// The test's reactor, with pollers but no queues.
pub struct World {
    pub host: Arc<Inline>,
    pollers: Vec<Box<dyn Poller>>,
    pub segs: SegTable,
    arena: Arena,
    held: Vec<(Chunk, SegRow)>,
}

impl World {
    pub fn new() -> World {
        World {
            host: Arc::default(),
            pollers: Vec::new(),
            segs: SegTable::new(1 << 20),
            arena: Arena::new(64 << 20, false).unwrap(),
            held: Vec::new(),
        }
    }

    pub fn open(&mut self, uri: &str) -> Arc<NvmeDevice> {
        polypath_nvmf_tcp::open(&uri.parse().unwrap(), self.host.clone()).unwrap()
    }

    pub fn uri(target: &TargetHandle, options: &str) -> String {
        format!("nvme-tcp://{}/{NQN}?{options}", target.addresses()[0])
    }

    pub fn turn(&mut self) {
        turn_pollers(&self.host, &mut self.pollers, &mut Cx { now: now(), segs: &mut self.segs, reactor: 0 });
    }

    /// Memory in one piece, filled with `fill`.
    pub fn memory(&mut self, len: u32, fill: u8) -> (SegSpan, polypath_memory::Window) {
        let chunk = self.arena.chunk(len).expect("the arena is large enough");
        let row = self.segs.reserve(1, 1).unwrap();
        let span = row.span(0, 1);
        self.segs.get_mut(span)[0] = chunk.segment();
        let window = chunk.window();
        window.copy_in(0, &vec![fill; len as usize]).unwrap();
        self.held.push((chunk, row));
        (span, window)
    }

    /// Turns until `until` gives something.
    pub fn wait<T>(&mut self, what: &str, mut until: impl FnMut(&mut World) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.turn();
            if let Some(value) = until(self) {
                return value;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
            std::thread::yield_now();
        }
    }
}

fn turn_pollers(host: &Inline, pollers: &mut Vec<Box<dyn Poller>>, cx: &mut Cx<'_>) {
    for make in host.0.lock().unwrap().drain(..) {
        pollers.push(make(cx));
    }
    pollers.retain_mut(|p| p.poll(cx) != Turn::Finished);
}

/// A world with one device and one queue.
pub struct Rig {
    pub world: World,
    pub device: Arc<NvmeDevice>,
    pub queue: Box<dyn IoQueue>,
    pub done: Done,
    pub completions: Vec<(Completion, Time)>,
    pub suspects: Vec<(Suspect, Time)>,
}

impl Rig {
    pub fn new(uri: &str, depth: u16) -> Rig {
        let mut rig = Rig::unready(uri, depth);
        rig.wait_ready();
        rig
    }

    pub fn unready(uri: &str, depth: u16) -> Rig {
        let mut world = World::new();
        let device = world.open(uri);
        let queue = device.open_queue(QueueConfig { depth }).unwrap();
        Rig { world, device, queue, done: Done::default(), completions: Vec::new(), suspects: Vec::new() }
    }

    pub fn turn(&mut self) {
        self.world.turn();
        let at = now();
        let mut cx = Cx { now: at, segs: &mut self.world.segs, reactor: 0 };
        self.queue.kick(&mut cx);
        self.queue.poll(&mut cx, &mut self.done);
        self.completions.extend(self.done.completions.drain(..).map(|c| (c, at)));
        self.suspects.extend(self.done.suspects.drain(..).map(|s| (s, at)));
    }

    pub fn wait<T>(&mut self, what: &str, mut until: impl FnMut(&mut Rig) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.turn();
            if let Some(value) = until(self) {
                return value;
            }
            let state = self.device.state();
            assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}; device is {state:?}");
            std::thread::yield_now();
        }
    }

    pub fn wait_ready(&mut self) {
        self.wait("a ready queue", |rig| {
            (rig.queue.health() == Health::Ready && rig.device.state().info().is_some()).then_some(())
        });
    }

    pub fn wait_down(&mut self) -> (Code, String) {
        self.wait("a device that is down", |rig| match rig.device.state() {
            DeviceState::Down { cause, reason } => Some((cause, reason)),
            _ => None,
        })
    }

    pub fn info(&self) -> Arc<DeviceInfo> {
        self.device.state().info().expect("the device must be live").clone()
    }

    pub fn submit(&mut self, io: Io) {
        let mut cx = Cx { now: now(), segs: &mut self.world.segs, reactor: 0 };
        self.queue.submit(&mut cx, io).expect("a ready queue takes a request");
    }

    /// Runs one request to its end.
    pub fn run(&mut self, io: Io) -> Completion {
        self.submit(io);
        self.wait_completion(io.tag)
    }

    pub fn wait_completion(&mut self, tag: u64) -> Completion {
        self.wait("a completion", |rig| {
            let at = rig.completions.iter().position(|(c, _)| c.tag == tag)?;
            Some(rig.completions.remove(at).0)
        })
    }

    /// Closes the queue and sees it drained.
    pub fn close(mut self) {
        let mut cx = Cx { now: now(), segs: &mut self.world.segs, reactor: 0 };
        self.queue.close(&mut cx);
        self.wait("a drained queue", |rig| rig.queue.is_drained().then_some(()));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut cx = Cx { now: now(), segs: &mut self.world.segs, reactor: 0 };
        self.queue.close(&mut cx);
        let start = Instant::now();
        while !self.queue.is_drained() && start.elapsed() < Duration::from_secs(30) {
            self.turn();
        }
    }
}

/// For the conformance suite.
pub struct ContractRig {
    pub host: Arc<Inline>,
    pub pollers: Vec<Box<dyn Poller>>,
    pub device: Arc<NvmeDevice>,
    pub arena: Arena,
    pub chunks: Vec<Chunk>,
    pub rows: Vec<SegRow>,
    pub data: bool,
}

impl ContractRig {
    pub fn new(uri: &str, data: bool) -> ContractRig {
        let host: Arc<Inline> = Arc::default();
        let device = polypath_nvmf_tcp::open(&uri.parse().unwrap(), host.clone()).unwrap();
        let arena = Arena::new(256 << 20, false).unwrap();
        ContractRig { host, pollers: Vec::new(), device, arena, chunks: Vec::new(), rows: Vec::new(), data }
    }
}

impl polypath_block::contract::Rig for ContractRig {
    fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    fn now(&mut self) -> Time {
        now()
    }

    fn pass(&mut self, cx: &mut Cx<'_>, waits: Option<&Waits>) {
        turn_pollers(&self.host, &mut self.pollers, cx);
        let Some(waits) = waits else { return };
        sleep(waits);
    }

    fn memory(&mut self, segs: &mut SegTable, len: u32, pieces: u32) -> SegSpan {
        let row = segs.reserve(1, pieces).unwrap();
        let span = row.span(0, pieces);
        let mut left = len;
        for (i, seg) in (1..).zip(segs.get_mut(span)) {
            let len = if i == pieces { left } else { (len / pieces / 7 * i).max(1) };
            left -= len;
            let chunk = self.arena.chunk(len.max(1)).expect("the arena is large enough");
            *seg = polypath_block::Segment { len, ..chunk.segment() };
            self.chunks.push(chunk);
        }
        self.rows.push(row);
        span
    }

    fn fill(&mut self, segs: &SegTable, span: SegSpan, data: &[u8]) {
        let mut rest = data;
        polypath_memory::with(|t| {
            for piece in segs.pieces(span, 0, data.len() as u64) {
                rest = &rest[t.view(piece).unwrap().copy_in(rest)..];
            }
        });
    }

    fn bytes(&mut self, segs: &SegTable, span: SegSpan, len: usize) -> Vec<u8> {
        let (mut out, mut at) = (vec![0; len], 0);
        polypath_memory::with(|t| {
            for piece in segs.pieces(span, 0, len as u64) {
                at += t.view(piece).unwrap().copy_out(&mut out[at..]);
            }
        });
        out
    }

    fn keeps_data(&self) -> bool {
        self.data
    }
}

/// Sleeps as a reactor would.
pub fn sleep(waits: &Waits) {
    let limit = waits.deadline.map_or(Duration::from_secs(20), |d| d.since(now()));
    let mut fds: Vec<PollFd<'_>> = waits
        .interests
        .iter()
        .map(|i| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, i.read);
            flags.set(PollFlags::OUT, i.write);
            // SAFETY: the queue that named the descriptor keeps it open; it is not turned meanwhile.
            PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(i.fd) }, flags)
        })
        .collect();
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let woken = poll(&mut fds, Some(&limit)).unwrap();
    assert!(woken > 0 || waits.deadline.is_some(), "slept for 20 s without a wake-up");
}

pub fn arm(queue: &mut dyn IoQueue, segs: &mut SegTable) -> (Armed, Waits) {
    let mut waits = Waits::default();
    let armed = queue.arm(&mut Cx { now: now(), segs, reactor: 0 }, &mut waits);
    (armed, waits)
}
