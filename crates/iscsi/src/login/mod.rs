//! The login phase, for either side (RFC 7143 sections 6 and 13): text keys, their negotiation, and the two state machines.
//!
//! [`InitiatorLogin`] and [`TargetLogin`] take a Login PDU with its data and say what to send next, or that the full feature phase has
//! begun ([`Negotiated`]), or why it will not ([`LoginError`]). They have no socket and no clock; whoever drives them bounds the time
//! that a login may take. [`SendTargets`] and [`TextServer`] are the two sides of discovery, which is no login but text, too.
//!
//! A text that does not fit one PDU goes on in the next (C bit); both sides put it together within [`text::MAX_LOGIN_TEXT_LEN`].

mod address;
mod discovery;
mod error;
mod initiator;
mod keys;
mod name;
mod negotiate;
mod offer;
mod target;
pub mod text;
pub mod value;

pub use address::{BadAddress, DEFAULT_PORT, PortalAddress};
pub use discovery::{DiscoveredTarget, SendTargets, SendTargetsStep, TextServer, Which};
pub use error::LoginError;
pub use initiator::{InitiatorConfig, InitiatorLogin, InitiatorStep};
pub use keys::{Key, Rule};
pub use name::{BadName, MAX_NAME_LEN, Name};
pub use offer::{Authenticated, DigestOffer, Negotiated, Offer, SessionType};
pub use target::{Admission, Gate, Identity, TargetConfig, TargetLogin, TargetStep};

use crate::pdu::{DEFAULT_MAX_RECV_DATA_LEN, Stage};
use negotiate::Negotiation;

/// Exchanges after which a login is given up: an ordinary one takes two to five.
pub const MAX_EXCHANGES: u32 = 64;

/// Most octets of text in one PDU of the login phase: whatever is declared counts only afterwards.
const MAX_PIECE: usize = DEFAULT_MAX_RECV_DATA_LEN as usize;

/// A PDU to send, and the text that is its data segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<P> {
    /// The PDU; its `data_len` is that of the text.
    pub pdu: P,
    /// Its data, at most 8192 octets during login.
    pub text: Vec<u8>,
}

/// Keys that either side may declare at any stage: taken out of what is negotiated.
const DECLARATIONS: [&str; 4] = ["InitiatorAlias", "TargetAlias", "TargetAddress", "TargetPortalGroupTag"];

/// The pairs without those of `keys`, which are given to `take`.
fn take_out<'a>(
    pairs: Vec<(&'a str, &'a str)>,
    keys: &[&str],
    mut take: impl FnMut(&'a str, &'a str) -> Result<(), LoginError>,
) -> Result<Vec<(&'a str, &'a str)>, LoginError> {
    let mut rest = Vec::new();
    for (key, value) in pairs {
        if keys.contains(&key) { take(key, value)? } else { rest.push((key, value)) }
    }
    Ok(rest)
}

/// Nothing may be left to say in this stage.
fn nothing_else(pairs: &[(&str, &str)], stage: Stage) -> Result<(), LoginError> {
    match pairs.first() {
        None => Ok(()),
        Some((key, _)) => Err(LoginError::Misplaced { key: (*key).into(), stage }),
    }
}

/// Puts what the operational keys came to into `n`.
fn settle(n: &mut Negotiated, keys: &Negotiation) {
    n.header_digest = keys.is_yes(Key::HeaderDigest);
    n.data_digest = keys.is_yes(Key::DataDigest);
    n.max_recv_data_len = keys.max_recv_data_len();
    n.max_send_data_len = keys.max_send_data_len();
    n.max_connections = keys.outcome16(Key::MaxConnections);
    n.initial_r2t = keys.is_yes(Key::InitialR2T);
    n.immediate_data = keys.is_yes(Key::ImmediateData);
    n.max_burst_len = keys.outcome(Key::MaxBurstLength);
    // a target may answer a MaxBurstLength below the FirstBurstLength that it leaves alone
    n.first_burst_len = keys.outcome(Key::FirstBurstLength).min(n.max_burst_len);
    n.max_outstanding_r2t = keys.outcome16(Key::MaxOutstandingR2T);
    n.time2wait_s = keys.outcome16(Key::DefaultTime2Wait);
    n.time2retain_s = keys.outcome16(Key::DefaultTime2Retain);
    n.data_pdu_in_order = keys.is_yes(Key::DataPDUInOrder);
    n.data_sequence_in_order = keys.is_yes(Key::DataSequenceInOrder);
    n.error_recovery_level = keys.outcome(Key::ErrorRecoveryLevel) as u8;
}

#[cfg(test)]
mod tests;
