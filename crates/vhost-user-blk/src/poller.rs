//! One vring on its reactor: takes chains in batches, hands requests to the device's queue, gives them back.

use crate::mailbox::{Answer, Command, MailboxReceiver, Message, Start};
use crate::notify::{Kick, Notifier};
use crate::request::{self, ID_BYTES, MAX_RANGES, Media, Parsed, Place, Range, S_IOERR, S_OK, WriteThrough};
use crate::stats::{Count, Counters};
use crate::vring::{RingError, StatusByte, Vring};
use polypath_block::{
    Armed, Cx, Device, DeviceState, Done, Flags, Io, IoQueue, Op, Poller, QueueConfig, RefusedWhy, SegRow, Time, Turn,
    Waits,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// Most chains taken in one turn.
const BATCH: u16 = 64;
/// How soon a request is offered again to a queue whose way is down.
const RETRY: Duration = Duration::from_millis(5);

/// What a vring needs to know of its server, fixed for its life.
#[derive(Clone, Debug)]
pub(crate) struct VringConfig {
    /// For logs.
    pub(crate) name: String,
    /// Requests its device queue must hold.
    pub(crate) depth: u16,
    /// Segments one request may have.
    pub(crate) width: u32,
    /// Block size the guest was told.
    pub(crate) block_size: u32,
    /// Exported read-only.
    pub(crate) read_only: bool,
    /// Serial number for GET_ID.
    pub(crate) serial: [u8; ID_BYTES],
    /// How long a request waits for a queue whose way is down, before it fails.
    pub(crate) down_timeout: Duration,
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
    flush_after: bool,
    status: u8,
    /// Bytes of guest memory written if all goes well.
    written: u32,
    outstanding: u16,
    todo: Todo,
    status_byte: StatusByte,
}

impl Request {
    const FREE: Request = Request {
        active: false,
        fresh: false,
        flush_after: false,
        status: S_OK,
        written: 0,
        outstanding: 0,
        todo: Todo::Nothing,
        status_byte: StatusByte::NONE,
    };
}

/// A running ring and its requests.
struct Active {
    ring: Vring,
    kick: Option<Arc<Kick>>,
    call: Option<Arc<Notifier>>,
    err: Option<Arc<Notifier>>,
    write_through: Arc<AtomicBool>,
    requests: Box<[Request]>,
    ranges: Box<[Range]>,
    rows: SegRow,
    in_flight: u16,
    /// Heads whose next part the queue refused; at most one of them is fresh.
    pending: VecDeque<u16>,
    /// Since when the queue's way has been down with something pending.
    down_since: Option<Time>,
    /// The guest broke it: nothing more is taken.
    broken: bool,
    /// The reactor slept with the guest's notifications on.
    armed: bool,
    /// How many mappings of this process had lost their file when ours were last looked at.
    losses: u64,
}

/// Gives turns to one vring. See the crate's head for the whole path.
pub(crate) struct VringPoller {
    config: VringConfig,
    device: Arc<dyn Device>,
    version: u64,
    /// Nothing more will ever come of the device.
    device_gone: bool,
    media: Media,
    queue: Result<Box<dyn IoQueue>, String>,
    mailbox: MailboxReceiver,
    counters: Arc<Counters>,
    active: Option<Active>,
    /// Where the ring that ran last was stopped. A stop that took longer than its asker waited is asked for again.
    stopped_at: u16,
    stopping: Option<SyncSender<Answer>>,
    /// Nobody will start it again: close the queue and go.
    ending: bool,
    done: Done,
}

/// Outcome of offering a request to the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offered {
    /// All of it was taken.
    All,
    /// Some of it was not, for now.
    Refused(RefusedWhy),
}

impl VringPoller {
    /// Opens the device's queue; call it on the reactor.
    pub(crate) fn new(
        config: VringConfig,
        device: Arc<dyn Device>,
        mailbox: MailboxReceiver,
        counters: Arc<Counters>,
    ) -> Self {
        let depth = config.depth.max(1);
        let queue = device.open_queue(QueueConfig { depth }).map_err(|error| {
            tracing::error!(vring = %config.name, %error, "no queue to the device");
            error.to_string()
        });
        let media = Media {
            block_shift: config.block_size.trailing_zeros(),
            read_only: config.read_only,
            discard: false,
            write_zeroes: false,
            write_cache: true,
            fua: false,
        };
        let mut poller = VringPoller {
            version: device.version().wrapping_sub(1),
            device_gone: false,
            media,
            queue,
            mailbox,
            counters,
            active: None,
            stopped_at: 0,
            stopping: None,
            ending: false,
            done: Done::with_capacity(4 * usize::from(depth)),
            config,
            device,
        };
        poller.follow_device();
        poller
    }

