//! A device that does what the test tells it, request by request, and a group driven turn by turn: for sequences that no seed finds.

use polypath_block::{
    Access, Armed, CacheDomain, Code, Completion, Cx, Device, DeviceInfo, DeviceState, Done, Fate, FenceTerms,
    Geometry, Health, Identifier, Identity, Io, IoQueue, Limits, OpenError, Proof, QueueConfig, Refused, RefusedWhy,
    Rest, SegRow, SegTable, Segment, Status, Suspect, Time, Waits,
};
use polypath_multipath::{Event, EventKind, Events, Group, GroupConfig, PathConfig, PathId, PathStatistics};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The proof that a fence of these devices gives.
pub const BOUND: Proof = Proof::ConfiguredBound { bound_ms: 1000 };

/// A device under the control of a test. Queues are numbered in the order they were opened.
pub struct Scripted {
    name: String,
    version: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    state: DeviceState,
    queues: Vec<Seat>,
    /// Requests that a queue takes at a time; those that are suspect do not count.
    room: usize,
    health: Health,
    refuse_queues: bool,
    /// How often somebody wanted a queue.
    asked_for_queues: usize,
    /// Its queues are not drained, whatever they hold.
    undrained: bool,
    /// Its target wants it to be used.
    preferred: bool,
    power_losses: u64,
    /// How often somebody asked it for access.
    asked_for_access: usize,
    on_health: Option<fn(&Scripted)>,
    on_version: Option<Box<dyn FnOnce() + Send>>,
}

/// What the test sees of a queue.
#[derive(Default)]
struct Seat {
    in_flight: Vec<Io>,
    suspects: Vec<Io>,
    outbox: Done,
    /// Everything it ever took.
    taken: Vec<Io>,
    kicks: usize,
    closing: bool,
}

/// What a device shows: one disk of 1000 blocks with a cache in `domain`.
pub fn info(domain: &str) -> DeviceInfo {
    DeviceInfo {
        geometry: Geometry { block_size: 512, blocks: 1000 },
        limits: Limits { write_cache: true, ..Limits::UNLIMITED },
        identity: Identity {
            identifiers: vec![Identifier::Uuid([1; 16])],
            cache_domain: CacheDomain(domain.to_owned()),
        },
        access: Access::Optimized,
        max_queues: 8,
        max_depth: 64,
    }
}

/// The same, of another disk.
pub fn stranger(domain: &str) -> DeviceInfo {
    let mut i = info(domain);
    i.identity.identifiers = vec![Identifier::Uuid([9; 16])];
    i
}

/// The same disk, which takes no changes there.
pub fn read_only(domain: &str) -> DeviceInfo {
    let mut i = info(domain);
    i.limits.read_only = true;
    i
}

/// A path to cache "a" that takes so many blocks at a time.
pub fn limited(blocks: u32) -> DeviceInfo {
    DeviceInfo { limits: Limits { max_transfer_bytes: 512 * blocks, ..info("a").limits }, ..info("a") }
}

/// A path to cache "a" that takes so many segments at a time.
pub fn segments(n: u32) -> DeviceInfo {
    DeviceInfo { limits: Limits { max_segments: n, ..info("a").limits }, ..info("a") }
}

impl Scripted {
    pub fn new(name: &str, info: DeviceInfo) -> Arc<Scripted> {
        Arc::new(Scripted {
            name: name.to_owned(),
            version: AtomicU64::new(1),
            inner: Mutex::new(Inner {
                state: DeviceState::Live(Arc::new(info)),
                queues: Vec::new(),
                room: 64,
                health: Health::Ready,
                refuse_queues: false,
                asked_for_queues: 0,
                undrained: false,
                preferred: false,
                power_losses: 0,
                asked_for_access: 0,
                on_health: None,
                on_version: None,
            }),
        })
    }

    /// Shows another state from now on.
    pub fn set_state(&self, state: DeviceState) {
        self.lock().state = state;
        self.version.fetch_add(1, Ordering::Release);
    }

    pub fn set_live(&self, info: DeviceInfo) {
        self.set_state(DeviceState::Live(Arc::new(info)));
    }

    pub fn set_down(&self, cause: Code, reason: &str) {
        self.set_state(DeviceState::Down { cause, reason: reason.to_owned() });
    }

