//! Commands about blocks (SBC-3).

use super::{Outcome, Verdict, sense};
use crate::iscsi::Env;
use crate::iscsi::conn::Conn;
use crate::iscsi::send::Source;
use crate::media::Medium;
use crate::media::beneath::{Job, Range, Task};
use crate::store::Disk;
use polypath_iscsi::pdu::ScsiCommand;
use polypath_scsi::cdb::{ByteCheck, RwFlags, StartStop, WriteSame};
use polypath_scsi::command::Transfer;

/// MAXIMUM COMPARE AND WRITE LENGTH.
pub(super) const COMPARE_AND_WRITE_BLOCKS: u8 = 128;
/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub(super) const UNMAP_RANGES: u32 = 256;
/// MAXIMUM UNMAP LBA COUNT.
pub(super) const UNMAP_BLOCKS: u32 = 1 << 20;
/// MAXIMUM WRITE SAME LENGTH.
pub(super) const WRITE_SAME_BLOCKS: u64 = 1 << 15;

/// First byte and length in bytes of a range of blocks, if there are such.
#[inline]
pub(super) fn range(disk: &Disk, lba: u64, blocks: u64) -> Result<(u64, u64), Verdict> {
    match lba.checked_add(blocks) {
        Some(end) if end <= disk.blocks => Ok((lba << disk.shift, blocks << disk.shift)),
        _ => Err(Verdict::check(sense::LBA_OUT_OF_RANGE.with_information(disk.blocks.max(lba)))),
    }
}

/// The same, for a transfer that must not be too long.
#[inline]
pub(super) fn transfer(env: &Env<'_>, disk: &Disk, lba: u64, blocks: u32) -> Result<(u64, u64), Verdict> {
    let found = range(disk, lba, blocks.into())?;
    if found.1 > env.iscsi.shared.config.iscsi.max_transfer.into() {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    }
    Ok(found)
}

impl Conn {
    #[inline]
    pub(super) fn read(&mut self, env: &Env<'_>, cmd: &ScsiCommand, t: Transfer) -> Outcome {
        let disk = self.disk(cmd)?;
        self.access(env, disk, &polypath_scsi::Command::Read(t))?;
        let (offset, len) = transfer(env, disk, t.lba, t.blocks)?;
        let medium = disk.medium.clone();
        if let Medium::Beneath(beneath) = &*medium {
            let job = Job::new(beneath.clone(), Task::Read, 0, (t.lba, t.blocks.into()));
            self.start(env, cmd, job, len);
            return Ok(());
        }
        self.data_in(env, cmd, Source::Medium(&medium, offset), len);
        Ok(())
    }
}

/// WRITE, and WRITE AND VERIFY. Where the initiator sends less than the command wants, the blocks that came as a whole are written.
#[inline]
pub(super) fn write(env: &Env<'_>, disk: &Disk, t: Transfer, data: &[u8]) -> Outcome {
    let (offset, len) = transfer(env, disk, t.lba, t.blocks)?;
    let block = 1usize << disk.shift;
    if !data.len().is_multiple_of(block) {
        return Err(Verdict::check(sense::INFORMATION_UNIT));
    }
    let data = data.get(..len as usize).unwrap_or(data);
    disk.medium.write(offset, data)?;
    if t.flags.contains(RwFlags::FUA) {
        disk.medium.persist(offset, data.len() as u64)?;
    }
    Ok(())
}

pub(super) fn flush(disk: &Disk, lba: u64, blocks: u32) -> Outcome {
    range(disk, lba, blocks.into())?;
    Ok(disk.medium.flush()?)
}

/// START STOP UNIT: the medium cannot be removed, and stopping keeps it ready, but what was written is made durable.
pub(super) fn start_stop(disk: &Disk, what: StartStop) -> Outcome {
    if what.load_eject && what.condition.0 == 0 {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    }
    if !what.start && !what.no_flush {
        disk.medium.flush()?;
    }
    Ok(())
}

/// What VERIFY is about. As much as one command may transfer is compared, with one block as well: nobody else has his turn meanwhile.
pub(super) fn verify_range(
    env: &Env<'_>,
    disk: &Disk,
    (lba, blocks): (u64, u32),
    check: ByteCheck,
) -> Result<(u64, u64), Verdict> {
    match check {
        ByteCheck::None => range(disk, lba, blocks.into()),
        ByteCheck::Data | ByteCheck::OneBlock => transfer(env, disk, lba, blocks),
    }
}

