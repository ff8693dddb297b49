//! Batches of any requests over a wire that takes any number of octets, to a controller that answers in any order and is lost at any time.

use crate::script::Script;
use crate::turns::{World, config};
use polypath_block::{Code, Cx, Flags, Io, Op, Proof, RefusedWhy, Rest, Scope, SegSpan};
use polypath_nvme::StatusField;
use polypath_nvme::sqe::io;
use polypath_nvmf_tcp::ControllerConfig;
use std::collections::{BTreeMap, BTreeSet};

/// Blocks of every request, of 512 bytes.
const BLOCKS: u32 = 4;
const PLACES: usize = 40;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// What is known of requests. The tag of each is the number of its first block, and no two have the same.
struct Test {
    world: World,
    random: Random,
    places: Vec<(SegSpan, Option<u64>)>,
    open: BTreeMap<u64, (Io, usize)>,
    next: u64,
    /// Of commands that came whole over some connection.
    seen: BTreeSet<u64>,
    answered: BTreeMap<u64, StatusField>,
    ended: usize,
}

fn fill(tag: u64) -> u8 {
    1 + (tag % 250) as u8
}

impl Test {
    fn new(seed: u64) -> Test {
        let script = Script::new();
        let config = ControllerConfig { queue_depth: 1 + seed as u16 % 9, ..config(&script) };
        let mut world = World::up_with(script, config, 1 + seed as u16 % 13);
        let places = (0..PLACES).map(|_| (world.memory(BLOCKS * 512, 0), None)).collect();
        let (open, seen, answered) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Test { world, random: Random(seed), places, open, next: 1, seen, answered, ended: 0 }
    }

    fn request(&mut self) -> Option<(Io, usize)> {
        let place = self.places.iter().position(|(_, taken)| taken.is_none())?;
        let (tag, span) = (self.next, self.places[place].0);
        let io = match self.random.below(12) {
            0..4 => Io::read(tag, tag, BLOCKS, span),
            4..8 => Io::write(tag, tag, BLOCKS, span),
            8 => Io::write(tag, tag, BLOCKS, span).with_flags(Flags::FUA),
            9 => Io::range(tag, Op::WriteZeroes, tag, BLOCKS),
            // What this controller cannot do, and what is over the end.
            10 => Io { op: Op::Compare, ..Io::read(tag, tag, BLOCKS, span) },
            _ => Io { lba: u64::MAX - 1, ..Io::read(tag, tag, BLOCKS, span) },
        };
        self.next += 1;
        self.places[place].1 = Some(tag);
        Some((io, place))
    }

    fn submit(&mut self) {
        let count = 1 + self.random.below(9);
        let batch: Vec<(Io, usize)> = (0..count).filter_map(|_| self.request()).collect();
        let ios: Vec<Io> = batch.iter().map(|(io, _)| *io).collect();
        let mut cx = Cx { now: self.world.now, segs: &mut self.world.segs, reactor: 0 };
        let taken = match self.world.queues[0].queue.submit_all(&mut cx, &ios) {
            Ok(()) => ios.len(),
            Err(Rest { taken, why }) => {
                assert!(
                    why == RefusedWhy::Full || self.world.queues[0].queue.health() != polypath_block::Health::Ready
                );
                taken
            }
        };
        for (n, (io, place)) in batch.into_iter().enumerate() {
            if n < taken {
                self.open.insert(io.tag, (io, place));
            } else {
                self.places[place].1 = None;
            }
        }
    }

    /// Answers one of the commands that came whole.
    fn answer(&mut self) {
        let open = self.world.script.open(1);
        if open.is_empty() {
            return;
        }
        let chosen = &open[self.random.below(open.len() as u64) as usize];
        let (cid, tag) = (chosen.sqe.cid(), chosen.sqe.slba());
        let good = self.random.below(5) > 0;
        let status = if good { StatusField::SUCCESS } else { StatusField::UNRECOVERED_READ_ERROR.with_dnr() };
        let carries = chosen.sqe.opcode() == io::WRITE;
        assert_eq!(chosen.data, if carries { BLOCKS as usize * 512 } else { 0 }, "all of its data, and no other's");
        match chosen.sqe.opcode() {
            io::READ if good => self.world.script.answer_read(1, cid, fill(tag)),
            _ => self.world.script.answer(1, cid, status),
        }
        self.answered.insert(tag, status);
    }

    fn turn(&mut self) {
        self.world.turn_queue(0);
        // In the order they came, whichever way each has taken.
        let tags: Vec<u64> = self.world.script.seen(1).iter().map(polypath_nvme::Sqe::slba).collect();
        assert!(tags.is_sorted(), "{tags:?}");
        self.seen.extend(tags);
        for (completion, _) in std::mem::take(&mut self.world.queues[0].completions) {
            let (tag, status) = (completion.tag, completion.status);
            let (io, place) = self.open.remove(&tag).unwrap_or_else(|| panic!("{tag} is not open: {completion:?}"));
            self.places[place].1 = None;
            self.ended += 1;
            if completion.proof == Proof::NeverSent {
                assert!(!self.seen.contains(&tag), "{tag} was sent: {completion:?}");
            }
            let refused = match io.op {
                Op::Read if io.lba != tag => Some(Code::OutOfRange),
                Op::Compare => Some(Code::Unsupported),
                _ => None,
            };
            if let Some(code) = refused {
                assert_eq!((status.code, completion.proof), (code, Proof::NeverSent));
            } else if status.is_ok() {
                assert_eq!(self.answered.get(&tag), Some(&StatusField::SUCCESS), "{completion:?}");
                if io.op == Op::Read {
                    let mut bytes = vec![0; BLOCKS as usize * 512];
                    let segment = self.world.segs.get(io.segs)[0];
                    polypath_memory::with(|table| table.view(segment).unwrap().copy_out(&mut bytes));
                    assert!(bytes.iter().all(|&b| b == fill(tag)), "{tag}: data of another");
                }
            } else if status.scope() != Scope::Path {
                assert_eq!(self.answered.get(&tag).map(|s| s.is_success()), Some(false), "{completion:?}");
            }
        }
    }

    fn lose(&mut self) {
        self.world.script.reset(1);
        let mut left = 4000;
        while left > 0 && (self.world.queues[0].queue.health() != polypath_block::Health::Ready || left > 3900) {
            self.world.pass_ms(1);
            self.world.turn_admin();
            self.turn();
            left -= 1;
        }
        assert!(left > 0, "it comes back");
    }
}

#[test]
fn whatever_is_in_a_batch_and_however_it_leaves_each_request_ends_once() {
    let mut ended = 0;
    for seed in 0..60 {
        let mut test = Test::new(seed);
        let losses = seed % 3 == 0;
        for _ in 0..150 {
            match test.random.below(if losses { 101 } else { 100 }) {
                0..25 => test.submit(),
                25..40 => {
                    let room = test.random.below(4000) as usize;
                    test.world.script.set_room(1, room);
                }
                40..45 => test.world.script.set_room(1, usize::MAX),
                45..75 => test.answer(),
                100 => test.lose(),
                _ => test.turn(),
            }
        }
        test.world.script.set_room(1, usize::MAX);
        let mut left = 6000;
        while !test.open.is_empty() && left > 0 {
            test.answer();
            test.turn();
            if left < 5000 {
                // Only what waits for its fence is left.
                test.world.pass_ms(1);
                test.world.turn_admin();
            }
            left -= 1;
        }
        assert!(test.open.is_empty(), "seed {seed}: {:?} never ended", test.open.keys());
        ended += test.ended;
    }
    assert!(ended > 2000, "{ended} are too few to say anything");
}
