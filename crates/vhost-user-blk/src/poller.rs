//! One vring on its reactor: from its start to its end, and what it is told in between. Its requests are in `active/`.

use crate::active::{Active, Env, Mode};
use crate::last_flush::LastFlush;
use crate::mailbox::{Answer, Command, MailboxReceiver, Message, Start};
use crate::past::{Hold, Owed};
use crate::request::{ID_BYTES, Media};
use crate::stats::Counters;
use polypath_block::{Armed, Cx, Device, DeviceState, Done, IoQueue, Poller, QueueConfig, Time, Turn, Waits};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

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
    /// Changes wait for that long.
    pub(crate) changes_from: Hold,
    /// Shared by all rings of the guest.
    pub(crate) owed: Owed,
}

/// Somebody waits for the ring to stand still.
struct Stopping {
    /// What was not begun may stay in the ring's record.
    leave: bool,
    /// What completed is made durable first.
    flush: Option<LastFlush>,
    /// Whoever gave up waiting may ask again, and more may be asked for meanwhile: all are answered.
    answers: Vec<SyncSender<Answer>>,
}

impl Stopping {
    /// The flush, if it is still to be waited for. Whoever leaves has no time for it: the back-end after us takes all caches for dirty.
    fn flush(&self) -> Option<&LastFlush> {
        self.flush.as_ref().filter(|flush| !flush.is_done() && (!self.leave || flush.is_sent()))
    }
}

/// What the requests of a ring see, kept apart from what they change.
struct Around {
    config: VringConfig,
    counters: Arc<Counters>,
    media: Media,
    /// Nothing more will ever come of the device.
    device_gone: bool,
    /// Until when changes wait, as that version of [`VringConfig::changes_from`] has it.
    hold: Option<Time>,
    hold_version: Option<u64>,
}

impl Around {
    fn env(&self, mode: Mode, now: Time) -> Env<'_> {
        Env {
            media: &self.media,
            config: &self.config,
            counters: &self.counters,
            gone: self.device_gone,
            hold: self.hold.filter(|until| *until > now),
            mode,
            now,
        }
    }

    /// Learns until when changes wait, if that has become known or later.
    #[inline]
    fn follow_hold(&mut self, now: Time) {
        let version = self.config.changes_from.version();
        if self.hold_version != Some(version) {
            self.hold_version = Some(version);
            let left = self.config.changes_from.left();
            self.hold = (!left.is_zero()).then(|| now.after(left));
        }
    }
}

