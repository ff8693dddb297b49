//! What is lost, how fast that is noticed, and what is known of every request afterwards.

use crate::common::*;
use polypath_block::{Code, Device, DeviceState, Done, Fate, Health, Io, Proof, QueueConfig, Scope, Waits};
use polypath_net::{Counters, Dialer, Gather, Received, Scatter, TcpDialer, Transport};
use polypath_nvmf_tcp::{Controller, ControllerConfig};
use polypath_target::{Command, TargetHandle};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A keep-alive timeout of 200 ms and a quiesce time of 50 ms make a fence of 450 ms.
const SHORT: &str = "keep_alive_ms=200&silence_timeout_ms=300&reconnect_delay_ms=20&connect_timeout_ms=500";
/// Where nothing is lost: a machine that stalls for some seconds does not make it look so.
const PATIENT: &str = "keep_alive_ms=30000&silence_timeout_ms=20000&connect_timeout_ms=20000";
const FENCE: Proof = Proof::KeepAliveBound { kato_ms: 200, multiple: 2, cqt_ms: 50 };

fn rig(target: &TargetHandle, options: &str) -> Rig {
    Rig::new(&World::uri(target, &format!("{SHORT}&{options}")), 32)
}

/// Reads and writes that the target never answers, then whatever `break_it` does.
fn lose_with(target: &TargetHandle, rig: &mut Rig, cause: Code, break_it: impl FnOnce(&TargetHandle)) {
    target.control(&Command { op: Some("read".into()), ..Command::new("lose") }).unwrap();
    target.control(&Command { op: Some("write".into()), ..Command::new("lose") }).unwrap();
    let (span, _) = rig.world.memory(4096, 5);
    for tag in 0..8 {
        rig.submit(Io::read(tag, 0, 8, span));
        rig.submit(Io::write(100 + tag, 8 * tag, 8, span));
    }
    for _ in 0..50 {
        rig.turn();
    }
    break_it(target);
    rig.wait("all to be suspect or complete", |rig| (rig.suspects.len() + rig.completions.len() == 16).then_some(()));
    let lost_at = rig.suspects[0].1;
    for (c, _) in rig.completions.drain(..) {
        assert!(c.tag < 8, "a write must not complete before it is quiet: {c:?}");
        assert_eq!((c.status.code, c.proof), (cause, Proof::SocketClosed));
    }
    for (s, _) in &rig.suspects {
        assert_eq!((s.fate, s.cause, s.fence.proof), (Fate::Unknown, cause, FENCE));
        assert_eq!(s.fence.within, Duration::from_millis(450));
    }
    assert_eq!(rig.suspects.len(), 8);
    target.control(&Command::new("clear")).unwrap();
    rig.wait("quiet", |rig| (rig.completions.len() == 8).then_some(()));
    for (c, at) in rig.completions.drain(..) {
        assert_eq!((c.status.code, c.status.scope(), c.proof), (cause, Scope::Path, FENCE));
        let waited = at.since(lost_at);
        assert!(waited >= Duration::from_millis(450), "quiet after only {waited:?}");
    }
    rig.suspects.clear();
    rig.wait_ready();
    assert_eq!(rig.run(Io::read(77, 0, 8, span)).status.code, Code::Ok, "it must work again");
    assert!(rig.done.is_empty() && rig.completions.is_empty());
}

#[test]
fn a_reset_is_noticed_and_survived() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = rig(&target, "");
    lose_with(&target, &mut rig, Code::PathLost, |t| t.reset(0).unwrap());
    assert_eq!(rig.device.controller().statistics().losses, 1);
}

#[test]
fn an_end_of_one_io_connection_ends_the_association() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = rig(&target, "");
    lose_with(&target, &mut rig, Code::PathLost, |t| {
        t.control(&Command { qid: Some(1), ..Command::new("fin") }).unwrap();
    });
    assert_eq!(rig.device.controller().statistics().losses, 1);
}

#[test]
fn an_end_of_the_admin_connection_ends_the_io_queues() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = rig(&target, "");
    lose_with(&target, &mut rig, Code::PathLost, |t| {
        t.control(&Command { qid: Some(0), ..Command::new("fin") }).unwrap();
    });
}

