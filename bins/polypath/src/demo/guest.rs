//! The guest: keeps a queue full of verified reads and writes and notes what it sees.

use polypath::block::{
    Armed, Completion, Cx, Done, Io, IoQueue, Op, Poller, RefusedWhy, SegRow, Segment, Time, Turn, Waits,
};
use polypath::memory::{Chunk, Window};
use polypath_bench::verify::{Outcome, Ticket, Verifier};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What the guest has counted so far; read by the thread that shows it.
#[derive(Default)]
pub(super) struct GuestCounters {
    pub(super) stop: AtomicBool,
    pub(super) ended: AtomicBool,
    pub(super) ios: AtomicU64,
    pub(super) io_errors: AtomicU64,
    pub(super) verify_errors: AtomicU64,
    /// Longest gap in nanoseconds since it was last taken.
    gap_ns: AtomicU64,
    /// Greatest latency of a write in nanoseconds since it was last taken.
    write_ns: AtomicU64,
    pub(super) first_error: Mutex<Option<String>>,
}

impl GuestCounters {
    /// Longest gap and greatest latency of a write, in milliseconds, since the last call.
    pub(super) fn take(&self) -> (f64, f64) {
        let ms = |a: &AtomicU64| a.swap(0, Ordering::Relaxed) as f64 / 1e6;
        (ms(&self.gap_ns), ms(&self.write_ns))
    }

    fn note_error(&self, text: impl FnOnce() -> String) {
        let mut first = self.first_error.lock().unwrap_or_else(|p| p.into_inner());
        first.get_or_insert_with(text);
    }
}

/// What to do.
pub(super) struct Load {
    pub(super) qd: u32,
    /// Reads in a hundred requests.
    pub(super) read_percent: u32,
    pub(super) blocks_per_io: u32,
    pub(super) blocks: u64,
    pub(super) block_size: u32,
    pub(super) seed: u64,
}

struct InFlight {
    op: Op,
    ticket: Ticket,
    since: Time,
}

struct Slot {
    window: Window,
    _chunk: Chunk,
    flight: Option<InFlight>,
}

/// One queue's worth of load.
pub(super) struct Guest {
    queue: Box<dyn IoQueue>,
    done: Done,
    slots: Vec<Slot>,
    idle: Vec<u32>,
    row: SegRow,
    verifier: Verifier,
    load: Load,
    rng: Xoshiro256PlusPlus,
    seen: Arc<GuestCounters>,
    scratch: Vec<u8>,
    outstanding: u32,
    last: Time,
}

impl Guest {
    /// A guest with `load.qd` buffers, whose segments go to rows of the reactor that it is made on.
    pub(super) fn new(
        cx: &mut Cx<'_>,
        queue: Box<dyn IoQueue>,
        chunks: Vec<Chunk>,
        verifier: Verifier,
        load: Load,
        seen: Arc<GuestCounters>,
    ) -> anyhow::Result<Self> {
        let row = cx.segs.reserve(load.qd, 1)?;
        let mut slots = Vec::with_capacity(chunks.len());
        for (i, chunk) in chunks.into_iter().enumerate() {
            let segment: Segment = chunk.segment();
            cx.segs.get_mut(row.span(i as u32, 1)).copy_from_slice(&[segment]);
            slots.push(Slot { window: chunk.window(), _chunk: chunk, flight: None });
        }
        let scratch = vec![0; (load.blocks_per_io * load.block_size) as usize];
        Ok(Guest {
            queue,
            done: Done::with_capacity(load.qd as usize),
            idle: (0..load.qd).rev().collect(),
            slots,
            row,
            verifier,
            rng: Xoshiro256PlusPlus::seed_from_u64(load.seed),
            load,
            seen,
            scratch,
            outstanding: 0,
            last: Time::ZERO,
        })
    }

