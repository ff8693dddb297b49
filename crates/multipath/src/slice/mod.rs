//! Slices: parts of a disk that are disks of their own, so that several users share one disk without overlap.
//!
//! A slice stands *above one group* (or any other device) and is no option of a path: the group fences, flushes and chooses paths, and the
//! slice moves addresses. [`Slices`] knows which ranges of which device are taken, and refuses those that overlap.
//!
//! What a slice is follows its device: where the device has become too small for it, or has blocks that it does not begin or end with, it is
//! down and its requests fail. Nothing of it ever reaches a block beyond its end.

mod queue;
mod registry;

pub use registry::{SliceError, Slices};

use core::time::Duration;
use polypath_block::{
    Code, Device, DeviceInfo, DeviceState, Geometry, Identifier, Identity, IoQueue, OpenError, QueueConfig,
};
use queue::SliceQueue;
use registry::Claim;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Where a slice lies on its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SliceRange {
    /// Where it begins, in bytes: a multiple of the block size.
    pub offset_bytes: u64,
    /// How long it is, in bytes: a multiple of the block size, at least one block.
    pub length_bytes: u64,
}

impl SliceRange {
    /// The first byte after it; `None` where that has no number.
    pub fn end_bytes(self) -> Option<u64> {
        self.offset_bytes.checked_add(self.length_bytes)
    }

    /// Does it share a byte with `other`?
    pub fn overlaps(self, other: SliceRange) -> bool {
        let end = |range: SliceRange| range.end_bytes().unwrap_or(u64::MAX);
        self.offset_bytes < end(other) && other.offset_bytes < end(self)
    }

    /// What part of a device with `geometry` it is.
    ///
    /// # Errors
    /// What does not fit: [`Code::Invalid`] for blocks that it does not begin and end with, [`Code::OutOfRange`] for an end beyond the device.
    pub(crate) fn fit(self, geometry: Geometry) -> Result<Fit, (Code, String)> {
        let block = u64::from(geometry.block_size.max(1));
        let expected = format!("expected multiples of its blocks, which have {} bytes", geometry.block_size);
        if !self.offset_bytes.is_multiple_of(block) || !self.length_bytes.is_multiple_of(block) {
            return Err((Code::Invalid, format!("{self} does not lie on blocks; {expected}")));
        }
        if self.end_bytes().is_none_or(|end| end > geometry.bytes()) {
            return Err((
                Code::OutOfRange,
                format!("{self} ends beyond the disk, which has {} bytes", geometry.bytes()),
            ));
        }
        Ok(Fit { first_lba: self.offset_bytes / block, blocks: self.length_bytes / block })
    }
}

impl fmt::Display for SliceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset_bytes, self.length_bytes)
    }
}

/// A slice in blocks of its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fit {
    pub(crate) first_lba: u64,
    pub(crate) blocks: u64,
}

/// What the slice and its queues have in common. The range is taken for as long as one of them is there: what a queue has in flight may
/// still be written to it.
pub(crate) struct Carved {
    name: String,
    device: Arc<dyn Device>,
    claim: Claim,
    closed: AtomicBool,
    queues: AtomicU32,
}

impl Carved {
    /// Where it lies now, if that is known: not while its device has not answered or is down.
    fn look(&self) -> Option<Result<Fit, Code>> {
        let state = self.device.state();
        let info = state.info()?;
        Some(self.claim.range().fit(info.geometry).map_err(|(code, _)| code))
    }

    fn is_gone(&self) -> bool {
        self.closed.load(Ordering::Acquire) && self.queues.load(Ordering::Acquire) == 0
    }
}

/// Part of a device, as a device: see the module. [`Slices::carve`] makes it.
///
/// Its identity is its own: it is never taken for the whole disk or for another slice ([`Identifier::Slice`]). Its cache is that of the
/// disk, and a flush of it flushes that. Closing it leaves its device open; the range is free once its queues are dropped, too.
pub struct Slice {
    carved: Arc<Carved>,
}

impl Slice {
    /// Where it lies.
    pub fn range(&self) -> SliceRange {
        self.carved.claim.range()
    }

    /// The device it is a part of.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.carved.device
    }

    fn shown(&self, info: &DeviceInfo, fit: Fit) -> DeviceInfo {
        let of = info.identity.identifiers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        DeviceInfo {
            geometry: Geometry { blocks: fit.blocks, ..info.geometry },
            identity: Identity {
                identifiers: vec![Identifier::Slice(format!("{} of {of}", self.range()))],
                cache_domain: info.identity.cache_domain.clone(),
            },
            ..info.clone()
        }
    }
}

impl Device for Slice {
    fn name(&self) -> &str {
        &self.carved.name
    }

    fn state(&self) -> DeviceState {
        if self.carved.is_gone() {
            return DeviceState::Gone { reason: format!("{} was closed", self.carved.name) };
        }
        match self.carved.device.state() {
            DeviceState::Live(info) => match self.range().fit(info.geometry) {
                Ok(fit) => DeviceState::Live(Arc::new(self.shown(&info, fit))),
                Err((cause, problem)) => {
                    DeviceState::Down { cause, reason: format!("slice {}: {problem}", self.carved.name) }
                }
            },
            other => other,
        }
    }

    fn version(&self) -> u64 {
        // The device does not count the end of a slice.
        self.carved.device.version() + u64::from(self.carved.is_gone())
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        if self.carved.closed.load(Ordering::Acquire) {
            let reason = "the slice was closed".to_owned();
            return Err(OpenError::Gone { name: self.carved.name.clone(), reason });
        }
        let queue = self.carved.device.open_queue(config)?;
        Ok(Box::new(SliceQueue::new(queue, self.carved.clone(), config.depth)))
    }

    fn landing_bound(&self) -> Duration {
        self.carved.device.landing_bound()
    }

    fn losses(&self) -> u64 {
        self.carved.device.losses()
    }

    fn close(&self) {
        self.carved.closed.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice").field("name", &self.carved.name).field("range", &self.range()).finish_non_exhaustive()
    }
}
