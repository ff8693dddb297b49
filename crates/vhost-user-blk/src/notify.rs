//! The descriptors by which a guest notifies (kick) and is notified (call, err): eventfds.
//!
//! They belong to a stranger and may be blocking, now or later: their mode is shared with the front-end, which may change it
//! at any time, so that what it was when they came proves nothing (and we never change it: a front-end may count on it). Every
//! access here is made not to block whatever the mode is: they are signalled by a [`polypath_net::EventNotifier`] and read by a
//! [`polypath_net::EventListener`]. Files of other kinds are refused at the door ([`crate::stranger::Stranger::into_bell`]): whoever reads, writes or polls
//! one may wait for a lock that the front-end holds, for a disk, or for a FUSE server that never answers.

use polypath_block::Waits;
use polypath_net::{EventListener, EventNotifier, Peer, Theirs};
use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use std::io::ErrorKind;
use std::sync::Arc;

/// What a front-end passed off as an eventfd is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected an eventfd, not {0}")]
pub(crate) struct UnsupportedFd(pub(crate) String);

/// Notifies the front-end: call and err descriptors.
#[derive(Debug)]
pub(crate) struct Notifier(Theirs<EventNotifier>);

/// Why the front-end was not notified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotifyError {
    /// The descriptor is of no use, and will not be.
    #[error("the descriptor is dead: {0}")]
    Dead(std::io::Error),
    /// We are short of something; it may be there again in a moment.
    #[error("not now: {0}")]
    Later(std::io::Error),
}

impl Notifier {
    /// Of an eventfd.
    pub(crate) fn new(fd: Theirs<OwnedFd>, peer: Arc<Peer>) -> Notifier {
        let (fd, closer) = fd.into_parts();
        Notifier(Theirs::new(EventNotifier::new(fd, peer), closer))
    }

    /// Notifies once, to see how long that takes.
    pub(crate) fn try_out(&self) {
        self.0.try_out();
    }

    /// Notifies. A counter that is full already says what there is to say.
    pub(crate) fn notify(&self) -> Result<(), NotifyError> {
        self.0.notify().map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => NotifyError::Dead(error),
            _ => NotifyError::Later(error),
        })
    }
}

/// A [`Notifier`] that may be there, and whether it is due. What could not be said for a moment is said later, and what was said on a
/// descriptor that nobody listens on any more is said again on the next.
#[derive(Debug)]
pub(crate) struct DueNotifier {
    notifier: Option<Arc<Notifier>>,
    due: bool,
}

impl DueNotifier {
    pub(crate) fn new(notifier: Option<Arc<Notifier>>, due: bool) -> DueNotifier {
        DueNotifier { notifier, due }
    }

    pub(crate) fn set_due(&mut self) {
        self.due = true;
    }

    /// Is there somebody to be notified?
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.due && self.notifier.is_some()
    }

    /// Notifies; call it while it is due. After an error that is not of the moment, the descriptor is dropped.
    pub(crate) fn notify(&mut self) -> Result<(), NotifyError> {
        let Some(notifier) = &self.notifier else { return Ok(()) };
        let result = notifier.notify();
        match &result {
            Ok(()) => self.due = false,
            Err(NotifyError::Later(_)) => {}
            Err(NotifyError::Dead(_)) => self.notifier = None,
        }
        result
    }
}

/// Is notified by the front-end: the kick descriptor.
#[derive(Debug)]
pub(crate) struct Kick {
    event: Theirs<EventListener>,
    /// Numbers for [`Waits`]: of the descriptor that came, and of the one that takes its place.
    ids: [u64; 2],
    first: RawFd,
}

impl Kick {
    /// Of an eventfd.
    pub(crate) fn new(fd: Theirs<OwnedFd>, peer: Arc<Peer>) -> Kick {
        let (fd, closer) = fd.into_parts();
        let first = fd.as_raw_fd();
        let event = Theirs::new(EventListener::new(fd, peer), closer);
        Kick { event, ids: [Waits::unique(), Waits::unique()], first }
    }

    /// Notifies itself once and takes that, to see how long it takes. The ring must be looked at afterwards.
    pub(crate) fn try_out(&self) {
        self.event.try_out();
    }

    /// Names itself as a reason to wake.
    pub(crate) fn name_in(&self, waits: &mut Waits) {
        let fd = self.event.as_fd().as_raw_fd();
        waits.readable(fd, self.ids[usize::from(fd != self.first)]);
    }

    /// Takes the notification. `Ok(true)` if there was one.
    ///
    /// # Errors
    /// The descriptor is of no use any more: nothing that can be read without waiting.
    pub(crate) fn take(&self) -> Result<bool, Errno> {
        self.event.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::write;

    fn theirs(fd: OwnedFd) -> Theirs<OwnedFd> {
        Theirs::new(fd, polypath_net::Closer::default())
    }

    #[test]
    fn a_full_counter_never_blocks() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
            let fd = eventfd(0, flags).unwrap();
            write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            let notifier = Notifier::new(theirs(fd), Peer::new(1));
            notifier.notify().unwrap();
            notifier.notify().unwrap();
        }
    }

    #[test]
    fn kicks_are_taken_once_whatever_the_mode() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
            let fd = eventfd(0, flags).unwrap();
            let shared = fd.try_clone().unwrap();
            let kick = Kick::new(theirs(fd), Peer::new(1));
            assert_eq!(kick.take(), Ok(false));
            write(&shared, &3u64.to_ne_bytes()).unwrap();
            assert_eq!(kick.take(), Ok(true));
            assert_eq!(kick.take(), Ok(false));
        }
    }

    /// A front-end may turn its descriptor into a blocking one after we have looked at it, and fill it.
    #[test]
    fn a_bell_that_becomes_blocking_later_never_blocks() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let shared = fd.try_clone().unwrap();
        let notifier = Notifier::new(theirs(fd), Peer::new(1));
        rustix::fs::fcntl_setfl(&shared, rustix::fs::OFlags::RDWR).unwrap();
        write(&shared, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(notifier.notify()));
        assert!(matches!(wait.recv_timeout(std::time::Duration::from_secs(10)), Ok(Ok(()))));
    }

    /// They are refused at the door; whatever comes through it would be an error, and not a wait.
    #[test]
    fn what_can_neither_notify_nor_be_notified_by_is_an_error() {
        let epoll = || rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        assert!(Kick::new(theirs(epoll()), Peer::new(1)).take().is_err());
        assert!(Notifier::new(theirs(epoll()), Peer::new(1)).notify().is_err());
    }
}
