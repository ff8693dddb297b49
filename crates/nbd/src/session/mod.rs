//! One client: the handshake, then requests until it goes or the export ends.
//!
//! One task reads, one writes, and each request that is with the disk is a task of its own. What bounds them are the places of a client: a
//! request takes one when it is read, and gives it back when its reply was taken. Without a place, or without buffer memory for it,
//! nothing more is read, so that a client which does not take its replies is not heard any more, and let go after a while.
//!
//! Nothing is ever taken back from the disk: a session is over when its last request has completed, whatever has become of the client.

mod carry;
mod check;
mod inbound;
mod outbound;
mod pool;
#[cfg(test)]
mod tests;

pub(crate) use check::{Terms, fuzz_check};

use crate::export::{Entered, Export};
use crate::handshake::{Agreed, Answer, Ask, Handshake, HandshakeError, Next};
use crate::limits::Limits;
use crate::losses::Heard;
use crate::server::{Busy, Client, Exports};
use crate::wire::{Command, Errno, Request, WireError};
use check::{Action, Fault};
use inbound::Inbound;
use outbound::Outgoing;
use polypath::Disk;
use polypath::memory::MemoryError;
use pool::Pool;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// How long a client may hold up the end of its export: with a request that it has begun to send, or by not taking its replies.
const ENDING_LIMIT: Duration = Duration::from_secs(5);

/// Why a client was let go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// It does not speak the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It does not get through the handshake.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It takes longer than it may: over the handshake, over a request that it has begun, or over taking its replies.
    #[error("it is too slow: a message that it has begun to send, or its replies, must be over in time")]
    Slow,
    /// It has closed its end in the middle of a message.
    #[error("it has closed its end in the middle of a message")]
    Cut,
    /// The connection failed.
    #[error("connection: {0}")]
    Connection(std::io::Error),
    /// There is no buffer memory for it.
    #[error("no buffer memory: {0}")]
    Memory(#[from] MemoryError),
}

/// How a session ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client took leave.
    Left,
    /// The client closed its end without a word, between requests.
    Closed,
    /// The export, or the server, ended.
    Ended,
    /// Somebody else has its place, or it was in its handshake when the server ended.
    Unwanted,
}

/// Serves one client over `reader` and `writer`, as long as it has its place.
pub(crate) async fn serve<R, W>(
    reader: R,
    mut writer: W,
    exports: &Exports,
    limits: Limits,
    client: &Client,
) -> Result<End, SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let mut inbound = Inbound::new(reader, limits);
    let shaken = tokio::select! {
        biased;
        // Nothing of it is with the disk.
        () = client.unwanted() => return Ok(End::Unwanted),
        shaken = timeout(limits.handshake, shake(&mut inbound, &mut writer, exports)) => shaken,
    };
    let session = match shaken.map_err(|_| SessionError::Slow)?? {
        Shaken::Go(session) => Arc::new(session),
        Shaken::Over(end) => return Ok(end),
    };
    let ended = match client.begun() {
        true => transmit(&session, &mut inbound, writer, client).await,
        false => Ok(End::Unwanted),
    };
    if !matches!(ended, Ok(End::Left)) {
        session.heard.hand_on(&session.export.losses, session.disk.device().losses());
    }
    ended
}

/// What the requests of one client share.
pub(crate) struct Session {
    export: Arc<Export>,
    disk: Disk,
    terms: Terms,
    pool: Pool,
    heard: Heard,
    limits: Limits,
    _entered: Entered,
}

enum Shaken {
    Go(Session),
    Over(End),
}

/// The handshake, to the end of its last reply.
async fn shake<R, W>(inbound: &mut Inbound<R>, writer: &mut W, exports: &Exports) -> Result<Shaken, SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut handshake = Handshake::new();
    let mut next = Next::More(handshake.wants());
    // What was asked for last.
    let mut found = None;
    loop {
        writer.write_all(&handshake.output()).await.map_err(SessionError::Connection)?;
        next = match next {
            Next::More(len) => match inbound.exact(len).await? {
                Some(octets) => handshake.take(octets)?,
                None => return Ok(Shaken::Over(End::Closed)),
            },
            Next::Ask(Ask::List) => handshake.answer(exports.list())?,
            Next::Ask(Ask::Export(name)) => {
                let (answer, export) = find(exports, &name).await;
                found = export;
                handshake.answer(answer)?
            }
            Next::Go(agreed) => {
                let Some(found) = found else { return Err(HandshakeError::Misused.into()) };
                return Ok(Shaken::Go(begin(found, agreed, inbound.limits())?));
            }
            Next::End => return Ok(Shaken::Over(End::Left)),
        };
    }
}

