//! One ring, driven through blkio.

use crate::device::Shared;
use blkio::{Blkioq, Completion as RawCompletion, MemoryRegion, ReqFlags};
use polypath_block::{
    Armed, Code, Cx, DeviceInfo, Done, Health, Io, IoQueue, Limits, Op, Part, Refused, RefusedWhy, RegionId, SlotKey,
    Slots, Splitter, Status, Waits,
};
use polypath_memory as memory;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Completions taken from the ring at a time.
const BATCH: usize = 64;

/// A request, split into as many parts as the back-end's limits ask for.
struct SplitRequest {
    tag: u64,
    parts: u32,
    status: Status,
}

/// Vectors of one request's parts. blkio keeps a pointer to them while a part waits for room in the ring, so that they must
/// stay as they are, where they are, until the request is complete. Reused from request to request.
#[derive(Default)]
struct Vectors {
    lists: Vec<Vec<libc::iovec>>,
    used: usize,
}

impl Vectors {
    /// An empty list for one part. Lists handed out before do not move.
    fn next(&mut self) -> &mut Vec<libc::iovec> {
        if self.used == self.lists.len() {
            self.lists.push(Vec::with_capacity(16));
        }
        let list = &mut self.lists[self.used];
        self.used += 1;
        list.clear();
        list
    }
}

pub(crate) struct ClientQueue {
    queue: Blkioq,
    shared: Arc<Shared>,
    info: Arc<DeviceInfo>,
    limits: Limits,
    requests: Slots<SplitRequest>,
    mapped: Vec<(RegionId, memory::Backing)>,
    /// One for each place in `requests`.
    vectors: Box<[Vectors]>,
    ready: Vec<(u64, Status)>,
    fd: Option<(i32, u64)>,
    armed: bool,
    closed: bool,
}

impl ClientQueue {
    pub(crate) fn new(queue: Blkioq, shared: Arc<Shared>, info: Arc<DeviceInfo>) -> Self {
        let fd = queue.get_completion_fd().map(|fd| (fd, Waits::unique()));
        let depth = info.max_depth;
        let limits = info.limits;
        ClientQueue {
            queue,
            shared,
            info,
            limits,
            requests: Slots::new(depth),
            mapped: Vec::with_capacity(8),
            vectors: (0..depth).map(|_| Vectors::default()).collect(),
            ready: Vec::with_capacity(depth.into()),
            fd,
            armed: false,
            closed: false,
        }
    }

    /// Tells the back-end of a region it has not seen. Blocks for one message: it happens once a region.
    fn map(&mut self, region: RegionId) -> Result<(), Code> {
        if self.mapped.iter().any(|(id, _)| *id == region) {
            return Ok(());
        }
        let backing = memory::with(|t| t.backing(region)).ok_or(Code::BadMemory)?;
        let wanted = MemoryRegion {
            addr: backing.address,
            iova: backing.address as u64,
            len: backing.len as usize,
            fd: std::os::fd::AsRawFd::as_raw_fd(&*backing.fd),
            fd_offset: i64::try_from(backing.file_offset).map_err(|_| Code::BadMemory)?,
            flags: 0,
        };
        let result = self.shared.blkio().map_mem_region(&wanted);
        match result {
            Ok(()) => {}
            // Another queue of the same connection was first.
            Err(e) if e.message().contains("already mapped") => {}
            Err(e) => {
                tracing::warn!(error = %e, "the back-end does not take a memory region");
                return Err(Code::PathLost);
            }
        }
        self.mapped.push((region, backing));
        Ok(())
    }

    fn part(&mut self, cx: &Cx<'_>, part: &Part, key: SlotKey) -> Result<(), Code> {
        let bs = u64::from(self.info.geometry.block_size);
        let (start, len, id) = (part.lba * bs, u64::from(part.blocks) * bs, key.as_u32() as usize);
        match part.op {
            Op::Read | Op::Write => {
                for segment in cx.segs.pieces(part.segs, u64::from(part.skip), len) {
                    self.map(segment.region)?;
                }
                let list = self.vectors[usize::from(key.index())].next();
                for segment in cx.segs.pieces(part.segs, u64::from(part.skip), len) {
                    let (base, len) =
                        memory::with(|t| t.view(segment).map(|v| v.raw())).map_err(|_| Code::BadMemory)?;
                    list.push(libc::iovec { iov_base: base.cast(), iov_len: len });
                }
                let (vec, count) = (list.as_ptr().cast(), list.len() as u32);
                match (part.op, list.as_slice()) {
                    (Op::Read, [one]) => {
                        self.queue.read(start, one.iov_base.cast(), one.iov_len, id, ReqFlags::empty());
                    }
                    (Op::Write, [one]) => {
                        self.queue.write(start, one.iov_base.cast(), one.iov_len, id, ReqFlags::empty());
                    }
                    (Op::Read, _) => self.queue.readv(start, vec, count, id, ReqFlags::empty()),
                    _ => self.queue.writev(start, vec, count, id, ReqFlags::empty()),
                }
            }
            Op::Flush => self.queue.flush(id, ReqFlags::empty()),
            Op::Discard => self.queue.discard(start, len, id, ReqFlags::empty()),
            Op::WriteZeroes => {
                let unmap = part.flags.contains(polypath_block::Flags::UNMAP);
                let flags = if unmap { ReqFlags::empty() } else { ReqFlags::NO_UNMAP };
                self.queue.write_zeroes(start, len, id, flags);
            }
            Op::Compare => return Err(Code::Unsupported),
        }
        Ok(())
    }

