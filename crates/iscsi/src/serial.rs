//! Numbers that wrap: CmdSN and StatSN, compared as RFC 1982 says with 32 bits (RFC 7143 section 4.2.2).

use std::cmp::Ordering;
use std::marker::PhantomData;

/// What [`CmdSn`] counts: commands of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Commands {}

/// What [`StatSn`] counts: answers of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answers {}

/// CmdSN, ExpCmdSN, MaxCmdSN, RefCmdSN: the place of a command in its session (RFC 7143 section 4.2.2.1).
pub type CmdSn = Serial<Commands>;

/// StatSN, ExpStatSN: the place of an answer in its connection (RFC 7143 section 4.2.2.2).
pub type StatSn = Serial<Answers>;

/// A 32-bit serial number of some kind. It follows its predecessor by one and wraps to 0.
///
/// Of two numbers half the circle apart neither comes first, and "before" is not transitive around the circle, which is why
/// this is no `Ord`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Serial<K> {
    value: u32,
    kind: PhantomData<K>,
}

impl<K: Copy> Serial<K> {
    /// The number with this value.
    #[inline]
    pub const fn new(value: u32) -> Self {
        Serial { value, kind: PhantomData }
    }

    /// Its value, as it goes onto the wire.
    #[inline]
    pub const fn get(self) -> u32 {
        self.value
    }

    /// The number that follows.
    #[inline]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The number `count` places later.
    #[inline]
    pub const fn plus(self, count: u32) -> Self {
        Serial::new(self.value.wrapping_add(count))
    }

    /// The number before.
    #[inline]
    pub const fn previous(self) -> Self {
        Serial::new(self.value.wrapping_sub(1))
    }

    /// Steps from `self` forward to `later`, around the circle if need be.
    #[inline]
    pub const fn steps_to(self, later: Self) -> u32 {
        later.value.wrapping_sub(self.value)
    }

    /// How the two compare; `None` when they are half the circle apart, where RFC 1982 section 3.2 leaves it undefined.
    #[inline]
    pub const fn compare(self, other: Self) -> Option<Ordering> {
        match self.steps_to(other) {
            0 => Some(Ordering::Equal),
            1..0x8000_0000 => Some(Ordering::Less),
            0x8000_0000 => None,
            _ => Some(Ordering::Greater),
        }
    }

    /// Whether this number comes before `other`.
    #[inline]
    pub const fn is_before(self, other: Self) -> bool {
        matches!(self.compare(other), Some(Ordering::Less))
    }

    /// Whether this number comes after `other`.
    #[inline]
    pub const fn is_after(self, other: Self) -> bool {
        matches!(self.compare(other), Some(Ordering::Greater))
    }

    /// Whether this number lies between `first` and `last`, both included; false when `last` comes before `first`.
    ///
    /// With ExpCmdSN and MaxCmdSN it says whether a target takes a CmdSN (RFC 7143 section 4.2.2.1).
    #[inline]
    pub const fn is_within(self, first: Self, last: Self) -> bool {
        !last.is_before(first) && first.steps_to(self) <= first.steps_to(last)
    }
}

impl<K: Copy> std::fmt::Debug for Serial<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value.fmt(f)
    }
}

impl<K: Copy> std::fmt::Display for Serial<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sn(value: u32) -> CmdSn {
        CmdSn::new(value)
    }

    #[test]
    fn compares_as_rfc_1982_says() {
        use Ordering::{Equal, Greater, Less};
        // RFC 1982 section 5.2 has the same table with 8 bits: 1 > 0, 44 > 0, 100 > 0, 100 > 44, 200 > 100, 255 > 200, 0 > 255, 100 > 255,
        // 0 > 200, 44 > 200; here each value is shifted to the upper octet.
        let table =
            [(1, 0), (44, 0), (100, 0), (100, 44), (200, 100), (255, 200), (0, 255), (100, 255), (0, 200), (44, 200)];
        for (later, earlier) in table {
            let (later, earlier) = (sn(later << 24), sn(earlier << 24));
            assert_eq!(
                (later.compare(earlier), earlier.compare(later)),
                (Some(Greater), Some(Less)),
                "{later} {earlier}"
            );
        }
        assert_eq!(sn(7).compare(sn(7)), Some(Equal));
        for (a, b) in [(0, 0x8000_0000), (1, 0x8000_0001), (0xffff_ffff, 0x7fff_ffff)] {
            assert_eq!((sn(a).compare(sn(b)), sn(b).compare(sn(a))), (None, None), "{a:#x} {b:#x}");
            assert!(!sn(a).is_before(sn(b)) && !sn(a).is_after(sn(b)));
        }
    }

    #[test]
    fn windows_at_the_wrap() {
        // first, last, inside, outside
        let table: [(u32, u32, &[u32], &[u32]); 5] = [
            (5, 5, &[5], &[4, 6]),
            (5, 4, &[], &[3, 4, 5, 6]), // a closed window: MaxCmdSN = ExpCmdSN - 1
            (0xffff_fffe, 1, &[0xffff_fffe, 0xffff_ffff, 0, 1], &[0xffff_fffd, 2, 0x8000_0000]),
            (0, 0xffff_ffff, &[], &[0, 0xffff_ffff, 1]),
            (0xffff_ffff, 0xffff_ffff, &[0xffff_ffff], &[0, 0xffff_fffe]),
        ];
        for (first, last, inside, outside) in table {
            let within = |n: &u32| sn(*n).is_within(sn(first), sn(last));
            assert!(inside.iter().all(within), "{first:#x}..={last:#x}");
            assert!(!outside.iter().any(within), "{first:#x}..={last:#x}");
        }
    }

    /// Mostly near the wrap and near the half circle.
    fn value() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), (0u32..8).prop_map(|n| n.wrapping_sub(4)), (0u32..8).prop_map(|n| 0x7fff_fffc + n)]
    }

    proptest! {
        #[test]
        fn stepping_forward_is_later_and_comes_back(start in value(), steps in value()) {
            let (from, to) = (sn(start), sn(start).plus(steps));
            prop_assert_eq!(from.steps_to(to), steps);
            prop_assert_eq!(from.is_before(to), (1..0x8000_0000).contains(&steps));
            prop_assert_eq!(to.is_after(from), from.is_before(to));
            prop_assert_eq!(to.is_before(from), steps > 0x8000_0000);
            prop_assert_eq!(from.next().previous(), from);
            prop_assert!(from.is_before(from.next()));
        }

        #[test]
        fn a_window_holds_its_length(first in value(), length in 0u32..0x8000_0000, at in value()) {
            let (first, last) = (sn(first), sn(first).plus(length));
            prop_assert!(first.is_within(first, last) && last.is_within(first, last));
            prop_assert_eq!(sn(at).is_within(first, last), first.steps_to(sn(at)) <= length);
            prop_assert!(!first.previous().is_within(first, last) || length == u32::MAX);
        }
    }
}
