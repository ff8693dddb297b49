//! What a front-end that migrates a guest says and sees of dirty pages, over the socket, while rings run.

use crate::common::client::{
    Client, DATA, F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1, IN, META, OUT, readable, serve,
};
use crate::common::ram::RamDevice;
use polypath_block::{Limits, Op};
use polypath_memory::{Region, Window};
use std::os::fd::AsRawFd;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_PROTOCOL;
const F_LOG_ALL: u64 = 1 << 26;
const PAGE: u64 = 0x1000;
/// As much as the guest's addresses need.
const LOG_BYTES: u64 = (DATA + 0x40_0000) / PAGE / 8;

/// The log, as its owner has it.
struct Log {
    region: Region,
    window: Window,
}

impl Log {
    fn new(bytes: u64) -> Log {
        let region = Region::allocate(bytes.next_multiple_of(PAGE), false).unwrap();
        let window = region.window(0, bytes).unwrap();
        Log { region, window }
    }

    fn give_to(&self, client: &mut Client) -> vhost::Result<()> {
        let region = VhostUserDirtyLogRegion {
            mmap_size: self.window.len() as u64,
            mmap_offset: 0,
            mmap_handle: self.region.fd().unwrap().as_raw_fd(),
        };
        client.fe.set_log_base(0, Some(region))
    }

    /// Pages that were marked since it was asked last, but for those of the rings. A page is marked after what was written to it is there:
    /// a ring that was stopped has marked all of it. Rings write their own pages when they stop and start, too.
    fn take(&self, client: &mut Client) -> Vec<u64> {
        for q in 0..client.queues.len() {
            [false, true].iter().for_each(|&on| client.fe.set_vring_enable(q, on).unwrap());
        }
        let mut bytes = vec![0; self.window.len()];
        self.window.copy_out(0, &mut bytes).unwrap();
        self.window.copy_in(0, &vec![0; bytes.len()]).unwrap();
        let rings: Vec<u64> = client.queues.iter().map(|q| q.driver.used_gpa / PAGE).collect();
        let marked = (0..bytes.len() as u64 * 8).filter(|page| bytes[*page as usize / 8] & 1 << (page % 8) != 0);
        marked.filter(|page| !rings.contains(page)).collect()
    }
}

fn protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::LOG_SHMFD
}

#[test]
fn pages_are_marked_from_the_word_on_and_no_longer_than_it_holds() {
    let served = serve(RamDevice::new(512, 1024, Limits::UNLIMITED), |c| c.num_queues = 2);
    let mut client = Client::connect(served.server.socket_path(), ALL, 2, 64);
    assert_ne!(client.fe.get_features().unwrap() & F_LOG_ALL, 0, "offered");
    client.fe.set_protocol_features(protocol()).unwrap();
    let log = Log::new(LOG_BYTES);
    log.give_to(&mut client).unwrap();
    let mut data = [7; 0x1800];
    let read = |client: &mut Client, q: usize, data: &mut [u8]| assert_eq!(client.run(q, IN, 0, data), 0);
    assert_eq!(client.run(0, OUT, 0, &mut data), 0);
    read(&mut client, 0, &mut data);
    assert!(log.take(&mut client).is_empty(), "a log is there, and nobody has asked for it to be kept");
    for _ in 0..3 {
        client.fe.set_features(ALL | F_LOG_ALL).unwrap();
        read(&mut client, 0, &mut data);
        let page = |gpa: u64| gpa / PAGE;
        let marked = log.take(&mut client);
        assert_eq!(marked, [page(META + 0x8_0000), page(DATA), page(DATA) + 1], "the status and both pages of data");
        assert_eq!(client.run(1, OUT, 0, &mut data), 0);
        assert_eq!(log.take(&mut client), [page(META + 0x9_0000)], "what the device has only read stays clean");
        client.fe.set_features(ALL).unwrap();
        read(&mut client, 1, &mut data);
        assert!(log.take(&mut client).is_empty());
    }
}

