//! The queue of a file: each request is one or more system calls, one at a time, until all its bytes have moved.

use super::File;
use super::bounce::Bounce;
use super::engine::{Answer, Call, Engine, Job};
use super::threads::Threads;
use crate::base::{Completions, OpenQueue};
use polypath_block::{
    Armed, Code, Cx, DeviceInfo, Done, Flags, Health, Io, IoQueue, Op, Refused, RefusedWhy, SegTable, SlotKey, Slots,
    Status, Waits,
};
use polypath_memory::{BadSegment, Table, Window};
use std::sync::Arc;

/// Vectors in one system call.
const VECTORS: usize = 64;
/// Bytes of a bounce buffer; not less than the largest block.
const BOUNCE: usize = 64 * 1024;
/// How often one call may be interrupted before the request fails.
const RETRIES: u8 = 100;

pub(super) struct FileQueue {
    // The engine is settled in `drop` before the slots and their buffers go.
    engine: Engine,
    aside: Option<Threads>,
    slots: Slots<Work>,
    slot_buffers: Box<[SlotBuffers]>,
    zeroes: Option<Bounce>,
    /// Empty between two polls; as long as the queue is deep.
    answers: Vec<Answer>,
    completions: Completions,
    open: OpenQueue,
    file: Arc<File>,
    depth: usize,
    /// Ways of `fallocate` that the file system has refused.
    refused: i32,
    closed: bool,
}

/// One request on its way.
#[derive(Clone, Copy)]
struct Work {
    io: Io,
    step: Step,
    /// Bytes done, and to be done.
    moved: u64,
    total: u64,
    /// Through the slot's bounce buffer, this time?
    bounced: bool,
    retries: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Data moves between file and memory.
    Transfer,
    /// Zeroes by `fallocate` with this mode.
    Zero(i32),
    /// Zeroes are written.
    WriteZeroes,
    Discard,
    /// What was done becomes durable; the last step.
    Sync,
}

/// What a slot has for itself, in place for as long as the queue lives.
struct SlotBuffers {
    iov: Vec<libc::iovec>,
    pins: Vec<Window>,
    bounce: Option<Bounce>,
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

impl FileQueue {
    pub(super) fn new(open: OpenQueue, file: Arc<File>, engine: Engine, aside: Option<Threads>, depth: u16) -> Self {
        let buffers = || SlotBuffers { iov: Vec::with_capacity(VECTORS), pins: Vec::with_capacity(4), bounce: None };
        FileQueue {
            engine,
            aside,
            slots: Slots::new(depth),
            slot_buffers: (0..depth).map(|_| buffers()).collect(),
            zeroes: None,
            answers: Vec::with_capacity(depth.into()),
            completions: Completions::new(depth),
            open,
            file,
            depth: depth.into(),
            refused: 0,
            closed: false,
        }
    }

    fn launch(&mut self, key: SlotKey, segs: &SegTable) {
        match self.job(key, segs) {
            Ok(job) => match &mut self.aside {
                Some(aside) if job.call == Call::Discard => aside.push(job),
                _ => self.engine.push(job),
            },
            Err(status) => self.finish(key, status),
        }
    }

    fn job(&mut self, key: SlotKey, segs: &SegTable) -> Result<Job, Status> {
        let block_size = u64::from(self.open.info().geometry.block_size);
        let Some(work) = self.slots.get_mut(key) else { return Err(Code::Invalid.into()) };
        let (io, left) = (work.io, work.total - work.moved);
        let mut job = Job {
            user: key.as_u32(),
            call: Call::Sync,
            iov: std::ptr::null(),
            iov_len: 0,
            offset: io.lba * block_size + work.moved,
            len: left,
        };
        let buffers = &mut self.slot_buffers[usize::from(key.index())];
        buffers.iov.clear();
        match work.step {
            Step::Sync => return Ok(job),
            Step::Zero(mode) => job.call = Call::Allocate { mode },
            Step::Discard if self.file.block_device => job.call = Call::Discard,
            Step::Discard => job.call = Call::Allocate { mode: PUNCH },
            Step::WriteZeroes => {
                let zeroes = self.zeroes.get_or_insert_with(|| Bounce::new(BOUNCE));
                job.call = Call::Write { durable: io.flags.contains(Flags::FUA) };
                buffers.repeat(zeroes, left);
            }
            Step::Transfer => {
                job.call = match io.op {
                    Op::Write => Call::Write { durable: io.flags.contains(Flags::FUA) },
                    _ => Call::Read,
                };
                let prepared = polypath_memory::with(|table| buffers.prepare(&self.file, work, segs, table));
                prepared.map_err(|BadSegment(_)| Code::BadMemory)?;
            }
        }
        (job.iov, job.iov_len) = (buffers.iov.as_ptr(), buffers.iov.len() as u32);
        Ok(job)
    }

