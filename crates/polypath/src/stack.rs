//! Reactors, buffers, and a way from a URI to a device.

use crate::error::Error;
use crate::nvme::Controllers;
use crate::poller_count::PollerCount;
use crate::sources::Units;
use crate::targets::Targets;
use polypath_block::{Device, DeviceInfo, DeviceState, DiskUri, Host, Scheme};
use polypath_memory::Arena;
use polypath_multipath::Slices;
use polypath_reactor::{CpuList, IdlePolicy, Pool, PoolConfig, ReactorHandle, ReactorStatistics};
use polypath_vhost_user_client::{ClientConfig, VhostUserDisk};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How long a stack that ends waits for what is still in flight on its reactors.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How a stack is to run.
#[derive(Clone, Debug)]
pub struct StackConfig {
    /// Cores, one reactor each; `None`: one reactor that is not pinned.
    pub cpus: Option<CpuList>,
    /// What reactors do without work; adaptive unless told otherwise.
    pub idle: IdlePolicy,
    /// Bytes of buffer memory ([`Stack::arena`]); reserved huge pages are taken at once, other memory as it is first used. 256 MiB.
    pub buffer_bytes: u64,
    /// Buffer memory in 2 MiB pages, where there are any; the log says which it became. On.
    pub huge_pages: bool,
}

impl Default for StackConfig {
    fn default() -> Self {
        StackConfig { cpus: None, idle: IdlePolicy::default(), buffer_bytes: 256 << 20, huge_pages: true }
    }
}

/// Reactors and what they share. `Clone` shares it; the last one that goes waits for I/O in flight and stops the reactors.
#[derive(Clone)]
pub struct Stack(Arc<Inner>);

struct Inner {
    pool: Option<Pool>,
    handles: Vec<ReactorHandle>,
    hosts: Vec<Arc<dyn Host>>,
    threads: Vec<ThreadId>,
    /// Pollers of ours on these reactors.
    pollers: Arc<PollerCount>,
    config: StackConfig,
    arena: Mutex<Option<Arena>>,
    controllers: Controllers,
    targets: Targets,
    slices: Arc<Slices>,
    /// Reactors take turns at being given an admin queue.
    turn: AtomicUsize,
}

impl Stack {
    /// Starts the reactors.
    ///
    /// # Errors
    /// [`Error::Reactor`] names the reactor and what it could not have.
    pub fn start(config: StackConfig) -> Result<Stack, Error> {
        let pool = Pool::start(&PoolConfig { cpus: config.cpus.clone(), idle: config.idle })?;
        let handles = pool.handles().to_vec();
        let (tell, told) = mpsc::channel();
        for handle in &handles {
            let tell = tell.clone();
            // Whoever started the pool waits for the answers below.
            handle.run(move |_| tell.send(thread::current().id()).unwrap_or(()));
        }
        drop(tell);
        let threads = told.iter().collect();
        let (hosts, pollers) = (pool.hosts(), PollerCount::new());
        Ok(Stack(Arc::new(Inner {
            pool: Some(pool),
            handles,
            hosts,
            threads,
            pollers,
            config,
            arena: Mutex::new(None),
            controllers: Controllers::default(),
            targets: Targets::default(),
            slices: Slices::new(),
            turn: AtomicUsize::new(0),
        })))
    }

    /// The stack that [`crate::Disk::open`] uses when it is given none: one reactor, not pinned, adaptive idle. Started at the
    /// first call, ends with the process.
    ///
    /// # Errors
    /// As [`Stack::start`].
    pub fn shared() -> Result<Stack, Error> {
        static SHARED: OnceLock<Stack> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        if let Some(stack) = SHARED.get() {
            return Ok(stack.clone());
        }
        let _one = STARTING.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(stack) = SHARED.get() {
            return Ok(stack.clone());
        }
        let stack = Stack::start(StackConfig::default())?;
        Ok(SHARED.get_or_init(|| stack).clone())
    }

    /// Its reactors, for pollers of your own. At least one.
    pub fn hosts(&self) -> Vec<Arc<dyn Host>> {
        self.0.hosts.clone()
    }

    /// Its reactors with their own face: to run closures on them and to read their counters.
    pub fn reactors(&self) -> &[ReactorHandle] {
        &self.0.handles
    }

    /// What its reactors did so far, in their order.
    pub fn statistics(&self) -> Vec<ReactorStatistics> {
        self.0.handles.iter().map(ReactorHandle::statistics).collect()
    }

    /// The buffers of its disks: one region, made at the first call. `Clone` of an [`Arena`] shares it.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is no memory for it.
    pub fn arena(&self) -> Result<Arena, Error> {
        let mut arena = self.0.arena.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(arena) = &*arena {
            return Ok(arena.clone());
        }
        let made = Arena::new(self.0.config.buffer_bytes, self.0.config.huge_pages)?;
        let (pages, bytes) = (made.pages().as_str(), made.region().len());
        tracing::info!(bytes, pages, reason = made.fallback(), "made memory for buffers");
        Ok(arena.insert(made).clone())
    }

