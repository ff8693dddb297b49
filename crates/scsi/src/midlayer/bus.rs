//! What is known of the logical units behind one driver: the registry in which drivers announce and disks look.
//!
//! A driver's control poller writes, devices and queues read. Queues look only when their bell has rung, which costs one relaxed load a
//! turn otherwise.

use super::listing::Listing;
use super::losses::Losses;
use super::passthrough;
use super::probe::LogicalUnit;
use super::reserve::{Claim, Order};
use crate::{Attention, Lun};
use polypath_block::{Code, DeviceState, Host, Identity, OpenError, ReservationError, UnitId, Verdict};
use polypath_net::Bell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Most logical units of one bus: as many as a single-level LUN can name (SAM-5 section 4.7.5.1).
const MOST_UNITS: usize = 16_384;

/// A logical unit of a bus.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Address {
    /// Which target; zero where the bus has one only.
    pub target: u64,
    /// Its logical unit.
    pub lun: Lun,
}

/// Where a bus stands.
#[derive(Clone, Debug)]
pub enum BusState {
    /// Not up yet.
    Starting,
    /// Logical units can be reached.
    Up,
    /// They cannot be; it is being tried again.
    Down {
        /// What broke.
        cause: Code,
        /// For people.
        reason: String,
    },
    /// For good.
    Gone {
        /// For people: why.
        reason: String,
    },
}

/// What the probe of a logical unit has brought.
#[derive(Clone, Debug)]
pub enum Shown {
    /// A disk.
    Disk(Arc<LogicalUnit>),
    /// Something that cannot be used, or nothing.
    Trouble {
        /// What.
        code: Code,
        /// For people.
        reason: String,
    },
}

struct Entry {
    address: Address,
    /// Devices and queues that use it.
    users: u32,
    /// Who it was when its users first saw it. Forgotten with the last of them.
    first: Option<Identity>,
    shown: Option<Shown>,
    /// The disk that was seen there last, whatever was shown since. Forgotten as `first` is.
    known: Option<Arc<LogicalUnit>>,
    /// To be looked at again.
    stale: bool,
    /// How often its power was lost, as our nexuses have heard; and up to which of these losses the control nexus has.
    power_losses: u64,
    control_heard: Heard,
    /// How often an acknowledged change was lost otherwise, as deferred errors have told.
    deferred: u64,
    /// What its nexuses are to be registered with.
    claim: Claim,
    /// How far each queue has followed the claim: its epoch, or [`NOT_USED`].
    followed: Vec<Weak<AtomicU64>>,
    alarms: u64,
    /// Nobody has looked since the last alarm.
    alarmed: bool,
    /// Somebody wants it to be made active.
    asked: bool,
}

/// What is known of a logical unit now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// It is to be looked at first.
    Doubtful,
    /// It is the disk that it was.
    Disk,
    /// It is another one, or of no use.
    Trouble,
}

/// Target ports of one session that are remembered.
const PORTS: usize = 16;

/// Up to which loss of power of a logical unit the nexuses of one session have heard: one for each target port that it was at.
#[derive(Debug, Default)]
pub(super) struct Heard(Vec<(u64, u64)>);

impl Heard {
    fn of(&self, port: u64) -> Option<u64> {
        self.0.iter().find(|(of, _)| *of == port).map(|(_, losses)| *losses)
    }

    fn set(&mut self, port: u64, losses: u64) {
        self.0.retain(|(of, _)| *of != port);
        if self.0.len() >= PORTS {
            self.0.remove(0);
        }
        self.0.push((port, losses));
    }
}

