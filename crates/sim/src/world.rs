//! Virtual time, the target side of every path, guest memory.

use crate::disk::Disk;
use crate::path::{Late, PathOptions, SimPath};
use core::time::Duration;
use polypath_block::{Code, DeviceState, Io, Op, RegionId, SegSpan, SegTable, Segment, Status, Time};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The region that all guest memory of a world lies in.
pub const REGION: RegionId = RegionId(0x51);

/// A held write that landed late, as the target did it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LateLanding {
    /// Name of the path it was sent on.
    pub path: String,
    /// Its first block.
    pub lba: u64,
    /// How long after the initiator closed the connection.
    pub after: Duration,
    /// The bound that the target advertised.
    pub bound: Duration,
}

impl LateLanding {
    /// Did the target keep its own bound?
    pub fn conforms(&self) -> bool {
        self.after <= self.bound
    }
}

/// A world. Clones are the same world.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
}

pub(crate) struct State {
    pub(crate) now: Time,
    pub(crate) rng: Xoshiro256PlusPlus,
    pub(crate) disk: Disk,
    pub(crate) paths: Vec<Target>,
    pub(crate) conns: Vec<Conn>,
    memory: Vec<u8>,
    heap: BinaryHeap<Reverse<(Time, u64)>>,
    events: std::collections::HashMap<u64, Event>,
    next_event: u64,
    landings: Vec<LateLanding>,
}

/// The target's end of a path, and the faults it has.
pub(crate) struct Target {
    pub(crate) options: PathOptions,
    pub(crate) version: Arc<AtomicU64>,
    pub(crate) device: DeviceState,
    /// Grows when the association is lost: connections of older epochs are dead.
    pub(crate) epoch: u64,
    pub(crate) silent: bool,
    pub(crate) refusing: bool,
    pub(crate) lose: u32,
    pub(crate) busy: u32,
    pub(crate) fail_at_once: Option<Code>,
    pub(crate) extra_delay: Duration,
    pub(crate) reset: bool,
    pub(crate) cache: u16,
    pub(crate) closed: bool,
    pub(crate) unavailable: Option<String>,
}

/// A connection as the target has it.
pub(crate) struct Conn {
    pub(crate) path: usize,
    pub(crate) epoch: u64,
    pub(crate) closed_at: Option<Time>,
    pub(crate) inbox: VecDeque<(u64, Status)>,
    held: Vec<Command>,
}

#[derive(Clone, Debug)]
struct Command {
    conn: usize,
    wire: u64,
    io: Io,
    data: Vec<u8>,
    read_into: Vec<Segment>,
}

enum Event {
    Serve(Command),
    Land { command: Command, closed_at: Time },
    Reconnect(usize),
}

impl World {
    /// A world with one zeroed disk of `blocks` blocks of 512 bytes.
    pub fn new(seed: u64, blocks: u64) -> Self {
        World {
            state: Arc::new(Mutex::new(State {
                now: Time::from_millis(1),
                rng: Xoshiro256PlusPlus::seed_from_u64(seed),
                disk: Disk::new(blocks, 512),
                paths: Vec::new(),
                conns: Vec::new(),
                memory: Vec::new(),
                heap: BinaryHeap::new(),
                events: Default::default(),
                next_event: 0,
                landings: Vec::new(),
            })),
        }
    }

    /// A new path to the disk. Its device is live from the start unless the options say otherwise.
    pub fn path(&self, options: PathOptions) -> Arc<SimPath> {
        let mut s = self.lock();
        let at = s.paths.len();
        let name = options.name.clone();
        let cache = s.paths.iter().find(|p| p.options.cache_domain == options.cache_domain).map(|p| p.cache);
        let version = Arc::new(AtomicU64::new(1));
        s.paths.push(Target {
            cache: cache.unwrap_or(at as u16),
            device: DeviceState::Starting,
            version: version.clone(),
            epoch: 0,
            silent: false,
            refusing: options.starts_down,
            lose: 0,
            busy: 0,
            fail_at_once: None,
            extra_delay: Duration::ZERO,
            reset: false,
            closed: false,
            unavailable: None,
            options,
        });
        s.reconnect(at);
        drop(s);
        Arc::new(SimPath::new(self.clone(), at, name, version))
    }

    /// The time.
    pub fn now(&self) -> Time {
        self.lock().now
    }

