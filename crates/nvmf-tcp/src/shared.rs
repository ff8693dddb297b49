//! What the admin poller, the I/O queues and the devices of one controller know in common.
//!
//! Queues look at it when their bell has rung, which costs one relaxed load a turn otherwise.

use crate::config::ControllerConfig;
use crate::fence::AssociationFence;
use polypath_block::{Code, DeviceInfo, DeviceState, Host, Identity, OpenError, Time, Verdict};
use polypath_net::Bell;
use polypath_nvme::log::DiscoveryEntry;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One namespace as it is seen now.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    pub(crate) info: Arc<DeviceInfo>,
    /// ANA group, 0 without ANA.
    pub(crate) ana_group: u32,
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

/// What an association is made from.
pub(crate) struct Shape {
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
    pub(crate) cntlid: u16,
    pub(crate) queues: u16,
    pub(crate) depth: u16,
    pub(crate) in_capsule: u32,
    pub(crate) fence: AssociationFence,
}

impl Association {
    pub(crate) fn new(shape: Shape) -> Self {
        let Shape { generation, address, cntlid, queues, depth, in_capsule, fence } = shape;
        Association {
            generation,
            address,
            cntlid,
            queues,
            depth,
            in_capsule,
            fence,
            namespaces: Mutex::new(BTreeMap::new()),
            listed: Mutex::new(Vec::new()),
            lost: AtomicBool::new(false),
            loss: Mutex::new(None),
        }
    }

    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Counts a socket that is about to be opened; `false` when the association is lost and none may be.
    pub(crate) fn open_socket(&self, now: Time) -> bool {
        self.fence.opened();
        if self.is_lost() {
            self.fence.closed(now);
            return false;
        }
        true
    }

    /// Why it was lost.
    pub(crate) fn loss(&self) -> (Code, String) {
        lock(&self.loss).clone().unwrap_or((Code::PathLost, "the connection was closed".into()))
    }

    pub(crate) fn namespaces(&self) -> BTreeMap<u32, Namespace> {
        lock(&self.namespaces).clone()
    }

    pub(crate) fn set_listed(&self, listed: Vec<u32>) {
        *lock(&self.listed) = listed;
    }

    /// The namespace `ns`, or the only one.
    pub(crate) fn namespace(&self, ns: Option<u32>) -> Result<(u32, Namespace), NoNamespace> {
        let all = lock(&self.namespaces);
        match ns {
            Some(nsid) => match all.get(&nsid) {
                Some(n) => Ok((nsid, n.clone())),
                None => Err(NoNamespace::Missing { nsid, active: lock(&self.listed).clone() }),
            },
            None if all.len() == 1 => {
                let (nsid, n) = all.first_key_value().expect("there is one");
                Ok((*nsid, n.clone()))
            }
            None => Err(NoNamespace::Ambiguous { active: all.keys().copied().collect() }),
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
fn another(nsid: u32, first: &Identity, now: &Identity) -> Option<(Code, String)> {
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

/// Where the controller stands.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Starting,
    Live(Arc<Association>),
    Down { cause: Code, reason: String },
    Gone { reason: String },
}

/// Counts of one controller, for statistics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connects: AtomicU64,
    pub(crate) losses: AtomicU64,
    pub(crate) ios: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) syscalls: AtomicU64,
    pub(crate) keep_alives: AtomicU64,
    pub(crate) aborts: AtomicU64,
}

/// What a queue asks of the admin poller.
#[derive(Debug)]
pub(crate) struct AbortOrder {
    pub(crate) generation: u64,
    pub(crate) qid: u16,
    pub(crate) cid: u16,
    /// Where the answer goes.
    pub(crate) queue: Arc<QueueDesk>,
    /// The queue's slot of the command.
    pub(crate) slot: u16,
}

/// The answer to an [`AbortOrder`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AbortAnswer {
    pub(crate) generation: u64,
    pub(crate) slot: u16,
    pub(crate) cid: u16,
    /// The controller says that it did abort the command.
    pub(crate) aborted: bool,
}

