//! What comes from a client: many small messages with one system call, data by way of one private buffer.

use super::SessionError;
use crate::limits::Limits;
use crate::wire::{REQUEST_LEN, Request};
use polypath::Buffer;
use std::io::ErrorKind;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

/// Octets that are read at a time. Options of a handshake fit in.
const BUFFER: usize = 128 << 10;

/// The reading half of a connection.
pub(crate) struct Inbound<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    limits: Limits,
    /// When the request that has begun must be there. Kept here, so that whoever looks away in between does not give it more time.
    due: Option<Instant>,
}

impl<R: AsyncRead + Unpin> Inbound<R> {
    pub(crate) fn new(reader: R, limits: Limits) -> Inbound<R> {
        Inbound { reader, buffer: vec![0; BUFFER].into(), start: 0, end: 0, limits, due: None }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The next `len` octets, which are no more than an option of a handshake has. `None`: the client has closed its end before the
    /// first of them. May be dropped and called again: nothing is lost.
    pub(crate) async fn exact(&mut self, len: usize) -> Result<Option<&[u8]>, SessionError> {
        debug_assert!(len <= self.buffer.len());
        while self.end - self.start < len {
            if self.fill().await? == 0 {
                return match self.start == self.end {
                    true => Ok(None),
                    false => Err(SessionError::Cut),
                };
            }
        }
        let at = self.start;
        self.start += len;
        Ok(Some(&self.buffer[at..at + len]))
    }

    /// The next request, for which a client may take its time; once it has begun it must come. `None`: the client has closed its end.
    /// May be dropped and called again.
    pub(crate) async fn request(&mut self) -> Result<Option<Request>, SessionError> {
        if self.start == self.end && self.due.is_none() && self.fill().await? == 0 {
            return Ok(None);
        }
        let due = *self.due.get_or_insert_with(|| Instant::now() + self.limits.allowance(REQUEST_LEN as u64));
        let octets = timeout_at(due, self.exact(REQUEST_LEN)).await.map_err(|_| SessionError::Slow)??;
        let request = octets.map(Request::parse).transpose()?;
        self.due = None;
        Ok(request)
    }

    /// Copies the data of a request to `buffer`, all of it.
    pub(crate) async fn payload(&mut self, buffer: &mut Buffer) -> Result<(), SessionError> {
        let mut at = 0;
        self.each(buffer.len(), |octets| {
            // It is as long as the data.
            let copied = buffer.write_at(at, octets);
            at += octets.len();
            copied.map_err(|_| SessionError::Cut)
        })
        .await
    }

    /// Passes over data of a request that is not carried out.
    pub(crate) async fn skip(&mut self, len: u32) -> Result<(), SessionError> {
        self.each(len as usize, |_| Ok(())).await
    }

    async fn each(
        &mut self,
        len: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let due = Instant::now() + self.limits.allowance(len as u64);
        let mut left = len;
        while left > 0 {
            if self.start == self.end {
                let filled = timeout_at(due, self.fill()).await.map_err(|_| SessionError::Slow)?;
                if filled? == 0 {
                    return Err(SessionError::Cut);
                }
            }
            let len = left.min(self.end - self.start);
            take(&self.buffer[self.start..self.start + len])?;
            self.start += len;
            left -= len;
        }
        Ok(())
    }

    /// Reads what there is; zero: there will be no more.
    async fn fill(&mut self) -> Result<usize, SessionError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            // Part of a message, which is shorter than the buffer.
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.reader.read(&mut self.buffer[self.end..]).await {
            Ok(len) => {
                self.end += len;
                Ok(len)
            }
            // Whoever closes with something unread resets the connection.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(0),
            Err(error) => Err(SessionError::Connection(error)),
        }
    }
}
