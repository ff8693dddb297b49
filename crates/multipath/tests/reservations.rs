//! Reservations of a group: registered on each path before it carries anything, never stolen back, never sent twice.

use crate::common::scripted::{Bench, Opener, Scripted, info};
use polypath_block::{
    Code, Device, DeviceState, IoQueue, OpenError, Proof, QueueConfig, Registrant, ReservationError,
    ReservationOp as Op, ReservationReply, ReservationReport, ReservationResult, ReservationType, Reservations,
};
use polypath_multipath::{EventKind, GroupConfig, PathConfig, PathState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const KEY: u64 = 0xa11ce;
const THEIRS: u64 = 0xb0b;
const KIND: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
/// Another host, where paths have their numbers.
const OTHER: usize = 99;

/// The disk behind all paths: who is registered over which, and who holds it.
#[derive(Default)]
struct Disk {
    registered: Vec<(usize, u64)>,
    held: Option<(usize, ReservationType)>,
    /// The hosts that paths are of, by their numbers, where they have one.
    hosts: Vec<Option<[u8; 16]>>,
}

impl Disk {
    fn is_registered(&self, key: u64, host: Option<[u8; 16]>) -> bool {
        let is_it = |who: &usize| host.is_none() || self.hosts.get(*who).copied().flatten() == host;
        self.registered.iter().any(|(who, k)| *k == key && is_it(who))
    }

    fn key_of(&self, who: usize) -> Option<u64> {
        self.registered.iter().find(|(w, _)| *w == who).map(|(_, key)| *key)
    }

    fn carry_out(&mut self, who: usize, op: Op) -> ReservationResult {
        let conflict = || Err(ReservationError::new(Code::ReservationConflict, "conflict"));
        let register = |disk: &mut Disk, key| {
            disk.registered.retain(|(w, _)| *w != who);
            disk.registered.push((who, key));
        };
        match op {
            Op::Register { key } => register(self, key),
            Op::Join { key, host } if self.is_registered(key, host) => register(self, key),
            Op::Join { .. } => return conflict(),
            Op::Report => {
                let held_by = self.held.and_then(|(who, _)| self.key_of(who));
                let registrant =
                    |&(_, key): &(usize, u64)| Registrant { key, host: None, holder: held_by == Some(key) };
                let registrants = self.registered.iter().map(registrant).collect();
                return Ok(Some(ReservationReport {
                    generation: 1,
                    registrants,
                    held: self.held.map(|(_, kind)| kind),
                }));
            }
            Op::Unregister { key }
            | Op::Reserve { key, .. }
            | Op::Release { key, .. }
            | Op::Clear { key }
            | Op::Preempt { key, .. }
                if self.key_of(who) != Some(key) =>
            {
                return conflict();
            }
            Op::Unregister { .. } => {
                self.registered.retain(|(w, _)| *w != who);
                self.held.take_if(|(w, _)| *w == who);
            }
            Op::Reserve { kind, .. } => match self.held {
                Some((holder, _)) if holder != who => return conflict(),
                _ => self.held = Some((who, kind)),
            },
            Op::Release { .. } => drop(self.held.take_if(|(w, _)| *w == who)),
            Op::Clear { .. } => (self.registered, self.held) = (Vec::new(), None),
            Op::Preempt { victim, kind, .. } => {
                let held_by = self.held.and_then(|(w, _)| self.key_of(w));
                self.registered.retain(|(w, key)| *key != victim || *w == who);
                if held_by == Some(victim) {
                    self.held = Some((who, kind));
                }
            }
        }
        Ok(None)
    }
}

/// What a path does with what it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Answer,
    /// Carries nothing out, and says so.
    Fail(Code),
    /// Carries it out, and its answer is lost.
    LoseAnswer,
    /// Loses it, and says why nothing of it can come any more.
    LoseQuiet,
    /// Loses it on its way, where it goes on.
    LoseGhost,
    Hold,
}

