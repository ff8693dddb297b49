//! iSCSI as a target speaks it (RFC 7143): sessions of one connection at error recovery level 0, without socket and clock. Bytes in,
//! bytes out, time an argument.
//!
//! [`Iscsi`] is what all connections share: target names and sessions. [`Conn`] is one connection: its login (`login.rs`), commands and
//! their data (`order.rs`), task management (`manage.rs`), what leaves (`send.rs`); `scsi/` carries commands out.

mod beneath;
mod conn;
mod login;
mod manage;
mod meddle;
mod order;
mod scsi;
mod send;
#[cfg(test)]
mod tests;

pub(crate) use conn::Conn;

use crate::config::{ChapConfig, ConfigError, Protocol, SecretText};
use crate::faults::Rule;
use crate::media::Party;
use crate::shared::{Shared, lock};
use crate::store::Change;
use polypath_iscsi::chap::{Challenge, ChapTarget, Credentials, GOOD_CHALLENGE_LEN, Secret};
use polypath_iscsi::login::{DiscoveredTarget, LoginError, Name, PortalAddress, Which};
use polypath_iscsi::pdu::{Isid, LoginStatus};
use polypath_iscsi::read_secret;
use rand::Rng as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// Unit attentions that one session has to hear of at most; the oldest are forgotten.
const ATTENTIONS: usize = 256;
/// Initiator ports that are remembered, to tell one that comes back from one that is new.
const KNOWN: usize = 4096;

/// Unit attention conditions, ASC and ASCQ (SPC-4 annex F).
pub(crate) mod attention {
    pub(crate) const POWER_ON_OR_RESET: u16 = 0x2900;
    pub(crate) const POWER_ON: u16 = 0x2901;
    pub(crate) const DEVICE_RESET: u16 = 0x2903;
    pub(crate) const NEXUS_LOSS: u16 = 0x2907;
    pub(crate) const RESERVATIONS_PREEMPTED: u16 = 0x2a03;
    pub(crate) const RESERVATIONS_RELEASED: u16 = 0x2a04;
    pub(crate) const REGISTRATIONS_PREEMPTED: u16 = 0x2a05;
    pub(crate) const ACCESS_STATE: u16 = 0x2a06;
    pub(crate) const CAPACITY: u16 = 0x2a09;
    pub(crate) const COMMANDS_CLEARED: u16 = 0x2f00;
    pub(crate) const INQUIRY: u16 = 0x3f03;
    pub(crate) const LUNS: u16 = 0x3f0e;
}

/// What a connection needs from around it for one pass.
pub(crate) struct Env<'a> {
    pub(crate) now_us: u64,
    pub(crate) iscsi: &'a Iscsi,
    pub(crate) rules: &'a [Arc<Rule>],
}

/// A session: an initiator port's use of a target port.
pub(crate) struct Session {
    pub(crate) tsih: u16,
    /// Index of the disks that it is about.
    pub(crate) store: usize,
    pub(crate) initiator: Name,
    pub(crate) isid: Isid,
    pub(crate) listener: usize,
    /// Initiator port and target port: the nexus.
    pub(crate) party: Arc<Party>,
    /// Thread and connection.
    pub(crate) home: (usize, u64),
    /// It is over: nothing of it is executed any more.
    pub(crate) gone: Arc<AtomicBool>,
    /// Unit and condition, oldest first.
    attentions: Mutex<Vec<(u32, u16)>>,
    /// There is one.
    attention: AtomicBool,
}

impl Session {
    /// Notes something that the initiator is to hear of; told once, however often it happens before.
    pub(crate) fn attend(&self, unit: u32, code: u16) {
        let mut list = lock(&self.attentions);
        if !list.contains(&(unit, code)) {
            if list.len() >= ATTENTIONS {
                list.remove(0);
            }
            list.push((unit, code));
        }
        self.attention.store(true, Ordering::Release);
    }

    /// Takes the oldest condition of this unit.
    #[inline]
    pub(crate) fn take_attention(&self, unit: u32) -> Option<u16> {
        if !self.attention.load(Ordering::Acquire) {
            return None;
        }
        let mut list = lock(&self.attentions);
        let at = list.iter().position(|(u, _)| *u == unit)?;
        let (_, code) = list.remove(at);
        self.attention.store(!list.is_empty(), Ordering::Release);
        Some(code)
    }
}

/// What all connections of iSCSI initiators share.
pub(crate) struct Iscsi {
    pub(crate) shared: Arc<Shared>,
    /// Name of each store that is a target.
    targets: Vec<Option<Name>>,
    chap: Option<(Credentials, Option<Credentials>)>,
    sessions: Mutex<BTreeMap<u16, Arc<Session>>>,
    next_tsih: AtomicU16,
    /// Who was here since the power came.
    known: Mutex<Vec<(usize, Arc<Party>)>>,
    /// Somebody was here who is not in `known`: anybody may have been.
    forgot: AtomicBool,
    /// It has gone and come while there were initiators to hear of it.
    lost_power: AtomicBool,
}

