//! Command and response capsules (sections 3.6.2.6 and 3.6.2.7).

use super::{
    CAPSULE_CMD_LEN, CAPSULE_RESP_LEN, CommonHeader, EncodeError, Framing, PduError, PduType, encode_head, header_of,
    offset,
};
use polypath_nvme::{Cqe, Sqe};

/// The common header as a little-endian number.
#[inline]
pub(crate) const fn common(kind: PduType, flags: u8, pdo: u8, plen: u32) -> u64 {
    kind as u64 | (flags as u64) << 8 | (kind.header_len() as u64) << 16 | (pdo as u64) << 24 | (plen as u64) << 32
}

/// A command, with or without data behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapsuleCmd {
    /// The submission queue entry.
    pub sqe: Sqe,
    /// Octets of in-capsule data.
    pub data_len: u32,
}

impl CapsuleCmd {
    /// Reads the header; `ch` must be of this type. The target must still hold the length of the SGL against
    /// `data_len`, and `data_len` against what it takes.
    ///
    /// # Errors
    /// [`PduError::Short`].
    pub fn parse(ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<CAPSULE_CMD_LEN>(head)?;
        let mut sqe = [0; 64];
        sqe.copy_from_slice(&b[offset::SQE..]);
        Ok(CapsuleCmd { sqe: Sqe::from_bytes(sqe), data_len: ch.data_len() })
    }

    /// Writes everything before the data; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, PduType::CapsuleCmd, 0, framing, self.data_len, |b| {
            b[offset::SQE..].copy_from_slice(self.sqe.as_bytes());
        })
    }
}

/// A completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapsuleResp {
    /// The completion queue entry.
    pub cqe: Cqe,
}

impl CapsuleResp {
    /// Reads the header; `ch` must be of this type.
    ///
    /// # Errors
    /// [`PduError::Short`].
    #[inline]
    pub fn parse(_ch: &CommonHeader, head: &[u8]) -> Result<Self, PduError> {
        let b = header_of::<CAPSULE_RESP_LEN>(head)?;
        let mut cqe = [0; 16];
        cqe.copy_from_slice(&b[offset::CQE..]);
        Ok(CapsuleResp { cqe: Cqe::from_bytes(&cqe) })
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, PduType::CapsuleResp, 0, framing, 0, |b| {
            b[offset::CQE..].copy_from_slice(&self.cqe.to_bytes());
        })
    }
}
