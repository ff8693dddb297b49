//! Views of shared memory: volatile copies, atomics for rings, and a count of what was copied.

use crate::region::Mapping;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use vm_memory::{Bytes, VolatileSlice};

/// Data bytes this thread has copied between private and shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CopyCount {
    /// Bytes copied into shared memory (on the way to a reader).
    pub copied_in: u64,
    /// Bytes copied out of shared memory (on the way from a writer).
    pub copied_out: u64,
}

thread_local! {
    static COPIED: Cell<CopyCount> = const { Cell::new(CopyCount { copied_in: 0, copied_out: 0 }) };
}

/// What this thread has copied so far through [`View`], or said so by [`count_copy`]. [`Window`] (rings, headers, buffers of the
/// program itself) is not data on its way and not counted.
pub fn copy_count() -> CopyCount {
    COPIED.get()
}

/// Counts data that this thread has copied by other means than a [`View`]: for lower floors that move what a view names by its
/// address. Whoever copies data must either use a view or call this.
#[inline]
pub fn count_copy(copied: CopyCount) {
    let so_far = COPIED.get();
    COPIED.set(CopyCount {
        copied_in: so_far.copied_in + copied.copied_in,
        copied_out: so_far.copied_out + copied.copied_out,
    });
}

/// Bytes of one segment, borrowed from a thread's table.
///
/// Whoever shares the memory may change it at any time: there is no reference to it, only copies.
#[derive(Clone, Copy)]
pub struct View<'a> {
    address: NonNull<u8>,
    len: usize,
    life: PhantomData<&'a ()>,
}

impl<'a> View<'a> {
    #[inline]
    pub(crate) fn new(address: NonNull<u8>, len: usize) -> View<'a> {
        View { address, len, life: PhantomData }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is it of no length?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address and length, for system calls that read or write the memory while the view lives.
    #[inline]
    pub fn raw(&self) -> (*mut u8, usize) {
        (self.address.as_ptr(), self.len)
    }

    /// Copies as much of `data` as fits from the start on; returns how much.
    #[inline]
    pub fn copy_in(&self, data: &[u8]) -> usize {
        let len = data.len().min(self.len);
        write(self.slice(), 0, &data[..len]);
        count_copy(CopyCount { copied_in: len as u64, copied_out: 0 });
        len
    }

    /// Copies the start of it to `data`, as much as fits; returns how much.
    #[inline]
    pub fn copy_out(&self, data: &mut [u8]) -> usize {
        let len = data.len().min(self.len);
        read(self.slice(), 0, &mut data[..len]);
        count_copy(CopyCount { copied_in: 0, copied_out: len as u64 });
        len
    }

    /// Copies the start of it to `other`, as much as fits; returns how much. For a medium that is memory itself (`ram://`):
    /// the transfer is what a device would do and is not counted as a copy.
    #[inline]
    pub fn copy_to(&self, other: &View<'_>) -> usize {
        let len = self.len.min(other.len);
        self.slice().copy_to_volatile_slice(other.slice());
        len
    }

    /// Sets all of it to zero.
    pub fn zero(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut at = 0;
        while at < self.len {
            let n = (self.len - at).min(ZEROES.len());
            write(self.slice(), at, &ZEROES[..n]);
            at += n;
        }
    }

    fn slice(&self) -> VolatileSlice<'a> {
        // SAFETY: address/len lie inside a mapping that lives at least as long as 'a (the table holds it).
        unsafe { VolatileSlice::new(self.address.as_ptr(), self.len) }
    }
}

