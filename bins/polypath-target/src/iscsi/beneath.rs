//! Commands to disks beneath: they are made jobs of, and answered when all of it is quiet.

use super::Env;
use super::conn::Conn;
use super::order::State;
use super::scsi::Verdict;
use super::send::Source;
use crate::media::beneath::{Job, Order, Task};
use crate::media::{Beneath, Medium, MediumError};
use crate::store::Disk;
use polypath_block::SlotKey;
use polypath_iscsi::pdu::ScsiCommand;
use std::sync::Arc;

/// A command that is being carried out beneath.
pub(super) struct Below {
    /// Octets of data that go with it by itself.
    wanted: u64,
    /// Octets that it is answered with, as far as it reads.
    pub(super) reads: usize,
    /// Answered with data.
    read: bool,
    /// Octets of the initiator's that it holds.
    pub(super) bytes: usize,
    /// It is not answered.
    lost: bool,
}

/// The disk beneath that `disk` is.
#[inline]
pub(super) fn beneath(disk: &Disk) -> Option<&Arc<Beneath>> {
    match &*disk.medium {
        Medium::Beneath(beneath) => Some(beneath),
        _ => None,
    }
}

impl Conn {
    /// Memory with a copy of `data`.
    pub(super) fn buffer(&mut self, data: &[u8]) -> Vec<u8> {
        let mut buffer = self.pool.take(data.len());
        buffer.extend_from_slice(data);
        buffer
    }

    /// Has a job done for a command that moves `wanted` octets.
    pub(super) fn start(&mut self, env: &Env<'_>, cmd: &ScsiCommand, job: Job, wanted: u64) {
        let read = job.task == Task::Read;
        let (bytes, reads) = (job.data.len(), if read { wanted as usize } else { 0 });
        let below = Below { wanted, reads, read, bytes, lost: false };
        let Some(key) = self.keep(env, cmd, State::Below(below)) else { return };
        self.staged += bytes;
        self.reading += reads;
        self.orders.push(Order::Start(Job { tag: key.as_u32(), ..job }));
    }

    /// A job is over.
    pub(crate) fn finished(&mut self, env: &Env<'_>, tag: u32, result: Result<(), MediumError>, data: Vec<u8>) {
        let key = SlotKey::from_u32(tag);
        let ours = self.tasks.get(key).is_some_and(|task| matches!(task.state, State::Below(_)));
        if ours && let Some((cmd, State::Below(below))) = self.end_task(key) {
            match result {
                _ if below.lost => {
                    self.keep(env, &cmd, State::Lost);
                }
                Ok(()) if below.read => self.data_in(env, &cmd, Source::Bytes(&data), below.wanted),
                Ok(()) => self.respond(env, &cmd, Verdict::GOOD, below.wanted),
                Err(error) => self.respond(env, &cmd, error.into(), if below.bytes > 0 { below.wanted } else { 0 }),
            }
            self.ask_waiting(env);
        }
        self.pool.give(data);
    }

    /// The task of this command is being carried out beneath, and is not to be answered. `false`: it is not.
    pub(super) fn lose_below(&mut self, cmd: &ScsiCommand) -> bool {
        let task = self.task_of(cmd.itt).and_then(|key| self.tasks.get_mut(key));
        let Some(State::Below(below)) = task.map(|task| &mut task.state) else { return false };
        below.lost = true;
        true
    }
}
