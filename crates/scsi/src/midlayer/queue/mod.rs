//! A disk queue: requests to the logical units of one bus, over a driver's queue of tasks.
//!
//! It knows blocks and disks and nothing of how a task is carried. What a request becomes, when a task is sent again (unit attentions,
//! BUSY, TASK SET FULL) and when not (whatever was carried out, or may have been), what an answer means, and how a task is ended
//! that takes too long: all of it is here, once for all drivers.

mod command;
mod dispute;
mod ladder;
mod requests;
mod single;
mod units;

pub use single::LogicalUnitQueue;

use super::bus::Bus;
use super::task::{Answer, Outcome, TaskDone, TaskEnd, TaskQueue};
use super::{DiskConfig, Recovery};
use crate::{Again, Attention, Meaning, meaning};
pub(super) use command::Memory;
use ladder::Ladder;
use polypath_block::{
    Armed, Code, ControllerQueue, Cx, Done, Health, Io, Op, OpenError, QueueConfig, QueueFence, Refused, RefusedWhy,
    Rest, Scope, SlotKey, Splitter, Status, Time, Unit, UnitId, Waits,
};
use polypath_net::Bell;
use requests::{Requests, Stage};
use std::sync::Arc;
use std::time::Duration;
use units::{Change, PROBE_TAG, Units};

/// How often a task is sent again at once after a unit attention: a logical unit has several to report, not many.
const MOST_TRIES: u8 = 32;
/// Pause before a task is sent again that was refused for now.
const AGAIN: Duration = Duration::from_millis(5);

/// See the module.
pub struct DiskQueue<Q> {
    tasks: Q,
    bus: Arc<Bus>,
    bell: Arc<Bell>,
    config: DiskConfig,
    units: Units,
    requests: Requests,
    memory: Memory,
    taken: TaskDone,
    ladder: Ladder,
    nexus: u64,
    /// Since when the driver takes nothing of what waits.
    refused: Option<Time>,
    closing: bool,
}

impl<Q: TaskQueue> DiskQueue<Q> {
    /// A queue over `tasks`, which belong to `bus`.
    ///
    /// # Errors
    /// [`OpenError`]: no memory, no descriptor, or the bus is gone.
    pub fn new(tasks: Q, bus: Arc<Bus>, disk: DiskConfig, config: QueueConfig) -> Result<Self, OpenError> {
        let slots = config.depth.max(tasks.limits().depth).clamp(1, 8192);
        let system = |reason: String| OpenError::System { name: bus.name().to_owned(), reason };
        let memory = Memory::new(slots).map_err(|e| system(e.to_string()))?;
        let bell = bus.register_queue()?;
        bell.ring();
        Ok(DiskQueue {
            ladder: Ladder::new(&disk),
            tasks,
            bus,
            bell,
            config: disk,
            units: Units::new(),
            requests: Requests::new(slots),
            memory,
            taken: TaskDone::with_capacity(usize::from(slots) + 8),
            nexus: 0,
            refused: None,
            closing: false,
        })
    }

    #[inline]
    fn takes(&self, unit: Unit) -> bool {
        !self.closing
            && self.tasks.health() != Health::Down
            && self.tasks.nexus() == self.nexus
            && self.units.takes(unit)
    }

    #[inline]
    fn take(&mut self, cx: &mut Cx<'_>, unit: Unit, io: &Io) -> Result<(), RefusedWhy> {
        if !self.takes(unit) {
            return Err(RefusedWhy::Gone);
        }
        if self.requests.is_full() {
            return Err(RefusedWhy::Full);
        }
        let Some(state) = self.units.get(unit) else { return Err(RefusedWhy::Gone) };
        let traits = &state.traits;
        let checked = traits.limits.check(io, traits.blocks, traits.block_size, cx.segs);
        if let Err(status) = checked.and_then(|()| command::check_memory(io, traits.block_size, cx.segs)) {
            self.requests.refuse(io.tag, status);
            return Ok(());
        }
        // What waits has its limit, too.
        self.ladder.started(cx.now);
        if !traits.limits.fits(io, traits.block_size, cx.segs) {
            let splitter = Splitter::new(*io, &traits.limits, traits.block_size);
            if !self.requests.insert_cut(unit, io.tag, splitter) {
                return Err(RefusedWhy::Full);
            }
            self.feed(cx);
            return Ok(());
        }
        let Some(key) = self.requests.insert(unit, io, cx.now) else { return Err(RefusedWhy::Full) };
        if self.requests.has_backlog() || !self.room_at_unit(key) || !self.send(cx, key) {
            self.requests.wait(key, cx.now);
        }
        Ok(())
    }

