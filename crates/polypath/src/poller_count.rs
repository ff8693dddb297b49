//! How many pollers are still on the reactors, and waiting until none is: by a thread or by a future.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[derive(Default)]
struct State {
    count: usize,
    wakers: Vec<Waker>,
}

/// Counts pollers by the guards that they hold.
#[derive(Default)]
pub(crate) struct PollerCount {
    state: Mutex<State>,
    none: Condvar,
}

impl PollerCount {
    pub(crate) fn new() -> Arc<PollerCount> {
        Arc::default()
    }

    /// One more, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Guard {
        self.lock().count += 1;
        Guard(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().count
    }

    /// Waits until there is none, at most `limit`; says whether there is none.
    pub(crate) fn wait_none(&self, limit: Duration) -> bool {
        let (state, _) = self
            .none
            .wait_timeout_while(self.lock(), limit, |s| s.count > 0)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        state.count == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// One poller, counted until this is dropped.
pub(crate) struct Guard(Arc<PollerCount>);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.count -= 1;
        if state.count == 0 {
            let wakers = std::mem::take(&mut state.wakers);
            drop(state);
            self.0.none.notify_all();
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Completes when no poller is left.
pub(crate) struct NoPollers(pub(crate) Arc<PollerCount>);

impl Future for NoPollers {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.count == 0 {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|w| w.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
