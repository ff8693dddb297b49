//! The octets of NVMe/TCP PDUs, both directions (TCP Transport Specification 1.0 section 3.6.2).
//!
//! A receiver takes eight octets, hands them to [`CommonHeader::parse`], and knows from then on how many
//! octets precede the data ([`CommonHeader::head_len`]), how many data octets follow and whether a data
//! digest ends the PDU. With the head complete it verifies the header digest
//! ([`CommonHeader::verify_header_digest`]) and reads the PDU's own fields (`C2hData::parse` and its
//! like). Nothing here panics on any input, and nothing here allocates.
//!
//! A sender fills in a value and calls `encode`, which writes the head: header, header digest, padding.
//! Data and data digest are for the caller to append.

mod capsule;
mod digest;
mod initialize;
mod terminate;
mod transfer;

pub(crate) use capsule::common;
pub use capsule::{CapsuleCmd, CapsuleResp};
pub use digest::digest;
pub use initialize::{DataAlignment, IcReq, IcResp};
pub use terminate::{Fes, TermReq};
pub use transfer::{C2hData, H2cData, R2t};

/// Octets of the common header, section 3.6.2.1.
pub const CH_LEN: usize = 8;
/// Octets of a header or data digest, section 3.3.1.1.
pub const DIGEST_LEN: usize = 4;
/// Octets of ICReq and ICResp, sections 3.6.2.2 and 3.6.2.3.
pub const IC_LEN: usize = 128;
/// Octets of a terminate request without the header it quotes, sections 3.6.2.4 and 3.6.2.5.
pub const TERM_LEN: usize = 24;
/// Most octets of a terminate request.
pub const TERM_MAX_LEN: usize = 152;
/// Header octets of CapsuleCmd, section 3.6.2.6.
pub const CAPSULE_CMD_LEN: usize = 72;
/// Header octets of CapsuleResp, section 3.6.2.7.
pub const CAPSULE_RESP_LEN: usize = 24;
/// Header octets of H2CData, C2HData and R2T, sections 3.6.2.8 to 3.6.2.10.
pub const TRANSFER_LEN: usize = 24;
/// Most octets before the data of any PDU that we encode: 72 + 4, padded to the largest alignment of 128.
pub const MAX_ENCODED_HEAD: usize = 128;
/// Most octets before the data of any PDU that we receive: PDO is one octet.
pub const MAX_HEAD: usize = 256;
/// In-capsule data that every controller takes for admin and fabrics commands, section 3.3.1.
pub const ADMIN_IN_CAPSULE: u32 = 8192;

/// Offsets of fields from the start of their PDU.
pub mod offset {
    /// FLAGS, section 3.6.2.1.
    pub const FLAGS: usize = 1;
    /// HLEN.
    pub const HLEN: usize = 2;
    /// PDO.
    pub const PDO: usize = 3;
    /// PLEN, 4 octets.
    pub const PLEN: usize = 4;
    /// PFV of ICReq and ICResp, 2 octets, section 3.6.2.2.
    pub const PFV: usize = 8;
    /// HPDA of ICReq, CPDA of ICResp.
    pub const PDA: usize = 10;
    /// DGST of ICReq and ICResp.
    pub const DGST: usize = 11;
    /// MAXR2T of ICReq, 4 octets.
    pub const MAXR2T: usize = 12;
    /// MAXH2CDATA of ICResp, 4 octets, section 3.6.2.3.
    pub const MAXH2CDATA: usize = 12;
    /// FES of terminate requests, 2 octets, section 3.6.2.4.
    pub const FES: usize = 8;
    /// FEI of terminate requests, 4 octets. (Linux's `struct nvme_tcp_term_pdu` lets the compiler align
    /// this to 12; the specification and SPDK say 10.)
    pub const FEI: usize = 10;
    /// Submission queue entry of CapsuleCmd, 64 octets, section 3.6.2.6.
    pub const SQE: usize = 8;
    /// Completion queue entry of CapsuleResp, 16 octets, section 3.6.2.7.
    pub const CQE: usize = 8;
    /// CCCID of H2CData, C2HData and R2T, 2 octets, section 3.6.2.8.
    pub const CCCID: usize = 8;
    /// TTAG of H2CData and R2T, 2 octets.
    pub const TTAG: usize = 10;
    /// DATAO of H2CData and C2HData, 4 octets.
    pub const DATAO: usize = 12;
    /// DATAL of H2CData and C2HData, 4 octets.
    pub const DATAL: usize = 16;
    /// R2TO of R2T, 4 octets, section 3.6.2.10.
    pub const R2TO: usize = 12;
    /// R2TL of R2T, 4 octets.
    pub const R2TL: usize = 16;
}

