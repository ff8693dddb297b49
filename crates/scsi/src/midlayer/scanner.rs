//! The control side of a bus: probes the logical units that are asked for, over a task queue of its own, and watches them.
//!
//! A driver's control poller gives it turns; what it has found is in the [`Bus`]. It has its own segment table and memory, so that it may
//! run on any reactor.

mod prove;
mod relay;

use super::access::AccessWatch;
use super::bus::{Address, Bus, BusState, Shown};
use super::probe::{Probe, ProbeStep};
use super::queue::Memory;
use super::reserve::{Exchange, ExchangeStep, Order, Payload, is_alarm};
use super::task::{Outcome, Recovery, Task, TaskData, TaskDone, TaskEnd, TaskLimits, TaskQueue};
use crate::alua::{self, AluaState};
use crate::inquiry::Inquiry;
use crate::lun::LunList;
use crate::{Attention, Cdb, Lun, Meaning, meaning};
use polypath_block::{
    Access, Armed, Code, Cx, Health, Proof, ReservationError, ReservationOp, ReservationResult, SegTable, Time, Waits,
};
use polypath_memory::MemoryError;
use prove::{Proving, Stage as ProvingStage};
use relay::{Relay, RelayMemory};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long a command may take, unless its owner says otherwise ([`Scanner::with_time_limit`]).
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Pause before a logical unit in trouble is looked at again.
const TROUBLE: Duration = Duration::from_secs(1);

/// Pause before a task is tried again that the driver did not take.
const FULL: Duration = Duration::from_millis(10);

/// Octets of a list of logical units that are asked for: 511 of them.
const LISTED: u32 = 4096;

/// How often it is asked for between two watches: a target has unit attentions to report first, not many.
const MOST_LISTS: u32 = 4;

/// What is done with a logical unit.
enum Work {
    /// A look whether there is something to report.
    Look,
    /// Is there a disk at all? Asked after a look that was answered good: a target may have put something else there without a word.
    Presence,
    /// Which logical units are there? Of the target of its address, which has this list at any of them, and at LUN 0 for sure (SPC-4
    /// section 6.33.1).
    List,
    Probe(Box<Probe>),
    /// Something of reservations.
    Order(Box<Exchange>, Asker),
    /// This target port group, the one of our port, is to be active.
    Activate(u16),
    /// What other ways have lost is to be proven quiet.
    Prove(Box<Proving>),
    /// A command is passed through.
    Relay(Box<Relay>),
}

/// On whose account something of reservations is done.
enum Asker {
    /// Our own nexus follows what is claimed.
    Claim,
    /// Somebody waits for an answer.
    Caller(Ordered),
    /// He has been told that it takes too long. It is still to end.
    Nobody,
}

/// What is under way: one thing at a time.
struct Busy {
    address: Address,
    work: Work,
    task: Option<(u64, u32)>,
    /// When that was sent.
    sent: Time,
    /// Since when it is not taken.
    refused: Option<Time>,
    until: Time,
}

impl Busy {
    fn new(address: Address, work: Work) -> Busy {
        Busy { address, work, task: None, sent: Time::ZERO, refused: None, until: Time::ZERO }
    }

    /// Was it sent to change something, and does somebody wait for its end?
    fn is_waited_for(&self) -> bool {
        self.task.is_some()
            && match &self.work {
                Work::Order(exchange, Asker::Caller(_)) => exchange.changes(),
                Work::Relay(relay) => relay.changes,
                _ => false,
            }
    }
}

/// Somebody waits for an answer.
struct Ordered {
    order: Order,
    until: Time,
}

/// See the module.
pub struct Scanner<Q> {
    tasks: Q,
    bus: Arc<Bus>,
    queues: u16,
    watch: Duration,
    time_limit: Duration,
    /// Tasks that a queue of a disk takes at a time; `None`: as many as ours.
    disk_depth: Option<u16>,
    segs: SegTable,
    memory: Memory,
    taken: TaskDone,
    busy: Option<Busy>,
    orders: VecDeque<Ordered>,
    /// Logical units that are to be proven quiet.
    proofs: Vec<Proving>,
    relays: VecDeque<Relay>,
    relay_memory: Option<RelayMemory>,
    /// What was begun last is one of these: something else comes first now.
    relayed: bool,
    /// Carried out here, and not yet on every queue: with what is answered then.
    settling: Vec<(Ordered, ReservationResult)>,
    to_join: VecDeque<Address>,
    to_probe: VecDeque<Address>,
    to_watch: VecDeque<Address>,
    access: AccessWatch,
    /// How often the list was asked for since `watched`.
    lists: u32,
    watched: Time,
    retried: Time,
    nexus: u64,
    up: bool,
    /// Nothing new is done.
    closed: bool,
    tags: u64,
}

