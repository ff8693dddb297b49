//! One session: one TCP connection to one portal, owned by one reactor, as a queue of SCSI tasks.
//!
//! It connects, logs in, keeps alive and comes back by itself, always with the same ISID. What changes a medium and was on the way when
//! the connection was lost is suspect, and ends with the first of these proofs: the target takes a new login of the same initiator port
//! at the same portal group, which ends the session before it and all of its tasks (*reinstatement*, RFC 7143 section 6.3.5), if it
//! is the same target as far as can be told; where it was configured, LOGICAL UNIT RESET was answered through another way to the disk; or the configured bound has passed since our socket was closed. While the session lives, a task that takes too long is ended by ABORT TASK
//! answered FUNCTION COMPLETE.
//!
//! Each fact is owned by a value with its life: what belongs to one task by its slot in the link, to one connection by [`Connection`], what is left of lost
//! ones by [`lost`]. What is left here belongs to the session.

mod connection;
mod fence;
mod lost;
mod portals;

use crate::config::TargetConfig;
use crate::identity::SessionNumber;
use crate::link::{Broken, Ended, Finished, Heard};
use crate::login::{InitiatorConfig, Negotiated};
use crate::pdu::{AsyncEvent, Isid, Lun, TaskFunction, TaskResult};
use crate::serial::CmdSn;
use connection::Connection;
use fence::EndFence;
use lost::{LostTasks, Place};
use polypath_block::{
    Armed, Code, Cx, Fate, FenceTerms, Health, Host, Proof, QueueFence, RefusedWhy, Suspect, Time, TurnClock, Waits,
};
use polypath_net::Bell;
use polypath_scsi::ScsiStatus;
use polypath_scsi::midlayer::{
    Address, Answer, Bus, Outcome, Recovered, Recovery, RecoveryEnd, Task, TaskDone, TaskEnd, TaskLimits, TaskQueue,
};
use portals::Portals;
use std::sync::Arc;
use std::time::Duration;

/// Tags of tasks that change a medium: `users` of the link carry this bit beside them.
const CHANGES: u64 = 1 << 62;

/// How long a target may have us wait before we look for it again (Time2Wait).
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a session is made from.
pub(crate) struct Shape {
    pub(crate) config: Arc<TargetConfig>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) number: SessionNumber,
    pub(crate) bell: Arc<Bell>,
    pub(crate) bus: Arc<Bus>,
}

/// Task management that was asked for and not answered.
struct Asked {
    token: u64,
    step: Recovery,
    /// Who the task of an ABORT TASK belonged to.
    user: Option<u64>,
    /// Commands from this number on were sent after it: it says nothing of them.
    before: CmdSn,
}

/// See the module.
pub struct Session {
    config: Arc<TargetConfig>,
    host: Arc<dyn Host>,
    isid: Isid,
    number: SessionNumber,
    bell: Arc<Bell>,
    portals: Portals,
    connection: Option<Connection>,
    /// When to connect next, and how often it has failed.
    redial_at: Time,
    failures: u32,
    trouble: Option<(Code, String)>,
    lasting: bool,
    nexus: u64,
    up_since: Time,
    lost: LostTasks,
    asked: Vec<Asked>,
    /// To be left by then: the target asked for it, or it is closed.
    leaving: Option<Time>,
    clock: TurnClock,
    depth: u16,
    closing: bool,
    looked: Time,
    slept: bool,
    end_fence: Arc<EndFence>,
    /// The lun of the last unsolicited attention, for the control poller.
    attention: bool,
}

impl Session {
    pub(crate) fn new(shape: Shape, depth: u16) -> Self {
        let Shape { config, host, number, bell, bus } = shape;
        let depth = depth.clamp(1, crate::proto::MAX_DEPTH);
        Session {
            isid: number.isid(),
            number,
            portals: Portals::new(&config),
            connection: None,
            redial_at: Time::ZERO,
            failures: 0,
            trouble: None,
            lasting: false,
            nexus: 0,
            up_since: Time::ZERO,
            lost: LostTasks::new(depth, bus),
            asked: Vec::with_capacity(32),
            leaving: None,
            clock: TurnClock::new(),
            depth,
            closing: false,
            looked: Time::ZERO,
            slept: false,
            end_fence: Arc::new(EndFence::new(&config)),
            attention: false,
            bell,
            host,
            config,
        }
    }

