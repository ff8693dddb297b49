//! Why a login failed, for people and for the peer.

use super::address::PortalAddress;
use super::name::BadName;
use super::text::TextError;
use crate::chap::ChapError;
use crate::pdu::{LoginStatus, PduError, Stage};

/// Why a login failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The target said no, with these words (its Status-Class and Status-Detail).
    #[error("login refused: {0}")]
    Refused(LoginStatus),
    /// The target is elsewhere (Status-Class 1).
    #[error("the target moved to {}{}", list(.to), if *.permanent { " for good" } else { " for now" })]
    Moved {
        /// Where to, at least one.
        to: Vec<PortalAddress>,
        /// For good.
        permanent: bool,
    },
    /// A PDU that is not well-formed.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// A text that is not well-formed.
    #[error("text of the login: {0}")]
    Text(TextError),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Authentication failed on our side of it.
    #[error("CHAP: {0}")]
    Chap(#[from] ChapError),
    /// A key with a value that it cannot have.
    #[error("{key}={value} is not legal, expected {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// What was received.
        value: String,
        /// What would have been legal.
        expected: String,
    },
    /// An answer outside of what was offered.
    #[error("{key}={value} was answered, but {offered} was offered")]
    NotOffered {
        /// The key.
        key: String,
        /// What was answered.
        value: String,
        /// What was offered.
        offered: String,
    },
    /// An offer that the other side does not take.
    #[error("{key}={offered} was offered and answered with {answer}")]
    Unacceptable {
        /// The key.
        key: String,
        /// What was offered.
        offered: String,
        /// `Reject`, `Irrelevant` or `NotUnderstood`.
        answer: String,
    },
    /// A key that had to be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key that has no place here.
    #[error("{key} has no place in {stage}")]
    Misplaced {
        /// The key.
        key: String,
        /// The stage.
        stage: Stage,
    },
    /// A key that was settled before.
    #[error("{0} was settled before")]
    Again(String),
    /// The other side broke the rules of the login phase.
    #[error("{0}")]
    Protocol(&'static str),
    /// No version in common; ours is 0.
    #[error("iSCSI version {0} is not supported, only 0")]
    Version(u8),
    /// More exchanges than a login takes.
    #[error("the login did not end within {0} exchanges")]
    Endless(u32),
}

fn list(addresses: &[PortalAddress]) -> String {
    addresses.iter().map(PortalAddress::to_string).collect::<Vec<_>>().join(", ")
}

impl LoginError {
    /// What a target answers when it finds this.
    pub fn status(&self) -> LoginStatus {
        match self {
            LoginError::Refused(status) => *status,
            LoginError::Moved { permanent: false, .. } => LoginStatus::MovedTemporarily,
            LoginError::Moved { permanent: true, .. } => LoginStatus::MovedPermanently,
            LoginError::Chap(_) => LoginStatus::AuthenticationFailure,
            LoginError::Missing(_) => LoginStatus::MissingParameter,
            LoginError::Version(_) => LoginStatus::UnsupportedVersion,
            _ => LoginStatus::InitiatorError,
        }
    }

    /// Whether another try, later or elsewhere, may end differently without anything being changed on our side.
    pub fn may_pass(&self) -> bool {
        match self {
            LoginError::Moved { .. } => true,
            LoginError::Refused(status) => status.codes().0 == 3,
            _ => false,
        }
    }
}
