//! What all threads share: subsystems, namespaces, controllers, listeners, counters. Nothing here is locked on the data path.

use crate::config::{ConfigError, NamespacePlan, TargetConfig};
use crate::faults::{FaultTable, HeldStore};
use crate::media::Medium;
use crate::shell::ThreadHandle;
use polypath_nvme::nqn::DISCOVERY_NQN;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Asynchronous event kinds we send: bits of [`Controller::inner`]'s `pending` and of feature 0Bh.
pub(crate) const EVENT_NAMESPACE: u32 = 1 << 8;
pub(crate) const EVENT_ANA: u32 = 1 << 11;
pub(crate) const EVENT_DISCOVERY: u32 = 1 << 31;
/// Highest controller identifier (FFF0h and up are reserved).
const LAST_CNTLID: u16 = 0xffef;
/// Changed namespaces a log page names; more become "all of them".
pub(crate) const CHANGED_MAX: usize = 1024;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One namespace as it is now. A change of identity or size makes a new one over the same or another medium.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) nsid: u32,
    pub(crate) medium: Arc<Medium>,
    /// The medium before the last change: reads of it may still wait to be sent.
    #[allow(dead_code, reason = "held, not read")]
    pub(crate) previous: Option<Arc<Medium>>,
    pub(crate) shift: u32,
    pub(crate) blocks: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
    pub(crate) group: u32,
}

impl Namespace {
    fn open(plan: &NamespacePlan, threads: usize) -> Result<Namespace, ConfigError> {
        let (medium, bytes) = Medium::open(&plan.backing, threads)?;
        let shift = plan.bs.trailing_zeros();
        if bytes >> shift == 0 {
            return Err(ConfigError::new(format!("namespace {}", plan.nsid), "smaller than one block"));
        }
        Ok(Namespace {
            nsid: plan.nsid,
            medium: Arc::new(medium),
            previous: None,
            shift,
            blocks: bytes >> shift,
            uuid: plan.uuid,
            nguid: plan.nguid,
            eui64: plan.eui64,
            group: plan.group,
        })
    }
}

/// One subsystem; the first of all is the discovery subsystem.
#[derive(Debug)]
pub(crate) struct Subsystem {
    pub(crate) nqn: String,
    pub(crate) serial: String,
    pub(crate) discovery: bool,
    namespaces: Mutex<Arc<Vec<Arc<Namespace>>>>,
    /// Namespaces that no controller sees for now.
    detached: Mutex<Vec<Arc<Namespace>>>,
    version: AtomicU64,
    pub(crate) controllers: Mutex<BTreeMap<u16, Arc<Controller>>>,
    /// `ana[listener][group - 1]`, wire codes.
    ana: Vec<Vec<AtomicU8>>,
    pub(crate) ana_changes: AtomicU64,
}

impl Subsystem {
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn namespaces(&self) -> Arc<Vec<Arc<Namespace>>> {
        lock(&self.namespaces).clone()
    }

    /// Number of ANA groups (identifiers are 1 to this).
    pub(crate) fn groups(&self) -> u32 {
        self.ana.first().map_or(0, |g| g.len() as u32)
    }

    #[inline]
    pub(crate) fn ana_state(&self, listener: usize, group: u32) -> u8 {
        match self.ana.get(listener).and_then(|l| l.get(group as usize - 1)) {
            Some(state) => state.load(Ordering::Relaxed),
            None => 1,
        }
    }

    /// Sets the state of one group (or all) on one listener (or all). `false` when nothing is named so.
    pub(crate) fn set_ana(&self, listener: Option<usize>, group: Option<u32>, code: u8) -> bool {
        let mut any = false;
        for (l, groups) in self.ana.iter().enumerate() {
            for (g, state) in groups.iter().enumerate() {
                if listener.is_none_or(|x| x == l) && group.is_none_or(|x| x as usize == g + 1) {
                    state.store(code, Ordering::Relaxed);
                    any = true;
                }
            }
        }
        if any {
            self.ana_changes.fetch_add(1, Ordering::AcqRel);
        }
        any
    }

    /// Replaces namespace `nsid` by what `make` makes of it.
    pub(crate) fn replace(
        &self,
        nsid: u32,
        make: impl FnOnce(&Namespace) -> Result<Namespace, String>,
    ) -> Result<Arc<Namespace>, String> {
        let mut list = lock(&self.namespaces);
        let at = list
            .iter()
            .position(|n| n.nsid == nsid)
            .ok_or_else(|| format!("subsystem {} has no namespace {nsid}", self.nqn))?;
        let new = Arc::new(make(&list[at])?);
        let mut next = list.to_vec();
        next[at] = new.clone();
        *list = Arc::new(next);
        self.version.fetch_add(1, Ordering::Release);
        Ok(new)
    }