impl Entry {
    /// See [`UnitUse::hears`]. A nexus hears of each loss of power once, and several nexuses of the same one: the first counts it. One
    /// that has never been looked at hears of what was before it, which is no loss of ours.
    fn hear(&mut self, bus: &Bus, heard: &mut Heard, port: u64, attention: Option<Attention>) -> bool {
        if attention == Some(Attention::NexusLoss) {
            bus.tells_nexus_loss.store(true, Ordering::Relaxed);
        }
        let lost = match attention {
            Some(Attention::PowerOn) => true,
            // Many say this to whoever logs in again. Those that have another word for that mean it.
            Some(Attention::PowerOnOrReset) => bus.tells_nexus_loss.load(Ordering::Relaxed),
            Some(_) => false,
            None => {
                heard.set(port, self.power_losses);
                return false;
            }
        };
        let before = heard.of(port);
        let new = lost && before == Some(self.power_losses);
        if new {
            self.power_losses += 1;
            tracing::warn!(path = %bus.name, lun = %self.address.lun, losses = self.power_losses, "a logical unit has lost its power");
        }
        if lost && before.is_some() {
            heard.set(port, self.power_losses);
        }
        new
    }
}

/// A queue sends nothing to the logical unit before it has looked at the claim again.
pub(super) const NOT_USED: u64 = u64::MAX;

/// See the module.
pub struct Bus {
    name: String,
    host: Arc<dyn Host>,
    version: AtomicU64,
    state: Mutex<BusState>,
    units: Mutex<Vec<Entry>>,
    pub(super) listing: Mutex<Listing>,
    pub(super) losses: Losses,
    bells: Mutex<Vec<Weak<Bell>>>,
    queues_open: AtomicU32,
    /// The target has a word of its own for a nexus that was lost, and does not say then that its power was.
    tells_nexus_loss: AtomicBool,
    landing_bound_ms: AtomicU64,
    closing: AtomicBool,
    called: AtomicBool,
    orders: Mutex<Vec<Order>>,
    pub(super) passthroughs: Mutex<Vec<passthrough::Order>>,
}

