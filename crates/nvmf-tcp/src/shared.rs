//! What the admin poller, the I/O queues and the devices of one controller know in common.
//!
//! Queues look at it when their bell has rung, which costs one relaxed load a turn otherwise.

use crate::association::{Association, Namespace, NoNamespace, Pinned, another, lock};
use crate::config::ControllerConfig;
use crate::fence;
use polypath_block::{Code, DeviceState, Host, OpenError};
use polypath_net::Bell;
use polypath_nvme::log::DiscoveryEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

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

/// A queue's order to the admin poller: have this command aborted. Until it is answered, or the connection has ended, the command's
/// identifier is not given again.
#[derive(Debug)]
pub(crate) struct AbortOrder {
    /// Of the association.
    pub(crate) generation: u64,
    pub(crate) qid: u16,
    pub(crate) cid: u16,
    /// The queue's slot of the command.
    pub(crate) slot: u16,
    /// The queue's connection that the command was sent over.
    pub(crate) connection: u64,
    /// Where the answer goes.
    pub(crate) queue: Arc<QueueMailbox>,
}

/// The answer to an [`AbortOrder`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AbortAnswer {
    pub(crate) connection: u64,
    pub(crate) slot: u16,
    pub(crate) cid: u16,
    /// The controller says that it did abort the command.
    pub(crate) aborted: bool,
}

/// The part of a queue that other threads reach.
#[derive(Debug)]
pub(crate) struct QueueMailbox {
    pub(crate) bell: Bell,
    answers: Mutex<Vec<AbortAnswer>>,
}

impl QueueMailbox {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(QueueMailbox { bell: Bell::new()?, answers: Mutex::default() })
    }

    pub(crate) fn answer(&self, answer: AbortAnswer) {
        lock(&self.answers).push(answer);
        self.bell.ring();
    }

    pub(crate) fn take_answers(&self) -> Vec<AbortAnswer> {
        std::mem::take(&mut lock(&self.answers))
    }
}

/// Somebody sends requests to a namespace (`None`: the only one): who it was when he first saw it is held against what it shows
/// later. Forgotten with its last user, so that another namespace may take the place of one that nobody uses, and a path that
/// was refused because of what it showed may come back.
pub(crate) struct NamespacePin {
    shared: Arc<Shared>,
    ns: Option<u32>,
}

impl Drop for NamespacePin {
    fn drop(&mut self) {
        let mut pinned = lock(&self.shared.pinned);
        let Some(pin) = pinned.get_mut(&self.ns) else { return };
        pin.users -= 1;
        if pin.users == 0 {
            pinned.remove(&self.ns);
            drop(pinned);
            // It may have been in trouble because of what it was.
            self.shared.announce();
        }
    }
}

/// Somebody asks for a namespace by its number, whether it is there or not: it is looked at however many there are.
pub(crate) struct WantedNamespace {
    shared: Arc<Shared>,
    nsid: u32,
}

impl Drop for WantedNamespace {
    fn drop(&mut self) {
        let mut wanted = lock(&self.shared.wanted);
        if let Some(users) = wanted.get_mut(&self.nsid) {
            *users -= 1;
            if *users == 0 {
                wanted.remove(&self.nsid);
            }
        }
    }
}

/// The identifier of an I/O queue that the admin poller has.
pub(crate) struct ControlQueue {
    shared: Arc<Shared>,
    qid: u16,
    /// From those of I/O.
    taken: bool,
}

impl ControlQueue {
    pub(crate) fn qid(&self) -> u16 {
        self.qid
    }
}

impl Drop for ControlQueue {
    fn drop(&mut self) {
        if self.taken
            && let Some(taken) = lock(&self.shared.qids).get_mut(usize::from(self.qid).wrapping_sub(1))
        {
            *taken = false;
        }
    }
}

