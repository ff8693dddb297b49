//! virtio-blk requests (virtio 1.2 section 5.2.6): from a chain to what the device is asked.

use crate::guest::GuestMemory;
use crate::ring::{Chain, Plain};
use polypath_block::{Code, DeviceInfo, Flags, Io, Op, SegSpan, SegTable, Status};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Status bytes.
pub(crate) const S_OK: u8 = VIRTIO_BLK_S_OK as u8;
pub(crate) const S_IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
pub(crate) const S_UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// Most ranges in one DISCARD or WRITE ZEROES request.
pub(crate) const MAX_RANGES: usize = 16;
/// Bytes of one range (`struct virtio_blk_discard_write_zeroes`).
const RANGE_BYTES: usize = 16;
/// Bytes of a serial number.
pub(crate) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of a virtio sector, as a power of two.
const SECTOR_SHIFT: u32 = 9;

/// What the guest was told about the disk and what the disk can do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Media {
    /// Block size told, as a power of two.
    pub(crate) block_shift: u32,
    /// Takes no changes.
    pub(crate) read_only: bool,
    /// Does Discard, Write Zeroes.
    pub(crate) discard: bool,
    pub(crate) write_zeroes: bool,
    /// Has a volatile cache; honours FUA.
    pub(crate) write_cache: bool,
    pub(crate) fua: bool,
}

impl Media {
    /// What a device of `block_size` bytes a block, exported as said, can do now.
    pub(crate) fn new(info: &DeviceInfo, block_size: u32, read_only: bool) -> Media {
        let limits = &info.limits;
        Media {
            block_shift: block_size.trailing_zeros(),
            read_only: read_only || limits.read_only,
            discard: limits.max_discard_blocks > 0,
            write_zeroes: limits.max_write_zeroes_blocks > 0,
            write_cache: limits.write_cache,
            fua: limits.fua,
        }
    }

    /// Sectors to blocks, if they are whole ones.
    #[inline]
    fn blocks(&self, sectors: u64) -> Option<u64> {
        let shift = self.block_shift - SECTOR_SHIFT;
        if sectors & ((1 << shift) - 1) == 0 { Some(sectors >> shift) } else { None }
    }

    /// How a change is made durable before it completes, when the guest does not flush.
    pub(crate) fn write_through(&self, op: Op) -> WriteThrough {
        match op {
            _ if !self.write_cache => WriteThrough::Nothing,
            Op::Write if self.fua => WriteThrough::Fua,
            _ => WriteThrough::FlushAfter,
        }
    }
}

/// See [`Media::write_through`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteThrough {
    Nothing,
    Fua,
    FlushAfter,
}

/// One range of a DISCARD or WRITE ZEROES request, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Range {
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
    pub(crate) unmap: bool,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parsed {
    /// One request to the device; this many bytes of guest memory are written when it succeeds.
    Io(Io, u32),
    /// As many ranges of this operation as were put in the room given.
    Ranges(Op, u16),
    /// Done already, with a status and a number of bytes written.
    Now(u8, u32),
}

/// Where a chain's data is, and where the ranges of a request without data go.
pub(crate) struct Place<'a> {
    pub(crate) segs: &'a SegTable,
    /// The chain's segments.
    pub(crate) span: SegSpan,
    pub(crate) memory: &'a GuestMemory,
    /// Room for [`MAX_RANGES`].
    pub(crate) ranges: &'a mut [Range],
}

/// Parses `chain`, whose data is at `place`.
#[inline(never)]
pub(crate) fn parse(chain: &Chain, media: &Media, tag: u64, serial: &[u8; ID_BYTES], place: Place<'_>) -> Parsed {
    if let Some((io, written)) = parse_transfer(chain, media, tag, place.span) {
        return Parsed::Io(io, written);
    }
    let Place { segs, span, memory, .. } = place;
    if chain.fault.is_some() {
        return Parsed::Now(S_IOERR, 1);
    }
    let out = SegSpan { start: span.start, count: chain.out_count };
    let into = SegSpan { start: span.start + chain.out_count, count: chain.in_count };
    match chain.kind {
        // None that can be carried out.
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => Parsed::Now(S_IOERR, 1),
        VIRTIO_BLK_T_FLUSH => Parsed::Io(Io::flush(tag), 1),
        VIRTIO_BLK_T_GET_ID => {
            let n = memory.scatter(segs.get(into), serial);
            Parsed::Now(S_OK, n as u32 + 1)
        }
        VIRTIO_BLK_T_DISCARD if media.discard => parse_ranges(Op::Discard, chain, media, out, place),
        VIRTIO_BLK_T_WRITE_ZEROES if media.write_zeroes => parse_ranges(Op::WriteZeroes, chain, media, out, place),
        _ => Parsed::Now(S_UNSUPP, 1),
    }
}

