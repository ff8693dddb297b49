//! Our vhost-user-blk front-end on QEMU's own back-end: memory that comes and goes, queues that come and go, and a back-end that is
//! killed or stopped.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use polypath::block::contract::Rig;
use polypath::block::{
    Armed, Completion, Cx, Device, DeviceState, Done, Health, Io, IoQueue, Proof, QueueConfig, Scope, SegRow, SegSpan,
    SegTable, Segment, Waits,
};
use polypath::local::testing::RealRig;
use polypath::memory::{self, Region};
use polypath::vhost_user_client::{ClientConfig, VhostUserDisk};
use polypath_tests::Lab;
use polypath_tests::lab::Need;
use polypath_tests::peers::StorageDaemon;
use rustix::process::Signal;

const QSD: [Need; 1] = [Need::Program("qemu-storage-daemon")];
const DISK: u64 = 16 << 20;
const LEN: u32 = 64 << 10;
const BLOCKS: u32 = LEN / 512;

/// A front-end with one queue, driven by hand.
struct FrontEnd {
    disk: Arc<VhostUserDisk>,
    queue: Box<dyn IoQueue>,
    segs: SegTable,
    rows: SegRow,
    done: Done,
    rig: RealRig,
}

impl FrontEnd {
    fn connect(daemon: &mut StorageDaemon) -> Result<FrontEnd> {
        let uri = format!("vhost-user-blk://{}", daemon.socket.display());
        let socket = daemon.socket.clone();
        daemon.process().wait_for_answer(&socket, Duration::from_secs(10))?;
        let disk = VhostUserDisk::connect(&ClientConfig::from_uri(&uri.parse()?)?)?;
        let queue = disk.open_queue(QueueConfig { depth: 8 })?;
        let mut segs = SegTable::new(1024);
        let rows = segs.reserve(64, 1)?;
        let rig = RealRig::new(disk.clone(), true);
        Ok(FrontEnd { disk, queue, segs, rows, done: Done::default(), rig })
    }

    fn row(&mut self, row: u32, region: &Region) -> SegSpan {
        let span = self.rows.span(row, 1);
        self.segs.get_mut(span)[0] = Segment { offset: 0, region: region.id(), len: LEN };
        span
    }

    fn submit(&mut self, io: Io) -> Result<()> {
        let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
        self.queue.submit(&mut cx, io).map_err(|r| anyhow::anyhow!("{:?}: {:?}", r.io, r.why))?;
        self.queue.kick(&mut cx);
        Ok(())
    }

    /// What completes, as soon as something does; sleeps as a reactor would.
    fn wait(&mut self, limit: Duration) -> Result<Vec<Completion>> {
        let until = Instant::now() + limit;
        let mut waits = Waits::default();
        loop {
            let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
            self.queue.kick(&mut cx);
            self.queue.poll(&mut cx, &mut self.done);
            if !self.done.completions.is_empty() {
                return Ok(self.done.completions.drain(..).collect());
            }
            ensure!(Instant::now() < until, "nothing completed within {limit:?}");
            waits.clear();
            if self.queue.arm(&mut cx, &mut waits) == Armed::Sleep {
                self.rig.pass(&mut cx, Some(&waits));
            }
        }
    }

    fn run(&mut self, io: Io) -> Result<Completion> {
        self.submit(io)?;
        self.wait(Duration::from_secs(20))?.pop().context("one completion")
    }

    /// Closes the queue, drains it, drops it and opens the next.
    fn reopen(&mut self) -> Result<()> {
        let mut cx = Cx { now: self.rig.now(), segs: &mut self.segs, reactor: 0 };
        self.queue.close(&mut cx);
        ensure!(self.queue.is_drained(), "nothing was in flight");
        self.open_again()
    }

    /// Drops the queue as it is and opens the next.
    fn open_again(&mut self) -> Result<()> {
        self.queue = Box::new(Nothing);
        self.queue = self.disk.open_queue(QueueConfig { depth: 8 })?;
        Ok(())
    }