    /// Sends a part; `false` when it cannot be now.
    #[inline]
    fn send(&mut self, cx: &mut Cx<'_>, key: SlotKey) -> bool {
        let Some(part) = self.requests.get_mut(key) else { return true };
        let Some(state) = self.units.get(part.unit).filter(|_| self.units.is_usable(part.unit)) else { return false };
        let Some((cdb, data)) = command::build(&part.io, &state.traits, &self.memory, cx.segs, key.index()) else {
            return false;
        };
        let task = state.task(key.as_u32().into(), cdb, data, part.io.op.changes_medium());
        let sent = self.tasks.submit(cx, &task).is_ok();
        if sent {
            part.sent(cx.now);
            self.refused = None;
        } else {
            self.refused.get_or_insert(cx.now);
        }
        sent
    }

    /// Sends what waits, as far as there is room.
    #[inline(never)]
    fn feed(&mut self, cx: &mut Cx<'_>) {
        loop {
            let DiskQueue { requests, units, .. } = self;
            let ready = |unit: Unit| units.is_usable(unit);
            let Some(key) = requests.next(cx.segs, cx.now, ready) else { return };
            if !self.room_at_unit(key) || !self.send(cx, key) {
                self.requests.wait(key, cx.now);
                return;
            }
        }
    }

    /// A logical unit that has said TASK SET FULL is not given more than it held then.
    fn room_at_unit(&self, key: SlotKey) -> bool {
        let Some(part) = self.requests.get(key) else { return true };
        let allowed = self.units.get(part.unit).map_or(u16::MAX, |u| u.allowed);
        allowed == u16::MAX || self.requests.in_flight(part.unit) < usize::from(allowed.max(1))
    }

    /// Takes what the driver has found.
    #[inline]
    fn harvest(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let mut taken = std::mem::take(&mut self.taken);
        self.tasks.poll(cx, &mut taken);
        // First: one of them may put in doubt what was answered good.
        if !taken.ends.is_empty() {
            self.harvest_ends(cx, &taken, done, true);
        }
        for &tag in &taken.good {
            if tag & PROBE_TAG == 0 {
                self.requests.good(SlotKey::from_u32(tag as u32), done);
            } else {
                self.units.probe_good(tag, &self.memory);
            }
        }
        if !(taken.ends.is_empty() && taken.suspects.is_empty() && taken.recoveries.is_empty()) {
            self.harvest_rare(cx, &taken, done);
        }
        taken.clear();
        self.taken = taken;
    }

    /// Acts on the ends with sense data, which tell something (`telling`), or on the others.
    #[cold]
    fn harvest_ends(&mut self, cx: &mut Cx<'_>, taken: &TaskDone, done: &mut Done, telling: bool) {
        let tells = |end: &&TaskEnd| matches!(&end.outcome, Outcome::Answered(answer) if answer.sense.is_some());
        for end in taken.ends.iter().filter(|end| tells(end) == telling) {
            if end.tag & PROBE_TAG == 0 {
                self.end(cx, end, done);
            } else {
                self.units.probe_ended(end, &self.memory);
            }
        }
    }

    #[cold]
    fn harvest_rare(&mut self, cx: &mut Cx<'_>, taken: &TaskDone, done: &mut Done) {
        // A registration of the queue's own whose outcome is not known is looked into when the way is back.
        for suspect in taken.suspects.iter().filter(|s| s.tag & PROBE_TAG == 0) {
            self.requests.suspect(SlotKey::from_u32(suspect.tag as u32), suspect.cause, suspect.fence, done);
        }
        self.harvest_ends(cx, taken, done, false);
        for recovery in &taken.recoveries {
            let DiskQueue { ladder, requests, .. } = self;
            if recovery.token & PROBE_TAG == 0 {
                ladder.answered(recovery, requests, cx.now);
            } else {
                self.units.recovered(recovery);
            }
        }
    }