struct Path {
    opener: Opener,
    who: usize,
    disk: Arc<Mutex<Disk>>,
    mode: Mutex<Mode>,
    held: Mutex<Vec<(Op, ReservationReply)>>,
    ghosts: Mutex<Vec<Op>>,
    log: Mutex<Vec<Op>>,
    forgotten: AtomicU64,
    alarms: AtomicU64,
}

impl Path {
    fn alarm(&self) {
        self.alarms.fetch_add(1, Ordering::SeqCst);
        self.opener.0.touch();
    }

    fn set_mode(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn answer(&self, op: Op, reply: ReservationReply) {
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Answer => {
                let result = self.disk.lock().unwrap().carry_out(self.who, op);
                reply.answer(result);
            }
            Mode::Fail(code) => reply.answer(Err(ReservationError::new(code, "told to fail"))),
            Mode::LoseAnswer => {
                let _ = self.disk.lock().unwrap().carry_out(self.who, op);
                reply.answer(Err(ReservationError::new(Code::OutcomeUnknown, "lost in the middle")));
            }
            Mode::LoseQuiet => {
                let error = ReservationError::new(Code::OutcomeUnknown, "lost in the middle");
                reply.answer(Err(error.quiet_by(Proof::Reinstated)));
            }
            Mode::LoseGhost => {
                self.ghosts.lock().unwrap().push(op);
                reply.answer(Err(ReservationError::new(Code::OutcomeUnknown, "no answer in time")));
            }
            Mode::Hold => self.held.lock().unwrap().push((op, reply)),
        }
    }

    /// What was lost on its way arrives.
    fn land(&self) -> Vec<ReservationResult> {
        let ghosts = std::mem::take(&mut *self.ghosts.lock().unwrap());
        ghosts.into_iter().map(|op| self.disk.lock().unwrap().carry_out(self.who, op)).collect()
    }

    /// Goes on with what was held.
    fn go_on(&self) {
        self.set_mode(Mode::Answer);
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().for_each(|(op, reply)| self.answer(op, reply));
    }
}

impl Device for Path {
    fn name(&self) -> &str {
        self.opener.name()
    }
    fn state(&self) -> DeviceState {
        self.opener.state()
    }
    fn version(&self) -> u64 {
        self.opener.version()
    }
    fn open_queue(&self, config: QueueConfig) -> Result<Box<dyn IoQueue>, OpenError> {
        self.opener.open_queue(config)
    }
    fn reservations(&self) -> Option<&dyn Reservations> {
        Some(self)
    }
    fn close(&self) {
        self.opener.close();
    }
}

impl Reservations for Path {
    fn start(&self, op: Op, _: Duration, reply: ReservationReply) {
        self.log.lock().unwrap().push(op);
        self.answer(op, reply);
    }
    fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
    }
    fn alarms(&self) -> u64 {
        self.alarms.load(Ordering::SeqCst)
    }
    fn host(&self) -> Option<[u8; 16]> {
        self.disk.lock().unwrap().hosts.get(self.who).copied().flatten()
    }
}

struct World {
    b: Bench,
    paths: Vec<Arc<Path>>,
    disk: Arc<Mutex<Disk>>,
}

impl World {
    fn new(paths: usize) -> World {
        let b = Bench::new(GroupConfig::new("disk"), Vec::new());
        let mut world = World { b, paths: Vec::new(), disk: Arc::default() };
        (0..paths).for_each(|_| world.add(true));
        world.b.turns(3);
        world
    }

    fn add(&mut self, up: bool) {
        let who = self.paths.len();
        let device = Scripted::new(&format!("p{who}"), info("a"));
        if !up {
            device.set_state(DeviceState::Starting);
        }
        let path = Arc::new(Path {
            opener: Opener(device.clone()),
            who,
            disk: self.disk.clone(),
            mode: Mutex::new(Mode::Answer),
            held: Mutex::default(),
            ghosts: Mutex::default(),
            log: Mutex::default(),
            forgotten: AtomicU64::new(0),
            alarms: AtomicU64::new(0),
        });
        self.b.ids.push(self.b.group.add_path(PathConfig::new(path.clone())).unwrap());
        self.b.devices.push(device);
        self.paths.push(path);
    }

