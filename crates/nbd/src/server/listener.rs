//! What clients connect to.

use super::ServerError;
use polypath_net::{SocketAccess, UnixSocket, UnixSocketError};
use rustix::net::sockopt;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long a peer may be silent before it is asked whether it is there, how often, and how many answers may be missing. A client that has
/// lost its power is gone after a minute or two; the standard itself has no word for that.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// A UNIX socket at this path.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Tcp(address) => write!(f, "{address}"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Listener {
    kind: Kind,
    address: Address,
}

#[derive(Debug)]
enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    pub(super) fn unix(path: &Path, access: SocketAccess) -> Result<(Listener, UnixSocket), ServerError> {
        let file = UnixSocket::listen(path, access)?;
        match file.listener().try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => {
                let address = Address::Unix(path.to_owned());
                Ok((Listener { kind: Kind::Unix(listener), address }, file))
            }
            Err(source) => {
                // Ours, a moment old, and of no use. That it stays is the lesser trouble.
                let _ = file.remove();
                let (path, hint) = (path.to_owned(), "");
                Err(UnixSocketError::System { call: "epoll_ctl", path, source, hint }.into())
            }
        }
    }

    pub(super) fn tcp(address: SocketAddr) -> Result<Listener, ServerError> {
        let listen = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(|source| ServerError::Listen { address, source })?;
        Ok(Listener { kind: Kind::Tcp(listener), address: Address::Tcp(address) })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// The next client, and who it is, for the log.
    pub(super) async fn accept(&self) -> std::io::Result<(Stream, String)> {
        match &self.kind {
            Kind::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                let peer = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
                Ok((Stream::Unix(stream), peer))
            }
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Without these it is served all the same, later or for longer.
                if let Err(error) = stream.set_nodelay(true).and_then(|()| keep_alive(&stream)) {
                    tracing::debug!(%peer, %error, "options of a connection");
                }
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
        }
    }
}

fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_PAUSE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}