    /// A task of a request has ended otherwise than well.
    fn end(&mut self, cx: &mut Cx<'_>, end: &TaskEnd, done: &mut Done) {
        let key = SlotKey::from_u32(end.tag as u32);
        let Some(part) = self.requests.get(key) else { return };
        let (unit, stage) = (part.unit, part.stage);
        match &end.outcome {
            Outcome::Answered(answer) => self.judge(cx, key, unit, answer, done),
            Outcome::BadMemory => drop(self.requests.end(key, Code::BadMemory.into(), end.proof, done)),
            Outcome::Lost(code) => {
                // Ended because we asked for it: that was because no answer came.
                let code = if matches!(stage, Stage::Ending(..)) { Code::PathTimeout } else { *code };
                self.requests.lost(key, code, end.proof, done);
            }
        }
    }

    /// The device server has answered: what does that mean?
    fn judge(&mut self, cx: &mut Cx<'_>, key: SlotKey, unit: Unit, answer: &Answer, done: &mut Done) {
        let Some(part) = self.requests.get(key) else { return };
        let (tries, first, op, revoked) = (part.tries, part.first, part.io.op, part.is_revoked());
        let fail = |this: &mut Self, status: Status, done: &mut Done| {
            this.requests.answered(key, status, done);
        };
        match meaning(answer.status, answer.sense.as_ref()) {
            // Less than was asked for, and called good: the data are not what they should be.
            Meaning::Done if op.has_data() && !self.is_whole(key, unit, answer) => {
                fail(self, Code::PathProtocol.into(), done);
            }
            Meaning::Done => drop(self.requests.good(key, done)),
            Meaning::Failed(status) => {
                if let Some(status) = self.judge_failure(key, unit, status, cx.now) {
                    fail(self, status, done);
                }
            }
            // It is what a flush is for to say; everybody else was not carried out, and whoever flushes next is to hear of it.
            Meaning::Deferred(status) if op == Op::Flush => fail(self, status, done),
            Meaning::Deferred(status) => {
                self.units.lost_changes(unit);
                if revoked || tries >= MOST_TRIES {
                    return fail(self, status, done);
                }
                self.requests.wait(key, cx.now);
            }
            // Another path may have access at once.
            meant @ Meaning::Again(Again::Transition) => {
                self.units.gives_no_access(unit);
                fail(self, meant.give_up(answer.sense.as_ref()), done);
            }
            // Given up, and nobody says how far it had come: what is sent once is not sent again.
            meant @ Meaning::Again(again)
                if op.is_once() && !matches!(again, Again::Busy | Again::TaskSetFull | Again::BecomingReady) =>
            {
                let detail = meant.give_up(answer.sense.as_ref()).detail;
                fail(self, Status::with_detail(Code::OutcomeUnknown, detail), done);
            }
            meant @ (Meaning::UnitAttention(_) | Meaning::Again(_))
                if tries >= MOST_TRIES || cx.now.since(first) >= self.config.busy_limit =>
            {
                fail(self, meant.give_up(answer.sense.as_ref()), done);
            }
            meant @ Meaning::UnitAttention(attention) => {
                self.hear(cx, key, unit, attention);
                if revoked {
                    fail(self, meant.give_up(answer.sense.as_ref()), done);
                }
            }
            meant @ Meaning::Again(_) if revoked => fail(self, meant.give_up(answer.sense.as_ref()), done),
            Meaning::Again(again) => {
                if again == Again::TaskSetFull {
                    let held = self.requests.in_flight(unit).saturating_sub(1).max(1);
                    if let Some(state) = self.units.get_mut(unit) {
                        state.allowed = u16::try_from(held).unwrap_or(u16::MAX);
                    }
                }
                self.requests.wait(key, cx.now.after(AGAIN));
            }
        }
    }

