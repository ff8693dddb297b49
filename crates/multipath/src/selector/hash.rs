//! By range of the disk, so that a stream stays on its path. Rendezvous hashing: the loss of a path moves only its own ranges.

use super::{Choice, Selector};

const DEFAULT_RANGE: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Hash {
    range_bytes: u64,
}

impl Hash {
    pub(crate) fn new(range_bytes: u64) -> Self {
        Hash { range_bytes: if range_bytes == 0 { DEFAULT_RANGE } else { range_bytes } }
    }
}

impl Selector for Hash {
    fn pick(&mut self, choice: &Choice<'_>) -> usize {
        // A quotient costs as much as all the rest.
        let power = self.range_bytes.is_power_of_two();
        let range =
            if power { choice.offset >> self.range_bytes.trailing_zeros() } else { choice.offset / self.range_bytes };
        let range = mix(range);
        let (mut best, mut highest) = (0, 0);
        for slot in choice.slots() {
            let rank = mix(range ^ u64::from(choice.loads[slot].uid));
            if rank >= highest {
                (best, highest) = (slot, rank);
            }
        }
        best
    }
}

/// The finaliser of SplitMix64: every bit of the input moves every bit of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::PathLoad;
    use polypath_block::Time;

    fn pick(h: &mut Hash, mask: u64, offset: u64) -> usize {
        let loads: Vec<_> = (0..4).map(|i| PathLoad { uid: i * 7 + 3, ..PathLoad::default() }).collect();
        h.pick(&Choice { mask, loads: &loads, bytes: 4096, offset, now: Time::ZERO })
    }

    #[test]
    fn a_stream_stays_and_a_loss_moves_only_its_share() {
        let mut h = Hash::new(0);
        let (mut moved, mut counts) = (0, [0u32; 4]);
        for range in 0..4000u64 {
            let home = pick(&mut h, 0b1111, range << 20);
            counts[home] += 1;
            assert_eq!(pick(&mut h, 0b1111, (range << 20) + 0xF_F000), home, "a range has one path");
            let without = pick(&mut h, 0b1101, range << 20);
            if home == 1 {
                moved += 1;
                assert_ne!(without, 1);
            } else {
                assert_eq!(without, home, "only the lost path's ranges move");
            }
        }
        assert!(counts.iter().all(|c| (900..1100).contains(c)), "{counts:?}");
        assert_eq!(moved, counts[1]);
    }

    #[test]
    fn mixing_is_that_of_split_mix() {
        // Its first three numbers from the seed 1234567, each of which adds the same to what is mixed.
        let seed = |n: u64| 1234567u64.wrapping_add(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(n));
        let want = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|n| mix(seed(n))), want);
    }

    #[test]
    fn ranges_are_as_large_as_they_were_told_to_be() {
        for odd in [3 << 10, (64 << 10) + 512] {
            let mut h = Hash::new(odd);
            let homes: Vec<_> =
                (0..64u64).map(|n| (pick(&mut h, 0b1111, n * odd), pick(&mut h, 0b1111, (n + 1) * odd - 1))).collect();
            assert!(homes.iter().all(|(first, last)| first == last), "{odd}: {homes:?}");
            assert!((0..4).all(|path| homes.iter().any(|&(home, _)| home == path)));
        }
        let mut h = Hash::new(64 << 10);
        let mut changes = 0;
        for block in 1..4096u64 {
            let (before, here) = (pick(&mut h, 0b1111, (block - 1) << 12), pick(&mut h, 0b1111, block << 12));
            assert!(before == here || block.is_multiple_of(16), "block {block}");
            changes += u32::from(before != here);
        }
        assert!((150..230).contains(&changes), "three of four ranges follow one of another path: {changes} of 255");
    }
}
