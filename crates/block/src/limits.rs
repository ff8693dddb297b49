//! What a device takes in one request, and how to cut what is larger.

use crate::io::{Flags, Io, Op};
use crate::segment::SegTable;
use crate::status::{Code, Status};

/// Limits and abilities of a device. Zero means "no limit" where a field says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest data transfer in bytes, a multiple of the block size; zero: no limit.
    pub max_transfer_bytes: u32,
    /// Most segments in one request; zero: no limit.
    pub max_segments: u32,
    /// Largest Write Zeroes in blocks; zero: not supported.
    pub max_write_zeroes_blocks: u32,
    /// Largest Discard in blocks; zero: not supported.
    pub max_discard_blocks: u32,
    /// Discards should be multiples of this many blocks; at least one.
    pub discard_granularity_blocks: u32,
    /// Preferred transfer in blocks; zero: unknown.
    pub optimal_blocks: u32,
    /// Has a volatile write cache: Flush means something.
    pub write_cache: bool,
    /// Honours [`Flags::FUA`].
    pub fua: bool,
    /// Does [`Op::Compare`].
    pub compare: bool,
    /// Largest [`Op::CompareAndWrite`] in blocks of its range; zero: not supported.
    pub max_compare_and_write_blocks: u32,
    /// Takes no changes.
    pub read_only: bool,
}

impl Limits {
    /// No limits, no write cache, every ability but [`Op::CompareAndWrite`], which somebody must see to: what memory can do.
    pub const UNLIMITED: Limits = Limits {
        max_transfer_bytes: 0,
        max_segments: 0,
        max_write_zeroes_blocks: u32::MAX,
        max_discard_blocks: u32::MAX,
        discard_granularity_blocks: 1,
        optimal_blocks: 0,
        write_cache: false,
        fua: true,
        compare: true,
        max_compare_and_write_blocks: 0,
        read_only: false,
    };

    /// The limits that both `self` and `other` keep. `write_cache` is set when either has one.
    #[must_use]
    pub fn meet(self, other: Limits) -> Limits {
        let least = |a: u32, b: u32| match (a, b) {
            (0, x) | (x, 0) => x,
            (a, b) => a.min(b),
        };
        Limits {
            max_transfer_bytes: least(self.max_transfer_bytes, other.max_transfer_bytes),
            max_segments: least(self.max_segments, other.max_segments),
            max_write_zeroes_blocks: self.max_write_zeroes_blocks.min(other.max_write_zeroes_blocks),
            max_discard_blocks: self.max_discard_blocks.min(other.max_discard_blocks),
            discard_granularity_blocks: self.discard_granularity_blocks.max(other.discard_granularity_blocks),
            optimal_blocks: self.optimal_blocks.max(other.optimal_blocks),
            write_cache: self.write_cache || other.write_cache,
            fua: self.fua && other.fua,
            compare: self.compare && other.compare,
            max_compare_and_write_blocks: self.max_compare_and_write_blocks.min(other.max_compare_and_write_blocks),
            read_only: self.read_only || other.read_only,
        }
    }

    /// Most blocks of `op` in one request on a device of `block_size` bytes a block.
    pub fn max_blocks(&self, op: Op, block_size: u32) -> u32 {
        match op {
            Op::Read | Op::Write | Op::Compare => match self.max_transfer_bytes {
                0 => u32::MAX,
                bytes => (bytes / block_size.max(1)).max(1),
            },
            Op::WriteZeroes => self.max_write_zeroes_blocks,
            Op::Discard => self.max_discard_blocks,
            Op::CompareAndWrite => self.max_compare_and_write_blocks,
            Op::Flush => u32::MAX,
        }
    }

