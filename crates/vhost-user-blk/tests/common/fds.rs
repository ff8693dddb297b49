//! Descriptors on their way to a back-end, and one that means harm.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Sends `bytes` with up to eight descriptors.
///
/// # Errors
/// The back-end has hung up.
pub fn send_with(to: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(to, &[IoSlice::new(bytes)], &mut control, flags)
}

/// A connection whose close takes as long as the other two live, or 45 s.
pub fn lingering() -> (TcpStream, TcpListener, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lingers = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (reads_nothing, _) = listener.accept().unwrap();
    lingers.set_nonblocking(true).unwrap();
    loop {
        match lingers.write(&[0; 65536]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    rustix::net::sockopt::set_socket_linger(&lingers, Some(Duration::from_secs(45))).unwrap();
    (lingers, listener, reads_nothing)
}
