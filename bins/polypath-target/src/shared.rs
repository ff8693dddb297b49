//! What all threads share, whatever protocol they speak: disks, listeners, connections, faults, counters, time. Nothing here is locked on
//! the data path.

use crate::config::{ConfigError, Protocol, TargetConfig};
use crate::faults::{FaultTable, HeldStore, HeldWrite};
use crate::mail::{Address, Msg, ThreadHandle};
use crate::media::Beneath;
use crate::store::{Media, Store};
use polypath::Stack;
use polypath_block::{LogLimit, Time};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One listener as all threads see it.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    /// Portal group tag, and number of its target port and target port group.
    pub(crate) portal_group: u16,
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
    /// Controller or session in the low half, queue above, valid when not `u32::MAX`.
    pub(crate) queue: AtomicU32,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) others: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) frozen: AtomicBool,
}

/// Everything that no protocol owns.
pub(crate) struct Shared {
    pub(crate) config: TargetConfig,
    clock: Clock,
    start_unix_us: u64,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) stores: Vec<Arc<Store>>,
    /// Disks beneath, by their index.
    pub(crate) beneath: Vec<Arc<Beneath>>,
    pub(crate) faults: FaultTable,
    pub(crate) held: HeldStore,
    pub(crate) threads: OnceLock<Vec<ThreadHandle>>,
    /// Moves when threads must look at their connections: events, associations that are over.
    pub(crate) events: AtomicU64,
    pub(crate) conns: Mutex<BTreeMap<u64, Arc<ConnInfo>>>,
    pub(crate) next_conn: AtomicU64,
    pub(crate) stopping: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) log: HostLog,
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
    pub(crate) sessions: AtomicU64,
}

/// What hosts have us log, of each kind one line a second at most: who sends a million bad PDUs is not to fill a disk with what is said of
/// them.
#[derive(Debug)]
pub(crate) struct HostLog {
    /// Hosts that did not get a connection.
    pub(crate) accept: LogLimit,
    /// Hosts that were not let in.
    pub(crate) login: LogLimit,
    /// Connections that were given up.
    pub(crate) ended: LogLimit,
    /// PDUs that were refused, or data that do not fit.
    pub(crate) refused: LogLimit,
    /// Task management.
    pub(crate) tasks: LogLimit,
}

impl Default for HostLog {
    fn default() -> HostLog {
        let [accept, login, ended, refused, tasks] = [(); 5].map(|()| LogLimit::new(1, Duration::from_secs(1)));
        HostLog { accept, login, ended, refused, tasks }
    }
}

impl HostLog {
    /// How many lines of a kind were left out since the last, if there may be one at this target time.
    pub(crate) fn may(limit: &LogLimit, now_us: u64) -> Option<u64> {
        limit.may_log(Time::ZERO.after(Duration::from_micros(now_us)))
    }
}

impl Shared {
    /// Opens every medium, disks beneath with the help of `stack`. `addresses` are those the listeners really have.
    pub(crate) fn new(
        config: TargetConfig,
        addresses: &[SocketAddr],
        stack: Option<&Stack>,
    ) -> Result<Shared, ConfigError> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Shared::with_clock(config, addresses, stack, Clock::Machine(Instant::now()), unix.as_micros() as u64)
    }

    /// As [`Shared::new`], with a clock that stands still until [`Shared::set_now_us`].
    pub(crate) fn driven(config: TargetConfig, addresses: &[SocketAddr]) -> Result<Shared, ConfigError> {
        Shared::with_clock(config, addresses, None, Clock::Driven(AtomicU64::new(0)), 0)
    }

    fn with_clock(
        config: TargetConfig,
        addresses: &[SocketAddr],
        stack: Option<&Stack>,
        clock: Clock,
        start_unix_us: u64,
    ) -> Result<Shared, ConfigError> {
        config.check()?;
        let mut media = Media { stack, opened: Vec::new() };
        let mut stores: Vec<Arc<Store>> = Vec::new();
        for sub in &config.subsystems {
            if stores.iter().any(|s| s.nqn == sub.nqn) {
                return Err(ConfigError::new(format!("subsystem {}", sub.nqn), "there are two of this name"));
            }
            stores.push(Arc::new(Store::open(sub, &config.listeners, config.threads, &mut media)?));
        }
        let listeners = config
            .listeners
            .iter()
            .zip(addresses)
            .enumerate()
            .map(|(i, (listener, &address))| Listener {
                address,
                protocol: listener.protocol,
                portal_group: listener.portal_group.unwrap_or(i as u16 + 1),
                dropped: AtomicBool::new(false),
                closed: AtomicBool::new(false),
                latency_us: AtomicU64::new(0),
                bandwidth: Bucket::default(),
            })
            .collect();
        Ok(Shared {
            power_cycles: AtomicU64::new(1),
            config,
            clock,
            start_unix_us,
            listeners,
            stores,
            beneath: std::mem::take(&mut media.opened),
            faults: FaultTable::default(),
            held: HeldStore::new(),
            threads: OnceLock::new(),
            events: AtomicU64::new(0),
            conns: Mutex::default(),
            next_conn: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
            log: HostLog::default(),
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

    /// Makes every thread look at its connections.
    pub(crate) fn wake_all(&self) {
        self.events.fetch_add(1, Ordering::AcqRel);
        for thread in self.threads.get().into_iter().flatten() {
            thread.wake();
        }
    }

    /// Sends a message to whoever waits at `to`. `false` when there is no such thread.
    pub(crate) fn send(&self, to: Address, msg: Msg) -> bool {
        let handle = self.threads.get().and_then(|t| t.get(to.thread));
        handle.map(|handle| handle.send(msg)).is_some()
    }

    /// Applies held writes that are due, whatever became of their connections.
    pub(crate) fn apply_held(&self, now_us: u64) {
        self.held.apply_due(now_us, self.unix_us(self.now_us()), |write, result| self.tell_landed(write, result));
    }

    /// Applies at once the held writes of which `which` says so; they have landed when this returns.
    pub(crate) fn land_held(&self, which: impl Fn(&HeldWrite) -> bool) {
        self.held.apply(self.unix_us(self.now_us()), which, |_, _| {});
    }

    fn tell_landed(&self, write: &HeldWrite, result: Result<(), crate::media::MediumError>) {
        if let Some(to) = write.answer {
            self.send(to, Msg::Landed { to, result });
        }
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
