//! Regions: who maps them, from what, and in which pages.

use crate::error::MemoryError;
use crate::sigbus;
use crate::table;
use crate::transparent::{self, Kind};
use polypath_block::RegionId;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, FallocateFlags, MemfdFlags};
use rustix::mm::{self, MapFlags, ProtFlags};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of foreign memory mapped at a time, by all guests together. A file is as long as its owner says, whatever memory
/// there is: without a bound, one front-end could use up the address space (128 TiB) that everything else here needs.
pub const FOREIGN_LIMIT: u64 = 64 << 40;
static FOREIGN: AtomicU64 = AtomicU64::new(0);
/// `FUSE_SUPER_MAGIC` and `HUGETLBFS_MAGIC`, linux/magic.h.
const FUSE: u64 = 0x6573_5546;
const HUGETLBFS: u64 = 0x9584_58f6;

/// Size of the huge pages asked for, in bytes.
const HUGE: u64 = 2 << 20;
/// Size of an ordinary page, in bytes.
const PAGE: u64 = 4096;

/// Which pages a region is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// 2 MiB huge pages, reserved by the administrator and taken at once.
    Huge,
    /// The kernel was asked for 2 MiB huge pages, and gives them as memory is first used and as it has them.
    Transparent,
    /// Ordinary 4 KiB pages.
    Ordinary,
    /// Whatever the file behind a foreign descriptor has, in bytes a page.
    Foreign(u64),
}

impl Pages {
    /// The word for it in logs and reports: `huge`, `transparent`, `ordinary` or `foreign`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Pages::Huge => "huge",
            Pages::Transparent => "transparent",
            Pages::Ordinary => "ordinary",
            Pages::Foreign(_) => "foreign",
        }
    }
}

/// One mapping. Unmapped when the last holder lets go.
pub(crate) struct Mapping {
    pub(crate) id: RegionId,
    /// First byte of the region (not of the mapping, which may begin earlier).
    base: NonNull<u8>,
    len: u64,
    map_base: NonNull<u8>,
    map_len: usize,
    /// The file behind it, and where the region begins in that.
    pub(crate) file: Option<(Arc<OwnedFd>, u64)>,
    watch: Option<sigbus::Watch>,
    /// Counts it out of [`FOREIGN`].
    _share: Option<Share>,
}

/// Bytes counted in [`FOREIGN`].
struct Share(u64);