    /// Why it gave up for good: a name or a secret is wrong.
    pub(crate) fn is_refused(&self) -> bool {
        self.lasting
    }

    /// Has the target reported something of a logical unit by itself?
    pub(crate) fn take_attention(&mut self) -> bool {
        std::mem::take(&mut self.attention)
    }

    /// Connects as soon as can be, whatever pause was to be kept: somebody knows that the target is back.
    pub(crate) fn hurry(&mut self) {
        if self.connection.is_none() {
            self.redial_at = Time::ZERO;
            self.portals.again();
        }
    }

    fn fence_terms(&self) -> FenceTerms {
        let bound_ms = u32::try_from(self.config.fence.as_millis()).unwrap_or(u32::MAX);
        // What it comes to if the target never answers again; it ends earlier with a reinstatement.
        FenceTerms { proof: Proof::ConfiguredBound { bound_ms }, within: self.config.fence }
    }

    fn progress(&mut self, now: Time, done: &mut TaskDone) {
        if let Some(connection) = &self.connection {
            if connection.is_overdue(now) {
                let ms = self.config.connect_timeout.as_millis();
                self.lose(done, Broken::new(Code::PathTimeout, format!("not logged in within {ms} ms")), now);
            }
            return;
        }
        if self.closing && self.lost.is_empty() || now < self.redial_at {
            return;
        }
        let Some(address) = self.portals.next(&self.config, &self.bell, now) else { return };
        match address {
            Ok(address) => match Connection::dial(&self.config, &self.host, address, self.login(), self.depth, now) {
                Ok(connection) => self.connection = Some(connection),
                Err(broken) => self.retry_later(now, &broken),
            },
            Err(reason) => self.retry_later(now, &Broken::new(Code::PathLost, reason)),
        }
    }

    fn login(&self) -> Result<InitiatorConfig, Broken> {
        let made = self.config.login(self.isid);
        made.map_err(|reason| Broken { lasting: true, ..Broken::new(Code::PathNoAccess, reason) })
    }

    fn retry_later(&mut self, now: Time, broken: &Broken) {
        self.failures += 1;
        let delay = self.config.reconnect_delay * self.failures.min(10);
        if let Some(portal) = &broken.moved_to {
            self.portals.moved_to(portal.clone());
        }
        self.redial_at = if broken.moved_to.is_some() && self.failures < 8 { now } else { now.after(delay) };
        let first = self.trouble.as_ref().is_none_or(|(_, reason)| *reason != broken.reason);
        if first {
            tracing::warn!(
                path = %self.config.name, session = self.number.get(), reason = %broken.reason,
                again_ms = delay.as_millis() as u64, "no session"
            );
        }
        self.lasting = broken.lasting;
        self.trouble = Some((broken.code, broken.reason.clone()));
    }

    /// The target has taken the login.
    fn came_up(&mut self, negotiated: &Negotiated, now: Time, done: &mut TaskDone) {
        let Some(connection) = &mut self.connection else { return };
        connection.set_ready(now);
        let tpgt = negotiated.portal_group_tag;
        (self.failures, self.trouble, self.lasting, self.leaving) = (0, None, false, None);
        self.nexus += 1;
        self.up_since = now;
        let (way, prove) = (self.portals.way(), self.config.portals_prove);
        if let Some(commands) = self.lost.reinstated(tpgt, way, prove, done) {
            tracing::info!(path = %self.config.name, session = self.number.get(), commands, proof = %Proof::Reinstated, "lost changes are quiet");
        }
        self.lost.set_place(Place::at_the_end_of(way, tpgt));
        tracing::debug!(
            path = %self.config.name, session = self.number.get(), isid = %self.isid, tsih = negotiated.tsih, ?tpgt,
            header_digest = negotiated.header_digest, data_digest = negotiated.data_digest, "session is up"
        );
    }

    fn receive(&mut self, cx: &mut Cx<'_>, done: &mut TaskDone) {
        let Some(mut connection) = self.connection.take() else { return };
        let mut rare = Vec::new();
        let received = connection.receive(cx.segs, cx.now, |heard| match heard {
            Heard::Ended(finished) if finished.is_good() => done.good.push(finished.user & !CHANGES),
            other => rare.push(other),
        });
        self.connection = Some(connection);
        for heard in rare {
            self.take_rare(heard, cx.now, done);
        }
        if let Err(broken) = received {
            self.lose(done, broken, cx.now);
        }
    }

