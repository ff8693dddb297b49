//! Passthrough as a future: one command in the words of the protocol.

use crate::asked::Asked;
use crate::disk::Disk;
use crate::error::Error;
use polypath_block::{
    Code, Device, PassthroughAnswer, PassthroughError, PassthroughReply, PassthroughRequest, PassthroughResult,
};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

impl Disk {
    /// Sends one command over one path of the disk that speaks its protocol, and brings what the device answers, whatever that is. `limit` is for
    /// each path that is tried; a command that changes nothing is tried on another one when the first is lost. One that may change something is
    /// sent once: lost in the middle it ends when it is quiet, which may take longer. It goes on when the future is dropped.
    ///
    /// What would go behind the back of whoever else uses the disk is refused: reservations ([`Disk::reservation`]), flushes ([`Disk::flush`]),
    /// queues, what paths and fences go by. A slice passes nothing through.
    ///
    /// # Errors
    /// Of the future: [`Error::Passthrough`]. [`Code::Invalid`] and [`Code::Unsupported`]: nothing was sent. [`Code::OutcomeUnknown`]: it
    /// may have been carried out.
    pub fn passthrough(&self, request: PassthroughRequest, limit: Duration) -> Passing {
        passthrough(&**self.device(), request, limit)
    }
}

/// The same of any device.
pub fn passthrough(device: &dyn Device, request: PassthroughRequest, limit: Duration) -> Passing {
    let asked = Asked::new();
    let passing = Passing { name: device.name().to_owned(), asked: asked.clone() };
    match device.passthrough() {
        Some(power) => power.start(request, limit, PassthroughReply::new(move |result| asked.give(result))),
        None => {
            let reason = "it passes no commands through; those of a slice are its disk's";
            asked.give(Err(PassthroughError::new(Code::Unsupported, reason)));
        }
    }
    passing
}

/// A command that is under way.
#[must_use = "whether it was done is known when this completes"]
pub struct Passing {
    name: String,
    asked: Asked<PassthroughResult>,
}

impl Future for Passing {
    type Output = Result<PassthroughAnswer, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let wrong = |source| Error::Passthrough { name: self.name.clone(), source };
        self.asked.poll(cx).map(|result| result.map_err(wrong))
    }
}
