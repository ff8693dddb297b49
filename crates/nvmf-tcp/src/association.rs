//! One association with a controller, from Connect to loss, and the values whose lives are bounded by it.

use crate::fence::AssociationFence;
use polypath_block::{Code, DeviceInfo, Host, Identity, Verdict};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Most namespaces of one controller that are looked at without being asked for.
pub(crate) const MOST_NAMESPACES: usize = 1024;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One namespace as it is seen now.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    pub(crate) info: Arc<DeviceInfo>,
    /// ANA group, 0 without ANA.
    pub(crate) ana_group: u32,
    /// Reservations that it does: bits of [`polypath_nvme::reservation::rescap`].
    pub(crate) rescap: u8,
    /// Why it cannot be used although it is there.
    pub(crate) trouble: Option<(Code, String)>,
}

/// One admin connection with everything that belongs to it, from Connect to loss. Never comes back: a reconnect makes a new one.
#[derive(Debug)]
pub(crate) struct Association {
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
    pub(crate) cntlid: u16,
    /// I/O queues granted.
    pub(crate) queues: u16,
    /// An I/O queue granted beyond them, for what the admin poller has to send.
    pub(crate) control_qid: Option<u16>,
    /// Commands an I/O queue holds, as the controller and the configuration allow.
    pub(crate) depth: u16,
    /// Data bytes an I/O capsule may carry.
    pub(crate) in_capsule: u32,
    pub(crate) fence: AssociationFence,
    namespaces: Mutex<BTreeMap<u32, Namespace>>,
    /// Active namespaces, those that nobody asked for included.
    listed: Mutex<Vec<u32>>,
    lost: AtomicBool,
    loss: Mutex<Option<(Code, String)>>,
}

/// One open socket of an association. While it lives the controller may hear from us over it; when it is dropped, which must be
/// after the socket itself, the fence is told the time.
pub(crate) struct OpenSocket {
    association: Arc<Association>,
    clock: Arc<dyn Host>,
}

impl OpenSocket {
    pub(crate) fn association(&self) -> &Arc<Association> {
        &self.association
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        // Not the time of the turn: that was read before the socket was closed, perhaps long before.
        self.association.fence.closed(self.clock.now());
    }
}

/// What an association is made from.
pub(crate) struct Shape {
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
    pub(crate) cntlid: u16,
    pub(crate) queues: u16,
    pub(crate) control_qid: Option<u16>,
    pub(crate) depth: u16,
    pub(crate) in_capsule: u32,
    pub(crate) fence: AssociationFence,
}

impl Association {
    pub(crate) fn new(shape: Shape) -> Self {
        let Shape { generation, address, cntlid, queues, control_qid, depth, in_capsule, fence } = shape;
        Association {
            generation,
            address,
            cntlid,
            queues,
            control_qid,
            depth,
            in_capsule,
            fence,
            namespaces: Mutex::default(),
            listed: Mutex::default(),
            lost: AtomicBool::new(false),
            loss: Mutex::default(),
        }
    }

    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Counts a socket that is about to be opened; `None` when the association is lost and none may be.
    pub(crate) fn open_socket(self: &Arc<Self>, clock: &Arc<dyn Host>) -> Option<OpenSocket> {
        // Counted first: whoever loses the association either sees it in the count, or is seen here.
        self.fence.opened();
        let socket = OpenSocket { association: self.clone(), clock: clock.clone() };
        (!self.is_lost()).then_some(socket)
    }

    /// Everybody is to close his sockets, for this reason; the first one stands. `false` when it was lost before.
    pub(crate) fn lose(&self, cause: Code, reason: &str) -> bool {
        let mut loss = lock(&self.loss);
        if loss.is_some() {
            return false;
        }
        *loss = Some((cause, reason.to_owned()));
        drop(loss);
        self.lost.store(true, Ordering::SeqCst);
        true
    }

    /// Why it was lost.
    pub(crate) fn loss(&self) -> (Code, String) {
        lock(&self.loss).clone().unwrap_or((Code::PathLost, "the connection was closed".into()))
    }

    pub(crate) fn namespaces(&self) -> BTreeMap<u32, Namespace> {
        lock(&self.namespaces).clone()
    }