    fn submit(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut any = false;
        while !self.seen.stop.load(Ordering::Relaxed)
            && let Some(at) = self.idle.pop()
        {
            let blocks = self.load.blocks_per_io;
            let lba = self.rng.random_range(0..self.load.blocks / u64::from(blocks)) * u64::from(blocks);
            let span = self.row.span(at, 1);
            let read = self.rng.random_range(0..100) < self.load.read_percent;
            let ticket = if read {
                self.verifier.begin_read(lba, blocks)
            } else {
                let ticket = self.verifier.begin_write(lba, blocks, &mut self.scratch);
                self.slots[at as usize].window.copy_in(0, &self.scratch).expect("a buffer holds one request");
                ticket
            };
            let ticket = ticket.expect("the verifier was given room for every request in flight");
            let io =
                if read { Io::read(at.into(), lba, blocks, span) } else { Io::write(at.into(), lba, blocks, span) };
            if let Err(refused) = self.queue.submit(cx, io) {
                self.idle.push(at);
                match io.op {
                    Op::Read => self.verifier.abandon_read(ticket),
                    // Refused means not started: for the verifier that is a failure that may not have happened.
                    _ => self.verifier.end_write(ticket, Outcome::Failed),
                }
                if refused.why == RefusedWhy::Gone {
                    self.fail(|| "the device is gone".into());
                    self.seen.stop.store(true, Ordering::Relaxed);
                }
                break;
            }
            if self.outstanding == 0 {
                self.last = cx.now;
            }
            self.outstanding += 1;
            self.slots[at as usize].flight = Some(InFlight { op: io.op, ticket, since: cx.now });
            any = true;
        }
        any
    }

    fn finish(&mut self, now: Time, completion: Completion) {
        let at = completion.tag as usize;
        let Some(flight) = self.slots.get_mut(at).and_then(|s| s.flight.take()) else {
            self.fail(|| format!("a completion for a request that is not open: {completion:?}"));
            return;
        };
        self.idle.push(at as u32);
        self.outstanding -= 1;
        self.seen.ios.fetch_add(1, Ordering::Relaxed);
        let ok = completion.status.is_ok();
        if !ok {
            self.fail(|| format!("{:?} failed: {}", flight.op, completion.status));
        }
        match flight.op {
            Op::Read if ok => {
                self.slots[at].window.copy_out(0, &mut self.scratch).expect("a buffer holds one request");
                if let Err(errors) = self.verifier.end_read(flight.ticket, &self.scratch) {
                    self.seen.verify_errors.fetch_add(errors.len() as u64, Ordering::Relaxed);
                    self.seen.note_error(|| errors[0].to_string());
                }
            }
            Op::Read => self.verifier.abandon_read(flight.ticket),
            _ => {
                self.verifier.end_write(flight.ticket, if ok { Outcome::Acknowledged } else { Outcome::Failed });
                let latency = now.since(flight.since).as_nanos() as u64;
                self.seen.write_ns.fetch_max(latency, Ordering::Relaxed);
            }
        }
    }

    fn fail(&self, text: impl FnOnce() -> String) {
        self.seen.io_errors.fetch_add(1, Ordering::Relaxed);
        self.seen.note_error(text);
    }
}

impl Poller for Guest {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.queue.poll(cx, &mut self.done);
        let mut completions = std::mem::take(&mut self.done.completions);
        let mut busy = !completions.is_empty();
        if busy || self.outstanding > 0 {
            self.seen.gap_ns.fetch_max(cx.now.since(self.last).as_nanos() as u64, Ordering::Relaxed);
        }
        if busy {
            self.last = cx.now;
        }
        for completion in completions.drain(..) {
            self.finish(cx.now, completion);
        }
        self.done.completions = completions;
        self.done.clear();
        if self.submit(cx) {
            self.queue.kick(cx);
            busy = true;
        }
        if self.outstanding == 0 && self.seen.stop.load(Ordering::Relaxed) {
            self.queue.close(cx);
            if self.queue.is_drained() {
                self.seen.ended.store(true, Ordering::Release);
                return Turn::Finished;
            }
        }
        if busy { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.seen.stop.load(Ordering::Relaxed) && self.outstanding == 0 {
            return Armed::Busy;
        }
        self.queue.arm(cx, waits)
    }

    fn name(&self) -> &str {
        "demo guest"
    }
}
