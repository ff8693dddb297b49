//! Dirty logging: which pages of guest memory we have written, for a front-end that migrates the guest (vhost-user, "Migration").
//!
//! The log is memory of the front-end, which clears a page's bit and copies the page afterwards. So a page is marked once what is
//! written to it is there: after the device has completed, after the status byte, after the used ring. The front-end may change or
//! cut the log at any time; nothing is read of it.

use crate::guest::GuestMemory;
use polypath_block::Segment;
use polypath_memory::Window;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// A page of the log, whatever the pages of the guest are.
const PAGE_SHIFT: u32 = 12;
/// Pages in a word of the log.
const WORD: u64 = 64;

/// One bit for each page of guest addresses.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    window: Window,
    /// Something lay beyond its end; said once.
    short: AtomicBool,
}

impl DirtyLog {
    pub(crate) fn new(window: Window) -> DirtyLog {
        DirtyLog { window, short: AtomicBool::new(false) }
    }

    /// `len` bytes at guest address `at` were written. Returns how many words of the log were looked at: what it cost.
    pub(crate) fn mark(&self, at: u64, len: u64) -> u64 {
        let Some(last) = len.checked_sub(1).and_then(|more| at.checked_add(more)) else { return 0 };
        // What was written is seen by whoever clears a bit after we have found it set.
        fence(Ordering::SeqCst);
        let (first, end) = (at >> PAGE_SHIFT, (last >> PAGE_SHIFT) + 1);
        let (mut page, mut words) = (first, 0);
        while page < end {
            let upto = end.min((page / WORD + 1) * WORD);
            let bits = u64::MAX >> (WORD - (upto - page)) << (page % WORD);
            words += 1;
            if !self.mark_word(page / WORD, bits) {
                self.say_short(page);
                break;
            }
            page = upto;
        }
        words
    }

    /// Sets `bits` of a word. False if some of them are beyond the end.
    #[inline]
    fn mark_word(&self, word: u64, bits: u64) -> bool {
        let Some(at) = usize::try_from(word).ok().and_then(|word| word.checked_mul(8)) else { return false };
        match self.window.load_u64(at, Ordering::Relaxed) {
            // The same pages are written again and again: that costs a look.
            Ok(have) if have & bits == bits => true,
            Ok(_) => self.window.set_bits_u64(at, bits).is_ok(),
            Err(_) => self.mark_bytes(at, bits),
        }
    }

    /// The end of a log that is not made of words, or one that is not aligned to them.
    #[cold]
    fn mark_bytes(&self, at: usize, bits: u64) -> bool {
        let mut bytes = bits.to_le_bytes().into_iter().enumerate().filter(|(_, bits)| *bits != 0);
        bytes.all(|(n, bits)| at.checked_add(n).is_some_and(|at| self.window.set_bits(at, bits).is_ok()))
    }

    #[cold]
    fn say_short(&self, page: u64) {
        if !self.short.swap(true, Ordering::Relaxed) {
            let pages = self.window.len() as u64 * 8;
            tracing::error!(
                page,
                pages,
                "the front-end's dirty log is too short for its memory; the guest must not be migrated"
            );
        }
    }