    #[cold]
    fn take_rare(&mut self, heard: Heard, now: Time, done: &mut TaskDone) {
        match heard {
            Heard::Up(negotiated) => self.came_up(&negotiated, now, done),
            Heard::Ended(finished) => done.ends.push(end_of(&finished)),
            Heard::Managed { token, result } => self.managed(token, result, done),
            Heard::Pong => {}
            Heard::Async(event) => self.asked_by_target(event, now, done),
            Heard::Attention => self.attention = true,
            Heard::LoggedOut => {
                let broken = Broken::new(Code::PathLost, "logged out, as the target asked");
                self.lose(done, broken, now);
                self.redial_at = now;
            }
        }
    }

    fn asked_by_target(&mut self, event: AsyncEvent, now: Time, done: &mut TaskDone) {
        tracing::info!(path = %self.config.name, session = self.number.get(), %event, "the target asks");
        match event {
            AsyncEvent::LogoutRequested { within_s } | AsyncEvent::NegotiationRequested { within_s } => {
                // To negotiate anew is to log in anew. A second is left for the logout itself.
                let span = Duration::from_secs(u64::from(within_s).saturating_sub(1).max(1));
                self.leave_within(span, now);
            }
            AsyncEvent::ConnectionDropped { time2wait_s, .. } | AsyncEvent::SessionDropped { time2wait_s, .. } => {
                self.lose(done, Broken::new(Code::PathLost, event.to_string()), now);
                self.redial_at = now.after(Duration::from_secs(time2wait_s.into()).min(LONGEST_WAIT));
            }
            AsyncEvent::Scsi | AsyncEvent::TasksTerminated | AsyncEvent::Other { .. } => {}
        }
    }

    /// A task management request was answered.
    fn managed(&mut self, token: u64, result: TaskResult, done: &mut TaskDone) {
        let Some(at) = self.asked.iter().position(|asked| asked.token == token) else { return };
        let asked = self.asked.swap_remove(at);
        let outcome = match result {
            TaskResult::Complete => Recovered::Complete,
            TaskResult::NoTask => Recovered::NoSuchTask,
            _ => Recovered::Failed,
        };
        tracing::info!(path = %self.config.name, session = self.number.get(), step = ?asked.step, %result, "task management was answered");
        if outcome == Recovered::Complete
            && let Some(connection) = &mut self.connection
        {
            let ended = match asked.step {
                // The same number may have been sent again since: the one that was named had been answered then.
                Recovery::AbortTask { .. } => {
                    let mut tasks = connection.link().tasks_before(asked.before, None);
                    tasks.retain(|(_, user)| Some(*user) == asked.user);
                    tasks
                }
                Recovery::ResetLogicalUnit { lun, .. } => {
                    connection.link().tasks_before(asked.before, Some(Lun(lun.0)))
                }
                Recovery::ResetTarget { .. } | Recovery::ResetHost => {
                    connection.link().tasks_before(asked.before, None)
                }
            };
            for (slot, user) in ended {
                if connection.link_mut().end_aborted(slot) {
                    let outcome = Outcome::Lost(Code::PathTimeout);
                    done.ends.push(TaskEnd { tag: user & !CHANGES, outcome, proof: Proof::Aborted });
                }
            }
        }
        done.recoveries.push(RecoveryEnd { token, outcome });
    }