    /// Nothing but its version moves. Takes no lock: for [`Scripted::on_next_health`], which is called with it.
    pub fn touch(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    pub fn set_gone(&self) {
        self.set_state(DeviceState::Gone { reason: "taken away".to_owned() });
    }

    pub fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    /// Does `what` as soon as somebody asks a queue for its health.
    pub fn on_next_health(&self, what: fn(&Scripted)) {
        self.lock().on_health = Some(what);
    }

    /// Does `what` as soon as somebody asks the device for its version: what another thread does in that moment.
    pub fn on_next_version(&self, what: impl FnOnce() + Send + 'static) {
        self.lock().on_version = Some(Box::new(what));
    }

    pub fn set_room(&self, room: usize) {
        self.lock().room = room;
    }

    pub fn set_refuse_queues(&self, refuse: bool) {
        self.lock().refuse_queues = refuse;
    }

    /// How often somebody wanted a queue.
    pub fn asked_for_queues(&self) -> usize {
        self.lock().asked_for_queues
    }

    /// Queues that were opened and not closed.
    pub fn open_queues(&self) -> usize {
        self.lock().queues.iter().filter(|q| !q.closing).count()
    }

    pub fn set_undrained(&self, undrained: bool) {
        self.lock().undrained = undrained;
    }

    /// It has heard that the cache has lost its power.
    pub fn hear_of_power_loss(&self) {
        self.lock().power_losses += 1;
        self.touch();
    }

    /// Its target wants it to be used before others, or not any more.
    pub fn set_preferred(&self, preferred: bool) {
        self.lock().preferred = preferred;
        self.touch();
    }

    /// How often somebody asked it for access.
    pub fn asked_for_access(&self) -> usize {
        self.lock().asked_for_access
    }

    /// How often its queues were kicked.
    pub fn kicks(&self) -> usize {
        self.lock().queues.iter().map(|q| q.kicks).sum()
    }

    /// Requests in flight on all queues, in the order they came, without those that are suspect.
    pub fn in_flight(&self) -> Vec<Io> {
        self.lock().queues.iter().flat_map(|q| q.in_flight.iter().copied()).collect()
    }

    /// Requests whose fence is not over.
    pub fn suspects(&self) -> Vec<Io> {
        self.lock().queues.iter().flat_map(|q| q.suspects.iter().copied()).collect()
    }

    /// Everything it was ever sent.
    pub fn taken(&self) -> Vec<Io> {
        self.lock().queues.iter().flat_map(|q| q.taken.iter().copied()).collect()
    }

    /// The only request in flight.
    pub fn only(&self) -> Io {
        let list = self.in_flight();
        assert_eq!(list.len(), 1, "in flight on {}: {list:?}", self.name);
        list[0]
    }

    /// The next poll says that `io` is over, whether it was suspect or not.
    pub fn complete(&self, io: Io, status: impl Into<Status>, proof: Proof) {
        let mut inner = self.lock();
        let seat = inner.queues.iter_mut().find(|q| q.in_flight.contains(&io) || q.suspects.contains(&io));
        let seat = seat.expect("a request of this device");
        seat.in_flight.retain(|i| *i != io);
        seat.suspects.retain(|i| *i != io);
        seat.outbox.completions.push(Completion { tag: io.tag, status: status.into(), proof });
    }

    pub fn succeed(&self, io: Io) {
        self.complete(io, Status::OK, Proof::Answered);
    }

    /// The next poll says that the request `tag` has succeeded, whether there is one or not.
    pub fn say(&self, tag: u64) {
        let completion = Completion { tag, status: Status::OK, proof: Proof::Answered };
        self.lock().queues[0].outbox.completions.push(completion);
    }

    /// Everything in flight succeeds.
    pub fn succeed_all(&self) {
        self.in_flight().into_iter().for_each(|io| self.succeed(io));
    }

    /// The next poll says that the way of `io` broke.
    pub fn suspect(&self, io: Io, fate: Fate) {
        let mut inner = self.lock();
        let seat = inner.queues.iter_mut().find(|q| q.in_flight.contains(&io)).expect("a request in flight");
        seat.in_flight.retain(|i| *i != io);
        seat.suspects.push(io);
        drop(inner);
        self.suspect_again(io, fate);
    }

    /// The next poll says so once more.
    pub fn suspect_again(&self, io: Io, fate: Fate) {
        let mut inner = self.lock();
        let seat = inner.queues.iter_mut().find(|q| q.suspects.contains(&io)).expect("a suspect request");
        let fence = FenceTerms { proof: BOUND, within: Duration::from_secs(1) };
        seat.outbox.suspects.push(Suspect { tag: io.tag, fate, cause: Code::PathLost, fence });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Queue {
    device: Arc<Scripted>,
    at: usize,
}

pub struct Opener(pub Arc<Scripted>);

impl Device for Opener {
    fn name(&self) -> &str {
        &self.0.name
    }
    fn state(&self) -> DeviceState {
        self.0.lock().state.clone()
    }
    fn version(&self) -> u64 {
        let what = self.0.lock().on_version.take();
        what.into_iter().for_each(|what| what());
        self.0.version.load(Ordering::Acquire)
    }
    fn open_queue(&self, _: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let mut inner = self.0.lock();
        inner.asked_for_queues += 1;
        if inner.refuse_queues {
            return Err(OpenError::System { name: self.0.name.clone(), reason: "told to refuse".to_owned() });
        }
        inner.queues.push(Seat::default());
        Ok(Box::new(Queue { device: self.0.clone(), at: inner.queues.len() - 1 }))
    }
    fn power_losses(&self) -> u64 {
        self.0.lock().power_losses
    }
    fn is_preferred(&self) -> bool {
        self.0.lock().preferred
    }
    fn ask_for_access(&self) {
        self.0.lock().asked_for_access += 1;
    }
    fn close(&self) {
        if !matches!(self.0.lock().state, DeviceState::Gone { .. }) {
            self.0.set_state(DeviceState::Gone { reason: "closed".to_owned() });
        }
    }
}

impl IoQueue for Queue {
    fn submit(&mut self, _: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let mut inner = self.device.lock();
        let (room, health) = (inner.room, inner.health);
        let seat = &mut inner.queues[self.at];
        if seat.closing || health == Health::Down {
            return Err(Refused { io, why: RefusedWhy::Gone });
        }
        if seat.in_flight.len() >= room {
            return Err(Refused { io, why: RefusedWhy::Full });
        }
        seat.in_flight.push(io);
        seat.taken.push(io);
        Ok(())
    }
    fn kick(&mut self, _: &mut Cx<'_>) {
        self.device.lock().queues[self.at].kicks += 1;
    }
    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Done) {
        let mut inner = self.device.lock();
        let outbox = &mut inner.queues[self.at].outbox;
        done.suspects.append(&mut outbox.suspects);
        done.completions.append(&mut outbox.completions);
    }
    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        if self.device.lock().queues[self.at].outbox.is_empty() { Armed::Sleep } else { Armed::Busy }
    }
    fn health(&self) -> Health {
        let what = self.device.lock().on_health.take();
        what.into_iter().for_each(|what| what(&self.device));
        let inner = self.device.lock();
        if inner.queues[self.at].closing { Health::Down } else { inner.health }
    }
    fn close(&mut self, _: &mut Cx<'_>) {
        self.device.lock().queues[self.at].closing = true;
    }
    fn is_drained(&self) -> bool {
        let inner = self.device.lock();
        let seat = &inner.queues[self.at];
        !inner.undrained
            && seat.closing
            && seat.in_flight.is_empty()
            && seat.suspects.is_empty()
            && seat.outbox.is_empty()
    }
}

/// A group over scripted devices and one queue of it, given turns by the test.
pub struct Bench {
    pub group: Arc<Group>,
    pub events: Events,
    pub devices: Vec<Arc<Scripted>>,
    pub ids: Vec<PathId>,
    pub now: Time,
    pub done: Vec<Completion>,
    pub queue: Box<dyn IoQueue>,
    segs: SegTable,
    row: SegRow,
    next_tag: u64,
}

impl Bench {
    pub fn new(config: GroupConfig, infos: Vec<DeviceInfo>) -> Bench {
        let group = Group::new(config);
        let events = group.events();
        let queue = group.open_queue(QueueConfig { depth: 64 }).expect("a queue");
        let mut segs = SegTable::new(64);
        let row = segs.reserve(1, 1).expect("room");
        segs.get_mut(row.span(0, 1)).fill(Segment { len: 64 * 512, ..Segment::default() });
        let mut bench = Bench {
            group,
            events,
            devices: Vec::new(),
            ids: Vec::new(),
            now: Time::from_millis(1),
            done: Vec::new(),
            queue,
            segs,
            row,
            next_tag: 1,
        };
        infos.into_iter().for_each(|i| bench.add(i));
        bench.turn();
        bench.turn();
        bench
    }

