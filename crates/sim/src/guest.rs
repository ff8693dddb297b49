//! A guest that keeps a queue busy and checks every answer against the oracle.

use crate::oracle::{Oracle, Violation, WriteId};
use crate::world::{REGION, World};
use core::time::Duration;
use polypath_block::{
    Armed, Code, Completion, Cx, Done, Flags, Health, Io, IoQueue, Op, SegRow, SegTable, Segment, Status, Time, Waits,
};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a guest does, in parts of a hundred; the rest are writes.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Reads.
    pub read: u32,
    /// Flushes.
    pub flush: u32,
    /// Write Zeroes and Discards, half and half.
    pub zero: u32,
    /// Writes with force unit access.
    pub fua: u32,
    /// Most blocks of a request.
    pub most_blocks: u32,
    /// Requests kept in flight.
    pub depth: usize,
}

impl Mix {
    /// 70/30 with everything else mixed in, up to eight blocks, 128 at a time.
    pub const ALL: Mix = Mix { read: 62, flush: 2, zero: 6, fua: 4, most_blocks: 8, depth: 128 };
    /// Writes of one block, one at a time.
    pub const WRITES_QD1: Mix = Mix { read: 0, flush: 0, zero: 0, fua: 0, most_blocks: 1, depth: 1 };
}

enum Doing {
    Read(u64),
    Change(WriteId),
    Nothing,
}

struct Open {
    io: Io,
    doing: Doing,
    slot: usize,
    began: Time,
}

/// A guest on one queue.
pub struct Guest {
    world: World,
    queue: Box<dyn IoQueue>,
    oracle: Rc<RefCell<Oracle>>,
    mix: Mix,
    rng: Xoshiro256PlusPlus,
    segs: SegTable,
    row: SegRow,
    free: Vec<usize>,
    open: BTreeMap<u64, Open>,
    next_tag: u64,
    done: Done,
    last_progress: Time,
    reactor: u16,
    submitting: bool,
    refused: bool,
    /// Requests completed, by whatever outcome.
    pub completed: u64,
    /// Requests that failed, with their operation and status.
    pub failed: Vec<(Op, Status)>,
    /// Compares that found a difference; these are no failures.
    pub miscompares: u64,
    /// What the oracle objected to.
    pub violations: Vec<Violation>,
    /// Longest time with requests in flight and none completed.
    pub longest_gap: Duration,
    /// Longest time a single request took.
    pub longest_io: Duration,
}

const SEGMENTS: u32 = 3;

impl Guest {
    /// A guest that does `mix` on `queue`, checked by `oracle` (which several guests may share).
    pub fn new(
        world: &World,
        queue: Box<dyn IoQueue>,
        oracle: Rc<RefCell<Oracle>>,
        mix: Mix,
        seed: u64,
        reactor: u16,
    ) -> Self {
        let mut segs = SegTable::new(1 << 20);
        let row = segs.reserve(mix.depth as u32, SEGMENTS).expect("room in the segment table");
        let bytes = mix.most_blocks * 512;
        for slot in 0..mix.depth {
            let offset = world.allocate(bytes as usize);
            // Three pieces, cut anywhere.
            let cuts = [0, (bytes / 3) & !3, (bytes / 2) & !3, bytes];
            for (seg, cut) in segs.get_mut(row.span(slot as u32, SEGMENTS)).iter_mut().zip(cuts.windows(2)) {
                *seg = Segment { offset: offset + u64::from(cut[0]), region: REGION, len: cut[1] - cut[0] };
            }
        }
        Guest {
            world: world.clone(),
            queue,
            oracle,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            segs,
            row,
            free: (0..mix.depth).collect(),
            open: BTreeMap::new(),
            next_tag: 1 << 40,
            done: Done::with_capacity(2 * mix.depth),
            last_progress: world.now(),
            reactor,
            submitting: true,
            refused: false,
            mix,
            completed: 0,
            failed: Vec::new(),
            miscompares: 0,
            violations: Vec::new(),
            longest_gap: Duration::ZERO,
            longest_io: Duration::ZERO,
        }
    }

