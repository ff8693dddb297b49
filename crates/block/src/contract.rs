//! The conformance suite that every [`IoQueue`] runs: what a layer above may count on, checked from outside.
//!
//! An implementation provides a [`Rig`] (how to make memory, how time passes) and calls [`check`].

use crate::device::{Device, Geometry, QueueConfig};
use crate::io::{Io, Op};
use crate::limits::Limits;
use crate::queue::{Armed, Completion, Cx, Done, Health, IoQueue, RefusedWhy, Waits};
use crate::segment::{SegSpan, SegTable};
use crate::status::{Code, Scope};
use crate::time::Time;
use std::collections::HashMap;
use std::sync::Arc;

/// What the suite needs from whoever runs it.
pub trait Rig {
    /// The device under test: live, or about to be. Its contents may be destroyed.
    fn device(&self) -> Arc<dyn Device>;
    /// The time.
    fn now(&mut self) -> Time;
    /// Lets the rest of the world get on (other pollers, peers), or waits on what `waits` names, for a moment.
    fn pass(&mut self, cx: &mut Cx<'_>, waits: Option<&Waits>);
    /// Memory of `len` bytes as segments in `segs`, in `pieces` unequal pieces.
    fn memory(&mut self, segs: &mut SegTable, len: u32, pieces: u32) -> SegSpan;
    /// Writes `data` to the start of `span`.
    fn fill(&mut self, segs: &SegTable, span: SegSpan, data: &[u8]);
    /// Reads the first `len` bytes of `span`.
    fn bytes(&mut self, segs: &SegTable, span: SegSpan, len: usize) -> Vec<u8>;
    /// Does the device keep what is written to it (not `null://`)?
    fn keeps_data(&self) -> bool {
        true
    }
}

/// Runs the whole suite.
///
/// # Panics
/// With a sentence that says which promise was broken.
pub fn check(rig: &mut dyn Rig) {
    let mut t = Bench::new(rig);
    t.wait_ready();
    t.rejects_what_is_out_of_range();
    t.keeps_data_over_split_segments();
    t.ranges_without_data();
    t.completes_exactly_once_when_full();
    t.takes_the_first_of_a_batch();
    t.arm_loses_no_wake_up();
    t.drains_on_close();
}

/// Turns without any progress after which the suite gives up.
const PATIENCE: u32 = 200_000;

struct Bench<'a> {
    rig: &'a mut dyn Rig,
    segs: SegTable,
    queue: Box<dyn IoQueue>,
    done: Done,
    device: Arc<dyn Device>,
    next_tag: u64,
}

impl<'a> Bench<'a> {
    fn new(rig: &'a mut dyn Rig) -> Self {
        let device = rig.device();
        let queue = device.open_queue(QueueConfig { depth: 32 }).expect("a device must open a queue");
        Bench {
            rig,
            segs: SegTable::new(1 << 20),
            queue,
            done: Done::with_capacity(64),
            device,
            next_tag: 0xfeed_0000_0000,
        }
    }

    fn shape(&self) -> (Geometry, Limits) {
        let info = self.device.state().info().cloned().expect("the device must stay live during the suite");
        (info.geometry, info.limits)
    }

    fn tag(&mut self) -> u64 {
        self.next_tag += 0x1_0001;
        self.next_tag
    }

    fn turn(&mut self) -> Vec<Completion> {
        let now = self.rig.now();
        let mut cx = Cx { now, segs: &mut self.segs, reactor: 0 };
        self.queue.kick(&mut cx);
        self.queue.poll(&mut cx, &mut self.done);
        self.rig.pass(&mut cx, None);
        assert!(self.done.suspects.is_empty(), "no I/O may become suspect on a healthy way: {:?}", self.done.suspects);
        self.done.completions.drain(..).collect()
    }

    fn submit(&mut self, io: Io) -> Result<(), RefusedWhy> {
        let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
        self.queue.submit(&mut cx, io).map_err(|refused| {
            assert_eq!(refused.io, io, "a refused request must come back unchanged");
            refused.why
        })
    }

    fn run(&mut self, io: Io) -> Code {
        assert_eq!(self.submit(io), Ok(()), "an idle queue must take a request: {io:?}");
        for _ in 0..PATIENCE {
            if let Some(c) = self.turn().pop() {
                assert_eq!(c.tag, io.tag, "a completion must carry the tag of its request");
                return c.status.code;
            }
        }
        panic!("{io:?} never completed");
    }

    fn wait_ready(&mut self) {
        for _ in 0..PATIENCE {
            if self.queue.health() == Health::Ready && self.device.state().info().is_some() {
                return;
            }
            let early = self.turn();
            assert!(early.is_empty(), "completions out of nothing: {early:?}");
        }
        panic!("queue never became ready: device is {:?}", self.device.state());
    }

