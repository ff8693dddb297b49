//! One queue of the device with several users on its reactor.
//!
//! Each user has a [`Port`]: its own bound, its own line of requests that wait for room, its own box of outcomes. A user is never told
//! "full" because of what others do: within its depth a request waits in the port's line, and lines are served in turn.

use crate::link::Served;
use crate::office::Office;
use polypath_block::{
    Armed, Code, Completion, Cx, Done, Health, Io, IoQueue, Proof, Refused, RefusedWhy, SlotKey, Slots, Suspect, Waits,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// Requests known at a time as a multiple of the depth: those that wait for a fence have left the queue's own table.
const KNOWN_DEPTHS: usize = 8;
/// The least depth that is multiplied: queues hold more than they are asked to.
const LEAST_DEPTH: usize = 128;

thread_local! {
    /// The hubs of this thread, with the device they belong to.
    static HUBS: RefCell<Vec<(u64, Weak<Hub>)>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(crate) struct Hub {
    core: RefCell<Core>,
    /// After the queue: as long as the device's queue is taken, somebody is seen to have it.
    pub(crate) office: Arc<Office>,
}

struct Core {
    inner: Box<dyn IoQueue>,
    known: Slots<Known>,
    ports: Vec<Option<Place>>,
    next_uid: u32,
    open: u32,
    /// Requests in the lines of all ports.
    waiting: usize,
    /// Whose line is served next.
    turn: usize,
    /// Grows each time the queue is polled: once a turn, however many ports there are.
    round: u64,
    done: Done,
    /// Nobody uses it, or it is surplus: it is closed as soon as nothing waits.
    closing: bool,
    closed: bool,
    surplus: bool,
    /// Ends of links whose proxy was dropped by a reactor that ended. Last, so that they go after the queue: who learns from their
    /// end that nobody answers may count on the queue being gone.
    orphans: Vec<Served>,
}

/// Whose a request is.
#[derive(Clone, Copy)]
struct Known {
    port: usize,
    uid: u32,
    tag: u64,
    suspect: bool,
}

/// What the hub keeps of a port.
struct Place {
    uid: u32,
    depth: usize,
    /// Accepted, neither finished nor suspect.
    in_flight: usize,
    suspects: usize,
    line: VecDeque<Io>,
    outcomes: Done,
    closed: bool,
    round: u64,
}

/// One user of a hub.
pub(crate) struct Port {
    hub: Rc<Hub>,
    index: usize,
    uid: u32,
}

impl Hub {
    /// A hub of `device` over `inner` on this thread.
    pub(crate) fn new(device: u64, office: Arc<Office>, inner: Box<dyn IoQueue>, depth: u16) -> Rc<Hub> {
        let known = (usize::from(depth).max(LEAST_DEPTH) * KNOWN_DEPTHS).min(usize::from(u16::MAX));
        let core = Core {
            inner,
            known: Slots::new(known as u16),
            ports: Vec::new(),
            next_uid: 0,
            open: 0,
            waiting: 0,
            turn: 0,
            round: 0,
            done: Done::with_capacity(known),
            closing: false,
            closed: false,
            surplus: false,
            orphans: Vec::new(),
        };
        let hub = Rc::new(Hub { office, core: RefCell::new(core) });
        HUBS.with_borrow_mut(|hubs| {
            hubs.retain(|(_, weak)| weak.strong_count() > 0);
            hubs.push((device, Rc::downgrade(&hub)));
        });
        hub
    }

    /// The best hub of `device` on this thread that takes users: one that works, then one with few of them.
    pub(crate) fn find(device: u64) -> Option<Rc<Hub>> {
        HUBS.with_borrow(|hubs| {
            let ours = hubs.iter().filter(|(d, _)| *d == device).filter_map(|(_, weak)| weak.upgrade());
            ours.filter(|hub| !hub.office.is_closed()).min_by_key(|hub| {
                let down = hub.office.health() == Health::Down;
                (down, hub.office.ports())
            })
        })
    }

    /// The hub of this thread that `office` belongs to.
    pub(crate) fn of_office(office: u64) -> Option<Rc<Hub>> {
        HUBS.with_borrow(|hubs| hubs.iter().filter_map(|(_, weak)| weak.upgrade()).find(|hub| hub.office.id == office))
    }

    /// A new user that may have `depth` requests in flight.
    pub(crate) fn join(self: &Rc<Self>, depth: u16) -> Port {
        let mut core = self.core.borrow_mut();
        let depth = usize::from(depth.max(1));
        core.next_uid += 1;
        let place = Place {
            uid: core.next_uid,
            depth,
            in_flight: 0,
            suspects: 0,
            line: VecDeque::with_capacity(depth),
            outcomes: Done::with_capacity(depth * 2),
            closed: false,
            // Its first turn polls the queue.
            round: core.round,
        };
        let (uid, free) = (place.uid, core.ports.iter().position(Option::is_none));
        let index = free.unwrap_or(core.ports.len());
        if index == core.ports.len() {
            core.ports.push(None);
        }
        core.ports[index] = Some(place);
        core.open += 1;
        self.office.set_ports(core.open);
        drop(core);
        Port { hub: self.clone(), index, uid }
    }

    pub(crate) fn kick(&self, cx: &mut Cx<'_>) {
        self.core.borrow_mut().inner.kick(cx);
    }

    /// Keeps the end of a link for as long as the queue lives.
    pub(crate) fn keep(&self, link: Served) {
        self.core.borrow_mut().orphans.push(link);
    }

    fn port_closed(&self, core: &mut Core) {
        core.open -= 1;
        self.office.set_ports(core.open);
        if core.open == 0 {
            core.closing = true;
            self.office.close();
        }
    }

    /// One turn of the queue.
    fn turn(&self, core: &mut Core, cx: &mut Cx<'_>) {
        self.office.set_reactor(cx.reactor);
        let mut done = std::mem::take(&mut core.done);
        core.inner.poll(cx, &mut done);
        for suspect in done.suspects.drain(..) {
            core.suspected(suspect);
        }
        for completion in done.completions.drain(..) {
            core.completed(completion);
        }
        core.done = done;
        if core.waiting > 0 {
            core.serve_lines(cx);
        }
        if !core.surplus && core.inner.is_surplus() {
            tracing::warn!(
                device = %self.office.name, reactor = cx.reactor, users = core.open,
                "the device grants fewer queues than before: this one is given up and its users share another"
            );
            core.surplus = true;
            core.closing = true;
            self.office.close();
            core.fail_lines();
        }
        core.close_when_idle(cx);
        self.office.set_health(core.health());
    }
}

impl Core {
    fn place(&mut self, index: usize, uid: u32) -> Option<&mut Place> {
        self.ports.get_mut(index)?.as_mut().filter(|p| p.uid == uid)
    }

    fn health(&self) -> Health {
        if self.closing { Health::Down } else { self.inner.health() }
    }

    fn hand_over(&mut self, cx: &mut Cx<'_>, (port, uid): (usize, u32), io: Io) -> Result<(), RefusedWhy> {
        let known = Known { port, uid, tag: io.tag, suspect: false };
        let Ok(key) = self.known.insert(known) else { return Err(RefusedWhy::Full) };
        self.inner.submit(cx, Io { tag: key.as_u32().into(), ..io }).map_err(|refused| {
            self.known.remove(key);
            refused.why
        })
    }

    fn suspected(&mut self, suspect: Suspect) {
        let Some(known) = self.known.get_mut(SlotKey::from_u32(suspect.tag as u32)) else { return };
        known.suspect = true;
        let Known { port, uid, tag, .. } = *known;
        if let Some(place) = self.place(port, uid) {
            place.in_flight -= 1;
            place.suspects += 1;
            place.outcomes.suspects.push(Suspect { tag, ..suspect });
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Some(known) = self.known.remove(SlotKey::from_u32(completion.tag as u32)) else { return };
        let Known { port, uid, tag, suspect } = known;
        if let Some(place) = self.place(port, uid) {
            if suspect {
                place.suspects -= 1;
            } else {
                place.in_flight -= 1;
            }
            place.outcomes.completions.push(Completion { tag, ..completion });
        }
    }

    /// Submits what waits, one request of each line in turn, until the queue is full.
    fn serve_lines(&mut self, cx: &mut Cx<'_>) {
        let mut any = false;
        while self.waiting > 0 {
            self.turn = (self.turn + 1) % self.ports.len().max(1);
            let index = self.turn;
            let Some(place) = self.ports.get_mut(index).and_then(Option::as_mut) else { continue };
            let uid = place.uid;
            let Some(&io) = place.line.front() else { continue };
            match self.hand_over(cx, (index, uid), io) {
                Ok(()) => {
                    any = true;
                    self.waiting -= 1;
                    if let Some(place) = self.place(index, uid) {
                        place.line.pop_front();
                    }
                }
                // The same line begins next time.
                Err(RefusedWhy::Full) => {
                    self.turn = (index + self.ports.len() - 1) % self.ports.len();
                    break;
                }
                Err(RefusedWhy::Gone) => self.fail_lines(),
            }
        }
        if any {
            self.inner.kick(cx);
        }
    }

    /// The way is down: what waits was never sent.
    fn fail_lines(&mut self) {
        for place in self.ports.iter_mut().flatten() {
            for io in place.line.drain(..) {
                place.in_flight -= 1;
                place.outcomes.complete_with(io.tag, Code::PathLost.into(), Proof::NeverSent);
            }
        }
        self.waiting = 0;
    }

    fn close_when_idle(&mut self, cx: &mut Cx<'_>) {
        if self.closing && !self.closed && self.waiting == 0 {
            self.closed = true;
            self.inner.close(cx);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Empty, unless a reactor ends under its queues: the queue below knows how to end then, and our table must not object first.
        let keys: Vec<SlotKey> = self.known.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.known.remove(key);
        }
    }
}

impl Port {
    pub(crate) fn submit(&mut self, cx: &mut Cx<'_>, io: Io) -> Result<(), Refused> {
        let core = &mut *self.hub.core.borrow_mut();
        let refuse = |why| Err(Refused { io, why });
        let (closing, idle) = (core.closing, core.waiting == 0);
        let Some(place) = core.place(self.index, self.uid) else { return refuse(RefusedWhy::Gone) };
        if closing || place.closed {
            return refuse(RefusedWhy::Gone);
        }
        if place.in_flight >= place.depth {
            return refuse(RefusedWhy::Full);
        }
        let handed = if idle { core.hand_over(cx, (self.index, self.uid), io) } else { Err(RefusedWhy::Full) };
        if handed == Err(RefusedWhy::Gone) {
            return refuse(RefusedWhy::Gone);
        }
        if let Some(place) = core.place(self.index, self.uid) {
            place.in_flight += 1;
            if handed.is_err() {
                place.line.push_back(io);
                core.waiting += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn kick(&mut self, cx: &mut Cx<'_>) {
        self.hub.kick(cx);
    }

    pub(crate) fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Done) {
        let core = &mut *self.hub.core.borrow_mut();
        let round = core.round;
        let Some(place) = core.place(self.index, self.uid) else { return };
        if place.round == round {
            // It has had a turn since the queue was polled last: this is a new turn.
            place.round += 1;
            core.round += 1;
            self.hub.turn(core, cx);
        } else {
            place.round = round;
        }
        if let Some(place) = core.place(self.index, self.uid) {
            done.suspects.append(&mut place.outcomes.suspects);
            done.completions.append(&mut place.outcomes.completions);
        }
    }

    pub(crate) fn arm(&mut self, cx: &mut Cx<'_>, waits: &mut Waits) -> Armed {
        let core = &mut *self.hub.core.borrow_mut();
        if core.place(self.index, self.uid).is_some_and(|p| !p.outcomes.is_empty()) {
            return Armed::Busy;
        }
        core.inner.arm(cx, waits)
    }

    pub(crate) fn health(&self) -> Health {
        self.hub.core.borrow().health()
    }

    /// The queue has no place at the device any more.
    pub(crate) fn is_surplus(&self) -> bool {
        self.hub.core.borrow().surplus
    }

    pub(crate) fn close(&mut self, cx: &mut Cx<'_>) {
        let core = &mut *self.hub.core.borrow_mut();
        let Some(place) = core.place(self.index, self.uid).filter(|p| !p.closed) else { return };
        place.closed = true;
        self.hub.port_closed(core);
        core.close_when_idle(cx);
    }

    /// Nothing of this port is open; where nobody else uses the queue, it has drained as well.
    pub(crate) fn is_drained(&self) -> bool {
        let core = &*self.hub.core.borrow();
        let Some(Some(place)) = core.ports.get(self.index) else { return true };
        let own = place.in_flight == 0 && place.suspects == 0 && place.outcomes.is_empty();
        own && place.closed && (!core.closing || (core.closed && core.inner.is_drained()))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let core = &mut *self.hub.core.borrow_mut();
        let Some(place) = core.place(self.index, self.uid) else { return };
        let (closed, line) = (place.closed, place.line.len());
        core.waiting -= line;
        core.ports[self.index] = None;
        if !closed {
            self.hub.port_closed(core);
        }
    }
}
