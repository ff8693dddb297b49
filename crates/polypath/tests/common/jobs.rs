//! Jobs on the reactors of a stack that write blocks of their own, read them back and compare.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of it")]

use polypath::block::{
    Armed, Cx, Device, Done, Health, Host, Io, IoQueue, Poller, QueueConfig, Scope, SegRow, Turn, Waits,
};
use polypath::{Arena, Chunk, CpuList, IdlePolicy, Stack, StackConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests of one job in flight.
pub const DEPTH: u16 = 16;
pub const BLOCK: u32 = 4096;

/// Two reactors, wherever this machine has a core for them, that sleep as soon as they may.
pub fn stack() -> Stack {
    let cpus =
        CpuList(if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) { vec![0, 1] } else { vec![0, 0] });
    Stack::start(StackConfig {
        cpus: Some(cpus),
        idle: IdlePolicy::Sleep,
        buffer_bytes: 16 << 20,
        ..StackConfig::default()
    })
    .unwrap()
}

#[derive(Default)]
pub struct Told {
    pub verified: AtomicUsize,
    pub lost: AtomicUsize,
    pub stop: AtomicBool,
    pub ended: AtomicBool,
}

/// Writes and reads back blocks of its own, each with its round.
pub struct Job {
    queue: Box<dyn IoQueue>,
    first: u64,
    rows: Option<SegRow>,
    buffers: Vec<Chunk>,
    rounds: Vec<(u8, bool, bool)>,
    done: Done,
    told: Arc<Told>,
    /// May requests fail because of the path (one path without a group above it)?
    lossy: bool,
    closing: bool,
}

impl Job {
    pub fn spawn(host: &dyn Host, device: Arc<dyn Device>, arena: &Arena, first: u64, lossy: bool) -> Arc<Told> {
        Job::spawn_deep(host, device, arena, first, lossy, DEPTH)
    }

    /// The same over a queue of `depth`, at least what a job has in flight.
    pub fn spawn_deep(
        host: &dyn Host,
        device: Arc<dyn Device>,
        arena: &Arena,
        first: u64,
        lossy: bool,
        depth: u16,
    ) -> Arc<Told> {
        let (told, arena) = (Arc::<Told>::default(), arena.clone());
        let mine = told.clone();
        host.spawn(Box::new(move |cx| {
            let rows = cx.segs.reserve(DEPTH.into(), 1).unwrap();
            let buffers: Vec<Chunk> = (0..DEPTH).map(|_| arena.chunk(BLOCK).unwrap()).collect();
            for (n, chunk) in buffers.iter().enumerate() {
                cx.segs.get_mut(rows.span(n as u32, 1))[0] = chunk.segment();
            }
            let queue = device.open_queue(QueueConfig { depth }).expect("a queue or a share of one");
            let rounds = vec![(1, false, false); DEPTH.into()];
            let done = Done::with_capacity(64);
            Box::new(Job { queue, first, rows: Some(rows), buffers, rounds, done, told: mine, lossy, closing: false })
        }));
        told
    }

    fn submit(&mut self, cx: &mut Cx<'_>) {
        if self.queue.health() == Health::Down {
            return;
        }
        for n in 0..self.rounds.len() {
            let (round, reads, busy) = &mut self.rounds[n];
            if *busy {
                continue;
            }
            let (lba, span) = (self.first + n as u64, self.rows.as_ref().unwrap().span(n as u32, 1));
            let fill = if *reads { !*round } else { *round };
            self.buffers[n].window().copy_in(0, &[fill; BLOCK as usize]).unwrap();
            let io = if *reads { Io::read(n as u64, lba, 1, span) } else { Io::write(n as u64, lba, 1, span) };
            if self.queue.submit(cx, io).is_err() {
                break;
            }
            *busy = true;
        }
    }

    fn finish(&mut self) {
        for c in self.done.completions.drain(..) {
            let (round, reads, busy) = &mut self.rounds[c.tag as usize];
            assert!(std::mem::replace(busy, false), "{c:?} came twice");
            if !c.status.is_ok() {
                assert!(self.lossy && c.status.scope() == Scope::Path, "{c:?}");
                self.told.lost.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            if *reads {
                let mut bytes = [0; BLOCK as usize];
                self.buffers[c.tag as usize].window().copy_out(0, &mut bytes).unwrap();
                assert!(bytes.iter().all(|b| b == round), "block {} holds something else", self.first + c.tag);
                *round = round.wrapping_add(1);
                self.told.verified.fetch_add(1, Ordering::SeqCst);
            }
            *reads = !*reads;
        }
        self.done.clear();
    }
}

impl Poller for Job {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.queue.poll(cx, &mut self.done);
        let busy = !self.done.is_empty();
        self.finish();
        if self.closing && self.queue.is_drained() {
            assert!(self.rounds.iter().all(|r| !r.2), "drained with requests open");
            cx.segs.release(self.rows.take().unwrap());
            self.told.ended.store(true, Ordering::SeqCst);
            return Turn::Finished;
        }
        if !self.closing && self.told.stop.load(Ordering::SeqCst) {
            self.closing = true;
            self.queue.close(cx);
            return Turn::Busy;
        }
        if !self.closing {
            self.submit(cx);
            self.queue.kick(cx);
        }
        if busy { Turn::Busy } else { Turn::Idle }
    }
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let told = self.told.stop.load(Ordering::SeqCst) && !self.closing;
        if told || (self.closing && self.queue.is_drained()) { Armed::Busy } else { self.queue.arm(cx, waits) }
    }
    fn name(&self) -> &str {
        "job"
    }
}

pub fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Four jobs over the reactors of `stack`, in turns.
pub fn jobs(stack: &Stack, device: &Arc<dyn Device>, lossy: bool) -> Vec<Arc<Told>> {
    let (hosts, arena) = (stack.hosts(), stack.arena().unwrap());
    (0..4).map(|n| Job::spawn(&*hosts[n % hosts.len()], device.clone(), &arena, n as u64 * 64, lossy)).collect()
}

/// Each of them has verified `more` blocks more.
pub fn progress(what: &str, told: &[Arc<Told>], more: usize) {
    let before: Vec<_> = told.iter().map(|t| t.verified.load(Ordering::SeqCst)).collect();
    wait(what, || told.iter().zip(&before).all(|(t, b)| t.verified.load(Ordering::SeqCst) >= b + more));
}

pub fn end(stack: &Stack, device: &dyn Device, told: &[Arc<Told>]) {
    told.iter().for_each(|t| t.stop.store(true, Ordering::SeqCst));
    stack.hosts().iter().for_each(|h| h.wake());
    wait("jobs that end", || told.iter().all(|t| t.ended.load(Ordering::SeqCst)));
    device.close();
    assert!(stack.stop(Duration::from_secs(10)), "something was left behind: {:?}", stack.statistics());
}
