//! The verifier against a disk that does everything a disk may do, and then against disks that do what they must not.

use super::*;
use rand::rngs::Xoshiro256PlusPlus as Rng;
use rand::{RngExt as _, SeedableRng as _};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;

const BS: usize = 512;
const BLOCKS: u64 = 24;

fn config(blocks: u64) -> VerifierConfig {
    VerifierConfig { max_in_flight: 64, disk: 3, ..VerifierConfig::new(blocks, BS as u32) }
}

fn open() -> Verifier {
    Verifier::open(config(BLOCKS)).unwrap()
}

/// What an operation does to one block when its moment comes.
#[derive(Clone, Debug)]
enum Effect {
    Put(Vec<u8>),
    Sample { at: usize },
}

struct Running {
    ticket: Option<Ticket>,
    first: u64,
    steps: Vec<(u64, Effect)>,
    sampled: Vec<u8>,
    is_read: bool,
}

/// A disk whose operations take effect block by block, in any order, some time between their begin and their end.
struct World {
    rng: Rng,
    disk: Vec<Vec<u8>>,
    running: Vec<Running>,
    /// Effects of operations whose end nobody saw. They land any time before a later write to the block is acknowledged.
    ghosts: Vec<(u64, Vec<u8>)>,
    history: Vec<Vec<Vec<u8>>>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::seed_from_u64(seed);
        let disk = (0..BLOCKS).map(|_| vec![rng.random::<u8>() | 1; BS]).collect();
        World { rng, disk, running: Vec::new(), ghosts: Vec::new(), history: vec![Vec::new(); BLOCKS as usize] }
    }

    fn begin(&mut self, v: &mut Verifier) {
        let blocks = self.rng.random_range(1..=3u32);
        let lba = self.rng.random_range(0..=BLOCKS - u64::from(blocks));
        let lbas = lba..lba + u64::from(blocks);
        let mut data = vec![0; blocks as usize * BS];
        let what = self.rng.random_range(0..10);
        let ticket = match what {
            0..4 => v.begin_read(lba, blocks),
            4..8 => v.begin_write(lba, blocks, &mut data),
            8 => v.begin_zeroes(lba, blocks),
            _ => v.begin_discard(lba, blocks),
        };
        let Some(ticket) = ticket else { return };
        let mut steps: Vec<(u64, Effect)> = Vec::new();
        for (at, lba) in lbas.enumerate() {
            let effect = match what {
                0..4 => Effect::Sample { at: at * BS },
                4..8 => {
                    let data = data[at * BS..][..BS].to_vec();
                    self.history[lba as usize].push(data.clone());
                    Effect::Put(data)
                }
                8 => Effect::Put(vec![0; BS]),
                _ => match self.rng.random_range(0..3) {
                    0 => Effect::Put(vec![0; BS]),
                    1 => Effect::Put(vec![0xff; BS]),
                    _ => continue,
                },
            };
            let place = self.rng.random_range(0..=steps.len());
            steps.insert(place, (lba, effect));
        }
        self.running.push(Running { ticket: Some(ticket), first: lba, steps, sampled: data, is_read: what < 4 });
    }

    fn step(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.running.len());
        let op = &mut self.running[at];
        match op.steps.pop() {
            Some((lba, Effect::Put(data))) => self.disk[lba as usize] = data,
            Some((lba, Effect::Sample { at })) => op.sampled[at..at + BS].copy_from_slice(&self.disk[lba as usize]),
            None => {}
        }
    }

    fn land_a_ghost(&mut self) {
        if !self.ghosts.is_empty() {
            let at = self.rng.random_range(0..self.ghosts.len());
            let (lba, data) = self.ghosts.swap_remove(at);
            self.disk[lba as usize] = data;
        }
    }

    /// Ends some operation: well, badly, or unseen.
    fn end(&mut self, v: &mut Verifier) -> Result<(), Vec<VerifyError>> {
        if self.running.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.running.len());
        let outcome = match self.rng.random_range(0..12) {
            0 => Outcome::Failed,
            1 => Outcome::Unknown,
            _ => Outcome::Acknowledged,
        };
        if outcome == Outcome::Acknowledged && !self.running[at].steps.is_empty() {
            return Ok(());
        }
        let mut op = self.running.swap_remove(at);
        let ticket = op.ticket.take().unwrap();
        if op.is_read {
            if !op.steps.is_empty() {
                v.abandon_read(ticket);
                return Ok(());
            }
            return v.end_read(ticket, &op.sampled);
        }
        match outcome {
            Outcome::Acknowledged => {
                let lbas = op.first..op.first + (op.sampled.len() / BS) as u64;
                self.ghosts.retain(|(lba, _)| !lbas.contains(lba));
            }
            Outcome::Failed => {}
            Outcome::Unknown => self.haunt(&op),
        }
        v.end_write(ticket, outcome);
        Ok(())
    }

    fn haunt(&mut self, op: &Running) {
        for (lba, effect) in &op.steps {
            if let Effect::Put(data) = effect {
                self.ghosts.push((*lba, data.clone()));
            }
        }
    }

    /// The checker dies with everything in flight.
    fn die(&mut self) {
        for op in std::mem::take(&mut self.running) {
            self.haunt(&op);
        }
    }

    fn read(&self, v: &mut Verifier, lba: u64) -> Result<(), Vec<VerifyError>> {
        let ticket = v.begin_read(lba, 1).unwrap();
        v.end_read(ticket, &self.disk[lba as usize])
    }
}

