//! When a session wants to be looked at, and what it makes of a reactor that was not there.

use super::*;
use polypath_block::{Armed, Waits};

fn arm(rig: &mut Rig) -> (Armed, Waits) {
    let (now, mut waits) = (rig.now(), Waits::default());
    let armed = rig.session.arm(&mut Cx { now, segs: &mut rig.segs, reactor: 0 }, &mut waits);
    (armed, waits)
}

/// Sleeps for `span` with a turn at each time that the session names; how many these were.
fn sleep(rig: &mut Rig, span: Duration) -> u32 {
    let end = rig.now().after(span);
    for turns in 0..100 {
        let (armed, waits) = arm(rig);
        assert!(armed == Armed::Sleep && !waits.interests.is_empty(), "whoever opens or closes rings a bell");
        let now = rig.now();
        let Some(at) = waits.deadline.filter(|at| *at < end) else {
            rig.target.script().now = end;
            return turns;
        };
        rig.target.script().now = at.max(now);
        // The second because its socket can be written.
        (0..2).for_each(|_| rig.turn(0));
    }
    panic!("a hundred turns in {span:?}");
}

fn pings(rig: &Rig) -> usize {
    rig.target.take().iter().filter(|h| h.header.opcode == Opcode::NopOut).count()
}

#[test]
fn an_idle_session_is_left_alone_until_it_is_time_for_a_sign_of_life() {
    let mut rig = Rig::with("sleep-idle", |config| config.keep_alive = ms(5000));
    rig.turns(100);
    let turns = sleep(&mut rig, ms(4800));
    assert!(turns < 5 && pings(&rig) == 0, "{turns}");
    let turns = sleep(&mut rig, ms(120));
    assert!(turns < 5 && pings(&rig) == 1, "{turns}");
    // It does not answer.
    sleep(&mut rig, ms(150));
    assert_eq!(rig.dials(), 1);
    sleep(&mut rig, ms(150));
    assert_eq!(rig.dials(), 2);

    let mut rig = Rig::with("sleep-for-good", |config| config.keep_alive = Duration::ZERO);
    rig.turns(100);
    let turns = sleep(&mut rig, ms(1_000_000));
    assert!(turns < 5 && pings(&rig) == 0 && rig.dials() == 1, "{turns}");
}

#[test]
fn a_task_that_is_not_answered_is_looked_after() {
    for write in [false, true] {
        let name = if write { "sleep-write" } else { "sleep-read" };
        let mut rig = Rig::with(name, |config| config.silence_timeout = ms(250));
        rig.turns(100);
        sleep(&mut rig, ms(1000));
        rig.submit(1, write).unwrap();
        rig.turn(0);
        sleep(&mut rig, ms(120));
        assert_eq!((pings(&rig), rig.session.health()), (0, Health::Ready));
        sleep(&mut rig, ms(40));
        assert_eq!((pings(&rig), rig.session.health()), (1, Health::Stalled), "half of the limit has passed");
        sleep(&mut rig, ms(200));
        assert_eq!(rig.dials(), 1);
        sleep(&mut rig, ms(60));
        assert_eq!((rig.dials(), rig.done.ends.len() + rig.done.suspects.len()), (2, 1));
    }
}

#[test]
fn somebody_who_is_away_is_looked_for_in_time_and_what_is_lost_has_its_bound() {
    let mut rig = Rig::with("sleep-away", |config| config.fence = ms(850));
    rig.submit(1, true).unwrap();
    rig.turns(200);
    rig.target.script().away = true;
    rig.target.reset();
    rig.turn(1);
    let dials = rig.dials();
    // After 100, 300 and 600 ms.
    for (pause, more) in [(95, 0), (10, 1), (190, 1), (10, 2), (290, 2), (10, 3), (244, 3)] {
        sleep(&mut rig, ms(pause));
        assert_eq!((rig.dials() - dials, rig.done.ends.len()), (more, 0));
    }
    sleep(&mut rig, ms(3));
    assert_eq!(rig.done.ends, [lost(1, Proof::ConfiguredBound { bound_ms: 850 })]);
}

#[test]
fn a_login_that_gets_nowhere_ends_in_time() {
    let mut rig = Rig::with("sleep-login", |config| config.connect_timeout = ms(3000));
    rig.turns(200);
    rig.target.script().deaf = true;
    rig.target.reset();
    rig.turns(3);
    assert_eq!(rig.dials(), 2);
    sleep(&mut rig, ms(2990));
    assert_eq!((rig.dials(), rig.session.trouble().map(|(code, _)| code)), (2, Some(Code::PathLost)));
    sleep(&mut rig, ms(20));
    let (code, reason) = rig.session.trouble().unwrap();
    assert!(code == Code::PathTimeout && reason.contains("3000 ms"), "{reason}");
    sleep(&mut rig, ms(100));
    assert_eq!(rig.dials(), 3);
}

