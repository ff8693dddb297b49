//! The registry of regions, and each thread's own copy of it.

use crate::error::MemoryError;
use crate::region::Mapping;
use crate::view::{View, Window};
use polypath_block::{RegionId, Segment};
use rustix::fd::OwnedFd;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Most regions at a time (an id carries 16 bits of index and 16 of generation).
const LIMIT: usize = 1 << 16;

struct Registry {
    slots: Vec<Option<Arc<Mapping>>>,
    generations: Vec<u16>,
    free: Vec<u16>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { slots: Vec::new(), generations: Vec::new(), free: Vec::new() });
static VERSION: AtomicU64 = AtomicU64::new(1);

static WATCHERS: Mutex<Vec<Weak<dyn RegionWatcher>>> = Mutex::new(Vec::new());

/// Told of regions that go, for whoever has handed one to somebody else (a vhost-user back-end) and must take it back.
pub trait RegionWatcher: Send + Sync {
    /// `region` was dropped and is in no table any more; its id names nothing from now on. Called once, by the thread that drops the
    /// region, before the drop returns: it must not block.
    fn dropped(&self, region: RegionId);
}

/// Tells `watcher` of every region that is dropped from now on, for as long as it lives. Takes a lock; call it when a device opens.
pub fn watch(watcher: Weak<dyn RegionWatcher>) {
    let mut watchers = lock_watchers();
    watchers.retain(|w| w.strong_count() > 0);
    watchers.push(watcher);
}

thread_local! {
    static TABLE: RefCell<Table> = const { RefCell::new(Table { version: 0, maps: Vec::new() }) };
}

/// A segment that reaches outside its region, or whose region is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("segment of {} bytes at offset {} reaches outside its region, or the region is gone", .0.len, .0.offset)]
pub struct BadSegment(pub Segment);

/// The file behind a region.
#[derive(Clone, Debug)]
pub struct Backing {
    /// The file.
    pub fd: Arc<OwnedFd>,
    /// Where the region begins in it, in bytes.
    pub file_offset: u64,
    /// Where the region begins in this process. A number: reaching bytes goes through views.
    pub address: usize,
    /// Length in bytes.
    pub len: u64,
}

/// One thread's table of regions. Get it with [`with`].
#[derive(Default)]
pub struct Table {
    version: u64,
    maps: Vec<Option<Arc<Mapping>>>,
}

impl Table {
    /// The bytes of `segment`.
    ///
    /// # Errors
    /// [`BadSegment`] when the region is gone or the segment reaches outside it.
    #[inline]
    pub fn view(&self, segment: Segment) -> Result<View<'_>, BadSegment> {
        let index = (segment.region.0 & 0xffff) as usize;
        let mapping = match self.maps.get(index) {
            Some(Some(m)) if m.id == segment.region => m,
            _ => return Err(BadSegment(segment)),
        };
        let address = mapping.address(segment.offset, u64::from(segment.len)).ok_or(BadSegment(segment))?;
        Ok(View::new(address, segment.len as usize))
    }

    /// A window over `segment` that keeps its region mapped for as long as it lives: for memory that the kernel reads or writes
    /// after the call has returned (io_uring). One atomic increment.
    ///
    /// # Errors
    /// As [`Table::view`].
    #[inline]
    pub fn pin(&self, segment: Segment) -> Result<Window, BadSegment> {
        let index = (segment.region.0 & 0xffff) as usize;
        match self.maps.get(index) {
            Some(Some(m)) if m.id == segment.region => {
                Window::new(m.clone(), segment.offset, u64::from(segment.len)).ok_or(BadSegment(segment))
            }
            _ => Err(BadSegment(segment)),
        }
    }

    /// Length of a region in bytes, if it is there.
    pub fn region_len(&self, region: RegionId) -> Option<u64> {
        self.maps.get((region.0 & 0xffff) as usize)?.as_ref().filter(|m| m.id == region).map(|m| m.len())
    }

    /// The file behind a region and where both lie, for handing it to another process.
    pub fn backing(&self, region: RegionId) -> Option<Backing> {
        let mapping = self.maps.get((region.0 & 0xffff) as usize)?.as_ref().filter(|m| m.id == region)?;
        let (fd, file_offset) = mapping.file.clone()?;
        let address = mapping.address(0, mapping.len())?.as_ptr() as usize;
        Some(Backing { fd, file_offset, address, len: mapping.len() })
    }

    fn follow(&mut self) {
        let version = VERSION.load(Ordering::Acquire);
        if version != self.version {
            self.reload(version);
        }
    }

    #[cold]
    fn reload(&mut self, version: u64) {
        let registry = lock();
        // Clone before dropping the old ones: a mapping that goes unmaps outside the lock.
        let maps = registry.slots.clone();
        drop(registry);
        self.maps = maps;
        self.version = version;
    }
}

