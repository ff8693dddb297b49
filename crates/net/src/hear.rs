//! Being told by the eventfds of strangers without any chance to wait.
//!
//! A read of an eventfd with a flag that never waits can still take long, if many wait for it ([`crate::Peer`]). Then a thread reads it, and
//! tells us by one that nobody else has.

use crate::peer::{Peer, Place};
use crate::signal::signal_seldom;
use crate::thread::spawn_apart;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};
use std::io::IoSliceMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Is told by an eventfd of a stranger.
#[derive(Debug)]
pub struct EventListener {
    event: Arc<OwnedFd>,
    peer: Arc<Peer>,
    relay: OnceLock<Relay>,
}

impl EventListener {
    /// For `event` of `peer`, who may do with it what he likes.
    pub fn new(event: OwnedFd, peer: Arc<Peer>) -> EventListener {
        EventListener { event: Arc::new(event), peer, relay: OnceLock::new() }
    }

    /// Has something said and takes it, with whatever was said before, to see how long that takes: at the cost of the calling thread.
    pub fn try_out(&self) {
        self.peer.try_out(|| {
            // What fails now fails again when it is wanted.
            let _ = signal_seldom(self.event.as_fd());
            let _ = empty(&self.event);
        });
    }

    /// Takes what was said. `Ok(true)` if there was something. Look again at [`EventListener::as_fd`] before the next wait: it may be another.
    ///
    /// # Errors
    /// The descriptor cannot be read without waiting.
    #[inline]
    pub fn take(&self) -> Result<bool, Errno> {
        match self.peer.is_slow() {
            true => self.take_from_relay(),
            false => self.peer.timed(|| empty(&self.event)),
        }
    }

    #[cold]
    fn take_from_relay(&self) -> Result<bool, Errno> {
        if let Some(relay) = self.relay.get() {
            return empty(&relay.0.told);
        }
        match self.peer.place().and_then(|place| Relay::spawn(self.event.clone(), place)) {
            // What was said already it says again.
            Some(relay) => self.relay.set(relay).map_or(Ok(false), |()| Ok(true)),
            // There will be one soon.
            None => empty(&self.event),
        }
    }
}

impl AsFd for EventListener {
    /// What becomes readable when there is something to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.relay.get().map_or(self.event.as_fd(), |relay| relay.0.told.as_fd())
    }
}

/// Offset -1: the current position, as read(2) would; NOWAIT: whatever the mode of the descriptor is. Between a look and a read, its other
/// holder may take what was there.
fn empty(event: &OwnedFd) -> Result<bool, Errno> {
    match preadv2(event, &mut [IoSliceMut::new(&mut [0; 8])], u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A thread that passes on what an eventfd says. It ends when this is dropped.
#[derive(Debug)]
struct Relay(Arc<Line>);

#[derive(Debug)]
struct Line {
    event: Arc<OwnedFd>,
    /// What it says is said here, where nobody else listens.
    told: OwnedFd,
    /// Rung when it is over.
    bell: OwnedFd,
    over: AtomicBool,
}

impl Relay {
    fn spawn(event: Arc<OwnedFd>, place: Place) -> Option<Relay> {
        let own = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
        let relay = Relay(Arc::new(Line { event, told: own()?, bell: own()?, over: AtomicBool::new(false) }));
        let line = relay.0.clone();
        let run = move || {
            let _place = place;
            line.pass_on();
        };
        spawn_apart("eventfd", run).ok()?;
        Some(relay)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        let _ = write(&self.0.bell, &1u64.to_ne_bytes());
    }
}

impl Line {
    fn pass_on(&self) {
        while !self.over.load(Ordering::Acquire) {
            let _ = poll(&mut [PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&*self.event, PollFlags::IN)], None);
            if empty(&self.event) == Ok(true) {
                // A full counter says it as well.
                let _ = write(&self.told, &1u64.to_ne_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn is_readable(listener: &EventListener) -> bool {
        let limit = Duration::from_secs(10).try_into().unwrap();
        poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit)) == Ok(1)
    }

    #[test]
    fn all_that_is_said_is_heard_whoever_reads_it() {
        for slow in [false, true] {
            let peer = Peer::new(1);
            let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let theirs = fd.try_clone().unwrap();
            let listener = EventListener::new(fd, peer.clone());
            listener.try_out();
            assert_eq!(listener.take(), Ok(false), "nothing stays of that");
            let say = || assert_eq!(write(&theirs, &1u64.to_ne_bytes()), Ok(8));
            say();
            if slow {
                let begun = Instant::now();
                peer.judged(|| while begun.elapsed() < Duration::from_millis(500) {});
                assert!(peer.is_slow() && listener.take() == Ok(true), "it is looked at once more");
                assert!(listener.relay.get().is_some());
            }
            for _ in 0..100 {
                assert!(is_readable(&listener) && listener.take() == Ok(true));
                say();
            }
            let weak = Arc::downgrade(&listener.event);
            drop(listener);
            let until = Instant::now() + Duration::from_secs(20);
            while weak.strong_count() > 0 {
                assert!(Instant::now() < until, "the thread is still there");
                std::thread::yield_now();
            }
        }
    }
}
