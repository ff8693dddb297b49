//! One vring poller against a modelled guest and a modelled disk, turn by turn on one thread.

mod ahead;
mod batches;
#[path = "../../tests/common/guest.rs"]
#[allow(dead_code, unreachable_pub)]
mod guest;
mod holds;
mod hostile;
mod inflight;
mod left_over;
mod lifecycle;
mod looks;
mod migration;
mod parts;
mod plain;
#[path = "../../tests/common/ram.rs"]
#[allow(dead_code, unreachable_pub)]
mod ram;
mod requests;
mod room;

use crate::guest::GuestMemory;
use crate::mailbox::{Answer, Command, MailboxSender, Start, mailbox};
use crate::notify::{Kick, Notifier};
use crate::poller::{VringConfig, VringPoller};
use crate::ring::{RingSpec, Vring};
use crate::stats::Counters;
use guest::{Driver, GuestRam, Piece, header};
use polypath_block::{Armed, Cx, Host, MakePoller, Poller, SegTable, Time, Turn, Waits};
use polypath_memory::Window;
use polypath_net::{Closer, Peer, Theirs};
use ram::RamDevice;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// A reactor that is never asked for anything: the test gives the turns.
struct NoHost;

impl Host for NoHost {
    fn spawn(&self, _make: MakePoller) {
        panic!("the test makes its pollers itself");
    }
    fn wake(&self) {}
    fn reactor(&self) -> u16 {
        0
    }
    fn now(&self) -> polypath_block::Time {
        polypath_block::Time::ZERO
    }
}

/// Guest memory of every test: two regions that touch and one apart; rings at the start of the first.
const LAYOUT: [(u64, u64); 3] = [(0x10_0000, 0x8_0000), (0x18_0000, 0x8_0000), (0x100_0000, 0x8_0000)];
/// Where test data may go in each region.
const RING_GPA: u64 = 0x10_0000;
const DATA_GPA: u64 = 0x11_0000;

struct Rig {
    ram: GuestRam,
    memory: Arc<GuestMemory>,
    driver: Driver,
    poller: VringPoller,
    config: VringConfig,
    mailbox: MailboxSender,
    counters: Arc<Counters>,
    segs: SegTable,
    device: Arc<RamDevice>,
    kick: OwnedFd,
    call: OwnedFd,
    err: OwnedFd,
    write_through: Arc<AtomicBool>,
    /// Where the ring records what is in flight.
    record: Option<Window>,
    now: Time,
}

impl Rig {
    /// A running ring of `size` descriptors over `device`.
    fn new(device: Arc<RamDevice>, size: u16, event_idx: bool) -> Rig {
        Rig::of(false, device, size, event_idx)
    }

    /// As [`Rig::new`], split or packed.
    fn of(packed: bool, device: Arc<RamDevice>, size: u16, event_idx: bool) -> Rig {
        let mut rig = Rig::stopped(device, size, event_idx, false);
        if packed {
            rig.driver = Driver::packed(&rig.ram, RING_GPA, size, event_idx);
        }
        rig.start(rig.driver.base());
        rig
    }

    fn stopped(device: Arc<RamDevice>, size: u16, event_idx: bool, read_only: bool) -> Rig {
        let ram = GuestRam::new(&LAYOUT);
        let memory = ram
            .regions
            .iter()
            .fold(GuestMemory::new(), |memory, r| memory.with(r.gpa, r.uaddr, r.region.clone()).unwrap());
        let driver = Driver::new(&ram, RING_GPA, size, event_idx);
        let (sender, receiver) = mailbox(Arc::new(NoHost));
        let counters = Arc::new(Counters::default());
        let block_size = device.state.lock().unwrap().info.geometry.block_size;
        let config = VringConfig {
            name: "test/0".into(),
            depth: size,
            width: 32,
            block_size,
            read_only,
            serial: *b"a serial of 20 bytes",
            down_timeout: Duration::from_secs(1),
            changes_from: Default::default(),
            owed: Default::default(),
        };
        let poller = VringPoller::new(config.clone(), device.clone(), receiver, counters.clone());
        let fd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Rig {
            ram,
            memory: Arc::new(memory),
            driver,
            poller,
            config,
            mailbox: sender,
            counters,
            segs: SegTable::new(1 << 20),
            device,
            kick: fd(),
            call: fd(),
            err: fd(),
            write_through: Arc::new(AtomicBool::new(false)),
            record: None,
            now: Time::ZERO,
        }
    }