/// A window over part of a region that keeps it mapped: for rings and headers, which are looked at again and again.
#[derive(Clone)]
pub struct Window {
    mapping: Arc<Mapping>,
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: plain shared memory, reached only by volatile and atomic operations; the Arc keeps it mapped.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    pub(crate) fn new(mapping: Arc<Mapping>, offset: u64, len: u64) -> Option<Window> {
        let address = mapping.address(offset, len)?;
        Some(Window { mapping, address, len: usize::try_from(len).ok()? })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is it of no length?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has the file behind it been cut short, so that zero pages stand in for its bytes? See [`crate::losses`].
    pub fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// The region it belongs to.
    pub fn region(&self) -> polypath_block::RegionId {
        self.mapping.id
    }

    /// Copies all of `data` to `offset`.
    ///
    /// # Errors
    /// [`OutOfWindow`] when it does not fit; nothing is copied then.
    #[inline]
    pub fn copy_in(&self, offset: usize, data: &[u8]) -> Result<(), OutOfWindow> {
        self.check(offset, data.len())?;
        write(self.slice(), offset, data);
        Ok(())
    }

    /// Fills all of `data` from `offset`.
    ///
    /// # Errors
    /// [`OutOfWindow`] when there is not that much; nothing is copied then.
    #[inline]
    pub fn copy_out(&self, offset: usize, data: &mut [u8]) -> Result<(), OutOfWindow> {
        self.check(offset, data.len())?;
        read(self.slice(), offset, data);
        Ok(())
    }

    /// The little-endian `u16` at `offset`, read once.
    #[inline]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> Result<u16, OutOfWindow> {
        let at = self.aligned(offset, 2)?;
        // SAFETY: in bounds and aligned (checked), mapped for as long as self lives; an atomic tolerates concurrent writers.
        Ok(u16::from_le(unsafe { AtomicU16::from_ptr(at.cast()) }.load(order)))
    }

    /// Stores `value` at `offset`, little-endian.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) -> Result<(), OutOfWindow> {
        let at = self.aligned(offset, 2)?;
        // SAFETY: as in load_u16.
        unsafe { AtomicU16::from_ptr(at.cast()) }.store(value.to_le(), order);
        Ok(())
    }

    /// The little-endian `u32` at `offset`, read once.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Result<u32, OutOfWindow> {
        let at = self.aligned(offset, 4)?;
        // SAFETY: as in load_u16.
        Ok(u32::from_le(unsafe { AtomicU32::from_ptr(at.cast()) }.load(order)))
    }

    /// Stores `value` at `offset`, little-endian.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> Result<(), OutOfWindow> {
        let at = self.aligned(offset, 4)?;
        // SAFETY: as in load_u16.
        unsafe { AtomicU32::from_ptr(at.cast()) }.store(value.to_le(), order);
        Ok(())
    }

    /// The little-endian `u64` at `offset`, read once.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> Result<u64, OutOfWindow> {
        let at = self.aligned(offset, 8)?;
        // SAFETY: as in load_u16.
        Ok(u64::from_le(unsafe { AtomicU64::from_ptr(at.cast()) }.load(order)))
    }

    /// Stores `value` at `offset`, little-endian.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) -> Result<(), OutOfWindow> {
        let at = self.aligned(offset, 8)?;
        // SAFETY: as in load_u16.
        unsafe { AtomicU64::from_ptr(at.cast()) }.store(value.to_le(), order);
        Ok(())
    }

    /// Two little-endian `u64` that follow each other at `offset` (a multiple of 8), each read once, relaxed: a ring descriptor
    /// or a request header in one bounds check.
    ///
    /// # Errors
    /// [`OutOfWindow`] when they do not fit or are not aligned.
    #[inline]
    pub fn load_pair(&self, offset: usize) -> Result<(u64, u64), OutOfWindow> {
        self.check(offset, 16)?;
        let first = self.load_u64(offset, Ordering::Relaxed)?;
        let second = self.load_u64(offset + 8, Ordering::Relaxed)?;
        Ok((first, second))
    }

    /// Stores one byte at `offset`, relaxed.
    ///
    /// # Errors
    /// [`OutOfWindow`] when it is outside.
    #[inline]
    pub fn store_u8(&self, offset: usize, value: u8) -> Result<(), OutOfWindow> {
        let at = self.aligned(offset, 1)?;
        // SAFETY: as in load_u16; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(at) }.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Sets bits of the byte at `offset`, leaving the others as they are whoever changes them meanwhile. All that this thread wrote
    /// before is seen by whoever sees the bits.
    ///
    /// # Errors
    /// [`OutOfWindow`] when it is outside.
    #[inline]
    pub fn set_bits(&self, offset: usize, bits: u8) -> Result<(), OutOfWindow> {
        let at = self.aligned(offset, 1)?;
        // SAFETY: as in load_u16; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(at) }.fetch_or(bits, Ordering::SeqCst);
        Ok(())
    }

    /// As [`Window::set_bits`], of the little-endian `u64` at `offset` (a multiple of 8).
    ///
    /// # Errors
    /// [`OutOfWindow`] when it is outside or misaligned.
    #[inline]
    pub fn set_bits_u64(&self, offset: usize, bits: u64) -> Result<(), OutOfWindow> {
        let at = self.aligned(offset, 8)?;
        // SAFETY: as in load_u16.
        unsafe { AtomicU64::from_ptr(at.cast()) }.fetch_or(bits.to_le(), Ordering::SeqCst);
        Ok(())
    }

    /// A part of this window.
    ///
    /// # Errors
    /// [`OutOfWindow`] when it is not inside.
    pub fn sub(&self, offset: usize, len: usize) -> Result<Window, OutOfWindow> {
        self.check(offset, len)?;
        // SAFETY: in bounds, just checked.
        let address = unsafe { self.address.add(offset) };
        Ok(Window { mapping: self.mapping.clone(), address, len })
    }

    #[inline]
    fn check(&self, offset: usize, len: usize) -> Result<(), OutOfWindow> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(OutOfWindow { offset, len, window: self.len }),
        }
    }

    #[inline]
    fn aligned(&self, offset: usize, size: usize) -> Result<*mut u8, OutOfWindow> {
        self.check(offset, size)?;
        // SAFETY: in bounds, just checked.
        let at = unsafe { self.address.as_ptr().add(offset) };
        if (at as usize).is_multiple_of(size) {
            Ok(at)
        } else {
            Err(OutOfWindow { offset, len: size, window: self.len })
        }
    }

    fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: address/len lie inside the mapping that the Arc keeps alive.
        unsafe { VolatileSlice::new(self.address.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window").field("region", &self.mapping.id).field("len", &self.len).finish()
    }
}

