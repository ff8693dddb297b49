//! A guest on one queue of a group: overlapping requests, and memory that is used again the moment a request completes.

use crate::checker::{Checker, Rule};
use crate::plan::GuestPlan;
use polypath_block::{
    Armed, Code, Completion, Cx, Device, Done, Flags, Health, Io, IoQueue, Op, Poller, SegRow, SegSpan, Segment, Time,
    Turn, Waits,
};
use polypath_memory::{Arena, Chunk};
use polypath_sim::WriteId;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Blocks of the largest request: more than a small target transfers at a time.
pub(crate) const LARGEST: u32 = 48;
/// Most segments of a request.
const SEGMENTS: u32 = 3;
/// What memory holds that nobody has a right to read.
const SCRIBBLE: u8 = 0xd5;

/// What the world tells a guest and learns from it.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Makes requests of its own.
    pub(crate) submitting: Cell<bool>,
    /// Flushes once when nothing else is open, then closes its queue and ends.
    pub(crate) ending: Cell<bool>,
    /// Requests open.
    pub(crate) open: Cell<usize>,
    /// The oldest of them, in words.
    pub(crate) oldest: Cell<Option<(Op, u64, Time)>>,
    /// Requests that completed.
    pub(crate) completed: Cell<u64>,
    /// It has ended.
    pub(crate) ended: Cell<bool>,
    /// A flush has succeeded since the world looked.
    pub(crate) flushed: Cell<bool>,
    /// Longest that a request took.
    pub(crate) longest: Cell<Duration>,
}

enum Doing {
    Read(u64),
    Change(WriteId),
    Flush(u64),
}

struct Open {
    io: Io,
    doing: Doing,
    slot: usize,
    began: Time,
    /// How often the disk had been swapped, there or back, by then.
    swaps: u64,
}

/// See the module.
pub(crate) struct Guest {
    name: String,
    checker: Rc<Checker>,
    plan: GuestPlan,
    handle: Rc<Handle>,
    group: Arc<dyn Device>,
    queue: Box<dyn IoQueue>,
    rng: Xoshiro256PlusPlus,
    row: SegRow,
    slots: Vec<Chunk>,
    /// Used from its end: the memory that was given back last is taken first.
    free: Vec<usize>,
    open: BTreeMap<u64, Open>,
    next_tag: u64,
    done: Done,
    next_burst: Time,
    full: bool,
    flushing: bool,
    closing: bool,
    /// Blocks that it uses, and those that it was told of.
    blocks: u64,
    told_blocks: u64,
    /// Blocks that are still to be read, for a reader.
    reading: Option<u64>,
}

impl Guest {
    /// A guest as planned, on a queue of `group` that is opened here. A `reader` makes no requests of its own: it reads every block
    /// once and ends.
    pub(crate) fn new(
        name: String,
        cx: &mut Cx<'_>,
        checker: Rc<Checker>,
        plan: GuestPlan,
        group: Arc<dyn Device>,
        seed: u64,
        reader: bool,
    ) -> Result<(Guest, Rc<Handle>), String> {
        let depth = u32::from(plan.depth);
        let queue = group
            .open_queue(polypath_block::QueueConfig { depth: plan.depth })
            .map_err(|e| format!("{name} gets no queue: {e}"))?;
        let arena = Arena::new(u64::from(depth * LARGEST * 512), false).map_err(|e| e.to_string())?;
        let slots: Option<Vec<Chunk>> = (0..depth).map(|_| arena.chunk(LARGEST * 512)).collect();
        let handle = Rc::new(Handle {
            submitting: Cell::new(!reader),
            ending: Cell::new(reader),
            open: Cell::new(0),
            oldest: Cell::new(None),
            completed: Cell::new(0),
            ended: Cell::new(false),
            flushed: Cell::new(false),
            longest: Cell::new(Duration::ZERO),
        });
        let guest = Guest {
            name,
            checker,
            handle: handle.clone(),
            group,
            queue,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            row: cx.segs.reserve(depth, SEGMENTS).map_err(|e| e.to_string())?,
            slots: slots.ok_or("no memory for the slots of a guest")?,
            free: (0..depth as usize).collect(),
            open: BTreeMap::new(),
            next_tag: 1,
            done: Done::with_capacity(2 * depth as usize),
            next_burst: cx.now,
            full: false,
            flushing: false,
            closing: false,
            blocks: 0,
            told_blocks: 0,
            reading: reader.then_some(0),
            plan,
        };
        Ok((guest, handle))
    }

