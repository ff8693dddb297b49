//! The data plane: one trait for every queue, whatever it drives.

use crate::fence::{FenceTerms, Proof};
use crate::io::Io;
use crate::parked::Parked;
use crate::segment::SegTable;
use crate::status::{Code, Fate, Status};
use crate::time::Time;

/// What a reactor hands down with every call: the time and the segment table.
#[derive(Debug)]
pub struct Cx<'a> {
    /// Now, read once a turn.
    pub now: Time,
    /// Where data lies. The layer that talks to the requester writes rows; all others read.
    pub segs: &'a mut SegTable,
    /// Number of the reactor whose turn this is.
    pub reactor: u16,
}

/// A queue of requests to one device, owned by one reactor for life.
///
/// `submit` any number, `kick` once, `poll` until nothing comes; before sleeping, `arm`.
pub trait IoQueue {
    /// Takes one request.
    ///
    /// A request that is wrong (range, ability, segments) is accepted and completes with a status of scope `Io`;
    /// nothing is validated by the caller. Nothing need leave before [`IoQueue::kick`].
    ///
    /// # Errors
    /// [`Refused`] hands the request back: `Full` (try again after a completion), `Gone` (the queue is closed or its way is
    /// down; watch [`IoQueue::health`]).
    fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused>;

    /// Takes the first of `ios`, in order, as many as it has room for: as [`IoQueue::submit`] of one after the other, for one call.
    ///
    /// # Errors
    /// [`Rest`] says how many were taken, and why the one after them was not. It and those behind it were not started.
    fn submit_all(&mut self, cx: &mut Cx<'_>, ios: &[Io]) -> Result<(), Rest> {
        one_by_one(ios, |io| self.submit(cx, io))
    }

    /// One doorbell, or one send, for all requests since the last kick.
    fn kick(&mut self, cx: &mut Cx<'_>);

    /// Makes progress and pushes what completed and what became suspect. Never blocks; bounded work a call.
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done);

    /// May the reactor sleep, or this queue's poller rest while others go on ([`Waits::parking`])? Names in `waits` everything that must wake
    /// it. Must look once more for work that arrived since the last poll and answer [`Armed::Busy`] if there is some.
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed;

    /// Can it take requests, and does it seem to get anywhere?
    fn health(&self) -> Health;

    /// No more requests: from now on `submit` refuses with `Gone`; what is in flight completes in the following polls
    /// (fences and time limits included). Idempotent.
    fn close(&mut self, cx: &mut Cx<'_>);

    /// After [`IoQueue::close`]: has everything completed? Then, and only then, the queue may be dropped.
    fn is_drained(&self) -> bool;

    /// Is there a loss ([`crate::Device::losses`]) of which its user has not been told yet? Whoever closes the queue owes it to him.
    fn owes(&self) -> bool {
        false
    }

    /// Has it no place at the device: was it opened, but the device now grants fewer queues, so that it stays [`Health::Down`]
    /// until more are granted? Whoever knows how (`polypath-sharing`) gives its users a share of another one.
    fn is_surplus(&self) -> bool {
        false
    }
}

/// How a queue feels. A hint for whoever chooses among paths; never a promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Takes requests.
    Ready,
    /// Takes requests, but has been silent for longer than it should with requests outstanding: prefer another path.
    Stalled,
    /// Takes none now (connecting, fenced, lost, closed).
    Down,
}

/// A request that was not taken, given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The request, as it was.
    pub io: Io,
    /// Why.
    pub why: RefusedWhy,
}

/// Not all of a batch was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rest {
    /// Requests taken, from the first one on.
    pub taken: usize,
    /// Why the next was not.
    pub why: RefusedWhy,
}

impl Rest {
    /// The same of `io`, which was offered alone.
    pub fn refuses(self, io: Io) -> Refused {
        Refused { io, why: self.why }
    }
}

/// Offers each of `ios` to `submit`, until one is refused.
pub(crate) fn one_by_one(ios: &[Io], mut submit: impl FnMut(Io) -> Result<(), Refused>) -> Result<(), Rest> {
    for (taken, &io) in ios.iter().enumerate() {
        submit(io).map_err(|refused| Rest { taken, why: refused.why })?;
    }
    Ok(())
}

/// Why a request was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusedWhy {
    /// The queue is full; a completion makes room.
    Full,
    /// The queue is closed or its way is down.
    Gone,
}

/// One finished request. It is quiet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The submitter's tag.
    pub tag: u64,
    /// What happened.
    pub status: Status,
    /// Why it is known to be quiet.
    pub proof: Proof,
}

/// A request whose way broke and that is not quiet yet. Its [`Completion`] follows, with a proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suspect {
    /// The submitter's tag.
    pub tag: u64,
    /// What is known of it.
    pub fate: Fate,
    /// What broke.
    pub cause: Code,
    /// Which proof is coming, and by when at the latest (from the moment of the report).
    pub fence: FenceTerms,
}

/// Where a queue puts what a poll found. Reused from turn to turn, so that a turn allocates nothing.
#[derive(Debug, Default)]
pub struct Done {
    /// Finished requests, in the order they finished.
    pub completions: Vec<Completion>,
    /// Requests that became suspect.
    pub suspects: Vec<Suspect>,
}

