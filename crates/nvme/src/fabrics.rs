//! Data and responses of the fabrics commands (Base 2.1 section 6). The commands themselves are built
//! in [`sqe`](crate::sqe).

use crate::nqn::{HostId, Nqn};
use crate::wire::wire_struct;
use crate::{Cqe, ParseError, StatusField};

/// Fabrics command types.
pub mod fctype {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// Attributes of Connect (CATTR).
pub mod cattr {
    /// Disable SQ flow control: the host counts outstanding commands itself, SQHD means nothing.
    pub const DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
    /// The host supports deletion of individual I/O queues.
    pub const QUEUE_DELETION: u8 = 1 << 3;
}

/// The controller identifier with which a host asks for any controller (dynamic model).
pub const CNTLID_DYNAMIC: u16 = 0xffff;

wire_struct! {
    /// The 1024 octets that Connect carries.
    ConnectDataRaw, 1024, "Connect data" {
        /// Host identifier.
        hostid: [u8; 16] = 0,
        /// Controller identifier; [`CNTLID_DYNAMIC`] on the admin queue of the dynamic model.
        cntlid: u16 = 16,
        /// Subsystem NQN, NUL-terminated.
        subnqn: [u8; 256] = 256,
        /// Host NQN, NUL-terminated; some hosts leave it empty.
        hostnqn: [u8; 256] = 512,
    }
}

/// What a host sends with Connect. A host always says who it is; what a target reads is a [`ConnectRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectData {
    /// Host identifier.
    pub host_id: HostId,
    /// Controller identifier.
    pub cntlid: u16,
    /// Which subsystem.
    pub subnqn: Nqn,
    /// Who asks.
    pub hostnqn: Nqn,
}

/// Which field of Connect a target finds wrong; becomes IPO and IATTR of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidParameter {
    /// Octet offset of the field.
    pub offset: u16,
    /// Whether the offset is in the data (IATTR bit 0), else in the submission queue entry.
    pub in_data: bool,
}

impl InvalidParameter {
    /// Queue identifier of the command.
    pub const QID: InvalidParameter = InvalidParameter { offset: 42, in_data: false };
    /// Queue size of the command.
    pub const SQSIZE: InvalidParameter = InvalidParameter { offset: 44, in_data: false };
    /// Host identifier of the data.
    pub const HOSTID: InvalidParameter = InvalidParameter { offset: 0, in_data: true };
    /// Controller identifier of the data.
    pub const CNTLID: InvalidParameter = InvalidParameter { offset: 16, in_data: true };
    /// Subsystem NQN of the data.
    pub const SUBNQN: InvalidParameter = InvalidParameter { offset: 256, in_data: true };
    /// Host NQN of the data.
    pub const HOSTNQN: InvalidParameter = InvalidParameter { offset: 512, in_data: true };

    /// The name of the field, where it is one of those above.
    pub fn field(self) -> &'static str {
        match (self.in_data, self.offset) {
            (false, 40) => "RECFMT",
            (false, 42) => "QID",
            (false, 44) => "SQSIZE",
            (false, 46) => "CATTR",
            (false, 48) => "KATO",
            (true, 0) => "HOSTID",
            (true, 16) => "CNTLID",
            (true, 256) => "SUBNQN",
            (true, 512) => "HOSTNQN",
            _ => "unknown field",
        }
    }
}

impl ConnectData {
    /// Octets on the wire.
    pub const LEN: usize = ConnectDataRaw::LEN;

    /// The octets.
    pub fn to_bytes(&self) -> [u8; 1024] {
        ConnectDataRaw {
            hostid: *self.host_id.as_bytes(),
            cntlid: self.cntlid,
            subnqn: self.subnqn.to_field(),
            hostnqn: self.hostnqn.to_field(),
        }
        .to_bytes()
    }
}

/// What a target reads from Connect, checked.
///
/// A target is more lenient than a host: Linux's and SPDK's take an empty HOSTNQN for a host that has no name of its own, and
/// `spdk_nvme_perf` sends one. Any other text must be a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Host identifier.
    pub host_id: HostId,
    /// Controller identifier.
    pub cntlid: u16,
    /// Which subsystem.
    pub subnqn: Nqn,
    /// Who asks; `None` when the field is empty.
    pub hostnqn: Option<Nqn>,
}

impl ConnectRequest {
    /// Octets on the wire.
    pub const LEN: usize = ConnectDataRaw::LEN;

    /// Reads and checks the data.
    ///
    /// # Errors
    /// [`ParseError`] when there are too few octets or a name is not one. A target answers the latter
    /// with Connect Invalid Parameters; [`ConnectRequest::invalid_parameter`] says which.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let raw = ConnectDataRaw::parse(bytes)?;
        let subnqn = Nqn::from_field(&raw.subnqn, "Connect SUBNQN")?;
        let named = raw.hostnqn[0] != 0;
        let hostnqn = named.then(|| Nqn::from_field(&raw.hostnqn, "Connect HOSTNQN")).transpose()?;
        Ok(ConnectRequest { host_id: HostId::from_bytes(raw.hostid), cntlid: raw.cntlid, subnqn, hostnqn })
    }

    /// The field that a failed [`ConnectRequest::parse`] found wrong.
    pub fn invalid_parameter(error: &ParseError) -> InvalidParameter {
        match error {
            ParseError::Text { what: "Connect HOSTNQN", .. } => InvalidParameter::HOSTNQN,
            _ => InvalidParameter::SUBNQN,
        }
    }

    /// The host's name; empty when it gave none.
    pub fn hostnqn(&self) -> &str {
        self.hostnqn.as_ref().map_or("", Nqn::as_str)
    }
}