    /// Does something else from now on; the depth cannot grow.
    pub fn set_mix(&mut self, mix: Mix) {
        let mix =
            Mix { depth: mix.depth.min(self.mix.depth), most_blocks: mix.most_blocks.min(self.mix.most_blocks), ..mix };
        self.mix = mix;
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// The queue's own opinion of itself.
    pub fn health(&self) -> Health {
        self.queue.health()
    }

    /// Begins or ends to submit.
    pub fn set_submitting(&mut self, submitting: bool) {
        self.submitting = submitting;
    }

    /// Submits one request of its own making (its tag is replaced); data of writes comes from the oracle.
    /// True when the queue took it.
    pub fn submit(&mut self, io: Io) -> bool {
        let Some(&slot) = self.free.last() else { return false };
        let tag = self.next_tag;
        let span = self.row.span(slot as u32, SEGMENTS);
        let segs = if io.op.has_data() { span } else { polypath_block::SegSpan::EMPTY };
        let io = Io { tag, segs, ..io };
        let doing = match io.op {
            Op::Read => Doing::Read(self.oracle.borrow_mut().begin_read(io.lba, io.blocks)),
            Op::Write => {
                let mut data = vec![0; io.blocks as usize * 512];
                let id = self.oracle.borrow_mut().begin_write(io.lba, &mut data);
                self.world.store_span(&self.segs, span, &data);
                Doing::Change(id)
            }
            Op::WriteZeroes | Op::Discard => Doing::Change(self.oracle.borrow_mut().begin_zero(io.lba, io.blocks)),
            Op::Flush | Op::Compare | Op::CompareAndWrite => Doing::Nothing,
        };
        let now = self.world.now();
        let mut cx = Cx { now, segs: &mut self.segs, reactor: self.reactor };
        if self.queue.submit(&mut cx, io).is_err() {
            // It was not started: an ended write that never was.
            match doing {
                Doing::Read(id) => self.oracle.borrow_mut().fail_read(id),
                Doing::Change(id) => self.oracle.borrow_mut().end_write(id, false),
                Doing::Nothing => {}
            }
            return false;
        }
        if self.open.is_empty() {
            self.last_progress = now;
        }
        self.free.pop();
        self.next_tag += 1;
        self.open.insert(tag, Open { io, doing, slot, began: now });
        true
    }

    /// One turn. True when something completed.
    pub fn turn(&mut self) -> bool {
        self.refused = false;
        while self.wants_to_submit() {
            let io = self.invent();
            self.refused = !self.submit(io);
        }
        let now = self.world.now();
        let mut cx = Cx { now, segs: &mut self.segs, reactor: self.reactor };
        self.queue.kick(&mut cx);
        self.queue.poll(&mut cx, &mut self.done);
        let completions: Vec<_> = self.done.completions.drain(..).collect();
        self.done.suspects.clear();
        if !self.open.is_empty() {
            self.longest_gap = self.longest_gap.max(now.since(self.last_progress));
        }
        for c in &completions {
            self.complete(*c, now);
        }
        !completions.is_empty()
    }

    /// When it wants its next turn; `None`: at once. [`Time::NEVER`]: when something happens.
    pub fn arm(&mut self) -> Option<Time> {
        if self.wants_to_submit() {
            return None;
        }
        let mut waits = Waits::default();
        let mut cx = Cx { now: self.world.now(), segs: &mut self.segs, reactor: self.reactor };
        match self.queue.arm(&mut cx, &mut waits) {
            Armed::Busy => None,
            Armed::Sleep => {
                let alone = waits.interests.is_empty() && waits.deadline.is_none();
                assert!(!alone || self.open.is_empty(), "asleep for ever with {} requests in flight", self.open.len());
                Some(waits.deadline.unwrap_or(Time::NEVER))
            }
        }
    }

    /// Ends: no more requests, waits for all (`limit` at most), closes the queue and waits until it is drained.
    ///
    /// # Panics
    /// When that takes longer.
    pub fn finish(&mut self, limit: Duration) {
        self.submitting = false;
        let end = self.world.now().after(limit);
        while !self.open.is_empty() {
            assert!(self.world.now() < end, "{} requests never completed: {}", self.open.len(), self.pending());
            let world = self.world.clone();
            run(&world, &mut [self], Duration::from_millis(10));
        }
        let mut cx = Cx { now: self.world.now(), segs: &mut self.segs, reactor: self.reactor };
        self.queue.close(&mut cx);
        while !self.queue.is_drained() {
            assert!(self.world.now() < end, "a closed queue never drained");
            assert!(!self.turn(), "a completion for nothing");
            self.world.advance_to(self.world.now().after(Duration::from_millis(5)));
        }
    }

    /// Reads the whole disk back through the queue, eight blocks at a time at most.
    pub fn verify_all(&mut self) {
        self.submitting = false;
        let blocks = self.oracle.borrow().blocks();
        let step = u64::from(self.mix.most_blocks);
        let mut lba = 0;
        while lba < blocks || !self.open.is_empty() {
            while lba < blocks {
                let n = step.min(blocks - lba);
                if !self.submit(Io::read(0, lba, n as u32, polypath_block::SegSpan::EMPTY)) {
                    break;
                }
                lba += n;
            }
            let world = self.world.clone();
            run(&world, &mut [self], Duration::from_millis(1));
        }
    }

    fn wants_to_submit(&self) -> bool {
        let room = self.open.len() < self.mix.depth;
        self.submitting && !self.refused && room && self.queue.health() != Health::Down
    }

    fn pending(&self) -> String {
        let list: Vec<_> = self.open.values().take(4).map(|o| (o.io.op, o.io.lba, o.began)).collect();
        format!("{list:?}")
    }

    fn invent(&mut self) -> Io {
        let blocks = self.oracle.borrow().blocks();
        let n = self.rng.random_range(1..=self.mix.most_blocks);
        let lba = self.rng.random_range(0..blocks - u64::from(n) + 1);
        let empty = polypath_block::SegSpan::EMPTY;
        let mut dice = self.rng.random_range(0..100);
        let mut falls = |part: u32| {
            let hit = dice < part;
            dice = dice.wrapping_sub(part);
            hit
        };
        if falls(self.mix.read) {
            Io::read(0, lba, n, empty)
        } else if falls(self.mix.flush) {
            Io::flush(0)
        } else if falls(self.mix.zero) {
            let op = if n % 2 == 0 { Op::WriteZeroes } else { Op::Discard };
            Io::range(0, op, lba, n)
        } else if falls(self.mix.fua) {
            Io::write(0, lba, n, empty).with_flags(Flags::FUA)
        } else {
            Io::write(0, lba, n, empty)
        }
    }

    fn complete(&mut self, c: Completion, now: Time) {
        let open = self.open.remove(&c.tag);
        let Some(open) = open else { panic!("a completion for a request that is not open: {c:?}") };
        self.free.push(open.slot);
        self.last_progress = now;
        self.completed += 1;
        self.longest_io = self.longest_io.max(now.since(open.began));
        let ok = c.status.is_ok();
        let expected = open.io.op == Op::Compare && c.status.code == Code::Miscompare;
        self.miscompares += u64::from(expected);
        if !ok && !expected {
            self.failed.push((open.io.op, c.status));
        }
        let mut oracle = self.oracle.borrow_mut();
        match open.doing {
            Doing::Read(id) if ok => {
                let span = self.row.span(open.slot as u32, SEGMENTS);
                let data = self.world.load_span(&self.segs, span, open.io.blocks as usize * 512);
                if let Err(violation) = oracle.end_read(id, &data) {
                    self.violations.push(violation);
                }
            }
            Doing::Read(id) => oracle.fail_read(id),
            Doing::Change(id) => oracle.end_write(id, ok),
            Doing::Nothing => {}
        }
    }
}

/// Gives all guests turns for `span` of virtual time. While nobody gets anything done, time jumps to the next thing that happens.
///
/// # Panics
/// When a queue is busy for ever without getting anything done.
pub fn run(world: &World, guests: &mut [&mut Guest], span: Duration) {
    let end = world.now().after(span);
    let mut spins = 0;
    while world.now() < end {
        let mut progress = false;
        for guest in guests.iter_mut() {
            progress |= guest.turn();
        }
        if progress {
            spins = 0;
            // A turn takes time, or a loop of instant failures would freeze the world.
            world.advance_to(world.now().after(Duration::from_micros(1)));
            continue;
        }
        let mut wake = end.min(world.next_event().unwrap_or(end));
        let mut busy = false;
        for guest in guests.iter_mut() {
            match guest.arm() {
                None => busy = true,
                Some(at) => wake = wake.min(at),
            }
        }
        spins = if busy { spins + 1 } else { 0 };
        assert!(spins < 10_000, "busy for ever and nothing gets done at {:?}", world.now());
        let tick = world.now().after(Duration::from_micros(1));
        world.advance_to(if busy { tick } else { wake.max(tick) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::PathOptions;
    use crate::rig::Rig;
    use polypath_block::{Device, QueueConfig, contract};

    #[test]
    fn a_path_keeps_the_contract() {
        let world = World::new(1, 2048);
        let mut options = PathOptions::new("p", 2048);
        options.depth = 32;
        contract::check(&mut Rig { device: world.path(options), world });
    }

    #[test]
    fn a_guest_on_a_healthy_path_sees_no_fault_and_same_seed_same_run() {
        let once = |seed| {
            let world = World::new(seed, 256);
            let path = world.path(PathOptions::new("p", 256));
            let oracle = Rc::new(RefCell::new(Oracle::new(256, 512)));
            let queue = path.open_queue(QueueConfig { depth: 128 }).unwrap();
            let mut guest = Guest::new(&world, queue, oracle, Mix::ALL, seed, 0);
            run(&world, &mut [&mut guest], Duration::from_millis(50));
            guest.finish(Duration::from_secs(1));
            assert!(guest.failed.is_empty() && guest.violations.is_empty(), "{:?}", guest.violations);
            (guest.completed, world.now())
        };
        let (a, b) = (once(7), once(7));
        assert_eq!(a, b);
        assert!(a.0 > 500, "{a:?}");
    }
}
