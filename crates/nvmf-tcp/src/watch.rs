//! Time limits of one queue: silence, commands that take too long, and stalls of our own thread, which are told apart from both.

use crate::config::ControllerConfig;
use crate::link::{Broken, Link};
use crate::queue::NvmeQueue;
use crate::shared::AbortOrder;
use polypath_block::{Code, Cx, Done, Proof, SlotKey, Time};
use std::time::Duration;

/// A turn that comes later than expected by more than this is a stall of our own.
pub(crate) const SLACK: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(crate) struct Watch {
    silence: Duration,
    io_timeout: Duration,
    tick: Duration,
    /// When anything last came, or the first command was started after a pause; moved on by our own stalls.
    heard: Time,
    due: Time,
    last: Time,
    /// By when the next turn should come.
    expected: Time,
    stalled: bool,
    probed: Option<Time>,
    /// Commands (slot, identifier) that the controller says it has aborted.
    proven: Vec<(u16, u16)>,
}

impl Watch {
    pub(crate) fn new(config: &ControllerConfig) -> Self {
        let shortest = config.silence_timeout.min(config.io_timeout);
        Watch {
            silence: config.silence_timeout,
            io_timeout: config.io_timeout,
            tick: (shortest / 8).clamp(Duration::from_millis(2), Duration::from_millis(100)),
            heard: Time::ZERO,
            due: Time::NEVER,
            last: Time::ZERO,
            expected: Time::NEVER,
            stalled: false,
            probed: None,
            proven: Vec::new(),
        }
    }

    /// A turn begins. If it comes late, the peer cannot be blamed for what we did not look at.
    #[inline]
    pub(crate) fn turn(&mut self, now: Time) {
        let late = now.since(self.expected);
        if late > SLACK {
            self.heard = self.heard.after(late).min(now);
            // The first turn after a stall judges nobody.
            self.due = now.after(self.tick);
        }
        self.last = now;
        self.expected = now;
    }

    pub(crate) fn sleeps_until(&mut self, at: Time) {
        self.expected = at;
    }

    pub(crate) fn last_turn(&self) -> Time {
        self.last
    }

    /// A command is started and no other is outstanding.
    #[inline]
    pub(crate) fn start(&mut self, now: Time) {
        self.heard = now;
        self.due = self.due.min(now.after(self.tick));
    }

    #[inline]
    pub(crate) fn heard(&mut self, now: Time) {
        self.heard = now;
        self.stalled = false;
    }

    #[inline]
    pub(crate) fn is_due(&self, now: Time) -> bool {
        now >= self.due
    }

    pub(crate) fn due(&self) -> Time {
        self.due
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    pub(crate) fn proven(&mut self, slot: u16, cid: u16) {
        self.proven.push((slot, cid));
    }

    /// The slots whose commands are known to be aborted; asked before the outcomes of `link` are taken.
    pub(crate) fn take_proven(&mut self, link: &Link) -> Vec<u16> {
        let all = std::mem::take(&mut self.proven);
        all.into_iter().filter(|&(slot, cid)| link.cid(slot) == Some(cid)).map(|(slot, _)| slot).collect()
    }
}

impl NvmeQueue {
    /// Looks at all limits. Runs some ten times a second while commands are outstanding.
    #[cold]
    pub(crate) fn check_time(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let now = cx.now;
        let busy = self.link.as_ref().is_some_and(|link| link.in_flight() > 0);
        if !busy {
            self.watch.due = Time::NEVER;
            self.watch.stalled = false;
            self.watch.probed = None;
            return;
        }
        self.watch.due = now.after(self.watch.tick);
        let silent = now.since(self.watch.heard);
        if silent < self.watch.silence / 2 {
            self.watch.stalled = false;
            self.watch.probed = None;
        } else {
            if !self.watch.stalled {
                let (path, ms) = (&self.shared.config.name, silent.as_millis() as u64);
                tracing::warn!(%path, qid = self.qid, silent_ms = ms, "nothing is heard; asking the controller for a sign of life");
            }
            self.watch.stalled = true;
            if self.watch.probed.is_none_or(|at| now.since(at) >= self.watch.silence) {
                self.watch.probed = Some(now);
                self.shared.ask_probe();
            }
            if silent >= self.watch.silence && self.is_cut() {
                return;
            }
        }
        self.check_commands(now, done);
    }

