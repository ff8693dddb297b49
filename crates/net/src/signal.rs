//! Signalling the eventfds of strangers without any chance to wait.
//!
//! A write to an eventfd waits while its counter is full, if the descriptor is a blocking one; and whoever shares the descriptor may
//! make it blocking, and fill it, at any time, also between a look and the write. So we do not write. Linux's asynchronous I/O
//! signals an eventfd when a request completes (`IOCB_FLAG_RESFD`, io_submit(2)), from inside the kernel, which never waits: a full
//! counter stays full, and its readers are woken all the same. The request is a read of no bytes from `/dev/zero`.
//!
//! A system may have no asynchronous I/O for us: for a moment (no descriptor for `/dev/zero`), while others have all of it (sysctl
//! fs.aio-max-nr), or at all. Then a thread of the notifier's own writes: that may wait, at the cost of nobody else. (`RWF_NOWAIT`, which
//! would need neither, is not for writes to eventfds.) So it is with a [`Peer`] whose eventfds take long to signal.

use crate::helper::Helper;
use crate::peer::Peer;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::cell::RefCell;
use std::io;
use std::os::raw::{c_long, c_ulong};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How many signals go by before asynchronous I/O is tried again after there was none to be had.
const SKIPS: u32 = 256;
/// Outcomes that may lie in a context before they are taken out.
const EVENTS: usize = 64;
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` of linux/aio_abi.h. (`key` and `rw_flags` change places on big-endian machines; both are zero.)
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// A thread's own context of asynchronous I/O.
struct Context {
    id: c_ulong,
    zero: OwnedFd,
    /// Outcomes that were not taken out.
    pending: usize,
}

/// What a thread has for its signals.
struct Own {
    context: Option<Context>,
    /// How many signals to go before it is tried again to make a context.
    skips: u32,
}

thread_local! {
    static OWN: RefCell<Own> = const { RefCell::new(Own::NEW) };
}

/// For threads that signal so seldom that they should not have a context of their own, of which a system has few.
static COMMON: Mutex<Own> = Mutex::new(Own::NEW);
static TOLD: AtomicBool = AtomicBool::new(false);

/// Why an eventfd was not signalled.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It is no eventfd.
    Descriptor(io::Error),
    /// There is no asynchronous I/O to be had, now or at all.
    Unavailable(io::Error),
}

/// Signals an eventfd of a stranger.
#[derive(Debug)]
pub struct EventNotifier {
    event: Arc<OwnedFd>,
    peer: Arc<Peer>,
    helper: OnceLock<Helper>,
}

impl EventNotifier {
    /// For `event` of `peer`, who may do with it what he likes.
    pub fn new(event: OwnedFd, peer: Arc<Peer>) -> EventNotifier {
        EventNotifier { event: Arc::new(event), peer, helper: OnceLock::new() }
    }

    /// Adds one to its counter, or leaves it full. Never waits, whatever the mode of the descriptor is and whoever changes it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for what is no eventfd. Any other: not now, for want of something that may be there again later.
    #[inline]
    pub fn notify(&self) -> io::Result<()> {
        if self.peer.is_slow() {
            return self.ask_helper(None);
        }
        let signal = || OWN.with_borrow_mut(|own| own.signal(self.event.as_fd()));
        match self.peer.timed(signal) {
            Ok(()) => Ok(()),
            Err(Failure::Descriptor(error)) => Err(error),
            Err(Failure::Unavailable(error)) => self.ask_helper(Some(&error)),
        }
    }

    /// Notifies once, to see how long that takes: at the cost of the calling thread, and not of the one that notifies from then on.
    pub fn try_out(&self) {
        // What fails now fails again when it is wanted.
        self.peer.try_out(|| drop(signal_seldom(self.event.as_fd())));
    }

    /// `why`: there is no asynchronous I/O.
    #[cold]
    fn ask_helper(&self, why: Option<&io::Error>) -> io::Result<()> {
        let helper = match self.helper.get() {
            Some(helper) => helper,
            None => {
                let none =
                    || io::Error::new(io::ErrorKind::WouldBlock, "threads wait for too many eventfds of its peer");
                let helper = Helper::spawn(self.event.clone(), self.peer.place().ok_or_else(none)?)?;
                self.helper.get_or_init(|| helper)
            }
        };
        // Once: whoever exchanges descriptors sets the pace of these.
        if let Some(error) = why
            && !TOLD.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "no asynchronous I/O (sysctl fs.aio-max-nr?); threads signal eventfds instead");
        }
        helper.ask();
        Ok(())
    }
}

impl AsFd for EventNotifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Signals from a thread that has no context of its own.
pub(crate) fn signal_seldom(eventfd: BorrowedFd<'_>) -> Result<(), Failure> {
    // Nobody is kept waiting by another's eventfd for long: a peer who has many wait is known after that, and does not come again.
    COMMON.lock().unwrap_or_else(PoisonError::into_inner).signal(eventfd)
}

impl Own {
    const NEW: Own = Own { context: None, skips: 0 };

    /// Adds one to the counter of `eventfd`, or leaves it full.
    fn signal(&mut self, eventfd: BorrowedFd<'_>) -> Result<(), Failure> {
        if let Some(context) = &mut self.context {
            return context.signal(eventfd);
        }
        if self.skips > 0 {
            self.skips -= 1;
            return Err(Failure::Unavailable(io::ErrorKind::WouldBlock.into()));
        }
        match Context::new() {
            Ok(context) => self.context.insert(context).signal(eventfd),
            Err(error) => {
                self.skips = SKIPS;
                Err(Failure::Unavailable(error))
            }
        }
    }
}

impl Context {
    fn new() -> io::Result<Context> {
        #[cfg(test)]
        tests::may_have_context()?;
        let zero = rustix::fs::open(
            "/dev/zero",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let mut id: c_ulong = 0;
        // SAFETY: the kernel writes one word to `id`, which lives through the call.
        if unsafe { libc::syscall(libc::SYS_io_setup, EVENTS as c_long, &raw mut id) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Context { id, zero, pending: 0 })
    }

    fn signal(&mut self, eventfd: BorrowedFd<'_>) -> Result<(), Failure> {
        if self.pending == EVENTS {
            self.take_out().map_err(Failure::Unavailable)?;
        }
        let iocb = Iocb {
            opcode: IOCB_CMD_PREAD,
            fd: self.zero.as_raw_fd() as u32,
            flags: IOCB_FLAG_RESFD,
            event_fd: eventfd.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let list = [&raw const iocb];
        // SAFETY: one request, read by the kernel within the call; it reads no bytes, so that its null buffer is never touched, and it
        // is complete when the call returns: nothing of ours is referred to afterwards.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1 as c_long, list.as_ptr()) };
        match submitted {
            1 => {
                self.pending += 1;
                Ok(())
            }
            0 => Err(Failure::Unavailable(io::ErrorKind::WouldBlock.into())),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::InvalidInput => Err(Failure::Descriptor(error)),
                error => Err(Failure::Unavailable(error)),
            },
        }
    }

    /// Reads of nothing complete as they are submitted: all outcomes are there.
    fn take_out(&mut self) -> io::Result<()> {
        let mut events = [IoEvent::default(); EVENTS];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most EVENTS outcomes to `events`; both live through the call.
        let taken = unsafe {
            let (least, most) = (0 as c_long, EVENTS as c_long);
            libc::syscall(libc::SYS_io_getevents, self.id, least, most, events.as_mut_ptr(), &raw const now)
        };
        match usize::try_from(taken) {
            Ok(taken) => {
                self.pending = self.pending.saturating_sub(taken);
                Ok(())
            }
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nothing is in flight in it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
    use rustix::io::Errno;
    use std::cell::Cell;
    use std::time::{Duration, Instant};

    thread_local! {
        static NO_CONTEXT: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn may_have_context() -> io::Result<()> {
        if NO_CONTEXT.get() { Err(io::Error::from(Errno::NOSYS)) } else { Ok(()) }
    }

    /// The thread has no asynchronous I/O while `with` runs.
    fn without_context<T>(with: impl FnOnce() -> T) -> T {
        OWN.with_borrow_mut(|own| (own.context, own.skips) = (None, 0));
        NO_CONTEXT.set(true);
        let result = with();
        NO_CONTEXT.set(false);
        result
    }

    fn notifier(flags: EventfdFlags) -> (OwnedFd, EventNotifier) {
        notifier_of(Peer::new(1), flags)
    }

    fn notifier_of(peer: Arc<Peer>, flags: EventfdFlags) -> (OwnedFd, EventNotifier) {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | flags).unwrap();
        (fd.try_clone().unwrap(), EventNotifier::new(fd, peer))
    }

    fn count(fd: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(fd, &mut bytes).expect("something was signalled");
        u64::from_ne_bytes(bytes)
    }

    fn is_readable(fd: &OwnedFd, limit: Duration) -> bool {
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit.try_into().unwrap())) == Ok(1)
    }

    #[test]
    fn every_signal_counts_whatever_the_mode() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let (fd, notifier) = notifier(flags);
            for n in [1, 2, 63, 64, 65, 1000] {
                (0..n).for_each(|_| notifier.notify().unwrap());
                assert_eq!(count(&fd), n);
            }
            assert!(notifier.helper.get().is_none());
        }
    }

    #[test]
    fn a_full_blocking_counter_is_left_full_at_once() {
        let (fd, notifier) = notifier(EventfdFlags::empty());
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send((0..200).try_for_each(|_| notifier.notify()).is_ok()));
        assert_eq!(wait.recv_timeout(Duration::from_secs(20)), Ok(true));
        // One more than a write could make it: that is the most.
        assert_eq!(count(&fd), u64::MAX, "and nothing was lost of it");
    }

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        for fd in [OwnedFd::from(socket), epoll] {
            assert_eq!(EventNotifier::new(fd, Peer::new(1)).notify().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn without_asynchronous_io_a_thread_writes() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let (fd, notifier) = notifier(flags);
            without_context(|| {
                for _ in 0..5 {
                    notifier.notify().unwrap();
                    assert!(is_readable(&fd, Duration::from_secs(10)), "nobody was told");
                    assert!(count(&fd) >= 1);
                }
            });
        }
    }

    #[test]
    fn a_thread_that_waits_for_room_ends_with_its_notifier() {
        let (fd, notifier) = notifier(EventfdFlags::empty());
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let weak = Arc::downgrade(&notifier.event);
        without_context(|| {
            let began = Instant::now();
            (0..100).for_each(|_| notifier.notify().unwrap());
            assert!(began.elapsed() < Duration::from_secs(5), "whoever asks does not wait");
        });
        drop(notifier);
        let until = Instant::now() + Duration::from_secs(20);
        while weak.strong_count() > 0 {
            assert!(Instant::now() < until, "the thread is still there");
            std::thread::yield_now();
        }
    }

    #[test]
    fn asynchronous_io_is_tried_again() {
        let (fd, notifier) = notifier(EventfdFlags::NONBLOCK);
        without_context(|| notifier.notify().unwrap());
        assert!(is_readable(&fd, Duration::from_secs(10)));
        for _ in 0..=SKIPS {
            notifier.notify().unwrap();
        }
        assert!(OWN.with_borrow(|own| own.context.is_some()));
    }

    /// A system without asynchronous I/O for us (any process may have all of it). One front-end exchanges the descriptor by which it is called
    /// again and again, each of them full; the threads that wait for room in what it has taken back are there for a while. It is called by
    /// the next one all the same, and so is a neighbour for the first time.
    #[test]
    fn descriptors_that_were_taken_back_keep_no_thread_from_others() {
        let hostile = Peer::new(2);
        let (heard, neighbour) = notifier(EventfdFlags::NONBLOCK);
        let (heard_too, own) = notifier_of(hostile.clone(), EventfdFlags::NONBLOCK);
        let took = without_context(|| {
            for _ in 0..1000 {
                let (fd, notifier) = notifier_of(hostile.clone(), EventfdFlags::empty());
                rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
                // Not now, at most.
                let _ = notifier.notify();
            }
            let begun = Instant::now();
            // As a ring does: what cannot be said now is said in a moment.
            for (notifier, heard) in [(&neighbour, &heard), (&own, &heard_too)] {
                while notifier.notify().is_err() || !is_readable(heard, Duration::from_millis(5)) {
                    assert!(begun.elapsed() < Duration::from_secs(20), "never");
                    std::thread::yield_now();
                }
            }
            begun.elapsed()
        });
        assert!(took < Duration::from_millis(50), "they are called after {took:?}");
    }

    #[test]
    fn who_has_many_wait_for_an_eventfd_is_signalled_by_threads() {
        const INSTANCES: usize = 300;
        let peer = Peer::new(2);
        let (fd, crowded) = notifier_of(peer.clone(), EventfdFlags::NONBLOCK);
        let copies: Vec<_> = (0..200).map(|_| fd.try_clone().unwrap()).collect();
        let instances: Vec<_> = (0..INSTANCES).map(|_| epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()).collect();
        for instance in &instances {
            for copy in &copies {
                epoll::add(instance, copy, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
            }
        }
        let signals = (1..1000).find(|_| {
            crowded.notify().unwrap();
            peer.is_slow()
        });
        assert!(crowded.helper.get().is_none());
        assert_eq!(Some(count(&fd)), signals);
        // All of the peer's, from now on, and nobody else's.
        for (of, by_thread) in [(&peer, true), (&Peer::new(2), false)] {
            let (heard, other) = notifier_of(of.clone(), EventfdFlags::NONBLOCK);
            other.notify().unwrap();
            assert!(is_readable(&heard, Duration::from_secs(10)) && other.helper.get().is_some() == by_thread);
        }
        let strict = Peer::new(2);
        let crowded = EventNotifier::new(fd, strict.clone());
        assert!((0..1000).any(|_| {
            crowded.try_out();
            strict.is_slow()
        }));
    }
}
