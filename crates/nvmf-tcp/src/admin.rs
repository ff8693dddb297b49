//! Admin commands as futures that the admin poller drives: no executor, no thread, no lock.
//!
//! The poller sets the time, moves bytes, and polls one future with a waker that does nothing. A future that waits for a time
//! notes it in [`Admin::deadline`], so that the reactor can sleep exactly that long.

use crate::association::OpenSocket;
use crate::link::{Broken, Link, Transfer};
use polypath_block::{Code, SegRow, SegTable, SlotKey, Slots, Time};
use polypath_memory::{Arena, Chunk, MemoryError};
use polypath_nvme::{Cqe, Sqe};
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
    /// The memory of the command, until it is answered or the connection is closed.
    chunk: Option<Chunk>,
    answer: Option<Cqe>,
}

/// One admin connection and the commands on it.
pub(crate) struct Admin {
    pub(crate) now: Time,
    /// The earliest time any future waits for.
    pub(crate) deadline: Time,
    /// The association is up: nothing is urgent but what is asked for.
    pub(crate) settled: bool,
    /// No answer is called late before this time: our own thread has been away.
    forgive_until: Time,
    link: Option<Link>,
    /// Tells the fence of the association that `link` is closed.
    socket: Option<OpenSocket>,
    /// An I/O queue that this poller has opened beside it.
    control: Option<Handle>,
    broken: Option<Fault>,
    tickets: Slots<Ticket>,
    arena: Arena,
    segs: SegTable,
    rows: SegRow,
}

/// The handle that futures share with their poller. Never borrowed across an `await`.
pub(crate) type Handle = Rc<RefCell<Admin>>;

/// What a command brought.
pub(crate) struct Answer {
    pub(crate) cqe: Cqe,
    /// What it asked for with [`Data::In`]; empty unless it succeeded.
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
    pub(crate) fn new(now: Time) -> Result<Admin, MemoryError> {
        let arena = Arena::new(u64::from(ADMIN_DATA) * 4, false)?;
        let mut segs = SegTable::new(u32::from(ADMIN_DEPTH));
        let rows = segs.reserve(u32::from(ADMIN_DEPTH), 1).expect("the table was made for these rows");
        Ok(Admin {
            now,
            deadline: Time::NEVER,
            settled: false,
            forgive_until: Time::ZERO,
            link: None,
            socket: None,
            control: None,
            broken: None,
            tickets: Slots::new(ADMIN_DEPTH),
            arena,
            segs,
            rows,
        })
    }

    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    pub(crate) fn set_link(&mut self, link: Link) {
        self.link = Some(link);
        self.broken = None;
    }

    /// The connection belongs to an association from now on.
    pub(crate) fn set_socket(&mut self, socket: Option<OpenSocket>) {
        self.socket = socket;
    }

    /// The I/O queue that the poller drives as well.
    pub(crate) fn control(&self) -> Option<&Handle> {
        self.control.as_ref()
    }

    pub(crate) fn set_control(&mut self, control: Option<Handle>) {
        self.control = control;
    }

    /// Closes the connection abortively, if there is one, and forgets the commands on it.
    pub(crate) fn close(&mut self) {
        if let Some(mut link) = self.link.take() {
            link.abort();
        }
        // After the link.
        self.socket = None;
        self.tickets.clear();
        if let Some(control) = self.control.take() {
            control.borrow_mut().close();
        }
    }

    /// Takes what has come; says whether anything came.
    pub(crate) fn receive(&mut self) -> bool {
        let Admin { link: Some(link), tickets, segs, broken: broken @ None, .. } = self else { return false };
        let moved = link.receive(segs, |done| {
            if let Some(ticket) = tickets.get_mut(SlotKey::from_u32(done.user as u32)) {
                ticket.answer = Some(done.cqe);
            }
        });
        match moved {
            Ok(moved) => moved,
            Err(why) => {
                *broken = Some(why.into());
                true
            }
        }
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self) {
        if let Admin { link: Some(link), segs, broken: broken @ None, .. } = self
            && let Err(why) = link.flush(segs)
        {
            *broken = Some(why.into());
        }
    }

