//! One epoll descriptor that follows what pollers name from sleep to sleep.

use polypath_block::Interest;
use rustix::event::{Timespec, epoll};
use rustix::fd::{BorrowedFd, OwnedFd};
use std::io;
use std::time::Duration;

/// Knows what is registered with the kernel, so that a sleep that waits for the same things as the last one costs no system call but the wait.
pub(crate) struct Waiter {
    epoll: OwnedFd,
    registered: Vec<Interest>,
    events: Vec<epoll::Event>,
}

impl Waiter {
    pub(crate) fn new(always: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, always, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(Waiter { epoll, registered: Vec::with_capacity(64), events: Vec::with_capacity(64) })
    }

    /// Makes the kernel wait for exactly `wanted`. `wanted` is sorted on the way.
    pub(crate) fn follow(&mut self, wanted: &mut Vec<Interest>) -> io::Result<()> {
        wanted.sort_unstable_by_key(|i| (i.id, i.fd));
        wanted.dedup_by(|b, a| {
            let same = a.id == b.id && a.fd == b.fd;
            if same {
                a.read |= b.read;
                a.write |= b.write;
            }
            same
        });
        if *wanted == self.registered {
            return Ok(());
        }
        // Leave first, then join: a descriptor number may have passed from a closed file to a new one.
        for old in &self.registered {
            if wanted.binary_search_by_key(&(old.id, old.fd), |i| (i.id, i.fd)).is_err() {
                // Closed files have left by themselves; a number that now belongs to another file is not ours to remove twice.
                let _ = epoll::delete(&self.epoll, borrow(old.fd));
            }
        }
        for new in wanted.iter() {
            let flags = flags(new);
            match self.registered.binary_search_by_key(&(new.id, new.fd), |i| (i.id, i.fd)) {
                Ok(at) if self.registered[at] == *new => {}
                Ok(_) => epoll::modify(&self.epoll, borrow(new.fd), epoll::EventData::new_u64(new.id), flags)?,
                Err(_) => match epoll::add(&self.epoll, borrow(new.fd), epoll::EventData::new_u64(new.id), flags) {
                    Err(rustix::io::Errno::EXIST) => {
                        epoll::modify(&self.epoll, borrow(new.fd), epoll::EventData::new_u64(new.id), flags)?;
                    }
                    other => other?,
                },
            }
        }
        self.registered.clear();
        self.registered.extend_from_slice(wanted);
        Ok(())
    }

    /// Sleeps until something registered happens or `limit` passes; says whether the mailbox was among what happened.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        let limit =
            limit.map(|d| Timespec { tv_sec: d.as_secs().min(86_400) as i64, tv_nsec: d.subsec_nanos().into() });
        self.events.clear();
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, spare, limit.as_ref()) {
            Ok(_) => Ok(self.events.iter().any(|e| e.data.u64() == 0)),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn flags(interest: &Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, interest.read);
    flags.set(epoll::EventFlags::OUT, interest.write);
    flags
}

#[allow(
    unsafe_code,
    reason = "descriptors are named as numbers across the contract, which is free of the operating system"
)]
fn borrow(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: only handed to epoll_ctl, which checks the number itself: a stale one costs EBADF, not soundness. -1 cannot come: see `Waits`.
    unsafe { BorrowedFd::borrow_raw(fd.max(0)) }
}
