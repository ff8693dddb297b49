//! Controllers that grant fewer I/O queues than are opened.

use polypath::block::{
    Armed, Cx, Device, Done, Health, Host, Io, IoQueue, Poller, QueueConfig, Scope, SegRow, Turn, Waits,
};
use polypath::multipath::PathState;
use polypath::vhost_user_blk::{Server, ServerConfig};
use polypath::{Arena, Chunk, CpuList, GroupSpec, IdlePolicy, Stack, StackConfig, wait_group_live, wait_live};
use polypath_target::{ListenerConfig, NamespaceConfig, SubsystemConfig, Target, TargetConfig, TargetHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.org.example:few-queues";
const DEPTH: u16 = 16;
const BLOCK: u32 = 4096;

fn target(listeners: usize, max_io_queues: u16) -> TargetHandle {
    Target::start(TargetConfig {
        listeners: (0..listeners).map(|_| ListenerConfig::new("127.0.0.1:0")).collect(),
        subsystems: vec![SubsystemConfig {
            nqn: NQN.into(),
            serial: None,
            namespaces: vec![NamespaceConfig::new("ram://8MiB?bs=4096")],
        }],
        max_io_queues,
        cqt_ms: 50,
        ..TargetConfig::default()
    })
    .expect("a target")
}

/// Two reactors, wherever this machine has a core for them, that sleep as soon as they may.
fn stack() -> Stack {
    let cpus =
        CpuList(if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) { vec![0, 1] } else { vec![0, 0] });
    Stack::start(StackConfig {
        cpus: Some(cpus),
        idle: IdlePolicy::Sleep,
        buffer_bytes: 8 << 20,
        ..StackConfig::default()
    })
    .unwrap()
}

fn uri(target: &TargetHandle, listener: usize) -> polypath::DiskUri {
    let port = target.port(listener);
    format!("nvme-tcp://127.0.0.1:{port}/{NQN}?ns=1&keep_alive_ms=200&reconnect_delay_ms=50").parse().unwrap()
}

#[derive(Default)]
struct Told {
    verified: AtomicUsize,
    lost: AtomicUsize,
    stop: AtomicBool,
    ended: AtomicBool,
}

