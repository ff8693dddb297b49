//! One job: keeps a queue full, measures, verifies. A poller on a reactor.

use crate::cpu;
use crate::gap::{Gap, SharedGap};
use crate::latency::DirectedLatencies;
use crate::slices::Slices;
use crate::verify::{Outcome, Statistics, Ticket, Verifier, VerifyError};
use crate::workload::{Request, Workload};
use polypath_block::{
    Armed, Code, Cx, Device, Done, Flags, Health, Io, IoQueue, Op, OpenError, Poller, QueueConfig, RefusedWhy, Rest,
    Scope, SegRow, Status, Time, Turn, Waits,
};
use polypath_memory::Chunk;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Messages kept of each kind of error; the rest is only counted.
const SAMPLES: usize = 8;

/// What jobs and the thread that started them tell each other.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Jobs whose queue takes requests.
    pub(super) ready: AtomicU32,
    /// When measuring begins, in nanoseconds of the reactors' clock; zero: not yet known. The ramp is before it.
    pub(super) begin: AtomicU64,
    /// When it ends. It may come nearer, see [`Control::stop`].
    pub(super) end: AtomicU64,
    /// The run was asked to end early: nothing is swept any more.
    pub(super) stopped: AtomicBool,
    /// Requests that are still outstanding are waited for no longer.
    pub(super) given_up: AtomicBool,
    /// Requests may be made.
    pub(super) go: AtomicBool,
    /// Gaps of all jobs together.
    pub(super) gap: SharedGap,
}

impl Control {
    /// Ends measuring at `time`, if it had not ended by then.
    pub(super) fn stop(&self, time: Time) {
        self.stopped.store(true, Relaxed);
        self.end.fetch_min(time.as_nanos(), Relaxed);
    }

    /// When measuring ends or ended, as of now.
    pub(super) fn end(&self) -> Time {
        Time::from_nanos(self.end.load(Relaxed))
    }

    /// Has the jobs tell what they did without those requests that have not come back.
    pub(super) fn give_up(&self) {
        self.stopped.store(true, Relaxed);
        self.given_up.store(true, Relaxed);
    }
}

/// What a job is to do.
pub(super) struct JobSpec {
    pub(super) name: String,
    pub(super) device: Arc<dyn Device>,
    pub(super) qd: u16,
    pub(super) block_size: u32,
    pub(super) io_blocks: u32,
    pub(super) workload: Workload,
    pub(super) verifier: Option<Verifier>,
    /// Read all that is known once more at the end.
    pub(super) sweep: bool,
    /// One for each request that may be outstanding.
    pub(super) buffers: Vec<Chunk>,
    /// Measures the CPU time of the reactor (one job of each does).
    pub(super) counts_cpu: bool,
    /// Requests completed so far, for the progress line.
    pub(super) progress: Arc<AtomicU64>,
    pub(super) control: Arc<Control>,
    /// Several jobs: note gaps together.
    pub(super) shares_gap: bool,
}

/// What a job did.
#[derive(Debug, Default)]
pub(super) struct JobResult {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) errors: u64,
    pub(super) error_samples: Vec<String>,
    /// Errors by their meaning, as [`Code::ALL`] lists them.
    pub(super) error_codes: [u64; Code::ALL.len()],
    /// Requests that had not come back when they were given up.
    pub(super) unanswered: u64,
    pub(super) latencies: DirectedLatencies,
    pub(super) slices: Slices,
    pub(super) longest_gap: Duration,
    pub(super) cpu: Option<Duration>,
    /// Time that others had the core of its reactor.
    pub(super) taken: Option<Duration>,
    pub(super) suspects: u64,
    pub(super) verified: Option<Statistics>,
    pub(super) verify_samples: Vec<VerifyError>,
    pub(super) swept: u64,
    /// Known blocks were left unread, since the run was asked to end.
    pub(super) sweep_cut: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Connecting,
    Running,
    Draining,
    Sweeping,
    Closing,
}

#[derive(Debug, Default)]
struct Slot {
    started: Time,
    read: bool,
    lba: u64,
    blocks: u32,
    ticket: Option<Ticket>,
}

/// See the module's documentation.
pub(super) struct Job {
    spec: JobSpec,
    queue: Box<dyn IoQueue>,
    rows: SegRow,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Requests that the queue is to take with the next turn.
    batch: Vec<Io>,
    done: Done,
    scratch: Vec<u8>,
    phase: Phase,
    announced: bool,
    begin: Time,
    end: Time,
    measuring: bool,
    cpu_begin: Duration,
    wait_begin: Option<Duration>,
    gap: Gap,
    /// The gap that was under way at the end has ended.
    gap_ended: bool,
    sweep_at: u64,
    result: JobResult,
    tell: Option<Sender<Result<JobResult, OpenError>>>,
}

