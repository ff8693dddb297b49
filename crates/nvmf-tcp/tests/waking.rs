//! When the admin queue looks at its socket, when its reactor may sleep and what wakes it; and what it does by the clock: keep alive.

use crate::script::{Script, Shown, What};
use crate::turns::{World, config};
use polypath_block::{Armed, Code, Cx, Io, Turn, Waits};
use polypath_nvme::StatusField;
use polypath_nvme::identify::cns;
use polypath_nvme::log::{AnaState, EventKind};
use polypath_nvmf_tcp::ControllerConfig;
use std::time::Duration;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One turn of the admin queue alone, which the world has made already.
fn turn(world: &mut World) -> Turn {
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    world.pollers[0].poll(&mut cx)
}

fn arm(world: &mut World) -> (Armed, Waits) {
    let mut waits = Waits::default();
    let mut cx = Cx { now: world.now, segs: &mut world.segs, reactor: 0 };
    (world.pollers[0].arm(&mut cx, &mut waits), waits)
}

/// A world in which the admin queue has done all there was to do.
fn at_rest(script: &Script) -> World {
    let config = config(script);
    let mut world = World::start(script.clone(), config);
    world.run_until("a device that is live", 500, |w| w.is_live());
    world.run_ms(100);
    world
}

/// Looks at the socket in ten milliseconds of a reactor that spins, a turn each ten microseconds.
fn looks(world: &mut World) -> usize {
    let before = world.script.looks(0);
    for _ in 0..1000 {
        world.pass(Duration::from_micros(10));
        world.turn_admin();
    }
    world.script.looks(0) - before
}

#[test]
fn a_reactor_that_spins_looks_at_the_socket_as_often_as_is_worth_it() {
    let script = Script::new();
    script.hold(What::Identify(cns::CONTROLLER));
    let mut world = World::start(script.clone(), config(&script));
    world.run_ms(50);
    assert_eq!(looks(&mut world), 200, "every 50 us while it comes up");
    script.release(What::Identify(cns::CONTROLLER));
    world.run_until("a device that is live", 500, |w| w.is_live());
    world.run_ms(100);
    assert_eq!(looks(&mut world), 10, "every millisecond when nothing is urgent");
    // A request for events and a Keep Alive may take their time.
    script.hold(What::KeepAlive);
    world.run_until("a Keep Alive", 600, |_| !script.held(What::KeepAlive).is_empty());
    assert_eq!(looks(&mut world), 10);
    script.hold(What::Identify(cns::ACTIVE_NAMESPACES));
    script.event(EventKind::NamespacesChanged);
    world.run_until("a look", 100, |_| !script.held(What::Identify(cns::ACTIVE_NAMESPACES)).is_empty());
    world.run_ms(30);
    assert_eq!(looks(&mut world), 200, "somebody waits for what the controller shows now");
}

#[test]
fn a_reactor_that_wakes_looks_at_once() {
    let script = Script::new();
    let mut world = at_rest(&script);
    let before = script.looks(0);
    world.pass(Duration::from_micros(60));
    turn(&mut world);
    assert_eq!(script.looks(0), before, "it has just looked");
    assert_eq!(arm(&mut world).0, Armed::Sleep);
    world.pass(Duration::from_micros(60));
    turn(&mut world);
    assert_eq!(script.looks(0), before + 1, "it may be what woke it");
    world.pass(Duration::from_micros(60));
    turn(&mut world);
    assert_eq!(script.looks(0), before + 1, "once");
}

#[test]
fn a_turn_says_whether_it_got_something_done() {
    let script = Script::new();
    let mut world = at_rest(&script);
    world.pass_ms(1);
    assert_eq!(turn(&mut world), Turn::Idle, "nothing has come");
    script.event(EventKind::NamespacesChanged);
    assert_eq!(turn(&mut world), Turn::Idle, "not yet looked");
    world.pass_ms(1);
    assert_eq!(turn(&mut world), Turn::Busy, "something has come");
    world.run_ms(100);
    // A Keep Alive is due.
    let due = arm(&mut world).1.deadline.unwrap();
    world.pass(due.since(world.now));
    assert_eq!(turn(&mut world), Turn::Busy);
    world.run_ms(10);
    world.controller.close();
    assert_eq!(turn(&mut world), Turn::Finished);
}

/// Sleep lasts until the next thing that is due, and no longer.
#[test]
fn a_reactor_sleeps_until_something_is_due() {
    let script = Script::new();
    let mut world = at_rest(&script);
    for _ in 0..3 {
        let sent = script.asked(What::KeepAlive);
        let (armed, waits) = arm(&mut world);
        assert_eq!(armed, Armed::Sleep);
        let due = waits.deadline.expect("a Keep Alive");
        assert!(due > world.now && due.since(world.now) <= ms(500));
        world.pass(due.since(world.now));
        world.turn_admin();
        assert_eq!(script.asked(What::KeepAlive), sent + 1);
        world.run_ms(3);
    }
    let script = Script::new();
    let config = ControllerConfig { keep_alive: Duration::ZERO, ..config(&script) };
    let mut world = World::start(script.clone(), config);
    world.run_until("a device that is live", 500, |w| w.is_live());
    world.run_ms(100);
    let (armed, waits) = arm(&mut world);
    assert_eq!((armed, waits.deadline), (Armed::Sleep, None), "nothing will ever be due");
    world.run_in_steps(10_000, &[20]);
    assert_eq!(script.asked(What::KeepAlive), 0);
}