    fn start(&self, op: Op) -> Receiver<Result<Option<ReservationReport>, Code>> {
        let (tell, told) = channel();
        let reply = ReservationReply::new(move |result: ReservationResult| {
            tell.send(result.map_err(|error| error.code)).unwrap_or(());
        });
        self.b.group.reservations().unwrap().start(op, Duration::from_secs(1), reply);
        told
    }

    fn ask(&mut self, op: Op) -> Result<Option<ReservationReport>, Code> {
        let result = self.start(op).try_recv().expect("every path answers at once");
        self.b.turns(3);
        result
    }

    fn states(&self) -> Vec<PathState> {
        (0..self.paths.len()).map(|i| self.b.stats(i).state).collect()
    }

    fn registered(&self) -> Vec<(usize, u64)> {
        let mut all = self.disk.lock().unwrap().registered.clone();
        all.sort_unstable();
        all
    }

    fn preempt_by_another(&self) {
        let mut disk = self.disk.lock().unwrap();
        disk.registered = vec![(OTHER, THEIRS)];
        disk.held = Some((OTHER, KIND));
    }
}

use PathState::{Connecting, Down, Usable};

#[test]
fn every_path_is_registered_and_one_reserves() {
    let mut w = World::new(3);
    assert_eq!(w.ask(Op::Register { key: KEY }), Ok(None));
    assert_eq!(w.registered(), [(0, KEY), (1, KEY), (2, KEY)]);
    assert_eq!(w.ask(Op::Reserve { key: KEY, kind: KIND }), Ok(None));
    let shown = w.b.group.reservation_state();
    assert_eq!((shown.key, shown.kind, shown.ended), (Some(KEY), Some(KIND), None));
    let report = w.ask(Op::Report).unwrap().unwrap();
    assert!(report.is_held_by(KEY) && report.registrants.len() == 3);
    assert_eq!(w.states(), [Usable; 3]);
    assert_eq!(w.ask(Op::Release { key: KEY, kind: KIND }), Ok(None));
    assert_eq!(w.ask(Op::Report).unwrap().unwrap().held, None);
    assert_eq!(w.ask(Op::Unregister { key: KEY }), Ok(None));
    assert_eq!((w.registered(), w.b.group.reservation_state().key), (vec![], None));
    w.b.finish();
}

#[test]
fn a_path_that_joins_later_or_comes_back_carries_nothing_before_it_is_registered() {
    let mut w = World::new(1);
    w.ask(Op::Register { key: KEY }).unwrap();
    w.add(false);
    w.paths[1].set_mode(Mode::Hold);
    w.b.devices[1].set_live(info("a"));
    w.b.turns(3);
    assert_eq!(w.states(), [Usable, Connecting]);
    assert!(w.b.stats(1).why.contains("being registered"), "{}", w.b.stats(1).why);
    assert_eq!(w.paths[1].take_log(), [Op::Join { key: KEY, host: None }]);
    w.b.devices[0].set_health(polypath_block::Health::Down);
    w.b.turns(3);
    let tag = w.b.write(1);
    w.b.turns(3);
    assert_eq!((w.b.devices[1].taken(), w.b.outcome(tag)), (vec![], None), "it waits");
    w.paths[1].go_on();
    w.b.turns(3);
    assert_eq!((w.states()[1], w.registered()), (Usable, vec![(0, KEY), (1, KEY)]));
    w.b.devices[1].succeed(w.b.devices[1].only());
    w.b.turn();
    assert_eq!(w.b.outcome(tag), Some(Code::Ok));
    // It is lost, and comes back.
    w.paths[1].take_log();
    w.b.devices[1].set_down(Code::PathLost, "gone");
    w.b.turns(3);
    w.paths[1].set_mode(Mode::Fail(Code::PathTimeout));
    w.b.devices[1].set_live(info("a"));
    w.b.turns(3);
    assert_eq!((w.states()[1], w.paths[1].take_log()), (Down, vec![Op::Join { key: KEY, host: None }]));
    assert!(w.b.stats(1).why.contains("told to fail"), "{}", w.b.stats(1).why);
    w.paths[1].set_mode(Mode::Answer);
    w.b.pass(2500);
    assert_eq!(w.states()[1], Usable, "it was asked again");
    w.b.finish();
}

