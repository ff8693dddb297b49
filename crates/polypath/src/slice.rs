//! Slices of disks: several users share one disk without overlap.

use crate::error::Error;
use crate::stack::Stack;
use polypath_block::Device;
use polypath_multipath::{Slice, SliceRange};
use std::sync::Arc;

impl Stack {
    /// Makes a slice of `device`, usually of a [`crate::Group`]: a disk of its own, for [`crate::Builder::device`] or a server. It is not
    /// asked whether somebody uses the whole device. No two slices of one device overlap on one stack; a range is free again when its
    /// slice and the queues of that are dropped.
    ///
    /// # Errors
    /// [`Error::Slice`]: overlap, no length, not on blocks, or an end beyond the device. Of a device that has not answered yet the last two
    /// show in the slice's state later.
    pub fn open_slice(
        &self,
        name: impl Into<String>,
        device: Arc<dyn Device>,
        range: SliceRange,
    ) -> Result<Arc<Slice>, Error> {
        Ok(self.slices().carve(name, device, range)?)
    }
}
