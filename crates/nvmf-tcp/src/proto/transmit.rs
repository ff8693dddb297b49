//! What has to leave: an ordered ring of PDUs, each with its head in memory of its own and a reference to
//! data.

use crate::pdu::{CAPSULE_CMD_LEN, DIGEST_LEN, MAX_ENCODED_HEAD};
use polypath_net::plan::{Fifo, Heads};

/// H2CData PDUs in the ring at a time; more wait as R2T.
const H2C_QUOTA: usize = 32;

/// Octets to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// These: heads that follow each other, or a data digest. They stay where they are until they were reported sent.
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
}

/// What a PDU in the ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// ICReq.
    Initialize,
    /// Command capsule of its slot.
    Capsule,
    /// H2CData of its slot; whether it is the last of its R2T.
    Data { last: bool },
    /// Taken back before any octet of it left.
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataDigest {
    None,
    Due,
    Ready([u8; DIGEST_LEN]),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Pdu {
    pub(super) kind: Kind,
    pub(super) slot: u16,
    /// Given by [`Ring::push`]; unlike its place in the ring never given twice.
    token: u64,
    data_offset: u32,
    data_len: u32,
    digest: DataDigest,
    head_len: u8,
    /// Where the head lies in [`Heads`].
    head_at: u32,
}

impl Pdu {
    /// A PDU without a head, which [`Ring::push`] has written where it will lie.
    #[inline]
    pub(super) fn new(kind: Kind, slot: u16) -> Self {
        Pdu { kind, slot, token: 0, data_offset: 0, data_len: 0, digest: DataDigest::None, head_len: 0, head_at: 0 }
    }

    /// The same with data behind its head.
    #[inline]
    pub(super) fn with_data(mut self, offset: u32, len: u32, digest: bool) -> Self {
        self.data_offset = offset;
        self.data_len = len;
        self.digest = if digest && len > 0 { DataDigest::Due } else { DataDigest::None };
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
        self.kind != Kind::Dropped && self.digest != DataDigest::Due
    }

    #[inline]
    fn len(&self) -> u64 {
        if self.kind == Kind::Dropped {
            return 0;
        }
        let digest = if self.digest == DataDigest::None { 0 } else { DIGEST_LEN as u64 };
        u64::from(self.head_len) + u64::from(self.data_len) + digest
    }
}

#[derive(Debug)]
pub(super) struct Ring {
    pdus: Fifo<Pdu>,
    heads: Heads<MAX_ENCODED_HEAD>,
    capacity: usize,
    /// Number of the PDU at the front.
    base: u64,
    /// Octets of the front PDU that were sent.
    front_sent: u64,
    /// Octets beyond those sent that an asynchronous send holds.
    handed_over: u64,
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
    /// Since it was last empty, something else than [`Ring::push_capsule`] has changed what is in it.
    odd: bool,
    /// H2CData PDUs in the ring.
    data_pdus: usize,
}

impl Ring {
    pub(super) fn new(depth: u16) -> Self {
        // All capsules, all H2CData, ICReq; dropped PDUs take the places of the capsules or data they were.
        let capacity = usize::from(depth) + H2C_QUOTA + 1;
        Ring {
            pdus: Fifo::new(capacity, Pdu::new(Kind::Dropped, 0)),
            heads: Heads::new(capacity),
            capacity,
            base: 0,
            front_sent: 0,
            handed_over: 0,
            digest_next: 0,
            next_token: 0,
            first_token: 0,
            octets: 0,
            head_octets: 0,
            odd: false,
            data_pdus: 0,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.pdus.is_empty()
    }

    /// Whether a capsule finds room (the places of H2CData are not for it).
    #[inline]
    pub(super) fn has_room_for_capsule(&self) -> bool {
        self.room_for_capsules() > 0
    }

    /// How many capsules find room.
    #[inline]
    pub(super) fn room_for_capsules(&self) -> usize {
        (self.capacity - H2C_QUOTA).saturating_sub(self.pdus.len() - self.data_pdus)
    }

    /// Appends `pdu`; `encode` writes its head in place and returns its length.
    #[inline]
    pub(super) fn push(&mut self, pdu: Pdu, encode: impl FnOnce(&mut [u8; MAX_ENCODED_HEAD]) -> usize) {
        debug_assert!(self.pdus.len() < self.capacity);
        if matches!(pdu.kind, Kind::Data { .. }) {
            self.data_pdus += 1;
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

    /// Whether an H2CData PDU finds room.
    #[inline]
    pub(super) fn has_room_for_data(&self) -> bool {
        self.data_pdus < H2C_QUOTA && self.pdus.len() < self.capacity
    }

    /// Appends a capsule without digests, of `head_len` octets of head and `data_len` octets of data; the first 72 octets of the head are
    /// for the caller to write. `None` when there is no room, which [`Ring::has_room_for_capsule`] tells before.
    #[inline(always)]
    pub(super) fn push_capsule(
        &mut self,
        slot: u16,
        head_len: u8,
        data_len: u32,
    ) -> Option<&mut [u8; CAPSULE_CMD_LEN]> {
        debug_assert!(self.pdus.len() < self.capacity);
        let (head_at, head) = self.heads.room(head_len)?;
        let (kind, token, digest) = (Kind::Capsule, self.next_token, DataDigest::None);
        if !self.pdus.push(Pdu { kind, slot, token, data_offset: 0, data_len, digest, head_len, head_at }) {
            return None;
        }
        self.octets += u64::from(head_len) + u64::from(data_len);
        self.head_octets += u64::from(head_len);
        self.next_token += 1;
        if usize::from(head_len) > CAPSULE_CMD_LEN {
            head[CAPSULE_CMD_LEN..head_len.into()].fill(0);
        }
        head.first_chunk_mut()
    }

    /// Head, slot and octets of data of all PDUs, if they are capsules of [`Ring::push_capsule`], of which nothing has left and some of
    /// which have data.
    #[inline]
    pub(super) fn bare_capsules(&self) -> Option<impl Iterator<Item = (&[u8], u16, u32)>> {
        let common = !self.odd && self.front_sent + self.handed_over == 0 && self.octets != self.head_octets;
        common.then(|| self.pdus.iter().map(|pdu| (self.heads.get(pdu.head().0, pdu.head().1), pdu.slot, pdu.data_len)))
    }

    /// The token of the PDU that is pushed next.
    #[inline]
    pub(super) fn next_token(&self) -> u64 {
        self.next_token
    }

    /// Has the PDU with this token left completely? It was not dropped.
    #[inline]
    pub(super) fn has_left(&self, token: u64) -> bool {
        token < self.first_token
    }

    /// Takes `n` more octets as sent if they are all there are, and all of capsules. `false`, and nothing has changed, otherwise.
    #[inline]
    pub(super) fn sent_all_capsules(&mut self, n: u64) -> bool {
        if n != self.octets || self.data_pdus > 0 {
            return false;
        }
        self.base += self.pdus.len() as u64;
        self.pdus.clear();
        self.heads.clear();
        self.first_token = self.next_token;
        (self.front_sent, self.octets, self.head_octets) = (0, 0, 0);
        self.odd = false;
        self.handed_over = self.handed_over.saturating_sub(n);
        true
    }

    /// Takes `n` more octets as sent; `finished` gets every PDU that has left completely.
    #[inline]
    pub(super) fn sent(&mut self, n: u64, mut finished: impl FnMut(Kind, u16)) {
        self.handed_over = self.handed_over.saturating_sub(n);
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
            if kind != Kind::Dropped {
                self.head_octets -= u64::from(front.head_len);
            }
            self.first_token = front.token + 1;
            self.front_sent = 0;
            self.base += 1;
            self.pdus.pop_front();
            if matches!(kind, Kind::Data { .. }) {
                self.data_pdus -= 1;
            }
            if kind != Kind::Dropped {
                finished(kind, slot);
            }
        }
        if self.pdus.is_empty() {
            self.heads.clear();
            self.odd = false;
        }
        debug_assert_eq!(n, 0, "the shell reports more octets sent than there were");
    }

    pub(super) fn hand_over(&mut self, n: u64) {
        self.handed_over += n;
    }

    /// Whether the stream is between two PDUs, so that another one may be sent out of the ring's order.
    pub(super) fn at_boundary(&self) -> bool {
        self.front_sent == 0 && self.handed_over == 0
    }

    /// Calls `visit` with every PDU of which no octet has left; a `true` drops it.
    pub(super) fn untouched(&mut self, mut visit: impl FnMut(Kind, u16) -> bool) {
        let held = self.front_sent + self.handed_over;
        let mut start = 0;
        for pdu in self.pdus.iter_mut() {
            let touched = start < held;
            start += pdu.len();
            if touched || pdu.kind == Kind::Dropped {
                continue;
            }
            let is_data = matches!(pdu.kind, Kind::Data { .. });
            if visit(pdu.kind, pdu.slot) {
                self.odd = true;
                self.octets -= pdu.len();
                self.head_octets -= u64::from(pdu.head_len);
                pdu.kind = Kind::Dropped;
                if is_data {
                    self.data_pdus -= 1;
                }
            }
        }
        while self.pdus.back().is_some_and(|pdu| pdu.kind == Kind::Dropped)
            && let Some(pdu) = self.pdus.pop_back()
        {
            self.heads.take_back(pdu.head_at);
        }
        self.digest_next = self.digest_next.min(self.base + self.pdus.len() as u64);
    }

    /// Whether the capsule of this slot is in the ring and no octet of it has left.
    pub(super) fn capsule_is_untouched(&self, slot: u16) -> bool {
        let held = self.front_sent + self.handed_over;
        let mut start = 0;
        for pdu in self.pdus.iter() {
            if pdu.kind == Kind::Capsule && pdu.slot == slot {
                return start >= held;
            }
            start += pdu.len();
        }
        false
    }

    pub(super) fn next_digest(&mut self) -> Option<DigestDue> {
        let mut number = self.digest_next.max(self.base);
        while let Some(pdu) = self.pdus.get((number - self.base) as usize) {
            if pdu.digest == DataDigest::Due && pdu.kind != Kind::Dropped {
                self.digest_next = number;
                let (token, slot, offset, len) = (pdu.token, pdu.slot, pdu.data_offset, pdu.data_len);
                return Some(DigestDue { token, slot, offset, len });
            }
            number += 1;
        }
        self.digest_next = number;
        None
    }

    /// Tokens of the PDUs whose digest was set, in order.
    pub(super) fn digested(&self) -> impl Iterator<Item = u64> {
        let set = |pdu: &&Pdu| pdu.kind != Kind::Dropped && matches!(pdu.digest, DataDigest::Ready(_));
        self.pdus.iter().filter(set).map(|pdu| pdu.token)
    }

    /// Only for the PDU that [`Ring::next_digest`] named last.
    pub(super) fn set_digest(&mut self, token: u64, crc: u32) {
        let Some(at) = self.digest_next.checked_sub(self.base) else { return };
        if let Some(pdu) = self.pdus.get_mut(at as usize)
            && pdu.token == token
            && pdu.digest == DataDigest::Due
        {
            pdu.digest = DataDigest::Ready(crc.to_le_bytes());
            self.digest_next += 1;
        }
    }

    #[inline]
    pub(super) fn transmit(&self) -> Transmit<'_> {
        let skip = self.front_sent + self.handed_over;
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

/// Lists what has to leave. It ends before the first PDU whose data digest is due.
#[derive(Debug)]
pub struct Transmit<'a> {
    ring: Option<&'a Ring>,
    at: usize,
    stage: u8,
    /// Octets from the front that are already on their way.
    skip: u64,
    /// These are all, in place of the PDUs of the ring.
    heads: &'a [u8],
}

impl Transmit<'_> {
    pub(super) fn nothing() -> Self {
        Transmit { ring: None, at: 0, stage: 0, skip: 0, heads: &[] }
    }
}

impl<'a> Transmit<'a> {
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

impl<'a> Iterator for Transmit<'a> {
    type Item = Chunk<'a>;

    #[inline]
    fn next(&mut self) -> Option<Chunk<'a>> {
        if !self.heads.is_empty() {
            return Some(Chunk::Bytes(std::mem::take(&mut self.heads)));
        }
        loop {
            let ring = self.ring?;
            let pdu = ring.pdus.get(self.at)?;
            if pdu.kind == Kind::Dropped {
                self.at += 1;
                continue;
            }
            if pdu.digest == DataDigest::Due {
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
                    if pdu.digest == DataDigest::None {
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
                _ => {
                    self.stage = 0;
                    self.at += 1;
                    if let DataDigest::Ready(digest) = &pdu.digest
                        && let Some(from) = self.rest(DIGEST_LEN as u64)
                    {
                        return Some(Chunk::Bytes(&digest[from as usize..]));
                    }
                }
            }
        }
    }
}
