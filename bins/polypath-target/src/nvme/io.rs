//! I/O commands.

use super::{Conn, Env, wire};
use crate::media::beneath::{Job, Task};
use crate::media::{Beneath, Medium, ZEROES};
use crate::store::Disk;
use polypath_nvme::sqe::{DsmRange, NSID_ALL, io as op};
use polypath_nvme::{Cqe, Sqe, StatusField};
use std::sync::Arc;

/// Where a command reaches in its namespace, in bytes.
pub(super) struct Range<'a> {
    pub(super) disk: &'a Arc<Disk>,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// When a command is answered.
enum Answered {
    Now,
    /// A disk beneath carries it out.
    Later,
}

type Outcome = Result<Answered, StatusField>;

impl Conn {
    #[inline]
    pub(super) fn io(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) {
        let cid = sqe.cid();
        let done = match sqe.opcode() {
            op::READ => {
                self.counts.reads += 1;
                return self.read(env, sqe);
            }
            op::WRITE => {
                self.counts.writes += 1;
                self.write(env, sqe, data)
            }
            op::FLUSH => {
                self.counts.others += 1;
                self.flush(env, sqe)
            }
            op::COMPARE => {
                self.counts.others += 1;
                self.compare(env, sqe, data)
            }
            op::WRITE_ZEROES => {
                self.counts.writes += 1;
                self.write_zeroes(env, sqe)
            }
            op::DATASET_MANAGEMENT => {
                self.counts.others += 1;
                self.dataset_management(env, sqe, data)
            }
            op::RESERVATION_REGISTER | op::RESERVATION_REPORT | op::RESERVATION_ACQUIRE | op::RESERVATION_RELEASE => {
                self.counts.others += 1;
                return self.reservation(env, sqe, data);
            }
            _ => Err(StatusField::INVALID_OPCODE.with_dnr()),
        };
        match done {
            Ok(Answered::Now) => self.complete(env, Cqe::new(cid, StatusField::SUCCESS)),
            Ok(Answered::Later) => {}
            Err(status) => self.complete(env, Cqe::new(cid, status)),
        }
    }

