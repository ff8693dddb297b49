//! Random sequences over two queues, with an oracle that knows what was in which cache: a flush that says OK has flushed everything that was
//! acknowledged before it began, or its user was told of the loss. Nothing waits for ever, no queue spins, none sleeps beside work.

use crate::common::dice::{Dice, each_seed};
use crate::common::scripted::{Bench, info, limited};
use polypath_block::{Code, DeviceInfo, Flags, Health, Io, IoQueue, Op, Proof, SegSpan};
use std::collections::HashMap;

const SEEDS: u64 = 60;
const STEPS: u64 = 400;
/// Requests that are open at a time.
const OPEN: usize = 6;
/// Where the set-up reads, and nobody writes.
const SETUP_LBA: u64 = 998;

/// A path to the cache `domain` that takes one block at a time: every write of two blocks has two parts.
fn small(domain: &str) -> DeviceInfo {
    DeviceInfo { limits: limited(1).limits, ..info(domain) }
}

#[test]
fn a_flush_says_ok_only_of_what_is_flushed_or_was_reported() {
    each_seed(SEEDS, |seed| {
        let mut run = Run::new(seed);
        (0..STEPS).for_each(|_| run.step());
        run.finish();
    });
}

/// Something that a path took.
struct Sent {
    device: usize,
    io: Io,
    /// The cache that the path led to.
    domain: String,
    sent: u64,
    answered: Option<u64>,
}

/// A request of a user.
struct Request {
    queue: usize,
    /// The first block, of a write.
    lba: Option<u64>,
    /// How many there are: of one, it goes straight to a path; of two, it has two parts.
    blocks: u64,
    /// It leaves nothing in a cache.
    fua: bool,
    began: u64,
    ended: Option<(u64, Code)>,
}

struct Run {
    b: Bench,
    second: Box<dyn IoQueue>,
    dice: Dice,
    /// The cache that each path leads to, and whether it may still be told anything.
    domains: Vec<String>,
    present: Vec<bool>,
    /// When each cache lost its power.
    lost: HashMap<String, u64>,
    sent: Vec<Sent>,
    seen: Vec<usize>,
    requests: HashMap<u64, Request>,
    polled: usize,
    names: u64,
    next_lba: u64,
}

impl Run {
    fn new(seed: u64) -> Run {
        let domains = ["c#1", "c#1", "d#2"];
        let mut b = Bench::with_caches(&domains);
        assert_eq!(b.flush_now(), Some(Code::Ok));
        b.group.freeze();
        b.devices.iter().zip(domains).for_each(|(device, domain)| device.set_live(small(domain)));
        b.turns(2);
        let mut second = b.second_queue();
        // The tags of the two queues are told apart from here on: in parts, for what goes straight to a path takes no number.
        for _ in 0..2 * STEPS {
            b.submit_to(&mut *second, Io::read(0, SETUP_LBA, 2, SegSpan::EMPTY));
            b.devices.iter().for_each(|d| d.succeed_all());
            assert_eq!(b.turn_of(&mut *second).len(), 1);
        }
        let seen = b.devices.iter().map(|d| d.taken().len()).collect();
        Run {
            b,
            second,
            dice: Dice::new(seed),
            domains: domains.map(str::to_owned).to_vec(),
            present: vec![true; 3],
            lost: HashMap::new(),
            sent: Vec::new(),
            seen,
            requests: HashMap::new(),
            polled: 0,
            names: 10,
            next_lba: 0,
        }
    }

    fn step(&mut self) {
        self.dice.step += 1;
        match self.dice.below(100) {
            0..15 if self.next_lba < SETUP_LBA - 2 => {
                let io = self.write(0);
                self.submit(io);
            }
            15..20 if self.next_lba < SETUP_LBA - 20 => self.submit_batch(),
            55 | 70 => {
                let at = self.path();
                self.b.devices[at].touch();
            }
            0..27 => self.submit(Io::flush(0)),
            27..55 => {
                let open = self.open();
                if !open.is_empty() {
                    let (device, io) = open[self.dice.below(open.len())];
                    let succeeds = self.dice.below(8) > 0;
                    self.answer(device, io, succeeds);
                }
            }
            55..70 => self.turn(),
            70..85 => self.turn_of_second(),
            85..89 => self.lose_power(),
            89..91 => self.lead_elsewhere(),
            91..94 => {
                let health = if self.dice.below(3) == 0 { Health::Down } else { Health::Ready };
                let at = self.path();
                self.dice.note(format!("p{at} is {health:?}"));
                self.b.devices[at].set_health(health);
            }
            94..96 => {
                let room = if self.dice.below(3) == 0 { 0 } else { 8 };
                let at = self.path();
                self.b.devices[at].set_room(room);
            }
            96 => self.add_path(),
            97 => self.take_path_away(),
            98 => {
                let ms = 10 * (1 + self.dice.below(20) as u64);
                self.b.pass(ms);
                self.look();
            }
            _ => self.sleep(),
        }
    }