    /// Closes the socket and accounts for every task.
    #[cold]
    fn lose(&mut self, done: &mut TaskDone, broken: Broken, now: Time) {
        let Some(connection) = self.connection.take() else { return };
        let was_ready = connection.is_ready();
        // Memory that is gone has done no harm to the other tasks: for them the way is lost.
        let code = if broken.code == Code::BadMemory { Code::PathLost } else { broken.code };
        let terms = self.fence_terms();
        let lost = &mut self.lost;
        let closed = connection.abort(|ended| match ended {
            Ended { finished: Some(finished), .. } => done.ends.push(end_of(&finished)),
            Ended { user, fate: Fate::NotSent, .. } => {
                let outcome = Outcome::Lost(code);
                done.ends.push(TaskEnd { tag: user & !CHANGES, outcome, proof: Proof::NeverSent });
            }
            Ended { user, .. } if user & CHANGES == 0 => {
                let outcome = Outcome::Lost(code);
                done.ends.push(TaskEnd { tag: user, outcome, proof: Proof::SocketClosed });
            }
            Ended { user, lun, taken, .. } => {
                let tag = user & !CHANGES;
                done.suspects.push(Suspect { tag, fate: Fate::Unknown, cause: code, fence: terms });
                let address = Address { target: 0, lun: polypath_scsi::Lun(lun.0) };
                lost.add(tag, code, taken.then_some(address));
            }
        });
        self.lost.closed(closed, self.config.fence, self.config.disks.reset_fence);
        for asked in self.asked.drain(..) {
            done.recoveries.push(RecoveryEnd { token: asked.token, outcome: Recovered::Failed });
        }
        self.leaving = None;
        if was_ready {
            // One that takes every login and drops every session is not asked without a pause.
            let lived = now.since(self.up_since);
            tracing::warn!(path = %self.config.name, session = self.number.get(), reason = %broken.reason, suspects = self.lost.len(), "session is lost");
            self.trouble = Some((code, broken.reason));
            // A target that lives takes us back at once, which is also the proof of what is suspect.
            self.redial_at =
                if lived >= self.config.reconnect_delay { now } else { now.after(self.config.reconnect_delay) };
            self.portals.again();
        } else {
            self.retry_later(now, &broken);
        }
    }

    /// Ends what another way has proven quiet, and what has waited for its bound.
    #[cold]
    fn end_lost(&mut self, now: Time, done: &mut TaskDone) {
        let (path, session) = (&self.config.name, self.number.get());
        if let Some((commands, proof)) = self.lost.proven_elsewhere(now, done) {
            tracing::info!(%path, session, commands, %proof, "lost changes are quiet");
        }
        if let Some(commands) = self.lost.expired(now, done) {
            let proof = self.fence_terms().proof;
            tracing::warn!(%path, session, commands, %proof, "the target does not answer; lost changes are taken for quiet");
        }
    }

    /// To be left within `span`, and within the time that its tasks may take: nothing more is begun on it, so that until then it is of no use,
    /// whatever the target says and however often.
    fn leave_within(&mut self, span: Duration, now: Time) {
        let disks = &self.config.disks;
        let by = now.after(span.min(disks.io_timeout + disks.grace));
        self.leaving = Some(self.leaving.map_or(by, |before| before.min(by)));
    }

    /// Leaves in order what is to be left, as soon as nothing is on it; by force when the time for it is over, whatever is not answered.
    fn leave(&mut self, now: Time, done: &mut TaskDone) {
        let (Some(by), Some(connection)) = (self.leaving, &mut self.connection) else { return };
        if connection.link().in_flight() == 0 {
            connection.link_mut().log_out();
        }
        if now >= by {
            let broken = Broken::new(Code::PathLost, "it is to be left, and what is on it is not answered");
            self.lose(done, broken, now);
        }
    }
}

