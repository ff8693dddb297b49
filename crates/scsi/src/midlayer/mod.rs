//! The SCSI mid-layer: one for every way in which SCSI commands reach a disk.
//!
//! **Below** it is a host-bus driver (iSCSI, SAS, a vendor's HBA): [`TaskQueue`] on the data path, [`HostBus`] and the registry [`Bus`] on the
//! control plane. **Above** it are [`ScsiDisk`], a [`polypath_block::Device`], and [`DiskQueue`], a [`polypath_block::ControllerQueue`] (or, for
//! one logical unit, [`LogicalUnitQueue`], an [`polypath_block::IoQueue`]), which knows its driver's queue statically.
//!
//! What is here, once for all drivers: the probe of a logical unit ([`Probe`]), unit attentions (absorbed once, and acted on), what an answer
//! means, sending again what was not carried out, holding less when the task set is full, cutting what is too large, checking who is there
//! each time a way came up, and the ladder of error recovery.
//!
//! Read `task.rs` first, then `queue/mod.rs`.

mod access;
mod bus;
mod disk;
mod listing;
mod losses;
mod passthrough;
mod probe;
mod queue;
mod reserve;
mod scanner;
mod task;

pub use bus::{Address, Bus, BusState, Shown, UnitUse};
pub use disk::{DiskConfig, DiskSource, HostBus, ScsiDisk};
pub use listing::{Listed, ListingUse};
pub use probe::{Alua, DiskTraits, LogicalUnit, Probe, ProbeStep};
pub use queue::{DiskQueue, LogicalUnitQueue};
pub use scanner::Scanner;
pub use task::{
    Answer, Outcome, Recovered, Recovery, RecoveryEnd, Task, TaskData, TaskDone, TaskEnd, TaskLimits, TaskQueue,
};
