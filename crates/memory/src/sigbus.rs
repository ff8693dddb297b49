//! A guest's memory file may shrink under us: the next access then raises SIGBUS, which would end the whole process.
//!
//! The handler below puts zero pages over the mapping that faulted, so that a hostile front-end costs only its own data, and
//! remembers that the mapping is lost: whoever serves that guest must stop, or zeroes would reach its disk.
//! Only foreign memory is watched. Faults elsewhere, and memory that the hardware lost, go to whoever handled the signal
//! before: to end there is better than to go on with zeroes in place of data.

use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

const SLOTS: usize = 4096;
static BASES: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static LENS: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static LOST: [AtomicBool; SLOTS] = [const { AtomicBool::new(false) }; SLOTS];
static REPAIRED: AtomicU64 = AtomicU64::new(0);
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static INSTALL: Once = Once::new();

/// `si_code` of an access that the file does not reach (sigaction(2)).
const BUS_ADRERR: libc::c_int = 2;

/// How many mappings have lost their file so far. One relaxed load: ask each turn, and [`crate::Window::is_lost`] when it changes.
#[inline]
pub fn losses() -> u64 {
    REPAIRED.load(Ordering::Relaxed)
}

/// A mapping that the handler knows. Forgotten on drop, which must come before `munmap`.
pub(crate) struct Watch(usize);

impl Watch {
    /// Watches `len` bytes at `base`; `None` when all places are taken (the mapping is then merely not protected).
    pub(crate) fn new(base: usize, len: usize) -> Option<Watch> {
        INSTALL.call_once(install);
        for slot in 0..SLOTS {
            if BASES[slot].compare_exchange(0, base, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                LOST[slot].store(false, Ordering::Relaxed);
                LENS[slot].store(len, Ordering::Release);
                return Some(Watch(slot));
            }
        }
        tracing::warn!("more than {SLOTS} memory mappings: this one is not protected against a shrinking file");
        None
    }

    /// Has the mapping been replaced by zero pages?
    pub(crate) fn is_lost(&self) -> bool {
        LOST[self.0].load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        LENS[self.0].store(0, Ordering::Release);
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
            // SAFETY: base/len are a live mapping of ours (a Watch is dropped before munmap); replacing its pages by zero
            // pages keeps every pointer into it valid.
            let mapped = unsafe {
                libc::mmap(
                    base as *mut libc::c_void,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if mapped as usize == base {
                LOST[slot].store(true, Ordering::Relaxed);
                REPAIRED.fetch_add(1, Ordering::Release);
                return;
            }
        }
    }
    chain(signal, info, context);
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
}
