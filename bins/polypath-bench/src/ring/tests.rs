//! The front-end against back-ends: the bare one, ours as a whole, and bad ones.

use super::front_end::{FrontEnd, RingFault};
use super::memory::{Layout, RingMemory};
use super::serve::{self, ServeConfig};
use super::{DriveConfig, Kick, MAX_QD, Medium, RAM_BYTES, RingLimitConfig, RingReport, Rings, Style, drive, limit};
use polypath::{Stack, StackConfig};
use polypath_reactor::{CpuList, IdlePolicy};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

const STYLES: [Style; 4] = [
    Style { indirect: false, renew: false },
    Style { indirect: true, renew: false },
    Style { indirect: false, renew: true },
    Style { indirect: true, renew: true },
];

fn front_end(qd: u16, style: Style) -> FrontEnd {
    FrontEnd::new(RingMemory::new(qd, style, Rings::default()).unwrap(), RAM_BYTES)
}

/// A back-end in the hands of a test: takes all that is available, answers what it is told to.
struct ByHand {
    next: u16,
    used: u16,
}

impl ByHand {
    fn new() -> ByHand {
        ByHand { next: 0, used: 0 }
    }

    /// Heads made available since the last time, and the sectors that they ask for.
    fn take(&mut self, front_end: &FrontEnd) -> Vec<(u16, u64)> {
        let RingMemory { layout, .. } = front_end.memory();
        let numbers = front_end.memory().numbers();
        let mut taken = Vec::new();
        while self.next != numbers.index(layout.avail) {
            let head = numbers.half(layout.avail_entry(self.next));
            let slot = (0..front_end.memory().qd).find(|&slot| front_end.memory().head(slot) == head).unwrap();
            taken.push((head, numbers.pair(layout.request(slot)).1));
            self.next = self.next.wrapping_add(1);
        }
        taken
    }

    fn answer(&mut self, front_end: &FrontEnd, head: u16, status: Option<u8>) {
        let RingMemory { layout, qd, .. } = front_end.memory();
        let numbers = front_end.memory().numbers();
        if let (Some(status), Some(slot)) = (status, (0..*qd).find(|&slot| front_end.memory().head(slot) == head)) {
            numbers.bytes[layout.status(slot)].store(status, std::sync::atomic::Ordering::Relaxed);
        }
        numbers.put(layout.used_entry(self.used), u64::from(head));
        self.used = self.used.wrapping_add(1);
        numbers.show(layout.used, self.used);
    }
}

#[test]
fn nothing_of_the_memory_overlaps_and_all_of_it_is_aligned() {
    for qd in 1..=MAX_QD {
        for indirect in [false, true] {
            let l = Layout::new(qd, indirect, Rings::default());
            let (size, qd) = (usize::from(l.size), usize::from(qd));
            assert!(l.size.is_power_of_two() && l.size <= 1024 && size >= if indirect { qd } else { 3 * qd }, "{l:?}");
            assert!(16 * size <= l.avail && l.avail + 6 + 2 * size <= l.used, "{l:?}");
            assert!(l.used + 6 + 8 * size <= l.request(0) && l.request(qd as u16) <= l.len - 4096 * qd, "{l:?}");
            assert!(
                l.avail.is_multiple_of(2) && l.used.is_multiple_of(4) && l.used_entry(1).is_multiple_of(8),
                "{l:?}"
            );
            assert!(l.request(0).is_multiple_of(16) && l.len.is_multiple_of(4096), "{l:?}");
            let more = Layout::new(qd as u16, indirect, Rings { size: Some(1024), idle: 2 });
            let end = more.ring(2) + more.used + 6 + 8 * 1024;
            assert_eq!((more.size, more.ring(0)), (1024, 0));
            assert!(more.ring(1) >= more.request(qd as u16) && more.ring(1).is_multiple_of(128) && end <= more.len);
            assert!(more.ring(1) + more.used + 6 + 8 * 1024 <= more.ring(2), "{more:?}");
        }
    }
}