    fn rejects_what_is_out_of_range(&mut self) {
        let (g, _) = self.shape();
        let span = self.rig.memory(&mut self.segs, g.block_size * 2, 1);
        for (lba, blocks) in [(g.blocks, 1), (g.blocks - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 2)] {
            let tag = self.tag();
            assert_eq!(
                self.run(Io::read(tag, lba, blocks, span)),
                Code::OutOfRange,
                "read of {blocks} at {lba} of {}",
                g.blocks
            );
        }
        let tag = self.tag();
        let short = self.run(Io::read(tag, 0, 3, span));
        assert_eq!(short, Code::Invalid, "segments that do not cover the data must be refused");
        let tag = self.tag();
        assert_eq!(self.run(Io::read(tag, 0, 0, span)), Code::Invalid, "a read of no blocks must be refused");
        let tag = self.tag();
        assert_eq!(self.run(Io::read(tag, g.blocks - 1, 1, span)), Code::Ok, "the last block must be readable");
    }

    fn keeps_data_over_split_segments(&mut self) {
        let (g, limits) = self.shape();
        if limits.read_only || !self.rig.keeps_data() {
            return;
        }
        let most = limits.max_blocks(Op::Write, g.block_size).min((256 * 1024) / g.block_size).min(g.blocks as u32 / 2);
        for (pieces, blocks) in [(1, 1), (1, most), (3, most), (5, most.min(9))] {
            let pieces = if limits.max_segments == 0 { pieces } else { pieces.min(limits.max_segments) };
            let len = blocks * g.block_size;
            let (out, back) =
                (self.rig.memory(&mut self.segs, len, pieces), self.rig.memory(&mut self.segs, len, pieces));
            let data: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8 ^ pieces as u8).collect();
            self.rig.fill(&self.segs, out, &data);
            let lba = g.blocks - u64::from(blocks);
            let tag = self.tag();
            assert_eq!(
                self.run(Io::write(tag, lba, blocks, out)),
                Code::Ok,
                "write of {blocks} blocks in {pieces} pieces"
            );
            let tag = self.tag();
            assert_eq!(
                self.run(Io::read(tag, lba, blocks, back)),
                Code::Ok,
                "read of {blocks} blocks in {pieces} pieces"
            );
            assert!(
                self.rig.bytes(&self.segs, back, len as usize) == data,
                "{blocks} blocks in {pieces} pieces read back differently"
            );
            if blocks > 1 {
                let tag = self.tag();
                let part = Io { skip: g.block_size, lba: lba + 1, ..Io::read(tag, 0, blocks - 1, back) };
                self.rig.fill(&self.segs, back, &vec![0xa5; len as usize]);
                assert_eq!(self.run(part), Code::Ok, "a part with bytes to skip");
                let got = self.rig.bytes(&self.segs, back, len as usize);
                let bs = g.block_size as usize;
                assert!(
                    got[..bs].iter().all(|&b| b == 0xa5) && got[bs..] == data[bs..],
                    "skip must be honoured to the byte"
                );
            }
        }
        let tag = self.tag();
        assert_eq!(self.run(Io::flush(tag)), Code::Ok, "flush");
    }

    fn ranges_without_data(&mut self) {
        let (g, limits) = self.shape();
        let span = self.rig.memory(&mut self.segs, g.block_size, 1);
        if limits.max_write_zeroes_blocks > 0 && !limits.read_only {
            let tag = self.tag();
            assert_eq!(self.run(Io::range(tag, Op::WriteZeroes, 1, 1)), Code::Ok, "write zeroes");
            let tag = self.tag();
            assert_eq!(self.run(Io::read(tag, 1, 1, span)), Code::Ok);
            if self.rig.keeps_data() {
                let got = self.rig.bytes(&self.segs, span, g.block_size as usize);
                assert!(got.iter().all(|&b| b == 0), "zeroed blocks must read as zeroes");
            }
        }
        if limits.max_discard_blocks > 0 && !limits.read_only {
            let tag = self.tag();
            assert_eq!(self.run(Io::range(tag, Op::Discard, 0, 1)), Code::Ok, "discard");
        }
        for op in [Op::WriteZeroes, Op::Discard] {
            let tag = self.tag();
            let code = self.run(Io::range(tag, op, g.blocks, 1));
            assert!(
                matches!(code, Code::OutOfRange | Code::Unsupported | Code::WriteProtected),
                "{op:?} beyond the end: {code:?}"
            );
        }
    }

    fn completes_exactly_once_when_full(&mut self) {
        let (g, _) = self.shape();
        let span = self.rig.memory(&mut self.segs, g.block_size, 1);
        let mut open: HashMap<u64, u32> = HashMap::new();
        let (mut accepted, mut refused, mut idle) = (0u32, 0u32, 0u32);
        while accepted < 4096 && idle < PATIENCE {
            for n in 0..1000u64 {
                let tag = self.tag();
                match self.submit(Io::read(tag, n % g.blocks, 1, span)) {
                    Ok(()) => {
                        accepted += 1;
                        assert!(open.insert(tag, 0).is_none());
                    }
                    Err(why) => {
                        assert_eq!(why, RefusedWhy::Full, "an open queue refuses only because it is full");
                        refused += 1;
                        break;
                    }
                }
            }
            let got = self.turn();
            idle = if got.is_empty() { idle + 1 } else { 0 };
            self.close_tags(&mut open, got);
        }
        for _ in 0..PATIENCE {
            if open.is_empty() {
                break;
            }
            let got = self.turn();
            self.close_tags(&mut open, got);
        }
        assert!(open.is_empty(), "{} of {accepted} requests never completed", open.len());
        assert!(refused > 0 || accepted >= 4096, "a queue must either take everything or say that it is full");
        for _ in 0..100 {
            let late = self.turn();
            assert!(late.is_empty(), "completed twice: {late:?}");
        }
    }

    /// Batches of any size, and with a request in them that is wrong: those that are taken are the first ones, and complete once.
    fn takes_the_first_of_a_batch(&mut self) {
        let (g, _) = self.shape();
        let span = self.rig.memory(&mut self.segs, g.block_size, 1);
        for size in [0usize, 1, 2, 7, 32, 100, 1000] {
            let wrong = size / 2;
            let ios: Vec<Io> = (0..size as u64)
                .map(|n| {
                    Io::read(self.tag(), if n == wrong as u64 && size > 2 { g.blocks } else { n % g.blocks }, 1, span)
                })
                .collect();
            let (mut open, mut from, mut idle) = (HashMap::new(), 0, 0u32);
            while (from < size || !open.is_empty()) && idle < PATIENCE {
                let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
                let result = self.queue.submit_all(&mut cx, &ios[from..]);
                let taken = result.map_or_else(|rest| rest.taken, |()| size - from);
                if let Err(rest) = result {
                    assert_eq!(rest.why, RefusedWhy::Full, "an open queue refuses only because it is full");
                    assert!(rest.taken < size - from, "what was all taken leaves no rest");
                }
                open.extend(ios[from..from + taken].iter().map(|io| (io.tag, 0)));
                from += taken;
                let got = self.turn();
                idle = if got.is_empty() { idle + 1 } else { 0 };
                for c in &got {
                    let code = if size > 2 && c.tag == ios[wrong].tag { Code::OutOfRange } else { Code::Ok };
                    assert_eq!(c.status.code, code, "a wrong request costs itself and no other of its batch");
                    assert!(open.remove(&c.tag).is_some(), "a completion for a tag that is not open: {c:?}");
                }
            }
            assert!(open.is_empty() && from == size, "{} of a batch of {size} never completed", open.len());
        }
    }

    fn close_tags(&mut self, open: &mut HashMap<u64, u32>, got: Vec<Completion>) {
        for c in got {
            assert!(open.remove(&c.tag).is_some(), "a completion for a tag that is not open: {c:?}");
            assert!(c.status.is_ok(), "a plain read failed: {c:?}");
        }
    }

    fn arm_loses_no_wake_up(&mut self) {
        let (g, _) = self.shape();
        let span = self.rig.memory(&mut self.segs, g.block_size, 1);
        for _ in 0..64 {
            let tag = self.tag();
            self.submit(Io::read(tag, 0, 1, span)).expect("room for one");
            let mut sleeps = 0;
            loop {
                let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
                self.queue.kick(&mut cx);
                self.queue.poll(&mut cx, &mut self.done);
                if let Some(c) = self.done.completions.pop() {
                    assert_eq!((c.tag, c.status.scope()), (tag, Scope::Io));
                    break;
                }
                let mut waits = Waits::default();
                if self.queue.arm(&mut cx, &mut waits) == Armed::Sleep {
                    assert!(
                        !waits.interests.is_empty() || waits.deadline.is_some(),
                        "a queue with a request in flight let the reactor sleep without anything to wake it"
                    );
                    self.rig.pass(&mut cx, Some(&waits));
                }
                sleeps += 1;
                assert!(sleeps < PATIENCE, "slept for ever with a request in flight");
            }
        }
    }

    fn drains_on_close(&mut self) {
        let (g, _) = self.shape();
        let span = self.rig.memory(&mut self.segs, g.block_size, 1);
        let mut open = HashMap::new();
        for _ in 0..16 {
            let tag = self.tag();
            if self.submit(Io::read(tag, 0, 1, span)).is_ok() {
                open.insert(tag, 0);
            }
        }
        let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
        self.queue.close(&mut cx);
        let tag = self.tag();
        assert_eq!(self.submit(Io::flush(tag)), Err(RefusedWhy::Gone), "a closed queue takes nothing");
        for _ in 0..PATIENCE {
            for c in self.turn() {
                assert!(open.remove(&c.tag).is_some(), "a completion for a tag that is not open: {c:?}");
            }
            if self.queue.is_drained() {
                assert!(open.is_empty(), "drained with {} requests that never completed", open.len());
                return;
            }
        }
        panic!("a closed queue never drained");
    }
}