#[test]
fn a_path_on_which_the_key_cannot_be_registered_is_left() {
    let mut w = World::new(3);
    w.paths[1].set_mode(Mode::Fail(Code::PathNoAccess));
    assert_eq!(w.ask(Op::Register { key: KEY }), Ok(None));
    assert_eq!(w.states(), [Usable, Down, Usable]);
    let why = w.b.stats(1).why;
    assert!(why.contains("reservation key") && why.contains("told to fail"), "{why}");
    // Where none is to be had, nothing is claimed, and everything goes on.
    let mut w = World::new(2);
    w.paths.iter().for_each(|p| p.set_mode(Mode::Fail(Code::Unsupported)));
    assert_eq!(w.ask(Op::Register { key: KEY }), Err(Code::Unsupported));
    assert_eq!((w.states(), w.b.group.reservation_state().key), (vec![Usable; 2], None));
}

#[test]
fn what_another_host_took_is_told_and_never_taken_back() {
    // Heard by an alarm, and by a path that comes back.
    for by_alarm in [true, false] {
        let mut w = World::new(2);
        w.ask(Op::Register { key: KEY }).unwrap();
        w.ask(Op::Reserve { key: KEY, kind: KIND }).unwrap();
        w.preempt_by_another();
        w.b.told();
        w.paths.iter().for_each(|p| drop(p.take_log()));
        if by_alarm {
            w.paths[1].alarm();
        } else {
            w.b.devices[1].set_down(Code::PathLost, "gone");
            w.b.turns(3);
            w.b.devices[1].set_live(info("a"));
        }
        w.b.turns(3);
        w.b.pass(3000);
        let shown = w.b.group.reservation_state();
        assert!(shown.key.is_none() && shown.ended.unwrap().contains("another host"));
        let told = w.b.told();
        assert_eq!(told.iter().filter(|k| matches!(k, EventKind::RegistrationEnded { .. })).count(), 1, "{told:?}");
        assert_eq!((w.registered(), w.states()), (vec![(OTHER, THEIRS)], vec![Usable; 2]));
        assert!(w.paths.iter().all(|p| p.forgotten.load(Ordering::SeqCst) > 0));
        let asked: Vec<_> = w.paths.iter().flat_map(|p| p.take_log()).collect();
        assert_eq!(asked, [if by_alarm { Op::Report } else { Op::Join { key: KEY, host: None } }]);
        // A conflict is the request's own end.
        let tag = w.b.write(1);
        let at = w.b.devices.iter().position(|d| !d.in_flight().is_empty()).unwrap();
        let io = w.b.devices[at].only();
        w.b.devices[at].complete(io, Code::ReservationConflict, Proof::Answered);
        w.b.turn();
        assert_eq!((w.b.outcome(tag), w.states()), (Some(Code::ReservationConflict), vec![Usable; 2]));
        // Only somebody who asks for it registers again.
        w.ask(Op::Register { key: KEY }).unwrap();
        assert_eq!(w.registered(), [(0, KEY), (1, KEY), (OTHER, THEIRS)]);
        let preempts = Op::Preempt { key: KEY, victim: THEIRS, kind: KIND, abort: false };
        assert_eq!(w.ask(preempts), Ok(None));
        assert_eq!(w.registered(), [(0, KEY), (1, KEY)]);
        w.b.finish();
    }
}

#[test]
fn an_alarm_for_nothing_changes_nothing() {
    let mut w = World::new(2);
    w.ask(Op::Register { key: KEY }).unwrap();
    w.paths[0].take_log();
    w.paths[0].alarm();
    w.b.turns(3);
    w.b.pass(3000);
    assert_eq!(w.paths[0].take_log(), [Op::Report], "looked into once");
    assert_eq!((w.b.group.reservation_state().key, w.states()), (Some(KEY), vec![Usable; 2]));
    w.b.finish();
}

