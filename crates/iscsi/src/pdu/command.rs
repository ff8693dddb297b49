//! SCSI Command with its additional headers, and SCSI Response (RFC 7143 sections 11.3 and 11.4).

use super::error::bad_flags;
use super::header::{encode_head, start};
use super::tags::{itt, put_itt};
use super::{
    BHS_LEN, Bhs, DIGEST_LEN, EncodeError, Framing, Header, InitiatorSn, Itt, Lun, MAX_AHS_LEN, Opcode, PduError,
    TargetSn, be32, bit, flag, flags, header_digest, offset, put,
};

/// ATTR: how a command is ordered among others (section 11.3.1, SAM-5 section 8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TaskAttribute {
    /// 0.
    Untagged = 0,
    /// 1.
    #[default]
    Simple = 1,
    /// 2.
    Ordered = 2,
    /// 3.
    HeadOfQueue = 3,
    /// 4.
    Aca = 4,
}

impl TaskAttribute {
    fn read(b: &Bhs) -> Result<Self, PduError> {
        Ok(match b[offset::FLAGS] & flags::ATTR {
            0 => TaskAttribute::Untagged,
            1 => TaskAttribute::Simple,
            2 => TaskAttribute::Ordered,
            3 => TaskAttribute::HeadOfQueue,
            4 => TaskAttribute::Aca,
            other => {
                return Err(PduError::Field {
                    opcode: Opcode::ScsiCommand,
                    field: "ATTR",
                    value: other.into(),
                    expected: "0 to 4",
                });
            }
        })
    }
}

/// SCSI Command, section 11.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiCommand {
    /// For immediate delivery.
    pub immediate: bool,
    /// F: no unsolicited Data-Out follows.
    pub is_final: bool,
    /// R: data are expected from the target.
    pub read: bool,
    /// W: data are expected to go to the target.
    pub write: bool,
    /// ATTR.
    pub attribute: TaskAttribute,
    /// Logical unit.
    pub lun: Lun,
    /// Tag of the new task.
    pub itt: Itt,
    /// Octets that are expected to be transferred; with both R and W those to the target.
    pub expected_len: u32,
    /// CmdSN and ExpStatSN.
    pub sn: InitiatorSn,
    /// CDB, filled up with zeros; the first 16 octets of a longer one.
    pub cdb: [u8; 16],
    /// Octets of immediate data.
    pub data_len: u32,
}

impl ScsiCommand {
    /// Reads the basic header; `header` must be of this opcode. Additional headers are read with [`Header::ahs`].
    ///
    /// # Errors
    /// [`PduError`]: the reserved task tag, a reserved ATTR, unsolicited data of a command that does not write, data expected of a
    /// command that neither reads nor writes, more immediate data than expected data.
    #[inline]
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let cmd = ScsiCommand {
            immediate: header.immediate,
            is_final: flag(b, flags::FINAL),
            read: flag(b, flags::READ),
            write: flag(b, flags::WRITE),
            attribute: TaskAttribute::read(b)?,
            lun: Lun::read(b),
            itt: itt(b, Opcode::ScsiCommand)?,
            expected_len: be32(b, offset::EXPECTED_LEN),
            sn: InitiatorSn::read(b),
            cdb: *b.last_chunk().unwrap_or(&[0; 16]),
            data_len: header.data_len(),
        };
        if !cmd.write && !cmd.is_final {
            return Err(bad_flags(Opcode::ScsiCommand, b, "W or F is set"));
        }
        if !cmd.write && !cmd.read && cmd.expected_len != 0 {
            return Err(bad_flags(Opcode::ScsiCommand, b, "R or W is set where data are expected"));
        }
        if cmd.data_len > 0 && !cmd.write {
            return Err(bad_flags(Opcode::ScsiCommand, b, "W is set where there are immediate data"));
        }
        if cmd.data_len > cmd.expected_len {
            return Err(PduError::Field {
                opcode: Opcode::ScsiCommand,
                field: "DataSegmentLength",
                value: cmd.data_len,
                expected: "at most the expected data transfer length",
            });
        }
        Ok(cmd)
    }

    #[inline]
    fn fill(&self, b: &mut Bhs) {
        b[offset::FLAGS] = bit(self.is_final, flags::FINAL)
            | bit(self.read, flags::READ)
            | bit(self.write, flags::WRITE)
            | self.attribute as u8;
        self.lun.write(b);
        put_itt(b, Some(self.itt));
        put(b, offset::EXPECTED_LEN, self.expected_len.to_be_bytes());
        self.sn.write(b);
        put(b, offset::CDB, self.cdb);
    }

    /// Writes the head, 48 or 52 octets; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::ScsiCommand, self.immediate, framing, self.data_len, |b| self.fill(b))
    }

    /// Writes the head with additional headers, which [`Ahs::write`] has made; returns its length, 48 to 1072.
    ///
    /// # Errors
    /// [`EncodeError`]; also when `ahs` is not a list of well-formed segments.
    pub fn encode_with_ahs(&self, ahs: &[u8], framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        EncodeError::check_length(self.data_len, framing.max_data_len)?;
        let well_formed = ahs.len() <= MAX_AHS_LEN && AhsSegments::new(ahs).all(|segment| segment.is_ok());
        if !well_formed || !ahs.len().is_multiple_of(4) {
            return Err(EncodeError::BadAhs(ahs.len()));
        }
        let header_len = BHS_LEN + ahs.len();
        let need = header_len + if framing.header_digest { DIGEST_LEN } else { 0 };
        let no_room = EncodeError::NoRoom { need, have: out.len() };
        let (header, digest) = out.get_mut(..need).ok_or(no_room)?.split_at_mut(header_len);
        let (b, place) = header.split_first_chunk_mut::<BHS_LEN>().ok_or(no_room)?;
        start(b, Opcode::ScsiCommand, self.immediate, self.data_len);
        b[offset::AHS_LEN] = (ahs.len() / 4) as u8;
        self.fill(b);
        place.copy_from_slice(ahs);
        if framing.header_digest {
            digest.copy_from_slice(&header_digest(header));
        }
        Ok(need)
    }
}

