//! The straight line of a request: while all is well, a read or a write goes to a path as it is, and leaves a row behind.
//!
//! What a request must be like for that, and which paths take such, is worked out when something has changed, once a turn at most
//! ([`MultipathQueue::review_fast`]). The row is found by the request's own tag, which stays what it is: requesters number what they have
//! under way in the low bits. So nothing is translated, on the way down or up, and a batch is handed on as it came.
//!
//! Whatever is unusual leaves the line: what a path does not take becomes a [`Task`] that was never sent, what fails or becomes suspect the
//! [`Task`] that it would have been from the beginning. What is to be done about failures is known in one place only, with the tasks.

use super::MultipathQueue;
use super::path::QueuePath;
use super::task::{Owner, TASK, Task, next_attempt, tag};
use crate::cache::{Caches, SentTo};
use crate::config::MAX_PATHS;
use crate::selector::{Batch, Choice, Selector, Slots as Bits, slots_after};
use polypath_block::{Cx, Done, Flags, Io, Op, RefusedWhy, Rest, SegSpan, Time};

/// Fewest rows: what numbers its requests from zero to 63 finds a row for each, however few of them it may have under way.
const ROWS_LEAST: usize = 64;

// The uppermost bit of a tag counts in its place in the table, see `Fast::put`.
const _: () = assert!(usize::BITS == u64::BITS, "tags and places are of 64 bits");

/// Of a row that stands for nothing.
const FREE: u8 = u8::MAX;
/// Of a row whose request is a task by now: a completion with its tag is still to come.
const LEFT: u8 = u8::MAX - 1;

/// A request that a path has.
#[derive(Clone, Copy, Debug)]
struct Row {
    io: Io,
    started: Time,
    /// The volatile cache that it went to, if it is a write without FUA and there was one then.
    cache: Option<SentTo>,
    /// Slot of the path, [`FREE`] or [`LEFT`].
    at: u8,
}

impl Row {
    const EMPTY: Row = Row { io: Io::read(0, 0, 0, SegSpan::EMPTY), started: Time::ZERO, cache: None, at: FREE };
}

/// What a request must be like to go straight to a path, and the paths that take such.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    /// As bits of slots; none while anything is unusual.
    slots: u64,
    /// Operations with their flags, as bits (see [`kind`]).
    kinds: u32,
    /// Most blocks in one request, no more than the disk has.
    most_blocks: u32,
    most_segments: u32,
    /// Blocks of the disk.
    blocks: u64,
}

/// Number of an operation with its flags, below 32.
#[inline]
const fn kind(op: Op, flags: Flags) -> u32 {
    (op as u32) << 2 | flags.bits() as u32 & 3
}

impl Terms {
    /// Anything else may be a good request, too, but not one for the line. Whether its segments cover the data is for the path to say.
    #[inline]
    fn fits(&self, io: &Io) -> bool {
        // In this order: the disk has as many blocks as a request may have.
        self.kinds >> kind(io.op, io.flags) & 1 != 0
            && io.blocks.wrapping_sub(1) < self.most_blocks
            && io.lba <= self.blocks - u64::from(io.blocks)
            && io.segs.count <= self.most_segments
    }
}

/// The way to one path.
#[derive(Default)]
struct Lane {
    /// The volatile cache behind it.
    cache: Option<u8>,
    /// What a batch has for it.
    batch: Vec<Io>,
}

/// The requests on the line.
pub(super) struct Fast {
    terms: Terms,
    /// As far as requests have had theirs yet: memory for the others is reserved and not touched.
    rows: Vec<Row>,
    /// Of a request's tag, what is the number of its row.
    mask: usize,
    /// By slot of the path.
    lanes: Box<[Lane; MAX_PATHS]>,
    /// By row: the task's tag, for the completion of one that has left, and the slot of the path that it will come from.
    left: Box<[(u64, u8)]>,
    block_shift: u32,
}

impl Fast {
    pub(super) fn new(depth: usize) -> Fast {
        let rows = (2 * depth).next_power_of_two().max(ROWS_LEAST);
        Fast {
            terms: Terms::default(),
            rows: Vec::with_capacity(rows),
            mask: rows - 1,
            lanes: Box::new(core::array::from_fn(|_| Lane::default())),
            left: vec![(0, 0); rows].into(),
            block_shift: 0,
        }
    }

    /// There is a path in `slot`: makes room for a batch of `depth`.
    pub(super) fn use_slot(&mut self, slot: usize, depth: usize) {
        self.lanes[slot % MAX_PATHS].batch.reserve(depth);
    }

