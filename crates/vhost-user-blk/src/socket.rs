//! One connection to a front-end: whole messages with their descriptors in, replies out, every wait with a limit.

use crate::stranger::Stranger;
use crate::wire::{HEADER_LEN, Header, MAX_FDS, Request, WireError};
use polypath_net::Closer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_oobinline;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Resource, getrlimit};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A message that has begun must be complete, and a reply taken, within this time.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take until there is room for what is to be closed of what it sent.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Most descriptors that Linux passes at once (`SCM_MAX_FD`).
const SCM_MAX_FD: usize = 253;
/// Descriptors that front-ends may not have, at most a quarter of all.
const RESERVE: u64 = 256;

/// What came of waiting.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message; the flag says whether an acknowledgement is wanted.
    Message { id: u32, request: Request, need_reply: bool },
    /// Nothing within the time given.
    Idle,
    /// Another front-end asks to be served.
    Another,
    /// The server is to stop.
    Stop,
    /// The front-end has closed its end between messages.
    Closed,
}

/// Why a connection must end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{call} on the control connection failed: {source}")]
    System { call: &'static str, source: Errno },
    #[error("more than {MAX_FDS} file descriptors in one message, or none left in this process for them")]
    TooManyFds,
    #[error(
        "no file descriptors are left for front-ends: {limit} is the limit of this process, of which the last {reserve} are kept for \
         others; give it a higher one (LimitNOFILE of its service, ulimit -n)"
    )]
    FewFds { limit: u64, reserve: u64 },
    #[error("file descriptors that it sent take too long to close")]
    Closing,
    #[error("the front-end closed its end in the middle of a message")]
    Truncated,
    #[error("a message was not complete, or a reply not taken, within {} s", MESSAGE_LIMIT.as_secs())]
    Slow,
    #[error("the server is stopping")]
    Stopping,
}

/// The connection, the descriptor that tells the thread to stop, and the socket at which others ask.
pub(crate) struct Socket<'a> {
    /// `None` while it is dropped.
    stream: Option<UnixStream>,
    closer: Closer,
    stop: BorrowedFd<'a>,
    others: BorrowedFd<'a>,
}

enum Ready {
    Yes,
    TimedOut,
    Stop,
}

impl<'a> Socket<'a> {
    /// `closer` closes it, and what comes with it.
    pub(crate) fn new(
        stream: UnixStream,
        stop: BorrowedFd<'a>,
        others: BorrowedFd<'a>,
        closer: Closer,
    ) -> Result<Self, SocketError> {
        let socket = Socket { stream: Some(stream), closer, stop, others };
        rustix::io::ioctl_fionbio(socket.fd(), true).map_err(|source| SocketError::System { call: "ioctl", source })?;
        // Octets out of band would be dropped by the call that receives what comes after them, which closes their descriptors itself.
        set_socket_oobinline(socket.fd(), true).map_err(|source| SocketError::System { call: "setsockopt", source })?;
        Ok(socket)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_ref().expect("it is there until it is dropped").as_fd()
    }

    /// The next message, waiting at most `idle` for it to begin.
    pub(crate) fn next(&self, idle: Option<Duration>) -> Result<Event, SocketError> {
        match wait_any(self.fd(), PollFlags::IN, &[self.stop, self.others], idle) {
            Ok(Some(0)) => {}
            Ok(Some(1)) => return Ok(Event::Stop),
            Ok(Some(_)) => return Ok(Event::Another),
            Ok(None) => return Ok(Event::Idle),
            Err(source) => return Err(SocketError::System { call: "poll", source }),
        }
        if !self.closer.has_room(CLOSE_LIMIT) {
            return Err(SocketError::Closing);
        }
        let until = Instant::now() + MESSAGE_LIMIT;
        let mut fds = Vec::new();
        let mut header = [0; HEADER_LEN];
        match self.fill(&mut header, &mut fds, until)? {
            0 => return Ok(Event::Closed),
            HEADER_LEN => {}
            _ => return Err(SocketError::Truncated),
        }
        let header = Header::parse(&header)?;
        let mut payload = vec![0; header.size as usize];
        if self.fill(&mut payload, &mut fds, until)? != payload.len() {
            return Err(SocketError::Truncated);
        }
        let request = Request::decode(header.request, &payload, fds)?;
        Ok(Event::Message { id: header.request, request, need_reply: header.need_reply })
    }

