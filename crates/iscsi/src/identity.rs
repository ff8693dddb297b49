//! Who we are to every target: the initiator's name, and the identity of each session.
//!
//! A session's identity (ISID) is stable: the same path of the same process on the same machine has the same one after a restart, so that its
//! login ends the session before it, and with it whatever that one had in flight. Two processes, or two paths, never have the same one at
//! a time, or they would end each other's sessions: each path of a process holds a number for as long as it lives, by a name in
//! the kernel that nobody else in the same network namespace can have meanwhile.

use crate::config::TargetConfig;
use crate::login::Name;
use crate::pdu::Isid;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Processes or paths that have the same name at a time; more have an identity that is not stable.
const INSTANCES: u32 = 64;
/// Identities that are tried for one of those.
const MOST_TRIES: u32 = 1024;
/// The session of the control poller, among those of a path.
const CONTROL: u16 = 0xffff;

/// The initiator name of this machine: what `/etc/iscsi/initiatorname.iscsi` says, where open-iscsi keeps it; otherwise one that is made of
/// the machine's id and stays the same.
pub fn initiator_name() -> Name {
    static NAME: OnceLock<Name> = OnceLock::new();
    NAME.get_or_init(|| {
        let text = std::fs::read_to_string("/etc/iscsi/initiatorname.iscsi").unwrap_or_default();
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix("InitiatorName="));
        match line.and_then(|name| Name::new(name.trim()).ok()) {
            Some(name) => name,
            None => {
                let seed = ["/etc/machine-id", "/etc/hostname"]
                    .into_iter()
                    .find_map(|path| std::fs::read_to_string(path).ok().filter(|text| !text.trim().is_empty()));
                let seed = seed.unwrap_or_else(|| std::process::id().to_string());
                // The machine id itself must not leave the machine (machine-id(5)); its digest may.
                let digest = hash(&[seed.trim(), "initiator"]) & 0xffff_ffff_ffff;
                let name = Name::new(&format!("iqn.2026-01.org.polypath:{digest:012x}"));
                name.unwrap_or_else(|bad| unreachable!("{bad}"))
            }
        }
    })
    .clone()
}

/// The identities of the sessions of one path.
#[derive(Debug)]
pub(crate) struct Sessions {
    base: u32,
    /// Numbers of sessions that carry I/O: taken or not.
    taken: Mutex<Vec<bool>>,
    /// Holds the name.
    _held: Option<UnixDatagram>,
}

/// The number of one session among those of its path, for as long as it lives.
#[derive(Debug)]
pub(crate) struct SessionNumber {
    sessions: Arc<Sessions>,
    number: u16,
}

impl SessionNumber {
    /// Of the control session.
    pub(crate) fn control(sessions: &Arc<Sessions>) -> Self {
        SessionNumber { sessions: sessions.clone(), number: CONTROL }
    }

    /// The least that is free; `None` when all are taken.
    pub(crate) fn take(sessions: &Arc<Sessions>) -> Option<Self> {
        let mut taken = lock(&sessions.taken);
        let at = taken.iter().position(|taken| !taken)?;
        taken[at] = true;
        Some(SessionNumber { sessions: sessions.clone(), number: at as u16 })
    }

    /// For logs.
    pub(crate) fn get(&self) -> u16 {
        self.number
    }

    /// The identity of its session.
    pub(crate) fn isid(&self) -> Isid {
        self.sessions.isid(self.number)
    }
}