#[test]
fn a_log_is_exchanged_while_rings_run_and_a_bad_one_is_refused() {
    let served = serve(RamDevice::new(512, 1024, Limits::UNLIMITED), |_| ());
    let mut client = Client::connect(served.server.socket_path(), ALL, 1, 64);
    client.fe.set_protocol_features(protocol()).unwrap();
    let (first, second) = (Log::new(LOG_BYTES), Log::new(LOG_BYTES));
    first.give_to(&mut client).unwrap();
    client.fe.set_features(ALL | F_LOG_ALL).unwrap();
    let mut data = [0; 512];
    assert_eq!(client.run(0, IN, 0, &mut data), 0);
    assert!(!first.take(&mut client).is_empty());
    second.give_to(&mut client).unwrap();
    assert_eq!(client.run(0, IN, 0, &mut data), 0);
    assert!(
        first.take(&mut client).is_empty() && !second.take(&mut client).is_empty(),
        "each page is marked in the log that holds"
    );
    // One that is larger than its file: what lies beyond could not be written.
    let short = Log::new(PAGE);
    let beyond = VhostUserDirtyLogRegion {
        mmap_size: LOG_BYTES,
        mmap_offset: 0,
        mmap_handle: short.region.fd().unwrap().as_raw_fd(),
    };
    // Its answer cannot say no, and a guest whose pages are not marked must not be taken for one that moves.
    assert!(client.fe.set_log_base(0, Some(beyond)).is_err());
    assert!(client.fe.get_features().is_err(), "the connection is closed");
    drop(client);
    let mut next = Client::connect(served.server.socket_path(), ALL, 1, 64);
    second.take(&mut next);
    assert_eq!(next.run(0, IN, 0, &mut data), 0);
    assert!(second.take(&mut next).is_empty(), "the log was that front-end's");
}

/// A disk with a cache, and one write in it that the guest has not flushed.
fn unflushed() -> (std::sync::Arc<RamDevice>, crate::common::client::Served, Client) {
    let device = RamDevice::new(512, 1024, Limits { write_cache: true, ..Limits::UNLIMITED });
    device.change(|s| s.record = true);
    let served = serve(device.clone(), |_| ());
    let mut client = Client::connect(served.server.socket_path(), ALL | 1 << 9, 1, 64);
    assert_eq!(client.run(0, OUT, 0, &mut [1; 512]), 0);
    assert_eq!(device.log().iter().map(|(op, ..)| *op).collect::<Vec<_>>(), [Op::Write]);
    (device, served, client)
}

fn last_op(device: &RamDevice) -> Option<Op> {
    device.log().last().map(|(op, ..)| *op)
}

#[test]
fn the_last_flush_comes_before_the_base() {
    let (device, _served, mut client) = unflushed();
    client.stop_queue(0);
    assert_eq!(last_op(&device), Some(Op::Flush));
}

/// As QEMU does since 8.0 (`vhost_dev_stop`): it disables all rings, then asks each for its base.
#[test]
fn the_last_flush_comes_before_the_base_of_a_ring_that_was_disabled_first() {
    let (device, _served, mut client) = unflushed();
    client.fe.set_vring_enable(0, false).unwrap();
    client.stop_queue(0);
    assert_eq!(last_op(&device), Some(Op::Flush), "the guest goes on elsewhere, and its write is in a cache here");
}

/// Of a ring that stopped because another message of the same front-end moved its memory away.
#[test]
fn the_last_flush_comes_before_the_base_of_a_ring_whose_memory_is_gone() {
    let (device, _served, mut client) = unflushed();
    let first = client.region(0);
    client.fe.remove_mem_region(&first).unwrap();
    client.stop_queue(0);
    assert_eq!(last_op(&device), Some(Op::Flush));
}

/// As QEMU does with each start of a device (`vhost_user_blk_start`): rings begin with a call descriptor that nobody listens on, and are
/// told the one that matters afterwards. What waits in the ring of a guest that outlived its daemon is done by then.
#[test]
fn a_guest_that_comes_back_is_called_on_the_descriptor_that_is_told_last() {
    let served = serve(RamDevice::new(512, 1024, Limits::UNLIMITED), |_| ());
    let mut client = Client::connect(served.server.socket_path(), ALL, 1, 64);
    let base = client.stop_queue(0);
    client.add(0, 0, IN, 0, 512);
    client.publish(0);
    assert!(!client.queues[0].driver.want_call(), "the guest sleeps");
    client.start_queue(0, base);
    while served.server.statistics()[0].completions == 0 {
        std::thread::yield_now();
    }
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    client.fe.set_vring_call(0, &call).unwrap();
    assert!(readable(&call, 2), "a request is done, and nobody tells the guest");
}
