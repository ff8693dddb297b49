//! CHAP, as iSCSI uses it (RFC 7143 section 12.1.3, RFC 1994): one side proves to know a secret by hashing it with a challenge of the
//! other.
//!
//! | step | from | keys |
//! | --- | --- | --- |
//! | 1 | initiator | `CHAP_A`: algorithms, best first |
//! | 2 | target | `CHAP_A`, `CHAP_I`, `CHAP_C`: the algorithm, an identifier, a challenge |
//! | 3 | initiator | `CHAP_N`, `CHAP_R`: its name and response; `CHAP_I`, `CHAP_C` when the target is to prove itself, too |
//! | 4 | target | nothing, or `CHAP_N`, `CHAP_R`: its name and response |
//!
//! Identifiers and challenges come from the caller ([`Challenge`]), who has a source of random octets that nobody can foresee.

mod initiator;
mod secret;
mod target;

pub use initiator::ChapInitiator;
pub use secret::Secret;
pub use target::ChapTarget;

use crate::login::LoginError;
use crate::login::value::{binary, number};
use sha3::Digest;
use subtle::ConstantTimeEq;

/// Most octets of a challenge, RFC 7143 section 12.1.3.
pub const MAX_CHALLENGE_LEN: usize = 1024;
/// Fewest octets of a challenge that we send: as many bits as the shortest of the hashes has.
pub const MIN_CHALLENGE_LEN: usize = 16;
/// Octets of a challenge that are enough for every algorithm.
pub const GOOD_CHALLENGE_LEN: usize = 32;
/// Fewest bits of a secret that is used without IPsec, RFC 7143 section 12.1.3.
pub const MIN_SECRET_BITS: usize = 96;

/// Hash algorithm (`CHAP_A`), numbered by IANA's "PPP Authentication Algorithms" (RFC 7143 section 12.1.3, RFC 8697's companions for
/// 7 and 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// 5, which every implementation has.
    Md5 = 5,
    /// 6.
    Sha1 = 6,
    /// 7.
    Sha256 = 7,
    /// 8.
    Sha3_256 = 8,
}

impl Algorithm {
    /// Every algorithm, in the order in which they are offered unless the configuration says otherwise.
    ///
    /// SHA-256 would come second by strength. It is last because two widely used targets, IET and tgt (seen with 1.0.85), compute
    /// SHA-1 for number 7: they take the first number of the list that they know, and the login would fail. A target that has the
    /// real SHA-256 has SHA3-256, too.
    pub const PREFERENCE: [Algorithm; 4] = [Algorithm::Sha3_256, Algorithm::Sha1, Algorithm::Md5, Algorithm::Sha256];

    /// The algorithm with this number.
    pub fn from_code(code: u32) -> Option<Self> {
        Algorithm::PREFERENCE.into_iter().find(|algorithm| *algorithm as u32 == code)
    }

    /// Octets of a response.
    pub const fn response_len(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Sha3_256 => 32,
        }
    }

    /// The response of whoever knows `secret` to a challenge: the hash of identifier, secret and challenge (RFC 1994 section 4.1).
    pub fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        let parts = [&[identifier], secret.octets(), challenge];
        match self {
            Algorithm::Md5 => hash::<md5::Md5>(parts),
            Algorithm::Sha1 => hash::<sha1::Sha1>(parts),
            Algorithm::Sha256 => hash::<sha2::Sha256>(parts),
            Algorithm::Sha3_256 => hash::<sha3::Sha3_256>(parts),
        }
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Sha1 => "SHA-1",
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha3_256 => "SHA3-256",
        })
    }
}

/// A name (`CHAP_N`) and the secret that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name, 1 to 255 octets.
    pub name: String,
    /// Secret.
    pub secret: Secret,
}

/// What the caller's random source gave for one login: used once and never again.
#[derive(Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `CHAP_I`.
    pub identifier: u8,
    /// `CHAP_C`, at least [`MIN_CHALLENGE_LEN`] octets; [`GOOD_CHALLENGE_LEN`] are good for all algorithms.
    pub octets: Vec<u8>,
}

impl std::fmt::Debug for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Challenge {{ identifier: {}, {} octets }}", self.identifier, self.octets.len())
    }
}

impl Challenge {
    fn check(&self) -> Result<(), ChapError> {
        let len = self.octets.len();
        if (MIN_CHALLENGE_LEN..=MAX_CHALLENGE_LEN).contains(&len) { Ok(()) } else { Err(ChapError::OwnChallenge(len)) }
    }

