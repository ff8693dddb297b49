//! The front-end: the driver's side of one ring, as cheap as a driver of 4 KiB reads can be.
//!
//! It never sleeps and never waits to be called: it looks at the used index, checks the status of what has ended, and makes the same
//! request available again with another sector. What a pass makes available is shown with one store of the index, but no more than
//! [`FrontEnd::batch`] at a time, so that the other side has work while this one goes on.

use super::memory::{RingMemory, SECTOR_AT, UNANSWERED};
use polypath_block::Time;
use polypath_reactor::now;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// Of so many requests, one has its status reset before it is made available (one that the back-end left alone would show the status
/// of the last time), and one at a time has its latency taken: either costs as much as all the rest.
const SAMPLE: u32 = 64;
/// Most requests taken, and shown, at a time. Fewer are as many messages more between the cores; with more, one side waits while the
/// other works.
const MAX_BATCH: u16 = 32;
/// Sectors of a block.
const BLOCK_SECTORS: u64 = 8;
/// In the flags of the used ring: do not kick.
const NO_NOTIFY: u16 = 1;
/// No head of a request.
const NONE: u16 = u16::MAX;

/// The back-end wrote something that no back-end may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum RingFault {
    #[error("the back-end returned descriptor {0}, which heads no open request")]
    NotOpen(u32),
    #[error("the back-end says that {0} requests ended, and {1} are open")]
    TooMany(u16, u16),
}

/// What a pass found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pass {
    /// Requests that ended.
    pub(super) ended: u16,
    /// Of these, with another status than OK, or none.
    pub(super) errors: u16,
    /// Latency of the one that was timed, if it was among them.
    pub(super) latency: Option<Duration>,
}

/// The driver's side of one ring.
pub(super) struct FrontEnd {
    memory: RingMemory,
    /// For each descriptor: the request it heads while that is open, else [`NONE`].
    open: Box<[u16]>,
    outstanding: u16,
    /// Requests made available, and found used, each modulo 2^16.
    avail: u16,
    used: u16,
    batch: u16,
    sequence: Sequence,
    /// Requests until the next sample.
    until_sample: u32,
    /// The request that is timed, and since when.
    timed: u16,
    since: Time,
    /// The request that ended last.
    last: u16,
    /// Nothing is made available any more.
    draining: bool,
}

impl FrontEnd {
    /// Over `memory`, of which nothing is available yet, for a disk of `bytes`.
    pub(super) fn new(memory: RingMemory, bytes: u64) -> FrontEnd {
        FrontEnd {
            open: vec![NONE; memory.layout.size.into()].into(),
            outstanding: 0,
            avail: 0,
            used: 0,
            batch: (memory.qd / 2).clamp(1, MAX_BATCH),
            sequence: Sequence::new(bytes),
            until_sample: SAMPLE,
            timed: NONE,
            since: Time::ZERO,
            last: 0,
            draining: false,
            memory,
        }
    }

    pub(super) fn memory(&self) -> &RingMemory {
        &self.memory
    }

    /// Requests that have not ended.
    pub(super) fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Makes all requests available.
    pub(super) fn start(&mut self) {
        let numbers = self.memory.numbers();
        for slot in 0..self.memory.qd {
            let head = self.memory.head(slot);
            self.open[usize::from(head)] = slot;
            numbers.put(self.memory.layout.request(slot) + SECTOR_AT, self.sequence.next());
            numbers.put_half(self.memory.layout.avail_entry(slot), head);
        }
        (self.avail, self.outstanding) = (self.memory.qd, self.memory.qd);
        numbers.show(self.memory.layout.avail, self.avail);
    }

    /// What ends from now on is not made available again.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Does the back-end want to be told of the last `added` requests that were made available (virtio 1.2, section 2.7.10)?
    pub(super) fn is_kick_wanted(&self, added: u16, event_idx: bool) -> bool {
        // What was shown is seen before the answer is read, or the back-end sees it without being told.
        fence(Ordering::SeqCst);
        let (numbers, layout) = (self.memory.numbers(), &self.memory.layout);
        if !event_idx {
            return numbers.half(layout.used) & NO_NOTIFY == 0;
        }
        let event = numbers.half(layout.avail_event());
        self.avail.wrapping_sub(event).wrapping_sub(1) < added
    }

    /// Takes what has ended and makes it available again.
    ///
    /// # Errors
    /// [`RingFault`]: nothing more can be said of the ring.
    // Never inlined, so that it can be found in a profile.
    #[inline(never)]
    pub(super) fn pass(&mut self) -> Result<Pass, RingFault> {
        let layout = &self.memory.layout;
        let numbers = self.memory.numbers();
        let ended = numbers.index(layout.used).wrapping_sub(self.used);
        // Before it is known whether they are new: the ways between the cores are one after the other otherwise.
        self.memory.window.prefetch_range(layout.used_entry(self.used), 8);
        self.memory.window.prefetch_range(layout.status(self.last), 1);
        if ended == 0 {
            return Ok(Pass::default());
        }
        if ended > self.outstanding {
            return Err(RingFault::TooMany(ended, self.outstanding));
        }
        let mut pass = Pass { ended: ended.min(self.batch), ..Pass::default() };
        for n in 0..pass.ended {
            let id = numbers.word(layout.used_entry(self.used.wrapping_add(n))) as u32;
            let slot = self.open.get(id as usize).copied().unwrap_or(NONE);
            if slot == NONE {
                return Err(RingFault::NotOpen(id));
            }
            let head = id as u16;
            pass.errors += u16::from(numbers.bytes[layout.status(slot)].load(Ordering::Relaxed) != 0);
            if head == self.timed {
                pass.latency = Some(now().since(self.since));
                self.timed = NONE;
            }
            self.last = slot;
            if self.draining {
                self.open[usize::from(head)] = NONE;
                continue;
            }
            if self.memory.style.renew {
                self.memory.write_request(&numbers, slot);
            }
            numbers.put(layout.request(slot) + SECTOR_AT, self.sequence.next());
            numbers.put_half(layout.avail_entry(self.avail.wrapping_add(n)), head);
        }
        self.used = self.used.wrapping_add(pass.ended);
        if self.draining {
            self.outstanding -= pass.ended;
            return Ok(pass);
        }
        self.until_sample = self.until_sample.saturating_sub(pass.ended.into());
        if self.until_sample == 0 && self.timed == NONE {
            self.until_sample = SAMPLE;
            numbers.bytes[layout.status(self.last)].store(UNANSWERED, Ordering::Relaxed);
            (self.timed, self.since) = (self.memory.head(self.last), now());
        }
        self.avail = self.avail.wrapping_add(pass.ended);
        numbers.show(self.memory.layout.avail, self.avail);
        Ok(pass)
    }
}

/// Sectors of blocks anywhere on a disk (xorshift64, Marsaglia 2003).
struct Sequence {
    state: u64,
    blocks: u64,
}

impl Sequence {
    fn new(bytes: u64) -> Sequence {
        // At most so many that a product of two halves tells the block.
        Sequence { state: 0x9e37_79b9_7f4a_7c15, blocks: (bytes / super::BLOCK as u64).clamp(1, 1 << 32) }
    }

    #[inline]
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (((self.state >> 32) * self.blocks) >> 32) * BLOCK_SECTORS
    }
}
