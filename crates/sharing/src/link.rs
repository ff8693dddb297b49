//! The crossing itself: two rings there (requests, and the segments they name, by value), one ring back (suspects and completions).
//!
//! The asking side numbers its requests by slots, and each slot has a row in the owner's segment table. All rings hold what can be
//! open at a time, so that nothing on the way back ever waits.

use crate::mailbox::{OwnerMailbox, health_from_u8, health_to_u8};
use polypath_block::{
    Armed, Code, Completion, Cx, Done, Fate, FenceState, Health, Io, Proof, QueueFence, Refused, RefusedWhy, SegSpan,
    Segment, SlotKey, Slots, Status, Suspect, Time, UnitId, Waits,
};
use polypath_net::Bell;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

/// Segments that every request may have: 128 KiB in pages of a guest. Every request that may be open has a row of so many in the owner's
/// table, and a host has hundreds of links.
pub(crate) const NARROW: u32 = 32;
/// Segments that a few requests at a time may have; more is refused as malformed.
pub(crate) const WIDE: u32 = 1288;
/// Wide requests at a time.
pub(crate) const WIDE_ROWS: u32 = 8;
/// Requests open at a time as a multiple of the depth: those that wait for a fence do not count against the depth.
const OPEN_DEPTHS: u16 = 2;
/// Segments in the ring for each request of the depth. A ring without room is a full queue.
const SEGMENTS_A_REQUEST: usize = 16;
/// Pause between two questions to the end fence of a queue that has not quite ended.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// The longest pause while it knows by when it is quiet at the latest: it may be sooner.
const ASK_PENDING: Duration = Duration::from_millis(20);
/// How much longer than its terms say an end fence may go without having noticed that its queue has ended.
const END_GRACE: Duration = Duration::from_secs(1);
/// How long to wait for the owner's reactor to take the link in.
const JOIN_LIMIT: Duration = Duration::from_secs(1);

/// What both sides see.
pub(crate) struct Wire {
    /// Rings on the asking side.
    bell: Bell,
    health: AtomicU8,
    /// The owner has taken the link in.
    joined: AtomicBool,
    /// The owner gives the link up: what is open completes, nothing new is taken.
    ended: AtomicBool,
    /// The asking side has gone.
    gone: AtomicBool,
}

/// A request on its way. Its tag is the asking side's slot.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub(crate) io: Io,
    /// Which wide row it uses, if it does.
    pub(crate) wide: Option<u8>,
}

/// An outcome on its way back.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    Suspect(Suspect),
    Completion(Completion),
}

/// The owner's end.
pub(crate) struct Served {
    wire: Arc<Wire>,
    pub(crate) requests: Consumer<Message>,
    pub(crate) segments: Consumer<Segment>,
    replies: Producer<Reply>,
    /// What the user asks for.
    pub(crate) unit: UnitId,
    pub(crate) depth: u16,
    /// Requests open at a time.
    pub(crate) open: u16,
    /// Last, so that it goes last.
    _end: End,
}

/// Tells the asking side of the end once the rings are gone: whoever wakes up earlier would find them there, and sleep on.
struct End(Arc<Wire>);

/// The asking end.
pub(crate) struct Client {
    wire: Arc<Wire>,
    /// The owner's bell.
    owner: Arc<Bell>,
    requests: Producer<Message>,
    segments: Producer<Segment>,
    replies: Consumer<Reply>,
    open: Slots<Open>,
    early: Vec<Completion>,
    depth: usize,
    in_flight: usize,
    /// Wide rows that are free, one bit each.
    wide_free: u16,
    /// Accepted, and waiting for a wide row: fences may hold them all, which must not make the link full for others.
    waiting: VecDeque<Io>,
    unkicked: bool,
    closed: bool,
    since: Option<Time>,
    joined: bool,
    health: Health,
    /// The owner has ended without a word.
    orphaned: bool,
    /// Who can tell then when changes are quiet.
    end_fence: Option<Arc<dyn QueueFence>>,
    /// When to ask next; never while nothing is left open by an owner that has ended.
    ask: Time,
    /// When it must have noticed that the queue has ended.
    end_known_by: Time,
}