/// What Connect returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectResponse {
    /// Connected.
    Connected {
        /// The controller.
        cntlid: u16,
        /// Authentication is required before anything else (AUTHREQ not zero).
        authentication: u16,
    },
    /// Refused, and the controller says which field is to blame.
    InvalidParameter(InvalidParameter),
    /// Refused.
    Refused(StatusField),
}

impl ConnectResponse {
    /// Reads the response of a Connect command.
    pub fn from_cqe(cqe: &Cqe) -> Self {
        if cqe.status.is_success() {
            return ConnectResponse::Connected { cntlid: cqe.result as u16, authentication: (cqe.result >> 16) as u16 };
        }
        if cqe.status.is(StatusField::CONNECT_INVALID_PARAMETERS) {
            return ConnectResponse::InvalidParameter(InvalidParameter {
                offset: cqe.result as u16,
                in_data: cqe.result >> 16 & 1 != 0,
            });
        }
        ConnectResponse::Refused(cqe.status)
    }

    /// The response as a completion of `cid` (the target's side).
    pub fn to_cqe(self, cid: u16) -> Cqe {
        match self {
            ConnectResponse::Connected { cntlid, authentication } => {
                let result = u64::from(cntlid) | u64::from(authentication) << 16;
                Cqe::new(cid, StatusField::SUCCESS).with_result(result)
            }
            ConnectResponse::InvalidParameter(p) => {
                let result = u64::from(p.offset) | u64::from(p.in_data) << 16;
                Cqe::new(cid, StatusField::CONNECT_INVALID_PARAMETERS.with_dnr()).with_result(result)
            }
            ConnectResponse::Refused(status) => Cqe::new(cid, status),
        }
    }
}

/// A Property Get that succeeded, as a completion (the target's side). The host finds the value in
/// [`Cqe::result`].
pub fn property_get_response(cid: u16, value: u64) -> Cqe {
    Cqe::new(cid, StatusField::SUCCESS).with_result(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Field;

    #[test]
    fn connect_data_round_trip_and_layout() {
        let data = ConnectData {
            host_id: HostId::from_bytes(std::array::from_fn(|i| i as u8)),
            cntlid: CNTLID_DYNAMIC,
            subnqn: Nqn::new("nqn.2024-01.org.example:disk").unwrap(),
            hostnqn: Nqn::new("nqn.2024-01.org.example:host").unwrap(),
        };
        let b = data.to_bytes();
        assert_eq!(&b[16..18], &[0xff, 0xff]);
        assert_eq!(&b[256..260], b"nqn.");
        assert_eq!(&b[512..516], b"nqn.");
        let ConnectData { host_id, cntlid, subnqn, hostnqn } = data;
        let request = ConnectRequest { host_id, cntlid, subnqn, hostnqn: Some(hostnqn) };
        assert_eq!(ConnectRequest::parse(&b), Ok(request));
        for n in (0..1024).step_by(7) {
            assert!(ConnectRequest::parse(&b[..n]).is_err());
        }
    }

    #[test]
    fn unterminated_name_is_refused_by_field() {
        let mut b = [0u8; 1024];
        b[256..512].fill(b'a');
        b[512..516].copy_from_slice(b"nqn.");
        let e = ConnectRequest::parse(&b).unwrap_err();
        assert_eq!(ConnectRequest::invalid_parameter(&e), InvalidParameter::SUBNQN);
        b[256..512].fill(0);
        b[256] = b'x';
        b[512..768].fill(b'a');
        let e = ConnectRequest::parse(&b).unwrap_err();
        assert_eq!(ConnectRequest::invalid_parameter(&e).field(), "HOSTNQN");
    }

    #[test]
    fn a_target_reads_an_empty_host_name_and_nothing_else_that_is_none() {
        let name = Nqn::new("nqn.2024-01.org.example:disk").unwrap();
        let data = ConnectData { host_id: HostId::default(), cntlid: 1, subnqn: name.clone(), hostnqn: name };
        let with = |text: &[u8]| {
            let mut b = data.to_bytes();
            b[512..768].fill(0);
            b[512..][..text.len()].copy_from_slice(text);
            ConnectRequest::parse(&b)
        };
        let unnamed = with(b"").unwrap();
        assert_eq!((unnamed.hostnqn(), &unnamed.hostnqn, &unnamed.subnqn), ("", &None, &data.subnqn));
        assert_eq!(with(b"nqn.x").unwrap().hostnqn(), "nqn.x");
        for nonsense in [&b" "[..], b"a b", b"\x01", b"\xff\xfe", &[b'a'; 224], &[b'a'; 256]] {
            let error = with(nonsense).unwrap_err();
            assert_eq!(ConnectRequest::invalid_parameter(&error), InvalidParameter::HOSTNQN, "{nonsense:?}");
        }
        // A subsystem always has a name.
        let mut b = data.to_bytes();
        b[256..512].fill(0);
        assert_eq!(
            ConnectRequest::invalid_parameter(&ConnectRequest::parse(&b).unwrap_err()),
            InvalidParameter::SUBNQN
        );
    }

    #[test]
    fn responses_round_trip() {
        for r in [
            ConnectResponse::Connected { cntlid: 7, authentication: 0 },
            ConnectResponse::InvalidParameter(InvalidParameter::HOSTNQN),
            ConnectResponse::Refused(StatusField::CONNECT_INVALID_HOST.with_dnr()),
        ] {
            assert_eq!(ConnectResponse::from_cqe(&r.to_cqe(9)), r);
        }
        let bytes = property_get_response(1, 0x20_0f00_03ff).to_bytes();
        assert_eq!(Cqe::from_bytes(&bytes).result, 0x20_0f00_03ff);
        assert_eq!(u64::get(&bytes, 0), 0x20_0f00_03ff);
    }
}
