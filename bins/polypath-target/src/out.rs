//! What is to leave on a connection: headers and data in one ring of pieces, sent in one call.

use crate::media::ZEROES;
use polypath_block::Segment;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
enum Piece {
    /// So many of the next bytes of the buffer.
    Bytes(usize),
    /// So many zeroes.
    Zeroes(usize),
    /// Bytes of a medium, as they are when they are sent.
    Medium(Segment),
    /// So many of the next bytes that were saved from a medium when it had been sent in part.
    Saved(usize),
}

/// A stretch of what is to be sent next.
pub(crate) enum Chunk<'a> {
    Bytes(&'a [u8]),
    Medium(Segment),
}

/// The queue of bytes to be sent. Its memory is kept from turn to turn; nothing is allocated once it has grown.
#[derive(Debug)]
pub(crate) struct Out {
    buffer: Vec<u8>,
    head: usize,
    tail: usize,
    pieces: VecDeque<Piece>,
    len: usize,
    saved: Vec<u8>,
    saved_at: usize,
}

const FIRST: usize = 64 << 10;

impl Out {
    pub(crate) fn new() -> Out {
        Out {
            buffer: vec![0; FIRST],
            head: 0,
            tail: 0,
            pieces: VecDeque::with_capacity(512),
            len: 0,
            saved: Vec::new(),
            saved_at: 0,
        }
    }

    /// Bytes waiting.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets everything that waits.
    pub(crate) fn clear(&mut self) {
        (self.head, self.tail, self.len) = (0, 0, 0);
        self.pieces.clear();
    }

    /// `n` bytes to be filled in; they are sent as they are when the caller returns.
    #[inline]
    pub(crate) fn reserve(&mut self, n: usize) -> &mut [u8] {
        if self.tail + n > self.buffer.len() {
            self.make_room(n);
        }
        let at = self.tail;
        self.tail += n;
        self.len += n;
        match self.pieces.back_mut() {
            Some(Piece::Bytes(last)) => *last += n,
            _ => self.pieces.push_back(Piece::Bytes(n)),
        }
        &mut self.buffer[at..at + n]
    }

    #[inline]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len()).copy_from_slice(bytes);
    }

    /// `n` zeroes, sent from a static page and never written.
    #[inline]
    pub(crate) fn zeroes(&mut self, n: usize) {
        if n > 0 {
            self.len += n;
            self.pieces.push_back(Piece::Zeroes(n));
        }
    }

    /// Bytes of a medium, sent from where they are. They may change until they have left.
    #[inline]
    pub(crate) fn medium(&mut self, segment: Segment) {
        self.len += segment.len as usize;
        self.pieces.push_back(Piece::Medium(segment));
    }

    /// Takes back the last `n` bytes, which were reserved last and at once.
    pub(crate) fn take_back(&mut self, n: usize) {
        self.tail -= n;
        self.len -= n;
        if let Some(Piece::Bytes(last)) = self.pieces.back_mut() {
            *last -= n;
            if *last == 0 {
                self.pieces.pop_back();
            }
        }
    }

    /// Shows what is next, at most `limit` bytes, until `take` says that it has no room.
    #[inline]
    pub(crate) fn visit<'a>(&'a self, limit: usize, mut take: impl FnMut(Chunk<'a>) -> bool) {
        let (mut bytes, mut at, mut saved_at) = (0, self.head, self.saved_at);
        for piece in &self.pieces {
            let mut left = match *piece {
                Piece::Bytes(len) | Piece::Zeroes(len) | Piece::Saved(len) => len,
                Piece::Medium(segment) => segment.len as usize,
            };
            while left > 0 {
                let n = left.min(limit - bytes);
                if n == 0 {
                    return;
                }
                let (chunk, n) = match *piece {
                    Piece::Bytes(_) => (Chunk::Bytes(&self.buffer[at..at + n]), n),
                    Piece::Saved(_) => (Chunk::Bytes(&self.saved[saved_at..saved_at + n]), n),
                    Piece::Zeroes(_) => (Chunk::Bytes(&ZEROES[..n.min(ZEROES.len())]), n.min(ZEROES.len())),
                    Piece::Medium(segment) => (Chunk::Medium(Segment { len: n as u32, ..segment }), n),
                };
                if !take(chunk) {
                    return;
                }
                match piece {
                    Piece::Bytes(_) => at += n,
                    Piece::Saved(_) => saved_at += n,
                    _ => {}
                }
                bytes += n;
                left -= n;
            }
        }
    }

    /// `n` bytes have left. A medium that was sent in part only is read at once by `save`, so that what a host receives is
    /// not half old and half new.
    ///
    /// # Errors
    /// What `save` returned.
    #[inline]
    pub(crate) fn advance<E>(
        &mut self,
        mut n: usize,
        save: impl FnOnce(Segment, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.len -= n;
        if self.len == 0 {
            self.clear();
            return Ok(());
        }
        while n > 0 {
            let Some(front) = self.pieces.front_mut() else { return Ok(()) };
            let left = match front {
                Piece::Bytes(len) => {
                    let take = n.min(*len);
                    self.head += take;
                    *len -= take;
                    n -= take;
                    *len
                }
                Piece::Zeroes(len) => {
                    let take = n.min(*len);
                    *len -= take;
                    n -= take;
                    *len
                }
                Piece::Saved(len) => {
                    let take = n.min(*len);
                    self.saved_at += take;
                    *len -= take;
                    n -= take;
                    *len
                }
                Piece::Medium(segment) if n >= segment.len as usize => {
                    n -= segment.len as usize;
                    0
                }
                Piece::Medium(segment) => {
                    let rest = Segment { offset: segment.offset + n as u64, len: segment.len - n as u32, ..*segment };
                    self.saved.resize(rest.len as usize, 0);
                    self.saved_at = 0;
                    *front = Piece::Saved(rest.len as usize);
                    return save(rest, &mut self.saved);
                }
            };
            if left == 0 {
                self.pieces.pop_front();
            }
        }
        Ok(())
    }

    #[cold]
    fn make_room(&mut self, n: usize) {
        if self.head > 0 {
            self.buffer.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
        }
        if self.tail + n > self.buffer.len() {
            let len = (self.tail + n).next_power_of_two();
            self.buffer.resize(len, 0);
        }
    }
}

