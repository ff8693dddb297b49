//! One command in the words of a protocol, through the group: sent over one path that is usable and speaks it.
//!
//! What changes nothing goes to the next path when the first is lost before it answered. What may change something is held under the rules of
//! changing requests: it is sent once, and not while a path has lost changes that are not proven quiet; its end is told when it
//! is quiet, which is the path's promise; and it makes the cache dirty that the path leads to. One of these is under way at a time, so that
//! none overtakes another one that was lost.

use crate::cache::SentTo;
use crate::config::{Fencing, PathId};
use crate::path::PathRecord;
use crate::shared::GroupShared;
use core::time::Duration;
use polypath_block::{
    Access, Code, CommandSet, Device, PassthroughError, PassthroughReply, PassthroughRequest, PassthroughResult,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// A path that the command may be sent over.
struct Candidate {
    id: PathId,
    name: Arc<str>,
    device: Arc<dyn Device>,
    /// The volatile cache that it leads to.
    cache: Option<u8>,
    best: (bool, core::cmp::Reverse<u8>),
}

impl Candidate {
    fn new(record: &PathRecord) -> Candidate {
        let info = record.info.as_ref();
        let volatile = info.is_some_and(|info| info.limits.write_cache);
        let further = info.is_none_or(|info| info.access != Access::Optimized);
        Candidate {
            id: record.shared.id,
            name: record.shared.name.clone(),
            device: record.shared.device.clone(),
            cache: record.cache.filter(|_| volatile),
            best: (further, core::cmp::Reverse(record.shared.preference())),
        }
    }
}

/// A command that may change something is under way.
struct Changing(Arc<AtomicBool>);

impl Changing {
    fn begin(flag: &Arc<AtomicBool>) -> Option<Changing> {
        let free = flag.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        free.then(|| Changing(flag.clone()))
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// One command, one path after the other.
struct Relay {
    group: Weak<GroupShared>,
    request: PassthroughRequest,
    limit: Duration,
    rest: VecDeque<Candidate>,
    first_failure: Option<PassthroughError>,
    changing: Option<Changing>,
    reply: PassthroughReply,
}

impl GroupShared {
    /// Does a path take commands of this set?
    pub(crate) fn speaks(&self, set: CommandSet) -> bool {
        let control = self.lock();
        control.paths.iter().any(|record| speaks(record, set))
    }

    /// Somebody wants a command to be sent.
    pub(crate) fn start_passthrough(&self, request: PassthroughRequest, limit: Duration, reply: PassthroughReply) {
        if self.is_closed() {
            return reply.refuse(Code::Gone, format!("{} was closed", self.name));
        }
        if let Err(error) = request.check_length() {
            return reply.answer(Err(error));
        }
        let changing = match request.changes.then(|| Changing::begin(&self.passing)) {
            Some(None) => {
                let reason = format!("{}: another command that changes something is under way; try again", self.name);
                return reply.refuse(Code::PathBusy, reason);
            }
            changing => changing.flatten(),
        };
        let rest = match self.paths_for(&request) {
            Ok(rest) => rest,
            Err((code, reason)) => {
                drop(changing);
                return reply.refuse(code, format!("{}: {reason}", self.name));
            }
        };
        Relay { group: self.me.clone(), request, limit, rest, first_failure: None, changing, reply }.go();
    }

    /// The paths to be asked, the best first.
    fn paths_for(&self, request: &PassthroughRequest) -> Result<VecDeque<Candidate>, (Code, String)> {
        let (set, control) = (request.command.set(), self.lock());
        if request.changes
            && self.fencing == Fencing::On
            && let Some(record) = control.paths.iter().find(|record| has_lost_changes(record))
        {
            let name = &record.shared.name;
            return Err((
                Code::PathBusy,
                format!("path {name} has lost changes that are not proven quiet; try again when they are"),
            ));
        }
        let usable = || control.paths.iter().filter(|record| record.is_usable());
        let mut found: Vec<_> = usable().filter(|record| speaks(record, set)).map(Candidate::new).collect();
        found.sort_by_key(|candidate| candidate.best);
        if !found.is_empty() {
            return Ok(found.into());
        }
        Err(match (control.paths.iter().any(|record| speaks(record, set)), usable().next().is_some()) {
            (false, true) => {
                (Code::Unsupported, format!("no path of it takes {set} commands; expected those that its paths speak"))
            }
            (true, true) => (Code::NoPath, format!("no path that takes {set} commands is usable now")),
            (_, false) => (Code::NoPath, "no path is usable now".to_owned()),
        })
    }
}

fn speaks(record: &PathRecord, set: CommandSet) -> bool {
    record.shared.device.passthrough().is_some_and(|power| power.speaks(set))
}

/// Does something wait for its fence there?
fn has_lost_changes(record: &PathRecord) -> bool {
    record.suspects() > 0 || record.shared.device.cross_fence().is_some_and(|power| power.open_loss().is_some())
}

impl Relay {
    fn go(mut self) {
        let Some(next) = self.rest.pop_front() else {
            let failure = self.first_failure.take();
            return self
                .finish(Err(failure.unwrap_or_else(|| PassthroughError::new(Code::NoPath, "no path is usable now"))));
        };
        let Some(group) = self.group.upgrade() else {
            return self.finish(Err(PassthroughError::new(Code::Gone, "the disk was closed")));
        };
        let (request, limit, device) = (self.request.clone(), self.limit, next.device.clone());
        let sent = next.cache.filter(|_| self.request.changes).map(|cache| group.caches.send_to(cache));
        let reply = PassthroughReply::new(move |result| self.took(&next, sent, result));
        match device.passthrough() {
            Some(power) => power.start(request, limit, reply),
            None => reply.refuse(Code::PathLost, "it takes no commands any more"),
        }
    }

    fn took(mut self, path: &Candidate, sent: Option<SentTo>, result: PassthroughResult) {
        let error = match result {
            Ok(answer) => {
                self.changed(sent);
                return self.finish(Ok(answer));
            }
            Err(error) => error,
        };
        tracing::warn!(path = %path.name, number = path.id.0, command = ?self.request.command, reason = %error, "a command was not passed through");
        let lost = error.is_of_path() || error.code == Code::OutcomeUnknown && !self.request.changes;
        let code = if lost && error.code == Code::OutcomeUnknown { Code::PathLost } else { error.code };
        let error = PassthroughError::new(code, format!("path {}: {}", path.name, error.reason));
        if lost {
            self.first_failure.get_or_insert(error);
            return self.go();
        }
        // A flush is to reach what may be there; nobody was told that it is.
        if let (Code::OutcomeUnknown, Some(group), Some(sent)) = (error.code, self.group.upgrade(), sent) {
            let _ = group.caches.mark_dirty(sent);
        }
        self.finish(Err(error));
    }

    /// It may have left something in a cache, whatever was answered.
    fn changed(&self, sent: Option<SentTo>) {
        if let (Some(group), Some(sent)) = (self.group.upgrade(), sent) {
            let written = group.caches.mark_dirty(sent);
            group.caches.acknowledge(written);
        }
    }

    fn finish(self, result: PassthroughResult) {
        // First: whoever has the answer may send the next one.
        drop(self.changing);
        self.reply.answer(result);
    }
}