impl<Q: TaskQueue> Scanner<Q> {
    /// A scanner of `bus` over `tasks`, which are for it alone. `queues`: what devices say they can open. Each logical unit is asked every
    /// `watch` whether it has something to report.
    ///
    /// # Errors
    /// No memory.
    pub fn new(tasks: Q, bus: Arc<Bus>, queues: u16, watch: Duration) -> Result<Self, MemoryError> {
        let mut segs = SegTable::new(16);
        let mut memory = Memory::new(1)?;
        memory.reserve(&mut segs);
        Ok(Scanner {
            tasks,
            bus,
            queues,
            watch,
            time_limit: TIME_LIMIT,
            disk_depth: None,
            segs,
            memory,
            taken: TaskDone::with_capacity(8),
            busy: None,
            orders: VecDeque::new(),
            proofs: Vec::new(),
            relays: VecDeque::new(),
            relay_memory: None,
            relayed: false,
            settling: Vec::new(),
            to_join: VecDeque::new(),
            to_probe: VecDeque::new(),
            to_watch: VecDeque::new(),
            access: AccessWatch::default(),
            lists: 0,
            watched: Time::ZERO,
            retried: Time::ZERO,
            nexus: 0,
            up: false,
            closed: false,
            tags: 0,
        })
    }

    /// The same, with the longest time for one command: one that takes longer costs the way, which is for them alone.
    #[must_use]
    pub fn with_time_limit(self, time_limit: Duration) -> Self {
        Scanner { time_limit, ..self }
    }

    /// The same, where queues of disks take another number of tasks at a time than this one, which is for questions alone: what disks are said
    /// to take ([`polypath_block::DeviceInfo::max_depth`]).
    #[must_use]
    pub fn with_disk_depth(self, depth: u16) -> Self {
        Scanner { disk_depth: Some(depth), ..self }
    }

    fn disk_limits(&self) -> TaskLimits {
        let limits = self.tasks.limits();
        TaskLimits { depth: self.disk_depth.unwrap_or(limits.depth), ..limits }
    }

    /// Its tasks.
    pub fn tasks(&mut self) -> &mut Q {
        &mut self.tasks
    }

    /// Are the logical units reachable?
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// One bounded turn; says whether something was done.
    pub fn poll(&mut self, now: Time, reactor: u16) -> bool {
        let mut segs = std::mem::replace(&mut self.segs, SegTable::new(0));
        let cx = &mut Cx { now, segs: &mut segs, reactor };
        let mut taken = std::mem::take(&mut self.taken);
        self.tasks.poll(cx, &mut taken);
        let moved = !taken.is_empty();
        for &tag in &taken.good {
            self.good(tag);
        }
        for end in &taken.ends {
            self.ended(end);
        }
        for recovery in &taken.recoveries {
            self.reset_answered(recovery);
        }
        taken.clear();
        self.taken = taken;
        self.follow(now);
        self.take_orders(cx);
        self.take_proofs(now);
        self.take_relays(cx);
        self.check_time(cx);
        if self.up {
            self.choose(now);
            self.step(cx);
        }
        if self.closed && matches!(&self.busy, Some(Busy { work: Work::Order(..), task: None, .. })) {
            // Nothing more of it is sent.
            self.end_lost_order();
        }
        self.tasks.kick(cx);
        self.segs = segs;
        moved
    }

