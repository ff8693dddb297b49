//! Buffers that a device may reach while the program waits.

use crate::error::Error;
use polypath_block::Segment;
use polypath_memory::{Arena, Chunk, OutOfWindow};

/// A piece of an [`Arena`]: memory that devices read and write directly. It goes into an operation and comes back with the result.
///
/// There is no `&[u8]` to it, on purpose: data is copied in and out, and nothing else is ever copied. A fresh buffer holds whatever
/// its last user left there.
#[derive(Debug)]
pub struct Buffer {
    chunk: Chunk,
}

impl Buffer {
    /// A buffer of `len` bytes from `arena`, aligned to 4 KiB. Takes a lock; keep buffers and use them again where speed matters.
    ///
    /// # Errors
    /// [`Error::NoBuffer`] when the arena has no run that long.
    pub fn new(arena: &Arena, len: u32) -> Result<Buffer, Error> {
        let chunk = arena.chunk(len);
        chunk.map(|chunk| Buffer { chunk }).ok_or(Error::NoBuffer { wanted: len.into(), arena: arena.region().len() })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.chunk.len() as usize
    }

    /// Is it of no length?
    pub fn is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    /// Where it lies, for queues of your own.
    pub fn segment(&self) -> Segment {
        self.chunk.segment()
    }

    /// Fills all of `data` from `offset` on.
    ///
    /// # Errors
    /// [`OutOfWindow`] when there is not that much; nothing is copied then.
    pub fn read_at(&self, offset: usize, data: &mut [u8]) -> Result<(), OutOfWindow> {
        self.chunk.window().copy_out(offset, data)
    }

    /// Copies all of `data` to `offset`.
    ///
    /// # Errors
    /// [`OutOfWindow`] when it does not fit; nothing is copied then.
    pub fn write_at(&mut self, offset: usize, data: &[u8]) -> Result<(), OutOfWindow> {
        self.chunk.window().copy_in(offset, data)
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) {
        let (window, pattern) = (self.chunk.window(), [byte; 4096]);
        for at in (0..self.len()).step_by(pattern.len()) {
            let len = (self.len() - at).min(pattern.len());
            window.copy_in(at, &pattern[..len]).expect("inside the buffer");
        }
    }

    /// A copy of all of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len()];
        self.chunk.window().copy_out(0, &mut out).expect("as long as the buffer");
        out
    }
}
