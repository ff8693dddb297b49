//! What an NVMe target has besides its disks: subsystems, associations, their keep alive.

use crate::faults::Operation;
use crate::media::Party;
use crate::shared::{Shared, lock};
use crate::store::{Change, Store};
use polypath_nvme::nqn::DISCOVERY_NQN;
use polypath_nvme::reservation::ReservationNotification;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Asynchronous event kinds we send: bits of [`Controller::inner`]'s `pending` and of feature 0Bh.
pub(crate) const EVENT_NAMESPACE: u32 = 1 << 8;
pub(crate) const EVENT_ANA: u32 = 1 << 11;
pub(crate) const EVENT_DISCOVERY: u32 = 1 << 31;
/// Not a bit of feature 0Bh: feature 82h says for each namespace what is told.
pub(crate) const EVENT_RESERVATION: u32 = 1 << 30;
/// Highest controller identifier (FFF0h and up are reserved).
const LAST_CNTLID: u16 = 0xffef;
/// Changed namespaces a log page names; more become "all of them".
pub(crate) const CHANGED_MAX: usize = 1024;

/// One subsystem; the first of all is the discovery subsystem.
pub(crate) struct Subsystem {
    pub(crate) store: Arc<Store>,
    pub(crate) discovery: bool,
    pub(crate) controllers: Mutex<BTreeMap<u16, Arc<Controller>>>,
}

impl Subsystem {
    fn alive(&self, cntlid: u16) -> bool {
        lock(&self.controllers).contains_key(&cntlid)
    }

    /// ANA state of a group on a listener, as on the wire.
    #[inline]
    pub(crate) fn ana_state(&self, listener: usize, group: u32) -> u8 {
        match self.store.access(listener, group) {
            // Standby, which only SCSI knows.
            crate::config::STANDBY => 3,
            code => code,
        }
    }
}

/// What an admin queue changes and events touch.
#[derive(Debug, Default)]
pub(crate) struct ControllerInner {
    /// Feature 0Bh: which events the host wants.
    pub(crate) wanted: u32,
    /// Events to be told.
    pub(crate) pending: u32,
    /// Events told and not to be told again before their log page was read.
    pub(crate) masked: u32,
    pub(crate) changed: Vec<u32>,
    /// Feature 82h of each namespace.
    pub(crate) notification_mask: BTreeMap<u32, u32>,
    /// What the host has not read, oldest first.
    pub(crate) notifications: VecDeque<ReservationNotification>,
    /// How many there were.
    pub(crate) notified: u64,
    /// I/O queues: thread and connection of each.
    pub(crate) queues: BTreeMap<u16, (usize, u64)>,
}

/// One association.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) id: u16,
    pub(crate) subsystem: usize,
    pub(crate) listener: usize,
    pub(crate) hostnqn: String,
    pub(crate) hostid: [u8; 16],
    pub(crate) party: Arc<Party>,
    /// Thread and connection of the admin queue.
    pub(crate) admin: (usize, u64),
    pub(crate) dead: Arc<AtomicBool>,
    pub(crate) cc: AtomicU32,
    pub(crate) csts: AtomicU32,
    /// Counts resets: I/O queues of an older epoch are closed.
    pub(crate) epoch: AtomicU32,
    /// I/O queues granted.
    pub(crate) granted: AtomicU16,
    /// Keep-alive timeout as the host set it; 0 for none.
    pub(crate) kato_ms: AtomicU32,
    /// When the keep-alive timer was last started, in target time.
    pub(crate) alive_us: AtomicU64,
    /// Did anything come since? (traffic-based keep alive)
    pub(crate) traffic: AtomicBool,
    pub(crate) inner: Mutex<ControllerInner>,
}

impl Controller {
    pub(crate) fn ready(&self) -> bool {
        self.csts.load(Ordering::Acquire) & 0xd == 1
    }

    /// Notes an event; the caller wakes the threads.
    pub(crate) fn raise(&self, event: u32, nsid: Option<u32>) {
        let mut inner = lock(&self.inner);
        if let Some(nsid) = nsid {
            if inner.changed.len() >= CHANGED_MAX {
                inner.changed = vec![u32::MAX];
            } else if !inner.changed.contains(&nsid) && inner.changed.first() != Some(&u32::MAX) {
                inner.changed.push(nsid);
            }
        }
        if inner.wanted & event != 0 {
            inner.pending |= event;
        }
    }
}

/// What all connections of NVMe hosts share.
pub(crate) struct Nvme {
    pub(crate) shared: Arc<Shared>,
    pub(crate) subsystems: Vec<Subsystem>,
    pub(crate) discovery_generation: AtomicU64,
    next_cntlid: AtomicU16,
    /// I/O queues that the next associations are granted at most.
    pub(crate) max_io_queues: AtomicU16,
}

