//! Media: memory, nothing, or a disk of our own stack. Shared by all threads, without a lock per I/O.
//!
//! Memory and nothing are used directly, by the methods of [`Medium`]; a disk beneath answers later (`beneath/`). One logical block is never torn: one thread's copies cannot interleave with its own, and with several
//! threads a striped spin bit per 4 KiB orders them.

pub(crate) mod beneath;
mod cache;
mod kept;
mod reservations;

pub(crate) use beneath::Beneath;
pub(crate) use cache::Cached;
pub(crate) use kept::{Keep, KeepFile};
pub(crate) use reservations::{Hold, News, Party, Picture, Refusal, Reservations, Told};

use crate::config::{Backing, ConfigError};
use polypath_block::Segment;
use polypath_memory::{Region, Window};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Zeroes to write and to send from.
pub(crate) static ZEROES: [u8; 128 << 10] = [0; 128 << 10];

/// Bytes that are kept whole against other threads.
const STRIPE: u64 = 4096;
const STRIPES: usize = 1024;
/// From this length on, zeroes are made by punching a hole.
const PUNCH: u64 = 1 << 20;

/// Why a medium did not do what it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MediumError {
    /// It has no such bytes.
    OutOfRange,
    /// They cannot be read.
    Read,
    /// They cannot be written, or not made durable.
    Write,
    /// It does no such thing.
    Unsupported,
    /// It takes no changes.
    WriteProtected,
    /// Somebody else has reserved it.
    Conflict,
    /// There is something else.
    Miscompare,
    /// It has no space left.
    NoSpace,
    /// It gave the request up, which may be made again.
    Aborted,
    /// It did not do it, or nobody knows: there is no way to it, or it did not say.
    Failed,
}

/// Where the bytes of a disk are.
#[derive(Debug)]
pub(crate) enum Medium {
    Null,
    Ram(Ram),
    Cached(Cached),
    /// None of the methods below reaches its bytes: connections make jobs of their commands.
    Beneath(Arc<Beneath>),
}

#[derive(Debug)]
pub(crate) struct Ram {
    /// One after the other; more than one once it has grown. A grown medium shares those of the one that it was.
    parts: Vec<Arc<Part>>,
    /// Present only with several threads.
    stripes: Option<Arc<[AtomicBool]>>,
}

#[derive(Debug)]
struct Part {
    /// Bytes of the medium before it.
    begin: u64,
    region: Region,
    /// All of it.
    window: Window,
}

impl Medium {
    /// The medium and its size in bytes.
    pub(crate) fn open(backing: &Backing, threads: usize) -> Result<(Medium, u64), ConfigError> {
        match backing {
            Backing::Null(bytes) => Ok((Medium::Null, *bytes)),
            Backing::Cached { bytes, through } => Ok((Medium::Cached(Cached::new(*bytes, *through)), *bytes)),
            Backing::Ram(bytes) => {
                let fail = |e: String| ConfigError::new(format!("ram://{bytes}"), e);
                let parts = vec![Arc::new(Part::new(0, *bytes).map_err(fail)?)];
                let stripes = (threads > 1).then(|| (0..STRIPES).map(|_| AtomicBool::new(false)).collect::<Arc<[_]>>());
                Ok((Medium::Ram(Ram { parts, stripes }), *bytes))
            }
            Backing::Beneath(source) => {
                Err(ConfigError::new(format!("{:?}", source.paths), "is opened where there are reactors"))
            }
        }
    }

    /// Does Flush do anything?
    pub(crate) fn is_volatile(&self) -> bool {
        match self {
            Medium::Beneath(disk) => disk.limits().write_cache,
            Medium::Cached(cached) => cached.is_volatile(),
            Medium::Null | Medium::Ram(_) => false,
        }
    }

    /// Where the bytes are in memory, if they may be sent from there: one thread's writes cannot tear what the same thread
    /// sends in one call.
    #[inline]
    pub(crate) fn segment(&self, offset: u64, len: usize) -> Option<Segment> {
        match self {
            Medium::Ram(ram @ Ram { stripes: None, .. }) => {
                let (part, at, _) = ram.part(offset).filter(|&(_, _, room)| room >= len)?;
                Some(Segment { offset: at as u64, region: part.region.id(), len: len as u32 })
            }
            _ => None,
        }
    }