    /// As [`polypath_block::Poller::arm`].
    pub fn arm(&mut self, now: Time, reactor: u16, waits: &mut Waits) -> Armed {
        let mut segs = std::mem::replace(&mut self.segs, SegTable::new(0));
        let armed = self.tasks.arm(&mut Cx { now, segs: &mut segs, reactor }, waits);
        self.segs = segs;
        if self.up {
            let next = match &self.busy {
                Some(Busy { task: None, until, .. }) => *until,
                Some(Busy { work: Work::Relay(relay), .. }) => relay.until,
                Some(busy) => busy.sent.after(self.time_limit),
                None => self.watched.after(self.watch).min(self.retried.after(self.access.pause(TROUBLE))),
            };
            if next != Time::NEVER {
                waits.until(next);
            }
        }
        if self.closed
            && let Some(Busy { work: Work::Relay(relay), .. }) = &self.busy
            && relay.until != Time::NEVER
        {
            waits.until(relay.until);
        }
        let settling = self.settling.iter().map(|(ordered, _)| ordered.until);
        self.orders.iter().map(|ordered| ordered.until).chain(settling).for_each(|until| waits.until(until));
        if let Some(Busy { work: Work::Order(_, Asker::Caller(ordered)), .. }) = &self.busy {
            waits.until(ordered.until);
        }
        if let Some(Busy { work: Work::Prove(proving), .. }) = &self.busy {
            waits.until(proving.until);
        }
        self.proofs.iter().for_each(|proving| waits.until(proving.until));
        self.relays.iter().for_each(|relay| waits.until(relay.until));
        armed
    }

    /// Ends it. Nothing new is begun. What was sent to change something, and whose end somebody waits for, may still be carried out: until its
    /// task has ended, which is when it is quiet, it is not dropped ([`Scanner::is_drained`]) and is to be polled. Idempotent.
    pub fn close(&mut self, now: Time, reactor: u16) {
        self.closed = true;
        self.leave_work();
        self.refuse_relays();
        self.busy.take_if(|busy| !busy.is_waited_for());
        let mut segs = std::mem::replace(&mut self.segs, SegTable::new(0));
        self.tasks.close(&mut Cx { now, segs: &mut segs, reactor });
        self.segs = segs;
    }

    /// After [`Scanner::close`]: may it be dropped?
    pub fn is_drained(&self) -> bool {
        self.busy.is_none() && self.settling.is_empty()
    }

    /// The way has come up, or gone.
    fn follow(&mut self, now: Time) {
        // It may come up once more, for the proof of what it has lost.
        if self.closed {
            self.up = false;
            return;
        }
        let up = self.tasks.health() != Health::Down;
        if up && self.tasks.nexus() != self.nexus {
            self.nexus = self.tasks.nexus();
            self.leave_work();
            self.refuse_relays();
            self.to_join = self.bus.claimed().into();
            self.bus.all_stale();
            self.bus.doubt_listing();
            self.watched = now;
        }
        if up == self.up {
            return;
        }
        self.up = up;
        if up {
            tracing::info!(path = %self.bus.name(), "path is up");
            self.bus.set_state(BusState::Up);
        } else {
            self.leave_work();
            (self.to_probe, self.to_watch) = (VecDeque::new(), VecDeque::new());
            self.access.leave();
        }
    }

    /// The way is another one, or gone. What was sent to change something waits for its end, which may be a fence.
    fn leave_work(&mut self) {
        let sent = |busy: &mut Busy| matches!(busy, Busy { work: Work::Order(..) | Work::Relay(_), task: Some(_), .. });
        let Some(left) = self.busy.take_if(|busy| !sent(busy)) else { return };
        let reason = format!("{} was lost before anything was sent", self.bus.name());
        match left.work {
            Work::Order(_, Asker::Caller(ordered)) => {
                ordered.order.reply.answer(Err(ReservationError::new(Code::PathLost, reason)));
            }
            Work::Relay(mut relay) => relay.refuse(Code::PathLost, reason),
            _ => {}
        }
    }

    /// What is to be done next? What others want to be sent takes turns with what is to be done for the bus.
    fn choose(&mut self, now: Time) {
        if self.busy.is_some() {
            return;
        }
        let others_first = std::mem::take(&mut self.relayed);
        if !others_first && self.choose_relay() {
            return;
        }
        self.choose_own(now);
        if self.busy.is_none() {
            self.choose_relay();
        }
    }

