//! Disks that are near: `null://`, `ram://` and `file://`.
//!
//! **Knows:** how to keep blocks in memory, in a file or on a block device of this machine; io_uring, `O_DIRECT` and when it fits, and
//! what to do where the kernel allows neither.
//!
//! **Refuses to know:** networks, reactors, other paths to the same disk.
//!
//! **Threading:** devices are shared; a queue belongs to the thread that opened it. Two queues of one `ram://` device that write
//! the same block at the same time may leave a mix of both: a disk promises no more.
//!
//! **Unsafe:** yes, in `file/`: the kernel reads and writes memory after the call has returned. Each request in flight holds a
//! [`polypath_memory::Window`] of every region it touches, so that nothing is unmapped under the kernel's hands, and a queue that is
//! dropped waits for the kernel first.
//!
//! Read `null.rs` first, it is the smallest queue there is, then `ram.rs`, then `file/queue.rs`.
//!
//! # What flush means
//! | scheme | write cache | Flush | FUA | Discard | Write Zeroes |
//! |---|---|---|---|---|---|
//! | `null` | no | nothing | nothing | nothing | nothing |
//! | `ram` | no | nothing | nothing | zeroes, memory given back | zeroes |
//! | `file` | yes | `fdatasync` | `RWF_DSYNC` | hole or `BLKDISCARD` | zero range, hole, or zeroes written |

mod base;
mod error;
mod file;
mod null;
mod ram;
pub mod testing;

pub use error::LocalError;
pub use file::{Direct, FileDevice, FileEngine, FileOptions};
pub use null::NullDevice;
pub use ram::RamDevice;

use polypath_block::{Device, DiskUri, Scheme};
use std::sync::Arc;

/// Opens a `null://`, `ram://` or `file://` disk. It may block (a file is opened): not for a reactor's thread.
///
/// # Errors
/// [`LocalError`] that names the part of the URI, or what the operating system refused.
pub fn open(uri: &DiskUri) -> Result<Arc<dyn Device>, LocalError> {
    match uri.scheme {
        Scheme::Null => Ok(NullDevice::open(uri)?),
        Scheme::Ram => Ok(RamDevice::open(uri)?),
        Scheme::File => Ok(FileDevice::open(uri)?),
        other => Err(uri.error("scheme", format!("{} is no disk of this machine", other.as_str())).into()),
    }
}

/// Whether a disk could be opened, as far as that can be told without using it: a file that somebody else uses now is none the worse.
///
/// # Errors
/// As [`open`].
pub fn check(uri: &DiskUri) -> Result<(), LocalError> {
    match uri.scheme {
        Scheme::File => FileDevice::check(uri),
        _ => open(uri).map(drop),
    }
}
