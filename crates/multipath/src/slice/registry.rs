//! Who holds which ranges of which device.

use super::{Carved, Slice, SliceRange};
use polypath_block::Device;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Smallest block of any device, in bytes: what is known of alignment before the device has answered.
const LEAST_BLOCK: u64 = 512;

/// Which ranges of which devices are taken. One for all slices of a program: two of them know nothing of each other's.
#[derive(Debug, Default)]
pub struct Slices {
    taken: Mutex<Vec<Taken>>,
    numbers: AtomicU64,
}

#[derive(Debug)]
struct Taken {
    number: u64,
    name: String,
    /// It is held by its slice, so that its address is not another one's meanwhile.
    device: Weak<dyn Device>,
    range: SliceRange,
}

/// Why there can be no such slice.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SliceError {
    /// It has no length.
    #[error("slice {name} of {disk}: its length is 0; expected at least one block")]
    Empty {
        /// The slice.
        name: String,
        /// Its device.
        disk: String,
    },
    /// It does not lie on blocks, or ends beyond the device.
    #[error("slice {name} of {disk}: {problem}")]
    Unfit {
        /// The slice.
        name: String,
        /// Its device.
        disk: String,
        /// What does not fit, and what was expected.
        problem: String,
    },
    /// Part of it is taken.
    #[error("slice {name} of {disk}: {range} overlaps {other}, which is {other_range}; expected a range of its own")]
    Overlaps {
        /// The slice.
        name: String,
        /// Its device.
        disk: String,
        /// Where it was to lie.
        range: SliceRange,
        /// The slice that lies there.
        other: String,
        /// Where that lies.
        other_range: SliceRange,
    },
}

impl Slices {
    /// None are taken.
    pub fn new() -> Arc<Slices> {
        Arc::default()
    }

    /// Makes a slice of `device`. Whether it fits a device that has not answered yet shows in the slice's state later.
    ///
    /// # Errors
    /// [`SliceError`]: no length, an offset or a length that are no multiples of the block size, an end beyond the device, or a range that
    /// another slice has, or had and still has requests in flight for.
    pub fn carve(
        self: &Arc<Self>,
        name: impl Into<String>,
        device: Arc<dyn Device>,
        range: SliceRange,
    ) -> Result<Arc<Slice>, SliceError> {
        let (name, disk) = (name.into(), device.name().to_owned());
        if range.length_bytes == 0 {
            return Err(SliceError::Empty { name, disk });
        }
        let unfit = |problem: String| SliceError::Unfit { name: name.clone(), disk: disk.clone(), problem };
        if let Some(info) = device.state().info() {
            range.fit(info.geometry).map_err(|(_, problem)| unfit(problem))?;
        } else if !range.offset_bytes.is_multiple_of(LEAST_BLOCK) || !range.length_bytes.is_multiple_of(LEAST_BLOCK) {
            return Err(unfit(format!("{range} does not lie on blocks; expected multiples of {LEAST_BLOCK} at least")));
        } else if range.end_bytes().is_none() {
            return Err(unfit(format!("{range} ends beyond any disk")));
        }
        let claim = self.claim(&name, &device, range)?;
        let (closed, queues) = (AtomicBool::new(false), AtomicU32::new(0));
        Ok(Arc::new(Slice { carved: Arc::new(Carved { name, device, claim, closed, queues }) }))
    }

    fn claim(self: &Arc<Self>, name: &str, device: &Arc<dyn Device>, range: SliceRange) -> Result<Claim, SliceError> {
        let mut taken = self.lock();
        let beside = |t: &&Taken| t.device.upgrade().is_some_and(|d| Arc::ptr_eq(&d, device));
        if let Some(other) = taken.iter().filter(beside).find(|t| t.range.overlaps(range)) {
            return Err(SliceError::Overlaps {
                name: name.to_owned(),
                disk: device.name().to_owned(),
                range,
                other: other.name.clone(),
                other_range: other.range,
            });
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        taken.push(Taken { number, name: name.to_owned(), device: Arc::downgrade(device), range });
        Ok(Claim { slices: self.clone(), number, range })
    }

    /// Names and places of the slices of `device`, those included that were closed and have requests in flight still.
    pub fn of(&self, device: &Arc<dyn Device>) -> Vec<(String, SliceRange)> {
        let beside = |t: &&Taken| t.device.upgrade().is_some_and(|d| Arc::ptr_eq(&d, device));
        self.lock().iter().filter(beside).map(|t| (t.name.clone(), t.range)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Taken>> {
        // No critical section leaves a half-made state behind.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range is taken for as long as this is there.
#[derive(Debug)]
pub(crate) struct Claim {
    slices: Arc<Slices>,
    number: u64,
    range: SliceRange,
}

impl Claim {
    pub(crate) fn range(&self) -> SliceRange {
        self.range
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.slices.lock().retain(|taken| taken.number != self.number);
    }
}