/// In any order; each is made available again once, and at the end no more.
#[test]
fn every_request_that_ends_is_made_available_again_until_the_ring_is_to_run_dry() {
    // The indices go round once.
    for (style, rounds) in STYLES.into_iter().zip([70_000, 100, 100, 100]) {
        let (mut fe, mut be) = (front_end(5, style), ByHand::new());
        fe.start();
        let mut open = be.take(&fe);
        let mut sectors = BTreeSet::new();
        for _ in 0..rounds {
            assert_eq!(open.len(), 5);
            assert!(open.iter().all(|&(_, sector)| sector % 8 == 0 && sector < RAM_BYTES / 512));
            sectors.extend(open.iter().map(|&(_, sector)| sector));
            let (head, _) = open.swap_remove(open.len() / 2);
            be.answer(&fe, head, Some(0));
            let pass = fe.pass().unwrap();
            assert_eq!((pass.ended, pass.errors, fe.outstanding()), (1, 0, 5));
            open.extend(be.take(&fe));
        }
        assert!(sectors.len() > rounds / 7, "all over the disk");
        fe.drain();
        for (left, (head, _)) in open.into_iter().enumerate().map(|(n, request)| (4 - n, request)) {
            be.answer(&fe, head, Some(0));
            assert_eq!((fe.pass().unwrap().ended, usize::from(fe.outstanding())), (1, left));
        }
        assert!(be.take(&fe).is_empty(), "nothing more");
    }
}

#[test]
fn statuses_other_than_ok_are_errors_and_so_is_none() {
    let (mut fe, mut be) = (front_end(1, Style::default()), ByHand::new());
    fe.start();
    for (status, errors) in [(None, 1), (Some(0), 0), (Some(1), 1), (Some(2), 1), (Some(0), 0)] {
        be.answer(&fe, 0, status);
        assert_eq!(fe.pass().unwrap().errors, errors, "{status:?}");
    }
    // What is not written shows what was there before: that is noticed now and then, or always if all is written anew.
    for (style, most) in [(Style::default(), 128), (Style { renew: true, ..Style::default() }, 1)] {
        let (mut fe, mut be) = (front_end(1, style), ByHand::new());
        fe.start();
        be.answer(&fe, 0, Some(0));
        assert_eq!(fe.pass().unwrap().errors, 0);
        let noticed = (0..most).any(|_| {
            be.answer(&fe, 0, None);
            fe.pass().unwrap().errors > 0
        });
        assert!(noticed, "{style:?}");
    }
}

#[test]
fn what_no_back_end_may_say_ends_it() {
    let (mut fe, mut be) = (front_end(2, Style::default()), ByHand::new());
    fe.start();
    be.answer(&fe, 0, Some(0));
    be.answer(&fe, 1, Some(0));
    // One at a time at this depth; descriptor 1 is the second of a chain.
    assert_eq!(fe.pass().unwrap().ended, 1);
    assert_eq!(fe.pass(), Err(RingFault::NotOpen(1)));
    for head in [9, u16::MAX] {
        let (mut fe, mut be) = (front_end(2, Style::default()), ByHand::new());
        fe.start();
        be.answer(&fe, head, Some(0));
        assert_eq!(fe.pass(), Err(RingFault::NotOpen(head.into())));
    }
    let (mut fe, mut be) = (front_end(2, Style::default()), ByHand::new());
    fe.start();
    (0..3).for_each(|_| be.answer(&fe, 0, Some(0)));
    assert_eq!(fe.pass(), Err(RingFault::TooMany(3, 2)));
    // Twice the same, while the ring runs dry.
    let (mut fe, mut be) = (front_end(2, Style::default()), ByHand::new());
    fe.start();
    fe.drain();
    be.answer(&fe, 0, Some(0));
    be.answer(&fe, 0, Some(0));
    assert_eq!(fe.pass().unwrap().ended, 1);
    assert_eq!(fe.pass(), Err(RingFault::NotOpen(0)));
}

#[test]
fn one_request_at_a_time_is_timed() {
    let (mut fe, mut be) = (front_end(1, Style::default()), ByHand::new());
    fe.start();
    let mut timed = 0;
    for _ in 0..1000 {
        be.answer(&fe, 0, Some(0));
        timed += usize::from(fe.pass().unwrap().latency.is_some());
    }
    assert!((12..=16).contains(&timed), "one of 64: {timed}");
}

const TIME: Duration = Duration::from_millis(10);
const RAMP: Duration = Duration::from_millis(2);

/// On a machine that others use, a while may pass without any.
fn good(report: &RingReport) {
    assert!(report.is_good() && report.total_ios >= report.ios.max(report.qd.into()), "{report:?}");
    assert!((report.iops * report.seconds - report.ios as f64).abs() <= 0.05 * report.ios as f64 + 1.0, "{report:?}");
}