    /// Is `io` one this device can be asked at all? Checks ability, range, and that the segments cover the data.
    /// Size limits are not checked: a request that is too large is split, not refused, unless it must be one command ([`Op::is_once`]).
    ///
    /// # Errors
    /// A status of scope `Io` that says why not.
    #[inline]
    pub fn check(&self, io: &Io, blocks_total: u64, block_size: u32, segs: &SegTable) -> Result<(), Status> {
        let ends = io.lba.checked_add(u64::from(io.blocks)).is_some_and(|end| end <= blocks_total);
        let usual = io.op == Op::Read || (io.op == Op::Write && !self.read_only);
        if usual && io.flags.is_empty() && io.blocks > 0 && ends && covers(io, block_size, segs) {
            return Ok(());
        }
        self.find_fault(io, blocks_total, block_size, segs)
    }

    /// What is wrong with an unusual request, if anything is.
    fn find_fault(&self, io: &Io, blocks_total: u64, block_size: u32, segs: &SegTable) -> Result<(), Status> {
        if self.read_only && (io.op.changes_medium()) {
            return Err(Code::WriteProtected.into());
        }
        let able = match io.op {
            Op::WriteZeroes => self.max_write_zeroes_blocks > 0,
            Op::Discard => self.max_discard_blocks > 0,
            Op::Compare => self.compare,
            Op::CompareAndWrite => self.max_compare_and_write_blocks > 0,
            _ => true,
        };
        if !able || (io.flags.contains(Flags::FUA) && !self.fua) {
            return Err(Code::Unsupported.into());
        }
        if !io.op.has_range() {
            return Ok(());
        }
        if io.blocks == 0 || (io.op.is_once() && io.blocks > self.max_blocks(io.op, block_size)) {
            return Err(Code::Invalid.into());
        }
        match io.lba.checked_add(u64::from(io.blocks)) {
            Some(end) if end <= blocks_total => {}
            _ => return Err(Code::OutOfRange.into()),
        }
        if io.op.has_data() && !covers(io, block_size, segs) {
            return Err(Code::Invalid.into());
        }
        Ok(())
    }

    /// Does `io` fit in one request?
    pub fn fits(&self, io: &Io, block_size: u32, segs: &SegTable) -> bool {
        if io.blocks > self.max_blocks(io.op, block_size) {
            return false;
        }
        if self.max_segments == 0 || !io.op.has_data() || io.segs.count <= self.max_segments {
            return true;
        }
        segs.pieces(io.segs, u64::from(io.skip), io.data_len(block_size)).count() as u64 <= u64::from(self.max_segments)
    }
}

/// Do the segments of a request with data cover it? Parts count the bytes they skip in 32 bits.
#[inline]
fn covers(io: &Io, block_size: u32, segs: &SegTable) -> bool {
    let end = u64::from(io.skip) + io.data_len(block_size);
    end <= u64::from(u32::MAX) && segs.span_len(io.segs) >= end
}

/// The limits of a device make no sense together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("limit {what} is {value}, expected {expected}")]
pub struct LimitsError {
    /// Which limit.
    pub what: &'static str,
    /// Its value.
    pub value: u64,
    /// What would do.
    pub expected: &'static str,
}

/// One part of a split request.
pub type Part = Io;

/// Cuts one request into parts that fit the limits, in order, without allocating.
///
/// Every part has the tag of the whole; its caller gives it another. A flush is one part.
#[derive(Clone, Copy, Debug)]
pub struct Splitter {
    rest: Option<Io>,
    max_blocks: u32,
    max_segments: u32,
    block_size: u32,
}

impl Splitter {
    /// Splits `io` for a device with `limits` and `block_size`.
    pub fn new(io: Io, limits: &Limits, block_size: u32) -> Self {
        Splitter {
            rest: Some(io),
            max_blocks: limits.max_blocks(io.op, block_size),
            max_segments: limits.max_segments,
            block_size,
        }
    }

    /// Can all of it be cut? Where it cannot, [`Splitter::next_part`] ends with an error.
    pub fn can_cut(&self, segs: &SegTable) -> bool {
        let mut parts = *self;
        let any = self.max_blocks > 0 && self.max_segments == 0;
        any || std::iter::from_fn(|| parts.next_part(segs)).all(|part| part.is_ok())
    }

    /// What was not given out yet.
    pub const fn rest(&self) -> Option<Io> {
        self.rest
    }