impl Nvme {
    pub(crate) fn new(shared: Arc<Shared>) -> Nvme {
        let discovery = Arc::new(Store::empty(DISCOVERY_NQN, "polypath-discovery"));
        let subsystem = |store, discovery| Subsystem { store, discovery, controllers: Mutex::default() };
        let mut subsystems = vec![subsystem(discovery, true)];
        subsystems.extend(shared.stores.iter().map(|store| subsystem(store.clone(), false)));
        Nvme {
            subsystems,
            discovery_generation: AtomicU64::new(1),
            next_cntlid: AtomicU16::new(0),
            max_io_queues: AtomicU16::new(shared.config.max_io_queues),
            shared,
        }
    }

    /// An unused controller identifier, unique over all subsystems.
    pub(crate) fn new_cntlid(&self) -> Option<u16> {
        (0..LAST_CNTLID).find_map(|_| {
            let id = self.next_cntlid.fetch_add(1, Ordering::Relaxed) % LAST_CNTLID + 1;
            self.subsystems.iter().all(|s| !s.alive(id)).then_some(id)
        })
    }

    /// Ends an association: nothing of it is executed after this, and its connections are closed.
    pub(crate) fn kill(&self, controller: &Controller, why: &str) {
        if controller.dead.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::info!(cntlid = controller.id, host = controller.hostnqn, why, "association torn down");
        controller.csts.store(0, Ordering::Release);
        lock(&self.subsystems[controller.subsystem].controllers).remove(&controller.id);
        self.shared.wake_all();
    }

    /// Ends every association.
    pub(crate) fn lose_power(&self) {
        for subsystem in &self.subsystems {
            let controllers: Vec<_> = lock(&subsystem.controllers).values().cloned().collect();
            controllers.iter().for_each(|controller| self.kill(controller, "the power failed"));
        }
    }

    /// The keep-alive timeout that `controller` enforces, in microseconds; none when it is off.
    pub(crate) fn kato_us(&self, controller: &Controller) -> Option<u64> {
        let kas = (self.shared.config.kas_ms / 100) as u16;
        polypath_nvme::keepalive::rounded_kato_ms(controller.kato_ms.load(Ordering::Relaxed), kas).map(|ms| ms * 1000)
    }

    /// How long after it arrived a write of `controller` may take effect at most by what is advertised, in microseconds.
    pub(crate) fn bound_us(&self, controller: &Controller) -> Option<u64> {
        let config = &self.shared.config;
        let intervals = if config.tbkas { 3 } else { 2 };
        self.kato_us(controller).map(|kato| intervals * kato + u64::from(config.cqt_ms) * 1000)
    }

    /// Tells the hosts of store `index` what has changed.
    pub(crate) fn changed(&self, index: usize, change: Change) {
        let Some(subsystem) = self.subsystems.get(index + 1) else { return };
        match change {
            Change::Size(nsid) | Change::Identity(nsid) | Change::List(nsid) => {
                raise(subsystem, EVENT_NAMESPACE, Some(nsid), None);
            }
            Change::Access(listener) => raise(subsystem, EVENT_ANA, None, listener),
        }
    }

    /// A port was opened or closed.
    pub(crate) fn ports_changed(&self) {
        self.discovery_generation.fetch_add(1, Ordering::AcqRel);
        if let Some(discovery) = self.subsystems.first() {
            raise(discovery, EVENT_DISCOVERY, None, None);
        }
    }
}

fn raise(subsystem: &Subsystem, event: u32, nsid: Option<u32>, listener: Option<usize>) {
    for controller in lock(&subsystem.controllers).values() {
        if listener.is_none_or(|l| l == controller.listener) {
            controller.raise(event, nsid);
        }
    }
}

/// What a command does, for faults.
pub(crate) fn operation(admin: bool, opcode: u8) -> Operation {
    use polypath_nvme::sqe::{admin as a, io};
    match (admin, opcode) {
        (_, a::FABRICS) => Operation::Session,
        (false, io::READ) => Operation::Read,
        (false, io::WRITE) => Operation::Write,
        (false, io::FLUSH) => Operation::Flush,
        (false, io::COMPARE) => Operation::Compare,
        (false, io::WRITE_ZEROES) => Operation::Zero,
        (false, io::DATASET_MANAGEMENT) => Operation::Trim,
        (false, io::RESERVATION_REPORT) => Operation::Report,
        (true, a::KEEP_ALIVE) => Operation::Alive,
        (true, a::IDENTIFY) => Operation::Identify,
        (true, a::GET_LOG_PAGE) => Operation::Report,
        (true, a::ABORT) => Operation::Abort,
        _ => Operation::Other,
    }
}
