//! NVMe qualified names and host identifiers (Base 2.1 sections 4.7 and 5.1.25.1.28), kept the way
//! nvme-cli keeps them: `/etc/nvme/hostnqn` holds the host NQN and `/etc/nvme/hostid` a UUID, one line
//! each. Reading the files is the caller's business; what they mean is decided here.

use crate::ParseError;
use std::fmt;
use std::str::FromStr;

/// The well-known name of every discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// The prefix of names that are made from a UUID.
pub const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";
/// Longest name in octets, without its terminating NUL.
pub const MAX_LEN: usize = 223;

/// Why a name is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// Nothing there.
    #[error("the NQN is empty; expected something like nqn.2024-01.org.example:name")]
    Empty,
    /// Too long.
    #[error("the NQN has {0} bytes, at most 223 are allowed")]
    TooLong(usize),
    /// A character that no name may contain.
    #[error("the NQN contains the character {0:?} at byte {1}; spaces and control characters are not allowed")]
    Character(char, usize),
}

/// An NVMe qualified name: 1 to 223 octets of UTF-8 without spaces or control characters.
///
/// The date and domain that the specification puts at the front are not demanded, because real targets
/// are configured without them (`mkdir subsystems/testsub` is all that Linux asks for);
/// [`Nqn::is_canonical`] tells whether they are there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(String);