    /// Checks a command before its data is asked for.
    pub(super) fn precheck(&self, env: &Env<'_>, sqe: &Sqe, len: usize) -> Result<(), StatusField> {
        if self.qid == 0 {
            return Ok(());
        }
        match sqe.opcode() {
            op::WRITE | op::COMPARE => {
                let range = self.range(env, sqe)?;
                if range.len == len as u64 { Ok(()) } else { Err(StatusField::INVALID_SGL_DATA_LENGTH.with_dnr()) }
            }
            op::DATASET_MANAGEMENT => self.namespace(env, sqe.nsid()).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The namespace, if it is there and may be reached here.
    #[inline]
    pub(super) fn namespace(&self, env: &Env<'_>, nsid: u32) -> Result<&Arc<Disk>, StatusField> {
        let Some(namespace) = self.namespaces.iter().find(|n| n.nsid == nsid) else {
            return Err(StatusField::INVALID_NAMESPACE.with_dnr());
        };
        match env.nvme.subsystems[self.subsystem].ana_state(self.info.listener, namespace.group) {
            1 | 2 => Ok(namespace),
            3 => Err(StatusField::ANA_INACCESSIBLE),
            4 => Err(StatusField::ANA_PERSISTENT_LOSS),
            _ => Err(StatusField::ANA_TRANSITION),
        }
    }

    /// The blocks a command means, checked.
    #[inline]
    pub(super) fn range(&self, env: &Env<'_>, sqe: &Sqe) -> Result<Range<'_>, StatusField> {
        let namespace = self.namespace(env, sqe.nsid())?;
        self.allowed(namespace, !matches!(sqe.opcode(), op::READ | op::COMPARE))?;
        let (lba, blocks) = (sqe.slba(), u64::from(sqe.nlb_z()) + 1);
        match lba.checked_add(blocks) {
            Some(end) if end <= namespace.blocks => {
                Ok(Range { disk: namespace, offset: lba << namespace.shift, len: blocks << namespace.shift })
            }
            _ => Err(StatusField::LBA_OUT_OF_RANGE.with_dnr()),
        }
    }

    #[inline]
    fn read(&mut self, env: &Env<'_>, sqe: &Sqe) {
        let cid = sqe.cid();
        let (namespace, offset, len) = match self.range(env, sqe) {
            Ok(r) => (r.disk, r.offset, r.len as usize),
            Err(status) => return self.complete(env, Cqe::new(cid, status)),
        };
        if len != sqe.sgl().length() as usize {
            return self.fail(env, cid, StatusField::INVALID_SGL_DATA_LENGTH);
        }
        if len > env.nvme.shared.config.mdts_bytes as usize {
            return self.fail(env, cid, StatusField::INVALID_FIELD);
        }
        if matches!(*namespace.medium, Medium::Null) {
            let success = self.c2h_header(env, cid, len);
            self.out.zeroes(len);
            if self.agreed.data_digest {
                self.data_digest_out(env, zero_digest(len));
            }
            if !success {
                self.complete(env, Cqe::new(cid, StatusField::SUCCESS));
            }
            return;
        }
        // A digest must be of what is sent, so the data must not change any more: it is copied then.
        if !self.agreed.data_digest
            && let Some(segment) = namespace.medium.segment(offset, len)
        {
            let success = self.c2h_header(env, cid, len);
            self.out.medium(segment);
            if !success {
                self.complete(env, Cqe::new(cid, StatusField::SUCCESS));
            }
            return;
        }
        let medium = namespace.medium.clone();
        if let Medium::Beneath(beneath) = &*medium {
            return self.start_one(env, sqe, beneath.clone(), Task::Read, &[]);
        }
        let success = self.c2h_header(env, cid, len);
        let data = self.out.reserve(len);
        // Ranges were checked: memory cannot fail here. If it ever did, the connection must not carry on with wrong data.
        let read = medium.read(offset, data);
        let digest = self.agreed.data_digest.then(|| wire::crc32c(data));
        if read.is_err() {
            self.ending = Some(super::Ending::Now);
        }
        if let Some(digest) = digest {
            self.data_digest_out(env, digest);
        }
        if !success {
            self.complete(env, Cqe::new(cid, StatusField::SUCCESS));
        }
    }

    /// Sends `data` and success.
    pub(super) fn data_out(&mut self, env: &Env<'_>, cid: u16, data: &[u8]) {
        let success = self.c2h_header(env, cid, data.len());
        self.out.bytes(data);
        if self.agreed.data_digest {
            self.data_digest_out(env, wire::crc32c(data));
        }
        if !success {
            self.complete(env, Cqe::new(cid, StatusField::SUCCESS));
        }
    }

    #[inline]
    fn write(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) -> Outcome {
        let range = self.range(env, sqe)?;
        if range.len != data.len() as u64 {
            return Err(StatusField::INVALID_SGL_DATA_LENGTH.with_dnr());
        }
        if let Some(beneath) = Conn::beneath(range.disk).cloned() {
            return self.later(env, sqe, beneath, Task::Write, data);
        }
        range.disk.medium.write(range.offset, data)?;
        if sqe.fua() {
            range.disk.medium.persist(range.offset, range.len)?;
        }
        Ok(Answered::Now)
    }

    fn later(&mut self, env: &Env<'_>, sqe: &Sqe, beneath: Arc<Beneath>, task: Task, data: &[u8]) -> Outcome {
        self.start_one(env, sqe, beneath, task, data);
        Ok(Answered::Later)
    }

    fn compare(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) -> Outcome {
        let range = self.range(env, sqe)?;
        if range.len != data.len() as u64 {
            return Err(StatusField::INVALID_SGL_DATA_LENGTH.with_dnr());
        }
        if let Some(beneath) = Conn::beneath(range.disk).cloned() {
            return self.later(env, sqe, beneath, Task::Compare, data);
        }
        match range.disk.medium.compare(range.offset, data)? {
            true => Ok(Answered::Now),
            false => Err(StatusField::COMPARE_FAILURE.with_dnr()),
        }
    }

    fn write_zeroes(&mut self, env: &Env<'_>, sqe: &Sqe) -> Outcome {
        let range = self.range(env, sqe)?;
        if let Some(beneath) = Conn::beneath(range.disk).cloned() {
            return self.later(env, sqe, beneath, Task::Zero { unmap: sqe.deac() }, &[]);
        }
        range.disk.medium.zero(range.offset, range.len)?;
        if sqe.fua() {
            range.disk.medium.persist(range.offset, range.len)?;
        }
        Ok(Answered::Now)
    }

    fn flush(&mut self, env: &Env<'_>, sqe: &Sqe) -> Outcome {
        if sqe.nsid() == NSID_ALL {
            self.namespaces.iter().try_for_each(|n| self.allowed(n, true))?;
            let mut own = self.namespaces.iter().filter(|n| Conn::beneath(n).is_none());
            own.try_for_each(|n| n.medium.flush())?;
            return Ok(if self.flush_all(env, sqe) { Answered::Later } else { Answered::Now });
        }
        let disk = self.namespace(env, sqe.nsid())?;
        self.allowed(disk, true)?;
        if let Some(beneath) = Conn::beneath(disk).cloned() {
            self.start(env, sqe, 0, [Job::new(beneath, Task::Flush, 0, (0, 0))]);
            return Ok(Answered::Later);
        }
        disk.medium.flush()?;
        Ok(Answered::Now)
    }

    /// What somebody else has reserved is his, whichever protocol he speaks.
    #[inline]
    fn allowed(&self, disk: &Disk, write: bool) -> Result<(), StatusField> {
        match disk.reservations.allows(&self.party, write) {
            true => Ok(()),
            false => Err(StatusField::RESERVATION_CONFLICT.with_dnr()),
        }
    }

    fn dataset_management(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) -> Outcome {
        let namespace = self.namespace(env, sqe.nsid())?;
        self.allowed(namespace, true)?;
        let ranges = usize::from(sqe.dsm_ranges_z()) + 1;
        let Some(list) = data.get(..ranges * DsmRange::LEN) else {
            return Err(StatusField::INVALID_SGL_DATA_LENGTH.with_dnr());
        };
        let ranges = || list.as_chunks::<{ DsmRange::LEN }>().0.iter().map(DsmRange::parse);
        let inside = |r: &DsmRange| r.slba.checked_add(r.blocks.into()).is_some_and(|end| end <= namespace.blocks);
        if !ranges().all(|r| inside(&r)) {
            return Err(StatusField::LBA_OUT_OF_RANGE.with_dnr());
        }
        if !sqe.dsm_deallocate() {
            return Ok(Answered::Now);
        }
        if let Some(beneath) = Conn::beneath(namespace).cloned() {
            self.discard(env, sqe, beneath, ranges());
            return Ok(Answered::Later);
        }
        for r in ranges().filter(|r| r.blocks > 0) {
            namespace.medium.zero(r.slba << namespace.shift, u64::from(r.blocks) << namespace.shift)?;
        }
        Ok(Answered::Now)
    }
}

/// Digest of `len` zeroes.
fn zero_digest(len: usize) -> u32 {
    if len <= ZEROES.len() {
        return wire::crc32c(&ZEROES[..len]);
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    let mut left = len;
    while left > 0 {
        let n = left.min(ZEROES.len());
        digest.update(&ZEROES[..n]);
        left -= n;
    }
    digest.finalize() as u32
}