impl Iscsi {
    /// Checks names and reads secrets.
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Iscsi, ConfigError> {
        let name =
            |iqn: &String| Name::new(iqn).map_err(|e| ConfigError::new(format!("target \"{iqn}\""), e.to_string()));
        let targets: Result<Vec<Option<Name>>, _> =
            shared.stores.iter().map(|s| s.iqn.as_ref().map(name).transpose()).collect();
        let targets = targets?;
        for (i, name) in targets.iter().enumerate() {
            if name.is_some() && targets[..i].contains(name) {
                return Err(ConfigError::new("targets", "there are two of the same name"));
            }
        }
        let chap = shared.config.iscsi.chap.as_ref().map(credentials).transpose()?;
        Ok(Iscsi {
            targets,
            chap,
            sessions: Mutex::default(),
            next_tsih: AtomicU16::new(0),
            known: Mutex::default(),
            forgot: AtomicBool::new(false),
            lost_power: AtomicBool::new(false),
            shared,
        })
    }

    /// The store that is the target of this name.
    fn target(&self, name: &Name) -> Option<usize> {
        self.targets.iter().position(|target| target.as_ref() == Some(name))
    }

    /// An unused TSIH.
    fn new_tsih(&self) -> Option<u16> {
        let sessions = lock(&self.sessions);
        (0..u16::MAX).find_map(|_| {
            let id = self.next_tsih.fetch_add(1, Ordering::Relaxed) % (u16::MAX - 1) + 1;
            (!sessions.contains_key(&id)).then_some(id)
        })
    }

    /// What an initiator has to prove.
    fn chap(&self) -> Result<Option<ChapTarget>, LoginError> {
        let Some((user, own)) = &self.chap else { return Ok(None) };
        let mut octets = vec![0; GOOD_CHALLENGE_LEN + 1];
        rand::rng().fill_bytes(&mut octets);
        let identifier = octets.pop().unwrap_or(0);
        let chap = ChapTarget::new(vec![user.clone()], own.clone(), Challenge { identifier, octets });
        chap.map(Some).map_err(|_| LoginError::Refused(LoginStatus::TargetError))
    }

    /// Takes a session in. The one before it of the same nexus, if there is one, is over, but may be executing something still; so may one
    /// whose connection has ended before, which is what the last part of the answer says: whether this nexus may have been here before.
    fn open(&self, session: Session) -> (Arc<Session>, Option<Arc<Session>>, bool) {
        let session = Arc::new(session);
        let mut sessions = lock(&self.sessions);
        let same = |s: &&Arc<Session>| s.store == session.store && s.party == session.party;
        let before = sessions.values().find(same).cloned();
        if let Some(before) = &before {
            before.gone.store(true, Ordering::Release);
            sessions.remove(&before.tsih);
            tracing::info!(tsih = before.tsih, initiator = %before.initiator, "session reinstated");
        }
        sessions.insert(session.tsih, session.clone());
        drop(sessions);
        let mut known = lock(&self.known);
        let nexus = (session.store, session.party.clone());
        let is_known = known.contains(&nexus);
        if !is_known {
            if known.len() >= KNOWN {
                known.clear();
                self.forgot.store(true, Ordering::Release);
            }
            known.push(nexus);
        }
        drop(known);
        let forgot = self.forgot.load(Ordering::Acquire);
        let code = match (is_known, self.lost_power.load(Ordering::Acquire)) {
            (true, _) => attention::NEXUS_LOSS,
            (false, true) => attention::POWER_ON,
            // It may have been here, and nothing is lost: who is told of a reset takes what was in caches for lost.
            (false, false) if forgot => attention::NEXUS_LOSS,
            // Nobody has anything to lose yet, and this is the word that every client knows.
            (false, false) => attention::POWER_ON_OR_RESET,
        };
        if let Some(store) = self.shared.stores.get(session.store) {
            store.disks().iter().for_each(|disk| session.attend(disk.lun, code));
        }
        self.shared.counters.sessions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(tsih = session.tsih, initiator = %session.initiator, isid = %session.isid, listener = session.listener, "session begun");
        (session, before, is_known || forgot)
    }

    /// A session is over.
    fn forget(&self, session: &Session, why: &str) {
        session.gone.store(true, Ordering::Release);
        if lock(&self.sessions).remove(&session.tsih).is_some() {
            tracing::info!(tsih = session.tsih, initiator = %session.initiator, why, "session ended");
        }
    }

    /// Sessions with these disks.
    fn sessions_of(&self, store: usize) -> Vec<Arc<Session>> {
        lock(&self.sessions).values().filter(|s| s.store == store).cloned().collect()
    }