#[test]
fn silence_is_noticed_in_its_time() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = rig(&target, "");
    let before = std::time::Instant::now();
    let mut noticed = Duration::ZERO;
    target.drop_silently(0).unwrap();
    let (span, _) = rig.world.memory(4096, 5);
    rig.submit(Io::read(1, 0, 8, span));
    rig.submit(Io::write(2, 0, 8, span));
    let mut stalled = false;
    rig.wait("the loss", |rig| {
        stalled |= rig.queue.health() == Health::Stalled;
        noticed = before.elapsed();
        (rig.completions.len() + rig.suspects.len() == 2).then_some(())
    });
    assert!(stalled, "a silent queue must say so before it is given up");
    assert!((300..2000).contains(&(noticed.as_millis() as u64)), "noticed after {noticed:?}");
    assert_eq!(rig.completions[0].0.status.code, Code::PathTimeout);
    assert_eq!(rig.suspects[0].0.cause, Code::PathTimeout);
    let (cause, reason) = rig.wait_down();
    assert_eq!(cause, Code::PathTimeout);
    assert!(reason.contains("next attempt in"), "{reason}");
    target.restore(0).unwrap();
    rig.wait_ready();
    assert_eq!(rig.wait_completion(2).proof, FENCE);
    assert_eq!(rig.run(Io::read(3, 0, 8, span)).status.code, Code::Ok);
}

/// Dials as usual; on command the connections of I/O queues are cut, and the kernel may say so.
#[derive(Default)]
struct Cutter {
    dialled: AtomicUsize,
    cut: Arc<AtomicBool>,
    kernel_knows: Arc<AtomicBool>,
}

struct Cuttable {
    inner: Box<dyn Transport>,
    cut: Arc<AtomicBool>,
    kernel_knows: Arc<AtomicBool>,
}

impl Dialer for Cutter {
    fn dial(&self, address: SocketAddr) -> io::Result<Box<dyn Transport>> {
        let inner = TcpDialer::default().dial(address)?;
        Ok(match self.dialled.fetch_add(1, Ordering::SeqCst) {
            1 => Box::new(Cuttable { inner, cut: self.cut.clone(), kernel_knows: self.kernel_knows.clone() }),
            _ => inner,
        })
    }
}

impl Transport for Cuttable {
    fn poll_connected(&mut self) -> io::Result<bool> {
        self.inner.poll_connected()
    }
    fn receive(&mut self, into: &mut Scatter<'_>) -> io::Result<Received> {
        if self.cut.load(Ordering::SeqCst) { Ok(Received::Nothing) } else { self.inner.receive(into) }
    }
    fn send(&mut self, from: &Gather<'_>) -> io::Result<usize> {
        self.inner.send(from)
    }
    fn arm(&self, waits: &mut Waits, sending: bool) {
        self.inner.arm(waits, sending);
    }
    fn unacknowledged(&self) -> Option<Duration> {
        self.kernel_knows.load(Ordering::SeqCst).then_some(Duration::from_secs(1))
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
    fn abort(&mut self) {
        self.inner.abort();
    }
}

#[test]
fn an_io_connection_that_is_cut_alone_is_left_and_a_slow_one_is_not() {
    let target = start(target_config(&["ram://1MiB"]));
    let dialer = Arc::new(Cutter::default());
    let uri = World::uri(&target, &format!("{SHORT}&io_timeout_ms=20000"));
    let config =
        ControllerConfig { dialer: dialer.clone(), ..ControllerConfig::from_uri(&uri.parse().unwrap()).unwrap() };
    let world = World::new();
    let device = Controller::start(config, world.host.clone()).device();
    let queue = device.open_queue(QueueConfig { depth: 8 }).unwrap();
    let mut rig = Rig { world, device, queue, done: Done::default(), completions: vec![], suspects: vec![] };
    rig.wait_ready();
    let (span, _) = rig.world.memory(4096, 5);
    dialer.cut.store(true, Ordering::SeqCst);
    rig.submit(Io::read(1, 0, 8, span));
    let start = now();
    rig.wait("a silence of many times its limit", |_| (now().since(start) > Duration::from_millis(1500)).then_some(()));
    assert_eq!((rig.completions.len(), rig.queue.health()), (0, Health::Stalled), "it may be the medium");
    assert_eq!(rig.device.controller().statistics().losses, 0);
    dialer.kernel_knows.store(true, Ordering::SeqCst);
    let start = now();
    assert_eq!(rig.wait_completion(1).status.code, Code::PathTimeout);
    assert!(now().since(start) < Duration::from_secs(10), "it is not told by the time limit of a command");
    assert_eq!(rig.device.controller().statistics().aborts, 0);
    rig.wait_ready();
    assert_eq!(rig.run(Io::read(2, 0, 8, span)).status.code, Code::Ok);
}

#[test]
fn silence_of_an_idle_way_is_noticed_by_keep_alive() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = rig(&target, "");
    target.drop_silently(0).unwrap();
    assert_eq!(rig.wait_down().0, Code::PathTimeout);
    target.restore(0).unwrap();
    rig.wait_ready();
}

