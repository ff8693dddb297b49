//! Guest memory: which region of ours stands behind a guest address.

use polypath_block::{RegionId, Segment};
use polypath_memory::{Region, Window};
use std::sync::Arc;

/// Most regions one front-end may have mapped.
pub(crate) const MAX_REGIONS: usize = 256;
/// Most bytes of one front-end that are mapped: memory, log and record. A quarter of what all may have together.
pub(crate) const MAX_BYTES: u64 = polypath_memory::FOREIGN_LIMIT / 4;

/// Why a region cannot be part of a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// It is of no length, or wraps around the end of the address space.
    #[error("memory region at {guest_addr:#x} of {len:#x} bytes is empty or wraps around")]
    Shape {
        /// Guest address.
        guest_addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// It overlaps another one.
    #[error("memory region at {guest_addr:#x} of {len:#x} bytes overlaps one that is there")]
    Overlap {
        /// Guest address.
        guest_addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// There are too many.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// They are too large.
    #[error("more than {MAX_BYTES} bytes in one guest, memory, log and record of requests in flight together")]
    TooLarge,
}

/// One mapped region.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) guest_addr: u64,
    pub(crate) len: u64,
    user_addr: u64,
    pub(crate) id: RegionId,
    pub(crate) window: Window,
    owner: Arc<Region>,
}

// A difference of addresses is a place in a window.
const _: () = assert!(usize::BITS == u64::BITS);

impl Entry {
    /// Where the byte at guest address `addr` is, if it is in this region.
    #[inline(always)]
    pub(crate) fn offset(&self, addr: u64) -> Option<usize> {
        // The window has all of the region: whoever looks in it need not be checked again.
        let at = addr.wrapping_sub(self.guest_addr) as usize;
        if at < self.window.len() { Some(at) } else { None }
    }
}

/// The memory of one guest at one time: never changed, only replaced. Keeps its regions registered while it lives.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    /// By guest address.
    entries: Vec<Entry>,
}

impl GuestMemory {
    /// No memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// This memory and one region more, all of `region`, at `guest_addr` for the guest and at `user_addr` for the front-end.
    ///
    /// # Errors
    /// [`MapError`] when it has no place.
    pub fn with(&self, guest_addr: u64, user_addr: u64, region: Arc<Region>) -> Result<GuestMemory, MapError> {
        let len = region.len();
        let bad = MapError::Shape { guest_addr, len };
        let window = region.window(0, len).ok_or(bad)?;
        if guest_addr.checked_add(len).is_none() || user_addr.checked_add(len).is_none() {
            return Err(bad);
        }
        if self.entries.len() >= MAX_REGIONS {
            return Err(MapError::TooMany);
        }
        if self.bytes().saturating_add(len) > MAX_BYTES {
            return Err(MapError::TooLarge);
        }
        if self.entries.iter().any(|e| guest_addr < e.guest_addr + e.len && e.guest_addr < guest_addr + len) {
            return Err(MapError::Overlap { guest_addr, len });
        }
        let mut entries = self.entries.clone();
        let at = entries.partition_point(|e| e.guest_addr < guest_addr);
        entries.insert(at, Entry { guest_addr, len, user_addr, id: region.id(), window, owner: region });
        Ok(GuestMemory { entries })
    }

    /// This memory without the region that is exactly `len` bytes at `guest_addr` and `user_addr`; `None` if there is none.
    pub fn without(&self, guest_addr: u64, user_addr: u64, len: u64) -> Option<GuestMemory> {
        let is_it = |e: &Entry| e.guest_addr == guest_addr && e.user_addr == user_addr && e.len == len;
        let at = self.entries.iter().position(is_it)?;
        let mut entries = self.entries.clone();
        entries.remove(at);
        Some(GuestMemory { entries })
    }

    /// A window over `len` bytes at `user_addr` of the front-end, if one region holds them all.
    pub fn user_window(&self, user_addr: u64, len: u64) -> Option<Window> {
        self.entries.iter().find_map(|e| {
            let offset = user_addr.checked_sub(e.user_addr)?;
            if offset < e.len { e.owner.window(offset, len) } else { None }
        })
    }

    /// Has some of it been cut off behind the guest's back? Then what is read of it are zeroes.
    pub(crate) fn is_lost(&self) -> bool {
        self.entries.iter().any(|e| e.window.is_lost())
    }

    /// Holders of the mappings. Whoever keeps them while the memory is let go of is the one who unmaps it: that takes long for
    /// a large guest, and should not be a reactor that serves others.
    pub(crate) fn mappings(&self) -> Vec<Window> {
        self.entries.iter().map(|e| e.window.clone()).collect()
    }