impl TaskQueue for Session {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, task: &Task) -> Result<(), RefusedWhy> {
        if self.closing || self.leaving.is_some() {
            return Err(RefusedWhy::Gone);
        }
        let Some(connection) = self.connection.as_mut().filter(|c| c.is_ready()) else { return Err(RefusedWhy::Gone) };
        let user = task.tag | if task.changes { CHANGES } else { 0 };
        connection.submit(Lun(task.lun.0), *task.cdb.octets(), task.data, user, cx.now).ok_or(RefusedWhy::Full)
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        if let Some(connection) = &mut self.connection {
            connection.flush(cx.segs);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut TaskDone) {
        self.bell.rise();
        if let Some(late) = self.clock.turn(cx.now, connection::tick(&self.config))
            && let Some(connection) = &mut self.connection
        {
            connection.forgive(late, cx.now);
        }
        if self.bell.answer() {
            self.looked = Time::ZERO;
        }
        let slept = std::mem::take(&mut self.slept);
        match &self.connection {
            Some(connection) if connection.wants_look(cx.now, slept) => self.receive(cx, done),
            Some(_) => self.slept = slept,
            None => {}
        }
        if !self.connection.as_ref().is_some_and(Connection::is_ready) {
            self.progress(cx.now, done);
        }
        if self.leaving.is_some() {
            self.leave(cx.now, done);
        }
        if let Some(connection) = &mut self.connection {
            connection.flush(cx.segs);
            if connection.is_due(cx.now) {
                connection.check_silence(&self.config, self.number.get(), cx.now);
            }
            if let Some(broken) = connection.take_broken() {
                self.lose(done, broken, cx.now);
            }
        }
        if !self.lost.is_empty() {
            self.end_lost(cx.now, done);
        }
    }
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let news = self.connection.as_ref().is_some_and(Connection::has_news);
        if news || self.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        let mut wake = match &self.connection {
            Some(connection) => connection.arm(waits),
            None if cx.now < self.redial_at => self.redial_at,
            None => self.portals.due(&self.config, cx.now).unwrap_or(self.redial_at),
        };
        for at in [self.lost.due(), self.leaving].into_iter().flatten() {
            wake = wake.min(at);
        }
        if wake != Time::NEVER {
            waits.until(wake);
        }
        self.clock.sleeps_until(wake);
        self.slept = true;
        Armed::Sleep
    }

    fn health(&self) -> Health {
        match &self.connection {
            Some(connection) if connection.is_ready() && !self.closing && self.leaving.is_none() => {
                if connection.is_stalled() { Health::Stalled } else { Health::Ready }
            }
            _ => Health::Down,
        }
    }

    fn trouble(&self) -> Option<(Code, String)> {
        self.trouble.clone()
    }

    fn nexus(&self) -> u64 {
        self.nexus
    }

    fn target_port(&self) -> u64 {
        // One that does not say its tag has only one, as far as can be told.
        self.lost.portal_group().map_or(u64::MAX, u64::from)
    }

    fn limits(&self) -> TaskLimits {
        TaskLimits { depth: self.depth, max_transfer_bytes: 0, max_segments: 0 }
    }

    fn recover(&mut self, cx: &mut Cx<'_>, step: Recovery, token: u64) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        if let Recovery::ResetHost = step {
            let reason = "a task is not answered, and could not be aborted";
            connection.set_broken(Broken::new(Code::PathTimeout, reason));
            return true;
        }
        let link = connection.link_mut();
        let Some(before) = link.next_cmd_sn() else { return false };
        let (sent, user) = match step {
            Recovery::AbortTask { tag } => {
                let found = [tag, tag | CHANGES].into_iter().find_map(|user| Some((link.slot_of(user)?, user)));
                let Some((slot, user)) = found else { return false };
                let lun = link.lun_of(slot);
                (link.manage(TaskFunction::AbortTask, lun, Some(slot), token), Some(user))
            }
            Recovery::ResetLogicalUnit { lun, .. } => {
                (link.manage(TaskFunction::LogicalUnitReset, Lun(lun.0), None, token), None)
            }
            Recovery::ResetTarget { .. } => (link.manage(TaskFunction::TargetWarmReset, Lun::ZERO, None, token), None),
            Recovery::ResetHost => return true,
        };
        if sent {
            self.asked.push(Asked { token, step, user, before });
            connection.flush(cx.segs);
        }
        sent
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.closing = true;
        if self.connection.is_some() {
            // Whoever closes waits for what is in flight, and nobody else will end it.
            self.leave_within(self.config.disks.io_timeout, cx.now);
        }
        // What was lost before waits for this one, or for the next, as its proof.
        let lost = !self.lost.is_empty();
        if let Some(connection) = self.connection.take_if(|c| !lost && (!c.is_ready() || c.link().in_flight() == 0)) {
            connection.close();
        }
    }

    fn is_drained(&self) -> bool {
        self.lost.is_empty() && self.connection.as_ref().is_none_or(|c| c.link().in_flight() == 0)
    }

    fn end_fence(&self) -> Option<Arc<dyn QueueFence>> {
        Some(self.end_fence.clone())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut open = !self.lost.is_empty();
        self.lost.abandon();
        if let Some(connection) = self.connection.take() {
            if connection.link().in_flight() > 0 {
                open = true;
                connection.abort(|_| ());
            } else {
                connection.close();
            }
        }
        self.end_fence.end(open.then(|| self.host.now()));
    }
}

