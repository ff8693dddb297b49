//! NOP, both directions: keep-alive, and ExpStatSN or MaxCmdSN without other cause (RFC 7143 sections 11.18 and 11.19).

use super::error::bad_flags;
use super::header::encode_head;
use super::tags::{optional_itt, optional_ttt, put_itt, put_ttt};
use super::{BHS_LEN, EncodeError, Framing, Header, InitiatorSn, Itt, Lun, Opcode, PduError, TargetSn, Ttt};

/// NOP-Out, section 11.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopOut {
    /// For immediate delivery; always where there is no `itt`.
    pub immediate: bool,
    /// Logical unit, as the NOP-In has it that is answered.
    pub lun: Lun,
    /// Tag of a ping that the target is to answer; `None` when it must not.
    pub itt: Option<Itt>,
    /// Tag of the NOP-In that is answered.
    pub ttt: Option<Ttt>,
    /// CmdSN and ExpStatSN.
    pub sn: InitiatorSn,
    /// Octets for the target to send back.
    pub data_len: u32,
}

impl NopOut {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError::Flags`] when it has no initiator task tag and yet a place in the order of commands (section 11.18.1).
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let itt = optional_itt(b);
        if itt.is_none() && !header.immediate {
            return Err(bad_flags(Opcode::NopOut, b, "the reserved initiator task tag needs I"));
        }
        Ok(NopOut {
            immediate: header.immediate,
            lun: Lun::read(b),
            itt,
            ttt: optional_ttt(b),
            sn: InitiatorSn::read(b),
            data_len: header.data_len(),
        })
    }

    /// Writes the head; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        let immediate = self.immediate || self.itt.is_none();
        encode_head(out, Opcode::NopOut, immediate, framing, self.data_len, |b| {
            self.lun.write(b);
            put_itt(b, self.itt);
            put_ttt(b, self.ttt);
            self.sn.write(b);
        })
    }
}

/// NOP-In, section 11.19.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopIn {
    /// Logical unit, for the initiator to repeat where `ttt` is given.
    pub lun: Lun,
    /// Tag of the NOP-Out that is answered; `None` when nobody asked.
    pub itt: Option<Itt>,
    /// Tag for the initiator to answer with; `None` when it must not.
    pub ttt: Option<Ttt>,
    /// Serial numbers; without `itt`, StatSN is that of the next status.
    pub sn: TargetSn,
    /// Octets that the initiator's ping had.
    pub data_len: u32,
}

impl NopIn {
    /// Reads the basic header; `header` must be of this opcode.
    #[inline]
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Self {
        NopIn {
            lun: Lun::read(b),
            itt: optional_itt(b),
            ttt: optional_ttt(b),
            sn: TargetSn::read(b),
            data_len: header.data_len(),
        }
    }

    /// Writes the head; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::NopIn, false, framing, self.data_len, |b| {
            self.lun.write(b);
            put_itt(b, self.itt);
            put_ttt(b, self.ttt);
            self.sn.write(b);
        })
    }
}
