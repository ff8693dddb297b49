//! The requests of a running ring: from chains to the device's queue (`take.rs`) and back.

#[cfg(test)]
mod check;
mod ranges;
mod room;
mod take;

use crate::last_flush::RETRY;
use crate::mailbox::Start;
use crate::notify::{DueNotifier, Kick, Notifier};
use crate::poller::VringConfig;
use crate::request::{self, Media, S_IOERR, S_OK};
use crate::ring::{RingError, StatusByte, Vring};
use crate::stats::{Count, Counters};
use polypath_block::{
    Armed, Completion, Cx, Done, Io, IoQueue, Op, RefusedWhy, SegRow, SegSpan, SegTable, Time, Waits,
};
use ranges::Ranges;
use room::Room;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Most chains taken in one turn.
const BATCH: u16 = 64;
/// What marking pages in the front-end's log may cost in a turn, in words of the log: beyond that, the rest is given back in the next. A guest
/// names much memory with few words.
const LOG_BUDGET: u64 = 16 << 10;
/// The table of requests grows by so many heads.
const HEADS: usize = 64;

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
    /// Ranges `next` to `count` of row `row`.
    Ranges {
        op: Op,
        row: u16,
        next: u16,
        count: u16,
    },
}

/// One request, by head. A free one is as [`Request::FREE`], but for what says where it lies and how much it writes.
#[derive(Clone, Copy, Debug)]
struct Request {
    /// It is in flight.
    active: bool,
    /// All of it was submitted in one piece, and there is nothing to do when that succeeds but to say so.
    plain: bool,
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
    /// Segments that are its own for as long as it is in flight.
    room: SegSpan,
    /// The row of its ranges.
    ranges: Option<u16>,
}

impl Request {
    const FREE: Request = Request {
        active: false,
        plain: false,
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
        room: SegSpan::EMPTY,
        ranges: None,
    };
}