    fn finish_part(&mut self, key: SlotKey, status: Status) {
        let Some(split) = self.requests.get_mut(key) else {
            tracing::error!(?key, "the front-end completed a request that is not open");
            return;
        };
        split.parts -= 1;
        if !status.is_ok() {
            split.status = status;
        }
        if split.parts == 0
            && let Some(split) = self.requests.remove(key)
        {
            self.ready.push((split.tag, split.status));
        }
    }

    fn reap(&mut self) {
        loop {
            let mut raw: [MaybeUninit<RawCompletion>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
            let count = match self.queue.do_io(&mut raw, 0, None, None) {
                Ok(count) => count.min(BATCH),
                Err(error) => {
                    tracing::error!(%error, "vhost-user-blk queue failed");
                    return;
                }
            };
            for one in &raw[..count] {
                #[allow(unsafe_code, reason = "blkio writes completions through a C-shaped array")]
                // SAFETY: do_io initialised the first `count` entries, which is its documented result.
                let (id, ret) = unsafe { (one.assume_init_ref().user_data, one.assume_init_ref().ret) };
                self.finish_part(SlotKey::from_u32(id as u32), status_of(ret));
            }
            if count < BATCH {
                return;
            }
        }
    }
}

fn status_of(ret: i32) -> Status {
    match ret {
        0 => Status::OK,
        e if e == -libc::ENOTSUP || e == -libc::EOPNOTSUPP => Status::with_detail(Code::Unsupported, e.unsigned_abs()),
        e => Status::with_detail(Code::Medium, e.unsigned_abs()),
    }
}

impl IoQueue for ClientQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        if self.closed {
            return Err(Refused { io, why: RefusedWhy::Gone });
        }
        if self.requests.is_full() {
            return Err(Refused { io, why: RefusedWhy::Full });
        }
        let (limits, geometry) = (self.limits, self.info.geometry);
        if let Err(status) = limits.check(&io, geometry.blocks, geometry.block_size, cx.segs) {
            self.ready.push((io.tag, status));
            return Ok(());
        }
        // One part more than there are, so that the whole does not end while it is still being handed out.
        let split = SplitRequest { tag: io.tag, parts: 1, status: Status::OK };
        let Ok(key) = self.requests.insert(split) else { return Err(Refused { io, why: RefusedWhy::Full }) };
        self.vectors[usize::from(key.index())].used = 0;
        let mut parts = Splitter::new(io, &limits, geometry.block_size);
        let mut outcome = Status::OK;
        while let Some(part) = parts.next_part(cx.segs) {
            let given = part.and_then(|part| self.part(cx, &part, key).map_err(Status::from));
            match given {
                Ok(()) => self.requests.get_mut(key).into_iter().for_each(|w| w.parts += 1),
                Err(status) => {
                    outcome = status;
                    break;
                }
            }
        }
        self.finish_part(key, outcome);
        Ok(())
    }

    fn kick(&mut self, _cx: &mut Cx<'_>) {
        self.reap();
    }

    fn poll(&mut self, _cx: &mut Cx<'_>, done: &mut Done) {
        if self.armed {
            self.queue.set_completion_fd_enabled(false);
            self.armed = false;
            if let Some((fd, _)) = self.fd {
                drain(fd);
            }
        }
        self.reap();
        for (tag, status) in self.ready.drain(..) {
            done.complete(tag, status);
        }
    }

    fn arm(&mut self, _cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if !self.ready.is_empty() {
            return Armed::Busy;
        }
        let Some((fd, id)) = self.fd else { return Armed::Busy };
        if !self.requests.is_empty() {
            self.queue.set_completion_fd_enabled(true);
            self.armed = true;
            self.reap();
            if !self.ready.is_empty() {
                return Armed::Busy;
            }
            waits.readable(fd, id);
        }
        Armed::Sleep
    }

    fn health(&self) -> Health {
        if self.closed { Health::Down } else { Health::Ready }
    }

    fn close(&mut self, _cx: &mut Cx<'_>) {
        self.closed = true;
    }

    fn is_drained(&self) -> bool {
        self.requests.is_empty() && self.ready.is_empty()
    }
}

/// Empties the (non-blocking) eventfd.
#[allow(unsafe_code, reason = "blkio hands its eventfd out as a number")]
fn drain(fd: i32) {
    let mut count = [0u8; 8];
    // SAFETY: the eventfd belongs to the queue that asks, and the buffer is eight bytes long.
    let _ = unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What blkio may still point to must neither move nor change when other parts come.
    #[test]
    fn vectors_stay_in_place_until_their_request_is_complete() {
        let mut vectors = Vectors::default();
        let mut given = Vec::new();
        for n in 0..100usize {
            let list = vectors.next();
            list.extend((0..n).map(|len| libc::iovec { iov_base: std::ptr::null_mut(), iov_len: len }));
            given.push((list.as_ptr(), list.len()));
        }
        for (n, list) in vectors.lists.iter().enumerate() {
            assert_eq!((list.as_ptr(), list.len()), given[n]);
            assert!(list.iter().enumerate().all(|(at, v)| v.iov_len == at));
        }
        vectors.used = 0;
        assert_eq!(vectors.next().as_ptr(), given[0].0, "used again, without an allocation");
    }
}
