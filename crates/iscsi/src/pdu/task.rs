//! Task management, both directions (RFC 7143 sections 11.5 and 11.6).

use super::header::encode_head;
use super::tags::{itt, put_itt};
use super::{
    BHS_LEN, EncodeError, Framing, Header, InitiatorSn, Itt, Lun, Opcode, PduError, RESERVED_TAG, TargetSn, be32,
    offset, put,
};
use crate::serial::CmdSn;

/// Function of a Task Management Function Request (section 11.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskFunction {
    /// 1.
    AbortTask,
    /// 2: all tasks of this session at the logical unit.
    AbortTaskSet,
    /// 3.
    ClearAca,
    /// 4: all tasks of anybody at the logical unit.
    ClearTaskSet,
    /// 5.
    LogicalUnitReset,
    /// 6.
    TargetWarmReset,
    /// 7: also ends all sessions.
    TargetColdReset,
    /// 8: takes a task over to this connection.
    TaskReassign,
    /// Any other, which a target answers with [`TaskResult::NotSupported`].
    Other(u8),
}

impl TaskFunction {
    /// From the wire; only the lower seven bits count.
    pub fn from_code(code: u8) -> Self {
        match code & 0x7f {
            1 => TaskFunction::AbortTask,
            2 => TaskFunction::AbortTaskSet,
            3 => TaskFunction::ClearAca,
            4 => TaskFunction::ClearTaskSet,
            5 => TaskFunction::LogicalUnitReset,
            6 => TaskFunction::TargetWarmReset,
            7 => TaskFunction::TargetColdReset,
            8 => TaskFunction::TaskReassign,
            other => TaskFunction::Other(other),
        }
    }

    /// To the wire, seven bits.
    pub fn code(self) -> u8 {
        match self {
            TaskFunction::AbortTask => 1,
            TaskFunction::AbortTaskSet => 2,
            TaskFunction::ClearAca => 3,
            TaskFunction::ClearTaskSet => 4,
            TaskFunction::LogicalUnitReset => 5,
            TaskFunction::TargetWarmReset => 6,
            TaskFunction::TargetColdReset => 7,
            TaskFunction::TaskReassign => 8,
            TaskFunction::Other(code) => code & 0x7f,
        }
    }
}

impl std::fmt::Display for TaskFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TaskFunction::AbortTask => "ABORT TASK",
            TaskFunction::AbortTaskSet => "ABORT TASK SET",
            TaskFunction::ClearAca => "CLEAR ACA",
            TaskFunction::ClearTaskSet => "CLEAR TASK SET",
            TaskFunction::LogicalUnitReset => "LOGICAL UNIT RESET",
            TaskFunction::TargetWarmReset => "TARGET WARM RESET",
            TaskFunction::TargetColdReset => "TARGET COLD RESET",
            TaskFunction::TaskReassign => "TASK REASSIGN",
            TaskFunction::Other(code) => return write!(f, "reserved function {code}"),
        })
    }
}

/// Task Management Function Request, section 11.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskRequest {
    /// For immediate delivery.
    pub immediate: bool,
    /// What to do.
    pub function: TaskFunction,
    /// Logical unit; nothing for target resets.
    pub lun: Lun,
    /// Tag of this request.
    pub itt: Itt,
    /// Tag of the task that it is about: for ABORT TASK and TASK REASSIGN only.
    pub referenced: Option<Itt>,
    /// CmdSN and ExpStatSN.
    pub sn: InitiatorSn,
    /// CmdSN of the task that it is about, for ABORT TASK.
    pub ref_cmd_sn: CmdSn,
    /// For TASK REASSIGN: every Data-In and R2T before it was received.
    pub exp_data_sn: u32,
}

