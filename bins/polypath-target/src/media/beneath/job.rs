//! What a connection wants of a disk beneath.

use super::{Beneath, Range};
use polypath_block::{Limits, Op};
use std::sync::Arc;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    Read,
    Write,
    /// Blocks read as zero afterwards; they may be deallocated for that.
    Zero {
        unmap: bool,
    },
    /// Blocks are of no interest any more.
    Discard,
    Compare,
    Flush,
}

impl Task {
    /// The request that does it on a device with these limits. `None`: there is nothing that could be asked for, and nothing is promised.
    pub(super) fn op(self, limits: &Limits) -> Option<Op> {
        Some(match self {
            Task::Read => Op::Read,
            Task::Write => Op::Write,
            Task::Zero { .. } if limits.max_write_zeroes_blocks > 0 => Op::WriteZeroes,
            Task::Zero { .. } => Op::Write,
            Task::Discard if limits.max_discard_blocks > 0 => Op::Discard,
            Task::Discard => return None,
            Task::Compare if limits.compare => Op::Compare,
            // Compared here.
            Task::Compare => Op::Read,
            Task::Flush => Op::Flush,
        })
    }

    pub(super) fn changes(self) -> bool {
        matches!(self, Task::Write | Task::Zero { .. } | Task::Discard)
    }
}

/// One command, or its share of one disk.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) medium: Arc<Beneath>,
    pub(crate) task: Task,
    /// The connection's number for it; comes back in [`super::Ended`].
    pub(crate) tag: u32,
    /// Blocks, in blocks of the device; none for a flush. The connection has checked that there are such.
    pub(crate) first: Range,
    /// Further ranges.
    pub(crate) more: Vec<Range>,
    /// What is written or compared, over and over where the blocks are more. What is read comes back in it.
    pub(crate) data: Vec<u8>,
    /// Durable when it is done.
    pub(crate) fua: bool,
}

impl Job {
    pub(crate) fn new(medium: Arc<Beneath>, task: Task, tag: u32, first: Range) -> Job {
        Job { medium, task, tag, first, more: Vec::new(), data: Vec::new(), fua: false }
    }

    /// The same with `data`.
    pub(crate) fn with_data(self, data: Vec<u8>) -> Job {
        Job { data, ..self }
    }

    /// The same, durable when it is done.
    pub(crate) fn with_fua(self, fua: bool) -> Job {
        Job { fua, ..self }
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        std::iter::once(self.first).chain(self.more.iter().copied()).filter(|(_, blocks)| *blocks > 0)
    }

    /// Range `number`, those without blocks included.
    pub(super) fn range(&self, number: usize) -> Option<Range> {
        if number == 0 { Some(self.first) } else { self.more.get(number - 1).copied() }
    }
}

/// What a connection tells the engine of its thread.
#[derive(Debug)]
pub(crate) enum Order {
    Start(Job),
    /// The job of this tag is of no interest any more. What of it is not with the device is not begun; the rest is a ghost.
    Cancel(u32),
}
