//! A server: one listener, exports by name that come and go, and its clients.

mod clients;
mod listener;
#[cfg(test)]
mod tests;

pub use listener::Address;

use crate::export::{Export, ExportConfig, ExportStatistics};
use crate::handshake::Answer;
use crate::limits::Limits;
use crate::session::{self, End};
use crate::wire::STRING_MAX;
pub(crate) use clients::{Busy, Client, Clients};
use listener::{Listener, Stream};
use polypath_net::{SocketAccess, UnixSocket, UnixSocketError};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Pause after the operating system refused a connection: descriptors that are out now may be back then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// No socket at that path.
    #[error(transparent)]
    Socket(#[from] UnixSocketError),
    /// No listener at that address.
    #[error("listening on {address} failed: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It has an export of that name.
    #[error("there is an export called \"{}\" already; expected another name", .0.escape_debug())]
    Taken(String),
    /// A name that no client could ask for.
    #[error("the name of an export has {found} bytes; at most {STRING_MAX} without NUL are expected")]
    Name {
        /// Its length.
        found: usize,
    },
    /// It is ending.
    #[error("the server is ending; it takes no more exports")]
    Ending,
}

/// What serves NBD on one socket. Its exports are its own: what is not added here is not reached from here.
///
/// It ends with [`Server::stop`]. One that is dropped ends as well, and nobody hears when it is over.
#[derive(Debug)]
pub struct Server {
    address: Address,
    /// The file of a UNIX socket, until it is removed: the next one there is somebody else's.
    file: Mutex<Option<UnixSocket>>,
    replaced: bool,
    shared: Arc<Shared>,
    accepting: AbortHandle,
    listening: watch::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    exports: Exports,
    clients: Clients,
    limits: Limits,
}

/// The exports of a server.
#[derive(Debug)]
pub(crate) struct Exports {
    all: Mutex<BTreeMap<String, Arc<Export>>>,
    ending: AtomicBool,
}

/// Exports that end: their clients are told so, and hung up on when their requests are answered. They end without anybody who waits.
#[derive(Debug, Clone)]
pub struct Ending {
    exports: Vec<Arc<Export>>,
    /// Closed with the listener, if that ends as well.
    listening: Option<watch::Receiver<()>>,
}

impl Server {
    /// Listens on a UNIX socket, whose file is removed at the end. Call it within a runtime of tokio, which then serves the clients.
    ///
    /// # Errors
    /// [`ServerError::Socket`].
    pub fn unix(path: &Path, access: SocketAccess, limits: Limits) -> Result<Server, ServerError> {
        let (listener, file) = Listener::unix(path, access)?;
        Ok(Server::start(listener, Some(file), limits))
    }

    /// Listens on a TCP port (0: any that is free). The protocol has neither passwords nor encryption: whoever reaches the port reaches
    /// the disks. Call it within a runtime of tokio.
    ///
    /// # Errors
    /// [`ServerError::Listen`].
    pub fn tcp(address: SocketAddr, limits: Limits) -> Result<Server, ServerError> {
        Ok(Server::start(Listener::tcp(address)?, None, limits))
    }

