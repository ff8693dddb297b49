//! Data of commands on their way between a byte stream and the memory of their owners.

use super::ring::{Chunk, DigestDue};
use crate::Crc32c;
use crate::list::{Gather, Scatter};
use polypath_block::{SegSpan, SegTable, Segment};
use polypath_memory::{BadSegment, Table};
use std::collections::VecDeque;

/// Bytes that are copied for their digest before any of them leaves.
const BOUNCE: usize = 1 << 20;

/// Where the data of a command lie, and whose it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holding {
    /// The owner's own number.
    pub user: u64,
    /// Segments.
    pub span: SegSpan,
    /// Octets of them before the data.
    pub skip: u32,
    /// Received data could not be placed: the memory is gone.
    pub bad: bool,
}

impl Holding {
    /// Where `len` octets from `offset` of the data lie, if that is one segment and the only one, as it is of most.
    #[inline(always)]
    fn only_piece(&self, segs: &SegTable, offset: u32, len: u32) -> Option<Segment> {
        let segment = segs.get_one(self.span)?;
        let from = u64::from(self.skip) + u64::from(offset);
        let inside = from + u64::from(len) <= u64::from(segment.len);
        inside.then(|| Segment { offset: segment.offset.wrapping_add(from), len, ..*segment })
    }

    fn pieces<'a>(&self, segs: &'a SegTable, offset: u32, len: u32) -> impl Iterator<Item = Segment> + 'a {
        segs.pieces(self.span, u64::from(self.skip) + u64::from(offset), len.into())
    }

    /// Lists `len` octets from `offset` of the data for sending; `false` when not all of them had room.
    ///
    /// # Errors
    /// [`Unreachable`]: memory that a command in flight names is gone.
    #[inline(always)]
    pub fn list<'a>(
        &self,
        segs: &SegTable,
        table: &'a Table,
        (offset, len): (u32, u32),
        list: &mut Gather<'a>,
    ) -> Result<bool, Unreachable> {
        match self.only_piece(segs, offset, len) {
            Some(piece) => Ok(list.view(table.view(piece)?)),
            None => self.list_pieces(segs, table, (offset, len), list),
        }
    }

    fn list_pieces<'a>(
        &self,
        segs: &SegTable,
        table: &'a Table,
        (offset, len): (u32, u32),
        list: &mut Gather<'a>,
    ) -> Result<bool, Unreachable> {
        let mut left = len;
        for piece in self.pieces(segs, offset, len) {
            if !list.view(table.view(piece)?) {
                return Ok(false);
            }
            left -= piece.len;
        }
        if left > 0 { Err(Unreachable::Short { left }) } else { Ok(true) }
    }

    /// Lists memory for `len` octets from `offset` of the data for receiving; returns for how many there was any. Whatever cannot be
    /// reached comes another way, where it is noticed.
    pub fn scatter<'a>(
        &self,
        segs: &SegTable,
        table: &'a Table,
        (offset, len): (u32, u32),
        into: &mut Scatter<'a>,
    ) -> u32 {
        let mut listed = 0;
        for piece in self.pieces(segs, offset, len) {
            match table.view(piece) {
                Ok(view) if into.view(view) => listed += piece.len,
                _ => break,
            }
        }
        listed
    }

    /// Copies received data to where they belong if that is in one segment and the only one, as it is of most. `false`, and nothing has
    /// changed, otherwise: [`Holding::place`] does it then.
    #[inline(always)]
    pub fn place_in_one(&self, segs: &SegTable, table: &Table, offset: u32, data: &[u8]) -> bool {
        if let Some(piece) = self.only_piece(segs, offset, data.len() as u32)
            && let Ok(view) = table.view(piece)
        {
            view.copy_in(data);
            return true;
        }
        false
    }

    /// Copies received data to where they belong. Memory that is gone costs the command, not the connection.
    pub fn place(&mut self, segs: &SegTable, table: &Table, offset: u32, data: &[u8]) {
        if self.place_in_one(segs, table, offset, data) {
            return;
        }
        let mut rest = data;
        for piece in self.pieces(segs, offset, data.len() as u32) {
            match table.view(piece) {
                Ok(view) => rest = &rest[view.copy_in(rest)..],
                Err(_) => break,
            }
        }
        self.bad |= !rest.is_empty();
    }
}