/// Whoever asks the admin queue for something finds it awake: its reactor does not fall asleep over it, and does it in its next turn.
#[test]
fn whoever_asks_for_something_keeps_the_reactor_awake() {
    type Ask = fn(&mut World);
    let asks: [(&str, What, Ask); 2] = [
        ("the ANA log", What::Log(0x0c), |world| {
            let span = world.memory(512, 7);
            let sqe = world.send(Io::write(1, 0, 1, span));
            world.script.answer(1, sqe.cid(), StatusField::ANA_INACCESSIBLE);
            world.turn_queue(0);
        }),
        ("a probe", What::KeepAlive, |world| {
            let span = world.memory(512, 7);
            world.send(Io::write(1, 0, 1, span));
            // A turn of the queue now and then, or it would take the silence for its own.
            for _ in 0..12 {
                world.pass_ms(45);
                world.turn_queue(0);
            }
        }),
    ];
    for (what, command, ask) in asks {
        let script = Script::new();
        script.state().ana = vec![(1, AnaState::Optimized, vec![1])];
        let mut world = World::up_with(script.clone(), config(&script), 8);
        world.run_ms(100);
        assert_eq!(arm(&mut world).0, Armed::Sleep, "{what}");
        let asked = script.asked(command);
        ask(&mut world);
        assert_eq!(arm(&mut world).0, Armed::Busy, "{what}");
        assert_eq!(turn(&mut world), Turn::Busy, "{what}");
        world.pass_ms(30);
        turn(&mut world);
        assert!(script.asked(command) > asked, "{what}");
        world.run_ms(3);
        assert_eq!(arm(&mut world).0, Armed::Sleep, "{what}: asked for once");
    }
}

/// A namespace that is asked for and was passed over is looked for, now and not when something else happens.
#[test]
fn a_namespace_that_was_passed_over_keeps_the_reactor_awake() {
    let script = Script::new();
    (2..=1025).for_each(|nsid| script.state().show(nsid, Shown::new(nsid as u8)));
    let mut world = World::start(script.clone(), ControllerConfig { ns: None, ..config(&script) });
    world.run_until("a controller that is up", 10_000, |w| w.controller.is_live());
    world.run_ms(10);
    let known = world.controller.namespace(1024);
    assert_eq!(arm(&mut world).0, Armed::Sleep, "it is known");
    let wanted = world.controller.namespace(1025);
    assert_eq!(arm(&mut world).0, Armed::Busy);
    drop((known, wanted));
}

/// Half the timeout after the last one, and what it takes to be judged dead: an idle way as long as the interval or the limit of silence,
/// whichever is longer.
#[test]
fn a_keep_alive_that_is_not_answered_ends_the_association() {
    for (keep_alive, interval, patience) in [(1000, 500, 1000), (6000, 3000, 3000)] {
        let script = Script::new();
        let config = ControllerConfig { keep_alive: ms(keep_alive), ..config(&script) };
        let mut world = World::start(script.clone(), config);
        world.run_until("a device that is live", 500, |w| w.is_live());
        let mut sent = Vec::new();
        for n in 1..=3 {
            world.run_until("a Keep Alive", 3100, |_| script.asked(What::KeepAlive) == n);
            sent.push(world.now);
        }
        let took = sent[2].since(sent[1]);
        assert!((ms(interval)..=ms(interval + 1)).contains(&took), "{took:?}");
        assert_eq!(world.controller.statistics().keep_alives, 3);
        script.hold(What::KeepAlive);
        world.run_until("a Keep Alive", 3100, |_| script.asked(What::KeepAlive) == 4);
        let took = world.run_until("the loss", 3100, |w| !w.is_live());
        assert!((ms(patience)..=ms(patience + 1)).contains(&took), "{took:?}");
        assert_eq!(world.cause(), Code::PathTimeout);
    }
}

/// A queue that has heard nothing for half the limit has the controller asked whether it is there: a dead way is left when the limit has
/// passed, whether a Keep Alive was under way already or not.
#[test]
fn a_queue_that_waits_does_not_wait_longer_than_the_limit_of_silence() {
    for under_way in [false, true] {
        let script = Script::new();
        let config = ControllerConfig { keep_alive: ms(20_000), ..config(&script) };
        let mut world = World::up_with(script.clone(), config, 8);
        world.run_ms(9000);
        script.hold(What::KeepAlive);
        if under_way {
            world.run_until("a Keep Alive", 2000, |_| !script.held(What::KeepAlive).is_empty());
        }
        let span = world.memory(512, 7);
        world.send(Io::write(1, 0, 1, span));
        let took = world.run_until("the loss", 3000, |w| !w.is_live());
        assert!((ms(1000)..=ms(1010)).contains(&took), "{took:?}");
        assert_eq!(world.cause(), Code::PathTimeout);
    }
}