    /// The next part, or `None` when all were given out.
    ///
    /// Segments that cannot be cut at a block border within the segment limit end the split with
    /// [`Code::Invalid`], an operation that the limits do not have with [`Code::Unsupported`]; what is left then must be failed with it.
    pub fn next_part(&mut self, segs: &SegTable) -> Option<Result<Part, Status>> {
        let io = self.rest.take()?;
        if self.max_blocks == 0 {
            return Some(Err(Code::Unsupported.into()));
        }
        let mut blocks = io.blocks.min(self.max_blocks);
        if io.op.has_data() && self.max_segments > 0 {
            let want = Io { blocks, ..io }.data_len(self.block_size);
            let covered: u64 = segs
                .pieces(io.segs, u64::from(io.skip), want)
                .take(self.max_segments as usize)
                .map(|s| u64::from(s.len))
                .sum();
            if covered < want {
                blocks = (covered / u64::from(self.block_size)) as u32;
                if blocks == 0 || io.op.is_once() {
                    return Some(Err(Code::Invalid.into()));
                }
            }
        }
        if blocks < io.blocks && io.op.is_once() {
            return Some(Err(Code::Invalid.into()));
        }
        if blocks < io.blocks {
            let data = if io.op.has_data() { blocks * self.block_size } else { 0 };
            self.rest =
                Some(Io { lba: io.lba + u64::from(blocks), blocks: io.blocks - blocks, skip: io.skip + data, ..io });
        }
        Some(Ok(Io { blocks, ..io }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{RegionId, SegSpan, Segment};

    fn table(lens: &[u32]) -> (SegTable, SegSpan) {
        let mut t = SegTable::new(64);
        let row = t.reserve(1, lens.len() as u32).unwrap();
        let span = row.span(0, lens.len() as u32);
        for (s, &len) in t.get_mut(span).iter_mut().zip(lens) {
            *s = Segment { offset: 0, region: RegionId(1), len };
        }
        (t, span)
    }

    fn split(io: Io, limits: &Limits, bs: u32, t: &SegTable) -> Vec<Result<(u64, u32, u32), Status>> {
        let mut s = Splitter::new(io, limits, bs);
        std::iter::from_fn(|| s.next_part(t)).map(|p| p.map(|p| (p.lba, p.blocks, p.skip))).collect()
    }

    #[test]
    fn splits_at_transfer_and_at_segments() {
        let (t, span) = table(&[512, 512, 3072]);
        let io = Io::read(9, 100, 8, span);
        let by_bytes = Limits { max_transfer_bytes: 1536, ..Limits::UNLIMITED };
        assert_eq!(split(io, &by_bytes, 512, &t), [Ok((100, 3, 0)), Ok((103, 3, 1536)), Ok((106, 2, 3072))]);
        let by_segs = Limits { max_segments: 2, ..Limits::UNLIMITED };
        assert_eq!(split(io, &by_segs, 512, &t), [Ok((100, 2, 0)), Ok((102, 6, 1024))]);
        assert!(!by_segs.fits(&io, 512, &t) && Limits::UNLIMITED.fits(&io, 512, &t));
    }

    #[test]
    fn uncuttable_segments_end_with_an_error() {
        let (t, span) = table(&[100, 100, 312]);
        let limits = Limits { max_segments: 2, ..Limits::UNLIMITED };
        assert_eq!(split(Io::read(1, 0, 1, span), &limits, 512, &t), [Err(Status::new(Code::Invalid))]);
        assert!(!Splitter::new(Io::read(1, 0, 1, span), &limits, 512).can_cut(&t));
    }

    #[test]
    fn what_can_be_cut_and_what_is_left_is_known() {
        // The second block is of three segments.
        let (t, span) = table(&[512, 100, 100, 312]);
        let io = Io::read(9, 100, 2, span);
        for (max_segments, can) in [(0, true), (1, false), (2, false), (3, true), (4, true)] {
            let mut parts = Splitter::new(io, &Limits { max_segments, ..Limits::UNLIMITED }, 512);
            assert_eq!(parts.can_cut(&t), can, "{max_segments}");
            assert_eq!(parts.rest(), Some(io), "nothing was given out");
            let first = parts.next_part(&t);
            let rest = (max_segments % 4 != 0).then_some(Io { lba: 101, blocks: 1, skip: 512, ..io });
            assert_eq!((first.map(|f| f.is_ok()), parts.rest()), (Some(true), rest), "{max_segments}");
        }
    }

    #[test]
    fn ranges_without_data_split_by_their_own_limit() {
        let (t, _) = table(&[1]);
        let limits = Limits { max_write_zeroes_blocks: 5, ..Limits::UNLIMITED };
        let got = split(Io::range(1, Op::WriteZeroes, 0, 12), &limits, 512, &t);
        assert_eq!(got, [Ok((0, 5, 0)), Ok((5, 5, 0)), Ok((10, 2, 0))]);
        assert_eq!(split(Io::flush(1), &limits, 512, &t), [Ok((0, 0, 0))]);
    }

    #[test]
    fn compare_and_write_is_one_command_with_twice_the_data() {
        let (t, span) = table(&[2048, 2048]);
        let io = |blocks| Io { op: Op::CompareAndWrite, ..Io::write(1, 0, blocks, span) };
        let limits = Limits { max_compare_and_write_blocks: 4, ..Limits::UNLIMITED };
        let check = |io: Io, limits: Limits| limits.check(&io, 100, 512, &t).map_err(|s| s.code);
        assert_eq!(io(3).data_len(512), 3072);
        assert_eq!([check(io(4), limits), check(io(5), limits)], [Ok(()), Err(Code::Invalid)], "it is not cut");
        let five = Limits { max_compare_and_write_blocks: 5, ..limits };
        assert_eq!(check(io(5), five), Err(Code::Invalid), "the segments hold four blocks twice");
        assert_eq!(check(io(1), Limits::UNLIMITED), Err(Code::Unsupported));
        assert_eq!(check(io(1), Limits { read_only: true, ..limits }), Err(Code::WriteProtected));
        assert_eq!(split(io(4), &limits, 512, &t), [Ok((0, 4, 0))]);
        for less in [Limits { max_compare_and_write_blocks: 3, ..limits }, Limits { max_segments: 1, ..limits }] {
            assert_eq!(split(io(4), &less, 512, &t), [Err(Code::Invalid.into())]);
        }
        assert_eq!(limits.meet(five).max_compare_and_write_blocks, 4);
    }

    #[test]
    fn check_names_what_is_wrong() {
        let (t, span) = table(&[4096]);
        let check = |io: Io, l: Limits| l.check(&io, 100, 512, &t).map_err(|s| s.code);
        let l = Limits::UNLIMITED;
        assert_eq!(check(Io::read(1, 99, 2, span), l), Err(Code::OutOfRange));
        assert_eq!(check(Io::read(1, u64::MAX, 2, span), l), Err(Code::OutOfRange));
        assert_eq!(check(Io::read(1, 0, 9, span), l), Err(Code::Invalid));
        assert_eq!(check(Io::read(1, 0, 0, span), l), Err(Code::Invalid));
        assert_eq!(check(Io::read(1, 92, 8, span), l), Ok(()));
        let (huge, span4g) = table(&[u32::MAX, u32::MAX]);
        let four_gib = Io::read(1, 0, 1 << 20, span4g);
        assert_eq!(l.check(&four_gib, 1 << 21, 4096, &huge), Err(Code::Invalid.into()), "its parts could not be named");
        assert_eq!(l.check(&Io { blocks: (1 << 20) - 1, ..four_gib }, 1 << 21, 4096, &huge), Ok(()));
        assert_eq!(check(Io::write(1, 0, 1, span), Limits { read_only: true, ..l }), Err(Code::WriteProtected));
        let none = Limits { max_discard_blocks: 0, ..l };
        assert_eq!(check(Io::range(1, Op::Discard, 0, 1), none), Err(Code::Unsupported));
    }
}
