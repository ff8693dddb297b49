//! How threads reach each other: messages and wake-ups. What is said here is about connections and tasks of any protocol.

use crate::faults::Scope;
use crate::media::{MediumError, Party};
use crate::shared::{ConnInfo, lock};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

/// Something that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) thread: usize,
    pub(crate) conn: u64,
    /// Command identifier or task tag.
    pub(crate) tag: u32,
}

/// What is to be quiet: nothing of it is executed once every thread has answered.
#[derive(Clone, Debug)]
pub(crate) struct Quiesce {
    /// Only tasks of this disk set.
    pub(crate) store: usize,
    /// Only tasks of this logical unit.
    pub(crate) unit: Option<u32>,
    /// Only tasks of this session.
    pub(crate) session: Option<u16>,
    /// Only tasks of these users.
    pub(crate) parties: Option<Vec<Party>>,
    /// Not those of this session, which has dealt with them itself.
    pub(crate) except: Option<u16>,
    /// The session is over: its connection ends.
    pub(crate) end: bool,
    /// Those whose tasks are ended hear of it.
    pub(crate) tell: bool,
}

/// What a target says of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announcement {
    /// It wants to be left within so many seconds.
    Logout { within_s: u16 },
    /// It drops the connection now.
    Drop,
    /// It wants to know whether the other side is there.
    Ping,
}

/// What one thread tells another.
pub(crate) enum Msg {
    Adopt {
        socket: OwnedFd,
        info: Arc<ConnInfo>,
    },
    /// A held write has been applied.
    Landed {
        to: Address,
        result: Result<(), MediumError>,
    },
    /// Command `victim` of connection `conn` is to be aborted.
    Abort {
        conn: u64,
        victim: u32,
        reply: Address,
    },
    /// It was, or was not.
    Aborted {
        to: Address,
        aborted: bool,
    },
    Quiesce {
        what: Arc<Quiesce>,
        reply: Address,
    },
    /// One thread has nothing any more of what was to be quiet.
    Quiet {
        to: Address,
    },
    Announce {
        scope: Scope,
        what: Announcement,
        reply: Sender<usize>,
    },
    Break {
        scope: Scope,
        reset: bool,
        reply: Sender<usize>,
    },
    Listener {
        index: usize,
        action: ListenerAction,
        reply: Sender<Result<usize, String>>,
    },
    Stop,
}

/// What is to become of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerAction {
    Drop,
    Restore,
    Close,
    Open,
}

/// How to reach a thread.
pub(crate) struct ThreadHandle {
    mail: Mutex<Vec<Msg>>,
    has_mail: AtomicBool,
    event: OwnedFd,
}

impl ThreadHandle {
    pub(crate) fn new() -> std::io::Result<ThreadHandle> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(ThreadHandle { mail: Mutex::default(), has_mail: AtomicBool::new(false), event })
    }

    pub(crate) fn send(&self, msg: Msg) {
        lock(&self.mail).push(msg);
        self.has_mail.store(true, Ordering::Release);
        self.wake();
    }

    /// Is there something to take?
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    /// Takes what has come, if anything has.
    pub(crate) fn take(&self) -> Vec<Msg> {
        if !self.has_mail.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *lock(&self.mail))
    }

    /// Ends the thread's sleep.
    pub(crate) fn wake(&self) {
        // A full counter means that it is being woken already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// What wakes the thread.
    pub(crate) fn event(&self) -> &OwnedFd {
        &self.event
    }
}