impl TaskRequest {
    /// Reads the PDU; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError::Field`]: the reserved tag as its own, or as that of the task to abort or reassign.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::TaskRequest;
        let function = TaskFunction::from_code(b[offset::FLAGS]);
        let referenced = Itt::new(be32(b, offset::REFERENCED_TAG));
        if referenced.is_none() && matches!(function, TaskFunction::AbortTask | TaskFunction::TaskReassign) {
            return Err(PduError::Field {
                opcode,
                field: "referenced task tag",
                value: RESERVED_TAG,
                expected: "the tag of a task",
            });
        }
        Ok(TaskRequest {
            immediate: header.immediate,
            function,
            lun: Lun::read(b),
            itt: itt(b, opcode)?,
            referenced,
            sn: InitiatorSn::read(b),
            ref_cmd_sn: CmdSn::new(be32(b, offset::REF_CMD_SN)),
            exp_data_sn: be32(b, offset::EXP_DATA_SN),
        })
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::TaskRequest, self.immediate, framing, 0, |b| {
            b[offset::FLAGS] |= self.function.code();
            self.lun.write(b);
            put_itt(b, Some(self.itt));
            put(b, offset::REFERENCED_TAG, self.referenced.map_or(RESERVED_TAG, Itt::get).to_be_bytes());
            self.sn.write(b);
            put(b, offset::REF_CMD_SN, self.ref_cmd_sn.get().to_be_bytes());
            put(b, offset::EXP_DATA_SN, self.exp_data_sn.to_be_bytes());
        })
    }
}

/// Response of a Task Management Function Response (section 11.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskResult {
    /// 0: function complete.
    Complete,
    /// 1: task does not exist.
    NoTask,
    /// 2: LUN does not exist.
    NoLun,
    /// 3: task still allegiant to another connection.
    StillAllegiant,
    /// 4: task allegiance reassignment not supported.
    ReassignNotSupported,
    /// 5: task management function not supported.
    NotSupported,
    /// 6: function authorization failed.
    NotAuthorized,
    /// 255: function rejected.
    Rejected,
    /// Any other.
    Other(u8),
}

impl TaskResult {
    /// From the wire.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => TaskResult::Complete,
            1 => TaskResult::NoTask,
            2 => TaskResult::NoLun,
            3 => TaskResult::StillAllegiant,
            4 => TaskResult::ReassignNotSupported,
            5 => TaskResult::NotSupported,
            6 => TaskResult::NotAuthorized,
            255 => TaskResult::Rejected,
            other => TaskResult::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u8 {
        match self {
            TaskResult::Complete => 0,
            TaskResult::NoTask => 1,
            TaskResult::NoLun => 2,
            TaskResult::StillAllegiant => 3,
            TaskResult::ReassignNotSupported => 4,
            TaskResult::NotSupported => 5,
            TaskResult::NotAuthorized => 6,
            TaskResult::Rejected => 255,
            TaskResult::Other(code) => code,
        }
    }
}

impl std::fmt::Display for TaskResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TaskResult::Complete => "function complete",
            TaskResult::NoTask => "task does not exist",
            TaskResult::NoLun => "LUN does not exist",
            TaskResult::StillAllegiant => "task still allegiant",
            TaskResult::ReassignNotSupported => "task allegiance reassignment not supported",
            TaskResult::NotSupported => "task management function not supported",
            TaskResult::NotAuthorized => "function authorization failed",
            TaskResult::Rejected => "function rejected",
            TaskResult::Other(code) => return write!(f, "reserved response {code}"),
        })
    }
}

/// Task Management Function Response, section 11.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskResponse {
    /// How it ended.
    pub result: TaskResult,
    /// Tag of the request.
    pub itt: Itt,
    /// Serial numbers.
    pub sn: TargetSn,
}

impl TaskResponse {
    /// Reads the PDU; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError::Field`]: the reserved tag.
    pub fn parse(_header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        Ok(TaskResponse {
            result: TaskResult::from_code(b[offset::RESPONSE]),
            itt: itt(b, Opcode::TaskResponse)?,
            sn: TargetSn::read(b),
        })
    }

    /// Writes the PDU; returns its length.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::TaskResponse, false, framing, 0, |b| {
            b[offset::RESPONSE] = self.result.code();
            put_itt(b, Some(self.itt));
            self.sn.write(b);
        })
    }
}
