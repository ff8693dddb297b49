//! Sending a list on a socket that somebody else polls.

use crate::list::Gather;
use rustix::fd::{AsRawFd, BorrowedFd};
use std::io;

/// Sends what `from` names on a connected stream socket, in one `sendmsg` that never waits: for servers that keep their sockets
/// in an epoll set of their own. Returns the bytes taken; `None` when there is no room now.
///
/// # Errors
/// What the operating system says; the stream is then to be given up. Memory whose file was truncated is such an error here.
#[inline]
pub fn send_on(socket: BorrowedFd<'_>, from: &Gather<'_>) -> io::Result<Option<usize>> {
    let list = from.raw();
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = list.as_ptr().cast_mut();
    message.msg_iovlen = list.len() as _;
    // SAFETY: the descriptor is borrowed and so open; the entries are borrowed by the `Gather`; the kernel only reads there.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    if n >= 0 {
        return Ok(Some(n as usize));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}