#[test]
fn what_was_lost_in_the_middle_is_looked_up_and_not_sent_again() {
    for (carried_out, result) in [(true, Ok(None)), (false, Err(Code::Aborted))] {
        for op in [
            Op::Reserve { key: KEY, kind: KIND },
            Op::Preempt { key: KEY, victim: THEIRS, kind: KIND, abort: true },
            Op::Clear { key: KEY },
        ] {
            let mut w = World::new(2);
            w.ask(Op::Register { key: KEY }).unwrap();
            w.disk.lock().unwrap().registered.push((OTHER, THEIRS));
            w.paths.iter().for_each(|p| drop(p.take_log()));
            w.paths[0].set_mode(if carried_out { Mode::LoseAnswer } else { Mode::LoseQuiet });
            assert_eq!(w.ask(op), result, "{op:?}");
            let logs = w.paths.iter().map(|p| p.take_log()).collect::<Vec<_>>();
            assert_eq!(logs, [vec![op], vec![Op::Report]], "{op:?}");
        }
    }
    // Held by somebody else, in the same way: not by us.
    let mut w = World::new(2);
    w.ask(Op::Register { key: KEY }).unwrap();
    w.disk.lock().unwrap().registered.push((OTHER, THEIRS));
    w.disk.lock().unwrap().held = Some((OTHER, KIND));
    w.paths[0].set_mode(Mode::LoseQuiet);
    assert_eq!(w.ask(Op::Reserve { key: KEY, kind: KIND }), Err(Code::Aborted));
    // Nobody is left who could tell.
    let mut w = World::new(1);
    w.ask(Op::Register { key: KEY }).unwrap();
    w.paths[0].set_mode(Mode::LoseQuiet);
    assert_eq!(w.ask(Op::Reserve { key: KEY, kind: KIND }), Err(Code::OutcomeUnknown));
}

/// A report shows what was done when it was made: what still has its way before it is not over.
#[test]
fn what_may_still_arrive_is_not_said_to_have_failed() {
    for op in [
        Op::Reserve { key: KEY, kind: KIND },
        Op::Preempt { key: KEY, victim: THEIRS, kind: KIND, abort: false },
        Op::Clear { key: KEY },
    ] {
        let mut w = World::new(2);
        w.ask(Op::Register { key: KEY }).unwrap();
        w.disk.lock().unwrap().registered.push((OTHER, THEIRS));
        w.paths.iter().for_each(|p| drop(p.take_log()));
        w.paths[0].set_mode(Mode::LoseGhost);
        assert_eq!(w.ask(op), Err(Code::OutcomeUnknown), "{op:?}");
        assert_eq!(w.paths.iter().map(|p| p.take_log()).collect::<Vec<_>>(), [vec![op], vec![Op::Report]], "{op:?}");
        assert_eq!(w.paths[0].land(), [Ok(None)], "{op:?}: and then it is carried out");
        w.paths[0].set_mode(Mode::Answer);
        let report = w.ask(Op::Report).unwrap().unwrap();
        let arrived = match op {
            Op::Reserve { .. } => report.is_held_by(KEY),
            Op::Preempt { .. } => !report.has(THEIRS),
            _ => report.registrants.is_empty(),
        };
        assert!(arrived, "{op:?}: {report:?}");
    }
}

