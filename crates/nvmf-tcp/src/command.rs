//! From a request to a submission queue entry, and the checks on its memory.

use polypath_block::{Code, Flags, Io, Op, SegTable, Segment, Status};
use polypath_memory::Chunk;
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
        Op::Compare => Sqe::compare(0, nsid, part.lba, nlb_z, fua),
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

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::SegSpan;
    use polypath_memory::Arena;
    use polypath_nvme::sqe::io;

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
