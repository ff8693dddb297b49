//! The connection of one I/O queue, from the dial to its loss. Everything that is only true of this connection lives here, so that
//! dropping it forgets it: what broke, how long it has been silent, which of its commands are being aborted.

use super::deadlines::{Deadlines, Silence};
use crate::association::{Association, OpenSocket};
use crate::attach;
use crate::link::{Broken, Ended, Finished, Link, RX_IO, Transfer};
use crate::shared::{AbortAnswer, Shared};
use polypath_block::{Code, Io, Op, SegTable, SlotKey, Time, Waits};
use polypath_nvme::Sqe;
use polypath_nvme::fabrics::cattr;
use polypath_nvme::sqe::BlockCommand;
use std::sync::Arc;
use std::time::Duration;

/// The user number of Connect; no request has it.
pub(super) const CONNECT: u64 = u64::MAX;
/// Pause between two looks at a socket from which nothing is expected.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The same just after a sleep, which the socket may have ended.
const LOOK_SOON: Duration = Duration::from_micros(100);

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Being made, up to this time.
    Opening { until: Time },
    /// Connect is on its way, up to this time.
    Connecting { until: Time },
    /// Takes commands.
    Ready,
}

/// See the module.
pub(super) struct Connection {
    // Before `socket`, which tells the fence that this one is closed.
    link: Link,
    socket: OpenSocket,
    /// Names it among all connections of its queue.
    id: u64,
    stage: Stage,
    deadlines: Deadlines,
    broken: Option<Broken>,
    looked: Time,
    orderly: bool,
}

impl Connection {
    /// Begins to connect I/O queue `qid`. `Ok(None)` when the association has been lost meanwhile.
    pub(super) fn dial(
        shared: &Shared,
        association: &Arc<Association>,
        id: u64,
        now: Time,
    ) -> Result<Option<Connection>, Broken> {
        let config = &shared.config;
        let Some(socket) = association.open_socket(&shared.host) else { return Ok(None) };
        let mut host = attach::host_config(config, association.depth);
        host.in_capsule_bytes = association.in_capsule;
        let link = Link::dial(&*config.dialer, association.address, host, RX_IO)?;
        Ok(Some(Connection {
            link,
            socket,
            id,
            stage: Stage::Opening { until: now.after(config.connect_timeout) },
            deadlines: Deadlines::new(config, now),
            broken: None,
            looked: Time::ZERO,
            orderly: false,
        }))
    }

    pub(super) fn association(&self) -> &Arc<Association> {
        self.socket.association()
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Does it take commands of requests?
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.stage == Stage::Ready && self.broken.is_none()
    }

