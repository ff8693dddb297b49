//! Reservations of namespaces (Base 2.1 section 8.1.22): orders of the devices, and the task of the admin poller that carries them out.
//!
//! The commands are I/O commands, so the admin poller opens one I/O queue of its own when the first of them is wanted, and keeps it for
//! as long as the association lives: what becomes of it becomes of the association, as with any other queue. A registration belongs
//! to the host, by the identifier that every Connect states: it covers all queues and controllers, those included that come later.
//! Commands that are passed through take turns with these.

use crate::admin::{ADMIN_DATA, Admin, Data, Fault, Handle, command};
use crate::association::lock;
use crate::attach;
use crate::link::{Link, RX_ADMIN};
use crate::live::Living;
use crate::passthrough;
use crate::shared::{ControlQueue, Shared};
use crate::status::map;
use polypath_block::{
    Code, Proof, Registrant, ReservationError, ReservationOp, ReservationReply, ReservationReport, ReservationResult,
    ReservationType, Time,
};
use polypath_nvme::fabrics::cattr;
use polypath_nvme::features::fid;
use polypath_nvme::identify::oncs;
use polypath_nvme::log::lid;
use polypath_nvme::reservation::{
    AcquireAction, AcquireData, ChangePersist, RegisterAction, RegisterData, ReleaseAction, ReleaseData,
    ReservationCommand, ReservationNotification, ReservationStatus,
};
use polypath_nvme::sqe::NSID_ALL;
use polypath_nvme::{Sqe, StatusField};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

/// Orders that wait at a time.
const MOST_ORDERS: usize = 64;
/// Commands of the queue.
const DEPTH: u16 = 8;
/// Octets of a report that are asked for at first: 63 registrations.
const FIRST_REPORT: u32 = 4096;
/// Least time between two alarms because of requests that met a reservation.
const CALM: Duration = Duration::from_secs(1);
/// Notifications read for one event.
const MOST_NOTIFICATIONS: u32 = 256;

/// What devices, queues and the admin poller know of reservations in common.
#[derive(Default)]
pub(crate) struct Desk {
    orders: Mutex<VecDeque<Order>>,
    /// Namespaces that this host is registered with, as far as we know.
    claimed: Mutex<BTreeSet<u32>>,
    alarms: AtomicU64,
    /// A request met somebody's reservation.
    conflict: AtomicBool,
}

struct Order {
    ns: Option<u32>,
    op: ReservationOp,
    limit: Duration,
    reply: ReservationReply,
}

impl Desk {
    pub(crate) fn alarms(&self) -> u64 {
        self.alarms.load(Ordering::Acquire)
    }

    fn take(&self) -> Option<Order> {
        lock(&self.orders).pop_front()
    }

    fn is_claimed(&self) -> bool {
        !lock(&self.claimed).is_empty()
    }
}

impl Shared {
    /// Somebody wants `op` of the namespace `ns`.
    pub(crate) fn order_reservation(
        &self,
        ns: Option<u32>,
        op: ReservationOp,
        limit: Duration,
        reply: ReservationReply,
    ) {
        if let Err(error) = op.check_key() {
            return reply.answer(Err(error));
        }
        let mut orders = lock(&self.reserved.orders);
        // Under the lock: whoever ends an association refuses what is there afterwards.
        let refusal = match self.live() {
            None => Some((Code::PathLost, "there is no connection now")),
            Some(_) if orders.len() >= MOST_ORDERS => Some((Code::PathBusy, "too many reservation commands wait")),
            Some(_) => None,
        };
        if let Some((code, reason)) = refusal {
            drop(orders);
            return reply.answer(Err(ReservationError::new(code, reason)));
        }
        orders.push_back(Order { ns, op, limit, reply });
        drop(orders);
        self.call_and_wake();
    }

    /// The association has ended: what nobody has begun is refused.
    pub(crate) fn refuse_reservations(&self, fault: &Fault) {
        let orders = std::mem::take(&mut *lock(&self.reserved.orders));
        for order in orders {
            let reason = format!("it was not carried out: {}", fault.reason);
            order.reply.answer(Err(ReservationError::new(Code::PathLost, reason)));
        }
    }