    /// Learns what changed about the device. Not on the fast path: one relaxed load tells whether anything did.
    #[inline]
    fn follow_device(&mut self) {
        let version = self.device.version();
        if version != self.version {
            self.version = version;
            self.reload_device();
        }
    }

    #[cold]
    fn reload_device(&mut self) {
        match self.device.state() {
            DeviceState::Live(info) => {
                if info.geometry.block_size != self.config.block_size {
                    tracing::error!(
                        vring = %self.config.name,
                        told = self.config.block_size,
                        now = info.geometry.block_size,
                        "the device's block size is not the one the guest was told; all requests will fail"
                    );
                    self.device_gone = true;
                    return;
                }
                self.media = Media::new(&info, self.config.block_size, self.config.read_only);
            }
            DeviceState::Gone { reason } => {
                tracing::warn!(vring = %self.config.name, %reason, "the device is gone; requests fail from now on");
                self.device_gone = true;
            }
            DeviceState::Starting | DeviceState::Down { .. } => {}
        }
    }

    fn handle_messages(&mut self, cx: &mut Cx<'_>) {
        // One message waits for its answer while the ring drains.
        if self.stopping.is_some() {
            return;
        }
        match self.mailbox.next() {
            Ok(Some(message)) => self.handle_message(cx, message),
            Ok(None) => {}
            Err(()) if !self.ending => {
                self.ending = true;
                self.stopping.get_or_insert(std::sync::mpsc::sync_channel(1).0);
            }
            Err(()) => {}
        }
    }

    fn handle_message(&mut self, cx: &mut Cx<'_>, message: Message) {
        let Message { command, answer } = message;
        let result = match command {
            Command::Start(start) => self.start(cx, *start),
            Command::Stop | Command::End => {
                self.ending |= matches!(command, Command::End);
                self.stopping = Some(answer);
                return;
            }
            Command::SetCall(notifier) => self.with_active(|a| a.call = notifier),
            Command::SetErr(notifier) => self.with_active(|a| a.err = notifier),
            Command::SetMemory(memory) => self.with_active(|a| a.ring.set_memory(memory)),
        };
        // The control thread may have given up waiting.
        let _ = answer.try_send(result);
    }

    fn with_active(&mut self, change: impl FnOnce(&mut Active)) -> Answer {
        self.active.as_mut().map(change);
        Ok(0)
    }

    fn start(&mut self, cx: &mut Cx<'_>, start: Start) -> Answer {
        if let Err(error) = &self.queue {
            return Err(error.clone());
        }
        if self.active.is_some() {
            return Err("the ring runs already".into());
        }
        let Start { ring, kick, call, err, write_through, orphaned } = start;
        let size = ring.size();
        let rows = cx.segs.reserve(size.into(), self.config.width).map_err(|e| e.to_string())?;
        let base = ring.base();
        let slots = usize::from(size);
        self.active = Some(Active {
            ring,
            kick,
            call,
            err,
            write_through,
            requests: vec![Request::FREE; slots].into_boxed_slice(),
            ranges: vec![Range::default(); slots * MAX_RANGES].into_boxed_slice(),
            rows,
            in_flight: 0,
            pending: VecDeque::with_capacity(slots),
            down_since: None,
            broken: orphaned,
            armed: false,
            losses: 0,
        });
        self.counters.set_running(true);
        if orphaned {
            tracing::error!(
                vring = %self.config.name,
                "a back-end was killed with this ring's requests in flight, and which of them were done is not known; \
                 nothing is taken from it until the guest sets it up anew: reset the guest"
            );
            self.counters.add(Count::RingErrors, 1);
            if let Some(err) = self.active.as_ref().and_then(|a| a.err.as_ref())
                && let Err(error) = err.notify()
            {
                tracing::warn!(vring = %self.config.name, %error, "the front-end cannot be told");
            }
        }
        Ok(base)
    }

