//! Closing descriptors that strangers sent, whose close may wait for as long as they like.
//!
//! The close of the last descriptor of a TCP connection that lingers waits for its peer, that of a terminal for its output, that of a file
//! on FUSE for its server; and the close of a UNIX socket closes what is on its way through it. None of it can be told in advance, for
//! another holder may change it at any time. So such descriptors are closed by a thread that nobody waits for.

use crate::thread::spawn_apart;
use rustix::fd::OwnedFd;
use rustix::net::{Shutdown, shutdown};
use std::collections::VecDeque;
use std::fmt;
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Descriptors that may wait to be closed before [`Closer::has_room`] says no.
const ROOM: usize = 64;

/// Closes what one stranger sent. A thread is there only while there is something to close whose close might wait. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Closer(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    backlog: Mutex<Backlog>,
    /// One was closed.
    closed: Condvar,
}

#[derive(Default)]
struct Backlog {
    /// To be closed, the one that is being closed not counted: descriptors, and what holds some.
    waiting: VecDeque<Box<dyn Send>>,
    /// There is a thread, which is closing one.
    running: bool,
}

impl Backlog {
    fn is_full(&self) -> bool {
        self.waiting.len() + usize::from(self.running) >= ROOM
    }
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backlog").field("waiting", &self.waiting.len()).field("running", &self.running).finish()
    }
}

impl Closer {
    /// Ends a connection to a stranger, which may have sent descriptors that nobody has read.
    pub fn end(&self, socket: OwnedFd) {
        // The peer may have been first. Nothing arrives after this, so that what is empty now stays so.
        let _ = shutdown(&socket, Shutdown::Both);
        if !rustix::io::ioctl_fionread(&socket).is_ok_and(|unread| unread == 0) {
            self.close(socket);
        }
    }

    /// Ends a listening socket, whose line strangers may wait in who have sent something already. It is gone when this returns, so that whoever
    /// makes another one in its place does not find it.
    pub fn end_listener(&self, listener: UnixListener) {
        // Nobody joins the line after this.
        let _ = shutdown(&listener, Shutdown::Both);
        loop {
            match listener.accept() {
                Ok((waiting, _)) => self.end(waiting.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The end of the line: of a socket that waits, and of one that does not.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::WouldBlock) => return,
                // No descriptor is left for whoever waits, say.
                Err(_) => return self.close(listener),
            }
        }
    }

    /// Is there room for more, or will there be within `limit`? If not, what was sent keeps us from closing it, and no more of that should be
    /// taken.
    pub fn has_room(&self, limit: Duration) -> bool {
        let waited = self.0.closed.wait_timeout_while(self.lock(), limit, |backlog| backlog.is_full());
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_full()
    }

    /// Closes `what` soon: a descriptor, or what holds some. Not even what it is could be asked for here: the file system may be the
    /// stranger's, and take its time to answer.
    pub fn close(&self, what: impl Send + 'static) {
        let mut backlog = self.lock();
        backlog.waiting.push_back(Box::new(what));
        if backlog.running {
            return;
        }
        let closer = self.clone();
        match spawn_apart("close", move || closer.work()) {
            Ok(()) => backlog.running = true,
            // They wait for the next one.
            Err(error) => tracing::error!(%error, "there is no thread to close descriptors of strangers"),
        }
    }

    fn work(&self) {
        loop {
            let mut backlog = self.lock();
            let Some(what) = backlog.waiting.pop_front() else {
                backlog.running = false;
                return;
            };
            self.0.closed.notify_all();
            drop(backlog);
            drop(what);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.0.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something of a stranger's. Whoever drops it does not wait for its close: a [`Closer`] does that.
#[derive(Debug)]
pub struct Theirs<T: Send + 'static> {
    /// `None` once it was taken.
    it: Option<T>,
    closer: Closer,
}

impl<T: Send + 'static> Theirs<T> {
    /// `closer` closes it.
    pub fn new(it: T, closer: Closer) -> Theirs<T> {
        Theirs { it: Some(it), closer }
    }

    /// Takes it. Whoever does looks after its close.
    pub fn into_parts(mut self) -> (T, Closer) {
        (self.it.take().expect("it is taken by value only"), self.closer.clone())
    }
}

impl<T: Send + 'static> Deref for Theirs<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.it.as_ref().expect("it is taken by value only")
    }
}

