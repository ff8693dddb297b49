//! One I/O queue: one TCP connection, owned by one reactor.
//!
//! A request takes one command (or several, when it is larger than the controller takes), all commands of a turn leave in one
//! send, and whatever has come is taken in one receive. The queue connects by itself whenever its controller is up, and closes its
//! socket whenever the association is lost, whoever found that out.
//!
//! What becomes of the requests of a lost connection is in `loss.rs`, time limits are in `watch.rs`.

use crate::admin::Fault;
use crate::attach;
use crate::command;
use crate::link::{Broken, Finished, Link, RX_IO, Transfer};
use crate::loss::Fenced;
use crate::request::{Request, finish_part};
use crate::shared::{Association, Namespace, QueueDesk, Shared, Stage};
use crate::watch::Watch;
use polypath_block::{
    Armed, Code, Completion, Cx, Done, Health, Io, IoQueue, Limits, Op, OpenError, Proof, QueueConfig, Refused,
    RefusedWhy, SegRow, SlotKey, Slots, Splitter, Status, Time, Waits,
};
use polypath_memory::{Arena, Chunk};
use polypath_nvme::Sqe;
use polypath_nvme::fabrics::{ConnectData, cattr};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The user number of Connect; no request has it.
const CONNECT: u64 = u64::MAX;
/// Pause between two looks at a socket from which nothing is expected.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The same just after a sleep, which the socket may have ended.
const LOOK_SOON: Duration = Duration::from_micros(100);
/// Requests that may wait for their fences, as a multiple of the depth: more are refused rather than kept without bound.
const FENCED_DEPTHS: usize = 4;

/// Where the connection stands.
pub(crate) enum Way {
    /// None; none before this time.
    Down { retry: Time },
    /// Being made, up to this time.
    Opening { until: Time, connecting: bool },
    /// Takes commands.
    Ready,
}

/// See the module.
pub(crate) struct NvmeQueue {
    pub(crate) shared: Arc<Shared>,
    pub(crate) desk: Arc<QueueDesk>,
    pub(crate) qid: u16,
    ns: Option<u32>,
    capacity: u16,
    pub(crate) way: Way,
    pub(crate) link: Option<Link>,
    pub(crate) association: Option<Arc<Association>>,
    /// The one whose socket was closed in the turn before, to be told when this one has read the clock.
    pub(crate) unacknowledged: Option<Arc<Association>>,
    nsid: u32,
    namespace: Option<Namespace>,
    block_size: u32,
    blocks: u64,
    limits: Limits,
    pub(crate) requests: Slots<Request>,
    backlog: VecDeque<SlotKey>,
    /// Finished before they left.
    early: Vec<Completion>,
    pub(crate) fenced: Vec<Fenced>,
    fence_look: Time,
    pub(crate) broken: Option<Broken>,
    pub(crate) watch: Watch,
    ranges: Chunk,
    ranges_row: Option<SegRow>,
    looked: Time,
    slept: bool,
    closing: bool,
    failures: u32,
    ios: u64,
    bytes: u64,
    syscalls: u64,
}

impl NvmeQueue {
    /// A queue that connects as soon as the controller is up.
    pub(crate) fn open(shared: Arc<Shared>, ns: Option<u32>, config: QueueConfig) -> Result<Self, OpenError> {
        let system = |reason: String| OpenError::System { name: shared.config.name.clone(), reason };
        let capacity = config.depth.max(shared.config.queue_depth).clamp(1, 8192);
        // The ranges of discards, one for each request; before there are any, the data of Connect.
        let len = (u32::from(capacity) * command::RANGE_LEN).max(ConnectData::LEN as u32);
        let ranges = Arena::new(len.into(), false).map_err(|e| system(e.to_string()))?;
        let ranges = ranges.chunk(len).ok_or_else(|| system("no memory for ranges".into()))?;
        let (qid, desk) = shared.register_queue()?;
        // The first turn looks at everything.
        desk.bell.ring();
        let watch = Watch::new(&shared.config);
        Ok(NvmeQueue {
            shared,
            desk,
            qid,
            ns,
            capacity,
            way: Way::Down { retry: Time::ZERO },
            link: None,
            association: None,
            unacknowledged: None,
            nsid: 0,
            namespace: None,
            block_size: 512,
            blocks: 0,
            limits: Limits::UNLIMITED,
            requests: Slots::new(capacity),
            backlog: VecDeque::with_capacity(usize::from(capacity) * 2),
            early: Vec::with_capacity(usize::from(capacity)),
            fenced: Vec::with_capacity(usize::from(capacity) * FENCED_DEPTHS),
            fence_look: Time::ZERO,
            broken: None,
            watch,
            ranges,
            ranges_row: None,
            looked: Time::ZERO,
            slept: false,
            closing: false,
            failures: 0,
            ios: 0,
            bytes: 0,
            syscalls: 0,
        })
    }

