//! What sharing costs: `cargo run --release -p polypath-sharing --example cost`.
//!
//! * Reads of 4 KiB from `null://`, 32 in flight, nanoseconds a request: the queue as it is, a share of it on the same reactor, the same
//!   beside 63 idle shares, and a share from another reactor.
//! * Nanoseconds for a reactor to take a turn, fall asleep and wake up, with one user of a queue and with 64.
//!
//! Each figure is the best of many short runs: on cores that are shared with others the mean says what the others did. The last line of the
//! first kind needs two cores that are free.

use polypath_block::{Armed, DeviceState, Poller, Turn, Waits};
use polypath_block::{Cx, Device, Done, Health, Host, Io, IoQueue, OpenError, QueueConfig, Refused, SegTable};
use polypath_net::Bell;
use polypath_reactor::{IdlePolicy, Reactor, ReactorConfig};
use polypath_sharing::SharedDevice;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

const DEPTH: u16 = 32;
/// Requests of a run, and runs.
const REQUESTS: u32 = 20_000;
const RUNS: u32 = 150;
const USERS: usize = 64;

/// Grants a number of queues in all.
struct Few(Arc<dyn Device>, AtomicU16);

impl Device for Few {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn state(&self) -> DeviceState {
        self.0.state()
    }
    fn version(&self) -> u64 {
        self.0.version()
    }
    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let taken = self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        taken.map_err(|_| OpenError::NoQueue { name: self.name().into(), granted: 1 })?;
        let bell = || Bell::new().map_err(|e| OpenError::System { name: "bell".into(), reason: e.to_string() });
        Ok(Box::new(Armable { inner: self.0.open_queue(config)?, bells: [bell()?, bell()?] }))
    }
    fn close(&self) {
        self.0.close();
    }
}

/// Waits for two descriptors, as a queue over a connection does: its socket and its mailbox.
struct Armable {
    inner: Box<dyn IoQueue>,
    bells: [Bell; 2],
}

impl IoQueue for Armable {
    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.inner.submit(cx, io)
    }
    fn kick(&mut self, cx: &mut Cx<'_>) {
        self.inner.kick(cx);
    }
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.bells.iter().for_each(Bell::rise);
        self.inner.poll(cx, done);
    }
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let busy = self.bells.iter().any(|bell| bell.arm(waits) == Armed::Busy);
        if busy { Armed::Busy } else { self.inner.arm(cx, waits) }
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

/// Holds a queue open on its reactor.
struct Owner(Box<dyn IoQueue>, Done, Arc<AtomicBool>);

impl Poller for Owner {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.0.poll(cx, &mut self.1);
        self.2.store(true, Ordering::SeqCst);
        Turn::Idle
    }
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        // Sleeps end at once, so that only falling asleep and waking up is measured.
        waits.until(cx.now);
        self.0.arm(cx, waits)
    }
    fn name(&self) -> &str {
        "owner"
    }
}

/// A queue that is ready, and `idle` others beside it.
fn measure(what: &str, device: &dyn Device, idle: usize) -> Result<(), Box<dyn Error>> {
    let mut segs = SegTable::new(1 << 16);
    let row = segs.reserve(1, 1)?;
    let region = polypath_memory::Region::allocate(4096, false)?;
    segs.get_mut(row.span(0, 1))[0] = polypath_block::Segment { offset: 0, region: region.id(), len: 4096 };
    let io = Io::read(7, 0, 1, row.span(0, 1));
    let mut queue = device.open_queue(QueueConfig { depth: DEPTH })?;
    let (mut done, mut in_flight) = (Done::with_capacity(64), 0);
    while queue.health() != Health::Ready {
        queue.poll(&mut Cx { now: polypath_reactor::now(), segs: &mut segs, reactor: 0 }, &mut done);
    }
    let open = |_| device.open_queue(QueueConfig { depth: DEPTH });
    let mut others = (0..idle).map(open).collect::<Result<Vec<_>, _>>()?;
    for other in &mut others {
        other.poll(&mut Cx { now: polypath_reactor::now(), segs: &mut segs, reactor: 0 }, &mut done);
    }
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let (start, mut finished) = (Instant::now(), 0);
        while finished < REQUESTS {
            let mut cx = Cx { now: polypath_reactor::now(), segs: &mut segs, reactor: 0 };
            while in_flight < DEPTH && queue.submit(&mut cx, io).is_ok() {
                in_flight += 1;
            }
            queue.kick(&mut cx);
            queue.poll(&mut cx, &mut done);
            in_flight -= done.completions.len() as u16;
            finished += done.completions.len() as u32;
            done.clear();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(finished));
    }
    println!("{what:<40} {best:6.1} ns a request");
    let mut cx = Cx { now: polypath_reactor::now(), segs: &mut segs, reactor: 0 };
    queue.close(&mut cx);
    others.iter_mut().for_each(|other| other.close(&mut cx));
    while !queue.is_drained() || !others.iter().all(|other| other.is_drained()) {
        queue.poll(&mut cx, &mut done);
        others.iter_mut().for_each(|other| other.poll(&mut cx, &mut done));
    }
    Ok(())
}

/// What a turn and a sleep of a reactor cost with `users` users of one queue.
fn measure_sleep(device: &dyn Device, users: usize) -> Result<(), Box<dyn Error>> {
    let config = ReactorConfig { id: 0, idle: IdlePolicy::Sleep, ..ReactorConfig::default() };
    let mut reactor = Reactor::new(&config)?;
    for _ in 0..users {
        let queue = device.open_queue(QueueConfig { depth: DEPTH })?;
        reactor.add(Box::new(Owner(queue, Done::default(), Arc::default())));
    }
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let (start, before) = (Instant::now(), reactor.handle().statistics().sleeps);
        reactor.run_until(Duration::from_millis(4), || false);
        let sleeps = reactor.handle().statistics().sleeps - before;
        best = best.min(start.elapsed().as_nanos() as f64 / sleeps as f64);
    }
    println!("a turn and a sleep with {users:2} users of a queue {best:6.0} ns");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let null = || polypath_local::open(&"null://1GiB?bs=4096".parse()?).map_err(Box::<dyn Error>::from);
    let few = || -> Result<_, Box<dyn Error>> { Ok(Arc::new(Few(null()?, AtomicU16::new(1)))) };
    measure("the queue as it is", &*few()?, 0)?;
    measure("a share of it on the same reactor", &*SharedDevice::new(few()?, Vec::new()), 0)?;
    measure("the same beside 63 idle shares", &*SharedDevice::new(few()?, Vec::new()), USERS - 1)?;
    for users in [1, USERS] {
        measure_sleep(&*SharedDevice::new(few()?, Vec::new()), users)?;
    }
    let config = ReactorConfig { id: 1, idle: IdlePolicy::Poll, ..ReactorConfig::default() };
    let (handle, thread) = Reactor::start(config)?;
    let shared = SharedDevice::new(few()?, vec![Arc::new(handle.clone())]);
    let open = Arc::new(AtomicBool::new(false));
    let (device, there) = (shared.clone(), open.clone());
    handle.spawn(Box::new(move |_| {
        let queue = device.open_queue(QueueConfig { depth: DEPTH }).expect("the first queue");
        Box::new(Owner(queue, Done::default(), there))
    }));
    while !open.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    measure("a share from another reactor", &*shared, 0)?;
    handle.stop();
    thread.join().map_err(|_| "the reactor panicked")?;
    Ok(())
}
