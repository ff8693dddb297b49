//! One answer that somebody awaits, and somebody else gives, on any thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Shared by both sides.
pub(crate) struct Asked<T>(Arc<Mutex<Slot<T>>>);

struct Slot<T> {
    result: Option<T>,
    waker: Option<Waker>,
}

impl<T> Asked<T> {
    /// Nothing has been given yet.
    pub(crate) fn new() -> Self {
        Asked(Arc::new(Mutex::new(Slot { result: None, waker: None })))
    }

    /// Gives it.
    pub(crate) fn give(&self, result: T) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.result = Some(result);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// As [`std::future::Future::poll`]. It is taken once.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Clone for Asked<T> {
    fn clone(&self) -> Self {
        Asked(self.0.clone())
    }
}
