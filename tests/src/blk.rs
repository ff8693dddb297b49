//! Verified mixed I/O through the `blkio` crate, a native vhost-user-blk front-end that shares no code with ours.
//!
//! The disk is used in blocks of 4 KiB. Each block's content is a function of (seed, block, sequence number), so a read tells a stale
//! block, a block that belongs elsewhere and a torn block apart. Never two requests are in flight on one block, hence exactly one
//! content is right at any time. Whoever wants overlapping writes judged uses `polypath-bench`.
#![allow(unsafe_code, reason = "blkio hands out raw memory for the device to use")]
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

/// Bytes of one block of the check.
pub const BLOCK: usize = 4096;
const MOST_BLOCKS: usize = 16;

/// What the load does.
#[derive(Debug, Clone)]
pub struct BlkioOptions {
    /// The vhost-user-blk socket.
    pub socket: PathBuf,
    /// Seed of everything random; print it when a test fails (the report does).
    pub seed: u64,
    /// Requests in flight.
    pub queue_depth: usize,
    /// How much of the disk is used, in blocks of 4 KiB; at most its capacity.
    pub blocks: u64,
    /// Of 100 requests, how many read.
    pub reads_percent: u64,
    /// Requests between two FLUSH commands.
    pub flush_every: u64,
    /// How long no request may complete before the load gives up.
    pub stall_limit: Duration,
}

impl BlkioOptions {
    /// 70 reads of 100, 32 in flight over 64 MiB, a FLUSH every 500 requests, one minute of patience.
    #[must_use]
    pub fn new(socket: &Path, seed: u64) -> Self {
        BlkioOptions {
            socket: socket.to_owned(),
            seed,
            queue_depth: 32,
            blocks: 16384,
            reads_percent: 70,
            flush_every: 500,
            stall_limit: Duration::from_secs(60),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct BlkioReport {
    /// The seed it ran with.
    pub seed: u64,
    /// Requests completed, the final read-back included.
    pub ios: u64,
    /// Writes among them.
    pub writes: u64,
    /// FLUSH commands among them.
    pub flushes: u64,
    /// Write Zeroes commands among them (0 when the device does not offer them).
    pub zeroes: u64,
    /// Requests that came back with an error.
    pub errors: u64,
    /// Blocks that were not what had been written last.
    pub verify_errors: u64,
    /// Longest time with requests in flight and none completed, in milliseconds.
    pub longest_gap_ms: u64,
    /// The first few findings, in words.
    pub findings: Vec<String>,
}

impl BlkioReport {
    /// Fails unless everything went right and something was done.
    ///
    /// # Errors
    /// An I/O error, a verify error, or no write, read or flush at all.
    pub fn check(&self) -> Result<()> {
        ensure!(self.errors == 0 && self.verify_errors == 0, "blkio found trouble: {self:#?}");
        ensure!(
            self.writes > 0 && self.flushes > 0 && self.ios > self.writes,
            "blkio did too little to tell: {self:#?}"
        );
        Ok(())
    }
}

/// A load that runs on its own thread while the test makes trouble.
#[derive(Debug)]
pub struct BlkioLoad {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<BlkioReport>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    ios: u64,
    stop: bool,
    ended: bool,
}

impl BlkioLoad {
    /// Starts the load.
    #[must_use]
    pub fn start(options: BlkioOptions) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let result = run(&options, &theirs);
            lock(&theirs).ended = true;
            theirs.changed.notify_all();
            result
        });
        BlkioLoad { shared, thread: Some(thread) }
    }

    /// Waits until `more` further requests have completed.
    ///
    /// # Errors
    /// They did not within `limit`, or the load ended.
    pub fn wait_for_more(&self, more: u64, limit: Duration) -> Result<()> {
        let mut state = lock(&self.shared);
        let goal = state.ios + more;
        let deadline = Instant::now() + limit;
        while state.ios < goal {
            ensure!(!state.ended, "the blkio load ended after {} requests, {goal} were waited for", state.ios);
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the blkio load completed {} requests and not {goal} within {limit:?}", state.ios);
            state = self.shared.changed.wait_timeout(state, left).map_err(|_| anyhow!("the blkio load panicked"))?.0;
        }
        Ok(())
    }

