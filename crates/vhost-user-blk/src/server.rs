//! One socket, one disk: front-ends come and go, the socket stays.

use crate::config::ConfigSpace;
use crate::mailbox::{Command, CommandError, MailboxSender, wait};
use crate::poller::VringConfig;
use crate::request::ID_BYTES;
use crate::session::Session;
use crate::socket::{Socket, Wait, wait_fd};
use crate::stats::{Counters, VringStatistics};
use crate::vring::MAX_RING;
use polypath_block::{Armed, Cx, Device, Host, Poller, Turn, Waits};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, chmod, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use std::fmt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a device that is not live yet is looked at.
const DEVICE_LOOK: Duration = Duration::from_millis(50);
/// How often a log line says that an old front-end's requests are still not quiet.
const DRAIN_LOG: Duration = Duration::from_secs(10);
/// How long a reactor may take to let go of memory, which takes one turn.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// Segments in a row beyond what the guest was told, for data that crosses regions.
const SPARE_SEGMENTS: u32 = 6;

/// How a disk is served.
#[derive(Clone)]
pub struct ServerConfig {
    /// For logs and statistics.
    pub name: String,
    /// Where the UNIX socket is made. A stale one is replaced, one that answers is not.
    pub socket_path: PathBuf,
    /// Permissions of the socket file.
    pub socket_mode: u32,
    /// The disk.
    pub device: Arc<dyn Device>,
    /// Reactors: vring `i` runs on `hosts[i % hosts.len()]`. At least one.
    pub hosts: Vec<Arc<dyn Host>>,
    /// Vrings offered, 1 to 256.
    pub num_queues: u16,
    /// Largest vring a front-end may set up: a power of two up to 1,024. What is reserved depends on what it does set up.
    pub queue_size: u16,
    /// Data segments a request may have, as told to the guest: 1 to 1,024.
    pub seg_max: u32,
    /// What GET_ID answers: at most 20 bytes.
    pub serial: String,
    /// Serve it read-only even if the device is not.
    pub read_only: bool,
    /// How long to wait for requests in flight before a front-end's demand to stop a ring fails.
    pub drain_timeout: Duration,
    /// How long a request waits for a device whose way is down before the guest gets an error.
    pub down_timeout: Duration,
}

impl ServerConfig {
    /// One vring of up to 256 descriptors, 126 segments, mode 0600, 30 s for each wait.
    pub fn new(
        name: impl Into<String>,
        socket_path: impl Into<PathBuf>,
        device: Arc<dyn Device>,
        hosts: Vec<Arc<dyn Host>>,
    ) -> Self {
        let name = name.into();
        ServerConfig {
            serial: name.chars().filter(char::is_ascii_graphic).take(ID_BYTES).collect(),
            name,
            socket_path: socket_path.into(),
            socket_mode: 0o600,
            device,
            hosts,
            num_queues: 1,
            queue_size: 256,
            seg_max: 126,
            read_only: false,
            drain_timeout: Duration::from_secs(30),
            down_timeout: Duration::from_secs(30),
        }
    }

    fn check(&self) -> Result<(), ServerError> {
        let bad = |what, value: &dyn fmt::Display, expected| {
            Err(ServerError::Config { name: self.name.clone(), what, value: value.to_string(), expected })
        };
        if self.hosts.is_empty() {
            return bad("hosts", &"empty", "at least one reactor");
        }
        if !(1..=256).contains(&self.num_queues) {
            return bad("num_queues", &self.num_queues, "1 to 256");
        }
        if !self.queue_size.is_power_of_two() || self.queue_size > MAX_RING {
            return bad("queue_size", &self.queue_size, "a power of two up to 1024");
        }
        if !(1..=1024).contains(&self.seg_max) {
            return bad("seg_max", &self.seg_max, "1 to 1024");
        }
        if self.serial.len() > ID_BYTES {
            return bad("serial", &self.serial, "at most 20 bytes");
        }
        if self.socket_mode & !0o777 != 0 {
            return bad("socket_mode", &format_args!("{:o}", self.socket_mode), "permission bits up to 777");
        }
        Ok(())
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("name", &self.name)
            .field("socket_path", &self.socket_path)
            .field("num_queues", &self.num_queues)
            .field("queue_size", &self.queue_size)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// Why a server could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting makes no sense.
    #[error("vhost disk {name}: {what} is {value}, expected {expected}")]
    Config {
        /// Name of the disk.
        name: String,
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// The socket is in use, or something else is in its place.
    #[error("socket {}: {problem}", path.display())]
    Occupied {
        /// The socket's path.
        path: PathBuf,
        /// What is there and what to do.
        problem: &'static str,
    },
    /// The operating system said no.
    #[error("{call} for socket {} failed: {source}", path.display())]
    System {
        /// System call.
        call: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// Its error.
        source: std::io::Error,
    },
    /// Stopped, but requests of the last front-end have not completed; their memory stays mapped until they have.
    #[error("vhost disk {name} is stopped, but {vrings} vrings still have requests in flight after {} ms", waited.as_millis())]
    NotDrained {
        /// Name of the disk.
        name: String,
        /// How many vrings.
        vrings: usize,
        /// How long was waited.
        waited: Duration,
    },
}

/// What the control thread and its sessions share with the [`Server`].
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) counters: Vec<Arc<Counters>>,
    /// Per vring: the socket was left by a back-end that was killed, and the vring has not been seen without old requests yet.
    pub(crate) end_fence: Vec<AtomicBool>,
    stopping: AtomicBool,
    connected: AtomicBool,
    config_space: Mutex<Option<ConfigSpace>>,
    stop: OwnedFd,
}