    fn start(listener: Listener, file: Option<UnixSocket>, limits: Limits) -> Server {
        let limits = limits.sane();
        // Who may use a UNIX socket was chosen, and is gone when it has ended. Over TCP it is anybody, who may have lost its power since.
        let idle_go = matches!(listener.address(), Address::Tcp(_));
        let shared = Arc::new(Shared { exports: Exports::new(), clients: Clients::new(limits, idle_go), limits });
        let (address, replaced) = (listener.address().clone(), file.as_ref().is_some_and(UnixSocket::replaced));
        let (open, listening) = watch::channel(());
        let accepting = tokio::spawn(accept(open, listener, shared.clone())).abort_handle();
        Server { address, file: Mutex::new(file), replaced, shared, accepting, listening }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Had somebody left a UNIX socket there, who ended without removing it?
    pub fn replaced(&self) -> bool {
        self.replaced
    }

    /// Exports a disk from now on.
    ///
    /// # Errors
    /// [`ServerError::Taken`], [`ServerError::Name`], [`ServerError::Ending`].
    pub fn add(&self, config: ExportConfig) -> Result<(), ServerError> {
        if config.name.len() > STRING_MAX || config.name.contains('\0') {
            return Err(ServerError::Name { found: config.name.len() });
        }
        let mut all = self.shared.exports.lock();
        if self.shared.exports.is_ending() {
            return Err(ServerError::Ending);
        }
        if all.contains_key(&config.name) {
            return Err(ServerError::Taken(config.name));
        }
        all.insert(config.name.clone(), Export::new(config));
        Ok(())
    }

    /// Exports a disk no more. Its clients are told so (ESHUTDOWN) and hung up on when what they had asked for before is answered. `None`:
    /// there is no export of that name.
    pub fn remove(&self, name: &str) -> Option<Ending> {
        let export = self.shared.exports.lock().remove(name)?;
        export.end();
        Some(Ending { exports: vec![export], listening: None })
    }

    /// Names of its exports, in their order.
    pub fn exports(&self) -> Vec<String> {
        self.shared.exports.lock().keys().cloned().collect()
    }

    /// What an export has done, if there is one of that name.
    pub fn statistics(&self, name: &str) -> Option<ExportStatistics> {
        let export = self.shared.exports.lock().get(name).cloned();
        export.map(|export| export.statistics())
    }

    /// Clients that are connected, those in their handshake included.
    pub fn clients(&self) -> usize {
        self.shared.clients.count()
    }

    /// Takes no more clients, lets those in a handshake go, and ends every export. The file of a UNIX socket is removed.
    pub fn stop(&self) -> Ending {
        let all = {
            let mut all = self.shared.exports.lock();
            self.shared.exports.ending.store(true, Ordering::Relaxed);
            std::mem::take(&mut *all)
        };
        self.accepting.abort();
        let file = self.file.lock().unwrap_or_else(|p| p.into_inner()).take();
        if let Some(file) = file
            && let Err(error) = file.remove()
        {
            tracing::warn!(socket = %file.path().display(), %error, "its file stays");
        }
        self.shared.clients.end_handshakes();
        all.values().for_each(|export| export.end());
        Ending { exports: all.into_values().collect(), listening: Some(self.listening.clone()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Ending {
    /// Waits until no client is connected and nothing is with the disk any more, at most `limit`; says whether that is so.
    pub async fn wait(&self, limit: Duration) -> bool {
        let all = async {
            if let Some(mut listening) = self.listening.clone() {
                // Nothing is ever sent: it ends with the one who could.
                while listening.changed().await.is_ok() {}
            }
            for export in &self.exports {
                export.quiet().await;
            }
        };
        timeout(limit, all).await.is_ok()
    }

    /// Is no client connected, and nothing with the disk any more?
    pub fn is_quiet(&self) -> bool {
        let closed = self.listening.as_ref().is_none_or(|listening| listening.has_changed().is_err());
        closed && self.exports.iter().all(|export| export.is_quiet())
    }

    /// What was done until now.
    pub fn statistics(&self) -> Vec<ExportStatistics> {
        self.exports.iter().map(|export| export.statistics()).collect()
    }
}

impl Exports {
    pub(crate) fn new() -> Exports {
        Exports { all: Mutex::default(), ending: AtomicBool::new(false) }
    }

    #[cfg(test)]
    pub(crate) fn of(configs: impl IntoIterator<Item = ExportConfig>) -> Exports {
        let exports = Exports::new();
        exports.lock().extend(configs.into_iter().map(|config| (config.name.clone(), Export::new(config))));
        exports
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Its exports as a client hears of them.
    pub(crate) fn list(&self) -> Answer {
        if self.is_ending() {
            return Answer::Shutdown;
        }
        let all = self.lock();
        Answer::List(all.values().map(|e| (e.config.name.clone(), e.config.description.clone())).collect())
    }

    /// The export that a client calls `name`: the only one for whoever names none.
    ///
    /// # Errors
    /// There is none, in words for people.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Export>, String> {
        let all = self.lock();
        if let Some(export) = all.get(name) {
            return Ok(export.clone());
        }
        match (name.is_empty(), all.len()) {
            (true, 1) => Ok(all.values().next().expect("there is one").clone()),
            (true, 0) => Err("there are no exports".into()),
            (true, n) => Err(format!("there are {n} exports, and none of them is the default one; name one")),
            (false, _) => Err("there is no export of that name".into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Export>>> {
        self.all.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Takes clients until it is aborted. `_open` goes last: whoever waits for that may listen at the same place.
async fn accept(_open: watch::Sender<()>, listener: Listener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => welcome(stream, peer, &shared),
            Err(error) => {
                if let Some(others) = shared.clients.may_log() {
                    tracing::warn!(address = %listener.address(), %error, others, "a client could not be taken");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(stream: Stream, peer: String, shared: &Arc<Shared>) {
    let Some(client) = shared.clients.enter() else {
        if let Some(others) = shared.clients.may_log() {
            let most = shared.limits.clients;
            tracing::warn!(%peer, most, others, "one client too many was hung up on");
        }
        return;
    };
    let shared = shared.clone();
    tokio::spawn(async move {
        let (exports, limits) = (&shared.exports, shared.limits);
        let ended = match stream {
            Stream::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                session::serve(reader, writer, exports, limits, &client).await
            }
            Stream::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                session::serve(reader, writer, exports, limits, &client).await
            }
        };
        match ended {
            Ok(End::Unwanted) if !exports.is_ending() => {
                if let Some(others) = shared.clients.may_log() {
                    tracing::warn!(%peer, others, "client let go: it had asked for nothing, and another one needed its place");
                }
            }
            Ok(end) => tracing::debug!(%peer, ?end, "client gone"),
            Err(error) => {
                if let Some(others) = shared.clients.may_log() {
                    tracing::warn!(%peer, %error, others, "client let go");
                }
            }
        }
    });
}
