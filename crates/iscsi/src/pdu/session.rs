//! Logout, Asynchronous Message and Reject (RFC 7143 sections 11.14, 11.15, 11.9 and 11.17).

use super::header::encode_head;
use super::tags::{itt, put_itt};
use super::{
    BHS_LEN, Bhs, EncodeError, Framing, Header, InitiatorSn, Itt, Lun, Opcode, PduError, RejectReason, TargetSn, be16,
    be32, offset, put,
};

/// Reason code of a Logout Request (section 11.14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogoutReason {
    /// 0: close the session.
    CloseSession,
    /// 1: close the connection.
    CloseConnection,
    /// 2: remove the connection, its tasks being taken over.
    RemoveForRecovery,
    /// Any other.
    Other(u8),
}

/// Logout Request, section 11.14.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogoutRequest {
    /// For immediate delivery.
    pub immediate: bool,
    /// What to close.
    pub reason: LogoutReason,
    /// Tag of this request.
    pub itt: Itt,
    /// Connection that it is about; nothing when the session is closed.
    pub cid: u16,
    /// CmdSN and ExpStatSN.
    pub sn: InitiatorSn,
}

impl LogoutRequest {
    /// Reads the PDU; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError::Field`]: the reserved tag.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        Ok(LogoutRequest {
            immediate: header.immediate,
            reason: match b[offset::FLAGS] & 0x7f {
                0 => LogoutReason::CloseSession,
                1 => LogoutReason::CloseConnection,
                2 => LogoutReason::RemoveForRecovery,
                other => LogoutReason::Other(other),
            },
            itt: itt(b, Opcode::LogoutRequest)?,
            cid: be16(b, offset::CID),
            sn: InitiatorSn::read(b),
        })
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::LogoutRequest, self.immediate, framing, 0, |b| {
            b[offset::FLAGS] |= match self.reason {
                LogoutReason::CloseSession => 0,
                LogoutReason::CloseConnection => 1,
                LogoutReason::RemoveForRecovery => 2,
                LogoutReason::Other(code) => code & 0x7f,
            };
            put_itt(b, Some(self.itt));
            put(b, offset::CID, self.cid.to_be_bytes());
            self.sn.write(b);
        })
    }
}

/// Response of a Logout Response (section 11.15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogoutResult {
    /// 0: connection or session closed.
    Closed,
    /// 1: CID not found.
    NoConnection,
    /// 2: connection recovery is not supported.
    RecoveryNotSupported,
    /// 3: clean-up failed for some reason.
    CleanupFailed,
    /// Any other.
    Other(u8),
}

impl std::fmt::Display for LogoutResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LogoutResult::Closed => "closed",
            LogoutResult::NoConnection => "CID not found",
            LogoutResult::RecoveryNotSupported => "connection recovery not supported",
            LogoutResult::CleanupFailed => "clean-up failed",
            LogoutResult::Other(code) => return write!(f, "reserved response {code}"),
        })
    }
}

/// Logout Response, section 11.15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogoutResponse {
    /// How it ended.
    pub result: LogoutResult,
    /// Tag of the request.
    pub itt: Itt,
    /// Serial numbers.
    pub sn: TargetSn,
    /// Time2Wait in seconds: how long to wait before tasks may be taken over or the session reinstated.
    pub time2wait_s: u16,
    /// Time2Retain in seconds after that: how long tasks are kept.
    pub time2retain_s: u16,
}

impl LogoutResponse {
    /// Reads the PDU; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError::Field`]: the reserved tag.
    pub fn parse(_header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        Ok(LogoutResponse {
            result: match b[offset::RESPONSE] {
                0 => LogoutResult::Closed,
                1 => LogoutResult::NoConnection,
                2 => LogoutResult::RecoveryNotSupported,
                3 => LogoutResult::CleanupFailed,
                other => LogoutResult::Other(other),
            },
            itt: itt(b, Opcode::LogoutResponse)?,
            sn: TargetSn::read(b),
            time2wait_s: be16(b, offset::TIME2WAIT),
            time2retain_s: be16(b, offset::TIME2RETAIN),
        })
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::LogoutResponse, false, framing, 0, |b| {
            b[offset::RESPONSE] = match self.result {
                LogoutResult::Closed => 0,
                LogoutResult::NoConnection => 1,
                LogoutResult::RecoveryNotSupported => 2,
                LogoutResult::CleanupFailed => 3,
                LogoutResult::Other(code) => code,
            };
            put_itt(b, Some(self.itt));
            self.sn.write(b);
            put(b, offset::TIME2WAIT, self.time2wait_s.to_be_bytes());
            put(b, offset::TIME2RETAIN, self.time2retain_s.to_be_bytes());
        })
    }
}

/// What an Asynchronous Message says (section 11.9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncEvent {
    /// 0: a SCSI event of the logical unit; sense data are in the data segment, as [`super::split_sense`] finds them.
    Scsi,
    /// 1: the target asks for a logout of this connection.
    LogoutRequested {
        /// Within so many seconds.
        within_s: u16,
    },
    /// 2: the target drops, or has dropped, a connection.
    ConnectionDropped {
        /// Which.
        cid: u16,
        /// Seconds to wait before connecting again.
        time2wait_s: u16,
        /// Seconds after that for which tasks are kept.
        time2retain_s: u16,
    },
    /// 3: the target drops all connections of this session.
    SessionDropped {
        /// Seconds to wait before connecting again.
        time2wait_s: u16,
        /// Seconds after that for which tasks are kept.
        time2retain_s: u16,
    },
    /// 4: the target asks for a negotiation of parameters on this connection.
    NegotiationRequested {
        /// Within so many seconds.
        within_s: u16,
    },
    /// 5: all tasks of the logical unit are being terminated; only after TaskReporting=FastAbort was negotiated (section 4.2.3.4).
    TasksTerminated,
    /// Any other, 255 for vendors.
    Other {
        /// AsyncEvent.
        event: u8,
        /// Parameter1 to Parameter3.
        parameters: [u16; 3],
    },
}