fn write(v: &mut Verifier, world: &mut World, lba: u64) -> Vec<u8> {
    let mut data = vec![0; BS];
    let ticket = v.begin_write(lba, 1, &mut data).unwrap();
    world.disk[lba as usize] = data.clone();
    v.end_write(ticket, Outcome::Acknowledged);
    data
}

fn kind(result: Result<(), Vec<VerifyError>>) -> Option<ErrorKind> {
    result.err().map(|errors| errors[0].kind)
}

/// An overlapping write may land before or after any other whose end was not before its begin: one that was given up as unknown
/// is dropped from the world once something later is acknowledged, which is when a fence has seen to it.
#[test]
fn a_disk_that_keeps_its_promises_is_never_accused() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..300 {
        let path = dir.path().join(format!("record-{seed}"));
        let config = VerifierConfig { record: Some(path), ..config(BLOCKS) };
        let mut v = Verifier::open(config.clone()).unwrap();
        let mut world = World::new(seed);
        for turn in 0..3000 {
            match world.rng.random_range(0..1000) {
                0..300 => world.begin(&mut v),
                300..700 => world.step(),
                700..720 => world.land_a_ghost(),
                720..722 => {
                    world.die();
                    drop(v);
                    v = Verifier::open(config.clone()).unwrap();
                    assert!(v.reopened());
                }
                _ => {
                    if let Err(errors) = world.end(&mut v) {
                        panic!("seed {seed}, turn {turn}: {}", errors[0]);
                    }
                }
            }
        }
        assert_eq!(v.statistics().untracked, 0);
    }
}

#[test]
fn whatever_breaks_its_promise_is_caught() {
    for seed in 0..300 {
        let mut v = open();
        let mut world = World::new(1000 + seed);
        for _ in 0..1500 {
            match world.rng.random_range(0..10) {
                0..3 => world.begin(&mut v),
                3..7 => world.step(),
                _ => world.end(&mut v).unwrap_or_else(|e| panic!("seed {seed}: {}", e[0])),
            }
        }
        while !world.running.is_empty() {
            world.step();
            world.end(&mut v).unwrap_or_else(|e| panic!("seed {seed}: {}", e[0]));
        }
        // Every block is written once more and read: its content is certain now.
        for lba in 0..BLOCKS {
            write(&mut v, &mut world, lba);
            assert_eq!(world.read(&mut v, lba), Ok(()), "seed {seed}");
        }
        for lba in 0..BLOCKS {
            let old = world.history[lba as usize].clone();
            if let Some(ghost) = old.get(world.rng.random_range(0..old.len().max(1))) {
                world.disk[lba as usize] = ghost.clone();
                assert_eq!(kind(world.read(&mut v, lba)), Some(ErrorKind::Stale), "seed {seed}, block {lba}");
                assert_eq!(world.read(&mut v, lba), Ok(()), "one fault is one error");
            }
        }
    }
}

