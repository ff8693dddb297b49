//! How sockets, disks and the daemon end: no request fails because of it, and what is left is written down.

use super::{Daemon, State};
use crate::flush::{self, Flushed};
use crate::resources::{Disk, lock};
use crate::service::Service;
use polypath::block::Device;
use std::sync::{MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// How long reactors may take to let go of what is in flight when the daemon ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long the last flush of a disk may take. A file may have much to write.
const FLUSH_LIMIT: Duration = Duration::from_secs(20);

impl Daemon {
    /// Drains everything, all sockets at once; says what did not end in time.
    pub(crate) fn stop(&self) -> Vec<String> {
        lock(&self.state).ending = true;
        self.end_sources();
        // What is being made is finished first, and then ended with the rest.
        let alone = self.alone_within(DRAIN_LIMIT);
        let ended = std::mem::replace(&mut *lock(&self.state), State::ended());
        let services: Vec<_> = ended.serving().chain(ended.late.iter().cloned()).collect();
        let State { disks, listeners, .. } = ended;
        let mut faults = stop_all(&services);
        listeners.values().for_each(|listener| listener.close());
        if alone.is_none() {
            faults.push("a change by RPC does not end".into());
        }
        for (name, _) in disks.iter().filter(|(_, disk)| disk.ledger.is_passing()) {
            faults.push(format!("a command that was passed through to disk \"{name}\" has not ended"));
        }
        let in_flight = |disk: &str| services.iter().any(|service| service.disk() == disk && !service.is_quiet());
        thread::scope(|scope| {
            for (_, disk) in disks.iter().filter(|(name, _)| !in_flight(name)) {
                scope.spawn(move || self.leave(disk));
            }
        });
        if !faults.is_empty() {
            // What is in flight or waits for a path is left as it is: to close its disk would fail it, and the guest would hear. Whoever
            // serves it next carries it out again.
            return faults;
        }
        disks.values().for_each(|disk| disk.group.close());
        if !self.stack.stop(DRAIN_LIMIT) {
            faults.push(format!("reactors still have work in flight after {} ms", DRAIN_LIMIT.as_millis()));
        }
        faults
    }

    /// Ends the marks of sockets that were deleted and have become quiet; one that cannot be written is tried again the next time. Whoever
    /// asks is alone in changing something.
    pub(super) fn end_quiet(&self, _alone: &MutexGuard<'_, ()>) {
        let quiet = lock(&self.state).quiet();
        quiet.iter().for_each(|service| self.end_mark(service));
    }

    /// A socket has drained. If it was the last one of its disk, nothing of the disk is in flight.
    fn end_mark(&self, service: &Service) {
        if service.end_mark().is_err() {
            return;
        }
        let disk = {
            let mut state = lock(&self.state);
            state.late.retain(|late| !late.is(service));
            let name = service.disk();
            state.disks.get(name).filter(|_| state.services_of(name).next().is_none()).cloned()
        };
        if let Some(disk) = disk {
            self.leave(&disk);
        }
    }

    /// Nobody serves the disk any more. What its caches hold is made durable: a loss of power between two daemons is told to nobody.
    pub(super) fn leave(&self, disk: &Disk) {
        // Whoever passes something through leaves it then.
        if disk.ledger.is_passing() {
            return;
        }
        let Some(mark) = disk.ledger.mark() else { return };
        let name = &disk.config.name;
        let flushed = match self.stack.hosts().first() {
            Some(host) => flush::flush(&disk.group, &**host, FLUSH_LIMIT),
            None => Flushed::No(polypath::Code::Gone),
        };
        let written = match flushed {
            Flushed::Yes => mark.flushed(),
            Flushed::Lost => {
                tracing::error!(disk = %name, "something was lost that was in its caches: the next flush of its guests fails");
                mark.lost().and_then(|()| mark.flushed())
            }
            Flushed::No(code) => {
                tracing::warn!(disk = %name, ?code, "its caches could not be flushed; whether they lose their power is looked at by its next daemon");
                Ok(())
            }
        };
        if let Err(error) = written {
            tracing::error!(disk = %name, %error, "what became of its caches could not be written down");
        }
        disk.ledger.let_go();
    }

    /// Waits for a change under way, which may be stuck in the operating system or with somebody else's back-end.
    fn alone_within(&self, limit: Duration) -> Option<MutexGuard<'_, ()>> {
        let until = Instant::now() + limit;
        loop {
            match self.changing.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl State {
    /// Nothing is there, and nothing comes.
    fn ended() -> State {
        State { ending: true, ..State::default() }
    }
}

/// Stops all of them at once, and ends the mark of each as soon as it has drained: one that does not is no matter of the others. Answers with
/// what did not drain, or could not be written down.
fn stop_all(services: &[Service]) -> Vec<String> {
    thread::scope(|scope| {
        let stop = |service: &Service| service.stop().and_then(|()| service.end_mark());
        let stops: Vec<_> = services.iter().map(|service| scope.spawn(move || stop(service))).collect();
        let ended = stops
            .into_iter()
            .map(|s| s.join().unwrap_or_else(|_| Err("the end of a socket or export panicked".into())));
        ended.filter_map(Result::err).collect()
    })
}
