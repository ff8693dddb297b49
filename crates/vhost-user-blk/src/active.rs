//! The requests of a running ring: from chains to the device's queue and back.

use crate::last_flush::RETRY;
use crate::mailbox::Start;
use crate::notify::{DueNotifier, Kick, Notifier};
use crate::poller::VringConfig;
use crate::request::{self, MAX_RANGES, Media, Parsed, Place, Range, S_IOERR, S_OK, WriteThrough};
use crate::ring::{RingError, StatusByte, Vring};
use crate::stats::{Count, Counters};
use polypath_block::{Armed, Completion, Cx, Done, Flags, Io, IoQueue, Op, RefusedWhy, SegRow, SegSpan, Time, Waits};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH;

/// Most chains taken in one turn.
const BATCH: u16 = 64;
/// What marking pages in the front-end's log may cost in a turn, in words of the log: beyond that, the rest is given back in the next. A guest
/// names much memory with few words.
const LOG_BUDGET: u64 = 16 << 10;

/// What becomes of a ring's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// They come and go.
    Run,
    /// None is begun any more but those that a back-end before us left; all that were taken complete.
    Drain,
    /// We end. What the device has completes. The rest stays recorded for the back-end after us.
    Leave,
}

/// What is still to be submitted for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Todo {
    Nothing,
    One(Io),
    Ranges { op: Op, next: u16, count: u16 },
}

/// One request in flight, by head.
#[derive(Clone, Copy, Debug)]
struct Request {
    active: bool,
    /// Nothing of it was submitted yet.
    fresh: bool,
    /// Not all of it is done, and the rest is for the back-end after us: it is not given back.
    left: bool,
    flush_after: bool,
    /// The guest's own flush.
    flush: bool,
    status: u8,
    /// Bytes of guest memory written if all goes well.
    written: u32,
    outstanding: u16,
    todo: Todo,
    status_byte: StatusByte,
    /// The guest memory that it writes, for the log.
    landing: SegSpan,
}

impl Request {
    const FREE: Request = Request {
        active: false,
        fresh: false,
        left: false,
        flush_after: false,
        flush: false,
        status: S_OK,
        written: 0,
        outstanding: 0,
        todo: Todo::Nothing,
        status_byte: StatusByte::NONE,
        landing: SegSpan::EMPTY,
    };
}

/// A running ring and its requests.
pub(crate) struct Active {
    pub(crate) ring: Vring,
    kick: Option<Arc<Kick>>,
    call: DueNotifier,
    err: DueNotifier,
    write_through: Arc<AtomicBool>,
    requests: Box<[Request]>,
    ranges: Box<[Range]>,
    rows: SegRow,
    in_flight: u16,
    /// Heads whose next part the queue refused; at most one of them is fresh.
    pending: VecDeque<u16>,
    /// Heads of changes that wait for the end of what a back-end before us may have in flight ([`Env::hold`]). Of a ring without a record at
    /// most one waits, the one that was taken last.
    held: VecDeque<u16>,
    /// Since when the queue's way has been down with something pending.
    down_since: Option<Time>,
    /// The guest broke it: nothing more is taken.
    broken: bool,
    /// The reactor slept with the guest's notifications on.
    armed: bool,
    /// How many mappings of this process had lost their file when ours were last looked at.
    losses: u64,
}

/// Outcome of offering a request to the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offered {
    /// All of it was taken.
    All,
    /// Some of it was not, for now.
    Refused(RefusedWhy),
}

/// What the requests of a ring see of their poller.
pub(crate) struct Env<'a> {
    pub(crate) media: &'a Media,
    pub(crate) config: &'a VringConfig,
    pub(crate) counters: &'a Counters,
    /// Nothing more will ever come of the device.
    pub(crate) gone: bool,
    /// Changes wait until then.
    pub(crate) hold: Option<Time>,
    pub(crate) mode: Mode,
    pub(crate) now: Time,
}

impl Active {
    /// The ring of `start`, whose requests have their segments in `rows`.
    ///
    /// The guest is called once, whether it wants that or not: what a back-end before us showed it, and was killed before it could say so,
    /// or said where nobody listened, nobody else will ever say.
    pub(crate) fn new(start: Start, rows: SegRow, env: &Env<'_>) -> Active {
        let Start { ring, kick, call, err, write_through, orphaned } = start;
        let slots = usize::from(ring.size());
        let mut active = Active {
            ring,
            kick,
            call: DueNotifier::new(call, true),
            err: DueNotifier::new(err, false),
            write_through,
            requests: vec![Request::FREE; slots].into_boxed_slice(),
            ranges: vec![Range::default(); slots * MAX_RANGES].into_boxed_slice(),
            rows,
            in_flight: 0,
            pending: VecDeque::with_capacity(slots),
            held: VecDeque::with_capacity(slots),
            down_since: None,
            broken: false,
            armed: false,
            losses: 0,
        };
        if orphaned {
            active.break_ring(RingError::Orphaned, env);
        }
        active
    }