impl Share {
    fn take(len: u64) -> Result<Share, MemoryError> {
        let share = Share(len);
        // Counted first, so that two at a time cannot both find room; dropped again if there is none.
        if FOREIGN.fetch_add(len, Ordering::Relaxed).saturating_add(len) > FOREIGN_LIMIT {
            return Err(MemoryError::TooMuch { len, limit: FOREIGN_LIMIT });
        }
        Ok(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        FOREIGN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

// SAFETY: a mapping is plain shared memory; all access to it goes through volatile or atomic operations of `View` and `Window`,
// which tolerate any concurrent change. The pointers stay valid until drop.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(sigbus::Watch::is_lost)
    }

    /// Address of `offset .. offset + len`, if inside the region.
    #[inline]
    pub(crate) fn address(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset <= len of the region, which lies wholly inside the live mapping.
        Some(unsafe { self.base.add(offset as usize) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: map_base/map_len are exactly what mmap returned; nobody can hold a view any more, views borrow the mapping.
        if let Err(error) = unsafe { mm::munmap(self.map_base.as_ptr().cast(), self.map_len) } {
            tracing::error!(%error, len = self.map_len, "munmap failed; the memory stays mapped");
        }
    }
}

/// A registered region. Dropping it takes it out of the registry; the memory goes once no thread holds it any more.
///
/// Whoever drops a region must have drained the I/O that uses it: later accesses find nothing and fail.
pub struct Region {
    mapping: Arc<Mapping>,
    pages: Pages,
    fallback: Option<String>,
}

impl Region {
    /// `len` bytes (rounded up to whole pages) of fresh zeroed shared memory, in huge pages if `huge` and there are any: reserved ones,
    /// else transparent ones.
    ///
    /// [`Region::fallback`] says why none of the reserved were taken where they were wanted.
    ///
    /// # Errors
    /// [`MemoryError`] when not even ordinary pages can be had.
    pub fn allocate(len: u64, huge: bool) -> Result<Region, MemoryError> {
        check_len(len)?;
        if !huge {
            let mapping = Self::memfd(len.next_multiple_of(PAGE), None, MemfdFlags::empty())?;
            return Ok(Region { mapping, pages: Pages::Ordinary, fallback: None });
        }
        let why = match Self::reserved(len, None) {
            Ok(region) => return Ok(region),
            Err(why) => why,
        };
        let mapping = Self::memfd(len.next_multiple_of(PAGE), None, MemfdFlags::empty())?;
        let (pages, fallback) = ask_for_huge(&mapping, Kind::Shared, why);
        Ok(Region { mapping, pages, fallback })
    }

    /// `len` bytes (rounded up to whole pages) of fresh zeroed memory of this process alone, in huge pages if `huge`, there are any, and it is
    /// at least one long: reserved ones, which are all taken now, else transparent ones. Other memory than reserved pages is taken as it is first
    /// used. Without reserved huge pages there is no [`Region::fd`].
    ///
    /// For memory that is large and given to nobody: most systems have transparent huge pages for private memory and none for shared.
    ///
    /// # Errors
    /// [`MemoryError`] when not even ordinary pages can be had.
    pub fn private(len: u64, huge: bool) -> Result<Region, MemoryError> {
        check_len(len)?;
        let len = len.next_multiple_of(PAGE);
        let why = match huge {
            true if len < HUGE => Some(format!("{len} bytes are less than a huge page of 2 MiB")),
            true => match Self::reserved(len, Some(len)) {
                Ok(region) => return Ok(region),
                Err(why) => Some(why),
            },
            false => None,
        };
        let mapping = match map_private(len) {
            Ok((map, map_len, skip)) => register(map, map_len, skip, len, None, None)?,
            // Where the kernel counts what might be used, it lets us have what is used.
            Err(_) => Self::memfd(len, None, MemfdFlags::empty())?,
        };
        let kind = if mapping.file.is_some() { Kind::Shared } else { Kind::Private };
        let (pages, fallback) = match why {
            Some(why) if len < HUGE => (Pages::Ordinary, Some(format!("{why}; ordinary pages are used"))),
            Some(why) => ask_for_huge(&mapping, kind, why),
            None => (Pages::Ordinary, None),
        };
        Ok(Region { mapping, pages, fallback })
    }

    /// Reserved huge pages, all of them or none: one that is missing when it is first touched would be a SIGBUS.
    fn reserved(len: u64, visible: Option<u64>) -> Result<Region, String> {
        let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        match Self::memfd(len.next_multiple_of(HUGE), visible, flags) {
            Ok(mapping) => Ok(Region { mapping, pages: Pages::Huge, fallback: None }),
            Err(error) => {
                let pages = len.div_ceil(HUGE);
                Err(format!(
                    "no {pages} huge pages of 2 MiB ({error}; to have them: sysctl vm.nr_hugepages={pages} and as many as are in use)"
                ))
            }
        }
    }

    /// `len` bytes at `offset` of somebody else's file: guest memory from a vhost-user front-end.
    ///
    /// The file may be on hugetlbfs, where a mapping must begin and end at page borders: the mapping then covers more than
    /// the region, and only the region can be reached.
    ///
    /// Whoever must not wait for the close of a descriptor that is refused keeps a clone of its [`Arc`].
    ///
    /// # Errors
    /// [`MemoryError::Shape`] or [`MemoryError::TooShort`] for a region that does not fit its file, [`MemoryError::Fuse`] and
    /// [`MemoryError::TooMuch`] for what would endanger others.
    pub fn from_fd(fd: impl Into<Arc<OwnedFd>>, offset: u64, len: u64) -> Result<Region, MemoryError> {
        let fd: Arc<OwnedFd> = fd.into();
        let end = match offset.checked_add(len) {
            Some(end) if len > 0 && end <= 1 << 52 => end,
            _ => {
                return Err(MemoryError::Shape {
                    len,
                    offset,
                    problem: "length must not be zero and the end must be below 2^52",
                });
            }
        };
        // In this order: a server that serves a file is not asked anything, as far as that can be.
        if on_fuse(&fd) {
            return Err(MemoryError::Fuse);
        }
        let file_system = fs::fstatfs(&*fd).map_err(|e| system("fstatfs", len, e.into(), ""))?;
        if file_system.f_type as u64 == FUSE {
            return Err(MemoryError::Fuse);
        }
        let stat = fs::fstat(&*fd).map_err(|e| system("fstat", len, e.into(), ""))?;
        let kind = fs::FileType::from_raw_mode(stat.st_mode);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if kind == fs::FileType::RegularFile && size < end {
            return Err(MemoryError::TooShort { needed: end, size });
        }
        let page = match file_system.f_type as u64 {
            HUGETLBFS => u64::try_from(file_system.f_bsize).unwrap_or(PAGE),
            _ => PAGE,
        };
        let map_from = offset / page * page;
        let map_len = (end - map_from).next_multiple_of(page);
        let hint = " (memory limit, or a file that cannot be mapped shared and writable)";
        let share = Share::take(map_len)?;
        let map = map_shared((*fd).as_fd(), map_from, map_len, MapFlags::NORESERVE, hint)?;
        // What a guest has in its memory is nobody's to find in a core dump of ours.
        // SAFETY: exactly the new mapping; nothing about its bytes changes.
        if let Err(error) = unsafe { mm::madvise(map.as_ptr().cast(), map_len as usize, mm::Advice::LinuxDontDump) } {
            unmap(map, map_len);
            return Err(system("madvise", map_len, error.into(), ""));
        }
        let mapping = register(map, map_len, offset - map_from, len, Some((fd, offset)), Some((share, page)))?;
        Ok(Region { mapping, pages: Pages::Foreign(page), fallback: None })
    }

    /// A file in memory of `len` bytes, mapped; `visible` bytes of it are the region if it is not all of it.
    fn memfd(len: u64, visible: Option<u64>, flags: MemfdFlags) -> Result<Arc<Mapping>, MemoryError> {
        let huge = flags.contains(MemfdFlags::HUGETLB);
        let hint = if huge { " (are huge pages reserved?)" } else { "" };
        let fd = fs::memfd_create("polypath", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags)
            .map_err(|e| system("memfd_create", len, e.into(), hint))?;
        fs::ftruncate(&fd, len).map_err(|e| system("ftruncate", len, e.into(), hint))?;
        // Whoever is given the descriptor must not be able to take the memory away under us. (Growth harms nobody.)
        fs::fcntl_add_seals(&fd, fs::SealFlags::SHRINK).map_err(|e| system("sealing a memfd", len, e.into(), ""))?;
        let address = map_shared(fd.as_fd(), 0, len, MapFlags::empty(), hint)?;
        let mapping = register(address, len, 0, visible.unwrap_or(len), Some((Arc::new(fd), 0)), None)?;
        if huge {
            // Reserved they are, but a cgroup or a NUMA policy may still have a say: better now than at the first touch.
            // SAFETY: exactly the new mapping; its pages are touched, none is changed.
            match unsafe { mm::madvise(address.as_ptr().cast(), len as usize, mm::Advice::LinuxPopulateWrite) } {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => {
                    table::unregister(mapping.id);
                    return Err(system("populating huge pages", len, error.into(), hint));
                }
            }
        }
        Ok(mapping)
    }

    /// Its name in segments.
    pub fn id(&self) -> RegionId {
        self.mapping.id
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.mapping.len
    }

    /// Never: a region has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What it is made of.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Why reserved huge pages were not taken where huge ones were wanted, what was taken, and what to do.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Has all of its pages made now instead of when they are first used: it blocks for as long as that takes. Without memory for it, or on a
    /// kernel before 5.14, they are made later all the same.
    pub fn populate(&self) {
        let (base, len) = (self.mapping.base.as_ptr().cast(), self.mapping.len as usize);
        // SAFETY: exactly the live region; its pages are touched, none is changed.
        if let Err(error) = unsafe { mm::madvise(base, len, mm::Advice::LinuxPopulateWrite) } {
            tracing::debug!(%error, len, "memory is not taken in advance");
        }
    }

    /// Gives whole pages of it back to the system: they read as zeroes from now on, and are taken again when they are next used. `offset` and
    /// `len` are multiples of 4 KiB.
    ///
    /// `false`: nothing was done. That is so of reserved huge pages, for another process could take them meanwhile and the next use be a
    /// SIGBUS, of memory of others, and where the system has no way to do it.
    #[must_use]
    pub fn give_back(&self, offset: u64, len: u64) -> bool {
        let ours = matches!(self.pages, Pages::Transparent | Pages::Ordinary);
        let whole = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        let Some(address) = self.mapping.address(offset, len).filter(|_| ours && whole) else { return false };
        match &self.mapping.file {
            Some((fd, begin)) => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fs::fallocate(&**fd, mode, begin + offset, len).is_ok()
            }
            None => {
                // SAFETY: whole pages inside a mapping of our own without a file; whoever reads them meanwhile does so by volatile
                // operations and finds the old bytes or zeroes.
                unsafe { mm::madvise(address.as_ptr().cast(), len as usize, mm::Advice::LinuxDontNeed) }.is_ok()
            }
        }
    }

    /// The file behind it, to be handed to another process.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file.as_ref().map(|(fd, _)| fd.as_fd())
    }

    /// A window over `offset .. offset + len` that keeps the memory mapped for as long as it lives.
    ///
    /// `None` when the range is not inside the region.
    pub fn window(&self, offset: u64, len: u64) -> Option<crate::Window> {
        crate::Window::new(self.mapping.clone(), offset, len)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        table::unregister(self.mapping.id);
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("id", &self.id()).field("len", &self.len()).field("pages", &self.pages).finish()
    }
}

fn register(
    map_base: NonNull<u8>,
    map_len: u64,
    skip: u64,
    len: u64,
    file: Option<(Arc<OwnedFd>, u64)>,
    foreign: Option<(Share, u64)>,
) -> Result<Arc<Mapping>, MemoryError> {
    // Only what strangers can take away is watched; see the module.
    let watch = match &foreign {
        Some((_, page)) => sigbus::Watch::new(map_base.as_ptr() as usize, map_len as usize, *page as usize).map(Some),
        None => Ok(None),
    };
    let made = watch.and_then(|watch| {
        table::register(|id| {
            // SAFETY: skip + len <= map_len by the callers' arithmetic, so the result lies inside the mapping.
            let base = unsafe { map_base.add(skip as usize) };
            Arc::new(Mapping {
                id,
                base,
                len,
                map_base,
                map_len: map_len as usize,
                file,
                watch,
                _share: foreign.map(|(share, _)| share),
            })
        })
    });
    made.inspect_err(|_| {
        unmap(map_base, map_len);
    })
}

/// Is it on a FUSE file system? By what is known here, without asking its server, which may never answer.
fn on_fuse(fd: &OwnedFd) -> bool {
    // Only files in memory have seals, which is what guests are made of.
    if fs::fcntl_get_seals(fd).is_ok() {
        return false;
    }
    let flags = fs::AtFlags::EMPTY_PATH | fs::AtFlags::STATX_DONT_SYNC;
    let Ok(stat) = fs::statx(fd, c"", flags, fs::StatxFlags::empty()) else { return false };
    let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
    std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|list| is_fuse_in(&list, &device))
}

