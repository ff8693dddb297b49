//! An aligned buffer of our own, for data whose memory does not suit `O_DIRECT`, and for what is compared.

use rustix::fd::BorrowedFd;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;

/// Alignment of every bounce buffer in bytes.
const ALIGN: usize = 4096;

/// `len` bytes at a page border. Only this queue and, during one request, the kernel touch them.
pub(super) struct Bounce {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its bytes alone.
unsafe impl Send for Bounce {}

impl Bounce {
    /// Zeroed bytes.
    pub(super) fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout has a size, `len` is never zero here.
        let at = unsafe { alloc_zeroed(layout) };
        Bounce { at: NonNull::new(at).unwrap_or_else(|| handle_alloc_error(layout)), len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// For the kernel. Nobody may call [`Bounce::bytes`] while the kernel has it.
    pub(super) fn address(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// The bytes, while the kernel does not have them.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: ours alone, initialised at birth; the caller's request is not in flight.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// Reads the first bytes of a file into it.
    pub(super) fn try_read(&mut self, fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        Ok(rustix::io::pread(fd, &mut self.bytes()[..len], 0)?)
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(ALIGN), ALIGN).expect("a bounce buffer is small")
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout.
        unsafe { dealloc(self.at.as_ptr(), Self::layout(self.len)) }
    }
}
