//! Jobs through io_uring: one ring a queue, made on the thread that owns the queue.

use super::File;
use super::engine::{Answer, Call, Job};
use io_uring::{Builder, IoUring, opcode, squeue, types};
use polypath_block::Waits;
use rustix::fd::AsRawFd;
use std::io;
use std::sync::Arc;

/// Most entries that wait for the rest of the turn.
///
/// The kernel hands what it gets in one call to the device all at once, when it has prepared the last of it. A disk that answers a deep queue
/// all at once would stand still each time until as many are prepared again. So no more wait than the disk has to do meanwhile: the first
/// goes at once, then two, four and eight; beyond that, fewer system calls gain nothing (`docs/decisions/0010-files-and-pages.md`).
const BATCH: usize = 8;

pub(super) struct Ring {
    ring: IoUring,
    /// Keeps the file open for as long as the kernel may use it.
    _file: Arc<File>,
    in_flight: u32,
    unsent: bool,
    id: u64,
}

/// How a ring is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Setup {
    /// The kernel says by a flag in the ring that answers wait to be fetched, instead of interrupting the thread for them, and takes entries
    /// in the order of the ring. Linux 6.6.
    FlaggedInOrder,
    /// As above, with the array of indices that older kernels want. Linux 5.19.
    Flagged,
    /// As kernels have had it from the beginning.
    Plain,
}

/// Best first.
pub(super) const SETUPS: [Setup; 3] = [Setup::FlaggedInOrder, Setup::Flagged, Setup::Plain];

impl Setup {
    fn apply(self, builder: &mut Builder<squeue::Entry>) {
        if self != Setup::Plain {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if self == Setup::FlaggedInOrder {
            builder.setup_no_sqarray();
        }
    }
}

/// May we have a ring at all?
pub(super) fn probe() -> io::Result<()> {
    IoUring::new(2).map(drop)
}

/// The registered file of every ring.
const FILE: types::Fixed = types::Fixed(0);

impl Ring {
    /// A ring for `depth` jobs, set up in the first way of `ways` that this kernel knows.
    pub(super) fn new(file: &Arc<File>, depth: u16, ways: &[Setup]) -> io::Result<Ring> {
        let entries = u32::from(depth).next_power_of_two();
        let ring = build(ways, entries, |way, builder| way.apply(builder))?;
        ring.submitter().register_files(&[file.fd.as_raw_fd()])?;
        Ok(Ring { ring, _file: file.clone(), in_flight: 0, unsent: false, id: Waits::unique() })
    }

    pub(super) fn push(&mut self, job: Job) {
        let entry = entry(&job).user_data(job.user.into());
        // SAFETY: vectors and memory of the job outlive its answer (see `Job`); the file is registered and held.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // At most `depth` jobs are open and the ring is at least as long: only entries not sent yet can fill it.
            self.send();
        }
        self.in_flight += 1;
        self.unsent = true;
        let waiting = self.ring.submission().len();
        let sent = self.in_flight as usize - waiting;
        if waiting > sent.min(BATCH - 1) {
            self.send();
        }
    }

    pub(super) fn kick(&mut self) {
        if self.unsent {
            self.send();
        }
    }

    /// All answers that are there. Without any it looks at the ring and calls nobody.
    pub(super) fn answers(&mut self, into: &mut Vec<Answer>) {
        if self.in_flight == 0 {
            return;
        }
        if self.ring.submission().taskrun() {
            self.send();
        }
        let before = into.len();
        into.extend(self.ring.completion().map(|entry| (entry.user_data() as u32, entry.result())));
        self.in_flight -= (into.len() - before) as u32;
    }

    pub(super) fn arm(&mut self, waits: &mut Waits) -> bool {
        self.kick();
        if self.unsent || self.ring.submission().taskrun() || !self.ring.completion().is_empty() {
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
            self.in_flight -= self.ring.completion().count() as u32;
        }
    }

    /// Hands over what is in the ring, and fetches the answers that the kernel has flagged. Busy or out of memory for a moment: what is not
    /// sent stays in the ring for the next kick.
    fn send(&mut self) {
        match self.ring.submit() {
            Ok(_) => self.unsent = !self.ring.submission().is_empty(),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR)) => {}
            Err(error) => tracing::error!(%error, "io_uring_enter failed; trying again"),
        }
    }
}

