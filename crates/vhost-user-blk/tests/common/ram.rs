//! A disk in memory for tests: keeps bytes, completes late and out of order, refuses now and then, remembers what it was asked.

use polypath_block::{
    Access, Armed, Code, Cx, Device, DeviceInfo, DeviceState, Done, Flags, Geometry, Health, Identity, Io, IoQueue,
    Limits, Op, OpenError, QueueConfig, Refused, RefusedWhy, Status, Waits,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A small generator; the same numbers for the same seed.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What the disk does, changeable while it runs.
pub struct State {
    pub bytes: Vec<u8>,
    pub info: DeviceInfo,
    pub live: bool,
    /// For good.
    pub gone: bool,
    /// Completes nothing.
    pub hold: bool,
    /// Refuses everything with `Gone`.
    pub down: bool,
    /// Refuses one in so many with `Full`; zero: never.
    pub refuse: u64,
    /// Takes so many more, then refuses with `Full`.
    pub room: usize,
    /// Fails one in so many; zero: never.
    pub fail: u64,
    /// How flushes fail.
    pub fail_flush: Option<Code>,
    /// Says of each request twice that it is done.
    pub twice: bool,
    /// Polls a request may take at most.
    pub delay: u64,
    /// Requests accepted, in order, if `record`.
    pub log: Vec<(Op, Flags, u64, u32)>,
    pub record: bool,
    pub rng: Rng,
    pub open_queues: usize,
    /// Queues that are closed have something to do before they are drained.
    pub closes_slowly: bool,
    /// How often something was lost; no queue tells anybody.
    pub losses: u64,
}

pub struct RamDevice {
    pub state: Mutex<State>,
    version: AtomicU64,
    myself: std::sync::Weak<RamDevice>,
}

impl RamDevice {
    pub fn new(block_size: u32, blocks: u64, limits: Limits) -> Arc<RamDevice> {
        let info = DeviceInfo {
            geometry: Geometry { block_size, blocks },
            limits,
            identity: Identity::default(),
            access: Access::Optimized,
            max_queues: 64,
            max_depth: 1024,
        };
        Arc::new_cyclic(|myself| RamDevice {
            state: Mutex::new(State {
                bytes: vec![0; (blocks * u64::from(block_size)) as usize],
                info,
                live: true,
                gone: false,
                hold: false,
                down: false,
                refuse: 0,
                room: usize::MAX,
                fail: 0,
                fail_flush: None,
                twice: false,
                delay: 0,
                log: Vec::new(),
                record: false,
                rng: Rng(1),
                open_queues: 0,
                closes_slowly: false,
                losses: 0,
            }),
            version: AtomicU64::new(1),
            myself: myself.clone(),
        })
    }

    /// Changes it and lets everybody know.
    pub fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock().unwrap());
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    pub fn log(&self) -> Vec<(Op, Flags, u64, u32)> {
        self.state.lock().unwrap().log.clone()
    }
}

impl Device for RamDevice {
    fn name(&self) -> &str {
        "test-ram"
    }

    fn state(&self) -> DeviceState {
        let state = self.state.lock().unwrap();
        if state.gone {
            return DeviceState::Gone { reason: "taken away".into() };
        }
        if state.live { DeviceState::Live(Arc::new(state.info.clone())) } else { DeviceState::Starting }
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        self.state.lock().unwrap().open_queues += 1;
        let depth = usize::from(config.depth);
        Ok(Box::new(RamQueue {
            device: self.myself.upgrade().unwrap(),
            waiting: VecDeque::with_capacity(depth),
            depth,
            closed: false,
            told: self.losses(),
        }))
    }

    fn losses(&self) -> u64 {
        self.state.lock().unwrap().losses
    }

    fn close(&self) {}
}

struct RamQueue {
    device: Arc<RamDevice>,
    waiting: VecDeque<(u64, Io)>,
    depth: usize,
    closed: bool,
    told: u64,
}

impl IoQueue for RamQueue {
    fn submit(&mut self, _cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let mut state = self.device.state.lock().unwrap();
        if self.closed || state.down {
            return Err(Refused { io, why: RefusedWhy::Gone });
        }
        let refuse = state.refuse;
        if self.waiting.len() >= self.depth || state.room == 0 || (refuse > 0 && state.rng.one_in(refuse)) {
            return Err(Refused { io, why: RefusedWhy::Full });
        }
        state.room -= 1;
        if state.record {
            state.log.push((io.op, io.flags, io.lba, io.blocks));
        }
        let delay = state.delay;
        let turns = if delay == 0 { 0 } else { state.rng.below(delay + 1) };
        self.waiting.push_back((turns, io));
        Ok(())
    }

    fn kick(&mut self, _cx: &mut Cx<'_>) {}

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let device = self.device.clone();
        let mut state = device.state.lock().unwrap();
        if state.hold {
            return;
        }
        for _ in 0..self.waiting.len() {
            let Some((turns, io)) = self.waiting.pop_front() else { break };
            if turns > 0 {
                self.waiting.push_back((turns - 1, io));
                continue;
            }
            let status = state.carry_out(cx, &io);
            done.complete(io.tag, status);
            if state.twice {
                done.complete(io.tag, status);
            }
        }
    }

    fn arm(&mut self, _cx: &mut Cx<'_>, _waits: &mut Waits) -> Armed {
        let hold = self.device.state.lock().unwrap().hold;
        if self.waiting.is_empty() || hold { Armed::Sleep } else { Armed::Busy }
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn close(&mut self, _cx: &mut Cx<'_>) {
        self.closed = true;
    }

    fn owes(&self) -> bool {
        self.device.losses() > self.told
    }

    fn is_drained(&self) -> bool {
        !self.device.state.lock().unwrap().closes_slowly && self.closed && self.waiting.is_empty()
    }
}

impl Drop for RamQueue {
    fn drop(&mut self) {
        self.device.state.lock().unwrap().open_queues -= 1;
    }
}

impl State {
    fn carry_out(&mut self, cx: &Cx<'_>, io: &Io) -> Status {
        let Geometry { block_size, blocks } = self.info.geometry;
        if let Err(status) = self.info.limits.check(io, blocks, block_size, cx.segs) {
            return status;
        }
        if self.fail > 0 && self.rng.one_in(self.fail) {
            return Code::Medium.into();
        }
        let start = io.lba as usize * block_size as usize;
        let len = io.blocks as usize * block_size as usize;
        match io.op {
            Op::Flush => return self.fail_flush.map_or(Status::OK, Status::from),
            Op::WriteZeroes => self.bytes[start..start + len].fill(0),
            // What a discarded range reads as is the device's choice; this one makes it visible.
            Op::Discard => self.bytes[start..start + len].fill(0xdc),
            Op::Read | Op::Write | Op::Compare | Op::CompareAndWrite => {}
        }
        let mut at = start;
        for seg in cx.segs.pieces(io.segs, io.skip.into(), if io.op.has_data() { len as u64 } else { 0 }) {
            let n = seg.len as usize;
            let ok = polypath_memory::with(|table| match table.view(seg) {
                Ok(view) if io.op == Op::Read => view.copy_in(&self.bytes[at..at + n]) == n,
                Ok(view) => view.copy_out(&mut self.bytes[at..at + n]) == n,
                Err(_) => false,
            });
            if !ok {
                return Code::BadMemory.into();
            }
            at += n;
        }
        Status::OK
    }
}