    fn is_usable(&self) -> bool {
        matches!(self.way, Way::Ready)
            && !self.closing
            && self.broken.is_none()
            && self.namespace.as_ref().is_some_and(|n| n.trouble.is_none())
    }

    /// The controller, the association or the namespace may have changed.
    #[cold]
    fn follow(&mut self, done: &mut Done) {
        for answer in self.desk.take_answers() {
            self.take_abort_answer(answer);
        }
        if let Some(association) = &self.association
            && association.is_lost()
        {
            let (code, reason) = association.loss();
            tracing::debug!(path = %self.shared.config.name, qid = self.qid, %reason, "I/O queue leaves a lost association");
            self.lose(done, code);
        }
        match self.shared.stage() {
            Stage::Live(association) => {
                match self.shared.namespace(&association, self.ns) {
                    Ok((nsid, namespace)) => self.take_namespace(nsid, namespace),
                    Err(_) => self.namespace = None,
                }
                let new = self.association.as_ref().is_none_or(|a| a.generation != association.generation);
                if new && self.link.is_none() && !association.is_lost() {
                    self.association = Some(association);
                    self.failures = 0;
                    self.way = Way::Down { retry: Time::ZERO };
                }
            }
            Stage::Starting | Stage::Down { .. } | Stage::Gone { .. } => self.namespace = None,
        }
    }

    fn take_namespace(&mut self, nsid: u32, namespace: Namespace) {
        let info = &namespace.info;
        self.nsid = nsid;
        self.block_size = info.geometry.block_size;
        self.blocks = info.geometry.blocks;
        self.limits = info.limits;
        self.namespace = Some(namespace);
    }

    /// Works on the connection while it is not ready.
    #[cold]
    fn progress(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        match self.way {
            Way::Ready => {}
            Way::Down { retry } => {
                let idle = self.closing || self.link.is_some() || cx.now < retry;
                let Some(association) = self.association.clone().filter(|a| !idle && !a.is_lost()) else { return };
                if self.qid > association.queues {
                    self.way = Way::Down { retry: Time::NEVER };
                    let (path, qid, granted) = (&self.shared.config.name, self.qid, association.queues);
                    tracing::error!(%path, qid, granted, "the controller grants too few I/O queues for this one");
                    return;
                }
                self.dial(cx.now, &association);
            }
            Way::Opening { until, connecting } => {
                if cx.now >= until {
                    let ms = self.shared.config.connect_timeout.as_millis();
                    let reason = format!("I/O queue {} is not connected within {ms} ms", self.qid);
                    self.opening_failed(cx.now, done, &Fault::new(Code::PathTimeout, reason));
                    return;
                }
                let ready = self.link.as_ref().is_some_and(Link::is_ready);
                if ready && !connecting {
                    self.connect(cx);
                }
            }
        }
    }

    fn dial(&mut self, now: Time, association: &Arc<Association>) {
        if !association.open_socket(now) {
            return;
        }
        let config = &self.shared.config;
        let mut host = attach::host_config(config, association.depth);
        host.in_capsule_bytes = association.in_capsule;
        match Link::dial(&*config.dialer, association.address, host, RX_IO) {
            Ok(link) => {
                self.link = Some(link);
                self.way = Way::Opening { until: now.after(config.connect_timeout), connecting: false };
                self.watch.start(now);
            }
            Err(broken) => {
                association.fence.closed(now);
                self.retry_later(now, &broken.into());
            }
        }
    }

