//! A turn under load allocates nothing.
//!
//! The counting allocator below is the only unsafe code about the crate; it forwards to the system's.

use polypath_block::{
    Access, Armed, CacheDomain, Completion, Cx, Device, DeviceInfo, DeviceState, Done, Geometry, Health, Identifier,
    Identity, Io, IoQueue, Limits, Op, OpenError, Proof, QueueConfig, Refused, RefusedWhy, SegTable, Segment, Status,
    Time, Waits,
};
use polypath_multipath::{Group, GroupConfig, PathConfig, SelectorKind};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is forwarded unchanged to the system's allocator; counting touches a constant-initialised thread-local
// without a destructor, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Completes everything a turn later, now and then with an error of the path.
struct Null(DeviceInfo);

struct NullQueue {
    open: Vec<Io>,
    depth: usize,
    n: u64,
    closing: bool,
}

impl Device for Null {
    fn name(&self) -> &str {
        "null"
    }
    fn state(&self) -> DeviceState {
        DeviceState::Live(Arc::new(self.0.clone()))
    }
    fn version(&self) -> u64 {
        1
    }
    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        let depth = usize::from(config.depth);
        Ok(Box::new(NullQueue { open: Vec::with_capacity(depth), depth, n: 0, closing: false }))
    }
    fn close(&self) {}
}

impl IoQueue for NullQueue {
    fn submit(&mut self, _: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        if self.closing || self.open.len() >= self.depth {
            return Err(Refused { io, why: if self.closing { RefusedWhy::Gone } else { RefusedWhy::Full } });
        }
        self.open.push(io);
        Ok(())
    }
    fn kick(&mut self, _: &mut Cx<'_>) {}
    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Done) {
        for io in self.open.drain(..) {
            self.n += 1;
            let code =
                if self.n.is_multiple_of(97) { polypath_block::Code::PathBusy } else { polypath_block::Code::Ok };
            done.completions.push(Completion { tag: io.tag, status: Status::new(code), proof: Proof::Answered });
        }
    }
    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        if self.open.is_empty() { Armed::Sleep } else { Armed::Busy }
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

fn null(i: u8) -> Arc<dyn Device> {
    Arc::new(Null(DeviceInfo {
        geometry: Geometry { block_size: 512, blocks: 1 << 20 },
        limits: Limits { max_transfer_bytes: if i > 1 { 2048 } else { 0 }, write_cache: true, ..Limits::UNLIMITED },
        identity: Identity {
            identifiers: vec![Identifier::Uuid([1; 16])],
            cache_domain: CacheDomain(format!("{}", i % 2)),
        },
        access: Access::Optimized,
        max_queues: 4,
        max_depth: 64,
    }))
}

#[test]
fn turns_under_load_allocate_nothing() {
    for selector in SelectorKind::ALL {
        let mut config = GroupConfig::new("disk");
        config.selector = selector;
        let group = Group::new(config);
        group.add_path(PathConfig { name: "0".into(), ..PathConfig::new(null(0)) }).unwrap();
        group.freeze();
        for i in 1..4 {
            group.add_path(PathConfig { name: i.to_string(), ..PathConfig::new(null(i)) }).unwrap();
        }
        let mut queue = group.open_queue(QueueConfig { depth: 128 }).unwrap();
        let mut segs = SegTable::new(1024);
        let row = segs.reserve(1, 2).unwrap();
        let span = row.span(0, 2);
        segs.get_mut(span).fill(Segment { len: 4096, ..Segment::default() });
        let (mut done, mut waits) = (Done::with_capacity(512), Waits::default());
        let (mut completed, mut n, mut before) = (0u64, 0u64, 0);
        for turn in 0..4000u64 {
            if turn == 500 {
                before = COUNT.with(Cell::get);
            }
            let mut cx = Cx { now: Time::from_nanos(1_000_000 + turn * 20_000), segs: &mut segs, reactor: 0 };
            for _ in 0..40 {
                n += 1;
                let io = match n % 50 {
                    0 => Io::flush(n),
                    1 => Io::range(n, Op::WriteZeroes, 5, 100),
                    2..20 => Io::read(n, n * 8 % 100_000, 8, span),
                    _ => Io::write(n, n * 8 % 100_000, 16, span),
                };
                if queue.submit(&mut cx, io).is_err() {
                    break;
                }
            }
            queue.kick(&mut cx);
            queue.poll(&mut cx, &mut done);
            completed += done.completions.len() as u64;
            assert!(done.completions.iter().all(|c| c.status.is_ok()), "{:?}", done.completions[0]);
            done.clear();
            waits.clear();
            queue.arm(&mut cx, &mut waits);
        }
        let allocations = COUNT.with(Cell::get) - before;
        assert!(completed > 50_000, "{selector}: only {completed}");
        // Incidents are told when they are over, with an event: this one lasts to the end.
        assert_eq!(allocations, 0, "{selector}: allocations in {completed} requests");
        let mut cx = Cx { now: Time::from_millis(10_000), segs: &mut segs, reactor: 0 };
        queue.close(&mut cx);
        for _ in 0..1000 {
            queue.poll(&mut cx, &mut done);
            cx.now = cx.now.after(std::time::Duration::from_millis(1));
            if queue.is_drained() {
                break;
            }
        }
        assert!(queue.is_drained(), "{selector}");
    }
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    1024 * line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
}

/// A queue is as deep as its user's, and few users ever go as deep: what nobody has used yet is reserved, not taken.
#[test]
fn a_deep_queue_that_is_used_little_takes_little_memory() {
    const QUEUES: usize = 256;
    let mut segs = SegTable::new(1024);
    let row = segs.reserve(1, 1).unwrap();
    segs.get_mut(row.span(0, 1))[0] = Segment { len: 512, ..Segment::default() };
    let mut done = Done::with_capacity(512);
    let before = resident();
    let mut queues = Vec::new();
    for _ in 0..QUEUES {
        let group = Group::new(GroupConfig::new("disk"));
        for i in 0..2 {
            group.add_path(PathConfig { name: i.to_string(), ..PathConfig::new(null(i)) }).unwrap();
        }
        group.freeze();
        let mut queue = group.open_queue(QueueConfig { depth: 1024 }).unwrap();
        for turn in 0..4 {
            let mut cx = Cx { now: Time::from_millis(1 + turn), segs: &mut segs, reactor: 0 };
            // The first turn finds the paths.
            queue.poll(&mut cx, &mut done);
            queue.submit(&mut cx, Io::read(turn, 0, 1, row.span(0, 1))).unwrap();
            queue.kick(&mut cx);
            queue.poll(&mut cx, &mut done);
        }
        assert_eq!(done.completions.len(), 4);
        done.clear();
        queues.push((group, queue));
    }
    let each = resident().saturating_sub(before) / QUEUES;
    println!("{each} bytes a queue of two paths");
    assert!(each < 160 << 10, "{each} bytes a queue");
    let mut cx = Cx { now: Time::from_millis(10), segs: &mut segs, reactor: 0 };
    for (_, queue) in &mut queues {
        queue.close(&mut cx);
        (0..100).for_each(|_| queue.poll(&mut cx, &mut done));
        assert!(queue.is_drained());
    }
}
