//! What a written block looks like, and what a read block turns out to be.
//!
//! Every 512-byte sector of a block stands for itself: eight words of stamp, then a pattern that follows from them. So a block
//! that is half of one write and half of another is seen for what it is, and so is one that belongs elsewhere.
//!
//! | word | meaning |
//! |---|---|
//! | 0 | magic |
//! | 1 | checksum of the other words of the sector |
//! | 2 | history: the identity of the verification record |
//! | 3 | disk |
//! | 4 | block number |
//! | 5 | sequence number of the write |
//! | 6 | run: which start of the checker wrote it (for people) |
//! | 7 | sector number within the block |

/// Bytes of a sector.
pub(super) const SECTOR: usize = 512;
const WORDS: usize = SECTOR / 8;
const STAMP: usize = 8;
const MAGIC: u64 = u64::from_le_bytes(*b"polypath");

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Author {
    pub(super) history: u64,
    pub(super) disk: u64,
    pub(super) run: u64,
}

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Data of this checker's write number `sequence`, for this very block.
    Write {
        /// Sequence number of the write.
        sequence: u64,
    },
    /// Nothing but zeroes.
    Zeroes,
    /// A whole block of this checker that belongs elsewhere.
    Elsewhere {
        /// The block it was written to.
        lba: u64,
        /// The disk it was written to.
        disk: u64,
        /// Sequence number of the write.
        sequence: u64,
    },
    /// Whole sectors of different writes, or partly zeroes.
    Torn {
        /// The first sector's write; zero when it is zeroes.
        first: u64,
        /// The write of the first sector that differs; zero when it is zeroes.
        other: u64,
        /// Which sector that is.
        sector: u32,
    },
    /// A block of another verification record (another checker, or this one before its record was thrown away).
    Foreign {
        /// The other record.
        history: u64,
    },
    /// Bytes that bear a stamp and do not match it.
    Corrupted {
        /// The first sector that is wrong.
        sector: u32,
    },
    /// Neither stamp nor zeroes.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sector {
    Stamped { history: u64, disk: u64, lba: u64, sequence: u64 },
    Zeroes,
    Damaged,
    Unknown,
}

/// Fills `block` with write `sequence` to `lba`.
pub(super) fn fill(block: &mut [u8], author: Author, lba: u64, sequence: u64) {
    for (number, sector) in block.chunks_exact_mut(SECTOR).enumerate() {
        let stamp = [MAGIC, 0, author.history, author.disk, lba, sequence, author.run, number as u64];
        let (words, _) = sector.as_chunks_mut::<8>();
        for (word, value) in words.iter_mut().zip(stamp) {
            *word = value.to_le_bytes();
        }
        let seed = seed(&stamp);
        for (at, word) in words[STAMP..].iter_mut().enumerate() {
            *word = pattern(seed, at).to_le_bytes();
        }
        let sum = checksum(words);
        words[1] = sum.to_le_bytes();
    }
}

/// What `block`, read from `lba`, holds.
pub(super) fn look(block: &[u8], author: Author, lba: u64) -> Found {
    let mut sectors = block.chunks_exact(SECTOR).enumerate().map(|(n, s)| look_sector(s, n as u64));
    let Some(first) = sectors.next() else { return Found::Unknown };
    if let Some(bad) = as_bad(first, 0) {
        return bad;
    }
    for (number, sector) in sectors.enumerate() {
        let number = number as u32 + 1;
        if sector == first {
            continue;
        }
        if let Some(bad) = as_bad(sector, number) {
            return if bad == Found::Unknown { Found::Corrupted { sector: number } } else { bad };
        }
        return Found::Torn { first: sequence(first), other: sequence(sector), sector: number };
    }
    match first {
        Sector::Stamped { history, .. } if history != author.history => Found::Foreign { history },
        Sector::Stamped { disk, lba: at, sequence, .. } if disk != author.disk || at != lba => {
            Found::Elsewhere { lba: at, disk, sequence }
        }
        Sector::Stamped { sequence, .. } => Found::Write { sequence },
        _ => Found::Zeroes,
    }
}

fn as_bad(sector: Sector, number: u32) -> Option<Found> {
    match sector {
        Sector::Damaged => Some(Found::Corrupted { sector: number }),
        Sector::Unknown => Some(Found::Unknown),
        Sector::Stamped { .. } | Sector::Zeroes => None,
    }
}

