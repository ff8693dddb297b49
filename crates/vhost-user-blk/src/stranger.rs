//! Descriptors as they come from a front-end: of any kind, and those that are not taken are closed by a thread that nobody waits for.

use crate::notify::UnsupportedFd;
use polypath_memory::{MemoryError, Region};
use polypath_net::{Closer, Theirs};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::fs::read_link;
use std::sync::Arc;

/// What Linux calls all eventfds, and nothing else.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// One of them.
#[derive(Debug)]
pub(crate) struct Stranger(Theirs<OwnedFd>);

impl Stranger {
    pub(crate) fn new(fd: OwnedFd, closer: Closer) -> Stranger {
        Stranger(Theirs::new(fd, closer))
    }

    /// As one to notify, or to be notified by.
    ///
    /// # Errors
    /// It is no eventfd: a call on it may wait, for a lock that the front-end holds (pipes, epoll instances) or for a disk.
    pub(crate) fn into_bell(self) -> Result<Theirs<OwnedFd>, UnsupportedFd> {
        // Its name, of which whoever serves the file is not asked.
        match read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())) {
            Ok(name) if name.as_os_str() == EVENTFD => Ok(self.0),
            Ok(name) => Err(UnsupportedFd(format!("{name:?}"))),
            Err(error) => Err(UnsupportedFd(format!("what /proc/self/fd does not name ({error})"))),
        }
    }

    /// Maps `len` bytes at `offset` of it.
    ///
    /// # Errors
    /// Those of [`Region::from_fd`].
    pub(crate) fn map(self, offset: u64, len: u64) -> Result<Region, MemoryError> {
        let (fd, closer) = self.0.into_parts();
        let fd = Arc::new(fd);
        let region = Region::from_fd(fd.clone(), offset, len);
        // Nobody else has it if it could not be mapped.
        if let Some(fd) = Arc::into_inner(fd) {
            closer.close(fd);
        }
        region
    }
}

impl AsFd for Stranger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn only_what_can_be_a_bell_or_memory_is_taken_for_it() {
        let stranger = |fd: OwnedFd| Stranger::new(fd, Closer::default());
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let file = || {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, 8192).unwrap();
            file
        };
        let socket = || OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
        assert!(stranger(event()).into_bell().is_ok());
        let epoll = || rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let (out, into) = rustix::pipe::pipe().unwrap();
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for other in [file(), socket(), out, into, epoll(), null] {
            let said = stranger(other).into_bell().unwrap_err().to_string();
            assert!(said.starts_with("expected an eventfd, not "), "{said}");
        }
        assert_eq!(stranger(file()).map(4096, 4096).unwrap().len(), 4096);
        assert!(stranger(file()).map(4096, 4097).is_err() && stranger(socket()).map(0, 4096).is_err());
    }
}
