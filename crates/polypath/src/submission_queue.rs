//! The queue by which the handles of a disk give operations to one reactor: a bounded channel, a line of futures that wait for room
//! in it, and a wake-up of the reactor.

use crate::op::Submission;
use polypath_block::Host;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

/// One per disk and reactor.
pub(crate) struct SubmissionQueue {
    tx: SyncSender<Submission>,
    capacity: usize,
    /// In the channel, or about to be.
    queued: AtomicUsize,
    waiters: Mutex<Waiters>,
    /// Length of the line, readable without its lock.
    waiting: AtomicUsize,
    /// The poller has looked for work for the last time before a sleep.
    idle: AtomicBool,
    closing: AtomicBool,
    host: Arc<dyn Host>,
}

#[derive(Default)]
struct Waiters {
    list: VecDeque<(u64, Waker)>,
    next: u64,
}

/// Why the queue did not take a submission; it is given back.
pub(crate) enum NotSent {
    Full(Submission),
    Closed(Submission),
}

impl SubmissionQueue {
    pub(crate) fn new(host: Arc<dyn Host>, capacity: usize) -> (Arc<SubmissionQueue>, Receiver<Submission>) {
        let (tx, rx) = sync_channel(capacity);
        let queue = SubmissionQueue {
            tx,
            capacity,
            queued: AtomicUsize::new(0),
            waiters: Mutex::default(),
            waiting: AtomicUsize::new(0),
            idle: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            host,
        };
        (Arc::new(queue), rx)
    }

    pub(crate) fn send(&self, submission: Submission) -> Result<(), NotSent> {
        if self.is_closing() {
            return Err(NotSent::Closed(submission));
        }
        // Before the send: a poller that is about to sleep must not miss it.
        self.queued.fetch_add(1, Ordering::SeqCst);
        match self.tx.try_send(submission) {
            Ok(()) => {
                self.wake_if_idle();
                Ok(())
            }
            Err(error) => {
                self.queued.fetch_sub(1, Ordering::SeqCst);
                Err(match error {
                    TrySendError::Full(s) => NotSent::Full(s),
                    TrySendError::Disconnected(s) => NotSent::Closed(s),
                })
            }
        }
    }

    /// Does anybody stand in line?
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Joins the line, at its head for one that was woken and found no room after all. The poller wakes it when there is some.
    pub(crate) fn add_waiter(&self, waker: &Waker, at_head: bool) -> u64 {
        let mut waiters = self.lock();
        let id = waiters.next;
        waiters.next += 1;
        if at_head {
            waiters.list.push_front((id, waker.clone()));
        } else {
            waiters.list.push_back((id, waker.clone()));
        }
        self.waiting.store(waiters.list.len(), Ordering::SeqCst);
        drop(waiters);
        self.wake_if_idle();
        id
    }

    /// Is `id` still in line? Then it is `waker` that will be woken.
    pub(crate) fn is_waiting(&self, id: u64, waker: &Waker) -> bool {
        let mut waiters = self.lock();
        let found = waiters.list.iter_mut().find(|(n, _)| *n == id);
        found.is_some_and(|(_, w)| {
            w.clone_from(waker);
            true
        })
    }

    pub(crate) fn remove_waiter(&self, id: u64) {
        let mut waiters = self.lock();
        waiters.list.retain(|(n, _)| *n != id);
        self.waiting.store(waiters.list.len(), Ordering::SeqCst);
    }

    /// No new submissions; what was taken completes, then the poller ends.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.wake_if_idle();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    fn wake_if_idle(&self) {
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::SeqCst) {
            self.host.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// The poller's side.
impl SubmissionQueue {
    /// It is awake.
    pub(crate) fn set_awake(&self) {
        if self.idle.load(Ordering::Relaxed) {
            self.idle.store(false, Ordering::SeqCst);
        }
    }

    /// From now on whoever submits or waits wakes the reactor. Look once more after this.
    pub(crate) fn set_idle(&self) {
        self.idle.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// One was taken out of the channel.
    pub(crate) fn taken(&self) {
        self.queued.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::SeqCst)
    }

    /// Is there room in the channel for somebody in line?
    pub(crate) fn can_wake_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0 && self.queued() < self.capacity
    }

    /// Wakes as many from the line as there is room for; all of them when it closes. `wakers` is empty before and after.
    pub(crate) fn wake_waiters(&self, wakers: &mut Vec<Waker>) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let room = if self.is_closing() { usize::MAX } else { self.capacity.saturating_sub(self.queued()) };
        let mut waiters = self.lock();
        let n = room.min(waiters.list.len());
        wakers.extend(waiters.list.drain(..n).map(|(_, w)| w));
        self.waiting.store(waiters.list.len(), Ordering::SeqCst);
        drop(waiters);
        wakers.drain(..).for_each(Waker::wake);
    }
}
