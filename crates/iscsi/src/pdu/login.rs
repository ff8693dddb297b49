//! Login, both directions (RFC 7143 sections 11.12 and 11.13).

use super::error::bad_flags;
use super::header::encode_head;
use super::tags::{itt, put_itt};
use super::{
    BHS_LEN, Bhs, EncodeError, Framing, Header, InitiatorSn, Itt, Opcode, PduError, TargetSn, be16, bit, flag, flags,
    offset, put,
};

/// Stage of the login phase (section 11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// 0: security negotiation.
    Security = 0,
    /// 1: login operational negotiation.
    Operational = 1,
    /// 3: the full feature phase, which only follows.
    FullFeature = 3,
}

impl Stage {
    fn from_code(code: u8) -> Option<Self> {
        match code & 3 {
            0 => Some(Stage::Security),
            1 => Some(Stage::Operational),
            3 => Some(Stage::FullFeature),
            _ => None,
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Security => "SecurityNegotiation",
            Stage::Operational => "LoginOperationalNegotiation",
            Stage::FullFeature => "FullFeaturePhase",
        })
    }
}

/// CSG, and NSG where T is set.
fn stages(opcode: Opcode, b: &Bhs) -> Result<(Stage, Option<Stage>, bool), PduError> {
    let (transit, continues) = (flag(b, flags::TRANSIT), flag(b, flags::CONTINUE));
    if transit && continues {
        return Err(bad_flags(opcode, b, "T and C exclude each other"));
    }
    let octet = b[offset::FLAGS];
    let current = match Stage::from_code(octet >> 2) {
        Some(stage @ (Stage::Security | Stage::Operational)) => stage,
        _ => return Err(bad_flags(opcode, b, "CSG is 0 or 1")),
    };
    let next = match Stage::from_code(octet) {
        _ if !transit => None,
        Some(next) if next > current => Some(next),
        _ => return Err(bad_flags(opcode, b, "NSG is 1 or 3 and comes after CSG")),
    };
    Ok((current, next, continues))
}

fn stage_flags(current: Stage, next: Option<Stage>, continues: bool) -> u8 {
    let next = next.map_or(0, |stage| flags::TRANSIT | stage as u8);
    next | (current as u8) << 2 | bit(continues, flags::CONTINUE)
}

/// ISID: the initiator's part of a session's identity (section 11.12.5). The same one from the same initiator name to the same portal
/// group reinstates the session, so it is chosen once and kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Isid(pub [u8; 6]);

impl Isid {
    /// T = 00b, from an IEEE OUI (its I/G and U/L bits are dropped) and 24 bits that the owner of the OUI chose.
    pub fn oui(oui: [u8; 3], qualifier: u32) -> Self {
        let [_, c, d1, d2] = qualifier.to_be_bytes();
        Isid([oui[0] & 0x3f, oui[1], oui[2], c, d1, d2])
    }

    /// T = 01b, from an IANA enterprise number, 24 bits of it, and a qualifier.
    pub fn enterprise(number: u32, qualifier: u16) -> Self {
        Isid::of_three(0x40, number, qualifier)
    }

    /// T = 10b, from 24 random bits and a qualifier.
    pub fn random(random: u32, qualifier: u16) -> Self {
        Isid::of_three(0x80, random, qualifier)
    }

    fn of_three(t: u8, value: u32, qualifier: u16) -> Self {
        let ([_, b1, b2, c], [d1, d2]) = (value.to_be_bytes(), qualifier.to_be_bytes());
        Isid([t, b1, b2, c, d1, d2])
    }
}

impl std::fmt::Debug for Isid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl std::fmt::Display for Isid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// Login Request, section 11.12. It is always for immediate delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginRequest {
    /// CSG: the stage that this request belongs to, never the full feature phase.
    pub current: Stage,
    /// T with NSG: the initiator is ready to go on to that stage.
    pub transit: Option<Stage>,
    /// C: the text goes on in the next request.
    pub continues: bool,
    /// Version-max, 0 for RFC 7143.
    pub version_max: u8,
    /// Version-min.
    pub version_min: u8,
    /// The initiator's part of the session's identity.
    pub isid: Isid,
    /// The target's part; 0 for a new session.
    pub tsih: u16,
    /// Tag of the whole login.
    pub itt: Itt,
    /// Connection within the session.
    pub cid: u16,
    /// CmdSN and ExpStatSN.
    pub sn: InitiatorSn,
    /// Octets of text.
    pub data_len: u32,
}

