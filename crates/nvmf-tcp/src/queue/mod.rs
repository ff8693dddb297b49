//! One I/O queue: one TCP connection, owned by one reactor, for all namespaces of the controller.
//!
//! A request takes one command (or several, when it is larger than the controller takes), all commands of a turn leave in one
//! send, and whatever has come is taken in one receive. The queue connects by itself whenever its controller is up, and closes its
//! socket whenever the association is lost, whoever found that out.
//!
//! Each fact is owned by a value with its life: what belongs to one command by its slot in the link, what belongs to one request by
//! [`requests`], to one connection by [`connection`], to a lost association by [`fenced`], to a namespace by [`units`]. What is
//! left here belongs to the queue.

mod connection;
mod deadlines;
mod fenced;
mod requests;
mod single;
mod submit;
mod units;

pub(crate) use single::NamespaceQueue;

use crate::admin::Fault;
use crate::association::Association;
use crate::attach;
use crate::command;
use crate::link::{Broken, Finished, Transfer};
use crate::shared::{AbortOrder, QueueMailbox, Shared, Stage};
use connection::{CONNECT, Connection};
use fenced::{EndFence, FencedChanges};
use polypath_block::{
    Armed, Code, ControllerQueue, Cx, Done, FenceTerms, Health, Io, OpenError, Proof, QueueConfig, QueueFence, Refused,
    Rest, SegRow, SlotKey, Time, TurnClock, Unit, UnitId, Waits,
};
use polypath_memory::{Arena, Chunk};
use polypath_nvme::fabrics::ConnectData;
use requests::Requests;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use units::{Change, Units};

/// Requests that may wait for their fences, as a multiple of the depth: more are refused rather than kept without bound.
const FENCED_DEPTHS: usize = 4;

/// Where and when to connect next, while there is no connection.
struct Redial {
    association: Arc<Association>,
    at: Time,
    failures: u32,
}

/// What is counted until it is published.
#[derive(Default)]
struct Counts {
    ios: u64,
    bytes: u64,
    /// Of the connection, published so far.
    syscalls: u64,
}

/// See the module.
pub(crate) struct QueuePair {
    shared: Arc<Shared>,
    mailbox: Arc<QueueMailbox>,
    qid: u16,
    units: Units,
    requests: Requests,
    fenced: FencedChanges,
    connection: Option<Connection>,
    connections: u64,
    redial: Option<Redial>,
    clock: TurnClock,
    /// How often limits are looked at.
    tick: Duration,
    /// The ranges of discards, one for each request; before there are any, the data of Connect.
    ranges: Chunk,
    ranges_row: Option<SegRow>,
    slots: u16,
    slept: bool,
    closing: bool,
    counts: Counts,
    end_fence: Arc<EndFence>,
}

impl QueuePair {
    /// A queue that connects as soon as the controller is up.
    pub(crate) fn open(shared: Arc<Shared>, config: QueueConfig) -> Result<Self, OpenError> {
        let system = |reason: String| OpenError::System { name: shared.config.name.clone(), reason };
        let slots = config.depth.max(shared.config.queue_depth).clamp(1, 8192);
        let len = (u32::from(slots) * command::RANGE_LEN).max(ConnectData::LEN as u32);
        let ranges = Arena::new(len.into(), false).map_err(|e| system(e.to_string()))?;
        let ranges = ranges.chunk(len).ok_or_else(|| system("no memory for ranges".into()))?;
        let (qid, mailbox) = shared.register_queue()?;
        // The first turn looks at everything.
        mailbox.bell.ring();
        let tick = deadlines::tick(&shared.config);
        let bound_ms = u32::try_from(shared.config.fence.as_millis()).unwrap_or(u32::MAX);
        let assumed = FenceTerms { proof: Proof::ConfiguredBound { bound_ms }, within: shared.config.fence };
        Ok(QueuePair {
            shared,
            mailbox,
            qid,
            units: Units::default(),
            requests: Requests::new(slots),
            fenced: FencedChanges::new(usize::from(slots) * FENCED_DEPTHS),
            connection: None,
            connections: 0,
            redial: None,
            clock: TurnClock::new(),
            tick,
            ranges,
            ranges_row: None,
            slots,
            slept: false,
            closing: false,
            counts: Counts::default(),
            end_fence: Arc::new(EndFence::new(assumed)),
        })
    }

    fn is_usable(&self, unit: Unit) -> bool {
        !self.closing
            && self.connection.as_ref().is_some_and(Connection::is_ready)
            && self.units.get(unit).is_some_and(|u| u.usable)
    }

