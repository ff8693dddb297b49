//! What the first 48 octets say about the length of a PDU, and the same on the way out.

use super::digest::{data_digest, header_digest};
use super::error::check_side;
use super::{
    AhsSegments, BHS_LEN, Bhs, DEFAULT_MAX_RECV_DATA_LEN, DIGEST_LEN, EncodeError, Opcode, PduError, Role, flags,
    offset, put,
};

/// What follows data so that they end on a word: the first [`pad_len`] of these.
pub const PAD: [u8; 3] = [0; 3];

/// Octets of padding after `data_len` octets of data, 0 to 3 (section 11.2.4).
#[inline]
pub const fn pad_len(data_len: u32) -> usize {
    (data_len.wrapping_neg() & 3) as usize
}

/// What holds for one direction of a connection. During login it is [`Framing::LOGIN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Header digests in use.
    pub header_digest: bool,
    /// Data digests in use.
    pub data_digest: bool,
    /// Most octets of a data segment: the MaxRecvDataSegmentLength that the receiver declared.
    pub max_data_len: u32,
}

impl Framing {
    /// No digests, and the 8192 octets that hold until something else is declared.
    pub const LOGIN: Framing =
        Framing { header_digest: false, data_digest: false, max_data_len: DEFAULT_MAX_RECV_DATA_LEN };
}

/// The basic header of a PDU, checked for its lengths against its opcode, its sender and what was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind of PDU.
    pub opcode: Opcode,
    /// I: for immediate delivery. False in what targets send.
    pub immediate: bool,
    ahs_words: u8,
    header_digest: bool,
    data_digest: bool,
    data_len: u32,
}

impl Header {
    /// Checks the basic header of a PDU that came from `from` under `framing`.
    ///
    /// # Errors
    /// [`PduError`]: an opcode that is unknown or the other side's, additional headers or data where there are none, or more data
    /// than [`Framing::max_data_len`].
    #[inline]
    pub fn parse(b: &[u8; BHS_LEN], from: Role, framing: &Framing) -> Result<Self, PduError> {
        let code = b[offset::OPCODE] & flags::OPCODE;
        let opcode = Opcode::from_code(code).ok_or(PduError::UnknownOpcode(code))?;
        check_side(opcode, from)?;
        let ahs_words = b[offset::AHS_LEN];
        if ahs_words != 0 && opcode != Opcode::ScsiCommand {
            return Err(PduError::UnexpectedAhs { opcode, words: ahs_words });
        }
        let data_len = u32::from_be_bytes([0, b[offset::DATA_LEN], b[offset::DATA_LEN + 1], b[offset::DATA_LEN + 2]]);
        if data_len > 0 && !opcode.carries_data() {
            return Err(PduError::UnexpectedData { opcode, data_len });
        }
        if data_len > framing.max_data_len {
            return Err(PduError::TooLong { opcode, data_len, max: framing.max_data_len });
        }
        let digests = opcode.takes_digests();
        Ok(Header {
            opcode,
            immediate: from == Role::Initiator && b[offset::OPCODE] & flags::IMMEDIATE != 0,
            ahs_words,
            header_digest: framing.header_digest && digests,
            data_digest: framing.data_digest && digests && data_len > 0,
            data_len,
        })
    }

    /// Octets of all additional headers, 0 to 1020.
    #[inline]
    pub fn ahs_len(&self) -> usize {
        usize::from(self.ahs_words) * 4
    }

    /// Octets before the data: basic header, additional headers, header digest. 48 to 1072; 48 or 52 from a target.
    #[inline]
    pub fn head_len(&self) -> usize {
        BHS_LEN + self.ahs_len() + if self.header_digest { DIGEST_LEN } else { 0 }
    }

    /// Octets of data, without padding.
    #[inline]
    pub fn data_len(&self) -> u32 {
        self.data_len
    }

    /// Octets of padding after the data, 0 to 3.
    #[inline]
    pub fn pad_len(&self) -> usize {
        pad_len(self.data_len)
    }

    /// Whether a header digest ends the head.
    #[inline]
    pub fn has_header_digest(&self) -> bool {
        self.header_digest
    }

    /// Whether four octets of data digest follow data and padding. Where there are no data there is no digest of them.
    #[inline]
    pub fn has_data_digest(&self) -> bool {
        self.data_digest
    }

    /// Octets after the head: data, padding, data digest.
    #[inline]
    pub fn tail_len(&self) -> usize {
        self.data_len as usize + self.pad_len() + if self.data_digest { DIGEST_LEN } else { 0 }
    }

