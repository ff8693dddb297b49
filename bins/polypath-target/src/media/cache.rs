//! Memory behind a write cache that can lose its power: what is read now, and what would be left.

use super::MediumError;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that become durable, or are lost, as one.
const LINE: u64 = 512;

/// A medium in two copies.
#[derive(Debug)]
pub(crate) struct Cached {
    /// Changes are durable at once: the cache is there and has its power.
    through: bool,
    inner: Mutex<Inner>,
    changes: AtomicU64,
    /// Of these, by writes that had been held.
    landed: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Lines of `current` that are not in `durable`.
    dirty: BTreeSet<u64>,
}

impl Cached {
    pub(crate) fn new(bytes: u64, through: bool) -> Cached {
        let zeroes = || vec![0; bytes as usize];
        let inner = Inner { current: zeroes(), durable: zeroes(), dirty: BTreeSet::new() };
        Cached { through, inner: Mutex::new(inner), changes: AtomicU64::new(0), landed: AtomicU64::new(0) }
    }

    pub(crate) fn is_volatile(&self) -> bool {
        !self.through
    }

    pub(crate) fn is_through(&self) -> bool {
        self.through
    }

    /// How often it was changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// How often it was changed by a command as it came, and not by one that had been held.
    pub(crate) fn prompt_changes(&self) -> u64 {
        self.changes() - self.landed.load(Ordering::Relaxed)
    }

    /// The last `changes` were made by a write that had been held.
    pub(crate) fn tell_landed(&self, changes: u64) {
        self.landed.fetch_add(changes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), MediumError> {
        copy_out(&self.lock().current, offset, out)
    }

    /// As [`Cached::read`], of what a loss of power would leave.
    pub(crate) fn read_durable(&self, offset: u64, out: &mut [u8]) -> Result<(), MediumError> {
        copy_out(&self.lock().durable, offset, out)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        self.write_to(&mut self.lock(), offset, data)
    }

    /// Writes `new` if `expected` is there; else says where the first difference is.
    pub(crate) fn compare_and_write(
        &self,
        offset: u64,
        expected: &[u8],
        new: &[u8],
    ) -> Result<Option<usize>, MediumError> {
        let inner = &mut *self.lock();
        let there = &inner.current[range(&inner.current, offset, expected.len())?];
        let differs = there.iter().zip(expected).position(|(a, b)| a != b);
        if differs.is_none() {
            self.write_to(inner, offset, new)?;
        }
        Ok(differs)
    }

    fn write_to(&self, inner: &mut Inner, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        let range = range(&inner.current, offset, data.len())?;
        inner.current[range.clone()].copy_from_slice(data);
        self.changes.fetch_add(1, Ordering::Relaxed);
        if self.through {
            inner.durable[range].copy_from_slice(data);
        } else if !data.is_empty() {
            inner.dirty.extend(offset / LINE..=(offset + data.len() as u64 - 1) / LINE);
        }
        Ok(())
    }

    /// Makes `len` bytes from byte `offset` on durable.
    pub(crate) fn persist(&self, offset: u64, len: u64) {
        let inner = &mut *self.lock();
        let lines: Vec<u64> = inner.dirty.range(offset / LINE..(offset + len).div_ceil(LINE)).copied().collect();
        lines.into_iter().for_each(|line| inner.settle(line));
    }

    pub(crate) fn flush(&self) {
        let inner = &mut *self.lock();
        for line in std::mem::take(&mut inner.dirty) {
            inner.settle(line);
        }
    }

    /// What is not durable is lost.
    pub(crate) fn lose_power(&self) {
        let inner = &mut *self.lock();
        for line in std::mem::take(&mut inner.dirty) {
            let range = inner.line(line);
            inner.current[range.clone()].copy_from_slice(&inner.durable[range]);
        }
    }

    pub(crate) fn grow(&self, bytes: u64) {
        let inner = &mut *self.lock();
        let bytes = (bytes as usize).max(inner.current.len());
        inner.current.resize(bytes, 0);
        inner.durable.resize(bytes, 0);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn line(&self, line: u64) -> std::ops::Range<usize> {
        let start = (line * LINE) as usize;
        start..(start + LINE as usize).min(self.current.len())
    }

    fn settle(&mut self, line: u64) {
        let range = self.line(line);
        self.durable[range.clone()].copy_from_slice(&self.current[range]);
        self.dirty.remove(&line);
    }
}

fn range(bytes: &[u8], offset: u64, len: usize) -> Result<std::ops::Range<usize>, MediumError> {
    let start = usize::try_from(offset).map_err(|_| MediumError::OutOfRange)?;
    let end = start.checked_add(len).filter(|&end| end <= bytes.len()).ok_or(MediumError::OutOfRange)?;
    Ok(start..end)
}

fn copy_out(bytes: &[u8], offset: u64, out: &mut [u8]) -> Result<(), MediumError> {
    out.copy_from_slice(&bytes[range(bytes, offset, out.len())?]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_flushed_survives() {
        let cached = Cached::new(4096, false);
        let read = |at: u64| {
            let mut byte = [0];
            cached.read(at, &mut byte).unwrap();
            byte[0]
        };
        cached.write(0, &[1; 1024]).unwrap();
        cached.flush();
        cached.write(0, &[2; 1024]).unwrap();
        cached.persist(0, 512);
        assert_eq!((read(0), read(512)), (2, 2));
        cached.lose_power();
        assert_eq!((read(0), read(512), read(1024)), (2, 1, 0));
        cached.flush();
        cached.lose_power();
        assert_eq!((read(0), read(512)), (2, 1));
        cached.grow(8192);
        cached.write(8000, &[3; 192]).unwrap();
        assert!(cached.write(8000, &[3; 193]).is_err() && cached.read(9000, &mut [0]).is_err());
        assert_eq!(cached.changes(), 3);
    }

    #[test]
    fn what_goes_through_survives_at_once() {
        let cached = Cached::new(1024, true);
        cached.write(100, &[7; 100]).unwrap();
        cached.lose_power();
        let mut byte = [0];
        cached.read_durable(150, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        assert!(!cached.is_volatile());
    }
}
