//! Where data lies: (region, offset, length), in one table per reactor: in rows for life (here) and in spans for a request (`spans.rs`).

mod spans;

use core::fmt;
use spans::Spans;

/// Names a region of memory registered with `polypath-memory`. Zero names none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, PartialOrd, Ord)]
pub struct RegionId(pub u32);

impl RegionId {
    /// No region.
    pub const NONE: RegionId = RegionId(0);
}

/// `len` bytes at `offset` of a region. Bounds are checked when the bytes are reached, not here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// The region.
    pub region: RegionId,
    /// Length in bytes.
    pub len: u32,
}

/// A run of segments in a [`SegTable`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegSpan {
    /// Index of the first segment.
    pub start: u32,
    /// Number of segments.
    pub count: u32,
}

impl SegSpan {
    /// No segment at all.
    pub const EMPTY: SegSpan = SegSpan { start: 0, count: 0 };
}

/// A block of rows reserved in a [`SegTable`]: `rows` rows of `width` segments each.
///
/// Not `Clone`: giving it back with [`SegTable::release`] consumes it.
#[derive(Debug, PartialEq, Eq)]
pub struct SegRow {
    start: u32,
    rows: u32,
    width: u32,
}

impl SegRow {
    /// Number of rows.
    pub const fn rows(&self) -> u32 {
        self.rows
    }

    /// Segments a row can hold.
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// The first `count` segments of row `row`.
    ///
    /// # Panics
    /// If `row` or `count` is outside what was reserved: the caller's own bookkeeping is wrong.
    pub fn span(&self, row: u32, count: u32) -> SegSpan {
        assert!(row < self.rows && count <= self.width, "segment row {row}/{count} outside {self:?}");
        SegSpan { start: self.start + row * self.width, count }
    }
}

/// The table has no room left; raise the reactor's segment limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "segment table is full: {wanted} more segments asked, limit is {limit}; open fewer or shallower queues on this reactor"
)]
pub struct SegTableFull {
    /// Segments asked for.
    pub wanted: u64,
    /// Segments the table may ever hold.
    pub limit: u32,
}

/// All segments of one reactor. Rows are reserved when a queue opens, spans are taken per request; both are written per request and read by
/// every layer below.
///
/// One table for all layers means that a request carries eight bytes for its data, whatever its shape, and that a retry carries nothing else.
pub struct SegTable {
    segs: Vec<Segment>,
    /// Rows that were given back, and gaps. Has room for one more gap than there are: see [`SegTable::reserve`].
    free: Vec<(u32, u32)>,
    spans: Spans,
    limit: u32,
}

impl SegTable {
    /// Segments a table may hold unless told otherwise (64 MiB of table).
    pub const DEFAULT_LIMIT: u32 = 4 << 20;

    /// An empty table that may grow to `limit` segments.
    pub fn new(limit: u32) -> Self {
        SegTable { segs: Vec::new(), free: Vec::new(), spans: Spans::new(), limit }
    }

    /// Reserves `rows` rows of `width` segments. Allocates: call it when a queue opens, never per request.
    ///
    /// # Errors
    /// [`SegTableFull`] when the limit would be passed.
    pub fn reserve(&mut self, rows: u32, width: u32) -> Result<SegRow, SegTableFull> {
        let wanted = u64::from(rows) * u64::from(width);
        let full = SegTableFull { wanted, limit: self.limit };
        let need = u32::try_from(wanted).map_err(|_| full)?;
        if let Some(at) = self.free.iter().position(|&(_, len)| len >= need) {
            let (start, len) = self.free[at];
            if len == need {
                self.free.swap_remove(at);
            } else {
                self.free[at] = (start + need, len - need);
            }
            return Ok(SegRow { start, rows, width });
        }
        let start = self.segs.len() as u64;
        if start + wanted > u64::from(self.limit) {
            return Err(full);
        }
        self.segs.resize((start + wanted) as usize, Segment::default());
        // Pages of spans begin at multiples of their size: the gap that a row leaves before the next is noted in a turn.
        self.free.reserve(1);
        Ok(SegRow { start: start as u32, rows, width })
    }

    /// Gives rows back. Nothing of them may be in flight.
    pub fn release(&mut self, row: SegRow) {
        let len = row.rows * row.width;
        if len == 0 {
            return;
        }
        self.free.push((row.start, len));
        self.free.sort_unstable();
        self.free.dedup_by(|next, prev| {
            let touches = prev.0 + prev.1 == next.0;
            if touches {
                prev.1 += next.1;
            }
            touches
        });
        self.free.reserve(1);
    }

    /// The segments of `span`. A span outside the table is empty.
    #[inline]
    pub fn get(&self, span: SegSpan) -> &[Segment] {
        let start = span.start as usize;
        self.segs.get(start..start.saturating_add(span.count as usize)).unwrap_or(&[])
    }

