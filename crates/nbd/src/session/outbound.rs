//! What goes to a client: replies in the order in which they are ready, many small ones with one system call.

use super::pool::Leased;
use super::{ENDING_LIMIT, Place, SessionError};
use crate::limits::Limits;
use crate::wire::Head;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Octets that are sent at a time.
const BUFFER: usize = 256 << 10;

/// One reply. Its place among the requests of its client, and its buffer, are free again when the client has taken it.
pub(crate) struct Outgoing {
    pub(crate) head: Head,
    /// Data that follow, all of the buffer.
    pub(crate) data: Option<Leased>,
    pub(crate) _place: Place,
}

/// Sends what comes until nobody sends any more, then closes this direction. Ends early when the client does not take what it has
/// asked for, or has gone: whoever sends sees that by the channel, which is closed then. Once the export ends a client has
/// [`ENDING_LIMIT`] in all to take what it is sent: what it has not taken holds the places and the memory that others wait for.
pub(crate) async fn run<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut replies: Receiver<Outgoing>,
    limits: Limits,
    ending: watch::Receiver<bool>,
) -> Result<(), SessionError> {
    let buffer = vec![0; BUFFER].into();
    let mut out = Out { writer: &mut writer, buffer, len: 0, limits, ending, patience: ENDING_LIMIT };
    // Buffers and places of what is not sent yet.
    let mut unsent = Vec::new();
    while let Some(mut reply) = replies.recv().await {
        loop {
            out.put(reply.head.as_bytes()).await?;
            if let Some(data) = &mut reply.data {
                out.put_data(data).await?;
            }
            unsent.push(reply);
            match replies.try_recv() {
                Ok(next) => reply = next,
                Err(_) => break,
            }
            if out.len > BUFFER / 2 {
                out.send().await?;
                unsent.clear();
            }
        }
        out.send().await?;
        unsent.clear();
    }
    timeout(limits.stall, writer.shutdown()).await.map_err(|_| SessionError::Slow)?.map_err(SessionError::Connection)
}

struct Out<'a, W> {
    writer: &'a mut W,
    buffer: Box<[u8]>,
    /// Octets of it that wait to be sent.
    len: usize,
    limits: Limits,
    ending: watch::Receiver<bool>,
    /// How long the client may still take what it is sent, now that the export ends.
    patience: Duration,
}

impl<W: AsyncWrite + Unpin> Out<'_, W> {
    async fn put(&mut self, octets: &[u8]) -> Result<(), SessionError> {
        if self.len + octets.len() > BUFFER {
            self.send().await?;
        }
        self.buffer[self.len..self.len + octets.len()].copy_from_slice(octets);
        self.len += octets.len();
        Ok(())
    }

    /// A copy of what the disk has read: there is no other way to octets that devices write to.
    async fn put_data(&mut self, data: &mut Leased) -> Result<(), SessionError> {
        let Some(source) = data.buffer() else { return Ok(()) };
        let mut at = 0;
        while at < source.len() {
            if self.len == BUFFER {
                self.send().await?;
            }
            let len = (source.len() - at).min(BUFFER - self.len);
            // It lies inside of both.
            source.read_at(at, &mut self.buffer[self.len..self.len + len]).map_err(|_| SessionError::Cut)?;
            self.len += len;
            at += len;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), SessionError> {
        let octets = &self.buffer[..self.len];
        self.len = 0;
        let (began, ends) = (Instant::now(), *self.ending.borrow());
        let patience = self.patience;
        let overdue = async {
            // It is an error only if the export has gone, and the session has it.
            let _ = self.ending.wait_for(|ending| *ending).await;
            sleep(patience).await;
        };
        tokio::select! {
            biased;
            sent = timeout(self.limits.allowance(octets.len() as u64), self.writer.write_all(octets)) => {
                sent.map_err(|_| SessionError::Slow)?.map_err(SessionError::Connection)?;
            }
            () = overdue => return Err(SessionError::Slow),
        }
        if ends {
            self.patience = patience.saturating_sub(began.elapsed());
        }
        Ok(())
    }
}

/// Gives a reply to the one who sends. There is always room: as many as may be in flight fit in.
pub(crate) async fn reply(replies: &Sender<Outgoing>, head: Head, data: Option<Leased>, place: Place) {
    // If nobody sends any more, the session is ending.
    let _ = replies.send(Outgoing { head, data, _place: place }).await;
}