    /// The registration with the namespace `ns` is not ours any more.
    pub(crate) fn forget_reservation(&self, ns: Option<u32>) {
        let mut claimed = lock(&self.reserved.claimed);
        match ns.or_else(|| Some(self.namespace(&*self.live()?, None).ok()?.0)) {
            Some(nsid) => drop(claimed.remove(&nsid)),
            None => claimed.clear(),
        }
    }

    /// A request met somebody's reservation.
    pub(crate) fn ask_reservations(&self) {
        if !self.reserved.conflict.swap(true, Ordering::SeqCst) {
            self.call_and_wake();
        }
    }

    /// Something was heard that may mean that another host has ended what is ours.
    fn alarm(&self) {
        self.reserved.alarms.fetch_add(1, Ordering::AcqRel);
        self.announce();
    }
}

/// Carries out orders, and looks into conflicts; ends with the association.
pub(crate) async fn serve(l: Living) -> Fault {
    let mut queue: Option<ControlLink> = None;
    let mut calm = Time::ZERO;
    loop {
        let order = poll_fn(|_| {
            // Nothing but the loss of the association proves the commands of its queue quiet.
            if let Some(fault) = queue.as_ref().and_then(|q| q.admin.borrow().fault()) {
                return Poll::Ready(Err(fault));
            }
            if l.shared.reserved.conflict.load(Ordering::SeqCst) && l.admin.borrow_mut().reached(calm) {
                l.shared.reserved.conflict.store(false, Ordering::SeqCst);
                calm = l.admin.borrow().now.after(CALM);
                if l.shared.reserved.is_claimed() {
                    l.shared.alarm();
                }
            }
            let reservation = l.shared.reserved.take().map(Next::Reservation);
            let next = reservation.or_else(|| l.shared.relays.take_io().map(Next::Relay));
            next.map_or(Poll::Pending, |next| Poll::Ready(Ok(next)))
        })
        .await;
        let Order { ns, op, limit, reply } = match order {
            Ok(Next::Reservation(order)) => order,
            Ok(Next::Relay(order)) => match relay(&l, &mut queue, order).await {
                Ok(()) => continue,
                Err(fault) => return fault,
            },
            Err(fault) => return fault,
        };
        let (result, end) = match carry_out(&l, &mut queue, ns, op, limit).await {
            Ok(result) => (result, None),
            Err((error, fault)) => (Err(error), Some(fault)),
        };
        reply.answer(result);
        if let Some(fault) = end {
            return fault;
        }
    }
}

/// What is sent over the queue next.
enum Next {
    Reservation(Order),
    Relay(passthrough::Order),
}

/// A command is passed through.
///
/// # Errors
/// Why the association ends with it.
async fn relay(l: &Living, queue: &mut Option<ControlLink>, order: passthrough::Order) -> Result<(), Fault> {
    let link = match queue {
        Some(link) => link,
        None => match open(l).await {
            Ok(link) => queue.insert(link),
            Err(fault) => {
                passthrough::refuse(order, &fault);
                return Ok(());
            }
        },
    };
    passthrough::carry_out(l, &link.admin, order).await
}

/// There is something in the notification log: reads it until it is empty.
pub(crate) async fn read_notifications(l: &Living) -> Result<(), Fault> {
    const LEN: u32 = ReservationNotification::LEN as u32;
    for _ in 0..MOST_NOTIFICATIONS {
        let sqe = Sqe::get_log_page(0, NSID_ALL, lid::RESERVATION, 0, false, 0, LEN);
        let answer = command(&l.admin, sqe, Data::In(LEN), Some(l.shared.config.connect_timeout)).await?;
        let Ok(page) = ReservationNotification::parse(&answer.data) else { break };
        if page.kind != ReservationNotification::EMPTY {
            tracing::info!(path = %l.shared.config.name, nsid = page.nsid, kind = page.kind, "another host has changed reservations");
        }
        if page.left == 0 {
            break;
        }
    }
    l.shared.alarm();
    Ok(())
}