    fn ring(&self, base: u32) -> Vring {
        Vring::new(self.spec(base), self.memory.clone()).unwrap()
    }

    fn spec(&self, base: u32) -> RingSpec {
        let driver = &self.driver;
        RingSpec {
            size: driver.size,
            packed: driver.is_packed(),
            desc: driver.desc.clone(),
            avail: driver.avail.clone(),
            used: driver.used.clone(),
            base,
            event_idx: driver.event_idx,
            indirect: true,
            written: driver.written(),
            record: self.record.clone(),
        }
    }

    /// Starts the ring at `base`, where it must begin.
    fn start(&mut self, base: u32) {
        assert_eq!(self.start_anywhere(base), base);
    }

    /// Starts the ring at `base`; returns where it begins.
    fn start_anywhere(&mut self, base: u32) -> u32 {
        let dup = |fd: &OwnedFd| Theirs::new(fd.try_clone().unwrap(), Closer::default());
        let start = Start {
            ring: self.ring(base),
            kick: Some(Arc::new(Kick::new(dup(&self.kick), Peer::new(1)))),
            call: Some(Arc::new(Notifier::new(dup(&self.call), Peer::new(1)))),
            err: Some(Arc::new(Notifier::new(dup(&self.err), Peer::new(1)))),
            write_through: self.write_through.clone(),
            orphaned: false,
        };
        let answer = self.mailbox.send(Command::Start(Box::new(start))).unwrap();
        self.turn();
        answer.try_recv().unwrap().unwrap()
    }

    fn turn(&mut self) -> Turn {
        self.now = self.now.after(Duration::from_micros(100));
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        self.poller.poll(&mut cx)
    }

    fn turns(&mut self, n: usize) {
        (0..n).for_each(|_| _ = self.turn());
    }

    /// `n` turns, each of them `span` later.
    fn turns_of(&mut self, span: Duration, n: usize) {
        for _ in 0..n {
            self.turn();
            self.now = self.now.after(span);
        }
    }

    fn arm(&mut self, waits: &mut Waits) -> Armed {
        let mut cx = Cx { now: self.now, segs: &mut self.segs, reactor: 0 };
        self.poller.arm(&mut cx, waits)
    }

    /// Sends `command` and gives turns until it is answered.
    fn command(&mut self, command: Command) -> Answer {
        let answer: Receiver<Answer> = self.mailbox.send(command).unwrap();
        for _ in 0..10_000 {
            self.turn();
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
        }
        panic!("no answer to a command");
    }

    /// Submits one request in plain framing (header, data, status) and runs it. Status and used length.
    fn run(&mut self, kind: u32, sector: u64, data: &mut [u8], device_writes: bool) -> (u8, u32) {
        let (h, d) = (DATA_GPA, DATA_GPA + 0x100);
        let s = d + data.len() as u64;
        self.ram.write(h, &header(kind, sector));
        self.ram.write(d, data);
        self.ram.write(s, &[0xee]);
        let mut pieces = vec![Piece { addr: h, len: 16, write: false }];
        if !data.is_empty() {
            pieces.push(Piece { addr: d, len: data.len() as u32, write: device_writes });
        }
        pieces.push(Piece { addr: s, len: 1, write: true });
        let used = self.run_pieces(&pieces).expect("the request must complete");
        data.copy_from_slice(&self.ram.read(d, data.len()));
        (self.ram.read(s, 1)[0], used)
    }

    /// Runs one chain. `None` if it is not given back.
    fn run_pieces(&mut self, pieces: &[Piece]) -> Option<u32> {
        let head = self.driver.add(pieces).expect("room in the ring");
        self.driver.publish();
        self.wait_for(head)
    }

    fn wait_for(&mut self, head: u16) -> Option<u32> {
        for _ in 0..1000 {
            self.turn();
            if let Some((got, len)) = self.driver.pop() {
                assert_eq!(got, head);
                return Some(len);
            }
        }
        None
    }

    fn rang(fd: &OwnedFd) -> bool {
        rustix::io::read(fd, &mut [0; 8]).is_ok()
    }
}