/// The part of a queue that other threads reach.
#[derive(Debug)]
pub(crate) struct QueueDesk {
    pub(crate) bell: Bell,
    answers: Mutex<Vec<AbortAnswer>>,
}

impl QueueDesk {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(QueueDesk { bell: Bell::new()?, answers: Mutex::new(Vec::new()) })
    }

    pub(crate) fn answer(&self, answer: AbortAnswer) {
        lock(&self.answers).push(answer);
        self.bell.ring();
    }

    pub(crate) fn take_answers(&self) -> Vec<AbortAnswer> {
        std::mem::take(&mut lock(&self.answers))
    }
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) config: ControllerConfig,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) counts: Counts,
    version: AtomicU64,
    stage: Mutex<Stage>,
    pinned: Mutex<BTreeMap<u32, Identity>>,
    /// What "the only namespace" was when first asked for.
    only: Mutex<Option<Identity>>,
    desks: Mutex<Vec<Weak<QueueDesk>>>,
    qids: Mutex<Vec<bool>>,
    closing: AtomicBool,
    probe: AtomicBool,
    look_at_ana: AtomicBool,
    aborts: Mutex<Vec<AbortOrder>>,
    /// The admin poller has a reason to look at the above.
    called: AtomicBool,
    queues_open: AtomicU32,
    discovered: Mutex<Vec<DiscoveryEntry>>,
}

impl Shared {
    pub(crate) fn new(config: ControllerConfig, host: Arc<dyn Host>) -> Self {
        let qids = vec![false; usize::from(config.queues)];
        Shared {
            config,
            host,
            counts: Counts::default(),
            version: AtomicU64::new(1),
            stage: Mutex::new(Stage::Starting),
            pinned: Mutex::new(BTreeMap::new()),
            only: Mutex::new(None),
            desks: Mutex::new(Vec::new()),
            qids: Mutex::new(qids),
            closing: AtomicBool::new(false),
            probe: AtomicBool::new(false),
            look_at_ana: AtomicBool::new(false),
            aborts: Mutex::new(Vec::new()),
            called: AtomicBool::new(false),
            queues_open: AtomicU32::new(0),
            discovered: Mutex::new(Vec::new()),
        }
    }

    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    pub(crate) fn stage(&self) -> Stage {
        lock(&self.stage).clone()
    }

    /// The association that is up, if one is.
    pub(crate) fn live(&self) -> Option<Arc<Association>> {
        match &*lock(&self.stage) {
            Stage::Live(association) if !association.is_lost() => Some(association.clone()),
            _ => None,
        }
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        *lock(&self.stage) = stage;
        self.announce();
    }

    /// Something that devices or queues show has changed.
    pub(crate) fn announce(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        lock(&self.desks).retain(|desk| match desk.upgrade() {
            Some(desk) => {
                desk.bell.ring();
                true
            }
            None => false,
        });
        self.host.wake();
    }

    /// The association is of no use any more: everybody closes his sockets. The first reason stands.
    pub(crate) fn lose(&self, association: &Association, cause: Code, reason: String) {
        let mut loss = lock(&association.loss);
        if loss.is_some() {
            return;
        }
        *loss = Some((cause, reason.clone()));
        drop(loss);
        association.lost.store(true, Ordering::SeqCst);
        let mut stage = lock(&self.stage);
        if matches!(&*stage, Stage::Live(live) if live.generation == association.generation) {
            *stage = Stage::Down { cause, reason };
        }
        drop(stage);
        self.call();
        self.announce();
    }

    /// Replaces what is known of the namespaces; identities are held against those seen first.
    pub(crate) fn set_namespaces(&self, association: &Association, mut found: BTreeMap<u32, Namespace>) {
        let mut pinned = lock(&self.pinned);
        for (nsid, namespace) in &mut found {
            match pinned.get(nsid) {
                None => {
                    pinned.insert(*nsid, namespace.info.identity.clone());
                }
                Some(first) => {
                    if let Some(trouble) = another(*nsid, first, &namespace.info.identity) {
                        tracing::error!(path = %self.config.name, "{}", trouble.1);
                        namespace.trouble = Some(trouble);
                    }
                }
            }
        }
        drop(pinned);
        *lock(&association.namespaces) = found;
        self.announce();
    }

