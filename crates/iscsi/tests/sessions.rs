//! A session against a target in memory: what is lost, what proves it quiet, and how it comes back.

use crate::script::{Heard, Target, any, read};
use polypath_block::{Code, Cx, Fate, Health, Proof, QueueConfig, RefusedWhy, SegRow, SegTable, Time};
use polypath_iscsi::login::Name;
use polypath_iscsi::pdu::{
    AsyncEvent, AsyncMessage, LogoutResponse, LogoutResult, NopIn, Opcode, Pdu, TaskResponse, TaskResult,
};
use polypath_iscsi::{Session, TargetConfig};
use polypath_memory::{Arena, Chunk};
use polypath_scsi::midlayer::{
    Address, Bus, HostBus, Outcome, Recovered, Recovery, RecoveryEnd, Task, TaskData, TaskDone, TaskEnd, TaskQueue,
};
use polypath_scsi::{Cdb, Lun, cdb::Form};
use std::sync::Arc;
use std::time::Duration;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Rig {
    target: Target,
    session: Session,
    bus: Arc<Bus>,
    segs: SegTable,
    row: SegRow,
    memory: Chunk,
    done: TaskDone,
}

impl Rig {
    fn new(name: &str) -> Rig {
        Rig::with(name, |_| ())
    }

    /// `name` tells this test's sessions from those of others in the same process.
    fn with(name: &str, change: impl FnOnce(&mut TargetConfig)) -> Rig {
        let target = Target::new();
        let iqn = Name::new(&format!("iqn.2026-01.org.example:{name}")).unwrap();
        let mut config = TargetConfig::new("192.0.2.1", 3260, iqn);
        config.dialer = Arc::new(target.clone());
        (config.silence_timeout, config.reconnect_delay) = (ms(200), ms(100));
        change(&mut config);
        let host = polypath_iscsi::Target::start(config, Arc::new(target.clone())).unwrap();
        let session = host.open_tasks(QueueConfig { depth: 8 }).unwrap();
        let bus = host.bus().clone();
        let mut segs = SegTable::new(64);
        let row = segs.reserve(32, 1).unwrap();
        let memory = Arena::new(1 << 20, false).unwrap().chunk(1 << 20).unwrap();
        let mut rig = Rig { target, session, bus, segs, row, memory, done: TaskDone::with_capacity(32) };
        rig.turns(5);
        rig
    }

    fn turn(&mut self, after_ms: u64) {
        let now = {
            let mut script = self.target.script();
            script.now = script.now.after(ms(after_ms));
            script.now
        };
        let mut cx = Cx { now, segs: &mut self.segs, reactor: 0 };
        self.session.kick(&mut cx);
        self.session.poll(&mut cx, &mut self.done);
    }

    fn turns(&mut self, count: u32) {
        (0..count).for_each(|_| self.turn(1));
    }

    fn now(&self) -> Time {
        self.target.script().now
    }

    fn submit(&mut self, tag: u64, write: bool) -> Result<(), RefusedWhy> {
        let span = self.row.span(tag as u32, 1);
        self.segs.get_mut(span)[0] = polypath_block::Segment { len: 512, ..self.memory.segment() };
        let (skip, len) = (0, 512);
        let (cdb, data) = match write {
            true => (Cdb::write(Form::Ten, 0, 1, false), TaskData::Out { span, skip, len }),
            false => (Cdb::read(Form::Ten, 0, 1, false), TaskData::In { span, skip, len }),
        };
        let task = Task { tag, target: 0, lun: Lun::ZERO, cdb, data, changes: write };
        let now = self.now();
        self.session.submit(&mut Cx { now, segs: &mut self.segs, reactor: 0 }, &task)
    }

    fn recover(&mut self, step: Recovery, token: u64) -> bool {
        let now = self.now();
        self.session.recover(&mut Cx { now, segs: &mut self.segs, reactor: 0 }, step, token)
    }

    fn commands(&self) -> Vec<Heard> {
        self.target.take().into_iter().filter(|h| h.header.opcode == Opcode::ScsiCommand).collect()
    }

    fn is_up(&self) -> bool {
        self.session.health() != Health::Down
    }
}

