//! From a request to a CDB and its data, and the checks on its memory.

use crate::Cdb;
use crate::cdb::{ByteCheck, RwFlags, WriteSame};
use crate::midlayer::probe::DiskTraits;
use crate::midlayer::task::TaskData;
use crate::unmap;
use polypath_block::{Code, Flags, Io, Op, SegRow, SegTable, Segment, Status};
use polypath_memory::{Arena, Chunk, MemoryError};

/// Octets of the parameter list of UNMAP with one descriptor (SBC-3 section 5.28).
const UNMAP_LEN: u32 = 24;
/// What each request has for its parameter list.
const PLACE: u32 = 32;
/// The largest logical block.
const BLOCK: u32 = 64 << 10;
/// Data that a probe asks for at a time.
pub(super) const PROBE: u32 = 4 << 10;

/// Parameters that a probe sends at a time.
const PARAMETERS: u32 = 4 << 10;

/// Memory for what a queue sends and receives on its own account.
pub(crate) struct Memory {
    places: Chunk,
    /// Never written.
    zeroes: Chunk,
    probe: Chunk,
    /// What a probe sends: beside what it receives, for an answer that nobody waits for any more may still come.
    parameters: Chunk,
    row: Option<SegRow>,
    slots: u16,
}

impl Memory {
    pub(crate) fn new(slots: u16) -> Result<Memory, MemoryError> {
        let len = u32::from(slots) * PLACE;
        let whole = u64::from(len.next_multiple_of(4096)) + u64::from(BLOCK) + u64::from(PROBE) + u64::from(PARAMETERS);
        let arena = Arena::new(whole, false)?;
        let chunk = |len| arena.chunk(len).expect("the arena was made for it");
        let (places, zeroes) = (chunk(len), chunk(BLOCK));
        Ok(Memory { places, zeroes, probe: chunk(PROBE), parameters: chunk(PARAMETERS), row: None, slots })
    }

    /// Has its rows in the segment table; called each turn until it has.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.row.is_some()
    }

    pub(crate) fn reserve(&mut self, segs: &mut SegTable) {
        if self.row.is_none() {
            self.row = segs.reserve(u32::from(self.slots) + 2, 1).ok();
        }
    }

    pub(super) fn release(&mut self, segs: &mut SegTable) {
        if let Some(row) = self.row.take() {
            segs.release(row);
        }
    }

    /// Where `len` octets of a probe's data go.
    pub(crate) fn probe_data(&self, segs: &mut SegTable, len: u32) -> Option<TaskData> {
        if len == 0 {
            return Some(TaskData::None);
        }
        let span = self.row.as_ref()?.span(self.slots.into(), 1);
        let len = len.min(PROBE);
        segs.get_mut(span)[0] = Segment { len, ..self.probe.segment() };
        Some(TaskData::In { span, skip: 0, len })
    }

    /// `octets`, at most [`PARAMETERS`] of them, for a probe to send.
    pub(crate) fn probe_out(&self, segs: &mut SegTable, octets: &[u8]) -> Option<TaskData> {
        self.parameters.window().copy_in(0, octets).ok()?;
        let (span, len) = (self.row.as_ref()?.span(u32::from(self.slots) + 1, 1), octets.len() as u32);
        segs.get_mut(span)[0] = Segment { len, ..self.parameters.segment() };
        Some(TaskData::Out { span, skip: 0, len })
    }

    /// What came of it.
    pub(crate) fn probe_octets(&self, len: u32) -> Vec<u8> {
        let mut octets = vec![0; len.min(PROBE) as usize];
        if self.probe.window().copy_out(0, &mut octets).is_err() {
            octets.clear();
        }
        octets
    }

    fn unmap(&self, segs: &mut SegTable, index: u16, part: &Io) -> Option<TaskData> {
        let at = u32::from(index) * PLACE;
        let list = unmap::one_range(unmap::Range { lba: part.lba, blocks: part.blocks });
        self.places.window().copy_in(at as usize, &list).ok()?;
        let whole = self.places.segment();
        self.place(segs, index, Segment { offset: whole.offset + u64::from(at), len: UNMAP_LEN, ..whole })
    }

    fn zero_block(&self, segs: &mut SegTable, index: u16, block_size: u32) -> Option<TaskData> {
        self.place(segs, index, Segment { len: block_size.min(BLOCK), ..self.zeroes.segment() })
    }

    fn place(&self, segs: &mut SegTable, index: u16, segment: Segment) -> Option<TaskData> {
        let span = self.row.as_ref()?.span(index.into(), 1);
        segs.get_mut(span)[0] = segment;
        Some(TaskData::Out { span, skip: 0, len: segment.len })
    }
}

/// The command of one part in slot `index`, and its data. `None`: no memory for its parameters yet.
#[inline]
pub(super) fn build(
    part: &Io,
    traits: &DiskTraits,
    memory: &Memory,
    segs: &mut SegTable,
    index: u16,
) -> Option<(Cdb, TaskData)> {
    let fua = part.flags.contains(Flags::FUA);
    let len = part.blocks.wrapping_mul(traits.block_size);
    let (span, skip) = (part.segs, part.skip);
    Some(match part.op {
        Op::Read => (Cdb::read(traits.form, part.lba, part.blocks, fua), TaskData::In { span, skip, len }),
        Op::Write => (Cdb::write(traits.form, part.lba, part.blocks, fua), TaskData::Out { span, skip, len }),
        Op::Flush if traits.wide => (Cdb::synchronize_cache_16(0, 0, false), TaskData::None),
        Op::Flush => (Cdb::synchronize_cache_10(0, 0, false), TaskData::None),
        Op::Compare => {
            (Cdb::verify_16(part.lba, part.blocks, ByteCheck::Data, false), TaskData::Out { span, skip, len })
        }
        Op::CompareAndWrite => {
            let flags = if fua { RwFlags::FUA } else { RwFlags::empty() };
            let cdb = Cdb::compare_and_write(part.lba, part.blocks as u8, flags);
            (cdb, TaskData::Out { span, skip, len: len.wrapping_mul(2) })
        }
        Op::Discard => (Cdb::unmap(UNMAP_LEN as u16, false), memory.unmap(segs, index, part)?),
        Op::WriteZeroes => {
            let unmap = part.flags.contains(Flags::UNMAP) && traits.zero_by_unmap;
            let how = WriteSame { unmap, ..WriteSame::default() };
            let data = memory.zero_block(segs, index, traits.block_size)?;
            (Cdb::write_same_16(part.lba, part.blocks, how), data)
        }
    })
}

/// Can all memory of the request be reached? Once here, so that a bad request costs itself and not the way.
///
/// # Errors
/// [`Code::BadMemory`].
#[inline]
pub(super) fn check_memory(io: &Io, block_size: u32, segs: &SegTable) -> Result<(), Status> {
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
