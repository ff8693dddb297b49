//! What the ring costs per request: read the chain, translate it, parse nothing, give it back.
//!
//! A guest-side driver over real regions offers batches of 64 requests (header, 4 KiB of data, status); only the device's work on
//! them is timed. Direct and indirect chains, one region and eight.

#[path = "../tests/common/guest.rs"]
#[allow(dead_code, unreachable_pub)]
mod guest;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest::{Driver, GuestRam, Piece, header};
use polypath_block::Segment;
use polypath_vhost_user_blk::{GuestMemory, Plain, RingSpec, Vring};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const RING: u16 = 256;
const BATCH: u64 = 64;
const REGION: u64 = 4 << 20;

struct Bench {
    ram: GuestRam,
    driver: Driver,
    ring: Vring,
    row: Vec<Segment>,
    plain: Vec<Plain>,
    indirect: bool,
    regions: u64,
}

impl Bench {
    fn new(regions: u64, indirect: bool) -> Bench {
        let layout: Vec<_> = (0..regions).map(|i| (0x1000_0000 + i * 0x1000_0000, REGION)).collect();
        let ram = GuestRam::new(&layout);
        let memory = ram
            .regions
            .iter()
            .fold(GuestMemory::new(), |m, r| m.with(r.gpa, r.uaddr, r.region.clone()).expect("regions do not overlap"));
        let driver = Driver::new(&ram, layout[0].0, RING, true);
        let spec = RingSpec {
            size: RING,
            packed: false,
            desc: driver.desc.clone(),
            avail: driver.avail.clone(),
            used: driver.used.clone(),
            base: 0,
            event_idx: true,
            indirect: true,
            written: driver.written(),
            record: None,
        };
        let ring = Vring::new(spec, Arc::new(memory)).expect("a sound ring");
        Bench {
            ram,
            driver,
            ring,
            row: vec![Segment::default(); 132],
            plain: Vec::with_capacity(BATCH as usize),
            indirect,
            regions,
        }
    }

    /// Offers a batch. Data of request `i` lies in region `i % regions`, headers and tables in the first.
    fn offer(&mut self) {
        let base = self.ram.regions[0].gpa + 0x10_0000;
        for i in 0..BATCH {
            let meta = base + i * 128;
            let region = &self.ram.regions[(i % self.regions) as usize];
            let data = region.gpa + 0x20_0000 + i * 4096;
            self.ram.write(meta, &header(0, i * 8));
            let pieces = [
                Piece { addr: meta, len: 16, write: false },
                Piece { addr: data, len: 4096, write: true },
                Piece { addr: meta + 16, len: 1, write: true },
            ];
            if self.indirect {
                self.driver.add_indirect(&self.ram, &pieces, 0, meta + 32).expect("room");
            } else {
                self.driver.add(&pieces).expect("room");
            }
        }
        self.driver.publish();
    }

    /// The device's work on one batch.
    fn work(&mut self) -> u64 {
        let mut n = 0;
        loop {
            let count = self.ring.look_ahead(BATCH as u16).expect("a sound ring");
            self.plain.clear();
            let plain = self.ring.take_plain(|plain| {
                self.plain.push(*plain);
                true
            });
            let mut given = black_box(&self.plain).iter();
            let back = self.ring.complete_plain(|| given.next().map(|p| (p.head, p.status, p.data.len + 1)));
            assert_eq!(back, plain);
            for _ in plain..count {
                let head = self.ring.take().expect("a sound head");
                let chain = self.ring.read_chain(head, &mut self.row).expect("a sound chain");
                black_box((&chain, &self.row[..chain.in_count as usize]));
                self.ring.complete(head, chain.status, 0, chain.in_len as u32 + 1);
            }
            n += u64::from(count);
            if count == 0 {
                break;
            }
        }
        black_box(self.ring.publish());
        n
    }

    fn collect(&mut self) {
        while self.driver.pop().is_some() {}
    }
}

fn vring(c: &mut Criterion) {
    let mut group = c.benchmark_group("vring");
    group.throughput(Throughput::Elements(1));
    for regions in [1, 8] {
        for (name, indirect) in [("direct", false), ("indirect", true)] {
            group.bench_function(BenchmarkId::new(name, format!("{regions} regions")), |b| {
                let mut bench = Bench::new(regions, indirect);
                // One iteration is one request; the driver's own work is left out.
                b.iter_custom(|iters| {
                    let mut spent = Duration::ZERO;
                    let mut done = 0;
                    while done < iters {
                        bench.offer();
                        let start = Instant::now();
                        done += bench.work();
                        spent += start.elapsed();
                        bench.collect();
                    }
                    spent.mul_f64(iters as f64 / done as f64)
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = vring
}
criterion_main!(benches);