    /// The segments of its requests, when it has stopped.
    pub(crate) fn into_rows(self) -> SegRow {
        self.rows
    }

    /// Notifies another descriptor from now on, and now: what was said on the old one may not have been heard.
    pub(crate) fn set_call(&mut self, call: Option<Arc<Notifier>>) {
        self.call = DueNotifier::new(call, true);
    }

    /// As [`Active::set_call`], of the descriptor that tells of a broken ring.
    pub(crate) fn set_err(&mut self, err: Option<Arc<Notifier>>) {
        self.err = DueNotifier::new(err, self.broken);
    }

    /// The first half of a turn: takes what the guest offers, and offers it to the queue. True if anything moved.
    pub(crate) fn take(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        let mut busy = false;
        self.after_sleep(env);
        self.look_for_losses(env);
        if env.mode == Mode::Leave {
            busy |= self.leave();
        } else if env.hold.is_none() && !self.held.is_empty() {
            busy |= self.release_held(cx, queue, env);
        } else if !self.pending.is_empty() {
            busy |= self.retry(cx, queue, env);
        }
        if self.takes(env.mode) && self.pending.is_empty() && !self.broken {
            busy |= self.take_batch(cx, queue, env);
        }
        busy
    }

    /// May another chain be taken? Without a record, none overtakes a change that waits: the ring alone tells what was begun, and only what
    /// was taken last can go back to it.
    fn takes(&self, mode: Mode) -> bool {
        let in_order = self.held.is_empty() || self.ring.has_record();
        in_order
            && match mode {
                Mode::Run => true,
                Mode::Drain => self.ring.left_open() > 0,
                Mode::Leave => false,
            }
    }

    /// Before a stop: a chain that was taken from the guest and not begun goes back to the ring. True when nothing is in flight.
    pub(crate) fn is_quiet(&mut self, mode: Mode) -> bool {
        if mode == Mode::Drain {
            self.untake();
        }
        self.is_still(mode)
    }

    /// Of all that was taken, nothing is left to be done.
    pub(crate) fn is_still(&self, mode: Mode) -> bool {
        self.in_flight == 0 && (self.broken || !self.takes(mode))
    }

    /// Takes chains and offers them until none is left, the queue refuses, or the batch is full.
    fn take_batch(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        let mut taken = 0;
        let result = loop {
            match self.ring.has_chain() {
                // Of memory that is being lost, one chain costs no more than its own pages.
                Ok(true) if taken < BATCH && self.takes(env.mode) && polypath_memory::losses() == self.losses => {}
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
            match self.take_one(cx, env) {
                Err(error) => break Err(error),
                Ok(head) => {
                    taken += 1;
                    if self.drive(cx, queue, env, head) != Offered::All {
                        break Ok(());
                    }
                }
            }
        };
        if taken > 0 {
            env.counters.add(Count::Requests, taken.into());
        }
        if let Err(error) = result {
            self.break_ring(error, env);
        }
        taken > 0
    }

    /// Takes one chain and makes a request of it.
    fn take_one(&mut self, cx: &mut Cx<'_>, env: &Env<'_>) -> Result<u16, RingError> {
        let head = self.ring.take()?;
        let slot = usize::from(head);
        if self.requests[slot].active {
            return Err(RingError::Reused { head });
        }
        let span = self.rows.span(head.into(), env.config.width);
        let chain = self.ring.read_chain(head, cx.segs.get_mut(span))?;
        let ranges = &mut self.ranges[slot * MAX_RANGES..(slot + 1) * MAX_RANGES];
        let place = Place { segs: cx.segs, span, memory: self.ring.memory(), ranges };
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
            Parsed::Io(io, written) => {
                request.written = written;
                if io.op == Op::Read {
                    request.landing = landing;
                }
                request.flush = io.op == Op::Flush;
                request.todo = Todo::One(io);
            }
            Parsed::Ranges(op, count) => {
                request.written = 1;
                request.todo = Todo::Ranges { op, next: 0, count };
            }
        }
        self.requests[slot] = request;
        self.in_flight += 1;
        Ok(head)
    }