pub(super) fn verify(env: &Env<'_>, disk: &Disk, (lba, blocks): (u64, u32), check: ByteCheck, data: &[u8]) -> Outcome {
    let (offset, len) = verify_range(env, disk, (lba, blocks), check)?;
    let block = 1usize << disk.shift;
    match check {
        ByteCheck::None => Ok(()),
        ByteCheck::Data => {
            let data = data.get(..len as usize).unwrap_or(data);
            compare(disk, offset, data)
        }
        ByteCheck::OneBlock => {
            let data = data.get(..block).ok_or(Verdict::check(sense::INFORMATION_UNIT))?;
            (0..u64::from(blocks)).try_for_each(|i| compare(disk, offset + (i << disk.shift), data))
        }
    }
}

fn compare(disk: &Disk, offset: u64, data: &[u8]) -> Outcome {
    match disk.medium.compare(offset, data)? {
        true => Ok(()),
        false => Err(Verdict::check(sense::MISCOMPARE)),
    }
}

/// COMPARE AND WRITE: all or nothing, so that the initiator must expect to send what the command takes.
pub(super) fn compare_and_write(disk: &Disk, t: Transfer, expected_len: u32, data: &[u8]) -> Outcome {
    if t.blocks > COMPARE_AND_WRITE_BLOCKS.into() {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    }
    let (offset, len) = range(disk, t.lba, t.blocks.into())?;
    if data.len() as u64 != 2 * len || u64::from(expected_len) != 2 * len {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    }
    let (expected, new) = data.split_at(len as usize);
    if let Some(at) = disk.medium.compare_and_write(offset, expected, new)? {
        return Err(Verdict::check(sense::MISCOMPARE.with_information(at as u64)));
    }
    if t.flags.contains(RwFlags::FUA) {
        disk.medium.persist(offset, len)?;
    }
    Ok(())
}

pub(super) fn unmap(disk: &Disk, anchor: bool, data: &[u8]) -> Outcome {
    for (lba, blocks) in unmap_ranges(disk, anchor, data)? {
        disk.medium.zero(lba << disk.shift, blocks << disk.shift)?;
    }
    Ok(())
}

/// The blocks that UNMAP names, in ranges that are not empty.
pub(super) fn unmap_ranges(disk: &Disk, anchor: bool, data: &[u8]) -> Result<Vec<Range>, Verdict> {
    if anchor {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_CDB));
    }
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let short = Verdict::check(sense::PARAMETER_LENGTH);
    let ranges = polypath_scsi::unmap::parse(data).map_err(|_| short)?;
    let total: u64 = ranges.clone().map(|r| u64::from(r.blocks)).sum();
    if ranges.len() > UNMAP_RANGES as usize || total > UNMAP_BLOCKS.into() {
        return Err(Verdict::check(sense::INVALID_FIELD_IN_PARAMETERS));
    }
    ranges.clone().try_for_each(|r| range(disk, r.lba, r.blocks.into()).map(|_| ()))?;
    Ok(ranges.filter(|r| r.blocks > 0).map(|r| (r.lba, r.blocks.into())).collect())
}

/// First byte and length in bytes of what WRITE SAME writes.
pub(super) fn write_same_range(
    disk: &Disk,
    (lba, blocks): (u64, u32),
    how: WriteSame,
    data: &[u8],
) -> Result<(u64, u64), Verdict> {
    let invalid = Verdict::check(sense::INVALID_FIELD_IN_CDB);
    if how.anchor || u64::from(blocks) > WRITE_SAME_BLOCKS {
        return Err(invalid);
    }
    // WSNZ: nobody gets the rest of the disk by leaving the number out.
    let found = range(disk, lba, blocks.into())?;
    if blocks == 0 {
        return Err(invalid);
    }
    if !how.no_data && data.len() != 1 << disk.shift {
        return Err(Verdict::check(sense::INFORMATION_UNIT));
    }
    Ok(found)
}

pub(super) fn write_same(
    env: &Env<'_>,
    disk: &Disk,
    (lba, blocks): (u64, u32),
    how: WriteSame,
    data: &[u8],
) -> Outcome {
    let (offset, len) = write_same_range(disk, (lba, blocks), how, data)?;
    let block = 1usize << disk.shift;
    if how.no_data || data.iter().all(|b| *b == 0) {
        return Ok(disk.medium.zero(offset, len)?);
    }
    let most = (env.iscsi.shared.config.iscsi.max_transfer as usize).min(128 << 10);
    let lot = data.repeat((most / block).clamp(1, blocks as usize));
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let n = ((end - at) as usize).min(lot.len());
        disk.medium.write(at, lot.get(..n).unwrap_or(&lot))?;
        at += n as u64;
    }
    Ok(())
}
