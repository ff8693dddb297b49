//! A disk that moves no data: the measure of everything around a disk.

use crate::base::{self, Base, Completions, OpenQueue};
use crate::error::LocalError;
use polypath_block::{
    Access, Armed, Cx, Device, DeviceInfo, DeviceState, DiskUri, Done, Endpoint, Health, Io, IoQueue, Limits,
    OpenError, QueueConfig, Refused, RefusedWhy, Rest, SegTable, Status, Waits,
};
use std::sync::Arc;

/// `null://SIZE`: answers every good request at the next poll and moves no data, as the kernel's `null_blk` and SPDK's null device do.
///
/// A read leaves the caller's memory as it was: it is not filled with zeroes. Range and segments are checked as by any disk.
/// Options: `bs` (512), `uuid`, `nguid`.
pub struct NullDevice {
    base: Arc<Base>,
}

impl NullDevice {
    /// Opens the disk that `uri` describes.
    ///
    /// # Errors
    /// Names the part of the URI that does not do.
    pub fn open(uri: &DiskUri) -> Result<Arc<NullDevice>, LocalError> {
        uri.check_options(&["bs", "uuid", "nguid"])?;
        let Endpoint::Size { bytes } = uri.endpoint else {
            return Err(uri.error("scheme", "expected null://SIZE").into());
        };
        let name = uri.to_string();
        let info = DeviceInfo {
            geometry: base::geometry(&name, bytes, base::block_size(uri, 512)?)?,
            limits: Limits { compare: false, ..Limits::UNLIMITED },
            identity: base::identity(uri, name.clone())?,
            access: Access::Optimized,
            max_queues: u16::MAX,
            max_depth: base::MAX_DEPTH,
        };
        Ok(Arc::new(NullDevice { base: Arc::new(Base::new(name, info)) }))
    }
}

impl Device for NullDevice {
    fn name(&self) -> &str {
        self.base.name()
    }

    fn state(&self) -> DeviceState {
        self.base.state()
    }

    fn version(&self) -> u64 {
        self.base.version()
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let (open, depth) = self.base.open(config)?;
        Ok(Box::new(NullQueue { open, completions: Completions::new(depth), depth: depth.into(), closed: false }))
    }

    fn close(&self) {
        self.base.close();
    }
}

struct NullQueue {
    open: OpenQueue,
    completions: Completions,
    depth: usize,
    closed: bool,
}

impl NullQueue {
    #[inline]
    fn answer(&mut self, segs: &SegTable, ios: &[Io]) {
        let DeviceInfo { geometry, limits, .. } = self.open.info();
        for io in ios {
            let verdict = limits.check(io, geometry.blocks, geometry.block_size, segs);
            self.completions.push(io.tag, verdict.err().unwrap_or(Status::OK));
        }
    }
}

impl IoQueue for NullQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.submit_all(cx, core::slice::from_ref(&io)).map_err(|rest| rest.refuses(io))
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        let room = if self.closed { 0 } else { self.depth.saturating_sub(self.completions.len()) };
        let taken = room.min(ios.len());
        self.answer(cx.segs, &ios[..taken]);
        let why = if self.closed { RefusedWhy::Gone } else { RefusedWhy::Full };
        if taken == ios.len() { Ok(()) } else { Err(Rest { taken, why }) }
    }

    fn kick(&mut self, _: &mut Cx<'_>) {}

    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Done) {
        self.completions.move_to(done);
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        if self.completions.is_empty() { Armed::Sleep } else { Armed::Busy }
    }

    fn health(&self) -> Health {
        if self.closed { Health::Down } else { Health::Ready }
    }

    fn close(&mut self, _: &mut Cx<'_>) {
        self.closed = true;
    }

    fn is_drained(&self) -> bool {
        self.closed && self.completions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::Time;

    /// What waits to be told counts, also for a batch.
    #[test]
    fn a_batch_is_taken_up_to_the_depth() {
        let device = NullDevice::open(&"null://1MiB".parse().unwrap()).unwrap();
        let mut queue = device.open_queue(QueueConfig { depth: 4 }).unwrap();
        let mut segs = SegTable::new(8);
        let mut cx = Cx { now: Time::from_millis(1), segs: &mut segs, reactor: 0 };
        let flushes: Vec<Io> = (0..5).map(Io::flush).collect();
        assert_eq!(queue.submit_all(&mut cx, &flushes[..3]), Ok(()));
        let full = |taken| Err(Rest { taken, why: RefusedWhy::Full });
        assert_eq!(queue.submit_all(&mut cx, &flushes[3..]), full(1));
        assert_eq!(queue.submit_all(&mut cx, &flushes), full(0));
        let mut done = Done::with_capacity(4);
        queue.poll(&mut cx, &mut done);
        assert!(done.completions.iter().map(|c| c.tag).eq(0..4));
        queue.close(&mut cx);
        assert_eq!(queue.submit_all(&mut cx, &flushes), Err(Rest { taken: 0, why: RefusedWhy::Gone }));
    }
}