    /// When a stop was asked for and nothing is in flight any more: lets go of the ring and answers.
    fn finish_stop(&mut self, cx: &mut Cx<'_>) {
        if let Some(active) = &mut self.active {
            active.untake();
            if active.in_flight > 0 {
                return;
            }
        }
        let Some(answer) = self.stopping.take() else { return };
        if let Some(active) = self.active.take() {
            cx.segs.release(active.rows);
            self.stopped_at = active.ring.base();
        }
        self.counters.set_running(false);
        let _ = answer.try_send(Ok(self.stopped_at));
        if self.ending
            && let Ok(queue) = &mut self.queue
        {
            queue.close(cx);
        }
    }

    fn finished(&self) -> bool {
        self.ending && self.stopping.is_none() && self.queue.as_ref().map_or(true, |q| q.is_drained())
    }
}

impl Poller for VringPoller {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        if self.mailbox.has_messages() {
            self.handle_messages(cx);
        }
        self.follow_device();
        let Self { active, queue, done, .. } = self;
        let Ok(queue) = queue else {
            self.finish_stop(cx);
            return if self.finished() { Turn::Finished } else { Turn::Idle };
        };
        let mut busy = false;
        if let Some(active) = active {
            let env =
                Env { media: &self.media, config: &self.config, counters: &self.counters, gone: self.device_gone };
            active.after_sleep(&env);
            active.look_for_losses(&env);
            if !active.pending.is_empty() {
                busy |= active.retry(cx, queue.as_mut(), &env);
            }
            if self.stopping.is_none() && active.pending.is_empty() && !active.broken {
                busy |= active.take_batch(cx, queue.as_mut(), &env);
            }
            queue.kick(cx);
            queue.poll(cx, done);
            busy |= !done.is_empty();
            active.give_back(cx, queue.as_mut(), &env, done);
        } else {
            queue.kick(cx);
            queue.poll(cx, done);
            done.clear();
        }
        if self.stopping.is_some() {
            self.finish_stop(cx);
            busy = true;
        }
        match (self.finished(), busy) {
            (true, _) => Turn::Finished,
            (_, true) => Turn::Busy,
            (_, false) => Turn::Idle,
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if (self.mailbox.has_messages() && self.stopping.is_none()) || self.device.version() != self.version {
            return Armed::Busy;
        }
        if let Some(active) = &mut self.active {
            let stopping = self.stopping.is_some();
            let env =
                Env { media: &self.media, config: &self.config, counters: &self.counters, gone: self.device_gone };
            if active.arm(cx, waits, stopping, &env) == Armed::Busy {
                return Armed::Busy;
            }
        }
        match &mut self.queue {
            Ok(queue) => queue.arm(cx, waits),
            Err(_) => Armed::Sleep,
        }
    }

    fn name(&self) -> &str {
        &self.config.name
    }
}

/// What the requests of a ring see of their poller.
struct Env<'a> {
    media: &'a Media,
    config: &'a VringConfig,
    counters: &'a Counters,
    gone: bool,
}