/// Bits of FLAGS.
pub mod flags {
    /// HDGSTF: a header digest follows the header.
    pub const HDGST: u8 = 1 << 0;
    /// DDGSTF: a data digest follows the data.
    pub const DDGST: u8 = 1 << 1;
    /// LAST_PDU of H2CData and C2HData.
    pub const LAST: u8 = 1 << 2;
    /// SUCCESS of C2HData.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Which way a PDU goes; bit 0 of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Sent by a host.
    HostToController,
    /// Sent by a controller.
    ControllerToHost,
}

/// Type of a PDU, section 3.3 figure 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request.
    IcReq = 0x00,
    /// Initialize Connection Response.
    IcResp = 0x01,
    /// Host to Controller Terminate Connection Request.
    H2cTermReq = 0x02,
    /// Controller to Host Terminate Connection Request.
    C2hTermReq = 0x03,
    /// Command Capsule.
    CapsuleCmd = 0x04,
    /// Response Capsule.
    CapsuleResp = 0x05,
    /// Host to Controller Data.
    H2cData = 0x06,
    /// Controller to Host Data.
    C2hData = 0x07,
    /// Ready to Transfer.
    R2t = 0x09,
}

impl PduType {
    /// Every type.
    pub const ALL: [PduType; 9] = [
        PduType::IcReq,
        PduType::IcResp,
        PduType::H2cTermReq,
        PduType::C2hTermReq,
        PduType::CapsuleCmd,
        PduType::CapsuleResp,
        PduType::H2cData,
        PduType::C2hData,
        PduType::R2t,
    ];

    /// The type of this code, if there is one.
    #[inline]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => PduType::IcReq,
            0x01 => PduType::IcResp,
            0x02 => PduType::H2cTermReq,
            0x03 => PduType::C2hTermReq,
            0x04 => PduType::CapsuleCmd,
            0x05 => PduType::CapsuleResp,
            0x06 => PduType::H2cData,
            0x07 => PduType::C2hData,
            0x09 => PduType::R2t,
            _ => return None,
        })
    }

    /// Who sends it.
    #[inline]
    pub fn direction(self) -> Direction {
        if self as u8 & 1 == 0 { Direction::HostToController } else { Direction::ControllerToHost }
    }

    /// HLEN: octets of the header without its digest.
    #[inline]
    pub const fn header_len(self) -> usize {
        match self {
            PduType::IcReq | PduType::IcResp => IC_LEN,
            PduType::H2cTermReq | PduType::C2hTermReq => TERM_LEN,
            PduType::CapsuleCmd => CAPSULE_CMD_LEN,
            PduType::CapsuleResp => CAPSULE_RESP_LEN,
            PduType::H2cData | PduType::C2hData | PduType::R2t => TRANSFER_LEN,
        }
    }

    /// Whether a header digest is used once negotiated (initialise and terminate PDUs never have one).
    #[inline]
    pub fn takes_digest(self) -> bool {
        !matches!(self, PduType::IcReq | PduType::IcResp | PduType::H2cTermReq | PduType::C2hTermReq)
    }

    /// Whether the PDU may carry data of a command.
    #[inline]
    pub fn carries_data(self) -> bool {
        matches!(self, PduType::CapsuleCmd | PduType::H2cData | PduType::C2hData)
    }
}

impl std::fmt::Display for PduType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PduType::IcReq => "ICReq",
            PduType::IcResp => "ICResp",
            PduType::H2cTermReq => "H2CTermReq",
            PduType::C2hTermReq => "C2HTermReq",
            PduType::CapsuleCmd => "CapsuleCmd",
            PduType::CapsuleResp => "CapsuleResp",
            PduType::H2cData => "H2CData",
            PduType::C2hData => "C2HData",
            PduType::R2t => "R2T",
        })
    }
}

