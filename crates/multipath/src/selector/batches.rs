//! Batches are shared out as by one choice after the other, whatever came before and whatever comes then.

use super::*;

/// Numbers that a seed decides.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    /// Two candidates at least, of few paths as a rule: a queue asks nobody which of one is best.
    fn mask(&mut self) -> u64 {
        loop {
            let any = self.below(1 << 31) << 33 | self.below(1 << 31) << 2 | self.below(4);
            let mask = any & self.of(&[0b11, 0b111, 0b1011, 0xFF, 0b11 << 62 | 1, u64::MAX]);
            if mask.count_ones() > 1 {
                return mask;
            }
        }
    }
}

/// Two of a kind with the same past: one is given batches, the other one request after the other.
struct Pair {
    kind: SelectorKind,
    seed: u64,
    dice: Dice,
    batches: AnySelector,
    singles: AnySelector,
    loads: Vec<PathLoad>,
    now: Time,
    /// How many batches were shared out.
    shared: usize,
}

fn plain(loads: &[PathLoad]) -> Vec<(u32, u32, u64, u32)> {
    loads.iter().map(|load| (load.uid, load.in_flight, load.bytes_in_flight, load.weight)).collect()
}

impl Pair {
    fn new(kind: SelectorKind, seed: u64) -> Pair {
        let mut dice = Dice(seed);
        let load = |uid| {
            let in_flight = dice.of(&[0, 0, 1, 2, 9]);
            let bytes_in_flight = u64::from(in_flight) * dice.of(&[512, 4096, 1 << 20]);
            PathLoad {
                uid,
                in_flight,
                bytes_in_flight,
                weight: dice.of(&[1, 1, 2, 100, 300, u32::MAX]),
                preference: dice.of(&[0, 0, 1, 2, 3]),
            }
        };
        let loads = (0..MAX_PATHS as u32).map(load).collect();
        let [batches, singles] = [(); 2].map(|()| AnySelector::new(kind, seed));
        Pair { kind, seed, dice, batches, singles, loads, now: Time::from_millis(1), shared: 0 }
    }

    fn choice(&self, mask: u64, bytes: u64) -> Choice<'_> {
        Choice { mask, loads: &self.loads, bytes, offset: 0, now: self.now }
    }

    fn batch(&mut self) {
        let (mask, bytes) = (self.dice.mask(), self.dice.of(&[0, 512, 4096, 8192, 100_000, 1 << 20]));
        let count = self.dice.of(&[1, 2, 3, 7, 16, 64, 200]);
        let (before, mut shares) = (plain(&self.loads), [0; MAX_PATHS]);
        let batch = Batch { mask, count, now: self.now };
        let last = self.batches.share(&batch, || Some(bytes), &mut self.loads, &mut shares);
        let what = format!("{}, seed {}: {count} of {bytes} bytes over {mask:#x}", self.kind, self.seed);
        assert_eq!(plain(&self.loads), before, "{what}: nothing is in flight yet");
        let mut chosen = [0; MAX_PATHS];
        if matches!(self.kind, SelectorKind::Hash { .. }) {
            return assert_eq!((last, shares), (None, chosen), "{what}: each must be looked at");
        }
        for _ in 0..count {
            let slot = self.singles.pick(&Choice { mask, loads: &self.loads, bytes, offset: 0, now: self.now });
            self.loads[slot].in_flight += 1;
            self.loads[slot].bytes_in_flight += bytes;
            chosen[slot] += 1;
        }
        assert_eq!(shares, chosen, "{what}");
        assert!(last.is_some_and(|last| last < MAX_PATHS), "{what}: {last:?}");
        self.shared += 1;
    }

    fn single(&mut self) {
        let (mask, bytes) = (self.dice.mask(), self.dice.of(&[0, 4096, 1 << 20]));
        let loads = self.loads.clone();
        let choice = Choice { loads: &loads, ..self.choice(mask, bytes) };
        let slots = [self.batches.pick(&choice), self.singles.pick(&choice)];
        assert_eq!(slots[0], slots[1], "{}, seed {}: one request over {mask:#x}", self.kind, self.seed);
        self.loads[slots[0]].in_flight += 1;
        self.loads[slots[0]].bytes_in_flight += bytes;
    }

    /// Some of what one path has is over.
    fn finish(&mut self) {
        let slot = self.dice.of(&[0, 1, 2, 3, 4, 5, 6, 7, 62, 63, self.now.as_nanos() as usize % 64]);
        let some: Vec<_> = (0..self.dice.below(20))
            .map(|_| (self.dice.of(&[0, 4096, 4096, 1 << 20]), self.dice.of(&[0, 900, 10_000, 50_000, 9_000_000])))
            .collect();
        self.batches.finished_all(slot, some.iter().copied());
        some.iter().for_each(|&(bytes, took_ns)| self.singles.finished(slot, bytes, took_ns));
        let load = &mut self.loads[slot];
        load.in_flight /= 2;
        load.bytes_in_flight /= 2;
    }

    fn step(&mut self) {
        match self.dice.below(20) {
            0..8 => self.batch(),
            8..12 => self.single(),
            12..17 => self.finish(),
            17 => self.now = self.now.after(core::time::Duration::from_millis(self.dice.of(&[1, 300, 999, 1000]))),
            18 => {
                let slot = self.dice.below(8) as usize;
                self.batches.forget(slot);
                self.singles.forget(slot);
                self.loads[slot] = PathLoad { weight: 7, uid: self.loads[slot].uid + 64, ..PathLoad::default() };
            }
            _ => {
                let slot = self.dice.below(8) as usize;
                self.loads[slot].weight = self.dice.of(&[1, 2, 100, 1000]);
            }
        }
    }
}