    /// Verifies the header digest, where there is one. `head` is the PDU from its first octet.
    ///
    /// # Errors
    /// [`PduError::HeaderDigest`], or [`PduError::Short`] when `head` is not complete.
    #[inline]
    pub fn verify_header_digest(&self, head: &[u8]) -> Result<(), PduError> {
        if !self.header_digest {
            return Ok(());
        }
        let short = PduError::Short { need: self.head_len(), have: head.len() };
        let (header, rest) = head.split_at_checked(BHS_LEN + self.ahs_len()).ok_or(short)?;
        let received = *rest.first_chunk::<DIGEST_LEN>().ok_or(short)?;
        let computed = header_digest(header);
        if received == computed {
            return Ok(());
        }
        Err(PduError::HeaderDigest { received: u32::from_le_bytes(received), computed: u32::from_le_bytes(computed) })
    }

    /// The data out of `tail`, everything after the head, with the data digest verified where there is one. A receiver that moves
    /// data to where they belong without keeping them together computes the digest on the way and does not need this.
    ///
    /// # Errors
    /// [`PduError::DataDigest`], or [`PduError::Short`] when `tail` is not complete.
    pub fn verified_data<'a>(&self, tail: &'a [u8]) -> Result<&'a [u8], PduError> {
        let tail = tail.get(..self.tail_len()).ok_or(PduError::Short { need: self.tail_len(), have: tail.len() })?;
        let data = &tail[..self.data_len as usize];
        if let (true, Some((padded, &received))) = (self.data_digest, tail.split_last_chunk::<DIGEST_LEN>()) {
            // over what came as padding, whether zeros or not
            let computed = polypath_net::crc32c(padded);
            let received = u32::from_le_bytes(received);
            if received != computed {
                return Err(PduError::DataDigest { received, computed });
            }
        }
        Ok(data)
    }

    /// The additional headers out of `head`, the PDU from its first octet.
    ///
    /// # Errors
    /// [`PduError::Short`] when `head` is not complete. What is in them is checked as they are read.
    pub fn ahs<'a>(&self, head: &'a [u8]) -> Result<AhsSegments<'a>, PduError> {
        let end = BHS_LEN + self.ahs_len();
        let octets = head.get(BHS_LEN..end).ok_or(PduError::Short { need: end, have: head.len() })?;
        Ok(AhsSegments::new(octets))
    }
}

/// Writes a head without additional headers: `fill` gets the basic header, all zero but opcode, F bit and lengths.
#[inline]
pub(super) fn encode_head(
    out: &mut [u8],
    opcode: Opcode,
    immediate: bool,
    framing: &Framing,
    data_len: u32,
    fill: impl FnOnce(&mut Bhs),
) -> Result<usize, EncodeError> {
    EncodeError::check_length(data_len, framing.max_data_len)?;
    let digest = framing.header_digest && opcode.takes_digests();
    let need = BHS_LEN + if digest { DIGEST_LEN } else { 0 };
    let have = out.len();
    let (Some((b, rest)), true) = (out.split_first_chunk_mut::<BHS_LEN>(), have >= need) else {
        return Err(EncodeError::NoRoom { need, have });
    };
    start(b, opcode, immediate, data_len);
    fill(b);
    if let (true, Some(place)) = (digest, rest.first_chunk_mut::<DIGEST_LEN>()) {
        *place = header_digest(b);
    }
    Ok(need)
}

/// The basic header with only opcode, F bit and DataSegmentLength.
#[inline]
pub(super) fn start(b: &mut Bhs, opcode: Opcode, immediate: bool, data_len: u32) {
    *b = [0; BHS_LEN];
    b[offset::OPCODE] = opcode as u8 | if immediate { flags::IMMEDIATE } else { 0 };
    b[offset::FLAGS] = flags::FINAL;
    let [_, high, middle, low] = data_len.to_be_bytes();
    put(b, offset::DATA_LEN, [high, middle, low]);
}

/// Appends what follows the head: data, padding, and a data digest where `framing` has one for this PDU. For PDUs whose data are
/// at hand as one slice; the data path gathers its own.
///
/// # Errors
/// [`EncodeError::TooLong`], before anything is appended.
pub(super) fn append_data(
    out: &mut Vec<u8>,
    opcode: Opcode,
    framing: &Framing,
    data: &[u8],
) -> Result<(), EncodeError> {
    let data_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    EncodeError::check_length(data_len, framing.max_data_len)?;
    out.extend_from_slice(data);
    out.extend_from_slice(&PAD[..pad_len(data_len)]);
    if framing.data_digest && opcode.takes_digests() && !data.is_empty() {
        out.extend_from_slice(&data_digest(data));
    }
    Ok(())
}