#[derive(Default)]
struct PinnedNamespace {
    users: u32,
    /// `None`: not seen yet.
    first: Option<Pinned>,
    /// Why it is not that one now, as it was told.
    trouble: Option<String>,
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) config: ControllerConfig,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) counts: Counts,
    version: AtomicU64,
    stage: Mutex<Stage>,
    pinned: Mutex<BTreeMap<Option<u32>, PinnedNamespace>>,
    /// What the only namespace was when there was one only: so it is known among others. Locked after `pinned`.
    only: Mutex<Option<Pinned>>,
    /// How many ask for each namespace.
    wanted: Mutex<BTreeMap<u32, u32>>,
    mailboxes: Mutex<Vec<Weak<QueueMailbox>>>,
    qids: Mutex<Vec<bool>>,
    closing: AtomicBool,
    probe: AtomicBool,
    look_at_ana: AtomicBool,
    look_at_namespaces: AtomicBool,
    aborts: Mutex<Vec<AbortOrder>>,
    /// The admin poller has a reason to look at the above.
    called: AtomicBool,
    queues_open: AtomicU32,
    discovered: Mutex<Vec<DiscoveryEntry>>,
    /// How often the controller has refused to tell how often it lost its power since it told that; `None`: it never has.
    power_refusals: Mutex<Option<u32>>,
    pub(crate) reserved: crate::reserve::Desk,
    pub(crate) relays: crate::passthrough::Relays,
    /// Longest bound of any association so far, in milliseconds, and what is to be expected of the next.
    landing_bound_ms: AtomicU64,
}

impl Shared {
    /// How long after the end of this process commands may still land.
    pub(crate) fn landing_bound(&self) -> Duration {
        Duration::from_millis(self.landing_bound_ms.load(Ordering::Relaxed))
    }