#[derive(Clone, Copy)]
struct Open {
    tag: u64,
    wide: Option<u8>,
    suspect: bool,
    changes: bool,
}

/// Both ends of a link to the owner of `mailbox`.
pub(crate) fn pair(mailbox: &OwnerMailbox, unit: UnitId, depth: u16) -> io::Result<(Client, Served)> {
    let depth = depth.clamp(1, 8192);
    let open = depth * OPEN_DEPTHS;
    let wire = Arc::new(Wire {
        bell: Bell::new()?,
        health: AtomicU8::new(health_to_u8(Health::Down)),
        joined: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        gone: AtomicBool::new(false),
    });
    let (requests_in, requests_out) = RingBuffer::new(open.into());
    let (segments_in, segments_out) = RingBuffer::new((usize::from(depth) * SEGMENTS_A_REQUEST).max(WIDE as usize));
    // A suspect and a completion for each.
    let (replies_in, replies_out) = RingBuffer::new(usize::from(open) * 2);
    let served = Served {
        _end: End(wire.clone()),
        wire: wire.clone(),
        requests: requests_out,
        segments: segments_out,
        replies: replies_in,
        unit,
        depth,
        open,
    };
    let client = Client {
        wire,
        owner: mailbox.bell.clone(),
        requests: requests_in,
        segments: segments_in,
        replies: replies_out,
        open: Slots::new(open),
        early: Vec::with_capacity(depth.into()),
        depth: depth.into(),
        in_flight: 0,
        wide_free: (1 << WIDE_ROWS) - 1,
        waiting: VecDeque::with_capacity(depth.into()),
        unkicked: false,
        closed: false,
        since: None,
        joined: false,
        health: Health::Down,
        orphaned: false,
        end_fence: mailbox.end_fence.clone(),
        ask: Time::NEVER,
        end_known_by: Time::ZERO,
    };
    Ok((client, served))
}

