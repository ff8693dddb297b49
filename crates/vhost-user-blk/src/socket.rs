//! One connection to a front-end: whole messages with their descriptors in, replies out, every wait with a limit.

use crate::wire::{HEADER_LEN, Header, MAX_FDS, Request, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A message that has begun must be complete, and a reply taken, within this time.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// What came of waiting.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message; the flag says whether an acknowledgement is wanted.
    Message { id: u32, request: Request, need_reply: bool },
    /// Nothing within the time given.
    Idle,
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
    #[error("more than {MAX_FDS} file descriptors in one message")]
    TooManyFds,
    #[error("the front-end closed its end in the middle of a message")]
    Truncated,
    #[error("a message was not complete, or a reply not taken, within {} s", MESSAGE_LIMIT.as_secs())]
    Slow,
    #[error("the server is stopping")]
    Stopping,
}

/// The connection, and the descriptor that tells the thread to stop.
pub(crate) struct Socket<'a> {
    stream: UnixStream,
    stop: BorrowedFd<'a>,
}

enum Ready {
    Yes,
    TimedOut,
    Stop,
}

impl<'a> Socket<'a> {
    pub(crate) fn new(stream: UnixStream, stop: BorrowedFd<'a>) -> Result<Self, SocketError> {
        rustix::io::ioctl_fionbio(&stream, true).map_err(|source| SocketError::System { call: "ioctl", source })?;
        Ok(Socket { stream, stop })
    }

    /// The next message, waiting at most `idle` for it to begin.
    pub(crate) fn next(&self, idle: Option<Duration>) -> Result<Event, SocketError> {
        match self.wait(PollFlags::IN, idle)? {
            Ready::Yes => {}
            Ready::TimedOut => return Ok(Event::Idle),
            Ready::Stop => return Ok(Event::Stop),
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
        let until = Instant::now() + MESSAGE_LIMIT;
        let mut sent = 0;
        while sent < bytes.len() {
            match send_some(self.stream.as_fd(), &bytes[sent..]) {
                Ok(n) => sent += n,
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
    fn fill(&self, into: &mut [u8], fds: &mut Vec<OwnedFd>, until: Instant) -> Result<usize, SocketError> {
        let mut have = 0;
        while have < into.len() {
            match receive(self.stream.as_fd(), &mut into[have..], fds) {
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

    fn wait(&self, flags: PollFlags, limit: Option<Duration>) -> Result<Ready, SocketError> {
        match wait_fd(self.stream.as_fd(), flags, self.stop, limit) {
            Ok(Wait::Ready) => Ok(Ready::Yes),
            Ok(Wait::TimedOut) => Ok(Ready::TimedOut),
            Ok(Wait::Stop) => Ok(Ready::Stop),
            Err(source) => Err(SocketError::System { call: "poll", source }),
        }
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
    let until = limit.map(|l| Instant::now() + l);
    loop {
        let timeout = until.map(left).and_then(|l| Timespec::try_from(l).ok());
        let mut fds = [PollFd::from_borrowed_fd(fd, flags), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) if until.is_some_and(|u| u <= Instant::now()) => return Ok(Wait::TimedOut),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) if !fds[1].revents().is_empty() => return Ok(Wait::Stop),
            Ok(_) => return Ok(Wait::Ready),
            Err(error) => return Err(error),
        }
    }
}

/// Sends a request of ours on the back-end channel, without waiting: a front-end that does not read loses it.
pub(crate) fn send_at_once(channel: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    match send_some(channel, bytes) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(Errno::MSGSIZE),
        Err(error) => Err(error),
    }
}

fn send_some(to: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(to, &[IoSlice::new(bytes)], &mut SendAncillaryBuffer::default(), flags)
}

fn receive(from: BorrowedFd<'_>, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, SocketError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(from, &mut [IoSliceMut::new(into)], &mut control, flags)
        .map_err(|source| SocketError::System { call: "recvmsg", source })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
        return Err(SocketError::TooManyFds);
    }
    Ok(got.bytes)
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