    /// Offers what is still to be submitted for `head`. What the queue does not take stays, and `head` joins the pending.
    #[inline]
    fn drive(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, head: u16) -> Offered {
        let slot = usize::from(head);
        let request = &mut self.requests[slot];
        loop {
            let mut io = match request.todo {
                Todo::Nothing => break,
                Todo::One(io) => io,
                Todo::Ranges { op, next, .. } => self.ranges[slot * MAX_RANGES + usize::from(next)].io(head.into(), op),
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
            request.outstanding += 1;
            request.fresh = false;
            request.todo = match request.todo {
                Todo::Ranges { op, next, count } if next + 1 < count => Todo::Ranges { op, next: next + 1, count },
                _ => Todo::Nothing,
            };
        }
        if request.outstanding == 0 {
            self.finish(head, env);
        }
        Offered::All
    }

    /// Changes may be made now.
    fn release_held(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        self.pending.append(&mut self.held);
        self.retry(cx, queue, env)
    }

    /// Offers the pending again, in order, until the queue refuses.
    fn retry(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        let mut any = false;
        for _ in 0..self.pending.len() {
            let Some(head) = self.pending.pop_front() else { break };
            let before = self.requests[usize::from(head)].todo;
            match self.drive(cx, queue, env, head) {
                Offered::All => self.down_since = None,
                Offered::Refused(why) => {
                    // drive() put it at the end: it was first and stays first.
                    if let Some(head) = self.pending.pop_back() {
                        self.pending.push_front(head);
                    }
                    any |= self.requests[usize::from(head)].todo != before;
                    self.judge(cx.now, why, env);
                    break;
                }
            }
            any = true;
        }
        any
    }

    /// A full queue empties by itself. A way that is down may come back, but not for ever.
    fn judge(&mut self, now: Time, why: RefusedWhy, env: &Env<'_>) {
        if why == RefusedWhy::Full {
            self.down_since = None;
            return;
        }
        let since = *self.down_since.get_or_insert(now);
        if !env.gone && now.since(since) < env.config.down_timeout {
            return;
        }
        if let Some(others) = env.counters.limits.way.may_log(env.now) {
            let requests = self.pending.len();
            tracing::warn!(vring = %env.config.name, requests, others, "no way to the device; requests fail");
        }
        self.fail_pending(env);
    }

    fn fail_pending(&mut self, env: &Env<'_>) {
        for _ in 0..self.pending.len() {
            let Some(head) = self.pending.pop_front() else { break };
            let request = &mut self.requests[usize::from(head)];
            (request.todo, request.status, request.flush_after) = (Todo::Nothing, S_IOERR, false);
            if request.outstanding == 0 {
                self.finish(head, env);
            }
        }
    }

    /// The second half of a turn: works off what the queue completed, shows it to the guest, and calls it at most once. What costs too much
    /// for one turn stays in `done`.
    pub(crate) fn give_back(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, done: &mut Done) {
        // Suspects are for layers that have another path; here a request is over when it completes.
        done.suspects.clear();
        let (mut worked_off, mut log_cost) = (0, 0);
        while log_cost < LOG_BUDGET
            && let Some(&completion) = done.completions.get(worked_off)
        {
            worked_off += 1;
            self.completed(cx, queue, env, completion);
            log_cost += self.ring.take_log_cost();
        }
        done.completions.drain(..worked_off);
        if self.ring.publish() {
            self.call.set_due();
        }
        self.notify(env);
    }

    fn completed(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, completion: Completion) {
        let head = completion.tag as u16;
        let Some(request) = self.requests.get_mut(usize::from(head)).filter(|r| r.outstanding > 0) else {
            tracing::error!(vring = %env.config.name, tag = completion.tag, "completion of a request that is not in flight");
            return;
        };
        request.outstanding -= 1;
        // Also if it failed: some of the data may be there.
        self.ring.landed(cx.segs.get(request.landing), u64::MAX);
        if !completion.status.is_ok() {
            env.counters.add(Count::Errors, 1);
            let ranges_left = matches!(request.todo, Todo::Ranges { .. });
            if request.status == S_OK {
                request.status = request::status_byte(completion.status);
            }
            (request.todo, request.flush_after) = (Todo::Nothing, false);
            if ranges_left {
                self.pending.retain(|&h| h != head);
            }
        }
        if request.outstanding > 0 || request.todo != Todo::Nothing {
            return;
        }
        // What became known meanwhile it was to cover as well.
        if request.flush && env.config.owed.tell() {
            request.status = S_IOERR;
        }
        if env.mode == Mode::Leave && request.left {
            self.forget(head);
        } else if request.flush_after {
            request.flush_after = false;
            request.todo = Todo::One(Io::flush(head.into()));
            // Whether taken or pending: the flush leaves with the next kick.
            self.drive(cx, queue, env, head);
        } else {
            self.finish(head, env);
        }
    }

    /// Calls the guest and tells the front-end, if that is due. What cannot be done now stays due.
    #[inline]
    fn notify(&mut self, env: &Env<'_>) {
        let limit = &env.counters.limits.notify;
        if self.call.is_due() {
            match self.call.notify() {
                Ok(()) => env.counters.add(Count::Calls, 1),
                Err(error) => {
                    if let Some(others) = limit.may_log(env.now) {
                        tracing::warn!(vring = %env.config.name, %error, others, "the guest cannot be called");
                    }
                }
            }
        }
        if self.err.is_due()
            && let Err(error) = self.err.notify()
            && let Some(others) = limit.may_log(env.now)
        {
            tracing::warn!(vring = %env.config.name, %error, others, "the front-end cannot be told of a broken ring");
        }
    }

    /// Puts the status where the guest looks for it and the chain in the used ring.
    #[inline]
    fn finish(&mut self, head: u16, env: &Env<'_>) {
        let request = &mut self.requests[usize::from(head)];
        request.active = false;
        self.in_flight -= 1;
        let (status_byte, status, written) = (request.status_byte, request.status, request.written);
        self.ring.complete(head, status_byte, status, written);
        env.counters.add(Count::Completions, 1);
    }

    fn break_ring(&mut self, error: RingError, env: &Env<'_>) {
        if let Some(others) = env.counters.limits.broken.may_log(env.now) {
            tracing::error!(
                vring = %env.config.name,
                %error,
                others,
                "the ring is stopped; nothing is taken from it until the guest sets it up anew"
            );
        }
        self.broken = true;
        env.counters.add(Count::RingErrors, 1);
        self.err.set_due();
    }

    /// A guest whose memory has turned to zeroes gets no further: its writes would carry them to the disk, those that wait as well.
    #[inline]
    fn look_for_losses(&mut self, env: &Env<'_>) {
        let losses = polypath_memory::losses();
        if losses != self.losses {
            self.losses = losses;
            if self.ring.memory().is_lost() {
                self.lose_memory(env);
            }
        }
    }

    #[cold]
    fn lose_memory(&mut self, env: &Env<'_>) {
        if !self.broken {
            self.break_ring(RingError::MemoryLost, env);
        }
        self.pending.append(&mut self.held);
        self.fail_pending(env);
    }

    /// A chain of which nothing was submitted goes back to the ring, if it is the one that was taken last.
    fn untake(&mut self) {
        let mut waiting = self.pending.iter().chain(&self.held);
        let Some(&head) = waiting.find(|&&head| self.requests[usize::from(head)].fresh) else { return };
        if self.ring.put_back(head) {
            self.pending.retain(|&other| other != head);
            self.held.retain(|&other| other != head);
            self.forget(head);
        }
    }

    /// What was not submitted, or not all of it, stays in flight for whoever reads the record.
    fn leave(&mut self) -> bool {
        self.pending.append(&mut self.held);
        let any = !self.pending.is_empty();
        for at in 0..self.pending.len() {
            let head = self.pending[at];
            let request = &mut self.requests[usize::from(head)];
            (request.todo, request.left) = (Todo::Nothing, true);
            if request.outstanding == 0 {
                self.forget(head);
            }
        }
        self.pending.clear();
        for request in self.requests.iter_mut().filter(|r| r.active && r.flush_after) {
            request.left = true;
        }
        any
    }

    /// It is not ours any more, and was not given back.
    fn forget(&mut self, head: u16) {
        self.requests[usize::from(head)].active = false;
        self.in_flight -= 1;
    }

    /// After a sleep: notifications off, the kick taken.
    #[inline]
    fn after_sleep(&mut self, env: &Env<'_>) {
        if !self.armed {
            return;
        }
        self.armed = false;
        self.ring.quiet();
        let Some(kick) = &self.kick else { return };
        match kick.take() {
            Ok(true) => env.counters.add(Count::Kicks, 1),
            Ok(false) => {}
            Err(error) => {
                if let Some(others) = env.counters.limits.notify.may_log(env.now) {
                    let vring = &env.config.name;
                    tracing::error!(%vring, %error, others, "the kick descriptor is dead; the ring is stopped");
                }
                self.kick = None;
                self.broken = true;
            }
        }
    }

    pub(crate) fn arm(&mut self, cx: &Cx<'_>, waits: &mut Waits, env: &Env<'_>) -> Armed {
        if self.pending.is_empty() {
            self.down_since = None;
        } else {
            waits.until(cx.now.after(RETRY));
        }
        if let Some(until) = env.hold.filter(|_| !self.held.is_empty()) {
            waits.until(until);
        }
        if self.call.is_due() || self.err.is_due() {
            waits.until(cx.now.after(RETRY));
        }
        // What waits behind a pending request is taken once that is gone, which the queue's completion announces.
        let takes = !self.broken && self.takes(env.mode) && self.pending.is_empty();
        if self.broken || env.mode != Mode::Run {
            return if takes { Armed::Busy } else { Armed::Sleep };
        }
        let Some(kick) = &self.kick else { return Armed::Busy };
        self.armed = true;
        match self.ring.listen() {
            Ok(true) if takes => return Armed::Busy,
            Ok(_) => {}
            Err(error) => {
                self.break_ring(error, env);
                return Armed::Busy;
            }
        }
        kick.name_in(waits);
        Armed::Sleep
    }
}
