//! One socket, one disk: front-ends come and go, the socket stays.

use crate::config::ConfigSpace;
use crate::control;
use crate::limits::{Keeper, LOG_PAUSE, log_limit};
use crate::mailbox::{Answer, CommandError, wait};
use crate::poller::VringConfig;
use crate::request::ID_BYTES;
use crate::session::Refusal;
use crate::settings::{ServerConfig, ServerError};
use crate::stats::{Counters, VringStatistics};
use polypath_block::{Armed, Cx, LogLimit, Poller, Turn, Waits};
use polypath_net::{Closer, Peer, UnixSocket};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a reactor may take to let go of memory, which takes one turn.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// How long the end of the control thread may take beyond the drain timeout. Nothing that it does takes as long, if the system answers.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// Lines about front-ends that come and go, at once.
const VISITS_AT_ONCE: u32 = 10;
/// How often what the guest said of its cache is written, if it changes its mind.
const KEEP_PAUSE: Duration = Duration::from_secs(10);
/// Threads that signal and read descriptors of a front-end where we cannot, for each vring: of kick and call that it has, and that it had.
const HELPERS_PER_VRING: usize = 4;
/// Segments in a row beyond what the guest was told, for data that crosses regions.
const SPARE_SEGMENTS: u32 = 6;

/// What the control thread and its sessions share with the [`Server`].
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) counters: Vec<Arc<Counters>>,
    /// Per vring: a back-end before us was killed, and the vring has not been seen without its requests yet.
    pub(crate) killed: Vec<Flag>,
    pub(crate) stopping: Flag,
    /// Nothing is in flight any more, and it is known what the guest is owed.
    pub(crate) ended: Flag,
    pub(crate) connected: AtomicBool,
    /// What the guest said last of its cache, over all front-ends: a front-end that comes back does not say it again.
    writeback: AtomicBool,
    keeper: Keeper,
    config_space: Mutex<Option<ConfigSpace>>,
    /// Lines about what front-ends are refused.
    pub(crate) refusals: LogLimit,
    /// Lines about front-ends that come and go.
    pub(crate) visits: LogLimit,
    /// For what front-ends send and leave behind.
    pub(crate) closer: Closer,
    /// All front-ends: they may pass on what they share with us.
    pub(crate) peer: Arc<Peer>,
    pub(crate) stop: OwnedFd,
}

/// A flag that threads share.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    fn new(set: bool) -> Flag {
        Flag(AtomicBool::new(set))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, set: bool) {
        self.0.store(set, Ordering::Release);
    }
}

impl Shared {
    /// The guest is owed for what the device has lost while it had no queue.
    pub(crate) fn look_for_losses(&self) {
        self.config.owed.look(self.config.device.losses());
    }

    /// Waits for a vring's answer for as long as it takes, unless the server is to stop.
    pub(crate) fn wait(&self, answer: &Receiver<Answer>) -> Result<u32, CommandError> {
        let mut told = Instant::now();
        wait(answer, || {
            self.log_slow(&mut told);
            self.stopping.is_set().then_some(CommandError::Stopping)
        })
    }

    pub(crate) fn log_slow(&self, told: &mut Instant) {
        if told.elapsed() >= LOG_PAUSE {
            *told = Instant::now();
            tracing::warn!(disk = %self.config.name, "requests of the front-end are still in flight; it waits");
        }
    }

    /// How many lines were left out since the last, if there may be one now.
    pub(crate) fn may_log(&self, limit: &LogLimit) -> Option<u64> {
        limit.may_log(self.config.hosts[0].now())
    }

    /// Logs a refusal, but not at the pace of who provokes it.
    pub(crate) fn refused(&self, id: u32, refusal: &Refusal) {
        if let Some(others) = self.may_log(&self.refusals) {
            tracing::warn!(disk = %self.config.name, id, %refusal, others, "request of the front-end refused");
        }
    }

    /// Logs that a vring could not be started again.
    pub(crate) fn left_stopped(&self, refusal: &Refusal) {
        if let Some(others) = self.may_log(&self.refusals) {
            tracing::info!(disk = %self.config.name, %refusal, others, "a vring stays stopped");
        }
    }

