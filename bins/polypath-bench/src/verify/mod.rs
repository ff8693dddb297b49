//! Knows what every block of a disk may read as, and says so when it reads as something else.
//!
//! Tell it of every request: `begin_*` before it is handed down, `end_*` when it completes. It fills the buffers of writes
//! (disk, block, sequence number, run, checksum, pattern in every sector) and checks those of reads.
//!
//! # What a block may read as
//! Every request gets a tick of one clock when it begins and is marked with the clock when it ends, so that of two requests it
//! is known whether one ended before the other began. A block has a set of *candidates*:
//!
//! - an **acknowledged** write joins it and removes every candidate that had ended before it began: writes that overlapped stay
//!   beside each other, either may have been last;
//! - a **failed** write joins it and removes nothing: it is there or it is not. It is quiet (completion means quiet): once a
//!   later write is acknowledged it cannot come back;
//! - an **unknown** write (nobody saw its end: the checker was killed, the front-end went away) may land at any time. It stays
//!   until a write that began after it was given up is acknowledged *and* read.
//!
//! A read may return any candidate of the moment it began, or any write that was in flight at any time while it ran; nothing
//! else. What it returned then takes away what cannot be any more: a settled candidate that ended before the read began and was
//! not returned has been overwritten, and must not come back.
//!
//! A block that was wrong is reported once, then anything is accepted until the next write to it.
//!
//! # Limits
//! 16 bytes a block, 32 bytes a write in flight and for each candidate beyond a block's first (64 Ki of them; beyond that
//! blocks become "anything" and are counted as [`Statistics::untracked`]). Blocks are atomic, as NVMe and SCSI devices
//! promise for one logical block; requests of several blocks are not.
//!
//! # Example
//! ```
//! use polypath_bench::verify::{Outcome, Verifier, VerifierConfig};
//! let mut verifier = Verifier::open(VerifierConfig::new(1000, 512)).unwrap();
//! let mut disk = vec![0u8; 1000 * 512];
//! let mut buffer = [0u8; 1024];
//! let write = verifier.begin_write(10, 2, &mut buffer).unwrap();
//! disk[10 * 512..12 * 512].copy_from_slice(&buffer);
//! verifier.end_write(write, Outcome::Acknowledged);
//! let read = verifier.begin_read(11, 1).unwrap();
//! verifier.end_read(read, &disk[11 * 512..12 * 512]).unwrap();
//! ```

mod error;
mod record;
mod stamp;
mod state;
#[cfg(test)]
mod tests;

pub use error::{ErrorKind, VerifyError};
pub use record::RecordError;
pub use stamp::Found;

use record::{Flight, Kind, Record, Shape};
use stamp::Author;
use state::Blocks;
use std::collections::VecDeque;
use std::path::PathBuf;

/// What to verify.
#[derive(Clone, Debug)]
pub struct VerifierConfig {
    /// The first block that is verified.
    pub first_lba: u64,
    /// Blocks from there on.
    pub blocks: u64,
    /// Bytes a block: a multiple of 512. The device's own block, whatever the length of requests: only that is atomic.
    pub block_size: u32,
    /// A number for the disk; part of every block, so that a block of another disk is told apart.
    pub disk: u64,
    /// Requests in flight at a time, at most.
    pub max_in_flight: u32,
    /// The disk is known to read as zeroes at first. Otherwise a block may hold anything until it is written.
    pub initially_zero: bool,
    /// A block read while it is being written may be half of the one write and half of the other. Devices promise that it is
    /// not (NVMe AWUN, SCSI block); some software targets do not keep that promise. Such blocks are counted, not reported.
    pub tolerate_torn: bool,
    /// The file in which the record survives this process. It must not exist yet, or be of the same disk.
    pub record: Option<PathBuf>,
}

impl VerifierConfig {
    /// All of a disk of `blocks` blocks of `block_size` bytes, with no record and nothing tolerated.
    pub fn new(blocks: u64, block_size: u32) -> Self {
        VerifierConfig {
            first_lba: 0,
            blocks,
            block_size,
            disk: 0,
            max_in_flight: 4096,
            initially_zero: false,
            tolerate_torn: false,
            record: None,
        }
    }
}

