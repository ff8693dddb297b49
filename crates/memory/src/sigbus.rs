//! A guest's memory file may shrink under us: the next access then raises SIGBUS, which would end the whole process.
//!
//! The handler below puts a zero page over the one that faulted, so that a hostile front-end costs only its own data, and
//! remembers that the mapping is lost: whoever serves that guest must stop, or zeroes would reach its disk. Not over all of the mapping: to
//! take down what is there takes long, on a thread that others wait for. But each page that is put somewhere takes two places in the
//! list of mappings of the process (sysctl vm.max_map_count), so that there is a bound; beyond that, all of the mapping goes.
//! Only foreign memory is watched. Faults elsewhere, and memory that the hardware lost, go to whoever handled the signal
//! before: to end there is better than to go on with zeroes in place of data.

use crate::error::MemoryError;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

const SLOTS: usize = 4096;
static BASES: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static LENS: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
/// Bytes of a page of the mapping, and how many were put over it.
static PAGES: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static PIECES: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static LOST: [AtomicBool; SLOTS] = [const { AtomicBool::new(false) }; SLOTS];
/// Sum of [`PIECES`], and the most that it may be: half of what Linux has room for.
static ALL_PIECES: AtomicUsize = AtomicUsize::new(0);
const MAX_PIECES: usize = 16 << 10;
static REPAIRED: AtomicU64 = AtomicU64::new(0);
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static INSTALL: Once = Once::new();

/// `si_code` of an access that the file does not reach (sigaction(2)).
const BUS_ADRERR: libc::c_int = 2;

/// How many pages have lost their file so far. One relaxed load: ask each turn, and [`crate::Window::is_lost`] when it changes.
#[inline]
pub fn losses() -> u64 {
    REPAIRED.load(Ordering::Relaxed)
}

/// A mapping that the handler knows. Forgotten on drop, which must come before `munmap`.
pub(crate) struct Watch(usize);

impl Watch {
    /// Watches `len` bytes at `base`, of pages of `page` bytes.
    ///
    /// # Errors
    /// [`MemoryError::TooMany`] when all places are taken: a mapping that is not watched could end the process for everybody.
    pub(crate) fn new(base: usize, len: usize, page: usize) -> Result<Watch, MemoryError> {
        INSTALL.call_once(install);
        for slot in 0..SLOTS {
            if BASES[slot].compare_exchange(0, base, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                LOST[slot].store(false, Ordering::Relaxed);
                PAGES[slot].store(page, Ordering::Relaxed);
                LENS[slot].store(len, Ordering::Release);
                return Ok(Watch(slot));
            }
        }
        Err(MemoryError::TooMany { limit: SLOTS })
    }

    /// Has any of the mapping been replaced by zero pages?
    pub(crate) fn is_lost(&self) -> bool {
        LOST[self.0].load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        LENS[self.0].store(0, Ordering::Release);
        ALL_PIECES.fetch_sub(PIECES[self.0].swap(0, Ordering::Relaxed), Ordering::Relaxed);
        BASES[self.0].store(0, Ordering::Release);
    }
}

fn install() {
    let previous = Box::into_raw(Box::new(
        // SAFETY: an all-zero sigaction is a valid value of that plain C structure.
        unsafe { std::mem::zeroed::<libc::sigaction>() },
    ));
    // SAFETY: as above.
    let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: both structures are valid; the handler only uses atomics, mmap and sigaction, which are async-signal-safe.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &action, previous) };
    if result == 0 {
        PREVIOUS.store(previous, Ordering::Release);
    } else {
        tracing::warn!("no SIGBUS handler: {}", std::io::Error::last_os_error());
    }
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    if code != BUS_ADRERR {
        return chain(signal, info, context);
    }
    for slot in 0..SLOTS {
        let (base, len) = (BASES[slot].load(Ordering::Acquire), LENS[slot].load(Ordering::Acquire));
        // Read again: base and length must be of one mapping, not of two that followed each other in this place.
        let same = BASES[slot].load(Ordering::Acquire) == base;
        if base != 0 && same && address >= base && address - base < len {
            let page = PAGES[slot].load(Ordering::Relaxed);
            let at = address - (address - base) % page;
            if put_piece(slot, at, page) || put_zeroes(base, len) {
                LOST[slot].store(true, Ordering::Relaxed);
                REPAIRED.fetch_add(1, Ordering::Release);
                return;
            }
        }
    }
    chain(signal, info, context);
}

/// Puts a zero page there, if there may be one more.
fn put_piece(slot: usize, at: usize, page: usize) -> bool {
    if ALL_PIECES.fetch_add(1, Ordering::Relaxed) < MAX_PIECES && put_zeroes(at, page) {
        PIECES[slot].fetch_add(1, Ordering::Relaxed);
        return true;
    }
    ALL_PIECES.fetch_sub(1, Ordering::Relaxed);
    false
}