#[test]
fn what_is_to_be_left_is_left_in_time() {
    let mut rig = Rig::with("sleep-leave", |config| config.keep_alive = Duration::ZERO);
    rig.turns(200);
    rig.hear_async(AsyncEvent::LogoutRequested { within_s: 5 });
    rig.turn(1);
    // Its logout is not answered. The silence of that has no limit of its own: nothing is on it.
    sleep(&mut rig, ms(3990));
    assert_eq!(rig.dials(), 1);
    sleep(&mut rig, ms(20));
    assert_eq!(rig.dials(), 2);
}

#[test]
fn a_session_with_something_to_do_does_not_sleep() {
    let mut rig = Rig::new("no-sleep");
    rig.turns(100);
    assert_eq!(arm(&mut rig).0, Armed::Sleep);
    assert!(rig.recover(Recovery::ResetHost, 1));
    assert_eq!(arm(&mut rig).0, Armed::Busy, "the next turn ends it");
}

/// What comes while the reactor is away is read before anybody is judged, and what does not is waited for anew.
#[test]
fn nobody_is_blamed_for_a_reactor_that_was_not_there() {
    let mut rig = Rig::new("stall");
    rig.submit(1, false).unwrap();
    (0..15).for_each(|_| rig.turn(10));
    assert_eq!(rig.session.health(), Health::Stalled, "it was asked for a sign of life");
    let command = rig.commands().remove(0);
    rig.turn(60_000);
    assert_eq!((rig.dials(), rig.done.ends.len()), (1, 0));
    rig.target.answer(&command);
    rig.turn(1);
    assert_eq!((&rig.done.good[..], rig.session.health()), (&[1][..], Health::Ready));

    // A target that takes no commands.
    let mut rig = shut("stall-shut");
    rig.turn(60_000);
    rig.turns(100);
    assert_eq!(rig.dials(), 1, "it may have moved its window meanwhile");

    // One that is logged in to.
    let mut rig = Rig::new("stall-login");
    rig.turns(200);
    rig.target.script().deaf = true;
    rig.target.reset();
    rig.turns(3);
    rig.turn(60_000);
    rig.turns(10);
    assert_eq!(rig.dials(), 2);
    rig.target.hear_again();
    rig.turns(10);
    assert_eq!((rig.dials(), rig.is_up()), (2, true));
}

/// A target that has taken all that it has said to take, and has none of it.
fn shut(name: &str) -> Rig {
    let mut rig = Rig::with(name, |config| config.disks.io_timeout = ms(1000));
    rig.target.script().shut = true;
    for tag in 0..100 {
        if rig.submit(tag % 8, false).is_err() {
            return rig;
        }
        rig.turns(1);
        rig.commands().iter().for_each(|command| rig.target.answer(command));
        rig.turns(1);
    }
    panic!("MaxCmdSN never moves");
}

#[test]
fn a_target_that_takes_nothing_is_given_up_in_time() {
    let mut rig = shut("sleep-shut");
    sleep(&mut rig, ms(980));
    assert_eq!(rig.dials(), 1);
    sleep(&mut rig, ms(200));
    assert_eq!(rig.dials(), 2);
}

/// One that takes commands again has its time for them, however many it takes.
#[test]
fn a_window_that_opens_again_is_no_reason_to_go() {
    let mut rig = shut("shut-and-open");
    rig.turns(500);
    rig.target.script().shut = false;
    chatter(&mut rig, 1, 1);
    let taken = (0..32).take_while(|tag| rig.submit(*tag, false).is_ok()).count();
    assert_eq!((taken >= 8, rig.submit(0, false)), (true, Err(RefusedWhy::Full)));
    chatter(&mut rig, 100, 10);
    assert_eq!((rig.dials(), rig.done.ends.len()), (1, 0));
    rig.commands().iter().for_each(|command| rig.target.answer(command));
    rig.turns(2);
    assert!(rig.done.good.len() > taken && rig.session.is_drained());
}

#[test]
fn what_was_submitted_leaves_with_the_kick() {
    let mut rig = Rig::new("kick");
    rig.submit(1, true).unwrap();
    assert!(rig.commands().is_empty());
    let now = rig.now();
    rig.session.kick(&mut Cx { now, segs: &mut rig.segs, reactor: 0 });
    assert_eq!(rig.commands().len(), 1);
}
