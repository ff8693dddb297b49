//! Discovery: which targets a portal knows, in a discovery session (RFC 7143 sections 4.3 and 13.3, appendix C).
//!
//! **Blocks**: for control threads, never for a reactor. Everything is bounded: the time of each portal, the length of its answer, how
//! many targets and portals are kept of it, and how often one portal may send us to another.

mod pipe;

use crate::config::{Portal, TargetConfig};
use crate::login::{DiscoveredTarget, LoginError, PortalAddress, SendTargets, SendTargetsStep, Which};
use crate::pdu::{InitiatorSn, Isid, Itt, Pdu};
use pipe::Pipe;
use polypath_block::DiskUri;
use rand::Rng as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Most octets of an answer: some thousand targets.
const MOST_OCTETS: usize = 256 << 10;
/// Most targets that are kept of one portal.
pub const MOST_TARGETS: usize = 1024;
/// Most portals that are kept of one target.
pub const MOST_PORTALS: usize = 32;
/// How often one portal may send us to another (Status-Class 1).
const MOST_HOPS: usize = 4;

/// Discovery did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("discovery at {portal}: {reason}")]
pub struct DiscoverError {
    /// The portal that was asked.
    pub portal: Portal,
    /// What went wrong.
    pub reason: String,
}

/// How a portal is asked: what an `iscsi://` URI says, whose target and logical unit do not matter.
///
/// # Errors
/// As [`TargetConfig::from_uri`].
pub fn discovery_config(uri: &DiskUri) -> Result<TargetConfig, polypath_block::UriError> {
    TargetConfig::from_uri(uri).map(|(config, _)| config)
}

/// All targets that the portal of `config` shows to this initiator, each with its portals and their portal group tags; the target in `config`
/// does not matter. A target without portals in the answer is at the portal that was asked (appendix C), and so is a portal whose
/// address is none that could be dialled (`0.0.0.0`, `[::]`). A portal that says that it moved is followed.
///
/// **Blocks** for at most four times `connect_timeout` for each address and each move.
///
/// # Errors
/// [`DiscoverError`] when no address of the portal gives the list.
pub fn discover(config: &TargetConfig) -> Result<Vec<DiscoveredTarget>, DiscoverError> {
    let mut portal = config.portal.clone();
    for _ in 0..=MOST_HOPS {
        match ask(config, &portal) {
            Ok(targets) => return Ok(tidy(targets, &portal)),
            Err(Fault { moved_to: Some(to), reason }) => {
                tracing::info!(%portal, %to, reason, "a discovery portal is elsewhere");
                portal = to;
            }
            Err(Fault { reason, .. }) => return Err(DiscoverError { portal, reason }),
        }
    }
    let reason = format!("portals sent us on more than {MOST_HOPS} times");
    Err(DiscoverError { portal: config.portal.clone(), reason })
}

/// Why one portal did not answer.
struct Fault {
    moved_to: Option<Portal>,
    reason: String,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Fault { moved_to: None, reason }
    }
}

impl From<LoginError> for Fault {
    fn from(error: LoginError) -> Self {
        let moved_to = match &error {
            LoginError::Moved { to, .. } => to.first().map(|to| Portal { host: to.host.clone(), port: to.port }),
            _ => None,
        };
        Fault { moved_to, reason: error.to_string() }
    }
}

/// Asks every address of `portal` until one gives the list.
fn ask(config: &TargetConfig, portal: &Portal) -> Result<Vec<DiscoveredTarget>, Fault> {
    let addresses = polypath_net::resolve(&portal.host, portal.port)
        .map_err(|e| Fault::from(format!("the name cannot be resolved: {e}")))?;
    let mut fault = Fault::from("no address".to_owned());
    for address in addresses {
        let until = Instant::now() + config.connect_timeout * 4;
        let listed = Pipe::dial(&*config.dialer, address, until).map_err(Fault::from);
        match listed.and_then(|pipe| list(config, pipe)) {
            Ok(targets) => return Ok(targets),
            Err(moved @ Fault { moved_to: Some(_), .. }) => return Err(moved),
            Err(why) => fault = Fault { reason: format!("{address}: {}", why.reason), ..why },
        }
    }
    Err(fault)
}

/// Logs in to a discovery session and asks for all targets.
fn list(config: &TargetConfig, mut pipe: Pipe) -> Result<Vec<DiscoveredTarget>, Fault> {
    // A discovery session ends nothing of another one by its identity (section 6.3.5 speaks of one target).
    let isid = Isid::random(rand::rng().next_u32() & 0x00ff_ffff, 0);
    let mut login = config.login(isid)?;
    login.target_name = None;
    let agreed = pipe.log_in(login)?;
    let tag = Itt::new(1).ok_or_else(|| "a tag".to_owned())?;
    let mut exchange = SendTargets::new(tag, MOST_OCTETS);
    let mut sn = InitiatorSn { cmd_sn: agreed.cmd_sn, exp_stat_sn: agreed.stat_sn };
    let mut next = exchange.start(&Which::All, sn);
    loop {
        pipe.send(Pdu::TextRequest(next.pdu), &next.text, &agreed.transmit())?;
        let (response, data) = loop {
            match pipe.receive(&agreed.receive())? {
                (Pdu::TextResponse(response), data) => break (response, data),
                // Pings and news: the session is over before they would matter.
                (Pdu::NopIn(_) | Pdu::AsyncMessage(_), _) => {}
                (other, _) => return Err(format!("it sent {} in answer to SendTargets", other.opcode()).into()),
            }
        };
        sn = InitiatorSn { cmd_sn: sn.cmd_sn.next(), exp_stat_sn: response.sn.stat_sn.next() };
        match exchange.handle(&response, &data, sn)? {
            SendTargetsStep::Send(message) => next = message,
            SendTargetsStep::Done(targets) => return Ok(targets),
        }
    }
}

/// What a portal listed, as something that can be dialled, and not more of it than is sensible.
fn tidy(mut targets: Vec<DiscoveredTarget>, asked: &Portal) -> Vec<DiscoveredTarget> {
    if targets.len() > MOST_TARGETS {
        tracing::warn!(portal = %asked, listed = targets.len(), "only the first {MOST_TARGETS} targets are taken");
        targets.truncate(MOST_TARGETS);
    }
    for target in &mut targets {
        let listed = std::mem::take(&mut target.portals);
        if listed.is_empty() {
            target.portals.push(PortalAddress { host: asked.host.clone(), port: asked.port, group: None });
        }
        if listed.len() > MOST_PORTALS {
            tracing::warn!(portal = %asked, target = %target.name, listed = listed.len(), "only the first {MOST_PORTALS} portals are taken");
        }
        for mut portal in listed.into_iter().take(MOST_PORTALS) {
            if portal.host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
                tracing::warn!(
                    portal = %asked, target = %target.name, listed = %portal,
                    "a target lists a portal at no address; the address that was asked is taken in its place"
                );
                portal.host.clone_from(&asked.host);
            }
            if !target.portals.contains(&portal) {
                target.portals.push(portal);
            }
        }
    }
    targets
}

/// How long [`discover`] may take in all.
pub fn discover_limit(config: &TargetConfig) -> Duration {
    config.connect_timeout * 4 * (MOST_HOPS as u32 + 1)
}

#[cfg(test)]
mod tests;