/// The I/O queue of the admin poller.
struct ControlLink {
    admin: Handle,
    _queue: ControlQueue,
}

/// Connects the queue. What goes wrong before anything was sent over it costs the association nothing.
async fn open(l: &Living) -> Result<ControlLink, Fault> {
    let (config, association) = (&l.shared.config, &l.association);
    let queue = l.shared.control_queue(association).ok_or_else(|| {
        let granted = association.queues;
        Fault::new(
            Code::PathBusy,
            format!(
                "all {granted} I/O queues that the controller grants are taken; reservations and passthrough need one of their own"
            ),
        )
    })?;
    let lost = || Fault::new(Code::PathLost, "the association was lost");
    let socket = association.open_socket(&l.shared.host).ok_or_else(lost)?;
    let memory = |error: polypath_memory::MemoryError| Fault::new(Code::PathBusy, format!("no memory: {error}"));
    let mut admin = Admin::new(l.admin.borrow().now).map_err(memory)?;
    let depth = association.depth.min(DEPTH);
    let mut host = attach::host_config(config, depth);
    host.in_capsule_bytes = association.in_capsule;
    admin.set_link(Link::dial(&*config.dialer, association.address, host, RX_ADMIN)?);
    admin.set_socket(Some(socket));
    let link = ControlLink { admin: Rc::new(RefCell::new(admin)), _queue: queue };
    l.admin.borrow_mut().set_control(Some(link.admin.clone()));
    let connect = Sqe::connect(0, link._queue.qid(), depth, cattr::DISABLE_SQ_FLOW_CONTROL, 0);
    let data = attach::connect_data(config, association.cntlid);
    let connected = async {
        attach::link_up(&link.admin, config).await?;
        let answer = command(&link.admin, connect, Data::Out(&data), Some(config.connect_timeout)).await?;
        attach::connected(&answer.cqe)
    };
    match connected.await {
        Ok(_) => Ok(link),
        Err(fault) => {
            l.admin.borrow_mut().set_control(None);
            link.admin.borrow_mut().close();
            Err(fault)
        }
    }
}

/// # Errors
/// What becomes of the order when the association ends with it, and why that ends.
async fn carry_out(
    l: &Living,
    queue: &mut Option<ControlLink>,
    ns: Option<u32>,
    op: ReservationOp,
    limit: Duration,
) -> Result<ReservationResult, (ReservationError, Fault)> {
    let refused = |code, reason: String| Ok(Err(ReservationError::new(code, reason)));
    let until = l.admin.borrow().now.after(limit);
    let (nsid, namespace) = match l.shared.namespace(&l.association, ns) {
        Ok((nsid, namespace)) => (nsid, namespace),
        Err(why) => return refused(Code::PathNoAccess, why.to_string()),
    };
    if l.view.identify.oncs & oncs::RESERVATIONS == 0 {
        return refused(Code::Unsupported, "the controller does no reservations".into());
    }
    if let Some(kind) = op.kind().filter(|kind| namespace.rescap & 1 << kind.nvme_number() == 0) {
        return refused(Code::Unsupported, format!("the namespace does no reservations of type {kind}"));
    }
    let link = match queue {
        Some(link) => link,
        None => match open(l).await {
            Ok(link) => queue.insert(link),
            Err(fault) => return refused(fault.code, format!("it was not carried out: {}", fault.reason)),
        },
    };
    let host = *l.shared.config.identity.id.as_bytes();
    let exchange = Exchange { admin: link.admin.clone(), nsid, until, host };
    let result = match exchange.run(op).await {
        Ok(report) => Ok(report),
        Err(Trouble::Refused(error)) => Err(error),
        Err(Trouble::Lost { changes, fault }) => {
            let error = match changes {
                // It may be carried out until the fence of the association says otherwise, which takes longer than anybody waits here.
                true => ReservationError::new(
                    Code::OutcomeUnknown,
                    format!("whether it was carried out is not known: {}", fault.reason),
                ),
                false => ReservationError::new(fault.code, format!("it was not carried out: {}", fault.reason)),
            };
            return Err((error, fault));
        }
    };
    if result.is_ok() {
        claim(l, nsid, op).await;
    }
    Ok(result)
}

