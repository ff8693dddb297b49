//! The 16-byte completion queue entry (Base 2.1 section 4.2).

use crate::wire::Field;
use crate::{ParseError, StatusField};

/// One completion queue entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cqe {
    /// Dwords 0 and 1: what the command returns. Most use the lower dword only.
    pub result: u64,
    /// Submission queue head; fabrics with SQ flow control disabled put FFFFh or nothing here.
    pub sqhd: u16,
    /// Submission queue identifier; reserved on fabrics.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Phase tag; reserved on fabrics.
    pub phase: bool,
    /// What happened.
    pub status: StatusField,
}

impl Cqe {
    /// Octets on the wire.
    pub const LEN: usize = 16;

    /// A completion of `cid` that returns nothing but its status.
    pub fn new(cid: u16, status: StatusField) -> Self {
        Cqe { result: 0, sqhd: 0, sqid: 0, cid, phase: false, status }
    }

    /// The same completion with this submission queue head.
    #[must_use]
    pub fn with_sqhd(mut self, sqhd: u16) -> Self {
        self.sqhd = sqhd;
        self
    }

    /// The same completion with this result.
    #[must_use]
    pub fn with_result(mut self, result: u64) -> Self {
        self.result = result;
        self
    }

    /// Reads an entry; any 16 octets are one.
    #[inline]
    pub fn from_bytes(b: &[u8; 16]) -> Self {
        let status = u16::get(b, 14);
        Cqe {
            result: u64::get(b, 0),
            sqhd: u16::get(b, 8),
            sqid: u16::get(b, 10),
            cid: u16::get(b, 12),
            phase: status & 1 != 0,
            status: StatusField::from_raw(status >> 1),
        }
    }

    /// The entry at the front of `bytes`.
    ///
    /// # Errors
    /// [`ParseError::Short`] when there are fewer than 16.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        crate::wire::fixed::<16>(bytes, "completion queue entry").map(Cqe::from_bytes)
    }

    /// The octets.
    #[inline]
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut b = [0; 16];
        self.result.put(&mut b, 0);
        self.sqhd.put(&mut b, 8);
        self.sqid.put(&mut b, 10);
        self.cid.put(&mut b, 12);
        (self.status.raw() << 1 | u16::from(self.phase)).put(&mut b, 14);
        b
    }

    /// The lower dword of the result.
    #[inline]
    pub fn dw0(&self) -> u32 {
        self.result as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_those_of_struct_nvme_completion() {
        // Linux include/linux/nvme.h: result 0, sq_head 8, sq_id 10, command_id 12, status 14 with
        // the phase in bit 0.
        let cqe = Cqe {
            result: 0x1122_3344_5566_7788,
            sqhd: 0x0102,
            sqid: 3,
            cid: 0xabcd,
            phase: true,
            status: StatusField::INVALID_FIELD.with_dnr(),
        };
        let b = cqe.to_bytes();
        assert_eq!(b, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 2, 1, 3, 0, 0xcd, 0xab, 0x05, 0x80]);
        assert_eq!(Cqe::from_bytes(&b), cqe);
        for n in 0..16 {
            assert!(Cqe::parse(&b[..n]).is_err());
        }
    }
}