    /// A part has failed, if its answer stands: with what it comes to.
    fn judge_failure(&mut self, key: SlotKey, unit: Unit, status: Status, now: Time) -> Option<Status> {
        let op = self.requests.get(key)?.io.op;
        // tgt answers so to an UNMAP that it cannot do: is the unit gone, or the command none?
        let none = dispute::denies_unit(status) && matches!(op, Op::Discard | Op::WriteZeroes);
        if self.disputes(key, unit, status, now) && (none || status.scope() != Scope::Path) {
            self.requests.wait(key, now);
            return None;
        }
        if status.code == Code::ReservationConflict {
            self.units.alarm(unit);
        }
        if none {
            return Some(Status { code: Code::Unsupported, ..status });
        }
        if status.code == Code::PathNoAccess {
            self.units.gives_no_access(unit);
        }
        Some(status)
    }

    /// A part was answered with a unit attention: it is sent again once that was acted on.
    fn hear(&mut self, cx: &mut Cx<'_>, key: SlotKey, unit: Unit, attention: Attention) {
        if tells_reset(attention) && self.requests.doubt_older(key, unit) {
            self.ladder.hurry(cx.now);
        }
        self.units.attention(unit, attention);
        self.requests.wait(key, cx.now);
        if attention.may_be_another() {
            self.requests.doubt(unit);
        }
    }

    fn is_whole(&self, key: SlotKey, unit: Unit, answer: &Answer) -> bool {
        let (Some(part), Some(state)) = (self.requests.get(key), self.units.get(unit)) else { return true };
        u64::from(answer.moved) >= part.io.data_len(state.traits.block_size)
    }

    /// The way has come up, or gone.
    #[inline]
    fn follow(&mut self, done: &mut Done) {
        let (down, nexus) = (self.tasks.health() == Health::Down, self.tasks.nexus());
        if !down && nexus == self.nexus {
            return;
        }
        if nexus != self.nexus {
            self.units.forget(self.tasks.target_port());
            self.nexus = nexus;
        }
        if self.requests.has_backlog() {
            let code = self.tasks.trouble().map_or(Code::PathLost, |(code, _)| code);
            let code = if Status::new(code).scope() == Scope::Path { code } else { Code::PathLost };
            self.requests.end_all_waiting(code, done);
        }
    }

    /// Looks at all time limits.
    #[cold]
    fn check_time(&mut self, cx: &mut Cx<'_>) {
        for (key, rung) in self.requests.late(cx.now, self.config.io_timeout, self.config.grace) {
            let Some(part) = self.requests.get(key) else { continue };
            let Some(state) = self.units.get(part.unit) else { continue };
            let (address, unit) = (state.address, part.unit);
            let doubted = part.doubted;
            let mut rung = self.ladder.next(rung, doubted);
            loop {
                let step = Ladder::step(rung, key.as_u32().into(), address);
                tracing::warn!(
                    path = %self.bus.name(), lun = %address.lun, ?step, unit = unit.0, after_a_reset = doubted,
                    limit_ms = self.config.io_timeout.as_millis() as u64, "a task is not answered"
                );
                if self.tasks.recover(cx, step, key.as_u32().into()) || step == Recovery::ResetHost {
                    break;
                }
                rung = self.ladder.next(Some(rung), doubted);
            }
            if let Some(part) = self.requests.get_mut(key)
                && !matches!(part.stage, Stage::Suspect)
            {
                part.stage = Stage::Ending(rung, cx.now);
            }
        }
    }

    /// The driver has taken nothing for as long as a task may take: what waits ends, so that another way may do. If it holds nothing either
    /// (iSCSI: a command window that does not open any more), only a new way helps.
    #[cold]
    fn check_refused(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        if !self.requests.has_backlog() {
            self.refused = None;
        }
        let Some(since) = [self.refused, self.units.refused()].into_iter().flatten().min() else { return };
        if cx.now.since(since) < self.config.io_timeout {
            return;
        }
        let ms = self.config.io_timeout.as_millis();
        tracing::warn!(path = %self.bus.name(), "the target has taken no command for {ms} ms: what waits ends");
        self.requests.end_all_waiting(Code::PathTimeout, done);
        self.refused = None;
        self.units.forgive();
        if self.requests.has_nothing_sent() && !self.units.awaits_answer() {
            self.tasks.recover(cx, Recovery::ResetHost, PROBE_TAG);
        }
    }

