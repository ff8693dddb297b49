//! The first half of a turn: chains become requests, and the queue is offered what they ask for.

use super::{Active, BATCH, Env, HEADS, Offered, Request, Todo};
use crate::request::{self, Parsed, Place, S_IOERR, WriteThrough};
use crate::ring::RingError;
use crate::stats::Count;
use polypath_block::{Cx, Flags, Io, IoQueue, Op, RefusedWhy, SegSpan, SegTable};
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH;

impl Active {
    /// Takes the chains that are there, and offers them until the queue refuses or the batch is full. What the guest adds meanwhile is for the
    /// next turn: its index is looked at once.
    pub(super) fn take_batch(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        let mut taken = 0;
        // A look is at what a back-end before us left, which cannot go back to the ring, or at what is new: never at both.
        let mut bound = 0;
        let looked = self.ring.look_ahead(self.batch);
        let result = looked.and_then(|count| self.take_chains(cx, queue, env, count, &mut taken, &mut bound));
        // Also what came before a chain that breaks the ring: nothing goes back to that, and nothing is taken from it any more.
        bound = if result.is_err() { usize::MAX } else { bound };
        let offered = self.offer(cx, queue, bound, &mut taken);
        self.batch = match (&result, offered) {
            (Ok(Offered::All), Offered::All) => BATCH.min(self.batch * 2),
            _ => taken.max(1),
        };
        if taken > 0 {
            env.counters.add(Count::Requests, taken.into());
        }
        if let Err(error) = result {
            self.break_ring(error, env);
        }
        taken > 0
    }

    /// Takes up to `count` chains; `taken` says how many. What is to be submitted for them is in the offer then, but for what needs more than
    /// that: it is begun at once, and those before it in the offer, as many as `bound` says, cannot go back to the ring any more.
    #[inline(always)]
    fn take_chains(
        &mut self,
        cx: &mut Cx<'_>,
        queue: &mut dyn IoQueue,
        env: &Env<'_>,
        count: u16,
        taken: &mut u16,
        bound: &mut usize,
    ) -> Result<Offered, RingError> {
        // What is of the usual shape changes neither: what a back-end before us left is as much as was looked at.
        let mut may_go_on = self.takes_any(env.mode);
        while may_go_on {
            *taken += self.take_plain(cx, env);
            // Of memory that is being lost, one chain costs no more than its own pages.
            if *taken == count || polypath_memory::losses() != self.losses {
                break;
            }
            let head = match self.ring.take() {
                Ok(head) => head,
                // What breaks the ring is met again, once those before it are with the queue.
                Err(_) if !self.offer.is_empty() => break,
                Err(error) => return Err(error),
            };
            self.see_head(head)?;
            if let Err(error) = self.take_any(cx, env, head) {
                let is_last = !self.offer.is_empty() && self.ring.put_back(head);
                return if is_last { Ok(Offered::All) } else { Err(error) };
            }
            *taken += 1;
            if !self.add_to_offer(env, head) {
                *bound = (*bound).max(self.offer.len());
                let offered = self.drive(cx, queue, env, head);
                if offered != Offered::All {
                    return Ok(offered);
                }
            }
            may_go_on = self.takes_any(env.mode);
        }
        Ok(Offered::All)
    }

    /// Makes requests of the chains that come next, as long as they are reads and writes of the usual shape that need not wait, and adds them
    /// to the offer. Returns how many.
    #[inline(always)]
    fn take_plain(&mut self, cx: &mut Cx<'_>, env: &Env<'_>) -> u16 {
        if env.gone {
            return 0;
        }
        let writes = !self.must_wait(env, Op::Write);
        let (media, losses, segs) = (*env.media, self.losses, &mut *cx.segs);
        let Active { ring, requests, room, offer, .. } = self;
        let taken = ring.take_plain(|plain| {
            // A head that comes for the first time, or while it is in flight, is for those who take any.
            let Some(request) = requests.get_mut(usize::from(plain.head)).filter(|request| !request.active) else {
                return false;
            };
            let Some(span) = room.single(plain.head) else { return false };
            let Some((io, written)) = request::plain_transfer(plain, &media, span) else { return false };
            let Some(segment) = segs.get_one_mut(span) else { return false };
            if io.op == Op::Write && !writes || polypath_memory::losses() != losses {
                return false;
            }
            *segment = plain.data;
            let landing = if io.op == Op::Read { io.segs } else { SegSpan::EMPTY };
            // All else is as in a free one.
            (request.active, request.plain, request.outstanding) = (true, true, 1);
            (request.status_byte, request.written, request.landing) = (plain.status, written, landing);
            offer.push(io);
            true
        });
        self.in_flight += taken;
        taken
    }