    /// Has every session of these disks but `except` hear of something about a unit, or about all of them.
    fn attend(&self, store: usize, unit: Option<u32>, except: Option<u16>, code: u16) {
        let disks = self.shared.stores.get(store).map(|s| s.disks()).unwrap_or_default();
        for session in self.sessions_of(store).iter().filter(|s| Some(s.tsih) != except) {
            for disk in disks.iter().filter(|d| unit.is_none_or(|unit| unit == d.lun)) {
                session.attend(disk.lun, code);
            }
        }
    }

    /// Tells the initiators of store `index` what has changed.
    pub(crate) fn changed(&self, index: usize, change: Change) {
        let unit = |nsid: u32| {
            let store = self.shared.stores.get(index)?;
            store.all_disks().iter().find(|d| d.nsid == nsid).map(|d| d.lun)
        };
        match change {
            Change::Size(nsid) => self.attend(index, unit(nsid), None, attention::CAPACITY),
            Change::Identity(nsid) => self.attend(index, unit(nsid), None, attention::INQUIRY),
            Change::List(_) => self.attend(index, None, None, attention::LUNS),
            Change::Access(_) => self.attend(index, None, None, attention::ACCESS_STATE),
        }
    }

    /// Ends every session and forgets who was here.
    pub(crate) fn lose_power(&self) {
        let sessions: Vec<_> = lock(&self.sessions).values().cloned().collect();
        sessions.iter().for_each(|session| self.forget(session, "the power failed"));
        self.lost_power.store(true, Ordering::Release);
        self.forgot.store(true, Ordering::Release);
        lock(&self.known).clear();
        self.shared.wake_all();
    }

    /// Targets and portals, as discovery tells them to somebody who has found us at `local`.
    fn discover(&self, which: &Which, local: Option<SocketAddr>) -> Vec<DiscoveredTarget> {
        let open =
            self.shared.listeners.iter().filter(|l| l.protocol == Protocol::Iscsi && !l.closed.load(Ordering::Acquire));
        let portals: Vec<PortalAddress> = open
            .map(|l| {
                let ip = if l.address.ip().is_unspecified() {
                    local.map_or(l.address.ip(), |a| a.ip())
                } else {
                    l.address.ip()
                };
                PortalAddress { host: ip.to_string(), port: l.address.port(), group: Some(l.portal_group) }
            })
            .collect();
        let wanted = |name: &Name| match which {
            Which::All | Which::This => true,
            Which::Target(target) => target == name,
        };
        let names = self.targets.iter().flatten().filter(|name| wanted(name));
        names.map(|name| DiscoveredTarget { name: name.clone(), portals: portals.clone() }).collect()
    }

    /// Sessions, for `status`.
    pub(crate) fn status(&self) -> Vec<Value> {
        let sessions = lock(&self.sessions);
        let one = |s: &Arc<Session>| {
            json!({
                "tsih": s.tsih, "initiator": s.initiator.as_str(), "isid": s.isid.to_string(), "listener": s.listener,
                "portal_group": s.party.port, "target": self.targets.get(s.store).and_then(|t| t.as_ref()).map(Name::as_str),
                "conn": s.home.1, "attentions": lock(&s.attentions).len(),
            })
        };
        sessions.values().map(one).collect()
    }
}

/// The initiator's credentials and ours.
fn credentials(chap: &ChapConfig) -> Result<(Credentials, Option<Credentials>), ConfigError> {
    let user = credential("iscsi.chap", &chap.user, chap.secret.as_ref(), chap.secret_file.as_ref())?;
    let own = match &chap.own_user {
        Some(name) => {
            Some(credential("iscsi.chap (own)", name, chap.own_secret.as_ref(), chap.own_secret_file.as_ref())?)
        }
        None => None,
    };
    let challenge = Challenge { identifier: 0, octets: vec![0; GOOD_CHALLENGE_LEN] };
    let check = ChapTarget::new(vec![user.clone()], own.clone(), challenge);
    let check = check.map_err(|e| ConfigError::new("iscsi.chap", e.to_string()))?;
    check.notes().iter().for_each(|note| tracing::warn!("{note}"));
    Ok((user, own))
}

fn credential(
    part: &str,
    name: &str,
    secret: Option<&SecretText>,
    file: Option<&PathBuf>,
) -> Result<Credentials, ConfigError> {
    let secret = match (secret, file) {
        (Some(secret), None) => Secret::new(secret.as_bytes()),
        (None, Some(path)) => {
            let fail = |e: std::io::Error| ConfigError::new(part, format!("secret of {name}: {}: {e}", path.display()));
            read_secret(path).map_err(fail)?
        }
        (None, None) => return Err(ConfigError::new(part, format!("{name} has no secret"))),
        (Some(_), Some(_)) => return Err(ConfigError::new(part, format!("{name} has a secret and a file with one"))),
    };
    if secret.bits() == 0 {
        return Err(ConfigError::new(
            part,
            format!("the secret of {name} is empty; expected one that only the two of you know"),
        ));
    }
    Ok(Credentials { name: name.into(), secret })
}