impl Bus {
    /// A bus by the name of `name` for people, whose control poller runs on `host`. `landing_bound`: how long after the end of this
    /// process changes that it had in flight may still land, as far as is known yet.
    pub fn new(name: &str, host: Arc<dyn Host>, landing_bound: Duration) -> Arc<Bus> {
        Arc::new(Bus {
            name: name.to_owned(),
            host,
            version: AtomicU64::new(1),
            state: Mutex::new(BusState::Starting),
            units: Mutex::default(),
            listing: Mutex::default(),
            losses: Losses::default(),
            bells: Mutex::default(),
            queues_open: AtomicU32::new(0),
            tells_nexus_loss: AtomicBool::new(false),
            landing_bound_ms: AtomicU64::new(landing_bound.as_millis() as u64),
            closing: AtomicBool::new(false),
            called: AtomicBool::new(false),
            orders: Mutex::default(),
            passthroughs: Mutex::default(),
        })
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Grows whenever anything that devices show has changed.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// As [`polypath_block::Device::landing_bound`].
    pub fn landing_bound(&self) -> Duration {
        Duration::from_millis(self.landing_bound_ms.load(Ordering::Relaxed))
    }

    /// The bound is this from now on, if it was less.
    pub fn raise_landing_bound(&self, bound: Duration) {
        self.landing_bound_ms.fetch_max(bound.as_millis() as u64, Ordering::Relaxed);
    }

    // What drivers say.

    /// Where the bus stands.
    pub fn state(&self) -> BusState {
        lock(&self.state).clone()
    }

    /// The bus stands elsewhere now.
    pub fn set_state(&self, state: BusState) {
        let gone = matches!(state, BusState::Gone { .. });
        *lock(&self.state) = state;
        if gone {
            // Outside the lock: whoever asked is told by the drop.
            let orders = (std::mem::take(&mut *lock(&self.orders)), self.take_proof_orders(), self.take_passthroughs());
            drop(orders);
        }
        self.announce();
    }

    /// Logical units that somebody uses and that have not been looked at since they were first asked for, or since something has
    /// happened that may have changed them.
    pub fn take_stale(&self) -> Vec<Address> {
        let mut units = lock(&self.units);
        let used = units.iter_mut().filter(|entry| entry.users > 0);
        used.filter_map(|entry| std::mem::take(&mut entry.stale).then_some(entry.address)).collect()
    }

    /// Logical units that somebody uses.
    pub fn in_use(&self) -> Vec<Address> {
        lock(&self.units).iter().filter(|entry| entry.users > 0).map(|entry| entry.address).collect()
    }

    /// Logical units of which this holds are to be looked at again.
    pub fn doubt_all(&self, which: impl Fn(&Shown) -> bool) {
        for entry in lock(&self.units).iter_mut() {
            entry.stale |= entry.shown.as_ref().is_some_and(&which);
        }
    }

    /// All logical units in use are to be looked at: the way to them was lost in between.
    pub fn all_stale(&self) {
        lock(&self.units).iter_mut().for_each(|entry| entry.stale = true);
    }

    /// A probe of `address` has brought this.
    pub fn show(&self, address: Address, shown: Shown) {
        let mut units = lock(&self.units);
        let Some(entry) = units.iter_mut().find(|entry| entry.address == address) else { return };
        if let Shown::Disk(unit) = &shown {
            let identity = &unit.info.identity;
            if entry.users > 0 {
                entry.first.get_or_insert_with(|| identity.clone());
            }
            match entry.first.as_ref().map(|first| another(address, first, identity)) {
                Some(Some((_, reason))) => tracing::error!(path = %self.name, "{reason}"),
                Some(None) => entry.known = Some(unit.clone()),
                None => {}
            }
        }
        entry.shown = Some(shown);
        drop(units);
        self.announce();
    }

    /// Is this who was at `address` when its users first saw it?
    pub(super) fn is_first(&self, address: Address, found: &Identity) -> bool {
        let units = lock(&self.units);
        let first = units.iter().find(|entry| entry.address == address).and_then(|entry| entry.first.as_ref());
        first.is_some_and(|first| another(address, first, found).is_none())
    }

    /// The disk that was seen last at `address`, if somebody uses it.
    pub fn known(&self, address: Address) -> Option<Arc<LogicalUnit>> {
        lock(&self.units).iter().find(|entry| entry.address == address)?.known.clone()
    }

    /// What is known of `address`, which nobody is looking at.
    pub(super) fn seen(&self, address: Address) -> Seen {
        let units = lock(&self.units);
        match units.iter().find(|entry| entry.address == address) {
            None => Seen::Trouble,
            Some(entry) => match (&entry.shown, &entry.first) {
                _ if entry.stale => Seen::Doubtful,
                (None, _) => Seen::Doubtful,
                (Some(Shown::Disk(unit)), Some(first)) if another(address, first, &unit.info.identity).is_none() => {
                    Seen::Disk
                }
                (Some(_), _) => Seen::Trouble,
            },
        }
    }

    /// The control nexus, to target port `port`, hears this of `address`, or nothing more (`None`): it has been looked at.
    pub(super) fn control_hears(&self, address: Address, port: u64, attention: Option<Attention>) {
        let mut units = lock(&self.units);
        let Some(entry) = units.iter_mut().find(|entry| entry.address == address) else { return };
        let mut heard = std::mem::take(&mut entry.control_heard);
        let new = entry.hear(self, &mut heard, port, attention);
        entry.control_heard = heard;
        drop(units);
        if new {
            self.announce();
        }
    }

    /// The control nexus hears that a change to `address` is lost which had been acknowledged.
    pub(super) fn control_hears_loss(&self, address: Address) {
        if let Some(entry) = lock(&self.units).iter_mut().find(|entry| entry.address == address) {
            entry.deferred += 1;
        }
        self.announce();
    }

    /// Logical units that somebody wants to be made active (SET TARGET PORT GROUPS), since this was asked last.
    pub fn take_asked(&self) -> Vec<Address> {
        let mut units = lock(&self.units);
        units.iter_mut().filter_map(|entry| std::mem::take(&mut entry.asked).then_some(entry.address)).collect()
    }

    /// Has anybody called since the last time?
    #[inline]
    pub fn answer_call(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::SeqCst)
    }

