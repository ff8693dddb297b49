//! What serves a disk, of whatever kind: how it ends is the same for all.

use crate::nbd::Nbd;
use crate::resources::Vhost;
use std::path::PathBuf;
use std::sync::Arc;

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
