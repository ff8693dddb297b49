//! One queue of a disk beneath: jobs become requests of bounded size, each with memory of its own that stays until the device gives it back.

use super::job::Job;
use super::{Beneath, Ended, Task, outcome};
use crate::media::MediumError;
use polypath_block::{
    Armed, Cx, DeviceInfo, Done, Flags, Io, IoQueue, Op, QueueConfig, SegRow, SegSpan, SlotKey, Slots, Status, Waits,
};
use polypath_memory::{Arena, Chunk};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Requests that are with the device at a time, at most.
pub(super) const DEPTH: u16 = 128;
/// Most bytes of one request; the largest block there is is half of it.
pub(super) const PIECE: u32 = 128 << 10;

/// One request's place: its memory, and what is in it.
struct Piece {
    chunk: Chunk,
    now: Option<Sent>,
}

#[derive(Clone, Copy)]
struct Sent {
    job: SlotKey,
    op: Op,
    /// Where its data begin in those of the job.
    at: usize,
    len: usize,
}

/// A job that was begun.
struct Active {
    /// Whom to tell; nobody once it is a ghost.
    owner: Option<u64>,
    job: Job,
    /// Which range is cut next, and how many of its blocks were.
    next: (usize, u64),
    /// Where the data of the next request begin.
    at: usize,
    in_flight: u16,
    /// Nothing more is to be asked for.
    cut: bool,
    /// A flush has to make it durable that was written: the device knows no FUA.
    flush: bool,
    result: Result<(), MediumError>,
}

/// See the module.
pub(super) struct Lane {
    pub(super) medium: Arc<Beneath>,
    queue: Box<dyn IoQueue>,
    row: Option<SegRow>,
    pieces: Vec<Piece>,
    free: Vec<u16>,
    jobs: Slots<Active>,
    /// Begun, and not all of it asked for.
    begun: VecDeque<SlotKey>,
    /// Not begun, in the order they came, with whom to tell. Hosts' queues are their bound.
    waiting: VecDeque<(u64, Job)>,
    info: Arc<DeviceInfo>,
    version: u64,
    done: Done,
}

impl Lane {
    /// On the thread that will own it.
    pub(super) fn open(cx: &mut Cx<'_>, medium: &Arc<Beneath>, arena: &Arena) -> Result<Lane, String> {
        let info = medium.info();
        let depth = DEPTH.min(info.max_depth).max(1);
        let chunks: Option<Vec<Chunk>> = (0..depth).map(|_| arena.chunk(PIECE)).collect();
        let chunks = chunks.ok_or("no memory for requests")?;
        let row = cx.segs.reserve(depth.into(), 1).map_err(|e| e.to_string())?;
        for (n, chunk) in chunks.iter().enumerate() {
            if let Some(segment) = cx.segs.get_mut(row.span(n as u32, 1)).first_mut() {
                *segment = chunk.segment();
            }
        }
        let queue = match medium.device.open_queue(QueueConfig { depth }) {
            Ok(queue) => queue,
            Err(error) => {
                cx.segs.release(row);
                return Err(error.to_string());
            }
        };
        Ok(Lane {
            medium: medium.clone(),
            queue,
            row: Some(row),
            pieces: chunks.into_iter().map(|chunk| Piece { chunk, now: None }).collect(),
            free: (0..depth).rev().collect(),
            jobs: Slots::new(depth),
            begun: VecDeque::new(),
            waiting: VecDeque::new(),
            info,
            version: u64::MAX,
            done: Done::with_capacity(depth.into()),
        })
    }

    /// Takes a job of connection `owner`.
    pub(super) fn take(&mut self, owner: u64, job: Job) {
        self.waiting.push_back((owner, job));
    }

