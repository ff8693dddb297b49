//! A thread that signals one eventfd of a stranger, at the cost of nobody else.

use crate::peer::Place;
use crate::thread::spawn_apart;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::{ReadWriteFlags, preadv2, read, retry_on_intr, write};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the module. Its thread ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Helper(Arc<Line>);

/// What the thread shares with whoever asks.
#[derive(Debug)]
struct Line {
    event: Arc<OwnedFd>,
    /// Rung when there is something to do: ours alone.
    bell: OwnedFd,
    asked: AtomicBool,
    /// Nobody asks any more.
    over: AtomicBool,
    /// The thread is about to write, or waits in that.
    writing: AtomicBool,
}

impl Helper {
    /// A thread for `event`, in `place`.
    pub(crate) fn spawn(event: Arc<OwnedFd>, place: Place) -> io::Result<Helper> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let no = || AtomicBool::new(false);
        let helper = Helper(Arc::new(Line { event, bell, asked: no(), over: no(), writing: no() }));
        let line = helper.0.clone();
        spawn_apart("eventfd", move || {
            let _place = place;
            line.help();
        })?;
        Ok(helper)
    }

    /// Has the eventfd signalled soon. Asks may merge: one that waits says what there is to say.
    pub(crate) fn ask(&self) {
        if !self.0.asked.swap(true, Ordering::SeqCst) {
            self.0.ring();
        }
    }
}

impl Drop for Helper {
    /// Whoever filled the counter just when the thread wrote keeps it waiting. Nobody wants the counter any more: it is emptied, so that the
    /// thread goes on and ends.
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
        self.0.ring();
        if self.0.writing.load(Ordering::SeqCst) {
            let _ = preadv2(&*self.0.event, &mut [io::IoSliceMut::new(&mut [0; 8])], u64::MAX, ReadWriteFlags::NOWAIT);
        }
    }
}

impl Line {
    fn ring(&self) {
        // A full counter wakes as well.
        let _ = write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Writes once for each ask, or for several, until it is over.
    fn help(&self) {
        while !self.over.load(Ordering::SeqCst) {
            // Not in the write, as far as that can be: this wait ends when nobody wants it any more.
            let asked = self.asked.load(Ordering::SeqCst);
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&*self.event, PollFlags::OUT)];
            let _ = poll(&mut fds[..1 + usize::from(asked)], None);
            let _ = read(&self.bell, &mut [0; 8]);
            let room = fds[1].revents();
            if !asked || room.is_empty() {
                continue;
            }
            self.asked.store(false, Ordering::SeqCst);
            self.writing.store(true, Ordering::SeqCst);
            // Whoever ends it sees that it writes, or is seen here. An error instead of room is a full counter, which says what there is to say.
            if room.contains(PollFlags::OUT) && !self.over.load(Ordering::SeqCst) {
                let _ = retry_on_intr(|| write(&*self.event, &1u64.to_ne_bytes()));
            }
            self.writing.store(false, Ordering::SeqCst);
        }
    }
}