impl LoginRequest {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError`]: T together with C, stages that are none or do not follow each other, the reserved tag, no I bit.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::LoginRequest;
        let (current, transit, continues) = stages(opcode, b)?;
        if !header.immediate {
            return Err(bad_flags(opcode, b, "I is set"));
        }
        Ok(LoginRequest {
            current,
            transit,
            continues,
            version_max: b[offset::VERSION_MAX],
            version_min: b[offset::VERSION_MIN],
            isid: isid(b),
            tsih: be16(b, offset::TSIH),
            itt: itt(b, opcode)?,
            cid: be16(b, offset::CID),
            sn: InitiatorSn::read(b),
            data_len: header.data_len(),
        })
    }

    /// Writes the head; returns its length, always 48.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::LoginRequest, true, framing, self.data_len, |b| {
            b[offset::FLAGS] = stage_flags(self.current, self.transit, self.continues);
            b[offset::VERSION_MAX] = self.version_max;
            b[offset::VERSION_MIN] = self.version_min;
            put(b, offset::ISID, self.isid.0);
            put(b, offset::TSIH, self.tsih.to_be_bytes());
            put_itt(b, Some(self.itt));
            put(b, offset::CID, self.cid.to_be_bytes());
            self.sn.write(b);
        })
    }
}

fn isid(b: &Bhs) -> Isid {
    let mut octets = [0; 6];
    octets.copy_from_slice(&b[offset::ISID..offset::ISID + 6]);
    Isid(octets)
}

/// Status-Class and Status-Detail of a Login Response (section 11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoginStatus {
    /// 0000h: the login goes on or is done.
    Success,
    /// 0101h: at the TargetAddress that is given, for now.
    MovedTemporarily,
    /// 0102h: at the TargetAddress that is given, from now on.
    MovedPermanently,
    /// 0200h.
    InitiatorError,
    /// 0201h.
    AuthenticationFailure,
    /// 0202h.
    AuthorizationFailure,
    /// 0203h.
    NotFound,
    /// 0204h.
    TargetRemoved,
    /// 0205h.
    UnsupportedVersion,
    /// 0206h.
    TooManyConnections,
    /// 0207h.
    MissingParameter,
    /// 0208h.
    CannotInclude,
    /// 0209h.
    SessionTypeNotSupported,
    /// 020Ah.
    SessionDoesNotExist,
    /// 020Bh.
    InvalidDuringLogin,
    /// 0300h.
    TargetError,
    /// 0301h.
    ServiceUnavailable,
    /// 0302h.
    OutOfResources,
    /// Any other class and detail.
    Other(u8, u8),
}

impl LoginStatus {
    /// Every status that RFC 7143 names.
    pub const ALL: [LoginStatus; 18] = [
        LoginStatus::Success,
        LoginStatus::MovedTemporarily,
        LoginStatus::MovedPermanently,
        LoginStatus::InitiatorError,
        LoginStatus::AuthenticationFailure,
        LoginStatus::AuthorizationFailure,
        LoginStatus::NotFound,
        LoginStatus::TargetRemoved,
        LoginStatus::UnsupportedVersion,
        LoginStatus::TooManyConnections,
        LoginStatus::MissingParameter,
        LoginStatus::CannotInclude,
        LoginStatus::SessionTypeNotSupported,
        LoginStatus::SessionDoesNotExist,
        LoginStatus::InvalidDuringLogin,
        LoginStatus::TargetError,
        LoginStatus::ServiceUnavailable,
        LoginStatus::OutOfResources,
    ];

    /// From the wire: class, then detail.
    pub fn from_codes(class: u8, detail: u8) -> Self {
        let named = LoginStatus::ALL.into_iter().find(|status| status.codes() == (class, detail));
        named.unwrap_or(LoginStatus::Other(class, detail))
    }

    /// To the wire: class, then detail.
    pub fn codes(self) -> (u8, u8) {
        match self {
            LoginStatus::Success => (0, 0),
            LoginStatus::MovedTemporarily => (1, 1),
            LoginStatus::MovedPermanently => (1, 2),
            LoginStatus::InitiatorError => (2, 0),
            LoginStatus::AuthenticationFailure => (2, 1),
            LoginStatus::AuthorizationFailure => (2, 2),
            LoginStatus::NotFound => (2, 3),
            LoginStatus::TargetRemoved => (2, 4),
            LoginStatus::UnsupportedVersion => (2, 5),
            LoginStatus::TooManyConnections => (2, 6),
            LoginStatus::MissingParameter => (2, 7),
            LoginStatus::CannotInclude => (2, 8),
            LoginStatus::SessionTypeNotSupported => (2, 9),
            LoginStatus::SessionDoesNotExist => (2, 10),
            LoginStatus::InvalidDuringLogin => (2, 11),
            LoginStatus::TargetError => (3, 0),
            LoginStatus::ServiceUnavailable => (3, 1),
            LoginStatus::OutOfResources => (3, 2),
            LoginStatus::Other(class, detail) => (class, detail),
        }
    }
}

impl std::fmt::Display for LoginStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LoginStatus::Success => "success",
            LoginStatus::MovedTemporarily => "the target moved to another address for now",
            LoginStatus::MovedPermanently => "the target moved to another address for good",
            LoginStatus::InitiatorError => "the target found an error in our login without saying which",
            LoginStatus::AuthenticationFailure => "authentication failed: wrong user name or secret, or none was given",
            LoginStatus::AuthorizationFailure => "this initiator is not allowed to use the target",
            LoginStatus::NotFound => "no target of this name at this portal",
            LoginStatus::TargetRemoved => "the target has been removed and no new address is known",
            LoginStatus::UnsupportedVersion => "no common version of iSCSI",
            LoginStatus::TooManyConnections => "too many connections in this session",
            LoginStatus::MissingParameter => "the target misses a parameter, such as InitiatorName or TargetName",
            LoginStatus::CannotInclude => "the target cannot take this connection into the session at this portal",
            LoginStatus::SessionTypeNotSupported => "the target does not support this type of session here",
            LoginStatus::SessionDoesNotExist => "the session to join does not exist",
            LoginStatus::InvalidDuringLogin => "something that must not be sent during login",
            LoginStatus::TargetError => "the target has a hardware or software error",
            LoginStatus::ServiceUnavailable => "the target or its service is not operational now",
            LoginStatus::OutOfResources => "the target has no room for another session or connection",
            LoginStatus::Other(class, detail) => {
                return write!(f, "status {class:02x}{detail:02x}h, which is reserved");
            }
        })
    }
}

/// Login Response, section 11.13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginResponse {
    /// CSG: the stage that this response belongs to, never the full feature phase.
    pub current: Stage,
    /// T with NSG: from here on that stage holds.
    pub transit: Option<Stage>,
    /// C: the text goes on in the next response.
    pub continues: bool,
    /// Version-max that the target supports.
    pub version_max: u8,
    /// Version-active: the highest that both support.
    pub version_active: u8,
    /// As the request has it.
    pub isid: Isid,
    /// The target's part of the session's identity; not 0 in the last response of a successful login.
    pub tsih: u16,
    /// Tag of the login.
    pub itt: Itt,
    /// Serial numbers; only with success.
    pub sn: TargetSn,
    /// Status.
    pub status: LoginStatus,
    /// Octets of text.
    pub data_len: u32,
}

impl LoginResponse {
    /// Reads the basic header; `header` must be of this opcode.
    ///
    /// # Errors
    /// [`PduError`]: T together with C, stages that are none or do not follow each other (where the status is success), the reserved
    /// tag.
    pub fn parse(header: &Header, b: &[u8; BHS_LEN]) -> Result<Self, PduError> {
        let opcode = Opcode::LoginResponse;
        let status = LoginStatus::from_codes(b[offset::STATUS_CLASS], b[offset::STATUS_DETAIL]);
        // a failure ends the login, and what it says of stages is of no interest (section 11.13.5)
        let (current, transit, continues) = match stages(opcode, b) {
            Err(_) if status != LoginStatus::Success => (Stage::Security, None, false),
            found => found?,
        };
        Ok(LoginResponse {
            current,
            transit,
            continues,
            version_max: b[offset::VERSION_MAX],
            version_active: b[offset::VERSION_MIN],
            isid: isid(b),
            tsih: be16(b, offset::TSIH),
            itt: itt(b, opcode)?,
            sn: TargetSn::read(b),
            status,
            data_len: header.data_len(),
        })
    }

    /// Writes the head; returns its length, always 48.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, framing: &Framing, out: &mut [u8]) -> Result<usize, EncodeError> {
        encode_head(out, Opcode::LoginResponse, false, framing, self.data_len, |b| {
            b[offset::FLAGS] = stage_flags(self.current, self.transit, self.continues);
            b[offset::VERSION_MAX] = self.version_max;
            b[offset::VERSION_MIN] = self.version_active;
            put(b, offset::ISID, self.isid.0);
            put(b, offset::TSIH, self.tsih.to_be_bytes());
            put_itt(b, Some(self.itt));
            self.sn.write(b);
            (b[offset::STATUS_CLASS], b[offset::STATUS_DETAIL]) = self.status.codes();
        })
    }
}
