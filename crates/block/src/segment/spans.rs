//! Spans that are taken for one request and given back with it.
//!
//! The table's memory is divided into pages. A page serves spans of one size, a power of two, from the first that is taken from it to the last
//! that is given back; then it is free for any size. A span is found by a bit and given back by a bit: nothing is searched, nothing is
//! allocated. Pages are added as they are needed, in a range of addresses that was reserved once: what is not used costs no memory.

use super::{SegSpan, SegTable, Segment};

/// Segments of a page, and of the widest span.
const PAGE: u32 = 256;
/// Sizes of spans: 1, 2, 4, up to a page.
const SIZES: usize = 9;
/// Pages added at a time (64 KiB of table).
const GROWTH: u32 = 16;
/// No page.
const NONE: u32 = u32::MAX;

/// Where spans come from.
#[derive(Debug)]
pub(super) struct Spans {
    /// By number: page `n` begins at segment `n * PAGE`. Those in between that were reserved as rows are nobody's.
    pages: Vec<Page>,
    /// First of the pages of each size that have a span left.
    open: [u32; SIZES],
    /// First of the pages that are free for any size.
    empty: u32,
    /// Segments that spans may have together, and how many they have.
    most: u32,
    taken: u32,
    /// Segments of all pages.
    owned: u32,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    /// Spans that are free, a bit each.
    free: [u64; 4],
    /// Binary logarithm of its spans' size; [`Page::NOBODYS`] and [`Page::EMPTY`] for a page without spans.
    size: u8,
    /// Spans taken.
    taken: u16,
    /// Neighbours in the list that it is in.
    before: u32,
    after: u32,
}

impl Page {
    const EMPTY: u8 = 0xfe;
    const NOBODYS: u8 = 0xff;
    const NEW: Page = Page { free: [0; 4], size: Page::NOBODYS, taken: 0, before: NONE, after: NONE };

    fn is_full(&self) -> bool {
        self.free == [0; 4]
    }
}

impl Spans {
    pub(super) const fn new() -> Spans {
        Spans { pages: Vec::new(), open: [NONE; SIZES], empty: NONE, most: 0, taken: 0, owned: 0 }
    }

    /// Takes page `at` out of the list that begins at `first`.
    fn unlink(&mut self, at: u32, size: u8) {
        let Page { before, after, .. } = self.pages[at as usize];
        match before {
            NONE => self.open[usize::from(size)] = after,
            before => self.pages[before as usize].after = after,
        }
        if after != NONE {
            self.pages[after as usize].before = before;
        }
    }

    /// Puts page `at` first among those of its size that have a span left.
    fn link(&mut self, at: u32, size: u8) {
        let first = std::mem::replace(&mut self.open[usize::from(size)], at);
        let page = &mut self.pages[at as usize];
        (page.before, page.after) = (NONE, first);
        if first != NONE {
            self.pages[first as usize].before = at;
        }
    }

    fn push_empty(&mut self, at: u32) {
        let page = &mut self.pages[at as usize];
        (page.size, page.after) = (Page::EMPTY, self.empty);
        self.empty = at;
    }

    /// Gives an empty page to spans of `size`.
    fn dedicate(&mut self, at: u32, size: u8) {
        let page = &mut self.pages[at as usize];
        self.empty = page.after;
        let count = PAGE >> size;
        for (word, free) in page.free.iter_mut().enumerate() {
            let here = count.saturating_sub(64 * word as u32).min(64);
            *free = if here == 64 { u64::MAX } else { (1 << here) - 1 };
        }
        (page.size, page.taken) = (size, 0);
        self.link(at, size);
    }
}

impl SegTable {
    /// Most segments of a span.
    pub const WIDEST_SPAN: u32 = PAGE;

