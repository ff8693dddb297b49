//! Reservations as a future: who may use a disk that several hosts reach.

use crate::disk::Disk;
use crate::error::Error;
use polypath_block::{
    Code, Device, ReservationError, ReservationOp, ReservationReply, ReservationReport, ReservationResult,
};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How long an operation may take, unless told otherwise.
const LIMIT: Duration = Duration::from_secs(30);

impl Disk {
    /// Carries `op` out, over all paths of the disk: what is registered is registered on each before it carries I/O, and a path that comes
    /// later joins first. It goes on when the future is dropped.
    ///
    /// # Errors
    /// Of the future: [`Error::Reservation`]. With [`Code::OutcomeUnknown`] a report tells; it is not sent again.
    pub fn reservation(&self, op: ReservationOp) -> Reserving {
        reservation(&**self.device(), op, LIMIT)
    }
}

/// The same of any device; answered after about `limit`.
pub fn reservation(device: &dyn Device, op: ReservationOp, limit: Duration) -> Reserving {
    let shared = Arc::new(Mutex::new(Answer::default()));
    let reserving = Reserving { name: device.name().to_owned(), shared: shared.clone() };
    match device.reservations() {
        Some(power) => power.start(op, limit, ReservationReply::new(move |result| give(&shared, result))),
        None => {
            let reason = "it has no reservations; a slice's are those of its disk";
            give(&shared, Err(ReservationError::new(Code::Unsupported, reason)));
        }
    }
    reserving
}

#[derive(Default)]
struct Answer {
    result: Option<ReservationResult>,
    waker: Option<Waker>,
}

fn give(shared: &Mutex<Answer>, result: ReservationResult) {
    let mut answer = shared.lock().unwrap_or_else(PoisonError::into_inner);
    answer.result = Some(result);
    let waker = answer.waker.take();
    drop(answer);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// An operation on reservations that is under way. It brings a report where one was asked for.
#[must_use = "whether it was done is known when this completes"]
pub struct Reserving {
    name: String,
    shared: Arc<Mutex<Answer>>,
}

impl Future for Reserving {
    type Output = Result<Option<ReservationReport>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.result.take() {
            Some(result) => {
                Poll::Ready(result.map_err(|source| Error::Reservation { name: self.name.clone(), source }))
            }
            None => {
                answer.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
