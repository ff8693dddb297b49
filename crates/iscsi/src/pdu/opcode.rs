//! Opcodes, and which side sends which (RFC 7143 section 11.2.1.2).

/// The two sides of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It connects, logs in and sends commands.
    Initiator,
    /// It is connected to and carries commands out.
    Target,
}

impl Role {
    /// The other side.
    #[inline]
    pub const fn peer(self) -> Self {
        match self {
            Role::Initiator => Role::Target,
            Role::Target => Role::Initiator,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Initiator => "initiator",
            Role::Target => "target",
        })
    }
}

/// What kind of PDU it is. Vendor-specific opcodes (1Ch to 1Eh, 3Ch to 3Eh) are not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// NOP-Out, section 11.18.
    NopOut = 0x00,
    /// SCSI Command, section 11.3.
    ScsiCommand = 0x01,
    /// Task Management Function Request, section 11.5.
    TaskRequest = 0x02,
    /// Login Request, section 11.12.
    LoginRequest = 0x03,
    /// Text Request, section 11.10.
    TextRequest = 0x04,
    /// SCSI Data-Out, section 11.7.
    DataOut = 0x05,
    /// Logout Request, section 11.14.
    LogoutRequest = 0x06,
    /// SNACK Request, section 11.16.
    Snack = 0x10,
    /// NOP-In, section 11.19.
    NopIn = 0x20,
    /// SCSI Response, section 11.4.
    ScsiResponse = 0x21,
    /// Task Management Function Response, section 11.6.
    TaskResponse = 0x22,
    /// Login Response, section 11.13.
    LoginResponse = 0x23,
    /// Text Response, section 11.11.
    TextResponse = 0x24,
    /// SCSI Data-In, section 11.7.
    DataIn = 0x25,
    /// Logout Response, section 11.15.
    LogoutResponse = 0x26,
    /// Ready To Transfer, section 11.8.
    R2t = 0x31,
    /// Asynchronous Message, section 11.9.
    AsyncMessage = 0x32,
    /// Reject, section 11.17.
    Reject = 0x3f,
}

impl Opcode {
    /// Every opcode.
    pub const ALL: [Opcode; 18] = [
        Opcode::NopOut,
        Opcode::ScsiCommand,
        Opcode::TaskRequest,
        Opcode::LoginRequest,
        Opcode::TextRequest,
        Opcode::DataOut,
        Opcode::LogoutRequest,
        Opcode::Snack,
        Opcode::NopIn,
        Opcode::ScsiResponse,
        Opcode::TaskResponse,
        Opcode::LoginResponse,
        Opcode::TextResponse,
        Opcode::DataIn,
        Opcode::LogoutResponse,
        Opcode::R2t,
        Opcode::AsyncMessage,
        Opcode::Reject,
    ];

    /// The opcode of these six bits, if there is one.
    #[inline]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Opcode::NopOut,
            0x01 => Opcode::ScsiCommand,
            0x02 => Opcode::TaskRequest,
            0x03 => Opcode::LoginRequest,
            0x04 => Opcode::TextRequest,
            0x05 => Opcode::DataOut,
            0x06 => Opcode::LogoutRequest,
            0x10 => Opcode::Snack,
            0x20 => Opcode::NopIn,
            0x21 => Opcode::ScsiResponse,
            0x22 => Opcode::TaskResponse,
            0x23 => Opcode::LoginResponse,
            0x24 => Opcode::TextResponse,
            0x25 => Opcode::DataIn,
            0x26 => Opcode::LogoutResponse,
            0x31 => Opcode::R2t,
            0x32 => Opcode::AsyncMessage,
            0x3f => Opcode::Reject,
            _ => return None,
        })
    }

    /// Who sends it.
    #[inline]
    pub const fn sender(self) -> Role {
        if self as u8 & 0x20 == 0 { Role::Initiator } else { Role::Target }
    }

    /// Whether it may have a data segment.
    #[inline]
    pub const fn carries_data(self) -> bool {
        !matches!(
            self,
            Opcode::TaskRequest
                | Opcode::TaskResponse
                | Opcode::LogoutRequest
                | Opcode::LogoutResponse
                | Opcode::R2t
                | Opcode::Snack
        )
    }

    /// Whether digests are used once they were negotiated: the login phase has none (section 13.1).
    #[inline]
    pub const fn takes_digests(self) -> bool {
        !matches!(self, Opcode::LoginRequest | Opcode::LoginResponse)
    }
}

impl std::fmt::Display for Opcode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Opcode::NopOut => "NOP-Out",
            Opcode::ScsiCommand => "SCSI Command",
            Opcode::TaskRequest => "Task Management Function Request",
            Opcode::LoginRequest => "Login Request",
            Opcode::TextRequest => "Text Request",
            Opcode::DataOut => "SCSI Data-Out",
            Opcode::LogoutRequest => "Logout Request",
            Opcode::Snack => "SNACK Request",
            Opcode::NopIn => "NOP-In",
            Opcode::ScsiResponse => "SCSI Response",
            Opcode::TaskResponse => "Task Management Function Response",
            Opcode::LoginResponse => "Login Response",
            Opcode::TextResponse => "Text Response",
            Opcode::DataIn => "SCSI Data-In",
            Opcode::LogoutResponse => "Logout Response",
            Opcode::R2t => "R2T",
            Opcode::AsyncMessage => "Asynchronous Message",
            Opcode::Reject => "Reject",
        })
    }
}