impl Drop for SessionNumber {
    fn drop(&mut self) {
        if let Some(taken) = lock(&self.sessions.taken).get_mut(usize::from(self.number)) {
            *taken = false;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// Of the path that `config` describes.
    pub(crate) fn of(config: &TargetConfig) -> Sessions {
        let portal = config.portal.to_string();
        let made = |base: u32, held| {
            let taken = Mutex::new(vec![false; usize::from(config.queues)]);
            Sessions { base, taken, _held: held }
        };
        if let Some(number) = config.identity {
            return made(number, None);
        }
        let name = hash(&[config.initiator.as_str(), config.target.as_str(), &portal]);
        // Those that log in by one name at one target must differ in what the ISID carries, by whatever portals they do.
        let peers = hash(&[config.initiator.as_str(), config.target.as_str()]);
        let process = std::process::id().to_string();
        for attempt in 0..INSTANCES + MOST_TRIES {
            let stable = attempt < INSTANCES;
            let base = if stable {
                base_of(name, &attempt.to_string())
            } else {
                base_of(name, &format!("{process} {attempt}"))
            };
            match hold(peers, base) {
                Ok(held) => {
                    if !stable {
                        tracing::warn!(path = %config.name, "more than {INSTANCES} users of one path: the identity of its sessions is not stable");
                    }
                    return made(base, Some(held));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    tracing::warn!(path = %config.name, %error, "the identity of the sessions is not kept from others on this machine");
                    return made(base, None);
                }
            }
        }
        tracing::error!(path = %config.name, "no identity is free; sessions of other users of this path will be ended");
        made(base_of(name, &process), None)
    }

    /// The identity of the session with this number.
    fn isid(&self, session: u16) -> Isid {
        Isid::random(self.base & ISID_BITS, session)
    }
}

/// What an ISID carries of a number, beside that of the session (RFC 7143 section 11.12.5, of the random kind).
const ISID_BITS: u32 = 0x00ff_ffff;

/// What the identities of one user of the path `name` are made of, as far as an ISID carries it.
fn base_of(name: u64, user: &str) -> u32 {
    hash(&[&format!("{name:x}"), user]) as u32 & ISID_BITS
}

/// Holds the identities of `base` between these two iSCSI names, for as long as the socket is open, against everybody in this network namespace.
fn hold(peers: u64, base: u32) -> std::io::Result<UnixDatagram> {
    let address = SocketAddr::from_abstract_name(format!("polypath-iscsi-{peers:016x}-{base:06x}"))?;
    UnixDatagram::bind_addr(&address)
}

fn hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        hash ^= hash >> 29;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_comes_back_has_the_sessions_it_had_and_one_beside_it_has_others() {
        let config = TargetConfig::new("identity.test", 3260, Name::new("iqn.2026-01.org.example:identity").unwrap());
        let first = Sessions::of(&config);
        let (isid, beside) = (first.isid(3), Sessions::of(&config).isid(3));
        assert_ne!(isid, beside, "a login of the one would end the session of the other");
        assert_ne!(isid, first.isid(4));
        drop(first);
        assert_eq!(Sessions::of(&config).isid(3), isid, "a restart");
        let mut other = config.clone();
        other.portal.port = 3261;
        assert_ne!(Sessions::of(&other).isid(3), isid, "another path to the same portal group");
        other.identity = Some(7);
        let (one, two) = (Sessions::of(&other), Sessions::of(&other));
        assert_eq!((one.isid(3), one.isid(3).0[1..4].to_vec()), (two.isid(3), vec![0, 0, 7]), "whoever says so knows");
        assert_eq!(isid.0[0] >> 6, 2, "of the random kind");
    }

    /// An ISID has 24 bits to tell two paths apart, which is not enough to leave it to chance.
    #[test]
    fn two_paths_to_one_target_have_two_identities_even_where_their_numbers_fall_together() {
        // Of this run alone: what is held is held against all of the machine.
        let target = format!("iqn.2026-01.org.example:together-{}", std::process::id());
        let mut config = TargetConfig::new("identity.test", 0, Name::new(&target).unwrap());
        let mut seen = std::collections::HashMap::new();
        let first_of = |config: &TargetConfig| {
            let name = hash(&[config.initiator.as_str(), &target, &config.portal.to_string()]);
            hash(&[&format!("{name:x}"), "0"]) as u32 & 0x00ff_ffff
        };
        let pair = (0..=u16::MAX).find_map(|port| {
            config.portal.port = port;
            seen.insert(first_of(&config), port).map(|before| (before, port))
        });
        let (before, port) = pair.expect("some of so many ports");
        let mut other = config.clone();
        (config.portal.port, other.portal.port) = (before, port);
        let (one, two) = (Sessions::of(&config), Sessions::of(&other));
        assert_ne!(one.isid(3), two.isid(3), "a login of the one would end the session of the other");
        let first = one.isid(3);
        drop((one, two));
        assert_eq!(Sessions::of(&other).isid(3), first, "it would be the same");
    }

    #[test]
    fn users_beyond_those_that_are_stable_have_identities_of_their_own() {
        let target = format!("iqn.2026-01.org.example:many-{}", std::process::id());
        let config = TargetConfig::new("identity.test", 3260, Name::new(&target).unwrap());
        let all: Vec<_> = (0..INSTANCES + 20).map(|_| Sessions::of(&config)).collect();
        let isids: std::collections::HashSet<_> = all.iter().map(|sessions| sessions.isid(0).0).collect();
        assert_eq!(isids.len(), all.len());
    }

    #[test]
    fn the_name_of_the_machine_is_one() {
        assert_eq!(initiator_name(), initiator_name());
    }
}