fn lost(tag: u64, proof: Proof) -> TaskEnd {
    TaskEnd { tag, outcome: Outcome::Lost(Code::PathLost), proof }
}

#[test]
fn tasks_go_and_come() {
    let mut rig = Rig::new("go");
    assert_eq!((rig.is_up(), rig.session.nexus()), (true, 1));
    rig.submit(1, true).unwrap();
    rig.submit(2, false).unwrap();
    rig.turns(1);
    rig.commands().iter().for_each(|c| rig.target.answer(c));
    rig.turns(1);
    assert_eq!(rig.done.good, [1, 2]);
}

#[test]
fn a_lost_write_is_quiet_when_the_target_takes_the_session_anew() {
    let mut rig = Rig::new("reinstated");
    rig.submit(1, true).unwrap();
    rig.submit(2, false).unwrap();
    rig.turns(1);
    rig.submit(3, true).unwrap();
    rig.target.script().away = true;
    rig.target.reset();
    rig.turns(1);
    assert_eq!(rig.done.ends.len(), 2, "{:?}", rig.done.ends);
    assert!(
        rig.done.ends.contains(&lost(2, Proof::SocketClosed)) && rig.done.ends.contains(&lost(3, Proof::NeverSent))
    );
    assert_eq!(rig.done.suspects.iter().map(|s| (s.tag, s.fate)).collect::<Vec<_>>(), [(1, Fate::Unknown)]);
    assert!(!rig.session.is_drained() && rig.submit(4, false) == Err(RefusedWhy::Gone));
    (0..100).for_each(|_| rig.turn(10));
    assert_eq!(rig.done.ends.len(), 2, "nobody has answered");
    rig.target.script().away = false;
    (0..200).for_each(|_| rig.turn(10));
    assert_eq!((rig.done.ends[2], rig.is_up(), rig.session.nexus()), (lost(1, Proof::Reinstated), true, 2));
    let logins = rig.target.script().logins.clone();
    assert!(logins.len() == 2 && logins[0] == logins[1], "the same initiator port: {logins:?}");
}

#[test]
fn another_portal_group_proves_nothing() {
    let mut rig = Rig::with("groups", |config| config.fence = ms(5000));
    rig.submit(1, true).unwrap();
    rig.turns(1);
    rig.target.script().portal_group = 2;
    rig.target.reset();
    rig.turns(400);
    assert!(rig.is_up() && rig.done.ends.is_empty(), "{:?}", rig.done.ends);
    let begun = rig.now();
    while rig.done.ends.is_empty() && rig.now().since(begun) < ms(10_000) {
        rig.turn(5);
    }
    assert_eq!(rig.done.ends, [lost(1, Proof::ConfiguredBound { bound_ms: 5000 })]);
    let after = rig.now().since(begun) + ms(400);
    assert!((ms(5000)..ms(5050)).contains(&after), "{after:?}");
}

#[test]
fn a_target_that_does_not_answer_is_waited_for_no_longer_than_was_said() {
    let mut rig = Rig::with("bound", |config| config.fence = ms(1000));
    rig.submit(1, true).unwrap();
    rig.turns(1);
    rig.target.script().away = true;
    rig.target.reset();
    rig.turn(1);
    assert_eq!(rig.done.suspects[0].fence.within, ms(1000));
    (0..99).for_each(|_| rig.turn(10));
    assert!(rig.done.ends.is_empty());
    (0..3).for_each(|_| rig.turn(10));
    assert_eq!(rig.done.ends, [lost(1, Proof::ConfiguredBound { bound_ms: 1000 })]);
}

