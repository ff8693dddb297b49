//! A device whose every answer is up to the test, and an engine over it.

use super::{Beneath, Ended, Engine, Order};
use crate::mail::Address;
use crate::shared::lock;
use polypath_block::{
    Access, Armed, Code, Cx, Device, DeviceInfo, DeviceState, Done, Flags, Geometry, Health, Identity, Io, IoQueue,
    Limits, Op, OpenError, QueueConfig, Refused, RefusedWhy, SegTable, Status, Time, Waits,
};
use polypath_memory::Arena;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a device is, has and does.
pub(crate) struct Script {
    info: Mutex<Arc<DeviceInfo>>,
    version: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    data: Vec<u8>,
    /// Requests of these kinds stay where they are.
    held: Vec<Op>,
    /// What the next requests end with.
    codes: VecDeque<Code>,
    /// Requests that the queue holds at most.
    room: usize,
    waiting: Vec<Io>,
    /// All that came.
    seen: Vec<(Op, u64, u32, Flags)>,
}

const BLOCK: u32 = 512;

impl Script {
    pub(crate) fn new(blocks: u64, limits: Limits) -> Arc<Script> {
        let info = DeviceInfo {
            geometry: Geometry { block_size: BLOCK, blocks },
            limits,
            identity: Identity::default(),
            access: Access::Optimized,
            max_queues: 1,
            max_depth: 64,
        };
        let inner = Inner {
            data: vec![0; (blocks * u64::from(BLOCK)) as usize],
            held: Vec::new(),
            codes: VecDeque::new(),
            room: usize::MAX,
            waiting: Vec::new(),
            seen: Vec::new(),
        };
        let info = Mutex::new(Arc::new(info));
        Arc::new(Script { info, version: AtomicU64::new(1), inner: Mutex::new(inner) })
    }

    /// Changes what it tells of itself.
    pub(crate) fn change(&self, change: impl FnOnce(&mut DeviceInfo)) {
        change(Arc::make_mut(&mut *lock(&self.info)));
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn hold(&self, ops: &[Op]) {
        lock(&self.inner).held = ops.to_vec();
    }

    pub(crate) fn fail(&self, codes: &[Code]) {
        lock(&self.inner).codes.extend(codes);
    }

    pub(crate) fn room(&self, room: usize) {
        lock(&self.inner).room = room;
    }

    /// What came since the last call.
    pub(crate) fn seen(&self) -> Vec<(Op, u64, u32, Flags)> {
        std::mem::take(&mut lock(&self.inner).seen)
    }

    /// The first byte of a block.
    pub(crate) fn byte(&self, lba: u64) -> u8 {
        lock(&self.inner).data[(lba * u64::from(BLOCK)) as usize]
    }
}

/// The script as a device.
struct Scripted(Arc<Script>);

impl Device for Scripted {
    fn name(&self) -> &str {
        "script"
    }

    fn state(&self) -> DeviceState {
        DeviceState::Live(lock(&self.0.info).clone())
    }

    fn version(&self) -> u64 {
        self.0.version.load(Ordering::Relaxed)
    }

    fn open_queue(&self, _: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        Ok(Box::new(Queue { script: self.0.clone(), closed: false }))
    }

    fn close(&self) {}
}

struct Queue {
    script: Arc<Script>,
    closed: bool,
}

impl IoQueue for Queue {
    fn submit(&mut self, _: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let mut inner = lock(&self.script.inner);
        if self.closed || inner.waiting.len() >= inner.room {
            return Err(Refused { io, why: if self.closed { RefusedWhy::Gone } else { RefusedWhy::Full } });
        }
        inner.seen.push((io.op, io.lba, io.blocks, io.flags));
        inner.waiting.push(io);
        Ok(())
    }

    fn kick(&mut self, _: &mut Cx<'_>) {}

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let mut inner = lock(&self.script.inner);
        let held = inner.held.clone();
        let (stay, go): (Vec<Io>, Vec<Io>) = inner.waiting.drain(..).partition(|io| held.contains(&io.op));
        inner.waiting = stay;
        for io in go {
            let code = inner.codes.pop_front().unwrap_or(Code::Ok);
            let code = if code == Code::Ok { carry_out(&mut inner.data, cx, &io) } else { code };
            done.complete(io.tag, Status::new(code));
        }
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn close(&mut self, _: &mut Cx<'_>) {
        self.closed = true;
    }

    fn is_drained(&self) -> bool {
        self.closed && lock(&self.script.inner).waiting.is_empty()
    }
}

fn carry_out(data: &mut [u8], cx: &mut Cx<'_>, io: &Io) -> Code {
    let from = (io.lba * u64::from(BLOCK)) as usize;
    let blocks = &mut data[from..from + (io.blocks * BLOCK) as usize];
    let mut bytes = vec![0; if io.op.has_data() { blocks.len() } else { 0 }];
    polypath_memory::with(|table| {
        for segment in cx.segs.get(io.segs) {
            let view = table.view(*segment).expect("memory of the request");
            match io.op {
                Op::Read => {
                    view.copy_in(blocks);
                }
                _ => {
                    view.copy_out(&mut bytes);
                }
            }
        }
    });
    match io.op {
        Op::Write => blocks.copy_from_slice(&bytes),
        Op::WriteZeroes => blocks.fill(0),
        // Whatever it likes.
        Op::Discard => blocks.fill(0xdd),
        Op::Compare if *blocks != bytes[..] => return Code::Miscompare,
        _ => {}
    }
    Code::Ok
}

/// An engine over one device, and what it tells.
pub(crate) struct Rig {
    pub(crate) script: Arc<Script>,
    pub(crate) disk: Arc<Beneath>,
    pub(crate) engine: Engine,
    segs: SegTable,
    pub(crate) ended: Vec<Ended>,
    pub(crate) quiet: Vec<Address>,
}

impl Rig {
    pub(crate) fn new(limits: Limits) -> Rig {
        let script = Script::new(4096, limits);
        let info = lock(&script.info).clone();
        let disk = Beneath::new(0, Arc::new(Scripted(script.clone())), info, Duration::ZERO);
        let disk = Arc::new(disk);
        let arena = Arena::new(Engine::BYTES, false).expect("memory");
        let mut segs = SegTable::new(1024);
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut segs, reactor: 0 };
        let engine = Engine::open(&mut cx, std::slice::from_ref(&disk), &arena).expect("an engine");
        Rig { script, disk, engine, segs, ended: Vec::new(), quiet: Vec::new() }
    }

    /// Turns until nothing moves any more.
    pub(crate) fn pump(&mut self) {
        self.disk.follow();
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 };
        for _ in 0..10_000 {
            if !self.engine.pump(&mut cx, &mut self.ended, &mut self.quiet).moved {
                return;
            }
        }
        panic!("it never rests");
    }

    pub(crate) fn order(&mut self, conn: u64, order: Order) {
        self.engine.order(conn, order);
    }

    /// Tags and results of what is over since the last call.
    pub(crate) fn over(&mut self) -> Vec<(u32, Result<(), crate::media::MediumError>)> {
        self.ended.drain(..).map(|ended| (ended.tag, ended.result)).collect()
    }

    /// Ends it as a target does: everything has to come back.
    pub(crate) fn finish(mut self) {
        self.script.hold(&[]);
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut self.segs, reactor: 0 };
        self.engine.close(&mut cx);
        for _ in 0..100 {
            self.engine.pump(&mut cx, &mut self.ended, &mut self.quiet);
            if self.engine.is_drained(&mut cx) {
                return;
            }
        }
        panic!("something does not come back");
    }
}
