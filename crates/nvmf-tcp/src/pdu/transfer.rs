//! Data in both directions and Ready to Transfer (sections 3.6.2.8 to 3.6.2.10).

use super::{
    CommonHeader, EncodeError, Framing, PduError, PduType, TRANSFER_LEN, encode_head, flags, header_of, le16, le32,
    offset, put,
};

/// Data from the host, in answer to an R2T.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H2cData {
    /// Command identifier.
    pub cccid: u16,
    /// Transfer tag of the R2T.
    pub ttag: u16,
    /// Offset in the command's data.
    pub offset: u32,
    /// Octets, not 0.
    pub length: u32,
    /// Last PDU for this R2T.
    pub last: bool,
}

/// Data from the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct C2hData {
    /// Command identifier.
    pub cccid: u16,
    /// Offset in the command's data.
    pub offset: u32,
    /// Octets, not 0.
    pub length: u32,
    /// Last PDU for this command.
    pub last: bool,
    /// The command succeeded and no response follows.
    pub success: bool,
}

/// The controller is ready for data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct R2t {
    /// Command identifier.
    pub cccid: u16,
    /// Transfer tag, to be repeated in every H2CData.
    pub ttag: u16,
    /// Offset in the command's data.
    pub offset: u32,
    /// Octets, not 0.
    pub length: u32,
}

fn check_length(ch: &CommonHeader, datal: u32) -> Result<(), PduError> {
    let carried = ch.data_len();
    if datal == carried { Ok(()) } else { Err(PduError::DataLength { kind: ch.kind, datal, carried }) }
}

impl H2cData {
    /// Reads the header; `ch` must be of this type.
    ///
    /// # Errors
    /// [`PduError::Short`], or [`PduError::DataLength`] when DATAL is not what the PDU carries.
    #[inline]
    pub fn parse(ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<TRANSFER_LEN>(head)?;
        let length = le32(b, offset::DATAL);
        check_length(ch, length)?;
        Ok(H2cData {
            cccid: le16(b, offset::CCCID),
            ttag: le16(b, offset::TTAG),
            offset: le32(b, offset::DATAO),
            length,
            last: ch.is_last(),
        })
    }

    /// Writes everything before the data; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        let last = if self.last { flags::LAST } else { 0 };
        encode_head(out, PduType::H2cData, last, framing, self.length, |b| {
            put(b, offset::CCCID, self.cccid.to_le_bytes());
            put(b, offset::TTAG, self.ttag.to_le_bytes());
            put(b, offset::DATAO, self.offset.to_le_bytes());
            put(b, offset::DATAL, self.length.to_le_bytes());
        })
    }
}

impl C2hData {
    /// Reads the header; `ch` must be of this type.
    ///
    /// # Errors
    /// [`PduError::Short`], [`PduError::DataLength`] when DATAL is not what the PDU carries, or
    /// [`PduError::Flags`] for SUCCESS without LAST_PDU.
    #[inline]
    pub fn parse(ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<TRANSFER_LEN>(head)?;
        let length = le32(b, offset::DATAL);
        check_length(ch, length)?;
        if ch.is_success() && !ch.is_last() {
            return Err(PduError::Flags { kind: ch.kind, flags: ch.flags });
        }
        Ok(C2hData {
            cccid: le16(b, offset::CCCID),
            offset: le32(b, offset::DATAO),
            length,
            last: ch.is_last(),
            success: ch.is_success(),
        })
    }

    /// Writes everything before the data; returns its length. SUCCESS is sent only together with LAST_PDU.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        let last = if self.last { flags::LAST } else { 0 };
        let success = if self.last && self.success { flags::SUCCESS } else { 0 };
        encode_head(out, PduType::C2hData, last | success, framing, self.length, |b| {
            put(b, offset::CCCID, self.cccid.to_le_bytes());
            put(b, offset::DATAO, self.offset.to_le_bytes());
            put(b, offset::DATAL, self.length.to_le_bytes());
        })
    }
}

impl R2t {
    /// Reads the header; `ch` must be of this type.
    ///
    /// # Errors
    /// [`PduError::Short`], or [`PduError::EmptyR2t`] when it asks for nothing.
    #[inline]
    pub fn parse(_ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<TRANSFER_LEN>(head)?;
        let length = le32(b, offset::R2TL);
        if length == 0 {
            return Err(PduError::EmptyR2t);
        }
        Ok(R2t { cccid: le16(b, offset::CCCID), ttag: le16(b, offset::TTAG), offset: le32(b, offset::R2TO), length })
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, PduType::R2t, 0, framing, 0, |b| {
            put(b, offset::CCCID, self.cccid.to_le_bytes());
            put(b, offset::TTAG, self.ttag.to_le_bytes());
            put(b, offset::R2TO, self.offset.to_le_bytes());
            put(b, offset::R2TL, self.length.to_le_bytes());
        })
    }
}