    fn burst(&mut self, cx: &mut Cx<'_>) -> bool {
        let due = cx.now >= self.next_burst && self.handle.submitting.get();
        if !due || self.blocks == 0 || self.queue.health() == Health::Down {
            return false;
        }
        let mean = self.plan.pause_us;
        self.next_burst = cx.now.after(Duration::from_micros(self.rng.random_range(mean / 4..=mean * 2)));
        let most = self.rng.random_range(1..=self.plan.depth);
        let mut any = false;
        for _ in 0..most {
            if self.free.is_empty() || self.full {
                break;
            }
            let io = self.invent();
            any |= self.submit(cx, io);
        }
        any
    }

    /// Uses more blocks a turn after the disk has said that it has them: then its queue has heard of it, too.
    fn follow_size(&mut self) {
        let told = std::mem::take(&mut self.told_blocks);
        let mut disk = self.checker.disk(self.plan.disk).borrow_mut();
        if told > disk.oracle.blocks() {
            disk.oracle.grow(told);
        }
        self.blocks = self.blocks.max(told);
        if let Some(info) = self.group.state().info() {
            self.told_blocks = info.geometry.blocks;
        }
    }

    fn invent(&mut self) -> Io {
        let blocks = self.blocks;
        let large = self.rng.random_range(0..100) < 7;
        let most = if large { LARGEST } else { self.plan.most_blocks };
        let n = self.rng.random_range(1..=most);
        let lba = self.rng.random_range(0..=blocks - u64::from(n));
        let dice = self.rng.random_range(0..100);
        let reads = self.plan.reads;
        let empty = SegSpan::EMPTY;
        match dice {
            _ if dice < reads => Io::read(0, lba, n, empty),
            _ if dice < reads + 3 => Io::flush(0),
            _ if dice < reads + 6 => Io::range(0, Op::WriteZeroes, lba, n),
            _ if dice < reads + 8 => Io::range(0, Op::Discard, lba, n),
            _ if dice < reads + 12 => Io::write(0, lba, n, empty).with_flags(Flags::FUA),
            _ => Io::write(0, lba, n, empty),
        }
    }

    /// True when the queue took it.
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> bool {
        let Some(&slot) = self.free.last() else { return false };
        let span = if io.op.has_data() { self.segments(cx, slot, io.blocks * 512) } else { SegSpan::EMPTY };
        let io = Io { tag: self.next_tag, segs: span, ..io };
        let disk = &mut *self.checker.disk(self.plan.disk).borrow_mut();
        let doing = match io.op {
            Op::Read => Doing::Read(disk.oracle.begin_read(io.lba, io.blocks)),
            Op::Write | Op::Compare | Op::CompareAndWrite => {
                let mut data = vec![0; io.blocks as usize * 512];
                let id = disk.oracle.begin_write(io.lba, &mut data);
                self.slots[slot].window().copy_in(0, &data).expect("a slot holds its request");
                Doing::Change(id)
            }
            Op::WriteZeroes | Op::Discard => Doing::Change(disk.oracle.begin_zero(io.lba, io.blocks)),
            Op::Flush => Doing::Flush(disk.oracle.begin_flush()),
        };
        if self.queue.submit(cx, io).is_err() {
            self.full = true;
            match doing {
                Doing::Read(id) => disk.oracle.fail_read(id),
                Doing::Change(id) => disk.oracle.end_write(id, false),
                Doing::Flush(_) => {}
            }
            return false;
        }
        let (name, tag) = (&self.name, io.tag);
        self.checker
            .note_request(cx.now, format_args!("{name} #{tag} {:?} {}+{} {:?}", io.op, io.lba, io.blocks, io.flags));
        self.free.pop();
        self.next_tag += 1;
        self.open.insert(io.tag, Open { io, doing, slot, began: cx.now, swaps: disk.swaps });
        true
    }

    /// Up to three pieces that end anywhere.
    fn segments(&mut self, cx: &mut Cx<'_>, slot: usize, bytes: u32) -> SegSpan {
        let whole = self.slots[slot].segment();
        let count = self.rng.random_range(1..=SEGMENTS);
        let span = self.row.span(slot as u32, count);
        let mut at = 0;
        for (i, seg) in (0..count).zip(cx.segs.get_mut(span)) {
            let rest = bytes - at;
            let len = if i + 1 == count { rest } else { self.rng.random_range(0..=rest) };
            *seg = Segment { offset: whole.offset + u64::from(at), len, ..whole };
            at += len;
        }
        span
    }