#[test]
fn a_command_that_takes_too_long_is_aborted_and_the_way_lives_on() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = Rig::new(&World::uri(&target, &format!("{PATIENT}&io_timeout_ms=4000")), 32);
    let (span, _) = rig.world.memory(4096, 5);
    let delay = Command { op: Some("write".into()), ms: Some(20_000), count: Some(1), ..Command::new("delay") };
    target.control(&delay).unwrap();
    rig.submit(Io::write(1, 0, 8, span));
    let mut reads = 100;
    while !rig.completions.iter().any(|(c, _)| c.tag == 1) {
        reads += 1;
        rig.submit(Io::read(reads, 0, 8, span));
        assert_eq!(rig.wait_completion(reads).status.code, Code::Ok);
    }
    let write = rig.wait_completion(1);
    assert_eq!(
        (write.status.code, write.status.scope(), write.proof),
        (Code::PathTimeout, Scope::Path, Proof::Answered)
    );
    let statistics = rig.device.controller().statistics();
    assert_eq!((statistics.aborts, statistics.losses), (1, 0));
}

#[test]
fn the_time_limit_is_that_of_a_command_and_not_of_a_request_of_many() {
    let target = start(target_config(&["ram://8MiB"]));
    let mut rig = Rig::new(&World::uri(&target, &format!("{PATIENT}&io_timeout_ms=4000&queue_depth=2")), 32);
    let (span, _) = rig.world.memory(2 << 20, 5);
    target.control(&Command { op: Some("write".into()), ms: Some(600), ..Command::new("delay") }).unwrap();
    // Sixteen commands, two at a time.
    assert_eq!(rig.run(Io::write(1, 0, 4096, span)).status.code, Code::Ok);
    let statistics = rig.device.controller().statistics();
    assert_eq!((statistics.aborts, statistics.losses), (0, 0));
}

#[test]
fn a_command_that_can_not_be_aborted_costs_the_way() {
    let target = start(target_config(&["ram://1MiB"]));
    let mut rig = rig(&target, "io_timeout_ms=300");
    let (span, _) = rig.world.memory(4096, 5);
    target.control(&Command { op: Some("write".into()), count: Some(1), ..Command::new("lose") }).unwrap();
    rig.submit(Io::write(1, 0, 8, span));
    let write = rig.wait_completion(1);
    assert_eq!((write.status.code, write.proof), (Code::PathTimeout, FENCE));
    assert_eq!((rig.suspects.len(), rig.suspects[0].0.tag), (1, 1));
    let statistics = rig.device.controller().statistics();
    assert_eq!((statistics.aborts, statistics.losses), (1, 1));
    rig.wait_ready();
}

#[test]
fn wrong_digests_cost_the_connection_and_nothing_else() {
    let target = start(target_config(&["ram://1MiB"]));
    for digest in ["header", "data"] {
        let mut rig = rig(&target, "hdgst=1&ddgst=1");
        let (span, _) = rig.world.memory(4096, 5);
        let corrupt = Command { digest: Some(digest.into()), qid: Some(1), count: Some(1), ..Command::new("corrupt") };
        target.control(&corrupt).unwrap();
        let c = rig.run(Io::read(1, 0, 8, span));
        assert_eq!((c.status.code, c.proof), (Code::PathProtocol, Proof::SocketClosed), "{digest}");
        rig.wait_ready();
        assert_eq!(rig.run(Io::read(2, 0, 8, span)).status.code, Code::Ok);
    }
}

#[test]
fn a_target_that_comes_late_or_goes_for_good() {
    let target = start(target_config(&["ram://1MiB"]));
    target.close_listener(0).unwrap();
    let uri = World::uri(&target, &format!("{SHORT}&ctrl_loss_timeout_ms=5000"));
    let mut rig = Rig::unready(&uri, 8);
    let (cause, reason) = rig.wait_down();
    assert_eq!(cause, Code::PathLost);
    assert!(reason.contains("refused") && reason.contains("127.0.0.1"), "{reason}");
    target.open_listener(0).unwrap();
    rig.wait_ready();
    target.close_listener(0).unwrap();
    let reason = rig.wait("the end", |rig| match rig.device.state() {
        DeviceState::Gone { reason } => Some(reason),
        _ => None,
    });
    assert!(reason.contains("ctrl_loss_timeout_ms"), "{reason}");
}