    fn reason(&self) -> Result<String> {
        match self.disk.state() {
            DeviceState::Gone { reason } => Ok(reason),
            other => bail!("the device is {other:?}"),
        }
    }
}

/// Stands where a queue was, so that the old one is dropped before the next is opened.
struct Nothing;

impl IoQueue for Nothing {
    fn submit(&mut self, _: &mut Cx<'_>, io: Io) -> Result<(), polypath::block::Refused> {
        Err(polypath::block::Refused { io, why: polypath::block::RefusedWhy::Gone })
    }
    fn kick(&mut self, _: &mut Cx<'_>) {}
    fn poll(&mut self, _: &mut Cx<'_>, _: &mut Done) {}
    fn arm(&mut self, _: &mut Cx<'_>, _: &mut Waits) -> Armed {
        Armed::Sleep
    }
    fn health(&self) -> Health {
        Health::Down
    }
    fn close(&mut self, _: &mut Cx<'_>) {}
    fn is_drained(&self) -> bool {
        true
    }
}

fn region(byte: u8) -> Result<Region> {
    let region = Region::allocate(LEN.into(), false)?;
    region.window(0, LEN.into()).context("all of it")?.copy_in(0, &vec![byte; LEN as usize])?;
    Ok(region)
}

fn bytes(region: &Region) -> Result<Vec<u8>> {
    let mut bytes = vec![0; LEN as usize];
    region.window(0, LEN.into()).context("all of it")?.copy_out(0, &mut bytes)?;
    Ok(bytes)
}

fn address(region: &Region) -> Result<usize> {
    Ok(memory::with(|t| t.backing(region.id())).context("it was just made")?.address)
}

/// Memory at `wanted`, where a region lay that was dropped. The kernel gives the highest hole that fits, so that the first mostly is it.
fn again_at(wanted: usize, byte: u8) -> Result<Region> {
    let mut others = Vec::new();
    for _ in 0..256 {
        memory::refresh();
        let next = region(byte)?;
        if address(&next)? == wanted {
            return Ok(next);
        }
        others.push(next);
    }
    bail!("no memory was mapped at {wanted:#x} again")
}

/// Mappings of our memory in the back-end's process.
fn mappings(daemon: &mut StorageDaemon) -> Result<usize> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.process().pid()))?;
    Ok(maps.lines().filter(|line| line.contains("memfd:polypath")).count())
}

#[test]
fn memory_at_the_address_of_freed_memory_is_itself() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "client_memory", &QSD) else { return Ok(()) };
    let mut daemon = StorageDaemon::start(&lab, DISK)?;
    let mut front = FrontEnd::connect(&mut daemon)?;
    let first = region(0x11)?;
    let at = address(&first)?;
    let span = front.row(0, &first);
    ensure!(front.run(Io::write(1, 0, BLOCKS, span))?.status.is_ok());
    drop(first);
    let second = again_at(at, 0x22)?;
    let span = front.row(0, &second);
    ensure!(front.run(Io::write(2, u64::from(BLOCKS), BLOCKS, span))?.status.is_ok());
    let mut written = vec![0; LEN as usize];
    File::open(lab.path("qsd.img"))?.read_exact_at(&mut written, LEN.into())?;
    ensure!(written.iter().all(|&b| b == 0x22), "the disk was given {:#x}, freed memory", written[0]);
    ensure!(front.run(Io::read(3, 0, BLOCKS, span))?.status.is_ok());
    ensure!(bytes(&second)?.iter().all(|&b| b == 0x11), "what was read went to freed memory");
    Ok(())
}