    /// The controller, the association or a namespace may have changed, or an Abort was answered.
    #[cold]
    fn follow(&mut self, now: Time, done: &mut Done) {
        for answer in self.mailbox.take_answers() {
            if let Some(connection) = &mut self.connection
                && let Some(key) = connection.abort_answered(answer)
            {
                self.requests.abort_answered(key, now);
            }
        }
        if let Some(connection) = &self.connection
            && connection.association().is_lost()
        {
            let (code, reason) = connection.association().loss();
            tracing::debug!(path = %self.shared.config.name, qid = self.qid, %reason, "I/O queue leaves a lost association");
            self.lose(done, code);
        }
        let live = match self.shared.stage() {
            Stage::Live(association) => Some(association).filter(|a| !a.is_lost()),
            Stage::Starting | Stage::Down { .. } | Stage::Gone { .. } => None,
        };
        let mut revoked = Vec::new();
        self.units.follow(&self.shared, live.as_deref(), |unit, change| {
            if let Change::Revoked(code) = change {
                revoked.push((unit, code));
            }
        });
        for (unit, code) in revoked {
            self.revoke(unit, code, done);
        }
        match live {
            Some(association) => {
                if self.redial.as_ref().is_none_or(|r| r.association.generation != association.generation) {
                    self.redial = Some(Redial { association, at: Time::ZERO, failures: 0 });
                }
            }
            None => self.redial = None,
        }
    }

    /// Open requests of a unit are not for what is behind it now: nothing more of them leaves, and whatever is answered is no success.
    #[cold]
    fn revoke(&mut self, unit: Unit, code: Code, done: &mut Done) {
        let mut leaving = false;
        for key in self.requests.of_unit(unit) {
            self.requests.fail(key, code);
            if let Some(connection) = &mut self.connection {
                for (slot, _) in connection.commands_of(key) {
                    if connection.withdraw(slot) {
                        self.requests.part_withdrawn(key, code);
                    } else {
                        leaving |= !connection.has_left(slot);
                    }
                }
            }
            self.requests.end_if_over(key, done);
        }
        if leaving && let Some(connection) = &mut self.connection {
            // For the other namespaces the way is lost, and nothing else.
            let reason = "data for a namespace that is another one now were on their way".into();
            connection.set_broken(Broken { code: Code::PathLost, reason });
        }
    }

    /// Works on the connection while it is not ready.
    #[cold]
    fn progress(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let Some(connection) = &mut self.connection else { return self.redial(cx.now) };
        if connection.is_overdue(cx.now) {
            let ms = self.shared.config.connect_timeout.as_millis();
            let reason = format!("I/O queue {} is not connected within {ms} ms", self.qid);
            self.opening_failed(cx.now, done, &Fault::new(Code::PathTimeout, reason));
        } else if connection.wants_connect() {
            self.connect(cx);
        }
    }

    fn redial(&mut self, now: Time) {
        let Some(redial) = self.redial.as_mut().filter(|r| !self.closing && now >= r.at) else { return };
        let association = redial.association.clone();
        if self.qid > association.queues {
            redial.at = Time::NEVER;
            let (path, qid, granted) = (&self.shared.config.name, self.qid, association.queues);
            tracing::error!(%path, qid, granted, "the controller grants too few I/O queues for this one");
            return;
        }
        self.connections += 1;
        match Connection::dial(&self.shared, &association, self.connections, now) {
            Ok(connection) => self.connection = connection,
            Err(broken) => self.retry_later(now, &broken.into()),
        }
    }

    fn connect(&mut self, cx: &mut Cx<'_>) {
        let (Some(connection), Some(row)) = (&mut self.connection, &self.ranges_row) else { return };
        let data = attach::connect_data(&self.shared.config, connection.association().cntlid);
        if self.ranges.window().copy_in(0, &data).is_err() {
            let reason = "no room for the data of Connect".into();
            return connection.set_broken(Broken { code: Code::BadMemory, reason });
        }
        let span = row.span(0, 1);
        cx.segs.get_mut(span)[0] = self.ranges.segment();
        connection.connect(self.qid, Transfer::Out { span, skip: 0, len: data.len() as u32 });
    }

    fn connect_answered(&mut self, now: Time, done: &mut Done, finished: &Finished) {
        match attach::connected(&finished.cqe) {
            Ok(_) => {
                if let Some(connection) = &mut self.connection {
                    connection.set_ready();
                }
                if let Some(redial) = &mut self.redial {
                    redial.failures = 0;
                }
                tracing::debug!(path = %self.shared.config.name, qid = self.qid, "I/O queue is connected");
            }
            Err(fault) => self.opening_failed(now, done, &fault),
        }
    }

    /// The connection could not be made. Nothing but Connect was sent over it, so that the association need not suffer.
    fn opening_failed(&mut self, now: Time, done: &mut Done, fault: &Fault) {
        self.lose(done, fault.code);
        self.retry_later(now, fault);
    }