    /// Sends all of `bytes`.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        self.send_with(bytes, None)
    }

    /// Sends all of `bytes`, and a descriptor with the first of them.
    pub(crate) fn send_with(&self, bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> Result<(), SocketError> {
        let until = Instant::now() + MESSAGE_LIMIT;
        let mut sent = 0;
        while sent < bytes.len() {
            match send_some(self.fd(), &bytes[sent..], fd) {
                Ok(n) => (sent, fd) = (sent + n, None),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match self.wait(PollFlags::OUT, Some(left(until)))? {
                    Ready::Yes => {}
                    Ready::TimedOut => return Err(SocketError::Slow),
                    Ready::Stop => return Err(SocketError::Stopping),
                },
                Err(source) => return Err(SocketError::System { call: "sendmsg", source }),
            }
        }
        Ok(())
    }

    /// Fills `into`; fewer bytes only when the peer has closed. Descriptors go to `fds`.
    fn fill(&self, into: &mut [u8], fds: &mut Vec<Stranger>, until: Instant) -> Result<usize, SocketError> {
        let mut have = 0;
        while have < into.len() {
            match self.receive(&mut into[have..], fds) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(SocketError::System { source: Errno::INTR, .. }) => {}
                Err(SocketError::System { source: Errno::AGAIN, .. }) => {
                    match self.wait(PollFlags::IN, Some(left(until)))? {
                        Ready::Yes => {}
                        Ready::TimedOut => return Err(SocketError::Slow),
                        Ready::Stop => return Err(SocketError::Stopping),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(have)
    }

    fn receive(&self, into: &mut [u8], fds: &mut Vec<Stranger>) -> Result<usize, SocketError> {
        // Room for as many as can come: those without a place would be closed by the call, however long that takes.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(self.fd(), &mut [IoSliceMut::new(into)], &mut control, flags)
            .map_err(|source| SocketError::System { call: "recvmsg", source })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights.map(|fd| Stranger::new(fd, self.closer.clone())));
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
            return Err(SocketError::TooManyFds);
        }
        leave_reserve(fds)?;
        Ok(got.bytes)
    }

    fn wait(&self, flags: PollFlags, limit: Option<Duration>) -> Result<Ready, SocketError> {
        match wait_fd(self.fd(), flags, self.stop, limit) {
            Ok(Wait::Ready) => Ok(Ready::Yes),
            Ok(Wait::TimedOut) => Ok(Ready::TimedOut),
            Ok(Wait::Stop) => Ok(Ready::Stop),
            Err(source) => Err(SocketError::System { call: "poll", source }),
        }
    }
}

impl Drop for Socket<'_> {
    /// What lies unread in it may hold up a close.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.closer.end(stream.into());
        }
    }
}

/// Front-ends leave some descriptors for others: connections to targets, the operator. A new one has the lowest number that is free, so that
/// its number tells how many are in use.
fn leave_reserve(fds: &[Stranger]) -> Result<(), SocketError> {
    let Some(highest) = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).max() else { return Ok(()) };
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let reserve = (limit / 4).min(RESERVE);
    match u64::try_from(highest).is_ok_and(|highest| highest < limit - reserve) {
        true => Ok(()),
        false => Err(SocketError::FewFds { limit, reserve }),
    }
}

/// Outcome of [`wait_fd`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    Ready,
    TimedOut,
    Stop,
}

/// Waits until `fd` is ready, `stop` is readable, or `limit` has passed.
pub(crate) fn wait_fd(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    stop: BorrowedFd<'_>,
    limit: Option<Duration>,
) -> Result<Wait, Errno> {
    Ok(match wait_any(fd, flags, &[stop], limit)? {
        None => Wait::TimedOut,
        Some(0) => Wait::Ready,
        Some(_) => Wait::Stop,
    })
}

/// Waits until `fd` is ready (0), one of `others` is readable (1 and so on), or `limit` has passed. The first of `others`, which tells to
/// stop, counts before `fd`; the rest count after it: who comes after a front-end has gone is not told that there is one.
fn wait_any(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    others: &[BorrowedFd<'_>],
    limit: Option<Duration>,
) -> Result<Option<usize>, Errno> {
    let until = limit.map(|l| Instant::now() + l);
    let others = others.iter().map(|other| PollFd::from_borrowed_fd(*other, PollFlags::IN));
    let mut fds: Vec<_> = std::iter::once(PollFd::from_borrowed_fd(fd, flags)).chain(others).collect();
    loop {
        let timeout = until.map(left).and_then(|l| Timespec::try_from(l).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) if until.is_some_and(|u| u <= Instant::now()) => return Ok(None),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => {
                let order = [1, 0].into_iter().chain(2..fds.len());
                return Ok(order.into_iter().find(|&n| fds.get(n).is_some_and(|fd| !fd.revents().is_empty())));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends a request of ours on the back-end channel, without waiting: a front-end that does not read loses it.
pub(crate) fn send_at_once(channel: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    match send_some(channel, bytes, None) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(Errno::MSGSIZE),
        Err(error) => Err(error),
    }
}

fn send_some(to: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let fds: &[BorrowedFd<'_>] = fd.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // There is room for one.
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(to, &[IoSlice::new(bytes)], &mut control, flags)
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