    fn connect(&mut self, cx: &mut Cx<'_>) {
        let (Some(association), Some(link)) = (&self.association, &mut self.link) else { return };
        let Some(row) = &self.ranges_row else { return };
        let data = attach::connect_data(&self.shared.config, association.cntlid);
        if self.ranges.window().copy_in(0, &data).is_err() {
            self.broken = Some(Broken { code: Code::BadMemory, reason: "no room for the data of Connect".into() });
            return;
        }
        let span = row.span(0, 1);
        cx.segs.get_mut(span)[0] = self.ranges.segment();
        let sqe = Sqe::connect(0, self.qid, association.depth, cattr::DISABLE_SQ_FLOW_CONTROL, 0);
        let transfer = Transfer::Out { span, skip: 0, len: data.len() as u32 };
        if link.submit(&sqe, transfer, CONNECT).is_some()
            && let Way::Opening { connecting, .. } = &mut self.way
        {
            *connecting = true;
        }
    }

    fn connect_answered(&mut self, cx: &mut Cx<'_>, done: &mut Done, finished: &Finished) {
        match attach::connected(&finished.cqe) {
            Ok(_) => {
                self.way = Way::Ready;
                self.failures = 0;
                tracing::debug!(path = %self.shared.config.name, qid = self.qid, "I/O queue is connected");
            }
            Err(fault) => self.opening_failed(cx.now, done, &fault),
        }
    }

    /// The connection could not be made. Nothing was sent over it, so that the association need not suffer.
    pub(crate) fn opening_failed(&mut self, now: Time, done: &mut Done, fault: &Fault) {
        self.drop_link(done, fault.code);
        self.retry_later(now, fault);
    }

    fn retry_later(&mut self, now: Time, fault: &Fault) {
        self.failures += 1;
        let config = &self.shared.config;
        let delay = config.reconnect_delay * self.failures.min(10);
        tracing::warn!(
            path = %config.name, qid = self.qid, reason = %fault.reason, again_ms = delay.as_millis() as u64,
            "I/O queue cannot be connected"
        );
        self.way = Way::Down { retry: now.after(delay) };
    }

    /// Takes what has come.
    #[inline]
    fn receive(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let Some(link) = &mut self.link else { return };
        let (requests, ios, bytes) = (&mut self.requests, &mut self.ios, &mut self.bytes);
        let (block_size, shared, now) = (self.block_size, &self.shared, cx.now);
        let mut connected = None;
        let moved = link.receive(cx.segs, |finished| {
            if finished.user == CONNECT {
                connected = Some(finished);
                return;
            }
            *ios += 1;
            finish_part(requests, shared, &finished, now, done, |io| *bytes += io.data_len(block_size));
        });
        match moved {
            Ok(true) => self.watch.heard(cx.now),
            Ok(false) => {}
            Err(broken) => self.broken = Some(broken),
        }
        if let Some(finished) = connected {
            self.connect_answered(cx, done, &finished);
        }
    }

    /// Makes commands of requests that wait, as far as there is room.
    #[inline]
    fn feed(&mut self, cx: &mut Cx<'_>) {
        while let Some(&key) = self.backlog.front() {
            let Some(request) = self.requests.get_mut(key) else {
                self.backlog.pop_front();
                continue;
            };
            let Some(mut splitter) = request.rest.filter(|_| request.status.is_ok()) else {
                self.backlog.pop_front();
                continue;
            };
            match splitter.next_part(cx.segs) {
                None => {
                    request.rest = None;
                    self.backlog.pop_front();
                }
                Some(Err(status)) => {
                    request.rest = None;
                    request.status = status;
                    self.backlog.pop_front();
                    if request.parts == 0 {
                        let tag = request.io.tag;
                        self.requests.remove(key);
                        self.early.push(Completion { tag, status, proof: Proof::NeverSent });
                    }
                }
                Some(Ok(part)) => {
                    if !self.send_part(cx, key, &part) {
                        return;
                    }
                    if let Some(request) = self.requests.get_mut(key) {
                        request.parts += 1;
                        let more = { splitter }.next_part(cx.segs).is_some();
                        request.rest = Some(splitter).filter(|_| more);
                    }
                }
            }
        }
    }