#[test]
fn each_fault_has_its_name() {
    let mut v = open();
    let mut world = World::new(1);
    let first = write(&mut v, &mut world, 5);
    let second = write(&mut v, &mut world, 5);
    world.disk[5] = first.clone();
    assert_eq!(kind(world.read(&mut v, 5)), Some(ErrorKind::LostWrite));

    let third = write(&mut v, &mut world, 5);
    assert_eq!(world.read(&mut v, 5), Ok(()));
    world.disk[5] = second;
    let errors = world.read(&mut v, 5).unwrap_err();
    assert_eq!(errors[0].kind, ErrorKind::Stale);
    let text = errors[0].to_string();
    assert!(text.starts_with("block 5: old data: expected write ") && text.contains(", found write "), "{text}");

    let other = write(&mut v, &mut world, 6);
    let fourth = write(&mut v, &mut world, 5);
    for (bad, want) in [
        (other, ErrorKind::Misdirected),
        (vec![7; BS], ErrorKind::Corrupted),
        (vec![0; BS], ErrorKind::LostWrite),
        (
            {
                let mut b = fourth;
                b[300] ^= 4;
                b
            },
            ErrorKind::Corrupted,
        ),
        (
            {
                let mut stranger = open();
                let mut b = vec![0; BS];
                let _ticket = stranger.begin_write(5, 1, &mut b).unwrap();
                b
            },
            ErrorKind::Foreign,
        ),
    ] {
        write(&mut v, &mut world, 5);
        world.disk[5] = bad;
        assert_eq!(kind(world.read(&mut v, 5)), Some(want));
    }
    assert_eq!(v.statistics().errors, 7);
    assert_ne!(third, first);
}

#[test]
fn torn_blocks_are_errors_unless_tolerated() {
    for tolerate_torn in [false, true] {
        let config = VerifierConfig { tolerate_torn, ..VerifierConfig::new(8, 4096) };
        let mut v = Verifier::open(config).unwrap();
        let (mut a, mut b) = (vec![0; 4096], vec![0; 4096]);
        let old = v.begin_write(1, 1, &mut a).unwrap();
        v.end_write(old, Outcome::Acknowledged);
        let new = v.begin_write(1, 1, &mut b).unwrap();
        let read = v.begin_read(1, 1).unwrap();
        a[2048..].copy_from_slice(&b[2048..]);
        let result = v.end_read(read, &a);
        v.end_write(new, Outcome::Acknowledged);
        assert_eq!(
            (kind(result), v.statistics().torn),
            if tolerate_torn { (None, 1) } else { (Some(ErrorKind::Torn), 0) }
        );
        if tolerate_torn {
            // Once the write is acknowledged there is nothing to be torn between.
            let read = v.begin_read(1, 1).unwrap();
            assert_eq!(kind(v.end_read(read, &a)), Some(ErrorKind::Torn));
        }
    }
}

/// The case the fences exist for: a write is held by the target, driven again elsewhere, overwritten, and then lands.
#[test]
fn a_ghost_write_is_caught() {
    let mut v = open();
    let mut world = World::new(2);
    let held = write(&mut v, &mut world, 9);
    write(&mut v, &mut world, 9);
    assert_eq!(world.read(&mut v, 9), Ok(()));
    world.disk[9] = held;
    assert_eq!(kind(world.read(&mut v, 9)), Some(ErrorKind::Stale));
}