impl Finished {
    /// GOOD, with nothing to be said of it.
    #[inline]
    fn is_good(&self) -> bool {
        self.ending.status == Some(ScsiStatus::GOOD.0) && !self.bad_memory && self.ending.whole
    }
}

fn end_of(finished: &Finished) -> TaskEnd {
    let Finished { user, ending, sense, bad_memory } = finished;
    let outcome = match ending.status {
        _ if *bad_memory => Outcome::BadMemory,
        Some(status) => Outcome::Answered(Answer { status: ScsiStatus(status), sense: *sense, moved: ending.moved }),
        // The target has failed to carry it out, and says so: it is over, and another way may do.
        None => Outcome::Lost(Code::PathLost),
    };
    TaskEnd { tag: user & !CHANGES, outcome, proof: Proof::Answered }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chap::{Credentials, Secret};
    use crate::identity::Sessions;
    use crate::login::Name;
    use polypath_block::{MakePoller, SegTable};
    use polypath_net::{Dialer, Transport};
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Where nobody is; counts how often somebody has looked.
    #[derive(Default)]
    struct Nowhere(AtomicU64);

    impl Host for Nowhere {
        fn spawn(&self, _: MakePoller) {}
        fn wake(&self) {}
        fn reactor(&self) -> u16 {
            0
        }
        fn now(&self) -> Time {
            Time::ZERO
        }
    }

    impl Dialer for Nowhere {
        fn dial(&self, _: SocketAddr) -> std::io::Result<Box<dyn Transport>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(std::io::ErrorKind::ConnectionRefused.into())
        }
    }

    #[test]
    fn a_wrong_secret_is_given_up_and_somebody_who_is_away_is_hurried_to() {
        for (wrong, dials) in [(false, [1, 1, 2]), (true, [0, 0, 0])] {
            let nowhere = Arc::new(Nowhere::default());
            let name = Name::new(&format!("iqn.2026-01.org.example:nowhere-{wrong}")).unwrap();
            let mut config = TargetConfig::new("192.0.2.1", 3260, name);
            let secret = |name: &str| Credentials { name: name.into(), secret: Secret::new("the same secret") };
            if wrong {
                (config.account, config.target_account) = (Some(secret("us")), Some(secret("them")));
            }
            (config.dialer, config.reconnect_delay) = (nowhere.clone(), Duration::from_millis(100));
            let number = SessionNumber::control(&Arc::new(Sessions::of(&config)));
            let bell = Arc::new(Bell::new().unwrap());
            let bus = Bus::new("bus", nowhere.clone(), Duration::ZERO);
            let config = Arc::new(config);
            let mut session = Session::new(Shape { config, host: nowhere.clone(), number, bell, bus }, 4);
            let mut segs = SegTable::new(1);
            let mut turn = |session: &mut Session, ms| {
                let mut cx = Cx { now: Time::from_millis(ms), segs: &mut segs, reactor: 0 };
                session.poll(&mut cx, &mut TaskDone::default());
                nowhere.0.load(Ordering::Relaxed)
            };
            assert_eq!((session.is_refused(), session.take_attention()), (false, false));
            session.take_rare(Heard::Attention, Time::ZERO, &mut TaskDone::default());
            assert!(session.take_attention() && !session.take_attention(), "told once");
            let [first, pause] = [1000, 1099].map(|ms| turn(&mut session, ms));
            assert_eq!(session.is_refused(), wrong, "{:?}", session.trouble());
            session.hurry();
            assert_eq!([first, pause, turn(&mut session, 1099)], dials);
        }
    }

    /// Memory that is gone has not taken what the target says that it has sent.
    #[test]
    fn nothing_is_good_in_memory_that_is_gone() {
        let ending = crate::proto::Ending { status: Some(0), moved: 512, whole: true, has_sense: false };
        for (bad_memory, outcome) in [
            (false, Outcome::Answered(Answer { status: ScsiStatus::GOOD, sense: None, moved: 512 })),
            (true, Outcome::BadMemory),
        ] {
            let finished = Finished { user: CHANGES | 7, ending, sense: None, bad_memory };
            assert_eq!(finished.is_good(), !bad_memory);
            assert_eq!(end_of(&finished), TaskEnd { tag: 7, outcome, proof: Proof::Answered });
        }
    }
}
