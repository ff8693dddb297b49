//! ICReq and ICResp (sections 3.6.2.2 and 3.6.2.3).

use super::{
    CommonHeader, EncodeError, Framing, IC_LEN, PduError, PduType, encode_head, header_of, le16, le32, offset, put,
};

const HDGST_ENABLE: u8 = 1 << 0;
const DDGST_ENABLE: u8 = 1 << 1;

/// HPDA or CPDA: how data is aligned from the start of its PDU, 4 to 128 octets in steps of 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataAlignment(u8);

impl DataAlignment {
    /// The least: four octets.
    pub const DWORD: DataAlignment = DataAlignment(0);

    /// From the zero-based number of dwords on the wire; `None` above 31.
    pub const fn from_wire(pda_z: u8) -> Option<Self> {
        if pda_z <= 31 { Some(DataAlignment(pda_z)) } else { None }
    }

    /// Zero-based number of dwords.
    pub const fn to_wire(self) -> u8 {
        self.0
    }

    /// Octets.
    pub const fn bytes(self) -> usize {
        (self.0 as usize + 1) * 4
    }
}

/// Initialize Connection Request: what the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IcReq {
    /// How the controller shall align data (HPDA).
    pub alignment: DataAlignment,
    /// Header digests wanted.
    pub header_digest: bool,
    /// Data digests wanted.
    pub data_digest: bool,
    /// R2T PDUs that may be outstanding for one command, zero-based.
    pub max_r2t_z: u32,
}

/// Initialize Connection Response: what the controller grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcResp {
    /// How the host shall align data (CPDA).
    pub alignment: DataAlignment,
    /// Header digests are used.
    pub header_digest: bool,
    /// Data digests are used.
    pub data_digest: bool,
    /// Most data octets in one H2CData, a multiple of 4 and at least 4096.
    pub max_h2c_data: u32,
}

fn dgst_octet(header_digest: bool, data_digest: bool) -> u8 {
    let h = if header_digest { HDGST_ENABLE } else { 0 };
    h | if data_digest { DDGST_ENABLE } else { 0 }
}

fn common(b: &[u8; IC_LEN]) -> Result<(DataAlignment, bool, bool), PduError> {
    let pfv = le16(b, offset::PFV);
    if pfv != 0 {
        return Err(PduError::Version(pfv));
    }
    let pda = b[offset::PDA];
    let alignment = DataAlignment::from_wire(pda).ok_or(PduError::Alignment(pda))?;
    let dgst = b[offset::DGST];
    Ok((alignment, dgst & HDGST_ENABLE != 0, dgst & DDGST_ENABLE != 0))
}

impl IcReq {
    /// Reads the PDU; `ch` must be of this type.
    ///
    /// # Errors
    /// [`PduError`] when `head` is short, the version is not 0 or the alignment not 0 to 31.
    pub fn parse(_ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<IC_LEN>(head)?;
        let (alignment, header_digest, data_digest) = common(b)?;
        Ok(IcReq { alignment, header_digest, data_digest, max_r2t_z: le32(b, offset::MAXR2T) })
    }

    /// Writes the PDU, 128 octets.
    ///
    /// # Errors
    /// [`EncodeError::NoRoom`].
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, PduType::IcReq, 0, &Framing::NONE, 0, |b| {
            b[offset::PDA] = self.alignment.to_wire();
            b[offset::DGST] = dgst_octet(self.header_digest, self.data_digest);
            put(b, offset::MAXR2T, self.max_r2t_z.to_le_bytes());
        })
    }
}

impl IcResp {
    /// Reads the PDU; `ch` must be of this type.
    ///
    /// # Errors
    /// [`PduError`] when `head` is short, the version is not 0, the alignment not 0 to 31, or MAXH2CDATA
    /// below 4096 or not a multiple of 4.
    pub fn parse(_ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<IC_LEN>(head)?;
        let (alignment, header_digest, data_digest) = common(b)?;
        let max_h2c_data = le32(b, offset::MAXH2CDATA);
        if max_h2c_data < 4096 || !max_h2c_data.is_multiple_of(4) {
            return Err(PduError::MaxH2cData(max_h2c_data));
        }
        Ok(IcResp { alignment, header_digest, data_digest, max_h2c_data })
    }

    /// Checks that no digest is enabled that `asked` did not want (section 3.3.1.1).
    ///
    /// # Errors
    /// [`PduError::UnwantedDigest`].
    pub fn check_against(&self, asked: &IcReq) -> Result<(), PduError> {
        if self.header_digest && !asked.header_digest || self.data_digest && !asked.data_digest {
            return Err(PduError::UnwantedDigest(dgst_octet(self.header_digest, self.data_digest)));
        }
        Ok(())
    }

    /// Writes the PDU, 128 octets.
    ///
    /// # Errors
    /// [`EncodeError::NoRoom`].
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, PduType::IcResp, 0, &Framing::NONE, 0, |b| {
            b[offset::PDA] = self.alignment.to_wire();
            b[offset::DGST] = dgst_octet(self.header_digest, self.data_digest);
            put(b, offset::MAXH2CDATA, self.max_h2c_data.to_le_bytes());
        })
    }
}