    /// With every path well, everything ends.
    fn finish(&mut self) {
        for device in &self.b.devices {
            device.set_health(Health::Ready);
            device.set_room(64);
        }
        for _ in 0..400 {
            self.dice.step += 1;
            for (device, io) in self.open() {
                self.answer(device, io, true);
            }
            self.turn();
            self.turn_of_second();
            self.b.pass(20);
            self.look();
            if self.requests.values().all(|r| r.ended.is_some()) {
                return;
            }
        }
        self.dice.fail("something never ended");
    }

    /// A write of one block or two, half of them past all caches.
    fn write(&mut self, tag: u64) -> Io {
        let (lba, blocks) = (self.next_lba, 1 + self.dice.below(2) as u32);
        self.next_lba += 2;
        let flags = if self.dice.below(4) == 0 { Flags::FUA } else { Flags::empty() };
        Io::write(tag, lba, blocks, SegSpan::EMPTY).with_flags(flags)
    }

    fn open_requests(&self) -> usize {
        self.requests.values().filter(|r| r.ended.is_none()).count()
    }

    fn submit(&mut self, io: Io) {
        if self.open_requests() >= OPEN {
            return;
        }
        let queue = self.dice.below(2);
        let tag = if queue == 1 { self.b.submit_to(&mut *self.second, io) } else { self.b.submit(io) };
        self.submitted(Io { tag, ..io }, queue);
        self.look();
    }

    /// Writes together, under tags of one place in the table, or of tasks.
    fn submit_batch(&mut self) {
        let count = self.dice.below(OPEN - self.open_requests().min(OPEN - 1)) + 1;
        let kind = [1 << 20, 1 << 63, 1 << 40 | 5][self.dice.below(3)];
        let batch: Vec<Io> = (0..count as u64).map(|n| self.write(kind + ((self.dice.step << 8 | n) << 7))).collect();
        let taken = match self.b.submit_all(&batch) {
            Ok(()) => batch.len(),
            Err(rest) => rest.taken,
        };
        batch[..taken].iter().for_each(|&io| self.submitted(io, 0));
        self.look();
    }

    fn submitted(&mut self, io: Io, queue: usize) {
        self.dice.note(format!("{:?} {} is request {:#x} of queue {queue}", io.op, io.lba, io.tag));
        let lba = (io.op == Op::Write).then_some(io.lba);
        let (blocks, fua) = (io.blocks.into(), io.flags.contains(Flags::FUA));
        self.requests.insert(io.tag, Request { queue, lba, blocks, fua, began: self.dice.step, ended: None });
    }

    fn answer(&mut self, device: usize, io: Io, succeeds: bool) {
        self.dice.note(format!("p{device} answers {:?} {} with {succeeds}", io.op, io.lba));
        if !succeeds {
            return self.b.devices[device].complete(io, Code::PathBusy, Proof::Answered);
        }
        let step = self.dice.step;
        if let Some(sent) = self.sent.iter_mut().find(|s| s.device == device && s.io == io) {
            sent.answered = Some(step);
        }
        self.b.devices[device].succeed(io);
    }

    fn turn(&mut self) {
        self.b.turn();
        self.look();
    }

    fn turn_of_second(&mut self) {
        let done = self.b.turn_of(&mut *self.second);
        self.look();
        done.into_iter().for_each(|c| self.ended(c.tag, c.status.code));
    }

    fn lose_power(&mut self) {
        let at = self.path();
        if !self.present[at] {
            return;
        }
        let old = self.domains[at].clone();
        let place = old.split('#').next().expect("a place");
        self.names += 1;
        // Another path may have shown already what this one shows now.
        let known = self.domains.iter().find(|d| **d != old && d.split('#').next() == Some(place)).cloned();
        let new = known.filter(|_| self.names.is_multiple_of(2)).unwrap_or(format!("{place}#{}", self.names));
        self.lost.insert(old, self.dice.step);
        self.lead_to(at, new);
    }

    fn lead_elsewhere(&mut self) {
        let at = self.path();
        if self.present[at] {
            self.names += 1;
            self.lead_to(at, format!("n{}#1", self.names));
        }
    }

    fn lead_to(&mut self, at: usize, domain: String) {
        self.dice.note(format!("p{at} leads to {domain}"));
        self.b.devices[at].set_live(small(&domain));
        self.b.group.refresh();
        self.domains[at] = domain;
    }

