//! Commands that are passed through: orders of the devices, and what the admin poller does with them.
//!
//! Admin commands go over the admin queue, beside everything else; I/O commands over the I/O queue of reservations, in turn with those. What
//! may change something is sent once. When the association is lost in the middle its answer is held back until the fence says that
//! nothing of it can land any more.

mod table;

use crate::admin::{Data, Fault, Handle, command};
use crate::association::{Association, lock};
use crate::live::Living;
use crate::shared::Shared;
use polypath_block::{
    Code, CommandSet, LONGEST_PASSTHROUGH, NvmeCommand, PassthroughAnswer, PassthroughCommand, PassthroughData,
    PassthroughError, PassthroughReply, PassthroughRequest, PassthroughStatus, Time,
};
use polypath_nvme::Sqe;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

/// Commands that wait at a time, for either queue.
const MOST_ORDERS: usize = 64;
/// Pause before it is looked again whether the last socket of an association is closed.
const LOOK: Duration = Duration::from_millis(20);

/// Somebody wants a command to be sent.
pub(crate) struct Order {
    ns: Option<u32>,
    command: NvmeCommand,
    data: PassthroughData,
    changes: bool,
    until: Time,
    reply: PassthroughReply,
}

/// What was sent to change something over an association that is lost.
struct Held {
    association: Arc<Association>,
    reason: String,
    reply: PassthroughReply,
}

/// What devices and the admin poller know of it in common.
#[derive(Default)]
pub(crate) struct Relays {
    admin: Mutex<VecDeque<Order>>,
    io: Mutex<VecDeque<Order>>,
    held: Mutex<Vec<Held>>,
}

impl Relays {
    fn take_admin(&self) -> Option<Order> {
        lock(&self.admin).pop_front()
    }

    /// The next one for an I/O queue.
    pub(crate) fn take_io(&self) -> Option<Order> {
        lock(&self.io).pop_front()
    }

    fn take_all(&self) -> Vec<Order> {
        let mut all: Vec<_> = lock(&self.admin).drain(..).collect();
        all.extend(lock(&self.io).drain(..));
        all
    }

    /// Those whose time has passed at `now`, and when that of the next one does.
    fn take_late(&self, now: Time) -> (Vec<Order>, Time) {
        let (mut late, mut next) = (Vec::new(), Time::NEVER);
        for orders in [&self.admin, &self.io] {
            let mut orders = lock(orders);
            for order in std::mem::take(&mut *orders) {
                if now >= order.until {
                    late.push(order);
                } else {
                    next = next.min(order.until);
                    orders.push_back(order);
                }
            }
        }
        (late, next)
    }

    /// Those that are quiet at `now`, and when to look again.
    fn take_quiet(&self, now: Time) -> (Vec<Held>, Time) {
        let mut next = Time::NEVER;
        let mut held = lock(&self.held);
        let (quiet, rest) = std::mem::take(&mut *held).into_iter().partition(|held| {
            let at = if held.association.is_lost() { held.association.fence.quiet_at() } else { None };
            let is_quiet = at.is_some_and(|at| now >= at);
            if !is_quiet {
                next = next.min(at.unwrap_or(now.after(LOOK)));
            }
            is_quiet
        });
        *held = rest;
        (quiet, next)
    }

    fn holds_any(&self) -> bool {
        !lock(&self.held).is_empty()
    }

    /// Nobody is left who could tell when it is quiet.
    pub(crate) fn abandon(&self) {
        let all = (self.take_all(), std::mem::take(&mut *lock(&self.held)));
        drop(all);
    }
}

impl Shared {
    /// Somebody wants `request` to be sent to the namespace `ns`.
    pub(crate) fn order_passthrough(
        &self,
        ns: Option<u32>,
        request: PassthroughRequest,
        limit: Duration,
        reply: PassthroughReply,
    ) {
        let command = match check(&request) {
            Ok(command) => command,
            Err(error) => return reply.answer(Err(error)),
        };
        let until = self.host.now().after(limit.min(LONGEST_PASSTHROUGH));
        let PassthroughRequest { data, changes, .. } = request;
        let mut orders = lock(if command.admin { &self.relays.admin } else { &self.relays.io });
        // Under the lock: whoever ends an association refuses what is there afterwards.
        let refusal = match self.live() {
            None => Some((Code::PathLost, "there is no connection now")),
            Some(_) if orders.len() >= MOST_ORDERS => Some((Code::PathBusy, "too many commands wait")),
            Some(_) => None,
        };
        if let Some((code, reason)) = refusal {
            drop(orders);
            return reply.refuse(code, reason);
        }
        orders.push_back(Order { ns, command, data, changes, until, reply });
        drop(orders);
        self.call_and_wake();
    }