/// Is `device` ("major:minor") a FUSE file system in this list (proc_pid_mountinfo(5))?
fn is_fuse_in(list: &str, device: &str) -> bool {
    list.lines().filter(|line| line.split(' ').nth(2) == Some(device)).any(|line| {
        let kind = line.split_once(" - ").map_or("", |(_, rest)| rest);
        kind.starts_with("fuse") || kind.starts_with("virtiofs")
    })
}

/// Takes back a mapping that came to nothing.
fn unmap(base: NonNull<u8>, len: u64) {
    // SAFETY: the mapping was just made and nobody else knows of it.
    let _ = unsafe { mm::munmap(base.as_ptr().cast(), len as usize) };
}

fn map_shared(
    fd: BorrowedFd<'_>,
    offset: u64,
    len: u64,
    flags: MapFlags,
    hint: &'static str,
) -> Result<NonNull<u8>, MemoryError> {
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
    let address = unsafe {
        mm::mmap(
            ptr::null_mut(),
            len as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | flags,
            fd,
            offset,
        )
    }
    .map_err(|e| system("mmap", len, e.into(), hint))?;
    NonNull::new(address.cast()).ok_or_else(|| system("mmap", len, io::Error::other("null address"), ""))
}

fn check_len(len: u64) -> Result<(), MemoryError> {
    if len == 0 || len > 1 << 46 {
        return Err(MemoryError::Shape { len, offset: 0, problem: "length must be from 1 byte to 64 TiB" });
    }
    Ok(())
}

