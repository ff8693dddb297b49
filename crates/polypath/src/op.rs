//! One operation: what the caller awaits, what travels to the reactor, and the cell that both hold.

use crate::buffer::Buffer;
use crate::disk::Disk;
use crate::error::Error;
use crate::submission_queue::{NotSent, SubmissionQueue};
use polypath_block::{Code, Flags, Op, Segment, Status};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// What is asked of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) flags: Flags,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
}

/// Shared by the future and, while it is under way, by the poller: the buffer stays here until both have let go, or it is handed back.
///
/// Its lock is held for a few instructions, and only these two can meet at it.
#[derive(Default)]
pub(crate) struct Cell {
    state: Mutex<CellState>,
}

#[derive(Default)]
struct CellState {
    buffer: Option<Buffer>,
    status: Option<Status>,
    waker: Option<Waker>,
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, CellState> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn complete(&self, status: Status) {
        let mut state = self.lock();
        state.status = Some(status);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The status if it is there; otherwise `waker` is woken when it comes.
    fn poll(&self, waker: &Waker) -> Option<Status> {
        let mut state = self.lock();
        if state.status.is_none() && !state.waker.as_ref().is_some_and(|w| w.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        state.status
    }
}

/// The right to complete a cell, exactly once: dropped unused it completes with [`Code::Gone`].
pub(crate) struct Ticket(Option<Arc<Cell>>);

impl Ticket {
    pub(crate) fn complete(mut self, status: Status) {
        if let Some(cell) = self.0.take() {
            cell.complete(status);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take() {
            cell.complete(Code::Gone.into());
        }
    }
}

/// What travels to the reactor.
pub(crate) struct Submission {
    pub(crate) request: Request,
    pub(crate) segment: Option<Segment>,
    pub(crate) ticket: Ticket,
}

enum Phase {
    /// It was wrong from the start.
    Wrong(Option<Error>),
    /// Not with the device yet; perhaps in line.
    Unsent(Option<Submission>),
    Sent,
    Over,
}

/// The common half of the two futures.
struct Pending {
    disk: Disk,
    request: Request,
    cell: Arc<Cell>,
    phase: Phase,
    submissions: Option<Arc<SubmissionQueue>>,
    waiter: Option<u64>,
}

impl Pending {
    fn new(disk: Disk, request: Result<Request, Error>, buffer: Option<Buffer>) -> Self {
        let segment = buffer.as_ref().map(Buffer::segment);
        let cell = Arc::new(Cell::default());
        cell.lock().buffer = buffer;
        let (request, phase) = match request {
            Ok(request) => {
                let ticket = Ticket(Some(cell.clone()));
                (request, Phase::Unsent(Some(Submission { request, segment, ticket })))
            }
            Err(error) => {
                (Request { op: Op::Flush, flags: Flags::empty(), lba: 0, blocks: 0 }, Phase::Wrong(Some(error)))
            }
        };
        Pending { disk, request, cell, phase, submissions: None, waiter: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Phase::Unsent(submission) = &mut self.phase {
            let Some(submission) = submission.take() else { return self.over(Err(self.disk.closed())) };
            if let Err(submission) = self.send(submission, cx.waker()) {
                self.phase = Phase::Unsent(Some(submission));
                return Poll::Pending;
            }
        }
        match &mut self.phase {
            Phase::Wrong(error) => {
                let error = error.take().unwrap_or_else(|| self.disk.closed());
                self.over(Err(error))
            }
            Phase::Sent => match self.cell.poll(cx.waker()) {
                None => Poll::Pending,
                Some(status) if status.is_ok() => self.over(Ok(())),
                Some(status) => self.over(Err(self.disk.failed(&self.request, status))),
            },
            Phase::Unsent(_) | Phase::Over => panic!("an operation was polled after it had completed"),
        }
    }

    /// Hands it to a reactor, or gives it back because it stands in line. The waker is then in the line.
    fn send(&mut self, submission: Submission, waker: &Waker) -> Result<(), Submission> {
        let disk = &self.disk;
        let submissions = self.submissions.get_or_insert_with(|| disk.submission_queue().clone());
        let woken = match self.waiter {
            Some(id) if submissions.is_waiting(id, waker) => return Err(submission),
            Some(_) => true,
            None => false,
        };
        // Nobody passes those who stand in line already.
        let sent = if !woken && submissions.has_waiters() && !submissions.is_closing() {
            Err(NotSent::Full(submission))
        } else {
            submissions.send(submission)
        };
        match sent {
            Ok(()) => {
                self.waiter = None;
                self.phase = Phase::Sent;
                Ok(())
            }
            Err(NotSent::Full(submission)) => {
                let id = submissions.add_waiter(waker, woken);
                self.waiter = Some(id);
                if submissions.is_closing() {
                    // The poller may have woken its last before we joined.
                    submissions.remove_waiter(id);
                    self.waiter = None;
                    self.phase = Phase::Wrong(Some(self.disk.closed()));
                    return Ok(());
                }
                Err(submission)
            }
            Err(NotSent::Closed(submission)) => {
                self.waiter = None;
                drop(submission);
                self.phase = Phase::Wrong(Some(self.disk.closed()));
                Ok(())
            }
        }
    }

    fn over(&mut self, result: Result<(), Error>) -> Poll<Result<(), Error>> {
        self.phase = Phase::Over;
        Poll::Ready(result)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let (Some(submissions), Some(id)) = (&self.submissions, self.waiter) {
            submissions.remove_waiter(id);
        }
    }
}

/// An operation that takes a [`Buffer`] and gives it back with the result.
///
/// Nothing happens until it is first polled. Dropped after that, the operation goes on and its buffer stays with the device until
/// it is done; then the memory returns to its arena.
#[must_use = "nothing happens until it is awaited"]
pub struct Transfer(Pending);

impl Transfer {
    pub(crate) fn new(disk: Disk, request: Result<Request, Error>, buffer: Buffer) -> Self {
        Transfer(Pending::new(disk, request, Some(buffer)))
    }
}

impl Future for Transfer {
    type Output = (Result<(), Error>, Buffer);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.0.poll(cx).map(|result| {
            let buffer = this.0.cell.lock().buffer.take();
            (result, buffer.expect("the buffer leaves its cell once, here"))
        })
    }
}

/// An operation without data: flush, discard, write zeroes. Nothing happens until it is first polled; dropped after that it goes on.
#[must_use = "nothing happens until it is awaited"]
pub struct Command(Pending);

impl Command {
    pub(crate) fn new(disk: Disk, request: Result<Request, Error>) -> Self {
        Command(Pending::new(disk, request, None))
    }
}

impl Future for Command {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().0.poll(cx)
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Transfer").field(&self.0.request).finish()
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Command").field(&self.0.request).finish()
    }
}