    /// The association has ended: what nobody has begun is refused.
    pub(crate) fn refuse_relays(&self, fault: &Fault) {
        for order in self.relays.take_all() {
            order.reply.refuse(Code::PathLost, format!("it was not carried out: {}", fault.reason));
        }
    }
}

fn check(request: &PassthroughRequest) -> Result<NvmeCommand, PassthroughError> {
    request.check_length()?;
    let PassthroughCommand::Nvme(command) = &request.command else {
        let reason = format!("it takes {} commands; expected one of these", CommandSet::Nvme);
        return Err(PassthroughError::new(Code::Unsupported, reason));
    };
    table::admit(command, &request.data, request.changes)?;
    Ok(*command)
}

/// Sends admin commands, one after the other; ends with the association.
pub(crate) async fn serve(l: Living) -> Fault {
    loop {
        let order = poll_fn(|_| l.shared.relays.take_admin().map_or(Poll::Pending, Poll::Ready)).await;
        if let Err(fault) = carry_out(&l, &l.admin, order).await {
            return fault;
        }
    }
}

/// Answers what has waited for too long, and what was lost and is quiet. Never ends.
pub(crate) async fn keep(admin: &Handle, shared: &Shared) {
    poll_fn(|_| {
        let now = admin.borrow().now;
        let (late, next_late) = shared.relays.take_late(now);
        let (quiet, next_quiet) = shared.relays.take_quiet(now);
        for order in late {
            order.reply.refuse(Code::PathBusy, "the path was busy for too long; nothing was sent");
        }
        for Held { association, reason, reply } in quiet {
            let proof = association.fence.terms().proof;
            let reason = format!("whether it was carried out is not known: {reason}; it is quiet: {proof}");
            reply.refuse(Code::OutcomeUnknown, reason);
        }
        let next = next_late.min(next_quiet);
        if next != Time::NEVER {
            admin.borrow_mut().reached(next);
        }
        Poll::<()>::Pending
    })
    .await;
}

