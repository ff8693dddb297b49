//! The data path: one queue of the group on one reactor, over one queue per path.
//!
//! A request lives in one [`Task`] from `submit` to its completion, whatever paths it sees. Where a path takes less at a time than
//! the group shows, the task becomes a [`Parent`] and its parts are tasks; a flush of several caches likewise. Tasks for which there
//! is no room wait in the backlog: it is gone through until eight in a row find none, and the next look begins behind those. Tasks
//! that no path can take are stranded, and hold up nobody. All tables are sized at open; nothing below allocates until a path comes
//! or goes.

mod complete;
mod dispatch;
mod fast;
mod parent;
mod path;
mod task;

use crate::cache::{Began, FlushTarget};
use crate::config::{MAX_PATHS, SelectorKind};
use crate::path::PathShared;
use crate::selector::{AnySelector, PathLoad, Slots as Bits};
use crate::shared::GroupShared;
use core::time::Duration;
use fast::Fast;
use parent::Parent;
use path::QueuePath;
use polypath_block::{
    Armed, Completion, Cx, Done, Health, Io, IoQueue, Limits, Op, Proof, Refused, RefusedWhy, Rest, SlotKey, Slots,
    Status, Time, Waits,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use task::{Owner, Proofs, Task};

/// How often a sleeping queue looks for changes while something waits for a path.
const WATCH_WAITING: Duration = Duration::from_millis(10);
/// How often it looks while nothing waits: whoever changes a path or its device wakes the reactor, see [`crate::Group::attach_host`].
const WATCH_IDLE: Duration = Duration::from_secs(1);
/// Ranks of candidates: optimized, non-optimized, then both again for paths that stall or failed a moment ago.
const RANKS: usize = 4;

/// When a queue for which nothing waits looks next: all of a reactor at the same moments, so that a thousand idle disks end one sleep and not
/// a thousand.
fn next_watch(now: Time) -> Time {
    let every = WATCH_IDLE.as_nanos() as u64;
    Time::from_nanos((now.as_nanos() / every + 1).saturating_mul(every))
}

/// What the group shows, as the fast path needs it.
#[derive(Clone, Copy, Debug)]
struct ShownInfo {
    blocks: u64,
    block_size: u32,
    limits: Limits,
}

/// A queue of a group.
pub(crate) struct MultipathQueue {
    group: Arc<GroupShared>,
    depth: usize,
    generation: u64,
    shown: Option<ShownInfo>,
    frozen: bool,
    selector_kind: SelectorKind,
    selector: AnySelector,
    paths: Vec<Option<QueuePath>>,
    /// Paths of the group that this queue holds nothing of, and the version of each that was looked at.
    watched: Vec<(Arc<PathShared>, u64)>,
    loads: Vec<PathLoad>,
    /// Candidates by rank, as bits of slots.
    ranks: [u64; RANKS],
    /// The same, as they were found at the beginning of the turn: some have turned out not to take anything since.
    ranked: [u64; RANKS],
    /// Paths that said that they are full, until something of theirs completes.
    full: u64,
    /// Paths with requests since their last kick.
    unkicked: u64,
    fast: Fast,
    tasks: Slots<Task>,
    parents: Slots<Parent>,
    /// Requests accepted and not finished.
    open: usize,
    /// Parts beyond the first of each parent, and how many there may be.
    extras: usize,
    extras_most: usize,
    /// Tasks that wait for room.
    backlog: VecDeque<SlotKey>,
    /// How many of these in a row have found none since there may have been some.
    looked: usize,
    /// Tasks that no path can take, and the usable paths when that was last tried.
    stranded: VecDeque<SlotKey>,
    stranded_under: u64,
    /// Usable paths in the last turn.
    usable_before: u64,
    delayed: Vec<(Time, SlotKey)>,
    /// Parents with parts that wait for room.
    to_issue: VecDeque<SlotKey>,
    /// Finished, to be handed out by the next poll.
    ready: Vec<Completion>,
    /// Up to which loss of a cache the user has been told, and will have been when he has these.
    told: u64,
    telling: u64,
    /// What was new when flushes that wait for a path were looked at last.
    news: u64,
    scratch: Done,
    next_expiry: Time,
    retry_stranded_now: bool,
    /// Number of the last attempt: no tag is given again while a completion of its first owner may come.
    attempts: u32,
    /// Stranded tasks that the group was told of.
    told_waiting: usize,
    /// What goes straight to a path is to be worked out anew.
    review_due: bool,
    /// The ranks of the paths are to be looked at: now, or at that time.
    rank_due: bool,
    rank_at: Time,
    /// A path may be without a queue that it should have.
    lacks_queue: bool,
    /// A path may be on its way out.
    leaving: bool,
    closing: bool,
}

impl MultipathQueue {
    pub(crate) fn new(group: Arc<GroupShared>, depth: u16) -> Self {
        let depth = usize::from(depth);
        let extras_most = depth.max(64);
        // One task for each open request, the extra parts, and one flush for each path that is being removed.
        let tasks = depth + extras_most + MAX_PATHS;
        let kind = SelectorKind::default();
        let told = group.caches.told();
        MultipathQueue {
            selector: AnySelector::new(kind, group.seed),
            group,
            depth,
            generation: 0,
            shown: None,
            frozen: false,
            selector_kind: kind,
            paths: Vec::with_capacity(MAX_PATHS),
            watched: Vec::with_capacity(MAX_PATHS),
            loads: Vec::with_capacity(MAX_PATHS),
            ranks: [0; RANKS],
            ranked: [0; RANKS],
            full: 0,
            unkicked: 0,
            fast: Fast::new(depth),
            tasks: Slots::new(tasks as u16),
            parents: Slots::new(depth as u16),
            open: 0,
            extras: 0,
            extras_most,
            backlog: VecDeque::with_capacity(tasks),
            looked: 0,
            stranded: VecDeque::with_capacity(tasks),
            stranded_under: 0,
            usable_before: 0,
            delayed: Vec::with_capacity(tasks),
            to_issue: VecDeque::with_capacity(tasks),
            ready: Vec::with_capacity(2 * depth),
            told,
            telling: told,
            news: 0,
            scratch: Done::with_capacity(2 * tasks),
            next_expiry: Time::NEVER,
            retry_stranded_now: false,
            attempts: 0,
            told_waiting: 0,
            review_due: false,
            rank_due: false,
            rank_at: Time::NEVER,
            lacks_queue: false,
            leaving: false,
            closing: false,
        }
    }

    /// Takes a request that is not for the straight line.
    fn submit_task(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), RefusedWhy> {
        if self.closing || self.group.is_closed() {
            return Err(RefusedWhy::Gone);
        }
        let Some(shown) = self.shown else { return Err(RefusedWhy::Gone) };
        if self.open + self.ready.len() >= self.depth {
            return Err(RefusedWhy::Full);
        }
        if !self.frozen {
            self.group.freeze();
            self.frozen = true;
            self.review_due = true;
        }
        self.open += 1;
        if let Err(status) = shown.limits.check(&io, shown.blocks, shown.block_size, cx.segs) {
            self.finish(Owner::User(io.tag), status, Proofs::NEVER_SENT, None);
        } else if io.op == Op::Flush {
            self.flush(cx, io);
        } else {
            let task = Task::new(io, Owner::User(io.tag), cx.now, None);
            self.start(cx, task);
        }
        Ok(())
    }

    /// Makes a task and finds it a path, behind those that wait already.
    fn start(&mut self, cx: &mut Cx<'_>, task: Task) {
        match self.tasks.insert(task) {
            // Without any path, each wait has a time limit of its own, which begins now.
            Ok(key) if self.backlog.is_empty() || self.usable() == 0 => {
                self.place(cx, key);
            }
            Ok(key) => self.enqueue(key),
            // The table has room for everything that may be open; see `new`.
            Err(full) => unreachable!("{full}: more tasks than requests and parts"),
        }
    }

    /// To the end of those that wait for room. All of them are looked at once before the reactor sleeps.
    fn enqueue(&mut self, key: SlotKey) {
        self.backlog.push_back(key);
        self.looked = 0;
    }

    fn usable(&self) -> u64 {
        self.ranks.iter().fold(0, |all, rank| all | rank)
    }

    /// The candidates of the best rank that there is.
    fn best_rank(&self) -> u64 {
        self.ranks.iter().copied().find(|&rank| rank != 0).unwrap_or(0)
    }

    fn flush(&mut self, cx: &mut Cx<'_>, io: Io) {
        if self.is_behind() {
            // A path that shows another disk now has something to say about what a flush must reach. This queue follows with its next turn.
            self.group.review();
        }
        let caches = &self.group.caches;
        // The order matters, see `Caches::begin_flush`.
        let began = Began { epoch: caches.begin_flush(), told: self.told };
        let owner = Owner::Flush(io.tag, began);
        let mask = caches.dirty_mask();
        match mask.count_ones() {
            0 => self.finish(owner, Status::OK, Proofs::both(Proof::Answered), None),
            1 => {
                let target = FlushTarget { cache: mask.trailing_zeros() as u8, began };
                self.start(cx, Task::new(io, owner, cx.now, Some(target)));
            }
            _ => self.start_parent(cx, Parent::flush(owner, mask, began)),
        }
    }

    fn kick_paths(&mut self, cx: &mut Cx<'_>) {
        for slot in Bits(core::mem::take(&mut self.unkicked)) {
            let Some(path) = self.paths[slot].as_mut() else { continue };
            path.count_load(&self.loads[slot]);
            if let Some(queue) = path.queue.as_mut() {
                queue.kick(cx);
            }
        }
    }

    /// Lets what waits go on, if anything does: whatever waits is a task, or a part that is to become one.
    #[inline]
    fn run_waiting(&mut self, cx: &mut Cx<'_>) {
        if !self.tasks.is_empty() || !self.parents.is_empty() {
            self.run_tasks(cx);
        } else {
            debug_assert_eq!(self.told_waiting, 0, "what waits for a path is a task");
            self.next_expiry = Time::NEVER;
        }
        self.stranded_under = self.usable();
        self.usable_before = self.stranded_under;
    }

    /// Delays that passed, parents with more parts, the backlog.
    fn run_tasks(&mut self, cx: &mut Cx<'_>) {
        let gained = self.usable() & !self.usable_before;
        let mut i = 0;
        while let Some(&(at, key)) = self.delayed.get(i) {
            let task = self.tasks.get_mut(key);
            if at <= cx.now {
                task.map(Task::begin_round);
            } else if task.is_none_or(|task| gained & !task.tried == 0) {
                i += 1;
                continue;
            }
            self.delayed.swap_remove(i);
            self.enqueue(key);
        }
        for _ in 0..self.to_issue.len() {
            if let Some(key) = self.to_issue.pop_front() {
                self.issue_parts(cx, key);
            }
        }
        self.retry_stranded(cx);
        // Parts that come of it join the backlog, and are placed as well; once all of it has found no room, it is in its old order.
        let mut full = 0;
        while full < self.backlog.len().min(8)
            && let Some(key) = self.backlog.pop_front()
        {
            full = if self.place(cx, key) { 0 } else { full + 1 };
            self.looked = if full == 0 { 0 } else { self.looked + 1 };
        }
        self.tell_waiting(self.stranded.len());
    }

    /// Tells the group how many wait for a path.
    fn tell_waiting(&mut self, waiting: usize) {
        let before = core::mem::replace(&mut self.told_waiting, waiting);
        if before != waiting {
            self.group.set_waiting(before, waiting);
        }
    }

    /// Tries tasks again that no path could take, if there is a path that there was not, or their time is up.
    fn retry_stranded(&mut self, cx: &mut Cx<'_>) {
        let gained = self.usable() & !self.stranded_under != 0;
        let due = gained || self.retry_stranded_now || cx.now >= self.next_expiry || self.group.is_closed();
        if !due && !self.has_news() {
            return;
        }
        self.retry_stranded_now = false;
        self.next_expiry = Time::NEVER;
        for _ in 0..self.stranded.len() {
            let Some(key) = self.stranded.pop_front() else { break };
            self.place(cx, key);
        }
    }

    /// Has a flush something to hear that waits for a path?
    fn has_news(&mut self) -> bool {
        if self.stranded.is_empty() {
            return false;
        }
        let news = self.group.caches.news();
        core::mem::replace(&mut self.news, news) != news
    }
}

impl IoQueue for MultipathQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.submit_all(cx, core::slice::from_ref(&io)).map_err(|rest| rest.refuses(io))
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        let mut taken = 0;
        while taken < ios.len() {
            let slots = self.fast_slots();
            let room = self.depth - (self.open + self.ready.len()).min(self.depth);
            if slots != 0 && room > 0 && !self.group.is_closed() {
                let few = &ios[taken..ios.len().min(taken + room)];
                let fast = self.submit_fast(cx, few, slots);
                taken += fast;
                if fast == few.len() {
                    continue;
                }
            }
            let Some(&io) = ios.get(taken) else { break };
            self.submit_task(cx, io).map_err(|why| Rest { taken, why })?;
            taken += 1;
        }
        Ok(())
    }

    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.kick_paths(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.group.set_time(cx.now);
        self.follow_group(cx);
        self.poll_paths(cx, done);
        self.follow_ranks(cx.now);
        self.run_waiting(cx);
        self.release_paths(cx);
        self.kick_paths(cx);
        if core::mem::take(&mut self.review_due) {
            self.review_fast();
        }
        if !self.ready.is_empty() {
            done.completions.append(&mut self.ready);
        }
        if self.told < self.telling {
            self.told = self.telling;
            self.group.caches.set_told(self.told);
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let can_issue = !self.to_issue.is_empty() && self.extras < self.extras_most;
        let unseen = self.looked < self.backlog.len();
        if !self.ready.is_empty() || self.unkicked != 0 || can_issue || unseen || self.is_behind() {
            return Armed::Busy;
        }
        let waiting = !self.backlog.is_empty() || !self.stranded.is_empty();
        for slot in 0..self.paths.len() {
            let Some(path) = self.paths[slot].as_mut() else { continue };
            path.deadlines(cx.now, waiting, waits);
            if path.queue.as_mut().is_some_and(|q| q.arm(cx, waits) == Armed::Busy) {
                return Armed::Busy;
            }
        }
        self.delayed.iter().for_each(|&(at, _)| waits.until(at));
        if waiting || self.closing {
            waits.until(self.next_expiry.min(cx.now.after(WATCH_WAITING)));
        } else {
            waits.until(next_watch(cx.now));
        }
        Armed::Sleep
    }

    fn health(&self) -> Health {
        if self.closing || self.shown.is_none() || self.group.is_closed() {
            Health::Down
        } else if self.ranks[0] | self.ranks[1] != 0 {
            Health::Ready
        } else {
            Health::Stalled
        }
    }

    fn close(&mut self, _cx: &mut Cx<'_>) {
        self.closing = true;
        self.fast.stop();
    }

    fn owes(&self) -> bool {
        self.group.caches.losses() > self.told
    }

    fn is_drained(&self) -> bool {
        self.closing && self.open == 0 && self.ready.is_empty() && self.paths.iter().all(Option::is_none)
    }
}

impl Drop for MultipathQueue {
    fn drop(&mut self) {
        // Empty, unless a reactor ends under its queues: those below know how to end then, and our tables must not object first.
        self.tasks.clear();
        self.parents.clear();
        self.tell_waiting(0);
        for path in self.paths.drain(..).flatten() {
            self.group.release(path.shared.id, &path.counters, path.reported);
        }
        self.group.queue_closed();
    }
}

impl MultipathQueue {
    /// Has the group, or a device, changed since the last look?
    fn is_behind(&self) -> bool {
        self.generation != self.group.generation.load(Ordering::Acquire)
            || self.paths.iter().flatten().any(|p| p.shared.device.version() != p.seen)
            || self.watched.iter().any(|(shared, seen)| shared.device.version() != *seen)
    }
}