impl Job {
    /// On the reactor that will own it.
    pub(super) fn new(
        cx: &mut Cx<'_>,
        spec: JobSpec,
        tell: Sender<Result<JobResult, OpenError>>,
    ) -> Result<Job, OpenError> {
        let name = || spec.device.name().to_owned();
        let system = |e: polypath_block::SegTableFull| OpenError::System { name: name(), reason: e.to_string() };
        let rows = cx.segs.reserve(spec.qd.into(), 1).map_err(system)?;
        for (row, buffer) in spec.buffers.iter().enumerate() {
            cx.segs.get_mut(rows.span(row as u32, 1))[0] = buffer.segment();
        }
        let queue = match spec.device.open_queue(QueueConfig { depth: spec.qd }) {
            Ok(queue) => queue,
            Err(error) => {
                cx.segs.release(rows);
                return Err(error);
            }
        };
        let depth = usize::from(spec.qd);
        let scratch = vec![0; if spec.verifier.is_some() { (spec.io_blocks * spec.block_size) as usize } else { 0 }];
        Ok(Job {
            queue,
            rows,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..spec.qd).rev().collect(),
            batch: Vec::with_capacity(depth),
            done: Done::with_capacity(depth),
            scratch,
            phase: Phase::Connecting,
            announced: false,
            begin: Time::NEVER,
            end: Time::NEVER,
            measuring: false,
            cpu_begin: Duration::ZERO,
            wait_begin: None,
            gap: Gap::default(),
            gap_ended: false,
            sweep_at: 0,
            result: JobResult::default(),
            tell: Some(tell),
            spec,
        })
    }

    fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Waits for the queue, then for the word to go.
    fn connecting(&mut self, cx: &mut Cx<'_>) {
        if !self.announced && self.queue.health() == Health::Ready {
            self.announced = true;
            self.spec.control.ready.fetch_add(1, Relaxed);
        }
        if self.spec.control.go.load(std::sync::atomic::Ordering::Acquire) {
            self.begin = Time::from_nanos(self.spec.control.begin.load(Relaxed));
            self.end = Time::from_nanos(self.spec.control.end.load(Relaxed));
            self.phase = Phase::Running;
            // Every slot wants an I/O from now on, whether the queue takes it at once or not: a path that takes none is a gap.
            self.gap.submitted(cx.now, self.slots.len() as u64);
        }
    }

    /// Takes note of the borders of the measured time.
    #[inline]
    fn borders(&mut self, cx: &Cx<'_>) {
        if self.phase == Phase::Running {
            self.end = self.spec.control.end();
        }
        if !self.measuring && cx.now >= self.begin && self.phase == Phase::Running {
            self.measuring = true;
            self.result.latencies.clear();
            self.gap.restart(cx.now);
            self.result.slices.restart(cx.now);
            self.cpu_begin = cpu::thread_time();
            self.wait_begin = cpu::thread_wait();
        }
        if cx.now >= self.end && self.phase == Phase::Running {
            self.phase = Phase::Draining;
            self.take_back();
            if !std::mem::take(&mut self.measuring) {
                // Stopped during the ramp.
                self.result.slices.restart(cx.now);
                self.gap_ended = true;
                return;
            }
            self.result.longest_gap = self.gap.longest(cx.now);
            if self.spec.shares_gap && self.gap.outstanding() > 0 {
                // What the other jobs still want is theirs to tell; this far it was a gap of all.
                self.spec.control.gap.completed(self.gap.since(), cx.now);
            }
            if self.spec.counts_cpu {
                self.result.cpu = Some(cpu::thread_time().saturating_sub(self.cpu_begin));
                let waited = self.wait_begin.zip(cpu::thread_wait());
                self.result.taken = waited.map(|(before, after)| after.saturating_sub(before));
            }
        }
    }

    fn completions(&mut self, cx: &mut Cx<'_>) -> usize {
        let mut done = std::mem::take(&mut self.done);
        done.clear();
        self.queue.poll(cx, &mut done);
        self.result.suspects += done.suspects.len() as u64;
        let n = done.completions.len();
        if n > 0 && self.phase == Phase::Running {
            if self.spec.shares_gap && self.measuring {
                self.spec.control.gap.completed(self.gap.since(), cx.now);
            }
            self.gap.completed(cx.now, n as u64);
            self.result.slices.completed(cx.now, n as u64);
            self.gap.submitted(cx.now, n as u64);
        } else if n > 0 && self.phase == Phase::Draining && !self.gap_ended {
            // A gap that was under way when the time was up lasts until something completes, however long after.
            self.result.longest_gap = self.gap.longest(cx.now);
            self.gap_ended = true;
        }
        for completion in &done.completions {
            self.complete(cx.now, completion.tag as u16, completion.status);
        }
        if n > 0 {
            let progress = &self.spec.progress;
            progress.store(progress.load(Relaxed) + n as u64, Relaxed);
        }
        self.done = done;
        n
    }

    #[inline]
    fn complete(&mut self, now: Time, number: u16, status: Status) {
        let slot = &mut self.slots[usize::from(number)];
        if self.measuring {
            self.result.latencies.record(slot.read, now.nanos_since(slot.started));
            if slot.read {
                self.result.reads += 1;
            } else {
                self.result.writes += 1;
            }
        } else if self.phase == Phase::Draining {
            // Too late to count in the rate; leaving out the slowest would make every latency look better than it was.
            self.result.latencies.record(slot.read, now.nanos_since(slot.started));
        }
        // Errors count whenever they happen: an error during the ramp is an error.
        if !status.is_ok() {
            self.result.errors += 1;
            if let Some(at) = Code::ALL.iter().position(|&code| code == status.code) {
                self.result.error_codes[at] += 1;
            }
            if self.phase == Phase::Sweeping && status.scope() != Scope::Io {
                // No way to the disk: each of the blocks that are left would wait for one in turn.
                self.sweep_at = u64::MAX;
            }
            if self.result.error_samples.len() < SAMPLES {
                let what = if slot.read { "read" } else { "write" };
                self.result.error_samples.push(format!("{what} of {} blocks at {}: {status}", slot.blocks, slot.lba));
            }
        }
        if let Some(ticket) = slot.ticket.take() {
            self.verified(number, ticket, status.is_ok());
        }
        self.free.push(number);
    }

    fn verified(&mut self, number: u16, ticket: Ticket, ok: bool) {
        let slot = &self.slots[usize::from(number)];
        let Some(verifier) = &mut self.spec.verifier else { return };
        match (slot.read, ok) {
            // Completion means quiet: what failed cannot land later.
            (false, ok) => verifier.end_write(ticket, if ok { Outcome::Acknowledged } else { Outcome::Failed }),
            (true, false) => verifier.abandon_read(ticket),
            (true, true) => {
                let len = (slot.blocks * self.spec.block_size) as usize;
                let window = self.spec.buffers[usize::from(number)].window();
                let data = &mut self.scratch[..len];
                window.copy_out(0, data).expect("a request is never longer than its buffer");
                if let Err(errors) = verifier.end_read(ticket, data) {
                    let room = SAMPLES.saturating_sub(self.result.verify_samples.len());
                    self.result.verify_samples.extend(errors.iter().take(room).copied());
                }
            }
        }
    }

    /// Makes requests for all free slots and offers them as one batch. What the queue has no room for is offered again in the next turn.
    fn refill(&mut self, cx: &mut Cx<'_>) -> bool {
        for io in &self.batch {
            self.slots[io.tag as usize].started = cx.now;
        }
        while let Some(&number) = self.free.last()
            && self.make(cx, number)
        {
            self.free.pop();
        }
        let result = self.queue.submit_all(cx, &self.batch);
        let taken = result.map_or_else(|rest| rest.taken, |()| self.batch.len());
        self.batch.drain(..taken);
        if taken > 0 {
            self.queue.kick(cx);
        }
        taken > 0
    }

    /// Reads one block more of what is known, if there is a free slot.
    fn sweep(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(number) = self.free.pop() else { return false };
        if !self.make(cx, number) {
            self.free.push(number);
            return false;
        }
        let result = self.queue.submit_all(cx, &self.batch);
        if let Err(Rest { why, .. }) = result {
            self.take_back();
            if why == RefusedWhy::Gone {
                // There is nobody left to read from; what was not swept is not counted as swept.
                self.sweep_at = u64::MAX;
            }
            return false;
        }
        self.batch.clear();
        self.sweep_at = self.slots[usize::from(number)].lba + 1;
        self.result.swept += 1;
        true
    }

    /// Fills the free slots with reads of what is known.
    fn sweep_all(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut any = false;
        while self.sweep(cx) {
            any = true;
        }
        if any {
            self.queue.kick(cx);
        }
        any
    }

    /// Puts the next request, in slot `number`, at the end of the batch. False: there is none for now.
    #[inline]
    fn make(&mut self, cx: &Cx<'_>, number: u16) -> bool {
        let Some(Request { read, lba }) = self.next_request() else { return false };
        let blocks = if self.phase == Phase::Sweeping { 1 } else { self.spec.io_blocks };
        let Ok(ticket) = self.prepare(number, read, lba, blocks) else { return false };
        let slot = &mut self.slots[usize::from(number)];
        (slot.started, slot.read, slot.lba, slot.blocks, slot.ticket) = (cx.now, read, lba, blocks, ticket);
        let span = self.rows.span(number.into(), 1);
        let op = if read { Op::Read } else { Op::Write };
        // Made where it lies: a copy right after would wait for its parts to be stored.
        self.batch.push(Io { tag: number.into(), lba, blocks, op, flags: Flags::empty(), segs: span, skip: 0 });
        true
    }

    fn next_request(&mut self) -> Option<Request> {
        match self.phase {
            Phase::Running => Some(self.spec.workload.next_request()),
            Phase::Sweeping if self.spec.control.stopped.load(Relaxed) => {
                self.result.sweep_cut |= self.sweep_at != u64::MAX;
                self.sweep_at = u64::MAX;
                None
            }
            Phase::Sweeping => {
                let known = self.spec.verifier.as_ref().and_then(|v| v.next_known(self.sweep_at));
                // Once there is no more, it is not looked for again.
                self.sweep_at = known.unwrap_or(u64::MAX);
                known.map(|lba| Request { read: true, lba })
            }
            _ => None,
        }
    }

    /// Tells the verifier and fills the buffer of a write.
    #[inline]
    fn prepare(&mut self, number: u16, read: bool, lba: u64, blocks: u32) -> Result<Option<Ticket>, Full> {
        let Some(verifier) = &mut self.spec.verifier else { return Ok(None) };
        if read {
            return verifier.begin_read(lba, blocks).map(Some).ok_or(Full);
        }
        let ticket = verifier.begin_write(lba, blocks, &mut self.scratch).ok_or(Full)?;
        let window = self.spec.buffers[usize::from(number)].window();
        window.copy_in(0, &self.scratch).expect("a buffer is as long as a request");
        Ok(Some(ticket))
    }

    /// What is offered and was not taken was never made.
    fn take_back(&mut self) {
        for io in self.batch.drain(..) {
            let slot = &mut self.slots[io.tag as usize];
            if let (Some(ticket), Some(verifier)) = (slot.ticket.take(), &mut self.spec.verifier) {
                if slot.read {
                    verifier.abandon_read(ticket);
                } else {
                    verifier.end_write(ticket, Outcome::Failed);
                }
            }
            self.free.push(io.tag as u16);
        }
    }

    /// After the last request of a phase.
    fn next_phase(&mut self, cx: &mut Cx<'_>) {
        if self.outstanding() > 0 {
            return;
        }
        match self.phase {
            Phase::Draining if self.spec.sweep && self.spec.verifier.is_some() => self.phase = Phase::Sweeping,
            Phase::Draining => self.close(cx),
            Phase::Sweeping if self.sweep_at == u64::MAX => self.close(cx),
            _ => {}
        }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.queue.close(cx);
        self.phase = Phase::Closing;
    }

    /// Tells what was done, once.
    fn finish(&mut self) {
        let Some(tell) = self.tell.take() else { return };
        let mut result = std::mem::take(&mut self.result);
        result.unanswered = self.outstanding() as u64;
        result.verified = self.spec.verifier.as_ref().map(Verifier::statistics);
        // If whoever started us has gone, nobody wants to know.
        let _ = tell.send(Ok(result));
    }
}