/// Runs `f` with this thread's table, brought up to date first. Do not call it inside itself.
#[inline]
pub fn with<R>(f: impl FnOnce(&Table) -> R) -> R {
    TABLE.with(|table| {
        let mut table = table.borrow_mut();
        table.follow();
        f(&table)
    })
}

/// Lets go of regions that were dropped elsewhere. Reactors call it each turn; it is one atomic load.
#[inline]
pub fn refresh() {
    with(|_| ());
}

pub(crate) fn register(make: impl FnOnce(RegionId) -> Arc<Mapping>) -> Result<Arc<Mapping>, MemoryError> {
    let mut registry = lock();
    let index = match registry.free.pop() {
        Some(index) => index as usize,
        None if registry.slots.len() < LIMIT => {
            registry.slots.push(None);
            registry.generations.push(0);
            registry.slots.len() - 1
        }
        None => return Err(MemoryError::TooMany { limit: LIMIT }),
    };
    // Generation 0 is never used, so that an id is never zero.
    let generation = registry.generations[index].wrapping_add(1).max(1);
    registry.generations[index] = generation;
    let mapping = make(RegionId(u32::from(generation) << 16 | index as u32));
    registry.slots[index] = Some(mapping.clone());
    VERSION.fetch_add(1, Ordering::Release);
    Ok(mapping)
}

pub(crate) fn unregister(id: RegionId) {
    let mut registry = lock();
    let index = (id.0 & 0xffff) as usize;
    let held = registry.slots[index].take();
    registry.free.push(index as u16);
    VERSION.fetch_add(1, Ordering::Release);
    drop(registry);
    drop(held);
    // Called with no lock held: a watcher may be the last of its kind, and own a region.
    let watchers: Vec<_> = lock_watchers().iter().filter_map(Weak::upgrade).collect();
    watchers.iter().for_each(|w| w.dropped(id));
}

fn lock_watchers() -> MutexGuard<'static, Vec<Weak<dyn RegionWatcher>>> {
    WATCHERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;

    fn seg(region: RegionId, offset: u64, len: u32) -> Segment {
        Segment { offset, region, len }
    }

    #[test]
    fn segments_are_held_to_their_region() {
        let region = Region::allocate(8192, false).unwrap();
        let id = region.id();
        with(|t| {
            assert!(t.view(seg(id, 8191, 1)).is_ok());
            assert!(t.view(seg(id, 8191, 2)).is_err());
            assert!(t.view(seg(id, u64::MAX, 2)).is_err());
            assert!(t.view(seg(RegionId::NONE, 0, 1)).is_err());
        });
        drop(region);
        with(|t| assert!(t.view(seg(id, 0, 1)).is_err()));
        let next = Region::allocate(4096, false).unwrap();
        assert_ne!(next.id(), id, "an id is not given again");
        with(|t| assert!(t.view(seg(id, 0, 1)).is_err()));
    }

    #[test]
    fn other_threads_see_regions_come_and_go() {
        let region = Region::allocate(4096, false).unwrap();
        let id = region.id();
        std::thread::spawn(move || with(|t| assert_eq!(t.region_len(id), Some(4096)))).join().unwrap();
        drop(region);
        std::thread::spawn(move || with(|t| assert_eq!(t.region_len(id), None))).join().unwrap();
    }

    struct Notes(Mutex<Vec<RegionId>>);

    impl RegionWatcher for Notes {
        fn dropped(&self, region: RegionId) {
            with(|t| assert_eq!(t.region_len(region), None, "gone before it is told"));
            self.0.lock().unwrap().push(region);
        }
    }

    #[test]
    fn watchers_are_told_of_what_goes() {
        let notes = Arc::new(Notes(Mutex::default()));
        let watcher: Arc<dyn RegionWatcher> = notes.clone();
        watch(Arc::downgrade(&watcher));
        let (first, second) = (Region::allocate(4096, false).unwrap(), Region::allocate(4096, false).unwrap());
        let ids = [first.id(), second.id()];
        drop(first);
        std::thread::spawn(move || drop(second)).join().unwrap();
        // Other tests drop regions, too.
        let told: Vec<_> = notes.0.lock().unwrap().iter().copied().filter(|id| ids.contains(id)).collect();
        assert_eq!(told, ids);
    }
}
