//! The reactor's side of a disk: takes submissions out of their queue, owns the queue of the device, completes the cells.

use crate::disk::OwnedDevice;
use crate::op::{Request, Submission, Ticket};
use crate::poller_count::Guard;
use crate::submission_queue::SubmissionQueue;
use polypath_block::{
    Armed, Code, Cx, Device, DeviceInfo, DeviceState, Done, Health, Io, IoQueue, Op, Poller, RefusedWhy, SegRow,
    SegSpan, SegTable, SlotKey, Slots, Splitter, Status, Time, Turn, Waits,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::task::Waker;
use std::time::Duration;

/// How long an operation waits for the queue of a live device to be connected.
const QUEUE_WAIT: Duration = Duration::from_secs(30);

pub(crate) struct DiskPoller {
    // The queue goes before the slots: what is in flight keeps its buffer until the queue is dropped.
    queue: Box<dyn IoQueue>,
    slots: Slots<Active>,
    /// Slots with parts that are not submitted yet.
    backlog: VecDeque<SlotKey>,
    submissions: Arc<SubmissionQueue>,
    rx: Receiver<Submission>,
    device: Arc<dyn Device>,
    version: u64,
    info: Arc<DeviceInfo>,
    /// Why a refusal of the queue is final, if it is.
    down: Option<Status>,
    /// Blocks of the disk, for the futures' side.
    blocks: Arc<AtomicU64>,
    row: Option<SegRow>,
    done: Done,
    wakers: Vec<Waker>,
    /// The front of the backlog waits for the queue until then.
    waits_until: Option<Time>,
    closed: bool,
    /// The device, as long as something is still to be submitted.
    owned_device: Option<Arc<OwnedDevice>>,
    _counted: [Guard; 2],
}

struct Active {
    ticket: Ticket,
    parts: Parts,
    /// A part that the queue had no room for.
    held: Option<Io>,
    outstanding: u32,
    /// All parts are submitted, or no more will be.
    issued: bool,
    status: Status,
    since: Time,
}

/// The rest of a request, cut to the limits of the device as it is submitted.
struct Parts {
    now: Option<Splitter>,
    request: Request,
    tag: u64,
    span: SegSpan,
}

pub(crate) struct Setup {
    pub(crate) queue: Box<dyn IoQueue>,
    pub(crate) submissions: Arc<SubmissionQueue>,
    pub(crate) rx: Receiver<Submission>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) owned_device: Option<Arc<OwnedDevice>>,
    pub(crate) info: Arc<DeviceInfo>,
    pub(crate) blocks: Arc<AtomicU64>,
    pub(crate) row: SegRow,
    pub(crate) depth: u16,
    pub(crate) counted: [Guard; 2],
}

impl DiskPoller {
    pub(crate) fn new(setup: Setup) -> Self {
        let depth = usize::from(setup.depth);
        DiskPoller {
            queue: setup.queue,
            slots: Slots::new(setup.depth),
            backlog: VecDeque::with_capacity(depth),
            submissions: setup.submissions,
            rx: setup.rx,
            version: 0,
            device: setup.device,
            info: setup.info,
            down: None,
            blocks: setup.blocks,
            row: Some(setup.row),
            done: Done::with_capacity(depth * 2),
            wakers: Vec::with_capacity(depth),
            waits_until: None,
            closed: false,
            owned_device: setup.owned_device,
            _counted: setup.counted,
        }
    }

    fn follow_device(&mut self) {
        let version = self.device.version();
        if version == self.version {
            return;
        }
        self.version = version;
        self.down = match self.device.state() {
            DeviceState::Live(info) => {
                self.blocks.store(info.geometry.blocks, Ordering::Relaxed);
                self.info = info;
                None
            }
            DeviceState::Starting => None,
            DeviceState::Down { cause, .. } => Some(cause.into()),
            DeviceState::Gone { .. } => Some(Code::Gone.into()),
        };
    }

    fn collect(&mut self, cx: &mut Cx<'_>) -> bool {
        self.queue.poll(cx, &mut self.done);
        // A suspect completes later; there is no other path to try at this level.
        self.done.suspects.clear();
        let any = !self.done.completions.is_empty();
        for at in 0..self.done.completions.len() {
            let completion = self.done.completions[at];
            let key = SlotKey::from_u32(completion.tag as u32);
            let Some(active) = self.slots.get_mut(key) else {
                tracing::error!(device = self.device.name(), ?completion, "completion for a request that is not open");
                continue;
            };
            active.outstanding = active.outstanding.saturating_sub(1);
            if active.status.is_ok() {
                active.status = completion.status;
            }
            self.finish_if_over(key);
        }
        self.done.completions.clear();
        any
    }

    fn finish_if_over(&mut self, key: SlotKey) {
        if self.slots.get(key).is_some_and(|a| a.issued && a.outstanding == 0)
            && let Some(active) = self.slots.remove(key)
        {
            active.ticket.complete(active.status);
        }
    }

    /// Submits what it can; says whether anything moved.
    fn pump(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut any = false;
        self.waits_until = None;
        loop {
            while let Some(&key) = self.backlog.front() {
                let (sent, all) = self.submit_parts(key, cx);
                any |= sent;
                if !all {
                    return any;
                }
                self.backlog.pop_front();
                self.finish_if_over(key);
                any = true;
            }
            if self.slots.is_full() {
                return any;
            }
            let Ok(submission) = self.rx.try_recv() else { return any };
            self.submissions.taken();
            self.begin(submission, cx);
        }
    }

