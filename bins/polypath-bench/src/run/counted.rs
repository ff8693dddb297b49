//! A path that is watched: latencies, gaps and counts of one path below a multipath disk.
//!
//! Used only when there are several paths; the measured path of a single disk has nothing in between.

use crate::gap::Gap;
use crate::latency::DirectedLatencies;
use polypath_block::{
    Armed, Cx, Device, DeviceState, Done, Health, Io, IoQueue, OpenError, QueueConfig, Refused, RefusedWhy, SlotKey,
    Slots, Time, Waits,
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
            slots: Slots::new(most.max(1)),
            done: Done::with_capacity(most.into()),
            counters: self.counters.clone(),
            gap: Gap::default(),
            measuring: false,
            seen: PathCounts::default(),
        }))
    }

    fn close(&self) {
        self.inner.close();
    }
}

/// A request under way.
struct Sent {
    /// What its submitter calls it.
    tag: u64,
    started: Time,
    /// Blocks of data; none if it carries none.
    blocks: u32,
    read: bool,
}

struct Queue {
    inner: Box<dyn IoQueue>,
    device: Arc<dyn Device>,
    block_size: u32,
    slots: Slots<Sent>,
    done: Done,
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
        let blocks = if io.op.has_data() { io.blocks } else { 0 };
        let Ok(key) = self.slots.insert(Sent { tag: io.tag, started: cx.now, blocks, read: io.op.data_in() }) else {
            return Err(Refused { io, why: RefusedWhy::Full });
        };
        match self.inner.submit(cx, Io { tag: key.as_u32().into(), ..io }) {
            Ok(()) => {
                self.gap.submitted(cx.now, 1);
                Ok(())
            }
            Err(refused) => {
                self.slots.remove(key);
                Err(Refused { io, ..refused })
            }
        }
    }

    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.inner.kick(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.borders(cx.now);
        self.done.clear();
        self.inner.poll(cx, &mut self.done);
        for suspect in &self.done.suspects {
            if let Some(&Sent { tag, .. }) = self.slots.get(SlotKey::from_u32(suspect.tag as u32)) {
                self.seen.suspects += 1;
                done.suspects.push(polypath_block::Suspect { tag, ..*suspect });
            }
        }
        let n = self.done.completions.len() as u64;
        for completion in &self.done.completions {
            let Some(sent) = self.slots.remove(SlotKey::from_u32(completion.tag as u32)) else {
                continue;
            };
            let Sent { tag, started, blocks, read } = sent;
            if self.measuring {
                if completion.status.is_ok() {
                    self.seen.ios += 1;
                    self.seen.bytes += u64::from(blocks) * u64::from(self.block_size);
                    self.seen.latencies.record(read, cx.now.since(started));
                } else {
                    self.seen.errors += 1;
                }
            }
            done.completions.push(polypath_block::Completion { tag, ..*completion });
        }
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
