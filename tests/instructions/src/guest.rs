//! A requester: memory for [`DEPTH`] requests of 4 KiB, and virtual time.

use anyhow::{Context, Result, ensure};
use polypath_block::{Cx, Done, Health, Host, Io, IoQueue, MakePoller, Op, Poller, SegTable, Time, Turn};
use polypath_memory::{Arena, Chunk};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests outstanding.
pub(crate) const DEPTH: u16 = 32;
/// Bytes of a request.
const BYTES: u32 = 4096;
/// Blocks of a request, and of the part of the disk that is used.
const BLOCKS: u32 = BYTES / 512;
const USED_BLOCKS: u64 = 1 << 20;
/// When everything begins: late enough that "a while ago" does not underflow.
const START: Time = Time::from_millis(1000);
/// What a turn takes in virtual time.
const TURN: Duration = Duration::from_micros(10);
/// How long something may take that other threads have a part in, or that must come of itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Guest {
    pub(crate) segs: SegTable,
    pub(crate) done: Done,
    now: Time,
    ios: Vec<Io>,
    lba: u64,
    _memory: (Arena, Vec<Chunk>),
}

impl Guest {
    /// One that makes requests of kind `op`, which must be a read or a write.
    pub(crate) fn new(op: Op) -> Result<Guest> {
        let arena = Arena::new(u64::from(DEPTH) * u64::from(BYTES), false)?;
        let mut segs = SegTable::new(SegTable::DEFAULT_LIMIT);
        let rows = segs.reserve(DEPTH.into(), 1)?;
        let (mut chunks, mut ios) = (Vec::new(), Vec::new());
        for slot in 0..u32::from(DEPTH) {
            let chunk = arena.chunk(BYTES).context("the arena is large enough")?;
            let span = rows.span(slot, 1);
            segs.get_mut(span)[0] = chunk.segment();
            chunks.push(chunk);
            let make = if op == Op::Write { Io::write } else { Io::read };
            ios.push(make(slot.into(), 0, BLOCKS, span));
        }
        let done = Done::with_capacity(2 * usize::from(DEPTH));
        Ok(Guest { segs, done, now: START, ios, lba: 0, _memory: (arena, chunks) })
    }

    /// What a reactor would hand down.
    pub(crate) fn cx(&mut self) -> Cx<'_> {
        Cx { now: self.now, segs: &mut self.segs, reactor: 0 }
    }

    pub(crate) fn pass(&mut self) {
        self.now = self.now.after(TURN);
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// The next [`DEPTH`] requests are elsewhere on the disk.
    pub(crate) fn move_on(&mut self) {
        for io in &mut self.ios {
            self.lba = (self.lba + 104_729 * u64::from(BLOCKS)) % USED_BLOCKS;
            io.lba = self.lba;
        }
    }

    /// Submits all requests.
    pub(crate) fn submit(&mut self, queue: &mut dyn IoQueue) -> Result<()> {
        let Guest { segs, ios, now, .. } = self;
        queue.submit_all(&mut Cx { now: *now, segs, reactor: 0 }, ios).map_err(|rest| anyhow::anyhow!("{rest:?}"))
    }

    pub(crate) fn kick(&mut self, queue: &mut dyn IoQueue) {
        queue.kick(&mut self.cx());
    }

    /// Completions are in [`Guest::done`] then.
    pub(crate) fn poll(&mut self, queue: &mut dyn IoQueue) {
        let Guest { segs, done, now, .. } = self;
        queue.poll(&mut Cx { now: *now, segs, reactor: 0 }, done);
    }

    /// Takes what completed, which must have succeeded; how many that were.
    pub(crate) fn take_completions(&mut self) -> Result<u64> {
        let failed = self.done.completions.iter().find(|completion| !completion.status.is_ok());
        ensure!(failed.is_none() && self.done.suspects.is_empty(), "a request failed: {failed:?}");
        let count = self.done.completions.len() as u64;
        self.done.clear();
        Ok(count)
    }
}

/// Waits for `queue` to be ready: gives it a poll after each `turn`.
pub(crate) fn get_ready(guest: &mut Guest, queue: &mut dyn IoQueue, mut turn: impl FnMut(&mut Guest)) -> Result<()> {
    until("a queue that is ready", || {
        turn(guest);
        guest.poll(queue);
        guest.pass();
        Ok(queue.health() == Health::Ready)
    })
}

/// Tries again and again, for no longer than [`PATIENCE`].
pub(crate) fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is()? {
        ensure!(start.elapsed() < PATIENCE, "{what} did not come within {PATIENCE:?}");
        // What is waited for may be done by another thread.
        std::thread::yield_now();
    }
    Ok(())
}

/// A reactor that has the turns it is given.
pub(crate) struct Here(Mutex<Sender<MakePoller>>);

/// Its pollers.
pub(crate) struct Pollers {
    made: Receiver<MakePoller>,
    pub(crate) list: Vec<Box<dyn Poller>>,
}

impl Here {
    pub(crate) fn new() -> (Here, Pollers) {
        let (sender, made) = channel();
        (Here(Mutex::new(sender)), Pollers { made, list: Vec::new() })
    }
}

impl Host for Here {
    fn spawn(&self, make: MakePoller) {
        // Without a receiver the reactor has ended: `make` is dropped, as it is to be.
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).send(make));
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> Time {
        START
    }
}

impl Pollers {
    /// A turn: takes in what was spawned, and polls all of them, in memory as it is now.
    pub(crate) fn turn(&mut self, guest: &mut Guest) {
        polypath_memory::refresh();
        self.list.extend(self.made.try_iter().map(|make| make(&mut guest.cx())));
        self.list.retain_mut(|poller| poller.poll(&mut guest.cx()) != Turn::Finished);
    }
}