#[test]
fn the_back_end_lets_go_of_freed_memory() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "client_memory_limit", &QSD) else { return Ok(()) };
    let mut daemon = StorageDaemon::start(&lab, DISK)?;
    let mut front = FrontEnd::connect(&mut daemon)?;
    let kept = region(1)?;
    let span = front.row(0, &kept);
    ensure!(front.run(Io::read(0, 0, BLOCKS, span))?.status.is_ok());
    let before = mappings(&mut daemon)?;
    // Many more in all than it takes at a time (32, libvhost-user's VHOST_USER_MAX_RAM_SLOTS), some kept for a while, so that addresses
    // do not repeat at once.
    for round in 0..20 {
        let some = (0..25).map(|n| region(n as u8)).collect::<Result<Vec<_>>>()?;
        for (n, region) in some.iter().enumerate() {
            let span = front.row(0, region);
            let c = front.run(Io::write(n as u64, 0, BLOCKS, span))?;
            ensure!(c.status.is_ok(), "region {n} of round {round}: {}", c.status);
        }
    }
    let until = Instant::now() + Duration::from_secs(10);
    while mappings(&mut daemon)? > before {
        ensure!(Instant::now() < until, "{} mappings, {before} before", mappings(&mut daemon)?);
        std::thread::yield_now();
    }
    let span = front.row(0, &kept);
    ensure!(front.run(Io::read(1, 0, BLOCKS, span))?.status.is_ok(), "what was kept stays mapped");
    ensure!(bytes(&kept)?.iter().all(|&b| b == 24), "the last region's bytes");
    // One more than there is room for is refused by name, and costs nobody else anything; with room again, it is taken.
    let all = (0..32).map(region).collect::<Result<Vec<_>>>()?;
    let mut refused = Vec::new();
    for (n, region) in all.iter().enumerate() {
        let span = front.row(n as u32, region);
        if !front.run(Io::read(n as u64, 0, BLOCKS, span))?.status.is_ok() {
            refused.push(n);
        }
    }
    // 32 without the rings' and the kept one's.
    ensure!(refused == [30, 31], "{refused:?}");
    let mut all = all;
    drop(all.remove(0));
    let c = front.run(Io::read(31, 0, BLOCKS, front.rows.span(31, 1)))?;
    ensure!(c.status.is_ok(), "{c:?}");
    Ok(())
}

#[test]
fn queues_are_given_back() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "client_queues", &QSD) else { return Ok(()) };
    let mut daemon = StorageDaemon::start(&lab, DISK)?;
    let mut front = FrontEnd::connect(&mut daemon)?;
    let buffer = region(0x33)?;
    let span = front.row(0, &buffer);
    for n in 0..200 {
        let c = front.run(Io::write(n, n * u64::from(BLOCKS) % 1024, BLOCKS, span))?;
        ensure!(c.status.is_ok() && c.tag == n, "queue {n}: {c:?}");
        front.reopen()?;
    }
    // A reactor that ends drops its queues as they are; what is in flight is drained before the ring is used again.
    for n in 0..200 {
        for tag in 0..8 {
            front.submit(Io::read(tag, tag * u64::from(BLOCKS), BLOCKS, span))?;
        }
        front.open_again().with_context(|| format!("queue {n}"))?;
    }
    ensure!(front.run(Io::read(9, 0, BLOCKS, span))?.status.is_ok());
    Ok(())
}

