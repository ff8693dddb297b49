//! Lists of memory for one system call.

use polypath_memory::{CopyCount, View, count_copy};
use std::marker::PhantomData;

/// Most entries of one list: what Linux takes in one call.
pub const IOV_MAX: usize = 1024;

/// Room for a list, reused from call to call so that none allocates.
#[derive(Default)]
pub struct IoList {
    raw: Vec<libc::iovec>,
}

impl std::fmt::Debug for IoList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoList").field("room", &self.raw.capacity()).finish()
    }
}

impl IoList {
    /// Room for [`IOV_MAX`] entries.
    pub fn new() -> Self {
        IoList { raw: Vec::with_capacity(IOV_MAX) }
    }

    /// An empty list to send from.
    pub fn gather<'a>(&'a mut self) -> Gather<'a> {
        self.raw.clear();
        Gather { raw: &mut self.raw, bytes: 0, life: PhantomData }
    }

    /// An empty list to receive into.
    pub fn scatter<'a>(&'a mut self) -> Scatter<'a> {
        self.raw.clear();
        Scatter { raw: &mut self.raw, bytes: 0, life: PhantomData }
    }
}

/// Memory to send from, in order. What it names stays borrowed for as long as the list lives.
pub struct Gather<'a> {
    raw: &'a mut Vec<libc::iovec>,
    bytes: usize,
    life: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    /// Adds bytes of our own; `false` (and nothing added) when the list is full.
    #[inline]
    pub fn bytes(&mut self, bytes: &'a [u8]) -> bool {
        self.push(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// Adds memory that others may write; `false` (and nothing added) when the list is full.
    #[inline]
    pub fn view(&mut self, view: View<'a>) -> bool {
        let (address, len) = view.raw();
        self.push(address, len)
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Is there nothing to send?
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends up to `limit` bytes of it to `out`: for streams that are not sockets. Counted as a copy, headers included.
    pub fn copy_to(&self, out: &mut Vec<u8>, limit: usize) -> usize {
        let mut left = limit.min(self.bytes);
        let total = left;
        for entry in self.raw.iter() {
            let take = entry.iov_len.min(left);
            if take == 0 {
                break;
            }
            let start = out.len();
            out.resize(start + take, 0);
            // SAFETY: the entry came from a slice or a view that 'a keeps alive. Memory that others write is read bytewise
            // and volatile, never through a reference.
            unsafe { vm_copy(entry.iov_base.cast(), out[start..].as_mut_ptr(), take) };
            left -= take;
        }
        count_copy(CopyCount { copied_in: 0, copied_out: (total - left) as u64 });
        total - left
    }

    #[inline]
    fn push(&mut self, address: *mut u8, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        if self.raw.len() >= IOV_MAX {
            return false;
        }
        self.raw.push(libc::iovec { iov_base: address.cast(), iov_len: len });
        self.bytes += len;
        true
    }

    pub(crate) fn raw(&self) -> &[libc::iovec] {
        self.raw
    }
}

impl std::fmt::Debug for Gather<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gather({} bytes in {} pieces)", self.bytes, self.raw.len())
    }
}

/// Memory to receive into, in order. What it names stays borrowed for as long as the list lives.
pub struct Scatter<'a> {
    raw: &'a mut Vec<libc::iovec>,
    bytes: usize,
    life: PhantomData<&'a mut [u8]>,
}

impl<'a> Scatter<'a> {
    /// Adds a buffer of our own; `false` (and nothing added) when the list is full.
    #[inline]
    pub fn bytes(&mut self, bytes: &'a mut [u8]) -> bool {
        self.push(bytes.as_mut_ptr(), bytes.len())
    }

    /// Adds memory that others may read and write; `false` (and nothing added) when the list is full.
    #[inline]
    pub fn view(&mut self, view: View<'a>) -> bool {
        let (address, len) = view.raw();
        self.push(address, len)
    }

    /// Room in all, in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Is there no room at all?
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Fills it from the start with `data`; returns how much fitted. For streams that are not sockets. Counted as
    /// a copy, headers included.
    pub fn place(&mut self, data: &[u8]) -> usize {
        let mut rest = data;
        for entry in self.raw.iter() {
            let take = entry.iov_len.min(rest.len());
            if take == 0 {
                break;
            }
            // SAFETY: the entry came from a mutable slice or a view that 'a keeps alive; `rest` is a private slice.
            unsafe { vm_copy(rest.as_ptr(), entry.iov_base.cast(), take) };
            rest = &rest[take..];
        }
        let placed = data.len() - rest.len();
        count_copy(CopyCount { copied_in: placed as u64, copied_out: 0 });
        placed
    }

    #[inline]
    fn push(&mut self, address: *mut u8, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        if self.raw.len() >= IOV_MAX {
            return false;
        }
        self.raw.push(libc::iovec { iov_base: address.cast(), iov_len: len });
        self.bytes += len;
        true
    }

    pub(crate) fn raw_mut(&mut self) -> &mut [libc::iovec] {
        self.raw
    }
}

impl std::fmt::Debug for Scatter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scatter({} bytes in {} pieces)", self.bytes, self.raw.len())
    }
}

/// Copies byte by byte with volatile accesses. For rare ways only.
///
/// # Safety
/// `from` and `to` must be valid for `len` bytes and not overlap.
unsafe fn vm_copy(from: *const u8, to: *mut u8, len: usize) {
    for at in 0..len {
        // SAFETY: in bounds by the caller's promise.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
}
