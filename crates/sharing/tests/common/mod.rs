//! A device that grants few queues, and a worker that verifies what it reads.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of it")]

use polypath_block::{
    Armed, Code, Cx, Device, DeviceState, Done, Fate, FenceTerms, Health, Io, IoQueue, OpenError, Poller, Proof,
    QueueConfig, Refused, RefusedWhy, SegRow, Suspect, Time, Turn, Waits,
};
use polypath_memory::{Arena, Chunk, Window};
use polypath_reactor::{IdlePolicy, Reactor, ReactorConfig, ReactorHandle};
use polypath_sharing::SharedDevice;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the test tells a stingy device.
pub struct Orders {
    pub granted: AtomicU16,
    pub taken: Mutex<Vec<bool>>,
    /// Nothing can be submitted.
    pub down: AtomicBool,
    /// Requests stay where they are.
    pub hold: AtomicBool,
    /// What is held becomes suspect.
    pub lose: AtomicBool,
    /// What is suspect is quiet.
    pub quiet: AtomicBool,
    pub held: AtomicUsize,
    pub suspected: AtomicUsize,
    pub kicked: AtomicUsize,
    /// Its queues are not done with closing.
    pub lingers: AtomicBool,
}

pub struct Stingy {
    inner: Arc<dyn Device>,
    pub orders: Arc<Orders>,
}

impl Stingy {
    pub fn new(uri: &str, granted: u16) -> Arc<Stingy> {
        let inner = polypath_local::open(&uri.parse().unwrap()).unwrap();
        let no = || AtomicBool::new(false);
        let orders = Orders {
            granted: AtomicU16::new(granted),
            taken: Mutex::new(vec![false; 64]),
            down: no(),
            hold: no(),
            lose: no(),
            quiet: no(),
            held: AtomicUsize::new(0),
            suspected: AtomicUsize::new(0),
            kicked: AtomicUsize::new(0),
            lingers: no(),
        };
        Arc::new(Stingy { inner, orders: Arc::new(orders) })
    }
}

impl Device for Stingy {
    fn name(&self) -> &str {
        "stingy"
    }
    fn state(&self) -> DeviceState {
        self.inner.state()
    }
    fn version(&self) -> u64 {
        self.inner.version()
    }
    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let granted = self.orders.granted.load(Ordering::SeqCst);
        let mut taken = self.orders.taken.lock().unwrap();
        let free = taken.iter().take(granted.into()).position(|t| !t);
        let number = free.ok_or_else(|| OpenError::NoQueue { name: "stingy".into(), granted })?;
        taken[number] = true;
        let inner = self.inner.open_queue(config)?;
        Ok(Box::new(StingyQueue { inner, number, orders: self.orders.clone(), held: Vec::new(), lost: Vec::new() }))
    }
    fn close(&self) {
        self.inner.close();
    }
}

struct StingyQueue {
    inner: Box<dyn IoQueue>,
    number: usize,
    orders: Arc<Orders>,
    held: Vec<Io>,
    lost: Vec<Io>,
}

impl StingyQueue {
    fn is_down(&self) -> bool {
        self.orders.down.load(Ordering::SeqCst) || self.is_surplus()
    }
}

impl IoQueue for StingyQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        if self.is_down() {
            return Err(Refused { io, why: RefusedWhy::Gone });
        }
        if self.orders.hold.load(Ordering::SeqCst) {
            self.held.push(io);
            self.orders.held.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        self.inner.submit(cx, io)
    }
    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.orders.kicked.fetch_add(1, Ordering::SeqCst);
        self.inner.kick(cx);
    }
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.inner.poll(cx, done);
        if self.orders.lose.load(Ordering::SeqCst) {
            let fence = FenceTerms { proof: Proof::ConfiguredBound { bound_ms: 7 }, within: Duration::from_secs(1) };
            for io in self.held.drain(..) {
                done.suspects.push(Suspect { tag: io.tag, fate: Fate::Unknown, cause: Code::PathLost, fence });
                self.orders.suspected.fetch_add(1, Ordering::SeqCst);
                self.lost.push(io);
            }
        }
        if self.orders.quiet.load(Ordering::SeqCst) {
            for io in self.lost.drain(..) {
                done.complete_with(io.tag, Code::PathLost.into(), Proof::ConfiguredBound { bound_ms: 7 });
            }
        }
    }
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        waits.until(cx.now.after(Duration::from_millis(1)));
        self.inner.arm(cx, waits)
    }
    fn health(&self) -> Health {
        if self.is_down() { Health::Down } else { self.inner.health() }
    }
    fn close(&mut self, cx: &mut Cx<'_>) {
        self.inner.close(cx);
    }
    fn is_drained(&self) -> bool {
        let lingers = self.orders.lingers.load(Ordering::SeqCst);
        !lingers && self.inner.is_drained() && self.held.is_empty() && self.lost.is_empty()
    }
    fn is_surplus(&self) -> bool {
        self.number >= usize::from(self.orders.granted.load(Ordering::SeqCst))
    }
}

