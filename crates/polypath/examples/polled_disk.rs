//! A disk in a thread-per-core program: a queue on this thread's own reactor, no futures, no locks, no allocation per I/O.
//!
//! ```text
//! cargo run --release -p polypath --example polled_disk -- [URI]
//! ```
//! Reads 4 KiB at random with 32 in flight for two seconds. Without a URI it uses 64 MiB of memory.

use polypath::block::{Armed, Cx, Device, Done, Io, IoQueue, Poller, QueueConfig, SegRow, Turn, Waits};
use polypath::memory::{Arena, Chunk};
use polypath::reactor::{Reactor, ReactorConfig};
use polypath::{Stack, StackConfig, wait_live};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEPTH: u32 = 32;
const LEN: u32 = 4096;
const TIME: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri = std::env::args().nth(1).unwrap_or_else(|| "ram://64MiB".into());
    // The stack opens devices, and runs the admin queues of network ones on reactors of its own.
    let stack = Stack::start(StackConfig::default())?;
    let device = stack.open_device(&uri.parse()?)?;
    let info = wait_live(&*device, Duration::from_secs(10))?;
    let mut reactor = Reactor::new(&ReactorConfig { id: 1, ..ReactorConfig::default() })?;
    let (reads, finished) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let poller = RandomReads::new(&mut reactor, &device, info.geometry, reads.clone(), finished.clone())?;
    reactor.add(Box::new(poller));
    let start = Instant::now();
    if !reactor.run_until(TIME + Duration::from_secs(30), || finished.get()) {
        return Err(format!("{uri}: what was in flight did not complete").into());
    }
    let rate = reads.get() as f64 / start.elapsed().as_secs_f64();
    println!("{uri}: {} reads of {LEN} bytes, {rate:.0} a second", reads.get());
    device.close();
    Ok(())
}

struct RandomReads {
    queue: Box<dyn IoQueue>,
    row: Option<SegRow>,
    _memory: Chunk,
    done: Done,
    free: Vec<u32>,
    geometry: polypath::Geometry,
    random: u64,
    until: Instant,
    closed: bool,
    reads: Rc<Cell<u64>>,
    finished: Rc<Cell<bool>>,
}

impl RandomReads {
    fn new(
        reactor: &mut Reactor,
        device: &Arc<dyn Device>,
        geometry: polypath::Geometry,
        reads: Rc<Cell<u64>>,
        finished: Rc<Cell<bool>>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let memory = Arena::new((DEPTH * LEN).into(), true)?.chunk(DEPTH * LEN).ok_or("no buffer memory")?;
        // One row per request in flight, filled once: a request only names its row.
        let row = reactor.with_cx(|cx| {
            let row = cx.segs.reserve(DEPTH, 1)?;
            for n in 0..DEPTH {
                let mut segment = memory.segment();
                segment.offset += u64::from(n * LEN);
                segment.len = LEN;
                cx.segs.get_mut(row.span(n, 1))[0] = segment;
            }
            Ok::<_, polypath::block::SegTableFull>(row)
        })?;
        Ok(RandomReads {
            queue: device.open_queue(QueueConfig { depth: DEPTH as u16 })?,
            row: Some(row),
            _memory: memory,
            done: Done::with_capacity(DEPTH as usize),
            free: (0..DEPTH).collect(),
            geometry,
            random: 1,
            until: Instant::now() + TIME,
            closed: false,
            reads,
            finished,
        })
    }

    fn submit(&mut self, cx: &mut Cx<'_>) {
        let blocks = (LEN / self.geometry.block_size).max(1);
        let places = (self.geometry.blocks / u64::from(blocks)).max(1);
        while let (Some(&slot), Some(row)) = (self.free.last(), &self.row) {
            self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let lba = (self.random >> 16) % places * u64::from(blocks);
            if self.queue.submit(cx, Io::read(slot.into(), lba, blocks, row.span(slot, 1))).is_err() {
                break; // full, or still connecting: the next turn tries again
            }
            self.free.pop();
        }
        self.queue.kick(cx);
    }
}

impl Poller for RandomReads {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.queue.poll(cx, &mut self.done);
        let any = !self.done.is_empty();
        for completion in self.done.completions.drain(..) {
            if completion.status.is_ok() {
                self.reads.set(self.reads.get() + 1);
            } else {
                eprintln!("a read failed: {}", completion.status);
            }
            self.free.push(completion.tag as u32);
        }
        self.done.clear();
        if Instant::now() < self.until {
            self.submit(cx);
        } else if !self.closed {
            self.closed = true;
            self.queue.close(cx);
        } else if self.queue.is_drained() {
            if let Some(row) = self.row.take() {
                cx.segs.release(row);
            }
            self.finished.set(true);
            return Turn::Finished;
        }
        if any { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        waits.until(cx.now.after(Duration::from_millis(100)));
        self.queue.arm(cx, waits)
    }

    fn name(&self) -> &str {
        "random reads"
    }
}