    fn complete(&mut self, now: Time, c: Completion) {
        let (name, tag) = (self.name.clone(), c.tag);
        let Some(open) = self.open.remove(&c.tag) else {
            return self.checker.violate(now, Rule::Once, format!("{name} #{tag} completed and is not open: {c:?}"));
        };
        let took = now.since(open.began);
        self.handle.longest.set(self.handle.longest.get().max(took));
        self.handle.completed.set(self.handle.completed.get() + 1);
        self.checker.note_request(now, format_args!("{name} #{tag} {} {}", c.status, c.proof));
        let checker = self.checker.clone();
        let disk = &mut *checker.disk(self.plan.disk).borrow_mut();
        let swapped = disk.swapped || disk.swaps != open.swaps;
        let Io { op, lba, blocks, .. } = open.io;
        let ok = c.status.is_ok();
        let excused = op == Op::Flush && c.status.code == Code::CacheLost && disk.cache_lost;
        if !ok && !excused {
            let what = format!(
                "{name} #{tag} {op:?} {lba}+{blocks} failed after {took:?}: {} ({:?})",
                c.status, c.status.code
            );
            checker.violate(now, Rule::NoError, what);
        }
        match open.doing {
            Doing::Read(id) if ok && !swapped => {
                let mut data = vec![0; blocks as usize * 512];
                self.slots[open.slot].window().copy_out(0, &mut data).expect("a slot holds its request");
                if let Err(violation) = disk.oracle.end_read(id, &data) {
                    checker.violate(now, Rule::Data, format!("{name} #{tag} on disk {}: {violation}", self.plan.disk));
                }
            }
            Doing::Read(id) => disk.oracle.fail_read(id),
            Doing::Change(id) if ok && !swapped && (disk.through || open.io.flags.contains(Flags::FUA)) => {
                disk.oracle.end_durable_write(id);
            }
            Doing::Change(id) => {
                disk.misled &= !ok || swapped;
                disk.oracle.end_write(id, ok && !swapped);
            }
            Doing::Flush(_) if ok && swapped => disk.misled |= disk.doubts == 0,
            Doing::Flush(id) if ok && !disk.misled => {
                disk.oracle.end_flush(id);
                self.handle.flushed.set(true);
            }
            Doing::Flush(_) if excused => {
                // Each way to the cache that is lost may say so, so that it is said more than once.
                disk.oracle.cache_lost();
            }
            Doing::Flush(_) => {}
        }
        // The guest uses it for something else at once.
        let used = (blocks as usize * 512).min(self.slots[open.slot].len() as usize);
        self.slots[open.slot].window().copy_in(0, &vec![SCRIBBLE; used]).expect("a slot holds its request");
        self.free.push(open.slot);
        self.full = false;
    }

    /// What a guest does that is told to end.
    fn end(&mut self, cx: &mut Cx<'_>) -> Turn {
        if let Some(lba) = self.reading {
            let blocks = self.checker.disk(self.plan.disk).borrow().oracle.blocks();
            if lba < blocks {
                let n = blocks.min(lba + 8) - lba;
                if self.queue.health() != Health::Down && self.submit(cx, Io::read(0, lba, n as u32, SegSpan::EMPTY)) {
                    self.reading = Some(lba + n);
                    return Turn::Busy;
                }
                return Turn::Idle;
            }
        }
        if !self.open.is_empty() {
            return Turn::Idle;
        }
        if !self.flushing && self.reading.is_none() {
            self.flushing = self.submit(cx, Io::flush(0));
            return Turn::Idle;
        }
        if !self.closing {
            self.closing = true;
            self.queue.close(cx);
            return Turn::Busy;
        }
        if self.queue.is_drained() {
            self.handle.ended.set(true);
            return Turn::Finished;
        }
        Turn::Idle
    }
}

impl Poller for Guest {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.full = false;
        let mut busy = self.burst(cx);
        self.queue.kick(cx);
        let mut done = std::mem::take(&mut self.done);
        self.queue.poll(cx, &mut done);
        for suspect in done.suspects.drain(..) {
            self.checker
                .note_request(cx.now, format_args!("{} #{} is suspect: {:?}", self.name, suspect.tag, suspect.cause));
        }
        for completion in done.completions.drain(..) {
            busy = true;
            self.complete(cx.now, completion);
        }
        self.done = done;
        if self.handle.submitting.get() && cx.now >= self.next_burst {
            self.follow_size();
        }
        if self.handle.ending.get() {
            match self.end(cx) {
                Turn::Finished => return Turn::Finished,
                Turn::Busy => busy = true,
                Turn::Idle => {}
            }
        }
        self.handle.open.set(self.open.len());
        self.handle.oldest.set(self.open.values().next().map(|o| (o.io.op, o.io.lba, o.began)));
        if busy { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.handle.submitting.get() {
            let soon = cx.now.after(Duration::from_millis(1));
            let ready = self.queue.health() != Health::Down && !self.free.is_empty();
            waits.until(if ready { self.next_burst.max(soon) } else { soon.after(Duration::from_millis(4)) });
        } else if self.handle.ending.get() {
            // The world tells us without waking us.
            waits.until(cx.now.after(Duration::from_millis(2)));
        }
        self.queue.arm(cx, waits)
    }

    fn name(&self) -> &str {
        &self.name
    }
}
