//! NBD exports: each with the configuration that it was made from, on a server that several share if they are at one place.

use crate::config::NbdConfig;
use crate::resources::lock;
use crate::service::EndMark;
use crate::state::SocketMark;
use polypath::vhost_user_blk::SocketAccess;
use polypath_nbd::{Ending, ExportStatistics, Limits, Server, ServerError};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that serve clients, at most. What they do with a request is to copy its data; the rest is done by the reactors.
const THREADS_MOST: usize = 4;

/// How long clients may take to hear their answers when their export ends. Tests in which they do not have more to do than wait.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// Where an export is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A UNIX socket at this path.
    Socket(PathBuf),
    /// A TCP port.
    Address(SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Socket(path) => write!(f, "{}", path.display()),
            Place::Address(address) => write!(f, "{address}"),
        }
    }
}

/// The threads of all servers, which are started with the first one.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Option<Runtime>>);

impl Threads {
    /// A way to them.
    ///
    /// # Errors
    /// No threads are to be had.
    pub(crate) fn handle(&self) -> std::io::Result<Handle> {
        let mut runtime = lock(&self.0);
        if let Some(runtime) = &*runtime {
            return Ok(runtime.handle().clone());
        }
        let most = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST);
        let made = Builder::new_multi_thread().worker_threads(most).thread_name("nbd").enable_all().build()?;
        Ok(runtime.insert(made).handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Whoever drops it last may be a task of another runtime, which must not wait.
        if let Some(runtime) = lock(&self.0).take() {
            runtime.shutdown_background();
        }
    }
}

/// A listener, for all exports at one place.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) server: Server,
    pub(crate) access: SocketAccess,
    pub(crate) threads: Handle,
}

impl Listener {
    /// Listens at `place`.
    pub(crate) fn open(place: &Place, access: SocketAccess, threads: Handle) -> Result<Listener, ServerError> {
        let _inside = threads.enter();
        let server = match place {
            Place::Socket(path) => Server::unix(path, access, Limits::default())?,
            Place::Address(address) => Server::tcp(*address, Limits::default())?,
        };
        Ok(Listener { server, access, threads: threads.clone() })
    }

    /// Where it is: of a port that was left to the system, which one.
    pub(crate) fn place(&self) -> Place {
        match self.server.address() {
            polypath_nbd::Address::Unix(path) => Place::Socket(path.clone()),
            polypath_nbd::Address::Tcp(address) => Place::Address(*address),
        }
    }

    /// Listens no more. Its exports have ended before.
    pub(crate) fn close(&self) {
        if !self.threads.block_on(self.server.stop().wait(DRAIN_TIMEOUT)) {
            tracing::error!(address = %self.server.address(), "a listener does not come to its end");
        }
    }
}

/// An export as it was asked for.
#[derive(Debug)]
pub(crate) struct Nbd {
    pub(crate) config: NbdConfig,
    /// The disk that it serves all or a slice of.
    pub(crate) disk: String,
    pub(crate) place: Place,
    listener: Arc<Listener>,
    serving: Mutex<Serving>,
    mark: EndMark,
}

#[derive(Debug)]
enum Serving {
    Yes,
    /// It ends, and may have requests in flight.
    Late(Ending),
    Ended,
}

impl Nbd {
    /// `disk`: that which it serves all or a slice of.
    pub(crate) fn new(config: NbdConfig, disk: String, listener: Arc<Listener>, mark: Arc<SocketMark>) -> Nbd {
        let (place, serving, mark) = (listener.place(), Mutex::new(Serving::Yes), EndMark::new(mark));
        Nbd { config, disk, place, listener, serving, mark }
    }

    /// What it has done, while it serves.
    pub(crate) fn statistics(&self) -> Option<ExportStatistics> {
        match &*lock(&self.serving) {
            Serving::Yes => self.listener.server.statistics(&self.config.name),
            Serving::Late(ending) => ending.statistics().first().copied(),
            Serving::Ended => None,
        }
    }

    /// Ends it: its clients hear the answers to what they had asked for.
    ///
    /// # Errors
    /// Some of it is still in flight; see [`Nbd::is_quiet`].
    pub(crate) fn stop(&self) -> Result<(), String> {
        let ending = {
            let mut serving = lock(&self.serving);
            if matches!(*serving, Serving::Yes) {
                // While it serves, the server has it.
                let removed = self.listener.server.remove(&self.config.name);
                *serving = removed.map_or(Serving::Ended, Serving::Late);
            }
            match &*serving {
                Serving::Late(ending) => ending.clone(),
                Serving::Yes | Serving::Ended => return Ok(()),
            }
        };
        self.listener.threads.block_on(ending.wait(DRAIN_TIMEOUT));
        match self.is_quiet() {
            true => Ok(()),
            false => Err(format!(
                "NBD export \"{}\" at {} is stopped, but has requests in flight after {} ms",
                self.config.name,
                self.place,
                DRAIN_TIMEOUT.as_millis()
            )),
        }
    }

    /// Has it been stopped, and has the last of its requests completed?
    pub(crate) fn is_quiet(&self) -> bool {
        let mut serving = lock(&self.serving);
        if let Serving::Late(ending) = &*serving
            && ending.is_quiet()
        {
            *serving = Serving::Ended;
        }
        matches!(*serving, Serving::Ended)
    }

    /// It is quiet: says so in its mark.
    ///
    /// # Errors
    /// It could not be written down: until that has succeeded, its next daemon takes it for one that was not left in order.
    pub(crate) fn end_mark(&self) -> Result<(), String> {
        if !matches!(*lock(&self.serving), Serving::Ended) {
            return Ok(());
        }
        self.mark.end(&self.disk, Vec::new())
    }

    /// Why it could not be written down that it has ended, if that is so.
    pub(crate) fn unwritten(&self) -> Option<String> {
        self.mark.unwritten()
    }

    /// Where it is reached, and under which name.
    pub(crate) fn at(&self) -> String {
        format!("{} as \"{}\" (NBD)", self.place, self.config.name)
    }
}
