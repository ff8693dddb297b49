//! A turn of a vring under load allocates nothing.

mod common;

use common::guest::{Driver, GuestRam, Piece, header};
use common::ram::RamDevice;
use polypath_block::{Host, Limits, MakePoller, Poller, SegTable, Time, Waits};
use polypath_vhost_user_blk::{Server, ServerConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use vhost::vhost_user::Frontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A reactor that is this test's own thread.
struct Here(SyncSender<MakePoller>);

impl Host for Here {
    fn spawn(&self, make: MakePoller) {
        self.0.send(make).unwrap();
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> polypath_block::Time {
        polypath_block::Time::ZERO
    }
}

/// The front-end's part, on a thread of its own since it waits for acknowledgements.
fn set_up(path: std::path::PathBuf, regions: Vec<VhostUserMemoryRegionInfo>, vring: VringConfigData) -> Frontend {
    let fe = Frontend::connect(path, 1).unwrap();
    fe.set_owner().unwrap();
    fe.get_features().unwrap();
    fe.set_features(1 << 32 | 1 << 29 | 1 << 28).unwrap();
    fe.set_mem_table(&regions).unwrap();
    fe.set_vring_num(0, vring.queue_size).unwrap();
    fe.set_vring_base(0, 0).unwrap();
    fe.set_vring_addr(0, &vring).unwrap();
    fe.set_vring_call(0, &EventFd::new(0).unwrap()).unwrap();
    fe.set_vring_kick(0, &EventFd::new(0).unwrap()).unwrap();
    fe
}

#[test]
fn a_turn_under_load_allocates_nothing() {
    let device = RamDevice::new(512, 4096, Limits::UNLIMITED);
    device.change(|s| (s.delay, s.refuse) = (2, 5));
    let (sender, made): (_, Receiver<MakePoller>) = sync_channel(4);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let hosts: Vec<Arc<dyn Host>> = vec![Arc::new(Here(sender))];
    let server = Server::start(ServerConfig::new("d", &path, device, hosts)).unwrap();
    let ram = GuestRam::new(&[(0x1000_0000, 0x10_0000), (0x2000_0000, 0x40_0000)]);
    let mut driver = Driver::new(&ram, 0x1000_0000, 128, true);
    let regions = ram
        .regions
        .iter()
        .map(|r| VhostUserMemoryRegionInfo {
            guest_phys_addr: r.gpa,
            memory_size: r.region.len(),
            userspace_addr: r.uaddr,
            mmap_offset: 0,
            mmap_handle: r.region.fd().unwrap().as_raw_fd(),
        })
        .collect();
    let vring = VringConfigData {
        queue_max_size: 128,
        queue_size: 128,
        flags: 0,
        desc_table_addr: ram.user_addr(driver.desc_gpa),
        used_ring_addr: ram.user_addr(driver.used_gpa),
        avail_ring_addr: ram.user_addr(driver.avail_gpa),
        log_addr: None,
    };
    let front_end = std::thread::spawn(move || set_up(path, regions, vring));
    let mut segs = SegTable::new(1 << 20);
    let mut now = Time::ZERO;
    let mut poller: Option<Box<dyn Poller>> = None;
    let mut waits = Waits::default();
    waits.interests.reserve(8);
    let (mut warm, mut turns, mut counted) = (0, 0, 0);
    while turns < 2000 {
        now = now.after(std::time::Duration::from_micros(5));
        let mut cx = polypath_block::Cx { now, segs: &mut segs, reactor: 0 };
        let Some(poller) = &mut poller else {
            poller = made.try_recv().ok().map(|make| make(&mut cx));
            continue;
        };
        // One read and one write at a time into free places of the ring, headers apart from data.
        for i in 0..8u64 {
            let meta = 0x1008_0000 + 64 * i;
            let data = 0x2000_0000 + 0x1000 * i;
            ram.write(meta, &header((i % 2) as u32, i * 8));
            let pieces = [
                Piece { addr: meta, len: 16, write: false },
                Piece { addr: data, len: 4096, write: i % 2 == 0 },
                Piece { addr: meta + 16, len: 1, write: true },
            ];
            let _ = driver.add(&pieces);
        }
        driver.publish();
        let before = COUNT.get();
        poller.poll(&mut cx);
        waits.clear();
        poller.arm(&mut cx, &mut waits);
        let spent = COUNT.get() - before;
        if server.statistics()[0].completions > 1000 {
            warm += 1;
        }
        if warm > 10 {
            turns += 1;
            counted += spent;
        }
        while driver.pop().is_some() {}
    }
    assert_eq!(counted, 0, "allocations in 2,000 turns");
    assert!(server.statistics()[0].completions > 5000);
    drop(front_end.join().unwrap());
    drop(poller);
}
