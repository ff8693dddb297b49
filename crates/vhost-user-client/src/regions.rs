//! Which regions of ours the back-end has, and at which addresses.
//!
//! A region is known by its [`RegionId`], never by where it lies in this process: memory that is allocated again at the address of freed memory is
//! another region. To the back-end, each mapping has addresses of its own that are not given again, so that not even a mapping that
//! it could not let go of can be taken for another one.

use polypath_block::{Code, RegionId};

/// First address given to the back-end; the lowest are left out, as a null pointer should be.
const FIRST: u64 = 1 << 32;
/// Addresses end here: far more than a process can use up, and a sum of two stays representable.
const LIMIT: u64 = 1 << 62;
const PAGE: u64 = 4096;

/// A region that the back-end has mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapped {
    /// Its address for the back-end.
    pub(crate) base: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    /// Where it begins in its file, in bytes.
    pub(crate) file_offset: u64,
}

/// What is known of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// The back-end is being told of it.
    Asked,
    /// The back-end has it.
    Mapped(Mapped),
    /// The back-end does not take it.
    Refused(Code),
}

/// All regions of one connection.
#[derive(Debug)]
pub(crate) struct Regions {
    known: Vec<(RegionId, Known)>,
    next: u64,
}

impl Regions {
    pub(crate) fn new() -> Regions {
        Regions { known: Vec::new(), next: FIRST }
    }

    /// All that is known, in no order.
    pub(crate) fn known(&self) -> &[(RegionId, Known)] {
        &self.known
    }

    /// Notes that `id` is asked for. False if something is known of it already.
    pub(crate) fn ask(&mut self, id: RegionId) -> bool {
        let new = self.find(id).is_none();
        if new {
            self.known.push((id, Known::Asked));
        }
        new
    }

    /// Addresses for `len` bytes, for good. `None` when there are none left.
    pub(crate) fn allot(&mut self, len: u64) -> Option<u64> {
        let base = self.next;
        // A page between two, so that nothing that runs over the end of one is in another.
        let end = base.checked_add(len)?.checked_next_multiple_of(PAGE)?.checked_add(PAGE)?;
        if end > LIMIT {
            return None;
        }
        self.next = end;
        Some(base)
    }

    /// Notes what came of asking. False if the region has gone meanwhile.
    pub(crate) fn settle(&mut self, id: RegionId, outcome: Known) -> bool {
        match self.known.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) => {
                *known = outcome;
                true
            }
            None => false,
        }
    }

    /// Forgets a region that has gone, and says what was known. Those that the back-end had no place for may be asked for again.
    pub(crate) fn forget(&mut self, id: RegionId) -> Option<Known> {
        let at = self.known.iter().position(|(known, _)| *known == id)?;
        let (_, was) = self.known.swap_remove(at);
        if matches!(was, Known::Mapped(_)) {
            self.known.retain(|(_, known)| !matches!(known, Known::Refused(_)));
        }
        Some(was)
    }

    pub(crate) fn find(&self, id: RegionId) -> Option<Known> {
        self.known.iter().find(|(known, _)| *known == id).map(|(_, known)| *known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(base: u64) -> Known {
        Known::Mapped(Mapped { base, len: 4096, file_offset: 0 })
    }

    #[test]
    fn a_region_is_asked_for_once_and_forgotten_once() {
        let (mut regions, id) = (Regions::new(), RegionId(7));
        assert!(regions.ask(id) && !regions.ask(id));
        assert!(regions.settle(id, mapped(9)));
        assert!(!regions.ask(id), "the back-end has it");
        assert_eq!((regions.forget(id), regions.forget(id)), (Some(mapped(9)), None));
        assert!(!regions.settle(id, mapped(9)), "it went while it was being mapped");
        assert!(regions.ask(id));
    }

    #[test]
    fn the_refused_are_asked_for_again_when_there_is_room() {
        let mut regions = Regions::new();
        for n in 1..=3 {
            assert!(regions.ask(RegionId(n)));
        }
        regions.settle(RegionId(1), mapped(1));
        regions.settle(RegionId(2), Known::Refused(Code::PathLost));
        assert!(!regions.ask(RegionId(2)));
        regions.forget(RegionId(3));
        assert!(!regions.ask(RegionId(2)), "nothing was unmapped");
        regions.forget(RegionId(1));
        assert!(regions.ask(RegionId(2)));
    }

    #[test]
    fn addresses_are_never_given_twice() {
        let mut regions = Regions::new();
        let (first, second) = (regions.allot(5000).unwrap(), regions.allot(1).unwrap());
        assert!(second >= first + 5000 + PAGE && second.is_multiple_of(PAGE));
        assert_eq!(regions.allot(u64::MAX), None);
        assert_eq!(regions.allot(LIMIT), None);
        assert!(regions.allot(1).unwrap() > second, "what had no place took none");
    }
}
