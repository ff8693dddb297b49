//! A PDU of any kind.

use super::header::append_data;
use super::*;

/// Any PDU, without its data. The data path knows what it waits for and reads that; this is for everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pdu {
    /// NOP-Out.
    NopOut(NopOut),
    /// SCSI Command; its additional headers are read with [`Header::ahs`].
    ScsiCommand(ScsiCommand),
    /// Task Management Function Request.
    TaskRequest(TaskRequest),
    /// Login Request.
    LoginRequest(LoginRequest),
    /// Text Request.
    TextRequest(TextRequest),
    /// SCSI Data-Out.
    DataOut(DataOut),
    /// Logout Request.
    LogoutRequest(LogoutRequest),
    /// SNACK Request.
    Snack(Snack),
    /// NOP-In.
    NopIn(NopIn),
    /// SCSI Response.
    ScsiResponse(ScsiResponse),
    /// Task Management Function Response.
    TaskResponse(TaskResponse),
    /// Login Response.
    LoginResponse(LoginResponse),
    /// Text Response.
    TextResponse(TextResponse),
    /// SCSI Data-In.
    DataIn(DataIn),
    /// Logout Response.
    LogoutResponse(LogoutResponse),
    /// Ready To Transfer.
    R2t(R2t),
    /// Asynchronous Message.
    AsyncMessage(AsyncMessage),
    /// Reject.
    Reject(Reject),
}

impl Pdu {
    /// Reads the basic header that `header` was made of.
    ///
    /// # Errors
    /// [`PduError`], as the PDU's own `parse` says.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        Ok(match header.opcode {
            Opcode::NopOut => Pdu::NopOut(NopOut::parse(header, b)?),
            Opcode::ScsiCommand => Pdu::ScsiCommand(ScsiCommand::parse(header, b)?),
            Opcode::TaskRequest => Pdu::TaskRequest(TaskRequest::parse(header, b)?),
            Opcode::LoginRequest => Pdu::LoginRequest(LoginRequest::parse(header, b)?),
            Opcode::TextRequest => Pdu::TextRequest(TextRequest::parse(header, b)?),
            Opcode::DataOut => Pdu::DataOut(DataOut::parse(header, b)?),
            Opcode::LogoutRequest => Pdu::LogoutRequest(LogoutRequest::parse(header, b)?),
            Opcode::Snack => Pdu::Snack(Snack::parse(header, b)),
            Opcode::NopIn => Pdu::NopIn(NopIn::parse(header, b)),
            Opcode::ScsiResponse => Pdu::ScsiResponse(ScsiResponse::parse(header, b)?),
            Opcode::TaskResponse => Pdu::TaskResponse(TaskResponse::parse(header, b)?),
            Opcode::LoginResponse => Pdu::LoginResponse(LoginResponse::parse(header, b)?),
            Opcode::TextResponse => Pdu::TextResponse(TextResponse::parse(header, b)?),
            Opcode::DataIn => Pdu::DataIn(DataIn::parse(header, b)?),
            Opcode::LogoutResponse => Pdu::LogoutResponse(LogoutResponse::parse(header, b)?),
            Opcode::R2t => Pdu::R2t(R2t::parse(header, b)?),
            Opcode::AsyncMessage => Pdu::AsyncMessage(AsyncMessage::parse(header, b)),
            Opcode::Reject => Pdu::Reject(Reject::parse(header, b)),
        })
    }

    /// What kind it is.
    pub fn opcode(&self) -> Opcode {
        match self {
            Pdu::NopOut(_) => Opcode::NopOut,
            Pdu::ScsiCommand(_) => Opcode::ScsiCommand,
            Pdu::TaskRequest(_) => Opcode::TaskRequest,
            Pdu::LoginRequest(_) => Opcode::LoginRequest,
            Pdu::TextRequest(_) => Opcode::TextRequest,
            Pdu::DataOut(_) => Opcode::DataOut,
            Pdu::LogoutRequest(_) => Opcode::LogoutRequest,
            Pdu::Snack(_) => Opcode::Snack,
            Pdu::NopIn(_) => Opcode::NopIn,
            Pdu::ScsiResponse(_) => Opcode::ScsiResponse,
            Pdu::TaskResponse(_) => Opcode::TaskResponse,
            Pdu::LoginResponse(_) => Opcode::LoginResponse,
            Pdu::TextResponse(_) => Opcode::TextResponse,
            Pdu::DataIn(_) => Opcode::DataIn,
            Pdu::LogoutResponse(_) => Opcode::LogoutResponse,
            Pdu::R2t(_) => Opcode::R2t,
            Pdu::AsyncMessage(_) => Opcode::AsyncMessage,
            Pdu::Reject(_) => Opcode::Reject,
        }
    }

    /// Writes the head; returns its length, 48 or 52.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        match self {
            Pdu::NopOut(p) => p.encode(framing, out),
            Pdu::ScsiCommand(p) => p.encode(framing, out),
            Pdu::TaskRequest(p) => p.encode(framing, out),
            Pdu::LoginRequest(p) => p.encode(framing, out),
            Pdu::TextRequest(p) => p.encode(framing, out),
            Pdu::DataOut(p) => p.encode(framing, out),
            Pdu::LogoutRequest(p) => p.encode(framing, out),
            Pdu::Snack(p) => p.encode(framing, out),
            Pdu::NopIn(p) => p.encode(framing, out),
            Pdu::ScsiResponse(p) => p.encode(framing, out),
            Pdu::TaskResponse(p) => p.encode(framing, out),
            Pdu::LoginResponse(p) => p.encode(framing, out),
            Pdu::TextResponse(p) => p.encode(framing, out),
            Pdu::DataIn(p) => p.encode(framing, out),
            Pdu::LogoutResponse(p) => p.encode(framing, out),
            Pdu::R2t(p) => p.encode(framing, out),
            Pdu::AsyncMessage(p) => p.encode(framing, out),
            Pdu::Reject(p) => p.encode(framing, out),
        }
    }

    /// Appends the whole PDU: head, `data`, padding and digests. DataSegmentLength is that of `data`, whatever the value says.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] when the data are longer than the peer takes, or there are data where the PDU has none; `out` is
    /// then as before.
    pub fn append(mut self, data: &[u8], framing: &Framing, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let data_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if !self.opcode().carries_data() {
            EncodeError::check_length(data_len, 0)?;
        }
        self.set_data_len(data_len);
        let mut head = [0; MAX_PLAIN_HEAD];
        let n = self.encode(framing, &mut head)?;
        out.extend_from_slice(&head[..n]);
        append_data(out, self.opcode(), framing, data)
    }

    fn set_data_len(&mut self, len: u32) {
        match self {
            Pdu::NopOut(p) => p.data_len = len,
            Pdu::ScsiCommand(p) => p.data_len = len,
            Pdu::LoginRequest(p) => p.data_len = len,
            Pdu::TextRequest(p) => p.data_len = len,
            Pdu::DataOut(p) => p.data_len = len,
            Pdu::NopIn(p) => p.data_len = len,
            Pdu::ScsiResponse(p) => p.data_len = len,
            Pdu::LoginResponse(p) => p.data_len = len,
            Pdu::TextResponse(p) => p.data_len = len,
            Pdu::DataIn(p) => p.data_len = len,
            Pdu::AsyncMessage(p) => p.data_len = len,
            Pdu::Reject(p) => p.data_len = len,
            Pdu::TaskRequest(_)
            | Pdu::TaskResponse(_)
            | Pdu::LogoutRequest(_)
            | Pdu::LogoutResponse(_)
            | Pdu::R2t(_)
            | Pdu::Snack(_) => {}
        }
    }
}