    pub(crate) fn set_namespaces(&self, found: BTreeMap<u32, Namespace>) {
        *lock(&self.namespaces) = found;
    }

    pub(crate) fn set_listed(&self, listed: Vec<u32>) {
        *lock(&self.listed) = listed;
    }

    /// Was `nsid` not looked at because there are too many namespaces?
    pub(crate) fn has_passed_over(&self, nsid: u32) -> bool {
        let listed = lock(&self.listed);
        listed.len() >= MOST_NAMESPACES && !listed.contains(&nsid)
    }

    /// The namespace `nsid`.
    pub(crate) fn namespace(&self, nsid: u32) -> Result<Namespace, NoNamespace> {
        let found = lock(&self.namespaces).get(&nsid).cloned();
        found.ok_or_else(|| NoNamespace::Missing { nsid, active: lock(&self.listed).clone() })
    }

    /// The only namespace. Once it is known who that is (`pinned`), it is found among any number, under whatever identifier.
    pub(crate) fn only_namespace(&self, pinned: Option<&Pinned>) -> Result<(u32, Namespace), NoNamespace> {
        let all = lock(&self.namespaces);
        if let Some(pinned) = pinned {
            let same = |(nsid, n): &(&u32, &Namespace)| pinned.is(**nsid, &n.info.identity);
            let found = all.iter().filter(same).min_by_key(|(nsid, _)| **nsid != pinned.nsid);
            if let Some((nsid, namespace)) = found {
                return Ok((*nsid, namespace.clone()));
            }
            if all.len() > 1 {
                return Err(NoNamespace::Missing { nsid: pinned.nsid, active: all.keys().copied().collect() });
            }
        }
        match (all.first_key_value(), all.len()) {
            (Some((nsid, namespace)), 1) => Ok((*nsid, namespace.clone())),
            _ => Err(NoNamespace::Ambiguous { active: all.keys().copied().collect() }),
        }
    }
}

/// Who a namespace was when it was first seen.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    pub(crate) nsid: u32,
    pub(crate) identity: Identity,
}

impl Pinned {
    fn is(&self, nsid: u32, shown: &Identity) -> bool {
        match self.identity.compare(shown) {
            Verdict::Same => true,
            Verdict::Different => false,
            // Nothing worldwide: what it says of itself, and where it is.
            Verdict::Unknown => nsid == self.nsid && self.identity.identifiers == shown.identifiers,
        }
    }
}

/// Namespaces that a message names.
const SHOWN: usize = 16;

/// Why there is no namespace to speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoNamespace {
    Missing { nsid: u32, active: Vec<u32> },
    Ambiguous { active: Vec<u32> },
}

impl std::fmt::Display for NoNamespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |active: &[u32]| match active {
            [] => "none".to_owned(),
            some => {
                let more = if some.len() > SHOWN { format!(" and {} more", some.len() - SHOWN) } else { String::new() };
                some.iter().take(SHOWN).map(u32::to_string).collect::<Vec<_>>().join(", ") + &more
            }
        };
        match self {
            NoNamespace::Missing { nsid, active } => {
                write!(f, "namespace {nsid} is not active; active namespaces: {}", list(active))
            }
            NoNamespace::Ambiguous { active } if active.is_empty() => {
                f.write_str("the controller shows no active namespace to this host")
            }
            NoNamespace::Ambiguous { active } => {
                write!(f, "there are {} namespaces, say which: add ns=N with one of {}", active.len(), list(active))
            }
        }
    }
}