/// An export that a client has asked for, its disk, and what the client was told of it.
type Found = (Arc<Export>, Disk, Terms);

/// The export that a client calls `name`.
async fn find(exports: &Exports, name: &str) -> (Answer, Option<Found>) {
    if exports.is_ending() {
        return (Answer::Shutdown, None);
    }
    let export = match exports.find(name) {
        Ok(export) => export,
        Err(why) => return (Answer::Unknown(why), None),
    };
    match export.disk().await {
        Ok(disk) => {
            let (disk, terms) = (disk.clone(), export.terms(disk));
            (Answer::Export(export.offer(&terms)), Some((export, disk, terms)))
        }
        Err(error) => (Answer::Unknown(format!("it cannot be used now: {error}")), None),
    }
}

fn begin((export, disk, terms): Found, agreed: Agreed, limits: Limits) -> Result<Session, SessionError> {
    let entered = export.enter();
    let terms = Terms { structured: agreed.structured, allocation: agreed.allocation, ..terms };
    let heard = Heard::new(&export.losses, disk.device().losses());
    let pool = Pool::new(limits.buffer_bytes)?;
    Ok(Session { export, disk, terms, pool, heard, limits, _entered: entered })
}

/// The transmission, until nothing of this client is with the disk and its replies are sent, or cannot be.
async fn transmit<R, W>(
    session: &Arc<Session>,
    inbound: &mut Inbound<R>,
    writer: W,
    client: &Client,
) -> Result<End, SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let most = usize::from(session.limits.requests);
    let (replies, replied) = tokio::sync::mpsc::channel(most);
    let mut sending = tokio::spawn(outbound::run(writer, replied, session.limits, session.export.ending()));
    let mut hub = Hub { session, client, places: Arc::new(Semaphore::new(most)), replies, tasks: JoinSet::new() };
    let mut ended = hub.listen(inbound).await;
    if let Ok(End::Ended) = ended {
        ended = hub.refuse(inbound).await;
    }
    while let Some(done) = hub.tasks.join_next().await {
        told(done);
    }
    // Nobody sends any more: what is left goes out, and that is the end.
    drop(hub);
    let sent = tokio::select! {
        biased;
        sent = &mut sending => sent.unwrap_or_else(|error| Err(SessionError::Connection(error.into()))),
        () = overdue(session) => {
            sending.abort();
            Err(SessionError::Slow)
        }
    };
    ended.and_then(|end| sent.map(|()| end))
}

/// Completes when the export ends and its clients have had their time.
async fn overdue(session: &Session) {
    // It is an error only if the sender has gone, and the session has it.
    let _ = session.export.ending().wait_for(|ending| *ending).await;
    sleep(ENDING_LIMIT).await;
}

/// What brings requests to the disk, and their replies back.
struct Hub<'a> {
    session: &'a Arc<Session>,
    client: &'a Client,
    places: Arc<Semaphore>,
    replies: Sender<Outgoing>,
    tasks: JoinSet<()>,
}

/// What a request has until its reply was taken: a place among those of its client, who keeps its own meanwhile.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _busy: Busy,
}

