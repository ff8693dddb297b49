//! The other end: a socket that accepts streams.

use crate::stream::TcpStream;
use polypath_block::Waits;
use rustix::fd::AsRawFd;
use rustix::net::{SocketFlags, acceptfrom_with};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// A non-blocking listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    id: u64,
}

impl Listener {
    /// Listens on `address`; port 0 takes a free one (see [`Listener::local_addr`]). The address may be taken again at once
    /// after an earlier listener on it has gone.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(Listener { socket, id: Waits::unique() })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next stream that wants to come in, if there is one, and where it comes from.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] never comes; others concern one stream (it is gone) or the process (no more descriptors).
    pub fn accept(&self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        match acceptfrom_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((fd, Some(peer))) => {
                let peer = SocketAddr::try_from(peer).map_err(io::Error::from)?;
                Ok(Some((TcpStream::from_accepted(fd)?, peer)))
            }
            Ok((_, None)) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Wake when a stream wants to come in.
    pub fn arm(&self, waits: &mut Waits) {
        waits.readable(self.socket.as_raw_fd(), self.id);
    }
}