impl Served {
    pub(crate) fn join(&self) {
        self.wire.joined.store(true, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.wire.gone.load(Ordering::Acquire)
    }

    /// Shows how the queue feels; says whether that has changed.
    pub(crate) fn show(&self, health: Health, ended: bool) -> bool {
        let health = health_to_u8(health);
        let changed = self.wire.health.load(Ordering::Relaxed) != health;
        if changed {
            self.wire.health.store(health, Ordering::Release);
        }
        let ends = ended && !self.wire.ended.load(Ordering::Relaxed);
        if ends {
            self.wire.ended.store(true, Ordering::Release);
        }
        changed || ends
    }

    pub(crate) fn ring(&self) {
        self.wire.bell.ring();
    }

    /// Sends an outcome back; `false` when there is no room, which the sizes of the rings rule out.
    pub(crate) fn reply(&mut self, reply: Reply) -> bool {
        self.replies.push(reply).is_ok()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.health.store(health_to_u8(Health::Down), Ordering::Release);
        self.0.bell.ring();
    }
}

impl Client {
    pub(crate) fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let refuse = |why| Err(Refused { io, why });
        if self.closed || self.health() == Health::Down {
            return refuse(RefusedWhy::Gone);
        }
        if self.in_flight >= self.depth || self.open.is_full() || self.early.len() == self.early.capacity() {
            return refuse(RefusedWhy::Full);
        }
        let wide = io.op.has_data() && io.segs.count > NARROW;
        if wide && io.segs.count > WIDE {
            let status = Code::Invalid.into();
            self.early.push(Completion { tag: io.tag, status, proof: Proof::NeverSent });
            return Ok(());
        }
        if wide && (self.wide_free == 0 || !self.waiting.is_empty()) {
            self.waiting.push_back(io);
        } else if !self.send(cx, io, wide) {
            return refuse(RefusedWhy::Full);
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Puts a request into the rings, if they have room.
    #[inline]
    fn send(&mut self, cx: &Cx<'_>, io: Io, wide: bool) -> bool {
        let segs = if io.op.has_data() { cx.segs.get(io.segs) } else { &[] };
        if self.requests.is_full() {
            return false;
        }
        let Ok(mut chunk) = self.segments.write_chunk(segs.len()) else { return false };
        let (first, second) = chunk.as_mut_slices();
        let (head, tail) = segs.split_at(first.len());
        first.copy_from_slice(head);
        second.copy_from_slice(tail);
        let wide = wide.then_some(self.wide_free.trailing_zeros() as u8);
        let Ok(key) = self.open.insert(Open { tag: io.tag, wide, suspect: false, changes: io.op.changes_medium() })
        else {
            return false;
        };
        let span = SegSpan { start: 0, count: segs.len() as u32 };
        chunk.commit_all();
        let message = Message { io: Io { tag: key.as_u32().into(), segs: span, ..io }, wide };
        // There is room: only this side fills the ring, and it was looked at above.
        let sent = self.requests.push(message);
        debug_assert!(sent.is_ok(), "a ring that was not full has no room");
        if let Some(row) = wide {
            self.wide_free &= !(1 << row);
        }
        self.unkicked = true;
        true
    }

    /// Sends what waits for a wide row, or gives it back when the way is down.
    #[cold]
    fn serve_waiting(&mut self, cx: &Cx<'_>, done: &mut Done) {
        if self.is_ended() || self.health == Health::Down {
            for io in self.waiting.drain(..) {
                self.in_flight -= 1;
                done.complete_with(io.tag, Code::PathLost.into(), Proof::NeverSent);
            }
        }
        while self.wide_free != 0
            && let Some(&io) = self.waiting.front()
            && self.send(cx, io, true)
        {
            self.waiting.pop_front();
        }
        self.kick();
    }

    pub(crate) fn kick(&mut self) {
        if std::mem::take(&mut self.unkicked) {
            self.owner.ring();
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        self.wire.bell.rise();
        // The answer only silences it: all that it may tell is looked at each turn.
        self.wire.bell.answer();
        self.kick();
        self.since.get_or_insert(cx.now);
        done.completions.append(&mut self.early);
        // Before the ring is read to its end: what was sent before that end has come then.
        let abandoned = self.replies.is_abandoned();
        while let Ok(reply) = self.replies.pop() {
            self.take(reply, done);
        }
        if abandoned && !self.orphaned {
            self.orphan(cx.now, done);
        }
        if cx.now >= self.ask {
            self.ask_end_fence(cx.now, done);
        }
        self.health = if self.orphaned { Health::Down } else { self.shown() };
        if !self.joined {
            self.look_for_owner(cx.now);
        }
        if !self.waiting.is_empty() {
            self.serve_waiting(cx, done);
        }
    }

    /// Not to be taken in is as good as to be given up: nothing was sent.
    #[cold]
    fn look_for_owner(&mut self, now: Time) {
        self.joined = self.wire.joined.load(Ordering::Acquire);
        self.orphaned |= !self.joined && now.since(self.since.unwrap_or(now)) >= JOIN_LIMIT;
    }

    fn take(&mut self, reply: Reply, done: &mut Done) {
        match reply {
            Reply::Suspect(suspect) => {
                let Some(open) = self.open.get_mut(SlotKey::from_u32(suspect.tag as u32)) else { return };
                open.suspect = true;
                self.in_flight -= 1;
                done.suspects.push(Suspect { tag: open.tag, ..suspect });
            }
            Reply::Completion(completion) => {
                let Some(open) = self.open.remove(SlotKey::from_u32(completion.tag as u32)) else { return };
                if !open.suspect {
                    self.in_flight -= 1;
                }
                if let Some(row) = open.wide {
                    self.wide_free |= 1 << row;
                }
                done.completions.push(Completion { tag: open.tag, ..completion });
            }
        }
    }

    /// The owner's reactor has ended under its queues, and their connections with it. What was open has an unknown outcome: changes are
    /// suspect until the end fence of the queue knows them quiet.
    #[cold]
    fn orphan(&mut self, now: Time, done: &mut Done) {
        (self.orphaned, self.ask) = (true, now);
        let Some(end_fence) = &self.end_fence else { return };
        let fence = end_fence.terms();
        self.end_known_by = now.after(fence.within).after(END_GRACE);
        for (_, open) in self.open.iter_mut().filter(|(_, open)| open.changes && !open.suspect) {
            open.suspect = true;
            done.suspects.push(Suspect { tag: open.tag, fate: Fate::Unknown, cause: Code::PathLost, fence });
        }
    }

    /// Completes what is quiet by now.
    #[cold]
    fn ask_end_fence(&mut self, now: Time, done: &mut Done) {
        let state = self.end_fence.as_ref().map(|end_fence| match end_fence.state(now) {
            FenceState::Idle if now >= self.end_known_by => FenceState::Failed,
            state => state,
        });
        let keys: Vec<SlotKey> = self.open.iter().map(|(key, _)| key).collect();
        for key in keys {
            let changes = self.open.get(key).is_some_and(|open| open.changes);
            let (status, proof) = match state {
                // Nobody can tell, or not any more.
                None => (Status::new(Code::OutcomeUnknown), Proof::None),
                Some(FenceState::Failed) if changes => (Status::new(Code::OutcomeUnknown), Proof::None),
                Some(FenceState::Quiet(proof)) if changes => (Code::PathLost.into(), proof),
                Some(_) if changes => continue,
                // The sockets went with the queue.
                Some(_) => (Code::PathLost.into(), Proof::SocketClosed),
            };
            if let Some(open) = self.open.remove(key) {
                done.complete_with(open.tag, status, proof);
            }
        }
        self.in_flight = self.waiting.len();
        self.ask = match state {
            _ if self.open.is_empty() => Time::NEVER,
            Some(FenceState::Pending { by }) => by.min(now.after(ASK_PENDING)),
            _ => now.after(ASK_AGAIN),
        };
    }

    pub(crate) fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.unkicked || !self.early.is_empty() || self.wire.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        if self.ask != Time::NEVER {
            waits.until(self.ask);
        }
        if !self.orphaned && !self.joined {
            waits.until(self.since.unwrap_or(cx.now).after(JOIN_LIMIT));
        }
        Armed::Sleep
    }

    pub(crate) fn health(&self) -> Health {
        if self.closed || self.is_ended() || self.is_full_of_fences() { Health::Down } else { self.health }
    }

    /// Only the end of a fence makes room. "Full" would promise that a request in flight does.
    fn is_full_of_fences(&self) -> bool {
        self.open.is_full() && self.in_flight == self.waiting.len()
    }

    /// Was it ever taken in?
    pub(crate) fn was_joined(&self) -> bool {
        self.joined
    }

    fn shown(&self) -> Health {
        health_from_u8(self.wire.health.load(Ordering::Acquire))
    }

    /// The owner gives the link up: share another queue.
    pub(crate) fn is_ended(&self) -> bool {
        self.orphaned || self.wire.ended.load(Ordering::Acquire)
    }

    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.kick();
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.closed && self.open.is_empty() && self.early.is_empty() && self.waiting.is_empty()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Empty, unless a reactor ends under its queues: the owner drains what runs then, and our table must not object.
        self.open.clear();
        self.wire.gone.store(true, Ordering::Release);
        self.owner.ring();
    }
}

#[cfg(test)]
mod tests;