/// How a changing request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It completed successfully.
    Acknowledged,
    /// It completed with an error: it may or may not have been carried out, and is quiet.
    Failed,
    /// Its end was not seen: it may be carried out at any time.
    Unknown,
}

/// A request that has begun and not ended. Give it back to the `end_*` of its kind.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request that never ends stays in flight for the verifier"]
pub struct Ticket {
    slot: u32,
}

/// What was verified so far, since this checker started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Changing requests acknowledged.
    pub acknowledged: u64,
    /// Changing requests that failed.
    pub failed: u64,
    /// Changing requests of unknown outcome, those of the checker before this one included.
    pub unknown: u64,
    /// Reads checked.
    pub reads: u64,
    /// Blocks checked.
    pub blocks: u64,
    /// Blocks of which nothing is known (never written): any content was accepted.
    pub blocks_unknown: u64,
    /// Blocks that were wrong.
    pub errors: u64,
    /// Torn blocks that were tolerated.
    pub torn: u64,
    /// Blocks given up for want of room for their candidates.
    pub untracked: u64,
}

/// A request in flight.
#[derive(Debug, Default)]
struct Op {
    index: u64,
    blocks: u32,
    sequence: u64,
    /// `None` for a read, and for a slot that is free.
    change: Option<Kind>,
    busy: bool,
    /// What a read may return: (block of the request, candidate), ascending.
    allowed: Vec<(u32, record::Candidate)>,
}

/// See the module's documentation. Belongs to one thread at a time.
pub struct Verifier {
    config: VerifierConfig,
    author: Author,
    blocks: Blocks,
    clock: u64,
    ops: Vec<Op>,
    free: Vec<u32>,
    reads: u32,
    /// Zeroes and discards that began while a read was in flight: unlike data they do not tell who wrote them.
    late: VecDeque<(u64, u64, u32, Kind)>,
    reopened: bool,
    statistics: Statistics,
}

impl Verifier {
    /// A verifier, with the knowledge of its record if there is one.
    ///
    /// # Errors
    /// [`RecordError`]: the record belongs to another disk or checker, or cannot be had.
    ///
    /// # Panics
    /// If the block size is not a multiple of 512, or nothing is to be verified.
    pub fn open(config: VerifierConfig) -> Result<Verifier, RecordError> {
        assert!(config.block_size > 0 && config.block_size.is_multiple_of(512), "block size {}", config.block_size);
        assert!(config.blocks > 0 && config.max_in_flight > 0, "nothing to verify");
        let shape = Shape {
            disk: config.disk,
            first_lba: config.first_lba,
            blocks: config.blocks,
            block_size: config.block_size.into(),
            flights: config.max_in_flight.into(),
            initially_zero: config.initially_zero.into(),
        };
        let record = Record::open(shape, config.record.as_deref())?;
        let author = Author { history: record.history(), disk: config.disk, run: record.run() };
        let (clock, reopened) = (record.clock(), record.reopened());
        let mut blocks = Blocks::new(record);
        let unknown = blocks.recover(config.max_in_flight, clock);
        let slots = config.max_in_flight;
        let statistics = Statistics { unknown, ..Statistics::default() };
        Ok(Verifier {
            config,
            author,
            blocks,
            clock,
            ops: (0..slots).map(|_| Op::default()).collect(),
            free: (0..slots).rev().collect(),
            reads: 0,
            late: VecDeque::new(),
            reopened,
            statistics,
        })
    }

    /// Was there a record of an earlier checker? [`Statistics::unknown`] then began with the writes it had in flight.
    pub fn reopened(&self) -> bool {
        self.reopened
    }

    /// What was verified so far.
    pub fn statistics(&self) -> Statistics {
        Statistics { untracked: self.blocks.untracked(), ..self.statistics }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.ops.len() as u32 - self.free.len() as u32
    }