    /// What connection `owner` wanted, or that of one tag only, is of no interest any more.
    pub(super) fn cancel(&mut self, owner: u64, tag: Option<u32>) {
        let meant = |of: u64, job: &Job| of == owner && tag.is_none_or(|tag| tag == job.tag);
        self.waiting.retain(|(of, job)| !meant(*of, job));
        let of = |active: &Active| active.owner.is_some_and(|of| meant(of, &active.job));
        let keys: Vec<SlotKey> = self.jobs.iter().filter(|(_, a)| of(a)).map(|(key, _)| key).collect();
        for key in keys {
            let Some(active) = self.jobs.get_mut(key) else { continue };
            self.begun.retain(|begun| *begun != key);
            if active.in_flight == 0 {
                self.jobs.remove(key);
                continue;
            }
            (active.owner, active.cut, active.flush) = (None, true, false);
            if active.job.task.changes() {
                self.medium.haunt(active.job.ranges());
            }
        }
    }

    /// Ghosts that are with the device.
    pub(super) fn ghosts(&self) -> impl Iterator<Item = SlotKey> + '_ {
        self.jobs.iter().filter(|(_, active)| active.owner.is_none()).map(|(key, _)| key)
    }

    /// Asks for as much as there is room for and sees what came back. `true` when something moved.
    pub(super) fn pump(&mut self, cx: &mut Cx<'_>, ended: &mut Vec<Ended>, over: &mut Vec<SlotKey>) -> bool {
        let version = self.medium.seen.load(Ordering::Relaxed);
        if version != self.version {
            self.version = version;
            self.info = self.medium.info();
        }
        let mut moved = self.collect(cx, ended, over);
        let mut sent = false;
        while let Some(key) = self.next_job() {
            match self.send(cx, key, ended, over) {
                Some(more) => sent |= more,
                None => break,
            }
        }
        if sent {
            self.queue.kick(cx);
            moved |= self.collect(cx, ended, over);
        }
        moved | sent
    }

    /// May the thread sleep, as far as this queue knows?
    pub(super) fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        self.queue.arm(cx, waits)
    }

    /// Nobody wants anything any more. Jobs that were begun end as ghosts.
    pub(super) fn close(&mut self, cx: &mut Cx<'_>) {
        self.waiting.clear();
        self.queue.close(cx);
    }

    /// After [`Lane::close`]: has everything come back? Gives back what belongs to the reactor.
    pub(super) fn is_drained(&mut self, cx: &mut Cx<'_>) -> bool {
        let drained = self.queue.is_drained() && self.jobs.is_empty();
        if drained && let Some(row) = self.row.take() {
            cx.segs.release(row);
        }
        drained
    }

    /// The job that is asked for next, if there is room.
    fn next_job(&mut self) -> Option<SlotKey> {
        if self.free.is_empty() {
            return None;
        }
        if let Some(key) = self.begun.front() {
            return Some(*key);
        }
        if self.jobs.is_full() {
            return None;
        }
        // Changes wait for ghosts; what is behind them does not.
        let free = |job: &Job| !(job.task.changes() && job.medium.is_haunted(job.ranges()));
        let at = self.waiting.iter().position(|(_, job)| free(job))?;
        let (owner, mut job) = self.waiting.remove(at)?;
        if job.task == Task::Read {
            let blocks: u64 = job.ranges().map(|(_, blocks)| blocks).sum();
            job.data.clear();
            job.data.resize((blocks * u64::from(self.info.geometry.block_size)) as usize, 0);
        }
        let limits = &self.info.limits;
        let flush = job.fua && !limits.fua && limits.write_cache;
        let active = Active {
            owner: Some(owner),
            next: (0, 0),
            at: 0,
            in_flight: 0,
            cut: false,
            flush: flush && job.task.changes(),
            result: Ok(()),
            job,
        };
        let key = self.jobs.insert(active).ok()?;
        self.begun.push_back(key);
        Some(key)
    }

    /// Sends the next request of a job. `None` when the queue is full; else whether something was sent.
    fn send(&mut self, cx: &mut Cx<'_>, key: SlotKey, ended: &mut Vec<Ended>, over: &mut Vec<SlotKey>) -> Option<bool> {
        let number = *self.free.last()?;
        let row = self.row.as_ref()?;
        let span = row.span(number.into(), 1);
        let block = self.info.geometry.block_size;
        let active = self.jobs.get_mut(key)?;
        let Some((mut io, last)) = active.cut_next(&self.info, span, number) else {
            self.begun.pop_front();
            self.settle(key, ended, over);
            return Some(false);
        };
        let len = io.data_len(block) as usize;
        let at = active.at;
        if io.op.has_data() && !active.fill(io.op, &self.pieces[usize::from(number)].chunk, len) {
            active.fail(MediumError::Failed);
            self.begun.pop_front();
            self.settle(key, ended, over);
            return Some(false);
        }
        io.tag = number.into();
        let refused = self.queue.submit(cx, io).err();
        let active = self.jobs.get_mut(key)?;
        if let Some(refused) = refused {
            if refused.why == polypath_block::RefusedWhy::Full {
                return None;
            }
            active.fail(MediumError::Failed);
            self.begun.pop_front();
            self.settle(key, ended, over);
            return Some(false);
        }
        active.advance(&io, len);
        active.in_flight += 1;
        self.free.pop();
        self.pieces[usize::from(number)].now = Some(Sent { job: key, op: io.op, at, len });
        if last {
            self.begun.pop_front();
        }
        Some(true)
    }

    /// Takes what came back.
    fn collect(&mut self, cx: &mut Cx<'_>, ended: &mut Vec<Ended>, over: &mut Vec<SlotKey>) -> bool {
        let mut done = std::mem::take(&mut self.done);
        done.clear();
        self.queue.poll(cx, &mut done);
        // A suspect is not quiet yet: its completion follows.
        for completion in &done.completions {
            self.came_back(completion.tag as u16, completion.status, ended, over);
        }
        let moved = !done.is_empty();
        self.done = done;
        moved
    }

    fn came_back(&mut self, number: u16, status: Status, ended: &mut Vec<Ended>, over: &mut Vec<SlotKey>) {
        let Some(piece) = self.pieces.get_mut(usize::from(number)) else { return };
        let Some(sent) = piece.now.take() else { return };
        self.free.push(number);
        let Some(active) = self.jobs.get_mut(sent.job) else { return };
        active.in_flight -= 1;
        let result = outcome(sent.op, status).and_then(|()| active.read_back(&sent, &piece.chunk));
        if let Err(error) = result {
            let ordinary = matches!(error, MediumError::Miscompare | MediumError::Conflict);
            if active.owner.is_some() && !ordinary {
                tracing::warn!(disk = self.medium.name(), op = ?sent.op, %status, "request failed beneath");
            }
            active.fail(error);
            self.begun.retain(|key| *key != sent.job);
        }
        self.settle(sent.job, ended, over);
    }

    /// Ends a job of which nothing is asked for any more and nothing is with the device.
    fn settle(&mut self, key: SlotKey, ended: &mut Vec<Ended>, over: &mut Vec<SlotKey>) {
        let Some(active) = self.jobs.get_mut(key) else { return };
        if active.in_flight > 0 || !active.cut && active.has_more(&self.info) {
            return;
        }
        if active.flush && active.result.is_ok() {
            active.flush = false;
            active.job.task = Task::Flush;
            (active.next, active.cut) = ((0, 0), false);
            self.begun.push_front(key);
            return;
        }
        if active.owner.is_none() {
            return self.forget(key, over);
        }
        let Some(active) = self.jobs.remove(key) else { return };
        if let Some(conn) = active.owner {
            let Active { job, result, .. } = active;
            ended.push(Ended { conn, tag: job.tag, result, data: job.data });
        }
    }

    /// A ghost is no more.
    fn forget(&mut self, key: SlotKey, over: &mut Vec<SlotKey>) {
        let Some(active) = self.jobs.remove(key) else { return };
        if active.job.task.changes() {
            self.medium.lay(active.job.ranges());
        }
        over.push(key);
    }
}

