//! What the daemon serves: disks and vhost sockets, each with the configuration that it was made from.

use crate::config::{DiskConfig, SliceConfig, VhostConfig};
use crate::ledger::DiskLedger;
use crate::service::EndMark;
use crate::state::SocketMark;
use polypath::multipath::Group;
use polypath::vhost_user_blk::Server;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a stop waits for another one under way, which has limits of its own: those of a server's drain.
const OTHER_STOP_LIMIT: Duration = Duration::from_secs(40);

/// A disk as it was asked for.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) group: Arc<Group>,
    pub(crate) config: DiskConfig,
    /// What is written down of it for the daemon after this one.
    pub(crate) ledger: Arc<DiskLedger>,
    /// Sources have led to it: they look after its paths.
    pub(crate) found: bool,
}

/// Part of a disk as it was asked for.
#[derive(Clone)]
pub(crate) struct Slice {
    pub(crate) slice: Arc<polypath::Slice>,
    pub(crate) config: SliceConfig,
}

/// A vhost-user-blk socket as it was asked for, and who serves it.
pub(crate) struct Vhost {
    pub(crate) config: VhostConfig,
    /// The disk that it serves all or a slice of.
    pub(crate) disk: String,
    serving: Mutex<Serving>,
    stopped: Condvar,
    pub(crate) mark: EndMark,
}

/// How far its end has got.
enum Serving {
    /// It serves.
    Yes(Server),
    /// Somebody stops it, and has the server.
    Stopping,
    /// It has stopped, and had requests in flight then.
    Late(Server),
    /// It was quiet in the end. Its rings that no front-end has shown since somebody before us was killed.
    Ended(Vec<u16>),
}

impl Vhost {
    pub(crate) fn new(config: VhostConfig, disk: String, server: Server, mark: Arc<SocketMark>) -> Vhost {
        let (serving, mark) = (Mutex::new(Serving::Yes(server)), EndMark::new(mark));
        Vhost { config, disk, serving, stopped: Condvar::new(), mark }
    }

    /// What `ask` wants to know of the server, if it is still there.
    pub(crate) fn server<R>(&self, ask: impl FnOnce(&Server) -> R) -> Option<R> {
        match &*lock(&self.serving) {
            Serving::Yes(server) | Serving::Late(server) => Some(ask(server)),
            Serving::Stopping | Serving::Ended(_) => None,
        }
    }

    /// Ends the server: its rings are drained first. If somebody else does already, waits for that.
    ///
    /// # Errors
    /// Some of it is still in flight; see [`Vhost::is_quiet`].
    pub(crate) fn stop(&self) -> Result<(), String> {
        let mut serving = lock(&self.serving);
        if matches!(*serving, Serving::Stopping) {
            let waited = self.stopped.wait_timeout_while(serving, OTHER_STOP_LIMIT, |s| matches!(s, Serving::Stopping));
            serving = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut server = match std::mem::replace(&mut *serving, Serving::Stopping) {
            Serving::Yes(server) => server,
            Serving::Stopping => return Err(format!("vhost disk {} does not come to its end", self.config.disk)),
            Serving::Late(server) => {
                *serving = settled(server);
                return match &*serving {
                    Serving::Ended(_) => Ok(()),
                    _ => Err(format!("vhost disk {} is stopped, but has requests in flight still", self.config.disk)),
                };
            }
            Serving::Ended(orphans) => {
                *serving = Serving::Ended(orphans);
                return Ok(());
            }
        };
        drop(serving);
        let result = server.stop().map_err(|error| error.to_string());
        let mut serving = lock(&self.serving);
        *serving = if result.is_ok() { Serving::Ended(server.orphans()) } else { Serving::Late(server) };
        drop(serving);
        self.stopped.notify_all();
        result
    }

    /// Has it been stopped, and has the last of its requests completed?
    pub(crate) fn is_quiet(&self) -> bool {
        let mut serving = lock(&self.serving);
        if matches!(*serving, Serving::Late(_))
            && let Serving::Late(server) = std::mem::replace(&mut *serving, Serving::Stopping)
        {
            *serving = settled(server);
        }
        matches!(*serving, Serving::Ended(_))
    }

    /// It is quiet: says so in its mark.
    ///
    /// # Errors
    /// It could not be written down: until that has succeeded, its next daemon takes it for one that was not left in order.
    pub(crate) fn end_mark(&self) -> Result<(), String> {
        let orphans = match &*lock(&self.serving) {
            Serving::Ended(orphans) => orphans.clone(),
            Serving::Yes(_) | Serving::Stopping | Serving::Late(_) => return Ok(()),
        };
        self.mark.end(&self.disk, orphans)
    }

    /// Why it could not be written down that it has ended, if that is so.
    pub(crate) fn unwritten(&self) -> Option<String> {
        self.mark.unwritten()
    }
}

/// A server that was stopped with requests in flight: have they completed since?
fn settled(server: Server) -> Serving {
    if server.has_ended() { Serving::Ended(server.orphans()) } else { Serving::Late(server) }
}

/// No critical section leaves a half-made state behind, so that a poisoned lock is still sound.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}