    /// A write of `blocks` blocks at `lba` begins: fills `data`, its buffer.
    ///
    /// `None` when as many requests are in flight as were configured.
    ///
    /// # Panics
    /// If the range is not verified, or `data` is not as long as the range.
    pub fn begin_write(&mut self, lba: u64, blocks: u32, data: &mut [u8]) -> Option<Ticket> {
        assert_eq!(data.len(), blocks as usize * self.config.block_size as usize, "buffer of a write");
        let ticket = self.begin_change(lba, blocks, Kind::Data)?;
        let sequence = self.ops[ticket.slot as usize].sequence;
        for (at, block) in data.chunks_exact_mut(self.config.block_size as usize).enumerate() {
            stamp::fill(block, self.author, lba + at as u64, sequence);
        }
        Some(ticket)
    }

    /// A Write Zeroes begins. As [`Verifier::begin_write`].
    pub fn begin_zeroes(&mut self, lba: u64, blocks: u32) -> Option<Ticket> {
        self.begin_change(lba, blocks, Kind::Zero)
    }

    /// A discard begins: its blocks may read as anything until they are written again. As [`Verifier::begin_write`].
    pub fn begin_discard(&mut self, lba: u64, blocks: u32) -> Option<Ticket> {
        self.begin_change(lba, blocks, Kind::Any)
    }

    /// A write, Write Zeroes or discard has ended.
    ///
    /// # Panics
    /// If the ticket is of a read.
    #[allow(clippy::needless_pass_by_value, reason = "a ticket is used up")]
    pub fn end_write(&mut self, ticket: Ticket, outcome: Outcome) {
        let op = &mut self.ops[ticket.slot as usize];
        let kind = op.change.take().expect("the ticket of a changing request");
        let (index, blocks, sequence) = (op.index, op.blocks, op.sequence);
        for index in index..index + u64::from(blocks) {
            self.blocks.ended(index, kind, sequence, outcome, self.clock);
        }
        // Only now: a checker that dies before this knows it as unknown, which is less but not wrong.
        self.blocks.record().set_flight(ticket.slot.into(), None);
        match outcome {
            Outcome::Acknowledged => self.statistics.acknowledged += 1,
            Outcome::Failed => self.statistics.failed += 1,
            Outcome::Unknown => self.statistics.unknown += 1,
        }
        self.release(ticket.slot);
    }

    /// A read of `blocks` blocks at `lba` begins. As [`Verifier::begin_write`].
    pub fn begin_read(&mut self, lba: u64, blocks: u32) -> Option<Ticket> {
        let index = self.index(lba, blocks);
        let slot = self.free.pop()?;
        let sequence = self.tick();
        self.reads += 1;
        let op = &mut self.ops[slot as usize];
        (op.index, op.blocks, op.sequence, op.busy, op.change) = (index, blocks, sequence, true, None);
        op.allowed.clear();
        for at in 0..blocks {
            self.blocks.possible(index + u64::from(at), |candidate| op.allowed.push((at, candidate)));
        }
        Some(Ticket { slot })
    }

