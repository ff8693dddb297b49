//! The assembled world: reactors, wire, targets and guests, moved on by one loop that jumps from event to event.

use crate::checker::{Checker, Rule, Violation};
use crate::conditions::Conditions;
use crate::guest::{Guest, Handle};
use crate::panics::{catch_panic, unwind};
use crate::peer::{Family, Initiator, Peer, address};
use crate::plan::{Action, GuestPlan, Plan};
use crate::reactor::{Clock, SimReactor};
use crate::sockets::Sockets;
use polypath_block::{Code, Device, DeviceState, Host, Time};
use polypath_multipath::{Event, EventKind, Events, Fencing, Group, GroupConfig, PathConfig, PathState};
use polypath_sim::wire::{Net, Way};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// When every world begins: late enough that "a while ago" does not underflow.
const START: Time = Time::from_millis(1000);
/// A turn of a reactor that does not sleep takes so long, in nanoseconds.
const TURN_NS: (u64, u64) = (2_000, 12_000);
/// How long guests go on after the last fault.
const AFTERMATH: Duration = Duration::from_millis(300);
/// How long whatever must end may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most turns of a run: more are a reactor that spins.
const MOST_TURNS: u64 = 3_000_000;

/// What a run did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Requests that completed.
    pub completed: u64,
    /// Turns of all reactors.
    pub turns: u64,
    /// Virtual time that passed.
    pub span: Duration,
    /// Longest that a request took.
    pub longest: Duration,
}

/// A run's end, and how it came to it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it did, or which rule it broke.
    pub result: Result<Report, Violation>,
    /// The last lines of its trace.
    pub trace: Vec<String>,
    /// Fingerprint of the whole trace.
    pub hash: u64,
}

/// Runs `plan` over the transport `family` and keeps the last `room` lines of its trace. A panic, wherever it comes from, is a
/// violation like others.
pub fn run(plan: &Plan, family: &dyn Family, room: usize) -> Outcome {
    let checker = Rc::new(Checker::new(plan.disks, plan.blocks, !plan.settings.volatile, room));
    let ended = catch_panic(|| {
        let mut world = World::new(plan, family, checker.clone())?;
        let report = world.live();
        if checker.is_broken() {
            unwind();
        }
        report
    });
    let result = match (checker.violation(), ended) {
        (Some(violation), _) => Err(violation),
        (None, Ok(result)) => result,
        (None, Err(what)) => Err(Violation { rule: Rule::Panic, what }),
    };
    let trace = checker.trace();
    Outcome { result, trace: trace.lines(), hash: trace.hash() }
}

struct Disk {
    group: Arc<Group>,
    events: Events,
    /// By path.
    devices: Vec<Arc<dyn Device>>,
}