    /// Hides namespace `nsid` from all controllers, or shows it again.
    pub(crate) fn attach(&self, nsid: u32, attached: bool) -> Result<(), String> {
        let (mut list, mut detached) = (lock(&self.namespaces), lock(&self.detached));
        let mut shown = list.to_vec();
        let (from, to) = if attached { (&mut *detached, &mut shown) } else { (&mut shown, &mut *detached) };
        let problem = if attached { "is not detached" } else { "is not there" };
        let at = from.iter().position(|n| n.nsid == nsid);
        let at = at.ok_or_else(|| format!("namespace {nsid} of subsystem {} {problem}", self.nqn))?;
        to.push(from.remove(at));
        shown.sort_by_key(|n| n.nsid);
        *list = Arc::new(shown);
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Those that controllers see and those that they do not.
    pub(crate) fn all_namespaces(&self) -> Vec<Arc<Namespace>> {
        self.namespaces().iter().chain(lock(&self.detached).iter()).cloned().collect()
    }

    pub(crate) fn alive(&self, cntlid: u16) -> bool {
        lock(&self.controllers).contains_key(&cntlid)
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
    /// Thread and connection of the admin queue.
    pub(crate) admin: (usize, u64),
    pub(crate) dead: AtomicBool,
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

/// One listener as all threads see it.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) dropped: AtomicBool,
    pub(crate) closed: AtomicBool,
    pub(crate) latency_us: AtomicU64,
    pub(crate) bandwidth: Bucket,
}

/// A token bucket of bytes, filled as time goes by. Unlimited at a rate of 0.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    rate: AtomicU64,
    tokens: AtomicI64,
    filled_us: AtomicU64,
}

impl Bucket {
    pub(crate) fn set_rate(&self, bytes_per_s: u64, now_us: u64) {
        self.filled_us.store(now_us, Ordering::Relaxed);
        self.tokens.store(0, Ordering::Relaxed);
        self.rate.store(bytes_per_s, Ordering::Release);
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Bytes that may move now; `usize::MAX` without a limit.
    #[inline]
    pub(crate) fn allowed(&self, now_us: u64) -> usize {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return usize::MAX;
        }
        let before = self.filled_us.load(Ordering::Relaxed);
        let elapsed_us = now_us.saturating_sub(before).min(100_000);
        let fresh = (u128::from(rate) * u128::from(elapsed_us) / 1_000_000) as i64;
        if fresh > 0 && self.filled_us.compare_exchange(before, now_us, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // At most 20 ms' worth is saved up, and never less than one large packet.
            let most = ((rate / 50) as i64).max(65_536);
            let now = self.tokens.load(Ordering::Relaxed);
            self.tokens.fetch_add(fresh.min((most - now).max(0)), Ordering::Relaxed);
        }
        usize::try_from(self.tokens.load(Ordering::Relaxed)).unwrap_or(0)
    }

    #[inline]
    pub(crate) fn spend(&self, bytes: usize) {
        if self.rate.load(Ordering::Relaxed) != 0 {
            self.tokens.fetch_sub(bytes as i64, Ordering::Relaxed);
        }
    }
}

/// What `status` tells of one connection; written by its thread once a turn.
#[derive(Debug, Default)]
pub(crate) struct ConnInfo {
    pub(crate) id: u64,
    pub(crate) listener: usize,
    pub(crate) thread: usize,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) local: Option<SocketAddr>,
    /// Controller in the low half, queue above, valid when not `u32::MAX`.
    pub(crate) queue: AtomicU32,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) others: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) frozen: AtomicBool,
}

/// Everything.
pub(crate) struct Shared {
    pub(crate) config: TargetConfig,
    clock: Clock,
    start_unix_us: u64,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) subsystems: Vec<Subsystem>,
    pub(crate) faults: FaultTable,
    pub(crate) held: HeldStore,
    pub(crate) threads: OnceLock<Vec<ThreadHandle>>,
    /// Moves when threads must look at their connections: events, dead controllers.
    pub(crate) events: AtomicU64,
    pub(crate) discovery_generation: AtomicU64,
    pub(crate) conns: Mutex<BTreeMap<u64, Arc<ConnInfo>>>,
    pub(crate) next_conn: AtomicU64,
    next_cntlid: AtomicU16,
    pub(crate) stopping: AtomicBool,
    pub(crate) counters: Counters,
    /// I/O queues that the next associations are granted at most.
    pub(crate) max_io_queues: AtomicU16,
    /// How often the power came, as SMART tells it.
    pub(crate) power_cycles: AtomicU64,
}

/// Where target time comes from.
#[derive(Debug)]
enum Clock {
    /// The machine, since then.
    Machine(Instant),
    /// Whoever drives the target ([`Shared::set_now_us`]).
    Driven(AtomicU64),
}

/// Events counted over the whole target.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) terminated: AtomicU64,
    pub(crate) keep_alive_expired: AtomicU64,
    pub(crate) digest_errors: AtomicU64,
    pub(crate) controllers: AtomicU64,
}