    /// Data was written to the first `len` bytes of `segments` of `memory`. Returns what it cost, in words of the log.
    pub(crate) fn mark_segments(&self, memory: &GuestMemory, segments: &[Segment], len: u64) -> u64 {
        let (mut left, mut cost, mut hint) = (len, 0, 0);
        for segment in segments {
            let n = left.min(segment.len.into());
            if n == 0 {
                break;
            }
            left -= n;
            cost += 1;
            if let Some(at) = memory.guest_addr(segment.region, segment.offset, &mut hint) {
                cost += self.mark(at, n);
            }
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_memory::Region;
    use std::sync::Arc;

    fn log(bytes: u64) -> (DirtyLog, Window) {
        let region = Region::allocate(bytes, false).unwrap();
        let window = region.window(0, bytes).unwrap();
        (DirtyLog::new(window.clone()), window)
    }

    fn marked(window: &Window) -> Vec<usize> {
        let mut bytes = vec![0; window.len()];
        window.copy_out(0, &mut bytes).unwrap();
        (0..bytes.len() * 8).filter(|page| bytes[page / 8] & 1 << (page % 8) != 0).collect()
    }

    #[test]
    fn every_page_that_was_touched_is_marked_and_no_other() {
        for (at, len, pages) in [
            (0, 1, vec![0]),
            (0xfff, 1, vec![0]),
            (0xfff, 2, vec![0, 1]),
            (0x1000, 0x1000, vec![1]),
            (0x1000, 0x1001, vec![1, 2]),
            (0x7fff, 0x2002, vec![7, 8, 9, 10]),
            (0x3000, 0, vec![]),
        ] {
            let (log, window) = log(8);
            log.mark(at, len);
            assert_eq!(marked(&window), pages, "{at:#x} {len:#x}");
            log.mark(0x1f000, 1);
            assert_eq!(marked(&window).len(), pages.len() + 1, "what was marked stays so");
        }
    }

    #[test]
    fn what_lies_beyond_the_log_harms_nobody() {
        let (log, window) = log(8);
        for (at, len) in [(0x40000, 1), (u64::MAX, 2), (u64::MAX, 1), (u64::MAX - 0xfff, 0x1000)] {
            log.mark(at, len);
        }
        assert!(marked(&window).is_empty());
        log.mark(0x3f000, 0x2000);
        assert_eq!(marked(&window), [63], "as far as it goes");
    }

    #[test]
    fn segments_are_marked_where_the_guest_has_them() {
        let regions = [(); 2].map(|()| Arc::new(Region::allocate(0x4000, false).unwrap()));
        let memory = GuestMemory::new().with(0x10000, 0, regions[0].clone()).unwrap();
        let memory = memory.with(0x20000, 0x10000, regions[1].clone()).unwrap();
        let (log, window) = log(8);
        let segment = |at: usize, offset, len| Segment { region: regions[at].id(), offset, len };
        let segments = [segment(0, 0x2000, 1), segment(1, 0xfff, 2), segment(0, 0, 1)];
        log.mark_segments(&memory, &segments, 2);
        assert_eq!(marked(&window), [0x12, 0x20], "what was written, and no more");
        log.mark_segments(&memory, &segments, 3);
        assert_eq!(marked(&window), [0x12, 0x20, 0x21]);
        log.mark_segments(&memory, &segments, u64::MAX);
        assert_eq!(marked(&window), [0x10, 0x12, 0x20, 0x21]);
    }

    /// A word each for 64 pages, whole words or not, aligned or not; and logs of any length.
    #[test]
    fn many_pages_are_marked_by_words() {
        let region = Region::allocate(0x1000, false).unwrap();
        let all = region.window(0, 0x1000).unwrap();
        for (offset, bytes) in [(0u64, 64u64), (0, 61), (8, 64), (3, 64), (1, 17)] {
            let dirty = DirtyLog::new(region.window(offset, bytes).unwrap());
            for (first, pages) in [(0u64, 1u64), (0, 64), (63, 2), (1, 127), (64, 64), (7, 300), (0, 512), (130, 5)] {
                all.copy_in(0, &[0; 0x1000]).unwrap();
                let words = dirty.mark(first << PAGE_SHIFT, pages << PAGE_SHIFT);
                assert!(words <= pages / WORD + 2, "{pages} pages cost {words} words");
                let want: Vec<usize> =
                    (first..first + pages).filter(|page| *page < bytes * 8).map(|p| p as usize).collect();
                assert_eq!(marked(&region.window(offset, bytes).unwrap()), want, "{offset} {bytes}: {first} {pages}");
                let in_all = marked(&all).len();
                assert_eq!(in_all, want.len(), "nothing beside it");
            }
        }
    }
}
