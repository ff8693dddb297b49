//! For tests: a rig for [`polypath_block::contract`] with real memory, the real clock and real file descriptors.

use polypath_block::contract::Rig;
use polypath_block::{Cx, Device, SegSpan, SegTable, Segment, Time, Waits};
use polypath_memory::{Region, with};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

/// A rig for any device of this process. Memory that it hands out lives as long as the rig.
pub struct RealRig {
    device: Arc<dyn Device>,
    keeps_data: bool,
    misaligned: bool,
    start: Instant,
    regions: Vec<Region>,
}

impl RealRig {
    /// A rig for `device`; `keeps_data` as [`Rig::keeps_data`].
    pub fn new(device: Arc<dyn Device>, keeps_data: bool) -> Self {
        RealRig { device, keeps_data, misaligned: false, start: Instant::now(), regions: Vec::new() }
    }

    /// The same, with memory that begins at odd addresses (for devices that must then copy).
    #[must_use]
    pub fn misaligned(mut self) -> Self {
        self.misaligned = true;
        self
    }
}

impl Rig for RealRig {
    fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    fn now(&mut self) -> Time {
        Time::from_nanos(self.start.elapsed().as_nanos() as u64 + 1_000_000_000)
    }

    fn pass(&mut self, _: &mut Cx<'_>, waits: Option<&Waits>) {
        let Some(waits) = waits else { return std::thread::yield_now() };
        // SAFETY: the queue under test keeps the descriptors it names open; poll(2) checks the numbers itself.
        let borrow = |fd| unsafe { BorrowedFd::borrow_raw(fd) };
        let mut fds: Vec<_> = waits
            .interests
            .iter()
            .map(|i| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, i.read);
                flags.set(PollFlags::OUT, i.write);
                PollFd::from_borrowed_fd(borrow(i.fd), flags)
            })
            .collect();
        // A deadline in this rig is near or means a broken queue: the suite then fails by its own patience.
        let limit = if waits.deadline.is_some() { 1 } else { 100 };
        let limit = Timespec { tv_sec: 0, tv_nsec: limit * 1_000_000 };
        if let Err(error) = poll(&mut fds, Some(&limit)) {
            assert_eq!(error, rustix::io::Errno::INTR, "a queue named a descriptor that cannot be waited for");
        }
    }

    fn memory(&mut self, segs: &mut SegTable, len: u32, pieces: u32) -> SegSpan {
        let odd = if self.misaligned { 3 } else { 0 };
        let gap = 4096u64;
        let region = Region::allocate(u64::from(len) + (2 * gap + 4 * odd) * u64::from(pieces + 1), false)
            .expect("memory for the suite");
        let row = segs.reserve(1, pieces).expect("room in the segment table");
        let span = row.span(0, pieces);
        let (mut left, mut at) = (len, odd);
        for (n, seg) in segs.get_mut(span).iter_mut().enumerate() {
            let rest = pieces - n as u32;
            // Unequal on purpose, in multiples of 512 unless odd, and the last takes what is left.
            let share = (left / rest / 2).next_multiple_of(512).min(left) + odd as u32 * 2;
            let take = if rest == 1 { left } else { share.min(left) };
            *seg = Segment { offset: at, region: region.id(), len: take };
            left -= take;
            at = (at + u64::from(take)).next_multiple_of(gap) + gap + odd;
        }
        self.regions.push(region);
        span
    }

    fn fill(&mut self, segs: &SegTable, span: SegSpan, data: &[u8]) {
        let mut data = data;
        with(|table| {
            for seg in segs.get(span) {
                let n = table.view(*seg).expect("memory of the suite").copy_in(data);
                data = &data[n..];
            }
        });
        assert!(data.is_empty(), "the suite fills no more than it asked for");
    }

    fn bytes(&mut self, segs: &SegTable, span: SegSpan, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut at = 0;
        with(|table| {
            for seg in segs.get(span) {
                at += table.view(*seg).expect("memory of the suite").copy_out(&mut out[at..]);
            }
        });
        assert_eq!(at, len, "the suite reads no more than it asked for");
        out
    }

    fn keeps_data(&self) -> bool {
        self.keeps_data
    }
}
