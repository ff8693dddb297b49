//! A disk in memory behind a gate: while the gate is shut, what was submitted waits.

use polypath::block::{
    Armed, Code, Cx, Device, DeviceInfo, DeviceState, Done, Health, Io, IoQueue, Limits, OpenError, QueueConfig,
    Refused, RefusedWhy, Waits,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a test tells the device, and what the device tells the test.
#[derive(Default)]
pub(crate) struct Gate {
    /// Queues are down: they refuse.
    pub(crate) down: AtomicBool,
    /// The device says that it is down.
    pub(crate) lost: AtomicBool,
    pub(crate) version: AtomicU64,
    pub(crate) shut: AtomicBool,
    /// Requests that wait behind it.
    pub(crate) held: AtomicUsize,
    /// Requests that have come, and the most that were in flight at a time.
    pub(crate) submitted: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

pub(crate) struct Gated {
    inner: Arc<dyn Device>,
    limits: Limits,
    pub(crate) gate: Arc<Gate>,
}

impl Gated {
    pub(crate) fn new(inner: Arc<dyn Device>, limits: Limits) -> Arc<Gated> {
        Arc::new(Gated { inner, limits, gate: Arc::default() })
    }
}

impl Device for Gated {
    fn name(&self) -> &str {
        "gated"
    }

    fn state(&self) -> DeviceState {
        if self.gate.lost.load(Ordering::SeqCst) {
            return DeviceState::Down { cause: Code::PathLost, reason: "the test says so".into() };
        }
        match self.inner.state() {
            DeviceState::Live(info) => {
                DeviceState::Live(Arc::new(DeviceInfo { limits: self.limits, ..(*info).clone() }))
            }
            other => other,
        }
    }

    fn version(&self) -> u64 {
        self.inner.version() + self.gate.version.load(Ordering::SeqCst)
    }

    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let inner = self.inner.open_queue(config)?;
        let depth = config.depth.into();
        let (limits, gate) = (self.limits, self.gate.clone());
        Ok(Box::new(GatedQueue { inner, limits, gate, waiting: VecDeque::new(), in_flight: 0, depth, closed: false }))
    }

    fn close(&self) {
        self.inner.close();
    }
}

struct GatedQueue {
    inner: Box<dyn IoQueue>,
    limits: Limits,
    gate: Arc<Gate>,
    waiting: VecDeque<Io>,
    in_flight: usize,
    depth: usize,
    closed: bool,
}

impl GatedQueue {
    fn is_shut(&self) -> bool {
        self.gate.shut.load(Ordering::SeqCst)
    }

    fn is_down(&self) -> bool {
        self.gate.down.load(Ordering::SeqCst)
    }
}

impl IoQueue for GatedQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let gone = self.closed || self.is_down();
        if gone || self.in_flight == self.depth {
            return Err(Refused { io, why: if gone { RefusedWhy::Gone } else { RefusedWhy::Full } });
        }
        assert!(self.limits.fits(&io, 512, cx.segs), "larger than the limits: {io:?}");
        self.in_flight += 1;
        self.gate.submitted.fetch_add(1, Ordering::SeqCst);
        self.gate.most.fetch_max(self.in_flight, Ordering::SeqCst);
        self.gate.held.fetch_add(1, Ordering::SeqCst);
        self.waiting.push_back(io);
        Ok(())
    }

    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.inner.kick(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        while !self.is_shut()
            && let Some(io) = self.waiting.pop_front()
        {
            self.gate.held.fetch_sub(1, Ordering::SeqCst);
            self.inner.submit(cx, io).expect("as deep as we are");
        }
        let before = done.completions.len();
        self.inner.poll(cx, done);
        self.in_flight -= done.completions.len() - before;
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.is_down() {
            waits.until(cx.now.after(Duration::from_millis(1)));
        }
        if !self.waiting.is_empty() {
            if !self.is_shut() {
                return Armed::Busy;
            }
            waits.until(cx.now.after(Duration::from_millis(1)));
        }
        self.inner.arm(cx, waits)
    }

    fn health(&self) -> Health {
        if self.closed || self.is_down() { Health::Down } else { Health::Ready }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.closed = true;
        self.inner.close(cx);
    }

    fn is_drained(&self) -> bool {
        self.closed && self.in_flight == 0 && self.inner.is_drained()
    }
}