impl Active {
    /// Takes chains and offers them until none is left, the queue refuses, or the batch is full.
    fn take_batch(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>) -> bool {
        let mut taken = 0;
        let result = loop {
            match self.ring.waiting() {
                Ok(0) => break Ok(()),
                Ok(_) if taken == BATCH => break Ok(()),
                Ok(_) => {}
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
        let parsed = match env.gone {
            false => request::parse(&chain, env.media, head.into(), &env.config.serial, place),
            true => Parsed::Now(S_IOERR, 1),
        };
        if chain.fault.is_some() {
            env.counters.add(Count::BadRequests, 1);
        }
        let mut request = Request { active: true, fresh: true, status_byte: chain.status, ..Request::FREE };
        match parsed {
            Parsed::Now(status, written) => (request.status, request.written) = (status, written),
            Parsed::Io(io, written) => {
                request.written = written;
                request.todo = Todo::One(self.durable(io, env, &mut request.flush_after));
            }
            Parsed::Ranges(op, count) => {
                request.written = 1;
                request.todo = Todo::Ranges { op, next: 0, count };
                request.flush_after = self.write_through(op, env) != WriteThrough::Nothing;
            }
        }
        self.requests[slot] = request;
        self.in_flight += 1;
        Ok(head)
    }

    /// What a guest that does not flush is owed before `op` completes.
    #[inline]
    fn write_through(&self, op: Op, env: &Env<'_>) -> WriteThrough {
        if op.changes_medium() && self.write_through.load(Ordering::Relaxed) {
            env.media.write_through(op)
        } else {
            WriteThrough::Nothing
        }
    }

    #[inline]
    fn durable(&self, io: Io, env: &Env<'_>, flush_after: &mut bool) -> Io {
        match self.write_through(io.op, env) {
            WriteThrough::Nothing => io,
            WriteThrough::Fua => io.with_flags(Flags::FUA),
            WriteThrough::FlushAfter => {
                *flush_after = true;
                io
            }
        }
    }

    /// Offers what is still to be submitted for `head`. What the queue does not take stays, and `head` joins the pending.
    #[inline]
    fn drive(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, head: u16) -> Offered {
        let slot = usize::from(head);
        let request = &mut self.requests[slot];
        loop {
            let io = match request.todo {
                Todo::Nothing => break,
                Todo::One(io) => io,
                Todo::Ranges { op, next, .. } => self.ranges[slot * MAX_RANGES + usize::from(next)].io(head.into(), op),
            };
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
        tracing::warn!(vring = %env.config.name, requests = self.pending.len(), "no way to the device; requests fail");
        for _ in 0..self.pending.len() {
            let Some(head) = self.pending.pop_front() else { break };
            let request = &mut self.requests[usize::from(head)];
            (request.todo, request.status, request.flush_after) = (Todo::Nothing, S_IOERR, false);
            if request.outstanding == 0 {
                self.finish(head, env);
            }
        }
    }

    /// Works off what the queue completed, shows it to the guest, and calls it at most once.
    fn give_back(&mut self, cx: &mut Cx<'_>, queue: &mut dyn IoQueue, env: &Env<'_>, done: &mut Done) {
        // Suspects are for layers that have another path; here a request is over when it completes.
        done.suspects.clear();
        for completion in done.completions.drain(..) {
            let head = completion.tag as u16;
            let Some(request) = self.requests.get_mut(usize::from(head)).filter(|r| r.outstanding > 0) else {
                tracing::error!(vring = %env.config.name, tag = completion.tag, "completion of a request that is not in flight");
                continue;
            };
            request.outstanding -= 1;
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
                continue;
            }
            if request.flush_after {
                request.flush_after = false;
                request.todo = Todo::One(Io::flush(head.into()));
                // Whether taken or pending: the flush leaves with the next kick.
                self.drive(cx, queue, env, head);
            } else {
                self.finish(head, env);
            }
        }
        if self.ring.publish()
            && let Some(call) = &self.call
        {
            env.counters.add(Count::Calls, 1);
            if let Err(error) = call.notify() {
                tracing::warn!(vring = %env.config.name, %error, "the guest cannot be called");
                self.call = None;
            }
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
        tracing::error!(vring = %env.config.name, %error, "the guest broke its ring; it is stopped");
        self.broken = true;
        env.counters.add(Count::RingErrors, 1);
        if let Some(err) = &self.err
            && let Err(error) = err.notify()
        {
            tracing::warn!(vring = %env.config.name, %error, "the front-end cannot be told");
        }
    }

    /// A guest whose memory has turned to zeroes gets no further: its writes would carry them to the disk.
    #[inline]
    fn look_for_losses(&mut self, env: &Env<'_>) {
        let losses = polypath_memory::losses();
        if losses != self.losses {
            self.losses = losses;
            if !self.broken && self.ring.memory().is_lost() {
                self.break_ring(RingError::MemoryLost, env);
            }
        }
    }

    /// Before a stop: a chain that was taken but not begun goes back to the ring.
    fn untake(&mut self) {
        let Some(at) = self.pending.iter().position(|&h| self.requests[usize::from(h)].fresh) else { return };
        if let Some(head) = self.pending.remove(at) {
            self.requests[usize::from(head)].active = false;
            self.in_flight -= 1;
            self.ring.put_back();
        }
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
                tracing::error!(vring = %env.config.name, %error, "the kick descriptor is dead; the ring is stopped");
                self.kick = None;
                self.broken = true;
            }
        }
    }

    fn arm(&mut self, cx: &Cx<'_>, waits: &mut Waits, stopping: bool, env: &Env<'_>) -> Armed {
        if self.pending.is_empty() {
            self.down_since = None;
        } else {
            waits.until(cx.now.after(RETRY));
        }
        if self.broken || stopping {
            return Armed::Sleep;
        }
        let Some(kick) = &self.kick else { return Armed::Busy };
        self.armed = true;
        // What waits behind a pending request is taken once that is gone, which the queue's completion announces.
        match self.ring.listen() {
            Ok(true) if self.pending.is_empty() => return Armed::Busy,
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