/// A reset of the logical unit through another session ends what the target had taken, and says nothing of what may still lie in front of it.
#[test]
fn what_the_target_had_not_taken_is_not_left_to_a_reset_through_another_way() {
    let mut rig = Rig::with("reset", |config| {
        (config.fence, config.disks.reset_fence) = (ms(1000), Some(ms(50)));
    });
    let address = Address { target: 0, lun: Lun::ZERO };
    rig.submit(1, true).unwrap();
    rig.submit(2, false).unwrap();
    rig.turns(1);
    // The answer says that the command before it was taken; the one after it is on its way.
    let read = rig.commands().remove(1);
    rig.target.answer(&read);
    rig.submit(3, true).unwrap();
    rig.turns(1);
    rig.target.script().away = true;
    rig.target.reset();
    rig.turn(1);
    assert_eq!((rig.done.suspects.len(), rig.bus.last_loss(address)), (2, None), "left to the session for now");
    (0..6).for_each(|_| rig.turn(10));
    let loss = rig.bus.last_loss(address).expect("made known");
    rig.bus.prove_losses(address, loss, Proof::UnitReset);
    rig.turn(1);
    assert_eq!(rig.done.ends, [lost(1, Proof::UnitReset)]);
    (0..110).for_each(|_| rig.turn(10));
    assert_eq!(rig.done.ends[1..], [lost(3, Proof::ConfiguredBound { bound_ms: 1000 })]);
}

#[test]
fn a_session_that_comes_back_in_time_bothers_nobody() {
    let mut rig = Rig::with("back", |config| config.disks.reset_fence = Some(ms(500)));
    rig.submit(1, true).unwrap();
    rig.submit(2, false).unwrap();
    rig.turns(1);
    let read = rig.commands().remove(1);
    rig.target.answer(&read);
    rig.turns(1);
    rig.target.reset();
    (0..100).for_each(|_| rig.turn(10));
    assert_eq!(rig.done.ends, [lost(1, Proof::Reinstated)]);
    assert_eq!(rig.bus.open_loss(Address { target: 0, lun: Lun::ZERO }), 1, "there was none");
}

#[test]
fn silence_is_asked_about_and_then_the_end() {
    let mut rig = Rig::new("silence");
    rig.submit(1, false).unwrap();
    (0..15).for_each(|_| rig.turn(10));
    let pings: Vec<_> = rig.target.take().into_iter().filter(|h| h.header.opcode == Opcode::NopOut).collect();
    assert_eq!((pings.len(), rig.session.health()), (1, Health::Stalled), "half of the limit has passed");
    // Something comes, but no answer to the ping; and then nothing any more.
    rig.target.say(false, &[], |sn, out| {
        NopIn { lun: polypath_iscsi::pdu::Lun::ZERO, itt: None, ttt: None, sn, data_len: 0 }
            .encode(&any(), out)
            .unwrap()
    });
    rig.turn(1);
    assert_eq!(rig.session.health(), Health::Ready);
    let begun = rig.now();
    while rig.done.ends.is_empty() && rig.now().since(begun) < ms(1000) {
        rig.turn(10);
    }
    let timeout = TaskEnd { tag: 1, outcome: Outcome::Lost(Code::PathTimeout), proof: Proof::SocketClosed };
    assert_eq!(rig.done.ends, [timeout], "{:?}", rig.now().since(begun));
}

#[test]
fn an_aborted_write_is_quiet_and_what_came_after_a_reset_is_not_its_business() {
    let mut rig = Rig::new("abort");
    rig.submit(1, true).unwrap();
    rig.turns(1);
    assert!(rig.recover(Recovery::AbortTask { tag: 1 }, 50));
    assert!(!rig.recover(Recovery::AbortTask { tag: 9 }, 51), "no such task");
    let answer = |rig: &mut Rig| {
        let all = rig.target.take();
        let asked = all.iter().find(|h| h.header.opcode == Opcode::TaskRequest).unwrap().itt();
        rig.target.say(true, &[], |sn, out| {
            TaskResponse { result: TaskResult::Complete, itt: asked, sn }.encode(&any(), out).unwrap()
        });
        rig.turns(1);
    };
    answer(&mut rig);
    let aborted = |tag| TaskEnd { tag, outcome: Outcome::Lost(Code::PathTimeout), proof: Proof::Aborted };
    assert_eq!(rig.done.ends, [aborted(1)]);
    rig.submit(2, true).unwrap();
    rig.turns(1);
    assert!(rig.recover(Recovery::ResetLogicalUnit { target: 0, lun: Lun::ZERO }, 52));
    rig.submit(3, true).unwrap();
    rig.turns(1);
    answer(&mut rig);
    assert_eq!(rig.done.ends[1..], [aborted(2)], "the other was sent after the reset");
    let complete = |token| RecoveryEnd { token, outcome: Recovered::Complete };
    assert_eq!(rig.done.recoveries, [complete(50), complete(52)]);
    assert!(rig.recover(Recovery::ResetHost, 53));
    rig.turn(1);
    assert_eq!(rig.done.suspects.last().map(|s| s.tag), Some(3));
}

