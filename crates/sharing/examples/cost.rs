//! What sharing costs a request: `cargo run --release -p polypath-sharing --example cost`.
//!
//! Reads of 4 KiB from `null://`, 32 in flight, nanoseconds each: the device's queue as it is, the same queue behind a [`SharedDevice`],
//! and a share of it from another reactor.

use polypath_block::{Armed, DeviceState, Poller, Turn, Waits};
use polypath_block::{Cx, Device, Done, Health, Host, Io, IoQueue, OpenError, QueueConfig, SegTable};
use polypath_reactor::{IdlePolicy, Reactor, ReactorConfig};
use polypath_sharing::SharedDevice;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Instant;

const DEPTH: u16 = 32;
const REQUESTS: u32 = 3_000_000;

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
        self.0.open_queue(config)
    }
    fn close(&self) {
        self.0.close();
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
        self.0.arm(cx, waits)
    }
    fn name(&self) -> &str {
        "owner"
    }
}

fn measure(what: &str, device: &dyn Device) -> Result<(), Box<dyn Error>> {
    let mut segs = SegTable::new(1 << 16);
    let row = segs.reserve(1, 1)?;
    let region = polypath_memory::Region::allocate(4096, false)?;
    segs.get_mut(row.span(0, 1))[0] = polypath_block::Segment { offset: 0, region: region.id(), len: 4096 };
    let io = Io::read(7, 0, 1, row.span(0, 1));
    let mut queue = device.open_queue(QueueConfig { depth: DEPTH })?;
    let (mut done, mut in_flight, mut finished) = (Done::with_capacity(64), 0, 0);
    while queue.health() != Health::Ready {
        queue.poll(&mut Cx { now: polypath_reactor::now(), segs: &mut segs, reactor: 0 }, &mut done);
    }
    let start = Instant::now();
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
    println!("{what:<32} {:6.1} ns a request", start.elapsed().as_nanos() as f64 / f64::from(finished));
    let mut cx = Cx { now: polypath_reactor::now(), segs: &mut segs, reactor: 0 };
    queue.close(&mut cx);
    while !queue.is_drained() {
        queue.poll(&mut cx, &mut done);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let null = || polypath_local::open(&"null://1GiB?bs=4096".parse()?).map_err(Box::<dyn Error>::from);
    measure("the device's own queue", &*null()?)?;
    let shared = SharedDevice::new(Arc::new(Few(null()?, AtomicU16::new(1))), Vec::new());
    measure("the same, ready to be shared", &*shared)?;
    let config = ReactorConfig { id: 1, idle: IdlePolicy::Poll, ..ReactorConfig::default() };
    let (handle, thread) = Reactor::start(config)?;
    let shared = SharedDevice::new(Arc::new(Few(null()?, AtomicU16::new(1))), vec![Arc::new(handle.clone())]);
    let open = Arc::new(AtomicBool::new(false));
    let (device, there) = (shared.clone(), open.clone());
    handle.spawn(Box::new(move |_| {
        let queue = device.open_queue(QueueConfig { depth: DEPTH }).expect("the first queue");
        Box::new(Owner(queue, Done::default(), there))
    }));
    while !open.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    measure("a share from another reactor", &*shared)?;
    handle.stop();
    thread.join().map_err(|_| "the reactor panicked")?;
    Ok(())
}
