//! What a server is told, and why one could not be started or stopped.

use crate::past::{Hold, Owed};
use crate::request::ID_BYTES;
use crate::ring::MAX_RING;
use polypath_block::{Device, Host};
use polypath_net::{SocketAccess, UnixSocketError};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How a disk is served.
#[derive(Clone)]
pub struct ServerConfig {
    /// For logs and statistics.
    pub name: String,
    /// Where the UNIX socket is made. A stale one is replaced, one that answers is not.
    pub socket_path: PathBuf,
    /// Who may reach the socket.
    pub access: SocketAccess,
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
    /// The guest counts on each change being durable when it completes: so it said to a server of this disk before this one.
    pub write_through: bool,
    /// Remembers what the guest says about that, for the server after this one. The guest hears that its word is taken afterwards, and
    /// an error that it was not.
    pub keep_write_through: Option<KeepWriteThrough>,
    /// The process that served the disk before this one did not end in order: requests of its rings may have been in flight. A stale
    /// socket says the same, if it is still there.
    pub unclean: bool,
    /// The same of these vrings alone: somebody before that process did not end in order, and no front-end has shown them since.
    pub orphans: Vec<u16>,
    /// How long the guest's changes wait. After a predecessor that did not end in order, what it had in flight may still land that long,
    /// and must not land on top of what is written now. Reads go on.
    pub hold_changes: Hold,
    /// Something was lost that the guest of this socket believes to be durable.
    pub owed: Owed,
    /// How long [`Server::stop`](crate::Server::stop) waits for requests in flight.
    pub drain_timeout: Duration,
    /// How long a request waits for a device whose way is down before the guest gets an error.
    pub down_timeout: Duration,
}

/// Keeps a word of the guest for longer than this process lives; see [`ServerConfig::keep_write_through`].
pub type KeepWriteThrough = Arc<dyn Fn(bool) -> std::io::Result<()> + Send + Sync>;

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
            access: SocketAccess::default(),
            device,
            hosts,
            num_queues: 1,
            queue_size: 256,
            seg_max: 126,
            read_only: false,
            write_through: false,
            keep_write_through: None,
            unclean: false,
            orphans: Vec::new(),
            hold_changes: Hold::default(),
            owed: Owed::default(),
            drain_timeout: Duration::from_secs(30),
            down_timeout: Duration::from_secs(30),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ServerError> {
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
        if self.access.mode & !0o777 != 0 {
            return bad("socket mode", &format_args!("{:o}", self.access.mode), "permission bits up to 777");
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
    /// There is no socket to be had.
    #[error(transparent)]
    Socket(#[from] UnixSocketError),
    /// The operating system said no.
    #[error("{call} for vhost disk {name} failed: {source}")]
    System {
        /// System call.
        call: &'static str,
        /// Name of the disk.
        name: String,
        /// Its error.
        source: std::io::Error,
    },
    /// It could not even be found out what is in flight.
    #[error(
        "vhost disk {name} did not stop within {} ms: its thread is held by the system (storage of the state folder that hangs?), and \
         requests may be in flight", waited.as_millis()
    )]
    Stuck {
        /// Name of the disk.
        name: String,
        /// How long was waited.
        waited: Duration,
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
