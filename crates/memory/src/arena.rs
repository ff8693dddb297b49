//! Buffers from one region, for programs that have none of their own.

use crate::error::MemoryError;
use crate::region::{Pages, Region};
use polypath_block::Segment;
use std::sync::{Arc, Mutex};

const ALIGN: u64 = 4096;

/// One region that hands out page-aligned chunks. `Clone` shares it. Handing out takes a lock: it is not for the data path.
#[derive(Clone, Debug)]
pub struct Arena(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    region: Region,
    free: Mutex<Vec<(u64, u64)>>,
}

impl Arena {
    /// An arena of `len` bytes, in huge pages if `huge` and there are any.
    ///
    /// # Errors
    /// As [`Region::allocate`].
    pub fn new(len: u64, huge: bool) -> Result<Arena, MemoryError> {
        let region = Region::allocate(len, huge)?;
        let free = Mutex::new(vec![(0, region.len())]);
        Ok(Arena(Arc::new(Inner { region, free })))
    }

    /// A chunk of `len` bytes, zeroed or not, aligned to 4 KiB; `None` when there is no run that long.
    pub fn chunk(&self, len: u32) -> Option<Chunk> {
        let need = u64::from(len.max(1)).next_multiple_of(ALIGN);
        let mut free = self.0.free.lock().unwrap_or_else(|p| p.into_inner());
        let at = free.iter().position(|&(_, n)| n >= need)?;
        let (offset, n) = free[at];
        if n == need {
            free.remove(at);
        } else {
            free[at] = (offset + need, n - need);
        }
        Some(Chunk { arena: self.clone(), offset, len })
    }

    /// What its region is made of.
    pub fn pages(&self) -> Pages {
        self.0.region.pages()
    }

    /// Why it does not lie in reserved huge pages, if huge ones were wanted.
    pub fn fallback(&self) -> Option<&str> {
        self.0.region.fallback()
    }

    /// Its region.
    pub fn region(&self) -> &Region {
        &self.0.region
    }
}

/// A piece of an [`Arena`], given back on drop.
#[derive(Debug)]
pub struct Chunk {
    arena: Arena,
    offset: u64,
    len: u32,
}

impl Chunk {
    /// It as a segment.
    pub fn segment(&self) -> Segment {
        Segment { offset: self.offset, region: self.arena.0.region.id(), len: self.len }
    }

    /// Length in bytes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Is it of no length?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A window over it.
    pub fn window(&self) -> crate::Window {
        self.arena.0.region.window(self.offset, u64::from(self.len)).expect("a chunk lies inside its region")
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let len = u64::from(self.len.max(1)).next_multiple_of(ALIGN);
        let mut free = self.arena.0.free.lock().unwrap_or_else(|p| p.into_inner());
        let at = free.partition_point(|&(o, _)| o < self.offset);
        free.insert(at, (self.offset, len));
        if at + 1 < free.len() && free[at].0 + free[at].1 == free[at + 1].0 {
            free[at].1 += free.remove(at + 1).1;
        }
        if at > 0 && free[at - 1].0 + free[at - 1].1 == free[at].0 {
            free[at - 1].1 += free.remove(at).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_and_merge() {
        let arena = Arena::new(1 << 20, false).unwrap();
        let chunks: Vec<_> = std::iter::from_fn(|| arena.chunk(5000)).collect();
        assert_eq!(chunks.len(), 128);
        drop(chunks);
        let whole = arena.chunk(1 << 20).expect("all of it, in one piece again");
        assert!(arena.chunk(1).is_none());
        assert_eq!(whole.segment().offset, 0);
    }
}
