//! One queue: requests in slots, their parts in the ring.

use crate::blk;
use crate::regions::Known;
use crate::ring::{Ring, silence};
use crate::shared::{Death, Seat, Shared, lock};
use polypath_block::{
    Armed, Code, Cx, Done, Health, Io, IoQueue, Op, Part, Proof, Refused, RefusedWhy, RegionId, Segment, SlotKey,
    Slots, Splitter, Status, Time, Waits,
};
use rustix::fd::AsFd;
use std::collections::VecDeque;
use std::sync::Arc;

/// A queue is [`Health::Stalled`] when nothing was answered for this part of the I/O limit.
const STALLED_PART: u32 = 4;

/// One request, cut into as many parts as the back-end's limits ask for.
struct Request {
    tag: u64,
    op: Op,
    /// Parts that were not cut off yet.
    rest: Splitter,
    /// A part that waits for room in the ring, or for its memory to be mapped.
    part: Option<Part>,
    /// Parts are still to come.
    unfinished: bool,
    /// Parts in the ring.
    open: u32,
    /// When the latest part went into the ring.
    sent: Option<Time>,
    status: Status,
}

/// What came of giving a request's parts to the ring.
enum Fed {
    /// No more parts.
    All,
    /// The next part waits.
    Later,
}

/// A queue of a [`crate::VhostUserDisk`].
pub(crate) struct ClientQueue {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    /// Once the back-end has taken it, and until it is lost.
    ring: Option<Ring>,
    requests: Slots<Request>,
    /// Requests with parts that are not in the ring, in order.
    unsent: VecDeque<SlotKey>,
    /// What [`Shared`] knew of regions at `news`, and where the last one was found.
    regions: Vec<(RegionId, Known)>,
    hint: usize,
    news: u64,
    /// Addresses of the part that is being put into the ring.
    pieces: Vec<(u64, u32)>,
    ready: Vec<(u64, Status, Proof)>,
    /// No part that is in the ring now has been there for too long before then.
    check_at: Time,
    answered: Time,
    stalled: bool,
    armed: bool,
    closed: bool,
    lost: bool,
}

impl ClientQueue {
    pub(crate) fn new(seat: Arc<Seat>, shared: Arc<Shared>) -> Self {
        let (depth, segments) = (shared.info.max_depth, shared.info.limits.max_segments as usize);
        ClientQueue {
            shared,
            seat,
            ring: None,
            requests: Slots::new(depth),
            unsent: VecDeque::with_capacity(depth.into()),
            regions: Vec::with_capacity(64),
            hint: 0,
            news: 0,
            pieces: Vec::with_capacity(segments),
            ready: Vec::with_capacity(depth.into()),
            check_at: Time::NEVER,
            answered: Time::ZERO,
            stalled: false,
            armed: false,
            closed: false,
            lost: false,
        }
    }

    /// Follows what others have done: one atomic load where they have done nothing.
    fn follow(&mut self) {
        let news = self.shared.news();
        if news != self.news {
            self.catch_up(news);
        }
    }

    #[cold]
    fn catch_up(&mut self, news: u64) {
        self.news = news;
        self.regions.clear();
        self.regions.extend_from_slice(self.shared.regions().known());
        if let Some(ring) = lock(&self.seat.ring).take() {
            self.ring = Some(ring);
        }
        if self.shared.death().is_some() {
            self.lose();
        }
    }

    /// Gives what waits to the ring, as far as there is room.
    fn feed_all(&mut self, cx: &Cx<'_>) {
        while let Some(&key) = self.unsent.front() {
            match self.feed(cx, key) {
                Fed::All => {
                    self.unsent.pop_front();
                    self.finish_if_done(key);
                }
                Fed::Later => return,
            }
        }
    }

    fn feed(&mut self, cx: &Cx<'_>, key: SlotKey) -> Fed {
        loop {
            let Some(request) = self.requests.get_mut(key) else { return Fed::All };
            let part = match request.part.take().map(Ok).or_else(|| request.rest.next_part(cx.segs)) {
                None => {
                    request.unfinished = false;
                    return Fed::All;
                }
                Some(part) => part,
            };
            match part.and_then(|part| Ok((part, self.place(cx, &part, key)?))) {
                Ok((_, true)) => {
                    let Some(request) = self.requests.get_mut(key) else { return Fed::All };
                    (request.open, request.sent) = (request.open + 1, Some(cx.now));
                }
                Ok((part, false)) => {
                    if let Some(request) = self.requests.get_mut(key) {
                        request.part = Some(part);
                    }
                    return Fed::Later;
                }
                Err(status) => {
                    if let Some(request) = self.requests.get_mut(key) {
                        request.unfinished = false;
                        note(request, status);
                    }
                    return Fed::All;
                }
            }
        }
    }