    /// The path in `slot` turned out to take nothing now.
    pub(super) fn shun(&mut self, slot: usize) {
        self.terms.slots &= !(1 << slot);
    }

    /// Nothing goes straight to a path until the next review.
    pub(super) fn stop(&mut self) {
        self.terms.slots = 0;
    }

    /// Leaves rows for the first of `ios`, which go to `slot` now: as many as are for the line and find their places free. Returns how many,
    /// and how many blocks they have.
    #[inline]
    fn put(&mut self, ios: &[Io], slot: usize, now: Time) -> (usize, u64) {
        let (mut count, mut blocks) = (0, 0);
        loop {
            // With the uppermost bit: what has a tag like a task's has no row.
            let (terms, mask, rows) = (self.terms, self.mask | TASK as usize, &mut self.rows[..]);
            let mut missing = None;
            for io in &ios[count..] {
                let index = io.tag as usize & mask;
                let Some(row) = rows.get_mut(index) else {
                    missing = Some(index);
                    break;
                };
                if row.at != FREE || !terms.fits(io) {
                    break;
                }
                row.io = *io;
                row.started = now;
                row.at = slot as u8;
                (count, blocks) = (count + 1, blocks + u64::from(io.blocks));
            }
            match missing {
                Some(index) if index <= self.mask => self.add_rows(index),
                _ => return (count, blocks),
            }
        }
    }

    /// The rows of `ios`, which were put, are for `slot`. Returns how many blocks they have.
    #[inline]
    fn assign(&mut self, ios: &[Io], slot: usize) -> u64 {
        let mut blocks = 0;
        for io in ios {
            if let Some(row) = self.rows.get_mut(io.tag as usize & self.mask) {
                row.at = slot as u8;
            }
            blocks += u64::from(io.blocks);
        }
        blocks
    }

    /// Makes row `index`, which nobody has had yet. There is room for all: nothing moves.
    #[cold]
    fn add_rows(&mut self, index: usize) {
        self.rows.resize((index + 1).next_multiple_of(ROWS_LEAST), Row::EMPTY);
    }

    /// The row that `tag` left, unless another one did.
    #[inline]
    fn row_of(&mut self, tag: u64) -> Option<&mut Row> {
        self.rows.get_mut(tag as usize & self.mask).filter(|row| row.io.tag == tag)
    }
}

impl MultipathQueue {
    /// Works out what goes straight to a path from now on: to those of the best rank that there is.
    pub(super) fn review_fast(&mut self) {
        self.fast.stop();
        let Some(shown) = self.shown.filter(|_| self.frozen && !self.closing) else { return };
        let slots = self.selector.narrow(self.best_rank(), &self.loads);
        let mut limits = shown.limits;
        for slot in Bits(slots) {
            let Some(path) = self.paths[slot].as_ref() else { continue };
            limits = limits.meet(path.limits);
            self.fast.lanes[slot].cache = path.volatile_cache();
        }
        self.fast.block_shift = shown.block_size.trailing_zeros();
        let most = limits.max_blocks(Op::Read, shown.block_size).min(u32::MAX / shown.block_size);
        let kinds = [
            (Op::Read, Flags::empty(), true),
            (Op::Write, Flags::empty(), !shown.limits.read_only),
            (Op::Write, Flags::FUA, !shown.limits.read_only && limits.fua),
        ];
        self.fast.terms = Terms {
            slots,
            kinds: kinds.iter().fold(0, |bits, &(op, flags, does)| bits | u32::from(does) << kind(op, flags)),
            most_blocks: u32::try_from(shown.blocks).map_or(most, |blocks| most.min(blocks)),
            most_segments: if limits.max_segments == 0 { u32::MAX } else { limits.max_segments },
            blocks: shown.blocks,
        };
    }

    /// The paths that take requests on the line now, as bits of slots.
    #[inline]
    pub(super) fn fast_slots(&self) -> u64 {
        if self.backlog.is_empty() { self.fast.terms.slots & !self.full } else { 0 }
    }

    /// Sends the first of `ios` on the line, as many as are for it, to those of `slots`, of which there is one at least. Returns how many.
    #[inline]
    pub(super) fn submit_fast(&mut self, cx: &mut Cx<'_>, ios: &[Io], slots: u64) -> usize {
        if slots.is_power_of_two() {
            self.submit_to_one(cx, ios, slots.trailing_zeros() as usize)
        } else {
            self.submit_to_several(cx, ios, slots)
        }
    }