    fn add_path(&mut self) {
        let like = self.path();
        if self.domains.len() < 7 && self.present[like] {
            let domain = self.domains[like].clone();
            self.dice.note(format!("p{} leads to {domain}, too", self.domains.len()));
            self.b.add(small(&domain));
            self.domains.push(domain);
            self.present.push(true);
            self.seen.push(0);
        }
    }

    fn take_path_away(&mut self) {
        let at = self.path();
        if !self.present[at] || self.present.iter().filter(|p| **p).count() <= 2 {
            return;
        }
        self.dice.note(format!("p{at} is gone or removed"));
        self.present[at] = false;
        if self.dice.below(2) == 0 {
            self.b.devices[at].set_gone();
            self.b.group.refresh();
        } else {
            self.b.group.remove_path(self.b.ids[at]).expect("there");
        }
    }

    /// With nothing new the reactor sleeps soon, and there is nothing left then that it could do.
    fn sleep(&mut self) {
        for _ in 0..300 {
            self.turn();
            let Some(until) = self.b.arm() else { continue };
            if until.is_some_and(|until| until.since(self.b.now).as_micros() > 100) {
                let done = |run: &Run| (run.b.devices.iter().map(|d| d.taken().len()).sum::<usize>(), run.b.done.len());
                let before = done(self);
                self.turn();
                if done(self) != before {
                    self.dice.fail("slept beside work");
                }
            }
            return;
        }
        self.dice.fail("busy for ever");
    }

    /// Notes what paths have taken and what has ended.
    fn look(&mut self) {
        for device in 0..self.b.devices.len() {
            let taken = self.b.devices[device].taken();
            if taken.len() == self.seen[device] {
                continue;
            }
            self.seen[device] = taken.len();
            // Queue by queue: what is new is not at the end.
            for io in taken {
                if io.lba < SETUP_LBA && !self.sent.iter().any(|s| s.device == device && s.io == io) {
                    let domain = self.domains[device].clone();
                    self.dice.note(format!("p{device} takes {:?} {} for {domain}", io.op, io.lba));
                    self.sent.push(Sent { device, io, domain, sent: self.dice.step, answered: None });
                }
            }
        }
        while let Some(&c) = self.b.done.get(self.polled) {
            self.polled += 1;
            self.ended(c.tag, c.status.code);
        }
    }

    fn ended(&mut self, tag: u64, code: Code) {
        self.dice.note(format!("request {tag} ends with {code:?}"));
        let Some(request) = self.requests.get_mut(&tag) else { return };
        request.ended = Some((self.dice.step, code));
        if request.lba.is_none() && code == Code::Ok {
            self.judge(tag);
        }
    }

    /// A flush said OK.
    fn judge(&self, tag: u64) {
        let flush = &self.requests[&tag];
        for write in self.requests.values() {
            let (Some(lba), Some((acknowledged, Code::Ok))) = (write.lba, write.ended) else { continue };
            // The user of its queue was told by a flush that was to cover it.
            let tells = |r: &Request| {
                let failed = r.ended.is_some_and(|(at, code)| code == Code::CacheLost && at <= flush.began);
                r.queue == flush.queue && r.lba.is_none() && r.began > acknowledged && failed
            };
            if write.fua || acknowledged >= flush.began || self.requests.values().any(tells) {
                continue;
            }
            if let Some(block) = (lba..lba + write.blocks).find(|&block| !self.is_flushed(block)) {
                self.dice.fail(&format!("flush {tag} says OK: block {block} is neither flushed nor reported"));
            }
        }
    }

    /// Was the cache that the block was last written to flushed before it lost its power?
    fn is_flushed(&self, block: u64) -> bool {
        let wrote = |s: &&Sent| s.io.op == Op::Write && s.io.lba == block && s.answered.is_some();
        let write = self.sent.iter().rfind(wrote).expect("it was acknowledged");
        let done = write.answered.expect("asked above");
        let lost = self.lost.get(&write.domain).copied().unwrap_or(u64::MAX);
        self.sent.iter().any(|f| {
            let of_it = f.io.op == Op::Flush && f.domain == write.domain && f.sent > done;
            of_it && f.answered.is_some_and(|at| at < lost || done > lost)
        })
    }

    fn open(&self) -> Vec<(usize, Io)> {
        let of = |(at, device): (usize, &std::sync::Arc<crate::common::scripted::Scripted>)| {
            device.in_flight().into_iter().map(move |io| (at, io)).collect::<Vec<_>>()
        };
        self.b.devices.iter().enumerate().flat_map(of).collect()
    }

    fn path(&mut self) -> usize {
        self.dice.below(self.domains.len())
    }
}
