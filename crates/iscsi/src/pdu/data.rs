//! Data in both directions, Ready To Transfer and SNACK (RFC 7143 sections 11.7, 11.8 and 11.16).

use super::error::bad_flags;
use super::header::encode_head;
use super::tags::{itt, optional_itt, optional_ttt, put_itt, put_ttt};
use super::{
    BHS_LEN, EncodeError, Framing, Header, Itt, Lun, Opcode, PduError, RESERVED_TAG, Residual, TargetSn, Ttt, be32,
    bit, flag, flags, offset, put,
};
use crate::serial::StatSn;

/// Where data of one PDU end is at most 2^32-1.
fn check_end(opcode: Opcode, start: u32, length: u32) -> Result<(), PduError> {
    let bad = PduError::Field {
        opcode,
        field: "buffer offset",
        value: start,
        expected: "an offset at which the data end below 2^32",
    };
    start.checked_add(length).map(|_| ()).ok_or(bad)
}

/// SCSI Data-Out, section 11.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOut {
    /// F: the last of the unsolicited data, or of the answer to one R2T.
    pub is_final: bool,
    /// Logical unit, where `ttt` is given.
    pub lun: Lun,
    /// Tag of the task.
    pub itt: Itt,
    /// Tag of the R2T that is answered; `None` for unsolicited data.
    pub ttt: Option<Ttt>,
    /// ExpStatSN.
    pub exp_stat_sn: StatSn,
    /// Number of this PDU in its sequence, from 0.
    pub data_sn: u32,
    /// Offset in the task's data.
    pub buffer_offset: u32,
    /// Octets of data.
    pub data_len: u32,
}

impl DataOut {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError::Field`]: the reserved task tag, or data beyond 2^32.
    #[inline]
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let buffer_offset = be32(b, offset::BUFFER_OFFSET);
        check_end(Opcode::DataOut, buffer_offset, header.data_len())?;
        Ok(DataOut {
            is_final: flag(b, flags::FINAL),
            lun: Lun::read(b),
            itt: itt(b, Opcode::DataOut)?,
            ttt: optional_ttt(b),
            exp_stat_sn: StatSn::new(be32(b, offset::EXP_STAT_SN)),
            data_sn: be32(b, offset::DATA_SN),
            buffer_offset,
            data_len: header.data_len(),
        })
    }

    /// Writes the head; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::DataOut, false, framing, self.data_len, |b| {
            b[offset::FLAGS] = bit(self.is_final, flags::FINAL);
            self.lun.write(b);
            put_itt(b, Some(self.itt));
            put_ttt(b, self.ttt);
            put(b, offset::EXP_STAT_SN, self.exp_stat_sn.get().to_be_bytes());
            put(b, offset::DATA_SN, self.data_sn.to_be_bytes());
            put(b, offset::BUFFER_OFFSET, self.buffer_offset.to_be_bytes());
        })
    }
}

/// What the last Data-In of a task says in place of a SCSI Response (S bit, section 11.7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataInStatus {
    /// SCSI status, one without sense data.
    pub status: u8,
    /// Residual of the command.
    pub residual: Residual,
}

/// SCSI Data-In, section 11.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataIn {
    /// F: the last of its sequence.
    pub is_final: bool,
    /// A: the target wants a SNACK of type DataACK.
    pub acknowledge: bool,
    /// The task ended, and no SCSI Response follows.
    pub status: Option<DataInStatus>,
    /// Logical unit, where `ttt` is given.
    pub lun: Lun,
    /// Tag of the task.
    pub itt: Itt,
    /// Tag for the acknowledgement.
    pub ttt: Option<Ttt>,
    /// Serial numbers; StatSN counts only where there is a status.
    pub sn: TargetSn,
    /// Number of this PDU among all Data-In and R2T of the task, from 0.
    pub data_sn: u32,
    /// Offset in the task's data.
    pub buffer_offset: u32,
    /// Octets of data.
    pub data_len: u32,
}

impl DataIn {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError`]: the reserved task tag, a status in a PDU that is not final, overflow together with underflow, data beyond 2^32.
    #[inline]
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::DataIn;
        let is_final = flag(b, flags::FINAL);
        let status = if flag(b, flags::STATUS) {
            if !is_final {
                return Err(bad_flags(opcode, b, "S needs F"));
            }
            let residual = Residual::read(b, opcode, flags::UNDERFLOW, flags::OVERFLOW, offset::RESIDUAL)?;
            Some(DataInStatus { status: b[offset::STATUS], residual })
        } else {
            None
        };
        let buffer_offset = be32(b, offset::BUFFER_OFFSET);
        check_end(opcode, buffer_offset, header.data_len())?;
        Ok(DataIn {
            is_final,
            acknowledge: flag(b, flags::ACKNOWLEDGE),
            status,
            lun: Lun::read(b),
            itt: itt(b, opcode)?,
            ttt: optional_ttt(b),
            sn: TargetSn::read(b),
            data_sn: be32(b, offset::DATA_SN),
            buffer_offset,
            data_len: header.data_len(),
        })
    }

    /// Writes the head; returns its length. A status is sent only in a final PDU.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::DataIn, false, framing, self.data_len, |b| {
            b[offset::FLAGS] = bit(self.is_final, flags::FINAL) | bit(self.acknowledge, flags::ACKNOWLEDGE);
            if let (Some(end), true) = (self.status, self.is_final) {
                b[offset::FLAGS] |= flags::STATUS;
                b[offset::STATUS] = end.status;
                end.residual.write(b, flags::UNDERFLOW, flags::OVERFLOW, offset::RESIDUAL);
            }
            self.lun.write(b);
            put_itt(b, Some(self.itt));
            put_ttt(b, self.ttt);
            self.sn.write(b);
            put(b, offset::DATA_SN, self.data_sn.to_be_bytes());
            put(b, offset::BUFFER_OFFSET, self.buffer_offset.to_be_bytes());
        })
    }
}

