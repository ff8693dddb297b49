//! A path that is watched: latencies, gaps and counts of one path below a multipath disk.
//!
//! Used only when there are several paths; the measured path of a single disk has nothing in between.

use crate::gap::Gap;
use crate::latency::DirectedLatencies;
use polypath_block::{
    Armed, Completion, CrossFence, Cx, Device, DeviceState, Done, Health, Io, IoQueue, Op, OpenError, Passthrough,
    QueueConfig, Refused, Reservations, Rest, Status, Time, Waits,
};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was seen of a path while it was measured.
#[derive(Clone, Debug, Default)]
pub(super) struct PathCounts {
    pub(super) ios: u64,
    pub(super) bytes: u64,
    pub(super) errors: u64,
    pub(super) suspects: u64,
    pub(super) latencies: DirectedLatencies,
    pub(super) longest_gap: Duration,
}

/// What the queues of a path and its watcher share.
#[derive(Debug, Default)]
pub(super) struct PathCounters {
    name: String,
    begin: AtomicU64,
    end: AtomicU64,
    /// Requests completed so far, for the progress line.
    live: AtomicU64,
    seen: Mutex<PathCounts>,
}

impl PathCounters {
    pub(super) fn new(name: String) -> Arc<PathCounters> {
        Arc::new(PathCounters { name, end: AtomicU64::new(u64::MAX), ..PathCounters::default() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What is counted: completions from `begin` until `end`.
    pub(super) fn window(&self, begin: Time, end: Time) {
        self.begin.store(begin.as_nanos(), Relaxed);
        self.end.store(end.as_nanos(), Relaxed);
    }

    /// Nothing that completes at `end` or later is counted.
    pub(super) fn end_at(&self, end: Time) {
        self.end.fetch_min(end.as_nanos(), Relaxed);
    }

    pub(super) fn live(&self) -> u64 {
        self.live.load(Relaxed)
    }

    /// What was seen by queues that are closed by now.
    pub(super) fn seen(&self) -> PathCounts {
        self.seen.lock().unwrap_or_else(|p| p.into_inner()).clone()
    }
}

/// A device whose queues are watched.
pub(super) struct CountedDevice {
    inner: Arc<dyn Device>,
    counters: Arc<PathCounters>,
}

impl CountedDevice {
    pub(super) fn new(inner: Arc<dyn Device>, counters: Arc<PathCounters>) -> CountedDevice {
        CountedDevice { inner, counters }
    }
}

impl Device for CountedDevice {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn state(&self) -> DeviceState {
        self.inner.state()
    }

    fn version(&self) -> u64 {
        self.inner.version()
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let info = self.inner.state().info().cloned();
        let most = info.as_ref().map_or(1024, |i| i.max_depth).max(config.depth);
        Ok(Box::new(Queue {
            inner: self.inner.open_queue(config)?,
            block_size: info.map_or(0, |i| i.geometry.block_size),
            device: self.inner.clone(),
            sent: Table::new(most.max(1).into()),
            counters: self.counters.clone(),
            gap: Gap::default(),
            measuring: false,
            seen: PathCounts::default(),
        }))
    }

    fn is_preferred(&self) -> bool {
        self.inner.is_preferred()
    }

    fn power_losses(&self) -> u64 {
        self.inner.power_losses()
    }

    fn ask_for_access(&self) {
        self.inner.ask_for_access();
    }

    fn landing_bound(&self) -> Duration {
        self.inner.landing_bound()
    }

    fn losses(&self) -> u64 {
        self.inner.losses()
    }

    fn reservations(&self) -> Option<&dyn Reservations> {
        self.inner.reservations()
    }

    fn passthrough(&self) -> Option<&dyn Passthrough> {
        self.inner.passthrough()
    }

    fn cross_fence(&self) -> Option<&dyn CrossFence> {
        self.inner.cross_fence()
    }

    fn close(&self) {
        self.inner.close();
    }
}

/// A request under way.
#[derive(Clone, Copy)]
struct Sent {
    tag: u64,
    started: Time,
    blocks: u32,
    op: Op,
}

/// Of a place that is free. A request with this tag is in the list.
const NONE: u64 = u64::MAX;

/// The requests under way. What is above numbers its requests in the low bits of their tags, so that each has a place of its own here as a
/// rule; those that find theirs taken are in a list.
struct Table {
    places: Box<[Sent]>,
    others: Vec<Sent>,
}

impl Table {
    fn new(depth: usize) -> Table {
        let free = Sent { tag: NONE, started: Time::ZERO, blocks: 0, op: Op::Flush };
        Table { places: vec![free; (2 * depth).next_power_of_two()].into(), others: Vec::with_capacity(depth) }
    }

    /// Requests go down at `now`.
    #[inline]
    fn note(&mut self, ios: &[Io], now: Time) {
        let places = &mut self.places[..];
        let mask = places.len() - 1;
        for io in ios {
            let sent = Sent { tag: io.tag, started: now, blocks: io.blocks, op: io.op };
            let place = &mut places[io.tag as usize & mask];
            if place.tag == NONE {
                *place = sent;
            } else {
                self.others.push(sent);
            }
        }
    }

    /// Requests have completed: hands each to `each`.
    #[inline]
    fn take(&mut self, completions: &[Completion], mut each: impl FnMut(&Sent, Status)) {
        let places = &mut self.places[..];
        let mask = places.len() - 1;
        for completion in completions {
            let place = &mut places[completion.tag as usize & mask];
            if place.tag == completion.tag && completion.tag != NONE {
                each(place, completion.status);
                place.tag = NONE;
            } else if let Some(at) = self.others.iter().position(|sent| sent.tag == completion.tag) {
                each(&self.others.swap_remove(at), completion.status);
            }
        }
    }
}

struct Queue {
    inner: Box<dyn IoQueue>,
    device: Arc<dyn Device>,
    block_size: u32,
    sent: Table,
    counters: Arc<PathCounters>,
    gap: Gap,
    measuring: bool,
    seen: PathCounts,
}

impl Queue {
    fn borders(&mut self, now: Time) {
        let inside =
            now.as_nanos() >= self.counters.begin.load(Relaxed) && now.as_nanos() < self.counters.end.load(Relaxed);
        if inside && !self.measuring {
            self.gap.restart(now);
            self.seen = PathCounts::default();
            if self.block_size == 0 {
                self.block_size = self.device.state().info().map_or(0, |i| i.geometry.block_size);
            }
        } else if !inside && self.measuring {
            self.seen.longest_gap = self.gap.longest(now);
        }
        self.measuring = inside;
    }
}

impl IoQueue for Queue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.inner.submit(cx, io)?;
        self.sent.note(core::slice::from_ref(&io), cx.now);
        self.gap.submitted(cx.now, 1);
        Ok(())
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        let result = self.inner.submit_all(cx, ios);
        let taken = result.map_or_else(|rest| rest.taken, |()| ios.len());
        self.sent.note(&ios[..taken], cx.now);
        self.gap.submitted(cx.now, taken as u64);
        result
    }

    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.inner.kick(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.borders(cx.now);
        let (before, suspects) = (done.completions.len(), done.suspects.len());
        self.inner.poll(cx, done);
        self.seen.suspects += (done.suspects.len() - suspects) as u64;
        let completions = &done.completions[before..];
        let n = completions.len() as u64;
        let (mut ios, mut blocks) = (0, 0);
        let (seen, measuring) = (&mut self.seen, self.measuring);
        self.sent.take(completions, |sent, status| {
            if measuring && status.is_ok() {
                (ios, blocks) = (ios + 1, blocks + if sent.op.has_data() { u64::from(sent.blocks) } else { 0 });
                seen.latencies.record(sent.op.data_in(), cx.now.nanos_since(sent.started));
            } else if measuring {
                seen.errors += 1;
            }
        });
        self.seen.ios += ios;
        self.seen.bytes += blocks * u64::from(self.block_size);
        if n > 0 {
            self.gap.completed(cx.now, n);
            self.counters.live.fetch_add(n, Relaxed);
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        self.inner.arm(cx, waits)
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.inner.close(cx);
    }

    fn is_drained(&self) -> bool {
        self.inner.is_drained()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut seen = self.counters.seen.lock().unwrap_or_else(|p| p.into_inner());
        seen.ios += self.seen.ios;
        seen.bytes += self.seen.bytes;
        seen.errors += self.seen.errors;
        seen.suspects += self.seen.suspects;
        seen.latencies.merge(&self.seen.latencies);
        seen.longest_gap = seen.longest_gap.max(self.seen.longest_gap);
    }
}