    fn choose_own(&mut self, now: Time) {
        if let Some(proving) = self.proofs.pop() {
            self.busy = Some(Busy::new(proving.address, Work::Prove(Box::new(proving))));
            return;
        }
        // Our own nexus first: what it is asked for then may need its registration.
        if let Some(address) = self.to_join.pop_front()
            && let Some(exchange) = self.bus.claim(address).exchange()
        {
            self.busy = Some(Busy::new(address, Work::Order(Box::new(exchange), Asker::Claim)));
            return;
        }
        if let Some(ordered) = self.orders.pop_front() {
            let (op, address) = (ordered.order.op, ordered.order.address);
            self.bus.answer_alarm(address);
            let exchange = Box::new(Exchange::new(op));
            self.busy = Some(Busy::new(address, Work::Order(exchange, Asker::Caller(ordered))));
            return;
        }
        if now >= self.retried.after(self.access.pause(TROUBLE)) {
            self.retried = now;
            self.bus.doubt_all(|shown| match shown {
                Shown::Trouble { .. } => true,
                Shown::Disk(unit) => unit.info.access == Access::Change,
            });
        }
        if let Some((address, group)) = self.access.wanted(&self.bus, now) {
            tracing::info!(path = %self.bus.name(), lun = %address.lun, group, "no path gives access: asking for it here");
            self.busy = Some(Busy::new(address, Work::Activate(group)));
            return;
        }
        self.to_probe.extend(self.bus.take_stale());
        if let Some(address) = self.to_probe.pop_front() {
            let place = format!("{}/{}", self.bus.name(), address.lun);
            let probe = Probe::new(self.disk_limits(), self.queues, place).knowing(self.bus.known(address));
            self.busy = Some(Busy::new(address, Work::Probe(Box::new(probe))));
            return;
        }
        if now >= self.watched.after(self.watch) {
            self.watched = now;
            self.to_watch = self.bus.in_use().into();
            self.access.keep(&self.to_watch);
            self.lists = 0;
            self.bus.doubt_listing();
        }
        if self.lists < MOST_LISTS && self.bus.take_stale_listing() {
            self.lists += 1;
            self.busy = Some(Busy::new(Address { target: 0, lun: Lun::ZERO }, Work::List));
            return;
        }
        if let Some(address) = self.to_watch.pop_front() {
            self.busy = Some(Busy::new(address, Work::Look));
        }
    }

    fn step(&mut self, cx: &mut Cx<'_>) {
        let Some(busy) = self.busy.as_mut().filter(|b| b.task.is_none() && cx.now >= b.until) else { return };
        let step = match &mut busy.work {
            Work::Probe(probe) => probe.step(),
            Work::Look => ProbeStep::Send { cdb: Cdb::test_unit_ready(), data_in: 0 },
            Work::Presence => ProbeStep::Send { cdb: Cdb::inquiry(Inquiry::LEN as u16), data_in: Inquiry::LEN as u32 },
            Work::List => ProbeStep::Send { cdb: Cdb::report_luns(0, LISTED), data_in: LISTED },
            Work::Order(..) => return self.step_order(cx),
            Work::Relay(_) => return self.step_relay(cx),
            Work::Prove(proving) => match &mut proving.stage {
                ProvingStage::Look(probe) => probe.step(),
                ProvingStage::Reset => return self.send_reset(cx),
                ProvingStage::Asked(_) => return,
            },
            Work::Activate(group) => {
                let list = alua::set_target_port_groups(&[(*group, AluaState::Optimized)]);
                let cdb = Cdb::set_target_port_groups(list.len() as u32);
                if let Some(data) = self.memory.probe_out(cx.segs, &list) {
                    self.send(cx, cdb, data, true);
                }
                return;
            }
        };
        let address = busy.address;
        match step {
            ProbeStep::Wait(span) => busy.until = cx.now.after(span),
            ProbeStep::Send { cdb, data_in } => {
                let data = self.memory.probe_data(cx.segs, data_in).unwrap_or(TaskData::None);
                self.send(cx, cdb, data, false);
            }
            ProbeStep::Done(mut unit) => {
                self.access.bound_change(self.bus.name(), address, &mut unit, cx.now);
                tracing::debug!(path = %self.bus.name(), lun = %address.lun, disk = %unit.label, "logical unit");
                self.looked(Ok(&unit.info.identity));
                self.bus.control_hears(address, self.tasks.target_port(), None);
                self.bus.show(address, Shown::Disk(Arc::from(unit)));
                self.busy = None;
            }
            ProbeStep::Failed { code, reason } => {
                tracing::debug!(path = %self.bus.name(), lun = %address.lun, %reason, "logical unit");
                self.looked(Err(&reason));
                self.bus.show(address, Shown::Trouble { code, reason: format!("LUN {}: {reason}", address.lun) });
                self.busy = None;
            }
        }
    }

