//! What serves a disk, of whatever kind: how it ends is the same for all.

use crate::nbd::Nbd;
use crate::resources::{Vhost, lock};
use crate::state::SocketMark;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A vhost socket or an NBD export.
#[derive(Clone)]
pub(crate) enum Service {
    Vhost(PathBuf, Arc<Vhost>),
    Nbd(Arc<Nbd>),
}

impl Service {
    /// The disk that it serves all or a slice of.
    pub(crate) fn disk(&self) -> &str {
        match self {
            Service::Vhost(_, vhost) => &vhost.disk,
            Service::Nbd(nbd) => &nbd.disk,
        }
    }

    /// The disk or slice that it serves.
    pub(crate) fn serves(&self) -> &str {
        match self {
            Service::Vhost(_, vhost) => &vhost.config.disk,
            Service::Nbd(nbd) => &nbd.config.disk,
        }
    }

    /// May what it has in flight land on blocks of `name`, a disk or slice? Slices do not overlap.
    pub(crate) fn concerns(&self, name: &str, disk: &str) -> bool {
        self.disk() == disk && (self.serves() == name || self.serves() == disk || name == disk)
    }

    /// Where it is, for people.
    pub(crate) fn at(&self) -> String {
        match self {
            Service::Vhost(socket, _) => socket.display().to_string(),
            Service::Nbd(nbd) => nbd.at(),
        }
    }

    /// Ends it. What it was asked for is carried out first.
    ///
    /// # Errors
    /// Some of it is still in flight; see [`Service::is_quiet`].
    pub(crate) fn stop(&self) -> Result<(), String> {
        match self {
            Service::Vhost(_, vhost) => vhost.stop(),
            Service::Nbd(nbd) => nbd.stop(),
        }
    }

    /// Has it been stopped, and has the last of its requests completed?
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Service::Vhost(_, vhost) => vhost.is_quiet(),
            Service::Nbd(nbd) => nbd.is_quiet(),
        }
    }

    /// It is quiet: says so in its mark.
    ///
    /// # Errors
    /// It could not be written down: until that has succeeded, its next daemon takes it for one that was not left in order.
    pub(crate) fn end_mark(&self) -> Result<(), String> {
        match self {
            Service::Vhost(_, vhost) => vhost.end_mark(),
            Service::Nbd(nbd) => nbd.end_mark(),
        }
    }

    /// Why it could not be written down that it has ended, if that is so.
    pub(crate) fn unwritten(&self) -> Option<String> {
        match self {
            Service::Vhost(_, vhost) => vhost.unwritten(),
            Service::Nbd(nbd) => nbd.unwritten(),
        }
    }

    /// Is it the very same?
    pub(crate) fn is(&self, other: &Service) -> bool {
        match (self, other) {
            (Service::Vhost(_, one), Service::Vhost(_, other)) => Arc::ptr_eq(one, other),
            (Service::Nbd(one), Service::Nbd(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// What is kept of a service for the daemon after this one: whether it was left in order.
#[derive(Debug)]
pub(crate) struct EndMark {
    mark: Arc<SocketMark>,
    /// Why it could not be written down that it has ended.
    unwritten: Mutex<Option<String>>,
}

/// The mark itself.
impl Deref for EndMark {
    type Target = SocketMark;

    fn deref(&self) -> &SocketMark {
        &self.mark
    }
}

impl EndMark {
    pub(crate) fn new(mark: Arc<SocketMark>) -> EndMark {
        EndMark { mark, unwritten: Mutex::default() }
    }

    /// Writes down that the service of `disk` has ended; `orphans` are its rings that no front-end has shown. That it cannot be is logged
    /// once for each reason.
    ///
    /// # Errors
    /// It could not be written down, for people.
    pub(crate) fn end(&self, disk: &str, orphans: Vec<u16>) -> Result<(), String> {
        let ended = self.mark.end(orphans).map_err(|error| {
            format!("that disk \"{disk}\" was left in order could not be written down in the state folder: {error}; changes wait until it is")
        });
        let news = ended.clone().err();
        let mut unwritten = lock(&self.unwritten);
        if let Some(problem) = news.as_ref().filter(|_| *unwritten != news) {
            tracing::error!("{problem}");
        }
        *unwritten = news;
        ended
    }

    /// Why that could not be written down, if it could not.
    pub(crate) fn unwritten(&self) -> Option<String> {
        lock(&self.unwritten).clone()
    }
}
