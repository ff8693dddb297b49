//! A disk as futures that any runtime can await.

use crate::buffer::Buffer;
use crate::error::Error;
use crate::op::{Command, Request, Transfer};
use crate::open::{Builder, IntoUris, Opening};
use crate::poller_count::{NoPollers, PollerCount};
use crate::submission_queue::SubmissionQueue;
use crate::{Stack, open};
use polypath_block::{Device, DeviceInfo, DeviceState, Flags, Geometry, Limits, Op, Status};
use polypath_memory::Arena;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// A disk, shared by clones: use it from as many tasks and threads as you like.
///
/// Operations that are under way at the same time may be carried out in any order; a read sees a write that had completed before the
/// read began. [`Disk::flush`] makes durable what had completed before it began. Offsets and lengths are bytes and multiples of the
/// block size. At most [`Builder::depth`] operations per reactor are with the device, as many again in the channel; the others wait
/// in line, first come, first served.
///
/// When the last clone is dropped, what is under way completes and the device is closed.
#[derive(Clone)]
pub struct Disk(Arc<Inner>);

struct Inner {
    name: String,
    device: Arc<dyn Device>,
    /// The device is ours to close.
    owned_device: Mutex<Option<Arc<OwnedDevice>>>,
    info: Arc<DeviceInfo>,
    blocks: Arc<AtomicU64>,
    queues: Vec<Arc<SubmissionQueue>>,
    pollers: Arc<PollerCount>,
    arena: Arena,
    // Last: it may wait for the pollers above.
    stack: Stack,
}

pub(crate) struct Parts {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) owned_device: Option<Arc<OwnedDevice>>,
    pub(crate) info: Arc<DeviceInfo>,
    pub(crate) blocks: Arc<AtomicU64>,
    pub(crate) queues: Vec<Arc<SubmissionQueue>>,
    pub(crate) pollers: Arc<PollerCount>,
    pub(crate) arena: Arena,
    pub(crate) stack: Stack,
}

impl Disk {
    /// Opens a disk by its URI, or several URIs as paths to one disk, on the [`Stack::shared`] stack with the defaults of [`Builder`].
    ///
    /// Opening begins at once, on a thread of its own; the future only waits for it.
    ///
    /// # Errors
    /// Of the future: the URI's part that does not do, or what kept the disk from answering in time.
    pub fn open(uris: impl IntoUris) -> Opening {
        Disk::builder().uris(uris).open()
    }

    /// Opens a disk with policies of your own.
    pub fn builder() -> Builder {
        open::Builder::new()
    }

    pub(crate) fn new(parts: Parts) -> Disk {
        let Parts { device, owned_device, info, blocks, queues, pollers, arena, stack } = parts;
        let name = device.name().to_owned();
        let owned_device = Mutex::new(owned_device);
        Disk(Arc::new(Inner { name, device, owned_device, info, blocks, queues, pollers, arena, stack }))
    }

    /// Its name: the URI, or the name of the group.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its size now; it may grow.
    pub fn geometry(&self) -> Geometry {
        Geometry { blocks: self.0.blocks.load(Ordering::Relaxed), ..self.0.info.geometry }
    }

    /// Its size in bytes now.
    pub fn size(&self) -> u64 {
        self.geometry().bytes()
    }

    /// What it can do. Larger operations are split, so sizes matter only for speed.
    pub fn limits(&self) -> Limits {
        self.info().limits
    }

    /// All that it tells about itself, as of now; as of when it last answered, while it does not.
    pub fn info(&self) -> Arc<DeviceInfo> {
        match self.0.device.state() {
            DeviceState::Live(info) => info,
            _ => self.0.info.clone(),
        }
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.0.device
    }

    /// The stack it runs on.
    pub fn stack(&self) -> &Stack {
        &self.0.stack
    }

    /// A buffer of `len` bytes from the arena of its stack. Buffers of any [`Arena`] will do.
    ///
    /// # Errors
    /// [`Error::NoBuffer`] when the arena has no run that long.
    pub fn buffer(&self, len: u32) -> Result<Buffer, Error> {
        Buffer::new(&self.0.arena, len)
    }

    /// Fills `buffer` from byte `offset` on.
    ///
    /// # Errors
    /// Of the future: [`Error::Misaligned`] and [`Error::OutOfRange`] before anything is asked of the device, [`Error::Io`] with its answer.
    pub fn read(&self, offset: u64, buffer: Buffer) -> Transfer {
        self.transfer(Op::Read, Flags::empty(), offset, buffer)
    }