fn sequence(sector: Sector) -> u64 {
    match sector {
        Sector::Stamped { sequence, .. } => sequence,
        _ => 0,
    }
}

fn look_sector(sector: &[u8], number: u64) -> Sector {
    let (words, _) = sector.as_chunks::<8>();
    let word = |at: usize| u64::from_le_bytes(words[at]);
    if word(0) != MAGIC {
        return if words.iter().all(|w| *w == [0; 8]) { Sector::Zeroes } else { Sector::Unknown };
    }
    let stamp = [MAGIC, 0, word(2), word(3), word(4), word(5), word(6), word(7)];
    let seed = seed(&stamp);
    // The checksum catches what came after the stamp was made, the pattern catches a checksum that was made over damage.
    let intact = checksum(words) == word(1)
        && word(7) == number
        && words[STAMP..].iter().enumerate().all(|(at, w)| u64::from_le_bytes(*w) == pattern(seed, at));
    if !intact {
        return Sector::Damaged;
    }
    Sector::Stamped { history: word(2), disk: word(3), lba: word(4), sequence: word(5) }
}

/// A seed that differs for every write, block and sector.
fn seed(stamp: &[u64; STAMP]) -> u64 {
    stamp.iter().fold(0x9e37_79b9_7f4a_7c15, |acc, &w| mix(acc ^ w))
}

/// Finaliser of SplitMix64: every bit of the input reaches every bit of the output.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[inline]
fn pattern(seed: u64, at: usize) -> u64 {
    let w = seed.wrapping_add((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    w ^ (w >> 29)
}

/// Four lanes, so that the multiplications overlap. The checksum's own word counts as zero.
fn checksum(words: &[[u8; 8]]) -> u64 {
    debug_assert_eq!(words.len(), WORDS);
    let mut lanes: [u64; 4] = [1, 2, 3, 4];
    for (at, group) in words.chunks_exact(4).enumerate() {
        for (lane, word) in group.iter().enumerate() {
            let word = if at == 0 && lane == 1 { 0 } else { u64::from_le_bytes(*word) };
            lanes[lane] = (lanes[lane] ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
        }
    }
    lanes.iter().fold(0, |acc, &l| mix(acc ^ l))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Author = Author { history: 7, disk: 8, run: 9 };

    fn block(lba: u64, sequence: u64) -> Vec<u8> {
        let mut b = vec![0; 4096];
        fill(&mut b, ME, lba, sequence);
        b
    }

    #[test]
    fn tells_what_it_is() {
        assert_eq!(look(&block(5, 6), ME, 5), Found::Write { sequence: 6 });
        assert_eq!(look(&[0; 512], ME, 5), Found::Zeroes);
        assert_eq!(look(&[1; 512], ME, 5), Found::Unknown);
        assert_eq!(look(&block(4, 6), ME, 5), Found::Elsewhere { lba: 4, disk: 8, sequence: 6 });
        let other = Author { disk: 80, ..ME };
        assert_eq!(look(&block(5, 6), other, 5), Found::Elsewhere { lba: 5, disk: 8, sequence: 6 });
        assert_eq!(look(&block(5, 6), Author { history: 1, ..ME }, 5), Found::Foreign { history: 7 });
        assert_eq!(look(&block(5, 6), Author { run: 10, ..ME }, 5), Found::Write { sequence: 6 });
    }

    #[test]
    fn torn_blocks_are_told_from_damaged_ones() {
        let mut torn = block(5, 6);
        torn[2048..].copy_from_slice(&block(5, 7)[2048..]);
        assert_eq!(look(&torn, ME, 5), Found::Torn { first: 6, other: 7, sector: 4 });
        torn[512..].fill(0);
        assert_eq!(look(&torn, ME, 5), Found::Torn { first: 6, other: 0, sector: 1 });
        let mut swapped = block(5, 6);
        swapped.copy_within(512..1024, 0);
        assert_eq!(look(&swapped, ME, 5), Found::Corrupted { sector: 0 }, "sectors in the wrong order");
    }

    #[test]
    fn every_single_bit_matters() {
        let good = block(5, 6);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = look(&bad, ME, 5);
            assert!(matches!(found, Found::Corrupted { .. } | Found::Unknown), "bit {bit}: {found:?}");
        }
    }
}