    /// To the path in `slot`.
    fn submit_to_one(&mut self, cx: &mut Cx<'_>, ios: &[Io], slot: usize) -> usize {
        let (count, blocks) = self.fast.put(ios, slot, cx.now);
        // Before any of it may be answered.
        self.open += count;
        self.load(slot, count, blocks);
        self.hand_over(cx, slot, &ios[..count]);
        count
    }

    /// To several paths: each gets its share of the batch in one piece if the rule can tell how many that is, else one request after the
    /// other is chosen for. The rule is asked for what goes, and for nothing else: who is chosen for what does not go has lost a turn.
    fn submit_to_several(&mut self, cx: &mut Cx<'_>, ios: &[Io], slots: u64) -> usize {
        let (count, _) = self.fast.put(ios, slots.trailing_zeros() as usize, cx.now);
        let Some(first) = ios[..count].first() else { return 0 };
        let ios = &ios[..count];
        self.open += count;
        let (batch, mut shares) = (Batch { mask: slots, count, now: cx.now }, [0; MAX_PATHS]);
        let block_shift = self.fast.block_shift;
        let is_alike = |io: &Io| io.blocks == first.blocks;
        let bytes = || ios.iter().all(is_alike).then(|| u64::from(first.blocks) << block_shift);
        let Some(last) = self.selector.share(&batch, bytes, &mut self.loads, &mut shares) else {
            self.submit_one_by_one(cx, ios, slots);
            return count;
        };
        let mut rest = ios;
        for slot in slots_after(slots, last) {
            let (share, others) = rest.split_at(shares[slot] as usize);
            rest = others;
            let blocks = self.fast.assign(share, slot);
            self.load(slot, share.len(), blocks);
            self.hand_over(cx, slot, share);
        }
        debug_assert!(rest.is_empty(), "a rule chose a path that was no candidate");
        count
    }

    /// The path in `slot` is about to have `count` requests more.
    #[inline(always)]
    fn load(&mut self, slot: usize, count: usize, blocks: u64) {
        let load = &mut self.loads[slot];
        load.in_flight += count as u32;
        load.bytes_in_flight += blocks << self.fast.block_shift;
    }

    /// Chooses for each of `ios`, which have their rows.
    fn submit_one_by_one(&mut self, cx: &mut Cx<'_>, ios: &[Io], slots: u64) {
        let mut used = 0;
        for io in ios {
            let bytes = u64::from(io.blocks) << self.fast.block_shift;
            let offset = io.lba.wrapping_shl(self.fast.block_shift);
            let choice = Choice { mask: slots, loads: &self.loads, bytes, offset, now: cx.now };
            let slot = self.selector.pick(&choice) % MAX_PATHS;
            let blocks = self.fast.assign(core::slice::from_ref(io), slot);
            self.fast.lanes[slot].batch.push(*io);
            // For the next choice.
            self.load(slot, 1, blocks);
            used |= 1 << slot;
        }
        for slot in Bits(used) {
            let mut batch = core::mem::take(&mut self.fast.lanes[slot].batch);
            self.hand_over(cx, slot, &batch);
            batch.clear();
            self.fast.lanes[slot].batch = batch;
        }
    }

    /// Notes where the writes among `batch` go.
    #[inline]
    fn note_writes(&mut self, batch: &[Io], slot: usize) {
        let Some(cache) = self.fast.lanes[slot].cache else { return };
        let sent = self.group.caches.send_to(cache);
        for io in batch.iter().filter(|io| io.op == Op::Write && io.flags.is_empty()) {
            if let Some(row) = self.fast.row_of(io.tag) {
                row.cache = Some(sent);
            }
        }
    }

    /// Hands a batch, which has its rows and counts as load, to the path in `slot`, if its device is as it was verified.
    #[inline(always)]
    fn hand_over(&mut self, cx: &mut Cx<'_>, slot: usize, batch: &[Io]) {
        if batch.is_empty() {
            return;
        }
        self.note_writes(batch, slot);
        self.unkicked |= 1 << slot;
        let gone = Err(Rest { taken: 0, why: RefusedWhy::Gone });
        let result = match self.paths[slot].as_mut() {
            // Two loads: a device that changed gets nothing until it was verified again, and until its limits, cache and access are
            // those that this queue goes by.
            Some(path) if path.shared.is_admitted(path.seen) => {
                path.queue.as_mut().map_or(gone, |queue| queue.submit_all(cx, batch))
            }
            _ => gone,
        };
        if let Err(rest) = result {
            self.take_back(cx, slot, batch, rest);
        }
    }