    /// The namespace `ns` of `association`, or the only one. Which one that is was settled when it was first seen: should it give way
    /// to another one, whoever uses it must not go on with that.
    pub(crate) fn namespace(
        &self,
        association: &Association,
        ns: Option<u32>,
    ) -> Result<(u32, Namespace), NoNamespace> {
        let (nsid, mut namespace) = association.namespace(ns)?;
        if ns.is_none() {
            let mut only = lock(&self.only);
            let first = only.get_or_insert_with(|| namespace.info.identity.clone());
            if namespace.trouble.is_none() {
                namespace.trouble = another(nsid, first, &namespace.info.identity);
            }
        }
        Ok((nsid, namespace))
    }

    /// The device state that the namespace `ns` has now.
    pub(crate) fn device_state(&self, ns: Option<u32>) -> DeviceState {
        match self.stage() {
            Stage::Starting => DeviceState::Starting,
            Stage::Down { cause, reason } => DeviceState::Down { cause, reason },
            Stage::Gone { reason } => DeviceState::Gone { reason },
            Stage::Live(association) => match self.namespace(&association, ns) {
                Ok((_, Namespace { trouble: Some((cause, reason)), .. })) => DeviceState::Down { cause, reason },
                Ok((_, Namespace { info, .. })) => DeviceState::Live(info),
                // Which one is meant will not become clearer by itself.
                Err(why @ NoNamespace::Ambiguous { .. })
                    if ns.is_none() && matches!(&why, NoNamespace::Ambiguous { active } if !active.is_empty()) =>
                {
                    DeviceState::Gone { reason: format!("{}: {why}", self.config.name) }
                }
                Err(why) => {
                    DeviceState::Down { cause: Code::PathNoAccess, reason: format!("{}: {why}", self.config.name) }
                }
            },
        }
    }

    /// A queue identifier and a desk for a new queue.
    pub(crate) fn register_queue(&self) -> Result<(u16, Arc<QueueDesk>), OpenError> {
        let name = || self.config.name.clone();
        let granted = match self.stage() {
            Stage::Gone { reason } => return Err(OpenError::Gone { name: name(), reason }),
            Stage::Live(association) => association.queues.min(self.config.queues),
            _ => self.config.queues,
        };
        let desk = QueueDesk::new().map(Arc::new).map_err(|e| OpenError::System {
            name: name(),
            reason: format!("no eventfd for a queue: {e}; raise the limit of open files"),
        })?;
        let mut qids = lock(&self.qids);
        let free = qids.iter().take(usize::from(granted)).position(|taken| !taken);
        let Some(at) = free else { return Err(OpenError::NoQueue { name: name(), granted }) };
        qids[at] = true;
        drop(qids);
        lock(&self.desks).push(Arc::downgrade(&desk));
        self.queues_open.fetch_add(1, Ordering::SeqCst);
        Ok((at as u16 + 1, desk))
    }

    pub(crate) fn release_queue(&self, qid: u16) {
        if let Some(taken) = lock(&self.qids).get_mut(usize::from(qid).wrapping_sub(1)) {
            *taken = false;
        }
        self.queues_open.fetch_sub(1, Ordering::SeqCst);
        self.call_and_wake();
    }

    pub(crate) fn queues_open(&self) -> u32 {
        self.queues_open.load(Ordering::SeqCst)
    }

    pub(crate) fn has_orders(&self) -> bool {
        self.look_at_ana.load(Ordering::Relaxed) || !lock(&self.aborts).is_empty()
    }

    pub(crate) fn discovered(&self) -> Vec<DiscoveryEntry> {
        lock(&self.discovered).clone()
    }

