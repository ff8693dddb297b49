//! A logical unit as a [`Device`], and the host-bus driver interface of the control plane.

use super::bus::{Bus, Shown, UnitUse};
use super::losses::ProofOrder;
use super::queue::{DiskQueue, LogicalUnitQueue};
use super::reserve::{self, Order};
use super::task::TaskQueue;
use crate::inquiry::Tpgs;
use polypath_block::{
    Code, CommandSet, ControllerQueue, CrossFence, Device, DeviceState, IoQueue, OpenError, Passthrough,
    PassthroughReply, PassthroughRequest, Proof, ProofReply, QueueConfig, QueueSource, ReservationOp, ReservationReply,
    Reservations, UnitId,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How the disks of a bus are treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskConfig {
    /// Longest time for one task; then it is aborted.
    pub io_timeout: Duration,
    /// Longest time for each rung of the recovery ladder to do some good.
    pub grace: Duration,
    /// How long a task may be told to come again (BUSY, TASK SET FULL, becoming ready) before the path is called busy.
    pub busy_limit: Duration,
    /// LOGICAL UNIT RESET is a rung. It ends tasks of other initiators, too.
    pub unit_reset: bool,
    /// TARGET WARM RESET is a rung. It ends everybody's tasks at all logical units of the target.
    pub target_reset: bool,
    /// A port may be made active by SET TARGET PORT GROUPS when no way to the disk gives access, where the target lets us. `None`: only
    /// where the target does not change anything by itself.
    pub explicit_alua: Option<bool>,
    /// LOGICAL UNIT RESET through another way to the disk may prove quiet what a session has lost, and this way proves so for others. How long a
    /// session tries to prove it by itself before that. It ends tasks of other initiators, too. `None`: never.
    pub reset_fence: Option<Duration>,
}

/// A host-bus driver: what a vendor's driver implements beside [`TaskQueue`]. Shared between threads, nothing of it is on the data path.
///
/// Its control poller announces the state of its [`Bus`], probes the logical units that the bus says are asked for ([`Bus::take_stale`], with a
/// [`super::Probe`]) over a way of its own, and shows what it has found ([`Bus::show`]). A reset of the adapter is
/// [`super::Recovery::ResetHost`] to one of its queues.
pub trait HostBus: Send + Sync + 'static {
    /// Its queues.
    type Queue: TaskQueue + 'static;

    /// Its registry.
    fn bus(&self) -> &Arc<Bus>;

    /// How its disks are treated.
    fn disk_config(&self) -> DiskConfig;

    /// Opens a queue on the reactor whose thread calls. Never waits: it is down until the way is up.
    ///
    /// # Errors
    /// As [`polypath_block::Device::open_queue`].
    fn open_tasks(&self, config: QueueConfig) -> Result<Self::Queue, OpenError>;
}

/// The disks of a bus as the source of their queues.
pub struct DiskSource<H>(pub Arc<H>);

impl<H: HostBus> QueueSource for DiskSource<H> {
    fn name(&self) -> &str {
        self.0.bus().name()
    }

    fn open_controller_queue(&self, config: QueueConfig) -> Result<Box<dyn ControllerQueue>, OpenError> {
        Ok(Box::new(open(&self.0, config)?))
    }
}

fn open<H: HostBus>(host: &Arc<H>, config: QueueConfig) -> Result<DiskQueue<H::Queue>, OpenError> {
    DiskQueue::new(host.open_tasks(config)?, host.bus().clone(), host.disk_config(), config)
}

/// A disk behind a host-bus driver.
pub struct ScsiDisk<H> {
    host: Arc<H>,
    unit: UnitUse,
    name: String,
    /// Closing it closes the bus.
    whole: bool,
    closed: AtomicBool,
}

impl<H: HostBus> ScsiDisk<H> {
    /// The logical unit `unit` by the name of `name`. `whole`: closing it closes the bus.
    pub fn new(host: Arc<H>, unit: UnitUse, name: String, whole: bool) -> Arc<Self> {
        Arc::new(ScsiDisk { host, unit, name, whole, closed: AtomicBool::new(false) })
    }

    /// How queues of its bus name it.
    pub fn unit(&self) -> UnitId {
        self.unit.id()
    }

    /// Its driver.
    pub fn host(&self) -> &Arc<H> {
        &self.host
    }

