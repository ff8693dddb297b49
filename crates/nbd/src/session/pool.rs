//! Buffers of one client. They are an arena of its own: whatever a client makes us hold, others have theirs.

use polypath::memory::MemoryError;
use polypath::{Arena, Buffer};
use std::sync::Arc;
use tokio::sync::Notify;

/// The arena of one client. `Clone` shares it.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    arena: Arena,
    freed: Arc<Notify>,
}

impl Pool {
    /// One of `bytes`. The memory is taken as it is first used.
    pub(crate) fn new(bytes: u32) -> Result<Pool, MemoryError> {
        Ok(Pool { arena: Arena::new(bytes.into(), false)?, freed: Arc::default() })
    }

    /// A buffer of `len` bytes, at most as many as the pool has. Waits until there is room; what it waits for is this client's own.
    pub(crate) async fn lease(&self, len: u32) -> Leased {
        loop {
            if let Ok(buffer) = Buffer::new(&self.arena, len) {
                // Somebody else of this client may wait for less than was freed.
                self.freed.notify_one();
                return Leased { buffer: Some(buffer), freed: self.freed.clone() };
            }
            self.freed.notified().await;
        }
    }
}

/// A buffer that goes back to its pool.
#[derive(Debug)]
pub(crate) struct Leased {
    /// `None` while the disk has it.
    buffer: Option<Buffer>,
    freed: Arc<Notify>,
}

impl Leased {
    /// The buffer, if the disk does not have it.
    pub(crate) fn buffer(&mut self) -> Option<&mut Buffer> {
        self.buffer.as_mut()
    }

    /// Gives it to the disk.
    pub(crate) fn lend(&mut self) -> Option<Buffer> {
        self.buffer.take()
    }

    /// The disk gives it back.
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        self.buffer = Some(buffer);
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        // First the memory, then the word.
        drop(self.buffer.take());
        self.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// What `future` has at once.
    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_for_what_is_given_back() {
        let pool = Pool::new(64 << 10).unwrap();
        let all = pool.lease(64 << 10).await;
        let waiting = |len| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.lease(len).await })
        };
        let (one, two) = (waiting(32 << 10), waiting(32 << 10));
        tokio::task::yield_now().await;
        assert!(now(pool.lease(4096)).is_none(), "there is none");
        assert!(!one.is_finished() && !two.is_finished());
        drop(all);
        // One word for both.
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        assert!(now(pool.lease(4096)).is_none());
        drop((one, two));
        assert!(now(pool.lease(64 << 10)).is_some(), "in one piece again");
    }
}