#[test]
fn overlapping_writes_leave_either_and_no_other() {
    let mut v = open();
    let mut world = World::new(3);
    let before = write(&mut v, &mut world, 2);
    let (mut a, mut b) = (vec![0; BS], vec![0; BS]);
    let (ta, tb) = (v.begin_write(2, 1, &mut a).unwrap(), v.begin_write(2, 1, &mut b).unwrap());
    v.end_write(tb, Outcome::Acknowledged);
    v.end_write(ta, Outcome::Acknowledged);
    // The one that began first was last on the medium.
    world.disk[2] = a.clone();
    assert_eq!(world.read(&mut v, 2), Ok(()));
    world.disk[2] = b;
    assert_eq!(kind(world.read(&mut v, 2)), Some(ErrorKind::Stale), "after one was read the other is gone");
    write(&mut v, &mut world, 2);
    world.disk[2] = before;
    assert_eq!(kind(world.read(&mut v, 2)), Some(ErrorKind::LostWrite));
}

#[test]
fn failed_is_quiet_and_unknown_is_not() {
    for (outcome, later) in [(Outcome::Failed, Some(ErrorKind::LostWrite)), (Outcome::Unknown, None)] {
        let mut v = open();
        let mut world = World::new(4);
        write(&mut v, &mut world, 2);
        let mut lost = vec![0; BS];
        let ticket = v.begin_write(2, 1, &mut lost).unwrap();
        v.end_write(ticket, outcome);
        assert_eq!(world.read(&mut v, 2), Ok(()), "{outcome:?}: not carried out");
        let next = write(&mut v, &mut world, 2);
        world.disk[2] = lost.clone();
        assert_eq!(kind(world.read(&mut v, 2)), later, "{outcome:?}: landed after a later write was acknowledged");
        if later.is_none() {
            world.disk[2] = next;
            assert_eq!(kind(world.read(&mut v, 2)), Some(ErrorKind::Stale), "it landed, and nothing undoes that");
            write(&mut v, &mut world, 2);
            assert_eq!(world.read(&mut v, 2), Ok(()));
            world.disk[2] = lost;
            assert_eq!(kind(world.read(&mut v, 2)), Some(ErrorKind::Stale), "overwritten and read: it is over");
        }
    }
}

#[test]
fn zeroes_count_as_content() {
    let mut v = Verifier::open(VerifierConfig { initially_zero: true, ..config(BLOCKS) }).unwrap();
    let mut world = World::new(5);
    assert_eq!(kind(world.read(&mut v, 1)), Some(ErrorKind::Corrupted), "it is said to be all zeroes");
    world.disk[2].fill(0);
    assert_eq!(world.read(&mut v, 2), Ok(()));
    let data = write(&mut v, &mut world, 2);
    let ticket = v.begin_zeroes(2, 1).unwrap();
    v.end_write(ticket, Outcome::Acknowledged);
    world.disk[2] = data;
    assert_eq!(kind(world.read(&mut v, 2)), Some(ErrorKind::LostWrite));
}

#[test]
fn a_record_belongs_to_one_disk_and_one_checker() {
    let dir = tempfile::tempdir().unwrap();
    let with_record = VerifierConfig { record: Some(dir.path().join("record")), ..config(BLOCKS) };
    let first = Verifier::open(with_record.clone()).unwrap();
    assert!(!first.reopened());
    let second = Verifier::open(with_record.clone());
    assert!(matches!(second, Err(RecordError::InUse { .. })), "{second:?}");
    drop(first);
    let other = Verifier::open(VerifierConfig { disk: 4, ..with_record.clone() });
    assert!(matches!(other, Err(RecordError::Mismatch { what: "disk", found: 3, expected: 4, .. })), "{other:?}");
    let larger = Verifier::open(VerifierConfig { blocks: BLOCKS + 1, ..with_record.clone() });
    assert!(matches!(larger, Err(RecordError::Mismatch { what: "size in bytes", .. })), "{larger:?}");
    assert!(Verifier::open(with_record).unwrap().reopened());
}