/// One additional header segment, section 11.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahs<'a> {
    /// AHSType 1: what a CDB has beyond 16 octets (section 11.2.2.3).
    ExtendedCdb(&'a [u8]),
    /// AHSType 2: octets expected from the target by a command that also sends (section 11.2.2.4).
    BidirectionalReadLength(u32),
    /// Any other, for which an initiator had no reason: AHSType and what follows it.
    Other(u8, &'a [u8]),
}

const AHS_EXTENDED_CDB: u8 = 1;
const AHS_BIDIRECTIONAL: u8 = 2;
/// Octets of AHSLength and AHSType, which AHSLength does not count.
const AHS_HEAD: usize = 3;

impl Ahs<'_> {
    /// Appends this segment, padded to a word.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (kind, reserved, body): (u8, usize, &[u8]) = match self {
            Ahs::ExtendedCdb(cdb) => (AHS_EXTENDED_CDB, 1, cdb),
            Ahs::BidirectionalReadLength(len) => (AHS_BIDIRECTIONAL, 1, &len.to_be_bytes()),
            Ahs::Other(kind, body) => (*kind, 0, body),
        };
        let length = u16::try_from(reserved + body.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.push(kind);
        out.extend(std::iter::repeat_n(0, reserved));
        out.extend_from_slice(body);
        let pad = (AHS_HEAD + usize::from(length)).wrapping_neg() & 3;
        out.extend(std::iter::repeat_n(0, pad));
    }
}

/// The additional headers of a command, one after the other. After an error there is nothing more.
#[derive(Debug, Clone)]
pub struct AhsSegments<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> AhsSegments<'a> {
    pub(super) fn new(octets: &'a [u8]) -> Self {
        AhsSegments { rest: octets, at: 0 }
    }

    fn segment(&mut self) -> Result<Ahs<'a>, PduError> {
        let (at, left) = (self.at as u16, self.rest.len() as u16);
        let octet = |n: usize| self.rest.get(n).copied().unwrap_or(0);
        let (length, kind) = (u16::from_be_bytes([octet(0), octet(1)]), octet(2));
        let bad = PduError::BadAhs { at, left, length, kind };
        let end = AHS_HEAD + usize::from(length);
        let body = self.rest.get(AHS_HEAD..end).ok_or(bad)?;
        let padded = end.next_multiple_of(4);
        self.rest = self.rest.get(padded..).ok_or(bad)?;
        self.at += padded;
        match (kind, body) {
            (AHS_EXTENDED_CDB, [_, cdb @ ..]) if !cdb.is_empty() => Ok(Ahs::ExtendedCdb(cdb)),
            (AHS_BIDIRECTIONAL, &[_, a, b, c, d]) => Ok(Ahs::BidirectionalReadLength(u32::from_be_bytes([a, b, c, d]))),
            (AHS_EXTENDED_CDB | AHS_BIDIRECTIONAL, _) => Err(bad),
            (other, body) => Ok(Ahs::Other(other, body)),
        }
    }
}

impl<'a> Iterator for AhsSegments<'a> {
    type Item = Result<Ahs<'a>, PduError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let segment = self.segment();
        if segment.is_err() {
            self.rest = &[];
        }
        Some(segment)
    }
}

