//! What wakes pollers that rest while others go on: one epoll descriptor for their interests, one heap for their deadlines.
//!
//! Unlike [`crate::waiter::Waiter`], which follows what all name for one sleep, this follows each by itself. A descriptor tells once and is
//! silent until its poller rests again (`EPOLLONESHOT`): a poller that is awake looks for itself. What is named again as it was costs no
//! system call.

use polypath_block::{Interest, Time};
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;

use crate::waiter::{borrow, flags};

/// Events taken at a time.
const EVENTS: usize = 64;

/// See the module. Pollers are known by their numbers.
pub(crate) struct Lot {
    epoll: OwnedFd,
    watched: HashMap<u64, Watched>,
    /// Which of those that are watched has a descriptor now: their numbers are used again.
    by_fd: HashMap<i32, u64>,
    /// Some are of pollers that do not rest any more, or until another time.
    deadlines: BinaryHeap<Reverse<(Time, u32)>>,
    events: Vec<epoll::Event>,
    /// Lists of pollers that were used before: who rests again and again costs no memory.
    spare: Vec<Vec<u32>>,
}

struct Watched {
    interest: Interest,
    /// It has not told since it was asked to.
    listening: bool,
    /// Several, for a descriptor that they share.
    pollers: Vec<u32>,
}

impl Lot {
    pub(crate) fn new() -> io::Result<Lot> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Lot {
            epoll,
            watched: HashMap::with_capacity(EVENTS),
            by_fd: HashMap::with_capacity(EVENTS),
            deadlines: BinaryHeap::with_capacity(4 * EVENTS),
            events: Vec::with_capacity(EVENTS),
            spare: (0..EVENTS).map(|_| Vec::with_capacity(2)).collect(),
        })
    }

    /// Readable when a descriptor has something to tell.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// `poller` rests until one of `wanted` happens. `named` is what it named when it rested last; from now on it is `wanted`.
    ///
    /// # Errors
    /// The kernel will not wait for one of them: the poller cannot rest.
    pub(crate) fn watch(
        &mut self,
        poller: u32,
        wanted: &mut Vec<Interest>,
        named: &mut Vec<Interest>,
    ) -> io::Result<()> {
        crate::waiter::sort(wanted);
        named.retain(|old| {
            let stays = wanted.binary_search_by_key(&(old.id, old.fd), |i| (i.id, i.fd)).is_ok();
            if !stays {
                self.leave(poller, old);
            }
            stays
        });
        for new in wanted.iter() {
            self.join(poller, new)?;
            if !named.iter().any(|i| i.id == new.id && i.fd == new.fd) {
                named.push(*new);
            }
        }
        Ok(())
    }

    /// `poller` has ended.
    pub(crate) fn forget(&mut self, poller: u32, named: &[Interest]) {
        named.iter().for_each(|interest| self.leave(poller, interest));
    }

    fn join(&mut self, poller: u32, new: &Interest) -> io::Result<()> {
        if let Some(watched) = self.watched.get_mut(&new.id)
            && watched.interest == *new
            && watched.listening
            && self.by_fd.get(&new.fd) == Some(&new.id)
        {
            if !watched.pollers.contains(&poller) {
                watched.pollers.push(poller);
            }
            return Ok(());
        }
        // Who shares a descriptor names it as it is now: the last word counts.
        let (data, flags) = (epoll::EventData::new_u64(new.id), flags(new) | epoll::EventFlags::ONESHOT);
        let fd = borrow(new.fd);
        match epoll::modify(&self.epoll, fd, data, flags) {
            Err(rustix::io::Errno::NOENT) => epoll::add(&self.epoll, fd, data, flags)?,
            other => other?,
        }
        self.by_fd.insert(new.fd, new.id);
        let spare = &mut self.spare;
        let watched = self.watched.entry(new.id).or_insert_with(|| Watched {
            interest: *new,
            listening: true,
            pollers: spare.pop().unwrap_or_default(),
        });
        (watched.interest, watched.listening) = (*new, true);
        if !watched.pollers.contains(&poller) {
            watched.pollers.push(poller);
        }
        Ok(())
    }

    fn leave(&mut self, poller: u32, old: &Interest) {
        let Some(watched) = self.watched.get_mut(&old.id) else { return };
        watched.pollers.retain(|&p| p != poller);
        if !watched.pollers.is_empty() {
            return;
        }
        if let Some(Watched { pollers, .. }) = self.watched.remove(&old.id) {
            self.spare.push(pollers);
        }
        // A closed one has left by itself, and its number may be another's by now. One whose file somebody else has open tells once more
        // at most, and nobody is known by its name then.
        if self.by_fd.get(&old.fd) == Some(&old.id) {
            self.by_fd.remove(&old.fd);
            let _ = epoll::delete(&self.epoll, borrow(old.fd));
        }
    }

    /// Calls `each` for the pollers whose descriptors have something to tell; says whether there may be more of them.
    pub(crate) fn look(&mut self, mut each: impl FnMut(u32)) -> io::Result<bool> {
        self.events.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&now)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            if let Some(watched) = self.watched.get_mut(&event.data.u64()) {
                watched.listening = false;
                watched.pollers.iter().for_each(|&poller| each(poller));
            }
        }
        Ok(self.events.len() == self.events.capacity())
    }

    /// `poller` rests until `at` at the latest. `is_so` tells for any poller and time whether that holds.
    pub(crate) fn until(&mut self, poller: u32, at: Time, pollers: usize, is_so: impl Fn(u32, Time) -> bool) {
        if self.deadlines.len() > 4 * pollers + EVENTS {
            self.deadlines.retain(|Reverse((at, poller))| is_so(*poller, *at));
        }
        self.deadlines.push(Reverse((at, poller)));
    }

    /// The first deadline; perhaps nobody rests until then any more.
    #[inline]
    pub(crate) fn first_deadline(&self) -> Time {
        self.deadlines.peek().map_or(Time::NEVER, |Reverse((at, _))| *at)
    }

    /// A deadline that has come by `now`.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<(Time, u32)> {
        if self.first_deadline() > now {
            return None;
        }
        self.deadlines.pop().map(|Reverse(due)| due)
    }
}
