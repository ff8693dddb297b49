//! One connection of a session, from the dial to its end, with its time limits.

use crate::config::TargetConfig;
use crate::link::{Broken, Ended, Heard, Link};
use crate::login::{InitiatorConfig, InitiatorLogin};
use crate::pdu::Lun;
use polypath_block::{Code, Host, SegTable, Time, Waits};
use polypath_scsi::midlayer::TaskData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two looks at a socket from which nothing is expected, when the reactor spins.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The same after a sleep.
const LOOK_SOON: Duration = Duration::from_micros(50);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Not in the full feature phase yet; to be by then.
    Opening {
        until: Time,
    },
    Ready,
}

/// See the module.
pub(super) struct Connection {
    link: Link,
    host: Arc<dyn Host>,
    stage: Stage,
    broken: Option<Broken>,
    looked: Time,
    /// When anything last came, or the first task was started after a pause; moved on by our own stalls.
    heard: Time,
    due: Time,
    tick: Duration,
    stalled: bool,
    pinged: Option<Time>,
    /// Since when the target takes no task, although it has none of ours; moved on by our own stalls.
    shut: Option<Time>,
}

impl Connection {
    pub(super) fn dial(
        config: &TargetConfig,
        host: &Arc<dyn Host>,
        address: SocketAddr,
        login: Result<InitiatorConfig, Broken>,
        depth: u16,
        now: Time,
    ) -> Result<Connection, Broken> {
        let machine = InitiatorLogin::new(login?);
        Ok(Connection {
            link: Link::dial(&*config.dialer, address, machine, depth)?,
            host: host.clone(),
            stage: Stage::Opening { until: now.after(config.connect_timeout) },
            broken: None,
            looked: Time::ZERO,
            heard: now,
            due: Time::NEVER,
            tick: tick(config),
            stalled: false,
            pinged: None,
            shut: None,
        })
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    /// In the full feature phase, whether it still takes tasks or not.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    pub(super) fn set_ready(&mut self, now: Time) {
        (self.stage, self.heard, self.due) = (Stage::Ready, now, now.after(self.tick));
    }

