//! The control thread of a server: waits for front-ends, serves one at a time, drains what the last one leaves behind.

use crate::config::ConfigSpace;
use crate::mailbox::Answer;
use crate::server::Shared;
use crate::session::Session;
use crate::socket::{Socket, Wait, wait_fd};
use polypath_net::UnixSocket;
use rustix::event::PollFlags;
use rustix::fd::AsFd;
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

/// How often a device that is not live yet is looked at, and answers that are awaited.
const LOOK: Duration = Duration::from_millis(50);

/// Serves front-ends on `socket`, one after the other, until the server is to stop; tells `report` how many vrings had not drained in time.
pub(crate) fn run(shared: &Shared, socket: Arc<UnixSocket>, report: SyncSender<usize>) {
    Control { shared, socket, report, deadline: Cell::new(None) }.run();
}

struct Control<'a> {
    shared: &'a Shared,
    socket: Arc<UnixSocket>,
    /// How many vrings had not drained in time.
    report: SyncSender<usize>,
    /// Until when they may take, from the moment in which the server was told to stop.
    deadline: Cell<Option<Instant>>,
}

impl Control<'_> {
    /// Serves until stopped.
    fn run(self) {
        if let Some(mut config_space) = self.wait_for_device() {
            while let Some(stream) = self.accept() {
                if let Some(newer) = self.shared.config_space() {
                    config_space = newer;
                }
                self.shared.connected.store(true, Ordering::Relaxed);
                self.serve(stream, config_space.clone());
                self.shared.connected.store(false, Ordering::Relaxed);
            }
        }
        self.remove_socket();
        self.shared.keep(true);
        self.shared.look_for_losses();
        self.shared.ended.set(true);
        // Who waits in its line may have sent what takes long to close.
        if let Some(socket) = Arc::into_inner(self.socket) {
            self.shared.closer.end_listener(socket.into_listener());
        }
        // Whoever was told before that some are late is not told again.
        let _ = self.report.try_send(0);
    }

    /// What is told to guests depends on the device, so it must have been live once. `None`: stop.
    fn wait_for_device(&self) -> Option<ConfigSpace> {
        let config = &self.shared.config;
        let mut told = false;
        loop {
            if let Some(info) = config.device.state().info() {
                let config_space = ConfigSpace::new(info, config.read_only, config.seg_max, config.num_queues);
                self.shared.set_config_space(config_space.clone());
                return Some(config_space);
            }
            if !told {
                told = true;
                tracing::info!(disk = %config.name, state = ?config.device.state(), "front-ends wait for the device");
            }
            let stop = self.shared.stop.as_fd();
            match wait_fd(stop, PollFlags::IN, stop, Some(LOOK)) {
                Ok(Wait::TimedOut) => {}
                Ok(_) => return None,
                Err(error) => {
                    tracing::error!(disk = %config.name, %error, "cannot wait; the server ends");
                    return None;
                }
            }
        }
    }

    /// The next front-end. `None`: stop.
    fn accept(&self) -> Option<UnixStream> {
        let name = &self.shared.config.name;
        loop {
            self.shared.keep_later();
            if !self.shared.closer.has_room(LOOK) {
                if let Some(others) = self.shared.may_log(&self.shared.refusals) {
                    tracing::warn!(disk = %name, others, "descriptors of front-ends take long to close; the next front-end waits for that");
                }
                if self.pause() {
                    return None;
                }
                continue;
            }
            match wait_fd(self.socket.as_fd(), PollFlags::IN, self.shared.stop.as_fd(), self.shared.keeps_in()) {
                Ok(Wait::Ready) => {}
                Ok(Wait::TimedOut) => continue,
                Ok(Wait::Stop) => return None,
                Err(error) => {
                    tracing::error!(disk = %name, %error, "cannot wait; the server ends");
                    return None;
                }
            }
            match self.socket.listener().accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.not_accepted(&error);
                    if self.pause() {
                        return None;
                    }
                }
            }
        }
    }

    fn not_accepted(&self, error: &std::io::Error) {
        if let Some(others) = self.shared.may_log(&self.shared.refusals) {
            tracing::warn!(disk = %self.shared.config.name, %error, others, "a front-end could not be accepted");
        }
    }

    /// Waits a moment: descriptors that are out now, say, may be back then. True if the server is to stop.
    fn pause(&self) -> bool {
        let stop = self.shared.stop.as_fd();
        wait_fd(stop, PollFlags::IN, stop, Some(LOOK)) == Ok(Wait::Stop)
    }

    /// Serves one front-end. Its connection is open for as long as its requests may still be given back: what it reads of its rings
    /// once it is closed does not change any more.
    fn serve(&self, stream: UnixStream, config_space: ConfigSpace) {
        let name = &self.shared.config.name;
        let visits = &self.shared.visits;
        if let Some(others) = self.shared.may_log(visits) {
            tracing::info!(disk = %name, others, "front-end connected");
        }
        let closer = self.shared.closer.clone();
        let socket = match Socket::new(stream, self.shared.stop.as_fd(), self.socket.as_fd(), closer) {
            Ok(socket) => socket,
            Err(reason) => return tracing::warn!(disk = %name, %reason, "a front-end could not be served"),
        };
        let mut session = Session::new(self.shared, config_space);
        match (session.serve(&socket, || self.refuse_another()), self.shared.may_log(visits)) {
            (Ok(()), Some(others)) => tracing::info!(disk = %name, others, "front-end disconnected"),
            (Err(reason), Some(others)) => {
                tracing::warn!(disk = %name, %reason, others, "connection to the front-end closed");
            }
            (_, None) => {}
        }
        self.drain(session.leave());
        drop(socket);
        let mappings = session.mappings();
        self.drain(session.end());
        drop(session);
        self.shared.settle();
        // The last holder unmaps: this thread, not a reactor.
        drop(mappings);
    }

    /// One disk has one front-end. Another one is told so at once, rather than left to wait.
    fn refuse_another(&self) {
        match self.socket.listener().accept() {
            Ok((stream, _)) => {
                self.shared.closer.end(stream.into());
                if let Some(others) = self.shared.may_log(&self.shared.refusals) {
                    let disk = &self.shared.config.name;
                    tracing::warn!(%disk, others, "another front-end was refused: the disk has one, and serves one at a time");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                self.not_accepted(&error);
                // It is asked again at once otherwise. Whoever stops the server is heard by the session.
                self.pause();
            }
        }
    }

    /// Waits until the device has nothing of the rings any more: the next front-end might write the same blocks. If the server is to
    /// stop, whoever stops it is told after the drain timeout how many are late.
    fn drain(&self, mut answers: Vec<Receiver<Answer>>) {
        let mut told = Instant::now();
        // Whoever has answered is not late, in whatever order they do.
        while let Some(first) = answers.first() {
            match first.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => {}
                // Also one that ended by itself.
                _ => drop(answers.remove(0)),
            }
            answers.retain(|answer| matches!(answer.try_recv(), Err(TryRecvError::Empty)));
            if !answers.is_empty() {
                self.shared.log_slow(&mut told);
                self.report_late(answers.len());
            }
        }
    }

    fn report_late(&self, late: usize) {
        if !self.shared.stopping.is_set() {
            return;
        }
        let limit = self.shared.config.drain_timeout;
        let deadline = self.deadline.get().unwrap_or_else(|| Instant::now() + limit);
        self.deadline.set(Some(deadline));
        if Instant::now() >= deadline && self.report.try_send(late).is_ok() {
            // Another back-end may take the place of this one, which takes no more.
            self.remove_socket();
        }
    }

    /// Removes the socket file, if it is still ours.
    fn remove_socket(&self) {
        if let Err(error) = self.socket.remove() {
            tracing::warn!(path = %self.socket.path().display(), %error, "the socket could not be removed");
        }
    }
}