    /// Lets spans be taken: reserves addresses for all that the table may ever hold, so that it never moves again. Memory is used as spans
    /// are. Call it when something opens that takes spans; once it was called it costs nothing.
    pub fn allow_spans(&mut self) {
        if self.spans.most > 0 {
            return;
        }
        // The rest is for rows: a queue that opens must not be refused for what requests have.
        self.spans.most = self.limit / PAGE / 4 * 3 * PAGE;
        self.segs.reserve_exact(self.limit as usize - self.segs.len());
        self.spans.pages.reserve_exact((self.limit / PAGE) as usize);
    }

    /// Takes a span of `count` segments, which is nobody else's until [`SegTable::give_back`]. `None` if there is no room now, `count` is 0 or
    /// above [`SegTable::WIDEST_SPAN`], or nobody has called [`SegTable::allow_spans`].
    pub fn take(&mut self, count: u32) -> Option<SegSpan> {
        if count == 0 || count > PAGE {
            return None;
        }
        let size = count.next_power_of_two().trailing_zeros() as u8;
        let at = match self.spans.open[usize::from(size)] {
            NONE => self.open_page(size)?,
            at => at,
        };
        let page = &mut self.spans.pages[at as usize];
        let word = page.free.iter().position(|&free| free != 0)?;
        let bit = page.free[word].trailing_zeros();
        page.free[word] &= page.free[word] - 1;
        page.taken += 1;
        if page.is_full() {
            self.spans.unlink(at, size);
        }
        self.spans.taken += 1 << size;
        Some(SegSpan { start: at * PAGE + ((64 * word as u32 + bit) << size), count })
    }

    /// Gives back a span that was taken. Nothing of it may be in flight.
    pub fn give_back(&mut self, span: SegSpan) {
        let at = span.start / PAGE;
        let Some(page) = self.spans.pages.get_mut(at as usize).filter(|page| usize::from(page.size) < SIZES) else {
            debug_assert!(false, "{span:?} was never taken");
            return;
        };
        let size = page.size;
        let slot = (span.start % PAGE) >> size;
        let (word, bit) = ((slot / 64) as usize, 1u64 << (slot % 64));
        if page.free[word] & bit != 0 {
            debug_assert!(false, "{span:?} was given back already");
            return;
        }
        let was_full = page.is_full();
        page.free[word] |= bit;
        page.taken -= 1;
        let is_empty = page.taken == 0;
        self.spans.taken -= 1 << size;
        match (was_full, is_empty) {
            (true, false) => self.spans.link(at, size),
            (false, true) => {
                self.spans.unlink(at, size);
                self.spans.push_empty(at);
            }
            (true, true) => self.spans.push_empty(at),
            (false, false) => {}
        }
    }

    /// Segments that are left for spans. Whoever takes for strangers takes no more than he leaves: then a newcomer always finds some.
    #[inline]
    pub fn spans_left(&self) -> u32 {
        self.spans.most - self.spans.taken
    }

    #[cold]
    fn open_page(&mut self, size: u8) -> Option<u32> {
        if self.spans.empty == NONE {
            self.grow();
        }
        let at = self.spans.empty;
        if at == NONE {
            return None;
        }
        self.spans.dedicate(at, size);
        Some(at)
    }

    /// Adds pages at the end of the table, if they may be added.
    fn grow(&mut self) {
        let (len, limit) = (self.segs.len() as u32, self.limit);
        let first = len.div_ceil(PAGE);
        let room = (limit / PAGE).saturating_sub(first).min((self.spans.most - self.spans.owned) / PAGE);
        let count = GROWTH.min(room);
        if count == 0 {
            return;
        }
        if first * PAGE > len {
            // In between is room for a row. The list has room for it: see `reserve`.
            self.free.push((len, first * PAGE - len));
        }
        let end = first + count;
        self.segs.resize((end * PAGE) as usize, Segment::default());
        self.spans.pages.resize(end as usize, Page::NEW);
        self.spans.owned += count * PAGE;
        (first..end).rev().for_each(|at| self.spans.push_empty(at));
    }
}

#[cfg(test)]
mod tests {
    use super::super::RegionId;
    use super::*;

    fn table(limit: u32) -> SegTable {
        let mut table = SegTable::new(limit);
        table.allow_spans();
        table
    }