/// Parses `chain`, whose segments are `span`, if it is a read or a write that can be carried out; and how many bytes of guest memory are
/// written when it succeeds. Whatever else it is, [`parse`] says.
#[inline(always)]
pub(crate) fn parse_transfer(chain: &Chain, media: &Media, tag: u64, span: SegSpan) -> Option<(Io, u32)> {
    if chain.fault.is_some() {
        return None;
    }
    if chain.kind == VIRTIO_BLK_T_IN {
        let into = SegSpan { start: span.start + chain.out_count, count: chain.in_count };
        let (lba, blocks) = extent(media, chain.sector, chain.in_len)?;
        return Some((Io::read(tag, lba, blocks, into), chain.in_len as u32 + 1));
    }
    if chain.kind != VIRTIO_BLK_T_OUT || media.read_only {
        return None;
    }
    let out = SegSpan { start: span.start, count: chain.out_count };
    let (lba, blocks) = extent(media, chain.sector, chain.out_len)?;
    Some((Io::write(tag, lba, blocks, out), 1))
}

/// As [`parse_transfer`], of a request of the usual shape, whose data is the one segment of `span`.
#[inline(always)]
pub(crate) fn plain_transfer(plain: &Plain, media: &Media, span: SegSpan) -> Option<(Io, u32)> {
    let (lba, blocks) = extent(media, plain.sector, plain.data.len.into())?;
    match (plain.kind, plain.into) {
        (VIRTIO_BLK_T_IN, true) => Some((Io::read(plain.head.into(), lba, blocks, span), plain.data.len + 1)),
        (VIRTIO_BLK_T_OUT, false) if !media.read_only => Some((Io::write(plain.head.into(), lba, blocks, span), 1)),
        _ => None,
    }
}

/// The status byte for an outcome.
pub(crate) fn status_byte(status: Status) -> u8 {
    match status.code {
        Code::Ok => S_OK,
        Code::Unsupported => S_UNSUPP,
        _ => S_IOERR,
    }
}

#[inline]
fn extent(media: &Media, sector: u64, bytes: u64) -> Option<(u64, u32)> {
    let block = (1 << media.block_shift) - 1;
    if (sector << SECTOR_SHIFT | bytes) & block != 0 || bytes.wrapping_sub(1) >= u64::from(u32::MAX - 1) {
        return None;
    }
    Some((sector >> (media.block_shift - SECTOR_SHIFT), (bytes >> media.block_shift) as u32))
}

fn parse_ranges(op: Op, chain: &Chain, media: &Media, out: SegSpan, place: Place<'_>) -> Parsed {
    let Place { segs, memory, ranges, .. } = place;
    let count = chain.out_len as usize / RANGE_BYTES;
    if media.read_only || count == 0 || count > MAX_RANGES || !chain.out_len.is_multiple_of(RANGE_BYTES as u64) {
        return Parsed::Now(S_IOERR, 1);
    }
    let mut bytes = [0; MAX_RANGES * RANGE_BYTES];
    let bytes = &mut bytes[..count * RANGE_BYTES];
    if memory.gather(segs.get(out), bytes) != bytes.len() {
        return Parsed::Now(S_IOERR, 1);
    }
    let mut kept = 0;
    for raw in bytes.chunks_exact(RANGE_BYTES) {
        let word = |at: usize, n: usize| raw[at..at + n].iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
        let (sector, sectors, flags) = (word(0, 8), word(8, 4), word(12, 4) as u32);
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && op == Op::Discard) {
            return Parsed::Now(S_UNSUPP, 1);
        }
        let (Some(lba), Some(blocks)) = (media.blocks(sector), media.blocks(sectors)) else {
            return Parsed::Now(S_IOERR, 1);
        };
        if blocks == 0 {
            continue;
        }
        ranges[kept] = Range { lba, blocks: blocks as u32, unmap };
        kept += 1;
    }
    if kept == 0 { Parsed::Now(S_OK, 1) } else { Parsed::Ranges(op, kept as u16) }
}

impl Range {
    /// The request for it.
    pub(crate) fn io(&self, tag: u64, op: Op) -> Io {
        let flags = if self.unmap { Flags::UNMAP } else { Flags::empty() };
        Io::range(tag, op, self.lba, self.blocks).with_flags(flags)
    }
}