    fn begin(&mut self, submission: Submission, cx: &mut Cx<'_>) {
        let Submission { request, segment, ticket } = submission;
        let active = Active {
            ticket,
            parts: Parts { now: None, request, tag: 0, span: SegSpan::EMPTY },
            held: None,
            outstanding: 0,
            issued: false,
            status: Status::OK,
            since: cx.now,
        };
        // `pump` has looked for a free slot; were there none, the dropped ticket would say so.
        let Ok(key) = self.slots.insert(active) else { return };
        let Some(active) = self.slots.get_mut(key) else { return };
        active.parts.tag = key.as_u32().into();
        if let (Some(segment), Some(row)) = (segment, &self.row) {
            active.parts.span = row.span(key.index().into(), 1);
            cx.segs.get_mut(active.parts.span)[0] = segment;
        }
        // Checked once as a whole, so that a request the device cannot do is not cut into a million parts first.
        let whole = active.parts.io(request.lba, u32::try_from(request.blocks).unwrap_or(u32::MAX));
        let geometry = self.info.geometry;
        if let Err(status) = self.info.limits.check(&whole, geometry.blocks, geometry.block_size, cx.segs) {
            (active.status, active.issued) = (status, true);
            return self.finish_if_over(key);
        }
        self.backlog.push_back(key);
    }

    /// Says whether something was submitted, and whether that was all.
    fn submit_parts(&mut self, key: SlotKey, cx: &mut Cx<'_>) -> (bool, bool) {
        let mut sent = false;
        let Some(active) = self.slots.get_mut(key) else { return (sent, true) };
        while active.status.is_ok() {
            let part = match active.held.take() {
                Some(part) => part,
                None => match active.parts.next(&self.info, cx.segs) {
                    Some(Ok(part)) => part,
                    Some(Err(status)) => {
                        active.status = status;
                        break;
                    }
                    None => break,
                },
            };
            match self.queue.submit(cx, part) {
                Ok(()) => {
                    active.outstanding += 1;
                    sent = true;
                }
                Err(refused) if refused.why == RefusedWhy::Full => {
                    active.held = Some(part);
                    return (sent, false);
                }
                Err(_) => {
                    let until = active.since.after(QUEUE_WAIT);
                    match self.down {
                        Some(status) => active.status = status,
                        None if cx.now >= until => active.status = Code::PathLost.into(),
                        None => {
                            active.held = Some(part);
                            self.waits_until = Some(until);
                            return (sent, false);
                        }
                    }
                }
            }
        }
        active.issued = true;
        (sent, true)
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.submissions.queued() == 0 && !self.submissions.has_waiters()
    }

    /// May it end now? Only once everything has completed.
    fn wind_up(&mut self, cx: &mut Cx<'_>) -> bool {
        if !self.submissions.is_closing() {
            return false;
        }
        if self.backlog.is_empty() && self.submissions.queued() == 0 && !self.submissions.has_waiters() {
            self.owned_device = None;
        }
        if !self.is_empty() {
            return false;
        }
        if !self.closed {
            self.closed = true;
            self.queue.close(cx);
        }
        if !self.queue.is_drained() {
            return false;
        }
        if let Some(row) = self.row.take() {
            cx.segs.release(row);
        }
        true
    }
}

impl Poller for DiskPoller {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.submissions.set_awake();
        self.follow_device();
        let collected = self.collect(cx);
        let pumped = self.pump(cx);
        self.queue.kick(cx);
        self.submissions.wake_waiters(&mut self.wakers);
        if self.wind_up(cx) {
            return Turn::Finished;
        }
        if collected || pumped { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        self.submissions.set_idle();
        let could_take = self.backlog.is_empty() && !self.slots.is_full();
        let stuck_no_more = self.waits_until.is_some() && self.queue.health() != Health::Down;
        if (could_take && self.submissions.queued() > 0)
            || self.submissions.can_wake_waiters()
            || stuck_no_more
            || (self.submissions.is_closing() && !self.closed && self.is_empty())
            || self.device.version() != self.version
        {
            return Armed::Busy;
        }
        if let Some(until) = self.waits_until {
            waits.until(until);
        }
        waits.on_call();
        self.queue.arm(cx, waits)
    }

    fn name(&self) -> &str {
        self.device.name()
    }
}

impl Parts {
    fn io(&self, lba: u64, blocks: u32) -> Io {
        let Request { op, flags, .. } = self.request;
        Io { tag: self.tag, lba, blocks, op, flags, segs: self.span, skip: 0 }
    }

    fn next(&mut self, info: &DeviceInfo, segs: &SegTable) -> Option<Result<Io, Status>> {
        loop {
            if let Some(splitter) = &mut self.now {
                match splitter.next_part(segs) {
                    Some(part) => return Some(part),
                    None if self.request.blocks == 0 => return None,
                    None => {}
                }
            } else if self.request.op != Op::Flush && self.request.blocks == 0 {
                return None;
            }
            // Only requests without data are longer than one `Io` can say.
            let blocks = u32::try_from(self.request.blocks).unwrap_or(u32::MAX);
            let io = self.io(self.request.lba, blocks);
            self.request.lba += u64::from(blocks);
            self.request.blocks -= u64::from(blocks);
            self.now = Some(Splitter::new(io, &info.limits, info.geometry.block_size));
        }
    }
}
