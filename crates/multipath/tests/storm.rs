//! Random storms on the straight line, with an oracle of attempts: batches under tags that are used again, tags of one place in the table and
//! those of tasks, paths that fail, become suspect, fill, change and are replaced. Each request completes once, as a device that had it said;
//! none is with two paths before the first is known to be quiet, and none is sent after its user has heard of it.

use crate::common::dice::{Dice, each_seed};
use crate::common::scripted::{BOUND, Bench, Scripted, info, limited};
use polypath_block::{Code, Fate, Flags, Health, Io, Op, Proof, SegSpan};
use polypath_multipath::{Fencing, GroupConfig, SelectorKind};
use std::collections::BTreeMap;
use std::sync::Arc;

const SEEDS: u64 = 60;
const STEPS: u64 = 400;
/// Where the set-up reads, and nobody else does.
const SETUP_LBA: u64 = 999;

#[test]
fn each_request_completes_once_as_a_path_said_and_is_never_with_two() {
    each_seed(SEEDS, |seed| {
        let mut storm = Storm::new(seed);
        (0..STEPS).for_each(|_| storm.step());
        storm.finish();
    });
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    InFlight,
    Suspect(Fate),
    Over(Code),
}

/// A request that a device took.
struct Attempt {
    device: usize,
    io: Io,
    state: State,
}

/// A request of the user, by its address, which no other has.
struct Request {
    tag: u64,
    op: Op,
    blocks: u64,
    ended: Option<Code>,
}

