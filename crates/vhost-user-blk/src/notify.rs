//! The descriptors by which a guest notifies (kick) and is notified (call, err): eventfds as a rule, pipes from some front-ends.
//!
//! Both belong to a stranger and may be blocking, now or later: their mode is shared with the front-end, which may change it
//! at any time, so that what it was when they came proves nothing (and we never change it: a front-end may count on it). Every
//! access here is made not to block whatever the mode is, and files of other kinds are refused at the door: a read or write of
//! a regular file can wait for a disk, or for a FUSE server that never answers.

use polypath_block::Waits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2, write};
use std::io::{IoSlice, IoSliceMut};

/// What a front-end passed off as an eventfd cannot serve as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the descriptor is neither an eventfd nor a pipe")]
pub(crate) struct UnsupportedFd;

/// The two kinds that are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// An eventfd. (Other anonymous files are not told apart from it here; writes to them fail at once.)
    Event,
    Pipe,
}

fn kind(fd: &OwnedFd) -> Result<Kind, UnsupportedFd> {
    let mode = fstat(fd).map_err(|_| UnsupportedFd)?.st_mode;
    match FileType::from_raw_mode(mode) {
        FileType::Fifo => Ok(Kind::Pipe),
        // Anonymous inodes have no type at all.
        FileType::Unknown => Ok(Kind::Event),
        _ => Err(UnsupportedFd),
    }
}

/// Notifies the front-end: call and err descriptors.
#[derive(Debug)]
pub(crate) struct Notifier {
    fd: OwnedFd,
    kind: Kind,
}

impl Notifier {
    /// # Errors
    /// [`UnsupportedFd`] for what is neither eventfd nor pipe.
    pub(crate) fn new(fd: OwnedFd) -> Result<Notifier, UnsupportedFd> {
        let kind = kind(&fd)?;
        Ok(Notifier { fd, kind })
    }

    /// Notifies. A counter or pipe that is full already says what there is to say.
    pub(crate) fn notify(&self) -> Result<(), Errno> {
        let one = 1u64.to_ne_bytes();
        if self.kind == Kind::Pipe {
            // Offset -1: the current position, as write(2) would.
            match pwritev2(&self.fd, &[IoSlice::new(&one)], u64::MAX, ReadWriteFlags::NOWAIT) {
                // Linux before 6.5.
                Err(Errno::OPNOTSUPP) => {}
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // Eventfds do not know NOWAIT for writes. One that is full when looked at is left alone. What remains is a front-end
        // process that makes its descriptor blocking and fills it in between, on purpose.
        if !is_ready(&self.fd, PollFlags::OUT) {
            return Ok(());
        }
        let result = write(&self.fd, &one);
        match result {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Is notified by the front-end: the kick descriptor.
#[derive(Debug)]
pub(crate) struct Kick {
    fd: OwnedFd,
    /// Number for [`Waits`].
    id: u64,
}

impl Kick {
    /// # Errors
    /// [`UnsupportedFd`] for what is neither eventfd nor pipe.
    pub(crate) fn new(fd: OwnedFd) -> Result<Kick, UnsupportedFd> {
        kind(&fd)?;
        Ok(Kick { fd, id: Waits::unique() })
    }

    /// Names itself as a reason to wake.
    pub(crate) fn name_in(&self, waits: &mut Waits) {
        waits.readable(self.fd.as_raw_fd(), self.id);
    }

    /// Takes the notification. `Ok(true)` if there was one.
    ///
    /// # Errors
    /// The descriptor is of no use any more: closed at the other end, or nothing that can be read without waiting.
    pub(crate) fn take(&self) -> Result<bool, Errno> {
        let mut bytes = [0; 64];
        // Offset -1: the current position, as read(2) would; NOWAIT: whatever the mode of the descriptor is. There is no other
        // way round for files that do not know it: between a look and a read, its other holder may take what was there.
        match preadv2(&self.fd, &mut [IoSliceMut::new(&mut bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
            Ok(0) => Err(Errno::PIPE),
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_ready(fd: &OwnedFd, flags: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), flags)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1)) && fds[0].revents().contains(flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn a_full_counter_never_blocks() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
            let fd = eventfd(0, flags).unwrap();
            write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            let notifier = Notifier::new(fd).unwrap();
            notifier.notify().unwrap();
            notifier.notify().unwrap();
        }
    }

    #[test]
    fn kicks_are_taken_once_whatever_the_mode() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
            let kick = Kick::new(eventfd(0, flags).unwrap()).unwrap();
            assert_eq!(kick.take(), Ok(false));
            write(&kick.fd, &3u64.to_ne_bytes()).unwrap();
            assert_eq!(kick.take(), Ok(true));
            assert_eq!(kick.take(), Ok(false));
        }
    }

    #[test]
    fn pipes_serve_too_and_their_end_is_an_error() {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (kick, notifier) = (Kick::new(read_end).unwrap(), Notifier::new(write_end).unwrap());
        assert_eq!(kick.take(), Ok(false));
        for _ in 0..100_000 {
            notifier.notify().unwrap();
        }
        assert_eq!(kick.take(), Ok(true));
        drop(notifier);
        while kick.take() == Ok(true) {}
        assert_eq!(kick.take(), Err(Errno::PIPE));
    }

    /// A front-end may turn its descriptor into a blocking one after we have looked at it, and fill it.
    #[test]
    fn a_bell_that_becomes_blocking_later_never_blocks() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let theirs = fd.try_clone().unwrap();
        let notifier = Notifier::new(fd).unwrap();
        rustix::fs::fcntl_setfl(&theirs, rustix::fs::OFlags::RDWR).unwrap();
        write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(notifier.notify()));
        assert_eq!(wait.recv_timeout(std::time::Duration::from_secs(10)), Ok(Ok(())));
    }

    #[test]
    fn other_files_are_refused() {
        let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for fd in [file, socket.into(), null] {
            assert_eq!(Kick::new(fd.try_clone().unwrap()).err(), Some(UnsupportedFd));
            assert_eq!(Notifier::new(fd).err(), Some(UnsupportedFd));
        }
        // Anonymous, but nothing to notify or be notified by: an error, not a wait.
        let epoll = || rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        assert!(Kick::new(epoll()).unwrap().take().is_err());
        assert!(!matches!(Notifier::new(epoll()).unwrap().notify(), Err(Errno::AGAIN)));
    }
}
