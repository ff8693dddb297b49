//! The way from the control thread to a vring on its reactor: a small bounded queue, a flag looked at each turn, and an answer
//! for every command.

use crate::guest::GuestMemory;
use crate::log::DirtyLog;
use crate::notify::{Kick, Notifier};
use crate::ring::Vring;
use polypath_block::Host;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

/// Commands that may wait. The control thread waits for each answer, unless it is to end: then it says so, once more or twice.
const BOUND: usize = 8;
/// How often a waiting control thread looks whether the server is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// What a vring can be told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run this ring.
    Start(Box<Start>),
    /// Take no more, wait for what is in flight, answer with where the ring stands.
    Stop {
        /// The guest may go on elsewhere: first make durable what completed, also of a ring that was stopped before.
        flush: bool,
    },
    /// We end: take no more, wait for what the device has. What was not begun stays in flight in the ring's record, if there is one.
    Leave,
    /// Notify this descriptor from now on, and now: what was said on the old one may not have been heard.
    SetCall(Option<Arc<Notifier>>),
    /// Notify this descriptor when the guest breaks the ring.
    SetErr(Option<Arc<Notifier>>),
    /// Log there what is written to guest memory, from now on.
    SetLog(Option<Arc<DirtyLog>>),
    /// Memory was added.
    SetMemory(Arc<GuestMemory>),
    /// As [`Command::Leave`], then close the device's queue and go.
    End,
}

/// All that a running ring needs.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) ring: Vring,
    /// `None`: the guest never notifies, the ring is polled.
    pub(crate) kick: Option<Arc<Kick>>,
    pub(crate) call: Option<Arc<Notifier>>,
    pub(crate) err: Option<Arc<Notifier>>,
    /// Does the guest expect completed writes to be durable (shared, as it may change while the ring runs)?
    pub(crate) write_through: Arc<AtomicBool>,
    /// Requests were in flight when a back-end before us was killed, and nobody knows which: the ring must not run.
    pub(crate) orphaned: bool,
}

/// The answer to a command: where the ring stands, or why it could not be done.
pub(crate) type Answer = Result<u32, String>;

pub(crate) struct Message {
    pub(crate) command: Command,
    pub(crate) answer: SyncSender<Answer>,
}

/// The vring's end.
pub(crate) struct MailboxReceiver {
    messages: Receiver<Message>,
    flag: Arc<AtomicBool>,
}

/// The control thread's end.
pub(crate) struct MailboxSender {
    messages: SyncSender<Message>,
    flag: Arc<AtomicBool>,
    host: Arc<dyn Host>,
}

/// Why a command was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("the vring's reactor has ended")]
    Gone,
    #[error("the vring's reactor takes no commands")]
    Full,
    #[error("the server is stopping")]
    Stopping,
    #[error("{0}")]
    Refused(String),
}

/// A new mailbox for a vring on `host`.
pub(crate) fn mailbox(host: Arc<dyn Host>) -> (MailboxSender, MailboxReceiver) {
    let (messages, receiver) = sync_channel(BOUND);
    let flag = Arc::new(AtomicBool::new(false));
    (MailboxSender { messages, flag: flag.clone(), host }, MailboxReceiver { messages: receiver, flag })
}

impl MailboxReceiver {
    /// Is there perhaps a message? One relaxed load.
    #[inline]
    pub(crate) fn has_messages(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// The next message. `Err` when nobody will ever send again.
    pub(crate) fn next(&self) -> Result<Option<Message>, ()> {
        self.flag.swap(false, Ordering::AcqRel);
        match self.messages.try_recv() {
            Ok(message) => {
                self.flag.store(true, Ordering::Release);
                Ok(Some(message))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(()),
        }
    }
}

impl MailboxSender {
    /// Sends `command` without waiting for its answer, which arrives at the receiver.
    pub(crate) fn send(&self, command: Command) -> Result<Receiver<Answer>, CommandError> {
        let (answer, receiver) = sync_channel(1);
        self.messages.try_send(Message { command, answer }).map_err(|error| match error {
            TrySendError::Disconnected(_) => CommandError::Gone,
            TrySendError::Full(_) => CommandError::Full,
        })?;
        self.flag.store(true, Ordering::Release);
        self.host.wake();
        Ok(receiver)
    }
}

impl Drop for MailboxSender {
    /// A vring whose control thread went away without ending it notices when it next looks.
    fn drop(&mut self) {
        self.messages = sync_channel(0).0;
        self.flag.store(true, Ordering::Release);
        self.host.wake();
    }
}

/// Waits for an answer, until `over` says that there is no more time.
pub(crate) fn wait(
    answer: &Receiver<Answer>,
    mut over: impl FnMut() -> Option<CommandError>,
) -> Result<u32, CommandError> {
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(answer) => return answer.map_err(CommandError::Refused),
            Err(RecvTimeoutError::Disconnected) => return Err(CommandError::Gone),
            Err(RecvTimeoutError::Timeout) => over().map_or(Ok(()), Err)?,
        }
    }
}