    /// Why the connection is of no use any more.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.broken.clone()
    }

    /// Has `at` come? If not, the poller is to come back then.
    pub(crate) fn reached(&mut self, at: Time) -> bool {
        if self.now >= at {
            return true;
        }
        self.deadline = self.deadline.min(at);
        false
    }

    pub(crate) fn forgive_until(&mut self, at: Time) {
        self.forgive_until = at;
    }

    /// Is an answer that was due at `at` late? As [`Admin::reached`], unless we were not there to take it.
    pub(crate) fn is_late(&mut self, at: Time) -> bool {
        self.reached(at.max(self.forgive_until))
    }

    fn start(&mut self, sqe: &Sqe, data: Data<'_>) -> Option<SlotKey> {
        if self.tickets.is_full() {
            return None;
        }
        let len = match data {
            Data::None => 0,
            Data::Out(bytes) => bytes.len() as u32,
            Data::In(len) => len,
        };
        let chunk = if len > 0 { Some(self.arena.chunk(len)?) } else { None };
        let key = self.tickets.insert(Ticket { chunk, answer: None }).ok()?;
        let transfer = match &self.tickets.get(key)?.chunk {
            None => Transfer::None,
            Some(chunk) => {
                let span = self.rows.span(key.index().into(), 1);
                self.segs.get_mut(span)[0] = chunk.segment();
                let zeroes;
                let (bytes, transfer) = match data {
                    Data::Out(bytes) => (bytes, Transfer::Out { span, skip: 0, len }),
                    _ => {
                        zeroes = vec![0; len as usize];
                        (&zeroes[..], Transfer::In { span, skip: 0, len, exact: false })
                    }
                };
                chunk.window().copy_in(0, bytes).expect("the chunk is as long as the data");
                transfer
            }
        };
        let taken = self.link.as_mut().and_then(|link| link.submit(sqe, transfer, key.as_u32().into()));
        if taken.is_none() {
            self.tickets.remove(key);
            return None;
        }
        Some(key)
    }

    fn finish(&mut self, key: SlotKey) -> Option<Answer> {
        self.tickets.get(key)?.answer?;
        let Ticket { chunk, answer } = self.tickets.remove(key)?;
        let cqe = answer?;
        let data = match chunk {
            Some(chunk) if cqe.status.is_success() => {
                let mut data = vec![0; chunk.len() as usize];
                chunk.window().copy_out(0, &mut data).expect("the chunk is as long as the data");
                data
            }
            _ => Vec::new(),
        };
        Some(Answer { cqe, data })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits until `at`.
pub(crate) async fn sleep_until(admin: &Handle, at: Time) {
    poll_fn(|_| if admin.borrow_mut().reached(at) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Waits for `span`.
pub(crate) async fn sleep(admin: &Handle, span: Duration) {
    let at = admin.borrow().now.after(span);
    sleep_until(admin, at).await;
}

/// Runs one admin command. `limit` is the longest time for it; `None` for one that may take for ever.
///
/// # Errors
/// A [`Fault`] ends the association: the connection is broken, or there was no answer in time. A status of the controller is no fault.
pub(crate) async fn command(
    admin: &Handle,
    sqe: Sqe,
    data: Data<'_>,
    limit: Option<Duration>,
) -> Result<Answer, Fault> {
    let deadline = limit.map_or(Time::NEVER, |limit| admin.borrow().now.after(limit));
    let mut key = None;
    poll_fn(|_| {
        let mut a = admin.borrow_mut();
        if let Some(fault) = a.fault() {
            return Poll::Ready(Err(fault));
        }
        if key.is_none() {
            key = a.start(&sqe, data);
        }
        if let Some(answer) = key.and_then(|key| a.finish(key)) {
            return Poll::Ready(Ok(answer));
        }
        if a.is_late(deadline) {
            let (opcode, ms) = (sqe.opcode(), limit.unwrap_or_default().as_millis());
            let reason = format!("no answer to admin command {opcode:#04x} within {ms} ms");
            return Poll::Ready(Err(Fault::new(Code::PathTimeout, reason)));
        }
        Poll::Pending
    })
    .await
}

/// As [`command`], with a status that is not success turned into a fault that names `what`.
pub(crate) async fn demand(
    admin: &Handle,
    what: &str,
    sqe: Sqe,
    data: Data<'_>,
    limit: Duration,
) -> Result<Answer, Fault> {
    let answer = command(admin, sqe, data, Some(limit)).await?;
    if !answer.cqe.status.is_success() {
        return Err(Fault::new(Code::PathProtocol, format!("{what} was refused: {}", answer.cqe.status)));
    }
    Ok(answer)
}

/// A future of the admin poller.
pub(crate) type Task<T> = Pin<Box<dyn Future<Output = T>>>;

/// Polls `task` once, with a waker that does nothing: the poller polls every turn anyway.
pub(crate) fn poll_once<T>(task: &mut Task<T>) -> Poll<T> {
    task.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls all of `tasks` until one of them ends.
pub(crate) async fn race<T>(mut tasks: Vec<Task<T>>) -> T {
    poll_fn(|_| {
        for task in &mut tasks {
            if let Poll::Ready(end) = poll_once(task) {
                return Poll::Ready(end);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::RX_ADMIN;
    use crate::proto::HostConfig;
    use crate::script::{Script, What};
    use polypath_nvme::StatusField;
    use polypath_nvme::fabrics::ConnectData;
    use polypath_nvme::identify::cns;

    /// A connected admin queue of a scripted controller.
    fn connected(script: &Script) -> Admin {
        let mut admin = Admin::new(Time::from_millis(1)).unwrap();
        let address = "127.0.0.1:4420".parse().unwrap();
        admin.set_link(Link::dial(script, address, HostConfig::new(ADMIN_DEPTH), RX_ADMIN).unwrap());
        // ICReq goes, ICResp comes.
        admin.receive();
        admin.flush();
        admin.receive();
        let connect = Sqe::connect(0, 0, ADMIN_DEPTH, 0, 0);
        assert!(answer(&mut admin, &connect, Data::Out(&[0; ConnectData::LEN])).cqe.status.is_success());
        admin
    }

    fn answer(admin: &mut Admin, sqe: &Sqe, data: Data<'_>) -> Answer {
        let key = admin.start(sqe, data).unwrap();
        admin.flush();
        assert!(admin.receive());
        admin.finish(key).unwrap()
    }

    #[test]
    fn only_a_command_that_succeeds_brings_data() {
        let script = Script::new();
        let mut admin = connected(&script);
        let identify = |admin: &mut Admin| answer(admin, &Sqe::identify(0, cns::CONTROLLER, 0, 0), Data::In(4096));
        assert_eq!(identify(&mut admin).data.len(), 4096);
        script.refuse(What::Identify(cns::CONTROLLER), StatusField::INTERNAL_ERROR, 1);
        let refused = identify(&mut admin);
        assert_eq!((refused.cqe.status, refused.data.len()), (StatusField::INTERNAL_ERROR, 0));
        assert!(answer(&mut admin, &Sqe::keep_alive(0), Data::None).data.is_empty());
    }

    #[test]
    fn a_stall_of_our_own_makes_no_answer_late() {
        let at = |ms: u64| Time::from_millis(1_000_000 + ms);
        let mut admin = Admin::new(at(0)).unwrap();
        admin.now = at(2000);
        assert!(admin.is_late(at(500)));
        admin.forgive_until(at(2050));
        assert!(!admin.is_late(at(500)), "nobody looked meanwhile");
        assert_eq!(admin.deadline, at(2050), "and it is judged then");
        admin.now = at(2050);
        assert!(admin.is_late(at(500)));
    }
}
