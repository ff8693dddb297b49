//! A namespace as a [`Device`].

use crate::config::ControllerConfig;
use crate::controller::Controller;
use crate::queue::{NamespaceQueue, QueuePair};
use crate::shared::WantedNamespace;
use polypath_block::{
    Code, CommandSet, ControllerQueue, Device, DeviceState, DiskUri, Host, IoQueue, OpenError, Passthrough,
    PassthroughReply, PassthroughRequest, QueueConfig, QueueSource, ReservationOp, ReservationReply, Reservations,
    UnitId, UriError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Opens what an `nvme-tcp://` URI names: starts a controller on `host` and returns its namespace at once, in the state
/// [`DeviceState::Starting`].
///
/// # Errors
/// Names the part of the URI that is wrong; a discovery controller is no disk.
pub fn open(uri: &DiskUri, host: Arc<dyn Host>) -> Result<Arc<NvmeDevice>, UriError> {
    let config = ControllerConfig::from_uri(uri)?;
    if config.is_discovery() {
        return Err(uri.error("NQN", "a discovery controller has no namespaces; expected the NQN of an NVM subsystem"));
    }
    Ok(Controller::start(config, host).device())
}

impl Controller {
    /// The namespaces that are active now, by identifier. Empty while the controller is not up.
    pub fn namespaces(self: &Arc<Self>) -> Vec<Arc<NvmeDevice>> {
        let live = self.shared.live();
        let ids = live.map(|association| association.namespaces().into_keys().collect::<Vec<_>>()).unwrap_or_default();
        ids.into_iter().map(|nsid| self.namespace(nsid)).collect()
    }

    /// The namespace `nsid`, whether it is there yet or not.
    pub fn namespace(self: &Arc<Self>, nsid: u32) -> Arc<NvmeDevice> {
        NvmeDevice::new(self.clone(), Some(nsid), false)
    }

    /// The namespace that the configuration names, or the only one. Closing this device closes the controller.
    pub fn device(self: &Arc<Self>) -> Arc<NvmeDevice> {
        NvmeDevice::new(self.clone(), self.shared.config.ns, true)
    }
}

/// One namespace behind one controller.
pub struct NvmeDevice {
    controller: Arc<Controller>,
    ns: Option<u32>,
    name: String,
    /// Closing it closes the controller.
    whole: bool,
    closed: AtomicBool,
    /// It is looked at for as long as somebody has it.
    _wanted: Option<WantedNamespace>,
}

impl NvmeDevice {
    pub(crate) fn new(controller: Arc<Controller>, ns: Option<u32>, whole: bool) -> Arc<NvmeDevice> {
        let base = &controller.shared.config.name;
        let name = match ns {
            Some(nsid) if !whole => format!("{}#ns{nsid}", base.split('?').next().unwrap_or(base)),
            _ => base.clone(),
        };
        let _wanted = ns.map(|nsid| controller.shared.want(nsid));
        Arc::new(NvmeDevice { controller, ns, name, whole, closed: AtomicBool::new(false), _wanted })
    }

    /// Its controller.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    /// Its namespace identifier: the configured one, or the only one once it is known.
    pub fn nsid(&self) -> Option<u32> {
        let shared = &self.controller.shared;
        self.ns.or_else(|| Some(shared.namespace(&*shared.live()?, None).ok()?.0))
    }

    /// How queues of its controller name it.
    pub fn unit(&self) -> UnitId {
        self.ns.map_or(UnitId::ONLY, |nsid| UnitId(nsid.into()))
    }

    fn closed_reason(&self) -> Option<String> {
        self.closed.load(Ordering::SeqCst).then(|| "it was closed".to_owned())
    }
}

impl QueueSource for Controller {
    fn name(&self) -> &str {
        &self.shared.config.name
    }

    fn open_controller_queue(&self, config: QueueConfig) -> Result<Box<dyn ControllerQueue>, OpenError> {
        Ok(Box::new(QueuePair::open(self.shared.clone(), config)?))
    }
}

impl Device for NvmeDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> DeviceState {
        match self.closed_reason() {
            Some(reason) if !self.whole => DeviceState::Gone { reason },
            _ => self.controller.shared.device_state(self.ns),
        }
    }

    fn version(&self) -> u64 {
        self.controller.shared.version()
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        if let Some(reason) = self.closed_reason() {
            return Err(OpenError::Gone { name: self.name.clone(), reason });
        }
        Ok(Box::new(NamespaceQueue::open(self.controller.shared.clone(), self.unit(), config)?))
    }

    fn landing_bound(&self) -> Duration {
        self.controller.shared.landing_bound()
    }

    fn reservations(&self) -> Option<&dyn Reservations> {
        Some(self)
    }

    fn passthrough(&self) -> Option<&dyn Passthrough> {
        Some(self)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if self.whole {
            self.controller.close();
        } else {
            self.controller.shared.announce();
        }
    }
}

/// Reservations of the namespace (Base 2.1 section 8.1.22). The registration is that of the host, whose identifier every Connect states.
impl Reservations for NvmeDevice {
    fn start(&self, op: ReservationOp, limit: Duration, reply: ReservationReply) {
        self.controller.shared.order_reservation(self.ns, op, limit, reply);
    }

    fn forget(&self) {
        self.controller.shared.forget_reservation(self.ns);
    }

    fn alarms(&self) -> u64 {
        self.controller.shared.reserved.alarms()
    }

    fn host(&self) -> Option<[u8; 16]> {
        Some(*self.controller.shared.config.identity.id.as_bytes())
    }
}

/// Admin commands over the admin queue, I/O commands over a queue of the control side.
impl Passthrough for NvmeDevice {
    fn speaks(&self, set: CommandSet) -> bool {
        set == CommandSet::Nvme
    }

    fn start(&self, request: PassthroughRequest, limit: Duration, reply: PassthroughReply) {
        match self.closed_reason() {
            Some(reason) => reply.refuse(Code::Gone, format!("{}: {reason}", self.name)),
            None => self.controller.shared.order_passthrough(self.ns, request, limit, reply),
        }
    }
}

impl std::fmt::Debug for NvmeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvmeDevice").field("name", &self.name).field("ns", &self.ns).finish_non_exhaustive()
    }
}