#[test]
fn a_listener_that_says_nothing_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("nvme-tcp://{}/{NQN}?connect_timeout_ms=150", listener.local_addr().unwrap());
    let mut rig = Rig::unready(&uri, 8);
    let (cause, reason) = rig.wait_down();
    assert_eq!(cause, Code::PathTimeout);
    assert!(reason.contains("within 150 ms"), "{reason}");
}

/// Stands between the initiator and a target and spoils one answer on an I/O connection.
struct Spoiler {
    address: std::net::SocketAddr,
    armed: Arc<AtomicUsize>,
    /// Terminate requests (H2CTermReq, type 02h, header of 24 octets) that the initiator sent.
    terminated: Arc<AtomicUsize>,
}

/// What the spoiler makes of a lone response capsule of 24 octets.
type Spoil = fn(&mut Vec<u8>);

const SPOILS: [(&str, Spoil); 9] = [
    ("an impossible command identifier", |b| b[20..22].copy_from_slice(&[0xff, 0xff])),
    ("a stale command identifier", |b| b[21] ^= 0x40),
    ("an unknown PDU type", |b| b[0] = 0x0b),
    ("a PDU for the other direction", |b| b[0] = 0x04),
    ("a wrong header length", |b| b[2] = 25),
    ("a length of 4 GiB", |b| b[4..8].copy_from_slice(&[0xff; 4])),
    ("a length below the header", |b| b[4..8].copy_from_slice(&[1, 0, 0, 0])),
    ("the same answer twice", |b| b.extend_from_within(..)),
    ("a request for data of a flush", |b| {
        let cid = [b[20], b[21]];
        b.clear();
        b.extend_from_slice(&[0x09, 0, 24, 0, 24, 0, 0, 0, cid[0], cid[1], 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0]);
    }),
];

impl Spoiler {
    fn start(target: std::net::SocketAddr) -> Spoiler {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let armed = Arc::new(AtomicUsize::new(0));
        let terminated = Arc::new(AtomicUsize::new(0));
        let (for_thread, terms) = (armed.clone(), terminated.clone());
        std::thread::spawn(move || {
            for host in listener.incoming().flatten() {
                let Ok(target) = TcpStream::connect(target) else { return };
                let (mut up, mut down) = (host.try_clone().unwrap(), target.try_clone().unwrap());
                let (armed, terms) = (for_thread.clone(), terms.clone());
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 65536];
                    while let Ok(n @ 1..) = up.read(&mut buffer) {
                        terms.fetch_add(usize::from(buffer[0] == 0x02 && buffer[2] == 24), Ordering::SeqCst);
                        if down.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = down.shutdown(std::net::Shutdown::Both);
                });
                std::thread::spawn(move || Spoiler::back(target, host, &armed));
            }
        });
        Spoiler { address, armed, terminated }
    }

    fn back(mut target: TcpStream, mut host: TcpStream, armed: &AtomicUsize) {
        let mut buffer = vec![0; 65536];
        while let Ok(n @ 1..) = target.read(&mut buffer) {
            let mut bytes = buffer[..n].to_vec();
            // A flush on an idle I/O connection is answered by just this; the admin connection is quiet meanwhile (long keep alive).
            if n == 24 && bytes[0] == 0x05 {
                let which = armed.swap(0, Ordering::SeqCst);
                if which > 0 {
                    SPOILS[which - 1].1(&mut bytes);
                }
            }
            if host.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = host.shutdown(std::net::Shutdown::Both);
    }
}

#[test]
fn a_hostile_target_costs_its_connection_and_nothing_else() {
    let target = start(target_config(&["ram://1MiB"]));
    let spoiler = Spoiler::start(target.addresses()[0]);
    let uri = format!("nvme-tcp://{}/{NQN}?keep_alive_ms=600000&reconnect_delay_ms=5", spoiler.address);
    let mut rig = Rig::new(&uri, 8);
    // It has no turns while the other one is waited for.
    let mut honest = Rig::new(&World::uri(&target, "keep_alive_ms=600000"), 8);
    for (n, (what, _)) in SPOILS.iter().enumerate() {
        spoiler.armed.store(n + 1, Ordering::SeqCst);
        let first = rig.run(Io::flush(1));
        if first.status.is_ok() {
            // The answer was good, what came behind it was not.
            rig.wait("the loss", |rig| (rig.queue.health() == Health::Down).then_some(()));
        } else {
            assert_eq!(first.status.code, Code::PathProtocol, "{what}");
        }
        rig.wait_ready();
        assert_eq!(rig.run(Io::flush(2)).status.code, Code::Ok, "after {what}");
        assert_eq!(honest.run(Io::flush(3)).status.code, Code::Ok, "another connection during {what}");
    }
    assert_eq!(rig.device.controller().statistics().losses, SPOILS.len() as u64);
    assert_eq!(honest.device.controller().statistics().losses, 0);
    let terminated = spoiler.terminated.load(Ordering::SeqCst);
    assert_eq!(terminated, SPOILS.len(), "each fault is answered by a terminate request");
}

