//! From a request to a submission queue entry, and the checks on its memory.

use polypath_block::{Code, Flags, Io, Limits, Op, SegTable, Segment, Status};
use polypath_memory::{Chunk, Table};
use polypath_nvme::Sqe;

/// Bytes of one range of Dataset Management.
pub(crate) const RANGE_LEN: u32 = 16;

/// The command of one part. Limits have cut it to what the fields hold.
#[inline]
pub(crate) fn build(part: &Io, nsid: u32) -> Sqe {
    let nlb_z = (part.blocks.wrapping_sub(1)) as u16;
    let fua = part.flags.contains(Flags::FUA);
    match part.op {
        Op::Read => Sqe::read(0, nsid, part.lba, nlb_z, fua),
        Op::Write => Sqe::write(0, nsid, part.lba, nlb_z, fua),
        // The limits have no Compare and Write: it would be a pair of fused commands.
        Op::Compare | Op::CompareAndWrite => Sqe::compare(0, nsid, part.lba, nlb_z, fua),
        Op::WriteZeroes => Sqe::write_zeroes(0, nsid, part.lba, nlb_z, part.flags.contains(Flags::UNMAP), fua),
        Op::Discard => Sqe::deallocate(0, nsid, 0),
        Op::Flush => Sqe::flush(0, nsid),
    }
}

/// Writes the range of a Discard into place `index` of `ranges`; says where it lies.
pub(crate) fn put_range(ranges: &Chunk, index: u16, part: &Io) -> Option<Segment> {
    let mut range = [0; RANGE_LEN as usize];
    range[4..8].copy_from_slice(&part.blocks.to_le_bytes());
    range[8..16].copy_from_slice(&part.lba.to_le_bytes());
    let at = u32::from(index) * RANGE_LEN;
    ranges.window().copy_in(at as usize, &range).ok()?;
    let whole = ranges.segment();
    Some(Segment { offset: whole.offset + u64::from(at), len: RANGE_LEN, ..whole })
}

/// Can all memory of the request be reached? Once here, so that a bad request costs itself and not the connection.
///
/// # Errors
/// [`Code::BadMemory`].
#[inline]
pub(crate) fn check_memory(io: &Io, block_size: u32, segs: &SegTable) -> Result<(), Status> {
    let len = io.data_len(block_size);
    if len == 0 {
        return Ok(());
    }
    polypath_memory::with(|table| {
        for piece in segs.pieces(io.segs, io.skip.into(), len) {
            table.view(piece).map_err(|_| Status::new(Code::BadMemory))?;
        }
        Ok(())
    })
}

/// What the requests of a batch are held against.
pub(crate) struct Terms<'a> {
    pub(crate) limits: &'a Limits,
    /// Blocks of the namespace, and their size.
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
}