impl Shared {
    /// Sends a command to a vring and waits for its answer.
    pub(crate) fn ask(&self, mailbox: &MailboxSender, command: Command) -> Result<u16, CommandError> {
        mailbox.ask(command, self.config.drain_timeout, &self.stopping)
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
    thread: Option<thread::JoinHandle<usize>>,
}

impl Server {
    /// Makes the socket and serves it on a thread of its own.
    ///
    /// The device need not be live: front-ends that connect before it has been live once wait for their first answer.
    ///
    /// # Errors
    /// [`ServerError`]: bad settings, an occupied socket, or the operating system.
    pub fn start(config: ServerConfig) -> Result<Server, ServerError> {
        config.check()?;
        let path = config.socket_path.clone();
        let system = |call, source: std::io::Error| ServerError::System { call, path: path.clone(), source };
        let (listener, identity, end_fence) = make_socket(&path, config.socket_mode)?;
        let stop =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| system("eventfd", e.into()))?;
        let shared = Arc::new(Shared {
            counters: (0..config.num_queues).map(|_| Arc::default()).collect(),
            end_fence: (0..config.num_queues).map(|_| AtomicBool::new(end_fence)).collect(),
            stopping: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            config_space: Mutex::new(None),
            stop,
            config,
        });
        let thread = {
            let shared = shared.clone();
            let name = format!("vhost-{}", shared.config.name);
            thread::Builder::new()
                .name(name.chars().take(15).collect())
                .spawn(move || Control { shared: &shared, listener, identity }.run())
                .map_err(|e| system("thread", e))?
        };
        tracing::info!(disk = %shared.config.name, socket = %path.display(), "serving vhost-user-blk");
        Ok(Server { shared, thread: Some(thread) })
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