    /// Waits until no reactor of ours holds memory that was let go of: a reactor that sleeps would keep a dead guest's
    /// pages. False if one did not answer in time.
    pub(crate) fn settle(&self) -> bool {
        let (sender, answers) = sync_channel(self.config.hosts.len());
        for host in &self.config.hosts {
            let sender = sender.clone();
            host.spawn(Box::new(move |_cx| {
                polypath_memory::refresh();
                // Room for every answer; nobody may be waiting any more.
                let _ = sender.try_send(());
                Box::new(Finished)
            }));
        }
        drop(sender);
        let until = Instant::now() + SETTLE_LIMIT;
        self.config.hosts.iter().all(|_| {
            match answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                // A reactor that has ended holds nothing.
                Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!(disk = %self.config.name, "a reactor is late in letting go of guest memory");
                    false
                }
            }
        })
    }

    /// What the guest said last of its cache, to whichever front-end.
    pub(crate) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    pub(crate) fn set_writeback(&self, writeback: bool) -> std::io::Result<()> {
        self.keeper.want(!writeback)?;
        self.writeback.store(writeback, Ordering::Relaxed);
        self.keep_later();
        Ok(())
    }

    /// When [`Shared::keep_later`] has something to do; `None` for never.
    pub(crate) fn keeps_in(&self) -> Option<Duration> {
        self.keeper.due_in()
    }

    /// Keeps what the guest said and what could wait.
    pub(crate) fn keep_later(&self) {
        self.keep(false);
    }

    /// As [`Shared::keep_later`]; with `at_once`, also what could wait longer.
    pub(crate) fn keep(&self, at_once: bool) {
        if let Err(error) = self.keeper.catch_up(at_once) {
            let disk = &self.config.name;
            tracing::warn!(%disk, %error, "that the guest flushes its cache itself could not be kept; its next server makes each change durable");
        }
    }

    /// What front-ends were told last.
    pub(crate) fn config_space(&self) -> Option<ConfigSpace> {
        self.config_space.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what front-ends are told.
    pub(crate) fn set_config_space(&self, config_space: ConfigSpace) {
        *self.config_space.lock().unwrap_or_else(PoisonError::into_inner) = Some(config_space);
    }

    pub(crate) fn vring_config(&self, index: u32, depth: u16, config_space: &ConfigSpace) -> VringConfig {
        let config = &self.config;
        let most = config.device.state().info().map_or(u16::MAX, |info| info.max_depth);
        let mut serial = [0; ID_BYTES];
        serial[..config.serial.len()].copy_from_slice(config.serial.as_bytes());
        VringConfig {
            name: format!("{}/{index}", config.name),
            depth: depth.min(most),
            width: config.seg_max + SPARE_SEGMENTS,
            block_size: config_space.geometry.block_size,
            read_only: config_space.read_only,
            serial,
            down_timeout: config.down_timeout,
            changes_from: config.hold_changes.clone(),
            owed: config.owed.clone(),
        }
    }
}

/// What [`Shared::settle`] leaves behind on a reactor: nothing.
struct Finished;

impl Poller for Finished {
    fn poll(&mut self, _cx: &mut Cx<'_>) -> Turn {
        Turn::Finished
    }

    fn arm(&mut self, _cx: &mut Cx<'_>, _waits: &mut Waits) -> Armed {
        Armed::Busy
    }

    fn name(&self) -> &str {
        "vhost-settle"
    }
}

/// A vhost-user-blk back-end: one disk on one UNIX socket. Stops when dropped.
pub struct Server {
    shared: Arc<Shared>,
    /// The control thread, and how it tells how many vrings had not drained in time. `None` once it was told to stop.
    thread: Option<(thread::JoinHandle<()>, Receiver<usize>)>,
}

impl Server {
    /// Makes the socket and serves it on a thread of its own.
    ///
    /// The device need not be live: front-ends that connect before it has been live once wait for their first answer.
    ///
    /// # Errors
    /// [`ServerError`]: bad settings, an occupied socket, or the operating system.
    pub fn start(config: ServerConfig) -> Result<Server, ServerError> {
        Server::bind(config)?.serve()
    }

    /// Makes the socket. Front-ends may connect, and wait in line: what must be known or written down before one of them is served is
    /// looked after in between.
    ///
    /// # Errors
    /// [`ServerError`]: bad settings, or an occupied socket.
    pub fn bind(config: ServerConfig) -> Result<BoundServer, ServerError> {
        config.check()?;
        let socket = UnixSocket::listen(&config.socket_path, config.access)?;
        Ok(BoundServer { config, socket: Arc::new(socket), served: false })
    }