#[test]
fn a_full_verifier_takes_no_more_and_room_for_candidates_is_bounded() {
    let mut v = Verifier::open(VerifierConfig { max_in_flight: 2, ..config(100_000) }).unwrap();
    let a = v.begin_read(0, 1).unwrap();
    let _b = v.begin_read(0, 1).unwrap();
    assert_eq!(v.begin_read(0, 1), None);
    v.abandon_read(a);
    let all = v.begin_zeroes(0, 100_000).unwrap();
    v.end_write(all, Outcome::Failed);
    assert_eq!(v.statistics().untracked, 100_000 - u64::from(record::SPILLS));
}

const CHILD: &str = "POLYPATH_VERIFY_CHILD";
const KILLED_BLOCKS: u64 = 64;

fn killed_config(dir: &std::path::Path) -> VerifierConfig {
    VerifierConfig { record: Some(dir.join("record")), ..config(KILLED_BLOCKS) }
}

/// Not a test of its own: the process that [`a_killed_checker_is_continued`] kills.
#[test]
fn killed_checker() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = PathBuf::from(dir);
    let disk = std::fs::OpenOptions::new().read(true).write(true).open(dir.join("disk")).unwrap();
    let mut v = Verifier::open(killed_config(&dir)).unwrap();
    let mut rng = Rng::seed_from_u64(v.author.run);
    let mut flying: Vec<(Ticket, u64, Vec<u8>)> = Vec::new();
    for n in 0u64.. {
        if n == 20_000 {
            println!("\nready");
        }
        let lba = rng.random_range(0..KILLED_BLOCKS - 1);
        if rng.random_ratio(1, 3) {
            let ticket = v.begin_read(lba, 2).unwrap();
            let mut data = vec![0; 2 * BS];
            disk.read_exact_at(&mut data, lba * BS as u64).unwrap();
            v.end_read(ticket, &data).unwrap();
        } else if flying.len() < 8 {
            let mut data = vec![0; 2 * BS];
            let ticket = v.begin_write(lba, 2, &mut data).unwrap();
            flying.push((ticket, lba, data));
        } else {
            let at = rng.random_range(0..flying.len());
            let (ticket, lba, data) = flying.swap_remove(at);
            disk.write_all_at(&data, lba * BS as u64).unwrap();
            v.end_write(ticket, Outcome::Acknowledged);
        }
    }
}

#[test]
fn a_killed_checker_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let disk = std::fs::File::create_new(dir.path().join("disk")).unwrap();
    disk.set_len(KILLED_BLOCKS * BS as u64).unwrap();
    let disk = std::fs::OpenOptions::new().read(true).write(true).open(dir.path().join("disk")).unwrap();
    for round in 1..=3 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "verify::tests::killed_checker", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().trim() == "ready"), "round {round}: the checker found an error or died");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "round {round}");

        let mut v = Verifier::open(killed_config(dir.path())).unwrap();
        assert!(v.reopened());
        assert!((1..=9).contains(&v.statistics().unknown), "{:?}", v.statistics());
        let mut data = vec![0; BS];
        for lba in 0..KILLED_BLOCKS {
            disk.read_exact_at(&mut data, lba * BS as u64).unwrap();
            let ticket = v.begin_read(lba, 1).unwrap();
            v.end_read(ticket, &data).unwrap_or_else(|e| panic!("round {round}: {}", e[0]));
            assert!(v.next_known(lba) == Some(lba), "round {round}: block {lba} was written thousands of times");
        }
        // The record knows what is old, also across restarts.
        let mut old = vec![0; BS];
        disk.read_exact_at(&mut old, 0).unwrap();
        let mut new = vec![0; BS];
        let ticket = v.begin_write(0, 1, &mut new).unwrap();
        v.end_write(ticket, Outcome::Acknowledged);
        drop(v);
        let mut v = Verifier::open(killed_config(dir.path())).unwrap();
        let ticket = v.begin_read(0, 1).unwrap();
        let lost = v.end_read(ticket, &old);
        // A write of the killed checker that was in flight to block 0 may still land.
        if let Ok(()) = lost {
            assert!(round > 0);
        } else {
            assert_eq!(kind(lost), Some(ErrorKind::LostWrite));
        }
        disk.write_all_at(&new, 0).unwrap();
    }
}