    /// Stops the load, reads everything back and reports.
    ///
    /// # Errors
    /// The load could not be run, or stalled.
    pub fn stop(mut self) -> Result<BlkioReport> {
        lock(&self.shared).stop = true;
        let thread = self.thread.take().context("a load is stopped once")?;
        thread.join().map_err(|_| anyhow!("the blkio load panicked"))?
    }
}

impl Drop for BlkioLoad {
    fn drop(&mut self) {
        // not joined: a test that fails must not wait for the stall limit
        lock(&self.shared).stop = true;
    }
}

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Progress> {
    shared.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What one request is about.
#[derive(Debug, Clone, Copy)]
enum Op {
    Read { first: u64, blocks: usize },
    Write { first: u64, blocks: usize },
    Zero { first: u64, blocks: usize },
    Flush,
}

#[derive(Debug, Clone, Copy, Default)]
struct BlockState {
    sequence: u32,
    zeroed: bool,
    busy: bool,
}

struct Engine<'a> {
    options: &'a BlkioOptions,
    queue: Blkioq,
    region: MemoryRegion,
    blocks: Vec<BlockState>,
    slots: Vec<Option<Op>>,
    free: VecDeque<usize>,
    random: Random,
    report: BlkioReport,
    last_completion: Instant,
    zeroes_offered: bool,
    // after the queue, so that the memory lives as long as the device may use it
    _device: Blkio,
}

fn run(options: &BlkioOptions, shared: &Shared) -> Result<BlkioReport> {
    let mut engine =
        Engine::connect(options).with_context(|| format!("blkio cannot use {}", options.socket.display()))?;
    while !lock(shared).stop {
        while engine.issue() {}
        engine.reap()?;
        lock(shared).ios = engine.report.ios;
        shared.changed.notify_all();
    }
    engine.drain()?;
    engine.read_back()?;
    Ok(engine.report)
}

impl<'a> Engine<'a> {
    fn connect(options: &'a BlkioOptions) -> Result<Self> {
        let mut device = Blkio::new("virtio-blk-vhost-user").map_err(said)?;
        device.set_str("path", options.socket.to_str().context("a socket path is UTF-8")?).map_err(said)?;
        device.connect().map_err(said)?;
        let capacity = device.get_u64("capacity").map_err(said)?;
        ensure!(
            options.blocks * BLOCK as u64 <= capacity && options.blocks >= 2 * MOST_BLOCKS as u64,
            "{} blocks of 4 KiB do not suit a disk of {capacity} bytes",
            options.blocks
        );
        let zeroes_offered = device.get_u64("max-write-zeroes-len").map_err(said)? >= (MOST_BLOCKS * BLOCK) as u64;
        let started = device.start().map_err(said)?;
        let queue = started.queues.into_iter().next().context("blkio gave no queue")?;
        let region = device.alloc_mem_region(options.queue_depth * MOST_BLOCKS * BLOCK).map_err(said)?;
        device.map_mem_region(&region).map_err(said)?;
        Ok(Engine {
            options,
            queue,
            region,
            blocks: vec![BlockState::default(); usize::try_from(options.blocks)?],
            slots: vec![None; options.queue_depth],
            free: (0..options.queue_depth).collect(),
            random: Random(options.seed | 1),
            report: BlkioReport { seed: options.seed, ..BlkioReport::default() },
            last_completion: Instant::now(),
            zeroes_offered,
            _device: device,
        })
    }

    /// Issues one request; false when nothing more can be issued now.
    fn issue(&mut self) -> bool {
        let Some(slot) = self.free.pop_front() else { return false };
        // The first FLUSH does not wait for its draw: a short run must have one too.
        let due = self.report.flushes == 0 && self.report.ios >= 64;
        let op = if due || self.random.below(self.options.flush_every) == 0 { Some(Op::Flush) } else { self.choose() };
        let Some(op) = op else {
            self.free.push_front(slot);
            return false;
        };
        self.submit(slot, op);
        true
    }