impl AsyncEvent {
    fn read(b: &Bhs) -> Self {
        let parameters @ [first, second, third] =
            [be16(b, offset::PARAMETER1), be16(b, offset::PARAMETER2), be16(b, offset::PARAMETER3)];
        match b[offset::ASYNC_EVENT] {
            0 => AsyncEvent::Scsi,
            1 => AsyncEvent::LogoutRequested { within_s: third },
            2 => AsyncEvent::ConnectionDropped { cid: first, time2wait_s: second, time2retain_s: third },
            3 => AsyncEvent::SessionDropped { time2wait_s: second, time2retain_s: third },
            4 => AsyncEvent::NegotiationRequested { within_s: third },
            5 => AsyncEvent::TasksTerminated,
            event => AsyncEvent::Other { event, parameters },
        }
    }

    fn write(self, b: &mut Bhs) {
        let (event, parameters) = match self {
            AsyncEvent::Scsi => (0, [0; 3]),
            AsyncEvent::LogoutRequested { within_s } => (1, [0, 0, within_s]),
            AsyncEvent::ConnectionDropped { cid, time2wait_s, time2retain_s } => (2, [cid, time2wait_s, time2retain_s]),
            AsyncEvent::SessionDropped { time2wait_s, time2retain_s } => (3, [0, time2wait_s, time2retain_s]),
            AsyncEvent::NegotiationRequested { within_s } => (4, [0, 0, within_s]),
            AsyncEvent::TasksTerminated => (5, [0; 3]),
            AsyncEvent::Other { event, parameters } => (event, parameters),
        };
        b[offset::ASYNC_EVENT] = event;
        for (at, value) in [offset::PARAMETER1, offset::PARAMETER2, offset::PARAMETER3].into_iter().zip(parameters) {
            put(b, at, value.to_be_bytes());
        }
    }
}

impl std::fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AsyncEvent::Scsi => f.write_str("SCSI event"),
            AsyncEvent::LogoutRequested { within_s } => write!(f, "the target asks for a logout within {within_s} s"),
            AsyncEvent::ConnectionDropped { cid, time2wait_s, time2retain_s } => write!(
                f,
                "the target drops connection {cid}, to be made again after {time2wait_s} s, its tasks kept for {time2retain_s} s more"
            ),
            AsyncEvent::SessionDropped { time2wait_s, time2retain_s } => write!(
                f,
                "the target drops the session, to be made again after {time2wait_s} s, its tasks kept for {time2retain_s} s more"
            ),
            AsyncEvent::NegotiationRequested { within_s } => {
                write!(f, "the target asks for a negotiation of parameters within {within_s} s")
            }
            AsyncEvent::TasksTerminated => f.write_str("the target terminates all tasks of a logical unit"),
            AsyncEvent::Other { event, .. } => write!(f, "event {event} that is reserved or a vendor's"),
        }
    }
}

/// Asynchronous Message, section 11.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsyncMessage {
    /// What happened.
    pub event: AsyncEvent,
    /// AsyncVCode, where the event is a vendor's.
    pub vendor_code: u8,
    /// Logical unit, where the event is about one.
    pub lun: Lun,
    /// Serial numbers.
    pub sn: TargetSn,
    /// Octets of sense and event data.
    pub data_len: u32,
}

impl AsyncMessage {
    /// Reads the basic header; `header` must be of this opcode.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Self {
        AsyncMessage {
            event: AsyncEvent::read(b),
            vendor_code: b[offset::ASYNC_VCODE],
            lun: Lun::read(b),
            sn: TargetSn::read(b),
            data_len: header.data_len(),
        }
    }

    /// Writes the head; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::AsyncMessage, false, framing, self.data_len, |b| {
            self.lun.write(b);
            put_itt(b, None);
            self.event.write(b);
            b[offset::ASYNC_VCODE] = self.vendor_code;
            self.sn.write(b);
        })
    }
}

/// Reject, section 11.17. Its data segment is the head of what was rejected, without digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// Serial numbers.
    pub sn: TargetSn,
    /// Next DataSN or R2TSN of the task; only where a SNACK is rejected as a protocol error.
    pub data_sn: u32,
    /// Octets of the rejected head, 48 or more.
    pub data_len: u32,
}

impl Reject {
    /// Reads the basic header; `header` must be of this opcode.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Self {
        Reject {
            reason: RejectReason::from_code(b[offset::RESPONSE]),
            sn: TargetSn::read(b),
            data_sn: be32(b, offset::DATA_SN),
            data_len: header.data_len(),
        }
    }

    /// Writes the head; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::Reject, false, framing, self.data_len, |b| {
            b[offset::RESPONSE] = self.reason.code();
            put_itt(b, None);
            self.sn.write(b);
            put(b, offset::DATA_SN, self.data_sn.to_be_bytes());
        })
    }

    /// The initiator task tag of what was rejected, out of the data segment: which task it was about. `None` when the segment holds no
    /// whole basic header or that one had the reserved tag.
    pub fn rejected_itt(data: &[u8]) -> Option<Itt> {
        super::tags::optional_itt(data.first_chunk()?)
    }
}