    /// Is there a call that was not answered?
    pub fn is_called(&self) -> bool {
        self.called.load(Ordering::SeqCst)
    }

    /// Has it been closed, so that it ends with its last queue?
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Queues that are open.
    pub fn queues_open(&self) -> u32 {
        self.queues_open.load(Ordering::SeqCst)
    }

    // What users say.

    /// Somebody uses the logical unit at `address` from now on.
    ///
    /// # Errors
    /// [`OpenError::System`] when too many were ever asked for.
    pub fn attach(self: &Arc<Self>, address: Address) -> Result<UnitUse, OpenError> {
        let mut units = lock(&self.units);
        let at = match units.iter().position(|entry| entry.address == address) {
            Some(at) => at,
            None if units.len() >= MOST_UNITS => {
                let reason = format!("{MOST_UNITS} logical units were asked for, which is the most there can be");
                return Err(OpenError::System { name: self.name.clone(), reason });
            }
            None => {
                let (claim, followed, alarms, alarmed) = (Claim::default(), Vec::new(), 0, false);
                units.push(Entry {
                    address,
                    users: 0,
                    first: None,
                    shown: None,
                    known: None,
                    stale: true,
                    power_losses: 0,
                    control_heard: Heard::default(),
                    deferred: 0,
                    asked: false,
                    claim,
                    followed,
                    alarms,
                    alarmed,
                });
                units.len() - 1
            }
        };
        let entry = &mut units[at];
        entry.users += 1;
        if entry.first.is_none()
            && let Some(Shown::Disk(unit)) = &entry.shown
        {
            entry.first = Some(unit.info.identity.clone());
        }
        drop(units);
        self.call();
        Ok(UnitUse { bus: self.clone(), at })
    }

    /// Somebody wants something of reservations; the control poller is called.
    pub(super) fn order(&self, order: Order) {
        lock(&self.orders).push(order);
        if let BusState::Gone { reason } = self.state() {
            for order in std::mem::take(&mut *lock(&self.orders)) {
                order.reply.answer(Err(ReservationError::new(Code::Gone, reason.clone())));
            }
        }
        self.call();
    }