    /// Is this connection cut although the controller may answer on others? Only its host's silence says so: a command that takes
    /// long is no sign, and aborting one to see would punish a slow medium. Then the way is lost.
    fn is_cut(&mut self) -> bool {
        let silence = self.watch.silence;
        let cut = self.link.as_ref().and_then(Link::unacknowledged).filter(|&span| span >= silence);
        if let Some(span) = cut {
            let reason =
                format!("the connection is cut: the target's host acknowledged nothing for {} ms", span.as_millis());
            self.broken = Some(Broken { code: Code::PathTimeout, reason });
        }
        cut.is_some()
    }

    fn check_commands(&mut self, now: Time, done: &mut Done) {
        let limit = self.watch.io_timeout;
        let grace = self.watch.silence * 2;
        let late: Vec<(SlotKey, Option<Time>)> = self
            .requests
            .iter()
            .filter(|(_, r)| r.parts > 0 && now.since(r.since) >= limit)
            .map(|(key, r)| (key, r.aborting))
            .collect();
        for (key, aborting) in late {
            match aborting {
                None => self.abort_request(key, now, done),
                Some(since) if now.since(since) >= grace => {
                    let reason = format!("a command is not answered within {} ms and not aborted", limit.as_millis());
                    self.broken = Some(Broken { code: Code::PathTimeout, reason });
                    return;
                }
                Some(_) => {}
            }
        }
    }

    /// Takes back what has not left, and has the rest of a request aborted.
    fn abort_request(&mut self, key: SlotKey, now: Time, done: &mut Done) {
        let (Some(link), Some(association)) = (&mut self.link, &self.association) else { return };
        let Some(request) = self.requests.get_mut(key) else { return };
        request.aborting = Some(now);
        request.cut();
        for slot in link.slots_of(key.as_u32().into()) {
            if link.withdraw(slot) {
                request.parts -= 1;
                request.status = Code::PathTimeout.into();
            } else if let Some(cid) = link.cid(slot) {
                self.shared.ask_abort(AbortOrder {
                    generation: association.generation,
                    qid: self.qid,
                    cid,
                    queue: self.desk.clone(),
                    slot,
                });
            }
        }
        if request.parts == 0 {
            let (tag, status) = (request.io.tag, request.status);
            let proof = if request.answered { Proof::Answered } else { Proof::NeverSent };
            self.requests.remove(key);
            done.complete_with(tag, status, proof);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_nvme::nqn::Nqn;

    fn at(ms: u64) -> Time {
        Time::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_stall_of_our_own_is_not_the_peers_silence() {
        let mut watch = Watch::new(&ControllerConfig::new("h", 1, Nqn::new("nqn.x").unwrap()));
        watch.turn(at(0));
        watch.start(at(0));
        watch.turn(at(10));
        assert_eq!(at(10).since(watch.heard).as_millis(), 10, "looked at, and silent");
        watch.turn(at(5010));
        assert_eq!(at(5010).since(watch.heard).as_millis(), 10, "nobody looked for five seconds");
        assert!(!watch.is_due(at(5010)), "the first turn after a stall judges nobody");
        watch.sleeps_until(at(5500));
        watch.turn(at(5500));
        assert_eq!(at(5500).since(watch.heard).as_millis(), 500, "asleep as agreed: the silence is the peer's");
        watch.heard(at(5501));
        assert_eq!(at(5501).since(watch.heard).as_millis(), 0);
    }
}
