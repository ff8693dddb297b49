//! One request, small and plain.

use crate::segment::SegSpan;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Op {
    /// Medium to memory.
    Read,
    /// Memory to medium.
    Write,
    /// Everything completed before through the same device becomes durable. Has no range and no data.
    Flush,
    /// The range reads as zeroes afterwards. With [`Flags::UNMAP`] it may be deallocated. No data.
    WriteZeroes,
    /// The range is no longer needed; it may read as anything consistent afterwards. No data.
    Discard,
    /// The range is compared with memory; [`crate::Code::Miscompare`] if it differs.
    Compare,
    /// The range is compared with the first half of the data; if it does not differ, the second half is written there, and nobody else comes
    /// between ([`crate::Code::Miscompare`] if it differs). Never cut, and never sent twice: a second one would meet what the first has written.
    CompareAndWrite,
}

impl Op {
    /// Every operation, for tables and tests.
    pub const ALL: [Op; 7] =
        [Op::Read, Op::Write, Op::Flush, Op::WriteZeroes, Op::Discard, Op::Compare, Op::CompareAndWrite];

    /// May this change what a later read returns? Such a command is re-driven only after its fence.
    pub const fn changes_medium(self) -> bool {
        matches!(self, Op::Write | Op::WriteZeroes | Op::Discard | Op::CompareAndWrite)
    }

    /// Must it be one command, which is sent once? Where its outcome is not known, [`crate::Code::OutcomeUnknown`] says so.
    pub const fn is_once(self) -> bool {
        matches!(self, Op::CompareAndWrite)
    }

    /// Blocks of data for each block of the range.
    pub const fn data_per_block(self) -> u32 {
        match self {
            Op::Read | Op::Write | Op::Compare => 1,
            Op::CompareAndWrite => 2,
            Op::Flush | Op::WriteZeroes | Op::Discard => 0,
        }
    }

    /// Does data flow from the caller's memory to the device?
    pub const fn data_out(self) -> bool {
        matches!(self, Op::Write | Op::Compare | Op::CompareAndWrite)
    }

    /// Does data flow from the device to the caller's memory?
    pub const fn data_in(self) -> bool {
        matches!(self, Op::Read)
    }

    /// Does it carry data either way?
    pub const fn has_data(self) -> bool {
        self.data_out() || self.data_in()
    }

    /// Does it name a range of blocks? Only [`Op::Flush`] does not.
    pub const fn has_range(self) -> bool {
        !matches!(self, Op::Flush)
    }
}

bitflags::bitflags! {
    /// Modifiers of a request.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct Flags: u8 {
        /// Force unit access: durable when it completes. Only with a device whose limits say so.
        const FUA = 1;
        /// Write Zeroes may deallocate the range.
        const UNMAP = 2;
    }
}

/// One request. `Copy`, so that a retry on another path copies and allocates nothing.
///
/// The data lies in the segments `segs` of the reactor's [`crate::SegTable`], starting `skip` bytes into them and
/// `blocks * block_size` bytes long, or twice that ([`Op::CompareAndWrite`]). Whoever submits guarantees that the segments stay as they are until completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Io {
    /// The submitter's own number for it; comes back in the completion. A queue gives it no meaning.
    pub tag: u64,
    /// First block. Zero for [`Op::Flush`].
    pub lba: u64,
    /// Length in blocks of the device. Zero for [`Op::Flush`], otherwise at least one.
    pub blocks: u32,
    /// What to do.
    pub op: Op,
    /// Modifiers.
    pub flags: Flags,
    /// Where the data lies; [`SegSpan::EMPTY`] when the operation carries none.
    pub segs: SegSpan,
    /// Bytes of `segs` to skip before the data begins (a split part of a larger request).
    pub skip: u32,
}

impl Io {
    /// A read of `blocks` blocks at `lba` into `segs`.
    pub const fn read(tag: u64, lba: u64, blocks: u32, segs: SegSpan) -> Self {
        Io { tag, lba, blocks, op: Op::Read, flags: Flags::empty(), segs, skip: 0 }
    }

    /// A write of `blocks` blocks at `lba` from `segs`.
    pub const fn write(tag: u64, lba: u64, blocks: u32, segs: SegSpan) -> Self {
        Io { tag, lba, blocks, op: Op::Write, flags: Flags::empty(), segs, skip: 0 }
    }

    /// A flush.
    pub const fn flush(tag: u64) -> Self {
        Io { tag, lba: 0, blocks: 0, op: Op::Flush, flags: Flags::empty(), segs: SegSpan::EMPTY, skip: 0 }
    }

    /// A request without data over a range: [`Op::WriteZeroes`] or [`Op::Discard`].
    pub const fn range(tag: u64, op: Op, lba: u64, blocks: u32) -> Self {
        Io { tag, lba, blocks, op, flags: Flags::empty(), segs: SegSpan::EMPTY, skip: 0 }
    }

    /// The same request with `flags`.
    #[must_use]
    pub const fn with_flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// Bytes of data it moves on a device of `block_size` bytes a block; zero when it carries none.
    pub const fn data_len(&self, block_size: u32) -> u64 {
        self.blocks as u64 * block_size as u64 * self.op.data_per_block() as u64
    }
}