    /// An association begins, with this bound.
    pub(crate) fn raise_landing_bound(&self, bound: Duration) {
        self.landing_bound_ms.fetch_max(bound.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn new(config: ControllerConfig, host: Arc<dyn Host>) -> Self {
        let qids = vec![false; usize::from(config.queues)];
        let expected = fence::expected_bound(&config);
        Shared {
            landing_bound_ms: AtomicU64::new(expected.as_millis() as u64),
            config,
            host,
            counts: Counts::default(),
            version: AtomicU64::new(1),
            stage: Mutex::new(Stage::Starting),
            pinned: Mutex::new(BTreeMap::new()),
            only: Mutex::new(None),
            wanted: Mutex::default(),
            mailboxes: Mutex::new(Vec::new()),
            qids: Mutex::new(qids),
            closing: AtomicBool::new(false),
            probe: AtomicBool::new(false),
            look_at_ana: AtomicBool::new(false),
            look_at_namespaces: AtomicBool::new(false),
            aborts: Mutex::new(Vec::new()),
            called: AtomicBool::new(false),
            queues_open: AtomicU32::new(0),
            discovered: Mutex::new(Vec::new()),
            power_refusals: Mutex::new(None),
            reserved: crate::reserve::Desk::default(),
            relays: crate::passthrough::Relays::default(),
        }
    }

    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    pub(crate) fn stage(&self) -> Stage {
        lock(&self.stage).clone()
    }

    /// The association that is up, if one is. It may be lost in the next moment: what comes of it says so.
    pub(crate) fn live(&self) -> Option<Arc<Association>> {
        match &*lock(&self.stage) {
            Stage::Live(association) => Some(association.clone()),
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
        lock(&self.mailboxes).retain(|mailbox| match mailbox.upgrade() {
            Some(mailbox) => {
                mailbox.bell.ring();
                true
            }
            None => false,
        });
        self.host.wake();
    }

    /// The association is of no use any more: everybody closes his sockets. The first reason stands.
    pub(crate) fn lose(&self, association: &Association, cause: Code, reason: String) {
        if !association.lose(cause, &reason) {
            return;
        }
        let mut stage = lock(&self.stage);
        if matches!(&*stage, Stage::Live(live) if live.generation == association.generation) {
            *stage = Stage::Down { cause, reason };
        }
        drop(stage);
        self.call();
        self.announce();
    }

    /// Notes that somebody asks for the namespace `nsid`.
    pub(crate) fn want(self: &Arc<Self>, nsid: u32) -> WantedNamespace {
        *lock(&self.wanted).entry(nsid).or_default() += 1;
        // There were too many to look at all of them, and nobody had asked for this one.
        if self.live().is_some_and(|association| association.has_passed_over(nsid))
            && !self.look_at_namespaces.swap(true, Ordering::SeqCst)
        {
            self.call_and_wake();
        }
        WantedNamespace { shared: self.clone(), nsid }
    }

    /// Namespaces that are asked for by number.
    pub(crate) fn wanted(&self) -> Vec<u32> {
        let mut wanted: BTreeSet<u32> = lock(&self.wanted).keys().copied().collect();
        wanted.extend(self.config.ns);
        wanted.into_iter().collect()
    }

    pub(crate) fn take_rescan(&self) -> bool {
        self.look_at_namespaces.swap(false, Ordering::SeqCst)
    }

    /// Notes a user of the namespace `ns`.
    pub(crate) fn pin(self: &Arc<Self>, ns: Option<u32>) -> NamespacePin {
        let mut pinned = lock(&self.pinned);
        // Under the lock: a list that replaces this one meanwhile is held against the pin.
        let shown = self.live().and_then(|association| self.shown(&association, ns).ok());
        let pin = pinned.entry(ns).or_default();
        pin.users += 1;
        if pin.first.is_none() {
            pin.first = shown.map(|(nsid, namespace)| Pinned { nsid, identity: namespace.info.identity.clone() });
        }
        drop(pinned);
        NamespacePin { shared: self.clone(), ns }
    }

    /// Replaces what is known of the namespaces.
    pub(crate) fn set_namespaces(&self, association: &Association, found: BTreeMap<u32, Namespace>) {
        if let (Some((nsid, namespace)), 1) = (found.first_key_value(), found.len()) {
            let used = lock(&self.pinned).contains_key(&None);
            let mut only = lock(&self.only);
            if only.is_none() || !used {
                *only = Some(Pinned { nsid: *nsid, identity: namespace.info.identity.clone() });
            }
        }
        association.set_namespaces(found);
        for (ns, pin) in lock(&self.pinned).iter_mut() {
            let Ok((nsid, namespace)) = self.shown(association, *ns) else { continue };
            let seen = || Pinned { nsid, identity: namespace.info.identity.clone() };
            let first = pin.first.get_or_insert_with(seen);
            let trouble = another(nsid, &first.identity, &namespace.info.identity).map(|(_, reason)| reason);
            if let Some(reason) = trouble.as_ref().filter(|_| trouble != pin.trouble) {
                tracing::error!(path = %self.config.name, "{reason}");
            }
            pin.trouble = trouble;
        }
        self.announce();
    }

    /// Does `association` show every namespace that is asked for, and as it was? An event that says when that changes may get lost.
    pub(crate) fn shows_all(&self, association: &Association) -> bool {
        let mut asked: BTreeSet<_> = lock(&self.pinned).keys().copied().collect();
        asked.extend(self.wanted().into_iter().map(Some));
        asked.into_iter().all(|ns| self.namespace(association, ns).is_ok_and(|(_, n)| n.trouble.is_none()))
    }

    /// The namespace `ns` of `association`, or the only one, with its trouble: whoever uses it must not go on when another one has
    /// taken its place.
    pub(crate) fn namespace(
        &self,
        association: &Association,
        ns: Option<u32>,
    ) -> Result<(u32, Namespace), NoNamespace> {
        let (nsid, mut namespace) = self.shown(association, ns)?;
        if namespace.trouble.is_none()
            && let Some(first) = lock(&self.pinned).get(&ns).and_then(|pin| pin.first.as_ref())
        {
            namespace.trouble = another(nsid, &first.identity, &namespace.info.identity);
        }
        Ok((nsid, namespace))
    }

    /// The namespace that is shown for `ns`. Which one is the only one was settled when there was one: others that come do not matter.
    fn shown(&self, association: &Association, ns: Option<u32>) -> Result<(u32, Namespace), NoNamespace> {
        match ns {
            Some(nsid) => Ok((nsid, association.namespace(nsid)?)),
            None => association.only_namespace(lock(&self.only).as_ref()),
        }
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

    /// A queue identifier and a mailbox for a new queue.
    pub(crate) fn register_queue(&self) -> Result<(u16, Arc<QueueMailbox>), OpenError> {
        let name = || self.config.name.clone();
        let granted = match self.stage() {
            Stage::Gone { reason } => return Err(OpenError::Gone { name: name(), reason }),
            Stage::Live(association) => association.queues.min(self.config.queues),
            _ => self.config.queues,
        };
        let mailbox = QueueMailbox::new().map(Arc::new).map_err(|e| OpenError::System {
            name: name(),
            reason: format!("no eventfd for a queue: {e}; raise the limit of open files"),
        })?;
        let mut qids = lock(&self.qids);
        let free = qids.iter().take(usize::from(granted)).position(|taken| !taken);
        let Some(at) = free else { return Err(OpenError::NoQueue { name: name(), granted }) };
        qids[at] = true;
        drop(qids);
        lock(&self.mailboxes).push(Arc::downgrade(&mailbox));
        self.queues_open.fetch_add(1, Ordering::SeqCst);
        Ok((at as u16 + 1, mailbox))
    }

    pub(crate) fn release_queue(&self, qid: u16) {
        if let Some(taken) = lock(&self.qids).get_mut(usize::from(qid).wrapping_sub(1)) {
            *taken = false;
        }
        self.queues_open.fetch_sub(1, Ordering::SeqCst);
        self.call_and_wake();
    }

    /// An I/O queue identifier for the admin poller: the one that the controller grants beyond those of I/O, or else the last that nobody has.
    pub(crate) fn control_queue(self: &Arc<Self>, association: &Association) -> Option<ControlQueue> {
        if let Some(qid) = association.control_qid {
            return Some(ControlQueue { shared: self.clone(), qid, taken: false });
        }
        let mut qids = lock(&self.qids);
        let at = qids.iter().take(usize::from(association.queues)).rposition(|taken| !taken)?;
        qids[at] = true;
        Some(ControlQueue { shared: self.clone(), qid: at as u16 + 1, taken: true })
    }

    pub(crate) fn queues_open(&self) -> u32 {
        self.queues_open.load(Ordering::SeqCst)
    }

    pub(crate) fn has_aborts(&self) -> bool {
        !lock(&self.aborts).is_empty()
    }

    pub(crate) fn power_told(&self) {
        *lock(&self.power_refusals) = Some(0);
    }

    /// Counts a refusal, if it ever told.
    pub(crate) fn power_refused(&self) -> Option<u32> {
        let mut refusals = lock(&self.power_refusals);
        *refusals = refusals.map(|n| n.saturating_add(1));
        *refusals
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
    use crate::association::Shape;
    use crate::fence::AssociationFence;
    use polypath_block::{Access, CacheDomain, DeviceInfo, Geometry, Identifier, Identity, Limits, MakePoller, Time};
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
        Namespace { info: Arc::new(info), ana_group: 0, rescap: 0, trouble: None }
    }

    /// Shows namespaces (identifier, NGUID) one set after the other; what becomes of "the only one"?
    fn show_in_turn() -> impl FnMut(&[(u32, u8)]) -> DeviceState {
        rig().1
    }

    #[allow(clippy::type_complexity, reason = "one closure, and what it closes over")]
    fn rig() -> (Arc<Shared>, impl FnMut(&[(u32, u8)]) -> DeviceState) {
        let reported = Reported { kato_ms: 1000, kas: 1, traffic_based: false, cqt_ms: 0 };
        let fence = AssociationFence::new(reported, Assumed { without_keep_alive_ms: 1, quiesce_ms: 1 });
        let address = "127.0.0.1:1".parse().unwrap();
        let shape =
            Shape { generation: 1, address, cntlid: 1, queues: 1, control_qid: None, depth: 1, in_capsule: 0, fence };
        let config = ControllerConfig {
            keep_alive: Duration::from_secs(1),
            ..ControllerConfig::new("h", 1, Nqn::new("nqn.x").unwrap())
        };
        let shared = Arc::new(Shared::new(config, Arc::new(Nowhere)));
        let shown = shared.clone();
        let association = Arc::new(Association::new(shape));
        shared.set_stage(Stage::Live(association.clone()));
        let show = move |all: &[(u32, u8)]| {
            shown.set_namespaces(&association, all.iter().map(|&(nsid, id)| (nsid, namespace(id))).collect());
            shown.device_state(None)
        };
        (shared, show)
    }

    fn cause(state: DeviceState) -> Option<Code> {
        match state {
            DeviceState::Live(_) => None,
            DeviceState::Down { cause, .. } => Some(cause),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_only_namespace_does_not_become_another_one() {
        let (shared, mut show) = rig();
        let _user = shared.pin(None);
        assert_eq!(cause(show(&[(1, 7)])), None);
        assert_eq!(cause(show(&[(2, 8)])), Some(Code::PathIdentity), "another disk in its place");
        assert_eq!(cause(show(&[])), Some(Code::PathNoAccess));
        assert_eq!(cause(show(&[(5, 7)])), None, "the same disk by another number");
    }

    #[test]
    fn a_second_namespace_does_not_kill_a_live_disk() {
        let mut show = show_in_turn();
        assert_eq!(cause(show(&[(3, 7)])), None);
        let live = |state: DeviceState| state.info().map(|i| i.identity.identifiers[0].clone());
        assert_eq!(live(show(&[(1, 9), (3, 7)])), Some(Identifier::Nguid([7; 16])), "it is known which one is meant");
        assert_eq!(live(show(&[(3, 9), (4, 7)])), Some(Identifier::Nguid([7; 16])), "also under another number");
        assert_eq!(cause(show(&[(1, 9), (2, 8)])), Some(Code::PathNoAccess), "gone, and it may come back");
        assert_eq!(cause(show(&[(3, 7)])), None);
    }

    #[test]
    fn the_only_one_is_who_was_used_or_else_who_was_last() {
        let live = |state: DeviceState| state.info().map(|i| i.identity.identifiers[0].clone());
        for (used, known) in [(true, 9), (false, 7)] {
            let (shared, mut show) = rig();
            let _user = used.then(|| shared.pin(None));
            show(&[(1, 9)]);
            show(&[(1, 7)]);
            assert_eq!(live(show(&[(1, 7), (2, 8), (3, 9)])), Some(Identifier::Nguid([known; 16])), "{used}");
        }
    }

    #[test]
    fn of_two_that_say_they_are_the_disk_the_one_in_its_place_is_it() {
        let (shared, mut show) = rig();
        show(&[(3, 7)]);
        show(&[(1, 7), (3, 7)]);
        assert_eq!(shared.namespace(&shared.live().unwrap(), None).unwrap().0, 3);
    }

    #[test]
    fn a_number_that_nobody_uses_may_become_another_namespace() {
        let (shared, mut show) = rig();
        let pin = shared.pin(Some(1));
        show(&[(1, 7), (2, 9)]);
        show(&[(1, 8), (2, 10)]);
        assert_eq!(cause(shared.device_state(Some(1))), Some(Code::PathIdentity));
        assert_eq!(cause(shared.device_state(Some(2))), None, "nobody has used it");
        drop(shared.pin(Some(1)));
        show(&[(1, 8), (2, 10)]);
        assert_eq!(cause(shared.device_state(Some(1))), Some(Code::PathIdentity), "somebody uses it still");
        drop(pin);
        let _pin = shared.pin(Some(1));
        show(&[(1, 8), (2, 10)]);
        assert_eq!(cause(shared.device_state(Some(1))), None, "who came later knows no other");
    }

    #[test]
    fn a_path_that_first_showed_another_disk_and_was_never_used_comes_back() {
        let mut show = show_in_turn();
        let live = |state: DeviceState| state.info().map(|i| i.identity.identifiers[0].clone());
        for ns in [9, 7] {
            assert_eq!(live(show(&[(1, ns)])), Some(Identifier::Nguid([ns; 16])), "whoever uses it judges");
        }
        let (shared, mut show) = rig();
        let user = shared.pin(Some(1));
        show(&[(1, 9)]);
        show(&[(1, 7)]);
        assert_eq!(cause(shared.device_state(Some(1))), Some(Code::PathIdentity));
        let version = shared.version();
        drop(user);
        assert_eq!(cause(shared.device_state(Some(1))), None, "let go of, without another event");
        assert!(shared.version() > version, "and told");
    }

    #[test]
    fn which_of_two_is_meant_must_be_said() {
        let mut show = show_in_turn();
        let DeviceState::Gone { reason } = show(&[(1, 7), (2, 8)]) else { panic!("nobody knows which one is meant") };
        assert!(reason.contains("ns=N"), "{reason}");
    }
}