    /// Were commands of requests sent over it?
    pub(super) fn was_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.deadlines.is_stalled()
    }

    pub(super) fn syscalls(&self) -> u64 {
        self.link.counters().syscalls
    }

    /// It is of no use any more. The first reason stands.
    pub(super) fn set_broken(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    /// Why it is of no use any more.
    #[inline]
    pub(super) fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// Is the time up by which it had to be ready?
    pub(super) fn is_overdue(&self, now: Time) -> bool {
        matches!(self.stage, Stage::Opening { until } | Stage::Connecting { until } if now >= until)
    }

    /// May Connect be sent now?
    pub(super) fn wants_connect(&self) -> bool {
        matches!(self.stage, Stage::Opening { .. }) && self.link.is_ready()
    }

    /// Sends Connect for I/O queue `qid`, whose data are `transfer`.
    pub(super) fn connect(&mut self, qid: u16, transfer: Transfer) {
        let sqe = Sqe::connect(0, qid, self.association().depth, cattr::DISABLE_SQ_FLOW_CONTROL, 0);
        if self.link.submit(&sqe, transfer, CONNECT).is_some()
            && let Stage::Opening { until } = self.stage
        {
            self.stage = Stage::Connecting { until };
        }
    }

    /// Connect was answered.
    pub(super) fn set_ready(&mut self) {
        self.stage = Stage::Ready;
    }

    /// Is it time to look at the socket? `slept`: the reactor has slept since the last look.
    #[inline]
    pub(super) fn wants_look(&self, now: Time, slept: bool) -> bool {
        let urgent = self.link.in_flight() > 0 || self.stage != Stage::Ready;
        urgent || now >= self.looked.after(if slept { LOOK_SOON } else { LOOK_EVERY })
    }

    /// Takes what has come; the connection is broken if that fails.
    #[inline]
    pub(super) fn receive(&mut self, segs: &SegTable, now: Time, done: impl FnMut(Finished)) {
        self.looked = now;
        if self.broken.is_some() {
            return;
        }
        match self.link.receive(segs, done) {
            Ok(true) => self.deadlines.heard(now),
            Ok(false) => {}
            Err(broken) => self.broken = Some(broken),
        }
    }

    /// One command; `false` when there is no room for it now.
    #[inline]
    pub(super) fn submit(&mut self, sqe: &Sqe, transfer: Transfer, key: SlotKey, now: Time) -> bool {
        if self.link.in_flight() == 0 {
            self.deadlines.start(now);
        }
        self.link.submit(sqe, transfer, key.as_u32().into()).is_some()
    }

    /// Commands that it has room for now.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.link.room()
    }

    /// Commands of [`Connection::submit_block`] follow, if any.
    #[inline]
    pub(super) fn start(&mut self, now: Time) {
        if self.link.in_flight() == 0 {
            self.deadlines.start(now);
        }
    }

    /// A read or a write of `len` octets that is one command; `false` when there is no room for it now.
    #[inline(always)]
    pub(super) fn submit_block(&mut self, io: &Io, nsid: u32, len: u32, key: SlotKey) -> bool {
        let command = BlockCommand { write: io.op == Op::Write, nsid, slba: io.lba, nlb_z: (io.blocks - 1) as u16 };
        self.link.submit_block(&command, io.segs, io.skip, len, key.as_u32().into()).is_some()
    }

    /// Sends what waits; the connection is broken if that fails.
    #[inline]
    pub(super) fn flush(&mut self, segs: &SegTable) {
        if self.broken.is_none()
            && let Err(broken) = self.link.flush(segs)
        {
            self.broken = Some(broken);
        }
    }

    /// We were not there for `late`.
    pub(super) fn forgive(&mut self, late: Duration, now: Time) {
        self.deadlines.forgive(late, now);
    }

    #[inline]
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.deadlines.is_due(now)
    }

    /// Looks at the silence. A connection that is cut is broken then: only its host's silence says so, a command that takes long is no
    /// sign, and aborting one to see would punish a slow medium.
    pub(super) fn check_silence(&mut self, shared: &Shared, qid: u16, now: Time) {
        let silence = self.deadlines.check(now, self.link.in_flight() > 0);
        if let Silence::Suspicious { first: true, .. } = silence {
            let (path, ms) = (&shared.config.name, self.deadlines.silent_for(now).as_millis() as u64);
            tracing::warn!(%path, qid, silent_ms = ms, "nothing is heard; asking the controller for a sign of life");
        }
        if let Silence::Suspicious { probe: true, .. } | Silence::Long { probe: true } = silence {
            shared.ask_probe();
        }
        if matches!(silence, Silence::Long { .. })
            && let Some(span) = self.link.unacknowledged().filter(|&span| span >= shared.config.silence_timeout)
        {
            let ms = span.as_millis();
            let reason = format!("the connection is cut: the target's host acknowledged nothing for {ms} ms");
            self.broken = Some(Broken { code: Code::PathTimeout, reason });
        }
    }

    /// Slots and identifiers of the commands that belong to a request. Walks all of them: for rare ways.
    pub(super) fn commands_of(&self, key: SlotKey) -> Vec<(u16, u16)> {
        let slots = self.link.slots_of(key.as_u32().into()).into_iter();
        slots.filter_map(|slot| Some((slot, self.link.cid(slot)?))).collect()
    }

    /// Takes back a command of which nothing has left.
    pub(super) fn withdraw(&mut self, slot: u16) -> bool {
        self.link.withdraw(slot)
    }

    /// Has everything of a command left that ever will?
    pub(super) fn has_left(&self, slot: u16) -> bool {
        self.link.has_left(slot)
    }

    /// An Abort of the command in `slot` goes out.
    pub(super) fn abort_sent(&mut self, slot: u16) {
        self.link.abort_sent(slot);
    }

    /// An Abort was answered, perhaps one of a connection before this one, which is nobody's any more. Returns the request
    /// whose command it named.
    pub(super) fn abort_answered(&mut self, answer: AbortAnswer) -> Option<SlotKey> {
        let ours = answer.connection == self.id;
        ours.then(|| SlotKey::from_u32(self.link.abort_answered(answer.slot, answer.cid, answer.aborted) as u32))
    }

    /// Is an Abort under way of a command that is over? The next connection of this queue gives the same identifiers again.
    pub(super) fn awaits_aborts(&self) -> bool {
        self.link.awaits_aborts()
    }

    /// As [`Link::has_news`].
    pub(super) fn has_news(&self) -> bool {
        self.link.has_news()
    }

    /// Names what must wake the owner, and by when.
    pub(super) fn arm(&self, waits: &mut Waits) -> Time {
        self.link.arm(waits);
        let limit = match self.stage {
            Stage::Opening { until } | Stage::Connecting { until } => until,
            Stage::Ready => Time::NEVER,
        };
        if self.link.in_flight() > 0 { limit.min(self.deadlines.due()) } else { limit }
    }

    /// Closes it abortively and accounts for every command on it.
    pub(super) fn abort(mut self, mut each: impl FnMut(Ended)) {
        self.link.abort();
        while let Some(ended) = self.link.next_outcome() {
            if ended.user != CONNECT {
                each(ended);
            }
        }
    }

    /// Closes it in order: nothing is on it.
    pub(super) fn close(mut self) {
        self.orderly = true;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.orderly {
            self.link.abort();
        }
    }
}
