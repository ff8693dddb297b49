//! Admin queue and I/O queues on different reactors that sleep whenever they can.

use crate::common::{NQN, start, target_config};
use polypath_block::{
    Armed, Code, Completion, Cx, Device, Done, Health, Host, Io, IoQueue, Poller, QueueConfig, SegRow, Turn, Waits,
};
use polypath_memory::{Arena, Chunk};
use polypath_net::Bell;
use polypath_nvmf_tcp::NvmeDevice;
use polypath_reactor::{IdlePolicy, Reactor, ReactorConfig};
use polypath_target::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// What the test tells a job and learns from it.
struct Desk {
    bell: Bell,
    wanted: AtomicU64,
    ready: AtomicBool,
    turns: AtomicU64,
    stop: AtomicBool,
}

/// Owns a queue; reads one block whenever it is told to.
struct Job {
    desk: Arc<Desk>,
    queue: Box<dyn IoQueue>,
    row: SegRow,
    _chunk: Chunk,
    done: Done,
    next: u64,
    report: mpsc::Sender<Completion>,
}

impl Poller for Job {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.desk.bell.rise();
        self.desk.bell.answer();
        self.desk.turns.fetch_add(1, Ordering::Relaxed);
        let span = self.row.span(0, 1);
        while self.next < self.desk.wanted.load(Ordering::SeqCst)
            && self.queue.submit(cx, Io::read(self.next, 0, 1, span)).is_ok()
        {
            self.next += 1;
        }
        self.queue.kick(cx);
        self.queue.poll(cx, &mut self.done);
        self.desk.ready.store(self.queue.health() == Health::Ready, Ordering::SeqCst);
        let busy = !self.done.completions.is_empty();
        for completion in self.done.completions.drain(..) {
            self.report.send(completion).expect("the test listens");
        }
        if self.desk.stop.load(Ordering::SeqCst) {
            self.queue.close(cx);
            if self.queue.is_drained() {
                return Turn::Finished;
            }
        }
        if busy { Turn::Busy } else { Turn::Idle }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.desk.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        if self.next < self.desk.wanted.load(Ordering::SeqCst) && self.queue.health() == Health::Ready {
            return Armed::Busy;
        }
        self.queue.arm(cx, waits)
    }

    fn name(&self) -> &str {
        "job"
    }
}

fn spawn(device: &Arc<NvmeDevice>, host: &dyn Host) -> (Arc<Desk>, mpsc::Receiver<Completion>) {
    let desk = Arc::new(Desk {
        bell: Bell::new().unwrap(),
        wanted: AtomicU64::new(0),
        ready: AtomicBool::new(false),
        turns: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let (report, reports) = mpsc::channel();
    let (for_job, device) = (desk.clone(), device.clone());
    host.spawn(Box::new(move |cx| {
        let chunk = Arena::new(4096, false).unwrap().chunk(512).unwrap();
        let row = cx.segs.reserve(1, 1).unwrap();
        cx.segs.get_mut(row.span(0, 1))[0] = chunk.segment();
        let queue = device.open_queue(QueueConfig { depth: 8 }).unwrap();
        Box::new(Job { desk: for_job, queue, row, _chunk: chunk, done: Done::default(), next: 0, report })
    }));
    (desk, reports)
}

fn patiently(what: &str, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn queues_that_sleep_learn_of_a_loss_elsewhere() {
    let target = start(target_config(&["ram://1MiB"]));
    let config = |id| ReactorConfig { id, idle: IdlePolicy::Sleep, ..ReactorConfig::default() };
    let (admin, admin_thread) = Reactor::start(config(0)).unwrap();
    let (io, io_thread) = Reactor::start(config(1)).unwrap();
    let uri = format!("nvme-tcp://{}/{NQN}?reconnect_delay_ms=10&keep_alive_ms=1000", target.addresses()[0]);
    let device = polypath_nvmf_tcp::open(&uri.parse().unwrap(), Arc::new(admin.clone())).unwrap();
    let jobs = [spawn(&device, &io), spawn(&device, &admin), spawn(&device, &io)];
    for round in 1..=4 {
        patiently("ready queues", || jobs.iter().all(|(desk, _)| desk.ready.load(Ordering::SeqCst)));
        for (desk, reports) in &jobs {
            // A queue that has not heard of the loss yet still takes a read, and says of it what became of the way.
            loop {
                desk.wanted.fetch_add(1, Ordering::SeqCst);
                desk.bell.ring();
                match reports.recv_timeout(Duration::from_secs(20)).expect("a read must complete").status.code {
                    Code::Ok => break,
                    code => assert!(round > 1 && code == Code::PathLost, "{code:?}"),
                }
                patiently("a ready queue", || desk.ready.load(Ordering::SeqCst));
            }
        }
        let statistics = device.controller().statistics();
        assert_eq!((statistics.connects, statistics.losses), (round, round - 1));
        // Only the admin connection ends, or only one I/O connection: all queues must hear of it, asleep as they are.
        let qid = Some([0, 2, 0, 1][round as usize - 1]);
        target.control(&Command { qid, ..Command::new("reset") }).unwrap();
        patiently("the loss", || device.controller().statistics().losses == round);
    }
    patiently("ready queues", || jobs.iter().all(|(desk, _)| desk.ready.load(Ordering::SeqCst)));
    // Idle: next to no turns.
    let before = jobs[0].0.turns.load(Ordering::Relaxed);
    let start = Instant::now();
    patiently("a second", || start.elapsed() > Duration::from_secs(1));
    let turns = jobs[0].0.turns.load(Ordering::Relaxed) - before;
    assert!(turns < 100, "{turns} turns in an idle second");
    for (desk, _) in &jobs {
        desk.stop.store(true, Ordering::SeqCst);
        desk.bell.ring();
    }
    patiently("pollers that end", || io.statistics().pollers == 0 && admin.statistics().pollers == 1);
    device.close();
    patiently("the admin poller", || admin.statistics().pollers == 0);
    admin.stop();
    io.stop();
    admin_thread.join().unwrap();
    io_thread.join().unwrap();
}