impl Shared {
    /// Opens every medium. `addresses` are those the listeners really have.
    pub(crate) fn new(config: TargetConfig, addresses: &[SocketAddr]) -> Result<Shared, ConfigError> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Shared::with_clock(config, addresses, Clock::Machine(Instant::now()), unix.as_micros() as u64)
    }

    /// As [`Shared::new`], with a clock that stands still until [`Shared::set_now_us`].
    pub(crate) fn driven(config: TargetConfig, addresses: &[SocketAddr]) -> Result<Shared, ConfigError> {
        Shared::with_clock(config, addresses, Clock::Driven(AtomicU64::new(0)), 0)
    }

    fn with_clock(
        config: TargetConfig,
        addresses: &[SocketAddr],
        clock: Clock,
        start_unix_us: u64,
    ) -> Result<Shared, ConfigError> {
        config.check()?;
        let mut subsystems = vec![Subsystem {
            nqn: DISCOVERY_NQN.into(),
            serial: "polypath-discovery".into(),
            discovery: true,
            namespaces: Mutex::default(),
            detached: Mutex::default(),
            version: AtomicU64::new(1),
            controllers: Mutex::default(),
            ana: Vec::new(),
            ana_changes: AtomicU64::new(0),
        }];
        for sub in &config.subsystems {
            if subsystems.iter().any(|s| s.nqn == sub.nqn) {
                return Err(ConfigError::new(format!("subsystem {}", sub.nqn), "there are two of this name"));
            }
            let plans = sub.plan()?;
            let groups = plans.iter().map(|p| p.group).max().unwrap_or(1) as usize;
            let namespaces: Result<Vec<_>, _> =
                plans.iter().map(|p| Namespace::open(p, config.threads).map(Arc::new)).collect();
            let id = crate::config::derived(&sub.nqn, 0, b"serial");
            let derived: String = id[..10].iter().map(|b| format!("{b:02x}")).collect();
            subsystems.push(Subsystem {
                nqn: sub.nqn.clone(),
                serial: sub.serial.clone().unwrap_or(derived),
                discovery: false,
                namespaces: Mutex::new(Arc::new(namespaces?)),
                detached: Mutex::default(),
                version: AtomicU64::new(1),
                controllers: Mutex::default(),
                ana: config
                    .listeners
                    .iter()
                    .map(|l| (0..groups).map(|_| AtomicU8::new(l.ana.code())).collect())
                    .collect(),
                ana_changes: AtomicU64::new(1),
            });
        }
        let listeners = addresses
            .iter()
            .map(|&address| Listener {
                address,
                dropped: AtomicBool::new(false),
                closed: AtomicBool::new(false),
                latency_us: AtomicU64::new(0),
                bandwidth: Bucket::default(),
            })
            .collect();
        Ok(Shared {
            max_io_queues: AtomicU16::new(config.max_io_queues),
            power_cycles: AtomicU64::new(1),
            config,
            clock,
            start_unix_us,
            listeners,
            subsystems,
            faults: FaultTable::default(),
            held: HeldStore::new(),
            threads: OnceLock::new(),
            events: AtomicU64::new(0),
            discovery_generation: AtomicU64::new(1),
            conns: Mutex::default(),
            next_conn: AtomicU64::new(1),
            next_cntlid: AtomicU16::new(0),
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    /// Target time: microseconds since the start.
    #[inline]
    pub(crate) fn now_us(&self) -> u64 {
        match &self.clock {
            Clock::Machine(start) => start.elapsed().as_micros() as u64,
            Clock::Driven(now_us) => now_us.load(Ordering::Relaxed),
        }
    }

    /// Moves a driven clock on; the machine's own is not ours to set.
    pub(crate) fn set_now_us(&self, to_us: u64) {
        if let Clock::Driven(now_us) = &self.clock {
            now_us.fetch_max(to_us, Ordering::Relaxed);
        }
    }

    /// Microseconds since 1970 at this target time.
    pub(crate) fn unix_us(&self, now_us: u64) -> u64 {
        self.start_unix_us + now_us
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
        self.wake_all();
    }

    /// Makes every thread look at its connections.
    pub(crate) fn wake_all(&self) {
        self.events.fetch_add(1, Ordering::AcqRel);
        for thread in self.threads.get().into_iter().flatten() {
            thread.wake();
        }
    }

    /// The keep-alive timeout that `controller` enforces, in microseconds; none when it is off.
    pub(crate) fn kato_us(&self, controller: &Controller) -> Option<u64> {
        let kas = (self.config.kas_ms / 100) as u16;
        polypath_nvme::keepalive::rounded_kato_ms(controller.kato_ms.load(Ordering::Relaxed), kas).map(|ms| ms * 1000)
    }

    /// How long after it arrived a write of `controller` may take effect at most by what is advertised, in microseconds.
    pub(crate) fn bound_us(&self, controller: &Controller) -> Option<u64> {
        let intervals = if self.config.tbkas { 3 } else { 2 };
        self.kato_us(controller).map(|kato| intervals * kato + u64::from(self.config.cqt_ms) * 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_keeps_its_rate() {
        let bucket = Bucket::default();
        assert_eq!(bucket.allowed(5), usize::MAX);
        bucket.set_rate(10_000_000, 0);
        let mut moved = 0u64;
        for ms in 1..=1000 {
            let n = bucket.allowed(ms * 1000).min(1 << 20);
            bucket.spend(n);
            moved += n as u64;
        }
        assert!((9_900_000..=10_100_000).contains(&moved), "{moved}");
        bucket.set_rate(0, 0);
        assert_eq!(bucket.allowed(5), usize::MAX);
    }
}