    /// When something happens next on its own.
    pub fn next_event(&self) -> Option<Time> {
        self.lock().heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Lets time pass until `to`, with all that happens meanwhile.
    pub fn advance_to(&self, to: Time) {
        let mut s = self.lock();
        while let Some(&Reverse((at, id))) = s.heap.peek() {
            if at > to {
                break;
            }
            s.heap.pop();
            s.now = s.now.max(at);
            if let Some(event) = s.events.remove(&id) {
                s.happen(event);
            }
        }
        s.now = s.now.max(to);
    }

    /// Makes the disk larger; paths show it once [`SimPath::set_blocks`] says so.
    pub fn grow_medium(&self, blocks: u64) {
        self.lock().disk.grow(blocks);
    }

    /// Looks at the disk.
    pub fn with_disk<R>(&self, look: impl FnOnce(&mut Disk) -> R) -> R {
        look(&mut self.lock().disk)
    }

    /// Held writes that have landed so far.
    pub fn landings(&self) -> Vec<LateLanding> {
        self.lock().landings.clone()
    }

    /// `len` bytes of guest memory: their offset in [`REGION`].
    pub fn allocate(&self, len: usize) -> u64 {
        let mut s = self.lock();
        let at = s.memory.len();
        s.memory.resize(at + len, 0);
        at as u64
    }

    /// Writes guest memory.
    pub fn store(&self, offset: u64, data: &[u8]) {
        self.lock().memory[offset as usize..][..data.len()].copy_from_slice(data);
    }

    /// Reads guest memory.
    pub fn load(&self, offset: u64, len: usize) -> Vec<u8> {
        self.lock().memory[offset as usize..][..len].to_vec()
    }

    /// Writes `data` to the start of `span`.
    pub fn store_span(&self, segs: &SegTable, span: SegSpan, data: &[u8]) {
        let pieces: Vec<_> = segs.pieces(span, 0, data.len() as u64).collect();
        self.lock().scatter(&pieces, data);
    }

    /// Reads the first `len` bytes of `span`.
    pub fn load_span(&self, segs: &SegTable, span: SegSpan, len: usize) -> Vec<u8> {
        let pieces: Vec<_> = segs.pieces(span, 0, len as u64).collect();
        self.lock().gather(&pieces)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn gather(&self, pieces: &[Segment]) -> Vec<u8> {
        let mut out = Vec::new();
        for p in pieces {
            assert_eq!(p.region, REGION, "a segment outside guest memory");
            out.extend_from_slice(&self.memory[p.offset as usize..][..p.len as usize]);
        }
        out
    }

    fn scatter(&mut self, pieces: &[Segment], mut data: &[u8]) {
        for p in pieces {
            let (now, rest) = data.split_at(data.len().min(p.len as usize));
            self.memory[p.offset as usize..][..now.len()].copy_from_slice(now);
            data = rest;
        }
    }

    fn at(&mut self, when: Time, event: Event) {
        self.next_event += 1;
        self.heap.push(Reverse((when, self.next_event)));
        self.events.insert(self.next_event, event);
    }

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// The initiator opens a connection.
    pub(crate) fn connect(&mut self, path: usize) -> usize {
        let epoch = self.paths[path].epoch;
        self.conns.push(Conn { path, epoch, closed_at: None, inbox: VecDeque::with_capacity(256), held: Vec::new() });
        self.conns.len() - 1
    }

    /// The initiator sends a command.
    pub(crate) fn send(&mut self, conn: usize, wire: u64, io: Io, segs: &SegTable) {
        let bytes = io.data_len(self.disk.block_size());
        let pieces: Vec<_> = segs.pieces(io.segs, u64::from(io.skip), bytes).collect();
        let data = if io.op.data_out() { self.gather(&pieces) } else { Vec::new() };
        let read_into = if io.op.data_in() { pieces } else { Vec::new() };
        let target = &self.paths[self.conns[conn].path];
        let (least, most) = target.options.latency_us;
        let delay = Duration::from_micros(self.rng.random_range(least..=most)) + target.extra_delay;
        let when = self.now.after(delay);
        self.at(when, Event::Serve(Command { conn, wire, io, data, read_into }));
    }

    /// The initiator closes a connection abortively. What the target holds may land until its bound, or later if it lies.
    pub(crate) fn close_conn(&mut self, conn: usize) {
        let now = self.now;
        if self.conns[conn].closed_at.is_some() {
            return;
        }
        self.conns[conn].closed_at = Some(now);
        for command in core::mem::take(&mut self.conns[conn].held) {
            self.maybe_land(command, now);
        }
    }

    /// The association of a path is lost: dead to the initiator, tried again after a while.
    pub(crate) fn lose_path(&mut self, path: usize, cause: Code, reason: &str) {
        let target = &mut self.paths[path];
        target.epoch += 1;
        target.reset = false;
        if matches!(target.device, DeviceState::Live(_)) {
            target.device = DeviceState::Down { cause, reason: reason.to_owned() };
            target.version.fetch_add(1, Ordering::Release);
        }
        let when = self.now.after(Duration::from_millis(self.paths[path].options.reconnect_delay_ms));
        self.at(when, Event::Reconnect(path));
        for conn in 0..self.conns.len() {
            if self.conns[conn].path == path {
                self.close_conn(conn);
            }
        }
    }

    /// What is held on open connections of a path is carried out and answered after all.
    pub(crate) fn release_held(&mut self, path: usize) {
        let now = self.now;
        for conn in 0..self.conns.len() {
            if self.conns[conn].path == path {
                for command in core::mem::take(&mut self.conns[conn].held) {
                    self.at(now, Event::Serve(command));
                }
            }
        }
    }

    pub(crate) fn publish(&mut self, path: usize) {
        let target = &mut self.paths[path];
        if matches!(target.device, DeviceState::Live(_)) {
            target.device = DeviceState::Live(Arc::new(target.options.info()));
            target.version.fetch_add(1, Ordering::Release);
        }
    }

    fn reconnect(&mut self, path: usize) {
        let target = &mut self.paths[path];
        if target.closed || matches!(target.device, DeviceState::Live(_) | DeviceState::Gone { .. }) {
            return;
        }
        if target.silent || target.refusing {
            let when = self.now.after(Duration::from_millis(self.paths[path].options.reconnect_delay_ms));
            return self.at(when, Event::Reconnect(path));
        }
        target.device = DeviceState::Live(Arc::new(target.options.info()));
        target.version.fetch_add(1, Ordering::Release);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reconnect(path) => self.reconnect(path),
            Event::Serve(command) => self.serve(command),
            Event::Land { command, closed_at } => {
                let path = self.conns[command.conn].path;
                let options = &self.paths[path].options;
                self.landings.push(LateLanding {
                    path: options.name.clone(),
                    lba: command.io.lba,
                    after: self.now.since(closed_at),
                    bound: options.bound(),
                });
                self.carry_out(&command);
            }
        }
    }

    fn serve(&mut self, command: Command) {
        let conn = command.conn;
        let path = self.conns[conn].path;
        if let Some(closed_at) = self.conns[conn].closed_at {
            return self.maybe_land(command, closed_at);
        }
        let target = &mut self.paths[path];
        if target.silent || target.reset {
            // Some of it was carried out and only the answer is missing.
            if command.io.op.changes_medium() && self.chance(40) {
                self.carry_out(&command);
                return;
            }
            self.conns[conn].held.push(command);
            return;
        }
        if target.lose > 0 {
            target.lose -= 1;
            self.conns[conn].held.push(command);
            return;
        }
        if target.busy > 0 {
            target.busy -= 1;
            return self.answer(&command, Code::PathBusy.into());
        }
        if !target.options.access.usable() {
            return self.answer(&command, Code::PathNoAccess.into());
        }
        let status = self.carry_out(&command);
        self.answer(&command, status);
    }

    fn answer(&mut self, command: &Command, status: Status) {
        self.conns[command.conn].inbox.push_back((command.wire, status));
    }

    /// A command whose connection was closed: lost, or carried out late.
    fn maybe_land(&mut self, command: Command, closed_at: Time) {
        if !command.io.op.changes_medium() {
            return;
        }
        let options = &self.paths[self.conns[command.conn].path].options;
        let (bound, late) = (options.bound().as_nanos() as u64, options.late);
        let after = match late {
            Late::Never => return,
            Late::Sometimes(percent) => {
                if !self.chance(percent) {
                    return;
                }
                self.rng.random_range(0..=bound)
            }
            Late::JustInside => bound - 1_000_000.min(bound),
            Late::Beyond(span) => bound + span.as_nanos() as u64,
        };
        let when = closed_at.after(Duration::from_nanos(after)).max(self.now);
        self.at(when, Event::Land { command, closed_at });
    }

    fn carry_out(&mut self, command: &Command) -> Status {
        let io = &command.io;
        let target = &self.paths[self.conns[command.conn].path];
        if io.op.has_range() && io.lba + u64::from(io.blocks) > target.options.blocks {
            return Code::OutOfRange.into();
        }
        if target.options.other_disk {
            // Another disk behind the same address: it takes everything and none of it is ours.
            return if io.op == Op::Read { self.read_nonsense(command) } else { Status::OK };
        }
        let cache = target.options.write_cache.then_some(target.cache);
        match io.op {
            Op::Read => {
                let mut data = Vec::with_capacity(io.blocks as usize * 512);
                (0..u64::from(io.blocks)).for_each(|i| data.extend_from_slice(self.disk.block(io.lba + i)));
                self.scatter(&command.read_into, &data);
                Status::OK
            }
            Op::Compare => {
                let bs = self.disk.block_size() as usize;
                let same = (0..io.blocks as usize)
                    .all(|i| self.disk.block(io.lba + i as u64) == &command.data[i * bs..(i + 1) * bs]);
                if same { Status::OK } else { Code::Miscompare.into() }
            }
            _ => {
                self.disk.apply(io, &command.data, cache);
                Status::OK
            }
        }
    }

    fn read_nonsense(&mut self, command: &Command) -> Status {
        let bytes = command.io.data_len(self.disk.block_size()) as usize;
        self.scatter(&command.read_into, &vec![0xEE; bytes]);
        Status::OK
    }
}
