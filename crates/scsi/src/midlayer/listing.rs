//! Which logical units a target reports (REPORT LUNS, SPC-4 section 6.33), for whoever wants to know them all.

use super::bus::{Bus, lock};
use crate::lun::LunList;
use std::sync::Arc;

/// What is reported, for as long as somebody wants to know.
#[derive(Default)]
pub(super) struct Listing {
    users: u32,
    /// To be asked for.
    stale: bool,
    listed: Option<Listed>,
}

/// What a target has reported last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Numbers of its logical units that a single-level LUN can name, ascending, each once. Well-known ones are left out.
    pub luns: Arc<[u32]>,
    /// How often it has reported; grows with each answer, whether anything has changed or not.
    pub round: u64,
}

/// Somebody wants to know which logical units there are. They are asked for now and then, and when the target says that they changed.
pub struct ListingUse(Arc<Bus>);

impl ListingUse {
    /// What was reported last since somebody wanted to know; it may be some time ago, when the target is down. `None`: nothing yet.
    pub fn listed(&self) -> Option<Listed> {
        lock(&self.0.listing).listed.clone()
    }

    /// It may have changed: it is asked for at once.
    pub fn doubt(&self) {
        self.0.doubt_listing();
        self.0.call();
    }
}

impl Drop for ListingUse {
    fn drop(&mut self) {
        let mut listing = lock(&self.0.listing);
        listing.users -= 1;
        if listing.users == 0 {
            *listing = Listing::default();
        }
    }
}

impl Bus {
    /// Asks for the list of logical units from now on, until the answer is dropped.
    pub fn list_units(self: &Arc<Self>) -> ListingUse {
        let mut listing = lock(&self.listing);
        listing.users += 1;
        listing.stale = true;
        drop(listing);
        self.call();
        ListingUse(self.clone())
    }

    /// For a control poller: is the list to be asked for?
    pub(super) fn take_stale_listing(&self) -> bool {
        let mut listing = lock(&self.listing);
        listing.users > 0 && std::mem::take(&mut listing.stale)
    }

    /// The list may have changed.
    pub(super) fn doubt_listing(&self) {
        lock(&self.listing).stale = true;
    }

    /// The target has reported this.
    pub(super) fn show_listing(&self, list: &LunList) {
        if list.is_cut() {
            tracing::warn!(path = %self.name(), taken = list.luns.len(), octets = list.total_bytes, "more logical units are reported than are looked at");
        }
        let mut luns: Vec<u32> = list.luns.iter().filter_map(|lun| lun.number()).filter(|&lun| lun <= MOST).collect();
        luns.sort_unstable();
        luns.dedup();
        let mut listing = lock(&self.listing);
        let before = listing.listed.take();
        let changed = before.as_ref().is_none_or(|listed| *listed.luns != *luns);
        let round = before.map_or(0, |listed| listed.round) + 1;
        listing.listed = Some(Listed { luns: luns.into(), round });
        drop(listing);
        if changed {
            self.announce();
        }
    }
}

/// The largest number that URIs name.
const MOST: u32 = 16_383;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lun;
    use polypath_block::{Host, MakePoller, Time};
    use std::time::Duration;

    struct Nowhere;

    impl Host for Nowhere {
        fn spawn(&self, _: MakePoller) {}
        fn wake(&self) {}
        fn reactor(&self) -> u16 {
            0
        }
        fn now(&self) -> Time {
            Time::ZERO
        }
    }

    #[test]
    fn it_is_asked_for_while_somebody_wants_to_know() {
        let bus = Bus::new("b", Arc::new(Nowhere), Duration::ZERO);
        bus.doubt_listing();
        assert!(!bus.take_stale_listing(), "nobody wants to know");
        let wish = bus.list_units();
        assert!(bus.take_stale_listing() && !bus.take_stale_listing() && wish.listed().is_none());
        let list = |luns: &[u64]| {
            let luns: Vec<Lun> = luns.iter().map(|&raw| Lun::from_raw(raw)).collect();
            LunList { total_bytes: 8 + 8 * luns.len(), luns }
        };
        let version = bus.version();
        // Flat, peripheral, the same by another form, well known, and two levels.
        bus.show_listing(&list(&[0x4101 << 48, 7 << 48, 0x4007 << 48, 0xc101 << 48, 0x0101_0203 << 32, 0]));
        assert_eq!(wish.listed(), Some(Listed { luns: [0, 7, 257].into(), round: 1 }));
        assert!(bus.version() > version);
        let version = bus.version();
        bus.show_listing(&list(&[0, 7 << 48, 0x4101 << 48]));
        assert_eq!((wish.listed().map(|l| l.round), bus.version()), (Some(2), version), "nothing has changed");
        wish.doubt();
        assert!(bus.take_stale_listing());
        drop(wish);
        assert!(bus.list_units().listed().is_none(), "what was known is too old");
    }
}