    fn landed(&mut self, key: SlotKey, result: i32, segs: &SegTable) {
        let Some(work) = self.slots.get_mut(key) else {
            tracing::error!(?key, "the kernel answered a request that is not open");
            return;
        };
        if result < 0 {
            return self.failed(key, -result, segs);
        }
        work.retries = 0;
        match work.step {
            Step::Sync | Step::Discard => return self.finish(key, Status::OK),
            Step::Zero(_) => work.moved = work.total,
            Step::WriteZeroes | Step::Transfer => {
                // Nothing moved: the file has become shorter than the disk, or takes no more.
                if result == 0 {
                    let code = if work.io.op.data_in() { Code::Medium } else { Code::NoSpace };
                    return self.finish(key, code.into());
                }
                let moved = (result as u64).min(work.total - work.moved);
                if work.bounced {
                    let buffers = &mut self.slot_buffers[usize::from(key.index())];
                    let unloaded = polypath_memory::with(|table| buffers.unload(work, moved, segs, table));
                    if let Err(code) = unloaded {
                        return self.finish(key, code.into());
                    }
                }
                work.moved += moved;
            }
        }
        if work.moved < work.total {
            self.launch(key, segs);
        } else if matches!(work.step, Step::Zero(_)) && work.io.flags.contains(Flags::FUA) {
            work.step = Step::Sync;
            self.launch(key, segs);
        } else {
            self.finish(key, Status::OK);
        }
    }

    fn failed(&mut self, key: SlotKey, errno: i32, segs: &SegTable) {
        let Some(work) = self.slots.get_mut(key) else { return };
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL);
        if matches!(errno, libc::EINTR | libc::EAGAIN) && work.retries < RETRIES {
            work.retries += 1;
        } else if let Step::Zero(mode) = work.step
            && unsupported
        {
            self.refused |= mode & !libc::FALLOC_FL_KEEP_SIZE;
            work.step = zero_step(work.io.flags, self.refused);
        } else {
            let status = status_of(errno, work.step);
            return self.finish(key, status);
        }
        self.launch(key, segs);
    }

    fn finish(&mut self, key: SlotKey, status: Status) {
        let buffers = &mut self.slot_buffers[usize::from(key.index())];
        buffers.iov.clear();
        buffers.pins.clear();
        if let Some(work) = self.slots.remove(key) {
            self.completions.push(work.io.tag, status);
        }
    }
}

impl SlotBuffers {
    /// Vectors for the next call of `work`: straight to its memory where that suits the file, to the bounce buffer otherwise.
    fn prepare(&mut self, file: &File, work: &mut Work, segs: &SegTable, table: &Table) -> Result<(), BadSegment> {
        let left = work.total - work.moved;
        let skip = u64::from(work.io.skip) + work.moved;
        work.bounced = work.io.op == Op::Compare;
        if !work.bounced {
            for piece in segs.pieces(work.io.segs, skip, left).take(VECTORS) {
                let (base, len) = table.view(piece)?.raw();
                if !(base as usize).is_multiple_of(file.memory_align) || !len.is_multiple_of(file.offset_align) {
                    work.bounced = true;
                    break;
                }
                if !self.pins.iter().any(|pin| pin.region() == piece.region) {
                    self.pins.push(table.pin(piece)?);
                }
                self.iov.push(libc::iovec { iov_base: base.cast(), iov_len: len });
            }
        }
        if !work.bounced {
            return Ok(());
        }
        self.iov.clear();
        let bounce = self.bounce.get_or_insert_with(|| Bounce::new(BOUNCE));
        let len = left.min(bounce.len() as u64);
        if work.io.op == Op::Write {
            let mut at = 0;
            for piece in segs.pieces(work.io.segs, skip, len) {
                at += table.view(piece)?.copy_out(&mut bounce.bytes()[at..]);
            }
        }
        self.iov.push(libc::iovec { iov_base: bounce.address().cast(), iov_len: len as usize });
        Ok(())
    }

