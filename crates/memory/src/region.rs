//! Regions: who maps them, from what, and in which pages.

use crate::error::MemoryError;
use crate::sigbus;
use crate::table;
use polypath_block::RegionId;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, MemfdFlags};
use rustix::mm::{self, MapFlags, ProtFlags};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Size of the huge pages asked for, in bytes.
const HUGE: u64 = 2 << 20;
/// Size of an ordinary page, in bytes.
const PAGE: u64 = 4096;

/// Which pages a region is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// 2 MiB huge pages.
    Huge,
    /// Ordinary 4 KiB pages.
    Ordinary,
    /// Whatever the file behind a foreign descriptor has, in bytes a page.
    Foreign(u64),
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

    /// Address of `offset .. offset + len`, if inside the region.
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
    /// `len` bytes (rounded up to whole pages) of fresh zeroed shared memory, in huge pages if `huge` and there are any.
    ///
    /// [`Region::fallback`] says why ordinary pages were taken where huge ones were wanted.
    ///
    /// # Errors
    /// [`MemoryError`] when not even ordinary pages can be had.
    pub fn allocate(len: u64, huge: bool) -> Result<Region, MemoryError> {
        if len == 0 || len > 1 << 46 {
            return Err(MemoryError::Shape { len, offset: 0, problem: "length must be from 1 byte to 64 TiB" });
        }
        let mut fallback = None;
        if huge {
            match Self::memfd(
                len.next_multiple_of(HUGE),
                MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
                MapFlags::POPULATE,
            ) {
                Ok(mapping) => return Ok(Region { mapping, pages: Pages::Huge, fallback: None }),
                Err(error) => {
                    let pages = len.div_ceil(HUGE);
                    fallback = Some(format!(
                        "no {pages} huge pages of 2 MiB ({error}); ordinary pages are used. To have them: sysctl vm.nr_hugepages=N"
                    ));
                }
            }
        }
        let mapping = Self::memfd(len.next_multiple_of(PAGE), MemfdFlags::empty(), MapFlags::empty())?;
        Ok(Region { mapping, pages: Pages::Ordinary, fallback })
    }

    /// `len` bytes at `offset` of somebody else's file: guest memory from a vhost-user front-end.
    ///
    /// The file may be on hugetlbfs, where a mapping must begin and end at page borders: the mapping then covers more than
    /// the region, and only the region can be reached.
    ///
    /// # Errors
    /// [`MemoryError::Shape`] or [`MemoryError::TooShort`] for a region that does not fit its file.
    pub fn from_fd(fd: OwnedFd, offset: u64, len: u64) -> Result<Region, MemoryError> {
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
        let stat = fs::fstat(&fd).map_err(|e| system("fstat", len, e.into(), ""))?;
        let kind = fs::FileType::from_raw_mode(stat.st_mode);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if kind == fs::FileType::RegularFile && size < end {
            return Err(MemoryError::TooShort { needed: end, size });
        }
        let page = u64::try_from(stat.st_blksize).unwrap_or(PAGE).max(PAGE);
        let page = if page.is_power_of_two() { page } else { PAGE };
        let map_from = offset / page * page;
        let map_len = (end - map_from).next_multiple_of(page);
        let map = map_shared(fd.as_fd(), map_from, map_len, MapFlags::NORESERVE)?;
        let mapping = register(map, map_len, offset - map_from, len, Some((Arc::new(fd), offset)))?;
        Ok(Region { mapping, pages: Pages::Foreign(page), fallback: None })
    }

    fn memfd(len: u64, flags: MemfdFlags, map: MapFlags) -> Result<Arc<Mapping>, MemoryError> {
        let hint = if flags.contains(MemfdFlags::HUGETLB) { " (are huge pages reserved?)" } else { "" };
        let fd = fs::memfd_create("polypath", MemfdFlags::CLOEXEC | flags)
            .map_err(|e| system("memfd_create", len, e.into(), hint))?;
        fs::ftruncate(&fd, len).map_err(|e| system("ftruncate", len, e.into(), hint))?;
        let address = map_shared(fd.as_fd(), 0, len, map)?;
        register(address, len, 0, len, Some((Arc::new(fd), 0)))
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

    /// Why ordinary pages were taken where huge ones were wanted, and what to do.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
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
) -> Result<Arc<Mapping>, MemoryError> {
    table::register(|id| {
        // SAFETY: skip + len <= map_len by the callers' arithmetic, so the result lies inside the mapping.
        let base = unsafe { map_base.add(skip as usize) };
        let watch = sigbus::Watch::new(map_base.as_ptr() as usize, map_len as usize);
        Arc::new(Mapping { id, base, len, map_base, map_len: map_len as usize, file, watch })
    })
    .inspect_err(|_| {
        // SAFETY: the mapping was just made and nobody else knows of it.
        let _ = unsafe { mm::munmap(map_base.as_ptr().cast(), map_len as usize) };
    })
}

fn map_shared(fd: BorrowedFd<'_>, offset: u64, len: u64, flags: MapFlags) -> Result<NonNull<u8>, MemoryError> {
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
    .map_err(|e| {
        system("mmap", len, e.into(), " (memory limit, or a file that cannot be mapped shared and writable)")
    })?;
    NonNull::new(address.cast()).ok_or_else(|| system("mmap", len, io::Error::other("null address"), ""))
}

fn system(call: &'static str, len: u64, source: io::Error, hint: &'static str) -> MemoryError {
    MemoryError::System { call, len, source, hint }
}