struct Storm {
    b: Bench,
    dice: Dice,
    fencing: Fencing,
    present: Vec<bool>,
    seen: Vec<usize>,
    attempts: Vec<Attempt>,
    requests: BTreeMap<u64, Request>,
    next_lba: u64,
    flushes: Vec<u64>,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let fencing = if seed.is_multiple_of(4) { Fencing::Off } else { Fencing::On };
        let selector = SelectorKind::ALL[seed as usize % SelectorKind::ALL.len()];
        let selector = if seed.is_multiple_of(2) { SelectorKind::QueueLength } else { selector };
        let config = GroupConfig { fencing, selector, ..GroupConfig::new("disk") };
        let mut b = Bench::new(config, vec![info("a"), info("b"), info("b")]);
        b.submit(Io::read(0, SETUP_LBA, 1, SegSpan::EMPTY));
        b.devices.iter().for_each(|d| d.succeed_all());
        b.turns(2);
        b.take_done();
        let seen = b.devices.iter().map(|d| d.taken().len()).collect();
        Storm {
            b,
            dice: Dice::new(seed),
            fencing,
            present: vec![true; 3],
            seen,
            attempts: Vec::new(),
            requests: BTreeMap::new(),
            next_lba: 0,
            flushes: Vec::new(),
        }
    }

    fn step(&mut self) {
        self.dice.step += 1;
        match self.dice.below(100) {
            0..20 => self.submit(),
            20..50 => {
                for _ in 0..1 + self.dice.below(4) {
                    self.answer();
                }
            }
            50..56 => self.end_fence(),
            56..76 => self.turn(),
            76..80 => {
                let (at, health) = (self.path(), [Health::Down, Health::Stalled, Health::Ready][self.dice.below(3)]);
                self.dice.note(format!("p{at} is {health:?}"));
                self.b.devices[at].set_health(health);
            }
            80..85 => {
                let (at, room) = (self.path(), [0, 1, 3, 64][self.dice.below(4)]);
                self.dice.note(format!("p{at} has room for {room}"));
                self.b.devices[at].set_room(room);
            }
            85..88 => {
                let at = self.path();
                self.dice.note(format!("p{at} changes"));
                self.b.devices[at].touch();
            }
            88..90 => self.touch_in_between(),
            90..92 => self.change_device(),
            92 => self.replace_path(),
            93..97 => {
                let ms = 1 + self.dice.below(60) as u64;
                for _ in 0..ms {
                    self.b.now = self.b.now.after(std::time::Duration::from_millis(1));
                    self.turn();
                }
            }
            _ => self.sleep(),
        }
    }

    /// A batch under tags that are used again: not while a request of that tag is open, as a rule.
    fn submit(&mut self) {
        let mut batch: Vec<Io> = Vec::new();
        for _ in 0..1 + self.dice.below(20) {
            let tag = self.dice.below(6) as u64 + [0, 0, 0, 64, 128, 1 << 40, 1 << 62, 1 << 63][self.dice.below(8)];
            let is_flush = |io: &Io| io.op == Op::Flush && io.tag == tag;
            if self.flushes.contains(&tag) || batch.iter().any(is_flush) {
                continue;
            }
            let is_open = self.requests.values().any(|r| r.ended.is_none() && r.tag == tag)
                || batch.iter().any(|io| io.tag == tag);
            // Without fencing nothing tells two of them apart: what the first path says late is not heard.
            let unsuited = is_open && (self.fencing == Fencing::Off || self.dice.below(12) > 0);
            if self.next_lba >= SETUP_LBA - 2 || unsuited {
                continue;
            }
            if !is_open && self.dice.below(15) == 0 {
                batch.push(Io::flush(tag));
                continue;
            }
            let (lba, blocks) = (self.next_lba, 1 + self.dice.below(2) as u32);
            self.next_lba += 2;
            batch.push(match self.dice.below(3) {
                0 => Io::read(tag, lba, blocks, SegSpan::EMPTY),
                1 => Io::write(tag, lba, blocks, SegSpan::EMPTY),
                _ => Io::write(tag, lba, blocks, SegSpan::EMPTY).with_flags(Flags::FUA),
            });
        }
        let taken = match self.b.submit_all(&batch) {
            Ok(()) => batch.len(),
            Err(rest) => rest.taken,
        };
        for io in &batch[..taken] {
            self.dice.note(format!("{:?} {}+{} with tag {:#x}", io.op, io.lba, io.blocks, io.tag));
            match io.op {
                Op::Flush => self.flushes.push(io.tag),
                op => drop(
                    self.requests.insert(io.lba, Request { tag: io.tag, op, blocks: io.blocks.into(), ended: None }),
                ),
            }
        }
        self.look();
        if self.dice.below(4) > 0 {
            self.b.kick();
        }
    }

    fn open(&self) -> Vec<usize> {
        (0..self.attempts.len()).filter(|&at| self.attempts[at].state == State::InFlight).collect()
    }

    fn answer(&mut self) {
        let open = self.open();
        if open.is_empty() {
            return;
        }
        let at = open[self.dice.below(open.len())];
        let answer = match self.dice.below(40) {
            0..24 => Some(Code::Ok),
            24 => Some(Code::Medium),
            25..29 => Some(Code::PathBusy),
            29..31 => Some(Code::PathLost),
            _ => None,
        };
        match answer {
            Some(code) => self.complete(at, code, Proof::Answered),
            None => {
                let fate = [Fate::Unknown, Fate::Unknown, Fate::NotSent][self.dice.below(3)];
                let Attempt { device, io, ref mut state } = self.attempts[at];
                *state = State::Suspect(fate);
                self.b.devices[device].suspect(io, fate);
                self.dice.note(format!("p{device} suspects {:?} {}: {fate:?}", io.op, io.lba));
                if self.dice.below(5) == 0 {
                    self.fence(at);
                }
            }
        }
    }

    /// The end of a fence: it was never carried out, or it was and says so.
    fn fence(&mut self, at: usize) {
        let never = self.attempts[at].state == State::Suspect(Fate::NotSent) || self.dice.below(2) == 0;
        if never { self.complete(at, Code::PathLost, BOUND) } else { self.complete(at, Code::Ok, Proof::Answered) }
    }

    fn end_fence(&mut self) {
        let suspects: Vec<usize> =
            (0..self.attempts.len()).filter(|&at| matches!(self.attempts[at].state, State::Suspect(_))).collect();
        if !suspects.is_empty() {
            let at = suspects[self.dice.below(suspects.len())];
            self.fence(at);
        }
    }

    fn complete(&mut self, at: usize, code: Code, proof: Proof) {
        let Attempt { device, io, ref mut state } = self.attempts[at];
        *state = State::Over(code);
        self.b.devices[device].complete(io, code, proof);
        self.dice.note(format!("p{device} answers {:?} {} with {code:?}", io.op, io.lba));
    }

    fn touch_in_between(&mut self) {
        let at = self.path();
        let device: Arc<Scripted> = self.b.devices[at].clone();
        self.dice.note(format!("p{at} changes when it is looked at next"));
        self.b.devices[at].on_next_version(move || device.touch());
    }

    fn change_device(&mut self) {
        let at = self.path();
        let domain = if at == 0 { "a" } else { "b" };
        let mut shows = info(domain);
        shows.limits.max_transfer_bytes = limited([1, 2, 8][self.dice.below(3)]).limits.max_transfer_bytes;
        shows.limits.write_cache = self.dice.below(3) > 0;
        if self.present[at] && at < 3 {
            self.dice.note(format!("p{at} shows {:?}", shows.limits));
            self.b.devices[at].set_live(shows);
        }
    }

    fn replace_path(&mut self) {
        let at = self.path();
        if !self.present[at] || self.b.devices.len() >= 9 {
            return;
        }
        self.dice.note(format!("p{at} is removed; p{} comes", self.b.devices.len()));
        self.present[at] = false;
        self.b.group.remove_path(self.b.ids[at]).expect("there");
        self.b.add(info("b"));
        self.present.push(true);
        self.seen.push(0);
    }

    /// Without news it sleeps soon, and there is nothing left then that it could do.
    fn sleep(&mut self) {
        for _ in 0..300 {
            self.turn();
            let Some(until) = self.b.arm() else { continue };
            if until.is_some_and(|until| until.since(self.b.now).as_micros() > 100) {
                let done = |s: &Storm| (s.attempts.len(), s.requests.values().filter(|r| r.ended.is_some()).count());
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

    /// With every path well, everything ends.
    fn finish(mut self) {
        for _ in 0..600 {
            for device in &self.b.devices {
                device.set_health(Health::Ready);
                device.set_room(64);
            }
            for at in self.open() {
                self.complete(at, Code::Ok, Proof::Answered);
            }
            for at in 0..self.attempts.len() {
                if matches!(self.attempts[at].state, State::Suspect(_)) {
                    self.fence(at);
                }
            }
            self.b.now = self.b.now.after(std::time::Duration::from_millis(5));
            self.turn();
            let all = self.requests.values().all(|r| r.ended.is_some()) && self.flushes.is_empty();
            if all && self.attempts.iter().all(|a| matches!(a.state, State::Over(_))) {
                self.turn();
                break;
            }
        }
        if let Some((lba, r)) = self.requests.iter().find(|(_, r)| r.ended.is_none()) {
            let what = format!("{:?} {lba} never ended", r.op);
            self.dice.fail(&what);
        }
        if !self.flushes.is_empty() {
            self.dice.fail("a flush never ended");
        }
        for s in self.b.group.statistics() {
            assert_eq!((s.in_flight, s.suspects), (0, 0), "{}", self.dice.story());
        }
        self.b.finish();
    }

    fn turn(&mut self) {
        self.b.turn();
        self.look();
    }

    /// Notes what paths have taken and what has ended.
    fn look(&mut self) {
        for device in 0..self.b.devices.len() {
            let taken = self.b.devices[device].taken();
            for io in &taken[self.seen[device]..] {
                self.took(device, *io);
            }
            self.seen[device] = taken.len();
        }
        for (tag, code) in self.b.take_done() {
            self.ended(tag, code);
        }
    }

    fn took(&mut self, device: usize, io: Io) {
        self.dice.note(format!("p{device} takes {:?} {}+{} as {:#x}", io.op, io.lba, io.blocks, io.tag));
        if io.op != Op::Flush {
            // Of two blocks, the second may be a part.
            let Some(request) = self.requests.get(&(io.lba & !1)) else { self.dice.fail("nobody asked for that") };
            if request.ended.is_some() {
                self.dice.fail("sent after its user had heard of it");
            }
            let open = |a: &&Attempt| {
                let covers = a.io.op != Op::Flush && a.io.lba < io.lba + u64::from(io.blocks);
                covers && io.lba < a.io.lba + u64::from(a.io.blocks)
            };
            let quiet = |a: &Attempt| match a.state {
                State::InFlight => false,
                State::Suspect(Fate::Unknown) => self.fencing == Fencing::Off && io.op == Op::Write,
                _ => true,
            };
            if self.attempts.iter().filter(open).any(|a| !quiet(a)) {
                self.dice.fail("with two paths at a time");
            }
        }
        self.attempts.push(Attempt { device, io, state: State::InFlight });
    }

    fn ended(&mut self, tag: u64, code: Code) {
        self.dice.note(format!("tag {tag:#x} ends with {code:?}"));
        if let Some(at) = self.flushes.iter().position(|&t| t == tag) {
            self.flushes.swap_remove(at);
            return;
        }
        let says = |block: u64| {
            let covers =
                |a: &Attempt| a.io.op != Op::Flush && (a.io.lba..a.io.lba + u64::from(a.io.blocks)).contains(&block);
            self.attempts.iter().any(|a| covers(a) && a.state == State::Over(code))
        };
        let mut open = self.requests.iter().filter(|(_, r)| r.tag == tag && r.ended.is_none());
        // All of it succeeds, or something of it fails.
        let is_said = |&(&lba, r): &(&u64, &Request)| {
            let mut blocks = lba..lba + r.blocks;
            if code == Code::Ok { blocks.all(says) } else { blocks.any(says) }
        };
        let Some((&lba, _)) = open.find(is_said) else {
            self.dice.fail(&format!(
                "tag {tag:#x} ends with {code:?}: no path has said so of a request of that tag that is open"
            ))
        };
        self.requests.get_mut(&lba).expect("found").ended = Some(code);
    }

    fn path(&mut self) -> usize {
        self.dice.below(self.b.devices.len())
    }
}