impl Active {
    fn fail(&mut self, error: MediumError) {
        if self.result.is_ok() {
            self.result = Err(error);
        }
        self.cut = true;
    }

    /// Is there something to be asked for?
    fn has_more(&self, info: &DeviceInfo) -> bool {
        match self.job.task {
            _ if self.job.task.op(&info.limits).is_none() => false,
            Task::Flush => self.next.0 == 0,
            _ => {
                let left = |n: usize| {
                    self.job
                        .range(n)
                        .map(|(_, blocks)| if n == self.next.0 { self.next.1 < blocks } else { blocks > 0 })
                };
                (self.next.0..).map_while(left).any(|left| left)
            }
        }
    }

    /// The next request, and whether it is the last one.
    fn cut_next(&mut self, info: &DeviceInfo, span: SegSpan, number: u16) -> Option<(Io, bool)> {
        let op = self.job.task.op(&info.limits).filter(|_| !self.cut)?;
        let tag = number.into();
        if op == Op::Flush {
            return (self.next.0 == 0).then(|| (Io::flush(tag), true));
        }
        let (first, left) = loop {
            let (first, blocks) = self.job.range(self.next.0)?;
            if self.next.1 < blocks {
                break (first + self.next.1, blocks - self.next.1);
            }
            self.next = (self.next.0 + 1, 0);
        };
        let block = info.geometry.block_size;
        let mut most = u64::from(info.limits.max_blocks(op, block));
        if op.has_data() {
            most = most.min(u64::from(PIECE / block));
        }
        let blocks = left.min(most.max(1)) as u32;
        let mut flags = Flags::empty();
        flags.set(Flags::FUA, self.job.fua && info.limits.fua && self.job.task.changes());
        flags.set(Flags::UNMAP, op == Op::WriteZeroes && self.job.task == Task::Zero { unmap: true });
        if op == Op::Discard {
            flags = Flags::empty();
        }
        let segs = if op.has_data() { span } else { SegSpan::EMPTY };
        let io = Io { tag, lba: first, blocks, op, flags, segs, skip: 0 };
        let last =
            left == u64::from(blocks) && (self.next.0 + 1..).map_while(|n| self.job.range(n)).all(|(_, b)| b == 0);
        Some((io, last))
    }