/// What was negotiated for one direction of a connection. Before ICResp it is [`Framing::NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Framing {
    /// Header digests in use.
    pub header_digest: bool,
    /// Data digests in use.
    pub data_digest: bool,
    /// Alignment of data: HPDA for what the controller sends, CPDA for what the host sends.
    pub alignment: DataAlignment,
}

impl Framing {
    /// No digests, no alignment but the four octets that always hold.
    pub const NONE: Framing = Framing { header_digest: false, data_digest: false, alignment: DataAlignment::DWORD };

    /// PDO of a PDU of this type that carries data.
    #[inline]
    pub fn data_offset(&self, kind: PduType) -> usize {
        let head = kind.header_len() + if self.header_digest { DIGEST_LEN } else { 0 };
        head.next_multiple_of(self.alignment.bytes())
    }
}

/// The first eight octets of a PDU, checked against its type, its direction and what was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommonHeader {
    /// Type.
    pub kind: PduType,
    /// FLAGS as received; reserved bits are not looked at.
    pub flags: u8,
    /// PLEN.
    pub plen: u32,
    head_len: u16,
    header_digest: bool,
    data_digest: bool,
    data_len: u32,
}

impl CommonHeader {
    /// Checks the common header of a PDU that came from `from` under `framing`.
    ///
    /// The data of a PDU are bounded by PLEN alone; the receiver must hold [`CommonHeader::data_len`]
    /// against what it expects before it takes any of them.
    ///
    /// # Errors
    /// [`PduError`], with the FES and FEI to answer with.
    #[inline]
    pub fn parse(b: &[u8; CH_LEN], from: Direction, framing: &Framing) -> Result<Self, PduError> {
        let kind = PduType::from_code(b[0]).ok_or(PduError::UnknownType(b[0]))?;
        if kind.direction() != from {
            return Err(PduError::WrongDirection(kind));
        }
        let (flags, hlen, pdo) = (b[offset::FLAGS], b[offset::HLEN], b[offset::PDO]);
        let plen = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        let header_len = kind.header_len();
        if usize::from(hlen) != header_len {
            return Err(PduError::HeaderLength { kind, hlen });
        }
        let length = PduError::Length { kind, plen };
        let mut ch = CommonHeader {
            kind,
            flags,
            plen,
            head_len: header_len as u16,
            header_digest: false,
            data_digest: false,
            data_len: 0,
        };
        if !kind.takes_digest() {
            let is_term = matches!(kind, PduType::H2cTermReq | PduType::C2hTermReq);
            let most = if is_term { TERM_MAX_LEN } else { IC_LEN };
            if !(header_len..=most).contains(&(plen as usize)) {
                return Err(if is_term { PduError::TermLength(plen) } else { length });
            }
            ch.head_len = plen as u16;
            return Ok(ch);
        }
        ch.header_digest = framing.header_digest;
        if (flags & self::flags::HDGST != 0) != framing.header_digest {
            return Err(PduError::Flags { kind, flags });
        }
        let bare = header_len + if framing.header_digest { DIGEST_LEN } else { 0 };
        ch.head_len = bare as u16;
        if plen as usize == bare && !matches!(kind, PduType::H2cData | PduType::C2hData) {
            return Ok(ch);
        }
        if !kind.carries_data() {
            return Err(length);
        }
        ch.with_data(pdo, framing, bare)
    }

    #[inline]
    fn with_data(mut self, pdo: u8, framing: &Framing, bare: usize) -> Result<Self, PduError> {
        let kind = self.kind;
        if (self.flags & flags::DDGST != 0) != framing.data_digest {
            return Err(PduError::Flags { kind, flags: self.flags });
        }
        let start = usize::from(pdo);
        if start < bare || !start.is_multiple_of(framing.alignment.bytes()) {
            return Err(PduError::DataOffset { kind, pdo });
        }
        let around = start + if framing.data_digest { DIGEST_LEN } else { 0 };
        match self.plen.checked_sub(around as u32) {
            Some(data_len) if data_len > 0 => {
                self.head_len = start as u16;
                self.data_digest = framing.data_digest;
                self.data_len = data_len;
                Ok(self)
            }
            _ => Err(PduError::Length { kind, plen: self.plen }),
        }
    }