/// Memory of a command in flight cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// It is gone.
    #[error("memory of a command in flight is gone: {0}")]
    Gone(#[from] BadSegment),
    /// There never was enough.
    #[error("memory of a command in flight is gone: segments are shorter than the data by {left} bytes")]
    Short {
        /// Octets that are missing.
        left: u32,
    },
}

/// A private copy of data whose digest was taken.
struct Copied {
    /// Names the PDU. Slot and offset would not do: a PDU that was taken back leaves its slot to another command.
    token: u64,
    offset: u32,
    bytes: Vec<u8>,
}

/// Private copies of data that leave with a digest: it must be that of the bytes that leave, whatever their owner does to the memory
/// meanwhile.
#[derive(Default)]
pub struct Copies {
    copies: VecDeque<Copied>,
    copied: usize,
    spare: Vec<Vec<u8>>,
}

impl Copies {
    /// Octets that are copied and have not left.
    pub fn octets(&self) -> usize {
        self.copied
    }

    /// Are there as many as may be?
    #[inline]
    pub fn is_full(&self) -> bool {
        self.copied >= BOUNCE
    }

    /// Copies the data that `due` names; returns their digest as it goes onto the wire.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn take(
        &mut self,
        due: &DigestDue,
        held: &Holding,
        segs: &SegTable,
        table: &Table,
    ) -> Result<[u8; 4], Unreachable> {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.resize(due.len as usize, 0);
        let mut at = 0;
        for piece in held.pieces(segs, due.offset, due.len) {
            at += table.view(piece)?.copy_out(&mut bytes[at..]);
        }
        if let left @ 1.. = bytes.len() - at {
            return Err(Unreachable::Short { left: left as u32 });
        }
        let mut crc = Crc32c::new();
        crc.update(&bytes);
        crc.update(&[0; 3][..usize::from(due.pad.min(3))]);
        self.copied += bytes.len();
        self.copies.push_back(Copied { token: due.token, offset: due.offset, bytes });
        Ok(crc.finish().to_le_bytes())
    }

    /// The copies in their order, to be looked up by ascending tokens.
    pub fn lookup(&self) -> Lookup<'_> {
        Lookup(self.copies.iter())
    }

    /// Lets go of copies whose PDUs were taken back: nothing that leaves passes them, and if they were all that may be copied, nothing
    /// would be copied any more. `waiting`: tokens of the PDUs whose digest was set, in order.
    #[cold]
    pub fn keep_only(&mut self, waiting: impl Iterator<Item = u64>) {
        let Copies { copies, copied, spare } = self;
        let mut waiting = waiting.peekable();
        copies.retain_mut(|copy| {
            while waiting.next_if(|&token| token < copy.token).is_some() {}
            let waits = waiting.peek() == Some(&copy.token);
            if !waits {
                *copied -= copy.bytes.len();
                spare.push(std::mem::take(&mut copy.bytes));
            }
            waits
        });
    }

    /// Lets go of copies that the next `sent` bytes of `chunks` pass.
    #[inline]
    pub fn release<'a, I: Iterator<Item = Chunk<'a>>>(&mut self, sent: usize, chunks: impl FnOnce() -> I) {
        if self.copies.is_empty() {
            return;
        }
        let mut left = sent;
        for chunk in chunks() {
            let len = match chunk {
                Chunk::Bytes(bytes) => bytes.len(),
                Chunk::Data { len, .. } => len as usize,
            };
            if left < len {
                break;
            }
            left -= len;
            if let Chunk::Data { token, .. } = chunk {
                // Those before it belong to PDUs that were taken back.
                while self.copies.front().is_some_and(|copy| copy.token <= token)
                    && let Some(copy) = self.copies.pop_front()
                {
                    self.copied -= copy.bytes.len();
                    self.spare.push(copy.bytes);
                }
            }
        }
    }
}

/// See [`Copies::lookup`].
pub struct Lookup<'a>(std::collections::vec_deque::Iter<'a, Copied>);