    /// A read has completed successfully with `data`.
    ///
    /// # Errors
    /// Every block that is wrong, each once.
    ///
    /// # Panics
    /// If the ticket is of a changing request, or `data` is not as long as the range.
    #[allow(clippy::needless_pass_by_value, reason = "a ticket is used up")]
    pub fn end_read(&mut self, ticket: Ticket, data: &[u8]) -> Result<(), Vec<VerifyError>> {
        let op = &mut self.ops[ticket.slot as usize];
        assert!(op.busy && op.change.is_none(), "the ticket of a read");
        let (index, began, allowed) = (op.index, op.sequence, std::mem::take(&mut op.allowed));
        assert_eq!(data.len(), op.blocks as usize * self.config.block_size as usize, "data of a read");
        let mut errors = Vec::new();
        let mut rest = &allowed[..];
        for (at, block) in data.chunks_exact(self.config.block_size as usize).enumerate() {
            let own = rest.partition_point(|(n, _)| *n as usize <= at);
            let (mine, others) = rest.split_at(own);
            rest = others;
            let index = index + at as u64;
            if let Err(error) = self.check(index, began, mine, block) {
                errors.push(error);
            }
        }
        self.statistics.reads += 1;
        self.statistics.errors += errors.len() as u64;
        self.ops[ticket.slot as usize].allowed = allowed;
        self.end_of_read(ticket.slot);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// A read has failed, or its end was not seen: nothing is learnt from it.
    #[allow(clippy::needless_pass_by_value, reason = "a ticket is used up")]
    pub fn abandon_read(&mut self, ticket: Ticket) {
        assert!(self.ops[ticket.slot as usize].change.is_none(), "the ticket of a read");
        self.end_of_read(ticket.slot);
    }

    /// The first block at or after `lba` whose content is known, for a sweep over all that was ever written.
    pub fn next_known(&self, lba: u64) -> Option<u64> {
        let from = lba.max(self.config.first_lba) - self.config.first_lba;
        (from..self.config.blocks).find(|&index| self.blocks.is_known(index)).map(|index| index + self.config.first_lba)
    }

    fn check(
        &mut self,
        index: u64,
        began: u64,
        allowed: &[(u32, record::Candidate)],
        block: &[u8],
    ) -> Result<(), VerifyError> {
        let lba = index + self.config.first_lba;
        let found = stamp::look(block, self.author, lba);
        self.statistics.blocks += 1;
        let is_allowed = |found: Found| {
            let began_since = matches!(found, Found::Write { sequence } if sequence > began && sequence <= self.clock);
            began_since
                || allowed.iter().any(|(_, c)| state::accepts(c, found))
                || self.late.iter().any(|&(sequence, first, blocks, kind)| {
                    sequence > began
                        && (first..first + u64::from(blocks)).contains(&index)
                        && (kind == Kind::Any || found == Found::Zeroes)
                })
        };
        if is_allowed(found) {
            if allowed.iter().any(|(_, c)| c.kind == Kind::Any) {
                self.statistics.blocks_unknown += 1;
            }
            self.blocks.settle(index, found, began, self.clock);
            return Ok(());
        }
        if let Found::Torn { first, other, .. } = found {
            let part = |n: u64| if n == 0 { Found::Zeroes } else { Found::Write { sequence: n } };
            if self.config.tolerate_torn && is_allowed(part(first)) && is_allowed(part(other)) {
                self.statistics.torn += 1;
                return Ok(());
            }
        }
        let error = state::classify(lba, found, allowed, self.clock);
        self.blocks.give_up(index, self.clock);
        Err(error)
    }

    fn begin_change(&mut self, lba: u64, blocks: u32, kind: Kind) -> Option<Ticket> {
        let index = self.index(lba, blocks);
        let slot = self.free.pop()?;
        let sequence = self.tick();
        let flight = Flight { kind, sequence, index, blocks: blocks.into() };
        self.blocks.record().set_flight(slot.into(), Some(flight));
        for index in index..index + u64::from(blocks) {
            self.blocks.began(index, kind, sequence);
        }
        if kind != Kind::Data && self.reads > 0 {
            self.late.push_back((sequence, index, blocks, kind));
        }
        let op = &mut self.ops[slot as usize];
        (op.index, op.blocks, op.sequence, op.change, op.busy) = (index, blocks, sequence, Some(kind), true);
        Some(Ticket { slot })
    }

    fn end_of_read(&mut self, slot: u32) {
        self.reads -= 1;
        self.release(slot);
        if self.reads == 0 {
            self.late.clear();
        } else if self.late.len() > 64 {
            let reads = self.ops.iter().filter(|op| op.busy && op.change.is_none());
            let oldest = reads.map(|op| op.sequence).min().unwrap_or(u64::MAX);
            while self.late.front().is_some_and(|late| late.0 < oldest) {
                self.late.pop_front();
            }
        }
    }

    fn release(&mut self, slot: u32) {
        self.ops[slot as usize].busy = false;
        self.free.push(slot);
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.blocks.record().set_clock(self.clock);
        self.clock
    }

    fn index(&self, lba: u64, blocks: u32) -> u64 {
        let c = &self.config;
        let inside = lba >= c.first_lba && blocks > 0 && lba - c.first_lba + u64::from(blocks) <= c.blocks;
        assert!(inside, "{blocks} blocks at {lba} are not among the {} from {} on", c.blocks, c.first_lba);
        lba - c.first_lba
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("config", &self.config).field("statistics", &self.statistics()).finish()
    }
}
