//! A controller with several units whose queues do what the test says.

use polypath_block::{
    Armed, Code, ControllerQueue, Cx, Done, Fate, FenceState, FenceTerms, Health, Interest, Io, OpenError, Proof,
    QueueConfig, QueueFence, QueueSource, Refused, RefusedWhy, Segment, Status, Suspect, Time, Unit, UnitId, Waits,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The controller, as the test and its queues see it.
#[derive(Clone)]
pub struct Target(Arc<Mutex<Fake>>);

pub struct Fake {
    /// Queues that it grants.
    pub granted: usize,
    /// Requests that a queue holds.
    pub slots: usize,
    /// Units that a queue holds.
    pub most_units: usize,
    /// Units that take nothing.
    pub down: BTreeSet<UnitId>,
    /// What queues opened from now on leave.
    pub end_fence: Option<Arc<FakeEndFence>>,
    /// Every queue that was ever opened.
    pub queues: Vec<QueueState>,
}

/// A request that a queue holds.
#[derive(Clone, Debug)]
pub struct Held {
    pub id: UnitId,
    pub io: Io,
    pub segs: Vec<Segment>,
}

/// What one queue has seen, and what it is told.
#[derive(Default)]
pub struct QueueState {
    pub config_depth: u16,
    /// Open units by their place: which, and its users.
    pub units: BTreeMap<u16, (UnitId, u32)>,
    /// Every unit that was opened (once for all its users) and closed (with its last).
    pub opened: Vec<UnitId>,
    pub closed_units: Vec<UnitId>,
    pub running: Vec<Held>,
    pub suspects: Vec<Held>,
    /// Everything that was ever submitted.
    pub submitted: Vec<Held>,
    pub outbox: Done,
    /// It has lost its place at the controller.
    pub surplus: bool,
    /// It takes nothing and says that it is full.
    pub says_full: bool,
    pub closed: bool,
    pub dropped: bool,
    pub polls: usize,
    pub arms: usize,
    pub unkicked: usize,
    /// Other threads would wake its reactor: it was asked whether that may sleep, and not polled since.
    pub listens: bool,
    /// When it wants to be woken.
    pub deadline: Option<Time>,
}

impl Target {
    pub fn new(granted: usize, slots: usize) -> Target {
        let fake =
            Fake { granted, slots, most_units: 1024, down: BTreeSet::new(), end_fence: None, queues: Vec::new() };
        Target(Arc::new(Mutex::new(fake)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Fake> {
        self.0.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Queues that are open.
    pub fn open_queues(&self) -> usize {
        self.lock().queues.iter().filter(|q| !q.dropped).count()
    }

    /// Requests that queue `queue` carries out at the moment, as units and LBAs.
    pub fn running(&self, queue: usize) -> Vec<(u64, u64)> {
        self.lock().queues[queue].running.iter().map(|h| (h.id.0, h.io.lba)).collect()
    }

    /// Every request that queue `queue` ever took, as units and LBAs.
    pub fn submitted(&self, queue: usize) -> Vec<(u64, u64)> {
        self.lock().queues[queue].submitted.iter().map(|h| (h.id.0, h.io.lba)).collect()
    }

    /// Answers the oldest `n` requests of a queue.
    pub fn answer(&self, queue: usize, n: usize) -> usize {
        let q = &mut self.lock().queues[queue];
        let n = n.min(q.running.len());
        for held in q.running.drain(..n) {
            q.outbox.complete(held.io.tag, Status::OK);
        }
        n
    }

    /// Loses everything that a queue holds.
    pub fn lose(&self, queue: usize, terms: FenceTerms) -> usize {
        let q = &mut self.lock().queues[queue];
        let n = q.running.len();
        for held in q.running.drain(..) {
            let (tag, fate, cause) = (held.io.tag, Fate::Unknown, Code::PathLost);
            q.outbox.suspects.push(Suspect { tag, fate, cause, fence: terms });
            q.suspects.push(held);
        }
        n
    }

    /// What was lost is quiet.
    pub fn quiet(&self, queue: usize, proof: Proof) -> usize {
        let q = &mut self.lock().queues[queue];
        let n = q.suspects.len();
        for held in q.suspects.drain(..) {
            q.outbox.complete_with(held.io.tag, Code::PathLost.into(), proof);
        }
        n
    }
}

impl QueueSource for Target {
    fn name(&self) -> &str {
        "fake"
    }

    fn open_controller_queue(&self, config: QueueConfig) -> Result<Box<dyn ControllerQueue>, OpenError> {
        let mut fake = self.lock();
        let granted = fake.granted;
        if fake.queues.iter().filter(|q| !q.dropped).count() >= granted {
            return Err(OpenError::NoQueue { name: "fake".into(), granted: granted as u16 });
        }
        fake.queues.push(QueueState { config_depth: config.depth, ..QueueState::default() });
        let (number, end_fence) = (fake.queues.len() - 1, fake.end_fence.clone());
        Ok(Box::new(FakeQueue { target: self.clone(), number, end_fence }))
    }
}

struct FakeQueue {
    target: Target,
    number: usize,
    end_fence: Option<Arc<FakeEndFence>>,
}

impl FakeQueue {
    fn with<R>(&self, act: impl FnOnce(&mut QueueState) -> R) -> R {
        act(&mut self.target.lock().queues[self.number])
    }
}

impl ControllerQueue for FakeQueue {
    fn open_unit(&mut self, id: UnitId) -> Result<Unit, OpenError> {
        let most = self.target.lock().most_units;
        self.with(|q| {
            if let Some((&at, unit)) = q.units.iter_mut().find(|(_, u)| u.0 == id) {
                unit.1 += 1;
                return Ok(Unit(at));
            }
            if q.units.len() >= most {
                return Err(OpenError::System { name: "fake".into(), reason: "its table of units is full".into() });
            }
            // Places are not given again, so that a late use of one shows.
            let at = q.opened.len() as u16;
            q.opened.push(id);
            q.units.insert(at, (id, 1));
            Ok(Unit(at))
        })
    }

    fn close_unit(&mut self, unit: Unit) {
        self.with(|q| {
            let state = q.units.get_mut(&unit.0).expect("a unit is closed as often as it was opened");
            state.1 -= 1;
            if state.1 == 0 {
                let (id, _) = q.units.remove(&unit.0).unwrap();
                let open = q.running.iter().chain(&q.suspects).any(|h| h.id == id);
                assert!(!open, "unit {} is closed under its requests", id.0);
                q.closed_units.push(id);
            }
        });
    }

    fn submit(&mut self, cx: &mut Cx<'_>, unit: Unit, io: Io) -> Result<(), Refused> {
        let (slots, down) = {
            let fake = self.target.lock();
            (fake.slots, fake.down.clone())
        };
        self.with(|q| {
            let refuse = |why| Err(Refused { io, why });
            let Some(&(id, _)) = q.units.get(&unit.0) else { return refuse(RefusedWhy::Gone) };
            // A lazy queue: it looks at its slots first.
            if q.says_full || q.running.len() >= slots {
                return refuse(RefusedWhy::Full);
            }
            if q.closed || q.surplus || down.contains(&id) {
                return refuse(RefusedWhy::Gone);
            }
            let held = Held { id, io, segs: cx.segs.get(io.segs).to_vec() };
            assert!(q.running.iter().chain(&q.suspects).all(|h| h.io.tag != io.tag), "a tag is given twice");
            q.submitted.push(held.clone());
            q.running.push(held);
            q.unkicked += 1;
            Ok(())
        })
    }

    fn kick(&mut self, _: &mut Cx<'_>) {
        self.with(|q| q.unkicked = 0);
    }

    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Done) {
        self.with(|q| {
            q.polls += 1;
            q.listens = false;
            done.suspects.append(&mut q.outbox.suspects);
            done.completions.append(&mut q.outbox.completions);
        });
    }

    fn arm(&mut self, _: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        self.with(|q| {
            q.arms += 1;
            q.listens = true;
            if !q.outbox.is_empty() || q.unkicked > 0 {
                return Armed::Busy;
            }
            q.deadline.into_iter().for_each(|at| waits.until(at));
            for n in 0..2 {
                let id = interest(self.number, n);
                waits.interests.push(Interest { fd: id as i32, id, read: true, write: false });
            }
            Armed::Sleep
        })
    }

    fn health(&self, unit: Unit) -> Health {
        let down = self.target.lock().down.clone();
        self.with(|q| match q.units.get(&unit.0) {
            Some((id, _)) if !q.closed && !q.surplus && !down.contains(id) => Health::Ready,
            _ => Health::Down,
        })
    }

    fn close(&mut self, _: &mut Cx<'_>) {
        self.with(|q| q.closed = true);
    }

    fn is_drained(&self) -> bool {
        self.with(|q| q.running.is_empty() && q.suspects.is_empty() && q.outbox.is_empty())
    }

    fn is_surplus(&self) -> bool {
        self.with(|q| q.surplus)
    }

    fn end_fence(&self) -> Option<Arc<dyn QueueFence>> {
        self.end_fence.clone().map(|h| h as Arc<dyn QueueFence>)
    }
}

thread_local! {
    static END: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// What happens as the next queue of this thread is dropped.
pub fn at_the_end_of_a_queue(act: impl FnOnce() + 'static) {
    END.set(Some(Box::new(act)));
}

impl Drop for FakeQueue {
    fn drop(&mut self) {
        if let Some(act) = END.take() {
            act();
        }
        self.with(|q| q.dropped = true);
    }
}

/// Numbers of the two descriptors that queue `queue` waits for.
pub fn interest(queue: usize, n: u64) -> u64 {
    1_000_000_000 + queue as u64 * 10 + n
}

/// Says what the test tells it, and counts how often it is asked.
pub struct FakeEndFence {
    state: Mutex<FenceState>,
    pub asked: AtomicUsize,
}

impl FakeEndFence {
    pub const PROOF: Proof = Proof::KeepAliveBound { kato_ms: 5000, multiple: 2, cqt_ms: 17 };
    pub const TERMS: FenceTerms = FenceTerms { proof: FakeEndFence::PROOF, within: Duration::from_secs(11) };

    pub fn new() -> Arc<FakeEndFence> {
        Arc::new(FakeEndFence { state: Mutex::new(FenceState::Idle), asked: AtomicUsize::new(0) })
    }

    pub fn say(&self, state: FenceState) {
        *self.state.lock().unwrap() = state;
    }
}

impl QueueFence for FakeEndFence {
    fn terms(&self) -> FenceTerms {
        FakeEndFence::TERMS
    }
    fn state(&self, _: Time) -> FenceState {
        self.asked.fetch_add(1, Ordering::Relaxed);
        *self.state.lock().unwrap()
    }
}
