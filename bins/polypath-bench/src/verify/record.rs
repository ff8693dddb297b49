//! Where the checker's knowledge lies: one mapped file (or anonymous memory), so that what was known survives its process.
//!
//! A store to a mapped file outlives a `kill -9`. Nothing is flushed: the record survives the checker, not the machine. What is
//! written first matters only between two stores of one thread: a write is noted before it is issued, forgotten after its
//! outcome is noted, and a set of candidates grows before it shrinks. A checker that dies between two stores therefore leaves
//! behind more candidates than needed, never fewer.

use polypath_memory::{Region, Window};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Release};

const MAGIC: u64 = u64::from_le_bytes(*b"ppverify");
const VERSION: u64 = 1;
const HEADER: u64 = 4096;
const FLIGHT: u64 = 32;
const SPILL: u64 = 32;
const BLOCK: u64 = 16;
/// Blocks with more than one candidate at a time need these, one for each further candidate.
pub(super) const SPILLS: u32 = 1 << 16;

/// Kind of content that a candidate stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Anything: never written, or discarded.
    Any = 0,
    /// Data of the write of that sequence number.
    Data = 1,
    /// Zeroes.
    Zero = 2,
}

/// Nothing settled is known of the block (the code beside those of [`Kind`]).
const NONE: u64 = 3;
const SEEN: u64 = 1 << 61;
const ACKNOWLEDGED: u64 = 1 << 60;
const SEQUENCE: u64 = (1 << 48) - 1;

/// Something that a block may read as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    pub(super) kind: Kind,
    pub(super) sequence: u64,
    /// Clock when its outcome was known; [`Candidate::PENDING`] if it may still land.
    pub(super) ended: u64,
    /// Clock when it was given up, for one that may still land.
    pub(super) since: u64,
    /// A read has returned it.
    pub(super) seen: bool,
    /// It was acknowledged: it took the place of all that had ended before.
    pub(super) acknowledged: bool,
}

impl Candidate {
    pub(super) const PENDING: u64 = u64::MAX;

    fn word(self) -> u64 {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        pack(self.kind, self.sequence) | flag(self.seen, SEEN) | flag(self.acknowledged, ACKNOWLEDGED)
    }

    fn from_word(word: u64, ended: u64, since: u64) -> Option<Candidate> {
        let kind = match word >> 62 {
            0 => Kind::Any,
            1 => Kind::Data,
            2 => Kind::Zero,
            _ => return None,
        };
        Some(Candidate {
            kind,
            sequence: word & SEQUENCE,
            ended,
            since,
            seen: word & SEEN != 0,
            acknowledged: word & ACKNOWLEDGED != 0,
        })
    }
}

fn pack(kind: Kind, sequence: u64) -> u64 {
    (kind as u64) << 62 | (sequence & SEQUENCE)
}

/// A write whose outcome the checker had not noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flight {
    pub(super) kind: Kind,
    pub(super) sequence: u64,
    pub(super) index: u64,
    pub(super) blocks: u64,
}

/// A record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The operating system said no.
    #[error("verification record {}: {what}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Another checker is using it.
    #[error("verification record {}: another checker is using it; give every checker a record of its own", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is no record, or one of another disk.
    #[error("verification record {}: {what} is {found}, expected {expected}; use the record of this disk, or remove it to begin anew", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Which property.
        what: &'static str,
        /// What the file says.
        found: u64,
        /// What it should say.
        expected: u64,
    },
    /// There is no memory for it.
    #[error("verification record of {blocks} blocks: {source}; verify fewer blocks")]
    Memory {
        /// Blocks to be covered.
        blocks: u64,
        /// Why.
        source: polypath_memory::MemoryError,
    },
}

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) disk: u64,
    pub(super) first_lba: u64,
    pub(super) blocks: u64,
    pub(super) block_size: u64,
    pub(super) flights: u64,
    pub(super) initially_zero: u64,
}

/// The mapped record.
pub(super) struct Record {
    window: Window,
    shape: Shape,
    history: u64,
    run: u64,
    reopened: bool,
    // Dropped last: the lock and the mapping.
    _region: Region,
    _lock: Option<File>,
}

impl Record {
    pub(super) fn open(shape: Shape, path: Option<&Path>) -> Result<Record, RecordError> {
        let len = HEADER + shape.flights * FLIGHT + u64::from(SPILLS) * SPILL + shape.blocks * BLOCK;
        let memory = |source| RecordError::Memory { blocks: shape.blocks, source };
        let (region, lock, reopened) = match path {
            None => (Region::allocate(len, false).map_err(memory)?, None, false),
            Some(path) => {
                let (file, reopened) = open_file(path, len)?;
                let fd = file.try_clone().map_err(|e| system(path, "duplicating its descriptor", e))?;
                (Region::from_fd(std::os::fd::OwnedFd::from(fd), 0, len).map_err(memory)?, Some(file), reopened)
            }
        };
        let window = region.window(0, len).expect("the window is the whole region");
        let mut record = Record { window, shape, history: 0, run: 0, reopened, _region: region, _lock: lock };
        // A file that was made but not finished is begun again: the magic is stored last.
        record.reopened &= record.get(0) != 0;
        if record.reopened {
            record.check(path.expect("only a file can be opened again"))?;
        } else {
            record.begin();
        }
        record.history = record.get(16);
        record.run = record.get(80) + 1;
        record.set(80, record.run);
        Ok(record)
    }

