//! What a guest may see.
//!
//! Per block, the oracle keeps every write that may be its current state: a write that was acknowledged rules out those that had
//! finished before it began; writes that overlapped in time, and writes that failed, may each be the one. A read may return
//! anything that was possible at some time between its start and its end. A read with no write about settles which one it is.
//!
//! Beside that it keeps what a loss of power may bring back: a write is durable once a flush that began after it was acknowledged
//! has succeeded, and rules out what it had replaced; everything else since may be there or not.

use core::fmt;
use std::collections::HashMap;

#[derive(Clone, Copy, Debug)]
struct Entry {
    stamp: u64,
    start: u64,
    end: Option<u64>,
    /// When it was ruled out.
    out: Option<u64>,
    /// It was acknowledged, and nobody was told that it may be lost.
    promised: bool,
    /// It survives a loss of power.
    durable: bool,
    /// Something durable has replaced it.
    buried: bool,
    /// The power failed while it was open: its acknowledgement may be older than that.
    shaken: bool,
}

impl Entry {
    const ZERO: Entry = Entry {
        stamp: 0,
        start: 0,
        end: Some(0),
        out: None,
        promised: true,
        durable: true,
        buried: false,
        shaken: false,
    };
}

/// Names a write that has begun.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WriteId(u64);

/// The disk showed something that it must not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The block.
    pub lba: u64,
    /// The stamp that was read (zero: never written); `None` when the block holds no whole write of this block.
    pub read: Option<u64>,
    /// The stamps that were possible.
    pub possible: Vec<u64>,
    /// Was it a state of this block once?
    pub old: bool,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { lba, read, possible, old } = self;
        match read {
            None => write!(f, "block {lba} is torn or not its own; possible were {possible:?}"),
            Some(read) if *old => write!(f, "block {lba} shows OLD data: write {read}; possible were {possible:?}"),
            Some(read) => write!(f, "block {lba} shows write {read}; possible were {possible:?}"),
        }
    }
}

/// Keeps the history of every block and judges reads.
#[derive(Debug)]
pub struct Oracle {
    block_size: usize,
    blocks: Vec<Vec<Entry>>,
    clock: u64,
    stamps: u64,
    /// When the power failed last.
    power_lost: u64,
    writes: HashMap<u64, (u64, u32, bool)>,
    reads: HashMap<u64, (u64, u32)>,
}

impl Oracle {
    /// For a zeroed disk.
    pub fn new(blocks: u64, block_size: u32) -> Self {
        Oracle {
            block_size: block_size as usize,
            blocks: vec![vec![Entry::ZERO]; blocks as usize],
            clock: 0,
            stamps: 0,
            power_lost: 0,
            writes: HashMap::new(),
            reads: HashMap::new(),
        }
    }

    /// A write begins; fills `data` (whole blocks) with what it must write.
    pub fn begin_write(&mut self, lba: u64, data: &mut [u8]) -> WriteId {
        let blocks = (data.len() / self.block_size) as u32;
        let id = self.begin(lba, blocks, false);
        for (i, block) in data.chunks_exact_mut(self.block_size).enumerate() {
            render(block, id.0, lba + i as u64);
        }
        id
    }

    /// Write Zeroes or Discard begins. (The simulated disk reads discarded blocks as zeroes.)
    pub fn begin_zero(&mut self, lba: u64, blocks: u32) -> WriteId {
        self.begin(lba, blocks, true)
    }

    /// A write has completed: acknowledged (`ok`), or failed with an outcome nobody knows.
    ///
    /// # Panics
    /// When it did so before: an I/O completes once.
    pub fn end_write(&mut self, id: WriteId, ok: bool) {
        self.end_change(id, ok, false);
    }

    /// As [`Oracle::end_write`], acknowledged as durable (force unit access, or a disk without a volatile cache).
    ///
    /// # Panics
    /// As there.
    pub fn end_durable_write(&mut self, id: WriteId) {
        self.end_change(id, true, true);
    }

    /// A flush begins; the number names it.
    pub fn begin_flush(&mut self) -> u64 {
        self.tick()
    }