    /// Paths with a cache domain each.
    pub fn with_caches(domains: &[&str]) -> Bench {
        Bench::new(GroupConfig::new("disk"), domains.iter().map(|d| info(d)).collect())
    }

    pub fn add(&mut self, info: DeviceInfo) {
        self.add_in(DeviceState::Live(Arc::new(info)));
    }

    /// As [`Bench::add`], of a device in any state.
    pub fn add_in(&mut self, state: DeviceState) {
        let name = format!("p{}", self.devices.len());
        let device = Scripted::new(&name, info(""));
        device.set_state(state);
        let config = PathConfig { name, ..PathConfig::new(Arc::new(Opener(device.clone()))) };
        self.ids.push(self.group.add_path(config).expect("a new path"));
        self.devices.push(device);
    }

    /// Submits `io` under a tag of its own, which is returned.
    pub fn submit(&mut self, io: Io) -> u64 {
        self.try_submit(io).expect("accepted")
    }

    /// As [`Bench::submit`], where the queue may refuse.
    pub fn try_submit(&mut self, io: Io) -> Result<u64, RefusedWhy> {
        let tag = self.submit_unkicked(io)?;
        self.kick();
        Ok(tag)
    }

    pub fn kick(&mut self) {
        self.queue.kick(&mut Cx { now: self.now, segs: &mut self.segs, reactor: 0 });
    }