impl Done {
    /// A sink with room for `depth` of each before it must grow.
    pub fn with_capacity(depth: usize) -> Self {
        Done { completions: Vec::with_capacity(depth), suspects: Vec::with_capacity(depth) }
    }

    /// A request that the peer answered, or that never needed one.
    #[inline]
    pub fn complete(&mut self, tag: u64, status: Status) {
        self.complete_with(tag, status, Proof::Answered);
    }

    /// A request that is quiet for the reason `proof`.
    #[inline]
    pub fn complete_with(&mut self, tag: u64, status: Status, proof: Proof) {
        self.completions.push(Completion { tag, status, proof });
    }

    /// Is nothing in it?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.completions.is_empty() && self.suspects.is_empty()
    }

    /// Forgets everything, keeps the room.
    pub fn clear(&mut self) {
        self.completions.clear();
        self.suspects.clear();
    }
}

/// May the reactor sleep?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Armed {
    /// No: poll again first.
    Busy,
    /// Yes, until one of the named interests or the deadline.
    Sleep,
}

/// A file descriptor that must wake the reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// The descriptor, open for as long as its owner keeps naming it.
    pub fd: i32,
    /// A number that no other open file of this process has had ([`Waits::unique`]): descriptors are reused, these are not.
    pub id: u64,
    /// Wake when it can be read (or has hung up).
    pub read: bool,
    /// Wake when it can be written.
    pub write: bool,
}

/// Collects what must wake a reactor. Reused from sleep to sleep.
#[derive(Debug, Default)]
pub struct Waits {
    /// Descriptors.
    pub interests: Vec<Interest>,
    /// The earliest deadline of all.
    pub deadline: Option<Time>,
    parking: Option<Parked>,
    on_call: bool,
}

impl Waits {
    /// With room for `interests` of them before it must grow.
    pub fn with_capacity(interests: usize) -> Self {
        Waits { interests: Vec::with_capacity(interests), ..Waits::default() }
    }

    /// A number for a new descriptor, never given twice.
    pub fn unique() -> u64 {
        use core::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Wake when `fd` can be read.
    pub fn readable(&mut self, fd: i32, id: u64) {
        self.interests.push(Interest { fd, id, read: true, write: false });
    }

    /// Wake no later than `at`.
    pub fn until(&mut self, at: Time) {
        self.deadline = Some(self.deadline.map_or(at, |d| d.min(at)));
    }

    /// Only one poller of the reactor is asked, and the others go on: it must name all that can bring it work, or see to it that whoever takes
    /// it out of a common queue in a turn of his own wakes it by this name. `None`: the whole reactor is about to sleep, and all will get
    /// turns when it wakes.
    pub fn parking(&self) -> Option<Parked> {
        self.parking
    }

    /// Whoever has work for this poller says so by [`Host::wake`], or wakes it by its name. Without this, one that names nothing else is not
    /// left to rest while others go on: it could never be woken, and may just want to see each turn.
    pub fn on_call(&mut self) {
        self.on_call = true;
    }

    /// For reactors: is there anything that would wake a poller that rests?
    pub fn has_any(&self) -> bool {
        self.on_call || self.deadline.is_some() || !self.interests.is_empty()
    }

    /// For reactors: what is collected from now on is for `poller` alone.
    pub fn park(&mut self, poller: Parked) {
        self.clear();
        self.parking = Some(poller);
    }

    /// Forgets everything, keeps the room.
    pub fn clear(&mut self) {
        self.interests.clear();
        (self.deadline, self.parking, self.on_call) = (None, None, false);
    }
}

/// What a poller says after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Nothing to do.
    Idle,
    /// It got something done.
    Busy,
    /// It has ended and wants to be dropped.
    Finished,
}

/// Something that gets turns on a reactor: a vring, an admin queue, a benchmark job.
pub trait Poller {
    /// One bounded turn.
    fn poll(&mut self, cx: &mut Cx<'_>) -> Turn;
    /// As [`IoQueue::arm`].
    fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed;
    /// Looks up to `times` times for something to do, each time as cheaply as can be, and does nothing of it: true as soon as there is
    /// something. A reactor asks the only poller that it gives turns to, after a turn without work, and gives it the next turn at once when
    /// there is some. For what another thread may put into memory at any moment; what has to ask elsewhere leaves it at the `false` that this
    /// says by itself.
    fn look(&mut self, times: u32) -> bool {
        let _ = times;
        false
    }
    /// A short name for logs and statistics.
    fn name(&self) -> &str;
}

/// Makes a poller on the thread that will own it.
pub type MakePoller = Box<dyn FnOnce(&mut Cx<'_>) -> Box<dyn Poller> + Send>;

/// A reactor, seen from any thread by floors that may not import it.
pub trait Host: Send + Sync {
    /// Makes a poller on the reactor's own thread and gives it turns until it says [`Turn::Finished`].
    /// If the reactor has ended, `make` is dropped without being called.
    fn spawn(&self, make: MakePoller);
    /// Ends a sleep early: a poller has been told something through memory.
    fn wake(&self);
    /// Number of the reactor.
    fn reactor(&self) -> u16;
    /// The clock that turns are told by, read now: for what happens outside a turn, such as the close of a socket whose
    /// owner is dropped. Never for the data path.
    fn now(&self) -> Time;
}