fn put_zeroes(at: usize, len: usize) -> bool {
    // SAFETY: whole pages of a live mapping of ours (a Watch is dropped before munmap); replacing them by zero pages keeps every pointer
    // into it valid.
    let mapped = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped as usize == at
}

/// Not ours: give it to the previous handler, or let the default action end the process at the same instruction.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: `previous` is null or points to a leaked, never changed structure; calling its handler with the arguments it
    // was registered for is what the kernel would have done.
    unsafe {
        if !previous.is_null()
            && (*previous).sa_sigaction > libc::SIG_IGN
            && (*previous).sa_flags & libc::SA_SIGINFO != 0
        {
            let f: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute((*previous).sa_sigaction);
            f(signal, info, context);
            return;
        }
        libc::signal(signal, libc::SIG_DFL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn a_shrinking_file_costs_only_its_data() {
        let fd = memfd_create("shrinks", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 1 << 20).unwrap();
        let region = Region::from_fd(fd.try_clone().unwrap(), 0, 1 << 20).unwrap();
        let window = region.window(0, 1 << 20).unwrap();
        window.copy_in(4096, &[7; 16]).unwrap();
        ftruncate(&fd, 0).unwrap();
        let before = REPAIRED.load(Ordering::Relaxed);
        let mut bytes = [1; 16];
        window.copy_out(4096, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 16], "zero pages stand in for what the file lost");
        assert!(REPAIRED.load(Ordering::Relaxed) > before);
        assert!(window.is_lost() && losses() > before);
        let other = Region::allocate(4096, false).unwrap();
        assert!(!other.window(0, 1).unwrap().is_lost());
    }

    #[test]
    fn the_rest_of_the_mapping_stays_what_it_was() {
        let fd = memfd_create("cut", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 1 << 20).unwrap();
        let region = Region::from_fd(fd.try_clone().unwrap(), 0, 1 << 20).unwrap();
        let window = region.window(0, 1 << 20).unwrap();
        window.copy_in(0, &[7; 16]).unwrap();
        ftruncate(&fd, (1 << 20) - 4096).unwrap();
        window.copy_in((1 << 20) - 16, &[8; 16]).unwrap();
        let mut bytes = [0; 16];
        window.copy_out(0, &mut bytes).unwrap();
        assert!(window.is_lost() && bytes == [7; 16]);
        rustix::io::pwrite(&fd, &[9; 16], 0).unwrap();
        window.copy_out(0, &mut bytes).unwrap();
        assert_eq!(bytes, [9; 16], "its owner sees it, and is seen");
    }

    /// In a process of its own: it takes all pages there may be.
    #[test]
    fn more_pages_than_there_is_room_for_cost_the_whole_mapping() {
        const NAME: &str = "sigbus::tests::more_pages_than_there_is_room_for_cost_the_whole_mapping";
        if std::env::var_os("POLYPATH_ALL_PIECES").is_none() {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let status = again.args(["--exact", NAME]).env("POLYPATH_ALL_PIECES", "1").status().unwrap();
            return assert!(status.success());
        }
        const LEN: u64 = 80_000 * 4096;
        for _ in 0..2 {
            let fd = memfd_create("cut", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&fd, LEN).unwrap();
            let region = Region::from_fd(fd.try_clone().unwrap(), 0, LEN).unwrap();
            let window = region.window(0, LEN).unwrap();
            ftruncate(&fd, 0).unwrap();
            let before = losses();
            // Every other one: neighbours would be one mapping.
            for page in (0..LEN / 4096).step_by(2) {
                window.copy_in(page as usize * 4096, &[1]).unwrap();
            }
            assert_eq!(losses() - before, MAX_PIECES as u64 + 1);
            drop((window, region));
            crate::refresh();
            assert_eq!(ALL_PIECES.load(Ordering::Relaxed), 0, "there is room again");
        }
    }

    /// In a process of its own: it takes all places there are.
    #[test]
    fn a_mapping_that_cannot_be_watched_is_refused() {
        const NAME: &str = "sigbus::tests::a_mapping_that_cannot_be_watched_is_refused";
        if std::env::var_os("POLYPATH_ALL_PLACES").is_none() {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let status = again.args(["--exact", NAME]).env("POLYPATH_ALL_PLACES", "1").status().unwrap();
            return assert!(status.success());
        }
        let fd = memfd_create("many", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        let map = || Region::from_fd(fd.try_clone().unwrap(), 0, 4096);
        let mut all: Vec<_> = (0..SLOTS).map(|n| Watch::new(0x1000 * (n + 1), 0x1000, 0x1000).unwrap()).collect();
        let error = map().unwrap_err();
        assert!(error.to_string().contains("detach"), "{error}");
        all.pop();
        assert!(map().is_ok());
    }

    #[test]
    fn foreign_memory_is_in_no_core_dump() {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 8192).unwrap();
        let region = Region::from_fd(fd, 4096, 4096).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of_region = maps.split_once("/memfd:guest").expect("it is mapped").1;
        let flags = of_region.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
        drop(region);
    }
}