    fn closed_reason(&self) -> Option<String> {
        self.closed.load(Ordering::SeqCst).then(|| "it was closed".to_owned())
    }
}

impl<H: HostBus> Device for ScsiDisk<H> {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        match self.closed_reason() {
            Some(reason) if !self.whole => DeviceState::Gone { reason },
            _ => self.unit.device_state(),
        }
    }

    fn version(&self) -> u64 {
        // The bus does not count the closing of one disk.
        self.unit.bus().version() + u64::from(self.closed.load(Ordering::Relaxed))
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        if let Some(reason) = self.closed_reason() {
            return Err(OpenError::Gone { name: self.name.clone(), reason });
        }
        Ok(Box::new(LogicalUnitQueue::new(open(&self.host, config)?, self.unit.id())?))
    }

    fn landing_bound(&self) -> Duration {
        self.unit.bus().landing_bound()
    }

    fn reservations(&self) -> Option<&dyn Reservations> {
        Some(self)
    }

    fn passthrough(&self) -> Option<&dyn Passthrough> {
        Some(self)
    }

    fn cross_fence(&self) -> Option<&dyn CrossFence> {
        self.host.disk_config().reset_fence.map(|_| self as &dyn CrossFence)
    }

    fn is_preferred(&self) -> bool {
        matches!(self.unit.shown(), Some(Shown::Disk(unit)) if unit.alua.preferred)
    }

    fn power_losses(&self) -> u64 {
        self.unit.power_losses()
    }

    fn ask_for_access(&self) {
        let tpgs = match self.unit.shown() {
            Some(Shown::Disk(unit)) => unit.alua.tpgs,
            _ => return,
        };
        let wanted = self.host.disk_config().explicit_alua.unwrap_or(tpgs == Tpgs::Explicit);
        if wanted && tpgs.is_explicit() {
            self.unit.ask_for_access();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if self.whole {
            self.unit.bus().close();
        } else {
            self.unit.bus().call();
        }
    }
}

/// Persistent reservations (SPC-4 5.9). The nexus that reserves is that of the control side; every queue's nexus is registered with it.
impl<H: HostBus> Reservations for ScsiDisk<H> {
    fn start(&self, op: ReservationOp, limit: Duration, reply: ReservationReply) {
        if let Err(error) = reserve::check(&op) {
            return reply.answer(Err(error));
        }
        self.unit.bus().order(Order { address: self.unit.address(), op, limit, reply });
    }

    fn forget(&self) {
        self.unit.bus().set_claim(self.unit.address(), None, None);
    }

    fn alarms(&self) -> u64 {
        self.unit.bus().alarms(self.unit.address())
    }
}

/// Over the nexus of the control side.
impl<H: HostBus> Passthrough for ScsiDisk<H> {
    fn speaks(&self, set: CommandSet) -> bool {
        set == CommandSet::Scsi
    }

    fn start(&self, request: PassthroughRequest, limit: Duration, reply: PassthroughReply) {
        match self.closed_reason() {
            Some(reason) => reply.refuse(Code::Gone, format!("{}: {reason}", self.name)),
            None => self.unit.bus().order_passthrough(self.unit.address(), request, limit, reply),
        }
    }
}

/// LOGICAL UNIT RESET over the nexus of the control side, which ends the tasks of every nexus (SAM-5 section 7.6), those of lost ones included.
impl<H: HostBus> CrossFence for ScsiDisk<H> {
    fn open_loss(&self) -> Option<u64> {
        self.unit.bus().last_loss(self.unit.address())
    }

    fn proven(&self, loss: u64, proof: Proof) {
        self.unit.bus().prove_losses(self.unit.address(), loss, proof);
    }

    fn can_prove(&self) -> bool {
        let wanted = self.host.disk_config().reset_fence.is_some();
        wanted && self.closed_reason().is_none() && self.unit.device_state().info().is_some()
    }

    fn prove(&self, limit: Duration, reply: ProofReply) {
        if self.can_prove() {
            self.unit.bus().order_proof(ProofOrder { address: self.unit.address(), limit, reply });
        } else {
            reply.answer(Err(format!("{} cannot be asked", self.name)));
        }
    }
}

impl<H> std::fmt::Debug for ScsiDisk<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScsiDisk").field("name", &self.name).finish_non_exhaustive()
    }
}
