//! Once queues are open, nothing on the way of a request allocates: not on the asking reactor, not on the owning one.
//!
//! The counting allocator below is the only unsafe code about the crate; it forwards to the system's.

mod common;

use common::{Reactors, Stingy, Worker, progress, stop, wait};
use polypath_memory::Arena;
use polypath_sharing::SharedDevice;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is forwarded unchanged to the system's allocator; counting touches two statics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Ordering::Relaxed) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
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

#[test]
fn a_shared_queue_allocates_nothing_once_it_is_open() {
    let reactors = Reactors::start(2);
    let arena = Arena::new(4 << 20, false).unwrap();
    let shared = SharedDevice::new(Stingy::new("ram://8MiB?bs=4096", 1), reactors.hosts());
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let told = Worker::spawn(&reactors.handles[n % 2], &shared, &arena, n as u64 * 64, 16, 3);
            wait("a queue", || told.ready.load(Ordering::SeqCst));
            told
        })
        .collect();
    progress("warm-up", &workers, 500);
    let before: Vec<_> = workers.iter().map(|t| t.verified.load(Ordering::SeqCst)).collect();
    COUNTS.store(true, Ordering::SeqCst);
    let all = || workers.iter().zip(&before).all(|(t, b)| t.verified.load(Ordering::SeqCst) >= b + 2000);
    wait("measured requests", all);
    COUNTS.store(false, Ordering::SeqCst);
    assert_eq!(COUNT.load(Ordering::SeqCst), 0, "allocations while requests ran");
    stop(&reactors, &workers);
    reactors.end();
}
