//! Jobs through io_uring: one ring a queue, made on the thread that owns the queue.

use super::File;
use super::engine::{Call, Job};
use io_uring::{IoUring, opcode, types};
use polypath_block::Waits;
use rustix::fd::AsRawFd;
use std::io;
use std::sync::Arc;

pub(super) struct Ring {
    ring: IoUring,
    /// Keeps the file open for as long as the kernel may use it.
    _file: Arc<File>,
    in_flight: u32,
    unsent: bool,
    id: u64,
}

/// May we have a ring at all?
pub(super) fn probe() -> io::Result<()> {
    IoUring::new(2).map(drop)
}

/// The registered file of every ring.
const FILE: types::Fixed = types::Fixed(0);

impl Ring {
    pub(super) fn new(file: &Arc<File>, depth: u16) -> io::Result<Ring> {
        let entries = u32::from(depth).next_power_of_two();
        let ring = IoUring::builder().setup_clamp().setup_cqsize(entries * 2).build(entries)?;
        ring.submitter().register_files(&[file.fd.as_raw_fd()])?;
        Ok(Ring { ring, _file: file.clone(), in_flight: 0, unsent: false, id: Waits::unique() })
    }

    pub(super) fn push(&mut self, job: Job) {
        let entry = match job.call {
            Call::Read => opcode::Readv::new(FILE, job.iov, job.iov_len).offset(job.offset).build(),
            Call::Write { durable } => opcode::Writev::new(FILE, job.iov, job.iov_len)
                .offset(job.offset)
                .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                .build(),
            Call::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Call::Allocate { mode } => opcode::Fallocate::new(FILE, job.len).offset(job.offset).mode(mode).build(),
            Call::Discard => unreachable!("discards of block devices go aside"),
        };
        let entry = entry.user_data(job.user.into());
        // SAFETY: vectors and memory of the job outlive its answer (see `Job`); the file is registered and held.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // At most `depth` jobs are open and the ring is at least as long: only entries not sent yet can fill it.
            self.send();
        }
        self.in_flight += 1;
        self.unsent = true;
    }

    pub(super) fn kick(&mut self) {
        if self.unsent {
            self.send();
        }
    }

    pub(super) fn answer(&mut self) -> Option<(u32, i32)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        Some((entry.user_data() as u32, entry.result()))
    }

    pub(super) fn arm(&mut self, waits: &mut Waits) -> bool {
        self.kick();
        if self.unsent || !self.ring.completion().is_empty() {
            return false;
        }
        if self.in_flight > 0 {
            waits.readable(self.ring.as_raw_fd(), self.id);
        }
        true
    }

    pub(super) fn settle(&mut self) {
        while self.in_flight > 0 {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.raw_os_error() != Some(libc::EINTR)
            {
                tracing::error!(%error, "waiting for the kernel failed; trying again, its memory must not be taken away");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            while self.answer().is_some() {}
        }
    }

    /// Busy or out of memory for a moment: what is not sent stays in the ring for the next kick.
    fn send(&mut self) {
        match self.ring.submit() {
            Ok(_) => self.unsent = !self.ring.submission().is_empty(),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR)) => {}
            Err(error) => tracing::error!(%error, "io_uring_enter failed; trying again"),
        }
    }
}
