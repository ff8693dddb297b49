//! The flush before a front-end hears where its ring stands: the guest may go on elsewhere, through sessions that cannot flush what ours
//! still owe. It is asked for whether the ring ran until now or was stopped before.

use crate::active::Env;
use polypath_block::{Code, Cx, Done, Io, IoQueue, Scope, Status, Time, Waits};
use std::time::Duration;

/// How soon a flush that was not carried out is tried again.
pub(crate) const RETRY: Duration = Duration::from_millis(5);

/// Its tag: no request has it.
const TAG: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It is to be sent, no earlier than then.
    Due(Time),
    Sent,
    Done,
}

/// One such flush, from the word that it is needed to its end.
#[derive(Debug)]
pub(crate) struct LastFlush {
    state: State,
    /// When it was first tried.
    since: Option<Time>,
}

impl LastFlush {
    /// One that is to be sent.
    pub(crate) fn new() -> LastFlush {
        LastFlush { state: State::Due(Time::ZERO), since: None }
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.state == State::Sent
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Sends it, if it is due; call it once nothing else is in flight.
    ///
    /// Not while changes wait here: where the guest goes on they would not, and land under what somebody has in flight.
    pub(crate) fn send(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) {
        let State::Due(at) = self.state else { return };
        if env.hold.is_some() {
            return;
        }
        if env.gone || env.media.read_only || !env.media.write_cache {
            self.state = State::Done;
            return;
        }
        let since = *self.since.get_or_insert(cx.now);
        if at > cx.now {
            return;
        }
        if queue.submit(cx, Io::flush(TAG)).is_ok() {
            self.state = State::Sent;
        } else if cx.now.since(since) >= env.config.down_timeout {
            self.lost(Code::NoPath.into(), env);
        }
    }

    /// Takes its completion out of `done`.
    pub(crate) fn take(&mut self, done: &mut Done, env: &Env<'_>) {
        if self.state != State::Sent {
            return;
        }
        let mut status = None;
        done.completions.retain(|completion| {
            let other = completion.tag != TAG;
            if !other {
                status = Some(completion.status);
            }
            other
        });
        let Some(status) = status else { return };
        if status.is_ok() {
            self.state = State::Done;
            return;
        }
        let waited = self.since.map_or(Duration::ZERO, |since| env.now.since(since));
        if !was_not_carried_out(status) || waited >= env.config.down_timeout {
            return self.lost(status, env);
        }
        self.state = State::Due(env.now.after(RETRY));
        if let Some(others) = env.counters.limits.flush.may_log(env.now) {
            tracing::warn!(vring = %env.config.name, %status, others, "what the guest wrote is not flushed yet; its front-end waits");
        }
    }

    /// Whoever fails a flush may have dropped what it could not write, and another flush would say nothing of it. So this one is the last,
    /// and the guest hears of it with its next. To keep the front-end, and with it the whole guest, would bring nothing back.
    fn lost(&mut self, status: Status, env: &Env<'_>) {
        self.state = State::Done;
        env.config.owed.owe();
        if let Some(others) = env.counters.limits.flush.may_log(env.now) {
            tracing::error!(
                vring = %env.config.name,
                %status,
                others,
                "what the guest wrote could not be flushed before its ring stops; its next flush fails"
            );
        }
    }

    /// Names when it is to be tried again.
    pub(crate) fn arm(&self, env: &Env<'_>, waits: &mut Waits) {
        if let State::Due(at) = self.state {
            waits.until(env.hold.unwrap_or(at).max(env.now.after(RETRY)));
        }
    }
}

/// Does it mean that the device has not heard of it, or that nobody knows? Then nothing is lost that another try would not save.
fn was_not_carried_out(status: Status) -> bool {
    status.scope() == Scope::Path || matches!(status.code, Code::NoPath | Code::OutcomeUnknown | Code::Aborted)
}