impl<T: Send + 'static> Drop for Theirs<T> {
    fn drop(&mut self) {
        if let Some(it) = self.it.take() {
            self.closer.close(it);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::set_socket_linger;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Instant;

    /// A connection whose close takes as long as the listener, which comes with it, lives.
    fn lingering() -> (TcpStream, TcpListener, TcpStream) {
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
        set_socket_linger(&lingers, Some(Duration::from_secs(60))).unwrap();
        (lingers, listener, reads_nothing)
    }

    #[test]
    fn nobody_waits_for_a_close_that_waits() {
        let (closer, begun) = (Closer::default(), Instant::now());
        let (lingers, _listener, reads_nothing) = lingering();
        closer.close(lingers);
        assert!(closer.has_room(Duration::ZERO));
        let sockets = (0..ROOM).map(|_| UnixStream::pair().unwrap().0);
        sockets.for_each(|socket| closer.close(socket));
        assert!(!closer.has_room(Duration::from_millis(10)), "they wait behind it");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        // What is unread resets the connection, and the close ends.
        drop(reads_nothing);
        assert!(closer.has_room(Duration::from_secs(20)), "there is room again before all are closed");
        let until = Instant::now() + Duration::from_secs(20);
        while closer.lock().running {
            assert!(Instant::now() < until, "it goes on once there is nothing to wait for");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(closer.lock().waiting.is_empty());
    }

    #[test]
    fn what_is_theirs_is_closed_elsewhere_unless_it_was_taken() {
        struct Tells(std::sync::mpsc::Sender<thread::ThreadId>);
        impl Drop for Tells {
            fn drop(&mut self) {
                let _ = self.0.send(thread::current().id());
            }
        }
        let (tell, told) = std::sync::mpsc::channel();
        let theirs = || Theirs::new(Tells(tell.clone()), Closer::default());
        drop(theirs());
        assert_ne!(told.recv_timeout(Duration::from_secs(20)).unwrap(), thread::current().id());
        drop(theirs().into_parts());
        assert_eq!(told.recv().unwrap(), thread::current().id());
    }

    #[test]
    fn a_connection_with_nothing_unread_is_closed_at_once() {
        let closer = Closer::default();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        closer.end(ours.into());
        assert_eq!(theirs.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert!(!closer.lock().running, "no thread for it");
    }

    #[test]
    fn a_listener_is_gone_at_once_and_who_waited_in_its_line_soon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let closer = Closer::default();
        for waits in [false, true] {
            let listener = UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(!waits).unwrap();
            let mut waiting = UnixStream::connect(&path).unwrap();
            waiting.write_all(b"unread").unwrap();
            let inode = rustix::fs::fstat(&listener).unwrap().st_ino.to_string();
            let is_there = || std::fs::read_to_string("/proc/net/unix").unwrap().contains(&format!(" {inode} "));
            assert!(is_there());
            // Whatever else would have to be closed first.
            let (lingers, _its_listener, reads_nothing) = lingering();
            closer.close(lingers);
            closer.end_listener(listener);
            assert!(!is_there());
            drop(reads_nothing);
            waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert!(!std::io::Read::read(&mut waiting, &mut [0; 1]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock));
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_connection_with_something_unread_is_closed_elsewhere() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"unread").unwrap();
        let closer = Closer::default();
        closer.end(ours.into());
        let until = Instant::now() + Duration::from_secs(20);
        theirs.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while std::io::Read::read(&mut theirs, &mut [0; 1]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            assert!(Instant::now() < until, "it is closed soon");
        }
    }
}