/// Writes and reads back blocks of its own, each with its round.
struct Job {
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
    fn spawn(host: &dyn Host, device: Arc<dyn Device>, arena: &Arena, first: u64, lossy: bool) -> Arc<Told> {
        let (told, arena) = (Arc::<Told>::default(), arena.clone());
        let mine = told.clone();
        host.spawn(Box::new(move |cx| {
            let rows = cx.segs.reserve(DEPTH.into(), 1).unwrap();
            let buffers: Vec<Chunk> = (0..DEPTH).map(|_| arena.chunk(BLOCK).unwrap()).collect();
            for (n, chunk) in buffers.iter().enumerate() {
                cx.segs.get_mut(rows.span(n as u32, 1))[0] = chunk.segment();
            }
            let queue = device.open_queue(QueueConfig { depth: DEPTH }).expect("a queue or a share of one");
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

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Four jobs over the reactors of `stack`, in turns.
fn jobs(stack: &Stack, device: &Arc<dyn Device>, lossy: bool) -> Vec<Arc<Told>> {
    let (hosts, arena) = (stack.hosts(), stack.arena().unwrap());
    (0..4).map(|n| Job::spawn(&*hosts[n % hosts.len()], device.clone(), &arena, n as u64 * 64, lossy)).collect()
}

/// Each of them has verified `more` blocks more.
fn progress(what: &str, told: &[Arc<Told>], more: usize) {
    let before: Vec<_> = told.iter().map(|t| t.verified.load(Ordering::SeqCst)).collect();
    wait(what, || told.iter().zip(&before).all(|(t, b)| t.verified.load(Ordering::SeqCst) >= b + more));
}

fn end(stack: &Stack, device: &dyn Device, told: &[Arc<Told>]) {
    told.iter().for_each(|t| t.stop.store(true, Ordering::SeqCst));
    stack.hosts().iter().for_each(|h| h.wake());
    wait("jobs that end", || told.iter().all(|t| t.ended.load(Ordering::SeqCst)));
    device.close();
    assert!(stack.stop(Duration::from_secs(10)), "something was left behind: {:?}", stack.statistics());
}

#[test]
fn four_queues_over_two_reactors_share_the_one_that_is_granted() {
    let (target, stack) = (target(1, 1), stack());
    let device = stack.open_device(&uri(&target, 0)).unwrap();
    assert_eq!(wait_live(&*device, Duration::from_secs(5)).unwrap().max_queues, 1);
    let told = jobs(&stack, &device, true);
    progress("four jobs over one queue", &told, 200);
    // The path is lost and comes back.
    for _ in 0..3 {
        target.reset(0).unwrap();
        progress("four jobs after a loss", &told, 50);
    }
    target.close_listener(0).unwrap();
    target.reset(0).unwrap();
    wait("a path that is down", || device.state().info().is_none());
    target.open_listener(0).unwrap();
    progress("four jobs after an outage", &told, 50);
    // Any one job may have had its answers just before each loss; that all had them four times is no loss at all.
    let lost: Vec<_> = told.iter().map(|t| t.lost.load(Ordering::SeqCst)).collect();
    println!("requests lost with the path, by job: {lost:?}");
    assert!(lost.iter().sum::<usize>() > 0, "nobody noticed the losses");
    end(&stack, &*device, &told);
    target.stop();
}

#[test]
fn queues_opened_before_it_was_known_how_few_are_granted_come_together() {
    let (target, stack) = (target(1, 1), stack());
    target.close_listener(0).unwrap();
    let device = stack.open_device(&uri(&target, 0)).unwrap();
    // Nobody has said how many there will be: each has its own.
    let told = jobs(&stack, &device, true);
    wait("pollers", || stack.statistics().iter().map(|s| s.pollers).sum::<u64>() >= 5);
    target.open_listener(0).unwrap();
    progress("four jobs over one queue", &told, 100);
    end(&stack, &*device, &told);
    target.stop();
}

#[test]
fn a_group_over_two_paths_with_one_queue_each_survives_the_loss_of_either() {
    let (target, stack) = (target(2, 1), stack());
    let group = stack.open_group(GroupSpec::new("disk", [uri(&target, 0), uri(&target, 1)])).unwrap();
    wait_group_live(&group, Duration::from_secs(5)).unwrap();
    let device: Arc<dyn Device> = group.clone();
    // Without a shared queue, two of the jobs could only wait for `no_path_timeout` and fail.
    let told = jobs(&stack, &device, false);
    progress("four jobs over two paths", &told, 200);
    for listener in [0, 1, 0] {
        target.close_listener(listener).unwrap();
        target.reset(listener).unwrap();
        progress("four jobs over the other path", &told, 100);
        target.open_listener(listener).unwrap();
        wait("both paths", || group.statistics().iter().all(|p| p.state == PathState::Usable));
        progress("four jobs over both", &told, 50);
    }
    end(&stack, &*device, &told);
    target.stop();
}

#[test]
fn a_guest_with_four_vrings_over_two_reactors_is_served_by_one_queue() {
    let (target, below, above) = (target(1, 1), stack(), stack());
    let group = below.open_group(GroupSpec::new("disk", [uri(&target, 0)])).unwrap();
    wait_group_live(&group, Duration::from_secs(5)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let mut config = ServerConfig::new("disk", &socket, group.clone(), below.hosts());
    config.num_queues = 4;
    let mut server = Server::start(config).unwrap();
    let guest = above.open_device(&format!("vhost-user-blk://{}?queues=4", socket.display()).parse().unwrap()).unwrap();
    let told = jobs(&above, &guest, false);
    progress("four vrings", &told, 200);
    target.reset(0).unwrap();
    progress("four vrings after a loss", &told, 100);
    end(&above, &*guest, &told);
    let served = server.statistics();
    assert!(served.iter().all(|q| q.requests >= 2 * 200 && q.errors == 0), "{served:?}");
    drop(guest);
    server.stop().unwrap();
    group.close();
    assert!(below.stop(Duration::from_secs(10)), "something was left behind: {:?}", below.statistics());
    target.stop();
}