/// The common request: a read or a write of one segment that can be sent as it is. `None` says nothing; otherwise it is the length of the
/// data, and [`Limits::check`], [`check_memory`] (of writes) and [`Limits::fits`] would all agree.
#[inline(always)]
pub(crate) fn common(io: &Io, terms: &Terms<'_>, segs: &SegTable, table: &Table) -> Option<u32> {
    let Terms { limits, blocks, block_size } = terms;
    let write = io.op == Op::Write;
    let able = io.op == Op::Read || (write && !limits.read_only);
    let len = io.blocks.checked_mul(*block_size)?;
    // In the namespace, without an overflow.
    let inside = io.lba <= *blocks && u64::from(io.blocks) <= *blocks - io.lba;
    let segment = segs.get_one(io.segs)?;
    let covered = u64::from(io.skip) + u64::from(len) <= u64::from(segment.len);
    let fits = limits.max_transfer_bytes == 0 || len <= limits.max_transfer_bytes;
    if !able || len == 0 || !inside || !covered || !fits || io.flags != Flags::empty() {
        return None;
    }
    let piece = Segment { offset: segment.offset.wrapping_add(io.skip.into()), len, ..*segment };
    // Memory that a read cannot reach costs that read when its data come; a write's would cost the connection when it is sent.
    (!write || table.view(piece).is_ok()).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{RegionId, SegSpan};
    use polypath_memory::Arena;
    use polypath_nvme::sqe::io;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        /// What is taken without more ado would have passed every check, and needs no cutting.
        #[test]
        fn a_common_request_would_pass_every_check(
            op in prop_oneof![2 => Just(Op::Read), 2 => Just(Op::Write), 1 => prop::sample::select(Op::ALL.to_vec())],
            flags in prop_oneof![4 => Just(0u8), 1 => 0u8..4],
            lba in prop_oneof![0u64..20, any::<u64>()],
            (blocks, skip) in (prop_oneof![0u32..20, any::<u32>()], prop_oneof![Just(0u32), 0u32..9000]),
            (len, offset) in (prop_oneof![0u32..9000, Just(4096u32)], prop_oneof![Just(0u64), any::<u64>()]),
            (count, known) in (prop_oneof![4 => Just(1u32), 1 => 0u32..3], prop::bool::weighted(0.9)),
            (read_only, most) in (any::<bool>(), prop::sample::select(vec![0u32, 512, 4096])),
        ) {
            let chunk = Arena::new(16384, false).unwrap().chunk(16384).unwrap();
            let mut segs = SegTable::new(8);
            let span = segs.reserve(1, 3).unwrap().span(0, count);
            let whole = chunk.segment();
            let region = if known { whole.region } else { RegionId(0xffff_fff0) };
            segs.get_mut(span).fill(Segment { region, offset: whole.offset.wrapping_add(offset), len });
            let limits = Limits { read_only, max_transfer_bytes: most, max_segments: 1, ..Limits::UNLIMITED };
            let io = Io { tag: 1, lba, blocks, op, flags: Flags::from_bits_truncate(flags), segs: span, skip };
            let terms = Terms { limits: &limits, blocks: 24, block_size: 512 };
            if let Some(len) = polypath_memory::with(|table| common(&io, &terms, &segs, table)) {
                prop_assert_eq!(limits.check(&io, 24, 512, &segs), Ok(()));
                prop_assert!(limits.fits(&io, 512, &segs) && u64::from(len) == io.data_len(512));
                prop_assert!(op == Op::Read || check_memory(&io, 512, &segs).is_ok());
            }
        }
    }

    #[test]
    fn a_common_request_is_known_as_one() {
        let chunk = Arena::new(4096, false).unwrap().chunk(4096).unwrap();
        let mut segs = SegTable::new(8);
        let span = segs.reserve(1, 1).unwrap().span(0, 1);
        segs.get_mut(span)[0] = chunk.segment();
        for io in [Io::read(1, 16, 8, span), Io::write(1, 16, 8, span)] {
            for (blocks, len) in [(24, Some(4096)), (23, None), (15, None)] {
                let terms = Terms { limits: &Limits::UNLIMITED, blocks, block_size: 512 };
                assert_eq!(polypath_memory::with(|table| common(&io, &terms, &segs, table)), len);
            }
        }
    }

    #[test]
    fn every_operation_has_its_command() {
        let span = SegSpan::EMPTY;
        let read = build(&Io::read(1, 5, 8, span), 3);
        assert_eq!((read.opcode(), read.nsid(), read.slba(), read.nlb_z(), read.fua()), (io::READ, 3, 5, 7, false));
        let write = build(&Io::write(1, 5, 1 << 16, span).with_flags(Flags::FUA), 3);
        assert_eq!((write.opcode(), write.nlb_z(), write.fua()), (io::WRITE, 0xffff, true));
        let zero = build(&Io::range(1, Op::WriteZeroes, 9, 1).with_flags(Flags::UNMAP), 3);
        assert_eq!((zero.opcode(), zero.deac(), zero.nlb_z()), (io::WRITE_ZEROES, true, 0));
        let discard = build(&Io::range(1, Op::Discard, 9, 1), 3);
        assert!(discard.opcode() == io::DATASET_MANAGEMENT && discard.dsm_deallocate());
        assert_eq!(discard.dsm_ranges_z(), 0);
        assert_eq!(build(&Io::flush(1), 3).opcode(), io::FLUSH);
        assert_eq!(build(&Io { op: Op::Compare, ..Io::read(1, 5, 8, span) }, 3).opcode(), io::COMPARE);
    }

    #[test]
    fn a_range_is_sixteen_octets() {
        let chunk = Arena::new(4096, false).unwrap().chunk(64).unwrap();
        let io = Io::range(1, Op::Discard, 0x1122_3344_5566, 0x77);
        let segment = put_range(&chunk, 2, &io).unwrap();
        assert_eq!((segment.offset, segment.len), (chunk.segment().offset + 32, 16));
        let mut bytes = [0; 16];
        chunk.window().copy_out(32, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0x77, 0, 0, 0, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0]);
        assert!(put_range(&chunk, 4, &io).is_none(), "outside");
    }
}
