//! Which block devices the disks of this process have locked. A lock is one of a file, and a block device may have many of them, each of
//! which leads to the same blocks: `mknod` makes them, and containers have their own.

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, fstat};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// By their numbers, and whether they are written.
static USED: Mutex<Vec<(u64, bool)>> = Mutex::new(Vec::new());

/// A disk that uses one, or something else: that has its lock. Ends when dropped.
pub(crate) struct DeviceUse(Option<(u64, bool)>);

impl DeviceUse {
    /// `None`: another disk of this process has the device, and one of the two writes.
    pub(super) fn begin(fd: &OwnedFd, writes: bool) -> Option<DeviceUse> {
        let stat = fstat(fd).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice);
        let own = stat.map(|stat| (stat.st_rdev, writes));
        let mut used = used();
        if own.is_some_and(|(own, _)| used.iter().any(|&(other, written)| other == own && (written || writes))) {
            return None;
        }
        used.extend(own);
        Some(DeviceUse(own))
    }
}

impl Drop for DeviceUse {
    fn drop(&mut self) {
        let Some(own) = self.0 else { return };
        let mut used = used();
        if let Some(at) = used.iter().position(|use_of| *use_of == own) {
            used.swap_remove(at);
        }
    }
}

/// No holder leaves it half changed.
fn used() -> MutexGuard<'static, Vec<(u64, bool)>> {
    USED.lock().unwrap_or_else(PoisonError::into_inner)
}