/// Ready To Transfer, section 11.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct R2t {
    /// Logical unit.
    pub lun: Lun,
    /// Tag of the task.
    pub itt: Itt,
    /// Tag that every Data-Out of the answer repeats.
    pub ttt: Ttt,
    /// Serial numbers; StatSN is that of the next status.
    pub sn: TargetSn,
    /// Number of this PDU among all R2T of the task, from 0.
    pub r2t_sn: u32,
    /// Offset in the task's data.
    pub buffer_offset: u32,
    /// Octets that are asked for, not 0.
    pub desired_len: u32,
}

impl R2t {
    /// Reads the PDU; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError::Field`]: a reserved tag, no data or data beyond 2^32 asked for.
    #[inline]
    pub fn parse(_header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::R2t;
        let field = |field, value, expected| PduError::Field { opcode, field, value, expected };
        let (buffer_offset, desired_len) = (be32(b, offset::BUFFER_OFFSET), be32(b, offset::DESIRED_LEN));
        if desired_len == 0 {
            return Err(field("desired data transfer length", 0, "more than nothing"));
        }
        check_end(opcode, buffer_offset, desired_len)?;
        let no_tag = field("target transfer tag", RESERVED_TAG, "a tag that is not the reserved one");
        Ok(R2t {
            lun: Lun::read(b),
            itt: itt(b, opcode)?,
            ttt: optional_ttt(b).ok_or(no_tag)?,
            sn: TargetSn::read(b),
            r2t_sn: be32(b, offset::R2T_SN),
            buffer_offset,
            desired_len,
        })
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::R2t, false, framing, 0, |b| {
            self.lun.write(b);
            put_itt(b, Some(self.itt));
            put_ttt(b, Some(self.ttt));
            self.sn.write(b);
            put(b, offset::R2T_SN, self.r2t_sn.to_be_bytes());
            put(b, offset::BUFFER_OFFSET, self.buffer_offset.to_be_bytes());
            put(b, offset::DESIRED_LEN, self.desired_len.to_be_bytes());
        })
    }
}

/// What a SNACK asks for (section 11.16.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnackKind {
    /// 0: Data-In or R2T again.
    DataOrR2t,
    /// 1: status again.
    Status,
    /// 2: nothing; it acknowledges data.
    DataAck,
    /// 3: Data-In again, in other pieces.
    RData,
    /// Any other.
    Other(u8),
}

/// SNACK Request, section 11.16. Recognised, so that it can be rejected: it belongs to error recovery levels above 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snack {
    /// What it asks for.
    pub kind: SnackKind,
    /// Logical unit.
    pub lun: Lun,
    /// Tag of the task; `None` for status.
    pub itt: Option<Itt>,
    /// Target transfer tag or SNACK tag, section 11.16.5.
    pub tag: u32,
    /// ExpStatSN.
    pub exp_stat_sn: StatSn,
    /// First number that is missing.
    pub beg_run: u32,
    /// How many are missing; 0 for all from there on.
    pub run_length: u32,
}

impl Snack {
    /// Reads the PDU; `header` must be of this opcode.
    #[inline]
    pub fn parse(_header: &Header, b: &[u8; BHS_LEN]) -> Self {
        Snack {
            kind: match b[offset::FLAGS] & 0x0f {
                0 => SnackKind::DataOrR2t,
                1 => SnackKind::Status,
                2 => SnackKind::DataAck,
                3 => SnackKind::RData,
                other => SnackKind::Other(other),
            },
            lun: Lun::read(b),
            itt: optional_itt(b),
            tag: be32(b, offset::SNACK_TAG),
            exp_stat_sn: StatSn::new(be32(b, offset::EXP_STAT_SN)),
            beg_run: be32(b, offset::BEG_RUN),
            run_length: be32(b, offset::RUN_LENGTH),
        }
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::Snack, false, framing, 0, |b| {
            b[offset::FLAGS] |= match self.kind {
                SnackKind::DataOrR2t => 0,
                SnackKind::Status => 1,
                SnackKind::DataAck => 2,
                SnackKind::RData => 3,
                SnackKind::Other(code) => code & 0x0f,
            };
            self.lun.write(b);
            put_itt(b, self.itt);
            put(b, offset::SNACK_TAG, self.tag.to_be_bytes());
            put(b, offset::EXP_STAT_SN, self.exp_stat_sn.get().to_be_bytes());
            put(b, offset::BEG_RUN, self.beg_run.to_be_bytes());
            put(b, offset::RUN_LENGTH, self.run_length.to_be_bytes());
        })
    }
}