    /// What was asked for since the last time.
    pub(super) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut *lock(&self.orders))
    }

    /// What the nexuses to `address` are to be registered with.
    pub(super) fn claim(&self, address: Address) -> Claim {
        let units = lock(&self.units);
        units.iter().find(|entry| entry.address == address).map_or_else(Claim::default, |entry| entry.claim)
    }

    /// Logical units of which a registration is claimed.
    pub(super) fn claimed(&self) -> Vec<Address> {
        let units = lock(&self.units);
        let claimed = units.iter().filter(|entry| entry.users > 0 && entry.claim.key.is_some());
        claimed.map(|entry| entry.address).collect()
    }

    /// From now on nexuses to `address` are to be registered with `key`; those that are registered with `leaving` are to end that.
    pub(super) fn set_claim(&self, address: Address, key: Option<u64>, leaving: Option<u64>) {
        let mut units = lock(&self.units);
        let Some(entry) = units.iter_mut().find(|entry| entry.address == address) else { return };
        if (entry.claim.key, entry.claim.leaving) == (key, leaving) && key.is_none() {
            return;
        }
        entry.claim = Claim { key, leaving, epoch: entry.claim.epoch + 1 };
        drop(units);
        self.announce();
    }

    /// Has every queue that sends something to `address` done what is claimed?
    pub(super) fn is_followed(&self, address: Address) -> bool {
        let mut units = lock(&self.units);
        let Some(entry) = units.iter_mut().find(|entry| entry.address == address) else { return true };
        let epoch = entry.claim.epoch;
        entry.followed.retain(|followed| followed.strong_count() > 0);
        let all = entry.followed.iter().filter_map(Weak::upgrade);
        all.map(|followed| followed.load(Ordering::Acquire)).all(|at| at == epoch || at == NOT_USED)
    }

    /// Something was heard that may mean that what is claimed was ended by somebody else.
    pub(super) fn alarm(&self, address: Address) {
        let mut units = lock(&self.units);
        let Some(entry) = units.iter_mut().find(|entry| entry.address == address) else { return };
        if entry.claim.key.is_none() || entry.alarmed {
            return;
        }
        (entry.alarmed, entry.alarms) = (true, entry.alarms + 1);
        drop(units);
        self.announce();
    }

    /// Somebody looks now.
    pub(super) fn answer_alarm(&self, address: Address) {
        if let Some(entry) = lock(&self.units).iter_mut().find(|entry| entry.address == address) {
            entry.alarmed = false;
        }
    }

    /// As [`polypath_block::Reservations::alarms`].
    pub(super) fn alarms(&self, address: Address) -> u64 {
        lock(&self.units).iter().find(|entry| entry.address == address).map_or(0, |entry| entry.alarms)
    }

    /// Nobody is registered with what was claimed: it is claimed no more, which is an alarm.
    pub(super) fn claim_was_ended(&self, address: Address) {
        self.alarm(address);
        self.set_claim(address, None, None);
    }

    /// Ends it once its queues are closed. Idempotent.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.call();
    }

    /// Wakes the control poller.
    pub fn call(&self) {
        self.called.store(true, Ordering::SeqCst);
        self.host.wake();
    }

    /// A queue is opened; its bell is rung whenever something changes.
    ///
    /// # Errors
    /// When the bus is gone, or no bell is to be had.
    pub(super) fn register_queue(&self) -> Result<Arc<Bell>, OpenError> {
        if let BusState::Gone { reason } = self.state() {
            return Err(OpenError::Gone { name: self.name.clone(), reason });
        }
        let system = |e: std::io::Error| OpenError::System {
            name: self.name.clone(),
            reason: format!("no eventfd for a queue: {e}; raise the limit of open files"),
        };
        let bell = Arc::new(Bell::new().map_err(system)?);
        lock(&self.bells).push(Arc::downgrade(&bell));
        self.queues_open.fetch_add(1, Ordering::SeqCst);
        Ok(bell)
    }

    pub(super) fn release_queue(&self) {
        self.queues_open.fetch_sub(1, Ordering::SeqCst);
        self.call();
    }

    pub(super) fn announce(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        lock(&self.bells).retain(|bell| match bell.upgrade() {
            Some(bell) => {
                bell.ring();
                true
            }
            None => false,
        });
        self.host.wake();
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Somebody uses a logical unit: who it was when he first saw it is held against what it shows later.
pub struct UnitUse {
    bus: Arc<Bus>,
    at: usize,
}

impl UnitUse {
    /// The bus.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// How queues of the bus name it. Never [`UnitId::ONLY`].
    pub fn id(&self) -> UnitId {
        UnitId(self.at as u64 + 1)
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        lock(&self.bus.units)[self.at].address
    }

    /// How far a queue has followed the claim is in `followed`, for as long as that is there.
    pub(super) fn show_followed(&self, followed: &Arc<AtomicU64>) {
        lock(&self.bus.units)[self.at].followed.push(Arc::downgrade(followed));
    }

    /// It may have changed: it is to be looked at again.
    pub fn doubt(&self) {
        lock(&self.bus.units)[self.at].stale = true;
        self.bus.call();
    }

    /// The way to it is to be made active.
    pub fn ask_for_access(&self) {
        lock(&self.bus.units)[self.at].asked = true;
        self.bus.call();
    }

    /// As [`polypath_block::Device::power_losses`]; a change that was acknowledged and then lost otherwise counts as well.
    pub fn power_losses(&self) -> u64 {
        let entry = &lock(&self.bus.units)[self.at];
        entry.power_losses + entry.deferred
    }

    /// A change that was acknowledged is lost, as a deferred error tells (SPC-4 section 4.5.5).
    pub(super) fn lost_changes(&self) {
        lock(&self.bus.units)[self.at].deferred += 1;
        self.bus.announce();
    }

    /// The nexus to target port `port` of a session that has heard so much hears this now, or nothing more (`None`): it has been looked at.
    pub(super) fn hears(&self, heard: &mut Heard, port: u64, attention: Option<Attention>) {
        let new = lock(&self.bus.units)[self.at].hear(&self.bus, heard, port, attention);
        if new {
            self.bus.announce();
        }
    }

    /// The disk that was seen there last.
    pub fn known(&self) -> Option<Arc<LogicalUnit>> {
        lock(&self.bus.units)[self.at].known.clone()
    }

    /// What it showed last, if that is who it was before. `None`: nothing yet.
    pub fn shown(&self) -> Option<Shown> {
        let units = lock(&self.bus.units);
        let entry = &units[self.at];
        let shown = entry.shown.clone()?;
        Some(match (&shown, &entry.first) {
            (Shown::Disk(unit), Some(first)) => match another(entry.address, first, &unit.info.identity) {
                Some((code, reason)) => Shown::Trouble { code, reason },
                None => shown,
            },
            _ => shown,
        })
    }

    /// Is `found`, seen on a way of its own, who it was for its users?
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, found: &Identity) -> Result<(), (Code, String)> {
        let mut units = lock(&self.bus.units);
        let entry = &mut units[self.at];
        let first = entry.first.get_or_insert_with(|| found.clone());
        another(entry.address, first, found).map_or(Ok(()), Err)
    }

    /// The state of the device that it is.
    pub fn device_state(&self) -> DeviceState {
        match self.bus.state() {
            BusState::Starting => DeviceState::Starting,
            BusState::Down { cause, reason } => DeviceState::Down { cause, reason },
            BusState::Gone { reason } => DeviceState::Gone { reason },
            BusState::Up => match self.shown() {
                None => DeviceState::Starting,
                Some(Shown::Disk(unit)) => DeviceState::Live(unit.info.clone()),
                Some(Shown::Trouble { code, reason }) => {
                    DeviceState::Down { cause: code, reason: format!("{}: {reason}", self.bus.name) }
                }
            },
        }
    }
}

