//! The descriptors a guest rings and is rung by: eventfds as a rule, pipes from some front-ends.
//!
//! Both belong to a stranger and may be blocking. We never change their mode (it is shared with the front-end, which may
//! count on blocking reads), so every access here is made not to block.

use polypath_block::Waits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, write};
use std::io::IoSliceMut;

/// Rings the front-end: call and error descriptors.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    blocking: bool,
}

impl Bell {
    pub(crate) fn new(fd: OwnedFd) -> Bell {
        let blocking = !fcntl_getfl(&fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        Bell { fd, blocking }
    }

    /// Rings. A counter or pipe that is full already says what there is to say.
    pub(crate) fn ring(&self) -> Result<(), Errno> {
        if self.blocking && !is_ready(&self.fd, PollFlags::OUT) {
            return Ok(());
        }
        match write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Is rung by the front-end: the kick descriptor.
#[derive(Debug)]
pub(crate) struct Kick {
    fd: OwnedFd,
    /// Number for [`Waits`].
    id: u64,
}

impl Kick {
    pub(crate) fn new(fd: OwnedFd) -> Kick {
        Kick { fd, id: Waits::unique() }
    }

    /// Names itself as a reason to wake.
    pub(crate) fn name_in(&self, waits: &mut Waits) {
        waits.readable(self.fd.as_raw_fd(), self.id);
    }

    /// Takes the ring off. `Ok(true)` if it was rung.
    ///
    /// # Errors
    /// The descriptor is of no use any more: closed at the other end, or nothing that can be read.
    pub(crate) fn take(&self) -> Result<bool, Errno> {
        let mut bytes = [0; 64];
        // Offset -1: the current position, as read(2) would; NOWAIT: whatever the mode of the descriptor is.
        let got = match preadv2(&self.fd, &mut [IoSliceMut::new(&mut bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::SPIPE | Errno::INVAL | Errno::NOSYS) => {
                if !is_ready(&self.fd, PollFlags::IN) {
                    return Ok(false);
                }
                read(&self.fd, &mut bytes)
            }
            other => other,
        };
        match got {
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
            let bell = Bell::new(fd);
            bell.ring().unwrap();
            bell.ring().unwrap();
        }
    }

    #[test]
    fn kicks_are_taken_once_whatever_the_mode() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
            let kick = Kick::new(eventfd(0, flags).unwrap());
            assert_eq!(kick.take(), Ok(false));
            write(&kick.fd, &3u64.to_ne_bytes()).unwrap();
            assert_eq!(kick.take(), Ok(true));
            assert_eq!(kick.take(), Ok(false));
        }
    }

    #[test]
    fn pipes_serve_too_and_their_end_is_an_error() {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (kick, bell) = (Kick::new(read_end), Bell::new(write_end));
        assert_eq!(kick.take(), Ok(false));
        for _ in 0..100_000 {
            bell.ring().unwrap();
        }
        assert_eq!(kick.take(), Ok(true));
        drop(bell);
        while kick.take() == Ok(true) {}
        assert_eq!(kick.take(), Err(Errno::PIPE));
    }
}