/// Waits until nothing is held back any more. [`keep`] goes on meanwhile.
pub(crate) async fn settled(shared: &Shared) {
    poll_fn(|_| if shared.relays.holds_any() { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// It has been sent, or is about to be. Whatever ends it, somebody is told.
struct UnderWay<'a> {
    shared: &'a Shared,
    association: &'a Arc<Association>,
    changes: bool,
    reply: Option<PassthroughReply>,
}

impl UnderWay<'_> {
    fn answer(mut self, answer: PassthroughAnswer) {
        if let Some(reply) = self.reply.take() {
            reply.answer(Ok(answer));
        }
    }

    fn lose(&mut self, code: Code, reason: &str) {
        let Some(reply) = self.reply.take() else { return };
        if !self.changes {
            return reply.refuse(code, format!("it was lost: {reason}"));
        }
        let held = Held { association: self.association.clone(), reason: reason.to_owned(), reply };
        lock(&self.shared.relays.held).push(held);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        // Another task of the association has ended it.
        let (_, reason) = self.association.loss();
        self.lose(Code::PathLost, &reason);
    }
}

/// Sends it over `queue`.
///
/// # Errors
/// Why the association ends with it.
pub(crate) async fn carry_out(l: &Living, queue: &Handle, order: Order) -> Result<(), Fault> {
    let Order { ns, command: wanted, data, changes, until, reply } = order;
    let nsid = match l.shared.namespace(&l.association, ns) {
        Ok((_, namespace)) if namespace.trouble.is_some() => {
            reply.refuse(Code::PathIdentity, "the namespace is in trouble; nothing was sent");
            return Ok(());
        }
        Ok((nsid, _)) => nsid,
        Err(why) => {
            reply.refuse(Code::PathNoAccess, why.to_string());
            return Ok(());
        }
    };
    let limit = until.since(l.admin.borrow().now);
    if limit == Duration::ZERO {
        reply.refuse(Code::PathBusy, "the path was busy for too long; nothing was sent");
        return Ok(());
    }
    let sqe: Sqe = table::entry(&wanted, nsid);
    let sent = match &data {
        PassthroughData::Out(octets) if !octets.is_empty() => Data::Out(octets),
        PassthroughData::In(len) if *len > 0 => Data::In(*len),
        PassthroughData::None | PassthroughData::In(_) | PassthroughData::Out(_) => Data::None,
    };
    let (shared, association) = (&*l.shared, &l.association);
    let mut under_way = UnderWay { shared, association, changes, reply: Some(reply) };
    match command(queue, sqe, sent, Some(limit)).await {
        Ok(answer) => {
            let status = PassthroughStatus::Nvme { status: answer.cqe.status.raw(), dw0: answer.cqe.dw0() };
            under_way.answer(PassthroughAnswer { status, data: answer.data });
            Ok(())
        }
        Err(fault) => {
            under_way.lose(fault.code, &fault.reason);
            Err(fault)
        }
    }
}

/// There is no queue for it.
pub(crate) fn refuse(order: Order, fault: &Fault) {
    order.reply.refuse(fault.code, format!("it was not carried out: {}", fault.reason));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::association::Shape;
    use crate::fence::AssociationFence;
    use polypath_block::NvmeScope;
    use polypath_nvme::keepalive::{Assumed, Reported};
    use std::sync::mpsc::{Receiver, channel};

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    fn reply() -> (PassthroughReply, Receiver<Option<Code>>) {
        let (tell, told) = channel();
        (PassthroughReply::new(move |result| tell.send(result.err().map(|e| e.code)).unwrap_or(())), told)
    }

    /// An association with a bound of 2100 ms and one open socket.
    fn association() -> Arc<Association> {
        let reported = Reported { kato_ms: 1000, kas: 1, traffic_based: false, cqt_ms: 100 };
        let fence = AssociationFence::new(reported, Assumed { without_keep_alive_ms: 1, quiesce_ms: 1 });
        fence.opened();
        let address = "127.0.0.1:1".parse().unwrap();
        let shape =
            Shape { generation: 1, address, cntlid: 1, queues: 1, control_qid: None, depth: 1, in_capsule: 0, fence };
        Arc::new(Association::new(shape))
    }

    #[test]
    fn what_is_held_back_is_quiet_when_its_association_is() {
        let (relays, association, (reply, told)) = (Relays::default(), association(), reply());
        let held = Held { association: association.clone(), reason: "gone".into(), reply };
        relays.held.lock().unwrap().push(held);
        let quiet = |now| {
            let (quiet, next) = relays.take_quiet(at(now));
            (quiet.len(), next)
        };
        assert_eq!(quiet(10), (0, at(30)), "it is not known to be lost yet");
        association.lose(Code::PathLost, "gone");
        assert_eq!(quiet(20), (0, at(40)), "a socket is open");
        association.fence.closed(at(50));
        assert_eq!(quiet(60), (0, at(2150)));
        assert!(quiet(2149).0 == 0 && relays.holds_any());
        let (quiet, next) = relays.take_quiet(at(2150));
        assert!(quiet.len() == 1 && next == Time::NEVER && !relays.holds_any() && told.try_recv().is_err());
    }

    #[test]
    fn what_waits_for_too_long_is_not_sent() {
        let relays = Relays::default();
        let command = NvmeCommand { admin: true, opcode: 6, scope: NvmeScope::Namespace, cdw10_15: [0; 6] };
        let order = |until| {
            let (reply, _) = reply();
            Order { ns: None, command, data: PassthroughData::None, changes: false, until, reply }
        };
        relays.admin.lock().unwrap().extend([order(at(100)), order(at(50))]);
        relays.io.lock().unwrap().push_back(order(at(70)));
        let late = |now| {
            let (late, next) = relays.take_late(at(now));
            (late.len(), next)
        };
        assert_eq!([late(49), late(50), late(70)], [(0, at(50)), (1, at(70)), (1, at(100))]);
        assert!(relays.take_io().is_none() && relays.take_admin().is_some_and(|order| order.until == at(100)));
    }

    #[test]
    fn nobody_waits_for_an_answer_of_a_controller_that_has_ended() {
        let (relays, association, (reply, told)) = (Relays::default(), association(), reply());
        relays.held.lock().unwrap().push(Held { association, reason: "gone".into(), reply });
        relays.abandon();
        assert_eq!(told.try_recv(), Ok(Some(Code::OutcomeUnknown)));
    }
}