/// Fresh zeroed memory without a file: the mapping, its length, and where in it `len` bytes begin that are aligned to huge pages.
fn map_private(len: u64) -> Result<(NonNull<u8>, u64, u64), MemoryError> {
    let map_len = if len < HUGE { len } else { len + HUGE };
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
    let address = unsafe {
        mm::mmap_anonymous(ptr::null_mut(), map_len as usize, rights, MapFlags::PRIVATE | MapFlags::NORESERVE)
    }
    .map_err(|e| system("mmap", map_len, e.into(), ""))?;
    let map = NonNull::new(address.cast()).ok_or_else(|| system("mmap", len, io::Error::other("null address"), ""))?;
    // A child would make copies of what it shares with us; it has no use for it.
    // SAFETY: exactly the new mapping; nothing about its bytes changes.
    if let Err(error) = unsafe { mm::madvise(address, map_len as usize, mm::Advice::LinuxDontFork) } {
        unmap(map, map_len);
        return Err(system("madvise", map_len, error.into(), ""));
    }
    let begin = address as u64;
    let skip = if len < HUGE { 0 } else { begin.next_multiple_of(HUGE) - begin };
    Ok((map, map_len, skip))
}

/// Asks for transparent huge pages where `why` there are no reserved ones; says what it is now.
fn ask_for_huge(mapping: &Mapping, kind: Kind, why: String) -> (Pages, Option<String>) {
    let asked = transparent::may_be_asked(kind).and_then(|()| {
        // SAFETY: exactly the live mapping; nothing about its bytes changes.
        let advised =
            unsafe { mm::madvise(mapping.map_base.as_ptr().cast(), mapping.map_len, mm::Advice::LinuxHugepage) };
        advised.map_err(|error| format!("transparent ones are refused ({error})"))
    });
    match asked {
        Ok(()) => (Pages::Transparent, Some(format!("{why}; transparent ones are asked for"))),
        Err(error) => (Pages::Ordinary, Some(format!("{why}; {error}; ordinary pages are used"))),
    }
}

