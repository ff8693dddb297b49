//! What the group itself costs an I/O: submit, choose, send, collect, complete, over devices that do nothing.
//!
//! `cargo bench -p polypath-multipath --bench path`. The figure beside `bare` is the cost of the same loop without a group.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use polypath_block::{
    Access, Armed, CacheDomain, Cx, Device, DeviceInfo, DeviceState, Done, Geometry, Health, Identifier, Identity, Io,
    IoQueue, Limits, OpenError, QueueConfig, Refused, RefusedWhy, SegTable, Segment, Status, Time, Waits,
};
use polypath_multipath::{Group, GroupConfig, PathConfig, SelectorKind};
use std::hint::black_box;
use std::sync::Arc;

/// Completes everything at the next poll.
struct Null(Arc<DeviceInfo>);

struct NullQueue {
    open: Vec<u64>,
    closing: bool,
}

impl Device for Null {
    fn name(&self) -> &str {
        "null"
    }
    fn state(&self) -> DeviceState {
        DeviceState::Live(self.0.clone())
    }
    fn version(&self) -> u64 {
        1
    }
    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        Ok(Box::new(NullQueue { open: Vec::with_capacity(config.depth.into()), closing: false }))
    }
    fn close(&self) {}
}

impl IoQueue for NullQueue {
    fn submit(&mut self, _: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        if self.closing || self.open.len() == self.open.capacity() {
            return Err(Refused { io, why: if self.closing { RefusedWhy::Gone } else { RefusedWhy::Full } });
        }
        self.open.push(io.tag);
        Ok(())
    }
    fn kick(&mut self, _: &mut Cx<'_>) {}
    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Done) {
        self.open.drain(..).for_each(|tag| done.complete(tag, Status::OK));
    }
    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }
    fn health(&self) -> Health {
        if self.closing { Health::Down } else { Health::Ready }
    }
    fn close(&mut self, _: &mut Cx<'_>) {
        self.closing = true;
    }
    fn is_drained(&self) -> bool {
        self.closing && self.open.is_empty()
    }
}

fn null() -> Arc<dyn Device> {
    Arc::new(Null(Arc::new(DeviceInfo {
        geometry: Geometry { block_size: 512, blocks: 1 << 30 },
        limits: Limits::UNLIMITED,
        identity: Identity { identifiers: vec![Identifier::Uuid([1; 16])], cache_domain: CacheDomain("one".into()) },
        access: Access::Optimized,
        max_queues: 1,
        max_depth: 256,
    })))
}

fn group(paths: usize, selector: SelectorKind) -> Arc<dyn Device> {
    let mut config = GroupConfig::new("disk");
    config.selector = selector;
    let group = Group::new(config);
    for i in 0..paths {
        group.add_path(PathConfig { name: i.to_string(), ..PathConfig::new(null()) }).expect("a new path");
    }
    group
}

/// One turn: `depth` reads in, a kick, a poll, all of them out.
fn measure(c: &mut Criterion, name: &str, device: &Arc<dyn Device>, depth: u64) {
    let mut queue = device.open_queue(QueueConfig { depth: 256 }).expect("a queue");
    let mut segs = SegTable::new(64);
    let row = segs.reserve(1, 1).expect("room");
    let span = row.span(0, 1);
    segs.get_mut(span)[0] = Segment { len: 4096, ..Segment::default() };
    let mut done = Done::with_capacity(1024);
    let (mut now, mut lba) = (1_000_000u64, 0u64);
    // Queues of paths open.
    queue.poll(&mut Cx { now: Time::from_nanos(now), segs: &mut segs, reactor: 0 }, &mut done);
    queue.poll(&mut Cx { now: Time::from_nanos(now), segs: &mut segs, reactor: 0 }, &mut done);
    let mut turns = c.benchmark_group("turn");
    turns.throughput(Throughput::Elements(depth));
    turns.bench_function(format!("{name}/qd{depth}"), |b| {
        b.iter(|| {
            now += 1000;
            let mut cx = Cx { now: Time::from_nanos(now), segs: &mut segs, reactor: 0 };
            for tag in 0..depth {
                lba = (lba + 104_729 * 8) % (1 << 30);
                assert!(queue.submit(&mut cx, Io::read(tag, lba, 8, span)).is_ok());
            }
            queue.kick(&mut cx);
            queue.poll(&mut cx, &mut done);
            assert_eq!(done.completions.len() as u64, depth);
            black_box(&mut done).clear();
        });
    });
    turns.finish();
    let mut cx = Cx { now: Time::from_nanos(now), segs: &mut segs, reactor: 0 };
    queue.close(&mut cx);
    while !queue.is_drained() {
        queue.poll(&mut cx, &mut done);
    }
}

fn turns(c: &mut Criterion) {
    measure(c, "bare", &null(), 32);
    for paths in [1, 4] {
        for depth in [1, 32] {
            let name = format!("{paths} paths/queue-length");
            measure(c, &name, &group(paths, SelectorKind::QueueLength), depth);
        }
    }
    for selector in SelectorKind::ALL {
        measure(c, &format!("4 paths/{selector}"), &group(4, selector), 128);
    }
}

criterion_group!(benches, turns);
criterion_main!(benches);
