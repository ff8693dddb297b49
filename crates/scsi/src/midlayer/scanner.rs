//! The control side of a bus: probes the logical units that are asked for, over a task queue of its own, and watches them.
//!
//! A driver's control poller gives it turns; what it has found is in the [`Bus`]. It has its own segment table and memory, so that it may
//! run on any reactor.

use super::bus::{Address, Bus, BusState, Shown};
use super::probe::{Probe, ProbeStep};
use super::queue::Memory;
use super::task::{Outcome, Task, TaskData, TaskDone, TaskEnd, TaskQueue};
use crate::{Cdb, Meaning, meaning};
use polypath_block::{Access, Armed, Code, Cx, Health, SegTable, Time, Waits};
use polypath_memory::MemoryError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Pause before a logical unit in trouble, or one that is changing its access, is looked at again.
const TROUBLE: Duration = Duration::from_secs(1);

/// What is under way: one thing at a time.
struct Busy {
    address: Address,
    /// A probe; without one it is a look whether there is something to report.
    probe: Option<Box<Probe>>,
    task: Option<(u64, u32)>,
    until: Time,
}

/// See the module.
pub struct Scanner<Q> {
    tasks: Q,
    bus: Arc<Bus>,
    queues: u16,
    watch: Duration,
    segs: SegTable,
    memory: Memory,
    taken: TaskDone,
    busy: Option<Busy>,
    to_probe: VecDeque<Address>,
    to_watch: VecDeque<Address>,
    watched: Time,
    retried: Time,
    nexus: u64,
    up: bool,
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
            segs,
            memory,
            taken: TaskDone::with_capacity(8),
            busy: None,
            to_probe: VecDeque::new(),
            to_watch: VecDeque::new(),
            watched: Time::ZERO,
            retried: Time::ZERO,
            nexus: 0,
            up: false,
            tags: 0,
        })
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
        taken.clear();
        self.taken = taken;
        self.follow(now);
        if self.up {
            self.choose(now);
            self.step(cx);
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
                Some(_) => Time::NEVER,
                None => self.watched.after(self.watch).min(self.retried.after(TROUBLE)),
            };
            if next != Time::NEVER {
                waits.until(next);
            }
        }
        armed
    }

    /// Ends it.
    pub fn close(&mut self, now: Time, reactor: u16) {
        self.busy = None;
        let mut segs = std::mem::replace(&mut self.segs, SegTable::new(0));
        self.tasks.close(&mut Cx { now, segs: &mut segs, reactor });
        self.segs = segs;
    }

    /// The way has come up, or gone.
    fn follow(&mut self, now: Time) {
        let up = self.tasks.health() != Health::Down;
        if up && self.tasks.nexus() != self.nexus {
            self.nexus = self.tasks.nexus();
            self.busy = None;
            self.bus.all_stale();
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
            self.busy = None;
            (self.to_probe, self.to_watch) = (VecDeque::new(), VecDeque::new());
        }
    }

    /// What is to be done next?
    fn choose(&mut self, now: Time) {
        if self.busy.is_some() {
            return;
        }
        if now >= self.retried.after(TROUBLE) {
            self.retried = now;
            self.bus.doubt_all(|shown| match shown {
                Shown::Trouble { .. } => true,
                Shown::Disk(unit) => unit.info.access == Access::Change,
            });
        }
        self.to_probe.extend(self.bus.take_stale());
        if let Some(address) = self.to_probe.pop_front() {
            let place = format!("{}/{}", self.bus.name(), address.lun);
            let probe = Probe::new(self.tasks.limits(), self.queues, place);
            self.busy = Some(Busy { address, probe: Some(Box::new(probe)), task: None, until: Time::ZERO });
            return;
        }
        if now >= self.watched.after(self.watch) {
            self.watched = now;
            self.to_watch = self.bus.in_use().into();
        }
        if let Some(address) = self.to_watch.pop_front() {
            self.busy = Some(Busy { address, probe: None, task: None, until: Time::ZERO });
        }
    }

    fn step(&mut self, cx: &mut Cx<'_>) {
        let Some(busy) = self.busy.as_mut().filter(|b| b.task.is_none() && cx.now >= b.until) else { return };
        let step = match &mut busy.probe {
            Some(probe) => probe.step(),
            None => ProbeStep::Send { cdb: Cdb::test_unit_ready(), data_in: 0 },
        };
        let address = busy.address;
        match step {
            ProbeStep::Wait(span) => busy.until = cx.now.after(span),
            ProbeStep::Send { cdb, data_in } => {
                let data = self.memory.probe_data(cx.segs, data_in).unwrap_or(TaskData::None);
                self.tags += 1;
                let Address { target, lun } = address;
                let task = Task { tag: self.tags, target, lun, cdb, data, changes: false };
                if self.tasks.submit(cx, &task).is_ok() {
                    busy.task = Some((self.tags, data.len()));
                }
            }
            ProbeStep::Done(unit) => {
                tracing::debug!(path = %self.bus.name(), lun = %address.lun, disk = %unit.label, "logical unit");
                self.bus.show(address, Shown::Disk(Arc::from(unit)));
                self.busy = None;
            }
            ProbeStep::Failed { code, reason } => {
                tracing::debug!(path = %self.bus.name(), lun = %address.lun, %reason, "logical unit");
                self.bus.show(address, Shown::Trouble { code, reason: format!("LUN {}: {reason}", address.lun) });
                self.busy = None;
            }
        }
    }

    fn good(&mut self, tag: u64) {
        let Some(busy) = &mut self.busy else { return };
        let Some((_, len)) = busy.task.take_if(|(of, _)| *of == tag) else { return };
        match &mut busy.probe {
            Some(probe) => probe.good(&self.memory.probe_octets(len)),
            None => self.busy = None,
        }
    }

    fn ended(&mut self, end: &TaskEnd) {
        let Some(busy) = self.busy.as_mut().filter(|b| b.task.is_some_and(|(tag, _)| tag == end.tag)) else { return };
        busy.task = None;
        match (&mut busy.probe, &end.outcome) {
            (Some(probe), Outcome::Answered(answer)) => {
                probe.answered(answer, &self.memory.probe_octets(answer.moved));
            }
            (Some(probe), Outcome::Lost(code)) => probe.unanswered(*code),
            (Some(probe), Outcome::BadMemory) => probe.unanswered(Code::BadMemory),
            (None, outcome) => {
                if let Outcome::Answered(answer) = outcome
                    && !matches!(meaning(answer.status, answer.sense.as_ref()), Meaning::Done)
                {
                    self.to_probe.push_back(busy.address);
                }
                self.busy = None;
            }
        }
    }
}