    /// A flush has succeeded: what was acknowledged before it began is durable.
    pub fn end_flush(&mut self, id: u64) {
        for block in &mut self.blocks {
            let mut any = false;
            for entry in block.iter_mut().filter(|e| e.promised && !e.durable && e.end.is_some_and(|end| end < id)) {
                (entry.durable, any) = (true, true);
            }
            if any {
                bury(block);
            }
        }
    }

    /// A flush has failed and said that acknowledged writes may be lost: those that are not durable are no promise any more.
    pub fn cache_lost(&mut self) {
        self.blocks.iter_mut().flatten().filter(|e| !e.durable && e.end.is_some()).for_each(|e| e.promised = false);
    }

    /// The power failed: whatever is not ruled out by something durable may be there again.
    pub fn power_lost(&mut self) {
        self.power_lost = self.tick();
        for entry in self.blocks.iter_mut().flatten().filter(|e| !e.buried) {
            entry.out = None;
            entry.shaken |= entry.end.is_none();
        }
    }

    /// Judges what would be left of a block if the power failed now.
    ///
    /// # Errors
    /// When something durable is missing.
    pub fn check_durable(&self, lba: u64, bytes: &[u8]) -> Result<(), Violation> {
        let (history, read) = (&self.blocks[lba as usize], parse(bytes, lba));
        if read.is_some_and(|stamp| history.iter().any(|e| !e.buried && e.stamp == stamp)) {
            return Ok(());
        }
        let possible = history.iter().filter(|e| !e.buried).map(|e| e.stamp).collect();
        Err(Violation { lba, read, possible, old: read.is_some_and(|s| s <= self.stamps) })
    }

    fn end_change(&mut self, id: WriteId, ok: bool, durable: bool) {
        let now = self.tick();
        let (lba, blocks, zero) = self.writes.remove(&id.0).expect("a write completes exactly once");
        for block in &mut self.blocks[lba as usize..lba as usize + blocks as usize] {
            let stamp = if zero { 0 } else { id.0 };
            let Some(own) = block.iter_mut().find(|e| e.start == id.0 && e.stamp == stamp) else { continue };
            (own.end, own.promised, own.durable) = (Some(now), ok, ok && durable);
            let began = own.start_order();
            if ok && (durable || !own.shaken) {
                let older = |e: &&mut Entry| e.end.is_some_and(|end| end < began) && e.out.is_none();
                block.iter_mut().filter(older).for_each(|e| e.out = Some(now));
            }
            if ok && durable {
                bury(block);
            }
        }
    }

    /// A read begins; the number names it.
    pub fn begin_read(&mut self, lba: u64, blocks: u32) -> u64 {
        let now = self.tick();
        self.reads.insert(now, (lba, blocks));
        now
    }

    /// A read failed: nothing is known.
    pub fn fail_read(&mut self, id: u64) {
        self.reads.remove(&id).expect("a read completes exactly once");
    }

    /// A read has returned `data`.
    ///
    /// # Errors
    /// The first block that shows what it must not.
    ///
    /// # Panics
    /// When it completed before.
    pub fn end_read(&mut self, id: u64, data: &[u8]) -> Result<(), Violation> {
        let now = self.tick();
        let (lba, blocks) = self.reads.remove(&id).expect("a read completes exactly once");
        let oldest = self.reads.keys().copied().min().unwrap_or(now);
        for i in 0..u64::from(blocks) {
            let bytes = &data[i as usize * self.block_size..][..self.block_size];
            self.judge(lba + i, bytes, id, now)?;
            self.blocks[(lba + i) as usize].retain(|e| !e.buried || e.out.is_none_or(|out| out >= oldest));
        }
        Ok(())
    }

    /// Judges a block as it is on the medium now, with nothing in flight.
    ///
    /// # Errors
    /// When it is not what it must be.
    pub fn check_block(&mut self, lba: u64, bytes: &[u8]) -> Result<(), Violation> {
        let now = self.tick();
        self.judge(lba, bytes, now, now)
    }