    /// A request on blocks that nobody else uses at the moment.
    fn choose(&mut self) -> Option<Op> {
        for _ in 0..8 {
            let blocks = 1 + usize::try_from(self.random.below(MOST_BLOCKS as u64)).unwrap_or(0);
            // half of the requests are single blocks, as a random load's are
            let blocks = if self.random.below(2) == 0 { 1 } else { blocks };
            let first = self.random.below(self.options.blocks - blocks as u64 + 1);
            if self.states(first, blocks).iter().any(|state| state.busy) {
                continue;
            }
            let written = self.states(first, blocks).iter().all(|state| state.sequence > 0);
            let read = self.random.below(100) < self.options.reads_percent && written;
            let zero = self.zeroes_offered && self.random.below(50) == 0;
            return Some(match (read, zero) {
                (true, _) => Op::Read { first, blocks },
                (false, true) => Op::Zero { first, blocks },
                (false, false) => Op::Write { first, blocks },
            });
        }
        None
    }

    fn submit(&mut self, slot: usize, op: Op) {
        if self.free.len() + 1 == self.slots.len() {
            self.last_completion = Instant::now(); // nothing was in flight: the gap begins now
        }
        self.slots[slot] = Some(op);
        let buffer = self.region.addr + slot * MOST_BLOCKS * BLOCK;
        match op {
            Op::Flush => self.queue.flush(slot, ReqFlags::empty()),
            Op::Read { first, blocks } => {
                self.states(first, blocks).iter_mut().for_each(|state| state.busy = true);
                self.queue.read(first * BLOCK as u64, buffer as *mut u8, blocks * BLOCK, slot, ReqFlags::empty());
            }
            Op::Zero { first, blocks } => {
                self.mark(first, blocks, true);
                self.queue.write_zeroes(first * BLOCK as u64, (blocks * BLOCK) as u64, slot, ReqFlags::empty());
            }
            Op::Write { first, blocks } => {
                self.mark(first, blocks, false);
                for i in 0..blocks {
                    let content = content(self.options.seed, first + i as u64, self.blocks[first as usize + i]);
                    // SAFETY: the slot's part of the region is `MOST_BLOCKS * BLOCK` bytes long, i < blocks <= MOST_BLOCKS, and no
                    // request uses this slot, so nobody else touches the bytes.
                    unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), (buffer + i * BLOCK) as *mut u8, BLOCK) };
                }
                self.queue.write(first * BLOCK as u64, buffer as *const u8, blocks * BLOCK, slot, ReqFlags::empty());
            }
        }
    }

    /// Waits for at least one completion and judges all there are.
    fn reap(&mut self) -> Result<()> {
        let in_flight = self.slots.len() - self.free.len();
        if in_flight == 0 {
            return Ok(());
        }
        let mut completions: Vec<MaybeUninit<Completion>> = (0..in_flight).map(|_| MaybeUninit::uninit()).collect();
        let mut limit = self.options.stall_limit;
        let seed = self.options.seed;
        let done = self
            .queue
            .do_io(&mut completions, 1, Some(&mut limit), None)
            .map_err(said)
            .with_context(|| format!("{in_flight} requests in flight and none completed (seed {seed:#x})"))?;
        let gap = self.last_completion.elapsed();
        self.last_completion = Instant::now();
        self.report.longest_gap_ms = self.report.longest_gap_ms.max(u64::try_from(gap.as_millis())?);
        for completion in &completions[..done] {
            // SAFETY: do_io initialised the first `done` completions.
            let completion = unsafe { completion.assume_init_ref() };
            let (slot, status) = (completion.user_data, completion.ret);
            let op = self.slots.get_mut(slot).and_then(Option::take);
            let Some(op) = op else { bail!("request {slot} completed without being in flight (seed {seed:#x})") };
            self.judge(slot, op, status);
            self.free.push_back(slot);
        }
        Ok(())
    }

    fn judge(&mut self, slot: usize, op: Op, status: i32) {
        self.report.ios += 1;
        if status != 0 {
            self.report.errors += 1;
            self.find(format!("{op:?} ended with errno {}", -status));
        }
        match op {
            Op::Flush => self.report.flushes += 1,
            Op::Write { first, blocks } => {
                self.report.writes += 1;
                self.states(first, blocks).iter_mut().for_each(|state| state.busy = false);
            }
            Op::Zero { first, blocks } => {
                self.report.zeroes += 1;
                self.states(first, blocks).iter_mut().for_each(|state| state.busy = false);
            }
            Op::Read { first, blocks } => {
                self.states(first, blocks).iter_mut().for_each(|state| state.busy = false);
                for i in 0..blocks {
                    if status == 0 {
                        self.compare(slot, first, i);
                    }
                }
            }
        }
    }

    fn compare(&mut self, slot: usize, first: u64, i: usize) {
        let state = self.blocks[first as usize + i];
        let want = content(self.options.seed, first + i as u64, state);
        let mut have = [0_u8; BLOCK];
        let from = self.region.addr + (slot * MOST_BLOCKS + i) * BLOCK;
        // SAFETY: as in `submit`; the request has completed, and a device that still wrote here would be caught as a verify error.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, have.as_mut_ptr(), BLOCK) };
        if have != want {
            self.report.verify_errors += 1;
            let word = |at: usize| u64::from_le_bytes(have[at..at + 8].try_into().unwrap_or_default());
            let differing = have.iter().zip(&want).position(|(a, b)| a != b).unwrap_or(0);
            self.find(format!(
                "block {}: expected sequence {}{}, found block {} sequence {}, first difference at byte {differing}",
                first + i as u64,
                state.sequence,
                if state.zeroed { " (zeroes)" } else { "" },
                word(0) ^ self.options.seed,
                word(8),
            ));
        }
    }

    fn drain(&mut self) -> Result<()> {
        while self.free.len() < self.slots.len() {
            self.reap()?;
        }
        Ok(())
    }

    /// Reads every block that was ever written.
    fn read_back(&mut self) -> Result<()> {
        let mut first = 0;
        while first < self.options.blocks {
            if self.blocks[first as usize].sequence == 0 {
                first += 1;
                continue;
            }
            while self.free.is_empty() {
                self.reap()?;
            }
            let run =
                self.blocks[first as usize..].iter().take(MOST_BLOCKS).take_while(|state| state.sequence > 0).count();
            let Some(slot) = self.free.pop_front() else { continue };
            self.submit(slot, Op::Read { first, blocks: run });
            first += run as u64;
        }
        self.drain()
    }

    fn states(&mut self, first: u64, blocks: usize) -> &mut [BlockState] {
        &mut self.blocks[first as usize..first as usize + blocks]
    }

    fn mark(&mut self, first: u64, blocks: usize, zeroed: bool) {
        for state in self.states(first, blocks) {
            *state = BlockState { sequence: state.sequence + 1, zeroed, busy: true };
        }
    }

    fn find(&mut self, what: String) {
        if self.report.findings.len() < 10 {
            self.report.findings.push(what);
        }
    }
}

fn content(seed: u64, block: u64, state: BlockState) -> [u8; BLOCK] {
    let mut bytes = [0_u8; BLOCK];
    if state.zeroed {
        return bytes;
    }
    let mut random =
        Random((seed ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(state.sequence).rotate_left(40)) | 1);
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => block ^ seed,
            1 => u64::from(state.sequence),
            _ => random.next(),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// xorshift64*: fast, seeded, and good enough to tell blocks apart.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }
}

fn said(error: blkio::Error) -> anyhow::Error {
    anyhow!("{} ({})", error.message(), error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_differs_by_block_by_sequence_and_by_seed() {
        let state = |sequence| BlockState { sequence, zeroed: false, busy: false };
        let one = content(7, 1, state(1));
        assert_ne!(one[16..], content(7, 2, state(1))[16..]);
        assert_ne!(one[16..], content(7, 1, state(2))[16..]);
        assert_ne!(one[16..], content(9, 1, state(1))[16..]);
        assert_eq!(one, content(7, 1, state(1)));
    }
}
