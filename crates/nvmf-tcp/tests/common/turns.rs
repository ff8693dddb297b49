//! Turns in virtual time: one thread plays the reactors of an admin queue and of I/O queues, each turn exactly when a test says so.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of it")]

use super::script::{NQN, Script};
use polypath_block::{
    Code, Completion, Cx, Device, DeviceInfo, DeviceState, Done, Health, Host, Io, IoQueue, MakePoller, Poller, Proof,
    QueueConfig, SegRow, SegSpan, SegTable, Suspect, Time, Turn,
};
use polypath_memory::{Arena, Chunk};
use polypath_nvme::Sqe;
use polypath_nvme::nqn::Nqn;
use polypath_nvmf_tcp::{Controller, ControllerConfig, NvmeDevice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the script's words make of a keep-alive timeout of one second.
pub const FENCE: Proof = Proof::KeepAliveBound { kato_ms: 1000, multiple: 2, cqt_ms: 50 };
/// The same as a time.
pub const BOUND: Duration = Duration::from_millis(2050);

/// The reactor of everything here, as the driver sees it.
pub struct Reactor {
    clock: AtomicU64,
    spawned: Mutex<Vec<MakePoller>>,
}

impl Host for Reactor {
    fn spawn(&self, make: MakePoller) {
        self.spawned.lock().unwrap().push(make);
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> Time {
        Time::from_nanos(self.clock.load(Ordering::SeqCst))
    }
}

/// One I/O queue and what came of its requests, and when.
pub struct TestQueue {
    pub queue: Box<dyn IoQueue>,
    pub completions: Vec<(Completion, Time)>,
    pub suspects: Vec<(Suspect, Time)>,
}

/// A controller, its script, and the turns of both sides.
pub struct World {
    pub script: Script,
    pub controller: Arc<Controller>,
    pub device: Arc<NvmeDevice>,
    /// I/O queue 1 is the first one.
    pub queues: Vec<TestQueue>,
    pub now: Time,
    pub reactor: Arc<Reactor>,
    pub segs: SegTable,
    pub pollers: Vec<Box<dyn Poller>>,
    arena: Arena,
    held: Vec<(Chunk, SegRow)>,
}

/// Time limits that are far apart: a keep-alive timeout of 1 s, silence after 1 s, commands of 3 s, reconnect after 100 ms; queues of
/// four commands.
pub fn config(script: &Script) -> ControllerConfig {
    let ms = Duration::from_millis;
    ControllerConfig {
        ns: Some(1),
        keep_alive: ms(1000),
        silence_timeout: ms(1000),
        io_timeout: ms(3000),
        connect_timeout: ms(1000),
        reconnect_delay: ms(100),
        queue_depth: 4,
        dialer: Arc::new(script.clone()),
        ..ControllerConfig::new("127.0.0.1", 4420, Nqn::new(NQN).unwrap())
    }
}

impl World {
    /// A controller that was started, and nothing else.
    pub fn start(script: Script, config: ControllerConfig) -> World {
        let now = Time::from_millis(1_000_000);
        let reactor = Arc::new(Reactor { clock: AtomicU64::new(now.as_nanos()), spawned: Mutex::default() });
        let controller = Controller::start(config, reactor.clone());
        let device = controller.device();
        World {
            script,
            controller,
            device,
            queues: Vec::new(),
            now,
            reactor,
            segs: SegTable::new(1 << 16),
            pollers: Vec::new(),
            arena: Arena::new(32 << 20, false).unwrap(),
            held: Vec::new(),
        }
    }

    /// A controller that is up, and no queue.
    pub fn start_up() -> World {
        let script = Script::new();
        let config = config(&script);
        let mut world = World::start(script, config);
        world.run_until("a device that is live", 500, |w| w.is_live());
        world
    }

    /// A controller that is up, and one queue of at least `depth` requests that is ready.
    pub fn up(depth: u16) -> World {
        let script = Script::new();
        let config = config(&script);
        World::up_with(script, config, depth)
    }

    pub fn up_with(script: Script, config: ControllerConfig, depth: u16) -> World {
        let mut world = World::start(script, config);
        world.run_until("a device that is live", 500, |w| w.is_live());
        world.open_queue(depth);
        world
    }

    /// Opens one more queue and waits until it is ready.
    pub fn open_queue(&mut self, depth: u16) -> usize {
        let queue = self.device.open_queue(QueueConfig { depth }).unwrap();
        self.queues.push(TestQueue { queue, completions: Vec::new(), suspects: Vec::new() });
        let at = self.queues.len() - 1;
        self.run_until("a queue that is ready", 500, |w| w.queues[at].queue.health() == Health::Ready);
        at
    }

    pub fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        self.reactor.clock.store(self.now.as_nanos(), Ordering::SeqCst);
    }

    pub fn pass_ms(&mut self, ms: u64) {
        self.pass(Duration::from_millis(ms));
    }

    /// A turn of the admin queue.
    pub fn turn_admin(&mut self) {
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        let spawned: Vec<MakePoller> = self.reactor.spawned.lock().unwrap().drain(..).collect();
        self.pollers.extend(spawned.into_iter().map(|make| make(&mut cx)));
        self.pollers.retain_mut(|poller| poller.poll(&mut cx) != Turn::Finished);
    }

    /// A turn of the admin queue as soon as it looks at its socket again.
    pub fn let_admin_look(&mut self) {
        self.pass_ms(1);
        self.turn_admin();
    }

    /// A turn of one I/O queue.
    pub fn turn_queue(&mut self, at: usize) {
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        let mut done = Done::default();
        let q = &mut self.queues[at];
        q.queue.kick(&mut cx);
        q.queue.poll(&mut cx, &mut done);
        q.completions.extend(done.completions.into_iter().map(|c| (c, self.now)));
        q.suspects.extend(done.suspects.into_iter().map(|s| (s, self.now)));
    }

    /// A turn of everybody.
    pub fn turn(&mut self) {
        self.turn_admin();
        (0..self.queues.len()).for_each(|at| self.turn_queue(at));
    }

    /// A turn of everybody each millisecond.
    pub fn run_ms(&mut self, ms: u64) {
        self.run_in_steps(ms, &[1]);
    }

    /// A turn of everybody after each of `steps_ms`, over and over, for `ms` or a little longer: no step is cut.
    pub fn run_in_steps(&mut self, ms: u64, steps_ms: &[u64]) {
        let mut left = ms;
        for &step in steps_ms.iter().cycle() {
            if left == 0 {
                return;
            }
            self.pass_ms(step);
            left = left.saturating_sub(step);
            self.turn();
        }
    }

    /// Runs until something is true, for no longer than `limit_ms`; says how long it took.
    pub fn run_until(&mut self, what: &str, limit_ms: u64, mut is: impl FnMut(&World) -> bool) -> Duration {
        let start = self.now;
        while !is(self) {
            let waited = self.now.since(start);
            assert!(
                waited.as_millis() < limit_ms.into(),
                "{what}: not within {limit_ms} ms; {:?}",
                self.device.state()
            );
            self.run_ms(1);
        }
        self.now.since(start)
    }

    pub fn is_live(&self) -> bool {
        matches!(self.device.state(), DeviceState::Live(_))
    }

    pub fn info(&self) -> Arc<DeviceInfo> {
        let state = self.device.state();
        state.info().unwrap_or_else(|| panic!("the device must be live and is {state:?}")).clone()
    }

    /// Why the device is down.
    pub fn cause(&self) -> Code {
        match self.device.state() {
            DeviceState::Down { cause, .. } => cause,
            state => panic!("the device must be down and is {state:?}"),
        }
    }

    /// Memory in one piece, filled with `fill`.
    pub fn memory(&mut self, len: u32, fill: u8) -> SegSpan {
        let chunk = self.arena.chunk(len).expect("the arena is large enough");
        chunk.window().copy_in(0, &vec![fill; len as usize]).unwrap();
        let row = self.segs.reserve(1, 1).unwrap();
        let span = row.span(0, 1);
        self.segs.get_mut(span)[0] = chunk.segment();
        self.held.push((chunk, row));
        span
    }

    /// Hands a request to queue `at`, which must take it. Nothing leaves before its turn.
    pub fn submit(&mut self, at: usize, io: Io) {
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        self.queues[at].queue.submit(&mut cx, io).expect("a ready queue takes a request");
    }

    /// Hands a request to queue 0 and gives that a turn; the command that has come of it.
    pub fn send(&mut self, io: Io) -> Sqe {
        let before = self.script.seen(1).len();
        self.submit(0, io);
        self.turn_queue(0);
        let seen = self.script.seen(1);
        assert_eq!(seen.len(), before + 1, "one request, one command");
        *seen.last().unwrap()
    }

    /// Sends a request over queue 0 and has it answered with success, without time passing.
    pub fn round_trip(&mut self, io: Io) -> (Sqe, Completion) {
        let sqe = self.send(io);
        self.script.answer(1, sqe.cid(), polypath_nvme::StatusField::SUCCESS);
        self.turn_queue(0);
        (sqe, self.take_completion(0, io.tag))
    }

    pub fn completion(&self, at: usize, tag: u64) -> Option<(Completion, Time)> {
        self.queues[at].completions.iter().find(|(c, _)| c.tag == tag).copied()
    }

    /// What became of `tag`, which must have completed.
    pub fn take_completion(&mut self, at: usize, tag: u64) -> Completion {
        let list = &mut self.queues[at].completions;
        let found = list.iter().position(|(c, _)| c.tag == tag);
        list.remove(found.unwrap_or_else(|| panic!("{tag} must have completed"))).0
    }

    pub fn is_suspect(&self, at: usize, tag: u64) -> bool {
        self.queues[at].suspects.iter().any(|(s, _)| s.tag == tag)
    }

    /// `tag` is suspect since `lost` and open; it completes by its fence, `BOUND` after `closed` and no sooner.
    pub fn expect_fenced(&mut self, at: usize, tag: u64, closed: Time) {
        assert!(self.is_suspect(at, tag), "{tag} must be suspect: {:?}", self.queues[at].completions);
        assert_eq!(self.completion(at, tag), None, "{tag} waits for its fence");
        self.run_until("the fence", 2 * BOUND.as_millis() as u64, |w| w.completion(at, tag).is_some());
        let (completion, when) = self.completion(at, tag).unwrap();
        assert_eq!((completion.proof, completion.status.scope()), (FENCE, polypath_block::Scope::Path));
        assert!(when.since(closed) >= BOUND, "quiet only {:?} after the last socket was closed", when.since(closed));
        self.take_completion(at, tag);
    }
}
