//! Which block next, and read or write: seeded, without a clock.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};

/// One request to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Read, or else write.
    pub read: bool,
    /// First block.
    pub lba: u64,
}

/// An endless sequence of requests of one size over a range of blocks. Equal seeds give equal sequences.
#[derive(Clone, Debug)]
pub struct Workload {
    rng: Xoshiro256PlusPlus,
    random: bool,
    read_pct: u8,
    first: u64,
    step: u64,
    places: u64,
    next: u64,
}

impl Workload {
    /// Requests of `io_blocks` blocks among the `blocks` blocks from `first` on, aligned to their own size from there;
    /// `read_pct` percent of them reads.
    ///
    /// # Panics
    /// If not even one request fits, or the percentage is more than 100.
    pub fn new(first: u64, blocks: u64, io_blocks: u32, random: bool, read_pct: u8, seed: u64) -> Self {
        let places = blocks / u64::from(io_blocks.max(1));
        assert!(places > 0 && io_blocks > 0 && read_pct <= 100, "{io_blocks} blocks of {blocks}, {read_pct} % reads");
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        Workload { rng, random, read_pct, first, step: io_blocks.into(), places, next: 0 }
    }

    /// The next request.
    #[inline]
    pub fn next_request(&mut self) -> Request {
        let place = if self.random {
            self.below(self.places)
        } else {
            let place = self.next;
            self.next = if place + 1 == self.places { 0 } else { place + 1 };
            place
        };
        let read = match self.read_pct {
            100 => true,
            0 => false,
            pct => self.below(100) < u64::from(pct),
        };
        Request { read, lba: self.first + place * self.step }
    }

    /// A number below `n`: the high half of a product, even to one part in 2^64 / n.
    #[inline]
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.rng.next_u64()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_range_and_keeps_the_mix() {
        let mut w = Workload::new(100, 1001, 8, true, 70, 1);
        let mut seen = [false; 125];
        let mut reads = 0;
        for _ in 0..100_000 {
            let r = w.next_request();
            assert!(r.lba >= 100 && r.lba + 8 <= 1101 && (r.lba - 100).is_multiple_of(8));
            seen[((r.lba - 100) / 8) as usize] = true;
            reads += u32::from(r.read);
        }
        assert!(seen.iter().all(|&s| s), "every place is met");
        assert!((69_000..71_000).contains(&reads), "{reads}");
    }

    #[test]
    fn sequential_wraps_and_seeds_repeat() {
        let mut w = Workload::new(0, 24, 8, false, 100, 1);
        let lbas: Vec<_> = (0..5).map(|_| w.next_request().lba).collect();
        assert_eq!(lbas, [0, 8, 16, 0, 8]);
        let take = |seed| {
            let mut w = Workload::new(0, 1 << 30, 1, true, 50, seed);
            (0..10).map(|_| w.next_request()).collect::<Vec<_>>()
        };
        assert_eq!(take(5), take(5));
        assert_ne!(take(5), take(6));
    }
}
