//! What has to leave: an ordered ring of PDUs, each with its head in memory of its own and a reference to
//! data.

use crate::pdu::{DIGEST_LEN, MAX_ENCODED_HEAD};
use std::collections::VecDeque;

/// H2CData PDUs in the ring at a time; more wait as R2T.
const H2C_QUOTA: usize = 32;

/// Octets to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// These: a head or a data digest. They stay where they are until they were reported sent.
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

#[derive(Debug)]
pub(super) struct Pdu {
    pub(super) kind: Kind,
    pub(super) slot: u16,
    /// Given by [`Ring::push`]; unlike its place in the ring never given twice.
    token: u64,
    data_offset: u32,
    data_len: u32,
    digest: DataDigest,
    head_len: u8,
    head: [u8; MAX_ENCODED_HEAD],
}

impl Pdu {
    /// A PDU without a head, which [`Ring::push`] has written where it will lie.
    #[inline]
    pub(super) fn new(kind: Kind, slot: u16) -> Self {
        Pdu {
            kind,
            slot,
            token: 0,
            data_offset: 0,
            data_len: 0,
            digest: DataDigest::None,
            head_len: 0,
            head: [0; MAX_ENCODED_HEAD],
        }
    }

    /// The same with data behind its head.
    #[inline]
    pub(super) fn with_data(mut self, offset: u32, len: u32, digest: bool) -> Self {
        self.data_offset = offset;
        self.data_len = len;
        self.digest = if digest && len > 0 { DataDigest::Due } else { DataDigest::None };
        self
    }

    fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

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
    pdus: VecDeque<Pdu>,
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
    /// H2CData PDUs in the ring.
    data_pdus: usize,
}

impl Ring {
    pub(super) fn new(depth: u16) -> Self {
        // All capsules, all H2CData, ICReq; dropped PDUs take the places of the capsules or data they were.
        let capacity = usize::from(depth) + H2C_QUOTA + 1;
        Ring {
            pdus: VecDeque::with_capacity(capacity),
            capacity,
            base: 0,
            front_sent: 0,
            handed_over: 0,
            digest_next: 0,
            next_token: 0,
            data_pdus: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pdus.is_empty()
    }

    /// Whether a capsule finds room (the places of H2CData are not for it).
    pub(super) fn has_room_for_capsule(&self) -> bool {
        self.pdus.len() - self.data_pdus < self.capacity - H2C_QUOTA
    }

    /// Appends `pdu`; `encode` writes its head in place and returns its length.
    #[inline]
    pub(super) fn push(&mut self, pdu: Pdu, encode: impl FnOnce(&mut [u8; MAX_ENCODED_HEAD]) -> usize) {
        debug_assert!(self.pdus.len() < self.capacity);
        if matches!(pdu.kind, Kind::Data { .. }) {
            self.data_pdus += 1;
        }
        self.pdus.push_back(pdu);
        if let Some(pdu) = self.pdus.back_mut() {
            pdu.token = self.next_token;
            pdu.head_len = encode(&mut pdu.head) as u8;
        }
        self.next_token += 1;
    }

    /// Whether an H2CData PDU finds room.
    pub(super) fn has_room_for_data(&self) -> bool {
        self.data_pdus < H2C_QUOTA && self.pdus.len() < self.capacity
    }

    /// Takes `n` more octets as sent; `finished` gets every PDU that has left completely.
    pub(super) fn sent(&mut self, n: u64, mut finished: impl FnMut(Kind, u16)) {
        self.handed_over = self.handed_over.saturating_sub(n);
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
        for pdu in &mut self.pdus {
            let touched = start < held;
            start += pdu.len();
            if touched || pdu.kind == Kind::Dropped {
                continue;
            }
            let is_data = matches!(pdu.kind, Kind::Data { .. });
            if visit(pdu.kind, pdu.slot) {
                pdu.kind = Kind::Dropped;
                if is_data {
                    self.data_pdus -= 1;
                }
            }
        }
        while self.pdus.back().is_some_and(|pdu| pdu.kind == Kind::Dropped) {
            self.pdus.pop_back();
        }
        self.digest_next = self.digest_next.min(self.base + self.pdus.len() as u64);
    }

    /// Whether the capsule of this slot is in the ring and no octet of it has left.
    pub(super) fn capsule_is_untouched(&self, slot: u16) -> bool {
        let held = self.front_sent + self.handed_over;
        let mut start = 0;
        for pdu in &self.pdus {
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

    pub(super) fn transmit(&self) -> Transmit<'_> {
        Transmit { ring: Some(self), at: 0, stage: 0, skip: self.front_sent + self.handed_over }
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
}

impl Transmit<'_> {
    pub(super) fn nothing() -> Self {
        Transmit { ring: None, at: 0, stage: 0, skip: 0 }
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

    fn next(&mut self) -> Option<Chunk<'a>> {
        loop {
            let pdu = self.ring?.pdus.get(self.at)?;
            if pdu.kind == Kind::Dropped {
                self.at += 1;
                continue;
            }
            if pdu.digest == DataDigest::Due {
                return None;
            }
            match self.stage {
                0 => {
                    if pdu.data_len == 0 {
                        self.at += 1;
                    } else {
                        self.stage = 1;
                    }
                    if let Some(from) = self.rest(u64::from(pdu.head_len)) {
                        return Some(Chunk::Bytes(&pdu.head()[from as usize..]));
                    }
                }
                1 => {
                    self.stage = 2;
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