#[test]
fn by_each_rule_a_batch_is_shared_out_as_by_one_choice_after_the_other() {
    for kind in SelectorKind::ALL.into_iter().chain([SelectorKind::RoundRobin { min_io: 24 }]) {
        for seed in 1..=20 {
            println!("{kind}, seed {seed}");
            let mut pair = Pair::new(kind, seed);
            (0..300).for_each(|_| pair.step());
            // Whatever comes then is the same, too.
            (0..200).for_each(|_| pair.single());
            assert!(pair.shared > 50 || matches!(kind, SelectorKind::Hash { .. }));
        }
    }
}

/// Paths whose histories are equal or a simple multiple of each other's, so that some take turns, and of which some were not asked for long.
#[test]
fn by_known_histories_a_batch_is_shared_out_as_by_one_choice_after_the_other() {
    for seed in 1..=200 {
        println!("seed {seed}");
        let mut pair = Pair::new(SelectorKind::HistoricalServiceTime, seed);
        for slot in 0..MAX_PATHS {
            let took_ns = pair.dice.of(&[10_000, 10_000, 20_000]);
            for bytes in [4096, 16_384, 65_536, 262_144, 1 << 20] {
                pair.batches.finished_all(slot, core::iter::once((bytes, took_ns)));
                pair.singles.finished(slot, bytes, took_ns);
            }
        }
        for _ in 0..40 {
            pair.batch();
            let all = pair.dice.below(3) == 0;
            for load in pair.loads.iter_mut().filter(|load| all || load.uid % 2 == 0) {
                (load.in_flight, load.bytes_in_flight) = (0, 0);
            }
            let ms = pair.dice.of(&[0, 1, 100, 499, 500, 500, 1000]);
            pair.now = pair.now.after(core::time::Duration::from_millis(ms));
        }
        (0..20).for_each(|_| pair.single());
    }
}

#[test]
fn a_batch_of_sizes_is_for_nobody_to_share_out_but_the_fewest_in_flight_and_takes_no_turn() {
    for kind in SelectorKind::ALL {
        let (mut asked, mut fresh) = (AnySelector::new(kind, 3), AnySelector::new(kind, 3));
        let mut loads = [PathLoad { weight: 100, ..PathLoad::default() }; 3];
        let (batch, mut shares) = (Batch { mask: 0b111, count: 4, now: Time::ZERO }, [0; MAX_PATHS]);
        let last = asked.share(&batch, || None, &mut loads, &mut shares);
        if kind == SelectorKind::QueueLength {
            assert_eq!((last.is_some(), shares.iter().sum::<u32>()), (true, 4));
            continue;
        }
        assert_eq!((last, shares), (None, [0; MAX_PATHS]), "{kind}");
        for n in 0..20 {
            let choice = Choice { mask: 0b111, loads: &loads, bytes: 4096, offset: n << 20, now: Time::ZERO };
            assert_eq!(asked.pick(&choice), fresh.pick(&choice), "{kind}");
        }
    }
}