/// Gives turns to one vring. See the crate's head for the whole path.
pub(crate) struct VringPoller {
    around: Around,
    device: Arc<dyn Device>,
    version: u64,
    queue: Result<Box<dyn IoQueue>, String>,
    mailbox: MailboxReceiver,
    active: Option<Active>,
    /// Where the ring that ran last was stopped: whoever asks again is told the same.
    stopped_at: u32,
    stopping: Option<Stopping>,
    /// Nobody will start it again: close the queue and go.
    ending: bool,
    done: Done,
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
        // A device may be shared with others, and what it has lost since the last queue of this guest was told to them. A queue that has
        // something to tell tells of all.
        if queue.as_ref().is_ok_and(|queue| queue.owes()) {
            config.owed.follow(device.losses());
        } else {
            config.owed.look(device.losses());
        }
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
            queue,
            mailbox,
            active: None,
            stopped_at: 0,
            stopping: None,
            ending: false,
            done: Done::with_capacity(4 * usize::from(depth)),
            around: Around { config, counters, media, device_gone: false, hold: None, hold_version: None },
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
                if info.geometry.block_size != self.around.config.block_size {
                    tracing::error!(
                        vring = %self.around.config.name,
                        told = self.around.config.block_size,
                        now = info.geometry.block_size,
                        "the device's block size is not the one the guest was told; all requests will fail"
                    );
                    self.around.device_gone = true;
                    return;
                }
                self.around.media = Media::new(&info, self.around.config.block_size, self.around.config.read_only);
            }
            DeviceState::Gone { reason } => {
                tracing::warn!(vring = %self.around.config.name, %reason, "the device is gone; requests fail from now on");
                self.around.device_gone = true;
            }
            DeviceState::Starting | DeviceState::Down { .. } => {}
        }
    }

    fn handle_messages(&mut self, cx: &mut Cx<'_>) {
        match self.mailbox.next() {
            Ok(Some(message)) => self.handle_message(cx, message),
            Ok(None) => {}
            Err(()) => self.end(None),
        }
    }

    fn handle_message(&mut self, cx: &mut Cx<'_>, message: Message) {
        let Message { command, answer } = message;
        let result = match command {
            Command::Start(start) => self.start(cx, *start),
            Command::Stop { flush } => return self.stop(false, flush, Some(answer)),
            Command::Leave => return self.stop(true, false, Some(answer)),
            Command::End => return self.end(Some(answer)),
            Command::SetCall(notifier) => self.with_active(|a| a.set_call(notifier)),
            Command::SetErr(notifier) => self.with_active(|a| a.set_err(notifier)),
            Command::SetLog(log) => self.with_active(|a| a.ring.set_log(log)),
            Command::SetMemory(memory) => self.with_active(|a| a.ring.set_memory(memory)),
        };
        // The control thread may have given up waiting.
        let _ = answer.try_send(result);
    }

    fn stop(&mut self, leave: bool, flush: bool, answer: Option<SyncSender<Answer>>) {
        let stopping = self.stopping.get_or_insert(Stopping { leave: false, flush: None, answers: Vec::new() });
        stopping.leave |= leave;
        if flush {
            stopping.flush.get_or_insert_with(LastFlush::new);
        }
        stopping.answers.extend(answer);
    }

    fn end(&mut self, answer: Option<SyncSender<Answer>>) {
        if !std::mem::replace(&mut self.ending, true) || answer.is_some() {
            self.stop(true, false, answer);
        }
    }

    fn mode(&self) -> Mode {
        let has_record = || self.active.as_ref().is_some_and(|active| active.ring.has_record());
        match &self.stopping {
            None => Mode::Run,
            Some(stopping) if stopping.leave && has_record() => Mode::Leave,
            Some(_) => Mode::Drain,
        }
    }

    fn with_active(&mut self, change: impl FnOnce(&mut Active)) -> Answer {
        self.active.as_mut().map(change);
        Ok(0)
    }

    fn start(&mut self, cx: &mut Cx<'_>, start: Start) -> Answer {
        if let Err(error) = &self.queue {
            return Err(error.clone());
        }
        if self.active.is_some() || self.stopping.is_some() {
            return Err("the ring runs already, or has not stopped yet".into());
        }
        let base = start.ring.base();
        cx.segs.allow_spans();
        let row = cx.segs.reserve(1, self.around.config.width).map_err(|e| e.to_string())?;
        let left_open = start.ring.left_open();
        let active = Active::new(start, row, &self.around.env(self.mode(), cx.now));
        if left_open > 0 {
            tracing::info!(vring = %self.around.config.name, requests = left_open, "requests that a back-end before us left are carried out again");
        }
        self.active = Some(active);
        self.around.counters.set_running(true);
        Ok(base)
    }

    /// One turn of the ring, if one runs, and of the queue. True if anything moved.
    fn turn(&mut self, cx: &mut Cx<'_>) -> bool {
        let mode = self.mode();
        let Self { around, active, queue: Ok(queue), done, stopping, .. } = self else { return false };
        let env = around.env(mode, cx.now);
        let mut busy = active.as_mut().is_some_and(|active| active.take(cx, queue.as_mut(), &env));
        let mut flush = stopping.as_mut().filter(|s| s.flush().is_some()).and_then(|s| s.flush.as_mut());
        if let Some(flush) = &mut flush
            && active.as_ref().is_none_or(|active| active.is_still(mode))
        {
            flush.send(cx, queue.as_mut(), &env);
        }
        queue.kick(cx);
        if done.is_empty() {
            queue.poll(cx, done);
        }
        busy |= !done.is_empty();
        if let Some(flush) = flush {
            flush.take(done, &env);
        }
        match active {
            Some(active) => active.give_back(cx, queue.as_mut(), &env, done),
            None => done.clear(),
        }
        busy
    }

    /// When a stop was asked for and nothing is in flight any more: lets go of the ring and answers. True if it did. Its record stays as it
    /// is: it tells where the ring stands, whatever the front-end remembers.
    fn finish_stop(&mut self, cx: &mut Cx<'_>) -> bool {
        let mode = self.mode();
        if mode == Mode::Run || self.active.as_mut().is_some_and(|active| !active.is_quiet(cx.segs, mode)) {
            return false;
        }
        // Without a queue nothing was ever written.
        if self.queue.is_ok() && self.stopping.as_ref().is_some_and(|stopping| stopping.flush().is_some()) {
            return false;
        }
        if let Some(active) = self.active.take() {
            self.stopped_at = active.ring.base();
            active.release(cx.segs);
        }
        self.around.counters.set_running(false);
        if self.ending
            && let Ok(queue) = &mut self.queue
        {
            // In this order: what is lost in between is told twice, and not never.
            self.around.config.owed.follow(self.device.losses());
            if queue.owes() {
                self.around.config.owed.owe();
            }
            queue.close(cx);
        }
        for answer in self.stopping.take().into_iter().flat_map(|stopping| stopping.answers) {
            let _ = answer.try_send(Ok(self.stopped_at));
        }
        true
    }

    fn finished(&self) -> bool {
        self.ending && self.stopping.is_none() && self.queue.as_ref().map_or(true, |q| q.is_drained())
    }
}

impl Poller for VringPoller {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.around.follow_hold(cx.now);
        if self.mailbox.has_messages() {
            self.handle_messages(cx);
        }
        self.follow_device();
        let mut busy = self.turn(cx);
        busy |= self.finish_stop(cx);
        match (self.finished(), busy) {
            (true, _) => Turn::Finished,
            (_, true) => Turn::Busy,
            (_, false) => Turn::Idle,
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        if self.mailbox.has_messages() || self.device.version() != self.version || !self.done.is_empty() {
            return Armed::Busy;
        }
        // The mailbox of a ring, and groups whose paths change.
        waits.on_call();
        let mode = self.mode();
        if let Some(flush) = self.stopping.as_ref().and_then(Stopping::flush) {
            flush.arm(&self.around.env(mode, cx.now), waits);
        }
        if let Some(active) = &mut self.active {
            let env = self.around.env(mode, cx.now);
            if active.arm(cx, waits, &env) == Armed::Busy {
                return Armed::Busy;
            }
        }
        match &mut self.queue {
            Ok(queue) => queue.arm(cx, waits),
            Err(_) => Armed::Sleep,
        }
    }

    fn look(&mut self, times: u32) -> bool {
        match (&mut self.active, &self.stopping) {
            (Some(active), None) => active.look(times),
            _ => false,
        }
    }

    fn name(&self) -> &str {
        &self.around.config.name
    }
}