/// An access outside a window, or a misaligned atomic one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("access of {len} bytes at offset {offset} of a window of {window} bytes: outside, or not aligned")]
pub struct OutOfWindow {
    /// Offset in bytes.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// Length of the window in bytes.
    pub window: usize,
}

fn write(slice: VolatileSlice<'_>, offset: usize, data: &[u8]) {
    if !data.is_empty() {
        slice.write_slice(data, offset).expect("bounds were checked by the caller");
    }
}

fn read(slice: VolatileSlice<'_>, offset: usize, data: &mut [u8]) {
    if !data.is_empty() {
        slice.read_slice(data, offset).expect("bounds were checked by the caller");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Region, with};
    use polypath_block::Segment;

    #[test]
    fn copies_are_counted() {
        let region = Region::allocate(4096, false).unwrap();
        let before = copy_count();
        with(|t| {
            let view = t.view(Segment { offset: 10, region: region.id(), len: 5 }).unwrap();
            assert_eq!(view.copy_in(b"hello world"), 5);
            let mut back = [0; 8];
            assert_eq!(view.copy_out(&mut back), 5);
            assert_eq!(&back[..5], b"hello");
            view.zero();
        });
        let after = copy_count();
        assert_eq!((after.copied_in - before.copied_in, after.copied_out - before.copied_out), (5, 5));
        let mut back = [1; 5];
        region.window(10, 5).unwrap().copy_out(0, &mut back).unwrap();
        assert_eq!(back, [0; 5]);
    }

    #[test]
    fn bits_are_set_in_bytes_and_words_and_others_stay() {
        let window = Region::allocate(4096, false).unwrap().window(0, 20).unwrap();
        window.set_bits(8, 0x81).unwrap();
        window.set_bits_u64(8, 1 << 63 | 0x100).unwrap();
        let mut bytes = [0; 20];
        window.copy_out(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0x81, 1, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0]);
        for outside in [4, 13, 16, 20, usize::MAX] {
            assert!(window.set_bits_u64(outside, 1).is_err(), "{outside}");
        }
    }

    #[test]
    fn windows_check_bounds_and_alignment() {
        let region = Region::allocate(4096, false).unwrap();
        let w = region.window(0, 16).unwrap();
        w.store_u32(4, 0xdead_beef, Ordering::Release).unwrap();
        assert_eq!(w.load_u16(4, Ordering::Acquire), Ok(0xbeef));
        assert!(w.load_u32(2, Ordering::Acquire).is_err(), "misaligned");
        w.store_u8(8, 0x17).unwrap();
        assert_eq!(w.load_pair(0), Ok((0xdead_beef << 32, 0x17)));
        assert!(w.load_pair(8).is_err() && w.store_u8(16, 0).is_err(), "outside");
        assert!(w.load_u64(16, Ordering::Acquire).is_err(), "outside");
        assert!(w.load_u64(usize::MAX, Ordering::Acquire).is_err(), "overflow");
        assert!(region.window(4090, 7).is_none());
    }
}
