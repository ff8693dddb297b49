//! Text, both directions (RFC 7143 sections 11.10 and 11.11).

use super::error::bad_flags;
use super::header::encode_head;
use super::tags::{itt, optional_ttt, put_itt, put_ttt};
use super::{
    BHS_LEN, EncodeError, Framing, Header, InitiatorSn, Itt, Lun, Opcode, PduError, RESERVED_TAG, TargetSn, Ttt, bit,
    flag, flags, offset,
};

/// Text Request, section 11.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRequest {
    /// For immediate delivery.
    pub immediate: bool,
    /// F: the initiator has no more to say.
    pub is_final: bool,
    /// C: the text goes on in the next request.
    pub continues: bool,
    /// Logical unit, as the target's last answer has it.
    pub lun: Lun,
    /// Tag of the exchange.
    pub itt: Itt,
    /// As the target's last answer has it; `None` at the beginning.
    pub ttt: Option<Ttt>,
    /// CmdSN and ExpStatSN.
    pub sn: InitiatorSn,
    /// Octets of text.
    pub data_len: u32,
}

/// Text Response, section 11.11.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextResponse {
    /// F: the exchange is over.
    pub is_final: bool,
    /// C: the text goes on in the next response.
    pub continues: bool,
    /// Logical unit, for the initiator to repeat.
    pub lun: Lun,
    /// Tag of the exchange.
    pub itt: Itt,
    /// For the initiator to repeat; `None` exactly when it is final.
    pub ttt: Option<Ttt>,
    /// Serial numbers.
    pub sn: TargetSn,
    /// Octets of text.
    pub data_len: u32,
}

impl TextRequest {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError`]: the reserved tag, or F together with C.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::TextRequest;
        let (is_final, continues) = (flag(b, flags::FINAL), flag(b, flags::CONTINUE));
        if is_final && continues {
            return Err(bad_flags(opcode, b, "F and C exclude each other"));
        }
        Ok(TextRequest {
            immediate: header.immediate,
            is_final,
            continues,
            lun: Lun::read(b),
            itt: itt(b, opcode)?,
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
        encode_head(out, Opcode::TextRequest, self.immediate, framing, self.data_len, |b| {
            b[offset::FLAGS] = bit(self.is_final, flags::FINAL) | bit(self.continues, flags::CONTINUE);
            self.lun.write(b);
            put_itt(b, Some(self.itt));
            put_ttt(b, self.ttt);
            self.sn.write(b);
        })
    }
}

impl TextResponse {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError`]: the reserved task tag, F together with C, or a target transfer tag that does not go with F.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::TextResponse;
        let (is_final, continues) = (flag(b, flags::FINAL), flag(b, flags::CONTINUE));
        if is_final && continues {
            return Err(bad_flags(opcode, b, "F and C exclude each other"));
        }
        let ttt = optional_ttt(b);
        if ttt.is_some() == is_final {
            return Err(PduError::Field {
                opcode,
                field: "target transfer tag",
                value: ttt.map_or(RESERVED_TAG, Ttt::get),
                expected: "the reserved tag with F, any other without",
            });
        }
        Ok(TextResponse {
            is_final,
            continues,
            lun: Lun::read(b),
            itt: itt(b, opcode)?,
            ttt,
            sn: TargetSn::read(b),
            data_len: header.data_len(),
        })
    }

    /// Writes the head; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::TextResponse, false, framing, self.data_len, |b| {
            b[offset::FLAGS] = bit(self.is_final, flags::FINAL) | bit(self.continues, flags::CONTINUE);
            self.lun.write(b);
            put_itt(b, Some(self.itt));
            put_ttt(b, self.ttt);
            self.sn.write(b);
        })
    }
}