/// The job as the kernel wants it. Most have one vector, which it need not fetch then.
fn entry(job: &Job) -> squeue::Entry {
    let one = match job.iov_len {
        // SAFETY: the vectors of a job stay in place until its answer has come (see `Job`).
        1 => Some(unsafe { *job.iov }),
        _ => None,
    };
    match (job.call, one) {
        (Call::Read, Some(v)) => {
            opcode::Read::new(FILE, v.iov_base.cast(), v.iov_len as u32).offset(job.offset).build()
        }
        (Call::Read, None) => opcode::Readv::new(FILE, job.iov, job.iov_len).offset(job.offset).build(),
        (Call::Write { durable }, Some(v)) => {
            opcode::Write::new(FILE, v.iov_base.cast_const().cast(), v.iov_len as u32)
                .offset(job.offset)
                .rw_flags(flags(durable))
                .build()
        }
        (Call::Write { durable }, None) => {
            opcode::Writev::new(FILE, job.iov, job.iov_len).offset(job.offset).rw_flags(flags(durable)).build()
        }
        (Call::Sync, _) => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        (Call::Allocate { mode }, _) => opcode::Fallocate::new(FILE, job.len).offset(job.offset).mode(mode).build(),
        (Call::Discard, _) => unreachable!("discards of block devices go aside"),
    }
}

fn flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