#[test]
fn garbage_instead_of_a_target() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let mut rig = Rig::unready(&format!("nvme-tcp://{address}/{NQN}?reconnect_delay_ms=5"), 8);
    let (cause, reason) = rig.wait_down();
    assert_eq!(cause, Code::PathProtocol, "{reason}");
}

/// Every request is accounted for exactly once, whatever breaks and when.
#[test]
fn every_request_completes_exactly_once_through_a_hundred_losses() {
    let target = start(target_config(&["ram://16MiB"]));
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64) | 1;
    println!("seed {seed}");
    let mut random = seed;
    let mut dice = |sides: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % sides
    };
    let uri =
        World::uri(&target, "keep_alive_ms=100&silence_timeout_ms=200&reconnect_delay_ms=1&queue_depth=16&hdgst=1");
    let mut rig = Rig::new(&uri, 48);
    let spans: Vec<_> = (0..4).map(|_| rig.world.memory(512 << 10, 1).0).collect();
    let mut open = std::collections::BTreeMap::new();
    let (mut tag, mut losses, mut suspects) = (0, 0, 0);
    while losses < 100 || !open.is_empty() {
        let mut cx = polypath_block::Cx { now: now(), segs: &mut rig.world.segs, reactor: 0 };
        while losses < 100 && rig.queue.health() == Health::Ready {
            tag += 1;
            let (span, lba) = (spans[dice(4) as usize], dice(1000) * 8);
            let blocks = if dice(8) == 0 { 1024 } else { 8 };
            let io = if dice(2) == 0 { Io::read(tag, lba, blocks, span) } else { Io::write(tag, lba, blocks, span) };
            if rig.queue.submit(&mut cx, io).is_err() {
                break;
            }
            assert!(open.insert(tag, (io.op, false)).is_none());
        }
        for _ in 0..dice(20) {
            rig.turn();
        }
        let mut seen = 0;
        for (suspect, _) in rig.suspects.drain(..) {
            suspects += 1;
            let (op, was) = open.get_mut(&suspect.tag).expect("a suspect must be open");
            assert!(op.changes_medium() && !std::mem::replace(was, true), "{suspect:?}");
        }
        for (c, _) in rig.completions.drain(..) {
            seen += 1;
            let (_, suspect) = open.remove(&c.tag).unwrap_or_else(|| panic!("seed {seed}: not open: {c:?}"));
            let fenced = matches!(c.proof, Proof::KeepAliveBound { .. });
            assert_eq!(suspect, fenced, "seed {seed}: {c:?}");
            assert!(c.status.is_ok() || c.status.scope() == Scope::Path, "seed {seed}: {c:?}");
        }
        if seen > 0 && losses < 100 && dice(4) == 0 {
            losses += 1;
            let cmd = if dice(2) == 0 { "reset" } else { "fin" };
            let qid = [None, Some(0), Some(1)][dice(3) as usize];
            // Nothing to break just now is fine, too.
            let _ = target.control(&Command { qid, ..Command::new(cmd) }.listener(0));
        }
    }
    assert!(suspects > 0, "no write was ever lost half-way: the test proves nothing");
}

#[test]
fn a_way_slower_than_its_keep_alive_comes_up() {
    let target = start(target_config(&["ram://1MiB"]));
    // Every command takes 150 ms: enabling the controller takes less than the keep-alive timeout, all of coming up takes more.
    target.latency(0, 150_000).unwrap();
    let mut rig =
        Rig::new(&World::uri(&target, "keep_alive_ms=1200&silence_timeout_ms=2000&connect_timeout_ms=2000"), 8);
    rig.wait_ready();
    let (span, _) = rig.world.memory(4096, 1);
    assert_eq!(rig.run(Io::read(1, 0, 8, span)).status.code, Code::Ok);
}