    fn serve(config: ServerConfig, socket: Arc<UnixSocket>) -> Result<Server, ServerError> {
        config.check()?;
        let name = config.name.clone();
        let system = |call, source: std::io::Error| ServerError::System { call, name: name.clone(), source };
        let killed = socket.replaced() || config.unclean;
        let stop =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| system("eventfd", e.into()))?;
        let shared = Arc::new(Shared {
            counters: (0..config.num_queues).map(|_| Arc::default()).collect(),
            killed: (0..config.num_queues).map(|n| Flag::new(killed || config.orphans.contains(&n))).collect(),
            stopping: Flag::default(),
            ended: Flag::default(),
            connected: AtomicBool::new(false),
            writeback: AtomicBool::new(!config.write_through),
            keeper: Keeper::new(config.keep_write_through.clone(), config.write_through, KEEP_PAUSE),
            config_space: Mutex::new(None),
            refusals: log_limit(1),
            visits: log_limit(VISITS_AT_ONCE),
            closer: Closer::default(),
            peer: Peer::new(HELPERS_PER_VRING * usize::from(config.num_queues)),
            stop,
            config,
        });
        shared.look_for_losses();
        let (report, reported) = sync_channel(1);
        let thread = {
            let shared = shared.clone();
            let name = format!("vhost-{}", shared.config.name);
            thread::Builder::new()
                // No thread can have a NUL in its name, and nobody wants other control characters in `top`.
                .name(name.chars().filter(|c| !c.is_control()).take(15).collect())
                .spawn(move || control::run(&shared, socket, report))
                .map_err(|e| system("thread", e))?
        };
        tracing::info!(disk = %shared.config.name, socket = %shared.config.socket_path.display(), "serving vhost-user-blk");
        Ok(Server { shared, thread: Some((thread, reported)) })
    }

    /// The disk's name.
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// Where its socket is.
    pub fn socket_path(&self) -> &Path {
        &self.shared.config.socket_path
    }

    /// Is a front-end connected?
    pub fn connected(&self) -> bool {
        self.shared.connected.load(Ordering::Relaxed)
    }

    /// What each vring has done since the server started, over all front-ends.
    pub fn statistics(&self) -> Vec<VringStatistics> {
        self.shared.counters.iter().map(|c| c.read()).collect()
    }

    /// Vrings of which nobody knows what a back-end that was killed has left in flight: no front-end has shown them since. A server after
    /// this one must be told ([`ServerConfig::orphans`]).
    pub fn orphans(&self) -> Vec<u16> {
        let killed = (0..).zip(&self.shared.killed).filter(|(_, killed)| killed.is_set()).map(|(n, _)| n);
        let Shared { config, .. } = &*self.shared;
        // Of vrings that we do not even offer, we have learned nothing.
        killed.chain(config.orphans.iter().copied().filter(|&n| n >= config.num_queues)).collect()
    }

    /// Has it stopped, with nothing in flight? True at last also after [`ServerError::NotDrained`]; what the guest is owed
    /// ([`ServerConfig::owed`]) is known then.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.is_set()
    }

    /// Stops: nothing is taken from the rings any more; once what the device has is done, the connection is closed and the socket
    /// removed. Waits at most the drain timeout. Idempotent.
    ///
    /// The front-end can hear of every request that completes, for its connection is closed last. What was not done is left in its
    /// ring, and in the record of requests in flight if the front-end keeps one: no request fails because the server stops.
    ///
    /// # Errors
    /// [`ServerError::NotDrained`]: some requests are still with the device. They complete by themselves, and the connection is
    /// closed then, or with the process. [`ServerError::Stuck`]: the system holds its thread.
    pub fn stop(&mut self) -> Result<(), ServerError> {
        let Some((thread, reported)) = self.thread.take() else { return Ok(()) };
        self.shared.stopping.set(true);
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the control thread could not be woken");
        }
        let config = &self.shared.config;
        let (name, waited) = (config.name.clone(), config.drain_timeout);
        // The control thread may be stuck with what somebody else keeps for it ([`ServerConfig::keep_write_through`]).
        let limit = waited.saturating_add(STOP_MARGIN);
        match reported.recv_timeout(limit) {
            Ok(vrings @ 1..) => return Err(ServerError::NotDrained { name, vrings, waited }),
            Err(RecvTimeoutError::Timeout) => return Err(ServerError::Stuck { name, waited: limit }),
            Ok(0) | Err(RecvTimeoutError::Disconnected) => {}
        }
        match thread.join() {
            Ok(()) => Ok(()),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// A socket that nobody is served on yet. Given up when dropped; a stale socket that it has replaced stays behind as one.
#[derive(Debug)]
pub struct BoundServer {
    config: ServerConfig,
    socket: Arc<UnixSocket>,
    served: bool,
}

impl BoundServer {
    /// Was there a stale socket? Whoever had it was killed.
    pub fn replaced(&self) -> bool {
        self.socket.replaced()
    }

    /// What is to be known of those who served the disk before. Everything but the socket may still be changed.
    pub fn config_mut(&mut self) -> &mut ServerConfig {
        &mut self.config
    }

    /// Serves it, on a thread of its own.
    ///
    /// # Errors
    /// [`ServerError`]: bad settings, or the operating system. Nobody was served then.
    pub fn serve(mut self) -> Result<Server, ServerError> {
        let server = Server::serve(self.config.clone(), self.socket.clone())?;
        self.served = true;
        Ok(server)
    }
}

impl Drop for BoundServer {
    fn drop(&mut self) {
        if !self.served
            && !self.replaced()
            && let Err(error) = self.socket.remove()
        {
            tracing::warn!(path = %self.socket.path().display(), %error, "the socket could not be removed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "stopped");
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("config", &self.shared.config).field("connected", &self.connected()).finish()
    }
}