impl Clone for UnitUse {
    fn clone(&self) -> Self {
        lock(&self.bus.units)[self.at].users += 1;
        UnitUse { bus: self.bus.clone(), at: self.at }
    }
}

impl Drop for UnitUse {
    fn drop(&mut self) {
        let mut units = lock(&self.bus.units);
        let entry = &mut units[self.at];
        entry.users -= 1;
        if entry.users == 0 {
            (entry.first, entry.known, entry.stale, entry.asked) = (None, None, true, false);
            entry.control_heard = Heard::default();
            entry.claim = Claim { key: None, leaving: None, epoch: entry.claim.epoch + 1 };
            drop(units);
            self.bus.announce();
        }
    }
}

/// Opens units of queues by their number.
pub(super) fn unit_of(bus: &Arc<Bus>, id: UnitId) -> Option<UnitUse> {
    let at = usize::try_from(id.0.checked_sub(1)?).ok()?;
    lock(&bus.units).get_mut(at)?.users += 1;
    Some(UnitUse { bus: bus.clone(), at })
}

/// Why what is there now cannot be what was there first.
fn another(address: Address, first: &Identity, now: &Identity) -> Option<(Code, String)> {
    let same_place = first.identifiers.iter().any(|i| now.identifiers.contains(i));
    match first.compare(now) {
        Verdict::Same => None,
        Verdict::Unknown if same_place => None,
        Verdict::Different | Verdict::Unknown => {
            let reason = format!(
                "another disk answers at LUN {}: it was {:?} and is {:?}",
                address.lun, first.identifiers, now.identifiers
            );
            Some((Code::PathIdentity, reason))
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