    /// Another disk answers where units of ours were, as another way has shown: their requests are not for that one. What was sent may go
    /// on by itself, data that the target asks for among it, so that the way is given up with it.
    fn leave_others(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        for unit in self.units.take_others() {
            self.requests.revoke(unit, Code::PathIdentity, done);
            if self.requests.in_flight(unit) > 0 {
                tracing::warn!(path = %self.bus.name(), unit = unit.0, "another disk answers while requests are under way: the way is given up");
                self.tasks.recover(cx, Recovery::ResetHost, PROBE_TAG);
            }
        }
    }

    fn shut(&mut self, cx: &mut Cx<'_>) {
        self.memory.release(cx.segs);
        self.tasks.close(cx);
    }
}

/// Are tasks gone that were sent before it was heard?
fn tells_reset(attention: Attention) -> bool {
    matches!(attention, Attention::PowerOnOrReset | Attention::PowerOn | Attention::Reset)
}

impl<Q: TaskQueue> ControllerQueue for DiskQueue<Q> {
    fn open_unit(&mut self, id: UnitId) -> Result<Unit, OpenError> {
        let unit = self.units.open(&self.bus, id)?;
        self.bell.ring();
        Ok(unit)
    }

    fn close_unit(&mut self, unit: Unit) {
        self.units.close(unit);
    }

    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, unit: Unit, io: Io) -> Result<(), Refused> {
        self.take(cx, unit, &io).map_err(|why| Refused { io, why })
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, unit: Unit, ios: &[Io]) -> Result<(), Rest> {
        for (taken, io) in ios.iter().enumerate() {
            self.take(cx, unit, io).map_err(|why| Rest { taken, why })?;
        }
        Ok(())
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.tasks.kick(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.bell.rise();
        if !self.memory.is_ready() && !self.closing {
            self.memory.reserve(cx.segs);
        }
        let rung = self.bell.answer();
        if rung {
            self.leave_others(cx, done);
            self.doubt_missing(cx.now);
        }
        self.harvest(cx, done);
        self.follow(done);
        // What waits for the outcome of a look is to end, too.
        let looks = !self.closing || self.requests.has_backlog();
        if looks && (rung || self.units.next_due().is_some_and(|at| cx.now >= at)) {
            while let Some(change) = self.units.drive(&mut self.tasks, &self.memory, cx) {
                match change {
                    Change::Revoked(unit, code) => self.requests.revoke(unit, code, done),
                    Change::Usable(unit) if self.units.is_usable(unit) => self.requests.trust(unit, done),
                    Change::Usable(_) => {}
                }
            }
        }
        if self.requests.has_backlog() {
            self.feed(cx);
        }
        if self.units.has_limit() {
            self.ladder.started(cx.now);
        }
        if self.ladder.is_due(cx.now) {
            self.check_time(cx);
            self.units.check_time(&mut self.tasks, &self.config, cx);
            self.check_refused(cx, done);
            self.units.allow_more(self.tasks.limits().depth);
            self.ladder.looked(cx.now, !self.requests.is_empty() || self.units.has_limit());
        }
        self.tasks.kick(cx);
        if self.requests.has_early() {
            self.requests.drain_early(done);
        }
        if self.closing && self.requests.is_empty() {
            self.shut(cx);
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.requests.has_early() || self.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        let up = self.tasks.health() != Health::Down;
        let due = [self.requests.next_due(), self.units.next_due()].into_iter().flatten().filter(|_| up).min();
        for at in [due, Some(self.ladder.due())].into_iter().flatten().filter(|at| *at != Time::NEVER) {
            waits.until(at);
        }
        self.tasks.arm(cx, waits)
    }

    fn health(&self, unit: Unit) -> Health {
        if self.takes(unit) { self.tasks.health() } else { Health::Down }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.closing = true;
        if self.requests.is_empty() {
            self.shut(cx);
        }
    }

    fn is_drained(&self) -> bool {
        self.requests.is_empty() && self.tasks.is_drained()
    }

    fn is_surplus(&self) -> bool {
        self.tasks.is_surplus()
    }

    fn end_fence(&self) -> Option<Arc<dyn QueueFence>> {
        self.tasks.end_fence()
    }
}

impl<Q> Drop for DiskQueue<Q> {
    fn drop(&mut self) {
        self.requests.abandon();
        self.bus.release_queue();
    }
}