    /// Bytes of all regions.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.len).sum()
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.entries.len()
    }

    /// The region with the byte at `addr`. `hint` remembers where the last one was found.
    #[inline]
    pub(crate) fn find(&self, addr: u64, hint: &mut usize) -> Option<&Entry> {
        if let Some(e) = self.entries.get(*hint)
            && addr.wrapping_sub(e.guest_addr) < e.len
        {
            return Some(e);
        }
        let at = self.entries.partition_point(|e| e.guest_addr <= addr).checked_sub(1)?;
        let e = &self.entries[at];
        if addr - e.guest_addr < e.len {
            *hint = at;
            Some(e)
        } else {
            None
        }
    }

    /// The region that a hint of [`GuestMemory::find`] names.
    #[inline]
    pub(crate) fn entry(&self, hint: u32) -> Option<&Entry> {
        self.entries.get(hint as usize)
    }

    /// The window of the region `id`, tried first at `hint`.
    #[inline]
    pub(crate) fn window(&self, id: RegionId, hint: usize) -> Option<&Window> {
        match self.entries.get(hint) {
            Some(e) if e.id == id => Some(&e.window),
            _ => self.entries.iter().find(|e| e.id == id).map(|e| &e.window),
        }
    }

    /// Where the guest has byte `offset` of the region `id`, tried first at `hint`, which remembers where it was.
    pub(crate) fn guest_addr(&self, id: RegionId, offset: u64, hint: &mut usize) -> Option<u64> {
        let e = match self.entries.get(*hint) {
            Some(e) if e.id == id => e,
            _ => {
                *hint = self.entries.iter().position(|e| e.id == id)?;
                &self.entries[*hint]
            }
        };
        (offset < e.len).then(|| e.guest_addr + offset)
    }

    /// Where the guest has the byte at `user_addr` of the front-end.
    pub(crate) fn user_to_guest(&self, user_addr: u64) -> Option<u64> {
        self.entries.iter().find_map(|e| {
            let offset = user_addr.checked_sub(e.user_addr)?;
            (offset < e.len).then(|| e.guest_addr + offset)
        })
    }

    /// Fills `into` from guest address `addr`, across regions that touch. False if some of it is not there.
    pub(crate) fn read(&self, addr: u64, into: &mut [u8], hint: &mut usize) -> bool {
        let mut done = 0;
        while done < into.len() {
            let Some(at) = addr.checked_add(done as u64) else { return false };
            let Some(e) = self.find(at, hint) else { return false };
            let offset = at - e.guest_addr;
            let n = (e.len - offset).min((into.len() - done) as u64) as usize;
            if e.window.copy_out(offset as usize, &mut into[done..done + n]).is_err() {
                return false;
            }
            done += n;
        }
        true
    }

    /// Fills `into` from the start of `segs`; returns how much there was.
    pub(crate) fn gather(&self, segs: &[Segment], into: &mut [u8]) -> usize {
        let mut done = 0;
        for seg in segs {
            let n = (into.len() - done).min(seg.len as usize);
            let Some(window) = self.window(seg.region, 0) else { break };
            if n == 0 || window.copy_out(seg.offset as usize, &mut into[done..done + n]).is_err() {
                break;
            }
            done += n;
        }
        done
    }

    /// Writes `data` to the start of `segs`; returns how much had room.
    pub(crate) fn scatter(&self, segs: &[Segment], data: &[u8]) -> usize {
        let mut done = 0;
        for seg in segs {
            let n = (data.len() - done).min(seg.len as usize);
            let Some(window) = self.window(seg.region, 0) else { break };
            if n == 0 || window.copy_in(seg.offset as usize, &data[done..done + n]).is_err() {
                break;
            }
            done += n;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(len: u64) -> Arc<Region> {
        Arc::new(Region::allocate(len, false).unwrap())
    }

    #[test]
    fn overlaps_and_wraps_are_refused() {
        let memory = GuestMemory::new().with(0x10000, 0x7000_0000, region(0x2000)).unwrap();
        for at in [0xf000, 0x10000, 0x11000] {
            let err = memory.with(at, 0x8000_0000, region(0x2000)).unwrap_err();
            assert!(matches!(err, MapError::Overlap { .. }), "{at:#x}: {err}");
        }
        assert!(matches!(memory.with(u64::MAX - 0xfff, 0, region(0x2000)), Err(MapError::Shape { .. })));
        assert!(matches!(memory.with(0, u64::MAX - 0xfff, region(0x2000)), Err(MapError::Shape { .. })));
        let two = memory.with(0x12000, 0x9000_0000, region(0x1000)).unwrap();
        assert_eq!((two.regions(), memory.regions()), (2, 1));
        assert!(two.without(0x12000, 0x9000_0000, 0x2000).is_none(), "only the exact region");
        assert_eq!(two.without(0x12000, 0x9000_0000, 0x1000).unwrap().regions(), 1);
    }

    #[test]
    fn finds_and_reads_across_regions_that_touch() {
        let (a, b) = (region(0x1000), region(0x1000));
        a.window(0xfff, 1).unwrap().copy_in(0, &[1]).unwrap();
        b.window(0, 1).unwrap().copy_in(0, &[2]).unwrap();
        let memory = GuestMemory::new().with(0x2000, 0, b).unwrap().with(0x1000, 0x5000, a).unwrap();
        let (mut hint, mut two) = (7, [0; 2]);
        assert!(memory.read(0x1fff, &mut two, &mut hint));
        assert_eq!(two, [1, 2]);
        assert!(!memory.read(0x2fff, &mut two, &mut hint));
        for outside in [0, 0xfff, 0x3000, u64::MAX] {
            assert!(memory.find(outside, &mut hint).is_none(), "{outside:#x}");
        }
        assert!(memory.user_window(0x5fff, 1).is_some());
        assert!(memory.user_window(0x5fff, 2).is_none());
        assert!(memory.user_window(u64::MAX, 2).is_none());
    }
}