    /// What a path did not take becomes tasks, which find another one or wait.
    #[cold]
    fn take_back(&mut self, cx: &mut Cx<'_>, slot: usize, batch: &[Io], rest: Rest) {
        match rest.why {
            RefusedWhy::Full => self.full |= 1 << slot,
            RefusedWhy::Gone => self.unrank(slot),
        }
        for io in &batch[rest.taken..] {
            if let Some(row) = self.fast.row_of(io.tag) {
                (row.at, row.cache) = (FREE, None);
            }
            let load = &mut self.loads[slot];
            load.in_flight -= 1;
            load.bytes_in_flight = load.bytes_in_flight.saturating_sub(u64::from(io.blocks) << self.fast.block_shift);
            self.start(cx, Task::new(*io, Owner::User(io.tag), cx.now, None));
        }
    }

    /// Finishes the requests on the line that the path in `slot` has done: those in `done` from `first` on, to where something else is.
    /// Returns where that is.
    #[inline]
    pub(super) fn finish_fast(&mut self, slot: usize, now: Time, done: &Done, first: usize) -> usize {
        let Some(path) = self.paths[slot].as_mut() else { return first };
        let caches = &self.group.caches;
        let Fast { rows, mask, block_shift, .. } = &mut self.fast;
        let (rows, mask, block_shift) = (&mut rows[..], *mask, *block_shift);
        let (mut count, mut blocks) = (0usize, 0);
        for completion in &done.completions[first..] {
            let Some(row) = rows.get_mut(completion.tag as usize & mask) else { break };
            if row.io.tag != completion.tag || usize::from(row.at) != slot || !completion.status.is_ok() {
                break;
            }
            row.at = FREE;
            (count, blocks) = (count + 1, blocks + u64::from(row.io.blocks));
            if row.io.op == Op::Write {
                wrote(caches, path, row);
            }
        }
        let finished = &done.completions[first..first + count];
        if self.selector.learns() {
            let rows = finished.iter().map(|completion| &rows[completion.tag as usize & mask]);
            let learnt = rows.map(|row| (u64::from(row.io.blocks) << block_shift, now.nanos_since(row.started)));
            self.selector.finished_all(slot, learnt);
        }
        if let Some(last) = finished.last() {
            let started = rows[last.tag as usize & mask].started;
            // One of those that came together stands for all of them.
            path.latency.add(now.nanos_since(started));
            path.succeeded(count as u64, blocks << block_shift);
            let load = &mut self.loads[slot];
            load.in_flight -= count as u32;
            load.bytes_in_flight = load.bytes_in_flight.saturating_sub(blocks << block_shift);
            self.open -= count;
        }
        path.count_load(&self.loads[slot]);
        first + count
    }

    /// The tag of the task that a request on the line has become, or becomes now because it fails or is suspect. `is_over`: this is its
    /// completion. `None`: there is no such request.
    #[cold]
    pub(super) fn leave_line(&mut self, slot: usize, request: u64, is_over: bool) -> Option<u64> {
        let index = request as usize & self.fast.mask;
        let left = self.fast.left[index];
        let row = self.fast.row_of(request)?;
        let at = if row.at == LEFT { left.1 } else { row.at };
        if usize::from(at) != slot {
            return None;
        }
        let (io, started, cache) = (row.io, row.started, row.cache.take());
        let was = core::mem::replace(&mut row.at, if is_over { FREE } else { LEFT });
        if was != LEFT {
            self.attempts = next_attempt(self.attempts);
            let task = Task::sent(io, started, self.attempts, cache);
            match self.tasks.insert(task) {
                Ok(key) => self.fast.left[index] = (tag(key, self.attempts), slot as u8),
                // The table has room for everything that may be open; see `new`.
                Err(full) => unreachable!("{full}: more tasks than requests and parts"),
            }
        }
        Some(self.fast.left[index].0)
    }
}

/// The write of `row` has succeeded on `path`: what it may have left in a volatile cache is to be flushed.
#[inline(never)]
fn wrote(caches: &Caches, path: &QueuePath, row: &mut Row) {
    if !row.io.flags.is_empty() {
        return;
    }
    // The cache that it was sent to, even if the path leads to another one by now; or the one that was enabled meanwhile.
    let enabled = || path.volatile_cache().map(|cache| caches.send_to(cache));
    if let Some(sent) = row.cache.take().or_else(enabled) {
        caches.acknowledge(caches.mark_dirty(sent));
    }
}