impl Hub<'_> {
    /// Takes requests until the client goes, fails, or the export ends.
    async fn listen<R: AsyncRead + Unpin>(&mut self, inbound: &mut Inbound<R>) -> Result<End, SessionError> {
        let mut ending = self.session.export.ending();
        loop {
            while let Some(done) = self.tasks.try_join_next() {
                told(done);
            }
            let request = tokio::select! {
                biased;
                _ = ending.wait_for(|ending| *ending) => return Ok(End::Ended),
                // Its replies cannot be sent: why, says whoever sends them.
                () = self.replies.closed() => return Ok(End::Closed),
                () = self.client.unwanted() => return Ok(End::Unwanted),
                request = inbound.request() => match request? {
                    Some(request) => request,
                    None => return Ok(End::Closed),
                },
            };
            let Some(place) = self.place().await else { return Ok(End::Unwanted) };
            match check::check(&request, &self.session.terms) {
                Ok(Action::Leave) => return Ok(End::Left),
                Ok(action) => self.begin(inbound, request, action, place).await?,
                Err(fault) => self.fail(inbound, request, &fault, place).await?,
            }
        }
    }

    /// The export ends: what is with the disk is answered, and what comes meanwhile is told so, also for a moment after that.
    async fn refuse<R: AsyncRead + Unpin>(&mut self, inbound: &mut Inbound<R>) -> Result<End, SessionError> {
        let fault = Fault::new(Errno::Shutdown, "the export ends");
        let (mut until, due) = (None, Instant::now() + ENDING_LIMIT);
        loop {
            if self.tasks.is_empty() && until.is_none() {
                until = Some(Instant::now() + self.session.limits.linger);
            }
            let request = tokio::select! {
                biased;
                Some(done) = self.tasks.join_next() => {
                    told(done);
                    continue;
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return Ok(End::Ended),
                () = self.replies.closed() => return Ok(End::Ended),
                request = inbound.request() => match request? {
                    Some(request) => request,
                    None => return Ok(End::Ended),
                },
            };
            if request.command == Command::Disconnect {
                return Ok(End::Left);
            }
            let refused = async {
                let Some(place) = self.place().await else { return Ok(Some(End::Unwanted)) };
                self.fail(inbound, request, &fault, place).await.map(|()| None)
            };
            match timeout_at(due, refused).await {
                Ok(refused) => {
                    if let Some(end) = refused? {
                        return Ok(end);
                    }
                }
                Err(_) => return Ok(End::Ended),
            }
        }
    }

    /// A place for one more request, as soon as there is one. `None`: somebody else has the client's, which has to go.
    async fn place(&self) -> Option<Place> {
        let _busy = self.client.busy()?;
        let _permit = self.places.clone().acquire_owned().await.expect("nobody closes the places of a client");
        Some(Place { _permit, _busy })
    }

    /// Gives a request to the disk.
    async fn begin<R: AsyncRead + Unpin>(
        &mut self,
        inbound: &mut Inbound<R>,
        request: Request,
        action: Action,
        place: Place,
    ) -> Result<(), SessionError> {
        let mut data = match action {
            Action::Read | Action::Write { .. } => Some(self.session.pool.lease(request.length).await),
            _ => None,
        };
        if let (Action::Write { .. }, Some(buffer)) = (action, data.as_mut().and_then(pool::Leased::buffer)) {
            tokio::select! {
                biased;
                whole = inbound.payload(buffer) => whole?,
                () = overdue(self.session) => return Err(SessionError::Slow),
            }
        }
        let (session, replies) = (self.session.clone(), self.replies.clone());
        self.tasks.spawn(async move {
            let (head, data) = carry::carry(&session, request, action, data).await;
            outbound::reply(&replies, head, data, place).await;
        });
        Ok(())
    }

    /// Answers a request that is not carried out.
    async fn fail<R: AsyncRead + Unpin>(
        &mut self,
        inbound: &mut Inbound<R>,
        request: Request,
        fault: &Fault,
        place: Place,
    ) -> Result<(), SessionError> {
        tokio::select! {
            biased;
            whole = inbound.skip(request.payload()) => whole?,
            () = overdue(self.session) => return Err(SessionError::Slow),
        }
        let counters = &self.session.export.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.errors.fetch_add(1, Ordering::Relaxed);
        let head = carry::failed(request.cookie, self.session.terms.structured, fault);
        outbound::reply(&self.replies, head, None, place).await;
        Ok(())
    }
}

/// A request that panicked has no reply: its client waits for it, and its place is free.
fn told(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        tracing::error!(%error, "a request was not carried to its end");
    }
}