    /// Writes all of `buffer` at byte `offset`. Durable after a [`Disk::flush`] that began later.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn write(&self, offset: u64, buffer: Buffer) -> Transfer {
        self.transfer(Op::Write, Flags::empty(), offset, buffer)
    }

    /// Writes all of `buffer` at byte `offset`; durable when it completes (FUA).
    ///
    /// # Errors
    /// As [`Disk::read`]; [`polypath_block::Code::Unsupported`] where the device has no FUA ([`Limits::fua`]).
    pub fn write_durable(&self, offset: u64, buffer: Buffer) -> Transfer {
        self.transfer(Op::Write, Flags::FUA, offset, buffer)
    }

    /// Compares the disk with all of `buffer`: fails with [`polypath_block::Code::Miscompare`] if they differ.
    ///
    /// # Errors
    /// As [`Disk::read`]; [`polypath_block::Code::Unsupported`] where the device does not compare ([`Limits::compare`]).
    pub fn compare(&self, offset: u64, buffer: Buffer) -> Transfer {
        self.transfer(Op::Compare, Flags::empty(), offset, buffer)
    }

    /// Compares the disk with the first half of `buffer`, and writes the second half there if they do not differ; no other host comes between.
    /// Fails with [`polypath_block::Code::Miscompare`] if they differ. It is sent once: where a way was lost in the middle, the error is
    /// [`polypath_block::Code::OutcomeUnknown`], once nothing of it can come any more, and a read tells.
    ///
    /// # Errors
    /// As [`Disk::read`], of half the buffer; [`polypath_block::Code::Unsupported`] where not every path does it, which none over NVMe/TCP does
    /// ([`Limits::max_compare_and_write_blocks`]), [`polypath_block::Code::Invalid`] for more than that.
    pub fn compare_and_write(&self, offset: u64, buffer: Buffer) -> Transfer {
        let (half, odd) = (buffer.len() as u64 / 2, buffer.len() as u64 % 2);
        // An odd length is no multiple of anything.
        let len = if odd == 0 { half } else { buffer.len() as u64 };
        Transfer::new(self.clone(), self.request(Op::CompareAndWrite, Flags::empty(), offset, len), buffer)
    }

    /// Makes durable what had completed before.
    ///
    /// # Errors
    /// Of the future: [`Error::Io`].
    pub fn flush(&self) -> Command {
        Command::new(self.clone(), Ok(Request { op: Op::Flush, flags: Flags::empty(), lba: 0, blocks: 0 }))
    }

    /// Tells that `len` bytes at `offset` are no longer needed; they may read as anything afterwards.
    ///
    /// # Errors
    /// As [`Disk::read`]; [`polypath_block::Code::Unsupported`] where the device does not discard.
    pub fn discard(&self, offset: u64, len: u64) -> Command {
        Command::new(self.clone(), self.request(Op::Discard, Flags::empty(), offset, len))
    }

    /// Makes `len` bytes at `offset` read as zeroes, deallocating them where the device can.
    ///
    /// # Errors
    /// As [`Disk::read`]; [`polypath_block::Code::Unsupported`] where the device cannot.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Command {
        Command::new(self.clone(), self.request(Op::WriteZeroes, Flags::UNMAP, offset, len))
    }

    /// Takes no more operations (they fail with [`Error::Closed`], those of other clones too). The future completes when all that
    /// were under way have; closing goes on without it.
    pub fn close(&self) -> Closing {
        self.0.close();
        Closing(NoPollers(self.0.pollers.clone()))
    }

    fn transfer(&self, op: Op, flags: Flags, offset: u64, buffer: Buffer) -> Transfer {
        Transfer::new(self.clone(), self.request(op, flags, offset, buffer.len() as u64), buffer)
    }

    fn request(&self, op: Op, flags: Flags, offset: u64, len: u64) -> Result<Request, Error> {
        let geometry = self.geometry();
        let block = u64::from(geometry.block_size);
        if len == 0 || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            let (name, block_size) = (self.name().to_owned(), geometry.block_size);
            return Err(Error::Misaligned { name, offset, len, block_size });
        }
        if offset.checked_add(len).is_none_or(|end| end > geometry.bytes()) {
            return Err(Error::OutOfRange { name: self.name().to_owned(), offset, len, size: geometry.bytes() });
        }
        Ok(Request { op, flags, lba: offset / block, blocks: len / block })
    }

    /// A thread keeps to one submission queue, so that its operations meet no other thread's on the way; threads are spread evenly.
    pub(crate) fn submission_queue(&self) -> &Arc<SubmissionQueue> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        &self.0.queues[THREAD.get() % self.0.queues.len()]
    }

    pub(crate) fn closed(&self) -> Error {
        Error::Closed { name: self.name().to_owned() }
    }

    pub(crate) fn failed(&self, request: &Request, status: Status) -> Error {
        let what = match request.op {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::WriteZeroes => "write zeroes",
            Op::Discard => "discard",
            Op::Compare => "compare",
            Op::CompareAndWrite => "compare and write",
        };
        let block = u64::from(self.0.info.geometry.block_size);
        let (offset, len) = (request.lba * block, request.blocks * block);
        Error::Io { name: self.name().to_owned(), what, offset, len, status }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("name", &self.0.name).field("queues", &self.0.queues.len()).finish()
    }
}

/// A device of our own. It is closed when the disk and all of its pollers have let go, which they do once they have submitted what
/// they had taken: an operation that nobody waits for any more is carried out all the same.
pub(crate) struct OwnedDevice(pub(crate) Arc<dyn Device>);

impl Drop for OwnedDevice {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Inner {
    fn close(&self) {
        for submissions in &self.queues {
            submissions.close();
        }
        self.owned_device.lock().unwrap_or_else(|p| p.into_inner()).take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Completes when a closed disk has nothing under way any more.
#[must_use = "closing goes on without it, but nobody waits"]
pub struct Closing(NoPollers);

impl Future for Closing {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}