impl Drop for StingyQueue {
    fn drop(&mut self) {
        self.orders.taken.lock().unwrap()[self.number] = false;
    }
}

/// Reactors of their own, that sleep as soon as they may, so that a lost wake-up shows.
pub struct Reactors {
    pub handles: Vec<ReactorHandle>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Reactors {
    pub fn start(n: u16) -> Reactors {
        let config = |id| ReactorConfig { id: 10 + id, idle: IdlePolicy::Sleep, ..ReactorConfig::default() };
        let (handles, threads) = (0..n).map(|id| Reactor::start(config(id)).unwrap()).unzip();
        Reactors { handles, threads }
    }

    pub fn hosts(&self) -> Vec<Arc<dyn polypath_block::Host>> {
        self.handles.iter().map(|h| Arc::new(h.clone()) as Arc<dyn polypath_block::Host>).collect()
    }

    /// Waits until they have no pollers left, then ends them.
    pub fn end(self) {
        wait("reactors without pollers", || self.handles.iter().all(|h| h.statistics().pollers == 0));
        self.handles.iter().for_each(ReactorHandle::stop);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
    }
}

pub fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// What a worker did, and what it is told.
#[derive(Default)]
pub struct Told {
    pub verified: AtomicUsize,
    pub retried: AtomicUsize,
    pub suspects: AtomicUsize,
    pub stop: AtomicBool,
    pub ended: AtomicBool,
    pub ready: AtomicBool,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Write,
    Read,
}

struct Slot {
    step: Step,
    round: u8,
    pending: bool,
}

/// Writes and reads back its own blocks, `qd` at a time, a block each; sends again what a path lost.
pub struct Worker {
    queue: Box<dyn IoQueue>,
    first: u64,
    slots: Vec<Slot>,
    row: Option<SegRow>,
    memory: Vec<(Chunk, Window)>,
    done: Done,
    told: Arc<Told>,
    closing: bool,
    in_flight: usize,
    /// A block is read this often; then stop.
    pub pieces: u32,
}

impl Worker {
    /// On `handle`, over the blocks from `first` on.
    pub fn spawn(
        handle: &ReactorHandle,
        device: &Arc<SharedDevice>,
        arena: &Arena,
        first: u64,
        depth: u16,
        pieces: u32,
    ) -> Arc<Told> {
        let told = Arc::new(Told::default());
        let (device, arena, mine) = (device.clone(), arena.clone(), told.clone());
        polypath_block::Host::spawn(
            handle,
            Box::new(move |cx| Box::new(Worker::new(cx, &device, &arena, (first, depth, pieces), mine))),
        );
        told
    }

    fn new(
        cx: &mut Cx<'_>,
        device: &SharedDevice,
        arena: &Arena,
        (first, depth, pieces): (u64, u16, u32),
        told: Arc<Told>,
    ) -> Worker {
        let row = cx.segs.reserve(depth.into(), pieces).unwrap();
        let memory: Vec<_> = (0..depth)
            .map(|n| {
                let chunk = arena.chunk(4096).unwrap();
                let window = chunk.window();
                let step = 4096 / pieces;
                for (i, seg) in cx.segs.get_mut(row.span(n.into(), pieces)).iter_mut().enumerate() {
                    let at = i as u32 * step;
                    let whole = chunk.segment();
                    let len = if i as u32 + 1 == pieces { 4096 - at } else { step };
                    *seg = polypath_block::Segment { offset: whole.offset + u64::from(at), len, ..whole };
                }
                (chunk, window)
            })
            .collect();
        let slots = (0..depth).map(|_| Slot { step: Step::Write, round: 1, pending: false }).collect();
        let queue = device.open_queue(QueueConfig { depth }).expect("a share of a queue");
        Worker {
            queue,
            first,
            slots,
            row: Some(row),
            memory,
            done: Done::with_capacity(64),
            told,
            closing: false,
            in_flight: 0,
            pieces,
        }
    }