#[test]
fn a_task_that_is_not_there_is_not_quiet_for_that() {
    let mut rig = Rig::new("no-such-task");
    rig.submit(1, true).unwrap();
    rig.turns(1);
    assert!(rig.recover(Recovery::AbortTask { tag: 1 }, 50));
    let asked = rig.target.take().iter().find(|h| h.header.opcode == Opcode::TaskRequest).unwrap().itt();
    rig.target.say(true, &[], |sn, out| {
        TaskResponse { result: TaskResult::NoTask, itt: asked, sn }.encode(&any(), out).unwrap()
    });
    rig.turns(1);
    assert_eq!(rig.done.ends, [], "its answer may be on the way, or it may have been executed");
    assert_eq!(rig.done.recoveries, [RecoveryEnd { token: 50, outcome: Recovered::NoSuchTask }]);
}

#[test]
fn a_target_that_drops_every_session_is_not_asked_without_a_pause() {
    let mut rig = Rig::new("drops");
    for _ in 0..1000 {
        rig.target.reset();
        rig.turn(1);
    }
    let dials = rig.target.script().dials.len();
    assert!((5..15).contains(&dials), "{dials} in a second, with a delay of 100 ms");
}

#[test]
fn a_target_that_wants_to_be_left_is_left_in_order() {
    let mut rig = Rig::new("leave");
    rig.submit(1, true).unwrap();
    rig.turns(1);
    let commands = rig.commands();
    rig.target.say(true, &[], |sn, out| {
        let event = AsyncEvent::LogoutRequested { within_s: 5 };
        let lun = polypath_iscsi::pdu::Lun::ZERO;
        AsyncMessage { event, vendor_code: 0, lun, sn, data_len: 0 }.encode(&any(), out).unwrap()
    });
    rig.turns(2);
    assert_eq!((rig.session.health(), rig.submit(2, false)), (Health::Down, Err(RefusedWhy::Gone)));
    assert!(rig.target.take().is_empty(), "a task is on it");
    rig.target.answer(&commands[0]);
    rig.turns(2);
    assert_eq!(rig.done.good, [1]);
    let asked = rig.target.take();
    let [Pdu::LogoutRequest(logout)] = &asked.iter().map(read).collect::<Vec<_>>()[..] else { panic!("{asked:?}") };
    let itt = logout.itt;
    rig.target.say(true, &[], |sn, out| {
        let (result, time2wait_s, time2retain_s) = (LogoutResult::Closed, 0, 0);
        LogoutResponse { result, itt, sn, time2wait_s, time2retain_s }.encode(&any(), out).unwrap()
    });
    rig.turns(10);
    assert_eq!((rig.is_up(), rig.session.nexus(), rig.done.suspects.len()), (true, 2, 0));
}

#[test]
fn a_target_that_has_moved_is_followed() {
    let target = Target::new();
    target.script().redirect = Some("192.0.2.99:3333,1".into());
    let iqn = Name::new("iqn.2026-01.org.example:moved").unwrap();
    let mut config = TargetConfig::new("192.0.2.1", 3260, iqn);
    config.dialer = Arc::new(target.clone());
    let host = polypath_iscsi::Target::start(config, Arc::new(target.clone())).unwrap();
    let bus = host.bus().clone();
    let session = host.open_tasks(QueueConfig { depth: 8 }).unwrap();
    let mut segs = SegTable::new(64);
    let row = segs.reserve(32, 1).unwrap();
    let memory = Arena::new(4096, false).unwrap().chunk(4096).unwrap();
    let mut rig = Rig { target, session, bus, segs, row, memory, done: TaskDone::default() };
    rig.turns(10);
    let dials: Vec<String> = rig.target.script().dials.iter().map(ToString::to_string).collect();
    assert_eq!((rig.is_up(), &dials[..]), (true, &["192.0.2.1:3260".to_owned(), "192.0.2.99:3333".to_owned()][..]));
}
