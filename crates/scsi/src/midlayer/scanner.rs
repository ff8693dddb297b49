//! The control side of a bus: probes the logical units that are asked for, over a task queue of its own, and watches them.
//!
//! A driver's control poller gives it turns; what it has found is in the [`Bus`]. It has its own segment table and memory, so that it may
//! run on any reactor.

use super::bus::{Address, Bus, BusState, Shown};
use super::probe::{Probe, ProbeStep};
use super::queue::Memory;
use super::task::{Outcome, Task, TaskData, TaskDone, TaskEnd, TaskQueue};
use crate::lun::LunList;
use crate::{Attention, Cdb, Lun, Meaning, meaning};
use polypath_block::{Access, Armed, Code, Cx, Health, SegTable, Time, Waits};
use polypath_memory::MemoryError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Pause before a logical unit in trouble, or one that is changing its access, is looked at again.
const TROUBLE: Duration = Duration::from_secs(1);

/// Octets of a list of logical units that are asked for: 511 of them.
const LISTED: u32 = 4096;

/// How often it is asked for between two watches: a target has unit attentions to report first, not many.
const MOST_LISTS: u32 = 4;

/// What is asked.
enum Asking {
    /// Who is there.
    Probe(Box<Probe>),
    /// Is there something to report?
    Watch,
    /// Which logical units are there? Of the target of `address`, which has this list at any of them, and at LUN 0 for sure (SPC-4
    /// section 6.33.1).
    List,
}

/// What is under way: one thing at a time.
struct Busy {
    address: Address,
    asking: Asking,
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
    /// How often the list was asked for since `watched`.
    lists: u32,
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
            lists: 0,
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
            self.busy = Some(Busy::new(address, Asking::Probe(Box::new(probe))));
            return;
        }
        if now >= self.watched.after(self.watch) {
            self.watched = now;
            self.to_watch = self.bus.in_use().into();
            self.lists = 0;
            self.bus.doubt_listing();
        }
        if self.lists < MOST_LISTS && self.bus.take_stale_listing() {
            self.lists += 1;
            self.busy = Some(Busy::new(Address { target: 0, lun: Lun::ZERO }, Asking::List));
            return;
        }
        if let Some(address) = self.to_watch.pop_front() {
            self.busy = Some(Busy::new(address, Asking::Watch));
        }
    }

    fn step(&mut self, cx: &mut Cx<'_>) {
        let Some(busy) = self.busy.as_mut().filter(|b| b.task.is_none() && cx.now >= b.until) else { return };
        let step = match &mut busy.asking {
            Asking::Probe(probe) => probe.step(),
            Asking::Watch => ProbeStep::Send { cdb: Cdb::test_unit_ready(), data_in: 0 },
            Asking::List => ProbeStep::Send { cdb: Cdb::report_luns(0, LISTED), data_in: LISTED },
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
        match &mut busy.asking {
            Asking::Probe(probe) => probe.good(&self.memory.probe_octets(len)),
            Asking::Watch => self.busy = None,
            Asking::List => self.listed(len),
        }
    }

    fn ended(&mut self, end: &TaskEnd) {
        let Some(busy) = self.busy.as_mut().filter(|b| b.task.is_some_and(|(tag, _)| tag == end.tag)) else { return };
        busy.task = None;
        let meant = match &end.outcome {
            Outcome::Answered(answer) => Some(meaning(answer.status, answer.sense.as_ref())),
            Outcome::Lost(_) | Outcome::BadMemory => None,
        };
        if matches!(meant, Some(Meaning::UnitAttention(Attention::LunsChanged))) {
            self.bus.doubt_listing();
        }
        match (&mut busy.asking, &end.outcome) {
            (Asking::Probe(probe), Outcome::Answered(answer)) => {
                probe.answered(answer, &self.memory.probe_octets(answer.moved));
            }
            (Asking::Probe(probe), Outcome::Lost(code)) => probe.unanswered(*code),
            (Asking::Probe(probe), Outcome::BadMemory) => probe.unanswered(Code::BadMemory),
            (Asking::List, Outcome::Answered(answer)) if matches!(meant, Some(Meaning::Done)) => {
                self.listed(answer.moved);
            }
            (Asking::List, _) => {
                // Unit attentions come once. Whatever else it is, it is asked for again with the next watch.
                if matches!(meant, Some(Meaning::UnitAttention(_))) {
                    self.bus.doubt_listing();
                }
                self.busy = None;
            }
            (Asking::Watch, _) => {
                if meant.is_some_and(|meant| !matches!(meant, Meaning::Done)) {
                    self.to_probe.push_back(busy.address);
                }
                self.busy = None;
            }
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
}

impl Busy {
    fn new(address: Address, asking: Asking) -> Self {
        Busy { address, asking, task: None, until: Time::ZERO }
    }
}