    /// One command; `false` when there is no room for it now.
    #[inline]
    fn send_part(&mut self, cx: &mut Cx<'_>, key: SlotKey, part: &Io) -> bool {
        let Some(link) = &mut self.link else { return false };
        let len = part.data_len(self.block_size) as u32;
        let transfer = match part.op {
            Op::Read => Transfer::In { span: part.segs, skip: part.skip, len, exact: true },
            Op::Write | Op::Compare => Transfer::Out { span: part.segs, skip: part.skip, len },
            Op::Discard => {
                let Some(row) = &self.ranges_row else { return false };
                match command::put_range(&self.ranges, key.index(), part) {
                    Some(segment) => {
                        let span = row.span(key.index().into(), 1);
                        cx.segs.get_mut(span)[0] = segment;
                        Transfer::Out { span, skip: 0, len: command::RANGE_LEN }
                    }
                    None => return false,
                }
            }
            Op::Flush | Op::WriteZeroes => Transfer::None,
        };
        if link.in_flight() == 0 {
            self.watch.start(cx.now);
        }
        link.submit(&command::build(part, self.nsid), transfer, key.as_u32().into()).is_some()
    }

    fn drain_early(&mut self, done: &mut Done) {
        done.completions.append(&mut self.early);
    }

    fn publish(&mut self) {
        let counts = &self.shared.counts;
        let syscalls = self.link.as_ref().map_or(0, |link| link.counters().syscalls);
        counts.ios.fetch_add(std::mem::take(&mut self.ios), Ordering::Relaxed);
        counts.bytes.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        counts.syscalls.fetch_add(syscalls - self.syscalls, Ordering::Relaxed);
        self.syscalls = syscalls;
    }

    /// Closes the connection of a closed queue that has nothing left to do.
    fn shut(&mut self, cx: &mut Cx<'_>) {
        if self.link.is_some() {
            self.publish();
            self.link = None;
            self.syscalls = 0;
            if let Some(association) = self.association.take() {
                association.fence.closed(cx.now);
            }
        }
        self.way = Way::Down { retry: Time::NEVER };
        if let Some(row) = self.ranges_row.take() {
            cx.segs.release(row);
        }
    }

    pub(crate) fn forget_link(&mut self) {
        self.publish();
        self.syscalls = 0;
        self.link = None;
        self.way = Way::Down { retry: Time::NEVER };
        self.backlog.clear();
    }

    pub(crate) fn look_at_fences_at(&mut self, at: Time) {
        self.fence_look = at;
    }

    pub(crate) fn fence_look(&self) -> Time {
        self.fence_look
    }

    pub(crate) fn has_fenced_room(&self) -> bool {
        self.fenced.len() + usize::from(self.requests.len()) < self.fenced.capacity()
    }

    fn wants_look(&self, now: Time) -> bool {
        match &self.link {
            None => false,
            Some(link) if link.in_flight() > 0 || !matches!(self.way, Way::Ready) => true,
            Some(_) => now >= self.looked.after(if self.slept { LOOK_SOON } else { LOOK_EVERY }),
        }
    }
}