    /// Octets before the data: header, header digest, padding. For a terminate request, all of it. 8 to
    /// 255.
    #[inline]
    pub fn head_len(&self) -> usize {
        usize::from(self.head_len)
    }

    /// Data octets that follow the head.
    #[inline]
    pub fn data_len(&self) -> u32 {
        self.data_len
    }

    /// Whether four octets of data digest follow the data.
    #[inline]
    pub fn has_data_digest(&self) -> bool {
        self.data_digest
    }

    /// LAST_PDU.
    #[inline]
    pub fn is_last(&self) -> bool {
        self.flags & flags::LAST != 0
    }

    /// SUCCESS.
    #[inline]
    pub fn is_success(&self) -> bool {
        self.flags & flags::SUCCESS != 0
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
        let len = self.kind.header_len();
        let short = PduError::Short { need: len + DIGEST_LEN, have: head.len() };
        let (header, rest) = head.split_at_checked(len).ok_or(short)?;
        let received = u32::from_le_bytes(*rest.first_chunk::<DIGEST_LEN>().ok_or(short)?);
        let computed = digest(0, header);
        if received == computed { Ok(()) } else { Err(PduError::HeaderDigest { received, computed }) }
    }
}

/// Why a PDU was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// Fewer octets than the header has; a fault of the caller, who must collect them first.
    #[error("{have} bytes of a PDU header that has {need}")]
    Short {
        /// Octets needed.
        need: usize,
        /// Octets there were.
        have: usize,
    },
    /// No PDU has this type.
    #[error("unknown PDU type {0:#04x}")]
    UnknownType(u8),
    /// A PDU that only we may send.
    #[error("{0} came from the wrong side")]
    WrongDirection(PduType),
    /// HLEN is not that of the type.
    #[error("HLEN of {kind} is {hlen}, expected {}", kind.header_len())]
    HeaderLength {
        /// Type.
        kind: PduType,
        /// What was received.
        hlen: u8,
    },
    /// PDO lies in the header or is not aligned as negotiated.
    #[error("PDO of {kind} is {pdo}, which is inside the header or not aligned as negotiated")]
    DataOffset {
        /// Type.
        kind: PduType,
        /// What was received.
        pdo: u8,
    },
    /// PLEN does not fit the type and the digests.
    #[error("PLEN of {kind} is {plen}, which does not fit its header, digests and data")]
    Length {
        /// Type.
        kind: PduType,
        /// What was received.
        plen: u32,
    },
    /// A terminate request that must be ignored, the connection being closed at once (section 3.5.1).
    #[error("PLEN of a terminate request is {0}, expected 24 to 152")]
    TermLength(u32),
    /// Digest flags differ from what was negotiated.
    #[error("FLAGS of {kind} are {flags:#04x}; the digest flags are not those negotiated")]
    Flags {
        /// Type.
        kind: PduType,
        /// What was received.
        flags: u8,
    },
    /// The header digest is wrong.
    #[error("header digest is {received:#010x}, computed {computed:#010x}")]
    HeaderDigest {
        /// What was received.
        received: u32,
        /// What the header gives.
        computed: u32,
    },
    /// DATAL differs from what PLEN leaves for data.
    #[error("DATAL of {kind} is {datal}, but the PDU carries {carried} bytes")]
    DataLength {
        /// Type.
        kind: PduType,
        /// What was received.
        datal: u32,
        /// What the PDU carries.
        carried: u32,
    },
    /// R2TL is zero.
    #[error("R2T asks for no data")]
    EmptyR2t,
    /// PFV is not 0.
    #[error("PDU format version is {0}, expected 0")]
    Version(u16),
    /// HPDA or CPDA above 31.
    #[error("data alignment (HPDA or CPDA) is {0}, expected 0 to 31")]
    Alignment(u8),
    /// MAXH2CDATA below 4096 or not a multiple of 4.
    #[error("MAXH2CDATA is {0}, expected a multiple of 4 of at least 4096")]
    MaxH2cData(u32),
    /// The controller enabled a digest that the host did not ask for.
    #[error("ICResp enables a digest that was not asked for (DGST {0:#04x})")]
    UnwantedDigest(u8),
}

