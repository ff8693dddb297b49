//! The requests of one share that go down with the tags they have, so that sharing costs nothing while nobody shares.
//!
//! One share at a time may have such requests open; those of the others, and those whose tags look like ours, get tags of our own on
//! the way down. The two kinds are told apart by the uppermost two bits: 00 is a share's own, 01 is ours.

use polypath_block::{Completion, Io, SlotKey};

const KIND: u32 = 62;
const OURS: u64 = 1 << KIND;

/// Was it given by a share itself?
#[inline]
pub(crate) fn is_plain(tag: u64) -> bool {
    tag >> KIND == 0
}

/// The tag below of a request that is known by `key`.
#[inline]
pub(crate) fn tag_of(key: SlotKey) -> u64 {
    OURS | u64::from(key.as_u32())
}

/// The key in a tag of ours.
#[inline]
pub(crate) fn key_of(tag: u64) -> SlotKey {
    SlotKey::from_u32(tag as u32)
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    /// Whose they are.
    pub(crate) share: usize,
    /// Those that have not completed. While there are any, they are all of one share.
    pub(crate) open: usize,
    /// Tags of those that are suspect.
    suspects: Vec<u64>,
}

impl Plain {
    /// May `ios` of share `index` go down as they are? It is the one that may from then on, until nothing of it is open. Not while anything
    /// is suspect: its user may have forgotten that tag and give it again.
    #[inline]
    pub(crate) fn takes(&mut self, index: usize, ios: &[Io]) -> bool {
        if self.open == 0 {
            self.share = index;
        }
        self.share == index && self.suspects.is_empty() && is_plain(ios.iter().fold(0, |all, io| all | io.tag))
    }

    /// One is suspect; `false` when that is known, or it is nobody's.
    pub(crate) fn suspect(&mut self, tag: u64) -> bool {
        let new = self.suspects.len() < self.open && !self.suspects.contains(&tag);
        if new {
            self.suspects.push(tag);
        }
        new
    }

    /// As many of `completions` from the front as are of share `index`, when nothing of it is suspect.
    #[inline]
    pub(crate) fn completed_of(&mut self, index: usize, completions: &[Completion]) -> usize {
        if self.share != index || !self.suspects.is_empty() {
            return 0;
        }
        let all = is_plain(completions.iter().fold(0, |all, c| all | c.tag)) && completions.len() <= self.open;
        let plain = match all {
            true => completions.len(),
            false => completions.iter().take(self.open).take_while(|c| is_plain(c.tag)).count(),
        };
        self.open -= plain;
        plain
    }

    /// One has completed: was it suspect? `None` when none is open.
    pub(crate) fn completed(&mut self, tag: u64) -> Option<bool> {
        self.open = self.open.checked_sub(1)?;
        let suspect = self.suspects.iter().position(|&t| t == tag);
        suspect.map(|at| self.suspects.swap_remove(at));
        Some(suspect.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Proof, SegSpan, Status};

    fn read(tag: u64) -> Io {
        Io::read(tag, 0, 1, SegSpan::EMPTY)
    }

    fn done(tag: u64) -> Completion {
        Completion { tag, status: Status::OK, proof: Proof::Answered }
    }

    #[test]
    fn one_share_at_a_time_keeps_its_tags() {
        let mut plain = Plain::default();
        assert!(plain.takes(3, &[read(1), read(2)]));
        plain.open += 2;
        assert!(!plain.takes(4, &[read(1)]), "tags of two shares may be the same");
        assert!(
            !plain.takes(3, &[read(3), read(OURS)]) && !plain.takes(3, &[read(1 << 63)]),
            "not to be told from ours"
        );
        assert_eq!(plain.completed_of(4, &[done(1)]), 0);
        assert_eq!(plain.completed_of(3, &[done(2), done(OURS), done(1)]), 1);
        assert!(!plain.takes(4, &[read(1)]));
        assert_eq!(plain.completed(1), Some(false));
        assert_eq!(plain.completed(1), None, "it is nobody's");
        assert!(plain.takes(4, &[read(1)]));
    }

    #[test]
    fn what_is_suspect_is_so_once_and_until_it_completes() {
        let mut plain = Plain::default();
        assert!(!plain.suspect(1), "none is open");
        assert!(plain.takes(0, &[read(1), read(2)]));
        plain.open += 2;
        assert!(plain.suspect(1) && !plain.suspect(1));
        assert!(!plain.takes(0, &[read(1)]), "a tag that is given again");
        assert_eq!(plain.completed_of(0, &[done(2)]), 0, "one by one while any is suspect");
        assert_eq!((plain.completed(2), plain.completed(1)), (Some(false), Some(true)));
        assert_eq!((plain.open, plain.completed_of(0, &[done(3)])), (0, 0));
    }
}