    fn send(&mut self, cx: &mut Cx<'_>, cdb: Cdb, data: TaskData, changes: bool) {
        let Some(busy) = &mut self.busy else { return };
        self.tags += 1;
        let Address { target, lun } = busy.address;
        let task = Task { tag: self.tags, target, lun, cdb, data, changes };
        match self.tasks.submit(cx, &task) {
            Ok(()) => (busy.task, busy.sent, busy.refused) = (Some((self.tags, data.len())), cx.now, None),
            // Tried again, and not at every turn, until its limit.
            Err(_) => {
                busy.refused.get_or_insert(cx.now);
                busy.until = cx.now.after(FULL);
            }
        }
    }

    fn step_order(&mut self, cx: &mut Cx<'_>) {
        let Some(Busy { work: Work::Order(exchange, _), address, until, .. }) = &mut self.busy else { return };
        match exchange.step() {
            ExchangeStep::Wait(span) => *until = cx.now.after(span),
            ExchangeStep::Send { cdb, payload } => {
                let changes = exchange.changes();
                let data = match &payload {
                    Payload::In(len) => self.memory.probe_data(cx.segs, *len),
                    Payload::Out(octets) => self.memory.probe_out(cx.segs, octets),
                };
                self.send(cx, cdb, data.unwrap_or(TaskData::None), changes);
            }
            ExchangeStep::Done(result) => {
                let address = *address;
                let Some(Busy { work: Work::Order(_, asker), .. }) = self.busy.take() else { return };
                self.finish_order(address, asker, result);
            }
        }
    }

    /// An operation was carried out over our own nexus, or not.
    fn finish_order(&mut self, address: Address, asker: Asker, result: ReservationResult) {
        use ReservationOp as Op;
        let ordered = match asker {
            Asker::Caller(ordered) => ordered,
            Asker::Nobody => return,
            Asker::Claim => return self.followed_claim(address, result),
        };
        if result.is_ok() {
            match ordered.order.op {
                Op::Register { key } | Op::Join { key, .. } => {
                    self.bus.set_claim(address, Some(key), None);
                    // What could not be asked for another host's sake can be now.
                    self.to_probe.push_back(address);
                }
                Op::Unregister { key } => self.bus.set_claim(address, None, Some(key)),
                Op::Clear { .. } => self.bus.set_claim(address, None, None),
                Op::Reserve { .. } | Op::Release { .. } | Op::Preempt { .. } | Op::Report => {}
            }
        }
        self.settling.push((ordered, result));
    }

    /// Our own nexus is registered as it is claimed, or could not be.
    fn followed_claim(&self, address: Address, result: ReservationResult) {
        let Err(error) = result else { return };
        let (path, lun) = (self.bus.name(), address.lun);
        if error.code == Code::ReservationConflict && self.bus.claim(address).key.is_some() {
            tracing::warn!(path, %lun, reason = %error, "our registration was ended by another host");
            self.bus.claim_was_ended(address);
        } else {
            tracing::debug!(path, %lun, reason = %error, "the control session has not followed a registration");
        }
    }

    /// Takes what is asked for, answers what is settled, and ends what takes too long.
    fn take_orders(&mut self, cx: &mut Cx<'_>) {
        for order in self.bus.take_orders() {
            self.orders.push_back(Ordered { until: cx.now.after(order.limit), order });
        }
        if !self.settling.is_empty() {
            for (ordered, result) in std::mem::take(&mut self.settling) {
                if result.is_err() || self.bus.is_followed(ordered.order.address) {
                    ordered.order.reply.answer(result);
                } else if cx.now >= ordered.until {
                    let reason = "not every session was registered in time; those that were not carry nothing";
                    let error = ReservationError::new(Code::OutcomeUnknown, reason).quiet_by(Proof::Answered);
                    ordered.order.reply.answer(Err(error));
                } else {
                    self.settling.push((ordered, result));
                }
            }
        }
        let up = self.up;
        let late = |ordered: &Ordered| !up || cx.now >= ordered.until;
        while self.orders.front().is_some_and(late) {
            let Some(ordered) = self.orders.pop_front() else { break };
            let (code, what) = if up { (Code::PathBusy, "busy for too long") } else { (Code::PathLost, "not up") };
            let reason = format!("{} is {what}; nothing was sent", self.bus.name());
            ordered.order.reply.answer(Err(ReservationError::new(code, reason)));
        }
        self.end_late_order(cx);
    }