    pub(crate) fn set_discovered(&self, entries: Vec<DiscoveryEntry>) {
        *lock(&self.discovered) = entries;
        self.announce();
    }

    pub(crate) fn call_and_wake(&self) {
        self.call();
        self.host.wake();
    }

    fn call(&self) {
        self.called.store(true, Ordering::SeqCst);
    }

    /// Has anybody asked for anything since the last time?
    #[inline]
    pub(crate) fn answer_call(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::SeqCst)
    }

    #[inline]
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::SeqCst)
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.call_and_wake();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// A queue has heard nothing for a while: is the controller still there?
    pub(crate) fn ask_probe(&self) {
        self.probe.store(true, Ordering::SeqCst);
        self.call_and_wake();
    }

    pub(crate) fn take_probe(&self) -> bool {
        self.probe.swap(false, Ordering::SeqCst)
    }

    /// A command came back with an ANA status: the log has changed.
    pub(crate) fn ask_ana(&self) {
        if !self.look_at_ana.swap(true, Ordering::SeqCst) {
            self.call_and_wake();
        }
    }

    pub(crate) fn take_ana(&self) -> bool {
        self.look_at_ana.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn ask_abort(&self, order: AbortOrder) {
        lock(&self.aborts).push(order);
        self.call_and_wake();
    }

    pub(crate) fn take_aborts(&self) -> Vec<AbortOrder> {
        std::mem::take(&mut lock(&self.aborts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_block::{Access, CacheDomain, Geometry, Identifier, Limits, MakePoller};
    use polypath_nvme::keepalive::{Assumed, Reported};
    use polypath_nvme::nqn::Nqn;
    use std::time::Duration;

    struct Nowhere;

    impl Host for Nowhere {
        fn spawn(&self, _: MakePoller) {}
        fn wake(&self) {}
        fn reactor(&self) -> u16 {
            0
        }
        fn now(&self) -> Time {
            Time::ZERO
        }
    }

    fn namespace(nguid: u8) -> Namespace {
        let identity =
            Identity { identifiers: vec![Identifier::Nguid([nguid; 16])], cache_domain: CacheDomain("d".into()) };
        let info = DeviceInfo {
            geometry: Geometry { block_size: 512, blocks: 8 },
            limits: Limits::UNLIMITED,
            identity,
            access: Access::Optimized,
            max_queues: 1,
            max_depth: 1,
        };
        Namespace { info: Arc::new(info), ana_group: 0, trouble: None }
    }

    #[test]
    fn the_only_namespace_does_not_become_another_one() {
        let reported = Reported { kato_ms: 1000, kas: 1, traffic_based: false, cqt_ms: 0 };
        let fence = AssociationFence::new(reported, Assumed { without_keep_alive_ms: 1, quiesce_ms: 1 });
        let address = "127.0.0.1:1".parse().unwrap();
        let shape = Shape { generation: 1, address, cntlid: 1, queues: 1, depth: 1, in_capsule: 0, fence };
        let config = ControllerConfig {
            keep_alive: Duration::from_secs(1),
            ..ControllerConfig::new("h", 1, Nqn::new("nqn.x").unwrap())
        };
        let shared = Shared::new(config, Arc::new(Nowhere));
        let association = Arc::new(Association::new(shape));
        shared.set_stage(Stage::Live(association.clone()));
        let show = |all: &[(u32, u8)]| {
            shared.set_namespaces(&association, all.iter().map(|&(nsid, id)| (nsid, namespace(id))).collect());
            match shared.device_state(None) {
                DeviceState::Live(_) => None,
                DeviceState::Down { cause, .. } => Some(cause),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(show(&[(1, 7)]), None);
        assert_eq!(show(&[(2, 8)]), Some(Code::PathIdentity), "another disk in its place");
        assert!(matches!(shared.device_state(Some(2)), DeviceState::Live(_)), "which is fine for whoever asks for it");
        assert_eq!(show(&[]), Some(Code::PathNoAccess));
        assert_eq!(show(&[(5, 7)]), None, "the same disk by another number");
    }
}