struct World<'a> {
    plan: &'a Plan,
    now: Time,
    clock: Arc<Clock>,
    net: Net,
    rng: Xoshiro256PlusPlus,
    checker: Rc<Checker>,
    reactors: Vec<SimReactor>,
    initiators: Vec<Box<dyn Initiator>>,
    disks: Vec<Disk>,
    /// Blocks that the target says each disk has.
    sizes: Vec<u64>,
    guests: Vec<Rc<Handle>>,
    /// The target, and the one that other addresses may lead to, if there is one.
    peers: Vec<Box<dyn Peer>>,
    sockets: Sockets,
    conditions: Conditions,
    /// What begins and ends when, in order; from `agenda_at` on it is still to come.
    agenda: Vec<(Time, usize, bool)>,
    agenda_at: usize,
    /// A disk is swapped, or was when it was looked last.
    watch_swaps: bool,
    /// By path: its devices have been seen.
    seen: Vec<bool>,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, family: &dyn Family, checker: Rc<Checker>) -> Result<World<'a>, Violation> {
        let fault = |what: String| Violation { rule: Rule::Panic, what };
        let clock = Arc::new(Clock::default());
        clock.set(START);
        crate::log::set_now(START);
        let net = Net::new(plan.seed, START, plan.settings.buffer);
        let mut reactors: Vec<SimReactor> = (0..plan.reactors).map(|r| SimReactor::new(r, clock.clone())).collect();
        if let Some(last) = reactors.last_mut() {
            last.set_least_turn(Duration::from_millis(plan.settings.slow_turns_ms));
        }
        let hosts: Vec<Arc<dyn Host>> = reactors.iter().map(|r| r.host() as Arc<dyn Host>).collect();
        let mut peers = vec![family.peer(plan, false).map_err(fault)?];
        if plan.actions.iter().any(|t| matches!(t.action, Action::OtherTarget { .. })) {
            peers.push(family.peer(plan, true).map_err(fault)?);
        }
        let mut conditions = Conditions::new(plan);
        (0..plan.paths.len()).for_each(|path| conditions.apply(path, &net));
        let initiators = (0..plan.paths.len()).map(|path| family.initiator(plan, path, &net, &hosts));
        let initiators = initiators.collect::<Result<Vec<_>, _>>().map_err(fault)?;
        let disks =
            (0..plan.disks).map(|disk| found(plan, disk, &initiators)).collect::<Result<Vec<_>, _>>().map_err(fault)?;
        let mut world = World {
            plan,
            now: START,
            clock,
            net,
            rng: Xoshiro256PlusPlus::seed_from_u64(plan.seed ^ 0x5eed),
            checker,
            reactors,
            initiators,
            sizes: vec![plan.blocks; disks.len()],
            disks,
            guests: Vec::new(),
            peers,
            sockets: Sockets::new(plan.paths.len()),
            conditions,
            agenda: agenda(plan),
            agenda_at: 0,
            watch_swaps: false,
            seen: vec![false; plan.paths.len()],
        };
        for (i, guest) in plan.guests.iter().enumerate() {
            let group: Arc<dyn Device> = world.disks[guest.disk as usize].group.clone();
            let handle =
                world.add_guest(format!("guest{i}"), guest.clone(), group, plan.seed ^ (i as u64 + 1) << 32, false)?;
            world.guests.push(handle);
        }
        Ok(world)
    }

    /// Adds a guest, or a reader, to its reactor.
    fn add_guest(
        &mut self,
        name: String,
        plan: GuestPlan,
        device: Arc<dyn Device>,
        seed: u64,
        reader: bool,
    ) -> Result<Rc<Handle>, Violation> {
        let (checker, mut made) = (self.checker.clone(), None);
        let now = self.now;
        let made = &mut made;
        self.reactors[usize::from(plan.reactor)].add(now, |cx| {
            match Guest::new(name, cx, checker, plan, device, seed, reader) {
                Ok((guest, handle)) => {
                    *made = Some(Ok(handle));
                    Box::new(guest)
                }
                Err(what) => {
                    *made = Some(Err(what));
                    Box::new(NoGuest)
                }
            }
        });
        match made.take() {
            Some(Ok(handle)) => Ok(handle),
            Some(Err(what)) => Err(Violation { rule: Rule::NoError, what }),
            None => Err(Violation { rule: Rule::Panic, what: "no guest was added".into() }),
        }
    }

    /// From the first turn to the last.
    fn live(&mut self) -> Result<Report, Violation> {
        let quiet = START.after(Duration::from_millis(self.plan.length_ms));
        self.until(quiet.after(AFTERMATH), |_| false);
        self.guests.iter().for_each(|g| g.submitting.set(false));
        self.must(
            Rule::Completes,
            "requests never completed",
            |w| w.guests.iter().all(|g| g.open.get() == 0),
            World::open_requests,
        );
        self.must(Rule::ComesBack, "paths did not come back", World::all_usable, World::path_states);
        self.guests.iter().for_each(|g| g.ending.set(true));
        self.must(Rule::Ends, "guests did not end", |w| w.guests.iter().all(|g| g.ended.get()), World::open_requests);
        self.check_media();
        self.read_alone()?;
        self.check_other_target();
        self.disks.iter().for_each(|disk| disk.group.close());
        self.initiators.iter().for_each(|initiator| initiator.close());
        let over = |w: &World<'_>| w.reactors.iter().all(SimReactor::is_empty);
        self.must(Rule::Ends, "pollers did not end", over, |_| String::new());
        let held = |w: &World<'_>| (0..w.plan.paths.len()).all(|p| w.net.dialled(address(p)) == 0);
        self.must(Rule::Ends, "sockets are still open", held, |_| String::new());
        let longest = self.guests.iter().map(|g| g.longest.get()).max().unwrap_or_default();
        Ok(Report {
            completed: self.guests.iter().map(|g| g.completed.get()).sum(),
            turns: self.turns(),
            span: self.now.since(START),
            longest,
        })
    }

    fn turns(&self) -> u64 {
        self.reactors.iter().map(|r| r.turns).sum()
    }

    /// Goes on until `done`, which must be within [`PATIENCE`].
    fn must(
        &mut self,
        rule: Rule,
        what: &str,
        done: impl Fn(&World<'a>) -> bool,
        detail: impl Fn(&World<'a>) -> String,
    ) {
        let limit = self.now.after(PATIENCE);
        if !self.until(limit, done) && !self.checker.is_broken() {
            let detail = detail(self);
            self.checker.violate(self.now, rule, format!("{what} within {PATIENCE:?}: {detail}"));
        }
    }

    /// Moves the world on until `limit`, until `done`, or until a rule is broken; says whether `done`.
    fn until(&mut self, limit: Time, done: impl Fn(&World<'a>) -> bool) -> bool {
        while self.now < limit && !self.checker.is_broken() {
            if done(self) {
                return true;
            }
            let next = self.step();
            // Where nothing more is to happen, time would jump to the limit.
            if done(self) {
                return true;
            }
            let tick = Duration::from_nanos(self.rng.random_range(TURN_NS.0..=TURN_NS.1));
            self.move_to(next.max(self.now.after(tick)).min(limit));
            if self.turns() > MOST_TURNS {
                self.checker.violate(self.now, Rule::Sleeps, format!("more than {MOST_TURNS} turns: a reactor spins"));
            }
        }
        done(self)
    }

    fn move_to(&mut self, to: Time) {
        self.now = to;
        self.clock.set(to);
        crate::log::set_now(to);
        self.net.advance_to(to);
    }

    /// Everything that can happen now does, once; returns when the next thing will.
    fn step(&mut self) -> Time {
        while let Some(&(at, index, begins)) = self.agenda.get(self.agenda_at).filter(|(at, ..)| *at <= self.now) {
            self.agenda_at += 1;
            debug_assert!(at <= self.now);
            self.act(index, begins);
        }
        if let Some(path) = self.sockets.pump(self.now, &self.net, &mut self.peers) {
            let what = format!("a command left over path {path} for a disk after that was known to be another one");
            self.checker.violate(self.now, Rule::OtherDisk, what);
        }
        let mut next = self.agenda.get(self.agenda_at).map_or(Time::NEVER, |(at, ..)| *at);
        let first = self.rng.random_range(0..self.reactors.len());
        for i in 0..self.reactors.len() {
            let at = (first + i) % self.reactors.len();
            if self.reactors[at].wants_turn(self.now, &self.net) <= self.now {
                self.reactors[at].turn(self.now);
            }
        }
        self.look_at_disks();
        for reactor in &self.reactors {
            next = next.min(reactor.wants_turn(self.now, &self.net));
        }
        next = next.min(self.net.next_event().unwrap_or(Time::NEVER));
        self.peers.iter().fold(next, |next, peer| next.min(peer.next()))
    }

    fn look_at_disks(&mut self) {
        for (i, disk) in self.disks.iter().enumerate() {
            while let Some(event) = disk.events.try_next() {
                let path = event.path.as_ref().map_or_else(String::new, |(_, name)| name.to_string());
                if matches!(event.kind, EventKind::Redriven { .. } | EventKind::PathAdded) {
                    continue;
                }
                self.hear_of_identity(i, &event);
                self.checker.note(self.now, format_args!("disk{i} {path} {:?}", event.kind));
            }
        }
        let flushed = self.guests.iter().zip(&self.plan.guests).filter(|(g, _)| g.flushed.replace(false));
        let disks: Vec<u32> = flushed.map(|(_, plan)| plan.disk).collect();
        disks.into_iter().for_each(|disk| self.check_durable(disk));
        if self.watch_swaps {
            self.follow_swaps();
        }
        for (path, seen) in self.seen.iter_mut().enumerate().filter(|(_, seen)| !**seen) {
            *seen = self.disks.iter().all(|disk| disk.devices[path].state().info().is_some());
        }
    }

    /// From when a path shows another disk the group knows that it cannot rely on what the others answer.
    fn hear_of_identity(&self, disk: usize, event: &Event) {
        let Some((id, _)) = event.path else { return };
        let other = match event.kind {
            EventKind::PathDown { cause: Code::PathIdentity, .. } | EventKind::Quarantined { .. } => true,
            EventKind::PathUp { .. } => false,
            _ => return,
        };
        self.checker.disk(disk as u32).borrow_mut().path_says(id.0 as usize, other);
    }

    fn act(&mut self, index: usize, begins: bool) {
        let action = self.plan.actions[index].action.clone();
        self.checker.note(self.now, format_args!("{} {action:?}", if begins { "BEGIN" } else { "END" }));
        let now = self.now;
        match action {
            Action::Cut { .. } | Action::Slow { .. } | Action::Trickle { .. } | Action::Close { .. } => {
                self.change_wire(index, begins);
            }
            Action::Lag { path, nth, back, us } => {
                let ids = self.net.connections(address(path));
                if let Some(id) = ids.get(nth % ids.len().max(1)) {
                    self.net.lag(*id, if back { Way::ToHost } else { Way::ToTarget }, us);
                }
            }
            Action::Reset { path } => self.sockets.end_path(now, path, true, &mut self.peers),
            Action::Fin { path } => self.sockets.end_path(now, path, false, &mut self.peers),
            Action::ResetOne { path, nth } => self.sockets.reset_one(now, path, nth, &mut self.peers),
            Action::Stall { reactor, ms } => {
                self.reactors[usize::from(reactor)].stall(now.after(Duration::from_millis(ms)));
            }
            Action::LongTurns { reactor, turn_ms, ms } if begins => {
                let until = now.after(Duration::from_millis(ms));
                self.reactors[usize::from(reactor)].lengthen_turns(Duration::from_millis(turn_ms), until);
            }
            Action::LongTurns { .. } => {}
            Action::OtherTarget { .. } | Action::Swap { .. } if begins && !self.all_known() => {}
            Action::OtherTarget { path, .. } => {
                self.sockets.route(path, usize::from(begins));
                self.sockets.end_path(now, path, true, &mut self.peers);
            }
            Action::Grow { disk, blocks } => {
                // The peer is told how many there are in all.
                self.sizes[disk as usize] += blocks;
                self.tell(&Action::Grow { disk, blocks: self.sizes[disk as usize] }, begins);
            }
            Action::Swap { disk, .. } => self.swap(disk, &action, begins),
            // Of two namespaces that are seen at once nobody can say which is the only one.
            Action::UnusedNamespace { attach: true } if self.plan.settings.unnamed && self.seen.contains(&false) => {}
            Action::Queues { path, .. } => {
                self.tell(&action, begins);
                self.sockets.end_path(now, path, true, &mut self.peers);
            }
            Action::PowerLoss => self.lose_power(),
            _ => self.tell(&action, begins),
        }
    }

    fn change_wire(&mut self, index: usize, begins: bool) {
        let (path, closes) = match self.plan.actions[index].action {
            Action::Cut { path, .. } | Action::Slow { path, .. } | Action::Trickle { path, .. } => (path, false),
            Action::Close { path, .. } => (path, begins),
            _ => return,
        };
        self.conditions.set(index, begins);
        self.conditions.apply(path, &self.net);
        if closes {
            self.sockets.end_path(self.now, path, true, &mut self.peers);
        }
    }

    fn swap(&mut self, disk: u32, action: &Action, begins: bool) {
        let checker = self.checker.clone();
        let mut known = checker.disk(disk).borrow_mut();
        // The first end brings the disk back, however many swaps there are; one that never began has no end.
        if !begins && !known.swapped {
            return;
        }
        known.swapped = begins;
        known.swaps += 1;
        drop(known);
        self.watch_swaps = true;
        self.tell(action, begins);
    }

    fn tell(&mut self, action: &Action, begins: bool) {
        if let Err(what) = self.peers[0].act(self.now, action, begins) {
            self.checker.violate(self.now, Rule::Panic, format!("the plan cannot be carried out: {action:?}: {what}"));
        }
    }

    fn lose_power(&mut self) {
        (0..self.plan.disks).for_each(|disk| self.check_durable(disk));
        self.tell(&Action::PowerLoss, true);
        for disk in 0..self.plan.disks {
            let mut known = self.checker.disk(disk).borrow_mut();
            if !known.through {
                known.cache_lost = true;
                known.oracle.power_lost();
            }
        }
    }

    /// What a loss of power would leave now must hold everything that was promised.
    fn check_durable(&self, disk: u32) {
        self.check_blocks(disk, true);
    }

    fn check_blocks(&self, disk: u32, durable: bool) {
        let checker = self.checker.clone();
        let known = &mut *checker.disk(disk).borrow_mut();
        if known.swapped {
            return;
        }
        let mut block = [0; 512];
        for lba in 0..known.oracle.blocks() {
            self.peers[0].look(disk, lba * 512, durable, &mut block);
            let verdict =
                if durable { known.oracle.check_durable(lba, &block) } else { known.oracle.check_block(lba, &block) };
            if let Err(violation) = verdict {
                let (rule, what) = if durable { (Rule::Durable, "durable content") } else { (Rule::Data, "medium") };
                return checker.violate(self.now, rule, format!("{what} of disk {disk}: {violation}"));
            }
        }
    }

    /// With nothing in flight: the media themselves.
    fn check_media(&self) {
        for disk in 0..self.plan.disks {
            self.check_blocks(disk, false);
            self.check_blocks(disk, true);
        }
    }

    /// Every block over every path alone.
    fn read_alone(&mut self) -> Result<(), Violation> {
        for path in 0..self.plan.paths.len() {
            for disk in 0..self.plan.disks {
                let device = self.disks[disk as usize].devices[path].clone();
                let plan = GuestPlan { disk, reactor: 0, depth: 8, most_blocks: 8, pause_us: 1, reads: 100 };
                let reader = self.add_guest(format!("reader{path}.{disk}"), plan, device, 1, true)?;
                self.must(
                    Rule::Ends,
                    &format!("path {path} alone did not give disk {disk}"),
                    |_| reader.ended.get(),
                    World::path_states,
                );
            }
        }
        Ok(())
    }

    fn check_other_target(&self) {
        let changed = self.peers.get(1).map_or(0, |target| target.changes());
        if changed > 0 {
            let what = format!("{changed} changes of disks behind an address that leads elsewhere since a reconnect");
            self.checker.violate(self.now, Rule::OtherDisk, what);
        }
    }

    /// Tells the sockets which paths know that every disk which is swapped is another one now.
    fn follow_swaps(&mut self) {
        let swapped: Vec<usize> =
            (0..self.disks.len()).filter(|&d| self.checker.disk(d as u32).borrow().swapped).collect();
        self.watch_swaps = !swapped.is_empty();
        let mut known = vec![false; self.plan.paths.len()];
        for (path, known) in known.iter_mut().enumerate() {
            let is_known = |disk: &usize| {
                let state = self.disks[*disk].devices[path].state();
                matches!(state, DeviceState::Down { cause: Code::PathIdentity, .. })
            };
            // A path that is down already says it without an event.
            for disk in swapped.iter().filter(|disk| is_known(disk)) {
                self.checker.disk(*disk as u32).borrow_mut().path_says(path, true);
            }
            *known = self.watch_swaps && swapped.iter().all(is_known);
        }
        for at in 0..known.len() {
            // Whoever may have connected there.
            let users = self.plan.paths.iter().zip(&known).enumerate();
            let mut users = users.filter(|(path, (p, _))| *path == at || p.iscsi.alternates.contains(&at));
            let all = users.all(|(_, (_, known))| *known);
            self.sockets.set_known_swapped(at, all, &self.net);
        }
    }

    /// Do all groups know which disk they are? What answers first is taken for it, and rightly so: nothing is put in its place before.
    fn all_known(&self) -> bool {
        !self.seen.contains(&false) && self.disks.iter().all(|disk| disk.group.state().info().is_some())
    }

    fn all_usable(&self) -> bool {
        self.disks.iter().all(|disk| {
            disk.group.statistics().iter().all(|p| p.state == PathState::Usable && p.access.is_some_and(|a| a.usable()))
        })
    }

    fn path_states(&self) -> String {
        let all = self.disks.iter().enumerate().flat_map(|(i, disk)| {
            disk.group
                .statistics()
                .into_iter()
                .map(move |p| format!("disk{i} {} {:?} {:?}: {}", p.name, p.state, p.access, p.why))
        });
        all.collect::<Vec<_>>().join("; ")
    }

    fn open_requests(&self) -> String {
        let open = self.guests.iter().enumerate().filter(|(_, g)| !g.ended.get());
        let list: Vec<String> =
            open.map(|(i, g)| format!("guest{i}: {} open, oldest {:?}", g.open.get(), g.oldest.get())).collect();
        format!("{}; {}", list.join(", "), self.path_states())
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        // Pollers own streams and queues of controllers: they go while the net is there.
        self.reactors.clear();
    }
}

/// The poller that a reactor gets when a guest cannot be made.
struct NoGuest;

impl polypath_block::Poller for NoGuest {
    fn poll(&mut self, _: &mut polypath_block::Cx<'_>) -> polypath_block::Turn {
        polypath_block::Turn::Finished
    }

    fn arm(&mut self, _: &mut polypath_block::Cx<'_>, _: &mut polypath_block::Waits) -> polypath_block::Armed {
        polypath_block::Armed::Sleep
    }

    fn name(&self) -> &str {
        "no guest"
    }
}

fn found(plan: &Plan, disk: u32, initiators: &[Box<dyn Initiator>]) -> Result<Disk, String> {
    let fencing = if plan.settings.fencing { Fencing::On } else { Fencing::Off };
    let group = Group::new(GroupConfig { fencing, seed: plan.seed, ..GroupConfig::new(format!("disk{disk}")) });
    let events = group.events();
    let devices: Vec<Arc<dyn Device>> = initiators.iter().map(|i| i.device(disk)).collect();
    for device in &devices {
        group.add_path(PathConfig::new(device.clone())).map_err(|e| e.to_string())?;
    }
    Ok(Disk { group, events, devices })
}

/// Beginnings and ends of all actions, in order. Nothing lasts longer than the plan.
fn agenda(plan: &Plan) -> Vec<(Time, usize, bool)> {
    let mut agenda = Vec::new();
    let last = START.after(Duration::from_millis(plan.length_ms));
    for (i, timed) in plan.actions.iter().enumerate() {
        let begin = START.after(Duration::from_micros(timed.at_us)).min(last);
        agenda.push((begin, i, true));
        if let Some(ms) = timed.action.lasts_ms() {
            agenda.push((begin.after(Duration::from_millis(ms)).min(last), i, false));
        }
    }
    agenda.sort();
    // What begins and ends at once begins first.
    agenda.sort_by_key(|&(at, i, begins)| (at, i, !begins));
    agenda
}
