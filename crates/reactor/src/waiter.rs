//! One epoll descriptor that follows what pollers name from sleep to sleep.

use polypath_block::Interest;
use rustix::event::{Timespec, epoll};
use rustix::fd::{BorrowedFd, OwnedFd};
use std::io;
use std::time::Duration;

/// Longest sleep while some descriptor cannot be waited for: its owner is looked after this often instead.
const BLIND_LOOK: Duration = Duration::from_millis(10);
/// The numbers of those that are always waited for: no poller has them.
const MAILBOX: u64 = 0;
const RESTING: u64 = u64::MAX;

/// Knows what is registered with the kernel, so that a sleep that waits for the same things as the last one costs no system call but the wait.
pub(crate) struct Waiter {
    epoll: OwnedFd,
    /// The descriptors that are always waited for: the mailbox, and what wakes pollers that rest.
    always: [OwnedFd; 2],
    /// Sorted by number and descriptor.
    registered: Vec<Interest>,
    events: Vec<epoll::Event>,
    /// Numbers of those that the kernel will not wait for.
    refused: Vec<u64>,
}

impl Waiter {
    pub(crate) fn new(mailbox: BorrowedFd<'_>, resting: BorrowedFd<'_>) -> io::Result<Self> {
        let always = [mailbox.try_clone_to_owned()?, resting.try_clone_to_owned()?];
        let epoll = new_epoll(&always)?;
        let (registered, events) = (Vec::with_capacity(64), Vec::with_capacity(64));
        Ok(Waiter { epoll, always, registered, events, refused: Vec::new() })
    }

    /// Makes the kernel wait for exactly `wanted`. `wanted` is sorted on the way.
    ///
    /// A descriptor that the kernel will not wait for (a regular file that a stranger passed off as an eventfd) is said so once,
    /// and shortens sleeps: it must not cost the others theirs.
    pub(crate) fn follow(&mut self, wanted: &mut Vec<Interest>) {
        sort(wanted);
        if *wanted == self.registered {
            return;
        }
        // Leave first, then join: a descriptor number may have passed from a closed file to a new one.
        for old in &self.registered {
            if wanted.binary_search_by_key(&(old.id, old.fd), |i| (i.id, i.fd)).is_err() {
                // Files closed everywhere have left by themselves. One that somebody else still has open stays until it
                // makes itself felt: see `wait`.
                let _ = epoll::delete(&self.epoll, borrow(old.fd));
            }
        }
        self.refused.retain(|&id| wanted.iter().any(|i| i.id == id));
        for new in wanted.iter() {
            let (data, flags) = (epoll::EventData::new_u64(new.id), flags(new));
            let known = self.registered.binary_search_by_key(&(new.id, new.fd), |i| (i.id, i.fd)).ok();
            let result = match known {
                Some(at) if self.registered[at] == *new => continue,
                Some(_) => epoll::modify(&self.epoll, borrow(new.fd), data, flags),
                None => match epoll::add(&self.epoll, borrow(new.fd), data, flags) {
                    Err(rustix::io::Errno::EXIST) => epoll::modify(&self.epoll, borrow(new.fd), data, flags),
                    other => other,
                },
            };
            if let Err(error) = result
                && !self.refused.contains(&new.id)
            {
                self.refused.push(new.id);
                tracing::error!(fd = new.fd, %error, "a descriptor cannot be waited for; its owner is looked after from time to time");
            }
        }
        self.registered.clear();
        self.registered.extend_from_slice(wanted);
    }

    /// Sleeps until something registered happens or `limit` passes; says whether the mailbox was among what happened.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        let blind = (!self.refused.is_empty()).then_some(BLIND_LOOK);
        let limit = limit.into_iter().chain(blind).min();
        let limit =
            limit.map(|d| Timespec { tv_sec: d.as_secs().min(86_400) as i64, tv_nsec: d.subsec_nanos().into() });
        self.events.clear();
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, spare, limit.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let ours = |id: u64| id == MAILBOX || id == RESTING || self.is_wanted(id);
        if !self.events.iter().all(|e| ours(e.data.u64())) {
            self.start_afresh()?;
        }
        Ok(self.events.iter().any(|e| e.data.u64() == MAILBOX))
    }

    fn is_wanted(&self, id: u64) -> bool {
        let at = self.registered.partition_point(|i| i.id < id);
        self.registered.get(at).is_some_and(|i| i.id == id)
    }

    /// We closed a descriptor before we let go of it, and another process (a front-end that shares its eventfd with us) has
    /// the file open still: the kernel goes on reporting it, and no descriptor is left to take it out by. Only a new epoll
    /// descriptor forgets it; without, every sleep would end at once for as long as that process likes.
    #[cold]
    fn start_afresh(&mut self) -> io::Result<()> {
        self.epoll = new_epoll(&self.always)?;
        self.registered.clear();
        self.refused.clear();
        Ok(())
    }
}

fn new_epoll([mailbox, resting]: &[OwnedFd; 2]) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, mailbox, epoll::EventData::new_u64(MAILBOX), epoll::EventFlags::IN)?;
    epoll::add(&epoll, resting, epoll::EventData::new_u64(RESTING), epoll::EventFlags::IN)?;
    Ok(epoll)
}

/// Sorts by number and descriptor, and makes one of what is named twice.
pub(crate) fn sort(wanted: &mut Vec<Interest>) {
    wanted.sort_unstable_by_key(|i| (i.id, i.fd));
    wanted.dedup_by(|b, a| {
        let same = a.id == b.id && a.fd == b.fd;
        if same {
            a.read |= b.read;
            a.write |= b.write;
        }
        same
    });
}

pub(crate) fn flags(interest: &Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, interest.read);
    flags.set(epoll::EventFlags::OUT, interest.write);
    flags
}

#[allow(
    unsafe_code,
    reason = "descriptors are named as numbers across the contract, which is free of the operating system"
)]
pub(crate) fn borrow(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: only handed to epoll_ctl, which checks the number itself: a stale one costs EBADF, not soundness. -1 cannot come: see `Waits`.
    unsafe { BorrowedFd::borrow_raw(fd.max(0)) }
}