    /// From now on, requests have `count` segments of `len` bytes.
    pub fn cut_segments(&mut self, count: u32, len: u32) {
        let row = self.segs.reserve(1, count).expect("room");
        self.segs.get_mut(row.span(0, count)).fill(Segment { len, ..Segment::default() });
        self.row = row;
    }

    /// As [`Bench::try_submit`], of a reactor that goes on with something else before it kicks.
    pub fn submit_unkicked(&mut self, io: Io) -> Result<u64, RefusedWhy> {
        let io = self.tagged(io);
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        self.queue.submit(&mut cx, io).map_err(|refused| refused.why)?;
        Ok(io.tag)
    }

    /// Submits requests together, under the tags that they have; not kicked.
    pub fn submit_all(&mut self, ios: &[Io]) -> Result<(), Rest> {
        let span = self.row.span(0, self.row.width());
        let with_memory = |io: &Io| Io { segs: if io.op.has_data() { span } else { io.segs }, ..*io };
        let ios: Vec<_> = ios.iter().map(with_memory).collect();
        self.queue.submit_all(&mut Cx { now: self.now, segs: &mut self.segs, reactor: 0 }, &ios)
    }

    /// What has completed since this was asked last, in the order in which it did: tags and outcomes. Tags may be used again afterwards.
    pub fn take_done(&mut self) -> Vec<(u64, Code)> {
        self.done.drain(..).map(|c| (c.tag, c.status.code)).collect()
    }

    /// As [`Bench::submit`], to another queue of the group.
    pub fn submit_to(&mut self, queue: &mut dyn IoQueue, io: Io) -> u64 {
        let io = self.tagged(io);
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 1 };
        queue.submit(&mut cx, io).expect("accepted");
        queue.kick(&mut cx);
        io.tag
    }

    /// `io` under a tag of its own, and with memory if it moves data.
    fn tagged(&mut self, io: Io) -> Io {
        let tag = self.next_tag;
        self.next_tag += 1;
        let segs = if io.op.has_data() { self.row.span(0, self.row.width()) } else { io.segs };
        Io { tag, segs, ..io }
    }

    pub fn write(&mut self, lba: u64) -> u64 {
        self.submit(Io::write(0, lba, 1, polypath_block::SegSpan::EMPTY))
    }

    pub fn flush(&mut self) -> u64 {
        self.submit(Io::flush(0))
    }

    /// One turn, a hundred microseconds after the last one.
    pub fn turn(&mut self) {
        self.now = self.now.after(Duration::from_micros(100));
        let mut done = Done::default();
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        self.queue.poll(&mut cx, &mut done);
        for c in &done.completions {
            assert!(self.done.iter().all(|d| d.tag != c.tag), "{c:?} completed twice");
        }
        self.done.append(&mut done.completions);
    }

    /// Another queue of the group, which has heard of every path; give it turns by [`Bench::turn_of`].
    pub fn second_queue(&mut self) -> Box<dyn IoQueue> {
        let mut queue = self.group.open_queue(QueueConfig { depth: 8 }).expect("a queue");
        (0..2).for_each(|_| drop(self.turn_of(&mut *queue)));
        queue
    }

    /// One turn of another queue of the group, as another reactor gives it.
    pub fn turn_of(&mut self, queue: &mut dyn IoQueue) -> Vec<Completion> {
        let mut done = Done::default();
        queue.poll(&mut Cx { now: self.now, segs: &mut self.segs, reactor: 1 }, &mut done);
        done.completions
    }

    pub fn turns(&mut self, n: usize) {
        (0..n).for_each(|_| self.turn());
    }

