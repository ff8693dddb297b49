//! The medium: what every path sees, and what would survive a loss of power.

use polypath_block::{Flags, Io, Op};

/// A medium shared by all paths, with volatile caches that are coherent while they have power.
#[derive(Debug)]
pub struct Disk {
    block_size: usize,
    current: Vec<u8>,
    durable: Vec<u8>,
    cached_by: Vec<Option<u16>>,
}

impl Disk {
    /// `blocks` zeroed blocks of `block_size` bytes.
    pub fn new(blocks: u64, block_size: u32) -> Self {
        let bytes = blocks as usize * block_size as usize;
        Disk {
            block_size: block_size as usize,
            current: vec![0; bytes],
            durable: vec![0; bytes],
            cached_by: vec![None; blocks as usize],
        }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.cached_by.len() as u64
    }

    /// Bytes a block.
    pub fn block_size(&self) -> u32 {
        self.block_size as u32
    }

    /// What a read of the block returns now.
    pub fn block(&self, lba: u64) -> &[u8] {
        &self.current[lba as usize * self.block_size..][..self.block_size]
    }

    /// What would be left of the block after a loss of power.
    pub fn durable_block(&self, lba: u64) -> &[u8] {
        &self.durable[lba as usize * self.block_size..][..self.block_size]
    }

    /// The cache numbered `cache` loses what it holds.
    pub fn lose_cache(&mut self, cache: u16) {
        for lba in 0..self.cached_by.len() {
            if self.cached_by[lba] == Some(cache) {
                let at = lba * self.block_size..(lba + 1) * self.block_size;
                self.current[at.clone()].copy_from_slice(&self.durable[at]);
                self.cached_by[lba] = None;
            }
        }
    }

    /// More blocks, zeroed.
    pub(crate) fn grow(&mut self, blocks: u64) {
        let blocks = (blocks as usize).max(self.cached_by.len());
        self.current.resize(blocks * self.block_size, 0);
        self.durable.resize(blocks * self.block_size, 0);
        self.cached_by.resize(blocks, None);
    }

    /// Carries a change or a flush out. `cache`: which volatile cache takes it, if any; `data`: the blocks of a write.
    pub(crate) fn apply(&mut self, io: &Io, data: &[u8], cache: Option<u16>) {
        if io.op == Op::Flush {
            for lba in 0..self.cached_by.len() {
                if self.cached_by[lba].is_some() && self.cached_by[lba] == cache {
                    let at = lba * self.block_size..(lba + 1) * self.block_size;
                    self.durable[at.clone()].copy_from_slice(&self.current[at]);
                    self.cached_by[lba] = None;
                }
            }
            return;
        }
        // Dataset Management has no FUA: a Discard may stay in the cache whatever its flags say.
        let durable = io.flags.contains(Flags::FUA) && matches!(io.op, Op::Write | Op::WriteZeroes);
        let cache = cache.filter(|_| !durable);
        for i in 0..u64::from(io.blocks) {
            let lba = (io.lba + i) as usize;
            let at = lba * self.block_size..(lba + 1) * self.block_size;
            match io.op {
                Op::Write => {
                    let from = i as usize * self.block_size;
                    self.current[at.clone()].copy_from_slice(&data[from..from + self.block_size]);
                }
                _ => self.current[at.clone()].fill(0),
            }
            if cache.is_none() {
                let (current, durable) = (&self.current, &mut self.durable);
                durable[at.clone()].copy_from_slice(&current[at]);
            }
            self.cached_by[lba] = cache;
        }
    }
}