#[test]
fn the_bare_back_end_answers_every_request() {
    for (qd, medium, style) in [
        (1, Medium::Null, STYLES[0]),
        (3, Medium::Ram, STYLES[1]),
        (32, Medium::Null, STYLES[2]),
        (MAX_QD, Medium::Ram, STYLES[3]),
    ] {
        let config = RingLimitConfig { qd, time: TIME, ramp: RAMP, cpus: None, medium, style };
        // That both count the same is looked at there.
        let report = limit(&config).unwrap();
        good(&report);
        assert_eq!((report.medium, report.indirect, report.renew), (Some(medium), style.indirect, style.renew));
        assert_eq!((report.cpus.len(), report.core_taken_pct.len()), (2, 2));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let config =
        |qd, time| RingLimitConfig { qd, time, ramp: RAMP, cpus: None, medium: Medium::Null, style: STYLES[0] };
    for qd in [0, MAX_QD + 1] {
        let error = limit(&config(qd, TIME)).unwrap_err().to_string();
        assert!(error.contains(&format!("--qd {qd}: expected 1 to {MAX_QD}")), "{error}");
    }
    assert!(limit(&config(1, Duration::ZERO)).unwrap_err().to_string().contains("nothing to measure"));
    let nowhere = RingLimitConfig { cpus: Some(CpuList(vec![0, 1023])), ..config(1, TIME) };
    assert!(limit(&nowhere).unwrap_err().to_string().contains("core 1023"));
    let nowhere = RingLimitConfig { cpus: Some(CpuList(vec![1023, 0])), ..config(1, TIME) };
    assert!(limit(&nowhere).unwrap_err().to_string().contains("core 1023"));
}

fn config(socket: PathBuf, qd: u16, style: Style) -> DriveConfig {
    DriveConfig { qd, time: TIME, ramp: RAMP, style, ..DriveConfig::new(socket) }
}

#[test]
fn our_back_end_answers_every_request_once() {
    let dir = tempfile::tempdir().unwrap();
    for (medium, group, idle) in [
        (Medium::Null, true, IdlePolicy::Poll),
        (Medium::Ram, false, IdlePolicy::default()),
        (Medium::Null, false, IdlePolicy::Sleep),
    ] {
        let stack = Stack::start(StackConfig { idle, ..StackConfig::default() }).unwrap();
        let socket = dir.path().join("socket");
        let serving = ServeConfig { socket: socket.clone(), medium, group, cpu: 0, idle };
        let mut server = serve::start(&stack, &serving).unwrap();
        let mut requests = 0;
        for (n, style) in STYLES.into_iter().enumerate() {
            let kick = if idle == IdlePolicy::Sleep { Kick::Always } else { Kick::Seldom };
            let report = drive(&DriveConfig { kick, ..config(socket.clone(), [1, 7, 128, MAX_QD][n], style) }).unwrap();
            good(&report);
            assert!(report.event_idx && report.core_taken_pct.len() == 1, "{report:?}");
            requests += report.total_ios;
        }
        let said = server.statistics()[0];
        assert_eq!((said.requests, said.completions), (requests, requests), "{said:?}");
        assert_eq!((said.bad_requests, said.ring_errors), (0, 0), "{said:?}");
        server.stop().unwrap();
    }
}

/// A ring larger than its requests need, with others beside it, and a back-end that sleeps and is woken only when it asks for it.
#[test]
fn rings_beside_the_one_in_use_are_set_up_and_kicks_come_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let stack = Stack::start(StackConfig { idle: IdlePolicy::Sleep, ..StackConfig::default() }).unwrap();
    let device = stack.open_device(&"null://64GiB".parse().unwrap()).unwrap();
    let socket = dir.path().join("s");
    let config = polypath::vhost_user_blk::ServerConfig::new("rings", &socket, device, stack.hosts());
    let config = polypath::vhost_user_blk::ServerConfig { num_queues: 3, queue_size: 1024, ..config };
    let mut server = polypath::vhost_user_blk::Server::start(config).unwrap();
    let rings = Rings { size: Some(1024), idle: 2 };
    let idle = super::IdleMemory::new(3, 1024).unwrap();
    for (qd, yields) in [(1, false), (MAX_QD, true)] {
        let guest = super::IdleGuest::connect(&socket, &idle).unwrap();
        assert!(server.statistics().iter().all(|ring| ring.running), "{:?}", server.statistics());
        drop(guest);
        let before = server.statistics()[0].requests;
        let config = DriveConfig { kick: Kick::Asked, rings, yields, ..config_of(socket.clone(), qd) };
        let report = drive(&config).unwrap();
        good(&report);
        assert_eq!((report.ring_size, server.statistics()[0].requests - before), (1024, report.total_ios));
    }
    assert!(server.statistics()[1..].iter().all(|ring| ring.requests == 0));
    server.stop().unwrap();
    for (size, idle) in [(Some(16), 0), (Some(24), 0), (Some(2048), 1)] {
        assert!(RingMemory::new(8, STYLES[0], Rings { size, idle }).is_err(), "{size:?}");
    }
}

fn config_of(socket: PathBuf, qd: u16) -> DriveConfig {
    config(socket, qd, STYLES[0])
}