    /// The disk has more blocks, zeroed.
    pub fn grow(&mut self, blocks: u64) {
        self.blocks.resize(blocks as usize, vec![Entry::ZERO]);
    }

    /// Blocks that it watches.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn judge(&mut self, lba: u64, bytes: &[u8], began: u64, now: u64) -> Result<(), Violation> {
        let history = &mut self.blocks[lba as usize];
        let read = parse(bytes, lba);
        let allowed = |e: &&Entry| e.out.is_none_or(|out| out > began);
        if let Some(stamp) = read.filter(|&s| history.iter().filter(allowed).any(|e| e.stamp == s)) {
            let settled = history.iter().all(|e| e.end.is_some_and(|end| end < began) && e.start_order() < began);
            // A read that was open when the power failed may tell of what was before.
            if settled && began > self.power_lost {
                history.iter_mut().filter(|e| e.stamp != stamp && e.out.is_none()).for_each(|e| e.out = Some(now));
            }
            return Ok(());
        }
        let possible = history.iter().filter(allowed).map(|e| e.stamp).collect();
        Err(Violation { lba, read, possible, old: read.is_some_and(|s| s <= self.stamps) })
    }

    fn begin(&mut self, lba: u64, blocks: u32, zero: bool) -> WriteId {
        let now = self.tick();
        self.stamps = now;
        for block in &mut self.blocks[lba as usize..lba as usize + blocks as usize] {
            let stamp = if zero { 0 } else { now };
            let open = Entry { end: None, promised: false, durable: false, ..Entry::ZERO };
            block.push(Entry { stamp, start: now, ..open });
        }
        self.writes.insert(now, (lba, blocks, zero));
        WriteId(now)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Entry {
    /// Stamps come from the same clock as starts.
    fn start_order(&self) -> u64 {
        self.start
    }
}

/// Rules out for good what something durable has replaced.
fn bury(block: &mut [Entry]) {
    let newest = block.iter().filter(|e| e.durable).map(|e| e.start).max().unwrap_or(0);
    block.iter_mut().filter(|e| e.end.is_some_and(|end| end < newest)).for_each(|e| e.buried = true);
}

fn word(stamp: u64, lba: u64, i: u64) -> u64 {
    let x = (stamp ^ lba.rotate_left(32)).wrapping_add(i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn render(block: &mut [u8], stamp: u64, lba: u64) {
    block.fill(0x5A);
    block[..8].copy_from_slice(&stamp.to_le_bytes());
    block[8..16].copy_from_slice(&lba.to_le_bytes());
    for i in 2..8 {
        block[i * 8..i * 8 + 8].copy_from_slice(&word(stamp, lba, i as u64).to_le_bytes());
    }
    let last = block.len() - 8;
    block[last..].copy_from_slice(&word(stamp, lba, 99).to_le_bytes());
}

fn parse(block: &[u8], lba: u64) -> Option<u64> {
    if block.iter().all(|&b| b == 0) {
        return Some(0);
    }
    let stamp = u64::from_le_bytes(block[..8].try_into().ok()?);
    let mut want = vec![0; block.len()];
    render(&mut want, stamp, lba);
    (want == block).then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(o: &mut Oracle, lba: u64) -> (WriteId, Vec<u8>) {
        let mut data = vec![0; 512];
        let id = o.begin_write(lba, &mut data);
        (id, data)
    }

    fn read(o: &mut Oracle, lba: u64, data: &[u8]) -> Result<(), Violation> {
        let id = o.begin_read(lba, 1);
        o.end_read(id, data)
    }

    #[test]
    fn old_data_is_seen() {
        let mut o = Oracle::new(4, 512);
        let (a, first) = write(&mut o, 1);
        o.end_write(a, true);
        assert_eq!(read(&mut o, 1, &first), Ok(()));
        assert!(read(&mut o, 1, &[0; 512]).unwrap_err().old, "lost write");
        let (b, second) = write(&mut o, 1);
        assert_eq!(read(&mut o, 1, &first), Ok(()), "in flight: either");
        assert_eq!(read(&mut o, 1, &second), Ok(()));
        o.end_write(b, true);
        assert!(read(&mut o, 1, &first).unwrap_err().old);
        assert_eq!(read(&mut o, 2, &second).unwrap_err().read, None, "a block of somewhere else");
    }

    #[test]
    fn overlapping_writes_may_be_either_until_a_read_settles_it() {
        let mut o = Oracle::new(1, 512);
        let ((a, first), (b, second)) = (write(&mut o, 0), write(&mut o, 0));
        o.end_write(b, true);
        o.end_write(a, true);
        assert_eq!(read(&mut o, 0, &second), Ok(()));
        assert!(read(&mut o, 0, &first).is_err(), "it was settled");
        assert_eq!(read(&mut o, 0, &second), Ok(()));
    }

    #[test]
    fn a_failed_write_may_be_there_until_the_next() {
        let mut o = Oracle::new(1, 512);
        let (a, first) = write(&mut o, 0);
        o.end_write(a, false);
        let (b, second) = write(&mut o, 0);
        o.end_write(b, true);
        assert!(read(&mut o, 0, &first).is_err());
        assert_eq!(read(&mut o, 0, &second), Ok(()));
        let z = o.begin_zero(0, 1);
        o.end_write(z, true);
        assert_eq!(read(&mut o, 0, &[0; 512]), Ok(()));
        assert!(read(&mut o, 0, &second).is_err());
    }

    #[test]
    fn a_flush_makes_durable_what_was_acknowledged_before_it_began() {
        let mut o = Oracle::new(1, 512);
        let (a, first) = write(&mut o, 0);
        o.end_write(a, true);
        assert_eq!(o.check_durable(0, &[0; 512]), Ok(()), "not flushed yet");
        let flush = o.begin_flush();
        let (b, second) = write(&mut o, 0);
        o.end_write(b, true);
        o.end_flush(flush);
        assert!(o.check_durable(0, &[0; 512]).unwrap_err().old, "the first one is promised");
        assert_eq!((o.check_durable(0, &first), o.check_durable(0, &second)), (Ok(()), Ok(())));
        assert!(read(&mut o, 0, &first).is_err(), "and is not what is read");
        o.power_lost();
        assert_eq!(read(&mut o, 0, &first), Ok(()), "unless the power failed");
        let flush = o.begin_flush();
        o.end_flush(flush);
        assert!(o.check_durable(0, &first).is_err(), "nobody may say now that the second one is durable");
    }

    #[test]
    fn an_acknowledgement_may_be_older_than_the_loss_of_power_that_it_outlived() {
        let mut o = Oracle::new(1, 512);
        let (a, first) = write(&mut o, 0);
        o.power_lost();
        o.end_write(a, true);
        assert_eq!(read(&mut o, 0, &[0; 512]), Ok(()), "it was lost after it had been carried out");
        let (b, second) = write(&mut o, 0);
        o.end_write(b, true);
        assert!(read(&mut o, 0, &first).is_err());
        let open = o.begin_read(0, 1);
        o.power_lost();
        assert_eq!(o.end_read(open, &second), Ok(()));
        assert_eq!(read(&mut o, 0, &first), Ok(()), "what was read before settles nothing");
    }

    #[test]
    fn a_lost_cache_that_was_reported_breaks_no_promise() {
        let mut o = Oracle::new(1, 512);
        let (a, first) = write(&mut o, 0);
        o.end_write(a, true);
        o.power_lost();
        o.cache_lost();
        let flush = o.begin_flush();
        o.end_flush(flush);
        assert_eq!((o.check_durable(0, &[0; 512]), o.check_durable(0, &first)), (Ok(()), Ok(())));
        let (b, second) = write(&mut o, 0);
        o.end_durable_write(b);
        assert!(o.check_durable(0, &first).is_err());
        assert_eq!(o.check_durable(0, &second), Ok(()));
    }

    #[test]
    #[should_panic(expected = "exactly once")]
    fn completing_twice_is_seen() {
        let mut o = Oracle::new(1, 512);
        let (a, _) = write(&mut o, 0);
        o.end_write(a, true);
        o.end_write(a, true);
    }
}