/// The first of `ways` that the kernel knows: what it does not know it refuses as invalid. Any other refusal is one of all of them.
fn build<W: Copy>(ways: &[W], entries: u32, apply: impl Fn(W, &mut Builder<squeue::Entry>)) -> io::Result<IoUring> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for &way in ways {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(entries * 2);
        apply(way, &mut builder);
        match builder.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            other => return other,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::super::engine::Engine;
    use super::super::queue::FileQueue;
    use super::*;
    use crate::FileDevice;
    use crate::testing::RealRig;
    use polypath_block::{Device, DeviceState, IoQueue, OpenError, QueueConfig, contract};

    /// The build's own folder: likely a file system that does O_DIRECT, which /tmp may not be.
    fn disk(bytes: u64) -> (tempfile::NamedTempFile, Arc<FileDevice>) {
        let file = tempfile::NamedTempFile::new_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        file.as_file().set_len(bytes).unwrap();
        let uri = format!("file://{}?bs=4096&engine=uring", file.path().display());
        (file, FileDevice::open(&uri.parse().unwrap()).unwrap())
    }

    /// A file whose queues have rings of one way.
    struct OneWay(Arc<FileDevice>, Setup);

    impl Device for OneWay {
        fn name(&self) -> &str {
            self.0.name()
        }

        fn state(&self) -> DeviceState {
            self.0.state()
        }

        fn version(&self) -> u64 {
            self.0.version()
        }

        fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
            let (open, depth) = self.0.base.open(config)?;
            let engine = Engine::Ring(Box::new(Ring::new(&self.0.file, depth, &[self.1]).unwrap()));
            Ok(Box::new(FileQueue::new(open, self.0.file.clone(), engine, None, depth)))
        }

        fn close(&self) {
            self.0.close();
        }
    }

    #[test]
    fn every_way_to_a_ring_keeps_the_promises_of_a_queue() {
        for way in SETUPS {
            let (_file, device) = disk(8 << 20);
            if let Err(error) = Ring::new(&device.file, 2, &[way]) {
                assert!(way != Setup::Plain && error.raw_os_error() == Some(libc::EINVAL), "{way:?}: {error}");
                println!("skipped: this kernel does not know {way:?}");
                continue;
            }
            contract::check(&mut RealRig::new(Arc::new(OneWay(device.clone(), way)), true));
            device.close();
        }
    }

    /// Nobody enters the kernel for the ring while its owner sleeps: the answer must end the sleep by itself.
    #[test]
    fn an_answer_ends_a_sleep_whichever_way_the_ring_was_made() {
        for way in SETUPS {
            let (_file, device) = disk(1 << 20);
            let Ok(mut ring) = Ring::new(&device.file, 2, &[way]) else { continue };
            let mut bounce = super::super::bounce::Bounce::new(4096);
            let iov = libc::iovec { iov_base: bounce.address().cast(), iov_len: 4096 };
            for user in 0..200 {
                ring.push(Job {
                    user,
                    call: Call::Write { durable: true },
                    iov: &iov,
                    iov_len: 1,
                    offset: 0,
                    len: 4096,
                });
                assert_eq!(sleep_until_answered(&mut ring), [(user, 4096)], "{way:?}");
            }
            assert_eq!(bounce.bytes()[..], [0; 4096]);
        }
    }

    fn sleep_until_answered(ring: &mut Ring) -> Vec<Answer> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut answers = Vec::new();
        while answers.is_empty() {
            let mut waits = Waits::default();
            if ring.arm(&mut waits) {
                assert_eq!(waits.interests[0].fd, ring.ring.as_raw_fd());
                let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
                // SAFETY: the ring is alive and its descriptor open.
                let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(ring.ring.as_raw_fd()) };
                let woken = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit));
                assert_ne!(woken, Ok(0), "the sleep was not ended");
            }
            ring.answers(&mut answers);
        }
        answers
    }

    /// An older kernel answers flags that it does not know as every kernel answers this one without its companion.
    #[test]
    fn what_the_kernel_does_not_know_is_left_out() {
        let unknown = |way: bool, builder: &mut Builder<squeue::Entry>| {
            if way {
                builder.setup_defer_taskrun();
            }
        };
        build(&[true, false], 4, unknown).expect("the second way");
        let error = build(&[true], 4, unknown).map(drop).expect_err("there is no other way");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    fn sync(user: u32) -> Job {
        Job { user, call: Call::Sync, iov: std::ptr::null(), iov_len: 0, offset: 0, len: 0 }
    }

    /// Of what it is handed in one call the kernel takes nothing behind a job that it cannot even read: the rest goes with the next kick.
    #[test]
    fn what_the_kernel_has_left_is_handed_over_again() {
        let (_file, device) = disk(1 << 20);
        let mut ring = Ring::new(&device.file, 8, &SETUPS).unwrap();
        ring.push(sync(0));
        ring.push(Job { call: Call::Read, iov_len: 2, ..sync(1) });
        ring.push(sync(2));
        assert_eq!(
            ring.ring.submission().len(),
            1,
            "this kernel goes on behind a bad one: then there is nothing to test"
        );
        assert!(ring.unsent, "a sleep now would be one for ever");
        let (mut answers, mut turns) = (Vec::new(), 0);
        while answers.len() < 3 {
            ring.kick();
            ring.answers(&mut answers);
            turns += 1;
            assert!(turns < 1_000_000, "only {answers:?} have come");
            std::thread::yield_now();
        }
        answers.sort_unstable();
        assert_eq!(answers, [(0, 0), (1, -libc::EFAULT), (2, 0)]);
    }

    /// Afterwards the kernel touches nothing of theirs any more.
    #[test]
    fn settling_waits_for_all_that_is_open_also_for_what_was_not_handed_over() {
        for way in SETUPS {
            let (_file, device) = disk(1 << 20);
            let Ok(mut ring) = Ring::new(&device.file, 32, &[way]) else { continue };
            let mut bounce = super::super::bounce::Bounce::new(4096);
            let iov = libc::iovec { iov_base: bounce.address().cast(), iov_len: 4096 };
            for user in 0..20 {
                ring.push(Job { call: Call::Write { durable: true }, iov: &iov, iov_len: 1, ..sync(user) });
            }
            assert!(ring.unsent);
            ring.settle();
            assert!(ring.ring.submission().is_empty() && ring.ring.completion().is_empty(), "{way:?}");
            assert_eq!(ring.in_flight, 0, "{way:?}");
            assert_eq!(bounce.bytes()[..], [0; 4096]);
        }
    }

    /// In one vector or in many.
    #[test]
    fn a_durable_write_says_so() {
        let iov = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 512 }; 2];
        for (iov_len, durable) in [(1, true), (1, false), (2, true), (2, false)] {
            let job = Job { call: Call::Write { durable }, iov: iov.as_ptr(), iov_len, offset: 4096, ..sync(7) };
            // SAFETY: an entry is 64 bytes of plain numbers, `struct io_uring_sqe`.
            let octets: [u8; 64] = unsafe { std::mem::transmute_copy(&entry(&job)) };
            let flags = i32::from_ne_bytes([octets[28], octets[29], octets[30], octets[31]]);
            assert_eq!(flags, if durable { libc::RWF_DSYNC } else { 0 }, "{iov_len} vectors");
            assert_eq!(octets[8..16], 4096u64.to_ne_bytes());
        }
    }

    #[test]
    fn the_first_of_many_leave_before_the_last_are_made() {
        let (_file, device) = disk(1 << 20);
        let mut ring = Ring::new(&device.file, 32, &SETUPS).unwrap();
        let mut waiting = Vec::new();
        for user in 0..24 {
            ring.push(sync(user));
            waiting.push(ring.ring.submission().len());
        }
        assert_eq!(waiting, [0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1]);
        let mut answers = Vec::new();
        ring.kick();
        while answers.len() < 24 {
            ring.answers(&mut answers);
            std::thread::yield_now();
        }
        answers.sort_unstable();
        assert_eq!(answers, (0..24).map(|user| (user, 0)).collect::<Vec<_>>());
    }
}
