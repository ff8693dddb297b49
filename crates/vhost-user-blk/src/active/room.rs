//! Where the segments of a ring's requests lie: taken for what is in flight.
//!
//! Nearly all requests have one segment, and each head has one of its own for it, in blocks that are taken when a head of theirs comes first.
//! A chain that has more is read into the ring's own row, which is as wide as a chain may be, and moves to a span of its size. When there
//! is none, it stays in the row; the ring takes nothing more until the row is free again, and the guest's next chains wait where they are.
//! So each ring gets on by what it has itself, whatever others take; and none takes more at a time than it leaves.

use polypath_block::{SegRow, SegSpan, SegTable};

/// Heads whose segments are taken together.
const BLOCK: u16 = 64;
/// No block.
const NONE: u32 = u32::MAX;

/// See the module.
pub(super) struct Room {
    own: SegRow,
    /// A request has the row.
    own_taken: bool,
    /// Where the segments of each [`BLOCK`] heads begin.
    blocks: Box<[u32]>,
    /// Heads of a block.
    block: u32,
    /// Segments taken from the table.
    taken: u32,
}

impl Room {
    /// Of a ring of `size` heads whose chains fit into `own`.
    pub(super) fn new(own: SegRow, size: u16) -> Room {
        let blocks = vec![NONE; usize::from(size.div_ceil(BLOCK))].into_boxed_slice();
        Room { own, own_taken: false, blocks, block: size.min(BLOCK).into(), taken: 0 }
    }

    /// The one segment that `head` has for itself, if it has been taken.
    #[inline(always)]
    pub(super) fn single(&self, head: u16) -> Option<SegSpan> {
        match self.blocks[usize::from(head / BLOCK)] {
            NONE => None,
            start => Some(SegSpan { start: start + u32::from(head % BLOCK), count: 1 }),
        }
    }

    /// May chains be taken that have any number of segments?
    #[inline(always)]
    pub(super) fn is_free(&self) -> bool {
        !self.own_taken
    }

    /// The ring's own row, where a chain is read: only while [`Room::is_free`].
    pub(super) fn own(&self) -> SegSpan {
        debug_assert!(!self.own_taken, "a request has the row");
        self.own.span(0, self.own.width())
    }

    /// Moves `from`, which lies in the own row, to where it may stay for as long as the request of `head` is in flight. That may be the row
    /// itself; `true` if so.
    pub(super) fn keep(&mut self, segs: &mut SegTable, head: u16, from: SegSpan) -> (SegSpan, bool) {
        let to = if from.count == 1 { self.single_or_take(segs, head) } else { self.take(segs, from.count) };
        let Some(to) = to else {
            self.own_taken = true;
            return (from, true);
        };
        segs.copy(from, to);
        (to, false)
    }

    fn single_or_take(&mut self, segs: &mut SegTable, head: u16) -> Option<SegSpan> {
        if self.single(head).is_none() {
            self.blocks[usize::from(head / BLOCK)] = self.take(segs, self.block)?.start;
        }
        self.single(head)
    }

    /// No more than is left: a newcomer finds something, however many there are that take all they can.
    fn take(&mut self, segs: &mut SegTable, count: u32) -> Option<SegSpan> {
        let size = count.next_power_of_two();
        if self.taken + size > segs.spans_left() {
            return None;
        }
        let span = segs.take(count)?;
        self.taken += size;
        Some(span)
    }

    /// The request that had `span` is over.
    pub(super) fn give_back(&mut self, segs: &mut SegTable, span: SegSpan) {
        let own = self.own.span(0, 0).start;
        if (own..own + self.own.width()).contains(&span.start) {
            self.own_taken = false;
        } else if span.count > 1 {
            self.taken -= span.count.next_power_of_two();
            segs.give_back(span);
        }
    }

    /// Nothing of the ring is in flight: gives all back.
    pub(super) fn release(self, segs: &mut SegTable) {
        for &start in self.blocks.iter().filter(|&&start| start != NONE) {
            segs.give_back(SegSpan { start, count: self.block });
        }
        segs.release(self.own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_all_he_can_leaves_as_much() {
        let mut segs = SegTable::new(512 << 10);
        segs.allow_spans();
        let all = segs.spans_left();
        let mut rings: Vec<(Room, Vec<SegSpan>)> =
            (0..7).map(|_| (Room::new(segs.reserve(1, 132).unwrap(), 1024), Vec::new())).collect();
        for head in 0..1024 {
            for (room, spans) in rings.iter_mut().filter(|(room, _)| room.is_free()) {
                let from = SegSpan { count: 128, ..room.own() };
                if let (span, false) = room.keep(&mut segs, head, from) {
                    spans.push(span);
                }
            }
        }
        let fair = all / 8;
        assert!(rings.iter().all(|(room, spans)| !room.is_free() && spans.len() as u32 * 128 <= fair + 128));
        assert!(segs.spans_left() >= fair - 1024, "{} of {all}", segs.spans_left());
        for (mut room, spans) in rings {
            spans.into_iter().for_each(|span| room.give_back(&mut segs, span));
            room.release(&mut segs);
        }
        assert_eq!(segs.spans_left(), all);
        assert_eq!(segs.reserve(1, 7 * 132).unwrap().span(0, 1).start, 0, "the rows as well");
    }

    /// What a ring has had is not held against it: however much has gone through it, there is room for as much as at first.
    #[test]
    fn a_ring_counts_what_it_has_and_not_what_it_had() {
        let mut segs = SegTable::new(16 << 10);
        segs.allow_spans();
        let mut room = Room::new(segs.reserve(1, 132).unwrap(), 64);
        for n in 0..10_000 {
            let from = SegSpan { count: 2 + n % 130, ..room.own() };
            let (span, in_row) = room.keep(&mut segs, 0, from);
            assert!(!in_row, "the {n}th");
            room.give_back(&mut segs, span);
        }
        room.release(&mut segs);
    }

    /// The first span of all begins where the ring's own row ends.
    #[test]
    fn a_span_beside_the_row_is_given_back_as_a_span() {
        let mut segs = SegTable::new(16 << 10);
        segs.allow_spans();
        let all = segs.spans_left();
        let mut room = Room::new(segs.reserve(1, 256).unwrap(), 64);
        let from = SegSpan { count: 4, ..room.own() };
        let (span, in_row) = room.keep(&mut segs, 0, from);
        assert_eq!((span.start, in_row), (256, false));
        room.give_back(&mut segs, span);
        assert_eq!(segs.spans_left(), all);
        room.release(&mut segs);
    }

    #[test]
    fn heads_have_one_segment_each_as_they_come() {
        let mut segs = SegTable::new(512 << 10);
        segs.allow_spans();
        let mut room = Room::new(segs.reserve(1, 4).unwrap(), 256);
        let all = segs.spans_left();
        assert_eq!(room.single(70), None);
        let from = SegSpan { count: 1, ..room.own() };
        let (kept, in_row) = room.keep(&mut segs, 70, from);
        assert_eq!((room.single(70), in_row, room.single(63), all - segs.spans_left()), (Some(kept), false, None, 64));
        assert!((64..128).all(|head| room.single(head).is_some_and(|s| s.start + 70 == kept.start + u32::from(head))));
        room.give_back(&mut segs, kept);
        assert_eq!(room.single(70), Some(kept), "for life");
        room.release(&mut segs);
        assert_eq!(segs.spans_left(), all);
    }
}