fn system(call: &'static str, len: u64, source: io::Error, hint: &'static str) -> MemoryError {
    MemoryError::System { call, len, source, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::with;
    use polypath_block::Segment;

    /// More than any machine has in huge pages, so that the way round is always taken.
    #[test]
    fn without_huge_pages_the_fall_back_says_what_and_how_to_mend_it() {
        let region = Region::allocate(1 << 40, true).unwrap();
        assert_eq!(region.pages(), Pages::Ordinary);
        let said = region.fallback().expect("a fall back has a message");
        for part in ["524288 huge pages of 2 MiB", "ordinary pages are used", "sysctl vm.nr_hugepages=524288"] {
            assert!(said.contains(part), "{part:?} is missing in {said:?}");
        }
        let window = region.window((1 << 40) - 8, 8).unwrap();
        window.copy_in(0, b"the end.").unwrap();
        let plain = Region::allocate(4096, false).unwrap();
        assert_eq!((plain.pages(), plain.fallback()), (Pages::Ordinary, None), "nothing was wanted, nothing is said");
    }

    /// With huge pages in the machine: they are used, and a foreign region at an offset that is no multiple of a huge page (as
    /// QEMU has behind its VGA hole) can be mapped and reached.
    #[test]
    fn huge_pages_are_used_where_there_are_any() {
        let region = Region::allocate(3 << 20, true).unwrap();
        if region.pages() == Pages::Ordinary {
            let said = region.fallback().expect("a fall back has a message");
            println!("skipped: {said}");
            assert!(said.contains("no 2 huge pages of 2 MiB"), "{said}");
            return;
        }
        assert_eq!((region.pages(), region.len(), region.fallback()), (Pages::Huge, 4 << 20, None));
        region.window(0xc_0000, 4).unwrap().copy_in(0, b"lowe").unwrap();
        region.window((4 << 20) - 4, 4).unwrap().copy_in(0, b"last").unwrap();
        let fd = || region.fd().unwrap().try_clone_to_owned().unwrap();
        let low = Region::from_fd(fd(), 0xc_0000, 0x1000).unwrap();
        let high = Region::from_fd(fd(), 0x10_0000, 3 << 20).unwrap();
        assert_eq!((low.pages(), low.len()), (Pages::Foreign(2 << 20), 0x1000));
        let mut bytes = [0; 4];
        low.window(0, 4).unwrap().copy_out(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"lowe");
        assert!(low.window(0x1000, 1).is_none(), "what is mapped besides cannot be reached");
        with(|t| {
            let view = t.view(Segment { offset: (3 << 20) - 4, region: high.id(), len: 4 }).unwrap();
            view.copy_out(&mut bytes);
        });
        assert_eq!(&bytes, b"last");
    }

    #[test]
    fn fuse_is_told_by_the_list_of_mounts() {
        let list = "36 35 0:33 / /mnt rw,noatime shared:1 - fuse.sshfs host:/ rw\n37 35 0:34 / /x rw - tmpfs none rw\n\
                    38 35 98:0 / /y rw - fuseblk /dev/sdb rw\n39 35 0:40 / /z rw - virtiofs tag rw";
        let found = ["0:33", "0:34", "98:0", "0:40", "0:3"].map(|device| is_fuse_in(list, device));
        assert_eq!(found, [true, false, true, true, false]);
        assert!(!on_fuse(&OwnedFd::from(std::fs::File::open("/proc/self/mountinfo").unwrap())));
    }

    #[test]
    fn our_own_memory_cannot_be_cut_by_whoever_has_its_descriptor() {
        let region = Region::allocate(8192, false).unwrap();
        let theirs = region.fd().unwrap().try_clone_to_owned().unwrap();
        assert_eq!(fs::ftruncate(&theirs, 0), Err(rustix::io::Errno::PERM));
        assert_eq!(fs::ftruncate(&theirs, 4096), Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn strangers_cannot_use_up_the_address_space() {
        let fd = fs::memfd_create("endless", MemfdFlags::CLOEXEC).unwrap();
        fs::ftruncate(&fd, 1 << 51).unwrap();
        let map = |len| Region::from_fd(fd.try_clone().unwrap(), 0, len);
        let most = map(FOREIGN_LIMIT - (1 << 40)).unwrap();
        assert!(matches!(map(2 << 40), Err(MemoryError::TooMuch { .. })));
        drop(most);
        // Threads of other tests may have seen it, and let go of it when they end or look again.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while let Err(error) = map(2 << 40) {
            assert!(std::time::Instant::now() < until, "not counted out again: {error}");
            with(|_| ());
            std::thread::yield_now();
        }
    }
}