    /// A question that is not answered in time costs the session: nothing else would ever be asked.
    fn check_time(&mut self, cx: &mut Cx<'_>) {
        let Some(busy) = &mut self.busy else { return };
        // What is passed through has a limit of its own.
        let relayed = matches!(busy.work, Work::Relay(_));
        let since = if busy.task.is_some() { Some(busy.sent) } else { busy.refused };
        if relayed || !self.up || since.is_none_or(|since| cx.now.since(since) < self.time_limit) {
            return;
        }
        busy.refused = None;
        // Looked at again after as long once more: what changes something may have to wait for its proof.
        busy.sent = cx.now;
        let ms = self.time_limit.as_millis();
        tracing::warn!(path = %self.bus.name(), lun = %busy.address.lun, "a command of the control session is not taken, or not answered, within {ms} ms");
        self.tasks.recover(cx, Recovery::ResetHost, 0);
    }

    /// A command that is not answered in time costs the session: only then it is known to be over.
    fn end_late_order(&mut self, cx: &mut Cx<'_>) {
        let Some(Busy { work: Work::Order(exchange, asker), task, .. }) = &mut self.busy else { return };
        if !matches!(asker, Asker::Caller(ordered) if cx.now >= ordered.until) {
            return;
        }
        let Asker::Caller(late) = std::mem::replace(asker, Asker::Nobody) else { return };
        let (changes, sent) = (exchange.changes(), task.is_some());
        let code = if changes && sent { Code::OutcomeUnknown } else { Code::PathTimeout };
        let reason = format!("{} did not answer within {} ms", self.bus.name(), late.order.limit.as_millis());
        // It may be carried out for as long as its end waits for a proof.
        late.order.reply.answer(Err(ReservationError::new(code, reason)));
        if sent {
            self.tasks.recover(cx, Recovery::ResetHost, 0);
        } else {
            self.busy = None;
        }
    }

    fn good(&mut self, tag: u64) {
        let Some(busy) = &mut self.busy else { return };
        let Some((_, len)) = busy.task.take_if(|(of, _)| *of == tag) else { return };
        match &mut busy.work {
            Work::Probe(probe) => probe.good(&self.memory.probe_octets(len)),
            Work::Order(exchange, _) => exchange.good(&self.memory.probe_octets(len)),
            Work::Prove(proving) => {
                if let ProvingStage::Look(probe) = &mut proving.stage {
                    probe.good(&self.memory.probe_octets(len));
                }
            }
            Work::Look => {
                // One that gave no access does what is asked of it: nobody else may say that this has changed.
                if self.bus.known(busy.address).is_some_and(|unit| !unit.info.access.usable()) {
                    self.to_probe.push_back(busy.address);
                    self.busy = None;
                } else {
                    busy.work = Work::Presence;
                }
            }
            Work::Presence => self.shown_present(len),
            Work::List => self.listed(len),
            Work::Relay(_) => self.relay_good(),
            Work::Activate(_) => {
                self.to_probe.push_back(busy.address);
                self.busy = None;
            }
        }
    }

