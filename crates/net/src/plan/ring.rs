//! The ring of PDUs on their way out.

use super::fifo::Fifo;
use super::heads::Heads;
use std::fmt;

/// PDUs with data that the peer asked for in the ring at a time; more wait with their protocol.
const ASKED_QUOTA: usize = 32;
/// Octets of a data digest.
const DIGEST_LEN: usize = 4;
/// Padding behind data.
const PADDING: [u8; 3] = [0; 3];

/// What a PDU is, as its protocol has it.
pub trait PduKind: Copy + PartialEq + fmt::Debug {
    /// It carries data that the peer asked for: it has places of its own in the ring, so that no number of requests keeps commands out.
    fn is_asked(self) -> bool;
}

/// Octets to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// These: heads that follow each other, or what is behind data. They stay where they are until they were reported sent.
    Bytes(&'a [u8]),
    /// A range of a slot's data.
    Data {
        /// Names the PDU: that of its [`DigestDue`], never given twice.
        token: u64,
        /// Slot.
        slot: u16,
        /// Octets from the start of its data.
        offset: u32,
        /// Octets.
        len: u32,
    },
}

/// Data that wait for their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestDue {
    /// Goes back with the digest.
    pub token: u64,
    /// Slot.
    pub slot: u16,
    /// Octets from the start of its data.
    pub offset: u32,
    /// Octets.
    pub len: u32,
    /// Octets of zeroes behind them that the digest covers as well.
    pub pad: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digest {
    None,
    Due,
    Ready([u8; DIGEST_LEN]),
}

/// A PDU for the ring, without a head.
#[derive(Debug, Clone, Copy)]
pub struct Pdu<K> {
    /// `None`: taken back before any octet of it left.
    kind: Option<K>,
    slot: u16,
    /// Given by [`SendRing::push`]; unlike its place in the ring never given twice.
    token: u64,
    data_offset: u32,
    data_len: u32,
    digest: Digest,
    /// Octets of padding behind the data.
    pad: u8,
    head_len: u8,
    /// Where the head lies in [`Heads`].
    head_at: u32,
}

impl<K: PduKind> Pdu<K> {
    /// Only a head.
    #[inline]
    pub fn new(kind: K, slot: u16) -> Self {
        Pdu {
            kind: Some(kind),
            slot,
            token: 0,
            data_offset: 0,
            data_len: 0,
            digest: Digest::None,
            pad: 0,
            head_len: 0,
            head_at: 0,
        }
    }

    /// The same with `len` octets of the slot's data behind its head, `pad` (0 to 3) zeroes behind them, and a digest of both.
    #[inline]
    #[must_use]
    pub fn with_data(mut self, offset: u32, len: u32, pad: u8, digest: bool) -> Self {
        (self.data_offset, self.data_len) = (offset, len);
        if len > 0 {
            self.digest = if digest { Digest::Due } else { Digest::None };
            self.pad = pad.min(PADDING.len() as u8);
        }
        self
    }

    /// Where the head begins and ends in [`Heads`].
    #[inline]
    fn head(&self) -> (usize, usize) {
        (self.head_at as usize, self.head_at as usize + usize::from(self.head_len))
    }

    /// May it leave now, as soon as those before it have left?
    #[inline]
    fn can_leave(&self) -> bool {
        self.kind.is_some() && self.digest != Digest::Due
    }

    #[inline]
    fn len(&self) -> u64 {
        if self.kind.is_none() {
            return 0;
        }
        let digest = if self.digest == Digest::None { 0 } else { DIGEST_LEN as u64 };
        u64::from(self.head_len) + u64::from(self.data_len) + u64::from(self.pad) + digest
    }
}

/// A ring of PDUs whose heads have up to `HEAD` octets. See the module.
#[derive(Debug)]
pub struct SendRing<K, const HEAD: usize> {
    pdus: Fifo<Pdu<K>>,
    heads: Heads<HEAD>,
    capacity: usize,
    /// Number of the PDU at the front.
    base: u64,
    /// Octets of the front PDU that were sent.
    front_sent: u64,
    /// Number of the first PDU whose data may lack their digest.
    digest_next: u64,
    /// Token of the next PDU.
    next_token: u64,
    /// PDUs with a lesser token have left, or were dropped.
    first_token: u64,
    /// Octets of all PDUs that have not left.
    octets: u64,
    /// Those of their heads.
    head_octets: u64,
    /// Since it was last empty, something else than [`SendRing::push_bare`] has changed what is in it.
    odd: bool,
    /// PDUs with data that were asked for in the ring.
    asked: usize,
}