    /// Adds what is to be submitted for `head` to the offer if that is one request which needs nothing else.
    fn add_to_offer(&mut self, env: &Env<'_>, head: u16) -> bool {
        let Todo::One(io) = self.requests[usize::from(head)].todo else { return false };
        if self.must_wait(env, io.op) {
            return false;
        }
        let request = &mut self.requests[usize::from(head)];
        (request.todo, request.outstanding, request.fresh) = (Todo::Nothing, 1, false);
        self.offer.push(io);
        true
    }

    /// Submits the offer. Of what the queue does not take, the first request joins the pending, and those before `bound`; the others go back to
    /// the ring, the last one first.
    fn offer(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, bound: usize, taken: &mut u16) -> Offered {
        if self.offer.is_empty() {
            return Offered::All;
        }
        let offer = std::mem::take(&mut self.offer);
        let result = queue.submit_all(cx, &offer);
        // It takes requests: its way is not down.
        if result.is_ok() || result.is_err_and(|rest| rest.taken > 0) {
            self.down_since = None;
        }
        let offered = match result {
            Ok(()) => Offered::All,
            Err(rest) => {
                self.refused(cx.segs, &offer[rest.taken..], bound.saturating_sub(rest.taken), taken);
                Offered::Refused(rest.why)
            }
        };
        self.offer = offer;
        self.offer.clear();
        offered
    }

    #[cold]
    fn refused(&mut self, segs: &mut SegTable, ios: &[Io], bound: usize, taken: &mut u16) {
        let stay = bound.clamp(1, ios.len());
        let mut others = ios.len();
        while others > stay && self.ring.put_back(ios[others - 1].tag as u16) {
            others -= 1;
            self.forget(segs, ios[others].tag as u16);
            *taken -= 1;
        }
        for io in &ios[..others] {
            let request = &mut self.requests[io.tag as usize];
            (request.todo, request.outstanding, request.plain) = (Todo::One(*io), 0, false);
            // The one that was taken last may still go back, see `untake`.
            request.fresh = others == 1 && bound == 0;
            self.pending.push_back(io.tag as u16);
        }
    }

    /// May `head`, which was just taken, be in flight?
    #[inline(always)]
    fn see_head(&mut self, head: u16) -> Result<(), RingError> {
        match self.requests.get(usize::from(head)) {
            Some(request) if request.active => Err(RingError::Reused { head }),
            Some(_) => Ok(()),
            None => {
                self.first_of_its_block(head);
                Ok(())
            }
        }
    }

    /// A head that has not come before. The table was reserved for all: it does not move.
    #[cold]
    fn first_of_its_block(&mut self, head: u16) {
        let len = (usize::from(head) + 1).next_multiple_of(HEADS).min(usize::from(self.ring.size()));
        self.requests.resize(len, Request::FREE);
    }

    /// Is there more to do for an operation than to submit it? The guest's word on write-through that counts is the last before the change
    /// is made.
    #[inline(always)]
    fn must_wait(&self, env: &Env<'_>, op: Op) -> bool {
        op.changes_medium() && (env.hold.is_some() || self.write_through.load(Ordering::Relaxed))
    }

    /// Makes a request of the chain taken last, whatever it is.
    #[inline(never)]
    fn take_any(&mut self, cx: &mut Cx<'_>, env: &Env<'_>, head: u16) -> Result<(), RingError> {
        let span = self.room.own();
        let chain = self.ring.read_chain(head, cx.segs.get_mut(span))?;
        let place = Place { segs: cx.segs, span, memory: self.ring.memory(), ranges: self.ranges.next() };
        let owed = chain.kind == VIRTIO_BLK_T_FLUSH && env.config.owed.tell();
        let parsed = match env.gone || owed {
            false => request::parse(&chain, env.media, head.into(), &env.config.serial, place),
            true => Parsed::Now(S_IOERR, 1),
        };
        if chain.fault.is_some() {
            env.counters.add(Count::BadRequests, 1);
        }
        let landing = SegSpan { start: span.start + chain.out_count, count: chain.in_count };
        let mut request = Request { active: true, fresh: true, status_byte: chain.status, ..Request::FREE };
        match parsed {
            Parsed::Now(status, written) => {
                (request.status, request.written) = (status, written);
                // All but the status, whatever else the chain names.
                self.ring.landed(cx.segs.get(landing), written.saturating_sub(1).into());
            }
            Parsed::Io(mut io, written) => {
                request.written = written;
                request.flush = io.op == Op::Flush;
                if io.op.has_data() {
                    self.keep(cx, env, &mut io, &mut request);
                }
                request.todo = Todo::One(io);
            }
            Parsed::Ranges(op, count) => {
                request.written = 1;
                let row = self.ranges.take();
                request.ranges = Some(row);
                request.todo = Todo::Ranges { op, row, next: 0, count };
            }
        }
        self.requests[usize::from(head)] = request;
        self.in_flight += 1;
        Ok(())
    }