#[test]
fn another_path_is_asked_where_one_did_not_carry_it_out() {
    let mut w = World::new(2);
    w.ask(Op::Register { key: KEY }).unwrap();
    w.paths[0].set_mode(Mode::Fail(Code::PathLost));
    assert_eq!(w.ask(Op::Reserve { key: KEY, kind: KIND }), Ok(None));
    // Released where it is held; where that cannot be, it is said.
    w.paths[0].set_mode(Mode::Answer);
    w.paths.iter().for_each(|p| drop(p.take_log()));
    w.paths[1].set_mode(Mode::Fail(Code::PathLost));
    assert_eq!(w.ask(Op::Release { key: KEY, kind: KIND }), Err(Code::PathNoAccess), "held over the other path");
    w.paths[1].set_mode(Mode::Answer);
    assert_eq!(w.ask(Op::Release { key: KEY, kind: KIND }), Ok(None));
    assert_eq!(w.disk.lock().unwrap().held, None);
    // A conflict is the same on every path.
    w.disk.lock().unwrap().held = Some((OTHER, KIND));
    w.paths.iter().for_each(|p| drop(p.take_log()));
    assert_eq!(w.ask(Op::Reserve { key: KEY, kind: KIND }), Err(Code::ReservationConflict));
    assert_eq!(w.paths.iter().map(|p| p.take_log().len()).sum::<usize>(), 1);
}

#[test]
fn one_at_a_time_and_none_without_paths() {
    let mut w = World::new(1);
    w.paths[0].set_mode(Mode::Hold);
    let told = w.start(Op::Register { key: KEY });
    assert_eq!(w.ask(Op::Report), Err(Code::PathBusy));
    w.paths[0].go_on();
    assert_eq!(told.try_recv().unwrap(), Ok(None));
    assert!(w.ask(Op::Report).is_ok());
    w.b.devices[0].set_down(Code::PathLost, "gone");
    w.b.turns(3);
    assert_eq!(w.ask(Op::Report), Err(Code::NoPath));
    w.b.group.close();
    assert_eq!(w.ask(Op::Report), Err(Code::Gone));
}

/// Another host may be registered with the same key: what is ours is told by the host where paths have one.
#[test]
fn a_path_of_a_host_that_is_registered_does_not_join_another_host() {
    let (ours, also_ours) = (Some([1; 16]), Some([2; 16]));
    let mut w = World::new(3);
    w.disk.lock().unwrap().hosts = vec![ours, ours, also_ours, ours, also_ours];
    w.ask(Op::Register { key: KEY }).unwrap();
    let logs = w.paths.iter().map(|p| p.take_log()).collect::<Vec<_>>();
    let join = |host| vec![Op::Join { key: KEY, host }];
    assert_eq!(logs, [vec![Op::Register { key: KEY }], join(ours), join(None)]);
    // Both are registered now.
    for (who, host) in [(3, ours), (4, also_ours)] {
        w.add(true);
        w.b.turns(3);
        assert_eq!((w.paths[who].take_log(), w.states()[who]), (join(host), Usable));
    }
    // Ours are ended, and another host has the same key.
    w.disk.lock().unwrap().registered = vec![(OTHER, KEY)];
    w.b.devices[1].set_down(Code::PathLost, "gone");
    w.b.turns(3);
    w.b.devices[1].set_live(info("a"));
    w.b.turns(3);
    w.b.pass(3000);
    assert_eq!((w.registered(), w.b.group.reservation_state().key), (vec![(OTHER, KEY)], None));
    w.b.finish();
}

/// What a foreign reservation hides from a path that is not registered may be what it is quarantined for; and another disk has other keys.
#[test]
fn a_quarantined_path_is_asked_to_join_and_says_nothing_of_our_key() {
    let mut w = World::new(1);
    w.b.group.freeze();
    w.ask(Op::Register { key: KEY }).unwrap();
    let mut poor = info("a");
    poor.limits.fua = false;
    w.add(false);
    w.b.devices[1].set_live(poor);
    w.add(false);
    w.paths[2].set_mode(Mode::Fail(Code::ReservationConflict));
    w.b.devices[2].set_live(crate::common::scripted::stranger("b"));
    w.b.turns(3);
    w.b.pass(1500);
    assert_eq!(w.states(), [Usable, PathState::Quarantined, PathState::Quarantined]);
    assert!(w.registered().contains(&(1, KEY)));
    assert_eq!(w.b.group.reservation_state().key, Some(KEY), "whoever is there, it is not our disk");
    w.b.devices[1].set_live(info("a"));
    w.b.turns(3);
    assert_eq!(w.states()[1], Usable);
    w.b.finish();
}
