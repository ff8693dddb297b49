//! A front-end made of the independent `vhost` crate's protocol and our model of a guest's driver.

use super::guest::{Driver, GuestRam, Piece, header};
use polypath_block::Device;
use polypath_reactor::{IdlePolicy, Pool, PoolConfig};
use polypath_vhost_user_blk::{Server, ServerConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;

pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL: u64 = 1 << 30;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_VERSION_1: u64 = 1 << 32;

/// Guest addresses: rings of queue `q` at `q * RING_STRIDE` of the first region, data in the second.
pub const META: u64 = 0x1_0000_0000;
pub const DATA: u64 = 0x2_0000_0000;
const RING_STRIDE: u64 = 0x1_0000;

/// A server in a directory of its own.
pub struct Served {
    pub server: Server,
    pub dir: tempfile::TempDir,
    /// Of its own, if it has any. Last: reactors outlive what they serve.
    pub pool: Option<Pool>,
}

/// A server over `device` with a reactor that sleeps as soon as it may.
pub fn serve(device: Arc<dyn Device>, change: impl FnOnce(&mut ServerConfig)) -> Served {
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::Sleep }).unwrap();
    let served = serve_on(&pool, device, change);
    Served { pool: Some(pool), ..served }
}

/// The same, on the reactors of `pool`.
pub fn serve_on(pool: &Pool, device: Arc<dyn Device>, change: impl FnOnce(&mut ServerConfig)) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ServerConfig::new("disk0", dir.path().join("disk0.sock"), device, pool.hosts());
    change(&mut config);
    let server = Server::start(config).unwrap();
    Served { server, dir, pool: None }
}

pub struct Queue {
    pub driver: Driver,
    pub kick: EventFd,
    pub call: EventFd,
}

pub struct Client {
    pub fe: Frontend,
    pub ram: GuestRam,
    pub queues: Vec<Queue>,
    pub features: u64,
}

impl Client {
    /// Connects, negotiates `features`, shares memory, sets up `queues` rings of `size`, starting at `base` if given.
    pub fn connect(path: &Path, features: u64, queues: usize, size: u16) -> Client {
        let ram = GuestRam::new(&[(META, 0x10_0000), (DATA, 0x40_0000)]);
        let mut client = Client::negotiate(path, features, ram);
        for q in 0..queues {
            client.queues.push(Queue {
                driver: Driver::new(&client.ram, META + q as u64 * RING_STRIDE, size, features & F_EVENT_IDX != 0),
                kick: EventFd::new(0).unwrap(),
                call: EventFd::new(EFD_NONBLOCK).unwrap(),
            });
            client.start_queue(q, 0);
        }
        client
    }

    /// Asks for `more` protocol features beside those of every one here.
    pub fn set_more_features(&mut self, more: VhostUserProtocolFeatures) {
        let usual =
            VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
        self.fe.set_protocol_features(usual | more).unwrap();
    }