/// What is known of the registration once `op` was carried out.
async fn claim(l: &Living, nsid: u32, op: ReservationOp) {
    use ReservationOp as Op;
    match op {
        Op::Register { .. } | Op::Join { .. } => {
            lock(&l.shared.reserved.claimed).insert(nsid);
            // Everything is to be told. Where that is refused, conflicts tell.
            let sqe = Sqe::set_features(0, nsid, fid::RESERVATION_NOTIFICATION_MASK, 0);
            let limit = Some(l.shared.config.connect_timeout);
            if let Err(fault) = command(&l.admin, sqe, Data::None, limit).await {
                tracing::debug!(path = %l.shared.config.name, reason = %fault.reason, "the notification mask could not be set");
            }
        }
        Op::Unregister { .. } | Op::Clear { .. } => drop(lock(&l.shared.reserved.claimed).remove(&nsid)),
        Op::Reserve { .. } | Op::Release { .. } | Op::Preempt { .. } | Op::Report => {}
    }
}

/// Why an operation did not come to its end.
enum Trouble {
    Refused(ReservationError),
    /// The connection was lost, or did not answer in time.
    Lost {
        /// A command was under way that changes something.
        changes: bool,
        fault: Fault,
    },
}

impl Trouble {
    fn refused(code: Code, reason: impl Into<String>) -> Trouble {
        Trouble::Refused(ReservationError::new(code, reason))
    }
}

/// One operation.
struct Exchange {
    admin: Handle,
    nsid: u32,
    until: Time,
    host: [u8; 16],
}

impl Exchange {
    async fn run(&self, op: ReservationOp) -> Result<Option<ReservationReport>, Trouble> {
        use ReservationOp as Op;
        let ignore_key = false;
        match op {
            Op::Report => return Ok(Some(report(&self.status().await?))),
            Op::Register { key } => self.register(key, &self.status().await?).await?,
            Op::Join { key, host } => self.join(key, host).await?,
            Op::Unregister { key } => self.register_with(RegisterAction::Unregister, key, 0).await?,
            Op::Reserve { key, kind } => self.acquire(AcquireAction::Acquire, key, 0, kind).await?,
            Op::Preempt { key, victim, kind, abort } => {
                let action = if abort { AcquireAction::PreemptAndAbort } else { AcquireAction::Preempt };
                self.acquire(action, key, victim, kind).await?;
            }
            Op::Release { key, kind } => {
                let (action, rtype) = (ReleaseAction::Release, kind.nvme_number());
                let data = ReleaseData { current_key: key }.to_bytes();
                self.change(ReservationCommand::Release { action, ignore_key, rtype }, &data).await?;
            }
            Op::Clear { key } => {
                let data = ReleaseData { current_key: key }.to_bytes();
                let action = ReleaseAction::Clear;
                self.change(ReservationCommand::Release { action, ignore_key, rtype: 0 }, &data).await?;
            }
        }
        Ok(None)
    }

    /// Registers this host with `key`, whatever it is registered with by `status`. Another controller of the host may have done it.
    async fn register(&self, key: u64, status: &ReservationStatus) -> Result<(), Trouble> {
        match status.registered.iter().find(|r| r.host_id == self.host) {
            Some(ours) if ours.key == key => Ok(()),
            Some(ours) => self.register_with(RegisterAction::Replace, ours.key, key).await,
            None => self.register_with(RegisterAction::Register, 0, key).await,
        }
    }

