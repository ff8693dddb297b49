//! Commands to disks beneath: they are made jobs of, and answered when all of it is quiet.

use super::{Conn, Env, Pending};
use crate::media::beneath::{Job, Order, Range, Task};
use crate::media::{Beneath, Medium, MediumError};
use crate::store::Disk;
use polypath_block::SlotKey;
use polypath_nvme::sqe::{DsmRange, io as op};
use polypath_nvme::{Cqe, Sqe, StatusField};
use std::sync::Arc;

/// A command that is being carried out beneath.
#[derive(Debug)]
pub(super) struct Below {
    pub(super) cid: u16,
    /// Bytes that it is answered with.
    pub(super) reads: usize,
    /// Jobs that are not over.
    left: usize,
    status: StatusField,
    /// Bytes of the host's that it holds.
    pub(super) bytes: usize,
    /// It is not answered.
    lost: bool,
}

impl Conn {
    /// The disk beneath that `disk` is.
    #[inline]
    pub(super) fn beneath(disk: &Disk) -> Option<&Arc<Beneath>> {
        match &*disk.medium {
            Medium::Beneath(beneath) => Some(beneath),
            _ => None,
        }
    }

    /// Has `task` done on blocks `range` of a disk beneath with `data`.
    pub(super) fn start_one(&mut self, env: &Env<'_>, sqe: &Sqe, medium: Arc<Beneath>, task: Task, data: &[u8]) {
        let range = (sqe.slba(), u64::from(sqe.nlb_z()) + 1);
        let mut buffer = self.pool.take(data.len());
        buffer.extend_from_slice(data);
        let fua = sqe.fua() && task != Task::Compare && task != Task::Read;
        let job = Job::new(medium, task, 0, range).with_data(buffer).with_fua(fua);
        self.start(env, sqe, data.len(), [job]);
    }

    /// Has jobs done that are one command and hold `bytes` bytes of the host's.
    pub(super) fn start(
        &mut self,
        env: &Env<'_>,
        sqe: &Sqe,
        bytes: usize,
        jobs: impl IntoIterator<Item = Job, IntoIter: ExactSizeIterator>,
    ) {
        let jobs = jobs.into_iter();
        let cid = sqe.cid();
        let reads = if sqe.opcode() == op::READ { sqe.sgl().length() as usize } else { 0 };
        let below = Below { cid, reads, left: jobs.len(), status: StatusField::SUCCESS, bytes, lost: false };
        if below.left == 0 {
            return self.complete(env, Cqe::new(cid, StatusField::SUCCESS));
        }
        match self.wait(Pending::Below(below)) {
            Ok(key) => {
                self.staged += bytes;
                self.reading += reads;
                self.below += 1;
                self.orders.extend(jobs.map(|job| Order::Start(Job { tag: key.as_u32(), ..job })));
            }
            Err(fatal) => self.terminate(env, fatal, sqe.as_bytes()),
        }
    }

    /// Flushes all disks beneath among these. `false`: there are none.
    pub(super) fn flush_all(&mut self, env: &Env<'_>, sqe: &Sqe) -> bool {
        let media = self.namespaces.iter().filter_map(|disk| Conn::beneath(disk));
        let jobs: Vec<Job> = media.map(|medium| Job::new(medium.clone(), Task::Flush, 0, (0, 0))).collect();
        let any = !jobs.is_empty();
        if any {
            self.start(env, sqe, 0, jobs);
        }
        any
    }

    /// Has the device beneath told which blocks are of no interest.
    pub(super) fn discard(
        &mut self,
        env: &Env<'_>,
        sqe: &Sqe,
        medium: Arc<Beneath>,
        ranges: impl Iterator<Item = DsmRange>,
    ) {
        let mut ranges = ranges.filter(|r| r.blocks > 0).map(|r| -> Range { (r.slba, r.blocks.into()) });
        let Some(first) = ranges.next() else { return self.start(env, sqe, 0, []) };
        let job = Job { more: ranges.collect(), ..Job::new(medium, Task::Discard, 0, first) };
        self.start(env, sqe, 0, [job]);
    }

    /// A job is over.
    pub(crate) fn finished(&mut self, env: &Env<'_>, tag: u32, result: Result<(), MediumError>, data: Vec<u8>) {
        let key = SlotKey::from_u32(tag);
        if let Some(Pending::Below(below)) = self.pending.get_mut(key) {
            below.left -= 1;
            if let (Err(error), StatusField::SUCCESS) = (result, below.status) {
                below.status = error.into();
            }
            if below.left == 0 {
                self.answer(env, key, &data);
            }
        }
        self.pool.give(data);
        self.publish();
    }

    fn answer(&mut self, env: &Env<'_>, key: SlotKey, data: &[u8]) {
        let Some(Pending::Below(below)) = self.pending.remove(key) else { return };
        self.staged -= below.bytes;
        self.reading -= below.reads;
        self.below -= 1;
        let cid = below.cid;
        if below.lost {
            // Its place was taken until now, and is so still.
            let _ = self.pending.insert(Pending::Silent { cid });
        } else if below.reads > 0 && below.status.is_success() {
            self.data_out(env, cid, data);
        } else {
            self.complete(env, Cqe::new(cid, below.status));
        }
        self.ask_waiting(env);
        if self.below == 0
            && let Some(cid) = self.disconnecting.take()
        {
            self.disconnect(env, cid);
        }
    }

    /// Command `cid` is being carried out beneath, and is not to be answered. `false`: it is not.
    pub(super) fn lose_below(&mut self, cid: u16) -> bool {
        let same = |p: &Pending| matches!(p, Pending::Below(below) if below.cid == cid);
        let Some(key) = self.pending.iter().find(|(_, p)| same(p)).map(|(key, _)| key) else { return false };
        if let Some(Pending::Below(below)) = self.pending.get_mut(key) {
            below.lost = true;
        }
        true
    }
}