    /// Closes the connection, drains the vrings, removes the socket. Waits at most the drain timeout. Idempotent.
    ///
    /// # Errors
    /// [`ServerError::NotDrained`]: the server is stopped all the same, what is in flight completes by itself.
    pub fn stop(&mut self) -> Result<(), ServerError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.shared.stopping.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the control thread could not be woken");
        }
        let config = &self.shared.config;
        match thread.join() {
            Ok(0) => Ok(()),
            Ok(vrings) => {
                Err(ServerError::NotDrained { name: config.name.clone(), vrings, waited: config.drain_timeout })
            }
            Err(panic) => std::panic::resume_unwind(panic),
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

/// The control thread.
struct Control<'a> {
    shared: &'a Shared,
    listener: UnixListener,
    identity: (u64, u64),
}

impl Control<'_> {
    /// Serves until stopped; returns how many vrings had not drained by then.
    fn run(self) -> usize {
        let mut undrained = 0;
        if let Some(mut config_space) = self.wait_for_device() {
            while let Some(stream) = self.accept() {
                if let Some(newer) = self.shared.config_space.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                    config_space = newer;
                }
                self.shared.connected.store(true, Ordering::Relaxed);
                undrained = self.serve(stream, config_space.clone());
                self.shared.connected.store(false, Ordering::Relaxed);
            }
        }
        self.remove_socket();
        undrained
    }

    /// What is told to guests depends on the device, so it must have been live once. `None`: stop.
    fn wait_for_device(&self) -> Option<ConfigSpace> {
        let config = &self.shared.config;
        let mut told = false;
        loop {
            if let Some(info) = config.device.state().info() {
                let config_space = ConfigSpace::new(info, config.read_only, config.seg_max, config.num_queues);
                self.shared.set_config_space(config_space.clone());
                return Some(config_space);
            }
            if !told {
                told = true;
                tracing::info!(disk = %config.name, state = ?config.device.state(), "front-ends wait for the device");
            }
            let stop = self.shared.stop.as_fd();
            match wait_fd(stop, PollFlags::IN, stop, Some(DEVICE_LOOK)) {
                Ok(Wait::TimedOut) => {}
                Ok(_) => return None,
                Err(error) => {
                    tracing::error!(disk = %config.name, %error, "cannot wait; the server ends");
                    return None;
                }
            }
        }
    }

    /// The next front-end. `None`: stop.
    fn accept(&self) -> Option<UnixStream> {
        let name = &self.shared.config.name;
        loop {
            match wait_fd(self.listener.as_fd(), PollFlags::IN, self.shared.stop.as_fd(), None) {
                Ok(Wait::Ready) => {}
                Ok(Wait::TimedOut) => continue,
                Ok(Wait::Stop) => return None,
                Err(error) => {
                    tracing::error!(disk = %name, %error, "cannot wait; the server ends");
                    return None;
                }
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors, say: others may be closed in a moment.
                    tracing::warn!(disk = %name, %error, "a front-end could not be accepted");
                    let stop = self.shared.stop.as_fd();
                    if wait_fd(stop, PollFlags::IN, stop, Some(DEVICE_LOOK)) == Ok(Wait::Stop) {
                        return None;
                    }
                }
            }
        }
    }

    fn serve(&self, stream: UnixStream, config_space: ConfigSpace) -> usize {
        let name = &self.shared.config.name;
        tracing::info!(disk = %name, "front-end connected");
        let mut session = Session::new(self.shared, config_space);
        let result =
            Socket::new(stream, self.shared.stop.as_fd()).map_err(Into::into).and_then(|socket| session.serve(&socket));
        match result {
            Ok(()) => tracing::info!(disk = %name, "front-end disconnected"),
            Err(reason) => tracing::warn!(disk = %name, %reason, "connection to the front-end closed"),
        }
        let mappings = session.mappings();
        let undrained = self.drain(session.end());
        self.shared.settle();
        // The last holder unmaps: this thread, not a reactor.
        drop(mappings);
        undrained
    }

    /// Waits until the old front-end's requests are quiet: the next one might write the same blocks.
    fn drain(&self, mailboxes: Vec<MailboxSender>) -> usize {
        let config = &self.shared.config;
        let answers: Vec<_> = mailboxes.iter().filter_map(|o| o.send(Command::End).ok()).collect();
        let mut left = 0;
        for answer in answers {
            loop {
                match wait(&answer, DRAIN_LOG, &self.shared.stopping) {
                    Err(CommandError::Slow(_)) => {
                        tracing::warn!(disk = %config.name, "requests of the last front-end are still in flight; the next one waits");
                    }
                    Err(CommandError::Stopping) => {
                        let never = AtomicBool::new(false);
                        left += usize::from(wait(&answer, config.drain_timeout, &never).is_err());
                        break;
                    }
                    Ok(_) | Err(CommandError::Gone | CommandError::Refused(_)) => break,
                }
            }
        }
        left
    }

    /// Removes the socket file, if it is still ours.
    fn remove_socket(&self) {
        let path = &self.shared.config.socket_path;
        if lstat(path).is_ok_and(|s| (s.st_dev, s.st_ino) == self.identity)
            && let Err(error) = unlink(path)
        {
            tracing::warn!(path = %path.display(), %error, "the socket could not be removed");
        }
    }
}

/// A listening socket at `path` that nobody can reach before it has its permissions; also device and inode of its file, and whether a
/// killed process had left one there.
fn make_socket(path: &Path, mode: u32) -> Result<(UnixListener, (u64, u64), bool), ServerError> {
    let system = |call| move |e: Errno| ServerError::System { call, path: path.to_owned(), source: e.into() };
    let address = SocketAddrUnix::new(path).map_err(system("address"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(system("socket"));
    let socket = make()?;
    let mut end_fence = false;
    match bind(&socket, &address) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            clear_stale(path, &make()?, &address)?;
            bind(&socket, &address).map_err(system("bind"))?;
            end_fence = true;
        }
        Err(error) => return Err(system("bind")(error)),
    }
    chmod(path, Mode::from_raw_mode(mode)).map_err(system("chmod"))?;
    let stat = lstat(path).map_err(system("lstat"))?;
    listen(&socket, 8).map_err(system("listen"))?;
    Ok((UnixListener::from(socket), (stat.st_dev, stat.st_ino), end_fence))
}

/// Removes a socket that nobody answers on.
fn clear_stale(path: &Path, probe: &OwnedFd, address: &SocketAddrUnix) -> Result<(), ServerError> {
    let occupied = |problem| Err(ServerError::Occupied { path: path.to_owned(), problem });
    let system = |call| move |e: Errno| ServerError::System { call, path: path.to_owned(), source: e.into() };
    let stat = lstat(path).map_err(system("lstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return occupied("something that is no socket is there; remove it or choose another path");
    }
    match connect(probe, address) {
        Err(Errno::CONNREFUSED) => unlink(path).map_err(system("unlink")),
        _ => occupied("another process serves it; stop that one or choose another path"),
    }
}