impl IoQueue for NvmeQueue {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        if !self.is_usable() {
            return Err(Refused { io, why: RefusedWhy::Gone });
        }
        if self.requests.is_full() || self.early.len() == self.early.capacity() || !self.has_fenced_room() {
            return Err(Refused { io, why: RefusedWhy::Full });
        }
        if let Err(status) = self
            .limits
            .check(&io, self.blocks, self.block_size, cx.segs)
            .and_then(|()| command::check_memory(&io, self.block_size, cx.segs))
        {
            self.early.push(Completion { tag: io.tag, status, proof: Proof::NeverSent });
            return Ok(());
        }
        let whole = self.backlog.is_empty() && self.limits.fits(&io, self.block_size, cx.segs);
        let request = Request {
            io,
            rest: None,
            parts: 1,
            status: Status::OK,
            answered: false,
            sent: false,
            unproven: false,
            since: cx.now,
            aborting: None,
        };
        let Ok(key) = self.requests.insert(request) else { return Err(Refused { io, why: RefusedWhy::Full }) };
        if whole && self.send_part(cx, key, &io) {
            return Ok(());
        }
        if let Some(request) = self.requests.get_mut(key) {
            request.parts = 0;
            request.rest = Some(Splitter::new(io, &self.limits, self.block_size));
        }
        self.backlog.push_back(key);
        self.feed(cx);
        Ok(())
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        if let Some(link) = &mut self.link
            && self.broken.is_none()
            && let Err(broken) = link.flush(cx.segs)
        {
            self.broken = Some(broken);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.desk.bell.rise();
        self.watch.turn(cx.now);
        if let Some(association) = self.unacknowledged.take() {
            // Its socket was closed before the clock of this turn was read.
            association.fence.closed(cx.now);
        }
        if self.ranges_row.is_none() && !self.closing {
            self.ranges_row = cx.segs.reserve(u32::from(self.capacity), 1).ok();
        }
        if self.desk.bell.answer() {
            self.follow(done);
        }
        if self.wants_look(cx.now) {
            self.looked = cx.now;
            self.slept = false;
            self.receive(cx, done);
        }
        if !matches!(self.way, Way::Ready) {
            self.progress(cx, done);
        }
        if !self.backlog.is_empty() {
            self.feed(cx);
        }
        self.kick(cx);
        if let Some(broken) = self.broken.take() {
            self.break_down(cx, done, &broken);
        }
        if self.watch.is_due(cx.now) {
            self.check_time(cx, done);
            self.publish();
        }
        if !self.fenced.is_empty() {
            self.release_fenced(cx.now, done);
        }
        if !self.early.is_empty() {
            self.drain_early(done);
        }
        if self.closing && self.is_drained() {
            self.shut(cx);
        }
    }

    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if !self.early.is_empty() || self.unacknowledged.is_some() || self.broken.is_some() {
            return Armed::Busy;
        }
        if self.desk.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        let mut wake = Time::NEVER;
        match self.way {
            Way::Down { retry } if self.association.is_some() && !self.closing => wake = retry,
            Way::Opening { until, .. } => wake = until,
            _ => {}
        }
        if let Some(link) = &self.link {
            link.arm(waits);
            if link.in_flight() > 0 {
                wake = wake.min(self.watch.due());
            }
        }
        if let Some(at) = self.next_fence() {
            wake = wake.min(at);
        }
        if wake != Time::NEVER {
            waits.until(wake);
        }
        self.watch.sleeps_until(wake);
        self.slept = true;
        Armed::Sleep
    }

    fn health(&self) -> Health {
        match self.is_usable() {
            false => Health::Down,
            true if self.watch.is_stalled() => Health::Stalled,
            true => Health::Ready,
        }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.closing = true;
        if self.is_drained() {
            self.shut(cx);
        }
    }

    fn is_drained(&self) -> bool {
        self.requests.is_empty() && self.fenced.is_empty() && self.early.is_empty() && self.unacknowledged.is_none()
    }

    fn is_surplus(&self) -> bool {
        let granted = |a: &Arc<Association>| if a.is_lost() { u16::MAX } else { a.queues };
        self.link.is_none() && self.association.as_ref().is_some_and(|a| self.qid > granted(a))
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        // A drained queue has neither: this is a reactor that ends under its queues.
        let open = self.association.take().filter(|_| self.link.is_some());
        if let Some(link) = &mut self.link {
            link.abort();
        }
        for association in open.into_iter().chain(self.unacknowledged.take()) {
            association.fence.closed(self.watch.last_turn());
        }
        self.shared.release_queue(self.qid);
    }
}