/// A running ring and its requests.
pub(crate) struct Active {
    pub(crate) ring: Vring,
    kick: Option<Arc<Kick>>,
    call: DueNotifier,
    err: DueNotifier,
    write_through: Arc<AtomicBool>,
    /// By head, as far as heads have come yet: memory for those that never do is reserved and not touched.
    requests: Vec<Request>,
    ranges: Ranges,
    room: Room,
    in_flight: u16,
    /// What is to be submitted together; empty between turns.
    offer: Vec<Io>,
    /// Most chains looked at in one go: few while the queue has little room, for those that it refuses are looked at again.
    batch: u16,
    /// Requests given back and not counted yet.
    finished: u64,
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
    /// The ring of `start`, whose chains fit into `row`.
    ///
    /// The guest is called once, whether it wants that or not: what a back-end before us showed it, and was killed before it could say so,
    /// or said where nobody listened, nobody else will ever say.
    pub(crate) fn new(start: Start, row: SegRow, env: &Env<'_>) -> Active {
        let Start { ring, kick, call, err, write_through, orphaned } = start;
        let slots = usize::from(ring.size());
        let mut active = Active {
            ring,
            kick,
            call: DueNotifier::new(call, true),
            err: DueNotifier::new(err, false),
            write_through,
            requests: Vec::with_capacity(slots),
            ranges: Ranges::default(),
            room: Room::new(row, slots as u16),
            in_flight: 0,
            offer: Vec::with_capacity(BATCH.into()),
            batch: BATCH,
            finished: 0,
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

    /// Gives the segments of its requests back, when it has stopped.
    pub(crate) fn release(self, segs: &mut SegTable) {
        self.room.release(segs);
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
        self.look_for_losses(cx.segs, env);
        if env.mode == Mode::Leave {
            busy |= self.leave(cx.segs);
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

    /// Looks up to `times` times whether the guest has offered something, while nothing is in flight that could end meanwhile.
    #[inline]
    pub(crate) fn look(&mut self, times: u32) -> bool {
        let can_only_come = self.in_flight == 0 && !self.broken && !self.armed;
        can_only_come && self.ring.look(times)
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

    /// The same of one of any number of pieces, for which there must be room.
    #[inline(always)]
    fn takes_any(&self, mode: Mode) -> bool {
        self.takes(mode) && self.room.is_free()
    }

    /// Before a stop: a chain that was taken from the guest and not begun goes back to the ring. True when nothing is in flight.
    pub(crate) fn is_quiet(&mut self, segs: &mut SegTable, mode: Mode) -> bool {
        if mode == Mode::Drain {
            self.untake(segs);
        }
        self.is_still(mode)
    }

    /// Of all that was taken, nothing is left to be done.
    pub(crate) fn is_still(&self, mode: Mode) -> bool {
        self.in_flight == 0 && (self.broken || !self.takes(mode))
    }

    /// The second half of a turn: works off what the queue completed, shows it to the guest, and calls it at most once. What costs too much
    /// for one turn stays in `done`.
    pub(crate) fn give_back(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, done: &mut Done) {
        // Suspects are for layers that have another path; here a request is over when it completes.
        done.suspects.clear();
        let (mut worked_off, mut log_cost) = (0, 0);
        loop {
            worked_off += self.complete_plain(&done.completions[worked_off..]);
            let Some(completion) = done.completions.get(worked_off) else { break };
            if log_cost >= LOG_BUDGET {
                break;
            }
            worked_off += 1;
            self.complete_any(cx, queue, env, completion);
            log_cost += self.ring.take_log_cost();
        }
        if worked_off == done.completions.len() {
            done.completions.clear();
        } else {
            done.completions.drain(..worked_off);
        }
        if self.finished > 0 {
            env.counters.add(Count::Completions, std::mem::take(&mut self.finished));
        }
        if self.ring.publish() {
            self.call.set_due();
        }
        self.notify(env);
        #[cfg(test)]
        self.check();
    }

    /// Gives back what of `completions` comes first and is plain, and has succeeded. Returns how many.
    #[inline(always)]
    fn complete_plain(&mut self, completions: &[Completion]) -> usize {
        let Active { ring, requests, .. } = self;
        let mut completions = completions.iter();
        let count = ring.complete_plain(|| {
            let completion = completions.next()?;
            let head = completion.tag as u16;
            let request = requests.get_mut(usize::from(head)).filter(|request| request.plain)?;
            if !completion.status.is_ok() {
                return None;
            }
            // As a free one is.
            (request.active, request.plain, request.outstanding) = (false, false, 0);
            Some((head, request.status_byte, request.written))
        });
        self.in_flight -= count;
        self.finished += u64::from(count);
        usize::from(count)
    }

    /// One of those that are left.
    #[inline(never)]
    fn complete_any(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, completion: &Completion) {
        let head = completion.tag as u16;
        let Some(request) = self.requests.get_mut(usize::from(head)).filter(|r| r.outstanding > 0) else {
            tracing::error!(vring = %env.config.name, tag = completion.tag, "completion of a request that is not in flight");
            return;
        };
        request.outstanding -= 1;
        request.plain = false;
        // Also if it failed: some of the data may be there.
        if self.ring.has_log() {
            self.ring.landed(cx.segs.get(request.landing), u64::MAX);
        }
        if !completion.status.is_ok() {
            env.counters.add(Count::Errors, 1);
            let ranges_left = matches!(request.todo, Todo::Ranges { .. });
            if request.status == S_OK {
                request.status = request::status_byte(completion.status);
            }
            (request.todo, request.flush_after) = (Todo::Nothing, false);
            if ranges_left {
                self.pending.retain(|&h| h != head);
                self.held.retain(|&h| h != head);
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
            self.forget(cx.segs, head);
        } else if request.flush_after {
            request.flush_after = false;
            request.todo = Todo::One(Io::flush(head.into()));
            // Whether taken or pending: the flush leaves with the next kick.
            self.drive(cx, queue, env, head);
        } else {
            self.finish(cx.segs, head);
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
    #[inline(never)]
    fn finish(&mut self, segs: &mut SegTable, head: u16) {
        let Request { status_byte, status, written, .. } = self.requests[usize::from(head)];
        self.ring.complete(head, status_byte, status, written);
        self.finished += 1;
        self.forget(segs, head);
    }

    /// It is not ours any more. Where it has not finished, it was not given back.
    fn forget(&mut self, segs: &mut SegTable, head: u16) {
        let request = std::mem::replace(&mut self.requests[usize::from(head)], Request::FREE);
        self.in_flight -= 1;
        if request.room.count > 0 {
            self.room.give_back(segs, request.room);
        }
        if let Some(row) = request.ranges {
            self.ranges.give_back(row);
        }
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
    fn look_for_losses(&mut self, segs: &mut SegTable, env: &Env<'_>) {
        let losses = polypath_memory::losses();
        if losses != self.losses {
            self.losses = losses;
            if self.ring.memory().is_lost() {
                self.lose_memory(segs, env);
            }
        }
    }

    #[cold]
    fn lose_memory(&mut self, segs: &mut SegTable, env: &Env<'_>) {
        if !self.broken {
            self.break_ring(RingError::MemoryLost, env);
        }
        self.pending.append(&mut self.held);
        self.fail_pending(segs);
    }

    /// A chain of which nothing was submitted goes back to the ring, if it is the one that was taken last.
    fn untake(&mut self, segs: &mut SegTable) {
        let mut waiting = self.pending.iter().chain(&self.held);
        let Some(&head) = waiting.find(|&&head| self.requests[usize::from(head)].fresh) else { return };
        if self.ring.put_back(head) {
            self.pending.retain(|&other| other != head);
            self.held.retain(|&other| other != head);
            self.forget(segs, head);
        }
    }

    /// What was not submitted, or not all of it, stays in flight for whoever reads the record.
    fn leave(&mut self, segs: &mut SegTable) -> bool {
        self.pending.append(&mut self.held);
        let any = !self.pending.is_empty();
        for at in 0..self.pending.len() {
            let head = self.pending[at];
            let request = &mut self.requests[usize::from(head)];
            (request.todo, request.left) = (Todo::Nothing, true);
            if request.outstanding == 0 {
                self.forget(segs, head);
            }
        }
        self.pending.clear();
        for request in self.requests.iter_mut().filter(|r| r.active && r.flush_after) {
            request.left = true;
        }
        any
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
        if !self.held.is_empty() {
            match env.hold {
                Some(until) => waits.until(until),
                // It has ended since the last turn.
                None => return Armed::Busy,
            }
        }
        if self.call.is_due() || self.err.is_due() {
            waits.until(cx.now.after(RETRY));
        }
        // What waits behind a pending request is taken once that is gone, which the queue's completion announces.
        // So is what waits for the row of a request in flight.
        let takes = !self.broken && self.pending.is_empty() && self.takes_any(env.mode);
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