#[cfg(test)]
pub(crate) fn drain(out: &mut Out) -> Vec<u8> {
    let mut all = Vec::new();
    while out.len() > 0 {
        take(out, usize::MAX, &mut all);
    }
    all
}

/// Sends at most `limit` bytes into `all`.
#[cfg(test)]
fn take(out: &mut Out, limit: usize, all: &mut Vec<u8>) {
    let before = all.len();
    let copy = |segment: Segment, to: &mut [u8]| {
        polypath_memory::with(|table| table.view(segment).map(|view| assert_eq!(view.copy_out(to), to.len())))
    };
    out.visit(limit, |chunk| {
        match chunk {
            Chunk::Bytes(bytes) => all.extend_from_slice(bytes),
            Chunk::Medium(segment) => {
                let at = all.len();
                all.resize(at + segment.len as usize, 0);
                copy(segment, &mut all[at..]).unwrap();
            }
        }
        true
    });
    out.advance(all.len() - before, copy).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_in_order_however_they_are_sent() {
        let region = polypath_memory::Region::allocate(4096, false).unwrap();
        region.window(0, 4096).unwrap().copy_in(0, &[0x77; 4096]).unwrap();
        for step in [1, 3, 7, 1000, usize::MAX] {
            let mut out = Out::new();
            let mut want = Vec::new();
            for i in 0..200usize {
                out.bytes(&[i as u8; 24]);
                want.extend_from_slice(&[i as u8; 24]);
                if i % 3 == 0 {
                    out.zeroes(500);
                    want.resize(want.len() + 500, 0);
                }
                if i % 4 == 0 {
                    out.medium(Segment { region: region.id(), offset: 5, len: 300 });
                    want.resize(want.len() + 300, 0x77);
                }
                if i % 5 == 0 {
                    out.reserve(9).fill(9);
                    out.take_back(9);
                }
            }
            let mut got = Vec::new();
            while out.len() > 0 {
                take(&mut out, step, &mut got);
                if got.len() < 300 {
                    out.bytes(b"more");
                    want.extend_from_slice(b"more");
                }
            }
            assert!(got == want, "step {step}");
        }
    }

    #[test]
    fn what_was_sent_in_part_does_not_change_any_more() {
        let region = polypath_memory::Region::allocate(4096, false).unwrap();
        let window = region.window(0, 4096).unwrap();
        window.copy_in(0, &[1; 4096]).unwrap();
        let mut out = Out::new();
        out.medium(Segment { region: region.id(), offset: 0, len: 4096 });
        out.medium(Segment { region: region.id(), offset: 0, len: 10 });
        let mut got = Vec::new();
        take(&mut out, 100, &mut got);
        window.copy_in(0, &[2; 4096]).unwrap();
        take(&mut out, 50, &mut got);
        take(&mut out, usize::MAX, &mut got);
        assert!(got[..4096].iter().all(|&b| b == 1));
        assert_eq!(got[4096..], [2; 10], "not begun, so it may be newer");
        assert_eq!(out.len(), 0);
    }

    #[test]
    fn room_is_made_behind_what_has_left() {
        let mut out = Out::new();
        for round in 0..100u8 {
            out.reserve(FIRST / 2).fill(round);
            out.reserve(FIRST / 2 - 10).fill(round);
            out.advance(FIRST - 20, |_, _| Ok::<(), ()>(())).unwrap();
            assert_eq!(drain(&mut out), [round; 10]);
        }
        assert_eq!(out.buffer.len(), FIRST);
    }
}