    /// Has a record of requests in flight kept, for one vring of 16.
    pub fn keep_record(&mut self) {
        self.set_more_features(VhostUserProtocolFeatures::INFLIGHT_SHMFD);
        let (record, file) = self.fe.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, 16)).unwrap();
        self.fe.set_inflight_fd(&record, file.as_raw_fd()).unwrap();
    }

    /// Everything up to the memory table.
    pub fn negotiate(path: &Path, features: u64, ram: GuestRam) -> Client {
        let mut fe = Frontend::connect(path, 16).unwrap();
        fe.set_owner().unwrap();
        let offered = fe.get_features().unwrap();
        assert_eq!(features & !offered, 0, "offered {offered:#x}");
        fe.set_features(features).unwrap();
        if features & F_PROTOCOL != 0 {
            let protocol = fe.get_protocol_features().unwrap();
            let wanted = VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::RESET_DEVICE
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
            assert!(protocol.contains(wanted), "{protocol:?}");
            fe.set_protocol_features(wanted).unwrap();
            fe.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let client = Client { fe, ram, queues: Vec::new(), features };
        let regions: Vec<_> = (0..client.ram.regions.len()).map(|i| client.region(i)).collect();
        client.fe.set_mem_table(&regions).unwrap();
        client
    }

    pub fn region(&self, i: usize) -> VhostUserMemoryRegionInfo {
        let r = &self.ram.regions[i];
        VhostUserMemoryRegionInfo {
            guest_phys_addr: r.gpa,
            memory_size: r.region.len(),
            userspace_addr: r.uaddr,
            mmap_offset: 0,
            mmap_handle: r.region.fd().unwrap().as_raw_fd(),
        }
    }

    pub fn start_queue(&mut self, q: usize, base: u16) {
        let Queue { driver, kick, call } = &self.queues[q];
        self.fe.set_vring_num(q, driver.size).unwrap();
        self.fe.set_vring_base(q, base).unwrap();
        let config = VringConfigData {
            queue_max_size: 1024,
            queue_size: driver.size,
            flags: 0,
            desc_table_addr: self.ram.user_addr(driver.desc_gpa),
            used_ring_addr: self.ram.user_addr(driver.used_gpa),
            avail_ring_addr: self.ram.user_addr(driver.avail_gpa),
            log_addr: None,
        };
        self.fe.set_vring_addr(q, &config).unwrap();
        self.fe.set_vring_call(q, call).unwrap();
        self.fe.set_vring_kick(q, kick).unwrap();
        if self.features & F_PROTOCOL != 0 {
            self.fe.set_vring_enable(q, true).unwrap();
        }
    }

    pub fn config(&mut self) -> Vec<u8> {
        self.fe.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap().1
    }

    /// Puts one request at place `place` of queue `q`: header and status in the first region, data in the second.
    pub fn add(&mut self, q: usize, place: u64, kind: u32, sector: u64, len: u32) -> u16 {
        let meta = META + 0x8_0000 + q as u64 * 0x1_0000 + place * 32;
        let data = DATA + q as u64 * 0x10_0000 + place * 0x2000;
        self.ram.write(meta, &header(kind, sector));
        self.ram.write(meta + 16, &[0xee]);
        let mut pieces = vec![Piece { addr: meta, len: 16, write: false }];
        if len > 0 {
            pieces.push(Piece { addr: data, len, write: kind == IN || kind == 8 });
        }
        pieces.push(Piece { addr: meta + 16, len: 1, write: true });
        self.queues[q].driver.add(&pieces).expect("room in the ring")
    }

    pub fn status(&self, q: usize, place: u64) -> u8 {
        self.ram.read(META + 0x8_0000 + q as u64 * 0x1_0000 + place * 32 + 16, 1)[0]
    }

    pub fn data(q: usize, place: u64) -> u64 {
        DATA + q as u64 * 0x10_0000 + place * 0x2000
    }

    /// Shows what was added to the device, kicks it if it wants to be.
    pub fn publish(&mut self, q: usize) {
        let Queue { driver, kick, .. } = &mut self.queues[q];
        if driver.publish() {
            kick.write(1).unwrap();
        }
    }

    /// Waits for the next used element as a driver does: asks for a call, then sleeps.
    pub fn wait(&mut self, q: usize) -> (u16, u32) {
        loop {
            let Queue { driver, call, .. } = &mut self.queues[q];
            if let Some(used) = driver.pop() {
                return used;
            }
            if driver.want_call() {
                continue;
            }
            assert!(readable(call, 10), "queue {q}: no call within 10 s: a notification was lost");
            call.read().unwrap();
        }
    }

    /// Runs one request at place 0.
    pub fn run(&mut self, q: usize, kind: u32, sector: u64, data: &mut [u8]) -> u8 {
        self.ram.write(Self::data(q, 0), data);
        self.add(q, 0, kind, sector, data.len() as u32);
        self.publish(q);
        self.wait(q);
        data.copy_from_slice(&self.ram.read(Self::data(q, 0), data.len()));
        self.status(q, 0)
    }

    /// Stops a ring and says where it was.
    pub fn stop_queue(&mut self, q: usize) -> u16 {
        self.fe.get_vring_base(q).unwrap() as u16
    }
}

/// Is `fd` readable within `seconds`?
pub fn readable(fd: &impl AsRawFd, seconds: i64) -> bool {
    // SAFETY: the descriptor is open for as long as its owner is borrowed.
    let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)) == Ok(1)
}