    fn ended(&mut self, end: &TaskEnd) {
        let Some(busy) = self.busy.as_mut().filter(|b| b.task.is_some_and(|(tag, _)| tag == end.tag)) else { return };
        busy.task = None;
        let moved = if let Outcome::Answered(answer) = &end.outcome { answer.moved } else { 0 };
        let meant = match &end.outcome {
            Outcome::Answered(answer) => Some(meaning(answer.status, answer.sense.as_ref())),
            Outcome::Lost(_) | Outcome::BadMemory => None,
        };
        if let Some(Meaning::UnitAttention(attention)) = meant {
            self.bus.control_hears(busy.address, self.tasks.target_port(), Some(attention));
        }
        if let Some(Meaning::Deferred(_)) = meant {
            self.bus.control_hears_loss(busy.address);
        }
        if matches!(meant, Some(Meaning::UnitAttention(Attention::LunsChanged))) {
            self.bus.doubt_listing();
        }
        match (&mut busy.work, &end.outcome) {
            (Work::Probe(probe), Outcome::Answered(answer)) => {
                probe.answered(answer, &self.memory.probe_octets(moved));
            }
            (Work::Probe(probe), Outcome::Lost(code)) => probe.unanswered(*code),
            (Work::Probe(probe), Outcome::BadMemory) => probe.unanswered(Code::BadMemory),
            (Work::Prove(proving), outcome) => {
                let ProvingStage::Look(probe) = &mut proving.stage else { return };
                match outcome {
                    Outcome::Answered(answer) => probe.answered(answer, &self.memory.probe_octets(moved)),
                    Outcome::Lost(code) => probe.unanswered(*code),
                    Outcome::BadMemory => probe.unanswered(Code::BadMemory),
                }
            }
            (Work::Order(exchange, asker), outcome) => {
                let reads = matches!(asker, Asker::Caller(ordered) if ordered.order.op.is_read());
                let address = busy.address;
                let attention = exchange.ended(outcome, end.proof, &self.memory.probe_octets(moved));
                // Who reads the keys sees what has become of ours.
                if attention.is_some_and(is_alarm) && !reads {
                    self.bus.alarm(address);
                }
                if let Some(attention) = attention.filter(|a| !is_alarm(*a)) {
                    tracing::debug!(path = %self.bus.name(), lun = %address.lun, ?attention, "unit attention");
                    self.to_probe.push_back(address);
                }
                // Its way has gone: its end is told at once.
                if !self.up || matches!(outcome, Outcome::Lost(_)) {
                    self.end_lost_order();
                }
            }
            (Work::Relay(_), _) => self.relay_ended(end),
            (Work::List, Outcome::Answered(answer)) if matches!(meant, Some(Meaning::Done)) => {
                self.listed(answer.moved);
            }
            (Work::List, _) => {
                // Unit attentions come once. Whatever else it is, it is asked for again with the next watch.
                if matches!(meant, Some(Meaning::UnitAttention(_))) {
                    self.bus.doubt_listing();
                }
                self.busy = None;
            }
            (Work::Activate(group), outcome) => {
                let lun = busy.address.lun;
                // A unit attention comes before the command is carried out; whoever still wants access asks again.
                tracing::warn!(path = %self.bus.name(), %lun, group, ?outcome, "the target was asked for access and does not say that it is given");
                self.to_probe.push_back(busy.address);
                self.busy = None;
            }
            (Work::Presence, Outcome::Answered(answer)) if matches!(meant, Some(Meaning::Done)) => {
                self.shown_present(answer.moved);
            }
            (Work::Look | Work::Presence, _) => {
                let address = busy.address;
                match meant {
                    None | Some(Meaning::Done) => {}
                    // It need not be this one, see `Units::doubt_all`.
                    Some(Meaning::UnitAttention(Attention::LunsChanged)) => self.bus.all_stale(),
                    Some(Meaning::UnitAttention(attention)) if is_alarm(attention) => self.bus.alarm(address),
                    Some(_) => self.to_probe.push_back(address),
                }
                self.busy = None;
            }
        }
    }

    /// Standard INQUIRY data have come, of so many octets.
    fn shown_present(&mut self, len: u32) {
        let Some(Busy { address, .. }) = self.busy.take() else { return };
        if !Inquiry::parse(&self.memory.probe_octets(len)).is_ok_and(|inquiry| inquiry.is_disk()) {
            self.to_probe.push_back(address);
        }
    }

    /// A list of logical units has come, of so many octets.
    fn listed(&mut self, len: u32) {
        self.busy = None;
        match LunList::parse(&self.memory.probe_octets(len)) {
            Ok(list) => self.bus.show_listing(&list),
            Err(error) => tracing::warn!(path = %self.bus.name(), %error, "the list of logical units cannot be read"),
        }
    }

    fn end_lost_order(&mut self) {
        let Some(Busy { address, work: Work::Order(mut exchange, asker), .. }) = self.busy.take() else { return };
        if let ExchangeStep::Done(result) = exchange.step() {
            self.finish_order(address, asker, result);
        }
    }
}
