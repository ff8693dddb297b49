//! A turn under load allocates nothing.

mod common;

use common::*;
use polypath_block::{Done, Io};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all work is the system allocator's; counting touches one thread-local cell that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_turn_under_load_allocates_nothing() {
    let target = start(target_config(&["ram://16MiB"]));
    for options in ["", "hdgst=1&ddgst=1"] {
        let mut rig = Rig::new(&World::uri(&target, &format!("keep_alive_ms=600000&{options}")), 32);
        let spans: Vec<_> = (0..32).map(|i| rig.world.memory(if i % 8 == 7 { 262_144 } else { 4096 }, 1).0).collect();
        let mut done = Done::with_capacity(64);
        let mut free: Vec<u64> = (0..32).collect();
        let (mut finished, mut counted) = (0, 0);
        while finished < 6000 {
            // The admin side has turns of its own; they are not counted, they are not the data path.
            rig.world.turn();
            let before = COUNT.get();
            let mut cx = polypath_block::Cx { now: now(), segs: &mut rig.world.segs, reactor: 0 };
            while let Some(tag) = free.pop() {
                let (span, blocks) = (spans[tag as usize], if tag % 8 == 7 { 512 } else { 8 });
                let io = if tag % 2 == 1 {
                    Io::write(tag, tag * 512, blocks, span)
                } else {
                    Io::read(tag, tag * 512, blocks, span)
                };
                rig.queue.submit(&mut cx, io).expect("room for 32");
            }
            rig.queue.kick(&mut cx);
            rig.queue.poll(&mut cx, &mut done);
            for c in done.completions.drain(..) {
                assert!(c.status.is_ok(), "{c:?}");
                free.push(c.tag);
                finished += 1;
            }
            // The first rounds warm up what grows once (spare copies for digests).
            if finished > 1000 {
                counted += COUNT.get() - before;
            }
        }
        assert_eq!(counted, 0, "allocations on the data path ({options})");
        rig.close();
    }
}