impl Nqn {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NqnError`] says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, NqnError> {
        if text.is_empty() {
            return Err(NqnError::Empty);
        }
        if text.len() > MAX_LEN {
            return Err(NqnError::TooLong(text.len()));
        }
        let bad = text.char_indices().find(|(_, c)| c.is_whitespace() || c.is_control());
        match bad {
            Some((at, c)) => Err(NqnError::Character(c, at)),
            None => Ok(Nqn(text.to_owned())),
        }
    }

    /// The discovery subsystem's name.
    pub fn discovery() -> Self {
        Nqn(DISCOVERY_NQN.to_owned())
    }

    /// The name made from a UUID.
    pub fn from_uuid(id: HostId) -> Self {
        Nqn(format!("{UUID_PREFIX}{id}"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the discovery subsystem.
    pub fn is_discovery(&self) -> bool {
        self.0 == DISCOVERY_NQN
    }

    /// Whether the name has the form `nqn.yyyy-mm.reverse.domain[:rest]`.
    pub fn is_canonical(&self) -> bool {
        let b = self.0.as_bytes();
        let digits = |r: std::ops::Range<usize>| b[r].iter().all(u8::is_ascii_digit);
        b.len() >= 13
            && b.starts_with(b"nqn.")
            && digits(4..8)
            && b[8] == b'-'
            && digits(9..11)
            && b[11] == b'.'
            && b[12] != b':'
    }

    /// The UUID in a name of the form [`UUID_PREFIX`]`xxxxxxxx-...`.
    pub fn uuid(&self) -> Option<HostId> {
        self.0.strip_prefix(UUID_PREFIX)?.parse().ok()
    }

    /// The 256-octet field, NUL-terminated and filled.
    pub fn to_field(&self) -> [u8; 256] {
        crate::wire::padded(&self.0, 0)
    }

    /// Reads a 256-octet field.
    ///
    /// # Errors
    /// [`ParseError::Text`] when it is not terminated, empty, too long, not UTF-8 or has forbidden
    /// characters.
    pub fn from_field(field: &[u8; 256], what: &'static str) -> Result<Self, ParseError> {
        let text = |problem| ParseError::Text { what, problem };
        let end = field.iter().position(|&b| b == 0).ok_or(text("not terminated by NUL"))?;
        let name = std::str::from_utf8(&field[..end]).map_err(|_| text("not UTF-8"))?;
        Nqn::new(name).map_err(|e| match e {
            NqnError::Empty => text("empty"),
            NqnError::TooLong(_) => text("longer than 223 bytes"),
            NqnError::Character(..) => text("contains a space or a control character"),
        })
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Nqn {
    type Err = NqnError;
    fn from_str(s: &str) -> Result<Self, NqnError> {
        Nqn::new(s)
    }
}

/// A 128-bit host identifier, written as a UUID; the octets are in the order of the text, as Linux and
/// nvme-cli send them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HostId([u8; 16]);

/// The text is not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID; expected 8-4-4-4-12 hexadecimal digits")]
pub struct NotUuid;

impl HostId {
    /// From the wire.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        HostId(bytes)
    }

    /// To the wire.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A version 4 UUID from 16 random octets.
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        HostId(bytes)
    }
}

impl FromStr for HostId {
    type Err = NotUuid;
    fn from_str(s: &str) -> Result<Self, NotUuid> {
        let s = s.trim();
        let b = s.as_bytes();
        if b.len() != 36 || [8, 13, 18, 23].iter().any(|&i| b[i] != b'-') {
            return Err(NotUuid);
        }
        let mut digits = b.iter().filter(|&&c| c != b'-').map(|&c| char::from(c).to_digit(16));
        let mut out = [0u8; 16];
        for byte in &mut out {
            let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else {
                return Err(NotUuid);
            };
            *byte = (high << 4 | low) as u8;
        }
        if digits.next().is_some() {
            return Err(NotUuid);
        }
        Ok(HostId(out))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

/// Who we are to every controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// Host NQN.
    pub nqn: Nqn,
    /// Host identifier.
    pub id: HostId,
}

/// Why a host identity could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostIdentityError {
    /// The host NQN is not one.
    #[error("host NQN: {0}")]
    Nqn(#[from] NqnError),
    /// The host identifier is not a UUID.
    #[error("host ID: {0}")]
    Id(#[from] NotUuid),
}

impl HostIdentity {
    /// Decides the identity from the contents of `/etc/nvme/hostnqn` and `/etc/nvme/hostid` (or what the
    /// configuration says in their place); blank texts count as absent.
    ///
    /// With only a name, the identifier is the UUID in it, as nvme-cli does; with only an identifier, the
    /// name is made from it; a name without a UUID, or nothing at all, takes `random`, which the caller
    /// should then store, since a host that changes its identity loses its reservations.
    ///
    /// # Errors
    /// A text that is there and wrong is an error, never replaced silently.
    pub fn derive(hostnqn: Option<&str>, hostid: Option<&str>, random: [u8; 16]) -> Result<Self, HostIdentityError> {
        let line = |t: Option<&str>| -> Option<String> {
            t.and_then(|t| t.lines().map(str::trim).find(|l| !l.is_empty())).map(str::to_owned)
        };
        let nqn = line(hostnqn).map(|t| Nqn::new(&t)).transpose()?;
        let id = line(hostid).map(|t| t.parse::<HostId>()).transpose()?;
        Ok(match (nqn, id) {
            (Some(nqn), Some(id)) => HostIdentity { nqn, id },
            (Some(nqn), None) => {
                let id = nqn.uuid().unwrap_or(HostId::from_random(random));
                HostIdentity { nqn, id }
            }
            (None, id) => {
                let id = id.unwrap_or(HostId::from_random(random));
                HostIdentity { nqn: Nqn::from_uuid(id), id }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";

    #[test]
    fn names() {
        assert!(Nqn::new("nqn.2014-08.org.nvmexpress.discovery").unwrap().is_discovery());
        assert!(Nqn::new("testsub").is_ok_and(|n| !n.is_canonical()));
        assert!(Nqn::new("nqn.2024-01.org.example:a").unwrap().is_canonical());
        assert_eq!(Nqn::new(""), Err(NqnError::Empty));
        assert_eq!(Nqn::new(&"a".repeat(224)), Err(NqnError::TooLong(224)));
        assert!(Nqn::new(&"a".repeat(223)).is_ok());
        assert_eq!(Nqn::new("a b"), Err(NqnError::Character(' ', 1)));
        assert_eq!(Nqn::new("a\u{7}"), Err(NqnError::Character('\u{7}', 1)));
        for short in ["nqn.", "nqn.2024-01.", "nqn.2024-01.:"] {
            assert!(!Nqn::new(short).unwrap().is_canonical(), "{short}");
        }
    }

    #[test]
    fn uuid_text_keeps_octet_order() {
        let id: HostId = UUID.parse().unwrap();
        assert_eq!(&id.as_bytes()[..4], &[0x2c, 0xd2, 0xc4, 0x3b]);
        assert_eq!(id.to_string(), UUID);
        for bad in [
            "",
            "2cd2c43b",
            &UUID[1..],
            "2cd2c43b-a90a-45c1-a8cd-86b33ab273bg",
            "2cd2c43b-a90a-45c1-a8cd--6b33ab273b5",
            "ééééééééé-ééé-ééé-ééé-",
        ] {
            assert!(bad.parse::<HostId>().is_err(), "{bad}");
        }
        assert_eq!(HostId::from_random([0xff; 16]).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn identity_is_derived_as_nvme_cli_does() {
        let nqn = format!("{UUID_PREFIX}{UUID}");
        let both = HostIdentity::derive(Some(&format!("{nqn}\n")), None, [1; 16]).unwrap();
        assert_eq!(both.id.to_string(), UUID);
        let other = HostIdentity::derive(None, Some(&format!("{UUID}\n")), [1; 16]).unwrap();
        assert_eq!(other, both);
        let none = HostIdentity::derive(Some(" \n"), None, [1; 16]).unwrap();
        assert_eq!(none.nqn.uuid(), Some(none.id));
        let plain = HostIdentity::derive(Some("host1"), None, [2; 16]).unwrap();
        assert_eq!(plain.id, HostId::from_random([2; 16]));
        assert!(HostIdentity::derive(Some("a b"), None, [0; 16]).is_err());
        assert!(HostIdentity::derive(None, Some("zz"), [0; 16]).is_err());
    }

    #[test]
    fn fields() {
        let n = Nqn::new("nqn.2024-01.org.example:a").unwrap();
        assert_eq!(Nqn::from_field(&n.to_field(), "x"), Ok(n));
        assert!(Nqn::from_field(&[0; 256], "x").is_err());
        assert!(Nqn::from_field(&[b'a'; 256], "x").is_err());
        assert!(Nqn::from_field(&[0xff; 256], "x").is_err());
        let mut long = [0u8; 256];
        long[..224].fill(b'a');
        assert!(Nqn::from_field(&long, "x").is_err());
    }
}
