//! How other threads reach a reactor: closures under a mutex, a flag that says there are some, an eventfd that ends a sleep.

use polypath_block::{Cx, MakePoller};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// What other threads ask of a reactor.
pub(crate) enum Message {
    Spawn(MakePoller),
    Run(Box<dyn FnOnce(&mut Cx<'_>) + Send>),
    Stop,
}

pub(crate) struct Mailbox {
    messages: Mutex<Vec<Message>>,
    full: AtomicBool,
    asleep: AtomicBool,
    /// Somebody has called since the reactor looked last.
    called: AtomicBool,
    closed: AtomicBool,
    event: OwnedFd,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox {
            messages: Mutex::new(Vec::new()),
            full: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            called: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            event,
        })
    }

    /// Posts a message; gives it back when the reactor has ended.
    pub(crate) fn post(&self, message: Message) -> Result<(), Message> {
        let mut messages = self.lock();
        if self.closed.load(Ordering::Relaxed) {
            return Err(message);
        }
        messages.push(message);
        self.full.store(true, Ordering::SeqCst);
        drop(messages);
        self.wake();
        Ok(())
    }

    /// Ends a sleep, if there is one, and the rest of pollers. Cheap when there is none.
    pub(crate) fn wake(&self) {
        // Pairs with `set_asleep`: what was stored before this call is seen by the sleeper's last look, or the sleeper is
        // seen here.
        std::sync::atomic::fence(Ordering::SeqCst);
        // For those that rest while the reactor is awake. They looked before they began to: whoever comes later is heard in the next turn.
        self.called.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow by ones, and a full one wakes as well.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    #[inline]
    pub(crate) fn has_messages(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Has somebody called?
    #[inline]
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::Relaxed)
    }

    /// Has somebody called since this was asked last? Whatever he did before is seen after this.
    #[inline]
    pub(crate) fn answer_call(&self) -> bool {
        self.is_called() && self.called.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn take(&self, into: &mut Vec<Message>) {
        let mut messages = self.lock();
        self.full.store(false, Ordering::SeqCst);
        into.append(&mut messages);
    }

    /// From now on messages and wakes write the eventfd. The caller must look for work once more after this.
    pub(crate) fn set_asleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Is awake again.
    pub(crate) fn set_awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Empties the eventfd after it ended a sleep. A waker that was seen before it wrote costs one vain wake-up later.
    pub(crate) fn drain(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
    }

    /// No more messages; what is there is dropped by the caller through `take`.
    pub(crate) fn close(&self) {
        let _messages = self.lock();
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.event.as_raw_fd()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Message>> {
        self.messages.lock().unwrap_or_else(|p| p.into_inner())
    }
}