/// How much less or more a command would have transferred than was expected (section 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// Exactly what was expected.
    #[default]
    None,
    /// So many octets of what was expected were not transferred.
    Underflow(u32),
    /// So many octets were not transferred because more was not expected.
    Overflow(u32),
}

impl Residual {
    #[inline]
    pub(super) fn read(b: &Bhs, opcode: Opcode, under: u8, over: u8, count: usize) -> Result<Self, PduError> {
        match (flag(b, under), flag(b, over)) {
            (false, false) => Ok(Residual::None),
            (true, false) => Ok(Residual::Underflow(be32(b, count))),
            (false, true) => Ok(Residual::Overflow(be32(b, count))),
            (true, true) => Err(bad_flags(opcode, b, "overflow and underflow exclude each other")),
        }
    }

    #[inline]
    pub(super) fn write(self, b: &mut Bhs, under: u8, over: u8, count: usize) {
        let (mask, octets) = match self {
            Residual::None => return,
            Residual::Underflow(octets) => (under, octets),
            Residual::Overflow(octets) => (over, octets),
        };
        b[offset::FLAGS] |= mask;
        put(b, count, octets.to_be_bytes());
    }
}

/// Response: whether the target carried the command out (section 11.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandResponse {
    /// 00h: it ended, with this SCSI status (SAM-5 section 5.3.1).
    Completed {
        /// SCSI status, 00h for GOOD.
        status: u8,
    },
    /// 01h: the target failed; there is no status.
    TargetFailure,
    /// Any other, without status.
    Other(u8),
}

/// SCSI Response, section 11.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiResponse {
    /// Tag of the task that ended.
    pub itt: Itt,
    /// Response and status.
    pub response: CommandResponse,
    /// Residual of the command, of the write part where it was bidirectional.
    pub residual: Residual,
    /// Residual of the read part of a bidirectional command.
    pub read_residual: Residual,
    /// SNACK tag, 0 without error recovery.
    pub snack_tag: u32,
    /// How many R2T and Data-In the target sent for the task.
    pub exp_data_sn: u32,
    /// Serial numbers.
    pub sn: TargetSn,
    /// Octets of the data segment, in which [`split_sense`] finds the sense data.
    pub data_len: u32,
}

impl ScsiResponse {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError`]: the reserved task tag, or overflow together with underflow.
    #[inline]
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::ScsiResponse;
        Ok(ScsiResponse {
            itt: itt(b, opcode)?,
            response: match b[offset::RESPONSE] {
                0 => CommandResponse::Completed { status: b[offset::STATUS] },
                1 => CommandResponse::TargetFailure,
                other => CommandResponse::Other(other),
            },
            residual: Residual::read(b, opcode, flags::UNDERFLOW, flags::OVERFLOW, offset::RESIDUAL)?,
            read_residual: Residual::read(
                b,
                opcode,
                flags::READ_UNDERFLOW,
                flags::READ_OVERFLOW,
                offset::READ_RESIDUAL,
            )?,
            snack_tag: be32(b, offset::SNACK_TAG),
            exp_data_sn: be32(b, offset::EXP_DATA_SN),
            sn: TargetSn::read(b),
            data_len: header.data_len(),
        })
    }

    /// Writes the head; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    #[inline]
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::ScsiResponse, false, framing, self.data_len, |b| {
            (b[offset::RESPONSE], b[offset::STATUS]) = match self.response {
                CommandResponse::Completed { status } => (0, status),
                CommandResponse::TargetFailure => (1, 0),
                CommandResponse::Other(code) => (code, 0),
            };
            self.residual.write(b, flags::UNDERFLOW, flags::OVERFLOW, offset::RESIDUAL);
            self.read_residual.write(b, flags::READ_UNDERFLOW, flags::READ_OVERFLOW, offset::READ_RESIDUAL);
            put_itt(b, Some(self.itt));
            put(b, offset::SNACK_TAG, self.snack_tag.to_be_bytes());
            put(b, offset::EXP_DATA_SN, self.exp_data_sn.to_be_bytes());
            self.sn.write(b);
        })
    }
}

/// Splits the data segment of a SCSI Response into sense data and response data (section 11.4.7). Both are empty where the segment is.
///
/// # Errors
/// [`PduError::Sense`] when SenseLength is not there or more than follows it.
pub fn split_sense(data: &[u8]) -> Result<(&[u8], &[u8]), PduError> {
    if data.is_empty() {
        return Ok((&[], &[]));
    }
    let data_len = data.len() as u32;
    let (length, rest) = data.split_first_chunk::<2>().ok_or(PduError::Sense { sense_len: 0, data_len })?;
    let sense_len = u16::from_be_bytes(*length);
    rest.split_at_checked(sense_len.into()).ok_or(PduError::Sense { sense_len, data_len })
}