    /// Notes that a request was taken.
    fn advance(&mut self, io: &Io, len: usize) {
        if io.op == Op::Flush {
            self.next = (1, 0);
            return;
        }
        self.next.1 += u64::from(io.blocks);
        self.at += len;
    }

    /// Puts the data of a request where the device takes them from.
    fn fill(&self, op: Op, chunk: &Chunk, len: usize) -> bool {
        if op == Op::Read {
            return true;
        }
        let window = chunk.window();
        self.each_source(self.at, len, |at, data| window.copy_in(at, data).is_ok())
    }

    /// Goes through `len` bytes of what is to be there from byte `from` of the job on, as long as `f` says so.
    fn each_source(&self, from: usize, len: usize, mut f: impl FnMut(usize, &[u8]) -> bool) -> bool {
        let zero = matches!(self.job.task, Task::Zero { .. });
        let source = if zero { &crate::media::ZEROES[..] } else { &self.job.data[..] };
        let mut done = 0;
        while done < len && !source.is_empty() {
            let at = (from + done) % source.len();
            let n = (source.len() - at).min(len - done);
            if !f(done, &source[at..at + n]) {
                return false;
            }
            done += n;
        }
        done == len
    }

    /// Takes what a read brought, or compares it.
    fn read_back(&mut self, sent: &Sent, chunk: &Chunk) -> Result<(), MediumError> {
        if sent.op != Op::Read || self.owner.is_none() {
            return Ok(());
        }
        let window = chunk.window();
        if self.job.task == Task::Read {
            let to = self.job.data.get_mut(sent.at..sent.at + sent.len).ok_or(MediumError::Failed)?;
            return window.copy_out(0, to).map_err(|_| MediumError::Failed);
        }
        let mut there = vec![0; sent.len];
        window.copy_out(0, &mut there).map_err(|_| MediumError::Failed)?;
        let same = self.each_source(sent.at, sent.len, |at, data| there.get(at..at + data.len()) == Some(data));
        if same { Ok(()) } else { Err(MediumError::Miscompare) }
    }
}