    fn begin(&self) {
        let s = &self.shape;
        let words = [VERSION, rand::random::<u64>() | 1, s.disk, s.first_lba, s.blocks, s.block_size, s.flights];
        for (at, word) in words.into_iter().enumerate() {
            self.set(8 + at as u64 * 8, word);
        }
        self.set(64, s.initially_zero);
        self.set(72, 0);
        self.set(80, 0);
        self.set(0, MAGIC);
    }

    fn check(&self, path: &Path) -> Result<(), RecordError> {
        let s = &self.shape;
        let wanted = [
            (0, "magic number", MAGIC),
            (8, "version", VERSION),
            (24, "disk", s.disk),
            (32, "first block", s.first_lba),
            (40, "number of blocks", s.blocks),
            (48, "block size", s.block_size),
            (56, "limit of writes in flight", s.flights),
            (64, "initial content", s.initially_zero),
        ];
        for (at, what, expected) in wanted {
            let found = self.get(at);
            if found != expected {
                return Err(RecordError::Mismatch { path: path.into(), what, found, expected });
            }
        }
        Ok(())
    }

    pub(super) fn history(&self) -> u64 {
        self.history
    }

    /// Which start of the checker this is, from 1.
    pub(super) fn run(&self) -> u64 {
        self.run
    }

    pub(super) fn reopened(&self) -> bool {
        self.reopened
    }

    /// Counts every request; a sequence number is its value.
    pub(super) fn clock(&self) -> u64 {
        self.get(72)
    }

    pub(super) fn set_clock(&self, clock: u64) {
        self.set(72, clock);
    }

    pub(super) fn flight(&self, slot: u64) -> Option<Flight> {
        let at = HEADER + slot * FLIGHT;
        let word = self.get(at);
        let c = if word == 0 { None } else { Candidate::from_word(word, 0, 0) }?;
        Some(Flight { kind: c.kind, sequence: c.sequence, index: self.get(at + 8), blocks: self.get(at + 16) })
    }

    pub(super) fn set_flight(&self, slot: u64, flight: Option<Flight>) {
        let at = HEADER + slot * FLIGHT;
        self.set(at, 0);
        if let Some(f) = flight {
            self.set(at + 8, f.index);
            self.set(at + 16, f.blocks);
            // Sequence numbers begin at 1, so that this is never zero.
            self.set(at, pack(f.kind, f.sequence));
        }
    }

    pub(super) fn spill(&self, slot: u32) -> Option<(u64, Candidate)> {
        let at = self.spill_at(slot);
        let index = self.get(at).checked_sub(1)?;
        Some((index, Candidate::from_word(self.get(at + 8), self.get(at + 16), self.get(at + 24))?))
    }

    pub(super) fn set_spill(&self, slot: u32, entry: Option<(u64, Candidate)>) {
        let at = self.spill_at(slot);
        self.set(at, 0);
        if let Some((index, c)) = entry {
            self.set(at + 8, c.word());
            self.set(at + 16, c.ended);
            self.set(at + 24, c.since);
            self.set(at, index + 1);
        }
    }

    fn spill_at(&self, slot: u32) -> u64 {
        HEADER + self.shape.flights * FLIGHT + u64::from(slot) * SPILL
    }

    /// The settled candidate of a block, if there is exactly one or several.
    pub(super) fn base(&self, index: u64) -> Option<Candidate> {
        let at = self.block_at(index);
        let word = self.get(at);
        if word == 0 && self.shape.initially_zero != 0 {
            return Some(Candidate {
                kind: Kind::Zero,
                sequence: 0,
                ended: 0,
                since: 0,
                seen: false,
                acknowledged: true,
            });
        }
        Candidate::from_word(word, self.get(at + 8), 0)
    }

    pub(super) fn set_base(&self, index: u64, base: Option<Candidate>) {
        let at = self.block_at(index);
        match base {
            None => self.set(at, NONE << 62),
            Some(c) => {
                self.set(at + 8, c.ended);
                self.set(at, c.word());
            }
        }
    }

    fn block_at(&self, index: u64) -> u64 {
        HEADER + self.shape.flights * FLIGHT + u64::from(SPILLS) * SPILL + index * BLOCK
    }

    #[inline]
    fn get(&self, at: u64) -> u64 {
        self.window.load_u64(at as usize, Acquire).expect("offsets are computed from the shape the window was made for")
    }

    #[inline]
    fn set(&self, at: u64, value: u64) {
        self.window
            .store_u64(at as usize, value, Release)
            .expect("offsets are computed from the shape the window was made for");
    }
}

fn open_file(path: &Path, len: u64) -> Result<(File, bool), RecordError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|e| system(path, "opening it", e))?;
    lock(&file, path)?;
    let found = file.metadata().map_err(|e| system(path, "asking its size", e))?.len();
    if found != 0 && found != len {
        return Err(RecordError::Mismatch { path: path.into(), what: "size in bytes", found, expected: len });
    }
    file.set_len(len).map_err(|e| system(path, "setting its size", e))?;
    Ok((file, found != 0))
}

/// Locks it for this process. A lock that seems to be held may only be a copy of the descriptor in a process that is being
/// started and has not come to its `exec` yet, so that it is tried for a moment.
fn lock(file: &File, path: &Path) -> Result<(), RecordError> {
    let mut tries = 0;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if tries < 100 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(RecordError::InUse { path: path.into() }),
            Err(e) => return Err(system(path, "locking it", e.into())),
        }
    }
}

fn system(path: &Path, what: &'static str, source: std::io::Error) -> RecordError {
    RecordError::System { path: path.into(), what, source }
}