    /// The peer's `CHAP_I` and `CHAP_C`.
    fn read(pairs: &[(&str, &str)]) -> Result<Self, LoginError> {
        let identifier = required(pairs, "CHAP_I")?;
        let octets = required(pairs, "CHAP_C")?;
        Ok(Challenge {
            identifier: number(identifier)
                .and_then(|n| u8::try_from(n).ok())
                .ok_or_else(|| bad_value("CHAP_I", identifier, "a number from 0 to 255"))?,
            octets: binary(octets, MAX_CHALLENGE_LEN)
                .filter(|octets| !octets.is_empty())
                .ok_or_else(|| bad_value("CHAP_C", octets, "1 to 1024 octets after 0x or 0b"))?,
        })
    }
}

/// Something worth a line in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A secret that is too short to withstand a search by someone who overheard a login (RFC 7143 section 12.1.3).
    ShortSecret {
        /// Whose.
        name: String,
        /// How many bits it has.
        bits: usize,
    },
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Note::ShortSecret { name, bits } => {
                write!(
                    f,
                    "the CHAP secret of {name:?} has {bits} bits, and fewer than {MIN_SECRET_BITS} can be found out"
                )
            }
        }
    }
}

/// Why authentication failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChapError {
    /// The same secret for both directions: whoever hears one side's response could give it as the other's.
    #[error("the secrets of {0:?} and {1:?} are the same; each direction needs its own")]
    SameSecret(String, String),
    /// A name that cannot be sent.
    #[error("the name {0:?} is empty or longer than 255 bytes")]
    BadName(String),
    /// A challenge from our own random source that is too short or too long.
    #[error("a challenge of {0} bytes, expected {MIN_CHALLENGE_LEN} to {MAX_CHALLENGE_LEN}")]
    OwnChallenge(usize),
    /// No algorithm to offer or to accept.
    #[error("no algorithm is allowed")]
    NoneAllowed,
    /// None of the algorithms that the initiator offers is accepted.
    #[error("none of the algorithms {0} is accepted here")]
    NoCommonAlgorithm(String),
    /// An algorithm that was not offered.
    #[error("the target chose algorithm {0}, which was not offered")]
    AlgorithmNotOffered(String),
    /// Our own challenge came back: somebody wants us to compute the response for him.
    #[error("the peer sent our own challenge back")]
    Reflected,
    /// No user has this name.
    #[error("unknown name or wrong response")]
    WrongResponse,
    /// The target has another name than we were told.
    #[error("the target calls itself {found:?}, expected {expected:?}")]
    WrongTargetName {
        /// What we were told.
        expected: String,
        /// What it says.
        found: String,
    },
    /// The target did not prove that it knows its secret.
    #[error("the target gave a wrong response: it does not know its secret")]
    WrongTargetResponse,
    /// The initiator wants a proof from us and we have no secret for it.
    #[error("the initiator asks for a response of ours, for which no secret is configured")]
    NoTargetSecret,
}

/// Whether both are the same, found out in a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

fn find<'a>(pairs: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}

fn required<'a>(pairs: &[(&str, &'a str)], key: &'static str) -> Result<&'a str, LoginError> {
    find(pairs, key).ok_or(LoginError::Missing(key))
}

/// Only these keys may be there.
fn only(pairs: &[(&str, &str)], keys: &[&str]) -> Result<(), LoginError> {
    match pairs.iter().find(|(key, _)| !keys.contains(key)) {
        None => Ok(()),
        Some((key, _)) => Err(LoginError::Misplaced { key: (*key).into(), stage: crate::pdu::Stage::Security }),
    }
}

fn bad_value(key: &str, value: &str, expected: &str) -> LoginError {
    let value = value.chars().take(80).collect();
    LoginError::BadValue { key: key.into(), value, expected: expected.into() }
}

/// The response (`CHAP_R`), of any length that a hash has.
fn read_response(pairs: &[(&str, &str)]) -> Result<Vec<u8>, LoginError> {
    let value = required(pairs, "CHAP_R")?;
    binary(value, MAX_CHALLENGE_LEN).ok_or_else(|| bad_value("CHAP_R", value, "octets after 0x or 0b"))
}

/// Notes about these secrets, and errors about these names.
fn check_all(all: &[&Credentials]) -> Result<Vec<Note>, ChapError> {
    for one in all {
        if !(1..=255).contains(&one.name.len()) || one.name.chars().any(char::is_control) {
            return Err(ChapError::BadName(one.name.clone()));
        }
    }
    let short = |one: &&&Credentials| one.secret.bits() < MIN_SECRET_BITS;
    let note = |one: &&Credentials| Note::ShortSecret { name: one.name.clone(), bits: one.secret.bits() };
    Ok(all.iter().filter(short).map(note).collect())
}

#[cfg(test)]
mod tests;