/// The verifier takes no more for now.
struct Full;

impl Poller for Job {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.borders(cx);
        let mut busy = self.completions(cx) > 0;
        if self.phase != Phase::Running && self.spec.control.given_up.load(Relaxed) {
            // Told now. The requests keep their buffers, for they may still land.
            self.finish();
        }
        match self.phase {
            Phase::Connecting => self.connecting(cx),
            Phase::Closing if self.queue.is_drained() => {
                self.finish();
                return Turn::Finished;
            }
            _ => {}
        }
        match self.phase {
            Phase::Running => busy |= self.refill(cx),
            Phase::Sweeping => busy |= self.sweep_all(cx),
            _ => {}
        }
        if matches!(self.phase, Phase::Draining | Phase::Sweeping) {
            // Nothing is to be done while the last ones are out, for seconds if they wait for a fence.
            let phase = self.phase;
            self.next_phase(cx);
            busy |= phase != self.phase;
        }
        if busy { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        match self.phase {
            // Ended by a wake, and to be safe by itself.
            Phase::Connecting => waits.until(cx.now.after(Duration::from_millis(20))),
            Phase::Running => {
                waits.until(self.end);
                if !self.measuring {
                    waits.until(self.begin);
                }
                if !self.free.is_empty() || !self.batch.is_empty() {
                    // Wants to submit and may not: the queue says when it is ready by being ready.
                    waits.until(cx.now.after(Duration::from_millis(1)));
                }
            }
            Phase::Sweeping if !self.free.is_empty() => waits.until(cx.now.after(Duration::from_millis(1))),
            Phase::Draining | Phase::Sweeping => {}
            Phase::Closing => waits.until(cx.now.after(Duration::from_millis(20))),
        }
        self.queue.arm(cx, waits)
    }

    fn name(&self) -> &str {
        &self.spec.name
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A reactor that stops early: whoever waits learns it from the closed channel.
        self.tell = None;
    }
}