impl PduError {
    /// The Fatal Error Status to answer with; `None` when no answer must be sent.
    pub fn fes(&self) -> Option<Fes> {
        match self {
            PduError::TermLength(_) => None,
            PduError::HeaderDigest { .. } => Some(Fes::HeaderDigest),
            PduError::Version(_) => Some(Fes::UnsupportedParameter),
            _ => Some(Fes::InvalidHeaderField),
        }
    }

    /// The Fatal Error Information to go with it.
    pub fn fei(&self) -> u32 {
        let at = match self {
            PduError::HeaderDigest { received, .. } => return *received,
            PduError::UnknownType(_)
            | PduError::WrongDirection(_)
            | PduError::Short { .. }
            | PduError::TermLength(_) => 0,
            PduError::Flags { .. } => offset::FLAGS,
            PduError::HeaderLength { .. } => offset::HLEN,
            PduError::DataOffset { .. } => offset::PDO,
            PduError::Length { .. } => offset::PLEN,
            PduError::DataLength { .. } => offset::DATAL,
            PduError::EmptyR2t => offset::R2TL,
            PduError::Version(_) => offset::PFV,
            PduError::Alignment(_) => offset::PDA,
            PduError::MaxH2cData(_) => offset::MAXH2CDATA,
            PduError::UnwantedDigest(_) => offset::DGST,
        };
        at as u32
    }
}

/// Why a PDU could not be encoded. Both are faults of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The output is too small; [`MAX_ENCODED_HEAD`] octets always suffice (terminate requests:
    /// [`TERM_MAX_LEN`]).
    #[error("output of {have} bytes, {need} needed")]
    NoRoom {
        /// Octets needed.
        need: usize,
        /// Octets there were.
        have: usize,
    },
    /// More data than PLEN can say.
    #[error("{0} bytes of data do not fit one PDU")]
    TooLong(u32),
}

/// The header octets of a PDU, length-checked.
fn header_of<const N: usize>(head: &[u8]) -> Result<&[u8; N], PduError> {
    head.first_chunk::<N>().ok_or(PduError::Short { need: N, have: head.len() })
}

fn le16(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn le32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn put<const N: usize>(b: &mut [u8], at: usize, value: [u8; N]) {
    b[at..at + N].copy_from_slice(&value);
}

/// Writes the head of a PDU: `fill` gets the header octets, all zero but the common header.
#[inline]
fn encode_head(
    out: &mut [u8],
    kind: PduType,
    extra_flags: u8,
    framing: &Framing,
    data_len: u32,
    fill: impl FnOnce(&mut [u8]),
) -> Result<usize, EncodeError> {
    let header_len = kind.header_len();
    let header_digest = framing.header_digest && kind.takes_digest();
    let data_digest = framing.data_digest && data_len > 0 && kind.takes_digest();
    let head_len =
        if data_len > 0 { framing.data_offset(kind) } else { header_len + if header_digest { DIGEST_LEN } else { 0 } };
    let have = out.len();
    let head = out.get_mut(..head_len).ok_or(EncodeError::NoRoom { need: head_len, have })?;
    let around = head_len + if data_digest { DIGEST_LEN } else { 0 };
    let plen = data_len.checked_add(around as u32).ok_or(EncodeError::TooLong(data_len))?;
    head.fill(0);
    head[0] = kind as u8;
    head[offset::FLAGS] =
        extra_flags | if header_digest { flags::HDGST } else { 0 } | if data_digest { flags::DDGST } else { 0 };
    head[offset::HLEN] = header_len as u8;
    head[offset::PDO] = if data_len > 0 { head_len as u8 } else { 0 };
    put(head, offset::PLEN, plen.to_le_bytes());
    fill(&mut head[..header_len]);
    if header_digest {
        let crc = digest(0, &head[..header_len]);
        put(head, header_len, crc.to_le_bytes());
    }
    Ok(head_len)
}

#[cfg(test)]
mod tests;
