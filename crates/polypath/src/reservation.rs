//! Reservations as a future: who may use a disk that several hosts reach.

use crate::asked::Asked;
use crate::disk::Disk;
use crate::error::Error;
use polypath_block::{
    Code, Device, ReservationError, ReservationOp, ReservationReply, ReservationReport, ReservationResult,
};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
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
    let asked = Asked::new();
    let reserving = Reserving { name: device.name().to_owned(), asked: asked.clone() };
    match device.reservations() {
        Some(power) => power.start(op, limit, ReservationReply::new(move |result| asked.give(result))),
        None => {
            let reason = "it has no reservations; a slice's are those of its disk";
            asked.give(Err(ReservationError::new(Code::Unsupported, reason)));
        }
    }
    reserving
}

/// An operation on reservations that is under way. It brings a report where one was asked for.
#[must_use = "whether it was done is known when this completes"]
pub struct Reserving {
    name: String,
    asked: Asked<ReservationResult>,
}

impl Future for Reserving {
    type Output = Result<Option<ReservationReport>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let wrong = |source| Error::Reservation { name: self.name.clone(), source };
        self.asked.poll(cx).map(|result| result.map_err(wrong))
    }
}