    /// Registers this host as others are, or as itself is over another way.
    async fn join(&self, key: u64, host: Option<[u8; 16]>) -> Result<(), Trouble> {
        let ended = || {
            let who = if host.is_some() { "this host is not" } else { "nobody is" };
            let reason = format!("{who} registered with key {key:#x} any more: somebody has ended that");
            Trouble::refused(Code::ReservationConflict, reason)
        };
        let before = self.status().await?;
        if !before.registered.iter().any(|r| r.key == key && host.is_none_or(|host| r.host_id == host)) {
            return Err(ended());
        }
        if before.registered.iter().any(|r| r.key == key && r.host_id == self.host) {
            return Ok(());
        }
        self.register(key, &before).await?;
        if stands(key, self.host, &before, &self.status().await?) {
            return Ok(());
        }
        // What we saw was ended before we registered: that was to steal it back.
        match self.register_with(RegisterAction::Unregister, key, 0).await {
            // Somebody else may have done it by now.
            Ok(()) | Err(Trouble::Refused(_)) => Err(ended()),
            Err(lost) => Err(lost),
        }
    }

    async fn register_with(&self, action: RegisterAction, current_key: u64, new_key: u64) -> Result<(), Trouble> {
        let command = ReservationCommand::Register { action, ignore_key: false, persist: ChangePersist::Keep };
        self.change(command, &RegisterData { current_key, new_key }.to_bytes()).await
    }

    async fn acquire(
        &self,
        action: AcquireAction,
        current_key: u64,
        victim_key: u64,
        kind: ReservationType,
    ) -> Result<(), Trouble> {
        let command = ReservationCommand::Acquire { action, ignore_key: false, rtype: kind.nvme_number() };
        self.change(command, &AcquireData { current_key, victim_key }.to_bytes()).await
    }

    async fn status(&self) -> Result<ReservationStatus, Trouble> {
        let mut len = FIRST_REPORT;
        loop {
            let command = ReservationCommand::Report { len: len.into(), extended: true };
            let data = self.send(command, Data::In(len), false).await?;
            let garbage = |reason: String| Trouble::refused(Code::PathProtocol, reason);
            let status = ReservationStatus::parse(&data).map_err(|e| garbage(e.to_string()))?;
            if status.is_whole() {
                return Ok(status);
            }
            let need = ReservationStatus::len_of(status.count);
            if need > ADMIN_DATA.into() || need <= len.into() {
                return Err(garbage(format!("a report of {} registrations found; expected fewer", status.count)));
            }
            len = need as u32;
        }
    }

    async fn change(&self, command: ReservationCommand, data: &[u8]) -> Result<(), Trouble> {
        self.send(command, Data::Out(data), true).await.map(drop)
    }

    async fn send(&self, what: ReservationCommand, data: Data<'_>, changes: bool) -> Result<Vec<u8>, Trouble> {
        let limit = self.until.since(self.admin.borrow().now);
        if limit == Duration::ZERO {
            return Err(Trouble::refused(Code::PathTimeout, "it was not carried out: no time was left for it"));
        }
        let sqe = what.to_sqe(0, self.nsid);
        match command(&self.admin, sqe, data, Some(limit)).await {
            Ok(answer) if answer.cqe.status.is_success() => Ok(answer.data),
            Ok(answer) => Err(Trouble::Refused(refusal(answer.cqe.status, changes))),
            Err(fault) => Err(Trouble::Lost { changes, fault }),
        }
    }
}

/// What a status of the controller means to whoever asked.
fn refusal(status: StatusField, changes: bool) -> ReservationError {
    let code = match map(status).code {
        // Given up in the middle. It is not sent twice: a second one might undo what others have done since.
        Code::PathLost | Code::Aborted if changes => Code::OutcomeUnknown,
        code => code,
    };
    let reason = match code {
        Code::ReservationConflict => {
            "conflict: another host holds it, or this one is not registered with that key".to_owned()
        }
        _ => format!("the controller refused it: {status}"),
    };
    // Whatever it says, it says it last.
    ReservationError::new(code, reason).quiet_by(Proof::Answered)
}