    fn start(&mut self, cx: &mut Cx<'_>) {
        if self.queue.health() == Health::Down || self.told.stop.load(Ordering::SeqCst) {
            return;
        }
        self.told.ready.store(true, Ordering::SeqCst);
        for (n, slot) in self.slots.iter_mut().enumerate() {
            if slot.pending {
                continue;
            }
            let (lba, span) = (self.first + n as u64, self.row.as_ref().unwrap().span(n as u32, self.pieces));
            let io = if slot.step == Step::Write {
                Io::write(n as u64, lba, 1, span)
            } else {
                Io::read(n as u64, lba, 1, span)
            };
            let byte = if slot.step == Step::Write { slot.round } else { !slot.round };
            self.memory[n].1.copy_in(0, &[byte; 4096]).unwrap();
            match self.queue.submit(cx, io) {
                Ok(()) => (slot.pending, self.in_flight) = (true, self.in_flight + 1),
                Err(_) => break,
            }
        }
    }

    fn finish(&mut self, tag: u64, status: polypath_block::Status) {
        let slot = &mut self.slots[tag as usize];
        assert!(std::mem::replace(&mut slot.pending, false), "{tag} completed twice");
        self.in_flight -= 1;
        if status.code == Code::PathLost {
            self.told.retried.fetch_add(1, Ordering::SeqCst);
            return;
        }
        assert!(status.is_ok(), "{status}");
        if slot.step == Step::Read {
            let mut bytes = [0; 4096];
            self.memory[tag as usize].1.copy_out(0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|&b| b == slot.round), "block {} holds something else", self.first + tag);
            slot.round = slot.round.wrapping_add(1);
            self.told.verified.fetch_add(1, Ordering::SeqCst);
        }
        slot.step = if slot.step == Step::Write { Step::Read } else { Step::Write };
    }
}

impl Poller for Worker {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.queue.poll(cx, &mut self.done);
        let mut done = std::mem::take(&mut self.done);
        let busy = !done.is_empty();
        self.told.suspects.fetch_add(done.suspects.len(), Ordering::SeqCst);
        for c in done.completions.drain(..) {
            self.finish(c.tag, c.status);
        }
        done.clear();
        self.done = done;
        if self.closing && self.queue.is_drained() {
            assert_eq!(self.in_flight, 0, "drained with requests that never completed");
            cx.segs.release(self.row.take().unwrap());
            self.told.ended.store(true, Ordering::SeqCst);
            return Turn::Finished;
        }
        if self.told.stop.load(Ordering::SeqCst) && !self.closing {
            self.closing = true;
            self.queue.close(cx);
            return Turn::Busy;
        }
        self.start(cx);
        self.queue.kick(cx);
        if busy { Turn::Busy } else { Turn::Idle }
    }
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.told.stop.load(Ordering::SeqCst) && (!self.closing || self.queue.is_drained()) {
            return Armed::Busy;
        }
        self.queue.arm(cx, waits)
    }
    fn name(&self) -> &str {
        "worker"
    }
}

/// Tells workers to stop and waits until all have.
pub fn stop(reactors: &Reactors, told: &[Arc<Told>]) {
    told.iter().for_each(|t| t.stop.store(true, Ordering::SeqCst));
    reactors.handles.iter().for_each(polypath_block::Host::wake);
    wait("workers that end", || told.iter().all(|t| t.ended.load(Ordering::SeqCst)));
}

/// Waits until each has verified `more` blocks more than now.
pub fn progress(what: &str, told: &[Arc<Told>], more: usize) {
    let before: Vec<_> = told.iter().map(|t| t.verified.load(Ordering::SeqCst)).collect();
    wait(what, || told.iter().zip(&before).all(|(t, b)| t.verified.load(Ordering::SeqCst) >= b + more));
}

pub fn now() -> Time {
    polypath_reactor::now()
}