/// The trouble with a namespace that is not the one that was seen `first`.
pub(crate) fn another(nsid: u32, first: &Identity, now: &Identity) -> Option<(Code, String)> {
    let changed = match first.compare(now) {
        Verdict::Same => false,
        Verdict::Different => true,
        Verdict::Unknown => first.identifiers != now.identifiers,
    };
    let list = |identity: &Identity| match identity.identifiers.as_slice() {
        [] => "nothing".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    changed.then(|| {
        let reason =
            format!("namespace {nsid} is another one: it was {} and is {}; it is not used", list(first), list(now));
        (Code::PathIdentity, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Access, CacheDomain, Geometry, Identifier, Limits};
    use polypath_nvme::keepalive::{Assumed, Reported};

    fn association() -> Association {
        let reported = Reported { kato_ms: 1000, kas: 1, traffic_based: false, cqt_ms: 0 };
        let fence = AssociationFence::new(reported, Assumed { without_keep_alive_ms: 1, quiesce_ms: 1 });
        let address = "127.0.0.1:1".parse().unwrap();
        let shape =
            Shape { generation: 1, address, cntlid: 1, queues: 1, control_qid: None, depth: 1, in_capsule: 0, fence };
        Association::new(shape)
    }

    fn identity(identifier: &Identifier) -> Identity {
        Identity { identifiers: vec![identifier.clone()], cache_domain: CacheDomain("d".into()) }
    }

    fn showing(all: &[(u32, &Identifier)]) -> Association {
        let association = association();
        let namespace = |identifier: &Identifier| {
            let info = DeviceInfo {
                geometry: Geometry { block_size: 512, blocks: 8 },
                limits: Limits::UNLIMITED,
                identity: identity(identifier),
                access: Access::Optimized,
                max_queues: 1,
                max_depth: 1,
            };
            Namespace { info: Arc::new(info), ana_group: 0, rescap: 0, trouble: None }
        };
        association.set_namespaces(all.iter().map(|(nsid, identifier)| (*nsid, namespace(identifier))).collect());
        association
    }

    #[test]
    fn a_namespace_without_identifiers_is_found_among_others_by_what_it_says_and_where() {
        let place = |serial: &str| Identifier::Place(serial.to_owned());
        let (ours, other, worldwide) = (place("SERIAL"), place("ANOTHER"), Identifier::Nguid([9; 16]));
        let pinned = Pinned { nsid: 2, identity: identity(&ours) };
        let found = |all: &[(u32, &Identifier)]| showing(all).only_namespace(Some(&pinned)).ok().map(|(nsid, _)| nsid);
        assert_eq!(found(&[(1, &worldwide), (2, &ours)]), Some(2));
        assert_eq!(found(&[(1, &ours), (3, &worldwide)]), None, "it says the same, somewhere else");
        assert_eq!(found(&[(1, &worldwide), (2, &other)]), None, "it says something else in the same place");
        assert_eq!(found(&[(1, &ours), (2, &ours)]), Some(2), "whatever others say");
    }

    #[test]
    fn a_message_names_what_there_is_instead() {
        let (a, b) = (Identifier::Nguid([1; 16]), Identifier::Nguid([2; 16]));
        let pinned = Pinned { nsid: 5, identity: identity(&Identifier::Nguid([5; 16])) };
        let why = |all: &[(u32, &Identifier)], pinned| showing(all).only_namespace(pinned).unwrap_err().to_string();
        assert_eq!(why(&[(1, &a), (3, &b)], Some(&pinned)), "namespace 5 is not active; active namespaces: 1, 3");
        assert_eq!(why(&[], Some(&pinned)), "the controller shows no active namespace to this host");
        assert_eq!(why(&[], None), "the controller shows no active namespace to this host");
        let many = NoNamespace::Missing { nsid: 9, active: (100..200).collect() }.to_string();
        assert!(many.ends_with("113, 114, 115 and 84 more"), "{many}");
    }

    #[test]
    fn only_what_a_full_list_lacks_was_passed_over() {
        let association = association();
        let passed_over = |nsids| {
            association.set_listed((1..=nsids).collect());
            [1, 1024, 1025].map(|nsid| association.has_passed_over(nsid))
        };
        assert_eq!(passed_over(1023), [false; 3], "all are listed: the others are not active");
        assert_eq!(passed_over(1024), [false, false, true]);
    }

    #[test]
    fn the_first_reason_of_a_loss_stands() {
        let association = association();
        assert!(association.lose(Code::PathTimeout, "silence"));
        assert!(association.is_lost() && !association.lose(Code::PathProtocol, "noise"));
        assert_eq!(association.loss(), (Code::PathTimeout, "silence".to_owned()));
    }
}