    /// Finds a place for the segments of `io`, which are in the ring's own row, until it completes.
    fn keep(&mut self, cx: &mut Cx<'_>, env: &Env<'_>, io: &mut Io, request: &mut Request) {
        let (span, in_row) = self.room.keep(cx.segs, io.tag as u16, io.segs);
        io.segs = span;
        if in_row || span.count > 1 {
            request.room = span;
        }
        if io.op == Op::Read {
            request.landing = span;
        }
        if in_row && let Some(others) = env.counters.limits.segments.may_log(env.now) {
            let (vring, segments) = (&env.config.name, span.count);
            tracing::warn!(%vring, segments, others, "requests of many pieces take turns: the reactor's table of segments has no room for more");
        }
    }

    /// Offers what is still to be submitted for `head`. What the queue does not take stays, and `head` joins the pending.
    #[inline(never)]
    pub(super) fn drive(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, head: u16) -> Offered {
        let slot = usize::from(head);
        let request = &mut self.requests[slot];
        loop {
            let mut io = match request.todo {
                Todo::Nothing => break,
                Todo::One(io) => io,
                Todo::Ranges { op, row, next, .. } => self.ranges.get(row, next).io(head.into(), op),
            };
            if io.op.changes_medium() {
                if env.hold.is_some() {
                    request.fresh &= !self.ring.has_record();
                    self.held.push_back(head);
                    return Offered::All;
                }
                // The guest's word that counts is the last before the change is made.
                if self.write_through.load(Ordering::Relaxed) {
                    match env.media.write_through(io.op) {
                        WriteThrough::Nothing => {}
                        WriteThrough::Fua => io = io.with_flags(Flags::FUA),
                        WriteThrough::FlushAfter => request.flush_after = true,
                    }
                }
            }
            if let Err(refused) = queue.submit(cx, io) {
                self.pending.push_back(head);
                return Offered::Refused(refused.why);
            }
            self.down_since = None;
            request.outstanding += 1;
            request.fresh = false;
            request.todo = match request.todo {
                Todo::Ranges { op, row, next, count } if next + 1 < count => {
                    Todo::Ranges { op, row, next: next + 1, count }
                }
                _ => Todo::Nothing,
            };
        }
        if request.outstanding == 0 {
            self.finish(cx.segs, head);
        }
        Offered::All
    }

    /// Changes may be made now.
    pub(super) fn release_held(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        self.pending.append(&mut self.held);
        self.retry(cx, queue, env)
    }

    /// Offers the pending again, in order, until the queue refuses.
    pub(super) fn retry(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        let mut any = false;
        for _ in 0..self.pending.len() {
            let Some(head) = self.pending.pop_front() else { break };
            let before = self.requests[usize::from(head)].todo;
            match self.drive(cx, queue, env, head) {
                Offered::All => {}
                Offered::Refused(why) => {
                    // drive() put it at the end: it was first and stays first.
                    if let Some(head) = self.pending.pop_back() {
                        self.pending.push_front(head);
                    }
                    any |= self.requests[usize::from(head)].todo != before;
                    self.judge(cx, why, env);
                    break;
                }
            }
            any = true;
        }
        any
    }

    /// A full queue empties by itself. A way that is down may come back, but not for ever.
    fn judge(&mut self, cx: &mut Cx<'_>, why: RefusedWhy, env: &Env<'_>) {
        if why == RefusedWhy::Full {
            self.down_since = None;
            return;
        }
        let since = *self.down_since.get_or_insert(cx.now);
        if !env.gone && cx.now.since(since) < env.config.down_timeout {
            return;
        }
        if let Some(others) = env.counters.limits.way.may_log(env.now) {
            let requests = self.pending.len();
            tracing::warn!(vring = %env.config.name, requests, others, "no way to the device; requests fail");
        }
        self.fail_pending(cx.segs);
    }

    pub(super) fn fail_pending(&mut self, segs: &mut SegTable) {
        for _ in 0..self.pending.len() {
            let Some(head) = self.pending.pop_front() else { break };
            let request = &mut self.requests[usize::from(head)];
            (request.todo, request.status, request.flush_after) = (Todo::Nothing, S_IOERR, false);
            if request.outstanding == 0 {
                self.finish(segs, head);
            }
        }
    }
}
