//! Terminate requests, both directions (sections 3.6.2.4 and 3.6.2.5).

use super::{
    CommonHeader, Direction, EncodeError, Framing, PduError, PduType, TERM_LEN, TERM_MAX_LEN, encode_head, header_of,
    le16, le32, offset, put,
};

/// Fatal Error Status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fes {
    /// 01h; FEI is the offset of the field.
    InvalidHeaderField,
    /// 02h.
    SequenceError,
    /// 03h; FEI is the digest that was received.
    HeaderDigest,
    /// 04h: data transfer out of range.
    OutOfRange,
    /// 05h: R2T limit exceeded (sent by hosts), data transfer limit exceeded (sent by controllers).
    LimitExceeded,
    /// 06h; FEI is the offset of the field.
    UnsupportedParameter,
    /// Any other.
    Other(u16),
}

impl Fes {
    /// From the wire.
    pub fn from_code(code: u16) -> Self {
        match code {
            1 => Fes::InvalidHeaderField,
            2 => Fes::SequenceError,
            3 => Fes::HeaderDigest,
            4 => Fes::OutOfRange,
            5 => Fes::LimitExceeded,
            6 => Fes::UnsupportedParameter,
            other => Fes::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u16 {
        match self {
            Fes::InvalidHeaderField => 1,
            Fes::SequenceError => 2,
            Fes::HeaderDigest => 3,
            Fes::OutOfRange => 4,
            Fes::LimitExceeded => 5,
            Fes::UnsupportedParameter => 6,
            Fes::Other(other) => other,
        }
    }
}

impl std::fmt::Display for Fes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Fes::InvalidHeaderField => "invalid PDU header field",
            Fes::SequenceError => "PDU sequence error",
            Fes::HeaderDigest => "header digest error",
            Fes::OutOfRange => "data transfer out of range",
            Fes::LimitExceeded => "R2T or data transfer limit exceeded",
            Fes::UnsupportedParameter => "unsupported parameter",
            Fes::Other(code) => return write!(f, "reserved status {code:#06x}"),
        };
        f.write_str(text)
    }
}

const QUOTE_LEN: usize = TERM_MAX_LEN - TERM_LEN;

/// A terminate request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TermReq {
    /// Who sends it.
    pub from: Direction,
    /// Why.
    pub fes: Fes,
    /// What goes with it.
    pub fei: u32,
    quote: [u8; QUOTE_LEN],
    quote_len: u8,
}

impl TermReq {
    /// A request that quotes the header that was being processed, cut to 128 octets.
    pub fn new(from: Direction, fes: Fes, fei: u32, header: &[u8]) -> Self {
        let take = header.len().min(QUOTE_LEN);
        let mut quote = [0; QUOTE_LEN];
        quote[..take].copy_from_slice(&header[..take]);
        TermReq { from, fes, fei, quote, quote_len: take as u8 }
    }

    /// The header it quotes.
    pub fn quoted(&self) -> &[u8] {
        &self.quote[..usize::from(self.quote_len)]
    }

    /// Reads the PDU; `head` must be all of it.
    ///
    /// # Errors
    /// [`PduError::Short`] when it is not.
    pub fn parse(ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<TERM_LEN>(head)?;
        let short = PduError::Short { need: ch.head_len(), have: head.len() };
        let quoted = head.get(TERM_LEN..ch.head_len()).ok_or(short)?;
        let fes = Fes::from_code(le16(b, offset::FES));
        Ok(TermReq::new(ch.kind.direction(), fes, le32(b, offset::FEI), quoted))
    }

    /// Writes the PDU, 24 to 152 octets.
    ///
    /// # Errors
    /// [`EncodeError::NoRoom`].
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let kind = match self.from {
            Direction::HostToController => PduType::H2cTermReq,
            Direction::ControllerToHost => PduType::C2hTermReq,
        };
        let len = TERM_LEN + usize::from(self.quote_len);
        if out.len() < len {
            return Err(EncodeError::NoRoom { need: len, have: out.len() });
        }
        encode_head(out, kind, 0, &Framing::NONE, 0, |b| {
            put(b, offset::PLEN, (len as u32).to_le_bytes());
            put(b, offset::FES, self.fes.code().to_le_bytes());
            put(b, offset::FEI, self.fei.to_le_bytes());
        })?;
        out[TERM_LEN..len].copy_from_slice(self.quoted());
        Ok(len)
    }
}

impl std::fmt::Debug for TermReq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TermReq")
            .field("from", &self.from)
            .field("fes", &self.fes)
            .field("fei", &format_args!("{:#x}", self.fei))
            .field("quoted", &self.quoted())
            .finish()
    }
}

impl std::fmt::Display for TermReq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.fes {
            Fes::InvalidHeaderField | Fes::UnsupportedParameter => {
                write!(f, "{} at offset {} of the header", self.fes, self.fei)
            }
            Fes::HeaderDigest => write!(f, "{}, received {:#010x}", self.fes, self.fei),
            fes => write!(f, "{fes}"),
        }
    }
}