    fn retry_later(&mut self, now: Time, fault: &Fault) {
        let config = &self.shared.config;
        let Some(redial) = &mut self.redial else { return };
        redial.failures += 1;
        let delay = config.reconnect_delay * redial.failures.min(10);
        tracing::warn!(
            path = %config.name, qid = self.qid, reason = %fault.reason, again_ms = delay.as_millis() as u64,
            "I/O queue cannot be connected"
        );
        redial.at = now.after(delay);
    }

    /// Takes what has come.
    #[inline]
    fn receive(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let QueuePair { connection: Some(connection), requests, counts, shared, .. } = self else { return };
        let now = cx.now;
        let mut connected = None;
        connection.receive(cx.segs, now, |finished| {
            if finished.user == CONNECT {
                connected = Some(finished);
                return;
            }
            counts.ios += 1;
            let Some(ending) = requests.finish(&finished, now, done) else { return };
            if matches!(ending.code, Code::PathNoAccess | Code::PathBusy) {
                shared.ask_ana();
            }
            if ending.code == Code::ReservationConflict {
                shared.ask_reservations();
            }
            counts.bytes += ending.bytes;
        });
        if let Some(finished) = connected {
            self.connect_answered(now, done, &finished);
        }
    }

    /// Leaves a connection that is of no use any more. If requests were sent over it, the association goes with it, since nothing else
    /// proves its commands quiet.
    #[cold]
    fn break_down(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let Some(connection) = &self.connection else { return };
        let Some(broken) = connection.broken().cloned() else { return };
        if connection.was_ready() {
            let reason = format!("I/O queue {}: {}", self.qid, broken.reason);
            self.shared.lose(connection.association(), broken.code, reason);
            self.lose(done, broken.code);
        } else {
            self.opening_failed(cx.now, done, &broken.into());
        }
    }

    /// Closes the socket and accounts for every request.
    #[cold]
    fn lose(&mut self, done: &mut Done, code: Code) {
        self.publish();
        let Some(connection) = self.connection.take() else { return };
        self.counts.syscalls = 0;
        let association = connection.association().clone();
        let requests = &mut self.requests;
        connection.abort(|ended| requests.part_lost(&ended));
        self.requests.lose_all(&association, code, &mut self.fenced, done);
    }

    /// Looks at all limits. Runs some ten times a second while commands are outstanding.
    #[cold]
    fn check_time(&mut self, now: Time, done: &mut Done) {
        let Some(connection) = &mut self.connection else { return };
        connection.check_silence(&self.shared, self.qid, now);
        if connection.broken().is_some() {
            return;
        }
        let config = &self.shared.config;
        let (limit, grace) = (config.io_timeout, config.silence_timeout * 2);
        for (key, aborting) in self.requests.late(now, limit) {
            match aborting {
                None => self.abort_request(key, now, done),
                Some(since) if now.since(since) >= grace => {
                    let reason = format!("a command is not answered within {} ms and not aborted", limit.as_millis());
                    if let Some(connection) = &mut self.connection {
                        connection.set_broken(Broken { code: Code::PathTimeout, reason });
                    }
                    return;
                }
                Some(_) => {}
            }
        }
    }

    /// Takes back what has not left, and has the rest of a request aborted.
    fn abort_request(&mut self, key: SlotKey, now: Time, done: &mut Done) {
        let Some(connection) = &mut self.connection else { return };
        self.requests.abort(key, now);
        for (slot, cid) in connection.commands_of(key) {
            if connection.withdraw(slot) {
                self.requests.part_withdrawn(key, Code::PathTimeout);
                continue;
            }
            connection.abort_sent(slot);
            self.requests.abort_ordered(key);
            self.shared.ask_abort(AbortOrder {
                generation: connection.association().generation,
                qid: self.qid,
                cid,
                slot,
                connection: connection.id(),
                queue: self.mailbox.clone(),
            });
        }
        self.requests.end_if_over(key, done);
    }

    fn publish(&mut self) {
        let counts = &self.shared.counts;
        let syscalls = self.connection.as_ref().map_or(self.counts.syscalls, Connection::syscalls);
        counts.ios.fetch_add(std::mem::take(&mut self.counts.ios), Ordering::Relaxed);
        counts.bytes.fetch_add(std::mem::take(&mut self.counts.bytes), Ordering::Relaxed);
        counts.syscalls.fetch_add(syscalls - self.counts.syscalls, Ordering::Relaxed);
        self.counts.syscalls = syscalls;
    }

    /// Closes the connection of a closed queue that has nothing left to do.
    fn shut(&mut self, cx: &mut Cx<'_>) {
        self.publish();
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
        self.counts.syscalls = 0;
        if let Some(row) = self.ranges_row.take() {
            cx.segs.release(row);
        }
    }
}

