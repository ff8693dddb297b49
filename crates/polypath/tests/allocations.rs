//! A turn of the reactor under load allocates nothing.

use polypath::block::{Armed, Cx, Device, Done, Io, IoQueue, Poller, QueueConfig, SegRow, Turn, Waits};
use polypath::memory::{Arena, Chunk};
use polypath::reactor::{IdlePolicy, Reactor, ReactorConfig};
use polypath::{Disk, Stack, StackConfig, block_on};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no counter any more; it is not one that is measured.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: hands everything to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time: a region that another test registers or drops makes every thread read the registry again, which allocates.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|p| p.into_inner())
}

/// Keeps a queue full of reads.
struct Load {
    queue: Box<dyn IoQueue>,
    row: SegRow,
    _memory: Chunk,
    done: Done,
    depth: u32,
    free: Vec<u32>,
    completed: Arc<std::sync::atomic::AtomicU64>,
    blocks: u64,
    next: u64,
}

impl Poller for Load {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.queue.poll(cx, &mut self.done);
        for c in self.done.completions.drain(..) {
            assert!(c.status.is_ok(), "{c:?}");
            self.free.push(c.tag as u32);
            self.completed.fetch_add(1, Ordering::Relaxed);
        }
        while let Some(slot) = self.free.pop() {
            self.next = self.next.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let lba = (self.next >> 20) % (self.blocks - 8);
            let io = Io::read(slot.into(), lba, 8, self.row.span(slot, 1));
            self.queue.submit(cx, io).expect("never more than the depth");
        }
        self.queue.kick(cx);
        Turn::Busy
    }

    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Busy
    }

    fn name(&self) -> &str {
        "load"
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // What is in flight completes before the slots of the queue go.
        let mut segs = polypath::block::SegTable::new(1 << 16);
        segs.reserve(self.depth, 1).expect("room");
        let mut cx = Cx { now: polypath::reactor::now(), segs: &mut segs, reactor: 0 };
        self.queue.close(&mut cx);
        while !self.queue.is_drained() {
            self.queue.poll(&mut cx, &mut self.done);
        }
    }
}

fn load(uri: &str, depth: u16) -> (Reactor, Arc<std::sync::atomic::AtomicU64>) {
    let device: Arc<dyn Device> = polypath::local::open(&uri.parse().unwrap()).unwrap();
    let mut reactor = Reactor::new(&ReactorConfig { idle: IdlePolicy::Poll, ..ReactorConfig::default() }).unwrap();
    let memory = Arena::new(u64::from(depth) * 4096, false).unwrap().chunk(u32::from(depth) * 4096).unwrap();
    let completed = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let row = reactor.with_cx(|cx| {
        let row = cx.segs.reserve(depth.into(), 1).unwrap();
        for n in 0..u32::from(depth) {
            let mut segment = memory.segment();
            segment.offset += u64::from(n) * 4096;
            segment.len = 4096;
            cx.segs.get_mut(row.span(n, 1))[0] = segment;
        }
        row
    });
    let blocks = device.state().info().unwrap().geometry.blocks;
    reactor.add(Box::new(Load {
        queue: device.open_queue(QueueConfig { depth }).unwrap(),
        row,
        _memory: memory,
        done: Done::with_capacity(depth.into()),
        depth: depth.into(),
        free: (0..depth.into()).collect(),
        completed: completed.clone(),
        blocks,
        next: 1,
    }));
    (reactor, completed)
}

#[test]
fn polled_queues_allocate_nothing() {
    let _alone = alone();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    for uri in ["null://1GiB".to_owned(), "ram://16MiB".to_owned(), format!("file://{}", file.path().display())] {
        let (mut reactor, completed) = load(&uri, 32);
        let turns = |reactor: &mut Reactor, most: u64| {
            let from = completed.load(Ordering::Relaxed);
            for _ in 0..10_000_000 {
                reactor.turn();
                if completed.load(Ordering::Relaxed) - from >= most {
                    return;
                }
            }
            panic!("{uri}: no progress");
        };
        turns(&mut reactor, 2_000);
        let before = ALLOCATIONS.get();
        turns(&mut reactor, 20_000);
        let allocated = ALLOCATIONS.get() - before;
        assert_eq!(allocated, 0, "{uri}: allocations in 20000 requests");
    }
}

#[test]
fn the_pollers_of_disks_allocate_nothing() {
    let _alone = alone();
    let stack = Stack::start(StackConfig { buffer_bytes: 4 << 20, ..StackConfig::default() }).unwrap();
    let disk = block_on(Disk::builder().uris("null://1GiB").stack(&stack).depth(8).open()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (disk, stop) = (disk.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut buffer = disk.buffer(4096).unwrap();
                let mut done = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let (result, back) = block_on(disk.read(done % 1000 * 4096, buffer));
                    result.unwrap();
                    buffer = back;
                    done += 1;
                }
                done
            })
        })
        .collect();
    let reactor = &stack.reactors()[0];
    let ask = || {
        let (tell, told) = mpsc::sync_channel(1);
        assert!(reactor.run(move |_| tell.send(ALLOCATIONS.get()).unwrap()));
        told.recv_timeout(Duration::from_secs(10)).expect("the reactor answers")
    };
    // The first answers warm up what asking itself costs; then time passes under load.
    for _ in 0..10 {
        ask();
    }
    std::thread::sleep(Duration::from_millis(100));
    ask();
    let before = ask();
    std::thread::sleep(Duration::from_millis(300));
    let allocated = ask() - before;
    stop.store(true, Ordering::Relaxed);
    let done: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    assert!(done > 1000, "only {done} reads: that was no load");
    assert_eq!(allocated, 0, "allocations on the reactor in {done} reads");
}
