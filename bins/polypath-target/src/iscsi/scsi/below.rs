//! Commands about blocks of disks beneath, as the jobs they are.

use super::{Verdict, block, sense};
use crate::iscsi::Env;
use crate::iscsi::beneath::beneath;
use crate::iscsi::conn::Conn;
use crate::media::Beneath;
use crate::media::beneath::{Job, Task};
use crate::store::Disk;
use polypath_scsi::cdb::{ByteCheck, RwFlags};
use polypath_scsi::command::Command;
use polypath_scsi::opcode;
use std::sync::Arc;

/// Commands that this disk does not have.
pub(super) fn absent(disk: &Disk) -> &'static [u8] {
    match beneath(disk).map(|disk| disk.limits().max_discard_blocks) {
        None => &[],
        Some(0) => &[opcode::COMPARE_AND_WRITE, opcode::UNMAP],
        Some(_) => &[opcode::COMPARE_AND_WRITE],
    }
}

impl Conn {
    /// What is to be done for a command but READ. `None`: nothing of it is done by the disk.
    pub(super) fn job(
        &mut self,
        env: &Env<'_>,
        disk: &Disk,
        medium: &Arc<Beneath>,
        command: &Command,
        data: &[u8],
    ) -> Result<Option<Job>, Verdict> {
        let new = |task, range| Job::new(medium.clone(), task, 0, range);
        let size = 1usize << disk.shift;
        Ok(Some(match *command {
            Command::Write(t) => {
                block::transfer(env, disk, t.lba, t.blocks)?;
                if !data.len().is_multiple_of(size) {
                    return Err(Verdict::check(sense::INFORMATION_UNIT));
                }
                // Fewer where the initiator sends less than the command wants.
                let blocks = u64::from(t.blocks).min((data.len() / size) as u64);
                let job = new(Task::Write, (t.lba, blocks)).with_data(self.buffer(data));
                job.with_fua(t.flags.contains(RwFlags::FUA))
            }
            Command::SynchronizeCache { lba, blocks, .. } => {
                block::range(disk, lba, blocks.into())?;
                new(Task::Flush, (0, 0))
            }
            Command::StartStopUnit(what) if !what.load_eject && !what.start && !what.no_flush => {
                new(Task::Flush, (0, 0))
            }
            Command::Verify { lba, blocks, check, .. } => {
                let len = match check {
                    ByteCheck::None => return Ok(None),
                    ByteCheck::Data => block::verify_range(env, disk, (lba, blocks), check)?.1 as usize,
                    ByteCheck::OneBlock => {
                        block::verify_range(env, disk, (lba, blocks), check)?;
                        size
                    }
                };
                let blocks = match check {
                    ByteCheck::OneBlock => u64::from(blocks),
                    _ => (data.len().min(len) / size) as u64,
                };
                let data = data.get(..len).unwrap_or(data);
                if blocks > 0 && data.len() < size {
                    return Err(Verdict::check(sense::INFORMATION_UNIT));
                }
                new(Task::Compare, (lba, blocks)).with_data(self.buffer(data))
            }
            Command::Unmap { anchor, .. } => {
                if medium.limits().max_discard_blocks == 0 {
                    return Err(Verdict::check(sense::INVALID_OPCODE));
                }
                let mut ranges = block::unmap_ranges(disk, anchor, data)?;
                let first = ranges.pop().unwrap_or_default();
                Job { more: ranges, ..new(Task::Discard, first) }
            }
            Command::WriteSame { lba, blocks, how } => {
                block::write_same_range(disk, (lba, blocks), how, data)?;
                let range = (lba, blocks.into());
                if how.no_data || data.iter().all(|b| *b == 0) {
                    return Ok(Some(new(Task::Zero { unmap: how.unmap }, range)));
                }
                new(Task::Write, range).with_data(self.buffer(data))
            }
            // All or nothing is more than the disk beneath promises anybody.
            Command::CompareAndWrite(_) => return Err(Verdict::check(sense::INVALID_OPCODE)),
            _ => return Ok(None),
        }))
    }
}
