//! The server against the independent client of the `blkio` crate (libblkio's driver), which shares nothing with ours.

use crate::common::ram::{RamDevice, Rng};
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use polypath_block::Limits;
use polypath_reactor::{IdlePolicy, Pool, PoolConfig};
use polypath_vhost_user_blk::{Server, ServerConfig};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

const BLOCKS: u64 = 4096;
const BS: usize = 4096;
const QD: usize = 32;

struct Client {
    blkio: Blkio,
    queues: Vec<Blkioq>,
    region: MemoryRegion,
}

impl Client {
    fn connect(path: &str, queues: i32) -> Client {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", path).unwrap();
        blkio.connect().unwrap();
        blkio.set_i32("num-queues", queues).unwrap();
        let queues = blkio.start().unwrap().queues;
        let region = blkio.alloc_mem_region(QD * BS).unwrap();
        blkio.map_mem_region(&region).unwrap();
        Client { blkio, queues, region }
    }

    fn buffer(&self, slot: usize) -> *mut u8 {
        (self.region.addr + slot * BS) as *mut u8
    }

    fn fill(&self, slot: usize, byte: u8) {
        // SAFETY: inside the region, and no request uses this slot now.
        unsafe { std::ptr::write_bytes(self.buffer(slot), byte, BS) }
    }

    fn is_all(&self, slot: usize, byte: u8) -> bool {
        // SAFETY: inside the region, and the request that used this slot has completed.
        unsafe { std::slice::from_raw_parts(self.buffer(slot), BS) }.iter().all(|&b| b == byte)
    }

    /// The slots of completed requests, at least one.
    fn wait(&mut self, q: usize) -> Vec<usize> {
        let mut done = [const { MaybeUninit::<Completion>::uninit() }; QD];
        let mut limit = Duration::from_secs(20);
        let n = self.queues[q].do_io(&mut done, 1, Some(&mut limit), None).expect("a completion within 20 s");
        done[..n]
            .iter()
            .map(|c| {
                // SAFETY: do_io has filled the first n.
                let c = unsafe { c.assume_init_ref() };
                assert_eq!(c.ret, 0, "slot {}", c.user_data);
                c.user_data
            })
            .collect()
    }
}

fn serve(device: Arc<RamDevice>, queues: u16) -> (Server, Pool, tempfile::TempDir, String) {
    let pool = Pool::start(&PoolConfig { cpus: None, idle: IdlePolicy::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.sock");
    let mut config = ServerConfig::new("disk", &path, device, pool.hosts());
    config.num_queues = queues;
    let server = Server::start(config).unwrap();
    (server, pool, dir, path.to_str().unwrap().to_owned())
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Doing {
    Nothing,
    Read(u64),
    Write(u64, u8),
    Zeroes(u64),
    Flush,
}

#[test]
fn mixed_io_at_depth_32_is_verified() {
    let device = RamDevice::new(BS as u32, BLOCKS, Limits::UNLIMITED);
    device.change(|s| (s.delay, s.refuse) = (4, 50));
    let (server, _pool, _dir, path) = serve(device, 2);
    let seed = 20261121;
    let mut rng = Rng(seed);
    let mut model = vec![0u8; BLOCKS as usize];
    for q in 0..2 {
        let mut client = Client::connect(&path, 2);
        assert_eq!(client.blkio.get_u64("capacity").unwrap(), BLOCKS * BS as u64);
        let mut slots = [Doing::Nothing; QD];
        let mut busy = vec![false; BLOCKS as usize];
        let (mut started, mut done) = (0, 0);
        while done < 10_000 {
            for (slot, place) in slots.iter_mut().enumerate() {
                if *place != Doing::Nothing || started == 10_000 {
                    continue;
                }
                let block = rng.below(BLOCKS);
                let doing = match rng.below(20) {
                    _ if busy[block as usize] => continue,
                    0 => Doing::Flush,
                    1 => Doing::Zeroes(block),
                    2..=9 => Doing::Write(block, rng.next() as u8),
                    _ => Doing::Read(block),
                };
                let at = block * BS as u64;
                let (buffer, none) = (client.buffer(slot), ReqFlags::empty());
                match doing {
                    Doing::Flush => client.queues[q].flush(slot, none),
                    Doing::Zeroes(_) => client.queues[q].write_zeroes(at, BS as u64, slot, none),
                    Doing::Write(_, byte) => {
                        client.fill(slot, byte);
                        client.queues[q].write(at, buffer, BS, slot, none);
                    }
                    _ => {
                        client.fill(slot, 0xa5);
                        client.queues[q].read(at, buffer, BS, slot, none);
                    }
                }
                busy[block as usize] = doing != Doing::Flush;
                *place = doing;
                started += 1;
            }
            for slot in client.wait(q) {
                match std::mem::replace(&mut slots[slot], Doing::Nothing) {
                    Doing::Nothing => panic!("slot {slot} completed twice (seed {seed})"),
                    Doing::Flush => {}
                    Doing::Zeroes(b) => (model[b as usize], busy[b as usize]) = (0, false),
                    Doing::Write(b, byte) => (model[b as usize], busy[b as usize]) = (byte, false),
                    Doing::Read(b) => {
                        busy[b as usize] = false;
                        assert!(client.is_all(slot, model[b as usize]), "block {b} (seed {seed})");
                    }
                }
                done += 1;
            }
        }
    }
    let s = server.statistics();
    assert!(s.iter().all(|q| q.bad_requests == 0 && q.errors == 0 && q.ring_errors == 0), "{s:?}");
    assert_eq!(s.iter().map(|q| q.requests).sum::<u64>(), 20_000);
}

#[test]
fn discards_and_large_transfers_go_through() {
    let device = RamDevice::new(512, 1 << 16, Limits { discard_granularity_blocks: 1, ..Limits::UNLIMITED });
    let (server, _pool, _dir, path) = serve(device.clone(), 1);
    let mut client = Client::connect(&path, 1);
    let buffer = client.buffer(0);
    (0..QD).for_each(|slot| client.fill(slot, slot as u8 + 1));
    client.queues[0].write(512, buffer, QD * BS, 1, ReqFlags::FUA);
    client.wait(0);
    (0..QD).for_each(|slot| client.fill(slot, 0));
    client.queues[0].read(512, buffer, QD * BS, 2, ReqFlags::empty());
    client.wait(0);
    (0..QD).for_each(|slot| assert!(client.is_all(slot, slot as u8 + 1), "piece {slot}"));
    client.queues[0].discard(512, 2 * BS as u64, 3, ReqFlags::empty());
    client.wait(0);
    client.queues[0].read(512, buffer, 3 * BS, 4, ReqFlags::empty());
    client.wait(0);
    assert!(client.is_all(0, 0xdc) && client.is_all(1, 0xdc) && client.is_all(2, 3));
    assert_eq!(server.statistics()[0].errors, 0);
}
