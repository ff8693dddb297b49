//! Reads (or writes) at a fixed queue depth in a busy loop, to measure the initiator alone.
//!
//! `cargo run --release -p polypath-nvmf-tcp --example nvme_tcp_ping -- nvme-tcp://127.0.0.1:4420/NQN [depth] [seconds] [write]`

use polypath_block::{Cx, Device, Done, Health, Host, Io, MakePoller, Poller, QueueConfig, SegTable, Time, Turn};
use polypath_memory::Arena;
use std::error::Error;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A reactor of the least kind: pollers get a turn whenever the main loop says so.
#[derive(Default)]
struct Inline(Mutex<Vec<MakePoller>>);

impl Host for Inline {
    fn spawn(&self, make: MakePoller) {
        self.0.lock().expect("no panics").push(make);
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> Time {
        now()
    }
}

fn now() -> Time {
    static START: OnceLock<Instant> = OnceLock::new();
    Time::from_nanos(START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1_000_000_000)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let uri = args.next().ok_or("usage: nvme_tcp_ping URI [DEPTH] [SECONDS] [write]")?.parse()?;
    let depth: u16 = args.next().map_or(Ok(32), |a| a.parse())?;
    let seconds: f64 = args.next().map_or(Ok(2.0), |a| a.parse())?;
    let write = args.next().is_some_and(|a| a == "write");
    let host = Arc::new(Inline::default());
    let device = polypath_nvmf_tcp::open(&uri, host.clone())?;
    let mut queue = device.open_queue(QueueConfig { depth })?;
    let mut segs = SegTable::new(1 << 20);
    let mut pollers: Vec<Box<dyn Poller>> = Vec::new();
    let mut done = Done::with_capacity(usize::from(depth));
    let start = Instant::now();
    let mut turn = |queue: &mut Box<dyn polypath_block::IoQueue>, segs: &mut SegTable, done: &mut Done, now: Time| {
        let mut cx = Cx { now, segs, reactor: 0 };
        for make in host.0.lock().expect("no panics").drain(..) {
            pollers.push(make(&mut cx));
        }
        pollers.retain_mut(|p| p.poll(&mut cx) != Turn::Finished);
        queue.kick(&mut cx);
        queue.poll(&mut cx, done);
    };
    while queue.health() != Health::Ready {
        turn(&mut queue, &mut segs, &mut done, now());
        if start.elapsed() > Duration::from_secs(10) {
            return Err(format!("not ready after 10 s: {:?}", device.state()).into());
        }
    }
    let state = device.state();
    let info = state.info().ok_or("the device has gone again")?;
    let blocks = (4096 / info.geometry.block_size).max(1);
    let arena = Arena::new(u64::from(depth) * 65536, false)?;
    let rows = segs.reserve(depth.into(), 1)?;
    let chunks: Vec<_> =
        (0..depth).map(|_| arena.chunk(blocks * info.geometry.block_size)).collect::<Option<_>>().ok_or("memory")?;
    for (i, chunk) in (0..).zip(&chunks) {
        let span = rows.span(i, 1);
        segs.get_mut(span)[0] = chunk.segment();
    }
    let places = info.geometry.blocks / u64::from(blocks);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let before = device.controller().statistics();
    let (mut finished, mut errors, begin) = (0_u64, 0_u64, Instant::now());
    let mut free: Vec<u64> = (0..u64::from(depth)).collect();
    let mut latencies: Vec<u32> = Vec::with_capacity(1 << 20);
    let mut submitted = vec![Time::ZERO; usize::from(depth)];
    let mut late = now();
    let end = now().after(Duration::from_secs_f64(seconds));
    while late < end || free.len() < usize::from(depth) {
        late = now();
        let mut cx = Cx { now: late, segs: &mut segs, reactor: 0 };
        while late < end
            && let Some(tag) = free.pop()
        {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let span = rows.span(tag as u32, 1);
            let lba = random % places * u64::from(blocks);
            let io = if write { Io::write(tag, lba, blocks, span) } else { Io::read(tag, lba, blocks, span) };
            submitted[tag as usize] = late;
            if queue.submit(&mut cx, io).is_err() {
                free.push(tag);
                break;
            }
        }
        turn(&mut queue, &mut segs, &mut done, late);
        if done.completions.is_empty() {
            continue;
        }
        let at = now();
        for c in done.completions.drain(..) {
            finished += 1;
            errors += u64::from(!c.status.is_ok());
            if latencies.len() < latencies.capacity() {
                latencies.push(at.since(submitted[c.tag as usize]).as_nanos() as u32);
            }
            free.push(c.tag);
        }
    }
    let spent = begin.elapsed().as_secs_f64();
    for _ in 0..100_000 {
        turn(&mut queue, &mut segs, &mut done, now());
    }
    let mut cx = Cx { now: now().after(Duration::from_millis(200)), segs: &mut segs, reactor: 0 };
    queue.poll(&mut cx, &mut done);
    let after = device.controller().statistics();
    let ios = (after.ios - before.ios).max(1);
    latencies.sort_unstable();
    let at = |p: f64| f64::from(latencies.get((latencies.len() as f64 * p) as usize).copied().unwrap_or(0)) / 1000.0;
    println!(
        "qd {depth}: {:.0} IO/s, {errors} errors, p50 {:.1} us, p99 {:.1} us, {:.3} system calls per I/O",
        finished as f64 / spent,
        at(0.5),
        at(0.99),
        (after.syscalls - before.syscalls) as f64 / ios as f64
    );
    queue.close(&mut cx);
    Ok(())
}
