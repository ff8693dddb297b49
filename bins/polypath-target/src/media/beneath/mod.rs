//! Disks of our own stack as media: whatever a URI names, or several URIs that are paths to one disk.
//!
//! Nothing is carried out at once here, as it is on memory: a connection makes a [`Job`] of a command, the [`Engine`] of its thread cuts it
//! into requests to the device and says when all of them are quiet. What a connection has given up, or lost, goes on beneath until the
//! device has given it back: until then it is a *ghost*. Nobody is told that it is quiet before that, and changes of the same blocks wait
//! for it, whoever asks for them.

mod engine;
mod job;
mod lane;
mod open;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use engine::{Ended, Engine};
pub(crate) use job::{Job, Order, Task};
pub(crate) use open::{Identities, Source, open};

use super::MediumError;
use crate::shared::lock;
use polypath_block::{Code, Device, DeviceInfo, Limits, Op, Status};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A disk beneath the target. Its queues are the engines'.
pub(crate) struct Beneath {
    /// Its place among those of the target; engines have their queues in this order.
    pub(crate) index: usize,
    device: Arc<dyn Device>,
    /// As it was told last.
    info: Mutex<Arc<DeviceInfo>>,
    /// The version of the device that [`Beneath::follow`] has seen.
    seen: AtomicU64,
    /// How long a request may wait there for a path.
    patience: Duration,
    /// How many ranges there are in `ghosts`.
    haunted: AtomicUsize,
    ghosts: Mutex<Vec<Range>>,
}

/// First block and number of blocks.
pub(crate) type Range = (u64, u64);

impl Beneath {
    /// `device` answers as `info` says; requests wait there for a path as long as `patience`.
    pub(crate) fn new(index: usize, device: Arc<dyn Device>, info: Arc<DeviceInfo>, patience: Duration) -> Beneath {
        Beneath {
            index,
            seen: AtomicU64::new(u64::MAX),
            device,
            info: Mutex::new(info),
            patience,
            haunted: AtomicUsize::new(0),
            ghosts: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.device.name()
    }

    /// As it was when it answered last.
    pub(crate) fn info(&self) -> Arc<DeviceInfo> {
        lock(&self.info).clone()
    }

    pub(crate) fn limits(&self) -> Limits {
        lock(&self.info).limits
    }

    /// How long a change that was begun may take to land or to fail, as far as that is known.
    pub(crate) fn quiesce_time(&self) -> Duration {
        self.patience.saturating_add(self.device.landing_bound())
    }

    /// Sees whether the device tells something new. One load where it does not.
    #[inline]
    pub(crate) fn follow(&self) -> bool {
        let version = self.device.version();
        if self.seen.load(Ordering::Relaxed) == version {
            return false;
        }
        self.seen.store(version, Ordering::Relaxed);
        let state = self.device.state();
        let Some(info) = state.info() else { return false };
        let mut known = lock(&self.info);
        let news = **known != **info;
        *known = info.clone();
        news
    }

    /// No requests any more. Idempotent.
    pub(crate) fn close(&self) {
        self.device.close();
    }

    /// Something of these ranges may still land though nobody waits for it any more.
    fn haunt(&self, ranges: impl Iterator<Item = Range>) {
        let mut ghosts = lock(&self.ghosts);
        ghosts.extend(ranges);
        self.haunted.store(ghosts.len(), Ordering::Release);
    }

    /// The same is quiet now.
    fn lay(&self, ranges: impl Iterator<Item = Range>) {
        let mut ghosts = lock(&self.ghosts);
        for range in ranges {
            if let Some(at) = ghosts.iter().position(|ghost| *ghost == range) {
                ghosts.swap_remove(at);
            }
        }
        self.haunted.store(ghosts.len(), Ordering::Release);
    }

    /// Would a change of these ranges meet a ghost?
    #[inline]
    fn is_haunted(&self, ranges: impl Iterator<Item = Range>) -> bool {
        self.haunted.load(Ordering::Acquire) > 0 && self.meets(ranges)
    }

    #[cold]
    fn meets(&self, mut ranges: impl Iterator<Item = Range>) -> bool {
        let ghosts = lock(&self.ghosts);
        let touch = |a: Range, b: Range| a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1);
        ranges.any(|range| ghosts.iter().any(|ghost| touch(*ghost, range)))
    }
}

impl Drop for Beneath {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Beneath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beneath").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// What a status of the device means to whoever asked for `op`. It is about this command and not about our way to the host: there is another
/// word for that, and a host that took it for one would ask for the same elsewhere.
fn outcome(op: Op, status: Status) -> Result<(), MediumError> {
    Err(match status.code {
        Code::Ok => return Ok(()),
        Code::Medium if matches!(op, Op::Read | Op::Compare) => MediumError::Read,
        Code::Medium | Code::CacheLost => MediumError::Write,
        Code::OutOfRange => MediumError::OutOfRange,
        Code::Unsupported | Code::Invalid => MediumError::Unsupported,
        Code::WriteProtected => MediumError::WriteProtected,
        Code::ReservationConflict => MediumError::Conflict,
        Code::Miscompare => MediumError::Miscompare,
        Code::NoSpace => MediumError::NoSpace,
        Code::Aborted => MediumError::Aborted,
        Code::BadMemory
        | Code::OutcomeUnknown
        | Code::PathLost
        | Code::PathNoAccess
        | Code::PathBusy
        | Code::PathTimeout
        | Code::PathProtocol
        | Code::PathIdentity
        | Code::NoPath
        | Code::Gone => MediumError::Failed,
    })
}
