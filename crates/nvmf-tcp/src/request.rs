//! One accepted request, and what the end of one of its commands means for it.

use crate::link::Finished;
use crate::shared::Shared;
use crate::status;
use polypath_block::{Code, Done, Io, SlotKey, Slots, Splitter, Status, Time};

/// A request that was accepted.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) io: Io,
    /// What was not made into commands yet.
    pub(crate) rest: Option<Splitter>,
    /// Commands outstanding.
    pub(crate) parts: u32,
    /// The first error, or success.
    pub(crate) status: Status,
    /// Some command of it was answered.
    pub(crate) answered: bool,
    /// Its way was lost with a command of it on the way,
    pub(crate) sent: bool,
    /// of which it is not known that it was aborted.
    pub(crate) unproven: bool,
    /// When it was taken, or a command of it last finished: the time limit is that of commands, and a large request has many.
    pub(crate) since: Time,
    /// Since when it is being aborted.
    pub(crate) aborting: Option<Time>,
}

impl Request {
    pub(crate) fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// No more commands of it.
    pub(crate) fn cut(&mut self) {
        self.rest = None;
    }
}

/// A command has finished: the request completes when it was the last.
#[inline]
pub(crate) fn finish_part(
    requests: &mut Slots<Request>,
    shared: &Shared,
    finished: &Finished,
    now: Time,
    done: &mut Done,
    moved: impl FnOnce(&Io),
) {
    let key = SlotKey::from_u32(finished.user as u32);
    let Some(request) = requests.get_mut(key) else { return };
    request.parts -= 1;
    request.answered = true;
    let mut status = status::map(finished.cqe.status);
    if finished.bad_memory && status.is_ok() {
        status = Code::BadMemory.into();
    }
    if !status.is_ok() {
        if matches!(status.code, Code::PathNoAccess | Code::PathBusy) {
            shared.ask_ana();
        }
        if request.aborting.is_some() && status.code == Code::Aborted {
            // We asked for it because the answer did not come: that is about the way.
            status.code = Code::PathTimeout;
        }
        if request.status.is_ok() {
            request.status = status;
        }
        request.cut();
    }
    if request.parts == 0 && !request.has_rest() {
        let (tag, status) = (request.io.tag, request.status);
        moved(&request.io);
        requests.remove(key);
        done.complete(tag, status);
    } else if request.aborting.is_none() {
        request.since = now;
    }
}