    /// Fills `out` from byte `offset`. The caller has checked the range.
    #[inline]
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), MediumError> {
        match self {
            Medium::Null => out.fill(0),
            Medium::Ram(ram) => ram.each(offset, out.len(), |w, at, range| w.copy_out(at, &mut out[range]))?,
            Medium::Cached(cached) => cached.read(offset, out)?,
            Medium::Beneath(_) => return Err(MediumError::Failed),
        }
        Ok(())
    }

    /// Writes `data` at byte `offset`. The caller has checked the range.
    #[inline]
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        match self {
            Medium::Null => Ok(()),
            Medium::Ram(ram) => ram.each(offset, data.len(), |w, at, range| w.copy_in(at, &data[range])),
            Medium::Cached(cached) => cached.write(offset, data),
            Medium::Beneath(_) => Err(MediumError::Failed),
        }
    }

    /// Can a write be taken from its command and applied later, whatever has become of the target's connections? Not on a disk beneath, whose
    /// requests belong to queues that end in order.
    pub(crate) fn can_be_held(&self) -> bool {
        !matches!(self, Medium::Beneath(_))
    }

    /// How often it was changed; only a medium with a simulated cache counts.
    pub(crate) fn changes(&self) -> u64 {
        match self {
            Medium::Cached(cached) => cached.changes(),
            _ => 0,
        }
    }

    /// Whether the medium holds `data` at byte `offset`.
    pub(crate) fn compare(&self, offset: u64, data: &[u8]) -> Result<bool, MediumError> {
        let mut buffer = [0; STRIPE as usize];
        for (i, chunk) in data.chunks(buffer.len()).enumerate() {
            let there = &mut buffer[..chunk.len()];
            self.read(offset + i as u64 * STRIPE, there)?;
            if there != chunk {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes `new` at byte `offset` if the medium holds `expected` there, both of one length; else says where the first byte is that
    /// differs. Nothing else that is written gets in between.
    pub(crate) fn compare_and_write(
        &self,
        offset: u64,
        expected: &[u8],
        new: &[u8],
    ) -> Result<Option<usize>, MediumError> {
        let swap = || {
            let mut there = vec![0; expected.len()];
            match self {
                Medium::Ram(ram) => {
                    ram.each_unlocked(offset, there.len(), |w, at, range| w.copy_out(at, &mut there[range]))?;
                }
                _ => self.read(offset, &mut there)?,
            }
            if let Some(at) = there.iter().zip(expected).position(|(a, b)| a != b) {
                return Ok(Some(at));
            }
            match self {
                Medium::Ram(ram) => ram.each_unlocked(offset, new.len(), |w, at, range| w.copy_in(at, &new[range]))?,
                _ => self.write(offset, new)?,
            }
            Ok(None)
        };
        match self {
            Medium::Ram(ram) => ram.alone(offset, expected.len(), swap),
            Medium::Cached(cached) => cached.compare_and_write(offset, expected, new),
            Medium::Beneath(_) | Medium::Null => swap(),
        }
    }

    /// Makes `len` bytes from byte `offset` on read as zero.
    pub(crate) fn zero(&self, offset: u64, len: u64) -> Result<(), MediumError> {
        let end = offset + len;
        let zeroed = self.give_back(offset, end).unwrap_or(end..end);
        self.overwrite(offset, zeroed.start)?;
        self.overwrite(zeroed.end, end)
    }

    /// Makes bytes `offset .. end` read as zero without writing them: all or most of them, if that can be had. Says which.
    fn give_back(&self, offset: u64, end: u64) -> Option<Range<u64>> {
        match self {
            Medium::Null => Some(offset..end),
            _ if end - offset < PUNCH => None,
            Medium::Ram(ram) => {
                let whole = offset.next_multiple_of(STRIPE)..end / STRIPE * STRIPE;
                ram.give_back(whole.start, whole.end - whole.start).then_some(whole)
            }
            Medium::Cached(_) | Medium::Beneath(_) => None,
        }
    }

    /// Writes zeroes to bytes `at .. end`.
    fn overwrite(&self, mut at: u64, end: u64) -> Result<(), MediumError> {
        while at < end {
            let n = (end - at).min(ZEROES.len() as u64);
            self.write(at, &ZEROES[..n as usize])?;
            at += n;
        }
        Ok(())
    }

    /// A medium of another size with the contents of this one: `None` when this one can serve it.
    pub(crate) fn resized(&self, bytes: u64) -> Result<Option<Medium>, String> {
        match self {
            Medium::Null => Ok(None),
            Medium::Ram(ram) if bytes <= ram.len() => Ok(None),
            Medium::Ram(ram) => Ok(Some(Medium::Ram(ram.grown(bytes)?))),
            Medium::Beneath(disk) => Err(format!("the size is that of {}", disk.name())),
            Medium::Cached(cached) => {
                cached.grow(bytes);
                Ok(None)
            }
        }
    }

    /// Makes everything written so far survive a loss of power.
    pub(crate) fn flush(&self) -> Result<(), MediumError> {
        match self {
            Medium::Beneath(_) => Err(MediumError::Failed),
            Medium::Cached(cached) => {
                cached.flush();
                Ok(())
            }
            Medium::Null | Medium::Ram(_) => Ok(()),
        }
    }

    /// Makes the `len` bytes from byte `offset` on survive a loss of power; more than these, where that is all that can be had.
    pub(crate) fn persist(&self, offset: u64, len: u64) -> Result<(), MediumError> {
        if let Medium::Cached(cached) = self {
            cached.persist(offset, len);
            return Ok(());
        }
        self.flush()
    }

    /// The power fails: what was written and not flushed is lost. Only a medium with a simulated cache can do that.
    pub(crate) fn lose_power(&self) {
        if let Medium::Cached(cached) = self {
            cached.lose_power();
        }
    }
}

impl Part {
    fn new(begin: u64, bytes: u64) -> Result<Part, String> {
        let region = Region::private(bytes, true).map_err(|e| e.to_string())?;
        tracing::info!(bytes, pages = region.pages().as_str(), reason = region.fallback(), "made memory for a medium");
        let window = region.window(0, region.len()).ok_or("cannot be mapped")?;
        Ok(Part { begin, region, window })
    }

    fn end(&self) -> u64 {
        self.begin + self.region.len()
    }
}

impl Ram {
    fn len(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end())
    }

    /// The part that byte `offset` is in, where in it, and how many bytes follow in it.
    #[inline]
    fn part(&self, offset: u64) -> Option<(&Part, usize, usize)> {
        let part = self.parts.iter().find(|part| offset < part.end())?;
        Some((part, (offset - part.begin) as usize, (part.end() - offset) as usize))
    }

    /// The same memory, and more after it. A write that still goes to the old medium is seen in the new one, so a disk may grow under I/O.
    fn grown(&self, bytes: u64) -> Result<Ram, String> {
        let have = self.len();
        let mut parts = self.parts.clone();
        parts.push(Arc::new(Part::new(have, bytes - have)?));
        Ok(Ram { parts, stripes: self.stripes.clone() })
    }

    /// Makes whole stripes read as zero by giving their memory back. `false`: it was not done, or not with all of them.
    fn give_back(&self, offset: u64, len: u64) -> bool {
        self.parts.iter().all(|part| {
            let (from, to) = (offset.max(part.begin), (offset + len).min(part.end()));
            from >= to || part.region.give_back(from - part.begin, to - from)
        })
    }

    /// Runs `f` while no other thread copies anything of the range.
    fn alone<T>(&self, offset: u64, len: usize, f: impl FnOnce() -> T) -> T {
        let Some(stripes) = &self.stripes else { return f() };
        let all = offset / STRIPE..(offset + len as u64).div_ceil(STRIPE);
        // In the order of the bits, so that two that want several never wait for each other.
        let mut bits: Vec<usize> = all.map(|stripe| stripe as usize % STRIPES).collect();
        bits.sort_unstable();
        bits.dedup();
        for bit in &bits {
            while stripes[*bit].swap(true, Ordering::Acquire) {
                std::hint::spin_loop();
            }
        }
        let result = f();
        bits.iter().for_each(|bit| stripes[*bit].store(false, Ordering::Release));
        result
    }

    /// Runs `copy` over the whole range, part by part, for somebody who is alone there.
    fn each_unlocked<E>(
        &self,
        offset: u64,
        len: usize,
        mut copy: impl FnMut(&Window, usize, Range<usize>) -> Result<(), E>,
    ) -> Result<(), MediumError> {
        let mut done = 0;
        while done < len {
            let (part, local, room) = self.part(offset + done as u64).ok_or(MediumError::OutOfRange)?;
            let n = room.min(len - done);
            copy(&part.window, local, done..done + n).map_err(|_| MediumError::OutOfRange)?;
            done += n;
        }
        Ok(())
    }

    /// Runs `copy` over the whole range: part by part, and stripe by stripe where threads must be kept apart.
    #[inline]
    fn each<E>(
        &self,
        offset: u64,
        len: usize,
        mut copy: impl FnMut(&Window, usize, Range<usize>) -> Result<(), E>,
    ) -> Result<(), MediumError> {
        let outside = MediumError::OutOfRange;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (part, local, room) = self.part(at).ok_or(outside)?;
            let n = room.min(len - done);
            let Some(stripes) = &self.stripes else {
                copy(&part.window, local, done..done + n).map_err(|_| outside)?;
                done += n;
                continue;
            };
            let n = n.min((STRIPE - at % STRIPE) as usize);
            let bit = &stripes[(at / STRIPE) as usize % STRIPES];
            while bit.swap(true, Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let result = copy(&part.window, local, done..done + n);
            bit.store(false, Ordering::Release);
            result.map_err(|_| outside)?;
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(medium: &Medium) {
        let data: Vec<u8> = (0..9000u32).map(|i| (i * 7) as u8).collect();
        medium.write(4000, &data).unwrap();
        let mut back = vec![0; data.len()];
        medium.read(4000, &mut back).unwrap();
        assert!(back == data);
        assert_eq!(medium.compare(4000, &data), Ok(true));
        medium.zero(4100, 10).unwrap();
        assert_eq!(medium.compare(4000, &data), Ok(false));
        medium.read(4000, &mut back).unwrap();
        assert_eq!(back[100..110], [0; 10]);
        assert_eq!(back[99], data[99]);
        medium.zero(0, 2 << 20).unwrap();
        medium.read(4000, &mut back).unwrap();
        assert!(back.iter().all(|&b| b == 0));
        medium.flush().unwrap();
    }

    #[test]
    fn ram_keeps_what_is_written() {
        check(&Medium::open(&Backing::Ram(4 << 20), 1).unwrap().0);
        check(&Medium::open(&Backing::Ram(4 << 20), 2).unwrap().0);
    }

    #[test]
    fn memory_that_grows_keeps_what_is_written_on_the_way() {
        for threads in [1, 2] {
            let (old, _) = Medium::open(&Backing::Ram(1 << 20), threads).unwrap();
            old.write(5000, &[7; 3000]).unwrap();
            let new = old.resized(3 << 20).unwrap().expect("a larger one");
            // A write that was on its way when the size changed.
            old.write(9000, &[8; 3000]).unwrap();
            new.write(2 << 20, &[9; 3000]).unwrap();
            assert!(old.write(2 << 20, &[9; 10]).is_err(), "the old one has its old size");
            drop(old);
            for (offset, byte) in [(5000, 7), (9000, 8), (2 << 20, 9), (1 << 20, 0)] {
                assert_eq!(new.compare(offset, &[byte; 3000]), Ok(true), "at {offset}");
            }
            assert!(new.resized(2 << 20).unwrap().is_none(), "this one serves a smaller size");
            let border = (1 << 20) - 1500;
            new.write(border, &[6; 3000]).unwrap();
            assert_eq!(new.compare(border, &[6; 3000]), Ok(true));
            assert_eq!(new.segment(border, 3000), None, "not in one piece");
            assert_eq!(new.segment(1 << 20, 3000).map(|s| s.offset), (threads == 1).then_some(0));
            new.write(border + (2 << 20), &[5; 100]).unwrap();
            new.zero(border + 1, 2 << 20).unwrap();
            for (offset, byte) in [(border, 6), (border + 1, 0), (1 << 20, 0), (border + (2 << 20), 0), (2 << 20, 0)] {
                assert_eq!(new.compare(offset, &[byte]), Ok(true), "at {offset}");
            }
            assert_eq!(new.compare(border + (2 << 20) + 1, &[5; 99]), Ok(true), "what follows is left alone");
        }
    }

    #[test]
    fn beyond_the_end_is_an_error() {
        let (ram, _) = Medium::open(&Backing::Ram(4096), 1).unwrap();
        assert!(ram.write(4090, &[1; 10]).is_err());
        assert!(ram.read(1 << 40, &mut [1; 10]).is_err());
    }

    #[test]
    fn threads_never_tear_a_block() {
        let (ram, _) = Medium::open(&Backing::Ram(1 << 20), 2).unwrap();
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                for i in 0..20_000u32 {
                    ram.write(8192, &[i as u8; 4096]).unwrap();
                }
            });
            let mut block = [0; 4096];
            while !writer.is_finished() {
                ram.read(8192, &mut block).unwrap();
                assert!(block.iter().all(|&b| b == block[0]), "torn block");
            }
        });
    }
}