    /// The segments of `span`, to be written.
    #[inline]
    pub fn get_mut(&mut self, span: SegSpan) -> &mut [Segment] {
        let start = span.start as usize;
        self.segs.get_mut(start..start.saturating_add(span.count as usize)).unwrap_or(&mut [])
    }

    /// The only segment of `span`; `None` if it has none, or more.
    #[inline]
    pub fn get_one(&self, span: SegSpan) -> Option<&Segment> {
        if span.count == 1 { self.segs.get(span.start as usize) } else { None }
    }

    /// The only segment of `span`, to be written; `None` if it has none, or more.
    #[inline]
    pub fn get_one_mut(&mut self, span: SegSpan) -> Option<&mut Segment> {
        if span.count == 1 { self.segs.get_mut(span.start as usize) } else { None }
    }

    /// Copies the segments of `from` to the first of `to`, which is as long or longer and may not overlap it.
    pub fn copy(&mut self, from: SegSpan, to: SegSpan) {
        let (start, end) = (from.start as usize, from.start.saturating_add(from.count) as usize);
        if end <= self.segs.len()
            && to.count >= from.count
            && to.start as usize + from.count as usize <= self.segs.len()
        {
            self.segs.copy_within(start..end, to.start as usize);
        }
    }

    /// The pieces of `span` that hold bytes `skip .. skip + len`, cut to fit. Yields less when the span is shorter.
    #[inline]
    pub fn pieces(&self, span: SegSpan, skip: u64, len: u64) -> Pieces<'_> {
        Pieces { segs: self.get(span), skip, left: len }
    }

    /// Total bytes of `span`.
    #[inline]
    pub fn span_len(&self, span: SegSpan) -> u64 {
        if span.count == 1 {
            return self.segs.get(span.start as usize).map_or(0, |segment| segment.len.into());
        }
        self.get(span).iter().map(|s| u64::from(s.len)).sum()
    }
}

impl fmt::Debug for SegTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegTable").field("segments", &self.segs.len()).field("limit", &self.limit).finish()
    }
}

/// Iterator of [`SegTable::pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    segs: &'a [Segment],
    skip: u64,
    left: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Segment;

    #[inline]
    fn next(&mut self) -> Option<Segment> {
        while self.left > 0 {
            let (first, rest) = self.segs.split_first()?;
            self.segs = rest;
            let len = u64::from(first.len);
            if self.skip >= len {
                self.skip -= len;
                continue;
            }
            let take = (len - self.skip).min(self.left);
            let piece =
                Segment { offset: first.offset.wrapping_add(self.skip), region: first.region, len: take as u32 };
            self.skip = 0;
            self.left -= take;
            return Some(piece);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(offset: u64, len: u32) -> Segment {
        Segment { offset, region: RegionId(1), len }
    }

    #[test]
    fn pieces_cut_front_and_back() {
        let mut table = SegTable::new(16);
        let row = table.reserve(1, 4).unwrap();
        let span = row.span(0, 3);
        table.get_mut(span).copy_from_slice(&[seg(0, 100), seg(1000, 0), seg(5000, 100)]);
        let got: Vec<_> = table.pieces(span, 90, 20).collect();
        assert_eq!(got, [seg(90, 10), seg(5000, 10)]);
        assert_eq!(table.pieces(span, 150, 1000).map(|s| s.len).sum::<u32>(), 50);
        assert_eq!(table.pieces(span, 0, 0).count(), 0);
    }

    #[test]
    fn released_rows_merge_and_serve_again() {
        let mut table = SegTable::new(12);
        let (a, b, c) = (table.reserve(1, 4).unwrap(), table.reserve(1, 4).unwrap(), table.reserve(1, 4).unwrap());
        assert_eq!(table.reserve(1, 1).unwrap_err().limit, 12);
        table.release(c);
        table.release(a);
        table.release(b);
        assert_eq!(table.reserve(3, 4).unwrap().rows(), 3);
    }

    #[test]
    fn a_span_outside_is_empty() {
        let table = SegTable::new(4);
        assert!(table.get(SegSpan { start: 7, count: 3 }).is_empty());
    }

    #[test]
    fn the_only_segment_is_that_of_a_span_of_one() {
        let mut table = SegTable::new(4);
        let all = table.reserve(1, 4).unwrap().span(0, 4);
        table.get_mut(all)[2] = seg(7, 9);
        for (start, count, only) in [(2, 1, Some(seg(7, 9))), (2, 0, None), (2, 2, None), (40, 1, None)] {
            let span = SegSpan { start, count };
            assert_eq!(table.get_one(span).copied(), only, "{span:?}");
            assert_eq!(table.get_one_mut(span).copied(), only, "{span:?}");
        }
    }
}