    /// Puts a part into the ring. False if it must wait for room, for the ring, or for a region to be mapped.
    fn place(&mut self, cx: &Cx<'_>, part: &Part, key: SlotKey) -> Result<bool, Status> {
        let block_size = self.shared.info.geometry.block_size;
        let header = blk::header(part, block_size).ok_or(Code::Unsupported)?;
        self.pieces.clear();
        for piece in cx.segs.pieces(part.segs, part.skip.into(), part.data_len(block_size)) {
            match self.find(piece)? {
                Some(address) => self.pieces.push((address, piece.len)),
                None => return Ok(false),
            }
        }
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let wanted = header.descriptors(self.pieces.len());
        if wanted > ring.size().into() {
            return Err(Code::Invalid.into());
        }
        if wanted > ring.room() {
            return Ok(false);
        }
        if ring.open() == 0 {
            self.answered = cx.now;
        }
        ring.add(key, header, self.pieces.iter().copied());
        if self.check_at == Time::NEVER {
            self.check_at = cx.now.after(self.shared.config.io_timeout);
        }
        Ok(true)
    }

    /// The back-end's address of `piece`. `None` while it is being told of the region.
    fn find(&mut self, piece: Segment) -> Result<Option<u64>, Status> {
        let known = match self.regions.get(self.hint) {
            Some((id, known)) if *id == piece.region => Some(*known),
            _ => self.regions.iter().position(|(id, _)| *id == piece.region).map(|at| {
                self.hint = at;
                self.regions[at].1
            }),
        };
        match known {
            Some(Known::Mapped(mapped)) => match piece.offset.checked_add(piece.len.into()) {
                Some(end) if end <= mapped.len => Ok(Some(mapped.base + piece.offset)),
                _ => Err(Code::BadMemory.into()),
            },
            Some(Known::Refused(code)) => Err(code.into()),
            Some(Known::Asked) => Ok(None),
            None => self.ask_for(piece.region).map(|()| None),
        }
    }

    /// Once a region: takes a lock, and allocates.
    #[cold]
    fn ask_for(&mut self, region: RegionId) -> Result<(), Status> {
        self.shared.ask_for(region)?;
        // As of now, so that it is not asked for again before there are news. Whatever is known by then is copied with them.
        self.regions.push((region, Known::Asked));
        Ok(())
    }

    fn finish_if_done(&mut self, key: SlotKey) {
        if self.requests.get(key).is_some_and(|r| r.open == 0 && !r.unfinished)
            && let Some(request) = self.requests.remove(key)
        {
            self.ready.push((request.tag, request.status, Proof::Answered));
        }
    }

    /// Takes requests that ended out of the ring: never more than there are open.
    fn reap(&mut self, now: Time) {
        while let Some(ring) = &mut self.ring {
            match ring.take() {
                Ok(None) => return,
                Ok(Some((key, byte))) => {
                    (self.answered, self.stalled) = (now, false);
                    if let Some(request) = self.requests.get_mut(key) {
                        request.open -= 1;
                        note(request, blk::status_of(byte));
                    }
                    self.finish_if_done(key);
                }
                Err(fault) => {
                    let path = &self.shared.config.path;
                    let reason = format!("vhost-user-blk back-end {path} broke the rules of a ring: {fault}");
                    self.give_up(Code::PathProtocol, reason);
                    return;
                }
            }
        }
    }

    /// Has some part been at the back-end for too long?
    fn check(&mut self, now: Time) {
        let open = self.ring.as_ref().is_some_and(|ring| ring.open() > 0);
        let limit = self.shared.config.io_timeout;
        self.stalled = open && now.since(self.answered) > limit / STALLED_PART;
        if now < self.check_at {
            return;
        }
        let sent = self.requests.iter().filter(|(_, r)| r.open > 0).filter_map(|(_, r)| r.sent);
        self.check_at = sent.min().map_or(Time::NEVER, |oldest| oldest.after(limit));
        if self.check_at <= now {
            let (path, limit) = (&self.shared.config.path, limit.as_secs_f64());
            let todo = "find out what it is doing, end it, and open the disk again";
            let reason = format!("vhost-user-blk back-end {path} did not answer an I/O within {limit} s; {todo}");
            self.give_up(Code::PathTimeout, reason);
        }
    }

    fn give_up(&mut self, code: Code, reason: String) {
        self.shared.die(Death { code, reason, closed_by_peer: false });
        self.lose();
    }

