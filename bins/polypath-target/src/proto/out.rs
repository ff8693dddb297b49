//! What is to leave on a connection: headers and data in one ring of pieces, sent in one call.

use crate::media::ZEROES;
use std::collections::VecDeque;
use std::io::IoSlice;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// So many of the next bytes of the buffer.
    Bytes(usize),
    /// So many zeroes.
    Zeroes(usize),
}

/// The queue of bytes to be sent. Its memory is kept from turn to turn; nothing is allocated once it has grown.
#[derive(Debug)]
pub(crate) struct Out {
    buffer: Vec<u8>,
    head: usize,
    tail: usize,
    pieces: VecDeque<Piece>,
    len: usize,
}

const FIRST: usize = 64 << 10;

impl Out {
    pub(crate) fn new() -> Out {
        Out { buffer: vec![0; FIRST], head: 0, tail: 0, pieces: VecDeque::with_capacity(512), len: 0 }
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

    /// Fills `list` with what is next, at most `limit` bytes; returns entries and bytes.
    #[inline]
    pub(crate) fn gather<'a>(&'a self, list: &mut [IoSlice<'a>], limit: usize) -> (usize, usize) {
        let (mut n, mut bytes, mut at) = (0, 0, self.head);
        'pieces: for piece in &self.pieces {
            let (mut left, own) = match *piece {
                Piece::Bytes(len) => (len, true),
                Piece::Zeroes(len) => (len, false),
            };
            while left > 0 {
                let take = left.min(limit - bytes).min(if own { usize::MAX } else { ZEROES.len() });
                if take == 0 || n == list.len() {
                    break 'pieces;
                }
                if own {
                    list[n] = IoSlice::new(&self.buffer[at..at + take]);
                    at += take;
                } else {
                    list[n] = IoSlice::new(&ZEROES[..take]);
                }
                n += 1;
                bytes += take;
                left -= take;
            }
        }
        (n, bytes)
    }

    /// `n` bytes have left.
    #[inline]
    pub(crate) fn advance(&mut self, mut n: usize) {
        self.len -= n;
        if self.len == 0 {
            self.clear();
            return;
        }
        while n > 0 {
            let Some(front) = self.pieces.front_mut() else { return };
            let (left, own) = match front {
                Piece::Bytes(len) => (len, true),
                Piece::Zeroes(len) => (len, false),
            };
            let take = n.min(*left);
            *left -= take;
            n -= take;
            if own {
                self.head += take;
            }
            if *left == 0 {
                self.pieces.pop_front();
            }
        }
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
        let mut list = [IoSlice::new(&[]); 4];
        let (n, bytes) = out.gather(&mut list, usize::MAX);
        list[..n].iter().for_each(|s| all.extend_from_slice(s));
        out.advance(bytes);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_in_order_however_they_are_sent() {
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
                if i % 5 == 0 {
                    out.reserve(9).fill(9);
                    out.take_back(9);
                }
            }
            let mut got = Vec::new();
            while out.len() > 0 {
                let mut list = [IoSlice::new(&[]); 8];
                let (n, bytes) = out.gather(&mut list, step);
                list[..n].iter().for_each(|s| got.extend_from_slice(s));
                out.advance(bytes);
                if got.len() < 300 {
                    out.bytes(b"more");
                    want.extend_from_slice(b"more");
                }
            }
            assert!(got == want, "step {step}");
        }
    }

    #[test]
    fn room_is_made_behind_what_has_left() {
        let mut out = Out::new();
        for round in 0..100u8 {
            out.reserve(FIRST / 2).fill(round);
            out.reserve(FIRST / 2 - 10).fill(round);
            out.advance(FIRST - 20);
            assert_eq!(drain(&mut out), [round; 10]);
        }
        assert_eq!(out.buffer.len(), FIRST);
    }
}