/// Stops all threads of the back-end, which takes a moment.
fn stop(daemon: &mut StorageDaemon) -> Result<()> {
    daemon.process().signal(Signal::STOP)?;
    let until = Instant::now() + Duration::from_secs(10);
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.process().pid()))? {
        let stat = task?.path().join("stat");
        // The state follows the name, which ends with the last bracket.
        while !std::fs::read_to_string(&stat)?.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) {
            ensure!(Instant::now() < until, "{} does not stop", stat.display());
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Two writes and two reads in flight on a back-end that does nothing any more.
fn in_flight(front: &mut FrontEnd, daemon: &mut StorageDaemon, buffers: &[Region]) -> Result<()> {
    let spans: Vec<_> = (0..).zip(buffers).map(|(n, b)| front.row(n, b)).collect();
    for (tag, span) in (0..).zip(&spans) {
        ensure!(front.run(Io::read(tag, 0, BLOCKS, *span))?.status.is_ok(), "all memory is mapped");
    }
    stop(daemon)?;
    for (tag, span) in (0..).zip(spans) {
        let make = if tag % 2 == 0 { Io::write } else { Io::read };
        front.submit(make(tag, tag * u64::from(BLOCKS), BLOCKS, span))?;
    }
    Ok(())
}

/// Waits for the end of all four, which must be once, of the path's scope, and claim no more than is known of writes.
fn all_lost(front: &mut FrontEnd, limit: Duration) -> Result<Duration> {
    let (start, mut seen) = (Instant::now(), 0u8);
    while seen != 0b1111 {
        for c in front.wait(limit.saturating_sub(start.elapsed()))? {
            ensure!(seen & (1 << c.tag) == 0, "completed twice: {c:?}");
            seen |= 1 << c.tag;
            ensure!(c.status.scope() == Scope::Path, "{c:?}");
            ensure!(c.tag % 2 == 1 || c.proof == Proof::None, "a write whose outcome nobody knows: {c:?}");
        }
    }
    ensure!(front.queue.health() == Health::Down, "{:?}", front.queue.health());
    ensure!(front.wait(Duration::from_millis(200)).is_err(), "nothing more completes");
    Ok(start.elapsed())
}

#[test]
fn a_killed_back_end_is_told_at_once() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "client_killed", &QSD) else { return Ok(()) };
    let mut daemon = StorageDaemon::start(&lab, DISK)?;
    let mut front = FrontEnd::connect(&mut daemon)?;
    let buffers = (0..4).map(region).collect::<Result<Vec<_>>>()?;
    in_flight(&mut front, &mut daemon, &buffers)?;
    daemon.process().kill()?;
    let took = all_lost(&mut front, Duration::from_secs(5))?;
    let reason = front.reason()?;
    println!("told after {took:?}: {reason}");
    ensure!(reason.contains("qsd.sock"), "{reason}");
    ensure!(front.disk.open_queue(QueueConfig { depth: 1 }).is_err(), "no queue on a device that is gone");
    Ok(())
}

#[test]
fn a_stopped_back_end_is_told_after_the_limit() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "client_stopped", &QSD) else { return Ok(()) };
    let mut daemon = StorageDaemon::start(&lab, DISK)?;
    let mut front = FrontEnd::connect(&mut daemon)?;
    let buffers = (0..4).map(region).collect::<Result<Vec<_>>>()?;
    in_flight(&mut front, &mut daemon, &buffers)?;
    let took = all_lost(&mut front, Duration::from_secs(20))?;
    let reason = front.reason()?;
    println!("told after {took:?}: {reason}");
    ensure!(took > Duration::from_secs(8), "the limit is 10 s, not {took:?}");
    Ok(())
}

#[test]
fn a_stopped_back_end_cannot_hold_whoever_connects() -> Result<()> {
    let Some(lab) = Lab::enter("qemu-storage-daemon", "client_connect_stopped", &QSD) else { return Ok(()) };
    let mut daemon = StorageDaemon::start(&lab, DISK)?;
    stop(&mut daemon)?;
    let uri = format!("vhost-user-blk://{}", daemon.socket.display());
    let config = ClientConfig::from_uri(&uri.parse()?)?;
    let (tell, told) = std::sync::mpsc::channel();
    // On a thread of its own, so that the test ends where the call does not.
    std::thread::spawn(move || tell.send(VhostUserDisk::connect(&config).map(|_| ()).map_err(|e| e.to_string())));
    let said = told.recv_timeout(Duration::from_secs(10)).context("connecting took longer than 10 s")?;
    let said = said.err().context("connected to a stopped process")?;
    println!("{said}");
    ensure!(said.contains("qsd.sock") && said.contains("5 s"), "{said}");
    Ok(())
}