    #[test]
    fn spans_of_all_sizes_lie_apart_and_serve_again() {
        let mut table = table(64 * PAGE);
        let rows = table.reserve(3, 7).unwrap();
        let mut spans: Vec<SegSpan> = Vec::new();
        let mut seed = 1u32;
        for round in 0..20_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let count = 1 + (seed >> 8) % if round % 3 == 0 { PAGE } else { 5 };
            if seed >> 31 == 0
                && let Some(span) = table.take(count)
            {
                assert_eq!(span.count, count);
                let ours = Segment { offset: u64::from(span.start), region: RegionId(count), len: 1 };
                table.get_mut(span).fill(ours);
                spans.push(span);
            } else if !spans.is_empty() {
                let span = spans.swap_remove(seed as usize % spans.len());
                let whole = |s: &Segment| s.offset == u64::from(span.start) && s.region == RegionId(span.count);
                assert!(table.get(span).iter().all(whole), "somebody else wrote {span:?}");
                table.give_back(span);
            }
        }
        for span in spans.drain(..) {
            table.give_back(span);
        }
        assert_eq!(table.spans_left(), 48 * PAGE, "all is back");
        table.release(rows);
        while let Some(span) = table.take(PAGE) {
            spans.push(span);
        }
        assert_eq!(spans.len(), 48, "and whole pages again");
        assert_eq!(table.spans_left(), 0);
    }

    #[test]
    fn rows_find_room_where_spans_have_all_of_theirs() {
        let mut table = table(8 * PAGE);
        let row = table.reserve(1, 3).unwrap();
        let spans: Vec<SegSpan> = std::iter::from_fn(|| table.take(200)).collect();
        assert_eq!((spans.len(), table.spans_left()), (6, 0));
        assert!(table.reserve(1, PAGE).is_ok(), "{table:?}");
        assert!(table.reserve(1, PAGE - 3).is_ok(), "also beside the first row: {table:?}");
        assert!(table.reserve(1, 1).is_err());
        table.release(row);
        spans.into_iter().for_each(|span| table.give_back(span));
    }

    /// Also with other sizes beside it: no segment of a page is ever nobody's.
    #[test]
    fn spans_of_one_size_fill_their_pages() {
        for count in (0..=8).map(|size| 1 << size) {
            let mut table = table(8 * PAGE);
            for _ in 0..2 {
                let mut spans: Vec<SegSpan> = std::iter::from_fn(|| table.take(count)).collect();
                assert_eq!((spans.len() as u32, table.spans_left()), (6 * PAGE / count, 0), "of {count}");
                spans.sort_unstable_by_key(|span| span.start);
                assert!(spans.windows(2).all(|two| two[0].start + count <= two[1].start), "of {count}: they lie apart");
                spans.into_iter().for_each(|span| table.give_back(span));
            }
        }
    }

    #[test]
    fn a_table_that_allows_none_and_spans_of_no_size() {
        let mut table = SegTable::new(8 * PAGE);
        assert_eq!((table.take(1), table.spans_left()), (None, 0));
        table.allow_spans();
        assert_eq!((table.take(0), table.take(PAGE + 1)), (None, None));
        assert!(table.take(PAGE).is_some());
    }

    #[test]
    fn the_table_never_moves_and_takes_no_more_than_is_used() {
        let mut table = table(SegTable::DEFAULT_LIMIT);
        let first = table.take(1).unwrap();
        let (at, spans) = (table.get(first).as_ptr(), (0..5000).map(|_| table.take(132).unwrap()).collect::<Vec<_>>());
        assert_eq!(at, table.get(first).as_ptr());
        assert!(table.segs.len() as u32 <= (5001 + GROWTH) * PAGE);
        spans.into_iter().for_each(|span| table.give_back(span));
    }

    #[test]
    #[should_panic(expected = "given back already")]
    fn a_span_is_given_back_once() {
        let mut table = table(8 * PAGE);
        let (span, _other) = (table.take(2).unwrap(), table.take(2).unwrap());
        table.give_back(span);
        table.give_back(span);
    }
}
