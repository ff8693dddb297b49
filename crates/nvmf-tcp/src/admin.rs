//! Admin commands as futures that the admin poller drives: no executor, no thread, no lock.
//!
//! The poller sets the time, moves bytes, and polls one future with a waker that does nothing. A future that waits for a time
//! notes it in [`Admin::deadline`], so that the reactor can sleep exactly that long.

use crate::link::{Broken, Link, Transfer};
use polypath_block::{Code, Cx, SegRow, SegTable, SegTableFull, Slots, SlotKey, Time};
use polypath_memory::{Arena, Chunk, MemoryError};
use polypath_nvme::{Cqe, Sqe, StatusField};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Commands that the admin queue holds at a time, asynchronous event requests included.
pub(crate) const ADMIN_DEPTH: u16 = 31;
/// Most data of one admin command.
pub(crate) const ADMIN_DATA: u32 = 64 << 10;

/// Why an association came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Self {
        Fault { code, reason: reason.into() }
    }
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Fault { code: broken.code, reason: broken.reason }
    }
}

struct Ticket {
    /// Holds the memory of the command until it is answered or the connection is closed.
    chunk: Option<Chunk>,
    row: u32,
    answer: Option<Cqe>,
}

/// One admin connection and the commands on it.
pub(crate) struct Admin {
    pub(crate) now: Time,
    /// The earliest time any future waits for.
    pub(crate) deadline: Time,
    link: Option<Link>,
    broken: Option<Fault>,
    /// When anything last came from the controller.
    pub(crate) heard: Time,
    tickets: Slots<Ticket>,
    arena: Arena,
    rows: SegRow,
}

/// The handle that futures share with their poller. Never borrowed across an `await`.
pub(crate) type Handle = Rc<RefCell<Admin>>;

/// What a command brought.
pub(crate) struct Answer {
    pub(crate) cqe: Cqe,
    pub(crate) data: Vec<u8>,
}

/// Data of an admin command.
#[derive(Clone, Copy)]
pub(crate) enum Data<'a> {
    None,
    Out(&'a [u8]),
    In(u32),
}

impl Admin {
    pub(crate) fn new(segs: &mut SegTable, now: Time) -> Result<Admin, SetupError> {
        let arena = Arena::new(u64::from(ADMIN_DATA) * 4, false)?;
        let rows = segs.reserve(u32::from(ADMIN_DEPTH), 1)?;
        Ok(Admin {
            now,
            deadline: Time::NEVER,
            link: None,
            broken: None,
            heard: now,
            tickets: Slots::new(ADMIN_DEPTH),
            arena,
            rows,
        })
    }

    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    pub(crate) fn set_link(&mut self, link: Link) {
        self.link = Some(link);
        self.broken = None;
        self.heard = self.now;
    }

    /// Closes the connection abortively and forgets the commands on it.
    pub(crate) fn close(&mut self) -> bool {
        let keys: Vec<SlotKey> = self.tickets.iter().map(|(key, _)| key).collect();
        let had = match self.link.take() {
            Some(mut link) => {
                link.abort();
                true
            }
            None => false,
        };
        keys.into_iter().for_each(|key| drop(self.tickets.remove(key)));
        had
    }

    /// Moves bytes both ways; says whether anything moved.
    pub(crate) fn pump(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        if self.broken.is_some() {
            return false;
        }
        let tickets = &mut self.tickets;
        let moved = link.receive(cx, |done| {
            if let Some(ticket) = tickets.get_mut(SlotKey::from_u32(done.user as u32)) {
                ticket.answer = Some(done.cqe);
            }
        });
        let result = moved.and_then(|moved| link.flush(cx).map(|_| moved));
        match result {
            Ok(true) => {
                self.heard = cx.now;
                true
            }
            Ok(false) => false,
            Err(broken) => {
                self.broken = Some(broken.into());
                true
            }
        }
    }

    fn start(&mut self, cx_segs: &mut SegTable, sqe: Sqe, data: Data<'_>) -> Option<SlotKey> {
        if self.tickets.is_full() {
            return None;
        }
        let link = self.link.as_mut()?;
        let len = match data {
            Data::None => 0,
            Data::Out(bytes) => bytes.len() as u32,
            Data::In(len) => len,
        };
        let chunk = if len > 0 { Some(self.arena.chunk(len)?) } else { None };
        let key = self.tickets.insert(Ticket { chunk, row: 0, answer: None }).ok()?;
        let row = u32::from(key.index());
        let ticket = self.tickets.get_mut(key).expect("just put in");
        ticket.row = row;
        let transfer = match (&ticket.chunk, data) {
            (Some(chunk), Data::Out(bytes)) => {
                chunk.window().copy_in(0, bytes).expect("the chunk is as long as the data");
                let span = self.rows.span(row, 1);
                cx_segs.get_mut(span)[0] = chunk.segment();
                Transfer::Out { span, skip: 0, len }
            }
            (Some(chunk), _) => {
                chunk.window().copy_in(0, &vec![0; len as usize]).expect("the chunk is as long as the data");
                let span = self.rows.span(row, 1);
                cx_segs.get_mut(span)[0] = chunk.segment();
                Transfer::In { span, skip: 0, len }
            }
            (None, _) => Transfer::None,
        };
        if link.submit(sqe, transfer, u64::from(key.as_u32()), cx_segs).is_err() {
            self.tickets.remove(key);
            return None;
        }
        Some(key)
    }

    fn finish(&mut self, key: SlotKey) -> Option<Answer> {
        self.tickets.get(key)?.answer?;
        let ticket = self.tickets.remove(key)?;
        let cqe = ticket.answer?;
        let data = match &ticket.chunk {
            Some(chunk) if cqe.status.is_success() => {
                let mut data = vec![0; chunk.len() as usize];
                chunk.window().copy_out(0, &mut data).expect("the chunk is as long as the data");
                data
            }
            _ => Vec::new(),
        };
        Some(Answer { cqe, data })
    }

    pub(crate) fn wait_until(&mut self, at: Time) -> bool {
        if self.now >= at {
            return true;
        }
        self.deadline = self.deadline.min(at);
        false
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        self.broken.clone()
    }

    /// Gives the rows back; the poller is done with it.
    pub(crate) fn dissolve(self, segs: &mut SegTable) {
        segs.release(self.rows);
    }
}

/// The admin side could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("no memory for admin commands: {0}")]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Segments(#[from] SegTableFull),
}

thread_local! {
    /// The segment table of the turn: futures cannot carry the poller's context, and commands are started inside them.
    static ORDERS: RefCell<Vec<()>> = const { RefCell::new(Vec::new()) };
}

/// Waits until `at`.
pub(crate) async fn sleep_until(admin: &Handle, at: Time) {
    poll_fn(|_| if admin.borrow_mut().wait_until(at) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Polls `future` once, with a waker that does nothing: the poller polls every turn anyway.
pub(crate) fn poll_once<T>(future: &mut Pin<Box<dyn Future<Output = T>>>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}