/// Has `ours` registered with `key` while it was registered by another host that was seen in the report `before`? Told by the one `after`:
/// nothing but our registration has changed anything in between, or one of those hosts is registered still.
fn stands(key: u64, ours: [u8; 16], before: &ReservationStatus, after: &ReservationStatus) -> bool {
    let has = |status: &ReservationStatus, host| status.registered.iter().any(|r| r.key == key && r.host_id == host);
    let mut others = before.registered.iter().filter(|r| r.key == key && r.host_id != ours);
    has(after, ours)
        && (after.generation == before.generation.wrapping_add(1) || others.any(|other| has(after, other.host_id)))
}

fn report(status: &ReservationStatus) -> ReservationReport {
    let registrant = |r: &polypath_nvme::reservation::RegisteredController| Registrant {
        key: r.key,
        host: Some(r.host_id),
        holder: r.is_holder(),
    };
    ReservationReport {
        generation: status.generation,
        registrants: status.registered.iter().map(registrant).collect(),
        held: ReservationType::from_nvme_number(status.rtype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_nvme::reservation::RegisteredController;

    #[test]
    fn what_may_have_been_carried_out_is_not_said_to_have_failed() {
        use StatusField as S;
        for (status, changes, code) in [
            (S::RESERVATION_CONFLICT.with_dnr(), true, Code::ReservationConflict),
            (S::INVALID_OPCODE.with_dnr(), true, Code::Unsupported),
            (S::INVALID_FIELD.with_dnr(), true, Code::Invalid),
            (S::ANA_TRANSITION, true, Code::PathBusy),
            (S::ANA_INACCESSIBLE, true, Code::PathNoAccess),
            (S::ABORT_REQUESTED, true, Code::OutcomeUnknown),
            (S::INTERNAL_ERROR, true, Code::OutcomeUnknown),
            (S::ABORTED_PREEMPT, true, Code::OutcomeUnknown),
            (S::INTERNAL_ERROR, false, Code::PathLost),
        ] {
            let refused = refusal(status, changes);
            assert_eq!((refused.code, refused.quiet), (code, Some(Proof::Answered)), "{status}");
        }
    }

    /// Between the report that we joined by and our registration another host may have ended what we saw in it.
    #[test]
    fn who_joins_looks_again_whether_those_he_joined_are_there() {
        let one = |host: u8, key| RegisteredController { key, host_id: [host; 16], ..Default::default() };
        let status = |generation, registered: &[(u8, u64)]| ReservationStatus {
            generation,
            count: registered.len() as u16,
            registered: registered.iter().map(|&(host, key)| one(host, key)).collect(),
            ..Default::default()
        };
        let (ours, before) = ([1; 16], status(u32::MAX, &[(2, 7), (3, 8)]));
        for (after, want) in [
            (status(0, &[(1, 7), (2, 7), (3, 8)]), true),
            (status(1, &[(1, 7), (2, 7), (4, 9)]), true),
            (status(1, &[(1, 7), (3, 8)]), false),
            // Another one has joined as late as we have.
            (status(2, &[(1, 7), (4, 7)]), false),
            (status(1, &[(2, 7), (3, 8)]), false),
            (status(1, &[(1, 9), (2, 7)]), false),
        ] {
            assert_eq!(stands(7, ours, &before, &after), want, "{after:?}");
        }
    }

    #[test]
    fn a_report_names_hosts_and_the_holder() {
        let one = |key, status| RegisteredController { key, status, host_id: [key as u8; 16], ..Default::default() };
        let status = ReservationStatus {
            generation: 9,
            rtype: 3,
            count: 2,
            registered: vec![one(1, 1), one(2, 0)],
            ..Default::default()
        };
        let report = report(&status);
        assert_eq!((report.generation, report.held), (9, Some(ReservationType::WriteExclusiveRegistrantsOnly)));
        assert!(report.is_held_by(1) && !report.is_held_by(2) && report.has(2));
        assert_eq!(report.registrants[1].host, Some([2; 16]));
    }
}
