//! A session against a target in memory: what is lost, what proves it quiet, and how it comes back.

mod moved;
mod sleep;

use crate::script::{Heard, Target, any, read};
use polypath_block::{Code, Cx, Fate, FenceState, Health, Proof, QueueConfig, RefusedWhy, SegRow, SegTable, Time};
use polypath_iscsi::login::Name;
use polypath_iscsi::pdu::{
    AsyncEvent, AsyncMessage, CommandResponse, LogoutResponse, LogoutResult, NopIn, Opcode, Pdu, Residual,
    ScsiResponse, TaskResponse, TaskResult,
};
use polypath_iscsi::{Portal, Session, TargetConfig};
use polypath_memory::{Arena, Chunk};
use polypath_scsi::midlayer::{
    Address, Answer, Bus, HostBus, Outcome, Recovered, Recovery, RecoveryEnd, Task, TaskData, TaskDone, TaskEnd,
    TaskQueue,
};
use polypath_scsi::{Cdb, Lun, ScsiStatus, cdb::Form};
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

    fn close(&mut self) {
        let now = self.now();
        self.session.close(&mut Cx { now, segs: &mut self.segs, reactor: 0 });
    }

    /// The target asks for something.
    fn hear_async(&mut self, event: AsyncEvent) {
        self.target.say(true, &[], |sn, out| {
            let lun = polypath_iscsi::pdu::Lun::ZERO;
            AsyncMessage { event, vendor_code: 0, lun, sn, data_len: 0 }.encode(&any(), out).unwrap()
        });
    }

    /// Answers the task management request that came last.
    fn managed(&mut self, result: TaskResult) {
        let all = self.target.take();
        let itt = all.iter().rfind(|h| h.header.opcode == Opcode::TaskRequest).unwrap().itt();
        self.target.say(true, &[], |sn, out| TaskResponse { result, itt, sn }.encode(&any(), out).unwrap());
        self.turns(1);
    }

    fn dials(&self) -> usize {
        self.target.script().dials.len()
    }

    fn commands(&self) -> Vec<Heard> {
        self.target.take().into_iter().filter(|h| h.header.opcode == Opcode::ScsiCommand).collect()
    }

    /// Has the session not closed its newest connection?
    fn is_connected(&self) -> bool {
        self.target.is_connected()
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

/// Two machines may show one name and one portal group tag, each of them as its own.
#[test]
fn a_login_at_another_address_proves_nothing_unless_it_is_known_whose_it_is() {
    let first = "192.0.2.1:3260".parse().unwrap();
    let bound = Proof::ConfiguredBound { bound_ms: 5000 };
    // Whether the target sends us on or is away, whether the portals are said to be of one machine, and what proves.
    let cases = [(false, false, bound), (false, true, Proof::Reinstated), (true, false, Proof::Reinstated)].into_iter();
    for (n, (sends_us_on, said, proof)) in cases.enumerate() {
        let mut rig = Rig::with(&format!("machines{n}"), |config| {
            (config.fence, config.portals_prove) = (ms(5000), said);
            config.alternates = vec![Portal { host: "192.0.2.2".into(), port: 3260 }];
        });
        rig.submit(1, true).unwrap();
        rig.turns(200);
        match sends_us_on {
            true => rig.target.script().redirect = Some("192.0.2.2:3260,1".into()),
            false => rig.target.script().away_at = Some(first),
        }
        rig.target.reset();
        rig.turns(400);
        let dials: Vec<String> = rig.target.script().dials[1..].iter().map(ToString::to_string).collect();
        assert_eq!((rig.is_up(), &dials[..]), (true, &["192.0.2.1:3260".into(), "192.0.2.2:3260".into()][..]));
        let begun = rig.now();
        while rig.done.ends.is_empty() && rig.now().since(begun) < ms(10_000) {
            rig.turn(5);
        }
        assert_eq!(rig.done.ends, [lost(1, proof)]);
    }
}

/// What was lost over the first way waits while the session is elsewhere, and has its proof when the session is back.
#[test]
fn each_loss_is_proven_over_where_it_was_sent() {
    let mut rig = Rig::with("there-and-back", |config| {
        config.alternates = vec![Portal { host: "192.0.2.2".into(), port: 3260 }];
    });
    rig.submit(1, true).unwrap();
    rig.turns(200);
    rig.target.script().away_at = "192.0.2.1:3260".parse().ok();
    rig.target.reset();
    rig.turns(400);
    rig.submit(2, true).unwrap();
    rig.turns(1);
    assert_eq!((rig.is_up(), rig.dials(), &rig.done.ends[..]), (true, 3, &[][..]));
    rig.target.script().away_at = None;
    rig.target.reset();
    rig.turns(400);
    assert_eq!(
        (rig.dials(), &rig.done.ends[..]),
        (4, &[lost(1, Proof::Reinstated)][..]),
        "the other was sent elsewhere"
    );
}

/// A name server that does not answer is no reason to wait for those who can be reached without it.
#[test]
fn a_session_comes_up_while_a_name_is_being_resolved() {
    let (_never, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let mut rig = Rig::with("names", |config| {
        config.portal.host = "never-resolved.test".into();
        config.alternates = vec![Portal { host: "192.0.2.2".into(), port: 3260 }];
        config.resolver = polypath_net::Resolver::new(move |_| {
            let _ = gate.lock().unwrap().recv();
            Ok(Vec::new())
        });
    });
    rig.turns(300);
    assert_eq!((rig.is_up(), rig.target.script().dials[0].to_string()), (true, "192.0.2.2:3260".to_owned()));
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

/// A target that asks to be left, and then does not answer that it is.
#[test]
fn a_logout_is_not_waited_for_for_ever() {
    for busy in [false, true] {
        let mut rig = Rig::with(if busy { "leave-busy" } else { "leave-idle" }, |config| {
            config.silence_timeout = ms(60_000);
            config.keep_alive = Duration::ZERO;
        });
        if busy {
            rig.submit(1, true).unwrap();
            rig.turns(1);
        }
        rig.hear_async(AsyncEvent::LogoutRequested { within_s: 5 });
        (0..399).for_each(|_| rig.turn(10));
        assert_eq!((rig.dials(), rig.done.suspects.len(), rig.session.health()), (1, 0, Health::Down), "busy {busy}");
        (0..10).for_each(|_| rig.turn(10));
        assert_eq!((rig.dials(), rig.is_up(), rig.session.nexus()), (2, true, 2), "busy {busy}");
        assert_eq!(rig.done.suspects.len(), usize::from(busy));
        assert_eq!(rig.done.ends.len(), usize::from(busy), "reinstated");
    }
}

/// Turns of a target that says all the time that it is there, and answers nothing.
fn chatter(rig: &mut Rig, turns: u32, every_ms: u64) {
    for _ in 0..turns {
        if rig.is_connected() {
            rig.target.say(false, &[], |sn, out| {
                let lun = polypath_iscsi::pdu::Lun::ZERO;
                NopIn { lun, itt: None, ttt: None, sn, data_len: 0 }.encode(&any(), out).unwrap()
            });
        }
        rig.turn(every_ms);
    }
}

/// It is the target that says how long it may be left alone, and us who wait.
#[test]
fn a_target_cannot_hold_a_session_that_it_wants_to_be_left() {
    for (busy, again) in [(false, false), (true, false), (false, true)] {
        let mut rig = Rig::with(&format!("hold-{busy}-{again}"), |config| config.disks.io_timeout = ms(1000));
        if busy {
            rig.submit(1, true).unwrap();
            rig.turns(1);
        }
        rig.hear_async(AsyncEvent::LogoutRequested { within_s: u16::MAX });
        for _ in 0..60 {
            chatter(&mut rig, 10, 100);
            if again && rig.dials() == 1 {
                rig.hear_async(AsyncEvent::LogoutRequested { within_s: u16::MAX });
            }
        }
        assert!(rig.dials() > 1, "busy {busy}, again {again}: still not left after a minute");
    }
}

/// A target that has nothing of ours and takes nothing more lives, and is of no use: somebody waits for it.
#[test]
fn a_target_that_takes_no_commands_is_given_up() {
    let mut rig = Rig::with("shut", |config| config.disks.io_timeout = ms(1000));
    rig.target.script().shut = true;
    let mut taken = 0;
    while rig.submit(taken % 8, false).is_ok() {
        rig.turns(1);
        rig.commands().iter().for_each(|command| rig.target.answer(command));
        rig.turns(1);
        taken += 1;
        assert!(taken < 100, "MaxCMdSN never moves");
    }
    assert_eq!((rig.session.health(), rig.submit(1, false)), (Health::Ready, Err(RefusedWhy::Full)));
    chatter(&mut rig, 50, 100);
    assert!(rig.dials() > 1, "five seconds later, and a task may take one");
}

/// Whoever closes a session waits no longer than its tasks may take, whatever the target has asked for before.
#[test]
fn closing_does_not_wait_as_long_as_the_target_wants() {
    let mut rig = Rig::with("close-asked", |config| config.disks.io_timeout = ms(1000));
    rig.submit(1, true).unwrap();
    rig.turns(1);
    rig.hear_async(AsyncEvent::LogoutRequested { within_s: u16::MAX });
    rig.turns(1);
    rig.close();
    chatter(&mut rig, 50, 100);
    assert!(rig.session.is_drained(), "five seconds later, and a task may take one");
    assert_eq!(rig.done.ends.len(), 1);
}

/// A target may say when it will be back, but not that nobody may look for the rest of the day.
#[test]
fn a_target_that_says_to_come_back_tomorrow_is_looked_for_before() {
    for event in [
        AsyncEvent::ConnectionDropped { cid: 0, time2wait_s: u16::MAX, time2retain_s: 0 },
        AsyncEvent::SessionDropped { time2wait_s: u16::MAX, time2retain_s: 0 },
    ] {
        let mut rig =
            Rig::new(&format!("tomorrow-{event:?}").replace([' ', '{', '}', ':', ',', '_'], "").to_lowercase());
        rig.hear_async(event);
        (0..130).for_each(|_| rig.turn(1000));
        assert!(rig.dials() > 1, "{event}");
    }
}

#[test]
fn what_a_dropped_session_has_left_behind_is_said_by_its_fence() {
    // What it had sent, whether its connection was lost before, whether anything is open.
    let cases = [
        ("drop-idle", None, false, false),
        ("drop-read", Some(false), false, true),
        ("drop-write", Some(true), false, true),
        ("drop-lost-read", Some(false), true, false),
        ("drop-lost-write", Some(true), true, true),
    ];
    for (name, write, lose, open) in cases {
        let mut rig = Rig::with(name, |config| config.fence = ms(1000));
        if let Some(write) = write {
            rig.submit(1, write).unwrap();
            rig.turns(1);
        }
        if lose {
            rig.target.script().away = true;
            rig.target.reset();
            rig.turns(1);
        }
        rig.target.take();
        let (now, fence) = (rig.now(), rig.session.end_fence().unwrap());
        assert_eq!(fence.state(now), FenceState::Idle, "{name}: it lives");
        assert_eq!(rig.session.is_drained(), !open, "{name}");
        let Rig { session, target, .. } = rig;
        drop(session);
        let by = now.after(ms(1000));
        let (first, last) = match open {
            true => (FenceState::Pending { by }, FenceState::Quiet(Proof::ConfiguredBound { bound_ms: 1000 })),
            false => (FenceState::Quiet(Proof::SocketClosed), FenceState::Quiet(Proof::SocketClosed)),
        };
        assert_eq!((fence.state(now), fence.state(by)), (first, last), "{name}");
        let logouts = target.take().iter().filter(|h| h.header.opcode == Opcode::LogoutRequest).count();
        assert_eq!(logouts, usize::from(write.is_none()), "{name}: in order, where nothing is on it");
    }
}

#[test]
fn a_session_is_closed_when_what_is_on_it_has_ended() {
    let mut rig = Rig::new("close-idle");
    rig.close();
    assert_eq!(rig.target.take().last().map(|h| h.header.opcode), Some(Opcode::LogoutRequest), "at once");
    (0..100).for_each(|_| rig.turn(10));
    assert!(rig.session.is_drained() && rig.dials() == 1 && !rig.is_up());

    let mut rig = Rig::new("close-busy");
    rig.submit(1, true).unwrap();
    rig.turns(1);
    let commands = rig.commands();
    rig.close();
    rig.turns(1);
    assert!(!rig.session.is_drained() && !rig.is_up() && rig.submit(2, false) == Err(RefusedWhy::Gone));
    assert!(rig.target.take().is_empty());
    rig.target.answer(&commands[0]);
    rig.turns(2);
    assert_eq!((rig.session.is_drained(), &rig.done.good[..]), (true, &[1][..]));
    assert_eq!(rig.target.take().last().map(|h| h.header.opcode), Some(Opcode::LogoutRequest));

    // What is lost while it closes has its proof all the same.
    let mut rig = Rig::new("close-lost");
    rig.submit(1, true).unwrap();
    rig.turns(200);
    rig.close();
    rig.target.reset();
    rig.turns(1);
    assert!(!rig.session.is_drained());
    rig.turns(20);
    assert_eq!((rig.session.is_drained(), rig.dials()), (true, 2));
    assert_eq!(rig.done.ends, [lost(1, Proof::Reinstated)]);
}

#[test]
fn pauses_between_attempts_grow_and_somebody_who_lived_is_taken_back_at_once() {
    let mut rig = Rig::new("pauses");
    rig.turns(200);
    rig.target.script().away = true;
    rig.target.reset();
    rig.turn(1);
    rig.turn(0);
    assert_eq!(rig.dials(), 2, "in the same turn, or the next");
    let begun = rig.now();
    let mut pauses = Vec::new();
    while pauses.len() < 4 {
        let dials = rig.dials();
        rig.turn(1);
        if rig.dials() > dials {
            pauses.push(rig.now().since(begun).as_millis());
        }
        assert!(rig.now().since(begun) < ms(5000), "{pauses:?}");
    }
    assert_eq!(pauses, [100, 300, 600, 1000], "100 ms more each time");
    let (code, reason) = rig.session.trouble().unwrap();
    assert!(code == Code::PathLost && reason.contains("connecting"), "{reason}");
    rig.target.script().away = false;
    rig.turns(600);
    assert_eq!((rig.is_up(), rig.session.trouble(), rig.session.target_port()), (true, None, 1));
}

#[test]
fn a_target_that_says_when_it_is_back_is_not_asked_before() {
    let mut rig = Rig::new("back-later");
    rig.submit(1, true).unwrap();
    rig.turns(200);
    rig.hear_async(AsyncEvent::SessionDropped { time2wait_s: 2, time2retain_s: 0 });
    rig.turns(1999);
    assert_eq!((rig.dials(), rig.done.suspects.len(), rig.done.ends.len()), (1, 1, 0));
    rig.turns(20);
    assert_eq!((rig.dials(), &rig.done.ends[..]), (2, &[lost(1, Proof::Reinstated)][..]));
}

#[test]
fn a_function_that_the_target_does_not_carry_out_has_ended_nothing() {
    let mut rig = Rig::new("not-supported");
    rig.submit(1, true).unwrap();
    rig.submit(2, false).unwrap();
    rig.turns(1);
    let steps = [
        (Recovery::AbortTask { tag: 2 }, TaskResult::NotSupported, Recovered::Failed),
        (Recovery::ResetLogicalUnit { target: 0, lun: Lun::ZERO }, TaskResult::Rejected, Recovered::Failed),
        (Recovery::ResetTarget { target: 0 }, TaskResult::NotAuthorized, Recovered::Failed),
        (Recovery::ResetTarget { target: 0 }, TaskResult::NoTask, Recovered::NoSuchTask),
    ];
    for (token, (step, result, outcome)) in (70..).zip(steps) {
        assert!(rig.recover(step, token));
        rig.managed(result);
        assert_eq!(rig.done.recoveries.pop(), Some(RecoveryEnd { token, outcome }), "{step:?}");
        assert!(rig.done.ends.is_empty() && !rig.session.is_drained());
    }
    assert!(rig.recover(Recovery::ResetTarget { target: 0 }, 80));
    rig.managed(TaskResult::Complete);
    let mut tags: Vec<_> = rig.done.ends.iter().map(|end| (end.tag, end.proof)).collect();
    tags.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(tags, [(1, Proof::Aborted), (2, Proof::Aborted)]);
    assert!(rig.session.is_drained());
    // One that is outstanding when the way breaks has failed.
    rig.submit(3, true).unwrap();
    rig.turns(1);
    assert!(rig.recover(Recovery::AbortTask { tag: 3 }, 90));
    rig.done.recoveries.clear();
    rig.target.reset();
    rig.turns(1);
    assert_eq!(rig.done.recoveries, [RecoveryEnd { token: 90, outcome: Recovered::Failed }]);
    assert!(!rig.recover(Recovery::ResetHost, 91), "there is no way");
}

#[test]
fn what_is_not_simply_good_comes_with_what_was_said() {
    let answered = |status, moved| Outcome::Answered(Answer { status: ScsiStatus(status), sense: None, moved });
    let completed = |status| CommandResponse::Completed { status };
    // The response, the residual, what the session makes of a write and of a read of which nothing came.
    let cases = [
        (completed(0x08), Residual::None, answered(0x08, 512), answered(0x08, 0)),
        (completed(0), Residual::Underflow(12), answered(0, 500), answered(0, 0)),
        (CommandResponse::TargetFailure, Residual::None, Outcome::Lost(Code::PathLost), Outcome::Lost(Code::PathLost)),
    ];
    let mut rig = Rig::new("not-good");
    for (response, residual, write, read) in cases {
        for (tag, changes, outcome) in [(1, true, write), (2, false, read)] {
            rig.submit(tag, changes).unwrap();
            rig.turns(1);
            let itt = rig.commands()[0].itt();
            rig.target.say(true, &[], |sn, out| {
                let (read_residual, snack_tag, exp_data_sn, data_len) = (Residual::None, 0, 0, 0);
                let pdu = ScsiResponse { itt, response, residual, read_residual, snack_tag, exp_data_sn, sn, data_len };
                pdu.encode(&any(), out).unwrap()
            });
            rig.turns(1);
            assert_eq!(rig.done.ends.pop(), Some(TaskEnd { tag, outcome, proof: Proof::Answered }), "{response:?}");
            assert!(rig.done.good.is_empty());
        }
    }
    assert!(rig.is_up() && rig.session.is_drained());
}

/// A task that was answered BUSY is sent again by its own number. An abort that was asked for before is of the first one, and a target may say that it
/// is done whether that was there still or not (SAM-5 section 7.2).
#[test]
fn an_abort_ends_nothing_that_was_sent_after_it() {
    let mut rig = Rig::new("abort-again");
    rig.submit(1, true).unwrap();
    rig.turns(1);
    let first = rig.commands().remove(0).itt();
    assert!(rig.recover(Recovery::AbortTask { tag: 1 }, 50));
    let abort = rig.target.take().iter().find(|h| h.header.opcode == Opcode::TaskRequest).unwrap().itt();
    // Its answer was on the way already.
    rig.target.say(true, &[], |sn, out| {
        let response = CommandResponse::Completed { status: 0x08 };
        let (residual, read_residual, snack_tag, exp_data_sn, data_len) = (Residual::None, Residual::None, 0, 0, 0);
        let pdu = ScsiResponse { itt: first, response, residual, read_residual, snack_tag, exp_data_sn, sn, data_len };
        pdu.encode(&any(), out).unwrap()
    });
    rig.turns(1);
    assert_eq!(rig.done.ends.len(), 1, "answered");
    rig.submit(1, true).unwrap();
    rig.turns(1);
    let second = rig.commands().remove(0);
    rig.target.say(true, &[], |sn, out| {
        TaskResponse { result: TaskResult::Complete, itt: abort, sn }.encode(&any(), out).unwrap()
    });
    rig.turns(1);
    assert_eq!(rig.done.ends.len(), 1, "the second one is being carried out: {:?}", rig.done.ends);
    rig.target.answer(&second);
    rig.turns(1);
    assert_eq!((&rig.done.good[..], rig.is_up()), (&[1][..], true));
}

/// Whoever closes says so as often as he looks. What is lost has its proof all the same, and the target is not called at every turn.
#[test]
fn closing_again_does_not_keep_the_session_from_its_proof() {
    let mut rig = Rig::new("close-again");
    rig.submit(1, true).unwrap();
    rig.turns(200);
    rig.target.reset();
    for _ in 0..50 {
        rig.turn(1);
        rig.close();
    }
    assert_eq!((rig.dials(), rig.session.is_drained()), (2, true));
    assert_eq!(rig.done.ends, [lost(1, Proof::Reinstated)]);
}