impl<'a> Lookup<'a> {
    /// The copy of the data of the PDU `token`, from `offset` of its slot's data on.
    pub fn find(&mut self, token: u64, offset: u32) -> Option<&'a [u8]> {
        let copy = self.0.find(|c| c.token == token)?;
        copy.bytes.get(offset.checked_sub(copy.offset)? as usize..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IoList;
    use polypath_memory::Region;

    /// Three segments of 1000 octets each, a hole of 24 between them, and the octets of all of them.
    struct Rig {
        segs: SegTable,
        span: SegSpan,
        region: Region,
    }

    const LEN: usize = 1000;
    const STEP: usize = 1024;

    impl Rig {
        fn new() -> Rig {
            let region = Region::allocate(4096, false).unwrap();
            let mut segs = SegTable::new(8);
            let span = segs.reserve(1, 3).unwrap().span(0, 3);
            for (i, seg) in segs.get_mut(span).iter_mut().enumerate() {
                *seg = Segment { region: region.id(), offset: (i * STEP) as u64, len: LEN as u32 };
            }
            let rig = Rig { segs, span, region };
            rig.window().copy_in(0, &(0..4096u32).map(octet).collect::<Vec<u8>>()).unwrap();
            rig
        }

        fn window(&self) -> polypath_memory::Window {
            self.region.window(0, 4096).unwrap()
        }

        fn held(&self, skip: u32) -> Holding {
            Holding { user: 0, span: self.span, skip, bad: false }
        }

        /// What the segments hold, one after the other.
        fn octets(&self) -> Vec<u8> {
            let mut all = vec![0; 4096];
            self.window().copy_out(0, &mut all).unwrap();
            (0..3).flat_map(|i| all[i * STEP..i * STEP + LEN].to_vec()).collect()
        }
    }

    fn octet(at: u32) -> u8 {
        (at.wrapping_mul(2_654_435_761) >> 13) as u8
    }

    /// Octets before the data, from where on, how many: within one segment, over one boundary, over all.
    const RANGES: [(u32, u32, u32); 6] =
        [(0, 0, 3000), (0, 0, 10), (5, 990, 5), (5, 990, 6), (999, 1, 2000), (1000, 500, 1500)];

    #[test]
    fn data_lie_where_the_segments_say() {
        let rig = Rig::new();
        let before = rig.octets();
        for (skip, offset, len) in RANGES {
            let (from, to) = ((skip + offset) as usize, (skip + offset + len) as usize);
            let mut held = rig.held(skip);
            polypath_memory::with(|table| {
                let (mut room, mut out) = (IoList::new(), Vec::new());
                let mut list = room.gather();
                assert_eq!(held.list(&rig.segs, table, (offset, len), &mut list), Ok(true));
                list.copy_to(&mut out, usize::MAX);
                assert!(out == before[from..to], "listed: {skip}, {offset}, {len}");
                let mut copies = Copies::default();
                let due = DigestDue { token: 7, slot: 0, offset, len, pad: 0 };
                assert!(copies.take(&due, &held, &rig.segs, table).is_ok());
                assert_eq!(copies.lookup().find(7, offset), Some(&before[from..to]));
                let data: Vec<u8> = before[from..to].iter().map(|octet| !octet).collect();
                let mut expected = before.clone();
                expected[from..to].copy_from_slice(&data);
                held.place(&rig.segs, table, offset, &data);
                assert!(!held.bad && rig.octets() == expected, "placed: {skip}, {offset}, {len}");
                let mut room = IoList::new();
                let mut into = room.scatter();
                assert_eq!(held.scatter(&rig.segs, table, (offset, len), &mut into), len);
                assert_eq!(into.place(&before[from..to]), len as usize);
                assert!(rig.octets() == before, "received: {skip}, {offset}, {len}");
            });
        }
    }

    /// One segment, which goes the short way, and more of them.
    #[test]
    fn memory_that_is_not_there_is_noticed_in_every_way() {
        for (pieces, skip) in [(3, 2990), (1, 990)] {
            let rig = Rig::new();
            let span = SegSpan { count: pieces, ..rig.span };
            let mut held = Holding { span, skip, ..Holding::default() };
            let due = DigestDue { token: 1, slot: 0, offset: 0, len: 11, pad: 0 };
            let short = Unreachable::Short { left: 1 };
            let gone = |why: &Unreachable| matches!(why, Unreachable::Gone(_));
            polypath_memory::with(|table| {
                let mut room = IoList::new();
                let mut list = room.gather();
                assert_eq!(held.list(&rig.segs, table, (0, 11), &mut list), Err(short.clone()));
                assert_eq!(Copies::default().take(&due, &held, &rig.segs, table), Err(short));
                held.place(&rig.segs, table, 0, &[0; 11]);
                assert!(std::mem::take(&mut held.bad));
            });
            let Rig { segs, region, .. } = rig;
            drop(region);
            polypath_memory::with(|table| {
                let (mut room, mut more) = (IoList::new(), IoList::new());
                assert!(held.list(&segs, table, (0, 10), &mut room.gather()).is_err_and(|why| gone(&why)));
                assert!(Copies::default().take(&due, &held, &segs, table).is_err_and(|why| gone(&why)));
                assert_eq!(held.scatter(&segs, table, (0, 10), &mut more.scatter()), 0);
                held.place(&segs, table, 0, &[0; 10]);
                assert!(held.bad);
                held.place(&segs, table, 0, &[]);
                assert!(held.bad, "what can be placed does not make up for it");
            });
        }
    }

    #[test]
    fn a_digest_covers_the_padding() {
        let rig = Rig::new();
        for pad in 0..4u8 {
            let due = DigestDue { token: 0, slot: 0, offset: 3, len: 9, pad };
            let digest =
                polypath_memory::with(|table| Copies::default().take(&due, &rig.held(0), &rig.segs, table)).unwrap();
            let mut octets = rig.octets()[3..12].to_vec();
            octets.resize(9 + usize::from(pad), 0);
            assert_eq!(u32::from_le_bytes(digest), crc32c::crc32c(&octets), "{pad}");
        }
    }

    /// Tokens 0 to 3 of 100 octets each.
    fn four(rig: &Rig) -> Copies {
        let mut copies = Copies::default();
        for token in 0..4 {
            let due = DigestDue { token, slot: 0, offset: 100 * token as u32, len: 100, pad: 0 };
            polypath_memory::with(|table| copies.take(&due, &rig.held(0), &rig.segs, table)).unwrap();
        }
        copies
    }

    fn tokens(copies: &Copies) -> Vec<u64> {
        copies.copies.iter().map(|copy| copy.token).collect()
    }

    #[test]
    fn a_copy_is_found_by_its_token_and_from_where_on() {
        let rig = Rig::new();
        let copies = four(&rig);
        let mut lookup = copies.lookup();
        assert_eq!(lookup.find(1, 130), Some(&rig.octets()[130..200]));
        assert_eq!(lookup.find(3, 399), Some(&rig.octets()[399..400]));
        assert_eq!(copies.lookup().find(4, 400), None);
        assert_eq!(copies.lookup().find(1, 99), None, "not of this copy");
    }

    #[test]
    fn copies_stay_until_the_last_octet_of_them_has_left() {
        let rig = Rig::new();
        let data = |token| Chunk::Data { token, slot: 0, offset: 0, len: 100 };
        let chunks = [Chunk::Bytes(&[0; 8]), data(0), Chunk::Bytes(&[0; 8]), data(2), Chunk::Bytes(&[0; 4]), data(3)];
        // The one with token 1 was taken back.
        for (sent, stay) in [
            (0, &[0, 1, 2, 3][..]),
            (107, &[0, 1, 2, 3]),
            (108, &[1, 2, 3]),
            (215, &[1, 2, 3]),
            (216, &[3]),
            (320, &[]),
        ] {
            let mut copies = four(&rig);
            copies.release(sent, || chunks.into_iter());
            assert_eq!((&tokens(&copies)[..], copies.octets()), (stay, 100 * stay.len()), "{sent}");
        }
    }

    #[test]
    fn copies_of_what_was_taken_back_go() {
        let rig = Rig::new();
        for waiting in [&[][..], &[0, 1, 2, 3], &[1], &[0, 3], &[2, 3, 9]] {
            let mut copies = four(&rig);
            copies.keep_only(waiting.iter().copied());
            let stay: Vec<u64> = waiting.iter().copied().filter(|&token| token < 4).collect();
            assert_eq!((tokens(&copies), copies.octets()), (stay.clone(), 100 * stay.len()));
        }
    }

    #[test]
    fn there_is_a_limit_to_copies() {
        let rig = Rig::new();
        let due = DigestDue { token: 0, slot: 0, offset: 0, len: 2048, pad: 0 };
        let mut copies = Copies::default();
        for _ in 0..BOUNCE / 2048 {
            assert!(!copies.is_full());
            polypath_memory::with(|table| copies.take(&due, &rig.held(0), &rig.segs, table)).unwrap();
        }
        assert!(copies.is_full());
    }
}