impl<K: PduKind, const HEAD: usize> SendRing<K, HEAD> {
    /// Room for `commands` PDUs, and some that the peer asked for. `blank` is any kind; it is never seen.
    pub fn new(commands: usize, blank: K) -> Self {
        let capacity = commands + ASKED_QUOTA;
        SendRing {
            pdus: Fifo::new(capacity, Pdu::new(blank, 0)),
            heads: Heads::new(capacity),
            capacity,
            base: 0,
            front_sent: 0,
            digest_next: 0,
            next_token: 0,
            first_token: 0,
            octets: 0,
            head_octets: 0,
            odd: false,
            asked: 0,
        }
    }

    /// Does nothing wait to leave?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.pdus.is_empty()
    }

    /// PDUs that nobody asked for that find room.
    #[inline]
    pub fn room(&self) -> usize {
        (self.capacity - ASKED_QUOTA).saturating_sub(self.pdus.len() - self.asked)
    }

    /// Does a PDU with data that were asked for find room?
    #[inline]
    pub fn has_room_for_asked(&self) -> bool {
        self.asked < ASKED_QUOTA && self.pdus.len() < self.capacity
    }

    /// Appends `pdu`; `encode` writes its head in place and returns its length. Whoever pushes has looked for room.
    #[inline]
    pub fn push(&mut self, pdu: Pdu<K>, encode: impl FnOnce(&mut [u8; HEAD]) -> usize) {
        debug_assert!(self.pdus.len() < self.capacity);
        if pdu.kind.is_some_and(K::is_asked) {
            self.asked += 1;
        }
        self.odd = true;
        let (head_at, head_len) = self.heads.push(encode);
        let pdu = Pdu { token: self.next_token, head_at, head_len, ..pdu };
        let pushed = self.pdus.push(pdu);
        debug_assert!(pushed, "whoever pushes has looked for room");
        self.octets += pdu.len();
        self.head_octets += u64::from(head_len);
        self.next_token += 1;
    }

    /// Appends a PDU that nobody asked for, without digests and without padding, of `head_len` octets of head, which the caller writes, and
    /// `data_len` octets of data. `None` when there is no room.
    #[inline(always)]
    pub fn push_bare(&mut self, kind: K, slot: u16, head_len: u8, data_len: u32) -> Option<&mut [u8; HEAD]> {
        debug_assert!(self.pdus.len() < self.capacity);
        let (head_at, head) = self.heads.room(head_len)?;
        let pdu = Pdu { token: self.next_token, head_len, head_at, data_len, ..Pdu::new(kind, slot) };
        if !self.pdus.push(pdu) {
            return None;
        }
        self.octets += u64::from(head_len) + u64::from(data_len);
        self.head_octets += u64::from(head_len);
        self.next_token += 1;
        Some(head)
    }

    /// Head, slot and octets of data of all PDUs, if they are those of [`SendRing::push_bare`], of which nothing has left and some of
    /// which have data.
    #[inline]
    pub fn bare(&self) -> Option<impl Iterator<Item = (&[u8], u16, u32)>> {
        let common = !self.odd && self.front_sent == 0 && self.octets != self.head_octets;
        common.then(|| self.pdus.iter().map(|pdu| (self.heads.get(pdu.head().0, pdu.head().1), pdu.slot, pdu.data_len)))
    }

    /// The token of the PDU that is pushed next.
    #[inline]
    pub fn next_token(&self) -> u64 {
        self.next_token
    }

    /// Has the PDU with this token left completely? It was not dropped.
    #[inline]
    pub fn has_left(&self, token: u64) -> bool {
        token < self.first_token
    }

    /// Takes `n` more octets as sent if they are all there are, and nobody asked for any of them. `false`, and nothing has changed,
    /// otherwise.
    #[inline]
    pub fn sent_all(&mut self, n: u64) -> bool {
        if n != self.octets || self.asked > 0 {
            return false;
        }
        self.base += self.pdus.len() as u64;
        self.pdus.clear();
        self.heads.clear();
        self.first_token = self.next_token;
        (self.front_sent, self.octets, self.head_octets) = (0, 0, 0);
        self.odd = false;
        true
    }

    /// Takes `n` more octets as sent; `finished` gets every PDU that has left completely.
    #[inline]
    pub fn sent(&mut self, n: u64, mut finished: impl FnMut(K, u16)) {
        self.octets = self.octets.saturating_sub(n);
        let mut n = n;
        while let Some(front) = self.pdus.front() {
            let left = front.len() - self.front_sent;
            if n < left {
                self.front_sent += n;
                n = 0;
                break;
            }
            n -= left;
            let (kind, slot) = (front.kind, front.slot);
            if kind.is_some() {
                self.head_octets -= u64::from(front.head_len);
            }
            self.first_token = front.token + 1;
            self.front_sent = 0;
            self.base += 1;
            self.pdus.pop_front();
            if let Some(kind) = kind {
                if kind.is_asked() {
                    self.asked -= 1;
                }
                finished(kind, slot);
            }
        }
        if self.pdus.is_empty() {
            self.heads.clear();
            self.odd = false;
        }
        debug_assert_eq!(n, 0, "the shell reports more octets sent than there were");
    }

    /// Is the stream between two PDUs, so that another one may be sent out of the ring's order?
    pub fn at_boundary(&self) -> bool {
        self.front_sent == 0
    }

    /// Calls `visit` with every PDU of which no octet has left; a `true` drops it.
    pub fn untouched(&mut self, mut visit: impl FnMut(K, u16) -> bool) {
        let mut start = 0;
        for pdu in self.pdus.iter_mut() {
            let touched = start < self.front_sent;
            start += pdu.len();
            let Some(kind) = pdu.kind.filter(|_| !touched) else { continue };
            if visit(kind, pdu.slot) {
                self.odd = true;
                self.octets -= pdu.len();
                self.head_octets -= u64::from(pdu.head_len);
                pdu.kind = None;
                if kind.is_asked() {
                    self.asked -= 1;
                }
            }
        }
        while self.pdus.back().is_some_and(|pdu| pdu.kind.is_none())
            && let Some(pdu) = self.pdus.pop_back()
        {
            self.heads.take_back(pdu.head_at);
        }
        self.digest_next = self.digest_next.min(self.base + self.pdus.len() as u64);
    }

    /// Is a PDU of this kind and slot in the ring and no octet of it has left?
    pub fn is_untouched(&self, kind: K, slot: u16) -> bool {
        let mut start = 0;
        for pdu in self.pdus.iter() {
            if pdu.kind == Some(kind) && pdu.slot == slot {
                return start >= self.front_sent;
            }
            start += pdu.len();
        }
        false
    }

    /// Data that wait for their digest; the same again until [`SendRing::set_digest`] was called.
    pub fn next_digest(&mut self) -> Option<DigestDue> {
        let mut number = self.digest_next.max(self.base);
        while let Some(pdu) = self.pdus.get((number - self.base) as usize) {
            if pdu.digest == Digest::Due && pdu.kind.is_some() {
                self.digest_next = number;
                let (token, slot, offset, len) = (pdu.token, pdu.slot, pdu.data_offset, pdu.data_len);
                return Some(DigestDue { token, slot, offset, len, pad: pdu.pad });
            }
            number += 1;
        }
        self.digest_next = number;
        None
    }

    /// Tokens of the PDUs whose digest was set, in order.
    pub fn digested(&self) -> impl Iterator<Item = u64> {
        let set = |pdu: &&Pdu<K>| pdu.kind.is_some() && matches!(pdu.digest, Digest::Ready(_));
        self.pdus.iter().filter(set).map(|pdu| pdu.token)
    }

    /// The digest, in the order of its octets on the wire, of the data that [`SendRing::next_digest`] named last.
    pub fn set_digest(&mut self, token: u64, digest: [u8; DIGEST_LEN]) {
        let Some(at) = self.digest_next.checked_sub(self.base) else { return };
        if let Some(pdu) = self.pdus.get_mut(at as usize)
            && pdu.token == token
            && pdu.digest == Digest::Due
        {
            pdu.digest = Digest::Ready(digest);
            self.digest_next += 1;
        }
    }

    /// What has to leave, in order. It ends before the first PDU whose data digest is due.
    #[inline]
    pub fn transmit(&self) -> Transmit<'_, K, HEAD> {
        let skip = self.front_sent;
        if let Some(front) = self.pdus.front()
            && skip == 0
            && self.octets == self.head_octets
            && let heads = self.heads.from(front.head_at)
            && heads.len() as u64 == self.octets
        {
            // Heads and nothing else, and no gap between them.
            return Transmit { ring: None, at: 0, stage: 0, skip, heads };
        }
        Transmit { ring: Some(self), at: 0, stage: 0, skip, heads: &[] }
    }
}

