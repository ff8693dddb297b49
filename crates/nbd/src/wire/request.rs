//! What a client asks in transmission ("Request message", "Transmission flags", "Command flags", "Request types").

use super::{Fields, WireError};

/// First word of a request (`NBD_REQUEST_MAGIC`).
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Octets of a request without its data.
pub const REQUEST_LEN: usize = 28;

bitflags::bitflags! {
    /// What an export can do, told at the end of the handshake.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always there.
        const HAS_FLAGS = 1;
        /// It takes no changes.
        const READ_ONLY = 1 << 1;
        /// [`Command::Flush`].
        const SEND_FLUSH = 1 << 2;
        /// [`CommandFlags::FUA`].
        const SEND_FUA = 1 << 3;
        /// [`Command::Trim`].
        const SEND_TRIM = 1 << 5;
        /// [`Command::WriteZeroes`] and [`CommandFlags::NO_HOLE`].
        const SEND_WRITE_ZEROES = 1 << 6;
        /// [`CommandFlags::DF`]; only with structured replies.
        const SEND_DF = 1 << 7;
        /// Flush and FUA on one connection cover what was answered on every other one.
        const CAN_MULTI_CONN = 1 << 8;
        /// [`CommandFlags::FAST_ZERO`].
        const SEND_FAST_ZERO = 1 << 11;
    }
}

bitflags::bitflags! {
    /// Modifiers of a request.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Durable before the reply. Allowed with every command.
        const FUA = 1;
        /// Zeroes take their space.
        const NO_HOLE = 1 << 1;
        /// The data of a read in one chunk.
        const DF = 1 << 2;
        /// One extent only.
        const REQ_ONE = 1 << 3;
        /// Zeroes quickly, or not at all.
        const FAST_ZERO = 1 << 4;
        /// What others mean by other bits is theirs; here they are refused.
        const _ = !0;
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Disk to client.
    Read,
    /// Client to disk; as many octets as the request's length follow it.
    Write,
    /// The client goes. There is no reply.
    Disconnect,
    /// What was answered before becomes durable.
    Flush,
    /// The range is no longer needed.
    Trim,
    /// The range reads as zeroes.
    WriteZeroes,
    /// Which parts of the range are data.
    BlockStatus,
    /// Any other one, `NBD_CMD_CACHE` (5) included: there is no cache to fill.
    Other(u16),
}

impl Command {
    /// From the wire.
    pub fn from_code(code: u16) -> Command {
        match code {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Other(other),
        }
    }

    /// To the wire.
    pub fn code(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Other(code) => code,
        }
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Read => "read",
            Command::Write => "write",
            Command::Disconnect => "disconnect",
            Command::Flush => "flush",
            Command::Trim => "trim",
            Command::WriteZeroes => "write zeroes",
            Command::BlockStatus => "block status",
            Command::Other(code) => return write!(f, "command {code}"),
        })
    }
}

/// One request. Its numbers are as the client sent them: nothing of it is checked but its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Modifiers.
    pub flags: CommandFlags,
    /// What is to be done.
    pub command: Command,
    /// The client's own number for it, which its reply bears.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// From the wire.
    ///
    /// # Errors
    /// Short, or without the magic number.
    pub fn parse(octets: &[u8]) -> Result<Request, WireError> {
        let mut fields = Fields::new(octets, "request");
        let magic = fields.u32()?;
        if magic != REQUEST_MAGIC {
            let (found, expected) = (magic.into(), REQUEST_MAGIC.into());
            return Err(WireError::Magic { what: "request", found, expected });
        }
        let request = Request {
            flags: CommandFlags::from_bits_retain(fields.u16()?),
            command: Command::from_code(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        };
        fields.end()?;
        Ok(request)
    }

    /// To the wire, for clients.
    pub fn to_bytes(self) -> [u8; REQUEST_LEN] {
        let mut out = [0; REQUEST_LEN];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        out[6..8].copy_from_slice(&self.command.code().to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Octets of data that follow it.
    pub fn payload(&self) -> u32 {
        if self.command == Command::Write { self.length } else { 0 }
    }
}