#[test]
fn nobody_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody");
    let error = format!("{:#}", drive(&config(socket.clone(), 1, STYLES[0])).unwrap_err());
    assert!(error.contains("is a back-end listening there?") && error.contains("nobody"), "{error}");
    drop(UnixListener::bind(&socket).unwrap());
    let error = format!("{:#}", drive(&config(socket, 1, STYLES[0])).unwrap_err());
    assert!(error.contains("Connection refused"), "{error}");
}

/// Answers GET_FEATURES with `features`, GET_PROTOCOL_FEATURES with `protocol`, GET_CONFIG with `sectors`, and looks at no ring.
fn offering(mut stream: &UnixStream, features: u64, protocol: u64, sectors: Option<u64>) {
    let mut header = [0; 12];
    while stream.read_exact(&mut header).is_ok() {
        let [request, _, len] = [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
        stream.read_exact(&mut vec![0; len as usize]).unwrap();
        let payload = match (request, sectors) {
            (1, _) => features.to_ne_bytes().to_vec(),
            (15, _) => protocol.to_ne_bytes().to_vec(),
            (24, Some(sectors)) => [[0, 8, 0].map(u32::to_ne_bytes).concat(), sectors.to_le_bytes().to_vec()].concat(),
            (24, None) => return,
            _ => continue,
        };
        let answer = [[request, 5, payload.len() as u32].map(u32::to_ne_bytes).concat(), payload].concat();
        // Who asked may have had enough.
        let _ = stream.write_all(&answer);
    }
}

#[test]
fn a_back_end_without_what_is_needed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let (both, config_space) = (1 << 32 | 1 << 30, 1 << 9);
    for (features, protocol, sectors, style, word) in [
        (1 << 30, config_space, None, STYLES[0], "virtio 1"),
        (1 << 32, config_space, None, STYLES[0], "protocol features"),
        (both, config_space, None, STYLES[1], "indirect descriptors"),
        (both, 1 << 3, None, STYLES[0], "its configuration"),
        (both, config_space, None, STYLES[0], "GET_CONFIG"),
        (both, config_space, Some(7), STYLES[0], "3584 bytes"),
    ] {
        std::thread::scope(|scope| {
            let bad = scope.spawn(|| offering(&listener.accept().unwrap().0, features, protocol, sectors));
            let error = format!("{:#}", drive(&config(socket.clone(), 1, style)).unwrap_err());
            assert!(error.contains(word), "{error}");
            bad.join().unwrap();
        });
    }
}

/// It is waited for once the time is up, and left then.
#[test]
fn requests_that_never_come_back_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::scope(|scope| {
        let silent = scope.spawn(|| offering(&listener.accept().unwrap().0, 1 << 32 | 1 << 30, 1 << 9, Some(1 << 20)));
        let report = drive(&config(socket, 3, STYLES[0])).unwrap();
        assert_eq!((report.unanswered, report.ios, report.total_ios, report.errors), (3, 0, 0, 0), "{report:?}");
        assert!(!report.is_good() && !report.event_idx);
        silent.join().unwrap();
    });
}

/// What `drive` says, unless it never comes back. It is told the end of that by nobody: it must find it by itself.
fn driven_within(limit: Duration, socket: PathBuf) -> String {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(drive(&config(socket, 1, STYLES[0])).map(drop)));
    let said = told.recv_timeout(limit).expect("it must end by itself");
    format!("{:#}", said.expect_err("there is nothing to measure"))
}

/// A back-end that hangs accepts nobody, and at some time there is no more room to wait for it.
#[test]
fn a_back_end_that_accepts_nobody_is_not_waited_for_for_ever() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hangs");
    let address = SocketAddrUnix::new(&path).unwrap();
    let socket = || socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    let listener = socket();
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let waiting: Vec<_> = (0..64).map(|_| socket()).take_while(|one| connect(one, &address).is_ok()).collect();
    assert!(waiting.len() < 64, "the kernel keeps a bound");
    let said = driven_within(Duration::from_secs(30), path);
    assert!(said.contains("hangs") && said.contains("is a back-end listening there?"), "{said}");
}

/// As slow as it can be without being silent.
#[test]
fn a_back_end_that_answers_drop_by_drop_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("drips");
    let listener = UnixListener::bind(&path).unwrap();
    let drips = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.read_exact(&mut [0; 12]).unwrap();
        let answer = [[1u32, 5, 8].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat();
        for byte in answer {
            std::thread::sleep(Duration::from_millis(1500));
            if stream.write_all(&[byte]).is_err() {
                return;
            }
        }
        panic!("it was waited for to the end");
    });
    let said = driven_within(Duration::from_secs(60), path);
    assert!(said.contains("drips") && said.contains("GET_FEATURES"), "{said}");
    drips.join().unwrap();
}
