//! The control plane: what a disk is and how its queues are opened.

use crate::cross_fence::CrossFence;
use crate::identity::Identity;
use crate::limits::{Limits, LimitsError};
use crate::passthrough::Passthrough;
use crate::queue::IoQueue;
use crate::reservation::Reservations;
use crate::status::Code;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Size of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes a block: a power of two, 512 ..= 64 KiB.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
}

impl Geometry {
    /// Size in bytes (saturating).
    pub const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size as u64)
    }

    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// Which number does not, and what would.
    pub fn check(&self) -> Result<(), LimitsError> {
        if !self.block_size.is_power_of_two() || !(512..=65536).contains(&self.block_size) {
            let expected = "a power of two from 512 to 65536";
            return Err(LimitsError { what: "block_size", value: self.block_size.into(), expected });
        }
        if self.blocks.checked_mul(u64::from(self.block_size)).is_none_or(|b| b > i64::MAX as u64) {
            return Err(LimitsError { what: "blocks", value: self.blocks, expected: "fewer than 2^63 bytes in all" });
        }
        Ok(())
    }
}

/// Access that a path gives (ANA state, NVMe Base 2.0 section 8.1; SCSI target port group state).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Use it first.
    Optimized,
    /// Use it when no optimized path is left.
    NonOptimized,
    /// Cannot be used now; may come back.
    Inaccessible,
    /// Changing; may come back within the transition time.
    Change,
    /// Cannot be used and does not come back by itself.
    PersistentLoss,
}

impl Access {
    /// Can I/O go there now?
    pub const fn usable(self) -> bool {
        matches!(self, Access::Optimized | Access::NonOptimized)
    }
}

/// What a device that answers tells about itself. Replaced as a whole when anything changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Size.
    pub geometry: Geometry,
    /// Limits and abilities.
    pub limits: Limits,
    /// Who it is.
    pub identity: Identity,
    /// Access over this path.
    pub access: Access,
    /// Most I/O queues it can open at a time (what the controller granted); at least one.
    pub max_queues: u16,
    /// Most requests one queue holds.
    pub max_depth: u16,
}

/// Where a device stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceState {
    /// Not answered yet; it is being tried.
    Starting,
    /// Answers.
    Live(Arc<DeviceInfo>),
    /// Does not answer; it is being tried again.
    Down {
        /// What broke.
        cause: Code,
        /// For people: what happened, where, and what is being done.
        reason: String,
    },
    /// Gave up, or was closed. Does not come back.
    Gone {
        /// For people: why.
        reason: String,
    },
}

impl DeviceState {
    /// The information of a live device.
    pub fn info(&self) -> Option<&Arc<DeviceInfo>> {
        match self {
            DeviceState::Live(info) => Some(info),
            _ => None,
        }
    }
}

/// How a queue is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueConfig {
    /// Requests it must hold at a time, at least; the device may hold more.
    pub depth: u16,
}

/// Why no queue could be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The device is gone.
    #[error("{name} is gone: {reason}")]
    Gone {
        /// Name of the device.
        name: String,
        /// Why it went.
        reason: String,
    },
    /// The device grants no more queues.
    #[error("{name} grants {granted} I/O queues and all are taken; use fewer reactors for it")]
    NoQueue {
        /// Name of the device.
        name: String,
        /// Queues it granted.
        granted: u16,
    },
    /// It is opened in a way it does not do.
    #[error("{name}: {reason}")]
    Unsupported {
        /// Name of the device.
        name: String,
        /// What it does not do, and what to do instead.
        reason: String,
    },
    /// The operating system said no.
    #[error("{name}: {reason}")]
    System {
        /// Name of the device.
        name: String,
        /// What failed.
        reason: String,
    },
}

/// A disk, or one path to one. Shared between threads; nothing of it is on the data path.
pub trait Device: Send + Sync {
    /// Its URI or configured name, for people.
    fn name(&self) -> &str;

    /// Where it stands. Cheap enough for a control plane, not for every I/O.
    fn state(&self) -> DeviceState;

    /// Grows whenever [`Device::state`] would answer differently. One relaxed load: cheap enough for every turn.
    fn version(&self) -> u64;

    /// Opens a queue. Call it on the reactor that will own the queue; it never waits: a queue of a device that is not live
    /// yet is [`crate::Health::Down`] until it is.
    ///
    /// # Errors
    /// [`OpenError`], when there will never be such a queue.
    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError>;

    /// How long after the end of this process, whatever ended it, changes that it had in flight there may still land. Whoever serves the
    /// disk next waits that long with changes of its own. May grow as the device learns more. Zero: the end of the process is the end of
    /// them, as far as those who come after it can tell.
    fn landing_bound(&self) -> Duration {
        Duration::ZERO
    }

    /// Does the target want this way to be used before others of the same access (ALUA's PREF bit)? The version grows when that changes.
    fn is_preferred(&self) -> bool {
        false
    }

    /// No way to the disk gives access: makes this one active if the disk lets its users choose (ALUA, explicit transitions) and the
    /// configuration allows it. Does not wait; what comes of it is in [`Device::state`]. Where there is nothing to ask, nothing happens.
    fn ask_for_access(&self) {}

    /// How often something was lost that had been written and not flushed. Each queue tells its user of it with a flush that fails
    /// ([`Code::CacheLost`]); whoever opens a queue for a user that had one before knows by this what happened in between.
    fn losses(&self) -> u64 {
        0
    }

    /// How often this way has heard that the disk's volatile write cache lost its power, where the name of the cache does not tell
    /// ([`crate::CacheDomain::since`]). Other ways to the same disk have heard of other losses. The version grows with it.
    fn power_losses(&self) -> u64 {
        0
    }

    /// Its power over reservations, if it has one. A part of a disk has none: they concern the whole.
    fn reservations(&self) -> Option<&dyn Reservations> {
        None
    }

    /// Its power to pass commands through, if it has one. A part of a disk has none: a command may reach beyond it.
    fn passthrough(&self) -> Option<&dyn Passthrough> {
        None
    }

    /// Its power to have lost changes proven quiet through another way to the disk, and to prove those of others, if it has one. A part of a
    /// disk has none: its ways are those of the whole.
    fn cross_fence(&self) -> Option<&dyn CrossFence> {
        None
    }

    /// Ends it: no reconnects, keep-alives or admin commands once its queues are closed. Idempotent, does not wait;
    /// [`Device::state`] says [`DeviceState::Gone`] when it is over.
    fn close(&self);
}

impl fmt::Debug for dyn Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}