    /// Opens one path: `nvme-tcp`, `iscsi`, `file`, `ram`, `null` or `vhost-user-blk`. Blocks for as long as the operating system takes to open
    /// a file, or a back-end to answer, so call it on a control thread. Network devices come back at once in [`DeviceState::Starting`]; [`wait_live`] waits for them. URIs
    /// that differ in nothing but the namespace share one controller, whose admin queue is on one of the reactors; so do those that differ in
    /// nothing but the LUN share one target, and its sessions.
    ///
    /// # Errors
    /// [`Error::Uri`] and [`Error::Local`] say which part does not do; [`Error::Unsupported`] names a scheme without a driver.
    pub fn open_device(&self, uri: &DiskUri) -> Result<Arc<dyn Device>, Error> {
        match uri.scheme {
            Scheme::Null | Scheme::Ram | Scheme::File => Ok(polypath_local::open(uri)?),
            // A controller may grant fewer queues than there are reactors, vrings and jobs.
            Scheme::NvmeTcp => Ok(self.0.controllers.open(uri, self.next_host(), self.hosts())?),
            Scheme::Iscsi => Ok(self.0.targets.open(uri, self.next_host(), self.hosts())?),
            Scheme::VhostUserBlk => Ok(VhostUserDisk::connect(&ClientConfig::from_uri(uri)?)?),
            scheme => Err(Error::Unsupported { uri: uri.to_string(), scheme: scheme.as_str() }),
        }
    }

    /// Waits until no poller is left on its reactors, at most `limit`, then stops them; says whether they were empty.
    ///
    /// For a program that ends: close disks, groups and servers first. Without it the last clone waits for the disks' own pollers and
    /// stops the reactors.
    pub fn stop(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let busy = || self.0.handles.iter().any(|h| h.statistics().pollers > 0);
        while busy() && start.elapsed() < limit {
            thread::sleep(Duration::from_millis(1));
        }
        let empty = !busy();
        self.0.handles.iter().for_each(ReactorHandle::stop);
        empty
    }

    /// All units behind the controller or target that `uri` names but for the unit, for as long as the answer is held.
    pub(crate) fn units(&self, uri: &DiskUri) -> Result<Arc<dyn Units>, Error> {
        match uri.scheme {
            Scheme::NvmeTcp => Ok(self.0.controllers.units(uri, self.next_host(), self.hosts())?),
            Scheme::Iscsi => Ok(self.0.targets.units(uri, self.next_host(), self.hosts())?),
            scheme => Err(Error::Unsupported { uri: uri.to_string(), scheme: scheme.as_str() }),
        }
    }

    pub(crate) fn next_host(&self) -> Arc<dyn Host> {
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
        self.0.hosts[turn % self.0.hosts.len()].clone()
    }

    /// Which parts of its devices are taken by slices.
    pub(crate) fn slices(&self) -> &Arc<Slices> {
        &self.0.slices
    }

    pub(crate) fn pollers(&self) -> &Arc<PollerCount> {
        &self.0.pollers
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("reactors", &self.0.handles).field("pollers", &self.0.pollers.count()).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(pool) = self.pool.take() else { return };
        let pollers = self.pollers.clone();
        let end = move || {
            if !pollers.wait_none(DRAIN_LIMIT) {
                tracing::error!(
                    pollers = pollers.count(),
                    "stack ends with I/O in flight: it did not complete in time"
                );
            }
            drop(pool);
        };
        // The last holder may be a task that a reactor has just woken: a reactor cannot wait for itself.
        if !self.threads.contains(&thread::current().id()) {
            end();
        } else if let Err(error) = thread::Builder::new().name("polypath-end".into()).spawn(end) {
            tracing::error!(%error, "no thread to end the stack with");
        }
    }
}

/// Waits until `device` answers, at most `limit`. Blocks: call it on a control thread, never on a reactor's.
///
/// # Errors
/// [`Error::NotLive`] with what is known of it when the time is up, [`Error::Gone`] as soon as it is gone for good.
pub fn wait_live(device: &dyn Device, limit: Duration) -> Result<Arc<DeviceInfo>, Error> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        let name = || device.name().to_owned();
        let reason = match device.state() {
            DeviceState::Live(info) => return Ok(info),
            DeviceState::Gone { reason } => return Err(Error::Gone { name: name(), reason }),
            DeviceState::Starting => "it is still being connected to".to_owned(),
            DeviceState::Down { reason, .. } => reason,
        };
        let waited = start.elapsed();
        if waited >= limit {
            return Err(Error::NotLive { name: name(), waited_ms: waited.as_millis() as u64, reason });
        }
        let version = device.version();
        while device.version() == version && start.elapsed() < limit {
            thread::sleep(pause.min(limit.saturating_sub(start.elapsed())));
            pause = (pause * 2).min(Duration::from_millis(10));
            // A version that changed between `state` and `version` above is met by looking again now and then.
            if pause >= Duration::from_millis(10) {
                break;
            }
        }
    }
}
