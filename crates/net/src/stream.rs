//! A TCP stream over plain non-blocking system calls.

use crate::list::{Gather, Scatter};
use crate::transport::{Counters, Dialer, Received, Transport};
use polypath_block::{Interest, Waits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Most bytes that are copied at a time when the kernel cannot read memory by itself.
const FALLBACK: usize = 64 << 10;

/// So often in a row must the kernel have sent something again before the way is called cut: one may be lost.
const RETRANSMITS: u8 = 2;

/// A non-blocking TCP stream with `TCP_NODELAY`.
#[derive(Debug)]
pub struct TcpStream {
    socket: Option<OwnedFd>,
    id: u64,
    connected: bool,
    counters: Counters,
}

/// Dials over the operating system's TCP.
#[derive(Clone, Debug, Default)]
pub struct TcpDialer {
    /// `TCP_USER_TIMEOUT`: how long sent data may stay unacknowledged before the kernel gives the stream up. `None` leaves the
    /// kernel's own limit, which is many minutes; protocols that watch for silence themselves need nothing here.
    pub user_timeout: Option<Duration>,
    /// Let the kernel probe idle streams (`SO_KEEPALIVE`).
    pub keepalive: bool,
}

impl Dialer for TcpDialer {
    fn dial(&self, address: SocketAddr) -> io::Result<Box<dyn Transport>> {
        let stream = TcpStream::connect_start(address)?;
        stream.set_keepalive(self.keepalive)?;
        if let Some(limit) = self.user_timeout {
            stream.set_user_timeout(limit)?;
        }
        Ok(Box::new(stream))
    }
}

impl TcpStream {
    /// Begins to connect to `address` and returns at once; [`Transport::poll_connected`] tells the rest. There is no time limit
    /// here but the kernel's (minutes): whoever polls keeps a shorter one and drops the stream.
    ///
    /// # Errors
    /// When there is no socket to be had, or it is known at once that the address cannot be reached.
    pub fn connect_start(address: SocketAddr) -> io::Result<TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        let connected = match connect(&socket, &address) {
            Ok(()) => true,
            Err(Errno::INPROGRESS | Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        let counters = Counters { syscalls: 3, ..Counters::default() };
        Ok(TcpStream { socket: Some(socket), id: Waits::unique(), connected, counters })
    }

    /// A stream that a listener accepted.
    pub(crate) fn from_accepted(socket: OwnedFd) -> io::Result<TcpStream> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(TcpStream { socket: Some(socket), id: Waits::unique(), connected: true, counters: Counters::default() })
    }

    /// Switches the kernel's probing of idle streams on or off.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_keepalive(&self, on: bool) -> io::Result<()> {
        Ok(sockopt::set_socket_keepalive(self.fd()?, on)?)
    }

    /// Sets `TCP_USER_TIMEOUT`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_user_timeout(&self, limit: Duration) -> io::Result<()> {
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        Ok(sockopt::set_tcp_user_timeout(self.fd()?, millis)?)
    }

    /// Our own address.
    ///
    /// # Errors
    /// What the operating system says; also when it has been aborted.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = rustix::net::getsockname(self.fd()?)?;
        SocketAddr::try_from(address).map_err(io::Error::from)
    }

    fn fd(&self) -> io::Result<&OwnedFd> {
        self.socket.as_ref().ok_or_else(gone)
    }

    /// One `sendmsg`; `Ok(None)` when there is no room now.
    fn send_message(&mut self, list: &[libc::iovec]) -> io::Result<Option<usize>> {
        let fd = self.fd()?.as_raw_fd();
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = list.as_ptr().cast_mut();
        message.msg_iovlen = list.len() as _;
        self.counters.syscalls += 1;
        // SAFETY: the entries come from a `Gather` or a slice that is borrowed for the whole call; the kernel only reads there.
        let n = unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        if n >= 0 {
            return Ok(Some(n as usize));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        }
    }

    /// Sends a copy of what the kernel could not read itself. Reading it here turns bytes that are no longer behind the mapping
    /// into zeroes (`polypath-memory` sees to that), so the stream and everybody else on it lives on.
    #[cold]
    fn send_copy(&mut self, from: &Gather<'_>) -> io::Result<Option<usize>> {
        let mut copy = Vec::new();
        let n = from.copy_to(&mut copy, FALLBACK);
        self.send_message(&[libc::iovec { iov_base: copy.as_mut_ptr().cast(), iov_len: n }])
    }

    /// As [`TcpStream::send_copy`], the other way: bytes that the kernel cannot put into memory whose file was cut are taken
    /// through a buffer of ours. The kernel keeps what it could not put down, so that none is lost.
    #[cold]
    fn receive_copy(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        let mut copy = vec![0; into.len().min(FALLBACK)];
        self.counters.syscalls += 1;
        match rustix::net::recv(self.fd()?, &mut copy[..], rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(Received::End),
            Ok((n, _)) => {
                self.counters.bytes_in += n as u64;
                into.place(&copy[..n]);
                Ok(Received::Bytes(n))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

impl Transport for TcpStream {
    fn poll_connected(&mut self) -> io::Result<bool> {
        if self.connected {
            return Ok(true);
        }
        let fd = self.socket.as_ref().ok_or_else(gone)?;
        self.counters.syscalls += 1;
        let mut fds = [PollFd::new(fd, PollFlags::OUT)];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
            return Ok(false);
        }
        self.counters.syscalls += 1;
        sockopt::socket_error(fd)??;
        self.connected = true;
        Ok(true)
    }

    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        let fd = self.fd()?.as_raw_fd();
        self.counters.syscalls += 1;
        let list = into.raw_mut();
        let n = if let [one] = list {
            // SAFETY: the entry is memory that `into` keeps borrowed; the kernel writes at most its length there.
            unsafe { libc::recv(fd, one.iov_base, one.iov_len, libc::MSG_DONTWAIT) }
        } else {
            // SAFETY: all-zero is a valid msghdr.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = list.as_mut_ptr();
            message.msg_iovlen = list.len() as _;
            // SAFETY: as above, for every entry.
            unsafe { libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT) }
        };
        match n {
            1.. => {
                self.counters.bytes_in += n as u64;
                Ok(Received::Bytes(n as usize))
            }
            0 => Ok(Received::End),
            _ => {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                        self.counters.empty_receives += 1;
                        Ok(Received::Nothing)
                    }
                    _ if error.raw_os_error() == Some(libc::EFAULT) => self.receive_copy(into),
                    _ => Err(error),
                }
            }
        }
    }

    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize> {
        if from.is_empty() {
            return Ok(0);
        }
        self.counters.sends += 1;
        let sent = match self.send_message(from.raw()) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => self.send_copy(from)?,
            other => other?,
        };
        let n = sent.unwrap_or(0);
        self.counters.short_sends += u64::from(n < from.len());
        self.counters.bytes_out += n as u64;
        Ok(n)
    }

    fn arm(&self, waits: &mut Waits, sending: bool) {
        if let Some(fd) = &self.socket {
            let write = sending || !self.connected;
            waits.interests.push(Interest { fd: fd.as_fd().as_raw_fd(), id: self.id, read: self.connected, write });
        }
    }

    fn unacknowledged(&self) -> Option<Duration> {
        let fd = self.socket.as_ref()?.as_raw_fd();
        // SAFETY: all-zero is a valid tcp_info.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `info`, which is as large; less leaves zeroes, which mean nothing.
        let told = unsafe {
            libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len) == 0
        };
        let cut = told && info.tcpi_unacked > 0 && info.tcpi_retransmits >= RETRANSMITS;
        cut.then(|| Duration::from_millis(info.tcpi_last_ack_recv.into()))
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn abort(&mut self) {
        if let Some(socket) = self.socket.take() {
            // Without linger the kernel would go on sending what is in its buffer: a write could still leave. Should this fail,
            // which takes a descriptor that is no socket, closing is all there is.
            if let Err(error) = sockopt::set_socket_linger(&socket, Some(Duration::ZERO)) {
                tracing::error!(%error, "cannot close a connection abortively");
            }
            drop(socket);
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection was closed on our side")
}