    /// Turns every ten milliseconds for `ms`.
    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(10) {
            self.now = self.now.after(Duration::from_millis(10));
            self.turn();
        }
    }

    /// Device `at` fails all of `times` rounds of its only request, each of which it is given within 150 ms, and the one after them.
    pub fn fail_rounds(&mut self, at: usize, times: usize) {
        for _ in 0..times {
            self.devices[at].complete(self.devices[at].only(), Code::PathBusy, Proof::Answered);
            self.pass(150);
        }
        self.devices[at].complete(self.devices[at].only(), Code::PathBusy, Proof::Answered);
    }

    /// How often the reactor sleeps until device `at` is given something; at most a hundred times.
    pub fn sleeps_before(&mut self, at: usize) -> usize {
        let mut slept = 0;
        while slept < 100 {
            self.turn();
            if !self.devices[at].in_flight().is_empty() {
                break;
            }
            if let Some(until) = self.arm() {
                slept += 1;
                self.now = until.expect("a deadline");
            }
        }
        slept
    }

    /// May the reactor sleep, and until when?
    pub fn arm(&mut self) -> Option<Option<Time>> {
        let mut waits = Waits::default();
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        (self.queue.arm(&mut cx, &mut waits) == Armed::Sleep).then_some(waits.deadline)
    }

    pub fn close_queue(&mut self) {
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        self.queue.close(&mut cx);
    }

    /// Lets the first device do whatever it is given, until all of these have succeeded, which must be within `ms`.
    pub fn succeed_within(&mut self, ms: u64, tags: &[u64]) {
        for _ in 0..ms.div_ceil(10) {
            self.devices[0].succeed_all();
            self.pass(10);
        }
        let outcomes: Vec<_> = tags.iter().map(|&t| self.outcome(t)).collect();
        let done = outcomes.iter().all(|&o| o == Some(Code::Ok));
        assert!(done, "{outcomes:?}, {} in flight at {:?}", self.devices[0].in_flight().len(), self.now);
    }

    /// How the request ended, if it has.
    pub fn outcome(&self, tag: u64) -> Option<Code> {
        self.completion(tag).map(|c| c.status.code)
    }

    /// What has happened since somebody asked last.
    pub fn told(&self) -> Vec<EventKind> {
        self.drain_events().into_iter().map(|e| e.kind).collect()
    }

    pub fn completion(&self, tag: u64) -> Option<Completion> {
        self.done.iter().find(|c| c.tag == tag).copied()
    }

    /// A write through device `i` (every other device must not be chosen) that completes: its cache is dirty afterwards.
    pub fn dirty(&mut self, i: usize, lba: u64) {
        let before: Vec<usize> = self.devices.iter().map(|d| d.in_flight().len()).collect();
        // Equal paths take turns.
        for _ in 0..self.devices.len() {
            let tag = self.write(lba);
            let at = (0..self.devices.len()).find(|&d| self.devices[d].in_flight().len() > before[d]).expect("sent");
            let io = *self.devices[at].in_flight().last().expect("in flight");
            if at == i {
                self.devices[at].succeed(io);
                self.turn();
                assert_eq!(self.outcome(tag), Some(Code::Ok));
                return;
            }
            self.devices[at].complete(io, Code::Medium, Proof::Answered);
            self.turn();
        }
        panic!("device {i} is never chosen");
    }

    /// A flush that reaches every cache it is sent to, and its outcome.
    pub fn flush_now(&mut self) -> Option<Code> {
        let tag = self.flush();
        for _ in 0..4 {
            self.turn();
            for device in &self.devices {
                for io in device.in_flight() {
                    if io.op == polypath_block::Op::Flush {
                        device.succeed(io);
                    }
                }
            }
        }
        self.turn();
        self.outcome(tag)
    }

    pub fn stats(&self, i: usize) -> PathStatistics {
        let id = self.ids[i];
        self.group.statistics().into_iter().find(|s| s.id == id).expect("the path is there")
    }

    /// Lets everything end: what is in flight succeeds, what is suspect is fenced, what waits runs into its time limit.
    pub fn finish(mut self) {
        for _ in 0..80 {
            for device in &self.devices {
                device.succeed_all();
                for io in device.suspects() {
                    device.complete(io, Code::PathLost, BOUND);
                }
            }
            self.now = self.now.after(Duration::from_secs(1));
            self.turn();
        }
        self.close_queue();
        for _ in 0..20 {
            self.devices.iter().for_each(|d| d.succeed_all());
            self.turn();
        }
        assert!(self.queue.is_drained(), "the queue never drained");
    }

    pub fn drain_events(&self) -> Vec<Event> {
        core::iter::from_fn(|| self.events.try_next()).collect()
    }

    pub fn caches_lost(&self) -> usize {
        self.drain_events().iter().filter(|e| matches!(e.kind, EventKind::CacheLost { .. })).count()
    }
}