    /// Ends everything that is open: the connection is dead.
    ///
    /// What never was in the ring never left. Of what was, the back-end may have carried out anything: nobody says that a change did or
    /// did not happen, or will not. Nothing but an answer could be a proof: the process that is stopped today goes on tomorrow, and
    /// behind one that is dead there may be a way to the medium that is not.
    #[cold]
    fn lose(&mut self) {
        let Some(death) = self.shared.death() else { return };
        if std::mem::replace(&mut self.lost, true) {
            return;
        }
        let (code, closed_by_peer) = (death.code, death.closed_by_peer);
        // What was answered before the end is answered.
        while let Some(Ok(Some((key, byte)))) = self.ring.as_mut().map(Ring::take) {
            if let Some(request) = self.requests.get_mut(key) {
                request.open -= 1;
                note(request, blk::status_of(byte));
            }
            self.finish_if_done(key);
        }
        if let Some(ring) = self.ring.take() {
            ring.erase();
        }
        self.unsent.clear();
        for (_, request) in self.requests.iter_mut() {
            let proof = match request {
                Request { open: 0, sent: None, .. } => Proof::NeverSent,
                Request { open: 0, .. } => Proof::Answered,
                Request { op, .. } if !op.changes_medium() && closed_by_peer => Proof::SocketClosed,
                _ => Proof::None,
            };
            note(request, code.into());
            self.ready.push((request.tag, request.status, proof));
        }
        self.requests.clear();
        (self.check_at, self.stalled) = (Time::NEVER, false);
    }
}

/// The first thing that goes wrong with a request is what is said of it.
fn note(request: &mut Request, status: Status) {
    if request.status.is_ok() {
        request.status = status;
    }
}

impl IoQueue for ClientQueue {
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        self.follow();
        if self.closed || self.lost {
            return Err(Refused { io, why: RefusedWhy::Gone });
        }
        if self.requests.is_full() {
            return Err(Refused { io, why: RefusedWhy::Full });
        }
        let (limits, geometry) = (&self.shared.info.limits, self.shared.info.geometry);
        if let Err(status) = limits.check(&io, geometry.blocks, geometry.block_size, cx.segs) {
            self.ready.push((io.tag, status, Proof::Answered));
            return Ok(());
        }
        if io.op == Op::Flush && !self.shared.abilities.flush {
            self.ready.push((io.tag, Status::OK, Proof::Answered));
            return Ok(());
        }
        let rest = Splitter::new(io, limits, geometry.block_size);
        let request = Request {
            tag: io.tag,
            op: io.op,
            rest,
            part: None,
            unfinished: true,
            open: 0,
            sent: None,
            status: Status::OK,
        };
        let Ok(key) = self.requests.insert(request) else { return Err(Refused { io, why: RefusedWhy::Full }) };
        self.unsent.push_back(key);
        if self.unsent.len() == 1 {
            self.feed_all(cx);
        }
        Ok(())
    }

    fn kick(&mut self, _cx: &mut Cx<'_>) {
        if let Some(Err(error)) = self.ring.as_mut().map(Ring::kick) {
            let path = &self.shared.config.path;
            let reason = format!("vhost-user-blk back-end {path} cannot be told of requests: {error}");
            self.give_up(Code::PathLost, reason);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        if std::mem::take(&mut self.armed) {
            if let Some(ring) = &mut self.ring {
                ring.listen(false);
            }
            silence(self.seat.call.as_fd());
            self.seat.bell.rise();
        }
        self.seat.bell.answer();
        self.follow();
        self.reap(cx.now);
        if !self.unsent.is_empty() {
            self.feed_all(cx);
            self.kick(cx);
        }
        self.check(cx.now);
        for (tag, status, proof) in self.ready.drain(..) {
            done.complete_with(tag, status, proof);
        }
    }

    fn arm(&mut self, _cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.lost {
            return if self.ready.is_empty() { Armed::Sleep } else { Armed::Busy };
        }
        self.armed = true;
        let mut ended = false;
        if let Some(ring) = &mut self.ring {
            ring.listen(true);
            ended = ring.has_ended();
        }
        // News that come after this ring the bell. (A region that goes does not: nobody waits for that.)
        if ended || !self.ready.is_empty() || self.shared.news() != self.news {
            return Armed::Busy;
        }
        // Also with nothing in flight, to see the back-end go.
        if self.seat.bell.arm(waits) == Armed::Busy {
            return Armed::Busy;
        }
        waits.readable(std::os::fd::AsRawFd::as_raw_fd(&**self.seat.call), self.seat.call_id);
        if self.check_at != Time::NEVER {
            waits.until(self.check_at);
        }
        Armed::Sleep
    }

    fn health(&self) -> Health {
        match self.closed || self.lost || self.shared.death().is_some() {
            true => Health::Down,
            false if self.stalled => Health::Stalled,
            false => Health::Ready,
        }
    }

    fn close(&mut self, _cx: &mut Cx<'_>) {
        self.closed = true;
    }

    fn is_drained(&self) -> bool {
        self.requests.is_empty() && self.ready.is_empty()
    }
}

impl Drop for ClientQueue {
    /// A queue that is dropped undrained (its reactor ended) leaves its ring to the keeper, which drains it. Its requests are nobody's.
    fn drop(&mut self) {
        self.requests.clear();
        if let Some(ring) = &mut self.ring {
            // What was put in and not shown is as good as sent. If the back-end cannot be told, the keeper's wait for it has a limit.
            if let Err(error) = ring.kick() {
                tracing::warn!(device = %self.shared.name, %error, "the back-end cannot be told of the last requests of a queue");
            }
        }
        self.shared.leave_seat(self.seat.clone(), self.ring.take());
    }
}