    /// `len` bytes have come to the bounce buffer: where do they belong, or do they agree?
    fn unload(&mut self, work: &Work, len: u64, segs: &SegTable, table: &Table) -> Result<(), Code> {
        let Some(bounce) = &mut self.bounce else { return Err(Code::Medium) };
        let mut bytes = &bounce.bytes()[..len as usize];
        for piece in segs.pieces(work.io.segs, u64::from(work.io.skip) + work.moved, len) {
            let (now, rest) = bytes.split_at(piece.len as usize);
            bytes = rest;
            match work.io.op {
                Op::Read => {
                    table.view(piece).map_err(|BadSegment(_)| Code::BadMemory)?.copy_in(now);
                }
                Op::Compare => compare(table, piece, now)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Vectors for `len` zeroes, as far as they reach.
    fn repeat(&mut self, zeroes: &Bounce, len: u64) {
        let mut left = len;
        while left > 0 && self.iov.len() < VECTORS {
            let n = left.min(zeroes.len() as u64);
            self.iov.push(libc::iovec { iov_base: zeroes.address().cast(), iov_len: n as usize });
            left -= n;
        }
    }
}

fn compare(table: &Table, piece: polypath_block::Segment, want: &[u8]) -> Result<(), Code> {
    let mut private = [0u8; 2048];
    for (n, want) in want.chunks(private.len()).enumerate() {
        let offset = piece.offset + (n * private.len()) as u64;
        let part = polypath_block::Segment { offset, len: want.len() as u32, ..piece };
        let got = &mut private[..want.len()];
        table.view(part).map_err(|BadSegment(_)| Code::BadMemory)?.copy_out(got);
        if got != want {
            return Err(Code::Miscompare);
        }
    }
    Ok(())
}

/// The best way to zeroes that was not refused yet. Only with `UNMAP` may the range lose its place on the medium.
fn zero_step(flags: Flags, refused: i32) -> Step {
    if flags.contains(Flags::UNMAP) && refused & libc::FALLOC_FL_PUNCH_HOLE == 0 {
        Step::Zero(PUNCH)
    } else if refused & libc::FALLOC_FL_ZERO_RANGE == 0 {
        Step::Zero(ZERO)
    } else {
        Step::WriteZeroes
    }
}

fn status_of(errno: i32, step: Step) -> Status {
    let code = match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Code::NoSpace,
        libc::EROFS | libc::EPERM | libc::EBADF => Code::WriteProtected,
        libc::EFAULT => Code::BadMemory,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN => Code::Gone,
        libc::EOPNOTSUPP if step == Step::Discard => Code::Unsupported,
        libc::EBADE => Code::ReservationConflict,
        _ => Code::Medium,
    };
    Status::with_detail(code, errno as u32)
}

impl IoQueue for FileQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let used = usize::from(self.slots.len()) + self.completions.len();
        if self.closed || used >= self.depth {
            return Err(Refused { io, why: if self.closed { RefusedWhy::Gone } else { RefusedWhy::Full } });
        }
        let DeviceInfo { geometry, limits, .. } = self.open.info();
        if let Err(status) = limits.check(&io, geometry.blocks, geometry.block_size, cx.segs) {
            self.completions.push(io.tag, status);
            return Ok(());
        }
        let total = u64::from(io.blocks) * u64::from(geometry.block_size);
        let step = match io.op {
            Op::Read | Op::Write | Op::Compare => Step::Transfer,
            Op::Flush => Step::Sync,
            Op::WriteZeroes => zero_step(io.flags, self.refused),
            Op::Discard => Step::Discard,
            // Others may come between.
            Op::CompareAndWrite => {
                self.completions.push(io.tag, Code::Unsupported.into());
                return Ok(());
            }
        };
        match self.slots.insert(Work { io, step, moved: 0, total, bounced: false, retries: 0 }) {
            Ok(key) => self.launch(key, cx.segs),
            Err(_) => return Err(Refused { io, why: RefusedWhy::Full }),
        }
        Ok(())
    }

    fn kick(&mut self, _: &mut Cx<'_>) {
        self.engine.kick();
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let mut answers = std::mem::take(&mut self.answers);
        self.engine.answers(&mut answers);
        if let Some(aside) = &mut self.aside {
            aside.answers(&mut answers);
        }
        for (user, result) in answers.drain(..) {
            self.landed(SlotKey::from_u32(user), result, cx.segs);
        }
        self.answers = answers;
        self.engine.kick();
        self.completions.move_to(done);
    }

    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let quiet = self.completions.is_empty()
            && self.engine.arm(waits)
            && self.aside.as_mut().is_none_or(|aside| aside.arm(waits));
        if quiet { Armed::Sleep } else { Armed::Busy }
    }

    fn health(&self) -> Health {
        if self.closed { Health::Down } else { Health::Ready }
    }

    fn close(&mut self, _: &mut Cx<'_>) {
        self.closed = true;
    }

    fn is_drained(&self) -> bool {
        self.closed && self.slots.is_empty() && self.completions.is_empty()
    }
}

impl Drop for FileQueue {
    fn drop(&mut self) {
        // The kernel may still read and write the memory of what is in flight: wait for it, whatever else goes wrong.
        self.engine.settle();
        if let Some(aside) = &mut self.aside {
            aside.settle();
        }
        // Nobody is left to be told of what was open: its reactor has ended.
        self.slots.clear();
    }
}

#[cfg(test)]
mod tests;