impl ControllerQueue for QueuePair {
    fn open_unit(&mut self, id: UnitId) -> Result<Unit, OpenError> {
        let unit = self.units.open(&self.shared, id)?;
        // The next turn looks at it.
        self.mailbox.bell.ring();
        Ok(unit)
    }

    fn close_unit(&mut self, unit: Unit) {
        self.units.close(unit);
    }

    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, unit: Unit, io: Io) -> Result<(), Refused> {
        self.take_all(cx, unit, std::slice::from_ref(&io)).map_err(|rest| rest.refuses(io))
    }

    fn submit_all(&mut self, cx: &mut Cx<'_>, unit: Unit, ios: &[Io]) -> Result<(), Rest> {
        self.take_all(cx, unit, ios)
    }

    #[inline]
    fn kick(&mut self, cx: &mut Cx<'_>) {
        if let Some(connection) = &mut self.connection
            && !self.mailbox.bell.is_rung()
        {
            connection.flush(cx.segs);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.mailbox.bell.rise();
        if let Some(late) = self.clock.turn(cx.now, self.tick)
            && let Some(connection) = &mut self.connection
        {
            connection.forgive(late, cx.now);
        }
        if self.ranges_row.is_none() && !self.closing {
            self.ranges_row = cx.segs.reserve(u32::from(self.slots), 1).ok();
        }
        if self.mailbox.bell.answer() {
            self.follow(cx.now, done);
        }
        let slept = std::mem::take(&mut self.slept);
        if self.connection.as_ref().is_some_and(|c| c.wants_look(cx.now, slept)) {
            self.receive(cx, done);
        } else {
            self.slept = slept;
        }
        if !self.connection.as_ref().is_some_and(Connection::was_ready) {
            self.progress(cx, done);
        }
        if self.requests.has_backlog() {
            self.feed(cx);
        }
        let (broken, due) = match &mut self.connection {
            Some(connection) => {
                connection.flush(cx.segs);
                (connection.broken().is_some(), connection.is_due(cx.now))
            }
            None => (false, false),
        };
        if broken {
            self.break_down(cx, done);
        } else if due {
            self.check_time(cx.now, done);
            self.publish();
        }
        if !self.fenced.is_empty()
            && let Some((proof, commands)) = self.fenced.release(cx.now, done)
        {
            tracing::info!(path = %self.shared.config.name, qid = self.qid, commands, %proof, "lost changes are quiet");
        }
        if self.requests.has_early() {
            self.requests.drain_early(done);
        }
        if self.closing && self.is_drained() {
            self.shut(cx);
        }
    }

    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let news = self.connection.as_ref().is_some_and(|c| c.broken().is_some() || c.has_news());
        if self.requests.has_early() || news || self.mailbox.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        let mut wake = match (&self.connection, &self.redial) {
            (Some(connection), _) => connection.arm(waits),
            (None, Some(redial)) if !self.closing => redial.at,
            _ => Time::NEVER,
        };
        if let Some(at) = self.fenced.next_look() {
            wake = wake.min(at);
        }
        if wake != Time::NEVER {
            waits.until(wake);
        }
        self.clock.sleeps_until(wake);
        self.slept = true;
        Armed::Sleep
    }

    fn health(&self, unit: Unit) -> Health {
        match self.is_usable(unit) {
            false => Health::Down,
            true if self.connection.as_ref().is_some_and(Connection::is_stalled) => Health::Stalled,
            true => Health::Ready,
        }
    }

    fn close(&mut self, cx: &mut Cx<'_>) {
        self.closing = true;
        if self.is_drained() {
            self.shut(cx);
        }
    }

    fn is_drained(&self) -> bool {
        let awaits_aborts = self.connection.as_ref().is_some_and(Connection::awaits_aborts);
        self.requests.is_empty() && self.fenced.is_empty() && !awaits_aborts
    }

    fn is_surplus(&self) -> bool {
        let too_few = |r: &Redial| !r.association.is_lost() && self.qid > r.association.queues;
        self.connection.is_none() && self.redial.as_ref().is_some_and(too_few)
    }

    fn end_fence(&self) -> Option<Arc<dyn QueueFence>> {
        Some(self.end_fence.clone())
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // A drained queue has nothing open. Otherwise the reactor ends under it: whoever outlives it learns from the end fence when what
        // was sent is quiet, which cannot be before all sockets of the association are closed.
        let open = self.requests.abandon() | self.connection.as_ref().is_some_and(Connection::awaits_aborts);
        if let Some(connection) = self.connection.take().filter(|_| open) {
            let association = connection.association().clone();
            self.end_fence.leave(association.clone());
            drop(connection);
            self.shared.lose(&association, Code::PathLost, format!("the reactor of I/O queue {} has ended", self.qid));
        }
        self.fenced.abandon(&self.end_fence);
        self.end_fence.end();
        self.shared.release_queue(self.qid);
    }
}

#[cfg(test)]
mod tests;
