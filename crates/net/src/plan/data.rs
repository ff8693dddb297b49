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
        let [segment] = segs.get(self.span) else { return None };
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

    /// Copies received data to where they belong. Memory that is gone costs the command, not the connection.
    #[inline]
    pub fn place(&mut self, segs: &SegTable, table: &Table, offset: u32, data: &[u8]) {
        if let Some(piece) = self.only_piece(segs, offset, data.len() as u32)
            && let Ok(view) = table.view(piece)
        {
            view.copy_in(data);
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
    pub fn release<'a>(&mut self, sent: usize, chunks: impl Iterator<Item = Chunk<'a>>) {
        if self.copies.is_empty() {
            return;
        }
        let mut left = sent;
        for chunk in chunks {
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