/// Lists what has to leave.
#[derive(Debug)]
pub struct Transmit<'a, K, const HEAD: usize> {
    ring: Option<&'a SendRing<K, HEAD>>,
    at: usize,
    stage: u8,
    /// Octets from the front that are already on their way.
    skip: u64,
    /// These are all, in place of the PDUs of the ring.
    heads: &'a [u8],
}

impl<K, const HEAD: usize> Transmit<'_, K, HEAD> {
    /// Nothing has to leave.
    pub fn nothing() -> Self {
        Transmit { ring: None, at: 0, stage: 0, skip: 0, heads: &[] }
    }

    /// Cuts what was already sent off a part of `len` octets; `None` when nothing is left of it.
    #[inline]
    fn rest(&mut self, len: u64) -> Option<u64> {
        if self.skip >= len {
            self.skip -= len;
            None
        } else {
            Some(std::mem::take(&mut self.skip))
        }
    }
}

impl<'a, K: PduKind, const HEAD: usize> Iterator for Transmit<'a, K, HEAD> {
    type Item = Chunk<'a>;

    #[inline]
    fn next(&mut self) -> Option<Chunk<'a>> {
        if !self.heads.is_empty() {
            return Some(Chunk::Bytes(std::mem::take(&mut self.heads)));
        }
        loop {
            let ring = self.ring?;
            let pdu = ring.pdus.get(self.at)?;
            if pdu.kind.is_none() {
                self.at += 1;
                continue;
            }
            if pdu.digest == Digest::Due {
                return None;
            }
            match self.stage {
                0 => {
                    let from = self.rest(pdu.head_len.into());
                    let (start, mut end) = pdu.head();
                    let mut last = pdu;
                    // Heads without data between them leave as one piece, but for one of which a part has left before.
                    while last.data_len == 0 {
                        self.at += 1;
                        match ring.pdus.get(self.at) {
                            Some(next) if from.is_some() && next.can_leave() && next.head().0 == end => {
                                (last, end) = (next, next.head().1);
                            }
                            _ => break,
                        }
                    }
                    self.stage = u8::from(last.data_len > 0);
                    if let Some(from) = from {
                        return Some(Chunk::Bytes(ring.heads.get(start + from as usize, end)));
                    }
                }
                1 => {
                    if pdu.pad == 0 && pdu.digest == Digest::None {
                        (self.stage, self.at) = (0, self.at + 1);
                    } else {
                        self.stage = 2;
                    }
                    if let Some(from) = self.rest(u64::from(pdu.data_len)) {
                        let from = from as u32;
                        return Some(Chunk::Data {
                            token: pdu.token,
                            slot: pdu.slot,
                            offset: pdu.data_offset + from,
                            len: pdu.data_len - from,
                        });
                    }
                }
                2 => {
                    self.stage = 3;
                    if let Some(from) = self.rest(pdu.pad.into()) {
                        return Some(Chunk::Bytes(&PADDING[from as usize..pdu.pad.into()]));
                    }
                }
                _ => {
                    self.stage = 0;
                    self.at += 1;
                    if let Digest::Ready(digest) = &pdu.digest
                        && let Some(from) = self.rest(DIGEST_LEN as u64)
                    {
                        return Some(Chunk::Bytes(&digest[from as usize..]));
                    }
                }
            }
        }
    }
}