    pub(super) fn is_overdue(&self, now: Time) -> bool {
        matches!(self.stage, Stage::Opening { until } if now >= until)
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// It is of no use any more. The first reason stands.
    pub(super) fn set_broken(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    /// Why it is of no use any more.
    pub(super) fn take_broken(&mut self) -> Option<Broken> {
        self.broken.take()
    }

    /// Is it time to look at the socket? `slept`: the reactor has slept since the last look.
    #[inline]
    pub(super) fn wants_look(&self, now: Time, slept: bool) -> bool {
        self.link.is_waiting() || now >= self.looked.after(if slept { LOOK_SOON } else { LOOK_EVERY })
    }

    /// Takes what has come.
    #[inline]
    pub(super) fn receive(&mut self, segs: &SegTable, now: Time, heard: impl FnMut(Heard)) -> Result<(), Broken> {
        self.looked = now;
        if self.link.receive(segs, heard)? {
            (self.heard, self.stalled, self.pinged) = (now, false, None);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn submit(&mut self, lun: Lun, cdb: [u8; 16], data: TaskData, user: u64, now: Time) -> Option<()> {
        if self.link.in_flight() == 0 {
            self.heard = now;
            self.due = self.due.min(now.after(self.tick));
        }
        let taken = self.link.submit(lun, cdb, data, user).map(drop);
        if taken.is_none() && self.link.in_flight() == 0 {
            self.shut.get_or_insert(now);
        }
        taken
    }

    /// Sends what waits; the connection is broken if that fails.
    #[inline]
    pub(super) fn flush(&mut self, segs: &SegTable) {
        if self.broken.is_none()
            && let Err(broken) = self.link.flush(segs)
        {
            self.broken = Some(broken);
        }
    }

    /// We were not there for `late`: the peer cannot be blamed for what we did not look at.
    pub(super) fn forgive(&mut self, late: Duration, now: Time) {
        self.heard = self.heard.after(late).min(now);
        self.due = now.after(self.tick);
        self.pinged = self.pinged.map(|at| at.after(late).min(now));
        self.shut = self.shut.map(|at| at.after(late).min(now));
        if let Stage::Opening { until } = self.stage {
            self.stage = Stage::Opening { until: until.after(late) };
        }
    }

    #[inline]
    pub(super) fn is_due(&self, now: Time) -> bool {
        now >= self.due
    }

    /// Looks at the silence. The target is pinged when it lasts; when the ping is not answered either, the connection is lost: a ping
    /// is for the target's iSCSI layer alone, and waits for no medium.
    pub(super) fn check_silence(&mut self, config: &TargetConfig, session: u16, now: Time) {
        let (silent, busy) = (now.since(self.heard), self.link.in_flight() > 0);
        self.due = now.after(self.tick);
        if self.is_shut_for_good(config, now) {
            return;
        }
        let limit = config.silence_timeout;
        if let Some(at) = self.pinged {
            if now.since(at) >= limit {
                let cut = self.link.unacknowledged().is_some_and(|span| span >= limit / 2);
                let why = if cut { "and its host acknowledges nothing" } else { "although its host is there" };
                let ms = silent.as_millis();
                let reason = format!("the target has said nothing for {ms} ms, and does not answer a ping, {why}");
                self.broken = Some(Broken::new(Code::PathTimeout, reason));
            }
            return;
        }
        let patience = match busy {
            true => limit / 2,
            false if config.keep_alive.is_zero() => {
                self.due = if self.shut.is_some() { self.due } else { Time::NEVER };
                return;
            }
            false => config.keep_alive,
        };
        if silent < patience {
            if !busy && self.shut.is_none() {
                self.due = self.heard.after(patience);
            }
            return;
        }
        if busy {
            self.stalled = true;
            tracing::debug!(path = %config.name, session, silent_ms = silent.as_millis() as u64, "nothing is heard; asking for a sign of life");
        }
        // One that is under way already, and was not answered while other things came, serves as well; so does one for which there is
        // no room, since nothing leaves.
        self.link.ping();
        self.pinged = Some(now);
    }

    /// A target that has nothing of ours has no reason to take nothing, and no answer will change that (RFC 7143 section 4.2.2.1: it is for the
    /// target to move MaxCmdSN). Somebody waits meanwhile.
    fn is_shut_for_good(&mut self, config: &TargetConfig, now: Time) -> bool {
        if self.link.in_flight() > 0 || self.link.has_room() {
            self.shut = None;
        }
        let limit = config.disks.io_timeout;
        if self.shut.is_none_or(|at| now.since(at) < limit) {
            return false;
        }
        let ms = limit.as_millis();
        let reason = format!("the target has no command of ours and takes none for {ms} ms (MaxCmdSN)");
        self.broken = Some(Broken::new(Code::PathTimeout, reason));
        true
    }

    pub(super) fn has_news(&self) -> bool {
        self.broken.is_some() || self.link.has_news()
    }

    /// Names what must wake the owner, and by when.
    pub(super) fn arm(&self, waits: &mut Waits) -> Time {
        self.link.arm(waits);
        match self.stage {
            Stage::Opening { until } => until,
            Stage::Ready => self.due,
        }
    }

    /// Closes it abortively and accounts for every task on it; returns when it was closed.
    pub(super) fn abort(mut self, mut each: impl FnMut(Ended)) -> Time {
        self.link.abort();
        // Not the time of the turn: that was read before the socket was closed, perhaps long before.
        let closed = self.host.now();
        while let Some(ended) = self.link.next_outcome() {
            each(ended);
        }
        closed
    }

    /// Closes it in order: nothing is on it.
    pub(super) fn close(mut self) {
        if self.is_ready() {
            self.link.log_out();
            // As far as it goes: who comes back ends this session in any case.
            let _ = self.link.flush(&SegTable::new(0));
        }
    }
}

/// How often limits are looked at while something is outstanding.
pub(super) fn tick(config: &TargetConfig) -> Duration {
    let shortest = config.silence_timeout.min(config.disks.io_timeout);
    (shortest / 8).clamp(Duration::from_millis(2), Duration::from_millis(100))
}
